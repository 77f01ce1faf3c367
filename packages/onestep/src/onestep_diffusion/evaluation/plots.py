"""Figures of the evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data import Dataset
from ..pictures import figure, save_figure
from .students import Run

COLORS = ("#1f6f9f", "#d9822b", "#5b8c5a", "#8a5a9e")


def draw_curves(groups: Mapping[str, Sequence[Run]], floor: float, ode: float, path: Path, label: str) -> None:
    """Means over seeds against updates, a panel a method ("method, strategy" are the names)."""
    methods = list(dict.fromkeys(name.split(", ")[0] for name in groups))
    sheet = figure(4.2 * len(methods) + 1.6, 3.6)
    panels = sheet.subplots(1, len(methods), sharey=True, squeeze=False)[0]
    for axes, method in zip(panels, methods, strict=True):
        mine = {name.split(", ")[1]: group for name, group in groups.items() if name.split(", ")[0] == method}
        for (strategy, group), color in zip(mine.items(), COLORS, strict=False):
            steps = [step for step, _ in group[0].curve]
            values = np.array([[fd for _, fd in run.curve] for run in group])
            axes.plot(steps, np.exp(np.log(values).mean(0)), "o-", color=color, label=strategy, markersize=3)
            axes.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.15, linewidth=0)
        axes.axhline(ode, color="grey", linewidth=0.8, linestyle="--", label="teacher, 35 evaluations")
        axes.axhline(floor, color="grey", linewidth=0.8, label="half of the data")
        axes.set(yscale="log", xlabel="updates of the generator", title=method)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(label)
    panels[-1].legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    save_figure(sheet, path)


def draw_samples(rows: Mapping[str, NDArray[Any]], data: Dataset, path: Path) -> None:
    """A row of images for each name, in the range of the data."""
    low, high = data.shift - data.scale, data.shift + data.scale
    n = len(next(iter(rows.values())))
    sheet = figure(2.8 + 0.55 * n, 0.6 * len(rows))
    panels = sheet.subplots(len(rows), 2, squeeze=False, width_ratios=[2.0, 0.55 * n])
    for (left, axes), (name, images) in zip(panels, rows.items(), strict=True):
        left.axis("off")
        left.text(1, 0.5, name, ha="right", va="center", fontsize=8, transform=left.transAxes)
        strip = np.concatenate([np.pad(np.clip(x, low, high), [(0, 0), (0, 1), (0, 0)], constant_values=high)
                                for x in images], axis=1)  # fmt: skip
        axes.imshow(strip.squeeze(), cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        axes.set_yticks([])
        axes.set_xticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
    save_figure(sheet, path)


def draw_bars(values: Mapping[str, Sequence[float]], path: Path, label: str, line: float | None = None) -> None:
    """A bar with its points for each name, on a log scale."""
    sheet = figure(6.4, 0.32 * len(values) + 1)
    axes = sheet.subplots()
    names = list(values)
    axes.barh(names, [float(np.exp(np.mean(np.log(v)))) for v in values.values()], color=COLORS[0], height=0.6)
    for place, name in enumerate(names):
        axes.plot(values[name], [place] * len(values[name]), ".", color="k", markersize=4)
    if line is not None:
        axes.axvline(line, color="grey", linewidth=0.8)
    axes.set(xscale="log", xlabel=label)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(sheet, path)


def draw_candidates(tables: Mapping[str, Sequence[Mapping[str, float]]], path: Path, label: str) -> None:
    """Distance against the number of candidates a sample."""
    sheet = figure(5, 3.4)
    axes = sheet.subplots()
    for (name, table), color in zip(tables.items(), COLORS, strict=False):
        axes.plot([row["candidates"] for row in table], [row["fd"] / table[0]["fd"] for row in table], "o-",
                  color=color, label=name)  # fmt: skip
    axes.set(xscale="log", xlabel="candidates a sample", ylabel=label)
    axes.set_xticks([row["candidates"] for row in next(iter(tables.values()))])
    axes.set_xticklabels([f"{row['candidates']:g}" for row in next(iter(tables.values()))])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(sheet, path)
