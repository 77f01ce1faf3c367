"""Robustness of linear ICA to ``X = A S + η h(S)``: margins, first order in η, worst case, finite certificate.

Sources S are independent with mean 0 and variance 1, ``k = A⁻¹h``. The setting is Buchholz and Schölkopf (ICML 2024,
arXiv:2503.15355); formulas and constants here are our own derivations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg
from scipy.stats import qmc

from .asymptotics import Margins, margins_from, sensitivity_matrix
from .contrasts import Contrast, ContrastLike, minimax_contrast, resolve
from .errors import IsoICAError
from .eta_bound import EtaBound, eta_lower_bound
from .laws import LawLike, nodes_of
from .rigidity import RigidityConstants, rigidity_constants
from .solvers import deflation, numpy_pass, symmetric
from .whitening import moments, white_chunks

__all__ = [
    "Certificate", "EtaBound", "FirstOrder", "Margins", "RigidityConstants", "WhatIf", "certificate", "eta_lower_bound",
    "first_order", "margins", "rigidity_constants", "sensitivity", "what_if", "worst_case_perturbation",
]  # fmt: skip

Array = NDArray[np.float64]


def _learnt(contrast: ContrastLike, x: Array, w: Array) -> Contrast:
    if isinstance(contrast, str) and contrast == "minimax":
        return minimax_contrast(x, w)
    return resolve(contrast, 1)[0]


def margins(law: LawLike, contrast: ContrastLike) -> Margins:
    """Margins of one source under a contrast, scalars.

    Parameters
    ----------
    law : a name (see ``laws.NAMES``), a frozen scipy.stats distribution (quadrature), or a sample (n,). Standardised.
    contrast : a name, ``"minimax"`` (learnt from the law), or a Contrast.

    Returns
    -------
    Margins
        mu, rho, alpha, gamma, var_dg, kappa (one-unit), stat_sd. Infinite where a moment diverges.
    """
    x, w = nodes_of(law)
    c = _learnt(contrast, x, w)
    g, dg = np.asarray(c.g(x)), np.asarray(c.dg(x))
    terms = np.stack([x * g, dg, g, g * g, dg * dg])
    moments = terms @ w
    if not isinstance(law, (np.ndarray, list, tuple)):
        # A moment that rests on the outermost nodes (quantile beyond 1e-100) does not converge.
        outer = np.argsort(np.abs(x))[-20:]
        with np.errstate(divide="ignore", invalid="ignore"):
            diverges = np.abs(terms[:, outer]) @ w[outer] > 1e-6 * np.abs(terms) @ w
        moments = np.where(diverges & (len(x) > 200), np.inf, moments)
    m = margins_from(*[np.asarray(v) for v in moments])
    return Margins(*[float(v) for v in (m.mu, m.rho, m.alpha, m.gamma, m.var_dg, m.kappa, m.stat_sd)])  # type: ignore[arg-type]


def _columns(laws: Any) -> list[LawLike]:
    if isinstance(laws, np.ndarray):
        if laws.ndim != 2:
            raise IsoICAError(f"a sample of several sources must be (n, d), got shape {laws.shape}")
        return list(laws.T)
    if isinstance(laws, (str, bytes)) or not isinstance(laws, Sequence):
        raise IsoICAError("laws must be a list with one law per source, or a sample (n, d)")
    return list(laws)


def _per_source(contrast: ContrastLike, d: int) -> list[str | Contrast]:
    if isinstance(contrast, str):
        return [contrast] * d
    return list(resolve(contrast, d))


def sensitivity(laws: Any, contrast: ContrastLike, algorithm: str = "symmetric") -> Array:
    """κ (d, d): the largest ``|B_ij|/η`` over canonical perturbations with ``‖k‖ <= 1``; zero diagonal.

    Parameters
    ----------
    laws : list of d laws (names, frozen distributions, samples (n,)) or a sample (n, d).
    algorithm : "symmetric", ``√(q_i+q_j)/(τ_i+τ_j)`` with ``q = γ + Var g'``; "deflation" (one-unit), ``√q_i/τ_i``.
    """
    _check_algorithm(algorithm)
    columns = _columns(laws)
    m = [margins(law, c) for law, c in zip(columns, _per_source(contrast, len(columns)), strict=True)]
    alpha, gamma, var_dg = (np.array([getattr(x, name) for x in m]) for name in ("alpha", "gamma", "var_dg"))
    return sensitivity_matrix(alpha, gamma, var_dg, algorithm)


def _check_algorithm(algorithm: str) -> None:
    if algorithm not in ("symmetric", "deflation"):
        raise IsoICAError(f'algorithm={algorithm!r}; use "symmetric" or "deflation"')


@dataclass(frozen=True)
class FirstOrder:
    """Derivatives at η = 0. ``B = I + η·unmixing`` (d, d); ``1-corr = η²·corr_loss`` (d,)."""

    unmixing: Array
    corr_loss: Array


def first_order(
    S: ArrayLike,
    k: ArrayLike,
    contrast: ContrastLike,
    algorithm: str = "symmetric",
    order: Sequence[int] | None = None,
) -> FirstOrder:
    """What the perturbation ``k = A⁻¹h`` does to ICA, to first order, in source coordinates.

    With ``u`` the perturbation of the whitened sources and ``c_ij = E[g(S_i)u_j] + E[g'(S_i)S_j u_i]``: one-unit
    ``V_ij = c_ij/α_i``; symmetric ``Ω_ij = (s_i c_ij - s_j c_ji)/(τ_i+τ_j)``; ``1-corr = (η²/2) E(u_i + Ω_i·S)²``.
    The part of k that is linear in S is taken out first: its effect is exactly ``-K`` and costs no correlation.

    Parameters
    ----------
    S : (n, d) standardised sources; k : (n, d) values of ``A⁻¹h(S)``.
    algorithm : "symmetric" or "deflation"; the latter gives every row its one-unit value.
    order : for deflation, the position at which each source is extracted: a row then inherits, with the other sign, the
        leakage to the rows before it, as Gram-Schmidt makes it do.
    """
    _check_algorithm(algorithm)
    S, k = _sources(S), np.asarray(k, dtype=np.float64)
    if k.shape != S.shape:
        raise IsoICAError(f"k must have the shape of S, {S.shape}, got {k.shape}")
    n, d = S.shape
    k = np.asarray(k - k.mean(axis=0))
    K = np.linalg.solve(S.T @ S, S.T @ k).T
    u = k - S @ K.T
    contrasts = [_learnt(c, x, np.full(n, 1 / n)) for c, x in zip(_per_source(contrast, d), S.T, strict=True)]
    g = np.stack([np.asarray(c.g(x)) for c, x in zip(contrasts, S.T, strict=True)], axis=1)
    dg = np.stack([np.asarray(c.dg(x)) for c, x in zip(contrasts, S.T, strict=True)], axis=1)
    alpha = np.mean(S * g - dg, axis=0)
    c = (g.T @ u + (dg * u).T @ S) / n
    if algorithm == "symmetric":
        s, tau = np.where(alpha < 0, -1.0, 1.0), np.abs(alpha)
        turn = (s[:, None] * c - s * c.T) / (tau[:, None] + tau)
    else:
        with np.errstate(divide="ignore", invalid="ignore"):  # α = 0: not identified
            turn = c / alpha[:, None]
        if order is not None:
            position = np.asarray(order)
            turn = np.where(position[:, None] < position, turn, -turn.T)
    np.fill_diagonal(turn, 0.0)
    return FirstOrder(turn - K, 0.5 * np.mean((u + S @ turn.T) ** 2, axis=0))


def worst_case_perturbation(
    S: ArrayLike, contrast: ContrastLike, i: int, j: int, algorithm: str = "symmetric"
) -> Array:
    """The canonical k (n, d) with ``‖k‖ = 1`` that leaks source j into estimate i the most: ``|B_ij|/η = κ_ij``.

    Symmetric: ``k_j ∝ s_i(g(S_i)-μ_iS_i) - s_j(g'(S_j)-ρ_j)S_i``, ``k_i ∝ s_i(g'(S_i)-ρ_i)S_j - s_j(g(S_j)-μ_jS_j)``;
    one-unit: the terms with s_i alone. ``S`` (n, d) are standardised sources.
    """
    _check_algorithm(algorithm)
    S = _sources(S)
    n, d = S.shape
    if not (0 <= i < d and 0 <= j < d and i != j):
        raise IsoICAError(f"i={i}, j={j} must be two different sources of {d}")
    names = _per_source(contrast, d)
    parts = {}
    for a in (i, j):
        x = S[:, a]
        c = _learnt(names[a], x, np.full(n, 1 / n))
        g, dg = np.asarray(c.g(x)), np.asarray(c.dg(x))
        mu, rho = float(np.mean(x * g)), float(np.mean(dg))
        parts[a] = (1.0 if mu - rho >= 0 else -1.0, g - g.mean() - mu * x, dg - rho)
    k = np.zeros_like(S)
    (si, gi, dgi), (sj, gj, dgj) = parts[i], parts[j]
    both = algorithm == "symmetric"
    k[:, j] = si * gi - both * sj * dgj * S[:, i]
    k[:, i] = si * dgi * S[:, j] - both * sj * gj
    return k / np.sqrt(np.mean(np.sum(k * k, axis=1)))


@dataclass(frozen=True)
class WhatIf:
    """The worst that a perturbation of size ``eta`` can do to a data set, predicted to first order and carried out.

    pair : (i, j), the leakage of source j into estimate i is the largest. perturbation : k (n, d), ``‖k‖ = 1``.
    sources : (n, d) before, and perturbed : (n, d) what ICA recovers from ``S + ηk``, in the same order and signs.
    leakage_predicted, leakage : ``|B_ij|``, ηκ_ij and as it came out. loss_predicted, loss : (d,) ``1 - corr``.
    """

    pair: tuple[int, int]
    eta: float
    perturbation: Array
    sources: Array
    perturbed: Array
    leakage_predicted: float
    leakage: float
    loss_predicted: Array
    loss: Array


def what_if(
    S_hat: ArrayLike,
    eta: float,
    contrast: ContrastLike = "logcosh",
    algorithm: str = "symmetric",
    pair: tuple[int, int] | None = None,
    order: Sequence[int] | None = None,
) -> WhatIf:
    """Apply the worst-case perturbation to recovered sources and run ICA again: what one could be missing.

    Parameters
    ----------
    S_hat : (n, d) recovered sources, moved to the nearest stationary point of the contrast first.
    eta : size of the perturbation, in [0, 1].
    pair : (i, j): leak source j into estimate i; None takes the pair with the largest κ.
    order : for deflation, the position at which each source is extracted; None: as the columns are.
    """
    _check_algorithm(algorithm)
    if not 0 <= eta <= 1:
        raise IsoICAError(f"eta={eta}; must lie in [0, 1]")
    S = np.asarray(S_hat, dtype=np.float64)
    if S.ndim != 2 or S.shape[1] < 2 or not np.isfinite(S).all():
        raise IsoICAError(f"S_hat must be a finite (n, d) array with d >= 2, got shape {S.shape}")
    S = _sources(S / S.std(axis=0))
    names = _per_source(contrast, S.shape[1])
    contrasts = [_learnt(c, x, np.full(len(x), 1 / len(x))) for c, x in zip(names, S.T, strict=True)]
    position = np.asarray(range(S.shape[1]) if order is None else order, dtype=np.intp)
    S = S @ _ica(S, contrasts, algorithm, position).T
    if pair is None:
        kappa = sensitivity(S, contrasts, algorithm)
        pair = divmod(int(np.argmax(kappa)), len(kappa))
    i, j = pair
    if algorithm == "deflation" and position[i] > position[j]:
        i, j = j, i  # a later row inherits the leakage of the earlier one
    k = worst_case_perturbation(S, contrasts, i, j, algorithm)
    first = first_order(S, k, contrasts, algorithm, order=position.tolist() if algorithm == "deflation" else None)
    B = _ica(S + eta * k, contrasts, algorithm, position)
    perturbed = (S + eta * k - eta * k.mean(axis=0)) @ B.T
    corr = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(S.T, perturbed.T, strict=True)])
    return WhatIf(
        pair, float(eta), k, S, perturbed, float(eta * abs(first.unmixing[pair])), float(abs(B[pair])),
        eta**2 * first.corr_loss, 1 - corr,
    )  # fmt: skip


def _ica(S: Array, contrasts: Sequence[Contrast], algorithm: str, position: NDArray[np.intp]) -> Array:
    """``B`` (d, d), the stationary unmixing of ``S`` (n, d) nearest to the identity; rows in the order of S."""
    d = S.shape[1]
    mean, cov = moments(S, None, 2**16)
    K = np.asarray(linalg.inv(linalg.sqrtm(cov).real), dtype=np.float64)
    chunks = white_chunks(S, mean, K, None, "float64", None)
    solve = symmetric if algorithm == "symmetric" else deflation
    sequence = np.argsort(position)
    found = solve(numpy_pass(chunks), np.eye(d)[sequence], [contrasts[c] for c in sequence], tol=1e-10, max_iter=200)
    B = np.empty((d, d))
    B[sequence] = found.W @ K
    return B * np.where(np.diag(B) < 0, -1.0, 1.0)[:, None]


@dataclass(frozen=True)
class Certificate:
    """A guarantee for one source: the contrast has a critical point within ``radius`` and ``corr >= corr_lower``.

    ``valid``: the conditions hold; otherwise ``corr_lower`` is the trivial -1. ``certified`` is "numerical" (the
    condition on the unperturbed map was checked at 256 points) or "none".
    """

    radius: float
    corr_lower: float
    valid: bool
    certified: str


def certificate(S: ArrayLike, contrast: ContrastLike, norm_k: float, eta: float) -> list[Certificate]:
    """Finite, non-asymptotic guarantee for one-unit ICA of ``Y = S + ηk``, canonical k with ``‖k‖ <= norm_k``.

    With ``δ = (4/√3) L1 η‖k‖`` and ``ρ = 2δ/|α_i| <= 1/2``, if ``‖DF_0(v) + α_i I‖ <= |α_i|/2`` for ``|v| <= ρ``, then
    ``corr >= 1 - (1.04ρ + η‖k‖)²/2``. A guarantee with room, not an estimate; needs a contrast with bounded g'.

    Parameters
    ----------
    S : (n, d) standardised independent sources.
    norm_k : root mean square of ``|k|``; eta : size of the perturbation.
    """
    S = _sources(S)
    if not (norm_k >= 0 and eta >= 0 and np.isfinite(norm_k * eta)):
        raise IsoICAError(f"norm_k={norm_k} and eta={eta} must be finite and not negative")
    n, d = S.shape
    contrasts = [_learnt(c, x, np.full(n, 1 / n)) for c, x in zip(_per_source(contrast, d), S.T, strict=True)]
    found = []
    for i, c in enumerate(contrasts):
        x = S[:, i]
        alpha = float(np.mean(x * c.g(x) - c.dg(x)))
        size = eta * norm_k
        radius = float(2 * (4 / np.sqrt(3)) * c.L1 * size / abs(alpha)) if size > 0 else 0.0
        valid = radius <= 0.5 and abs(float(c.g(np.zeros(1))[0])) < 1e-12 and _contracts(S, c, i, alpha, radius)
        bound = max(-1.0, 1 - 0.5 * (1.04 * radius + size) ** 2) if valid else -1.0
        found.append(Certificate(radius, bound, valid, "numerical" if valid else "none"))
    return found


def _contracts(S: Array, c: Contrast, i: int, alpha: float, radius: float, points: int = 256) -> bool:
    """``‖DF_0(v) + αI‖ <= |α|/2`` at Sobol points of the ball, its centre and its sphere."""
    d = S.shape[1]
    if d == 1:
        return True
    x, rest = S[:, i], np.delete(S, i, axis=1)
    for v in ball_points(d - 1, radius, points):
        if np.linalg.norm(tangent_derivative(x, rest, c, v) + alpha * np.eye(d - 1), 2) > abs(alpha) / 2:
            return False
    return True


def tangent_derivative(x: Array, rest: Array, c: Contrast, v: Array) -> Array:
    """Derivative (d-1, d-1) at ``v`` of ``F_0(v) = E[g(y) q]``, where ``w = √(1-|v|²) e_i + v``.

    ``y = w·S = √(1-|v|²) S_i + v·S_⊥``, ``q = S_⊥ - v S_i/√(1-|v|²) = dy/dv``; ``x`` (n,): S_i, ``rest`` (n, d-1): S_⊥.
    """
    root = np.sqrt(1 - v @ v)
    y = root * x + rest @ v
    q = rest - np.outer(x, v / root)
    curved = np.eye(len(v)) / root + np.outer(v, v) / root**3
    return np.asarray((q * c.dg(y)[:, None]).T @ q / len(x) - np.mean(c.g(y) * x) * curved)


def ball_points(d: int, radius: float, points: int) -> Array:
    """Sobol points (points, d) in the ball of the given radius: the first at the centre, every fourth on the sphere."""
    from scipy.special import ndtri

    cube = qmc.Sobol(d + 1, scramble=False).random(points)
    normal = ndtri(np.clip(cube[:, :d], 1e-12, 1 - 1e-12))
    norms = np.linalg.norm(normal, axis=1)
    direction = normal / np.where(norms > 0, norms, 1.0)[:, None]
    length = cube[:, d] ** (1 / d)
    length[3::4] = 1.0
    return np.asarray(radius * length[:, None] * direction)


def _sources(S: ArrayLike) -> Array:
    S = np.asarray(S, dtype=np.float64)
    if S.ndim != 2 or not np.isfinite(S).all():
        raise IsoICAError(f"S must be a finite (n, d) array of sources, got shape {S.shape}")
    sd = S.std(axis=0)
    if np.any(np.abs(sd - 1) > 0.3):
        raise IsoICAError(f"S must have variance 1 per column (standard deviations {np.round(sd, 3)}); standardise it")
    return S - S.mean(axis=0)
