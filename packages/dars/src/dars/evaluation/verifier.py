"""A patch verifier trained from scratch on the Python that is installed here, and how often it picks the true repair of
a function among others on packages that it has not seen.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import TaskError
from .functions import Function, collect, installed_packages, split
from .plots import draw_training
from .profiles import Profile
from .report import TARGET, Artifact, Claim, Experiment, Metric, bootstrap_interval

if TYPE_CHECKING:
    from ..reviewer.verifier import Training, Verifier

N = 8  # candidates of a selection: the true repair and seven mutants
HELD_SHARE = 0.2  # of the packages
HEADS_WIDTH = 64
RATE = 3e-4 * 512  # over the width: narrower networks bear larger steps (arXiv:2203.03466)


def run(profile: Profile, rng: np.random.Generator, out: Path) -> Experiment:
    """Collect, train, select; nothing where no GPU is, unless ``profile.device`` is "cpu"."""
    device = "cuda" if profile.device == "auto" else profile.device
    if profile.device == "auto" and not has_gpu():
        return Experiment(skipped="there is no GPU; --device cpu trains the verifier on the processor, slowly")
    verifier, training, before, after, learnt, held = trained(profile, rng, device)
    experiment = Experiment(claims=_claims(picks(after), picks(before), learnt, held, rng))
    parameters = sum(weights.numel() for weights in verifier.parameters())
    beats = (after[:, :1] > after[:, 1:]).mean() + (after[:, :1] == after[:, 1:]).mean() / 2
    experiment.metrics += [
        Metric("verifier: bytes read in training", training.read / training.seconds, "tokens/s", "higher"),
        Metric("verifier: bytes read in training, all", training.read, "tokens", "higher"),
        Metric("verifier: steps of training", len(training.losses), "steps", "higher"),
        Metric("verifier: parameters", parameters, "", "lower"),
        Metric("verifier: functions to train on", len(learnt), "", "higher"),
        Metric("verifier: pairs to train on", sum(len(function.mutants) for function in learnt), "", "higher"),
        Metric("verifier: original above mutant, held-out packages", float(beats), "share of the pairs", "higher"),
    ]
    if draw_training(training.losses, math.log(2), out / "verifier.png"):
        experiment.artifacts.append(Artifact("verifier.png", "Loss of the verifier over the steps of its training"))
    return experiment


class Trained(NamedTuple):
    """A verifier, and what was seen of it.

    Attributes
    ----------
    before, after : scores (held-out functions, N) before and after the training; the first column is the true repair.
    """

    verifier: Verifier
    training: Training
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    learnt: list[Function]
    held: list[Function]


def has_gpu() -> bool:
    """Whether torch finds a GPU; TaskError where torch is not installed."""
    try:
        import torch
    except ImportError:
        raise TaskError("the verifier needs torch: pip install 'dars-agent[verifier]'") from None
    return torch.cuda.is_available()


def trained(profile: Profile, rng: np.random.Generator, device: str) -> Trained:
    """Collect functions of what is installed, and train a verifier of the profile's size on them."""
    if device == "cuda" and not has_gpu():
        raise TaskError("--device cuda: torch finds no GPU here; use --device cpu")
    import torch

    from ..reviewer.verifier import Verifier, pack, scores, train

    layers, width, length = profile.verifier_size
    learnt, held = functions_of(installed_packages(), profile.verifier_functions, length, rng, os.cpu_count() or 1)
    originals = pack([function.source.encode() for function in learnt], length)
    mutants = pack([text.encode() for function in learnt for text in function.mutants], length)
    owner = np.repeat(np.arange(len(learnt)), [len(function.mutants) for function in learnt])
    candidates = pack([text.encode() for function in held for text in (function.source, *function.mutants)], length)

    torch.manual_seed(int(rng.integers(2**31)))  # of the weights: the modules of torch take no generator
    verifier = Verifier(layers, width, length, max(1, width // HEADS_WIDTH)).to(device)
    before = scores(verifier, candidates).reshape(-1, N)
    training = train(
        verifier, originals, mutants, owner, rng, pairs=profile.verifier_pairs, seconds=profile.verifier_seconds,
        steps=profile.verifier_steps, rate=RATE / width,
    )  # fmt: skip
    after = scores(verifier, candidates).reshape(-1, N)
    return Trained(verifier, training, before, after, learnt, held)


def functions_of(
    packages: Mapping[str, Sequence[Path]],
    sizes: tuple[int, int],
    length: int,
    rng: np.random.Generator,
    workers: int = 1,
) -> tuple[list[Function], list[Function]]:
    """Functions to train on, and held-out ones with N - 1 mutants each: of different packages, none with the same text.

    Raises
    ------
    TaskError
        There are not enough sources for both.
    """
    names, held_names = split(packages, HELD_SHARE, rng)
    learnt = collect({name: packages[name] for name in names}, sizes[0], (1, N - 1), length, rng, workers)
    texts = {function.source for function in learnt}
    held = collect({name: packages[name] for name in held_names}, sizes[1], (N - 1, N - 1), length, rng, workers, texts)
    if not learnt or not held:
        raise TaskError(
            f"of {len(packages)} packages {len(learnt)} functions of at most {length} bytes are left to train "
            f"on and {len(held)} to try: run it where more packages are installed"
        )
    return learnt, held


def picks(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Chance that the first candidate of each row is picked: by the highest score, by lot where several share it."""
    best = scores == scores.max(axis=1, keepdims=True)
    return np.asarray(best[:, 0] / best.sum(axis=1))


def _claims(
    after: NDArray[np.float64],
    before: NDArray[np.float64],
    learnt: Sequence[Function],
    held: Sequence[Function],
    rng: np.random.Generator,
) -> list[Claim]:
    def mean(x: NDArray[np.float64]) -> float:
        return float(x.mean())

    packages = [len({function.package for function in functions}) for functions in (learnt, held)]
    where = f"functions of {packages[1]} held-out packages, {packages[0]} to train on; one fault is one mutation"
    return [
        Claim(
            id="verifier-selects", measured=mean(after), ci=bootstrap_interval(rng, mean, after), op=">=",
            value=1.5 / N, n=len(after), source=TARGET, unit="share picked",
            statement=f"A verifier trained from scratch picks the true repair of a function among {N} candidates at "
            "least 1.5 times as often as chance.",
            note=f"chance {1 / N:g}; {where}",
        ),
        Claim(
            id="verifier-learnt", measured=mean(after - before), ci=bootstrap_interval(rng, mean, after - before),
            op=">", value=0, n=len(after), source=TARGET, unit="difference of the shares",
            statement="It picks the true repair more often than the same network before its training.",
            note=f"paired by function; untrained {mean(before):.3f}",
        ),
    ]  # fmt: skip
