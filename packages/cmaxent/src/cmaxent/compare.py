"""What the arrow changes and what the moments say about it: feasibility, direction report, LOVO, set identification."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr
from scipy.stats import multivariate_normal

from .classifier import MergedClassifier
from .closedform import standardised_boundary
from .completion import _cliques, complete_covariance
from .directions import FeasibilityReport
from .errors import (
    CMaxEntError,
    ConvergenceError,
    InconsistentMomentsError,
    InfeasibleMomentsError,
    UnboundedEntropyError,
)
from .fitting import fit_direction
from .graph import GraphLike, _listed
from .moments import Moments, _expand, _nonredundant
from .regressor import MergedRegressor

Array = NDArray[np.float64]


# --- feasibility --------------------------------------------------------------------------------------------


def check_feasible(moments: Moments, target: str, graph: GraphLike = "causal") -> FeasibilityReport:
    """Whether a distribution of the graph's form has these moments; never raises because they are infeasible.

    Raises
    ------
    CMaxEntError
        The target or the graph itself is unknown or malformed.
    """
    if target not in moments.kinds:
        raise CMaxEntError(f"no target {target!r} among the variables {_listed(moments.variables)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if moments.kinds[target] == "continuous":
                MergedRegressor(target, graph).fit_moments(moments)
                return FeasibilityReport(True, np.nan, np.nan, 1.0)
            fit, _ = fit_direction(moments, target, graph)
            return fit.feasibility
    except InfeasibleMomentsError as error:
        if error.report is not None:
            return error.report
        return FeasibilityReport(False, np.nan, np.nan, np.nan, str(error), _mentioned(str(error), moments))
    except (InconsistentMomentsError, UnboundedEntropyError, ConvergenceError) as error:
        return FeasibilityReport(False, np.nan, np.nan, np.nan, str(error), _mentioned(str(error), moments))


def _mentioned(text: str, moments: Moments) -> tuple[str, ...]:
    words = set(text.replace(",", " ").replace("(", " ").replace(")", " ").replace(":", " ").replace(";", " ").split())
    return tuple(name for name in moments.names if name in words)


# --- direction report ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DirectionReport:
    """How far predictions move when the arrow between X and Y is reversed.

    Attributes
    ----------
    causal, anticausal : fitted estimators, None where infeasible (``reasons`` says why).
    angle : radians between the two normals (largest principal angle of the discriminant subspaces for K > 2).
    t_causal, t_anticausal : boundary's signed distance from the mean, in SDs of the logit (binary targets).
    scale_ratio : |coef causal| / |coef anticausal|; at least 1 with full information (T4).
    disagreement : mass of x on which the two predict different classes, averaged over the two fitted laws of x.
    reasons : direction -> why it is infeasible.
    """

    causal: Any
    anticausal: Any
    angle: float
    t_causal: float
    t_anticausal: float
    scale_ratio: float
    disagreement: float
    reasons: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Numbers and coefficients only, ready for JSON."""

        def side(model: Any) -> dict[str, Any] | None:
            if model is None:
                return None
            return {
                "coef": np.asarray(model.coef_).tolist(),
                "intercept": np.asarray(model.intercept_).tolist(),
                "features": [str(n) for n in model.feature_names_in_],
            }

        numbers = {k: getattr(self, k) for k in ("angle", "t_causal", "t_anticausal", "scale_ratio", "disagreement")}
        return {
            "causal": side(self.causal),
            "anticausal": side(self.anticausal),
            **{k: float(v) if np.isfinite(v) else None for k, v in numbers.items()},
            "reasons": dict(self.reasons),
        }


