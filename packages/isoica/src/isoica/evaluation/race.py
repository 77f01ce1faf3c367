"""E10: the solvers side by side, on patches of photographs and on a clean mixture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..benchmark import Race, solver_race
from ..datasets import load_image_patches, make_perturbed_linear
from .profiles import Profile
from .report import TARGET, Claim, Comparison, Experiment, Metric

PEERS = {"Picard-O": 3.0, "FastICA": 5.0}  # times faster that ours is meant to be
COMPONENTS, TIGHT = 32, 1e-5


def run_e10(profile: Profile, rng: np.random.Generator, out: Path) -> Experiment:
    """CPU seconds to the same largest gradient entry; a solver that does not get there has its gradient beside them."""
    experiment = Experiment()
    patches = load_image_patches(profile.patches, size=12, random_state=0)
    _, _, directions = np.linalg.svd(patches[:5_000] - patches[:5_000].mean(0), full_matrices=False)
    races = solver_race((patches - patches.mean(0)) @ directions[:COMPONENTS].T, repeats=profile.repeats)
    for peer, wanted in PEERS.items():
        found = _at(races, peer)
        if found is None:
            continue
        ours = _at(races, "ours")
        assert ours is not None
        experiment.claims.append(
            Claim(
                id=f"faster-than-{peer.lower()}",
                measured=found.seconds / ours.seconds,
                op=">=",
                value=wanted,
                n=profile.repeats,
                source=TARGET,
                unit="times faster",
                statement=f"Ours, with its error bars, is at least {wanted:g} times as fast as {peer} on photographs.",
                note=f"gradient {ours.gradient:.1e} and {found.gradient:.1e}, {COMPONENTS} of 144 dimensions, "
                f"n = {len(patches):,}",
            )
        )
    for race in races:
        experiment.metrics.append(Metric(f"patches, {race.solver} to {race.tol:g}: CPU", race.seconds, "s", "lower"))
        experiment.metrics.append(
            Metric(f"patches, {race.solver} to {race.tol:g}: gradient", race.gradient, "", "lower")
        )
    ours_, theirs = (r for r in (_at(races, "ours"), _at(races, "Picard-O") or _at(races, "FastICA")))
    assert ours_ is not None
    assert theirs is not None
    experiment.comparisons.append(
        Comparison("ICA of patches to a gradient of 1e-5", ours_.seconds, theirs.seconds, theirs.solver, "s", "lower")
    )
    clean = solver_race(
        make_perturbed_linear(10_000, 4, eta=0.0, random_state=0).X, (1e-4,), repeats=5 * profile.repeats
    )
    mine, other = (_at(clean, name, 1e-4) for name in ("ours", "FastICA"))
    assert mine is not None
    assert other is not None
    experiment.claims.append(
        Claim(
            id="clean-not-slower",
            measured=mine.seconds / other.seconds,
            op="<=",
            value=1.0,
            n=5 * profile.repeats,
            source=TARGET,
            statement="On a clean mixture of four sources ours is not slower than FastICA.",
            unit="of its time",
            note=f"{1e3 * mine.seconds:.1f} ms with error bars, {1e3 * other.seconds:.1f} ms without",
        )
    )
    return experiment


def _at(races: list[Race], solver: str, tol: float = TIGHT) -> Race | None:
    return next((race for race in races if race.solver == solver and race.tol == tol), None)
