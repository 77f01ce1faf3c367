"""Masked and causal language models of ``transformers`` as diffusion networks: the start of a hybridisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError


class HFBackbone(nn.Module):
    """``model(z, t) -> logits`` from a Hugging Face masked or causal language model, with attention in both directions.

    The time is not used: such models read from the masks how noisy a text is.

    Parameters
    ----------
    model : model id or folder (loaded with ``transformers``, first as a masked, then as a causal language model), or a
        module that takes ``input_ids`` and ``attention_mask`` and returns an object with ``logits`` (B, L, V).
    shift : logits at position l are of the token at l + 1, as in models that began as causal ones (Dream). The first
        position, for which there are none, gets its own.
    causal : the module has a causal mask, to be switched off; default: found out from it.

    Raises
    ------
    ConfigError
        The first token still cannot see the last one: the architecture has no way to switch the causal mask off.
    """

    def __init__(self, model: str | nn.Module, shift: bool = False, causal: bool | None = None) -> None:
        super().__init__()
        self.module = _load(model) if isinstance(model, str) else model
        self.shift = shift
        self.causal = _is_causal(self.module) if causal is None else causal
        if self.causal:
            for part in self.module.modules():
                if hasattr(part, "is_causal"):
                    part.is_causal = False  # type: ignore[assignment]
            if not self._sees_the_future():
                raise ConfigError(
                    f"{type(self.module).__name__} stays causal: its first token does not see the last one, whatever "
                    "the attention mask; load it with attn_implementation='eager' or 'sdpa', or take another model"
                )

    def forward(self, z: Tensor, t: Tensor | None = None, attention_mask: Tensor | None = None) -> Tensor:
        """Logits (B, L, V) of ids z (B, L); t is ignored; attention_mask (B, L) bool is True at tokens to look at."""
        keep = torch.ones_like(z, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        if keep.shape != z.shape:
            raise ValueError(f"attention_mask has shape {tuple(keep.shape)}; it has to be (B, L) = {tuple(z.shape)}")
        given = self._full_attention(keep) if self.causal else keep.long()
        logits: Tensor = self.module(input_ids=z, attention_mask=given).logits
        if self.shift:
            logits = torch.cat([logits[:, :1], logits[:, :-1]], dim=1)
        return logits

    def num_parameters(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.parameters())

    def _full_attention(self, keep: Tensor) -> Tensor:
        """(B, 1, L, L) added to attention scores: given in this form, ``transformers`` adds no causal mask to it."""
        dtype = next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float32)
        hidden = torch.zeros(keep.shape, dtype=dtype, device=keep.device).masked_fill(~keep, torch.finfo(dtype).min)
        return hidden[:, None, None, :].expand(-1, 1, keep.shape[1], -1)

    @torch.no_grad()
    def _sees_the_future(self) -> bool:
        parameter = next(self.module.parameters(), torch.zeros(()))
        training = self.module.training
        self.module.eval()
        two = torch.tensor([[0, 0], [0, 1]], device=parameter.device)
        first = self.module(input_ids=two, attention_mask=self._full_attention(torch.ones_like(two) > 0)).logits[:, 0]
        self.module.train(training)
        return not torch.equal(first[0], first[1])


def _is_causal(module: nn.Module) -> bool:
    """By the class's name, the part of it that ``transformers`` keeps apart, or by a flag of its attention."""
    name = type(module).__name__
    if "MaskedLM" in name:
        return False
    return "CausalLM" in name or "LMHead" in name or any(getattr(m, "is_causal", False) for m in module.modules())


def _load(model_id: str) -> nn.Module:
    try:
        from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
    except ImportError:
        raise ConfigError("HFBackbone of a model id needs transformers: pip install 'gidd-diffusion[hf]'") from None
    loaders: list[Any] = [AutoModelForMaskedLM, AutoModelForCausalLM]
    for loader in loaders:
        try:
            module: nn.Module = loader.from_pretrained(model_id)
        except ValueError as error:  # what transformers raises for a kind the loader does not know
            problem = error
        else:
            return module
    raise ConfigError(f"{model_id} is neither a masked nor a causal language model: {problem}")
