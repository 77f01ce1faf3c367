"""Sampling error of merged predictors: influence functions in closed form, else the delta method (spec 2.10).

The coefficients are a smooth function of the moments. With all pairs known its derivative along one row of data is
explicit; for partial information, graphs and rows with missing values it is taken by central differences of the
(millisecond) solver. The moments' own covariance comes from the training rows where the estimator saw them, else
from 20 000 draws of the fitted law.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import norm

from . import closedform as cf
from .accumulate import _encode
from .directions import ClassTarget, DirectionFit
from .errors import CMaxEntError
from .gated import GatedGaussian
from .linalg import independent_columns
from .moments import Moments, _nonredundant, _variable_of

if TYPE_CHECKING:
    from .classifier import MergedClassifier

Array = NDArray[np.float64]

DRAWS = 20_000
MOST_MOMENTS = 3000  # moments up to which central differences are taken


def causal_influence(t: ClassTarget, X: Array, y: Array) -> Array:
    """Influence of each row on (intercept, coef) of the causal closed form, everything known; shape (n, 1 + d)."""
    pi, mu, sigma, c = float(t.pi[1]), t.mu, t.sigma, t.C[:, 1]
    u = np.linalg.solve(sigma, c)
    q = float(c @ u)
    m, tau = cf.solve_binary_scale(pi, q)
    root = np.sqrt(q)
    s = tau / root
    z, w = cf.normal_rule(m, tau)
    slope = expit(m + tau * z) * expit(-(m + tau * z))
    H = np.array([[w @ slope, (w * z) @ slope], [(w * z) @ slope, (w * z * z) @ slope]])
    centred = X - mu
    a = centred @ u
    d_pi = y - pi
    d_c = centred * d_pi[:, None] - c
    d_sigma_u = centred * a[:, None] - sigma @ u
    d_q = 2 * (a * d_pi - q) - (a * a - q)
    d_scale = np.linalg.solve(H, np.vstack([d_pi, d_q / (2 * root)]))
    d_s = d_scale[1] / root - tau * d_q / (2 * q * root)
    d_lambda = d_s[:, None] * u + s * np.linalg.solve(sigma, (d_c - d_sigma_u).T).T
    d_zero = d_scale[0] - centred @ (s * u) - d_lambda @ mu
    return np.column_stack([d_zero, d_lambda])


def anticausal_influence(t: ClassTarget, X: Array, y: Array) -> Array:
    """The same for the anticausal closed form w = Sigma^-1 c / (v - q)."""
    pi, mu, sigma, c = float(t.pi[1]), t.mu, t.sigma, t.C[:, 1]
    v = pi * (1 - pi)
    u = np.linalg.solve(sigma, c)
    q = float(c @ u)
    w = u / (v - q)
    centred = X - mu
    a = centred @ u
    d_pi = y - pi
    d_v = (1 - 2 * pi) * d_pi
    d_c = centred * d_pi[:, None] - c
    d_sigma_u = centred * a[:, None] - sigma @ u
    d_q = 2 * (a * d_pi - q) - (a * a - q)
    d_u = np.linalg.solve(sigma, (d_c - d_sigma_u).T).T
    d_w = d_u / (v - q) - np.outer((d_v - d_q) / (v - q) ** 2, u)
    cw = float(c @ w)
    d_cw = d_c @ w + d_w @ c
    d_b = d_pi / v - centred @ w - d_w @ mu + d_pi * cw / v - (0.5 - pi) * (d_cw / v - cw * d_v / v**2)
    return np.column_stack([d_b, d_w])


def coef_covariance(model: MergedClassifier) -> Array:
    """(1 + d, 1 + d) covariance of (intercept, coef) of a binary classifier.

    Raises
    ------
    CMaxEntError
        More than two classes, moments without n, or too many moments for central differences.
    """
    t, moments = model._target_view, model.moments_
    if len(t.pi) != 2:
        raise CMaxEntError("standard errors of the coefficients are available for binary targets")
    if model.p_x == "empirical":
        return _empirical_covariance(model)
    n = _one_count(moments)
    exact = not (model.shrinkage or model._direction.slack_used) and n is not None and not np.isnan(moments.cov).any()
    influence: Callable[[ClassTarget, Array, Array], Array] | None = None
    if exact and t.C.any() and all(moments.kinds[v] == "continuous" for v in model.feature_names_in_):
        influence = {"causal": causal_influence, "anticausal": anticausal_influence}.get(
            model.graph if isinstance(model.graph, str) else ""
        )
    if influence is not None:
        assert n is not None
        rows = _training_rows(model)
        if rows is None:
            X, y = simulate(model._direction.model, DRAWS, np.random.default_rng(model.random_state))
            weight = np.ones(len(X))
        else:
            X, y, weight = rows
        total, square = np.zeros(1 + X.shape[1]), np.zeros((1 + X.shape[1], 1 + X.shape[1]))
        for start in range(0, len(X), 4096):  # blocks: the influence of every row at once would be the data's size
            part = slice(start, start + 4096)
            values = influence(t, X[part], y[part]) * np.sqrt(weight[part] / weight.mean())[:, None]
            total += values.sum(axis=0)
            square += values.T @ values
        return (square / len(X) - np.outer(total, total) / len(X) ** 2) / n
    return _delta_covariance(model, lambda fit: _coefficients(fit))


def proba_interval(model: MergedClassifier, X: Array, level: float) -> tuple[Array, Array]:
    """Delta-method interval of P(y = classes_[1] | x) on the logit scale; rows may have NaN."""
    if len(model.classes_) != 2:
        raise CMaxEntError("predict_proba_interval needs a binary target")
    if not 0 < level < 1:
        raise CMaxEntError(f"level has to lie strictly between 0 and 1; got {level!r}")
    model._direction_model()
    logit = _logit(model._direction, X)
    complete = ~np.isnan(X).any(axis=1)
    variance = np.empty(len(X))
    design = np.column_stack([np.ones(int(complete.sum())), X[complete]])
    if complete.any():
        variance[complete] = np.einsum("ij,jk,ik->i", design, model.coef_cov_, design)
    if not complete.all():
        partial = X[~complete]
        variance[~complete] = _delta_covariance(model, lambda fit: _logit(fit, partial), diagonal=True)
    half = norm.ppf((1 + level) / 2) * np.sqrt(np.maximum(variance, 0.0))
    return expit(logit - half), expit(logit + half)


def simulate(model: GatedGaussian, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """n draws (x, y) of a fitted binary law: noise first, then y by its gate, then the shift that y causes."""
    if not isinstance(model, GatedGaussian):
        X, labels = model.sample(n, rng)
        return X, labels.astype(float)
    d = len(model.cov)
    values, vectors = np.linalg.eigh(model.cov)
    noise = (rng.standard_normal((n, d)) * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    above = model.means[0] + noise  # causes of y have the same mean in every class
    eta = (above @ (model.gate_coef[1] - model.gate_coef[0])) + model.gate_intercept[1] - model.gate_intercept[0]
    y = (rng.random(n) < expit(eta)).astype(float)
    return model.means[y.astype(int)] + noise, y


def _one_count(moments: Moments) -> float | None:
    """The common number of rows behind every moment, None where pairs differ; raises where there is none at all."""
    if moments.n is None:
        raise CMaxEntError("standard errors need the number of rows behind the moments: pass n=")
    counts = np.asarray(moments.n)
    return float(counts.flat[0]) if (counts == counts.flat[0]).all() else None


def _training_rows(model: MergedClassifier) -> tuple[Array, Array, Array] | None:
    if model._fit_rows is None:
        return None
    table, columns, weight = model._fit_rows
    rows = _encode(table, columns)
    if np.isnan(rows).any():
        return None
    return rows[:, :-1], rows[:, -1], np.ones(len(rows)) if weight is None else np.asarray(weight, dtype=float)


def _coefficients(fit: DirectionFit) -> Array:
    m = fit.model
    return np.concatenate([[m.intercept[1] - m.intercept[0]], m.coef[1] - m.coef[0]])


def _logit(fit: DirectionFit, X: Array) -> Array:
    log_p = fit.model.log_proba(X)
    return log_p[:, 1] - log_p[:, 0]


# --- delta method by central differences --------------------------------------------------------------------


def _delta_covariance(model: MergedClassifier, f: Callable[[DirectionFit], Array], *, diagonal: bool = False) -> Array:
    """Covariance (or its diagonal) of f(fit) from that of the moments: J Gamma J' with pair counts.

    Two moments share N = min of the pair counts among their coordinates: exact when each row observes all columns of
    its source and sources do not share pairs.
    """
    from .fitting import fit_direction

    moments, t = model.moments_, model._target_view
    _one_count(moments)
    counts = moments.pair_counts()
    assert counts is not None
    index = [int(i) for i in _nonredundant(moments)]
    own = set(moments.coordinates(t.name))
    fixed = {
        i for i in index if moments.kinds[_variable_of(moments.names[i], moments.kinds)] != "continuous"
    }  # their variance follows from the mean
    entries: list[tuple[int, ...]] = [(i,) for i in index]
    entries += [
        (i, j)
        for a, i in enumerate(index)
        for j in index[a:]
        if not np.isnan(moments.cov[i, j]) and not _fixed_pair(moments, i, j)
    ]
    if len(entries) > MOST_MOMENTS:
        raise CMaxEntError(
            f"{len(entries)} moments are too many for the delta method (at most {MOST_MOMENTS}): use "
            "Accumulator(bootstrap=B) and refit each replicate"
        )
    sd = np.sqrt(moments.cov.diagonal())
    slack = model.slack if model.slack != 0.0 or model.graph in ("causal", "anticausal") else 1e-12

    def refit(mean: Array, cov: Array) -> Array:
        cov = cov.copy()
        for i in fixed:
            cov[i, i] = np.nan
        for variable, kind in moments.kinds.items():
            if kind == "categorical":  # the last indicator follows from the others
                indicators = moments.coordinates(variable)
                mean[indicators[-1]] = 1.0 - mean[indicators[:-1]].sum()
                cov[np.ix_(indicators, indicators)] = cov[indicators[-1], :] = cov[:, indicators[-1]] = np.nan
        changed = Moments.from_arrays(
            mean, cov, names=moments.names, kinds=moments.kinds, n=moments.n, levels=moments.levels
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit, _ = fit_direction(
                changed, t.name, model.graph, slack=slack, on_infeasible=model.on_infeasible, shrinkage=model.shrinkage,
                nonlocal_=model.nonlocal_, seed=model.random_state,
            )  # fmt: skip
        return f(fit)

    columns = []
    for entry in entries:
        size = 1e-5 * float(np.prod(sd[list(entry)]))
        sides = []
        for sign in (1.0, -1.0):
            mean, cov = moments.mean.copy(), moments.cov.copy()
            if len(entry) == 1:
                mean[entry[0]] += sign * size
            else:
                cov[entry[0], entry[1]] += sign * size
                if entry[0] != entry[1]:
                    cov[entry[1], entry[0]] += sign * size
            sides.append(refit(mean, cov))
        columns.append((sides[0] - sides[1]) / (2 * size))
    J = np.array(columns).T

    deviations = _moment_deviations(model, entries, index, own)
    gamma = deviations.T @ deviations / len(deviations)
    N = np.array([counts[e[0], e[-1]] for e in entries])
    shared = np.array([[_shared(counts, a, b) for b in entries] for a in entries])
    with np.errstate(invalid="ignore", divide="ignore"):
        weight = np.where(shared > 0, shared / np.outer(N, N), 0.0)
    return np.einsum("ij,ij->i", J @ (gamma * weight), J) if diagonal else J @ (gamma * weight) @ J.T


def _fixed_pair(moments: Moments, i: int, j: int) -> bool:
    """Variances and mutual covariances of one discrete variable's indicators follow from its means."""
    variable = _variable_of(moments.names[i], moments.kinds)
    return variable == _variable_of(moments.names[j], moments.kinds) and moments.kinds[variable] != "continuous"


