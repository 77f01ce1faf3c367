"""`pmae pretrain`: a preset, a file and the line as one set of settings; then the run."""

from __future__ import annotations

import types
from collections.abc import Mapping
from difflib import get_close_matches
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer

from .options import (
    ChannelsOption,
    DeviceOption,
    JsonOption,
    SizeOption,
    SourceOption,
    images_of,
    loader,
    pairs,
    side_of,
)  # fmt: skip
from .printing import r2_of, show, table, training_progress

if TYPE_CHECKING:
    from ..data import ImageSet
    from ..engine.distributed import World

METHODS = ("pmae", "mae")
SECTIONS = ("space", "model", "train", "options")  # with settings of their own
PLAIN = ("data", "size", "channels", "method", "heldout")
NOTES = ("seeds", "sweep")  # what a file says to those who run it several times
OURS = (  # not from a file
    "model", "images", "out", "resume", "progress", "device", "layout", "about", "stop_after", "heldout",
)  # fmt: skip
INTERRUPTED = 130


def pretrain(
    data: Annotated[str | None, typer.Argument(metavar="DATA", help="Name or name:PATH; see `pmae data list`.")] = None,
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder of the run.")] = ...,  # type: ignore[assignment]
    space: Annotated[
        Path | None, typer.Option(help="File that fit-basis wrote; without it one is fitted to the data first.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="pmae (default) or mae.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="tiny, vit_t8 (default), vit_t8_paper, vit_s16 or vit_b16.")
    ] = None,
    ratio: Annotated[
        str | None, typer.Option(help="Hidden share of the variance (of mae: of the patches), or LOW,HIGH.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Length of the schedule.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step, over all processes.", min=1)] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate; default 1.5e-4 · batch size / 256.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML of data, size, method and the sections space, model and train.")
    ] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As in model.depth=6 or train.augment=flip.")
    ] = None,
    resume: Annotated[str, typer.Option(help="auto, never, or the path of a run or checkpoint.")] = "auto",
    stop_after: Annotated[float | None, typer.Option(help="End after this epoch, as if interrupted.")] = None,
    wall_clock: Annotated[
        float | None, typer.Option(help="Seconds for training; the schedule is shortened to fit.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 (default) or bf16.")] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the network.")] = False,
    heldout: Annotated[
        str | None,
        typer.Option(
            metavar="DATA|test",
            help="Images to judge each epoch by, per band of components: test or val, of the same data; or DATA.",
        ),
    ] = None,
    track: Annotated[str | None, typer.Option(help="tensorboard: write the records there, too.")] = None,
    pad: Annotated[bool, typer.Option("--pad", help="Pad images whose sides the patch size does not divide.")] = False,
    size: SizeOption = None,
    channels: ChannelsOption = None,
    option: SourceOption = None,
    seed: Annotated[int | None, typer.Option(help="Of all random numbers; default 0.", min=0)] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train a masked autoencoder; under torchrun on several devices. Goes on where a run in the folder stopped."""
    line = {
        "data": data, "size": size, "channels": channels, "method": method, "heldout": heldout,
        "space": None if space is None else str(space),
        "options": pairs(option),
        "model": {"preset": preset, "ratio": None if ratio is None else _ratio(ratio), "seed": seed,
                  "pad": pad or None},
        "train": {
            "epochs": epochs, "batch_size": batch_size, "lr": lr, "precision": precision, "wall_clock": wall_clock,
            "compile": compile or None, "track": track, "seed": seed,
        },
    }  # fmt: skip
    settings = merged(config, assignments, line)
    import torch

    from ..engine.distributed import joined
    from ..engine.train import fit
    from ..models import PMAE, PixelMAE, PMAEConfig

    model_config = PMAEConfig(**settings["model"])  # refused before anything is read
    if isinstance(settings["space"], str) and settings["size"] is None:
        from ..space import MaskSpace

        settings["size"] = side_of(MaskSpace.load(settings["space"]))
    images = images_of(settings["data"], "train", settings["size"], settings["channels"], source_options(settings))
    judged = None if settings["heldout"] is None else heldout_images(settings).images
    world = joined(device)
    if world.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    scale = _scale(settings, images, out, resume, world)
    model = PMAE(model_config, scale) if settings["method"] == "pmae" else PixelMAE(model_config, scale)
    about = {name: settings[name] for name in (*PLAIN, "space", "options")}
    with training_progress(settings["train"]["epochs"]) as tell:
        result = fit(
            model, images.images, out=out, resume=resume, stop_after=stop_after, device=world.device, progress=tell,
            about=about, heldout=judged, **settings["train"],
        )  # fmt: skip
    if world.main:
        last = result.history[-1] if result.history else {}
        facts = {
            "run": str(out), "epochs": result.epochs, "steps": result.steps, "seconds": result.seconds,
            "images per second": result.images_per_s,
            **{name: last.get(name) for name in ("loss", "fvu", "masked_share")},
        }  # fmt: skip
        explained: dict[str, float | None] = {}
        if result.bands:
            from ..engine.folder import PICTURE
            from ..plots import band_heatmap

            band_heatmap(result.bands, out / PICTURE)
            explained = r2_of(result.bands[-1])
            facts["heldout fvu"] = result.bands[-1]["fvu"]
        show(facts | {"heldout r2": explained} if as_json and explained else facts, as_json)
        if explained and not as_json:
            print()
            table(("components", *explained), [("R², held out", *explained.values())])
    if result.interrupted:
        raise typer.Exit(INTERRUPTED)


def heldout_images(settings: Mapping[str, Any]) -> ImageSet:
    """Images that ``heldout`` names: a split of the data, or the test split of other data (of npy its only one)."""
    wanted, size, channels = (settings[name] for name in ("heldout", "size", "channels"))
    if wanted in ("test", "val"):
        return images_of(settings["data"], wanted, size, channels, source_options(settings))
    return images_of(wanted, "train" if wanted.startswith("npy:") else "test", size, channels, None)


def merged(config: Path | None, assignments: list[str] | None, line: Mapping[str, Any]) -> dict[str, Any]:
    """Settings: those of the line over --set over the file over the preset's. Raises ValueError that names the key."""
    from ..engine.train import fit
    from ..models import TRAINING

    settings: dict[str, Any] = {name: {} for name in SECTIONS} | dict.fromkeys(PLAIN)
    settings |= {"space": None}
    sweep: dict[str, Any] = {}
    if config is not None:
        given = _read(config)
        sweep = given.pop("sweep", None) or {}
        given.pop("seeds", None)
        _overlay(settings, given, str(config))
    for key, value in pairs(assignments).items():
        section, dot, name = key.partition(".")
        _overlay(settings, {section: {name: value}} if dot else {section: value}, f"--set {key}")
    _overlay(settings, _without_none(line), "the command line")
    open_ = [name for name in sweep if name not in settings["model"] and name not in settings["train"]]
    if open_:
        raise ValueError(f"{config} is for several values of {open_[0]}: choose one of {sweep[open_[0]]}")
    preset = settings["model"].setdefault("preset", "vit_t8")
    train = TRAINING.get(preset, {}) | settings["train"]
    settings["train"] = train
    settings["method"] = settings["method"] or "pmae"
    if settings["method"] not in METHODS:
        raise ValueError(f"method {settings['method']!r}: one of {', '.join(METHODS)}")
    if settings["data"] is None:
        raise ValueError("no data: give DATA, as in photopatch or cifar10:PATH; `pmae data list` has the names")
    known = {n: p for n, p in signature(fit).parameters.items() if n not in OURS}
    for name in train:
        if name not in known:
            near = get_close_matches(name, known, 1)
            raise ValueError(f"train.{name} is not known: {'did you mean ' + near[0] if near else ', '.join(known)}")
    if train.get("epochs") is None:
        raise ValueError("epochs is not set: --epochs N says how long to train")
    hints = get_type_hints(fit)
    for name, value in train.items():
        if not _fits(value, hints[name]):
            kind = str(known[name].annotation).replace("typing.", "")
            raise ValueError(f"train.{name} is {value!r}, which is no {kind}")
        if known[name].default is not Parameter.empty and isinstance(known[name].default, tuple):
            train[name] = tuple(value)
    return settings


