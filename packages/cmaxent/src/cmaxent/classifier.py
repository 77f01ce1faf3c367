"""MergedClassifier: the merged predictor p(y | x) of a discrete target under a declared causal graph."""

from __future__ import annotations

import numbers
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import logit
from scipy.stats import norm
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from . import directions as dr
from .accumulate import (
    Accumulator,
    _Column,
    _encode,
    accumulate_columns,
    as_frame,
    infer_columns,
    label_column,
    row_weights,
)
from .errors import CMaxEntError, GraphError
from .fitting import as_moments, feature_column, fit_direction, implied_moments
from .gated import GatedGaussian
from .graph import GraphLike, _listed, resolve_graph
from .model_files import classifier_state
from .moments import Moments
from .pooling import REPAIRS, merge
from .storage import save_npz

Array = NDArray[np.float64]


class LinearBoundary(NamedTuple):
    """The hyperplane normal . x + offset = 0 on which p(y=1|x) equals the threshold."""

    normal: Array  # (d,)
    offset: float


class MergedClassifier(ClassifierMixin, BaseEstimator):
    """Least committal predictor of a discrete target, given moments from any sources and a causal direction.

    Entropy is maximised along the causal order: of the causes first, then of each effect given its causes
    (Garrido Mejia et al. 2024, arXiv:2501.08426). ``graph="causal"`` gives logistic regression by moments,
    ``"anticausal"`` linear discriminant analysis; with unknown pairs they differ in slope as well.

    Parameters
    ----------
    target : name of Y in moments and tables.
    graph : "causal" ({X} -> Y), "anticausal" (Y -> {X}), "causal-star" (independent causes), "anticausal-star"
        (features independent given Y), an ``nx.DiGraph``, an edge list, or a string "x1->y; y->x2; x3--x4".
    p_x : "maxent" (Gaussian X) or "empirical" (reference rows; causal direction only).
    slack : 0 (moments hold exactly), a ridge in units of the feature covariance, or "se" (one sampling standard error).
    on_infeasible : "raise", "ridge" or "boundary" (warns and moves the moments into the feasible region).
    shrinkage : gamma in (1 - gamma) S + gamma tr(S)/d I, S = Cov(X) (causal) or the one within classes (anticausal).
    pooling : how ``fit_sources`` merges: "raw", "mechanism", or "auto" (mechanism when Y has no causes in the graph).
    repair : what ``fit_sources`` does with a pooled matrix that is not positive semidefinite.
    nonlocal_ : "project" moments that span variables without a common mechanism through the graph, or "error".
    prevalence : P(Y=1) of the population to predict for, or per source; see :func:`cmaxent.merge`.
    n_jobs : accepted for the scikit-learn signature; the solver is a few small linear solves.
    random_state : seed of quasi-random quadrature and simulated standard errors.

    Attributes
    ----------
    classes_ : (K,) labels.
    coef_ : (1, d) for two classes, else (K, d) in the gauge sum_k pi_k coef_k = 0;  intercept_ : (1,) or (K,).
    feature_names_in_ : (d,) names, in the order of the moments without the target.
    moments_ : the moments that were fitted;  implied_moments_ : what the fitted joint law says about every pair.
    completed_cov_ : (d, d) covariance of X under the fitted law.
    multipliers_ : constraint name -> lambda of the mechanism of Y.
    entropy_ : nats;  residual_ : largest absolute moment error;  feasibility_ : FeasibilityReport.
    coef_cov_ : (1 + d, 1 + d) covariance of (intercept, coef), binary targets; computed on first access.
    solver_info_ : iterations, scale (m, tau), condition number.

    Examples
    --------
    >>> from cmaxent import MergedClassifier, Moments
    >>> lab = Moments.from_arrays([.3, 1], [[.21, .25], [.25, 2]], names=["y", "x1"], kinds={"y": "binary"}, n=500)
    >>> clinic = Moments.from_arrays([.3, -2], [[.21, -.1], [-.1, 1]], names=["y", "x2"], kinds={"y": "binary"}, n=800)
    >>> MergedClassifier(graph="causal").fit_sources([lab, clinic]).coef_.round(3)
    array([[ 0.754, -0.604]])
    >>> MergedClassifier(graph="anticausal").fit_sources([lab, clinic]).coef_.round(3)
    array([[ 0.699, -0.5  ]])
    """

    def __init__(
        self,
        target: str = "y",
        graph: GraphLike = "causal",
        *,
        p_x: str = "maxent",
        slack: float | str = 0.0,
        on_infeasible: str = "raise",
        shrinkage: float | None = None,
        pooling: str = "auto",
        repair: str = "raise",
        nonlocal_: str = "project",
        prevalence: Any = None,
        n_jobs: int | None = None,
        random_state: int = 0,
    ) -> None:
        self.target = target
        self.graph = graph
        self.p_x = p_x
        self.slack = slack
        self.on_infeasible = on_infeasible
        self.shrinkage = shrinkage
        self.pooling = pooling
        self.repair = repair
        self.nonlocal_ = nonlocal_
        self.prevalence = prevalence
        self.n_jobs = n_jobs
        self.random_state = random_state

    # What a fit leaves behind besides the public attributes.
    _fit_rows: tuple[pd.DataFrame, list[_Column], ArrayLike | None] | None
    _coef_cov: Array | None
    _not_yet: CMaxEntError | None
    _accumulator: Accumulator | None

    # --- fitting -------------------------------------------------------------------------------------------

    def fit(
        self, X: ArrayLike | pd.DataFrame, y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> MergedClassifier:
        """Fit from rows. NaN in X is missing, NaN (or None) in y is an unlabelled row.

        Numeric columns are taken as continuous, whatever their values; boolean, string and category columns of a
        DataFrame are discrete.
        """
        frame, values, labels = self._rows(X, y, reset=True)
        columns = [*infer_columns(frame, numeric="continuous"), self._target_column(labels)]
        table = frame.assign(**{self.target: values})
        accumulator = accumulate_columns(table, columns, row_weights(sample_weight, len(table)))
        moments = accumulator.finalize()
        reference = None
        if self.p_x == "empirical":
            complete = frame.notna().all(axis=1).to_numpy() & values.notna().to_numpy()
            reference = frame[complete]
            sample_weight = None if sample_weight is None else np.asarray(sample_weight, dtype=float)[complete]
        self._fit(moments, reference, sample_weight if reference is not None else None)
        self._fit_rows = (table, columns, None if reference is not None else sample_weight)
        self._accumulator, self._stream_columns = accumulator, columns
        self.n_features_in_ = frame.shape[1]
        return self

    def partial_fit(
        self, X: ArrayLike | pd.DataFrame, y: ArrayLike, classes: ArrayLike | None = None
    ) -> MergedClassifier:
        """Add rows to the moments seen so far and refit.

        ``classes`` lists the labels that will occur; by default those of the first call. While the moments do not
        determine a predictor yet (one class, too few rows) the estimator only accumulates; ``predict`` then raises
        the reason.
        """
        if self.p_x == "empirical":
            raise CMaxEntError("partial_fit keeps moments only; p_x='empirical' needs its rows: use fit")
        self._check_parameters()
        accumulator = getattr(self, "_accumulator", None)
        first = accumulator is None
        frame, values, labels = self._rows(X, y, reset=first, need_labels=first and classes is None)
        if accumulator is None:
            labels = labels if classes is None else np.unique(np.asarray(classes))
            self._stream_columns = [*infer_columns(frame, numeric="continuous"), self._target_column(labels)]
            accumulator = accumulate_columns(
                frame.iloc[:0].assign(**{self.target: values.iloc[:0]}), self._stream_columns
            )
            self.n_features_in_ = frame.shape[1]
        self._accumulator = accumulator.update(frame.assign(**{self.target: values}))
        try:
            self._fit(accumulator.finalize(), None, None)
            self._not_yet = None
        except GraphError:
            raise
        except CMaxEntError as error:
            self._not_yet = error
            self.classes_ = np.asarray(self._stream_columns[-1].levels)
        return self

    def fit_moments(self, moments: Moments, X_ref: ArrayLike | pd.DataFrame | None = None) -> MergedClassifier:
        """Fit from one set of moments that contains the target.

        Parameters
        ----------
        X_ref : reference rows of all features, needed for ``p_x="empirical"``.
        """
        if not isinstance(moments, Moments):
            raise CMaxEntError(
                f"fit_moments takes Moments, not {type(moments).__name__}; see Moments.from_data and from_arrays"
            )
        reference = None
        if self.p_x == "empirical":
            if X_ref is None:
                raise CMaxEntError("p_x='empirical' needs X_ref, rows of all features")
            names = [v for v in moments.variables if v != self.target]
            reference = as_frame(X_ref, names if not isinstance(X_ref, pd.DataFrame) else None)
        self._fit(moments, reference, None)
        self._accumulator = None  # rows of an earlier fit are not part of these moments
        self.n_features_in_ = len(self.feature_names_in_)
        return self

    def fit_sources(
        self, sources: Sequence[Moments | pd.DataFrame], X_ref: ArrayLike | pd.DataFrame | None = None
    ) -> MergedClassifier:
        """Merge sources, then fit. A source is Moments or a DataFrame with any subset of the columns."""
        if isinstance(sources, (Moments, pd.DataFrame)):
            sources = [sources]
        made = [as_moments(source, i) for i, source in enumerate(sources)]
        if not any(self.target in s.kinds for s in made):
            raise CMaxEntError(
                f"no source has the target {self.target!r}; the sources have "
                f"{_listed(dict.fromkeys(v for s in made for v in s.variables))}"
            )
        pooling = self.pooling
        if pooling == "auto":
            variables = list(dict.fromkeys(v for s in made for v in s.variables))
            effects_only = resolve_graph(self.graph, variables, self.target).is_root(self.target)
            pooling = "mechanism" if effects_only and (len(made) > 1 or self.prevalence is not None) else "raw"
        prevalence = self.prevalence if pooling == "mechanism" else None
        if pooling == "raw" and self.prevalence is not None:
            raise CMaxEntError("prevalence= needs mechanism pooling, which needs Y to cause X (graph='anticausal')")
        pooled = merge(made, pooling=pooling, target=self.target, prevalence=prevalence, repair=self.repair)
        return self.fit_moments(pooled, X_ref)

    def _fit(self, moments: Moments, reference: pd.DataFrame | None, sample_weight: ArrayLike | None) -> None:
        self._check_parameters()
        fit, target = fit_direction(
            moments,
            self.target,
            self.graph,
            p_x=self.p_x,
            reference=reference,
            sample_weight=None if sample_weight is None else np.asarray(sample_weight, dtype=float),
            slack=self.slack,
            on_infeasible=self.on_infeasible,
            shrinkage=self.shrinkage,
            nonlocal_=self.nonlocal_,
            seed=self.random_state,
        )
        self._set(fit, target, moments)

    def _set(self, fit: dr.DirectionFit, target: dr.ClassTarget, moments: Moments) -> None:
        self._direction, self._target_view, self.moments_ = fit, target, moments
        self._fit_rows = None
        self._coef_cov = None
        self._not_yet = None
        model = fit.model
        self.classes_ = np.asarray(target.classes)
        if len(target.classes) == 2:
            self.coef_ = (model.coef[1] - model.coef[0])[None, :]
            self.intercept_ = np.array([model.intercept[1] - model.intercept[0]])
        else:
            self.coef_, self.intercept_ = model.coef, model.intercept
        self.feature_names_in_ = np.array([v for v in moments.variables if v != target.name], dtype=object)
        self.entropy_, self.residual_, self.feasibility_ = fit.entropy, fit.residual, fit.feasibility
        self.solver_info_ = fit.info

    def _check_parameters(self) -> None:
        if self.p_x not in ("maxent", "empirical"):
            raise CMaxEntError(f"p_x={self.p_x!r} is not 'maxent' or 'empirical'")
        if self.on_infeasible not in ("raise", "ridge", "boundary"):
            raise CMaxEntError(f"on_infeasible={self.on_infeasible!r} is not 'raise', 'ridge' or 'boundary'")
        if self.nonlocal_ not in ("project", "error"):
            raise CMaxEntError(f"nonlocal_={self.nonlocal_!r} is not 'project' or 'error'")
        if self.repair not in REPAIRS:
            raise CMaxEntError(f"repair={self.repair!r} is not one of {', '.join(REPAIRS)}")
        if self.pooling not in ("auto", "raw", "mechanism"):
            raise CMaxEntError(f"pooling={self.pooling!r} is not 'auto', 'raw' or 'mechanism'")
        if isinstance(self.slack, str):
            if self.slack != "se":
                raise CMaxEntError(f"slack={self.slack!r} is not a number or 'se'")
        elif not (isinstance(self.slack, numbers.Real) and np.isfinite(self.slack) and self.slack >= 0):
            raise CMaxEntError(f"slack has to be a non-negative number or 'se'; got {self.slack!r}")

    def _rows(
        self, X: Any, y: Any, *, reset: bool, need_labels: bool = True
    ) -> tuple[pd.DataFrame, pd.Series, NDArray[Any]]:
        """Feature table, labels with None for unlabelled rows, and the sorted label set."""
        if y is None:
            raise CMaxEntError("requires y to be passed, but the target y is None; for unlabelled rows put NaN into y")
        if isinstance(X, pd.DataFrame):
            frame = as_frame(X)
            if self.target in frame.columns:
                raise CMaxEntError(f"X has a column {self.target!r}, the name of the target: drop it or set target=")
            if len(frame) == 0:
                raise CMaxEntError("X has 0 sample(s) (rows)")
            if not reset:
                frame = self._matched(frame)
        else:
            if reset:
                array = validate_data(self, X, dtype="numeric", ensure_all_finite="allow-nan")
            else:
                array = self._checked(X, "numeric")
            names = [f"x{i}" for i in range(array.shape[1])]
            # A copy of our own: standard errors read the rows again, maybe after the caller has changed his.
            frame = pd.DataFrame(np.array(array, dtype=float), columns=names, copy=False)
        raw = pd.Series(label_column(y))
        if len(raw) != len(frame):
            raise CMaxEntError(f"X has {len(frame)} rows but y has {len(raw)}: inconsistent numbers of samples")
        raw.index = frame.index
        labelled = raw.notna()
        known = raw[labelled].to_numpy()
        if known.dtype == object:
            known = np.array(known.tolist())
        if len(known) == 0:
            if need_labels:
                raise CMaxEntError("y holds no label at all")
            return frame, raw, known
        if known.dtype.kind == "f" and np.isinf(known).any():
            raise CMaxEntError("y contains infinity")
        check_classification_targets(known)
        labels = unique_labels(known)
        return frame, raw.where(labelled), labels

    def _target_column(self, labels: NDArray[Any]) -> _Column:
        levels = tuple(v.item() if isinstance(v, np.generic) else v for v in labels)
        if len(levels) < 2:
            raise CMaxEntError(f"y has one class only ({levels[0]!r}); the classifier needs at least 2 classes")
        return _Column(self.target, "binary" if len(levels) == 2 else "categorical", levels)

    # --- predicting ------------------------------------------------------------------------------------------

    def _matched(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Columns by name, extra ones ignored, absent ones missing."""
        names = list(self._feature_columns())
        present = [n for n in names if n in frame.columns]
        if not present:
            raise CMaxEntError(
                f"X has none of the features {_listed(names)}; it has {_listed(map(str, frame.columns))}"
            )
        return frame.reindex(columns=names)

    def _feature_columns(self) -> Sequence[str]:
        return (
            list(self.feature_names_in_)
            if hasattr(self, "feature_names_in_")
            else [c.name for c in self._stream_columns[:-1]]
        )

    def _checked(self, X: ArrayLike, dtype: str | None) -> NDArray[Any]:
        """An array with one column per feature."""
        array = check_array(X, dtype=dtype, ensure_all_finite="allow-nan")
        names = self._feature_columns()
        if array.shape[1] != len(names):
            raise CMaxEntError(
                f"X has {array.shape[1]} features, but {type(self).__name__} is expecting {len(names)} features as "
                f"input: {_listed(names)}"
            )
        return np.asarray(array)

    def _coordinates(self, X: ArrayLike | pd.DataFrame) -> Array:
        """(n, d) feature coordinates in the order of the fitted model, NaN missing."""
        check_is_fitted(self, "classes_")
        if getattr(self, "_not_yet", None) is not None:
            raise CMaxEntError(f"the rows seen so far do not determine a predictor: {self._not_yet}")
        discrete = [v for v in self.feature_names_in_ if self.moments_.kinds[v] != "continuous"]
        if isinstance(X, pd.DataFrame):
            frame = self._matched(as_frame(X))
        else:
            array = self._checked(X, None if discrete else "numeric")
            frame = pd.DataFrame(array, columns=list(self.feature_names_in_))
        if not discrete:
            try:
                numbers = frame.to_numpy(dtype=float)
            except (TypeError, ValueError) as error:
                raise CMaxEntError(f"X is not numeric: {error}") from None
            if np.isinf(numbers).any():
                raise CMaxEntError(
                    f"X contains infinity in column {frame.columns[int(np.argwhere(np.isinf(numbers))[0][1])]}"
                )
            return numbers
        return _encode(frame, [feature_column(self.moments_, v) for v in self.feature_names_in_])

    def predict_log_proba(self, X: ArrayLike | pd.DataFrame) -> Array:
        """(n, K) log p(y=k | observed part of x)."""
        return self._direction_model().log_proba(self._coordinates(X))

    def predict_proba(self, X: ArrayLike | pd.DataFrame) -> Array:
        """(n, K) class probabilities; NaN or absent columns are integrated out under the fitted law."""
        return np.exp(self.predict_log_proba(X))

    def decision_function(self, X: ArrayLike | pd.DataFrame) -> Array:
        """(n,) log odds of ``classes_[1]`` for two classes, else (n, K) log probabilities."""
        log_p = self.predict_log_proba(X)
        return log_p[:, 1] - log_p[:, 0] if log_p.shape[1] == 2 else log_p

    def predict(self, X: ArrayLike | pd.DataFrame) -> NDArray[Any]:
        """(n,) most probable labels."""
        log_p = self.predict_log_proba(X)
        return self.classes_[log_p.argmax(axis=1)]

    def _direction_model(self) -> GatedGaussian:
        check_is_fitted(self, "classes_")
        if getattr(self, "_not_yet", None) is not None:
            raise CMaxEntError(f"the rows seen so far do not determine a predictor: {self._not_yet}")
        return self._direction.model

    def predict_proba_interval(self, X: ArrayLike | pd.DataFrame, level: float = 0.95) -> tuple[Array, Array]:
        """(lo, hi) of P(y = classes_[1] | x), each (n,): sampling error of the moments, not of the causal direction."""
        from .uncertainty import proba_interval

        return proba_interval(self, self._coordinates(X), level)

    def decision_boundary(self, threshold: float = 0.5) -> LinearBoundary:
        """The hyperplane where P(y = classes_[1] | x) equals ``threshold`` (two classes, complete x)."""
        check_is_fitted(self, "coef_")
        if len(self.classes_) != 2:
            raise CMaxEntError("decision_boundary needs a binary target")
        if not 0 < threshold < 1:
            raise CMaxEntError(f"threshold has to lie strictly between 0 and 1; got {threshold!r}")
        return LinearBoundary(self.coef_[0].copy(), float(self.intercept_[0] - logit(threshold)))

    # --- reporting -------------------------------------------------------------------------------------------

    @property
    def multipliers_(self) -> dict[str, float]:
        check_is_fitted(self, "coef_")
        return self._direction.multipliers()

    @property
    def completed_cov_(self) -> Array:
        check_is_fitted(self, "coef_")
        return self._direction.cov

    @property
    def implied_moments_(self) -> Moments:
        check_is_fitted(self, "coef_")
        return implied_moments(self.moments_, self._direction, self._target_view)

    @property
    def coef_cov_(self) -> Array:
        check_is_fitted(self, "coef_")
        if self._coef_cov is None:
            from .uncertainty import coef_covariance

            self._coef_cov = coef_covariance(self)
        return self._coef_cov

    def summary(self) -> pd.DataFrame:
        """coef, se, z, p of the intercept and every feature (two classes)."""
        check_is_fitted(self, "coef_")
        if len(self.classes_) != 2:
            raise CMaxEntError("summary needs a binary target; read coef_ and intercept_ for more classes")
        coef = np.concatenate([self.intercept_, self.coef_[0]])
        se = np.sqrt(np.maximum(np.diag(self.coef_cov_), 0.0))
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.where(se > 0, coef / se, np.nan)
        return pd.DataFrame(
            {"coef": coef, "se": se, "z": z, "p": 2 * norm.sf(np.abs(z))}, index=["intercept", *self._target_view.names]
        )

    # --- files -----------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted model to ``.npz`` (no pickle, checksum, atomic); :func:`cmaxent.load` reads it."""
        check_is_fitted(self, "coef_")
        save_npz(path, "classifier", *classifier_state(self))

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        state.pop("_fit_rows", None)  # the training rows stay behind
        if state.get("_direction") is not None:
            multipliers = dict(state["_direction"].multipliers())
            state["_direction"] = replace(state["_direction"], multipliers=dr.Constant(multipliers))
        return state

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "classes_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags
