"""dars bench build, run and verify, and dars eval."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from ..errors import TaskError

app = typer.Typer(no_args_is_help=True, help="MutBench: faults put into packages that their own tests detect.")


def evaluate(
    profile: Annotated[str, typer.Option("--profile", help="quick, full, gpu or paper.")] = "quick",
    out: Annotated[Path, typer.Option("--out", help="Folder of results.json and the plots.")] = Path("eval"),
    seed: Annotated[int, typer.Option("--seed", help="Root of all random numbers.")] = 0,
    only: Annotated[list[str] | None, typer.Option("--only", help="An experiment; may be repeated.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep experiments that are done.")] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
) -> int:
    """Run the experiments and write results.json."""
    from ..evaluation.runner import run

    if device not in ("auto", "cpu", "cuda"):
        raise TaskError(f"--device {device}: it has to be auto, cpu or cuda")
    began = time.monotonic()

    def progress(name: str, number: int, total: int, seconds: float) -> None:
        rate = (time.monotonic() - began) / number if number else 0.0
        left = f", about {rate * (total - number):.0f} s more" if 0 < number < total else ""
        done = f" ({name} took {seconds:.1f} s)" if name else ""
        print(f"{number} of {total} experiments{done}{left}", file=sys.stderr)

    results = run(profile, seed, out, only or None, resume, progress, device=device)
    for claim in results["claims"]:
        print(f"{'holds' if claim['holds'] else 'FAILS'}  {claim['id']:<28} {claim['measured']:.4g} {claim['unit']}")
    for name, why in results.get("x-skipped", {}).items():
        print(f"skipped  {name}: {why}")
    held = sum(claim["holds"] for claim in results["claims"])
    print(f"{held} of {len(results['claims'])} claims hold: {out / 'results.json'}")
    return 0
