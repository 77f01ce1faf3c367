"""Picture of a report: how much of each source may be in the others, and why."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from .report import IdentifiabilityReport

_INK, _SAMPLING, _ALL, _WEAK = "#333333", "#2f6690", "#9ec1d9", "#b23a48"
_MOST = 14  # intervals that can be read
_SHOWN = 10  # sources up to which cells carry numbers


def save_leakage_plot(report: IdentifiabilityReport, path: str | os.PathLike[str], eta: float | None = None) -> None:
    """Write a PNG: the matrix of leakages that cannot be excluded, their widest intervals, and the margins.

    ``eta`` : size of the perturbation that intervals have room for; None takes that of the report, 0 if it has none.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    used = report.eta if eta is None else eta
    used = float(used) if np.isfinite(used) else 0.0
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    matrix, intervals, margins = figure.subplots(1, 3, width_ratios=(1.15, 1.15, 0.8))
    half = 1.96 * report.total_error(used)
    _matrix(matrix, half, used)
    _intervals(intervals, 1.96 * report.stderr, half)
    _margins(margins, report)
    figure.savefig(path, format="png", dpi=130)


def _matrix(axes: Any, half: Any, eta: float) -> None:
    k = len(half)
    off = np.where(np.eye(k, dtype=bool), np.nan, half)
    # The whole of a source is 1, whatever the report: the same colour means the same in two pictures.
    image = axes.imshow(off, cmap="Blues", vmin=0, vmax=1)
    if k <= _SHOWN:
        for i, j in np.argwhere(~np.eye(k, dtype=bool)):
            text = f"{off[i, j]:.2g}" if np.isfinite(off[i, j]) else "∞"
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if off[i, j] > 0.6 else _INK)
        axes.set(xticks=range(k), yticks=range(k))
    else:
        axes.figure.colorbar(image, ax=axes, shrink=0.85)
    axes.set(xlabel="source", ylabel="estimate", title=f"Leakage not excluded, η = {eta:.3g}")


def _intervals(axes: Any, sampling: Any, half: Any) -> None:
    k = len(half)
    axes.set(title="Widest 95 % intervals", xlabel="leakage per unit of source")
    i, j = np.nonzero(~np.eye(k, dtype=bool) & np.isfinite(half))
    if not len(i):
        axes.text(0.5, 0.5, "a single source: nothing leaks", ha="center", transform=axes.transAxes, color=_INK)
        axes.set(yticks=[])
        return
    order = np.argsort(-half[i, j], kind="stable")[:_MOST]
    i, j, y = i[order], j[order], np.arange(len(order))
    axes.hlines(y, -half[i, j], half[i, j], color=_ALL, lw=6, label="sampling and perturbation")
    axes.hlines(y, -sampling[i, j], sampling[i, j], color=_SAMPLING, lw=2.5, label="sampling alone")
    axes.axvline(0, color=_INK, lw=0.8)
    axes.set(yticks=y, yticklabels=[f"{b} in {a}" for a, b in zip(i, j, strict=True)], ylim=(len(y) - 0.3, -0.7))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), fontsize=8, frameon=False, ncols=2)


def _margins(axes: Any, report: IdentifiabilityReport) -> None:
    z, y = np.abs(report.z), np.arange(len(report.z))
    finite = np.where(np.isfinite(z), z, 1e3)
    axes.barh(y, finite, color=np.where(report.identified, _SAMPLING, _WEAK), height=0.6)
    axes.axvline(3, color=_INK, lw=0.8, ls="--")
    axes.set(
        xscale="log", xlim=(min(1.0, 0.8 * float(finite.min())), 1.3 * max(float(finite.max()), 10.0)),
        ylim=(len(y) - 0.5, -0.5), title="Told from Gaussian?", xlabel="|α| in standard errors, needed: 3",
        ylabel="source",
    )  # fmt: skip
    if len(y) <= 2 * _SHOWN:
        axes.set(yticks=y)
