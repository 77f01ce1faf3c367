"""Backend "git": a state is a tree of objects; putting one back touches only what differs, however deep the search."""

from __future__ import annotations

from pathlib import Path

from .scan import Folder, apply
from .store import ObjectStore


class GitBackend:
    """A folder on disk and the objects of all its states."""

    cheap = True
    enter: tuple[str, ...] = ()

    def __init__(self, root: Path, store: ObjectStore) -> None:
        self.root = root
        self._store = store

    def holds(self, part: str) -> bool:
        """Whether a state is remembered."""
        return self._store.holds(part)

    def save(self, snapshot_id: str) -> None:
        """Nothing is left to do: looking at the workspace wrote its objects."""

    def restore(self, have: list[Folder], want: list[str]) -> None:
        """Make the parts of the workspace equal to the trees ``want``."""
        for folder, identity in zip(have, want, strict=True):
            apply(self.root, folder, identity, self._store)

    def close(self) -> None:
        """Nothing is held."""
