"""What a student takes over from its teacher: the map, the features, and what each is worth after training.

Every initialisation of `init_student` is probed before the first update and trained to the end, under one budget; and
the teacher's own budget is varied (arXiv:2502.08005, v1 and v3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from . import nets
from .config import StudentConfig, TeacherConfig, parse_strategy
from .costs import update_cost
from .data import Dataset
from .denoiser import Denoiser, Generator
from .errors import ConfigError
from .initialise import init_student, made_fresh
from .metrics import fid
from .monitor import Entry
from .pictures import figure, save_figure
from .probes import map_error, probe_features
from .train import run_keys, train_students, train_teacher

Table = list[dict[str, Any]]
Extract = Callable[[NDArray[Any]], NDArray[Any]]

PROBE_SIGMAS = (0.05, 0.2, 0.8, 2.5)
HEAD_WARMUP = 0.1  # share of the updates that train only fresh layers, where it is asked for


class Comparison(NamedTuple):
    """table: a row for each strategy, and one more with the head warm-up; probes: its blocks x noise levels."""

    table: Table
    probes: dict[str, Table]


def compare_strategies(
    data: Dataset,
    teacher: Denoiser,
    cfg: StudentConfig,
    strategies: Sequence[str],
    extract: Extract,
    *,
    seeds: Sequence[int] = (0,),
    single_level: Denoiser | None = None,
    off_level: Denoiser | None = None,
    sigmas: Sequence[float] = PROBE_SIGMAS,
    head_warmup: bool = False,
    n: int = 2000,
    probe_rows: int = 1000,
    eval_every: int | None = None,
    report: Callable[[Entry], None] | None = None,
) -> Comparison:
    """Probe each strategy's weights, train all of them with all seeds side by side, and measure what came of it.

    Args:
        extract: rows in data units -> features (n, p), for Frechet distances of n samples to training rows.
        single_level, off_level: the teachers of the strategies of these names.
        sigmas: at which features are probed, on `probe_rows` training rows, for the first seed.
        head_warmup: train strategies with fresh layers once more, these alone in the first tenth of the updates.
        report: is given each log entry of the first run.

    Returns:
        Rows with strategy; e_map (see `map_error`); cka, accuracy (where data have labels) and rank, means over blocks
        and levels (see `probe_features`); fd_start, fd: means over seeds, before and after training; fds, one a seed;
        curve: (step, mean FD) at evaluations.

    Raises ConfigError for an unknown strategy or one whose teacher is missing.
    """
    if not strategies or not seeds:
        raise ConfigError("at least one strategy and one seed are needed")
    if len(set(strategies)) < len(strategies):
        raise ConfigError(f"a strategy is given twice: {', '.join(strategies)}")
    for strategy in strategies:
        parse_strategy(strategy)
    rows, known = data.x[:probe_rows], extract(data.x[:5000])
    shaped = rows.reshape(len(rows), *teacher.net.shape)
    labels = None if data.labels is None else data.labels[:probe_rows]

    def distance(generator: Generator, seed: int) -> float:
        samples = generator.sample(n, seed)
        return fid(known, extract(samples.reshape(-1, *data.shape)))

    starts: dict[str, dict[str, Any]] = {}
    probes: dict[str, Table] = {}
    for strategy in strategies:
        key, *_ = run_keys(seeds[0], "student")  # as training has it
        params = init_student(
            teacher, strategy, key=key, single_level=single_level, off_level=off_level, sigma_init=cfg.sigma_init
        )
        student = teacher.with_params(params)
        found = probe_features(student, shaped, labels, sigmas, teacher=teacher, seed=seeds[0])
        probes[strategy] = found
        measures = [name for name in ("cka", "accuracy", "rank") if name in found[0]]
        starts[strategy] = {
            "e_map": map_error(student, teacher, cfg.sigma_init, seed=seeds[0]),
            **{name: float(np.mean([row[name] for row in found])) for name in measures},
            "fd_start": distance(student.one_step(cfg.sigma_init), seeds[0]),
        }
    warmed = [s for s in strategies if head_warmup and _has_fresh_layers(teacher, s)]
    table: Table = []
    for share, chosen in ((cfg.head_warmup, list(strategies)), (HEAD_WARMUP, warmed)):
        if not chosen:
            continue
        runs = [(strategy, seed) for strategy in chosen for seed in seeds]

        def measure(step: int, generators: list[Generator], runs: Any = runs) -> list[dict[str, float]]:
            return [{"fd": distance(g, seed)} for g, (_, seed) in zip(generators, runs, strict=True)]

        results = train_students(
            data,
            teacher,
            [cfg.replace(init=strategy, head_warmup=share) for strategy, _ in runs],
            [seed for _, seed in runs],
            single_level=single_level,
            off_level=off_level,
            eval_every=eval_every or cfg.steps,
            on_eval=measure,
            report=report,
        )
        for place, strategy in enumerate(chosen):
            mine = results[place * len(seeds) : (place + 1) * len(seeds)]
            measured = [[(e["step"], e["fd"]) for e in result.history if "fd" in e] for result in mine]
            curve = [(points[0][0], float(np.mean([fd for _, fd in points]))) for points in zip(*measured, strict=True)]
            fds = [points[-1][1] for points in measured]
            name = strategy if share == cfg.head_warmup else f"{strategy} + head warm-up"
            table.append({"strategy": name, **starts[strategy], "fd": curve[-1][1], "fds": fds, "curve": curve})
    return Comparison(table, probes)


def teacher_budget(
    data: Dataset,
    teacher_cfg: TeacherConfig,
    cfg: StudentConfig,
    budgets: Sequence[int],
    extract: Extract,
    *,
    seeds: Sequence[int] = (0,),
    n: int = 2000,
    report: Callable[[Entry], None] | None = None,
) -> Table:
    """How much teacher is enough: students of teachers that were trained for so many steps each, 0 for random weights.

    Every teacher has a schedule of its own length. The work of teacher and student is counted together.

    Returns:
        Rows with teacher_steps; fd (mean over seeds) and fds, of n samples to training rows; teacher_passes and
        student_passes: network evaluations of a sample, a backward pass counting as two, in the generator's size.
    """
    if not budgets or min(budgets) < 0:
        raise ConfigError(f"teacher steps have to be zero or more; got {list(budgets)}")
    known = extract(data.x[:5000])
    table: Table = []
    for steps in budgets:
        teacher = train_teacher(data, teacher_cfg.replace(steps=steps), seed=seeds[0], report=report) if steps else None
        changes: dict[str, Any] = {"init": "teacher"} if steps else {
            "init": "random", "net": teacher_cfg.net, "net_kwargs": teacher_cfg.net_kwargs,
            "conditional": teacher_cfg.conditional,
        }  # fmt: skip
        student_cfg = cfg.replace(**changes)
        found = train_students(data, teacher, [student_cfg] * len(seeds), seeds, eval_every=cfg.steps, report=report)
        samples = [r.generator_ema.sample(n, seed) for r, seed in zip(found, seeds, strict=True)]
        fds = [fid(known, extract(x.reshape(-1, *data.shape))) for x in samples]
        cost = update_cost(student_cfg, nets.config(found[0].generator.net))
        table.append(
            {
                "teacher_steps": int(steps),
                "fd": float(np.mean(fds)),
                "fds": fds,
                "teacher_passes": 3.0 * steps * teacher_cfg.batch_size,
                "student_passes": cost.passes * cfg.steps * cfg.batch_size,
            }
        )
    return table


def save_heat_maps(path: Path, probes: dict[str, Table], name: str) -> bool:
    """A PNG of `cka`, `accuracy` or `rank` by block and noise level, a panel a strategy; False if it is not there."""
    if any(name not in table[0] for table in probes.values()):
        return False
    values = {s: _grid(table, name) for s, table in probes.items()}
    top = 1.0 if name != "rank" else max(float(grid.max()) for grid in values.values())
    columns = min(len(values), 4)
    rows = -(-len(values) // columns)
    sheet = figure(3 * columns, 2.6 * rows)
    panels = sheet.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(values) :]:
        axes.set_axis_off()
    for axes, (strategy, table) in zip(panels, probes.items(), strict=False):
        sigmas, blocks = (list(dict.fromkeys(row[key] for row in table)) for key in ("sigma", "block"))
        picture = axes.imshow(values[strategy], vmin=0, vmax=top, aspect="auto", cmap="viridis")
        axes.set_xticks(range(len(blocks)), blocks, rotation=90, fontsize="x-small")
        axes.set_yticks(range(len(sigmas)), [f"{sigma:g}" for sigma in sigmas], fontsize="x-small")
        axes.set_title(strategy, fontsize="small")
        axes.set_ylabel("σ", fontsize="small")
    sheet.colorbar(picture, ax=list(panels), label=name)
    save_figure(sheet, path)
    return True


def save_quality_plot(path: Path, table: Table) -> None:
    """A PNG: FD during training of each strategy; and FD at the end against the error of the map and the features."""
    sheet = figure(12, 4)
    curves, by_map, by_features = sheet.subplots(1, 3)
    for place, row in enumerate(table):
        colour = f"C{place % 10}"
        curves.plot(
            *zip((0, row["fd_start"]), *row["curve"], strict=True), marker=".", color=colour, label=row["strategy"]
        )
        for axes, x in ((by_map, max(row["e_map"], 1e-3)), (by_features, row["cka"])):
            axes.scatter([x], [row["fd"]], color=colour)
            axes.annotate(row["strategy"], (x, row["fd"]), fontsize="xx-small")
    curves.set(yscale="log", xlabel="step", ylabel="FD")
    curves.legend(fontsize="x-small")
    by_map.set(xscale="log", yscale="log", xlabel="error of the map at step 0", ylabel="FD at the end")
    by_features.set(yscale="log", xlabel="CKA with the teacher's features at step 0")
    save_figure(sheet, path)


def save_budget_plot(path: Path, table: Table) -> None:
    """A PNG: FD of the student against the teacher's steps."""
    sheet = figure(5, 4)
    axes = sheet.subplots()
    axes.plot([row["teacher_steps"] for row in table], [row["fd"] for row in table], marker="o")
    axes.set(yscale="log", xlabel="steps of the teacher", ylabel="FD of the student")
    save_figure(sheet, path)


def _grid(table: Table, name: str) -> NDArray[np.float64]:
    """(levels, blocks)."""
    levels = len({row["sigma"] for row in table})
    return np.array([row[name] for row in table], float).reshape(levels, -1)


def _has_fresh_layers(teacher: Denoiser, strategy: str) -> bool:
    """Some, but not all: with nothing kept there is no head to warm up."""
    fresh = jax.tree.leaves(made_fresh(teacher.net, strategy))
    return any(fresh) and not all(fresh)
