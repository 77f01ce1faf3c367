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
    test_x, test_y = as_features(test_x, test_y, "test")
    fit_x, fit_y, val_x, val_y = split_off(train_x, train_y, val, seed)
    labels = as_labels(fit_y, val_y, test_y)
    where = device_for(device)
    choosing = Logistic(fit_x, labels.train, len(labels.classes), where).fit(l2, CHOOSING)
    scores = choosing.scores(val_x)
    chosen = max(range(len(l2)), key=lambda i: (quality(scores[i], labels.val), l2[i]))
    both_x, both_y = np.concatenate([fit_x, val_x]), np.concatenate([labels.train, labels.val])
    final = Logistic(both_x, both_y, len(labels.classes), where).fit([l2[chosen]], FITTING)
    details = {
        "protocol": "fast",
        "l2": l2[chosen],
        "val_accuracy_by_l2": {str(each): accuracy_of(scores[i], labels.val) for i, each in enumerate(l2)},
    }
    return scored(labels, final.scores(test_x)[0], scores[chosen], details)


class Logistic:
    """Logistic regressions of several strengths at once.

    One run of L-BFGS minimises the sum of their losses: one matrix product serves them all. At W = 0 the Hessian of a
    loss is about κ·cov(x) + l2 with κ = 1/K: in the principal axes of the features, scaled by (κλ + l2)^-½, every
    problem is nearly round. Collinear features, as pixels are, would take thousands of iterations otherwise.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, n_classes: int, device: torch.device) -> None:
        raw = torch.from_numpy(x).to(device)
        self.mean, std = raw.mean(0), raw.std(0, correction=0)
        self.std = torch.where(std > 1e-6 * (1 + self.mean.abs()), std, torch.inf)  # a constant feature becomes 0
        self.x = (raw - self.mean) / self.std
        self.y = torch.from_numpy(y).to(device)
        self.n_classes = n_classes
        self.weights = self.bias = raw.new_zeros(0)

    def fit(self, l2: Sequence[float], iterations: int) -> Logistic:
        """Minimise for all strengths; returns itself."""
        (n, d), k, s = self.x.shape, self.n_classes, len(l2)
        strengths = self.x.new_tensor(l2)
        curvature = 1 / k if self.y.ndim == 1 else 1 / 4
        values, axes = torch.linalg.eigh(self.x.T @ self.x / n)
        z = self.x @ axes
        scale = (curvature * values.clamp(min=0)[:, None] + strengths).rsqrt()[:, :, None]  # (d, s, 1)
        u = torch.zeros(d, s, k, device=z.device, requires_grad=True)
        bias = torch.zeros(s, k, device=z.device, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [u, bias], max_iter=iterations, history_size=10, line_search_fn="strong_wolfe", tolerance_grad=1e-5
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            w = u * scale
            total = self._loss((z @ w.flatten(1)).view(n, s, k) + bias) + (w.square().sum((0, 2)) @ strengths) / 2
            total.backward()
            return total

        optimizer.step(loss)  # type: ignore[no-untyped-call]
        self.weights = torch.einsum("de,esk->sdk", axes, (u * scale).detach())
        self.bias = bias.detach()
        return self

    def _loss(self, scores: Tensor) -> Tensor:
        """Mean over images, sum over strengths."""
        n, s, _ = scores.shape
        if self.y.ndim == 1:
            return F.cross_entropy(scores.flatten(0, 1), self.y.repeat_interleave(s), reduction="sum") / n
        wanted = self.y.float()[:, None].expand_as(scores)
        return F.binary_cross_entropy_with_logits(scores, wanted, reduction="sum") / n

    @torch.no_grad()
    def scores(self, x: np.ndarray) -> np.ndarray:
        """Log odds (s, N, K) for each strength."""
        z = (torch.from_numpy(x).to(self.mean.device) - self.mean) / self.std
        return (z @ self.weights + self.bias[:, None]).cpu().numpy()
