"""The local score s(v, S) = L_pa(S) + min_Π [L_part(Π) + Σ_{B∈Π} L_mech(B)], and its cache for the searches."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .codes import basis, discrete, gaussian, mixed, split
from .codes.graph_codes import parent_set_bits
from .codes.moments import Design
from .data import EnvData, sum_of
from .errors import DataError, LimitError
from .partition import EXACT_LIMIT, Blocks, Links, PartitionCode, best_partition, blocks_of

Request = tuple[int, tuple[int, ...]]  # a variable and its parents, sorted
CODES = {
    "gaussian": ("bge", "bic"),
    "discrete": ("qnml", "fnml", "bdeu", "kt", "bic", "fc"),
    "basis": ("nig",),
    "mixed": ("bge",),
}  # the first is the default
PROPER_CODE = {"gaussian": "bge", "discrete": "fnml", "basis": "nig", "mixed": None}  # what may bound a description


@dataclass(frozen=True)
class LocalScore:
    """The bits of one variable given its parents, with the partition of the environments that they are for.

    bits = mechanism_bits + partition_bits + parent_bits. `partition` holds blocks of environment labels and
    `block_bits` the bits of the mechanism of each. `components` is the partition of each slot ("intercept", "slope",
    "noise") where those change apart; `partition` is then their common refinement, partition_bits the sum over slots
    and block_bits empty. Continuous bits are −log2 densities in the units of the data.
    """

    bits: float
    mechanism_bits: float
    partition_bits: float
    parent_bits: float
    partition: tuple[tuple[Hashable, ...], ...]
    block_bits: tuple[float, ...]
    components: dict[str, tuple[tuple[Hashable, ...], ...]] | None = None


@dataclass(frozen=True)
class Scorer:
    """Local scores of data under one code of mechanisms, each computed once.

    `score(v, parents)` is what the searches call; v and parents (sorted) are column numbers. `is_code` says whether
    the bits are those of a code, `score_equivalent` whether Markov-equivalent graphs with the same partitions tie.
    """

    data: EnvData
    code: Any
    design: Any
    part_code: PartitionCode
    links: Mapping[int, Links]
    exact: bool
    n_jobs: int = 1
    cache: dict[Request, tuple[float, NDArray[np.int64]]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        data: EnvData,
        family: str = "gaussian",
        code: Any = "auto",
        *,
        components: str = "joint",
        theta: float = 1.0,
        part_code: str = "crp",
        exact: bool | str = "auto",
        exact_partition_max: int = 6,
        standardize: bool = True,
        precision: Any = None,
        must_link: Mapping[Hashable, Iterable[tuple[Hashable, Hashable]]] | None = None,
        cannot_link: Mapping[Hashable, Iterable[tuple[Hashable, Hashable]]] | None = None,
        n_jobs: int = 1,
        **options: Any,
    ) -> Scorer:
        """Read the statistics of `data` for a family and a code.

        code : a name of CODES[family], "auto" for the first, a name in the entry-point group `algocause.codes`, or a
            code object. exact : whether partitions are optimal; "auto" for at most `exact_partition_max` environments.
        components : "joint", or "split" for partitions of intercept, slopes and noise apart (gaussian, bic), which
            are always found greedily.
        precision : resolution of each variable, a number or (d,); the default 1 leaves densities.
        must_link, cannot_link : for a column, pairs of environments that share its mechanism or do not.
        options : bge_alpha_mu, bdeu_ess, n_basis, resolution.
        """
        if part_code not in ("crp", "stirling"):
            raise DataError(f'part_code must be "crp" or "stirling", not {part_code!r}')
        if not theta > 0:
            raise DataError(f"theta must be positive, not {theta}")
        chosen = find_code(family, code, components, **options)
        links = links_of(data, must_link or {}, cannot_link or {})
        n_items = max([len(found.groups) for found in links.values()] + [0 if len(links) == data.d else data.n_envs])
        optimal = n_items <= exact_partition_max if exact == "auto" else bool(exact)
        if optimal and n_items > EXACT_LIMIT:
            raise LimitError(f"exact partitions of {n_items} environments: the limit is {EXACT_LIMIT}; use exact=False")
        if precision is not None and not np.all(np.asarray(precision, dtype=float) > 0):
            raise DataError(f"precision must be positive, not {precision}")
        design = read_design(data, chosen, standardize, precision)
        return cls(
            data, chosen, design, PartitionCode.of(part_code, data.n_envs, theta), links, optimal, max(1, n_jobs)
        )

    @property
    def is_code(self) -> bool:
        return bool(self.code.is_code)

    @property
    def score_equivalent(self) -> bool:
        return bool(self.code.score_equivalent)

    def score(self, v: int, parents: tuple[int, ...]) -> float:
        """Bits of variable v given its parents (sorted), with the best partition of the environments."""
        return self._best(v, parents)[0]

    def partition(self, v: int, parents: tuple[int, ...]) -> tuple[tuple[Hashable, ...], ...]:
        """The partition behind `score`, in blocks of environment labels."""
        return self._labelled(blocks_of(self._best(v, parents)[1]))

    def scores(self, requests: Sequence[Request]) -> NDArray[np.float64]:
        """`score` of every (v, parents), on `n_jobs` threads: the compiled loops release the interpreter's lock."""
        missing = [request for request in dict.fromkeys(requests) if request not in self.cache]
        if self.n_jobs == 1 or len(missing) < 2:
            self._fill(missing)
        else:
            with ThreadPoolExecutor(self.n_jobs) as pool:
                list(pool.map(self._fill, [missing[i :: self.n_jobs] for i in range(self.n_jobs)]))
        return np.array([self.cache[request][0] for request in requests])

    def local(self, v: int, parents: tuple[int, ...], partition: Blocks | None = None) -> LocalScore:
        """The score in its parts; `partition` (blocks of environment numbers) fixes the partition."""
        parent_bits = parent_set_bits(self.data.d, len(parents))
        if isinstance(self.design, split.SplitDesign):
            return self._local_split(v, parents, partition, parent_bits)
        blocks = blocks_of(self._best(v, parents)[1]) if partition is None else partition
        block_bits = tuple(self.design.block_bits(v, parents, blocks))
        partition_bits = self.part_code.bits([len(block) for block in blocks])
        mechanism_bits = float(sum(block_bits))
        return LocalScore(
            bits=mechanism_bits + partition_bits + parent_bits,
            mechanism_bits=mechanism_bits,
            partition_bits=partition_bits,
            parent_bits=parent_bits,
            partition=self._labelled(blocks),
            block_bits=block_bits,
        )

    def _local_split(
        self, v: int, parents: tuple[int, ...], partition: Blocks | None, parent_bits: float
    ) -> LocalScore:
        if partition is None:
            bits, slots = self.design.components(v, parents, self.part_code, self._links(v))
        else:
            slots = dict.fromkeys(split.SLOTS if parents else ("intercept", "noise"), partition)
            bits = inf
        partition_bits = sum(self.part_code.bits([len(block) for block in blocks]) for blocks in slots.values())
        mechanism_bits = bits - partition_bits if partition is None else self.design.slot_bits(v, parents, slots)
        return LocalScore(
            bits=mechanism_bits + partition_bits + parent_bits,
            mechanism_bits=mechanism_bits,
            partition_bits=partition_bits,
            parent_bits=parent_bits,
            partition=self._labelled(split.refinement(list(slots.values()))),
            block_bits=(),
            components={slot: self._labelled(blocks) for slot, blocks in slots.items()},
        )

    def _best(self, v: int, parents: tuple[int, ...]) -> tuple[float, NDArray[np.int64]]:
        key = (v, parents)
        found = self.cache.get(key)
        if found is None:
            bits, labels = self.design.partition(v, parents, self.part_code, self._links(v), self.exact)
            found = self.cache[key] = (bits + parent_set_bits(self.data.d, len(parents)), labels)
        return found

    def _fill(self, requests: Sequence[Request]) -> None:
        if not isinstance(self.design, Design):
            for v, parents in requests:
                self._best(v, parents)
            return
        for key in {v if v in self.links else -1 for v, _ in requests}:
            chosen = [r for r in requests if (r[0] if r[0] in self.links else -1) == key]
            bits, labels = self.design.partitions(chosen, self.part_code, self.links[key], self.exact)
            for request, b, row in zip(chosen, bits, labels, strict=True):
                self.cache[request] = (float(b) + parent_set_bits(self.data.d, len(request[1])), row)

    def _links(self, v: int) -> Links:
        return self.links[v] if v in self.links else self.links[-1]

    def _labelled(self, blocks: Blocks) -> tuple[tuple[Hashable, ...], ...]:
        return tuple(tuple(self.data.labels[i] for i in block) for block in blocks)


