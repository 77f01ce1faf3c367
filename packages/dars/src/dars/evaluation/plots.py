"""The pictures beside results.json; none is drawn where matplotlib is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

COLOURS = {"git": "#3b7dd8", "replay": "#d95f02", "copy": "#888888", "overlay": "#1b9e77"}
MODES = {"blockwise": "#3b7dd8", "last_n": "#d95f02", "full": "#888888"}

STRATEGIES = {
    "dars": "#3b7dd8", "restart": "#d95f02", "linear": "#888888", "mcts": "#1b9e77", "random_branch": "#7570b3",
}  # fmt: skip


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


def draw_resolved(calls: NDArray[Any], curves: Mapping[str, NDArray[np.float64]], path: Path) -> bool:
    """Share of tasks resolved over the calls spent; curves: strategy -> (3, calls) mean, low, high."""
    plt = _pyplot()
    if plt is None:
        return False
    figure, axis = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    for name, (mean, low, high) in curves.items():
        axis.plot(calls, mean, color=STRATEGIES[name], label=name, lw=1.8)
        axis.fill_between(calls, low, high, color=STRATEGIES[name], alpha=0.12, lw=0)
    axis.set_xlabel("calls of the model")
    axis.set_ylabel("share resolved (95 %, tasks resampled)")
    axis.set_ylim(0, None)
    axis.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    axis.spines[["top", "right"]].set_visible(False)
    return _save(plt, figure, path)


def draw_sensitivity(cells: Mapping[tuple[float, float], tuple[float, float, float]], path: Path) -> bool:
    """DARS less restarts over rho, a line for each eps; cells: (rho, eps) -> mean, low, high."""
    plt = _pyplot()
    if plt is None:
        return False
    figure, axis = plt.subplots(figsize=(6.5, 4), layout="constrained")
    values = sorted({eps for _, eps in cells})
    for i, eps in enumerate(values):
        rhos = sorted(rho for rho, e in cells if e == eps)
        mean, low, high = (np.array([cells[rho, eps][k] for rho in rhos]) for k in range(3))
        at = np.array(rhos) + 0.012 * (i - (len(values) - 1) / 2)
        axis.errorbar(at, mean, [mean - low, high - mean], fmt="o-", ms=4, lw=1.4, capsize=2, label=f"eps = {eps:g}")
    axis.axhline(0, color="black", lw=0.8)
    axis.set_xlabel("rho: how often the model builds on an edit that failed")
    axis.set_ylabel("share resolved, DARS − restarts")
    axis.legend(fontsize=8, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return _save(plt, figure, path)


def draw_reviewers(shares: Mapping[str, tuple[float, float, float]], n: int, path: Path) -> bool:
    """How often each reviewer puts a resolving candidate first; shares: name -> mean, low, high."""
    return _bars(shares, f"first candidate resolves, of {n} mixed cases", path)


def draw_ablations(gaps: Mapping[str, tuple[float, float, float]], path: Path) -> bool:
    """What is lost without each part; gaps: part -> mean, low, high of the whole less the rest."""
    return _bars(gaps, "share resolved, whole − without", path)


def _bars(values: Mapping[str, tuple[float, float, float]], label: str, path: Path) -> bool:
    plt = _pyplot()
    if plt is None:
        return False
    figure, axis = plt.subplots(figsize=(6.5, 0.45 * len(values) + 1.2), layout="constrained")
    mean, low, high = np.array(list(values.values())).T
    axis.barh(
        list(values), mean, xerr=[mean - low, high - mean], color="#3b7dd8", ecolor="#333333", capsize=3, height=0.6
    )
    axis.axvline(0, color="black", lw=0.8)
    axis.invert_yaxis()
    axis.set_xlabel(f"{label} (95 %)")
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
