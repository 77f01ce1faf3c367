"""What the arrow changes and what the moments say about it: feasibility, direction report, LOVO, set identification."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import block_diag
from scipy.special import erf, ndtr

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
from .mixed_model import MixedModel
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
    t_causal, t_anticausal : -(logit at the mean of x) / (SD of the logit under the fitted covariance of x), the
        boundary's signed distance from the mean (binary targets, features of any kind).
    scale_ratio : |coef causal| / |coef anticausal|; at least 1 with full information (T4).
    disagreement : mass of x on which the two predict different classes: the mean of its masses under the law of x that
        either direction fitted, which differ where a covariance of X was unknown.
    reasons : direction -> why it is infeasible.

    Notes
    -----
    The law of continuous features is N(mean, fitted covariance), as in T4. With discrete features it is the fitted
    law itself: a sum over their states (and over the classes, anticausally) of Gaussians of the continuous ones.
    For more than two classes and continuous features the mass is the share of 20,000 seeded draws.
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
    disagreement = float(np.mean([_disagreement(c, a, _feature_law(fitted)) for fitted in (c, a)]))
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


class _FeatureLaw(NamedTuple):
    """Law of x: a state with probability weight, then N(mean, cov); cov is zero in discrete columns."""

    weight: Array  # (S,)
    mean: Array  # (S, d)
    cov: Array  # (d, d)


def _feature_law(fitted: MergedClassifier) -> _FeatureLaw:
    model: Any = fitted._direction.model
    mu = fitted._target_view.mu
    if not isinstance(model, MixedModel):
        return _FeatureLaw(np.ones(1), mu[None], fitted.completed_cov_)
    (law,) = model.laws  # both directions have all features in one block
    share = model.pi if len(law.log_p) > 1 else np.ones(1)
    mean = np.empty((*law.log_p.shape, len(mu)))
    mean[..., law.discrete] = law.states
    mean[..., law.continuous] = law.means()
    cov = np.zeros((len(mu), len(mu)))
    cov[np.ix_(law.continuous, law.continuous)] = law.cov
    weight = (share[:, None] * np.exp(law.log_p)).ravel()
    return _FeatureLaw(weight / weight.sum(), mean.reshape(-1, len(mu)), cov)


def _disagreement(c: MergedClassifier, a: MergedClassifier, law: _FeatureLaw) -> float:
    """P(classes differ) for x from the law."""
    moves = law.cov.diagonal() > 0
    if not moves.any():
        return float(law.weight @ (_classes(c, law.mean) != _classes(a, law.mean)))
    if len(c.classes_) != 2:
        rng = np.random.default_rng(0)
        values, vectors = np.linalg.eigh(law.cov)
        noise = (rng.standard_normal((20_000, len(values))) * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
        X = law.mean[rng.choice(len(law.weight), len(noise), p=law.weight)] + noise
        return float(np.mean(_classes(c, X) != _classes(a, X)))
    scale = np.sqrt(law.cov.diagonal()[moves])
    root = scale[:, None] * np.linalg.cholesky(law.cov[np.ix_(moves, moves)] / np.outer(scale, scale))
    normals = [m.coef_[0, moves] @ root for m in (c, a)]
    sds = [float(np.linalg.norm(normal)) for normal in normals]
    if min(sds) == 0.0:  # given the state, one of the two (or both) predicts the same class everywhere
        (up_c, down_c), (up_a, down_a) = (_sides(m, law.mean, sd) for m, sd in zip((c, a), sds, strict=True))
        return float(law.weight @ (up_c * down_a + down_c * up_a))
    z = [(law.mean @ m.coef_[0] + m.intercept_[0]) / sd for m, sd in zip((c, a), sds, strict=True)]
    u, v = (normal / sd for normal, sd in zip(normals, sds, strict=True))
    half_angle = float(np.linalg.norm(u - v)) / 2, float(np.linalg.norm(u + v)) / 2
    return float(law.weight @ _mass_between(z[0], z[1], *half_angle))


def _classes(model: MergedClassifier, X: Array) -> NDArray[np.intp]:
    """Predicted class numbers; scores that are equal up to rounding are a tie, which the first class wins."""
    scores = X @ model.coef_.T + model.intercept_
    size = np.abs(X) @ np.abs(model.coef_).T + np.abs(model.intercept_)
    if len(model.classes_) == 2:
        scores = np.column_stack([np.zeros(len(X)), scores])
    best = scores.max(axis=1, keepdims=True)
    return np.asarray((scores >= best - 1e-9 * size.max(axis=1, keepdims=True)).argmax(axis=1))


def _sides(model: MergedClassifier, mean: Array, sd: float) -> tuple[Array, Array]:
    """P(second class) and P(first class) of a binary classifier in every state."""
    if sd == 0.0:
        second = _classes(model, mean).astype(float)
        return second, 1.0 - second
    z = (mean @ model.coef_[0] + model.intercept_[0]) / sd
    return ndtr(z), ndtr(-z)


def _mass_between(d1: Array, d2: Array, sine: float, cosine: float) -> Array:
    """P(sign(u.x - d1) != sign(v.x - d2)) for x ~ N(0, I) and unit vectors u, v; d1, d2 of shape (S,).

    Rotating the first line into the second one about their common point sweeps this double wedge. A line at distance
    h from the origin and with its foot at distance s from the common point sweeps phi(h) E|Z + s| per radian,
    Z ~ N(0, 1). All of the integrand is positive, so that nearly equal lines lose no digits.

    Parameters
    ----------
    sine, cosine : of half the angle between u and v.
    """
    same = (d1 == d2) & (sine == 0.0)
    # Parallel lines meet far away; nothing lies beyond a thousand SDs.
    sine, cosine = max(sine, 1e-100), max(cosine, 1e-100)
    d1, d2 = np.clip(d1, -1e3, 1e3), np.clip(d2, -1e3, 1e3)
    mass = _swept_to_middle(d1, d2, sine, cosine) + _swept_to_middle(d2, d1, sine, cosine)
    return np.where(same, 0.0, np.minimum(mass, 1.0))


def _swept_to_middle(d1: Array, d2: Array, sine: float, cosine: float) -> Array:
    """Mass that the first line sweeps until it bisects the angle.

    Turned by psi, the line is at h = d1 cos psi + s sin psi. The way is cut where h vanishes or |h| is largest, so
    that |h| grows in every part from the line where :func:`_swept` starts.
    """
    s = ((d2 - d1) + 2 * sine**2 * d1) / (2 * sine * cosine)
    s = np.where(d1 < 0, -s, s)
    h = np.abs(d1)
    R = np.hypot(h, s)  # distance of the common point
    middle = np.abs(d1 + d2) / (2 * cosine), np.abs(d2 - d1) / (2 * sine)
    whole = np.arctan2(sine, cosine)
    to_top, to_zero = np.arctan2(s, h), np.arctan2(h, -s)
    rises, crosses = s >= 0, (s < 0) & (to_zero < whole)

    def pick(rising: Any, crossing: Any, falling: Any) -> Array:
        return np.where(rises, rising, np.where(crosses, crossing, falling))

    first = _swept(pick(h, 0.0, middle[0]), pick(s, R, middle[1]), pick(np.minimum(whole, to_top), to_zero, whole))
    rest = pick(np.maximum(whole - to_top, 0.0), whole - to_zero, 0.0)
    return first + _swept(pick(middle[0], 0.0, 0.0), pick(middle[1], R, 0.0), rest)


def _swept(h: Array, s: Array, angle: Array) -> Array:
    """Mass swept by a line at distance h, its foot s from the centre, turned by an angle away from the origin."""
    node, weight = np.polynomial.legendre.leggauss(64)
    top = np.sqrt(h**2 + 80.0)  # beyond, the density has fallen by exp(-40)
    reach = np.arcsin(top / np.maximum(np.hypot(h, s), top)) - np.arctan2(h, s)
    angle = np.minimum(angle, reach)
    psi = angle[:, None] * (1 + node) / 2
    cos, sin = np.cos(psi), np.sin(psi)
    distance = h[:, None] * cos + s[:, None] * sin
    foot = s[:, None] * cos - h[:, None] * sin
    speed = np.sqrt(2 / np.pi) * np.exp(-(foot**2) / 2) + foot * erf(foot / np.sqrt(2))  # E|Z + foot|
    density = np.exp(-(distance**2) / 2) / np.sqrt(2 * np.pi)
    return angle * ((density * speed) @ weight) / 2


# --- leave one variable pair out ----------------------------------------------------------------------------


@dataclass(frozen=True)
class LovoResult:
    """How well each direction predicts covariances that were hidden from it (correlation scale).

    Attributes
    ----------
    table : one row per hidden entry (a, b, observed, causal, anticausal) or per pair of groups (a, b, and the relative
        Frobenius errors causal, anticausal). A pair with a categorical feature is hidden as a whole and has one row
        for each level.
    error_causal, error_anticausal : root mean square error over pairs, where the square error of a pair with a
        categorical feature is the mean over all its levels; or mean relative error over group pairs.
    score : sum over pairs of rho^2 - (rho - rho_aY rho_bY)^2 (its mean over the levels of a categorical feature),
        positive when Y explains the correlations of X, as it does when Y causes X and its features are conditionally
        independent.
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
    pairs : "all" known pairs of features, or a list of (a, b); a categorical feature stands for all its indicators.
    groups : two or more groups of features; all covariances between two groups are hidden at once.

    Raises
    ------
    InfeasibleMomentsError
        The known covariances are singular or not positive definite.

    Notes
    -----
    Leave-one-variable-out evidence for a direction: Schkoda, Faller, Blöbaum and Janzing 2025, arXiv:2411.05625.
    """
    if target not in moments.kinds:
        raise CMaxEntError(f"no target {target!r} among the variables {_listed(moments.variables)}")
    hider = _Hider(moments, target)
    if groups is not None:
        return _lovo_groups(hider, groups)
    own = [i for i in _nonredundant(moments) if i in moments.coordinates(target)]
    C, V = moments.cov[:, own], moments.cov[np.ix_(own, own)]
    sd = np.sqrt(moments.cov.diagonal())
    with np.errstate(invalid="ignore"):
        through_y = C @ np.linalg.solve(V, C.T) / np.outer(sd, sd)
    rows: list[tuple[Any, ...]] = []
    errors, scores = [], []
    for a, b in _feature_pairs(pairs, hider):
        A, B = hider.features[a], hider.features[b]
        observed, predicted = hider.observed(A, B), hider.predicted(A, B)
        errors.append([float(np.mean((p - observed) ** 2)) for p in predicted])
        scores.append(float(np.mean(observed**2 - (observed - through_y[np.ix_(A.levels, B.levels)]) ** 2)))
        names = [(moments.names[i], moments.names[j]) for i in A.levels for j in B.levels]
        values = zip(observed.flat, predicted[0].flat, predicted[1].flat, strict=True)
        rows += [(*pair, *entry) for pair, entry in zip(names, values, strict=True)]
    table = pd.DataFrame(rows, columns=["a", "b", "observed", "causal", "anticausal"])
    causal, anticausal = np.sqrt(np.mean(errors, axis=0))
    return LovoResult(table, float(causal), float(anticausal), float(np.nansum(scores)))


class _Side(NamedTuple):
    """One side of a hidden block: features with all levels, and how these follow from the non-redundant ones."""

    levels: list[int]  # coordinates of the moments, all levels
    kept: list[int]  # places among the non-redundant coordinates of X
    expand: Array  # (len(levels), len(kept))


class _Hider:
    """Covariances of X, alone (causal) and beside Y (anticausal), of which blocks are hidden and completed."""

    def __init__(self, moments: Moments, target: str) -> None:
        own = set(moments.coordinates(target))
        keep = _nonredundant(moments)
        y, x = [i for i in keep if i in own], [i for i in keep if i not in own]
        self.moments, self.target = moments, target
        place = {int(i): k for k, i in enumerate(x)}
        self.features = {v: _side(moments.coordinates(v), place) for v in moments.variables if v != target}
        self.sd = np.sqrt(moments.cov.diagonal())
        self.views = []
        for shift, index in ((0, x), (len(y), y + x)):
            M, names = moments.cov[np.ix_(index, index)], [moments.names[i] for i in index]
            precision = complete_covariance(M, names=names).precision if index else M  # refuses singular matrices
            self.views.append((shift, M, names, None if np.isnan(M).any() else precision))

    def feature(self, name: str) -> _Side:
        """A feature by name."""
        if name in self.features:
            return self.features[name]
        if name in self.moments.names and name not in self.moments.kinds and not name.startswith(f"{self.target}="):
            raise CMaxEntError(f"{name} is one level of a categorical feature, which is hidden as a whole: name that")
        raise CMaxEntError(f"lovo hides pairs of features; {name!r} is not one of {_listed(self.features)}")

    def observed(self, A: _Side, B: _Side) -> Array:
        """Correlations of all levels."""
        return np.asarray(self.moments.cov[np.ix_(A.levels, B.levels)] / np.outer(self.sd[A.levels], self.sd[B.levels]))

    def predicted(self, A: _Side, B: _Side) -> tuple[Array, Array]:
        """What the correlations are without and with Y, once hidden."""
        causal, anticausal = (
            A.expand @ _complete(view, A.kept, B.kept) @ B.expand.T / np.outer(self.sd[A.levels], self.sd[B.levels])
            for view in self.views
        )
        return causal, anticausal


def _side(coordinates: list[int], place: Mapping[int, int]) -> _Side:
    """One feature; the last level of a categorical one has no place: it is minus the sum of the others."""
    kept = [place[i] for i in coordinates if i in place]
    expand = np.vstack([np.eye(len(kept)), -np.ones((len(coordinates) - len(kept), len(kept)))])
    return _Side(coordinates, kept, expand)


def _complete(view: tuple[int, Array, list[str], Array | None], A: Sequence[int], B: Sequence[int]) -> Array:
    """The completion's value of one hidden block; with everything else known it is one small inverse."""
    shift, M, names, precision = view
    A, B = [i + shift for i in A], [i + shift for i in B]
    if precision is not None:
        both = A + B
        residual = np.linalg.inv(precision[np.ix_(both, both)])  # covariance given all other variables
        return M[np.ix_(A, B)] - residual[: len(A), len(A) :]
    hidden = M.copy()
    hidden[np.ix_(A, B)] = hidden[np.ix_(B, A)] = np.nan
    return complete_covariance(hidden, names=names).cov[np.ix_(A, B)]


