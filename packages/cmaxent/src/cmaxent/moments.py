"""First and second moments of named coordinates, the exchange format of the package; NaN means unknown.

A continuous or binary variable is one coordinate. A categorical variable y with classes a, b, c is three
indicator coordinates ``y=a``, ``y=b``, ``y=c``. Covariances are central and divided by n (ddof 0).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from .errors import CMaxEntError, InconsistentMomentsError
from .graph import _listed
from .storage import load_json, load_npz, save_json, save_npz

Array = NDArray[np.float64]

KINDS = ("continuous", "binary", "categorical")
JSON_LIMIT = 500  # coordinates; beyond this a text file is the wrong container


@dataclass(frozen=True)
class Moments:
    """Means and central covariances of named coordinates.

    Build with :meth:`from_arrays`, :meth:`from_data`, :meth:`from_class_stats`, :meth:`from_logistic`,
    :meth:`from_predictor` or :meth:`from_marginal_effects`; combine with :func:`cmaxent.merge`.
    Immutable: methods return new objects and the arrays are read-only.

    Attributes
    ----------
    names : coordinate names, length p.
    kinds : variable -> "continuous" | "binary" | "categorical".
    mean : (p,) float64.
    cov : (p, p) float64, central, ddof 0, NaN where the pair was never observed.
    n : None, one count, or (p, p) counts of the rows that observe each pair.
    levels : variable -> its class labels (binary: label of 0, label of 1), where known.
    heterogeneity : Cochran's Q per moment seen in two or more merged sources, else None.
    repair_alpha : shrinkage that ``merge(repair="shrink")`` applied, else None.
    """

    names: tuple[str, ...]
    kinds: Mapping[str, str]
    mean: Array
    cov: Array
    n: float | Array | None = None
    levels: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    heterogeneity: pd.DataFrame | None = None
    repair_alpha: float | None = None
    # Mean of row i over the rows that observe column j as well; None where it does not differ from `mean`.
    # Rows that miss values need it to merge without loss.
    pair_mean: Array | None = field(default=None, repr=False)

    # --- constructors --------------------------------------------------------------------------------------

    @classmethod
    def from_arrays(
        cls,
        mean: ArrayLike,
        cov: ArrayLike,
        *,
        names: Sequence[str],
        kinds: Mapping[str, str] | Sequence[str] | None = None,
        n: float | ArrayLike | None = None,
        levels: Mapping[str, Sequence[Any]] | None = None,
    ) -> Moments:
        """From a mean vector and a central covariance matrix.

        Parameters
        ----------
        mean : (p,).
        cov : (p, p), central, divided by n, symmetric, NaN = unknown pair. The diagonal of a binary coordinate may
            be NaN; it is filled with pi (1 - pi).
        names : p distinct coordinate names; a categorical y enters as ``y=a``, ``y=b``, …
        kinds : variable -> kind, or one kind per coordinate; default continuous.
        n : rows behind the moments, one number or (p, p) pair counts.
        levels : variable -> class labels, default 0/1 for binary and the text after "=" for categorical.

        Raises
        ------
        InconsistentMomentsError
            |corr| > 1, a binary variance that is not pi (1 - pi), indicators that do not sum to one.
        CMaxEntError
            Any other malformed input; the message names the variable.
        """
        names = tuple(str(name) for name in names)
        labels = dict(levels or {})
        return _validated(names, _kind_map(names, kinds), _numbers(mean, "mean"), _numbers(cov, "cov"), n, labels)

    @classmethod
    def from_data(
        cls,
        X: ArrayLike | pd.DataFrame,
        *,
        names: Sequence[str] | None = None,
        kinds: str | Mapping[str, Any] | Sequence[str] = "infer",
        sample_weight: ArrayLike | None = None,
    ) -> Moments:
        """From rows, NaN allowed: a covariance uses the rows that observe both of its columns.

        Parameters
        ----------
        X : (n, p) DataFrame or array.
        names : column names of an array (default x0, x1, …).
        kinds : "infer" (bool, object, category and columns within {0, 1} are discrete, the rest continuous), or
            variable -> kind (others are inferred), or one kind for each column.
        sample_weight : (n,) non-negative weights; ``n`` becomes their sum.
        """
        from .accumulate import accumulate_frame

        return accumulate_frame(X, names=names, kinds=kinds, sample_weight=sample_weight).finalize()

    @classmethod
    def from_class_stats(
        cls,
        target: str,
        classes: Sequence[Any],
        priors: ArrayLike,
        means: ArrayLike,
        cov_within: ArrayLike,
        *,
        names: Sequence[str],
        n: float | None = None,
    ) -> Moments:
        """From class means and a within-class covariance, e.g. of a fitted LDA. See :mod:`cmaxent.sources`."""
        from .sources import from_class_stats

        return from_class_stats(target, classes, priors, means, cov_within, names=names, n=n)

    @classmethod
    def from_logistic(
        cls,
        coef: ArrayLike,
        intercept: float,
        mean: ArrayLike,
        cov: ArrayLike,
        *,
        target: str,
        names: Sequence[str],
        n: float | None = None,
    ) -> Moments:
        """From a logistic regression and the mean and covariance of its features. See :mod:`cmaxent.sources`."""
        from .sources import from_logistic

        return from_logistic(coef, intercept, mean, cov, target=target, names=names, n=n)

    @classmethod
    def from_predictor(
        cls,
        predict_proba: Callable[[Any], ArrayLike] | Any,
        X_ref: ArrayLike | pd.DataFrame,
        *,
        target: str,
        names: Sequence[str] | None = None,
        n: float | None = None,
    ) -> Moments:
        """From any classifier and unlabelled reference rows. See :mod:`cmaxent.sources`."""
        from .sources import from_predictor

        return from_predictor(predict_proba, X_ref, target=target, names=names, n=n)

    @classmethod
    def from_marginal_effects(
        cls,
        beta: ArrayLike,
        *,
        var: ArrayLike,
        prevalence: float,
        target: str,
        names: Sequence[str],
        scale: str = "logit",
        n: float | None = None,
    ) -> Moments:
        """From one-variable-at-a-time effects, as a GWAS prints them. See :mod:`cmaxent.sources`."""
        from .sources import from_marginal_effects

        return from_marginal_effects(beta, var=var, prevalence=prevalence, target=target, names=names, scale=scale, n=n)

    # --- reading -------------------------------------------------------------------------------------------

    @property
    def p(self) -> int:
        """Number of coordinates."""
        return len(self.names)

    @property
    def known(self) -> NDArray[np.bool_]:
        """(p, p) bool: which entries of ``cov`` are known."""
        return ~np.isnan(self.cov)

    @property
    def variables(self) -> tuple[str, ...]:
        """Variables in the order of their first coordinate."""
        return tuple(self.kinds)

    def coordinates(self, variable: str) -> list[int]:
        """Indices of a variable's coordinates (several for a categorical one), or of a single coordinate."""
        if self.kinds.get(variable) == "categorical":
            return [i for i, name in enumerate(self.names) if name.startswith(f"{variable}=")]
        if variable in self.names:
            return [self.names.index(variable)]
        raise CMaxEntError(f"no variable {variable!r} among {_listed(self.variables)}")

    def pair_counts(self) -> Array | None:
        """(p, p) counts, or None where the moments carry no n."""
        if self.n is None:
            return None
        return np.where(self.known, self.n, 0.0)

    # --- new moments from old --------------------------------------------------------------------------------

    def hide(self, pairs: Iterable[tuple[str, str]]) -> Moments:
        """Forget the covariance of each (a, b); a categorical name stands for all its indicators."""
        cov = self.cov.copy()
        where: dict[str, list[int]] = {}
        rows: list[int] = []
        columns: list[int] = []
        for pair in pairs:
            if isinstance(pair, str) or len(tuple(pair)) != 2:
                raise CMaxEntError(f"hide takes pairs of names such as ('x1', 'x2'); got {pair!r}")
            for name in pair:
                if name not in where:
                    where[name] = self.coordinates(name)
            for i in where[pair[0]]:
                for j in where[pair[1]]:
                    rows.append(i)
                    columns.append(j)
        cov[rows, columns] = cov[columns, rows] = np.nan
        return replace(self, cov=_frozen(cov), heterogeneity=None)

    def subset(self, names: Iterable[str]) -> Moments:
        """Only these variables or coordinates, in this order."""
        wanted = [names] if isinstance(names, str) else list(names)
        index = [i for name in wanted for i in self.coordinates(name)]
        if len(set(index)) != len(index) or not index:
            raise CMaxEntError(f"subset needs distinct names, at least one; got {_listed(wanted)}")
        chosen = tuple(self.names[i] for i in index)
        kinds = {_variable_of(name, self.kinds): self.kinds[_variable_of(name, self.kinds)] for name in chosen}
        for variable, kind in list(kinds.items()):
            if kind == "categorical" and not set(self.coordinates(variable)) <= set(index):
                raise CMaxEntError(
                    f"subset has to keep all classes of {variable}: name the variable, not one indicator"
                )
        grid = np.ix_(index, index)
        return Moments(
            chosen,
            kinds,
            _frozen(self.mean[index]),
            _frozen(self.cov[grid]),
            self.n[grid] if isinstance(self.n, np.ndarray) else self.n,
            {k: v for k, v in self.levels.items() if k in kinds},
            pair_mean=None if self.pair_mean is None else _frozen(self.pair_mean[grid]),
        )

    def rename(self, mapping: Mapping[str, str]) -> Moments:
        """Rename variables (a categorical variable's indicators follow) or single coordinates."""
        for old in mapping:
            self.coordinates(old)
        kinds = {mapping.get(v, v): kind for v, kind in self.kinds.items()}

        def new(name: str) -> str:
            variable = _variable_of(name, self.kinds)
            if self.kinds[variable] == "categorical":
                return mapping.get(variable, variable) + name[len(variable) :]
            return mapping.get(name, name)

        names = tuple(new(name) for name in self.names)
        _check_names(names)
        return replace(self, names=names, kinds=kinds, levels={mapping.get(k, k): v for k, v in self.levels.items()})

    def privatize(
        self,
        epsilon: float,
        delta: float,
        bounds: Mapping[str, tuple[float, float]],
        random_state: int | np.random.Generator | None = None,
    ) -> Moments:
        """(epsilon, delta)-differentially private moments. See :mod:`cmaxent.privacy`."""
        from .privacy import privatize

        return privatize(self, epsilon, delta, bounds, random_state)

    # --- files -----------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, None for unknown: ready for JSON."""

        def matrix(values: Array) -> list[list[float | None]]:
            return [[None if np.isnan(v) else float(v) for v in row] for row in values]

        return {
            "names": list(self.names),
            "kinds": dict(self.kinds),
            "levels": {k: [_plain(v) for v in labels] for k, labels in self.levels.items()},
            "mean": [float(v) for v in self.mean],
            "cov": matrix(self.cov),
            "n": matrix(self.n) if isinstance(self.n, np.ndarray) else self.n,
            "pair_mean": None if self.pair_mean is None else matrix(self.pair_mean),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Moments:
        """Inverse of :meth:`to_dict`; validates like :meth:`from_arrays`."""
        try:
            n = data.get("n")
            made = cls.from_arrays(
                np.array(data["mean"], dtype=float),
                np.array(data["cov"], dtype=float),
                names=data["names"],
                kinds=data.get("kinds"),
                n=np.array(n, dtype=float) if isinstance(n, list) else n,
                levels=data.get("levels"),
            )
            pair_mean = data.get("pair_mean")
        except (KeyError, TypeError, AttributeError) as error:
            raise CMaxEntError(f"not a moments dictionary: {error!r}") from None
        if pair_mean is None:
            return made
        return replace(made, pair_mean=_frozen(np.array(pair_mean, dtype=float)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``.json`` (up to 500 coordinates) or ``.npz``, atomically and with a checksum."""
        suffix = Path(path).suffix
        if suffix == ".json":
            if self.p > JSON_LIMIT:
                raise CMaxEntError(
                    f"{path}: {self.p} coordinates are too many for .json (at most {JSON_LIMIT}); use .npz"
                )
            save_json(path, "moments", self.to_dict())
        elif suffix == ".npz":
            meta = {
                "names": list(self.names),
                "kinds": dict(self.kinds),
                "levels": {k: [_plain(v) for v in labels] for k, labels in self.levels.items()},
                "n": None if isinstance(self.n, np.ndarray) else self.n,
            }
            arrays = {"mean": self.mean, "cov": self.cov}
            if isinstance(self.n, np.ndarray):
                arrays["n"] = self.n
            if self.pair_mean is not None:
                arrays["pair_mean"] = self.pair_mean
            save_npz(path, "moments", meta, arrays)
        else:
            raise CMaxEntError(f"{path}: moments are stored as .json or .npz, not {suffix or 'without a suffix'!r}")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Moments:
        """Read a file written by :meth:`save`."""
        if Path(path).suffix == ".json":
            kind, data = load_json(path)
        else:
            kind, meta, arrays = load_npz(path)
            data = {**meta, **arrays}
        if kind != "moments":
            raise CMaxEntError(f"{path}: holds a cmaxent {kind}, not moments")
        if Path(path).suffix == ".json":
            return cls.from_dict(data)
        made = cls.from_arrays(
            data["mean"], data["cov"], names=data["names"], kinds=data["kinds"], n=data["n"], levels=data["levels"]
        )
        return replace(made, pair_mean=_frozen(data["pair_mean"])) if "pair_mean" in data else made


# --- validation ----------------------------------------------------------------------------------------------


def _validated(
    names: tuple[str, ...],
    kinds: dict[str, str],
    mean: Array,
    cov: Array,
    n: float | ArrayLike | None,
    levels: Mapping[str, Sequence[Any]],
) -> Moments:
    """Moments that hold these arrays (taken over, not copied), after every check."""
    p = len(names)
    _check_names(names)
    if mean.shape != (p,) or cov.shape != (p, p):
        raise CMaxEntError(
            f"{p} names need mean of shape ({p},) and cov of shape ({p}, {p}); got {mean.shape} and {cov.shape}"
        )
    _require(np.isfinite(mean), names, "has a mean that is not a finite number")
    _require(~np.isinf(cov).any(axis=1), names, "has an infinite covariance")
    known = ~np.isnan(cov)
    _require((known == known.T).all(axis=1), names, "has a covariance that is NaN on one side of the diagonal only")
    at = {name: i for i, name in enumerate(names)}
    for i in [at[v] for v, kind in kinds.items() if kind == "binary"]:
        cov[i, i] = _bernoulli_variance(names[i], mean[i], cov[i, i])
    for variable, kind in kinds.items():
        if kind == "categorical":
            _fill_categorical(variable, names, mean, cov)
    variance = cov.diagonal()
    with np.errstate(invalid="ignore"):
        _require(~(variance < 0), names, "has a negative variance")
        _require(~(variance == 0), names, "is constant (variance 0): leave it out")
        _check_pairs(names, cov, np.sqrt(variance))
    return Moments(names, kinds, _frozen(mean), _frozen(cov), _counts(n, p), _labels(names, kinds, levels))


def _check_pairs(names: Sequence[str], cov: Array, scale: Array) -> None:
    """Make cov exactly symmetric in place and refuse what is no covariance; in strips, without (p, p) temporaries."""
    for start in range(0, len(cov), 256):
        stop = start + 256
        upper, lower = cov[start:stop, start:], cov[start:, start:stop].T
        limit = np.outer(scale[start:stop], scale[start:])
        # An asymmetry of rounding size is averaged away; a larger one is a mistake of the caller.
        wrong = np.abs(upper - lower) > 1e-8 * limit
        if wrong.any():
            i, j = (int(v) for v in np.argwhere(wrong)[0])
            raise CMaxEntError(
                f"{names[start + i]}, {names[start + j]} have an asymmetric covariance: {upper[i, j]:.6g} above the "
                f"diagonal, {lower[i, j]:.6g} below"
            )
        middle = (upper + lower) / 2
        beyond = np.abs(middle) > limit * (1 + 1e-9)
        if beyond.any():
            i, j = (int(v) for v in np.argwhere(beyond)[0])
            raise InconsistentMomentsError(
                f"the correlation of {names[start + i]} and {names[start + j]} is {middle[i, j] / limit[i, j]:.6g}, "
                "outside [-1, 1]: cov has to be central, E[xy] - E[x] E[y]"
            )
        upper[:], lower[:] = middle, middle


def _numbers(values: ArrayLike, what: str) -> Array:
    try:
        return np.array(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise CMaxEntError(f"{what} is not an array of numbers: {error}") from None


def _require(fine: Any, names: Sequence[str], complaint: str) -> None:
    if not fine.all():
        bad = [names[int(i)] for i in np.flatnonzero(~fine)]
        raise CMaxEntError(f"{_listed(bad)} {complaint}")


def _check_names(names: Sequence[str]) -> None:
    if not names:
        raise CMaxEntError("moments need at least one coordinate")
    repeated = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) != len(names) else []
    if repeated:
        raise CMaxEntError(f"coordinate names have to be distinct; repeated: {_listed(repeated)}")


def _kind_map(names: tuple[str, ...], kinds: Mapping[str, str] | Sequence[str] | None) -> dict[str, str]:
    """Kinds by variable, in the order of first coordinates."""
    if kinds is None:
        given: dict[str, str] = {}
    elif isinstance(kinds, Mapping):
        given = dict(kinds)
    elif isinstance(kinds, str):
        raise CMaxEntError(f"kinds has to map variables to kinds; got {kinds!r}")
    else:
        if len(kinds) != len(names):
            raise CMaxEntError(f"kinds lists {len(kinds)} entries for {len(names)} names")
        given = {
            name.split("=", 1)[0] if kind == "categorical" else name: kind
            for name, kind in zip(names, kinds, strict=True)
        }
    for variable, kind in given.items():
        if kind not in KINDS:
            raise CMaxEntError(f"kind of {variable} is {kind!r}; it has to be one of {', '.join(KINDS)}")
        found = any(n.startswith(f"{variable}=") for n in names) if kind == "categorical" else variable in names
        if not found:
            wanted = f"coordinates '{variable}=class'" if kind == "categorical" else f"a coordinate {variable!r}"
            raise CMaxEntError(
                f"kinds names {variable} as {kind}, but there is no such thing among the names: it needs {wanted}"
            )
    categorical = {v for v, kind in given.items() if kind == "categorical"}
    result: dict[str, str] = {}
    for name in names:
        variable = _variable_of(name, dict.fromkeys(categorical, "categorical"))
        result[variable] = given.get(variable, "continuous")
    return result


def _variable_of(name: str, kinds: Mapping[str, str]) -> str:
    """The variable that a coordinate belongs to: the longest categorical prefix before '=', else itself."""
    for cut in (i for i in range(len(name) - 1, -1, -1) if name[i] == "="):
        if kinds.get(name[:cut]) == "categorical":
            return name[:cut]
    return name


def _bernoulli_variance(name: str, pi: float, given: float) -> float:
    if not 0.0 < pi < 1.0:
        raise CMaxEntError(
            f"binary {name} has mean {pi:g}, so only one class occurs; it has to lie strictly between 0 and 1"
        )
    exact = pi * (1 - pi)
    if not np.isnan(given) and abs(given - exact) > 1e-6 * exact:
        raise InconsistentMomentsError(
            f"binary {name} with mean {pi:.6g} has variance {exact:.6g}, but {given:.6g} was given (divide by n, not "
            "n - 1)"
        )
    return float(exact)


def _fill_categorical(variable: str, names: tuple[str, ...], mean: Array, cov: Array) -> None:
    """Check indicator moments of one categorical variable and fill in what they imply."""
    index = np.array([i for i, name in enumerate(names) if name.startswith(f"{variable}=")])
    if len(index) < 2:
        raise CMaxEntError(f"categorical {variable} has one class only ({names[index[0]]})")
    pi = mean[index]
    for i in index:
        if not 0.0 < mean[i] < 1.0:
            raise CMaxEntError(f"class {names[i]} has frequency {mean[i]:g}; it has to lie strictly between 0 and 1")
    if abs(pi.sum() - 1) > 1e-6:
        raise InconsistentMomentsError(f"the class frequencies of {variable} sum to {pi.sum():.8g} instead of 1")
    exact = np.diag(pi) - np.outer(pi, pi)
    own = np.ix_(index, index)
    if np.nanmax(np.abs(cov[own] - exact), initial=0.0) > 1e-6:
        raise InconsistentMomentsError(
            f"the indicator covariances of {variable} are not those of its class frequencies"
        )
    cov[own] = exact
    others = np.setdiff1d(np.arange(len(names)), index)
    block = cov[np.ix_(index, others)]
    missing = np.isnan(block).sum(axis=0)
    partly = (missing > 1) & (missing < len(index))
    if partly.any():
        raise InconsistentMomentsError(
            f"the covariances of {variable} with {_listed([names[j] for j in others[partly]])} are known for some "
            "classes and unknown for "
            "several others: give all of them or none"
        )
    one = np.flatnonzero(missing == 1)
    if len(one):  # indicators sum to one, so their covariances with anything sum to zero
        rows = np.isnan(block[:, one]).argmax(axis=0)
        block[rows, one] = -np.nansum(block[:, one], axis=0)
    with np.errstate(invalid="ignore"):
        bad = np.abs(block.sum(axis=0)) > 1e-6 * np.sqrt(cov.diagonal()[others])
    if bad.any():
        raise InconsistentMomentsError(
            f"the covariances of {_listed([names[j] for j in others[bad]])} with the classes of {variable} do not "
            "sum to zero"
        )
    cov[np.ix_(index, others)] = block
    cov[np.ix_(others, index)] = block.T


def _counts(n: float | ArrayLike | None, p: int) -> float | Array | None:
    if n is None:
        return None
    counts = _numbers(n, "n")
    if counts.ndim == 0:
        if not (np.isfinite(counts) and counts > 0):
            raise CMaxEntError(f"n has to be a positive number of rows; got {n!r}")
        return float(counts)
    if counts.shape != (p, p):
        raise CMaxEntError(f"n has to be one number or a ({p}, {p}) matrix of pair counts; got shape {counts.shape}")
    if not (np.isfinite(counts).all() and (counts >= 0).all() and np.array_equal(counts, counts.T)):
        raise CMaxEntError("pair counts n have to be finite, not negative, and symmetric")
    return _frozen(counts)


def _labels(
    names: tuple[str, ...], kinds: Mapping[str, str], given: Mapping[str, Sequence[Any]]
) -> dict[str, tuple[Any, ...]]:
    labels: dict[str, tuple[Any, ...]] = {}
    for variable, kind in kinds.items():
        if kind == "continuous":
            continue
        plain: tuple[Any, ...] = (0, 1)
        if kind == "categorical":
            plain = tuple(name[len(variable) + 1 :] for name in names if name.startswith(f"{variable}="))
        labels[variable] = tuple(given.get(variable, plain))
        if len(labels[variable]) != len(plain):
            raise CMaxEntError(f"{variable} has {len(plain)} classes but {len(labels[variable])} levels were given")
    return labels


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _frozen(values: Array) -> Array:
    values = np.asarray(values, dtype=float)
    values.setflags(write=False)
    return values


# --- redundant coordinates -------------------------------------------------------------------------------------


def _nonredundant(m: Moments) -> NDArray[np.intp]:
    """Coordinates without the last indicator of each categorical variable, whose moments the others imply."""
    drop = {m.coordinates(v)[-1] for v, kind in m.kinds.items() if kind == "categorical"}
    return np.array([i for i in range(m.p) if i not in drop])


def _expand(cov: Array, moments: Moments, index: NDArray[np.intp]) -> Array:
    """Put back the last indicator of each categorical variable: minus the sum of the others."""
    T = np.zeros((moments.p, len(index)))
    T[index, np.arange(len(index))] = 1.0
    where = {int(i): k for k, i in enumerate(index)}
    for variable, kind in moments.kinds.items():
        if kind == "categorical":
            *others, last = moments.coordinates(variable)
            T[last, [where[i] for i in others]] = -1.0
    return T @ cov @ T.T
