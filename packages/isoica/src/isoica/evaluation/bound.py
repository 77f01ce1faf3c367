"""E9: what the data prove about the perturbation, how often the proof is right, and what no data can show."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..datasets import make_perturbed_linear, make_sources, measure_preserving_flow
from ..linear import PerturbedICA
from ..theory import eta_lower_bound
from .plots import draw_lines
from .profiles import Profile
from .report import DERIVED, Artifact, Claim, Experiment, Metric

ETAS = (0.0, 0.02, 0.05, 0.1, 0.2)


def run_e9(profile: Profile, rng: np.random.Generator, out: Path) -> Experiment:
    """Random perturbations, and a flow that leaves the law of the sources as it is."""
    runs = profile.bound_runs
    lower, estimate, rejected = (np.empty((runs, len(ETAS))) for _ in range(3))
    for seed in range(runs):
        for column, eta in enumerate(ETAS):
            data = make_perturbed_linear(profile.bound_n, 4, eta=eta, random_state=[seed, 9])
            S = PerturbedICA(random_state=0).fit_transform(data.X)
            found = eta_lower_bound(S, n_permutations=100, random_state=seed)
            lower[seed, column], estimate[seed, column] = found.lower, found.estimate
            rejected[seed, column] = found.p_value <= 0.05
    right = float((lower <= np.array(ETAS)).mean())
    draw_lines(
        {
            "estimate": (ETAS[1:], np.maximum(estimate[:, 1:], 1e-3)),
            "95 % lower bound": (ETAS[1:], np.maximum(lower[:, 1:], 1e-3)),
            "the truth": (ETAS[1:], np.array([ETAS[1:]])),
        },
        out / "bound.png",
        "size of the perturbation, η",
        "what the data prove",
        dashed="the truth",
    )
    flow = [_flow(profile.bound_n, seed) for seed in range(max(10, runs // 5))]
    losses, p_values = (np.array(values) for values in zip(*flow, strict=True))
    claims = [
        Claim(
            id="bound-valid",
            measured=right,
            op=">=",
            value=0.95,
            n=lower.size,
            source=DERIVED,
            statement="The lower bound on the perturbation lies below the truth.",
            unit="share of runs",
        ),
        Claim(
            id="undetectable",
            measured=float((p_values <= 0.05).mean()),
            op="<=",
            value=0.2,
            n=len(flow),
            source=DERIVED,
            statement="A flow that leaves the law of the sources as it is cannot be seen in the data.",
            unit="share of runs that reject at 5 %",
        ),
        Claim(
            id="undetectable-harms",
            measured=float(np.abs(losses / (0.1**2 / 4) - 1).mean()),
            op="<=",
            value=0.15,
            n=len(flow),
            source=DERIVED,
            statement="And yet it costs a quarter of η² in correlation: no bound is two-sided.",
            unit="mean relative distance",
            note=f"1 − corr {losses.mean():.5f} at η = .1",
        ),
    ]
    metrics = [
        Metric(
            f"η = {eta:g}: rejected at 5 %",
            float(rejected[:, c].mean()),
            "share of runs",
            "lower" if eta == 0 else "higher",
        )
        for c, eta in enumerate(ETAS)
    ]
    metrics += [
        Metric(f"η = {eta:g}: estimate", float(estimate[:, c].mean()), "", "higher") for c, eta in enumerate(ETAS)
    ]
    return Experiment(claims, metrics, [], [Artifact("bound.png", "What the data prove about the perturbation")])


def _flow(n: int, seed: int) -> tuple[float, float]:
    S = make_sources(n, ["uniform", "uniform"], random_state=[seed, 99])
    S = np.clip(S, -np.sqrt(3) + 1e-9, np.sqrt(3) - 1e-9)
    moved = measure_preserving_flow(S, 0.1)
    loss = float(np.mean([1 - np.corrcoef(S[:, i], moved[:, i])[0, 1] for i in range(2)]))
    return loss, eta_lower_bound(moved, n_permutations=100, random_state=seed).p_value
