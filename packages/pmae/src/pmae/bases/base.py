"""What all bases have in common: an orthonormal analysis and synthesis, and the variance of each coefficient."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Basis(nn.Module):
    """Orthonormal analysis z = Vᵀx and synthesis x = Vz of flattened images.

    Attributes
    ----------
    name : as in ``fit_space(basis=...)``
    dim, n_components : D and K; below D, a part of every image lies outside the span
    variances : float64 (K,), on the CPU: the mean square of each coefficient over the fitted images, in float64
        whatever the module is cast to
    group_of : int64 (K,), on the CPU: the group that each coefficient is masked with; None if each is a group
    linear : False for invertible maps that are no rotation: their loss is taken between coefficients
    radii : float64 (K,) or None: a frequency for each coefficient
    """

    name = "custom"
    linear = True

    def __init__(
        self, dim: int, variances: Tensor, group_of: Tensor | None = None, radii: Tensor | None = None
    ) -> None:
        super().__init__()
        self.dim, self.n_components = dim, len(variances)
        self.variances, self.group_of, self.radii = variances.double().cpu(), group_of, radii

    @property
    def n_groups(self) -> int:
        return self.n_components if self.group_of is None else int(self.group_of.max()) + 1

    def analysis(self, x: Tensor) -> Tensor:
        """(B, D) to (B, K)."""
        raise NotImplementedError

    def synthesis(self, z: Tensor) -> Tensor:
        """(B, K) to (B, D)."""
        raise NotImplementedError

    def grouped(self, values: Tensor) -> Tensor:
        """Sums over groups of a value per coefficient, (K,) to (n_groups,)."""
        if self.group_of is None:
            return values
        return torch.zeros(self.n_groups, dtype=values.dtype).index_add_(0, self.group_of, values)

    def spread(self, mask: Tensor) -> Tensor:
        """A value per group, (..., n_groups), for each coefficient: (..., K)."""
        return mask if self.group_of is None else mask[..., self.group_of.to(mask.device)]

    def matrix_t(self) -> Tensor | None:
        """Vᵀ as rows (K, D), where it is stored."""
        return None


class Dense(Basis):
    """A stored Vᵀ, row-major, so that the rows of the hidden components are gathered in one piece."""

    rows: Tensor

    def __init__(self, name: str, rows: Tensor, variances: Tensor) -> None:
        super().__init__(rows.shape[1], variances)
        self.name = name
        self.register_buffer("rows", rows)

    def analysis(self, x: Tensor) -> Tensor:
        return x @ self.rows.T

    def synthesis(self, z: Tensor) -> Tensor:
        return z @ self.rows

    def matrix_t(self) -> Tensor:
        return self.rows


def positive_peaks(rows: Tensor) -> Tensor:
    """Rows with their largest entry (in magnitude) positive, which settles the sign of an eigenvector."""
    peak = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    return rows * torch.where(peak < 0, -1.0, 1.0).to(rows.dtype)
