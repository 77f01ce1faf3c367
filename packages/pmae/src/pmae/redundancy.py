"""How much of the hidden part of an image a linear model finds in the visible part, before anything is trained.

With coefficient covariance S, the best linear predictor of the hidden from the visible coefficients leaves
FVU(M) = tr(S_MM − S_MV S_VV⁺ S_VM) / tr S_MM. In the principal components of the images S is diagonal, so FVU = 1 for
every mask: no linear model can solve the task.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from .bases import BASES
from .errors import ShapeError
from .images import ArraySource, Source, as_source
from .samplers import ComponentSampler
from .space import MaskSpace, fit_space

LARGEST = 4096  # coordinates of an image; larger ones are made smaller
STRENGTHS = tuple(10.0**power for power in range(-4, 3))  # of ridge, in mean eigenvalues


@dataclass(frozen=True)
class RedundancyReport:
    """Fraction of variance unexplained by linear prediction; 1 = no linear redundancy.

    Attributes
    ----------
    fvu, fvu_std : mean and standard deviation over masks, from the covariance of the given images themselves (with few
        images it flatters bases other than PCA)
    fvu_heldout : ridge regression fitted on half of the images, its strength (or the null model) chosen on a quarter,
        scored on the last quarter, at most 1; mean over masks
    per_mask : float64 (n_masks,), the values behind fvu
    """

    fvu: float
    fvu_std: float
    fvu_heldout: float
    per_mask: np.ndarray


def linear_redundancy(
    images: Any,
    space: MaskSpace,
    ratio: float,
    n_masks: int = 8,
    ridge: float = 1e-6,
    seed: int = 0,
    rule: str = "unbiased",
    heldout: bool = True,
) -> RedundancyReport:
    """Linear predictability of hidden components.

    Parameters
    ----------
    images : as in ``fit_space``, at least 8; (N, C, H, W) or (N, H, W)
    ratio : hidden share of the variance; of the patches or pixels where these are the space
    ridge : of the in-sample solve, in mean eigenvalues of the visible covariance
    heldout : whether fvu_heldout is computed (NaN otherwise): it costs an eigendecomposition a mask

    Images with more than 4,096 coordinates are resized by area, with a warning, and the space is fitted on them anew.
    Raises ShapeError, DataError, ValueError (a basis that is no linear map, too few images).
    """
    source = as_source(images)
    if source.shape != space.image_shape:
        raise ShapeError(f"images are {source.shape}, the space is for {space.image_shape}")
    if not space.basis.linear:
        raise ValueError(f"basis={space.basis_name!r} is no linear map")
    if len(source) < 8:
        raise ValueError(f"{len(source)} images: at least 8 are needed")
    if n_masks < 1:
        raise ValueError(f"n_masks={n_masks}: at least 1")
    if space.dim > LARGEST:
        source, space = made_smaller(source, space)
    by_count = space.basis_name in ("patch", "pixel")
    sampler = ComponentSampler(space.shares, ratio, "count" if by_count else rule, seed=seed, radii=space.radii)
    masks = [space.basis.spread(mask).numpy() for mask in sampler.sample(n_masks)]
    z = coefficients(source, space)
    order = np.random.default_rng(seed).permutation(len(z))
    half, quarter = len(z) // 2, len(z) * 3 // 4
    fit, choose, score = z[order[:half]], z[order[half:quarter]], z[order[quarter:]]
    parts = [part.T @ part for part in (fit, choose, score)]
    moments = sum(parts) / len(z)
    hidden = [np.concatenate([mask, np.zeros(len(moments) - len(mask), bool)]) for mask in masks]
    per_mask = np.array([_unexplained(moments, mask, ridge) for mask in hidden])
    held = [_held_out(fit, choose, score, parts, mask) for mask in hidden] if heldout else [math.nan]
    return RedundancyReport(float(per_mask.mean()), float(per_mask.std()), float(np.mean(held)), per_mask)


def coefficients(source: Source, space: MaskSpace) -> np.ndarray:
    """All coefficients, float64 (N, D): those of the basis, then of an orthonormal rest where it does not span all."""
    full = None
    if not space.complete:
        v = space.matrix(force=True).double().cpu().numpy()
        full = np.concatenate([v, scipy.linalg.qr(v)[0][:, v.shape[1] :]], 1)
    wide = space.standardizer
    found = np.empty((len(source), space.dim))
    start = 0
    for chunk in source.chunks(4096):
        x = wide.standardize(chunk.to(space.mean.device)).to(space.mean.dtype)
        z = x.flatten(1).double().cpu().numpy() @ full if full is not None else space.analysis(x).double().cpu().numpy()
        found[start : start + len(z)] = z
        start += len(z)
    return found


def _unexplained(moments: np.ndarray, hidden: np.ndarray, ridge: float) -> float:
    visible = moments[~hidden][:, ~hidden]
    visible[np.diag_indices_from(visible)] += max(ridge * np.trace(visible) / len(visible), 1e-300)
    across = moments[~hidden][:, hidden]
    factor = scipy.linalg.cholesky(visible, lower=True, overwrite_a=True, check_finite=False)
    explained = scipy.linalg.solve_triangular(factor, across, lower=True, check_finite=False)
    whole = np.trace(moments[hidden][:, hidden])
    return float(1 - np.square(explained).sum() / whole) if whole > 0 else 1.0


def _held_out(
    fit: np.ndarray, choose: np.ndarray, score: np.ndarray, moments: list[np.ndarray], hidden: np.ndarray
) -> float:
    """Error of ridge regression on ``score`` over that of predicting 0; ``moments`` are the sums z zᵀ of the three."""
    visible = ~hidden
    primal = visible.sum() <= len(fit)
    gram = moments[0][visible][:, visible] if primal else fit[:, visible] @ fit[:, visible].T
    values, vectors = scipy.linalg.eigh(gram, overwrite_a=True, check_finite=False)
    scale = moments[0].diagonal()[visible].mean()
    whole = [m.diagonal()[hidden].sum() for m in moments[1:]]
    if primal:  # errors through moments: no image is read again
        inner = vectors.T @ moments[0][visible][:, hidden]
        rotated = [
            (vectors.T @ m[visible][:, hidden], vectors.T @ m[visible][:, visible] @ vectors) for m in moments[1:]
        ]
    else:  # the same regression through the inner products of the images
        inner = vectors.T @ fit[:, hidden]
        shown = [part[:, visible] @ fit[:, visible].T @ vectors for part in (choose, score)]

    def error(part: int, strength: float) -> float:
        weights = inner / (values.clip(0) + strength * scale)[:, None]
        if primal:
            across, square = rotated[part]
            return float(whole[part] - 2 * (weights * across).sum() + (weights * (square @ weights)).sum())
        return float(np.square((choose, score)[part][:, hidden] - shown[part] @ weights).sum())

    best = min(STRENGTHS, key=lambda strength: error(0, strength))
    if error(0, best) >= whole[0] or whole[1] <= 0:
        return 1.0
    return min(1.0, error(1, best) / whole[1])


def made_smaller(source: Source, space: MaskSpace) -> tuple[Source, MaskSpace]:
    """Images with at most 4,096 coordinates, resized by area, and the space fitted on these; with a warning."""
    channels, height, width = space.image_shape
    step = math.ceil(math.sqrt(space.dim / LARGEST))
    size = (max(height // step, 1), max(width // step, 1))
    warnings.warn(
        f"images of {height}×{width} are resized to {size[0]}×{size[1]} (D = {channels * size[0] * size[1]:,}), and "
        "the space is fitted on these", stacklevel=3,
    )  # fmt: skip
    small: list[Tensor] = [
        torch.nn.functional.interpolate(chunk, size=size, mode="area") for chunk in source.chunks(1024)
    ]
    reduced = ArraySource(torch.cat(small), "NCHW")
    rank = space.n_components if space.basis_name == "truncated" else None
    options = {name: space.options[name] for name in BASES[space.basis_name] if name in space.options}
    for name in ("block_size", "patch_size"):  # as large a part of the image as before
        if name in options and options[name] % step == 0:
            options[name] //= step
        else:
            options.pop(name, None)
    if "levels" in options:
        options["levels"] = max(0, options["levels"] - round(math.log2(step)))
    again = fit_space(
        reduced, space.basis_name, space.standardizer.mode, rank=min(rank, math.prod(reduced.shape)) if rank else None,
        **options,
    )  # fmt: skip
    return reduced, again
