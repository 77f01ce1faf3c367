"""From a model's logits to the distribution x_theta over clean tokens, and draws from it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..process import Process

Model = Callable[[Tensor, Tensor], Tensor]

_ROWS = 2**22  # vocabulary entries in float64 scratch at a time


def clean_logits(model: Model, z: Tensor, t: Tensor | float, process: Process) -> Tensor:
    """(B, L, V) logits of x_theta(z, t) in float32 or float64: the mask at -inf, padding columns cut off.

    The network sees times in [t_eps, 1 - t_eps] only.
    """
    time = torch.as_tensor(t, dtype=torch.float32, device=z.device).clamp(process.t_eps, 1 - process.t_eps)
    logits = model(z, time.expand(len(z)))
    if logits.shape[:2] != z.shape or logits.shape[2] < process.vocab_size:
        raise ValueError(
            f"the model returned {tuple(logits.shape)} for tokens {tuple(z.shape)}; it has to return (B, L, Vp) with "
            f"Vp >= {process.vocab_size}"
        )
    logits = logits[..., : process.vocab_size]
    return without_mask(logits if logits.dtype == torch.float64 else logits.float(), process)


def without_mask(logits: Tensor, process: Process) -> Tensor:
    """Logits (..., V) with the mask at -inf, a copy if there is a mask."""
    if process.mask_id is None:
        return logits
    return logits.index_fill(-1, torch.tensor([process.mask_id], device=logits.device), -torch.inf)


def sharpen(logits: Tensor, temperature: float = 1.0, top_p: float | None = None, top_k: int | None = None) -> Tensor:
    """Log-probabilities (..., V) after temperature, top-k and top-p; temperature 0 keeps the best token only."""
    if not temperature >= 0:
        raise ValueError(f"temperature has to be at least 0; got {temperature!r}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k has to be positive; got {top_k!r}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p has to lie in (0, 1]; got {top_p!r}")
    if temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        _require_numbers(logits.gather(-1, best))
        return torch.full_like(logits, -torch.inf).scatter_(-1, best, 0.0)
    log_p = (logits if temperature == 1 else logits / temperature).log_softmax(-1)
    _require_numbers(log_p[..., 0])  # one NaN makes the whole row NaN
    if top_k is not None and top_k < log_p.shape[-1]:
        least = log_p.topk(top_k, dim=-1).values[..., -1:]
        log_p = log_p.masked_fill(log_p < least, -torch.inf).log_softmax(-1)
    if top_p is not None and top_p < 1:
        ordered, index = log_p.sort(-1, descending=True)
        before = ordered.exp().cumsum(-1) - ordered.exp()  # mass of all better tokens
        drop = torch.zeros_like(log_p, dtype=torch.bool).scatter_(-1, index, before >= top_p)
        log_p = log_p.masked_fill(drop, -torch.inf).log_softmax(-1)
    return log_p


def _require_numbers(values: Tensor) -> None:
    if bool(values.isnan().any()):
        raise FloatingPointError("the model's logits are NaN, or exclude every token: nothing can be drawn from them")


def draw(log_p: Tensor, u: Tensor) -> Tensor:
    """Categorical draws (M,) from log-probabilities (M, V) by inverting the cumulative sum at u (M,), in float64.

    In float32 the sum over 50,000 tokens is off by more than the probability of a rare one, and what is missing would
    all fall on the last id, which often is the mask.
    """
    out = torch.empty(len(log_p), dtype=torch.long, device=log_p.device)
    rows = max(1, _ROWS // log_p.shape[-1])
    for start in range(0, len(log_p), rows):
        part = slice(start, start + rows)
        cdf = log_p[part].double().exp_().cumsum(-1)
        out[part] = torch.searchsorted(cdf, u[part, None] * cdf[:, -1:], right=True)[:, 0].clamp_max(cdf.shape[-1] - 1)
    return out
