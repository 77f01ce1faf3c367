"""Source laws by name or from scipy.stats, always standardised to mean 0 and variance 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from .errors import IsoICAError

Array = NDArray[np.float64]
LawLike = Any  # a name, a frozen scipy.stats distribution, a Law, or a 1-D sample

NAMES = "uniform, laplace, exponential, bernoulli, logistic, gennorm:BETA, student:NU, bimodal"


@dataclass(frozen=True)
class Law:
    """A mixture of frozen scipy distributions, shifted and scaled to mean 0 and variance 1."""

    parts: tuple[tuple[float, Any], ...]
    mean: float
    sd: float

    def rvs(self, n: int, rng: np.random.Generator) -> Array:
        """``n`` standardised draws (n,)."""
        draws = [np.asarray(d.rvs(size=n, random_state=rng), dtype=np.float64) for _, d in self.parts]
        which = rng.choice(len(draws), size=n, p=[p for p, _ in self.parts]) if len(draws) > 1 else 0
        x = draws[0] if len(draws) == 1 else np.choose(which, draws)
        return (x - self.mean) / self.sd

    def cdf(self, s: Array) -> Array:
        """Distribution function of the standardised law."""
        x = self.mean + self.sd * np.asarray(s)
        return np.asarray(sum(p * d.cdf(x) for p, d in self.parts))

    def nodes(self) -> tuple[Array, Array]:
        """Quadrature of the standardised law: nodes (m,) and weights (m,) that sum to 1."""
        pieces = [(_nodes(d), p) for p, d in self.parts]
        x = np.concatenate([nodes for (nodes, _), _ in pieces])
        w = np.concatenate([p * weights for (_, weights), p in pieces])
        return (x - self.mean) / self.sd, w / w.sum()


def _nodes(frozen: Any) -> tuple[Array, Array]:
    """Double-exponential quadrature in the quantile, half by half: kinks at the median and singular ends do no harm."""
    if isinstance(frozen.dist, stats.rv_discrete):
        low, high = int(frozen.ppf(1e-15)), int(frozen.isf(1e-15))
        x = np.arange(low, high + 1, dtype=np.float64)
        return x, frozen.pmf(x)
    t = np.linspace(-5.5, 3.4, 1201)
    step = t[1] - t[0]
    # q = (1 + tanh(π/2 sinh t))/4 in (0, 1/2), written so that q near 0 keeps its relative precision.
    a = np.pi * np.sinh(t)
    q = 0.5 / (1 + np.exp(-a))
    w = step * np.pi * np.cosh(t) * 0.5 / (np.exp(a / 2) + np.exp(-a / 2)) ** 2
    keep = (q > 1e-300) & (w > 0)
    q, w = q[keep], w[keep]
    return np.concatenate([frozen.ppf(q), frozen.isf(q)]), np.concatenate([w, w])


def as_law(law: LawLike) -> Law:
    """The standardised law of a name or a frozen scipy.stats distribution.

    Names: uniform, laplace, exponential, bernoulli (±1), logistic, gennorm:β, student:ν, bimodal.
    """
    if isinstance(law, Law):
        return law
    if isinstance(law, str):
        parts = _named(law)
    elif hasattr(law, "dist") and hasattr(law, "ppf"):
        parts = ((1.0, law),)
    else:
        raise IsoICAError(f"law {law!r} is neither a name ({NAMES}) nor a frozen scipy.stats distribution")
    mean = float(sum(p * d.mean() for p, d in parts))
    var = float(sum(p * (d.var() + (d.mean() - mean) ** 2) for p, d in parts))
    if not (np.isfinite(var) and var > 0):
        raise IsoICAError(f"law {law!r} has variance {var:g}; it must be positive and finite")
    return Law(parts, mean, float(np.sqrt(var)))


def _named(name: str) -> tuple[tuple[float, Any], ...]:
    head, _, parameter = name.partition(":")
    plain = {
        "uniform": stats.uniform,
        "laplace": stats.laplace,
        "exponential": stats.expon,
        "logistic": stats.logistic,
        "gaussian": stats.norm,
    }
    if head in plain and not parameter:
        return ((1.0, plain[head]()),)
    if name == "bernoulli":
        return ((1.0, stats.bernoulli(0.5)),)
    if name == "bimodal":
        return ((0.5, stats.norm(-1.0, 0.4)), (0.5, stats.norm(1.0, 0.4)))
    if head in ("gennorm", "student"):
        try:
            value = float(parameter)
        except ValueError:
            value = np.nan
        least = 0.0 if head == "gennorm" else 2.0
        if not value > least:
            raise IsoICAError(f"law {name!r}: write {head}:NUMBER with a number above {least:g}")
        return ((1.0, stats.gennorm(value) if head == "gennorm" else stats.t(value)),)
    raise IsoICAError(f"law {name!r} is unknown; known are {NAMES}")


def cycle(laws: LawLike | Sequence[LawLike], d: int) -> list[Law]:
    """``d`` laws from one or a shorter list, which is cycled."""
    given = [laws] if isinstance(laws, (str, Law)) or hasattr(laws, "ppf") else list(laws)
    if not given:
        raise IsoICAError("laws is empty; give at least one")
    return [as_law(given[i % len(given)]) for i in range(d)]


def nodes_of(law: LawLike) -> tuple[Array, Array]:
    """Nodes and weights of a law, or of a 1-D sample (standardised, equal weights)."""
    if isinstance(law, (str, Law)) or hasattr(law, "ppf"):
        return as_law(law).nodes()
    x = np.asarray(law, dtype=np.float64)
    if x.ndim != 1 or x.size < 2:
        raise IsoICAError(f"a sample of a law must be 1-D with at least 2 values, got shape {x.shape}")
    sd = x.std()
    if not (np.isfinite(sd) and sd > 0):
        raise IsoICAError("a sample of a law must be finite and not constant")
    return (x - x.mean()) / sd, np.full(x.size, 1 / x.size)


def generator(random_state: Any) -> np.random.Generator:
    """A Generator from None, a seed, a Generator or a RandomState."""
    if isinstance(random_state, np.random.RandomState):
        return np.random.default_rng(random_state.randint(2**31))
    return np.random.default_rng(random_state)
