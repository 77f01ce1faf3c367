"""Training: the teacher by denoising, the one-step student by any of the methods, one run or many side by side."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, ArrayLike

from . import methods, nets
from .certificate import certify
from .checkpoint import Checkpoints, save_model
from .config import NEEDS_TEACHER, SINGLE_NETWORK, StudentConfig, TeacherConfig
from .data import Dataset, make_dataset
from .denoiser import Denoiser, Generator, Model, Ratio, few_step_levels
from .errors import ConfigError, DataError, InterruptedRun, OnestepError
from .initialise import check_strategy, fresh_weights, init_student, made_fresh, trainable
from .monitor import Entry, Monitor
from .noise import LogNormal, SigmaLaw
from .pictures import save_curves, save_samples
from .probes import participation_ratio
from .score import denoising_loss
from .update import (
    HEAD_GAIN,
    Draws,
    Optimisation,
    Pool,
    State,
    Tree,
    compile_update,
    init_state,
    on_batch_axis,
    single_update,
    student_update,
)

OnEval = Callable[[int, Generator], dict[str, float]]
Report = Callable[[Entry], None]

RESIDENT_BYTES = 4 << 30  # larger sets stay on the host; each call gets a fresh random pool
POOL_ROWS = 1 << 16
STOP_LEVELS = (0.05, 0.2, 0.5, 1.0)  # of stop_when="indistinguishable"
STOP_P_VALUE, STOP_CHECKS, STOP_SAMPLES = 0.2, 3, 2000


class StudentResult(NamedTuple):
    """generator_ema is the one to sample from; ratio is None for methods without one; history has one dict a call."""

    generator: Generator
    generator_ema: Generator
    ratio: Ratio | None
    history: list[Entry]


@dataclass(frozen=True)
class Run:
    """How a run is carried out, which its result does not depend on.

    out: folder for checkpoints, metrics and models. resume: go on from the last checkpoint there.
    eval_every: steps between evaluations and checkpoints, rounded up to whole calls; None: a tenth of the run.
    on_eval: (step, generator) -> measures to log; one called `fd` decides which checkpoint is the best.
    report: is given every log entry. mesh: devices to spread batches over, see `data_mesh`.
    shard: `none`, weights on every device, or `params`, spread over the mesh, too.
    """

    out: str | os.PathLike[str] | None = None
    resume: bool = False
    eval_every: int | None = None
    on_eval: OnEval | None = None
    report: Report | None = None
    mesh: Mesh | None = None
    shard: str = "none"

    def __post_init__(self) -> None:
        if self.shard not in ("none", "params"):
            raise ConfigError(f"shard: {self.shard!r} is not one of none, params")
        if self.resume and self.out is None:
            raise ConfigError("resume needs out, the folder of the run")


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with one axis, `data`, over all devices (or the given ones)."""
    devices = jax.devices() if devices is None else list(devices)
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


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
    data, net = _network(data, cfg)
    denoise_fn = methods.net_fn(net, data.sigma_data)
    dropout = net.get("dropout", 0) > 0

    def loss(params: Tree, frozen: Tree, draws: Draws, step: Array) -> Array:
        # A key a piece of the batch: any function of its draws will do.
        key = jax.random.key(jax.lax.bitcast_convert_type(draws.u[0, 0], jnp.uint32)) if dropout else None
        return denoising_loss(
            lambda x, sigma: denoise_fn(params, x, sigma, draws.data_labels, key),
            draws.data,
            draws.sigma,
            draws.noise_data,
            data.sigma_data,
        )

    optimisation = _optimisation(cfg, schedule=cfg.schedule, b1=0.9)
    update = single_update(loss, cfg.sigma_law, optimisation, on_batch_axis(run.mesh))
    weights_key, key = jax.random.split(jax.random.key(seed))
    fresh = nets.build(net, rngs=nnx.Rngs(weights_key))
    state = init_state(key, nets.split(fresh)[1], (), optimisation, lr=cfg.lr)
    model = Denoiser(
        net=fresh, sigma_data=data.sigma_data, shift=data.shift, scale=data.scale, label_probs=_probs(net, data)
    )
    state, _ = _loop(
        run,
        update,
        state,
        {},
        data,
        cfg,
        seed,
        kind="teacher",
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
    begins = _has_checkpoints(run)  # then the initial weights are only a pattern
    state = plan.init(plan.cfgs[0], 0, seed, "random" if begins else cfg.init, single_level, off_level)
    state, history = _loop(
        run,
        plan.update,
        state,
        plan.frozen,
        plan.data,
        cfg,
        seed,
        kind="student",
        export=lambda state: plan.models(state, cfg),
        teacher=teacher,
    )
    models = plan.models(state, cfg)
    return StudentResult(models["generator_raw"], models["generator"], models.get("ratio"), history)


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
    report: Report | None = None,
) -> list[StudentResult]:
    """Train many students side by side in one program: run i by cfgs[i] and seeds[i], each as `train_student` would.

    The settings may differ in init, divergence, alpha, alpha_end, weight_norm, lr and ratio_lr; ConfigError names
    others that do. Runs that diverge are warned about and do not stop the rest.

    on_eval: (step, generators with averaged weights) -> measures, one dict a run, for their histories.
    """
    if len(cfgs) != len(seeds) or not cfgs:
        raise ConfigError(f"as many settings as seeds are needed, at least one; got {len(cfgs)} and {len(seeds)}")
    free = {
        name: getattr(cfgs[0], name)
        for name in ("init", "divergence", "alpha", "alpha_end", "weight_norm", "lr", "ratio_lr")
    }
    for cfg in cfgs[1:]:
        a, b = cfgs[0].to_dict(), cfg.to_dict()
        other = [name for name in a if name not in free and a[name] != b[name]]
        if other:
            raise ConfigError(f"runs side by side may differ in {', '.join(free)}; these differ in {', '.join(other)}")
    plan = _plan(data, teacher, cfgs, None)
    made: dict[tuple[str, int], Tree] = {}
    states = []
    for index, (cfg, seed) in enumerate(zip(plan.cfgs, seeds, strict=True)):
        if (cfg.init, seed) not in made:
            made[cfg.init, seed] = plan.weights(cfg, seed, cfg.init, single_level, off_level)
        states.append(plan.init(cfg, index, seed, cfg.init, single_level, off_level, made[cfg.init, seed]))
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    del states
    cfg = plan.cfgs[0]
    step_fn = compile_update(plan.update, many=True)
    pool, monitors = _Pools(plan.data, seeds[0], cfg.steps_per_call * cfg.batch_size * (1 + cfg.aux_updates), None), []
    for _ in cfgs:
        monitors.append(
            Monitor(steps=cfg.steps, batch_size=cfg.batch_size, sigma_data=plan.data.sigma_data, stop=False)
        )
    monitors[0].report = report
    every = _cadence(eval_every, cfg.steps, cfg.steps_per_call)
    for step, length in _calls(0, cfg.steps, cfg.steps_per_call):
        state, metrics = step_fn(state, pool.at(step), plan.frozen, length=length)
        step += length
        fetched = jax.device_get(metrics)
        for index, monitor in enumerate(monitors):
            monitor.add(step, {name: values[index] for name, values in fetched.items()})
        if on_eval and (step % every == 0 or step == cfg.steps):
            generators = [plan.models(_take(state, index), cfg)["generator"] for index in range(len(cfgs))]
            for monitor, values in zip(monitors, on_eval(step, generators), strict=True):
                monitor.note(**values)
    results = []
    for index, monitor in enumerate(monitors):
        models = plan.models(_take(state, index), cfg)
        results.append(
            StudentResult(models["generator_raw"], models["generator"], models.get("ratio"), monitor.history)
        )
    return results


