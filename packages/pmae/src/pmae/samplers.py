"""Which components to hide: random subsets that hold a chosen share of the variance (spec of PMAE, arXiv:2502.06314).

Permutation rules hide the first k components of a random order π. With S_j the share of the first j:

    floor     the most that stay within the ratio               realised share ≤ r
    ceil      the fewest that reach it                          realised share ≥ r
    nearest   the S_j closest to r
    paper     as nearest, without the last one (the released code slices up to the arg-min, not through it)
    unbiased  floor, and one more with probability (r − S_k) / λ_π(k+1): the expected share is r for every π

Under ``floor`` a component with λ > r is never hidden. Three rules hide all components equally often: ``bernoulli``,
``count`` (a fixed number), and ``balanced``, which in addition keeps the share at r up to one component. ``radial``
goes through the components by frequency, from either end, as frequency masking does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

PERMUTATION_RULES = ("floor", "ceil", "nearest", "paper", "unbiased")
RULES = (*PERMUTATION_RULES, "bernoulli", "balanced", "count", "radial")
TOLERANCE = 1e-9  # of an inclusion probability that has reached 0 or 1
REDRAWS = 32  # of an order under which floor or paper would hide too few
SMALLEST = 1e-15  # share below which a component has no direction in the balanced walk


class ComponentSampler:
    """Random masks over groups of components, True = hidden.

    Parameters
    ----------
    shares : (n_groups,) shares of the variance
    ratio : hidden share r of the variance (of the groups, for bernoulli and count), or (lo, hi) for a fresh
        r ~ U(lo, hi) in every draw
    rule : one of RULES
    min_masked, min_visible : bounds on the number of hidden and of visible groups; floor and paper first draw another
        order, the others hide or show as few groups more as needed
    seed : of the sampler's own generator
    radii : (n_groups,) frequencies, for rule="radial"

    Raises ValueError for a ratio outside (0, 1), an unknown rule, bounds that leave no mask, or shares that do not
    reach the ratio.
    """

    def __init__(
        self,
        shares: Tensor | np.ndarray | Sequence[float],
        ratio: float | tuple[float, float] = 0.15,
        rule: str = "unbiased",
        min_masked: int = 1,
        min_visible: int = 1,
        seed: int | Sequence[int] = 0,
        radii: Tensor | np.ndarray | None = None,
    ) -> None:
        self.shares = _shares(shares)
        self.low, self.high = _ratio(ratio)
        self.ratio, self.rule = ratio, rule
        self.min_masked, self.min_visible = min_masked, min_visible
        self.radii = None if radii is None else np.asarray(radii, dtype=np.float64)
        self.generator = np.random.default_rng(seed)
        n = len(self.shares)
        if rule not in RULES:
            raise ValueError(f"rule={rule!r}: one of {', '.join(RULES)}")
        if min(min_masked, min_visible) < 0 or min_masked + min_visible > n:
            few = ": all images are mixtures of two" if n == 1 else ""
            raise ValueError(f"min_masked={min_masked} and min_visible={min_visible} leave no mask of {n} groups{few}")
        if rule == "radial" and (self.radii is None or self.radii.shape != (n,)):
            raise ValueError("rule='radial' needs the frequency of every group (radii): use basis='dct'")
        if rule in (*PERMUTATION_RULES, "balanced", "radial") and self.shares.sum() <= self.high:
            raise ValueError(
                f"the shares sum to {self.shares.sum():.4g}, so no mask can hide {self.high:.4g} of the variance"
            )

    def sample(self, n: int | None = None) -> Tensor:
        """Bool (n_groups,), or (n, n_groups): n independent masks; on the CPU."""
        if n is None:
            return torch.from_numpy(self._one())
        return torch.from_numpy(
            np.stack([self._one() for _ in range(n)]) if n else np.zeros((0, len(self.shares)), bool)
        )

    def masked_share(self, mask: Tensor | np.ndarray) -> float:
        """Share of the variance that a mask (n_groups,) hides; the mean over masks (n, n_groups)."""
        hidden = np.atleast_2d(np.asarray(mask.cpu() if isinstance(mask, Tensor) else mask, dtype=bool))
        return float((hidden @ self.shares).mean())

    def state_dict(self) -> dict[str, Any]:
        """State of the generator, as JSON would have it."""
        return {"generator": self.generator.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the sequence of masks where the state was taken."""
        self.generator.bit_generator.state = state["generator"]

    def _one(self) -> np.ndarray:
        ratio = self.low if self.low == self.high else self.generator.uniform(self.low, self.high)
        rule, draw, n = self.rule, self.generator, len(self.shares)
        if rule in PERMUTATION_RULES:
            order, u = draw.permutation(n), draw.random()
            if rule in ("floor", "paper"):
                # Clamped, an order that starts with a component above the ratio would hide just that one.
                for _ in range(REDRAWS):
                    if _first(self.shares, order, ratio, rule, u, 0, 0).sum() >= self.min_masked:
                        break
                    order = draw.permutation(n)
            return _first(self.shares, order, ratio, rule, u, self.min_masked, self.min_visible)
        if rule == "radial":
            assert self.radii is not None
            order = np.lexsort((draw.random(n), self.radii))
            order = order[::-1] if draw.random() < 0.5 else order
            return _first(self.shares, order, ratio, "unbiased", draw.random(), self.min_masked, self.min_visible)
        if rule == "count":
            hidden = int(np.clip(round(ratio * n), self.min_masked, n - self.min_visible))
            return _leading(draw.permutation(n), hidden)
        mask = draw.random(n) < ratio if rule == "bernoulli" else _balanced(self.shares, ratio, draw)
        return self._bounded(mask)

    def _bounded(self, mask: np.ndarray) -> np.ndarray:
        """The mask with as few groups changed as the bounds ask for."""
        hidden = int(mask.sum())
        wanted = int(np.clip(hidden, self.min_masked, len(mask) - self.min_visible))
        if wanted != hidden:
            candidates = np.flatnonzero(mask == (wanted < hidden))
            mask[self.generator.choice(candidates, abs(wanted - hidden), replace=False)] = wanted > hidden
        return mask


