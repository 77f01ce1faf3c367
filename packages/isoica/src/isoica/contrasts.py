"""Contrast functions G with g = G': built-in, the user's own, and the spline of least worst-case bias."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline, PPoly

from .errors import IsoICAError

Array = NDArray[Any]
Function = Callable[[Array], Array]


@dataclass(frozen=True)
class Contrast:
    """A contrast: what ICA maximises or minimises over directions is ``E G(w·Z)``.

    Parameters
    ----------
    G, g, dg : elementwise functions of a float array: the contrast, its derivative and its second derivative.
    L1 : sup |g'|; infinite where the certificate of ``theory.certificate`` does not apply.
    name : shown in reports and model files.
    fused : optional ``(Y (r, b), weights (b,) or None) -> g(Y), sum of w g'(Y) (r,), sum of w G(Y) (r,)`` in one go.
    """

    G: Function
    g: Function
    dg: Function
    L1: float = np.inf
    name: str = "user"
    fused: Callable[[Array, Array | None], tuple[Array, Array, Array]] | None = None

    def sums(self, Y: Array, weights: Array | None) -> tuple[Array, Array, Array]:
        """``g(Y)`` (r, b) and the weighted sums of ``g'(Y)`` and ``G(Y)`` over the last axis (r,)."""
        if self.fused is not None:
            return self.fused(Y, weights)
        return np.asarray(self.g(Y), dtype=Y.dtype), _sum(self.dg(Y), weights), _sum(self.G(Y), weights)


def rows_of(contrasts: Sequence[Contrast], which: str, Y: Array) -> Array:
    """``G``, ``g`` or ``dg`` of every row of ``Y`` (k, b) under its own contrast."""
    if all(c is contrasts[0] for c in contrasts):
        return np.asarray(getattr(contrasts[0], which)(Y))
    return np.stack([getattr(c, which)(y) for c, y in zip(contrasts, Y, strict=True)])


def _sum(values: Array, weights: Array | None) -> Array:
    return values.sum(axis=-1, dtype=np.float64) if weights is None else np.asarray(values @ weights, dtype=np.float64)


def _logcosh(u: Array) -> Array:
    a = np.abs(u)
    return a + np.log(1 + np.exp(-2 * a)) - np.log(2.0)  # as exact as log1p after the last subtraction, and faster


def _sech2(u: Array) -> Array:
    return 1 - np.tanh(u) ** 2


def _logcosh_sums(Y: Array, weights: Array | None) -> tuple[Array, Array, Array]:
    # log cosh u = |u| - log(1 + |tanh u|): one transcendental function gives all three.
    g = np.tanh(Y)
    plus = np.abs(g)
    plus += 1
    if weights is not None:
        return g, _sum(1 - g * g, weights), _sum(np.abs(Y) - np.log(plus), weights)
    squares = np.einsum("...i,...i->...", g, g).astype(np.float64)
    # A sum of logarithms is the logarithm of a product, and 1 <= plus <= 2: 2^6 factors overflow in no precision.
    left, logs = plus, np.zeros(Y.shape[:-1])
    for _ in range(6):
        half = left.shape[-1] // 2
        if half < 32:
            break
        if left.shape[-1] % 2:
            logs = logs + np.log(left[..., -1].astype(np.float64))
        left = left[..., :half] * left[..., half : 2 * half]
    logs = logs + np.log(left).sum(axis=-1, dtype=np.float64)
    return g, Y.shape[-1] - squares, np.abs(Y).sum(axis=-1, dtype=np.float64) - logs


def _bell(u: Array) -> Array:
    return np.exp(-(u * u) / 2)


def _bell_slope(u: Array) -> Array:
    return u * _bell(u)


def _bell_curvature(u: Array) -> Array:
    return (1 - u * u) * _bell(u)


def _minus_bell(u: Array) -> Array:
    return -_bell(u)


def _quartic(u: Array) -> Array:
    return (u * u) ** 2 / 4


def _cube(u: Array) -> Array:
    return u * u * u


def _three_squares(u: Array) -> Array:
    return 3 * u * u


def _third_cube(u: Array) -> Array:
    return u * u * u / 3


def _twice(u: Array) -> Array:
    return 2 * u


def _gauss_sums(Y: Array, weights: Array | None) -> tuple[Array, Array, Array]:
    bell = _bell(Y)
    g = Y * bell
    return g, _sum(bell - Y * g, weights), -_sum(bell, weights)


LOGCOSH = Contrast(_logcosh, np.tanh, _sech2, 1.0, "logcosh", _logcosh_sums)
CUBE = Contrast(_quartic, _cube, _three_squares, np.inf, "cube")
GAUSS = Contrast(_minus_bell, _bell_slope, _bell_curvature, 1.0, "gauss", _gauss_sums)
SKEW = Contrast(_third_cube, np.square, _twice, np.inf, "skew")
BUILT_IN = {c.name: c for c in (LOGCOSH, CUBE, GAUSS, SKEW)}

ContrastLike = str | Contrast | Sequence[str | Contrast]


def resolve(contrast: ContrastLike, k: int) -> list[Contrast]:
    """One contrast per component from a name, an object, or a sequence of ``k`` of either."""
    if isinstance(contrast, Contrast):
        return [contrast] * k
    if isinstance(contrast, str):
        if contrast not in BUILT_IN:
            names = ", ".join([*BUILT_IN, "minimax"])
            raise IsoICAError(f"contrast {contrast!r} is unknown here; use one of {names}, or a Contrast object")
        return [BUILT_IN[contrast]] * k
    if not isinstance(contrast, Sequence) or len(contrast) != k:
        raise IsoICAError(f"contrast must be a name, a Contrast or a sequence of {k} of them, got {contrast!r}")
    return [resolve(c, 1)[0] for c in contrast]