def compare_directions(moments: Moments, target: str) -> DirectionReport:
    """Fit {X} -> Y and Y -> {X} on the same moments and measure how they differ."""
    if target not in moments.kinds:
        raise CMaxEntError(f"no target {target!r} among the variables {_listed(moments.variables)}")
    continuous = moments.kinds[target] == "continuous"
    sides: dict[str, Any] = {}
    reasons = {}
    for direction in ("causal", "anticausal"):
        estimator = MergedRegressor(target, direction) if continuous else MergedClassifier(target, direction)
        try:
            sides[direction] = estimator.fit_moments(moments)
        except (InfeasibleMomentsError, ConvergenceError) as error:
            sides[direction], reasons[direction] = None, str(error)
    c, a = sides["causal"], sides["anticausal"]
    nan = float("nan")
    if continuous:
        if c is None or a is None:
            return DirectionReport(c, a, nan, nan, nan, nan, nan, reasons)
        return DirectionReport(
            c, a, _angle(c.coef_[None], a.coef_[None]), nan, nan, _ratio(c.coef_, a.coef_), nan, reasons
        )
    t = {k: _boundary(m) for k, m in sides.items()}
    if c is None or a is None:
        return DirectionReport(c, a, nan, t["causal"], t["anticausal"], nan, nan, reasons)
    coef_c, coef_a = _contrasts(c), _contrasts(a)
    disagreement = float(np.mean([_disagreement(c, a, law) for law in (c, a)]))
    return DirectionReport(
        c, a, _angle(coef_c, coef_a), t["causal"], t["anticausal"], _ratio(coef_c, coef_a), disagreement, reasons
    )


def _contrasts(model: MergedClassifier) -> Array:
    return model.coef_ if len(model.classes_) == 2 else model.coef_[:-1] - model.coef_[-1]


def _ratio(a: Array, b: Array) -> float:
    bottom = float(np.linalg.norm(b))
    return float(np.linalg.norm(a)) / bottom if bottom > 0 else float("nan")


def _angle(A: Array, B: Array) -> float:
    """Largest principal angle between row spaces; through sines, which keep small angles exact."""
    norm_a, norm_b = np.linalg.norm(A), np.linalg.norm(B)
    if norm_a == 0 or norm_b == 0:
        return 0.0 if norm_a == norm_b else float("nan")
    if len(A) == 1:
        u, v = A[0] / norm_a, B[0] / norm_b
        return float(2 * np.arctan2(np.linalg.norm(u - v), np.linalg.norm(u + v)))
    Qa, Qb = (np.linalg.svd(M, full_matrices=False)[2][: int(np.linalg.matrix_rank(M))] for M in (A, B))
    rest = Qb - Qb @ Qa.T @ Qa
    return float(np.arcsin(min(1.0, float(np.linalg.norm(rest, 2)))))


def _boundary(model: MergedClassifier | None) -> float:
    if model is None or len(model.classes_) != 2:
        return float("nan")
    beta = model.coef_[0]
    mu = model._target_view.mu
    return standardised_boundary(
        float(model.intercept_[0] + beta @ mu), float(np.sqrt(max(beta @ model.completed_cov_ @ beta, 0.0)))
    )


