"""Experiments on one's own data: `onestep-diffusion probe`, `frontier`, and `bias` with an exact oracle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError
from .options import (
    DataArgument,
    DeviceOption,
    FeaturesOption,
    JsonOption,
    OutOption,
    SeedOption,
    SetOption,
    TeacherArgument,
    check_folder,
    extract_of,
    numbers,
    pairs,
    teacher_of,
    use_device,
    words,
)
from .printing import progress, show, table, training_progress, write_facts
from .training import _config

if TYPE_CHECKING:
    from ..data import Dataset

StepsOption = Annotated[int, typer.Option(help="Updates of every student.", min=1)]
SeedsOption = Annotated[int, typer.Option(help="Students of each kind, seeds 0, 1, …, trained side by side.", min=1)]


def probe(
    teacher: TeacherArgument,
    data: DataArgument,
    out: OutOption,
    strategies: Annotated[
        str, typer.Option(help="Between commas: teacher, random, single_level, off_level, clone_map, features_only, …")
    ] = "teacher,random",
    single_level: Annotated[Path | None, typer.Option(help="Teacher of the strategy single_level.")] = None,
    off_level: Annotated[Path | None, typer.Option(help="Teacher of the strategy off_level.")] = None,
    steps: StepsOption = 1000,
    seeds: SeedsOption = 1,
    sigmas: Annotated[str, typer.Option(help="Noise levels at which features are probed.")] = "0.05,0.2,0.8,2.5",
    head_warmup: Annotated[
        bool, typer.Option("--head-warmup", help="Also train fresh layers alone first, in a tenth of the updates.")
    ] = False,
    teacher_steps: Annotated[
        str | None,
        typer.Option(help="How much teacher is enough: train teachers for so many steps each, as 0,250,1000."),
    ] = None,
    method: Annotated[str, typer.Option(help="ratio, score, sid, smt, gan.")] = "ratio",
    features: FeaturesOption = "raw",
    setting: SetOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Compare what students start from: map, features, and quality after training."""
    check_folder(out)
    levels = numbers(sigmas, "--sigmas")
    budgets = None if teacher_steps is None else numbers(teacher_steps, "--teacher-steps", int)
    use_device(device)
    from ..config import StudentConfig, TeacherConfig
    from ..noise import check_sigma
    from ..transfer import (
        compare_strategies,
        save_budget_plot,
        save_heat_maps,
        save_quality_plot,
        teacher_budget,
    )

    check_sigma(levels)
    cfg = _config(StudentConfig, {"method": method, "steps": steps}, pairs(setting), {})
    known = teacher_of(teacher, "TEACHER")
    others: dict[str, Any] = {
        name: None if path is None else teacher_of(path, f"--{name.replace('_', '-')}")
        for name, path in (("single_level", single_level), ("off_level", off_level))
    }
    rows, extract = _data_of(known, data, features, seed)
    chosen = [seed + place for place in range(seeds)]
    with training_progress("students") as report:
        found = compare_strategies(
            rows, known, cfg, words(strategies), extract, seeds=chosen, sigmas=levels, head_warmup=head_warmup,
            eval_every=max(steps // 10, 1), report=report, **others,
        )  # fmt: skip
    facts: dict[str, Any] = {"data": data, "features": features, "strategies": found.table, "probes": found.probes}
    if budgets is not None:
        from ..nets import config, preset_of

        net = config(known.net)
        preset, kwargs = preset_of(net)
        teacher_cfg = TeacherConfig(net=preset, net_kwargs=kwargs, conditional=known.net.labels > 0)
        with training_progress("teachers and students") as report:
            facts["teacher_steps"] = teacher_budget(
                rows, teacher_cfg, cfg, budgets, extract, seeds=chosen, report=report
            )
    out.mkdir(exist_ok=True)
    pictures = [name for name in ("cka", "accuracy", "rank") if save_heat_maps(out / f"{name}.png", found.probes, name)]
    save_quality_plot(out / "quality.png", found.table)
    if budgets is not None:
        save_budget_plot(out / "teacher_steps.png", facts["teacher_steps"])
    write_facts(out / "probe.json", facts)
    if as_json:
        show(facts, True)
        return
    table([{name: value for name, value in row.items() if name not in ("curve", "fds")} for row in found.table])
    if budgets is not None:
        print()
        table([{name: value for name, value in row.items() if name != "fds"} for row in facts["teacher_steps"]])
    print(f"wrote {out / 'probe.json'}, quality.png, {', '.join(f'{name}.png' for name in pictures)}")


def bias(
    out: OutOption,
    delta: Annotated[str, typer.Option(help="Distances of the student from the data.")] = "1,0.3,0.1,0.03",
    sigmas: Annotated[str, typer.Option(help="Noise levels.")] = "0.03,0.1,0.3,1,3",
    steps: Annotated[int, typer.Option(help="Updates of every network.", min=1)] = 3000,
    seeds: Annotated[int, typer.Option(help="Replications, side by side.", min=1)] = 1,
    hidden: Annotated[int, typer.Option(help="Width of every network.", min=1)] = 64,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure the error of gradients by ratio and by scores against the exact one, for a ring of 8 Gaussians."""
    check_folder(out)
    deltas, levels = numbers(delta, "--delta"), numbers(sigmas, "--sigmas")
    use_device(device)
    from ..bias import error_slopes, gradient_bias, save_bias_plot

    if min(deltas) <= 0:
        raise ConfigError(f"--delta has to be positive numbers: at 0 there is no gradient; got {delta}")
    with progress("bias") as report:
        found = gradient_bias(
            deltas=deltas, sigmas=levels, seeds=range(seed, seed + seeds), steps=steps, hidden=hidden, progress=report
        )
    slopes = error_slopes(found)
    out.mkdir(exist_ok=True)
    save_bias_plot(out / "bias.png", found)
    facts = {"errors": found, "slopes": slopes}
    write_facts(out / "bias.json", facts)
    if as_json:
        show(facts, True)
        return
    table([{name: value for name, value in row.items() if not name.startswith("cosine")} for row in found])
    if len(set(deltas)) > 1:
        print("\nslope of log error in log delta")
        table(slopes)
    print(f"wrote {out / 'bias.json'}, bias.png")


def frontier(
    teacher: TeacherArgument,
    data: DataArgument,
    out: OutOption,
    alphas: Annotated[
        str, typer.Option(help="Of the divergence: 1 covers the data, 0 seeks its modes.")
    ] = "0,0.25,0.5,0.75,1",
    alpha_end: Annotated[
        float | None, typer.Option(help="Where every alpha goes over the run; left out: it stays.")
    ] = None,
    steps: StepsOption = 1000,
    seeds: SeedsOption = 1,
    features: FeaturesOption = "raw",
    setting: SetOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train students along the alpha-divergences, and measure precision against recall."""
    check_folder(out)
    values = numbers(alphas, "--alphas")
    use_device(device)
    from ..config import StudentConfig
    from ..frontier import alpha_frontier, save_frontier_plot

    line = {"divergence": "alpha", "alpha": values[0], "alpha_end": alpha_end, "steps": steps}
    cfg = _config(StudentConfig, line, pairs(setting), {})
    known = teacher_of(teacher, "TEACHER")
    rows, extract = _data_of(known, data, features, seed)
    with training_progress("students") as report:
        found = alpha_frontier(
            rows, known, cfg, values, extract, seeds=range(seed, seed + seeds), alpha_end=alpha_end, report=report
        )
    out.mkdir(exist_ok=True)
    save_frontier_plot(out / "frontier.png", found)
    write_facts(out / "frontier.json", {"data": data, "features": features, "runs": found})
    if as_json:
        show({"runs": found}, True)
        return
    table(found)
    print(f"wrote {out / 'frontier.json'}, frontier.png")


def _data_of(teacher: Any, spec: str, features: str, seed: int) -> tuple[Dataset, Any]:
    """The data as the teacher's network takes them, and features of its rows, or of the images they were."""
    import numpy as np

    from ..data import load_data
    from ..errors import DataError

    data = load_data(spec, seed=seed)
    shape = data.shape
    extract = extract_of(features)
    if data.shape != teacher.net.shape and (int(np.prod(shape)),) == teacher.net.shape:
        data = data.flatten()
    if data.shape != teacher.net.shape:
        raise DataError(f"{spec}: rows are {shape}, but the teacher's samples are {teacher.net.shape}")
    return data, lambda x: extract(np.asarray(x).reshape(-1, *shape))
