"""The pictures beside results.json; none is drawn where matplotlib is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

COLOURS = {"git": "#3b7dd8", "replay": "#d95f02", "copy": "#888888", "overlay": "#1b9e77"}
MODES = {"blockwise": "#3b7dd8", "last_n": "#d95f02", "full": "#888888"}


def draw_break_even(grid: NDArray[np.float64], maps: Mapping[str, NDArray[np.float64]], path: Path) -> bool:
    """Success of trees less that of restarts over p (across) and q (up), one panel for each title of ``maps``."""
    plt = _pyplot()
    if plt is None:
        return False
    figure, axes = plt.subplots(1, len(maps), figsize=(4.8 * len(maps) + 0.8, 4.3), layout="constrained", sharey=True)
    most = max(float(np.abs(values).max()) for values in maps.values())
    for axis, (title, values) in zip(np.atleast_1d(axes), maps.items(), strict=True):
        image = axis.pcolormesh(grid, grid, values, cmap="RdBu", vmin=-most, vmax=most, shading="nearest")
        axis.contour(grid, grid, values, levels=[0.0], colors="black", linewidths=1.2)
        axis.plot([0, 1], [0, 1], ":", color="black", lw=1)
        axis.annotate("q = p", (0.9, 0.9), xytext=(-4, 6), textcoords="offset points", fontsize=8, ha="right")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("p, a first choice is good")
        axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    np.atleast_1d(axes)[0].set_ylabel("q, an alternative is good")
    figure.colorbar(image, ax=axes, label="P(resolved), tree − restarts (black: equal)")
    return _save(plt, figure, path)


def draw_restore(depths: Sequence[int], times: Mapping[str, NDArray[np.float64]], path: Path) -> bool:
    """Milliseconds to restore over the depth of the state; times: backend -> (rounds, depths)."""
    plt = _pyplot()
    if plt is None:
        return False
    figure, axis = plt.subplots(figsize=(6.5, 4), layout="constrained")
    for name, values in times.items():
        middle, low, high = (np.quantile(values, at, axis=0) for at in (0.5, 0.25, 0.75))
        axis.plot(depths, middle, "o-", color=COLOURS[name], label=name, ms=4, lw=1.5)
        axis.fill_between(depths, low, high, color=COLOURS[name], alpha=0.2, lw=0)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(depths, [str(depth) for depth in depths])
    axis.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    axis.set_xlabel("depth of the state, actions from the root")
    axis.set_ylabel("restore, ms (median and quartiles)")
    axis.spines[["top", "right"]].set_visible(False)
    return _save(plt, figure, path)


def draw_ledger(
    kinds: Sequence[str], dollars: Mapping[str, Sequence[float]], lengths: Mapping[str, Sequence[int]], path: Path
) -> bool:
    """Left: US$ of one tree by kind of token, for each history; right: tokens of every request in order, read or not.

    lengths : history -> input tokens of each action that were paid in full or written to the cache, in order.
    """
    plt = _pyplot()
    if plt is None:
        return False
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    shades = ["#3f007d", "#9e9ac8", "#6a51a3", "#dadaeb", "#41ab5d"]
    bottom = np.zeros(len(dollars))
    for i, kind in enumerate(kinds):
        height = np.array([values[i] for values in dollars.values()])
        left.bar(list(dollars), height, bottom=bottom, color=shades[i % len(shades)], label=kind, width=0.6)
        bottom += height
    left.set_ylabel("US$ for the tree")
    left.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    for name, values in lengths.items():
        right.plot(np.cumsum(values) / 1000, color=MODES[name], label=name, lw=1.5)
    right.set_xlabel("action, in the order of the search")
    right.set_ylabel("thousand input tokens not from the cache")
    right.legend(fontsize=8, frameon=False)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    return _save(plt, figure, path)


def draw_training(losses: NDArray[np.float64], guessing: float, path: Path) -> bool:
    """Loss of each step, and its mean over the steps around it."""
    plt = _pyplot()
    if plt is None:
        return False
    figure, axis = plt.subplots(figsize=(6.5, 4), layout="constrained")
    around = max(1, len(losses) // 50)
    axis.plot(losses, color="#3b7dd8", alpha=0.25, lw=0.8)
    middle = np.convolve(losses, np.full(around, 1 / around), mode="valid")
    axis.plot(np.arange(len(middle)) + (around - 1) / 2, middle, color="#3b7dd8", lw=1.8)
    axis.axhline(guessing, ls=":", color="black", lw=1)
    axis.annotate("guessing", (0, guessing), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("step of the training")
    axis.set_ylabel("pairwise logistic loss, nats")
    axis.spines[["top", "right"]].set_visible(False)
    return _save(plt, figure, path)


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