def _disagreement(c: MergedClassifier, a: MergedClassifier, law: MergedClassifier) -> float:
    """P(classes differ) for x ~ N(mean, Cov) of one fitted law."""
    mu, sigma = law._target_view.mu, law.completed_cov_
    if len(c.classes_) != 2:
        rng = np.random.default_rng(0)
        values, vectors = np.linalg.eigh(sigma)
        X = mu + (rng.standard_normal((20_000, len(mu))) * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
        scores = [X @ m.coef_.T + m.intercept_ for m in (c, a)]
        return float(np.mean(scores[0].argmax(axis=1) != scores[1].argmax(axis=1)))
    B = np.vstack([c.coef_[0], a.coef_[0]])
    mean = B @ mu + np.array([c.intercept_[0], a.intercept_[0]])
    cov = B @ sigma @ B.T
    sd = np.sqrt(np.maximum(cov.diagonal(), 0.0))
    if (sd == 0).any():
        side = [ndtr(m / s) if s > 0 else float(m > 0) for m, s in zip(mean, sd, strict=True)]
        return float(side[0] * (1 - side[1]) + side[1] * (1 - side[0]))
    z, rho = mean / sd, float(np.clip(cov[0, 1] / (sd[0] * sd[1]), -1, 1))
    if rho > 1 - 1e-12:  # parallel boundaries: T4
        return float(abs(ndtr(z[0]) - ndtr(z[1])))
    both = float(multivariate_normal.cdf(z, mean=[0, 0], cov=[[1, rho], [rho, 1]], abseps=1e-12, releps=1e-12))
    return float(ndtr(z[0]) + ndtr(z[1]) - 2 * both)


# --- leave one variable pair out ----------------------------------------------------------------------------


@dataclass(frozen=True)
class LovoResult:
    """How well each direction predicts covariances that were hidden from it (correlation scale).

    Attributes
    ----------
    table : one row per hidden pair (a, b, observed, causal, anticausal) or per pair of groups (a, b, and the relative
        Frobenius errors causal, anticausal).
    error_causal, error_anticausal : root mean square error over pairs, or mean relative error over group pairs.
    score : sum over pairs of rho^2 - (rho - rho_aY rho_bY)^2, positive when Y explains the correlations of X, as
        it does when Y causes X and its features are conditionally independent.
    """

    table: pd.DataFrame
    error_causal: float
    error_anticausal: float
    score: float


def lovo(
    moments: Moments,
    target: str,
    pairs: str | Iterable[tuple[str, str]] = "all",
    groups: Sequence[Sequence[str]] | Mapping[str, Sequence[str]] | None = None,
) -> LovoResult:
    """Hide known covariances of X one by one (or block by block) and predict them in both directions.

    Parameters
    ----------
    pairs : "all" known pairs of features, or a list of (a, b).
    groups : two or more groups of features; all covariances between two groups are hidden at once.

    Notes
    -----
    Leave-one-variable-out evidence for a direction: Schkoda, Faller, Blöbaum and Janzing 2025, arXiv:2411.05625.
    """
    if target not in moments.kinds:
        raise CMaxEntError(f"no target {target!r} among the variables {_listed(moments.variables)}")
    own = set(moments.coordinates(target))
    keep = _nonredundant(moments)
    y = [i for i in keep if i in own]
    x = [i for i in keep if i not in own]
    names = [moments.names[i] for i in x]
    S, C, V = moments.cov[np.ix_(x, x)], moments.cov[np.ix_(x, y)], moments.cov[np.ix_(y, y)]
    sd = np.sqrt(S.diagonal())
    with np.errstate(invalid="ignore"):
        rho = S / np.outer(sd, sd)
        through_y = C @ np.linalg.solve(V, C.T) / np.outer(sd, sd)
    joint = moments.cov[np.ix_(y + x, y + x)]
    if groups is not None:
        return _lovo_groups(joint, S, rho, sd, names, len(y), groups)
    chosen = _pair_indices(pairs, names, S)
    precision = {0: _precision(S), len(y): _precision(joint)}
    rows = []
    for i, j in chosen:
        predicted = [
            _predict_pair(M, precision[k], i + k, j + k, names) / (sd[i] * sd[j]) for M, k in ((S, 0), (joint, len(y)))
        ]
        rows.append((names[i], names[j], rho[i, j], *predicted))
    table = pd.DataFrame(rows, columns=["a", "b", "observed", "causal", "anticausal"])
    gaps = table[["causal", "anticausal"]].sub(table["observed"], axis=0)
    errors = np.sqrt((gaps**2).mean())
    idx = tuple(np.array(chosen, dtype=int).reshape(-1, 2).T)
    score = float(np.nansum(rho[idx] ** 2 - (rho[idx] - through_y[idx]) ** 2))
    return LovoResult(table, float(errors["causal"]), float(errors["anticausal"]), score)


def _pair_indices(pairs: str | Iterable[tuple[str, str]], names: list[str], S: Array) -> list[tuple[int, int]]:
    if isinstance(pairs, str):
        if pairs != "all":
            raise CMaxEntError(f"pairs has to be 'all' or a list of (a, b); got {pairs!r}")
        chosen = [(i, j) for i in range(len(names)) for j in range(i + 1, len(names)) if not np.isnan(S[i, j])]
    else:
        chosen = []
        for a, b in pairs:
            for n in (a, b):
                if n not in names:
                    raise CMaxEntError(f"lovo hides pairs of features; {n!r} is not one of {_listed(names)}")
            if np.isnan(S[names.index(a), names.index(b)]):
                raise CMaxEntError(f"Cov({a}, {b}) is unknown already")
            chosen.append((names.index(a), names.index(b)))
    if not chosen:
        raise CMaxEntError("there is no known covariance between two features to hide")
    return chosen


def _precision(M: Array) -> Array | None:
    return None if np.isnan(M).any() else np.asarray(np.linalg.inv(M), dtype=float)


def _predict_pair(M: Array, K: Array | None, i: int, j: int, names: list[str]) -> float:
    """The completion's value of one hidden entry; with everything else known it is one 2 x 2 inverse."""
    if K is not None:
        return float(M[i, j] + K[i, j] / (K[i, i] * K[j, j] - K[i, j] ** 2))
    hidden = M.copy()
    hidden[i, j] = hidden[j, i] = np.nan
    return float(complete_covariance(hidden).cov[i, j])


def _lovo_groups(
    joint: Array,
    S: Array,
    rho: Array,
    sd: Array,
    names: list[str],
    k: int,
    groups: Sequence[Sequence[str]] | Mapping[str, Sequence[str]],
) -> LovoResult:
    labelled = dict(groups) if isinstance(groups, Mapping) else {f"group {i}": g for i, g in enumerate(groups)}
    if len(labelled) < 2:
        raise CMaxEntError("groups needs at least two groups of features")
    rows, score = [], 0.0
    items = list(labelled.items())
    for label, members in items:
        stray = [n for n in members if n not in names]
        if stray:
            raise CMaxEntError(f"{label} names {_listed(stray)}, which are not features: {_listed(names)}")
    for a in range(len(items)):
        for b in range(a + 1, len(items)):
            A, B = ([names.index(n) for n in items[g][1]] for g in (a, b))
            observed = rho[np.ix_(A, B)]
            size = np.linalg.norm(observed)
            found = []
            for M, shift in ((S, 0), (joint, k)):
                hidden = M.copy()
                rows_, cols = [i + shift for i in A], [j + shift for j in B]
                hidden[np.ix_(rows_, cols)] = hidden[np.ix_(cols, rows_)] = np.nan
                predicted = complete_covariance(hidden).cov[np.ix_(rows_, cols)] / np.outer(sd[A], sd[B])
                found.append(float(np.linalg.norm(predicted - observed) / size))
            score += float(size**2 * (found[0] ** 2 - found[1] ** 2))
            rows.append((items[a][0], items[b][0], float(size), *found))
    table = pd.DataFrame(rows, columns=["a", "b", "observed", "causal", "anticausal"])
    return LovoResult(table, float(table["causal"].mean()), float(table["anticausal"].mean()), score)


# --- set identification -------------------------------------------------------------------------------------


def feasible_interval(moments: Moments, a: str, b: str) -> tuple[float, float]:
    """Range of Cov(a, b) that leaves the covariance matrix positive semidefinite, given everything else known.

    Closed form when the pair's common neighbours decide (as whenever the other pairs are all known), else by
    bisection on the existence of a completion (to 1e-7 of the pair's standard deviations).
    """
    keep = [moments.names[i] for i in _nonredundant(moments)]
    for name in (a, b):
        if name not in keep:
            raise CMaxEntError(f"no coordinate {name!r} among {_listed(keep)}")
    if a == b:
        raise CMaxEntError(f"Cov({a}, {a}) is a variance: give two different coordinates")
    M = moments.cov[np.ix_(_nonredundant(moments), _nonredundant(moments))].copy()
    i, j = keep.index(a), keep.index(b)
    M[i, j] = M[j, i] = np.nan
    centre_fit = complete_covariance(M, names=keep)
    common = np.array(
        [k for k in range(len(keep)) if k not in (i, j) and not np.isnan(M[i, k]) and not np.isnan(M[j, k])], dtype=int
    )
    with_edge = M.copy()
    with_edge[i, j] = with_edge[j, i] = centre_fit.cov[i, j]
    if centre_fit.chordal and _cliques(~np.isnan(with_edge))[2]:
        block = M[np.ix_(common, common)]
        s_i, s_j = M[i, common], M[j, common]
        solve = np.linalg.solve(block, np.column_stack([s_i, s_j])) if len(common) else np.zeros((0, 2))
        centre = float(s_i @ solve[:, 1])
        radius = float(np.sqrt((M[i, i] - s_i @ solve[:, 0]) * (M[j, j] - s_j @ solve[:, 1])))
        return centre - radius, centre + radius
    scale = float(np.sqrt(M[i, i] * M[j, j]))

    def exists(value: float) -> bool:
        trial = M.copy()
        trial[i, j] = trial[j, i] = value
        try:
            complete_covariance(trial, tol=1e-6)
        except (InfeasibleMomentsError, ConvergenceError):
            return False
        return True

    ends = []
    for end in (-scale, scale):
        inside, outside = float(centre_fit.cov[i, j]), end
        while abs(outside - inside) > 1e-7 * scale:
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if exists(middle) else (inside, middle)
        ends.append(inside)
    return ends[0], ends[1]


def sample_completions(
    moments: Moments, n: int = 100, random_state: int | np.random.Generator | None = None, *, thin: int | None = None
) -> Array:
    """(n, p, p) positive definite completions, uniform over the unknown entries (correlation scale), by hit-and-run.

    Parameters
    ----------
    thin : hit-and-run steps between draws, default 10 times the number of unknown entries (at least 20, at most 500).
    """
    if n < 1:
        raise CMaxEntError(f"n has to be at least 1; got {n}")
    rng = np.random.default_rng(random_state)
    index = _nonredundant(moments)
    M = moments.cov[np.ix_(index, index)]
    start = complete_covariance(M, names=[moments.names[i] for i in index]).cov
    sd = np.sqrt(start.diagonal())
    R = start / np.outer(sd, sd)
    rows, cols = np.nonzero(np.triu(np.isnan(M), 1))
    out = np.empty((n, moments.p, moments.p))
    if thin is None:
        thin = int(np.clip(10 * len(rows), 20, 500))
    steps = np.full(n, thin if len(rows) else 0)
    if len(rows):
        steps[0] = 10 * thin
    for k in range(n):
        for _ in range(steps[k]):
            D = np.zeros_like(R)
            D[rows, cols] = rng.standard_normal(len(rows))
            D += D.T
            L = np.linalg.cholesky(R)
            half = np.linalg.solve(L, np.linalg.solve(L, D).T)
            values = np.linalg.eigvalsh((half + half.T) / 2)
            # R + s D is positive definite for s in (-1 / max, -1 / min); D has zero trace in R's metric only by chance.
            low, high = -1 / max(values[-1], 1e-300), -1 / min(values[0], -1e-300)
            R = R + rng.uniform(low, high) * (1 - 1e-9) * D
        out[k] = _expand(R * np.outer(sd, sd), moments, index)
    return out


@dataclass(frozen=True)
class PredictionBand:
    """Probabilities of the last class over all completions of the unknown covariances.

    Attributes
    ----------
    lo, hi : (n,) band;  point : (n,) maximum entropy prediction;  feasible_share : completions that had a solution.
    """

    lo: Array
    hi: Array
    point: Array
    feasible_share: float


def prediction_band(
    moments: Moments,
    target: str,
    X: ArrayLike | pd.DataFrame,
    *,
    graph: str = "anticausal",
    n: int = 200,
    level: float = 1.0,
    random_state: int | np.random.Generator | None = 0,
) -> PredictionBand:
    """Set-identified prediction: refit on draws from all positive definite completions, not only the entropy maximum.

    Parameters
    ----------
    X : (m, d) rows to predict.
    level : central share of the draws that the band covers; 1 gives their range.
    """
    point = MergedClassifier(target, graph).fit_moments(moments).predict_proba(X)[:, -1]
    draws = []
    for cov in sample_completions(moments, n, random_state):
        full = Moments.from_arrays(moments.mean, cov, names=moments.names, kinds=moments.kinds, levels=moments.levels)
        try:
            draws.append(MergedClassifier(target, graph).fit_moments(full).predict_proba(X)[:, -1])
        except InfeasibleMomentsError:
            continue
    if not draws:
        raise InfeasibleMomentsError(f"none of {n} completions has a {graph} solution")
    lo, hi = np.quantile(np.array(draws), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return PredictionBand(lo, hi, point, len(draws) / n)


__all__ = [
    "DirectionReport",
    "FeasibilityReport",
    "LovoResult",
    "PredictionBand",
    "check_feasible",
    "compare_directions",
    "feasible_interval",
    "lovo",
    "prediction_band",
    "sample_completions",
]
