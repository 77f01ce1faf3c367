"""Files in memory: for statistics over thousands of runs, and for tests."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from ..errors import EnvError
from ..patches import NOWHERE, quoted_path
from .apply import applied
from .base import Environment, ExecResult

Oracle = Callable[[str, str], ExecResult]


class MemoryEnvironment(Environment):
    """A dict of files; what commands would print is known beforehand.

    Parameters
    ----------
    files : path -> content.
    oracle : (state_hash, command) -> result; without one every command is unknown (exit code 127).

    Examples
    --------
    >>> env = MemoryEnvironment({"a.py": "x = 1"})
    >>> before = env.snapshot()
    >>> env.write_file("a.py", b"x = 2")
    >>> env.restore(before)
    >>> env.read_file("a.py")
    b'x = 1'
    """

    def __init__(self, files: Mapping[str, str | bytes], oracle: Oracle | None = None) -> None:
        self._files = {path: _bytes(content) for path, content in files.items()}
        self._base: Mapping[str, bytes] = MappingProxyType(dict(self._files))
        self._oracle = oracle
        self._known: dict[str, dict[str, bytes]] = {}

    def exec(self, cmd: str | list[str], timeout: float | None = None, stdin: bytes | None = None) -> ExecResult:
        """What the oracle says."""
        command = cmd if isinstance(cmd, str) else " ".join(cmd)
        if self._oracle is None:
            return ExecResult(127, f"{command.split(maxsplit=1)[0] if command else ''}: not found")
        return self._oracle(self.state_hash(), command)

    def read_file(self, path: str) -> bytes:
        """Bytes of a file."""
        try:
            return self._files[_inside(path)]
        except KeyError:
            raise EnvError(f"there is no file {path}") from None

    def write_file(self, path: str, data: bytes) -> None:
        """Write a file."""
        self._files[_inside(path)] = bytes(data)

    def remove_file(self, path: str) -> None:
        """Delete a file."""
        if self._files.pop(_inside(path), None) is None:
            raise EnvError(f"there is no file {path}")

    def list_files(self) -> list[str]:
        """Sorted paths."""
        return sorted(self._files)

    def snapshot(self) -> str:
        """The state's hash; contents are shared, not copied."""
        identity = self.state_hash()
        self._known.setdefault(identity, dict(self._files))
        return identity

    def restore(self, snapshot_id: str) -> None:
        """Put a remembered state back."""
        if snapshot_id not in self._known:
            raise EnvError(f"there is no snapshot {snapshot_id}")
        self._files = dict(self._known[snapshot_id])

    def knows(self, snapshot_id: str) -> bool:
        """Whether :meth:`restore` can put it back."""
        return snapshot_id in self._known

    def diff(self) -> str:
        """Unified diff against the files it was made with."""
        parts = []
        for path in sorted(self._base.keys() | self._files.keys()):
            old, new = self._base.get(path), self._files.get(path)
            if old != new:
                parts.append(_file_diff(path, old, new))
        return "".join(parts)

    def apply(self, patch: str) -> None:
        """Change the files as a patch of texts says, every hunk at its line."""
        try:
            self._files = applied(self._files, patch)
        except ValueError as error:
            raise EnvError(f"the patch does not apply: {error}") from None

    def state_hash(self) -> str:
        """Hash of paths and contents."""
        digest = hashlib.sha256()
        for path in sorted(self._files):
            digest.update(f"{path}\0{len(self._files[path])}\0".encode())
            digest.update(self._files[path])
        return digest.hexdigest()[:40]

    def clone(self) -> MemoryEnvironment:
        """Another workspace on the same remembered states."""
        twin = MemoryEnvironment({}, self._oracle)
        twin._files, twin._base, twin._known = dict(self._files), self._base, self._known
        return twin


def _bytes(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else bytes(content)


def _inside(path: str) -> str:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts or not parts:
        raise EnvError(f"{path!r} is not a path inside the workspace")
    return "/".join(parts)


def _file_diff(path: str, old: bytes | None, new: bytes | None) -> str:
    a, b = quoted_path(f"a/{path}"), quoted_path(f"b/{path}")
    before, after = (NOWHERE if old is None else a), (NOWHERE if new is None else b)
    head = f"diff --git {a} {b}\n"
    head += "new file mode 100644\n" if old is None else "deleted file mode 100644\n" if new is None else ""
    try:
        then, now = (re.findall(r"[^\n]*\n|[^\n]+", (content or b"").decode()) for content in (old, new))
    except UnicodeDecodeError:
        return f"{head}Binary files {before} and {after} differ\n"
    body = ""
    for line in difflib.unified_diff(then, now, _ended(before), _ended(after)):
        body += line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
    return head + body


def _ended(name: str) -> str:
    """A name with the tab that git puts after one with a space, so that nothing takes what follows for a date."""
    return f"{name}\t" if " " in name else name
