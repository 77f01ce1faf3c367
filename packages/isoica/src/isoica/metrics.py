"""Scores of recovered sources against true ones, all with the exact optimal assignment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg, stats
from scipy.optimize import linear_sum_assignment

from .errors import IsoICAError

Array = NDArray[np.float64]


def _pair(S: ArrayLike, Z: ArrayLike) -> tuple[Array, Array]:
    s, z = np.asarray(S, dtype=np.float64), np.asarray(Z, dtype=np.float64)
    s, z = s[:, None] if s.ndim == 1 else s, z[:, None] if z.ndim == 1 else z
    if s.ndim != 2 or z.ndim != 2 or len(s) != len(z):
        raise IsoICAError(f"need two (n, d) arrays with the same n, got shapes {s.shape} and {z.shape}")
    if not (np.isfinite(s).all() and np.isfinite(z).all()):
        raise IsoICAError("sources contain NaN or infinite values")
    return s, z


def _correlation(S: Array, Z: Array) -> Array:
    s, z = S - S.mean(axis=0), Z - Z.mean(axis=0)
    norms = np.outer(np.linalg.norm(s, axis=0), np.linalg.norm(z, axis=0))
    return np.divide(s.T @ z, norms, out=np.zeros_like(norms), where=norms > 0)


@overload
def mcc(
    S: ArrayLike, S_hat: ArrayLike, kind: str = ..., return_match: Literal[False] = ...
) -> float: ...  # pragma: no cover
@overload
def mcc(
    S: ArrayLike, S_hat: ArrayLike, kind: str = ..., *, return_match: Literal[True]
) -> tuple[float, NDArray[np.intp]]: ...  # pragma: no cover
def mcc(S: ArrayLike, S_hat: ArrayLike, kind: str = "pearson", return_match: bool = False) -> Any:
    """Mean correlation coefficient: mean over true sources of |corr| with the column optimally assigned to them.

    Parameters
    ----------
    S : (n, d) true sources; S_hat : (n, m) estimates. A source without a partner (m < d) counts 0.
    kind : {"pearson", "spearman"}
    return_match : also return (d,) columns of ``S_hat``, -1 without partner.
    """
    s, z = _pair(S, S_hat)
    if kind == "spearman":
        s, z = stats.rankdata(s, axis=0), stats.rankdata(z, axis=0)
    elif kind != "pearson":
        raise IsoICAError(f'kind={kind!r}; use "pearson" or "spearman"')
    c = np.abs(_correlation(s, z))
    row, column = linear_sum_assignment(-c)
    value = float(min(c[row, column].sum() / len(c), 1.0))
    if not return_match:
        return value
    match = np.full(len(c), -1, dtype=np.intp)
    match[row] = column
    return value, match


def amari_distance(W: ArrayLike, A: ArrayLike | None = None) -> float:
    """Amari distance in [0, 1] of ``P = W A`` (or of ``P = W``) from a scaled permutation (Amari et al. 1996).

    ``[Σ_i(Σ_j|P_ij|/max_j|P_ij| - 1) + Σ_j(Σ_i|P_ij|/max_i|P_ij| - 1)]/(2d(d-1))``; 0 for d = 1.
    """
    P = np.abs(_product(W, A))
    d = len(P)
    if d == 1:
        return 0.0
    if not (P.max(axis=0) > 0).all() or not (P.max(axis=1) > 0).all():
        raise IsoICAError("the matrix has a row or column of zeros; the Amari distance is not defined")
    rows = (P / P.max(axis=1, keepdims=True)).sum() - d
    columns = (P / P.max(axis=0)).sum() - d
    return float((rows + columns) / (2 * d * (d - 1)))


def unmixing_error(B: ArrayLike, A: ArrayLike | None = None) -> float:
    """``min ‖D Π B A - I‖_F`` over permutations Π and diagonal D (signs and scales of the rows); first order in η.

    Parameters
    ----------
    B : (d, p) unmixing and A : (p, d) mixing; or ``B`` alone, their product (d, d).
    """
    P = _product(B, A)
    norms = np.linalg.norm(P, axis=1)
    if not (norms > 0).all():
        raise IsoICAError("the matrix has a row of zeros; the unmixing error is not defined")
    # Row r scaled optimally for source j leaves |c P_r - e_j|² = 1 - P_rj²/|P_r|² = (sum over the others)/|P_r|².
    unit = (P / norms[:, None]) ** 2
    rest = unit.sum(axis=1, keepdims=True) - unit
    off = np.stack([np.delete(unit, j, axis=1).sum(axis=1) for j in range(len(P))], axis=1)
    row, column = linear_sum_assignment(rest)
    return float(np.sqrt(off[row, column].sum()))


def _product(W: ArrayLike, A: ArrayLike | None) -> Array:
    P = np.asarray(W, dtype=np.float64)
    if A is not None:
        a = np.asarray(A, dtype=np.float64)
        if P.ndim != 2 or a.ndim != 2 or P.shape[1] != a.shape[0]:
            raise IsoICAError(f"an unmixing (d, p) and a mixing (p, d) are needed, got shapes {P.shape} and {a.shape}")
        P = P @ a
    if P.ndim != 2 or P.shape[0] != P.shape[1] or P.shape[0] == 0 or not np.isfinite(P).all():
        raise IsoICAError(f"need a finite square matrix, got shape {P.shape}")
    return P


def affine_r2(S: ArrayLike, Z: ArrayLike) -> float:
    """R² of the best affine prediction of ``S`` (n, d) from ``Z`` (n, m), all columns together: 1 - residual/total."""
    s, z = _pair(S, Z)
    s, z = s - s.mean(axis=0), z - z.mean(axis=0)
    total = float((s * s).sum())
    if total == 0:
        raise IsoICAError("S is constant; R² is not defined")
    residual = s - z @ linalg.lstsq(z, s)[0]
    return 1.0 - float((residual**2).sum()) / total


def procrustes_residual(S: ArrayLike, Z: ArrayLike, scale: bool = False) -> float:
    """Relative RMS distance of ``S`` (n, d) from the best rigid image of ``Z`` (n, d): rotation, reflection, shift.

    ``scale=True`` also fits one factor. 0 means congruent, 1 no better than the mean.
    """
    s, z = _pair(S, Z)
    if s.shape != z.shape:
        raise IsoICAError(f"Procrustes needs equal shapes, got {s.shape} and {z.shape}")
    s, z = s - s.mean(axis=0), z - z.mean(axis=0)
    total = float((s * s).sum())
    if total == 0:
        raise IsoICAError("S is constant; the residual is not defined")
    u, singular, vt = linalg.svd(z.T @ s)
    factor = singular.sum() / (z * z).sum() if scale else 1.0
    return float(np.sqrt(((s - factor * z @ (u @ vt)) ** 2).sum() / total))


@dataclass(frozen=True)
class DCI:
    """Disentanglement and completeness in [0, 1], informativeness (mean held-out R²), importance (m, d)."""

    disentanglement: float
    completeness: float
    informativeness: float
    importance: Array


def dci(S: ArrayLike, Z: ArrayLike, random_state: int | None = 0) -> DCI:
    """Disentanglement, completeness and informativeness (Eastwood and Williams 2018) with random forests.

    ``S`` (n, d) factors are predicted from ``Z`` (n, m) codes on a random three quarters and scored on the rest.
    """
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.model_selection import train_test_split

    s, z = _pair(S, Z)
    z_train, z_test, s_train, s_test = train_test_split(z, s, test_size=0.25, random_state=random_state)
    forests = [
        RandomForestRegressor(50, min_samples_leaf=5, random_state=random_state).fit(z_train, column)
        for column in s_train.T
    ]
    R = np.stack([f.feature_importances_ for f in forests], axis=1)
    informative = float(np.mean([f.score(z_test, column) for f, column in zip(forests, s_test.T, strict=True)]))
    total = max(R.sum(), np.finfo(float).tiny)
    by_code = (1 - _entropy(R, 1)) @ (R.sum(axis=1) / total)
    by_factor = (1 - _entropy(R, 0)) @ (R.sum(axis=0) / total)
    return DCI(float(by_code), float(by_factor), informative, R)


def _entropy(R: Array, axis: int) -> Array:
    m = R.shape[axis]
    if m == 1:
        return np.zeros(R.shape[1 - axis])
    return np.asarray(stats.entropy(R + 1e-300, axis=axis, base=m))
