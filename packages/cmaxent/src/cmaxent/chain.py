"""Any causal order of blocks: moments in, one linear-Gaussian or softmax mechanism per block out (spec 2.6).

Blocks are fitted in causal order, each with the earlier ones frozen. A Gaussian block given its parents needs only
second moments, whatever the law of the parents: its maximum entropy mechanism is the max-determinant completion of
(parents, block) with the parents' own covariance held, so an unknown child-parent pair is a zero of the natural
parameter, not of the regression coefficient.

A discrete node is logistic (softmax) in its causes. Its dual is exact where these are Gaussian (T1), discrete, or
Gaussian given discrete ones: states are enumerated, and in each of them integrals are over the log odds alone. Where
a discrete ancestor has continuous causes itself, states are enumerated and weighted exactly too, and integrals run
over its log odds and the continuous causes: a product rule for up to three such directions, beyond it seeded scrambled
Sobol points with exact mean and covariance. Implied moments are integrated anew once the mechanism is known, over the
log odds alone, so that the residual shows what integration costs.

A moment that spans two blocks without a common mechanism is projected through the frozen factors: it becomes a linear
constraint on the new block's covariance with its parents, or, where that is determined already, a testable implication
of the graph. If all parents of a discrete node are discrete the projection is exact, and the node gets a table where
its log odds are not linear in its parents' indicators. Otherwise the projection E[x_j | parents] has to be linear: as
a further cause, a curved one fits into no linear-Gaussian or softmax mechanism.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, ndtri

from . import directions as dr
from .closedform import low_rank_root, softmax_rule
from .completion import complete_covariance
from .errors import (
    ConvergenceError,
    GraphError,
    InconsistentMomentsError,
    InfeasibleMomentsError,
    NonlocalConstraintError,
    StateSpaceTooLargeError,
    UnboundedEntropyError,
)
from .factors import GaussianFactor, LogisticFactor, SoftmaxFactor, TableFactor
from .gated import GatedGaussian
from .graph import BlockGraph, GraphLike, _listed, resolve_graph
from .law import Law, Table, eliminate, sobol
from .mixed import _Gate, _gauge, _largest_factor
from .mixed_model import Law as MixedLaw
from .moments import Moments, _expand, _nonredundant, _variable_of

Array = NDArray[np.float64]

_LARGEST_FIT = 1 << 16  # joint states of the discrete variables that a mechanism depends on
_LARGEST_PAIR = 1 << 20  # the same with one more variable, for an implied covariance
_FIT_POINTS, _POINTS = 1 << 20, 1 << 24  # states times nodes, beyond which a product rule gives way to Sobol points
_SOBOL = 1 << 16  # of these at most, and as many negatives
_AGREES = 1e-6  # in correlation units: how far an implied covariance may be from a given one


@dataclass(frozen=True)
class ChainFit:
    """A fitted causal order.

    Attributes
    ----------
    factors : mechanisms in causal order (:mod:`cmaxent.factors`).
    moments : what they imply for every pair, in the coordinate order of the input.
    multipliers : constraint name -> lambda.
    entropy : nats.
    residual : largest absolute moment error.
    """

    factors: list[Any]
    moments: Moments
    multipliers: dict[str, float]
    entropy: float
    residual: float
    slack_used: bool = False
    feasibility: dr.FeasibilityReport = field(
        default_factory=lambda: dr.FeasibilityReport(True, np.nan, np.nan, np.nan)
    )


@dataclass
class _State:
    """What earlier blocks have fixed; indices are positions among the active coordinates."""

    given: Array  # (a, a) known moments, NaN unknown
    mean: Array
    names: list[str]
    variable: list[str]
    kinds: dict[str, str]
    levels: dict[str, tuple[Any, ...]]
    n: Array | None
    cov: Array  # implied covariance, NaN where a coordinate is not placed yet
    done: list[int] = field(default_factory=list)
    discrete_done: list[str] = field(default_factory=list)
    tables: dict[str, Table] = field(default_factory=dict)  # p(v | parents) of v whose ancestors are all discrete
    factors: list[Any] = field(default_factory=list)
    multipliers: dict[str, float] = field(default_factory=dict)
    entropy: float = 0.0
    slack_used: bool = False
    report: dr.FeasibilityReport | None = None

    def coordinates(self, variables: Iterable[str]) -> list[int]:
        wanted = set(variables)
        return [i for i, v in enumerate(self.variable) if v in wanted]

    def holders(self, coordinates: Iterable[int]) -> tuple[str, ...]:
        """The variables of some coordinates."""
        return tuple(dict.fromkeys(self.variable[i] for i in coordinates))

    def ancestry(self, variables: Iterable[str]) -> list[Any]:
        """The factors that the joint law of ``variables`` depends on, in causal order."""
        return [self.factors[i] for i in Law(tuple(self.factors)).ancestry(tuple(variables))]

    def size(self, variable: str) -> int:
        """Number of levels of a discrete variable."""
        return len(self.coordinates([variable])) + 1

    def is_discrete(self, i: int) -> bool:
        return self.kinds[self.variable[i]] != "continuous"


def fit_chain(
    moments: Moments,
    graph: GraphLike,
    *,
    slack: float | str = 0.0,
    on_infeasible: str = "raise",
    nonlocal_: str = "project",
    shrinkage: float | None = None,
    target: str | None = None,
    seed: int = 0,
) -> ChainFit:
    """Fit every mechanism of a causal order from moments.

    Parameters
    ----------
    slack : anything but 0 lets over-identified moments be met by weighted least squares instead of exactly.
    nonlocal_ : "project" or "error".

    Raises
    ------
    InconsistentMomentsError
        Two moments contradict each other under the graph; names the missing edge.
    NonlocalConstraintError
        ``nonlocal_="error"``, or a moment that the linear mechanism of a block misses and whose projection on the
        block's parents is not linear.
    StateSpaceTooLargeError
        A mechanism depends on more than 2^16 joint states of discrete variables.
    """
    blocks = resolve_graph(graph, moments.variables, target)
    state = _initial(moments)
    remaining = list(range(len(blocks.blocks)))
    while remaining:
        block = _next_block(state, blocks, remaining)
        remaining.remove(block)
        members = blocks.blocks[block]
        discrete = [v for v in members if state.kinds[v] != "continuous"]
        P = state.coordinates(blocks.parents[block])
        if not discrete:
            B = state.coordinates(members)
            if shrinkage is not None:
                state.given[np.ix_(B, B)] = dr.shrunk(state.given[np.ix_(B, B)], shrinkage)
            _fit_gaussian_block(state, B, P, slack, nonlocal_)
        elif len(members) == 1:
            _fit_discrete_node(state, members[0], P, slack, on_infeasible, nonlocal_, seed)
        else:
            raise GraphError(
                f"the block {{{', '.join(members)}}} holds the discrete {_listed(discrete)}: join discrete variables "
                "by arrows, "
                "or give the density as constraints to CMaxEnt"
            )
    return _finished(moments, state)


def _initial(moments: Moments) -> _State:
    index = _nonredundant(moments)
    names = [moments.names[i] for i in index]
    cov = moments.cov[np.ix_(index, index)].copy()
    unknown = np.isnan(cov.diagonal())
    if unknown.any():
        raise UnboundedEntropyError(
            f"the variance of {_listed([names[i] for i in np.flatnonzero(unknown)])} is unknown: the entropy has no "
            "upper bound"
        )
    counts = moments.pair_counts()
    return _State(
        cov, moments.mean[index].copy(), names, [_variable_of(n, moments.kinds) for n in names], dict(moments.kinds),
        dict(moments.levels), None if counts is None else counts[np.ix_(index, index)], np.full_like(cov, np.nan),
    )  # fmt: skip


def _next_block(state: _State, blocks: BlockGraph, remaining: list[int]) -> int:
    """Among blocks whose parents are placed: first those their own moments identify, then those to project."""

    def rank(b: int) -> tuple[int, int]:
        B, P = state.coordinates(blocks.blocks[b]), state.coordinates(blocks.parents[b])
        if not np.isnan(state.given[np.ix_(B, P)]).any():
            return 0, b
        others = [j for j in state.done if j not in P]
        return (1 if (~np.isnan(state.given[np.ix_(B, others)])).any() else 2), b

    placed = {state.variable[i] for i in state.done}
    return min((b for b in remaining if set(blocks.parents[b]) <= placed), key=rank)


# --- projection of non-local moments ------------------------------------------------------------------------


def _nonlocal_pairs(state: _State, B: list[int], P: list[int], nonlocal_: str) -> list[tuple[int, int]]:
    """Known moments of the block with earlier coordinates that are no parents."""
    found = [(b, j) for b in B for j in state.done if j not in P and not np.isnan(state.given[b, j])]
    if found and nonlocal_ == "error":
        pairs = ", ".join(f"({state.names[b]}, {state.names[j]})" for b, j in found[:4])
        raise NonlocalConstraintError(
            f"Cov of {pairs}{', …' if len(found) > 4 else ''} is given, but no mechanism of the graph holds both: add "
            "an edge, hide the pair, or nonlocal_='project'"
        )
    return found


def _projections(
    state: _State, pairs: list[tuple[int, int]], P: list[int]
) -> tuple[list[tuple[int, int, Array]], list[tuple[int, int]]]:
    """(b, j, g): the given Cov(b, j) constrains g . Cov(parents, b), because E[x_j | parents] = const + g . parents;
    and the pairs for which that conditional mean is curved."""
    linear = [(b, j) for b, j in pairs if _projection_is_linear(state, P, j)]
    curved = [pair for pair in pairs if pair not in linear]
    solve = np.linalg.solve(state.cov[np.ix_(P, P)], state.cov[np.ix_(P, [j for _, j in linear])])
    return [(b, j, np.asarray(solve[:, k], dtype=float)) for k, (b, j) in enumerate(linear)], curved


def _projection_is_linear(state: _State, P: list[int], j: int) -> bool:
    """E[x_j | x_P] is linear when all ancestors are Gaussian, when P is one discrete variable (indicators are
    saturated), or when P holds the only discrete ancestor and that one is a root (given it all is Gaussian with a
    common covariance)."""
    holders = state.holders(P)
    ancestry = state.ancestry((*holders, state.variable[j]))
    discrete = [f.variables[0] for f in ancestry if not isinstance(f, GaussianFactor)]
    if not discrete or not P or (len(holders) == 1 and state.is_discrete(P[0])):
        return True
    return len(discrete) == 1 and discrete[0] in holders and discrete[0] in state.tables


def _check_curved(state: _State, curved: list[tuple[int, int]], P: list[int]) -> None:
    """A constraint that the linear mechanism meets has a multiplier of zero; any other needs more than that."""
    for b, j in curved:
        implied, scale = state.cov[b, j], float(np.sqrt(state.given[b, b] * state.given[j, j]))
        if abs(implied - state.given[b, j]) > _AGREES * scale:
            c, a, onto = state.names[b], state.names[j], ", ".join(state.names[i] for i in P)
            hidden = f"moments.hide([({state.variable[b]!r}, {state.variable[j]!r})])"
            raise NonlocalConstraintError(
                f"Cov of ({c}, {a}) cannot be projected onto {onto}: E[{a} | {onto}] is not linear in them, and to "
                f"have the given {state.given[b, j]:.6g} (without it the graph implies {implied:.6g}) the mechanism of "
                f"{c} would need that function as a further cause, which no linear-Gaussian or logistic mechanism has: "
                f"add the edge {state.variable[j]}->{state.variable[b]}, hide the pair ({hidden}), or state the "
                "moments as constraints to CMaxEnt(...).fit()"
            )


def _check_agreement(state: _State, b: int, j: int, implied: float) -> None:
    scale = float(np.sqrt(state.given[b, b] * state.given[j, j]))
    if abs(implied - state.given[b, j]) > _AGREES * scale:
        a, c = state.names[j], state.names[b]
        raise InconsistentMomentsError(
            f"Cov({a}, {c}) = {state.given[b, j]:.6g} is given, but without an edge between {a} and {c} the graph "
            f"implies {implied:.6g} "
            "(a testable implication that fails): add the edge, hide the pair, or allow slack"
        )


# --- Gaussian blocks ----------------------------------------------------------------------------------------


def _fit_gaussian_block(state: _State, B: list[int], P: list[int], slack: float | str, nonlocal_: str) -> None:
    projected, curved = _projections(state, _nonlocal_pairs(state, B, P, nonlocal_), P)
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
    _check_curved(state, curved, P)


def _constrained_block(
    state: _State, B: list[int], P: list[int], projected: list[tuple[int, int, Array]], slack: float | str
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
        kept = _independent_rows(A @ M @ A.T)
        if slack == 0.0:
            gamma[a] = M @ A[kept].T @ np.linalg.solve(A[kept] @ M @ A[kept].T, m[kept])
            for k in set(range(len(m))) - set(kept):
                _check_agreement(state, b, sources[k], float(A[k] @ gamma[a]))
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


def _independent_rows(U: Array) -> list[int]:
    """Indices of a maximal linearly independent set of features with covariance U, earlier rows first."""
    kept: list[int] = []
    for r in range(len(U)):
        block = U[np.ix_([*kept, r], [*kept, r])]
        if U[r, r] > 0 and np.linalg.eigvalsh(block / np.sqrt(np.outer(block.diagonal(), block.diagonal())))[0] > 1e-9:
            kept.append(r)
    return kept


def _sampling_variance(state: _State, b: int, j: int) -> float:
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


# --- discrete nodes -----------------------------------------------------------------------------------------


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

    def factor(self, state: _State, intercept: Array, coef: Array) -> LogisticFactor | SoftmaxFactor:
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


def _fit_discrete_node(
    state: _State, variable: str, P: list[int], slack: float | str, on_infeasible: str, nonlocal_: str, seed: int
) -> None:
    own = state.coordinates([variable])
    m = state.mean[own]
    binary = state.kinds[variable] == "binary"
    pi = np.array([1 - m[0], m[0]]) if binary else np.append(m, 1 - m.sum())
    levels = (0, 1) if binary else tuple(state.levels.get(variable, range(len(pi))))
    node = _Node(variable, own, P, binary, pi, levels, slack, on_infeasible, seed)
    pairs = [(b, j) for b, j in _nonlocal_pairs(state, own, P, nonlocal_) if b == own[0]]
    curved: list[tuple[int, int]] = []
    C = np.full((len(state.names), len(own)), np.nan)
    factor: LogisticFactor | SoftmaxFactor | TableFactor
    if not P:
        for _, j in pairs:
            for b in own:
                _check_agreement(state, b, j, 0.0)
        intercept, coef = np.log(pi), np.zeros((len(pi), 0))
        factor = node.factor(state, intercept, coef)
        state.multipliers |= node.multipliers(intercept, coef, ())
    elif all(state.is_discrete(i) for i in P):
        factor = _discrete_causes(state, node, [j for _, j in pairs])
    else:
        projected, curved = _projections(state, pairs, P)
        factor = _continuous_causes(state, node, projected, C)
    state.factors.append(factor)
    _tabulate(state, factor)
    state.entropy += _with_node(state, [], factor, seed)[1]
    _fill_in(state, node, factor, C)
    done = state.done
    state.cov[np.ix_(done, own)], state.cov[np.ix_(own, done)] = C[done], C[done].T
    state.cov[np.ix_(own, own)] = state.given[np.ix_(own, own)]
    state.done.extend(own)
    state.discrete_done.append(variable)
    _check_curved(state, curved, P)


def _target(state: _State, node: _Node, mean: Array, U: Array, sources: list[int]) -> tuple[list[int], dr.ClassTarget]:
    """Independent features and their moments with the node; the others, being implied, are compared.

    Parameters
    ----------
    mean, U : (r,), (r, r) mean and covariance of the features.
    sources : the coordinates whose covariance with the node is that of the features.
    """
    c = state.given[np.ix_(sources, node.own)]
    kept = _independent_rows(U)
    if node.slack == 0.0:
        for r in set(range(len(U))) - set(kept):
            weights = np.linalg.lstsq(U[np.ix_(kept, kept)], U[kept, r], rcond=None)[0] if kept else np.zeros(0)
            for k, b in enumerate(node.own):
                _check_agreement(state, b, sources[r], float(weights @ c[kept, k]))
    names = tuple(state.names[sources[i]] for i in kept)
    t = dr.ClassTarget(
        node.variable, node.levels, node.pi, mean[kept], U[np.ix_(kept, kept)], node.every_class(c[kept]), names
    )
    return kept, t


def _discrete_causes(state: _State, node: _Node, others: list[int]) -> LogisticFactor | SoftmaxFactor | TableFactor:
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


def _parent_states(state: _State, P: list[int], others: list[int], seed: int) -> tuple[Array, Array, Array]:
    """Indicators (S, |P|) and probabilities (S,) of the joint states of discrete parents, the last one varying
    fastest, and E[x_j | state] (S, |others|) of others."""
    holders = state.holders(P)
    sizes = [state.size(v) for v in holders]
    if prod(sizes) > _LARGEST_FIT:
        raise _too_large(holders, prod(sizes), _LARGEST_FIT)
    grid = np.indices(sizes).reshape(len(sizes), -1)
    states = np.column_stack([_indicator(state, i, dict(zip(holders, grid, strict=True))) for i in P])
    p = np.zeros(len(states))
    means = np.zeros((len(states), len(others)))
    for column, wanted in enumerate([[], *([j] for j in others)]):
        mass, total = np.zeros(len(states)), np.zeros(len(states))
        for points in _points(state, wanted, holders, seed=seed):
            number = np.ravel_multi_index(tuple(points.codes[v] for v in holders), tuple(sizes))
            mass += np.bincount(number, points.weight, len(states))
            if wanted:
                total += np.bincount(number, points.weight * points.X[:, 0], len(states))
        if wanted:
            means[:, column - 1] = np.divide(total, mass, out=np.zeros_like(total), where=mass > 0)
        else:
            p = mass / mass.sum()
    return states, p, means


def _continuous_causes(
    state: _State, node: _Node, projected: list[tuple[int, int, Array]], C: Array
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


def _mixed_causes(state: _State, node: _Node, t: dr.ClassTarget, A: Array) -> tuple[Array, Array]:
    """Intercept and weights of the features A x_P, some parents being continuous and some ancestors discrete."""
    P = node.parents
    mix = _mixture(state, state.holders(P), _LARGEST_FIT)
    r = len(A)
    if not mix.soft:  # Gaussian given the states
        x = [k for k, i in enumerate(P) if i in mix.place]
        onto_x = np.zeros((r, len(mix.cov)))
        onto_x[:, [mix.place[P[k]] for k in x]] = A[:, x]
        means = np.column_stack(
            [mix.mean[:, mix.place[i]] if i in mix.place else _indicator(state, i, mix.codes) for i in P]
        )
        F = means @ A.T
        law = _features_law(F, mix.p, onto_x @ mix.cov @ onto_x.T)
        intercept, weights, _ = _solve_gate(state, node, t, law)
        return intercept, weights
    scale = 2.0
    for _ in range(4):  # the step of a product rule has to suit the steepness that comes out
        points = list(_points(state, P, (), scale=scale, seed=node.seed))
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
    state: _State, node: _Node, t: dr.ClassTarget, law: MixedLaw, apart: Sequence[str] = ()
) -> tuple[Array, Array, float]:
    """Intercept (K,), weights (K, r) of the features and the largest SD of a contrast: the dual on states or rows.

    ``apart``: variables whose moments with the node are projected, for the message.
    """
    gate = _Gate(law, t, np.arange(len(t.mu)), t.sigma, node.seed)
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
        largest = _largest_factor(lambda f: gate.solve(0.0, f)) if node.on_infeasible == "boundary" else 0.0
        ridge, factor = dr._handle_infeasible(report, node.on_infeasible, node.ridge, 1.0, largest**2)
        theta = gate.solve(ridge, factor)
        state.report, state.slack_used = report, True
    intercept, coef = _gauge(*gate.logits(theta), t)
    return intercept, coef, gate.tau(theta)


# --- the law of what is placed: states of discrete variables, Gaussian vectors in each -----------------------


@dataclass(frozen=True)
class _Mixture:
    """The joint law of some variables and of what their log odds depend on.

    Attributes
    ----------
    codes : discrete variable -> (S,) number of its level in each state.
    p : (S,) probability of the variables in ``_State.tables``.
    soft : mechanisms of the other discrete variables, which depend on continuous ones, yet to be multiplied.
    place : coordinate -> column of ``mean``.
    mean, cov : (S, c), (c, c) of the continuous variables, before ``soft`` is taken into account.
    """

    codes: dict[str, NDArray[np.intp]]
    p: Array
    soft: list[Any]
    place: dict[int, int]
    mean: Array
    cov: Array


def _mixture(state: _State, variables: Iterable[str], largest: int) -> _Mixture:
    law, variables = Law(tuple(state.factors)), tuple(variables)
    needed = state.ancestry(variables)
    gaussian = [f for f in needed if isinstance(f, GaussianFactor)]
    discrete = [f for f in needed if not isinstance(f, GaussianFactor)]
    soft = [f for f in discrete if f.variables[0] not in state.tables]
    named = {*variables, *(v for f in (*gaussian, *soft) for v in (*f.variables, *law.parents_of(f)))}
    tabled = tuple(v for v in state.discrete_done if v in named and v in state.tables)
    listed = (*tabled, *(f.variables[0] for f in soft))
    sizes = [state.size(v) for v in listed]
    if prod(sizes) > largest:
        raise _too_large(listed, prod(sizes), largest)
    grid = np.indices(sizes).reshape(len(sizes), prod(sizes))
    codes = dict(zip(listed, grid, strict=True))
    p = eliminate([state.tables[f.variables[0]] for f in discrete if f.variables[0] in state.tables], tabled).ravel()
    place: dict[int, int] = {}
    mean, cov = np.zeros((prod(sizes), 0)), np.zeros((0, 0))
    for f in gaussian:
        parents = [state.names.index(n) for n in f.parents]
        x = [k for k, i in enumerate(parents) if i in place]
        z = [k for k, i in enumerate(parents) if i not in place]
        at = [place[parents[k]] for k in x]
        own = f.intercept + mean[:, at] @ f.slopes[:, x].T
        for k in z:
            own = own + np.outer(_indicator(state, parents[k], codes), f.slopes[:, k])
        cross = f.slopes[:, x] @ cov[at]
        cov = np.block([[cov, cross.T], [cross, cross[:, at] @ f.slopes[:, x].T + f.cov]])
        mean = np.hstack([mean, np.broadcast_to(own, (prod(sizes), len(f.variables)))])
        place |= {state.names.index(v): len(place) + k for k, v in enumerate(f.variables)}
    return _Mixture(codes, np.repeat(p, prod(sizes) // len(p)), soft, place, mean, cov)


def _too_large(variables: Sequence[str], states: int, largest: int) -> StateSpaceTooLargeError:
    return StateSpaceTooLargeError(
        f"{_listed(list(variables))} have {states} joint states, more than the {largest} that can be enumerated: "
        "declare some of them kinds='continuous', or give the graph fewer edges"
    )


def _indicator(state: _State, i: int, codes: dict[str, NDArray[np.intp]]) -> Array:
    """A discrete coordinate as a function of level numbers: a binary variable's own value, or one level's indicator."""
    variable = state.variable[i]
    level = 1 if state.kinds[variable] == "binary" else state.coordinates([variable]).index(i)
    return np.asarray(codes[variable] == level, dtype=float)


def _log_odds(state: _State, factor: Any, mix: _Mixture) -> tuple[Array, Array]:
    """(S, K), (K, c): log p(level | state, x) = base + W x up to a constant."""
    if isinstance(factor, TableFactor):
        base = factor.log_table[tuple(mix.codes[v] for v in factor.parents)]
        return base, np.zeros((base.shape[1], len(mix.cov)))
    coef, intercept = np.atleast_2d(factor.coef), np.atleast_1d(factor.intercept)
    if isinstance(factor, LogisticFactor):
        coef, intercept = np.vstack([np.zeros_like(coef), coef]), np.append(0.0, intercept)
    base, W = np.tile(intercept, (len(mix.p), 1)), np.zeros((len(coef), len(mix.cov)))
    for k, name in enumerate(factor.parents):
        i = state.names.index(name)
        if i in mix.place:
            W[:, mix.place[i]] = coef[:, k]
        else:
            base += np.outer(_indicator(state, i, mix.codes), coef[:, k])
    return base, W


def _tabulate(state: _State, factor: Any) -> None:
    """Keep p(v | parents) as a table where v has discrete ancestors only."""
    v, parents = factor.variables[0], Law(tuple(state.factors)).parents_of(factor)
    if all(u in state.tables for u in parents):
        sizes = [state.size(u) for u in parents]
        grid = np.indices(sizes).reshape(len(sizes), prod(sizes))
        empty = np.zeros((prod(sizes), 0))
        mix = _Mixture(dict(zip(parents, grid, strict=True)), np.ones(prod(sizes)), [], {}, empty, np.zeros((0, 0)))
        masses = np.exp(log_softmax(_log_odds(state, factor, mix)[0], axis=1))
        state.tables[v] = (*parents, v), masses.reshape(*sizes, -1)


def _table_factor(state: _State, node: _Node, log_p: Array) -> TableFactor:
    parents = state.holders(node.parents)
    supports = {node.variable: node.levels}
    for v in parents:
        binary = state.kinds[v] == "binary"
        supports[v] = (0, 1) if binary else tuple(state.levels.get(v, range(state.size(v))))
    shape = [state.size(v) for v in parents]
    return TableFactor((node.variable,), parents, supports, log_p.reshape(*shape, -1))


@dataclass(frozen=True)
class _Points:
    """Weighted points of a joint law.

    Attributes
    ----------
    codes : discrete variable -> (n,) level numbers.
    X : (n, wanted) discrete coordinates, and E[continuous coordinate | the point].
    weight : (n,)
    log_p : (n, K) of the mechanism asked for.
    """

    codes: dict[str, NDArray[np.intp]]
    X: Array
    weight: Array
    log_p: Array


def _points(
    state: _State,
    wanted: Sequence[int],
    beside: Iterable[str],
    factor: Any = None,
    *,
    scale: float | None = None,
    seed: int = 0,
) -> Iterator[_Points]:
    """Integrate over the joint law of coordinates, variables ``beside`` them and the parents of ``factor``.

    States are enumerated with exact probabilities. Of the continuous variables only some linear functions are
    resolved: the log odds of discrete variables with continuous causes, those of ``factor``, and, if ``scale`` is
    given, the wanted coordinates themselves; the rest enters through its conditional expectation, which is linear.
    Up to three directions take a product rule that is exact to rounding for log odds with SDs up to ``scale``; more,
    or too many states, take scrambled Sobol points and their negatives, standardised to the exact covariance.
    """
    variables = {*state.holders(wanted), *beside, *(Law(tuple(state.factors)).parents_of(factor) if factor else ())}
    mix = _mixture(state, variables, _LARGEST_PAIR)
    mechanisms = [*mix.soft, *([factor] if factor else [])]
    odds = [_log_odds(state, f, mix) for f in mechanisms]
    x = [k for k, i in enumerate(wanted) if i in mix.place]
    at = [mix.place[wanted[k]] for k in x]
    c = len(mix.cov)
    F = np.vstack([np.zeros((0, c)), *(W for _, W in odds), np.eye(c)[at if scale is not None else []]])
    G = F @ mix.cov @ F.T
    contrast = [2 * np.sqrt(np.max((W @ mix.cov @ W.T).diagonal(), initial=0.0)) for _, W in odds]
    unit = np.where(G.diagonal() > 0, np.sqrt(G.diagonal()), 1.0)
    root = low_rank_root(G / np.outer(unit, unit))
    carry = mix.cov[at] @ (F / unit[:, None]).T @ np.linalg.pinv(root).T  # x = mean + carry z, given what is resolved
    most = _POINTS if scale is None else _FIT_POINTS
    z, w = _normal_points(root.shape[1], max([*contrast, scale or 0.0]), most // len(mix.p), seed)
    moved = z @ (unit[:, None] * root).T  # (n, rows of F)
    shift = z @ carry.T
    step = max(1, (1 << 19) // len(z))
    for first in range(0, len(mix.p), step):
        part = slice(first, first + step)
        codes = {v: np.repeat(code[part], len(z)) for v, code in mix.codes.items()}
        weight = np.outer(mix.p[part], w)
        log_p, row = np.zeros((weight.size, 0)), 0
        for f, (base, W) in zip(mechanisms, odds, strict=True):
            eta = (base[part] + mix.mean[part] @ W.T)[:, None, :] + moved[:, row : row + len(W)]
            log_p, row = log_softmax(eta.reshape(weight.size, -1), axis=1), row + len(W)
            if f is not factor:
                own = codes[f.variables[0]]
                weight = weight * np.exp(log_p[np.arange(weight.size), own]).reshape(weight.shape)
        X = np.empty((weight.size, len(wanted)))
        for k, i in enumerate(wanted):
            if i not in mix.place:
                X[:, k] = _indicator(state, i, codes)
        X[:, x] = (mix.mean[part][:, None, at] + shift).reshape(weight.size, len(at))
        yield _Points(codes, X, weight.ravel(), log_p)


def _normal_points(q: int, scale: float, most: int, seed: int) -> tuple[Array, Array]:
    """Nodes (n, q) and weights (n,) of N(0, I), no more than ``most`` of them unless these would be few."""
    if q == 0:
        return np.zeros((1, 0)), np.ones(1)
    if q <= 3:
        z, w = softmax_rule(q, min(scale, 1e3), seed)
        if len(z) <= most:
            return z, w
    n = 1 << (min(max(most // 2, 1 << 9), _SOBOL).bit_length() - 1)
    z = ndtri(sobol(q, n, seed).clip(1e-12, 1 - 1e-12))
    z = np.concatenate([z, -z])
    z = np.linalg.solve(np.linalg.cholesky(z.T @ z / len(z)), z.T).T
    return z, np.full(len(z), 1.0 / len(z))


def _with_node(state: _State, wanted: list[int], factor: Any, seed: int) -> tuple[Array, float]:
    """(wanted, K) covariances of earlier coordinates with the classes of a mechanism, and its conditional entropy."""
    C, entropy = np.zeros((len(wanted), len(state.coordinates(factor.variables)) + 1)), 0.0
    for points in _points(state, wanted, (), factor, seed=seed):
        weighted = points.weight[:, None] * np.exp(points.log_p)
        C += (points.X - state.mean[wanted]).T @ weighted
        entropy -= float((weighted * points.log_p).sum())
    return C, entropy


def _fill_in(state: _State, node: _Node, factor: Any, C: Array) -> None:
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


# --- results ------------------------------------------------------------------------------------------------


def _finished(moments: Moments, state: _State) -> ChainFit:
    index = _nonredundant(moments)
    full = _expand(state.cov, moments, index)
    known = ~np.isnan(state.given)
    residual = float(np.abs((state.cov - state.given)[known]).max())
    implied = Moments.from_arrays(moments.mean, full, names=moments.names, kinds=moments.kinds, levels=moments.levels)
    report = state.report or dr.FeasibilityReport(True, np.nan, np.nan, np.nan)
    return ChainFit(state.factors, implied, state.multipliers, state.entropy, residual, state.slack_used, report)


def fit_chain_classifier(
    moments: Moments,
    t: dr.ClassTarget,
    blocks: BlockGraph,
    *,
    slack: float | str,
    on_infeasible: str,
    shrinkage: float | None,
    nonlocal_: str,
    seed: int,
) -> dr.DirectionFit:
    """A causal order with one discrete variable, the target, as the predictor of that target."""
    alone = blocks.blocks[blocks.block_of(t.name)]
    if alone != (t.name,):
        raise GraphError(
            f"{t.name} shares a block with {_listed([v for v in alone if v != t.name])}: give each of these edges a "
            "direction"
        )
    chain = fit_chain(
        moments, blocks, slack=slack, on_infeasible=on_infeasible, nonlocal_=nonlocal_, shrinkage=shrinkage, seed=seed
    )
    own, rest = moments.coordinates(t.name), [moments.names.index(n) for n in t.names]
    cov = chain.moments.cov
    C = cov[np.ix_(rest, own)]
    C = np.column_stack([-C, C]) if len(own) == 1 else C
    return dr.DirectionFit(
        _as_gated(chain.factors, t), cov[np.ix_(rest, rest)], C, chain.entropy, dr.Constant(chain.multipliers),
        chain.residual,
        chain.feasibility, {"blocks": [list(b) for b in blocks.blocks]}, chain.slack_used or bool(shrinkage),
    )  # fmt: skip


def _as_gated(factors: Sequence[Any], t: dr.ClassTarget) -> GatedGaussian:
    """Collect linear mechanisms: x = intercept + Gamma x + Delta y + noise, y ~ softmax of its causes."""
    d, K = len(t.names), len(t.pi)
    place = {n: i for i, n in enumerate(t.names)}
    indicator = {t.name: 1} if K == 2 else {f"{t.name}={c}": k for k, c in enumerate(t.classes)}
    gamma, delta, base, noise = np.zeros((d, d)), np.zeros((d, K)), np.zeros(d), np.zeros((d, d))
    gate_intercept, gate_coef = np.log(t.pi), np.zeros((K, d))
    for factor in factors:
        if isinstance(factor, GaussianFactor):
            rows = [place[v] for v in factor.variables]
            base[rows] = factor.intercept
            noise[np.ix_(rows, rows)] = factor.cov
            for k, parent in enumerate(factor.parents):
                if parent in place:
                    gamma[rows, place[parent]] = factor.slopes[:, k]
                else:
                    delta[rows, indicator[parent]] = factor.slopes[:, k]
        elif isinstance(factor, LogisticFactor):
            gate_intercept = np.array([0.0, factor.intercept])
            gate_coef[1, [place[p] for p in factor.parents]] = factor.coef
        else:
            gate_intercept = np.asarray(factor.intercept)
            gate_coef[:, [place[p] for p in factor.parents]] = factor.coef
    mixing = np.linalg.inv(np.eye(d) - gamma)
    cov = mixing @ noise @ mixing.T
    means = (mixing @ (base[:, None] + delta)).T
    # Differences to one class: the part of S^-1 mean that all classes share would only cost digits.
    weights = np.linalg.solve(cov, (means - means[0]).T).T if d else np.zeros((K, 0))
    middle = 0.5 * (means + means[0])
    coef = gate_coef + weights
    intercept = gate_intercept - np.einsum("kd,kd->k", middle, weights)
    if K == 2:
        coef, intercept = coef - coef[0], intercept - intercept[0]
    else:
        coef, intercept = coef - t.pi @ coef, intercept - t.pi @ intercept
    return GatedGaussian(gate_intercept, gate_coef, means, cov, intercept, coef)
