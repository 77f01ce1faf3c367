"""Peers that need neither teacher nor second network, and the student that is its own teacher, at equal arithmetic."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from .. import nets
from ..config import StudentConfig
from ..costs import update_cost
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
    passes = 3 * WARMUP + profile.short * _passes(profile, "ratio")
    updates = {m: profile.short if m == "ratio" else round(passes / _passes(profile, m)) for m in METHODS}
    jobs = [(profile, method, steps) for method, steps in updates.items()]
    for (method, steps), (seconds, fd) in zip(updates.items(), each(_train, jobs), strict=True):
        name = f"from scratch, {method}, {steps:,} updates"
        name += f" after {WARMUP:,} of denoising" if method == "ratio" else ""
        experiment.metrics += [Metric(f"{name}: FD", fd, "", "lower"), Metric(f"{name}: time", seconds, "s", "lower")]
    experiment.metrics.append(Metric("from scratch: forward passes of the network, each", passes, "", "lower"))
    return experiment


def _settings(profile: Profile, method: str) -> StudentConfig:
    init = f"warmup:{WARMUP}" if method == "ratio" else "random"
    return student_settings(profile, method, init=init, lr=profile.lr if method == "ratio" else 1e-3)


def _passes(profile: Profile, method: str) -> float:
    net = nets.preset(profile.net, (int(np.prod(dataset(profile.data).shape)),)) | dict(profile.net_kwargs)
    return update_cost(_settings(profile, method), nets.config(nets.abstract(net))).passes


def _train(profile: Profile, method: str, steps: int) -> tuple[float, float]:
    """(seconds, FD)"""
    began = time.perf_counter()
    result = train_student(dataset(profile.data), None, _settings(profile, method).replace(steps=steps))
    spent = time.perf_counter() - began
    samples = result.generator_ema.sample(profile.samples, seed=1000)
    return spent, distance(profile.data, profile.features, samples)
