"""Exact maximum entropy when some features are binary or categorical (spec 2.5).

With means and any pattern of covariances of indicators z and real x known, the joint of largest entropy is the
homogeneous conditional Gaussian law p(z, x) ∝ exp(h'z + z'Jz/2 + x'(l + Lz) - x'Kx/2), where J, L and K vanish on
unknown pairs (Lauritzen 1996, section 6.1). Its states z are enumerated; x is integrated in closed form. Anticausal
fits are such a law of (Y, X), because Y is discrete (T5); causal fits are such a law of X alone, then a logistic
(softmax) mechanism whose moments are one-dimensional integrals in every state.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve, lapack
from scipy.special import log_softmax, logsumexp

from .closedform import largest_contrast, low_rank_root, normal_rule, softmax_rule
from .completion import complete_covariance
from .directions import (
    ClassTarget,
    DirectionFit,
    FeasibilityReport,
    _handle_infeasible,
    _mechanism_multipliers,
)
from .dual import solve_conditional
from .errors import (
    CMaxEntError,
    ConvergenceError,
    GraphError,
    InconsistentMomentsError,
    InfeasibleMomentsError,
    StateSpaceTooLargeError,
)
from .gated import by_pattern, log_mean_softmax
from .graph import BlockGraph, _listed
from .moments import Moments

Array = NDArray[np.float64]
Index = NDArray[np.intp]

LARGEST_STATE_SPACE = 2**16
_LARGEST_NEWTON = 4000  # parameters of the dual: beyond this its Hessian takes minutes
_TOLERANCE = 1e-10  # moment errors, in standard deviations
_IMPOSSIBLE = -1e3  # log weight of a structural zero: no probability, yet a state to fall back on if it is observed


def fit_mixed(
    moments: Moments,
    t: ClassTarget,
    blocks: BlockGraph,
    *,
    slack: float = 0.0,
    on_infeasible: str = "raise",
    seed: int = 0,
) -> DirectionFit:
    """Fit a discrete target with features of any kind.

    Parameters
    ----------
    moments : with the target and all features.
    t : the same moments seen from the target.
    blocks : Y below independent blocks of causes ("causal", "causal-star"), or above blocks that are independent given
        Y ("anticausal", "anticausal-star").
    slack : ridge on the coefficients in units of the feature covariance, as in :mod:`cmaxent.directions`.
    on_infeasible : "raise", "ridge" or "boundary".
    seed : of the quasi-random quadrature for four or more classes.

    Returns
    -------
    DirectionFit
        Coefficients are over all coordinates of ``t.names``; the last level of a categorical feature has coefficient 0.

    Raises
    ------
    InfeasibleMomentsError
        No law of the declared form has the moments.
    InconsistentMomentsError
        A known covariance contradicts a missing edge of the graph.
    StateSpaceTooLargeError
        More than 2^16 combinations of levels in one block.
    GraphError
        Any other graph.
    """
    if len(t.mu) and not t.observed.any():
        unlinked = f"no source links {t.name} to any feature: the predictor is the class frequencies"
        warnings.warn(unlinked, UserWarning, stacklevel=4)
    own = blocks.block_of(t.name)
    others = [i for i in range(len(blocks.blocks)) if i != own]
    features = {v for i in others for v in blocks.blocks[i]}
    if blocks.blocks[own] == (t.name,):
        if set(blocks.parents[own]) == features and not any(blocks.parents[i] for i in others):
            return _fit_causal(moments, t, [blocks.blocks[i] for i in others], slack, on_infeasible, seed)
        if not blocks.parents[own] and all(blocks.parents[i] == (t.name,) for i in others):
            return _fit_anticausal(moments, t, [blocks.blocks[i] for i in others], slack, on_infeasible)
    discrete = [v for v in moments.variables if v != t.name and moments.kinds[v] != "continuous"]
    raise GraphError(
        f"with discrete features ({_listed(discrete)}) the classifier needs every feature above {t.name} or every "
        "feature below it; for other graphs declare kinds='continuous' or use CMaxEnt"
    )


# --- the predictive model ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Law:
    """Features of one block given Y = k: a state z with probability exp(log_p), then x ~ N(offset_k + z slopes, cov).

    Attributes
    ----------
    discrete : (m,) columns of X that hold indicators, all levels;  states : (S, m) their values in each state.
    log_p : (K', S), K' = K, or 1 where the block does not depend on Y.
    continuous : (r,) columns of X;  offset : (K', r);  slopes : (m, r);  cov : (r, r).
    """

    discrete: Index
    states: Array
    log_p: Array
    continuous: Index
    offset: Array
    slopes: Array
    cov: Array

    def means(self, chosen: slice | Index = slice(None)) -> Array:
        """(K', S, r) E[x | y, z]."""
        return self.offset[:, None, :] + (self.states[chosen] @ self.slopes)[None]

    def moments(self, pi: Array) -> tuple[Array, Array, Array]:
        """Mean (D,) and covariance (D, D) of (discrete, continuous) columns, and their class means (K', D)."""
        p = np.exp(self.log_p)
        K, S = p.shape
        r = len(self.continuous)
        means = self.means()
        full = np.concatenate([np.broadcast_to(self.states, (K, *self.states.shape)), means], axis=2)
        by_class = np.einsum("ks,ksi->ki", p, full)
        share = pi if K > 1 else np.ones(1)
        mean = share @ by_class
        flat = (full - mean).reshape(K * S, -1)
        cov = (flat * (share[:, None] * p).reshape(-1, 1)).T @ flat
        cov[len(cov) - r :, len(cov) - r :] += self.cov
        return mean, cov, by_class

    @cached_property
    def columns(self) -> Index:
        """(D,) discrete, then continuous columns."""
        return np.concatenate([self.discrete, self.continuous])


class _Seen(NamedTuple):
    """Rows that share their missing columns and their observed discrete values."""

    rows: Index
    states: Index  # the states that these values allow
    log_weight: Array  # (n, K', c): log p(z, x_observed | y) up to what all states and classes share


@dataclass(frozen=True)
class MixedModel:
    """p(y | x) of a discrete Y with mixed features; NaN in x is integrated out exactly.

    Attributes
    ----------
    laws : blocks of features, independent given Y (anticausal), or one block that is independent of Y (causal).
    gate_intercept : (K,);  gate_coef : (K, d): log p(y | causes of y) up to the normaliser.
    intercept : (K,);  coef : (K, d): linear logits of p(y | all of x).
    pi : (K,) class probabilities.
    """

    laws: tuple[Law, ...]
    gate_intercept: Array
    gate_coef: Array
    intercept: Array
    coef: Array
    pi: Array

    def log_proba(self, X: Array) -> Array:
        """log p(y=k | the observed part of x), shape (n, K); NaN in X is missing."""
        missing = np.isnan(X)
        if not missing.any():
            return log_softmax(X @ self.coef.T + self.intercept, axis=1)
        out = np.empty((len(X), len(self.pi)))
        for rows, seen in by_pattern(missing):
            only_discrete = not any(seen[law.continuous].any() for law in self.laws)
            out[rows] = (self._of_discrete if only_discrete else self._pattern)(X[rows], seen)
        return out

    def _pattern(self, X: Array, seen: NDArray[np.bool_]) -> Array:
        if seen.all():
            return log_softmax(X @ self.coef.T + self.intercept, axis=1)
        if not np.ptp(self.gate_coef[:, ~seen], axis=0).any():
            # What is missing does not enter the mechanism of Y; laws that do not depend on Y cancel.
            log_joint = log_softmax(self.gate_intercept + X[:, seen] @ self.gate_coef[:, seen].T, axis=1)
            for law in self.laws:
                if len(law.log_p) > 1:
                    for part in _consistent(law, X, seen):
                        log_joint[part.rows] += logsumexp(part.log_weight, axis=2)
            return log_softmax(log_joint, axis=1)
        (law,) = self.laws
        return self._through_gate(law, X, seen)

    def _through_gate(self, law: Law, X: Array, seen: NDArray[np.bool_]) -> Array:
        """Causes of Y are missing: average the mechanism over their law given the observed ones."""
        K = len(self.pi)
        hidden_z = ~seen[law.discrete]
        O, M = seen[law.continuous], ~seen[law.continuous]
        slopes = np.linalg.solve(law.cov[np.ix_(O, O)], law.cov[np.ix_(O, M)])
        residual = law.cov[np.ix_(M, M)] - law.cov[np.ix_(M, O)] @ slopes
        coef = self.gate_coef[:, law.continuous[M]]
        spread = coef @ residual @ coef.T  # covariance of the logits that comes from missing x
        out = np.empty((len(X), K))
        for part in _consistent(law, X, seen):
            rows = X[part.rows]
            means = law.means(part.states)[0]
            expected = means[:, M] + (rows[:, law.continuous[O]][:, None, :] - means[:, O]) @ slopes
            eta = (
                (self.gate_intercept + rows[:, seen] @ self.gate_coef[:, seen].T)[:, None, :]
                + law.states[part.states][:, hidden_z] @ self.gate_coef[:, law.discrete[hidden_z]].T
                + expected @ coef.T
            )
            log_gate = log_mean_softmax(eta.reshape(-1, K), spread).reshape(eta.shape)
            out[part.rows] = logsumexp(part.log_weight[:, 0, :, None] + log_gate, axis=1)
        return log_softmax(out, axis=1)

    def _of_discrete(self, X: Array, seen: NDArray[np.bool_]) -> Array:
        """Rows without observed continuous features repeat: one evaluation for each combination of levels."""
        distinct, where = np.unique(X[:, seen], axis=0, return_inverse=True)
        rows = np.full((len(distinct), X.shape[1]), np.nan)
        rows[:, seen] = distinct
        return self._pattern(rows, seen)[where.ravel()]

    def sample(self, n: int, rng: np.random.Generator) -> tuple[Array, NDArray[np.intp]]:
        """X (n, d) and class numbers y (n,) drawn from the joint law."""
        K = len(self.pi)
        X = np.empty((n, self.coef.shape[1]))
        y = rng.choice(K, size=n, p=self.pi / self.pi.sum())
        for law in self.laws:
            for k in range(len(law.log_p)):
                rows = np.flatnonzero(y == k) if len(law.log_p) > 1 else np.arange(n)
                p = np.exp(law.log_p[k])
                z = law.states[rng.choice(len(p), size=len(rows), p=p / p.sum())]
                noise = rng.standard_normal((len(rows), len(law.continuous))) @ np.linalg.cholesky(law.cov).T
                X[np.ix_(rows, law.discrete)] = z
                X[np.ix_(rows, law.continuous)] = law.offset[k] + z @ law.slopes + noise
        if np.ptp(self.gate_coef, axis=0).any():
            p = np.exp(log_softmax(self.gate_intercept + X @ self.gate_coef.T, axis=1))
            y = (p.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1).clip(max=K - 1)
        return X, y

    def state(self) -> dict[str, Array]:
        """Arrays for a model file; :func:`mixed_from_state` reads them."""
        own = ("gate_intercept", "gate_coef", "intercept", "coef", "pi")
        arrays: dict[str, Array] = {f"mixed_{name}": getattr(self, name) for name in own}
        for i, law in enumerate(self.laws):
            arrays |= {f"law{i}_{name}": getattr(law, name) for name in Law.__dataclass_fields__}
        return arrays


def mixed_from_state(arrays: Mapping[str, Array]) -> MixedModel:
    """Inverse of :meth:`MixedModel.state`; other keys are ignored."""
    n_laws = len([key for key in arrays if key.startswith("law") and key.endswith("_log_p")])
    laws = tuple(Law(*(arrays[f"law{i}_{name}"] for name in Law.__dataclass_fields__)) for i in range(n_laws))  # type: ignore[arg-type]
    own = [arrays[f"mixed_{name}"] for name in ("gate_intercept", "gate_coef", "intercept", "coef", "pi")]
    return MixedModel(laws, *own)


def _consistent(law: Law, X: Array, seen: NDArray[np.bool_]) -> list[_Seen]:
    """Group rows (all with the columns ``seen``) by observed discrete values, with the weights of the states left."""
    Z, O = law.discrete[seen[law.discrete]], seen[law.continuous]
    states = law.states[:, seen[law.discrete]]
    P = np.linalg.inv(law.cov[np.ix_(O, O)])
    values, group = np.unique(X[:, Z], axis=0, return_inverse=True)
    found = []
    for g, value in enumerate(values):
        chosen = np.flatnonzero((states == value).all(axis=1))
        if len(chosen) == 0:
            raise CMaxEntError(
                f"X has a row with the values {value.tolist()} in its discrete columns {Z.tolist()}: no such level"
            )
        means = law.means(chosen)[:, :, O]
        constant = law.log_p[:, chosen] - 0.5 * np.einsum("ksi,ij,ksj->ks", means, P, means)
        every = np.flatnonzero(group.ravel() == g)
        step = max(1, 2**20 // constant.size)
        for rows in np.split(every, range(step, len(every), step)):
            x = X[np.ix_(rows, law.continuous[O])]
            found.append(_Seen(rows, chosen, constant + np.einsum("ni,ksi->nks", x @ P, means)))
    return found


# --- the conditional Gaussian law of largest entropy -----------------------------------------------------------


@dataclass(frozen=True)
class _Block:
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


def _block(moments: Moments, variables: Sequence[str]) -> _Block:
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
    return _Block(names, index, np.array(owner, dtype=np.intp), every[:, at], indicators, every, at)


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
    block: _Block, mean: Array, cov: Array, omega: Array | None = None, held: int = 0
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
        (theta, l, L, K), steps = _joint_newton(block, F, possible, targets(S), S, natural_start, omega, held, sd)
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


def _joint_newton(
    block: _Block,
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

    def evaluate(parameters: Array) -> _Value:
        own, full, precision = unpack(parameters)
        factor, status = lapack.dpotrf(precision, lower=1) if dx else (np.zeros((0, 0)), 0)
        if status != 0:
            return _Value(np.inf, parameters, lambda: penalty)
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
        return _Value(value + 0.5 * float(parameters @ pull), expected - moments + pull, hessian)

    # The entropy of any law with a covariance that double precision tells from singular stays above this.
    lowest = 0.5 * dx + 0.5 * np.log(1e-11)
    first = np.concatenate([start.theta, np.column_stack([start.l, start.L])[xi, ga], start.K[pi, pj]])
    found, final, n_iter = _newton(evaluate, first, lambda _, value: value < lowest and omega is None)
    error = float(np.abs(final.gradient).max(initial=0.0))
    if final.value < lowest and omega is None:
        raise InfeasibleMomentsError(
            f"no law of {_listed(names)} has these moments: the discrete ones and the covariances contradict each other"
        )
    if error > _TOLERANCE:
        raise ConvergenceError(f"the law of {_listed(names)} stopped at a moment error of {error:.3g} SDs")
    own, full, precision = unpack(found)
    return _Natural(own, full[:, 0], full[:, 1:], precision), n_iter


def _places_of_target(block: _Block, Jz: int, known: NDArray[np.bool_], xi: Index, ga: Index, held: int) -> Index:
    """Parameter number of the pair (coordinate 0, j) for every j from ``held`` on, -1 where the pair is unknown."""
    dz, total = block.dz, len(known)
    left, right = np.triu_indices(dz, 1)
    free = (block.owner[left] != block.owner[right]) & known[left, right]
    pair_number = {int(j): dz + k for k, (i, j) in enumerate(zip(left[free], right[free], strict=True)) if i == 0}
    x_number = {dz + int(i): Jz + k for k, (i, a) in enumerate(zip(xi, ga, strict=True)) if a == 1}
    return np.array([(pair_number | x_number).get(j, -1) for j in range(held, total)], dtype=np.intp)


class _Value(NamedTuple):
    value: float
    gradient: Array
    hessian: Callable[[], Array]


def _newton(
    evaluate: Callable[[Array], _Value], theta: Array, hopeless: Callable[[Array, float], bool]
) -> tuple[Array, _Value, int]:
    """Damped Newton to rounding error, or until ``hopeless(theta, value)``."""
    now = evaluate(theta)
    for n_iter in range(200):
        size = float(np.abs(now.gradient).max(initial=0.0))
        if size <= 1e-15 or hopeless(theta, now.value):
            return theta, now, n_iter
        step = _solve(now.hessian(), now.gradient)
        slope, length = float(step @ now.gradient), 1.0
        while length > 1e-10:
            trial = evaluate(theta - length * step)
            # Once the decrease drowns in rounding of the objective, the gradient decides.
            flat = abs(trial.value - now.value) <= 1e-12 * (1 + abs(now.value))
            if trial.value <= now.value - 1e-4 * length * slope and not flat:
                break
            if flat and np.abs(trial.gradient).max() < 0.9 * size:
                break
            length /= 2
        else:
            return theta, now, n_iter
        theta, now = theta - length * step, trial
    return theta, now, 200


def _solve(H: Array, g: Array) -> Array:
    try:
        return np.asarray(cho_solve(cho_factor(H, lower=True), g))
    except LinAlgError:  # redundant indicators on a restricted support: the shortest step
        return np.asarray(np.linalg.lstsq(H, g, rcond=1e-12)[0])


# --- anticausal ------------------------------------------------------------------------------------------------


class _Joint(NamedTuple):
    """One block with Y: its law given Y and what it adds to the logits (with class ``reference`` at zero)."""

    law: Law
    intercept: Array  # (K,)
    coef: Array  # (K, d), zero outside the block
    n_iter: int


def _fit_anticausal(
    moments: Moments, t: ClassTarget, blocks: Sequence[Sequence[str]], slack: float, on_infeasible: str
) -> DirectionFit:
    """Y -> blocks: joint maximum entropy of Y with each block (T5)."""
    report, factor = FeasibilityReport(True, np.nan, _linear_r2(t), 1.0), 1.0
    try:
        joints = [_with_target(moments, t, block, slack, 1.0) for block in blocks]
    except (InfeasibleMomentsError, ConvergenceError) as error:
        if isinstance(error, ConvergenceError) and on_infeasible == "raise":
            raise
        report = FeasibilityReport(False, np.nan, _linear_r2(t), 1.0, str(error), (t.name, *t.names))
        largest = 0.0
        if on_infeasible != "raise":
            for block in blocks:  # X itself has to be feasible; then so is a small enough dependence on Y
                _with_target(moments, t, block, 0.0, 0.0)
        if on_infeasible == "boundary":
            largest = _largest_factor(lambda f: [_with_target(moments, t, block, 0.0, f) for block in blocks])
        slack, factor = _handle_infeasible(report, on_infeasible, slack, 1.0, largest**2)
        joints = [_with_target(moments, t, block, slack, factor) for block in blocks]
    laws = tuple(joint.law for joint in joints)
    intercept = np.log(t.pi) + sum(joint.intercept for joint in joints)
    coef = np.sum([joint.coef for joint in joints], axis=0) if joints else np.zeros((len(t.pi), len(t.mu)))
    intercept, coef = _gauge(intercept, coef, t)
    cov, C = _implied(laws, t)
    _check_missing_edges(moments, t, blocks, cov, f"given {t.name}")
    entropy = -float(t.pi @ np.log(t.pi)) + sum(float(t.pi @ _entropies(law, len(t.pi))) for law in laws)
    model = MixedModel(laws, np.log(t.pi), np.zeros_like(coef), intercept, coef, t.pi)
    info = {"states": [len(law.states) for law in laws], "iterations": sum(joint.n_iter for joint in joints)}
    slack_used = slack > 0 or factor != 1.0
    return _direction(t, model, cov, C, entropy, np.arange(len(t.mu)), report, info, slack_used=slack_used)


def _with_target(moments: Moments, t: ClassTarget, variables: Sequence[str], slack: float, factor: float) -> _Joint:
    """Conditional Gaussian law of (Y, block); covariances with Y times ``factor``."""
    block, K = _block(moments, [t.name, *variables]), len(t.pi)
    mean, cov = moments.mean[block.index], moments.cov[np.ix_(block.index, block.index)].copy()
    k = K - 1  # Y comes first: coordinates 0 … K-2
    if factor != 1.0:
        cov[:k, k:] *= factor
        cov[k:, :k] *= factor
    omega = None
    if slack > 0.0:
        if K > 2:
            raise CMaxEntError("slack in the anticausal direction is available for binary targets")
        inner = cov[k:, k:]
        omega = slack * (np.diag(inner.diagonal()) if np.isnan(cov).any() else inner)
    fit = fit_conditional_gaussian(block, mean, cov, omega, held=k)
    # State numbers run slowest in Y: one row for each value of its indicators.
    possible = fit.possible.reshape(K, -1)
    if (possible != possible[0]).any():
        raise InfeasibleMomentsError(
            f"the moments of {t.name} with {_listed(_empty_cells(block, mean, cov, k) or list(variables))} are on the "
            "boundary: some combination of their values has probability 0, so that its multiplier is infinite"
        )
    y = block.states.reshape(K, -1, block.dz)[:, 0, :k]  # (K, K-1) indicators of each class
    log_joint = fit.log_p.reshape(K, -1)
    column = _columns(moments, t)
    own = len(moments.coordinates(t.name))
    indicators = np.array([column[int(i)] for i in block.indicators[own:]], dtype=np.intp)
    kept = block.kept[k:] - own
    continuous = np.array([column[int(i)] for i in block.index[block.dz :]], dtype=np.intp)
    slopes = np.zeros((len(indicators), len(continuous)))
    slopes[kept] = fit.B[:, k:].T
    law = Law(
        indicators, block.levels.reshape(K, -1, block.levels.shape[1])[0, :, own:],
        log_joint - logsumexp(log_joint, axis=1, keepdims=True), continuous, fit.b + y @ fit.B[:, :k].T, slopes, fit.V,
    )  # fmt: skip
    coef = np.zeros((K, len(t.mu)))
    coef[:, indicators[kept]] = y @ fit.J[:k, k:]
    coef[:, continuous] = y @ fit.L[:, :k].T
    return _Joint(law, y @ fit.h[:k] - np.log(t.pi), coef, fit.n_iter)


def _empty_cells(block: _Block, mean: Array, cov: Array, k: int) -> list[str]:
    """Indicators whose table with some class has a cell of probability zero."""
    bad = []
    for j in range(k, block.dz):
        both = cov[:k, j] + mean[:k] * mean[j]
        last = mean[j] - both.sum()
        cells = np.concatenate([both, mean[:k] - both, [last, 1 - mean[:k].sum() - last]])
        if np.nanmin(cells) < 1e-9:
            bad.append(block.names[j])
    return bad


def _largest_factor(attempt: Callable[[float], object]) -> float:
    """Largest factor on the covariances with Y for which ``attempt`` finds them feasible, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(25):
        middle = (low + high) / 2
        try:
            attempt(middle)
            low = middle
        except (InfeasibleMomentsError, ConvergenceError):  # the latter when too near to the boundary to tell
            high = middle
    return low


# --- causal ----------------------------------------------------------------------------------------------------


def _fit_causal(
    moments: Moments, t: ClassTarget, blocks: Sequence[Sequence[str]], slack: float, on_infeasible: str, seed: int
) -> DirectionFit:
    """Independent blocks -> Y: the law of X without looking at Y, then the mechanism from the known covariances."""
    whole = _block(moments, [v for block in blocks for v in block])  # refuses too many states
    fits = []
    for variables in blocks:
        block = _block(moments, variables)
        grid = np.ix_(block.index, block.index)
        fits.append((block, fit_conditional_gaussian(block, moments.mean[block.index], moments.cov[grid])))
    column = _columns(moments, t)
    law = _product([_plain_law(block, fit, column) for block, fit in fits])
    cov, _ = _implied((law,), t)
    _check_missing_edges(moments, t, blocks, cov, "")
    reduced = np.array([column[int(i)] for i in whole.index], dtype=np.intp)
    O = reduced[t.observed[reduced]]
    gate = _Gate(law, t, O, cov, seed)
    r2 = _linear_r2(t, cov)
    report, factor = FeasibilityReport(True, np.nan, r2, np.nan), 1.0
    try:
        theta = gate.solve(slack, 1.0)
    except (InfeasibleMomentsError, ConvergenceError) as error:
        if isinstance(error, ConvergenceError) and on_infeasible == "raise":
            raise
        report = FeasibilityReport(False, np.nan, r2, np.nan, str(error), (t.name, *(t.names[i] for i in O)))
        largest = _largest_factor(lambda f: gate.solve(0.0, f)) if on_infeasible == "boundary" else 0.0
        slack, factor = _handle_infeasible(report, on_infeasible, slack, 1.0, largest**2)
        theta = gate.solve(slack, factor)
    intercept, coef = gate.logits(theta)
    intercept, coef = _gauge(intercept, coef, t)
    C, conditional = gate.implied(theta)
    p = np.exp(law.log_p[0])
    entropy = float(_entropies(law, 1)[0]) + conditional
    model = MixedModel((law,), intercept, coef, intercept, coef, t.pi)
    info = {"states": int((p > 0).sum()), "tau": gate.tau(theta), "iterations": sum(fit.n_iter for _, fit in fits)}
    return _direction(t, model, cov, C, entropy, O, report, info, slack_used=slack > 0 or factor != 1.0)


def _columns(moments: Moments, t: ClassTarget) -> dict[int, int]:
    """Coordinate of the moments -> column of X."""
    target = set(moments.coordinates(t.name))
    return {i: c for c, i in enumerate(i for i in range(moments.p) if i not in target)}


def _plain_law(block: _Block, fit: ConditionalGaussian, column: Mapping[int, int]) -> Law:
    slopes = np.zeros((len(block.indicators), len(fit.b)))
    slopes[block.kept] = fit.B.T
    discrete = np.array([column[int(i)] for i in block.indicators], dtype=np.intp)
    continuous = np.array([column[int(i)] for i in block.index[block.dz :]], dtype=np.intp)
    return Law(discrete, block.levels, fit.log_p[None], continuous, fit.b[None], slopes, fit.V)


def _product(laws: Sequence[Law]) -> Law:
    """Independent blocks as one law."""
    whole = laws[0]
    for law in laws[1:]:
        a, b = len(whole.states), len(law.states)
        states = np.hstack([np.repeat(whole.states, b, axis=0), np.tile(law.states, (a, 1))])
        slopes = np.zeros((states.shape[1], len(whole.continuous) + len(law.continuous)))
        slopes[: len(whole.discrete), : len(whole.continuous)] = whole.slopes
        slopes[len(whole.discrete) :, len(whole.continuous) :] = law.slopes
        cov = np.zeros((slopes.shape[1],) * 2)
        cov[: len(whole.continuous), : len(whole.continuous)] = whole.cov
        cov[len(whole.continuous) :, len(whole.continuous) :] = law.cov
        log_p = (whole.log_p[:, :, None] + law.log_p[:, None, :]).reshape(1, -1)
        discrete = np.concatenate([whole.discrete, law.discrete])
        continuous = np.concatenate([whole.continuous, law.continuous])
        whole = Law(discrete, states, log_p, continuous, np.hstack([whole.offset, law.offset]), slopes, cov)
    return whole


class _Nodes(NamedTuple):
    """Given state s, x = m_s + spread z + rest with z from a rule and the rest independent of the logits."""

    z: Array  # (s or 1, n, q)
    w: Array  # (s or 1, n)
    root: Array  # (K-1, q): logits = base_s theta' + z root'
    carry: Array  # (dx, q): V_OO^-1 spread, over the observed continuous features


class _Gate:
    """The dual of p(y|x) = softmax over (1, f_O): minimise E log Z - <theta, moments> + ridge, theta (K-1, 1 + |O|).

    Class 0 is the reference. Features are centred and in units of their standard deviations. Given the state, logits
    are Gaussian, so that K = 2 needs one-dimensional integrals and K = 3 two-dimensional ones; E[x softmax] and the
    Hessian follow by regressing x on the logits (Stein's lemma). More classes use fixed Sobol points of x.
    """

    def __init__(self, law: Law, t: ClassTarget, O: Index, cov: Array, seed: int) -> None:
        self.t, self.O, self.seed, self.law = t, O, seed, law
        p = np.exp(law.log_p[0])
        self.alive = np.flatnonzero(p > 0)
        self.p = p[self.alive] / p[self.alive].sum()
        self.K1 = len(t.pi) - 1
        full = np.empty((len(self.alive), len(t.mu)))
        full[:, law.discrete] = law.states[self.alive]
        full[:, law.continuous] = law.means(self.alive)[0]
        self.full = full - t.mu
        self.sd = np.sqrt(cov.diagonal()[O])
        self.base = np.column_stack([np.ones(len(full)), self.full[:, O] / self.sd])
        place = {int(c): i for i, c in enumerate(law.continuous)}
        self.x_in_O = np.array([i for i, c in enumerate(O) if int(c) in place], dtype=np.intp)
        self.x_in_law = np.array([place[int(c)] for c in O[self.x_in_O]], dtype=np.intp)
        D = self.sd[self.x_in_O]
        self.V = law.cov[np.ix_(self.x_in_law, self.x_in_law)] / np.outer(D, D)
        self.goal = np.column_stack([t.pi, (t.C[O] / self.sd[:, None]).T])[1:]
        self.spread = cov[np.ix_(O, O)] / np.outer(self.sd, self.sd)
        values, vectors = np.linalg.eigh(self.spread)
        if len(O) and values[0] < 1e-11:
            same = [t.names[O[i]] for i in np.flatnonzero(np.abs(vectors[:, 0]) > 1e-3)]
            raise InfeasibleMomentsError(f"the features {_listed(same)} are redundant: drop one of them")

    def solve(self, ridge: float, factor: float) -> Array:
        """Multipliers (K-1, 1 + |O|); raises InfeasibleMomentsError if the dual has no minimum."""
        goal = self.goal.copy()
        goal[:, 1:] *= factor
        centring = np.eye(self.K1 + 1)[:, 1:] - self.t.pi[1:]
        # The scale of the logits is tr(theta Sigma theta') in the gauge sum_k pi_k theta_k = 0; for two classes tau^2.
        metric = np.eye(1) if self.K1 == 1 else centring.T @ centring
        penalty = np.zeros((self.K1, goal.shape[1], self.K1, goal.shape[1]))
        penalty[:, 1:, :, 1:] = ridge * np.einsum("ab,ij->aibj", metric, self.spread)
        flat_penalty = penalty.reshape(goal.size, goal.size)
        start = np.zeros_like(goal)
        start[:, 0] = np.log(self.t.pi[1:] / self.t.pi[0])

        def evaluate(flat: Array) -> _Value:
            theta = flat.reshape(goal.shape)
            value, gradient, hessian = self._dual(theta)
            pull = flat_penalty @ flat
            return _Value(
                value - float(np.vdot(goal, theta)) + 0.5 * float(flat @ pull), gradient.ravel() - goal.ravel() + pull,
                lambda: hessian + flat_penalty,
            )  # fmt: skip

        def diverges(flat: Array, _: float) -> bool:
            # D(s theta) = s (E max(0, eta) - <goal, theta>) + O(1): a certificate of infeasibility if negative.
            theta = flat.reshape(goal.shape)
            far = self.K1 > 1 and self._scale(theta) > 1e3
            return ridge == 0.0 and (
                far or self._largest(theta) - float(np.vdot(goal, theta)) < -1e-12 * float(np.abs(theta).max())
            )

        found, final, _ = _newton(evaluate, start.ravel(), diverges)
        error = float(np.abs(final.gradient).max())
        smallest = float(np.linalg.eigvalsh(final.hessian())[0])
        if diverges(found, 0.0) or (ridge == 0.0 and smallest < 1e-11):
            names = [self.t.names[i] for i in self.O]
            raise InfeasibleMomentsError(
                f"no logistic mechanism of {self.t.name} given {_listed(names)} has these moments under the maximum "
                f"entropy law of the features: its dual has no minimum (it stopped at a logit SD of "
                f"{self.tau(found.reshape(goal.shape)):.3g} and a moment error of {error:.3g} SDs)"
            )
        if error > _TOLERANCE:
            raise ConvergenceError(f"the mechanism of {self.t.name} stopped at a moment error of {error:.3g} SDs")
        return found.reshape(goal.shape)

    def _x_weights(self, theta: Array) -> Array:
        return theta[:, 1:][:, self.x_in_O]

    def tau(self, theta: Array) -> float:
        """SD of a binary Y's logit over the joint law of X (largest contrast for more classes)."""
        return float(np.sqrt(max(np.linalg.eigvalsh(theta[:, 1:] @ self.spread @ theta[:, 1:].T)[-1], 0.0)))

    def _scale(self, theta: Array) -> float:
        return largest_contrast(theta[:, 1:] @ np.linalg.cholesky(self.spread)) if len(self.O) else 0.0

    def _nodes(self, theta: Array, part: slice) -> _Nodes:
        W, V = self._x_weights(theta), self.V
        if self.K1 == 1:
            root = np.sqrt(max(float((W @ V @ W.T)[0, 0]), 0.0)) * np.ones((1, 1))
            if root[0, 0] == 0.0:
                return _Nodes(np.zeros((1, 1, 0)), np.ones((1, 1)), np.zeros((1, 0)), np.zeros((len(V), 0)))
            z, w = normal_rule(self.base[part] @ theta[0], root[0, 0])
            return _Nodes(z[..., None], w, root, W.T / root)
        if self.K1 == 2 or len(V) <= 2:
            root = low_rank_root(W @ V @ W.T)
            carry = W.T @ np.linalg.pinv(root).T
        else:
            root, carry = W @ np.linalg.cholesky(V), np.linalg.inv(np.linalg.cholesky(V)).T
        if root.shape[1] == 0:
            return _Nodes(np.zeros((1, 1, 0)), np.ones((1, 1)), root, carry)
        moving = self.K1 == 2 or len(V) <= 2
        z, w = softmax_rule(root.shape[1], largest_contrast(root), self.seed) if moving else self._sobol
        return _Nodes(z[None], w[None], root, carry)

    @cached_property
    def _sobol(self) -> tuple[Array, Array]:
        z, w = softmax_rule(max(len(self.V), 4), 1.0, self.seed)
        z, w = z[:, : len(self.V)], w
        n = max(2**9, min(len(z), 2**20 // len(self.p)))
        z = z[:n] - z[:n].mean(axis=0)
        return np.linalg.solve(np.linalg.cholesky(z.T @ z / n), z.T).T, np.full(n, 1.0 / n)

    def _chunks(self, theta: Array) -> Iterator[tuple[slice, _Nodes, Array]]:
        """States, their nodes, and logits (s, n, K-1)."""
        wide = 496 if self.K1 == 1 else max(self._nodes(theta, slice(0, 1)).z.shape[1], 1)
        step = max(1, 2**19 // (wide * self.K1))
        for first in range(0, len(self.p), step):
            part = slice(first, first + step)
            nodes = self._nodes(theta, part)
            yield part, nodes, (self.base[part] @ theta.T)[:, None, :] + nodes.z @ nodes.root.T

    def _dual(self, theta: Array) -> tuple[float, Array, Array]:
        """E log Z, its gradient (K-1, J) and Hessian ((K-1) J, (K-1) J)."""
        J = theta.shape[1]
        value, gradient = 0.0, np.zeros_like(theta)
        hessian = np.zeros((self.K1, J, self.K1, J))
        x_places = 1 + self.x_in_O
        for part, nodes, eta in self._chunks(theta):
            p, base = self.p[part], self.base[part]
            log_z, q = _partition(eta)
            value += float(p @ (nodes.w * log_z).sum(axis=1))
            lift = np.zeros((J, nodes.z.shape[2]))  # x = m_s + lift z + rest
            lift[x_places] = self.V @ nodes.carry
            rest = self.V - lift[x_places] @ lift[x_places].T

            def average(f: Array, p: Array = p, nodes: _Nodes = nodes) -> tuple[Array, Array, Array]:
                """E[f], E[f z], E[f z z'] of f (s, n): per state, per state, and summed over states."""
                weighted = f * nodes.w * p[:, None]
                z = np.broadcast_to(nodes.z, (*f.shape, nodes.z.shape[2]))
                first = np.einsum("sn,snq->sq", weighted, z)
                return weighted.sum(axis=1), first, np.einsum("sn,snq,snr->qr", weighted, z, z)

            for a in range(self.K1):
                zeroth, first, _ = average(q[..., a])
                gradient[a] += zeroth @ base + lift @ first.sum(axis=0)
                for b in range(a, self.K1):
                    zeroth, first, second = average(q[..., a] * ((a == b) - q[..., b]))
                    block = (base * zeroth[:, None]).T @ base + lift @ second @ lift.T
                    cross = base.T @ first @ lift.T
                    block += cross + cross.T
                    block[np.ix_(x_places, x_places)] += zeroth.sum() * rest
                    hessian[a, :, b, :] += block
                    if b > a:
                        hessian[b, :, a, :] += block.T
        return value, gradient, hessian.reshape(theta.size, theta.size)

    def _largest(self, theta: Array) -> float:
        """E max(0, max_k eta_k)."""
        parts = self._chunks(theta)
        return sum(float(self.p[s] @ (nodes.w * eta.max(axis=2).clip(min=0.0)).sum(axis=1)) for s, nodes, eta in parts)

    def logits(self, theta: Array) -> tuple[Array, Array]:
        """Intercepts (K,) and coefficients (K, d) of all features, class 0 at zero."""
        coef = np.zeros((self.K1 + 1, len(self.t.mu)))
        coef[1:, self.O] = theta[:, 1:] / self.sd
        return np.concatenate([[0.0], theta[:, 0]]) - coef @ self.t.mu, coef

    def implied(self, theta: Array) -> tuple[Array, float]:
        """Covariances (d, K) of every feature with the classes, and E H(Y|X)."""
        C, entropy = np.zeros((len(self.t.mu), self.K1 + 1)), 0.0
        law = self.law
        D = self.sd[self.x_in_O]
        for part, nodes, eta in self._chunks(theta):
            p = self.p[part]
            log_z, q = _partition(eta)
            log_q = np.concatenate([-log_z[..., None], eta - log_z[..., None]], axis=2)
            every = np.concatenate([np.exp(-log_z)[..., None], q], axis=2)
            weighted = every * (nodes.w * p[:, None])[..., None]
            z = np.broadcast_to(nodes.z, (*eta.shape[:2], nodes.z.shape[2]))
            C += self.full[part].T @ weighted.sum(axis=1)
            C[law.continuous] += (law.cov[:, self.x_in_law] / D) @ nodes.carry @ np.einsum("snq,snk->qk", z, weighted)
            entropy -= float((weighted * log_q).sum())
        return C, entropy


def _partition(eta: Array) -> tuple[Array, Array]:
    """log(1 + sum_k exp eta_k) (s, n) and the probabilities of classes 1 … K-1 (s, n, K-1)."""
    log_z = np.logaddexp(0.0, eta[..., 0]) if eta.shape[2] == 1 else np.logaddexp(0.0, logsumexp(eta, axis=2))
    return log_z, np.exp(eta - log_z[..., None])


# --- what both directions share ----------------------------------------------------------------------------------


def _linear_r2(t: ClassTarget, cov: Array | None = None) -> float:
    """Squared multiple correlation of a binary Y on the features linked to it, NaN where it is not determined."""
    O = np.flatnonzero(t.observed)
    block = (t.sigma if cov is None else cov)[np.ix_(O, O)]
    if len(t.pi) != 2 or np.isnan(block).any() or len(O) == 0:
        return float("nan")
    c = t.C[O, 1]
    return float(c @ np.linalg.lstsq(block, c, rcond=1e-12)[0] / (t.pi[0] * t.pi[1]))


def _gauge(intercept: Array, coef: Array, t: ClassTarget) -> tuple[Array, Array]:
    """Two classes: class 0 at zero. More: sum_k pi_k coef_k = 0, and logits at the mean of x that average to zero."""
    if len(t.pi) == 2:
        return intercept - intercept[0], coef - coef[0]
    coef = coef - t.pi @ coef
    return intercept - t.pi @ (intercept + coef @ t.mu), coef


def _entropies(law: Law, K: int) -> Array:
    """(K,) entropy of a block given each class, in nats."""
    p = np.exp(law.log_p)
    discrete = -(p * np.where(p > 0, law.log_p, 0.0)).sum(axis=1)
    r = len(law.continuous)
    gaussian = 0.5 * (r * np.log(2 * np.pi * np.e) + np.linalg.slogdet(law.cov)[1]) if r else 0.0
    return np.broadcast_to(discrete + gaussian, (K,))


def _implied(laws: Sequence[Law], t: ClassTarget) -> tuple[Array, Array]:
    """Cov(X) (d, d) and Cov(X, 1_{Y=k}) (d, K) of blocks that are independent given Y."""
    d, K = len(t.mu), len(t.pi)
    class_means = np.zeros((K, d))
    own = []
    for law in laws:
        mean, cov, by_class = law.moments(t.pi)
        class_means[:, law.columns] = by_class - mean
        own.append((law.columns, cov))
    total = (class_means * t.pi[:, None]).T @ class_means  # between blocks only Y connects
    for columns, cov in own:
        total[np.ix_(columns, columns)] = cov
    return total, class_means.T * t.pi


def _check_missing_edges(
    moments: Moments, t: ClassTarget, blocks: Sequence[Sequence[str]], cov: Array, given: str
) -> None:
    """Known covariances between blocks have to be those that the graph implies."""
    if len(blocks) < 2:
        return
    place = {name: i for i, name in enumerate(t.names)}
    home = np.empty(len(t.names), dtype=int)
    variable = [""] * len(t.names)
    for number, block in enumerate(blocks):
        for v in block:
            for i in moments.coordinates(v):
                home[place[moments.names[i]]], variable[place[moments.names[i]]] = number, v
    sd = np.sqrt(t.sigma.diagonal())
    gap = np.where(home[:, None] != home, np.nan_to_num(np.abs(cov - t.sigma) / np.outer(sd, sd)), 0.0)
    if gap.max() > 1e-6:
        i, j = divmod(int(gap.argmax()), len(gap))
        a, b, where = variable[i], variable[j], f" {given}" if given else ""
        said, found = (M[i, j] / (sd[i] * sd[j]) for M in (t.sigma, cov))
        raise InconsistentMomentsError(
            f"the graph has no edge between {a} and {b}, so they are independent{where}, which implies the correlation "
            f"{found:.6g} of {t.names[i]} and {t.names[j]}; the moments say {said:.6g}. Add the edge '{a}--{b}', or "
            f"forget the pair: moments.hide([({a!r}, {b!r})])"
        )


def _direction(
    t: ClassTarget, model: MixedModel, cov: Array, C: Array, entropy: float, active: Index, report: FeasibilityReport,
    info: dict[str, Any], *, slack_used: bool,
) -> DirectionFit:  # fmt: skip
    O = np.flatnonzero(t.observed)
    known = ~np.isnan(t.sigma)
    gaps = np.abs(C[O] - t.C[O]), np.abs(cov - t.sigma)[known]
    residual = max(float(gap.max(initial=0.0)) for gap in gaps)
    multipliers = partial(_mechanism_multipliers, t, model.intercept, model.coef, active)
    # MixedModel stands in for GatedGaussian: the estimator calls log_proba, intercept and coef only.
    return DirectionFit(model, cov, C, float(entropy), multipliers, residual, report, info, slack_used)  # type: ignore[arg-type]


__all__ = ["ConditionalGaussian", "Law", "MixedModel", "fit_mixed", "mixed_from_state"]
