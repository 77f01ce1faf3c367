"""Groups of students, trained under one budget and judged by the Fréchet distance, for all experiments."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import load_model, save_model
from ..config import StudentConfig, TeacherConfig
from ..data import Dataset, load_data, make_dataset
from ..denoiser import Denoiser, Generator, Ratio
from ..features import features
from ..metrics import frechet_distance
from ..train import train_students, train_teacher
from .assets import LAWS, shipped_teacher
from .pool import each
from .profiles import Profile

SECOND = "mnist5k:14"  # a second data set, from the extra `data`


@dataclass(frozen=True)
class Group:
    """Students that differ in what `train_students` allows: rows are (settings, seed).

    data, features : what they learn, and what they are judged in. teacher : name of the file, "" for none.
    """

    data: str
    features: str
    teacher: str
    settings: tuple[StudentConfig, ...]
    seeds: tuple[int, ...]
    evaluations: int
    samples: int
    side_by_side: bool = True
    keep: str = ""  # prefix of the files of generators and ratios


@dataclass
class Run:
    """One student: (updates, FD) while it was trained, from 0 on; seconds of training, of its share if side by side."""

    settings: StudentConfig
    seed: int
    curve: list[tuple[int, float]]
    seconds: float = 0.0
    extra: dict[str, float] = field(default_factory=dict)

    @property
    def start(self) -> float:
        """FD before the first update."""
        return self.curve[0][1]

    @property
    def final(self) -> float:
        """FD after the last one."""
        return self.curve[-1][1]

    def updates_to(self, level: float) -> float:
        """Updates until FD ≤ level, log-linear between evaluations; infinite if it never was."""
        for (a, fd_a), (b, fd_b) in zip(self.curve, self.curve[1:], strict=False):
            if fd_b <= level:
                share = 1.0 if fd_a <= fd_b else (np.log(fd_a) - np.log(level)) / (np.log(fd_a) - np.log(fd_b))
                return a + (b - a) * float(np.clip(share, 0, 1))
        return float("inf")


@cache
def dataset(name: str) -> Dataset:
    """A tenth is held out; the second data set is in units in which its pooled deviation is one half."""
    data = load_data(name, held_out=0.1, seed=0).without_labels()
    if name == SECOND:
        return make_dataset(data.x, name=name, test=(data.held_out, None))
    return data


@cache
def real_moments(name: str, kind: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and covariance of the features of the training rows."""
    return moments(extract(name, kind, dataset(name).x))


