"""What a trained model is used for: `onestep-diffusion sample`, `convert` and `info`."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import CheckpointError, ConfigError, DataError
from .options import (
    DeviceOption,
    FeaturesOption,
    JsonOption,
    RunArgument,
    SeedOption,
    check_folder,
    check_out,
    extract_of,
    numbers,
    run_data,
    settings_of,
    use_device,
)
from .printing import say, show, table, whole

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..denoiser import Generator, Model, Ratio

VERIFIER = "verifier.safetensors"  # a ratio that was fitted again, beside the ratio of training


def sample(
    run: RunArgument,
    out: Annotated[Path, typer.Option(help="FILE.npz, FILE.png (a grid, or points), or a folder for PNGs.")],
    n: Annotated[int, typer.Option(help="Samples.", min=1)] = 64,
    candidates: Annotated[int, typer.Option(help="Among which the ratio chooses each sample.", min=1)] = 1,
    select: Annotated[str, typer.Option(help="sir, rejection or best-of.")] = "sir",
    refit: Annotated[
        str | None, typer.Option(metavar="DATA", help="Fit the ratio to the finished student first, and keep it.")
    ] = None,
    refit_steps: Annotated[int, typer.Option(help="Updates of --refit.", min=1)] = 3000,
    sigma_v: Annotated[float | None, typer.Option(help="Noise level at which the ratio judges.")] = None,
    curve: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Measure 1, 2, 4 … --candidates (16 if it is 1) against DATA: a table, a PNG beside OUT.",
        ),
    ] = None,
    features: FeaturesOption = "raw",
    labels: Annotated[str | None, typer.Option(help="A class, or several between commas, in turn.")] = None,
    evaluations: Annotated[int, typer.Option(help="Of the network, for a student of few_steps.", min=1)] = 1,
    steps: Annotated[int, typer.Option(help="Of Heun's method, where DIR holds a teacher alone.", min=1)] = 18,
    raw: Annotated[bool, typer.Option("--raw", help="The last weights, not their average.")] = False,
    batch_size: Annotated[int | None, typer.Option(help="Samples at once; does not change the result.", min=1)] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Draw samples, in one evaluation each, or chosen among several by the ratio."""
    if out.suffix:
        check_out(out, (".npz", ".png"))
    else:
        check_folder(out)
        if out.is_dir() and any(out.iterdir()):
            raise DataError(f"--out {out} is a folder with something in it; choose another")
    use_device(device)
    import numpy as np

    from ..checkpoint import load_model, save_model
    from ..selection import cost_quality, select_samples
    from ..verify import METHODS, refit_ratio

    method = select.replace("-", "_")
    if method not in METHODS:
        raise ConfigError(f"--select {select!r} is not one of sir, rejection, best-of")
    if sigma_v is not None and (not sigma_v > 0 or (candidates == 1 and curve is None)):
        raise ConfigError(f"--sigma-v {sigma_v}: a positive level, for --candidates or --curve")
    if curve is not None and method == "rejection":
        raise ConfigError("--curve is of --select sir or best-of; rejection has no number of candidates")
    settings = settings_of(run)
    judged = None if curve is None else (run_data(run, curve), extract_of(features))
    only_teacher = not (run / "generator.safetensors").is_file() and (run / "denoiser.safetensors").is_file()
    if only_teacher:
        if candidates > 1 or refit or curve or raw or evaluations > 1:
            raise CheckpointError(f"{run} holds a teacher, not a student: it has no --candidates, --refit or --raw")
        model = load_model(run, "denoiser")
    else:
        model = load_model(run / "generator_raw.safetensors" if raw else run, "generator")
    given = _labels(labels, n)
    model.draw_labels(n, seed, given)  # for its checks
    facts: dict[str, Any] = {"file": str(out), "samples": n}
    ratio = None
    if refit is not None:
        data = run_data(run, refit)
        before = load_model(run, "ratio") if (run / "ratio.safetensors").is_file() else None
        ratio = refit_ratio(model, before, data, steps=refit_steps, seed=seed)
        save_model(run / VERIFIER, ratio)
        facts |= {"sigma_v": ratio.sigma_v, "temperature": ratio.temperature}
    elif candidates > 1 or curve:
        ratio = ratio_of(run, "--candidates" if candidates > 1 else "--curve")
        if not (run / VERIFIER).is_file():
            say("warning", f"{run} has the ratio of training only, which can make samples worse; use --refit DATA")
    if sigma_v is not None and ratio is not None:
        ratio = replace(ratio, sigma_v=sigma_v)
    chosen: Any = given
    if only_teacher:
        x = model.sample(n, seed, steps, given, batch_size)
        drawn = model.draw_labels(n, seed, given)
        facts["evaluations a sample"] = 2 * steps - 1
    elif candidates > 1:
        assert ratio is not None
        found = select_samples(
            model, ratio, n, candidates=candidates, method=method, labels=chosen, seed=seed, batch=batch_size,
            evaluations=evaluations,
        )  # fmt: skip
        x, drawn = found.x, found.labels
        facts |= {"samples": len(x), "candidates": candidates, "evaluations a sample": candidates * evaluations}
        if method == "sir":
            facts["effective candidates"] = found.ess
        if len(x) < n:
            say("warning", f"rejection kept {len(x)} of {n * candidates} candidates, fewer than the {n} asked for")
        if method == "best_of":
            say("warning", "best-of is biased: samples crowd at the mode of the ratio; sir and rejection are not")
    else:
        x = model.sample(n, seed, given, batch_size, evaluations)
        drawn = model.draw_labels(n, seed, given)
        facts["evaluations a sample"] = evaluations
    rows: list[dict[str, Any]] = []
    if judged is not None:
        assert ratio is not None
        known, extract = judged
        most = candidates if candidates > 1 else 16
        rows = cost_quality(
            model, ratio, known, lambda x: extract(x.reshape(-1, *known.shape)),
            candidates=[2**power for power in range(most.bit_length())], method=method, seed=seed,
        )  # fmt: skip
    write_samples(out, np.asarray(x), drawn, image_shape(model, settings), model)
    if rows:
        _plot_curve(out.with_name(f"{out.stem}_curve.png"), rows, features)
    if as_json:
        show(facts | ({"curve": rows} if rows else {}), True)
        return
    show(facts, False)
    if rows:
        print()
        table(rows)


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="EDM's state dict, or a model of ours, .safetensors.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write the model into.")],
    dtype: Annotated[str, typer.Option(help="float32, or float16 to halve the file.")] = "float32",
    precision: Annotated[str | None, typer.Option(help="f32 or bf16, what the body computes in.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Bring EDM's published weights into a folder that the other commands read, or write a model in another dtype."""
    if source.suffix == ".pkl":
        raise DataError(
            f"{source} is a pickle, which is not opened here: where EDM is installed, save its state dict with "
            "safetensors.torch.save_file (python: help('onestep_diffusion.convert') has the lines)"
        )
    if dtype not in ("float32", "float16"):
        raise ConfigError(f"--dtype {dtype!r} is not one of float32, float16")
    if source.is_dir() or (source.exists() and source.suffix != ".safetensors"):
        raise DataError(f"{source}: expected one .safetensors file")
    check_folder(out)
    from ..checkpoint import load_model, read_safetensors, save_model
    from ..convert import load_edm
    from ..nets import config, count_parameters

    _, about = read_safetensors(source)
    if "config" in about:
        model = load_model(source, precision=precision)
    else:
        model = load_edm(source, precision=precision or "f32")
    written = save_model(out, model, dtype=dtype)
    show({"file": str(written), "network": config(model.net), "parameters": count_parameters(model)}, as_json)


def info(
    run: RunArgument,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the update for its exact memory.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Tell what is in a folder: networks, parameters, settings, and what an update costs."""
    settings = settings_of(run)
    from ..checkpoint import KINDS, load_model
    from ..config import StudentConfig
    from ..costs import update_cost
    from ..nets import config, count_parameters

    models = {name: load_model(run, name) for name in KINDS if (run / f"{name}.safetensors").is_file()}
    if not models:
        raise CheckpointError(f"{run} holds no model ({', '.join(f'{name}.safetensors' for name in KINDS)})")
    facts: dict[str, Any] = {"folder": str(run)}
    for name, model in models.items():
        facts[name] = config(model.net)
        facts[f"{name} parameters"] = count_parameters(model)
    for name in (
        "data",
        "rows",
        "method",
        "divergence",
        "init",
        "sigma_law",
        "steps",
        "batch_size",
        "aux_updates",
        "seed",
    ):
        if name in settings:
            facts[name] = settings[name]
    for name in ("sigma_init", "few_steps"):
        if "generator" in models:
            facts[name] = getattr(models["generator"], name)
    if settings.get("kind") == "student" and "generator" in models:
        known = {key: settings[key] for key in StudentConfig().to_dict() if key in settings}
        cfg = StudentConfig.from_dict(known)
        net = config(models["generator"].net)
        cost = update_cost(cfg, net)
        facts |= {
            "GFLOP of a sample": cost.forward_flops / 1e9,
            "forward passes an update": cost.passes,
            "GFLOP an update": cost.flops / 1e9,
            "MiB of weights and moments": cost.state_bytes / 2**20,
        }
        if compiled:
            facts |= _compiled_memory(cfg, models["generator"])
    show(facts, as_json)


def ratio_of(run: Path, option: str) -> Ratio:
    """The ratio that was fitted again, else that of training. Raises CheckpointError."""
    from ..checkpoint import load_model

    for name in (VERIFIER, "ratio.safetensors"):
        if (run / name).is_file():
            found: Ratio = load_model(run / name, "ratio")
            return found
    raise CheckpointError(
        f"{run} holds no ratio, which {option} needs; train with --method ratio, or give sample --refit DATA"
    )


def image_shape(model: Model, settings: dict[str, Any]) -> tuple[int, ...]:
    """Of one sample, also where the network takes flattened images."""
    known = settings.get("image_shape")
    return tuple(known) if known else tuple(model.net.shape)


def write_samples(
    out: Path, x: NDArray[np.float32], labels: NDArray[np.int32] | None, shape: tuple[int, ...], model: Model
) -> None:
    """An .npz (x, perhaps labels), a picture, or a folder of PNGs; whole or not at all. Raises DataError."""
    import numpy as np

    from ..pictures import grid_image, save_samples

    rows = x.reshape(len(x), *shape)
    low, high = model.shift - model.scale, model.shift + model.scale
    is_image = rows.ndim == 4 and rows.shape[-1] in (1, 3)
    if out.suffix == ".npz":
        arrays: dict[str, Any] = {"x": rows} | ({} if labels is None else {"labels": labels})
        with whole(out) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
    elif out.suffix == ".png":
        if not is_image:
            low, high = float(rows.min()), float(rows.max())
        if not save_samples(out, rows, shape, low, high):
            raise DataError(f"samples of shape {shape} make no picture: images and points in the plane do; use .npz")
    elif not is_image:
        raise DataError(f"samples of shape {shape} are no images, which a folder is for; use .npz")
    else:
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            for place, image in enumerate(rows):
                grid_image(image[None], low, high, enlarge=False).save(temporary / f"{place:06d}.png")
            temporary.chmod(0o755)
            if out.is_dir():
                out.rmdir()
            temporary.rename(out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _labels(text: str | None, n: int) -> Any:
    import numpy as np

    return None if text is None else np.resize(np.array(numbers(text, "--labels", int), np.int64), n)


def _plot_curve(path: Path, rows: list[dict[str, Any]], features: str) -> None:
    from ..pictures import figure, save_figure

    sheet = figure(5, 4)
    axes = sheet.subplots()
    axes.plot([row["candidates"] for row in rows], [row["fd"] for row in rows], marker="o")
    axes.set(xscale="log", xlabel="evaluations a sample", ylabel=f"FD({features})")
    save_figure(sheet, path)


def _compiled_memory(cfg: Any, generator: Generator) -> dict[str, float]:
    """What XLA needs for one call of the update, with made-up data."""
    import numpy as np

    from ..train import make_student_step

    rows = np.random.default_rng(0).standard_normal((256, *generator.net.shape)).astype(np.float32)
    labels = np.arange(256) % generator.net.labels if generator.net.labels else None
    from ..data import make_dataset
    from ..denoiser import Denoiser

    data = make_dataset(rows, labels, held_out=0.0)
    like = Denoiser(net=generator.net, sigma_data=data.sigma_data, shift=data.shift, scale=data.scale)
    cfg = cfg.replace(init="teacher")
    step = make_student_step(data, like, cfg)
    program: Any = step.run
    found = program.lower(step.state, step.pool, step.frozen, length=cfg.steps_per_call).compile().memory_analysis()
    return {
        "MiB of arguments": found.argument_size_in_bytes / 2**20,
        "MiB of temporaries": found.temp_size_in_bytes / 2**20,
    }
