"""Linear Gaussian mechanisms: the Bayesian evidence (BGe) and the BIC of a block of environments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..data import EnvData, Moments
from ..errors import DegenerateError
from .moments import BGE, BIC, Design, moment_bits, packed

VARIANCE_FLOOR = 1e-12  # of standardised data


@dataclass(frozen=True)
class Bge:
    """Evidence of the Normal–Wishart model as a quotient p(D_{S∪v}) / p(D_S), hence score-equivalent.

    Prior: mean 0 with weight α_μ, Wishart with α_μ + 1 + l degrees of freedom for l columns and the scale matrix t·1,
    t = α_μ²/(α_μ + 1) (Geiger & Heckerman 2002; Kuipers, Moffa & Heckerman 2014). Data should be standardised.
    """

    alpha_mu: float = 1.0
    name = "bge"
    is_code = True
    score_equivalent = True
    kind = BGE

    @property
    def prior(self) -> float:
        return self.alpha_mu**2 / (self.alpha_mu + 1)

    def stats(self, X: NDArray[np.float64]) -> Moments:
        """What the code needs of rows X (n, d)."""
        return Moments.of(np.asarray(X, dtype=float))

    def bits(self, stats: Moments, node: int, parents: tuple[int, ...]) -> float:
        """Bits of one block's column `node` given its columns `parents`."""
        return _bits(self.kind, stats, node, parents, self.prior, self.alpha_mu, 0.0)


@dataclass(frozen=True)
class GaussianBic:
    """(n/2)·log2(2πe·σ̂²) + ((|S|+2)/2)·log2 n with the intercept always fitted; inf where n < |S| + 3."""

    floor: float = VARIANCE_FLOOR
    name = "bic"
    is_code = False
    score_equivalent = True
    kind = BIC
    prior = 0.0
    alpha_mu = 0.0

    def stats(self, X: NDArray[np.float64]) -> Moments:
        """What the code needs of rows X (n, d)."""
        return Moments.of(np.asarray(X, dtype=float))

    def bits(self, stats: Moments, node: int, parents: tuple[int, ...]) -> float:
        """Bits of one block's column `node` given its columns `parents`."""
        return _bits(self.kind, stats, node, parents, 0.0, 0.0, self.floor)


def _bits(
    kind: int, stats: Moments, node: int, parents: tuple[int, ...], prior: float, mean_weight: float, floor: float
) -> float:
    columns = [*parents, node]
    args = (kind, len(parents), np.full(len(columns), prior), mean_weight, floor)
    return float(moment_bits(packed(stats.columns(columns)), args))


def design(
    data: EnvData, code: Bge | GaussianBic, standardize: bool = True, precision: NDArray[np.float64] | None = None
) -> Design:
    """The columns of the data themselves, standardised by the variance within environments.

    precision : (d,) resolution δ of each variable in its own units; bits are then those of the grid of step δ.
    """
    moments, scale = standardised(data.moments, standardize)
    if isinstance(code, GaussianBic):
        refuse_collinear(moments, data.names)
    step = np.ones(data.d) if precision is None else np.broadcast_to(np.asarray(precision, dtype=float), (data.d,))
    floor = np.zeros(data.d) if precision is None else (step / scale) ** 2 / 12
    own = tuple((j,) for j in range(data.d))
    return Design(
        kind=code.kind,
        moments=moments,
        as_parent=own,
        as_child=own,
        log2_scale=np.log2(scale) - np.log2(step),
        parent_prior=np.full(data.d, code.prior),
        child_prior=code.prior,
        mean_weight=code.alpha_mu,
        floor=np.maximum(floor, VARIANCE_FLOOR),
    )


def standardised(moments: Moments, standardize: bool) -> tuple[Moments, NDArray[np.float64]]:
    """The moments of standardised columns, and the scale (columns,) that they were divided by."""
    if not standardize:
        return moments, np.ones(moments.mean.shape[1])
    centre, scale = moments.location_scale()
    return moments.rescaled(centre, scale), scale


def refuse_collinear(moments: Moments, names: tuple[object, ...]) -> None:
    """Raise DegenerateError if a column is an exact linear function of those before it, over all rows."""
    pooled = moments.merged([range(len(moments.n))])[0]
    if pooled.n <= len(names) + 1:
        return
    root = np.sqrt(np.diag(pooled.scatter))
    R = pooled.scatter / np.outer(root, root)
    for j in range(1, len(names)):
        fit, *_ = np.linalg.lstsq(R[:j, :j], R[:j, j], rcond=1e-12)
        if 1 - R[j, :j] @ fit < 1e-10:
            on = ", ".join(repr(names[i]) for i in np.flatnonzero(np.abs(fit) > 1e-6)[:8])
            raise DegenerateError(
                f"column {names[j]!r} is an exact linear function of {on}: leave it out, or use code 'bge'"
            )


def header_bits(d: int) -> float:
    """The location and scale constants of d variables, two doubles each."""
    return 64.0 * 2 * d
