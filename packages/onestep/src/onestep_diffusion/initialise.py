"""The initialisation laboratory: what of a teacher a student starts from, each strategy a function of weights.

The teacher's input-output map at sigma_init, and the features it has learned at many noise levels, are taken apart:
`single_level` has the map without the features, `off_level` the features without the map (arXiv:2502.08005, v3).
"""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from . import nets
from .checkpoint import dotted
from .config import STRATEGIES, parse_strategy
from .denoiser import Denoiser, Generator
from .errors import ConfigError
from .noise import Fixed
from .update import Draws, Optimisation, Pool, compile_update, init_state, knobs_for, single_update

__all__ = ["STRATEGIES", "fresh_weights", "init_student", "made_fresh", "trainable"]

Params = nets.Params

# First and last layer, by network.
_ENDS = {
    "mlp": ("stem.*", "out.*"),
    "dit": ("stem.*", "out.*"),
    "song_unet": ("enc.*_conv.*", "out_conv.*"),
    "adm_unet": ("enc.*_conv.*", "out_conv.*"),
}


def init_student(
    teacher: Denoiser,
    strategy: str,
    *,
    key: Array,
    single_level: Denoiser | None = None,
    off_level: Denoiser | None = None,
    sigma_init: float = 2.5,
) -> Params:
    """Weights of a student of the teacher's architecture.

    teacher        all of the teacher's
    random         fresh ones
    single_level   those of a teacher trained at sigma_init alone (argument `single_level`)
    off_level      those of a teacher trained at many levels but not there (argument `off_level`)
    clone_map      a random network regressed onto z -> D(sigma_init z, sigma_init) up to a relative error of 5 %
    features_only  the teacher's without its first and last layer, which are fresh
    map_only       the teacher's first and last layer, a fresh body
    scrambled      the teacher's, output coordinates (channels, for convolutions) permuted at random
    blocks:<glob>  the teacher's parameters whose dotted path matches, say blocks:block0.*; the others fresh
    freeze:<glob>  all of the teacher's; `trainable` tells which stay as they are. A word without * matches anywhere.

    key: for fresh weights and the permutation. Raises ConfigError for an unknown strategy, a missing teacher, another
    architecture, and a glob that no parameter matches.
    """
    name, _ = parse_strategy(strategy)
    params = teacher.params
    if name == "warmup":
        raise ConfigError(f"init: {strategy!r} is training; `train_student` does it")
    if name in ("single_level", "off_level"):
        given = single_level if name == "single_level" else off_level
        return _same_network(given, teacher, name)
    if name == "teacher":
        return params
    if name == "freeze":
        trainable(teacher.net, strategy)  # for its checks
        return params
    if name == "scrambled":
        return _scrambled(teacher, key)
    fresh_key, key = jax.random.split(key)
    fresh = fresh_weights(nets.config(teacher.net), fresh_key)
    if name == "random":
        return fresh
    if name == "clone_map":
        return _clone_map(teacher, fresh, key, sigma_init)
    anew = made_fresh(teacher.net, strategy)
    return jax.tree.map(lambda new, a, b: a if new else b, anew, fresh, params)


def fresh_weights(net: dict[str, Any], key: Array) -> Params:
    """Random weights for a generator of this config.

    The last layer, which is zero in a fresh denoiser, is drawn like any other: samples that hardly vary, and so stay
    far from the data, would be a needlessly weak start.
    """
    key, last_key = jax.random.split(key)
    params = nets.split(nets.build(net, rngs=nnx.Rngs(key)))[1]
    last = _ENDS[net["net"]][1].removesuffix(".*")
    kernel = params[last]["kernel"]
    bound = (3 / math.prod(kernel.shape[:-1])) ** 0.5
    drawn = jax.random.uniform(last_key, kernel.shape, kernel.dtype, -bound, bound)
    return params | {last: params[last] | {"kernel": drawn}}


def made_fresh(net: Any, strategy: str) -> Any:
    """A tree of booleans over the parameters: which ones the strategy makes afresh."""
    name, glob = parse_strategy(strategy)
    ends = _ENDS[nets.config(net)["net"]]
    if name == "features_only":
        return _matching(net, *ends)
    if name == "map_only":
        return jax.tree.map(lambda end: not end, _matching(net, *ends))
    if name == "scrambled":
        return _matching(net, ends[1])
    if name == "blocks":
        return jax.tree.map(lambda taken: not taken, _matching(net, glob))
    return jax.tree.map(lambda _: name in ("random", "clone_map"), _paths(net))


