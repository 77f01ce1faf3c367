"""The two directions of the paper, {X} -> Y and Y -> {X}, from moments with any pattern of unknown pairs (T1-T6).

The causal direction completes the covariance of X without looking at Y and lets only features whose covariance
with Y is known enter; the anticausal direction completes the covariance of (Y, X), so that Y acts as a bridge.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, lapack
from scipy.optimize import brentq
from scipy.special import expit, log_expit, log_softmax

from . import closedform as cf
from .completion import complete_covariance
from .errors import (
    CMaxEntError,
    ConvergenceError,
    InfeasibleMomentsError,
    InfeasibleMomentsWarning,
    UnboundedEntropyError,
)
from .gated import GatedGaussian
from .graph import _listed
from .moments import Moments

Array = NDArray[np.float64]

REMEDIES = (
    "remedies: fit the other direction, use p_x='empirical' with reference rows, or allow slack "
    "(on_infeasible='ridge' | 'boundary')"
)


@dataclass(frozen=True)
class FeasibilityReport:
    """Whether a distribution of the declared form has the moments.

    Attributes
    ----------
    feasible : the answer.
    margin : 1 - R^2 / R^2_max (positive when feasible), or the smallest eigenvalue of the blocking correlation block.
    r2 : squared multiple correlation of Y on the features whose covariance with Y is known (binary Y), else NaN.
    r2_max : largest R^2 that the direction allows, NaN where no closed form exists.
    reason : empty when feasible, else what is wrong, in words.
    conflicting : names of the variables involved.
    """

    feasible: bool
    margin: float
    r2: float
    r2_max: float
    reason: str = ""
    conflicting: tuple[str, ...] = ()


def infeasible(report: FeasibilityReport) -> InfeasibleMomentsError:
    """The error for a report, which it carries along."""
    error = InfeasibleMomentsError(f"{report.reason}; {REMEDIES}")
    error.report = report
    return error


@dataclass(frozen=True)
class ClassTarget:
    """Moments seen from a discrete target: class probabilities, and X with its covariances to the classes."""

    name: str
    classes: tuple[Any, ...]
    pi: Array  # (K,)
    mu: Array  # (d,)
    sigma: Array  # (d, d), NaN unknown
    C: Array  # (d, K) covariances with the class indicators, rows NaN where unknown
    names: tuple[str, ...]  # d coordinates of X

    @property
    def observed(self) -> NDArray[np.bool_]:
        """(d,) which features have a known covariance with Y."""
        return ~np.isnan(self.C[:, 0])


def class_target(moments: Moments, target: str) -> ClassTarget:
    """Split moments into a discrete target and the rest."""
    if target not in moments.kinds:
        raise CMaxEntError(f"no target {target!r} among the variables {_listed(moments.variables)}")
    kind = moments.kinds[target]
    if kind == "continuous":
        raise CMaxEntError(
            f"target {target} is continuous: declare kinds={{{target!r}: 'binary'}} or use MergedRegressor"
        )
    own = moments.coordinates(target)
    rest = [i for i in range(moments.p) if i not in set(own)]
    mean, cov = moments.mean, moments.cov
    if kind == "binary":
        c = cov[rest, own[0]]
        pi, C = np.array([1 - mean[own[0]], mean[own[0]]]), np.column_stack([-c, c])
    else:
        pi, C = mean[own] / mean[own].sum(), cov[np.ix_(rest, own)]
    names = tuple(moments.names[i] for i in rest)
    sigma = cov[np.ix_(rest, rest)]
    unknown = np.isnan(sigma.diagonal())
    if unknown.any():
        raise UnboundedEntropyError(
            f"the variance of {_listed([names[i] for i in np.flatnonzero(unknown)])} is unknown: the entropy has no "
            "upper bound"
        )
    levels = moments.levels.get(target, tuple(range(len(pi))))
    return ClassTarget(target, tuple(levels), pi, mean[rest], sigma, C, names)


@dataclass(frozen=True)
class DirectionFit:
    """A fitted direction (or graph): the predictive model and what the joint law says."""

    model: GatedGaussian
    cov: Array  # (d, d) total covariance of X
    C: Array  # (d, K) covariances with the class indicators
    entropy: float  # nats, of (X, Y)
    multipliers: Callable[[], dict[str, float]]
    residual: float
    feasibility: FeasibilityReport
    info: dict[str, Any] = field(default_factory=dict)
    slack_used: bool = False


# --- solving with a completed covariance --------------------------------------------------------------------


@dataclass(frozen=True)
class Completed:
    """A completed covariance and how to apply its inverse."""

    cov: Array
    solve: Callable[[Array], Array]
    logdet: float
    info: dict[str, Any]


def completed(S: Array, names: Sequence[str]) -> Completed:
    """Complete unknown entries and factorise, in correlation scale; warns when nearly singular."""
    scale = np.sqrt(S.diagonal())
    if np.isnan(S).any():
        result = complete_covariance(S, names=names)
        info = {
            "completion_iterations": result.n_iter,
            "completion_residual": result.residual,
            "chordal": result.chordal,
        }
        return Completed(result.cov, lambda b: result.precision @ b, result.logdet, info)
    if len(S) == 0:
        return Completed(S, lambda b: b, 0.0, {"condition": 1.0})
    R = S / np.outer(scale, scale)
    norm = float(np.abs(R).sum(axis=0).max())
    factor, status = lapack.dpotrf(R, lower=1)
    rcond = lapack.dpocon(factor, norm, uplo="L")[0] if status == 0 else 0.0
    if status != 0 or rcond < 1e-14:
        complete_covariance(S, names=names)  # names the culprits
        raise InfeasibleMomentsError(
            f"the covariance of {_listed(list(names))} is singular: drop a redundant variable or use shrinkage"
        )
    if rcond < 1e-12:
        vector = np.abs(np.linalg.eigh(R)[1][:, 0])
        worst = [names[i] for i in np.argsort(-vector)[:4] if vector[i] > 0.1]
        warnings.warn(
            f"the covariance is nearly singular (condition {1 / rcond:.2g}); collinear columns: {_listed(worst)}",
            UserWarning,
            stacklevel=4,
        )
    pair = (factor, True)

    def solve(b: Array) -> Array:
        inner = scale if b.ndim == 1 else scale[:, None]
        return cho_solve(pair, b / inner) / inner

    logdet = 2.0 * float(np.log(factor.diagonal()).sum() + np.log(scale).sum())
    return Completed(S, solve, logdet, {"condition": 1.0 / float(rcond)})


def shrunk(S: Array, gamma: float | None) -> Array:
    """(1 - gamma) S + gamma tr(S)/d I on the known entries."""
    if gamma is None:
        return S
    if not 0.0 <= gamma <= 1.0:
        raise CMaxEntError(f"shrinkage has to lie in [0, 1]; got {gamma!r}")
    out = S * (1 - gamma)
    np.fill_diagonal(out, out.diagonal() + gamma * S.diagonal().mean())
    return out


# --- causal ------------------------------------------------------------------------------------------------


def fit_causal(
    t: ClassTarget,
    *,
    slack: float = 0.0,
    omega: Array | None = None,
    on_infeasible: str = "raise",
    shrinkage: float | None = None,
    seed: int = 0,
) -> DirectionFit:
    """{X} -> Y: complete Cov(X), then logistic (softmax) regression by moments (T1, T6).

    Parameters
    ----------
    slack : ridge on the logit scale, in units where the covariance constraint may be missed by slack * Sigma lambda.
    omega : (d, d) sampling covariance of Cov(X, Y) (binary Y), replaces ``slack``.
    """
    O = np.flatnonzero(t.observed)
    S = completed(shrunk(t.sigma, shrinkage), t.names)
    K = len(t.pi)
    within = completed(S.cov[np.ix_(O, O)], [t.names[i] for i in O]) if len(O) < len(t.mu) else S
    directions = np.zeros((len(t.mu), K))
    directions[O] = within.solve(t.C[O])
    G = t.C[O].T @ directions[O]
    ridge = slack
    info = {**S.info}
    if K == 2:
        pi, q = float(t.pi[1]), max(float(G[1, 1]), 0.0)
        report = _causal_feasibility(t, q)
        c, factor = t.C[:, 1], 1.0
        if not report.feasible and omega is None and slack == 0.0:
            ridge, factor = handle_infeasible(report, on_infeasible, slack, q, cf.max_linear_q(pi))
        if omega is not None:
            beta = np.zeros_like(t.mu)
            small = cf.causal_logit_with_slack(pi, t.mu[O], S.cov[np.ix_(O, O)], c[O], omega[np.ix_(O, O)])
            beta[O] = small.coef
            binary = cf.BinaryLogit(small.intercept, beta)
            m, tau = binary.intercept + float(beta @ t.mu), float(np.sqrt(beta @ S.cov @ beta))
        else:
            m, tau = cf.solve_binary_scale(pi, q * factor**2, ridge=ridge)
            binary = cf.causal_logit(pi, t.mu, directions[:, 1] * factor, q * factor**2, (m, tau))
        intercept, coef = np.array([0.0, binary.intercept]), np.vstack([np.zeros_like(binary.coef), binary.coef])
        z, w = cf.normal_rule(m, tau)
        s = expit(m + tau * z)
        implied = S.cov @ binary.coef * cf.mean_and_slope(m, tau)[1]
        C = all_classes(implied[:, None], 2)
        conditional = float(-(w @ (s * log_expit(m + tau * z) + (1 - s) * log_expit(-(m + tau * z)))))
        residual = max(abs(float(w @ s) - pi), float(np.abs(implied[O] - c[O]).max(initial=0.0)))
        info |= {"m": m, "tau": tau, "q": q, "q_max": cf.max_linear_q(pi)}
    else:
        if omega is not None:
            raise CMaxEntError("slack='se' is available for binary targets; give a number for more classes")
        L = cf.low_rank_root(G)
        report = FeasibilityReport(True, np.nan, np.nan, np.nan)
        factor = 1.0
        try:
            b, T = cf.solve_softmax_scale(t.pi, L, ridge=ridge, seed=seed)
        except InfeasibleMomentsError as error:
            report = FeasibilityReport(False, np.nan, np.nan, np.nan, f"{error}", (t.name, *(t.names[i] for i in O)))
            largest = 0.0
            if on_infeasible == "boundary":
                largest = largest_factor(lambda f: cf.solve_softmax_scale(t.pi, L * f, seed=seed))
            ridge, factor = handle_infeasible(report, on_infeasible, slack, 1.0, largest**2)
            b, T = cf.solve_softmax_scale(t.pi, L * factor, ridge=ridge, seed=seed)
        logits = cf.causal_softmax(t.pi, t.mu, directions, L, (b, T))
        intercept, coef = logits.intercept, logits.coef
        z, w = (
            cf.softmax_rule(L.shape[1], cf.largest_contrast(T), seed) if L.shape[1] else (np.zeros((1, 0)), np.ones(1))
        )
        log_p = log_softmax(b + z @ T.T, axis=1)
        P = np.exp(log_p)
        moved = (P * w[:, None]).T @ z  # E[p_k z]
        C = S.cov @ directions @ np.linalg.pinv(L).T @ moved.T if L.shape[1] else np.zeros_like(t.C)
        conditional = float(-(w @ (P * log_p).sum(axis=1)))
        residual = max(float(np.abs(w @ P - t.pi).max()), float(np.abs(C[O] - t.C[O]).max(initial=0.0)))
    model = GatedGaussian(intercept, coef, np.tile(t.mu, (K, 1)), S.cov, intercept, coef)
    entropy = 0.5 * (len(t.mu) * np.log(2 * np.pi * np.e) + S.logdet) + conditional
    return DirectionFit(
        model,
        S.cov,
        C,
        float(entropy),
        lambda: _mechanism_multipliers(t, intercept, coef, O),
        residual,
        report,
        info,
        slack_used=ridge > 0 or omega is not None or factor != 1.0 or bool(shrinkage),
    )


def _causal_feasibility(t: ClassTarget, q: float) -> FeasibilityReport:
    pi = float(t.pi[1])
    v = pi * (1 - pi)
    r2, limit = q / v, cf.max_linear_r2(pi)
    if q < cf.max_linear_q(pi) * (1 - 1e-13):
        return FeasibilityReport(True, 1 - r2 / limit, r2, limit)
    involved = [t.names[i] for i in np.flatnonzero(t.observed)]
    singly = [abs(t.C[i, 1]) / np.sqrt(v * t.sigma[i, i]) for i in np.flatnonzero(t.observed)]
    strongest = [involved[i] for i in np.argsort(singly)[::-1][:2]]
    reason = (
        f"R^2 of {t.name} on {_listed(involved)} is {r2:.6g}, not below R^2_max = {limit:.6g}, the most that a "
        f"binary {t.name} with "
        f"P = {pi:.4g} caused by Gaussian features allows (largest share: {_listed(strongest)})"
    )
    return FeasibilityReport(False, 1 - r2 / limit, r2, limit, reason, (t.name, *involved))


def handle_infeasible(
    report: FeasibilityReport, mode: str, slack: float, q: float, q_max: float
) -> tuple[float, float]:
    """(ridge, factor on c) that make infeasible moments usable as the caller asked; raises if nothing was asked for."""
    if mode not in ("raise", "ridge", "boundary"):
        raise CMaxEntError(f"on_infeasible={mode!r} is not 'raise', 'ridge' or 'boundary'")
    if mode == "raise":
        raise infeasible(report)
    how = "a ridge on the logit scale" if mode == "ridge" else "covariances shrunk to 98 % of the boundary"
    warnings.warn(f"{report.reason}; continuing with {how}", InfeasibleMomentsWarning, stacklevel=5)
    return (max(slack, 1e-3), 1.0) if mode == "ridge" else (0.0, float(np.sqrt(0.98 * q_max / q)))


def largest_factor(attempt: Callable[[float], object]) -> float:
    """Largest factor on the covariances with Y for which ``attempt`` finds them feasible, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(25):
        middle = (low + high) / 2
        try:
            attempt(middle)
            low = middle
        except (InfeasibleMomentsError, ConvergenceError):  # the latter when too near to the boundary to tell
            high = middle
    return low


