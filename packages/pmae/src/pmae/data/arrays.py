"""npz:FILE and npy:FILE — images as arrays, and the rules by which any such file is read."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, MissingSourceError, ShapeError
from .imageset import ImageSet

LAYOUTS = ("auto", "NCHW", "NHWC")
MOST_CHANNELS = 16  # an axis longer than that is not taken for the channels
USUAL = (1, 3, 4)  # numbers of channels


def read_npz(split: str, path: Path | None = None, layout: str = "auto", name: str = "npz") -> ImageSet:
    """Keys ``images`` and ``labels`` (training data only), or MedMNIST's ``train_images``, ``train_labels``, ….

    Labels, the names ``classes`` and the ``layout`` of the images may be missing. Without ``test_images`` "test" is
    ``val_images``.
    Raises MissingSourceError, DataError, ShapeError, ValueError.
    """
    with open_npz(path) as file:
        prefixes = {"train": ["train_", ""], "val": ["val_"], "test": ["test_", "val_"]}[split]
        prefix = next((prefix for prefix in prefixes if f"{prefix}images" in file), None)
        if prefix is None:
            raise MissingSourceError(f"{path} has no {prefixes[0]}images: it holds {', '.join(file) or 'nothing'}")
        if layout == "auto" and "layout" in file:
            layout = str(_member(file, "layout", path))
            if layout not in LAYOUTS:
                raise DataError(f"{path}: layout is {layout!r}: one of {', '.join(LAYOUTS)}")
        images = channels_first(_member(file, f"{prefix}images", path), layout, path)
        labels = f"{prefix}labels"
        found = as_labels(_member(file, labels, path), len(images), path) if labels in file else None
        classes = [str(each) for each in _member(file, "classes", path)] if "classes" in file else None
    return ImageSet(images, found, classes, name)


def read_npy(split: str, path: Path | None = None, layout: str = "auto") -> ImageSet:
    """One array of training images, as a memory map. Raises MissingSourceError, DataError, ShapeError, ValueError."""
    if split != "train":
        raise MissingSourceError(
            f"npy:{path} is one array of training images: give test images as npz, or by themselves"
        )
    if path is None or not path.is_file():
        raise MissingSourceError(f"npy:{path or 'FILE'} does not exist")
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path} is no npy file: {error}") from None
    if not isinstance(images, np.ndarray):
        raise DataError(f"{path} holds several arrays: use npz:{path}")
    return ImageSet(channels_first(images, layout, path), None, None, "npy")


def open_npz(path: Path | None) -> Any:
    """An npz file, from which nothing is unpickled. Raises MissingSourceError, DataError."""
    if path is None or not path.is_file():
        raise MissingSourceError(f"npz:{path or 'FILE'} does not exist")
    try:
        file = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is no npz file: {error}") from None
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise DataError(f"{path} holds one array: use npy:{path}")
    return file


def _member(file: Any, key: str, path: Path | None) -> np.ndarray:
    try:
        return file[key]
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: {key} cannot be read: {error}") from None


def channels_first(images: np.ndarray, layout: str, path: Any) -> np.ndarray:
    """(N, H, W), (N, C, H, W) or (N, H, W, C) as a view (N, C, H, W).

    "auto" takes the one axis of at most 16 for the channels; of two, the last if it alone is 1, 3 or 4, else the first.
    Raises ShapeError where neither is; DataError, ValueError.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r}: one of {', '.join(LAYOUTS)}")
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise DataError(f"{path}: images are {images.dtype}: uint8, or floats in [0, 1]")
    if images.ndim == 3:
        return images[:, None]
    if images.ndim != 4 or 0 in images.shape:
        raise ShapeError(f"{path}: images have shape {images.shape}: (N, H, W), (N, C, H, W) or (N, H, W, C)")
    if layout == "auto":
        first, last = images.shape[1], images.shape[3]
        if min(first, last) > MOST_CHANNELS:
            raise ShapeError(
                f"{path}: images of shape {images.shape}: which axis is the channels? Give layout=NCHW or NHWC"
            )
        layout = "NHWC" if first > MOST_CHANNELS or (last in USUAL and first not in USUAL) else "NCHW"
    return images if layout == "NCHW" else np.moveaxis(images, 3, 1)


def as_labels(labels: np.ndarray, n: int, path: Any) -> np.ndarray:
    """Int64 (N,), or (N, L) of 0 and 1; (N, 1) becomes (N,). Raises DataError."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    whole = labels.dtype.kind in "iub" or (labels.dtype.kind == "f" and bool((labels == np.rint(labels)).all()))
    if labels.ndim not in (1, 2) or len(labels) != n or not whole:
        raise DataError(f"{path}: labels are {labels.dtype} of shape {labels.shape}: {n} whole numbers are needed")
    if labels.ndim == 2 and not np.isin(labels, (0, 1)).all():
        raise DataError(f"{path}: labels of shape {labels.shape} must be 0 or 1")
    return labels.astype(np.int64)
