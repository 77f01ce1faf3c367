"""CMAXENT densities over any variables from any moments: the factors of a causal order, one conditional dual each.

Blocks are processed in topological order. Each constraint E f(x_S) = m goes to the last block that its scope touches;
what the scope has outside that block and its parents is integrated out under the frozen earlier factors (spec 2.1,
2.6). Garrido Mejia et al. 2024, arXiv:2501.08426; Janzing 2021, arXiv:2102.03906.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from .closedform import normal_rule
from .constraints import Constraint, Support
from .errors import CMaxEntError, StateSpaceTooLargeError
from .factors import (
    Array,
    Factor,
    GaussianFactor,
    LogisticFactor,
    SoftmaxFactor,
    TableFactor,
    binary_entropy,
    label_array,
)
from .graph import BlockGraph, GraphLike, resolve_graph
from .law import Law
from .mechanism import LARGEST_ENUMERATION, Mechanism, fit_mechanism

if TYPE_CHECKING:
    from .moments import Moments

__all__ = ["CMaxEnt", "Constraint", "Support"]


class CMaxEnt:
    """The density that maximises entropy along a causal order.

    Parameters
    ----------
    graph : anything that :func:`cmaxent.graph.resolve_graph` takes. None is plain joint MAXENT: one block.
    constraints : expectations E f(x_S) = m, for :meth:`fit`.
    supports : name -> :class:`Support` of every variable, for :meth:`fit`.
    target : the variable Y of the named graphs ``"causal"``, ``"anticausal"``, ….
    slack : 0 meets the moments exactly. ``"se"`` lets them be missed by Omega lambda with Omega = diag(se^2), which
        weighs redundant or contradictory moments by their precision (generalised least squares); a positive number s
        does so with Omega = s times the identity, in the squared units of each constraint.
    nonlocal_ : ``"project"`` or ``"error"``, for constraints that span variables outside a block and its parents.
    random_state : seed of the quasi-Monte-Carlo points that integrate more than three continuous variables.

    Attributes
    ----------
    graph_ : BlockGraph
    variables_ : tuple of str, in the order of the graph.
    factors_ : list of factors in topological order (see :mod:`cmaxent.factors`).
    multipliers_ : dict, constraint name -> lambda; infinite where the moment lies on the boundary of what is possible.
    solver_info_ : dict, block -> what its fit did (generic fits only).

    Examples
    --------
    >>> both = Constraint(lambda x, y: (x == 0) & (y == 1), ("x", "y"), 0.0)
    >>> bits = {"x": Support.discrete([0, 1]), "y": Support.discrete([0, 1])}
    >>> float(CMaxEnt(None, [both], bits).fit().prob_table().loc[1].sum().round(6))
    0.666667
    >>> float(CMaxEnt("x->y", [both], bits).fit().prob_table().loc[1].sum().round(6))
    0.5
    """

    def __init__(
        self,
        graph: GraphLike | None = None,
        constraints: Iterable[Constraint] | None = None,
        supports: Mapping[str, Support] | None = None,
        *,
        target: str | None = None,
        slack: float | Literal["se"] = 0.0,
        nonlocal_: Literal["project", "error"] = "project",
        random_state: int = 0,
    ) -> None:
        self.graph = graph
        self.constraints = constraints
        self.supports = supports
        self.target = target
        self.slack = slack
        self.nonlocal_ = nonlocal_
        self.random_state = random_state

    # --- fitting ----------------------------------------------------------------------------------------

    def fit(self) -> Self:
        """Fit one block after the other to ``constraints`` on ``supports``.

        Returns
        -------
        self

        Raises
        ------
        InfeasibleMomentsError
            With a Farkas certificate (``certificate``, ``gap``, ``names``).
        InconsistentMomentsError
            Redundant constraints contradict each other; names the edges whose absence implies one of them.
        UnboundedEntropyError, NonlocalConstraintError, StateSpaceTooLargeError, GraphError, ConvergenceError
        """
        supports, constraints = self._checked()
        names = tuple(supports)
        graph = BlockGraph((names,), ((),)) if self.graph is None else resolve_graph(self.graph, names, self.target)
        last = [max(graph.block_of(v) for v in c.scope) for c in constraints]
        law = Law(seed=self.random_state)
        mechanisms: list[Mechanism] = []
        self.multipliers_: dict[str, float] = {}
        for i, (block, parents) in enumerate(zip(graph.blocks, graph.parents, strict=True)):
            own = [c for c, at in zip(constraints, last, strict=True) if at == i]
            mechanism = fit_mechanism(
                block, parents, own, supports, law, omega=self._omega(own), nonlocal_=self.nonlocal_
            )
            law = law.then(mechanism.factor, mechanism.nodes)
            mechanisms.append(mechanism)
            self.multipliers_ |= {
                str(c.name): float(m) for c, m in zip(own, mechanism.solution.multipliers, strict=True)
            }
        self.solver_info_ = {", ".join(m.factor.variables): m.info for m in mechanisms}
        self._constraints = constraints
        self._moments: Moments | None = None
        return self._learn(graph, law, {v: s.values for v, s in supports.items() if s.kind == "discrete"})

    def fit_moments(self, moments: Moments) -> Self:
        """Fit linear-Gaussian, logistic and softmax factors in closed form to first and second moments.

        Parameters
        ----------
        moments : Moments; unknown entries are completed along the graph.

        Returns
        -------
        self
        """
        from .chain import fit_chain

        if self.graph is None:
            raise CMaxEntError(
                "fit_moments needs a graph: without one, give a graph with a single block, such as 'a--b'"
            )
        graph = resolve_graph(self.graph, moments.variables, self.target)
        chain = fit_chain(moments, graph, slack=self.slack, nonlocal_=self.nonlocal_)
        self.multipliers_ = dict(chain.multipliers)
        self.solver_info_ = {}
        self._constraints = ()
        self._moments = chain.moments
        law = Law(tuple(chain.factors), seed=self.random_state)
        return self._learn(graph, law, {v: k for f in chain.factors for v, k in _labels(f).items()})

    def _learn(self, graph: BlockGraph, law: Law, labels: Mapping[str, tuple[Hashable, ...]]) -> Self:
        self.graph_ = graph
        self.variables_ = graph.variables
        self._law = law
        self._discrete = dict(labels)
        self.factors_: list[Factor] = list(law.factors)
        return self

    def _checked(self) -> tuple[dict[str, Support], tuple[Constraint, ...]]:
        if not self.supports:
            raise CMaxEntError("fit needs the support of every variable, e.g. supports={'x': Support.discrete([0, 1])}")
        for v, support in self.supports.items():
            if not isinstance(support, Support):
                raise CMaxEntError(
                    f"the support of {v} is a {type(support).__name__}; use Support.discrete, .interval or .real"
                )
        if self.nonlocal_ not in ("project", "error"):
            raise CMaxEntError(f"nonlocal_ has to be 'project' or 'error'; got {self.nonlocal_!r}")
        constraints: list[Constraint] = []
        for c in self.constraints or ():
            unknown = [v for v in (*c.scope, *(c.do or ())) if v not in self.supports]
            if unknown:
                raise CMaxEntError(
                    f"constraint {c.name or c.scope} names {', '.join(unknown)}, but the supports are of "
                    f"{', '.join(self.supports)}"
                )
            for v, value in (c.do or {}).items():
                if self.supports[v].kind == "discrete" and value not in self.supports[v].values:
                    raise CMaxEntError(
                        f"constraint {c.name or c.scope}: do({v}={value!r}) is outside the support of {v}"
                    )
            constraints.append(c if c.name else replace(c, name=f"E[f{len(constraints)}({', '.join(c.scope)})]"))
        names = [c.name for c in constraints]
        twice = sorted({str(n) for n in names if names.count(n) > 1})
        if twice:
            raise CMaxEntError(f"two constraints are called {', '.join(twice)}: give each its own name")
        return dict(self.supports), tuple(constraints)

    def _omega(self, constraints: list[Constraint]) -> Array:
        if self.slack == "se":
            return np.diag([(c.se or 0.0) ** 2 for c in constraints]) if constraints else np.empty((0, 0))
        if isinstance(self.slack, str) or not (np.isfinite(self.slack) and self.slack >= 0):
            raise CMaxEntError(f"slack has to be 'se' or a number that is not negative; got {self.slack!r}")
        return float(self.slack) * np.eye(len(constraints))

    # --- what the density says --------------------------------------------------------------------------

    def log_prob(self, X: pd.DataFrame | Mapping[str, ArrayLike] | ArrayLike) -> Array:
        """Log density of rows.

        Parameters
        ----------
        X : DataFrame or mapping with a column for each variable (others are ignored), or an (n, p) array with
            columns in the order of ``variables_``.

        Returns
        -------
        (n,) float64 nats; -inf outside the support. Densities are with respect to Lebesgue measure in continuous
        variables, counting measure in discrete ones, and the point mass in intervened ones.
        """
        values = self._columns(X)
        n = len(next(iter(values.values())))
        return sum((factor.log_prob(values) for factor in self._fitted().factors), np.zeros(n))

    def prob_table(self) -> pd.Series:
        """Probability of every state.

        Returns
        -------
        Series of float64 with one index level for each variable, in the order of the graph.

        Raises
        ------
        CMaxEntError
            A variable is continuous.
        StateSpaceTooLargeError
            More than 2^16 states.
        """
        self._fitted()
        continuous = [v for v in self.variables_ if v not in self._discrete]
        if continuous:
            raise CMaxEntError(f"{', '.join(continuous)} has no finite support: use log_prob or sample")
        labels = [self._discrete[v] for v in self.variables_]
        states = prod(len(values) for values in labels)
        if states > LARGEST_ENUMERATION:
            raise StateSpaceTooLargeError(f"the table has {states} states; at most {LARGEST_ENUMERATION} are listed")
        index = pd.MultiIndex.from_product(labels, names=self.variables_)
        grids = np.meshgrid(*[np.arange(len(values)) for values in labels], indexing="ij")
        values = {
            v: label_array(known)[codes.ravel()] for v, known, codes in zip(self.variables_, labels, grids, strict=True)
        }
        return pd.Series(np.exp(self.log_prob(values)), index=index, name="probability")

    def sample(self, n: int, random_state: int | np.random.Generator | None = None) -> pd.DataFrame:
        """Draw ``n`` independent rows.

        Parameters
        ----------
        random_state : seed or Generator.

        Returns
        -------
        DataFrame with the columns ``variables_``.
        """
        rng = np.random.default_rng(random_state)
        values: dict[str, NDArray[Any]] = {}
        for factor in self._fitted().factors:
            values |= factor.sample(values, rng, n)
        return pd.DataFrame({v: values[v] for v in self.variables_})

    def entropy(self) -> float:
        """Entropy in nats, differential in the continuous variables: sum over blocks of E H(block | parents).

        Exact where the fit enumerated or the factors are Gaussian; to quadrature accuracy for generic continuous
        fits with at most three continuous variables in a block and its parents, and for a logistic factor of jointly
        Gaussian parents; else over 2^11 seeded Sobol points. An intervened variable counts 0.
        """
        law = self._fitted()
        return sum(_mean_entropy(law, factor) for factor in law.factors)

    def implied_moments(self) -> Moments | pd.Series:
        """What the fitted density says about the moments.

        Returns
        -------
        After :meth:`fit`, a Series: constraint name -> E f under the fitted density (under its own intervention, for
        do-constraints). After :meth:`fit_moments`, a Moments without unknown entries.
        """
        law = self._fitted()
        if self._moments is not None:
            return self._moments
        out = {}
        for c in self._constraints:
            values, weights = (law if c.do is None else law.do(c.do)).points(c.scope)
            out[str(c.name)] = float(weights @ c.evaluate(values))
        return pd.Series(out, name="implied", dtype=float)

    def do(self, values: Mapping[str, Any]) -> CMaxEnt:
        """The density after setting variables to values: their mechanisms become point masses, all others stay.

        Variables that share a block with an intervened one keep their marginal law given the block's parents: the
        graph declares no cause between them.

        Returns
        -------
        A new fitted CMaxEnt. Its ``implied_moments`` are those of the original constraints in the mutilated law.
        """
        law = self._fitted()
        for v, value in values.items():
            if v not in self.variables_:
                raise CMaxEntError(f"do({v}=…): the variables are {', '.join(self.variables_)}")
            outside = v in self._discrete and value not in self._discrete[v]
            if outside or (self._moments is None and not self.supports[v].contains(label_array((value,)))[0]):  # type: ignore[index]
                raise CMaxEntError(f"do({v}={value!r}) is outside the support of {v}")
        new = CMaxEnt(
            self.graph,
            self.constraints,
            self.supports,
            target=self.target,
            slack=self.slack,
            nonlocal_=self.nonlocal_,
            random_state=self.random_state,
        )
        blocks, parents = _mutilated(self.graph_, values)
        new.multipliers_, new.solver_info_ = dict(self.multipliers_), dict(self.solver_info_)
        new._constraints, new._moments = self._constraints, None
        return new._learn(BlockGraph(blocks, parents), law.do(values), self._discrete)

    def _fitted(self) -> Law:
        if not hasattr(self, "_law"):
            raise CMaxEntError("this CMaxEnt is not fitted: call fit() or fit_moments(moments) first")
        return self._law

    def _columns(self, X: pd.DataFrame | Mapping[str, ArrayLike] | ArrayLike) -> dict[str, NDArray[Any]]:
        self._fitted()
        if isinstance(X, pd.DataFrame | Mapping):
            missing = [v for v in self.variables_ if v not in X]
            if missing:
                raise CMaxEntError(f"the rows lack {', '.join(missing)}")
            return {v: np.atleast_1d(np.asarray(X[v])) for v in self.variables_}
        array = np.asarray(X)
        if array.ndim != 2 or array.shape[1] != len(self.variables_):
            raise CMaxEntError(
                f"rows of shape {array.shape}; expected {len(self.variables_)} columns: {', '.join(self.variables_)}"
            )
        return {v: array[:, i] for i, v in enumerate(self.variables_)}


def _labels(factor: Factor) -> dict[str, tuple[Hashable, ...]]:
    """The finite supports that a factor declares."""
    match factor:
        case LogisticFactor():
            return {factor.variable: (0, 1)}
        case SoftmaxFactor():
            return {factor.variable: factor.levels}
        case TableFactor():
            return {v: factor.supports[v] for v in factor.variables}
    return {}


def _mean_entropy(law: Law, factor: Factor) -> float:
    """E H(variables | parents)."""
    parents = law.parents_of(factor)
    if not parents or isinstance(factor, GaussianFactor):  # the same at all parents
        return float(factor.conditional_entropy({p: np.zeros(1) for p in parents}, 1)[0])
    gaussian = _gaussian_law(law, factor.parents) if isinstance(factor, LogisticFactor) else None
    if isinstance(factor, LogisticFactor) and gaussian is not None:
        mean, cov = gaussian
        m, tau = (
            factor.intercept + float(factor.coef @ mean),
            float(np.sqrt(max(float(factor.coef @ cov @ factor.coef), 0.0))),
        )
        z, w = normal_rule(m, tau)
        return float(w @ binary_entropy(m + tau * z))
    values, weights = law.points(parents)
    return float(weights @ factor.conditional_entropy(values))


def _gaussian_law(law: Law, variables: tuple[str, ...]) -> tuple[Array, Array] | None:
    """Mean and covariance of jointly linear-Gaussian variables; None if an ancestor is anything else."""
    index: dict[str, int] = {}
    mean, cov = np.empty(0), np.empty((0, 0))
    for i in law.ancestry(variables):
        factor = law.factors[i]
        if not isinstance(factor, GaussianFactor):
            return None
        at = [index[p] for p in factor.parents]
        cross = factor.slopes @ cov[at]
        own = cross[:, at] @ factor.slopes.T + factor.cov
        mean = np.concatenate([mean, factor.intercept + factor.slopes @ mean[at]])
        cov = np.block([[cov, cross.T], [cross, own]])
        index |= {v: len(index) + k for k, v in enumerate(factor.variables)}
    if not set(variables) <= set(index):
        return None
    order = [index[v] for v in variables]
    return mean[order], cov[np.ix_(order, order)]


def _mutilated(
    graph: BlockGraph, values: Mapping[str, Any]
) -> tuple[tuple[tuple[str, ...], ...], tuple[tuple[str, ...], ...]]:
    blocks: list[tuple[str, ...]] = []
    parents: list[tuple[str, ...]] = []
    for block, above in zip(graph.blocks, graph.parents, strict=True):
        for v in block:
            if v in values:
                blocks.append((v,))
                parents.append(())
        rest = tuple(v for v in block if v not in values)
        if rest:
            blocks.append(rest)
            parents.append(above)
    return tuple(blocks), tuple(parents)
