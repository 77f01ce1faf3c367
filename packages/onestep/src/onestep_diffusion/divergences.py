"""The f-divergences D_f(p_data || p_student) = E_student[f(r)] and what training needs of them, as functions of log r.

r = p_data / p_student. The gradient of a diffused f-divergence is the score difference times `weight` = r^2 f''(r), or,
the same thing, the gradient through `phi` = f(r) - r f'(r) with the ratio held fixed (arXiv:2502.08005).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid, softplus
from jaxtyping import Array

from .errors import ConfigError
from .shapes import Elementwise

_LOG2 = math.log(2)


def _box_cox(l: Array, a: float) -> Array:
    """(r^a - 1) / a, which is log r at a = 0."""
    return jnp.expm1(a * l) / a if a else l


def _alpha_f(l: Array, a: float) -> Array:
    # (r^a - a r - (1 - a)) / (a (a - 1)), divided out at the removable singularity that is nearer.
    if a < 0.5:
        return (_box_cox(l, a) - jnp.expm1(l)) / (a - 1)
    return (jnp.exp(l) * _box_cox(l, a - 1) - jnp.expm1(l)) / a


def _log_cosh(x: Array) -> Array:
    """log cosh x of |x| < 1, with full relative precision at zero too, where it is x^2 / 2."""
    return jnp.log1p(2 * jnp.sinh(jnp.clip(x, -1, 1) / 2) ** 2)


def _log_mean(l: Array) -> Array:
    """log((1 + r) / 2)"""
    return jnp.where(jnp.abs(l) < 0.5, 0.5 * l + _log_cosh(0.5 * l), softplus(l) - _LOG2)


def _js_f(l: Array, a: float) -> Array:
    # Near zero f is l^2 / 8: the difference of the two terms, which are of order l, is taken by hand.
    x = jnp.clip(l, -1, 1)
    near = 0.25 * jnp.expm1(x) * x - 0.5 * (2 + jnp.expm1(x)) * _log_cosh(0.5 * x)
    return jnp.where(jnp.abs(l) < 0.5, near, -0.5 * (jnp.exp(l) * _log_mean(-l) + _log_mean(l)))


def _log_mixture(l: Array, a: float) -> Array:
    """log(a r + 1 - a)"""
    near = jnp.log1p(a * jnp.expm1(jnp.clip(l, -1, 1)))
    return jnp.where(jnp.abs(l) < 0.5, near, jnp.logaddexp(math.log(a) + l, math.log1p(-a)))


def _log_share(l: Array, a: float) -> Array:
    """log(r / (a r + 1 - a))"""
    return -jnp.logaddexp(math.log(a), math.log1p(-a) - l)


def _skew_js_f(l: Array, a: float) -> Array:
    # Near zero f is l^2 / 2, a difference of terms of order l. Its series in l: f'' - f' is the weight, for which
    # w' = w - a w^2.
    w = [1.0]
    for n in range(8):
        w.append((w[n] - a * sum(w[k] * w[n - k] for k in range(n + 1))) / (n + 1))
    c = [0.0, 0.0]
    for n, of_weight in enumerate(w):
        c.append((of_weight + (n + 1) * c[n + 1]) / ((n + 1) * (n + 2)))
    near = jnp.polyval(jnp.asarray(c[::-1], l.dtype), jnp.clip(l, -0.1, 0.1))
    far = -_log_mixture(l, a) / a + jnp.exp(l) * _log_share(l, a) / (1 - a)
    return jnp.where(jnp.abs(l) < 0.03, near, far)


class _Row(NamedTuple):
    f: Callable[[Array, float], Array]
    weight: Callable[[Array, float], Array]
    phi: Callable[[Array, float], Array]


# log(1 + r) = softplus(l), log((1 + r) / r) = softplus(-l), r / (1 + r) = sigmoid(l), (r - 1) / (r + 1) = tanh(l / 2).
_ROWS = {
    "rkl": _Row(
        f=lambda l, a: -l,
        weight=lambda l, a: jnp.ones_like(l),
        phi=lambda l, a: -l,
    ),
    "fkl": _Row(
        f=lambda l, a: l * jnp.exp(l),
        weight=lambda l, a: jnp.exp(l),
        phi=lambda l, a: -jnp.exp(l),
    ),
    "js": _Row(
        f=_js_f,
        weight=lambda l, a: 0.5 * sigmoid(l),
        phi=lambda l, a: -0.5 * softplus(l),
    ),
    "ns": _Row(
        f=lambda l, a: (1 + jnp.exp(l)) * _log_mean(-l),
        weight=lambda l, a: sigmoid(-l),
        phi=lambda l, a: softplus(-l),
    ),
    "softened_fkl": _Row(
        f=lambda l, a: (1 + jnp.exp(l)) * _log_mean(l),
        weight=lambda l, a: jnp.exp(l) * sigmoid(l),
        phi=lambda l, a: softplus(l) - jnp.exp(l),
    ),
    "jeffreys": _Row(
        f=lambda l, a: jnp.expm1(l) * l,
        weight=lambda l, a: 1 + jnp.exp(l),
        phi=lambda l, a: -l - jnp.exp(l),
    ),
    "hellinger": _Row(
        f=lambda l, a: -jnp.expm1(0.5 * l),
        weight=lambda l, a: 0.25 * jnp.exp(0.5 * l),
        phi=lambda l, a: -0.5 * jnp.exp(0.5 * l),
    ),
    "chi2": _Row(
        f=lambda l, a: jnp.expm1(l) ** 2,
        weight=lambda l, a: 2 * jnp.exp(2 * l),
        phi=lambda l, a: -jnp.exp(2 * l),
    ),
    "neyman": _Row(
        f=lambda l, a: jnp.expm1(l) * -jnp.expm1(-l),
        weight=lambda l, a: 2 * jnp.exp(-l),
        phi=lambda l, a: 2 * jnp.exp(-l),
    ),
    "lecam": _Row(
        f=lambda l, a: 0.5 * jnp.expm1(l) * jnp.tanh(0.5 * l),
        weight=lambda l, a: 4 * sigmoid(l) ** 2 * sigmoid(-l),
        phi=lambda l, a: 0.5 - 2 * sigmoid(l) ** 2,
    ),
    "alpha": _Row(
        f=_alpha_f,
        weight=lambda l, a: jnp.exp(a * l),
        phi=lambda l, a: -_box_cox(l, a),
    ),
    "skew_js": _Row(
        f=_skew_js_f,
        weight=lambda l, a: jnp.exp(_log_share(l, a)),
        phi=lambda l, a: -_log_mixture(l, a) / a,
    ),
}
_BOUNDED = {"rkl", "js", "ns", "lecam", "skew_js"}


@dataclass(frozen=True)
class Divergence:
    """One f-divergence; build it with `divergence`.

    All methods are elementwise in log_r = log p_data - log p_student (nats, any shape) and keep its floating dtype.
    They are finite wherever the exact value is representable.
    """

    name: str
    alpha: float | None = None

    def f(self, log_r: Elementwise) -> Array:
        """f(r), whose mean over student samples is the divergence. For `alpha`, f at 0 and 1 has a term r - 1 more."""
        return self._evaluate("f", log_r)

    def weight(self, log_r: Elementwise) -> Array:
        """r^2 f''(r) >= 0, the scalar that multiplies the score difference in the gradient."""
        return self._evaluate("weight", log_r)

    def phi(self, log_r: Elementwise) -> Array:
        """f(r) - r f'(r) up to a constant; its derivative with respect to log r is -weight."""
        return self._evaluate("phi", log_r)

    @property
    def bounded(self) -> bool:
        """Whether the weight is bounded; if not, its mean over a batch rests on few samples and wants normalising."""
        return self.name in _BOUNDED or (self.name == "alpha" and self.alpha == 0)

    def _evaluate(self, column: str, log_r: Array) -> Array:
        l = jnp.asarray(log_r)
        l = l.astype(jnp.result_type(l, 0.0))
        out: jax.Array = getattr(_ROWS[self.name], column)(l, self.alpha)
        return out


