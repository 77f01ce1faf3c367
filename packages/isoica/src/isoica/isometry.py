"""Distance of a map from isometry, ``Θ_p(f) = (E dist^p(Df, O(d, D)))^{1/p}`` (arXiv:2503.15355), in numpy.

JAX is imported only where a callable is differentiated by it; ``isometry_jax`` has the distance that can be trained on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg, optimize

from .errors import IsoICAError

Array = NDArray[np.float64]
Map = Callable[[Any], Any]

_ENTRIES = 2**24  # of Jacobian held at once while a callable is differentiated


def polar(J: ArrayLike) -> tuple[Array, Array]:
    """Polar decomposition ``J = Q P``: nearest matrix with orthonormal columns (..., D, d) and symmetric P (..., d, d).

    ``Q`` minimises ``|J - Q|_F``; where J has not full rank it is one of several minimisers.
    """
    u, s, vt = np.linalg.svd(_tall(J), full_matrices=False)
    return u @ vt, np.swapaxes(vt, -1, -2) * s[..., None, :] @ vt


def dist_to_orthogonal(J: ArrayLike, special: bool = False) -> Array:
    """``min |J - Q|_F`` over Q with orthonormal columns, ``(Σ(σ_i - 1)²)^{1/2}``, for each matrix of J (..., D, d).

    ``special`` (D = d only): over rotations, so that a J with negative determinant has ``σ_d + 1`` for its smallest
    singular value.
    """
    return _distances(_tall(J), special)[0]


@dataclass(frozen=True)
class ThetaResult:
    """A distance from isometry.

    value, stderr : Θ and its standard error (delta method; sampling of the points alone).
    per_sample : (n,) distances; for ``method="gram"`` unbiased estimates of ``|JᵀJ - I|²``, which may be negative.
    scale : the factor c of ``c·O``. metric : (d, d) the M of ``Df M^{-1/2}``.
    sigma_min, sigma_max : extremes of the singular values of ``Df M^{-1/2}`` (NaN for ``method="gram"``).
    """

    value: float
    stderr: float
    per_sample: Array = field(repr=False)
    scale: float
    sigma_min: float
    sigma_max: float
    metric: Array = field(repr=False)


def theta_from_jacobians(
    J: ArrayLike,
    p: float = 2,
    special: bool = False,
    scale: float | str | None = None,
    metric: ArrayLike | str | None = None,
    weights: ArrayLike | None = None,
) -> ThetaResult:
    """``Θ_p`` of the Jacobians J (n, D, d), D >= d, of a map at n points.

    Parameters
    ----------
    p : exponent, at least 1.
    special : distance from rotations instead of all orthogonal matrices (D = d only).
    scale : None for 1, a positive number, or "fit": the c that minimises ``E dist^p(J, c·O)`` (p = 2: the mean of all
        singular values). The value keeps the unit of J.
    metric : None for the identity, an SPD matrix (d, d), or "fit": the M that minimises Θ_2 of ``J M^{-1/2}``, for
        latents whose units are unknown. That value has no unit. With c fitted, ``Θ_metric <= Θ_scale/c`` for p = 2.
    weights : (n,) not negative.

    Raises IsoICAError for shapes and options that cannot be used. One-sided: data give only what the best chart cannot
    remove, so a small Θ of a fitted chart never proves that the mixing is near an isometry.
    """
    J = _tall(J)
    if J.ndim != 3 or len(J) == 0:
        raise IsoICAError(f"Jacobians must be (n, D, d) with n >= 1, got shape {J.shape}")
    if not np.isfinite(J).all():
        raise IsoICAError("Jacobians contain NaN or infinite values")
    if not p >= 1:
        raise IsoICAError(f"p={p}; must be at least 1")
    w = _weights(weights, len(J))
    if scale is not None and metric is not None:
        raise IsoICAError("scale and metric exclude each other: a metric contains the scale")
    M = np.eye(J.shape[2]) if metric is None else _metric(metric, J, w)
    if metric is not None:
        J = J @ np.linalg.inv(linalg.sqrtm(M).real)
    if not (scale is None or (scale == "fit" if isinstance(scale, str) else scale > 0)):
        raise IsoICAError(f'scale={scale!r}; use None, "fit" or a positive number')
    _, sigma = _distances(J, special)
    c = 1.0 if scale is None else _fit_scale(sigma, p, w) if isinstance(scale, str) else float(scale)
    distance = np.linalg.norm(sigma - c, axis=1)
    value, stderr = _power_mean(distance**p, p, w)
    size = np.abs(sigma)
    return ThetaResult(value, stderr, distance, c, float(size.min()), float(size.max()), M)


def theta(
    f: Map,
    S: ArrayLike,
    p: float = 2,
    special: bool = False,
    scale: float | str | None = None,
    metric: ArrayLike | str | None = None,
    weights: ArrayLike | None = None,
    method: str = "auto",
    random_state: Any = 0,
) -> ThetaResult:
    """``Θ_p(f)`` over the points S (n, d); parameters and result as in :func:`theta_from_jacobians`.

    Parameters
    ----------
    f : callable on (n, d) or on (d,), with D >= d outputs.
    method : "jvp" (JAX, float64), "fd" (central differences), "auto" (JAX where it can trace f, else differences with a
        warning), or "gram": the bound ``(E|JᵀJ - I|²)^{1/2} >= Θ_2`` from two directional derivatives a point, for
        large d; needs p = 2 and neither scale nor metric.
    random_state : of the directions of "gram".
    """
    S = np.asarray(S, dtype=np.float64)
    if S.ndim != 2 or S.size == 0 or not np.isfinite(S).all():
        raise IsoICAError(f"S must be a finite (n, d) array of points, got shape {S.shape}")
    if method not in ("auto", "jvp", "fd", "gram"):
        raise IsoICAError(f'method={method!r}; use "auto", "jvp", "fd" or "gram"')
    derivative = _derivative(f, S, method)
    if method == "gram":
        if p != 2 or scale is not None or metric is not None or special:
            raise IsoICAError('method="gram" bounds Θ_2 alone: leave p=2, scale, metric and special as they are')
        return _gram(derivative, S, _weights(weights, len(S)), np.random.default_rng(random_state))
    axes = np.eye(S.shape[1])
    width = len(np.atleast_1d(np.squeeze(derivative(S[:1], axes[:1])))) * S.shape[1]
    rows = max(1, _ENTRIES // width)
    J = np.concatenate(
        [
            np.stack([derivative(part, np.broadcast_to(e, part.shape)) for e in axes], axis=2)
            for part in (S[a : a + rows] for a in range(0, len(S), rows))
        ]
    )
    return theta_from_jacobians(J, p, special, scale, metric, weights)


# --- derivatives of a callable


def _derivative(f: Map, S: Array, method: str) -> Callable[[Array, Array], Array]:
    """``(points (n, d), directions (n, d)) -> Df·v (n, D)``."""
    if method != "fd":
        from .isometry_jax import directional

        try:
            return directional(f, S[:2])
        except Exception as error:  # f is the caller's: whatever it raises while traced means that JAX cannot
            if method == "jvp":
                raise IsoICAError(f'method="jvp": JAX cannot trace f ({error}); use method="fd"') from error
            if method == "auto":
                warnings.warn("JAX cannot trace f: derivatives are taken by finite differences", UserWarning, 3)
    batched = as_batched(f, S[:2], np.asarray)

    def central(points: Array, v: Array) -> Array:
        h = np.finfo(np.float64).eps ** (1 / 3) * np.maximum(1.0, np.abs(points).max(axis=1, keepdims=True))
        return (np.asarray(batched(points + h * v)) - np.asarray(batched(points - h * v))) / (2 * h)

    return central


def as_batched(f: Map, two: Array, stack: Callable[[list[Any]], Any]) -> Map:
    """``f`` on (n, d): itself where it takes rows one by one, else applied to each row (d,). ``two``: sample (2, d)."""

    def attempt(x: Array) -> Any:
        try:
            return f(x)
        except Exception as error:  # the caller's function: it tells by failing that it does not take this shape
            return error

    whole, row = attempt(two), attempt(two[0])
    takes_all = np.ndim(whole) == 2 and len(whole) == len(two) if not isinstance(whole, Exception) else False
    takes_row = np.ndim(row) == 1 if not isinstance(row, Exception) else False
    if takes_all and not (takes_row and not np.allclose(whole[0], row, rtol=1e-4, atol=1e-8)):
        return f
    if takes_row:
        return lambda x: stack([f(one) for one in x])
    if isinstance(whole, Exception):
        raise whole
    raise IsoICAError(f"f must map (n, d) to (n, D) or (d,) to (D,); on {two.shape} it gave shape {np.shape(whole)}")


def _gram(derivative: Callable[[Array, Array], Array], S: Array, w: Array, rng: np.random.Generator) -> ThetaResult:
    u, v = rng.normal(size=(2, *S.shape))
    square = (np.sum(derivative(S, u) * derivative(S, v), axis=1) - np.sum(u * v, axis=1)) ** 2
    value, stderr = _power_mean(square, 2, w)
    return ThetaResult(value, stderr, square, 1.0, float("nan"), float("nan"), np.eye(S.shape[1]))


# --- fits and moments


def _tall(J: ArrayLike) -> Array:
    J = np.asarray(J, dtype=np.float64)
    if J.ndim < 2 or J.shape[-2] < J.shape[-1]:
        raise IsoICAError(f"Jacobians must be (..., D, d) with D >= d, got shape {J.shape}; transpose an encoder's")
    return J


def _distances(J: Array, special: bool) -> tuple[Array, Array]:
    """Distances (...) and singular values (..., d), the last one negative where a rotation must undo a reflection."""
    sigma = np.linalg.svd(J, compute_uv=False).astype(np.float64)
    if special:
        if J.shape[-2] != J.shape[-1]:
            raise IsoICAError(f"special=True needs square Jacobians, got {J.shape[-2]} x {J.shape[-1]}")
        sigma[..., -1] *= np.where(np.linalg.det(J) < 0, -1.0, 1.0)
    distance: Array = np.linalg.norm(sigma - 1, axis=-1).astype(np.float64)
    return distance, sigma


def _fit_scale(sigma: Array, p: float, w: Array) -> float:
    c = float(w @ sigma.mean(axis=1))
    if p == 2 and c > 0:
        return c
    top = float(np.abs(sigma).max())
    found = optimize.minimize_scalar(
        lambda c: float(w @ np.linalg.norm(sigma - c, axis=1) ** p), bounds=(0.0, top), method="bounded",
        options={"xatol": 1e-10 * max(top, 1e-300)},
    )  # fmt: skip
    return float(found.x)


def _metric(metric: ArrayLike | str, J: Array, w: Array) -> Array:
    d = J.shape[2]
    if isinstance(metric, str):
        if metric != "fit":
            raise IsoICAError(f'metric={metric!r}; use None, "fit" or a positive definite matrix')
        return fit_metric(np.swapaxes(J, 1, 2) @ J, w)
    M = np.asarray(metric, dtype=np.float64)
    if M.shape != (d, d) or not np.allclose(M, M.T) or not np.linalg.eigvalsh(M).min() > 0:
        raise IsoICAError(f"metric must be a symmetric positive definite ({d}, {d}) matrix")
    return M


def fit_metric(gram: Array, weights: Array | None = None, max_iter: int = 1000) -> Array:
    """The SPD matrix M (d, d) that minimises ``E|J M^{-1/2} - Q|²``, from the matrices ``JᵀJ`` (n, d, d).

    Alternates the polar factors ``Q`` of ``J C`` with least squares, ``C = (E JᵀJ)^{-1} E JᵀQ``; ``M = (C Cᵀ)^{-1}``.
    """
    w = np.full(len(gram), 1 / len(gram)) if weights is None else weights
    mean = np.einsum("n,nij->ij", w, gram)
    values, vectors = np.linalg.eigh(mean)
    if not values[0] > 1e-14 * values[-1]:
        raise IsoICAError("no metric can be fitted: all Jacobians lack the same direction")
    root = vectors / np.sqrt(values) @ vectors.T
    white = root @ gram @ root  # mean identity, so that the iteration starts near its end
    C, last = np.eye(len(mean)), np.inf
    for _ in range(max_iter):
        lam, V = np.linalg.eigh(C.T @ white @ C)
        sigma = np.sqrt(np.maximum(lam, 0.0))
        inverse = V / np.maximum(sigma, 1e-12)[:, None, :] @ np.swapaxes(V, 1, 2)
        C = np.einsum("n,nij->ij", w, white @ C @ inverse)
        loss = float(w @ np.sum((sigma - 1) ** 2, axis=1))
        if last - loss <= 1e-15 * len(mean):
            break
        last = loss
    half = np.linalg.inv(root @ C)
    return half.T @ half


def _weights(weights: ArrayLike | None, n: int) -> Array:
    if weights is None:
        return np.full(n, 1 / n)
    w = np.asarray(weights, dtype=np.float64)
    if w.shape != (n,) or not np.isfinite(w).all() or (w < 0).any() or not w.sum() > 0:
        raise IsoICAError(f"weights must be ({n},), finite, not negative and not all zero, got shape {w.shape}")
    return w / w.sum()


def _power_mean(powers: Array, p: float, w: Array) -> tuple[float, float]:
    """``(E x)^{1/p}`` and its standard error by the delta method."""
    mean = float(w @ powers)
    if mean <= 0:
        return 0.0, 0.0
    spread = float(np.sqrt(np.sum((w * (powers - mean)) ** 2)))
    value = mean ** (1 / p)
    return value, value / (p * mean) * spread
