"""E7: the direction is falsifiable from moments, by leaving covariances out and predicting them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..datasets import independent_causes, star
from .common import array_moments
from .profiles import Profile
from .report import PEERS_PAPER, Artifact, Claim, Experiment, Metric, auc, auc_interval, wilson_interval

Array = NDArray[np.float64]
ROWS = 2000
DIMENSIONS = (2, 3, 5)


def run_e7(profile: Profile, rng: np.random.Generator, out: Path) -> Experiment:
    """C8: the leave-one-out score tells independent causes of Y from effects of Y."""
    from .. import lovo, plots

    result = Experiment()
    scores: dict[str, tuple[Array, Array]] = {}
    n = profile.direction_problems
    for d in DIMENSIONS:
        causal, anticausal = np.empty(n), np.empty(n)
        errors = np.empty((2 * n, 2))
        for k in range(n):
            effects = rng.uniform(0.4, 1.5, (2, d)) * rng.choice([-1.0, 1.0], (2, d))
            truth_causal = independent_causes(rng, ROWS, effects[0], intercept=float(rng.uniform(-1.0, 1.0)))
            truth_anticausal = star(rng, ROWS, effects[1], prevalence=float(rng.uniform(0.25, 0.75)))
            for row, values, sample in ((0, causal, truth_causal), (n, anticausal, truth_anticausal)):
                left_out = lovo(array_moments(sample.X, sample.y), "y")
                values[k] = left_out.score
                errors[row + k] = left_out.error_causal, left_out.error_anticausal
        scores[f"d = {d}"] = (causal, anticausal)
        correct = int((causal < 0).sum() + (anticausal > 0).sum())
        setting = f"{n} problems per truth, effects ±U(.4, 1.5), {ROWS} rows, d = {d}"
        result.claims += [
            Claim(
                id=f"C8-auc-d{d}",
                statement=f"The leave-one-covariance-out score separates X → Y from Y → X (d = {d})",
                source=PEERS_PAPER["lovo"],
                measured=auc(anticausal, causal),
                op=">=",
                value=0.97,
                n=2 * n,
                ci=auc_interval(anticausal, causal),
                note=f"AUC, DeLong (Wilson near 1) interval; {setting}",
            ),
            Claim(
                id=f"C8-sign-d{d}",
                statement=f"The sign of the score alone tells the direction (d = {d})",
                source=PEERS_PAPER["lovo"],
                measured=correct / (2 * n),
                op=">=",
                value=0.95,
                n=2 * n,
                ci=wilson_interval(correct, 2 * n),
                note=f"accuracy, Wilson interval; {setting}",
            ),
        ]
        by_error = int((errors[:n, 0] < errors[:n, 1]).sum() + (errors[n:, 0] > errors[n:, 1]).sum())
        result.metrics.append(
            Metric(f"E7 accuracy of the smaller full-completion error, d = {d}", by_error / (2 * n), "", "higher")
        )
    plots.score_histogram(
        scores,
        out / "direction_score.png",
        xlabel="signed √score",
        labels=("truth X → Y, independent causes", "truth Y → X, naive Bayes"),
        title="Leave-one-covariance-out score",
    )
    result.artifacts.append(Artifact("direction_score.png", "Score that tells the direction, under both truths"))
    return result
