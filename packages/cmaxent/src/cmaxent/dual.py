"""The conditional MAXENT dual: maximise E_W H(V|W) subject to E f_j(V, W) = m_j with the law of W fixed (spec 2.1).

The solution is p(v|w) = exp(lambda . f(v, w)) / Z(w), where lambda minimises the convex dual
D(lambda) = E_W log Z(W) - lambda . m + lambda' Omega lambda / 2. Its gradient is E f - m + Omega lambda and its
Hessian E_W Cov(f|W) + Omega. If Newton's method finds no finite minimiser, linear programmes say why: no
distribution has the moments (a Farkas vector proves it), or all that have them share zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.optimize import OptimizeResult, linprog
from scipy.special import logsumexp

from .errors import CMaxEntError, ConvergenceError, InconsistentMomentsError, InfeasibleMomentsError

Array: TypeAlias = "NDArray[np.float64]"
Features: TypeAlias = "Array | Callable[[slice], Array]"

_BLOCK = 1 << 21  # numbers of a block of features held at once
_LARGEST_PROGRAMME = 1 << 18  # columns beyond which a linear programme takes minutes
_GRADIENT_TOLERANCE = 1e-10  # in standard deviations of each feature
_FEASIBILITY_TOLERANCE = 1e-8  # likewise; HiGHS works to 1e-9


class InfeasibleConstraintsError(InfeasibleMomentsError):
    """No p(v|w) has the moments, and here is the proof.

    Attributes
    ----------
    certificate : (J,) a Farkas vector u: u . m > E_W max_v u . f(v, W), which every p(v|w) contradicts.
    gap : the difference of the two sides, positive.
    names : the constraints with u_j != 0; dropping any one of them removes this conflict, unless the problem was
        too large to look for a smallest conflict.
    """

    def __init__(self, message: str, certificate: Array, gap: float, names: tuple[str, ...]) -> None:
        super().__init__(message)
        self.certificate, self.gap, self.names = certificate, gap, names


class InconsistentConstraintsError(InconsistentMomentsError):
    """A combination of the features does not depend on v, and the moments give it another value.

    Attributes
    ----------
    certificate : (J,) a vector n with n . f(v, w) constant in v for every w.
    gap : |n . m - E n . f|
    names : the constraints with n_j != 0.
    """

    def __init__(self, message: str, certificate: Array, gap: float, names: tuple[str, ...]) -> None:
        super().__init__(message)
        self.certificate, self.gap, self.names = certificate, gap, names


@dataclass(frozen=True)
class DualSolution:
    """The minimiser of the dual.

    Attributes
    ----------
    multipliers : (J,) lambda; minus or plus infinity where the optimum lies on the boundary of the moment polytope.
    finite : (J,) the multipliers on the face of the polytope, of minimum norm among equivalent ones. Equal to
        ``multipliers`` in the interior.
    recession : (J,) or None. The density is the limit of finite + t recession for t -> infinity: points (w, v) at
        which recession . f is below its maximum over v (by at least one) are structural zeros.
    support : (n_w, n_v) bool, False at structural zeros; None if there are none.
    entropy : E_W H(V|W) in nats, with respect to the base measure.
    log_partition : (n_w,) log Z(w) with ``finite`` multipliers on the support.
    residual : largest |E f - m + Omega lambda| in units of each feature's standard deviation under the base measure.
    covariance : (J, J) E_W Cov(f|W) at the optimum, without Omega.
    n_iter : Newton steps.
    """

    multipliers: Array
    finite: Array
    recession: Array | None
    support: NDArray[np.bool_] | None
    entropy: float
    log_partition: Array
    residual: float
    covariance: Array
    n_iter: int


def solve_conditional(
    features: Features,
    targets: Array,
    weights: Array,
    log_base: Array,
    *,
    omega: Array | None = None,
    names: Sequence[str] | None = None,
    start: Array | None = None,
) -> DualSolution:
    """Minimise the conditional MAXENT dual by damped Newton steps.

    Parameters
    ----------
    features : (n_w, n_v, J) array, or a function that returns the (rows, n_v, J) part for a slice of rows; the
        function is called again in every iteration, so that only a few megabytes are held.
    targets : (J,) the values m of E f.
    weights : (n_w,) probabilities of the conditioning points, positive, summing to one; ``[1.0]`` without conditioning.
    log_base : (n_v,) log weights of the support points: zeros for counting, log quadrature weights for Lebesgue
        measure.
    omega : (J, J) positive semi-definite slack; the moments are then met up to Omega lambda. Exact by default.
    names : of the constraints, for messages; ``f0, f1, …`` by default.
    start : (J,) first multipliers; zero by default.

    Raises
    ------
    InfeasibleConstraintsError
        No p(v|w) has the moments; names the conflicting constraints and carries a Farkas certificate.
    InconsistentConstraintsError
        Redundant features with contradictory moments.
    ConvergenceError
        The dual has neither a minimiser that double precision resolves nor a certificate why not.

    Notes
    -----
    Janzing 2021 (arXiv:2102.03906), section 2; Garrido Mejia et al. 2024 (arXiv:2501.08426), section 3.
    """
    problem = _Problem.of(features, targets, weights, log_base, omega, names)
    outcome = _newton(problem, np.zeros(len(problem.names)) if start is None else np.asarray(start, float))
    if outcome.converged:
        return _solution(problem, outcome, recession=None)
    # Moments met while lambda runs off: some probabilities vanish, or are too small to resolve.
    on_boundary = _on_boundary(problem, outcome) if outcome.residual <= 1e-6 else None
    if on_boundary is None and outcome.residual > 10 * _GRADIENT_TOLERANCE:
        raise _explained(problem, outcome)
    return on_boundary or _solution(problem, outcome, recession=None)


# --- the problem in standardised features -----------------------------------------------------------------


@dataclass(frozen=True)
class _Problem:
    """Everything the solver reads. Its features are (f - m) / scale, its multipliers scale * lambda ("scaled")."""

    raw: Callable[[slice], Array]
    targets: Array
    weights: Array
    log_base: Array
    omega: Array  # in scaled coordinates
    names: tuple[str, ...]
    scale: Array
    support: NDArray[np.bool_] | None = None

    @classmethod
    def of(
        cls,
        features: Features,
        targets: Array,
        weights: Array,
        log_base: Array,
        omega: Array | None,
        names: Sequence[str] | None,
    ) -> _Problem:
        targets, weights = np.atleast_1d(np.asarray(targets, float)), np.asarray(weights, float)
        log_base = np.asarray(log_base, float)
        J = len(targets)
        labels = tuple(names) if names is not None else tuple(f"f{j}" for j in range(J))
        omega = np.zeros((J, J)) if omega is None else np.asarray(omega, float)
        if len(labels) != J or omega.shape != (J, J):
            raise CMaxEntError(
                f"{J} targets need {J} names and a ({J}, {J}) omega; got {len(labels)} and {omega.shape}"
            )
        if not np.isfinite(targets).all():
            bad = [n for n, ok in zip(labels, np.isfinite(targets), strict=True) if not ok]
            raise CMaxEntError(f"the value of {_listed(bad)} is not finite")
        if weights.ndim != 1 or not (weights > 0).all() or abs(weights.sum() - 1) > 1e-9:
            raise CMaxEntError("weights of the conditioning points have to be positive and sum to one")
        if J and (
            not np.allclose(omega, omega.T) or np.linalg.eigvalsh(omega)[0] < -1e-12 * max(1.0, np.abs(omega).max())
        ):
            raise CMaxEntError("omega has to be symmetric and positive semi-definite")
        if callable(features):
            raw = features
        else:
            array = np.asarray(features, float)
            if array.shape != (len(weights), len(log_base), J):
                raise CMaxEntError(
                    f"features have shape {array.shape}; the other arguments say {(len(weights), len(log_base), J)}"
                )

            def raw(rows: slice) -> Array:
                return array[rows]

        problem = cls(raw, targets, weights, log_base, omega, labels, np.ones(J))
        scale = problem._spread()
        return replace(problem, scale=scale, omega=omega / np.outer(scale, scale))

    def blocks(self) -> Iterator[tuple[slice, Array, Array]]:
        """Rows, their standardised features (rows, n_v, J), and log base weights (rows or 1, n_v)."""
        n_w, n_v = len(self.weights), len(self.log_base)
        step = max(1, _BLOCK // (n_v * max(1, len(self.names))))
        for start in range(0, n_w, step):
            rows = slice(start, min(start + step, n_w))
            f = (self.raw(rows) - self.targets) / self.scale
            if not np.isfinite(f).all():
                bad = [n for j, n in enumerate(self.names) if not np.isfinite(f[..., j]).all()]
                raise CMaxEntError(f"the function of constraint {_listed(bad)} is not finite on its support")
            base = self.log_base[None] if self.support is None else np.where(self.support[rows], self.log_base, -np.inf)
            yield rows, f, base

    def _spread(self) -> Array:
        """Standard deviation of each feature given w under the base measure; where it is zero, the magnitude."""
        variance, magnitude = np.zeros(len(self.names)), np.abs(self.targets)
        for rows, f, base in self.blocks():
            p = np.exp(base - logsumexp(base, axis=1, keepdims=True))
            centred = f - np.einsum("wv,wvj->wj", np.broadcast_to(p, f.shape[:2]), f)[:, None]
            variance += np.einsum("w,wv,wvj->j", self.weights[rows], np.broadcast_to(p, f.shape[:2]), centred**2)
            magnitude = np.maximum(magnitude, np.abs(f + self.targets).max(axis=(0, 1)))
        constant = variance <= (1e-13 * magnitude) ** 2
        return np.where(constant, np.where(magnitude > 0, magnitude, 1.0), np.sqrt(variance))

    def dual(self, scaled: Array) -> tuple[float, Array, Array, Array]:
        """D, its gradient, E_W Cov(f|W), and (n_w,) log Z(w), all in scaled coordinates with targets zero."""
        J = len(self.names)
        gradient, covariance, log_z = np.zeros(J), np.zeros((J, J)), np.empty(len(self.weights))
        for rows, f, base in self.blocks():
            logs = f @ scaled + base
            log_z[rows] = logsumexp(logs, axis=1)
            p = np.exp(logs - log_z[rows, None])
            mean = np.einsum("wv,wvj->wj", p, f)
            gradient += self.weights[rows] @ mean
            centred = (f - mean[:, None]).reshape(p.size, J)
            covariance += (centred * (p * self.weights[rows, None]).reshape(-1, 1)).T @ centred
        value = float(self.weights @ log_z + 0.5 * scaled @ self.omega @ scaled)
        return value, gradient + self.omega @ scaled, covariance, log_z

    def ranges(self) -> Array:
        """(J,) largest range of each standardised feature over v, over all w."""
        out = np.zeros(len(self.names))
        for _, f, base in self.blocks():
            inside = np.broadcast_to(np.isfinite(base), f.shape[:2])[..., None]
            high = np.where(inside, f, -np.inf).max(axis=1)
            low = np.where(inside, f, np.inf).min(axis=1)
            out = np.maximum(out, (high - low).max(axis=0))
        return out

    def farkas_gap(self, scaled: Array) -> float:
        """u . m - E_W max_v u . f; positive only if the moments are impossible."""
        return -sum(float(self.weights[rows] @ (f @ scaled).max(axis=1)) for rows, f, _ in self.blocks())

    def probabilities(self, scaled: Array) -> Array:
        """(n_w, n_v) p(v|w)."""
        out = np.empty((len(self.weights), len(self.log_base)))
        for rows, f, base in self.blocks():
            logs = f @ scaled + base
            out[rows] = np.exp(logs - logsumexp(logs, axis=1, keepdims=True))
        return out

    def log_partition(self, multipliers: Array) -> Array:
        """(n_w,) log Z(w) of multipliers in the user's units."""
        scaled, out = multipliers * self.scale, np.empty(len(self.weights))
        for rows, f, base in self.blocks():
            out[rows] = logsumexp(f @ scaled + base, axis=1)
        return out + multipliers @ self.targets

    @property
    def programme_fits(self) -> bool:
        return len(self.weights) * len(self.log_base) <= _LARGEST_PROGRAMME


