"""Closed forms of the two directions when X is Gaussian given what it does not depend on (T1-T5).

Causal, X -> Y: entropy of X first, then of Y given X, makes p(y|x) logistic with slopes s Cov(X)^-1 c; the
scale s solves a two-dimensional dual whatever the dimension of x (Stein's lemma). Anticausal, Y -> X:
the same principle gives linear discriminant analysis. Garrido Mejia et al. 2024, arXiv:2501.08426.

Notation: pi = P(Y=1), v = pi (1 - pi), mu = E X, Sigma = Cov X, c = Cov(X, Y), q = c' Sigma^-1 c, Z ~ N(0, 1).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import brentq
from scipy.special import expit, log_expit, log_softmax, logit, ndtri
from scipy.stats import norm, qmc

from .errors import CMaxEntError, ConvergenceError, InfeasibleMomentsError
from .newton import Value, minimise

Array = NDArray[np.float64]


class BinaryLogit(NamedTuple):
    """logit p(y=1|x) = intercept + coef . x"""

    intercept: float
    coef: Array  # (d,)


class SoftmaxLogits(NamedTuple):
    """log p(y=k|x) = intercept_k + x . coef_k + const, in the gauge sum_k pi_k coef_k = 0."""

    intercept: Array  # (K,)
    coef: Array  # (K, d)


# --- integrals of the logistic function against a Gaussian -----------------------------------------------

_GAUSS_NODES, _GAUSS_WEIGHTS = np.polynomial.legendre.leggauss(16)
_UNIFORM_PANELS = np.arange(-9.0, 9.5, 1.0)
_KINK_PANELS = np.array([1.5, 4.0, 8.0, 16.0, 32.0, 64.0])
_KINK_PANELS = np.concatenate([-_KINK_PANELS[::-1], [0.0], _KINK_PANELS])


def normal_rule(m: ArrayLike, tau: ArrayLike) -> tuple[Array, Array]:
    """Nodes z, weights w with E f(m + tau Z, Z) = sum_i w_i f(m + tau z_i, z_i) for f built from the logistic function.

    The logistic function has poles at distance pi/tau from the real line, which defeats Gauss-Hermite rules
    of any practical order for tau > 8. Gauss-Legendre panels on |z| <= 9, refined geometrically around the kink
    z = -m/tau, keep 1e-14 for every tau at the same cost.

    Parameters
    ----------
    m, tau : broadcastable arrays of shape (...); tau >= 0.

    Returns
    -------
    z, w : (..., 496) float64; the weights sum to one.
    """
    m, tau = np.broadcast_arrays(np.asarray(m, float), np.asarray(tau, float))
    width = np.maximum(tau, 1e-3)[..., None]
    edges = np.concatenate(
        [np.broadcast_to(_UNIFORM_PANELS, (*m.shape, len(_UNIFORM_PANELS))), (_KINK_PANELS - m[..., None]) / width],
        axis=-1,
    )
    edges = np.sort(np.clip(edges, -9.0, 9.0), axis=-1)
    half = np.diff(edges, axis=-1)[..., None] / 2
    middle = (edges[..., :-1] + edges[..., 1:])[..., None] / 2
    z = (middle + half * _GAUSS_NODES).reshape(*m.shape, -1)
    w = (half * _GAUSS_WEIGHTS).reshape(*m.shape, -1) * np.exp(-z * z / 2)
    return z, w / w.sum(axis=-1, keepdims=True)


def mean_logistic(m: ArrayLike, tau: ArrayLike) -> Array:
    """E logistic(m + tau Z), elementwise, in blocks of bounded memory."""
    m, tau = np.broadcast_arrays(np.asarray(m, float), np.asarray(tau, float))
    flat_m, flat_tau = m.ravel(), tau.ravel()
    out = np.empty(flat_m.shape)
    for start in range(0, len(out), 8192):
        part = slice(start, start + 8192)
        z, w = normal_rule(flat_m[part], flat_tau[part])
        out[part] = np.einsum("ij,ij->i", w, expit(flat_m[part, None] + flat_tau[part, None] * z))
    return out.reshape(m.shape)


def mean_and_slope(m: float, tau: float) -> tuple[float, float]:
    """E logistic(m + tau Z) and E logistic'(m + tau Z)."""
    z, w = normal_rule(m, tau)
    eta = m + tau * z
    s = expit(eta)
    return float(w @ s), float(w @ (s * expit(-eta)))


