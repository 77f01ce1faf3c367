"""Rows from several environments, and the statistics that every code of continuous mechanisms reads them through.

Second moments are kept about their own means and merged by Chan's rule, so that means of 1e6 cost no digits.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import DataError

SMALL_ENVIRONMENT = 5  # rows
MIXED_LEVELS = 10  # an integer column with at most so many values is discrete in the mixed family


@dataclass(frozen=True)
class Moments:
    """Row count n (...), mean (..., p) and centred scatter Σ(x−x̄)(x−x̄)ᵀ (..., p, p) of one or many groups of rows.

    `a + b` are the moments of the rows of both, group by group (Chan, Golub & LeVeque 1983).
    """

    n: NDArray[np.float64]
    mean: NDArray[np.float64]
    scatter: NDArray[np.float64]

    @classmethod
    def of(cls, X: NDArray[np.float64]) -> Moments:
        """Moments of the rows of X (n, p); n = 0 gives zeros."""
        mean = X.mean(axis=0) if len(X) else np.zeros(X.shape[1])
        centred = X - mean
        return cls(np.array(float(len(X))), mean, centred.T @ centred)

    @classmethod
    def by_environment(cls, X: NDArray[np.float64], env: NDArray[np.intp], n_envs: int) -> Moments:
        """Moments of each environment: n (N,), mean (N, p), scatter (N, p, p). `env` holds codes 0..N-1."""
        order = np.argsort(env, kind="stable")
        ends = np.searchsorted(env[order], np.arange(n_envs + 1))
        return cls.stack([cls.of(X[order[a:b]]) for a, b in pairwise(ends)])

    @classmethod
    def stack(cls, groups: Sequence[Moments]) -> Moments:
        return cls(
            np.array([g.n for g in groups], dtype=float),
            np.array([g.mean for g in groups]),
            np.array([g.scatter for g in groups]),
        )

    def __add__(self, other: Moments) -> Moments:
        n = self.n + other.n
        share = np.divide(other.n, n, out=np.zeros(np.shape(n)), where=n > 0)
        step = other.mean - self.mean
        weight = np.asarray(self.n * share)[..., None, None]
        outer = step[..., :, None] * step[..., None, :]
        mean = self.mean + np.asarray(share)[..., None] * step
        return Moments(n, mean, self.scatter + other.scatter + weight * outer)

    def __getitem__(self, groups: Any) -> Moments:
        """The moments of some of the groups."""
        return Moments(self.n[groups], self.mean[groups], self.scatter[groups])

    def columns(self, columns: ArrayLike) -> Moments:
        """The moments of some of the columns, in the order given."""
        c = np.asarray(columns, dtype=np.intp)
        return Moments(self.n, self.mean[..., c], self.scatter[..., c[:, None], c])

    def merged(self, blocks: Iterable[Iterable[int]]) -> Moments:
        """One group for each block of groups."""
        return Moments.stack([sum_of([self[i] for i in block]) for block in blocks])

    def rescaled(self, centre: NDArray[np.float64], scale: NDArray[np.float64]) -> Moments:
        """The moments of (x − centre) / scale."""
        return Moments(self.n, (self.mean - centre) / scale, self.scatter / np.outer(scale, scale))

    def location_scale(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean (p,) of all rows, and the root (p,) of the variance within environments, Σ_e C_e / Σ_e (n_e − 1).

        The standard deviation of all rows together would grow with shifts of the mean between environments and so
        depend on them. A column that is constant within every environment has no other scale than that one.
        """
        pooled = sum_of([self[i] for i in range(len(self.n))])
        within = np.einsum("eii->i", self.scatter) / max(float(np.sum(self.n - 1)), 1.0)
        total = np.diag(pooled.scatter) / max(float(pooled.n), 1.0)
        return pooled.mean, np.sqrt(np.where(within > 1e-20 * total, within, total))


def sum_of(groups: Sequence[Any]) -> Any:
    """groups[0] + groups[1] + …, for any statistics that can be added."""
    total = groups[0]
    for group in groups[1:]:
        total = total + group
    return total


