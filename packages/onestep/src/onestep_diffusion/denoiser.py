"""Networks in the method's units: the denoiser D, the one-step generator G, the log ratio; and what they sample.

`denoise` and `log_ratio` are what training differentiates. `Denoiser`, `Generator` and `Ratio` hold a trained network
with the few numbers that belong to it, sample in data units, and are what `checkpoint.save_model` writes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike
from numpy.typing import NDArray

from . import nets
from .errors import ConfigError, DataError
from .generator import per_sample
from .noise import Karras, check_sigma, karras_sigmas
from .precondition import edm_precond, ratio_decay
from .ratio import log_softplus_ratio
from .sampling import heun
from .shapes import Batch, Levels, PerSample

OUTPUTS = ("decaying", "plain", "softplus")


def denoise(
    net: Callable[..., Batch],
    x: Batch,
    sigma: Levels,
    labels: Array | None = None,
    *,
    sigma_data: float = 0.5,
    **options: Any,
) -> Batch:
    """D(x, sigma) = c_skip x + c_out F(c_in x, c_noise, labels), EDM's eq. 7; (n, *shape) in f32.

    Args:
        net: F, one of `nets` (merged) or any function of the same arguments.
        x: noised samples (n, *shape). sigma: their noise levels, (n,) or one for all. labels: (n,) integers or None.
        options: handed to the network: `augment`, `dropout_key`.
    """
    c_skip, c_out, c_in, c_noise = _coefficients(x, sigma, sigma_data)
    f = net(per_sample(c_in, x) * x, c_noise, labels, **options)
    return per_sample(c_skip, x) * x + per_sample(c_out, x) * f


def log_ratio(
    net: Callable[..., PerSample],
    x: Batch,
    sigma: Levels,
    labels: Array | None = None,
    *,
    sigma_data: float = 0.5,
    output: str = "decaying",
    **options: Any,
) -> PerSample:
    """l(x, sigma) = log p_data - log p_student after noise sigma, (n,) in f32; arguments as of `denoise`.

    output: `plain`, the network's logit; `decaying`, times 2 sigma_data c_in, as log ratios fall like 1/sigma;
        `softplus`, see `log_softplus_ratio`.
    Raises ConfigError for another output.
    """
    if output not in OUTPUTS:
        raise ConfigError(f"ratio output: {output!r} is not one of {', '.join(OUTPUTS)}")
    _, _, c_in, c_noise = _coefficients(x, sigma, sigma_data)
    logit = net(per_sample(c_in, x) * x, c_noise, labels, **options)
    if output == "plain":
        return logit
    if output == "softplus":
        return log_softplus_ratio(logit)
    return logit * ratio_decay(jnp.broadcast_to(jnp.asarray(sigma, float), logit.shape), sigma_data)


@dataclass(frozen=True, kw_only=True)
class Model:
    """A network of `nets` and what belongs to it; samples in data units are shift + scale x.

    sigma_data: standard deviation of x. label_probs: law of the labels in the data; None for equal shares.
    """

    net: Any
    sigma_data: float = 0.5
    shift: float = 0.0
    scale: float = 1.0
    label_probs: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.sigma_data > 0 or not self.scale > 0:
            raise ConfigError(f"sigma_data={self.sigma_data} and scale={self.scale} have to be positive")
        if self.label_probs is not None:
            object.__setattr__(self, "label_probs", tuple(map(float, self.label_probs)))  # JSON brings a list
            if len(self.label_probs) != self.net.labels or min(self.label_probs, default=-1) < 0:
                wanted = f"{self.net.labels} shares, one a class"
                raise ConfigError(f"label_probs has to be {wanted}; got {self.label_probs}")

    @property
    def params(self) -> nets.Params:
        """The network's weights, a nested dict."""
        return nets.split(self.net)[1]

    def with_params(self, params: nets.Params) -> Self:
        """The same model with other weights."""
        return replace(self, net=nets.merge(nets.split(self.net)[0], params))

    def to_data(self, x: ArrayLike) -> NDArray[np.float32]:
        """From the network's units to data units."""
        return np.asarray(x, np.float32) * np.float32(self.scale) + np.float32(self.shift)

    def to_model(self, data: ArrayLike) -> Array:
        """From data units to the network's units."""
        return (jnp.asarray(data, jnp.float32) - self.shift) / self.scale

    def draw_labels(self, n: int, seed: int = 0, labels: int | ArrayLike | None = None) -> NDArray[np.int32] | None:
        """The (n,) labels that sampling with these arguments uses, None for a network without classes.

        labels: None draws them from label_probs, an integer stands for all, (n,) integers for themselves.
        Raises ConfigError for labels out of range, of another number, or given to a network without classes.
        """
        classes: int = self.net.labels
        if labels is None:
            if classes == 0:
                return None
            key = jax.random.split(jax.random.key(seed))[1]  # the other half is for latents
            logits = None if self.label_probs is None else jnp.log(jnp.asarray(self.label_probs))
            return np.asarray(_draw_labels(key, jnp.arange(n), classes, logits))
        given = np.asarray(labels)
        self._check_labels(given, n)
        return np.broadcast_to(given, (n,)).astype(np.int32)

    def _check(self, x: Batch, labels: Array | None, sigma: Levels = 1.0) -> None:
        """Of what a network cannot see by itself; labels that are traced have no values yet."""
        if x.shape[1:] != self.net.shape:
            raise DataError(f"samples have to be (n, {', '.join(map(str, self.net.shape))}); got {x.shape}")
        check_sigma(sigma)
        if np.ndim(sigma) and np.shape(sigma) != x.shape[:1]:
            raise DataError(f"sigma has to be one number or ({len(x)},), one a sample; got {np.shape(sigma)}")
        if labels is None or isinstance(labels, jax.core.Tracer):
            return
        self._check_labels(np.asarray(labels), len(x))

    def _check_labels(self, given: NDArray[Any], n: int) -> None:
        classes: int = self.net.labels
        if classes == 0:
            raise ConfigError("labels were given, but this network has no classes")
        if given.shape not in ((), (n,)) or not np.issubdtype(given.dtype, np.integer):
            raise ConfigError(f"labels have to be one integer or ({n},) integers; got {given.dtype} of {given.shape}")
        if given.size and (given.min() < 0 or given.max() >= classes):
            raise ConfigError(f"labels have to lie in 0 … {classes - 1}; got {given.min()} … {given.max()}")

    def _sample(self, run: Any, n: int, seed: int, labels: int | ArrayLike | None, batch: int | None) -> Any:
        """run(params, key, index, labels) in equal pieces, so that it compiles once; numpy in data units."""
        if n < 1 or (batch is not None and batch < 1):
            raise ConfigError(f"n={n} and batch={batch} have to be at least 1")
        params, key, drawn = self.params, jax.random.split(jax.random.key(seed))[0], self.draw_labels(n, seed, labels)
        size = min(n, batch or _fitting_batch(self.net.shape))

        def piece(start: int) -> Array:
            index = np.arange(start, start + size)
            return run(params, key, index, None if drawn is None else drawn[np.minimum(index, n - 1)])

        done, running = [], piece(0)
        for start in range(size, n, size):  # one piece is computed while the one before it is fetched
            running, finished = piece(start), running
            done.append(self.to_data(finished))
        return np.concatenate([*done, self.to_data(running)])[:n]


