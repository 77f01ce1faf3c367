"""`gidd data`: preparing and inspecting corpora."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import JsonOption, SeedOption
from .printing import progress, show


def prepare_corpus(
    source: Annotated[str, typer.Option(help="kjv, latin:N, python-stdlib, files:GLOB or hf:NAME[:SUBSET].")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to create.")],
    tokenizer: Annotated[str, typer.Option(help="char, bpe:N, gpt2 or the path of a tokenizer.json.")] = "char",
    held_out: Annotated[float, typer.Option(help="Share of the text for validation.")] = 0.05,
    limit: Annotated[int | None, typer.Option(help="Read at most this many documents.", min=1)] = None,
    seed: SeedOption = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing folder.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Tokenize a corpus into a folder that holds all that training needs."""
    from ..data import info, prepare

    with progress("prepare", None) as advance:
        told = 0

        def tell(written: int) -> None:
            nonlocal told
            advance(written - told)
            told = written

        prepare(source, tokenizer, out, held_out=held_out, limit=limit, seed=seed, overwrite=overwrite, progress=tell)
    show(info(out, verify=False), as_json)


def corpus_info(folder: Annotated[Path, typer.Argument(help="Prepared folder.")], as_json: JsonOption = False) -> None:
    """Say what a prepared folder holds, and check that it is whole."""
    from ..data import info

    show(info(folder), as_json)
