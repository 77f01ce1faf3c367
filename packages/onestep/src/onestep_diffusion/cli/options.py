"""Options that mean the same in every command, and how values on the line are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import CheckpointError, ConfigError, DataError
from .printing import QUIET, VERBOSE, set_volume

if TYPE_CHECKING:
    from ..data import Dataset
    from ..denoiser import Denoiser

DataArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="digits, mnist5k, fashion-mnist[:DIR], gmm:25, gmm:ring8, rings, checkerboard, swissroll, moons, "
        "cifar10:DIR, imagenet64:DIR, or a folder or zip of images, .npy, .npz, .csv, .parquet.",
    ),
]
RunArgument = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a trained model.")]
TeacherArgument = Annotated[Path, typer.Argument(metavar="TEACHER", help="Folder of a teacher.")]
OutOption = Annotated[Path, typer.Option(metavar="DIR", help="Folder to write.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
SeedOption = Annotated[int, typer.Option(help="Of all random numbers.", min=0)]
FeaturesOption = Annotated[str, typer.Option(help="raw, digits, fashion or inception:FILE.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any other setting, as aux_updates=2 or net_kwargs.hidden=64."),
]

DEVICES = ("auto", "cpu", "cuda")


def _volume(level: int) -> Callable[[bool], None]:
    def chosen(value: bool) -> None:
        if value:
            set_volume(level)

    return chosen


QuietOption = Annotated[
    bool,
    typer.Option(
        "-q", "--quiet", callback=_volume(QUIET), is_eager=True, expose_value=False, help="Only results and errors."
    ),
]
VerboseOption = Annotated[
    bool,
    typer.Option(
        "--debug", callback=_volume(VERBOSE), is_eager=True, expose_value=False, help="More messages, and tracebacks."
    ),
]


def share(names: Collection[str], group: Any) -> None:
    """Give these options of a group of commands to all commands in it, so that they may stand anywhere on the line."""
    options = [option for option in group.params if option.name in names]
    for command in group.commands.values():
        command.params += options


def value_of(text: str) -> Any:
    """A value as YAML has it, with 1e-3 as a number. Raises ConfigError."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Safe, with floats of YAML 1.2: version 1.1, which PyYAML reads, takes 1e-3 for a word."""

    number = re.compile(r"^[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{text!r} is no value: {' '.join(str(error).split())}") from error


def pairs(given: Iterable[str] | None) -> dict[str, Any]:
    """KEY=VALUE as a mapping, A.B=VALUE as one within it. Raises ConfigError."""
    found: dict[str, Any] = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise ConfigError(f"--set {text!r}: KEY=VALUE is needed")
        outer, dot, inner = key.partition(".")
        if dot:
            found.setdefault(outer, {})[inner] = value_of(value)
        else:
            found[key] = value_of(value)
    return found


def numbers(text: str, option: str, kind: type[float] | type[int] = float) -> list[Any]:
    """Numbers between commas. Raises ConfigError."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise ConfigError(f"{option} {text!r}: {what} between commas are needed") from None


def words(text: str) -> list[str]:
    """What stands between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def use_device(name: str) -> None:
    """Before any array is made. Raises ConfigError for one that is unknown or not there."""
    if name not in DEVICES:
        raise ConfigError(f"--device {name!r} is not one of {', '.join(DEVICES)}")
    if name == "auto":
        return
    import jax

    if name == "cpu":
        jax.config.update("jax_platforms", "cpu")  # type: ignore[no-untyped-call]
    elif jax.default_backend() != "gpu":
        raise ConfigError(
            "--device cuda: jax finds no GPU here; install 'onestep-diffusion[cuda]', or use --device cpu"
        )


def check_out(path: Path, suffixes: Collection[str] = ()) -> None:
    """A file that is to be written, before the work and not after. Raises ConfigError, DataError."""
    if suffixes and path.suffix not in suffixes:
        raise ConfigError(f"--out {path}: expected a name that ends in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise DataError(f"cannot write {path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise DataError(f"cannot write {path}: it is a folder")


def check_folder(path: Path) -> None:
    """A folder that is to be made or written into. Raises DataError."""
    if path.exists() and not path.is_dir():
        raise DataError(f"--out {path} is a file; a folder is needed")
    if path.name and not path.parent.is_dir():
        raise DataError(f"cannot write {path}: the folder {path.parent} does not exist")


def extract_of(name: str) -> Callable[[Any], Any]:
    """Rows in data units -> the named features (n, p). Raises ConfigError for an unknown name."""
    from functools import partial

    from ..features import NAMES, features

    if name.partition(":")[0] not in {known.partition(":")[0] for known in NAMES}:
        raise ConfigError(f"--features {name!r} is not one of {', '.join(NAMES)}")
    return partial(features, name=name)


def teacher_of(path: Path, option: str = "--teacher") -> Denoiser:
    """The denoiser in a folder. Raises CheckpointError."""
    from ..checkpoint import load_model

    if not path.exists():
        raise CheckpointError(f"{option} {path}: no such folder; run: onestep-diffusion teacher DATA --out {path}")
    found: Denoiser = load_model(path, "denoiser")
    return found


def settings_of(folder: Path) -> dict[str, Any]:
    """What training wrote into config.json; nothing for a folder that only holds models. Raises CheckpointError."""
    import json

    path = folder / "config.json"
    if not folder.exists():
        raise CheckpointError(f"{folder}: no such folder")
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error})") from None
    return found if isinstance(found, dict) else {}


def run_data(folder: Path, spec: str) -> Dataset:
    """The data, split into training and held-out rows as the run in the folder had them."""
    from ..data import load_data

    settings = settings_of(folder)
    if settings.get("data", spec) != spec:
        load_data(spec)  # data that are not there are the first thing to say
        raise ConfigError(
            f"{folder} was trained on {settings['data']!r}: on {spec!r} its training rows cannot be told from others"
        )
    return load_data(spec, seed=int(settings.get("seed", 0)))
