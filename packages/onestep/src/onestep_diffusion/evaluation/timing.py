"""Timing in turns: machines drift, so whatever is compared is run one after the other, again and again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray


def in_turns(ways: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, NDArray[np.float64]]:
    """(repeats,) seconds of each, taking turns, after one call of each that is not counted."""
    for way in ways.values():
        jax.block_until_ready(way())  # type: ignore[no-untyped-call]
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            began = time.perf_counter()
            jax.block_until_ready(way())  # type: ignore[no-untyped-call]
            spent[name].append(time.perf_counter() - began)
    return {name: np.array(values) for name, values in spent.items()}
