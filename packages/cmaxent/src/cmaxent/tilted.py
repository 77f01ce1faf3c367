"""The exponential family of the generic fit: p(v | w) = exp(lambda . f(v, w)) / Z(w) with Z by quadrature (spec 2.1).

Nodes are weighted points of a block's variables; a factor normalises itself on them and draws from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from .errors import CMaxEntError
from .factors import Array, Values, distinct_rows, negative_mean_log, row_count

_BLOCK = 1 << 20  # numbers held at once when a factor has to be normalised row by row


@dataclass(frozen=True)
class Nodes:
    """Weighted points: sum exp(log_weights) g(values) approximates the integral (or is the sum) of g.

    Attributes
    ----------
    values : for each variable its (n,) coordinates.
    log_weights : (n,)
    cells : for each continuous variable (n, 2), the interval a node stands for; no entries for scattered points.
    """

    values: Mapping[str, NDArray[Any]]
    log_weights: Array
    cells: Mapping[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.log_weights)

    def times(self, other: Nodes) -> Nodes:
        """The product rule; the second factor varies fastest."""
        a, b = len(self), len(other)
        return Nodes(
            {v: np.repeat(x, b) for v, x in self.values.items()} | {v: np.tile(x, a) for v, x in other.values.items()},
            (self.log_weights[:, None] + other.log_weights).ravel(),
            {v: np.repeat(c, b, axis=0) for v, c in self.cells.items()}
            | {v: np.tile(c, (a, 1)) for v, c in other.cells.items()},
        )


def product_nodes(axes: Sequence[Nodes]) -> Nodes:
    """The product of several rules; a single point of weight one for none."""
    out = Nodes({}, np.zeros(1))
    for axis in axes:
        out = out.times(axis)
    return out


class _Given(NamedTuple):
    """What the nodes of a block say at each of m rows of its parents."""

    eta: Array  # (m, n_v) log density, normalised
    masses: Array  # (m, n_v) log probabilities of the nodes
    log_z: Array  # (m,)
    top: Array | None  # (m,) largest recession exponent


@dataclass(frozen=True)
class TiltedFactor:
    """p(v | w) = exp(multipliers . f(v, w)) / Z(w), with Z(w) by quadrature over the nodes of v.

    The density that the generic dual finds when a variable of the block or of its parents is continuous. Where a
    constraint lies on the boundary of what is possible, the density is the limit of multipliers + t recession for
    t -> infinity: points of v where recession . f is below its maximum given w have probability zero.

    Parameters
    ----------
    features : values -> (n, J), equally long one-dimensional arrays in.
    multipliers : (J,) finite; recession : (J,), scaled so that the gap at excluded points is at least one, or None.
    axes : the nodes of each variable in turn (a product rule), or one set of scattered points for the whole block.
    inside : values -> (n,) bool, whether a point lies in the support.
    """

    variables: tuple[str, ...]
    parents: tuple[str, ...]
    features: Callable[[Values], Array]
    multipliers: Array
    recession: Array | None
    axes: tuple[Nodes, ...]
    inside: Callable[[Values], NDArray[np.bool_]]
    nodes: Nodes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", product_nodes(self.axes))

    def _exponent(self, values: Values, top: Array | None) -> Array:
        """(n,) exponents at points, -inf off the face; ``top`` is the largest recession exponent of each row."""
        f = self.features(values)
        eta = f @ self.multipliers
        if self.recession is None or top is None:
            return eta
        # The linear programme leaves a gap of at least one between the face and what it excludes.
        return np.where(f @ self.recession >= top - 0.5, eta, -np.inf)

    def _given(self, parents: Values, m: int) -> _Given:
        n_v = len(self.nodes)
        grid = {v: np.tile(self.nodes.values[v], m) for v in self.variables}
        grid |= {v: np.repeat(np.asarray(parents[v]), n_v) for v in self.parents}
        f = self.features(grid)
        eta, top = (f @ self.multipliers).reshape(m, n_v), None
        if self.recession is not None:
            face = (f @ self.recession).reshape(m, n_v)
            top = face.max(axis=1)
            eta = np.where(face >= top[:, None] - 0.5, eta, -np.inf)
        masses = eta + self.nodes.log_weights
        log_z = logsumexp(masses, axis=1)
        return _Given(eta - log_z[:, None], masses - log_z[:, None], log_z, top)

    def _groups(self, values: Values, n: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp], _Given]]:
        """Rows that share a few distinct parents, which of these each row has, and the nodes there.

        Bounds the memory of (distinct parents, nodes, features), and normalises each distinct parent once.
        """
        group = distinct_rows([np.asarray(values[v]) for v in self.parents], n)
        order = np.argsort(group, kind="stable")
        sorted_group = group[order]
        step = max(1, _BLOCK // (len(self.nodes) * max(1, len(self.multipliers))))
        for start in range(0, int(group.max(initial=-1)) + 1, step):
            low, high = np.searchsorted(sorted_group, [start, start + step])
            rows, local = order[low:high], sorted_group[low:high] - start
            first = rows[np.searchsorted(local, np.arange(local[-1] + 1))]
            yield rows, local, self._given({v: np.asarray(values[v])[first] for v in self.parents}, len(first))

    def node_log_masses(self, values: Values, n: int | None = None) -> Array:
        """(n, n_v) log probabilities of the nodes at each row's parents; each row sums to one."""
        return self._given(values, row_count(values) if n is None else n).masses

    def log_prob(self, values: Values) -> Array:
        """(n,) log density, normalised on the nodes to the accuracy of the quadrature."""
        n = len(np.asarray(values[self.variables[0]]))
        out = np.empty(n)
        for rows, local, given in self._groups(values, n):
            part = {v: np.asarray(values[v])[rows] for v in (*self.parents, *self.variables)}
            eta = self._exponent(part, None if given.top is None else given.top[local])
            out[rows] = np.where(self.inside(part), eta - given.log_z[local], -np.inf)
        return out

    def propose(self, values: Values, u: Array) -> tuple[dict[str, NDArray[Any]], Array]:
        """Map uniforms to points: a node by its probability, then a place in its cell.

        Parameters
        ----------
        u : (n, n_uniform) in [0, 1).

        Returns
        -------
        points : of the block's variables.
        log_weight : (n,) log of target over proposal density; zero for discrete variables and scattered nodes.
        """
        n = len(u)
        points = {v: np.empty(n, dtype=self.nodes.values[v].dtype) for v in self.variables}
        log_weight = np.empty(n)
        for rows, local, given in self._groups(values, n):
            parents = {v: np.asarray(values[v])[rows] for v in self.parents}
            part, log_weight[rows] = self._propose(parents, given, local, u[rows])
            for v in self.variables:
                points[v][rows] = part[v]
        return points, log_weight

    @property
    def n_uniform(self) -> int:
        """Columns of uniforms that :meth:`propose` takes."""
        return 1 + len(self.nodes.cells)

    def _propose(
        self, parents: Values, given: _Given, local: NDArray[np.intp], u: Array
    ) -> tuple[dict[str, NDArray[Any]], Array]:
        codes = _draw_grouped(given.masses, local, u[:, 0])
        point = {v: x[codes] for v, x in self.nodes.values.items()}
        if not self.nodes.cells:
            return point, np.zeros(len(u))
        for i, (v, cell) in enumerate(self.nodes.cells.items(), start=1):
            low, high = cell[codes].T
            point[v] = low + (high - low) * u[:, i]
        eta = self._exponent({**parents, **point}, None if given.top is None else given.top[local])
        return point, eta - given.log_z[local] - given.eta[local, codes]

    def sample(self, values: Values, rng: np.random.Generator, n: int | None = None) -> dict[str, NDArray[Any]]:
        """One draw for each row.

        Sixteen steps of independence Metropolis from the density that is constant on each quadrature cell. It
        differs from the target only inside a cell, so what error is left is far below sampling noise. Scattered
        (quasi-Monte-Carlo) nodes are resampled as they are: draws then take at most n_v distinct values.
        """
        n = row_count(values) if n is None else n
        out = {v: np.empty(n, dtype=self.nodes.values[v].dtype) for v in self.variables}
        for rows, local, given in self._groups(values, n):
            parents = {v: np.asarray(values[v])[rows] for v in self.parents}
            current, weight = self._propose(parents, given, local, rng.random((len(rows), self.n_uniform)))
            for _ in range(16 if self.nodes.cells else 0):
                proposal, new = self._propose(parents, given, local, rng.random((len(rows), self.n_uniform)))
                with np.errstate(invalid="ignore"):  # -inf - -inf: both on a structural zero; stay
                    accept = np.log1p(-rng.random(len(rows))) < new - weight
                weight = np.where(accept, new, weight)
                current = {v: np.where(accept, proposal[v], x) for v, x in current.items()}
            for v in self.variables:
                out[v][rows] = current[v]
        return out

    def conditional_entropy(self, values: Values, n: int | None = None) -> Array:
        """(n,) differential entropy in the continuous variables, Shannon's in the discrete ones, on the nodes."""
        n = row_count(values) if n is None else n
        out = np.empty(n)
        for rows, local, given in self._groups(values, n):
            out[rows] = negative_mean_log(given.masses, given.eta)[local]
        return out

    def marginal(self, keep: Sequence[str]) -> TiltedFactor | MarginalFactor:
        """Integrate the other variables out on the nodes."""
        kept = tuple(v for v in self.variables if v in keep)
        return self if kept == self.variables else MarginalFactor(kept, self)


