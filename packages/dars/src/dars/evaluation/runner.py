"""Runs the experiments of a profile, writes results.json after each of them, and resumes a run that was cut off.

An experiment is a module with ``run(profile, rng, out) -> Experiment``, a line in ``EXPERIMENTS``, and a place in the
profiles that run it.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DarsError, ExperimentError, TaskError
from ..storage import write_atomic
from .profiles import PROFILES, Profile
from .report import Experiment

# Modules of the same names, imported when they run. New ones go to the end: the place seeds the random numbers.
EXPERIMENTS = (
    "traversal", "restore", "ledger", "overhead", "repair", "choosing", "ablations", "packages", "verifier", "critic",
)  # fmt: skip

Progress = Callable[[str, int, int, float], None]


def run(
    profile: str | Profile,
    seed: int = 0,
    out: str | Path = "eval",
    only: Sequence[str] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Run a profile.

    Parameters
    ----------
    profile : "quick", "full", "gpu", "paper", or a ``Profile``.
    seed : root seed; every experiment draws from its own stream, so that ``only`` does not change results.
    out : folder of results.json, the PNGs and ``experiments/ledger.json`` etc.
    only : ids such as ["ledger", "restore"]; default all of the profile.
    resume : take finished experiments from ``out/experiments`` if they belong to this profile, seed and version.
    device : "auto", "cpu" or "cuda", of what is trained.
    progress : called with (id, number done, total, seconds of the last one) before the first and after each.

    Returns
    -------
    dict
        The content of results.json (design contract "bench/1"); "x-skipped", if there, is experiment -> why it was not
        done.

    Raises
    ------
    DarsError
        Unknown profile or experiment; something an experiment needs is missing.
    ExperimentError
        After all others have run: experiments that raised anything else.
    """
    chosen = replace(_profile(profile), device=device)
    ids = _experiments(chosen, only)
    folder = Path(out)
    (folder / "experiments").mkdir(parents=True, exist_ok=True)
    done: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    results: dict[str, Any] = {}
    if progress:
        progress("", 0, len(ids), 0.0)
    for number, name in enumerate(ids, start=1):
        stored = folder / "experiments" / f"{name}.json"
        key = {"profile": repr(chosen), "seed": seed, "version": _version()}  # a result of other sizes is another one
        result = _finished(stored, key) if resume else None
        if result is None:
            began = time.perf_counter()
            rng = np.random.default_rng([seed, EXPERIMENTS.index(name)])
            try:
                experiment = import_module(f".{name}", __package__).run(chosen, rng, folder)
            except DarsError:
                raise  # what a user can mend stops the run at once; anything else costs this experiment only
            except Exception as error:
                failed[name] = f"{type(error).__name__}: {error}"
                write_atomic(folder / "experiments" / f"{name}.error.txt", traceback.format_exc())
                experiment = Experiment()
            result = {**experiment.to_dict(), "seconds": time.perf_counter() - began}
            if name not in failed and not experiment.skipped:  # a later run may find what was missing
                write_atomic(stored, _json({"key": key, "result": result}))
        done[name] = result
        results = _results(chosen, seed, done)
        write_atomic(folder / "results.json", _json(results))
        if progress:
            progress(name, number, len(ids), float(result["seconds"]))
    if failed:
        what = "; ".join(f"{name} ({message})" for name, message in failed.items())
        raise ExperimentError(
            f"{len(failed)} of {len(ids)} experiments failed: {what}; the others' results are in "
            f"{folder / 'results.json'}, the tracebacks in {folder / 'experiments'}; --resume repeats the failed ones"
        )
    return results


def _profile(profile: str | Profile) -> Profile:
    if isinstance(profile, Profile):
        return profile
    if profile not in PROFILES:
        raise TaskError(f"unknown profile {profile!r}: use one of {', '.join(PROFILES)}")
    return PROFILES[profile]


def _experiments(profile: Profile, only: Sequence[str] | None) -> list[str]:
    if only is None:
        return list(profile.experiments)
    unknown = [name for name in only if name not in EXPERIMENTS]
    if unknown or not only:
        raise TaskError(
            f"unknown experiment {', '.join(unknown) or '(none given)'}: use some of {', '.join(EXPERIMENTS)}"
        )
    return [name for name in EXPERIMENTS if name in only]


def _version() -> str:
    from .. import __version__

    return __version__


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finished(path: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(stored, dict) or stored.get("key") != key:
        return None
    result: dict[str, Any] = stored["result"]
    # a picture that was deleted has to be drawn again
    return result if all((path.parent.parent / a["path"]).exists() for a in result["artifacts"]) else None


def _results(profile: Profile, seed: int, done: dict[str, dict[str, Any]]) -> dict[str, Any]:
    seconds = [{"name": f"{name} wall time", "value": r["seconds"], "unit": "s", "better": "lower"}
               for name, r in done.items() if not r["skipped"]]  # fmt: skip
    skipped = {name: r["skipped"] for name, r in done.items() if r["skipped"]}
    return {
        "schema": "bench/1", "package": "dars-agent", "version": _version(), "profile": profile.name, "seed": seed,
        "claims": [claim for r in done.values() for claim in r["claims"]],
        "metrics": [metric for r in done.values() for metric in r["metrics"]] + seconds,
        "comparisons": [comparison for r in done.values() for comparison in r["comparisons"]],
        "artifacts": [artifact for r in done.values() for artifact in r["artifacts"]],
        **({"x-skipped": skipped} if skipped else {}),
    }  # fmt: skip
