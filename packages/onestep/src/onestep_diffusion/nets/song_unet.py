"""EDM's DDPM++ (Song et al. 2021; Karras et al. 2022), tensor for tensor, and its encoder as a ratio network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx

from ..shapes import PerSample
from .layers import Labels, Vectors, fan_uniform, one_hot, positional_embedding
from .unet import Style, UNet, UNetRatio

XAVIER = fan_uniform(1.0, "mean")


class SongEmbedding(nnx.Module):
    """c_noise (n,), labels and augmentation labels -> (n, 4 base): labels are added before two SiLU layers."""

    def __init__(self, base: int, labels: int, augment: int, *, rngs: nnx.Rngs) -> None:
        def linear(into: int, out: int, use_bias: bool = True) -> nnx.Linear:
            return nnx.Linear(into, out, use_bias=use_bias, kernel_init=XAVIER, rngs=rngs)

        self.base, self.labels = base, labels
        self.map_label = linear(labels, base) if labels else None
        self.map_augment = linear(augment, base, use_bias=False) if augment else None
        self.map_layer0 = linear(base, 4 * base)
        self.map_layer1 = linear(4 * base, 4 * base)

    def __call__(self, noise: PerSample, labels: Labels = None, augment: Vectors | None = None) -> Vectors:
        """In f32."""
        e = positional_embedding(noise, self.base, endpoint=True)
        e = jnp.roll(e, self.base // 2, axis=1)  # the weights expect sines before cosines
        if self.map_label:
            e = e + self.map_label(one_hot(labels, self.labels, len(noise)) * math.sqrt(self.labels))
        if self.map_augment and augment is not None:
            e = e + self.map_augment(augment)
        return nnx.silu(self.map_layer1(nnx.silu(self.map_layer0(e))))


DDPMPP = Style(
    embedding=SongEmbedding,
    adaptive=False,
    skip_scale=math.sqrt(0.5),
    epsilon=1e-6,
    project_resampled=True,
    head_channels=None,
    attend_throughout=False,
    kernel=XAVIER,
    kernel_attention=fan_uniform(0.2, "mean"),
    kernel_last=fan_uniform(1e-10, "mean"),
    bias_bound=0.0,
)


class SongUNet(UNet):
    """The denoising network F with EDM's settings for CIFAR-10 as defaults: 55.7 million parameters.

    Args:
        image_size, channels: of square images; the size a multiple of 2^(levels - 1).
        base, mult: level l has base * mult[l] channels.
        blocks: residual blocks a level and direction; one more on the way up.
        attention: image sizes whose blocks attend, on the way up the last one only.
        labels: number of classes, 0 for none. augment: length of the augmentation label, 9 in EDM's weights.
        dropout: acts only where a call is given a key. precision: `f32` | `bf16`, what the body computes in.

    Raises ConfigError for settings out of range.
    """

    style = DDPMPP

    def __init__(
        self,
        image_size: int = 32,
        channels: int = 3,
        base: int = 128,
        mult: Sequence[int] = (2, 2, 2),
        blocks: int = 4,
        attention: Sequence[int] = (16,),
        labels: int = 0,
        augment: int = 0,
        dropout: float = 0.0,
        precision: str = "f32",
        *,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(
            image_size, channels, base, mult, blocks, attention, labels, augment, dropout, precision, rngs=rngs
        )

    def ratio_head(self, width: float = 0.5, *, pooling: str = "mean", rngs: nnx.Rngs) -> SongUNetRatio:
        """A fresh ratio network for the same images and labels: the encoder with `width` times the channels."""
        return SongUNetRatio(**self._scaled(width), pooling=pooling, rngs=rngs)


class SongUNetRatio(UNetRatio):
    """The encoder of `SongUNet` as a ratio network; its arguments, and pooling: `mean` | `attention` over positions."""

    style = DDPMPP

    def __init__(
        self,
        image_size: int = 32,
        channels: int = 3,
        base: int = 64,
        mult: Sequence[int] = (2, 2, 2),
        blocks: int = 4,
        attention: Sequence[int] = (16,),
        labels: int = 0,
        dropout: float = 0.0,
        precision: str = "f32",
        pooling: str = "mean",
        *,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(
            image_size,
            channels,
            base,
            mult,
            blocks,
            attention,
            labels,
            0,
            dropout,
            precision,
            pooling=pooling,
            rngs=rngs,
        )