# --- anticausal ---------------------------------------------------------------------------------------------


def fit_anticausal(
    t: ClassTarget,
    *,
    slack: float = 0.0,
    omega: Array | None = None,
    on_infeasible: str = "raise",
    shrinkage: float | None = None,
    seed: int = 0,
) -> DirectionFit:
    """Y -> {X}: complete the covariance of (Y, X), then linear discriminant analysis (T3, T6)."""
    if omega is not None or slack > 0.0:
        return _anticausal_with_slack(t, slack, omega, shrinkage)
    report = _anticausal_feasibility(t)
    if shrinkage and t.observed.all():  # the shrunk within-class covariance decides, below
        report = FeasibilityReport(True, np.nan, report.r2, 1.0)
    if not report.feasible and on_infeasible != "raise":
        ridge, factor = handle_infeasible(report, on_infeasible, slack, report.r2, 1.0)
        if ridge:
            return _anticausal_with_slack(t, ridge, omega, shrinkage, report)
        return _anticausal_exact(_rescaled(t, factor), shrinkage, report, slack_used=True)
    return _anticausal_exact(t, shrinkage, report, slack_used=bool(shrinkage))


def _rescaled(t: ClassTarget, factor: float) -> ClassTarget:
    return ClassTarget(t.name, t.classes, t.pi, t.mu, t.sigma, t.C * factor, t.names)


