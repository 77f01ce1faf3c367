"""The loss as the formula reads, with every (token, vocabulary) tensor in memory: for tests and as the baseline."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..process import Process


def dense_divergences(logits: Tensor, x: Tensor, z: Tensor, t: Tensor, process: Process) -> tuple[Tensor, Tensor]:
    """KL(q_t(.|x) || q_t(.|x_theta)) and IS at z, of shape (N,), by automatic differentiation through all of it.

    logits (N, Vp); x, z, t (N,). Computed in float64 for float64 logits, else in float32.
    """
    dtype = logits.dtype if logits.dtype == torch.float64 else torch.float32
    V = process.vocab_size
    scores = logits[:, :V].to(dtype)
    if process.mask_id is not None:
        scores = scores.index_fill(1, torch.tensor([process.mask_id], device=logits.device), -torch.inf)
    s = scores.softmax(dim=1)
    alpha, noise = process.alpha(t).to(dtype)[:, None], process.noise_vector(t).to(dtype)
    q = alpha * one_hot(x, V).to(dtype) + noise
    p = alpha * s + noise
    both = q > 0
    log_ratio = torch.where(both, torch.log(torch.where(both, q, 1.0)) - torch.log(torch.where(both, p, 1.0)), 0.0)
    kl = (q * log_ratio).sum(dim=1)
    at_z = log_ratio.gather(1, z[:, None])[:, 0]
    return kl, torch.exp(at_z) - at_z - 1
