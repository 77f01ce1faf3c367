"""Patches of images: cut and put together, drawn at random as MAE does (He et al. 2022, arXiv:2111.06377)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def patchify(images: Tensor, patch: int) -> Tensor:
    """(B, C, h·patch, w·patch) → (B, h·w, patch²·C); within a patch rows, then columns, then channels, as in MAE."""
    batch, channels, height, width = images.shape
    x = images.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch**2 * channels)


def unpatchify(patches: Tensor, grid: tuple[int, int], channels: int) -> Tensor:
    """The inverse of :func:`patchify` for a grid of (h, w) patches."""
    batch, _, size = patches.shape
    patch = round((size / channels) ** 0.5)
    x = patches.reshape(batch, *grid, patch, patch, channels).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(batch, channels, grid[0] * patch, grid[1] * patch)


def pixels_of(mask: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """A value per patch (B, h·w) as one per pixel (B, 1, h·patch, w·patch)."""
    return mask.reshape(-1, 1, *grid).repeat_interleave(patch, 2).repeat_interleave(patch, 3)


def mask_from_noise(values: Tensor, keep: int) -> Tensor:
    """Bool mask of noise (B, T), True = hidden: in each row the `keep` patches of least noise stay visible."""
    return torch.ones_like(values, dtype=torch.bool).scatter(1, values.argsort(dim=1)[:, :keep], False)


def noise(shape: tuple[int, int], generator: torch.Generator | np.random.Generator) -> Tensor:
    """Uniform noise in [0, 1), on the CPU."""
    if isinstance(generator, torch.Generator):
        return torch.rand(shape, generator=generator)
    return torch.from_numpy(generator.random(shape))


class PatchSampler:
    """Random masks over T patches, one per image, of which int(T·(1 − ratio)) stay visible, at least one and not all.

    `ratio` is in [0, 1), with 0 for masks that hide nothing, or a pair from which each batch takes a uniform value.
    """

    def __init__(self, n_patches: int, ratio: float | tuple[float, float], seed: int = 0) -> None:
        self.n_patches, self.ratio = n_patches, ratio
        self.generator = np.random.default_rng(seed)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Bool (n, T), True = hidden, on the CPU, with the noise drawn from `generator` if given."""
        ratio = self.generator.uniform(*self.ratio) if isinstance(self.ratio, tuple) else self.ratio
        if ratio == 0:
            return torch.zeros(n, self.n_patches, dtype=torch.bool)
        keep = min(max(1, int(self.n_patches * (1 - ratio))), self.n_patches - 1)
        return mask_from_noise(noise((n, self.n_patches), generator or self.generator), keep)

    def masked_share(self, mask: Tensor) -> float:
        """Share of the patches that masks (n, T) hide, their mean."""
        return float(mask.double().mean())

    def state_dict(self) -> dict[str, Any]:
        """State of the generator, as JSON would have it."""
        return {"generator": self.generator.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the sequence of masks where the state was taken."""
        self.generator.bit_generator.state = state["generator"]
