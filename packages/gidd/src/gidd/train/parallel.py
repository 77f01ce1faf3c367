"""Several processes: joining them, summing over them, and copying or sharding a model."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import ConfigError

SETTLE = 10.0  # seconds; usually it takes none


@dataclass(frozen=True)
class World:
    """The processes of a run: one, or those that torchrun started."""

    device: torch.device
    rank: int = 0
    size: int = 1
    _lent: list[weakref.ref[Tensor]] = field(default_factory=list, repr=False, compare=False)

    @property
    def main(self) -> bool:
        """This process writes files and talks."""
        return self.rank == 0

    def sum(self, *values: float | Tensor) -> list[float]:
        """Sums over all processes, in float64 and the same on each."""
        if self.size == 1:
            return [float(value) for value in values]
        total = torch.tensor([float(value) for value in values], dtype=torch.float64, device=self.device)
        return [float(value) for value in self._reduce(total, dist.ReduceOp.SUM)]

    def max(self, value: int) -> int:
        """The largest over all processes."""
        if self.size == 1:
            return value
        return int(self._reduce(torch.tensor(value, device=self.device), dist.ReduceOp.MAX))

    def _reduce(self, value: Tensor, op: Any) -> Tensor:
        dist.all_reduce(value, op=op)
        self._lent[:] = [ref for ref in self._lent if ref() is not None]
        self._lent.append(weakref.ref(value))
        return value

    def group(self) -> Any:
        """A new gloo group of all processes, for collectives in another thread; None for a single process."""
        return dist.new_group(backend="gloo") if self.size > 1 else None

    def settle(self) -> None:
        """Wait until gloo's threads have let go of every tensor that was reduced; the last thing before leaving.

        They do so some time after a reduction is done, and take Python's lock for it. A process that ends meanwhile
        aborts ("terminate called without an active exception"). Destroying the process group would wait for these
        threads, but once a model was sharded, a cache in torch keeps its device mesh, and that the group, for ever.
        """
        deadline = time.monotonic() + SETTLE
        while any(ref() is not None for ref in self._lent) and time.monotonic() < deadline:
            time.sleep(0.001)


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
    world = World(place, dist.get_rank(), dist.get_world_size())
    try:
        yield world
    finally:
        if place.type == "cpu":
            world.settle()
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
    return DistributedDataParallel(objective, device_ids=devices, gradient_as_bucket_view=True)


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
