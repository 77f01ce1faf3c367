"""What an update costs: arithmetic in forward passes of the generator, memory in its parameters."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from . import methods, nets
from .config import StudentConfig

F32 = 4


class Cost(NamedTuple):
    """Of one full update of a student, all its second network's included.

    parameters, ratio_parameters: numbers of weights; the second is 0 without a ratio. forward_flops: of one sample.
    ratio_share: a forward pass of the ratio over one of the generator. passes: forward passes of the generator that
    the update's arithmetic amounts to, a backward pass counting as two. flops: of the whole batch.
    state_bytes: weights, averages and Adam's moments in f32; activations come on top.
    """

    parameters: int
    ratio_parameters: int
    forward_flops: float
    ratio_share: float
    passes: float
    flops: float
    state_bytes: int


def update_cost(cfg: StudentConfig, net: dict[str, Any]) -> Cost:
    """Cost of an update with a generator of this config (see `nets.config`), counted and not run."""
    cfg = methods.resolve(cfg)
    generator = nets.abstract(net)
    parameters, forward = nets.count_parameters(generator), forward_flops(generator)
    of_ratio, share = 0, 0.0
    if methods.uses_ratio(cfg):
        ratio = _abstract_ratio(net, cfg.ratio_width)
        of_ratio, share = nets.count_parameters(ratio), forward_flops(ratio) / forward
    passes = update_passes(cfg, share)
    copies = 4 + (3 if methods.uses_fake(cfg) else 0) + (cfg.method in ("score", "sid"))
    state = F32 * (copies * parameters + 3 * of_ratio)
    return Cost(parameters, of_ratio, forward, share, passes, passes * forward * cfg.batch_size, state)


def update_passes(cfg: StudentConfig, ratio_share: float) -> float:
    """Forward passes of the generator that one update amounts to; ratio_share: of a pass through the ratio network.

    ratio: 3 + 2 rho + K (1 + 6 rho); score: 5 + 4 K, for K = aux_updates. Every set of samples takes few_steps - 1
    passes more, which make what is noised again.
    """
    rho, k = ratio_share, cfg.aux_updates
    own = 0 if cfg.share_latents else 1  # samples for an update of the second network
    again = (cfg.few_steps - 1) * (1 + k * own)
    if cfg.method in ("ratio", "gan"):
        return again + 3 + 2 * rho + k * (own + 6 * rho)
    if cfg.method == "score":
        extra = rho + 6 * rho * k if cfg.divergence != "rkl" else 0.0  # f-distill
        return again + 5 + k * (own + 3) + extra
    if cfg.method == "sid":  # through both denoisers, forwards and to their inputs
        return again + 7 + k * (own + 3)
    if cfg.method == "smt":  # one network at two shares of the mixture
        return again + 5 + k * (own + 3)
    return {"ict": 4.0, "meanflow": 5.0}[cfg.method]


def forward_flops(net: Any) -> float:
    """Floating-point operations of one sample through a network, abstract or not, as XLA counts them unoptimised."""
    graphdef, params = nets.split(net)
    batch = 8
    like: Any = jax.ShapeDtypeStruct
    shapes = jax.tree.map(lambda leaf: like(leaf.shape, jnp.float32), params)
    x, noise = like((batch, *net.shape), jnp.float32), like((batch,), jnp.float32)
    labels = like((batch,), jnp.int32) if net.labels else None
    run = jax.jit(lambda params, x, noise, labels: nets.merge(graphdef, params)(x, noise, labels))
    found: Any = run.lower(shapes, x, noise, labels).cost_analysis()
    return float(found["flops"]) / batch


def _abstract_ratio(net: dict[str, Any], width: float) -> Any:
    return nnx.eval_shape(lambda: nets.build(net, rngs=nnx.Rngs(0)).ratio_head(width, rngs=nnx.Rngs(0)))