def moments(found: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and covariance."""
    return found.mean(0), np.cov(found.T)


def extract(name: str, kind: str, rows: NDArray[Any]) -> NDArray[np.float64]:
    """Features of rows in data units."""
    return features(rows.reshape(-1, *dataset(name).shape), kind)


def distance(name: str, kind: str, samples: NDArray[Any]) -> float:
    """FD of samples in data units to the training rows."""
    return frechet_distance(*moments(extract(name, kind, samples)), *real_moments(name, kind))


def floor_and_halves(name: str, kind: str) -> float:
    """FD of a random half of the training rows to all of them."""
    rows = dataset(name).x
    half = np.random.default_rng(0).permutation(len(rows))[: len(rows) // 2]
    return distance(name, kind, rows[half])


# --- teachers ---------------------------------------------------------------------------------------------------------


def teacher_file(out: Path, name: str) -> Path:
    """Where a teacher of this evaluation lies."""
    return out / "runs" / f"teacher_{name}.safetensors"


def teachers(profile: Profile, out: Path, data: str, steps: int, prefix: str = "") -> dict[str, float]:
    """Train or copy the three teachers, for `steps` steps or as shipped; seconds of each."""
    if steps == 0:
        for name in LAWS:
            save_model(teacher_file(out, prefix + name), shipped_teacher(name))
        return {}
    jobs = [(profile, data, name, steps, str(teacher_file(out, prefix + name))) for name in LAWS]
    return dict(zip(LAWS, each(_train_teacher, jobs), strict=True))


def _train_teacher(profile: Profile, data: str, name: str, steps: int, path: str) -> float:
    cfg = TeacherConfig(
        net=profile.net, net_kwargs=dict(profile.net_kwargs), sigma_law=LAWS[name], steps=steps,
        batch_size=profile.batch, lr=1e-3 if profile.net == "mlp" else 3e-4, precision=profile.precision,
        steps_per_call=profile.steps_per_call,
    )  # fmt: skip
    began = time.perf_counter()
    save_model(path, train_teacher(dataset(data), cfg, seed=0))
    return time.perf_counter() - began


def student_settings(profile: Profile, method: str, **changes: Any) -> StudentConfig:
    """What all students of a profile share, whatever the method."""
    base: dict[str, Any] = {
        "method": method, "net": profile.net, "net_kwargs": dict(profile.net_kwargs), "steps": profile.updates,
        "batch_size": profile.batch, "lr": profile.lr, "ratio_lr": profile.ratio_lr, "precision": profile.precision,
        "aux_updates": profile.score_aux if method in ("score", "sid") else profile.aux,
        "steps_per_call": profile.steps_per_call,
    }  # fmt: skip
    return StudentConfig(**base | changes)


# --- training and judging ---------------------------------------------------------------------------------------------


def train_group(group: Group, out: str) -> list[Run]:
    """All runs of a group, in one program or one after the other."""
    data = dataset(group.data)
    named = {name: _load(out, group, name) for name in LAWS}
    teacher = named["multi"]
    spent = 0.0

    def judged(generators: Sequence[Generator], seeds: Sequence[int]) -> list[float]:
        nonlocal spent
        began = time.perf_counter()
        samples = [g.sample(group.samples, seed=1000 + seed) for g, seed in zip(generators, seeds, strict=True)]
        found = [distance(group.data, group.features, x) for x in samples]
        spent += time.perf_counter() - began
        return found

    def train(settings: Sequence[StudentConfig], seeds: Sequence[int]) -> list[Any]:
        every = max(1, settings[0].steps // group.evaluations)

        def on_eval(step: int, generators: list[Generator]) -> list[dict[str, float]]:
            return [{"fd": fd} for fd in judged(generators, seeds)]

        return train_students(
            data, teacher, list(settings), list(seeds), single_level=named["single"], off_level=named["off"],
            eval_every=every, on_eval=on_eval,
        )  # fmt: skip

    began = time.perf_counter()
    if group.side_by_side:
        results = train(group.settings, group.seeds)
    else:
        results = [r for cfg, seed in zip(group.settings, group.seeds, strict=True) for r in train([cfg], [seed])]
    seconds = (time.perf_counter() - began - spent) / len(group.settings)
    runs = []
    starts: dict[tuple[str, int], float] = {}
    for result, cfg, seed in zip(results, group.settings, group.seeds, strict=True):
        if group.keep:
            store(out, group.keep, cfg.init, seed, result.generator_ema, result.ratio)
        if (cfg.init, seed) not in starts:
            starts[cfg.init, seed] = judged([initial(cfg, seed, teacher, named)], [seed])[0]
        measured = [(entry["step"], entry["fd"]) for entry in result.history if "fd" in entry]
        least = min((entry.get("ess", 1.0) for entry in result.history), default=1.0)
        curve = [(0, starts[cfg.init, seed]), *measured]
        runs.append(Run(cfg, seed, curve, seconds, {"least ess": float(least)}))
    return runs


def initial(cfg: StudentConfig, seed: int, teacher: Denoiser | None, named: dict[str, Any]) -> Generator:
    """The student before its first update."""
    from ..initialise import init_student
    from ..train import run_keys

    assert teacher is not None
    params = init_student(
        teacher, cfg.init, key=run_keys(seed, "student")[0], single_level=named["single"], off_level=named["off"],
        sigma_init=cfg.sigma_init,
    )  # fmt: skip
    return teacher.with_params(params).one_step(cfg.sigma_init)


def store(out: str, keep: str, init: str, seed: int, generator: Generator, ratio: Ratio | None) -> None:
    """For later experiments and pictures."""
    name = f"{keep}_{init.replace(':', '-').replace('*', '')}_{seed}"
    save_model(Path(out) / "runs" / f"{name}_generator.safetensors", generator)
    if ratio is not None:
        save_model(Path(out) / "runs" / f"{name}_ratio.safetensors", ratio)


def stored(out: Path, keep: str, init: str, seed: int, kind: str) -> Any:
    """What `store` wrote; None if it did not."""
    path = out / "runs" / f"{keep}_{init}_{seed}_{kind}.safetensors"
    return load_model(path) if path.exists() else None


def _load(out: str, group: Group, name: str) -> Denoiser | None:
    path = teacher_file(Path(out), group.teacher + name)
    model: Denoiser | None = load_model(path) if path.exists() else None
    return model
