"""Factors p(block | parents) of a fitted density: the pieces that a causal order multiplies (spec 2.1, 2.6).

Every factor is a frozen dataclass with ``variables``, ``parents`` and five methods over *values*, a mapping from
variable names to equally long one-dimensional arrays:

``log_prob(values)``
    (n,) float64, log p(variables | parents) in nats, -inf outside the support. A density with respect to Lebesgue
    measure in the continuous variables and to counting measure in the discrete ones.
``sample(values, rng)``
    one draw of ``variables`` for each row of the parents' values; without parents, give the number of rows as
    ``n``.
``propose(values, u)``
    the same from uniforms u (n, n_uniform) in [0, 1), which may be quasi-random, with the (n,) log ratios of the
    target to the density that was drawn from (zero where the draw is exact).
``conditional_entropy(values)``
    (n,) float64, the entropy in nats of ``variables`` given each row of the parents.
``marginal(keep)``
    the factor of a subset of its own variables given the same parents.

A categorical variable holds its level *labels*. As a parent of a parametric factor it enters through indicator
coordinates named ``"variable=level"``, where the level is written as ``str(label)``.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.special import expit, log_expit, log_softmax, logsumexp, ndtri

from .errors import CMaxEntError

Array: TypeAlias = "NDArray[np.float64]"
Values: TypeAlias = "Mapping[str, NDArray[Any]]"


class Factor(Protocol):
    """What the model needs of p(variables | parents); see the module's docstring."""

    @property
    def variables(self) -> tuple[str, ...]: ...

    @property
    def parents(self) -> tuple[str, ...]: ...

    def log_prob(self, values: Values) -> Array: ...

    def sample(self, values: Values, rng: np.random.Generator, n: int | None = None) -> dict[str, NDArray[Any]]: ...

    @property
    def n_uniform(self) -> int: ...

    def propose(self, values: Values, u: Array) -> tuple[dict[str, NDArray[Any]], Array]: ...

    def conditional_entropy(self, values: Values, n: int | None = None) -> Array: ...

    def marginal(self, keep: Sequence[str]) -> Factor: ...


def design(parents: Sequence[str], values: Values, n: int | None = None) -> Array:
    """The parents' coordinates as columns.

    Parameters
    ----------
    parents : names of numeric variables, or ``"variable=level"`` for the indicator of one level.
    n : number of rows when there are no parents; taken from ``values`` otherwise.

    Returns
    -------
    (n, len(parents)) float64.
    """
    columns = [_coordinate(name, values) for name in parents]
    if not columns:
        return np.empty((row_count(values) if n is None else n, 0))
    return np.column_stack(columns)


def _coordinate(name: str, values: Values) -> Array:
    if name in values:
        return np.asarray(values[name], float)
    for i, character in enumerate(name):
        if character == "=" and name[:i] in values:
            column, level = np.asarray(values[name[:i]]), name[i + 1 :]
            return np.array([str(label) == level for label in column.tolist()], float)
    raise CMaxEntError(f"a factor needs the value of {name}; given are {', '.join(values) or 'none'}")


def row_count(values: Values) -> int:
    """Length of the columns; one if there are none."""
    return len(next(iter(values.values()))) if values else 1


