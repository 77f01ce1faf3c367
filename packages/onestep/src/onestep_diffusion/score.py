"""Score-based fields: the difference of a teacher's and a fake denoiser (Diff-Instruct, VSD, DMD; f-distill by weight).

A denoiser D gives the score (D - x_sigma) / sigma^2, so sigma^2 (s_student - s_data) = D_fake - D_teacher.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

from .errors import ConfigError, DataError
from .generator import Field, omega_weight, per_sample, unit_normalize
from .noise import check_sigma
from .precondition import edm_loss_weight
from .shapes import Batch, Levels, PerSample

DenoiserFn = Callable[[Batch, PerSample], Batch]


def score_field(
    teacher_fn: DenoiserFn,
    fake_fn: DenoiserFn,
    x_sigma: Batch,
    sigma: Levels,
    *,
    omega: str = "sigma2",
    normalize: str = "none",
    x: Batch | None = None,
    weight: PerSample | None = None,
    sigma_data: float = 0.5,
) -> Field:
    """v = omega(sigma) w (s_fake - s_teacher) at noised student samples.

    Args:
        teacher_fn, fake_fn: (x (n, *shape), sigma (n,)) -> (n, *shape), denoisers of the data and of the student.
        x_sigma, sigma: student samples plus sigma times noise, and the levels, (n,) or one number > 0.
        omega: see `omega_weight`; the default leaves the difference of the denoisers as it is.
        normalize: `none` | `unit`, see `unit_normalize` | `dmd`, divide each sample by its mean absolute
            |x - D_teacher| + 1e-8, which needs x, the samples without noise.
        weight: (n,) w_f of a ratio network (f-distill); one if left out.

    Returns:
        Field(v, None, weight).

    Raises ConfigError for unknown names and sigma <= 0, DataError for `dmd` without x.
    """
    check_sigma(sigma)
    sigma = jnp.broadcast_to(jnp.asarray(sigma, float), x_sigma.shape[:1])
    weight = jnp.ones_like(sigma) if weight is None else weight
    clean = teacher_fn(x_sigma, sigma)
    scale = omega_weight(omega, sigma, sigma_data) / sigma**2 * weight
    v = per_sample(scale, x_sigma) * (fake_fn(x_sigma, sigma) - clean)
    if normalize == "unit":
        v = unit_normalize(v)
    elif normalize == "dmd":
        if x is None:
            raise DataError("normalize='dmd' needs x, the student samples without noise")
        v = v / per_sample(jnp.mean(jnp.abs(x - clean), axis=tuple(range(1, x.ndim))) + 1e-8, v)
    elif normalize != "none":
        raise ConfigError(f"normalize: {normalize!r} is not one of none, unit, dmd")
    return Field(v, None, weight)


def denoising_loss(denoise_fn: DenoiserFn, x: Batch, sigma: PerSample, noise: Batch, sigma_data: float = 0.5) -> Array:
    """(n,) score matching losses |D(x + sigma noise) - x|^2 / d, weighed by 1 / c_out^2 (EDM, eq. 2 and 8)."""
    error = denoise_fn(x + per_sample(sigma, x) * noise, sigma) - x
    return edm_loss_weight(sigma, sigma_data) * jnp.mean(error**2, axis=tuple(range(1, x.ndim)))
