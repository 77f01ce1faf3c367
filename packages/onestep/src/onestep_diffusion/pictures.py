"""Pictures of a run: samples in a grid or as points, and its curves. Written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def save_samples(path: Path, samples: NDArray[Any], shape: Sequence[int], low: float, high: float) -> bool:
    """A PNG of (n, *shape) samples between low and high: images in a square grid, (n, 2) as points; else False."""
    rows = samples.reshape(len(samples), *shape)
    if rows.ndim == 4 and rows.shape[-1] in (1, 3):
        grid_image(rows, low, high).save(path.with_suffix(".tmp"), format="PNG")
    elif rows.ndim == 2 and rows.shape[1] == 2:
        sheet = figure(4, 4)
        axes = sheet.subplots()
        axes.scatter(*rows.T, s=2, linewidths=0)
        axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        save_figure(sheet, path)
        return True
    else:
        return False
    os.replace(path.with_suffix(".tmp"), path)
    return True


def grid_image(images: NDArray[Any], low: float, high: float, enlarge: bool = True) -> Image.Image:
    """(n, h, w, c) as one image of about sqrt(n) rows; small ones are enlarged by whole factors to 32 pixels."""
    pixels = np.clip((images.astype(float) - low) / (high - low) * 255, 0, 255).round().astype(np.uint8)
    factor = max(1, 32 // pixels.shape[1]) if enlarge else 1
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    n, h, w, c = pixels.shape
    columns = int(np.ceil(np.sqrt(n)))
    rows = -(-n // columns)
    pixels = np.concatenate([pixels, np.zeros((rows * columns - n, h, w, c), np.uint8)])
    sheet = pixels.reshape(rows, columns, h, w, c).swapaxes(1, 2).reshape(rows * h, columns * w, c)
    return Image.fromarray(sheet[..., 0] if c == 1 else sheet)


def save_curves(path: Path, history: Sequence[dict[str, Any]]) -> None:
    """A PNG of loss, JS bounds and, where it was measured, the Frechet distance, against steps."""
    sheet = figure(9, 4)
    losses, right = sheet.subplots(1, 2)
    for name in ("loss", "aux_loss"):
        points = [(entry["step"], entry[name]) for entry in history if entry.get(name) is not None]
        if points:
            losses.plot(*zip(*points, strict=True), label=name)
    losses.set(xlabel="step")
    losses.legend()
    bounds = [(entry["step"], entry["js_bins"]) for entry in history if "js_bins" in entry]
    if bounds:
        steps, values = zip(*bounds, strict=True)
        for index, line in enumerate(np.array(values, float).T):
            right.plot(steps, line, label=f"JS, noise bin {index + 1}")
        right.axhline(np.log(2), color="grey", linewidth=0.5)
    measured = [(entry["step"], entry["fd"]) for entry in history if entry.get("fd") is not None]
    if measured:
        other = right.twinx() if bounds else right
        other.plot(*zip(*measured, strict=True), color="black", label="FD")
        other.set(yscale="log", ylabel="FD")
    if bounds or measured:
        right.set(xlabel="step")
        right.legend(fontsize="small")
    save_figure(sheet, path)


def figure(width: float, height: float) -> Any:
    """An empty matplotlib figure, inches."""
    from matplotlib.figure import Figure  # half a second to import, and no window system

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(sheet: Any, path: Path) -> None:
    """Write a figure as PNG."""
    sheet.savefig(path.with_suffix(".tmp"), format="png", dpi=100)
    os.replace(path.with_suffix(".tmp"), path)