def _anticausal_feasibility(t: ClassTarget) -> FeasibilityReport:
    """q < v for binary Y with everything known; cheap partial check otherwise (completion decides)."""
    O = np.flatnonzero(t.observed)
    if len(t.pi) != 2 or np.isnan(t.sigma[np.ix_(O, O)]).any() or len(O) == 0:
        return FeasibilityReport(True, np.nan, np.nan, 1.0)
    block, v = t.sigma[np.ix_(O, O)], float(t.pi[0] * t.pi[1])
    factor, status = lapack.dpotrf(block, lower=1)
    if status != 0:
        return FeasibilityReport(True, np.nan, np.nan, 1.0)
    r2 = float(t.C[O, 1] @ cho_solve((factor, True), t.C[O, 1])) / v
    if r2 < 1 - 1e-12:
        return FeasibilityReport(True, 1 - r2, r2, 1.0)
    names = tuple(t.names[i] for i in O)
    return FeasibilityReport(
        False,
        1 - r2,
        r2,
        1.0,
        f"R^2 of {t.name} on {_listed(list(names))} is {r2:.6g}, not below R^2_max = 1",
        (t.name, *names),
    )


def _anticausal_exact(
    t: ClassTarget, shrinkage: float | None, report: FeasibilityReport, *, slack_used: bool
) -> DirectionFit:
    if not report.feasible and not slack_used:
        raise infeasible(report)
    K, d = len(t.pi), len(t.mu)
    names = [f"{n} given {t.name}" for n in t.names]
    if t.observed.all():
        # Every class mean is known: completing (Y, X) is completing the within-class covariance.
        within = completed(shrunk(t.sigma - (t.C / t.pi) @ t.C.T, shrinkage), names)
        C = t.C
        means = t.mu + (C / t.pi).T
        W = within.solve((means - t.mu).T).T
        within_cov, logdet, info = within.cov, within.logdet, dict(within.info)
    else:
        labels = [*(f"{t.name}={c}" for c in t.classes[:-1]), *t.names] if K > 2 else [t.name, *t.names]
        k = K - 1
        last = slice(1, None) if K == 2 else slice(0, K - 1)  # the indicators that stay: class 1, or all but the last
        M = np.empty((k + d, k + d))
        M[:k, :k] = (np.diag(t.pi) - np.outer(t.pi, t.pi))[last, last]
        seen = np.nan_to_num(t.C)
        between = (seen / t.pi) @ seen.T  # what is known of the class means; the rest counts as within-class
        M[k:, :k], M[:k, k:], M[k:, k:] = t.C[:, last], t.C[:, last].T, shrunk(t.sigma - between, shrinkage) + between
        result = complete_covariance(M, names=labels)
        contrasts = np.zeros((K, d))
        contrasts[last] = -result.precision[:k, k:]
        W = contrasts - t.pi @ contrasts
        inner = completed(result.precision[k:, k:], t.names)
        within_cov = inner.solve(np.eye(d))
        within_cov = (within_cov + within_cov.T) / 2
        logdet = -inner.logdet
        C = all_classes(result.cov[k:, :k], K)
        means = t.mu + (C / t.pi).T
        info = {
            "completion_iterations": result.n_iter,
            "completion_residual": result.residual,
            "chordal": result.chordal,
        }
    return _discriminant(t, W, means, within_cov, C, logdet, report, info, slack_used)


