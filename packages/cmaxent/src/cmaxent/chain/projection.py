"""Moments that span two blocks without a common mechanism: projection, and what the graph says of them (spec 2.6).

A given Cov(b, j) of a new coordinate b with an earlier j that is none of its parents is projected through the frozen
factors: E[x_j | parents] takes the place of x_j. Where that is linear it becomes a linear constraint on the covariance
of b with its parents, or, where that is determined already, a testable implication of the graph. As a further cause, a
curved projection fits into no linear-Gaussian or softmax mechanism: such a moment has to be met without it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import InconsistentMomentsError, NonlocalConstraintError
from ..factors import GaussianFactor
from .state import State

Array = NDArray[np.float64]

_AGREES = 1e-6  # in correlation units: how far an implied covariance may be from a given one


def nonlocal_pairs(state: State, B: list[int], P: list[int], nonlocal_: str) -> list[tuple[int, int]]:
    """Known moments of the block with earlier coordinates that are no parents."""
    found = [(b, j) for b in B for j in state.done if j not in P and not np.isnan(state.given[b, j])]
    if found and nonlocal_ == "error":
        pairs = ", ".join(f"({state.names[b]}, {state.names[j]})" for b, j in found[:4])
        raise NonlocalConstraintError(
            f"Cov of {pairs}{', …' if len(found) > 4 else ''} is given, but no mechanism of the graph holds both: add "
            "an edge, hide the pair, or nonlocal_='project'"
        )
    return found


def projections(
    state: State, pairs: list[tuple[int, int]], P: list[int]
) -> tuple[list[tuple[int, int, Array]], list[tuple[int, int]]]:
    """(b, j, g): the given Cov(b, j) constrains g . Cov(parents, b), because E[x_j | parents] = const + g . parents;
    and the pairs for which that conditional mean is curved."""
    linear = [(b, j) for b, j in pairs if _projection_is_linear(state, P, j)]
    curved = [pair for pair in pairs if pair not in linear]
    solve = np.linalg.solve(state.cov[np.ix_(P, P)], state.cov[np.ix_(P, [j for _, j in linear])])
    return [(b, j, np.asarray(solve[:, k], dtype=float)) for k, (b, j) in enumerate(linear)], curved


def _projection_is_linear(state: State, P: list[int], j: int) -> bool:
    """E[x_j | x_P] is linear when all ancestors are Gaussian, when P is one discrete variable (indicators are
    saturated), or when P holds the only discrete ancestor and that one is a root (given it all is Gaussian with a
    common covariance)."""
    holders = state.holders(P)
    ancestry = state.ancestry((*holders, state.variable[j]))
    discrete = [f.variables[0] for f in ancestry if not isinstance(f, GaussianFactor)]
    if not discrete or not P or (len(holders) == 1 and state.is_discrete(P[0])):
        return True
    return len(discrete) == 1 and discrete[0] in holders and discrete[0] in state.tables


def check_curved(state: State, curved: list[tuple[int, int]], P: list[int]) -> None:
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


def check_agreement(state: State, b: int, j: int, implied: float) -> None:
    """A given covariance that the graph determines already has to be what it implies."""
    scale = float(np.sqrt(state.given[b, b] * state.given[j, j]))
    if abs(implied - state.given[b, j]) > _AGREES * scale:
        a, c = state.names[j], state.names[b]
        raise InconsistentMomentsError(
            f"Cov({a}, {c}) = {state.given[b, j]:.6g} is given, but without an edge between {a} and {c} the graph "
            f"implies {implied:.6g} "
            "(a testable implication that fails): add the edge, hide the pair, or allow slack"
        )
