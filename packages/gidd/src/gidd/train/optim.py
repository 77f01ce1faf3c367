"""Optimizers, the learning rate over time, and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, overload

import torch
from torch import Tensor, nn


def learning_rate_factor(step: int, steps: int, warmup: int, shape: str = "cosine", final: float = 0.1) -> float:
    """Factor of the learning rate at step 0, ..., steps - 1.

    Linear from 1 / warmup to 1 over the first ``warmup`` steps, then a half cosine to ``final``, or constant.
    """
    if step < warmup:
        return (step + 1) / warmup
    if shape == "constant":
        return 1.0
    progress = min((step - warmup) / max(steps - warmup, 1), 1.0)
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


def parameter_groups(model: nn.Module, weight_decay: float, aux_lr_factor: float = 1.0) -> list[dict[str, Any]]:
    """Groups for an optimizer: weight decay on matrices, ``aux_lr_factor`` on all but the matrices of blocks.

    Each has the key ``lr_factor``, which :func:`set_learning_rate` multiplies with.
    """
    inner: list[Tensor] = []
    outer: list[Tensor] = []
    vectors: list[Tensor] = []
    for name, p in model.named_parameters():
        if p.requires_grad:
            (vectors if p.dim() < 2 else inner if "blocks." in name else outer).append(p)
    groups: list[dict[str, Any]] = [
        {"params": inner, "weight_decay": weight_decay, "lr_factor": 1.0},
        {"params": outer, "weight_decay": weight_decay, "lr_factor": aux_lr_factor},
        {"params": vectors, "weight_decay": 0.0, "lr_factor": aux_lr_factor},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(
    groups: list[dict[str, Any]],
    name: str = "adamw",
    lr: float = 5e-4,
    betas: tuple[float, float] = (0.9, 0.99),
    eps: float = 1e-9,
) -> torch.optim.Optimizer:
    """AdamW or LaProp over :func:`parameter_groups`."""
    if name == "laprop":
        return LaProp(groups, lr=lr, betas=betas, eps=eps)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its part of the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


class LaProp(torch.optim.Optimizer):
    """Gradients are normalised before they are averaged (Ziyin, Wang and Ueda 2020, arXiv:2002.04839).

    v = b2 v + (1 - b2) g^2;  m = b1 m + (1 - b1) g / (sqrt(v / (1 - b2^k)) + eps);  p -= lr (m / (1 - b1^k) + wd p).
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-9,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p] = {
                        "step": torch.zeros(()),
                        "exp_avg": torch.zeros_like(p),
                        "exp_avg_sq": torch.zeros_like(p),
                    }
            states = [self.state[p] for p in params]
            for state in states:
                state["step"] += 1
            self._update(group, params, states)
        return loss

    @staticmethod
    def _update(group: dict[str, Any], params: list[Tensor], states: list[Any]) -> None:
        beta1, beta2 = group["betas"]
        count = int(states[0]["step"])
        grads = [p.grad for p in params if p.grad is not None]
        m, v = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, grads, grads, 1 - beta2)
        scale = torch._foreach_div(v, 1 - beta2**count)
        torch._foreach_sqrt_(scale)
        torch._foreach_add_(scale, group["eps"])
        torch._foreach_mul_(m, beta1)
        torch._foreach_addcdiv_(m, grads, scale, 1 - beta1)
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(params, m, alpha=-group["lr"] / (1 - beta1**count))


class AveragedWeights:
    """Exponential moving average of parameters, sharded as they are.

    The decay after k updates is min(decay, (1 + k) / (10 + k)), so that a short run does not remember its start.
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self.parameters, self.decay = list(parameters), decay
        self.average = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, count: int) -> None:
        """Take in the parameters after update number ``count``, from 0."""
        decay = min(self.decay, (1 + count) / (10 + count))
        torch._foreach_lerp_(_local(self.average), _local(self.parameters), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the parameters hold the average."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange parameters and average."""
        own, average = _local(self.parameters), _local(self.average)
        kept = [p.clone() for p in own]
        torch._foreach_copy_(own, average)
        torch._foreach_copy_(average, kept)


def _local(tensors: Sequence[Any]) -> list[Tensor]:
    """This process's parts, where tensors are sharded; call without gradients."""
    return [t.to_local() if hasattr(t, "to_local") else t for t in tensors]
