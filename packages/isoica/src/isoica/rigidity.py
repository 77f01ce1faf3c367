"""Constants of linearised rigidity: how far from affine a vector field with a small symmetric gradient can be.

With ``u`` a vector field on the latents and ``e(u)`` the symmetric part of its gradient, ``φ = id + εu`` has
``Θ_2(φ) = ε‖e(u)‖ + O(ε²)``, so these constants turn a small Θ into a bound on the affine residual (the linear order of
the rigidity theorem of Friesecke, James and Müller 2002 that arXiv:2503.15355 builds on; the constants are our own).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, stats
from scipy.special import roots_gegenbauer

from .errors import IsoICAError
from .laws import LawLike, cycle, nodes_of

Array = NDArray[np.float64]

_LARGEST = 6000  # unknowns of the eigenproblem, which is dense
_POINTS = 300_000  # of the quadrature


@dataclass(frozen=True)
class RigidityConstants:
    """Best constants among polynomial fields up to ``degree``: lower bounds of the true ones, rising with the degree.

    korn : ``sup E|Du|²/E|e(u)|²`` over u without mean rotation; has no unit and does not change under dilation.
    aff, rigid : ``sup ‖u - best affine field‖/‖e(u)‖``, and the same with rigid motions; in units of length.
    """

    korn: float
    aff: float
    rigid: float
    degree: int


def rigidity_constants(
    domain: str | LawLike | Sequence[LawLike] | Array = "ball", d: int = 2, degree: int = 4, unit_variance: bool = True
) -> RigidityConstants:
    """Constants of linearised rigidity by a polynomial Galerkin method.

    Parameters
    ----------
    domain : "ball" or "box" (uniform), "gaussian", or one law or a list of laws for independent latents (shorter than
        d: cycled), or a sample (n, d) of them. Laws need finite moments up to order ``2·degree``.
    d : dimension of the latents.
    degree : of the polynomials, at least 2. They are orthonormal in the measure, so high degrees lose no digits.
    unit_variance : scale every latent to variance 1, what the other functions of ``theory`` assume. Otherwise: the ball
        of radius 1, the box ``[-1, 1]^d``, the laws as they are.

    Raises IsoICAError where a law has no such moments or too few points of support, or the problem is too large.

    Examples
    --------
    >>> from isoica.theory import rigidity_constants
    >>> round(rigidity_constants("gaussian", d=2, degree=3).aff, 6)
    1.414214
    """
    if not (d >= 1 and degree >= 2):
        raise IsoICAError(f"d={d}, degree={degree}; need d >= 1 and degree >= 2")
    unknowns = d * comb(d + degree, d)
    if unknowns > _LARGEST or (degree + 1) ** d > _POINTS:
        raise IsoICAError(f"d={d} with degree={degree} is too large ({unknowns} unknowns); lower one of them")
    if isinstance(domain, str) and domain == "ball":
        points, weights, marginals = _ball(d, degree)
        scale = np.full(d, 1.0 if unit_variance else (d + 2) ** -0.5)
    else:
        if isinstance(domain, np.ndarray):
            if domain.ndim != 2 or domain.shape[1] != d:
                raise IsoICAError(f"a sample of the latents must be (n, {d}), got shape {domain.shape}")
            rules, sd = [nodes_of(x) for x in domain.T], domain.std(axis=0)
        else:
            laws = cycle(stats.uniform(-1, 2) if isinstance(domain, str) and domain == "box" else domain, d)
            rules, sd = [law.nodes() for law in laws], np.array([law.sd for law in laws])
        points, weights, marginals = _independent(rules, degree)
        scale = np.ones(d) if unit_variance else sd
    G = [D / s for D, s in zip(derivatives(points, weights, marginals, degree), scale, strict=True)]
    return _constants(G, scale, degree)


def _constants(G: list[Array], scale: Array, degree: int) -> RigidityConstants:
    """From the matrices of the partial derivatives on an orthonormal polynomial basis, constants first, then linear."""
    d, N = len(G), len(G[0])
    rows = np.array([[G[i].T @ G[j] for j in range(d)] for i in range(d)])  # (d, d, N, N): E ∂_i p ∂_j q
    gradient = np.kron(np.eye(d), np.einsum("iiab->ab", rows))  # E|Du|², fields ordered (component, polynomial)
    strain = 0.5 * gradient + 0.5 * rows.transpose(1, 2, 0, 3).reshape(d * N, d * N)  # E|e(u)|²

    order = np.tile(np.r_[0, np.ones(d), np.full(N - d - 1, 2)], d)
    linear, higher = np.flatnonzero(order == 1), np.flatnonzero(order == 2)
    coupling = strain[np.ix_(linear, higher)]
    schur = strain[np.ix_(higher, higher)] - coupling.T @ linalg.pinvh(strain[np.ix_(linear, linear)]) @ coupling
    aff = _least(schur)

    moving = np.flatnonzero(order > 0)  # translations cost nothing and change nothing
    strain, gradient = strain[np.ix_(moving, moving)], gradient[np.ix_(moving, moving)]
    rotations, mean_rotations = np.zeros((2, d * (d - 1) // 2, d, N))
    for r, (i, j) in enumerate(combinations(range(d), 2)):
        rotations[r, i, 1 + j], rotations[r, j, 1 + i] = scale[j], -scale[i]
        mean_rotations[r, i], mean_rotations[r, j] = G[j][0], -G[i][0]

    def without(fields: Array) -> Array:
        """Orthonormal basis of the fields orthogonal to the given ones."""
        return linalg.null_space(fields.reshape(len(fields), -1)[:, moving]) if len(fields) else np.eye(len(moving))

    rest = without(rotations)
    rigid = _least(rest.T @ strain @ rest)
    rest = without(mean_rotations)
    korn = linalg.eigh(
        rest.T @ gradient @ rest, rest.T @ strain @ rest, eigvals_only=True, subset_by_index=[rest.shape[1] - 1] * 2
    )[0]
    return RigidityConstants(float(korn), aff, rigid, degree)


def _least(strain: Array) -> float:
    return float(linalg.eigh(strain, eigvals_only=True, subset_by_index=[0, 0])[0]) ** -0.5


# --- orthonormal polynomials


def derivatives(points: Array, weights: Array, marginals: list[tuple[Array, Array]], degree: int) -> list[Array]:
    """Matrices ``∂_i`` (N, N), ``∂_i p_b = Σ_a G_i[a, b] p_a``, on orthonormal polynomials of total degree <= degree.

    The basis is products of the marginals' polynomials, by degree, orthonormalised in the quadrature ``points`` (m, d),
    ``weights`` (m,), which must be exact to order ``2·degree``. ``marginals``: recurrence of each axis.
    """
    d = points.shape[1]
    exponents = sorted((e for e in product(range(degree + 1), repeat=d) if sum(e) <= degree), key=_graded)
    tables = [_evaluate(*marginals[i], points[:, i]) for i in range(d)]
    values = np.stack([_product([tables[i][0][e[i]] for i in range(d)]) for e in exponents], axis=1)
    root = np.sqrt(weights)[:, None]
    Q, R = np.linalg.qr(root * values)
    flip = np.sign(np.diag(R))
    Q, R = Q * flip, R * flip[:, None]
    found = []
    for axis in range(d):
        slope = np.stack([_product([tables[i][int(i == axis)][e[i]] for i in range(d)]) for e in exponents], axis=1)
        found.append(linalg.solve_triangular(R, (Q.T @ (root * slope)).T, trans="T").T)
    return found


def _graded(exponents: tuple[int, ...]) -> tuple[Any, ...]:
    return sum(exponents), tuple(-e for e in exponents)


def _product(factors: list[Array]) -> Array:
    return np.prod(factors, axis=0)


def _evaluate(a: Array, b: Array, x: Array) -> tuple[Array, Array]:
    """Orthonormal polynomials ``b_{k+1} p_{k+1} = (x - a_k) p_k - b_k p_{k-1}`` and derivatives, (degree + 1, m)."""
    p, dp = np.zeros((2, len(a) + 1, len(x)))
    p[0] = 1.0
    for k in range(len(a)):
        before, slope_before = (p[k - 1], dp[k - 1]) if k else (0.0, 0.0)
        p[k + 1] = ((x - a[k]) * p[k] - (b[k - 1] if k else 0.0) * before) / b[k]
        dp[k + 1] = (p[k] + (x - a[k]) * dp[k] - (b[k - 1] if k else 0.0) * slope_before) / b[k]
    return p, dp


def _recurrence(x: Array, w: Array, degree: int) -> tuple[Array, Array]:
    """Coefficients a, b (degree,) of the orthonormal polynomials of a discrete measure (Stieltjes)."""
    a, b = np.zeros((2, degree))
    before, p = np.zeros_like(x), np.ones_like(x)
    for k in range(degree):
        a[k] = w @ (x * p * p)
        after = (x - a[k]) * p - (b[k - 1] if k else 0.0) * before
        b[k] = np.sqrt(w @ (after * after))
        if not b[k] > 1e-10:
            raise IsoICAError(f"a law with {k + 1} points of support has no polynomials of degree {k + 1}")
        before, p = p, after / b[k]
    return a, b


def _independent(rules: list[tuple[Array, Array]], degree: int) -> tuple[Array, Array, list[tuple[Array, Array]]]:
    marginals, nodes, masses = [], [], []
    for x, w in rules:
        with np.errstate(over="ignore", invalid="ignore"):
            top = w * x ** (2 * degree)
        # The outermost quadrature nodes of a law carry its tail; a sample has equal weights and no tail beyond itself.
        outer = top[np.argsort(-np.abs(x))[:20]].sum() if np.ptp(w) > 0 and len(x) > 200 else 0.0
        if not np.isfinite(top.sum()) or outer > 1e-6 * top.sum():
            raise IsoICAError(f"a law has no finite moment of order {2 * degree}; lower the degree")
        a, b = _recurrence(x, w, degree + 1)
        jacobi = linalg.eigh_tridiagonal(a, b[:-1])  # Golub and Welsch: the Gauss rule of the law
        marginals.append((a[:degree], b[:degree]))
        nodes.append(np.asarray(jacobi[0], dtype=np.float64))
        masses.append(np.asarray(jacobi[1][0] ** 2, dtype=np.float64))
    return _grid(nodes), _grid(masses).prod(axis=1), marginals


def _grid(axes: list[Array]) -> Array:
    return np.stack([x.ravel() for x in np.meshgrid(*axes, indexing="ij")], axis=1)


def _ball(d: int, degree: int) -> tuple[Array, Array, list[tuple[Array, Array]]]:
    """Uniform on the ball, scaled to unit variance: ``x_k = y_k √(1 - Σ_{l<k} x_l²)``, y_k independent."""
    rules = [_gegenbauer((d - k - 1) / 2, degree + 1) for k in range(d)]
    y, weights = _grid([r[0] for r in rules]), _grid([r[1] for r in rules]).prod(axis=1)
    x, left = np.empty_like(y), np.ones(len(y))
    for k in range(d):
        x[:, k] = y[:, k] * np.sqrt(left)
        left = left - x[:, k] ** 2
    radius = np.sqrt(d + 2)
    nodes, masses = _gegenbauer((d - 1) / 2, 2 * degree + 2)
    return radius * x, weights, [_recurrence(radius * nodes, masses, degree)] * d


def _gegenbauer(power: float, m: int) -> tuple[Array, Array]:
    """Gauss rule with m nodes for the density ∝ ``(1 - y²)^power``; weights sum to 1."""
    nodes, w = np.polynomial.legendre.leggauss(m) if power == 0 else roots_gegenbauer(m, power + 0.5)
    return nodes, w / w.sum()
