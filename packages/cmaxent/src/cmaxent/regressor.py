"""MergedRegressor: the same merging for a continuous target; every mechanism is linear-Gaussian (spec 2.5)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from .accumulate import _Column, _encode, accumulate_columns, as_frame, infer_columns, label_column, row_weights
from .completion import complete_covariance
from .directions import Completed, completed, shrunk
from .errors import CMaxEntError, GraphError, InfeasibleMomentsError, UnboundedEntropyError
from .fitting import as_moments, feature_column
from .gated import by_pattern
from .graph import BlockGraph, GraphLike, _listed, resolve_graph
from .model_files import jsonable
from .moments import Moments, _expand, _nonredundant, _plain, _variable_of
from .pooling import merge
from .storage import save_npz

Array = NDArray[np.float64]


class MergedRegressor(RegressorMixin, BaseEstimator):
    """Least committal linear predictor of a continuous target, given moments and a causal direction.

    Causal: slopes Cov(X)^-1 c after completing Cov(X) without Y. Anticausal: slopes -K_XY / K_YY of the completed
    precision of (Y, X). Without shrinkage they agree when every pair is known.

    Parameters
    ----------
    target, graph, repair, nonlocal_ : as in :class:`cmaxent.MergedClassifier`.
    slack : a positive number lets the over-identified moments of other graphs be met by least squares, weighted by
        their sampling variance; the two directions have none and meet every moment.
    shrinkage : gamma in (1 - gamma) S + gamma tr(S)/d I. Known entries are shrunk first, unknown ones completed after.
        Causal: S = Cov(X). Anticausal: S = Cov(X | Y) = Cov(X) - c c' / Var(Y), in which a feature whose covariance
        with Y is unknown keeps its whole covariance (c = 0 there). Other graphs: the covariance of each block.

    Binary and categorical features enter through their first two moments, as numbers. The last indicator of a
    categorical feature is minus the sum of the others and gets coefficient 0.

    Attributes
    ----------
    coef_ : (d,) one per coordinate of the features;  intercept_ : float.
    sigma_ : residual standard deviation in units of Y.
    feature_names_in_ : names of the features, in the order of the moments without the target.
    completed_cov_ : (d, d) covariance of the features under the fitted law.
    implied_moments_ : what the fitted law says about every pair. A discrete feature whose variance shrinkage has moved
        is continuous there: it no longer is pi (1 - pi).
    moments_, entropy_, residual_, n_features_in_, solver_info_ : as in :class:`cmaxent.MergedClassifier`.

    Examples
    --------
    >>> from cmaxent import MergedRegressor, Moments
    >>> known = Moments.from_arrays([0, 0, 0], [[2, .8, .5], [.8, 1, .4], [.5, .4, 1.5]], names=["y", "x1", "x2"])
    >>> MergedRegressor(graph="anticausal").fit_moments(known.hide([("x1", "x2")])).coef_.round(4)
    array([0.7534, 0.2329])
    """

    def __init__(
        self,
        target: str = "y",
        graph: GraphLike = "causal",
        *,
        slack: float = 0.0,
        shrinkage: float | None = None,
        repair: str = "raise",
        nonlocal_: str = "project",
        random_state: int = 0,
    ) -> None:
        self.target = target
        self.graph = graph
        self.slack = slack
        self.shrinkage = shrinkage
        self.repair = repair
        self.nonlocal_ = nonlocal_
        self.random_state = random_state

    # What a fit leaves behind besides the public attributes.
    _features: list[_Column]  # how a table's columns are encoded
    _not_yet: CMaxEntError | None = None

    def fit(self, X: ArrayLike | pd.DataFrame, y: ArrayLike, sample_weight: ArrayLike | None = None) -> MergedRegressor:
        """Fit from rows; NaN in X is missing, NaN in y an unlabelled row.

        Numeric columns are taken as continuous; boolean, string and category columns of a DataFrame are discrete.
        """
        table, features = self._rows(X, y, first=True)
        if len(table) < 2:
            raise CMaxEntError(f"X has {len(table)} sample(s); moments need at least 2")
        accumulator = accumulate_columns(
            table, [*features, _Column(self.target, "continuous")], row_weights(sample_weight, len(table))
        )
        self._fit(accumulator.finalize())
        self._accumulator = accumulator
        self.n_features_in_ = len(features)
        return self

    def partial_fit(self, X: ArrayLike | pd.DataFrame, y: ArrayLike) -> MergedRegressor:
        """Add rows to the moments seen so far and refit; the first call decides the columns and their categories.

        While the moments do not determine a predictor yet (too few rows) the estimator only accumulates; ``predict``
        then raises the reason.
        """
        first = not hasattr(self, "_accumulator")
        table, features = self._rows(X, y, first=first)
        if first:
            self._accumulator = accumulate_columns(table.iloc[:0], [*features, _Column(self.target, "continuous")])
            self._features, self.n_features_in_ = features, len(features)
        self._accumulator.update(table)
        try:
            self._fit(self._accumulator.finalize())
        except GraphError:
            raise
        except CMaxEntError as error:
            self._not_yet = error
        return self

    def _rows(self, X: Any, y: Any, *, first: bool) -> tuple[pd.DataFrame, list[_Column]]:
        """A table of the features and, last, the target; how its feature columns are encoded."""
        self._check_parameters()
        if y is None:
            raise CMaxEntError("requires y to be passed, but the target y is None")
        if isinstance(X, pd.DataFrame) and self.target in map(str, X.columns):
            raise CMaxEntError(f"X has a column {self.target!r}, the name of the target: drop it or set target=")
        if not first:
            frame, features = self._table(X), self._features
        elif isinstance(X, pd.DataFrame):
            frame = as_frame(X)
            features = infer_columns(frame, numeric="continuous")
        else:
            array = np.asarray(validate_data(self, X, dtype="numeric", ensure_all_finite="allow-nan"), dtype=float)
            frame = pd.DataFrame(array, columns=[f"x{i}" for i in range(array.shape[1])], copy=False)  # only read
            features = [_Column(c, "continuous") for c in frame.columns]
        values = check_array(
            label_column(y), ensure_2d=False, dtype="numeric", ensure_all_finite="allow-nan", input_name="y"
        ).astype(float)
        if len(values) != len(frame):
            raise CMaxEntError(f"X has {len(frame)} rows but y has {len(values)}: inconsistent numbers of samples")
        return frame.assign(**{self.target: values}), features

    def fit_moments(self, moments: Moments) -> MergedRegressor:
        """Fit from one set of moments that contains the target."""
        if not isinstance(moments, Moments):
            raise CMaxEntError(f"fit_moments takes Moments, not {type(moments).__name__}")
        self._fit(moments)
        self.__dict__.pop("_accumulator", None)  # rows of an earlier fit are no part of this one
        self.n_features_in_ = len(self.feature_names_in_)
        return self

    def fit_sources(self, sources: Sequence[Moments | pd.DataFrame]) -> MergedRegressor:
        """Merge sources (raw moments), then fit."""
        made = [
            as_moments(s, i)
            for i, s in enumerate([sources] if isinstance(sources, (Moments, pd.DataFrame)) else sources)
        ]
        return self.fit_moments(merge(made, repair=self.repair))

    def _check_parameters(self) -> None:
        if isinstance(self.slack, str) or not (isinstance(self.slack, Real) and 0 <= self.slack < np.inf):
            raise CMaxEntError(f"slack has to be a non-negative number; got {self.slack!r}")
        if self.shrinkage is not None and not (isinstance(self.shrinkage, Real) and 0 <= self.shrinkage <= 1):
            raise CMaxEntError(f"shrinkage has to lie in [0, 1]; got {self.shrinkage!r}")
        if self.repair not in ("raise", "shrink", "ml"):
            raise CMaxEntError(f"repair={self.repair!r} is not 'raise', 'shrink' or 'ml'")
        if self.nonlocal_ not in ("project", "error"):
            raise CMaxEntError(f"nonlocal_={self.nonlocal_!r} is not 'project' or 'error'")

    def _fit(self, moments: Moments) -> None:
        self._check_parameters()
        if self.target not in moments.kinds:
            raise CMaxEntError(f"no target {self.target!r} among the variables {_listed(moments.variables)}")
        if moments.kinds[self.target] != "continuous":
            raise CMaxEntError(f"target {self.target} is {moments.kinds[self.target]}: use MergedClassifier")
        y = moments.names.index(self.target)
        x = [i for i in range(moments.p) if i != y]
        order = [y, *(int(i) for i in _nonredundant(moments) if i != y)]
        names = [moments.names[i] for i in order]
        mean, cov = moments.mean[order], moments.cov[np.ix_(order, order)]
        known = ~np.isnan(cov)
        if not known.diagonal().all():
            bad = [names[i] for i in np.flatnonzero(~known.diagonal())]
            raise UnboundedEntropyError(f"the variance of {_listed(bad)} is unknown: the entropy has no upper bound")
        if x and not known[0, 1:].any():
            warnings.warn(
                f"no source links {self.target} to any feature: the prediction is the mean", UserWarning, stacklevel=3
            )
        blocks = resolve_graph(self.graph, moments.variables, self.target)
        direction = blocks.direction(self.target)
        if direction:
            if self.slack:
                warnings.warn(
                    f"slack={self.slack:g} changes nothing: the {direction} direction meets every moment",
                    UserWarning,
                    stacklevel=3,
                )
            joint, S, beta = (_causal if direction == "causal" else _anticausal)(cov, names, self.shrinkage)
        else:
            joint = self._chain_covariance(moments, blocks, order)
            S = completed(joint[1:, 1:], names[1:])
            beta = S.solve(joint[1:, 0])
        residual = float(joint[0, 0] - joint[1:, 0] @ beta)
        residual = max(residual, 0.0)  # rounding, when Y is an exact linear function of X
        features = [v for v in moments.variables if v != self.target]
        rank = {v: k for k, v in enumerate(features)}
        encoded = sorted(x, key=lambda i: rank[_variable_of(moments.names[i], moments.kinds)])
        place = {i: k for k, i in enumerate(encoded)}
        self._features = [feature_column(moments, v) for v in features]
        self._kept = [place[i] for i in order[1:]]  # of the encoded columns, those that the law has
        self.moments_, self._order, self._joint, self._mean, self._slopes = moments, order, joint, mean, beta
        coef = np.zeros(moments.p)
        coef[order[1:]] = beta
        self.coef_, self.intercept_ = coef[x], float(mean[0] - beta @ mean[1:])
        self.sigma_ = float(np.sqrt(residual))
        self.feature_names_in_ = np.array(features, dtype=object)
        with np.errstate(divide="ignore"):
            self.entropy_ = float(0.5 * (len(joint) * np.log(2 * np.pi * np.e) + S.logdet + np.log(residual)))
        self.residual_ = float(np.abs((joint - cov)[known]).max())
        self.solver_info_ = S.info
        self._not_yet = None

    def _chain_covariance(self, moments: Moments, blocks: BlockGraph, order: list[int]) -> Array:
        """Implied covariance, in this order, of a causal order whose mechanisms are all linear in the coordinates."""
        from .chain import fit_chain

        beside = [v for v in blocks.blocks[blocks.block_of(self.target)] if v != self.target]
        if self.shrinkage and beside:
            raise CMaxEntError(
                f"shrinkage would move the variance of {self.target}, which shares a block with {_listed(beside)}: "
                "give each of these edges a direction"
            )
        index = sorted(order)
        own: dict[str, list[str]] = {}
        for i in index:
            own.setdefault(_variable_of(moments.names[i], moments.kinds), []).append(moments.names[i])

        def coordinates(groups: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
            return tuple(tuple(name for v in group for name in own[v]) for group in groups)

        grid = np.ix_(index, index)
        numbers = Moments.from_arrays(
            moments.mean[index],
            moments.cov[grid],
            names=[moments.names[i] for i in index],
            n=moments.n[grid] if isinstance(moments.n, np.ndarray) else moments.n,
        )
        chain = fit_chain(
            numbers,
            BlockGraph(coordinates(blocks.blocks), coordinates(blocks.parents)),
            slack=self.slack,
            nonlocal_=self.nonlocal_,
            shrinkage=self.shrinkage,
            seed=self.random_state,
        )
        at = np.searchsorted(index, order)
        return chain.moments.cov[np.ix_(at, at)]

    # --- reading and predicting ------------------------------------------------------------------------------

    def _law(self) -> Array:
        """(p, p) fitted covariance of all coordinates, in the order of the moments."""
        at = np.argsort(self._order)
        cov = self._joint[np.ix_(at, at)]
        return cov if len(cov) == self.moments_.p else _expand(cov, self.moments_, np.sort(self._order))

    @property
    def completed_cov_(self) -> Array:
        check_is_fitted(self, "coef_")
        x = np.delete(np.arange(self.moments_.p), self._order[0])
        return self._law()[np.ix_(x, x)]

    @property
    def implied_moments_(self) -> Moments:
        check_is_fitted(self, "coef_")
        m, law = self.moments_, self._law()
        kinds = {}
        for variable, kind in m.kinds.items():
            if kind != "continuous":
                own = np.ix_(*[m.coordinates(variable)] * 2)
                if np.allclose(law[own], m.cov[own], rtol=1e-9):
                    kinds[variable] = kind
        levels = {v: m.levels[v] for v in kinds}
        return Moments.from_arrays(m.mean, law, names=m.names, kinds=kinds, levels=levels)

    def _table(self, X: ArrayLike | pd.DataFrame) -> pd.DataFrame:
        """The feature columns of X: a DataFrame's by name, extra ones ignored and absent ones missing."""
        names = [c.name for c in self._features]
        if isinstance(X, pd.DataFrame):
            frame = as_frame(X)
            if not any(n in frame.columns for n in names):
                raise CMaxEntError(f"X has none of the features {_listed(names)}; it has {_listed(frame.columns)}")
            return frame.reindex(columns=names)
        numeric = not any(c.levels for c in self._features)
        array = check_array(X, dtype="numeric" if numeric else None, ensure_all_finite="allow-nan")
        if array.shape[1] != len(names):
            raise CMaxEntError(
                f"X has {array.shape[1]} features, but MergedRegressor is expecting {len(names)} features as input"
            )
        return pd.DataFrame(np.asarray(array, dtype=float) if numeric else array, columns=names, copy=False)

    def predict(self, X: ArrayLike | pd.DataFrame, return_std: bool = False) -> Array | tuple[Array, Array]:
        """(n,) means of y given the observed part of x; with ``return_std`` also (n,) standard deviations."""
        self._check_ready()
        rows = _encode(self._table(X), self._features)[:, self._kept]
        mean, std = np.empty(len(rows)), np.full(len(rows), self.sigma_)
        missing = np.isnan(rows)
        if not missing.any():
            mean = self._mean[0] + (rows - self._mean[1:]) @ self._slopes
        else:
            for at, seen in by_pattern(missing):
                O = np.flatnonzero(seen)
                beta = (
                    self._slopes
                    if seen.all()
                    else np.linalg.solve(self._joint[np.ix_(O + 1, O + 1)], self._joint[O + 1, 0])
                )
                mean[at] = self._mean[0] + (rows[np.ix_(at, O)] - self._mean[O + 1]) @ beta
                std[at] = np.sqrt(max(self._joint[0, 0] - self._joint[O + 1, 0] @ beta, 0.0))
        return (mean, std) if return_std else mean

    def _check_ready(self) -> None:
        if self._not_yet is not None:
            raise CMaxEntError(f"the rows seen so far do not determine a predictor: {self._not_yet}")
        check_is_fitted(self, "coef_")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted model to ``.npz`` (no pickle, checksum, atomic); :func:`cmaxent.load` reads it."""
        self._check_ready()
        m = self.moments_
        meta = {
            "parameters": {k: jsonable(v) for k, v in self.get_params().items()},
            "names": list(m.names),
            "kinds": dict(m.kinds),
            "levels": {k: [_plain(v) for v in labels] for k, labels in m.levels.items()},
            "n": None if isinstance(m.n, np.ndarray) else m.n,
        }
        arrays = {"mean": m.mean, "cov": m.cov}
        if isinstance(m.n, np.ndarray):
            arrays["n"] = m.n
        save_npz(path, "regressor", meta, arrays)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "coef_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


def _causal(cov: Array, names: list[str], shrinkage: float | None) -> tuple[Array, Completed, Array]:
    """Joint covariance of (Y, X), that of X, slopes: X completed alone, then Cov(Y, X) as far as it is known."""
    c = cov[1:, 0]
    O = np.flatnonzero(~np.isnan(c))
    S = completed(shrunk(cov[1:, 1:], shrinkage), names[1:])
    beta = np.zeros(len(c))
    within = completed(S.cov[np.ix_(O, O)], [names[i + 1] for i in O]) if len(O) < len(c) else S
    beta[O] = within.solve(c[O])
    explained = float(c[O] @ beta[O])
    # Shrinkage may lower a feature's variance below what the target needs; the slopes are still the ridge ones.
    if explained > cov[0, 0] * (1 + 1e-9) and not shrinkage:
        raise InfeasibleMomentsError(
            f"R^2 of {names[0]} on {_listed([names[i + 1] for i in O])} is {explained / cov[0, 0]:.6g}, more than 1"
        )
    joint = np.empty_like(cov)
    joint[0, 0], joint[1:, 1:] = max(cov[0, 0], explained), S.cov
    joint[0, 1:] = joint[1:, 0] = S.cov @ beta
    return joint, S, beta


def _anticausal(cov: Array, names: list[str], shrinkage: float | None) -> tuple[Array, Completed, Array]:
    """Joint covariance of (Y, X), that of X, slopes: all completed together, Y acting as a bridge."""
    c = cov[1:, 0]
    seen = ~np.isnan(c)
    if (not shrinkage or len(c) == 1) and not np.isnan(cov).any():  # a single variance is its own mean
        return _causal(cov, names, None)  # with everything known the directions coincide
    bridge = np.outer(np.where(seen, c, 0.0), np.where(seen, c, 0.0)) / cov[0, 0]
    given_y = shrunk(cov[1:, 1:] - bridge, shrinkage)
    joint = cov.copy()
    if seen.all():  # completing (Y, X) is completing Cov(X | Y)
        joint[1:, 1:] = completed(given_y, [f"{n} given {names[0]}" for n in names[1:]]).cov + bridge
    else:
        if shrinkage:
            joint[1:, 1:] = given_y + bridge
        joint = complete_covariance(joint, names=names).cov
    S = completed(joint[1:, 1:], names[1:])
    beta = S.solve(joint[1:, 0])
    beta[~seen] = 0.0  # a zero of the completed precision, which the solve reproduces up to rounding
    return joint, S, beta
