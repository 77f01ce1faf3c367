"""Data sets by name: what there is, where it is looked for, and how it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import arrays, cifar, digits, fashion_mnist, folder, medmnist, photopatch, tinyimagenet
from .imageset import ImageSet, pair, with_channels, with_size

SPLITS = ("train", "val", "test")
TWO = ("train", "test")
PYTHON_PACKAGES = "nothing: the images are in Python packages that pmae installs"


@dataclass(frozen=True)
class Request:
    """What is asked of a source."""

    name: str
    path: Path | None
    split: str
    size: int | tuple[int, int] | None
    channels: int | None
    options: dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A source.

    Attributes
    ----------
    read : makes the split; size and channels are brought about afterwards where it does not heed them
    about : one line
    obtain : where the files come from
    home : where they are looked for if no path is given; None if a path is needed, "" if there are no files
    options : names of what else can be asked for
    """

    read: Callable[[Request], ImageSet]
    about: str
    obtain: str
    home: Path | str | None = None
    splits: tuple[str, ...] = TWO
    options: tuple[str, ...] = ()


def _medmnist(r: Request) -> ImageSet:
    return medmnist.read(r.name, r.split, r.path, r.size)


def _cifar(r: Request) -> ImageSet:
    return cifar.read(r.name, r.split, r.path, **r.options)


def _folder(r: Request) -> ImageSet:
    return folder.read(r.split, r.path, r.size, r.channels, **r.options)


def _tinyimagenet(r: Request) -> ImageSet:
    return tinyimagenet.read(r.split, r.path, r.size or 64, r.channels or 3, **r.options)


def _photopatch(r: Request) -> ImageSet:
    height, width = pair(32 if r.size is None else r.size)
    if height != width:
        raise ValueError(f"size={r.size}: photopatch has square crops")
    return photopatch.read(r.split, height, **r.options)


ENTRIES: dict[str, Entry] = {
    "photopatch": Entry(
        _photopatch, "crops of 10 colour photographs, 6,000 + 3,000, 32 px", PYTHON_PACKAGES, "", options=("n", "seed")
    ),
    "digits": Entry(lambda r: digits.read(r.split), "handwritten digits, 1,347 + 450, 8 px", PYTHON_PACKAGES, ""),
    "fashion_mnist": Entry(
        lambda r: fashion_mnist.read(r.split, r.path),
        "clothes, 60,000 + 10,000, 28 px",
        fashion_mnist.OBTAIN,
        fashion_mnist.HOME,
    ),
    "cifar10": Entry(_cifar, "photographs, 10 classes, 32 px", cifar.OBTAIN.format(name="cifar10")),
    "cifar100": Entry(
        _cifar, "photographs, 100 or 20 classes, 32 px", cifar.OBTAIN.format(name="cifar100"), options=("kind",)
    ),
    "tinyimagenet": Entry(_tinyimagenet, "photographs, 200 classes, 64 px", tinyimagenet.OBTAIN, options=("cache",)),
    **{
        name: Entry(
            _medmnist,
            f"MedMNIST, {len(classes)} {'labels' if name == 'chestmnist' else 'classes'}, 28, 64, 128 or 224 px",
            medmnist.obtain(name),
            medmnist.HOME / f"{name}.npz",
            SPLITS,
        )
        for name, classes in medmnist.CLASSES.items()
    },
    "folder": Entry(
        _folder, "image files in a folder per class, or without labels", "folder:PATH", None, SPLITS, ("cache",)
    ),
    "npz": Entry(
        lambda r: arrays.read_npz(r.split, r.path, **r.options),
        "arrays images, labels or train_images, train_labels, …",
        "npz:FILE",
        None,
        SPLITS,
        ("layout",),
    ),
    "npy": Entry(
        lambda r: arrays.read_npy(r.split, r.path, **r.options),
        "one array of images",
        "npy:FILE",
        None,
        TWO,
        ("layout",),
    ),
}


def load(
    spec: str,
    split: str = "train",
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    **options: Any,
) -> ImageSet:
    """A split of a data set.

    Parameters
    ----------
    spec : ``name`` or ``name:PATH``; :func:`listing` has the names
    split : "train", "test" and, where there is one, "val"
    size : side, or (height, width), that images are resized to; photopatch crops it, folder keeps the aspect ratio
    channels : 1 to any number repeats grey, 3 to 1 takes the luma
    options : what else the source knows, such as ``n`` and ``seed`` of photopatch, or ``cache`` of folder

    Raises ValueError for unknown names, splits and options; MissingSourceError, which says how to obtain the data;
    DataError for damaged files.
    """
    name, _, path = spec.partition(":")
    if name not in ENTRIES:
        raise ValueError(f"data {spec!r}: unknown name {name!r}; one of {', '.join(ENTRIES)}")
    entry = ENTRIES[name]
    if split not in entry.splits:
        raise ValueError(f"{name} has no split {split!r}: one of {', '.join(entry.splits)}")
    if path and entry.home == "":
        raise ValueError(f"data {spec!r}: {name} takes no path")
    for option in options:
        if option not in entry.options:
            raise ValueError(f"{name} has no option {option!r}: {', '.join(entry.options) or 'it has none'}")
    request = Request(name, Path(path).expanduser() if path else None, split, size, channels, options)
    found = with_channels(with_size(entry.read(request), size), channels)
    return replace(found, name=f"{name}/{split}")


def listing() -> list[dict[str, str]]:
    """One row per source: name, about, where ("built in", the place where it was found, or empty), obtain, options."""
    rows = []
    for name, entry in ENTRIES.items():
        home = Path(entry.home).expanduser() if entry.home else None
        there = "built in" if entry.home == "" else str(home) if home is not None and home.exists() else ""
        row = {"name": name, "about": entry.about, "where": there, "obtain": entry.obtain}
        rows.append({**row, "options": ", ".join(entry.options)})
    return rows
