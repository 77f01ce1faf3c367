"""Features of a frozen encoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ..errors import NumericalError, ShapeError
from ..images import as_source


def extract(
    model: Any,
    images: Any,
    pool: str = "avg",
    batch_size: int = 256,
    device: str | torch.device = "auto",
    layout: str = "NCHW",
) -> np.ndarray:
    """Float32 (N, d): ``model.features`` of whole, un-augmented images.

    model : has ``features(images, pool)``
    images : anything that :func:`pmae.images.as_source` reads
    pool : "cls", "avg" or "cls+avg"
    device : "auto" is where the model lies; another one moves it there
    Raises ShapeError, DataError; NumericalError if a feature is not finite.
    """
    source = as_source(images, layout)
    where = place(model, device)
    parts = []
    with evaluating(model), torch.inference_mode():
        for batch in source.chunks(batch_size):
            found = model.features(batch.to(where, non_blocking=True), pool)
            if found.ndim != 2:
                raise ShapeError(f"features with pool={pool!r} have shape {tuple(found.shape)}: (B, d) is needed")
            parts.append(found.float().cpu())
    features = torch.cat(parts).numpy()
    if not np.isfinite(features).all():
        raise NumericalError("features hold NaN or infinite values: training has diverged")
    return features


def place(model: Any, device: str | torch.device) -> torch.device:
    """Where the model lies, once it has been moved to the device unless that is "auto"."""
    if device != "auto":
        model.to(device)
    tensor = next(model.parameters(), next(model.buffers(), torch.empty(0)))
    return tensor.device


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Dropout and the like off, and on again afterwards if they were."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
