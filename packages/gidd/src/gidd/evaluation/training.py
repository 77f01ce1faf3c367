"""Small models for the experiments, trained in this process: the same steps for every process and weighting."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..loss import gidd_loss
from ..models import DiT, DiTConfig
from ..process import Process, process_from_dict


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
    model, process = fresh(task), process_from_dict(task.process)
    tokens = torch.as_tensor(task.tokens)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=task.learning_rate, betas=(0.9, 0.99), eps=1e-9, weight_decay=0.02
    )
    data, noise = (torch.Generator().manual_seed(2 * task.seed + k) for k in (0, 1))
    for step in range(task.steps):
        for group in optimizer.param_groups:
            group["lr"] = task.learning_rate * schedule(step, task.steps)
        x = windows(tokens, task.batch, task.length, data)
        t = (torch.arange(task.batch, dtype=torch.float64) + torch.rand((), generator=noise).double()) / task.batch
        t = process.t_eps + (1 - 2 * process.t_eps) * t
        if task.weighting == "autoregressive":
            loss = next_token_nll(model, x.to(task.device), process).mean()
        else:
            z = process.q_sample(x, t, noise)
            x, z, t = (value.to(task.device) for value in (x, z, t))
            loss = gidd_loss(model(z, t.float()), x, z, t, process, weighting=task.weighting, inplace_grad=True).loss
        if not bool(torch.isfinite(loss)):
            raise FloatingPointError(f"the loss is {float(loss)} at step {step}")
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return {name: value.detach().cpu().numpy() for name, value in model.state_dict().items()}


def next_token_nll(model: DiT, x: Tensor, process: Process) -> Tensor:
    """(B, L) -ln p(x_l | x_<l) in nats: the network with a causal mask, the mask token in the place of a beginning."""
    shown = torch.nn.functional.pad(x[:, :-1], (1, 0), value=process.mask_id or 0)
    causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
    logits = model(shown, torch.zeros(len(x), device=x.device), causal.expand(len(x), -1, -1))
    logits = logits[..., : process.vocab_size]
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2).float(), x, reduction="none")


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


def schedule(step: int, steps: int, warmup: int = 50, floor: float = 0.1) -> float:
    """Factor of the learning rate: linear warm-up times a cosine from 1 down to ``floor``."""
    return min(1.0, (step + 1) / warmup) * (floor + (1 - floor) * (1 + math.cos(math.pi * step / steps)) / 2)


def train_all(tasks: list[Task], workers: int) -> list[DiT]:
    """All models, several at a time."""
    return [trained(task, weights) for task, weights in zip(tasks, in_parallel(train, tasks, workers), strict=True)]


def in_parallel(function: Callable[[Any], Any], items: Sequence[Any], workers: int) -> list[Any]:
    """function(item) of every item, in processes of one thread each, or in this one if a single worker is wanted."""
    if workers <= 1 or len(items) == 1:
        return [function(item) for item in items]
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(min(workers, len(items)), get_context("spawn")) as pool:
        return list(pool.map(function, items))
