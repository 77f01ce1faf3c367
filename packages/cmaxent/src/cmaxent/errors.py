"""Every failure of the package, one class per cause.

All derive from ``CMaxEntError`` (a ``ValueError``), so one ``except`` catches what is wrong with the
*input*; programming errors stay ordinary exceptions. Messages name the variables and the numbers.
"""

from __future__ import annotations

from typing import Any


class CMaxEntError(ValueError):
    """Base class: the input cannot be used as given."""


class InfeasibleMomentsError(CMaxEntError):
    """No distribution of the declared causal form has the given moments.

    ``report`` is the FeasibilityReport where one was made.
    """

    report: Any = None


class InconsistentMomentsError(CMaxEntError):
    """Two given moments contradict each other, or contradict the declared graph."""


class UnboundedEntropyError(CMaxEntError):
    """The given moments leave the entropy unbounded (e.g. a continuous variable without variance)."""


class NonlocalConstraintError(CMaxEntError):
    """A moment spans variables that share no mechanism of the declared graph."""


class GraphError(CMaxEntError):
    """The declared graph is not a chain of blocks, or names an unknown variable."""


class StateSpaceTooLargeError(CMaxEntError):
    """Exact enumeration of the discrete states would exceed the limit."""


class ConvergenceError(CMaxEntError, RuntimeError):
    """A solver stopped before reaching its tolerance."""


class InfeasibleMomentsWarning(UserWarning):
    """The moments were infeasible and have been moved into the feasible region as the caller asked."""


class ExperimentError(RuntimeError):
    """Some experiments of an evaluation raised; the others have finished and are stored."""