def _feature_pairs(pairs: str | Iterable[tuple[str, str]], hider: _Hider) -> list[tuple[str, str]]:
    unknown = np.isnan(hider.moments.cov)
    if isinstance(pairs, str):
        if pairs != "all":
            raise CMaxEntError(f"pairs has to be 'all' or a list of (a, b); got {pairs!r}")
        member = np.zeros((len(hider.features), len(unknown)))
        for row, side in zip(member, hider.features.values(), strict=True):
            row[side.levels] = 1.0
        gaps = member @ unknown @ member.T
        chosen = [(a, b) for (i, a), (j, b) in combinations(enumerate(hider.features), 2) if gaps[i, j] == 0]
    else:
        chosen = []
        for pair in pairs:
            if isinstance(pair, str) or len(tuple(pair)) != 2:
                raise CMaxEntError(f"pairs takes pairs of names such as ('x1', 'x2'); got {pair!r}")
            a, b = pair
            A, B = hider.feature(a), hider.feature(b)
            if a == b:
                raise CMaxEntError(f"lovo hides the covariance of two different features; got {a} twice")
            if unknown[np.ix_(A.levels, B.levels)].any():
                raise CMaxEntError(f"Cov({a}, {b}) is unknown already")
            chosen.append((a, b))
    if not chosen:
        raise CMaxEntError("there is no known covariance between two features to hide")
    return chosen


