"""How much of a hidden part linear models find in the visible part, for every way to mask (C1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .. import data
from ..redundancy import RedundancyReport, linear_redundancy
from ..space import MaskSpace, fit_space
from .crops import space_file
from .plots import draw_redundancy
from .pool import each
from .profiles import Profile
from .report import DERIVED, Artifact, Claim, Experiment, Metric

# Name, basis, hidden share, options: the recommended share of variance for rotations, the usual one for pixels.
SCHEMES: dict[str, tuple[str, float, dict[str, Any]]] = {
    "pca": ("pca", 0.2, {}),
    "patch": ("patch", 0.75, {}),
    "pixel": ("pixel", 0.75, {}),
    "dct": ("dct", 0.2, {}),
    "kron": ("kron", 0.2, {}),
    "patch_pca": ("patch_pca", 0.2, {}),
    "haar_pca": ("haar_pca", 0.2, {"levels": 1}),
    "rotation": ("rotation", 0.2, {}),
}
PATCH = {28: 7, 32: 8, 64: 8}


def run_redundancy(profile: Profile, rng: np.random.Generator, out: Path, device: str = "cpu") -> Experiment:
    """The table of schemes on both data sets; the claim is on the worst data set for it."""
    experiment = Experiment()
    seed = int(rng.integers(2**31))
    # The same crops as those of training, if as many are asked for: their components are needed there anyway.
    ready = space_file(profile, out, "pca", device) if profile.photos == profile.train else ""
    jobs: list[tuple[Any, ...]] = [
        ("photopatch", name, profile.photos, profile.masks, seed, ready if name == "pca" else "")
        for name in profile.photo_spaces
    ]
    if profile.fashion and _here("fashion_mnist"):
        jobs += [("fashion_mnist", name, profile.fashion, 2 * profile.masks, seed) for name in SCHEMES]
    # Two processes: the decompositions of the photographs are most of the work.
    reports = each(_one, jobs, profile.workers)
    table = {(job[0], job[1]): report for job, report in zip(jobs, reports, strict=True)}
    sets = list(dict.fromkeys(job[0] for job in jobs))
    n = profile.masks * len(sets)
    missing = "" if len(sets) == 2 else "Fashion-MNIST is not on this machine (Debian: dataset-fashion-mnist)"

    def worst(pick: str, name: str, of: Any) -> float:
        return float(of(getattr(table[s, name], pick) for s in sets if (s, name) in table))

    experiment.claims += [
        Claim(
            id="no-linear-redundancy", measured=worst("fvu", "pca", min), op=">=", value=0.999, n=n, source=DERIVED,
            statement="Linear prediction leaves all variance of hidden principal components unexplained, in sample.",
            unit="fraction of variance unexplained", note=missing,
        ),
        Claim(
            id="no-linear-redundancy-heldout", measured=worst("fvu_heldout", "pca", min), op=">=", value=0.98, n=n,
            source=DERIVED, unit="fraction of variance unexplained",
            statement="So it does on held-out images, with ridge regression chosen on a validation part.",
        ),
        Claim(
            id="patches-are-redundant", measured=worst("fvu_heldout", "patch", max), op="<=", value=0.6, n=n,
            source=DERIVED, unit="fraction of variance unexplained",
            statement="With 75 % of the patches hidden, ridge regression on visible pixels explains much of the rest.",
        ),
        Claim(
            id="pca-least-redundant", op=">", value=0.0, n=len(table), source=DERIVED,
            measured=min(
                table[s, "pca"].fvu_heldout - table[s, name].fvu_heldout for s, name in table if name != "pca"
            ),
            statement="No other space of the table leaves as much unexplained as principal components.",
            unit="fraction of variance unexplained",
        ),
    ]  # fmt: skip
    for (name, scheme), report in table.items():
        share = SCHEMES[scheme][1]
        for what, value in (("in sample", report.fvu), ("held out", report.fvu_heldout)):
            experiment.metrics.append(Metric(f"{name}, {scheme} {share:g}: linear FVU {what}", value, "", "higher"))
    draw_redundancy(table, out / "redundancy.png")
    experiment.artifacts.append(Artifact("redundancy.png", "What linear models leave unexplained, by masking scheme"))
    return experiment


def _one(name: str, scheme: str, n: int, masks: int, seed: int, ready: str = "") -> RedundancyReport:
    images = photos(n) if name == "photopatch" else data.load(name, split="train").images[:n]
    basis, share, options = SCHEMES[scheme]
    if basis == "patch":
        options = {"patch_size": PATCH[images.shape[-1]]}
    space = MaskSpace.load(ready) if ready else fit_space(images, basis, seed=seed, **options)
    return linear_redundancy(images, space, share, n_masks=masks, seed=seed)


def photos(n: int, split: str = "train", side: int = 32, seed: int = 1010) -> np.ndarray:
    """Crops of photographs, uint8 (n, 3, side, side)."""
    return data.load("photopatch", split=split, size=side, n=n, seed=seed).images


def _here(name: str) -> bool:
    try:
        data.load(name, split="train")
    except data.MissingSourceError:
        return False
    return True
