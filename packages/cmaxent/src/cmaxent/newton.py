"""Damped Newton for the small convex duals of the package."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve

Array = NDArray[np.float64]


class Value(NamedTuple):
    """The objective at one point; the Hessian is computed when a step is taken from it."""

    value: float
    gradient: Array
    hessian: Callable[[], Array]


def _never(theta: Array, value: float) -> bool:
    return False


def minimise(
    evaluate: Callable[[Array], Value],
    theta: Array,
    hopeless: Callable[[Array, float], bool] = _never,
) -> tuple[Array, Value, int]:
    """Minimise a convex function by damped Newton steps, to rounding error or until ``hopeless(theta, value)``.

    Returns the point, its :class:`Value` and the number of steps; the caller judges the gradient.
    """
    now = evaluate(theta)
    for n_iter in range(200):
        size = float(np.abs(now.gradient).max(initial=0.0))
        if size <= 1e-15 or hopeless(theta, now.value):
            return theta, now, n_iter
        step = _solve(now.hessian(), now.gradient)
        slope, length = float(step @ now.gradient), 1.0
        while length > 1e-10:
            trial = evaluate(theta - length * step)
            # Once the decrease drowns in rounding of the objective, the gradient decides.
            flat = abs(trial.value - now.value) <= 1e-12 * (1 + abs(now.value))
            if trial.value <= now.value - 1e-4 * length * slope and not flat:
                break
            if flat and np.abs(trial.gradient).max() < 0.9 * size:
                break
            length /= 2
        else:
            return theta, now, n_iter
        theta, now = theta - length * step, trial
    return theta, now, 200


def _solve(H: Array, g: Array) -> Array:
    try:
        return np.asarray(cho_solve(cho_factor(H, lower=True), g))
    except LinAlgError:  # redundant indicators on a restricted support: the shortest step
        return np.asarray(np.linalg.lstsq(H, g, rcond=1e-12)[0])