def _lovo_groups(hider: _Hider, groups: Sequence[Sequence[str]] | Mapping[str, Sequence[str]]) -> LovoResult:
    labelled = dict(groups) if isinstance(groups, Mapping) else {f"group {i}": g for i, g in enumerate(groups)}
    if len(labelled) < 2:
        raise CMaxEntError("groups needs at least two groups of features")
    home: dict[str, str] = {}
    sides = {}
    for label, members in labelled.items():
        if isinstance(members, str) or not len(members):
            raise CMaxEntError(f"{label} has to be a list of features, at least one; got {members!r}")
        for name in members:
            if name in home:
                raise CMaxEntError(f"{name} is in {home[name]} and in {label}: groups must not overlap")
            home[name] = label
        parts = [hider.feature(name) for name in members]
        levels, kept = ([i for part in parts for i in part[k]] for k in (0, 1))
        sides[label] = _Side(levels, kept, block_diag(*[part.expand for part in parts]))
    rows, score = [], 0.0
    for a, b in combinations(sides, 2):
        observed = hider.observed(sides[a], sides[b])
        known = ~np.isnan(observed)
        if not known.any():
            raise CMaxEntError(f"every covariance between {a} and {b} is unknown already")
        size = float(np.linalg.norm(observed[known]))
        gaps = [float(np.linalg.norm((p - observed)[known])) for p in hider.predicted(sides[a], sides[b])]
        score += gaps[0] ** 2 - gaps[1] ** 2
        rows.append((a, b, size, *(gap / size if size > 0 else np.inf if gap > 0 else 0.0 for gap in gaps)))
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
    if not 0 < level <= 1:
        raise CMaxEntError(f"level has to be above 0 and at most 1; got {level!r}")
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
