"""Backend "git": a state is a tree of objects; putting one back touches only what differs, however deep the search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .backend import Backend
from .scan import Folder, apply
from .store import ObjectStore


class GitBackend(Backend):
    """A folder on disk and the objects of all its states."""

    def __init__(self, root: Path, store: ObjectStore) -> None:
        self.root = self.inner = root
        self._store = store

    def holds(self, snapshot_id: str, parts: Sequence[str]) -> bool:
        """Whether the trees exist."""
        return all(self._store.holds(part) for part in parts)

    def save(self, snapshot_id: str) -> None:
        """Nothing is left to do: looking at the workspace wrote its objects."""

    def restore(self, snapshot_id: str, have: Sequence[Folder], parts: Sequence[str]) -> None:
        """Make files and history equal to the trees."""
        for folder, tree in zip(have, parts, strict=True):
            apply(self.root, folder, tree, self._store)