def reflect(contrast: Contrast) -> Contrast:
    """The contrast that treats ``-S`` as this one treats ``S``; itself where g is odd or even."""
    u = np.array([0.1, 0.35, 0.8, 1.3, 2.1, 3.4])
    plus, minus = np.asarray(contrast.g(u)), np.asarray(contrast.g(-u))
    if np.allclose(minus, -plus, rtol=1e-12, atol=0) or np.allclose(minus, plus, rtol=1e-12, atol=0):
        return contrast
    G, g, dg = (partial(_mirror, f, sign) for f, sign in ((contrast.G, 1), (contrast.g, -1), (contrast.dg, 1)))
    return Contrast(G, g, dg, contrast.L1, contrast.name)


def _mirror(f: Function, sign: int, u: Array) -> Array:
    return sign * f(-u)


def bias_weight_for(n: float, eta: float) -> float:
    """The ``bias_weight`` whose minimax contrast minimises variance plus squared worst-case bias, σ²/n + η²κ².

    With one-unit ``σ² = γ/τ²`` and ``κ² = (γ+v)/τ²`` the sum is ``(1/n + η²)(γ + bv)/τ²`` at ``b = η²/(1/n + η²)``.
    """
    return eta * eta / (1 / n + eta * eta)


# Quantile levels of the knots, denser in the tails, where g has to bend for skewed and heavy-tailed sources.
_KNOTS = np.concatenate([[0.0, 0.001, 0.005, 0.02], np.linspace(0.06, 0.94, 12), [0.98, 0.995, 0.999, 1.0]])


def minimax_contrast(x: Array, weights: Array | None = None, bias_weight: float = 1.0, ridge: float = 1e-8) -> Contrast:
    """The natural cubic spline g of least worst-case sensitivity for the law of the standardised sample ``x`` (n,).

    Minimises ``(γ + bias_weight·v)/τ²``: with the cardinal splines φ, ``A_ab = Cov(φ_a-μ_aS, φ_b-μ_bS) +
    bias_weight·Cov(φ_a', φ_b')`` and ``l_a = E[Sφ_a-φ_a']``, the minimiser is ``A^{-1} l``. Then τ = α > 0.
    """
    x = np.asarray(x, dtype=np.float64)
    w = np.full(x.size, 1 / x.size) if weights is None else np.asarray(weights, np.float64) / np.sum(weights)
    knots = _knots(x, w)
    spline = CubicSpline(knots, np.eye(len(knots)), bc_type="natural")
    phi, dphi = _value(spline, x), _slope(spline, x)
    mu, rho = (w * x) @ phi, w @ dphi
    flat = phi - w @ phi - np.outer(x, mu)
    flat_d = dphi - rho
    A = flat.T @ (w[:, None] * flat) + bias_weight * flat_d.T @ (w[:, None] * flat_d)
    coefficients = np.linalg.solve(A + ridge * np.trace(A) * np.eye(len(A)), mu - rho)
    # A multiple of S changes nothing on the sphere: centre the range of g', which makes L1 small, and scale to L1 = 1.
    slope = CubicSpline(knots, coefficients, bc_type="natural")(np.linspace(knots[0], knots[-1], 2001), 1)
    middle, half = (slope.max() + slope.min()) / 2, max((slope.max() - slope.min()) / 2, np.finfo(float).tiny)
    values = (coefficients - middle * knots) / half
    g = CubicSpline(knots, values, bc_type="natural")
    g = CubicSpline(knots, values - g(0.0), bc_type="natural")
    return Contrast(partial(_integral, g, g.antiderivative()), partial(_value, g), partial(_slope, g), 1.0, "minimax")


def _knots(x: Array, w: Array) -> Array:
    order = np.argsort(x)
    levels = (np.cumsum(w[order]) - w[order] / 2) / w.sum()
    # The outermost of 10^4 samples: law nodes reach far beyond any sample.
    knots = np.interp(np.clip(_KNOTS, 1e-4, 1 - 1e-4), levels, x[order])
    knots = knots[np.concatenate([[True], np.diff(knots) > 1e-3])]
    return knots if len(knots) >= 8 else np.linspace(x.min() - 0.5, x.max() + 0.5, 12)


def _value(spline: CubicSpline, u: Array) -> Array:
    """The spline, continued linearly beyond its knots; like its slope and integral below."""
    inside = np.clip(u, spline.x[0], spline.x[-1])
    value, beyond = spline(inside), u - inside
    if np.any(beyond):
        value = value + spline(inside, 1) * (beyond if value.ndim == beyond.ndim else beyond[..., None])
    return np.asarray(value)


def _slope(spline: CubicSpline, u: Array) -> Array:
    return np.asarray(spline(np.clip(u, spline.x[0], spline.x[-1]), 1))


def _integral(spline: CubicSpline, antiderivative: PPoly, u: Array) -> Array:
    inside = np.clip(u, spline.x[0], spline.x[-1])
    beyond = u - inside
    return np.asarray(antiderivative(inside) + beyond * (spline(inside) + 0.5 * beyond * spline(inside, 1)))
