"""Peers that need neither teacher nor second network, and the student that is its own teacher, at equal wall time."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from ..train import train_student
from .pool import each
from .profiles import Profile
from .report import Experiment, Metric
from .students import dataset, distance, student_settings

WARMUP = 1_500  # steps of denoising before the ratio
METHODS = ("ratio", "ict", "meanflow")


def run_scratch(profile: Profile, rng: np.random.Generator, out: Path, device: str = "cpu") -> Experiment:
    """Reported, not judged: none of the three is tuned."""
    experiment = Experiment()
    seconds, fd, steps = _train(profile, "ratio", profile.short, 0.0)
    experiment.metrics += [
        Metric(f"from scratch, ratio after {WARMUP:,} steps of denoising: FD in {seconds:.0f} s", fd, "", "lower"),
        Metric("from scratch, ratio: updates", steps, "", "higher"),
    ]
    jobs = [(profile, method, 0, seconds) for method in METHODS[1:]]
    for method, (spent, fd, steps) in zip(METHODS[1:], each(_train, jobs, profile.workers), strict=True):
        experiment.metrics += [
            Metric(f"from scratch, {method}: FD in {spent:.0f} s", fd, "", "lower"),
            Metric(f"from scratch, {method}: updates", steps, "", "higher"),
        ]
    return experiment


def _train(profile: Profile, method: str, steps: int, seconds: float) -> tuple[float, float, int]:
    """(seconds, FD, updates); without steps, as many as fit into the seconds."""
    data = dataset(profile.data)
    init = f"warmup:{WARMUP}" if method == "ratio" else "random"
    changes = {"init": init, "lr": profile.lr if method == "ratio" else 1e-3}
    if not steps:
        timed = student_settings(profile, method, steps=2 * profile.steps_per_call, **changes)
        train_student(data, None, timed)  # compiles
        began = time.perf_counter()
        train_student(data, None, timed)
        each_step = (time.perf_counter() - began) / timed.steps
        steps = max(
            profile.steps_per_call, round(seconds / each_step / profile.steps_per_call) * profile.steps_per_call
        )
    began = time.perf_counter()
    result = train_student(data, None, student_settings(profile, method, steps=steps, **changes))
    spent = time.perf_counter() - began
    samples = result.generator_ema.sample(profile.samples, seed=1000)
    return spent, distance(profile.data, profile.features, samples), steps
