"""A model's probes by name, on two splits of a data set."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import DataError
from .features import extract
from .finetune import finetune
from .heads import Progress
from .knn import PAPER_K, knn_probe
from .linear import PROTOCOLS, linear_probe
from .mlp import mlp_probe
from .result import ProbeResult

KINDS = ("linear", "knn", "mlp", "finetune")


def probe(
    model: Any,
    train: Any,
    test: Any,
    kind: str = "linear",
    protocol: str = "fast",
    pool: str = "avg",
    val: Any = 0.1,
    seed: int = 0,
    *,
    batch_size: int = 256,
    device: str | torch.device = "auto",
    progress: Progress | None = None,
    **recipe: Any,
) -> ProbeResult:
    """One probe of a model.

    Parameters
    ----------
    train, test : :class:`pmae.data.ImageSet` with labels
    kind : "linear", "knn", "mlp" or "finetune"
    protocol : "fast" works on the features of whole images (kNN: cosine, 10 neighbours); "paper" is that of
        arXiv:2502.06314 (kNN: L2, 3 to 20 neighbours; else 100 epochs on augmented images), as fine-tuning always is
    val : a share of train to choose by, or an ImageSet
    batch_size : of training where there is any, else of the extraction of features
    recipe : epochs, lr, … of the trained kinds
    Raises ValueError, ShapeError, DataError, NumericalError.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: one of {', '.join(KINDS)}")
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol={protocol!r}: one of {', '.join(PROTOCOLS)}")
    held = None if isinstance(val, float | int) else val
    for part in (train, test, held):
        if part is not None and part.labels is None:
            raise DataError(f"{part.name} has no labels: a probe needs them")
    trained: dict[str, Any] = {"pool": pool, "device": device, "progress": progress, "batch_size": batch_size, **recipe}
    pair = val if held is None else (held.images, held.labels)
    parts = (train.images, train.labels, test.images, test.labels)
    if kind == "finetune":
        return finetune(model, *parts, pair, seed, **trained)
    if protocol == "paper" and kind != "knn":
        head = linear_probe if kind == "linear" else mlp_probe
        return head(*parts, pair, seed, protocol="paper", model=model, **trained)

    def features(images: Any) -> Any:
        return extract(model, images, pool, batch_size, device)

    seen = (features(train.images), train.labels, features(test.images), test.labels)
    pair = val if held is None else (features(held.images), held.labels)
    where = next(model.parameters(), torch.empty(0)).device
    if kind == "mlp":
        return mlp_probe(*seen, pair, seed, device=where, progress=progress, batch_size=batch_size, **recipe)
    if recipe:
        raise ValueError(f"{', '.join(recipe)}: the {kind} probe of protocol {protocol!r} has no such option")
    if kind == "linear":
        return linear_probe(*seen, pair, seed, device=where)
    if protocol == "paper":
        return knn_probe(*seen, PAPER_K, "l2", pair, seed, device=where)
    return knn_probe(*seen, 10, "cosine", pair, seed, device=where)
