"""The methods as data for one training loop: what the second network learns, and the field that it gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from . import nets
from .baselines import ict, meanflow, sid, smt
from .config import SINGLE_NETWORK, StudentConfig
from .denoiser import denoise, log_ratio
from .divergences import divergence
from .errors import ConfigError
from .generator import Field, per_sample
from .noise import Fixed, LogNormal, SigmaLaw
from .ratio import ratio_field, ratio_loss
from .score import denoising_loss, score_field
from .shapes import Batch, PerSample, Scalar
from .update import Draws, Method, Row, Tree

NetFn = Callable[..., Any]  # (params, x, sigma, labels)


def resolve(cfg: StudentConfig) -> StudentConfig:
    """The settings with everything filled in that follows from the method."""
    law: SigmaLaw = LogNormal()
    changes: dict[str, Any] = {}
    if cfg.method == "gan":
        changes |= {"method": "ratio", "divergence": "ns", "alpha": None, "alpha_end": None}
        law = Fixed(0.02)
    if cfg.sigma_law is None:
        changes["sigma_law"] = sid.SIGMA_LAW if cfg.method == "sid" else law
    if cfg.ratio_sigma_law is None:
        changes["ratio_sigma_law"] = law
    if cfg.method == "ict":
        changes["sigma_init"] = ict.SIGMA_MAX
    if cfg.method == "meanflow":
        changes["sigma_init"] = meanflow.SIGMA_MAX
    return cfg.replace(**changes)


def row(cfg: StudentConfig) -> Row:
    """The divergence of resolved settings."""
    div = divergence(cfg.divergence, alpha=cfg.alpha)
    norm = cfg.weight_norm
    if norm == "auto":
        norm = "none" if div.bounded and cfg.alpha_end is None else "batch"
    return Row(div, cfg.alpha_end, norm)


def uses_ratio(cfg: StudentConfig) -> bool:
    """Whether a ratio network is trained: f-distill, score x f, has one beside the fake score."""
    return cfg.method == "ratio" or (cfg.method == "score" and cfg.divergence != "rkl")


def uses_fake(cfg: StudentConfig) -> bool:
    """Whether a denoiser of the student's samples is trained."""
    return cfg.method in ("score", "sid", "smt")


def student_net(cfg: StudentConfig, net: dict[str, Any]) -> dict[str, Any]:
    """The config of the network that is trained: MeanFlow's has one channel more, for the second noise level."""
    return extra_channel(net) if cfg.method == "meanflow" else net


def fake_net(cfg: StudentConfig, net: dict[str, Any]) -> dict[str, Any]:
    """The config of the fake score: SMT's has one channel more, for alpha."""
    return extra_channel(net) if cfg.method == "smt" else net


def net_fn(net: dict[str, Any], sigma_data: float) -> NetFn:
    """D as (params, x, sigma, labels, dropout_key=None) -> (n, *shape), of a network's config."""
    graphdef, _ = nets.split(nets.abstract(net))

    def fn(params: Tree, x: Batch, sigma: PerSample, labels: Array | None, dropout_key: Array | None = None) -> Batch:
        options = {} if dropout_key is None else {"dropout_key": dropout_key}
        return denoise(nets.merge(graphdef, params), x, sigma, labels, sigma_data=sigma_data, **options)

    return fn


def wide_net_fn(net: dict[str, Any], sigma_data: float) -> Callable[..., Batch]:
    """D as (params, x, sigma, labels, extra (n,)) of a network with one channel more, which is `extra` throughout."""
    graphdef, _ = nets.split(nets.abstract(net))

    def fn(params: Tree, x: Batch, sigma: PerSample, labels: Array | None, extra: PerSample) -> Batch:
        inner = nets.merge(graphdef, params)

        def f(scaled: Batch, noise: PerSample, labels: Array | None) -> Batch:
            plane = jnp.broadcast_to(per_sample(extra, scaled), (*scaled.shape[:-1], 1))
            return inner(jnp.concatenate([scaled, plane], axis=-1), noise, labels)[..., :-1]

        return denoise(f, x, sigma, labels, sigma_data=sigma_data)

    return fn


def ratio_fn(net: Any, cfg: StudentConfig, sigma_data: float) -> NetFn:
    """l as (params, x, sigma, labels) -> (n,), of a ratio network's graphdef."""

    def fn(params: Tree, x: Batch, sigma: PerSample, labels: Array | None) -> PerSample:
        if cfg.ratio_spectral_norm:
            params = spectral_bounded(params)
        return log_ratio(nets.merge(net, params), x, sigma, labels, sigma_data=sigma_data, output=cfg.ratio_output)

    return fn