def list_divergences() -> tuple[str, ...]:
    """The names that `divergence` knows."""
    return tuple(_ROWS)


def divergence(name: str, *, alpha: float | None = None) -> Divergence:
    """The divergence called `name`.

    rkl        KL(student||data)           fkl        KL(data||student)            jeffreys  their sum
    js         Jensen-Shannon, <= log 2    ns         2 KL(m||data), the non-saturating GAN loss; m the even mixture
    lecam      <= 1                        softened_fkl   2 KL(m||student)         hellinger 1 - affinity, <= 1
    chi2       Pearson                     neyman     Neyman
    alpha      Amari's family, alpha real: 0 is rkl, 1 is fkl, 2 is chi2/2, -1 is neyman/2, 1/2 is 4 hellinger
    skew_js    KL(student||m)/alpha + KL(data||m)/(1-alpha), m = alpha data + (1-alpha) student, 0 < alpha < 1;
               tends to fkl for alpha -> 0 and to rkl for alpha -> 1

    Raises ConfigError (a ValueError) for an unknown name and for an alpha that is missing, illegal or not wanted.
    """
    if name not in _ROWS:
        raise ConfigError(f"divergence: {name!r} is not one of {', '.join(_ROWS)}")
    if alpha is not None and not isinstance(alpha, Real):
        raise ConfigError(f"alpha has to be a number; got {alpha!r}")
    if name == "alpha" and (alpha is None or not math.isfinite(alpha)):
        raise ConfigError(f"divergence 'alpha' needs alpha, any real number (0 is rkl, 1 is fkl); got {alpha}")
    if name == "skew_js" and not (alpha is not None and 0 < alpha < 1):
        raise ConfigError(f"divergence 'skew_js' needs alpha between 0 and 1, both excluded; got {alpha}")
    if name not in ("alpha", "skew_js") and alpha is not None:
        raise ConfigError(f"divergence {name!r} takes no alpha (only 'alpha' and 'skew_js' do); got {alpha}")
    return Divergence(name, None if alpha is None else float(alpha))
