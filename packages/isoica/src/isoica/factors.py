"""Images with known factors from files of the user: dSprites and 3D Shapes, a random part of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils import Bunch

from .errors import IsoICAError

DSPRITES = ("scale", "orientation", "x", "y")  # the factors that are continuous; the shape is chosen
SHAPES3D = ("floor_hue", "wall_hue", "object_hue", "scale", "shape", "orientation")


def load_dsprites(
    path: str | os.PathLike[str], n: int | None = 10_000, shape: int = 1, random_state: Any = None
) -> Bunch:
    """Images of one shape (1 square, 2 ellipse, 3 heart) from ``dsprites_ndarray_...npz``.

    Returns a Bunch of images (n, 64, 64) float32, S (n, 4) scale, orientation, x and y in the file's units, and names.
    """
    with _opened(path, ".npz") as file:
        missing = sorted({"imgs", "latents_values"} - set(file.files))
        if missing:
            raise IsoICAError(f"{path} is not dSprites: it has no {', '.join(missing)}")
        latents = np.asarray(file["latents_values"], dtype=np.float64)
        rows = _some(np.flatnonzero(latents[:, 1] == shape), n, random_state)
        if not len(rows):
            raise IsoICAError(f"shape={shape} is not in {path}; there are 1, 2 and 3")
        images = file["imgs"][rows].astype(np.float32)
    return Bunch(images=images, S=latents[rows][:, 2:], names=list(DSPRITES))


def load_shapes3d(path: str | os.PathLike[str], n: int | None = 10_000, random_state: Any = None) -> Bunch:
    """Images from ``3dshapes.h5``, for which h5py has to be installed.

    Returns a Bunch of images (n, 64, 64, 3) float32 in [0, 1], S (n, 6) factors and names.
    """
    try:
        import h5py
    except ImportError:
        raise IsoICAError("reading 3D Shapes needs h5py; pip install h5py") from None
    if not Path(path).is_file():
        raise IsoICAError(f"{path} does not exist; give the path of 3dshapes.h5")
    try:
        with h5py.File(path, "r") as file:
            missing = sorted({"images", "labels"} - set(file))
            if missing:
                raise IsoICAError(f"{path} is not 3D Shapes: it has no {', '.join(missing)}")
            rows = _some(np.arange(len(file["labels"])), n, random_state)
            images = file["images"][rows].astype(np.float32) / 255
            labels = np.asarray(file["labels"][rows], dtype=np.float64)
    except OSError as error:
        raise IsoICAError(f"{path} cannot be read: {error}") from None
    return Bunch(images=images, S=labels, names=list(SHAPES3D))


def _opened(path: str | os.PathLike[str], suffix: str) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise IsoICAError(f"{path} does not exist; give the path of the {suffix} file") from None
    except (OSError, ValueError, EOFError) as error:
        raise IsoICAError(f"{path} cannot be read as {suffix}: {error}") from None


def _some(rows: np.ndarray[Any, np.dtype[np.intp]], n: int | None, random_state: Any) -> Any:
    """Sorted rows, all or so many at random."""
    if n is None or n >= len(rows):
        return rows
    if n < 1:
        raise IsoICAError(f"n={n}; must be at least 1, or None for all")
    return np.sort(np.random.default_rng(random_state).choice(rows, n, replace=False))
