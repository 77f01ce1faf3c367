"""A workspace that can be changed, remembered and put back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import NamedTuple, Self

from ..errors import EnvError, because


class ExecResult(NamedTuple):
    """What a command did; output is stdout and stderr together, head and tail kept where it was long."""

    returncode: int
    output: str
    timed_out: bool = False
    truncated: bool = False
    wall_s: float = 0.0


def check_limits(timeout: float, memory_mb: int, max_procs: int, max_file_mb: int, output_chars: int) -> None:
    """EnvError if a workspace is asked for with a limit that lets nothing run."""
    if timeout <= 0 or min(memory_mb, max_procs, max_file_mb, output_chars) < 1:
        raise EnvError("timeout, memory_mb, max_procs, max_file_mb and output_chars have to be positive")


class Environment(ABC):
    """Files and a shell, closed to everything else.

    Attributes
    ----------
    cheap_snapshots : whether a snapshot after every action costs next to nothing; else they are taken at branch points
        and the actions between are run again.
    source_hash : state of the folder that the workspace is a copy of, as the folder is now; "" where there is none.
    """

    cheap_snapshots: bool = True
    source_hash: str = ""

    @abstractmethod
    def exec(self, cmd: str | list[str], timeout: float | None = None, stdin: bytes | None = None) -> ExecResult:
        """Run a command in the workspace; a str goes through a shell."""

    @abstractmethod
    def read_file(self, path: str) -> bytes:
        """Bytes of a file below the workspace; EnvError if there is none or the path leads outside."""

    @abstractmethod
    def write_file(self, path: str, data: bytes) -> None:
        """Write a file below the workspace, folders included."""

    @abstractmethod
    def remove_file(self, path: str) -> None:
        """Delete a file below the workspace."""

    @abstractmethod
    def list_files(self) -> list[str]:
        """Paths of all files, sorted, relative to the workspace."""

    @abstractmethod
    def snapshot(self) -> str:
        """Remember the state; the same state has the same id."""

    @abstractmethod
    def restore(self, snapshot_id: str) -> None:
        """Put a remembered state back."""

    @abstractmethod
    def knows(self, snapshot_id: str) -> bool:
        """Whether a state is remembered: those of a process that has ended may be lost."""

    @abstractmethod
    def diff(self) -> str:
        """Unified diff from the state in which the workspace was made."""

    def apply(self, patch: str) -> None:
        """Change the files as a unified diff says, all of it or nothing; EnvError if it does not fit."""
        if not patch:
            return
        done = self.exec(["git", "apply", "--whitespace=nowarn", "-"], stdin=patch.encode("utf-8", "surrogateescape"))
        if done.returncode:
            raise because("the patch does not apply", " ".join(done.output.split()))

    @abstractmethod
    def state_hash(self) -> str:
        """Of all files, their modes and links: equal for equal trees."""

    def clone(self) -> Environment:
        """A second workspace with the same remembered states, for another worker."""
        raise NotImplementedError(f"a {type(self).__name__} cannot be cloned: use workers=1")

    def close(self) -> None:  # noqa: B027 - not every workspace holds something
        """Let go of processes and folders."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
