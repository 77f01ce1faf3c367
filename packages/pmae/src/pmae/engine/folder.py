"""The folder of a run: what :func:`pmae.load` reads, one line of numbers per epoch, and where all of it came from.

config.yaml, space.safetensors, model.safetensors   the model; its weights are those of the last checkpoint
metrics.jsonl                                       a record per epoch
bands.jsonl, bands.png                              what is unexplained of held-out images, by band of components
tensorboard/                                        the records again, if that was asked for
run.json                                            versions, device, recipe, fingerprints, seconds
checkpoints/                                        see checkpoint.py
"""

from __future__ import annotations

import json
import platform
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__
from . import checkpoint

METRICS, BANDS, RUN, CHECKPOINTS = "metrics.jsonl", "bands.jsonl", "run.json", "checkpoints"
PICTURE, EVENTS = "bands.png", "tensorboard"


def begin(out: Path) -> None:
    """An empty folder for another run: what one before left in it goes."""
    out.mkdir(parents=True, exist_ok=True)
    for name in (CHECKPOINTS, EVENTS):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in (METRICS, BANDS, PICTURE, RUN):
        (out / name).unlink(missing_ok=True)


def write_records(path: Path, records: list[dict[str, Any]]) -> None:
    """All records so far; what a run that was resumed had beyond its checkpoint goes."""
    checkpoint.write_atomically(path, "".join(json.dumps(record) + "\n" for record in records))


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """Values as a file gives them back: tuples are lists."""
    found: dict[str, Any] = json.loads(json.dumps(values))
    return found


def write_run(out: Path, facts: dict[str, Any]) -> None:
    """run.json: the facts of this run, and of the machine."""
    about = {
        "pmae": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
    }
    checkpoint.write_atomically(out / RUN, json.dumps({**about, **facts}, indent=1) + "\n")
