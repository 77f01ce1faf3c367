"""The ratio as verifier on the digits: fitted again to a finished generator, then candidates for each sample (v5)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import load_model
from ..distance import certified_distance, save_distance_plot
from ..selection import cost_quality
from ..verify import refit_ratio
from .plots import draw_candidates
from .pool import each
from .profiles import Profile
from .report import Artifact, Claim, Experiment, Metric, factor
from .students import dataset, extract, stored

SAMPLES = 5_000  # at the end of each choice; FD wobbles by half at 2,000


def run_verifier(profile: Profile, rng: np.random.Generator, out: Path, device: str = "cpu") -> Experiment:
    """Generators of the main comparison, or nothing if it has not run."""
    experiment = Experiment()
    jobs = [
        (profile, str(out), init, seed)
        for init, seeds in (("teacher", profile.seeds), ("single_level", profile.seeds[:1]))
        for seed in seeds
        if stored(out, "ratio", init, seed, "ratio") is not None
    ]
    if not jobs:
        return experiment
    tables = dict(zip([job[2:] for job in jobs], each(_one, jobs), strict=True))
    main = [tables["teacher", seed] for seed in profile.seeds]
    log = np.log([_at(table["fitted"], 8) for table in main])
    experiment.claims.append(
        Claim(
            id="verifier", **factor(log), op="<", value=0.97,
            paper="better samples from parallel compute (v5)", unit="times in FD",
            statement="Resampling among 8 candidates by the ratio that was fitted again brings samples nearer.",
            note="σ_v " + ", ".join(f"{table['sigma_v']:g}" for table in main),
        )
    )  # fmt: skip
    for (init, seed), table in tables.items():
        for kind in ("fitted", "training"):
            experiment.metrics.append(
                Metric(
                    f"{init}, seed {seed}, {kind} ratio: FD of the best of 8 over 1", _at(table[kind], 8), "", "lower"
                )
            )
        experiment.metrics.append(
            Metric(f"{init}, seed {seed}: effective sample size of 8", table["fitted"][3]["ess"], "", "higher")
        )
        experiment.metrics.append(
            Metric(f"{init}, seed {seed}: JS of data and samples, certified", table["js_lower"], "nats", "lower")
        )
    first = tables["teacher", profile.seeds[0]]
    curves = {"fitted again": first["fitted"], "as training left it": first["training"]}
    if ("single_level", profile.seeds[0]) in tables:
        curves["fitted again, weak student"] = tables["single_level", profile.seeds[0]]["fitted"]
    draw_candidates(curves, out / "candidates.png", f"FD({profile.features}) over that of 1 candidate")
    experiment.artifacts += [
        Artifact("candidates.png", "Fréchet distance by the number of candidates a sample"),
        Artifact("distance.png", "Certified distance to held-out data by noise level"),
    ]
    return experiment


def _at(table: list[dict[str, float]], candidates: int) -> float:
    return next(row["fd"] for row in table if row["candidates"] == candidates) / table[0]["fd"]


def _one(profile: Profile, out: str, init: str, seed: int) -> dict[str, Any]:
    folder, data = Path(out), dataset(profile.data)
    runs = folder / "runs"
    generator = load_model(runs / f"ratio_{init}_{seed}_generator.safetensors")
    trained = load_model(runs / f"ratio_{init}_{seed}_ratio.safetensors")
    fitted = refit_ratio(generator, trained, data, steps=profile.refit, seed=seed)

    def features(rows: Any) -> Any:
        return extract(profile.data, profile.features, rows)

    same: dict[str, Any] = {"candidates": profile.verifier_groups, "n": SAMPLES, "seed": 2000 + seed}
    flat = data.flatten() if len(generator.net.shape) == 1 else data
    found = certified_distance(generator, fitted, data, seed=seed)
    if init == "teacher" and seed == profile.seeds[0]:
        save_distance_plot(folder / "distance.png", found)
    return {
        "fitted": cost_quality(generator, fitted, flat, features, **same),
        "training": cost_quality(generator, trained, flat, features, **same),
        "sigma_v": fitted.sigma_v,
        "js_lower": found.js_lower,
    }
