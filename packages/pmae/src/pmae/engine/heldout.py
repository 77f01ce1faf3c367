"""Images that are not trained on, looked at again and again: what is left unexplained of each band of components."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..bands import MASKS, fixed_masks, fvu_by_band
from ..errors import ShapeError
from ..images import as_source

LARGEST = 512  # images, so that a look costs less than a few steps


@dataclass(frozen=True)
class Heldout:
    """What is looked at: float32 images (B, C, H, W) in [0, 1], masks (k, n_groups), and the epochs between looks."""

    images: Tensor
    masks: Tensor
    every: int


def heldout_of(model: Any, images: Any, every: int, seed: int, layout: str) -> Heldout:
    """At most 512 of the images, spread over all, and masks by the model's own rule. ValueError, ShapeError."""
    if model.method != "pmae":
        raise ValueError("heldout: bands are of components, which only PMAE hides; PixelMAE has none")
    if every < 1:
        raise ValueError(f"heldout_every={every}: epochs, at least 1")
    source = as_source(images, layout)
    if tuple(source.shape) != tuple(model.image_shape):
        raise ShapeError(f"held-out images have shape {source.shape}, the model is for {tuple(model.image_shape)}")
    chosen = np.unique(np.linspace(0, len(source) - 1, min(LARGEST, len(source))).astype(int))
    return Heldout(source.take(chosen), fixed_masks(model, seed, min(MASKS, len(chosen))), every)


def look(model: Any, heldout: Heldout) -> dict[str, Any]:
    """fvu, over all components; bands, of each band by the ranks in it, such as "11-30", None where none was hidden.

    Leaves the model in its mode, and uses no generator of it.
    """
    found = fvu_by_band(model, heldout.images, heldout.masks)
    return {"fvu": _plain(found.total), "bands": dict(zip(found.names, map(_plain, found.fvu.tolist()), strict=True))}


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
