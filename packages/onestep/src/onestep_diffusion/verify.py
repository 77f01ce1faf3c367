"""The ratio as verifier: student samples, weighted by exp(log ratio), stand for the data (arXiv:2502.08005 v5).

The ratio network of training was fitted to a student that moved, and is overconfident at low noise: `refit_ratio`
fits it to the student as it is, before `resample` may rely on it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from . import nets
from .config import TeacherConfig
from .data import Dataset, make_dataset
from .denoiser import Generator, Ratio, denoise, log_ratio
from .errors import ConfigError, DataError
from .generator import per_sample
from .loop import Pools, calls
from .noise import LogNormal, check_sigma
from .update import Draws, Optimisation, Tree, compile_update, init_state, knobs_for, single_update

METHODS = ("sir", "rejection", "best_of")
VERIFIER_LEVELS = (0.1, 0.2, 0.3, 0.5, 0.8, 1.2)  # candidates for sigma_v
VERIFIER_GROUP = 8  # candidates a sample in the choice among them
NOISE_DRAWS = 8
TRUSTED = 0.75  # of a group: levels at which the effective sample size is smaller are where the ratio overrates itself
REFIT_KEY = 103  # other draws than those of training and sampling by the same seed


def refit_ratio(
    generator: Generator,
    ratio: Ratio | None,
    data: Dataset | ArrayLike,
    *,
    steps: int = 3000,
    lr: float = 1e-3,
    batch_size: int = 128,
    levels: Sequence[float] = VERIFIER_LEVELS,
    seed: int = 0,
) -> Ratio:
    """The ratio of this generator, calibrated, with its level sigma_v: what `resample` may rely on.

    The network goes on from `ratio` (None: from zero) with AdamW (weight decay 0.01, cosine) on training rows and
    fresh samples, and its average of weights (.998 a step) is kept. On held-out rows, for each level, a temperature of
    at least one is fitted; sigma_v is the level whose resampling, by eights, takes most from the bound on JS, among
    those at which the effective sample size is at least six of eight: the bound is the ratio's own, and does not see
    where it overrates itself.

    Args:
        data: a `Dataset`, whose training rows the student saw; of one without held-out rows, and of an array, a fifth
            is set aside.
        batch_size: of data and of student samples. levels: candidates for sigma_v.

    Warns if no level takes anything from the bound. Raises DataError for fewer than 20 held-out rows.
    """
    if not isinstance(data, Dataset):
        data = make_dataset(data, held_out=0.2, seed=seed)
    elif len(data.held_out) == 0:
        data = make_dataset(data.x, data.labels, name=data.name, held_out=0.2, seed=seed)
    data = replace(data, shift=generator.shift, scale=generator.scale, sigma_data=generator.sigma_data)
    if len(generator.net.shape) == 1:
        data = data.flatten()
    if len(data.held_out) < 20:
        raise DataError(f"{data.name}: at least 20 held-out rows are needed to calibrate; got {len(data.held_out)}")
    fitted = _fit_ratio(generator, ratio, data, steps, lr, batch_size, seed)
    return _calibrate(generator, fitted, data, levels, seed)


def verifier_log_ratio(
    ratio: Ratio,
    x: ArrayLike,
    *,
    sigma: float | None = None,
    labels: ArrayLike | None = None,
    draws: int = NOISE_DRAWS,
    batch: int = 1024,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Log ratios (n,) of samples x in data units: means over `draws` noises of level sigma (None: sigma_v).

    Raises DataError for samples of another shape, ConfigError for sigma, draws, or labels that do not fit.
    """
    sigma = ratio.sigma_v if sigma is None else sigma
    check_sigma(sigma)
    if draws < 1 or batch < 1:
        raise ConfigError(f"draws={draws} and batch={batch} have to be at least 1")
    graphdef, params = nets.split(ratio.net)
    rows = np.asarray(x)
    if rows.shape[1:] != ratio.net.shape or len(rows) == 0:
        wanted = ", ".join(map(str, ratio.net.shape))
        raise DataError(f"samples have to be (n, {wanted}) with n > 0; got {rows.shape}")
    if labels is None and ratio.net.labels:
        raise ConfigError(f"this ratio has {ratio.net.labels} classes: labels are needed, one a sample")
    y = ratio.draw_labels(len(rows), labels=None if labels is None else np.asarray(labels))
    out = []
    for start in range(0, len(rows), batch):
        # Pieces of one size, so that they compile once.
        index = np.minimum(np.arange(start, start + min(batch, len(rows))), len(rows) - 1)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), start), draws)
        part = None if y is None else jnp.asarray(y[index])
        clean = ratio.to_model(rows[index])
        out.append(_mean_log_ratio(graphdef, ratio.sigma_data, ratio.output, params, clean, sigma, part, keys))
    found: NDArray[np.float64] = np.concatenate(out)[: len(rows)].astype(float) / ratio.temperature
    return found


