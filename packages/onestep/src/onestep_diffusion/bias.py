"""The bias of estimated gradients, measured against the exact one: a mixture of Gaussians and perturbed copies of it.

A student that nears its data has a small true gradient, the difference of two scores. Networks that estimate the two
scores apart keep their own errors, so the relative error grows without bound; a network that estimates the ratio
learns the difference itself (arXiv:2502.08005, v4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array

from . import nets
from .denoiser import denoise, log_ratio
from .errors import ConfigError
from .generator import Field, hybrid_field, hybrid_mix, per_sample, score_difference_target
from .noise import LogNormal, check_sigma
from .oracle import GaussianMixture
from .pictures import figure, save_figure
from .ratio import ratio_loss
from .score import denoising_loss
from .toy import mixture

Table = list[dict[str, Any]]
Tree = Any

DELTAS = (1.0, 0.3, 0.1, 0.03)
SIGMAS = (0.03, 0.1, 0.3, 1.0, 3.0)
ESTIMATORS = ("independent_scores", "scores_from_teacher", "ratio", "hybrid", "hybrid_from_samples")
LAW = LogNormal()
FINE_TUNING = 0.1  # the teacher's rate would undo its last, annealed steps


class Law(NamedTuple):
    """A Gaussian mixture as arrays, which may have a leading axis of runs."""

    weights: Array
    means: Array
    scales: Array

    def mixture(self) -> GaussianMixture:
        """The mixture of one run."""
        return GaussianMixture(*self)


def perturbed(gm: GaussianMixture, delta: float, key: Array) -> GaussianMixture:
    """A student at distance about delta from the mixture: means + .3 delta N, weights softmax(1.5 delta N).

    All standard deviations are (1 + delta) times the mixture's. delta >= 0.
    """
    if not delta >= 0:
        raise ConfigError(f"delta has to be zero or more; got {delta}")
    of_means, of_weights = jax.random.split(key)
    means = gm.means + 0.3 * delta * jax.random.normal(of_means, gm.means.shape)
    weights = jax.nn.softmax(jnp.log(gm.weights) + 1.5 * delta * jax.random.normal(of_weights, gm.weights.shape))
    return GaussianMixture(weights, means, (1 + delta) * gm.scales)


def gradient_bias(
    data: GaussianMixture | None = None,
    deltas: Sequence[float] = DELTAS,
    sigmas: Sequence[float] = SIGMAS,
    *,
    seeds: Sequence[int] = (0,),
    steps: int = 3000,
    batch_size: int = 256,
    hidden: int = 64,
    blocks: int = 2,
    lr: float = 1e-3,
    points: int = 4096,
    progress: Callable[[str, int, int], None] | None = None,
) -> Table:
    """Errors of estimates of grad log(p_data / p_student) at noised student samples, against the exact gradient.

    Every estimator has networks of one size, as many steps and batches. Adam, learning rate `lr` down a cosine; a
    tenth of it for scores that start from the teacher's, which are trained already.

    Args:
        data: the mixture; None: a ring of 8. deltas: how far students are from it, see `perturbed`.
        sigmas: noise levels at which errors are measured, each at `points` points.
        seeds: one replication each, all trained side by side.
        progress: is told (part, parts done, parts) after each of three trainings.

    Returns:
        One row for each seed, delta and sigma: `size`, the root mean square of the exact gradient; for each of
        ESTIMATORS the root mean square of its error over `size`, and cosine_... with the exact gradient; `mix`, the
        ratio's share in the hybrid. independent_scores are two denoisers, each from random weights;
        scores_from_teacher has the student's started from the data's. The hybrid of these with the ratio takes its
        mix from the exact gradient at other points, hybrid_from_samples from samples alone.

    Raises ConfigError for levels that are not positive, and for empty or negative deltas.
    """
    check_sigma(list(sigmas))
    if not len(deltas) or not len(sigmas) or not len(seeds):
        raise ConfigError("at least one delta, one sigma and one seed are needed")
    tell = progress or (lambda *_: None)
    data = mixture("gmm:ring8") if data is None else data
    keys = [jax.random.split(jax.random.key(seed), 5) for seed in seeds]
    students = [perturbed(data, delta, k[0]) for k in keys for delta in deltas]
    of_data = _stack([Law(data.weights, data.means, data.scales)] * len(students))
    of_student = _stack([Law(gm.weights, gm.means, gm.scales) for gm in students])

    dim = data.means.shape[1]
    net = {"net": "mlp", "dim": dim, "hidden": hidden, "blocks": blocks}
    ratio_net = net | {"net": "mlp_ratio"}
    train = partial(_train, steps=steps, batch_size=batch_size, lr=lr, dim=dim)

    # The data's denoisers and the independent ones of all students, in one program.
    laws = jax.tree.map(lambda a, b: jnp.concatenate([a[:: len(deltas)], b]), of_data, of_student)
    of_teachers, of_others = jnp.stack([k[1] for k in keys]), _many(keys, 2, len(deltas))
    weights_keys, draw_keys = _apart(jnp.concatenate([of_teachers, of_others]))
    denoisers = train(_denoiser_loss(net), _fresh(net, weights_keys), laws, laws, draw_keys)
    teachers = jax.tree.map(lambda leaf: jnp.repeat(leaf[: len(seeds)], len(deltas), axis=0), denoisers)
    independent = jax.tree.map(lambda leaf: leaf[len(seeds) :], denoisers)
    tell("scores", 1, 3)
    draw_keys, judge_keys = _apart(_many(keys, 3, len(deltas)))
    fakes = train(_denoiser_loss(net), teachers, of_student, of_student, draw_keys, lr=FINE_TUNING * lr)
    tell("scores from the teacher", 2, 3)
    weights_keys, draw_keys = _apart(_many(keys, 4, len(deltas)))
    ratios = train(_ratio_loss(ratio_net), _fresh(ratio_net, weights_keys), of_data, of_student, draw_keys)
    tell("ratios", 3, 3)

    judge = jax.jit(jax.vmap(partial(_judge, net, ratio_net, points), in_axes=(0, 0, 0, 0, 0, 0, 0, None)))
    table: Table = []
    found = [judge(teachers, independent, fakes, ratios, of_data, of_student, judge_keys, sigma) for sigma in sigmas]
    for run in range(len(students)):
        where = {"seed": int(seeds[run // len(deltas)]), "delta": float(deltas[run % len(deltas)])}
        for sigma, values in zip(sigmas, found, strict=True):
            table.append(where | {"sigma": float(sigma)} | {name: float(v[run]) for name, v in values.items()})
    return table


def error_slopes(table: Table) -> Table:
    """For each sigma and estimator the slope of log error in log delta, by least squares over all seeds and deltas.

    0: the error shrinks with the gradient; -1: it does not shrink at all. nan for fewer than two deltas above zero.
    """
    out: Table = []
    for sigma in dict.fromkeys(row["sigma"] for row in table):
        rows = [row for row in table if row["sigma"] == sigma and row["delta"] > 0]
        x = np.log([row["delta"] for row in rows])
        enough = len(np.unique(x)) > 1
        slopes = {
            name: float(np.polyfit(x, np.log([row[name] for row in rows]), 1)[0]) if enough else float("nan")
            for name in ESTIMATORS
        }
        out.append({"sigma": sigma, **slopes})
    return out


def save_bias_plot(path: Path, table: Table) -> None:
    """A PNG with a panel for each sigma: relative error of each estimator against delta, means over seeds."""
    sigmas = list(dict.fromkeys(row["sigma"] for row in table))
    sheet = figure(3 * len(sigmas), 3)
    panels = sheet.subplots(1, len(sigmas), sharey=True, squeeze=False)[0]
    for axes, sigma in zip(panels, sigmas, strict=True):
        rows = [row for row in table if row["sigma"] == sigma]
        deltas = sorted({row["delta"] for row in rows})
        for name in ESTIMATORS:
            means = [np.exp(np.mean([np.log(row[name]) for row in rows if row["delta"] == d])) for d in deltas]
            axes.plot(deltas, means, marker="o", markersize=3, label=name.replace("_", " "))
        axes.set(xscale="log", yscale="log", xlabel="distance of the student, δ", title=f"σ = {sigma:g}")
        axes.axhline(1, color="grey", linewidth=0.5)
    panels[0].set_ylabel("relative error of ∇ℓ")
    panels[0].legend(fontsize="x-small")
    save_figure(sheet, path)


def _train(
    loss: Callable[[Tree, Law, Law, Array, int], Array],
    params: Tree,
    of_data: Law,
    of_student: Law,
    keys: Array,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    dim: int,
) -> Tree:
    """All runs side by side, in one program; each argument has their leading axis."""
    adam = optax.adam(optax.cosine_decay_schedule(lr, steps))

    def one(params: Tree, of_data: Law, of_student: Law, key: Array) -> Tree:
        def update(carry: tuple[Tree, Tree], step: Array) -> tuple[tuple[Tree, Tree], None]:
            params, opt = carry
            grads = jax.grad(loss)(params, of_data, of_student, jax.random.fold_in(key, step), batch_size)
            changes, opt = adam.update(grads, opt, params)
            return (optax.apply_updates(params, changes), opt), None

        (params, _), _ = jax.lax.scan(update, (params, adam.init(params)), jnp.arange(steps))
        return params

    trained = jax.jit(jax.vmap(one))(params, of_data, of_student, keys)
    return jax.block_until_ready(trained)  # type: ignore[no-untyped-call]  # so that progress tells the truth


def _denoiser_loss(net: dict[str, Any]) -> Callable[..., Array]:
    graphdef = nets.split(nets.abstract(net))[0]

    def loss(params: Tree, law: Law, _: Law, key: Array, n: int) -> Array:
        keys = jax.random.split(key, 3)
        x = law.mixture().sample(keys[0], n)
        noise, sigma = jax.random.normal(keys[1], x.shape), LAW.sample(keys[2], (n,))
        model = nets.merge(graphdef, params)
        return denoising_loss(lambda x, sigma: denoise(model, x, sigma), x, sigma, noise).mean()

    return loss


def _ratio_loss(net: dict[str, Any]) -> Callable[..., Array]:
    graphdef = nets.split(nets.abstract(net))[0]

    def loss(params: Tree, of_data: Law, of_student: Law, key: Array, n: int) -> Array:
        keys = jax.random.split(key, 4)
        x = jnp.concatenate([of_data.mixture().sample(keys[0], n), of_student.mixture().sample(keys[1], n)])
        sigma = jnp.tile(LAW.sample(keys[2], (n,)), 2)
        noised = x + per_sample(sigma, x) * jax.random.normal(keys[3], x.shape)
        log_r = log_ratio(nets.merge(graphdef, params), noised, sigma)
        return ratio_loss(log_r[:n], log_r[n:])

    return loss


def _judge(
    net: dict[str, Any],
    ratio_net: dict[str, Any],
    n: int,
    teacher: Tree,
    independent: Tree,
    fake: Tree,
    ratio: Tree,
    of_data: Law,
    of_student: Law,
    key: Array,
    sigma: Array,
) -> dict[str, Array]:
    """The errors of one run at one level."""
    graphdef, ratio_graphdef = (nets.split(nets.abstract(config))[0] for config in (net, ratio_net))
    p_data, p_student = of_data.mixture(), of_student.mixture()

    def score(params: Tree, x: Array) -> Array:
        return (denoise(nets.merge(graphdef, params), x, sigma) - x) / sigma**2

    def log_r(x: Array) -> Array:
        return log_ratio(nets.merge(ratio_graphdef, ratio), x, sigma)

    def estimates(x: Array) -> tuple[Array, Array, Array]:
        ours = score(teacher, x)
        return ours - score(independent, x), ours - score(fake, x), jax.grad(lambda x: log_r(x).sum())(x)

    def exact(x: Array) -> Array:
        return p_data.score(x, sigma) - p_student.score(x, sigma)

    def hybrid(x: Array, mix: Array) -> Array:
        _, by_scores, by_ratio = estimates(x)
        one = jnp.ones(len(x))
        return hybrid_field(Field(by_scores, None, one), Field(by_ratio, None, one), mix).v

    keys = jax.random.split(key, 6)
    clean, other, of_law = p_student.sample(keys[0], n), p_student.sample(keys[1], n), p_data.sample(keys[2], n)
    noise = [jax.random.normal(k, clean.shape) for k in keys[3:]]
    x, held_out = clean + sigma * noise[0], other + sigma * noise[1]
    _, by_scores, by_ratio = estimates(held_out)
    mix = hybrid_mix(by_scores, by_ratio, exact(held_out))

    # From samples alone: of data, and of the student. A field is minus omega times the gradient.
    both, noises = jnp.concatenate([of_law + sigma * noise[2], held_out]), jnp.concatenate([noise[2], noise[1]])
    _, by_scores, by_ratio = estimates(both)
    levels, log_ratios = jnp.full(2 * n, sigma), log_r(both)
    targets = [
        score_difference_target(noises[part], levels[part], log_ratios[part], from_data=data, omega="one")
        for part, data in ((slice(n), True), (slice(n, None), False))
    ]
    target, weight = (jnp.concatenate(parts) for parts in zip(*targets, strict=True))
    mix_from_samples = hybrid_mix(-by_scores, -by_ratio, target, weight)

    truth = exact(x)
    found = (*estimates(x), hybrid(x, mix), hybrid(x, mix_from_samples))
    size = jnp.sqrt(jnp.mean(truth**2))
    out = {"size": size, "mix": mix, "mix_from_samples": mix_from_samples}
    for name, estimate in zip(ESTIMATORS, found, strict=True):
        out[name] = jnp.sqrt(jnp.mean((estimate - truth) ** 2)) / size
        out[f"cosine_{name}"] = jnp.sum(estimate * truth) / jnp.sqrt(jnp.sum(estimate**2) * jnp.sum(truth**2))
    return out


def _fresh(net: dict[str, Any], keys: Array) -> Tree:
    return _stack([nets.split(nets.build(net, rngs=nnx.Rngs(key)))[1] for key in keys])


def _many(keys: Sequence[Array], place: int, count: int) -> Array:
    """(runs,) keys: `count` of each replication's."""
    return jnp.concatenate([jax.random.split(k[place], count) for k in keys])


def _apart(keys: Array) -> tuple[Array, Array]:
    """Two independent keys of each: weights made from a key must not share it with what is drawn by fold_in."""
    first, second = jax.vmap(jax.random.split, out_axes=1)(keys)
    return first, second


def _stack(trees: Sequence[Tree]) -> Tree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
