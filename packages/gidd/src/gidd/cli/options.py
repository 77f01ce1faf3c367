"""Options that mean the same in every command."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, DataError
from .printing import QUIET, VERBOSE, set_volume

if TYPE_CHECKING:
    import torch

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
DtypeOption = Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16 or float64.")]
SeedOption = Annotated[int, typer.Option(help="Random numbers belong to (seed, sequence index).", min=0)]
BatchOption = Annotated[int, typer.Option(help="Sequences per model call; does not change the result.", min=1)]
CheckpointArgument = Annotated[str, typer.Argument(metavar="CKPT", help="Checkpoint folder or hub repository.")]
SamplesArgument = Annotated[Path, typer.Argument(metavar="SAMPLES.jsonl", help="Sequences, an object a line.")]

DTYPES = ("auto", "float32", "bfloat16", "float64")


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
        "-v", "--verbose", "--debug", callback=_volume(VERBOSE), is_eager=True, expose_value=False,
        help="More messages, and tracebacks.",
    ),
]  # fmt: skip


def share(names: Collection[str], group: Any) -> None:
    """Give these options of a group of commands to all commands in it, so that they may stand anywhere on the line."""
    options = [option for option in group.params if option.name in names]
    for command in group.commands.values():
        command.params += options
        if hasattr(command, "commands"):
            share(names, command)


def pick_device(name: str) -> str:
    """ "cpu" or "cuda"."""
    from ..evaluation.runner import pick_device as pick

    return pick(name)


def pick_dtype(name: str) -> torch.dtype | None:
    """The type of weights; None as they are stored."""
    import torch

    if name not in DTYPES:
        raise ConfigError(f"dtype {name!r} is not one of {', '.join(DTYPES)}")
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
    return kinds.get(name)


def check_out(path: Path | None) -> None:
    """Before hours of work, not after."""
    if path is not None and not path.parent.is_dir():
        raise DataError(f"cannot write {path}: the folder {path.parent} does not exist")
