"""Tables of counts T[j, x] (parent configurations × values of the node), and the codes of a block of environments.

q is the number of possible parent configurations and r that of values; only configurations that occur are stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, lgamma, log, log2, prod
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ..data import EnvData
from ..partition import (
    Blocks,
    Links,
    PartitionCode,
    compiled,
    partition_dp,
    partition_dp_by_count,
)
from .nml import ln_nml_memo, new_memo

LN2 = log(2.0)
QNML, FNML, BDEU, KT, BIC, FC = range(6)
TABLE_LIMIT = 2.0**40  # cells of a conditional table; larger parent sets cost inf
DENSE_LIMIT = 1 << 16  # cells up to which a table is counted without looking which configurations occur


@dataclass(frozen=True)
class Table:
    """Rows of codes: what the discrete codes need of one block; `a + b` are the rows of both."""

    rows: NDArray[np.intp]
    arities: tuple[int, ...]

    def __add__(self, other: Table) -> Table:
        return Table(np.vstack([self.rows, other.rows]), self.arities)


@dataclass(frozen=True)
class DiscreteCode:
    """A code of conditional tables by name.

    qnml : quotient of NML codes, f(S∪v) − f(S) with f = −log2 ML + log2 C(n, arities' product); a score without
        parameters, score-equivalent, but no code: conditional masses sum to more than one (Silander et al. 2018).
    fnml : Σ_j −log2 ML_j + log2 C(n_j, r). bdeu : Dirichlet evidence with ess/(q·r) a cell. kt : the same with ½ a
    cell. bic : −log2 ML + q(r−1)/2·log2 n. fc : each row of the table the most likely point of the simplex grid
        with `resolution` steps, at log2 C(resolution+r−1, r−1) bits.
    """

    name: str = "qnml"
    ess: float = 1.0
    resolution: int = 16

    @property
    def kind(self) -> int:
        return KINDS[self.name]

    @property
    def is_code(self) -> bool:
        return self.name in ("fnml", "bdeu", "kt", "fc")

    @property
    def score_equivalent(self) -> bool:
        return self.name in ("qnml", "bdeu", "bic")

    def stats(self, X: NDArray[Any], arities: tuple[int, ...] | None = None) -> Table:
        """Rows of codes X (n, d) in 0..arity−1."""
        rows = np.asarray(X).astype(np.intp)
        return Table(rows, arities or tuple(int(a) for a in rows.max(axis=0, initial=0) + 1))

    def bits(self, stats: Table, node: int, parents: tuple[int, ...]) -> float:
        """Bits of one block's column `node` given its columns `parents`."""
        n = len(stats.rows)
        block = Tables(self, stats.rows, np.zeros(n, dtype=np.intp), np.ones(n), 1, stats.arities, new_memo(n))
        return block.block_bits(node, parents, ((0,),))[0]


KINDS = {"qnml": QNML, "fnml": FNML, "bdeu": BDEU, "kt": KT, "bic": BIC, "fc": FC}


@dataclass(frozen=True)
class Tables:
    """The discrete data of all environments and the code that reads them.

    rows : (m, d) codes, env : (m,) environments, weight : (m,) how often this row occurs there.
    """

    code: DiscreteCode
    rows: NDArray[np.intp]
    env: NDArray[np.intp]
    weight: NDArray[np.float64]
    n_envs: int
    arities: tuple[int, ...]
    memo: NDArray[np.float64]

    @property
    def n_per_env(self) -> NDArray[np.float64]:
        return np.bincount(self.env, self.weight, minlength=self.n_envs).astype(float)

    def partition(
        self, node: int, parents: tuple[int, ...], code: PartitionCode, links: Links, exact: bool
    ) -> tuple[float, NDArray[np.int64]]:
        """Bits of the best partition for one (node, parents), with the partition code, and each environment's block."""
        if self._too_large(node, parents):
            return inf, np.zeros(self.n_envs, dtype=np.int64)
        tables, args = self._count(node, parents)
        if len(links.groups) < self.n_envs:
            tables = np.array([tables[list(group)].sum(axis=0) for group in links.groups])
        if exact:
            total, labels = _exact(
                tables, links.sizes, code.size_bits, code.count_bits, links.apart, code.name == "crp", args
            )
        else:
            total, labels = _agglomerate(tables, links.sizes, code.size_bits, code.count_bits, links.apart, args)
        return float(total), links.spread(labels)

    def block_bits(self, node: int, parents: tuple[int, ...], blocks: Blocks) -> list[float]:
        """Bits of the mechanism of each block."""
        if self._too_large(node, parents):
            return [inf] * len(blocks)
        tables, args = self._count(node, parents)
        return [float(table_bits(tables[list(block)].sum(axis=0), args)) for block in blocks]

    def _count(self, node: int, parents: tuple[int, ...]) -> tuple[NDArray[np.float64], Any]:
        """Counts (n_envs, observed configurations · r) and the arguments of `table_bits`."""
        r = self.arities[node]
        sizes = [self.arities[p] for p in parents]
        q = prod(sizes)
        strides = np.array([prod(sizes[:i]) for i in range(len(sizes))], dtype=np.intp)
        config = pack(self.rows, np.array(parents, dtype=np.intp), strides)
        observed = q
        if q * r > max(DENSE_LIMIT // self.n_envs, r):
            found, config = np.unique(config, return_inverse=True)
            observed = len(found)
        tables = count(config, self.rows[:, node], self.env, self.weight, self.n_envs, observed, r)
        if observed == q and q > 1:
            tables = tables[:, tables.sum(axis=(0, 2)) > 0]
        option = self.code.ess if self.code.kind == BDEU else float(self.code.resolution)
        flat = np.ascontiguousarray(tables.reshape(self.n_envs, -1))
        return flat, (self.code.kind, r, float(q), option, self.memo)

    def _too_large(self, node: int, parents: tuple[int, ...]) -> bool:
        return sum(log2(self.arities[c]) for c in (*parents, node)) > log2(TABLE_LIMIT)


def design(data: EnvData, code: DiscreteCode) -> Tables:
    """Levels of every column as codes; rows that occur several times in an environment are stored once."""
    rows = np.ascontiguousarray(data.rows().astype(np.intp))
    env, weight = data.env, np.ones(len(rows))
    if data.n_envs * prod(data.arities) < 2**62:
        strides = np.array([prod(data.arities[:i]) for i in range(data.d)], dtype=np.intp)
        key = env * prod(data.arities) + pack(rows, np.arange(data.d), strides)
        _, first, counts = np.unique(key, return_index=True, return_counts=True)
        rows, env, weight = rows[first], env[first], counts.astype(float)
    return Tables(code, rows, env, weight, data.n_envs, data.arities, new_memo(data.n))


@njit(cache=True, nogil=True)
def pack(rows: NDArray[np.intp], parents: NDArray[np.intp], strides: NDArray[np.intp]) -> NDArray[np.intp]:
    """The configuration of the parents in each row as one number."""
    out = np.zeros(rows.shape[0], dtype=np.int64)
    for i in range(rows.shape[0]):
        for c in range(parents.size):
            out[i] += strides[c] * rows[i, parents[c]]
    return out


@njit(cache=True, nogil=True)
def count(
    config: NDArray[np.intp],
    child: NDArray[np.intp],
    env: NDArray[np.intp],
    weight: NDArray[np.float64],
    n_envs: int,
    q: int,
    r: int,
) -> NDArray[np.float64]:
    """Counts (n_envs, q, r)."""
    out = np.zeros((n_envs, q, r))
    for i in range(config.size):
        out[env[i], config[i], child[i]] += weight[i]
    return out


@njit(cache=True, nogil=True)
def merge_tables(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Counts of both."""
    return a + b


@njit(cache=True, nogil=True)
def table_bits(stat: NDArray[np.float64], args: Any) -> float:
    """Bits of the node given its parents for one block with counts `stat`, row by row."""
    kind, r, q, option, memo = args
    n = 0.0
    nats = 0.0
    alpha = 0.5 if kind == KT else option / (q * r)
    for j in range(stat.size // r):
        row = 0.0
        for x in range(r):
            row += stat[j * r + x]
        if row == 0.0:
            continue
        n += row
        if kind in (BDEU, KT):
            nats += lgamma(row + alpha * r) - lgamma(alpha * r)
            for x in range(r):
                t = stat[j * r + x]
                if t > 0.0:
                    nats += lgamma(alpha) - lgamma(t + alpha)
        elif kind == FC:
            nats += _grid_nats(stat[j * r : (j + 1) * r], int(option))
        else:
            nats += row * log(row)
            for x in range(r):
                t = stat[j * r + x]
                if t > 1.0:
                    nats -= t * log(t)
            if kind == FNML:
                nats += ln_nml_memo(row, float(r), memo)
    if n == 0.0:
        return 0.0
    if kind == QNML:
        nats += ln_nml_memo(n, q * r, memo) - ln_nml_memo(n, q, memo)
    elif kind == BIC:
        nats += 0.5 * q * (r - 1.0) * log(n)
    elif kind == FC:
        nats += q * (lgamma(option + r) - lgamma(float(r)) - lgamma(option + 1.0))
    return nats / LN2


@njit(cache=True, nogil=True)
def _grid_nats(counts: NDArray[np.float64], m: int) -> float:
    """Least −Σ counts·ln(k/m) over k with Σ k = m: one step at a time where it gains most, exact by concavity."""
    k = np.zeros(counts.size)
    left = m
    for x in range(counts.size):
        if counts[x] > 0.0:
            k[x] = 1.0
            left -= 1
    if left < 0:
        return inf
    for _ in range(left):
        best, arg = -1.0, 0
        for x in range(counts.size):
            if counts[x] > 0.0:
                gain = counts[x] * log((k[x] + 1.0) / k[x])
                if gain > best:
                    best, arg = gain, x
        k[arg] += 1.0
    nats = 0.0
    for x in range(counts.size):
        if counts[x] > 0.0:
            nats -= counts[x] * log(k[x] / m)
    return nats


_agglomerate_items, _block_costs_of_items = compiled("tables", merge_tables, table_bits)


@njit(cache=True, nogil=True)
def _agglomerate(
    tables: NDArray[np.float64],
    sizes: NDArray[np.int64],
    size_bits: NDArray[np.float64],
    count_bits: NDArray[np.float64],
    apart: NDArray[np.bool_],
    args: Any,
) -> Any:
    return _agglomerate_items(tables, sizes, size_bits, count_bits, apart, args)


@njit(cache=True, nogil=True)
def _exact(
    tables: NDArray[np.float64],
    sizes: NDArray[np.int64],
    size_bits: NDArray[np.float64],
    count_bits: NDArray[np.float64],
    apart: NDArray[np.bool_],
    additive: bool,
    args: Any,
) -> Any:
    cost = _block_costs_of_items(tables, sizes, size_bits, apart, args)
    if additive:
        total, label = partition_dp(cost, sizes.size)
        return total + count_bits[0], label
    return partition_dp_by_count(cost, sizes.size, count_bits)
