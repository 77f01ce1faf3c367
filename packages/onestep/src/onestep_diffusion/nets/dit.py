"""Diffusion transformer (Peebles and Xie 2023) for latents and images, and a smaller one as ratio network."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn.initializers import zeros
from numpy.typing import NDArray

from ..errors import ConfigError
from ..shapes import PerSample
from .layers import (
    Images,
    Labels,
    Tokens,
    Vectors,
    attend,
    body_dtype,
    check_settings,
    fan_uniform,
    fourier_embedding,
    normal,
)

XAVIER = fan_uniform(1.0, "mean")
EMBEDDING = 256  # Fourier features of the noise level


def position_table(side: int, width: int) -> NDArray[np.float32]:
    """(side^2, width): sines and cosines of row and column, a quarter of the width each (Vaswani et al. 2017)."""
    frequency = 1e-4 ** (np.arange(width // 4) / (width // 4))
    angle = np.arange(side)[:, None] * frequency
    line = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    rows, columns = np.repeat(line, side, axis=0), np.tile(line, (side, 1))
    return np.concatenate([rows, columns], axis=1).astype(np.float32)


def to_patches(x: Images, patch: int) -> Tokens:
    """(n, h, w, c) -> (n, h w / patch^2, patch^2 c)."""
    n, h, w, c = x.shape
    x = x.reshape(n, h // patch, patch, w // patch, patch, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, -1, patch * patch * c)


def from_patches(tokens: Tokens, patch: int) -> Images:
    """The inverse of `to_patches` for square images."""
    n, t, d = tokens.shape
    side = round(t**0.5)
    x = tokens.reshape(n, side, side, patch, patch, d // patch**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, side * patch, side * patch, -1)


def layer_norm(width: int, dtype: type, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Without scale and bias of its own: the modulation has them."""
    return nnx.LayerNorm(width, use_bias=False, use_scale=False, dtype=dtype, rngs=rngs)


class DiTBlock(nnx.Module):
    """Attention, then a two-layer map of each token, both modulated and gated by the embedding (adaLN-zero)."""

    def __init__(self, width: int, heads: int, dtype: type, *, rngs: nnx.Rngs) -> None:
        def linear(into: int, out: int) -> nnx.Linear:
            return nnx.Linear(into, out, kernel_init=XAVIER, dtype=dtype, rngs=rngs)

        self.heads = heads
        self.norm0, self.norm1 = layer_norm(width, dtype, rngs), layer_norm(width, dtype, rngs)
        self.modulation = nnx.Linear(width, 6 * width, kernel_init=zeros, dtype=dtype, rngs=rngs)
        self.qkv, self.proj = linear(width, 3 * width), linear(width, width)
        self.linear0, self.linear1 = linear(width, 4 * width), linear(4 * width, width)

    def __call__(self, h: Tokens, embedding: Vectors) -> Tokens:
        """(n, t, width), (n, width) -> (n, t, width); the identity at the start."""
        shift0, scale0, gate0, shift1, scale1, gate1 = jnp.split(self.modulation(embedding)[:, None], 6, axis=-1)
        h = h + gate0 * self.proj(attend(self.qkv(self.norm0(h) * (1 + scale0) + shift0), self.heads))
        return h + gate1 * self.linear1(nnx.gelu(self.linear0(self.norm1(h) * (1 + scale1) + shift1)))


