"""Sources that are not data: class statistics, fitted predictors, printed effects; each becomes Moments.

What a predictor says about the joint law of Y and its own features is a set of moments: averages of p(y|x) and of
x p(y|x) over the features' distribution. Merging these moments causally gives a logistic source back unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from .closedform import logit_location, mean_and_slope
from .errors import CMaxEntError
from .graph import _listed
from .moments import Moments, _numbers

Array = NDArray[np.float64]


def from_class_stats(
    target: str,
    classes: Sequence[Any],
    priors: ArrayLike,
    means: ArrayLike,
    cov_within: ArrayLike,
    *,
    names: Sequence[str],
    n: float | None = None,
) -> Moments:
    """Moments from class priors, class means and a common within-class covariance.

    Parameters
    ----------
    target : name of Y. Two classes give one binary coordinate ``target`` (1 = ``classes[1]``); more give indicators.
    classes : K labels;  priors : (K,);  means : (K, d);  cov_within : (d, d), divided by n, NaN = unknown.
    names : d feature names.
    n : rows behind the statistics.
    """
    labels, d = list(classes), len(names)
    pi, means, within = _numbers(priors, "priors"), _numbers(means, "means"), _numbers(cov_within, "cov_within")
    K = len(labels)
    if K < 2 or len(set(labels)) != K:
        raise CMaxEntError(f"classes of {target} have to be at least two distinct labels; got {labels}")
    if pi.shape != (K,) or means.shape != (K, d) or within.shape != (d, d):
        raise CMaxEntError(
            f"{K} classes and {d} names need priors ({K},), means ({K}, {d}), cov_within ({d}, {d}); got {pi.shape}, "
            f"{means.shape}, {within.shape}"
        )
    if not np.isclose(pi.sum(), 1.0, atol=1e-6) or (pi <= 0).any():
        raise CMaxEntError(f"priors of {target} have to be positive and sum to 1; got {pi.tolist()}")
    mu = pi @ means
    centred = means - mu
    total = within + (centred.T * pi) @ centred
    C = centred.T * pi  # (d, K) covariances with the class indicators
    if K == 2:
        return _joint(target, [target], {target: "binary"}, pi[1:], mu, C[:, 1:], total, names, n, {target: labels})
    coordinates = [f"{target}={label}" for label in labels]
    return _joint(target, coordinates, {target: "categorical"}, pi, mu, C, total, names, n, {target: labels})


def from_logistic(
    coef: ArrayLike,
    intercept: float,
    mean: ArrayLike,
    cov: ArrayLike,
    *,
    target: str,
    names: Sequence[str],
    n: float | None = None,
) -> Moments:
    """Moments of a logistic regression whose features are Gaussian with the given mean and covariance.

    With eta = intercept + coef . x: P(Y=1) = E logistic(eta) and, by Stein's lemma, Cov(X, Y) = Sigma coef
    E logistic'(eta).

    Parameters
    ----------
    coef : (d,) slopes of log odds;  intercept : log odds at x = 0;  mean : (d,);  cov : (d, d) fully known.
    """
    beta, mu, sigma = np.ravel(_numbers(coef, "coef")), _numbers(mean, "mean"), _numbers(cov, "cov")
    d = len(names)
    if beta.shape != (d,) or mu.shape != (d,) or sigma.shape != (d, d):
        raise CMaxEntError(
            f"{d} names need coef ({d},), mean ({d},), cov ({d}, {d}); got {beta.shape}, {mu.shape}, {sigma.shape}"
        )
    if not np.isfinite(sigma).all():
        raise CMaxEntError("a logistic source needs the whole covariance matrix of its features")
    variance = float(beta @ sigma @ beta)
    if variance < 0:
        raise CMaxEntError(f"the covariance of {_listed(names)} is not positive semidefinite")
    a = float(np.ravel(_numbers(intercept, "intercept"))[0])
    pi, slope = mean_and_slope(a + float(beta @ mu), np.sqrt(variance))
    return _joint(
        target, [target], {target: "binary"}, np.array([pi]), mu, (sigma @ beta * slope)[:, None], sigma, names, n, {}
    )


def from_predictor(
    predict_proba: Callable[[Any], ArrayLike] | Any,
    X_ref: ArrayLike | pd.DataFrame,
    *,
    target: str,
    names: Sequence[str] | None = None,
    n: float | None = None,
) -> Moments:
    """Moments that any probabilistic classifier implies on reference rows of its own features.

    Parameters
    ----------
    predict_proba : a function X -> (n, K) class probabilities (or (n,) = P(Y=1)), or an object with such a method.
    X_ref : (n, d) complete rows, unlabelled.
    names : feature names; default: the columns of a DataFrame, else x0, x1, …
    n : weight of this source when it is merged, default the number of reference rows.
    """
    from .accumulate import as_frame

    method = getattr(predict_proba, "predict_proba", predict_proba)
    if not callable(method):
        raise CMaxEntError(
            f"predict_proba has to be a function or a fitted classifier, not {type(predict_proba).__name__}"
        )
    frame = as_frame(X_ref)
    labels = list(map(str, names)) if names is not None else list(frame.columns)
    if len(labels) != frame.shape[1]:
        raise CMaxEntError(f"{len(labels)} names for {frame.shape[1]} reference columns")
    X = frame.to_numpy(dtype=float)
    if not np.isfinite(X).all():
        raise CMaxEntError("reference rows of a predictor have to be complete and finite")
    P = _numbers(method(X_ref), "predicted probabilities")
    if P.ndim == 1:
        P = np.column_stack([1 - P, P])
    if (
        P.shape[0] != len(X)
        or P.shape[1] < 2
        or not np.isfinite(P).all()
        or (P < -1e-9).any()
        or not np.allclose(P.sum(axis=1), 1, atol=1e-6)
    ):
        raise CMaxEntError(
            f"the predictor has to return one row of class probabilities per reference row; got shape {P.shape}"
        )
    K = P.shape[1]
    classes = list(getattr(predict_proba, "classes_", range(K)))
    pi, mu = P.mean(axis=0), X.mean(axis=0)
    centred = X - mu
    sigma, C = centred.T @ centred / len(X), centred.T @ P / len(X)
    count = float(len(X)) if n is None else n
    levels = {target: [c.item() if isinstance(c, np.generic) else c for c in classes]}
    if K == 2:
        return _joint(target, [target], {target: "binary"}, pi[1:], mu, C[:, 1:], sigma, labels, count, levels)
    coordinates = [f"{target}={c}" for c in classes]
    return _joint(target, coordinates, {target: "categorical"}, pi, mu, C, sigma, labels, count, levels)


def from_marginal_effects(
    beta: ArrayLike,
    *,
    var: ArrayLike,
    prevalence: float,
    target: str,
    names: Sequence[str],
    scale: str = "logit",
    n: float | None = None,
) -> Moments:
    """Moments from effects that were each estimated alone, such as a GWAS prints; feature means are zero.

    Parameters
    ----------
    beta : (d,) log odds ratios (``scale="logit"``) or differences in P(Y=1) (``scale="linear"``) per unit of x_j.
    var : (d,) variances, or a (d, d) covariance (an LD matrix in covariance scale), NaN = unknown.
    prevalence : P(Y=1).

    Notes
    -----
    logit: m solves E logistic(m + beta_j sd_j Z) = prevalence, then c_j = var_j beta_j E logistic'; linear:
    c_j = var_j beta_j.
    """
    effects, spread, d = np.ravel(_numbers(beta, "beta")), _numbers(var, "var"), len(names)
    if spread.ndim == 1:
        full = np.full((d, d), np.nan) if spread.shape == (d,) else np.empty((0, 0))
        if full.size:
            np.fill_diagonal(full, spread)
        spread = full
    if effects.shape != (d,) or spread.shape != (d, d):
        raise CMaxEntError(f"{d} names need beta ({d},) and var ({d},) or ({d}, {d})")
    if scale not in ("logit", "linear"):
        raise CMaxEntError(f"scale={scale!r} is not 'logit' or 'linear'")
    if not 0 < prevalence < 1:
        raise CMaxEntError(f"prevalence of {target} has to lie strictly between 0 and 1; got {prevalence:g}")
    variance = spread.diagonal()
    if not np.isfinite(effects).all() or not (variance > 0).all():
        bad = [names[int(i)] for i in np.flatnonzero(~np.isfinite(effects) | ~(variance > 0))]
        raise CMaxEntError(f"{_listed(bad)}: beta has to be finite and the variance positive")
    c = variance * effects
    if scale == "logit":
        taus = np.abs(effects) * np.sqrt(variance)
        c = c * np.array([mean_and_slope(logit_location(prevalence, t), t)[1] for t in taus])
    return _joint(
        target, [target], {target: "binary"}, np.array([prevalence]), np.zeros(d), c[:, None], spread, names, n, {}
    )


def _joint(
    target: str,
    coordinates: list[str],
    kinds: dict[str, str],
    pi: Array,
    mu: Array,
    C: Array,
    sigma: Array,
    names: Sequence[str],
    n: float | None,
    levels: Mapping[str, Sequence[Any]],
) -> Moments:
    if target in names:
        raise CMaxEntError(f"{target} is both the target and a feature")
    k = len(coordinates)
    cov = np.empty((k + len(mu), k + len(mu)))
    cov[:k, :k] = np.diag(pi) - np.outer(pi, pi)
    cov[k:, :k], cov[:k, k:], cov[k:, k:] = C, C.T, sigma
    return Moments.from_arrays(
        np.concatenate([pi, mu]), cov, names=[*coordinates, *names], kinds=kinds, n=n, levels=levels
    )
