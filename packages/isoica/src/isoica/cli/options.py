"""Options that mean the same in every command, and how values on the line are read."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import IsoICAError
from .printing import QUIET, VERBOSE, set_volume

DataArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="One sample a row: .npy, .npz, .csv or .tsv (with or without a header), a folder of mono .wav files "
        "(one a column), .fif or .edf (needs mne).",
    ),
]
ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="File of a fitted model, .npz.")]
KeyOption = Annotated[str | None, typer.Option(help="Array of an .npz file; X, or the only one, if not given.")]
LawsOption = Annotated[
    str,
    typer.Option(
        help="Of the sources, between commas, cycled: uniform, laplace, exponential, bernoulli, logistic, "
        "gennorm:BETA, student:NU, bimodal."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
SeedOption = Annotated[int, typer.Option(help="Of all random numbers.", min=0)]

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

    def give(group: Any) -> None:
        for command in group.commands.values():
            command.params += options
            if hasattr(command, "commands"):
                give(command)

    give(group)


def words(text: str) -> list[str]:
    """What stands between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def numbers(text: str, option: str) -> list[float]:
    """Numbers between commas. Raises IsoICAError."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise IsoICAError(f"{option} {text!r}: numbers between commas are needed") from None


def one_of(value: str, option: str, allowed: Collection[str]) -> str:
    """The value. Raises IsoICAError where it is not allowed."""
    if value not in allowed:
        raise IsoICAError(f"{option} {value!r} is not one of {', '.join(allowed)}")
    return value


def use_device(name: str) -> None:
    """Before any array is made. Raises IsoICAError for one that is unknown or not there."""
    if one_of(name, "--device", DEVICES) == "auto":
        return
    import jax

    if name == "cpu":
        jax.config.update("jax_platforms", "cpu")  # type: ignore[no-untyped-call]
    elif jax.default_backend() != "gpu":
        raise IsoICAError("--device cuda: jax finds no GPU here; install jax[cuda12], or use --device cpu")


def check_out(path: Path, suffixes: Collection[str], option: str = "--out") -> None:
    """A file that is to be written, before the work and not after. Raises IsoICAError."""
    if path.suffix not in suffixes:
        raise IsoICAError(f"{option} {path}: expected a name that ends in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise IsoICAError(f"cannot write {path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise IsoICAError(f"cannot write {path}: it is a folder")
