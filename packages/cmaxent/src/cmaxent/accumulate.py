"""Moments of data that arrives in chunks: one pass, O(p^2) memory whatever the number of rows.

Rows are taken relative to the mean of the first chunk, and chunks are merged by the pairwise update of Chan, Golub
and LeVeque (1983), so that a mean of 1e8 next to a standard deviation of 1 costs no digits. Complete rows need
one symmetric product per chunk; rows with NaN keep a count, a mean and a co-moment for every pair.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import DataConversionWarning

from .errors import CMaxEntError
from .graph import _listed
from .moments import KINDS, Moments, _frozen, _validated

Array = NDArray[np.float64]

STRIP = 2**18  # values (2 MiB) that a second-level cache holds


@dataclass
class _State:
    """Count, mean and co-moment: (scalar, (p,), (p, p)) for complete rows, three (p, p) matrices with NaN.

    Means are relative to the accumulator's origin, so that their rounding is that of the spread, not of the offset.
    """

    n: Any
    mean: Array
    comoment: Array

    @property
    def pairwise(self) -> bool:
        return self.mean.ndim == 2

    def moved(self, by: Array) -> _State:
        """A copy of the sums, relative to another origin."""
        return _State(self.n, self.mean + (by[:, None] if self.pairwise else by), self.comoment.copy())

    def widened(self) -> _State:
        """The same sums in pairwise form; mean[i, j] is the mean of i over the rows that observe i and j."""
        if self.pairwise:
            return self
        p = len(self.mean)
        return _State(np.full((p, p), self.n), np.repeat(self.mean[:, None], p, axis=1), self.comoment)

    def merged(self, other: _State) -> _State:
        """The sums of both; takes over the arrays of ``other``, so that no third (p, p) matrix is made."""
        a, b = self, other
        if a.pairwise != b.pairwise:
            a, b = a.widened(), b.widened()
        n = a.n + b.n
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.where(n > 0, b.n / n, 0.0)
        delta = b.mean - a.mean
        if a.pairwise:
            spread = delta * delta.T * (a.n * share)
            return _State(n, a.mean + share * delta, a.comoment + b.comoment + spread)
        b.comoment += a.comoment
        _add_outer(b.comoment, delta, delta * (a.n * float(share)))
        return _State(n, a.mean + float(share) * delta, b.comoment)


@dataclass
class Accumulator:
    """Streams chunks of rows into :class:`Moments`.

    Parameters
    ----------
    names : column names.
    kinds : column -> "continuous" | "binary", or a list of class labels for a categorical column (chunks then hold
        labels, so they have to be DataFrames). Default continuous.
    bootstrap : number B of Poisson bootstrap replicates to accumulate in the same pass.
    random_state : seed of the bootstrap weights.

    Notes
    -----
    ``update`` takes numpy arrays, DataFrames (columns are matched by name) and array-API arrays such as torch, jax or
    cupy ones; the latter are reduced on their device in float64 and only the (p, p) result is copied. ``merge`` is
    associative up to rounding, which makes the class a reduction for joblib, Dask or torch.distributed.
    """

    names: Sequence[str]
    kinds: Mapping[str, Any] | None = None
    bootstrap: int = field(default=0, kw_only=True)
    random_state: int | np.random.Generator | None = field(default=None, kw_only=True)
    _origin: Array | None = field(default=None, init=False, repr=False)  # (p,), NaN where no value was seen yet
    _state: _State | None = field(default=None, init=False, repr=False)
    _replicates: list[_State | None] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        self.names = tuple(str(name) for name in self.names)
        self._columns = _columns(self.names, dict(self.kinds or {}))
        self._rng = np.random.default_rng(self.random_state)
        if self.bootstrap < 0:
            raise CMaxEntError(f"bootstrap has to be a number of replicates, not {self.bootstrap}")
        self._replicates = [None] * self.bootstrap

    def update(self, chunk: Any, sample_weight: ArrayLike | None = None) -> Accumulator:
        """Add rows: (n, p) in the order of ``names``, or a DataFrame that has these columns. NaN is missing."""
        if isinstance(chunk, pd.DataFrame):
            absent = [name for name in self.names if name not in chunk.columns]
            if absent:
                raise CMaxEntError(
                    f"the chunk lacks column {_listed(absent)}; it has {_listed(map(str, chunk.columns))}"
                )
        if not isinstance(chunk, (np.ndarray, pd.DataFrame)) and hasattr(chunk, "shape") and hasattr(chunk, "sum"):
            return self._update_on_device(chunk, sample_weight)
        parts = _encoded(chunk, self._columns)
        n, p = len(parts[0]), sum(part.shape[1] for part in parts)
        if n == 0:
            return self
        weight = _weights(sample_weight, n)
        complete = not any(np.isnan(_sums(part)).any() for part in parts)
        origin = np.full(p, np.nan) if self._origin is None else self._origin
        if np.isnan(origin).any():
            origin = np.where(np.isnan(origin), np.concatenate([_first_mean(part) for part in parts]), origin)
        shift = np.nan_to_num(origin)
        # Strips that stay in the cache, through one buffer: passing over them again costs no memory traffic.
        strip = max(1024, STRIP // p)
        buffer = np.empty((min(strip, n), p))
        fresh: list[_State | None] = [None] * (1 + self.bootstrap)
        for start in range(0, n, strip):
            rows = slice(start, min(start + strip, n))
            shifted = buffer[: rows.stop - start]
            at = 0
            for part in parts:
                own = slice(at, at + part.shape[1])
                np.subtract(part[rows], shift[own], out=shifted[:, own])
                at = own.stop
            given = None if weight is None else weight[rows]
            fresh[0] = _add(fresh[0], _block(shifted, given, complete))
            for b in range(self.bootstrap):
                draw = self._rng.poisson(1.0, len(shifted)).astype(float)
                fresh[b + 1] = _add(fresh[b + 1], _block(shifted, draw if given is None else draw * given, complete))
        self._origin = origin
        olds = [self._state, *self._replicates]
        states = [old if new is None else _add(old, new) for old, new in zip(olds, fresh, strict=True)]
        self._state, self._replicates = states[0], states[1:]
        return self

    def merge(self, other: Accumulator) -> Accumulator:
        """Add everything that another accumulator of the same columns has seen."""
        if other.names != self.names or other._columns != self._columns or other.bootstrap != self.bootstrap:
            raise CMaxEntError("accumulators can be merged only with the same names, kinds and bootstrap")
        if other._state is None or other._origin is None:
            return self
        # A coordinate that only one of them has seen keeps that one's origin.
        mine = other._origin if self._origin is None else self._origin
        self._origin = np.where(np.isnan(mine), other._origin, mine)
        moved = np.nan_to_num(other._origin - self._origin)
        self._state = _add(self._state, other._state.moved(moved))
        self._replicates = [
            a if b is None else _add(a, b.moved(moved))
            for a, b in zip(self._replicates, other._replicates, strict=True)
        ]
        return self

    def finalize(self) -> Moments:
        """The moments of all rows so far."""
        return _finalize(self._state, self._origin, self._columns)

    def finalize_bootstrap(self) -> list[Moments]:
        """One Moments per Poisson bootstrap replicate."""
        return [_finalize(state, self._origin, self._columns) for state in self._replicates]

    def _update_on_device(self, chunk: Any, sample_weight: ArrayLike | None) -> Accumulator:
        if len(chunk.shape) != 2 or chunk.shape[1] != len(self.names):
            raise CMaxEntError(f"a chunk has to be (n, {len(self.names)}); got shape {tuple(chunk.shape)}")
        x = chunk.double() if hasattr(chunk, "double") else chunk.astype("float64")
        if self.bootstrap or sample_weight is not None or any(c.levels for c in self._columns) or bool((x != x).any()):
            return self.update(_to_numpy(x), sample_weight)
        n = float(x.shape[0])
        if n:
            centre = x.sum(0) / n
            centred = x - centre
            mean, comoment = _to_numpy(centre), _to_numpy(centred.T @ centred)
            if not np.isfinite(mean).all():
                raise CMaxEntError(
                    f"column {_listed([self.names[int(i)] for i in np.flatnonzero(~np.isfinite(mean))])} holds an "
                    "infinite value"
                )
            self._origin = mean if self._origin is None else np.where(np.isnan(self._origin), mean, self._origin)
            self._state = _add(self._state, _State(n, mean - self._origin, comoment))
        return self


def _to_numpy(x: Any) -> Array:
    if hasattr(x, "detach"):  # torch
        x = x.detach().cpu().numpy()
    elif hasattr(x, "get"):  # cupy
        x = x.get()
    return np.asarray(x, dtype=float)


def _add(state: _State | None, more: _State) -> _State:
    return more if state is None else state.merged(more)


def _weights(sample_weight: ArrayLike | None, n: int) -> Array | None:
    if sample_weight is None:
        return None
    weight = np.asarray(sample_weight, dtype=float)
    if weight.shape != (n,):
        raise CMaxEntError(f"sample_weight has to have one entry per row: shape ({n},), got {weight.shape}")
    if not (np.isfinite(weight).all() and (weight >= 0).all()):
        raise CMaxEntError("sample_weight has to be finite and not negative")
    return weight


def _add_outer(matrix: Array, u: Array, v: Array) -> None:
    """matrix += outer(u, v), a few rows at a time: no temporary of the matrix's size."""
    for start in range(0, len(u), 256):
        part = slice(start, start + 256)
        matrix[part] += np.outer(u[part], v)


