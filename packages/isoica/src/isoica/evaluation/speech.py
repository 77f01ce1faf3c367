"""E8: voices through microphones that saturate: a real perturbation of known size, and intervals with room for it."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import FastICA

from ..datasets import load_speech, saturating_microphones
from ..linear import PerturbedICA
from ..metrics import mcc
from .plots import draw_lines
from .profiles import Profile
from .report import DERIVED, Artifact, Claim, Experiment, Metric

Array = NDArray[np.float64]

ETAS = (0.02, 0.05, 0.1, 0.2)


def run_e8(profile: Profile, rng: np.random.Generator, out: Path) -> Experiment:
    """Every seed is another room: other mixing weights of the same voices."""
    experiment = Experiment()
    speech = load_speech()
    covered, scores = [], {name: np.empty((len(profile.seeds), len(ETAS))) for name in ("PerturbedICA", "FastICA")}
    sir = np.empty((len(profile.seeds), len(ETAS)))
    for row, seed in enumerate(profile.seeds):
        for column, eta in enumerate(ETAS):
            data = saturating_microphones(speech.S, eta, random_state=seed)
            model = PerturbedICA(random_state=0).fit(data.X)
            S = model.transform(data.X)
            scores["PerturbedICA"][row, column] = mcc(data.S, S)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                peer = FastICA(whiten="unit-variance", max_iter=1_000, random_state=0).fit_transform(data.X)
            scores["FastICA"][row, column] = mcc(data.S, peer)
            B = model.components_ @ data.A
            one, other = linear_sum_assignment(-np.abs(B))
            order = one[np.argsort(other)]
            B = B[order] * np.sign(np.diag(B[order]))[:, None]
            grid = np.ix_(order, order)
            wide = 1.96 * np.sqrt(model.stderr_**2 + (eta * data.k_norm * model.kappa_) ** 2)[grid]
            off = ~np.eye(len(B), dtype=bool)
            covered.append((np.abs(B) <= wide)[off])
            sir[row, column] = np.mean(signal_to_interference(data.S, S[:, order]))
    share = float(np.concatenate(covered).mean())
    experiment.claims += [
        Claim(
            id="speech-coverage",
            measured=share,
            op=">=",
            value=0.95,
            n=len(np.concatenate(covered)),
            source=DERIVED,
            statement="Intervals with room for the perturbation cover the leakage between voices.",
            unit="share of entries",
            note=speech.source,
        ),
        Claim(
            id="speech-as-fastica",
            measured=float((scores["FastICA"] - scores["PerturbedICA"]).mean()),
            op="<=",
            value=0.01,
            n=sir.size,
            source=DERIVED,
            statement="The voices are found as well as by FastICA, whose contrast this is.",
            unit="MCC, mean over rooms and saturations",
            note=f"at worst {(scores['FastICA'] - scores['PerturbedICA']).max():.3f}, at best "
            f"{(scores['FastICA'] - scores['PerturbedICA']).min():.3f}",
        ),
    ]
    for column, eta in enumerate(ETAS):
        experiment.metrics += [
            *[
                Metric(f"speech, η = {eta:g}, {name}: MCC", float(v[:, column].mean()), "", "higher")
                for name, v in scores.items()
            ],
            Metric(f"speech, η = {eta:g}: signal to interference", float(sir[:, column].mean()), "dB", "higher"),
        ]
    draw_lines(
        {name: (ETAS, 1 - v) for name, v in scores.items()},
        out / "speech.png",
        "size of the saturation, η",
        "1 − MCC of the voices",
    )
    experiment.artifacts.append(Artifact("speech.png", "Voices through saturating microphones"))
    return experiment


def signal_to_interference(S: Array, S_hat: Array) -> Array:
    """dB of each recovered column: what of it is its own source, over what is other sources or their distortion."""
    s, z = (v - v.mean(0) for v in (S, S_hat))
    own = np.sum(s * z, axis=0) / np.sum(s * s, axis=0) * s
    return np.asarray(10 * np.log10(np.sum(own**2, axis=0) / np.sum((z - own) ** 2, axis=0)))