def local_score(
    X: Any,
    env: Any,
    node: Hashable,
    parents: Iterable[Hashable],
    family: str = "gaussian",
    code: Any = "bge",
    theta: float = 1.0,
    partition: Iterable[Iterable[Hashable]] | None = None,
    exact: bool | str = "auto",
    standardize: bool = True,
    part_code: str = "crp",
    **kw: Any,
) -> LocalScore:
    """Bits of one variable given its parents over all environments.

    X : (n, d) array or DataFrame; env : (n,) labels, a column's name, or None for one environment.
    node, parents : columns, by name or number. partition : blocks of labels to use in place of the best ones.
    family, code : a key of CODES and one of its names; "bge" and "auto" stand for the default code of any family.
    exact, standardize, part_code, theta and kw : as in `Scorer.of`.
    Returns a LocalScore. Raises DataError for data or arguments that do not fit, LimitError for exact partitions of
    too many environments, DegenerateError for exact collinearity under bic.
    """
    data = EnvData.read(X, env, family if family in CODES else "gaussian")
    chosen = "auto" if code == "bge" else code
    v = data.index(node)
    S = tuple(sorted(data.index(p) for p in parents))
    if v in S or len(set(S)) < len(S):
        raise DataError(f"parents must be distinct and not the node itself: node {node!r}, parents {list(parents)!r}")
    if partition is not None:
        exact = False
    scorer = Scorer.of(
        data, family, chosen, theta=theta, exact=exact, standardize=standardize, part_code=part_code, **kw
    )
    return scorer.local(v, S, None if partition is None else blocks_from_labels(data, partition))


