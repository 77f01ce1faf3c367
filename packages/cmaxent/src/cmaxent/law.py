"""The law of variables whose factors are known: marginals, conditionals, points, and what interventions make of it.

A generic fit freezes the factors of the causes before it chooses the mechanism of an effect (spec 2.1, 2.6). Here is
all that it asks of the frozen part. Where every variable has nodes (its values, or a quadrature rule),
marginals come from variable elimination; otherwise from a scrambled Sobol sample pushed through the factors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import qmc

from .errors import CMaxEntError, StateSpaceTooLargeError
from .factors import Array, Factor, PointMass, Values, label_codes
from .tilted import Nodes, product_nodes

LARGEST_TABLE = 1 << 22  # entries of an intermediate table of variable elimination (32 MiB)
_LARGEST_INTEGRAL = 1 << 12  # nodes over which one conditional expectation sums; beyond, quasi-Monte-Carlo
_SOBOL_POINTS = 1 << 11

Table: TypeAlias = "tuple[tuple[str, ...], Array]"
Conditional: TypeAlias = "Callable[[Values, int], tuple[dict[str, NDArray[Any]], Array]]"


@dataclass(frozen=True)
class Law:
    """p(x) = product of factors in topological order.

    Attributes
    ----------
    factors : each parent belongs to an earlier factor.
    nodes : the nodes of single variables; variables of a block on scattered points have none.
    seed : of the Sobol sequences.
    """

    factors: tuple[Factor, ...] = ()
    nodes: Mapping[str, Nodes] = field(default_factory=dict)
    seed: int = 0

    def then(self, factor: Factor, nodes: Mapping[str, Nodes]) -> Law:
        """This law times one more factor."""
        return Law((*self.factors, factor), {**self.nodes, **nodes}, self.seed)

    def ancestry(self, variables: Sequence[str]) -> tuple[int, ...]:
        """Positions of the factors that the joint law of ``variables`` depends on, in order."""
        wanted, needed = set(variables), []
        for i in range(len(self.factors) - 1, -1, -1):
            factor = self.factors[i]
            if wanted & set(factor.variables):
                needed.append(i)
                wanted |= set(self.parents_of(factor))
        return tuple(reversed(needed))

    def parents_of(self, factor: Factor) -> tuple[str, ...]:
        """The variables behind a factor's parent coordinates: ``y`` for ``y=a`` and ``y=b``."""
        known = {v for f in self.factors for v in f.variables}
        found = dict.fromkeys(
            p if p in known else next((v for v in known if p.startswith(f"{v}=")), p) for p in factor.parents
        )
        return tuple(found)

    # --- tables -----------------------------------------------------------------------------------------

    @cached_property
    def _tables(self) -> dict[int, Table]:
        return {}

    def _table(self, i: int) -> Table:
        """Conditional probabilities of factor i on the nodes of its variables, given those of its parents."""
        if i not in self._tables:
            factor = self.factors[i]
            names = (*factor.parents, *factor.variables)
            grid = product_nodes([self.nodes[v] for v in names])
            parents = product_nodes([self.nodes[v] for v in factor.parents])
            logs = (factor.log_prob(grid.values) + grid.log_weights).reshape(len(parents), -1)
            masses = np.exp(logs - logsumexp(logs, axis=1, keepdims=True))
            self._tables[i] = names, masses.reshape([len(self.nodes[v]) for v in names])
        return self._tables[i]

    def has_tables(self, variables: Sequence[str]) -> bool:
        """Whether the marginal law of ``variables`` can be had by elimination."""
        return all(
            all(v in self.nodes for v in self.factors[i].variables)
            and prod(len(self.nodes[v]) for v in (*self.factors[i].parents, *self.factors[i].variables))
            <= LARGEST_TABLE
            for i in self.ancestry(variables)
        )

    def marginal(self, variables: Sequence[str]) -> Array:
        """Probabilities of the product of the variables' nodes, one axis for each.

        Raises
        ------
        StateSpaceTooLargeError
            An intermediate table would exceed 2^22 entries.
        """
        return eliminate([self._table(i) for i in self.ancestry(variables)], tuple(variables))

    # --- points -----------------------------------------------------------------------------------------

    def points(self, variables: Sequence[str]) -> tuple[dict[str, NDArray[Any]], Array]:
        """Weighted points of the joint law of ``variables``: values (n,) of each, and weights (n,) that sum to one.

        The product of their nodes where it is small enough to enumerate, else a Sobol sample (which then also has
        the other ancestors' values).
        """
        if self.has_tables(variables) and prod(len(self.nodes[v]) for v in variables) <= LARGEST_TABLE:
            grid = product_nodes([self.nodes[v] for v in variables])
            return dict(grid.values), self.marginal(variables).ravel()
        factors = [self.factors[i] for i in self.ancestry(variables)]
        widths = [factor.n_uniform for factor in factors]
        u = sobol(sum(widths), _SOBOL_POINTS, self.seed)
        values: dict[str, NDArray[Any]] = {}
        log_weight = np.zeros(len(u))
        for factor, stop in zip(factors, np.cumsum(widths), strict=True):
            new, weight = factor.propose(values, u[:, stop - factor.n_uniform : stop])
            values |= new
            log_weight += weight
        return values, np.exp(log_weight - logsumexp(log_weight))

    def conditional(self, given: Sequence[str], wanted: Sequence[str]) -> Conditional:
        """The law of ``wanted`` at arbitrary values of ``given``.

        Returns
        -------
        A function of (values of ``given`` on m rows, m) that returns points (m, n) of each wanted variable
        and their log weights (m, n), joint with ``given``: their logsumexp is log p(given). Exact by elimination
        where ``given`` is discrete; a sum over the nodes of all other ancestors where these are few; else likelihood
        weighting of a Sobol sample.
        """
        given, wanted = tuple(given), tuple(v for v in wanted if v not in given)
        if self.has_tables((*given, *wanted)) and not any(self.nodes[v].cells for v in given):
            return self._conditional_from_table(given, wanted)
        members = [self.factors[i] for i in self.ancestry((*given, *wanted))]
        others = [v for factor in members for v in factor.variables if v not in given]
        if all(v in self.nodes for v in others) and prod(len(self.nodes[v]) for v in others) <= _LARGEST_INTEGRAL:
            return self._conditional_on_nodes(members, given, others)
        return self._conditional_by_weighting(members, given)

    def _conditional_from_table(self, given: tuple[str, ...], wanted: tuple[str, ...]) -> Conditional:
        masses = self.marginal((*given, *wanted))
        masses = masses.reshape(*masses.shape[: len(given)], -1)
        labels = {v: self.nodes[v].values[v].tolist() for v in given}
        grid = product_nodes([self.nodes[v] for v in wanted])

        def law(values: Values, m: int) -> tuple[dict[str, NDArray[Any]], Array]:
            codes = tuple(label_codes(labels[v], values[v]) for v in given)
            rows = masses[codes] if given else np.broadcast_to(masses, (m, len(grid)))
            with np.errstate(divide="ignore"):
                return {v: np.broadcast_to(x, (m, len(x))) for v, x in grid.values.items()}, np.log(rows)

        return law

    def _conditional_on_nodes(
        self, members: Sequence[Factor], given: tuple[str, ...], others: Sequence[str]
    ) -> Conditional:
        grid = product_nodes([self.nodes[v] for v in others])

        def law(values: Values, m: int) -> tuple[dict[str, NDArray[Any]], Array]:
            flat = {v: np.repeat(np.asarray(values[v]), len(grid)) for v in given}
            flat |= {v: np.tile(x, m) for v, x in grid.values.items()}
            logs = np.tile(grid.log_weights, m)
            for factor in members:
                logs = logs + factor.log_prob(flat)
            return {v: flat[v].reshape(m, -1) for v in others}, logs.reshape(m, -1)

        return law

    def _conditional_by_weighting(self, members: Sequence[Factor], given: tuple[str, ...]) -> Conditional:
        """Draw what is not given, factor by factor, and weight by the density of what is given."""

        def law(values: Values, m: int) -> tuple[dict[str, NDArray[Any]], Array]:
            u = sobol(sum(1 + 2 * len(f.variables) for f in members), _SOBOL_POINTS // 2, self.seed + 1)
            n = len(u)
            flat = {v: np.repeat(np.asarray(values[v]), n) for v in given}
            logs, column = np.zeros(m * n), 0
            for factor in members:
                free = [v for v in factor.variables if v not in given]
                if len(free) == len(factor.variables):
                    width = factor.n_uniform
                    new, weight = factor.propose(flat, np.tile(u[:, column : column + width], (m, 1)))
                    flat |= new
                    logs += weight
                    column += width
                    continue
                for v in free:  # a block of which a part is given: uniform over the base measure
                    if v not in self.nodes:
                        raise CMaxEntError(
                            f"cannot condition a part of the scattered block of {v}: give all its variables"
                        )
                    axis = self.nodes[v]
                    total = logsumexp(axis.log_weights)
                    at = np.searchsorted(np.cumsum(np.exp(axis.log_weights - total)), u[:, column])
                    flat[v] = np.tile(axis.values[v][np.minimum(at, len(axis) - 1)], m)
                    logs += total
                    column += 1
                logs += factor.log_prob(flat)
            return {v: x.reshape(m, n) for v, x in flat.items() if v not in given}, logs.reshape(m, n) - np.log(n)

        return law

    # --- interventions ----------------------------------------------------------------------------------

    def do(self, values: Mapping[str, Any]) -> Law:
        """Mutilate: each intervened variable becomes a point mass; the rest of its block keeps its marginal law."""
        factors: list[Factor] = []
        for factor in self.factors:
            hit = [v for v in factor.variables if v in values]
            rest = [v for v in factor.variables if v not in values]
            factors += [PointMass(v, values[v]) for v in hit]
            if rest:
                factors.append(factor.marginal(rest) if hit else factor)
        nodes = dict(self.nodes)
        for v, value in values.items():
            if v in nodes and nodes[v].cells:
                nodes[v] = Nodes({v: np.array([value], float)}, np.zeros(1))
        return Law(tuple(factors), nodes, self.seed)


def eliminate(tables: Sequence[Table], keep: tuple[str, ...]) -> Array:
    """Sum out all variables but ``keep`` from a product of tables, the cheapest variable first.

    Raises
    ------
    StateSpaceTooLargeError
        An intermediate product would exceed ``LARGEST_TABLE`` entries.
    """
    tables = list(tables)
    size = {v: n for names, array in tables for v, n in zip(names, array.shape, strict=True)}
    remaining = [v for v in size if v not in keep]
    while remaining:
        near = {v: {u for names, _ in tables if v in names for u in names} for v in remaining}
        cost = {v: prod(size[u] for u in near[v]) for v in remaining}
        v = min(remaining, key=cost.__getitem__)
        remaining.remove(v)
        touched = [table for table in tables if v in table[0]]
        union = tuple(u for u in dict.fromkeys(u for names, _ in touched for u in names) if u != v)
        tables = [table for table in tables if v not in table[0]] + [(union, _contract(touched, union, size))]
    return _contract(tables, keep, size)


def _contract(tables: Sequence[Table], out: tuple[str, ...], size: Mapping[str, int]) -> Array:
    names = tuple(dict.fromkeys(v for names, _ in tables for v in names))
    entries = prod(size[v] for v in names)
    if entries > LARGEST_TABLE:
        raise StateSpaceTooLargeError(
            f"the joint table of {', '.join(names[:8])}{', …' if len(names) > 8 else ''} has {entries} states; at most "
            f"{LARGEST_TABLE} can be enumerated: give the graph fewer edges or the variables fewer states"
        )
    label = {v: i for i, v in enumerate(names)}
    operands: list[Any] = []
    for table_names, array in tables:
        operands += [array, [label[v] for v in table_names]]
    return np.einsum(*operands, [label[v] for v in out]) if operands else np.ones(())


def sobol(dimension: int, n: int, seed: int) -> Array:
    """(n, dimension) scrambled Sobol points in [0, 1); n is a power of two."""
    return qmc.Sobol(dimension, seed=seed).random_base2(n.bit_length() - 1)
