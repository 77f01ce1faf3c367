"""Any causal order of blocks: moments in, one linear-Gaussian or softmax mechanism per block out (spec 2.6).

Blocks are fitted in causal order, each with the earlier ones frozen. A Gaussian block given its parents needs only
second moments, whatever the law of the parents: its maximum entropy mechanism is the max-determinant completion of
(parents, block) with the parents' own covariance held, so an unknown child-parent pair is a zero of the natural
parameter, not of the regression coefficient. A moment that spans two blocks without a common mechanism is projected
through the frozen factors: it becomes a linear constraint on the new block's covariance with its parents, or, where
that is determined already, a testable implication of the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax

from . import directions as dr
from .completion import complete_covariance
from .empirical import fit_empirical
from .errors import (
    GraphError,
    InconsistentMomentsError,
    InfeasibleMomentsError,
    NonlocalConstraintError,
    UnboundedEntropyError,
)
from .factors import GaussianFactor, LogisticFactor, SoftmaxFactor
from .gated import GatedGaussian
from .graph import BlockGraph, GraphLike, _listed, resolve_graph
from .moments import Moments, _expand, _nonredundant, _variable_of

Array = NDArray[np.float64]

_SAMPLE = 1 << 16  # rows that stand for the law of a discrete node's causes where no closed form exists
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
    tainted: set[str] = field(default_factory=set)  # discrete variables with continuous causes
    factors: list[Any] = field(default_factory=list)
    multipliers: dict[str, float] = field(default_factory=dict)
    entropy: float = 0.0
    slack_used: bool = False
    report: dr.FeasibilityReport | None = None

    def coordinates(self, variables: Sequence[str]) -> list[int]:
        wanted = set(variables)
        return [i for i, v in enumerate(self.variable) if v in wanted]


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
        ``nonlocal_="error"``, or a projection that is not linear.
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


def _projections(state: _State, B: list[int], P: list[int], nonlocal_: str) -> list[tuple[int, int, Array]]:
    """(b, j, g): the given Cov(b, j) constrains g . Cov(parents, b), because E[x_j | parents] = const + g . parents."""
    found = [(b, j) for b in B for j in state.done if j not in P and not np.isnan(state.given[b, j])]
    if not found:
        return []
    pairs = ", ".join(f"({state.names[b]}, {state.names[j]})" for b, j in found[:4]) + (", …" if len(found) > 4 else "")
    if nonlocal_ == "error":
        raise NonlocalConstraintError(
            f"Cov of {pairs} is given, but no mechanism of the graph holds both: add an edge, hide the pair, or "
            "nonlocal_='project'"
        )
    if not _projection_is_linear(state, P):
        raise NonlocalConstraintError(
            f"Cov of {pairs} cannot be projected onto {_listed([state.names[i] for i in P])}: the conditional mean "
            "is not linear in them; "
            "add an edge or hide the pair"
        )
    if not P:
        return [(b, j, np.zeros(0)) for b, j in found]
    solve = np.linalg.solve(state.cov[np.ix_(P, P)], state.cov[np.ix_(P, [j for _, j in found])])
    return [(b, j, np.asarray(solve[:, k], dtype=float)) for k, (b, j) in enumerate(found)]


def _projection_is_linear(state: _State, P: list[int]) -> bool:
    """E[x_j | x_P] is linear when everything so far is Gaussian, when P is one discrete variable (indicators are
    saturated), or when P holds the only discrete variable and that one is a root (given it all is Gaussian with a
    common covariance)."""
    if not state.discrete_done or not P:
        return True
    holders = {state.variable[i] for i in P}
    if len(holders) == 1 and state.kinds[next(iter(holders))] != "continuous":
        return True
    return len(state.discrete_done) == 1 and state.discrete_done[0] in holders and not state.tainted


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
    projected = _projections(state, B, P, nonlocal_)
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


def _fit_discrete_node(
    state: _State, variable: str, P: list[int], slack: float | str, on_infeasible: str, nonlocal_: str, seed: int
) -> None:
    own = state.coordinates([variable])
    K = len(own) + 1
    m = state.mean[own]
    pi = np.array([1 - m[0], m[0]]) if K == 2 else np.append(m, 1 - m.sum())
    parents = tuple(state.names[i] for i in P)
    projected = [(b, j, g) for b, j, g in _projections(state, own, P, nonlocal_) if b == own[0]]
    local = [k for k, j in enumerate(P) if not np.isnan(state.given[own[0], j])]
    sources = [*(P[k] for k in local), *(j for _, j, _ in projected)]
    rows = np.array([*(np.eye(len(P))[k] for k in local), *(g for _, _, g in projected)]).reshape(len(sources), len(P))
    if not P:
        for _, j, _ in projected:
            for b in own:
                _check_agreement(state, b, j, 0.0)
        intercept, coef = (
            (np.array([0.0, np.log(pi[1] / pi[0])]), np.zeros((2, 0))) if K == 2 else (np.log(pi), np.zeros((K, 0)))
        )
        C = np.zeros((len(state.done), len(own)))
        entropy = -float(pi @ np.log(pi))
    elif not state.discrete_done:
        intercept, coef, C, entropy = _gaussian_causes(
            state, variable, own, P, pi, rows, sources, slack, on_infeasible, seed
        )
        state.tainted.add(variable)
    else:
        if projected:
            raise NonlocalConstraintError(
                f"moments of {variable} with variables that are not its causes cannot be projected here: add edges "
                "or hide them"
            )
        intercept, coef, C, entropy = _sampled_causes(state, variable, own, P, local, pi, on_infeasible, seed)
        state.tainted.add(variable)
    done = state.done
    state.cov[np.ix_(done, own)], state.cov[np.ix_(own, done)] = C, C.T
    state.cov[np.ix_(own, own)] = state.given[np.ix_(own, own)]
    state.entropy += entropy
    if K == 2:
        state.factors.append(LogisticFactor(variable, parents, float(intercept[1]), coef[1]))
        state.multipliers[f"E[{variable}]"] = float(intercept[1])
        state.multipliers |= {f"E[{variable} {n}]": float(coef[1, k]) for k, n in enumerate(parents)}
    else:
        levels = state.levels.get(variable, tuple(range(K)))
        state.factors.append(SoftmaxFactor(variable, tuple(levels), parents, intercept, coef))
        for k, level in enumerate(levels):
            state.multipliers[f"E[{variable}={level}]"] = float(intercept[k])
            state.multipliers |= {f"E[{variable}={level} {n}]": float(coef[k, i]) for i, n in enumerate(parents)}
    state.done.extend(own)
    state.discrete_done.append(variable)


def _gaussian_causes(
    state: _State,
    variable: str,
    own: list[int],
    P: list[int],
    pi: Array,
    rows: Array,
    sources: list[int],
    slack: float | str,
    on_infeasible: str,
    seed: int,
) -> tuple[Array, Array, Array, float]:
    """T1 on the features that have a moment with Y: parents, or their projections of non-parents."""
    M = state.cov[np.ix_(P, P)]
    c = state.given[np.ix_(sources, own)]
    U = rows @ M @ rows.T
    independent = _independent_rows(U)
    if slack == 0.0:
        for r in set(range(len(rows))) - set(independent):
            weights = (
                np.linalg.lstsq(U[np.ix_(independent, independent)], U[independent, r], rcond=None)[0]
                if independent
                else np.zeros(0)
            )
            for k, b in enumerate(own):
                _check_agreement(state, b, sources[r], float(weights @ c[independent, k]))
    A = rows[independent]
    C_u = c[independent]
    full = dr.all_classes(C_u, len(pi))
    levels = state.levels.get(variable, tuple(range(len(pi))))
    t = dr.ClassTarget(
        variable,
        tuple(levels),
        pi,
        A @ state.mean[P],
        U[np.ix_(independent, independent)],
        full,
        tuple(state.names[sources[i]] for i in independent),
    )
    ridge = 0.0 if isinstance(slack, str) else slack
    fit = dr.fit_causal(t, slack=ridge, on_infeasible=on_infeasible, seed=seed)
    state.report = fit.feasibility
    state.slack_used |= fit.slack_used
    coef = fit.model.gate_coef @ A
    C = _stein(state, P, M, A, fit, own)
    entropy = fit.entropy - 0.5 * (
        len(independent) * np.log(2 * np.pi * np.e) + float(np.linalg.slogdet(t.sigma)[1]) if independent else 0.0
    )
    return fit.model.gate_intercept, coef, C, float(entropy)


def _stein(state: _State, P: list[int], M: Array, A: Array, fit: dr.DirectionFit, own: list[int]) -> Array:
    """Cov(x_done, Y indicators): all dependence on Y goes through u = A x_P, so regress x on u."""
    done = state.done
    if len(A) == 0:
        return np.zeros((len(done), len(own)))
    onto_u = state.cov[np.ix_(done, P)] @ A.T
    C = onto_u @ np.linalg.solve(fit.cov, fit.C)
    return C[:, 1:] if len(own) == 1 else C[:, : len(own)]


def _sampled_causes(
    state: _State,
    variable: str,
    own: list[int],
    P: list[int],
    local: list[int],
    pi: Array,
    on_infeasible: str,
    seed: int,
) -> tuple[Array, Array, Array, float]:
    """Causes neither all Gaussian nor independent: draw from the frozen factors and solve the dual on the draws."""
    values = sample_factors(state.factors, _SAMPLE, np.random.default_rng(seed))
    X = np.column_stack([_coordinate(state, i, values) for i in state.done])
    at = [state.done.index(i) for i in P]
    c = np.full((len(P), len(own)), np.nan)
    c[local] = state.given[np.ix_([P[k] for k in local], own)]
    full = dr.all_classes(c, len(pi))
    levels = state.levels.get(variable, tuple(range(len(pi))))
    # The draws have their own means; covariances are what the moments fix.
    t = dr.ClassTarget(
        variable,
        tuple(levels),
        pi,
        X[:, at].mean(axis=0),
        state.cov[np.ix_(P, P)],
        full,
        tuple(state.names[i] for i in P),
    )
    fit = fit_empirical(t, X[:, at], on_infeasible=on_infeasible)
    state.report = fit.feasibility
    log_p = log_softmax(X[:, at] @ fit.model.coef.T + fit.model.intercept, axis=1)
    C = (X - X.mean(axis=0)).T @ np.exp(log_p) / len(X)
    kept = C[:, 1:] if len(own) == 1 else C[:, : len(own)]
    return fit.model.gate_intercept, fit.model.gate_coef, kept, fit.entropy


def sample_factors(factors: Sequence[Any], n: int, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Ancestral draws from mechanisms in causal order."""
    values: dict[str, NDArray[Any]] = {}
    for factor in factors:
        values |= factor.sample(values, rng, n) if not factor.parents else factor.sample(values, rng)
    return values


def _coordinate(state: _State, i: int, values: dict[str, NDArray[Any]]) -> Array:
    name, variable = state.names[i], state.variable[i]
    if state.kinds[variable] != "categorical":
        return np.asarray(values[variable], dtype=float)
    labels = np.array([str(v) for v in values[variable]])
    return (labels == name[len(variable) + 1 :]).astype(float)


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
