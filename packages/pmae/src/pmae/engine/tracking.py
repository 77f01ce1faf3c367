"""The records of a run for a viewer, beside metrics.jsonl."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import folder

if TYPE_CHECKING:
    from .run import Run
    from .train import Progress

TRACKERS = ("tensorboard",)


def check(track: str | None, out: Path | None) -> None:
    """Before anything is written. Raises ValueError, ModuleNotFoundError."""
    if track is None:
        return
    if track not in TRACKERS:
        raise ValueError(f"track={track!r}: one of {', '.join(TRACKERS)}")
    if out is None:
        raise ValueError(f"track={track!r} needs out, the folder of the run")
    importlib.import_module(track)


@contextmanager
def tracked(track: str | None, run: Run, tell: Progress | None) -> Iterator[Progress | None]:
    """``tell``, which then also writes each epoch's record to the run's folder; ends with the file complete."""
    if track is None or run.out is None or not run.world.main:
        yield tell
        return
    from torch.utils.tensorboard import SummaryWriter

    # What a run that was killed wrote beyond its checkpoint is not shown.
    writer: Any = SummaryWriter(str(run.out / folder.EVENTS), purge_step=run.state.step + 1)

    def note(done: float, record: dict[str, Any] | None) -> None:
        if record is not None:
            for name, value in _scalars(record, run.state.bands):
                writer.add_scalar(name, value, record["step"])
            writer.flush()
        if tell is not None:
            tell(done, record)

    try:
        yield note
    finally:
        writer.close()


def _scalars(record: dict[str, Any], bands: list[dict[str, Any]]) -> Iterator[tuple[str, float]]:
    """Names and values; of the bands of components R², if they were looked at after this step."""
    for name, value in record.items():
        if name != "step" and value is not None:
            yield name, value
    if bands and bands[-1]["step"] == record["step"]:
        for name, value in bands[-1]["bands"].items():
            if value is not None:
                yield f"heldout R2/{name}", 1 - value
