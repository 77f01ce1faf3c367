"""Sequences for training and evaluation: everything is a pure function of (seed, epoch, index).

Neither the data set nor the order has a state beyond a position in the stream, so that a run resumes exactly where it
stopped, also on another number of processes, and starts at once however large the corpus is.
"""

from __future__ import annotations

import math
import signal
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader

from ..errors import DataError
from .prepared import Corpus

MODES = ("crop", "pack", "pad")
AHEAD = 64  # batches whose indices are computed at once


class TokenDataset(Dataset[dict[str, Tensor]]):
    """Sequences of ``length`` tokens from one split of a corpus.

    ``dataset[index]`` is ``{"tokens": int64 (L,), "loss_mask": bool (L,)}``, where the mask is False on padding and on
    repeated tokens. An index counts through the epochs: index ``e * len(dataset) + i`` is sequence i of epoch e, which
    matters to the mode "crop". The index ``~index`` is the same sequence with an empty loss mask: it fills up a batch.

    Parameters
    ----------
    mode : "crop": a random window of a document, begin and end tokens included, one per document and epoch (the
        paper's); "pack": contiguous blocks across documents, of which the last reaches back to be full; "pad": whole
        documents. Short sequences are padded on the right.

    Raises
    ------
    DataError
        The split is empty, a document is longer than ``length`` in the mode "pad", or padding is needed and the corpus
        has no token for it.
    """

    def __init__(self, corpus: Corpus, split: str, length: int, mode: str = "crop", seed: int = 0) -> None:
        if mode not in MODES:
            raise ValueError(f"mode {mode!r} is not one of {', '.join(MODES)}")
        if length < 1:
            raise ValueError(f"length has to be at least 1; got {length}")
        counts = corpus.meta["splits"][split] if corpus.num_tokens(split) else None
        if counts is None:
            raise DataError(f"{corpus.path} has no documents in the split {split!r}")
        if mode == "pad" and counts["longest"] > length:
            raise DataError(
                f"the longest document of {corpus.path} has {counts['longest']} tokens: mode 'pad' cannot cut it to "
                f"length {length}; take a larger length or mode 'crop'"
            )
        shortest = counts["tokens"] if mode == "pack" else counts["shortest"]
        if corpus.pad_id is None and shortest < length:
            raise DataError(
                f"mode {mode!r} has to pad {shortest} tokens to length {length}, and the tokenizer of {corpus.path} "
                f"has no padding token; take a smaller length"
            )
        self.corpus, self.split, self.length, self.mode, self.seed = corpus, split, length, mode, seed
        # Plain arrays over the same mapped memory: indexing a memmap costs several times as much.
        self._tokens, self._offsets = np.asarray(corpus.tokens(split)), np.asarray(corpus.offsets(split))

    def __len__(self) -> int:
        if self.mode == "pack":
            return -(-len(self._tokens) // self.length)
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: value[0] for name, value in self.__getitems__([index]).items()}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self[i] for i in range(len(self)))

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """A batch at once, {"tokens": (B, L), "loss_mask": (B, L)}: torch's loaders call this where it exists."""
        index = np.asarray(indices, dtype=np.int64)
        filler = index < 0
        index = np.where(filler, ~index, index)
        number = index % len(self)
        start, end, seen = self._windows(index, number)
        at = start[:, None] + np.arange(self.length)
        real = at < end[:, None]
        if real.all():
            tokens = self._tokens[at].astype(np.int64)
        else:
            tokens = np.where(real, self._tokens[np.minimum(at, end[:, None] - 1)].astype(np.int64), self.corpus.pad_id)
        counts = real & (at >= seen[:, None]) & ~filler[:, None]
        return {"tokens": torch.from_numpy(tokens), "loss_mask": torch.from_numpy(counts)}

    def _windows(self, index: NDArray[np.int64], number: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
        """Per sequence: its first token, where its text ends, and before which token the text was seen already."""
        if self.mode == "pack":
            end = np.minimum((number + 1) * self.length, len(self._tokens))
            seen = number * self.length
            return np.maximum(end - self.length, 0), end, seen
        start, end = self._offsets[number], self._offsets[number + 1]
        if self.mode == "crop":
            room = np.maximum(end - start - self.length, 0) + 1
            draw = _mix(index.astype(np.uint64) ^ _mix(np.uint64(self.seed % 2**64)))
            start = start + (draw % room.astype(np.uint64)).astype(np.int64)
        return start, end, start

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenDataset, (self.corpus, self.split, self.length, self.mode, self.seed)


class ShardedBatches(Sampler[list[int]]):
    """Batches of indices for one rank: of every ``world_size * batch_size`` samples, rank r takes the r-th part.

    Within an epoch every sample comes exactly once over all ranks, in an order shuffled by (seed, epoch). A pass is an
    epoch; the last batches are filled up with indices ``~i``, which do not count, so that all ranks make as many steps.
    An ``endless`` stream goes on into the next epoch instead and never ends.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        endless: bool = False,
        start: int = 0,
    ) -> None:
        if not (size >= 1 and batch_size >= 1 and start >= 0 and 0 <= rank < world_size):
            raise ValueError(
                f"need size, batch_size >= 1, start >= 0 and 0 <= rank < world_size; got size={size}, "
                f"batch_size={batch_size}, start={start}, rank={rank}, world_size={world_size}"
            )
        self.size, self.batch_size, self.rank, self.world_size = size, batch_size, rank, world_size
        self.seed, self.shuffle, self.endless = seed, shuffle, endless
        self.start = start

    @property
    def step(self) -> int:
        """Samples of the stream that a batch of every rank takes."""
        return self.batch_size * self.world_size

    def ahead(self, position: int, count: int) -> NDArray[np.int64]:
        """(count, B) indices of this rank's batches from where ``position`` samples of the stream have gone."""
        begin = position + self.step * np.arange(count)[:, None]
        positions = begin + self.rank * self.batch_size + np.arange(self.batch_size)
        last = (begin // self.size + 1) * self.size - 1
        beyond = np.zeros_like(positions, dtype=bool) if self.endless else positions > last
        epoch, number = np.divmod(np.where(beyond, last, positions), self.size)
        if self.shuffle:
            key = _mix(epoch.astype(np.uint64) ^ _mix(np.uint64(self.seed % 2**64)))
            number = shuffled(number.ravel(), self.size, key.ravel()).reshape(number.shape)
        index = epoch * self.size + number
        return np.where(beyond, ~index, index)

    def __iter__(self) -> _Position:
        return _Position(self)

    def __len__(self) -> int:
        if self.endless:
            raise TypeError("an endless stream of batches has no length")
        return -(-self.size // self.step)


class _Position(Iterator[list[int]]):
    """A position in the stream; the state that a checkpoint holds."""

    def __init__(self, batches: ShardedBatches) -> None:
        self.batches = batches
        self.position: int | None = None
        self.end: int | None = None
        self._known = np.empty((0, batches.batch_size), dtype=np.int64)
        self._known_from = 0

    def __next__(self) -> list[int]:
        # The first step decides where this pass begins, since loaders create more iterators than they use.
        if self.position is None:
            self._begin(self.batches.start)
        assert self.position is not None
        if self.end is not None and self.position >= self.end:
            raise StopIteration
        indices = self._indices(self.position)
        self.position += self.batches.step
        if self.end is not None:
            self.position = min(self.position, self.end)
        if self.batches.endless:
            self.batches.start = self.position
        return indices

    def _indices(self, position: int) -> list[int]:
        row, rest = divmod(position - self._known_from, self.batches.step)
        if rest or not 0 <= row < len(self._known):
            self._known, self._known_from, row = self.batches.ahead(position, AHEAD), position, 0
        return self._known[row].tolist()

    def _begin(self, position: int) -> None:
        self.position = position
        if not self.batches.endless:
            self.end = (position // self.batches.size + 1) * self.batches.size
            self.batches.start = self.end

    def state_dict(self) -> dict[str, Any]:
        position = self.batches.start if self.position is None else self.position
        return {"position": position, "end": self.end, "size": self.batches.size, "seed": self.batches.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        own = {"size": self.batches.size, "seed": self.batches.seed}
        for name, value in own.items():
            if state[name] != value:
                raise DataError(f"the loader's state belongs to other data: {name} {state[name]} instead of {value}")
        position, end = int(state["position"]), state["end"]
        if self.batches.endless or end is None:
            # Also a pass that has not begun: its first step will look where to start.
            self.position, self.end, self.batches.start = None, None, position
        else:
            self.position, self.end, self.batches.start = position, int(end), int(end)


def make_loader(
    dataset: TokenDataset,
    batch_size: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    workers: int = 0,
    shuffle: bool = True,
    endless: bool = False,
    start: int = 0,
    pin_memory: bool = False,
) -> StatefulDataLoader:
    """A loader of batches {"tokens": int64 (B, L), "loss_mask": bool (B, L)} that can stop and go on anywhere.

    Parameters
    ----------
    batch_size : B, sequences per rank and step.
    rank, world_size : this process takes its share of every global batch; the shares do not overlap.
    seed : of the order, which is another one in every epoch.
    workers : background processes.
    shuffle : False keeps the order of the corpus.
    endless : True gives full batches for ever, for training. False ends after one epoch, the next pass being the next
        epoch; where samples are missing in the last batch, others with an empty loss mask fill it up.
    start : samples of the stream, over all ranks and epochs, that are done already. After k steps that is
        ``k * batch_size * world_size`` when endless.

    The loader's ``state_dict()`` is the same on all ranks and may be loaded with another ``world_size``, but with as
    many workers; ``start`` resumes with any number of both.
    """
    batches = ShardedBatches(
        len(dataset),
        batch_size,
        rank=rank,
        world_size=world_size,
        seed=seed,
        shuffle=shuffle,
        endless=endless,
        start=start,
    )
    with warnings.catch_warnings():
        # torchdata 0.11 calls a function that newer versions of torch warn about.
        warnings.filterwarnings("ignore", message=".*set_vital")
        return StatefulDataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=_packed,
            pin_memory=pin_memory,
            worker_init_fn=_deaf,
        )


def shuffled(position: NDArray[np.int64], size: int, key: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The position-th element of a random permutation of range(size), without making the permutation.

    A Feistel network permutes a grid of a x b >= size cells; what leaves the range walks on until it is back inside.

    Parameters
    ----------
    position : (B,) in [0, size).
    key : (B,) uint64, which permutation.
    """
    a = np.uint64(math.isqrt(size - 1) + 1)
    b = np.uint64(-(-size // int(a)))
    keys = _mix(key + np.arange(8, dtype=np.uint64)[:, None])
    out = position.astype(np.uint64)
    outside = np.arange(len(out))
    while len(outside):
        row, column = out[outside] // b, out[outside] % b
        for k in range(0, 8, 2):
            row = (row + _mix(column ^ keys[k, outside]) % a) % a
            column = (column + _mix(row ^ keys[k + 1, outside]) % b) % b
        out[outside] = row * b + column
        outside = outside[out[outside] >= size]
    return out.astype(np.int64)


def _mix(x: Any) -> Any:
    """SplitMix64's finaliser on uint64: every bit of the result depends on every bit of x."""
    with np.errstate(over="ignore"):
        x = np.asarray(x, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _deaf(worker: int) -> None:
    """Ctrl-C goes to all processes of a terminal; what it means is up to the one that owns the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _packed(batch: dict[str, Tensor]) -> Any:
    """The batch; from a worker, something that becomes the batch where it arrives.

    Tensors travel as shared memory, two files a batch. That takes longer than copying a few thousand numbers.
    """
    return batch if get_worker_info() is None else _Parcel(batch)


class _Parcel:
    def __init__(self, batch: dict[str, Tensor]) -> None:
        self.batch = batch

    def __reduce__(self) -> tuple[Any, ...]:
        mask = self.batch["loss_mask"].numpy()
        return _unpacked, (self.batch["tokens"].numpy().astype(np.int32), None if mask.all() else mask)


def _unpacked(tokens: NDArray[np.int32], mask: NDArray[np.bool_] | None) -> dict[str, Tensor]:
    counts = np.ones(tokens.shape, dtype=bool) if mask is None else mask
    return {"tokens": torch.from_numpy(tokens.astype(np.int64)), "loss_mask": torch.from_numpy(counts)}