def ratio_classification(
    fn: NetFn, params: Tree, draws: Draws, student: Batch, kind: str = "logistic", r1: float = 0.0
) -> tuple[Scalar, dict[str, Array]]:
    """The ratio loss at one level a pair, with independent noises, and both log ratios."""
    sigma = per_sample(draws.sigma, student)
    noised = draws.data + sigma * draws.noise_data
    log_r_data = fn(params, noised, draws.sigma, draws.data_labels)
    log_r_student = fn(params, student + sigma * draws.noise_student, draws.sigma, draws.student_labels)
    loss = ratio_loss(log_r_data, log_r_student, kind=kind)
    if r1:
        slope = jax.grad(lambda x: fn(params, x, draws.sigma, draws.data_labels).sum())(noised)
        loss = loss + r1 / 2 * jnp.mean(jnp.sum(slope**2, axis=tuple(range(1, slope.ndim))))
    return loss, {"log_r_data": log_r_data, "log_r_student": log_r_student}


def second_network_method(cfg: StudentConfig, net: dict[str, Any], ratio_graphdef: Any, sigma_data: float) -> Method:
    """The `Method` of resolved settings, for ratio, score, sid and smt.

    Of the arguments of its functions, aux holds `ratio` and `fake` as far as the method trains them; frozen holds
    `teacher` for score and sid alone: the ratio never sees it.
    """
    log_r_fn = ratio_fn(ratio_graphdef, cfg, sigma_data)
    make = {"ratio": _ratio_method, "score": _score_method, "sid": _sid_method, "smt": _smt_method}[cfg.method]
    return make(cfg, log_r_fn, net, sigma_data)


def _ratio_method(cfg: StudentConfig, log_r_fn: NetFn, net: dict[str, Any], sigma_data: float) -> Method:
    def aux_loss(aux: Tree, frozen: Tree, draws: Draws, student: Batch) -> tuple[Scalar, dict[str, Array]]:
        return ratio_classification(log_r_fn, aux["ratio"], draws, student, cfg.ratio_loss, cfg.ratio_r1)

    def field(aux: Tree, frozen: Tree, x: Batch, draws: Draws) -> Field:
        def log_r(x_sigma: Batch, sigma: PerSample) -> PerSample:
            return log_r_fn(aux["ratio"], x_sigma, sigma, draws.student_labels)

        return ratio_field(log_r, _noised(x, draws), draws.sigma, omega=cfg.omega, sigma_data=sigma_data)

    return Method(aux_loss, field)


def _score_method(cfg: StudentConfig, log_r_fn: NetFn, net: dict[str, Any], sigma_data: float) -> Method:
    denoise_fn = net_fn(net, sigma_data)

    def aux_loss(aux: Tree, frozen: Tree, draws: Draws, student: Batch) -> tuple[Scalar, dict[str, Array]]:
        loss = _fake_loss(denoise_fn, aux["fake"], draws, student, sigma_data)
        if not uses_ratio(cfg):
            return loss, {}
        of_ratio, logs = ratio_classification(log_r_fn, aux["ratio"], draws, student, cfg.ratio_loss, cfg.ratio_r1)
        return loss + of_ratio, logs

    def field(aux: Tree, frozen: Tree, x: Batch, draws: Draws) -> Field:
        x_sigma, labels = _noised(x, draws), draws.student_labels
        out = score_field(
            lambda x, sigma: denoise_fn(frozen["teacher"], x, sigma, labels),
            lambda x, sigma: denoise_fn(aux["fake"], x, sigma, labels),
            x_sigma,
            draws.sigma,
            omega=cfg.omega,
            normalize="dmd" if cfg.normalize == "dmd" else "none",
            x=x,
            sigma_data=sigma_data,
        )
        if not uses_ratio(cfg):
            return out
        return out._replace(log_r=log_r_fn(aux["ratio"], x_sigma, draws.sigma, labels))

    return Method(aux_loss, field)


def _sid_method(cfg: StudentConfig, log_r_fn: NetFn, net: dict[str, Any], sigma_data: float) -> Method:
    denoise_fn = net_fn(net, sigma_data)

    def aux_loss(aux: Tree, frozen: Tree, draws: Draws, student: Batch) -> tuple[Scalar, dict[str, Array]]:
        return _fake_loss(denoise_fn, aux["fake"], draws, student, sigma_data), {}

    def field(aux: Tree, frozen: Tree, x: Batch, draws: Draws) -> Field:
        return sid.sid_field(
            lambda x, sigma: denoise_fn(frozen["teacher"], x, sigma, draws.student_labels),
            lambda x, sigma: denoise_fn(aux["fake"], x, sigma, draws.student_labels),
            x,
            draws.sigma,
            draws.noise_student,
        )

    return Method(aux_loss, field)