def _shared(counts: Array, a: tuple[int, ...], b: tuple[int, ...]) -> float:
    members = sorted({*a, *b})
    return float(counts[np.ix_(members, members)].min())


def _moment_deviations(
    model: MergedClassifier, entries: list[tuple[int, ...]], index: list[int], own: set[int]
) -> Array:
    """(draws, entries): e_i - mean_i and e_i e_j - cov_ij under the fitted law."""
    X, y = simulate(model._direction.model, DRAWS, np.random.default_rng(model.random_state))
    moments, t = model.moments_, model._target_view
    column = {moments.names.index(n): X[:, k] for k, n in enumerate(t.names)}
    column |= dict.fromkeys(own, y)
    centred = {i: column[i] - column[i].mean() for i in index}
    out = np.column_stack([centred[e[0]] if len(e) == 1 else centred[e[0]] * centred[e[1]] for e in entries])
    return out - out.mean(axis=0)


# --- empirical p(x) -----------------------------------------------------------------------------------------


def _empirical_covariance(model: MergedClassifier) -> Array:
    """Sandwich H^-1 Var(score) H^-1; own rows give the logistic regression's robust covariance."""
    rows = _training_rows(model)
    beta = np.concatenate([model.intercept_, model.coef_[0]])
    if rows is None:
        raise CMaxEntError(
            "standard errors with p_x='empirical' need the labelled rows: use fit, or bootstrap the sources"
        )
    X, y, weight = rows
    design = np.column_stack([np.ones(len(X)), X])
    p = expit(design @ beta)
    score = design * (weight * (y - p))[:, None]
    # Coefficients that the fit fixed at zero (redundant indicators, collinear columns) have no error.
    Z = (X - X.mean(axis=0)) / np.where(X.std(axis=0) > 0, X.std(axis=0), 1.0)
    free = np.array([0, *(1 + j for j in independent_columns(Z.T @ Z / len(Z)))])
    H = (design[:, free].T * (weight * p * (1 - p))) @ design[:, free]
    inverse = np.linalg.inv(H)
    cov = np.zeros((len(beta), len(beta)))
    cov[np.ix_(free, free)] = inverse @ (score[:, free].T @ score[:, free]) @ inverse
    return cov


__all__ = ["anticausal_influence", "causal_influence", "coef_covariance", "proba_interval", "simulate"]