class DiTTrunk(nnx.Module):
    """Everything but the last layer."""

    def __init__(
        self,
        image_size: int,
        channels: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        labels: int,
        precision: str,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        check_settings(channels=(channels, 1), patch=(patch, 1), depth=(depth, 1), heads=(heads, 1), labels=(labels, 0))
        if image_size < 1 or image_size % patch:
            raise ConfigError(f"image_size={image_size} has to be a multiple of patch={patch}")
        if width < 4 or width % heads or width % 4:
            raise ConfigError(f"width={width} has to be a multiple of 4 and of heads={heads}")
        # Constructor arguments are kept under their names: `nets.config` reads them back.
        self.image_size, self.channels, self.patch, self.width = image_size, channels, patch, width
        self.depth, self.heads, self.labels, self.precision = depth, heads, labels, precision
        self.dtype = body_dtype(precision)
        small = normal(0.02)
        self.map_layer0 = nnx.Linear(EMBEDDING, width, kernel_init=small, rngs=rngs)
        self.map_layer1 = nnx.Linear(width, width, kernel_init=small, rngs=rngs)
        self.map_label = nnx.Embed(labels, width, embedding_init=small, rngs=rngs) if labels else None
        self.stem = nnx.Linear(patch**2 * channels, width, kernel_init=XAVIER, dtype=self.dtype, rngs=rngs)
        for index in range(depth):
            setattr(self, f"block{index}", DiTBlock(width, heads, self.dtype, rngs=rngs))
        self.norm = layer_norm(width, self.dtype, rngs)
        self.modulation = nnx.Linear(width, 2 * width, kernel_init=zeros, dtype=self.dtype, rngs=rngs)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one sample: (height, width, channels)."""
        return self.image_size, self.image_size, self.channels

    @property
    def block_names(self) -> tuple[str, ...]:
        """Names of what `features` lists."""
        return "stem", *(f"block{index}" for index in range(self.depth))

    def features(self, x: Images, noise: PerSample, labels: Labels = None) -> list[Tokens]:
        """The activations (n, t, width) after each of `block_names`; arguments as of a call."""
        return self._outputs(x, self._embed(noise, labels))

    def _embed(self, noise: PerSample, labels: Labels) -> Vectors:
        e = self.map_layer1(nnx.silu(self.map_layer0(fourier_embedding(noise, EMBEDDING))))
        return nnx.silu(e + self.map_label(labels) if self.map_label and labels is not None else e)

    def _outputs(self, x: Images, embedding: Vectors) -> list[Tokens]:
        table = position_table(self.image_size // self.patch, self.width)
        outputs = [self.stem(to_patches(x, self.patch)) + table.astype(self.dtype)]
        for index in range(self.depth):
            outputs.append(getattr(self, f"block{index}")(outputs[-1], embedding))
        return outputs

    def _final(self, x: Images, noise: PerSample, labels: Labels) -> Tokens:
        embedding = self._embed(noise, labels)
        shift, scale = jnp.split(self.modulation(embedding)[:, None], 2, axis=-1)
        h = self._outputs(x, embedding)[-1]
        return (self.norm(h) * (1 + scale) + shift).astype(jnp.float32)


class DiT(DiTTrunk):
    """The denoising network F, DiT-XL/2 for the 64 x 64 x 4 latents of ImageNet-512 by default; zero at the start.

    Args:
        image_size, channels: of square latents or images; the size a multiple of patch.
        patch, width, depth, heads: patch x patch pixels make a token of `width` numbers; `depth` blocks.
        labels: number of classes, 0 for none. precision: `f32` | `bf16`, what the body computes in.

    Raises ConfigError for settings out of range.
    """

    def __init__(
        self,
        image_size: int = 64,
        channels: int = 4,
        patch: int = 2,
        width: int = 1152,
        depth: int = 28,
        heads: int = 16,
        labels: int = 1000,
        precision: str = "f32",
        *,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(image_size, channels, patch, width, depth, heads, labels, precision, rngs=rngs)
        self.out = nnx.Linear(width, patch**2 * channels, kernel_init=zeros, rngs=rngs)

    def __call__(self, x: Images, noise: PerSample, labels: Labels = None) -> Images:
        """F(x, noise, labels) of EDM, (n, h, w, channels) in f32: x is c_in times the noised latents, noise c_noise.

        labels: (n,) integers below `labels`; None adds nothing to the embedding.
        """
        return from_patches(self.out(self._final(x, noise, labels)), self.patch)

    def ratio_head(self, width: float = 0.5, *, rngs: nnx.Rngs) -> DiTRatio:
        """A fresh ratio network for the same latents and labels: `width` times as wide, half as deep."""
        heads = max(1, round(width * self.heads))
        multiple = 4 * heads
        settings = {name: getattr(self, name) for name in ("image_size", "channels", "patch", "labels", "precision")}
        wide = multiple * max(1, round(width * self.width / multiple))
        return DiTRatio(**settings, width=wide, depth=max(1, self.depth // 2), heads=heads, rngs=rngs)


class DiTRatio(DiTTrunk):
    """A ratio network, the mean over tokens of a linear map that is 0 at the start; arguments as of `DiT`."""

    def __init__(
        self,
        image_size: int = 64,
        channels: int = 4,
        patch: int = 2,
        width: int = 576,
        depth: int = 14,
        heads: int = 8,
        labels: int = 1000,
        precision: str = "f32",
        *,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(image_size, channels, patch, width, depth, heads, labels, precision, rngs=rngs)
        self.out = nnx.Linear(width, 1, kernel_init=zeros, rngs=rngs)

    def __call__(self, x: Images, noise: PerSample, labels: Labels = None) -> PerSample:
        """Logits (n,) in f32; arguments as of the denoising network."""
        return self.out(self._final(x, noise, labels).mean(axis=1))[:, 0]