@dataclass(frozen=True)
class EnvData:
    """The same d variables in N environments, checked.

    names : the d columns' names (0..d-1 for an array).
    labels : the N environments' labels, sorted where they can be.
    env : (n,) codes into `labels`.
    X : (n, d) float64; a discrete column holds the codes of its levels. None once the rows have been dropped.
    levels : for each column the values of its levels, None for a continuous one.
    """

    names: tuple[Hashable, ...]
    labels: tuple[Hashable, ...]
    env: NDArray[np.intp]
    X: NDArray[np.float64] | None
    levels: tuple[tuple[Hashable, ...] | None, ...]

    @classmethod
    def read(cls, X: Any, env: Any = None, family: str = "gaussian") -> EnvData:
        """Check rows X (n, d), an array or a DataFrame, with environment labels `env` (n,).

        `env` may be the name of a column of the DataFrame, which then is no variable; None is one environment.
        In the families gaussian and basis every column is numeric; in discrete every column is a category; in mixed a
        column is discrete if it is text, Boolean, categorical or has at most 10 values, all integers.
        Raises DataError, which names the columns and counts what is wrong in them.
        """
        names, columns, env = _columns(X, env)
        n = len(columns[0])
        if n < 2:
            raise DataError(f"X has {n} row{'' if n == 1 else 's'}: at least 2 are needed")
        labels, codes = _environments(env, n)
        _refuse(names, [_missing(c) for c in columns], "missing or infinite values", "remove or impute them")
        discrete = [family == "discrete" or (family == "mixed" and _is_discrete(c)) for c in columns]
        text = [0 if is_discrete or _is_number(c) else n for c, is_discrete in zip(columns, discrete, strict=True)]
        _refuse(names, text, "values that are not numbers", 'encode them, or use family "discrete" or "mixed"')
        values = np.empty((n, len(columns)))
        levels: list[tuple[Hashable, ...] | None] = []
        for j, column in enumerate(columns):
            found, values[:, j] = _factorize(column) if discrete[j] else (None, column.astype(float))
            levels.append(found)
        constant = [n if np.ptp(values[:, j]) == 0 else 0 for j in range(len(columns))]
        _refuse(names, constant, "equal values (a constant)", "leave the column out")
        data = cls(names, labels, codes, values, tuple(levels))
        small = [(label, int(k)) for label, k in zip(labels, data.n_per_env, strict=True) if k < SMALL_ENVIRONMENT]
        if small:
            shown = ", ".join(f"{label!r}: {k}" for label, k in small[:5])
            warnings.warn(f"{len(small)} environments have fewer than 5 rows ({shown})", UserWarning, stacklevel=2)
        return data

    @property
    def n_envs(self) -> int:
        return len(self.labels)

    @property
    def d(self) -> int:
        return len(self.names)

    @cached_property
    def n_per_env(self) -> NDArray[np.intp]:
        if self.X is None:
            return self.moments.n.astype(np.intp)
        return np.bincount(self.env, minlength=self.n_envs)

    @property
    def n(self) -> int:
        return int(self.n_per_env.sum())

    @property
    def arities(self) -> tuple[int, ...]:
        """The number of levels of each column, 0 for a continuous one."""
        return tuple(0 if found is None else len(found) for found in self.levels)

    @cached_property
    def moments(self) -> Moments:
        """Central moments of every environment, in the units of the data. The rows are read here, once."""
        return Moments.by_environment(self.rows(), self.env, self.n_envs)

    def rows(self) -> NDArray[np.float64]:
        if self.X is None:
            raise DataError("the rows were dropped and only their moments kept: this family needs the rows")
        return self.X

    def without_rows(self) -> EnvData:
        """The moments alone: all that the Gaussian family needs, and of a size that does not grow with n."""
        kept = EnvData(self.names, self.labels, self.env[:0], None, self.levels)
        kept.__dict__["moments"] = self.moments
        return kept

    def __add__(self, other: EnvData) -> EnvData:
        """All rows of both; moments that were computed already are merged, not computed again."""
        if self.names != other.names:
            raise DataError(f"columns differ: {_shown(self.names)} against {_shown(other.names)}")
        if any((a is None) != (b is None) for a, b in zip(self.levels, other.levels, strict=True)):
            raise DataError("a column is discrete in one part and continuous in the other")
        labels = _ordered({*self.labels, *other.labels})
        place = {label: i for i, label in enumerate(labels)}
        maps = [np.array([place[label] for label in part.labels], dtype=np.intp) for part in (self, other)]
        levels = tuple(
            None if a is None or b is None else _ordered({*a, *b})
            for a, b in zip(self.levels, other.levels, strict=True)
        )
        if self.X is None or other.X is None:
            if any(found is not None for found in levels):
                raise DataError("the rows of discrete columns are needed to add data, and were dropped")
            X, env = None, self.env[:0]
        else:
            X = np.vstack([_recoded(self.X, self.levels, levels), _recoded(other.X, other.levels, levels)])
            env = np.concatenate([maps[0][self.env], maps[1][other.env]])
        both = EnvData(self.names, labels, env, X, levels)
        if X is None or (not any(levels) and "moments" in self.__dict__):
            parts = [_spread(m.moments, to, len(labels)) for m, to in zip((self, other), maps, strict=True)]
            both.__dict__["moments"] = parts[0] + parts[1]
        return both

    def index(self, column: Hashable) -> int:
        """The position of a column, given by its name or, where no column has that name, by its position."""
        if column in self.names:
            return self.names.index(column)
        if isinstance(column, int | np.integer) and 0 <= column < self.d:
            return int(column)
        raise DataError(f"there is no column {column!r}: the columns are {_shown(self.names)}")


