"""The law of what is placed: states of discrete variables, Gaussian vectors in each, and points to integrate it.

States are enumerated with exact probabilities (spec 2.5, discrete X). Where a discrete variable has continuous causes
its mechanism is a weight that varies within a state, and integrals run over its log odds: a product rule for up to
three such directions, beyond it seeded scrambled Sobol points with exact mean and covariance.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, ndtri

from ..closedform import low_rank_root, softmax_rule
from ..errors import StateSpaceTooLargeError
from ..factors import GaussianFactor, LogisticFactor, TableFactor
from ..graph import _listed
from ..law import Law, eliminate, sobol
from .state import State

Array = NDArray[np.float64]

LARGEST_FIT = 1 << 16  # joint states of the discrete variables that a mechanism depends on
_LARGEST_PAIR = 1 << 20  # the same with one more variable, for an implied covariance
_FIT_POINTS, _POINTS = 1 << 20, 1 << 24  # states times nodes, beyond which a product rule gives way to Sobol points
_SOBOL = 1 << 16  # of these at most, and as many negatives


@dataclass(frozen=True)
class Mixture:
    """The joint law of some variables and of what their log odds depend on.

    Attributes
    ----------
    codes : discrete variable -> (S,) number of its level in each state.
    p : (S,) probability of the variables in ``State.tables``.
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


def mixture_of(state: State, variables: Iterable[str], largest: int) -> Mixture:
    """The law of ``variables`` in at most ``largest`` states, Gaussian factors propagated through each of them."""
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
        raise too_large(listed, prod(sizes), largest)
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
            own = own + np.outer(indicator(state, parents[k], codes), f.slopes[:, k])
        cross = f.slopes[:, x] @ cov[at]
        cov = np.block([[cov, cross.T], [cross, cross[:, at] @ f.slopes[:, x].T + f.cov]])
        mean = np.hstack([mean, np.broadcast_to(own, (prod(sizes), len(f.variables)))])
        place |= {state.names.index(v): len(place) + k for k, v in enumerate(f.variables)}
    return Mixture(codes, np.repeat(p, prod(sizes) // len(p)), soft, place, mean, cov)


def too_large(variables: Sequence[str], states: int, largest: int) -> StateSpaceTooLargeError:
    """The error for more joint states than can be enumerated."""
    return StateSpaceTooLargeError(
        f"{_listed(list(variables))} have {states} joint states, more than the {largest} that can be enumerated: "
        "declare some of them kinds='continuous', or give the graph fewer edges"
    )


def indicator(state: State, i: int, codes: dict[str, NDArray[np.intp]]) -> Array:
    """A discrete coordinate as a function of level numbers: a binary variable's own value, or one level's indicator."""
    variable = state.variable[i]
    level = 1 if state.kinds[variable] == "binary" else state.coordinates([variable]).index(i)
    return np.asarray(codes[variable] == level, dtype=float)


def _log_odds(state: State, factor: Any, mix: Mixture) -> tuple[Array, Array]:
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
            base += np.outer(indicator(state, i, mix.codes), coef[:, k])
    return base, W


def tabulate(state: State, factor: Any) -> None:
    """Keep p(v | parents) as a table where v has discrete ancestors only."""
    v, parents = factor.variables[0], Law(tuple(state.factors)).parents_of(factor)
    if all(u in state.tables for u in parents):
        sizes = [state.size(u) for u in parents]
        grid = np.indices(sizes).reshape(len(sizes), prod(sizes))
        empty = np.zeros((prod(sizes), 0))
        mix = Mixture(dict(zip(parents, grid, strict=True)), np.ones(prod(sizes)), [], {}, empty, np.zeros((0, 0)))
        masses = np.exp(log_softmax(_log_odds(state, factor, mix)[0], axis=1))
        state.tables[v] = (*parents, v), masses.reshape(*sizes, -1)


# --- points ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Points:
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


def integration_points(
    state: State,
    wanted: Sequence[int],
    beside: Iterable[str],
    factor: Any = None,
    *,
    scale: float | None = None,
    seed: int = 0,
) -> Iterator[Points]:
    """Integrate over the joint law of coordinates, variables ``beside`` them and the parents of ``factor``.

    States are enumerated with exact probabilities. Of the continuous variables only some linear functions are
    resolved: the log odds of discrete variables with continuous causes, those of ``factor``, and, if ``scale`` is
    given, the wanted coordinates themselves; the rest enters through its conditional expectation, which is linear.
    Up to three directions take a product rule that is exact to rounding for log odds with SDs up to ``scale``; more,
    or too many states, take scrambled Sobol points and their negatives, standardised to the exact covariance.
    """
    variables = {*state.holders(wanted), *beside, *(Law(tuple(state.factors)).parents_of(factor) if factor else ())}
    mix = mixture_of(state, variables, _LARGEST_PAIR)
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
                X[:, k] = indicator(state, i, codes)
        X[:, x] = (mix.mean[part][:, None, at] + shift).reshape(weight.size, len(at))
        yield Points(codes, X, weight.ravel(), log_p)


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
