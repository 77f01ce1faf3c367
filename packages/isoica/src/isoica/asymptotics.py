"""What limits a linear ICA estimate: margins α, sensitivities κ to a nonlinear perturbation, sampling standard errors.

Entry (i, j) of a matrix says how much source j leaks into estimate i, in units of standard deviations of sources.
Own derivations; see ``theory`` for the same quantities of given laws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .contrasts import Array, Contrast, rows_of
from .whitening import Chunks


@dataclass(frozen=True)
class Margins:
    """Per source: μ = E[S g], ρ = E g', α = μ-ρ, γ = Var g-μ², Var g', one-unit κ = √(γ+v)/|α|, √γ/|α|.

    ``stat_sd`` is the standard deviation of √n times a one-unit off-diagonal unmixing entry. Scalars or arrays (k,).
    """

    mu: Array
    rho: Array
    alpha: Array
    gamma: Array
    var_dg: Array
    kappa: Array
    stat_sd: Array


def margins_from(mu: Array, rho: Array, mean_g: Array, mean_g2: Array, mean_dg2: Array) -> Margins:
    """Margins from the moments of g(S) and g'(S)."""
    alpha = mu - rho
    gamma = np.maximum(mean_g2 - mean_g**2 - mu**2, 0.0)
    var_dg = np.maximum(mean_dg2 - rho**2, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        kappa = np.sqrt(gamma + var_dg) / np.abs(alpha)
        stat_sd = np.sqrt(gamma) / np.abs(alpha)
    return Margins(mu, rho, alpha, gamma, var_dg, kappa, stat_sd)


def sensitivity_matrix(alpha: Array, gamma: Array, var_dg: Array, algorithm: str, order: Array | None = None) -> Array:
    """κ (d, d), zero diagonal: the largest leakage per unit of canonical perturbation, ``|B_ij| <= η‖k‖ κ_ij``.

    One-unit: ``√q_i/τ_i``, q = γ + Var g'; symmetric: ``√(q_i+q_j)/(τ_i+τ_j)``. With ``order`` (the position at which
    each source was extracted) a deflated row inherits the leakage to the rows before it from them.
    """
    tau, q = np.abs(alpha), gamma + var_dg
    with np.errstate(divide="ignore", invalid="ignore"):
        if algorithm == "symmetric":
            kappa = np.sqrt(q[:, None] + q) / (tau[:, None] + tau)
        else:
            kappa = np.broadcast_to((np.sqrt(q) / tau)[:, None], (len(q), len(q))).copy()
            if order is not None:
                kappa = np.where(np.asarray(order)[:, None] < np.asarray(order), kappa, kappa.T)
    np.fill_diagonal(kappa, 0.0)
    return kappa


@dataclass(frozen=True)
class Diagnostics:
    """Plug-in quantities on recovered sources: margins (k,), SE of α (k,), κ and SE of the unmixing matrix (k, k).

    ``share`` (k,): how much of the sum of ``|S g(S)|`` the five largest samples hold.
    """

    margins: Margins
    alpha_se: Array
    kappa: Array
    stderr: Array
    share: Array


def diagnose(
    chunks: Chunks, W: Array, contrasts: Sequence[Contrast], algorithm: str, n_effective: float
) -> Diagnostics:
    """Two passes over the data at the solution ``W``, rows in the order of extraction for ``algorithm="deflation"``.

    The standard errors are sandwich estimates ``sd(ψ_ij)/√n`` of the influence functions: symmetric
    ``ψ_ij = [s_i g_i S_j - s_j g_j S_i - (s_iμ_i - s_jρ_j) S_i S_j]/(τ_i+τ_j)``; a deflated row i against a later j
    ``(g_i S_j - μ_i S_i S_j)/α_i``, against an earlier one ``-(g_j S_i - ρ_j S_i S_j)/α_j``; ``ψ_ii = -(S_i²-1)/2``.
    """
    k = len(W)
    total = 0.0
    means = np.zeros((8, k))
    top = np.zeros((k, 0))
    h = 1e-4
    for Y, w, g, dg in _pieces(chunks, W, contrasts):
        # α of (1+t)S and of S+t moves at these rates: the part of α's error that standardising the source removes.
        ddg = (rows_of(contrasts, "dg", Y + h) - rows_of(contrasts, "dg", Y - h)) / (2 * h)
        yg = Y * g
        terms = (yg, dg, g, g * g, dg * dg, yg + Y * Y * dg - Y * ddg, g + Y * dg - ddg, np.abs(yg))
        total += Y.shape[1] if w is None else w.sum()
        means += [t.sum(axis=1) if w is None else t @ w for t in terms]
        weighted = np.abs(yg) if w is None else np.abs(yg) * w
        five = np.partition(weighted, max(0, weighted.shape[1] - 5), axis=1)[:, -5:]
        top = np.sort(np.hstack([top, five]), axis=1)[:, -5:]
    share = top.sum(axis=1) / np.maximum(means[7], np.finfo(float).tiny)
    means /= total
    mu, rho, mean_g, mean_g2, mean_dg2, rate_scale, rate_shift, _ = means
    m = margins_from(mu, rho, mean_g, mean_g2, mean_dg2)

    var_alpha = np.zeros(k)
    first = np.zeros((2, k, k))  # E[g_i S_j], E[S_i S_j]
    second = np.zeros((4, k, k))  # E[g_i² S_j²], E[g_i S_i g_j S_j], E[g_i S_i S_j²], E[S_i² S_j²]
    for Y, w, g, dg in _pieces(chunks, W, contrasts):
        influence = Y * g - dg - m.alpha[:, None] - rate_scale[:, None] * (Y * Y - 1) / 2 - rate_shift[:, None] * Y
        g = g - mean_g[:, None]
        yg, yy = Y * g, Y * Y
        one = np.ones(Y.shape[1]) if w is None else w
        var_alpha += (influence * influence) @ one
        first += [(g * one) @ Y.T, (Y * one) @ Y.T]
        second += [(g * g * one) @ yy.T, (yg * one) @ yg.T, (yg * one) @ yy.T, (yy * one) @ yy.T]
    first, second, var_alpha = first / total, second / total, var_alpha / total
    var = _influence_variance(m, first, second, algorithm)
    kappa = sensitivity_matrix(
        m.alpha, m.gamma, m.var_dg, algorithm, np.arange(k) if algorithm == "deflation" else None
    )
    return Diagnostics(m, np.sqrt(var_alpha / n_effective), kappa, np.sqrt(var / n_effective), share)


def _influence_variance(m: Margins, first: Array, second: Array, algorithm: str) -> Array:
    gs, ss = first
    gg, cross, mixed, ssss = second
    s = np.where(m.alpha < 0, -1.0, 1.0)
    tau = np.maximum(np.abs(m.alpha), np.finfo(float).tiny)
    if algorithm == "symmetric":
        c = (s * m.mu)[:, None] - s * m.rho
        var = gg + gg.T + c * c * ssss - 2 * np.outer(s, s) * cross + 2 * c * (s * mixed.T - s[:, None] * mixed)
        mean = s[:, None] * gs - s * gs.T - c * ss
        var = (var - mean**2) / (tau[:, None] + tau) ** 2
    else:

        def row(c: Array) -> Array:  # variance of (g_i S_j - c_i S_i S_j)/α_i
            mean = gs - c[:, None] * ss
            return (gg + (c**2)[:, None] * ssss - 2 * c[:, None] * mixed - mean**2) / (tau**2)[:, None]

        var = np.triu(row(m.mu), 1) + np.tril(row(m.rho).T, -1)
    np.fill_diagonal(var, (np.diag(ssss) - np.diag(ss) ** 2) / 4)
    return np.maximum(var, 0.0)


def _pieces(
    chunks: Chunks, W: Array, contrasts: Sequence[Contrast]
) -> Iterator[tuple[Array, Array | None, Array, Array]]:
    for Z, w in chunks():
        Y = W @ Z.astype(np.float64)
        yield Y, None if w is None else w.astype(np.float64), rows_of(contrasts, "g", Y), rows_of(contrasts, "dg", Y)
