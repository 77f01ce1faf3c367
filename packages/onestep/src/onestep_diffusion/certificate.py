"""Lower bounds on divergences from any log-ratio estimate and held-out samples, with confidence (spec: NWJ, C2ST).

A bound at noise level sigma is a bound at all smaller levels, sigma = 0 included, since noise cannot increase an
f-divergence. Use samples that trained neither the ratio nor the student.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from scipy.stats import hypergeom, rankdata

from .errors import ConfigError, DataError

Array = NDArray[np.float64]

_BLOCK = 1 << 20  # numbers that a block of bootstrap samples may hold


@dataclass(frozen=True)
class Certificate:
    """What the log ratios of held-out samples prove.

    js_lower, kl_lower, rkl_lower: numbers (nats) that JS, KL(data||student) and KL(student||data) exceed with
        probability `level` each; negative ones say nothing.
    js_interval: two-sided bootstrap interval of the population's bound log 2 - L/2; js is its estimate.
    auc: probability that a data sample has the larger log ratio.
    accuracy: of the rule l > 0, both classes weighing 1/2.
    p_value: of the two-sample test by that accuracy, exact, one-sided; uniform where student = data.
    ece: expected calibration error of sigmoid(l) in ten bins.
    """

    js_lower: float
    js_interval: tuple[float, float]
    kl_lower: float
    rkl_lower: float
    auc: float
    accuracy: float
    p_value: float
    ece: float
    js: float


def certify(
    log_r_data: ArrayLike, log_r_student: ArrayLike, *, level: float = 0.95, n_boot: int = 1000, seed: int = 0
) -> Certificate:
    """Certificate from log ratios (nats) at held-out data (n,) and student samples (m,), noised to one level.

    For any function l, JS >= log 2 - L/2 with the logistic loss L, and KL(p||q) >= E_p[l] - E_q[e^l] + 1 (Nguyen,
    Wainwright and Jordan), so also with -l and p, q exchanged. Confidence is by the studentised bootstrap. Means of
    e^l are heavy-tailed: where few large values carry them, clip l first, as the bounds hold for the clipped function.

    The p-value conditions on how many samples the rule calls data (the number right is then hypergeometric), so it is
    exact for unequal sample sizes and whatever share is called data; the binomial test is so only for even shares.

    Raises DataError for fewer than two samples or values that are not finite, ConfigError for level or n_boot.
    """
    d, s = (np.asarray(v, float) for v in (log_r_data, log_r_student))
    for name, v in (("log_r_data", d), ("log_r_student", s)):
        if v.ndim != 1 or len(v) < 2 or not np.isfinite(v).all():
            raise DataError(f"{name} has to be a vector of at least two finite numbers; got shape {v.shape}")
    if not 0 < level < 1 or n_boot < 1:
        raise ConfigError(f"level={level} has to lie between 0 and 1, and n_boot={n_boot} to be positive")

    # Each column's mean over data plus its mean over student samples, plus a constant, is one bound.
    with np.errstate(over="ignore"):
        of_data = np.stack([-np.logaddexp(0, -d) / 2, d, -np.exp(-d)], 1)
        of_student = np.stack([-np.logaddexp(0, s) / 2, -np.exp(s), -s], 1)
    constants = np.array([math.log(2), 1.0, 1.0])
    with np.errstate(over="ignore", invalid="ignore"):  # of means of e^l that are no numbers any more
        estimate, error = _estimate(of_data, of_student)
        # Studentised: bounds = estimate - quantile of (replicate - estimate) / its own error.
        t = _studentised_replicates(of_data, of_student, estimate, n_boot, np.random.default_rng(seed))
        lower = constants + estimate - np.quantile(t, level, axis=0) * error
    lower = lower - 1e-12  # rounding proves nothing
    lower = np.where(np.isfinite(lower), lower, -np.inf)  # such a bound says nothing
    tails = np.quantile(t[:, 0], [(1 + level) / 2, (1 - level) / 2])
    js = float(constants[0] + estimate[0])

    said_data, said_student = d > 0, s > 0
    return Certificate(
        js_lower=float(lower[0]),
        js_interval=(float(js - tails[0] * error[0]), float(js - tails[1] * error[0])),
        kl_lower=float(lower[1]),
        rkl_lower=float(lower[2]),
        auc=_auc(d, s),
        accuracy=float((said_data.mean() + (~said_student).mean()) / 2),
        p_value=_two_sample_p(said_data, said_student),
        ece=_calibration_error(d, s),
        js=js,
    )


def reliability(log_r_data: ArrayLike, log_r_student: ArrayLike, bins: int = 10) -> tuple[Array, Array, Array]:
    """(predicted, observed, mass), each (bins,), of P(data | x) = sigmoid(l) in bins of equal width.

    Both classes weigh 1/2 whatever their sizes. Empty bins have mass 0 and nan. A calibrated ratio has
    predicted = observed.
    """
    d, s = (np.asarray(v, float) for v in (log_r_data, log_r_student))
    probability = expit(np.concatenate([d, s]))
    weight = np.concatenate([np.full(len(d), 0.5 / len(d)), np.full(len(s), 0.5 / len(s))])
    index = np.minimum((probability * bins).astype(int), bins - 1)
    mass: Array = np.bincount(index, weight, bins).astype(float)
    with np.errstate(invalid="ignore"):
        predicted = np.bincount(index, weight * probability, bins) / mass
        observed = np.bincount(index[: len(d)], weight[: len(d)], bins) / mass
    return predicted, observed, mass


def _estimate(of_data: Array, of_student: Array) -> tuple[Array, Array]:
    """Sum of the two means and its standard error; the samples run along the last axis but one."""
    n, m = of_data.shape[-2], of_student.shape[-2]
    variance = of_data.var(-2, ddof=1) / n + of_student.var(-2, ddof=1) / m
    return of_data.mean(-2) + of_student.mean(-2), np.sqrt(variance)


def _studentised_replicates(
    of_data: Array, of_student: Array, estimate: Array, n_boot: int, rng: np.random.Generator
) -> Array:
    """(n_boot, columns) of (replicate - estimate) / error of the replicate."""
    n, m = len(of_data), len(of_student)
    block = max(1, _BLOCK // (3 * max(n, m)))
    out = []
    for start in range(0, n_boot, block):
        size = min(block, n_boot - start)
        mean, error = _estimate(of_data[rng.integers(n, size=(size, n))], of_student[rng.integers(m, size=(size, m))])
        shift = mean - estimate
        # A constant column, such as that of an untrained ratio, has neither shift nor error.
        out.append(np.divide(shift, error, out=np.zeros_like(shift), where=error > 0))
    return np.concatenate(out)


def _auc(d: Array, s: Array) -> float:
    """Mann-Whitney's statistic over n m, ties counting one half."""
    rank = rankdata(np.concatenate([d, s]))[: len(d)].sum()
    return float((rank - len(d) * (len(d) + 1) / 2) / (len(d) * len(s)))


def _two_sample_p(said_data: NDArray[np.bool_], said_student: NDArray[np.bool_]) -> float:
    """P(as many or more of the data among those called data), given how many are called so (Fisher, one-sided)."""
    n, m = len(said_data), len(said_student)
    hits, called = int(said_data.sum()), int(said_data.sum() + said_student.sum())
    return float(hypergeom.sf(hits - 1, n + m, n, called))


def _calibration_error(d: Array, s: Array) -> float:
    predicted, observed, mass = reliability(d, s)
    seen = mass > 0
    return float(mass[seen] @ np.abs(predicted - observed)[seen])