# --- Newton -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Outcome:
    scaled: Array
    flat: Array  # (J, J - r) orthonormal directions along which D is constant
    converged: bool
    residual: float
    value: float
    gradient: Array
    covariance: Array
    log_z: Array
    n_iter: int


def _newton(problem: _Problem, start: Array) -> _Outcome:
    """Damped Newton in coordinates that make the Hessian at zero the identity and leave redundant directions out."""
    basis, flat = _identified(problem)
    ranges = problem.ranges()
    theta = np.linalg.lstsq(basis, start * problem.scale, rcond=None)[0]
    value, gradient, covariance, log_z = problem.dual(basis @ theta)
    residual, movement, n_iter = _size(gradient, flat), np.inf, 0
    while n_iter < 200:
        slope = basis.T @ gradient
        step = _newton_step(basis.T @ (covariance + problem.omega) @ basis, slope)
        if step is None:
            break
        # How far log p can move at any point: it tells a minimum from a gradient that only fades at infinity.
        movement = float(np.abs(basis @ step) @ ranges)
        if residual <= 1e-15 or (movement <= 1e-9 and residual <= _GRADIENT_TOLERANCE):
            break
        if not np.abs(theta).max() < 1e12:
            break
        size = 1.0
        while size * movement > 1e-10:
            trial = problem.dual(basis @ (theta - size * step))
            decrease, wanted = value - trial[0], 1e-4 * size * float(step @ slope)
            # Once the decrease drowns in the rounding of D, the gradient decides.
            rounding = 1e-13 * (1.0 + abs(value))
            if decrease >= wanted > rounding or (decrease >= -rounding and _size(trial[1], flat) < 0.9 * residual):
                break
            size /= 2
        else:
            break
        theta = theta - size * step
        value, gradient, covariance, log_z = trial
        residual, n_iter = _size(gradient, flat), n_iter + 1
    converged = residual <= _GRADIENT_TOLERANCE and movement <= 1e-3
    return _Outcome(basis @ theta, flat, converged, residual, value, gradient, covariance, log_z, n_iter)


