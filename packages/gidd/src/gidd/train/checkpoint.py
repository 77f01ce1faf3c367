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
from contextlib import contextmanager, nullcontext
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


def save(
    root: Path,
    step: int,
    *,
    objective: nn.Module,
    model: Backbone,
    process: Process,
    kind: str,
    tokenizer: TextTokenizer | None,
    optimizer: torch.optim.Optimizer,
    average: AveragedWeights | None,
    trainer_state: dict[str, Any],
    keep: int,
    world: World,
) -> Path:
    """Write ``root/step-N``, make it the latest, and delete all but the last ``keep``. Every process has to call this.

    Parameters
    ----------
    objective : module that holds ``model`` under this name, not wrapped by DDP.
    kind : "diffusion" or "autoregressive", what the model was trained for.

    Raises
    ------
    CheckpointError
        It could not be written in ``1 + len(PAUSES)`` attempts, e.g. to a full disk; older ones are as they were.
    """
    for pause in (*PAUSES, None):
        problem = _try_to_save(
            root, step, objective, model, process, kind, tokenizer, optimizer, average, trainer_state, keep, world
        )
        if problem is None:
            return root / f"step-{step}"
        if pause is None:
            break
        if world.main:
            log.warning("cannot write the checkpoint of step %d (%s): next attempt in %g s", step, problem, pause)
        time.sleep(pause)
    raise CheckpointError(f"cannot write the checkpoint of step {step} to {root}: {problem}; older ones are untouched")


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


def _try_to_save(
    root: Path,
    step: int,
    objective: nn.Module,
    model: Backbone,
    process: Process,
    kind: str,
    tokenizer: TextTokenizer | None,
    optimizer: torch.optim.Optimizer,
    average: AveragedWeights | None,
    trainer_state: dict[str, Any],
    keep: int,
    world: World,
) -> str | None:
    """None, or why it failed. Processes agree after each part, so that none waits for one that gave up."""
    from torch.distributed.checkpoint import state_dict_saver
    from torch.distributed.checkpoint.api import CheckpointException

    folder, temporary = root / f"step-{step}", root / f"step-{step}.tmp"
    weights = _weights(objective, average)
    problem = None
    if world.main:
        try:
            root.mkdir(parents=True, exist_ok=True)
            for stale in (*root.glob("step-*.tmp"), *root.glob("step-*.old")):
                shutil.rmtree(stale)
            temporary.mkdir()
            with torch.device("meta"):
                blank = type(model)(model.config)
            write_checkpoint(temporary, blank, process, tokenizer, weights, kind)
        except OSError as error:
            problem = _reason(error)
    del weights
    if world.max(problem is not None):
        return _give_up(temporary, problem, world)
    try:
        with _alone_is_fine():
            state_dict_saver.save(
                _state(objective, optimizer, average), checkpoint_id=str(temporary / STATE), no_dist=world.size == 1
            )
    except (Exception, CheckpointException) as error:
        problem = _reason(error)
    if world.max(problem is not None):
        return _give_up(temporary, problem, world)
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
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
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
