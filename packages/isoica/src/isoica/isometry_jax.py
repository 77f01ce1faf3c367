"""Distance from isometry in JAX: a squared distance to train on, and directional derivatives in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from .isometry import Map, as_batched

Array = NDArray[np.float64]

_FLOOR = 1e-12  # on the eigenvalues of the Gram matrix, so that a collapsed direction has a finite polar factor


def polar(J: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Polar factor Q (..., D, d) and singular values (..., d), ascending, of J (..., D, d) from the d x d Gram matrix.

    Not to be differentiated: equal singular values give NaN. :func:`squared_distance` is what has a derivative.
    """
    values, vectors = jnp.linalg.eigh(jnp.swapaxes(J, -1, -2) @ J)
    inverse = vectors * jax.lax.rsqrt(jnp.maximum(values, _FLOOR))[..., None, :] @ jnp.swapaxes(vectors, -1, -2)
    return J @ inverse, jnp.sqrt(jnp.maximum(values, 0.0))


@jax.custom_jvp
def squared_distance(J: jax.Array, scale: jax.Array | float = 1.0) -> jax.Array:
    """``dist²(J, c·O) = Σ(σ_i - c)²`` for each matrix of J (..., D, d), D >= d, with c = ``scale``; shape (...).

    Its derivative is ``2⟨J - cQ, dJ⟩ - 2Σ(σ_i - c) dc`` (envelope theorem: Q is where the distance is attained), so no
    decomposition is ever differentiated. Given as a JVP, which JAX transposes: forward and reverse mode both work.
    """
    _, sigma = polar(J)
    return jnp.sum((sigma - scale) ** 2, axis=-1)


@squared_distance.defjvp
def _squared_distance_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (J, scale), (dJ, dc) = primals, tangents
    Q, sigma = polar(J)
    gradient = 2 * jnp.sum((J - scale * Q) * dJ, axis=(-2, -1)) - 2 * jnp.sum(sigma - scale, axis=-1) * dc
    return jnp.sum((sigma - scale) ** 2, axis=-1), gradient


def directional(f: Map, two: Array) -> Callable[[Array, Array], Array]:
    """``(points (n, d), directions (n, d)) -> Df·v (n, D)`` in float64. Raises where JAX cannot trace ``f``.

    ``f`` takes (n, d) or (d,); ``two`` (2, d) is a sample that tells which.
    """
    with jax.enable_x64(True):
        rows_at_once = as_batched(f, two, jnp.stack) is f
        batched = f if rows_at_once else jax.vmap(f)
        push = jax.jit(lambda x, v: jax.jvp(batched, (x,), (v,))[1])
        push.lower(jnp.asarray(two), jnp.asarray(two))  # traces only

    def derivative(points: Array, v: Array) -> Array:
        with jax.enable_x64(True):
            return np.asarray(push(jnp.asarray(points), jnp.asarray(v)), dtype=np.float64)

    return derivative