def make_student_step(
    data: Dataset | ArrayLike, teacher: Denoiser | None, cfg: StudentConfig, *, seed: int = 0, mesh: Mesh | None = None
) -> tuple[Callable[..., tuple[State, dict[str, Array]]], State, Pool, Tree]:
    """(step, state, pool, frozen): the jitted step that `train_student` calls, and its first arguments.

    step(state, pool, frozen, length=n) -> (state, metrics) makes n updates; the state is donated. frozen is empty but
    for methods that follow a teacher's score. For measurements of time, memory and arithmetic.
    """
    plan = _plan(data, teacher, [cfg], mesh)
    state = plan.init(plan.cfgs[0], 0, seed, cfg.init, None, None)
    pool = _Pools(plan.data, seed, cfg.steps_per_call * cfg.batch_size * (1 + cfg.aux_updates), mesh)
    return compile_update(plan.update), state, pool.at(0), plan.frozen


# --- the plan of a student's training ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """A student's training before it has weights."""

    cfgs: list[StudentConfig]  # resolved
    data: Dataset
    teacher: Denoiser | None
    net: dict[str, Any]
    ratio_net: Any  # a ratio network with shapes for weights, or None
    optimisation: Optimisation
    update: Callable[[State, Pool, Tree], tuple[State, dict[str, Array]]]
    frozen: Tree

    def weights(
        self, cfg: StudentConfig, seed: int, init: str, single_level: Denoiser | None, off_level: Denoiser | None
    ) -> Tree:
        """The student's initial weights."""
        key = jax.random.fold_in(jax.random.key(seed), 1)
        if init.startswith("warmup:"):
            return _warmed_up(self.data, self.net, cfg, seed)
        if self.teacher is None:
            if init != "random":
                raise ConfigError(f"init={init!r} needs a teacher; without one there are random and warmup:STEPS")
            return fresh_weights(self.net, key)
        return init_student(
            self.teacher, init, key=key, single_level=single_level, off_level=off_level, sigma_init=cfg.sigma_init
        )

    def init(
        self,
        cfg: StudentConfig,
        row: int,
        seed: int,
        init: str,
        single_level: Denoiser | None,
        off_level: Denoiser | None,
        weights: Tree | None = None,
    ) -> State:
        """The state before the first step."""
        params = self.weights(cfg, seed, init, single_level, off_level) if weights is None else weights
        _, ratio_key, key = jax.random.split(jax.random.key(seed), 3)
        aux: dict[str, Tree] = {}
        if self.ratio_net is not None:
            aux["ratio"] = self._ratio_weights(cfg, ratio_key)
        if methods.uses_fake(cfg):
            # Diff-Instruct, SiD: the fake score starts from the teacher; without one, from the student.
            start = params if self.teacher is None else self.teacher.params
            wide = nets.split(nets.abstract(methods.fake_net(cfg, self.net)))[1]
            aux["fake"] = methods.widen(start, wide)
        gains: dict[str, Tree] = {}
        if self.teacher is not None and not cfg.init.startswith("warmup:"):
            moves, fresh = trainable(self.teacher.net, cfg.init), made_fresh(self.teacher.net, cfg.init)
            gains = {
                "gain": jax.tree.map(lambda move: jnp.float32(move), moves),
                "head_gain": jax.tree.map(lambda new: jnp.float32(HEAD_GAIN * new), fresh),
            }
        params = methods.widen(params, nets.split(nets.abstract(methods.student_net(cfg, self.net)))[1])
        return init_state(key, params, aux, self.optimisation, lr=cfg.lr, aux_lr=cfg.ratio_lr, row=row, **gains)

    def models(self, state: State, cfg: StudentConfig) -> dict[str, Model]:
        """The trained models of a state, by the names of their files."""
        graphdef, like = nets.split(nets.abstract(self.net))
        data = self.data
        same = {
            "sigma_data": data.sigma_data,
            "shift": data.shift,
            "scale": data.scale,
            "label_probs": _probs(self.net, data),
        }
        out: dict[str, Model] = {}
        for name, params in (("generator", state.ema), ("generator_raw", state.params)):
            net = nets.merge(graphdef, jax.tree.map(jnp.copy, methods.narrow(params, like)))
            out[name] = Generator(net=net, sigma_init=self.cfgs[0].sigma_init, few_steps=cfg.few_steps, **same)
        if self.ratio_net is not None:
            net = nets.merge(nets.split(self.ratio_net)[0], jax.tree.map(jnp.copy, state.aux["ratio"]))
            out["ratio"] = Ratio(net=net, output=cfg.ratio_output, **same)
        return out

    def _ratio_weights(self, cfg: StudentConfig, key: Array) -> Tree:
        net = nets.build(self.net, rngs=nnx.Rngs(key)).ratio_head(cfg.ratio_width, rngs=nnx.Rngs(key))
        params = nets.split(net)[1]
        if cfg.ratio_init == "random":
            return params
        if self.teacher is None:
            raise ConfigError("ratio_init='teacher_encoder' needs a teacher")
        return _graft(params, self.teacher.params)


