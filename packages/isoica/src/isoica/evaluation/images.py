"""E7: rendered images, whose pixels are an almost isometric function of positions; linear ICA alone, and ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..datasets import make_images
from ..metrics import mcc
from .manifolds import sources
from .plots import save
from .profiles import Profile
from .report import DERIVED, Artifact, Claim, Experiment, Metric

PIPELINES = ("rigid alignment + ICA", "Isomap + FastICA", "HLLE + FastICA", "PCA + FastICA")


def run_e7(profile: Profile, rng: np.random.Generator, out: Path) -> Experiment:
    """Every kind of image, every pipeline."""
    experiment = Experiment()
    shown = {}
    for kind, d, n in profile.image_kinds:
        scores: dict[str, list[float]] = {name: [] for name in PIPELINES}
        for seed in profile.seeds[:3]:
            data = make_images(n, kind=kind, d=d, random_state=[seed, 10])
            X = np.asarray(data.images, float).reshape(n, -1)
            for name in PIPELINES:
                scores[name].append(mcc(data.S, sources(name, X, data.S.shape[1], seed)))
            shown[f"{kind}, {d} factors"] = data.images[:8]
        ours, linear = scores["rigid alignment + ICA"], scores["PCA + FastICA"]
        experiment.metrics += [
            Metric(f"{kind}, d = {d}, {name}: MCC", float(np.mean(v)), "", "higher") for name, v in scores.items()
        ]
        experiment.claims += [
            Claim(
                id=f"images-{kind}-{d}",
                measured=min(ours),
                op=">=",
                value=0.995,
                n=len(ours),
                source=DERIVED,
                statement=f"Positions are recovered from images ({kind}, {d} factors).",
                unit="MCC, worst seed",
                note=f"PCA and FastICA {np.mean(linear):.3f}",
            ),
        ]
    _draw(shown, out / "images.png")
    experiment.artifacts.append(Artifact("images.png", "Images whose positions are recovered"))
    return experiment


def _draw(rows: dict[str, NDArray[np.float32]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.15 * len(rows)))
    axes = figure.subplots(len(rows), 9, squeeze=False)
    for row, (name, images) in zip(axes, rows.items(), strict=True):
        row[0].text(1, 0.5, name, ha="right", va="center", fontsize=8, transform=row[0].transAxes)
        for place, image in zip(row[1:], images, strict=True):
            place.imshow(image, cmap="gray")
        for place in row:
            place.axis("off")
    save(figure, path)
