"""The predictive model when some features are discrete: p(y | x) with any of x missing, integrated exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp

from .errors import CMaxEntError
from .gated import by_pattern, log_mean_softmax

Array = NDArray[np.float64]
Index = NDArray[np.intp]


@dataclass(frozen=True)
class Law:
    """Features of one block given Y = k: a state z with probability exp(log_p), then x ~ N(offset_k + z slopes, cov).

    Attributes
    ----------
    discrete : (m,) columns of X that hold indicators, all levels;  states : (S, m) their values in each state.
    log_p : (K', S), K' = K, or 1 where the block does not depend on Y.
    continuous : (r,) columns of X;  offset : (K', r);  slopes : (m, r);  cov : (r, r).
    """

    discrete: Index
    states: Array
    log_p: Array
    continuous: Index
    offset: Array
    slopes: Array
    cov: Array

    def means(self, chosen: slice | Index = slice(None)) -> Array:
        """(K', S, r) E[x | y, z]."""
        return self.offset[:, None, :] + (self.states[chosen] @ self.slopes)[None]

    def moments(self, pi: Array) -> tuple[Array, Array, Array]:
        """Mean (D,) and covariance (D, D) of (discrete, continuous) columns, and their class means (K', D)."""
        p = np.exp(self.log_p)
        K, S = p.shape
        r = len(self.continuous)
        means = self.means()
        full = np.concatenate([np.broadcast_to(self.states, (K, *self.states.shape)), means], axis=2)
        by_class = np.einsum("ks,ksi->ki", p, full)
        share = pi if K > 1 else np.ones(1)
        mean = share @ by_class
        flat = (full - mean).reshape(K * S, -1)
        cov = (flat * (share[:, None] * p).reshape(-1, 1)).T @ flat
        cov[len(cov) - r :, len(cov) - r :] += self.cov
        return mean, cov, by_class

    @cached_property
    def columns(self) -> Index:
        """(D,) discrete, then continuous columns."""
        return np.concatenate([self.discrete, self.continuous])


class _Seen(NamedTuple):
    """Rows that share their missing columns and their observed discrete values."""

    rows: Index
    states: Index  # the states that these values allow
    log_weight: Array  # (n, K', c): log p(z, x_observed | y) up to what all states and classes share


@dataclass(frozen=True)
class MixedModel:
    """p(y | x) of a discrete Y with mixed features; NaN in x is integrated out exactly.

    Attributes
    ----------
    laws : blocks of features, independent given Y (anticausal), or one block that is independent of Y (causal).
    gate_intercept : (K,);  gate_coef : (K, d): log p(y | causes of y) up to the normaliser.
    intercept : (K,);  coef : (K, d): linear logits of p(y | all of x).
    pi : (K,) class probabilities.
    """

    laws: tuple[Law, ...]
    gate_intercept: Array
    gate_coef: Array
    intercept: Array
    coef: Array
    pi: Array

    def log_proba(self, X: Array) -> Array:
        """log p(y=k | the observed part of x), shape (n, K); NaN in X is missing."""
        missing = np.isnan(X)
        if not missing.any():
            return log_softmax(X @ self.coef.T + self.intercept, axis=1)
        out = np.empty((len(X), len(self.pi)))
        for rows, seen in by_pattern(missing):
            only_discrete = not any(seen[law.continuous].any() for law in self.laws)
            out[rows] = (self._of_discrete if only_discrete else self._pattern)(X[rows], seen)
        return out

    def _pattern(self, X: Array, seen: NDArray[np.bool_]) -> Array:
        if seen.all():
            return log_softmax(X @ self.coef.T + self.intercept, axis=1)
        if not np.ptp(self.gate_coef[:, ~seen], axis=0).any():
            # What is missing does not enter the mechanism of Y; laws that do not depend on Y cancel.
            log_joint = log_softmax(self.gate_intercept + X[:, seen] @ self.gate_coef[:, seen].T, axis=1)
            for law in self.laws:
                if len(law.log_p) > 1:
                    for part in _consistent(law, X, seen):
                        log_joint[part.rows] += logsumexp(part.log_weight, axis=2)
            return log_softmax(log_joint, axis=1)
        (law,) = self.laws
        return self._through_gate(law, X, seen)

    def _through_gate(self, law: Law, X: Array, seen: NDArray[np.bool_]) -> Array:
        """Causes of Y are missing: average the mechanism over their law given the observed ones."""
        K = len(self.pi)
        hidden_z = ~seen[law.discrete]
        O, M = seen[law.continuous], ~seen[law.continuous]
        slopes = np.linalg.solve(law.cov[np.ix_(O, O)], law.cov[np.ix_(O, M)])
        residual = law.cov[np.ix_(M, M)] - law.cov[np.ix_(M, O)] @ slopes
        coef = self.gate_coef[:, law.continuous[M]]
        spread = coef @ residual @ coef.T  # covariance of the logits that comes from missing x
        out = np.empty((len(X), K))
        for part in _consistent(law, X, seen):
            rows = X[part.rows]
            means = law.means(part.states)[0]
            expected = means[:, M] + (rows[:, law.continuous[O]][:, None, :] - means[:, O]) @ slopes
            eta = (
                (self.gate_intercept + rows[:, seen] @ self.gate_coef[:, seen].T)[:, None, :]
                + law.states[part.states][:, hidden_z] @ self.gate_coef[:, law.discrete[hidden_z]].T
                + expected @ coef.T
            )
            log_gate = log_mean_softmax(eta.reshape(-1, K), spread).reshape(eta.shape)
            out[part.rows] = logsumexp(part.log_weight[:, 0, :, None] + log_gate, axis=1)
        return log_softmax(out, axis=1)

    def _of_discrete(self, X: Array, seen: NDArray[np.bool_]) -> Array:
        """Rows without observed continuous features repeat: one evaluation for each combination of levels."""
        distinct, where = np.unique(X[:, seen], axis=0, return_inverse=True)
        rows = np.full((len(distinct), X.shape[1]), np.nan)
        rows[:, seen] = distinct
        return self._pattern(rows, seen)[where.ravel()]

    def sample(self, n: int, rng: np.random.Generator) -> tuple[Array, NDArray[np.intp]]:
        """X (n, d) and class numbers y (n,) drawn from the joint law."""
        K = len(self.pi)
        X = np.empty((n, self.coef.shape[1]))
        y = rng.choice(K, size=n, p=self.pi / self.pi.sum())
        for law in self.laws:
            for k in range(len(law.log_p)):
                rows = np.flatnonzero(y == k) if len(law.log_p) > 1 else np.arange(n)
                p = np.exp(law.log_p[k])
                z = law.states[rng.choice(len(p), size=len(rows), p=p / p.sum())]
                noise = rng.standard_normal((len(rows), len(law.continuous))) @ np.linalg.cholesky(law.cov).T
                X[np.ix_(rows, law.discrete)] = z
                X[np.ix_(rows, law.continuous)] = law.offset[k] + z @ law.slopes + noise
        if np.ptp(self.gate_coef, axis=0).any():
            p = np.exp(log_softmax(self.gate_intercept + X @ self.gate_coef.T, axis=1))
            y = (p.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1).clip(max=K - 1)
        return X, y

    def state(self) -> dict[str, Array]:
        """Arrays for a model file; :func:`mixed_from_state` reads them."""
        own = ("gate_intercept", "gate_coef", "intercept", "coef", "pi")
        arrays: dict[str, Array] = {f"mixed_{name}": getattr(self, name) for name in own}
        for i, law in enumerate(self.laws):
            arrays |= {f"law{i}_{name}": getattr(law, name) for name in Law.__dataclass_fields__}
        return arrays


def mixed_from_state(arrays: Mapping[str, Array]) -> MixedModel:
    """Inverse of :meth:`MixedModel.state`; other keys are ignored."""
    n_laws = len([key for key in arrays if key.startswith("law") and key.endswith("_log_p")])
    laws = tuple(Law(*(arrays[f"law{i}_{name}"] for name in Law.__dataclass_fields__)) for i in range(n_laws))  # type: ignore[arg-type]
    own = [arrays[f"mixed_{name}"] for name in ("gate_intercept", "gate_coef", "intercept", "coef", "pi")]
    return MixedModel(laws, *own)


def _consistent(law: Law, X: Array, seen: NDArray[np.bool_]) -> list[_Seen]:
    """Group rows (all with the columns ``seen``) by observed discrete values, with the weights of the states left."""
    Z, O = law.discrete[seen[law.discrete]], seen[law.continuous]
    states = law.states[:, seen[law.discrete]]
    P = np.linalg.inv(law.cov[np.ix_(O, O)])
    values, group = np.unique(X[:, Z], axis=0, return_inverse=True)
    found = []
    for g, value in enumerate(values):
        chosen = np.flatnonzero((states == value).all(axis=1))
        if len(chosen) == 0:
            raise CMaxEntError(
                f"X has a row with the values {value.tolist()} in its discrete columns {Z.tolist()}: no such level"
            )
        means = law.means(chosen)[:, :, O]
        constant = law.log_p[:, chosen] - 0.5 * np.einsum("ksi,ij,ksj->ks", means, P, means)
        every = np.flatnonzero(group.ravel() == g)
        step = max(1, 2**20 // constant.size)
        for rows in np.split(every, range(step, len(every), step)):
            x = X[np.ix_(rows, law.continuous[O])]
            found.append(_Seen(rows, chosen, constant + np.einsum("ni,ksi->nks", x @ P, means)))
    return found
