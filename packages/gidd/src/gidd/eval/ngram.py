"""An n-gram judge: interpolated absolute discounting over token ids.

    p(w | h) = max(c(hw) - d, 0) / c(h)  +  d N(h) / c(h) · p(w | h without its first token)

with c the counts of the training text, N(h) the number of different tokens that followed h, one discount
d = n1 / (n1 + 2 n2) per order (Ney, Essen & Kneser 1994; n1, n2: n-grams seen once, twice), and the uniform
distribution below the unigrams. A context that was never seen leaves the word to the shorter one.

The counts form a trie: level k holds all n-grams of k tokens as sorted numbers ``parent * V + token``, where the parent
is the place of the first k-1 tokens in level k-1. That is exact for every vocabulary; look-ups are array operations.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.prepared import Corpus
from ..errors import DataError
from .text_metrics import mean_nats

FILE = "ngram.npz"


@dataclass(frozen=True)
class _Level:
    """The n-grams of one length: all arrays but the last two have one entry per n-gram."""

    keys: NDArray[np.int64]  # parent * V + token, sorted
    counts: NDArray[np.int64]  # c(hw)
    totals: NDArray[np.int64]  # c(h), one entry per n-gram of the level below
    types: NDArray[np.int64]  # N(h), likewise
    discount: float


class NGramJudge:
    """Log-probabilities of token sequences under an n-gram model.

    Parameters
    ----------
    vocab_size : V; the model gives a positive probability to each of these ids.
    order : n, so n - 1 tokens of context; 7 for characters, 3 or 4 for words.

    Examples
    --------
    >>> judge = NGramJudge(3, order=2).fit([0, 1, 0, 1, 0, 1])
    >>> judge.nll([[0, 1, 0, 1]]) < judge.nll([[0, 0, 0, 0]])
    array([ True])
    """

    def __init__(self, vocab_size: int, order: int = 7) -> None:
        if vocab_size < 1 or order < 1:
            raise ValueError(f"vocab_size and order have to be at least 1; got {vocab_size} and {order}")
        self.vocab_size, self.order = vocab_size, order
        self._levels: list[_Level] = []

    def fit(self, tokens: Any, offsets: Any = None) -> NGramJudge:
        """Count the n-grams of a text; none reaches across the boundary of two documents.

        Parameters
        ----------
        tokens : (T,) ids.
        offsets : (documents + 1,) where each document begins, and T; None: one document.

        Returns
        -------
        The judge itself.

        Raises
        ------
        ValueError
            No tokens, ids outside [0, V), or offsets that do not run from 0 to T.
        """
        ids = self._ids(tokens)
        if ids.ndim != 1 or len(ids) == 0:
            raise ValueError(f"tokens has to have the shape (T,) with T >= 1; got {ids.shape}")
        begin = np.zeros(len(ids), dtype=bool)
        begin[0] = True
        if offsets is not None:
            offsets = np.asarray(offsets)
            if offsets[0] != 0 or offsets[-1] != len(ids) or (np.diff(offsets) < 0).any():
                raise ValueError(f"offsets has to increase from 0 to the number of tokens, {len(ids)}")
            starts = offsets[:-1]
            begin[starts[starts < len(ids)]] = True
        self._levels = []
        # The place in its level of the n-gram that ends at each position, for those positions where one does.
        at, place, nodes = np.arange(len(ids)), np.zeros(len(ids), dtype=np.int64), 1
        for _ in range(self.order):
            keys, place, counts = np.unique(place * self.vocab_size + ids[at], return_inverse=True, return_counts=True)
            self._levels.append(_level(keys, counts.astype(np.int64), nodes, self.vocab_size))
            nodes = len(keys)
            goes_on = at + 1 < len(ids)
            goes_on[goes_on] = ~begin[at[goes_on] + 1]
            at, place = at[goes_on] + 1, place[goes_on]
        return self

    @classmethod
    def from_corpus(cls, corpus: Corpus, order: int = 7, split: str = "train") -> NGramJudge:
        """Fit on a split of a prepared corpus."""
        return cls(corpus.vocab_size, order).fit(corpus.tokens(split), corpus.offsets(split))

    def log_probs(self, sequences: Any) -> NDArray[np.float64]:
        """(N, L) natural log-probability of every token given up to n - 1 tokens before it in its sequence (N, L)."""
        ids = self._ids(sequences)
        if ids.ndim != 2:
            raise ValueError(f"sequences has to have the shape (N, L); got {ids.shape}")
        if not self._levels:
            raise ValueError("the judge has not been fitted")
        p = np.full(ids.shape, 1 / self.vocab_size)
        # The place of the context in the level below, -1 where it was never seen or reaches before the sequence.
        context = np.zeros(ids.shape, dtype=np.int64)
        for level in self._levels:
            place = np.full(ids.shape, -1)
            known = context >= 0
            h = context[known]
            found, count = _look_up(level, h * self.vocab_size + ids[known])
            place[known] = found
            total = level.totals[h]
            # A context that ended its document every time was never followed by anything.
            share = np.where(total > 0, level.discount * level.types[h] / np.maximum(total, 1), 1.0)
            p[known] = np.maximum(count - level.discount, 0) / np.maximum(total, 1) + share * p[known]
            context = np.full(ids.shape, -1)
            context[:, 1:] = place[:, :-1]
        return np.log(p)

    def nll(self, sequences: Any, mask: Any = None) -> NDArray[np.float64]:
        """(N,) nats per token of the sequences (N, L), over the positions where ``mask`` (N, L) is True if given."""
        return mean_nats(-self.log_probs(sequences), mask)

    def save(self, path: str | Path) -> Path:
        """Write the model to a ``.npz`` file, or as ``ngram.npz`` into a folder; returns the file."""
        file = _file(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {"vocab_size": np.int64(self.vocab_size), "order": np.int64(self.order)}
        for k, level in enumerate(self._levels):
            arrays |= {f"keys{k}": level.keys, f"counts{k}": level.counts}
        handle, temporary = tempfile.mkstemp(prefix=f".{file.name}.", suffix=".tmp", dir=file.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                np.savez_compressed(stream, **arrays)
            os.chmod(temporary, 0o644)
            os.replace(temporary, file)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return file

    @classmethod
    def load(cls, path: str | Path) -> NGramJudge:
        """Read what :meth:`save` wrote.

        Raises
        ------
        DataError
            There is no such file, or it is no n-gram model.
        """
        file = _file(path)
        if not file.is_file():
            raise DataError(f"no n-gram model at {file}")
        try:
            with np.load(file, allow_pickle=False) as arrays:
                judge = cls(int(arrays["vocab_size"]), int(arrays["order"]))
                nodes = 1
                for k in range(judge.order):
                    keys, counts = arrays[f"keys{k}"], arrays[f"counts{k}"]
                    if keys.shape != counts.shape or (np.diff(keys) <= 0).any() or (counts < 1).any():
                        raise ValueError(f"level {k} is inconsistent")
                    if len(keys) and not (keys[0] >= 0 and keys[-1] < nodes * judge.vocab_size):
                        raise ValueError(f"level {k} does not fit the level below")
                    judge._levels.append(_level(keys, counts, nodes, judge.vocab_size))
                    nodes = len(keys)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{file} is no n-gram model: {error}") from error
        return judge

    def _ids(self, tokens: Any) -> NDArray[np.int64]:
        ids = np.asarray(tokens)
        if ids.size and ids.dtype.kind not in "iu":
            raise ValueError(f"token ids have to be integers; got {ids.dtype}")
        if ids.size and not (ids.min() >= 0 and ids.max() < self.vocab_size):
            raise ValueError(f"token ids have to lie in [0, {self.vocab_size}); got {ids.min()} to {ids.max()}")
        return ids.astype(np.int64)


def _level(keys: NDArray[np.int64], counts: NDArray[np.int64], nodes: int, vocab_size: int) -> _Level:
    parents = keys // vocab_size
    totals = np.bincount(parents, weights=counts, minlength=nodes).astype(np.int64)
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    # Where nothing is rare (the unigrams of a large text), any discount keeps unseen tokens possible.
    discount = once / (once + 2 * twice) if once and twice else 0.5
    return _Level(keys, counts, totals, np.bincount(parents, minlength=nodes), discount)


def _look_up(level: _Level, keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The places of n-grams in a level, -1 where there is none, and their counts."""
    if len(level.keys) == 0:
        return np.full(len(keys), -1), np.zeros(len(keys), dtype=np.int64)
    place = np.minimum(np.searchsorted(level.keys, keys), len(level.keys) - 1)
    found = level.keys[place] == keys
    return np.where(found, place, -1), np.where(found, level.counts[place], 0)


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix == ".npz" else path / FILE
