"""For an accelerator: linear ICA of ten million samples in single precision, Θ at a million points."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from ..datasets import DeepIsometry, make_sources
from ..isometry import theta
from ..linear import PerturbedICA
from ..metrics import amari_distance
from .profiles import Profile
from .report import Experiment, Metric

POINTS = 1_000_000


def run_big(profile: Profile, rng: np.random.Generator, out: Path) -> Experiment:
    """Reported, not judged."""
    d = profile.big_d
    A = np.linalg.qr(rng.normal(size=(d, d)))[0]
    X = (make_sources(profile.big_n, ["uniform", "laplace"] * (d // 2), random_state=0) @ A.T).astype(np.float32)
    began = time.perf_counter()
    model = PerturbedICA(dtype="float32", backend="jax", tol=1e-4, random_state=0).fit(X)
    fitted = time.perf_counter() - began
    f = DeepIsometry(d=4, depth=2, random_state=0)
    began = time.perf_counter()
    found = theta(f, rng.normal(size=(POINTS, 4)), method="jvp")
    spent = time.perf_counter() - began
    return Experiment(
        metrics=[
            Metric(f"ICA of {profile.big_n:,} x {d}, float32: time", fitted, "s", "lower"),
            Metric(
                f"ICA of {profile.big_n:,} x {d}: Amari distance", amari_distance(model.components_, A), "", "lower"
            ),
            Metric(f"Θ at {POINTS:,} points: time", spent, "s", "lower"),
            Metric(f"Θ of an isometry at {POINTS:,} points", found.value, "", "lower"),
        ]
    )
