"""Backend "copy": a state is a whole copy of the folder."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path

from .backend import Backend
from .scan import Folder, clear, copy_folder, is_installed, remove


class CopyBackend(Backend):
    """A folder on disk and copies of it beside each other."""

    cheap = False

    def __init__(self, root: Path, copies: Path) -> None:
        self.root = self.inner = root
        self._copies = copies
        copies.mkdir(exist_ok=True)

    def holds(self, snapshot_id: str, parts: Sequence[str]) -> bool:
        """Whether the copy exists."""
        return snapshot_id.replace("+", "").isalnum() and (self._copies / snapshot_id).is_dir()

    def save(self, snapshot_id: str) -> None:
        """Copy all, unless that was done before."""
        kept = self._copies / snapshot_id
        if not kept.exists():
            unfinished = self._copies / f"{snapshot_id}.{secrets.token_hex(4)}"
            copy_folder(self.root, unfinished, is_installed)
            try:
                unfinished.replace(kept)
            except OSError:  # another worker was first
                remove(unfinished)

    def restore(self, snapshot_id: str, have: Sequence[Folder], parts: Sequence[str]) -> None:
        """Delete all but what is installed, and copy back."""
        clear(self.root)
        copy_folder(self._copies / snapshot_id, self.root, lambda path, name: False)
