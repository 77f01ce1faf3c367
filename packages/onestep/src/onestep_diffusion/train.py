"""Training: the teacher by denoising, the one-step student by any of the methods, one run or many side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike

from . import loop, methods, nets
from .config import NEEDS_TEACHER, SINGLE_NETWORK, StudentConfig, TeacherConfig, parse_strategy
from .data import Dataset, make_dataset
from .denoiser import Denoiser, Generator, Ratio, few_step_levels
from .errors import ConfigError, DataError
from .initialise import fresh_weights, init_student, made_fresh, trainable
from .loop import Run
from .monitor import Entry, Monitor
from .noise import LogNormal, SigmaLaw
from .score import denoising_loss
from .update import (
    HEAD_GAIN,
    Draws,
    Knobs,
    Metrics,
    Optimisation,
    Pool,
    State,
    Tree,
    compile_update,
    init_state,
    knobs_for,
    on_batch_axis,
    single_update,
    student_update,
)

KEYS = {"teacher": 101, "student": 102}
FREE_SIDE_BY_SIDE = ("init", "divergence", "alpha", "alpha_end", "weight_norm", "lr", "ratio_lr")


class StudentResult(NamedTuple):
    """generator_ema is the one to sample from; ratio is None for methods without one; history has one dict a call."""

    generator: Generator
    generator_ema: Generator
    ratio: Ratio | None
    history: list[Entry]


class StudentStep(NamedTuple):
    """run(state, pool, frozen, length=n) -> (state, metrics) makes n updates in one program; it donates state.

    frozen holds what is followed beside the data: the teacher's weights for `score` and `sid`, else nothing.
    """

    run: Callable[..., tuple[State, Metrics]]
    state: State
    pool: Pool
    frozen: Tree


def train_teacher(
    data: Dataset | ArrayLike,
    cfg: TeacherConfig,
    *,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    **how: Any,
) -> Denoiser:
    """Train a diffusion model by denoising score matching (EDM) and return the average of its weights.

    Args:
        data: a `Dataset`, or rows (n, d) or (n, h, w, c) in data units.
        seed: of initial weights and all draws.
        out, resume, how: see `Run`; resuming is bit-exact on one device.

    Raises DataError, ConfigError, CheckpointError; DivergedError if the loss is no number; InterruptedRun after
    SIGTERM or SIGINT, when the state is saved in `out`.
    """
    run = Run(out, resume, **how)
    data, net = _data_and_net(data, cfg)
    denoise_fn = methods.net_fn(net, data.sigma_data)
    dropout = net.get("dropout", 0) > 0

    def loss(params: Tree, frozen: Tree, draws: Draws, step: Array) -> Array:
        # Any bits that differ from piece to piece of a batch make a key.
        key = jax.random.key(jax.lax.bitcast_convert_type(draws.u[0, 0], jnp.uint32)) if dropout else None

        def fn(x: Array, sigma: Array) -> Array:
            return denoise_fn(params, x, sigma, draws.data_labels, key)

        return denoising_loss(fn, draws.data, draws.sigma, draws.noise_data, data.sigma_data)

    optimisation = _optimisation(cfg, schedule=cfg.schedule, b1=0.9)
    weights_key, _, key = run_keys(seed, "teacher")
    model = Denoiser(net=nets.build(net, rngs=nnx.Rngs(weights_key)), **_units(data, net))
    state, _ = loop.train(
        run,
        single_update(loss, cfg.sigma_law, optimisation, on_batch_axis(run.mesh)),
        init_state(key, model.params, (), optimisation, knobs_for(model.params, cfg.lr)),
        {},
        data,
        cfg,
        seed,
        kind="teacher",
        network=net,
        export=lambda state: {"denoiser": model.with_params(state.ema)},
    )
    return model.with_params(state.ema)


def train_student(
    data: Dataset | ArrayLike,
    teacher: Denoiser | None,
    cfg: StudentConfig,
    *,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    single_level: Denoiser | None = None,
    off_level: Denoiser | None = None,
    **how: Any,
) -> StudentResult:
    """Train a one-step generator.

    Args:
        data: a `Dataset`, or rows (n, d) or (n, h, w, c) in data units.
        teacher: gives the architecture and, as `cfg.init` says, the initial weights; methods `score` and `sid` also
            follow its score. None: a network by `cfg.net`, with init `random` or `warmup:K`.
        seed: of initial weights and all draws.
        single_level, off_level: the teachers of those initialisations.
        out, resume, how: see `Run`; resuming is bit-exact on one device.

    Raises as `train_teacher`; DivergedError also if the field is not finite or the student left the data.
    """
    run = Run(out, resume, **how)
    plan = _plan(data, teacher, [cfg], run.mesh)
    # To resume, only the shapes of the weights matter.
    init = "random" if run.resume and run.has_checkpoints else cfg.init
    state = plan.state(0, seed, plan.weights(0, seed, init, single_level, off_level))

    def export(state: State) -> loop.Models:
        models = {"generator": plan.generator(state.ema), "generator_raw": plan.generator(state.params)}
        return models if plan.ratio_net is None else {**models, "ratio": plan.ratio(state)}

    state, history = loop.train(run, plan.update, state, plan.frozen, plan.data, cfg, seed, "student", plan.net, export)
    return plan.result(state, history)


def train_students(
    data: Dataset | ArrayLike,
    teacher: Denoiser | None,
    cfgs: Sequence[StudentConfig],
    seeds: Sequence[int],
    *,
    single_level: Denoiser | None = None,
    off_level: Denoiser | None = None,
    eval_every: int | None = None,
    on_eval: Callable[[int, list[Generator]], list[dict[str, float]]] | None = None,
    report: Callable[[Entry], None] | None = None,
) -> list[StudentResult]:
    """Train many students side by side in one program: run i by cfgs[i] and seeds[i], each as `train_student` would.

    The settings may differ in init, divergence, alpha, alpha_end, weight_norm, lr and ratio_lr; ConfigError names
    others that do. Runs that diverge are warned about and do not stop the rest.

    on_eval: (step, generators with averaged weights) -> measures, one dict a run, for their histories.
    """
    plan = _plan(data, teacher, cfgs, None)
    if len(cfgs) != len(seeds):
        raise ConfigError(f"every settings need a seed; got {len(cfgs)} settings and {len(seeds)} seeds")
    cfg = cfgs[0]
    made: dict[tuple[str, int], Tree] = {}
    states = []
    for index, seed in enumerate(seeds):
        which = (cfgs[index].init, seed)
        if which not in made:
            made[which] = plan.weights(index, seed, which[0], single_level, off_level)
        states.append(plan.state(index, seed, made[which]))
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    del states, made
    run = compile_update(plan.update, many=True)
    pools, every = loop.Pools(plan.data, seeds[0], cfg), loop.cadence(eval_every, cfg)
    common: dict[str, Any] = {
        "steps": cfg.steps,
        "batch_size": cfg.batch_size,
        "sigma_data": plan.data.sigma_data,
        "stop": False,
    }
    monitors = [Monitor(**common, report=None if index else report) for index in range(len(cfgs))]

    for step, length in loop.calls(0, cfg, state.params):
        state, metrics = run(state, pools.at(step), plan.frozen, length=length)
        step += length
        values = jax.device_get(metrics)
        for index, monitor in enumerate(monitors):
            monitor.add(step, {name: value[index] for name, value in values.items()})
        if on_eval and (step % every == 0 or step == cfg.steps):
            measures = on_eval(step, [plan.generator(ema) for ema in _apart(state.ema, len(cfgs))])
            for monitor, found in zip(monitors, measures, strict=True):
                monitor.note(**found)
    states = _apart(state._replace(key=None), len(cfgs))  # keys are no arrays of numbers
    return [plan.result(state, monitor.history) for state, monitor in zip(states, monitors, strict=True)]


def _apart(stacked: Tree, runs: int) -> list[Tree]:
    """The runs of a stacked tree. By way of numpy: a slice of every leaf of every run would be a call each."""
    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, stacked))
    return [jax.tree.unflatten(structure, [jnp.asarray(leaf[index]) for leaf in leaves]) for index in range(runs)]


def make_student_step(
    data: Dataset | ArrayLike, teacher: Denoiser | None, cfg: StudentConfig, *, seed: int = 0, mesh: Mesh | None = None
) -> StudentStep:
    """The jitted step that `train_student` calls, and its first arguments: for measuring time, memory, arithmetic."""
    plan = _plan(data, teacher, [cfg], mesh)
    state = plan.state(0, seed, plan.weights(0, seed, cfg.init, None, None))
    return StudentStep(compile_update(plan.update), state, loop.Pools(plan.data, seed, cfg, mesh).at(0), plan.frozen)


@dataclass(frozen=True)
class _Plan:
    """Everything about the training of students but their weights. cfgs are resolved."""

    cfgs: Sequence[StudentConfig]
    data: Dataset
    teacher: Denoiser | None
    net: dict[str, Any]
    ratio_net: Any  # with shapes in place of weights; None for methods without a ratio
    optimisation: Optimisation
    update: Callable[[State, Pool, Tree], tuple[State, Metrics]]
    frozen: Tree
    row: Sequence[int]  # which of the program's divergences is a run's

    def weights(
        self, index: int, seed: int, init: str, single_level: Denoiser | None, off_level: Denoiser | None
    ) -> nets.Params:
        """The student's initial weights."""
        cfg = self.cfgs[index]
        key, *_ = run_keys(seed, "student")
        name, argument = parse_strategy(init)
        if name == "warmup":
            return _warmed_up(self.data, self.net, cfg, int(argument), seed)
        if self.teacher is not None:
            return init_student(
                self.teacher, init, key=key, single_level=single_level, off_level=off_level, sigma_init=cfg.sigma_init
            )
        if init != "random":
            raise ConfigError(f"init={init!r} needs a teacher; without one there are random and warmup:STEPS")
        return fresh_weights(self.net, key)

    def state(self, index: int, seed: int, weights: nets.Params) -> State:
        """The state before the first step."""
        cfg = self.cfgs[index]
        _, ratio_key, key = run_keys(seed, "student")
        aux: dict[str, Tree] = {}
        if self.ratio_net is not None:
            net = nets.build(nets.config(self.ratio_net), rngs=nnx.Rngs(ratio_key))
            aux["ratio"] = nets.split(net)[1]
            if cfg.ratio_init == "teacher_encoder":
                aux["ratio"] = _graft(aux["ratio"], weights if self.teacher is None else self.teacher.params)
        if methods.uses_fake(cfg):
            # As in Diff-Instruct and SiD the fake score starts from the teacher; without one, from the student.
            start = weights if self.teacher is None else self.teacher.params
            aux["fake"] = methods.widen(start, _shapes(methods.fake_net(cfg, self.net)))
        net = nets.abstract(self.net)
        gain, fresh = jax.tree.map(jnp.float32, (trainable(net, cfg.init), made_fresh(net, cfg.init)))
        head_gain = jax.tree.map(lambda new: HEAD_GAIN * new, fresh) if any(jax.tree.leaves(fresh)) else gain
        weights = methods.widen(weights, _shapes(methods.student_net(cfg, self.net)))
        knobs = Knobs(jnp.float32(cfg.lr), jnp.float32(cfg.ratio_lr), jnp.int32(self.row[index]), gain, head_gain)
        return init_state(key, weights, aux, self.optimisation, knobs)

    def generator(self, params: Tree) -> Generator:
        """With a copy of these weights, as training donates its own."""
        cfg = self.cfgs[0]
        abstract = nets.abstract(self.net)
        own = jax.tree.map(jnp.copy, methods.narrow(params, nets.split(abstract)[1]))
        net = nets.merge(nets.split(abstract)[0], own)
        return Generator(net=net, sigma_init=cfg.sigma_init, few_steps=cfg.few_steps, **_units(self.data, self.net))

    def ratio(self, state: State) -> Ratio:
        """With a copy of the state's weights."""
        net = nets.merge(nets.split(self.ratio_net)[0], jax.tree.map(jnp.copy, state.aux["ratio"]))
        return Ratio(net=net, output=self.cfgs[0].ratio_output, **_units(self.data, self.net))

    def result(self, state: State, history: list[Entry]) -> StudentResult:
        ratio = None if self.ratio_net is None else self.ratio(state)
        return StudentResult(self.generator(state.params), self.generator(state.ema), ratio, history)


