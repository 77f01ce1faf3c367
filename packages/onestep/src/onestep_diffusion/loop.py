"""Call after call of a compiled step: rows on the device, checkpoints, evaluations, signals, and when to stop."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from .certificate import certify
from .checkpoint import Checkpoints, checksums, save_model
from .config import StudentConfig, TeacherConfig
from .data import Dataset
from .denoiser import Denoiser, Generator, Model, Ratio
from .errors import ConfigError, DataError, DivergedError, InterruptedRun, OnestepError
from .monitor import Entry, Monitor
from .pictures import save_curves, save_samples
from .probes import participation_ratio
from .update import Metrics, Pool, State, Tree, compile_update, loops_are_slow

Models = Mapping[str, Model]  # by the names of their files

RESIDENT_BYTES = 4 << 30  # larger sets stay on the host; each call gets a fresh random part
POOL_ROWS = 1 << 16
STOP_LEVELS = (0.05, 0.2, 0.5, 1.0)  # of stop_when="indistinguishable"
STOP_P_VALUE, STOP_CHECKS = 0.2, 3
STOP_ROWS = (100, 2000)  # held-out rows: at least, at most


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
    on_eval: Callable[[int, Generator], dict[str, float]] | None = None
    report: Callable[[Entry], None] | None = None
    mesh: Mesh | None = None
    shard: str = "none"

    def __post_init__(self) -> None:
        if self.shard not in ("none", "params"):
            raise ConfigError(f"shard: {self.shard!r} is not one of none, params")
        if self.resume and self.out is None:
            raise ConfigError("resume needs out, the folder of the run")
        if self.eval_every is not None and self.eval_every < 1:
            raise ConfigError(f"eval_every has to be at least 1; got {self.eval_every}")

    @property
    def has_checkpoints(self) -> bool:
        """Whether there is something to resume from."""
        folder = None if self.out is None else Path(self.out) / "checkpoints"
        return bool(folder and folder.is_dir() and any(entry.name.isdigit() for entry in folder.iterdir()))


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with one axis, `data`, over all devices (or the given ones)."""
    devices = jax.devices() if devices is None else list(devices)
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


class Pools:
    """Batches' rows on the device: the whole set if it fits, else a fresh random part of it a call."""

    def __init__(self, data: Dataset, seed: int, cfg: TeacherConfig | StudentConfig, mesh: Mesh | None = None) -> None:
        batches = cfg.steps_per_call * (1 + cfg.aux_updates if isinstance(cfg, StudentConfig) else 1)
        self.data, self.seed, self.rows = data, seed, min(batches * cfg.batch_size, POOL_ROWS)
        self.where = None if mesh is None else NamedSharding(mesh, P())  # type: ignore[no-untyped-call]
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


