"""Small models for the experiments, trained in this process: the same steps for every process and weighting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..models import DiT, DiTConfig
from ..process import process_from_dict
from ..train import train_model


@dataclass(frozen=True)
class Task:
    """One model to train, as plain values that a worker process can be sent.

    Attributes
    ----------
    process : of :meth:`Process.to_dict`.
    tokens : (N, L) training sequences, or (M,) a text from which L-token windows are cut.
    length : L.
    config : of :class:`DiTConfig`.
    weighting : of the loss; "autoregressive" trains the same network to predict the next token from those before.
    start : weights to begin with; None for random ones.
    """

    process: dict[str, Any]
    tokens: np.ndarray
    length: int
    config: dict[str, Any]
    steps: int
    batch: int
    weighting: str = "dynamic"
    seed: int = 0
    learning_rate: float = 3e-3
    device: str = "cpu"
    start: dict[str, np.ndarray] | None = None


def train(task: Task) -> dict[str, np.ndarray]:
    """Weights after ``steps`` steps of AdamW with warm-up, cosine decay and low-discrepancy times.

    The seed decides initial weights, order of the data, times and noise, so that models of different processes and
    weightings see the same batches.
    """
    torch.set_num_threads(1)
    model, tokens = fresh(task), torch.as_tensor(task.tokens)
    generator = torch.Generator().manual_seed(task.seed)
    diffusion = task.weighting != "autoregressive"
    train_model(
        model,
        process_from_dict(task.process),
        lambda step: windows(tokens, task.batch, task.length, generator),
        task.steps,
        lr=task.learning_rate,
        weighting=task.weighting if diffusion else "dynamic",
        kind="diffusion" if diffusion else "autoregressive",
        seed=task.seed,
    )
    return {name: value.detach().cpu().numpy() for name, value in model.state_dict().items()}


def fresh(task: Task) -> DiT:
    """The model before training, on the task's device."""
    torch.manual_seed(task.seed)
    model = DiT(DiTConfig(**task.config)).to(task.device)
    return model if task.start is None else load(model, task.start)


def trained(task: Task, weights: dict[str, np.ndarray]) -> DiT:
    """The model of a task with these weights, for evaluation."""
    return load(fresh(task), weights).eval()


def load(model: DiT, weights: dict[str, np.ndarray]) -> DiT:
    """``model`` with these weights."""
    model.load_state_dict({name: torch.as_tensor(value) for name, value in weights.items()})
    return model


def windows(tokens: Tensor, batch: int, length: int, generator: torch.Generator) -> Tensor:
    """(batch, length) rows of (N, L) tokens, or windows of a text (M,)."""
    if tokens.dim() == 2:
        return tokens[torch.randint(len(tokens), (batch,), generator=generator)].long()
    start = torch.randint(len(tokens) - length + 1, (batch, 1), generator=generator)
    return tokens[start + torch.arange(length)].long()


def in_parallel(function: Callable[[Any], Any], items: Sequence[Any], workers: int) -> list[Any]:
    """function(item) of every item, in processes of one thread each, or in this one if a single worker is wanted."""
    if workers <= 1 or len(items) == 1:
        return [function(item) for item in items]
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(min(workers, len(items)), get_context("spawn")) as pool:
        return list(pool.map(function, items))
