"""Any other timm model as the encoder: component masking drops no token, so convolutional networks can be trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor, nn

from .config import padded_size


class TimmEncoder(nn.Module):
    """A timm model seen as tokens: the cells of its last feature map, row by row.

    Parameters that only the model's own classifier uses, such as ConvNeXt's last norm, are not trained.

    Parameters
    ----------
    name : of a timm model that has a feature map or patch tokens, such as resnet18, convnext_atto,
        swin_tiny_patch4_window7_224 or vit_tiny_patch16_224.
    image_shape : (C, H, W), any C.
    pad : see :func:`~pmae.models.config.padded_size`.
    options : further arguments of ``timm.create_model``.

    Attributes
    ----------
    stride, grid : pixels per cell and cells per column and row (h, w).
    embed_dim, num_prefix_tokens : width of a token; tokens before those of the grid.

    Raises
    ------
    ValueError
        timm knows no such model, or it has no map of features.
    ShapeError
        The image is not a multiple of the model's stride, and `pad` is False.
    """

    backbone: Any

    def __init__(
        self, name: str, image_shape: tuple[int, int, int], pad: bool = False, options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        if not timm.is_model(name):
            near = timm.list_models(f"*{name}*")[:5] or timm.list_models("resnet*")[:3]
            raise ValueError(f"timm has no model {name!r}; there are, among others, {', '.join(near)}")
        arguments = dict(in_chans=image_shape[0], num_classes=0, **(options or {}))
        with torch.device("meta"):
            outline: Any = timm.create_model(name, **arguments)
        reduction = int(outline.feature_info[-1]["reduction"])
        size = padded_size(image_shape, reduction, pad)
        pretrained = timm.get_pretrained_cfg(name)
        if pretrained is not None and pretrained.fixed_input_size:
            arguments["img_size"] = size
        self.name, self.arguments = name, arguments
        self.backbone = timm.create_model(name, **arguments)
        self.embed_dim = int(self.backbone.num_features)
        self.num_prefix_tokens = int(getattr(self.backbone, "num_prefix_tokens", 0))
        self.stride, self.grid = self._probe(image_shape[0], size)

    def encode(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens (B, num_prefix_tokens + h·w, embed_dim) of standardised images (B, C, H, W); it drops none."""
        assert keep is None
        x = self.backbone.forward_features(images)
        if x.ndim == 4:
            x = x.flatten(1, 2) if self._channels_last(x) else x.flatten(2).transpose(1, 2)
        return x

    def pooled(self, images: Tensor) -> Tensor:
        """Features (B, d) that the model itself gives its classifier."""
        return self.backbone.forward_head(self.backbone.forward_features(images), pre_logits=True)

    def _channels_last(self, x: Tensor) -> bool:
        return getattr(self.backbone, "output_fmt", "NCHW") == "NHWC" or x.shape[1] != self.embed_dim

    def _probe(self, channels: int, size: tuple[int, int]) -> tuple[int, tuple[int, int]]:
        training = self.backbone.training
        with torch.enable_grad():
            x = self.backbone.eval().forward_features(torch.zeros(1, channels, *size))
            parameters = [p for p in self.backbone.parameters() if p.requires_grad]
            gradients = torch.autograd.grad(x.sum(), parameters, allow_unused=True)
        self.backbone.train(training)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)
        if x.ndim == 4:
            height, width = x.shape[1:3] if self._channels_last(x) else x.shape[2:]
            stride = size[0] // height
        else:
            stride = self.backbone.feature_info[-1]["reduction"]
            height, width = size[0] // stride, size[1] // stride
            if x.ndim != 3 or x.shape[1] != self.num_prefix_tokens + height * width:
                raise ValueError(f"timm model {self.name} has no map of features: its output is {tuple(x.shape)}")
        return stride, (height, width)
