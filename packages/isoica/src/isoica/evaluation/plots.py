"""Figures of the evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

COLORS = ("#1f6f9f", "#d9822b", "#5b8c5a", "#8a5a9e", "#b0413e", "#7a7a7a", "#2a9d8f")


def draw_lines(
    lines: Mapping[str, tuple[Sequence[float], NDArray[np.float64]]],
    path: Path,
    x_label: str,
    y_label: str,
    dashed: str = "",
) -> None:
    """Means of (replications, points) against x, with the range of the replications, on logarithmic axes."""
    figure, axes = _sheet(5.6, 3.8)
    for (name, (x, values)), color in zip(lines.items(), COLORS, strict=False):
        values = np.atleast_2d(values)
        order = np.argsort(x)
        where = np.asarray(x, float)[order]
        style = "--" if name == dashed else "o-"
        axes.plot(where, values.mean(0)[order], style, color=color, label=name, markersize=3.5)
        axes.fill_between(where, values.min(0)[order], values.max(0)[order], color=color, alpha=0.15, linewidth=0)
    axes.set(xscale="log", yscale="log", xlabel=x_label, ylabel=y_label)
    if len(where) <= 6:
        axes.set_xticks(where, [f"{x:,g}" for x in where])
        axes.minorticks_off()
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize="small")
    save(figure, path)


def draw_bars(values: Mapping[str, float], path: Path, x_label: str) -> None:
    """One bar a name, on a logarithmic axis."""
    figure, axes = _sheet(5.6, 0.4 * len(values) + 1)
    names = list(values)
    axes.barh(names[::-1], [values[name] for name in names[::-1]], color=COLORS[0], height=0.6)
    axes.set(xscale="log", xlabel=x_label)
    save(figure, path)


def _sheet(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure: Any, path: Path) -> None:
    """A PNG, written under a temporary name and renamed."""
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png", dpi=150)
    temporary.replace(path)
