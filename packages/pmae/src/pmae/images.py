"""Images of any container as one thing: a length, a shape (C, H, W), and float32 batches on the [0, 1] scale."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import DataError, ShapeError

LAYOUTS = ("NCHW", "NHWC")
SLACK = 0.01  # resampling overshoots a little


class Source:
    """Images that are read in pieces.

    Attributes
    ----------
    shape : (C, H, W)
    """

    shape: tuple[int, int, int]

    def __len__(self) -> int:
        raise NotImplementedError

    def take(self, indices: Sequence[int] | np.ndarray | slice) -> Tensor:
        """Float32 (b, C, H, W) in [0, 1]. DataError for values that are not finite or not on that scale."""
        raise NotImplementedError

    def chunks(self, size: int) -> Iterator[Tensor]:
        """All images in their order, at most ``size`` at a time."""
        for start in range(0, len(self), size):
            yield self.take(slice(start, min(start + size, len(self))))

    def parts(self, size: int, part: int, of: int) -> Iterator[Tensor]:
        """Every ``of``-th chunk, from the one with number ``part``: the share of one process among several."""
        for start in range(part * size, len(self), of * size):
            yield self.take(slice(start, min(start + size, len(self))))


def as_source(images: Any, layout: str = "NCHW") -> Source:
    """Read images from an array, tensor, memory map or map-style data set.

    images: uint8 or float, (N, C, H, W), (N, H, W) for one channel, or (N, H, W, C) with ``layout="NHWC"``; or a data
    set whose items are an image (C, H, W) or a pair (image, label). uint8 is divided by 255.
    Raises ShapeError, DataError.
    """
    if isinstance(images, Source):
        return images
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r}: one of {', '.join(LAYOUTS)}")
    if isinstance(images, Tensor | np.ndarray):
        return ArraySource(images, layout)
    if (
        isinstance(images, list | tuple)
        and images
        and isinstance(images[0], Tensor | np.ndarray)
        and images[0].ndim >= 2
    ):
        return ArraySource(np.stack([np.asarray(image) for image in images]), layout)
    if hasattr(images, "__len__") and hasattr(images, "__getitem__") and not isinstance(images, str | bytes | dict):
        return ItemSource(images, layout)
    raise DataError(f"images is a {type(images).__name__}: an array, a tensor or a data set with a length is needed")


class ArraySource(Source):
    """Images of an array or tensor; nothing is copied before it is asked for."""

    def __init__(self, images: Tensor | np.ndarray, layout: str) -> None:
        if images.ndim not in (3, 4):
            raise ShapeError(
                f"images have shape {tuple(images.shape)}: (N, C, H, W), (N, H, W, C) with layout='NHWC', or (N, H, W)"
            )
        if len(images) < 2:
            raise DataError(f"{len(images)} image(s): at least 2 are needed")
        self.images = images
        self.last = layout == "NHWC" and images.ndim == 4
        size = tuple(int(n) for n in images.shape[1:])
        channels, height, width = (1, *size) if len(size) == 2 else (size[2], *size[:2]) if self.last else size
        if 0 in size:
            raise ShapeError(f"images have shape {tuple(images.shape)}: no side may be 0")
        self.shape = (channels, height, width)

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Sequence[int] | np.ndarray | slice) -> Tensor:
        if isinstance(self.images, Tensor):
            part = self.images[indices if isinstance(indices, slice) else torch.as_tensor(np.asarray(indices))]
        else:
            part = as_tensor(self.images[indices])
        if part.ndim == 3:
            part = part[:, None]
        return unit_scale(part.permute(0, 3, 1, 2) if self.last else part)


class ItemSource(Source):
    """Images of a map-style data set, read one by one."""

    def __init__(self, items: Any, layout: str) -> None:
        if len(items) < 2:
            raise DataError(f"{len(items)} image(s): at least 2 are needed")
        self.items, self.last = items, layout == "NHWC"
        self.shape = tuple(self._image(0).shape)  # type: ignore[assignment]

    def _image(self, index: int) -> Tensor:
        item = self.items[index]
        found = item[0] if isinstance(item, tuple | list) else item
        image = found if isinstance(found, Tensor) else as_tensor(found)
        if image.ndim == 2:
            image = image[None]
        elif self.last:
            image = image.permute(2, 0, 1)
        if image.ndim != 3:
            raise ShapeError(f"image {index} has shape {tuple(image.shape)}: (C, H, W) or (H, W)")
        return image

    def __len__(self) -> int:
        return len(self.items)

    def take(self, indices: Sequence[int] | np.ndarray | slice) -> Tensor:
        wanted = range(*indices.indices(len(self))) if isinstance(indices, slice) else indices
        images = []
        for index in wanted:
            image = self._image(int(index))
            if tuple(image.shape) != self.shape:
                raise ShapeError(f"image {index} has shape {tuple(image.shape)}, the first one {self.shape}")
            images.append(image)
        return unit_scale(torch.stack(images))


def as_tensor(array: Any) -> Tensor:
    """A copy of an array, so that read-only, strided and big-endian ones will do."""
    found = np.asarray(array)
    return torch.from_numpy(np.array(found, dtype=found.dtype.newbyteorder("=")))


def unit_scale(images: Tensor) -> Tensor:
    """Float32 in [0, 1]: uint8 divided by 255, floats as they are. Raises DataError."""
    if images.dtype == torch.uint8:
        return images.float() / 255
    if images.dtype == torch.bool:
        return images.float()
    if not images.is_floating_point():
        raise DataError(f"images of type {images.dtype}: uint8, or floats in [0, 1]")
    check_unit_scale(images)
    return images.float()


def check_unit_scale(images: Tensor) -> None:
    """Raises DataError for floats that are not finite, or outside [0, 1] by more than resampling explains."""
    if images.numel():
        low, high = (float(bound) for bound in torch.aminmax(images))
        if not np.isfinite(low + high):
            raise DataError("images hold NaN or infinite values")
        if low < -SLACK or high > 1 + SLACK:
            raise DataError(f"float images lie in [{low:.3g}, {high:.3g}], not in [0, 1]: did you forget /255?")
