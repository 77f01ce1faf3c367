"""Checkpoints of a run: ``step-N`` folders that are there completely or not at all, and ``latest``, a link to the last.

A folder is a native checkpoint (:mod:`gidd.hub`), with the averaged weights where there is an average, and also holds

==================  =================================================================================================
state/              weights, average and optimizer for resuming, by ``torch.distributed.checkpoint``: they may be loaded
                    by any number of processes. Its index is a pickle: resume only what you trust.
trainer_state.json  step and samples gone by, from which order of the data, times, noise and dropout all follow
==================  =================================================================================================
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data import TextTokenizer
from ..errors import CheckpointError
from ..hub import write_checkpoint
from ..models import Backbone
from ..process import Process
from .optim import AveragedWeights
from .parallel import World

log = logging.getLogger(__name__)

LATEST, STATE, TRAINER = "latest", "state", "trainer_state.json"
_ALONE = "torch.distributed is disabled"
PAUSES = (5.0, 30.0)  # seconds before another attempt when a checkpoint cannot be written


def latest_step(root: str | Path) -> Path | None:
    """The checkpoint to go on from: where ``latest`` points, else the newest complete folder, else None."""
    root = Path(root)
    link = root / LATEST
    if link.is_symlink() and (link / TRAINER).is_file():
        return root / os.readlink(link)
    complete = [path for path in _steps(root) if (path / TRAINER).is_file()]
    return complete[-1] if complete else None


def read_trainer_state(folder: Path) -> dict[str, Any]:
    """``trainer_state.json``; CheckpointError if it is not there or damaged."""
    try:
        state = json.loads((folder / TRAINER).read_text(encoding="utf-8"))
        return {**state, "step": int(state["step"]), "samples": int(state["samples"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} is no checkpoint to resume from: {TRAINER} is missing or damaged") from error


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds.

    Attributes
    ----------
    objective : module that holds ``model`` under this name, not wrapped by DDP.
    kind : "diffusion" or "autoregressive", what the model was trained for.
    trainer_state : numbers of the run, as plain values.
    """

    objective: nn.Module
    model: Backbone
    process: Process
    kind: str
    tokenizer: TextTokenizer | None
    optimizer: torch.optim.Optimizer
    average: AveragedWeights | None
    trainer_state: dict[str, Any]


def save(root: Path, step: int, contents: Contents, keep: int, world: World) -> Path:
    """Write ``root/step-N``, make it the latest, and delete all but the last ``keep``. Every process has to call this.

    Raises
    ------
    CheckpointError
        It could not be written in ``1 + len(PAUSES)`` attempts, e.g. to a full disk; older ones are as they were.
    """
    for pause in (*PAUSES, None):
        problem = _try_to_save(root, step, contents, keep, world)
        if problem is None:
            return root / f"step-{step}"
        if pause is None:
            break
        if world.main:
            log.warning("cannot write the checkpoint of step %d (%s): next attempt in %g s", step, problem, pause)
        time.sleep(pause)
    raise CheckpointError(f"cannot write the checkpoint of step {step} to {root}: {problem}; older ones are untouched")


@dataclass(frozen=True)
class Background:
    """A checkpoint on its way to the disk, from a copy in memory; nobody sees it before :func:`finish`."""

    root: Path
    step: int
    trainer_state: dict[str, Any]
    parts: list[Future[Any]]

    def done(self, world: World) -> bool:
        """Whether :func:`finish` need not wait. Every process has to call this."""
        return not world.max(not all(part.done() for part in self.parts))


def begin(root: Path, step: int, contents: Contents, world: World, group: Any) -> Background | None:
    """Copy everything and begin to write ``root/step-N``; None if not even that works. Every process has to call this.

    Parameters
    ----------
    group : gloo group for this alone, since other collectives go on meanwhile; None for a single process.
    """
    from torch.distributed.checkpoint import state_dict_saver

    temporary = _temporary(root, step)
    weights = _weights(contents.objective, contents.average)
    problem = _make_folder(root, temporary, world)
    if world.max(problem is not None):
        _give_up(temporary, problem, world)
        return None
    parts: list[Future[Any]] = []
    if world.main:
        writer = ThreadPoolExecutor(max_workers=1)
        parts.append(writer.submit(_write_native, temporary, contents, weights))
        writer.shutdown(wait=False)
    if world.size == 1:
        # For good, since the warning comes from another thread, some time later.
        warnings.filterwarnings("ignore", message=_ALONE)
    state: Any = state_dict_saver.async_save(
        _state(contents.objective, contents.optimizer, contents.average),
        checkpoint_id=str(temporary / STATE),
        process_group=group,
    )
    return Background(root, step, contents.trainer_state, [*parts, state])


def finish(background: Background, keep: int, world: World) -> bool:
    """Wait until it is written and make it the latest; False if that failed. Every process has to call this."""
    temporary = _temporary(background.root, background.step)
    problems = [_reason(error) for part in background.parts if (error := part.exception()) is not None]
    problem = problems[0] if problems else None
    if world.max(problem is not None):
        problem = _give_up(temporary, problem, world)
    else:
        problem = _complete(background.root, background.step, background.trainer_state, keep, world)
    if problem is not None and world.main:
        log.warning("cannot write the checkpoint of step %d in the background (%s)", background.step, problem)
    return problem is None


