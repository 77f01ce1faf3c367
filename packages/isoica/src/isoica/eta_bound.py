"""The smallest perturbation that recovered sources prove: a linearised Wasserstein distance from independence.

A perturbation ηr of independent sources moves ``E ψ`` by ``η E[∇ψ·r]``, so ``η‖r‖ >= |E_data ψ - E_product ψ|/‖∇ψ‖``
for every test function ψ. Products of orthonormal polynomials of each source, rotated so that their Dirichlet form is
diagonal, make the supremum over ψ a sum of squares. Own derivation.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state

from .errors import IsoICAError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class EtaBound:
    """A lower bound on η‖k‖, never an estimate of it: divergence-free perturbations leave no trace.

    estimate = √max(0, raw - bias); ``lower`` is a one-sided bound at the level asked for (95 %); ``raw`` is T² and
    ``bias`` its mean without perturbation; ``p_value`` from permutations; ``pairs`` (d, d) the estimate per pair.
    """

    estimate: float
    lower: float
    raw: float
    bias: float
    p_value: float
    pairs: Array


def eta_lower_bound(
    S_hat: ArrayLike,
    degree: int = 5,
    order: int = 2,
    n_permutations: int = 200,
    winsorize: float = 1e-3,
    random_state: object = None,
    level: float = 0.95,
) -> EtaBound:
    """How much misspecification the recovered sources ``S_hat`` (n, d) prove.

    Parameters
    ----------
    degree : of the polynomials per source; fewer where a source takes few distinct values.
    order : 2 tests pairs of sources, 3 triples as well.
    n_permutations : of the columns, independently, for the p-value and the null quantile in ``lower``.
    winsorize : each column is clipped at this quantile and its complement before polynomials are built.

    Raises
    ------
    IsoICAError
        For fewer than two sources, too few samples, a constant source, or values out of range.
    """
    S = np.asarray(S_hat, dtype=np.float64)
    if S.ndim != 2 or S.shape[1] < 1:
        raise IsoICAError(f"S_hat must be (n, d), got shape {S.shape}")
    if not np.isfinite(S).all():
        raise IsoICAError("S_hat contains NaN or infinite values")
    if degree < 1 or order not in (2, 3) or n_permutations < 1 or not 0 <= winsorize < 0.5 or not 0 < level < 1:
        raise IsoICAError(
            f"degree={degree}, order={order}, n_permutations={n_permutations}, winsorize={winsorize}, level={level}: "
            "need degree >= 1, order 2 or 3, n_permutations >= 1, 0 <= winsorize < 0.5, 0 < level < 1"
        )
    n, d = S.shape
    if n <= 2 * (degree + 1):
        raise IsoICAError(
            f"{n} samples are too few for polynomials of degree {degree}; need more than {2 * (degree + 1)}"
        )
    if d < 2:
        return EtaBound(0.0, 0.0, 0.0, 0.0, 1.0, np.zeros((d, d)))
    bases = [dirichlet_basis(column, degree, winsorize) for column in S.T]
    phi, rates = [b[0] for b in bases], [b[1] for b in bases]

    raw, bias = np.zeros((d, d)), np.zeros((d, d))
    influence, third_raw, third_bias = np.zeros(n), 0.0, 0.0
    for i, j in combinations(range(d), 2):
        weight = 1 / (rates[i][:, None] + rates[j])
        m = phi[i].T @ phi[j] / n
        variance = (phi[i] ** 2).T @ (phi[j] ** 2) / n - m**2
        raw[i, j], bias[i, j] = np.sum(weight * m**2), np.sum(weight * variance) / n
        influence += 2 * np.sum((phi[i] @ (weight * m)) * phi[j], axis=1)
    if order == 3:
        for i, j, l in combinations(range(d), 3):
            weight = _triple_weight(rates, i, j, l)
            both = _products(phi[i], phi[j])
            m = both.T @ phi[l] / n
            variance = (both**2).T @ (phi[l] ** 2) / n - m**2
            third_raw += float(np.sum(weight * m**2))
            third_bias += float(np.sum(weight * variance)) / n
            influence += 2 * np.sum((both @ (weight * m)) * phi[l], axis=1)
    total_raw, total_bias = float(raw.sum()) + third_raw, float(bias.sum()) + third_bias

    rng = check_random_state(random_state)
    null = np.array([_statistic(_permuted(phi, rng), rates, order) for _ in range(n_permutations)])
    p_value = (1 + int(np.sum(null >= total_raw))) / (1 + n_permutations)
    # T² - bias has two errors: the null part, whose quantile permutations give, and the part linear in the deviation.
    null_error = float(np.quantile(null, level) - null.mean())
    linear_error = float(_normal_quantile(level) * influence.std() / np.sqrt(n))
    excess = total_raw - total_bias
    lower = float(np.sqrt(max(0.0, excess - np.hypot(null_error, linear_error))))
    pairs = np.sqrt(np.maximum(0.0, raw - bias))
    return EtaBound(float(np.sqrt(max(0.0, excess))), lower, total_raw, total_bias, float(p_value), pairs + pairs.T)


def dirichlet_basis(x: Array, degree: int, winsorize: float) -> tuple[Array, Array]:
    """Polynomials (n, m) of ``x``, orthonormal and centred on the sample, with ``E φ_a' φ_b' = λ_a δ_ab``; λ (m,).

    m = degree, or fewer where ``x`` takes at most ``degree`` distinct values. ``x`` is standardised after clipping.
    """
    if winsorize > 0:
        x = np.clip(x, *np.quantile(x, [winsorize, 1 - winsorize]))
    sd = x.std()
    if sd <= 1e-12 * max(1.0, float(np.max(np.abs(x)))):
        raise IsoICAError("a source is constant after winsorising; remove it or lower winsorize")
    x = (x - x.mean()) / sd
    few = np.unique(x[: 10 * degree + 1000])
    if len(few) <= degree:  # seldom, so look at all of x only then
        degree = max(1, min(degree, len(np.unique(x)) - 1))
    # Chebyshev polynomials on the range of x keep the triangular factor well conditioned at any degree.
    low, high = x.min(), x.max()
    t, slope = (2 * x - low - high) / (high - low), 2 / (high - low)
    V = np.polynomial.chebyshev.chebvander(t, degree)
    dV = np.stack(
        [np.polynomial.chebyshev.chebval(t, np.polynomial.chebyshev.chebder(row)) for row in np.eye(degree + 1)], axis=1
    )
    R = np.linalg.qr(V, mode="r") / np.sqrt(len(x))
    inverse = np.linalg.inv(R)
    phi, dphi = (V @ inverse)[:, 1:], (slope * dV @ inverse)[:, 1:]
    rates, U = np.linalg.eigh(dphi.T @ dphi / len(x))
    return phi @ U, rates


def _products(a: Array, b: Array) -> Array:
    return np.asarray((a[:, :, None] * b[:, None, :]).reshape(len(a), -1))


def _triple_weight(rates: list[Array], i: int, j: int, l: int) -> Array:
    return 1 / (np.add.outer(rates[i], rates[j]).reshape(-1, 1) + rates[l])


def _permuted(phi: list[Array], rng: np.random.RandomState) -> list[Array]:
    return [phi[0], *[p[rng.permutation(len(p))] for p in phi[1:]]]


def _statistic(phi: list[Array], rates: list[Array], order: int) -> float:
    """T² of one permutation: all pairs from one Gram matrix."""
    n = len(phi[0])
    stacked = np.concatenate(phi, axis=1)
    gram = stacked.T @ stacked / n
    starts = np.cumsum([0, *[p.shape[1] for p in phi]])
    total = 0.0
    for i, j in combinations(range(len(phi)), 2):
        m = gram[starts[i] : starts[i + 1], starts[j] : starts[j + 1]]
        total += float(np.sum(m**2 / (rates[i][:, None] + rates[j])))
    if order == 3:
        for i, j, l in combinations(range(len(phi)), 3):
            m = _products(phi[i], phi[j]).T @ phi[l] / n
            total += float(np.sum(m**2 * _triple_weight(rates, i, j, l)))
    return total


def _normal_quantile(level: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(level))
