"""folder:PATH — images in one folder per class, or in one folder without labels."""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError, MissingSourceError
from .decode import decoded, image_files
from .imageset import ImageSet

# Names of the folder of a split.
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}


def read(
    split: str,
    path: Path | None = None,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    cache: str | Path | None = None,
) -> ImageSet:
    """Images below PATH/train, PATH/val and PATH/test, or below PATH, which then is all training data.

    Without a test folder "test" is the validation folder. In each, images lie in a folder per class, at any depth;
    classes are numbered by name, as in torchvision. If no image lies in such a folder there are no labels.
    Raises MissingSourceError, DataError, ValueError.
    """
    if path is None or not path.is_dir():
        raise MissingSourceError(f"folder:{path or 'PATH'} is no folder: give one that holds images")
    home = _home(path, split)
    roots = sorted(child for child in home.iterdir() if child.is_dir() and not child.name.startswith("."))
    per_class = {root.name: image_files(root) for root in roots}
    per_class = {name: files for name, files in per_class.items() if files}
    loose = sorted(set(image_files(home)) - {file for files in per_class.values() for file in files})
    if not per_class and not loose:
        raise MissingSourceError(f"{home} holds no image files")
    if per_class and loose:
        raise DataError(f"{home} holds folders of images and images beside them, such as {loose[0].name}: which is it?")
    if loose:
        return decoded("folder", loose, None, None, size, channels, cache)
    files = [file for group in per_class.values() for file in group]
    labels = [label for label, group in enumerate(per_class.values()) for _ in group]
    return decoded("folder", files, labels, list(per_class), size, channels, cache)


def _home(path: Path, split: str) -> Path:
    there = {key: path / name for key, names in SPLITS.items() for name in names if (path / name).is_dir()}
    if "train" not in there:
        if split == "train":
            return path
        raise MissingSourceError(f"{path} has no train/ and {split}/ folders: all of it is training data")
    if split == "test" and "test" not in there and "val" in there:
        return there["val"]
    if split not in there:
        raise MissingSourceError(f"{path} has no folder {split}/, only {', '.join(there[key].name for key in there)}")
    return there[split]
