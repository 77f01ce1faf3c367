"""Planted errors: substitutions at a known rate, and how well a score for every token tells them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

PLANTED = 0.08  # share of tokens replaced
BINS = 10  # of the calibration error


def plant(
    rng: np.random.Generator, clean: NDArray[np.int64], symbols: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Tokens (N, L) with about PLANTED of them replaced by another of ``symbols`` ids, and where (N, L)."""
    wrong = rng.random(clean.shape) < PLANTED
    return np.where(wrong, (clean + rng.integers(1, symbols, clean.shape)) % symbols, clean), wrong


def planted_rate(symbols: int) -> float:
    """``error_rate`` of :func:`gidd.token_error_probs` for these errors, PLANTED shared by symbols - 1 wrong ids."""
    return PLANTED / (symbols - 1) / (1 - PLANTED)


def auc(score: NDArray[np.float64], wrong: NDArray[np.bool_]) -> float:
    """Probability that a wrong token scores higher than a right one, ties half."""
    hits = int(wrong.sum())
    ranks = rankdata(score.ravel())[wrong.ravel()].sum()
    return float((ranks - hits * (hits + 1) / 2) / (hits * (wrong.size - hits)))


def calibration_error(p: NDArray[np.float64], wrong: NDArray[np.bool_]) -> float:
    """Expected calibration error: |mean P(error) - share of errors|, averaged over the tokens of BINS equal bins."""
    bins = np.clip((p * BINS).astype(int), 0, BINS - 1)
    gaps = [abs(p[bins == b].mean() - wrong[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    return float(np.sum(gaps))
