"""What can go wrong, as one family: the message says what, where and what would be right."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .agent import RunResult


class DarsError(Exception):
    """Base of all errors of this package that a user can mend."""


class TaskError(DarsError):
    """The repository, the issue or a setting is missing or malformed."""


class EnvError(DarsError):
    """The workspace could not be made, changed or restored."""


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
