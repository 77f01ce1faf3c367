"""What a command says: facts and tables on stdout, progress and messages on stderr, as loud as -q and --debug ask."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

log = logging.getLogger("isoica")

QUIET, USUAL, VERBOSE = logging.ERROR, logging.WARNING, logging.DEBUG
EVERY = 60.0  # seconds between two lines of progress in a log


def set_volume(level: int) -> None:
    """Send the package's messages from this level on to stderr; progress is shown from USUAL on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("isoica: %(message)s"))
    log.handlers[:], log.propagate = [handler], False
    log.setLevel(level)


def quiet() -> bool:
    """Whether only results and errors are wanted."""
    return log.getEffectiveLevel() >= QUIET


def verbose() -> bool:
    """Whether tracebacks are wanted."""
    return log.getEffectiveLevel() <= VERBOSE


def say(what: str, text: str) -> None:
    """One line on stderr."""
    print(f"{what}: {' '.join(text.split())}", file=sys.stderr, flush=True)


@contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Warnings about the run, once each; those for programmers stay quiet."""
    said: set[str] = set()

    def tell(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        text = str(message)
        if text not in said and not quiet():
            said.add(text)
            say("warning", text)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=UserWarning)
        warnings.showwarning = tell
        yield


@contextmanager
def working(what: str) -> Iterator[None]:
    """For work whose end is not known: the time so far, live on a terminal, a line a minute in a log."""
    if quiet():
        yield
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn(what), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            bar.add_task("", total=None)
            yield
    else:
        done, began = threading.Event(), time.monotonic()

        def tell() -> None:
            while not done.wait(EVERY):
                say(what, _clock(time.monotonic() - began))

        thread = threading.Thread(target=tell, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


@contextmanager
def progress(what: str) -> Iterator[Callable[[str, int, int], None] | None]:
    """The same for work in parts, called with (part that is done, how many are, of how many)."""
    if quiet():
        yield None
        return
    began = time.monotonic()
    if not sys.stderr.isatty():

        def tell(part: str, done: int, total: int) -> None:
            if done:
                left = (time.monotonic() - began) / done * (total - done)
                say(what, f"{part} ({done} of {total})  ETA {_clock(left)}")

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda part, done, total: bar.update(task, description=f"{what}: {part}", completed=done, total=total)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def to_json(facts: Any) -> str:
    """JSON in which what is not finite is null."""
    return json.dumps(_plain(facts), indent=1, ensure_ascii=False, allow_nan=False)


def show(facts: dict[str, Any], as_json: bool) -> None:
    """Facts on stdout, one a line, or as JSON."""
    if as_json:
        print(to_json(facts))
        return
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        print(f"{name.ljust(width)}  {_cell(value)}")


def table(rows: Sequence[dict[str, Any]]) -> None:
    """Rows with the same names as columns on stdout."""
    head = list(dict.fromkeys(name for row in rows for name in row))
    cells = [head, *([_cell(row.get(name)) for name in head] for row in rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(head))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, bool, int)):
        return value
    return str(value)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "-"
    if isinstance(value, dict):
        return ", ".join(f"{k}={_cell(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return "; ".join(_cell(v) for v in value)
    return str(value)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name that becomes the path when all went well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
