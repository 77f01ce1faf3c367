"""The console script `gidd`. Frameworks are imported inside commands, so that --help answers at once."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated, Any

import typer

from .. import __version__
from ..errors import ExperimentError, GiddError
from . import bench, checkpoints, data, generate, measure, printing, training
from .options import QuietOption, VerboseOption, share
from .printing import USUAL, say, set_volume

INTERRUPTED = 130

app = typer.Typer(add_completion=False, no_args_is_help=False, pretty_exceptions_enable=False, rich_markup_mode=None)
data_app = typer.Typer(add_completion=False, no_args_is_help=True, help="Prepare and inspect corpora.")
data_app.command("prepare")(data.prepare_corpus)
data_app.command("info")(data.corpus_info)
app.add_typer(data_app, name="data")
for function in (
    training.train, training.plan, generate.sample, generate.correct, generate.errors, measure.ppl, measure.genppl,
    measure.rubric, measure.harness, bench.bench, checkpoints.convert, checkpoints.info,
):  # fmt: skip
    app.command()(function)
app.command("eval")(measure.evaluate)


def main() -> None:
    """Run a command; every failure is one line on stderr."""
    set_volume(USUAL)
    command: Any = typer.main.get_command(app)
    share({"quiet", "verbose"}, command)
    try:
        code = command.main(sys.argv[1:], prog_name="gidd", standalone_mode=False)
        sys.stdout.flush()
        if code == INTERRUPTED:  # newer versions of typer turn Ctrl-C into this code, older ones into Abort
            say("error", "interrupted")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except (KeyboardInterrupt, typer.Abort):
        say("error", "interrupted")
        code = INTERRUPTED
    except Exception as error:
        if printing.verbose():
            traceback.print_exc()
        code, text = _verdict(error)
        say("error", text)
    sys.exit(code or 0)


def _verdict(error: Exception) -> tuple[int, str]:
    """Exit code and message of an exception."""
    usage = hasattr(error, "format_message")  # click's
    stopped = getattr(error, "exit_code", None)
    if isinstance(stopped, int) and not usage:  # a training that a signal ended, after saving
        return stopped, str(error)
    if isinstance(error, (GiddError, ValueError)):
        return 2, str(error)
    if usage:
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context is not None else ""
        return 2, f"{error.format_message()}{hint}"  # type: ignore[attr-defined]
    if isinstance(error, OSError):
        return 2, f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
    if isinstance(error, ModuleNotFoundError):
        return 2, f"this needs {error.name}: pip install {error.name}, or gidd-diffusion with the extra that has it"
    if isinstance(error, ExperimentError):
        return 1, str(error)
    return 1, f"internal: {type(error).__name__}: {error} (run again with --debug for the traceback, and report it)"


def _version(show: bool) -> None:
    if show:
        print(__version__)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def gidd(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Discrete diffusion language models that correct themselves."""
    if context.invoked_subcommand is None:
        print(context.get_help())
