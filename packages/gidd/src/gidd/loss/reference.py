"""The loss as the formula reads, with every (token, vocabulary) tensor in memory: for tests and as the baseline."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..process import Process


def dense_divergences(
    logits: Tensor, x: Tensor, z: Tensor, t: Tensor, process: Process, counts: Tensor
) -> tuple[Tensor, Tensor]:
    """KL(q_t(.|x) || q_t(.|x_theta)) and IS at z, of shape (N,), by automatic differentiation through all of it.

    logits (N, Vp); x, z, t (N,); counts (N,) bool, False where no weight will be given to the token: its divergences,
    which may be infinite, then have no gradient. Computed in float64 for float64 logits, else in float32.
    """
    dtype = logits.dtype if logits.dtype == torch.float64 else torch.float32
    V = process.vocab_size
    scores = logits[:, :V].to(dtype)
    if process.mask_id is not None:
        scores = scores.index_fill(1, torch.tensor([process.mask_id], device=logits.device), -torch.inf)
    if not bool(counts.all()):
        scores = torch.where(counts[:, None], scores, scores.detach())
    alpha, noise = process.alpha(t).to(dtype)[:, None], process.noise_vector(t).to(dtype)
    q = alpha * one_hot(x, V).to(dtype) + noise
    p = alpha * scores.softmax(dim=1) + noise
    noisy, both = noise > 0, q > 0
    log_ratio = torch.where(both, torch.log(torch.where(both, q, 1.0)) - torch.log(torch.where(noisy, p, 1.0)), 0.0)
    kl, at_z = (q * log_ratio).sum(dim=1), log_ratio.gather(1, z[:, None])[:, 0]
    # Left out so far: ln p_x where there is no noise. A softmax rounded to 0 would give it an infinite slope.
    rest = (both & ~noisy).gather(1, x[:, None])[:, 0]
    if bool(rest.any()):
        log_s_x = scores.gather(1, x[:, None])[:, 0] - scores.logsumexp(dim=1)
        log_p_x = torch.where(rest, alpha[:, 0].log() + log_s_x, 0.0)
        kl = kl - torch.where(rest, alpha[:, 0] * log_p_x, 0.0)
        at_z = at_z - torch.where(z == x, log_p_x, 0.0)
    return kl, torch.where(at_z == torch.inf, torch.inf, torch.expm1(at_z) - at_z)
