"""What a run says while it runs: ``log.jsonl``, a progress bar or a line a minute, TensorBoard, Weights & Biases."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .config import TrainConfig

log = logging.getLogger(__name__)

LOG = "log.jsonl"


class Journal:
    """Writes records of numbers, of the main process only.

    Parameters
    ----------
    start : the run goes on from this step; records of later ones, of a run that was killed, are removed.
    """

    def __init__(self, folder: Path, config: TrainConfig, start: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / LOG
        if path.exists():
            _truncate(path, start)
        # Without a buffer: what a full disk refused would be tried again, and fail again, when the file is closed.
        self._file = path.open("ab", buffering=0)
        self._board: Any = _tensorboard(folder) if config.logging.tensorboard else None
        self._wandb: Any = _wandb(folder, config) if config.logging.wandb is not None else None

    def write(self, record: dict[str, Any]) -> None:
        """One line; ``record`` has the key "step". Where a disk is full it is lost, with a warning."""
        try:
            self._file.write((json.dumps(record) + "\n").encode())
        except OSError as error:
            log.warning("cannot write the record of step %d to %s: %s", record["step"], self._file.name, error)
        numbers = {name: value for name, value in record.items() if name != "step" and value is not None}
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, record["step"])
        if self._wandb is not None:
            self._wandb.log(numbers, step=record["step"])

    def close(self) -> None:
        """Flush and close everything."""
        self._file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


class Progress:
    """A bar on a terminal; elsewhere a line a minute, and none at all when quiet."""

    def __init__(self, start: int, steps: int, quiet: bool) -> None:
        self.start, self.steps, self.quiet = start, steps, quiet
        self._began = self._said = time.monotonic()
        self._bar: Any = None
        if not quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                TextColumn("{task.fields[now]}"), console=Console(stderr=True),
            )  # fmt: skip
            self._task = self._bar.add_task("training", total=steps, completed=start, now="")
            self._bar.start()

    def update(self, done: int, loss: float | None, tokens_per_s: float) -> None:
        """After ``done`` steps."""
        if self.quiet:
            return
        now = f"loss {math.nan if loss is None else loss:.4f}, {tokens_per_s:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, now=now)
            return
        clock = time.monotonic()
        if clock - self._said >= 60 or done == self.steps:
            self._said = clock
            left = (clock - self._began) / max(done - self.start, 1) * (self.steps - done)
            self.say(f"step {done}/{self.steps}, {now}, {timedelta(seconds=round(left))} left")

    def say(self, text: str) -> None:
        """A line beside the bar."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.stop()


def _truncate(path: Path, start: int) -> None:
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= start:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue  # cut off by a kill
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(path)


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError("logging.tensorboard needs: pip install 'gidd-diffusion[tensorboard]'") from error
    return SummaryWriter(str(folder / "tensorboard"))


def _wandb(folder: Path, config: TrainConfig) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ConfigError("logging.wandb needs: pip install 'gidd-diffusion[wandb]'") from error
    return wandb.init(project=config.logging.wandb, dir=str(folder), config=config.model_dump(), resume="allow")
