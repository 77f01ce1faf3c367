"""Labelled images, and the two changes that every source allows: another size, another number of channels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from ..errors import DataError

CHUNK = 4096  # images resized at once
LUMA = (0.299, 0.587, 0.114)  # of red, green, blue (ITU-R BT.601)


@dataclass(frozen=True)
class ImageSet:
    """A data set or one split of it.

    Attributes
    ----------
    images : (N, C, H, W) uint8, or floats in [0, 1] where a file held floats; may be a memory map or a view
    labels : int64 (N,), or (N, L) of 0 and 1 where an image may have several labels; None if there are none
    classes : their names; None if unknown
    name : of the source and split, for reports
    """

    images: np.ndarray
    labels: np.ndarray | None
    classes: list[str] | None
    name: str

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        c, h, w = self.images.shape[1:]
        return c, h, w


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """A side or (height, width) as (height, width). Raises ValueError."""
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ValueError(f"size={size}: a number of pixels, or height and width")
    return height, width


def with_size(images: ImageSet, size: int | tuple[int, int] | None) -> ImageSet:
    """Resized to (height, width), bicubic with antialiasing; the aspect ratio is not kept."""
    if size is None or pair(size) == images.shape[1:]:
        return images
    old, (height, width) = images.images, pair(size)
    new = np.empty((len(old), old.shape[1], height, width), dtype=old.dtype)
    for start in range(0, len(old), CHUNK):
        x = torch.from_numpy(np.array(old[start : start + CHUNK], dtype=np.float32))
        x = torch.nn.functional.interpolate(x, size=(height, width), mode="bicubic", antialias=True)
        top = 255 if old.dtype == np.uint8 else 1
        x = x.clamp_(0, top)  # bicubic weights overshoot at edges
        new[start : start + CHUNK] = (x.round_() if old.dtype == np.uint8 else x).numpy()
    return replace(images, images=new)


def with_channels(images: ImageSet, channels: int | None) -> ImageSet:
    """Grey repeated, or colours as their luma. Raises DataError for every other change."""
    old = images.images
    if channels is None or channels == old.shape[1]:
        return images
    if old.shape[1] == 1:
        return replace(images, images=np.repeat(old, channels, axis=1))
    if old.shape[1] == 3 and channels == 1:
        weights = np.array(LUMA, dtype=np.float32)
        new = np.empty((len(old), 1, *old.shape[2:]), dtype=old.dtype)
        for start in range(0, len(old), CHUNK):
            grey = np.einsum("nchw,c->nhw", old[start : start + CHUNK].astype(np.float32), weights)
            new[start : start + CHUNK, 0] = np.rint(grey) if old.dtype == np.uint8 else grey
        return replace(images, images=new)
    raise DataError(f"{images.name} has {old.shape[1]} channels, channels={channels}: only 1 to any and 3 to 1 work")
