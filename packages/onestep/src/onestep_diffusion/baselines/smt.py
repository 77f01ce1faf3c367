"""Score-of-mixture training (SMT, Jayashankar et al. 2025): one denoiser for all mixtures of data and student.

D(x, sigma, alpha) learns the score s_alpha of m_alpha = alpha p_data + (1 - alpha) p_student; alpha = 0 is the
student. Then (s_0 - s_alpha) / alpha is the gradient of the skewed Jensen-Shannon divergence, `skew_js`: no teacher.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

from ..generator import Field, omega_weight, per_sample
from ..score import denoising_loss
from ..shapes import Batch, PerSample, Uniforms

GRID = 1000  # values of alpha
ZEROS = 0.25  # share of alpha = 0 when the score is trained

MixtureDenoiserFn = Callable[[Batch, PerSample, PerSample], Batch]  # (x, sigma, alpha)


def draw_mixture(u: Uniforms) -> tuple[PerSample, Array]:
    """(alpha (n,), whether the sample is to be data (n,)) from uniform numbers."""
    alpha = jnp.where(u[:, 0] < ZEROS, 0.0, draw_alpha(u[:, 1]))
    return alpha, u[:, 2] < alpha


def draw_alpha(u: PerSample) -> PerSample:
    """From the grid 1/1000, …, 1."""
    return (jnp.floor(u * GRID) + 1) / GRID


def smt_loss(
    denoise_fn: MixtureDenoiserFn, mixed: Batch, sigma: PerSample, noise: Batch, alpha: PerSample, sigma_data: float
) -> PerSample:
    """(n,) denoising losses at samples `mixed` of m_alpha."""
    return denoising_loss(lambda x, level: denoise_fn(x, level, alpha), mixed, sigma, noise, sigma_data)


def smt_field(
    denoise_fn: MixtureDenoiserFn,
    x_sigma: Batch,
    sigma: PerSample,
    alpha: PerSample,
    *,
    omega: str = "sigma2",
    sigma_data: float = 0.5,
) -> Field:
    """v = omega(sigma) (s_0 - s_alpha) / alpha at noised student samples; the weight w_f of `skew_js` is in it."""
    gap = denoise_fn(x_sigma, sigma, jnp.zeros_like(alpha)) - denoise_fn(x_sigma, sigma, alpha)
    scale = omega_weight(omega, sigma, sigma_data) / sigma**2 / alpha
    return Field(per_sample(scale, gap) * gap, None, jnp.ones_like(sigma))