def trainable(net: Any, strategy: str) -> Any:
    """A tree of booleans over the parameters: all but those that `freeze:<glob>` freezes."""
    name, glob = parse_strategy(strategy)
    if name != "freeze":
        return jax.tree.map(lambda _: True, _paths(net))
    return jax.tree.map(lambda frozen: not frozen, _matching(net, glob))


def _paths(net: Any) -> Any:
    """The tree of parameters with its dotted paths as leaves."""
    return jax.tree_util.tree_map_with_path(lambda place, _: dotted(place), nets.split(net)[1])


def _matching(net: Any, *globs: str) -> Any:
    globs = tuple(glob if "*" in glob else f"*{glob}*" for glob in globs)
    found = jax.tree.map(lambda path: any(fnmatchcase(path, glob) for glob in globs), _paths(net))
    for glob in globs:
        if not any(fnmatchcase(path, glob) for path in jax.tree.leaves(_paths(net))):
            some = ", ".join(jax.tree.leaves(_paths(net))[:6])
            raise ConfigError(f"init: no parameter matches {glob!r}; their paths are {some}, …")
    return found


def _same_network(given: Denoiser | None, teacher: Denoiser, name: str) -> Params:
    if given is None:
        what = {"single_level": "one noise level", "off_level": "levels that exclude sigma_init"}[name]
        law = {"single_level": "fixed:2.5", "off_level": "lognormal:-1.8,0.6"}[name]
        command = f"onestep-diffusion teacher DATA --sigma-law {law}"
        raise ConfigError(f"--init {name} needs a teacher trained at {what}; run: {command}")
    if nets.config(given.net) != nets.config(teacher.net):
        raise ConfigError(f"the {name} teacher has another architecture than the teacher: {nets.config(given.net)}")
    return given.params


def _scrambled(teacher: Denoiser, key: Array) -> Params:
    last = _ENDS[nets.config(teacher.net)["net"]][1].removesuffix(".*")
    params = teacher.params
    size = params[last]["bias"].shape[0]
    if size < 2:
        raise ConfigError("init scrambled: this network's last layer has one output channel, nothing to permute")
    order = jax.random.permutation(key, size)
    return params | {last: {name: leaf[..., order] for name, leaf in params[last].items()}}


def _clone_map(teacher: Denoiser, params: Params, key: Array, sigma_init: float) -> Params:
    """Regression with fresh latents, 200 steps a call, until the error is below 5 %; 20,000 steps at most."""
    graphdef, reference = nets.split(teacher.net)
    shape = teacher.net.shape
    rows = 1024
    labels = teacher.draw_labels(rows)
    pool = Pool(jnp.zeros((rows, *shape)), None if labels is None else jnp.asarray(labels), jnp.zeros(()), jnp.ones(()))
    z_key, key = jax.random.split(key)
    z = jax.random.normal(z_key, (rows, *shape))
    spread = float(jnp.sum(jnp.var(_map(graphdef, teacher.sigma_data, sigma_init, reference, z, pool.labels), axis=0)))

    def loss(params: Params, frozen: Params, draws: Draws, step: Array) -> Array:
        pair = (
            _map(graphdef, teacher.sigma_data, sigma_init, weights, draws.latent, draws.data_labels)
            for weights in (params, frozen)
        )
        error = (next(pair) - next(pair)) ** 2
        return jnp.sum(error, axis=tuple(range(1, error.ndim))) / spread

    how = Optimisation(256, None, 20_000, 100, "cosine", 25_600.0, 0.05, b1=0.9)
    run = compile_update(single_update(loss, Fixed(sigma_init), how))
    state = init_state(key, params, (), how, knobs_for(params, 1e-3))
    while int(state.step) < how.steps:
        state, metrics = run(state, pool, reference, length=200)
        if float(metrics["loss"]) < 0.05:
            break
    return state.params


def _map(graphdef: Any, sigma_data: float, sigma_init: float, params: Params, z: Array, labels: Array | None) -> Array:
    net = nets.merge(graphdef, params)
    return Generator(net=net, sigma_data=sigma_data, sigma_init=sigma_init)(z, labels)
