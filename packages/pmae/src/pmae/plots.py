"""Figures: spectra, components, samplers, redundancy, masked and reconstructed images, bands during training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from .files import written
from .inspection import Draws

SHOWN = 40  # components whose inclusion is drawn one by one


def scree(shares: np.ndarray, path: Path) -> None:
    """Shares of the variance in descending order, and their sums."""
    shares = np.sort(np.asarray(shares))[::-1]
    figure, (left, right) = _axes(1, 2, (9, 3.4))
    number = np.arange(1, len(shares) + 1)
    positive = shares > 0
    left.loglog(number[positive], shares[positive], color="C0")
    left.set(xlabel="component", ylabel="share of the variance", title="scree")
    right.semilogx(number, np.cumsum(shares), color="C1")
    right.set(xlabel="components", ylabel="share held together", title="cumulative", ylim=(0, 1.02))
    for axis in (left, right):
        axis.grid(alpha=0.3)
    _write(figure, path)


def component_images(top: Tensor, bottom: Tensor, path: Path) -> None:
    """Images of the components with the largest and the smallest variances."""
    n = len(top)
    figure, axes = _axes(2, n, (1.1 * n + 1, 2.6))
    for row, (images, name) in enumerate(((top, "largest"), (bottom, "smallest"))):
        for column, image in enumerate(images):
            size = float(image.abs().max()) or 1.0
            _image(axes[row][column], 0.5 + image / (2 * size))
        _name(axes[row][0], name)
    _write(figure, path)


def realised_shares(found: Sequence[Draws], path: Path) -> None:
    """Histograms of the hidden share of the variance: a row for each rule, a column for each ratio."""
    rules, ratios = _unique(d.rule for d in found), _unique(d.ratio for d in found)
    figure, axes = _axes(len(rules), len(ratios), (2.6 * len(ratios), 1.35 * len(rules) + 0.6))
    of = {(d.rule, d.ratio): d for d in found}
    widest = {r: min(1.0, max(2.5 * r, *(d.shares.max() for d in found if d.ratio == r))) for r in ratios}
    for row, rule in enumerate(rules):
        for column, ratio in enumerate(ratios):
            axis, drawn = axes[row][column], of.get((rule, ratio))
            if drawn is not None:
                axis.stairs(*np.histogram(drawn.shares, bins=30, range=(0, widest[ratio])), fill=True, color="C0")
                axis.axvline(ratio, color="k", linewidth=0.8)
                axis.axvline(drawn.shares.mean(), color="C1", linestyle="--", linewidth=1)
            axis.set(xlim=(0, widest[ratio]), yticks=[])
            axis.tick_params(labelsize=6, labelbottom=row == len(rules) - 1)
            if column == 0:
                axis.set_ylabel(rule, fontsize=8)
            if row == 0:
                axis.set_title(f"ratio {ratio:g} (line), mean (dashed)", fontsize=7)
    _write(figure, path)


def inclusion(found: Sequence[Draws], shares: np.ndarray, path: Path) -> None:
    """How often each of the largest components is hidden, by rule; one panel for each ratio."""
    order = np.argsort(-np.asarray(shares), kind="stable")[:SHOWN]
    ratios = _unique(d.ratio for d in found)
    figure, axes = _axes(1, len(ratios), (3.4 * len(ratios), 3.2))
    for axis, ratio in zip(axes, ratios, strict=True):
        for drawn in (d for d in found if d.ratio == ratio):
            axis.plot(np.arange(1, len(order) + 1), drawn.inclusion[order], label=drawn.rule, linewidth=1)
        axis.axhline(ratio, color="k", linewidth=0.8)
        axis.set(xlabel="component, by variance", title=f"ratio {ratio:g}", ylim=(0, None))
    axes[0].set_ylabel("share of draws that hide it")
    axes[-1].legend(fontsize=6)
    _write(figure, path)


def redundancy(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Bars of the linear redundancy table."""
    figure, (axis,) = _axes(1, 1, (7, 0.42 * len(rows) + 1.2))
    names = [f"{row['basis']}, {row['ratio']:g} hidden" for row in rows]
    place = np.arange(len(rows))
    axis.barh(place - 0.2, [row["fvu"] for row in rows], 0.4, label="these images", color="C0")
    held = [row["fvu_heldout"] for row in rows]
    if None not in held:
        axis.barh(place + 0.2, held, 0.4, label="held-out", color="C1")
    axis.set_yticks(place, names)
    axis.invert_yaxis()
    axis.set(xlabel="variance of the hidden part that a linear model leaves unexplained", xlim=(0, 1.05))
    axis.legend(fontsize=7)
    _write(figure, path)


def band_heatmap(records: Sequence[dict[str, Any]], path: Path) -> None:
    """R² of each band of components on held-out images, during training: the ``bands`` of :class:`pmae.TrainResult`.

    Grey where no mask hid a component of the band; values below 0, worse than predicting 0, are drawn as 0.
    """
    names = list(records[-1]["bands"])
    fvu = np.array([[r["bands"][name] for name in names] for r in records], dtype=np.float64)  # None becomes NaN
    figure, (axis,) = _axes(1, 1, (7, 0.32 * len(names) + 1.3))
    axis.set_facecolor("0.8")
    drawn = axis.imshow(1 - fvu.T, aspect="auto", vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
    axis.set_yticks(range(len(names)), names)
    marks = np.unique(np.linspace(0, len(records) - 1, 8).astype(int))
    axis.set_xticks(marks, [f"{records[k]['epoch']:g}" for k in marks])
    axis.set(xlabel="epoch", ylabel="components", title="held-out images: R² of the hidden components")
    figure.colorbar(drawn, ax=axis)
    _write(figure, path)


def image_rows(rows: Sequence[tuple[str, Tensor]], path: Path) -> None:
    """Rows of images (B, C, H, W) on the [0, 1] scale, each with its name; values beyond are clipped to be shown."""
    n = len(rows[0][1])
    figure, axes = _axes(len(rows), n, (1.3 * n + 1.2, 1.35 * len(rows)))
    for row, (name, images) in enumerate(rows):
        for column, image in enumerate(images):
            _image(axes[row][column], image)
        _name(axes[row][0], name)
    _write(figure, path)


def _axes(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, Any]:
    """A figure without global state, and its axes: a list of them, or of rows if there are several."""
    figure = Figure(size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, axes if rows > 1 else axes[0]


def _image(axis: Any, image: Tensor) -> None:
    """One or three channels as grey or colour; of any other number the mean."""
    pixels = image.detach().float().clamp(0, 1).permute(1, 2, 0).numpy(force=True)
    if pixels.shape[2] != 3:
        pixels = pixels.mean(2, keepdims=True)
    axis.imshow(
        pixels if pixels.shape[2] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest"
    )
    axis.set_xticks([])
    axis.set_yticks([])


def _name(axis: Any, name: str) -> None:
    axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)


def _unique(values: Any) -> list[Any]:
    return list(dict.fromkeys(values))


def _write(figure: Figure, path: Path) -> None:
    """The old file or the new one, never half."""
    with written(path) as temporary:
        figure.savefig(temporary, dpi=140, format=path.suffix.lstrip(".") or "png")
