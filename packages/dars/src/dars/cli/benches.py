"""dars bench build, run and verify, and dars eval."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from ..errors import TaskError
from .running import CallsOption, CostOption, ModelOption, UnknownOption

app = typer.Typer(no_args_is_help=True, help="MutBench: faults put into packages that their own tests detect.")


TasksOption = Annotated[
    Path | None, typer.Option("--tasks", help="JSON lines of dars bench build; default: the 24 tasks that are shipped.")
]
SourceOption = Annotated[
    Path | None, typer.Option("--source", help="Folder of the package that --tasks were made from.")
]


@app.command()
def build(
    package: Annotated[str, typer.Argument(metavar="PACKAGE", help="Folder of a package with a passing pytest suite.")],
    out: Annotated[Path, typer.Option("--out", help="JSON lines of the tasks.")],
    n: Annotated[int, typer.Option("--n", min=1, help="Tasks.")] = 8,
    double: Annotated[float, typer.Option("--double", min=0, max=1, help="Share with two faults.")] = 0.5,
    most: Annotated[int | None, typer.Option("--most", min=1, help="Mutations that are tried at most.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of what is drawn.")] = 0,
) -> int:
    """Make tasks from a package: faults that 1 to 30 % of its tests detect, which are then hidden."""
    from ..bench.build import build as built
    from ..bench.tasks import save_tasks

    tasks = built(Path(package), n, seed, double, most)
    save_tasks(tasks, out)
    print(f"{len(tasks)} of {n} tasks: {out}")
    return 0 if tasks else 1


@app.command()
def run(
    out: Annotated[Path, typer.Option("--out", help="Folder; one that holds results goes on.")],
    model: ModelOption = "repair",
    config: Annotated[str | None, typer.Option("--config", help="YAML file, or paper or fast.")] = None,
    tasks: TasksOption = None,
    source: SourceOption = None,
    only: Annotated[list[str] | None, typer.Option("--only", help="Id of a task; may be repeated.")] = None,
    max_calls: CallsOption = None,
    max_cost: CostOption = None,
    label: Annotated[
        Path | None, typer.Option("--label", help="Write labelled candidates, for dars reviewer fit.")
    ] = None,
    allow_unknown_price: UnknownOption = False,
) -> int:
    """Solve tasks with a model of your choice, each in a sandboxed workspace, and grade them by their hidden tests.

    The folder of a task holds a run as that of dars run, which dars resume, fork and review take, and result.json.
    """
    from ..bench.solve import solve
    from ..bench.tasks import load_tasks
    from ..reviewer import write_labelled
    from .running import limited, settings_named

    settings = limited(settings_named(config), max_cost, None, max_calls, None)
    chosen = [task for task in load_tasks(tasks) if not only or task.id in only]
    if not chosen:
        raise TaskError(f"there is no task {', '.join(only or ())}: the ids stand in the file of tasks")
    labelled, right, any_right = [], 0, 0
    for number, task in enumerate(chosen, start=1):
        case, best = solve(task, model, settings, out / task.id, source, allow_unknown_price)
        right, any_right = right + best, any_right + any(case.resolved)
        labelled += [case] if case.candidates else []
        verdict = "resolved" if best else "resolved by another candidate" if any(case.resolved) else "not resolved"
        print(f"{number} of {len(chosen)}: {task.id} {verdict} ({len(case.candidates)} candidates)")
    if label is not None:
        write_labelled(label, labelled)
    print(f"resolved {right}, by any candidate {any_right}, of {len(chosen)}")
    return 0


@app.command()
def verify(
    n: Annotated[int, typer.Option("--n", min=1, help="States that are executed again.")] = 5,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of the draw.")] = 0,
    sandbox: Annotated[str, typer.Option("--sandbox", help="auto, bwrap, unshare or none.")] = "auto",
) -> int:
    """Whether the shipped table of test outcomes tells the truth here."""
    from ..bench.outcomes import load_table
    from ..bench.tasks import load_tasks
    from ..bench.verify import verify as verified

    wrong = verified(load_tasks(), load_table(), None if everything else n, seed, sandbox)
    for one in wrong:
        print(f"{one.task}: {one.what} in the state {one.state[:80]} is not as recorded")
    print(f"{len(wrong)} differences")
    return 1 if wrong else 0


def evaluate(
    profile: Annotated[str, typer.Option("--profile", help="quick, full, gpu or paper.")] = "quick",
    out: Annotated[Path, typer.Option("--out", help="Folder of results.json and the plots.")] = Path("eval"),
    seed: Annotated[
        int,
        typer.Option(
            "--seed", help="Root of all random numbers; on MutBench it draws among the seeds that are recorded."
        ),
    ] = 0,
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
