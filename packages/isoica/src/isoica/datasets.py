"""Sources, perturbed linear and near-isometric mixtures, images, recordings, and flows that no statistic can see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import Bunch

from .errors import IsoICAError
from .factors import load_dsprites, load_shapes3d
from .images import make_images
from .laws import LawLike, as_law, cycle, generator
from .mixings import DeepIsometry, make_near_isometric
from .perturbations import canonical_part, mixing_matrix, rms
from .signals import load_image_patches, load_speech, saturating_microphones

__all__ = [
    "DeepIsometry", "canonical_part", "load_dsprites", "load_image_patches", "load_shapes3d", "load_speech",
    "make_images", "make_near_isometric", "make_perturbed_linear", "make_sources", "measure_preserving_flow",
    "saturating_microphones",
]  # fmt: skip

Array = NDArray[np.float64]
MIXED = ("uniform", "laplace", "exponential")


def make_sources(n: int, laws: LawLike | Sequence[LawLike] = MIXED, random_state: Any = None) -> Array:
    """``n`` draws of independent sources, one column per law, mean 0 and variance 1 in law.

    Laws: any frozen scipy.stats distribution or uniform, laplace, exponential, bernoulli (±1), logistic, gennorm:β,
    student:ν, bimodal.
    """
    rng = generator(random_state)
    given = [laws] if isinstance(laws, str) or hasattr(laws, "ppf") else list(laws)
    return np.stack([law.rvs(n, rng) for law in cycle(given, len(given))], axis=1)


def make_perturbed_linear(
    n: int,
    d: int = 4,
    laws: LawLike | Sequence[LawLike] = MIXED,
    eta: float = 0.1,
    perturbation: str | Callable[[Array], Array] = "mlp",
    canonical: bool = True,
    random_state: Any = None,
) -> Bunch:
    """``X = A S + η h(S)`` with a random well-conditioned square A.

    Parameters
    ----------
    laws : one per source; a shorter list is cycled.
    perturbation : "mlp" (random one-hidden-layer network), "quadratic", "saturation" (cubic compression of the mixed
        channels), each scaled to ``‖A⁻¹h‖ = 1``, or a callable (n, d) -> (n, d) whose values are h as they are.
    canonical : take mean and linear part out of h, so that A is what ICA can be compared with.

    Returns
    -------
    Bunch
        X (n, d), S (n, d), A (d, d), h (n, d) and k_norm = ‖A⁻¹h‖ (root mean square of the vector).
    """
    rng = generator(random_state)
    S = np.stack([law.rvs(n, rng) for law in cycle(laws, d)], axis=1)
    A = mixing_matrix(d, rng)
    if callable(perturbation):
        h = np.asarray(perturbation(S), dtype=np.float64)
        if h.shape != S.shape:
            raise IsoICAError(f"the perturbation must return shape {S.shape}, got {h.shape}")
    elif perturbation == "mlp":
        width = 4 * d
        hidden = np.tanh(S @ rng.normal(size=(d, width)) / np.sqrt(d) + rng.normal(size=width))
        h = hidden @ rng.normal(size=(width, d))
    elif perturbation == "quadratic":
        i, j = np.triu_indices(d)
        h = (S[:, i] * S[:, j]) @ rng.normal(size=(len(i), d))
    elif perturbation == "saturation":
        mixed = S @ A.T
        h = np.tanh(mixed) - mixed
    else:
        raise IsoICAError(f'perturbation={perturbation!r}; use "mlp", "quadratic", "saturation" or a callable')
    if canonical:
        h = canonical_part(S, h)
    k_norm = rms(np.linalg.solve(A, h.T).T)
    if not callable(perturbation) and k_norm > 0:
        h, k_norm = h / k_norm, 1.0
    return Bunch(X=S @ A.T + eta * h, S=S, A=A, h=h, k_norm=k_norm)


def measure_preserving_flow(S: ArrayLike, eta: float, law: LawLike = "uniform", steps: int = 200) -> Array:
    """Move sources along a divergence-free field: their joint law stays what it was, yet every source changes.

    Columns are taken in pairs (a last odd one stays). In the ranks ``u = F(s)`` of a pair the stream function is
    ``[u₁(1-u₁) u₂(1-u₂)]²``, whose field vanishes at the edge of the square; Runge-Kutta of order 4, ``steps`` steps.
    The flow time makes the root mean square displacement of a row ``eta``; a negative ``eta`` flows back.

    Raises IsoICAError where the displacement cannot be reached or a source leaves the support of the law.
    """
    S = np.asarray(S, dtype=np.float64)
    if S.ndim != 2 or S.shape[1] < 2:
        raise IsoICAError(f"a flow needs at least two sources (n, d >= 2), got shape {S.shape}")
    if steps < 1:
        raise IsoICAError(f"steps={steps}; need at least 1")
    source = as_law(law)
    if len(source.parts) > 1:
        raise IsoICAError("the flow needs a law with a quantile function, not a mixture")
    frozen = source.parts[0][1]
    even = S.shape[1] - S.shape[1] % 2
    U = np.clip(source.cdf(S[:, :even]), 0.0, 1.0)
    outside = np.abs((frozen.ppf(U) - source.mean) / source.sd - S[:, :even]) > 1e-6
    if np.any(outside):
        raise IsoICAError(f"{int(outside.any(axis=1).sum())} rows lie outside the support of the standardised law")

    def velocity(u: Array) -> Array:
        a, b = u[:, 0::2], u[:, 1::2]
        fa, fb = a * (1 - a), b * (1 - b)
        out = np.empty_like(u)
        out[:, 0::2] = 2 * fa**2 * fb * (1 - 2 * b)
        out[:, 1::2] = -2 * fb**2 * fa * (1 - 2 * a)
        return out

    def flow(time: float, steps: int) -> Array:
        u, h = U.copy(), time / steps
        for _ in range(steps):
            k1 = velocity(u)
            k2 = velocity(u + h / 2 * k1)
            k3 = velocity(u + h / 2 * k2)
            u = u + h / 6 * (k1 + 2 * k2 + 2 * k3 + velocity(u + h * k3))
        moved = S.copy()
        moved[:, :even] = (frozen.ppf(u) - source.mean) / source.sd
        return moved

    if eta == 0:
        return S.copy()
    from scipy.optimize import brentq

    coarse = max(8, steps // 10)  # enough to find the time

    def miss(time: float) -> float:
        return rms(flow(np.sign(eta) * time, coarse) - S) - abs(eta)

    speed = rms(flow(1e-3, 1) - S) / 1e-3
    high = abs(eta) / speed if speed > 0 else np.inf
    for _ in range(6):
        if not np.isfinite(high) or miss(high) >= 0:
            break
        high *= 1.5
    if not np.isfinite(high) or miss(high) < 0:
        raise IsoICAError(f"a displacement of eta={eta} cannot be reached; use a smaller one")
    time = np.sign(eta) * brentq(miss, 0.0, high, xtol=1e-9 * high, rtol=1e-9)
    time *= abs(eta) / rms(flow(time, steps) - S)
    return flow(float(time), steps)