def all_classes(C: Array, K: int) -> Array:
    """Covariances with all K indicators from those with the K - 1 that were kept."""
    return np.column_stack([-C[:, 0], C[:, 0]]) if K == 2 else np.column_stack([C, -C.sum(axis=1)])


def _discriminant(
    t: ClassTarget,
    W: Array,
    means: Array,
    within: Array,
    C: Array,
    logdet: float,
    report: FeasibilityReport,
    info: dict[str, Any],
    slack_used: bool,
) -> DirectionFit:
    K, d, O = len(t.pi), len(t.mu), np.flatnonzero(t.observed)
    if K == 2:
        binary = cf.anticausal_logit(float(t.pi[1]), t.mu, W[1] - W[0], C[:, 1])
        intercept, coef = np.array([0.0, binary.intercept]), np.vstack([np.zeros(d), binary.coef])
    else:
        logits = cf.anticausal_softmax(t.pi, t.mu, W - W[-1], C)
        intercept, coef = logits.intercept, logits.coef
    total = within + (C / t.pi) @ C.T
    model = GatedGaussian(np.log(t.pi), np.zeros((K, d)), means, within, intercept, coef)
    entropy = -float(t.pi @ np.log(t.pi)) + 0.5 * (d * np.log(2 * np.pi * np.e) + logdet)
    known = ~np.isnan(t.sigma)
    residual = max(
        float(np.abs(C[O] - t.C[O]).max(initial=0.0)), float(np.abs((total - t.sigma)[known]).max(initial=0.0))
    )
    return DirectionFit(
        model,
        total,
        C,
        entropy,
        lambda: _mechanism_multipliers(t, intercept, coef, np.arange(d)),
        residual,
        report,
        info,
        slack_used,
    )


