"""Local-global minimisation of ``E(z) = Σ_i Σ_j w_ij |(z_j - z_i) - R_i t_ij|²`` over places z and rotations R_i.

As rigid as possible (Sorkine and Alexa 2007), over point clouds in any dimension: the chart with the least Θ_2.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse
from scipy.sparse.csgraph import connected_components, dijkstra
from scipy.sparse.linalg import LinearOperator, cg, splu
from sklearn.exceptions import ConvergenceWarning

from .errors import IsoICAError
from .neighbours import Neighbourhoods

Array = NDArray[np.float64]
Solver = Callable[[Array, Array], Array]
"""``(b (n, d), guess (n, d)) -> z (n, d)`` with ``L z = b`` and mean 0."""

_MEMORY = 5  # of the Anderson acceleration
_DIRECT = {1: 200_000, 2: 200_000, 3: 20_000}  # points up to which the Laplacian of a d-manifold is factorised


@dataclass
class Alignment:
    """z (n, d), rotations (n, d, d), energies (n_iter + 1,), and whether the last relative decrease was below tol."""

    z: Array
    rotations: Array
    energies: list[float]
    converged: bool


def local_step(hood: Neighbourhoods, z: Array) -> tuple[Array, float]:
    """The best R_i in O(d) for places z, reflections allowed, and the energy that is left."""
    e = z[hood.index] - z[:, None]
    U, _, Vt = np.linalg.svd(np.swapaxes(e * hood.weight[:, :, None], 1, 2) @ hood.places)
    R = U @ Vt
    rest = e - hood.places @ np.swapaxes(R, 1, 2)
    return R, float(np.einsum("nk,nkd,nkd->", hood.weight, rest, rest))


def global_rhs(hood: Neighbourhoods, R: Array) -> Array:
    """Right-hand side (n, d) of the Laplacian system whose solution minimises the energy for given R."""
    turned = hood.weight[:, :, None] * (hood.places @ np.swapaxes(R, 1, 2))
    n, _, d = turned.shape
    b = -turned.sum(axis=1)
    flat, index = turned.reshape(-1, d), hood.index.ravel()
    for c in range(d):
        b[:, c] += np.bincount(index, flat[:, c], minlength=n)
    return b


def laplacian(hood: Neighbourhoods) -> sparse.csc_array:
    """Laplacian (n, n) of the symmetrised weights."""
    n, k = hood.index.shape
    W = sparse.csr_array((hood.weight.ravel(), (np.repeat(np.arange(n), k), hood.index.ravel())), shape=(n, n))
    W = W + W.T
    return sparse.csc_array(sparse.diags_array(np.asarray(W.sum(axis=1)).ravel()) - W)


def laplacian_solver(L: sparse.csc_array, d: int, kind: str) -> Solver:
    """Solver of ``L z = b``: "direct" factorises once, "amg" and "cg" iterate from the guess, "auto" chooses."""
    n = L.shape[0]
    if kind == "auto":
        kind = "direct" if n <= _DIRECT.get(d, 5_000) else "amg"  # the higher d, the more the factors fill up
    if kind == "direct":
        factor = splu(L[1:, 1:], permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})

        def direct(b: Array, guess: Array) -> Array:
            z = np.vstack([np.zeros((1, d)), factor.solve(b[1:])])
            return z - z.mean(axis=0)

        return direct
    A = sparse.csr_array(L)
    M = _preconditioner(A, kind)

    def iterative(b: Array, guess: Array) -> Array:
        z = np.stack([cg(A, b[:, c], guess[:, c], rtol=1e-9, maxiter=2000, M=M)[0] for c in range(d)], axis=1)
        return z - z.mean(axis=0)

    return iterative


def _preconditioner(A: sparse.csr_array, kind: str) -> LinearOperator:
    if kind == "amg":
        try:
            import pyamg
        except ImportError:
            pass  # Jacobi needs more iterations and gives the same answer
        else:
            levels = pyamg.smoothed_aggregation_solver(sparse.csr_matrix(A), B=np.ones((A.shape[0], 1)), max_coarse=100)
            return levels.aspreconditioner()
    inverse = 1 / A.diagonal()
    return LinearOperator(A.shape, matvec=lambda x: inverse * np.ravel(x), dtype=np.float64)


def align(hood: Neighbourhoods, z: Array, solve: Solver, max_iter: int, tol: float) -> Alignment:
    """Minimise the energy from places z (n, d): local and global steps with Anderson acceleration.

    An accelerated step is kept only where the energy falls below that before it, else the plain step is taken, which
    never raises it. Stops at a relative decrease below ``tol``; Ctrl-C keeps what is reached.
    """
    R, energy = local_step(hood, z)
    energies = [energy]
    scale = float(np.sum(hood.weight * np.sum(hood.places**2, axis=2)))
    steps: list[Array] = []  # differences of iterates and of residuals, newest last
    turns: list[Array] = []
    last: tuple[Array, Array] | None = None
    converged = energy <= 1e-28 * scale
    try:
        while len(energies) <= max_iter and not converged:
            plain = solve(global_rhs(hood, R), z)
            residual = plain - z
            if last is not None:
                steps, turns = [*steps, plain - last[0]][-_MEMORY:], [*turns, residual - last[1]][-_MEMORY:]
            last = plain, residual
            candidate = plain
            if steps:
                F = np.stack([t.ravel() for t in turns], axis=1)
                normal = F.T @ F
                ridge = 1e-14 * np.trace(normal) * np.eye(len(normal))
                weights = linalg.lstsq(normal + ridge, F.T @ residual.ravel())[0]
                candidate = plain - sum(w * s for w, s in zip(weights, steps, strict=True))
            R_new, energy = local_step(hood, candidate)
            if steps and not energy < energies[-1]:
                steps, turns, last, candidate = [], [], None, plain
                R_new, energy = local_step(hood, plain)
            z, R = candidate, R_new
            converged = energies[-1] - energy <= tol * energies[-1] or energy <= 1e-28 * scale
            energies.append(energy)
    except KeyboardInterrupt:
        warnings.warn("alignment was interrupted; the best places so far are kept", ConvergenceWarning, 3)
        return Alignment(z - z.mean(axis=0), R, energies, False)
    if max_iter and not converged:
        warnings.warn(
            f"not converged after {max_iter} iterations: the energy falls by {1 - energies[-1] / energies[-2]:.1e} "
            f"> tol {tol:.1e} an iteration; raise max_iter or tol",
            ConvergenceWarning,
            3,
        )
    return Alignment(z - z.mean(axis=0), R, energies, bool(converged))


def chart_derivatives(hood: Neighbourhoods, z: Array) -> Array:
    """Least-squares derivatives G_i (n, d, d) of the chart in its tangent planes: ``z_j - z_i ≈ G_i t_ij``."""
    e = (z[hood.index] - z[:, None]) * hood.weight[:, :, None]
    moment = np.swapaxes(hood.places * hood.weight[:, :, None], 1, 2) @ hood.places
    cross = np.swapaxes(e, 1, 2) @ hood.places
    return np.asarray(cross @ np.linalg.pinv(moment, rcond=1e-10, hermitian=True))


# --- where to start


def landmark_isomap(hood: Neighbourhoods, d: int, n_landmarks: int, rng: np.random.Generator) -> Array:
    """Classical scaling of graph distances between landmarks, the other points by triangulation (de Silva 2004).

    Parts of the graph that are not connected are embedded one by one and set side by side.
    """
    n, k = hood.index.shape
    lengths = np.linalg.norm(hood.places, axis=2).ravel()
    edges = np.repeat(np.arange(n), k), hood.index.ravel()
    graph = sparse.csr_array((np.maximum(lengths, 1e-12 * lengths.max()), edges), shape=(n, n))
    graph = graph.maximum(graph.T)
    z, label, end = np.empty((n, d)), connected_components(graph, directed=False)[1], 0.0
    for part in (np.flatnonzero(label == c) for c in range(label.max() + 1)):
        landmarks = np.sort(rng.choice(len(part), size=min(len(part), max(n_landmarks, d + 2)), replace=False))
        square = dijkstra(graph[part][:, part], directed=False, indices=landmarks) ** 2
        core = square[:, landmarks]
        mean = core.mean(axis=0)
        values, vectors = linalg.eigh(-0.5 * (core - mean - mean[:, None] + mean.mean()))
        values, vectors = values[: -d - 1 : -1], vectors[:, : -d - 1 : -1]
        z[part] = -0.5 * (square - mean[:, None]).T @ (vectors / np.sqrt(np.maximum(values, 1e-12 * values[0])))
        z[part, 0] += end - z[part, 0].min()
        end = float(z[part, 0].max())
    return np.asarray(z - z.mean(axis=0))


def locally_linear(X: Array, hood: Neighbourhoods, d: int, method: str, k: int, seed: int, n_jobs: int | None) -> Array:
    """HLLE or LTSA of scikit-learn, which are defined up to an affine map, with that map taken from the lengths."""
    from sklearn.manifold import LocallyLinearEmbedding

    need = d * (d + 3) // 2 + 1 if method == "hessian" else d + 1
    if k < need:
        raise IsoICAError(f"this start needs n_neighbors >= {need} for {d} components, got {k}")
    solver = "dense" if len(X) <= 2000 else "arpack"
    model = LocallyLinearEmbedding(
        n_neighbors=k, n_components=d, method=method, eigen_solver=solver, random_state=seed, n_jobs=n_jobs
    )
    try:
        z = model.fit_transform(X)
    except (ValueError, RuntimeError, np.linalg.LinAlgError) as error:
        raise IsoICAError(f'{method} embedding failed ({error}); use init="isomap"') from error
    return fix_metric(hood, z)


def fix_metric(hood: Neighbourhoods, z: Array) -> Array:
    """``M^{1/2} z`` with the SPD M for which ``(z_j - z_i)ᵀ M (z_j - z_i)`` is closest to the squared lengths."""
    z = z / z.std(axis=0)
    d = z.shape[1]
    e = (z[hood.index] - z[:, None]).reshape(-1, d)
    target = np.sum(hood.places**2, axis=2).ravel()
    i, j = np.triu_indices(d)
    design = e[:, i] * e[:, j] * np.where(i == j, 1.0, 2.0)
    M = np.zeros((d, d))
    M[i, j] = M[j, i] = linalg.lstsq(design, target)[0]
    values, vectors = linalg.eigh(M)
    values = np.maximum(values, 1e-6 * max(values[-1], 1e-300))
    return np.asarray((z - z.mean(axis=0)) @ (vectors * np.sqrt(values)) @ vectors.T)
