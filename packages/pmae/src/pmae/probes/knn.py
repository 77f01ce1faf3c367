"""Nearest neighbours: how often the images around a test image have its label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .result import ProbeResult, accuracy_of, as_features, as_labels, device_for, quality, scored, split_off

METRICS = ("cosine", "l2")
PAPER_K = tuple(range(3, 21))  # of arXiv:2502.06314, which took the best on the test images
CHUNK = 2048  # images whose distances to all others are held at once


def knn_probe(
    train_x: Any,
    train_y: Any,
    test_x: Any,
    test_y: Any,
    k: int | Sequence[int] = 10,
    metric: str = "cosine",
    val: float | tuple[Any, Any] = 0.1,
    seed: int = 0,
    *,
    device: str | torch.device = "auto",
) -> ProbeResult:
    """Majority of the k nearest training images, a tie going to the smaller label, as in scikit-learn.

    k : one, or several of which the best on the validation part is taken (the smaller if they are equal); details then
        have ``test_max_over_k``, which is chosen on the test images and is no estimate of anything
    metric : "cosine" or "l2". Distances are float64: neighbours do not depend on rounding.
    Labels (N, L): the share of the neighbours that have each. The rest is as in :func:`linear_probe`.
    """
    if metric not in METRICS:
        raise ValueError(f"metric={metric!r}: one of {', '.join(METRICS)}")
    train_x, train_y = as_features(train_x, train_y, "train")
    test_x, test_y = as_features(test_x, test_y, "test", train_x.shape[1])
    fit_x, fit_y, val_x, val_y = split_off(train_x, train_y, val, seed)
    labels = as_labels(fit_y, val_y, test_y)
    ks = [int(k)] if isinstance(k, int | np.integer) else sorted(k)
    if not ks or ks[0] < 1 or ks[-1] > len(fit_x):
        raise ValueError(f"k={k}: from 1 to {len(fit_x)}, the number of training images")
    where, n_classes = device_for(device), len(labels.classes)
    checked = _votes(fit_x, labels.train, val_x, ks, metric, n_classes, where)
    chosen = max(range(len(ks)), key=lambda i: (quality(checked[i], labels.val), -ks[i]))
    both_x, both_y = np.concatenate([fit_x, val_x]), np.concatenate([labels.train, labels.val])
    found = _votes(both_x, both_y, test_x, ks, metric, n_classes, where)
    details: dict[str, Any] = {"k": ks[chosen], "metric": metric}
    if len(ks) > 1:
        details["test_max_over_k"] = max(accuracy_of(votes, labels.test) for votes in found)
    return scored(labels, found[chosen], checked[chosen], details)


def _votes(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    ks: list[int],
    metric: str,
    n_classes: int,
    device: torch.device,
) -> np.ndarray:
    """For each k and test image the votes of each class (K, N, classes); of several labels the share above a half."""
    train, test = (torch.from_numpy(x).to(device, torch.float64) for x in (train_x, test_x))
    y = torch.from_numpy(train_y).to(device)
    votes = (torch.nn.functional.one_hot(y, n_classes) if y.ndim == 1 else y).to(torch.int32)
    if metric == "cosine":
        train, test = (x / x.norm(dim=1, keepdim=True).clamp(min=1e-30) for x in (train, test))
        half = train.new_zeros(len(train))
    else:
        middle = train.mean(0)
        train, test = train - middle, test - middle
        half = train.square().sum(1) / 2
    at = torch.tensor(ks, device=device) - 1
    parts: list[Tensor] = []
    for batch in torch.split(test, CHUNK):
        near = (batch @ train.T - half).topk(ks[-1], dim=1).indices  # the order of -‖x - y‖² for each x
        parts.append(votes[near].cumsum(1)[:, at].transpose(0, 1))
    counts = torch.cat(parts, 1).cpu().numpy()
    return counts if train_y.ndim == 1 else counts / np.array(ks)[:, None, None] - 0.5
