"""Score identity distillation (SiD, Zhou et al. 2024): a Fisher divergence, differentiated through both denoisers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..generator import Field, per_sample
from ..noise import Karras
from ..score import DenoiserFn
from ..shapes import Batch, PerSample

SIGMA_LAW = Karras(t_max=0.8)


def sid_loss(
    teacher_fn: DenoiserFn, fake_fn: DenoiserFn, x: Batch, sigma: PerSample, noise: Batch, alpha: float = 1.2
) -> PerSample:
    """(n,) values of <D_T - D_F, (D_T - x) - alpha (D_T - D_F)> / mean |x - D_T|, at x + sigma noise.

    If D_F is exact, the numerator's mean is (1 - alpha) E|D_T - D_F|^2; its gradient in x holds the denoisers' weights
    fixed and wants alpha > 1/2 (1.2 in SiD's code). The denominator is held constant.
    """
    x_sigma = x + per_sample(sigma, x) * noise
    clean, fake = teacher_fn(x_sigma, sigma), fake_fn(x_sigma, sigma)
    axes = tuple(range(1, x.ndim))
    gap = clean - fake
    scale = jax.lax.stop_gradient(jnp.mean(jnp.abs(x - clean), axis=axes)) + 1e-8
    return jnp.sum(gap * (clean - x - alpha * gap), axis=axes) / scale


def sid_field(
    teacher_fn: DenoiserFn, fake_fn: DenoiserFn, x: Batch, sigma: PerSample, noise: Batch, alpha: float = 1.2
) -> Field:
    """v, the gradient of `sid_loss` in the student samples x, so that SiD runs in field form, too."""

    def total(x: Batch) -> Array:
        return sid_loss(teacher_fn, fake_fn, x, sigma, noise, alpha).sum()

    return Field(jax.grad(total)(x), None, jnp.ones_like(sigma))