def _smt_method(cfg: StudentConfig, log_r_fn: NetFn, net: dict[str, Any], sigma_data: float) -> Method:
    mixture_fn = wide_net_fn(fake_net(cfg, net), sigma_data)

    def aux_loss(aux: Tree, frozen: Tree, draws: Draws, student: Batch) -> tuple[Scalar, dict[str, Array]]:
        alpha, is_data = smt.draw_mixture(draws.u)
        mixed = jnp.where(per_sample(is_data, student), draws.data, student)
        labels = None
        if draws.data_labels is not None and draws.student_labels is not None:
            labels = jnp.where(is_data, draws.data_labels, draws.student_labels)

        def denoise_fn(x: Batch, sigma: PerSample, alpha: PerSample) -> Batch:
            return mixture_fn(aux["fake"], x, sigma, labels, alpha)

        return smt.smt_loss(denoise_fn, mixed, draws.sigma, draws.noise_student, alpha, sigma_data).mean(), {}

    def field(aux: Tree, frozen: Tree, x: Batch, draws: Draws) -> Field:
        def denoise_fn(x: Batch, sigma: PerSample, alpha: PerSample) -> Batch:
            return mixture_fn(aux["fake"], x, sigma, draws.student_labels, alpha)

        alpha = smt.draw_alpha(draws.u[:, 0])
        return smt.smt_field(denoise_fn, _noised(x, draws), draws.sigma, alpha, omega=cfg.omega, sigma_data=sigma_data)

    return Method(aux_loss, field)


def _fake_loss(denoise_fn: NetFn, fake: Tree, draws: Draws, student: Batch, sigma_data: float) -> Scalar:
    def fn(x: Batch, sigma: PerSample) -> Batch:
        return denoise_fn(fake, x, sigma, draws.student_labels)

    return denoising_loss(fn, student, draws.sigma, draws.noise_student, sigma_data).mean()


def _noised(x: Batch, draws: Draws) -> Batch:
    return x + per_sample(draws.sigma, x) * draws.noise_student


def single_network_loss(cfg: StudentConfig, net: dict[str, Any], sigma_data: float) -> Any:
    """(loss for `single_update`, its noise law) of ict and meanflow."""
    assert cfg.method in SINGLE_NETWORK
    law: SigmaLaw = cfg.sigma_law or LogNormal()  # for metrics alone: both losses draw levels of their own
    if cfg.method == "ict":
        denoise_fn = net_fn(net, sigma_data)

        def ict_loss(params: Tree, frozen: Tree, draws: Draws, step: Array) -> PerSample:
            return ict.ict_loss(
                lambda x, sigma: denoise_fn(params, x, sigma, draws.data_labels),
                draws.data,
                draws.noise_data,
                draws.u[:, 0],
                step,
                cfg.steps,
            )

        return ict_loss, law
    two_level_fn = wide_net_fn(student_net(cfg, net), sigma_data)

    def meanflow_loss(params: Tree, frozen: Tree, draws: Draws, step: Array) -> PerSample:
        return meanflow.meanflow_loss(
            lambda x, sigma, share: two_level_fn(params, x, sigma, draws.data_labels, share),
            draws.data,
            draws.noise_data,
            *meanflow.draw_levels(draws.u),
        )

    return meanflow_loss, law


def extra_channel(net: dict[str, Any]) -> dict[str, Any]:
    """The config of the same network with one more coordinate or channel; ConfigError where that is not the last."""
    for name in ("dim", "channels"):
        if name in net and net["net"] != "dit":
            return net | {name: net[name] + 1}
    raise ConfigError(f"methods smt and meanflow are not for the network {net['net']!r}, whose channels are in patches")


def widen(params: Tree, wide: Tree) -> Tree:
    """Weights in the shapes of `wide`, arrays or not, with zeros for what the extra channel adds."""
    return jax.tree.map(
        lambda leaf, like: jnp.pad(leaf, [(0, b - a) for a, b in zip(leaf.shape, like.shape, strict=True)]),
        params,
        wide,
    )


def narrow(params: Tree, like: Tree) -> Tree:
    """The inverse of `widen`: exact for a channel that is zero."""
    return jax.tree.map(lambda leaf, like: leaf[tuple(slice(size) for size in like.shape)], params, like)


def spectral_bounded(params: Tree, iterations: int = 5) -> Tree:
    """Kernels divided by their operator norm where it exceeds one; the norm by power iteration from a fixed vector."""

    def bounded(leaf: Array) -> Array:
        if leaf.ndim < 2:
            return leaf
        matrix = leaf.reshape(-1, leaf.shape[-1])
        v = jnp.cos(1.0 + jnp.arange(matrix.shape[1]))  # no symmetry that a kernel could be orthogonal to
        for _ in range(iterations):
            u = matrix @ v
            v = jax.lax.stop_gradient(matrix.T @ (u / (jnp.linalg.norm(u) + 1e-12)))
        # Not `norm`, whose slope at zero, where last layers start, is not a number.
        norm = jnp.sqrt(jnp.sum((matrix @ (v / (jnp.linalg.norm(v) + 1e-12))) ** 2) + 1e-12)
        return leaf / jnp.maximum(norm, 1.0)

    return jax.tree.map(bounded, params)
