"""Options that mean the same in every command, and how values on the line are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .printing import QUIET, VERBOSE, set_volume

if TYPE_CHECKING:
    from ..data import ImageSet

DataArgument = Annotated[str, typer.Argument(metavar="DATA", help="Name or name:PATH; see `pmae data list`.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a trained model.")]
SizeOption = Annotated[str | None, typer.Option(help="Resize images to this side, or HEIGHTxWIDTH.")]
ChannelsOption = Annotated[int | None, typer.Option(help="Grey repeated, or colour as grey.", min=1)]
SourceOption = Annotated[
    list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="Of the data, as in n=3000 for photopatch.")
]
SplitOption = Annotated[str, typer.Option(help="train, val or test.")]
PoolOption = Annotated[str, typer.Option(help="avg, cls or cls+avg.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
SeedOption = Annotated[int, typer.Option(help="Of all random numbers.", min=0)]
BatchOption = Annotated[int, typer.Option(help="Images at once; does not change the result.", min=1)]


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
        if hasattr(command, "commands"):
            share(names, command)


def value_of(text: str) -> Any:
    """A value as YAML has it, with 1e-3 as a number."""
    import yaml

    try:
        return yaml.load(text, loader())
    except yaml.YAMLError as error:
        raise ValueError(f"{text!r} is no value: {' '.join(str(error).split())}") from error


def loader() -> Any:
    """YAML 1.2's floats: version 1.1, which PyYAML reads, takes 1e-3 for a word."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Safe, with floats of version 1.2."""

    number = re.compile(r"^[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    return Loader


def pairs(given: Iterable[str] | None) -> dict[str, Any]:
    """KEY=VALUE as a mapping. Raises ValueError."""
    found = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise ValueError(f"{text!r}: KEY=VALUE is needed")
        found[key] = value_of(value)
    return found


def size_of(text: str | int | None) -> int | tuple[int, int] | None:
    """A side, or (height, width). Raises ValueError."""
    if text is None or isinstance(text, int):
        return text
    parts = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if parts is None or "0" in (parts[1], parts[2]):
        raise ValueError(f"size {text!r}: a side in pixels such as 64, or HEIGHTxWIDTH such as 48x64")
    return int(parts[1]) if parts[2] is None else (int(parts[1]), int(parts[2]))


def side_of(space: Any) -> str:
    """Height and width of the images of a space, as ``size_of`` reads them."""
    _, height, width = space.image_shape
    return f"{height}x{width}"


def images_of(
    data: str, split: str, size: str | int | None, channels: int | None, option: Iterable[str] | None
) -> ImageSet:
    """A split of a data set as the command line asks for it."""
    from ..data import load

    return load(data, split, size=size_of(size), channels=channels, **pairs(option))


def check_out(path: Path) -> None:
    """Before hours of work, not after. Raises FileNotFoundError, IsADirectoryError."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder")
