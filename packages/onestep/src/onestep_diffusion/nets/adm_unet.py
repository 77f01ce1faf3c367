"""The U-Net of ADM (Dhariwal and Nichol 2021) as EDM has it, for ImageNet at 64 x 64, and its encoder as a ratio."""

from __future__ import annotations

from collections.abc import Sequence

from flax import nnx
from jax.nn.initializers import zeros

from ..shapes import PerSample
from .layers import Labels, Vectors, fan_uniform, normal, one_hot, positional_embedding, uniform
from .unet import Style, UNet, UNetRatio

LECUN_THIRD = fan_uniform(1 / 3, "in")


class ADMEmbedding(nnx.Module):
    """c_noise (n,), labels and augmentation labels -> (n, 4 base): labels are added after two layers."""

    def __init__(self, base: int, labels: int, augment: int, *, rngs: nnx.Rngs) -> None:
        def linear(into: int, out: int) -> nnx.Linear:
            return nnx.Linear(into, out, kernel_init=LECUN_THIRD, bias_init=uniform(into**-0.5), rngs=rngs)

        self.base, self.labels = base, labels
        self.map_augment = nnx.Linear(augment, base, use_bias=False, kernel_init=zeros, rngs=rngs) if augment else None
        self.map_layer0 = linear(base, 4 * base)
        self.map_layer1 = linear(4 * base, 4 * base)
        unit = normal(1.0)
        self.map_label = nnx.Linear(labels, 4 * base, use_bias=False, kernel_init=unit, rngs=rngs) if labels else None

    def __call__(self, noise: PerSample, labels: Labels = None, augment: Vectors | None = None) -> Vectors:
        """In f32."""
        e = positional_embedding(noise, self.base, endpoint=False)
        if self.map_augment and augment is not None:
            e = e + self.map_augment(augment)
        e = self.map_layer1(nnx.silu(self.map_layer0(e)))
        if self.map_label:
            e = e + self.map_label(one_hot(labels, self.labels, len(noise)))
        return nnx.silu(e)


STYLE = Style(
    embedding=ADMEmbedding,
    adaptive=True,
    skip_scale=1.0,
    epsilon=1e-5,
    project_resampled=False,
    head_channels=64,
    attend_throughout=True,
    kernel=LECUN_THIRD,
    kernel_attention=LECUN_THIRD,
    kernel_last=zeros,
    bias_bound=1.0,
)


class ADMUNet(UNet):
    """The denoising network F with EDM's settings for ImageNet-64 as defaults: 296 million parameters.

    Arguments as of `SongUNet`; blocks attend at the sizes in `attention` in both directions, with a head for every 64
    channels. Raises ConfigError for settings out of range.
    """

    style = STYLE

    def __init__(
        self,
        image_size: int = 64,
        channels: int = 3,
        base: int = 192,
        mult: Sequence[int] = (1, 2, 3, 4),
        blocks: int = 3,
        attention: Sequence[int] = (32, 16, 8),
        labels: int = 1000,
        augment: int = 0,
        dropout: float = 0.0,
        precision: str = "f32",
        *,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(
            image_size, channels, base, mult, blocks, attention, labels, augment, dropout, precision, rngs=rngs
        )

    def ratio_head(self, width: float = 0.5, *, pooling: str = "mean", rngs: nnx.Rngs) -> ADMUNetRatio:
        """A fresh ratio network for the same images and labels: the encoder with `width` times the channels."""
        return ADMUNetRatio(**self._scaled(width), pooling=pooling, rngs=rngs)


class ADMUNetRatio(UNetRatio):
    """The encoder of `ADMUNet` as a ratio network; its arguments, and pooling: `mean` | `attention` over positions."""

    style = STYLE

    def __init__(
        self,
        image_size: int = 64,
        channels: int = 3,
        base: int = 96,
        mult: Sequence[int] = (1, 2, 3, 4),
        blocks: int = 3,
        attention: Sequence[int] = (32, 16, 8),
        labels: int = 1000,
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
