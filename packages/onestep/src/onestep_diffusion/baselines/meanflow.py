"""MeanFlow (Geng et al. 2025) between noise levels: one network learns the mean velocity of the flow; no teacher.

The flow is EDM's, dx/dsigma = (x - D(x, sigma)) / sigma, rather than the straight path of the paper, so that the same
networks serve: u(x, sigma, s) = (x - D(x, sigma; s)) / sigma is the mean velocity from sigma down to s, and
D(sigma_max z, sigma_max; 0) the one-step sample.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..generator import per_sample
from ..noise import Karras
from ..shapes import Batch, PerSample, Uniforms

SIGMA_MAX = 80.0
LEVELS = Karras(1.0, 0.002, SIGMA_MAX)
APART = 0.25  # share of samples with s < sigma; the others learn the velocity itself
FLOOR = 1e-3  # of the adaptive weight

TwoLevelDenoiserFn = Callable[[Batch, PerSample, PerSample], Batch]  # (x, sigma, s / sigma)


def draw_levels(u: Uniforms) -> tuple[PerSample, PerSample]:
    """(sigma, s), s <= sigma, from uniform numbers."""
    first, second = LEVELS.quantile(u[:, 0]), LEVELS.quantile(u[:, 1])
    sigma = jnp.maximum(first, second)
    return sigma, jnp.where(u[:, 2] < APART, jnp.minimum(first, second), sigma)


def meanflow_loss(denoise_fn: TwoLevelDenoiserFn, x: Batch, noise: Batch, sigma: PerSample, s: PerSample) -> PerSample:
    """(n,) adaptively weighted squares |u - stop(noise - (sigma - s) du/dsigma)|^2.

    du/dsigma is the total derivative along the path x + sigma noise, by one forward-mode product.
    """

    def velocity(x_sigma: Batch, sigma: PerSample) -> Batch:
        return (x_sigma - denoise_fn(x_sigma, sigma, s / sigma)) / per_sample(sigma, x_sigma)

    path: tuple[Array, Array] = (x + per_sample(sigma, x) * noise, sigma)
    u, slope = jax.jvp(velocity, path, (noise, jnp.ones_like(sigma)))
    target = jax.lax.stop_gradient(noise - per_sample(sigma - s, x) * slope)
    square = jnp.sum((u - target) ** 2, axis=tuple(range(1, x.ndim)))
    return square / jax.lax.stop_gradient(square + FLOOR)
