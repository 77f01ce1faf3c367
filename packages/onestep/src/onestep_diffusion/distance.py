"""How far a generator is from data it has not seen, certified noise level by noise level, without feature networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from .certificate import Certificate, certify, reliability
from .data import Dataset
from .denoiser import Generator, Ratio
from .errors import DataError
from .noise import check_sigma
from .pictures import figure, save_figure

LEVELS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
CLIP = 10.0  # of log ratios: NWJ's bounds hold for any function, and means of exp are then finite
LEAST_ROWS = 20

Array = NDArray[np.float64]


class Distance(NamedTuple):
    """certificates: one for each of sigmas, each at the level `level` for itself.

    js_lower: what JS of data and generator exceeds with probability `level`: the largest bound over all levels, each
    taken at 1 - (1 - level)/levels, as noise cannot increase a divergence. log_ratios: of held-out rows and samples.
    """

    sigmas: tuple[float, ...]
    certificates: tuple[Certificate, ...]
    js_lower: float
    level: float
    log_ratios: tuple[tuple[Array, Array], ...]


def certified_distance(
    generator: Generator,
    ratio: Ratio,
    data: Dataset,
    sigmas: Sequence[float] = LEVELS,
    *,
    level: float = 0.95,
    n_boot: int = 1000,
    seed: int = 0,
) -> Distance:
    """Certificates from the held-out rows of `data`, which trained neither network, and as many samples.

    Raises DataError for fewer than 20 held-out rows or rows of another shape, ConfigError for levels.
    """
    check_sigma(list(sigmas))
    shape = generator.net.shape
    if data.shape != shape and (int(np.prod(data.shape)),) == shape:
        data = data.flatten()
    if data.shape != shape:
        raise DataError(f"{data.name}: rows are {data.shape}, but the generator's samples are {shape}")
    if len(data.held_out) < LEAST_ROWS:
        raise DataError(f"{data.name}: at least {LEAST_ROWS} held-out rows are needed; got {len(data.held_out)}")
    data = replace(data, shift=generator.shift, scale=generator.scale)
    labels = data.held_out_labels if generator.net.labels else None
    student = jnp.asarray(generator.to_model(generator.sample(len(data.held_out), seed, labels)))
    rows = jnp.asarray(data.to_model(data.held_out))
    key = jax.random.key(seed)
    pairs = []
    for place, sigma in enumerate(sigmas):
        keys = jax.random.split(jax.random.fold_in(key, place))
        pairs.append(tuple(_log_ratios(ratio, x, sigma, labels, k) for x, k in zip((rows, student), keys, strict=True)))
    how = {"n_boot": n_boot, "seed": seed}
    found = tuple(certify(*pair, level=level, **how) for pair in pairs)
    joint = 1 - (1 - level) / len(sigmas)
    lowest = max(certify(*pair, level=joint, **how).js_lower for pair in pairs)
    return Distance(tuple(map(float, sigmas)), found, lowest, level, tuple(pairs))  # type: ignore[arg-type]


def save_distance_plot(path: Path, found: Distance) -> None:
    """A PNG: bounds on JS against the noise level, and the reliability of the ratio at each."""
    sheet = figure(9, 4)
    left, right = sheet.subplots(1, 2)
    low, high = np.array([c.js_interval for c in found.certificates]).T
    left.plot(found.sigmas, [c.js for c in found.certificates], marker="o", label="bound on JS, estimate")
    left.fill_between(found.sigmas, low, high, alpha=0.2)
    left.axhline(np.log(2), color="grey", linewidth=0.5)
    left.axhline(0, color="grey", linewidth=0.5)
    left.set(xscale="log", xlabel="σ", ylabel="nats")
    left.legend(fontsize="small")
    for sigma, pair in zip(found.sigmas, found.log_ratios, strict=True):
        predicted, observed, mass = reliability(*pair)
        seen = mass > 0
        right.plot(predicted[seen], observed[seen], marker=".", label=f"σ = {sigma:g}")
    right.plot([0, 1], [0, 1], color="grey", linewidth=0.5)
    right.set(xlabel="predicted probability of data", ylabel="observed")
    right.legend(fontsize="x-small")
    save_figure(sheet, path)


def _log_ratios(
    ratio: Ratio, x: jax.Array, sigma: float, labels: NDArray[np.int32] | None, key: jax.Array, batch: int = 1024
) -> Array:
    noised = x + sigma * jax.random.normal(key, x.shape)
    y = None if labels is None else jnp.asarray(labels)
    parts = [
        ratio(noised[i : i + batch], sigma, None if y is None else y[i : i + batch]) for i in range(0, len(x), batch)
    ]
    return np.clip(np.concatenate(parts).astype(float), -CLIP, CLIP)