def _sums(rows: Array) -> Array:
    """Column sums; NaN or infinite where any term is, which one product tells for all rows."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(np.ones(len(rows)) @ rows)


def _first_mean(rows: Array) -> Array:
    """Column means of the first rows, of all rows where those hold no value, NaN where none does."""
    head = rows[:1024]
    observed = ~np.isnan(head)
    with np.errstate(invalid="ignore"):
        mean = np.where(observed, head, 0.0).sum(axis=0) / observed.sum(axis=0)
    empty = np.isnan(mean)
    return np.where(empty, _first_mean(rows[1024:]), mean) if empty.any() and len(rows) > 1024 else mean


def _block(rows: Array, weight: Array | None, complete: bool) -> _State:
    if complete:
        n = float(len(rows)) if weight is None else float(weight.sum())
        left = rows if weight is None else rows * weight[:, None]
        mean = _sums(left) / n if n > 0 else np.zeros(rows.shape[1])
        comoment = left.T @ rows  # a symmetric product where left is rows
        _add_outer(comoment, mean, -n * mean)
        return _State(n, mean, comoment)
    missing = np.isnan(rows)
    observed = (~missing).astype(float)
    rows = np.where(missing, 0.0, rows)
    left, seen = (rows, observed) if weight is None else (rows * weight[:, None], observed * weight[:, None])
    n = seen.T @ observed
    total = left.T @ observed  # total[i, j]: sum of i over rows that observe j
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(n > 0, total / n, 0.0)
    return _State(n, mean, left.T @ rows - n * mean * mean.T)


def _finalize(state: _State | None, origin: Array | None, columns: Sequence[_Column]) -> Moments:
    if state is None or origin is None or not np.any(np.asarray(state.n) > 0):
        raise CMaxEntError("no rows were given: moments of an empty source do not exist")
    names = tuple(name for c in columns for name in c.coordinates)
    kinds = {c.name: c.kind for c in columns}
    levels = {c.name: c.levels for c in columns if c.levels}
    if not state.pairwise:
        return _validated(names, kinds, origin + state.mean, state.comoment / state.n, state.n, levels)
    unseen = [name for name, n in zip(names, state.n.diagonal(), strict=True) if n == 0]
    if unseen:
        raise CMaxEntError(f"column {_listed(unseen)} holds no value at all")
    with np.errstate(invalid="ignore", divide="ignore"):
        cov = np.where(state.n > 0, state.comoment / state.n, np.nan)
    mean = origin + state.mean.diagonal()
    made = _validated(names, kinds, mean, _pairwise_consistent(cov), state.n, levels)
    return replace(made, pair_mean=_frozen(origin[:, None] + state.mean))


def _pairwise_consistent(cov: Array) -> Array:
    """Pairwise rows may push a correlation marginally outside [-1, 1]; such a pair is clipped onto it.

    The covariance of a pair uses the pair's rows, the variances all rows of each column: the quotient is not a
    correlation of any one sample. Positive definiteness is checked where the moments are used.
    """
    limit = np.sqrt(np.outer(cov.diagonal(), cov.diagonal()))
    return np.where(np.isnan(limit), cov, np.clip(cov, -limit, limit))


# --- columns and their encoding ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Column:
    name: str
    kind: str
    levels: tuple[Any, ...] = ()  # () for continuous and for binary columns that hold 0 and 1

    @property
    def coordinates(self) -> tuple[str, ...]:
        return tuple(f"{self.name}={level}" for level in self.levels) if self.kind == "categorical" else (self.name,)


def _columns(names: Sequence[str], kinds: Mapping[str, Any]) -> list[_Column]:
    unknown = [k for k in kinds if k not in names]
    if unknown:
        raise CMaxEntError(f"kinds names {_listed(unknown)}, but the columns are {_listed(names)}")
    columns = []
    for name in names:
        kind = kinds.get(name, "continuous")
        if isinstance(kind, str):
            if kind == "categorical":
                raise CMaxEntError(f"categorical {name} needs its class labels: kinds={{{name!r}: [label, label, …]}}")
            if kind not in KINDS:
                raise CMaxEntError(
                    f"kind of {name} is {kind!r}; it has to be one of {', '.join(KINDS)}, or a list of labels"
                )
            columns.append(_Column(name, kind))
        else:
            levels = tuple(kind)
            if len(set(levels)) != len(levels) or len(levels) < 2:
                raise CMaxEntError(f"categorical {name} needs at least two distinct labels; got {list(levels)}")
            columns.append(_Column(name, "categorical", levels))
    return columns


def _encode(chunk: Any, columns: Sequence[_Column]) -> Array:
    """Rows as float64 coordinates (n, p), NaN for missing."""
    parts = _encoded(chunk, columns)
    if len(parts) == 1:
        return parts[0]
    return np.ascontiguousarray(np.column_stack(parts)) if parts else np.empty((len(chunk), 0))


def _encoded(chunk: Any, columns: Sequence[_Column]) -> list[Array]:
    """The coordinates of a chunk, in order, as arrays (n, some of the p) that are views of it where it allows."""
    if isinstance(chunk, pd.DataFrame):
        width = len(columns)
        while width and columns[width - 1].kind != "continuous":
            width -= 1
        leading = chunk.iloc[:, :width]
        if (
            width > 1
            and [c.name for c in columns[:width]] == list(leading.columns)
            and all(
                c.kind == "continuous" and kind == np.float64 for c, kind in zip(columns, leading.dtypes, strict=False)
            )
        ):  # real columns in the frame's own order: no need to take it apart
            return [_encode_array(leading.to_numpy(), columns[:width]), *_encoded_apart(chunk, columns[width:])]
        return _encoded_apart(chunk, columns)
    if any(c.levels for c in columns):
        raise CMaxEntError("categorical columns need DataFrame chunks, so that labels can be matched")
    try:
        rows = np.asarray(chunk, dtype=float)
    except (TypeError, ValueError) as error:
        raise CMaxEntError(f"the chunk is not numeric: {error}") from None
    if rows.ndim != 2 or rows.shape[1] != len(columns):
        raise CMaxEntError(f"a chunk has to be (n, {len(columns)}); got shape {rows.shape}")
    return [_encode_array(rows, columns)]


def _encoded_apart(frame: pd.DataFrame, columns: Sequence[_Column]) -> list[Array]:
    return [_encode_column(frame[c.name], c) for c in columns]


def _encode_array(rows: Array, columns: Sequence[_Column]) -> Array:
    if not np.isfinite(_sums(rows)).all() and (infinite := np.isinf(rows)).any():
        i, j = (int(v) for v in np.argwhere(infinite)[0])
        raise CMaxEntError(f"column {columns[j].name}, row {i}: infinite value")
    for j, column in enumerate(columns):
        if column.kind == "binary":
            _check_zero_one(rows[:, j], column.name)
    return rows


def _encode_column(series: pd.Series, column: _Column) -> Array:
    if column.levels:
        missing = series.isna().to_numpy()
        values = series.to_numpy()
        codes = pd.Index(column.levels).get_indexer(pd.Index(values))
        stray = (codes < 0) & ~missing
        if stray.any():
            row = int(np.flatnonzero(stray)[0])
            raise CMaxEntError(
                f"column {column.name}, row {row}: value {values[row]!r} is not among the levels "
                f"{_listed(map(str, column.levels))}"
            )
        if column.kind == "binary":
            return np.where(missing, np.nan, codes)[:, None]
        return np.where(missing[:, None], np.nan, codes[:, None] == np.arange(len(column.levels)))
    try:
        numbers = series.to_numpy(dtype=float, na_value=np.nan)
    except (TypeError, ValueError):
        parsed = pd.to_numeric(series, errors="coerce")
        row = int(np.flatnonzero((parsed.isna() & series.notna()).to_numpy())[0])
        raise CMaxEntError(f"column {column.name}, row {row}: {series.iloc[row]!r} is not a number") from None
    if np.isinf(numbers).any():
        raise CMaxEntError(f"column {column.name}, row {int(np.flatnonzero(np.isinf(numbers))[0])}: infinite value")
    if column.kind == "binary":
        _check_zero_one(numbers, column.name)
    return numbers[:, None]


def _check_zero_one(values: Array, name: str) -> None:
    stray = ~np.isnan(values) & (values != 0) & (values != 1)
    if stray.any():
        row = int(np.flatnonzero(stray)[0])
        raise CMaxEntError(f"column {name}, row {row}: binary columns hold 0 and 1, found {values[row]:g}")


def infer_columns(
    frame: pd.DataFrame, kinds: Mapping[str, Any] | None = None, *, numeric: str = "infer"
) -> list[_Column]:
    """Kind and levels of each column of a DataFrame.

    Parameters
    ----------
    kinds : column -> kind or list of labels; the rest is inferred.
    numeric : "infer" makes numeric columns within {0, 1} binary; "continuous" leaves every numeric column continuous.
    """
    given = dict(kinds or {})
    unknown = [k for k in given if k not in frame.columns]
    if unknown:
        raise CMaxEntError(
            f"kinds names {_listed(map(str, unknown))}, but the columns are {_listed(map(str, frame.columns))}"
        )
    columns = []
    for name in frame.columns:
        series, kind = frame[name], given.get(name)
        if kind is not None and not isinstance(kind, str):
            columns += _columns([str(name)], {str(name): kind})
            continue
        if kind is not None and kind not in KINDS:
            raise CMaxEntError(
                f"kind of {name} is {kind!r}; it has to be one of {', '.join(KINDS)}, or a list of labels"
            )
        is_number = pd.api.types.is_numeric_dtype(series) and not pd.api.types.is_bool_dtype(series)
        if is_number and kind in (None, "continuous", "binary"):
            if kind is None:
                zero_one = numeric == "infer" and bool(series.dropna().isin((0, 1)).all()) and series.notna().any()
                kind = "binary" if zero_one else "continuous"
            columns.append(_Column(str(name), kind))
            continue
        if kind == "continuous":
            columns.append(_Column(str(name), kind))  # encoding says which row is not a number
            continue
        levels = tuple(_sorted_levels(series))
        if len(levels) < 2:
            shown = f"the single value {levels[0]!r}" if levels else "no value at all"
            raise CMaxEntError(f"column {name} has one class only ({shown}): leave it out")
        if kind is None:
            kind = "binary" if len(levels) == 2 else "categorical"
        if kind == "binary" and len(levels) != 2:
            raise CMaxEntError(
                f"column {name} is declared binary but has {len(levels)} values: {_listed(map(str, levels))}"
            )
        columns.append(_Column(str(name), kind, levels))
    return columns


def _sorted_levels(series: pd.Series) -> list[Any]:
    if isinstance(series.dtype, pd.CategoricalDtype):
        present = set(series.dropna().unique())
        return [level for level in series.cat.categories if level in present]
    found = series.dropna().unique().tolist()
    try:
        return sorted(found)
    except TypeError:
        return sorted(found, key=str)


def accumulate_frame(
    X: ArrayLike | pd.DataFrame,
    *,
    names: Sequence[str] | None = None,
    kinds: str | Mapping[str, Any] | Sequence[str] = "infer",
    sample_weight: ArrayLike | None = None,
) -> Accumulator:
    """An accumulator that has seen one in-memory table (behind :meth:`Moments.from_data`)."""
    frame = as_frame(X, names)
    given: Mapping[str, Any]
    if isinstance(kinds, str):
        if kinds != "infer":
            if kinds not in ("continuous", "binary"):
                raise CMaxEntError(
                    f"kinds={kinds!r}: use 'infer', a mapping from column to kind, or one kind per column"
                )
            given = dict.fromkeys(frame.columns, kinds)
        else:
            given = {}
    elif isinstance(kinds, Mapping):
        given = kinds
    else:
        if len(kinds) != frame.shape[1]:
            raise CMaxEntError(f"kinds lists {len(kinds)} entries for {frame.shape[1]} columns")
        given = dict(zip(frame.columns, kinds, strict=True))
    return accumulate_columns(frame, infer_columns(frame, given), sample_weight)


def accumulate_columns(
    frame: pd.DataFrame, columns: Sequence[_Column], sample_weight: ArrayLike | None = None
) -> Accumulator:
    """An accumulator of columns that are encoded as given, with the rows of a frame in it."""
    accumulator = Accumulator([c.name for c in columns])
    accumulator._columns = list(columns)
    return accumulator.update(frame, sample_weight)


def row_weights(sample_weight: ArrayLike | None, n: int) -> Array | None:
    """(n,) weights of an estimator's rows; a single number weighs them all."""
    if sample_weight is None:
        return None
    weight = np.asarray(sample_weight, dtype=float)
    if weight.ndim == 0:
        weight = np.full(n, float(weight))
    if weight.size and not weight.any():
        raise CMaxEntError("sample weights are all zero: no row counts")
    return _weights(weight, n)


