"""Mixings with a known distance from isometry: exact isometries of any depth, and smooth perturbations of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize
from scipy.stats import ortho_group
from sklearn.utils import Bunch

from .errors import IsoICAError
from .isometry import theta_from_jacobians
from .laws import LawLike, cycle, generator

Array = NDArray[np.float64]


def _rotation(m: int, rng: np.random.Generator) -> Array:
    return np.asarray(ortho_group.rvs(m, random_state=rng)) if m > 1 else np.ones((1, 1))


def _namespace(x: Any) -> tuple[Any, Any]:
    """``x`` as an array and its module: numpy, or jax.numpy for what JAX traces."""
    x = x if hasattr(x, "__array_namespace__") else np.asarray(x, dtype=np.float64)
    return x, x.__array_namespace__()


class DeepIsometry:
    """An exact isometric embedding of R^d into ``R^(d·3^depth)``, called on (n, d) or (d,), in numpy or JAX.

    Each layer turns its input, sends every coordinate along a helix of unit speed
    ``γ(t) = (a sin ωt, a(1 - cos ωt), bt)`` with ``a²ω² + b² = 1``, and turns again: ``DᵀD = I`` at every point. The
    pitch b > 0 keeps it injective; curvature grows with ω and depth.

    Parameters
    ----------
    d : dimension of the latents. depth : number of layers, 0 for a rotation.
    omega : angular frequency ω > 0, per unit of latent. pitch : b in (0, 1]; 1 is flat.
    """

    def __init__(
        self, d: int, depth: int = 2, omega: float = 1.2, pitch: float = 0.5, random_state: Any = None
    ) -> None:
        if not (d >= 1 and depth >= 0 and omega > 0 and 0 < pitch <= 1):
            given = f"d={d}, depth={depth}, omega={omega}, pitch={pitch}"
            raise IsoICAError(f"{given}; need d >= 1, depth >= 0, omega > 0, 0 < pitch <= 1")
        rng = generator(random_state)
        self.d, self.depth, self.omega, self.pitch = d, depth, omega, pitch
        self.out_dim = d * 3**depth
        self.rotations = [_rotation(d * 3**layer, rng) for layer in range(depth + 1)]

    def __call__(self, s: Any) -> Any:
        """Points (n, D) of latents (n, d), or (D,) of (d,)."""
        x, xp = _namespace(s)
        x = x @ self.rotations[0].T
        for R in self.rotations[1:]:
            x = xp.concatenate(self._helix(x, xp), axis=-1) @ R.T
        return x

    def jacobian(self, s: Any) -> Array:
        """Jacobians (n, D, d) at (n, d), in numpy; their columns are orthonormal."""
        x = np.atleast_2d(np.asarray(s, dtype=np.float64)) @ self.rotations[0].T
        J = np.broadcast_to(self.rotations[0], (len(x), self.d, self.d))
        for R in self.rotations[1:]:
            a, w = np.sqrt(1 - self.pitch**2), self.omega * x
            speed = (a * np.cos(w), a * np.sin(w), np.full_like(w, self.pitch))
            J = R @ np.concatenate([v[:, :, None] * J for v in speed], axis=1)
            x = np.concatenate(self._helix(x, np), axis=1) @ R.T
        return J

    def _helix(self, x: Any, xp: Any) -> tuple[Any, Any, Any]:
        radius, w = np.sqrt(1 - self.pitch**2) / self.omega, self.omega * x
        return radius * xp.sin(w), 2 * radius * xp.sin(w / 2) ** 2, self.pitch * x


class NearIsometry:
    """``f = iso ∘ (id + εh)`` ("inner") or ``(id + εh) ∘ iso`` ("outer"), called on (n, d) or (d,), in numpy or JAX.

    ``h`` is a random network with one hidden layer of 32 tanh units. Its weights have the covariance of what it acts on
    (``S`` (n, d) are typical latents): an isotropic h in R^D would mostly push normal to the manifold, which changes
    lengths at second order only.
    """

    def __init__(self, iso: DeepIsometry, where: str, S: Array, rng: np.random.Generator) -> None:
        if where not in ("inner", "outer"):
            raise IsoICAError(f'where={where!r}; use "inner" or "outer"')
        self.iso, self.where, self.epsilon = iso, where, 0.0
        x, width = S if where == "inner" else iso(S), 32
        values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(x, rowvar=False)))
        root = vectors * np.sqrt(np.maximum(values, 0.0) / max(values.sum(), 1e-300))
        self.weights = root @ rng.normal(size=(x.shape[1], width))
        self.bias = rng.normal(size=width)
        self.out = rng.normal(size=(width, x.shape[1])) @ root.T / np.sqrt(width)

    def _h(self, x: Any, xp: Any) -> Any:
        return xp.tanh(x @ self.weights + self.bias) @ self.out

    def __call__(self, s: Any) -> Any:
        """Points (n, D) of latents (n, d), or (D,) of (d,)."""
        x, xp = _namespace(s)
        if self.where == "inner":
            return self.iso(x + self.epsilon * self._h(x, xp))
        y = self.iso(x)
        return y + self.epsilon * self._h(y, xp)

    def _slope(self, x: Array, J: Array) -> Array:
        """``Dh(x) J`` for J (n, m, d)."""
        bend = 1 - np.tanh(x @ self.weights + self.bias) ** 2
        return np.asarray(self.out.T @ (bend[:, :, None] * (self.weights.T @ J)))

    def jacobian(self, s: Any) -> Array:
        """Jacobians (n, D, d) at (n, d), in numpy."""
        s = np.atleast_2d(np.asarray(s, dtype=np.float64))
        if self.where == "inner":
            identity = np.broadcast_to(np.eye(self.iso.d), (len(s), self.iso.d, self.iso.d))
            warp = identity + self.epsilon * self._slope(s, identity)
            return self.iso.jacobian(s + self.epsilon * self._h(s, np)) @ warp
        J = self.iso.jacobian(s)
        return J + self.epsilon * self._slope(self.iso(s), J)


def make_near_isometric(
    n: int,
    d: int = 2,
    theta: float = 0.1,
    where: str = "outer",
    noise: float = 0.0,
    laws: LawLike | Sequence[LawLike] = "uniform",
    depth: int = 2,
    omega: float = 1.2,
    pitch: float = 0.5,
    random_state: Any = None,
) -> Bunch:
    """Latents seen through a mixing whose distance from isometry is ``theta``, with Gaussian noise.

    Parameters
    ----------
    theta : Θ_2 of the mixing over the drawn latents, met to 1e-6 relative; 0 gives an exact isometry.
    where : "outer" perturbs the observations; "inner" warps the latents before an exact isometry, so that the manifold
        stays flat and no data can show the perturbation.
    noise : standard deviation in every observed coordinate.
    laws : of the latents, one per latent or cycled; standardised.
    depth, omega, pitch : of :class:`DeepIsometry`; D = d·3^depth.

    Returns
    -------
    Bunch
        X (n, D), S (n, d), theta, and the mixing f (:class:`NearIsometry`, with ``f.jacobian``).
    """
    if not (theta >= 0 and noise >= 0):
        raise IsoICAError(f"theta={theta}, noise={noise}; neither may be negative")
    rng = generator(random_state)
    S = np.stack([law.rvs(n, rng) for law in cycle(laws, d)], axis=1)
    f = NearIsometry(DeepIsometry(d, depth, omega, pitch, rng), where, S, rng)
    if theta > 0:
        f.epsilon = _epsilon(f, S, theta)
    X = f(S)
    return Bunch(X=X + noise * rng.normal(size=X.shape) if noise else X, S=S, theta=theta, f=f)


def _epsilon(f: NearIsometry, S: Array, theta: float) -> float:
    # Both kinds are affine in ε once the isometry, which changes no distance, is taken away.
    f.epsilon = 0.0
    if f.where == "inner":
        identity = np.broadcast_to(np.eye(f.iso.d), (len(S), f.iso.d, f.iso.d))
        J0, J1 = identity, f._slope(S, identity)
    else:
        J0 = f.iso.jacobian(S)
        J1 = f._slope(f.iso(S), J0)

    def excess(epsilon: float) -> float:
        return theta_from_jacobians(J0 + epsilon * J1).value - theta

    high = theta
    for _ in range(60):
        if excess(high) > 0:
            return float(optimize.brentq(excess, 0.0, high, xtol=1e-12 * high, rtol=1e-7))
        high *= 2
    raise IsoICAError(f"theta={theta} cannot be reached; use a smaller one")