@dataclass(frozen=True, kw_only=True)
class Denoiser(Model):
    """The diffusion model D(x, sigma): teacher, or fake score."""

    def __call__(self, x: Batch, sigma: Levels, labels: Array | None = None) -> Batch:
        """E[clean x | noised x] (n, *shape), in the network's units; sigma (n,) or one for all.

        Raises DataError for other shapes, ConfigError for levels or labels out of range.
        """
        self._check(x, labels, sigma)
        return denoise(self.net, x, sigma, labels, sigma_data=self.sigma_data)

    def features(self, x: Batch, sigma: Levels, labels: Array | None = None) -> list[Array]:
        """The activations (n, ...) after each block, named by `net.block_names`, at noised samples x."""
        return _features(self, x, sigma, labels)

    def sample(
        self,
        n: int,
        seed: int = 0,
        steps: int = 18,
        labels: int | ArrayLike | None = None,
        batch: int | None = None,
    ) -> NDArray[np.float32]:
        """(n, *shape) samples in data units by Heun's method in 2 steps - 1 evaluations (EDM, algorithm 1).

        The i-th sample depends on seed and i alone, up to rounding. labels as of `draw_labels`; batch: how many at a
        time. Raises ConfigError for arguments out of range.
        """
        run = partial(_heun, nets.split(self.net)[0], self.net.shape, self.sigma_data, steps)
        return self._sample(run, n, seed, labels, batch)

    def one_step(self, sigma_init: float = 2.5) -> Generator:
        """The generator with these weights: what training starts from under `init="teacher"`."""
        same = {field.name: getattr(self, field.name) for field in fields(self)}
        return Generator(**same, sigma_init=sigma_init)


