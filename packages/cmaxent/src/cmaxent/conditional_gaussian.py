"""The conditional Gaussian law of largest entropy of indicators z and real x with given moments (spec 2.5).

With means and any pattern of covariances known it is p(z, x) ∝ exp(h'z + z'Jz/2 + x'(l + Lz) - x'Kx/2), where J, L
and K vanish on unknown pairs (Lauritzen 1996, section 6.1). States z are enumerated; x is integrated in closed form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, lapack
from scipy.special import logsumexp

from .completion import complete_covariance
from .dual import solve_conditional
from .errors import ConvergenceError, InfeasibleMomentsError, StateSpaceTooLargeError
from .graph import _listed
from .moments import Moments
from .newton import Value, minimise

Array = NDArray[np.float64]
Index = NDArray[np.intp]

LARGEST_STATE_SPACE = 2**16
TOLERANCE = 1e-10  # moment errors, in standard deviations
_LARGEST_NEWTON = 4000  # parameters of the dual: beyond this its Hessian takes minutes
_IMPOSSIBLE = -1e3  # log weight of a structural zero: no probability, yet a state to fall back on if it is observed


@dataclass(frozen=True)
class Block:
    """Variables as coordinates (z, x), z without a reference level of each variable, and every state of z."""

    names: tuple[str, ...]  # of (z, x)
    index: Index  # of (z, x) in the moments
    owner: Index  # (dz,) which discrete variable an indicator belongs to
    states: Array  # (S, dz)
    indicators: Index  # every indicator in the moments, reference levels included
    levels: Array  # (S, m) their values
    kept: Index  # (dz,) places of z among the indicators

    @property
    def dz(self) -> int:
        return self.states.shape[1]


def enumerate_block(moments: Moments, variables: Sequence[str]) -> Block:
    """States vary slowest in the first discrete variable."""
    discrete = [v for v in variables if moments.kinds[v] != "continuous"]
    continuous = [moments.coordinates(v)[0] for v in variables if moments.kinds[v] == "continuous"]
    coordinates = [moments.coordinates(v) for v in discrete]
    sizes = [max(len(c), 2) for c in coordinates]
    if prod(sizes) > LARGEST_STATE_SPACE:
        raise StateSpaceTooLargeError(
            f"{_listed(discrete)} have {prod(sizes)} joint states, more than the {LARGEST_STATE_SPACE} that can be "
            "enumerated: declare some of them kinds='continuous', or use p_x='empirical' with reference rows"
        )
    grid = np.indices(sizes).reshape(len(sizes), -1) if sizes else np.zeros((0, 1), dtype=int)
    levels = [np.zeros((grid.shape[1], 0))]
    kept: list[int] = []
    owner: list[int] = []
    place = 0
    for v, (size, own) in enumerate(zip(sizes, coordinates, strict=True)):
        table = np.array([[0.0], [1.0]]) if len(own) == 1 else np.eye(size)
        levels.append(table[grid[v]])
        kept += range(place, place + size - 1)
        owner += [v] * (size - 1)
        place += len(own)
    every = np.hstack(levels)
    indicators = np.array([i for c in coordinates for i in c], dtype=np.intp)
    index = np.concatenate([indicators[kept], np.array(continuous, dtype=np.intp)]).astype(np.intp)
    names = tuple(moments.names[i] for i in index)
    at = np.array(kept, dtype=np.intp)
    return Block(names, index, np.array(owner, dtype=np.intp), every[:, at], indicators, every, at)


@dataclass(frozen=True)
class ConditionalGaussian:
    """p(z, x) ∝ exp(h'z + z'Jz/2 + x'(l + Lz) - x'Kx/2): natural parameters, and p(z) with x | z ~ N(b + Bz, V)."""

    h: Array  # (dz,)
    J: Array  # (dz, dz), zero within a variable
    L: Array  # (dx, dz)
    log_p: Array  # (S,)
    possible: NDArray[np.bool_]  # (S,) False at structural zeros
    b: Array  # (dx,)
    B: Array  # (dx, dz)
    V: Array  # (dx, dx)
    n_iter: int


def fit_conditional_gaussian(
    block: Block, mean: Array, cov: Array, omega: Array | None = None, held: int = 0
) -> ConditionalGaussian:
    """The law of largest entropy with these means and known covariances of (z, x).

    If all pairs of indicators are known, the entropy of z and that of x given z separate: a log-linear model of z,
    and the maximum-determinant completion of the covariance of (z, x), whose precision holds L and K. Otherwise
    Newton's method on the joint dual, from the completion that treats z as Gaussian.

    Parameters
    ----------
    mean : (dz + dx,);  cov : (dz + dx, dz + dx), NaN unknown.
    omega : slack of the covariances of coordinate 0 with those from ``held`` on, which are then met up to omega w.
    """
    dz, dx = block.dz, len(mean) - block.dz
    sd = np.ones(len(mean))
    sd[dz:] = np.sqrt(cov.diagonal()[dz:])
    S = cov / np.outer(sd, sd)
    known = ~np.isnan(S)
    start = S.copy()
    if omega is not None:
        start[0, held:] = np.where(known[0, held:], 0.0, np.nan)
        start[held:, 0] = start[0, held:]
    left, right = np.triu_indices(dz, 1)
    across = block.owner[left] != block.owner[right]
    free = across & known[left, right]
    pairs = left[free], right[free]
    z, m = block.states, mean[:dz]
    F = np.hstack([z, z[:, pairs[0]] * z[:, pairs[1]]])
    names = [f"E[{n}]" for n in block.names[:dz]]
    names += [f"E[{block.names[i]} {block.names[j]}]" for i, j in zip(*pairs, strict=True)]

    def targets(M: Array) -> Array:
        return np.concatenate([m, M[pairs] + m[pairs[0]] * m[pairs[1]]])

    L: Array = np.zeros((dx, dz))
    K: Array = np.zeros((dx, dx))
    V: Array = np.zeros((dx, dx))
    if dx:
        precision = complete_covariance(start, names=block.names).precision
        L, K = -precision[dz:, :dz], precision[dz:, dz:]
        V = np.asarray(np.linalg.inv(K), dtype=float)
    l = -L @ m  # E x = 0 in these units
    separable = omega is None and bool(known[left[across], right[across]].all())
    natural = z @ L.T + l
    quadratic = 0.5 * np.einsum("si,ij,sj->s", natural, V, natural)  # what integrating x out adds to log p(z)
    n_iter, possible, theta = 0, np.ones(len(z), dtype=bool), np.zeros(0)
    if dz:
        log_base = np.zeros(len(z)) if separable else quadratic
        solution = solve_conditional(F[None], targets(start), np.ones(1), log_base, names=names)
        theta, n_iter = solution.finite, solution.n_iter
        possible = possible if solution.support is None else solution.support[0]
    A = L.T @ V @ L
    if separable:
        log_p = F @ theta
        theta = theta - np.concatenate([L.T @ V @ l + 0.5 * A.diagonal(), A[pairs]])
    else:
        natural_start = _Natural(theta, l, L, K)
        (theta, l, L, K), steps = _jointminimise(block, F, possible, targets(S), S, natural_start, omega, held, sd)
        n_iter += steps
        V = np.asarray(np.linalg.inv(K), dtype=float)
        natural = z @ L.T + l
        log_p = F @ theta + 0.5 * np.einsum("si,ij,sj->s", natural, V, natural)
    log_p = log_p - logsumexp(log_p[possible])
    log_p = np.where(possible, log_p, log_p + _IMPOSSIBLE)
    J = np.zeros((dz, dz))
    J[pairs] = theta[dz:]
    D = sd[dz:]
    mu = mean[dz:]
    L_raw, h = L / D[:, None], theta[:dz] - (L / D[:, None]).T @ mu  # from x in SDs about its mean to x as given
    b, B = mu + D * (V @ l), D[:, None] * (V @ L)
    return ConditionalGaussian(h, J + J.T, L_raw, log_p, possible, b, B, V * np.outer(D, D), n_iter)


class _Natural(NamedTuple):
    theta: Array  # of the indicators and of their products
    l: Array
    L: Array
    K: Array


def _jointminimise(
    block: Block,
    F: Array,
    possible: NDArray[np.bool_],
    goal: Array,
    S: Array,
    start: _Natural,
    omega: Array | None,
    held: int,
    sd: Array,
) -> tuple[_Natural, int]:
    """Minimise log Z - <parameters, moments> over all natural parameters at once, x in units of its SDs."""
    F, z, names = F[possible], block.states[possible], block.names
    n, dz = z.shape
    dx, Jz = len(start.l), F.shape[1]
    G = np.column_stack([np.ones(n), z])
    known = ~np.isnan(S)
    xi, ga = np.nonzero(np.column_stack([np.ones((dx, 1), dtype=bool), known[dz:, :dz]]))  # statistics x_i g_a
    pi, pj = np.nonzero(np.triu(known[dz:, dz:]))  # statistics -x_i x_j, halved on the diagonal
    half = np.where(pi == pj, 0.5, 1.0)
    cross = np.column_stack([np.zeros(dx), S[dz:, :dz]])[xi, ga]
    moments = np.concatenate([goal, cross, -half * S[dz:, dz:][pi, pj]])
    size = len(moments)
    if size > _LARGEST_NEWTON:
        raise StateSpaceTooLargeError(
            f"unknown pairs among the discrete variables make a joint fit of {size} parameters, more than "
            f"{_LARGEST_NEWTON}: give the missing pairs, or declare kinds='continuous'"
        )
    penalty = np.zeros((size, size))
    if omega is not None:
        at = _places_of_target(block, F.shape[1], known, xi, ga, held)
        keep = np.flatnonzero(at >= 0)
        scale = sd[held:][keep]
        penalty[np.ix_(at[keep], at[keep])] = omega[np.ix_(keep, keep)] / np.outer(scale, scale)
    x_part, xx_part = slice(Jz, Jz + len(xi)), slice(Jz + len(xi), size)

    def unpack(parameters: Array) -> tuple[Array, Array, Array]:
        full, precision = np.zeros((dx, 1 + dz)), np.zeros((dx, dx))
        full[xi, ga] = parameters[x_part]
        precision[pi, pj] = precision[pj, pi] = parameters[xx_part]
        return parameters[:Jz], full, precision

    def evaluate(parameters: Array) -> Value:
        own, full, precision = unpack(parameters)
        factor, status = lapack.dpotrf(precision, lower=1) if dx else (np.zeros((0, 0)), 0)
        if status != 0:
            return Value(np.inf, parameters, lambda: penalty)
        V = cho_solve((factor, True), np.eye(dx)) if dx else np.zeros((0, 0))
        M = G @ (V @ full).T
        log_weight = F @ own + 0.5 * np.einsum("si,si->s", M, G @ full.T)
        log_z = float(logsumexp(log_weight))
        p = np.exp(log_weight - log_z)
        expected = np.concatenate([
            p @ F, ((M * p[:, None]).T @ G)[xi, ga], -half * (V + (M * p[:, None]).T @ M)[pi, pj],
        ])  # fmt: skip
        value = log_z - float(np.log(factor.diagonal()).sum()) - float(parameters @ moments)

        def hessian() -> Array:
            out = penalty - np.outer(expected, expected)
            step = max(1, 2**22 // size)
            for first in range(0, n, step):
                part = slice(first, first + step)
                second = V[pi, pj] + M[part][:, pi] * M[part][:, pj]
                T = np.hstack([F[part], M[part][:, xi] * G[part][:, ga], -half * second])
                out += (T * p[part, None]).T @ T
            GG, GM, MM = (G * p[:, None]).T @ G, (G * p[:, None]).T @ M, (M * p[:, None]).T @ M
            out[x_part, x_part] += V[np.ix_(xi, xi)] * GG[np.ix_(ga, ga)]
            mixed = V[np.ix_(xi, pi)] * GM[np.ix_(ga, pj)] + V[np.ix_(xi, pj)] * GM[np.ix_(ga, pi)]
            out[x_part, xx_part] -= mixed * half
            out[xx_part, x_part] -= (mixed * half).T
            fourth = sum(
                V[np.ix_(a, c)] * (V + MM)[np.ix_(b, d)] + MM[np.ix_(a, c)] * V[np.ix_(b, d)]
                for a, b, c, d in ((pi, pj, pi, pj), (pi, pj, pj, pi))
            )
            out[xx_part, xx_part] += np.outer(half, half) * fourth
            return out

        pull = penalty @ parameters
        return Value(value + 0.5 * float(parameters @ pull), expected - moments + pull, hessian)

    # The entropy of any law with a covariance that double precision tells from singular stays above this.
    lowest = 0.5 * dx + 0.5 * np.log(1e-11)
    first = np.concatenate([start.theta, np.column_stack([start.l, start.L])[xi, ga], start.K[pi, pj]])
    found, final, n_iter = minimise(evaluate, first, lambda _, value: value < lowest and omega is None)
    error = float(np.abs(final.gradient).max(initial=0.0))
    if final.value < lowest and omega is None:
        raise InfeasibleMomentsError(
            f"no law of {_listed(names)} has these moments: the discrete ones and the covariances contradict each other"
        )
    if error > TOLERANCE:
        raise ConvergenceError(f"the law of {_listed(names)} stopped at a moment error of {error:.3g} SDs")
    own, full, precision = unpack(found)
    return _Natural(own, full[:, 0], full[:, 1:], precision), n_iter


def _places_of_target(block: Block, Jz: int, known: NDArray[np.bool_], xi: Index, ga: Index, held: int) -> Index:
    """Parameter number of the pair (coordinate 0, j) for every j from ``held`` on, -1 where the pair is unknown."""
    dz, total = block.dz, len(known)
    left, right = np.triu_indices(dz, 1)
    free = (block.owner[left] != block.owner[right]) & known[left, right]
    pair_number = {int(j): dz + k for k, (i, j) in enumerate(zip(left[free], right[free], strict=True)) if i == 0}
    x_number = {dz + int(i): Jz + k for k, (i, a) in enumerate(zip(xi, ga, strict=True)) if a == 1}
    return np.array([(pair_number | x_number).get(j, -1) for j in range(held, total)], dtype=np.intp)
