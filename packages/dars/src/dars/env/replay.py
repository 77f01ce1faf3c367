"""Backend "replay": a state is the list of what was done since the base, and is reached by doing it again.

What the authors of the paper do; the time to put a state back grows with its depth.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import EnvError
from .backend import Backend
from .scan import Folder, apply
from .store import ObjectStore

Perform = Callable[..., object]


class ReplayBackend(Backend):
    """A folder on disk and, for each state, the state before it and the actions in between.

    Parameters
    ----------
    base : trees of the base's files and history, of which alone the objects are used.
    perform : name of an action -> what does it again.
    """

    def __init__(
        self, root: Path, store: ObjectStore, notes: Path, base: Sequence[str], perform: dict[str, Perform]
    ) -> None:
        self.root = self.inner = root
        self._store = store
        self._notes = notes
        self._base = base
        self._perform = perform
        self._at = base[0]
        self._since: list[list[Any]] = []
        notes.mkdir(exist_ok=True)

    def holds(self, snapshot_id: str, parts: Sequence[str]) -> bool:
        """Whether it is known how the state came about."""
        return snapshot_id == self._base[0] or self._file(snapshot_id).is_file()

    def note(self, action: str, *args: Any) -> None:
        """Keep the action."""
        self._since.append([action, *map(_pack, args)])

    def save(self, snapshot_id: str) -> None:
        """Write down how the state came about, unless a way to it is known."""
        if not self.holds(snapshot_id, ()):
            unfinished = self._file(snapshot_id).with_suffix(f".{id(self)}")
            unfinished.write_text(json.dumps({"before": self._at, "actions": self._since}))
            unfinished.replace(self._file(snapshot_id))
        self._at, self._since = snapshot_id, []

    def restore(self, snapshot_id: str, have: Sequence[Folder], parts: Sequence[str]) -> None:
        """The base, then all actions."""
        actions: list[list[Any]] = []
        at = snapshot_id
        while at != self._base[0]:
            note = json.loads(self._file(at).read_text())
            actions[:0] = note["actions"]
            at = note["before"]
        for folder, tree in zip(have, self._base, strict=True):
            apply(self.root, folder, tree, self._store)
        for action, *args in actions:
            try:
                self._perform[action](*map(_unpack, args))
            except EnvError:
                continue  # it failed the first time too
        self._at, self._since = snapshot_id, []

    def _file(self, snapshot_id: str) -> Path:
        if not snapshot_id.replace("+", "").isalnum():
            return self._notes / "none"
        return self._notes / f"{snapshot_id}.json"


def _pack(value: Any) -> Any:
    return {"bytes": b64encode(value).decode()} if isinstance(value, bytes) else value


def _unpack(value: Any) -> Any:
    return b64decode(value["bytes"]) if isinstance(value, dict) else value