def _plan(
    data: Dataset | ArrayLike, teacher: Denoiser | None, cfgs: Sequence[StudentConfig], mesh: Mesh | None
) -> _Plan:
    cfgs = [methods.resolve(cfg) for cfg in cfgs]
    cfg = cfgs[0]
    for each in cfgs:
        if not each.init.startswith("warmup:"):
            check_strategy(each.init)
    if teacher is None and cfg.method in NEEDS_TEACHER:
        raise ConfigError(f"method={cfg.method!r} follows a teacher's score and needs a teacher; train one first")
    data, net = _network(data, cfg, teacher)
    optimisation = _optimisation(cfg, head_steps=round(cfg.head_warmup * cfg.steps))
    constrain = on_batch_axis(mesh)
    ratio_net = None
    frozen: Tree = {}
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
            [methods.row(each) for each in cfgs],
            few_step_levels(cfg.sigma_init, cfg.few_steps),
            (_law(cfg.sigma_law), _law(cfg.ratio_sigma_law)),
            optimisation,
            constrain,
        )
        if cfg.method in NEEDS_TEACHER and teacher is not None:
            frozen = {"teacher": teacher.params}
    return _Plan(cfgs, data, teacher, net, ratio_net, optimisation, update, frozen)


def _network(
    data: Dataset | ArrayLike, cfg: TeacherConfig | StudentConfig, teacher: Denoiser | None = None
) -> tuple[Dataset, dict[str, Any]]:
    """The data as the network takes them, and its config."""
    data = data if isinstance(data, Dataset) else make_dataset(data, held_out=0.0)
    if teacher is not None:
        net = nets.config(teacher.net) | {"precision": cfg.precision}
        # The teacher's units, also for rows that were scaled by themselves.
        data = replace(data, shift=teacher.shift, scale=teacher.scale, sigma_data=teacher.sigma_data)
        if data.shape != teacher.net.shape and (int(np.prod(data.shape)),) == teacher.net.shape:
            data = data.flatten()
        if data.shape != teacher.net.shape:
            raise DataError(f"{data.name}: rows are {data.shape}, but the teacher's samples are {teacher.net.shape}")
        if teacher.net.labels and (data.labels is None or data.classes > teacher.net.labels):
            raise DataError(f"{data.name}: the teacher has {teacher.net.labels} classes, the data {data.classes}")
        return data if teacher.net.labels else data.without_labels(), net
    if cfg.conditional and data.labels is None:
        raise DataError(f"{data.name}: conditional=True needs labels, and there are none")
    if not cfg.conditional:
        data = data.without_labels()
    if nets.PRESETS[cfg.net]["net"] == "mlp":
        data = data.flatten()
    net = nets.preset(cfg.net, data.shape, data.classes) | cfg.net_kwargs | {"precision": cfg.precision}
    return data, nets.config(nets.abstract(net))


