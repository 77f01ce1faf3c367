"""Codes of the graph: one parent set a node."""

from __future__ import annotations

from math import comb, log2


def parent_set_bits(d: int, k: int) -> float:
    """Bits of a set of k parents among the d − 1 other variables: log2 d + log2 C(d−1, k).

    k is uniform in 0..d−1, the set uniform among those of its size. Reversing a covered edge keeps the multiset of
    in-degrees, and so the sum over the nodes.
    """
    if not 0 <= k < d:
        raise ValueError(f"{k} parents cannot be chosen among the {d - 1} other of {d} variables")
    return log2(d) + log2(comb(d - 1, k))
