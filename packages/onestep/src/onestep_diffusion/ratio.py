"""Class-ratio estimation: one classifier between noised data and noised student samples is the log density ratio.

Its gradient in x is the difference of the two scores, so no score has to be learned (arXiv:2502.08005).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import sigmoid, softplus
from jaxtyping import Array

from .divergences import Divergence
from .divergences import divergence as divergence_named
from .errors import ConfigError, DataError
from .generator import Field, omega_weight, per_sample
from .noise import check_sigma
from .shapes import Batch, Elementwise, Levels, PerSample, Scalar

RatioFn = Callable[[Batch, PerSample], PerSample]

_SIGMA_BINS = 8  # of `weight_norm="sigma_bin"`

# (loss of a data sample, loss of a student sample) at log ratio t; each pair has its minimum in t at the log ratio.
_LOSSES: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "logistic": (lambda t: softplus(-t), softplus),
    "brier": (lambda t: sigmoid(-t) ** 2, lambda t: sigmoid(t) ** 2),
    "ulsif": (lambda t: -jnp.exp(t), lambda t: 0.5 * jnp.exp(2 * t)),
    "kliep": (lambda t: -t, lambda t: jnp.exp(t) - 1),
}


def ratio_loss(
    log_r_data: PerSample,
    log_r_student: PerSample,
    *,
    kind: str = "logistic",
    log_prior: float = 0.0,
    weight: PerSample | None = None,
) -> Scalar:
    """E_data[loss] + E_student[loss], a scalar in f32 or wider.

    Args:
        log_r_data, log_r_student: the network's log ratios at noised data (n,) and noised student samples (m,).
        kind: `logistic` (minimum 2 log 2 - 2 JS at the exact ratio), `brier` (1/2 - LeCam/2),
            `ulsif` (-E_student[r^2]/2), `kliep` (-KL(data||student), the NWJ bound). For ulsif let the network give
            `log_softplus_ratio` of its output.
        log_prior: log(n_data / n_student) of the classes as the loss should weigh them. The prior is taken out of the
            logit again, so the minimiser is the plain log ratio whatever its value; 0 weighs both classes alike.
        weight: (n,) lambda(sigma), for n = m pairs that share their noise levels.

    Raises ConfigError for an unknown kind, DataError for lengths that do not fit.
    """
    if kind not in _LOSSES:
        raise ConfigError(f"ratio loss: {kind!r} is not one of {', '.join(_LOSSES)}")
    log_r_data, log_r_student = jnp.asarray(log_r_data), jnp.asarray(log_r_student)
    if log_r_data.size == 0 or log_r_student.size == 0:
        raise DataError(f"log ratios of both classes are needed; got {log_r_data.shape} and {log_r_student.shape}")
    if weight is not None and not jnp.shape(weight) == log_r_data.shape == log_r_student.shape:
        shapes = f"{jnp.shape(weight)} for {log_r_data.shape} and {log_r_student.shape}"
        raise DataError(f"weight has to have the shape of both log ratios; got {shapes}")
    of_data, of_student = (
        loss(_wide(log_r) + log_prior) for loss, log_r in zip(_LOSSES[kind], (log_r_data, log_r_student), strict=True)
    )
    if weight is not None:
        of_data, of_student = weight * of_data, weight * of_student
    share = sigmoid(jnp.asarray(log_prior, of_data.dtype))
    return 2 * (share * of_data.mean() + (1 - share) * of_student.mean())


def log_softplus_ratio(raw: Elementwise) -> Array:
    """log(softplus(raw) / log 2): a log ratio whose r grows only linearly in the network's output; 0 at 0."""
    # Far to the left softplus is exp, whose logarithm is the argument.
    left = raw < -10
    inner = jnp.log(softplus(jnp.where(left, 0.0, raw)))
    return jnp.where(left, raw - jnp.exp(jnp.minimum(raw, 0.0)) / 2, inner) - math.log(math.log(2))


