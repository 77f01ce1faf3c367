"""The console script `pmae`. Frameworks are imported inside commands, so that --help answers at once.

Exit codes: 0 done; 1 a claim or an experiment failed, or an error of ours; 2 usage; 3 bad data or a missing file;
4 a checkpoint, space or model that does not belong; 5 numbers that are not finite; 6 out of memory; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from typing import Annotated, Any

import typer

from .. import __version__
from ..errors import BasisTooLargeError, CheckpointError, DataError, NumericalError, ShapeError
from . import data, measure, printing, ratios, spaces, training, using
from .options import QuietOption, VerboseOption, share
from .printing import USUAL, say, set_volume

INTERRUPTED = 130
MEMORY_ADVICE = (
    "a smaller --batch-size, --set train.accumulate=2, --precision bf16, a smaller --size, or a basis that is not "
    "dense (kron, patch_pca, haar_pca) needs less"
)

app = typer.Typer(add_completion=False, no_args_is_help=False, pretty_exceptions_enable=False, rich_markup_mode=None)
data_app = typer.Typer(add_completion=False, no_args_is_help=True, help="Data sets: list, check, make.")
data_app.command("list")(data.list_sources)
data_app.command("check")(data.check_source)
data_app.command("make")(data.make_file)
app.command("fit-basis")(spaces.fit_basis)
for function in (
    spaces.inspect, training.pretrain, using.embed, using.probe, using.reconstruct, using.export, using.compare,
    measure.bench,
):  # fmt: skip
    app.command()(function)
app.command("search-ratio")(ratios.search_ratio)
app.command("eval")(measure.evaluate)
app.add_typer(data_app, name="data")


def main() -> None:
    """Run a command; every failure is one line on stderr."""
    set_volume(USUAL)
    command: Any = typer.main.get_command(app)
    share({"quiet", "debug"}, command)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: say("WARNING", str(message))
            code = command.main(sys.argv[1:], prog_name="pmae", standalone_mode=False)
        sys.stdout.flush()
        if code == INTERRUPTED:  # by a signal that training saved upon, or as newer versions of typer report Ctrl-C
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
    if hasattr(error, "format_message"):  # click's
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context is not None else ""
        return 2, f"{error.format_message()}{hint}"
    if isinstance(error, BasisTooLargeError):
        return 6, str(error)
    if isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error):
        return 6, f"{error or 'out of memory'}: {MEMORY_ADVICE}"
    for kinds, code in ((CheckpointError, 4), (NumericalError, 5), ((DataError, ShapeError), 3), (ValueError, 2)):
        if isinstance(error, kinds):
            return code, str(error)
    if isinstance(error, OSError):
        return 3, f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
    if isinstance(error, ModuleNotFoundError):
        return 2, f"this needs {error.name}: pip install {error.name}, or pmae with the extra that has it"
    if type(error).__name__ == "ExperimentError":
        return 1, str(error)
    return 1, f"internal: {type(error).__name__}: {error} (run again with --debug for the traceback, and report it)"


def _version(show: bool) -> None:
    if show:
        print(__version__)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def pmae(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    quiet: QuietOption = False,
    debug: VerboseOption = False,
) -> None:
    """Masked autoencoders that hide principal components instead of patches."""
    if context.invoked_subcommand is None:
        print(context.get_help())
