"""Rendered images whose pixels depend on a few latents almost isometrically."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.utils import Bunch

from .errors import IsoICAError
from .isometry import theta_from_jacobians
from .laws import LawLike, cycle, generator
from .mixings import _rotation

Array = NDArray[np.float64]

_TURN = np.pi / 2  # a square is itself again after a quarter turn


def make_images(
    n: int,
    kind: str = "sprite",
    size: int = 32,
    premix: str | None = "random",
    gradient: float = 0.0,
    noise: float = 0.0,
    d: int | None = None,
    laws: LawLike | Sequence[LawLike] = "uniform",
    random_state: Any = None,
) -> Bunch:
    """Grey images of moving shapes. A shape that stays inside the frame and is resolved by the pixels moves at constant
    speed in the L² metric: the map from latents to pixels is an isometry up to one linear map.

    Parameters
    ----------
    kind : "sprite", one soft square, its position (d = 2) and its angle too (d = 3); "lanes", one blob in each of d
        horizontal lanes; "multi", one blob moving in both directions in each cell of a grid (d even).
    size : height and width in pixels, at least 16.
    premix : "random", positions are a random rotation of the latents, so that ICA is needed to tell them apart (an
        angle is left out of it), or None.
    gradient : brightness rises across the frame by this factor, which takes the map away from isometry.
    noise : standard deviation of pixel noise.
    d : number of latents; None for 2 (sprite, lanes) or 4 (multi).

    Returns
    -------
    Bunch
        images (n, size, size) float32, S (n, d) latents of variance 1, theta: Θ_2 of the noise-free map after the best
        metric (over at most 500 of the images), render: (n, d) latents -> (n, size, size).
    """
    d = {"sprite": 2, "lanes": 2, "multi": 4}.get(kind, 2) if d is None else d
    if kind not in ("sprite", "lanes", "multi"):
        raise IsoICAError(f'kind={kind!r}; use "sprite", "lanes" or "multi"')
    if (kind == "sprite" and d not in (2, 3)) or (kind == "multi" and (d < 2 or d % 2)) or d < 1:
        raise IsoICAError(f"kind={kind!r} cannot have d={d}: sprite has 2 or 3, lanes any, multi an even number")
    cells = {"sprite": 1, "lanes": d, "multi": int(np.ceil(np.sqrt(d / 2)))}[kind]
    if size < 8 * max(cells, 2):
        raise IsoICAError(f"size={size} is too small for {cells} cells across; use at least {8 * max(cells, 2)}")
    if premix not in ("random", None):
        raise IsoICAError(f'premix={premix!r}; use "random" or None')
    rng = generator(random_state)
    S = np.stack([law.rvs(n, rng) for law in cycle(laws, d)], axis=1)
    moving = 2 if kind == "sprite" else d
    R = _rotation(moving, rng) if premix == "random" else np.eye(moving)
    reach = np.abs(S[:, :moving] @ R.T).max()
    turn = np.abs(S[:, moving:]).max(initial=0.0)
    if kind == "sprite" and d == 3:
        warnings.warn("the angle moves few pixels: it is a thin axis, and errors on it are amplified", UserWarning, 2)

    def render(latents: Array) -> Array:
        place = latents[:, :moving] @ R.T / reach
        if kind == "sprite":
            angle = 0.45 * _TURN * latents[:, 2] / turn if d == 3 else np.zeros(len(latents))
            images = _sprite(place, angle, size)
        else:
            images = _lanes(place, size) if kind == "lanes" else _multi(place, cells, size)
        return images * (1 + gradient * np.linspace(-0.5, 0.5, size)) if gradient else images

    images = np.empty((n, size, size), dtype=np.float32)
    for start in range(0, n, 1000):
        images[start : start + 1000] = render(S[start : start + 1000])
    theta = theta_from_jacobians(_jacobian(render, S[:500]), metric="fit").value
    if noise:
        images += (noise * rng.standard_normal(images.shape, dtype=np.float32)).astype(np.float32)
    return Bunch(images=images, S=S, theta=theta, render=render)


def _jacobian(render: Any, S: Array) -> Array:
    step = 1e-4 * np.eye(S.shape[1])
    columns = [(render(S + e) - render(S - e)).reshape(len(S), -1) / 2e-4 for e in step]
    return np.stack(columns, axis=2)


def _sprite(place: Array, angle: Array, size: int) -> Array:
    """A square with logistic edges; ``place`` in [-1, 1]² keeps its corners and their blur inside the frame."""
    half, edge = 0.11 * size, 0.03 * size
    centre = (size - 1) / 2 + place * (size / 2 - np.sqrt(2) * half - 3 * edge)
    x = np.arange(size) - centre[:, 0, None]
    y = np.arange(size) - centre[:, 1, None]
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    u = cos * x[:, None, :] + sin * y[:, :, None]
    v = cos * y[:, :, None] - sin * x[:, None, :]
    return _box(u, half, edge) * _box(v, half, edge)


def _box(u: Array, half: float, edge: float) -> Array:
    return expit((half - u) / edge) * expit((half + u) / edge)


def _bump(x: Array, width: float) -> Array:
    return np.exp(-0.5 * (x / width) ** 2)


def _lanes(place: Array, size: int) -> Array:
    """(n, d) positions in [-1, 1] -> images; a blob is as tall as its lane and moves along it."""
    d = place.shape[1]
    width, height = 0.075 * size, size / d
    centre = (size - 1) / 2 + place * (size / 2 - 3 * width)
    along = _bump(np.arange(size) - centre[:, :, None], width)
    lanes = _bump(np.arange(size) - (np.arange(d)[:, None] + 0.5) * height + 0.5, height / 6)
    return np.einsum("ndw,dh->nhw", along, lanes)


def _multi(place: Array, cells: int, size: int) -> Array:
    """(n, 2m) positions in [-1, 1] -> images with m blobs, one in each cell of a grid."""
    n, d = place.shape
    cell = size / cells
    width = 0.09 * cell
    images = np.zeros((n, size, size))
    for b in range(d // 2):
        corner = cell * np.array([b % cells, b // cells])
        centre = corner + (cell - 1) / 2 + place[:, 2 * b : 2 * b + 2] * (cell / 2 - 3 * width)
        x, y = (_bump(np.arange(size) - centre[:, a, None], width) for a in range(2))
        images += y[:, :, None] * x[:, None, :]
    return images
