"""What a way to remember states has to do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .scan import Folder


class Backend(ABC):
    """How states of a workspace are remembered and put back.

    Attributes
    ----------
    root : where this process finds the workspace;  inner : where a command finds it, behind the words ``enter``.
    """

    root: Path
    inner: Path
    enter: tuple[str, ...] = ()
    cheap = True

    @abstractmethod
    def holds(self, snapshot_id: str, parts: Sequence[str]) -> bool:
        """Whether a state is remembered; parts: the trees of its files and of its history."""

    @abstractmethod
    def save(self, snapshot_id: str) -> None:
        """Remember the present state, of which the objects have just been written."""

    @abstractmethod
    def restore(self, snapshot_id: str, have: Sequence[Folder], parts: Sequence[str]) -> None:
        """Put a state back; have: what the workspace holds now."""

    def note(self, action: str, *args: Any) -> None:  # noqa: B027 - most need not know
        """Be told of a change before it is made."""

    def close(self) -> None:  # noqa: B027 - most hold none
        """Let go of processes."""
