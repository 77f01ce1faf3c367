"""Runs the experiments of a profile, writes results.json after each of them, and resumes a run that was cut off."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import IsoICAError
from .profiles import PROFILES, Profile
from .report import Experiment, write_json

# Where each experiment lives; imported when it runs.
_MODULES: dict[str, str] = {
    "E1": "linear",
    "E2": "linear",
    "E3": "linear",
    "E4": "linear",
    "E5": "manifolds",
    "E6": "manifolds",
    "E7": "images",
    "E8": "speech",
    "E9": "bound",
    "E10": "race",
    "big": "big",
}
EXPERIMENTS: tuple[str, ...] = tuple(_MODULES)

Progress = Callable[[str, int, int, float], None]


class ExperimentError(RuntimeError):
    """Some experiments of an evaluation raised; the others have finished and are stored."""


def run(
    profile: str | Profile,
    seed: int = 0,
    out: str | Path = "eval",
    only: Sequence[str] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run a profile.

    Parameters
    ----------
    profile : "quick", "full", "gpu", "paper", or a ``Profile``.
    seed : root seed; every experiment draws from its own stream, so that ``only`` does not change results.
    out : folder of results.json, the PNGs, ``experiments/E1.json`` etc.
    only : ids such as ["E1"]; default all of the profile.
    resume : take finished experiments from ``out/experiments`` if they belong to this profile, seed and version.
    progress : called with (id, number done, total, seconds of the last one) before the first and after each.

    Returns the content of results.json (design contract "bench/1"). Raises IsoICAError for an unknown profile,
    or experiment; IsoICAError, at once, for data that are missing; ExperimentError, after all others have run,
    for experiments that raised anything else.
    """
    chosen = _profile(profile)
    ids = _experiments(chosen, only)
    folder = Path(out)
    (folder / "experiments").mkdir(parents=True, exist_ok=True)

    done: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    if progress:
        progress("", 0, len(ids), 0.0)
    for number, identifier in enumerate(ids, start=1):
        stored = folder / "experiments" / f"{identifier}.json"
        key = _key(chosen, seed)
        result = _finished(stored, key) if resume else None
        if result is None:
            began = time.perf_counter()
            rng = np.random.default_rng([seed, EXPERIMENTS.index(identifier)])
            function = getattr(import_module(f".{_MODULES[identifier]}", __package__), f"run_{identifier.lower()}")
            try:
                experiment: Experiment = function(chosen, rng, folder)
            except Exception as error:
                # Bad input and missing data stop the run at once; anything else costs this experiment only.
                if isinstance(error, IsoICAError):
                    raise
                failed[identifier] = f"{type(error).__name__}: {error}"
                (folder / "experiments" / f"{identifier}.error.txt").write_text(
                    traceback.format_exc(), encoding="utf-8"
                )
                experiment = Experiment()
            experiment.seconds = time.perf_counter() - began
            result = {**experiment.to_dict(), "seconds": experiment.seconds}
            if identifier not in failed:
                write_json(stored, {"key": key, "result": result})
        done[identifier] = result
        results = _results(chosen, seed, done)
        write_json(folder / "results.json", results)
        if progress:
            progress(identifier, number, len(ids), float(result["seconds"]))
    if failed:
        what = "; ".join(f"{identifier} ({message})" for identifier, message in failed.items())
        raise ExperimentError(
            f"{len(failed)} of {len(ids)} experiments failed: {what}; the others' results are in "
            f"{folder / 'results.json'}, the tracebacks in {folder / 'experiments'}; --resume repeats the failed ones"
        )
    return results


def _profile(profile: str | Profile) -> Profile:
    if isinstance(profile, Profile):
        return profile
    if profile not in PROFILES:
        raise IsoICAError(f"unknown profile {profile!r}: use one of {', '.join(PROFILES)}")
    return PROFILES[profile]


def _experiments(profile: Profile, only: Sequence[str] | None) -> list[str]:
    if only is None:
        return list(profile.experiments)
    unknown = [e for e in only if e not in EXPERIMENTS]
    if unknown or not only:
        raise IsoICAError(
            f"unknown experiment {', '.join(unknown) or '(none given)'}: use some of {', '.join(EXPERIMENTS)}"
        )
    return [e for e in EXPERIMENTS if e in only]


def _version() -> str:
    from .. import __version__

    return __version__


def _key(profile: Profile, seed: int) -> dict[str, Any]:
    # repr of the whole value: a result of other sizes is not this result
    return {"profile": repr(profile), "seed": seed, "version": _version()}


def _finished(path: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(stored, dict) or stored.get("key") != key:
        return None
    result = stored["result"]
    # a picture that was deleted has to be drawn again
    drawn = all((path.parent.parent / a["path"]).exists() for a in result["artifacts"])
    return result if drawn else None


def _results(profile: Profile, seed: int, done: dict[str, dict[str, Any]]) -> dict[str, Any]:
    seconds = [
        {"name": f"{identifier} wall time", "value": r["seconds"], "unit": "s", "better": "lower"}
        for identifier, r in done.items()
    ]
    return {
        "schema": "bench/1",
        "package": "isoica",
        "version": _version(),
        "profile": profile.name,
        "seed": seed,
        "claims": [c for r in done.values() for c in r["claims"]],
        "metrics": [m for r in done.values() for m in r["metrics"]] + seconds,
        "comparisons": [c for r in done.values() for c in r["comparisons"]],
        "artifacts": [a for r in done.values() for a in r["artifacts"]],
    }
