"""The causal direction with the law of X given by reference rows instead of maximum entropy (T1b).

The dual of "mean over rows of entropy of y given x, subject to moments" is the logistic (softmax) log-likelihood
with the moments as score; its moments may come from any source. With the rows' own labels it is
``LogisticRegression`` without penalty; with moments of other studies it solves the equations of GENMETA
(Kundu, Tang and Chatterjee 2019).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import linprog
from scipy.special import log_softmax

from .closedform import softmax_dual
from .directions import ClassTarget, DirectionFit, FeasibilityReport, _mechanism_multipliers, largest_factor
from .errors import CMaxEntError, ConvergenceError, InfeasibleMomentsError, InfeasibleMomentsWarning
from .gated import GatedGaussian
from .graph import _listed
from .linalg import independent_columns
from .newton import Value, minimise

Array = NDArray[np.float64]

LARGEST_PROGRAMME = 20_000  # class probabilities in a linear programme; beyond it takes minutes


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
    varying = np.flatnonzero(t.observed & (scale > 0))
    Z = (X_ref[:, varying] - centre[varying]) / scale[varying]
    independent = independent_columns((Z.T * weight) @ Z)
    O = varying[independent]
    design = np.column_stack([np.ones(n), Z[:, independent]])
    K = len(t.pi)
    # E[1_k (x - centre) / scale] from the moments of the sources
    raw = (t.C[varying] + np.outer(t.mu[varying] - centre[varying], t.pi)) / scale[varying][:, None]
    goal = np.column_stack([t.pi, raw[independent].T])[1:]  # class 0 is the reference
    try:
        if slack == 0.0:
            _check_redundant(Z, independent, raw, [t.names[i] for i in varying])
        theta = _solve(design, weight, goal, slack)
        report = FeasibilityReport(True, np.nan, np.nan, np.nan)
    except InfeasibleMomentsError as error:
        conflicting = (
            error.args[1] if len(error.args) > 1 else _separating(design, weight, goal, [t.names[i] for i in O])
        )
        reason = (
            f"no p({t.name} | x) on the {n} reference rows has these moments; {error.args[0]} {_listed(conflicting)}"
        )
        report = FeasibilityReport(False, np.nan, np.nan, np.nan, reason, (t.name, *conflicting))
        if on_infeasible == "raise":
            raise InfeasibleMomentsError(f"{reason}; allow slack, or on_infeasible='ridge' | 'boundary'") from None
        how = "a ridge on the slopes" if on_infeasible == "ridge" else "covariances shrunk to 98 % of the boundary"
        warnings.warn(f"{reason}; continuing with {how}", InfeasibleMomentsWarning, stacklevel=4)
        if on_infeasible == "ridge":
            theta = _solve(design, weight, goal, max(slack, 1e-3))
        else:
            goal[:, 1:] *= np.sqrt(0.98) * _boundary_factor(design, weight, goal)
            theta = _solve(design, weight, goal, slack)
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


def _check_redundant(Z: Array, independent: Sequence[int], raw: Array, names: Sequence[str]) -> None:
    """A feature that is a linear function of others on the rows has to have the moments that follow from theirs."""
    for r in sorted(set(range(len(names))) - set(independent)):
        slopes = np.linalg.lstsq(Z[:, independent], Z[:, r], rcond=None)[0]
        if np.abs(slopes @ raw[independent] - raw[r]).max() > 1e-6:
            own = tuple(names[independent[int(i)]] for i in np.flatnonzero(np.abs(slopes) > 1e-9))
            raise InfeasibleMomentsError("they contradict a linear dependence of its columns", (names[r], *own))


def _solve(design: Array, weight: Array, goal: Array, ridge: float) -> Array:
    """Minimise mean logsumexp(design theta') - <goal, theta> + ridge |slopes|^2 / 2; theta (K-1, 1+d)."""
    K1, J = goal.shape
    slopes = np.kron(np.eye(K1), np.diag([0.0] + [1.0] * (J - 1)))
    theta = np.zeros(goal.size)

    def hopeless(theta: Array, _: float) -> bool:
        return ridge == 0.0 and float(np.abs(theta).max()) > 1e4

    # From far away every row saturates and the intercept, which has no ridge, loses its curvature: follow a falling
    # ridge from where the dual is nearly quadratic.
    stage = max(1.0, ridge) if ridge else 0.0
    while True:
        penalty = np.asarray(stage * slopes)
        theta, final, _ = minimise(
            partial(softmax_dual, goal=goal, penalty=penalty, design=design, weight=weight), theta, hopeless
        )
        if stage <= ridge:
            break
        stage = max(stage / 4, ridge)
    size = float(np.abs(final.gradient).max())
    largest = float(np.abs(design @ theta.reshape(K1, J).T).max())
    if ridge == 0.0 and (size > 1e-7 or largest > 20.0) and _on_boundary(design, weight, goal, final):
        raise InfeasibleMomentsError("they are separable along")
    if size > 1e-7:
        raise ConvergenceError(f"the logistic dual on the reference rows stopped at gradient {size:.3g}")
    return theta.reshape(K1, J)


def _on_boundary(design: Array, weight: Array, goal: Array, final: Value) -> bool:
    """Whether the moments are outside or on the boundary of what the rows allow, so that the dual has no minimum.

    Moments inside stay inside when their slopes grow a little. Too many rows for the linear programme: no curvature.
    """
    if _programme_size(goal, design) <= LARGEST_PROGRAMME:
        return _boundary_factor(design, weight, goal) <= 1 + 1e-9
    return float(np.linalg.eigvalsh(final.hessian())[0]) < 1e-11


def _programme_size(goal: Array, design: Array) -> int:
    return len(goal) * len(design)


def _boundary_factor(design: Array, weight: Array, goal: Array) -> float:
    """Largest f for which some p(y | x) on the rows has E[1_k] = pi_k and f times the given slopes.

    A linear programme in p(y=k | row) and f; by bisection of the dual where it would be too large.
    """
    K1, (n, J) = len(goal), design.shape
    if _programme_size(goal, design) > LARGEST_PROGRAMME:
        return largest_factor(lambda f: _solve(design, weight, np.column_stack([goal[:, :1], f * goal[:, 1:]]), 0.0))
    direction = goal.copy()
    direction[:, 0] = 0.0
    moments = sparse.block_diag([sparse.csr_matrix(design.T * weight)] * K1)
    equal = sparse.hstack([moments, sparse.csr_matrix(-direction.reshape(-1, 1))], format="csr")
    fixed = np.where(np.arange(J) == 0, goal, 0.0).ravel()
    total = sparse.hstack([*[sparse.identity(n)] * K1, sparse.csr_matrix((n, 1))], format="csr")
    cost = np.zeros(n * K1 + 1)
    cost[-1] = -1.0
    bounds = [(0.0, 1.0)] * (n * K1) + [(0.0, 1e6)]
    found = linprog(
        cost, A_eq=equal, b_eq=fixed, A_ub=total if K1 > 1 else None, b_ub=np.ones(n) if K1 > 1 else None,
        bounds=bounds, method="highs",
    )  # fmt: skip
    return float(found.x[-1]) if found.success else 0.0


def _separating(design: Array, weight: Array, goal: Array, names: list[str]) -> tuple[str, ...]:
    """Features of the Farkas direction theta with goal . theta - E max_k theta_k . f >= 0, largest first (binary Y)."""
    if len(goal) > 1 or len(design) > LARGEST_PROGRAMME:
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
