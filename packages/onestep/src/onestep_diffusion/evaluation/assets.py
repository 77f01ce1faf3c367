"""Makes the files in `assets`: feature classifiers and the teachers of the digits that `quick` starts from.

python -m onestep_diffusion.evaluation.assets [FOLDER] [NAME ...] writes them again, from fixed seeds.
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

import numpy as np

from ..checkpoint import load_model, save_model
from ..config import TeacherConfig
from ..data import Dataset, load_data
from ..denoiser import Denoiser
from ..features import save_classifier, train_classifier
from ..noise import Fixed, LogNormal
from ..train import train_teacher

SEED = 0
SIGMA_INIT = 2.5
# Many levels; the student's one alone; many that exclude it: P(sigma >= 2.5) is about 3e-6.
LAWS = {"multi": LogNormal(), "single": Fixed(SIGMA_INIT), "off": LogNormal(-1.8, 0.6)}
CLASSIFIERS = {"digits": ("digits", 3000), "fashion": ("fashion-mnist", 6000)}
NET = {"hidden": 128, "blocks": 3}


def teacher_config(name: str, steps: int = 6000) -> TeacherConfig:
    """The same network, batch, optimiser and steps for all three."""
    return TeacherConfig(net="mlp", net_kwargs=NET, sigma_law=LAWS[name], steps=steps, batch_size=128, lr=1e-3)


def digits(rows: int | None = None) -> Dataset:
    """scikit-learn's digits as vectors, without their labels."""
    return load_data("digits", held_out=0.1, seed=SEED, rows=rows).flatten().without_labels()


def shipped_teacher(name: str) -> Denoiser:
    """`multi`, `single` or `off`: trained on the digits for 6000 steps."""
    model: Denoiser = load_model(Path(str(files("onestep_diffusion") / "assets" / f"teacher_{name}.safetensors")))
    return model


def make(folder: Path, name: str) -> str:
    """Train and write one file; says what it wrote."""
    kind, _, which = name.partition("_")
    path = folder / f"{name}.safetensors"
    if kind == "teacher":
        save_model(path, train_teacher(digits(), teacher_config(which), seed=SEED), dtype="float16")
        path.with_suffix(".json").unlink()  # for people, who have this module
        return f"{path}: {LAWS[which]}"
    spec, steps = CLASSIFIERS[which]
    data = load_data(spec, held_out=0.2, seed=SEED)
    x = [data.to_model(rows) for rows in (data.x, data.held_out)]
    trained = train_classifier((x[0], np.asarray(data.labels)), (x[1], np.asarray(data.held_out_labels)), steps=steps)
    save_classifier(path, trained, data=spec, steps=steps, seed=SEED)
    return f"{path}: {trained.accuracy:.1%} of {len(x[1]):,} held-out images"


def main(folder: str = str(files("onestep_diffusion") / "assets"), *names: str) -> None:
    """Write the named files, or all."""
    every = [*(f"features_{name}" for name in CLASSIFIERS), *(f"teacher_{name}" for name in LAWS)]
    for name in names or every:
        print(make(Path(folder), name), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