@dataclass(frozen=True)
class MarginalFactor:
    """Some variables of a tilted block, the others integrated out on their nodes."""

    variables: tuple[str, ...]
    joint: TiltedFactor

    def __post_init__(self) -> None:
        if len(self.joint.axes) != len(self.joint.variables):
            raise CMaxEntError(
                f"the block {', '.join(self.joint.variables)} was fitted on scattered points (more than three "
                "continuous variables): one of its variables alone cannot be integrated out"
            )

    @property
    def parents(self) -> tuple[str, ...]:
        """Those of the whole block."""
        return self.joint.parents

    def _dropped_axes(self) -> tuple[int, ...]:
        return tuple(i for i, v in enumerate(self.joint.variables) if v not in self.variables)

    def log_prob(self, values: Values) -> Array:
        """(n,) log density of the kept variables."""
        dropped = product_nodes([self.joint.axes[i] for i in self._dropped_axes()])
        n, m = len(np.asarray(values[self.variables[0]])), len(dropped)
        out = np.empty(n)
        step = max(1, _BLOCK // m)
        for start in range(0, n, step):
            rows = slice(start, min(start + step, n))
            count = rows.stop - rows.start
            grid = {v: np.repeat(np.asarray(values[v])[rows], m) for v in (*self.parents, *self.variables)}
            grid |= {v: np.tile(x, count) for v, x in dropped.values.items()}
            out[rows] = logsumexp(self.joint.log_prob(grid).reshape(count, m) + dropped.log_weights, axis=1)
        return out

    def sample(self, values: Values, rng: np.random.Generator, n: int | None = None) -> dict[str, NDArray[Any]]:
        """One draw for each row."""
        whole = self.joint.sample(values, rng, n)
        return {v: whole[v] for v in self.variables}

    @property
    def n_uniform(self) -> int:
        """As many as the whole block takes."""
        return self.joint.n_uniform

    def propose(self, values: Values, u: Array) -> tuple[dict[str, NDArray[Any]], Array]:
        """The kept part of a proposal for the whole block, with the weight of the whole."""
        whole, log_weight = self.joint.propose(values, u)
        return {v: whole[v] for v in self.variables}, log_weight

    def conditional_entropy(self, values: Values, n: int | None = None) -> Array:
        """(n,) on the nodes."""
        masses = self.joint.node_log_masses(values, n)
        shape = [len(axis) for axis in self.joint.axes]
        drop = tuple(1 + i for i in self._dropped_axes())
        masses = logsumexp(masses.reshape(-1, *shape), axis=drop).reshape(len(masses), -1)
        kept = product_nodes([axis for i, axis in enumerate(self.joint.axes) if i not in self._dropped_axes()])
        return negative_mean_log(masses, masses - kept.log_weights)

    def marginal(self, keep: Sequence[str]) -> MarginalFactor:
        """Integrate further variables out."""
        return MarginalFactor(tuple(v for v in self.variables if v in keep), self.joint)


def _draw_grouped(log_masses: Array, group: NDArray[np.intp], u: Array) -> NDArray[np.intp]:
    """As :func:`draw_codes` where row i has the law ``log_masses[group[i]]`` and ``group`` is sorted."""
    cumulative = np.cumsum(np.exp(log_masses), axis=1)
    cumulative /= cumulative[:, -1:]
    m, K = cumulative.shape
    # One search for all groups: distribution function g rises from g to g + 1.
    rising = (cumulative + np.arange(m)[:, None]).ravel()
    return np.clip(np.searchsorted(rising, group + u) - group * K, 0, K - 1)
