"""`gidd train` and `gidd plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import JsonOption
from .printing import quiet, show


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, or kjv, latin, owt-small, ...")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Changes, as in optimizer.lr=1e-3.")
    ] = None,
    resume: Annotated[str | None, typer.Option(help="auto (the latest checkpoint, if any) or a step folder.")] = None,
    init_from: Annotated[
        str | None, typer.Option(help="Checkpoint to start from, e.g. a mask-only one to hybridise.")
    ] = None,
) -> None:
    """Train a model; under torchrun on several processes."""
    from ..train import GiddTrainer, load_config

    GiddTrainer(load_config(config, overrides or ()), quiet=quiet()).fit(resume=resume, init_from=init_from)


def plan(
    flops: Annotated[float | None, typer.Option(help="Training budget in FLOPs.")] = None,
    tokens: Annotated[float | None, typer.Option(help="Training budget in tokens.")] = None,
    noise: Annotated[str, typer.Option(help="masked, low-uniform, balanced, high-uniform or uniform.")] = "balanced",
    arch: Annotated[
        str, typer.Option(help="scaling or dit, of the best size; or a size: 25M ... 567M, tiny, small, base, 1B.")
    ] = "scaling",
    vocab_size: Annotated[int, typer.Option(help="Tokens of the vocabulary.", min=1)] = 50_258,
    seq_len: Annotated[
        int | None, typer.Option(help="Tokens per sequence; default 2048 (scaling) or 512.", min=1)
    ] = None,
    gpu: Annotated[str, typer.Option(help="a100, h100, h200, b200, l40s or rtx4090: for hours and memory.")] = "h100",
    mfu: Annotated[float, typer.Option(help="Share of the GPU's peak that is reached.")] = 0.33,
    sequences_per_device: Annotated[int, typer.Option(help="In one forward pass, for the memory.", min=1)] = 8,
    activation_checkpointing: Annotated[
        bool, typer.Option("--activation-checkpointing", help="Keep one tensor per block.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Sizes, batch, learning rate, hours and memory for a budget, by the follow-up's scaling laws."""
    from ..plan import plan as make_plan

    made = make_plan(
        flops=flops, tokens=tokens, noise=noise, arch=arch, vocab_size=vocab_size, seq_len=seq_len, device=gpu, mfu=mfu,
        sequences_per_device=sequences_per_device, activation_checkpointing=activation_checkpointing,
    )  # fmt: skip
    show(made.to_dict(), as_json)