# --- parametric factors -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class GaussianFactor:
    """variables | parents ~ N(intercept + slopes parents, cov).

    Parameters
    ----------
    intercept : (b,); slopes : (b, p); cov : (b, b) positive definite, the units of the variables squared.
    """

    variables: tuple[str, ...]
    parents: tuple[str, ...]
    intercept: Array
    slopes: Array
    cov: Array
    _chol: Array = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        b, p = len(self.variables), len(self.parents)
        _check_shapes(
            self.variables, intercept=(self.intercept, (b,)), slopes=(self.slopes, (b, p)), cov=(self.cov, (b, b))
        )
        try:
            object.__setattr__(self, "_chol", cholesky(self.cov, lower=True))
        except np.linalg.LinAlgError:
            raise CMaxEntError(
                f"the conditional covariance of {', '.join(self.variables)} is not positive definite"
            ) from None

    def mean(self, values: Values, n: int | None = None) -> Array:
        """(n, b) conditional means."""
        return self.intercept + design(self.parents, values, n) @ self.slopes.T

    def log_prob(self, values: Values) -> Array:
        """(n,) log density; -inf where a value is infinite."""
        x = np.column_stack([np.asarray(values[v], float) for v in self.variables])
        white = solve_triangular(self._chol, (x - self.mean(values, len(x))).T, lower=True)
        return -0.5 * np.einsum("ij,ij->j", white, white) - _log_normaliser(self._chol)

    def sample(self, values: Values, rng: np.random.Generator, n: int | None = None) -> dict[str, NDArray[Any]]:
        """One draw for each row."""
        mean = self.mean(values, n)
        return self._columns(mean + rng.standard_normal(mean.shape) @ self._chol.T)

    def _columns(self, x: Array) -> dict[str, NDArray[Any]]:
        return {v: x[:, i] for i, v in enumerate(self.variables)}

    @property
    def n_uniform(self) -> int:
        """One uniform for each variable."""
        return len(self.variables)

    def propose(self, values: Values, u: Array) -> tuple[dict[str, NDArray[Any]], Array]:
        """Exact draws from uniforms."""
        normal = ndtri(np.maximum(u, 2.0**-60))  # a uniform of exactly 0 is no quantile
        return self._columns(self.mean(values, len(u)) + normal @ self._chol.T), np.zeros(len(u))

    def conditional_entropy(self, values: Values, n: int | None = None) -> Array:
        """(n,) the same number in each row: log det(2 pi e cov) / 2."""
        n = row_count(values) if n is None else n
        return np.full(n, _log_normaliser(self._chol) + 0.5 * len(self.variables))

    def marginal(self, keep: Sequence[str]) -> GaussianFactor:
        """A sub-vector of a Gaussian is Gaussian."""
        index = [self.variables.index(v) for v in keep]
        return GaussianFactor(
            tuple(keep), self.parents, self.intercept[index], self.slopes[index], self.cov[np.ix_(index, index)]
        )


def _log_normaliser(chol: Array) -> float:
    return float(np.log(np.diag(chol)).sum() + 0.5 * len(chol) * np.log(2 * np.pi))


@dataclass(frozen=True)
class LogisticFactor:
    """logit P(variable = 1 | parents) = intercept + coef . parents, for a variable with values 0 and 1.

    Parameters
    ----------
    coef : (p,)
    """

    variable: str
    parents: tuple[str, ...]
    intercept: float
    coef: Array

    def __post_init__(self) -> None:
        _check_shapes((self.variable,), coef=(self.coef, (len(self.parents),)))

    @property
    def variables(self) -> tuple[str, ...]:
        """The one variable."""
        return (self.variable,)

    def logit(self, values: Values, n: int | None = None) -> Array:
        """(n,) log odds of 1."""
        return self.intercept + design(self.parents, values, n) @ self.coef

    def log_prob(self, values: Values) -> Array:
        """(n,) log probability mass."""
        y = np.asarray(values[self.variable])
        eta = self.logit(values, len(y))
        return np.where(y == 1, log_expit(eta), np.where(y == 0, log_expit(-eta), -np.inf))

    def sample(self, values: Values, rng: np.random.Generator, n: int | None = None) -> dict[str, NDArray[Any]]:
        """One 0/1 draw (int64) for each row."""
        return self.propose(values, rng.random((row_count(values) if n is None else n, 1)))[0]

    @property
    def n_uniform(self) -> int:
        """One."""
        return 1

    def propose(self, values: Values, u: Array) -> tuple[dict[str, NDArray[Any]], Array]:
        """Exact draws from uniforms."""
        draws = (u[:, 0] < expit(self.logit(values, len(u)))).astype(np.int64)
        return {self.variable: draws}, np.zeros(len(u))

    def conditional_entropy(self, values: Values, n: int | None = None) -> Array:
        """(n,) entropy of the Bernoulli law of each row."""
        return binary_entropy(self.logit(values, n))

    def marginal(self, keep: Sequence[str]) -> LogisticFactor:
        """The factor itself: it has one variable."""
        return self


def binary_entropy(eta: Array) -> Array:
    """Entropy in nats of a Bernoulli variable with log odds ``eta``; exact for any magnitude."""
    eta = np.abs(eta)
    tail = expit(-eta)  # p log p of the likely side by log1p, of the rare side by its logit
    return -(tail * log_expit(-eta)) - (1 - tail) * log_expit(eta)


