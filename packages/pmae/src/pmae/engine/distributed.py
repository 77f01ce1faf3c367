"""Several processes, as `torchrun` starts them: joining, agreeing, and copying (DDP) or sharding (FSDP2) a network."""

from __future__ import annotations

import atexit
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

PARALLEL = ("auto", "ddp", "fsdp2")
LARGE = 250_000_000  # parameters of a network that "auto" shards: ViT-L has 304 million, ViT-B 86


@dataclass(frozen=True)
class World:
    """The processes of a run: one, or those that torchrun started.

    Attributes
    ----------
    control : gloo group for the few numbers that steer a run, so that agreeing never waits for a GPU
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    control: Any = None

    @property
    def main(self) -> bool:
        """This process writes files and talks."""
        return self.rank == 0

    def most(self, *values: float) -> list[float]:
        """The largest of each number over all processes."""
        if self.size == 1:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(numbers, dist.ReduceOp.MAX, group=self.control)
        return numbers.tolist()

    def mean(self, values: list[float]) -> list[float]:
        """The mean of each number over all processes."""
        if self.size == 1:
            return values
        numbers = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(numbers, group=self.control)
        return (numbers / self.size).tolist()

    def gather(self, value: Any) -> list[Any]:
        """One plain value of every process, in the order of their ranks, on all of them."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def from_main(self, value: Any) -> Any:
        """The main process's value."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.control)
        return values[0]


def joined(device: str | torch.device = "auto") -> World:
    """The processes that torchrun started, or this one alone. NCCL between GPUs, gloo otherwise."""
    place = pick_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and not dist.is_initialized():
        return World(place)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
        # Not sooner: another group would read the addresses of this one out of torchrun's store, and hang.
        atexit.register(_leave)
    return World(place, dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo"))


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """The device of that name; "auto" is the process's own GPU if there is one. Raises ValueError."""
    name = str(device)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(name)
    except RuntimeError:
        place = torch.device("meta")
    if place.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device={name!r}: auto, cpu, cuda, cuda:N or mps")
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={name!r}: torch sees no GPU here, use cpu")
    if place.type == "cuda" and place.index is None:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return place


def is_sharded(model: nn.Module, parallel: str, world: World) -> bool:
    """Whether the network is to be sharded rather than copied."""
    if parallel not in PARALLEL:
        raise ValueError(f"parallel={parallel!r}: one of {', '.join(PARALLEL)}")
    if world.size == 1 or parallel == "ddp":
        return False
    return parallel == "fsdp2" or sum(p.numel() for p in model.parameters()) >= LARGE


def distribute(model: nn.Module, world: World, sharded: bool) -> nn.Module:
    """What to call instead of ``model``: a copy that shares its gradients, or itself with its parameters sharded."""
    if world.size == 1:
        return model
    if sharded:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(world.device.type, (world.size,))
        for blocks in [m for m in model.modules() if isinstance(m, nn.ModuleList | nn.Sequential)]:
            for block in blocks:
                if any(p.numel() for p in block.parameters()) and not hasattr(block, "unshard"):
                    fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model
    from torch.nn.parallel import DistributedDataParallel

    # The bases are buffers and never change: they are not to be sent around in every step.
    known = signature(DistributedDataParallel).parameters
    still: Any = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
    devices = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True, **still)


def synced(network: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """Around a part of a batch: gradients are exchanged after the last part only."""
    if hasattr(network, "set_requires_gradient_sync"):
        network.set_requires_gradient_sync(last)  # type: ignore[operator]
    elif hasattr(network, "no_sync") and not last:
        return network.no_sync()  # type: ignore[operator]
    return nullcontext()
