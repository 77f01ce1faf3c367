"""Linear ICA on the orthogonal group: one fused pass over the data per iteration, L-BFGS on the model Hessian.

With white data Z (k, n), rows ``W`` in O(k) and ``y = WZ`` the objective is ``f(W) = -sum_i s_i E G_i(y_i)``, where
``s_i`` is the sign of ``α_i = E[y_i g_i(y_i)] - E g_i'(y_i)``. Steps are relative, ``W <- exp(E) W``, E antisymmetric.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import linalg
from scipy.optimize import linear_sum_assignment

from .contrasts import Array, Contrast, rows_of
from .whitening import Chunks

Pass = Callable[[Array, Sequence[Contrast]], tuple[Array, Array, Array]]
"""``(rows of W (r, k), their contrasts) -> M = E[g(y) Z'] (r, k), ρ = E g'(y) (r,), m = E G(y) (r,)``, all float64."""


Curvature = Callable[[Array, Sequence[int], Sequence[Contrast]], Array]
"""``(W (k, k), some rows (r), their contrasts) -> C (r, k)``, ``C_ij = E[g_i'(y_i) y_j²]``."""

_SAMPLE = 4096
# Largest gradient entries down to which a sample, and then sums of float32 products, say what the exact pass says.
_SAMPLED, _SINGLE = 3e-2, 3e-4


def numpy_pass(chunks: Chunks, dtype: str | None = None) -> Pass:
    """The fused pass in numpy: every block of data is read once, as ``dtype``; sums are kept in float64."""

    def run(rows: Array, contrasts: Sequence[Contrast]) -> tuple[Array, Array, Array]:
        M, rho, m, total = np.zeros(rows.shape), np.zeros(len(rows)), np.zeros(len(rows)), 0.0
        one = all(c is contrasts[0] for c in contrasts)
        for Z, w in chunks():
            if dtype is not None:
                Z, w = Z.astype(dtype, copy=False), None if w is None else w.astype(dtype, copy=False)
            Y = rows.astype(Z.dtype) @ Z
            if one:
                g, dg, G = contrasts[0].sums(Y, w)
            else:
                parts = [c.sums(y, w) for c, y in zip(contrasts, Y, strict=True)]
                g, dg, G = (
                    np.stack([p[0] for p in parts]),
                    np.array([p[1] for p in parts]),
                    np.array([p[2] for p in parts]),
                )
            M += (g if w is None else g * w) @ Z.T
            rho += dg
            m += G
            total += Z.shape[1] if w is None else float(w.sum(dtype=np.float64))
        return M / total, rho / total, m / total

    return run


@dataclass(frozen=True)
class Far:
    """What is cheap enough far from the optimum: passes with the gradient down to which each is used, and a curvature.

    Both look at a sample of a few thousand columns, which is read once.
    """

    passes: Sequence[tuple[Pass, float]]
    curvature: Curvature


def far_from(chunks: Chunks, n: int, single: Pass | None = None) -> Far:
    """For ``n`` columns in ``chunks``; ``single`` is the pass over all of them in single precision.

    Few columns are all looked at in their own precision: nothing is to be gained there.
    """
    stride = max(1, n // _SAMPLE)
    parts = list(_thinned(chunks, stride))
    dtype = parts[0][0].dtype if stride == 1 else np.float32
    Z = np.concatenate([Z for Z, _ in parts], axis=1).astype(dtype)
    weights = [w for _, w in parts if w is not None]
    w = np.concatenate(weights).astype(dtype) if weights else None
    p = np.full(Z.shape[1], 1 / Z.shape[1], dtype) if w is None else w / w.sum()

    def curvature(W: Array, rows: Sequence[int], contrasts: Sequence[Contrast]) -> Array:
        Y = W.astype(dtype) @ Z
        return np.asarray((rows_of(contrasts, "dg", Y[list(rows)]) * p) @ (Y * Y).T, dtype=np.float64)

    passes = [] if stride == 1 else [(numpy_pass(lambda: [(Z, w)]), _SAMPLED)]
    return Far([*passes, *([] if single is None or stride == 1 else [(single, _SINGLE)])], curvature)


@dataclass
class Solution:
    """Where a solver stopped: ``W`` (k, k) orthogonal, ``objective`` = -sum s_i E G(y_i), ``signs`` s (k,)."""

    W: Array
    objective: float
    signs: Array
    gradient: float
    n_iter: int
    converged: bool
    interrupted: bool = False


@dataclass
class _Point:
    W: Array
    T: Array  # (r, k): E[g(y_i) y_j]
    alpha: Array  # (r,)
    m: Array  # (r,)


class _Memory:
    """L-BFGS pairs on free antisymmetric coordinates."""

    def __init__(self, size: int = 10) -> None:
        self.size = size
        self.pairs: list[tuple[Array, Array]] = []

    def clear(self) -> None:
        self.pairs = []

    def push(self, step: Array, change: Array) -> None:
        if float(step @ change) > 1e-12 * float(np.linalg.norm(step) * np.linalg.norm(change)):
            self.pairs = [*self.pairs, (step, change)][-self.size :]

    def direction(self, grad: Array, hessian: Array) -> Array:
        q, stack = grad.copy(), []
        for s, y in reversed(self.pairs):
            a = (s @ q) / (s @ y)
            q -= a * y
            stack.append(a)
        q /= hessian
        for (s, y), a in zip(self.pairs, reversed(stack), strict=True):
            q += (a - (y @ q) / (s @ y)) * s
        return -q


def minimise(
    pass_: Pass,
    W: Array,
    contrasts: Sequence[Contrast],
    rows: Sequence[int],
    *,
    tol: float,
    max_iter: int,
    far: Far | None = None,
    on_iter: Callable[[int, float, float], None] | None = None,
) -> Solution:
    """Minimise ``-sum_{i in rows} s_i E G_i(y_i)`` over rotations of W.

    ``rows`` all: symmetric ICA. One row i: its one-unit problem, orthogonal to the rows before it (deflation); only the
    pairs (i, j), j > i, are free. Converged when the largest gradient entry is at most ``tol``.

    The passes of ``far`` come before the exact one. Steps are preconditioned by the diagonal of the Hessian,
    ``s_i(μ_i - C_ij) + s_j(μ_j - C_ji)``; without ``far`` by what that is for independent sources, ``τ_i + τ_j``.
    """
    k, rows = len(W), list(rows)
    upper = [(a, b) for a in rows for b in range(a + 1, k)]
    first, second = np.array([p[0] for p in upper], dtype=int), np.array([p[1] for p in upper], dtype=int)
    place = {r: i for i, r in enumerate(rows)}
    ia = np.array([place[a] for a in first], dtype=int)
    ib = np.array([place.get(b, -1) for b in second], dtype=int)  # -1: a row without a contrast of its own here
    active = [contrasts[r] for r in rows]
    with_second = ib >= 0

    def evaluate(W: Array) -> _Point:
        M, rho, m = current(W[rows], active)
        T = M @ W.T
        return _Point(W, T, T[np.arange(len(rows)), rows] - rho, m)

    def gradient(p: _Point, s: Array) -> Array:
        return -(s[ia] * p.T[ia, second] - np.where(with_second, s[ib] * p.T[ib, first], 0.0))

    def hessian(p: _Point, s: Array) -> Array:
        tau = np.abs(p.alpha)
        model = np.maximum(tau[ia] + np.where(with_second, tau[ib], 0.0), 1e-2)
        if far is None:
            return model
        C = far.curvature(p.W, rows, active)
        mu = p.T[np.arange(len(rows)), rows]
        H = s[ia] * (mu[ia] - C[ia, second]) + np.where(with_second, s[ib] * (mu[ib] - C[ib, first]), 0.0)
        return np.maximum(H, np.maximum(0.1 * model, 1e-2))  # a saddle's curvature is no scale to step by

    def turn(W: Array, e: Array) -> Array:
        E = np.zeros((k, k))
        E[first, second] = e
        return rotation(E - E.T) @ W

    passes = [*(() if far is None else far.passes), (pass_, 0.0)]
    current, until = passes.pop(0)
    memory, n_iter, converged = _Memory(), 0, not upper
    p = evaluate(W)
    s = _signs(p.alpha)
    f, grad = -float(s @ p.m), gradient(p, s)
    try:
        while not converged:
            while passes and (n_iter >= max_iter or _largest(grad) <= max(until, tol)):
                current, until = passes.pop(0)
                p = evaluate(p.W)
                new = _signs(p.alpha)
                if np.any(new != s):
                    memory.clear()
                s, f, grad = new, -float(new @ p.m), gradient(p, new)
            if on_iter is not None:
                on_iter(n_iter, f, _largest(grad))
            if _largest(grad) <= tol:
                converged = True
                break
            if n_iter >= max_iter:
                break
            n_iter += 1
            h = hessian(p, s)
            step = memory.direction(grad, h)
            if step @ grad >= 0:
                memory.clear()
                step = -grad / h
            slope, t = float(step @ grad), 1.0
            slack = (1e-7 if passes else 1e-13) * abs(f)
            while t >= 2.0**-10:
                trial = evaluate(turn(p.W, t * step))
                if -float(s @ trial.m) <= f + 1e-4 * t * slope + slack:
                    break
                t /= 2
            else:
                memory.clear()
                t, step = 0.5, -grad / h
                trial = evaluate(turn(p.W, t * step))
            if n_iter % 20 == 0:
                trial.W = polar_factor(trial.W)
            new = _signs(trial.alpha)
            new_grad = gradient(trial, new)
            if np.any(new != s):
                memory.clear()
            else:
                memory.push(t * step, new_grad - grad)
            p, s, grad = trial, new, new_grad
            f = -float(s @ p.m)
    except KeyboardInterrupt:
        return Solution(polar_factor(p.W), f, s, _largest(grad), n_iter, False, True)
    return Solution(polar_factor(p.W), f, s, _largest(grad), n_iter, converged)


def rotation(E: Array) -> Array:
    """Cayley's rotation: ``expm(E)`` to second order for antisymmetric E, orthogonal, at a tenth of the cost."""
    half = E / 2
    unit = np.eye(len(E))
    return np.asarray(np.linalg.solve(unit - half, unit + half))


def _signs(alpha: Array) -> Array:
    return np.where(alpha < 0, -1.0, 1.0)


def _largest(grad: Array) -> float:
    return float(np.max(np.abs(grad), initial=0.0))


def polar_factor(W: Array) -> Array:
    """The matrix with orthonormal rows nearest to ``W``."""
    u, _, vt = linalg.svd(W, full_matrices=False)
    return np.asarray(u @ vt)


def symmetric(
    pass_: Pass,
    W: Array,
    contrasts: Sequence[Contrast],
    *,
    tol: float,
    max_iter: int,
    saddle: Callable[[Array, Array, float], Array | None] | None = None,
    **options: Any,
) -> Solution:
    """All rows at once; after convergence ``saddle(W, signs, objective)`` may propose a better W to go on from.

    ``options`` go to :func:`minimise`.
    """
    k = len(W)
    best = minimise(pass_, W, contrasts, range(k), tol=tol, max_iter=max_iter, **options)
    for _ in range(k if saddle is not None else 0):
        try:
            better = None if not best.converged or saddle is None else saddle(best.W, best.signs, best.objective)
        except KeyboardInterrupt:
            return replace(best, converged=False, interrupted=True)
        if better is None:
            break
        spent = best.n_iter
        best = minimise(pass_, better, contrasts, range(k), tol=tol, max_iter=max_iter - spent, **options)
        best.n_iter += spent
    return best


def deflation(
    pass_: Pass,
    W: Array,
    contrasts: Sequence[Contrast],
    **options: Any,
) -> Solution:
    """One row after the other, each orthogonal to those before it; ``options`` go to :func:`minimise`."""
    k = len(W)
    parts = []
    for i in range(k):
        parts.append(minimise(pass_, W, contrasts, [i], **options))
        W = parts[-1].W
        if parts[-1].interrupted:
            break
    return Solution(
        W,
        sum(p.objective for p in parts),
        np.concatenate([*[p.signs for p in parts], np.ones(k - len(parts))]),
        max(p.gradient for p in parts),
        max(p.n_iter for p in parts),
        all(p.converged for p in parts) and len(parts) == k,
        parts[-1].interrupted,
    )


def fixed_point(
    pass_: Pass,
    W: Array,
    contrasts: Sequence[Contrast],
    *,
    algorithm: str,
    tol: float,
    max_iter: int,
    on_iter: Callable[[int, float, float], None] | None = None,
) -> Solution:
    """FastICA's fixed point ``w <- E[Z g(w·Z)] - E[g'] w`` (Hyvärinen 1999), stopped on the gradient."""
    k = len(W)
    together = algorithm == "symmetric"
    W = polar_factor(W) if together else W / np.linalg.norm(W, axis=1, keepdims=True)
    signs, objective, worst, longest, done, interrupted = np.ones(k), 0.0, 0.0, 0, True, False
    for rows in [slice(0, k)] if together else [slice(i, i + 1) for i in range(k)]:
        before, n_iter, converged = W[: rows.start], 0, False
        try:
            while True:
                w = W[rows]
                M, rho, m = pass_(w, contrasts[rows])
                T = M @ w.T
                s = _signs(np.diag(T) - rho)
                signed = s[:, None] * T
                grad = signed - signed.T if together else M - T @ w - M @ before.T @ before
                if on_iter is not None:
                    on_iter(n_iter, -float(s @ m), _largest(grad))
                converged = _largest(grad) <= tol
                if converged or n_iter == max_iter:
                    break
                n_iter += 1
                new = M - rho[:, None] * w
                new -= new @ before.T @ before
                W[rows] = polar_factor(new)
        except KeyboardInterrupt:
            interrupted = True
        signs[rows], objective = s, objective - float(s @ m)
        worst, longest, done = max(worst, _largest(grad)), max(longest, n_iter), done and converged
        if interrupted:
            break
    return Solution(_gram_schmidt(W), objective, signs, worst, longest, done and not interrupted, interrupted)


def _gram_schmidt(W: Array) -> Array:
    """Rows made orthonormal from the first on; what is orthonormal already stays."""
    q, r = linalg.qr(W.T)
    return np.asarray((q * np.where(np.diag(r) < 0, -1.0, 1.0)).T)


def saddle_test(chunks: Chunks, contrasts: Sequence[Contrast], n: int) -> Callable[[Array, Array, float], Array | None]:
    """For every pair of rows: would turning it by 45° lower the objective by more than 1e-4 |f|/k? Then turn it.

    Pairs that lose beyond four standard errors on a thinned sample of the ``n`` are not looked at on all of it.
    """

    def gains(W: Array, s: Array, pairs: Array, stride: int) -> tuple[Array, Array, Array]:
        """Gain (2, m) of both ways to turn each pair, its standard error, and which way is better (m,)."""
        first, second, total = np.zeros((2, len(pairs))), np.zeros((2, len(pairs))), np.zeros(2)
        for Z, w in _thinned(chunks, stride):
            Y = W @ Z.astype(np.float64)
            p = np.ones(Y.shape[1]) if w is None else w.astype(np.float64)
            total += [p.sum(), p @ p]
            own = np.stack([si * c.G(y) for si, c, y in zip(s, contrasts, Y, strict=True)])
            for at, (i, j) in enumerate(pairs):
                plus, minus = (Y[i] + Y[j]) * np.sqrt(0.5), (Y[i] - Y[j]) * np.sqrt(0.5)
                for way, (a, b) in enumerate(((plus, minus), (minus, plus))):
                    if way and s[i] == s[j] and contrasts[i] is contrasts[j]:
                        first[1, at], second[1, at] = first[0, at], second[0, at]
                        break
                    gain = s[i] * contrasts[i].G(a) + s[j] * contrasts[j].G(b) - own[i] - own[j]
                    first[way, at] += p @ gain
                    second[way, at] += p @ (gain * gain)
        mean = first / total[0]
        error = np.sqrt(np.maximum(second / total[0] - mean**2, 0.0) * total[1]) / total[0]
        way = np.argmax(mean, axis=0)
        return mean, error, way

    def better(W: Array, s: Array, f: float) -> Array | None:
        k = len(W)
        pairs = np.stack(np.triu_indices(k, 1), axis=1)
        least = 1e-4 * abs(f) / max(k, 1)
        stride = max(1, n // _SAMPLE)
        if stride > 1:
            mean, error, _ = gains(W, s, pairs, stride)
            pairs = pairs[np.max(mean + 4 * error, axis=0) > least]
        if not len(pairs):
            return None
        mean, _, way = gains(W, s, pairs, 1)
        gain = np.max(mean, axis=0)
        W = W.copy()
        used: set[int] = set()
        for at in np.argsort(-gain):
            i, j = (int(x) for x in pairs[at])
            if gain[at] > least and not {i, j} & used:
                used |= {i, j}
                plus, minus = (W[i] + W[j]) * np.sqrt(0.5), (W[i] - W[j]) * np.sqrt(0.5)
                W[i], W[j] = (minus, plus) if way[at] else (plus, minus)
        return W if used else None

    return better


def _thinned(chunks: Chunks, stride: int) -> Iterable[tuple[Array, Array | None]]:
    """Every ``stride``-th sample as one block; all blocks as they are for stride 1."""
    if stride == 1:
        return chunks()
    parts = [(Z[:, ::stride], None if w is None else w[::stride]) for Z, w in chunks()]
    weights = [w for _, w in parts if w is not None]
    return [(np.concatenate([Z for Z, _ in parts], axis=1), np.concatenate(weights) if weights else None)]


def stability(runs: Sequence[Array], best: int) -> Array:
    """Per component of run ``best``: mean |correlation| inside its cluster minus that to the other clusters.

    ``runs``: orthogonal (k, k) each; rows are matched to those of the best run by optimal assignment. NaN for one run.
    """
    k = len(runs[best])
    if len(runs) == 1:
        return np.full(k, np.nan)
    matched = []
    for W in runs:
        match = np.abs(W @ runs[best].T)
        row, column = linear_sum_assignment(-match)
        ordered = np.empty_like(W)
        ordered[column] = W[row]
        matched.append(ordered)
    members = np.stack(matched, axis=1)  # (k, runs, k)
    similar = np.abs(np.einsum("iak,jbk->ijab", members, members))
    off = ~np.eye(len(runs), dtype=bool)
    inside = np.array([similar[i, i][off].mean() for i in range(k)])
    outside = np.array([similar[i, np.arange(k) != i].mean() if k > 1 else 0.0 for i in range(k)])
    return inside - outside
