"""The U-Net of EDM in both its styles (Karras et al. 2022, appendix F.7), and its encoder as a ratio network.

Blocks and parameters are named as in EDM's published weights, which `convert` therefore maps one to one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import zeros
from jaxtyping import Array

from ..errors import ConfigError
from ..shapes import PerSample
from .layers import (
    Images,
    Initializer,
    Labels,
    Readout,
    Vectors,
    attend,
    body_dtype,
    check_settings,
    downsample,
    group_norm,
    uniform,
    upsample,
)


@dataclass(frozen=True)
class Style:
    """What tells DDPM++ from ADM."""

    embedding: Callable[..., Any]  # (base, labels, augment, rngs) -> (noise, labels, augment) -> (n, 4 base)
    adaptive: bool  # the embedding scales and shifts; else it is added
    skip_scale: float  # the sum of both branches is multiplied by this
    epsilon: float  # of group normalisation
    project_resampled: bool  # a block that resamples has a projection on its skip, even between equal widths
    head_channels: int | None  # channels of an attention head; None: one head
    attend_throughout: bool  # on the way up every block of a level with attention attends; else only the last
    kernel: Initializer
    kernel_attention: Initializer
    kernel_last: Initializer
    bias_bound: float  # biases start uniform within this over the square root of the fan-in

    def linear(self, into: int, out: int, dtype: Any, rngs: nnx.Rngs, kernel: Any = None) -> nnx.Linear:
        """Also the style's 1 x 1 convolution."""
        init = kernel or self.kernel
        bias = self._bias(init, into)
        return nnx.Linear(into, out, kernel_init=init, bias_init=bias, dtype=dtype, rngs=rngs)

    def conv(self, into: int, out: int, dtype: Any, rngs: nnx.Rngs, kernel: Any = None) -> nnx.Conv:
        """3 x 3."""
        init = kernel or self.kernel
        bias = self._bias(init, 9 * into)
        return nnx.Conv(into, out, (3, 3), kernel_init=init, bias_init=bias, dtype=dtype, rngs=rngs)

    def _bias(self, kernel: Any, fan_in: int) -> Any:
        silent = self.bias_bound == 0 or kernel is self.kernel_last
        return zeros if silent else uniform(self.bias_bound / math.sqrt(fan_in))


