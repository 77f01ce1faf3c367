"""Any causal order of blocks: moments in, one linear-Gaussian or softmax mechanism per block out (spec 2.6).

Blocks are fitted in causal order, among those whose parents are placed first the ones that their own moments identify.
If one discrete variable is the target, all mechanisms together are its predictor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import directions as dr
from ..errors import GraphError
from ..factors import GaussianFactor, LogisticFactor
from ..gated import GatedGaussian
from ..graph import BlockGraph, GraphLike, _listed, resolve_graph
from ..moments import Moments, _expand, _nonredundant
from .discrete import fit_discrete_node
from .gaussian import fit_gaussian_block
from .state import State, initial_state

Array = NDArray[np.float64]


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
    state = initial_state(moments)
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
            fit_gaussian_block(state, B, P, slack, nonlocal_)
        elif len(members) == 1:
            fit_discrete_node(state, members[0], P, slack, on_infeasible, nonlocal_, seed)
        else:
            raise GraphError(
                f"the block {{{', '.join(members)}}} holds the discrete {_listed(discrete)}: join discrete variables "
                "by arrows, "
                "or give the density as constraints to CMaxEnt"
            )
    return _finished(moments, state)


def _next_block(state: State, blocks: BlockGraph, remaining: list[int]) -> int:
    """Among blocks whose parents are placed: first those their own moments identify, then those to project."""

    def rank(b: int) -> tuple[int, int]:
        B, P = state.coordinates(blocks.blocks[b]), state.coordinates(blocks.parents[b])
        if not np.isnan(state.given[np.ix_(B, P)]).any():
            return 0, b
        others = [j for j in state.done if j not in P]
        return (1 if (~np.isnan(state.given[np.ix_(B, others)])).any() else 2), b

    placed = {state.variable[i] for i in state.done}
    return min((b for b in remaining if set(blocks.parents[b]) <= placed), key=rank)


def _finished(moments: Moments, state: State) -> ChainFit:
    index = _nonredundant(moments)
    full = _expand(state.cov, moments, index)
    known = ~np.isnan(state.given)
    residual = float(np.abs((state.cov - state.given)[known]).max())
    implied = Moments.from_arrays(moments.mean, full, names=moments.names, kinds=moments.kinds, levels=moments.levels)
    report = state.report or dr.FeasibilityReport(True, np.nan, np.nan, np.nan)
    return ChainFit(state.factors, implied, state.multipliers, state.entropy, residual, state.slack_used, report)


# --- the target's predictor ----------------------------------------------------------------------------------


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
