"""Which candidate causes have an edge to Y, and how large their effects can be, from tables that were never joined.

Each data set has told E[Y|X_i] for one discrete cause; the law p(x) of all causes is known, or is the MAXENT law of
the tables that are. CMAXENT then gives p(y|x) with log odds sum_i lambda_i(x_i), and lambda_i is constant over the
states of X_i if and only if the mechanism does not depend on X_i. Garrido Mejia et al. 2022 (arXiv:2107.07640).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import chi2

from .constraints import Constraint, Support
from .dual import solve_conditional
from .errors import CMaxEntError
from .model import CMaxEnt

Array: TypeAlias = "NDArray[np.float64]"


def edge_tests(
    conditional_means: Mapping[str, pd.Series],
    n: float | Mapping[str, float],
    p_x: pd.Series | Sequence[pd.Series],
    *,
    shared_rows: bool = False,
) -> pd.DataFrame:
    """Test for each candidate cause whether Y depends on it given all the others.

    Parameters
    ----------
    conditional_means : cause -> Series of E[Y | cause = level] indexed by level, for binary Y.
    n : rows behind each table: one number, or cause -> number.
    p_x : the joint law of the causes, a Series of probabilities with one index level for each cause; or a sequence of
        tables over subsets of the causes, each such a Series, whose MAXENT law (no graph) is then used. The law of
        the causes counts as known: its own error is not in ``se``, and where MAXENT misses a dependence between
        causes the test rejects too often.
    shared_rows : whether all tables come from the same ``n`` rows, so that their errors are correlated.

    Returns
    -------
    DataFrame indexed by cause with the columns ``contrast`` (lambda_b - lambda_a, in log odds, for the pair of levels
    that differ most; the last minus the first for two levels), ``se``, ``z`` = contrast / se, ``p`` (Wald test of all
    contrasts of the cause, chi-squared with levels - 1 degrees of freedom) and ``author_score`` =
    |lambda_a - lambda_b| / max(|lambda_a|, |lambda_b|, |lambda_a - lambda_b|, 1) for the same pair, on multipliers of
    minimum norm, as the authors score edges. NaN where p(x) ties the cause to others so that its contrast has no
    meaning.

    Raises
    ------
    CMaxEntError
        A table is malformed, or does not fit p(x).

    Notes
    -----
    The moments m_ia = p(a) E[Y|a] of different tables imply different E[Y], and may be infeasible together by sampling
    error alone. The dual therefore has the slack Omega = diag(1/n_i), which makes n times the dual a log posterior
    with standard normal priors on lambda: it reconciles the tables, keeps lambda finite where a cell has no
    successes, and vanishes as n grows. The errors are those of lambda as a function of the tables,
    (H + Omega)^-1 Cov(m) (H + Omega)^-1 with H = E Cov(f|X). A slack as small as Cov(m) itself would let the standard
    error of a very strong effect outgrow the effect (Hauck and Donner 1977).
    """
    law = _joint_law(p_x)
    tables = [_checked_table(c, t, law) for c, t in conditional_means.items()]
    rows = {c: float(n[c] if isinstance(n, Mapping) else n) for c in conditional_means}
    if any(not k > 0 for k in rows.values()):
        raise CMaxEntError(f"n has to be positive; got {rows}")
    indicator = np.column_stack(
        [[x == a for x in law.index.get_level_values(t.cause)] for t in tables for a in t.levels]
    )
    indicator = indicator.astype(float)  # (states, J)
    owner = np.repeat([t.cause for t in tables], [len(t.levels) for t in tables])
    weights = law.to_numpy()
    mass = weights @ indicator
    mean = np.concatenate([t.mean for t in tables])
    size = mass * np.array([rows[c] for c in owner])
    # Half a success and half a failure more: a cell without successes is not known without error.
    smooth = (mean * size + 0.5) / (size + 1)
    noise = np.diag(mass**2 * smooth * (1 - smooth) / size)
    omega = np.diag([1 / rows[c] for c in owner])

    features = np.stack([np.zeros_like(indicator), indicator], axis=1)  # y = 0, 1
    solution = solve_conditional(features, mass * mean, weights, np.zeros(2), omega=omega)
    if shared_rows:
        noise = _shared_noise(noise, indicator, weights, expit(indicator @ solution.multipliers))
    bread = np.linalg.inv(solution.covariance + omega)
    covariance = bread @ noise @ bread

    flat = _gauge(indicator, weights)
    lam = solution.multipliers - flat @ (flat.T @ solution.multipliers)
    report = [_test(t, np.flatnonzero(owner == t.cause), lam, covariance, flat) for t in tables]
    return pd.DataFrame(report, index=pd.Index([t.cause for t in tables], name="cause"))


@dataclass(frozen=True)
class _Table:
    cause: str
    levels: list[Hashable]
    mean: Array


def _joint_law(p_x: pd.Series | Sequence[pd.Series]) -> pd.Series:
    """The states of positive probability of the joint law of the causes."""
    if not isinstance(p_x, pd.Series):
        p_x = maxent_law(p_x)
    _check_law(p_x)
    return p_x[p_x > 0] / p_x.sum()


def _check_law(p: pd.Series) -> None:
    names = list(p.index.names)
    if any(name is None for name in names) or len(set(names)) < len(names):
        raise CMaxEntError(f"a table of probabilities needs the causes as names of its index levels; got {names}")
    if p.index.has_duplicates or not ((p >= 0).all() and abs(p.sum() - 1) < 1e-6):
        raise CMaxEntError(
            f"the table over {', '.join(map(str, names))} is not a probability table (sum {p.sum():.6g})"
        )


def maxent_law(tables: Sequence[pd.Series]) -> pd.Series:
    """The joint law of largest entropy with the given marginal tables.

    Parameters
    ----------
    tables : Series of probabilities whose index levels are named after the causes; at least one cause each.

    Returns
    -------
    Series over all combinations of the levels that the tables mention.

    Raises
    ------
    InconsistentMomentsError, InfeasibleMomentsError
        The tables contradict each other.
    """
    supports: dict[str, Support] = {}
    constraints = []
    for k, table in enumerate(tables):
        _check_law(table)
        names = tuple(str(v) for v in table.index.names)
        for v in names:
            found = table.index.get_level_values(v).unique().tolist()
            known = supports[v].values if v in supports else ()
            supports[v] = Support.discrete(list(dict.fromkeys((*known, *found))))
        for state, value in (table / table.sum()).items():
            labels = state if isinstance(state, tuple) else (state,)
            constraints.append(
                Constraint(_is_state(labels), names, float(value), name=f"table {k}: {names} = {labels}")
            )
    return CMaxEnt(None, constraints, supports).fit().prob_table()


def _is_state(labels: tuple[Hashable, ...]) -> Any:
    def inside(*columns: NDArray[Any]) -> NDArray[np.bool_]:
        return np.logical_and.reduce([column == label for column, label in zip(columns, labels, strict=True)])

    return inside


def _checked_table(cause: str, table: pd.Series, law: pd.Series) -> _Table:
    if cause not in law.index.names:
        raise CMaxEntError(f"E[Y|{cause}] is given, but p(x) is a law of {', '.join(map(str, law.index.names))}")
    levels = law.index.get_level_values(cause).unique().sort_values().tolist()
    missing = [a for a in levels if a not in table.index]
    if missing:
        raise CMaxEntError(f"E[Y|{cause}] lacks the level {missing[0]!r} that p(x) has")
    mean = table.loc[levels].to_numpy(float)
    if not ((mean >= 0) & (mean <= 1)).all():
        raise CMaxEntError(f"E[Y|{cause}] has to lie between 0 and 1, as Y is binary; got {mean.tolist()}")
    return _Table(cause, levels, mean)


def _shared_noise(noise: Array, indicator: Array, weights: Array, p: Array) -> Array:
    """Covariance of the m_ia when all come from the same rows: the given variances, correlated as the fit says.

    The error of mean(Y | X_i = a) is an average of 1(X_i = a) (Y - mu_a).
    """
    mu = (weights * p) @ indicator / (weights @ indicator)
    at_one, at_zero = indicator * (1 - mu), -indicator * mu
    covariance = (at_one.T * (weights * p)) @ at_one + (at_zero.T * (weights * (1 - p))) @ at_zero
    scale = np.sqrt(np.diag(noise) / np.diag(covariance))
    return covariance * np.outer(scale, scale)


def _gauge(indicator: Array, weights: Array) -> Array:
    """(J, k) orthonormal directions of lambda that change no log odds."""
    values, vectors = np.linalg.eigh((indicator.T * weights) @ indicator)
    return vectors[:, values <= 1e-10 * values[-1]]


def _test(table: _Table, own: NDArray[np.intp], lam: Array, covariance: Array, flat: Array) -> dict[str, float]:
    first, last = max(
        ((a, b) for a in range(len(own)) for b in range(a + 1, len(own))),
        key=lambda ab: abs(lam[own[ab[1]]] - lam[own[ab[0]]]),
        default=(0, 0),
    )
    contrasts = np.zeros((max(len(own) - 1, 0), len(lam)))
    for k in range(len(own) - 1):
        contrasts[k, own[k]], contrasts[k, own[k + 1]] = -1, 1
    if first == last or np.abs(contrasts @ flat).max(initial=0.0) > 1e-6:
        return dict.fromkeys(("contrast", "se", "z", "p", "author_score"), np.nan)
    pair = np.zeros(len(lam))
    pair[own[first]], pair[own[last]] = -1, 1
    contrast, se = float(pair @ lam), float(np.sqrt(pair @ covariance @ pair))
    differences = contrasts @ lam
    wald = float(differences @ np.linalg.solve(contrasts @ covariance @ contrasts.T, differences))
    return {
        "contrast": contrast,
        "se": se,
        "z": contrast / se,
        "p": float(chi2.sf(wald, len(contrasts))),
        "author_score": abs(contrast) / max(abs(lam[own[first]]), abs(lam[own[last]]), abs(contrast), 1.0),
    }


# --- bounds on interventional effects ---------------------------------------------------------------------


@dataclass(frozen=True)
class AceBounds:
    """Bounds on what intervening on one cause does to a binary Y.

    Attributes
    ----------
    probability : DataFrame indexed by level, ``lower`` and ``upper`` bound of P(Y=1 | do(cause = level)).
    effect : DataFrame indexed by (b, a), bounds of P(Y=1 | do(b)) - P(Y=1 | do(a)) for a before b.
    """

    cause: str
    probability: pd.DataFrame
    effect: pd.DataFrame


def ace_bounds(conditional_mean: pd.Series, p_x: pd.Series | Sequence[pd.Series], cause: str) -> AceBounds:
    """Bounds on the average causal effect of ``cause`` from E[Y|cause] and the law of the causes alone.

    p(y, x) / max_z p(x|z) <= p(y | do(x)) <= p(y, x) / min_z p(x|z), where z runs over the states of all other
    causes in ``p_x``; valid if these contain every common cause of ``cause`` and Y. Nothing is assumed about
    p(y|x, z). Without other causes the bounds meet at E[Y|cause].

    Parameters
    ----------
    conditional_mean : E[Y | cause = level] indexed by level, Y binary.
    p_x : as in :func:`edge_tests`.

    Raises
    ------
    CMaxEntError
        A table is malformed, or does not fit p(x).
    """
    law = _joint_law(p_x)
    table = _checked_table(cause, conditional_mean, law)
    others = [v for v in law.index.names if v != cause]
    states = law.unstack(cause).fillna(0.0) if others else law.to_frame().T
    wide = states[table.levels].to_numpy()
    given_z = wide / wide.sum(axis=1, keepdims=True)
    joint = wide.sum(axis=0) * table.mean  # p(y=1, x)
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0: a state that never has Y = 1 but may lack x
        upper = np.where(given_z.min(axis=0) > 0, joint / given_z.min(axis=0), 1.0)
    bounds = np.column_stack([joint / given_z.max(axis=0), np.minimum(upper, 1.0)])
    index = pd.Index(table.levels, name=cause)
    pairs = [(b, a) for b in range(len(index)) for a in range(b)]
    effect = [[bounds[b, 0] - bounds[a, 1], bounds[b, 1] - bounds[a, 0]] for b, a in pairs]
    return AceBounds(
        cause,
        pd.DataFrame(bounds, index=index, columns=["lower", "upper"]),
        pd.DataFrame(
            np.clip(np.array(effect).reshape(-1, 2), -1.0, 1.0),
            index=pd.MultiIndex.from_tuples([(index[b], index[a]) for b, a in pairs], names=["do", "instead of"]),
            columns=["lower", "upper"],
        ),
    )


# --- tables from rows -------------------------------------------------------------------------------------


def tables_from_rows(X: pd.DataFrame, y: NDArray[Any]) -> tuple[dict[str, pd.Series], list[pd.Series]]:
    """E[Y|X_i] and p(x_i) of every column: what separate studies of each cause would publish.

    Parameters
    ----------
    X : discrete columns; y : (n,) in {0, 1}.

    Returns
    -------
    conditional_means : for :func:`edge_tests`.
    marginals : one table for each cause, for its ``p_x``; ``X.value_counts(normalize=True)`` is the joint law instead.
    """
    target = pd.Series(np.asarray(y, float), index=X.index)
    means = {str(v): target.groupby(X[v]).mean() for v in X.columns}
    return means, [X[v].value_counts(normalize=True).rename_axis(v) for v in X.columns]
