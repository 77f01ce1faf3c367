"""How much of each band of components a model explains on images it was not trained on.

Components are ranked by their variance and taken together in bands: 1, 2-3, 4-10, 11-30, … With M a mask and V the
basis, FVU_band = Σ ‖V_{M∩band}ᵀ(x̂ − x)‖² / Σ ‖V_{M∩band}ᵀx‖², sums over images and masks: relative to predicting 0 on
the same images, whatever their variance is. R² = 1 − FVU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import ShapeError
from .samplers import ComponentSampler
from .space import MaskSpace

STEPS = (1, 3)  # of each decade, where a band ends
AT_ONCE = 128  # images that go through a network together
MASKS = 32  # of an evaluation that is repeated during training
STREAM = 4  # of the random numbers of a seed; training has the first ones


@dataclass(frozen=True)
class Bands:
    """Fraction of variance unexplained, by band.

    Attributes
    ----------
    edges : (b + 1,) band k holds the components of ranks edges[k] + 1 … edges[k + 1], by descending variance
    fvu : float64 (b,); NaN where no mask hid a component of the band
    total : of all hidden components together
    """

    edges: tuple[int, ...]
    fvu: np.ndarray
    total: float

    @property
    def names(self) -> list[str]:
        """The ranks in each band, such as "11-30"."""
        return band_names(self.edges)

    @property
    def r2(self) -> np.ndarray:
        """1 − fvu, (b,)."""
        return 1 - self.fvu


def band_edges(n: int) -> tuple[int, ...]:
    """Bounds of bands of n components that grow threefold, the last one up to fourfold: 0, 1, 3, 10, 30, … n."""
    grown = (step * 10**power for power in range(len(str(n))) for step in STEPS)
    return (0, *(edge for edge in grown if 1.5 * edge <= n), n)


def band_names(edges: Sequence[int]) -> list[str]:
    """The ranks between neighbouring edges, such as "11-30"; of a single one its number."""
    return [f"{low + 1}" if high == low + 1 else f"{low + 1}-{high}" for low, high in pairwise(edges)]


@torch.no_grad()
def by_band(
    space: MaskSpace, prediction: Tensor, x_std: Tensor, mask: Tensor, edges: Sequence[int] | None = None
) -> Bands:
    """Compare predicted with true components, where they were hidden.

    Parameters
    ----------
    prediction, x_std : standardised images (B, C, H, W)
    mask : bool, True = hidden: (n_groups,), (k, n_groups) for k contiguous slices of the images, or (B, n_groups)
    edges : ascending from 0 to the number of components; None is :func:`band_edges`

    Raises ShapeError, ValueError.
    """
    bounds = _edges(edges, space.n_components)
    return _ratios(_squares(space, prediction, x_std, mask), space, bounds)


@torch.no_grad()
def fvu_by_band(
    model: Any, images: Tensor, masks: Tensor, edges: Sequence[int] | None = None, standardized: bool = False
) -> Bands:
    """What a :class:`pmae.PMAE` leaves unexplained of images (B, C, H, W), in [0, 1] unless ``standardized``.

    Each of the k masks (k, n_groups) is for one of k contiguous slices of the images; k is at most B. The model is in
    evaluation mode meanwhile; no sampler and no generator of it is used. Raises ShapeError, ValueError.
    """
    space: MaskSpace = model.space
    bounds = _edges(edges, space.n_components)
    if masks.ndim != 2 or not 0 < len(masks) <= len(images):
        raise ShapeError(f"masks have shape {tuple(masks.shape)}: (k, {space.n_groups}), at most one an image")
    pieces = min(len(masks), -(-len(images) // AT_ONCE))
    sums = torch.zeros(2, space.n_components, dtype=torch.float64)
    tokens = torch.Generator().manual_seed(0)  # those that token_drop drops
    was_training = model.training
    model.eval()
    try:
        for part, own in zip(images.tensor_split(pieces), masks.tensor_split(pieces), strict=True):
            x = part.to(space.mean.device)
            x = x if standardized else space.standardize(x)
            # Compiled code is for the shapes of training.
            with torch.compiler.set_stance("force_eager"):
                prediction = model(x, own, standardized=True, generator=tokens).prediction
            sums += _squares(space, prediction, x, own)
    finally:
        model.train(was_training)
    return _ratios(sums, space, bounds)


def fixed_masks(model: Any, seed: int, n: int = MASKS) -> Tensor:
    """Masks (n, n_groups) by the rule and ratio of a model, the same whenever they are asked for."""
    sampler: ComponentSampler = model.sampler
    own = ComponentSampler(sampler.shares, sampler.ratio, sampler.rule, seed=[seed, STREAM], radii=sampler.radii)
    return own.sample(n)


def _squares(space: MaskSpace, prediction: Tensor, x_std: Tensor, mask: Tensor) -> Tensor:
    """(2, K) float64: squared errors and squares of each component where it was hidden, sums over images."""
    if prediction.shape != x_std.shape:
        raise ShapeError(f"predictions have shape {tuple(prediction.shape)}, images {tuple(x_std.shape)}")
    sums = torch.zeros(2, space.n_components, dtype=torch.float64)
    shared = list(mask) if mask.ndim == 2 and len(mask) < len(x_std) else [mask]
    slices = zip(shared, x_std.tensor_split(len(shared)), prediction.tensor_split(len(shared)), strict=True)
    for own, x, guess in slices:
        hidden = space.hidden(own)
        true, guessed = hidden.target(x).double(), hidden.target(guess).double()
        found = torch.stack([(guessed - true).square().sum(0), true.square().sum(0)]).cpu()
        if hidden.shared:
            sums[:, hidden.index.cpu()] += found
        else:
            sums += found
    return sums


def _ratios(sums: Tensor, space: MaskSpace, edges: tuple[int, ...]) -> Bands:
    order = torch.argsort(space.variances.cpu(), descending=True, stable=True)
    error, square = (np.array([part.sum() for part in np.split(each[order].numpy(), edges[1:-1])]) for each in sums)
    with np.errstate(invalid="ignore", divide="ignore"):
        fvu = np.where(square > 0, error / square, np.nan)
    return Bands(edges, fvu, float(error.sum() / square.sum()) if square.sum() > 0 else float("nan"))


def _edges(edges: Sequence[int] | None, n: int) -> tuple[int, ...]:
    if edges is None:
        return band_edges(n)
    found = tuple(int(edge) for edge in edges)
    if len(found) < 2 or found[0] != 0 or found[-1] != n or any(a >= b for a, b in pairwise(found)):
        raise ValueError(f"edges={list(edges)}: whole numbers that ascend from 0 to the {n} components are needed")
    return found
