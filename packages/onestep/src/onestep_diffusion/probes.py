"""What a network brings before training starts: its map, and its features at every block and noise level."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from . import nets
from .denoiser import Denoiser, Generator, latents
from .errors import DataError

Table = list[dict[str, Any]]  # rows of a table, one dict each: pandas.DataFrame(table) reads it


def map_error(
    gen: Generator | Denoiser, teacher: Denoiser, sigma_init: float = 2.5, n: int = 2048, seed: int = 0
) -> float:
    """E|G(z) - G_T(z)|^2 / tr Cov G_T(z), with G_T(z) = D_T(sigma_init z, sigma_init) and n latents.

    0: the teacher's map; about 1: as far from it as its mean is.
    """
    generator = gen if isinstance(gen, Generator) else gen.one_step(sigma_init)
    labels = teacher.draw_labels(n, seed)
    z = latents(jax.random.key(seed), jnp.arange(n), teacher.net.shape)
    ours, theirs = (
        np.asarray(g(z, None if labels is None else jnp.asarray(labels)), float).reshape(n, -1)
        for g in (generator, teacher.one_step(sigma_init))
    )
    return float(((ours - theirs) ** 2).sum(1).mean() / theirs.var(0).sum())


def linear_cka(a: ArrayLike, b: ArrayLike) -> float:
    """Linear centred kernel alignment of features (n, p) and (n, q) of the same n samples, in [0, 1].

    |A'B|_F^2 / (|A'A|_F |B'B|_F) of centred features: 1 for features that are equal up to rotation and scale
    (Kornblith et al. 2019). 0 if either is constant. Raises DataError for different n.
    """
    x, y = (np.asarray(v, float).reshape(len(np.asarray(v)), -1) for v in (a, b))
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise DataError("CKA needs finite features; some are not numbers or infinite")
    if len(x) != len(y) or len(x) < 2:
        raise DataError(f"CKA needs features of the same samples, at least two; got {len(x)} and {len(y)}")
    x, y = x - x.mean(0), y - y.mean(0)
    if len(x) < max(x.shape[1], y.shape[1]):  # by Gram matrices, the same number
        k, l = x @ x.T, y @ y.T
        cross, own = (k * l).sum(), np.linalg.norm(k) * np.linalg.norm(l)
    else:
        cross, own = np.linalg.norm(x.T @ y) ** 2, np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.clip(cross / own, 0, 1)) if own > 0 else 0.0


def participation_ratio(features: ArrayLike) -> float:
    """(tr C)^2 / tr C^2 of the covariance C of (n, p) features: in how many directions they vary; 0 if in none."""
    x = np.asarray(features, float).reshape(len(np.asarray(features)), -1)
    x = x - x.mean(0)
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x
    square = float((gram**2).sum())
    return float(np.trace(gram)) ** 2 / square if square > 0 else 0.0


def block_features(denoiser: Denoiser, x: ArrayLike, sigma: float, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """The features (n, p) after each block, by its name, at samples x in data units noised to sigma.

    Spatial positions are averaged. Every network gets the same noise for the same seed.
    """
    clean = denoiser.to_model(x)
    noised = clean + sigma * jax.random.normal(jax.random.key(seed), clean.shape)
    graphdef, params = nets.split(denoiser.net)
    outputs = _features(graphdef, denoiser.sigma_data, params, noised, jnp.float32(sigma))
    return {
        name: np.asarray(out, np.float32).reshape(len(out), -1, out.shape[-1]).mean(axis=1)
        for name, out in zip(denoiser.net.block_names, outputs, strict=True)
    }


def probe_features(
    denoiser: Denoiser,
    x: ArrayLike,
    y: ArrayLike | None,
    sigmas: Sequence[float],
    *,
    teacher: Denoiser | None = None,
    seed: int = 0,
) -> Table:
    """One row for each block and noise level.

    Args:
        x: samples in data units. y: their labels, for `accuracy`: logistic regression, mean of three folds.
        sigmas: noise levels. teacher: for `cka` with its features of the same block and level.

    Returns:
        Rows with block, sigma, rank (participation ratio), and accuracy and cka where they can be had.
    """
    table: Table = []
    for sigma in sigmas:
        ours = block_features(denoiser, x, sigma, seed)
        theirs = None if teacher is None else block_features(teacher, x, sigma, seed)
        for block, features in ours.items():
            entry: dict[str, Any] = {"block": block, "sigma": float(sigma), "rank": participation_ratio(features)}
            if y is not None:
                classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
                entry["accuracy"] = float(cross_val_score(classifier, features, np.asarray(y), cv=3).mean())
            if theirs is not None:
                entry["cka"] = linear_cka(features, theirs[block])
            table.append(entry)
    return table


@partial(jax.jit, static_argnums=(0, 1))
def _features(graphdef: Any, sigma_data: float, params: nets.Params, noised: Array, sigma: Array) -> list[Array]:
    return Denoiser(net=nets.merge(graphdef, params), sigma_data=sigma_data).features(noised, sigma)
