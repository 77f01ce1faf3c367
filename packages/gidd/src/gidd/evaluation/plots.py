"""The pictures beside results.json; none is drawn where matplotlib is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

COLOURS = {0.0: "#888888", 0.1: "#3b7dd8", 0.2: "#d95f02"}
MARKERS = {"linear": "o", "power:3": "s"}

# (p_u, grid) -> steps -> values, one per sequence
Curves = Mapping[tuple[float, str], Mapping[int, NDArray[np.float64]]]


def label(p_u: float, grid: str) -> str:
    """How a curve is called in a legend."""
    return "mask-only" if p_u == 0 else f"p$_u$ = {p_u:g}, {grid} grid"


def draw_latin(sampled: Curves, corrected: Curves, path: Path) -> bool:
    """Conflicts and valid squares over sampling steps, as sampled (dotted) and after correction."""
    plt = _pyplot()
    if plt is None:
        return False
    figure, axes = plt.subplots(1, 2, figsize=(11.5, 4), layout="constrained")
    for axis, title, value in (
        (axes[0], "conflicts per square", np.mean),
        (axes[1], "share of valid squares", lambda found: float((found == 0).mean())),
    ):
        for curves, style, when in ((sampled, ":", "sampled"), (corrected, "-", "then corrected")):
            _curves(axis, curves, value, style, when)
        axis.set_title(title, fontsize=10)
        axis.set_ylim(bottom=0)
    axes[1].legend(fontsize=7, frameon=False, bbox_to_anchor=(1.02, 1), loc="upper left")
    return _save(plt, figure, path)


def draw_text(sampled: Curves, corrected: Curves, held_out: float, path: Path) -> bool:
    """Judged nats per character over sampling steps, as sampled (dotted) and after correction."""
    plt = _pyplot()
    if plt is None:
        return False
    figure, axis = plt.subplots(figsize=(6.5, 4), layout="constrained")
    for curves, style, when in ((sampled, ":", "sampled"), (corrected, "-", "then corrected")):
        _curves(axis, curves, np.mean, style, when)
    axis.axhline(held_out, color="black", lw=0.8)
    axis.annotate(
        "held-out text", (1, held_out), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7
    )
    axis.set_ylabel("nats per character, n-gram judge")
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=7, frameon=False, bbox_to_anchor=(1.02, 1), loc="upper left")
    return _save(plt, figure, path)


def draw_correction(panels: Mapping[str, tuple[Sequence[int], NDArray[np.int64]]], alphabet: str, path: Path) -> bool:
    """One text of each model, corrected step by step; what differs from the sample is coloured.

    panels : title -> (step of every row, (rows, L) ids); the first row is the sample.
    """
    plt = _pyplot()
    if plt is None:
        return False
    length = max(states.shape[1] for _, states in panels.values())
    rows = sum(len(steps) + 1.5 for steps, _ in panels.values())
    figure = plt.figure(figsize=(0.115 * length + 1.4, 0.21 * rows + 0.2))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_xlim(-8, length + 1)
    axis.set_ylim(rows, -0.5)
    axis.axis("off")
    y = 0.3
    style = {"family": "monospace", "size": 8, "va": "center"}
    for title, (steps, states) in panels.items():
        axis.text(-7, y, title, size=9, weight="bold", va="center")
        for step, state in zip(steps, states, strict=True):
            y += 1
            axis.text(-1.5, y, f"{step}", ha="right", color="#888888", **style)
            for i, token in enumerate(state):
                shown = alphabet[token] if token < len(alphabet) else "?"
                changed = token != states[0][i]
                if changed:
                    axis.add_patch(plt.Rectangle((i - 0.5, y - 0.5), 1, 1, color="#fbd9bd", lw=0))
                axis.text(i, y, shown, ha="center", color="#a63d00" if changed else "black", **style)
        y += 1.5
    return _save(plt, figure, path)


def _curves(axis: Any, curves: Curves, value: Any, style: str, when: str) -> None:
    from matplotlib.ticker import ScalarFormatter

    for (p_u, grid), found in curves.items():
        steps = sorted(found)
        axis.plot(
            steps,
            [value(found[s]) for s in steps],
            style,
            marker=MARKERS.get(grid, "^"),
            color=COLOURS.get(p_u, "#1b9e77"),
            label=f"{label(p_u, grid)}, {when}",
            ms=4,
            lw=1.5,
        )
    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted({float(x) for line in axis.get_lines() for x in line.get_xdata()}))
    axis.minorticks_off()
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.set_xlabel("sampling steps")
    axis.spines[["top", "right"]].set_visible(False)


def _pyplot() -> Any:
    try:
        import matplotlib
    except ModuleNotFoundError:
        return None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _save(plt: Any, figure: Any, path: Path) -> bool:
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True