def logit_location(pi: float, tau: float) -> float:
    """m with E logistic(m + tau Z) = pi."""
    bound = 1.0 + abs(float(logit(pi))) + 10.0 * tau
    return float(brentq(lambda m: mean_and_slope(m, tau)[0] - pi, -bound, bound, xtol=1e-15, rtol=1e-14))


# --- feasibility (T2) -------------------------------------------------------------------------------------


def max_linear_q(pi: float) -> float:
    """Largest q = c' Sigma^-1 c of a binary Y and Gaussian X: phi(Phi^-1(pi))^2, a biserial correlation of one."""
    _check_probability(pi)
    return float(norm.pdf(ndtri(pi)) ** 2)


def max_linear_r2(pi: float) -> float:
    """Largest squared multiple correlation between a binary Y with P(Y=1) = pi and Gaussian X in the causal direction.

    At pi = 1/2 it is 2/pi = .6366; moments of nearly separable data exceed it, and then no logistic mechanism
    on a Gaussian cause has them (T2).
    """
    return max_linear_q(pi) / (pi * (1 - pi))


def _check_probability(pi: float) -> None:
    if not 0.0 < pi < 1.0:
        raise CMaxEntError(f"P(Y=1) has to lie strictly between 0 and 1; got {pi:g}")


# --- causal direction (T1) --------------------------------------------------------------------------------


def solve_binary_scale(pi: float, q: float, *, ridge: float = 0.0) -> tuple[float, float]:
    """Location and scale (m, tau) of the logit eta = m + tau Z of a binary Y caused by Gaussian X.

    Minimises the convex dual E softplus(m + tau Z) - pi m - sqrt(q) tau + ridge tau^2 / 2, whose stationarity is
    E logistic(eta) = pi and E[Z logistic(eta)] = sqrt(q) - ridge tau.

    Parameters
    ----------
    pi : P(Y=1), in (0, 1).
    q : c' Sigma^-1 c >= 0.
    ridge : slack on the covariance constraint in units of Sigma; any positive value makes every q feasible.

    Raises
    ------
    InfeasibleMomentsError
        ``ridge`` is 0 and q >= phi(Phi^-1(pi))^2.
    """
    _check_probability(pi)
    if not (q >= 0.0 and np.isfinite(q)):
        raise CMaxEntError(f"q = c' Sigma^-1 c has to be finite and not negative; got {q!r}")
    q_max, v = max_linear_q(pi), pi * (1 - pi)
    if ridge == 0.0 and q >= q_max * (1 - 1e-13):
        raise InfeasibleMomentsError(
            f"R^2 = {q / v:.6g} of Y on X is not below {q_max / v:.6g}, the most that a binary Y with P(Y=1) = "
            f"{pi:.6g} "
            "caused by Gaussian X allows"
        )
    if q == 0.0:
        return float(logit(pi)), 0.0
    # Start at the probit solution: logistic(eta) ~ Phi(eta / 1.702).
    rho2 = min(q / q_max, 0.9999 if ridge else 1.0)
    tau = 1.702 * np.sqrt(rho2 / (1 - rho2))
    theta = np.array([np.hypot(1.702, tau) * ndtri(pi), tau])
    goal = np.array([pi, np.sqrt(q)])
    theta, final, _ = minimise(lambda at: _binary_dual(at, goal, ridge), theta)
    gap = float(np.abs(final.gradient).max())
    if gap > 1e-11:
        raise ConvergenceError(
            f"the dual of the logistic scale stopped at gradient {gap:.3g} (pi = {pi:.6g}, q = "
            f"{q:.6g}, q_max = {q_max:.6g})"
        )
    return float(theta[0]), float(theta[1])


def _binary_dual(theta: Array, goal: Array, ridge: float) -> Value:
    m, tau = theta
    z, w = normal_rule(m, abs(tau))
    eta = m + tau * z
    sigma = expit(eta)
    slope = w * sigma * expit(-eta)
    value = float(-(w @ log_expit(-eta)) - theta @ goal + ridge * tau**2 / 2)
    gradient = np.array([w @ sigma - goal[0], (w * z) @ sigma - goal[1] + ridge * tau])
    mixed = float(slope @ z)
    hessian = np.array([[slope.sum(), mixed], [mixed, slope @ (z * z) + ridge]])
    return Value(value, gradient, lambda: hessian)


def causal_logit(pi: float, mu: Array, direction: Array, q: float, scale: tuple[float, float]) -> BinaryLogit:
    """T1: logistic regression from moments.

    Parameters
    ----------
    direction : (d,) Sigma^-1 c, zero where c is unknown.
    scale : (m, tau) of :func:`solve_binary_scale`.
    """
    m, tau = scale
    coef = direction * (tau / np.sqrt(q)) if q > 0 else np.zeros_like(direction)
    return BinaryLogit(m - float(coef @ mu), coef)


