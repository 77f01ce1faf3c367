"""MLP probe: two hidden layers on frozen features, as in arXiv:2502.06314."""

from __future__ import annotations

from typing import Any

import torch

from .heads import Progress, feature_head, frozen_head
from .linear import PROTOCOLS
from .result import ProbeResult

HIDDEN = (192, 192)


def mlp_probe(
    train_x: Any,
    train_y: Any,
    test_x: Any,
    test_y: Any,
    val: float | tuple[Any, Any] = 0.1,
    seed: int = 0,
    *,
    hidden: tuple[int, ...] = HIDDEN,
    protocol: str = "fast",
    device: str | torch.device = "auto",
    model: Any = None,
    pool: str = "cls",
    progress: Progress | None = None,
    **recipe: Any,
) -> ProbeResult:
    """d → 192 → 192 → classes with ReLU, trained by SGD; the epoch is chosen on the validation part.

    "fast" trains on features (N, d), which are standardised; "paper" on those that ``model`` makes of augmented images.
    All else is as in :func:`linear_probe`; ``recipe`` changes fields of :class:`pmae.probes.heads.Recipe`.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol={protocol!r}: one of {', '.join(PROTOCOLS)}")
    parts = (train_x, train_y, test_x, test_y)
    if protocol == "paper":
        return frozen_head(model, parts, hidden, val, seed, pool=pool, device=device, progress=progress, **recipe)
    if model is not None:
        raise ValueError("model: only with protocol='paper'")
    return feature_head(parts, hidden, val, seed, device=device, progress=progress, **recipe)
