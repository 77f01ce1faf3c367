"""How wrong estimated gradients are as the student nears the data, against the exact ones (claim of v4)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..bias import DELTAS, ESTIMATORS, error_slopes, gradient_bias, save_bias_plot
from .pool import each
from .profiles import Profile
from .report import Artifact, Claim, Experiment, Metric, factor, t_interval

SMALL = (0.03, 0.1, 0.3)  # noise levels at which the claim is made
SLOPES = (0.03, 0.1)


def run_bias(profile: Profile, rng: np.random.Generator, out: Path, device: str = "cpu") -> Experiment:
    """The oracle laboratory: a ring of 8, perturbed by δ."""
    experiment = Experiment()
    halves = (profile.bias_seeds[::2], profile.bias_seeds[1::2])
    jobs = [(seeds, profile.bias_steps) for seeds in halves if seeds]
    table = [row for rows in each(_table, jobs) for row in rows]
    near = [row for row in table if row["delta"] == min(DELTAS) and row["sigma"] in SMALL]
    by_seed = np.array([
        np.mean([np.log(row["ratio"] / row["independent_scores"]) for row in near if row["seed"] == seed])
        for seed in profile.bias_seeds
    ])  # fmt: skip
    experiment.claims.append(
        Claim(
            id="less-bias", **factor(by_seed), op="<",
            value=0.6, paper="the ratio cuts gradient bias (v4)",
            statement="Near the data the gradient of a ratio is less wrong than the difference of two scores.",
            unit="error over that of independent scores", note=f"δ = {min(DELTAS)}, σ ≤ {max(SMALL)}",
        )
    )  # fmt: skip
    slopes = {
        name: np.array([
            np.mean([row[name] for row in error_slopes([r for r in table if r["seed"] == seed])
                     if row["sigma"] in SLOPES])
            for seed in profile.bias_seeds
        ])
        for name in ESTIMATORS
    }  # fmt: skip
    for identifier, name, op, value, statement in (
        ("scores-do-not-shrink", "independent_scores", "<", -0.5,
         "The relative error of two scores grows as the student nears the data."),
        ("ratio-shrinks", "ratio", ">", -0.35, "That of the ratio hardly does."),
    ):  # fmt: skip
        experiment.claims.append(
            Claim(
                id=identifier, measured=float(slopes[name].mean()), ci=t_interval(slopes[name]), op=op, value=value,
                n=len(slopes[name]), statement=statement, paper="the ratio cuts gradient bias (v4)",
                unit="log-log slope in δ", note=f"σ ≤ {max(SLOPES)}",
            )
        )  # fmt: skip
    hybrid = [row["hybrid"] / min(row["scores_from_teacher"], row["ratio"]) for row in table]
    experiment.claims.append(
        Claim(
            id="hybrid-no-worse", measured=float(np.exp(np.mean(np.log(hybrid)))), op="<=", value=1.05, n=len(hybrid),
            statement="A mix of both, chosen by the error at other points, is as good as the better one at each level.",
            source="target that this package set itself", unit="error over that of the better one, geometric mean",
            note=f"at worst {max(hybrid):.2f}",
        )
    )  # fmt: skip
    for sigma in dict.fromkeys(row["sigma"] for row in table):
        for delta in (max(DELTAS), min(DELTAS)):
            rows = [row for row in table if row["sigma"] == sigma and row["delta"] == delta]
            for name in ESTIMATORS:
                mean = float(np.exp(np.mean([np.log(row[name]) for row in rows])))
                experiment.metrics.append(
                    Metric(f"δ = {delta:g}, σ = {sigma:g}: {name.replace('_', ' ')}", mean, "relative error", "lower")
                )
    save_bias_plot(out / "bias.png", table)
    experiment.artifacts.append(Artifact("bias.png", "Relative error of the gradient as the student nears the data"))
    return experiment


def _table(seeds: tuple[int, ...], steps: int) -> list[dict[str, float]]:
    return gradient_bias(seeds=seeds, steps=steps)