def _size(gradient: Array, flat: Array) -> float:
    return float(np.abs(gradient - flat @ (flat.T @ gradient)).max(initial=0.0))


def _newton_step(hessian: Array, slope: Array) -> Array | None:
    """Hessian^-1 slope; None where D is flat to working precision."""
    variance = np.diag(hessian)
    if not (variance > 1e-300).all():
        return None
    size = np.sqrt(variance)
    correlation = hessian / np.outer(size, size)
    for ridge in (0.0, 1e-15, 1e-13, 1e-11, 1e-9):
        try:
            factor = cho_factor(correlation + ridge * np.eye(len(size)))
        except LinAlgError:
            continue
        return cho_solve(factor, slope / size) / size
    return None


def _identified(problem: _Problem) -> tuple[Array, Array]:
    """(J, r) basis of the directions in which D is curved, whitened at zero, and (J, J - r) the others.

    In the others a combination of the features is constant in v for every w: their multipliers are free, and their
    moments are either implied or contradictory.
    """
    _, at_zero, covariance, _ = problem.dual(np.zeros(len(problem.names)))
    curved, eigenvalues, flat = _split(covariance + problem.omega)
    if np.linalg.norm(flat.T @ at_zero) > _FEASIBILITY_TOLERANCE:
        raise _inconsistent(problem, covariance + problem.omega, at_zero)
    return curved / np.sqrt(eigenvalues), flat


