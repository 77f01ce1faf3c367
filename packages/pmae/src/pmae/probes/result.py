"""Labels as the probes need them, the split that they choose by, and what they report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from ..errors import DataError, ShapeError


@dataclass(frozen=True)
class ProbeResult:
    """How well labels can be told. Everything but ``val_accuracy`` is of the test images.

    Attributes
    ----------
    accuracy : share of right answers, in [0, 1]; of several labels per image the mean over labels
    balanced_accuracy : mean over classes of the share of their images that were recognised; of several labels per image
        the mean over labels of that for yes and no
    val_accuracy : accuracy on the validation part, of which was chosen what there was to choose
    per_class : the parts of balanced_accuracy, by label
    details : the protocol and what was chosen; ``mean_auc`` and ``auc`` (by label) where images have several labels
    """

    accuracy: float
    balanced_accuracy: float
    val_accuracy: float
    per_class: dict[int, float]
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Labels:
    """Labels of training, validation and test images.

    Attributes
    ----------
    classes : the label that each number stands for
    several : an image may have several labels
    train, val, test : int64 (N,) numbers of classes, or (N, L) of 0 and 1
    """

    classes: list[int]
    several: bool
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


def as_labels(train: Any, val: Any, test: Any) -> Labels:
    """Number the classes. Raises ShapeError, DataError."""
    parts = [_whole(np.asarray(part)) for part in (train, val, test)]
    for part in parts:
        if part.dtype.kind not in "iub" or part.ndim not in (1, 2) or part.shape[1:] != parts[0].shape[1:]:
            raise ShapeError(f"labels are {part.dtype} of shape {part.shape}: whole numbers (N,), or 0 and 1 (N, L)")
    if parts[0].ndim == 2:
        if not all(np.isin(part, (0, 1)).all() for part in parts):
            raise DataError("labels of several classes per image must be 0 or 1")
        return Labels(list(range(parts[0].shape[1])), True, *(part.astype(np.int64) for part in parts))
    classes = np.unique(np.concatenate(parts))
    if len(np.unique(parts[0])) < 2:
        raise DataError(f"all {len(parts[0])} training labels are {parts[0][0]}: at least two classes are needed")
    return Labels([int(each) for each in classes], False, *(np.searchsorted(classes, part) for part in parts))


def _whole(labels: np.ndarray) -> np.ndarray:
    """(N, 1) as (N,), as MedMNIST has them, and floats that are whole numbers as these."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind == "f" and np.isfinite(labels).all() and (labels == np.rint(labels)).all():
        return labels.astype(np.int64)
    return labels


def validation_split(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices to fit and to validate by, each class in its share. Raises ValueError."""
    n = len(labels)
    if not 0 < share < 1 or not 1 <= round(share * n) < n:
        raise ValueError(f"val={share} of {n} images: a share that leaves at least one image on each side")
    draw = np.random.default_rng(seed)
    order = draw.permutation(n)
    if labels.ndim == 1:
        order = order[np.argsort(labels[order], kind="stable")]
    # Systematic sampling: every 1/share-th image of those in the order of their class.
    counts = np.floor(np.arange(n + 1) * (round(share * n) / n) + draw.random())
    taken = np.diff(counts) > 0
    return np.sort(order[~taken]), np.sort(order[taken])


def split_off(x: np.ndarray, y: np.ndarray, val: Any, seed: int) -> tuple[np.ndarray, ...]:
    """Training x and y, validation x and y; ``val`` is a share of the training data, or a pair (x, y)."""
    if not isinstance(val, float | int):
        return x, y, np.asarray(val[0]), np.asarray(val[1])
    fit, held = validation_split(y, val, seed)
    return x[fit], y[fit], x[held], y[held]


def as_features(features: Any, labels: Any, name: str, width: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Float32 (N, d), d = ``width`` if that is given, and labels as arrays. Raises ShapeError, DataError."""
    x, y = (part.numpy(force=True) if isinstance(part, Tensor) else np.asarray(part) for part in (features, labels))
    if x.ndim != 2 or len(x) != len(y) or not len(x):
        raise ShapeError(f"{name}: features of shape {x.shape} and labels of shape {y.shape}: (N, d) and N labels")
    if width is not None and x.shape[1] != width:
        raise ShapeError(f"{name}: features of shape {x.shape}, those of training are (N, {width})")
    x = x.astype(np.float32, copy=False)
    if not np.isfinite(x).all():
        raise DataError(f"{name}: features hold NaN or infinite values")
    return x, _whole(y)


def accuracy_of(scores: np.ndarray, labels: np.ndarray) -> float:
    """Share of right answers of scores (N, K): the highest one, or of several labels those above 0."""
    return float(((scores > 0) == labels).mean() if labels.ndim == 2 else (scores.argmax(1) == labels).mean())


def auc_of(scores: np.ndarray, labels: np.ndarray) -> dict[int, float]:
    """Area under the ROC curve by label; labels that all images have, or none, are left out."""
    mixed = [i for i in range(labels.shape[1]) if 0 < labels[:, i].sum() < len(labels)]
    return {i: float(roc_auc_score(labels[:, i], scores[:, i])) for i in mixed}


def quality(scores: np.ndarray, labels: np.ndarray) -> float:
    """What is chosen by: accuracy, or the mean AUC where most labels are rare."""
    if labels.ndim == 2:
        return float(np.mean(list(auc_of(scores, labels).values()) or [0.5]))
    return accuracy_of(scores, labels)


def scored(labels: Labels, test: np.ndarray, val: np.ndarray, details: dict[str, Any]) -> ProbeResult:
    """Scores (N, K) of the test and validation images as a result."""
    if labels.several:
        right = (test > 0) == labels.test
        yes = labels.test == 1
        recalls = {
            name: [right[mask, i].mean() for mask in (yes[:, i], ~yes[:, i]) if mask.any()]
            for i, name in enumerate(labels.classes)
        }
        per_class = {name: float(np.mean(each)) for name, each in recalls.items()}
        auc = auc_of(test, labels.test)
        details = {**details, "mean_auc": quality(test, labels.test), "auc": auc}
    else:
        hit = test.argmax(1) == labels.test
        per_class = {
            name: float(hit[labels.test == i].mean()) for i, name in enumerate(labels.classes) if i in labels.test
        }
    return ProbeResult(
        accuracy=accuracy_of(test, labels.test),
        balanced_accuracy=float(np.mean(list(per_class.values()))),
        val_accuracy=accuracy_of(val, labels.val),
        per_class=per_class,
        details=details,
    )


def device_for(device: str | torch.device) -> torch.device:
    """ "auto" is an accelerator if there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)
