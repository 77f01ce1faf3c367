"""The pictures of the evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

INK, BLUE, ORANGE, GREY = "#222222", "#1f6f9f", "#d9822b", "#b8b8b8"


def save(figure: Figure, path: Path) -> None:
    """PNG under a temporary name, then renamed."""
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=150, format="png", bbox_inches="tight")
    temporary.replace(path)


def draw_redundancy(table: Mapping[tuple[str, str], Any], path: Path) -> None:
    """Bars of what stays unexplained, held out; a dot for the in-sample value."""
    sets = list(dict.fromkeys(name for name, _ in table))
    figure = Figure(figsize=(4.4 * len(sets), 3.2))
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(sets), squeeze=False)[0]), sets, strict=True):
        rows = sorted(((r.fvu_heldout, r.fvu, s) for (n, s), r in table.items() if n == name), reverse=True)
        held, sample, schemes = zip(*rows, strict=True)
        colors = [BLUE if scheme == "pca" else ORANGE if scheme in ("patch", "pixel") else GREY for scheme in schemes]
        axes.barh(schemes, held, color=colors, height=0.6)
        axes.plot(sample, schemes, "|", color=INK, markersize=10, markeredgewidth=1.5)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.05)
        axes.set_title(name.replace("_", "-"), fontsize=10)
        axes.set_xlabel("left unexplained by linear models\n(bar: held out, mark: in sample)", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    save(figure, path)


def draw_samplers(
    realised: Mapping[str, np.ndarray], often: Mapping[str, np.ndarray], shares: np.ndarray, ratio: float, path: Path
) -> None:
    """Histograms of the hidden share, and how often each component is hidden."""
    figure = Figure(figsize=(9, 1.35 * len(realised)))
    grid = figure.subplots(len(realised), 2)
    order = np.argsort(-shares)
    edges = np.linspace(0, min(1, max(share.max() for share in realised.values())), 80)
    for (left, right), rule in zip(grid, realised, strict=True):
        left.hist(realised[rule], bins=edges, color=BLUE)
        left.axvline(ratio, color=ORANGE, linewidth=1)
        left.set_yticks([])
        left.set_ylabel(rule, fontsize=9)
        right.semilogx(np.arange(1, len(order) + 1), often[rule][order], ".", color=BLUE, markersize=2)
        right.axhline(ratio, color=ORANGE, linewidth=1)
        right.set_ylim(0, None)
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=7)
    grid[0][0].set_title(f"hidden share of the variance (line: r = {ratio:g})", fontsize=9)
    grid[0][1].set_title("share of the draws in which a component is hidden", fontsize=9)
    grid[-1][1].set_xlabel("component, by variance", fontsize=8)
    figure.tight_layout()
    save(figure, path)


def draw_curves(runs: Mapping[str, list[list[dict[str, float]]]], curve: Sequence[float], path: Path) -> None:
    """Mean accuracy over seeds, thin lines for each of them."""
    figure = Figure(figsize=(8.4, 3.3))
    for axes, probe in zip(figure.subplots(1, 2), ("avg linear", "avg knn"), strict=True):
        for (name, group), color in zip(runs.items(), (BLUE, ORANGE, INK), strict=False):
            values = np.array([[point[probe] for point in run] for run in group if len(run) == len(curve)])
            if not len(values):
                continue
            axes.plot(np.array(curve) * 100, values.T, color=color, linewidth=0.7, alpha=0.5)
            axes.plot(np.array(curve) * 100, values.mean(0), "o-", color=color, label=name, linewidth=2)
        axes.set_xlabel("% of the training")
        axes.set_ylabel({"avg linear": "linear probe, %", "avg knn": "10 nearest neighbours, %"}[probe])
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    save(figure, path)


def draw_frontier(curves: Mapping[str, Sequence[Mapping[str, float]]], spent: Sequence[float], path: Path) -> None:
    """Accuracies of each model that has spent so many FLOPs of training; spent : as long as each curve."""
    figure = Figure(figsize=(9.2, 3.4))
    colors = (BLUE, "#56a3d0", "#9fd0ea", "#5b8c5a", ORANGE)
    for axes, probe in zip(figure.subplots(1, 2), ("avg linear", "avg knn"), strict=True):
        for (name, points), color in zip(curves.items(), colors, strict=False):
            axes.semilogx(spent, [point[probe] for point in points], "o-", color=color, label=name, linewidth=2)
        axes.set_xlabel("training FLOPs")
        axes.set_ylabel({"avg linear": "linear probe, %", "avg knn": "10 nearest neighbours, %"}[probe])
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=7)
    figure.tight_layout()
    save(figure, path)


def draw_ratios(
    ratios: Sequence[float], fvu: np.ndarray, chosen: Sequence[float], accuracy: np.ndarray, path: Path
) -> None:
    """What short runs leave unexplained, (seeds, ratios), where it bends, (seeds,), and accuracies, (seeds, ratios)."""
    figure = Figure(figsize=(8.4, 3.2))
    panels = {"held-out FVU of short runs": fvu, "linear probe of whole runs, %": accuracy}
    for axes, (name, values) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        axes.semilogx(ratios, values.T, color=BLUE, linewidth=0.7, alpha=0.5)
        axes.semilogx(ratios, values.mean(0), "o-", color=BLUE, linewidth=2)
        for ratio in chosen:
            axes.axvline(ratio, color=ORANGE, linewidth=1)
        axes.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
        axes.minorticks_off()
        axes.set_xlabel("hidden share of the variance (line: chosen without labels)")
        axes.set_ylabel(name)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    save(figure, path)


def most_varied(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of each label the image (C, H, W) that varies most, as a mean over channels: a piece of sky shows nothing."""
    spread = images.reshape(*images.shape[:2], -1).astype(np.float64).var(2).mean(1)
    return np.array([max(np.flatnonzero(labels == label), key=spread.__getitem__) for label in np.unique(labels)])


@torch.no_grad()
def draw_reconstructions(component: Path, pixel: Path, images: np.ndarray, labels: np.ndarray, path: Path) -> None:
    """A column for each label; rows: image, what each method hides and shows, and the image with that filled in."""
    from ..models import load

    x = torch.from_numpy(np.array(images[most_varied(images, labels)])).float() / 255
    n = len(x)
    ours: Any = load(component)
    mae: Any = load(pixel)
    seen = ours(x, ours.sampler.sample())
    patches = mae(x)
    rows = {
        "image": x,
        "PMAE: hidden\ncomponents": _shown(ours.space.project(ours.space.standardize(x), seen.mask)),
        "PMAE: seen": ours.space.destandardize(seen.visible),
        "PMAE: filled in": ours.reconstruct(x, seen.mask),
        "MAE: seen": mae.standardizer.destandardize(patches.visible),
        "MAE: filled in": mae.reconstruct(x, patches.mask),
    }
    figure = Figure(figsize=(1.25 * n + 1.2, 1.25 * len(rows)))
    grid = figure.subplots(len(rows), n)
    for axes, (name, pictures) in zip(grid, rows.items(), strict=True):
        for cell, picture in zip(axes, pictures, strict=True):
            cell.imshow(picture.clamp(0, 1).permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", interpolation="nearest")
            cell.set_xticks([])
            cell.set_yticks([])
            for side in cell.spines.values():
                side.set_visible(False)
        axes[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    figure.subplots_adjust(wspace=0.04, hspace=0.04)
    save(figure, path)


def _shown(part: torch.Tensor) -> torch.Tensor:
    """A difference, around middle grey, each picture over its own range."""
    return 0.5 + 0.5 * part / part.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-6)
