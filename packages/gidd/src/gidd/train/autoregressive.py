"""The same networks trained to predict the next token: baselines, and judges of generated text (``gidd genppl``).

A causal mask lets a position look at those before it, the mask token stands in the place of a beginning, and the time
is 0 throughout. A checkpoint of this kind has ``"objective": "autoregressive"`` in its ``config.json``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..process import Process
from .noise import NoisyBatch


def next_token_batch(tokens: Tensor, loss_mask: Tensor | None, process: Process) -> NoisyBatch:
    """What a network is shown to predict ``tokens`` (B, L): those before, shifted to the right by one place.

    Parameters
    ----------
    loss_mask : (B, L) bool, True where a token counts. None: all count.
    """
    batch, length = tokens.shape
    keep = torch.ones_like(tokens, dtype=torch.bool) if loss_mask is None else loss_mask
    shown = F.pad(tokens[:, :-1], (1, 0), value=process.mask_id or 0)
    causal = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
    t = torch.zeros(batch, dtype=torch.float64, device=tokens.device)
    return NoisyBatch(tokens, shown, t, keep, causal.expand(batch, -1, -1))


def cross_entropy(logits: Tensor, x: Tensor, process: Process) -> Tensor:
    """(B, L) float32 -ln softmax(logits)_x over the vocabulary without padding and mask token; inf where x is that."""
    real = logits[..., : process.vocab_size].float()
    if process.mask_id is not None:
        never = torch.arange(process.vocab_size, device=real.device) == process.mask_id
        real = real.masked_fill(never, -torch.inf)
    return F.cross_entropy(real.transpose(1, 2), x, reduction="none")


def next_token_nll(model: nn.Module, x: Tensor, process: Process) -> Tensor:
    """-ln p(x_l | x_1 ... x_{l-1}) in nats, (B, L) float32, of a network trained with ``objective=autoregressive``.

    Parameters
    ----------
    model : ``model(z, t, attention_mask) -> (B, L, Vp)``, a :class:`gidd.DiT` or :class:`gidd.ScalingTransformer`.
    x : (B, L) ids without the mask token.

    Examples
    --------
    >>> model, process, tokenizer, meta = load_checkpoint("runs/ar/latest")
    >>> assert meta["objective"] == "autoregressive"
    >>> next_token_nll(model, x, process).sum(dim=1)
    """
    shown = next_token_batch(x, None, process)
    return cross_entropy(model(shown.z, shown.t.float(), shown.attention_mask), x, process)
