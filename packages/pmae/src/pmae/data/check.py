"""What is in a data set, and what may be wrong with it."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from ..errors import DataError, MissingSourceError
from .imageset import CHUNK, ImageSet
from .registry import ENTRIES, load


def check(
    spec: str, size: int | tuple[int, int] | None = None, channels: int | None = None, **options: Any
) -> dict[str, Any]:
    """Read every split of a data set through and tell what it holds.

    Returns {"data": spec, "splits": {split: facts}, "problems": [sentences]}; facts are n, shape (C, H, W), dtype,
    labels (images per class or per label, by name; None without labels), mean and std (of each channel, on the [0, 1]
    scale) and missing (the reason why a split cannot be had). Problems are images twice in a split or in two splits,
    images of one value, classes without an image. Raises what :func:`pmae.data.load` raises for the training split.
    """
    splits: dict[str, Any] = {}
    digests: dict[str, np.ndarray] = {}
    problems: list[str] = []
    for split in ENTRIES[spec.partition(":")[0]].splits if spec.partition(":")[0] in ENTRIES else ("train",):
        try:
            images = load(spec, split, size, channels, **options)
        except MissingSourceError as error:
            if split == "train":
                raise
            splits[split] = {"missing": str(error)}
            continue
        splits[split], digests[split], flat = _facts(images)
        if flat:
            problems.append(f"{split}: {flat:,} images of one value")
        repeated = len(images) - len(np.unique(digests[split]))
        if repeated:
            problems.append(f"{split}: {repeated:,} images are copies of another one")
        empty = [name for name, count in (splits[split]["labels"] or {}).items() if count == 0]
        if empty:
            problems.append(f"{split}: no image of {', '.join(empty)}")
    names = list(digests)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            if common := int(np.isin(digests[other], digests[one]).sum()):
                problems.append(f"{common:,} images of {other} are also in {one}")
    return {"data": spec, "splits": splits, "problems": problems}


def _facts(images: ImageSet) -> tuple[dict[str, Any], np.ndarray, int]:
    """Facts, a digest of each image, and how many images have but one value."""
    unit = 255.0 if images.images.dtype == np.uint8 else 1.0
    sums = np.zeros((2, images.shape[0]))
    digests, flat = [], 0
    for start in range(0, len(images), CHUNK):
        part = np.ascontiguousarray(images.images[start : start + CHUNK])
        if not np.isfinite(part).all():
            raise DataError(f"{images.name} holds NaN or infinite values")
        values = part.astype(np.float64) / unit
        sums += values.sum((0, 2, 3)), np.square(values).sum((0, 2, 3))
        flat += int((part.reshape(len(part), -1).max(1) == part.reshape(len(part), -1).min(1)).sum())
        digests += [int.from_bytes(hashlib.blake2b(image, digest_size=8).digest()) for image in part]
    mean, square = sums / (len(images) * images.shape[1] * images.shape[2])
    facts = {
        "n": len(images),
        "shape": list(images.shape),
        "dtype": str(images.images.dtype),
        "labels": _counts(images),
        "mean": [round(float(value), 4) for value in mean],
        "std": [round(float(value), 4) for value in np.sqrt(np.maximum(square - mean**2, 0))],
    }
    return facts, np.array(digests, dtype=np.uint64), flat


def _counts(images: ImageSet) -> dict[str, int] | None:
    if images.labels is None:
        return None
    counts = images.labels.sum(0) if images.labels.ndim == 2 else np.bincount(images.labels)
    names = images.classes or [str(label) for label in range(len(counts))]
    counts = np.pad(counts, (0, max(0, len(names) - len(counts))))
    return {name: int(count) for name, count in zip(names, counts, strict=False)}
