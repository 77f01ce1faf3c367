"""One optimizer step, the same in the trainer and in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..loss import fused_linear_gidd_loss, gidd_loss
from ..process import Process
from .autoregressive import cross_entropy
from .noise import NoisyBatch
from .parallel import World, synced

FUSED_FROM = 8192  # with a smaller vocabulary the logits are no burden


class Objective(nn.Module):
    """A network with its loss, in one forward pass: that is what DDP and FSDP2 can wrap around.

    Parameters
    ----------
    model : ``model(z, t) -> logits``; with ``hidden`` and ``head`` (as :class:`gidd.models.Backbone`) it can be fused.
    fused : compute head and loss together; "auto" from ``FUSED_FROM`` tokens on.
    precision : "fp32", or "bf16" for autocast.
    kind : "diffusion", or "autoregressive" for batches of :func:`next_token_batch`: loss and "ELBO" are then both the
        cross-entropy, and weighting, w_max, impl and fused do not matter.
    """

    def __init__(
        self,
        model: nn.Module,
        process: Process,
        *,
        weighting: str = "dynamic",
        w_max: float = 1.0,
        impl: str = "auto",
        fused: bool | str = "auto",
        precision: str = "fp32",
        kind: str = "diffusion",
    ) -> None:
        super().__init__()
        self.model, self.process = model, process
        self.weighting, self.w_max, self.impl, self.precision = weighting, w_max, impl, precision
        self.autoregressive = kind == "autoregressive"
        able = hasattr(model, "hidden") and hasattr(model, "head") and not self.autoregressive
        self.fused = able and process.vocab_size >= FUSED_FROM if fused == "auto" else bool(fused)
        if self.fused and not able:
            raise ValueError(f"a {type(model).__name__} has no hidden states to fuse the loss with: set fused=False")

    def forward(
        self,
        z: Tensor,
        t: Tensor,
        attention_mask: Tensor | None = None,
        x: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Sums over tokens that count of the loss and, detached, of the ELBO's integrand; without x the logits."""
        run: Any = self.model.hidden if self.fused and x is not None else self.model
        given = (z, t.float()) if attention_mask is None else (z, t.float(), attention_mask)
        half = self.precision == "bf16"
        with torch.autocast(z.device.type, torch.bfloat16, enabled=half):
            out: Tensor = run(*given)
        if x is None:
            return out
        if self.autoregressive:
            nll = cross_entropy(out, x, self.process)
            loss = (nll if keep is None else torch.where(keep, nll, 0.0)).sum()
            return loss, loss.detach().double()
        if self.fused:
            head: Any = self.model.head
            weight, bias = head.weight, head.bias
            if half:
                out, weight, bias = out.bfloat16(), weight.bfloat16(), None if bias is None else bias.bfloat16()
            result = fused_linear_gidd_loss(
                out, weight, bias, x, z, t, self.process, weighting=self.weighting, w_max=self.w_max, loss_mask=keep,
                reduction="sum", impl=self.impl,
            )  # fmt: skip
        else:
            result = gidd_loss(
                out, x, z, t, self.process, weighting=self.weighting, w_max=self.w_max, loss_mask=keep,
                reduction="sum", impl=self.impl, inplace_grad=True,
            )  # fmt: skip
        return result.loss, result.elbo.double().sum()


class StepResult(NamedTuple):
    """Means over the tokens of the global batch that count.

    loss : weighted, what is minimised.
    elbo : integrand of the negative ELBO, nats per token; noisy, but its mean over steps is the path integral. Of an
        autoregressive model: the loss.
    tokens : how many tokens count.
    grad_norm : before clipping.
    finite : False: loss or gradient were not, and nothing was changed.
    """

    loss: float
    elbo: float
    tokens: int
    grad_norm: float
    finite: bool


def train_step(
    module: nn.Module,
    parameters: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    parts: Sequence[NoisyBatch],
    clip: float,
    world: World,
) -> StepResult:
    """One update from the parts of this process's share of a batch; skipped where loss or gradient are not finite.

    Parameters
    ----------
    module : an :class:`Objective`, as :func:`.distribute` returns it.
    parameters : those that the optimizer changes, for the gradient's norm.
    parts : passed through the network one after the other.
    """
    optimizer.zero_grad(set_to_none=True)
    (count,) = world.sum(sum(int(part.keep.sum()) for part in parts))
    # Processes average gradients, of sums over their own tokens: this makes them the mean over the tokens of all.
    scale = world.size / max(count, 1.0)
    total = torch.zeros(2, dtype=torch.float64, device=world.device)
    for i, part in enumerate(parts):
        with synced(module, last=i == len(parts) - 1):
            loss, elbo = module(part.z, part.t, part.attention_mask, part.x, part.keep)
            torch.autograd.backward(loss * scale)
        total += torch.stack([loss.detach().double(), elbo])
    loss_sum, elbo_sum = world.sum(*total.tolist())
    norm = torch.nn.utils.clip_grad_norm_(parameters, clip)
    grad_norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
    finite = math.isfinite(loss_sum) and math.isfinite(grad_norm) and count > 0
    if finite:
        optimizer.step()
    tokens = max(count, 1.0)
    return StepResult(loss_sum / tokens, elbo_sum / tokens, int(count), grad_norm, finite)
