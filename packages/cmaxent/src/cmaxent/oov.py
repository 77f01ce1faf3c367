"""Prediction from variables that were never seen together with the target (out-of-variable generalisation).

:func:`bridge_report` measures what the merged predictor gains when Y was only seen with A but must be
predicted from B, the two being linked by unlabelled rows of (A, B). :class:`ResidualSkewRegressor` is
the peer of Guo et al. (arXiv 2304.07896), which reads the effect of an unseen cause off the skewness of
the residuals.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted

from .errors import CMaxEntError, InfeasibleMomentsWarning

Array = NDArray[np.float64]


# ------------------------------------------------------------------------------------------- bridge
@dataclass(frozen=True)
class BridgeReport:
    """Log-losses (nats per test row) of predicting Y from B alone.

    Attributes
    ----------
    prior : of the constant P(Y=1) of the labelled rows.
    causal, anticausal : of the merged predictor, which has never seen Y together with B.
    oracle : of a logistic regression on labelled (Y, B) rows; NaN without them.
    causal_feasible : whether the causal moments were feasible; if not they were moved to the boundary.
    n_test : test rows.
    """

    prior: float
    causal: float
    anticausal: float
    oracle: float
    causal_feasible: bool
    n_test: int

    def share(self, direction: str = "anticausal") -> float:
        """Share of the oracle's gain over the prior that the bridge reaches; NaN where the oracle gains nothing."""
        gain = self.prior - self.oracle
        return (self.prior - float(getattr(self, direction))) / gain if gain > 0 else float("nan")


def log_loss(y: ArrayLike, p: ArrayLike) -> float:
    """Mean negative log-likelihood in nats of labels y (n,) in {0, 1} under probabilities p (n,) of 1.

    Probabilities are only kept off 0 and 1 by the smallest step of float64.
    """
    labels, prob = np.asarray(y), np.asarray(p, dtype=float)
    chosen = np.where(labels == 1, prob, 1.0 - prob)
    return float(-np.log(np.maximum(chosen, np.finfo(float).eps)).mean())


def bridge_report(
    labelled: pd.DataFrame,
    unlabelled: pd.DataFrame,
    test: pd.DataFrame,
    *,
    target: str = "y",
    oracle: pd.DataFrame | None = None,
) -> BridgeReport:
    """How well Y is predicted from B when it was only ever seen with A.

    Parameters
    ----------
    labelled : rows of (A, target), target in {0, 1}.
    unlabelled : rows of (A, B).
    test : rows of (B, target); columns of A are ignored if present.
    oracle : rows of (B, target) on which the oracle is trained; none means no oracle.

    Returns
    -------
    BridgeReport

    Raises
    ------
    CMaxEntError
        The tables share no column A, or there is no column B.

    Notes
    -----
    Both directions set the unknown Cov(Y, B) to what A transmits, Σ_BA Σ_AA⁻¹ c_A, and then marginalise
    A out (2501.08426, section on out-of-variable generalisation; spec 2.4 T8 and 2.7).
    """
    from . import MergedClassifier, Moments, merge

    a = [c for c in labelled.columns if c != target and c in unlabelled.columns]
    b = [c for c in unlabelled.columns if c not in labelled.columns]
    if target not in labelled.columns or target in unlabelled.columns:
        raise CMaxEntError(f"the labelled table has to have the target {target!r} and the unlabelled one must not")
    if not a or not b:
        raise CMaxEntError(
            f"a bridge needs columns in both tables and columns in the unlabelled one only; got {a} and {b}: "
            "check the column names"
        )
    missing = [c for c in [*b, target] if c not in test.columns]
    if missing:
        raise CMaxEntError(f"the test table lacks {', '.join(missing)}")
    kinds = dict.fromkeys([*a, *b], "continuous") | {target: "binary"}
    # Small sources can pool to a matrix that is not positive definite; the smallest shrinkage repairs it.
    merged = merge(
        [
            Moments.from_data(labelled[[*a, target]], kinds={k: kinds[k] for k in [*a, target]}),
            Moments.from_data(unlabelled[[*a, *b]], kinds={k: kinds[k] for k in [*a, *b]}),
        ],
        repair="shrink",
    )
    y = test[target].to_numpy()
    loss, feasible = {}, True
    for direction in ("causal", "anticausal"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InfeasibleMomentsWarning)
            model = MergedClassifier(target, direction, on_infeasible="boundary").fit_moments(merged)
        if direction == "causal":
            feasible = model.feasibility_.feasible
        loss[direction] = log_loss(y, model.predict_proba(test[b])[:, 1])
    best = float("nan")
    if oracle is not None:
        reference = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000)).fit(oracle[b], oracle[target])
        best = log_loss(y, reference.predict_proba(test[b])[:, 1])
    prior = log_loss(y, np.full(len(y), float(labelled[target].mean())))
    return BridgeReport(prior, loss["causal"], loss["anticausal"], best, feasible, len(y))