def _plan(
    data: Dataset | ArrayLike, teacher: Denoiser | None, cfgs: Sequence[StudentConfig], mesh: Mesh | None
) -> _Plan:
    if not cfgs:
        raise ConfigError("at least one run is needed")
    cfgs = [methods.resolve(cfg) for cfg in cfgs]
    cfg = cfgs[0]
    for each in cfgs:
        a, b = cfg.to_dict(), each.to_dict()
        other = [name for name in a if name not in FREE_SIDE_BY_SIDE and a[name] != b[name]]
        if other:
            may = ", ".join(FREE_SIDE_BY_SIDE)
            raise ConfigError(f"runs side by side may differ in {may}; these differ in {', '.join(other)}")
    if teacher is None and cfg.method in NEEDS_TEACHER:
        raise ConfigError(f"method={cfg.method!r} follows a teacher's score and needs a teacher; train one first")
    data, net = _data_and_net(data, cfg, teacher)
    optimisation = _optimisation(cfg, head_steps=round(cfg.head_warmup * cfg.steps))
    constrain = on_batch_axis(mesh)
    frozen = {"teacher": teacher.params} if teacher is not None and cfg.method in NEEDS_TEACHER else {}
    rows = [methods.row(each) for each in cfgs]
    known = list(dict.fromkeys(rows))
    ratio_net = None
    if cfg.method in SINGLE_NETWORK:
        loss, law = methods.single_network_loss(cfg, net, data.sigma_data)
        update = single_update(loss, law, optimisation, constrain)
    else:
        if any(methods.uses_ratio(each) for each in cfgs):
            ratio_net = nnx.eval_shape(
                lambda: nets.build(net, rngs=nnx.Rngs(0)).ratio_head(cfg.ratio_width, rngs=nnx.Rngs(0))
            )
        graphdef = None if ratio_net is None else nets.split(ratio_net)[0]
        update = student_update(
            cfg,
            methods.second_network_method(cfg, net, graphdef, data.sigma_data),
            methods.net_fn(net, data.sigma_data),
            known,
            few_step_levels(cfg.sigma_init, cfg.few_steps),
            (_law(cfg.sigma_law), _law(cfg.ratio_sigma_law)),
            optimisation,
            constrain,
        )
    which = [known.index(each) for each in rows]
    return _Plan(cfgs, data, teacher, net, ratio_net, optimisation, update, frozen, which)


