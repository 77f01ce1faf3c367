"""Exact maximum entropy when some features are binary or categorical (spec 2.5).

Anticausal fits are a conditional Gaussian law of (Y, X), because Y is discrete (T5); causal fits are such a law of X
alone, then a logistic (softmax) mechanism whose moments are one-dimensional integrals in every state.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from .closedform import largest_contrast, low_rank_root, normal_rule, softmax_rule
from .conditional_gaussian import TOLERANCE, Block, ConditionalGaussian, enumerate_block, fit_conditional_gaussian
from .directions import (
    ClassTarget,
    DirectionFit,
    FeasibilityReport,
    _handle_infeasible,
    _mechanism_multipliers,
)
from .errors import CMaxEntError, ConvergenceError, GraphError, InconsistentMomentsError, InfeasibleMomentsError
from .graph import BlockGraph, _listed
from .mixed_model import Law, MixedModel
from .moments import Moments
from .newton import Value, minimise

Array = NDArray[np.float64]
Index = NDArray[np.intp]


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
    block, K = enumerate_block(moments, [t.name, *variables]), len(t.pi)
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


def _empty_cells(block: Block, mean: Array, cov: Array, k: int) -> list[str]:
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
    whole = enumerate_block(moments, [v for block in blocks for v in block])  # refuses too many states
    fits = []
    for variables in blocks:
        block = enumerate_block(moments, variables)
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


def _plain_law(block: Block, fit: ConditionalGaussian, column: Mapping[int, int]) -> Law:
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

        def evaluate(flat: Array) -> Value:
            theta = flat.reshape(goal.shape)
            value, gradient, hessian = self._dual(theta)
            pull = flat_penalty @ flat
            return Value(
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

        found, final, _ = minimise(evaluate, start.ravel(), diverges)
        error = float(np.abs(final.gradient).max())
        smallest = float(np.linalg.eigvalsh(final.hessian())[0])
        if diverges(found, 0.0) or (ridge == 0.0 and smallest < 1e-11):
            names = [self.t.names[i] for i in self.O]
            raise InfeasibleMomentsError(
                f"no logistic mechanism of {self.t.name} given {_listed(names)} has these moments under the maximum "
                f"entropy law of the features: its dual has no minimum (it stopped at a logit SD of "
                f"{self.tau(found.reshape(goal.shape)):.3g} and a moment error of {error:.3g} SDs)"
            )
        if error > TOLERANCE:
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
