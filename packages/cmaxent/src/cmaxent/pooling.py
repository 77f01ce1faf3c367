"""Merging moments from many sources into one set, with a record of where the sources disagree (spec 2.8).

Raw pooling averages raw moments over the rows that observe them. Mechanism pooling averages what is invariant
when Y causes X and only the prevalence differs between sources: class means and within-class covariances.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import chi2

from .completion import _cliques, complete_covariance
from .errors import CMaxEntError, InconsistentMomentsError, InfeasibleMomentsError
from .graph import _listed
from .moments import Moments, _frozen, _nonredundant, _validated, _variable_of

Array = NDArray[np.float64]

REPAIRS = ("raise", "shrink", "ml")


def merge(
    moments: Sequence[Moments],
    *,
    pooling: str = "raw",
    target: str | None = None,
    prevalence: float | Mapping[int, float] | Mapping[str, float] | Sequence[float] | None = None,
    repair: str = "raise",
) -> Moments:
    """Merge sources over the union of their variables.

    Parameters
    ----------
    moments : sources; coordinates are matched by name.
    pooling : "raw", or "mechanism" (pools p(x | y); needs a discrete ``target``).
    target : the variable Y of mechanism pooling.
    prevalence : P(Y=1) of the merged population (a number, or K class probabilities), or a mapping
        ``{source index: P(Y=1) in that source}`` for sources that lack Y; the key "target" may give the former too.
    repair : what to do when the pooled matrix is not positive semidefinite: "raise", "shrink" (smallest shrinkage of
        the correlations that helps, reported in ``repair_alpha``), "ml" (Gaussian likelihood of all sources).

    Returns
    -------
    Moments
        With ``heterogeneity``: one row per moment seen in two or more sources (Cochran's Q, df, p, I^2).

    Raises
    ------
    InconsistentMomentsError
        A variable is of different kinds in two sources.
    InfeasibleMomentsError
        The pooled matrix is not positive semidefinite and ``repair="raise"``.
    """
    sources = [moments] if isinstance(moments, Moments) else list(moments)
    if not sources:
        raise CMaxEntError("merge needs at least one source")
    for i, source in enumerate(sources):
        if not isinstance(source, Moments):
            raise CMaxEntError(f"source {i} is a {type(source).__name__}, not Moments")
    if repair not in REPAIRS:
        raise CMaxEntError(f"repair={repair!r} is not one of {', '.join(REPAIRS)}")
    if pooling not in ("raw", "mechanism"):
        raise CMaxEntError(f"pooling={pooling!r} is not 'raw' or 'mechanism'")
    names, kinds, levels = _union(sources)
    weights = _weights(sources)
    if pooling == "mechanism":
        if target is None or kinds.get(target) not in ("binary", "categorical"):
            raise CMaxEntError(
                f"mechanism pooling needs a discrete target; {target!r} is {kinds.get(target or '', 'not a variable')}"
            )
        pooled = _pool_mechanism(sources, weights, names, kinds, levels, target, prevalence)
    else:
        if prevalence is not None:
            raise CMaxEntError("prevalence= changes the population: use pooling='mechanism'")
        hint = units_hint(sources)
        if hint:
            warnings.warn(f"{hint}: other units or another population?", UserWarning, stacklevel=2)
        try:
            pooled = _pool_raw(sources, weights, names, kinds, levels, repair)
            return _repaired(replace(pooled, heterogeneity=_heterogeneity(sources)), sources, weights, repair)
        except InfeasibleMomentsError as error:
            raise InfeasibleMomentsError(f"{error}{f' ({hint}: other units?)' if hint else ''}") from None
    return _repaired(replace(pooled, heterogeneity=_heterogeneity(sources)), sources, weights, repair)


def _union(sources: Sequence[Moments]) -> tuple[tuple[str, ...], dict[str, str], dict[str, tuple[Any, ...]]]:
    kinds: dict[str, str] = {}
    levels: dict[str, tuple[Any, ...]] = {}
    coordinates: dict[str, list[str]] = {}
    for i, source in enumerate(sources):
        for variable in source.variables:
            own = [source.names[j] for j in source.coordinates(variable)]
            kind = source.kinds[variable]
            if variable in kinds and (kinds[variable] != kind or set(coordinates[variable]) != set(own)):
                raise InconsistentMomentsError(
                    f"{variable} is {kinds[variable]} ({_listed(coordinates[variable])}) in an earlier source but "
                    f"{kind} ({_listed(own)}) "
                    f"in source {i}: declare the same kinds everywhere"
                )
            if variable in levels and levels[variable] != source.levels.get(variable, levels[variable]):
                raise InconsistentMomentsError(
                    f"{variable} has levels {levels[variable]} and, in source {i}, {source.levels[variable]}"
                )
            kinds.setdefault(variable, kind)
            coordinates.setdefault(variable, own)
            if variable in source.levels:
                levels.setdefault(variable, source.levels[variable])
    return tuple(name for own in coordinates.values() for name in own), kinds, levels


def _weights(sources: Sequence[Moments]) -> list[Array]:
    """(p_s, p_s) weight of each pair in each source; equal weights where no source says its n."""
    silent = [i for i, s in enumerate(sources) if s.n is None]
    if silent and len(silent) < len(sources):
        raise CMaxEntError(
            f"source {_listed(map(str, silent))} has no n while others have: pass n= so that they can be weighted"
        )
    return [np.where(s.known, 1.0 if s.n is None else s.n, 0.0) for s in sources]


def _positions(source: Moments, names: tuple[str, ...]) -> NDArray[np.intp]:
    where = {name: i for i, name in enumerate(names)}
    return np.array([where[name] for name in source.names])


def _pool_raw(
    sources: Sequence[Moments],
    weights: Sequence[Array],
    names: tuple[str, ...],
    kinds: dict[str, str],
    levels: dict[str, tuple[Any, ...]],
    repair: str,
) -> Moments:
    p = len(names)
    # Chan's update in pairwise form, relative to an origin near the data.
    origin = _pooled_mean(sources, weights, names)
    n, mean, comoment = np.zeros((p, p)), np.zeros((p, p)), np.zeros((p, p))
    for source, w in zip(sources, weights, strict=True):
        at = _positions(source, names)
        grid = np.ix_(at, at)
        own = source.mean[:, None] if source.pair_mean is None else source.pair_mean
        own = np.where(w > 0, own - origin[at][:, None], 0.0)
        total = n[grid] + w
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.where(total > 0, w / total, 0.0)
        delta = own - mean[grid]
        comoment[grid] += np.where(w > 0, np.nan_to_num(source.cov) * w, 0.0) + delta * delta.T * n[grid] * share
        mean[grid] += share * delta
        n[grid] = total
    with np.errstate(invalid="ignore", divide="ignore"):
        # A pair and its variances may come from different rows; what is then no correlation is left to `repair`.
        cov = np.where(n > 0, comoment / n, np.nan)
        limit = np.sqrt(np.outer(cov.diagonal(), cov.diagonal()))
        excess = np.argwhere(np.abs(cov) > limit * (1 + 1e-9))
    if len(excess):
        i, j = (int(v) for v in excess[0])
        if repair == "raise":
            raise InfeasibleMomentsError(
                f"the pooled correlation of {names[i]} and {names[j]} is {cov[i, j] / limit[i, j]:.4g}, outside [-1, "
                "1], because the "
                "pair and its variances come from different rows: merge with repair='shrink' or repair='ml'"
            )
        cov = np.where(np.isnan(limit), cov, np.clip(cov, -limit * (1 - 1e-6), limit * (1 - 1e-6)))
        np.fill_diagonal(cov, limit.diagonal())
    means = np.where(n.diagonal() > 0, origin + mean.diagonal(), origin)
    made = _validated(names, kinds, means, cov, _count_or_none(sources, n), levels)
    pair_mean = np.where(n > 0, origin[:, None] + mean, means[:, None])
    return (
        made
        if np.array_equal(pair_mean, np.broadcast_to(means[:, None], (p, p)))
        else replace(made, pair_mean=_frozen(pair_mean))
    )


def _pooled_mean(sources: Sequence[Moments], weights: Sequence[Array], names: tuple[str, ...]) -> Array:
    total, n = np.zeros(len(names)), np.zeros(len(names))
    for source, w in zip(sources, weights, strict=True):
        at = _positions(source, names)
        # A coordinate of unknown variance still has a mean; it weighs like one row.
        own = np.where(w.diagonal() > 0, w.diagonal(), 1e-12)
        total[at] += own * source.mean
        n[at] += own
    return total / n


def _count_or_none(sources: Sequence[Moments], n: Array) -> Array | float | None:
    if sources[0].n is None:
        return None
    return float(n[0, 0]) if (n == n[0, 0]).all() else n


# --- mechanism pooling --------------------------------------------------------------------------------------


def _pool_mechanism(
    sources: Sequence[Moments],
    weights: Sequence[Array],
    names: tuple[str, ...],
    kinds: dict[str, str],
    levels: dict[str, tuple[Any, ...]],
    target: str,
    prevalence: Any,
) -> Moments:
    own_names = [n for n in names if _variable_of(n, kinds) == target]
    y = [names.index(n) for n in own_names]
    x = [i for i in range(len(names)) if i not in set(y)]
    K, d = (2, len(x)) if kinds[target] == "binary" else (len(y), len(x))
    target_pi, given = _read_prevalence(prevalence, K, len(sources), target)

    labelled = [i for i, s in enumerate(sources) if target in s.kinds]
    if not labelled:
        raise CMaxEntError(f"no source observes the target {target}")
    pis = {i: _class_probabilities(sources[i], target) for i in labelled}
    n_y = {i: float(weights[i][sources[i].coordinates(target)[0], sources[i].coordinates(target)[0]]) for i in labelled}
    pooled_pi = np.sum([n_y[i] * pis[i] for i in labelled], axis=0) / sum(n_y.values())
    pi: Array = pooled_pi if target_pi is None else target_pi

    column = {name: j for j, name in enumerate(names[i] for i in x)}
    # 1. class means, weighted by the rows of each class that observe the feature together with Y
    n_class, means = np.zeros((K, d)), np.zeros((K, d))
    class_means: dict[int, tuple[Array, NDArray[np.intp], NDArray[np.intp]]] = {}
    for i in labelled:
        s = sources[i]
        t = np.array(s.coordinates(target))
        feature = np.setdiff1d(np.arange(s.p), t)
        at = np.array([column[s.names[j]] for j in feature], dtype=int)
        C = s.cov[np.ix_(feature, t)]
        C = np.column_stack([-C, C]) if K == 2 and len(t) == 1 else C
        seen = ~np.isnan(C[:, 0])
        base = s.mean if s.pair_mean is None else s.pair_mean[:, t[0]]
        pair_pi = pis[i][:, None] * np.ones(len(feature))
        if s.pair_mean is not None:
            rows = s.pair_mean[np.ix_(t, feature)]
            pair_pi = np.vstack([1 - rows[0], rows[0]]) if K == 2 and len(t) == 1 else rows
        with np.errstate(invalid="ignore", divide="ignore"):
            mk = base[feature] + (C.T / pair_pi)
        share = weights[i][np.ix_(feature, t)][:, 0] * pair_pi * seen
        means[:, at] += np.where(share > 0, share * np.nan_to_num(mk), 0.0)
        n_class[:, at] += share
        class_means[i] = (np.where(seen, mk, np.nan), at, feature)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.where(n_class > 0, means / n_class, np.nan)
    has_class = np.asarray(~np.isnan(means).any(axis=0))

    # 2. scatter around the pooled class means, or total covariance converted with the source's own prevalence
    within, n_within = np.zeros((d, d)), np.zeros((d, d))
    plain, n_plain = np.zeros((d, d)), np.zeros((d, d))
    plain_mean, n_mean = np.zeros(d), np.zeros(d)
    assumed = []
    for i, s in enumerate(sources):
        if i in class_means:
            mk, at, feature = class_means[i]
            p_s = pis[i]
        else:
            feature = np.arange(s.p)
            at = np.array([column[n] for n in s.names], dtype=int)
            p_s = given.get(i, pi)
            mk = np.full((K, len(at)), np.nan)
            if i not in given:
                assumed.append(i)
        grid, w = np.ix_(at, at), weights[i][np.ix_(feature, feature)]
        total = np.nan_to_num(s.cov[np.ix_(feature, feature)])
        own = ~np.isnan(mk).any(axis=0)
        centre = np.where(own, np.nan_to_num(mk), means[:, at])
        between = (centre - p_s @ centre).T * p_s @ (centre - p_s @ centre)
        # Rows of labelled sources also scatter around the pooled means by what their own means differ.
        drift = np.where(own, np.nan_to_num(mk) - means[:, at], 0.0)
        extra = (drift.T * p_s) @ drift
        usable = np.outer(has_class[at], has_class[at]) & (w > 0)
        if i in class_means:
            usable &= np.outer(own, own)
        within[grid] += np.where(usable, w * np.nan_to_num(total - between + extra), 0.0)
        n_within[grid] += np.where(usable, w, 0.0)
        other = (w > 0) & ~usable
        plain[grid] += np.where(other, w * total, 0.0)
        n_plain[grid] += np.where(other, w, 0.0)
        plain_mean[at] += w.diagonal() * s.mean[feature]
        n_mean[at] += w.diagonal()
    if assumed and has_class.any():
        warnings.warn(
            f"source {_listed(map(str, assumed))} lacks {target}: its prevalence is assumed to be that of the merged "
            "population; "
            "pass prevalence={source index: P(Y=1)}",
            UserWarning,
            stacklevel=3,
        )

    # 3. back to moments of the merged population
    mu = np.where(has_class, pi @ np.nan_to_num(means), plain_mean / np.maximum(n_mean, 1e-300))
    deviation = np.where(has_class, np.nan_to_num(means) - mu, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        sigma = np.where(n_within > 0, within / n_within + (deviation.T * pi) @ deviation, np.nan)
        # A pair without class means anywhere has only its total covariance.
        sigma = np.where(np.isnan(sigma) & (n_plain > 0), plain / n_plain, sigma)
    C = np.where(has_class, (deviation.T * pi).T, np.nan)  # (K, d)
    p = len(names)
    cov, mean, n = np.full((p, p), np.nan), np.zeros(p), np.zeros((p, p))
    mean[x], cov[np.ix_(x, x)] = mu, sigma
    keep = [1] if kinds[target] == "binary" else list(range(K))
    mean[y] = pi[keep]
    cov[np.ix_(y, y)] = (np.diag(pi) - np.outer(pi, pi))[np.ix_(keep, keep)]
    cov[np.ix_(y, x)], cov[np.ix_(x, y)] = C[keep], C[keep].T
    n[np.ix_(x, x)] = np.where(n_within > 0, n_within, n_plain)
    n[np.ix_(y, y)] = sum(n_y.values())
    n[np.ix_(y, x)] = n_class.sum(axis=0)
    n[np.ix_(x, y)] = n[np.ix_(y, x)].T
    for j, name in enumerate(names):
        if kinds.get(name) == "binary" and name != target:
            cov[j, j] = np.nan  # the mean moved with the prevalence; its variance follows
    return _validated(names, kinds, mean, cov, _count_or_none(sources, n), levels)


def _class_probabilities(source: Moments, target: str) -> Array:
    own = source.coordinates(target)
    return np.array([1 - source.mean[own[0]], source.mean[own[0]]]) if len(own) == 1 else source.mean[own]


def _read_prevalence(prevalence: Any, K: int, n_sources: int, target: str) -> tuple[Array | None, dict[int, Array]]:
    """(class probabilities of the merged population or None, those of single sources)."""

    def probabilities(value: Any, where: str) -> Array:
        pi = np.atleast_1d(np.asarray(value, dtype=float))
        if K == 2 and pi.shape == (1,):
            pi = np.array([1 - pi[0], pi[0]])
        if pi.shape != (K,) or (pi <= 0).any() or abs(pi.sum() - 1) > 1e-6:
            raise CMaxEntError(
                f"prevalence of {target} {where} has to be "
                f"{'a number in (0, 1)' if K == 2 else f'{K} positive numbers summing to 1'}"
            )
        return pi / pi.sum()

    if prevalence is None:
        return None, {}
    if not isinstance(prevalence, Mapping):
        return probabilities(prevalence, "in the merged population"), {}
    merged, given = None, {}
    for key, value in prevalence.items():
        if key == "target":
            merged = probabilities(value, "in the merged population")
            continue
        try:
            index = int(key)
        except (TypeError, ValueError):
            index = -1
        if not 0 <= index < n_sources:
            raise CMaxEntError(
                f"prevalence names source {key!r}; sources are 0 to {n_sources - 1}, or 'target' for the merged "
                "population"
            )
        given[index] = probabilities(value, f"in source {key}")
    return merged, given


# --- heterogeneity ------------------------------------------------------------------------------------------


def _heterogeneity(sources: Sequence[Moments]) -> pd.DataFrame:
    """Cochran's Q for each mean and covariance that two or more sources report.

    Sampling variances: Var(mean) = var / n; Var(cov_ij) = (s_ii s_jj + s_ij^2) / n, the Gaussian value.
    """
    columns = ["moment", "sources", "estimate", "Q", "df", "p", "I2"]
    if any(s.n is None for s in sources) or len(sources) < 2:
        return pd.DataFrame(columns=columns)
    seen: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    names: dict[str, int] = {}
    for s in sources:
        for name in s.names:
            names.setdefault(name, len(names))
    shared = {name for name in names if sum(name in s.names for s in sources) > 1}
    for s in sources:
        counts = s.pair_counts()
        assert counts is not None
        index = [i for i, name in enumerate(s.names) if name in shared]
        for a, i in enumerate(index):
            if counts[i, i] > 0:
                seen.setdefault((s.names[i],), []).append((s.mean[i], s.cov[i, i] / counts[i, i]))
            for j in index[a:]:
                if counts[i, j] > 0 and not (i == j and s.kinds.get(s.names[i]) != "continuous"):
                    key = tuple(sorted((s.names[i], s.names[j]), key=names.__getitem__))
                    variance = (s.cov[i, i] * s.cov[j, j] + s.cov[i, j] ** 2) / counts[i, j]
                    seen.setdefault(key, []).append((s.cov[i, j], variance))
    rows = []
    for key, values in seen.items():
        if len(values) < 2:
            continue
        estimate, variance = np.array(values).T
        w = 1 / variance
        centre = float(w @ estimate / w.sum())
        Q, df = float(w @ (estimate - centre) ** 2), len(values) - 1
        label = f"E[{key[0]}]" if len(key) == 1 else f"Cov({key[0]}, {key[1]})"
        rows.append((label, len(values), centre, Q, df, float(chi2.sf(Q, df)), max(0.0, 1 - df / Q) if Q > 0 else 0.0))
    return pd.DataFrame(rows, columns=columns)


def units_hint(sources: Sequence[Moments]) -> str:
    """Which means differ by more than 20 standard errors between two sources, as words; empty if none."""
    hints: list[str] = []
    for name in dict.fromkeys(n for s in sources for n in s.names):
        found = []
        for s in sources:
            counts = s.pair_counts()
            if name in s.names and counts is not None:
                i = s.names.index(name)
                if counts[i, i] > 0:
                    found.append((s.mean[i], s.cov[i, i], counts[i, i]))
        for a in range(len(found)):
            for b in range(a):
                se = np.sqrt(found[a][1] / found[a][2] + found[b][1] / found[b][2])
                if abs(found[a][0] - found[b][0]) > 20 * se and name not in hints:
                    hints.append(name)
    if not hints:
        return ""
    return f"the means of {_listed(hints)} differ by more than 20 standard errors between sources"


# --- repair -------------------------------------------------------------------------------------------------


def _repaired(pooled: Moments, sources: Sequence[Moments], weights: Sequence[Array], repair: str) -> Moments:
    keep = _nonredundant(pooled)
    usable = keep[~np.isnan(pooled.cov.diagonal()[keep])]
    problem = _why_infeasible(pooled, usable)
    if problem is None:
        return pooled
    if repair == "raise":
        raise InfeasibleMomentsError(f"{problem}; or merge with repair='shrink' or repair='ml'")
    if repair == "shrink":
        low, high = 0.0, 1.0
        while high - low > 1e-6:
            middle = (low + high) / 2
            low, high = (
                (low, middle) if _why_infeasible(_shrunk_pairs(pooled, middle), usable) is None else (middle, high)
            )
        return replace(_shrunk_pairs(pooled, high), repair_alpha=high)
    return _maximum_likelihood(pooled, sources, weights, usable)


def _why_infeasible(m: Moments, index: NDArray[np.intp]) -> str | None:
    """None if the known covariances have a positive semidefinite completion, else what is wrong.

    A tiny multiple of the identity is added: a singular but consistent matrix (more columns than rows) passes.
    """
    block = m.cov[np.ix_(index, index)].copy()
    block[np.diag_indices(len(block))] *= 1 + 1e-9
    try:
        complete_covariance(block, names=[m.names[i] for i in index], tol=1e-6)
    except InfeasibleMomentsError as error:
        return str(error)
    return None


def _shrunk_pairs(m: Moments, alpha: float) -> Moments:
    """Off-diagonal covariances times 1 - alpha; indicator blocks of one variable keep their exact values."""
    factor = np.full((m.p, m.p), 1 - alpha)
    np.fill_diagonal(factor, 1.0)
    for variable, kind in m.kinds.items():
        if kind == "categorical":
            own = m.coordinates(variable)
            factor[np.ix_(own, own)] = 1.0
    return replace(m, cov=_frozen(m.cov * factor))


def _lifted(R: Array, floor: float = 1e-6) -> Array:
    """The matrix with off-diagonals shrunk until the smallest eigenvalue of its correlations is at least ``floor``."""
    sd = np.sqrt(R.diagonal())
    smallest = float(np.linalg.eigvalsh(R / np.outer(sd, sd))[0])
    alpha = max(0.0, (floor - smallest) / (1.0 - smallest)) if smallest < 1.0 else 0.0
    return np.asarray((1 - alpha) * R + alpha * np.diag(R.diagonal()))


def _maximum_likelihood(
    pooled: Moments, sources: Sequence[Moments], weights: Sequence[Array], index: NDArray[np.intp]
) -> Moments:
    """Covariances that maximise sum_s n_s [-logdet Sigma_SS - tr(Sigma_SS^-1 S_s)], over Cholesky factors.

    Each source enters with its fully known blocks. Pairs that no source observes stay unknown.
    """
    scale = np.sqrt(pooled.cov.diagonal()[index])
    place = {pooled.names[j]: k for k, j in enumerate(index)}
    blocks = []
    for source, w in zip(sources, weights, strict=True):
        own = np.array([i for i, name in enumerate(source.names) if name in place])
        at = np.array([place[source.names[i]] for i in own])
        for clique in _cliques(source.known[np.ix_(own, own)])[0]:
            grid = np.ix_(own[clique], own[clique])
            spread = source.mean[own[clique]] - pooled.mean[index[at[clique]]]
            S = (source.cov[grid] + np.outer(spread, spread)) / np.outer(scale[at[clique]], scale[at[clique]])
            blocks.append((at[clique], S, float(w[grid].min())))
    total = sum(b[2] for b in blocks)
    p = len(index)
    lower = np.tril_indices(p)

    def objective(theta: Array) -> tuple[float, Array]:
        L = np.zeros((p, p))
        L[lower] = theta
        diagonal = np.exp(L.diagonal().copy())
        np.fill_diagonal(L, diagonal)
        sigma = L @ L.T
        value, G = 0.0, np.zeros((p, p))
        for at, S, n in blocks:
            grid = np.ix_(at, at)
            inverse = np.linalg.inv(sigma[grid])
            value += n / total * (np.linalg.slogdet(sigma[grid])[1] + float(np.vdot(inverse, S)))
            G[grid] += n / total * (inverse - inverse @ S @ inverse)
        gradient = 2.0 * G @ L
        gradient[np.diag_indices(p)] *= diagonal
        return value, gradient[lower]

    found = minimize(
        objective,
        np.zeros(len(lower[0])),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 5000, "ftol": 1e-14, "gtol": 1e-9},
    )
    L = np.zeros((p, p))
    L[lower] = found.x
    np.fill_diagonal(L, np.exp(L.diagonal().copy()))
    # The maximum may be singular: keep it as far from that as a fit needs to tell.
    sigma = _lifted(L @ L.T) * np.outer(scale, scale)
    cov = np.full_like(pooled.cov, np.nan)
    grid = np.ix_(index, index)
    cov[grid] = np.where(pooled.known[grid], sigma, np.nan)
    for j, name in enumerate(pooled.names):
        if pooled.kinds.get(name) == "binary":
            # a Bernoulli variance is fixed by its mean: rescale the coordinate
            factor = np.sqrt(pooled.cov[j, j] / cov[j, j])
            cov[j, :] *= factor
            cov[:, j] *= factor
            cov[j, j] = pooled.cov[j, j]
    if any(kind == "categorical" for kind in pooled.kinds.values()):
        raise CMaxEntError(
            "repair='ml' handles continuous and binary variables; use repair='shrink' with categorical ones"
        )
    return replace(pooled, cov=_frozen(cov))
