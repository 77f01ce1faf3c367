"""What a command says: facts and tables on stdout, progress and messages on stderr, as loud as -q and -v ask for."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

log = logging.getLogger("gidd")

QUIET, USUAL, VERBOSE = logging.ERROR, logging.WARNING, logging.DEBUG
EVERY = 60.0  # seconds between two lines of progress in a log


def set_volume(level: int) -> None:
    """Send the package's messages from this level on to stderr; progress is shown from USUAL on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
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


def hush_transformers() -> None:
    """No bars of theirs where there would be none of ours."""
    if not quiet() and sys.stderr.isatty():
        return
    try:
        import_module("transformers.utils.logging").disable_progress_bar()
    except ModuleNotFoundError:
        return


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar with rate and time left on a terminal, a line a minute in a log; called with how many more are done."""
    if quiet():
        yield lambda _: None
        return
    if not sys.stderr.isatty():
        yield _lines(what, total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total, rate="")

        def advance(done: int) -> None:
            bar.advance(task, done)
            speed = bar.tasks[0].speed
            bar.update(task, rate=f"{speed:.3g}/s" if speed else "")

        yield advance


def _lines(what: str, total: int | None) -> Callable[[int], None]:
    began = said = time.monotonic()
    count = 0

    def advance(done: int) -> None:
        nonlocal said, count
        count += done
        now = time.monotonic()
        if now - said >= EVERY:
            said, rate = now, count / (now - began)
            left = "" if total is None else f" of {total:,}, {(total - count) / rate / 60:.0f} min left"
            say(what, f"{count:,}{left}, {rate:.3g}/s")

    return advance


def show(facts: dict[str, Any], as_json: bool) -> None:
    """Facts on stdout, one a line, or as JSON in which what is not finite is null."""
    if as_json:
        print(json.dumps(_plain(facts), indent=1, ensure_ascii=False, allow_nan=False))
        return
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        print(f"{name.ljust(width)}  {_cell(value)}")


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Columns on stdout."""
    cells = [[_cell(v) for v in row] for row in rows]
    widths = [max(len(h), *(len(r[i]) for r in cells)) if cells else len(h) for i, h in enumerate(head)]
    for row in (list(head), *cells):
        print("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())


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
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else "-"
    if isinstance(value, dict):
        return ", ".join(f"{k}={v}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return "; ".join(_cell(v) for v in value)
    return str(value)