def _warmed_up(data: Dataset, net: dict[str, Any], cfg: StudentConfig, seed: int) -> Tree:
    """Weights after K steps of denoising at the second network's levels: no teacher, but its cost in small."""
    count = cfg.init.removeprefix("warmup:")
    if not count.isdecimal() or int(count) < 1:
        raise ConfigError(f"init: {cfg.init!r} needs a number of steps, warmup:1000")
    kind = next(name for name, kwargs in nets.PRESETS.items() if kwargs["net"] == net["net"])
    denoiser = train_teacher(
        data,
        TeacherConfig(
            net=kind,
            net_kwargs={name: value for name, value in net.items() if name not in ("net", "precision")},
            sigma_law=_law(cfg.ratio_sigma_law),
            steps=int(count),
            batch_size=cfg.batch_size,
            lr=cfg.ratio_lr,
            precision=cfg.precision,
            conditional=bool(net["labels"]),
        ),
        seed=seed,
    )
    return denoiser.params


def _graft(params: Tree, teacher: Tree) -> Tree:
    """The parameters, with the teacher's where name and shape are the same."""
    if not isinstance(params, dict):
        return teacher if params.shape == teacher.shape else params
    return {name: _graft(value, teacher[name]) if name in teacher else value for name, value in params.items()}