# ---------------------------------------------------------------------------------- residual skewness
class ResidualSkewRegressor(RegressorMixin, BaseEstimator):
    """Predict Y in an environment with a cause that the training environment did not observe.

    The source has rows of (A, S, Y), the target environment unlabelled rows of (S, x), where x is one
    further cause of Y. With independent causes and symmetric noise the residual of Y on (A, S) is about
    ∂φ/∂x · (x − E x) plus noise, so its third central moment is (∂φ/∂x)³ κ₃(x):

        ∂φ/∂x = cbrt(κ₃(residual) / κ₃(x)),      ŷ(s, x) = E[Y | s] + E[∂φ/∂x | s] (x − E x).

    Parameters
    ----------
    regressor : scikit-learn regressor of Y on (A, S) and of Y on S; default ``LinearRegression()``.
    derivative : "constant" (φ linear in x), or a scikit-learn regressor of the cubed residual on (A, S),
        for a derivative that varies with them.

    Attributes
    ----------
    shared_, source_only_, new_ : column names S, A and the new cause.
    derivative_ : float, ∂φ/∂x (its mean over source rows if it varies).
    derivative_se_ : float, its delta-method standard error; NaN if it varies.
    new_mean_, new_third_moment_ : E x and κ₃(x) in the target environment.
    n_features_in_ : number of source features.

    Notes
    -----
    Guo, Wildberger, Schölkopf, "Out-of-variable generalisation for discriminative models", ICLR 2024,
    arXiv:2304.07896. Only one new cause is identified: one third moment is one equation. A symmetric new
    cause leaves the derivative unidentified, and skewed noise biases it; ``derivative_se_`` shows the
    former, nothing in the data shows the latter.

    Examples
    --------
    >>> import numpy as np
    >>> from cmaxent.datasets import three_causes
    >>> from cmaxent.oov import ResidualSkewRegressor
    >>> data = three_causes(np.random.default_rng(0))
    >>> model = ResidualSkewRegressor().fit(data.source[["x1", "x2"]], data.source["y"], data.target[["x2", "x3"]])
    >>> bool(abs(model.derivative_ - data.derivative) < 4 * model.derivative_se_)
    True
    """

    def __init__(self, regressor: Any = None, derivative: Any = "constant") -> None:
        self.regressor = regressor
        self.derivative = derivative

    def fit(self, X: pd.DataFrame, y: ArrayLike, X_target: pd.DataFrame) -> ResidualSkewRegressor:
        """Fit on source rows X (n, |A|+|S|) with y (n,) and unlabelled target rows X_target (m, |S|+1).

        Raises
        ------
        CMaxEntError
            X_target has not exactly one column that X lacks, no shared column, or κ₃ = 0 there.
        """
        shared = [c for c in X.columns if c in X_target.columns]
        new = [c for c in X_target.columns if c not in X.columns]
        if len(new) != 1 or not shared:
            raise CMaxEntError(
                "the target table needs exactly one column that the source lacks, besides at least one shared column; "
                f"new: {new}, shared: {shared}"
            )
        x = X_target[new[0]].to_numpy(dtype=float)
        third = float(np.mean((x - x.mean()) ** 3))
        if not np.isfinite(third) or abs(third) < 1e-12 * float(x.std()) ** 3 or third == 0.0:
            raise CMaxEntError(f"{new[0]} has no skewness, so residual skewness says nothing about its effect")
        if isinstance(self.derivative, str) and self.derivative != "constant":
            raise CMaxEntError(f"derivative={self.derivative!r} is not 'constant' or a scikit-learn regressor")

        base = LinearRegression() if self.regressor is None else self.regressor
        response = np.asarray(y, dtype=float)
        residual = response - clone(base).fit(X, response).predict(X)
        self.base_ = clone(base).fit(X[shared], response)
        cubes = (residual - residual.mean()) ** 3
        if isinstance(self.derivative, str):
            self.derivative_ = float(np.cbrt(cubes.mean() / third))
            self.derivative_se_ = self._standard_error(residual, x, third)
            self._varying = None
        else:
            # The derivative varies with (A, S); only its mean given S can be used where A is absent.
            local = np.cbrt(clone(self.derivative).fit(X, cubes).predict(X) / third)
            self._varying = clone(self.derivative).fit(X[shared], local)
            self.derivative_, self.derivative_se_ = float(local.mean()), float("nan")
        self.shared_, self.new_ = shared, new[0]
        self.source_only_ = [c for c in X.columns if c not in shared]
        self.new_mean_, self.new_third_moment_ = float(x.mean()), third
        self.n_features_in_ = X.shape[1]
        return self

    def _standard_error(self, residual: Array, x: Array, third: float) -> float:
        # Delta method: d = cbrt(k_r / k_x), so that dd/d = (dk_r/k_r - dk_x/k_x) / 3.
        def relative_variance(values: Array) -> float:
            centred = values - values.mean()
            m2 = float(np.mean(centred**2))
            influence = centred**3 - 3.0 * m2 * centred
            return float(influence.var()) / len(values) / float(np.mean(centred**3)) ** 2

        variance = relative_variance(residual) + relative_variance(x)
        return abs(self.derivative_) * float(np.sqrt(variance)) / 3.0

    def predict(self, X: pd.DataFrame) -> Array:
        """Predictions (n,) from the shared columns and the new cause; further columns are ignored."""
        check_is_fitted(self, "derivative_")
        missing = [c for c in [*self.shared_, self.new_] if c not in X.columns]
        if missing:
            raise CMaxEntError(f"the table lacks {', '.join(missing)}")
        slope = self.derivative_ if self._varying is None else self._varying.predict(X[self.shared_])
        shift = X[self.new_].to_numpy(dtype=float) - self.new_mean_
        return np.asarray(self.base_.predict(X[self.shared_]) + slope * shift)
