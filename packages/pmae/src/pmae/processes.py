"""What fitting under `torchrun` needs of torch.distributed: whose share of the data this is, and sums over all."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def rank_and_size() -> tuple[int, int]:
    """Number of this process and how many there are; (0, 1) outside `torchrun`."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def summed(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if rank_and_size()[1] > 1:
        dist.all_reduce(tensor)
    return tensor