def mask_from_permutation(
    shares: Tensor | np.ndarray | Sequence[float],
    perm: Tensor | np.ndarray | Sequence[int],
    ratio: float,
    rule: str,
    u: float = 0.5,
    min_masked: int = 1,
    min_visible: int = 1,
) -> Tensor:
    """The mask of a permutation rule, bool (n_groups,): the first k of ``perm`` are hidden.

    u : in [0, 1), decides whether ``unbiased`` hides the component that crosses the ratio.
    Raises ValueError for an unknown rule, a ratio outside (0, 1) or something that is no permutation.
    """
    lam, order = _shares(shares), np.asarray(perm, dtype=np.int64)
    if rule not in PERMUTATION_RULES:
        raise ValueError(f"rule={rule!r}: one of {', '.join(PERMUTATION_RULES)}")
    if order.shape != lam.shape or not np.array_equal(np.sort(order), np.arange(len(lam))):
        raise ValueError(f"perm is no permutation of 0..{len(lam) - 1}")
    return torch.from_numpy(_first(lam, order, _ratio(ratio)[0], rule, u, min_masked, min_visible))


def _first(
    shares: np.ndarray, order: np.ndarray, ratio: float, rule: str, u: float, min_masked: int, min_visible: int
) -> np.ndarray:
    reached = np.cumsum(shares[order])
    n = len(shares)
    if rule in ("nearest", "paper"):
        # Both neighbours of the crossing are enough, as S grows; of equally close ones the first.
        above = min(int(np.searchsorted(reached, ratio, side="left")), n - 1)
        below = max(above - 1, 0)
        closest = below if abs(reached[below] - ratio) <= abs(reached[above] - ratio) else above
        closest = int(np.searchsorted(reached, reached[closest], side="left"))
        k = closest + (rule == "nearest")
    elif rule == "ceil":
        k = int(np.searchsorted(reached, ratio, side="left")) + 1
    else:
        k = int(np.searchsorted(reached, ratio, side="right"))
        if rule == "unbiased" and k < n:
            within = reached[k - 1] if k else 0.0
            k += u * shares[order[k]] < ratio - within
    return _leading(order, int(np.clip(k, min_masked, n - min_visible)))


def _leading(order: np.ndarray, k: int) -> np.ndarray:
    mask = np.zeros(len(order), dtype=bool)
    mask[order[:k]] = True
    return mask


def _balanced(shares: np.ndarray, ratio: float, draw: np.random.Generator) -> np.ndarray:
    """Cube method (Deville and Tillé 2004) with one balancing variable, the share, in log₂ K vector rounds.

    Pairs of undecided components walk along a direction that leaves Σ p λ unchanged, with steps that leave each p
    unchanged in expectation, until one of the two is decided.
    """
    lam = np.maximum(shares, SMALLEST)
    p = np.full(len(lam), ratio)
    undecided = np.arange(len(lam))
    while len(undecided) > 1:
        draw.shuffle(undecided)
        half = len(undecided) // 2
        i, j = undecided[:half], undecided[half : 2 * half]
        up = np.minimum((1 - p[i]) / lam[j], p[j] / lam[i])
        down = np.minimum(p[i] / lam[j], (1 - p[j]) / lam[i])
        step = np.where(draw.random(half) * (up + down) < down, up, -down)
        p[i] += step * lam[j]
        p[j] -= step * lam[i]
        undecided = undecided[(p[undecided] > TOLERANCE) & (p[undecided] < 1 - TOLERANCE)]
    mask = p > 0.5
    mask[undecided] = draw.random(len(undecided)) < p[undecided]
    return mask


def _shares(shares: Tensor | np.ndarray | Sequence[float]) -> np.ndarray:
    lam = np.asarray(shares.detach().cpu() if isinstance(shares, Tensor) else shares, dtype=np.float64)
    if lam.ndim != 1 or not len(lam) or not np.isfinite(lam).all() or (lam < 0).any():
        raise ValueError("shares: a vector of finite numbers >= 0 is needed")
    return lam


def _ratio(ratio: float | tuple[float, float]) -> tuple[float, float]:
    if isinstance(ratio, tuple | list) and len(ratio) != 2:
        raise ValueError(f"ratio={ratio}: one hidden share, or a pair (low, high)")
    low, high = (float(r) for r in ratio) if isinstance(ratio, tuple | list) else (float(ratio),) * 2
    if not 0 < low <= high < 1:
        raise ValueError(f"ratio={ratio}: the hidden share lies strictly between 0 and 1")
    return low, high
