"""Finite-codebook complexity, solved exactly (arXiv:2502.04210, the universal finite-codebook computer).

A slot is a mechanism, or a part of one, that every environment fills with one of M codewords. A program says which k
codewords are used and by whom; its length plus the length of the data bounds their Kolmogorov complexity. Codewords
are chosen as sets: one that no environment takes is allowed, so that the bits of the data never grow with k.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, islice, product
from math import comb, factorial, log, log2, pi

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from .errors import DataError, LimitError

Array = NDArray[np.float64]
IntArray = NDArray[np.intp]

LN2 = log(2.0)
DIRECTIONS = ("X1->X2", "X2->X1")
FAMILIES = ("poisson", "geometric", "gaussian", "bernoulli")
MAX_SETS = 20_000_000  # sets of codewords, or pairs of such sets, that are enumerated
CHUNK = 1 << 20  # numbers in memory at once while enumerating


@dataclass(frozen=True)
class FCPoint:
    """The shortest program with a given number of codewords.

    k : codewords used; one number, or one for each slot. total_bits = nll_bits + penalty_bits.
    codewords : the values chosen in each slot. assignment : for each slot, the value that each environment takes.
    """

    k: int | tuple[int, int, int]
    nll_bits: float
    penalty_bits: float
    total_bits: float
    codewords: tuple[tuple[float, ...], ...]
    assignment: tuple[tuple[float, ...], ...]


def penalty_bits(n_envs: int, k: int, n_codewords: int, prefix: str = "doubling") -> float:
    """Bits of the choice of k of n_codewords codewords and of a map of n_envs environments onto them.

    l = log2 [C(M,k) · k! · S2(N,k) · k], S2 the Stirling numbers of the second kind, in exact integers.
    prefix="doubling" is the paper's self-delimiting 2l + 1; "ideal" is l, as if its length were known.
    Not monotone in k: N = 10, M = 20 gives more bits for k = 7 than for k = 10.
    """
    if not 1 <= k <= min(n_envs, n_codewords):
        raise DataError(
            f"k = {k} codewords cannot be used by {n_envs} environments out of {n_codewords} codewords: "
            f"k must lie in 1..{min(n_envs, n_codewords)}"
        )
    length = log2(comb(n_codewords, k) * factorial(k) * _stirling2(n_envs)[k] * k)
    if prefix == "ideal":
        return length
    if prefix == "doubling":
        return 2 * length + 1
    raise ValueError(f'prefix must be "doubling" or "ideal", not {prefix!r}')


@lru_cache(maxsize=64)
def _stirling2(n: int) -> tuple[int, ...]:
    row = [1]
    for m in range(1, n + 1):
        row = [0] + [row[k - 1] + k * row[k] for k in range(1, m)] + [1]
    return tuple(row)


# --------------------------------------------------------------------------------------- one slot
def select_codewords(cost: ArrayLike, k: int, method: str = "dp") -> tuple[float, tuple[int, ...], IntArray]:
    """The k columns of cost that serve all rows best, each row taking the cheapest: an exact k-median.

    Parameters
    ----------
    cost : (N, M) bits of environment e under codeword m; +inf allowed, NaN not.
    method : "dp" in O(M²(N+k)) needs the codewords sorted such that every row first falls, then rises, and checks it;
        "exhaustive" tries all C(M, k) sets.

    Returns
    -------
    total : bits, +inf if some environment has no codeword. chosen : k columns, ascending. assign : (N,) the column
    that each environment takes.
    """
    table = np.asarray(cost, float)
    if table.ndim != 2 or table.size == 0 or np.isnan(table).any():
        raise DataError(f"cost must be a table of environments by codewords without NaN, not of shape {table.shape}")
    if not 1 <= k <= table.shape[1]:
        raise DataError(f"k = {k} of {table.shape[1]} codewords: k must lie in 1..{table.shape[1]}")
    if method == "dp":
        chosen = _medians(table, k)
    elif method == "exhaustive":
        chosen = _medians_exhaustive(table, k)
    else:
        raise ValueError(f'method must be "dp" or "exhaustive", not {method!r}')
    columns = np.array(chosen)
    assign = columns[table[:, columns].argmin(1)]
    return float(table[np.arange(len(table)), assign].sum()), chosen, assign


def _medians(cost: Array, k: int) -> tuple[int, ...]:
    n_codewords = cost.shape[1]
    best = cost.argmin(1)
    for e, row in enumerate(cost):
        slack = 1e-9 * max(1.0, abs(row[best[e]]))  # rounding may leave ripples on a flat stretch
        falls = row[: best[e]] >= row[1 : best[e] + 1] - slack
        rises = row[best[e] + 1 :] >= row[best[e] : -1] - slack
        if not (falls.all() and rises.all()):
            raise DataError(
                f"the cost of environment {e} falls and rises more than once along the codewords: "
                'sort the codewords, or use method="exhaustive"'
            )
    # A row takes one of the two chosen columns around its own minimum: w[i, j] sums the rows with minimum in (i, j],
    # with nothing chosen between. Index 0 and M+1 stand for "no column on this side".
    padded = np.full((len(cost), n_codewords + 2), np.inf)
    padded[:, 1:-1] = cost
    w = np.zeros((n_codewords + 2, n_codewords + 2))
    for i, j in combinations(range(n_codewords + 2), 2):
        inside = (best + 1 > i) & (best + 1 <= j)
        w[i, j] = np.minimum(padded[inside, i], padded[inside, j]).sum()
    total = w[0]
    back = np.zeros((k, n_codewords + 2), int)
    upper = np.triu(np.ones_like(w, bool), 1)
    for step in range(k):
        total = np.where(np.arange(n_codewords + 2) <= step, np.inf, total)
        through = np.where(upper, total[:, None] + w, np.inf)
        through[[0, -1]] = np.inf  # the columns that do not exist cannot be chosen
        back[step] = through.argmin(0)
        if np.isinf(through.min(0)[-1]) and step == k - 1:
            return tuple(range(k))  # no set of k is possible
        total = through.min(0)
    chosen = [n_codewords + 1]
    for step in reversed(range(k)):
        chosen.append(int(back[step, chosen[-1]]))
    return tuple(c - 1 for c in reversed(chosen[1:]))


def _medians_exhaustive(cost: Array, k: int) -> tuple[int, ...]:
    _limit(comb(cost.shape[1], k), f"the sets of {k} out of {cost.shape[1]} codewords", 'use method="dp"')
    best, chosen = np.inf, tuple(range(k))
    for sets in _chunks(cost.shape[1], k, max(1, CHUNK // (k * len(cost)))):
        totals = cost[:, sets].min(2).sum(0)
        i = int(totals.argmin())
        if totals[i] < best:
            best, chosen = float(totals[i]), tuple(int(c) for c in sets[i])
    return chosen


def _chunks(n: int, k: int, size: int) -> Iterator[IntArray]:
    sets = combinations(range(n), k)
    while block := list(islice(sets, size)):
        yield np.array(block, np.intp)


def _limit(size: int, what: str, remedy: str) -> None:
    if size > MAX_SETS:
        raise LimitError(f"{what} are {size}, more than the {MAX_SETS} that are enumerated: {remedy}")


# ------------------------------------------------------------------------------ bivariate Gaussian
def paper_candidates(
    theta: ArrayLike, direction: str, M: int, margin: float = 0.1, include_truth: bool = True
) -> tuple[Array, Array, Array]:
    """The paper's codebooks: the values in theta and an even grid over their range widened by margin on both sides.

    Parameters
    ----------
    theta : (N, 3) variance of X1, variance of X2 given X1, slope of X2 on X1, in each environment.
    direction : "X1->X2", or "X2->X1" for the parameters of the same Gaussians written in the other direction.
    include_truth : False leaves the values of theta out of the grid; give estimates then (`estimate_bivariate`).

    Returns
    -------
    Ascending values of (variance of X1, variance of X2, slope), conditional variance for the effect. Variances are
    cut at 0, which no data can have. At most M values each, unless theta itself has more.
    """
    values = _theta(theta)
    if _is_backward(direction):
        values = _reversed(values)
    return (
        _grid(values[:, 0], M, margin, include_truth, low=0.0),
        _grid(values[:, 1], M, margin, include_truth, low=0.0),
        _grid(values[:, 2], M, margin, include_truth, low=-np.inf),
    )


def estimate_bivariate(X: ArrayLike) -> Array:
    """Maximum-likelihood (N, 3) parameters of X1 -> X2 with mean zero, in the order of `paper_candidates`."""
    s11, s12, s22 = _second_moments(_bivariate(X)) / _bivariate(X).shape[1]
    return np.stack([s11, s22 - s12**2 / s11, s12 / s11], 1)


def bivariate_gaussian(
    X: ArrayLike,
    candidates: Sequence[ArrayLike],
    direction: str,
    k_max: int | None = None,
    assign: str = "ml",
) -> list[FCPoint]:
    """The shortest program for every (k1, k2, k3) of codewords for the two variances and the slope.

    The variance of the cause stands alone in the likelihood; the variance of the effect and the slope are coupled by
    its residual, and all pairs of sets of them are compared. The environment labels are not in the bits.

    Parameters
    ----------
    X : (N, n, 2), mean zero, the same number of rows in every environment.
    candidates : variances of X1, variances of X2, slopes, those of `direction` (`paper_candidates`).
    k_max : most codewords in the three slots together; by default all that N and the codebooks allow.
    assign : "ml" minimises the bits of the data. "kl" is the rule of the authors' scripts: sets and assignment
        minimise the divergence of the sample covariance (centred, ddof 1); the bits are those of that choice, never
        fewer than with "ml".
    """
    x = _bivariate(X)
    n_envs, n, _ = x.shape
    if assign not in ("ml", "kl"):
        raise ValueError(f'assign must be "ml" or "kl", not {assign!r}')
    if len(candidates) != 3:
        raise DataError(f"three codebooks are needed (variance of X1, variance of X2, slope), not {len(candidates)}")
    books = [np.unique(np.asarray(c, float)) for c in candidates]
    for book, name in zip(books, ("variances of X1", "variances of X2", "slopes"), strict=True):
        if book.size == 0 or not np.isfinite(book).all() or (name != "slopes" and book[0] < 0):
            raise DataError(f"the codebook of {name} must hold finite numbers, and no negative variance")
    backward = _is_backward(direction)
    cause, effect = (1, 0) if backward else (0, 1)

    bits_cause, bits_effect = _gaussian_bits(_second_moments(x), n, backward, books)
    if assign == "ml":
        rule_cause, rule_effect = bits_cause, bits_effect
    else:
        sample = _second_moments(x - x.mean(1, keepdims=True)) / (n - 1) * n
        rule_cause, rule_effect = _gaussian_bits(sample, n, backward, books)

    most = [min(n_envs, len(b)) for b in books]
    rows = np.arange(n_envs)
    alone, coupled = {}, {}
    for i in range(1, most[cause] + 1):
        _, chosen, taken = select_codewords(rule_cause, i)
        alone[i] = bits_cause[rows, taken].sum(), (list(chosen), taken)
    for j, q in product(range(1, most[effect] + 1), range(1, most[2] + 1)):
        if k_max is None or j + q < k_max:
            second, third = _select_pairs(rule_effect, j, q)
            coupled[j, q] = bits_effect[rows, second[1], third[1]].sum(), second, third

    points = []
    for (i, (bits, first)), ((j, q), (more_bits, second, third)) in product(alone.items(), coupled.items()):
        k = (j, i, q) if backward else (i, j, q)
        if k_max is not None and sum(k) > k_max:
            continue
        slots = (second, first, third) if backward else (first, second, third)
        nll = float(bits + more_bits)
        penalty = sum(penalty_bits(n_envs, m, len(book)) for m, book in zip(k, books, strict=True))
        words = tuple(tuple(book[chosen].tolist()) for book, (chosen, _) in zip(books, slots, strict=True))
        assigned = tuple(tuple(book[taken].tolist()) for book, (_, taken) in zip(books, slots, strict=True))
        points.append(FCPoint(k, nll, penalty, nll + penalty, words, assigned))
    return sorted(points, key=lambda point: point.k)


def _gaussian_bits(moments: Array, n: int, backward: bool, books: list[Array]) -> tuple[Array, Array]:
    # (N, M1) for the cause and (N, M2, M3) for the effect given the cause; moments are sums over the n rows.
    s11, s12, s22 = moments[::-1] if backward else moments
    var1, var2, slope = (books[1], books[0], books[2]) if backward else books
    residual = s22[:, None] - 2 * slope * s12[:, None] + slope**2 * s11[:, None]
    return _normal_bits(s11[:, None], var1, n), _normal_bits(residual[:, None, :], var2[:, None], n)


def _normal_bits(squares: Array, variance: Array, n: int) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = n / 2 * np.log2(2 * pi * variance) + squares / (2 * variance * LN2)
    return np.where(variance > 0, bits, np.inf)


def _select_pairs(cost: Array, k: int, q: int) -> tuple[tuple[IntArray, IntArray], tuple[IntArray, IntArray]]:
    # The sets A of k rows and B of q columns that minimise Σ_e min_{a∈A, b∈B} cost[e, a, b], each with what e takes.
    n_envs, m, p = cost.shape
    _limit(comb(m, k) * comb(p, q), f"the pairs of {k} of {m} variances with {q} of {p} slopes", "lower k_max or M")
    columns = np.array(list(combinations(range(p), q)), np.intp)
    best, chosen = np.inf, (np.arange(k), np.arange(q))
    for rows in _chunks(m, k, max(1, CHUNK // (n_envs * max(columns.size, k * p)))):
        reduced = cost[:, rows].min(2)  # (N, sets, p)
        totals = reduced[:, :, columns].min(3).sum(0)
        i, j = np.unravel_index(int(totals.argmin()), totals.shape)
        if totals[i, j] < best:
            best, chosen = totals[i, j], (rows[i], columns[j])
    a, b = chosen
    flat = cost[:, a][:, :, b].reshape(n_envs, -1).argmin(1)
    return (a, a[flat // q]), (b, b[flat % q])


def _second_moments(x: Array) -> Array:
    return np.stack([(x[..., 0] ** 2).sum(1), (x[..., 0] * x[..., 1]).sum(1), (x[..., 1] ** 2).sum(1)])


def _grid(values: Array, M: int, margin: float, include_truth: bool, low: float) -> Array:
    wide = margin * (values.max() - values.min())
    first, last = max(values.min() - wide, low), values.max() + wide
    book = np.unique(values) if include_truth else np.empty(0)
    for _ in range(2):  # the second time fills up for values that fell on others
        book = np.unique(np.concatenate([book, np.linspace(first, last, max(0, M - len(book)))]))
    return book


def _reversed(theta: Array) -> Array:
    var1, var2, slope = theta.T
    tau2 = var1 * slope**2 + var2
    back = var1 * slope / tau2
    return np.stack([var1 - tau2 * back**2, tau2, back], 1)


def _is_backward(direction: str) -> bool:
    if direction not in DIRECTIONS:
        raise ValueError(f'direction must be "X1->X2" or "X2->X1", not {direction!r}')
    return direction == "X2->X1"


def _theta(theta: ArrayLike) -> Array:
    values = np.asarray(theta, float)
    if values.ndim != 2 or values.shape[1] != 3 or not np.isfinite(values).all() or (values[:, :2] <= 0).any():
        raise DataError(f"theta must be (N, 3): two positive variances and a slope a row, not of shape {values.shape}")
    return values


def _bivariate(X: ArrayLike) -> Array:
    x = np.asarray(X, float)
    if x.ndim != 3 or x.shape[2] != 2 or x.shape[1] < 2 or not np.isfinite(x).all():
        raise DataError(f"X must be (environments, rows, 2) finite numbers with two rows or more, not {x.shape}")
    return x


# --------------------------------------------------------------------------------- covariate shift
def covariate_shift(
    X1: ArrayLike,
    env: ArrayLike,
    family: str,
    codebook: ArrayLike,
    k_max: int | None = None,
    n_symbols: int | None = None,
    n_codewords: int | None = None,
) -> list[FCPoint]:
    """The shortest program for k = 1..k_max distributions of X1 over the environments, by exact k-median.

    Parameters
    ----------
    X1 : (n,) integers in 0..n_symbols-1. env : (n,) labels.
    family : see `log2_pmf`. codebook : parameters of the codewords, ascending.
    n_symbols : M; by default one less than the codebook has values, as in the paper's j/(M+2), j = 1..M+1.
    n_codewords : the number of codewords that the penalty counts; by default M, as in the authors' scripts.

    The bits of X2 given X1 and of the labels are the same for every program and left out.
    """
    book = np.asarray(codebook, float)
    if book.ndim != 1 or book.size < 2 or (np.diff(book) <= 0).any():
        raise DataError("codebook must be ascending parameters, two or more")
    M = len(book) - 1 if n_symbols is None else n_symbols
    values, labels = np.asarray(X1), np.asarray(env)
    if values.shape != labels.shape or values.ndim != 1:
        raise DataError(f"X1 and env must be vectors of one length, not of shapes {values.shape} and {labels.shape}")
    if values.size == 0 or (values != values.astype(int)).any() or values.min() < 0 or values.max() >= M:
        raise DataError(f"X1 must hold integers from 0 to {M - 1}")
    groups, index = np.unique(labels, return_inverse=True)
    counts = np.zeros((len(groups), M))
    np.add.at(counts, (index, values.astype(int)), 1)
    log_p = log2_pmf(family, book, M)
    cost = np.array([-log_p[:, c > 0] @ c[c > 0] for c in counts])  # 0·log 0 = 0

    offered = min(len(book), M if n_codewords is None else n_codewords)
    points = []
    for k in range(1, min(len(groups), offered, k_max or offered) + 1):
        nll, chosen, taken = select_codewords(cost, k)
        penalty = penalty_bits(len(groups), k, offered)
        words, assigned = tuple(book[list(chosen)].tolist()), tuple(book[taken].tolist())
        points.append(FCPoint(k, nll, penalty, nll + penalty, (words,), (assigned,)))
    return points


def log2_pmf(family: str, theta: ArrayLike, M: int) -> Array:
    """(K, M) log2 probabilities of 0..M-1 for K parameters in (0, 1); M-1 takes the tail above it.

    "poisson" has rate θ(M+2), "geometric" P(x) = θ(1-θ)^x, "gaussian" is N(θ(M+2), 1) rounded (0 takes the tail
    below), "bernoulli" has P(1) = θ.
    """
    t = np.asarray(theta, float)[:, None]
    if (t <= 0).any() or (t >= 1).any():
        raise DataError("parameters of the codewords must lie strictly between 0 and 1")
    x = np.arange(M)
    if family == "poisson":
        inner, tail = stats.poisson.logpmf(x, t * (M + 2)), stats.poisson.logsf(M - 2, t * (M + 2))
    elif family == "geometric":
        inner, tail = x * np.log1p(-t) + np.log(t), (M - 1) * np.log1p(-t)
    elif family == "gaussian":
        # Intervals above the mean through the other tail: a difference of values near one loses all digits.
        low, high = x - 0.5 - t * (M + 2), x + 0.5 - t * (M + 2)
        low[:, 0] = -np.inf
        flip = low > 0
        a, b = np.where(flip, -high, low), np.where(flip, -low, high)
        log_a, log_b = stats.norm.logcdf(a), stats.norm.logcdf(b)
        inner, tail = log_b + np.log1p(-np.exp(log_a - log_b)), stats.norm.logsf(low[:, -1:])
    elif family == "bernoulli":
        inner, tail = np.full((len(t), M), -np.inf), np.full((len(t), 1), -np.inf)
        inner[:, :2] = np.concatenate([np.log1p(-t), np.log(t)], 1)[:, :M]
        tail = inner[:, -1:]
    else:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, not {family!r}")
    out: Array = np.concatenate([inner[:, :-1], np.broadcast_to(tail, (len(t), 1))], 1) / LN2
    return out
