"""What a generic fit is given: supports of the variables, and expectations of functions of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import CMaxEntError
from .factors import Array, Values, label_codes


@dataclass(frozen=True)
class Support:
    """What values a variable can take: use ``discrete``, ``interval`` or ``real``."""

    kind: Literal["discrete", "interval", "real"]
    values: tuple[Hashable, ...] = ()
    low: float = -np.inf
    high: float = np.inf

    @classmethod
    def discrete(cls, values: Sequence[Hashable]) -> Support:
        """Finitely many distinct values (numbers or labels), with counting measure."""
        values = tuple(x.item() if isinstance(x, np.generic) else x for x in values)
        if not values or len(set(values)) < len(values):
            raise CMaxEntError(f"a discrete support needs distinct values; got {values!r}")
        return cls("discrete", values)

    @classmethod
    def interval(cls, a: float, b: float) -> Support:
        """[a, b] with Lebesgue measure."""
        if not (np.isfinite(a) and np.isfinite(b) and a < b):
            raise CMaxEntError(f"an interval needs finite ends a < b; got [{a}, {b}]")
        return cls("interval", low=float(a), high=float(b))

    @classmethod
    def real(cls) -> Support:
        """The real line with Lebesgue measure; the constraints have to bound the entropy."""
        return cls("real")

    def contains(self, x: NDArray[Any]) -> NDArray[np.bool_]:
        """(n,) whether each entry is in the support."""
        if self.kind == "discrete":
            return label_codes(self.values, x) >= 0
        return (x >= self.low) & (x <= self.high) & np.isfinite(x)


@dataclass(frozen=True)
class Constraint:
    """E fn(x_scope) = value.

    Parameters
    ----------
    fn : called with one (n,) array for each variable of the scope, in that order; returns (n,) numbers.
    scope : names of the variables.
    value : the moment, in the units of fn.
    name : for messages and ``multipliers_``; made up from the scope by default.
    se : standard error of ``value``, used with ``slack="se"``.
    do : intervened variables and their values: the moment was measured under do(...), spec 2.13.
    """

    fn: Callable[..., ArrayLike]
    scope: tuple[str, ...]
    value: float
    name: str | None = None
    se: float | None = None
    do: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        scope = (self.scope,) if isinstance(self.scope, str) else tuple(self.scope)
        object.__setattr__(self, "scope", scope)
        if not scope or len(set(scope)) < len(scope):
            raise CMaxEntError(f"the scope of a constraint has to name distinct variables; got {scope}")
        if not np.isfinite(self.value):
            raise CMaxEntError(f"the value of constraint {self.name or scope} is {self.value}; it has to be finite")
        if self.se is not None and not (np.isfinite(self.se) and self.se >= 0):
            raise CMaxEntError(f"the standard error of constraint {self.name or scope} is {self.se}")

    def evaluate(self, values: Values) -> Array:
        """(n,) fn at equally long columns."""
        columns = [np.asarray(values[v]) for v in self.scope]
        out = np.asarray(self.fn(*columns), float)
        if out.shape not in ((), columns[0].shape):
            raise CMaxEntError(
                f"the function of constraint {self.name} returned shape {out.shape} for columns of {columns[0].shape}"
            )
        return np.broadcast_to(out, columns[0].shape)
