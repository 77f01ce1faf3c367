"""Bases of the form V_C ⊗ V_H ⊗ V_W: Kronecker PCA, and cosines times the principal colours."""

from __future__ import annotations

import numpy as np
import scipy.fft
import torch
from torch import Tensor

from ..processes import summed
from .base import Basis, positive_peaks
from .pca import Stream, leading


class Separable(Basis):
    """One orthogonal matrix for each of channels, rows and columns: memory C² + H² + W², D (C + H + W) products."""

    channels: Tensor
    height: Tensor
    width: Tensor

    def __init__(
        self, name: str, factors: tuple[Tensor, Tensor, Tensor], variances: Tensor, radii: Tensor | None = None
    ) -> None:
        self.shape = tuple(len(factor) for factor in factors)
        super().__init__(int(np.prod(self.shape)), variances, radii=radii)
        self.name = name
        for part, factor in zip(("channels", "height", "width"), factors, strict=True):
            self.register_buffer(part, factor.contiguous())

    def analysis(self, x: Tensor) -> Tensor:
        return self._apply_each(x, self.channels, self.height, self.width)

    def synthesis(self, z: Tensor) -> Tensor:
        return self._apply_each(z, self.channels.T, self.height.T, self.width.T)

    def _apply_each(self, x: Tensor, channels: Tensor, height: Tensor, width: Tensor) -> Tensor:
        x = x.reshape(-1, *self.shape)
        x = height @ (x @ width.T)
        x = torch.einsum("cd,bdhw->bchw", channels, x) if self.shape[0] > 1 else x * channels[0, 0]
        return x.reshape(len(x), self.dim)


def kron_factors(stream: Stream, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvectors, as rows, of the second moments along each of the three axes."""
    moments = [torch.zeros(n, n, dtype=torch.float64, device=stream.device) for n in shape]
    for batch in stream.batches():
        x = batch.double().reshape(-1, *shape)
        for axis, moment in enumerate(moments):
            along = x.movedim(axis + 1, 0).reshape(shape[axis], -1)
            moment += along @ along.T
    rows = [positive_peaks(leading(summed(moment) / stream.n)[1]) for moment in moments]
    return rows[0], rows[1], rows[2]


def cosine_factors(stream: Stream, shape: tuple[int, int, int], color: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Orthonormal DCT-II of rows and columns, and the principal colours (or the channels as they are)."""
    channels, height, width = shape
    colors = torch.eye(channels, dtype=torch.float64, device=stream.device)
    if color and channels > 1:
        colors = _colors(stream, channels)
    return colors, _cosines(height).to(stream.device), _cosines(width).to(stream.device)


def _colors(stream: Stream, channels: int) -> Tensor:
    moment = torch.zeros(channels, channels, dtype=torch.float64, device=stream.device)
    for batch in stream.batches():
        pixels = batch.double().reshape(len(batch), channels, -1).transpose(0, 1).reshape(channels, -1)
        moment += pixels @ pixels.T
    return positive_peaks(leading(summed(moment) / stream.n)[1])


def _cosines(n: int) -> Tensor:
    return torch.from_numpy(scipy.fft.dct(np.eye(n), norm="ortho", axis=0))


def frequencies(shape: tuple[int, int, int]) -> Tensor:
    """Distance of each coefficient from the constant image, in cycles per image, float64 (D,)."""
    channels, height, width = shape
    rows, columns = np.meshgrid(np.arange(height) / 2, np.arange(width) / 2, indexing="ij")
    return torch.from_numpy(np.tile(np.hypot(rows, columns).ravel(), channels))