def _data_and_net(
    data: Dataset | ArrayLike, cfg: TeacherConfig | StudentConfig, teacher: Denoiser | None = None
) -> tuple[Dataset, dict[str, Any]]:
    """The data as the network takes them, and its config."""
    data = data if isinstance(data, Dataset) else make_dataset(data, held_out=0.0)
    if teacher is None:
        if cfg.conditional and data.labels is None:
            raise DataError(f"{data.name}: conditional=True needs labels, and there are none")
        data = data if cfg.conditional else data.without_labels()
        if nets.PRESETS[cfg.net]["net"] == "mlp":
            data = data.flatten()
        net = nets.preset(cfg.net, data.shape, data.classes) | cfg.net_kwargs | {"precision": cfg.precision}
        return data, nets.config(nets.abstract(net))
    # The teacher's units, also for rows that were scaled by themselves.
    data = replace(data, shift=teacher.shift, scale=teacher.scale, sigma_data=teacher.sigma_data)
    shape, classes = teacher.net.shape, teacher.net.labels
    if data.shape != shape and (int(np.prod(data.shape)),) == shape:
        data = data.flatten()
    if data.shape != shape:
        raise DataError(f"{data.name}: rows are {data.shape}, but the teacher's samples are {shape}")
    if classes and data.classes != classes:
        raise DataError(f"{data.name}: the teacher has {classes} classes, the data {data.classes}")
    return data if classes else data.without_labels(), nets.config(teacher.net) | {"precision": cfg.precision}


