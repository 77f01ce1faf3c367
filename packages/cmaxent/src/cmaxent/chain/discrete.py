"""Discrete nodes: a logistic (softmax) mechanism in the causes, or a table where all causes are discrete (spec 2.6).

The dual is exact where the causes are Gaussian (T1), discrete, or Gaussian given discrete ones: states are enumerated,
and in each of them integrals are over the log odds alone. Where a discrete ancestor has continuous causes itself,
integrals run over its log odds and the continuous causes (:mod:`cmaxent.chain.mixture`). Implied moments are integrated
anew once the mechanism is known, over the log odds alone, so that the residual shows what integration costs.

If all parents are discrete the projection of a non-local moment is exact, and the node gets a table where its log odds
are not linear in its parents' indicators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from .. import directions as dr
from ..errors import ConvergenceError, InfeasibleMomentsError
from ..factors import GaussianFactor, LogisticFactor, SoftmaxFactor, TableFactor
from ..gate import Gate, gauge
from ..linalg import independent_columns
from ..mixed_model import Law as MixedLaw
from .mixture import LARGEST_FIT, indicator, integration_points, mixture_of, tabulate, too_large
from .projection import check_agreement, check_curved, nonlocal_pairs, projections
from .state import State

Array = NDArray[np.float64]


@dataclass(frozen=True)
class _Node:
    """A discrete node to fit. Class 0 has no coordinate if it is binary, else the last one."""

    variable: str
    own: list[int]
    parents: list[int]
    binary: bool
    pi: Array  # (K,)
    levels: tuple[Any, ...]
    slack: float | str
    on_infeasible: str
    seed: int

    @property
    def ridge(self) -> float:
        return 0.0 if isinstance(self.slack, str) else self.slack

    def every_class(self, C: Array) -> Array:
        """(n, K) covariances from those of the coordinates."""
        return np.column_stack([-C, C] if self.binary else [C, -C.sum(axis=1)])

    def own_classes(self, C: Array) -> Array:
        """The reverse."""
        return C[:, 1:] if self.binary else C[:, :-1]

    def factor(self, state: State, intercept: Array, coef: Array) -> LogisticFactor | SoftmaxFactor:
        """intercept (K,), coef (K, parents)"""
        parents = tuple(state.names[i] for i in self.parents)
        if self.binary:
            return LogisticFactor(self.variable, parents, float(intercept[1] - intercept[0]), coef[1] - coef[0])
        return SoftmaxFactor(self.variable, self.levels, parents, intercept, coef)

    def multipliers(self, intercept: Array, coef: Array, names: Sequence[str]) -> dict[str, float]:
        found: dict[str, float] = {}
        if self.binary:
            intercept, coef = intercept - intercept[0], coef - coef[0]
        for k in range(int(self.binary), len(self.pi)):
            label = self.variable if self.binary else f"{self.variable}={self.levels[k]}"
            found |= {f"E[{label}]": float(intercept[k])}
            found |= {f"E[{label} {n}]": float(coef[k, i]) for i, n in enumerate(names)}
        return found


def fit_discrete_node(
    state: State, variable: str, P: list[int], slack: float | str, on_infeasible: str, nonlocal_: str, seed: int
) -> None:
    """Fit the mechanism of a discrete variable given its parents ``P``, and place it in the state."""
    own = state.coordinates([variable])
    m = state.mean[own]
    binary = state.kinds[variable] == "binary"
    pi = np.array([1 - m[0], m[0]]) if binary else np.append(m, 1 - m.sum())
    levels = (0, 1) if binary else tuple(state.levels.get(variable, range(len(pi))))
    node = _Node(variable, own, P, binary, pi, levels, slack, on_infeasible, seed)
    pairs = [(b, j) for b, j in nonlocal_pairs(state, own, P, nonlocal_) if b == own[0]]
    curved: list[tuple[int, int]] = []
    C = np.full((len(state.names), len(own)), np.nan)
    factor: LogisticFactor | SoftmaxFactor | TableFactor
    if not P:
        for _, j in pairs:
            for b in own:
                check_agreement(state, b, j, 0.0)
        intercept, coef = np.log(pi), np.zeros((len(pi), 0))
        factor = node.factor(state, intercept, coef)
        state.multipliers |= node.multipliers(intercept, coef, ())
    elif all(state.is_discrete(i) for i in P):
        factor = _discrete_causes(state, node, [j for _, j in pairs])
    else:
        projected, curved = projections(state, pairs, P)
        factor = _continuous_causes(state, node, projected, C)
    state.factors.append(factor)
    tabulate(state, factor)
    state.entropy += _with_node(state, [], factor, seed)[1]
    _fill_in(state, node, factor, C)
    done = state.done
    state.cov[np.ix_(done, own)], state.cov[np.ix_(own, done)] = C[done], C[done].T
    state.cov[np.ix_(own, own)] = state.given[np.ix_(own, own)]
    state.done.extend(own)
    state.discrete_done.append(variable)
    check_curved(state, curved, P)


# --- the mechanism -------------------------------------------------------------------------------------------


def _target(state: State, node: _Node, mean: Array, U: Array, sources: list[int]) -> tuple[list[int], dr.ClassTarget]:
    """Independent features and their moments with the node; the others, being implied, are compared.

    Parameters
    ----------
    mean, U : (r,), (r, r) mean and covariance of the features.
    sources : the coordinates whose covariance with the node is that of the features.
    """
    c = state.given[np.ix_(sources, node.own)]
    kept = independent_columns(U)
    if node.slack == 0.0:
        for r in set(range(len(U))) - set(kept):
            weights = np.linalg.lstsq(U[np.ix_(kept, kept)], U[kept, r], rcond=None)[0] if kept else np.zeros(0)
            for k, b in enumerate(node.own):
                check_agreement(state, b, sources[r], float(weights @ c[kept, k]))
    names = tuple(state.names[sources[i]] for i in kept)
    t = dr.ClassTarget(
        node.variable, node.levels, node.pi, mean[kept], U[np.ix_(kept, kept)], node.every_class(c[kept]), names
    )
    return kept, t


def _discrete_causes(state: State, node: _Node, others: list[int]) -> LogisticFactor | SoftmaxFactor | TableFactor:
    """All parents discrete: their states, weighted, are the rows of the dual; any projection is a function of these."""
    P = node.parents
    states, p, means = _parent_states(state, P, others, node.seed)
    local = [k for k, i in enumerate(P) if not np.isnan(state.given[node.own[0], i])]
    sources = [*(P[k] for k in local), *others]
    F = np.column_stack([states[:, local], means])
    mean = p @ F
    scale = np.sqrt(state.given[sources, sources])
    constant = np.sqrt(p @ (F - mean) ** 2) < 1e-9 * scale
    F[:, constant] = mean[constant]
    deviation = (F - p @ F) * ~constant
    kept, t = _target(state, node, mean, (deviation.T * p) @ deviation, sources)
    F = F[:, kept]
    intercept, weights, _ = _solve_gate(state, node, t, _features_law(F, p), state.holders(others))
    design = np.column_stack([np.ones(len(states)), states])
    linear = np.linalg.lstsq(design, F, rcond=None)[0]
    if (np.abs(design @ linear - F) < 1e-9 * scale[kept]).all():
        intercept, coef = intercept + weights @ linear[0], weights @ linear[1:].T
        state.multipliers |= node.multipliers(intercept, coef, [state.names[i] for i in P])
        return node.factor(state, intercept, coef)
    state.multipliers |= node.multipliers(intercept, weights, t.names)
    return _table_factor(state, node, log_softmax(intercept + F @ weights.T, axis=1))


def _parent_states(state: State, P: list[int], others: list[int], seed: int) -> tuple[Array, Array, Array]:
    """Indicators (S, |P|) and probabilities (S,) of the joint states of discrete parents, the last one varying
    fastest, and E[x_j | state] (S, |others|) of others."""
    holders = state.holders(P)
    sizes = [state.size(v) for v in holders]
    if prod(sizes) > LARGEST_FIT:
        raise too_large(holders, prod(sizes), LARGEST_FIT)
    grid = np.indices(sizes).reshape(len(sizes), -1)
    states = np.column_stack([indicator(state, i, dict(zip(holders, grid, strict=True))) for i in P])
    p = np.zeros(len(states))
    means = np.zeros((len(states), len(others)))
    for column, wanted in enumerate([[], *([j] for j in others)]):
        mass, total = np.zeros(len(states)), np.zeros(len(states))
        for points in integration_points(state, wanted, holders, seed=seed):
            number = np.ravel_multi_index(tuple(points.codes[v] for v in holders), tuple(sizes))
            mass += np.bincount(number, points.weight, len(states))
            if wanted:
                total += np.bincount(number, points.weight * points.X[:, 0], len(states))
        if wanted:
            means[:, column - 1] = np.divide(total, mass, out=np.zeros_like(total), where=mass > 0)
        else:
            p = mass / mass.sum()
    return states, p, means


def _table_factor(state: State, node: _Node, log_p: Array) -> TableFactor:
    parents = state.holders(node.parents)
    supports = {node.variable: node.levels}
    for v in parents:
        binary = state.kinds[v] == "binary"
        supports[v] = (0, 1) if binary else tuple(state.levels.get(v, range(state.size(v))))
    shape = [state.size(v) for v in parents]
    return TableFactor((node.variable,), parents, supports, log_p.reshape(*shape, -1))


def _continuous_causes(
    state: State, node: _Node, projected: list[tuple[int, int, Array]], C: Array
) -> LogisticFactor | SoftmaxFactor:
    """Some parents continuous: features are parents with a known moment, and linear projections on the parents.

    Fills in ``C`` where it has a closed form.
    """
    P = node.parents
    local = [k for k, i in enumerate(P) if not np.isnan(state.given[node.own[0], i])]
    A = np.array([*np.eye(len(P))[local], *(g for _, _, g in projected)]).reshape(-1, len(P))
    sources = [*(P[k] for k in local), *(j for _, j, _ in projected)]
    kept, t = _target(state, node, A @ state.mean[P], A @ state.cov[np.ix_(P, P)] @ A.T, sources)
    A = A[kept]
    ancestry = state.ancestry(state.holders(P))
    if all(isinstance(f, GaussianFactor) for f in ancestry):
        fit = dr.fit_causal(t, slack=node.ridge, on_infeasible=node.on_infeasible, seed=node.seed)
        state.report, state.slack_used = fit.feasibility, state.slack_used | fit.slack_used
        intercept, weights = fit.model.gate_intercept, fit.model.gate_coef
        # All dependence on Y goes through u = A x_P (Stein): regress x on u.
        core = state.coordinates(v for f in ancestry for v in f.variables)
        onto = state.cov[np.ix_(core, P)] @ A.T
        C[core] = node.own_classes(
            onto @ np.linalg.solve(t.sigma, fit.C) if len(A) else np.zeros((len(core), len(t.pi)))
        )
    else:
        intercept, weights = _mixed_causes(state, node, t, A)
    coef = weights @ A
    state.multipliers |= node.multipliers(intercept, coef, [state.names[i] for i in P])
    return node.factor(state, intercept, coef)


def _mixed_causes(state: State, node: _Node, t: dr.ClassTarget, A: Array) -> tuple[Array, Array]:
    """Intercept and weights of the features A x_P, some parents being continuous and some ancestors discrete."""
    P = node.parents
    mix = mixture_of(state, state.holders(P), LARGEST_FIT)
    r = len(A)
    if not mix.soft:  # Gaussian given the states
        x = [k for k, i in enumerate(P) if i in mix.place]
        onto_x = np.zeros((r, len(mix.cov)))
        onto_x[:, [mix.place[P[k]] for k in x]] = A[:, x]
        means = np.column_stack(
            [mix.mean[:, mix.place[i]] if i in mix.place else indicator(state, i, mix.codes) for i in P]
        )
        F = means @ A.T
        law = _features_law(F, mix.p, onto_x @ mix.cov @ onto_x.T)
        intercept, weights, _ = _solve_gate(state, node, t, law)
        return intercept, weights
    scale = 2.0
    for _ in range(4):  # the step of a product rule has to suit the steepness that comes out
        points = list(integration_points(state, P, (), scale=scale, seed=node.seed))
        F = np.concatenate([part.X for part in points]) @ A.T
        law = _features_law(F, np.concatenate([part.weight for part in points]))
        intercept, weights, tau = _solve_gate(state, node, t, law)
        if 2 * tau <= scale:
            break
        scale = 2.2 * tau
    return intercept, weights


def _features_law(means: Array, p: Array, cov: Array | None = None) -> MixedLaw:
    """Features with means (S, r) in states of probability p (S,), Gaussian about these with one covariance (r, r)."""
    r = means.shape[1]
    x = np.flatnonzero(cov.diagonal()) if cov is not None else np.zeros(0, dtype=np.intp)
    inner = cov[np.ix_(x, x)] if cov is not None else np.zeros((0, 0))
    with np.errstate(divide="ignore"):
        return MixedLaw(np.arange(r), means, np.log(p)[None], x, np.zeros((1, len(x))), np.eye(r)[:, x], inner)


def _solve_gate(
    state: State, node: _Node, t: dr.ClassTarget, law: MixedLaw, apart: Sequence[str] = ()
) -> tuple[Array, Array, float]:
    """Intercept (K,), weights (K, r) of the features and the largest SD of a contrast: the dual on states or rows.

    ``apart``: variables whose moments with the node are projected, for the message.
    """
    gate = Gate(law, t, np.arange(len(t.mu)), t.sigma, node.seed)
    try:
        theta = gate.solve(node.ridge, 1.0)
        state.slack_used |= node.ridge > 0
    except (InfeasibleMomentsError, ConvergenceError) as error:
        if isinstance(error, ConvergenceError) and node.on_infeasible == "raise":
            raise
        reason = str(error)
        if apart:
            edges = ", ".join(f"{v}->{t.name}" for v in apart)
            reason += f"; without the edge {edges} the graph limits some of these moments: add it, or hide the pair"
        report = dr.FeasibilityReport(False, np.nan, np.nan, np.nan, reason, (t.name, *t.names))
        largest = dr.largest_factor(lambda f: gate.solve(0.0, f)) if node.on_infeasible == "boundary" else 0.0
        ridge, factor = dr.handle_infeasible(report, node.on_infeasible, node.ridge, 1.0, largest**2)
        theta = gate.solve(ridge, factor)
        state.report, state.slack_used = report, True
    intercept, coef = gauge(*gate.logits(theta), t)
    return intercept, coef, gate.tau(theta)


# --- what it implies ------------------------------------------------------------------------------------------


def _with_node(state: State, wanted: list[int], factor: Any, seed: int) -> tuple[Array, float]:
    """(wanted, K) covariances of earlier coordinates with the classes of a mechanism, and its conditional entropy."""
    C, entropy = np.zeros((len(wanted), len(state.coordinates(factor.variables)) + 1)), 0.0
    for points in integration_points(state, wanted, (), factor, seed=seed):
        weighted = points.weight[:, None] * np.exp(points.log_p)
        C += (points.X - state.mean[wanted]).T @ weighted
        entropy -= float((weighted * points.log_p).sum())
    return C, entropy


def _fill_in(state: State, node: _Node, factor: Any, C: Array) -> None:
    """Covariances of the node with everything placed, where ``C`` does not have them yet.

    A Gaussian block that is no cause of the node is independent of it given its own parents.
    """
    causes = {v for f in state.ancestry(state.holders(node.parents)) for v in f.variables}
    continuous = [i for i in state.coordinates(causes) if not state.is_discrete(i) and np.isnan(C[i, 0])]
    if continuous:
        C[continuous] = node.own_classes(_with_node(state, continuous, factor, node.seed)[0])
    for f in state.factors[:-1]:
        at = state.coordinates(f.variables)
        if not np.isnan(C[at]).any():
            continue
        if isinstance(f, GaussianFactor):
            at = [state.names.index(v) for v in f.variables]
            C[at] = f.slopes @ C[[state.names.index(n) for n in f.parents]]
        else:
            C[at] = node.own_classes(_with_node(state, at, factor, node.seed)[0])
