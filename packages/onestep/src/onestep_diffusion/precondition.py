"""EDM's preconditioning (Karras et al. 2022, table 1): inputs and targets of unit variance at any noise."""

import jax.numpy as jnp
from jaxtyping import Array

from .errors import ConfigError
from .noise import check_sigma
from .shapes import Elementwise

SIGMA_FLOOR = 1e-4  # c_noise tends to minus infinity at zero


def edm_precond(sigma: Elementwise, sigma_data: float = 0.5) -> tuple[Array, Array, Array, Array]:
    """(c_skip, c_out, c_in, c_noise), each of sigma's shape, for D(x, sigma) = c_skip x + c_out F(c_in x, c_noise).

    Levels below 1e-4 count as 1e-4. Raises ConfigError for negative ones, and for a sigma_data that is not positive.
    """
    _check(sigma, sigma_data)
    sigma = jnp.maximum(jnp.asarray(sigma, float), SIGMA_FLOOR)
    total = jnp.hypot(sigma, sigma_data)
    return (sigma_data / total) ** 2, sigma * sigma_data / total, 1 / total, jnp.log(sigma) / 4


def edm_loss_weight(sigma: Elementwise, sigma_data: float = 0.5) -> Array:
    """1 / c_out^2 = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2, which makes the loss of F weigh one everywhere."""
    _check(sigma, sigma_data)
    sigma = jnp.maximum(jnp.asarray(sigma, float), SIGMA_FLOOR)
    return 1 / sigma**2 + 1 / sigma_data**2


def ratio_decay(sigma: Elementwise, sigma_data: float = 0.5) -> Array:
    """2 sigma_data c_in(sigma): the factor of a `decaying` ratio output, as a log ratio vanishes like 1/sigma."""
    return 2 * sigma_data / jnp.hypot(jnp.asarray(sigma, float), sigma_data)


def _check(sigma: Elementwise, sigma_data: float) -> None:
    check_sigma(sigma, zero=True)
    if not sigma_data > 0:
        raise ConfigError(f"sigma_data has to be positive; got {sigma_data}")
