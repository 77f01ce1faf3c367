"""Linear probe: multinomial logistic regression on frozen features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .heads import Progress, frozen_head
from .result import ProbeResult, accuracy_of, as_features, as_labels, device_for, quality, scored, split_off

L2 = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
PROTOCOLS = ("fast", "paper")
CHOOSING, FITTING = 100, 500  # iterations


def linear_probe(
    train_x: Any,
    train_y: Any,
    test_x: Any,
    test_y: Any,
    val: float | tuple[Any, Any] = 0.1,
    seed: int = 0,
    *,
    l2: Sequence[float] = L2,
    protocol: str = "fast",
    device: str | torch.device = "auto",
    model: Any = None,
    pool: str = "cls",
    progress: Progress | None = None,
    **recipe: Any,
) -> ProbeResult:
    """How well a linear classifier on frozen features does.

    "fast" minimises mean cross-entropy + l2/2 ‖W‖² (intercept free) on standardised features, as scikit-learn's
    LogisticRegression does with C = 1/(l2·N). The strength is chosen on the validation part; the classifier is then
    fitted to all training data.
    "paper" is the protocol of arXiv:2502.06314: x are images, of which ``model`` makes features; see :mod:`.heads`.

    Parameters
    ----------
    train_x, test_x : features (N, d), or images if the protocol is "paper"
    train_y, test_y : labels (N,), or (N, L) of 0 and 1: then each label has a logistic regression of its own, and the
        strength is chosen by mean AUC
    val : share of the training data to choose by, or a pair (x, y) of other data
    seed : of the split
    device : "auto" is an accelerator if there is one; with a model, where it lies
    recipe : epochs, batch_size, … of the protocol "paper"

    Raises ShapeError, DataError, ValueError.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol={protocol!r}: one of {', '.join(PROTOCOLS)}")
    if protocol == "paper":
        parts = (train_x, train_y, test_x, test_y)
        return frozen_head(model, parts, (), val, seed, pool=pool, device=device, progress=progress, **recipe)
    if recipe or model is not None:
        raise ValueError(f"{', '.join(recipe) or 'model'}: only with protocol='paper'")
    train_x, train_y = as_features(train_x, train_y, "train")
    test_x, test_y = as_features(test_x, test_y, "test", train_x.shape[1])
    fit_x, fit_y, val_x, val_y = split_off(train_x, train_y, val, seed)
    labels = as_labels(fit_y, val_y, test_y)
    where = device_for(device)

    def data(x: np.ndarray, y: np.ndarray) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(x).to(where), torch.from_numpy(y).to(where)

    fit, held = data(fit_x, labels.train), data(val_x, labels.val)
    standardizer = Standardizer(fit[0])
    values, axes = principal_axes(standardizer(fit[0]))
    solutions = solve(standardizer(fit[0]) @ axes, fit[1], len(labels.classes), l2, values, CHOOSING)
    scores = scores_of(standardizer(held[0]) @ axes, *solutions)
    chosen = max(range(len(l2)), key=lambda i: (quality(scores[i], labels.val), l2[i]))

    both_x, both_y = torch.cat([fit[0], held[0]]), torch.cat([fit[1], held[1]])
    standardizer, axes = Standardizer(both_x), axes.double()
    solution = solve(standardizer(both_x).double() @ axes, both_y, len(labels.classes), [l2[chosen]], values, FITTING)
    test = scores_of(standardizer(torch.from_numpy(test_x).to(where)).double() @ axes, *solution)[0]
    details = {
        "protocol": "fast",
        "l2": l2[chosen],
        "val_accuracy_by_l2": {str(each): accuracy_of(scores[i], labels.val) for i, each in enumerate(l2)},
    }
    return scored(labels, test, scores[chosen], details)


class Standardizer:
    """x ↦ (x − mean) / std; a feature that never varies becomes 0."""

    def __init__(self, x: Tensor) -> None:
        self.mean, std = x.mean(0), x.std(0, correction=0)
        self.std = torch.where(std > 1e-6 * (1 + self.mean.abs()), std, torch.inf)

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def principal_axes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Variances (d,) and axes (d, d) of standardised features (N, d)."""
    values, axes = torch.linalg.eigh(x.T @ x / len(x))
    return values.clamp(min=0), axes


def solve(
    z: Tensor, y: Tensor, n_classes: int, l2: Sequence[float], values: Tensor, iterations: int
) -> tuple[Tensor, Tensor]:
    """Logistic regressions of several strengths at once: weights (s, d, K) and intercepts (s, 1, K).

    One run of L-BFGS minimises the sum of their losses: one matrix product serves them all. At W = 0 the Hessian of a
    loss is about κ·cov(x) + l2 with κ = 1/K: for features along their principal axes, and weights scaled by
    (κλ + l2)^-½, every problem is nearly round. Collinear features, as pixels are, would take thousands of iterations
    otherwise. The axes are orthogonal, so that ‖W‖² is what it was.

    z : (N, d) standardised features along principal axes, of which ``values`` (d,) are the variances
    y : (N,) numbers of classes, or (N, K) of 0 and 1 for K logistic regressions of yes or no
    """
    (n, d), s, k = z.shape, len(l2), n_classes
    strengths = z.new_tensor(l2)
    curvature = 1 / k if y.ndim == 1 else 1 / 4
    scale = (curvature * values.to(z)[:, None] + strengths).rsqrt()[:, :, None]  # (d, s, 1)
    u = z.new_zeros(d, s, k, requires_grad=True)
    intercepts = z.new_zeros(s, k, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [u, intercepts],
        max_iter=iterations,
        history_size=30,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-6,
        tolerance_change=1e-12,
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        w = u * scale
        scores = (z @ w.flatten(1)).view(n, s, k) + intercepts
        if y.ndim == 1:
            total = F.cross_entropy(scores.flatten(0, 1), y.repeat_interleave(s), reduction="sum") / n
        else:
            wanted = y.to(z)[:, None].expand_as(scores)
            total = F.binary_cross_entropy_with_logits(scores, wanted, reduction="sum") / n
        total = total + (w.square().sum((0, 2)) @ strengths) / 2
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return (u * scale).detach().transpose(0, 1), intercepts.detach()[:, None]


def scores_of(z: Tensor, weights: Tensor, intercepts: Tensor) -> np.ndarray:
    """Log odds (s, N, K) for each strength."""
    return (z @ weights + intercepts).cpu().numpy()
