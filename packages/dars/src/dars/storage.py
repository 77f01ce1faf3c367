"""A run's folder: an append-only log of events, texts by their hash, and files that are written whole or not at all.

Every event is one line with its number, synced before it counts. A line that a crash has torn off at the end is dropped
when the log is read; one that is torn or missing anywhere else is damage. Long texts are replaced by ``{"blob": hash}``
and lie under ``blobs/``.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

from .errors import TaskError, TreeFormatError, because, is_full

INLINE = 256  # characters up to which a text stays in the event
EVENTS, BLOBS = "events.jsonl", "blobs"
STATES = "states"  # the folder of a run in which its workspace keeps snapshots


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write under a temporary name in the same folder, sync, rename."""
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if is_full(error):
            raise because(f"cannot write {path}", error) from error
        raise OSError(error.errno, error.strerror, str(path)) from error  # the name that the user knows
    finally:
        temporary.unlink(missing_ok=True)


class EventLog:
    """The log of one run, open for appending by one process at a time.

    Parameters
    ----------
    folder : of the run; made where it is missing.

    Raises
    ------
    TaskError
        The folder cannot be written, or another process writes to it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._broken: Exception | None = None
        try:
            (self.folder / BLOBS).mkdir(parents=True, exist_ok=True)
            path = self.folder / EVENTS
            self._file = path.open("ab", buffering=0)
            _lock(self._file.fileno(), self.folder)
            self._lines = _whole(self._file, path)
        except OSError as error:
            raise because(f"cannot write the run to {self.folder}", error, TaskError) from error

    def __call__(self, event: dict[str, Any]) -> None:
        """Append one event; it is on the disk when this returns. After one that could not be written none is."""
        if self._broken is not None:
            raise self._broken
        try:
            line = {"n": self._lines + 1, **self._without_texts(event)}
            rest = memoryview(f"{json.dumps(line, ensure_ascii=True)}\n".encode())
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
            self._lines += 1
        except OSError as error:  # nothing may follow what was torn off
            full, path = is_full(error), self.folder / EVENTS
            self._broken = (
                because(f"cannot write {path}", error) if full else OSError(error.errno, error.strerror, str(path))
            )
            raise self._broken from error

    def clear(self) -> None:
        """Drop all events."""
        self._file.truncate(0)
        self._lines = 0

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _without_texts(self, value: Any) -> Any:
        if isinstance(value, str) and len(value) > INLINE:
            return {"blob": self._keep(value)}
        if isinstance(value, dict):
            return {key: self._without_texts(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._without_texts(item) for item in value]
        return value

    def _keep(self, text: str) -> str:
        data = text.encode("utf-8", "surrogatepass")
        name = hashlib.sha256(data).hexdigest()
        path = self.folder / BLOBS / name
        if not path.exists():
            temporary = path.with_name(f".{name}.{os.getpid()}.tmp")
            try:
                temporary.write_bytes(data)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        return name


def read_events(folder: str | Path) -> Iterator[dict[str, Any]]:
    """Events of a run, texts put back in.

    Raises
    ------
    TreeFormatError
        No log, a damaged line (its number is named), or a text that is missing.
    """
    folder = Path(folder)
    try:
        lines = (folder / EVENTS).read_bytes().split(b"\n")
    except OSError as error:
        raise TreeFormatError(f"{folder} holds no run: {error.strerror}") from error
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline was torn off
        where = f"{folder / EVENTS}, line {number}"
        try:
            event = _with_texts(json.loads(line), folder)
        except ValueError as error:
            raise TreeFormatError(f"{where}: damaged ({error})") from error
        if not isinstance(event, dict) or event.pop("n", number) != number:
            raise TreeFormatError(f"{where}: this is not event {number} of the run: lines before it are missing")
        yield event


def _with_texts(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"blob"}:
            try:
                return (folder / BLOBS / str(value["blob"])).read_bytes().decode("utf-8", "surrogatepass")
            except OSError as error:
                raise TreeFormatError(f"the text {value['blob']} is missing in {folder / BLOBS}") from error
        return {key: _with_texts(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_texts(item, folder) for item in value]
    return value


def _lock(file: int, folder: Path) -> None:
    """Keep others from writing until the file is closed, by whatever end of the process."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise TaskError(f"another process works in {folder}: wait until it has ended, or end it") from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):  # some network file systems have no locks
            raise


def _whole(file: FileIO, path: Path) -> int:
    """Take off what follows the last newline; how many lines are left."""
    data = path.read_bytes()
    file.truncate(data.rfind(b"\n") + 1)
    return data.count(b"\n")
