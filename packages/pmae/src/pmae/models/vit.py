"""The paper's encoder: timm's Vision Transformer with fixed sine–cosine positions, initialised as in MAE.

Sizes and representation are those of arXiv:2502.06314; positions, initial values and dropped tokens those of masked
autoencoders (He et al. 2022, arXiv:2111.06377).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

LayerNorm: Any = partial(nn.LayerNorm, eps=1e-6)


class ViTEncoder(VisionTransformer):
    """Vision Transformer with one CLS token. Its state is that of timm's class, under the same names.

    Parameters
    ----------
    channels, size : C and (H, W) of the images, both multiples of `patch_size`.
    dim, depth, heads, mlp_ratio : as in :class:`~pmae.models.config.PMAEConfig`.

    Attributes
    ----------
    stride : pixels of a patch's side.
    grid : patches per column and per row (h, w).
    """

    def __init__(
        self, channels: int, size: tuple[int, int], patch_size: int, dim: int, depth: int, heads: int, mlp_ratio: float
    ) -> None:
        super().__init__(
            img_size=size, patch_size=patch_size, in_chans=channels, num_classes=0, embed_dim=dim, depth=depth,
            num_heads=heads, mlp_ratio=mlp_ratio, norm_layer=LayerNorm, weight_init="skip",
        )  # fmt: skip
        self.stride = patch_size
        self.grid = (size[0] // patch_size, size[1] // patch_size)
        initialize(self)
        assert self.cls_token is not None
        nn.init.normal_(self.cls_token, std=0.02)
        self.pos_embed = nn.Parameter(positions(self.grid, dim, prefix=1), requires_grad=False)

    def encode(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens after the final norm, CLS first.

        Parameters
        ----------
        images : (B, C, H, W), standardised.
        keep : int64 (B, n), the patches that the encoder sees, row by row; None: all h·w.

        Returns
        -------
        (B, 1 + n, dim)
        """
        x = self._pos_embed(self.patch_embed(images))
        if keep is not None:
            x = torch.cat([x[:, :1], x[:, 1:].gather(1, keep[..., None].expand(-1, -1, x.shape[-1]))], dim=1)
        return self.norm(self.blocks(x))


def positions(grid: tuple[int, int], dim: int, prefix: int) -> Tensor:
    """Sine–cosine codes (1, prefix + h·w, dim) of the cells of a grid, row by row: columns in the first half of the
    channels, rows in the second, as in MAE; zero for the prefix tokens."""
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    frequencies = 10_000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    angles = [place.flatten()[:, None] * frequencies for place in (columns, rows)]
    codes = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
    return torch.cat([codes.new_zeros(prefix, dim), codes])[None].float()


def initialize(module: nn.Module) -> None:
    """MAE's initial values in place: linear maps, the patch embedding's included, Xavier-uniform with zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(part.weight.view(part.weight.shape[0], -1))
            if part.bias is not None:
                nn.init.zeros_(part.bias)
