"""Bases for large images: PCA of square blocks, and Haar wavelets with PCA of the coarse band."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ShapeError
from ..processes import summed
from .base import Basis, positive_peaks
from .pca import Stream, leading, second_moments


class PatchPCA(Basis):
    """One PCA for all b×b blocks of the image; a group is the same component in every block, or in one."""

    name = "patch_pca"
    rows: Tensor

    def __init__(
        self, shape: tuple[int, int, int], block: int, rows: Tensor, variances: Tensor, per_block: bool
    ) -> None:
        self.shape, self.block, self.per_block = shape, block, per_block
        blocks, size = (shape[1] // block) * (shape[2] // block), len(rows)
        groups = None if per_block else torch.arange(size).repeat(blocks)
        super().__init__(shape[0] * shape[1] * shape[2], variances, groups)
        self.register_buffer("rows", rows.contiguous())

    def analysis(self, x: Tensor) -> Tensor:
        return (to_blocks(x, self.shape, self.block) @ self.rows.T).reshape(len(x), -1)

    def synthesis(self, z: Tensor) -> Tensor:
        return from_blocks(z.reshape(len(z), -1, len(self.rows)) @ self.rows, self.shape, self.block)


def block_rows(stream: Stream, shape: tuple[int, int, int], block: int) -> Tensor:
    """Principal components of all blocks, as rows (b²C, b²C)."""
    if block < 1 or shape[1] % block or shape[2] % block:
        raise ShapeError(f"block={block} does not divide images of {shape[1]}×{shape[2]}")
    size = shape[0] * block**2
    moments = torch.zeros(size, size, dtype=torch.float64, device=stream.device)
    for batch in stream.batches():
        blocks = to_blocks(batch.double(), shape, block).reshape(-1, size)
        moments.addmm_(blocks.T, blocks)
    return positive_peaks(leading(summed(moments) / stream.n)[1])


def to_blocks(x: Tensor, shape: tuple[int, int, int], block: int) -> Tensor:
    """(B, D) to (B, blocks, C·b·b), blocks in reading order."""
    c, h, w = shape
    x = x.reshape(-1, c, h // block, block, w // block, block)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(len(x), -1, c * block * block)


def from_blocks(x: Tensor, shape: tuple[int, int, int], block: int) -> Tensor:
    """The way back, (B, blocks, C·b·b) to (B, D)."""
    c, h, w = shape
    x = x.reshape(-1, h // block, w // block, c, block, block)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(len(x), -1)


class HaarPCA(Basis):
    """Orthonormal Haar wavelets of some levels; PCA of the coarse band, and of the channels in every detail band.

    The coefficients are the components of the coarse band, then the detail bands from coarse to fine. With no level it
    is PCA.
    """

    name = "haar_pca"
    coarse: Tensor
    details: Tensor

    def __init__(
        self, shape: tuple[int, int, int], levels: int, coarse: Tensor, details: Tensor, variances: Tensor
    ) -> None:
        super().__init__(shape[0] * shape[1] * shape[2], variances)
        self.shape, self.levels = shape, levels
        self.register_buffer("coarse", coarse.contiguous())
        self.register_buffer("details", details.contiguous())

    def analysis(self, x: Tensor) -> Tensor:
        low, bands = haar(x.reshape(-1, *self.shape), self.levels)
        parts = [low.flatten(1) @ self.coarse.T]
        for mix, band in zip(self.details, bands, strict=True):
            parts.append(torch.einsum("cd,bdhw->bchw", mix, band).flatten(1))
        return torch.cat(parts, 1)

    def synthesis(self, z: Tensor) -> Tensor:
        c, h, w = self.shape
        n = len(self.coarse)
        h, w = h >> self.levels, w >> self.levels
        low = (z[:, :n] @ self.coarse).reshape(-1, c, h, w)
        for level in range(self.levels):
            bands = []
            for k in range(3):
                band = z[:, n : n + c * h * w].reshape(-1, c, h, w)
                bands.append(torch.einsum("dc,bdhw->bchw", self.details[3 * level + k], band))
                n += c * h * w
            low = unhaar(low, bands)
            h, w = 2 * h, 2 * w
        return low.flatten(1)


def haar(x: Tensor, levels: int) -> tuple[Tensor, list[Tensor]]:
    """The coarse band (B, C, H/2^L, W/2^L) and three detail bands a level, from coarse to fine."""
    bands: list[Tensor] = []
    for _ in range(levels):
        a, b = x[..., ::2, ::2], x[..., ::2, 1::2]
        c, d = x[..., 1::2, ::2], x[..., 1::2, 1::2]
        bands = [(a - b + c - d) / 2, (a + b - c - d) / 2, (a - b - c + d) / 2, *bands]
        x = (a + b + c + d) / 2
    return x, bands


def unhaar(low: Tensor, bands: list[Tensor]) -> Tensor:
    """One level back."""
    across, down, both = bands
    b, c, h, w = low.shape
    x = low.new_empty(b, c, h, 2, w, 2)
    x[..., 0, :, 0] = (low + across + down + both) / 2
    x[..., 0, :, 1] = (low - across + down - both) / 2
    x[..., 1, :, 0] = (low + across - down - both) / 2
    x[..., 1, :, 1] = (low - across - down + both) / 2
    return x.reshape(b, c, 2 * h, 2 * w)


def haar_factors(stream: Stream, shape: tuple[int, int, int], levels: int) -> tuple[Tensor, Tensor]:
    """PCA of the coarse band, rows (D/4^L, D/4^L), and of the channels of each detail band, (3L, C, C)."""
    c, h, w = shape
    if levels < 0 or h % 2**levels or w % 2**levels:
        raise ShapeError(f"levels={levels}: images of {h}×{w} cannot be halved so often")
    small = Stream(
        lambda: (haar(batch.reshape(-1, *shape), levels)[0].flatten(1) for batch in stream.batches()),
        stream.n, c * h * w >> 2 * levels, stream.device,
    )  # fmt: skip
    coarse = positive_peaks(leading(second_moments(small))[1])
    colors = torch.zeros(3 * levels, c, c, dtype=torch.float64, device=stream.device)
    for batch in stream.batches() if levels else ():
        for moment, band in zip(colors, haar(batch.double().reshape(-1, *shape), levels)[1], strict=True):
            pixels = band.transpose(0, 1).reshape(c, -1)
            moment += pixels @ pixels.T
    details = [positive_peaks(leading(moment)[1]) for moment in summed(colors)]
    return coarse, torch.stack(details) if details else colors
