"""Encoder and decoder as one network from a visible image to an image, and the features that the encoder gives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbones import TimmEncoder
from .config import PMAEConfig, padded_size
from .decoders import ConvDecoder, LightDecoder, ViTDecoder
from .vit import ViTEncoder

POOLS = ("cls", "avg", "cls+avg", "tokens")


class Network(nn.Module):
    """The trained part of a model: all parameters, and nothing of the masking space.

    Compile it (``network.compile()``) or wrap it: the projections around it are no part of it and stay in float32.

    Parameters
    ----------
    config : of which everything is decided (:meth:`PMAEConfig.for_images`).
    image_shape : (C, H, W).
    drops_tokens : whether :meth:`forward` will be given `keep`; if not, the decoder's mask token is not trained.
    """

    def __init__(self, config: PMAEConfig, image_shape: tuple[int, int, int], drops_tokens: bool = False) -> None:
        super().__init__()
        channels, self.height, self.width = image_shape
        self.encoder: ViTEncoder | TimmEncoder
        # The caller's generator is left as it was; torch's layers draw from the default one and take no other.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)
            if config.backbone is not None:
                self.encoder = TimmEncoder(config.backbone, image_shape, config.pad, config.backbone_args)
            else:
                assert config.patch_size is not None
                size = padded_size(image_shape, config.patch_size, config.pad)
                self.encoder = ViTEncoder(
                    channels, size, config.patch_size, config.dim, config.depth, config.heads, config.mlp_ratio
                )
            self.decoder = _decoder(config, self.encoder, channels)
        if isinstance(self.decoder, ViTDecoder | ConvDecoder):
            self.decoder.mask_token.requires_grad_(drops_tokens)

    def forward(self, visible: Tensor, keep: Tensor | None = None) -> Tensor:
        """Predicted images (B, C, H, W) of visible ones, both standardised, in their dtype.

        Parameters
        ----------
        visible : (B, C, H, W)
        keep : int64 (B, n), the patches that the encoder sees, counted row by row; None: all.
        """
        prediction: Tensor = self.decoder(self.encoder.encode(self.padded(visible), keep), keep)
        return prediction[..., : self.height, : self.width].to(visible.dtype)

    def features(self, images: Tensor, pool: str) -> Tensor:
        """Features of standardised images (B, C, H, W).

        Parameters
        ----------
        pool : "cls" (the CLS token), "avg" (the mean of the patch tokens; with a convolutional backbone what the model
            gives its classifier), "cls+avg" (both, in this order) or "tokens" (all patch tokens).

        Returns
        -------
        (B, d), or (B, h·w, d) for "tokens".

        Raises
        ------
        ValueError
            Unknown `pool`, or one that the encoder does not have.
        """
        self.check_pool(pool)
        encoder, x = self.encoder, self.padded(images)
        prefix = encoder.num_prefix_tokens
        if pool == "avg" and prefix == 0 and isinstance(encoder, TimmEncoder):
            return encoder.pooled(x)
        tokens = encoder.encode(x)
        cls, patches = tokens[:, 0], tokens[:, prefix:]
        if pool == "tokens":
            return patches
        return {"cls": cls, "avg": patches.mean(1), "cls+avg": torch.cat([cls, patches.mean(1)], dim=1)}[pool]

    @property
    def usual_pool(self) -> str:
        """ "cls", as in the paper, or "avg" where the encoder has no CLS token."""
        return "cls" if self.encoder.num_prefix_tokens else "avg"

    def check_pool(self, pool: str) -> None:
        """Raises ValueError for a pool that :meth:`features` does not know or that the encoder does not have."""
        if pool not in POOLS:
            raise ValueError(f"pool is {pool!r}; it has to be one of {', '.join(POOLS)}")
        if "cls" in pool and self.encoder.num_prefix_tokens == 0:
            raise ValueError(f"pool={pool!r}: this encoder has no CLS token; take pool='avg' or 'tokens'")

    def padded(self, images: Tensor) -> Tensor:
        """Images as the encoder sees them: in the dtype of the weights, zeros at the bottom and right if need be."""
        (h, w), stride = self.encoder.grid, self.encoder.stride
        below, right = h * stride - self.height, w * stride - self.width
        images = images.to(next(self.parameters()).dtype)
        return F.pad(images, (0, right, 0, below)) if below or right else images


def _decoder(config: PMAEConfig, encoder: ViTEncoder | TimmEncoder, channels: int) -> nn.Module:
    given = (encoder.embed_dim, encoder.num_prefix_tokens, encoder.grid, encoder.stride, channels)
    if config.decoder == "light":
        return LightDecoder(*given)
    if config.decoder == "conv":
        return ConvDecoder(*given, width=config.decoder_dim)
    return ViTDecoder(*given, width=config.decoder_dim, depth=config.decoder_depth, heads=config.decoder_heads)
