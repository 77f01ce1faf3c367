"""Gaussian blocks given their parents (spec 2.6).

Given its parents a Gaussian block needs only second moments, whatever the law of the parents: its maximum entropy
mechanism is the max-determinant completion of (parents, block) with the parents' own covariance held, so an unknown
child-parent pair is a zero of the natural parameter, not of the regression coefficient.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from ..completion import complete_covariance
from ..errors import InfeasibleMomentsError
from ..factors import GaussianFactor
from ..graph import _listed
from ..linalg import independent_columns
from .projection import check_agreement, check_curved, nonlocal_pairs, projections
from .state import State

Array = NDArray[np.float64]


def fit_gaussian_block(state: State, B: list[int], P: list[int], slack: float | str, nonlocal_: str) -> None:
    """Fit the mechanism of coordinates ``B`` given their parents ``P``, and place them in the state."""
    projected, curved = projections(state, nonlocal_pairs(state, B, P, nonlocal_), P)
    labels = [state.names[i] for i in (*P, *B)]
    p, M = len(P), state.cov[np.ix_(P, P)]
    if not projected:
        joint = np.empty((p + len(B), p + len(B)))
        joint[:p, :p] = M
        joint[p:, :p], joint[:p, p:] = state.given[np.ix_(B, P)], state.given[np.ix_(P, B)]
        joint[p:, p:] = state.given[np.ix_(B, B)]
        full = complete_covariance(joint, names=labels).cov
        gamma, S = full[p:, :p], full[p:, p:]
    else:
        gamma, S = _constrained_block(state, B, P, projected, slack)
    slopes = np.asarray(np.linalg.solve(M, gamma.T).T if p else np.zeros((len(B), 0)), dtype=float)
    residual = S - slopes @ gamma.T
    residual = (residual + residual.T) / 2
    if np.linalg.eigvalsh(residual / np.sqrt(np.outer(S.diagonal(), S.diagonal())))[0] < 1e-11:
        raise InfeasibleMomentsError(
            f"{_listed([state.names[i] for i in B])} would be a deterministic function of {_listed(labels[:p])} "
            "under the graph"
        )
    done = state.done
    state.cov[np.ix_(B, done)] = slopes @ state.cov[np.ix_(P, done)] if p else 0.0
    state.cov[np.ix_(done, B)] = state.cov[np.ix_(B, done)].T
    state.cov[np.ix_(B, B)] = S
    intercept = state.mean[B] - slopes @ state.mean[P]
    state.factors.append(
        GaussianFactor(tuple(state.names[i] for i in B), tuple(labels[:p]), intercept, slopes, residual)
    )
    state.entropy += 0.5 * (len(B) * np.log(2 * np.pi * np.e) + float(np.linalg.slogdet(residual)[1]))
    natural = np.linalg.inv(residual)
    for a, i in enumerate(B):
        for k, j in enumerate(P):
            state.multipliers[f"E[{state.names[j]} {state.names[i]}]"] = float((natural @ slopes)[a, k])
        for c in range(a, len(B)):
            state.multipliers[f"E[{state.names[i]} {state.names[B[c]]}]"] = float(
                -natural[a, c] * (0.5 if a == c else 1.0)
            )
    state.done.extend(B)
    check_curved(state, curved, P)


def _constrained_block(
    state: State, B: list[int], P: list[int], projected: list[tuple[int, int, Array]], slack: float | str
) -> tuple[Array, Array]:
    """Cov(B, P) and Cov(B) of greatest conditional entropy under known entries and projected linear constraints."""
    M, p = state.cov[np.ix_(P, P)], len(P)
    gamma = np.zeros((len(B), p))
    free: list[Array] = []
    for a, b in enumerate(B):
        rows = [np.eye(p)[k] for k, j in enumerate(P) if not np.isnan(state.given[b, j])]
        goal = [state.given[b, j] for j in P if not np.isnan(state.given[b, j])]
        sources = [j for j in P if not np.isnan(state.given[b, j])]
        for bb, j, g in projected:
            if bb == b:
                rows.append(g)
                goal.append(state.given[b, j])
                sources.append(j)
        A, m = np.array(rows).reshape(len(rows), p), np.array(goal)
        # gamma = M A'(A M A')^-1 m explains the least conditional variance; dependent rows are implied by the others,
        # which is where the graph can be tested (known covariances with parents come first in A).
        kept = independent_columns(A @ M @ A.T)
        if slack == 0.0:
            gamma[a] = M @ A[kept].T @ np.linalg.solve(A[kept] @ M @ A[kept].T, m[kept])
            for k in set(range(len(m))) - set(kept):
                check_agreement(state, b, sources[k], float(A[k] @ gamma[a]))
        elif len(m):
            weight = 1 / np.array([np.sqrt(_sampling_variance(state, b, j)) for j in sources])
            AW = A * weight[:, None]
            gamma[a] = M @ AW.T @ np.linalg.pinv(AW @ M @ AW.T, rcond=1e-11, hermitian=True) @ (m * weight)
            state.slack_used |= len(kept) < len(m)
        _, singular, Vt = np.linalg.svd(A) if p else (None, np.zeros(0), np.zeros((0, 0)))
        rank = int((singular > 1e-9 * max(singular[0], 1e-300)).sum()) if len(singular) else 0
        free.append(Vt[rank:])
    S = state.given[np.ix_(B, B)]
    if len(B) == 1:
        return gamma, S
    if not any(len(f) for f in free):
        explained = gamma @ np.linalg.solve(M, gamma.T) if p else np.zeros_like(S)
        names = [state.names[b] for b in B]
        return gamma, complete_covariance(S - explained, names=names).cov + explained
    return _maximise_block(M, S, gamma, free)


def _sampling_variance(state: State, b: int, j: int) -> float:
    n = 1.0 if state.n is None or state.n[b, j] == 0 else float(state.n[b, j])
    return float(state.given[b, b] * state.given[j, j] + np.nan_to_num(state.given[b, j]) ** 2) / n


def _maximise_block(M: Array, S: Array, gamma: Array, free: list[Array]) -> tuple[Array, Array]:
    """Maximise logdet(S - gamma M^-1 gamma') over the free directions of gamma and the unknown entries of S."""
    inverse = np.linalg.inv(M)
    rows, cols = np.nonzero(np.triu(np.isnan(S), 1))
    sizes = [len(f) for f in free]

    def unpack(theta: Array) -> tuple[Array, Array]:
        full, at = gamma.copy(), 0
        for a, f in enumerate(free):
            full[a] += theta[at : at + sizes[a]] @ f
            at += sizes[a]
        filled = S.copy()
        filled[rows, cols] = filled[cols, rows] = theta[at:]
        return full, filled

    def objective(theta: Array) -> tuple[float, Array]:
        g, filled = unpack(theta)
        sign, logdet = np.linalg.slogdet(filled - g @ inverse @ g.T)
        if sign <= 0 or np.linalg.eigvalsh(filled - g @ inverse @ g.T)[0] <= 0:
            return np.inf, np.zeros_like(theta)
        K = np.linalg.inv(filled - g @ inverse @ g.T)
        slope = 2 * K @ g @ inverse
        return -logdet, np.concatenate([*(f @ slope[a] for a, f in enumerate(free)), -2 * K[rows, cols]])

    start = np.zeros(sum(sizes) + len(rows))
    if not np.isfinite(objective(start)[0]):
        raise InfeasibleMomentsError("the projected constraints of a block leave no positive definite covariance")
    found = minimize(objective, start, jac=True, method="BFGS", options={"gtol": 1e-11})
    return unpack(found.x)
