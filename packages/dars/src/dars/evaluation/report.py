"""What an experiment reports: claims with a test that can fail, metrics, comparisons, artifacts.

The one rule of the results contract lives in :func:`holds`: a claim is tested on the near end of its interval if it has
one, else on the measured value.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

PAPER = "arXiv:2503.14269"
RELEASED = "data released with arXiv:2503.14269"
DERIVED = "derived in this package from arXiv:2503.14269"
TARGET = "target that this package set itself"

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le, "==": operator.eq,
}  # fmt: skip


def holds(measured: float, ci: Sequence[float] | None, op: str, value: float) -> bool:
    """Whether ``measured op value``, on the near end of a ``ci``: low for > and >=, high for < and <=."""
    if op not in _OPERATORS:
        raise ValueError(f"op {op!r} is not one of {', '.join(_OPERATORS)}")
    tested = measured if ci is None or op == "==" else ci[0] if op in (">", ">=") else ci[1]
    return bool(_OPERATORS[op](tested, value))


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One statement with a test. ``paper`` is what the source reports, ``n`` the sample behind ``measured``."""

    id: str
    statement: str
    source: str = PAPER
    paper: str = ""
    measured: float
    op: str
    value: float
    n: int
    ci: tuple[float, float] | None = None
    unit: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        numbers = [self.measured, self.value, *(self.ci or ())]
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"claim {self.id}: {numbers} are not all finite")

    @property
    def holds(self) -> bool:
        """The verdict, by the one rule."""
        return holds(self.measured, self.ci, self.op, self.value)

    def to_dict(self) -> dict[str, Any]:
        """The claim as results.json has it."""
        return {
            "id": self.id, "statement": self.statement, "source": self.source, "paper": self.paper,
            "measured": float(self.measured), "unit": self.unit,
            "ci": None if self.ci is None else [float(self.ci[0]), float(self.ci[1])], "n": int(self.n),
            "test": {"op": self.op, "value": float(self.value)}, "holds": self.holds, "note": self.note,
        }  # fmt: skip


@dataclass(frozen=True)
class Metric:
    """A measured number without a threshold; ``better`` is "higher" or "lower"."""

    name: str
    value: float
    unit: str
    better: str


@dataclass(frozen=True)
class Comparison:
    """The same quantity of ours and of a peer, measured in the same process on the same input."""

    name: str
    ours: float
    peer: float
    peer_name: str
    unit: str
    better: str


@dataclass(frozen=True)
class Artifact:
    """A file beside results.json; ``path`` is relative to it."""

    path: str
    title: str


@dataclass
class Experiment:
    """Everything one experiment found.

    ``skipped`` says why it was not done, where something it needs is not here; it then claims nothing.
    """

    claims: list[Claim] = field(default_factory=list)
    metrics: list[Metric] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    artifacts: list[Artifact] = field(default_factory=list)
    skipped: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as results.json has them; ``skipped`` goes to its "x-skipped"."""
        return {
            "claims": [claim.to_dict() for claim in self.claims],
            "metrics": [asdict(metric) for metric in self.metrics],
            "comparisons": [asdict(comparison) for comparison in self.comparisons],
            "artifacts": [asdict(artifact) for artifact in self.artifacts],
            "skipped": self.skipped,
        }


# --- intervals --------------------------------------------------------------------------------------------------------


def bootstrap_interval(
    rng: np.random.Generator,
    statistic: Callable[..., float],
    *samples: ArrayLike,
    draws: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap of ``statistic(*samples)``; the rows of all samples are resampled together."""
    arrays = [np.asarray(sample) for sample in samples]
    values = []
    for _ in range(draws):
        rows = rng.integers(len(arrays[0]), size=len(arrays[0]))
        values.append(statistic(*(a[rows] for a in arrays)))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def binomial_interval(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return middle - half, middle + half
