"""Fine-tuning: encoder and classifier trained together, as in arXiv:2502.06314."""

from __future__ import annotations

import copy
from typing import Any

import torch

from ..images import as_source
from .features import extract, place
from .heads import FINETUNE, Progress, head_of, scores_of, split_images, train
from .result import ProbeResult


def finetune(
    model: Any,
    train_images: Any,
    train_y: Any,
    test_images: Any,
    test_y: Any,
    val: float | tuple[Any, Any] = 0.1,
    seed: int = 0,
    *,
    pool: str = "cls",
    device: str | torch.device = "auto",
    progress: Progress | None = None,
    **recipe: Any,
) -> ProbeResult:
    """AdamW on a copy of the model and a linear classifier; the epoch is chosen on the validation part.

    model : has ``features(images, pool)``; it stays as it is
    train_images, test_images : anything that :func:`pmae.images.as_source` reads
    device : "auto" is where the model lies
    recipe : fields of :class:`pmae.probes.heads.Recipe` to change
    The rest is as in :func:`linear_probe`. Raises ShapeError, DataError, ValueError, NumericalError.
    """
    model = copy.deepcopy(model)
    where = place(model, device)
    images, labels = split_images(as_source(train_images), train_y, as_source(test_images), test_y, val, seed)
    width = extract(model, images["test"].take([0]).repeat(2, 1, 1, 1), pool).shape[1]
    generator = torch.Generator().manual_seed(seed)
    head = head_of(width, (), len(labels.classes), generator).to(where)
    whole = torch.nn.ModuleList([model, head])
    return train(
        whole,
        forward=lambda x: head(model.features(x, pool)),
        predict=lambda part: scores_of(lambda x: head(model.features(x, pool)), images[part], where),
        inputs=images["train"],
        labels=labels,
        recipe=FINETUNE.change(recipe),
        generator=generator,
        device=where,
        progress=progress,
    )
