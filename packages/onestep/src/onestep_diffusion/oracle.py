"""Exact answers: Gaussian mixtures, whose noised densities, scores, denoisers and log ratios have closed forms.

Everything is a function of x at noise level sigma, x_sigma = x + sigma N(0, I); sigma = 0 is the law itself.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import logsumexp, softmax
from jaxtyping import Array

from .errors import ConfigError, DataError
from .noise import check_sigma
from .shapes import Levels, PerSample, Points


class Oracle(Protocol):
    """What the log ratio needs of a law."""

    def log_prob(self, x: Points, sigma: Levels) -> PerSample:
        """Log density of the law noised to sigma."""
        ...


class GaussianMixture:
    """sum_k weights_k N(means_k, scales_k^2 I) on R^d.

    Args:
        weights: (K,) positive; they are normalised to sum one.
        means: (K, d).
        scales: (K,) standard deviations >= 0. Zero is a point mass, which has a density only at sigma > 0.

    Raises ConfigError for shapes that do not fit together and numbers out of range; traced numbers are not looked at.
    """

    def __init__(self, weights: Any, means: Any, scales: Any) -> None:
        self.weights, self.means, self.scales = (jnp.asarray(v, float) for v in (weights, means, scales))
        if self.means.ndim != 2 or not self.weights.shape == self.scales.shape == self.means.shape[:1]:
            shapes = f"{self.weights.shape}, {self.means.shape}, {self.scales.shape}"
            raise ConfigError(f"weights, means, scales have to be (K,), (K, d), (K,); got {shapes}")
        if not any(isinstance(v, jax.core.Tracer) for v in (self.weights, self.means, self.scales)):
            _check("weights", self.weights, "positive and finite", self.weights > 0)
            _check("means", self.means, "finite", True)
            _check("scales", self.scales, "zero or more and finite", self.scales >= 0)
        self.weights = self.weights / self.weights.sum()

    def sample(self, key: Array, n: int) -> Points:
        """(n, d) independent draws."""
        which, noise = jax.random.split(key)
        k = jax.random.categorical(which, jnp.log(self.weights), shape=(n,))
        return self.means[k] + self.scales[k, None] * jax.random.normal(noise, (n, self.means.shape[1]))

    def log_prob(self, x: Points, sigma: Levels = 0.0) -> PerSample:
        """Log density in nats at x (n, d)."""
        return logsumexp(self._joint(x, sigma)[0], axis=1)

    def score(self, x: Points, sigma: Levels = 0.0) -> Points:
        """Gradient of log_prob: sum_k P(k | x) (mu_k - x) / (s_k^2 + sigma^2)."""
        joint, variance = self._joint(x, sigma)
        pull = softmax(joint, axis=1) / variance
        return _matmul(pull, self.means) - pull.sum(1, keepdims=True) * x

    def denoise(self, x: Points, sigma: Levels) -> Points:
        """E[clean | noised = x]: sum_k P(k | x) (sigma^2 mu_k + s_k^2 x) / (s_k^2 + sigma^2)."""
        joint, variance = self._joint(x, sigma)
        share = softmax(joint, axis=1) / variance
        noise = jnp.reshape(jnp.asarray(sigma, float), (-1, 1)) ** 2
        return noise * _matmul(share, self.means) + (share * self.scales**2).sum(1, keepdims=True) * x

    def _joint(self, x: Points, sigma: Levels) -> tuple[Array, Array]:
        """log P(k, x) and the variances; the distances are differences squared, as small sigma needs."""
        check_sigma(sigma, zero=True)
        if x.ndim != 2 or x.shape[1] != self.means.shape[1]:
            raise DataError(f"points have to be (n, {self.means.shape[1]}); got {x.shape}")
        variance = self.scales**2 + jnp.reshape(jnp.asarray(sigma, float), (-1, 1)) ** 2
        square = ((x[:, None, :] - self.means) ** 2).sum(-1)
        log_normal = -0.5 * (square / variance + x.shape[1] * jnp.log(2 * math.pi * variance))
        return jnp.log(self.weights) + log_normal, variance


class EmpiricalOracle:
    """The uniform law on m given points, i.e. a Parzen window of width sigma: exact scores of a finite data set.

    O(n m) time and O(chunk m) memory for n query points, whose results do not depend on `chunk`.

    Args:
        x: (m, d) finite.
        chunk: query points handled at once.
    """

    def __init__(self, x: Any, chunk: int = 256) -> None:
        points = np.asarray(x)
        if points.ndim != 2 or len(points) == 0 or not np.isfinite(points).all():
            raise DataError(f"x has to be a (m, d) array of finite numbers with m > 0; got shape {points.shape}")
        self.points, self.chunk = jnp.asarray(points, float), chunk

    def sample(self, key: Array, n: int) -> Points:
        """(n, d) draws with replacement."""
        return self.points[jax.random.randint(key, (n,), 0, len(self.points))]

    def log_prob(self, x: Points, sigma: Levels) -> PerSample:
        """Log density in nats at x (n, d) of the points noised to sigma > 0."""
        check_sigma(sigma)
        return _by_row("log_prob", self.points, x, sigma, self.chunk)

    def score(self, x: Points, sigma: Levels) -> Points:
        """Gradient of log_prob."""
        check_sigma(sigma)
        return _by_row("score", self.points, x, sigma, self.chunk)

    def denoise(self, x: Points, sigma: Levels) -> Points:
        """The mean of the points, weighted by how likely each is to have become x."""
        check_sigma(sigma)
        return _by_row("denoise", self.points, x, sigma, self.chunk)


@partial(jax.jit, static_argnames=("method", "chunk"))
def _by_row(method: str, points: Points, x: Points, sigma: Levels, chunk: int) -> Array:
    """A method of the mixture of points without width. XLA fuses differences, squares and sum: no (chunk, m, d)."""
    law = GaussianMixture(jnp.ones(len(points)), points, jnp.zeros(len(points)))
    rows = (x, jnp.broadcast_to(jnp.asarray(sigma, float), x.shape[:1]))
    return jax.lax.map(lambda row: getattr(law, method)(row[0][None], row[1][None])[0], rows, batch_size=chunk)


def exact_log_ratio(p_data: Oracle, p_student: Oracle, x: Points, sigma: Levels) -> PerSample:
    """log p_data^sigma(x) - log p_student^sigma(x), (n,) nats: what a ratio network at (x, sigma) should say."""
    return p_data.log_prob(x, sigma) - p_student.log_prob(x, sigma)


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _check(name: str, values: Array, wanted: str, legal: Any) -> None:
    wrong = np.asarray(values)[~np.broadcast_to(legal & np.isfinite(values), values.shape)]
    if wrong.size:
        raise ConfigError(f"{name} have to be {wanted}; got {wrong[0]}")
