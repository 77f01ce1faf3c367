"""Cheaper component masking: accuracy for the FLOPs of training, and a ratio that is chosen without labels.

PMAE shows the encoder all tokens, MAE a quarter of them. Here some of the visible image's tokens are dropped as well,
or the decoder is one linear map; every model trains until it has spent the same FLOPs, on its own whole schedule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..models import PMAEConfig
from ..ratio_search import RatioSearch, search_ratio
from ..space import MaskSpace
from .cost import training_flops
from .crops import crops, space_file
from .learning import LEARNING_RATE, PATCHES, RATIO, Job, Run, model_of, train_all
from .plots import draw_frontier, draw_ratios
from .pool import each
from .profiles import Profile
from .report import TARGET, Artifact, Claim, Experiment, Metric

ALL, HALF, MAE = "PMAE", "PMAE, half of the tokens", "MAE 75 %"
# Method, and settings of the model beside the preset's.
MODELS: dict[str, tuple[str, tuple[tuple[str, Any], ...]]] = {
    ALL: ("pmae", ()),
    HALF: ("pmae", (("token_drop", 0.5),)),
    "PMAE, a quarter of the tokens": ("pmae", (("token_drop", 0.75),)),
    "PMAE, light decoder": ("pmae", (("decoder", "light"),)),
    MAE: ("mae", ()),
}
COUNTED, DRAWS = 8, 8  # images and draws of masks that FLOPs are counted on


def run_frontier(profile: Profile, rng: np.random.Generator, out: Path, device: str = "cpu") -> Experiment:
    """Models at equal FLOPs; then the ratio of short runs' held-out FVU beside the one that labels would choose."""
    experiment = Experiment()
    space = space_file(profile, out, "pca", device)
    few = replace(profile, train=profile.frontier_train)
    seeds = profile.model_seeds[: profile.frontier_seeds]
    x = torch.from_numpy(crops(few, "train")[0][:COUNTED]).to(device).float() / 255
    flops = {name: training_flops(model_of(_job(name, seeds[0], 1, space), few, device), x, DRAWS) for name in MODELS}
    at = {
        (name, budget): [_job(name, seed, budget * flops[ALL] / flops[name], space) for seed in seeds]
        for name in MODELS
        for budget in profile.budgets
    }
    longest = profile.budgets[-1]
    sweep = {share: [_job(ALL, seed, longest, space, share) for seed in seeds] for share in profile.shares}
    jobs = list(dict.fromkeys(job for group in (*at.values(), *sweep.values()) for job in group))
    done = dict(zip(jobs, train_all(jobs, few, out / "runs" / "frontier", device), strict=True))
    runs = {key: [done[job] for job in group] for key, group in at.items()}
    searches = each(_search, [(seed, few, space, device) for seed in seeds], profile.workers)

    experiment.metrics += [Metric(f"{name}: training", flops[name] / 1e9, "GFLOP/image", "lower") for name in MODELS]
    _frontier(experiment, runs, [flops[ALL] * profile.frontier_train * budget for budget in profile.budgets], profile)
    draw_frontier(
        {name: [_means(runs[name, budget]) for budget in profile.budgets] for name in MODELS},
        [flops[ALL] * profile.frontier_train * budget for budget in profile.budgets], out / "frontier.png",
    )  # fmt: skip
    experiment.artifacts.append(Artifact("frontier.png", "Accuracy of frozen features by the FLOPs of training"))
    _ratio(experiment, {share: [done[job] for job in group] for share, group in sweep.items()}, searches, out)
    return experiment


def _job(name: str, seed: int, epochs: float, space: str, ratio: float | None = None) -> Job:
    method, settings = MODELS[name]
    usual = RATIO if method == "pmae" else PATCHES
    return Job(method, seed, epochs, usual if ratio is None else ratio, space, settings=settings)


def _means(runs: Sequence[Run]) -> dict[str, float]:
    return {key: float(np.mean([run.final(key) for run in runs])) for key in ("avg linear", "avg knn")}


def _frontier(
    experiment: Experiment, runs: dict[tuple[str, float], list[Run]], spent: list[float], profile: Profile
) -> None:
    for (name, budget), group in runs.items():
        cost = spent[profile.budgets.index(budget)] / 1e15
        for key, value in _means(group).items():
            experiment.metrics.append(Metric(f"{name}, {cost:.3g} PFLOP: {key}", value, "%", "higher"))
    longest = profile.budgets[-1]
    for identifier, other, op, statement in (
        ("tokens-can-be-dropped", ALL, ">=", "PMAE that drops half of the tokens has neighbours as good as with all."),
        ("frontier-over-mae", MAE, ">", "PMAE that drops half of the tokens has better neighbours than MAE 75 %."),
    ):
        pairs = zip(runs[HALF, longest], runs[other, longest], strict=True)
        gaps = [a.final("avg knn") - b.final("avg knn") for a, b in pairs]
        experiment.claims.append(
            Claim(
                id=identifier, measured=float(np.mean(gaps)), op=op, value=0.0, n=len(gaps), source=TARGET,
                statement=f"At the same FLOPs of training, {statement}", unit="points of 10-NN",
                note=f"{spent[-1] / 1e15:.3g} PFLOP each, {profile.frontier_train:,} crops; judged by the mean",
            )
        )  # fmt: skip


def _ratio(experiment: Experiment, sweep: dict[float, list[Run]], searches: list[RatioSearch], out: Path) -> None:
    shares = tuple(sweep)
    accuracy = np.array([[run.final("avg linear") for run in sweep[share]] for share in shares]).T  # seeds, shares
    chosen = [shares.index(search.nearest) for search in searches]
    reached = accuracy[np.arange(len(chosen)), chosen]
    labelled = shares[int(accuracy.mean(0).argmax())]
    below = float((accuracy.max(1) - reached).mean())
    experiment.claims.append(
        Claim(
            id="ratio-without-labels", measured=float((reached - accuracy.mean(1)).mean()), op=">=", value=0.0,
            n=len(chosen), source=TARGET, unit="points, linear",
            statement="The ratio chosen without labels is at least as good as one of those tried on average.",
            note=f"chosen {', '.join(f'{search.ratio:.2g}' for search in searches)}, best by labels {labelled:g}; "
            f"{below:.1f} points below the best of each seed",
        )
    )  # fmt: skip
    experiment.metrics += [
        Metric("ratio without labels", float(np.mean([search.ratio for search in searches])), "", "higher"),
        Metric("ratio by labels", labelled, "", "higher"),
        Metric("ratio without labels: linear accuracy below the best", below, "points", "lower"),
        Metric("ratios that were tried: range of linear accuracy", float(np.ptp(accuracy.mean(0))), "points", "lower"),
    ]
    fvu = np.array([search.fvu for search in searches])
    draw_ratios(shares, fvu, [search.ratio for search in searches], accuracy, out / "ratio_search.png")
    experiment.artifacts.append(Artifact("ratio_search.png", "A ratio chosen without labels, and accuracies by ratio"))


def _search(seed: int, profile: Profile, space: str, device: str) -> RatioSearch:
    return search_ratio(
        crops(profile, "train")[0], MaskSpace.load(space),
        PMAEConfig(profile.preset, masks_per_batch=profile.masks_per_batch), profile.shares, profile.search_epochs,
        seed=seed, device=device, batch_size=profile.batch, lr=LEARNING_RATE, augment="flip",
        precision=profile.precision, compile=profile.compile,
    )  # fmt: skip