def _split(curvature: Array) -> tuple[Array, Array, Array]:
    """Eigenvectors of the positive eigenvalues, these eigenvalues, and eigenvectors of the numerical null space."""
    eigenvalues, vectors = np.linalg.eigh(curvature)
    positive = eigenvalues > 1e-12 * max(1.0, eigenvalues.max(initial=0.0))
    return vectors[:, positive], eigenvalues[positive], vectors[:, ~positive]


def _solution(problem: _Problem, outcome: _Outcome, recession: Array | None) -> DualSolution:
    finite = outcome.scaled / problem.scale
    if outcome.flat.shape[1]:
        # Of all multipliers that give the same density, those of least Euclidean norm in the user's units.
        free = np.linalg.qr(outcome.flat / problem.scale[:, None])[0]
        finite = finite - free @ (free.T @ finite)
    multipliers = finite.copy()
    if recession is not None:
        infinite = np.abs(recession) > 1e-7 * np.abs(recession).max()
        multipliers[infinite] = np.copysign(np.inf, recession[infinite])
    slack_term = float(outcome.scaled @ problem.omega @ outcome.scaled)
    # H = E log Z - lambda . E f with E (f - m) / scale = gradient - Omega lambda.
    entropy = outcome.value - slack_term / 2 - (float(outcome.scaled @ outcome.gradient) - slack_term)
    shift = outcome.scaled / problem.scale @ problem.targets
    # Moving along a flat direction multiplies Z(w) by what that combination of features is at w.
    log_z = problem.log_partition(finite) if outcome.flat.shape[1] else outcome.log_z + shift
    return DualSolution(
        multipliers=multipliers,
        finite=finite,
        recession=None if recession is None else recession / problem.scale,
        support=problem.support,
        entropy=entropy,
        log_partition=log_z,
        residual=outcome.residual,
        covariance=outcome.covariance * np.outer(problem.scale, problem.scale),
        n_iter=outcome.n_iter,
    )


# --- linear programmes: why there is no finite minimiser --------------------------------------------------