def label_column(y: Any) -> NDArray[Any]:
    """(n,) target values; a single column is flattened with scikit-learn's warning."""
    values = y.to_numpy() if isinstance(y, (pd.Series, pd.DataFrame)) else np.asarray(y)
    if values.ndim == 2 and values.shape[1] == 1:
        warnings.warn("A column-vector y was passed when a 1d array was expected.", DataConversionWarning, stacklevel=4)
    elif values.ndim != 1:
        raise CMaxEntError(f"y has to be one column; got shape {values.shape}")
    return values.ravel()


def as_frame(X: ArrayLike | pd.DataFrame, names: Sequence[str] | None = None) -> pd.DataFrame:
    """A DataFrame with string column names; arrays get ``names`` or x0, x1, …"""
    if isinstance(X, pd.DataFrame):
        if names is not None and list(map(str, names)) != list(map(str, X.columns)):
            missing = [n for n in names if n not in X.columns]
            if missing:
                raise CMaxEntError(
                    f"the table lacks column {_listed(map(str, missing))}; it has {_listed(map(str, X.columns))}"
                )
            X = X[list(names)]
        frame = X.copy(deep=False)
        frame.columns = [str(c) for c in frame.columns]
        if frame.columns.has_duplicates:
            raise CMaxEntError(
                f"column names have to be distinct; repeated: {_listed(frame.columns[frame.columns.duplicated()])}"
            )
        return frame
    array = np.asarray(X)
    if array.ndim != 2:
        raise CMaxEntError(f"data has to be a 2-D array or a DataFrame; got shape {array.shape}")
    labels = [f"x{i}" for i in range(array.shape[1])] if names is None else [str(n) for n in names]
    if len(labels) != array.shape[1]:
        raise CMaxEntError(f"{len(labels)} names for {array.shape[1]} columns")
    return pd.DataFrame(array, columns=labels).infer_objects()
