"""Classifiers trained by gradient steps: the protocols of arXiv:2502.06314, and the loop that they share.

100 epochs, learning rate · batch / 256 with warm-up and a cosine, crops and flips. On a frozen encoder a head learns
by SGD with momentum and no decay; fine-tuning is AdamW on all. The paper reports the best test accuracy over epochs.
Here the epoch is chosen on a validation part. The paper's number is in ``details["test_max_over_epochs"]``: chosen on
the test images, it is too good.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..engine.augment import random_views
from ..engine.schedule import lr_factor, scaled_lr
from ..errors import NumericalError, ShapeError
from ..images import Source, as_source
from .features import evaluating, extract, place
from .result import (
    Labels,
    ProbeResult,
    accuracy_of,
    as_features,
    as_labels,
    device_for,
    quality,
    scored,
    split_off,
    validation_split,
)

Progress = Callable[[int, int, float], None]  # epoch that is done, epochs, validation accuracy

REFERENCE = 256  # images in the batch that a learning rate is stated for
AUGMENTS = ("crop+flip", "none")
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained.

    Attributes
    ----------
    lr : peak for a batch of 256; larger batches take proportionally larger steps
    optimizer : "sgd" with momentum 0.9, or "adamw" with betas (0.9, 0.999); vectors are not decayed
    augment : "crop+flip" (a fifth to all of the area) or "none"
    """

    epochs: int = 100
    batch_size: int = 256
    optimizer: str = "sgd"
    lr: float = 0.1
    weight_decay: float = 0.0
    warmup_epochs: float = 10.0
    augment: str = "crop+flip"
    precision: str = "fp32"

    def change(self, to: dict[str, Any]) -> Recipe:
        """With other values. Raises ValueError."""
        known = [each.name for each in fields(self)]
        for name in to:
            if name not in known:
                raise ValueError(f"no option {name!r}: {', '.join(known)}")
        recipe = replace(self, **to)
        for name, value, allowed in (
            ("augment", recipe.augment, AUGMENTS),
            ("precision", recipe.precision, PRECISIONS),
            ("optimizer", recipe.optimizer, ("sgd", "adamw")),
        ):
            if value not in allowed:
                raise ValueError(f"{name}={value!r}: one of {', '.join(allowed)}")
        if recipe.epochs < 1 or recipe.batch_size < 1 or not recipe.lr > 0:
            raise ValueError(f"{recipe}: epochs and batch_size are at least 1, lr is positive")
        return recipe


FROZEN = Recipe()
FEATURES = Recipe(augment="none")
FINETUNE = Recipe(optimizer="adamw", lr=1e-3, weight_decay=0.05, warmup_epochs=5.0)


class Part(Source):
    """Some images of a source."""

    def __init__(self, source: Source, indices: np.ndarray) -> None:
        self.source, self.indices, self.shape = source, indices, source.shape

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, indices: Sequence[int] | np.ndarray | slice) -> Tensor:
        return self.source.take(self.indices[indices])


def split_images(
    train: Source, train_y: Any, test: Source, test_y: Any, val: Any, seed: int
) -> tuple[dict[str, Source], Labels]:
    """Images and labels to train, validate and test by. Raises ShapeError, DataError, ValueError."""
    y, wanted = np.asarray(train_y), np.asarray(test_y)
    if isinstance(val, float | int):
        fit, held = validation_split(y, val, seed)
        images = {"train": Part(train, fit), "val": Part(train, held), "test": test}
        labels = as_labels(y[fit], y[held], wanted)
    else:
        images = {"train": train, "val": as_source(val[0]), "test": test}
        labels = as_labels(y, np.asarray(val[1]), wanted)
    for part, those in images.items():
        if len(those) != len(getattr(labels, part)):
            raise ShapeError(f"{part}: {len(those)} images and {len(getattr(labels, part))} labels")
    return images, labels


def frozen_head(
    model: Any,
    parts: tuple[Any, Any, Any, Any],
    hidden: tuple[int, ...],
    val: Any,
    seed: int,
    *,
    pool: str,
    device: str | torch.device,
    progress: Progress | None,
    **recipe: Any,
) -> ProbeResult:
    """Train a head on features that a frozen encoder makes of augmented images; validate and test on whole images."""
    if model is None:
        raise ValueError("protocol='paper' makes features of augmented images: give model, and images for x")
    train_images, train_y, test_images, test_y = parts
    where = place(model, device)
    images, labels = split_images(as_source(train_images), train_y, as_source(test_images), test_y, val, seed)
    seen = {part: torch.from_numpy(extract(model, images[part], pool)).to(where) for part in ("val", "test")}
    generator = torch.Generator().manual_seed(seed)
    head = head_of(seen["test"].shape[1], hidden, len(labels.classes), generator).to(where)

    def forward(x: Tensor) -> Tensor:
        with evaluating(model), torch.no_grad():
            features = model.features(x, pool)
        return head(features)

    return train(
        head, forward, lambda part: head(seen[part]).float().cpu().numpy(), images["train"], labels,
        FROZEN.change(recipe), generator, where, progress,
    )  # fmt: skip


