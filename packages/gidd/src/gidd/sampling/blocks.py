"""Generating a text block by block, each block by diffusion after all earlier ones (arXiv:2512.10858)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..process import Process
from .ancestral import SampleOutput, Way, check_shape, check_way, denoise, device_of, keep, time_grid
from .predict import Model
from .streams import Streams


@torch.no_grad()
def sample_blocks(
    model: Model,
    process: Process,
    shape: tuple[int, int],
    block: int,
    steps: int = 128,
    *,
    sampler: str = "ancestral",
    grid: str | Tensor | Sequence[float] = "auto",
    prompt: Tensor | None = None,
    temperature: float = 1.0,
    top_p: float | None = None,
    top_k: int | None = None,
    min_prob: float = 0.0,
    cache: bool = True,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> SampleOutput:
    """Generate sequences in blocks, from left to right: a block goes from noise to clean text before the next begins.

    The network sees the clean text so far and the block, nothing of what comes later. It has to be used to clean
    beginnings, that is trained with prompts (``p_prompt``).

    Parameters
    ----------
    model : as for :func:`sample`; called on the text so far and a block together. One with ``encode_prefix`` (see
        :class:`gidd.ScalingTransformer`) is told which tokens are clean.
    shape : (B, L), the prompt included.
    block : tokens in a block; the last one may be shorter.
    steps : of every block.
    sampler, grid, temperature, top_p, top_k, min_prob, generator, device : as for :func:`sample`.
    prompt : ids (P,) or (B, P) that the text begins with.
    cache : encode the text so far once per block where the model can, and call it on the block alone.

    Returns
    -------
    SampleOutput
        Without a trajectory. ``num_model_calls`` are steps of all blocks, and encodings of the text so far.

    Raises
    ------
    InvalidProcessError
        The process has negative rates.
    ValueError
        Arguments that do not fit.

    Examples
    --------
    >>> process = MaskedProcess(vocab_size=4, mask_id=3)
    >>> out = sample_blocks(lambda z, t: torch.zeros(*z.shape, 4), process, (2, 10), block=4, steps=8)
    >>> out.tokens.shape, out.num_model_calls
    (torch.Size([2, 10]), 24)
    """
    batch, length = check_shape(shape)
    if not isinstance(block, int) or block < 1:
        raise ValueError(f"block has to be a positive integer; got {block!r}")
    if steps == 0:
        raise ValueError("steps has to be positive: a block is finished before the next one begins")
    way = Way(sampler, temperature, top_p, top_k, min_prob)
    check_way(process, steps, way)
    device = torch.device(device) if device is not None else device_of(model, prompt)
    streams = Streams.of(generator, batch, device)
    times = time_grid(process, steps, grid).to(device)
    kept, values = keep(prompt, None, batch, length, process, device)
    text = values[:, : int(kept.sum(1).max()) if kept.numel() else 0]
    calls = 0
    while batch and text.shape[1] < length:
        free = torch.zeros(batch, min(block, length - text.shape[1]), dtype=torch.bool, device=device)
        after, encodings = _after(model, text, cache)
        out = denoise(after, process, times, free, free.long(), streams, way)
        text, calls = torch.cat([text, out.tokens], dim=1), calls + out.num_model_calls + encodings
    return SampleOutput(text if batch else values, calls, None)


def _after(model: Any, text: Tensor, cache: bool) -> tuple[Model, int]:
    """The model of what follows ``text`` (B, P), and how many calls it took to make it."""
    past = text.shape[1]
    if past == 0:
        return model, 0
    aware = hasattr(model, "encode_prefix")
    if aware and cache:
        prefix = model.encode_prefix(text)
        return lambda z, t: model(z, t, prefix=prefix), 1

    def recomputed(z: Tensor, t: Tensor) -> Tensor:
        whole = torch.cat([text, z], dim=1)
        clean = (torch.arange(whole.shape[1], device=z.device) < past).expand(whole.shape)
        logits: Tensor = model(whole, t, clean=clean) if aware else model(whole, t)
        return logits[:, past:]

    return recomputed, 0
