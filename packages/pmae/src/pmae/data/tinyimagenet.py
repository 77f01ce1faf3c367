"""TinyImageNet: 200 classes of ImageNet at 64 × 64 pixels, 100,000 training and 10,000 validation images.

The test split here is the official validation set: the official test set has no labels.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError, MissingSourceError
from .decode import decoded, image_files
from .imageset import ImageSet

OBTAIN = (
    "download http://cs231n.stanford.edu/tiny-imagenet-200.zip, unpack it, and give the folder: "
    "tinyimagenet:tiny-imagenet-200"
)


def read(
    split: str,
    path: Path | None = None,
    size: int | tuple[int, int] | None = 64,
    channels: int | None = 3,
    cache: str | Path | None = None,
) -> ImageSet:
    """From train/CLASS/images and val with val_annotations.txt, or val/CLASS. Raises MissingSourceError, DataError."""
    home = next((p for p in (path, path / "tiny-imagenet-200") if (p / "train").is_dir()), None) if path else None
    if home is None:
        raise MissingSourceError(f"tinyimagenet: no train/ in {path or 'PATH'}: {OBTAIN}")
    classes = sorted(child.name for child in (home / "train").iterdir() if child.is_dir())
    number = {name: label for label, name in enumerate(classes)}
    annotations = home / "val" / "val_annotations.txt"
    if split == "test" and annotations.is_file():
        pairs = [line.split("\t")[:2] for line in annotations.read_text().splitlines() if line.strip()]
        files = [(home / "val" / "images" / name, label) for name, label in pairs]
    else:
        root = home / ("train" if split == "train" else "val")
        if not root.is_dir():
            raise MissingSourceError(f"tinyimagenet: no {root}: {OBTAIN}")
        files = [
            (file, child.name) for child in sorted(root.iterdir()) if child.is_dir() for file in image_files(child)
        ]
    if not files:
        raise MissingSourceError(f"tinyimagenet: no images for {split} in {home}: {OBTAIN}")
    for file, label in files:
        if label not in number:
            raise DataError(f"tinyimagenet: {file} is of class {label}, which train/ does not have")
    images, labels = [file for file, _ in files], [number[label] for _, label in files]
    return decoded("tinyimagenet", images, labels, _words(home, classes), size, channels, cache)


def _words(home: Path, classes: list[str]) -> list[str]:
    """The words for the classes' WordNet numbers, where words.txt has them."""
    path = home / "words.txt"
    lines = path.read_text().splitlines() if path.is_file() else []
    words = dict(line.split("\t", 1) for line in lines if "\t" in line)
    return [words.get(name, name) for name in classes]
