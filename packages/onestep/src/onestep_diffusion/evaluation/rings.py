"""A teacher that is wrong: what the student of its score inherits, and that of the ratio does not (claim of v4)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..config import TeacherConfig
from ..data import load_data
from ..metrics import sliced_wasserstein
from ..train import train_student, train_teacher
from .pool import each
from .profiles import Profile
from .report import Claim, Experiment, Metric, factor
from .students import student_settings

ROWS, HELD_OUT, TEACHER_STEPS, SAMPLES = 6_000, 0.25, 2_500, 4_000
METHODS = ("ratio", "score")


def run_rings(profile: Profile, rng: np.random.Generator, out: Path, device: str = "cpu") -> Experiment:
    """Three rings, and a teacher that was trained too short."""
    experiment = Experiment()
    found = each(_train, [(profile, seed) for seed in profile.ring_seeds])
    teacher, ours, theirs, floor = (
        np.array([values[name] for values in found]) for name in ("teacher", "ratio", "score", "floor")
    )
    for identifier, log, value, statement in (
        ("beats-its-teacher", np.log(ours / teacher), 0.9,
         "The student of the ratio is nearer to held-out data than its under-trained teacher in 35 evaluations."),
        ("score-inherits", np.log(ours / theirs), 0.8,
         "And nearer than the student that follows that teacher's score."),
    ):  # fmt: skip
        experiment.claims.append(
            Claim(
                id=identifier, **factor(log), op="<",
                value=value, statement=statement, paper="no teacher's bias (v4)",
                unit="times in sliced Wasserstein", note=f"three rings, {profile.ring_updates:,} updates",
            )
        )  # fmt: skip
    experiment.metrics += [
        Metric("rings: floor, other real points", float(floor.mean()), "", "lower"),
        Metric("rings: teacher, 35 evaluations", float(teacher.mean()), "", "lower"),
        Metric("rings: ratio, one evaluation", float(ours.mean()), "", "lower"),
        Metric("rings: score, one evaluation", float(theirs.mean()), "", "lower"),
    ]
    return experiment


def _train(profile: Profile, seed: int) -> dict[str, float]:
    """Sliced Wasserstein distances to held-out points, in units in which the data's deviation is one half."""
    data = load_data("rings", held_out=HELD_OUT, seed=0, rows=ROWS)
    cfg = TeacherConfig(net="mlp", net_kwargs={"hidden": 128, "blocks": 3}, steps=TEACHER_STEPS, batch_size=128)
    teacher = train_teacher(data, cfg, seed=seed)
    samples = {"teacher": teacher.sample(SAMPLES, seed=1000 + seed), "floor": data.x}
    for method in METHODS:
        settings = student_settings(profile, method, steps=profile.ring_updates, net_kwargs={})
        result = train_student(data, teacher, settings, seed=seed)
        samples[method] = result.generator_ema.sample(SAMPLES, seed=1000 + seed)
    held_out = data.to_model(data.held_out)
    return {name: sliced_wasserstein(data.to_model(x), held_out, seed=seed) for name, x in samples.items()}
