"""Batches on the device: from a copy of all images that lies there as uint8, or read ahead while the device computes.

Both give the same batches in the same order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..images import Source, as_source, unit_scale

AHEAD = 3  # batches that are read before they are needed
PIECE = 4096  # images that are copied or checked at once
SAMPLE = 64  # images that stand for all in a fingerprint


class Feed:
    """The training images.

    Parameters
    ----------
    images : whatever :func:`pmae.images.as_source` reads. uint8 stays uint8, everything else becomes float32.
    device : where batches are wanted
    budget : bytes that a copy on the device may take; None: half of what is free there

    Attributes
    ----------
    shape : (C, H, W)
    resident : all images are on the device
    """

    def __init__(self, images: Any, device: torch.device, layout: str = "NCHW", budget: int | None = None) -> None:
        self.source: Source = as_source(images, layout)
        self.raw = _raw(self.source)
        self.device, self.shape = device, self.source.shape
        item = 1 if self.raw is not None else 4
        budget = free_bytes(device) // 2 if budget is None else budget
        self.resident = len(self) * int(np.prod(self.shape)) * item <= budget
        self.copy: Tensor | None = None
        if self.resident:
            kind = torch.uint8 if self.raw is not None else torch.float32
            self.copy = torch.empty((len(self), *self.shape), dtype=kind, device=device)
            for start in range(0, len(self), PIECE):
                part = slice(start, min(start + PIECE, len(self)))
                self.copy[part] = self._read(np.arange(part.start, part.stop)).to(device)

    def __len__(self) -> int:
        return len(self.source)

    def batches(self, order: np.ndarray) -> Iterator[Tensor]:
        """The images of each row of ``order`` (steps, b): (b, C, H, W), uint8 or float32 in [0, 1]."""
        if self.copy is not None:
            for row in torch.from_numpy(np.ascontiguousarray(order, dtype=np.int64)).to(self.device):
                yield self.copy[row]
            return
        reader = ThreadPoolExecutor(max_workers=1)
        try:
            waiting = [reader.submit(self._pinned, row) for row in order[:AHEAD]]
            for number in range(len(order)):
                batch = waiting.pop(0).result()
                if number + AHEAD < len(order):
                    waiting.append(reader.submit(self._pinned, order[number + AHEAD]))
                yield batch.to(self.device, non_blocking=True)
        finally:
            reader.shutdown(wait=True, cancel_futures=True)

    def fingerprint(self) -> str:
        """Hex digest of the number, shape and a sample of the images."""
        digest = hashlib.sha256(repr((len(self), self.shape)).encode())
        for index in np.linspace(0, len(self) - 1, min(SAMPLE, len(self))).astype(int):
            digest.update(self._read(np.array([index])).numpy().tobytes())
        return digest.hexdigest()[:16]

    def _read(self, indices: np.ndarray) -> Tensor:
        if self.raw is None:
            return self.source.take(indices)
        # In ascending order a memory map is read forwards.
        ascending = np.argsort(indices, kind="stable")
        found = np.empty((len(indices), *self.shape), dtype=np.uint8)
        found[ascending] = self.raw[indices[ascending]].reshape(found.shape)
        return torch.from_numpy(found)

    def _pinned(self, indices: np.ndarray) -> Tensor:
        batch = self._read(indices)
        return batch.pin_memory() if self.device.type == "cuda" else batch


def to_unit(images: Tensor) -> Tensor:
    """A batch as float32 in [0, 1]."""
    return unit_scale(images) if images.dtype == torch.uint8 else images


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device; for a CPU what the system could give."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 4 << 30


def order_of(epoch: int, n: int, steps: int, batch: int, seed: Sequence[int]) -> np.ndarray:
    """Numbers of the images of an epoch, (steps, batch): without repetition, and the same whenever it is asked for."""
    return np.random.default_rng([*seed, epoch]).permutation(n)[: steps * batch].reshape(steps, batch)


def _raw(source: Source) -> np.ndarray | None:
    """The uint8 array behind a source, channels first and not copied; None if there is none."""
    images: Any = getattr(source, "images", None)
    if isinstance(images, Tensor):
        images = images.numpy(force=True) if images.dtype == torch.uint8 else None
    if images is None or images.dtype != np.uint8:
        return None
    return np.moveaxis(images, -1, 1) if getattr(source, "last", False) else images
