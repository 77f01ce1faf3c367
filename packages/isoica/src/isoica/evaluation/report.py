"""What an experiment reports: claims with a test that can fail, metrics, comparisons, artifacts.

The one rule of the results contract lives in :func:`holds`: a claim is tested on the near end of its interval if it
has one, else on the measured value.
"""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student

PAPER = "arXiv:2503.15355"
DERIVED = "derived in this package; the theorems of arXiv:2503.15355 were not at hand"
TARGET = "target that this package set itself"

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
}


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
        if not np.isfinite(numbers).all():
            raise ValueError(f"claim {self.id}: {numbers} are not all finite")

    @property
    def holds(self) -> bool:
        """The verdict, by the one rule."""
        return holds(self.measured, self.ci, self.op, self.value)

    def to_dict(self) -> dict[str, Any]:
        """The claim as results.json has it."""
        return {
            "id": self.id,
            "statement": self.statement,
            "source": self.source,
            "paper": self.paper,
            "measured": float(self.measured),
            "unit": self.unit,
            "ci": None if self.ci is None else [float(self.ci[0]), float(self.ci[1])],
            "n": int(self.n),
            "test": {"op": self.op, "value": float(self.value)},
            "holds": self.holds,
            "note": self.note,
        }


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
    """Everything one experiment found, and how long it took."""

    claims: list[Claim] = field(default_factory=list)
    metrics: list[Metric] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    artifacts: list[Artifact] = field(default_factory=list)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, strict JSON (no NaN)."""
        return {
            "claims": [c.to_dict() for c in self.claims],
            "metrics": [asdict(m) for m in self.metrics if np.isfinite(m.value)],
            "comparisons": [asdict(c) for c in self.comparisons],
            "artifacts": [asdict(a) for a in self.artifacts],
        }


def t_interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Student interval of the mean of independent values; the point itself for one value."""
    x = np.asarray(values, dtype=float)
    if len(x) < 2:
        return float(x.mean()), float(x.mean())
    half = float(student.ppf((1 + level) / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
    return float(x.mean()) - half, float(x.mean()) + half


def factor(log: ArrayLike) -> dict[str, Any]:
    """measured, ci and n of a claim on a geometric mean, from logarithms: one value each seed, say."""
    x = np.asarray(log, dtype=float)
    low, high = np.exp(t_interval(x))
    return {"measured": float(np.exp(x.mean())), "ci": (float(low), float(high)), "n": x.size}


def near(values: ArrayLike, target: float) -> dict[str, Any]:
    """measured, ci, n and unit of a claim that the mean of independent values lies close to a target.

    What is tested is the distance: of the mean, and of the end of its interval that is further away.
    """
    x = np.asarray(values, dtype=float)
    low, high = t_interval(x)
    apart = [abs(low - target), abs(high - target)]
    least = 0.0 if low <= target <= high else min(apart)
    return {
        "measured": abs(float(x.mean()) - target),
        "ci": (least, max(apart)) if x.size > 1 else None,
        "n": x.size,
        "unit": f"distance of the mean, {x.mean():.4g}, from {target:g}",
    }


def write_json(path: Path, value: Any) -> None:
    """Strict JSON, written under a temporary name and renamed: a killed run leaves the old file or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