@dataclass(frozen=True, kw_only=True)
class Generator(Model):
    """The one-step generator G(z, c) = D(sigma_init z, sigma_init, c).

    few_steps: trained to also refine its own samples, noised again to so many of `few_step_levels`; 1 for not.
    """

    sigma_init: float = 2.5
    few_steps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sigma_init > 0:
            raise ConfigError(f"sigma_init has to be positive; got {self.sigma_init}")
        if self.few_steps < 1:
            raise ConfigError(f"few_steps has to be at least 1; got {self.few_steps}")

    def __call__(self, z: Batch, labels: Array | None = None) -> Batch:
        """Standard normal z (n, *shape) -> samples (n, *shape) in the network's units; errors as of `Denoiser`."""
        self._check(z, labels)
        return denoise(self.net, self.sigma_init * z, self.sigma_init, labels, sigma_data=self.sigma_data)

    def sample(
        self,
        n: int,
        seed: int = 0,
        labels: int | ArrayLike | None = None,
        batch: int | None = None,
        evaluations: int = 1,
    ) -> NDArray[np.float32]:
        """(n, *shape) samples in data units, one evaluation each, or a divisor of `few_steps`.

        The i-th sample depends on seed and i alone, up to rounding. labels as of `draw_labels`; batch: how many at a
        time. Raises ConfigError for arguments out of range.
        """
        if evaluations < 1 or self.few_steps % evaluations:
            raise ConfigError(f"evaluations={evaluations} has to divide few_steps={self.few_steps} of the training")
        levels = few_step_levels(self.sigma_init, self.few_steps)[:: self.few_steps // evaluations]
        run = partial(_generate, nets.split(self.net)[0], self.net.shape, self.sigma_data, levels)
        return self._sample(run, n, seed, labels, batch)


@dataclass(frozen=True, kw_only=True)
class Ratio(Model):
    """The log density ratio l(x, sigma) = log p_data - log p_student, divided by a calibrated temperature.

    sigma_v: the level at which it judges samples.
    """

    output: str = "decaying"
    temperature: float = 1.0
    sigma_v: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0 or not self.sigma_v > 0:
            raise ConfigError(f"temperature={self.temperature} and sigma_v={self.sigma_v} have to be positive")
        if self.output not in OUTPUTS:
            raise ConfigError(f"ratio output: {self.output!r} is not one of {', '.join(OUTPUTS)}")

    def __call__(self, x: Batch, sigma: Levels, labels: Array | None = None) -> PerSample:
        """(n,) nats at noised samples x (n, *shape) in the network's units; sigma (n,) or one for all."""
        self._check(x, labels, sigma)
        value = log_ratio(self.net, x, sigma, labels, sigma_data=self.sigma_data, output=self.output)
        return value / self.temperature

    def features(self, x: Batch, sigma: Levels, labels: Array | None = None) -> list[Array]:
        """The activations (n, ...) after each block, named by `net.block_names`, at noised samples x."""
        return _features(self, x, sigma, labels)


def few_step_levels(sigma_init: float, few_steps: int) -> tuple[float, ...]:
    """The levels at which a generator of so many steps is evaluated: descending, even in sigma^(1/7), from sigma_init.

    The second of 2 is the third of 4, so one generator trained for 4 samples in 1, 2 or 4 evaluations.
    """
    law = Karras(1.0, min(0.002, sigma_init / 2), sigma_init)
    return (sigma_init, *(float(law.quantile(jnp.float32(1 - place / few_steps))) for place in range(1, few_steps)))


def latents(key: Array, index: Array, shape: tuple[int, ...]) -> Batch:
    """Standard normal z, (n, *shape); the i-th depends on the key and index[i] alone, so batching changes nothing."""
    return jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), shape))(index)


def _coefficients(x: Batch, sigma: Levels, sigma_data: float) -> tuple[Array, Array, Array, Array]:
    return edm_precond(jnp.broadcast_to(jnp.asarray(sigma, float), x.shape[:1]), sigma_data)


def _features(model: Model, x: Batch, sigma: Levels, labels: Array | None) -> list[Array]:
    model._check(x, labels, sigma)
    _, _, c_in, c_noise = _coefficients(x, sigma, model.sigma_data)
    return model.net.features(per_sample(c_in, x) * x, c_noise, labels)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _generate(
    graphdef: Any,
    shape: tuple[int, ...],
    sigma_data: float,
    levels: tuple[float, ...],
    params: nets.Params,
    key: Array,
    index: Array,
    labels: Array | None,
) -> Batch:
    net = nets.merge(graphdef, params)
    x = levels[0] * latents(key, index, shape)
    for place, level in enumerate(levels):
        if place:
            x = x + level * latents(jax.random.fold_in(key, place), index, shape)
        x = denoise(net, x, level, labels, sigma_data=sigma_data)
    return x


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _heun(
    graphdef: Any,
    shape: tuple[int, ...],
    sigma_data: float,
    steps: int,
    params: nets.Params,
    key: Array,
    index: Array,
    labels: Array | None,
) -> Batch:
    net = nets.merge(graphdef, params)
    z = latents(key, index, shape)
    return heun(lambda x, sigma: denoise(net, x, sigma, labels, sigma_data=sigma_data), z, karras_sigmas(steps))


@partial(jax.jit, static_argnums=2)
def _draw_labels(key: Array, index: Array, classes: int, logits: Array | None) -> Array:
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
    if logits is None:
        return jax.vmap(lambda k: jax.random.randint(k, (), 0, classes))(keys)
    return jax.vmap(lambda k: jax.random.categorical(k, logits))(keys)


def _fitting_batch(shape: tuple[int, ...]) -> int:
    """So many samples that a U-Net's activations stay near a gibibyte on a CPU, and fill an accelerator."""
    budget = 2**18 if jax.default_backend() == "cpu" else 2**22
    return max(1, budget // int(np.prod(shape)))
