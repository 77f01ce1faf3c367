"""What the networks have in common: embeddings of noise and labels, resampling, attention, the readout of a ratio.

Parameters are f32; `precision="bf16"` computes bodies in bf16, while embeddings, normalisation statistics, softmax and
readouts stay in f32. No network holds random state: dropout takes a key.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn.initializers import zeros
from jaxtyping import Array, Float, Int

from ..errors import ConfigError
from ..shapes import PerSample

Images = Float[Array, "n h w c"]
Vectors = Float[Array, "n c"]
Tokens = Float[Array, "n t width"]
Features = Float[Array, "n *positions c"]
Labels = Int[Array, " n"] | None
DTYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16}

Initializer = Callable[..., Array]  # (key, shape, dtype) -> weights

_BLOCK = 2**16


def fan_uniform(scale: float, fan: str) -> Initializer:
    """Uniform weights of variance scale / fan; fan is `in`, `out` or the `mean` of both. The last axis is outputs."""

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        into, out = math.prod(shape[:-1]), math.prod(shape[:-2]) * shape[-1]
        bound = math.sqrt(3 * scale / {"in": into, "out": out, "mean": (into + out) / 2}[fan])
        return _draw(_uniform_block, bound, key, shape, dtype)

    return init


def uniform(bound: float) -> Initializer:
    """Uniform between -bound and bound."""
    return lambda key, shape, dtype=jnp.float32: _draw(_uniform_block, bound, key, shape, dtype)


def normal(deviation: float) -> Initializer:
    """Normal with this standard deviation."""
    return lambda key, shape, dtype=jnp.float32: _draw(_normal_block, deviation, key, shape, dtype)


def _draw(
    block: Callable[[Array], Array], factor: float, key: Array | None, shape: tuple[int, ...], dtype: Any
) -> Array:
    """Weights of any shape from blocks of one shape: else each new shape costs a compilation of the random numbers.

    Zeros without a key, see `NoRngs`.
    """
    if key is None:
        return jnp.zeros(shape, dtype)
    size = math.prod(shape)
    count = math.ceil(size / _BLOCK)

    def draw(index: Any) -> Array:
        return block(jax.random.fold_in(key, index))

    traced = isinstance(key, jax.core.Tracer) or isinstance(draw(0), jax.core.Tracer)
    values = jax.vmap(draw)(jnp.arange(count)).ravel() if traced else np.concatenate([*map(draw, range(count))])
    return jnp.asarray(values[:size].reshape(shape) * factor, dtype)


@jax.jit
def _uniform_block(key: Array) -> Array:
    return jax.random.uniform(key, (_BLOCK,), minval=-1.0)


@jax.jit
def _normal_block(key: Array) -> Array:
    return jax.random.normal(key, (_BLOCK,))


class NoRngs:
    """Stands in for nnx.Rngs where only shapes are wanted: tracing random numbers takes seconds for a large U-Net."""

    def params(self) -> None:
        """No key."""


def body_dtype(precision: str) -> Any:
    """The dtype that a network's body computes in; ConfigError for a precision other than f32 and bf16."""
    if precision not in DTYPES:
        raise ConfigError(f"precision: {precision!r} is not one of {', '.join(DTYPES)}")
    return DTYPES[precision]


def check_settings(**least: tuple[int, int]) -> None:
    """Raise ConfigError for a setting below its least value; each is given as name=(value, least)."""
    for name, (value, lowest) in least.items():
        if not isinstance(value, int) or value < lowest:
            raise ConfigError(f"{name} has to be an integer of at least {lowest}; got {value!r}")


def one_hot(labels: Labels, classes: int, n: int) -> Vectors:
    """(n, classes) f32; zeros where there are no labels, which is EDM's unconditional input."""
    return jnp.zeros((n, classes)) if labels is None else jax.nn.one_hot(labels, classes)


def positional_embedding(noise: PerSample, channels: int, *, endpoint: bool) -> Vectors:
    """cos and sin of noise times channels/2 frequencies from 1 down to 1e-4, which `endpoint` includes (EDM)."""
    half = channels // 2
    angle = noise[:, None] * 1e-4 ** (jnp.arange(half) / max(half - endpoint, 1))
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=1)


def fourier_embedding(noise: PerSample, channels: int) -> Vectors:
    """cos and sin of c_noise at channels/2 frequencies from 1/8 to 8 periods a unit, that is a factor e^4 in sigma."""
    angle = 2 * jnp.pi * noise[:, None] * 2.0 ** jnp.linspace(-3.0, 1.0, channels // 2)
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=1)


def group_norm(channels: int, epsilon: float, dtype: Any, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """At most 32 groups of at least 4 channels; statistics in f32."""
    groups = next(g for g in range(max(1, min(32, channels // 4)), 0, -1) if channels % g == 0)
    return nnx.GroupNorm(channels, groups, epsilon=epsilon, dtype=dtype, rngs=rngs)


def upsample(x: Images) -> Images:
    """Twice as high and wide, nearest neighbour."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def downsample(x: Images) -> Images:
    """Half as high and wide, mean of 2 x 2."""
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def attend(qkv: Tokens, heads: int) -> Tokens:
    """Softmax attention among t positions; the last axis of qkv is (3, heads, channels of a head)."""
    n, t, width = qkv.shape
    q, k, v = (part.reshape(n, t, heads, -1) for part in jnp.split(qkv, 3, axis=-1))
    return jax.nn.dot_product_attention(q, k, v).reshape(n, t, width // 3)


class Readout(nnx.Module):
    """One number a sample from features at many positions: norm, SiLU, pooling in f32, a linear map that starts at 0.

    pooling: `mean`, or `attention`: a softmax over positions, whose logits are linear in the features and start equal.
    """

    def __init__(self, channels: int, pooling: str, epsilon: float, dtype: Any, *, rngs: nnx.Rngs) -> None:
        if pooling not in ("mean", "attention"):
            raise ConfigError(f"pooling: {pooling!r} is not one of mean, attention")
        self.norm = group_norm(channels, epsilon, dtype, rngs)
        self.query = (
            nnx.Linear(channels, 1, use_bias=False, kernel_init=zeros, rngs=rngs) if pooling != "mean" else None
        )
        self.linear = nnx.Linear(channels, 1, kernel_init=zeros, rngs=rngs)

    def __call__(self, x: Features) -> PerSample:
        """Features to (n,) in f32."""
        h = nnx.silu(self.norm(x)).astype(jnp.float32).reshape(len(x), -1, x.shape[-1])
        weight = 1 / h.shape[1] if self.query is None else jax.nn.softmax(self.query(h), axis=1)
        return self.linear(jnp.sum(weight * h, axis=1))[:, 0]