def _explained(problem: _Problem, outcome: _Outcome) -> CMaxEntError:
    """Why Newton's method did not meet the moments."""
    # lambda itself often proves that they are impossible: D falls without bound along it.
    certificate = outcome.scaled / max(1.0, float(np.abs(outcome.scaled).max(initial=0.0)))
    if problem.omega.any() or problem.farkas_gap(certificate) <= _FEASIBILITY_TOLERANCE:
        certificate = np.zeros(len(problem.names))
    if problem.programme_fits:
        sparser = _phase_one(problem, range(len(problem.names)))
        certificate = certificate if sparser is None else _irreducible(problem, sparser)
    if certificate.any():
        return _infeasible(problem, certificate)
    return ConvergenceError(
        f"{_stopped(problem, outcome)}; the moments are on or very near the boundary of what is possible"
    )


def _phase_one(problem: _Problem, kept: Sequence[int]) -> Array | None:
    """A Farkas vector in scaled coordinates if no p(v|w) has the moments ``kept``, else None.

    Least total violation of the moments, min 1'(s+ + s-): its optimal dual variables u satisfy
    -E_W max_v u . f = minimum > 0 exactly when the moments (targets zero) are impossible.
    """
    kept = list(kept)
    n_w, n_v, J = len(problem.weights), len(problem.log_base), len(kept)
    moments = np.concatenate([f[..., kept].reshape(f.shape[0] * n_v, J) for _, f, _ in problem.blocks()]).T
    sums = sparse.kron(sparse.eye_array(n_w), np.ones((1, n_v)))
    pad = sparse.csr_array((n_w, J))
    slack = sparse.vstack([pad, sparse.eye_array(J)])
    soft = sparse.vstack([pad, sparse.csr_array(problem.omega[np.ix_(kept, kept)])])
    result = _linear_programme(
        c=np.concatenate([np.zeros(n_w * n_v), np.ones(2 * J), np.zeros(J)]),
        A_eq=sparse.hstack([sparse.vstack([sums, sparse.csr_array(moments)]), slack, -slack, soft]).tocsr(),
        b_eq=np.concatenate([problem.weights, np.zeros(J)]),
        bounds=np.array([(0, np.inf)] * (n_w * n_v + 2 * J) + [(-np.inf, np.inf)] * J),
    )
    if result is None or result.fun <= _FEASIBILITY_TOLERANCE:
        return None
    certificate = np.zeros(len(problem.names))
    certificate[kept] = result.eqlin.marginals[n_w:]
    certificate[np.abs(certificate) < 1e-9] = 0.0
    return certificate if problem.farkas_gap(certificate) > 0 else None


def _irreducible(problem: _Problem, certificate: Array) -> Array:
    """Drop constraints as long as the rest stay contradictory, so that the message names only the conflict."""
    for j in np.flatnonzero(certificate):
        if certificate[j] != 0.0:
            smaller = _phase_one(problem, [int(i) for i in np.flatnonzero(certificate) if i != j])
            certificate = certificate if smaller is None else smaller
    return certificate


def _on_boundary(problem: _Problem, outcome: _Outcome) -> DualSolution | None:
    """The solution on a face of the moment polytope, if a linear programme exposes one that holds the moments.

    Newton's method drives structural zeros to 1e-15. Points that got that far are zeros of *every* solution if a vector
    u exists with u . f maximal over v at all other points, lower (by at least one) at these, and u . m its mean
    maximum. That the dual on the rest has a finite minimiser shows that no other point has to vanish.
    """
    if not problem.programme_fits:
        return None
    p = problem.probabilities(outcome.scaled)
    for threshold in (1e-13, 1e-11, 1e-9, 1e-7):
        support = p > threshold
        if support.all() or not support.any(axis=1).all():
            continue
        recession = _exposing(problem, support)
        if recession is None or problem.farkas_gap(recession) < -_FEASIBILITY_TOLERANCE:
            continue
        face = replace(problem, support=support)
        inner = _newton(face, np.zeros(len(problem.names)))
        if inner.converged:
            return _solution(face, inner, recession)
    return None


