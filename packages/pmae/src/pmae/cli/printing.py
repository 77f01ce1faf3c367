"""What a command says: facts and tables on stdout, progress and messages on stderr, as loud as -q and --debug ask."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

log = logging.getLogger("pmae")

QUIET, USUAL, VERBOSE = logging.ERROR, logging.WARNING, logging.DEBUG


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


@contextmanager
def training_progress(epochs: float) -> Iterator[Callable[[float, dict[str, Any] | None], None]]:
    """A bar on a terminal, a line an epoch in a log; called with the share that is done, and the record of an epoch."""
    if quiet():
        yield lambda done, record: None
        return
    if not sys.stderr.isatty():

        def tell(done: float, record: dict[str, Any] | None) -> None:
            if record is not None:
                say(f"epoch {record['epoch']:g}/{epochs:g}", _numbers(record))

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("epoch {task.fields[epoch]}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0, epoch="1", numbers="")

        def move(done: float, record: dict[str, Any] | None) -> None:
            bar.update(task, completed=done)
            if record is not None:
                bar.update(task, epoch=f"{record['epoch']:g}/{epochs:g}", numbers=_numbers(record))

        yield move


def _numbers(record: dict[str, Any]) -> str:
    loss, fvu, share = (_cell(record[name]) for name in ("loss", "fvu", "masked_share"))
    skipped = f"  skipped {record['skipped']}" if record["skipped"] else ""
    left = round(record["seconds"] * (1 / record["progress"] - 1))
    speed = f"{record['images_per_s']:,.0f} images/s"
    eta = f"ETA {left // 60}:{left % 60:02}"
    held = f"  held out {_cell(record['heldout_fvu'])}" if "heldout_fvu" in record else ""
    return f"loss {loss}  FVU {fvu}{held}  hidden {share}  lr {record['lr']:.3g}  {speed}{skipped}  {eta}"


def to_json(facts: dict[str, Any]) -> str:
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


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Columns on stdout."""
    cells = [[_cell(v) for v in row] for row in rows]
    widths = [max(len(h), *(len(r[i]) for r in cells)) if cells else len(h) for i, h in enumerate(head)]
    for row in (list(head), *cells):
        print("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())


def r2_of(record: dict[str, Any]) -> dict[str, float | None]:
    """R² on held-out images by band of components, of a line of bands.jsonl."""
    return {name: None if fvu is None else 1 - fvu for name, fvu in record["bands"].items()}


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