def causal_logit_with_slack(pi: float, mu: Array, sigma: Array, c: Array, omega: Array) -> BinaryLogit:
    """Causal logit when the covariance constraint may be missed: Cov(X, logistic) + Omega lambda = c.

    By Stein's lemma lambda = (a Sigma + Omega)^-1 c with a = E logistic'(eta), a one-dimensional root.
    """

    def parts(a: float) -> tuple[Array, float, float, float]:
        lam = cho_solve(cho_factor(a * sigma + omega), c)
        tau = float(np.sqrt(max(lam @ sigma @ lam, 0.0)))
        m = logit_location(pi, tau)
        return lam, m, tau, mean_and_slope(m, tau)[1]

    v = pi * (1 - pi)
    a = brentq(lambda a: parts(a)[3] - a, 1e-12 * v, v * (1 + 1e-12), xtol=1e-16, rtol=1e-14)
    lam, m, _, _ = parts(a)
    return BinaryLogit(m - float(lam @ mu), lam)


# --- anticausal direction (T3) ----------------------------------------------------------------------------


def anticausal_logit(pi: float, mu: Array, weights: Array, c: Array) -> BinaryLogit:
    """T3: the bias that goes with LDA weights w = Sigma_w^-1 delta, where delta = c / v.

    Parameters
    ----------
    weights : (d,) natural parameters; Sigma^-1 c / (v - q) with full information.
    c : (d,) all covariances Cov(X, Y), completed where they were unknown.
    """
    v = pi * (1 - pi)
    return BinaryLogit(float(logit(pi) - mu @ weights - (0.5 - pi) * (c @ weights) / v), weights)


def anticausal_softmax(pi: Array, mu: Array, contrasts: Array, C: Array) -> SoftmaxLogits:
    """Multi-class LDA from weight contrasts w_k - w_K.

    Parameters
    ----------
    contrasts : (K, d), last row zero.
    C : (d, K) covariances with the class indicators, completed.
    """
    W = contrasts - pi @ contrasts
    means = mu + (C / pi).T
    return SoftmaxLogits(np.log(pi) - 0.5 * np.einsum("kd,kd->k", means + mu, W), W)


# --- K classes, causal ------------------------------------------------------------------------------------


def solve_softmax_scale(pi: Array, L: Array, *, ridge: float = 0.0, seed: int = 0) -> tuple[Array, Array]:
    """Location b (K,) and scale T (K, r) of the logits eta = b + T z, z ~ N(0, I_r), of K classes caused by Gaussian X.

    Minimises E logsumexp(b + T z) - pi . b - <L, T> + ridge |T|^2 / 2, where L L' = C' Sigma^-1 C. Tensor quadrature
    for r <= 3, else 2^14 points of a scrambled Sobol sequence, standardised (their first two moments are exact).

    Returns
    -------
    b, T in the gauge pi . T = 0, sum_k pi_k b_k = 0.

    Raises
    ------
    InfeasibleMomentsError
        The dual is unbounded: no softmax of a Gaussian has these class covariances.
    """
    K, r = L.shape
    if r == 0:
        return np.log(pi) - pi @ np.log(pi), np.zeros((K, 0))
    theta = np.zeros((K - 1, 1 + r))  # the last class is the reference inside the solver
    theta[:, 0] = np.log(pi[:-1] / pi[-1])
    goal = np.column_stack([pi, L])[:-1]
    # The ridge acts on T in the gauge pi . T = 0, where |T|^2 = tr(theta' (I - …) theta).
    centring = np.eye(K)[:, :-1] - pi[:-1]
    penalty = np.asarray(ridge * np.kron(centring.T @ centring, np.diag([0.0] + [1.0] * r)), dtype=float)
    fixed = softmax_rule(r, 1.0, seed)

    def contrast(flat: Array) -> float:
        return largest_contrast(flat.reshape(theta.shape)[:, 1:])

    def evaluate(flat: Array) -> Value:
        z, w = softmax_rule(r, min(contrast(flat), 1e3), seed) if r <= 3 else fixed
        return softmax_dual(flat, goal, penalty, np.column_stack([np.ones(len(z)), z]), w)

    flat, final, _ = minimise(evaluate, theta.ravel(), lambda at, _: contrast(at) > 1e3)
    theta, gradient = flat.reshape(theta.shape), final.gradient
    if np.abs(gradient).max() > 1e-10:
        raise InfeasibleMomentsError(
            "no softmax mechanism on Gaussian X has these class covariances: its dual diverges (scale "
            f"{contrast(flat):.3g}, "
            f"moment gap {np.abs(gradient).max():.3g})"
        )
    full = np.vstack([theta, np.zeros(1 + r)])
    full -= pi @ full
    return full[:, 0], full[:, 1:]


