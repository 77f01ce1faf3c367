"""PMAE (arXiv:2502.06314): hide principal components of an image and predict them from the rest. And its twin, MAE.

Both are the same network. PMAE takes the hidden components out of the image and shows the encoder all patches of what
is left; MAE (arXiv:2111.06377) shows it fewer patches. A plain autoencoder is :class:`PixelMAE` with ``ratio=0``.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import DataError, ShapeError
from ..images import check_unit_scale
from ..samplers import ComponentSampler
from ..space import Hidden, MaskSpace
from ..standardize import Standardizer
from . import pretrained
from .config import PMAEConfig
from .network import Network
from .patches import PatchSampler, noise, patchify, pixels_of, unpatchify


class PMAEOutput(NamedTuple):
    """What a forward pass gives; images are standardised, (B, C, H, W).

    Attributes
    ----------
    loss : scalar, to be minimised.
    fvu : scalar without gradient, fraction of the hidden variance that is left unexplained; 1 for predicting zeros.
    prediction : the network's image, of which the hidden part is what the loss judges.
    visible : what the encoder saw.
    mask : bool, True where hidden, on the CPU: groups of components (n_groups,), (k, n_groups) for k slices of the
        batch, or (B, n_groups); of PixelMAE patches (B, h·w).
    masked_share : hidden share of the variance (of PixelMAE: of the patches), mean over masks.
    """

    loss: Tensor
    fvu: Tensor
    prediction: Tensor
    visible: Tensor
    mask: Tensor
    masked_share: float


class _Autoencoder(nn.Module):
    """What PMAE and PixelMAE share: standardised images in, features out, files."""

    config: PMAEConfig
    network: Network
    standardizer: Standardizer
    image_shape: tuple[int, int, int]

    def features(self, images: Tensor, pool: str | None = None, standardized: bool = False) -> Tensor:
        """Representations of whole images (B, C, H, W), which are on the [0, 1] scale unless `standardized`.

        `pool` is "cls", "avg", "cls+avg" or "tokens", see :meth:`pmae.models.network.Network.features`; None: "cls", as
        in the paper, or "avg" where the encoder has no CLS token. Gradients flow.

        Raises ShapeError, DataError, ValueError.
        """
        pool = self.network.usual_pool if pool is None else pool
        return self.network.features(self._standardized(images, standardized), pool)

    def save_pretrained(self, folder: str | Path, settings: dict[str, Any] | None = None) -> None:
        """Write what :func:`load` reads: config.yaml, model.safetensors and, of PMAE, space.safetensors.

        A file that is there is replaced at once. `settings` are further sections for config.yaml, such as how the model
        was trained; :func:`load` ignores them.
        """
        pretrained.save(self, folder, settings or {})

    def _standardized(self, images: Tensor, standardized: bool) -> Tensor:
        if images.shape[1:] != self.image_shape:
            expected = ", ".join(map(str, self.image_shape))
            raise ShapeError(f"images have shape {tuple(images.shape)}; this model takes (B, {expected})")
        if len(images) == 0:
            raise ShapeError(f"images have shape {tuple(images.shape)}: at least one is needed")
        if not images.is_floating_point():
            raise DataError(f"images are {images.dtype}; the model takes floats in [0, 1]: did you forget /255?")
        if standardized:
            return images
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        if not traced:
            check_unit_scale(images)
        return self.standardizer.standardize(images)


class PMAE(_Autoencoder):
    """Autoencoder of images of which components are hidden.

    Parameters
    ----------
    config : network and masking.
    space : from :func:`pmae.fit_space`; its image shape is the model's.

    Attributes
    ----------
    network : the :class:`~pmae.models.network.Network`: every parameter that is trained.
    sampler : draws the masks; seeded with ``config.seed``.
    bucketed : whether hidden rows are gathered into buffers of eight sizes, for the sake of compiled code.

    Raises
    ------
    ShapeError
        A patch size that does not divide the images.
    ValueError
        A ratio outside (0, 1), or an unknown rule.
    """

    method = "pmae"

    def __init__(self, config: PMAEConfig, space: MaskSpace) -> None:
        super().__init__()
        self.config = config = config.for_images(space.image_shape, ratio=0.15)
        assert config.ratio is not None
        self.image_shape = space.image_shape
        self.sampler = ComponentSampler(space.shares, config.ratio, config.rule, seed=config.seed, radii=space.radii)
        self.space = space
        self.network = Network(config, space.image_shape, drops_tokens=config.token_drop > 0)
        self.bucketed = False

    @property
    def standardizer(self) -> Standardizer:  # type: ignore[override]
        """The standardisation of the space."""
        return self.space.standardizer

    def forward(
        self,
        images: Tensor,
        mask: Tensor | None = None,
        standardized: bool = False,
        generator: torch.Generator | None = None,
    ) -> PMAEOutput:
        """Hide components, predict them, compare.

        Parameters
        ----------
        images : (B, C, H, W), on the [0, 1] scale unless `standardized`.
        mask : bool, True = hidden: (n_groups,), (k, n_groups) for k contiguous slices of the batch, or (B, n_groups);
            None: ``config.masks_per_batch`` of them from the sampler.
        generator : on the CPU, for the tokens to drop; None: the sampler's.

        Raises
        ------
        ShapeError, DataError
            Other images or masks than described.
        """
        x = self._standardized(images, standardized)
        mask = self._draw(len(x)) if mask is None else self._checked(mask, len(x))
        hidden = self._hidden(mask, len(x))
        slices = x.tensor_split(len(hidden))
        splits = [h.split(part, self.config.residual) for h, part in zip(hidden, slices, strict=True)]
        visible = torch.cat([split.visible for split in splits])
        prediction = self.network(visible, self._kept_tokens(x, generator))

        loss = fvu = torch.zeros((), device=x.device)
        for h, split, part, predicted in zip(hidden, splits, slices, prediction.tensor_split(len(hidden)), strict=True):
            slice_loss, slice_fvu = h.loss(predicted, split.target)
            if self.config.target == "image":
                slice_loss = h.image_loss(predicted, part)
            loss = loss + slice_loss * (len(part) / len(x))
            fvu = fvu + slice_fvu.detach() * (len(part) / len(x))
        return PMAEOutput(loss, fvu, prediction, visible, mask, self.sampler.masked_share(mask))

    @torch.no_grad()
    def reconstruct(self, images: Tensor, mask: Tensor | None = None, standardized: bool = False) -> Tensor:
        """Images (B, C, H, W) on the [0, 1] scale, not clipped: the visible part plus the predicted hidden part."""
        out = self(images, mask, standardized)
        hidden = self._hidden(out.mask, len(images))
        parts = zip(hidden, out.prediction.tensor_split(len(hidden)), strict=True)
        return self.space.destandardize(out.visible + torch.cat([h.project(predicted) for h, predicted in parts]))

    @cached_property
    def fingerprint(self) -> str:
        """The space's, which a dense basis takes a second or more to compute."""
        return self.space.fingerprint()

    def _draw(self, batch: int) -> Tensor:
        masks = self.config.masks_per_batch
        return self.sampler.sample(None if masks == 1 else batch if masks == "sample" else min(masks, batch))

    def _checked(self, mask: Tensor, batch: int) -> Tensor:
        n = self.space.n_groups
        fits = mask.ndim == 1 or (mask.ndim == 2 and 0 < len(mask) <= batch)
        if not fits or mask.shape[-1] != n or mask.dtype != torch.bool:
            raise ShapeError(
                f"mask is {mask.dtype} of shape {tuple(mask.shape)}; it has to be bool and ({n},), (k, {n}) with k "
                f"slices of the {batch} images, or ({batch}, {n})"
            )
        return mask.cpu()

    def _hidden(self, mask: Tensor, batch: int) -> list[Hidden]:
        """One for each contiguous slice of the batch: a single one if there is one mask, or one for each image."""
        masks = list(mask) if mask.ndim == 2 and len(mask) < batch else [mask]
        c = self.config
        return [self.space.hidden(m, pad=self.bucketed, reduction=c.reduction, gamma=c.gamma) for m in masks]

    def _kept_tokens(self, x: Tensor, generator: torch.Generator | None) -> Tensor | None:
        if self.config.token_drop == 0:
            return None
        h, w = self.network.encoder.grid
        order = noise((len(x), h * w), generator or self.sampler.generator).argsort(dim=1)
        return order[:, : max(1, round(h * w * (1 - self.config.token_drop)))].to(x.device)