def _anticausal_with_slack(
    t: ClassTarget, slack: float, omega: Array | None, shrinkage: float | None, report: FeasibilityReport | None = None
) -> DirectionFit:
    """Covariances with Y may be missed: Cov(X, Y) + Omega w = c, everything else exact. Binary Y.

    With all pairs known, c_model = Sigma (Sigma + kappa Omega)^-1 c with kappa = 1 / (v - q_model), a scalar root.
    """
    if len(t.pi) != 2:
        raise CMaxEntError("slack in the anticausal direction is available for binary targets")
    O = np.flatnonzero(t.observed)
    if len(O) < len(t.mu) or np.isnan(t.sigma).any():
        return _anticausal_slack_partial(t, slack, omega, shrinkage, report)
    v, c = float(t.pi[0] * t.pi[1]), t.C[:, 1]
    sigma = shrunk(t.sigma, shrinkage)
    S = completed(sigma, t.names)
    Omega = slack * sigma if omega is None else omega

    def model_c(kappa: float) -> Array:
        return sigma @ cho_solve(cho_factor(sigma + kappa * Omega, lower=True), c)

    def gap(kappa: float) -> float:
        cm = model_c(kappa)
        return kappa * (v - float(cm @ S.solve(cm))) - 1.0

    high = 1.0 / v
    while gap(high) < 0:
        high *= 2.0
        if high > 1e15:
            raise ConvergenceError(f"slack {slack:g} is too small to make the moments of {t.name} feasible")
    kappa = brentq(gap, 0.0, high, xtol=1e-15, rtol=1e-14)
    cm = model_c(kappa)
    exact = _anticausal_exact(
        ClassTarget(t.name, t.classes, t.pi, t.mu, sigma, all_classes(cm[:, None], 2), t.names),
        None,
        report or _anticausal_feasibility(t),
        slack_used=True,
    )
    return exact


