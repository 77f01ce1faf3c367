"""Improved consistency training (iCT, Song and Dhariwal 2023): neighbouring noise levels agree; no second network.

The consistency function is the EDM denoiser itself: at the smallest level, 0.002, it is the identity but for 2e-5.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jax.scipy.stats import norm
from jaxtyping import Array

from ..generator import per_sample
from ..noise import Karras
from ..score import DenoiserFn
from ..shapes import Batch, PerSample, Scalar

SIGMA_MAX = 80.0  # where sampling starts
LEVELS = Karras(1.0, 0.002, SIGMA_MAX)
FEWEST, MOST = 10, 1280  # intervals between levels at the start and at the end
LOG_MEAN, LOG_STD = -1.1, 2.0  # of the law of log sigma


def intervals(step: Array, steps: int) -> Scalar:
    """How many intervals there are at a step of the curriculum: doubled at equal distances from FEWEST to MOST."""
    stage = max(1, steps // (int(math.log2(MOST / FEWEST)) + 1))
    return jnp.minimum(FEWEST * 2.0 ** (step // stage), MOST)


def adjacent_levels(u: PerSample, count: Array) -> tuple[PerSample, PerSample]:
    """The ends (lower, upper) of the interval that holds a draw of a lognormal law cut to the levels' range.

    This is iCT's discrete law, whose weights are the lognormal masses of the intervals.
    """
    low, high = (norm.cdf((math.log(s) - LOG_MEAN) / LOG_STD) for s in (LEVELS.sigma_min, LEVELS.sigma_max))
    sigma = jnp.exp(LOG_MEAN + LOG_STD * ndtri(low + u * (high - low)))
    root = 1 / LEVELS.rho
    bottom, top = LEVELS.sigma_min**root, LEVELS.sigma_max**root
    place = jnp.clip(jnp.floor((sigma**root - bottom) / (top - bottom) * count), 0, count - 1)
    return LEVELS.quantile(place / count), LEVELS.quantile((place + 1) / count)


def ict_loss(denoise_fn: DenoiserFn, x: Batch, noise: Batch, u: PerSample, step: Array, steps: int) -> PerSample:
    """(n,) pseudo-Huber distances of the network at both ends of an interval, over its length.

    u: uniform numbers. The lower end is the target: the same weights, not differentiated, no average.
    """
    lower, upper = adjacent_levels(u, intervals(step, steps))
    target = jax.lax.stop_gradient(denoise_fn(x + per_sample(lower, x) * noise, lower))
    guess = denoise_fn(x + per_sample(upper, x) * noise, upper)
    c = 0.00054 * math.sqrt(math.prod(x.shape[1:]))
    square = jnp.sum((guess - target) ** 2, axis=tuple(range(1, x.ndim)))
    return (jnp.sqrt(square + c**2) - c) / (upper - lower)