def largest_contrast(T: Array) -> float:
    """An upper bound of the SD of any pairwise logit difference, which sets the quadrature step."""
    return float(2.0 * np.linalg.norm(T, 2)) if T.size else 0.0


def softmax_rule(r: int, scale: float, seed: int) -> tuple[Array, Array]:
    """Nodes (n, r) and weights (n,) of N(0, I_r)."""
    if r <= 3:
        # Trapezoid: the aliasing error is exp(-2 pi^2 / (tau h)) from the softmax poles, exp(-2 pi^2 / h^2) from the
        # density.
        step = min(0.5, 2 * np.pi**2 / (36.0 * max(scale, 1e-9)))
        n = min(int(np.ceil(8.5 / step)), {1: 20_000, 2: 400, 3: 48}[r])
        axis = np.linspace(-8.5, 8.5, 2 * n + 1)
        z = np.stack(np.meshgrid(*[axis] * r, indexing="ij"), axis=-1).reshape(-1, r)
        log_w = -0.5 * (z * z).sum(axis=1)
        keep = log_w > -37.0
        w = np.exp(log_w[keep])
        return z[keep], w / w.sum()
    z = ndtri(qmc.Sobol(r, seed=seed).random_base2(14).clip(1e-12, 1 - 1e-12))
    z -= z.mean(axis=0)
    z = np.linalg.solve(np.linalg.cholesky(z.T @ z / len(z)), z.T).T
    return z, np.full(len(z), 1.0 / len(z))


def softmax_dual(flat: Array, goal: Array, penalty: Array, design: Array, weight: Array) -> Value:
    """sum_i weight_i log(1 + sum_k exp(design_i . theta_k)) - <goal, theta> + theta' penalty theta / 2.

    theta (K-1, J) is passed flat; the reference class has no row. goal (K-1, J);  penalty ((K-1) J, (K-1) J);
    design (n, J);  weight (n,).
    """
    K1, J = goal.shape
    eta = design @ flat.reshape(K1, J).T
    log_p = log_softmax(np.column_stack([eta, np.zeros(len(eta))]), axis=1)
    q = np.exp(log_p[:, :-1])
    pull = penalty @ flat
    value = float(-(weight @ log_p[:, -1]) - goal.ravel() @ flat + 0.5 * flat @ pull)

    def hessian() -> Array:
        out = penalty.reshape(K1, J, K1, J).copy()
        for a in range(K1):
            for b in range(a, K1):
                curvature = weight * q[:, a] * ((a == b) - q[:, b])
                block = (design * curvature[:, None]).T @ design
                out[a, :, b, :] += block
                if b > a:
                    out[b, :, a, :] += block.T
        return out.reshape(K1 * J, K1 * J)

    return Value(value, ((q * weight[:, None]).T @ design - goal).ravel() + pull, hessian)


def causal_softmax(pi: Array, mu: Array, directions: Array, L: Array, scale: tuple[Array, Array]) -> SoftmaxLogits:
    """Softmax regression from moments: Lambda = Sigma^-1 C pinv(L)' T'.

    Parameters
    ----------
    directions : (d, K) Sigma^-1 C, zero rows where C is unknown.
    L : (K, r) with L L' = C' Sigma^-1 C;  scale : (b, T) of :func:`solve_softmax_scale`.
    """
    b, T = scale
    coef = T @ (directions @ np.linalg.pinv(L).T).T
    return SoftmaxLogits(b - coef @ mu, coef)


def low_rank_root(G: Array) -> Array:
    """L (K, r) with L L' = G for a positive semidefinite G (K, K), r its numerical rank."""
    if not len(G):
        return np.zeros((0, 0))
    values, vectors = np.linalg.eigh((G + G.T) / 2)
    keep = values > max(float(values[-1]), 0.0) * 1e-12 + 1e-300
    return vectors[:, keep] * np.sqrt(values[keep])


# --- comparison (T4) --------------------------------------------------------------------------------------


def standardised_boundary(logit_at_mean: float, logit_sd: float) -> float:
    """t = -(logit at mu) / (SD of the logit): signed distance of the boundary from the mean, in SDs."""
    if logit_sd == 0.0:
        return float(-np.sign(logit_at_mean) * np.inf) if logit_at_mean else 0.0
    return -logit_at_mean / logit_sd
