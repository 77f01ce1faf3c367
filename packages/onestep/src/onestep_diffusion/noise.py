"""Noise levels: the laws that training draws sigma from, and the grid that sampling walks down (EDM, Karras 2022)."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, fields
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array

from .errors import ConfigError
from .shapes import Elementwise, Grid


def check_sigma(sigma: Any, zero: bool = False) -> None:
    """Raise ConfigError unless every noise level is positive, or zero where that may be, and finite.

    Traced values pass: they have no value yet.
    """
    if isinstance(sigma, jax.core.Tracer):
        return
    values = np.asarray(sigma, dtype=float)
    wrong = values[~((values >= 0 if zero else values > 0) & np.isfinite(values))]
    if wrong.size:
        wanted = "zero or positive, and finite" if zero else "positive and finite"
        raise ConfigError(f"sigma has to be {wanted}; got {wrong.flat[0]}")


def karras_sigmas(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Grid:
    """The (n,) grid from sigma_max down to sigma_min that is even in sigma^(1/rho) (EDM, eq. 5); no zero at its end.

    Raises ConfigError unless n >= 1 and 0 < sigma_min < sigma_max and rho > 0; n = 1 gives sigma_max alone.
    """
    if not isinstance(n, int | np.integer) or n < 1:
        raise ConfigError(f"n has to be an integer of at least 1; got {n!r}")
    law = Karras(1.0, sigma_min, sigma_max, rho)
    return law.quantile(jnp.linspace(1.0, 0.0, n))


@dataclass(frozen=True)
class SigmaLaw:
    """A probability law on noise levels, given by its quantile function. `str(law)` is what `parse_sigma_law` reads."""

    def quantile(self, u: Elementwise) -> Array:
        """The level below which a share u in [0, 1] of the draws lies; any shape."""
        raise NotImplementedError

    def sample(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Independent draws of the given shape, in jax's default floating dtype."""
        return self.quantile(jax.random.uniform(key, shape))

    def __str__(self) -> str:
        name = next(name for name, law in _LAWS.items() if type(self) is law)
        return f"{name}:{','.join(map(str, astuple(self)))}"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, Real) or not math.isfinite(value):
                raise ConfigError(f"{type(self).__name__}: {field.name} has to be a finite number; got {value!r}")
            object.__setattr__(self, field.name, float(value))  # numpy's numbers do not go into JSON

    def _check(self, **legal: bool) -> None:
        for name, holds in legal.items():
            if not holds:
                raise ConfigError(f"{type(self).__name__}: {name}={getattr(self, name)} is out of range in {self!r}")


@dataclass(frozen=True)
class LogNormal(SigmaLaw):
    """log sigma ~ N(mean, std^2), clipped to [low, high]; the defaults are EDM's training law."""

    mean: float = -1.2
    std: float = 1.2
    low: float = 0.002
    high: float = 80.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(std=self.std > 0, low=self.low > 0, high=self.high > self.low)

    def quantile(self, u: Elementwise) -> Array:
        """exp(mean + std * normal quantile), clipped."""
        return jnp.clip(jnp.exp(self.mean + self.std * ndtri(jnp.asarray(u, float))), self.low, self.high)


@dataclass(frozen=True)
class LogUniform(SigmaLaw):
    """log sigma uniform between log low and log high."""

    low: float = 0.002
    high: float = 80.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(low=self.low > 0, high=self.high > self.low)

    def quantile(self, u: Elementwise) -> Array:
        """low^(1-u) high^u."""
        return self.low * jnp.exp(jnp.asarray(u, float) * math.log(self.high / self.low))


@dataclass(frozen=True)
class Karras(SigmaLaw):
    """sigma^(1/rho) uniform up to the share t_max of its range; SiD's law. t = 0 is sigma_min, 1 sigma_max."""

    t_max: float = 0.8
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(
            t_max=0 < self.t_max <= 1,
            sigma_min=self.sigma_min > 0,
            sigma_max=self.sigma_max > self.sigma_min,
            rho=self.rho > 0,
        )

    def quantile(self, u: Elementwise) -> Array:
        """Linear in u between sigma_min^(1/rho) and the point t_max of the way up, to the power rho."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (low + self.t_max * jnp.asarray(u, float) * (high - low)) ** self.rho


@dataclass(frozen=True)
class Fixed(SigmaLaw):
    """One level only."""

    value: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(value=self.value > 0)

    def quantile(self, u: Elementwise) -> Array:
        """The level, in the shape of u."""
        return jnp.full(jnp.shape(u), self.value)


_LAWS: dict[str, type[SigmaLaw]] = {
    "lognormal": LogNormal,
    "loguniform": LogUniform,
    "karras": Karras,
    "fixed": Fixed,
}


def parse_sigma_law(text: str) -> SigmaLaw:
    """Read `lognormal`, `lognormal:-1.8,0.6`, `loguniform:0.01,10`, `karras`, `fixed:2.5`: a name, then its fields.

    Raises ConfigError for an unknown name and for numbers that do not fit it.
    """
    name, _, numbers = text.partition(":")
    law = _LAWS.get(name)
    if law is None:
        raise ConfigError(f"sigma law {text!r}: {name!r} is not one of {', '.join(_LAWS)}")
    try:
        values = [float(number) for number in numbers.split(",")] if numbers else []
        return law(*values)
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        names = ",".join(field.name for field in fields(law))
        raise ConfigError(f"sigma law {text!r}: write {name}:{names} with numbers") from None