def blocks_from_labels(data: EnvData, partition: Iterable[Iterable[Hashable]]) -> Blocks:
    """Blocks of environment numbers, ordered by their smallest; DataError unless they cover each label once."""
    place = {label: i for i, label in enumerate(data.labels)}
    given = [list(block) for block in partition]
    flat = [label for block in given for label in block]
    wrong = sorted({repr(label) for label in flat if label not in place or flat.count(label) > 1})
    absent = [repr(label) for label in data.labels if label not in flat]
    if wrong or absent or any(not block for block in given):
        raise DataError(
            "partition must hold every environment exactly once: "
            f"unknown or repeated {', '.join(wrong[:8]) or 'none'}; absent {', '.join(absent[:8]) or 'none'}"
        )
    return tuple(sorted(tuple(sorted(place[label] for label in block)) for block in given))


def links_of(
    data: EnvData,
    must_link: Mapping[Hashable, Iterable[tuple[Hashable, Hashable]]],
    cannot_link: Mapping[Hashable, Iterable[tuple[Hashable, Hashable]]],
) -> dict[int, Links]:
    """Links of environment numbers for each column; key −1 for the columns about which nothing is known."""
    place = {label: i for i, label in enumerate(data.labels)}

    def pairs(links: Mapping[Hashable, Iterable[tuple[Hashable, Hashable]]]) -> dict[int, list[tuple[int, int]]]:
        unknown = sorted({repr(e) for given in links.values() for pair in given for e in pair if e not in place})
        if unknown:
            raise DataError(f"links name unknown environments {', '.join(unknown[:8])}")
        return {data.index(c): [(place[a], place[b]) for a, b in given] for c, given in links.items()}

    must, cannot = pairs(must_link), pairs(cannot_link)
    found = {v: Links.of(data.n_envs, must.get(v, ()), cannot.get(v, ())) for v in {*must, *cannot}}
    return {-1: Links.of(data.n_envs), **found}


