"""dars swebench run, predict, eval and report."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config import DarsConfig
from ..errors import TaskError
from .running import CallsOption, CostOption, ModelOption, StepsOption, UnknownOption, limited, settings_named

if TYPE_CHECKING:
    from ..swebench import RunSummary
    from ..task import Task


class Executor(StrEnum):
    """Where instances run."""

    threads = "threads"
    ray = "ray"


app = typer.Typer(no_args_is_help=True, help="Runs over SWE-bench instances, and their official grading.")

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run over instances.")]


@app.command()
def run(
    instances: Annotated[
        str, typer.Argument(metavar="INSTANCES", help="JSONL, JSON or parquet file, or a data set's name.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder; one that holds results goes on.")],
    model: ModelOption = "claude-sonnet-5-5",
    config: Annotated[str | None, typer.Option("--config", help="YAML file, or paper or fast.")] = None,
    split: Annotated[str, typer.Option("--split", help="Of a data set.")] = "test",
    workers: Annotated[int, typer.Option("--workers", min=1, help="Instances at once.")] = 1,
    shard: Annotated[str | None, typer.Option("--shard", metavar="I/N", help="Part I of N, from 0.")] = None,
    executor: Annotated[Executor, typer.Option("--executor", help="Where instances run.")] = Executor.threads,
    name: Annotated[str | None, typer.Option("--name", help="model_name_or_path; default: dars and the model.")] = None,
    max_cost: CostOption = None,
    max_steps: StepsOption = None,
    max_calls: CallsOption = None,
    allow_unknown_price: UnknownOption = False,
) -> int:
    """Solve instances, each in its container; write predictions.jsonl."""
    from ..swebench import read_instances, run_instances

    settings = limited(settings_named(config), max_cost, max_steps, max_calls, None)
    rows = read_instances(instances, split)
    part = None if shard is None else _part(shard)
    solve = partial(_solve, model=model, settings=settings.model_dump(), allow_unknown_price=allow_unknown_price)
    totals = run_instances(
        rows, solve, out, name or f"dars-{model}", workers, part, executor.value, on_progress=_progress,
    )  # fmt: skip
    done, before, failed = len(totals.done), len(totals.skipped), len(totals.failed)
    written = out / "predictions.jsonl"
    print(f"{done} done, {before} were done, {failed} failed{f': {written}' if written.exists() else ''}")
    return 1 if totals.failed else 0


@app.command()
def predict(folder: RunArgument) -> None:
    """Write the further candidates as predictions too, one file for each rank, for "any candidate resolves"."""
    from ..swebench import candidate_predictions

    for path in candidate_predictions(folder):
        print(path)


@app.command("eval")
def evaluate(
    predictions: Annotated[Path, typer.Argument(metavar="PREDICTIONS", help="predictions.jsonl.")],
    dataset: Annotated[str, typer.Option("--dataset", help="As the official harness takes it.")],
    run_id: Annotated[str, typer.Option("--run-id", help="Name of this grading.")] = "dars",
    workers: Annotated[int, typer.Option("--workers", min=1, help="Containers at once.")] = 4,
    split: Annotated[str, typer.Option("--split", help="Of the data set.")] = "test",
) -> None:
    """Grade by the official harness (needs docker and dars-agent[swebench])."""
    from ..swebench import evaluate as graded

    print(graded(predictions, dataset, run_id, workers, split))


@app.command()
def report(
    folder: RunArgument,
    run_id: Annotated[str | None, typer.Option("--run-id", help="Of the grading.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Resolved, any candidate resolved, and cost of every instance."""
    from ..swebench import report as made

    found = made(folder, run_id)
    print(
        json.dumps({"instances": found.rows, "summary": found.summary}, indent=1) if as_json else found.table(), end=""
    )


def _solve(task: Task, folder: Path, model: str, settings: dict[str, Any], allow_unknown_price: bool) -> RunSummary:
    """One instance: its container, with the future cut off from its history."""
    from .. import agent
    from ..swebench import RunSummary, prepare_container

    config = DarsConfig.model_validate(settings)
    out = folder / "run"
    with agent.workspace(task, config, None, out) as env:
        prepare_container(env)
        result = agent.run(task, model, config, env, out, allow_unknown_price=allow_unknown_price)
    best, *others = [candidate.patch for candidate in result.candidates] or [""]
    calls = json.loads((out / "usage.json").read_text(encoding="utf-8"))["calls"]
    return RunSummary(
        best, tuple(others), result.exit_reason, len(result.tree) - 1, calls, result.cost_usd
    )  # fmt: skip


def _part(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and int(number) < int(of)):
        raise TaskError(f"--shard {text}: give I/N with I from 0 to N - 1, as in 0/4")
    return int(number), int(of)


def _progress(told: dict[str, Any]) -> None:
    why = f": {' '.join(told['error'].split())}" if "error" in told else ""
    print(f"{told['number']} of {told['total']}: {told['instance_id']} {told['status']}{why}", file=sys.stderr)
