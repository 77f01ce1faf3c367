"""Checkpoints of a run: folders ``ckpt-<step>`` that are there completely or not at all.

===================== ================================================================================================
model.safetensors     weights and running statistics of the network
optimizer.safetensors moments and step counts, by the names of the parameters
state.json            step, seconds, schedule, samplers of all processes, fingerprints, history: all else to go on from
===================== ================================================================================================

A folder is written under a temporary name, flushed to the disk and renamed. ``latest`` names the newest one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import CheckpointError
from ..files import write_tensors

FORMAT = 1
LATEST, STATE, MODEL, OPTIMIZER = "latest", "state.json", "model.safetensors", "optimizer.safetensors"
KEEP = 3  # the newest ones; and the best one


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds: tensors by name, and plain values."""

    path: Path
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


def save(root: Path, model: dict[str, Tensor], optimizer: dict[str, Tensor], state: dict[str, Any]) -> Path:
    """Write ``root/ckpt-<state["step"]>``, point ``latest`` to it, and delete all but the last 3 and the best.

    The best has the lowest ``state["loss"]``. Raises CheckpointError if it cannot be written, e.g. to a full disk; then
    older ones are as they were.
    """
    folder = root / f"ckpt-{state['step']}"
    temporary = folder.with_name(f"{folder.name}.tmp")
    try:
        root.mkdir(parents=True, exist_ok=True)
        for stale in root.glob("ckpt-*.tmp"):
            shutil.rmtree(stale)
        temporary.mkdir()
        write_tensors(temporary / MODEL, model)
        write_tensors(temporary / OPTIMIZER, optimizer)
        (temporary / STATE).write_text(json.dumps({"format": FORMAT, **state}), encoding="utf-8")
        for path in (*temporary.iterdir(), temporary):
            _flush(path)
        if folder.exists():  # written before by a run that went back
            old = folder.with_name(f"{folder.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        temporary.rename(folder)
        write_atomically(root / LATEST, f"{folder.name}\n")
        for replaced in root.glob("ckpt-*.old"):
            shutil.rmtree(replaced, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(f"cannot write {folder}: {error}; earlier checkpoints are untouched") from error
    _forget(root)
    return folder


def load(path: Path) -> Checkpoint:
    """Read a checkpoint folder. Raises CheckpointError if it is missing, damaged or of a later format."""
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        if state["format"] != FORMAT:
            raise CheckpointError(f"{path} has format {state['format']}, this version reads {FORMAT}")
        return Checkpoint(path, load_file(path / MODEL), load_file(path / OPTIMIZER), state)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{path} is no checkpoint, or damaged: {error}") from error


def latest(root: Path) -> Path | None:
    """The folder that ``latest`` names, else the one of the highest step, else None."""
    named = root / LATEST
    if named.is_file():
        folder = root / named.read_text(encoding="utf-8").strip()
        if (folder / STATE).is_file():
            return folder
    steps = _folders(root)
    return steps[-1] if steps else None


def find(path: Path) -> Path:
    """The checkpoint meant by a path: a checkpoint folder, or the latest one of a run. Raises CheckpointError."""
    found = path if (path / STATE).is_file() else latest(path / "checkpoints") or latest(path)
    if found is None:
        raise CheckpointError(f"{path} holds no checkpoint: give the folder of a run, or one of its checkpoints/ckpt-N")
    return found


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file: a kill leaves the old one or the new one."""
    temporary = path.with_name(f"{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _flush(path.parent)


def model_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and running statistics, on the CPU. Every process that has a shard calls this."""
    return {name: _whole(value) for name, value in network.state_dict().items()}


def optimizer_tensors(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as ``parameter|key``. Every process that has a shard calls this."""
    return {
        f"{name}|{key}": _whole(value)
        for name, parameter in network.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_model(network: nn.Module, tensors: dict[str, Tensor], where: Path) -> None:
    """Put weights into a network, sharded or not. Raises CheckpointError where names or shapes differ."""
    own = network.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        there, here = (tuple(t[name].shape) if name in t else "nothing" for t in (tensors, own))
        if there != here:
            raise CheckpointError(f"{where} holds another model: {name} is {there} there, {here} here")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(_like(tensors[name], value))


def load_optimizer(network: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of :func:`optimizer_tensors`, for a network that may be sharded."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    of: dict[str, dict[str, Tensor]] = {}
    for full, value in tensors.items():
        name, key = full.rsplit("|", 1)
        of.setdefault(name, {})[key] = value
    known = optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        number: {key: _like(value, parameter) for key, value in of[names[parameter]].items()}
        for number, parameter in enumerate(parameters)
        if names[parameter] in of
    }
    optimizer.load_state_dict({"state": state, "param_groups": known["param_groups"]})


def _whole(value: Tensor) -> Tensor:
    """A copy on the CPU, of all shards."""
    value = value.detach()
    full = value.full_tensor() if hasattr(value, "full_tensor") else value
    return full.to("cpu", copy=True).contiguous()


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, sharded as the parameter is."""
    if value.ndim == 0 or not hasattr(parameter, "device_mesh"):
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh: Any = parameter.device_mesh
    return distribute_tensor(value.to(mesh.device_type), mesh, parameter.placements)  # type: ignore[attr-defined]


def _forget(root: Path) -> None:
    """Delete what is neither among the newest nor the best."""
    folders = _folders(root)
    best = min(folders, key=_loss)
    for folder in folders[:-KEEP]:
        if folder != best:
            shutil.rmtree(folder, ignore_errors=True)


def _loss(folder: Path) -> float:
    try:
        loss = json.loads((folder / STATE).read_text(encoding="utf-8"))["loss"]
    except (OSError, ValueError, KeyError, TypeError):
        loss = None
    return float("inf") if loss is None else float(loss)


def _folders(root: Path) -> list[Path]:
    """Complete checkpoints by step; one that a killed process was about to replace comes before its successor."""
    named = [(re.fullmatch(r"ckpt-(\d+)(\.old)?", path.name), path) for path in root.glob("ckpt-*")]
    found = [(int(name[1]), name[2] is None, path) for name, path in named if name and (path / STATE).is_file()]
    return [path for _, _, path in sorted(found)]


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