def find_code(family: str, code: Any, components: str = "joint", **options: Any) -> Any:
    """The code object of a name; objects pass through. Other names are looked up as entry points `algocause.codes`."""
    unknown = set(options) - {"bge_alpha_mu", "bdeu_ess", "n_basis", "resolution"}
    if unknown:
        raise DataError(f"unknown options {', '.join(sorted(unknown))}")
    if family not in CODES:
        raise DataError(f"family must be one of {', '.join(CODES)}, not {family!r}")
    if components not in ("joint", "split"):
        raise DataError(f'components must be "joint" or "split", not {components!r}')
    if not isinstance(code, str):
        return code
    if components == "split":
        if family != "gaussian" or code not in ("auto", "bic"):
            raise DataError(f'components="split" needs family "gaussian" and code "bic", not {family!r} and {code!r}')
        return split.SplitBic()
    name = CODES[family][0] if code == "auto" else code
    if name not in CODES[family]:
        return _entry_point(family, name)
    if family == "gaussian":
        return gaussian.Bge(options.get("bge_alpha_mu", 1.0)) if name == "bge" else gaussian.GaussianBic()
    if family == "basis":
        return basis.Nig(options.get("n_basis", 8))
    if family == "mixed":
        return mixed.DegenerateGaussian(options.get("bge_alpha_mu", 1.0))
    return discrete.DiscreteCode(name, options.get("bdeu_ess", 1.0), options.get("resolution", 16))


def _entry_point(family: str, name: str) -> Any:
    from importlib.metadata import entry_points

    found = [point for point in entry_points(group="algocause.codes") if point.name == name]
    if not found:
        raise DataError(f"family {family!r} has no code {name!r}: it has {', '.join(CODES[family])}")
    return found[0].load()()


def read_design(data: EnvData, code: Any, standardize: bool, precision: Any) -> Any:
    """The statistics of all environments under a code, read once."""
    if isinstance(code, discrete.DiscreteCode):
        return discrete.design(data, code)
    for kinds, module in (
        ((gaussian.Bge, gaussian.GaussianBic), gaussian),
        (basis.Nig, basis),
        (mixed.DegenerateGaussian, mixed),
        (split.SplitBic, split),
    ):
        if isinstance(code, kinds):
            return module.design(data, code, standardize, precision)
    return OtherDesign.read(data, code)


@dataclass(frozen=True)
class OtherDesign:
    """Statistics of a code from outside: `code.stats(rows)` of each environment, added, read by `code.bits`."""

    code: Any
    stats: tuple[Any, ...]

    @classmethod
    def read(cls, data: EnvData, code: Any) -> OtherDesign:
        return cls(code, tuple(code.stats(data.rows()[data.env == e]) for e in range(data.n_envs)))

    def partition(
        self, node: int, parents: tuple[int, ...], code: PartitionCode, links: Links, exact: bool
    ) -> tuple[float, NDArray[np.int64]]:
        """Bits of the best partition for one (node, parents), with the partition code, and each environment's block."""
        return best_partition(self.stats, lambda stat: float(self.code.bits(stat, node, parents)), code, links, exact)

    def block_bits(self, node: int, parents: tuple[int, ...], blocks: Blocks) -> list[float]:
        """Bits of the mechanism of each block."""
        return [float(self.code.bits(sum_of([self.stats[i] for i in b]), node, parents)) for b in blocks]
