"""An autoregressive judge: a network of ours with a causal mask, trained to predict the next token."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..process import Process
from ..train import next_token_nll
from .text_metrics import mean_nats


class AutoregressiveJudge:
    """-ln p(x_l | x_<l) of token sequences under a network trained with the objective "autoregressive".

    The network sees the sequence moved by one place, the mask token in the place of a beginning, at t = 0, and every
    position looks at itself and those before it only.

    Parameters
    ----------
    model : a :class:`gidd.DiT` or another network ``model(z, t, attention_mask) -> logits``; put into evaluation mode.
    process : its process, for vocabulary and mask token.
    batch_size : sequences per model call; does not change the result.

    Examples
    --------
    >>> ready = load_checkpoint("runs/judge/latest")  # doctest: +SKIP
    >>> AutoregressiveJudge(ready.model, ready.process).nll(samples)  # doctest: +SKIP
    """

    def __init__(self, model: nn.Module, process: Process, batch_size: int = 32) -> None:
        self.model, self.process, self.batch_size = model.eval(), process, batch_size

    @torch.no_grad()
    def log_probs(self, sequences: Any) -> NDArray[np.float64]:
        """(N, L) natural log-probability of every token given those before it in its sequence (N, L).

        Raises
        ------
        ValueError
            Sequences of another shape, or longer than the network takes; ids outside [0, V) or masks among them.
        """
        x = torch.as_tensor(np.asarray(sequences))
        if x.dim() != 2 or x.is_floating_point():
            raise ValueError(
                f"sequences has to hold integer ids of the shape (N, L); got {x.dtype} of {tuple(x.shape)}"
            )
        if bool(((x < 0) | (x >= self.process.vocab_size)).any()):
            raise ValueError(
                f"token ids have to lie in [0, {self.process.vocab_size}); got {int(x.min())} to {int(x.max())}"
            )
        if self.process.mask_id is not None and bool((x == self.process.mask_id).any()):
            raise ValueError(f"sequences holds the mask token {self.process.mask_id}, which no text does")
        device = next(self.model.parameters()).device
        parts = [
            -next_token_nll(self.model, part.long().to(device), self.process).cpu()
            for part in torch.split(x, self.batch_size)
        ]
        found: NDArray[np.float64] = torch.cat(parts).double().numpy() if parts else np.zeros(x.shape)
        return found

    def nll(self, sequences: Any, mask: Any = None) -> NDArray[np.float64]:
        """(N,) nats per token of the sequences (N, L), over the positions where ``mask`` (N, L) is True if given."""
        return mean_nats(-self.log_probs(sequences), mask)
