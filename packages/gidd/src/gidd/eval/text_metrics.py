"""What has to stand beside every generative perplexity: whether the samples are diverse or repeat themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def unigram_entropy(tokens: Any, mask: Any = None) -> NDArray[np.float64]:
    """Entropy of the token frequencies within each sequence.

    Parameters
    ----------
    tokens : (N, L) ids.
    mask : (N, L) bool, True where a token counts; None: everywhere.

    Returns
    -------
    (N,) nats, between 0 (one token repeated) and ln L; 0 for a sequence in which nothing counts. For the entropy of all
    samples together, pass ``tokens.reshape(1, -1)``.
    """
    ids, counts = _masked(tokens, mask)
    number = len(ids)
    rows = np.broadcast_to(np.arange(number)[:, None], ids.shape)[counts]
    _, inverse = np.unique(ids[counts], return_inverse=True)
    pairs, frequency = np.unique(rows * (len(inverse) + 1) + inverse, return_counts=True)
    row = pairs // (len(inverse) + 1)
    p = frequency / np.bincount(rows, minlength=number)[row]
    return np.bincount(row, weights=-p * np.log(p), minlength=number).astype(np.float64)


def distinct_n(tokens: Any, n: int = 2, mask: Any = None) -> float:
    """Different n-grams divided by all n-grams of all sequences (N, L) together (Li et al. 2016); nan without any."""
    grams, real = _ngrams(tokens, n, mask)
    return len(np.unique(grams[real])) / int(real.sum()) if real.any() else float("nan")


def self_repetition(tokens: Any, n: int = 4, mask: Any = None) -> NDArray[np.float64]:
    """The share of each sequence's n-grams that occurred before in the same sequence (rep-n of Welleck et al. 2020).

    Parameters
    ----------
    tokens : (N, L) ids.
    mask : (N, L) bool; an n-gram counts where all its tokens do.

    Returns
    -------
    (N,) in [0, 1); nan where a sequence has no n-gram.
    """
    grams, real = _ngrams(tokens, n, mask)
    rows = np.broadcast_to(np.arange(len(grams))[:, None], grams.shape)[real]
    pairs = np.unique(rows * (grams.max(initial=0) + 1) + grams[real])
    different = np.bincount(pairs // (grams.max(initial=0) + 1), minlength=len(grams))
    total = real.sum(axis=1)
    return np.where(total > 0, 1 - different / np.maximum(total, 1), np.nan)


def padded(rows: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Sequences of any lengths as ids (N, L), with 0 behind their ends, and the mask (N, L) of where they are real."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    mask = np.arange(lengths.max(initial=0)) < lengths[:, None]
    ids = np.zeros(mask.shape, dtype=np.int64)
    ids[mask] = [i for row in rows for i in row]
    return ids, mask


def mean_nats(nats: NDArray[np.float64], mask: Any = None) -> NDArray[np.float64]:
    """(N,) means of nats (N, L) over the positions where ``mask`` is True; every row needs one."""
    if mask is None:
        return nats.mean(axis=1)
    counts = np.asarray(mask, dtype=bool)
    if counts.shape != nats.shape or not counts.any(axis=1).all():
        raise ValueError(f"mask has to have the shape {nats.shape} and a True in every row; got {counts.shape}")
    return np.where(counts, nats, 0.0).sum(axis=1) / counts.sum(axis=1)


def _ngrams(tokens: Any, n: int, mask: Any) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(N, L-n+1) a number for every n-gram, equal where the n-grams are, and whether all its tokens count."""
    if n < 1:
        raise ValueError(f"n has to be at least 1; got {n}")
    ids, counts = _masked(tokens, mask)
    length = max(ids.shape[1] - n + 1, 0)
    _, small = np.unique(ids, return_inverse=True)
    small = small.reshape(ids.shape)
    size = int(small.max(initial=0)) + 1
    grams, real = np.zeros((len(ids), length), dtype=np.int64), np.ones((len(ids), length), dtype=bool)
    for k in range(n):
        # Numbers are made small again after each token, so that they fit into 64 bits for any n and vocabulary.
        _, grams = np.unique(grams * size + small[:, k : k + length], return_inverse=True)
        grams = grams.reshape(len(ids), length)
        real &= counts[:, k : k + length]
    return grams, real


def _masked(tokens: Any, mask: Any) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    ids = np.asarray(tokens)
    if ids.ndim != 2 or (ids.size and ids.dtype.kind not in "iu"):
        raise ValueError(f"tokens has to hold integer ids of the shape (N, L); got {ids.dtype} of {ids.shape}")
    counts = np.ones(ids.shape, dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
    if counts.shape != ids.shape:
        raise ValueError(f"mask has the shape {counts.shape}; tokens have {ids.shape}")
    return ids, counts
