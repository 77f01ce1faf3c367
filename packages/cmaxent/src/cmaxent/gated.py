"""What every fitted graph says about a discrete Y: a Gaussian of X shifted by the class, times a softmax gate.

Freeze y as a parameter: all other mechanisms are linear-Gaussian, so X ~ N(mean_y, cov) with means that move with y
below Y and stay put above it; the mechanism of Y itself is softmax(gate_intercept + gate_coef x). The causal
direction has no shift, the anticausal one a constant gate. With all of X given the product is again a softmax
with linear logits; with some of X missing it is integrated exactly (spec 2.7).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.special import log_expit, log_softmax, logsumexp

from .closedform import largest_contrast, low_rank_root, normal_rule, softmax_rule

Array = NDArray[np.float64]


def by_pattern(missing: NDArray[np.bool_]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.bool_]]]:
    """Groups of rows that miss the same columns: (row indices, which columns they have)."""
    patterns, group = np.unique(np.packbits(missing, axis=1), axis=0, return_inverse=True)
    for g in range(len(patterns)):
        rows = np.flatnonzero(group.ravel() == g)
        yield rows, ~missing[rows[0]]


@dataclass(frozen=True)
class GatedGaussian:
    """Joint model of a class y and real features x.

    Attributes
    ----------
    gate_intercept : (K,);  gate_coef : (K, d): log p(y | causes of y) up to the normaliser.
    means : (K, d) mean of x with y held at k;  cov : (d, d) covariance of x with y held fixed.
    intercept : (K,);  coef : (K, d): linear logits of p(y | all of x), in the gauge that the fit fixed.
    """

    gate_intercept: Array
    gate_coef: Array
    means: Array
    cov: Array
    intercept: Array
    coef: Array

    @cached_property
    def gated(self) -> NDArray[np.bool_]:
        """(d,) which features are causes of y with a non-zero weight."""
        return np.ptp(self.gate_coef, axis=0) > 0

    def log_proba(self, X: Array) -> Array:
        """log p(y=k | the observed part of x), shape (n, K); NaN in X is missing."""
        missing = np.isnan(X)
        if not missing.any():
            return log_softmax(X @ self.coef.T + self.intercept, axis=1)
        out = np.empty((len(X), len(self.intercept)))
        for rows, seen in by_pattern(missing):
            out[rows] = self._log_proba_pattern(X[rows], seen)
        return out

    def _log_proba_pattern(self, X: Array, seen: NDArray[np.bool_]) -> Array:
        if seen.all():
            return log_softmax(X @ self.coef.T + self.intercept, axis=1)
        O, M = np.flatnonzero(seen), np.flatnonzero(~seen)
        x = X[:, O]
        factor = cho_factor(self.cov[np.ix_(O, O)], lower=True) if len(O) else None
        # log N(x_O; mean_k, S_OO) up to what all classes share
        weights = cho_solve(factor, self.means[:, O].T).T if factor else np.zeros((len(self.means), 0))
        log_joint = x @ weights.T - 0.5 * np.einsum("kd,kd->k", weights, self.means[:, O])
        hidden = M[self.gated[M]]
        if len(hidden) == 0:
            gate = (
                log_softmax(self.gate_intercept + x @ self.gate_coef[:, O].T, axis=1) if len(O) else self.gate_intercept
            )
            return log_softmax(log_joint + gate, axis=1)
        # The gate sees missing features: average it over their law given x_O and y = k.
        slopes = cho_solve(factor, self.cov[np.ix_(O, hidden)]).T if factor else np.zeros((len(hidden), 0))
        residual = self.cov[np.ix_(hidden, hidden)] - slopes @ self.cov[np.ix_(O, hidden)]
        coef = self.gate_coef[:, hidden]
        spread = coef @ residual @ coef.T  # covariance of the logits that comes from the missing features
        for k in range(len(self.means)):
            expected = self.means[k, hidden] + (x - self.means[k, O]) @ slopes.T
            eta = self.gate_intercept + x @ self.gate_coef[:, O].T + expected @ coef.T
            log_joint[:, k] += log_mean_softmax(eta, spread)[:, k]
        return log_softmax(log_joint, axis=1)


def log_mean_softmax(eta: Array, spread: Array) -> Array:
    """log E softmax(eta + noise), noise ~ N(0, spread); eta (n, K) -> (n, K).

    One dimension for two classes, the rule of the causal fit for more.
    """
    K = eta.shape[1]
    if not spread.any():
        return np.asarray(log_softmax(eta, axis=1))
    if K == 2:
        margin = eta[:, 1] - eta[:, 0]
        tau = np.sqrt(max(spread[0, 0] + spread[1, 1] - 2 * spread[0, 1], 0.0))
        return np.column_stack([_log_mean_logistic(-margin, tau), _log_mean_logistic(margin, tau)])
    centring = np.eye(K) - 1 / K  # a shift of all logits changes nothing
    root = low_rank_root(centring @ spread @ centring)
    z, w = softmax_rule(root.shape[1], largest_contrast(root), 0)
    noise, log_w = z @ root.T, np.log(w)
    out = np.empty_like(eta)
    step = max(1, 2**19 // noise.size)
    for first in range(0, len(eta), step):
        part = slice(first, first + step)
        out[part] = logsumexp(log_softmax(eta[part, None, :] + noise, axis=2) + log_w[:, None], axis=1)
    return out


def _log_mean_logistic(margin: Array, tau: float) -> Array:
    out = np.empty(len(margin))
    for start in range(0, len(out), 4096):
        part = slice(start, start + 4096)
        z, w = normal_rule(margin[part], tau)
        with np.errstate(divide="ignore"):
            out[part] = logsumexp(log_expit(margin[part, None] + tau * z) + np.log(w), axis=1)
    return out
