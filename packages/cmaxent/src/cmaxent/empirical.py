"""The causal direction with the law of X given by reference rows instead of maximum entropy (T1b).

The dual of "mean over rows of entropy of y given x, subject to moments" is the logistic (softmax) log-likelihood
with the moments as score; its moments may come from any source. With the rows' own labels it is
``LogisticRegression`` without penalty; with moments of other studies it solves the equations of GENMETA
(Kundu, Tang and Chatterjee 2019).
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.special import log_softmax

from .closedform import softmax_dual
from .directions import ClassTarget, DirectionFit, FeasibilityReport, _mechanism_multipliers
from .errors import CMaxEntError, ConvergenceError, InfeasibleMomentsError, InfeasibleMomentsWarning
from .gated import GatedGaussian
from .graph import _listed
from .newton import minimise

Array = NDArray[np.float64]


def fit_empirical(
    t: ClassTarget,
    X_ref: Array,
    *,
    sample_weight: Array | None = None,
    slack: float = 0.0,
    on_infeasible: str = "raise",
) -> DirectionFit:
    """{X} -> Y on reference rows.

    Parameters
    ----------
    X_ref : (n, d) complete rows in the order of ``t.names``.
    slack : ridge on the slopes in units of the rows' standard deviations.

    Raises
    ------
    InfeasibleMomentsError
        No p(y|x) on these rows has the moments (they are separable); names the features of a separating direction.
    """
    n, d = X_ref.shape
    if d != len(t.mu) or n == 0:
        raise CMaxEntError(
            f"X_ref has to have the {len(t.mu)} columns {_listed(t.names)} and at least one row; got {X_ref.shape}"
        )
    if not np.isfinite(X_ref).all():
        raise CMaxEntError("X_ref has to be complete: drop rows with missing values")
    weight = np.full(n, 1.0 / n) if sample_weight is None else sample_weight / sample_weight.sum()
    centre = weight @ X_ref
    scale = np.sqrt(weight @ (X_ref - centre) ** 2)
    O = np.flatnonzero(t.observed & (scale > 0))
    design = np.column_stack([np.ones(n), (X_ref[:, O] - centre[O]) / scale[O]])
    K = len(t.pi)
    # E[1_k (x - centre) / scale] from the moments of the sources
    raw = (t.C[O] + np.outer(t.mu[O] - centre[O], t.pi)) / scale[O][:, None]
    goal = np.column_stack([t.pi, raw.T])[1:]  # class 0 is the reference
    try:
        theta = _solve(design, weight, goal, slack)
        report = FeasibilityReport(True, np.nan, np.nan, np.nan)
    except InfeasibleMomentsError:
        conflicting = _separating_features(design, weight, goal, [t.names[i] for i in O])
        reason = (
            f"no p({t.name} | x) on the {n} reference rows has these moments; they are separable along "
            f"{_listed(list(conflicting))}"
        )
        report = FeasibilityReport(False, np.nan, np.nan, np.nan, reason, (t.name, *conflicting))
        if on_infeasible == "raise":
            raise InfeasibleMomentsError(f"{reason}; allow slack, or on_infeasible='ridge' | 'boundary'") from None
        how = "a ridge on the slopes" if on_infeasible == "ridge" else "covariances shrunk by 2 %"
        warnings.warn(f"{reason}; continuing with {how}", InfeasibleMomentsWarning, stacklevel=4)
        if on_infeasible == "boundary":
            goal[:, 1:] *= 0.98
        theta = _solve(design, weight, goal, max(slack, 1e-3) if on_infeasible == "ridge" else max(slack, 1e-6))
    full = np.vstack([np.zeros(theta.shape[1]), theta])
    coef = np.zeros((K, d))
    coef[:, O] = full[:, 1:] / scale[O]
    intercept = full[:, 0] - coef @ centre
    if K > 2:
        intercept, coef = intercept - t.pi @ intercept, coef - t.pi @ coef
    log_p = log_softmax(X_ref @ coef.T + intercept, axis=1)
    P = np.exp(log_p)
    cov = ((X_ref - centre).T * weight) @ (X_ref - centre)
    C = ((X_ref - centre).T * weight) @ P
    model = GatedGaussian(intercept, coef, np.tile(centre, (K, 1)), cov, intercept, coef)
    gap = (design.T * weight) @ P[:, 1:] - goal.T
    return DirectionFit(
        model,
        cov,
        C,
        float(-(weight @ (P * log_p).sum(axis=1))),
        lambda: _mechanism_multipliers(t, intercept, coef, O),
        float(np.abs(gap).max()),
        report,
        {"rows": n},
        slack_used=slack > 0 or not report.feasible,
    )


def _solve(design: Array, weight: Array, goal: Array, ridge: float) -> Array:
    """Minimise mean logsumexp(design theta') - <goal, theta> + ridge |slopes|^2 / 2; theta (K-1, 1+d)."""
    K1, J = goal.shape
    penalty = np.asarray(ridge * np.kron(np.eye(K1), np.diag([0.0] + [1.0] * (J - 1))), dtype=float)

    def unbounded(theta: Array, _: float) -> bool:
        return ridge == 0.0 and float(np.abs(theta).max()) > 1e4

    start = np.zeros((K1, J))
    theta, final, _ = minimise(lambda at: softmax_dual(at, goal, penalty, design, weight), start.ravel(), unbounded)
    # A bounded dual with a tiny gradient at huge multipliers is separable data on its way to infinity.
    if unbounded(theta, 0.0) or (ridge == 0.0 and final.value < 1e-9):
        raise InfeasibleMomentsError("dual unbounded")
    size = float(np.abs(final.gradient).max())
    if size > 1e-7:
        raise ConvergenceError(f"the logistic dual on the reference rows stopped at gradient {size:.3g}")
    return theta.reshape(K1, J)


def _separating_features(design: Array, weight: Array, goal: Array, names: list[str]) -> tuple[str, ...]:
    """Features of the Farkas direction theta with goal . theta - E max_k theta_k . f >= 0, largest first (binary Y)."""
    if len(goal) > 1 or len(design) > 20_000:
        return tuple(names)
    # maximise goal . theta - sum_i w_i max(0, design_i theta) over |theta| <= 1
    n, J = design.shape
    c = np.concatenate([-goal[0], weight])
    A = np.hstack([design, -np.eye(n)])
    found = linprog(c, A_ub=A, b_ub=np.zeros(n), bounds=[(-1, 1)] * J + [(0, None)] * n, method="highs")
    if not found.success:
        return tuple(names)
    theta = np.abs(found.x[1:J])
    order = np.argsort(theta)[::-1]
    return tuple(names[i] for i in order if theta[i] > 1e-6) or tuple(names)