def _read(path: Path) -> dict[str, Any]:
    """Settings of a YAML file; those of a run's own config.yaml will do."""
    import yaml

    try:
        found = yaml.load(path.read_text(encoding="utf-8"), loader())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} has to hold {', '.join((*PLAIN, *SECTIONS))}, not a {type(found).__name__}")
    return found


def _overlay(settings: dict[str, Any], over: Mapping[str, Any], source: str) -> None:
    """Replace settings, one by one within sections."""
    for name, value in over.items():
        if name not in (*SECTIONS, *PLAIN, *NOTES):
            known = (*PLAIN, *SECTIONS)
            near = get_close_matches(name, known, 1)
            raise ValueError(
                f"{source}: {name} is not known: {'did you mean ' + near[0] if near else ', '.join(known)}"
            )
        if name == "space" and isinstance(value, str | None):
            settings[name] = value
        elif name in SECTIONS:
            if not isinstance(value, dict):
                raise ValueError(f"{source}: {name} is {value!r}, which should hold settings")
            before = settings[name]
            settings[name] = value if isinstance(before, str | None) else before | value
        else:
            settings[name] = value


def _without_none(line: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in line.items():
        value = {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value
        if value is not None and value != {}:
            found[name] = value
    return found


def _ratio(text: str) -> float | list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if len(found) not in (1, 2):
        raise ValueError(f"ratio {text!r}: a share such as 0.15, or LOW,HIGH such as 0.1,0.9")
    return found[0] if len(found) == 1 else found


def source_options(settings: Mapping[str, Any]) -> list[str]:
    """What is asked of the source of the data, KEY=VALUE."""
    return [f"{name}={value}" for name, value in settings["options"].items()]


def _scale(settings: dict[str, Any], images: ImageSet, out: Path, resume: str, world: World) -> Any:
    """The space, of mae the standardisation: from a file, from the run that goes on, or fitted."""
    from ..engine.checkpoint import latest
    from ..space import MaskSpace, fit_space
    from ..standardize import fit_standardizer

    wanted, method = settings["space"], settings["method"]
    stored = out / "space.safetensors"
    if isinstance(wanted, str):
        return MaskSpace.load(wanted)
    if method == "pmae" and resume == "auto" and stored.is_file() and latest(out / "checkpoints") is not None:
        return MaskSpace.load(stored)
    wanted = wanted or {}
    if method == "mae":
        return fit_standardizer(
            images.images, wanted.get("standardize", "pixel"), wanted.get("std_floor", 0.01), device=world.device
        ).float()
    return fit_space(images.images, **{"device": world.device, **wanted})


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from a file is what a parameter takes."""
    if get_origin(hint) in (Union, types.UnionType):
        return any(_fits(value, each) for each in get_args(hint))
    if get_origin(hint) is tuple:
        parts = get_args(hint)
        return isinstance(value, list | tuple) and len(value) == len(parts) and all(map(_fits, value, parts))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)