def ratio_weight(
    log_r: PerSample,
    sigma: PerSample,
    div: Divergence,
    *,
    weight_norm: str = "none",
    logit_clip: float | None = 10.0,
) -> PerSample:
    """w_f at log ratios clipped to +-logit_clip (None: unclipped), divided by a mean of it.

    weight_norm: `none`; `batch`, the mean over the batch; `sigma_bin`, the mean over the eight bins of equally many
    noise levels of this batch. Dividing changes how loud a level is, never a sample's direction. A batch handled in
    pieces takes this function on the log ratios of the whole and multiplies the pieces of an `rkl` field by it.
    """
    if logit_clip is not None and not logit_clip > 0:
        raise ConfigError(f"logit_clip has to be positive, or None for no clipping; got {logit_clip}")
    clipped = log_r if logit_clip is None else jnp.clip(log_r, -logit_clip, logit_clip)
    weight = div.weight(clipped)
    if weight_norm == "none":
        return weight
    finite = jnp.isfinite(weight)  # one broken sample must not take the batch with it
    if weight_norm == "batch":
        return weight / _nonzero(weight.mean(where=finite))
    if weight_norm == "sigma_bin":
        edges = jnp.quantile(sigma, jnp.linspace(0.0, 1.0, _SIGMA_BINS + 1)[1:-1])
        index = jnp.searchsorted(edges, sigma, side="right")
        total = jax.ops.segment_sum(jnp.where(finite, weight, 0), index, _SIGMA_BINS)
        count = jax.ops.segment_sum(finite.astype(weight.dtype), index, _SIGMA_BINS)
        return weight / _nonzero(total / count)[index]
    raise ConfigError(f"weight_norm: {weight_norm!r} is not one of none, batch, sigma_bin")


def ratio_field(
    ratio_fn: RatioFn,
    x_sigma: Batch,
    sigma: Levels,
    *,
    divergence: str = "rkl",
    alpha: float | None = None,
    omega: str = "sigma",
    weight_norm: str = "none",
    logit_clip: float | None = 10.0,
    sigma_data: float = 0.5,
) -> Field:
    """v = -omega(sigma) w_f(l) grad_x l at noised student samples, from one backward pass of the ratio network.

    Args:
        ratio_fn: (x (n, *shape), sigma (n,)) -> (n,) log p_data - log p_student; close over parameters and labels.
        x_sigma, sigma: student samples plus sigma times noise, and the levels, (n,) or one number.
        divergence, alpha: a row of `list_divergences`.
        omega: see `omega_weight`; sigma_data is used by `snr` alone.
        weight_norm, logit_clip: see `ratio_weight`.

    Returns:
        Field(v, log_r, weight); log_r unclipped, both in f32 or wider.

    Raises ConfigError for unknown names and sigma <= 0, DataError for a ratio_fn that does not give (n,).
    """
    div = divergence_named(divergence, alpha=alpha)
    check_sigma(sigma)
    sigma = jnp.broadcast_to(jnp.asarray(sigma, float), x_sigma.shape[:1])

    def total(x: Batch) -> tuple[Array, Array]:
        log_r = ratio_fn(x, sigma)
        if log_r.shape != sigma.shape:
            raise DataError(f"a ratio function has to give one number a sample, {sigma.shape}; got {log_r.shape}")
        return _wide(log_r).sum(), _wide(log_r)

    gradient, log_r = jax.grad(total, has_aux=True)(x_sigma)
    weight = ratio_weight(log_r, sigma, div, weight_norm=weight_norm, logit_clip=logit_clip)
    v = -per_sample(omega_weight(omega, sigma, sigma_data) * weight, x_sigma) * gradient
    return Field(v, log_r, weight)


def effective_sample_size(weight: Elementwise) -> Elementwise:
    """(sum w)^2 / sum w^2 over the last axis: n for equal weights, 1 if one has all."""
    weight = weight / _nonzero(jnp.max(weight, axis=-1, keepdims=True))
    return weight.sum(-1) ** 2 / (weight**2).sum(-1)


def _wide(values: Array) -> Array:
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def _nonzero(values: Array) -> Array:
    return jnp.maximum(values, float(np.finfo(values.dtype).tiny))