def load(
    folder: Path,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: AveragedWeights | None,
    world: World,
) -> None:
    """Load weights, optimizer and average in place, re-sharded where needed. Every process has to call this.

    Raises
    ------
    CheckpointError
        The state is missing, damaged, or of other shapes.
    """
    from torch.distributed.checkpoint import state_dict_loader
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict import set_state_dict

    state = _state(objective, optimizer, average)
    try:
        with _alone_is_fine():
            state_dict_loader.load(state, checkpoint_id=str(folder / STATE), no_dist=world.size == 1)
    except (Exception, CheckpointException) as error:  # the latter is a BaseException
        raise CheckpointError(f"cannot resume from {folder}: {_reason(error)}") from error
    set_state_dict(objective, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


# --- writing ----------------------------------------------------------------------------------------------------------


def _try_to_save(root: Path, step: int, contents: Contents, keep: int, world: World) -> str | None:
    """None, or why it failed. Processes agree after each part, so that none waits for one that gave up."""
    from torch.distributed.checkpoint import state_dict_saver
    from torch.distributed.checkpoint.api import CheckpointException

    temporary = _temporary(root, step)
    weights = _weights(contents.objective, contents.average)
    problem = _make_folder(root, temporary, world)
    if world.main and problem is None:
        try:
            _write_native(temporary, contents, weights)
        except OSError as error:
            problem = _reason(error)
    del weights
    if world.max(problem is not None):
        return _give_up(temporary, problem, world)
    try:
        with _alone_is_fine():
            state_dict_saver.save(
                _state(contents.objective, contents.optimizer, contents.average),
                checkpoint_id=str(temporary / STATE),
                no_dist=world.size == 1,
            )
    except (Exception, CheckpointException) as error:
        problem = _reason(error)
    if world.max(problem is not None):
        return _give_up(temporary, problem, world)
    return _complete(root, step, contents.trainer_state, keep, world)


def _temporary(root: Path, step: int) -> Path:
    return root / f"step-{step}.tmp"


def _make_folder(root: Path, temporary: Path, world: World) -> str | None:
    """The main process makes the folder to write into, after it removed what a killed run left."""
    if not world.main:
        return None
    try:
        root.mkdir(parents=True, exist_ok=True)
        for stale in (*root.glob("step-*.tmp"), *root.glob("step-*.old")):
            shutil.rmtree(stale)
        temporary.mkdir()
    except OSError as error:
        return _reason(error)
    return None


def _write_native(folder: Path, contents: Contents, weights: dict[str, Tensor]) -> None:
    with torch.device("meta"):
        blank = type(contents.model)(contents.model.config)
    write_checkpoint(folder, blank, contents.process, contents.tokenizer, weights, contents.kind)


def _complete(root: Path, step: int, trainer_state: dict[str, Any], keep: int, world: World) -> str | None:
    """Publish a folder that has all but the trainer's state, and delete old ones; None, or why that failed."""
    folder, temporary = root / f"step-{step}", _temporary(root, step)
    problem = None
    if world.main:
        try:
            (temporary / TRAINER).write_text(json.dumps(trainer_state, indent=2) + "\n", encoding="utf-8")
            _publish(root, folder, temporary)
        except OSError as error:
            problem = _reason(error)
    if world.max(problem is not None):
        return _give_up(temporary, problem, world)
    if world.main:
        for old in _steps(root)[:-keep]:
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)
    return None


def _publish(root: Path, folder: Path, temporary: Path) -> None:
    """Give a finished folder its name and make it the latest; a kill in between leaves the one before."""
    for path in (*temporary.rglob("*"), temporary):
        _sync(path)
    if folder.exists():  # written before by a run that was resumed from an earlier step
        folder.rename(root / f"{folder.name}.old")
    temporary.rename(folder)
    _sync(root)
    link = root / f"{LATEST}.tmp"
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)
    link.replace(root / LATEST)
    _sync(root)
    shutil.rmtree(root / f"{folder.name}.old", ignore_errors=True)


def _give_up(temporary: Path, problem: str | None, world: World) -> str:
    if world.main:
        shutil.rmtree(temporary, ignore_errors=True)
    return problem or "another process failed"


def _state(objective: nn.Module, optimizer: torch.optim.Optimizer, average: AveragedWeights | None) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_state_dict

    weights, moments = get_state_dict(objective, optimizer)
    state: dict[str, Any] = {"model": weights, "optimizer": moments}
    if average is not None:
        state["average"] = {str(i): value for i, value in enumerate(average.average)}
    return state


def _weights(objective: nn.Module, average: AveragedWeights | None) -> dict[str, Tensor]:
    """The model's weights, averaged where they are, gathered in the main process (elsewhere perhaps nothing)."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    with nullcontext() if average is None else average.applied():
        state: dict[str, Any] = get_model_state_dict(
            objective, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
        )
        return {name.removeprefix("model."): value.clone() for name, value in state.items()}


@contextmanager
def _alone_is_fine() -> Iterator[None]:
    """Without the warning of torch that there is one process only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_ALONE)
        yield


def _steps(root: Path) -> list[Path]:
    found = [(int(match[1]), path) for path in root.glob("step-*") if (match := re.fullmatch(r"step-(\d+)", path.name))]
    return [path for _, path in sorted(found)]


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: BaseException) -> str:
    """One line; torch wraps what went wrong in each process."""
    failures = getattr(error, "failures", None)
    if failures:
        error = next(iter(failures.values()))[0]
    return " ".join(str(error).split()) or type(error).__name__
