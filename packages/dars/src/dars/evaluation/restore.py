"""E3: what it costs to put a state back, over its depth, by git objects and by doing everything again.

Every way to remember states gets the same package and the same actions: commands that change one of a few files in
turn, as an agent does. A restore starts from the end of another branch, so that the same files differ at every depth.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..env import overlay
from ..env.local import LocalEnvironment
from .plots import draw_restore
from .profiles import Profile
from .report import DERIVED, TARGET, Artifact, Claim, Comparison, Experiment, Metric, bootstrap_interval

TOUCHED = 5  # files that a path changes


def run(profile: Profile, rng: np.random.Generator, out: Path) -> Experiment:
    """Restore times of all ways that work here, and what a snapshot and a restore take on a larger package."""
    experiment = Experiment()
    depths, rounds = profile.restore_depths, profile.restore_rounds
    with tempfile.TemporaryDirectory(prefix="dars-eval-") as folder:
        source = write_package(Path(folder) / "package", profile.restore_files)
        times, wrong = _timed(source, profile.restore_ways, depths, rounds)
        ends = _timed_git(source, depths[0], depths[-1], 8 * rounds)
        larger = write_package(Path(folder) / "larger", profile.snapshot_files)
        pairs = _snapshot_and_restore(larger, 4 * rounds)
    git, replay = times["git"], times["replay"]
    last = -1
    experiment.claims += [
        Claim(
            id="restore-same-state", measured=wrong, op="==", value=0, n=rounds * len(depths) * len(times),
            statement=f"Every restore gives the state that was remembered, the same by {', '.join(times)}.",
            source=TARGET, unit="states that differ",
        ),
        Claim(
            id="restore-constant", measured=_ratio(ends), ci=bootstrap_interval(rng, _ratio, ends), op="<=", value=1.5,
            n=len(ends), source=TARGET, unit=f"t({depths[last]}) / t({depths[0]})",
            statement="Restoring from git objects takes no longer deep in the tree than near the root.",
        ),
        Claim(
            id="replay-grows", measured=_linearity(depths, replay), op=">=", value=0.98, n=rounds, unit="correlation",
            ci=bootstrap_interval(rng, lambda rows: _linearity(depths, rows), replay), source=DERIVED,
            statement="Restoring by replay, as the authors' code does, takes time in proportion to the depth.",
            paper="container reset, then all actions again",
            note=f"{_slope(depths, replay):.2f} ms for each action; t({depths[last]}) / t({depths[0]}) = "
            f"{_ratio(replay):.1f}; commands run without a sandbox, which favours replay",
        ),
        Claim(
            id="snapshot-and-restore", measured=float(np.median(pairs)), op="<=", value=150, n=len(pairs), unit="ms",
            ci=bootstrap_interval(rng, lambda values: float(np.median(values)), pairs), source=TARGET,
            statement=f"A snapshot and a restore of {profile.snapshot_files:,} files take at most 150 ms.",
        ),
    ]  # fmt: skip
    for peer in [name for name in times if name != "git"]:
        experiment.comparisons.append(
            Comparison(
                f"restore at depth {depths[last]}, {profile.restore_files} files", float(np.median(git[:, last])),
                float(np.median(times[peer][:, last])), PEERS[peer], "ms", "lower",
            )
        )  # fmt: skip
    experiment.metrics.append(Metric("replay of one action", _slope(depths, replay), "ms", "lower"))
    if draw_restore(depths, times, out / "restore.png"):
        experiment.artifacts.append(Artifact("restore.png", "Time to put a state back, over its depth"))
    return experiment


PEERS = {
    "replay": "replay (the authors' way)", "copy": "whole copies", "overlay": "kernel overlayfs",
}  # fmt: skip


def write_package(folder: Path, files: int) -> Path:
    """A Python package of so many modules, about 1 kB each, in folders of some twenty."""
    for number in range(files):
        there = folder / f"part{number // 20}"
        there.mkdir(parents=True, exist_ok=True)
        functions = "".join(f"def f{i}(x):\n    return x + {number * i}\n\n\n" for i in range(25))
        (there / f"module{number}.py").write_text(f'"""Module {number}."""\n\n\n{functions}')
    return folder


def _walk(env: LocalEnvironment, branch: str, depths: Sequence[int]) -> dict[int, str]:
    """Actions down to the last of these depths; returns the snapshots at them."""
    known = {}
    for depth in range(1, max(depths) + 1):
        number = depth % TOUCHED
        env.exec(f"echo '# {branch} {depth}' >> part{number // 20}/module{number}.py")
        if depth in depths:
            known[depth] = env.snapshot()
    return known


def _timed(
    source: Path, chosen: Sequence[str], depths: Sequence[int], rounds: int
) -> tuple[dict[str, NDArray[np.float64]], int]:
    """Way -> milliseconds (rounds, depths), and how many of all restored states were not the remembered one."""
    ways = [way for way in chosen if way != "overlay" or not overlay.works()]  # works() says why it does not
    with ExitStack() as stack:
        envs = {way: stack.enter_context(LocalEnvironment(source, way, sandbox="none")) for way in ways}
        known: dict[str, tuple[dict[int, str], str]] = {}
        for way, env in envs.items():
            base = env.snapshot()
            states = _walk(env, "main", depths)
            env.restore(base)
            known[way] = states, _walk(env, "side", [TOUCHED])[TOUCHED]
        wrong = sum(known[way] != known["git"] for way in ways)
        times: dict[str, list[list[float]]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way in ways:
                times[way].append([])
            for depth in depths:
                for way, env in envs.items():
                    states, side = known[way]
                    env.restore(side)
                    times[way][-1].append(_milliseconds(partial(env.restore, states[depth])))
                    wrong += env.state_hash() != known["git"][0][depth]
    return {way: np.array(values) for way, values in times.items()}, wrong


def _timed_git(source: Path, first: int, last: int, rounds: int) -> NDArray[np.float64]:
    """(rounds, 2) milliseconds of restoring the states at two depths in turns; quick, so that many are affordable."""
    times: list[list[float]] = []
    with LocalEnvironment(source, sandbox="none") as env:
        base = env.snapshot()
        states = _walk(env, "main", [first, last])
        env.restore(base)
        side = _walk(env, "side", [TOUCHED])[TOUCHED]
        for _ in range(rounds):
            times.append([])
            for state in states.values():
                env.restore(side)
                times[-1].append(_milliseconds(partial(env.restore, state)))
    return np.array(times)


def _snapshot_and_restore(source: Path, times: int) -> NDArray[np.float64]:
    """(times,) milliseconds of a snapshot after an action and the restore of the state before it."""
    spent = []
    with LocalEnvironment(source, sandbox="none") as env:
        before = env.snapshot()
        for number in range(times):
            env.exec(f"echo '# {number}' >> part0/module0.py")
            spent.append(_milliseconds(env.snapshot) + _milliseconds(partial(env.restore, before)))
    return np.array(spent)


def _milliseconds(way: Callable[[], Any]) -> float:
    began = time.perf_counter()
    way()
    return 1e3 * (time.perf_counter() - began)


def _ratio(rows: NDArray[np.float64]) -> float:
    """Median time at the last depth over that at the first."""
    return float(np.median(rows[:, -1]) / np.median(rows[:, 0]))


def _linearity(depths: Sequence[int], rows: NDArray[np.float64]) -> float:
    return float(np.corrcoef(depths, np.median(rows, axis=0))[0, 1])


def _slope(depths: Sequence[int], rows: NDArray[np.float64]) -> float:
    return float(np.polyfit(depths, np.median(rows, axis=0), 1)[0])
