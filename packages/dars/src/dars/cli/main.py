"""The console script ``dars``. Providers and frameworks are imported inside commands, so that --help answers at once.

Exit codes: 0 a patch was produced (or the command did its work), 1 finished without a candidate (or the work failed),
2 bad usage or input, 3 environment or sandbox, 4 model or API, 5 the budget ended before any candidate, 130
interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer

from .. import __version__
from ..errors import BudgetExceeded, DarsError, DiskFull, EnvError, ModelError, is_full
from . import benches, planning, reading, reviewing, running, swebench

FAILED, USAGE, ENVIRONMENT, MODEL, BUDGET, INTERRUPTED = 1, 2, 3, 4, 5, 130

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
COMMANDS: tuple[Callable[..., object], ...] = (
    running.run, running.resume, running.fork, running.replay, reading.show, reading.tree, reading.export,
    reading.cost, reviewing.review, planning.plan, planning.theory, planning.doctor,
)  # fmt: skip
for function in COMMANDS:
    app.command()(function)
app.command("import")(reading.import_run)
app.add_typer(swebench.app, name="swebench")
app.add_typer(benches.app, name="bench")
app.add_typer(reviewing.app, name="reviewer")
app.command("eval")(benches.evaluate)


def main() -> None:
    """Run a command; every failure is one line on stderr."""
    debug = "--debug" in sys.argv  # accepted anywhere on the line
    arguments = [word for word in sys.argv[1:] if word != "--debug"]
    command: Any = typer.main.get_command(app)
    try:
        code = command.main(arguments, prog_name="dars", standalone_mode=False)
        sys.stdout.flush()
        if code == INTERRUPTED:  # newer versions of typer turn Ctrl-C into this code, older ones into Abort
            _say("interrupted")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except (KeyboardInterrupt, typer.Abort):
        _say("interrupted")
        code = INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        code, text = _verdict(error)
        _say(text)
    sys.exit(code or 0)


def _say(text: str) -> None:
    print(f"error: {' '.join(text.split())}", file=sys.stderr)


def _verdict(error: Exception) -> tuple[int, str]:
    """Exit code and message of an exception."""
    if isinstance(error, (EnvError, DiskFull)):
        return ENVIRONMENT, str(error)
    if isinstance(error, ModelError):
        return MODEL, str(error)
    if isinstance(error, BudgetExceeded):
        return BUDGET, str(error)
    if isinstance(error, (DarsError, ValueError)):
        return USAGE, str(error)
    if hasattr(error, "format_message"):  # click's
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context is not None else ""
        return USAGE, f"{error.format_message()}{hint}"
    if isinstance(error, OSError):
        where = error.filename or ("a file could not be written" if is_full(error) else "")
        text = f"{where}: {error.strerror}" if where and error.strerror else str(error)
        return ENVIRONMENT if is_full(error) else USAGE, text
    return (
        FAILED,
        f"internal: {type(error).__name__}: {error} (run again with --debug for the traceback, and report it)",
    )


def _version(show: bool) -> None:
    if show:
        print(__version__)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def dars(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """A coding agent that goes back to its key decisions."""
    if context.invoked_subcommand is None:
        print(context.get_help())
