"""Training in memory: no files, no processes, the trainer's own steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain, repeat

import torch
from torch import Tensor, nn

from ..process import Process
from .autoregressive import next_token_batch
from .noise import NoiseOptions, noisy_batch
from .optim import AveragedWeights, learning_rate_factor, make_optimizer, parameter_groups, set_learning_rate
from .parallel import World
from .step import Objective, StepResult, train_step
from .trainer import PATIENCE, TrainingDiverged


def train_model(
    model: nn.Module,
    process: Process,
    batches: Tensor | Callable[[int], Tensor] | Iterable[Tensor],
    steps: int,
    *,
    batch_size: int = 128,
    lr: float = 5e-4,
    warmup: int = 50,
    shape: str = "cosine",
    final: float = 0.1,
    weight_decay: float = 0.02,
    betas: tuple[float, float] = (0.9, 0.99),
    eps: float = 1e-9,
    clip: float = 1.0,
    optimizer: str = "adamw",
    ema: float | None = None,
    weighting: str = "dynamic",
    w_max: float = 1.0,
    impl: str = "auto",
    fused: bool | str = "auto",
    precision: str = "fp32",
    noise: NoiseOptions | None = None,
    kind: str = "diffusion",
    seed: int = 0,
    callback: Callable[[int, StepResult], None] | None = None,
) -> list[StepResult]:
    """Train ``model`` where it is and return what every step measured.

    Two models trained with the same seed see the same batches, times and random numbers, whatever their processes.

    Parameters
    ----------
    batches : (N, L) sequences, of which ``batch_size`` are drawn a step with replacement; or step -> (B, L) ids; or an
        iterable of (B, L) ids.
    ema : decay of the average of the weights, which the model holds at the end; None for the last weights.
    kind : "diffusion", or "autoregressive" to predict the next token; see :class:`.Objective`.
    seed : of times, noise and dropout, and of the batches drawn from (N, L).

    Other parameters are those of :class:`gidd.TrainConfig`.

    Raises
    ------
    TrainingDiverged
        The loss was not finite in five steps in a row.
    ValueError
        ``batches`` ended early.

    Examples
    --------
    >>> p = HybridProcess(vocab_size=6, mask_id=5)
    >>> model = DiT(DiTConfig(vocab_size=6, hidden=32, layers=1, heads=2))
    >>> len(train_model(model, p, torch.zeros(10, 4, dtype=torch.long), steps=3, batch_size=2))
    3
    """
    process.validate()
    device = next(model.parameters()).device
    world = World(device)
    objective = Objective(
        model, process, weighting=weighting, w_max=w_max, impl=impl, fused=fused, precision=precision, kind=kind
    )
    update = make_optimizer(parameter_groups(model, weight_decay), optimizer, lr, betas, eps)
    parameters = [p for group in update.param_groups for p in group["params"]]
    average = None if ema is None else AveragedWeights(parameters, ema)
    next_batch = _next_batch(batches, batch_size, seed)
    results: list[StepResult] = []
    bad = 0
    was_training = model.training
    model.train()
    # Dropout, if any, draws from torch's own generator, which is given back as it was.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for step in range(steps):
            x = next_batch(step).to(device)
            if kind == "autoregressive":
                batch = next_token_batch(x, None, process)
            else:
                batch = noisy_batch(x, None, process, seed, step, options=noise)
            set_learning_rate(update, lr * learning_rate_factor(step, steps, warmup, shape, final))
            result = train_step(objective, parameters, update, [batch], clip, world)
            results.append(result)
            bad = 0 if result.finite else bad + 1
            if bad == PATIENCE:
                raise TrainingDiverged(f"the loss was not finite in {bad} steps in a row, the last being step {step}")
            if average is not None and result.finite:
                average.update(step)
            if callback is not None:
                callback(step, result)
    if average is not None:
        average.swap()
    model.train(was_training)
    return results


def _next_batch(
    batches: Tensor | Callable[[int], Tensor] | Iterable[Tensor], size: int, seed: int
) -> Callable[[int], Tensor]:
    if isinstance(batches, Tensor):
        data = batches
        generator = torch.Generator().manual_seed(seed)
        return lambda step: data[torch.randint(len(data), (size,), generator=generator)].long()
    if callable(batches):
        return batches
    stream = chain(batches, repeat(None))

    def following(step: int) -> Tensor:
        batch = next(stream)
        if batch is None:
            raise ValueError(f"batches ended after {step} steps")
        return batch

    return following
