"""Residual networks for vectors: tables, toy densities, flattened small images."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import zeros
from jaxtyping import Array

from ..shapes import PerSample, Points
from .layers import Labels, Vectors, body_dtype, check_settings, fan_uniform, fourier_embedding, one_hot

LECUN = fan_uniform(1.0, "in")
EMBEDDING = 64  # Fourier features of the noise level


class MLPBlock(nnx.Module):
    """h + Linear SiLU Linear ((1 + scale) LayerNorm h + shift), scale and shift linear in the embedding.

    The identity at the start.
    """

    def __init__(self, hidden: int, dtype: type, *, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(hidden, use_bias=False, use_scale=False, dtype=dtype, rngs=rngs)
        self.modulation = nnx.Linear(hidden, 2 * hidden, dtype=dtype, kernel_init=LECUN, rngs=rngs)
        self.linear0 = nnx.Linear(hidden, hidden, dtype=dtype, kernel_init=LECUN, rngs=rngs)
        self.linear1 = nnx.Linear(hidden, hidden, dtype=dtype, kernel_init=zeros, rngs=rngs)

    def __call__(self, h: Vectors, embedding: Vectors) -> Vectors:
        """(n, hidden), (n, hidden) -> (n, hidden)."""
        scale, shift = jnp.split(self.modulation(embedding), 2, axis=1)
        return h + self.linear1(nnx.silu(self.linear0((1 + scale) * self.norm(h) + shift)))


class MLPTrunk(nnx.Module):
    """Everything but the last layer, which follows a LayerNorm and SiLU."""

    def __init__(
        self, dim: int, hidden: int, blocks: int, labels: int, precision: str, outputs: int, *, rngs: nnx.Rngs
    ) -> None:
        check_settings(dim=(dim, 1), hidden=(hidden, 1), blocks=(blocks, 0), labels=(labels, 0))
        # Constructor arguments are kept under their names: `nets.config` reads them back.
        self.dim, self.hidden, self.blocks, self.labels, self.precision = dim, hidden, blocks, labels, precision
        self.dtype = body_dtype(precision)
        self.map_layer0 = nnx.Linear(EMBEDDING, hidden, kernel_init=LECUN, rngs=rngs)
        self.map_layer1 = nnx.Linear(hidden, hidden, kernel_init=LECUN, rngs=rngs)
        self.map_label = nnx.Linear(labels, hidden, use_bias=False, kernel_init=LECUN, rngs=rngs) if labels else None
        self.stem = nnx.Linear(dim, hidden, dtype=self.dtype, kernel_init=LECUN, rngs=rngs)
        for index in range(blocks):
            setattr(self, f"block{index}", MLPBlock(hidden, self.dtype, rngs=rngs))
        self.norm = nnx.LayerNorm(hidden, use_bias=False, use_scale=False, rngs=rngs)
        self.out = nnx.Linear(hidden, outputs, kernel_init=zeros, rngs=rngs)

    @property
    def shape(self) -> tuple[int]:
        """Of one sample: (dim,)."""
        return (self.dim,)

    @property
    def block_names(self) -> tuple[str, ...]:
        """Names of what `features` lists."""
        return "stem", *(f"block{index}" for index in range(self.blocks))

    def features(self, x: Points, noise: PerSample, labels: Labels = None) -> list[Vectors]:
        """The activations (n, hidden) after each of `block_names`; arguments as of a call."""
        e = self.map_layer0(fourier_embedding(noise, EMBEDDING))
        if self.map_label:
            e = e + self.map_label(one_hot(labels, self.labels, len(noise)) * jnp.sqrt(1.0 * self.labels))
        e = nnx.silu(self.map_layer1(nnx.silu(e)))
        outputs = [self.stem(x)]
        for index in range(self.blocks):
            outputs.append(getattr(self, f"block{index}")(outputs[-1], e))
        return outputs

    def _last(self, x: Points, noise: PerSample, labels: Labels) -> Array:
        return self.out(nnx.silu(self.norm(self.features(x, noise, labels)[-1].astype(jnp.float32))))


class MLPDenoiser(MLPTrunk):
    """The denoising network F for vectors; zero at the start.

    Args:
        dim: coordinates of x. hidden: width. blocks: residual blocks. labels: number of classes, 0 for none.
        precision: `f32` | `bf16`, what the body computes in.

    Raises ConfigError for settings out of range.
    """

    def __init__(
        self, dim: int, hidden: int = 128, blocks: int = 3, labels: int = 0, precision: str = "f32", *, rngs: nnx.Rngs
    ) -> None:
        super().__init__(dim, hidden, blocks, labels, precision, dim, rngs=rngs)

    def __call__(self, x: Points, noise: PerSample, labels: Labels = None) -> Points:
        """F(x, noise, labels) of EDM, (n, dim) in f32: x is c_in times the noised samples, noise is c_noise (n,).

        labels: (n,) integers below `labels`, or None.
        """
        return self._last(x, noise, labels)

    def ratio_head(self, width: float = 0.5, *, rngs: nnx.Rngs) -> MLPRatio:
        """A fresh ratio network for the same vectors and labels with `width` times the hidden units and two blocks."""
        hidden = max(1, round(width * self.hidden))
        return MLPRatio(self.dim, hidden, 2, self.labels, self.precision, rngs=rngs)


class MLPRatio(MLPTrunk):
    """A ratio network for vectors, 0 at the start; arguments as of `MLPDenoiser`."""

    def __init__(
        self, dim: int, hidden: int = 64, blocks: int = 2, labels: int = 0, precision: str = "f32", *, rngs: nnx.Rngs
    ) -> None:
        super().__init__(dim, hidden, blocks, labels, precision, 1, rngs=rngs)

    def __call__(self, x: Points, noise: PerSample, labels: Labels = None) -> Array:
        """Logits (n,) in f32; arguments as of the denoising network."""
        return self._last(x, noise, labels)[:, 0]