def _anticausal_slack_partial(
    t: ClassTarget, slack: float, omega: Array | None, shrinkage: float | None, report: FeasibilityReport | None
) -> DirectionFit:
    """The same fixed point c_model = c - Omega w when pairs are unknown, by damped iteration from w = 0."""
    O = np.flatnonzero(t.observed)
    scale = np.sqrt(t.sigma.diagonal())
    Omega = slack * np.diag(scale**2) if omega is None else np.asarray(omega)
    Omega = Omega[np.ix_(O, O)]
    c, cm, step = t.C[O, 1], 0.0 * t.C[O, 1], 0.5
    previous = np.inf
    for _ in range(2000):
        trial = t.C.copy()
        trial[O] = all_classes(cm[:, None], 2)
        try:
            fit = _anticausal_exact(
                ClassTarget(t.name, t.classes, t.pi, t.mu, t.sigma, trial, t.names),
                shrinkage,
                report or _anticausal_feasibility(t),
                slack_used=True,
            )
        except InfeasibleMomentsError:
            cm, step = cm * 0.5, step * 0.5
            continue
        move = c - Omega @ fit.model.coef[1, O] - cm
        size = float(np.abs(move / scale[O]).max(initial=0.0))
        if size <= 1e-12:
            return fit
        step = min(step * 1.05, 1.0) if size < previous else step * 0.5
        previous = size
        cm = cm + step * move
    raise ConvergenceError(f"the slack iteration for {t.name} did not converge (last move {previous:.3g} SD)")


class Constant:
    """A picklable function of no arguments, for multipliers that are at hand already."""

    def __init__(self, value: dict[str, float]) -> None:
        self.value = value

    def __call__(self) -> dict[str, float]:
        return self.value


# --- sampling covariance of the moments, and names for multipliers --------------------------------------------


def sampling_covariance(t: ClassTarget, moments: Moments) -> Array:
    """(d, d) approximate sampling covariance of Cov(X, Y): (v Sigma_ij + c_i c_j) / n (Omega of slack='se')."""
    counts = moments.pair_counts()
    if counts is None:
        raise CMaxEntError("slack='se' needs the number of rows behind the moments: pass n=")
    own = moments.coordinates(t.name)[0]
    index = [moments.names.index(name) for name in t.names]
    n = counts[index, own]
    v, c = float(t.pi[0] * t.pi[1]), np.nan_to_num(t.C[:, 1])
    sigma = np.where(np.isnan(t.sigma), 0.0, t.sigma)
    with np.errstate(divide="ignore"):
        root = np.where(n > 0, 1.0 / np.sqrt(n), 0.0)
    return (v * sigma + np.outer(c, c)) * np.outer(root, root)


def _mechanism_multipliers(t: ClassTarget, intercept: Array, coef: Array, active: NDArray[np.intp]) -> dict[str, float]:
    """lambda of E[y] and of each E[y x_i], per class when there are more than two."""
    if len(t.pi) == 2:
        named = {f"E[{t.name}]": float(intercept[1])}
        return named | {f"E[{t.name} {t.names[i]}]": float(coef[1, i]) for i in active}
    named = {}
    for k, label in enumerate(t.classes):
        named[f"E[{t.name}={label}]"] = float(intercept[k])
        named |= {f"E[{t.name}={label} {t.names[i]}]": float(coef[k, i]) for i in active}
    return named
