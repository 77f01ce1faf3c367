"""Random numbers that belong to a sequence: the same whatever else is in the batch, and on every device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, as a signed number
_MIX_1 = -4658895280553007687
_MIX_2 = -7723592293110705685


@dataclass
class Streams:
    """One stream of uniform float64 numbers per sequence (SplitMix64: Steele, Lea and Flood 2014).

    Attributes
    ----------
    seeds : (B,) int64, one per sequence.
    count : how many numbers each stream has given.
    """

    seeds: Tensor
    count: int = 0

    @classmethod
    def of(cls, generator: torch.Generator | None, batch: int, device: torch.device | str | None) -> Streams:
        """Streams whose seeds are the next ``batch`` numbers of a generator (or of the global one)."""
        place = generator.device if generator is not None else "cpu"
        seeds = torch.randint(-(2**62), 2**62, (batch,), generator=generator, device=place)
        return cls(seeds.to(device))

    def uniform(self, *shape: int) -> Tensor:
        """(B, *shape) numbers in [0, 1)."""
        n = 1
        for size in shape:
            n *= size
        index = torch.arange(self.count + 1, self.count + n + 1, device=self.seeds.device)
        self.count += n
        state = self.seeds[:, None] + index * _GOLDEN
        state = (state ^ _shift(state, 30)) * _MIX_1
        state = (state ^ _shift(state, 27)) * _MIX_2
        state = state ^ _shift(state, 31)
        return (_shift(state, 11).double() * 2.0**-53).reshape(len(self.seeds), *shape)

    def skip(self, numbers: Tensor) -> Streams:
        """The streams as they are after ``numbers`` (B,) more, int64."""
        return Streams(self.seeds + numbers * _GOLDEN, self.count)

    def select(self, keep: Tensor) -> Streams:
        """The streams of some of the sequences, from where they are."""
        return Streams(self.seeds[keep], self.count)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of a signed 64-bit number."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