def resample(
    log_ratio: ArrayLike,
    *,
    method: str = "sir",
    group: int | None = None,
    n_out: int | None = None,
    temperature: float = 1.0,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Choose among m candidates by their log ratios log p_data - log p_student.

    Args:
        log_ratio: (m,) nats; -inf is never chosen.
        method: `sir`, sampling-importance-resampling: a draw with probability proportional to exp(l / temperature);
            tends to the data's law as the group grows, if the ratio is right.
            `rejection`: keep candidate i with probability exp((l_i - running maximum) / temperature); later
            candidates are cleaner, as a new one exceeds the maximum of i others with probability 1/(i + 1).
            `best_of`: the largest ratio. Biased: it contracts to the mode of the ratio as the group grows.
        group: N candidates compete for one place; m has to be a multiple of N. None: all m are one pool.
        n_out: of a pool, how many to take: `sir` draws that many with replacement (default m), `best_of` takes the
            best so many (default 1), `rejection` stops there (default: all accepted; there may be fewer).
        temperature: > 0; large values make the choice uniform, small ones greedy.

    Returns:
        With a group, m // N indices, the j-th within [j N, (j + 1) N); else indices into the pool, for `rejection`
        in the order of the candidates.

    Warns if the mean effective sample size of `sir` is below a quarter of the group: the ratio is too peaked to trust.
    Raises ConfigError for illegal settings and DataError for log ratios that are not numbers or leave no candidate.
    """
    logits = _logits(log_ratio, temperature, group)
    if method not in METHODS:
        raise ConfigError(f"resampling method {method!r} is not one of {', '.join(METHODS)}")
    if n_out is not None and (n_out < 1 or group is not None):
        raise ConfigError(f"n_out={n_out} has to be positive, and is given only without a group")
    if method == "rejection" and group is not None:
        raise ConfigError(f"rejection works on one pool; leave out group={group}")
    rng = np.random.default_rng(seed)
    pool = logits.ravel()
    if method == "rejection":
        accepted = np.log1p(-rng.random(pool.size)) <= pool - np.maximum.accumulate(pool)
        return np.flatnonzero(accepted)[:n_out]
    if method == "best_of":
        if group is None:
            return np.argsort(-pool, kind="stable")[: n_out or 1]
        return logits.argmax(1) + np.arange(len(logits)) * group
    ess = _ess(logits)
    if ess.mean() < logits.shape[1] / 4:
        warnings.warn(
            f"effective sample size {ess.mean():.2g} of {logits.shape[1]} candidates: the log ratio is too peaked; "
            "raise sigma_v or the temperature, or refit the ratio",
            stacklevel=2,
        )
    if group is None:
        probability = np.exp(pool - pool.max())
        return rng.choice(pool.size, size=n_out or pool.size, p=probability / probability.sum())
    # Gumbel's trick: the place of the largest l + noise is a draw from softmax(l).
    return (logits + rng.gumbel(size=logits.shape)).argmax(1) + np.arange(len(logits)) * group


def importance_ess(log_ratio: ArrayLike, *, group: int | None = None, temperature: float = 1.0) -> NDArray[np.float64]:
    """(sum w)^2 / sum w^2 of w = exp(l / temperature), one value a group, from 1 to N; one without a group."""
    return _ess(_logits(log_ratio, temperature, group))


def _ess(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    w = np.exp(logits - logits.max(1, keepdims=True))
    ess: NDArray[np.float64] = w.sum(1) ** 2 / (w**2).sum(1)
    return ess


def _logits(log_ratio: ArrayLike, temperature: float, group: int | None) -> NDArray[np.float64]:
    """(groups, N) log weights, checked."""
    l = np.asarray(log_ratio, float)
    if l.ndim != 1 or l.size == 0 or np.isnan(l).any() or np.isposinf(l).any():
        raise DataError(f"log_ratio has to be (m,) numbers below infinity, m > 0; got shape {l.shape} or such an entry")
    if not temperature > 0:
        raise ConfigError(f"temperature has to be positive; got {temperature}")
    if group is not None and (not isinstance(group, int | np.integer) or group < 1 or l.size % group):
        raise ConfigError(f"the number of candidates, {l.size}, has to be a multiple of the integer group={group!r}")
    logits = l.reshape(-1, group or l.size) / temperature
    if np.isneginf(logits).all(1).any():
        raise DataError("a group has only candidates with log ratio -inf")
    return logits


@partial(jax.jit, static_argnums=(0, 1, 2))
def _mean_log_ratio(
    graphdef: object,
    sigma_data: float,
    output: str,
    params: Tree,
    x: Array,
    sigma: Array,
    labels: Array | None,
    keys: Array,
) -> Array:
    net = nets.merge(graphdef, params)

    def one(key: Array) -> Array:
        noised = x + sigma * jax.random.normal(key, x.shape)
        return log_ratio(net, noised, sigma, labels, sigma_data=sigma_data, output=output)

    return jax.lax.map(one, keys).mean(0)


def _fit_ratio(
    generator: Generator, ratio: Ratio | None, data: Dataset, steps: int, lr: float, batch_size: int, seed: int
) -> Ratio:
    if ratio is None:
        head = generator.net.ratio_head(rngs=nnx.Rngs(seed))
        same = {name: getattr(generator, name) for name in ("sigma_data", "shift", "scale", "label_probs")}
        ratio = Ratio(net=head, **same)
    graphdef, params = nets.split(ratio.net)
    student_graphdef, frozen = nets.split(generator.net)
    sigma_init, sigma_data, output = generator.sigma_init, ratio.sigma_data, ratio.output

    def loss(params: Tree, frozen: Tree, draws: Draws, step: Array) -> Array:
        net, student_net = nets.merge(graphdef, params), nets.merge(student_graphdef, frozen)
        student = denoise(
            student_net, sigma_init * draws.latent, sigma_init, draws.student_labels, sigma_data=sigma_data
        )
        sigma = per_sample(draws.sigma, student)
        log_r_data, log_r_student = (
            log_ratio(net, x + sigma * noise, draws.sigma, labels, sigma_data=sigma_data, output=output)
            for x, noise, labels in (
                (draws.data, draws.noise_data, draws.data_labels),
                (student, draws.noise_student, draws.student_labels),
            )
        )
        return jax.nn.softplus(-log_r_data) + jax.nn.softplus(log_r_student)

    halflife = batch_size * math.log(0.5) / math.log(0.998)
    how = Optimisation(batch_size, None, steps, 100, "cosine", halflife, 0.0, b1=0.9, weight_decay=0.01)
    cfg = TeacherConfig(steps=steps, batch_size=batch_size)
    pools = Pools(data if generator.net.labels else data.without_labels(), seed, cfg)
    run = compile_update(single_update(loss, LogNormal(), how))
    state = init_state(jax.random.fold_in(jax.random.key(seed), REFIT_KEY), params, (), how, knobs_for(params, lr))
    for step, length in calls(0, cfg, params):
        state, _ = run(state, pools.at(step), frozen, length=length)
    return ratio.with_params(state.ema)


def _calibrate(generator: Generator, ratio: Ratio, data: Dataset, levels: Sequence[float], seed: int) -> Ratio:
    n = len(data.held_out)
    count = VERIFIER_GROUP * min(n, 1000)
    labels = data.held_out_labels if generator.net.labels else None
    # Samples for the temperature, and others, VERIFIER_GROUP times as many, for the choice of the level.
    drawn = [generator.draw_labels(size, seed + place) for place, size in ((1, n), (2, count))]
    samples = [
        generator.sample(size, seed + place, y) for (place, size), y in zip(((1, n), (2, count)), drawn, strict=True)
    ]
    plain = replace(ratio, temperature=1.0)

    def at_levels(x: ArrayLike, y: ArrayLike | None, seed: int) -> NDArray[np.float64]:
        values = [verifier_log_ratio(plain, x, sigma=sigma, labels=y, seed=seed) for sigma in levels]
        return np.stack(values, axis=1)

    of_data, of_student = at_levels(data.held_out, labels, seed), at_levels(samples[0], drawn[0], seed + 1)
    of_candidates = at_levels(samples[1], drawn[1], seed + 2)
    judged = at_levels(samples[1], drawn[1], seed + 3)  # with other noise than what the choice is made by
    before = _js_bound(of_data, judged[::VERIFIER_GROUP])
    gains, temperatures, trusted = [], [], []
    for place in range(len(levels)):
        temperature = _temperature(of_data[:, place], of_student[:, place])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a small effective sample size, which the caller will see again
            kept = resample(of_candidates[:, place], group=VERIFIER_GROUP, temperature=temperature, seed=seed)
        gains.append(before - _js_bound(of_data, judged[kept]))
        temperatures.append(temperature)
        ess = importance_ess(of_candidates[:, place], group=VERIFIER_GROUP, temperature=temperature).mean()
        trusted.append(ess >= TRUSTED * VERIFIER_GROUP)
    if not any(trusted):
        trusted[int(np.argmax(levels))] = True  # the least peaked
    best = max((place for place in range(len(levels)) if trusted[place]), key=gains.__getitem__)
    if gains[best] <= 0:
        warnings.warn("resampling brings the student no nearer to held-out data at any level", stacklevel=3)
    return replace(ratio, temperature=temperatures[best], sigma_v=float(levels[best]))


def _temperature(of_data: NDArray[np.float64], of_student: NDArray[np.float64]) -> float:
    """T >= 1 that minimises the logistic loss of l / T: a ratio overrates itself, and is never sharpened."""

    def loss(log_t: float) -> float:
        scale = math.exp(-log_t)
        return float(np.logaddexp(0, -of_data * scale).mean() + np.logaddexp(0, of_student * scale).mean())

    return math.exp(minimize_scalar(loss, bounds=(0.0, math.log(20)), method="bounded").x)


def _js_bound(of_data: NDArray[np.float64], of_student: NDArray[np.float64]) -> float:
    """log 2 - L/2 of a logistic regression on the log ratios at all levels, cross-validated.

    Unlike the bound of the ratio itself it also sees a student that was resampled too far.
    """
    x = np.concatenate([of_data, of_student])
    y = np.repeat([1, 0], [len(of_data), len(of_student)])
    order = np.random.default_rng(0).permutation(len(x))
    classifier = LogisticRegression(class_weight="balanced", C=1.0, max_iter=500)
    log_p = np.empty((len(x), 2))
    log_p[order] = cross_val_predict(classifier, x[order], y[order], cv=5, method="predict_log_proba")
    loss = -(log_p[y == 1, 1].mean() + log_p[y == 0, 0].mean())
    return math.log(2) - loss / 2
