"""What the earlier blocks of a causal order have fixed when the next one is fitted (spec 2.6).

Blocks are fitted in causal order, each with the earlier ones frozen. The :class:`State` holds the moments that were
given, the mechanisms fitted so far and the covariances that these imply.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import directions as dr
from ..errors import UnboundedEntropyError
from ..graph import _listed
from ..law import Law, Table
from ..moments import Moments, _nonredundant, _variable_of

Array = NDArray[np.float64]


@dataclass
class State:
    """What earlier blocks have fixed; indices are positions among the active coordinates."""

    given: Array  # (a, a) known moments, NaN unknown
    mean: Array
    names: list[str]
    variable: list[str]
    kinds: dict[str, str]
    levels: dict[str, tuple[Any, ...]]
    n: Array | None
    cov: Array  # implied covariance, NaN where a coordinate is not placed yet
    done: list[int] = field(default_factory=list)
    discrete_done: list[str] = field(default_factory=list)
    tables: dict[str, Table] = field(default_factory=dict)  # p(v | parents) of v whose ancestors are all discrete
    factors: list[Any] = field(default_factory=list)
    multipliers: dict[str, float] = field(default_factory=dict)
    entropy: float = 0.0
    slack_used: bool = False
    report: dr.FeasibilityReport | None = None

    def coordinates(self, variables: Iterable[str]) -> list[int]:
        wanted = set(variables)
        return [i for i, v in enumerate(self.variable) if v in wanted]

    def holders(self, coordinates: Iterable[int]) -> tuple[str, ...]:
        """The variables of some coordinates."""
        return tuple(dict.fromkeys(self.variable[i] for i in coordinates))

    def ancestry(self, variables: Iterable[str]) -> list[Any]:
        """The factors that the joint law of ``variables`` depends on, in causal order."""
        return [self.factors[i] for i in Law(tuple(self.factors)).ancestry(tuple(variables))]

    def size(self, variable: str) -> int:
        """Number of levels of a discrete variable."""
        return len(self.coordinates([variable])) + 1

    def is_discrete(self, i: int) -> bool:
        return self.kinds[self.variable[i]] != "continuous"


def initial_state(moments: Moments) -> State:
    """Nothing placed yet: the known moments of the coordinates that are not functions of others."""
    index = _nonredundant(moments)
    names = [moments.names[i] for i in index]
    cov = moments.cov[np.ix_(index, index)].copy()
    unknown = np.isnan(cov.diagonal())
    if unknown.any():
        raise UnboundedEntropyError(
            f"the variance of {_listed([names[i] for i in np.flatnonzero(unknown)])} is unknown: the entropy has no "
            "upper bound"
        )
    counts = moments.pair_counts()
    return State(
        cov, moments.mean[index].copy(), names, [_variable_of(n, moments.kinds) for n in names], dict(moments.kinds),
        dict(moments.levels), None if counts is None else counts[np.ix_(index, index)], np.full_like(cov, np.nan),
    )  # fmt: skip