def feature_head(
    parts: tuple[Any, Any, Any, Any],
    hidden: tuple[int, ...],
    val: Any,
    seed: int,
    *,
    device: str | torch.device,
    progress: Progress | None,
    **recipe: Any,
) -> ProbeResult:
    """Train a head on features, standardised by the mean and deviation of the training part."""
    x, y = as_features(parts[0], parts[1], "train")
    test_x, test_y = as_features(parts[2], parts[3], "test", x.shape[1])
    fit_x, fit_y, val_x, val_y = split_off(x, y, val, seed)
    labels = as_labels(fit_y, val_y, test_y)
    mean, std = fit_x.mean(0), fit_x.std(0)
    where = device_for(device)

    def standardized(x: np.ndarray) -> Tensor:
        return torch.from_numpy((x - mean) / np.where(std > 1e-6 * (1 + abs(mean)), std, np.inf)).to(where)

    seen = {"val": standardized(val_x), "test": standardized(test_x)}
    generator = torch.Generator().manual_seed(seed)
    head = head_of(x.shape[1], hidden, len(labels.classes), generator).to(where)
    return train(
        head, head, lambda part: head(seen[part]).float().cpu().numpy(), standardized(fit_x), labels,
        FEATURES.change(recipe), generator, where, progress,
    )  # fmt: skip


def head_of(width: int, hidden: tuple[int, ...], n_classes: int, generator: torch.Generator) -> nn.Sequential:
    """Linear layers with ReLU between them: He's initialisation, the last one near 0 as in MAE's probe."""
    layers: list[nn.Module] = []
    sizes = [width, *hidden, n_classes]
    for i, (before, after) in enumerate(pairwise(sizes)):
        # PyTorch's own initialisation would draw from the global generator.
        layer = nn.utils.skip_init(nn.Linear, before, after)  # type: ignore[no-untyped-call]
        deviation = math.sqrt(2 / before) if i < len(hidden) else 0.01
        nn.init.normal_(layer.weight, std=deviation, generator=generator)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def train(
    module: nn.Module,
    forward: Callable[[Tensor], Tensor],
    predict: Callable[[str], np.ndarray],
    inputs: Source | Tensor,
    labels: Labels,
    recipe: Recipe,
    generator: torch.Generator,
    device: torch.device,
    progress: Progress | None = None,
) -> ProbeResult:
    """Train the module's parameters; the result is that of the epoch that was best on the validation part.

    forward : scores (B, K) of a batch of inputs
    predict : scores (N, K) of the part "val" or "test"
    inputs : images, or features on the device
    """
    n, batch = len(labels.train), min(recipe.batch_size, len(labels.train))
    steps = n // batch
    wanted = torch.from_numpy(labels.train)
    optimizer = _optimizer(module, recipe)
    peak = scaled_lr(batch, recipe.lr)
    warmup = recipe.warmup_epochs if recipe.warmup_epochs < recipe.epochs else recipe.epochs / 10
    best, chosen, optimistic = -1.0, (0, np.empty(0), np.empty(0)), 0.0
    for epoch in range(recipe.epochs):
        module.train()
        total = torch.zeros((), device=device)
        for step, rows in enumerate(torch.randperm(n, generator=generator)[: steps * batch].view(steps, batch)):
            for group in optimizer.param_groups:
                group["lr"] = peak * lr_factor((epoch + step / steps) / recipe.epochs, recipe.epochs, warmup)
            x = inputs[rows.to(device)] if isinstance(inputs, Tensor) else inputs.take(rows.numpy()).to(device)
            if recipe.augment == "crop+flip":
                x = random_views(x, generator)
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                scores = forward(x)
            loss = _loss(scores.float(), wanted[rows].to(device))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.detach()
        if not bool(torch.isfinite(total)):
            raise NumericalError(f"the loss is not finite in epoch {epoch + 1}: use a smaller lr than {recipe.lr:g}")
        with evaluating(module), torch.inference_mode():
            val, test = predict("val"), predict("test")
        optimistic = max(optimistic, accuracy_of(test, labels.test))
        if (score := quality(val, labels.val)) > best:
            best, chosen = score, (epoch + 1, test, val)
        if progress is not None:
            progress(epoch + 1, recipe.epochs, accuracy_of(val, labels.val))
    protocol = {"protocol": "fast" if isinstance(inputs, Tensor) else "paper", "epochs": recipe.epochs}
    details = {**protocol, "epoch": chosen[0], "test_max_over_epochs": optimistic}
    return scored(labels, chosen[1], chosen[2], details)


def scores_of(forward: Callable[[Tensor], Tensor], images: Source, device: torch.device) -> np.ndarray:
    """Scores (N, K) of whole images."""
    return torch.cat([forward(x.to(device)).float().cpu() for x in images.chunks(REFERENCE)]).numpy()


def _loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean over images, and over labels where an image may have several."""
    if labels.ndim == 2:
        return F.binary_cross_entropy_with_logits(scores, labels.float())
    return F.cross_entropy(scores, labels)


def _optimizer(module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = [each for each in module.parameters() if each.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [each for each in parameters if each.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [each for each in parameters if each.ndim <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9)
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.999))
