"""Times and noise of a training batch: functions of (seed, step, place in the global batch) and of nothing else.

That makes runs equal on any number of devices and lets a run resume with a step number alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..process import Process
from ..sampling.streams import Streams

_PER_SEQUENCE = 5  # random numbers of a sequence, besides those of its tokens


class NoisyBatch(NamedTuple):
    """What a training step sees of some sequences.

    x, z : (B, L) clean and noisy ids.
    t : (B,) float64 times, or (B, L) where tokens may have their own.
    keep : (B, L) bool, True where the loss counts.
    attention_mask : (B, L, L) bool, or None where every token may look at every other.
    """

    x: Tensor
    z: Tensor
    t: Tensor
    keep: Tensor
    attention_mask: Tensor | None


class NoiseOptions(NamedTuple):
    """Other noise than one time for all tokens of a sequence (arXiv:2512.10858).

    p_independent : how often each token of a sequence has a time of its own.
    p_prompt : how often a sequence begins with a clean prompt (arccos(1 - 2U) / pi of it), which sees only itself.
    p_infill : how often a sequence is clean but for a window anywhere; the clean share is as above.
    max_empty_frac : up to this share of a sequence, uniformly, is padding put between its tokens.
    pad_id : the padding.
    """

    p_independent: float = 0.0
    p_prompt: float = 0.0
    p_infill: float = 0.0
    max_empty_frac: float = 0.0
    pad_id: int | None = None


def stratified_times(fraction: Tensor, slots: Tensor, total: int, t_eps: float) -> Tensor:
    """Low-discrepancy times t_i = (i + U) / n mod 1, mapped to [t_eps, 1 - t_eps]; float64 of the shape of ``slots``.

    Parameters
    ----------
    fraction : () U, one for all.
    slots : (B,) numbers i of these sequences in the global batch.
    total : n, size of the global batch.
    """
    return t_eps + (1 - 2 * t_eps) * (((slots.double() + fraction) / total) % 1.0)


def noisy_batch(
    tokens: Tensor,
    loss_mask: Tensor | None,
    process: Process,
    seed: int,
    step: int,
    first: int = 0,
    total: int | None = None,
    options: NoiseOptions | None = None,
) -> NoisyBatch:
    """Draw times and noise for some sequences of a global batch.

    Parameters
    ----------
    tokens : (B, L) clean ids.
    loss_mask : (B, L) bool, True where a token counts; the others stay clean. None: all count.
    first, total : these are the sequences first, ..., first + B - 1 of ``total`` in the global batch.

    Examples
    --------
    >>> p = HybridProcess(vocab_size=6, mask_id=5)
    >>> x = torch.zeros(8, 3, dtype=torch.long)
    >>> whole, part = noisy_batch(x, None, p, 0, 7), noisy_batch(x[4:], None, p, 0, 7, first=4, total=8)
    >>> bool((whole.z[4:] == part.z).all())
    True
    """
    batch, length = tokens.shape
    total = batch if total is None else total
    keep = torch.ones_like(tokens, dtype=torch.bool) if loss_mask is None else loss_mask
    # SeedSequence turns any (seed, step) into independent words; word i does not depend on how many there are.
    words = np.random.SeedSequence((seed, step)).generate_state(first + batch + 1, np.uint64)
    shared = torch.tensor(float(words[0]) * 2.0**-64, dtype=torch.float64)
    streams = Streams(torch.from_numpy(words[first + 1 :].view(np.int64)).to(tokens.device))
    t = stratified_times(shared, torch.arange(first, first + batch), total, process.t_eps).to(tokens.device)
    x, attention_mask, times = tokens, None, t[:, None]
    if options is not None and any(options[:4]):
        own = streams.uniform(_PER_SEQUENCE).T
        if options.max_empty_frac:
            x, keep = _with_empty(x, keep, own[0] * options.max_empty_frac, streams.uniform(length), options.pad_id)
        if options.p_independent:
            alone = process.t_eps + (1 - 2 * process.t_eps) * streams.uniform(length)
            t = times = torch.where((own[1] < options.p_independent)[:, None], alone, times)
        if options.p_prompt or options.p_infill:
            prompt, infill = _given(own[2], own[3], own[4], length, options)
            keep = keep & ~prompt & ~infill
            if options.p_prompt:
                attention_mask = ~prompt[:, :, None] | prompt[:, None, :]
    uniform, which, where = (streams.uniform(length) for _ in range(3))
    noisy = keep & (uniform >= process.alpha(times))
    z = torch.where(noisy, process.noise_from(times, which, where), x)
    return NoisyBatch(x, z, t, keep, attention_mask)


def _given(kind: Tensor, size: Tensor, place: Tensor, length: int, options: NoiseOptions) -> tuple[Tensor, Tensor]:
    """(B, L) bool each: tokens of prompts, and tokens around a window; from three uniform numbers (B,) a sequence.

    At least one token is left to predict.
    """
    share = torch.arccos(1 - 2 * size) / math.pi
    clean = (share * length).floor().clamp_max(length - 1)[:, None]
    at = torch.arange(length, device=kind.device)
    prompt = (kind < options.p_prompt)[:, None] & (at < clean)
    start = (place[:, None] * (clean + 1)).floor()
    window = (at >= start) & (at < start + length - clean)
    chosen = (kind >= options.p_prompt) & (kind < options.p_prompt + options.p_infill)
    return prompt, chosen[:, None] & ~window


def _with_empty(x: Tensor, keep: Tensor, share: Tensor, order: Tensor, pad_id: int | None) -> tuple[Tensor, Tensor]:
    """Padding in ``share`` (B,) of the places, the first in ``order`` (B, L); what it pushes out at the end is lost."""
    if pad_id is None:
        raise ValueError("max_empty_frac needs a tokenizer with a padding token")
    rank = order.argsort(dim=1).argsort(dim=1)
    empty = rank < (share * x.shape[1]).floor()[:, None]
    source = ((~empty).cumsum(dim=1) - 1).clamp_min(0)
    return torch.where(empty, pad_id, x.gather(1, source)), empty | keep.gather(1, source)
