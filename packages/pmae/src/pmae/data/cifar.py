"""CIFAR-10 and CIFAR-100: 50,000 + 10,000 colour images of 32 × 32 pixels (Krizhevsky 2009), Python or binary version.

The Python version is pickles. They are read by an unpickler that can build arrays and nothing else.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, MissingSourceError
from .imageset import ImageSet

SHAPE = (3, 32, 32)
BYTES = 3 * 32 * 32
OBTAIN = "download it from https://www.cs.toronto.edu/~kriz/cifar.html, unpack it, and give the folder: {name}:PATH"
# Files of each split without their ending, and the folders that the archives unpack to.
FILES = {
    "cifar10": {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
    "cifar100": {"train": ["train"], "test": ["test"]},
}
FOLDERS = {
    "cifar10": ("cifar-10-batches-py", "cifar-10-batches-bin"),
    "cifar100": ("cifar-100-python", "cifar-100-binary"),
}
KINDS = ("fine", "coarse")


def read(name: str, split: str, path: Path | None = None, kind: str = "fine") -> ImageSet:
    """``cifar10`` or ``cifar100`` in its folder or the one above.

    kind : "fine" (100 classes) or "coarse" (20), of CIFAR-100
    Raises MissingSourceError, DataError, ValueError.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: one of {', '.join(KINDS)}")
    if path is None:
        raise MissingSourceError(f"{name} needs its folder: {OBTAIN.format(name=name)}")
    files = FILES[name][split]
    for home in (path, *(path / folder for folder in FOLDERS[name])):
        if (home / files[0]).is_file():
            parts = [_python(home / file, kind) for file in files]
            names = _names_python(home, name, kind)
            break
        if (home / f"{files[0]}.bin").is_file():
            parts = [_binary(home / f"{file}.bin", name, kind) for file in files]
            names = _names_binary(home, name, kind)
            break
    else:
        raise MissingSourceError(f"{name}: no {files[0]}[.bin] in {path}: {OBTAIN.format(name=name)}")
    images = np.concatenate([part[0] for part in parts]).reshape(-1, *SHAPE)
    labels = np.concatenate([part[1] for part in parts]).astype(np.int64)
    return ImageSet(images, labels, names, name)


def _python(path: Path, kind: str) -> tuple[np.ndarray, np.ndarray]:
    held = read_pickle(path)
    images = held.get("data")
    labels = held.get("labels", held.get(f"{kind}_labels"))
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != BYTES:
        raise DataError(f"{path}: 'data' is no uint8 array (N, {BYTES})")
    if not isinstance(labels, list) or len(labels) != len(images):
        raise DataError(f"{path}: no list of {len(images)} labels")
    return images, np.array(labels)


def _binary(path: Path, name: str, kind: str) -> tuple[np.ndarray, np.ndarray]:
    heads = 1 if name == "cifar10" else 2  # CIFAR-100: coarse, then fine label
    data = np.fromfile(path, dtype=np.uint8)
    if not len(data) or len(data) % (heads + BYTES):
        raise DataError(
            f"{path} has {len(data):,} bytes, not a multiple of {heads + BYTES:,}: it is cut off or damaged"
        )
    rows = data.reshape(-1, heads + BYTES)
    return rows[:, heads:], rows[:, 0 if kind == "coarse" else heads - 1]


def _names_python(home: Path, name: str, kind: str) -> list[str] | None:
    path = home / ("batches.meta" if name == "cifar10" else "meta")
    if not path.is_file():
        return None
    held = read_pickle(path)
    found = held.get("label_names" if name == "cifar10" else f"{kind}_label_names")
    return None if found is None else [_text(each) for each in found]


def _names_binary(home: Path, name: str, kind: str) -> list[str] | None:
    path = home / ("batches.meta.txt" if name == "cifar10" else f"{kind}_label_names.txt")
    return path.read_text().split() if path.is_file() else None


# What pickles of arrays call, as Python and numpy of any version wrote it; nothing else is ever called.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{
        (f"numpy.{core}.{module}", name): function
        for core in ("core", "_core")
        for module, name, function in (
            ("multiarray", "_reconstruct", np.empty(0).__reduce__()[0]),
            ("multiarray", "scalar", np.float64(0).__reduce__()[0]),
            ("numeric", "_frombuffer", np.empty(0).__reduce_ex__(5)[0]),
        )
    },
    ("_codecs", "encode"): lambda text, encoding: text.encode({"latin1": "latin1"}[encoding]),  # bytes of Python 3
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ALLOWED[module, name]


def read_pickle(path: Path) -> dict[str, Any]:
    """A pickled dictionary of arrays, numbers, lists and strings. Raises DataError for anything else."""
    try:
        with path.open("rb") as file:
            held = _ArrayUnpickler(file, encoding="bytes").load()
    except Exception as error:  # a damaged pickle may raise anything
        raise DataError(f"{path} is no pickle of arrays: {error}") from None
    if not isinstance(held, dict):
        raise DataError(f"{path} holds a {type(held).__name__}, not a dictionary")
    return {_text(key): value for key, value in held.items()}


def _text(key: str | bytes) -> str:
    return key.decode("latin1") if isinstance(key, bytes) else key
