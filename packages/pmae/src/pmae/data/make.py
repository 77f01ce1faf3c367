"""A built-in data set as a file that every tool reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from .registry import ENTRIES, load


def make(
    name: str, out: str | Path, size: int | None = None, n: int | None = None, n_test: int | None = None, seed: int = 0
) -> dict[str, int]:
    """Write ``photopatch`` or another source without files as npz, in MedMNIST's form; ``npz:FILE`` reads it back.

    Keys: train_images and test_images, uint8 (N, H, W) or (N, H, W, 3); train_labels and test_labels, int64 (N, 1);
    classes; layout, "NHWC", as the shape of small images does not tell which axis is the channels. n, n_test and seed
    are of photopatch. The file is there whole or not at all. Returns the number of images per split. Raises ValueError.
    """
    made = [key for key, entry in ENTRIES.items() if entry.home == ""]
    if name not in made:
        raise ValueError(f"data make {name!r}: one of {', '.join(made)}")
    arrays: dict[str, Any] = {"layout": np.array("NHWC")}
    counts: dict[str, int] = {}
    for split, number in (("train", n), ("test", n_test)):
        options = {"n": number, "seed": seed} if name == "photopatch" else {}
        found = load(name, split, size=size, **options)
        last = np.moveaxis(found.images, 1, 3)
        arrays[f"{split}_images"] = last[..., 0] if last.shape[-1] == 1 else last
        assert found.labels is not None
        arrays[f"{split}_labels"] = found.labels[:, None]
        arrays["classes"] = np.array(found.classes)
        counts[split] = len(found)
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return counts
