"""Several processes: joining them, summing over them, and copying or sharding a model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import ConfigError


@dataclass(frozen=True)
class World:
    """The processes of a run: one, or those that torchrun started."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """This process writes files and talks."""
        return self.rank == 0

    def sum(self, *values: float | Tensor) -> list[float]:
        """Sums over all processes, in float64 and the same on each."""
        if self.size == 1:
            return [float(value) for value in values]
        total = torch.tensor([float(value) for value in values], dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(value) for value in total]

    def max(self, value: int) -> int:
        """The largest over all processes."""
        if self.size == 1:
            return value
        largest = torch.tensor(value, device=self.device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest)


@contextmanager
def joined(device: str) -> Iterator[World]:
    """The processes that torchrun started, or this one alone; gloo on CPUs, nccl on GPUs."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    place = _device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if size == 1:
        yield World(place)
        return
    ours = not dist.is_initialized()
    if ours:
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield World(place, dist.get_rank(), dist.get_world_size())
    finally:
        if ours:
            dist.destroy_process_group()


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device: has to be auto, cpu, cuda or cuda:N; got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device: {name} asked for, but torch sees no GPU; use device=cpu")
    return torch.device("cuda", local_rank) if name == "cuda" else device


def distribute(objective: nn.Module, blocks: list[nn.Module], mode: str, world: World) -> nn.Module:
    """The module to call instead of ``objective``: a DDP copy around it, or itself, sharded (FSDP2).

    Parameters
    ----------
    blocks : submodules that are gathered one at a time; the rest of the model together.
    """
    if world.size == 1:
        return objective
    if mode == "fsdp2":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(world.device.type, (world.size,))
        for block in blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(objective, mesh=mesh)
        return objective
    from torch.nn.parallel import DistributedDataParallel

    devices = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(objective, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True)


def synced(module: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """Around a forward and backward pass: gradients are exchanged after the last part of a batch only."""
    wrapped: Any = module
    if hasattr(module, "set_requires_gradient_sync"):
        wrapped.set_requires_gradient_sync(last)
    elif hasattr(module, "no_sync") and not last:
        return wrapped.no_sync()
    return nullcontext()


def reshard(module: nn.Module) -> None:
    """After passes without a backward: give up gathered parameters, which would go stale."""
    sharded: Any = module
    if hasattr(module, "reshard"):
        sharded.reshard()
