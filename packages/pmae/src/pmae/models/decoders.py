"""From the encoder's tokens to an image of standardised pixels: by a transformer, a linear map, or convolutions.

All take tokens (B, prefix + n, dim), the encoder's prefix tokens (CLS) first, and for dropped tokens the places `keep`
(B, n) of those that are there; all give images (B, C, h·stride, w·stride).
"""

from __future__ import annotations

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from .patches import unpatchify
from .vit import LayerNorm, initialize, positions


class ViTDecoder(nn.Module):
    """The decoder of MAE, which is the paper's: transformer blocks on all tokens, then a linear map to pixels."""

    pos_embed: Tensor

    def __init__(
        self,
        dim: int,
        prefix: int,
        grid: tuple[int, int],
        stride: int,
        channels: int,
        width: int,
        depth: int,
        heads: int,
    ) -> None:
        super().__init__()
        self.prefix, self.grid, self.channels = prefix, grid, channels
        self.embed = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.Sequential(*(Block(width, heads, qkv_bias=True, norm_layer=LayerNorm) for _ in range(depth)))
        self.norm = LayerNorm(width)
        self.head = nn.Linear(width, stride**2 * channels)
        self.register_buffer("pos_embed", positions(grid, width, prefix), persistent=False)
        initialize(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """Images of tokens; see the module."""
        x = _restore(self.embed(tokens), keep, self.mask_token, self.prefix, self.grid)
        x = self.head(self.norm(self.blocks(x + self.pos_embed)))
        return unpatchify(x[:, self.prefix :], self.grid, self.channels)


class LightDecoder(nn.Module):
    """One linear map from a token to the pixels of its patch, as in SimMIM (arXiv:2111.09886): no token may be missing.

    The prefix tokens' mean is added to every token, without which nothing would train them.
    """

    def __init__(self, dim: int, prefix: int, grid: tuple[int, int], stride: int, channels: int) -> None:
        super().__init__()
        self.prefix, self.grid, self.channels = prefix, grid, channels
        self.head = nn.Linear(dim, stride**2 * channels)
        initialize(self)

    def forward(self, tokens: Tensor, keep: None = None) -> Tensor:
        """Images of tokens; see the module."""
        return unpatchify(self.head(_merge_prefix(tokens, self.prefix)), self.grid, self.channels)


class ConvDecoder(nn.Module):
    """Convolutions that upsample the grid by one prime factor of the stride after the other, each halving the width.

    Prefix tokens take part as in :class:`LightDecoder`.
    """

    def __init__(self, dim: int, prefix: int, grid: tuple[int, int], stride: int, channels: int, width: int) -> None:
        super().__init__()
        self.prefix, self.grid = prefix, grid
        self.embed = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.normal_(self.mask_token, std=0.02)
        stages: list[nn.Module] = []
        for factor in prime_factors(stride):
            narrower = max(16, width // 2)
            stages += [
                nn.Upsample(scale_factor=factor),
                nn.Conv2d(width, narrower, 3, padding=1),
                nn.GroupNorm(1, narrower),
                nn.GELU(),
            ]
            width = narrower
        self.stages = nn.Sequential(*stages)
        self.head = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """Images of tokens; see the module."""
        x = _restore(self.embed(tokens), keep, self.mask_token, self.prefix, self.grid)
        x = _merge_prefix(x, self.prefix).transpose(1, 2).reshape(len(x), -1, *self.grid)
        return self.head(self.stages(x))


def _restore(tokens: Tensor, keep: Tensor | None, mask_token: Tensor, prefix: int, grid: tuple[int, int]) -> Tensor:
    """Prefix and all h·w tokens: the given ones at their places `keep`, the mask token everywhere else."""
    if keep is None:
        return tokens
    batch, _, width = tokens.shape
    everywhere = mask_token.to(tokens.dtype).expand(batch, grid[0] * grid[1], width)
    full = everywhere.scatter(1, keep[..., None].expand(-1, -1, width), tokens[:, prefix:])
    return torch.cat([tokens[:, :prefix], full], dim=1)


def _merge_prefix(tokens: Tensor, prefix: int) -> Tensor:
    return tokens[:, prefix:] + tokens[:, :prefix].mean(1, keepdim=True) if prefix else tokens


def prime_factors(number: int) -> list[int]:
    """Prime factors in ascending order: 28 → [2, 2, 7], 1 → []."""
    factors, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return factors
