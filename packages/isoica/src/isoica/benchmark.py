"""Peers beside ours: solvers at equal gradients from the same start, and embeddings of the same manifold."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .contrasts import LOGCOSH, Array
from .linear import PerturbedICA
from .manifold import RigidAlignment
from .metrics import mcc
from .mixings import make_near_isometric
from .solvers import numpy_pass, polar_factor
from .whitening import moments, white_chunks, whitening_matrix


@dataclass(frozen=True)
class Race:
    """CPU seconds (median) of one solver to one tolerance, the gradient it reached and its objective."""

    solver: str
    tol: float
    seconds: float
    gradient: float
    objective: float
    n_iter: int


def solver_race(
    X: ArrayLike, tolerances: Sequence[float] = (1e-3, 1e-5), repeats: int = 3, max_iter: int = 500, seed: int = 0
) -> list[Race]:
    """Race ours, Picard-O (extended) and scikit-learn's FastICA (logcosh, parallel) on ``X`` (n, p).

    Ours is timed with its diagnostics, rounds of all solvers are interleaved. FastICA cannot stop on a gradient: it
    runs the fewest of 1.3-fold growing iteration counts that reach the tolerance, or ``max_iter``.
    Picard takes part when installed.
    """
    X = np.asarray(X, dtype=np.float64)
    mean, cov = moments(X, None, len(X))
    Z = (X - mean) @ whitening_matrix(cov, len(X), None)[0].T
    start = polar_factor(np.random.RandomState(seed).normal(size=(Z.shape[1],) * 2))
    solvers = {"ours": _ours, "FastICA": _fastica}
    try:
        import picard  # noqa: F401

        solvers["Picard-O"] = _picard
    except ImportError:
        pass
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for tol in tolerances:
            counts = dict.fromkeys(solvers, max_iter)
            counts["FastICA"] = _fastica_iterations(Z, start, tol, max_iter, seed)
            seconds: dict[str, list[float]] = {name: [] for name in solvers}
            results = {}
            for _ in range(repeats):
                for name, solve in solvers.items():
                    before = time.process_time()
                    results[name] = solve(Z, start, tol, counts[name], seed)
                    seconds[name].append(time.process_time() - before)
            for name, (W, n_iter) in results.items():
                gradient, objective = gradient_of(Z, W)
                found.append(Race(name, tol, float(np.median(seconds[name])), gradient, objective, n_iter))
    return found


@dataclass(frozen=True)
class EmbeddingRace:
    """CPU seconds (median) of one embedding, and 1 - MCC of the sources that linear ICA finds in it; NaN: it failed."""

    embedding: str
    seconds: float
    one_minus_mcc: float


def embedding_race(
    n: int = 800, d: int = 2, theta: float = 0.05, repeats: int = 3, seed: int = 0
) -> list[EmbeddingRace]:
    """Race RigidAlignment with its error estimates, and scikit-learn's Isomap, HLLE and LTSA, in interleaved rounds.

    On ``n`` points of a manifold at distance ``theta`` from an isometry, with the same number of neighbours.
    """
    from sklearn.manifold import Isomap, LocallyLinearEmbedding

    data = make_near_isometric(n, d, theta, random_state=seed)
    k = max(12, 4 * d, d * (d + 3) // 2 + 1)
    locally = {"n_neighbors": k, "n_components": d, "random_state": seed}
    embeddings: dict[str, Callable[[], Any]] = {
        "RigidAlignment": lambda: RigidAlignment(d, n_neighbors=k, random_state=seed),
        "Isomap": lambda: Isomap(n_neighbors=k, n_components=d),
        "HLLE": lambda: LocallyLinearEmbedding(method="hessian", **locally),
        "LTSA": lambda: LocallyLinearEmbedding(method="ltsa", **locally),
    }
    seconds: dict[str, list[float]] = {name: [] for name in embeddings}
    error = dict.fromkeys(embeddings, float("nan"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(repeats):
            for name, build in embeddings.items():
                before = time.process_time()
                try:
                    Z = build().fit_transform(data.X)
                except (ValueError, RuntimeError, np.linalg.LinAlgError):  # as HLLE does where points are few
                    continue
                seconds[name].append(time.process_time() - before)
                error[name] = 1 - mcc(data.S, PerturbedICA(random_state=seed).fit_transform(Z))
    return [EmbeddingRace(m, float(np.median(seconds[m] or [np.nan])), error[m]) for m in embeddings]


def gradient_of(Z: Array, W: Array) -> tuple[float, float]:
    """Largest entry of the symmetric logcosh gradient at ``W`` (k, k), and the objective, on white ``Z`` (n, k)."""
    k = len(W)
    M, rho, m = numpy_pass(white_chunks(Z, np.zeros(k), np.eye(k), None, "float64", None))(W, [LOGCOSH] * k)
    T = M @ W.T
    s = np.where(np.diag(T) < rho, -1.0, 1.0)
    signed = s[:, None] * T
    return float(np.max(np.abs(signed - signed.T))), -float(s @ m)


Solver = Callable[[Array, Array, float, int, int], tuple[Array, int]]


def _ours(Z: Array, start: Array, tol: float, max_iter: int, seed: int) -> tuple[Array, int]:
    model = PerturbedICA(whiten=False, tol=tol, max_iter=max_iter, random_state=seed).fit(Z)  # draws the same start
    return model.components_, model.n_iter_


def _picard(Z: Array, start: Array, tol: float, max_iter: int, seed: int) -> tuple[Array, int]:
    from picard import picard

    # Picard-O halves the gradient.
    _, W, _, n_iter = picard(
        Z.T, ortho=True, extended=True, whiten=False, centering=False, w_init=start, tol=tol / 2, max_iter=max_iter,
        return_n_iter=True, m=10,
    )  # fmt: skip
    return W, n_iter


def _fastica(Z: Array, start: Array, tol: float, max_iter: int, seed: int) -> tuple[Array, int]:
    from sklearn.decomposition import FastICA

    model = FastICA(whiten=False, w_init=start, tol=1e-300, max_iter=max_iter).fit(Z)
    return model.components_, model.n_iter_


def _fastica_iterations(Z: Array, start: Array, tol: float, max_iter: int, seed: int) -> int:
    count = 4
    while count < max_iter and gradient_of(Z, _fastica(Z, start, tol, count, seed)[0])[0] > tol:
        count = int(np.ceil(count * 1.3))
    return min(count, max_iter)
