"""Additive nonlinear mechanisms: regression on Gaussian bumps of every parent, with normal-inverse-gamma evidence.

Additive noise tells the direction apart where linear Gaussian mechanisms do not; the code is not score-equivalent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..data import EnvData, Moments
from .gaussian import standardised
from .moments import NIG, Design

LINEAR_PRECISION = 0.1  # prior precision of the intercept and of the linear columns, of 1 noise variance
BUMP_PRECISION = 1.0
NOISE_SCALE = 0.5  # b0 of the inverse gamma prior of the noise variance; a0 = 1


@dataclass(frozen=True)
class Nig:
    """Evidence of y = b + Σ_p f_p(x_p) + noise with f_p a linear column and n_basis − 1 bumps; a proper code."""

    n_basis: int = 8
    name = "nig"
    is_code = True
    score_equivalent = False
    uses_anm_asymmetry = True


def design(data: EnvData, code: Nig, standardize: bool = True, precision: NDArray[np.float64] | None = None) -> Design:
    """n_basis columns a variable: the standardised variable and bumps at its quantiles from 3 to 97 %, centred."""
    scale = standardised(data.moments, standardize)[1]
    centre = data.moments.location_scale()[0] if standardize else np.zeros(data.d)
    Z = (data.rows() - centre) / scale
    k = code.n_basis
    columns = np.empty((len(Z), data.d * k))
    for j in range(data.d):
        columns[:, j * k] = Z[:, j]
        columns[:, j * k + 1 : (j + 1) * k] = _bumps(Z[:, j], k - 1)
    step = np.ones(data.d) if precision is None else np.broadcast_to(np.asarray(precision, dtype=float), (data.d,))
    prior = np.full(data.d * k, BUMP_PRECISION)
    prior[::k] = LINEAR_PRECISION
    return Design(
        kind=NIG,
        moments=Moments.by_environment(columns, data.env, data.n_envs),
        as_parent=tuple(tuple(range(j * k, (j + 1) * k)) for j in range(data.d)),
        as_child=tuple((j * k,) for j in range(data.d)),
        log2_scale=np.log2(scale) - np.log2(step),
        parent_prior=prior,
        child_prior=2 * NOISE_SCALE,
        mean_weight=LINEAR_PRECISION,
        floor=np.zeros(data.d),
    )


def _bumps(z: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """k centred Gaussian bumps (n, k) at pooled quantiles, each as wide as the mean gap between them."""
    knots = np.quantile(z, np.linspace(0.03, 0.97, k))
    width = max((knots[-1] - knots[0]) / max(k - 1, 1), 1e-6)
    bumps = np.exp(-0.5 * ((z[:, None] - knots) / width) ** 2)
    return bumps - bumps.mean(axis=0)