def _optimisation(cfg: TeacherConfig | StudentConfig, **more: Any) -> Optimisation:
    return Optimisation(
        batch_size=cfg.batch_size,
        micro_batch=cfg.micro_batch,
        steps=cfg.steps,
        warmup=cfg.warmup,
        schedule=more.pop("schedule", "constant"),
        halflife=cfg.ema_halflife_images,
        ramp=cfg.ema_ramp,
        **more,
    )


def _law(law: SigmaLaw | None) -> SigmaLaw:
    return law or LogNormal()


def _probs(net: dict[str, Any], data: Dataset) -> tuple[float, ...] | None:
    probs = data.label_probs
    return None if probs is None else (*probs, *[0.0] * (net["labels"] - len(probs)))


def _take(state: State, index: int) -> State:
    return jax.tree.map(lambda leaf: leaf[index], state)


# --- the loop -----------------------------------------------------------------------------------------------------


class _Pools:
    """Batches' rows on the device: the whole set if it fits, else a fresh random part of it a call."""

    def __init__(self, data: Dataset, seed: int, rows: int, mesh: Mesh | None) -> None:
        self.data, self.seed, self.rows = data, seed, min(rows, POOL_ROWS, len(data.x))
        self.where = None if mesh is None else NamedSharding(mesh, P())
        self.whole = self._put(slice(None)) if data.x.nbytes <= RESIDENT_BYTES else None

    def at(self, step: int) -> Pool:
        """For the call that begins at this step; the same at every attempt."""
        if self.whole is not None:
            return self.whole
        rng = np.random.default_rng([self.seed, step])
        return self._put(np.sort(rng.integers(len(self.data.x), size=self.rows)))

    def _put(self, index: Any) -> Pool:
        data = self.data
        labels = None if data.labels is None else data.labels[index]
        pool = (data.x[index], labels, np.float32(data.shift), np.float32(data.scale))
        return Pool(*jax.device_put(pool, self.where))


