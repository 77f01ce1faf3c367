"""What a model is made of and how it is masked: one frozen value, a table of presets, the choice of a patch size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from math import gcd
from typing import Any, Literal, Self

from ..errors import ShapeError

_PAPER_DECODER = dict(decoder_dim=512, decoder_depth=8, decoder_heads=16)

# vit_t8_paper is what the released code ran: 12 heads, not the intended 3 (a misspelt key), and one mask per step.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": dict(dim=64, depth=3, heads=4, decoder_dim=64, decoder_depth=1, decoder_heads=4,
                 masks_per_batch=4),
    "vit_t8": dict(dim=192, depth=12, heads=3, masks_per_batch=4, **_PAPER_DECODER),
    "vit_t8_paper": dict(dim=192, depth=12, heads=12, rule="paper", reduction="count", residual="drop",
                         masks_per_batch=1, **_PAPER_DECODER),
    "vit_s16": dict(dim=384, depth=12, heads=6, masks_per_batch=4, **_PAPER_DECODER),
    "vit_b16": dict(dim=768, depth=12, heads=12, masks_per_batch=4, **_PAPER_DECODER),
}  # fmt: skip

#: Arguments of :func:`pmae.fit` that belong to a preset: how the paper trained, where that differs from our defaults.
TRAINING: dict[str, dict[str, Any]] = {
    "vit_t8_paper": dict(epochs=800, batch_size=512, warmup="exp10", warmup_epochs=40, decay_all=True),
}

_PREFERRED_PATCH = {"vit_s16": 16, "vit_b16": 16}  # 8 for every other preset and for none
_FEWEST_PATCHES = 16  # a patch size is not chosen such that an image has fewer


@dataclass(frozen=True, init=False)
class PMAEConfig:
    """Network and masking of a :class:`PMAE` or :class:`PixelMAE`.

    ``PMAEConfig("vit_t8", ratio=0.2)``: settings given by name win over the preset's, and these over the defaults.

    Attributes
    ----------
    preset : name in :data:`PRESETS`, or None for the defaults below.
    backbone : name of a timm model to be the encoder, such as "resnet18"; None: the Vision Transformer described by
        `patch_size`, `dim`, `depth`, `heads` and `mlp_ratio`.
    backbone_args : further arguments of ``timm.create_model`` for `backbone`, such as {"output_stride": 8}.
    patch_size : side of a patch in pixels; None: chosen for the images, see :func:`choose_patch_size`.
    dim, depth, heads, mlp_ratio : width, blocks, attention heads, and MLP width in units of `dim`.
    decoder : "vit" (transformer on all tokens), "light" (one linear map per token), "conv" (upsampling convolutions);
        None: "conv" with a `backbone`, else "vit".
    decoder_dim, decoder_depth, decoder_heads : sizes of the decoder; depth and heads are for "vit" alone.
    ratio : hidden share of the variance (PMAE) or of the patches (PixelMAE), in (0, 1), or a pair from which each draw
        takes a uniform value; None: 0.15 for PMAE, 0.75 for PixelMAE. 0, for PixelMAE alone, is a plain autoencoder.
    rule : how components are drawn, see :class:`pmae.samplers.ComponentSampler`. PixelMAE does not use it.
    masks_per_batch : masks per step, each for a contiguous slice of the batch, or "sample" for one per image. PixelMAE
        always draws one per image.
    sync_masks : whether all ranks of a distributed run draw the same masks.
    reduction, gamma : normalisation ("variance" or "count") and component weights of the loss.
    target : "components" (the hidden coefficients) or "image" (the hidden part as a whole image).
    residual : whether what lies outside the span of the basis stays visible ("keep") or not ("drop").
    token_drop : share of patch tokens, of the visible image of PMAE, that the encoder does not see.
    norm_pix : PixelMAE: each target patch has mean 0 and variance 1.
    pad : append zeros (the mean image) at the bottom and right where the patch size does not divide the image.
    seed : of the initial weights and of the masks.

    Raises
    ------
    ValueError
        Unknown preset or setting, or a value that no model has; the message lists what there is.
    """

    preset: str | None = None
    backbone: str | None = None
    backbone_args: Mapping[str, Any] | None = None
    patch_size: int | None = None
    dim: int = 192
    depth: int = 12
    heads: int = 3
    mlp_ratio: float = 4.0
    decoder: Literal["vit", "light", "conv"] | None = None
    decoder_dim: int = 128
    decoder_depth: int = 2
    decoder_heads: int = 4
    ratio: float | tuple[float, float] | None = None
    rule: str = "unbiased"
    masks_per_batch: int | Literal["sample"] = 1
    sync_masks: bool = False
    reduction: Literal["variance", "count"] = "variance"
    gamma: float = 0.0
    target: Literal["components", "image"] = "components"
    residual: Literal["keep", "drop"] = "keep"
    token_drop: float = 0.0
    norm_pix: bool = False
    pad: bool = False
    seed: int = 0

    def __init__(self, preset: str | None = None, **settings: Any) -> None:
        if preset is not None and preset not in PRESETS:
            raise ValueError(f"unknown preset {preset!r}; there are {', '.join(PRESETS)}")
        defaults = {field.name: field.default for field in fields(self)}
        for name in settings.keys() - defaults.keys():
            near = get_close_matches(name, defaults, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(defaults)}"
            raise ValueError(f"unknown model setting {name!r}; {hint}")
        for name, value in (defaults | PRESETS.get(preset or "", {}) | settings | {"preset": preset}).items():
            object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)
        self._validate()

    def _validate(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; it has to be one of {', '.join(map(repr, allowed))}"
                )
        for name in ("dim", "depth", "heads", "decoder_dim", "decoder_depth", "decoder_heads"):
            _require_count(name, getattr(self, name))
        if self.patch_size is not None:
            _require_count("patch_size", self.patch_size)
        if self.masks_per_batch != "sample":
            _require_count("masks_per_batch", self.masks_per_batch, ' or "sample"')
        for width, heads in (("dim", "heads"), ("decoder_dim", "decoder_heads")):
            w, h = getattr(self, width), getattr(self, heads)
            unused = self.backbone is not None if width == "dim" else self.decoder in ("light", "conv")
            if not unused and (w % h or w % 4):
                raise ValueError(f"{width} is {w}; it has to be a multiple of {heads} = {h} and of 4")
        for name in ("gamma", "token_drop"):
            value = getattr(self, name)
            if not 0 <= value <= 1 or (name == "token_drop" and value == 1):
                raise ValueError(f"{name} is {value!r}; it has to be in [0, 1{')' if name == 'token_drop' else ']'}")
        if self.token_drop and self.backbone is not None:
            raise ValueError(f"backbone {self.backbone} cannot drop tokens: token_drop has to be 0 with a backbone")
        if self.token_drop and self.decoder == "light":
            raise ValueError(
                "decoder='light' sees each token alone and cannot fill dropped ones: token_drop has to be 0"
            )
        ratios = () if self.ratio is None else self.ratio if isinstance(self.ratio, tuple) else (self.ratio,)
        if not all(isinstance(r, int | float) and 0 <= r < 1 for r in ratios) or len(ratios) > 2:
            raise ValueError(f"ratio is {self.ratio!r}; it has to be a hidden share in (0, 1), or a pair of them")
        if len(ratios) == 2 and not 0 < ratios[0] <= ratios[1]:
            raise ValueError(f"ratio is {self.ratio!r}; a pair has to be (low, high) with 0 < low ≤ high < 1")

    def to_dict(self) -> dict[str, Any]:
        """All settings, in plain types for YAML or JSON; ``PMAEConfig(**config.to_dict())`` is equal to the config."""
        plain = asdict(self)
        plain["ratio"] = list(self.ratio) if isinstance(self.ratio, tuple) else self.ratio
        plain["backbone_args"] = dict(self.backbone_args) if self.backbone_args else None
        return plain

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """The config of a :meth:`to_dict`."""
        return cls(**settings)

    def for_images(self, image_shape: tuple[int, int, int], ratio: float) -> Self:
        """With all decided that depends on the images (C, H, W) and on the method, whose usual ratio is given."""
        decided: dict[str, Any] = {}
        if self.ratio is None:
            decided["ratio"] = ratio
        if self.decoder is None:
            decided["decoder"] = "vit" if self.backbone is None else "conv"
        if self.patch_size is None and self.backbone is None:
            preferred = _PREFERRED_PATCH.get(self.preset or "", 8)
            decided["patch_size"] = preferred if self.pad else choose_patch_size(image_shape, preferred)
        return replace(self, **decided)


_CHOICES: dict[str, tuple[Any, ...]] = {
    "decoder": (None, "vit", "light", "conv"),
    "reduction": ("variance", "count"),
    "target": ("components", "image"),
    "residual": ("keep", "drop"),
}


def _require_count(name: str, value: object, also: str = "") -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}; it has to be a positive integer{also}")


def choose_patch_size(image_shape: tuple[int, int, int], preferred: int = 8) -> int:
    """Largest patch side ≤ `preferred` that divides H and W and gives at least 16 patches: 7 for 28×28, 8 for 32×32.

    Raises
    ------
    ShapeError
        None is left that is at least a quarter of the preferred one.
    """
    _, height, width = image_shape
    common = gcd(height, width)
    for patch in range(preferred, max(1, preferred // 4) - 1, -1):
        if common % patch == 0 and height * width >= _FEWEST_PATCHES * patch**2:
            return patch
    raise ShapeError(
        f"no patch size near {preferred} divides {height}×{width} images into {_FEWEST_PATCHES} patches or more: "
        f"{_nearest_sizes(height, width, preferred)}, or set patch_size or pad=True (--pad)"
    )


def padded_size(image_shape: tuple[int, int, int], stride: int, pad: bool) -> tuple[int, int]:
    """Height and width of the images (C, H, W) as a network of this stride sees them: the next multiples with `pad`.

    Raises
    ------
    ShapeError
        H or W is not a multiple of the stride, and `pad` is False. The message names the nearest sizes that are.
    """
    _, height, width = image_shape
    if height % stride == width % stride == 0:
        return height, width
    if not pad:
        raise ShapeError(
            f"images are {height}×{width}, no multiple of the network's patches of {stride}×{stride} pixels: "
            f"{_nearest_sizes(height, width, stride)}, or set pad=True (--pad) or another patch_size"
        )
    return -(-height // stride) * stride, -(-width // stride) * stride


def _nearest_sizes(height: int, width: int, stride: int) -> str:
    below = [max(1, side // stride) * stride for side in (height, width)]
    above = [-(-side // stride) * stride for side in (height, width)]
    sizes = [f"{h}×{w}" for h, w in (below, above)]
    return "use images of " + " or ".join(dict.fromkeys(sizes))
