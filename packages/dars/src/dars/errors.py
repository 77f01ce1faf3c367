"""What can go wrong, as one family: the message says what, where and what would be right."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .agent import RunResult


class DarsError(Exception):
    """Base of all errors of this package that a user can mend."""


class TaskError(DarsError):
    """The repository, the issue or a setting is missing or malformed."""


class EnvError(DarsError):
    """The workspace could not be made, changed or restored."""


class DiskFull(DarsError):
    """No space is left for a run, its workspace or its recording.

    Not an EnvError: that ends one path of a search, this all of it.
    """


class SandboxUnavailable(EnvError):
    """No way to close commands in was found, and running them open was not asked for."""


class ModelError(DarsError):
    """The provider refused a request, or its answer cannot be used.

    Attributes
    ----------
    result : what a run that ended with it had found, as a :class:`dars.RunResult`; None elsewhere.
    """

    result: RunResult | None = None


class BudgetExceeded(DarsError):
    """A limit on steps, calls, time or money was reached before any candidate."""


class CassetteMiss(ModelError):
    """A replayed recording has no answer to this request."""


class TreeFormatError(DarsError):
    """A tree or event log is damaged, or of an unknown format."""


class ExperimentError(DarsError):
    """Experiments of an evaluation broke; the others have run."""


def because(said: str, why: OSError | str, kind: type[DarsError] = EnvError) -> DarsError:
    """What to raise where the system or another program failed: DiskFull if no space is left, else of the kind.

    Parameters
    ----------
    said : what could not be done.
    why : the system's error, or the program's words.

    Examples
    --------
    >>> because("cannot write a.py", OSError(28, "No space left on device"))
    DiskFull('cannot write a.py: No space left on device')
    >>> because("cannot write a.py", "Permission denied")
    EnvError('cannot write a.py: Permission denied')
    """
    text = why if isinstance(why, str) else why.strerror or str(why)
    return (DiskFull if is_full(why) else kind)(f"{said}: {text}")


def is_full(why: OSError | str) -> bool:
    """Whether a failure of the system, or what a program says of its own, is a disk or quota without space."""
    if isinstance(why, OSError):
        return why.errno in (errno.ENOSPC, errno.EDQUOT)
    return any(words in why.lower() for words in ("no space left on device", "disk quota exceeded"))