def _loop(
    run: Run,
    update: Any,
    state: State,
    frozen: Tree,
    data: Dataset,
    cfg: TeacherConfig | StudentConfig,
    seed: int,
    *,
    kind: str,
    export: Callable[[State], dict[str, Model]],
    teacher: Denoiser | None = None,
) -> tuple[State, list[Entry]]:
    """Call after call until the last step, an answer to `stop_when`, or a signal."""
    shardings = None
    if run.mesh is not None:
        shardings = _shardings(state, run.mesh, run.shard)
        state = jax.device_put(state, shardings)
        frozen = jax.device_put(frozen, _shardings(frozen, run.mesh, run.shard))
    step_fn = compile_update(update, shardings=shardings)
    per_call = cfg.steps_per_call
    updates_of_data = 1 + (cfg.aux_updates if isinstance(cfg, StudentConfig) else 0)
    pools = _Pools(data, seed, per_call * cfg.batch_size * updates_of_data, run.mesh)
    every = _cadence(run.eval_every, cfg.steps, per_call)
    out = None if run.out is None else Path(run.out)
    folder = _open_folder(run, cfg, seed, data, kind, out) if out else None
    done = 0
    try:
        if folder and run.resume:
            restored = folder.restore(state)
            if restored:
                state, done = restored.state, restored.step
        monitor = Monitor(
            steps=cfg.steps,
            batch_size=cfg.batch_size,
            sigma_data=data.sigma_data,
            path=out / "metrics.jsonl" if out else None,
            report=run.report,
            done=done,
        )
        stopping = _Indistinguishable(data, seed) if getattr(cfg, "stop_when", "never") != "never" else None
        with _signals(folder is not None) as asked:
            calls = list(_calls(done, cfg.steps, per_call))
            pool = pools.at(done) if calls else None
            waiting: tuple[int, Any] | None = None
            for index, (step, length) in enumerate(calls):
                try:
                    state, metrics = step_fn(state, pool, frozen, length=length)
                    # While the device works: the next rows, and the metrics of the call before.
                    pool = pools.at(calls[index + 1][0]) if index + 1 < len(calls) else None
                    if waiting:
                        monitor.add(waiting[0], jax.device_get(waiting[1]))
                    waiting = (step + length, metrics)
                    step += length
                    if not (step % every == 0 or step == cfg.steps or asked):
                        continue
                    monitor.add(step, jax.device_get(metrics))
                    waiting = None
                except jax.errors.JaxRuntimeError as error:
                    raise _explained(error, cfg) from error
                models = export(state)
                measures = _evaluate(run, monitor, step, models, data, out)
                if folder:
                    assert out
                    folder.save(step, state, metric=measures.get("fd"))
                    _write_models(out, models)
                if asked and step < cfg.steps:
                    assert folder
                    folder.wait()
                    raise InterruptedRun(f"stopped at step {step} of {cfg.steps}; go on with --resume --out {run.out}")
                if stopping and stopping(step, models, monitor):
                    break
    finally:
        if folder:
            folder.close()
    return state, monitor.history


def _evaluate(
    run: Run, monitor: Monitor, step: int, models: dict[str, Model], data: Dataset, out: Path | None
) -> dict[str, float]:
    """Samples, curves, the collapse guard, and what the caller measures."""
    model = models.get("generator", models.get("denoiser"))
    if isinstance(model, Generator):
        rank = participation_ratio(model.sample(1024))
        monitor.warn_collapse(step, rank, participation_ratio(np.asarray(data.x[:1024], np.float32)))
    measures = run.on_eval(step, model) if run.on_eval and isinstance(model, Generator) else {}
    if measures:
        monitor.note(**measures)
    if out and isinstance(model, Generator | Denoiser):
        some = np.asarray(data.x[:2000], float)
        image_shape = data.image_shape or data.shape
        save_samples(
            out / f"samples_{step:06d}.png", model.sample(64), image_shape, float(some.min()), float(some.max())
        )
        save_curves(out / "curve.png", monitor.history)
    return measures


class _Indistinguishable:
    """Whether the two-sample test finds no difference on held-out data at any level, three checks in a row."""

    def __init__(self, data: Dataset, seed: int) -> None:
        if len(data.held_out) < 100:
            raise DataError(f"stop_when='indistinguishable' needs 100 held-out rows at least; got {len(data.held_out)}")
        rows = data.to_model(data.held_out[:STOP_SAMPLES])
        labels = None if data.held_out_labels is None else jnp.asarray(data.held_out_labels[:STOP_SAMPLES])
        self.rows, self.labels, self.seed, self.passed = jnp.asarray(rows), labels, seed, 0

    def __call__(self, step: int, models: dict[str, Model], monitor: Monitor) -> bool:
        generator, ratio = models["generator"], models.get("ratio")
        if not isinstance(ratio, Ratio) or not isinstance(generator, Generator):
            raise ConfigError("stop_when='indistinguishable' needs a method with a ratio: ratio, gan")
        student = generator.to_model(generator.sample(len(self.rows), seed=step, labels=self.labels))
        p_values = []
        for place, sigma in enumerate(STOP_LEVELS):
            keys = jax.random.split(jax.random.fold_in(jax.random.key(self.seed), step * len(STOP_LEVELS) + place))
            values = (
                ratio(x + sigma * jax.random.normal(key, x.shape), sigma, self.labels)
                for key, x in zip(keys, (self.rows, student), strict=True)
            )
            p_values.append(certify(*values, n_boot=1).p_value)
        monitor.note(two_sample_p=p_values)
        self.passed = self.passed + 1 if min(p_values) > STOP_P_VALUE else 0
        return self.passed >= STOP_CHECKS


