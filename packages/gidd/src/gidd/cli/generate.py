"""`gidd sample`, `gidd correct` and `gidd errors`: writing, mending and proof-reading."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ConfigError, DataError
from .checkpoints import as_record, diversity, encode, load, max_length, pieces, same_length, tokens_of
from .options import (
    BatchOption,
    CheckpointArgument,
    DeviceOption,
    DtypeOption,
    JsonOption,
    SamplesArgument,
    SeedOption,
    check_out,
    pick_device,
)
from .printing import progress, show


def sample(
    checkpoint: CheckpointArgument,
    out: Annotated[Path, typer.Option("-o", "--out", help="JSON lines to write.")],
    num: Annotated[int, typer.Option(help="Number of sequences.", min=1)] = 16,
    steps: Annotated[int, typer.Option(help="Sampling steps.", min=1)] = 128,
    length: Annotated[int | None, typer.Option(help="Tokens per sequence; default the most.", min=1)] = None,
    prompt: Annotated[str | None, typer.Option(help="Text to begin with.")] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="File with the text to begin with.")] = None,
    sampler: Annotated[str, typer.Option(help="ancestral or adaptive.")] = "ancestral",
    grid: Annotated[str, typer.Option(help="auto, linear, cosine or power:k.")] = "auto",
    temperature: Annotated[float, typer.Option(help="Of the model's predictions.")] = 1.0,
    top_p: Annotated[float | None, typer.Option(help="Nucleus.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Best tokens kept.")] = None,
    min_prob: Annotated[float, typer.Option(help="Drop posterior entries below.")] = 0.0,
    batch_size: BatchOption = 32,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Generate sequences."""
    import torch

    from ..records import read_text, write_records
    from ..sampling import sample as draw

    check_out(out)
    if prompt is not None and prompt_file is not None:
        raise ConfigError("--prompt and --prompt-file exclude each other")
    ready = load(checkpoint, device, dtype)
    text = read_text(prompt_file) if prompt_file is not None else prompt
    length = length or max_length(ready)
    given = None if not text else torch.tensor(encode(ready, text))
    generator = torch.Generator().manual_seed(seed)
    records: list[dict[str, Any]] = []
    with progress("sample", num) as advance:
        for start in range(0, num, batch_size):
            count = min(batch_size, num - start)
            made = draw(
                ready.model, ready.process, (count, length), steps, sampler=sampler, grid=grid, prompt=given,
                temperature=temperature, top_p=top_p, top_k=top_k, min_prob=min_prob, generator=generator,
                device=pick_device(device),
            )  # fmt: skip
            for row in made.tokens.tolist():
                records.append({"index": len(records), "seed": seed, "steps": steps, **as_record(ready, row)})
            advance(count)
    write_records(out, records)
    show(
        {"out": out, "sequences": len(records), "length": length, **diversity([r["tokens"] for r in records])}, as_json
    )


def correct(
    checkpoint: CheckpointArgument,
    sequences: SamplesArgument,
    out: Annotated[Path, typer.Option("-o", "--out", help="JSON lines to write.")],
    max_steps: Annotated[int, typer.Option(help="Most replacements per sequence.", min=0)] = 128,
    temperature: Annotated[float, typer.Option(help="Of the proposals.")] = 0.1,
    t0: Annotated[float, typer.Option(help="Noise level that the model is told.")] = 0.01,
    tokens_per_step: Annotated[int, typer.Option(help="Replacements at a time.", min=1)] = 1,
    patience: Annotated[int, typer.Option(help="Steps without progress before giving up.", min=0)] = 32,
    strategy: Annotated[str, typer.Option(help="fixed_point or gibbs.")] = "fixed_point",
    show_diff: Annotated[bool, typer.Option("--show-diff", help="Print what changed.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write the changes as one HTML page.")] = None,
    batch_size: BatchOption = 32,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Let the model find and replace its own mistakes."""
    import torch

    from ..records import difference, difference_page, read_records, write_records, write_text
    from ..sampling import self_correct

    for path in (out, html):
        check_out(path)
    records = read_records(sequences)
    ready = load(checkpoint, device, dtype)
    rows = [tokens_of(ready, record, f"{sequences}, sequence {i}") for i, record in enumerate(records)]
    generator = torch.Generator().manual_seed(seed)
    made: list[dict[str, Any]] = []
    with progress("correct", len(rows)) as advance:
        for group in same_length(rows, batch_size):
            batch = torch.tensor(group, device=pick_device(device))
            fixed = self_correct(
                ready.model, ready.process, batch, max_steps=max_steps, temperature=temperature, t0=t0,
                tokens_per_step=tokens_per_step, patience=patience, strategy=strategy, generator=generator,
            )  # fmt: skip
            for i, row in enumerate(fixed.tokens.tolist()):
                made.append(
                    {
                        "index": len(made), **as_record(ready, row), "before": group[i],
                        "changed": int(fixed.num_changed[i]), "steps": int(fixed.num_steps[i]),
                        "stopped": fixed.stop_reason[i], "accuracy_before": float(fixed.initial_accuracy[i]),
                        "accuracy_after": float(fixed.final_accuracy[i]),
                    }
                )  # fmt: skip
            advance(len(group))
    write_records(out, made)
    looks = pieces(ready, [token for record in made for token in (*record["before"], *record["tokens"])])
    runs = [difference(record["before"], record["tokens"], looks) for record in made]
    headings = [f"sequence {r['index']}: {r['changed']} changed, {r['stopped']}" for r in made]
    if html is not None:
        write_text(html, difference_page("Self-correction", list(zip(headings, runs, strict=True))))
    if show_diff:
        for heading, sequence in zip(headings, runs, strict=True):
            print(heading)
            print("".join(old if kind == "same" else f"[-{old}-]{{+{new}+}}" for kind, old, new in sequence))
    mean = {
        key: sum(float(r[key]) for r in made) / len(made) for key in ("changed", "accuracy_before", "accuracy_after")
    }
    show({"out": out, "sequences": len(made), **mean, **diversity([r["tokens"] for r in made])}, as_json)


def errors(
    checkpoint: CheckpointArgument,
    text: Annotated[Path, typer.Argument(metavar="TEXT", help="UTF-8 text file.")],
    t0: Annotated[float, typer.Option(help="Noise level that the model is told.")] = 0.01,
    error_rate: Annotated[float | None, typer.Option(help="Share of wrong tokens to expect.")] = None,
    threshold: Annotated[float, typer.Option(help="Mark tokens above this probability of being wrong.")] = 0.5,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Mark the tokens of a text that are probably wrong."""
    import torch

    from ..records import read_text
    from ..sampling import token_error_probs

    ready = load(checkpoint, device, dtype)
    ids = encode(ready, read_text(text))
    if not ids:
        raise DataError(f"{text}: holds no text")
    length = max_length(ready)
    found: list[tuple[str, float]] = []
    for start in range(0, len(ids), length):
        part = ids[start : start + length]
        p = token_error_probs(
            ready.model, ready.process, torch.tensor([part], device=pick_device(device)), t0=t0, error_rate=error_rate
        )
        looks = pieces(ready, part)
        found += [(looks[i], float(v)) for i, v in zip(part, p[0].tolist(), strict=True)]
    if as_json:
        show({"tokens": [{"text": piece, "p_error": wrong} for piece, wrong in found]}, True)
        return
    colour = sys.stdout.isatty()
    for piece, wrong in found:
        mark = wrong > threshold
        print(f"\x1b[41m{piece}\x1b[0m" if mark and colour else f"[{piece}]" if mark else piece, end="")
    print()
