"""Standardisation of images: the means and deviations of the un-augmented training images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .errors import DataError, ShapeError
from .images import Source, as_source
from .processes import rank_and_size, summed

MODES = ("pixel", "channel", "global", "none")
STD_FLOOR = 0.01


class Standardizer(nn.Module):
    """x ← (x − mean) / std, with 0 where a coordinate never varies.

    Attributes
    ----------
    mean, std : float tensors that broadcast to ``image_shape``; std is max(σ, std_floor)
    varies : bool, like std; False where σ = 0
    mode : "pixel" (D means, D deviations), "channel" (C of each), "global" (D means, one deviation), "none" (D means)
    """

    mean: Tensor
    std: Tensor
    varies: Tensor

    def __init__(self, image_shape: tuple[int, int, int], mean: Tensor, std: Tensor, varies: Tensor, mode: str) -> None:
        super().__init__()
        self.image_shape, self.mode = image_shape, mode
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.register_buffer("varies", varies)

    def standardize(self, x: Tensor) -> Tensor:
        """(B, C, H, W) on the [0, 1] scale to standardised units. Raises ShapeError."""
        self._check(x)
        return torch.where(self.varies, (x - self.mean) / self.std, 0.0)

    def destandardize(self, x: Tensor) -> Tensor:
        """The way back; a coordinate that never varies becomes its mean."""
        self._check(x)
        return torch.where(self.varies, x * self.std, 0.0) + self.mean

    def _check(self, x: Tensor) -> None:
        if tuple(x.shape[1:]) != self.image_shape:
            raise ShapeError(
                f"images have shape {tuple(x.shape)}, (B, {', '.join(map(str, self.image_shape))}) is needed"
            )


def fit_standardizer(
    images: Any,
    mode: str = "pixel",
    std_floor: float = STD_FLOOR,
    layout: str = "NCHW",
    chunk: int = 4096,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Standardizer:
    """Means and population deviations (ddof 0) in two passes, accumulated in float64.

    The floor keeps nearly constant pixels from blowing up: a border pixel with σ = 4e-4 would make one bright value
    2,700 σ. Raises DataError if no pixel of any image varies, ValueError for an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"standardize={mode!r}: one of {', '.join(MODES)}")
    if not std_floor >= 0:
        raise ValueError(f"std_floor={std_floor}: a number >= 0")
    source = as_source(images, layout)
    mean = _mean(source, lambda x: x, chunk, device)
    variance = _mean(source, lambda x: (x - mean).square_(), chunk, device)
    if not bool((variance > 0).any()):
        raise DataError("all images are the same: there is nothing to learn")
    if mode == "channel":
        level = mean.mean((1, 2), keepdim=True)
        variance = (variance + (mean - level).square()).mean((1, 2), keepdim=True)
        mean = level
    elif mode == "global":
        variance = variance.mean().reshape(1, 1, 1)
    elif mode == "none":
        variance = torch.ones(1, 1, 1, dtype=torch.float64, device=mean.device)
    std = variance.sqrt()
    # A mean of equal numbers is off by rounding: what is left is no variation.
    varies = variance > 1e-24
    return Standardizer(source.shape, mean.to(dtype), std.clamp(min=std_floor).to(dtype), varies, mode)


def _mean(source: Source, of: Any, chunk: int, device: str | torch.device) -> Tensor:
    """Mean over images of a function of them, float64 (C, H, W), over all processes."""
    total = torch.zeros(source.shape, dtype=torch.float64, device=device)
    for images in source.parts(chunk, *rank_and_size()):
        total += of(images.to(device, torch.float64)).sum(0)
    return summed(total) / len(source)
