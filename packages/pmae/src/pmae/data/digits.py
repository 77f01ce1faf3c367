"""digits: 1,797 handwritten digits of 8 × 8 pixels that ship with scikit-learn."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from .imageset import ImageSet

TRAIN = 1347  # the first three quarters; the rest is by other writers


def read(split: str) -> ImageSet:
    """Grey images; 1,347 to train, 450 to test."""
    images, labels = load_digits(return_X_y=True)
    part = slice(None, TRAIN) if split == "train" else slice(TRAIN, None)
    pixels = np.rint(images[part] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)  # stored as 0 to 16
    return ImageSet(pixels, labels[part].astype(np.int64), [str(digit) for digit in range(10)], "digits")
