"""Many-step sampling of a diffusion model: the teacher's samples, beside which one-step samples are judged."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .errors import ConfigError
from .noise import check_sigma
from .shapes import Batch, Grid, PerSample


def heun(denoise_fn: Callable[[Batch, PerSample], Batch], z: Batch, sigmas: Grid) -> Batch:
    """Heun's method on the probability-flow ODE dx/dsigma = (x - D(x, sigma)) / sigma (EDM, algorithm 1, no churn).

    Args:
        denoise_fn: (x (n, *shape), sigma (n,)) -> (n, *shape).
        z: standard normal noise (n, *shape); the path starts at sigmas[0] z.
        sigmas: descending levels > 0 without a final zero (`karras_sigmas`). The last step, down to zero, is Euler's,
            which is the denoiser itself: 2 steps - 1 evaluations in all.

    Deterministic. Compile it together with the denoiser: outside jit every call traces anew.

    Raises ConfigError for levels that do not descend or are not positive.
    """
    z = jnp.asarray(z)
    sigmas = jnp.asarray(sigmas, z.dtype)
    check_sigma(sigmas)
    if not isinstance(sigmas, jax.core.Tracer) and not bool((sigmas[1:] < sigmas[:-1]).all()):
        raise ConfigError("sigmas have to descend")

    def level(sigma: Array) -> PerSample:
        return jnp.full(z.shape[:1], sigma)

    def slope(x: Batch, sigma: Array) -> Batch:
        return (x - denoise_fn(x, level(sigma))) / sigma

    def step(x: Batch, pair: tuple[Array, Array]) -> tuple[Batch, None]:
        now, then = pair
        first = slope(x, now)
        second = slope(x + (then - now) * first, then)
        return x + (then - now) * (first + second) / 2, None

    x, _ = jax.lax.scan(step, sigmas[0] * z, (sigmas[:-1], sigmas[1:]))
    return denoise_fn(x, level(sigmas[-1]))
