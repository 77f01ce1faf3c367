"""Checkpoints as commands use them, the texts and tokens that go in and out, and `gidd info` and `gidd convert`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, DataError
from .options import CheckpointArgument, JsonOption, pick_device, pick_dtype
from .printing import show

if TYPE_CHECKING:
    from ..hub import Checkpoint


def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder in any known layout.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="Folder to write.")],
    mask_id: Annotated[int | None, typer.Option(help="Where neither tokenizer nor configuration says.", min=0)] = None,
    as_json: JsonOption = False,
) -> None:
    """Turn another project's checkpoint into a native one."""
    from ..hub import convert as convert_checkpoint

    show(_facts(convert_checkpoint(source, target, mask_id), str(target)), as_json)


def info(checkpoint: CheckpointArgument, as_json: JsonOption = False) -> None:
    """Say what a checkpoint is."""
    show(_facts(load(checkpoint, "cpu"), checkpoint), as_json)


def _facts(ready: Checkpoint, where: str) -> dict[str, Any]:
    return {
        "checkpoint": where,
        "architecture": ready.model.architecture,
        "parameters": ready.model.num_parameters(),
        **ready.model.config.to_dict(),
        "process": ready.process.to_dict(),
        "tokenizer": ready.tokenizer is not None,
    }


def load(source: str, device: str, dtype: str = "auto", objective: str = "diffusion") -> Checkpoint:
    """The checkpoint with its model ready to be evaluated; refused if it was trained for another objective."""
    from ..hub import load_checkpoint

    place, kind = pick_device(device), pick_dtype(dtype)  # refused before a large file is read
    ready = load_checkpoint(source)
    trained = ready.meta.get("objective", "diffusion")
    if trained != objective:
        raise ConfigError(f"{source} was trained with objective={trained}; this needs objective={objective}")
    ready.model.to(device=place, dtype=kind).eval()
    return ready


def max_length(ready: Checkpoint) -> int:
    """Tokens that the model takes."""
    return int(ready.model.config.max_seq_len)


def encode(ready: Checkpoint, text: str) -> list[int]:
    """Ids of a text."""
    if ready.tokenizer is None:
        raise ConfigError("the checkpoint has no tokenizer, so that text cannot be read")
    return ready.tokenizer.encode(text)


def as_record(ready: Checkpoint, tokens: Sequence[int]) -> dict[str, Any]:
    """A sequence as samples files have it."""
    text = {} if ready.tokenizer is None else {"text": ready.tokenizer.decode(list(tokens))}
    return {"tokens": list(tokens), **text}


def tokens_of(ready: Checkpoint, record: dict[str, Any], where: str) -> list[int]:
    """The ids of a record, as many as the model takes."""
    tokens = record.get("tokens")
    if tokens is None:
        tokens = encode(ready, record["text"])
    size = ready.process.vocab_size
    if not all(0 <= i < size for i in tokens):
        raise DataError(f"{where}: holds the id {next(i for i in tokens if not 0 <= i < size)}, outside [0, {size})")
    if not tokens or len(tokens) > max_length(ready):
        raise DataError(f"{where}: has {len(tokens)} tokens; the model takes 1 to {max_length(ready)}")
    return list(tokens)


def pieces(ready: Checkpoint, tokens: Sequence[int]) -> dict[int, str]:
    """What each of the ids looks like."""
    if ready.tokenizer is None:
        return {i: f"{i} " for i in set(tokens)}
    return {i: ready.tokenizer.decode([i]) for i in set(tokens)}


def same_length(rows: Sequence[list[int]], batch_size: int) -> Iterator[list[list[int]]]:
    """Groups of neighbours of one length."""
    group: list[list[int]] = []
    for row in rows:
        if group and (len(row) != len(group[0]) or len(group) == batch_size):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def diversity(rows: Sequence[Sequence[int]]) -> dict[str, float]:
    """Entropy and repetition beside whatever else is printed: a sharp sampler flatters every judge."""
    import numpy as np

    from ..eval.text_metrics import distinct_n, padded, self_repetition, unigram_entropy

    tokens, mask = padded(rows)
    repetition = self_repetition(tokens, mask=mask)
    long = ~np.isnan(repetition)
    return {
        "unigram entropy": float(unigram_entropy(tokens, mask).mean()),
        "distinct 4-grams": distinct_n(tokens, 4, mask),
        "self-repetition": float(repetition[long].mean()) if long.any() else math.nan,
    }
