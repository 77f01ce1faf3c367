"""A hidden share without labels: short runs at several ratios, and where what they leave unexplained bends.

Rule. Let f_j be the fraction of variance unexplained on held-out images of a short run at ratio r_j, sums over images
and masks of that ratio as in :mod:`pmae.bands`, and at most 1: a run that does worse than predicting 0 has learnt
nothing, however much worse it does. Fit f ≈ a + b t + c t² to t = log r by least squares. If c > 0, the parabola bends
most at its vertex t* = −b/2c: hiding less makes what is hidden no easier to predict, hiding more makes it harder. The
ratio is exp t*, kept within the ratios that were tried. If c ≤ 0 the curve has no such bend, and the ratio is the r_j
of the smallest f_j.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from .bands import fixed_masks, fvu_by_band
from .engine.train import fit
from .images import as_source
from .models import PMAE, PMAEConfig
from .space import MaskSpace, fit_space

RATIOS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
FEWEST = 4  # ratios, one more than the parabola has numbers
HELD_OUT = 512  # images, at most; a tenth if there are fewer
ROUNDS = 4  # masks for each of them


@dataclass(frozen=True)
class RatioSearch:
    """What short runs say.

    Attributes
    ----------
    ratio : the one to train with, by the rule
    ratios : (m,) tried, ascending; fvu : float64 (m,), on held-out images
    curvature : c of the parabola; the ratio is its vertex where that is positive
    """

    ratio: float
    ratios: tuple[float, ...]
    fvu: np.ndarray
    curvature: float

    @property
    def nearest(self) -> float:
        """The tried ratio that is next to the one to train with."""
        return min(self.ratios, key=lambda r: abs(math.log(r / self.ratio)))


def search_ratio(
    images: Any,
    space: MaskSpace | None = None,
    config: PMAEConfig | None = None,
    ratios: Sequence[float] = RATIOS,
    epochs: float = 10,
    heldout: Any = None,
    *,
    seed: int = 0,
    device: str | torch.device = "auto",
    layout: str = "NCHW",
    tell: Callable[[float, float], None] = lambda ratio, fvu: None,
    **train: Any,
) -> RatioSearch:
    """Choose the hidden share of the variance without labels, by the rule above.

    Parameters
    ----------
    images : as in :func:`pmae.fit`
    space : of the images; None fits principal components to them
    config : of the model, whose ratio is replaced; None is the preset "tiny"
    ratios : candidates, at least 4
    epochs : of each short run, which is a whole schedule
    heldout : images to judge by; None takes a tenth of the images, 512 at most, out of the training
    tell : called with each ratio and its fvu
    train : further arguments of :func:`pmae.fit`, such as batch_size, lr and augment

    Raises what :func:`pmae.fit` raises.
    """
    tried = tuple(sorted({float(r) for r in ratios}))
    if len(tried) < FEWEST or not all(0 < r < 1 for r in tried):
        raise ValueError(f"ratios={list(ratios)}: at least {FEWEST} different shares between 0 and 1 are needed")
    config = PMAEConfig("tiny") if config is None else config
    if heldout is None:
        images, heldout = _apart(images, len(as_source(images, layout)), seed)
    if space is None:
        space = fit_space(images, layout=layout)
    judged = as_source(heldout, layout)
    chosen = np.unique(np.linspace(0, len(judged) - 1, min(HELD_OUT, len(judged))).astype(int))
    unseen = judged.take(chosen).repeat(ROUNDS, 1, 1, 1)
    found = []
    for ratio in tried:
        model = PMAE(replace(config, ratio=ratio, seed=seed), space)
        fit(model, images, epochs, seed=seed, device=device, layout=layout, **train)
        found.append(fvu_by_band(model, unseen, fixed_masks(model, seed, len(unseen))).total)
        tell(ratio, found[-1])
    ratio, curvature = bend(tried, found)
    return RatioSearch(ratio, tried, np.array(found), curvature)


def bend(ratios: Sequence[float], fvu: Sequence[float]) -> tuple[float, float]:
    """The ratio at which the parabola of the rule above bends most, and its c."""
    t, f = np.log(np.asarray(ratios, dtype=np.float64)), np.minimum(np.asarray(fvu, dtype=np.float64), 1)
    c, b, _ = np.polyfit(t, f, 2)
    if c <= 0:
        return float(ratios[int(np.argmin(f))]), float(c)
    return float(np.exp(np.clip(-b / (2 * c), t.min(), t.max()))), float(c)


def _apart(images: Any, n: int, seed: int) -> tuple[Any, Any]:
    """Images to train on, and a random tenth of them that is not."""
    order = np.random.default_rng([seed, 5]).permutation(n)
    k = min(HELD_OUT, max(2, n // 10))
    judged, kept = np.sort(order[:k]), np.sort(order[k:])
    if isinstance(images, np.ndarray | Tensor) and not isinstance(images, np.memmap):
        return images[kept], images[judged]
    return Subset(images, kept.tolist()), Subset(images, judged.tolist())