def _columns(X: Any, env: Any) -> tuple[tuple[Hashable, ...], list[NDArray[Any]], Any]:
    if hasattr(X, "columns") and hasattr(X, "iloc"):
        if isinstance(env, Hashable) and not isinstance(env, tuple) and env is not None:
            if env not in X.columns:
                raise DataError(f"there is no column {env!r} of environments: the columns are {_shown(X.columns)}")
            env, X = X[env], X.drop(columns=env)
        names = tuple(X.columns)
        if len(set(names)) < len(names):
            raise DataError(
                f"column names occur twice: {_shown(dict.fromkeys(c for c in names if names.count(c) > 1))}"
            )
        columns = [X.iloc[:, j].to_numpy() for j in range(len(names))]
    else:
        array = np.asarray(X)
        if array.ndim != 2:
            raise DataError(f"X must have shape (rows, columns), but has shape {array.shape}")
        names = tuple(range(array.shape[1]))
        columns = [array[:, j] for j in range(array.shape[1])]
        if isinstance(env, str):
            raise DataError(f"env={env!r} names a column, but X is an array without names: give the labels themselves")
    if not names:
        raise DataError("X has no columns")
    return names, columns, env


def _environments(env: Any, n: int) -> tuple[tuple[Hashable, ...], NDArray[np.intp]]:
    if env is None:
        return (0,), np.zeros(n, dtype=np.intp)
    values = env.to_numpy() if hasattr(env, "to_numpy") else np.asarray(env, dtype=None if _plain(env) else object)
    if values.ndim != 1 or len(values) != n:
        raise DataError(f"env must hold one label for each of the {n} rows, but has shape {values.shape}")
    missing = _missing(values)
    if missing:
        raise DataError(f"env has {missing} missing labels")
    return _factorize(values)


def _plain(env: Any) -> bool:
    return isinstance(env, np.ndarray) or len({type(label) for label in env}) == 1


def _factorize(values: NDArray[Any]) -> tuple[tuple[Hashable, ...], NDArray[np.intp]]:
    if values.dtype.kind != "O":
        found, codes = np.unique(values, return_inverse=True)
        return tuple(found.tolist()), codes.astype(np.intp)
    labels = _ordered(set(values.tolist()))
    place = {label: i for i, label in enumerate(labels)}
    return labels, np.array([place[value] for value in values.tolist()], dtype=np.intp)


def _ordered(labels: Iterable[Any]) -> tuple[Hashable, ...]:
    """Sorted where labels compare, else by type and text: independent of the order of rows."""
    labels = list(labels)
    try:
        return tuple(sorted(labels))
    except TypeError:
        return tuple(sorted(labels, key=lambda label: (type(label).__name__, str(label))))


def _is_number(column: NDArray[Any]) -> bool:
    if column.dtype.kind in "iufb":
        return True
    return column.dtype.kind == "O" and all(isinstance(x, int | float | np.number) for x in column.tolist())


def _is_discrete(column: NDArray[Any]) -> bool:
    if not _is_number(column) or column.dtype.kind == "b":
        return True
    found = np.unique(column.astype(float))
    return len(found) <= MIXED_LEVELS and bool(np.all(found == np.round(found)))


def _missing(column: NDArray[Any]) -> int:
    if column.dtype.kind in "fc":
        return int(np.sum(~np.isfinite(column)))
    if column.dtype.kind != "O":
        return 0
    return sum(
        x is None
        or type(x).__name__ in ("NAType", "NaTType")  # pandas' own, without importing it
        or (isinstance(x, float | np.floating) and not np.isfinite(x))
        for x in column.tolist()
    )


def _refuse(names: Sequence[Hashable], counts: Sequence[int], what: str, remedy: str) -> None:
    bad = [f"{name!r}: {count}" for name, count in zip(names, counts, strict=True) if count]
    if bad:
        more = f" and {len(bad) - 8} more" if len(bad) > 8 else ""
        raise DataError(f"columns have {what} ({', '.join(bad[:8])}{more}): {remedy}")


def _shown(names: Iterable[Hashable]) -> str:
    listed = [repr(name) for name in names]
    return ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")


def _recoded(X: NDArray[np.float64], old: Sequence[Any], new: Sequence[Any]) -> NDArray[np.float64]:
    X = X.copy()
    for j, (a, b) in enumerate(zip(old, new, strict=True)):
        if a is not None and a != b:
            X[:, j] = np.array([b.index(level) for level in a])[X[:, j].astype(np.intp)]
    return X


def _spread(moments: Moments, to: NDArray[np.intp], n_envs: int) -> Moments:
    """The same moments with environments at the places `to`, and none elsewhere."""
    p = moments.mean.shape[1]
    out = Moments(np.zeros(n_envs), np.zeros((n_envs, p)), np.zeros((n_envs, p, p)))
    out.n[to], out.mean[to], out.scatter[to] = moments.n, moments.mean, moments.scatter
    return out
