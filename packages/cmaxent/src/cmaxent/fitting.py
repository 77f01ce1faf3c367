"""From moments and a graph to a fitted law of a discrete target: which solver handles which graph and features."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from . import directions as dr
from .accumulate import _Column, _encode
from .empirical import fit_empirical
from .errors import CMaxEntError
from .graph import GraphLike, _listed, resolve_graph
from .moments import Moments

Array = NDArray[np.float64]


def fit_direction(
    moments: Moments,
    target: str,
    graph: GraphLike,
    *,
    p_x: str = "maxent",
    reference: pd.DataFrame | None = None,
    sample_weight: Array | None = None,
    slack: float | str = 0.0,
    on_infeasible: str = "raise",
    shrinkage: float | None = None,
    nonlocal_: str = "project",
    seed: int = 0,
) -> tuple[dr.DirectionFit, dr.ClassTarget]:
    """Fit one graph; the function behind the estimator and the comparison tools."""
    t = dr.class_target(moments, target)
    blocks = resolve_graph(graph, moments.variables, target)
    direction = blocks.direction(target)
    others = [v for v in moments.variables if v != target]
    omega = dr.sampling_covariance(t, moments) if slack == "se" and direction else None
    ridge = 0.0 if isinstance(slack, str) else float(slack)
    if p_x == "empirical":
        if direction != "causal":
            raise CMaxEntError("p_x='empirical' fixes the law of the causes: it needs graph='causal'")
        assert reference is not None
        absent = [v for v in others if v not in reference.columns]
        if absent:
            raise CMaxEntError(f"X_ref lacks the feature {_listed(absent)}")
        columns = [feature_column(moments, v) for v in others]
        rows = _encode(reference, columns)
        _warn_unlinked(t)
        return fit_empirical(t, rows, sample_weight=sample_weight, slack=ridge, on_infeasible=on_infeasible), t
    if any(moments.kinds[v] != "continuous" for v in others):
        from .mixed import fit_mixed

        if slack == "se" or shrinkage:
            raise CMaxEntError(
                "slack='se' and shrinkage are for continuous features; declare kinds='continuous' or give slack as a "
                "number"
            )
        return fit_mixed(moments, t, blocks, slack=ridge, on_infeasible=on_infeasible, seed=seed), t
    _warn_unlinked(t)
    if direction:
        solve = dr.fit_causal if direction == "causal" else dr.fit_anticausal
        return solve(t, slack=ridge, omega=omega, on_infeasible=on_infeasible, shrinkage=shrinkage, seed=seed), t
    from .chain import fit_chain_classifier

    fit = fit_chain_classifier(
        moments,
        t,
        blocks,
        slack=slack,
        on_infeasible=on_infeasible,
        shrinkage=shrinkage,
        nonlocal_=nonlocal_,
        seed=seed,
    )
    return fit, t


def feature_column(moments: Moments, variable: str) -> _Column:
    """How a table's column of this variable is encoded."""
    kind, levels = moments.kinds[variable], tuple(moments.levels.get(variable, ()))
    return _Column(variable, kind, () if kind != "categorical" and levels in ((), (0, 1)) else levels)


def _warn_unlinked(t: dr.ClassTarget) -> None:
    if len(t.mu) and not t.observed.any():
        warnings.warn(
            f"no source links {t.name} to any feature: the predictor is the class frequencies",
            UserWarning,
            stacklevel=4,
        )


def implied_moments(moments: Moments, fit: dr.DirectionFit, t: dr.ClassTarget) -> Moments:
    """The fitted law's mean and covariance of every pair, in the coordinate order of the input."""
    own = moments.coordinates(t.name)
    rest = [moments.names.index(n) for n in t.names]
    cov = np.empty((moments.p, moments.p))
    keep = [1] if len(own) == 1 else list(range(len(own)))
    mean = moments.mean.copy()
    pi = t.pi
    cov[np.ix_(own, own)] = (np.diag(pi) - np.outer(pi, pi))[np.ix_(keep, keep)]
    cov[np.ix_(rest, own)] = fit.C[:, keep]
    cov[np.ix_(own, rest)] = fit.C[:, keep].T
    cov[np.ix_(rest, rest)] = fit.cov
    return Moments.from_arrays(mean, cov, names=moments.names, kinds=moments.kinds, n=None, levels=moments.levels)


def as_moments(source: Any, index: int) -> Moments:
    """Moments of a source of any accepted type; ``index`` is its place, for the error."""
    if isinstance(source, Moments):
        return source
    if isinstance(source, pd.DataFrame):
        if source.shape[0] == 0 or source.shape[1] == 0:
            raise CMaxEntError(f"source {index} is empty")
        return Moments.from_data(source)
    raise CMaxEntError(f"source {index} is a {type(source).__name__}; a source is Moments or a DataFrame")
