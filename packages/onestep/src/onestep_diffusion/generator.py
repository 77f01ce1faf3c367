"""The generator's update in field form: v = dL/dx for every sample, pushed through the generator by one vjp.

A field holds the whole gradient of a diffused divergence, -omega(sigma) w_f grad log r (`ratio.ratio_field`) or the
score difference that equals it (`score.score_field`). Kept as an array it can be clipped, normalised and logged.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .errors import ConfigError
from .shapes import Batch, Count, Elementwise, Levels, PerSample, Scalar

_OMEGAS: dict[str, Callable[[Array, float], Array]] = {
    "sigma": lambda sigma, sigma_data: sigma,
    "sigma2": lambda sigma, sigma_data: sigma**2,
    "one": lambda sigma, sigma_data: jnp.ones_like(sigma),
    "snr": lambda sigma, sigma_data: sigma**2 / (sigma**2 + sigma_data**2),
}


class Field(NamedTuple):
    """v = dL/dx (n, *shape): descend along -v. weight is w_f as it entered v, log_r is None for a score difference."""

    v: Batch
    log_r: PerSample | None
    weight: PerSample


def omega_weight(omega: str, sigma: PerSample, sigma_data: float = 0.5) -> PerSample:
    """omega(sigma), the share of a noise level: `sigma` | `sigma2` | `one` | `snr` = sigma^2/(sigma^2 + sigma_data^2).

    Scores grow like 1/sigma, so `sigma` makes the field about equal over levels, and `sigma2` measures it in units of
    the denoiser. Raises ConfigError for another name.
    """
    if omega not in _OMEGAS:
        raise ConfigError(f"omega: {omega!r} is not one of {', '.join(_OMEGAS)}")
    return _OMEGAS[omega](sigma, sigma_data)


def per_sample(values: PerSample, like: Batch) -> Batch:
    """Values of shape (n,) as (n, 1, ..., 1), to multiply a batch of samples."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def surrogate_loss(v: Batch, x: Batch) -> Scalar:
    """Mean over the batch of <stop_grad(v), x>, whose gradient in the generator's parameters is E[(dx/dtheta)^T v]."""
    return jnp.sum(jax.lax.stop_gradient(v) * x) / len(x)


def unit_normalize(v: Batch) -> Batch:
    """Give all samples the same root mean square over coordinates, the batch's mean of it; floored at 1e-6.

    Samples that are not finite stay so and do not touch the others.
    """
    rms = jnp.sqrt(jnp.mean(v**2, axis=tuple(range(1, v.ndim))))
    return v * per_sample(rms.mean(where=jnp.isfinite(rms)) / jnp.maximum(rms, 1e-6), v)


def zero_nonfinite(v: Batch) -> tuple[Batch, Count]:
    """Samples with a coordinate that is not finite become zero; also returns how many there were."""
    finite = jnp.isfinite(v).all(axis=tuple(range(1, v.ndim)))
    return jnp.where(per_sample(finite, v), v, 0), jnp.sum(~finite)


def hybrid_field(score: Field, ratio: Field, mix: Elementwise) -> Field:
    """(1 - mix) score field + mix ratio field, mix in [0, 1] of shape () or (n,); log_r and weight are the ratio's.

    Score differences are the better estimate far from the data and at large noise, the ratio near convergence.
    """
    a = per_sample(jnp.broadcast_to(mix, score.v.shape[:1]), score.v)
    return Field((1 - a) * score.v + a * ratio.v, ratio.log_r, ratio.weight)


def hybrid_mix(v_score: Batch, v_ratio: Batch, target: Batch, weight: PerSample | None = None) -> Scalar:
    """The mix in [0, 1] whose hybrid field is nearest to the target in weighted least squares on held-out points.

    Use one noise level, or one bin of levels, at a time. The target is the exact field where it is known, and else
    `score_difference_target`: noise of mean zero in it leaves the answer unbiased. The error at the answer is not
    larger than at either end on the same points; 0 (scores alone) where both fields agree.
    """
    weight = jnp.ones(len(v_score), v_score.dtype) if weight is None else weight
    step = v_ratio - v_score
    weighted = per_sample(weight, step) * step
    along, length = jnp.sum(weighted * (target - v_score)), jnp.sum(weighted * step)
    return jnp.clip(jnp.where(length > 0, along / jnp.where(length > 0, length, 1), 0), 0, 1)


def score_difference_target(
    noise: Batch, sigma: Levels, log_r: PerSample, *, from_data: bool, omega: str = "sigma2", sigma_data: float = 0.5
) -> tuple[Batch, PerSample]:
    """Target and weight for `hybrid_mix` from samples alone: an unbiased, noisy stand-in for -omega grad log r.

    At x_sigma = x + sigma noise. On the overlap density p_d p_s / (p_d + p_s), which is p_d S(-l) = p_s S(l), Stein's
    identity turns E[u . s_d] into E_data[S(-l) u . (-noise/sigma)] and likewise for the student. So data samples bring
    the target +2 omega noise/sigma with weight S(-l), student samples -2 omega noise/sigma with weight S(l), in equal
    numbers. Exact for the exact log ratio l; a calibrated estimate of it is what is needed.
    """
    sigma = jnp.broadcast_to(jnp.asarray(sigma, float), noise.shape[:1])
    sign = 1 if from_data else -1
    scale = 2 * sign * omega_weight(omega, sigma, sigma_data) / sigma
    return per_sample(scale, noise) * noise, jax.nn.sigmoid(-sign * log_r)
