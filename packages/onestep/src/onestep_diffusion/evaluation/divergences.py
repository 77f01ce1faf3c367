"""Every divergence, and the crutches of adversarial training, under one budget (claims of v1 and v3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .plots import draw_bars
from .pool import each
from .profiles import Profile
from .report import Artifact, Claim, Experiment, Metric, factor
from .students import Group, Run, student_settings, train_group

ALPHAS = {"skew_js": 0.5}
TRICKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "R1 .1": {"ratio_r1": 0.1},
    "R1 1": {"ratio_r1": 1.0},
    "spectral norm": {"ratio_spectral_norm": True},
    "one level (GAN)": {"method": "gan"},
}


def run_divergences(profile: Profile, rng: np.random.Generator, out: Path, device: str = "cpu") -> Experiment:
    """All in two programs; the weights are the only difference."""
    experiment = Experiment()
    names = (*profile.divergences, *profile.unbounded)
    halves = (names[::2], names[1::2])
    jobs = [(_group(profile, [{"divergence": d, "alpha": ALPHAS.get(d)} for d in half]), str(out)) for half in halves]
    found = [run for group in each(train_group, jobs) for run in group]
    runs: dict[str, list[Run]] = {}
    for run in found:
        runs.setdefault(run.settings.divergence, []).append(run)
    log = {name: np.log([run.final for run in group]) for name, group in runs.items()}
    ranked = sorted(profile.divergences, key=lambda name: float(log[name].mean()))
    spread = log[ranked[-1]] - log[ranked[0]]
    experiment.claims.append(
        Claim(
            id="any-divergence", **factor(spread), op="<=",
            value=2.5, paper="a family of divergences (v1)", unit="times in FD, worst over best",
            statement=f"{len(ranked)} divergences bring the generator about as near to the data.",
            note=f"best {ranked[0]}, worst {ranked[-1]}; {', '.join(profile.unbounded)} are reported, not judged",
        )
    )  # fmt: skip
    for name, group in runs.items():
        experiment.metrics += [
            Metric(f"{name}: FD, mean of {len(group)}", float(np.exp(log[name].mean())), "", "lower"),
            Metric(f"{name}: least effective share of a batch", min(r.extra["least ess"] for r in group), "", "higher"),
        ]
    draw_bars(
        {name: [run.final for run in runs[name]] for name in names}, out / "divergences.png",
        f"FD({profile.features}) after {profile.short} updates",
    )  # fmt: skip
    experiment.artifacts.append(Artifact("divergences.png", "Fréchet distance by divergence"))
    return experiment


def run_tricks(profile: Profile, rng: np.random.Generator, out: Path, device: str = "cpu") -> Experiment:
    """The plain ratio against gradient penalty, spectral norm, and the same loop at one small noise level."""
    experiment = Experiment()
    jobs = [(_group(profile, [changes]), str(out)) for changes in TRICKS.values()]
    runs = dict(zip(TRICKS, each(train_group, jobs), strict=True))
    log = {name: np.log([run.final for run in group]) for name, group in runs.items()}
    best = min(("R1 .1", "R1 1", "spectral norm"), key=lambda name: float(log[name].mean()))
    against = log["plain"] - log[best]
    gan = log["plain"] - log["one level (GAN)"]
    own = np.log([run.final / min(fd for _, fd in run.curve) for run in runs["plain"]])
    for identifier, values, value, statement, note in (
        ("no-gan-tricks", against, 1.2, "Gradient penalty and spectral norm bring nothing.", f"the best is {best}"),
        ("many-levels", gan, 0.8, "Many noise levels are what does it: at one small level the same loop is worse.", ""),
        ("no-rise", own, 1.5, "The distance does not rise again while the plain ratio trains.", "end over minimum"),
    ):
        experiment.claims.append(
            Claim(
                id=identifier, **factor(values), op="<",
                value=value, statement=statement, paper="no gradient penalty, no spectral norm (v3)",
                unit="times in FD", note=note,
            )
        )  # fmt: skip
    experiment.metrics += [
        Metric(f"{name}: FD, mean of {len(values)}", float(np.exp(values.mean())), "", "lower")
        for name, values in log.items()
    ]
    return experiment


def _group(profile: Profile, changes: list[dict[str, Any]]) -> Group:
    cfgs = []
    for change in changes:
        options = {"steps": profile.short, **change}
        cfgs.append(student_settings(profile, options.pop("method", "ratio"), **options))
    settings = tuple(cfg for cfg in cfgs for _ in profile.other_seeds)
    return Group(
        profile.data, profile.features, "", settings, profile.other_seeds * len(cfgs), 4, profile.samples,
        profile.side_by_side,
    )  # fmt: skip
