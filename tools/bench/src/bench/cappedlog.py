"""A child's output on disk, bounded: the first and the last few MiB are kept and the file says how much is missing."""

from pathlib import Path
from types import TracebackType
from typing import Self

HEAD_BYTES = 4 * 2**20
TAIL_BYTES = 4 * 2**20


class CappedLog:
    """Writes the head at once, so that it can be followed; holds the tail in memory until the log is closed."""

    def __init__(self, path: Path, head: int = HEAD_BYTES, tail: int = TAIL_BYTES) -> None:
        self.file = path.open("wb", buffering=0)
        self.head, self.tail = head, tail
        self.total = 0
        self.kept = bytearray()
        self.error = ""

    def write(self, data: bytes) -> None:
        room = max(0, self.head - self.total)
        self.total += len(data)
        if room:
            self._put(data[:room])
        if len(data) > room:
            self.kept += data[room:]
            if len(self.kept) > 2 * self.tail:  # trimmed rarely, so that the cost per byte stays constant
                del self.kept[: -self.tail]

    @property
    def dropped(self) -> int:
        return max(0, self.total - self.head - self.tail)

    def _put(self, data: bytes) -> None:
        # A full disk must not stop the child: its output is then lost, and the record says so.
        try:
            self.file.write(data)
        except OSError as error:
            self.error = str(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.dropped:
            self._put(f"\n[… {self.dropped} bytes dropped here …]\n".encode())
        self._put(bytes(self.kept[-self.tail :]))
        self.file.close()


def read_tail(path: Path, size: int = 16 * 1024) -> str:
    """The end of a log as text, cut at a line's start."""
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, 2) - size)
            file.seek(start)
            text = file.read(size).decode("utf-8", errors="replace")
    except OSError:
        return ""
    return text.partition("\n")[2] or text if start else text
