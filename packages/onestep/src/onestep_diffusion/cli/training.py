"""`onestep-diffusion teacher` and `train`: settings from the line, then one call of the library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError
from .options import (
    DataArgument,
    DeviceOption,
    JsonOption,
    OutOption,
    SeedOption,
    SetOption,
    check_folder,
    extract_of,
    pairs,
    teacher_of,
    use_device,
)
from .printing import show, training_progress

if TYPE_CHECKING:
    from ..data import Dataset
    from ..denoiser import Generator

PresetOption = Annotated[str | None, typer.Option(help="mlp, unet8, unet32, cifar10, imagenet64 or latent.")]
StepsOption = Annotated[int | None, typer.Option(help="Updates of the network.")]
BatchOption = Annotated[int | None, typer.Option(help="Rows of an update.")]
RateOption = Annotated[float | None, typer.Option(help="Learning rate.")]
PrecisionOption = Annotated[str | None, typer.Option(help="f32, or bf16 for the bodies of networks.")]
PerCallOption = Annotated[int | None, typer.Option(help="Updates in one compiled call.")]
MicroOption = Annotated[int | None, typer.Option(help="Rows at once: the same updates in less memory.")]
ConditionalOption = Annotated[bool | None, typer.Option("--conditional", help="Use the labels of the data.")]
EvalOption = Annotated[int | None, typer.Option(help="Steps between pictures and checkpoints; default a tenth.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")]
ShardOption = Annotated[str, typer.Option(help="On several devices: none, or params to spread weights, too.")]

# Where they differ from the defaults, which are those of small networks: SiD's for images.
IMAGES = {"batch_size": 256, "lr": 1e-5, "ratio_lr": 1e-4}


def teacher(
    data: DataArgument,
    out: OutOption,
    preset: PresetOption = None,
    steps: StepsOption = None,
    sigma_law: Annotated[
        str | None, typer.Option(help="Noise levels: lognormal:MEAN,STD, fixed:2.5, karras, loguniform:LOW,HIGH.")
    ] = None,
    batch_size: BatchOption = None,
    lr: RateOption = None,
    precision: PrecisionOption = None,
    conditional: ConditionalOption = None,
    steps_per_call: PerCallOption = None,
    micro_batch: MicroOption = None,
    eval_every: EvalOption = None,
    shard: ShardOption = "none",
    resume: ResumeOption = False,
    setting: SetOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train a diffusion model, which students start from."""
    check_folder(out)
    use_device(device)
    from ..config import TeacherConfig
    from ..data import load_data
    from ..loop import Run
    from ..train import train_teacher

    line = {
        "net": preset, "steps": steps, "sigma_law": sigma_law, "batch_size": batch_size, "lr": lr,
        "precision": precision, "conditional": conditional, "steps_per_call": steps_per_call,
        "micro_batch": micro_batch,
    }  # fmt: skip
    cfg = _config(TeacherConfig, line, pairs(setting), {})
    rows = load_data(data, seed=seed)
    how = {"eval_every": eval_every, "mesh": _mesh(cfg.batch_size), "shard": shard}
    Run(out, resume, **how)
    with training_progress("teacher") as report:
        model = train_teacher(rows, cfg, seed=seed, out=out, resume=resume, report=report, **how)
    from ..nets import count_parameters

    _tell(out, {"parameters": count_parameters(model)}, as_json)