@dataclass(frozen=True)
class SoftmaxFactor:
    """log P(variable = levels[k] | parents) = intercept[k] + coef[k] . parents + const, for K levels.

    Values of the variable are the labels in ``levels`` (not integer codes, unless the labels are integers).

    Parameters
    ----------
    levels : K distinct labels; intercept : (K,); coef : (K, p).
    """

    variable: str
    levels: tuple[Hashable, ...]
    parents: tuple[str, ...]
    intercept: Array
    coef: Array

    def __post_init__(self) -> None:
        K = len(self.levels)
        _check_shapes((self.variable,), intercept=(self.intercept, (K,)), coef=(self.coef, (K, len(self.parents))))

    @property
    def variables(self) -> tuple[str, ...]:
        """The one variable."""
        return (self.variable,)

    def log_probabilities(self, values: Values, n: int | None = None) -> Array:
        """(n, K) log probabilities of the levels."""
        return log_softmax(self.intercept + design(self.parents, values, n) @ self.coef.T, axis=1)

    def log_prob(self, values: Values) -> Array:
        """(n,) log probability mass."""
        codes = label_codes(self.levels, values[self.variable])
        logs = self.log_probabilities(values, len(codes))
        return np.where(codes >= 0, logs[np.arange(len(codes)), codes], -np.inf)

    def sample(self, values: Values, rng: np.random.Generator, n: int | None = None) -> dict[str, NDArray[Any]]:
        """One label for each row."""
        return self.propose(values, rng.random((row_count(values) if n is None else n, 1)))[0]

    @property
    def n_uniform(self) -> int:
        """One."""
        return 1

    def propose(self, values: Values, u: Array) -> tuple[dict[str, NDArray[Any]], Array]:
        """Exact draws from uniforms."""
        codes = draw_codes(self.log_probabilities(values, len(u)), u[:, 0])
        return {self.variable: label_array(self.levels)[codes]}, np.zeros(len(u))

    def conditional_entropy(self, values: Values, n: int | None = None) -> Array:
        """(n,) entropy over the levels in each row."""
        return _entropy(self.log_probabilities(values, n))

    def marginal(self, keep: Sequence[str]) -> SoftmaxFactor:
        """The factor itself: it has one variable."""
        return self


# --- tables and point masses ------------------------------------------------------------------------------


@dataclass(frozen=True)
class TableFactor:
    """A conditional probability table over discrete variables.

    Parameters
    ----------
    supports : for each of ``(*parents, *variables)`` the labels that its axis of ``log_table`` runs over.
    log_table : (*parents, *variables) log probabilities in nats; each slice at fixed parents sums to one.
    """

    variables: tuple[str, ...]
    parents: tuple[str, ...]
    supports: Mapping[str, tuple[Hashable, ...]]
    log_table: Array

    def __post_init__(self) -> None:
        shape = tuple(len(self.supports[v]) for v in (*self.parents, *self.variables))
        _check_shapes(self.variables, log_table=(self.log_table, shape))

    def _codes(self, names: Sequence[str], values: Values) -> list[NDArray[np.intp]]:
        return [label_codes(self.supports[v], values[v]) for v in names]

    def _matrix(self) -> Array:
        return self.log_table.reshape(*self.log_table.shape[: len(self.parents)], -1)

    def log_prob(self, values: Values) -> Array:
        """(n,) log probability mass; -inf for labels outside the supports."""
        codes = np.stack(self._codes((*self.parents, *self.variables), values))
        return np.where((codes >= 0).all(axis=0), self.log_table[tuple(codes)], -np.inf)

    def _at_parents(self, values: Values, n: int | None) -> Array:
        if not self.parents:
            return np.broadcast_to(
                self.log_table.reshape(1, -1), (row_count(values) if n is None else n, self.log_table.size)
            )
        codes = self._codes(self.parents, values)
        for name, code in zip(self.parents, codes, strict=True):
            if (code < 0).any():
                raise CMaxEntError(f"{name} = {np.asarray(values[name])[code < 0][0]!r} is outside its support")
        return self._matrix()[tuple(codes)]

    def propose(self, values: Values, u: Array) -> tuple[dict[str, NDArray[Any]], Array]:
        """Map uniforms (n, 1) to draws by inverting the distribution function; log weights (n,) are zero."""
        logs = self._at_parents(values, len(u))
        codes = draw_codes(logs, u[:, 0])
        shape = self.log_table.shape[len(self.parents) :]
        axes = np.unravel_index(codes, shape)
        draws = {v: label_array(self.supports[v])[axis] for v, axis in zip(self.variables, axes, strict=True)}
        return draws, np.zeros(len(u))

    @property
    def n_uniform(self) -> int:
        """Columns of uniforms that :meth:`propose` takes."""
        return 1

    def sample(self, values: Values, rng: np.random.Generator, n: int | None = None) -> dict[str, NDArray[Any]]:
        """One draw for each row, in the dtype of the labels."""
        n = row_count(values) if n is None else n
        return self.propose(values, rng.random((n, 1)))[0]

    def conditional_entropy(self, values: Values, n: int | None = None) -> Array:
        """(n,) entropy of the table's slice at each row's parents."""
        return _entropy(self._at_parents(values, n))

    def marginal(self, keep: Sequence[str]) -> TableFactor:
        """Sum the other variables out."""
        drop = tuple(len(self.parents) + i for i, v in enumerate(self.variables) if v not in keep)
        kept = tuple(v for v in self.variables if v in keep)
        return TableFactor(
            kept, self.parents, self.supports, logsumexp(self.log_table, axis=drop) if drop else self.log_table
        )


