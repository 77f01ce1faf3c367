"""One block of a generic fit: constraints become features of the block given its parents, and the dual is solved.

Discrete variables are enumerated. Up to three continuous variables in a block and its parents are integrated by
composite Gauss-Legendre rules that are refined until log p stops moving; more by seeded scrambled Sobol points (spec
2.6, 5).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp, ndtri
from scipy.stats import norm

from .constraints import Constraint, Support
from .dual import DualSolution, InconsistentConstraintsError, InfeasibleConstraintsError, solve_conditional
from .errors import (
    CMaxEntError,
    InfeasibleMomentsError,
    NonlocalConstraintError,
    StateSpaceTooLargeError,
    UnboundedEntropyError,
)
from .factors import Array, TableFactor, Values, distinct_rows, label_array
from .law import Conditional, Law, sobol
from .tilted import Nodes, TiltedFactor, product_nodes

LARGEST_ENUMERATION = 1 << 16  # discrete states of a block and its parents, or of a whole table
_LARGEST_GRID = 1 << 19  # quadrature nodes of a block times those of its parents
_CACHED = 1 << 23  # numbers of features kept rather than recomputed in each Newton step (64 MiB)
_NEGLIGIBLE = 1e-25  # probability of a conditioning point that is left out
_SIZES = (48, 72, 96, 144, 192, 288, 384, 576, 768, 1152, 1536)  # nodes of a continuous variable
_REFINED = 1e-8  # change of log p (its standard deviation) at which refining stops
_TAIL = 36.0  # nats by which the density of a real variable has to fall towards the ends of its quadrature box


@dataclass(frozen=True)
class Mechanism:
    """A fitted block.

    Attributes
    ----------
    factor : p(block | parents).
    nodes : of each variable, for those that have their own.
    solution : of the dual.
    info : what the fit did: ``integration``, ``nodes``, ``residual``, ``refinement`` and ``n_iter``.
    """

    factor: TableFactor | TiltedFactor
    nodes: Mapping[str, Nodes]
    solution: DualSolution
    info: dict[str, Any]


@dataclass(frozen=True)
class _Block:
    variables: tuple[str, ...]
    parents: tuple[str, ...]
    constraints: tuple[Constraint, ...]
    supports: Mapping[str, Support]
    omega: Array  # (J, J)

    def __str__(self) -> str:
        given = f" given {', '.join(self.parents)}" if self.parents else ""
        return f"{', '.join(self.variables)}{given}"

    def continuous(self, variables: Sequence[str]) -> list[str]:
        return [v for v in variables if self.supports[v].kind != "discrete"]

    def outside(self, constraint: Constraint) -> tuple[str, ...]:
        return tuple(v for v in constraint.scope if v not in self.variables and v not in self.parents)


def fit_mechanism(
    variables: tuple[str, ...],
    parents: tuple[str, ...],
    constraints: Sequence[Constraint],
    supports: Mapping[str, Support],
    law: Law,
    *,
    omega: Array,
    nonlocal_: str = "project",
) -> Mechanism:
    """Maximise H(block | parents) under the constraints that end in this block, the parents' law being frozen.

    Parameters
    ----------
    law : of all earlier variables.
    omega : (J, J) slack of the constraints, zeros for none.
    nonlocal_ : ``"project"`` integrates variables that are neither in the block nor parents out under ``law``;
        ``"error"`` refuses them.

    Raises
    ------
    InfeasibleConstraintsError, InconsistentConstraintsError
        Name the block, the constraints and, where a projected constraint is involved, the missing edges.
    NonlocalConstraintError, StateSpaceTooLargeError, UnboundedEntropyError
    """
    block = _Block(variables, parents, tuple(constraints), supports, omega)
    features = [_feature(block, c, law, nonlocal_) for c in constraints]
    discrete = prod(len(supports[v].values) for v in (*variables, *parents) if supports[v].kind == "discrete")
    by_quadrature = len(block.continuous((*variables, *parents))) <= 3 and law.has_tables(parents)
    if by_quadrature and discrete > LARGEST_ENUMERATION:
        raise StateSpaceTooLargeError(
            f"the mechanism of {block} has {discrete} discrete states; at most {LARGEST_ENUMERATION} can be enumerated"
        )
    values, weights = law.points(parents) if parents else ({}, np.ones(1))
    kept = weights > _NEGLIGIBLE
    for feature in features:
        feature.check_support({v: values[v][~kept] for v in parents})
    conditioning = {v: values[v][kept] for v in parents}
    solve = _Solver(block, features, conditioning, weights[kept] / weights[kept].sum())
    try:
        if by_quadrature or len(block.continuous(variables)) <= 2:
            return _by_quadrature(solve, exact=by_quadrature)
        return _by_scattered_points(solve, law.seed)
    except (InfeasibleConstraintsError, InconsistentConstraintsError) as error:
        raise type(error)(_explained(block, error), error.certificate, error.gap, error.names) from None


def _explained(block: _Block, error: InfeasibleConstraintsError | InconsistentConstraintsError) -> str:
    missing = [
        f"{v}->{w}"
        for c in block.constraints
        if c.name in error.names
        for v in block.outside(c)
        for w in c.scope
        if w in block.variables
    ]
    message = f"mechanism of {block}: {error}"
    if missing:
        edges = ", ".join(dict.fromkeys(missing))
        message += (
            f". Without {edges} the graph itself implies this moment (a testable implication): add the edge, drop one "
            "of the constraints, or allow slack"
        )
    return message


# --- features: constraints as functions of a block and its parents ----------------------------------------


def _feature(block: _Block, constraint: Constraint, law: Law, nonlocal_: str) -> _Feature:
    outside = block.outside(constraint)
    if outside and nonlocal_ == "error":
        raise NonlocalConstraintError(
            f"constraint {constraint.name} spans {', '.join(outside)}, no parent of {', '.join(block.variables)}: "
            "add the edge, or let nonlocal_='project' integrate over it"
        )
    if constraint.do is None:
        return _Feature(constraint, block.parents, law.conditional(block.parents, outside) if outside else None)
    for v in constraint.do:
        if not law.ancestry([v]):
            raise CMaxEntError(
                f"constraint {constraint.name} intervenes on {v}, which has to come before "
                f"{', '.join(block.variables)} in the graph"
            )
        if block.supports[v].kind != "discrete":
            raise CMaxEntError(
                f"constraint {constraint.name} intervenes on {v}, which is continuous: do({v}=…) then has no density "
                "with respect to the observed law"
            )
    regime = law.do(constraint.do)
    return _Feature(
        constraint,
        block.parents,
        regime.conditional(block.parents, outside) if outside else None,
        (regime.conditional(block.parents, ()), law.conditional(block.parents, ())),
    )


@dataclass(frozen=True)
class _Feature:
    """E[w_r/w fn | block, parents]: the constraint as the block's dual sees it.

    ``projection`` integrates variables that are neither in the block nor its parents, under the law that the
    constraint was measured in; ``ratio`` holds the laws (intervened, observed) of the parents for do-constraints.
    """

    constraint: Constraint
    parents: tuple[str, ...]
    projection: Conditional | None = None
    ratio: tuple[Conditional, Conditional] | None = None

    def __call__(self, values: Values) -> Array:
        n = len(next(iter(values.values())))
        out = self.constraint.evaluate(values) if self.projection is None else self._projected(values, n)
        return out if self.ratio is None else out * self._density_ratio(values, n)

    def _projected(self, values: Values, n: int) -> Array:
        assert self.projection is not None
        inner = [v for v in self.constraint.scope if v in values]
        group = distinct_rows([values[v] for v in (*self.parents, *(v for v in inner if v not in self.parents))], n)
        _, first, inverse = np.unique(group, return_index=True, return_inverse=True)
        distinct = np.empty(len(first))
        for start in range(0, len(first), 256):  # 256 rows x 4096 points at once
            rows = first[start : start + 256]
            points, logs = self.projection({v: values[v][rows] for v in self.parents}, len(rows))
            top = logs.max(axis=1, keepdims=True)
            p = np.exp(logs - np.where(np.isfinite(top), top, 0.0))
            total = p.sum(axis=1, keepdims=True)
            # Parents of probability zero: no conditional law exists and none is needed.
            p = np.divide(p, total, out=np.full_like(p, 1 / p.shape[1]), where=total > 0)
            grid = {v: np.repeat(values[v][rows], p.shape[1]) for v in inner}
            grid |= {v: points[v].ravel() for v in self.constraint.scope if v not in values}
            distinct[start : start + 256] = (p * self.constraint.evaluate(grid).reshape(p.shape)).sum(axis=1)
        return distinct[inverse]

    def _log_parents(self, values: Values, n: int) -> tuple[Array, Array]:
        """(n,) log probability of the parents with and without the intervention."""
        assert self.ratio is not None
        intervened, observed = self.ratio
        given = {v: values[v] for v in self.parents}
        return logsumexp(intervened(given, n)[1], axis=1), logsumexp(observed(given, n)[1], axis=1)

    def _density_ratio(self, values: Values, n: int) -> Array:
        intervened, observed = self._log_parents(values, n)
        with np.errstate(invalid="ignore"):  # -inf - -inf where neither law reaches
            return np.exp(np.where(np.isfinite(observed), intervened - observed, -np.inf))

    def check_support(self, unreached: Values) -> None:
        """Refuse a do-constraint whose regime has mass on parents that the observed law does not reach."""
        n = len(next(iter(unreached.values()), ()))
        if self.ratio is not None and n and np.exp(self._log_parents(unreached, n)[0]).max() > 1e-12:
            raise CMaxEntError(
                f"constraint {self.constraint.name} was measured where the causes {', '.join(self.parents)} have "
                "probability zero without the intervention: it says nothing about the mechanism elsewhere"
            )


# --- nodes ------------------------------------------------------------------------------------------------


@lru_cache
def _legendre(n: int) -> tuple[Array, Array]:
    return np.polynomial.legendre.leggauss(n)


def _interval_nodes(name: str, low: float, high: float, n: int) -> Nodes:
    """Composite Gauss-Legendre, an even number of panels with 24 or 36 nodes each: a kink in the middle does no harm.

    A node's cell ends where the cumulative weights say (Chebyshev, Markov, Stieltjes: each contains its node).
    """
    panels = 2 ** ((n // 48).bit_length())
    x, w = _legendre(n // panels)
    edges = np.linspace(low, high, panels + 1)
    half = np.diff(edges)[:, None] / 2
    values = ((edges[:-1] + edges[1:])[:, None] / 2 + half * x).ravel()
    ends = edges[:-1, None] + half * np.concatenate([[0.0], np.cumsum(w)])
    cells = np.stack([ends[:, :-1].ravel(), ends[:, 1:].ravel()], axis=1)
    return Nodes({name: values}, np.log((half * w).ravel()), {name: cells})


def _axis(name: str, support: Support, box: tuple[float, float] | None, n: int) -> Nodes:
    if support.kind == "discrete":
        return Nodes({name: label_array(support.values)}, np.zeros(len(support.values)))
    low, high = (support.low, support.high) if box is None else box
    return _interval_nodes(name, low, high, n)


# --- solving ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Solver:
    """The dual of a block on any nodes of its variables."""

    block: _Block
    features: Sequence[_Feature]
    conditioning: Mapping[str, NDArray[Any]]
    weights: Array

    def __call__(self, nodes: Nodes, start: Array | None = None) -> DualSolution:
        J = len(self.features)
        part = self._part(nodes)
        fits = len(self.weights) * len(nodes) * J <= _CACHED
        return solve_conditional(
            part(slice(0, len(self.weights))) if fits else part,
            np.array([c.value for c in self.block.constraints]),
            self.weights,
            nodes.log_weights,
            omega=self.block.omega,
            names=[str(c.name) for c in self.block.constraints],
            start=start,
        )

    def _part(self, nodes: Nodes) -> Callable[[slice], Array]:
        def part(rows: slice) -> Array:
            count = len(range(*rows.indices(len(self.weights))))
            values = {v: np.repeat(x[rows], len(nodes)) for v, x in self.conditioning.items()}
            values |= {v: np.tile(nodes.values[v], count) for v in self.block.variables}
            return self.stacked(values).reshape(count, len(nodes), len(self.features))

        return part

    def stacked(self, values: Values) -> Array:
        """(n, J) all features."""
        if not self.features:
            return np.empty((len(next(iter(values.values()))), 0))
        return np.column_stack([f(values) for f in self.features])

    def inside(self, values: Values) -> NDArray[np.bool_]:
        """(n,) whether the block's variables are in their supports."""
        return np.logical_and.reduce([self.block.supports[v].contains(values[v]) for v in self.block.variables])

    def marginal_masses(self, nodes: Nodes, solution: DualSolution) -> Array:
        """(n_v,) probabilities of the block's nodes."""
        part, step = self._part(nodes), max(1, _CACHED // (8 * len(nodes) * max(1, len(self.features))))
        out = np.zeros(len(nodes))
        for start in range(0, len(self.weights), step):
            rows = slice(start, min(start + step, len(self.weights)))
            logs = part(rows) @ solution.finite + nodes.log_weights
            out += self.weights[rows] @ np.exp(logs - logsumexp(logs, axis=1, keepdims=True))
        return out

    def tilted(self, axes: tuple[Nodes, ...], solution: DualSolution) -> TiltedFactor:
        """The fitted factor."""
        return TiltedFactor(
            self.block.variables,
            self.block.parents,
            self.stacked,
            solution.finite,
            solution.recession,
            axes,
            self.inside,
        )


def _by_quadrature(solve: _Solver, *, exact: bool) -> Mechanism:
    """Product rules, refined until log p stops moving. Not ``exact``: the parents are a Sobol sample already."""
    block = solve.block
    continuous = block.continuous(block.variables)
    states = prod(len(block.supports[v].values) for v in block.variables if v not in continuous)
    allowed = _LARGEST_GRID // (states * len(solve.weights)) if exact else 1 << 12
    sizes = [n for n in _SIZES if n ** len(continuous) <= allowed] if continuous else [0]
    sizes = sizes or [24]
    boxes = _boxes(solve, sizes[0])

    def axes(n: int) -> tuple[Nodes, ...]:
        return tuple(_axis(v, block.supports[v], boxes.get(v), n) for v in block.variables)

    solution, n, moved = None, sizes[0], 0.0
    for size in sizes:
        try:
            finer = solve(product_nodes(axes(size)), None if solution is None else solution.finite)
        except InfeasibleConstraintsError:
            if size == sizes[-1]:
                raise
            continue  # a coarse rule cannot resolve a narrow density
        if solution is not None:
            change = finer.finite - solution.finite
            moved = float(np.sqrt(max(float(change @ finer.covariance @ change), 0.0)))
            if moved <= _REFINED:
                break
        solution, n = finer, size
    assert solution is not None
    if moved > 1e-5:
        warnings.warn(
            f"mechanism of {block}: with {n} quadrature nodes a variable, log p still moves by {moved:.2g}; a function "
            "that jumps is integrated only to first order",
            stacklevel=4,
        )
    tilted = solve.tilted(axes(n), solution)
    info = {
        "integration": "quadrature" if continuous or block.continuous(block.parents) else "enumeration",
        "nodes": len(tilted.nodes),
        "conditioning_points": len(solve.weights),
        "residual": solution.residual,
        "refinement": moved,
        "n_iter": solution.n_iter,
    }
    if not exact:
        info["integration"] = "quasi-Monte-Carlo"
    nodes = dict(zip(block.variables, tilted.axes, strict=True))
    if info["integration"] != "enumeration":
        return Mechanism(tilted, nodes, solution, info)
    return Mechanism(_as_table(tilted, block.supports), nodes, solution, info)


def _as_table(tilted: TiltedFactor, supports: Mapping[str, Support]) -> TableFactor:
    names = (*tilted.parents, *tilted.variables)
    labels = {v: supports[v].values for v in names}
    grid = product_nodes([_axis(v, supports[v], None, 0) for v in tilted.parents])
    logs = tilted.node_log_masses(grid.values, len(grid))
    return TableFactor(tilted.variables, tilted.parents, labels, logs.reshape([len(labels[v]) for v in names]))


def _by_scattered_points(solve: _Solver, seed: int) -> Mechanism:
    """More than three continuous variables: a Sobol base sample, uniform on intervals and normal on the line."""
    block = solve.block
    continuous = block.continuous(block.variables)
    n = 1 << (13 if len(solve.weights) == 1 else 9)
    u = sobol(len(continuous), n, seed + 2)
    values: dict[str, NDArray[Any]] = {}
    log_base = np.full(n, -np.log(n))
    for v, column in zip(continuous, u.T, strict=True):
        support = block.supports[v]
        if support.kind == "interval":
            values[v] = support.low + (support.high - support.low) * column
            log_base += np.log(support.high - support.low)
            continue
        centre, scale, known = _location_and_scale(v, block.constraints)
        if not known:
            raise UnboundedEntropyError(
                f"{v} is real, and no constraint on {v} alone gives its second moment: with more than three continuous "
                f"variables the base sample needs it. Add Constraint(lambda x: x**2, ('{v}',), …)"
            )
        z = ndtri(np.clip(column, 2.0**-60, 1 - 2.0**-53))
        values[v] = centre + 1.2 * scale * z  # a little wider than the target, so that its tails are covered
        log_base -= norm.logpdf(z) - np.log(1.2 * scale)
    base = Nodes(values, log_base)
    for v in block.variables:
        if v not in continuous:
            base = base.times(_axis(v, block.supports[v], None, 0))
    if len(base) > LARGEST_ENUMERATION:
        raise StateSpaceTooLargeError(f"the block {block} needs {len(base)} base points; at most {LARGEST_ENUMERATION}")
    solution = solve(base)
    info = {
        "integration": "quasi-Monte-Carlo",
        "nodes": len(base),
        "conditioning_points": len(solve.weights),
        "residual": solution.residual,
        "refinement": np.nan,
        "n_iter": solution.n_iter,
    }
    return Mechanism(solve.tilted((base,), solution), {}, solution, info)


# --- boxes of real variables ------------------------------------------------------------------------------


def _boxes(solve: _Solver, n: int) -> dict[str, tuple[float, float]]:
    """Intervals outside of which the fitted density of each real variable is negligible (e^-36 of its maximum).

    They start at nine standard deviations where constraints on the variable alone fix its first two moments, and
    else at a scale that the values of its constraints suggest; then grow or shrink with the density that is
    fitted on them. If the density does not fall however far they reach, the entropy is unbounded.
    """
    block = solve.block
    real = [v for v in block.variables if block.supports[v].kind == "real"]
    for v in real:
        if not any(v in c.scope for c in block.constraints):
            raise UnboundedEntropyError(f"{v} is real and no constraint involves it: its entropy is unbounded")
    guess = {v: _location_and_scale(v, block.constraints)[:2] for v in real}
    if not real:
        return {}
    boxes, solution, failure = {}, None, None
    for factor in (1.0, *(4.0**k for e in range(1, 9) for k in (e, -e))):
        boxes = {v: (centre - 9 * factor * scale, centre + 9 * factor * scale) for v, (centre, scale) in guess.items()}
        try:
            solution = solve(_box_nodes(block, boxes, n))
            break
        except InfeasibleConstraintsError as error:
            failure = failure or error
    if solution is None:
        assert failure is not None
        raise failure
    first = {v: high - low for v, (low, high) in boxes.items()}
    for _ in range(40):
        nodes = _box_nodes(block, boxes, n)
        density = _axis_densities(block, nodes, solve.marginal_masses(nodes, solution), n)
        wanted = {v: _better_box(*density[v], boxes[v]) for v in real}
        if wanted == boxes:
            return boxes
        boxes = wanted
        if any(high - low > 4.0**9 * first[v] for v, (low, high) in boxes.items()):
            break
        try:
            solution = solve(_box_nodes(block, boxes, n), solution.finite)
        except InfeasibleConstraintsError:
            break
    raise UnboundedEntropyError(
        f"the density of {', '.join(real)} does not fall off however far it is integrated: constrain the second moment "
        "of each real variable (a power tail is too heavy for quadrature, too)"
    )


def _box_nodes(block: _Block, boxes: Mapping[str, tuple[float, float]], n: int) -> Nodes:
    return product_nodes([_axis(v, block.supports[v], boxes.get(v), n) for v in block.variables])


def _axis_densities(block: _Block, nodes: Nodes, masses: Array, n: int) -> dict[str, tuple[Array, Array]]:
    """For each real variable its nodes and the log density of its marginal there."""
    shape = [n if block.supports[v].kind != "discrete" else len(block.supports[v].values) for v in block.variables]
    table = masses.reshape(shape)
    out = {}
    for i, v in enumerate(block.variables):
        if block.supports[v].kind == "real":
            x = np.moveaxis(nodes.values[v].reshape(shape), i, 0).reshape(n, -1)[:, 0]
            cells = np.moveaxis(nodes.cells[v].reshape(*shape, 2), i, 0).reshape(n, -1, 2)[:, 0]
            marginal = table.sum(axis=tuple(a for a in range(len(shape)) if a != i))
            with np.errstate(divide="ignore"):
                out[v] = x, np.log(marginal) - np.log(cells[:, 1] - cells[:, 0])
    return out


def _better_box(x: Array, log_density: Array, box: tuple[float, float]) -> tuple[float, float]:
    """Widen the box about its centre until the density has fallen by e^-36 at both ends, narrow it if by far more."""
    centre, half = (box[0] + box[1]) / 2, (box[1] - box[0]) / 2
    drop = log_density.max() - log_density
    fallen = min(drop[0], drop[-1])
    if fallen < _TAIL:
        half *= float(np.clip(1.05 * _TAIL / max(fallen, 1e-9), 1.1, 4.0))
    elif fallen > 6 * _TAIL:
        # One node further than where it has fallen enough: a coarse rule may have a single node inside.
        distance = np.abs(x - centre)
        narrower = 1.1 * float(distance[distance > distance[drop <= 2 * _TAIL].max()].min())
        if narrower > 0.9 * half:
            return box
        half = narrower
    else:
        return box
    return centre - half, centre + half


def _location_and_scale(v: str, constraints: Sequence[Constraint]) -> tuple[float, float, bool]:
    """Mean and standard deviation of a real variable if its own constraints fix both; else a guess, and False."""
    probes = np.array([-2.0, -1.0, 0.0, 1.0, 2.0, 3.5])
    rows, values, scales = [], [], []
    for c in constraints:
        if c.scope != (v,) or c.do is not None:
            continue
        f = c.evaluate({v: probes})
        a, b, quadratic = f[2], (f[3] - f[1]) / 2, (f[3] + f[1]) / 2 - f[2]
        if np.allclose(f, a + b * probes + quadratic * probes**2, rtol=1e-9, atol=1e-9):
            rows.append([b, quadratic])
            values.append(c.value - a)
        else:
            # f grows like |x|^degree: m = E f then suggests a scale.
            far = np.abs(c.evaluate({v: np.array([1e3, 2e3])}))
            degree = np.log2(far[1] / far[0]) if (far > 0).all() else 0.0
            if degree > 0.1 and c.value != 0:
                scales.append(float((abs(c.value) / (far[0] / 1e3**degree)) ** (1 / degree)))
    mean = 0.0
    if rows:
        matrix = np.array(rows)
        solved, *_ = np.linalg.lstsq(matrix, np.array(values), rcond=None)
        rank = np.linalg.matrix_rank(matrix)
        if rank == 2:
            variance = solved[1] - solved[0] ** 2
            if variance <= 0:
                raise InfeasibleMomentsError(f"the moments of {v} give it a variance of {variance:.6g}")
            return float(solved[0]), float(np.sqrt(variance)), True
        only_linear, only_square = not matrix[:, 1].any(), not matrix[:, 0].any()
        mean = float(solved[0]) if only_linear else 0.0
        if only_square and solved[1] > 0:
            return 0.0, float(np.sqrt(solved[1])), True
    return mean, max(scales, default=1.0), False
