"""MergedRegressor: the same merging for a continuous target; every mechanism is linear-Gaussian (spec 2.5)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from .accumulate import _Column, accumulate_columns, as_frame, label_column, row_weights
from .completion import complete_covariance
from .directions import completed, shrunk
from .errors import CMaxEntError, InfeasibleMomentsError, UnboundedEntropyError
from .fitting import as_moments
from .gated import by_pattern
from .graph import GraphLike, _listed, resolve_graph
from .model_files import jsonable
from .moments import Moments
from .pooling import merge
from .storage import save_npz

Array = NDArray[np.float64]


class MergedRegressor(RegressorMixin, BaseEstimator):
    """Least committal linear predictor of a continuous target, given moments and a causal direction.

    Causal: slopes Cov(X)^-1 c after completing Cov(X) without Y. Anticausal: slopes -K_XY / K_YY of the completed
    precision of (Y, X). They agree when every pair is known.

    Parameters
    ----------
    target, graph, shrinkage, repair, nonlocal_, slack : as in :class:`cmaxent.MergedClassifier`; binary features enter
        through their first two moments.

    Attributes
    ----------
    coef_ : (d,);  intercept_ : float;  sigma_ : residual standard deviation in units of Y.
    feature_names_in_, moments_, implied_moments_, completed_cov_, entropy_, residual_, n_features_in_.

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

    def fit(self, X: ArrayLike | pd.DataFrame, y: ArrayLike, sample_weight: ArrayLike | None = None) -> MergedRegressor:
        """Fit from rows; NaN in X is missing, NaN in y an unlabelled row."""
        if y is None:
            raise CMaxEntError("requires y to be passed, but the target y is None")
        if isinstance(X, pd.DataFrame):
            frame = as_frame(X)
            if self.target in frame.columns:
                raise CMaxEntError(f"X has a column {self.target!r}, the name of the target: drop it or set target=")
        else:
            array = validate_data(self, X, dtype="numeric", ensure_all_finite="allow-nan")
            frame = pd.DataFrame(np.asarray(array, dtype=float), columns=[f"x{i}" for i in range(array.shape[1])])
        values = check_array(
            label_column(y), ensure_2d=False, dtype="numeric", ensure_all_finite="allow-nan", input_name="y"
        ).astype(float)
        if len(values) != len(frame):
            raise CMaxEntError(f"X has {len(frame)} rows but y has {len(values)}: inconsistent numbers of samples")
        if len(frame) < 2:
            raise CMaxEntError(f"X has {len(frame)} sample(s); moments need at least 2")
        columns = [*(_Column(c, "continuous") for c in frame.columns), _Column(self.target, "continuous")]
        moments = accumulate_columns(
            frame.assign(**{self.target: values}), columns, row_weights(sample_weight, len(frame))
        ).finalize()
        self._fit(moments)
        self.n_features_in_ = frame.shape[1]
        return self

    def fit_moments(self, moments: Moments) -> MergedRegressor:
        """Fit from one set of moments that contains the target."""
        if not isinstance(moments, Moments):
            raise CMaxEntError(f"fit_moments takes Moments, not {type(moments).__name__}")
        self._fit(moments)
        self.n_features_in_ = len(self.feature_names_in_)
        return self

    def fit_sources(self, sources: Sequence[Moments | pd.DataFrame]) -> MergedRegressor:
        """Merge sources (raw moments), then fit."""
        made = [
            as_moments(s, i)
            for i, s in enumerate([sources] if isinstance(sources, (Moments, pd.DataFrame)) else sources)
        ]
        return self.fit_moments(merge(made, repair=self.repair))

    def _fit(self, moments: Moments) -> None:
        if self.target not in moments.kinds:
            raise CMaxEntError(f"no target {self.target!r} among the variables {_listed(moments.variables)}")
        if moments.kinds[self.target] != "continuous":
            raise CMaxEntError(f"target {self.target} is {moments.kinds[self.target]}: use MergedClassifier")
        y = moments.names.index(self.target)
        x = [i for i in range(moments.p) if i != y]
        names = [moments.names[i] for i in x]
        order = [y, *x]
        mean, cov = moments.mean[order], moments.cov[np.ix_(order, order)]
        known_variance = ~np.isnan(cov.diagonal())
        if not known_variance.all():
            bad = [[self.target, *names][i] for i in np.flatnonzero(~known_variance)]
            raise UnboundedEntropyError(f"the variance of {_listed(bad)} is unknown: the entropy has no upper bound")
        blocks = resolve_graph(self.graph, moments.variables, self.target)
        direction = blocks.direction(self.target)
        if direction:
            joint = (_causal if direction == "causal" else _anticausal)(cov, [self.target, *names], self.shrinkage)
        else:
            from .chain import fit_chain

            chain = fit_chain(moments, blocks, slack=self.slack, nonlocal_=self.nonlocal_, seed=self.random_state)
            joint = chain.moments.cov[np.ix_(order, order)]
        S = completed(joint[1:, 1:], names)
        beta = S.solve(joint[1:, 0])
        residual = float(joint[0, 0] - joint[1:, 0] @ beta)
        residual = max(residual, 0.0)  # rounding, when Y is an exact linear function of X
        self.moments_, self._joint, self._mean = moments, joint, mean
        self.coef_, self.intercept_ = beta, float(mean[0] - beta @ mean[1:])
        self.sigma_ = float(np.sqrt(residual))
        self.feature_names_in_ = np.array(names, dtype=object)
        with np.errstate(divide="ignore"):
            self.entropy_ = float(0.5 * (len(joint) * np.log(2 * np.pi * np.e) + S.logdet + np.log(residual)))
        known = ~np.isnan(cov)
        self.residual_ = float(np.abs((joint - cov)[known]).max())
        self.solver_info_ = S.info

    @property
    def completed_cov_(self) -> Array:
        check_is_fitted(self, "coef_")
        return self._joint[1:, 1:]

    @property
    def implied_moments_(self) -> Moments:
        check_is_fitted(self, "coef_")
        names = [self.target, *self.feature_names_in_]
        kinds = {v: k for v, k in self.moments_.kinds.items() if k != "categorical"}
        return Moments.from_arrays(self._mean, self._joint, names=names, kinds=kinds).subset(list(self.moments_.names))

    def predict(self, X: ArrayLike | pd.DataFrame, return_std: bool = False) -> Array | tuple[Array, Array]:
        """(n,) means of y given the observed part of x; with ``return_std`` also (n,) standard deviations."""
        check_is_fitted(self, "coef_")
        names = list(self.feature_names_in_)
        if isinstance(X, pd.DataFrame):
            frame = as_frame(X)
            if not any(n in frame.columns for n in names):
                raise CMaxEntError(f"X has none of the features {_listed(names)}; it has {_listed(frame.columns)}")
            rows = frame.reindex(columns=names).to_numpy(dtype=float)
            if np.isinf(rows).any():
                raise CMaxEntError("X contains infinity")
        else:
            rows = check_array(X, dtype="numeric", ensure_all_finite="allow-nan").astype(float)
            if rows.shape[1] != len(names):
                raise CMaxEntError(
                    f"X has {rows.shape[1]} features, but MergedRegressor is expecting {len(names)} features as input"
                )
        mean, std = np.empty(len(rows)), np.empty(len(rows))
        missing = np.isnan(rows)
        for at, seen in by_pattern(missing):
            O = np.flatnonzero(seen)
            beta = (
                self.coef_
                if len(O) == len(names)
                else np.linalg.solve(self._joint[np.ix_(O + 1, O + 1)], self._joint[O + 1, 0])
            )
            mean[at] = self._mean[0] + (rows[np.ix_(at, O)] - self._mean[O + 1]) @ beta
            std[at] = np.sqrt(max(self._joint[0, 0] - self._joint[O + 1, 0] @ beta, 0.0))
        return (mean, std) if return_std else mean

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted model to ``.npz`` (no pickle, checksum, atomic); :func:`cmaxent.load` reads it."""
        check_is_fitted(self, "coef_")
        m = self.moments_
        meta = {
            "parameters": {k: jsonable(v) for k, v in self.get_params().items()},
            "names": list(m.names),
            "kinds": dict(m.kinds),
        }
        save_npz(path, "regressor", meta, {"mean": m.mean, "cov": m.cov})

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "coef_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


def _causal(cov: Array, names: list[str], shrinkage: float | None) -> Array:
    """Joint covariance of (Y, X): X completed alone, unknown covariances with Y follow from the known ones."""
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
    return joint


def _anticausal(cov: Array, names: list[str], shrinkage: float | None) -> Array:
    """Joint covariance of (Y, X): completed together, Y acting as a bridge."""
    c = cov[1:, 0]
    if not np.isnan(cov).any():
        return _causal(cov, names, shrinkage)  # with everything known the directions coincide
    if np.isnan(c).any():
        M = cov.copy()
        M[1:, 1:] = shrunk(cov[1:, 1:], shrinkage)
        return complete_covariance(M, names=names).cov
    # Every covariance with Y is known: completing (Y, X) is completing Cov(X | Y), which is what gets shrunk.
    given_y = completed(
        shrunk(cov[1:, 1:] - np.outer(c, c) / cov[0, 0], shrinkage), [f"{n} given {names[0]}" for n in names[1:]]
    )
    joint = cov.copy()
    joint[1:, 1:] = given_y.cov + np.outer(c, c) / cov[0, 0]
    return joint
