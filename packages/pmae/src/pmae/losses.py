"""Weights and normalisations of the component loss (arXiv:2502.06314, eq. of the objective; spec of PMAE)."""

from __future__ import annotations

import torch
from torch import Tensor

REDUCTIONS = ("count", "variance")
WHITENING_FLOOR = 1e-4  # added to a share before it is raised to a negative power


def check(reduction: str, gamma: float) -> None:
    """Raises ValueError for an unknown reduction or a gamma outside [0, 1]."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction={reduction!r}: one of {', '.join(REDUCTIONS)}")
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma={gamma}: a number from 0 (all alike) to 1 (whitened targets)")


def weights(shares: Tensor, hidden: Tensor, gamma: float) -> Tensor:
    """w_i ∝ (λ_i + 1e-4)^−γ on the hidden components with Σ_M w_i λ_i = Σ_M λ_i; 0 elsewhere.

    shares : (K,) λ. hidden : bool (K,) or (B, K). Returns the shape of ``hidden``, float64.
    """
    raw = (shares + WHITENING_FLOOR).pow(-gamma) * hidden
    weighted = (raw * shares).sum(-1, keepdim=True)
    return raw * torch.where(weighted > 0, (hidden * shares).sum(-1, keepdim=True) / weighted.clamp(min=1e-300), 1.0)


def norm(variances: Tensor, hidden: Tensor, reduction: str) -> Tensor:
    """What the squared error is divided by, (1,) or (B, 1): the number of hidden components, or their variance.

    1 where nothing is hidden, so that an empty set costs 0.
    """
    total = (
        hidden.sum(-1, keepdim=True).double() if reduction == "count" else (hidden * variances).sum(-1, keepdim=True)
    )
    return torch.where(total > 0, total, 1.0)
