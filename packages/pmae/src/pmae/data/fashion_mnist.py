"""Fashion-MNIST: 60,000 + 10,000 grey images of clothes, 28 × 28 pixels, in idx files (Xiao, Rasul, Vollgraf 2017)."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from ..errors import DataError, MissingSourceError
from .imageset import ImageSet

HOME = Path("/usr/share/datasets/fashion-mnist")  # of the Debian package
CLASSES = [
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
]  # fmt: skip
PREFIX = {"train": "train", "test": "t10k"}
OBTAIN = (
    "apt-get install dataset-fashion-mnist, or fashion_mnist:DIRECTORY with the four idx files "
    "from https://github.com/zalandoresearch/fashion-mnist"
)


def read(split: str, path: Path | None = None) -> ImageSet:
    """From the idx files of a directory, compressed or not. Raises MissingSourceError, DataError."""
    home = path or HOME
    images = read_idx(find(home, f"{PREFIX[split]}-images", 3))
    labels = read_idx(find(home, f"{PREFIX[split]}-labels", 1))
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise DataError(f"{home}: {split} images of shape {images.shape} and labels of shape {labels.shape}")
    return ImageSet(images[:, None], labels.astype(np.int64), CLASSES, "fashion_mnist")


def find(home: Path, stem: str, rank: int) -> Path:
    """The idx file in the directory or where torchvision keeps it. Raises MissingSourceError."""
    for folder in (home, home / "raw", home / "FashionMNIST" / "raw"):
        for file in (f"{stem}-idx{rank}-ubyte", f"{stem}.idx{rank}-ubyte"):
            for path in (folder / file, folder / f"{file}.gz"):
                if path.is_file():
                    return path
    raise MissingSourceError(f"fashion_mnist: no {stem}-idx{rank}-ubyte[.gz] in {home}: {OBTAIN}")


def read_idx(path: Path) -> np.ndarray:
    """The bytes of an idx file as an array of its shape. Raises DataError."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}") from None
    # Two zero bytes, the type (8: unsigned bytes), the number of axes, then the length of each as a big-endian int32.
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise DataError(f"{path} is no idx file of bytes: it begins with {data[:4].hex() or 'nothing'}")
    start = 4 + 4 * data[3]
    shape = tuple(int(side) for side in np.frombuffer(data[4:start], dtype=">i4"))
    if len(data) - start != int(np.prod(shape)):
        raise DataError(f"{path} holds {len(data) - start:,} bytes after its head, {shape} needs {np.prod(shape):,}")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)
