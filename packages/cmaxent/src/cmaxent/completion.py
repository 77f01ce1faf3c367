"""Maximum-determinant completion of a partially known covariance matrix (T6, T9 of the README).

Among all positive definite matrices that agree with the known entries, the one of largest determinant
is the covariance of the maximum entropy Gaussian; its inverse vanishes exactly where the entry was
unknown (Dempster 1972). Chordal patterns have a closed form over cliques and separators (Lauritzen
1996, Prop. 5.9); others are solved by iterative proportional scaling or Newton-CG on the dual.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_factor, cho_solve, cholesky, lapack

from .errors import ConvergenceError, InfeasibleMomentsError, UnboundedEntropyError
from .graph import _listed

Array = NDArray[np.float64]

_IPS_LIMIT = 60  # variables up to which proportional scaling beats a Newton step's p^3 products
_SMALLEST_EIGENVALUE = 1e-11  # of a correlation matrix: below this it is singular to working precision


@dataclass(frozen=True)
class CompletionResult:
    """A completed covariance.

    Attributes
    ----------
    cov : (p, p) float64, agrees with every known entry.
    precision : (p, p) float64, its inverse; zero where the entry was unknown.
    n_iter : iterations, 0 for the closed form of chordal patterns.
    residual : largest absolute disagreement between ``inv(precision)`` and a known entry, relative to
        the standard deviations of its pair.
    chordal : whether the graph of known pairs is chordal.
    logdet : log determinant of ``cov``.
    """

    cov: Array
    precision: Array
    n_iter: int
    residual: float
    chordal: bool
    logdet: float


def complete_covariance(
    M: ArrayLike, *, names: Sequence[str] | None = None, tol: float = 1e-10, method: str = "auto"
) -> CompletionResult:
    """Complete a symmetric matrix whose unknown entries are NaN.

    Parameters
    ----------
    M : (p, p) array, symmetric, NaN for an unknown pair; the diagonal has to be known.
    names : p names for error messages (default x0, x1, …).
    tol : largest relative disagreement allowed on a known entry for the iterative methods.
    method : "auto", or "ips" | "newton" to force an iterative method (also on chordal patterns).

    Returns
    -------
    CompletionResult

    Raises
    ------
    UnboundedEntropyError
        A variance is unknown.
    InfeasibleMomentsError
        No positive definite completion exists; names the clique with the smallest eigenvalue.
    """
    M = np.array(M, dtype=float)
    if M.ndim != 2 or M.shape[0] != M.shape[1] or M.shape[0] == 0:
        raise InfeasibleMomentsError(f"a covariance matrix has to be square and not empty; got shape {M.shape}")
    if method not in ("auto", "ips", "newton"):
        raise InfeasibleMomentsError(f"method={method!r} is not one of 'auto', 'ips', 'newton'")
    p = len(M)
    labels = [f"x{i}" for i in range(p)] if names is None else list(names)
    known = ~np.isnan(M)
    variance = np.diag(M)
    if not known.diagonal().all():
        raise UnboundedEntropyError(
            f"the variance of {_listed([labels[i] for i in np.flatnonzero(~known.diagonal())])} is unknown"
        )
    size = np.sqrt(
        np.abs(np.outer(variance, variance))
    )  # an entry that is zero up to rounding is judged by its pair's SDs
    if not np.array_equal(known, known.T) or (np.abs(M - M.T) > 1e-9 * size)[known].any():
        raise InfeasibleMomentsError(
            "the covariance matrix is not symmetric (entries and NaNs have to mirror each other)"
        )
    if np.any(variance <= 0):
        raise InfeasibleMomentsError(
            f"the variance of {_listed([labels[i] for i in np.flatnonzero(variance <= 0)])} is not positive"
        )

    scale = np.sqrt(variance)
    R = M / np.outer(scale, scale)
    cliques, separators, chordal = _cliques(known)
    _check_cliques(R, cliques, labels)
    if chordal and method == "auto":
        cov, precision, logdet = _chordal(R, cliques, separators)
        n_iter, residual = 0, _residual_chordal(R, cov, precision, known)
    else:
        solve = _newton if method == "newton" or (method == "auto" and p > _IPS_LIMIT) else _ips
        cov, precision, n_iter, residual = solve(R, known, cliques, tol, labels)
        logdet = -2.0 * float(np.log(np.diag(cholesky(precision, lower=True))).sum())
    cov *= np.outer(scale, scale)
    precision /= np.outer(scale, scale)
    return CompletionResult(cov, precision, n_iter, residual, chordal, logdet + float(np.log(variance).sum()))


def _cliques(known: NDArray[np.bool_]) -> tuple[list[NDArray[np.intp]], list[NDArray[np.intp]], bool]:
    """Maximal cliques of the known-pair graph, a clique tree's separators (if chordal), chordality.

    Variables with the same row of known pairs are interchangeable, so that the graph is first reduced
    to one node per distinct row: thousands of variables from a few sources become a few nodes.
    """
    _, first, group = np.unique(np.packbits(known, axis=1), axis=0, return_index=True, return_inverse=True)
    group = group.ravel()
    members = [np.flatnonzero(group == g) for g in range(len(first))]
    quotient = nx.from_numpy_array(known[np.ix_(first, first)] & ~np.eye(len(first), dtype=bool))
    chordal = nx.is_chordal(quotient)
    found = nx.chordal_graph_cliques(quotient) if chordal else nx.find_cliques(quotient)
    node_cliques = sorted(sorted(c) for c in found)

    def expand(nodes: Sequence[int]) -> NDArray[np.intp]:
        return np.sort(np.concatenate([members[g] for g in nodes]))

    cliques = [expand(c) for c in node_cliques]
    if not chordal:
        return cliques, [], False
    # Running intersection: visit the clique tree (maximum-weight spanning forest) from its roots.
    tree = nx.Graph()
    tree.add_nodes_from(range(len(cliques)))
    for i, a in enumerate(node_cliques):
        for j in range(i):
            shared = set(a) & set(node_cliques[j])
            if shared:
                tree.add_edge(i, j, weight=sum(len(members[g]) for g in shared), shared=sorted(shared))
    forest = nx.maximum_spanning_tree(tree)
    order, separators = [], []
    for component in nx.connected_components(forest):
        root = min(component)
        order.append(root)
        separators.append(np.empty(0, dtype=np.intp))
        for parent, child in nx.bfs_edges(forest, root):
            order.append(child)
            separators.append(expand(forest.edges[parent, child]["shared"]))
    return [cliques[i] for i in order], separators, True


def _check_cliques(R: Array, cliques: Sequence[NDArray[np.intp]], labels: Sequence[str]) -> None:
    """Every fully known block has to be positive definite: necessary always, sufficient if chordal."""
    bad = []
    for C in cliques:
        block = R[np.ix_(C, C)]
        factor, info = lapack.dpotrf(block, lower=1)
        # A pivot is an upper bound of the smallest eigenvalue, so only suspicious blocks pay for eigvalsh.
        if info != 0 or factor.diagonal().min() ** 2 < 1e3 * _SMALLEST_EIGENVALUE:
            smallest = float(np.linalg.eigvalsh(block)[0])
            if smallest < _SMALLEST_EIGENVALUE:
                bad.append((smallest, C))
    if not bad:
        return
    smallest, C = min(bad, key=lambda item: item[0])
    which = _listed([labels[i] for i in C])
    kind = "singular" if smallest > -1e-9 else "not positive definite"
    remedy = (
        "drop a redundant variable or use shrinkage"
        if kind == "singular"
        else "check the sources, or merge with repair='shrink'"
    )
    raise InfeasibleMomentsError(
        f"the known covariances of {which} are {kind} (smallest eigenvalue of their correlation matrix "
        f"{smallest:.3g}): {remedy}"
    )


def _chordal(
    R: Array, cliques: Sequence[NDArray[np.intp]], separators: Sequence[NDArray[np.intp]]
) -> tuple[Array, Array, float]:
    """K = sum over cliques of [R_CC^-1]^0 minus sum over separators of [R_SS^-1]^0 (T9).

    The covariance itself is filled clique by clique, R_new,old = R_new,S R_SS^-1 R_S,old, which leaves
    every known entry bit for bit as it was given.
    """
    cov, precision, logdet = R.copy(), np.zeros_like(R), 0.0
    seen = np.empty(0, dtype=np.intp)
    for C, S in zip(cliques, separators, strict=True):
        inverse, block_logdet = _inverse(R[np.ix_(C, C)])
        precision[np.ix_(C, C)] += inverse
        logdet += block_logdet
        new, old = np.setdiff1d(C, S, assume_unique=True), np.setdiff1d(seen, S, assume_unique=True)
        if len(S):
            inverse, block_logdet = _inverse(R[np.ix_(S, S)])
            precision[np.ix_(S, S)] -= inverse
            logdet -= block_logdet
            fill = (R[np.ix_(new, S)] @ inverse) @ cov[np.ix_(S, old)]
        else:
            fill = np.zeros((len(new), len(old)))
        cov[np.ix_(new, old)] = fill
        cov[np.ix_(old, new)] = fill.T
        seen = np.union1d(seen, C)
    return cov, precision, logdet


def _inverse(block: Array) -> tuple[Array, float]:
    factor = cho_factor(block, lower=True)
    inverse = cho_solve(factor, np.eye(len(block)))
    return (inverse + inverse.T) / 2, 2.0 * float(np.log(np.diag(factor[0])).sum())


def _residual_chordal(R: Array, cov: Array, precision: Array, known: NDArray[np.bool_]) -> float:
    """How far the two closed forms are from being inverse to each other, on a few probe vectors.

    The known entries of ``cov`` are exact by construction; a full inverse only to say so would cost
    more than the completion.
    """
    probes = np.random.default_rng(0).choice([-1.0, 1.0], size=(len(R), min(len(R), 4)))
    return float(np.abs(cov @ (precision @ probes) - probes).max())


def _ips(
    R: Array, known: NDArray[np.bool_], cliques: Sequence[NDArray[np.intp]], tol: float, labels: Sequence[str]
) -> tuple[Array, Array, int, float]:
    """Iterative proportional scaling: K_CC += R_CC^-1 - [(K^-1)_CC]^-1 over the maximal cliques."""
    targets = [(C, _inverse(R[np.ix_(C, C)])[0]) for C in cliques]
    K = np.eye(len(R))
    for n_iter in range(1, 201):
        for C, inverse in targets:
            W = _inverse(K)[0]
            K[np.ix_(C, C)] += inverse - _inverse(W[np.ix_(C, C)])[0]
        W = _inverse(K)[0]
        residual = float(np.abs(W - R)[known].max())
        if residual <= tol:
            return W, K, n_iter, residual
    # Slow scaling means nearly singular marginals; Newton decides whether a completion exists.
    return _newton(R, known, cliques, tol, labels)


def _newton(
    R: Array, known: NDArray[np.bool_], cliques: Sequence[NDArray[np.intp]], tol: float, labels: Sequence[str]
) -> tuple[Array, Array, int, float]:
    """Minimise -logdet K + tr(K R) over matrices K supported on the known pairs, by Newton-CG."""
    R0 = np.where(known, R, 0.0)
    K = np.eye(len(R))
    W = np.eye(len(R))
    objective = float(np.trace(R0))
    for n_iter in range(1, 201):
        gradient = np.where(known, R0 - W, 0.0)
        residual = float(np.abs(gradient).max())
        if residual <= tol:
            return W, K, n_iter, residual
        # tr(K R) < 0 for a positive definite K on the known pairs is a certificate: no PSD completion exists.
        # A dual value below its bound says that any completion is singular to working precision.
        if float(np.vdot(K, R0)) < 0.0 or objective < len(R) * (1.0 + np.log(_SMALLEST_EIGENVALUE)):
            sizes = sorted(cliques, key=lambda C: float(np.linalg.eigvalsh(R[np.ix_(C, C)])[0]))
            raise InfeasibleMomentsError(
                "no positive definite completion of the known covariances exists, although every fully known block is "
                f"positive definite; the tightest block is {_listed([labels[i] for i in sizes[0]])}"
            )
        direction = _conjugate_gradient(
            lambda D, W=W: np.where(known, W @ D @ W, 0.0), -gradient, min(0.1, np.sqrt(residual))
        )
        slope = float(np.vdot(gradient, direction))
        step = 1.0
        while step > 1e-12:
            trial = K + step * direction
            factor, info = lapack.dpotrf(trial, lower=1)
            if info == 0:
                trial_objective = float(np.vdot(trial, R0)) - 2.0 * float(np.log(factor.diagonal()).sum())
                # Near the optimum the decrease drowns in rounding of the objective: accept a full step there.
                if trial_objective <= objective + 1e-4 * step * slope + 1e-13 * max(1.0, abs(objective)):
                    break
            step /= 2
        else:
            break
        K, objective = trial, trial_objective
        W = _inverse(K)[0]
    raise ConvergenceError(f"covariance completion stopped at relative residual {residual:.3g} (tolerance {tol:.3g})")


def _conjugate_gradient(apply, b: Array, tolerance: float) -> Array:  # type: ignore[no-untyped-def]
    x, r = np.zeros_like(b), b.copy()
    d, rr = r.copy(), float(np.vdot(r, r))
    stop = tolerance**2 * rr
    for _ in range(200):
        if rr <= stop or rr == 0.0:
            break
        Ad = apply(d)
        alpha = rr / float(np.vdot(d, Ad))
        x += alpha * d
        r -= alpha * Ad
        rr, previous = float(np.vdot(r, r)), rr
        d = r + (rr / previous) * d
    return x
