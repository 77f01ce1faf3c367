"""What a masking space is like before anything is trained: its spectrum, what samplers draw, how redundant it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import BasisTooLargeError
from .images import as_source
from .redundancy import LARGEST, linear_redundancy, made_smaller
from .samplers import RULES, ComponentSampler
from .space import MaskSpace, fit_space

RATIOS = (0.1, 0.15, 0.2, 0.5)
HELD = (0.5, 0.8, 0.9, 0.95, 0.99)  # shares of the variance of which one wants to know how many components hold them

# Spaces to hold another one against, and the hidden share of each: of the patches and pixels MAE hides three quarters.
REFERENCES: dict[str, float | None] = {
    "pca": None, "kron": None, "patch_pca": None, "haar_pca": None, "dct": None, "rotation": None, "patch": 0.75,
    "pixel": 0.75,
}  # fmt: skip


@dataclass(frozen=True)
class Draws:
    """What a rule draws at a ratio.

    Attributes
    ----------
    shares : (draws,) realised hidden shares of the variance
    counts : (draws,) numbers of hidden groups
    inclusion : (n_groups,) how often each was hidden
    """

    rule: str
    ratio: float
    shares: np.ndarray
    counts: np.ndarray
    inclusion: np.ndarray


def draws(space: MaskSpace, ratios: Sequence[float] = RATIOS, n: int = 500, seed: int = 0) -> list[Draws]:
    """Many masks of every rule that the space has a use for, at every ratio that its shares reach."""
    found = []
    for rule in RULES:
        if rule == "radial" and space.radii is None:
            continue
        for ratio in ratios:
            try:
                sampler = ComponentSampler(space.shares, ratio, rule, seed=seed, radii=space.radii)
            except ValueError:  # a truncated basis may not hold as much
                continue
            masks = sampler.sample(n).numpy()
            found.append(Draws(rule, ratio, masks @ sampler.shares, masks.sum(1), masks.mean(0)))
    return found


def spectrum(space: MaskSpace) -> dict[str, Any]:
    """Numbers of the spectrum: components of the largest shares, and how many of those hold so much of the variance."""
    shares = np.sort(space.shares.numpy())[::-1]
    reached = np.cumsum(shares)
    return {
        "basis": space.basis_name,
        "image_shape": list(space.image_shape),
        "dim": space.dim,
        "n_components": space.n_components,
        "n_groups": space.n_groups,
        "total_variance": space.total_variance,
        "held": float(reached[-1]),
        "largest_shares": shares[:10].tolist(),
        # As many as hold this much; rounding may leave the sum of all below 1.
        "components_for": {
            str(share): int(np.searchsorted(reached, share)) + 1 if reached[-1] > share else None for share in HELD
        },
        "effective_components": float(1 / np.square(shares / reached[-1]).sum()),
    }


def redundancy_table(
    images: Any,
    space: MaskSpace,
    ratio: float = 0.2,
    references: dict[str, float | None] | None = None,
    n_masks: int = 4,
    heldout: bool = True,
    seed: int = 0,
    tell: Callable[[str], None] = lambda name: None,
) -> list[dict[str, Any]]:
    """Linear redundancy of the space and of reference spaces on the same images; 1 is none.

    references : name of a basis → hidden share, None for ``ratio``; those whose basis does not fit in memory or to the
        images are left out. Images with more than 4,096 coordinates are made smaller, with a warning.
    """
    source = as_source(images)
    if space.dim > LARGEST:  # once, and not for each of the spaces
        source, space = made_smaller(source, space)
    rows = []
    wanted: dict[str, float | None] = {"": None, **(REFERENCES if references is None else references)}
    for name, given in wanted.items():
        if name == space.basis_name:
            continue
        label = name or space.basis_name
        tell(label)
        hidden = given if name or space.basis_name not in ("patch", "pixel") else REFERENCES[space.basis_name]
        hidden = ratio if hidden is None else hidden
        try:
            other = fit_space(source, basis=name, standardize=space.standardizer.cpu(), seed=seed) if name else space
        except (BasisTooLargeError, ValueError):
            continue
        report = linear_redundancy(source, other, hidden, n_masks=n_masks, seed=seed, heldout=heldout)
        rows.append(
            {
                "basis": label, "ratio": hidden, "fvu": report.fvu, "fvu_std": report.fvu_std,
                "fvu_heldout": None if math.isnan(report.fvu_heldout) else report.fvu_heldout,
            }
        )  # fmt: skip
    return rows


@torch.no_grad()
def components(space: MaskSpace, n: int = 16) -> tuple[Tensor, Tensor]:
    """Images (n, C, H, W) of the components with the largest and the smallest variances, of norm 1."""
    order = torch.argsort(space.variances, descending=True, stable=True)
    n = min(n, len(order))
    unit = torch.zeros(2 * n, space.n_components, device=space.mean.device)
    unit[torch.arange(2 * n), torch.cat([order[:n], order[-n:]]).to(unit.device)] = 1
    images = space.synthesis(unit).cpu()
    return images[:n], images[n:]


@torch.no_grad()
def triples(space: MaskSpace, images: Tensor, ratio: float = 0.2, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Images (B, C, H, W) in [0, 1], what would be visible of them, and the hidden part around mid-grey."""
    by_count = space.basis_name in ("patch", "pixel")
    sampler = ComponentSampler(space.shares, ratio, "count" if by_count else "unbiased", seed=seed, radii=space.radii)
    masks = sampler.sample(len(images))
    x = space.standardize(images.to(space.mean.device))
    visible = space.split(x, masks).visible
    hidden = (x - visible) * space.std + 0.5
    return images, space.destandardize(visible).cpu(), hidden.cpu()
