"""The images that models train on and are judged by, and the spaces that their jobs share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .. import data
from ..space import fit_space
from .profiles import Profile


def crops(profile: Profile, split: str) -> tuple[np.ndarray, Any]:
    """Crops of photographs, uint8 (n, 3, side, side), and the number of the photograph."""
    n, seed = (profile.train, profile.crop_seeds[0]) if split == "train" else (profile.test, profile.crop_seeds[1])
    found = data.load("photopatch", split=split, size=profile.side, n=n, seed=seed)
    return found.images, found.labels


def images_of(source: str, profile: Profile, split: str) -> tuple[np.ndarray, Any]:
    """Images and labels by the name of the source."""
    if source == "photopatch":
        return crops(profile, split)
    found = data.load(source, split=split)
    n = profile.fashion_train if split == "train" else profile.test
    return found.images[:n], found.labels[:n]  # type: ignore[index]


def space_file(profile: Profile, out: Path, basis: str, device: str, source: str = "photopatch") -> str:
    """The file of a space of the training images, made once."""
    path = out / "runs" / f"{source}-{basis}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        fit_space(images_of(source, profile, "train")[0], basis, device=device).save(path)
    return str(path)
