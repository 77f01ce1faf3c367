"""Timing in turns: machines drift, so whatever is compared is run one after the other, again and again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def seconds(way: Callable[[], Any], device: str) -> float:
    """How long a call takes: processor time on the CPU, which others may use too, and wall time on a GPU."""
    if device == "cuda":
        torch.cuda.synchronize()
        began = time.perf_counter()
        way()
        torch.cuda.synchronize()
        return time.perf_counter() - began
    began = time.process_time()
    way()
    return time.process_time() - began


def in_turns(ways: Mapping[str, Callable[[], Any]], repeats: int, device: str) -> dict[str, NDArray[np.float64]]:
    """(repeats,) seconds of each, taking turns, after one call of each that is not counted."""
    for way in ways.values():
        way()
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            spent[name].append(seconds(way, device))
    return {name: np.array(values) for name, values in spent.items()}


def ratio_interval(peer: NDArray[np.float64], ours: NDArray[np.float64]) -> tuple[float, tuple[float, float]]:
    """Median of the ratios within turns, and the order statistics that hold it with 95 % (sign test)."""
    ratios = np.sort(peer / ours)
    n = len(ratios)
    step = int(np.floor(n / 2 - 0.98 * np.sqrt(n)))
    low = max(step, 0)
    return float(np.median(ratios)), (float(ratios[low]), float(ratios[n - 1 - low]))