def _open_folder(
    run: Run, cfg: TeacherConfig | StudentConfig, seed: int, data: Dataset, kind: str, out: Path
) -> Checkpoints:
    config = {
        **cfg.to_dict(),
        "seed": seed,
        "data": data.name,
        "rows": len(data.x),
        "shape": list(data.shape),
        "shift": data.shift,
        "scale": data.scale,
    }
    if _has_checkpoints(run) and not run.resume:
        raise ConfigError(f"{out} already holds a run; resume it with --resume, or choose another folder")
    folder = Checkpoints(out / "checkpoints", config, kind=kind, free=_free(cfg))
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "config.json").exists():
        (out / "config.json").write_text(json.dumps({"kind": kind, **config}, indent=1) + "\n")
    return folder


def _free(cfg: TeacherConfig | StudentConfig) -> tuple[str, ...]:
    """Settings that may change on resuming: how long, where nothing is scheduled over the whole, and how it is run."""
    whole = isinstance(cfg, TeacherConfig) and cfg.schedule == "cosine"
    if isinstance(cfg, StudentConfig):
        whole = cfg.alpha_end is not None or cfg.head_warmup > 0 or cfg.method == "ict"
    return ("steps_per_call", "stop_when", "micro_batch", *(() if whole else ("steps",)))


def _has_checkpoints(run: Run) -> bool:
    folder = None if run.out is None else Path(run.out) / "checkpoints"
    return bool(folder and folder.is_dir() and any(entry.name.isdigit() for entry in folder.iterdir()))


def _write_models(out: Path, models: dict[str, Model]) -> None:
    for name, model in models.items():
        save_model(out / f"{name}.safetensors", model)


def _calls(done: int, steps: int, per_call: int) -> Iterator[tuple[int, int]]:
    """(first step, number of steps) of each call; only the last may be short, which costs a second compilation."""
    for step in range(done, steps, per_call):
        yield step, min(per_call, steps - step)


def _cadence(eval_every: int | None, steps: int, per_call: int) -> int:
    every = max(steps // 10, 1) if eval_every is None else eval_every
    if every < 1:
        raise ConfigError(f"eval_every has to be at least 1; got {every}")
    return -(-every // per_call) * per_call


def _shardings(tree: Tree, mesh: Mesh, shard: str) -> Tree:
    """Replicated, or each array spread on its longest axis that the devices divide."""

    def where(leaf: Any) -> NamedSharding:
        axes = [size for size in leaf.shape if size % mesh.size == 0 and size > 0]
        if shard == "none" or not axes:
            return NamedSharding(mesh, P())
        at = leaf.shape.index(max(axes))
        return NamedSharding(mesh, P(*[None] * at, "data"))

    return jax.tree.map(where, tree)


def _explained(error: Exception, cfg: TeacherConfig | StudentConfig) -> Exception:
    if "RESOURCE_EXHAUSTED" not in str(error):
        return error
    size = (cfg.micro_batch or cfg.batch_size) // 2
    return OnestepError(f"out of memory; try --micro-batch {max(size, 1)}, which gives the same updates in pieces")


@contextmanager
def _signals(active: bool) -> Iterator[list[int]]:
    """A list that SIGTERM and SIGINT append to, instead of killing; a second one kills."""
    asked: list[int] = []
    if not active or threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, frame: Any) -> None:
        asked.append(number)
        signal.signal(number, before[number])

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