@dataclass(frozen=True)
class PointMass:
    """do(variable = value): no parents, and all mass on one value.

    ``log_prob`` is taken with respect to that point mass: 0 at the value, -inf elsewhere, also for a continuous
    variable. Its entropy is counted as 0.
    """

    variable: str
    value: Any

    @property
    def variables(self) -> tuple[str, ...]:
        """The one variable."""
        return (self.variable,)

    @property
    def parents(self) -> tuple[str, ...]:
        """None: that is what intervening means."""
        return ()

    def log_prob(self, values: Values) -> Array:
        """(n,) 0 or -inf."""
        return np.where(np.asarray(values[self.variable]) == self.value, 0.0, -np.inf)

    def sample(self, values: Values, rng: np.random.Generator, n: int | None = None) -> dict[str, NDArray[Any]]:
        """The value in each row."""
        return self.propose(values, np.empty((row_count(values) if n is None else n, 0)))[0]

    @property
    def n_uniform(self) -> int:
        """None needed."""
        return 0

    def propose(self, values: Values, u: Array) -> tuple[dict[str, NDArray[Any]], Array]:
        """The value in each of ``len(u)`` rows."""
        return {self.variable: np.repeat(label_array((self.value,)), len(u))}, np.zeros(len(u))

    def conditional_entropy(self, values: Values, n: int | None = None) -> Array:
        """(n,) zeros."""
        return np.zeros(row_count(values) if n is None else n)

    def marginal(self, keep: Sequence[str]) -> PointMass:
        """The factor itself: it has one variable."""
        return self


# --- labels and draws -------------------------------------------------------------------------------------


def label_codes(labels: Sequence[Hashable], column: NDArray[Any]) -> NDArray[np.intp]:
    """(n,) the position of each entry of ``column`` in ``labels``; -1 where it is none of them."""
    position = {label: i for i, label in enumerate(labels)}
    return np.array([position.get(x, -1) for x in np.asarray(column).tolist()], dtype=np.intp)


def label_array(labels: Sequence[Hashable]) -> NDArray[Any]:
    """The labels as an array: numeric if all of them are numbers or booleans, of dtype object otherwise."""
    if all(isinstance(x, (bool, int, float, np.number, np.bool_)) for x in labels):
        return np.asarray(labels)
    out = np.empty(len(labels), dtype=object)
    out[:] = labels
    return out


def distinct_rows(columns: Sequence[NDArray[Any]], n: int) -> NDArray[np.intp]:
    """(n,) the number 0, 1, … of each row among the distinct rows of equally long columns of any dtype."""
    group = np.zeros(n, dtype=np.intp)
    for column in columns:
        _, codes = np.unique(column, return_inverse=True)
        _, group = np.unique(group * (codes.max(initial=0) + 1) + codes, return_inverse=True)
    return group


def draw_codes(log_masses: Array, u: Array) -> NDArray[np.intp]:
    """One category for each row of ``log_masses`` (n, K) by inverting its distribution function at ``u`` (n,)."""
    cumulative = np.cumsum(np.exp(log_masses), axis=1)
    return (cumulative < u[:, None] * cumulative[:, -1:]).sum(axis=1)


def negative_mean_log(log_masses: Array, log_density: Array) -> Array:
    """(n,) - sum_k exp(log_masses) log_density of each row, zero masses contributing nothing: an entropy."""
    p = np.exp(log_masses)
    return -(p * np.where(p > 0, log_density, 0.0)).sum(axis=1)


def _entropy(log_masses: Array) -> Array:
    return negative_mean_log(log_masses, log_masses)


def _check_shapes(variables: Sequence[str], **arrays: tuple[Array, tuple[int, ...]]) -> None:
    for name, (array, shape) in arrays.items():
        if np.shape(array) != shape:
            raise CMaxEntError(
                f"{name} of the factor of {', '.join(variables)} has shape {np.shape(array)}; expected {shape}"
            )
        if np.isnan(array).any():
            raise CMaxEntError(f"{name} of the factor of {', '.join(variables)} contains NaN")
