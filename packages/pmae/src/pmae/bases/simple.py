"""Bases that need no fit: pixels, patches, a random rotation; and maps that the caller brings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import ShapeError
from .base import Basis, positive_peaks
from .blocks import from_blocks


class Pixels(Basis):
    """The coordinates themselves; a group is one of them, or a patch with all its channels."""

    def __init__(self, name: str, variances: Tensor, group_of: Tensor | None = None) -> None:
        super().__init__(len(variances), variances, group_of)
        self.name = name

    def analysis(self, x: Tensor) -> Tensor:
        return x

    def synthesis(self, z: Tensor) -> Tensor:
        return z


def patches_of(shape: tuple[int, int, int], patch: int) -> Tensor:
    """The number of the p×p patch that each coordinate lies in, in reading order: int64 (D,)."""
    if patch < 1 or shape[1] % patch or shape[2] % patch:
        raise ShapeError(f"patch={patch} does not divide images of {shape[1]}×{shape[2]}")
    blocks = (shape[1] // patch) * (shape[2] // patch)
    numbers = torch.arange(blocks)[None, :, None].expand(1, blocks, shape[0] * patch**2)
    return from_blocks(numbers, shape, patch)[0]


def random_rotation(dim: int, seed: int) -> Tensor:
    """A matrix drawn uniformly from the orthogonal group, float64 (D, D) (Mezzadri 2007)."""
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    return positive_peaks((q * r.diagonal().sign()).T)


def check_map(given: Any) -> None:
    """Raises ValueError for an object that is no map as :class:`Custom` takes it."""
    missing = [name for name in ("analysis", "synthesis", "shares") if not hasattr(given, name)]
    if missing:
        raise ValueError(f"basis={given!r} has no {', '.join(missing)}: a name, or an object with these")


class Custom(Basis):
    """A caller's map: ``analysis`` (B, C, H, W) to (B, K), ``synthesis`` back, and ``shares`` (K,).

    The object may have ``linear = False`` (an invertible network), and ``group_of`` (K,), groups that are masked
    together.
    """

    map: Any

    def __init__(self, given: Any, shape: tuple[int, int, int], total_variance: float) -> None:
        group_of = getattr(given, "group_of", None)
        super().__init__(
            shape[0] * shape[1] * shape[2],
            torch.as_tensor(given.shares, dtype=torch.float64).detach() * total_variance,
            None if group_of is None else torch.as_tensor(group_of).cpu(),
        )
        self.shape, self.linear = shape, bool(getattr(given, "linear", True))
        self.map = given  # a module among its modules, so that it moves along and trains

    def analysis(self, x: Tensor) -> Tensor:
        return self.map.analysis(x.reshape(-1, *self.shape))

    def synthesis(self, z: Tensor) -> Tensor:
        return self.map.synthesis(z).reshape(len(z), -1)
