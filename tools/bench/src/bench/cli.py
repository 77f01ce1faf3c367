"""The `bench` command: parse, call, print. Errors are one line on stderr and exit 2."""

import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench import __version__, words
from bench import compare as comparing
from bench.board import Board
from bench.discover import PROFILES, discover, find_root, select
from bench.executors import EXECUTORS
from bench.files import BenchError
from bench.report import write_report
from bench.run import Job, prepare_out, time_limit
from bench.runs import Run, exit_code, load_runs, outcome, version

app = typer.Typer(add_completion=False, rich_markup_mode=None, help="Run packages' evaluations and check their claims.")

RootOption = Annotated[Path | None, typer.Option(help="Repository; else the nearest folder above that has packages/.")]


def main() -> None:
    """The console script."""
    debug = "--debug" in sys.argv  # accepted anywhere on the line
    arguments = [word for word in sys.argv[1:] if word != "--debug"]
    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        code = typer.main.get_command(app).main(arguments, prog_name="bench", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:  # `bench list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        if debug:
            raise
        code = 2
        print(f"error: {_one_line(error)}", file=sys.stderr)
    sys.exit(code or 0)


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Run the packages' evaluations and check their claims."""
    if show_version:
        print(__version__)
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command("list")
def list_packages(
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False, root: RootOption = None
) -> None:
    """List the packages that can be run."""
    packages = discover(_root(root))
    if json_output:
        import json

        fields = ("name", "distribution", "summary")
        print(json.dumps([{**{f: getattr(p, f) for f in fields}, "command": list(p.command), "extras": list(p.extras),
                           "timeout": dict(p.timeout)} for p in packages], indent=2, ensure_ascii=False))  # fmt: skip
        return
    table = _table("package", "command", "summary")
    for package in select(packages, ()):
        table.add_row(package.name, " ".join(package.command), escape(package.summary))
    Console().print(table)


@app.command()
def run(
    out: Annotated[Path, typer.Option(help="Folder for the results and the report; new, empty or of an earlier run.")],
    packages: Annotated[list[str] | None, typer.Argument(metavar="PACKAGE", help="Folder names; else all.")] = None,
    profile: Annotated[str, typer.Option(help=f"One of {', '.join(PROFILES)}.")] = "quick",
    seed: Annotated[int, typer.Option(help="Passed to every evaluation.", min=0)] = 0,
    timeout: Annotated[float | None, typer.Option(help="Seconds a package may take.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep valid runs of same profile, seed, version.")] = False,
    envs: Annotated[Path | None, typer.Option(help="Folder with one virtual environment per package.")] = None,
    root: RootOption = None,
    executor: Annotated[str, typer.Option(help=f"One of {', '.join(EXECUTORS)}.")] = "local",
    jobs: Annotated[int, typer.Option(help="Packages at a time; more than one disturbs timings.", min=1)] = 1,
) -> int:
    """Run evaluations, check what they claim, write the report."""
    if profile not in PROFILES:
        raise BenchError(f"--profile {profile}: want one of {', '.join(PROFILES)}")
    if executor not in EXECUTORS:
        raise BenchError(f"--executor {executor}: want one of {', '.join(EXECUTORS)}")
    if executor == "slurm" and find_spec("submitit") is None:
        raise BenchError("--executor slurm: submitit is not installed; pip install 'paper-bench[slurm]'")
    if timeout is not None and not 0 < timeout < float("inf"):
        raise BenchError(f"--timeout {timeout:g}: want a positive number of seconds")
    if envs and not envs.is_dir():
        raise BenchError(f"--envs {envs}: is no folder; want one with a virtual environment per package")
    top = _root(root)
    chosen = select(discover(top), packages or ())
    out, envs = out.absolute(), envs.absolute() if envs else None
    prepare_out(out)
    limits = {package.name: time_limit(package, profile, timeout) for package in chosen}
    plan = [Job(package, top, out, profile, seed, envs, limits[package.name], resume) for package in chosen]

    console = Console(stderr=True)
    with Board([package.name for package in chosen], console) as board:
        interrupted = EXECUTORS[executor](plan, jobs, board)
    runs = load_runs(out)
    path = write_report(out, runs)
    asked = [item for item in runs if item.name in limits]
    print_verdicts(asked, path)
    if len(asked) < len(limits):  # not even the record of its failure could be written: a full disk, say
        missing = ", ".join(sorted(set(limits) - {item.name for item in asked}))
        raise BenchError(f"{out}: nothing was recorded for {missing}; see that the folder can be written")
    return 130 if interrupted else exit_code(asked)


@app.command()
def report(directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `bench run` wrote.")]) -> int:
    """Judge the results in DIR again and write the report again."""
    runs = load_runs(directory)
    print_verdicts(runs, write_report(directory, runs))
    return exit_code(runs)


@app.command()
def compare(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="A run folder or a results.jsonl.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="A run folder or a results.jsonl.")],
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Tell what changed from OLD to NEW: flipped claims, and figures that moved beyond their noise."""
    changes = comparing.compare(comparing.read(old), comparing.read(new))
    if json_output:
        print(comparing.as_json(changes))
        return comparing.exit_code(changes)
    print(f"Moved: both intervals are disjoint; without two intervals, a change by more than {comparing.FACTOR}×.")
    for what in dict.fromkeys(change.what for change in changes):
        print(f"\n{what}")
        for change in (item for item in changes if item.what == what):
            values = " → ".join(filter(None, (change.old, change.new)))
            parts = (change.package, change.name, values, change.why and f"({change.why})")
            print("  " + "  ".join(filter(None, parts)))
    if not changes:
        print("Nothing changed beyond noise.")
    return comparing.exit_code(changes)


def print_verdicts(runs: list[Run], path: Path) -> None:
    """The verdict table, and where the report is."""
    console = Console()
    table = _table("package", "version")
    for heading in ("hold", "fail", "not measured", "wall", "peak"):
        table.add_column(heading, justify="right")
    table.add_column("status", overflow="fold")
    for item in runs:
        judged = outcome(item)
        style = "red" if not judged.valid or judged.fails else "yellow" if judged.not_measured else "green"
        counts = [str(n) for n in (judged.holds, judged.fails, judged.not_measured)] if judged.valid else ["–"] * 3
        record = item.record
        usage = words.seconds(record.get("wall_s")), words.memory(record.get("peak_memory_bytes"))
        table.add_row(item.name, escape(version(item)), *counts, *usage, f"[{style}]{judged.word}[/]")
    console.print(table)
    for item in runs:
        for problem in item.problems[:5]:
            console.print(f"{item.name}: {problem}", markup=False, highlight=False, soft_wrap=True)
        if len(item.problems) > 5:
            console.print(f"{item.name}: and {len(item.problems) - 5} more in the report", highlight=False)
    console.print(f"report: {path}", markup=False, highlight=False, soft_wrap=True)


def _root(root: Path | None) -> Path:
    return root.absolute() if root else find_root(Path.cwd())


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column)
    return table


def _one_line(error: Exception) -> str:
    if hasattr(error, "format_message"):  # typer's own errors, wherever its version keeps their class
        context = getattr(error, "ctx", None)
        where = context.command_path if context else "bench"
        message = " ".join(error.format_message().split()).rstrip(".")
        return f"{message[:1].lower()}{message[1:]}; see {where} --help"
    if isinstance(error, BenchError):
        return " ".join(str(error).split())
    return f"unexpected {type(error).__name__}: {' '.join(str(error).split())}; run again with --debug"


def _as_interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