class PixelMAE(_Autoencoder):
    """MAE with the modules, standardisation and trainer of PMAE: the encoder does not see hidden patches.

    Parameters
    ----------
    config : `ratio` is the hidden share of the patches; with 0 nothing is hidden and everything judged, which makes a
        plain autoencoder. `rule`, `masks_per_batch`, `reduction`, `gamma`, `target`, `residual` and `token_drop` are
        not used.
    scale : a standardizer, or a space whose standardisation is used.

    Attributes
    ----------
    network : the :class:`~pmae.models.network.Network`: every parameter that is trained.
    sampler : draws a mask for each image; seeded with ``config.seed``.

    Raises
    ------
    ShapeError
        A patch size that does not divide the images.
    ValueError
        A backbone that cannot drop patches, or a decoder that cannot fill them.
    """

    method = "mae"

    def __init__(self, config: PMAEConfig, scale: Standardizer | MaskSpace) -> None:
        super().__init__()
        self.config = config = config.for_images(scale.image_shape, ratio=0.75)
        assert config.ratio is not None
        if config.ratio != 0 and config.backbone is not None:
            raise ValueError(f"MAE drops patches, which backbone {config.backbone} cannot; use PMAE with basis='patch'")
        if config.ratio != 0 and config.decoder == "light":
            raise ValueError("MAE drops patches, which decoder='light' cannot fill; use 'vit' or 'conv'")
        self.image_shape = scale.image_shape
        self.standardizer = scale.standardizer if isinstance(scale, MaskSpace) else scale
        self.network = Network(config, scale.image_shape, drops_tokens=config.ratio != 0)
        self.sampler = PatchSampler(self.n_patches, config.ratio, config.seed)

    @property
    def n_patches(self) -> int:
        """T = h·w, the length of a mask."""
        h, w = self.network.encoder.grid
        return h * w

    def forward(
        self,
        images: Tensor,
        mask: Tensor | None = None,
        standardized: bool = False,
        generator: torch.Generator | None = None,
    ) -> PMAEOutput:
        """Hide patches, predict them, compare: mean squared error of the hidden pixels.

        Parameters
        ----------
        images : (B, C, H, W), on the [0, 1] scale unless `standardized`.
        mask : bool, True = hidden, (B, T) with as many in each row, or (T,) for all images; None: drawn.
        generator : on the CPU, to draw the masks from; None: the sampler's.

        Returns
        -------
        PMAEOutput, whose `fvu` is the loss over the mean square of the hidden target pixels.

        Raises
        ------
        ShapeError, DataError
            Other images or masks than described.
        """
        x = self._standardized(images, standardized)
        mask = self.sampler.sample(len(x), generator) if mask is None else self._checked(mask, len(x))
        hidden = self._pixels(mask).to(x.device)
        visible = x.masked_fill(hidden, 0.0)
        keep = (~mask).nonzero()[:, 1].view(len(x), -1).to(x.device) if mask.any() else None
        prediction = self.network(visible, keep)

        judged = hidden.expand_as(x) if mask.any() else torch.ones_like(x)
        mean, std = self._patch_scale(x)
        target = (x - mean) / std
        loss = ((prediction - target).square() * judged).sum() / judged.sum()
        variance = (target.square() * judged).sum() / judged.sum()
        return PMAEOutput(loss, loss.detach() / variance, prediction, visible, mask, self.sampler.masked_share(mask))

    @torch.no_grad()
    def reconstruct(self, images: Tensor, mask: Tensor | None = None, standardized: bool = False) -> Tensor:
        """Images (B, C, H, W) on the [0, 1] scale, not clipped: visible patches, and predictions of the hidden ones.

        With ``norm_pix``, mean and deviation are the true patch's. With nothing hidden, everything is the prediction.
        """
        x = self._standardized(images, standardized)
        out = self(x, mask, standardized=True)
        mean, std = self._patch_scale(x)
        shown = self._pixels(~out.mask if out.mask.any() else out.mask).to(x.device)
        return self.standardizer.destandardize(torch.where(shown, x, out.prediction * std + mean))

    def _checked(self, mask: Tensor, batch: int) -> Tensor:
        t = self.n_patches
        full = mask.expand(batch, t) if mask.shape == (t,) else mask
        if full.dtype != torch.bool or full.shape != (batch, t) or full.sum(1).min() != full.sum(1).max() or full.all():
            raise ShapeError(
                f"mask is {mask.dtype} of shape {tuple(mask.shape)}; it has to be bool and ({batch}, {t}) or ({t},), "
                "hide as many patches of each image as of the others, and leave one visible"
            )
        return full.cpu()

    def _pixels(self, mask: Tensor) -> Tensor:
        _, height, width = self.image_shape
        encoder = self.network.encoder
        return pixels_of(mask, encoder.grid, encoder.stride)[..., :height, :width]

    def _patch_scale(self, x: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Mean and deviation of the patch that each pixel lies in, with `norm_pix`; otherwise 0 and 1."""
        if not self.config.norm_pix:
            return 0.0, 1.0
        (channels, height, width), encoder = self.image_shape, self.network.encoder
        patches = patchify(self.network.padded(x), encoder.stride)
        moments = patches.mean(-1, keepdim=True), (patches.var(-1, keepdim=True) + 1e-6).sqrt()
        mean, std = (unpatchify(m.expand_as(patches), encoder.grid, channels) for m in moments)
        return mean[..., :height, :width], std[..., :height, :width]


def load(folder: str | Path, device: str | torch.device = "cpu") -> PMAE | PixelMAE:
    """The model of a folder that training or ``save_pretrained`` wrote, in evaluation mode.

    Raises
    ------
    CheckpointError
        Files are missing or damaged, or do not belong together.
    """
    found = pretrained.read(folder)
    kind: type[Any] = {"pmae": PMAE, "mae": PixelMAE}[found.method]
    model: PMAE | PixelMAE = kind(found.config, found.scale)
    pretrained.fill(model.network, found.weights, folder)
    return model.to(device).eval()