def train(
    run: Run,
    update: Callable[[State, Pool, Tree], tuple[State, Metrics]],
    state: State,
    frozen: Tree,
    data: Dataset,
    cfg: TeacherConfig | StudentConfig,
    seed: int,
    kind: str,
    network: dict[str, Any],
    export: Callable[[State], Models],
) -> tuple[State, list[Entry]]:
    """Until the last step, an answer to `stop_when`, or a signal; returns the state and the log.

    Args:
        state: before step 0, or of the same structure if there is a checkpoint to resume from.
        kind: `teacher` | `student`. network: config of what is trained. export: the models of a state, to be
            evaluated and written.
    """
    shardings = None
    if run.mesh is not None:
        shardings = _shardings(state, run.mesh, run.shard)
        state = jax.device_put(state, shardings)
        frozen = jax.device_put(frozen, _shardings(frozen, run.mesh, run.shard))
    step_fn = compile_update(update, shardings=shardings)
    pools = Pools(data, seed, cfg, run.mesh)
    every = cadence(run.eval_every, cfg)
    test = None
    if isinstance(cfg, StudentConfig) and cfg.stop_when == "indistinguishable":
        test = _TwoSampleTest(data, seed)
    folder = _Folder(run, cfg, seed, data, kind, network, frozen) if run.out is not None else None
    try:
        done = 0
        if folder and run.resume:
            state, done = folder.restore(state)
        monitor = Monitor(
            steps=cfg.steps,
            batch_size=cfg.batch_size,
            sigma_data=data.sigma_data,
            path=folder.out / "metrics.jsonl" if folder else None,
            report=run.report,
            done=done,
        )
        pool = pools.at(done)
        waiting: tuple[int, Metrics] | None = None
        with _signals(folder is not None) as asked:
            for start, length in calls(done, cfg, state.params):
                state, metrics = step_fn(state, pool, frozen, length=length)
                step = start + length
                # While the device works: the rows of the next call, and the metrics of the one before.
                if step < cfg.steps:
                    pool = pools.at(step)
                if waiting:
                    monitor.add(*waiting)
                waiting = (step, metrics)
                due = step % every == 0 or step == cfg.steps
                if not (due or asked):
                    continue
                monitor.add(*waiting)
                waiting = None
                models = export(state)
                measures = _evaluate(run, monitor, step, models, data) if due else {}
                if folder:
                    folder.save(step, state, models, monitor, measures.get("fd"))
                if asked and step < cfg.steps:
                    raise InterruptedRun(f"stopped at step {step} of {cfg.steps}; go on with --resume --out {run.out}")
                if test and due:
                    monitor.note(two_sample_p=test.p_values(step, models))
                    if indistinguishable(monitor.history):
                        break
    except DivergedError as error:
        if folder and folder.checkpoints.steps:
            raise DivergedError(f"{error}; the last good checkpoint is step {folder.checkpoints.steps[-1]}") from None
        raise
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        size = max((cfg.micro_batch or cfg.batch_size) // 2, 1)
        text = f"out of memory; try --micro-batch {size}, which gives the same updates piece by piece"
        raise OnestepError(text) from error
    finally:
        if folder:
            folder.checkpoints.close()
    return state, monitor.history


def calls(done: int, cfg: TeacherConfig | StudentConfig, params: Tree) -> list[tuple[int, int]]:
    """(first step, number of steps) of each call; only the last may be short, which costs a second compilation."""
    per_call = 1 if loops_are_slow(params) else cfg.steps_per_call
    return [(step, min(per_call, cfg.steps - step)) for step in range(done, cfg.steps, per_call)]


def cadence(eval_every: int | None, cfg: TeacherConfig | StudentConfig) -> int:
    """Steps between evaluations: whole calls."""
    every = max(cfg.steps // 10, 1) if eval_every is None else eval_every
    return -(-every // cfg.steps_per_call) * cfg.steps_per_call


def _evaluate(run: Run, monitor: Monitor, step: int, models: Models, data: Dataset) -> dict[str, float]:
    """Pictures, the guard against collapse, and what the caller measures."""
    model = models.get("generator", models.get("denoiser"))
    measures: dict[str, float] = {}
    if isinstance(model, Generator):
        known = participation_ratio(np.asarray(data.x[:1024], np.float32))
        monitor.warn_collapse(step, participation_ratio(model.sample(1024)), known)
        if run.on_eval:
            measures = run.on_eval(step, model)
            monitor.note(**measures)
    if run.out is not None and isinstance(model, Generator | Denoiser):
        some = np.asarray(data.x[:2000], float)
        name, shape = f"samples_{step:06d}.png", data.image_shape or data.shape
        save_samples(Path(run.out) / name, model.sample(64), shape, float(some.min()), float(some.max()))
        save_curves(Path(run.out) / "curve.png", monitor.history)
    return measures


class _Folder:
    """The folder of a run: its settings, checkpoints and models."""

    def __init__(
        self,
        run: Run,
        cfg: TeacherConfig | StudentConfig,
        seed: int,
        data: Dataset,
        kind: str,
        network: dict[str, Any],
        frozen: Tree,
    ) -> None:
        assert run.out is not None
        self.out = Path(run.out)
        if run.has_checkpoints and not run.resume:
            raise ConfigError(f"{run.out} already holds a run; resume it with --resume, or choose another folder")
        of_data = {"data": data.name, "rows": len(data.x), "shape": list(data.shape), "image_shape": data.image_shape}
        config = {**cfg.to_dict(), "seed": seed, **of_data, "shift": data.shift, "scale": data.scale}
        # Of a teacher that is followed all along only the same one may go on.
        config |= {"network": network, "follows": sum(checksums(frozen).values())}
        self.checkpoints = Checkpoints(self.out / "checkpoints", config, kind=kind, free=_free(cfg))
        self.config = {"kind": kind, **config}

    def restore(self, like: State) -> tuple[State, int]:
        found = self.checkpoints.restore(like)
        return (like, 0) if found is None else (found.state, found.step)

    def save(self, step: int, state: State, models: Models, monitor: Monitor, metric: float | None) -> None:
        self.checkpoints.save(step, state, metric=metric)
        temporary = self.out / "config.json.tmp"
        temporary.write_text(json.dumps(self.config, indent=1) + "\n")
        os.replace(temporary, self.out / "config.json")
        for name, model in models.items():
            save_model(self.out / f"{name}.safetensors", model)


def _free(cfg: TeacherConfig | StudentConfig) -> tuple[str, ...]:
    """Settings that may change on resuming: how long, where nothing is scheduled over the whole, and how it is run."""
    if isinstance(cfg, TeacherConfig):
        whole = cfg.schedule == "cosine"
    else:
        whole = cfg.alpha_end is not None or cfg.head_warmup > 0 or cfg.method == "ict"
    return ("steps_per_call", "stop_when", "micro_batch", *(() if whole else ("steps",)))


class _TwoSampleTest:
    """Of held-out rows against fresh samples at every one of STOP_LEVELS, by the ratio of training."""

    def __init__(self, data: Dataset, seed: int) -> None:
        least, most = STOP_ROWS
        if len(data.held_out) < least:
            raise DataError(f"stop_when='indistinguishable' needs {least} held-out rows; got {len(data.held_out)}")
        self.rows = jnp.asarray(data.to_model(data.held_out[:most]))
        self.labels = None if data.held_out_labels is None else jnp.asarray(data.held_out_labels[:most])
        self.key = jax.random.key(seed)

    def p_values(self, step: int, models: Models) -> list[float]:
        generator, ratio = models["generator"], models["ratio"]
        assert isinstance(generator, Generator)
        assert isinstance(ratio, Ratio)
        student = generator.to_model(generator.sample(len(self.rows), seed=step, labels=self.labels))
        found = []
        for place, sigma in enumerate(STOP_LEVELS):
            keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(self.key, step), place))
            log_r = [
                ratio(x + sigma * jax.random.normal(key, x.shape), sigma, self.labels)
                for key, x in zip(keys, (self.rows, student), strict=True)
            ]
            found.append(certify(*log_r, n_boot=1).p_value)
        return found


def indistinguishable(history: Sequence[Entry]) -> bool:
    """Whether the last three two-sample tests found no difference at any level."""
    tests = [entry["two_sample_p"] for entry in history if "two_sample_p" in entry][-STOP_CHECKS:]
    return len(tests) == STOP_CHECKS and min(map(min, tests)) > STOP_P_VALUE


def _shardings(tree: Tree, mesh: Mesh, shard: str) -> Tree:
    """Replicated, or each array spread on its longest axis that the devices divide."""

    def where(leaf: Any) -> NamedSharding:
        axes = [size for size in leaf.shape if size % mesh.size == 0 and size > 0]
        names = [None] * leaf.shape.index(max(axes)) + ["data"] if shard == "params" and axes else []
        return NamedSharding(mesh, P(*names))  # type: ignore[no-untyped-call]

    return jax.tree.map(where, tree)


@contextmanager
def _signals(active: bool) -> Iterator[list[int]]:
    """A list that SIGTERM and SIGINT append to, instead of killing; a second one kills."""
    asked: list[int] = []
    if not active or threading.current_thread() is not threading.main_thread():
        yield asked
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}

    def note(number: int, frame: Any) -> None:
        asked.append(number)
        signal.signal(number, before[signal.Signals(number)])

    for number in numbers:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        for number in numbers:
            signal.signal(number, before[number])
