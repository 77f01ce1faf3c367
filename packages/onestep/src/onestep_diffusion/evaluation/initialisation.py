"""What of the teacher is needed: its score, its weights, its map, its features (claims of v1 and v3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import load_model
from ..probes import map_error
from .plots import draw_curves, draw_samples
from .pool import each
from .profiles import MAIN, Profile
from .report import Artifact, Claim, Experiment, Metric, factor, t_interval
from .students import (
    SECOND,
    Group,
    Run,
    dataset,
    distance,
    floor_and_halves,
    initial,
    stored,
    student_settings,
    teacher_file,
    teachers,
    train_group,
)

METHODS = ("ratio", "score")
REACHED = 0.15  # of the FD of the teacher as a one-step generator; in the pilot's features, FD 2 of 13.6
ENOUGH = {"quick": 0.8}  # share of the gap that has to be removed; .95 elsewhere

Runs = dict[tuple[str, str], list[Run]]  # by method and strategy, in the order of the seeds


def run_initialisation(profile: Profile, rng: np.random.Generator, out: Path, device: str = "cpu") -> Experiment:
    """Both methods from every initialisation."""
    experiment = Experiment()
    seconds = teachers(profile, out, profile.data, profile.retrain)
    experiment.metrics += [Metric(f"teacher {name}: training", s, "s", "lower") for name, s in seconds.items()]
    jobs = [(_group(profile, method), str(out)) for method in METHODS]
    found = [run for group in each(train_group, jobs) for run in group]
    runs = _by_strategy(found)
    floor, ode = floor_and_halves(profile.data, profile.features), _teachers_own(profile, out)
    experiment.metrics += [
        Metric(f"FD({profile.features}) of a half of the real images to all", floor, "", "lower"),
        Metric(f"FD({profile.features}) of the teacher in 35 evaluations", ode, "", "lower"),
        Metric(
            f"FD({profile.features}) of the teacher in one evaluation", runs["ratio", "teacher"][0].start, "", "lower"
        ),
    ]
    maps = _map_errors(profile, out, runs)
    experiment.claims += _score_free(runs, floor, profile)
    experiment.claims += _needs_weights(runs, profile.name)
    experiment.claims += _features_not_map(runs, maps)
    for (method, strategy), group in runs.items():
        _report(experiment, f"{method}, init {strategy}", group)
        if method == "ratio":
            experiment.metrics.append(
                Metric(f"init {strategy}: relative error of the map", maps[strategy], "", "lower")
            )
    _settings(experiment, profile)
    draw_curves(
        {f"{m}, {s}": group for (m, s), group in runs.items() if s in MAIN}, floor, ode, out / "curves.png",
        f"FD({profile.features})",
    )  # fmt: skip
    experiment.artifacts.append(Artifact("curves.png", "Fréchet distance by updates, for each initialisation"))
    _pictures(experiment, profile, out)
    return experiment


def run_second(profile: Profile, rng: np.random.Generator, out: Path, device: str = "cpu") -> Experiment:
    """The two claims on the initialisation once more, on MNIST at 14 × 14; judged in pixels."""
    experiment = Experiment()
    teachers(profile, out, SECOND, profile.second_teacher, "second_")
    jobs = []
    for method in METHODS:
        cfg = student_settings(profile, method, steps=profile.second_updates)
        chosen = [(cfg.replace(init=init), seed) for init in MAIN for seed in profile.second_seeds]
        settings, seeds = (tuple(column) for column in zip(*chosen, strict=True))
        jobs.append((Group(SECOND, "raw", "second_", settings, seeds, 1, profile.samples), str(out)))
    runs = _by_strategy([run for group in each(train_group, jobs) for run in group])
    for method in METHODS:
        for identifier, worse, better, value, statement in (
            ("teacher-init", "random", "teacher", 2.0, "Random weights end further from the data than the teacher's"),
            ("features-not-map", "single_level", "off_level", 1.5,
             "The right map with features of one level ends further than features of many without the map"),
        ):  # fmt: skip
            experiment.claims.append(
                _times(f"{identifier}-mnist-{method}", runs[method, worse], runs[method, better], value,
                       f"{statement}, on MNIST at 14 × 14 too ({method}).", unit="times in FD of pixels")
            )  # fmt: skip
    for (method, strategy), group in runs.items():
        _report(experiment, f"MNIST 14 × 14: {method}, init {strategy}", group)
    return experiment


def _group(profile: Profile, method: str) -> Group:
    """The main strategies with every seed and the others with the first, in one program."""
    cfg = student_settings(profile, method)
    chosen = [(cfg.replace(init=init), seed) for init in MAIN for seed in profile.seeds]
    chosen += [(cfg.replace(init=init), profile.seeds[0]) for init in profile.others]
    settings, all_seeds = (tuple(column) for column in zip(*chosen, strict=True))
    return Group(
        profile.data, profile.features, "", settings, all_seeds, profile.evaluations, profile.samples,
        profile.side_by_side, keep=method,
    )  # fmt: skip


def _by_strategy(found: Sequence[Run]) -> Runs:
    runs: Runs = {}
    for run in found:
        runs.setdefault((run.settings.method, run.settings.init), []).append(run)
    return runs


def _teachers_own(profile: Profile, out: Path) -> float:
    teacher = load_model(teacher_file(out, "multi"))
    return distance(profile.data, profile.features, teacher.sample(profile.samples, seed=1000))


def _map_errors(profile: Profile, out: Path, runs: Runs) -> dict[str, float]:
    named = {name: load_model(teacher_file(out, name)) for name in ("multi", "single", "off")}
    first = {strategy: group[0] for (method, strategy), group in runs.items() if method == "ratio"}
    return {
        strategy: map_error(initial(run.settings, run.seed, named["multi"], named), named["multi"])
        for strategy, run in first.items()
    }


# --- claims -----------------------------------------------------------------------------------------------------------


def _score_free(runs: Runs, floor: float, profile: Profile) -> list[Claim]:
    """Share of the gap between start and floor that training removes."""
    removed = {m: np.array([_removed(run, floor) for run in runs[m, "teacher"]]) for m in METHODS}
    relative = removed["ratio"] / removed["score"]
    passes = f"{profile.aux} updates of the ratio, {profile.score_aux} of the fake score per update of the generator"
    return [
        Claim(
            id="score-free", measured=float(relative.mean()), ci=t_interval(relative), op=">=", value=0.95,
            n=len(relative), statement="Without the teacher's score as much of the gap to the data closes as with it.",
            paper="competitive with distillation (abstract of v1)", unit="gap closed over that of `score`", note=passes,
        ),
        Claim(
            id="score-free-gap", measured=float(removed["ratio"].mean()), ci=t_interval(removed["ratio"]), op=">=",
            value=ENOUGH.get(profile.name, 0.95), n=len(relative), unit="share of the gap",
            statement="Density ratios alone close the gap between the teacher's one-step samples and the data.",
        ),
    ]  # fmt: skip


def _removed(run: Run, floor: float) -> float:
    return (run.start - run.final) / (run.start - floor)


def _needs_weights(runs: Runs, profile: str) -> list[Claim]:
    claims = []
    for method in METHODS:
        random, teacher = runs[method, "random"], runs[method, "teacher"]
        claims.append(
            _times(f"teacher-init-{method}", random, teacher, 2.0,
                   f"After the same updates random weights are further from the data than the teacher's ({method}).",
                   "indispensable (v1, v3)")
        )  # fmt: skip
        level = REACHED * teacher[0].start
        reached = np.array([run.updates_to(level) for run in teacher])
        never = [run.curve[-1][0] for run in random if not np.isfinite(run.updates_to(level))]
        needed = np.array([min(run.updates_to(level), run.curve[-1][0]) for run in random])
        if np.isfinite(reached).all():
            log = np.log(needed / reached)
            claims.append(
                Claim(
                    id=f"teacher-init-speed-{method}", **factor(log), op=">", value=2.0, unit="times the updates",
                    statement=f"Random weights need more updates to {REACHED:.0%} of the starting distance ({method}).",
                    note=f"{len(never)} of {len(random)} did not get there in {random[0].curve[-1][0]} updates, which "
                    "are counted" if never else "",
                )
            )  # fmt: skip
    return claims


def _features_not_map(runs: Runs, maps: dict[str, float]) -> list[Claim]:
    claims = [
        Claim(
            id="map-error", measured=maps["single_level"] / maps["off_level"], op="<", value=0.3, n=1,
            statement="A teacher of one level has the right map; one of many other levels has not.",
            paper="benefit of features, not of the map (v1, v3)", unit="relative error of the map over the other's",
            note=f"{maps['single_level']:.2g} and {maps['off_level']:.2g}; random weights {maps['random']:.2g}",
        )
    ]  # fmt: skip
    for method in METHODS:
        claims.append(
            _times(f"features-not-map-{method}", runs[method, "single_level"], runs[method, "off_level"], 1.5,
                   f"And yet the first ends further from the data than the second ({method}).",
                   "benefit of features, not of the map (v1, v3)")
        )  # fmt: skip
    return claims


def _times(
    identifier: str, worse: list[Run], better: list[Run], value: float, statement: str, paper: str = "",
    unit: str = "times in FD",
) -> Claim:  # fmt: skip
    log = np.log([a.final / b.final for a, b in zip(worse, better, strict=True)])
    return Claim(
        id=identifier, **factor(log),
        op=">", value=value, statement=statement, paper=paper, unit=unit,
        note=f"after {worse[0].curve[-1][0]:,} updates",
    )  # fmt: skip


def _report(experiment: Experiment, name: str, group: Sequence[Run]) -> None:
    values = np.array([run.final for run in group])
    experiment.metrics.append(Metric(f"{name}: FD, mean of {len(values)}", float(values.mean()), "", "lower"))
    if len(values) > 1:
        experiment.metrics.append(Metric(f"{name}: FD, sd", float(values.std(ddof=1)), "", "lower"))


def _settings(experiment: Experiment, profile: Profile) -> None:
    """What all methods of the table have in common, and what they cost."""
    from ..costs import update_cost

    for method in METHODS:
        cfg = student_settings(profile, method)
        data = dataset(profile.data)
        flat = (int(np.prod(data.shape)),) if profile.net == "mlp" else data.shape
        cost = update_cost(cfg, _net(profile, flat))
        name = f"{method}, {cfg.aux_updates} second-network updates"
        experiment.metrics += [
            Metric(f"{name}: forward passes of the generator an update", cost.passes, "", "lower"),
            Metric(f"{name}: passes in all", cost.passes * cfg.steps, "", "lower"),
        ]


def _net(profile: Profile, shape: tuple[int, ...]) -> dict[str, object]:
    from .. import nets

    return nets.config(nets.abstract(nets.preset(profile.net, shape) | dict(profile.net_kwargs)))


def _pictures(experiment: Experiment, profile: Profile, out: Path) -> None:
    data, seed = dataset(profile.data), profile.seeds[0]
    if len(data.shape) != 3:
        return
    n, teacher = 12, load_model(teacher_file(out, "multi"))
    rows: dict[str, NDArray[np.float32]] = {
        "data": np.asarray(data.x[:n], np.float32),
        "teacher, 35 evaluations": teacher.sample(n, seed=7),
        "teacher, one": teacher.one_step().sample(n, seed=7),
    }
    for method in METHODS:
        for strategy in MAIN:
            generator = stored(out, method, strategy, seed, "generator")
            if generator is not None:
                rows[f"{method}, {strategy}"] = generator.sample(n, seed=7)
    draw_samples({name: x.reshape(-1, *data.shape) for name, x in rows.items()}, data, out / "samples.png")
    experiment.artifacts.append(Artifact("samples.png", "Samples of the same latents, by method and initialisation"))