def run_keys(seed: int, kind: str) -> Array:
    """Independent keys (3,) of one run: initial weights, those of the second network, and all draws.

    The root differs by kind: split and fold_in give the same keys, and a fresh student must not be the young teacher.
    """
    return jax.random.split(jax.random.fold_in(jax.random.key(seed), KEYS[kind]), 3)


def _warmed_up(data: Dataset, net: dict[str, Any], cfg: StudentConfig, steps: int, seed: int) -> nets.Params:
    """Weights after so many steps of denoising at EDM's levels, whatever the second network's: a teacher in small."""
    preset, settings = nets.preset_of(net)
    teacher = TeacherConfig(
        net=preset,
        net_kwargs=settings,
        steps=steps,
        batch_size=cfg.batch_size,
        lr=cfg.ratio_lr,
        precision=cfg.precision,
        steps_per_call=cfg.steps_per_call,
        micro_batch=cfg.micro_batch,
        conditional=net["labels"] > 0,
    )
    return train_teacher(data, teacher, seed=seed).params


def _graft(params: Tree, teacher: Tree) -> Tree:
    """The parameters, with the teacher's where name and shape are the same."""
    if not isinstance(params, dict):
        return teacher if params.shape == teacher.shape else params
    return {name: _graft(value, teacher[name]) if name in teacher else value for name, value in params.items()}


def _optimisation(cfg: TeacherConfig | StudentConfig, schedule: str = "constant", **more: Any) -> Optimisation:
    same: dict[str, Any] = {
        "batch_size": cfg.batch_size,
        "micro_batch": cfg.micro_batch,
        "steps": cfg.steps,
        "warmup": cfg.warmup,
    }
    return Optimisation(**same, schedule=schedule, halflife=cfg.ema_halflife_images, ramp=cfg.ema_ramp, **more)


def _units(data: Dataset, net: dict[str, Any]) -> dict[str, Any]:
    """What a model has of the data."""
    probs = data.label_probs if net["labels"] else None
    return {"sigma_data": data.sigma_data, "shift": data.shift, "scale": data.scale, "label_probs": probs}


def _law(law: SigmaLaw | None) -> SigmaLaw:
    return law or LogNormal()


def _shapes(net: dict[str, Any]) -> Tree:
    return nets.split(nets.abstract(net))[1]