def train(
    data: DataArgument,
    out: OutOption,
    teacher: Annotated[
        str, typer.Option(metavar="DIR|none", help="Folder of the teacher: the network, and its weights.")
    ] = "none",
    method: Annotated[str | None, typer.Option(help="ratio, score, sid, smt, gan, ict or meanflow.")] = None,
    divergence: Annotated[
        str | None,
        typer.Option(
            help="rkl, fkl, js, ns, softened_fkl, jeffreys, hellinger, chi2, neyman, lecam, alpha or skew_js."
        ),
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Of the divergences alpha and skew_js.")] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="teacher, random, single_level, off_level, clone_map, features_only, map_only, scrambled, "
            "blocks:GLOB, freeze:GLOB or warmup:STEPS."
        ),
    ] = None,
    single_level: Annotated[Path | None, typer.Option(help="Teacher of --init single_level.")] = None,
    off_level: Annotated[Path | None, typer.Option(help="Teacher of --init off_level.")] = None,
    preset: PresetOption = None,
    steps: StepsOption = None,
    batch_size: BatchOption = None,
    lr: RateOption = None,
    ratio_lr: Annotated[float | None, typer.Option(help="Learning rate of the ratio, or of the fake score.")] = None,
    aux_updates: Annotated[int | None, typer.Option(help="Updates of the second network for one of the first.")] = None,
    sigma_init: Annotated[float | None, typer.Option(help="Noise level at which the network generates.")] = None,
    precision: PrecisionOption = None,
    conditional: ConditionalOption = None,
    steps_per_call: PerCallOption = None,
    micro_batch: MicroOption = None,
    eval_every: EvalOption = None,
    features: Annotated[
        str | None,
        typer.Option(help="Measure the Frechet distance at evaluations: raw, digits, fashion, inception:FILE."),
    ] = None,
    stop_when: Annotated[str | None, typer.Option(help="never or indistinguishable.")] = None,
    shard: ShardOption = "none",
    resume: ResumeOption = False,
    setting: SetOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train a one-step generator."""
    check_folder(out)
    use_device(device)
    from ..config import SINGLE_NETWORK, StudentConfig
    from ..data import load_data
    from ..loop import Run
    from ..nets import PRESETS, config, count_parameters
    from ..train import train_student

    known = None if teacher == "none" else teacher_of(Path(teacher))
    line = {
        "method": method, "divergence": divergence, "alpha": alpha, "init": init, "net": preset, "steps": steps,
        "batch_size": batch_size, "lr": lr, "ratio_lr": ratio_lr, "aux_updates": aux_updates,
        "sigma_init": sigma_init, "precision": precision, "conditional": conditional,
        "steps_per_call": steps_per_call, "micro_batch": micro_batch, "stop_when": stop_when,
    }  # fmt: skip
    given = pairs(setting)
    if known is not None and (preset or "net" in given or "net_kwargs" in given):
        raise ConfigError("--preset is the teacher's: leave it out, or train with --teacher none")
    kind = config(known.net)["net"] if known else PRESETS.get(preset or given.get("net", "mlp"), {"net": "mlp"})["net"]
    defaults: dict[str, Any] = {} if kind == "mlp" else dict(IMAGES)
    if known is None and (method or given.get("method")) in SINGLE_NETWORK:
        defaults["init"] = "random"
    cfg = _config(StudentConfig, line, given, defaults)
    if known is None and cfg.init == "teacher":
        raise ConfigError(
            "--init teacher needs --teacher DIR (run: onestep-diffusion teacher DATA --out DIR); "
            "without one there are --init warmup:STEPS and random"
        )
    others = {
        name: None if path is None else teacher_of(path, f"--{name.replace('_', '-')}")
        for name, path in (("single_level", single_level), ("off_level", off_level))
    }
    rows = load_data(data, seed=seed)
    how = {"eval_every": eval_every, "mesh": _mesh(cfg.batch_size), "shard": shard}
    Run(out, resume, **how)
    on_eval = None if features is None else _frechet_to(rows, features, seed)
    with training_progress("student") as report:
        found = train_student(
            rows, known, cfg, seed=seed, out=out, resume=resume, report=report, on_eval=on_eval, **others, **how
        )
    last: dict[str, Any] = {}
    for entry in found.history:
        last |= entry
    facts: dict[str, Any] = {"parameters": count_parameters(found.generator)}
    if found.ratio is not None:
        facts["parameters of the ratio"] = count_parameters(found.ratio)
    facts["steps"] = last["step"]
    bounds = [bound for bound in last.get("js_bins", ()) if bound is not None]
    if bounds:
        facts["JS bound by noise level (nats)"] = bounds
    if "fd" in last:
        facts[f"FD({features})"] = last["fd"]
    _tell(out, facts, as_json)


def _config(kind: type[Any], line: dict[str, Any], given: dict[str, Any], defaults: dict[str, Any]) -> Any:
    """Settings: defaults, then --set, then the line's own options. Raises ConfigError."""
    known = [field.name for field in fields(kind)]
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, 1)
            raise ConfigError(
                f"--set {name}: {f'did you mean {near[0]}?' if near else 'there are ' + ', '.join(known)}"
            )
    return kind(**(defaults | given | {name: value for name, value in line.items() if value is not None}))


def _mesh(batch_size: int) -> Any:
    """All devices, if there are several. Raises ConfigError for a batch that they do not divide."""
    import jax

    from ..loop import data_mesh

    count = jax.device_count()
    if count == 1:
        return None
    if batch_size % count:
        raise ConfigError(f"--batch-size {batch_size} has to be a multiple of the {count} devices")
    return data_mesh()


def _frechet_to(data: Dataset, features: str, seed: int) -> Callable[[int, Generator], dict[str, float]]:
    """FD of 2000 samples to training rows, in the named features."""
    from ..metrics import fid

    shape = data.image_shape or data.shape
    extract = extract_of(features)
    known = extract(data.x[:5000].reshape(-1, *shape))

    def measure(step: int, generator: Generator) -> dict[str, float]:
        samples = generator.sample(2000, seed=seed).reshape(-1, *shape)
        return {"fd": fid(known, extract(samples))}

    return measure


def _tell(out: Path, facts: dict[str, Any], as_json: bool) -> None:
    show({"folder": str(out), **facts}, as_json)