def _exposing(problem: _Problem, support: NDArray[np.bool_]) -> Array | None:
    """The sparsest u (least sum of |u_j|, scaled coordinates) with max_v u . f attained on exactly ``support``."""
    n_w, n_v = support.shape
    J = len(problem.names)
    moments = np.concatenate([f.reshape(f.shape[0] * n_v, J) for _, f, _ in problem.blocks()])
    top = sparse.kron(sparse.eye_array(n_w), np.ones((n_v, 1))).tocsr()
    rows = sparse.hstack([sparse.csr_array(moments), sparse.csr_array(-moments), -top]).tocsr()
    inside = support.ravel()
    flat = sparse.csr_array(np.hstack([problem.omega, -problem.omega, np.zeros((J, n_w))]))  # slack bounds lambda
    result = _linear_programme(
        c=np.concatenate([np.ones(2 * J), np.zeros(n_w)]),
        A_ub=rows[~inside],
        b_ub=-np.ones(int((~inside).sum())),
        A_eq=sparse.vstack([rows[inside], flat]),
        b_eq=np.zeros(int(inside.sum()) + J),
        bounds=np.array([(0, np.inf)] * (2 * J) + [(-np.inf, np.inf)] * n_w),
    )
    return None if result is None else result.x[:J] - result.x[J : 2 * J]


def _linear_programme(**programme: object) -> OptimizeResult | None:
    """An optimal solution by HiGHS; None if there is none."""
    tolerances = {"primal_feasibility_tolerance": 1e-9, "dual_feasibility_tolerance": 1e-9}
    result = linprog(method="highs", options=tolerances, **programme)
    return result if result.status == 0 else None


# --- messages ---------------------------------------------------------------------------------------------


def _stopped(problem: _Problem, outcome: _Outcome) -> str:
    which, residual = _listed(problem.names), f"{outcome.residual:.3g}"
    return f"the dual of {which} stopped at residual {residual} after {outcome.n_iter} Newton steps"


def _combination(names: Sequence[str], coefficients: Array) -> str:
    terms = [f"{'+' if c > 0 else '-'} {abs(c):.4g} [{n}]" for n, c in zip(names, coefficients, strict=True) if c]
    return " ".join(terms).removeprefix("+ ")


def _infeasible(problem: _Problem, certificate: Array) -> InfeasibleConstraintsError:
    names = tuple(n for n, u in zip(problem.names, certificate, strict=True) if u != 0)
    u = certificate / problem.scale
    u /= np.abs(u).max()
    gap = problem.farkas_gap(u * problem.scale)
    value = float(u @ problem.targets)
    if len(names) == 1:
        # One constraint alone: say which values it could have.
        j = int(np.flatnonzero(certificate)[0])
        bound = (value - gap) / u[j] + 0.0  # no negative zero
        relation = "at most" if u[j] > 0 else "at least"
        message = f"no distribution has {names[0]} = {problem.targets[j]:.6g}: it can be {relation} {bound:.6g}"
    else:
        message = (
            f"no distribution has these moments together: {_listed(names)}. The combination "
            f"{_combination(problem.names, u)} can be at most {value - gap:.6g}, but the values give {value:.6g}"
        )
    return InfeasibleConstraintsError(message, u, gap, names)


def _inconsistent(problem: _Problem, curvature: Array, at_zero: Array) -> InconsistentConstraintsError:
    """The fewest constraints found whose features are redundant and whose values contradict each other."""
    kept = list(range(len(at_zero)))
    for j in list(kept):
        smaller = [i for i in kept if i != j]
        if np.linalg.norm(_violation(curvature, at_zero, smaller)) > _FEASIBILITY_TOLERANCE:
            kept = smaller
    violation = np.zeros(len(at_zero))
    violation[kept] = _violation(curvature, at_zero, kept)
    n = violation / problem.scale
    n /= np.abs(n).max()
    names = tuple(problem.names[i] for i in kept)
    given = float(n @ problem.targets)
    implied = given + float((n * problem.scale) @ at_zero)
    if len(names) == 1:
        message = (
            f"{names[0]} cannot be moved by what is left to choose: it is {implied:.8g}, but its value says {given:.8g}"
        )
    else:
        message = (
            f"the constraints {_listed(names)} contradict each other: {_combination(problem.names, n)} is "
            f"{implied:.8g} whatever is left to choose, but their values give {given:.8g}"
        )
    return InconsistentConstraintsError(message, n, abs(implied - given), names)


def _violation(curvature: Array, at_zero: Array, kept: Sequence[int]) -> Array:
    """The part of the moments' error that lies in the null space of the kept features."""
    flat = _split(curvature[np.ix_(kept, kept)])[2]
    return flat @ (flat.T @ at_zero[list(kept)])


def _listed(names: Sequence[str], most: int = 6) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, … ({len(names)} in all)"
