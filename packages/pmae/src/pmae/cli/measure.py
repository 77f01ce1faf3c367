"""`pmae bench` and `pmae eval`: speed, and the paper's claims, on this machine."""

from __future__ import annotations

from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from .options import DeviceOption, JsonOption, SeedOption
from .printing import quiet, say, show, table

CLAIM_FAILED = 1


def bench(
    side: Annotated[int, typer.Option(help="Images of the split and loss are 3 x side x side.", min=8)] = 32,
    batch_size: Annotated[int, typer.Option(help="Of the split and loss.", min=2)] = 256,
    step_batch: Annotated[int, typer.Option(help="Of the training steps.", min=2)] = 64,
    preset: Annotated[str, typer.Option(help="Of the training steps.")] = "tiny",
    repeats: Annotated[int, typer.Option(help="Repetitions, taking turns.", min=3)] = 7,
    peer: Annotated[str | None, typer.Option(help="transformers, which is used anyway if it is there.")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Time split and loss beside the released code's products, and a step beside MAE's and transformers' (if there)."""
    if peer is not None:
        if peer != "transformers":
            raise ValueError(f"peer {peer!r}: there is transformers")
        import_module(peer)
    import numpy as np

    from ..engine.distributed import pick_device
    from ..evaluation import PROFILES
    from ..evaluation.cost import run_cost

    profile = replace(
        PROFILES["quick"], split_side=side, split_batch=batch_size, step_batch=step_batch, preset=preset,
        split_repeats=repeats, step_repeats=repeats,
    )  # fmt: skip
    found = run_cost(profile, np.random.default_rng(seed), Path(), device=pick_device(device).type)
    if as_json:
        show(
            {"comparisons": [asdict(c) for c in found.comparisons], "metrics": [asdict(m) for m in found.metrics]}, True
        )
        return
    table(
        ("what", "ours", "peer", "unit", "peer is"),
        [(c.name, c.ours, c.peer, c.unit, c.peer_name) for c in found.comparisons],
    )
    print()
    table(("number", "value", "unit"), [(m.name, m.value, m.unit) for m in found.metrics])


def evaluate(
    out: Annotated[Path, typer.Option(help="Folder for results.json and the plots.")],
    profile: Annotated[str, typer.Option(help="quick, full, gpu or paper.")] = "quick",
    seed: SeedOption = 0,
    only: Annotated[str | None, typer.Option(help="Only these experiments, as in redundancy,samplers.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep experiments that are finished.")] = False,
    device: DeviceOption = "auto",
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if a claim does not hold.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Test the paper's claims on this machine."""
    from ..evaluation import run

    def told(identifier: str, done: int, total: int, seconds: float) -> None:
        if identifier and not quiet():
            say(identifier, f"{seconds:.1f} s ({done} of {total})")

    chosen = None if only is None else [part.strip() for part in only.split(",") if part.strip()]
    results = run(profile, seed, out, only=chosen, resume=resume, device=device, progress=told)
    claims = results["claims"]
    if as_json:
        show(results, True)
    else:
        rows = [
            ("yes" if c["holds"] else "NO", c["id"], c["measured"], f"{c['test']['op']} {c['test']['value']:g}", c["n"])
            for c in claims
        ]
        table(("holds", "claim", "measured", "test", "n"), rows)
        print(f"{sum(c['holds'] for c in claims)} of {len(rows)} claims hold; wrote {out / 'results.json'}")
    if strict and not all(c["holds"] for c in claims):
        raise typer.Exit(CLAIM_FAILED)
