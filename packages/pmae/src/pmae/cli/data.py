"""`pmae data`: what data sets there are, whether they are whole, and built-in ones as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import (
    ChannelsOption,
    DataArgument,
    JsonOption,
    SeedOption,
    SizeOption,
    SourceOption,
    check_out,
    pairs,
    size_of,
)
from .printing import show, table


def list_sources(as_json: JsonOption = False) -> None:
    """List the data sets, where they are, and how to obtain those that are not here."""
    from ..data import listing

    rows = listing()
    if as_json:
        show({"sources": rows}, True)
    else:
        table(("name", "what", "where", "options"), [(r["name"], r["about"], r["where"], r["options"]) for r in rows])


def check_source(
    data: DataArgument,
    size: SizeOption = None,
    channels: ChannelsOption = None,
    option: SourceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read a data set through, and say what it holds and what looks wrong."""
    from ..data import check

    found = check(data, size_of(size), channels, **pairs(option))
    if as_json:
        show(found, True)
        return
    for split, facts in found["splits"].items():
        print(f"{split}:")
        show({f"  {name}": value for name, value in facts.items()}, False)
    print("\n".join(found["problems"]) or "nothing looks wrong")


def make_file(
    name: Annotated[str, typer.Argument(help="photopatch or digits.")],
    out: Annotated[Path, typer.Option(help="File to write, .npz.")],
    size: Annotated[int | None, typer.Option(help="Side of the crops.", min=1)] = None,
    n: Annotated[int | None, typer.Option(help="Training images of photopatch.", min=1)] = None,
    n_test: Annotated[int | None, typer.Option(help="Test images of photopatch.", min=1)] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Write a built-in data set as a file that `npz:FILE` and other tools read."""
    check_out(out)
    from ..data import make

    show({"file": str(out), **make(name, out, size, n, n_test, seed)}, as_json)
