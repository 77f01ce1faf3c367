"""Where the marks of the report's plots lie, in percent of the plot's width, so that a plot stretches to any screen
while its text keeps its size. The templates draw them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.words import number

LEFT, RIGHT = 4.0, 96.0
LOG_FROM = 30.0  # positive figures whose largest is this many times the smallest are drawn on a log axis
SMALLEST_RATIO_AXIS = 2.0


@dataclass(frozen=True)
class Axis:
    """A range of values, linear or logarithmic."""

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """The place of a value, in percent of the width."""
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return round(LEFT + (RIGHT - LEFT) * (value - low) / (high - low), 2)


@dataclass(frozen=True)
class Mark:
    """A place on the axis with its label, and the side of the place that the label goes to."""

    x: float
    label: str
    anchor: str = "middle"


@dataclass(frozen=True)
class Interval:
    """A claim's plot: the figure and its interval, the threshold, and the side on which the claim holds."""

    value: float
    low: float | None
    high: float | None
    threshold: Mark
    good: tuple[float, float] | None
    paper: float | None
    ticks: Sequence[Mark]
    log: bool


@dataclass(frozen=True)
class Ratio:
    """A comparison's bar from 1× to its gain, and the thin line of its uncertainty where spreads are given."""

    start: float
    width: float
    one: float


def interval(claim: Mapping[str, Any]) -> Interval | None:
    """The plot of a claim; None where nothing was measured."""
    if claim["measured"] is None:
        return None
    threshold, ci, paper = claim["test"]["value"], claim.get("ci"), claim.get("paper_value")
    values = [float(v) for v in (claim["measured"], threshold, *(ci or ()), paper) if v is not None]
    if max(map(abs, values)) > 1e300:
        return None  # the axis' own arithmetic would overflow; the figures are printed beside
    axis = _axis(values)
    op, at = claim["test"]["op"], axis.at(threshold)
    good = (at, 100.0) if op in (">", ">=") else (0.0, at) if op in ("<", "<=") else None
    low, high = (axis.at(ci[0]), axis.at(ci[1])) if ci else (None, None)
    sign = {">=": "≥", "<=": "≤", "==": "=", "!=": "≠"}.get(op, op)
    return Interval(
        value=axis.at(claim["measured"]),
        low=low,
        high=high,
        threshold=Mark(at, f"{sign} {number(threshold)}", _anchor(at)),
        good=good,
        paper=None if paper is None else axis.at(paper),
        ticks=_spaced([Mark(axis.at(t), number(t), _anchor(axis.at(t))) for t in _ticks(axis)]),
        log=axis.log,
    )


def ratios(gains: Sequence[float | None]) -> tuple[list[Ratio | None], list[Mark]]:
    """Bars on one log axis with 1× in the middle, better to the right, and the axis' ticks."""
    widest = max([SMALLEST_RATIO_AXIS, *(max(g, 1 / g) for g in gains if g)]) * 1.1
    axis = Axis(1 / widest, widest, log=True)
    one = axis.at(1)
    bars = [g and Ratio(min(one, axis.at(g)), round(abs(axis.at(g) - one), 2), one) for g in gains]
    steps = [f for f in (2, 5, 10, 100, 1000, 10**4, 10**6) if f <= widest][-2:]
    marks = [Mark(axis.at(1 / f), f"{f}× worse") for f in reversed(steps)]
    marks += [Mark(one, "1×")] + [Mark(axis.at(f), f"{f}× better") for f in steps]
    return [bar or None for bar in bars], [Mark(m.x, m.label, _anchor(m.x)) for m in _spaced(marks, keep=one, gap=22)]


def _axis(values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    if low > 1e-100 and LOG_FROM <= high / low < 1e100:
        pad = (high / low) ** 0.08
        return Axis(low / pad, high * pad, log=True)
    pad = 0.08 * (high - low) or 0.1 * abs(high)
    pad = pad if pad > 1e-290 else 1.0
    return Axis(low - pad, high + pad)


def _ticks(axis: Axis) -> list[float]:
    if axis.log:
        first, last = math.ceil(math.log10(axis.low)), math.floor(math.log10(axis.high))
        decades = [10.0**k for k in range(first, last + 1, max(1, math.ceil((last - first + 1) / 5)))]
        fine = [m * 10.0**k for k in range(first - 1, last + 1) for m in (1, 2, 5)]
        return decades if len(decades) > 2 else [tick for tick in fine if axis.low <= tick <= axis.high]
    rough = (axis.high - axis.low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step: float = next((m * power for m in (1, 2, 5) if m * power >= rough), 10 * power)
    count = math.floor(axis.high / step) - math.ceil(axis.low / step) + 1
    return [(math.ceil(axis.low / step) + k) * step for k in range(min(count, 9))]


def _anchor(x: float) -> str:
    return "start" if x < 12 else "end" if x > 88 else "middle"


def _spaced(marks: Sequence[Mark], keep: float | None = None, gap: float = 14) -> list[Mark]:
    """Leave out ticks whose labels would touch the one before, or the one at `keep`."""
    kept: list[Mark] = []
    for mark in marks:
        near = keep is not None and mark.x != keep and abs(mark.x - keep) < gap
        if not near and (not kept or mark.x - kept[-1].x >= gap):
            kept.append(mark)
    return kept