class ResidualBlock(nnx.Module):
    """EDM's U-Net block: norm-SiLU-(resample)-conv, embedding, norm-SiLU-dropout-conv, skip, then attention."""

    def __init__(
        self,
        into: int,
        out: int,
        embedding: int,
        style: Style,
        *,
        resample: str = "",
        attention: bool = False,
        dropout: float,
        dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        self.resample, self.dropout, self.dtype = resample, dropout, dtype
        self.adaptive, self.skip_scale = style.adaptive, style.skip_scale
        self.norm0 = group_norm(into, style.epsilon, dtype, rngs)
        self.conv0 = style.conv(into, out, dtype, rngs)
        self.affine = style.linear(embedding, out * (1 + style.adaptive), jnp.float32, rngs)
        self.norm1 = group_norm(out, style.epsilon, dtype, rngs)
        self.conv1 = style.conv(out, out, dtype, rngs, style.kernel_last)
        projected = into != out or (resample and style.project_resampled)
        self.skip = style.linear(into, out, dtype, rngs) if projected else None
        self.heads = 0
        if attention:
            most = out // style.head_channels if style.head_channels else 1
            self.heads = next(h for h in range(max(1, most), 0, -1) if out % h == 0)
            self.norm2 = group_norm(out, style.epsilon, dtype, rngs)
            self.qkv = style.linear(out, 3 * out, dtype, rngs, style.kernel_attention)
            self.proj = style.linear(out, out, dtype, rngs, style.kernel_last)

    def __call__(self, x: Images, embedding: Vectors, dropout_key: Array | None = None) -> Images:
        """x (n, h, w, into), embedding (n, c) -> (n, h', w', out) in the body's dtype."""
        resample = {"": lambda x: x, "up": upsample, "down": downsample}[self.resample]
        h = self.conv0(resample(nnx.silu(self.norm0(x))))
        modulation = self.affine(embedding)[:, None, None].astype(self.dtype)
        if self.adaptive:
            scale, shift = jnp.split(modulation, 2, axis=-1)
            h = nnx.silu(self.norm1(h) * (1 + scale) + shift)
        else:
            h = nnx.silu(self.norm1(h + modulation))
        if dropout_key is not None and self.dropout:
            keep = jax.random.bernoulli(dropout_key, 1 - self.dropout, h.shape)
            h = jnp.where(keep, h / (1 - self.dropout), 0)
        x = resample(x)
        x = (self.conv1(h) + (self.skip(x) if self.skip else x)) * self.skip_scale
        if self.heads:
            n, height, width, c = x.shape
            a = attend(self.qkv(self.norm2(x)).reshape(n, height * width, 3 * c), self.heads)
            x = (self.proj(a).reshape(x.shape) + x) * self.skip_scale
        return x


class UNetEncoder(nnx.Module):
    """The embedding and the descending half, which denoiser and ratio network share."""

    style: Style

    def __init__(
        self,
        image_size: int,
        channels: int,
        base: int,
        mult: Sequence[int],
        blocks: int,
        attention: Sequence[int],
        labels: int,
        augment: int,
        dropout: float,
        precision: str,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        check_settings(channels=(channels, 1), base=(base, 4), blocks=(blocks, 1), labels=(labels, 0))
        check_settings(augment=(augment, 0), levels=(len(mult), 1), mult=(min(mult, default=1), 1))
        if image_size < 1 or image_size % 2 ** (len(mult) - 1):
            multiple = f"a multiple of {2 ** (len(mult) - 1)}"
            raise ConfigError(f"image_size={image_size} has to be {multiple}, as {len(mult)} levels halve it")
        if base % 2:
            raise ConfigError(f"base={base} has to be even")
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout has to be in [0, 1); got {dropout}")
        # Constructor arguments are kept under their names: `nets.config` reads them back.
        self.image_size, self.channels, self.base, self.mult = image_size, channels, base, tuple(mult)
        self.blocks, self.attention, self.labels = blocks, tuple(attention), labels
        self.augment, self.dropout, self.precision = augment, dropout, precision
        self.dtype = body_dtype(precision)
        self.embedding = self.style.embedding(base, labels, augment, rngs=rngs)
        now, widths = base, [base]
        enc: dict[str, Any] = {f"{image_size}x{image_size}_conv": self.style.conv(channels, now, self.dtype, rngs)}
        for level, factor in enumerate(self.mult):
            size = image_size >> level
            if level:
                enc[f"{size}x{size}_down"] = self._block(now, now, rngs, resample="down")
                widths.append(now)
            for index in range(blocks):
                enc[f"{size}x{size}_block{index}"] = self._block(now, base * factor, rngs, attention=size in attention)
                now = base * factor
                widths.append(now)
        # A split and merged nnx.Dict comes back sorted by name, so the order is kept apart.
        self.enc, self.encoder_order, self.encoder_widths = nnx.Dict(enc), tuple(enc), tuple(widths)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one sample: (height, width, channels)."""
        return self.image_size, self.image_size, self.channels

    @property
    def block_names(self) -> tuple[str, ...]:
        """Names of what `features` lists."""
        return tuple(f"enc.{name}" for name in self.encoder_order)

    def features(self, x: Images, noise: PerSample, labels: Labels = None) -> list[Images]:
        """The activations after each of `block_names`, (n, h', w', c') each; arguments as of a call."""
        return self._encode(x, self.embedding(noise, labels), None)

    def _encode(self, x: Images, embedding: Vectors, dropout_key: Array | None) -> list[Images]:
        h, outputs = x.astype(self.dtype), []
        for place, name in enumerate(self.encoder_order):
            block = self.enc[name]
            h = block(h, embedding, _fold(dropout_key, place)) if place else block(h)
            outputs.append(h)
        return outputs

    def _block(self, into: int, out: int, rngs: nnx.Rngs, resample: str = "", attention: bool = False) -> ResidualBlock:
        return ResidualBlock(
            into,
            out,
            4 * self.base,
            self.style,
            resample=resample,
            attention=attention,
            dropout=self.dropout,
            dtype=self.dtype,
            rngs=rngs,
        )

    def _scaled(self, width: float) -> dict[str, Any]:
        """This network's settings with `width` times the channels, for a ratio network."""
        base = 8 * max(1, round(width * self.base / 8))
        same = ("image_size", "channels", "mult", "blocks", "attention", "labels", "precision")
        return {"base": base, **{name: getattr(self, name) for name in same}}


class UNet(UNetEncoder):
    """The denoising network F: encoder, then the ascending half with the encoder's outputs joined in."""

    def __init__(self, *settings: Any, rngs: nnx.Rngs) -> None:
        super().__init__(*settings, rngs=rngs)
        dec: dict[str, Any] = {}
        widths, joined = list(self.encoder_widths), []
        now = widths[-1]
        for level, factor in reversed(list(enumerate(self.mult))):
            size = self.image_size >> level
            if level == len(self.mult) - 1:
                dec[f"{size}x{size}_in0"] = self._block(now, now, rngs, attention=True)
                dec[f"{size}x{size}_in1"] = self._block(now, now, rngs)
            else:
                dec[f"{size}x{size}_up"] = self._block(now, now, rngs, resample="up")
            for index in range(self.blocks + 1):
                name, into, now = f"{size}x{size}_block{index}", now + widths.pop(), self.base * factor
                attends = size in self.attention and (self.style.attend_throughout or index == self.blocks)
                dec[name] = self._block(into, now, rngs, attention=attends)
                joined.append(name)
        self.dec, self.decoder_order, self.joined = nnx.Dict(dec), tuple(dec), tuple(joined)
        self.out_norm = group_norm(now, self.style.epsilon, self.dtype, rngs)
        self.out_conv = self.style.conv(now, self.channels, self.dtype, rngs, self.style.kernel_last)

    @property
    def block_names(self) -> tuple[str, ...]:
        """Names of what `features` lists."""
        return *super().block_names, *(f"dec.{name}" for name in self.decoder_order)

    def __call__(
        self,
        x: Images,
        noise: PerSample,
        labels: Labels = None,
        augment: Vectors | None = None,
        dropout_key: Array | None = None,
    ) -> Images:
        """F(x, noise, labels) of EDM, (n, h, w, channels) in f32.

        Args:
            x: c_in times the noised images.
            noise: c_noise, (n,).
            labels: (n,) integers below `labels`; None is EDM's all-zero label.
            augment: (n, augment) augmentation labels, None for no augmentation.
            dropout_key: a `jax.random.key` in training; None for no dropout.
        """
        h = self._outputs(x, self.embedding(noise, labels, augment), dropout_key)[-1]
        return self.out_conv(nnx.silu(self.out_norm(h))).astype(jnp.float32)

    def features(self, x: Images, noise: PerSample, labels: Labels = None) -> list[Images]:
        """The activations after each of `block_names`, (n, h', w', c') each; arguments as of a call."""
        return self._outputs(x, self.embedding(noise, labels), None)

    def _outputs(self, x: Images, embedding: Vectors, dropout_key: Array | None) -> list[Images]:
        outputs = self._encode(x, embedding, dropout_key)
        skips, h = list(outputs), outputs[-1]
        for place, name in enumerate(self.decoder_order, len(outputs)):
            if name in self.joined:
                h = jnp.concatenate([h, skips.pop()], axis=-1)
            h = self.dec[name](h, embedding, _fold(dropout_key, place))
            outputs.append(h)
        return outputs


class UNetRatio(UNetEncoder):
    """The encoder half, pooled to one number a sample that is 0 at the start.

    Up to `readout` its parameters have the names of the denoiser's, and with equal settings their shapes.
    """

    def __init__(self, *settings: Any, pooling: str, rngs: nnx.Rngs) -> None:
        super().__init__(*settings, rngs=rngs)
        self.pooling = pooling
        self.readout = Readout(self.encoder_widths[-1], pooling, self.style.epsilon, self.dtype, rngs=rngs)

    def __call__(
        self, x: Images, noise: PerSample, labels: Labels = None, dropout_key: Array | None = None
    ) -> PerSample:
        """Logits (n,) in f32; arguments as of the denoising network."""
        return self.readout(self._encode(x, self.embedding(noise, labels), dropout_key)[-1])


def _fold(key: Array | None, place: int) -> Array | None:
    return None if key is None else jax.random.fold_in(key, place)
