"""The console script `isoica`. numpy, scikit-learn and jax are imported inside commands: --help answers at once.

Exit codes: 0 done; 1 the work failed; 2 bad usage or input; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated, Any

import typer

from .. import __version__
from . import fitting, judging, making, measuring, printing
from .options import QuietOption, VerboseOption, share
from .printing import USUAL, say, set_volume, warnings_in_one_line

FAILED, USAGE, INTERRUPTED = 1, 2, 130

app = typer.Typer(add_completion=False, no_args_is_help=False, pretty_exceptions_enable=False, rich_markup_mode=None)
for function in (fitting.fit, fitting.transform, judging.report, judging.theta):
    app.command()(function)
app.add_typer(making.simulate, name="simulate")
app.command()(making.constants)
app.add_typer(measuring.bench, name="bench")
app.command("eval")(measuring.evaluate)


def main() -> None:
    """Run a command; every failure is one line on stderr."""
    set_volume(USUAL)
    command: Any = typer.main.get_command(app)
    share({"quiet", "debug"}, command)
    try:
        with warnings_in_one_line():
            code = command.main(sys.argv[1:], prog_name="isoica", standalone_mode=False)
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
    if type(error).__name__ in ("ExperimentError", "LinAlgError"):
        return FAILED, str(error)
    if isinstance(error, ValueError):
        return USAGE, str(error)
    if hasattr(error, "format_message"):  # click's
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context is not None else ""
        return USAGE, f"{error.format_message()}{hint}"
    if isinstance(error, OSError):
        return USAGE, f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
    if isinstance(error, ModuleNotFoundError):
        return USAGE, f"this needs {error.name}: pip install {error.name}, or isoica with the extra that has it"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return FAILED, "out of memory; fewer samples or fewer columns need less"
    text = f"internal: {type(error).__name__}: {error} (run again with --debug for the traceback, and report it)"
    return FAILED, text


def _version(show: bool) -> None:
    if show:
        print(__version__)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def isoica(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    quiet: QuietOption = False,
    debug: VerboseOption = False,
) -> None:
    """Approximately identifiable nonlinear ICA for almost-isometric mixings."""
    if context.invoked_subcommand is None:
        print(context.get_help())
