"""photopatch: small crops of ten colour photographs that ship with scikit-image and scikit-learn.

The label is the photograph: a task of texture, colour and structure, as of tissue patches. Training crops lie in the
left 60 % of the columns of a photograph, test crops in the right 40 %: no pixel belongs to both.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import MissingSourceError
from .imageset import ImageSet

# Name of each class: distribution, and the file in its package.
PHOTOGRAPHS = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "hubble_deep_field": ("skimage", "data/hubble_deep_field.jpg"),
    "ihc": ("skimage", "data/ihc.png"),
    "retina": ("skimage", "data/retina.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "motorcycle_left": ("skimage", "data/motorcycle_left.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
}
TRAIN_SHARE = 0.6  # of the columns
COUNTS = {"train": 6000, "test": 3000}
SIZES = (8, 128)  # the narrowest test region has 180 columns


def read(split: str, size: int = 32, n: int | None = None, seed: int = 0) -> ImageSet:
    """Crops of ``size`` × ``size`` pixels at the photographs' own resolution, as many of each photograph.

    n : how many; None is 6,000 for training, 3,000 for testing. Equal (split, size, n, seed) give equal crops.
    Raises ValueError, MissingSourceError.
    """
    n = COUNTS[split] if n is None else n
    if not SIZES[0] <= size <= SIZES[1]:
        raise ValueError(f"size={size}: photopatch has crops of {SIZES[0]} to {SIZES[1]} pixels")
    if n < 1:
        raise ValueError(f"n={n}: at least 1")
    draw = np.random.default_rng([seed, size, list(COUNTS).index(split)])
    labels = draw.permutation(np.arange(n) % len(PHOTOGRAPHS))
    images = np.empty((n, 3, size, size), dtype=np.uint8)
    for label, name in enumerate(PHOTOGRAPHS):
        pixels = region(photograph(name), split)
        mine = np.flatnonzero(labels == label)
        tops = draw.integers(0, pixels.shape[1] - size + 1, len(mine))
        lefts = draw.integers(0, pixels.shape[2] - size + 1, len(mine))
        windows = np.lib.stride_tricks.sliding_window_view(pixels, (size, size), axis=(1, 2))
        images[mine] = windows[:, tops, lefts].swapaxes(0, 1)
    return ImageSet(images, labels.astype(np.int64), list(PHOTOGRAPHS), "photopatch")


def region(pixels: np.ndarray, split: str) -> np.ndarray:
    """The columns of a photograph (3, H, W) that belong to a split."""
    border = round(TRAIN_SHARE * pixels.shape[2])
    return pixels[:, :, :border] if split == "train" else pixels[:, :, border:]


@cache
def photograph(name: str) -> np.ndarray:
    """uint8 (3, H, W), read-only. Raises MissingSourceError."""
    package, file = PHOTOGRAPHS[name]
    found = find_spec(package)
    path = Path(found.origin).parent / file if found and found.origin else None
    if path is None or not path.is_file():
        raise MissingSourceError(
            f"photopatch: the photograph {name} is missing: pip install 'scikit-image>=0.24' 'scikit-learn>=1.6'"
        )
    return np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)
