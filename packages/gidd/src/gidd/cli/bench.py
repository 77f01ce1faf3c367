"""`gidd bench`: speed on this machine, beside what it is to be held against."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError
from .options import DeviceOption, JsonOption, pick_device
from .printing import show, table

SUBJECTS = ("loss", "train", "sample")


def bench(
    subject: Annotated[str, typer.Argument(metavar="[loss|train|sample]", help="What to time.")] = "loss",
    rows: Annotated[int | None, typer.Option(help="Tokens; default 512, for train on a GPU 32768.", min=8)] = None,
    vocab: Annotated[
        int | None,
        typer.Option(help="Columns of the logits; default 50304, for train and sample on a CPU 4096.", min=64),
    ] = None,
    repeats: Annotated[int, typer.Option(help="Repetitions, taking turns.", min=2)] = 5,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Time the loss beside the dense formula and a cross-entropy, training, or sampling and correcting."""
    if subject not in SUBJECTS:
        raise ConfigError(f"bench {subject!r} is not one of {', '.join(SUBJECTS)}")
    place = pick_device(device)
    large = subject == "loss" or place == "cuda"
    vocab = vocab or (50_304 if large else 4096)
    if subject == "loss":
        _loss(rows or 512, vocab, repeats, place, as_json)
        return
    from ..evaluation.speed import peak_flops, small, time_sampling, time_training
    from ..models import DiTConfig
    from ..plan import flops_per_token

    measured: dict[str, float] = {}
    if subject == "sample":
        found = [turns.comparison() for turns in time_sampling(rows or 512, vocab, repeats, place)]
    else:
        config = DiTConfig.preset("small", vocab) if place == "cuda" else small(vocab)
        found = [
            time_training(rows or (32_768 if place == "cuda" else 512), vocab, repeats, place, config).comparison()
        ]
        measured["FLOP/s"] = found[0].ours * flops_per_token(config)
        peak = peak_flops(place)
        if peak is not None:
            measured["MFU"] = measured["FLOP/s"] / peak
    if as_json:
        show({"comparisons": [asdict(c) for c in found], "metrics": measured}, True)
        return
    table(("what", "ours", "peer", "unit", "peer is"), [(c.name, c.ours, c.peer, c.unit, c.peer_name) for c in found])
    for name, value in measured.items():
        print(f"{name}  {value:.3g}")


def _loss(rows: int, vocab: int, repeats: int, device: str, as_json: bool) -> None:
    from dataclasses import replace

    import numpy as np

    from ..evaluation.loss import run_loss
    from ..evaluation.profiles import PROFILES

    profile = replace(PROFILES["quick"], loss_rows=rows, loss_vocab=vocab, loss_repeats=repeats)
    found = run_loss(profile, np.random.default_rng(0), Path(), device=device)
    if as_json:
        show(found.to_dict(), True)
        return
    table(
        ("what", "ours", "peer", "unit", "peer is"),
        [(c.name, c.ours, c.peer, c.unit, c.peer_name) for c in found.comparisons],
    )
