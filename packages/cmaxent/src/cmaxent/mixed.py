"""Exact maximum entropy when some features are binary or categorical (spec 2.5).

Anticausal fits are a conditional Gaussian law of (Y, X), because Y is discrete (T5); causal fits are such a law of X
alone, then a logistic (softmax) mechanism (:mod:`cmaxent.gate`).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from .conditional_gaussian import Block, ConditionalGaussian, enumerate_block, fit_conditional_gaussian
from .directions import (
    ClassTarget,
    DirectionFit,
    FeasibilityReport,
    _mechanism_multipliers,
    handle_infeasible,
    largest_factor,
)
from .errors import CMaxEntError, ConvergenceError, GraphError, InconsistentMomentsError, InfeasibleMomentsError
from .gate import Gate, gauge
from .graph import BlockGraph, _listed
from .mixed_model import Law, MixedModel
from .moments import Moments

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
            largest = largest_factor(lambda f: [_with_target(moments, t, block, 0.0, f) for block in blocks])
        slack, factor = handle_infeasible(report, on_infeasible, slack, 1.0, largest**2)
        joints = [_with_target(moments, t, block, slack, factor) for block in blocks]
    laws = tuple(joint.law for joint in joints)
    intercept = np.log(t.pi) + sum(joint.intercept for joint in joints)
    coef = np.sum([joint.coef for joint in joints], axis=0) if joints else np.zeros((len(t.pi), len(t.mu)))
    intercept, coef = gauge(intercept, coef, t)
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
    gate = Gate(law, t, O, cov, seed)
    r2 = _linear_r2(t, cov)
    report, factor = FeasibilityReport(True, np.nan, r2, np.nan), 1.0
    try:
        theta = gate.solve(slack, 1.0)
    except (InfeasibleMomentsError, ConvergenceError) as error:
        if isinstance(error, ConvergenceError) and on_infeasible == "raise":
            raise
        report = FeasibilityReport(False, np.nan, r2, np.nan, str(error), (t.name, *(t.names[i] for i in O)))
        largest = largest_factor(lambda f: gate.solve(0.0, f)) if on_infeasible == "boundary" else 0.0
        slack, factor = handle_infeasible(report, on_infeasible, slack, 1.0, largest**2)
        theta = gate.solve(slack, factor)
    intercept, coef = gate.logits(theta)
    intercept, coef = gauge(intercept, coef, t)
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


# --- what both directions share ----------------------------------------------------------------------------------


def _linear_r2(t: ClassTarget, cov: Array | None = None) -> float:
    """Squared multiple correlation of a binary Y on the features linked to it, NaN where it is not determined."""
    O = np.flatnonzero(t.observed)
    block = (t.sigma if cov is None else cov)[np.ix_(O, O)]
    if len(t.pi) != 2 or np.isnan(block).any() or len(O) == 0:
        return float("nan")
    c = t.C[O, 1]
    return float(c @ np.linalg.lstsq(block, c, rcond=1e-12)[0] / (t.pi[0] * t.pi[1]))


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
