"""A Hugging Face causal language model as a judge: what generative perplexity usually means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ConfigError
from .text_metrics import mean_nats


class CausalLMJudge:
    """-ln p of texts under a causal language model, in its own tokens.

    Every token counts, the first one given the token that begins (or, where there is none, ends) a text. Texts longer
    than the model takes are judged in parts that do not see each other.

    Parameters
    ----------
    model : module that takes ``input_ids`` and ``attention_mask`` and returns an object with ``logits`` (B, L, V).
    tokenizer : of ``transformers``.
    batch_size : texts per model call; does not change the result.

    Raises
    ------
    ConfigError
        The tokenizer has no token to begin a text with.

    Examples
    --------
    >>> judge = CausalLMJudge.from_pretrained("google/gemma-2-9b")  # doctest: +SKIP
    >>> tokens, mask = padded(judge.encode(texts))  # doctest: +SKIP
    >>> judge.nll(tokens, mask)  # doctest: +SKIP
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int = 32) -> None:
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size
        ids = (getattr(tokenizer, f"{role}_token_id", None) for role in ("bos", "eos"))
        begin = next((i for i in ids if i is not None), None)
        if begin is None:
            raise ConfigError("the judge's tokenizer has no token that begins or ends a text, to begin one with")
        self.begin_id: int = begin
        self.longest: int | None = getattr(model.config, "max_position_embeddings", None)

    @classmethod
    def from_pretrained(
        cls, source: str, device: str = "cpu", dtype: torch.dtype | None = None, batch_size: int = 32
    ) -> CausalLMJudge:
        """Load a folder or Hub repository, weights from safetensors only, and no code of theirs.

        Parameters
        ----------
        dtype : of the weights; None: as stored.

        Raises
        ------
        ConfigError
            ``transformers`` is missing, or there is no such model.
        """
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError:
            raise ConfigError(f"the judge {source} needs transformers: pip install 'gidd-diffusion[hf]'") from None
        try:
            tokenizer = AutoTokenizer.from_pretrained(source)
            model: Any = AutoModelForCausalLM.from_pretrained(source, torch_dtype=dtype or "auto", use_safetensors=True)
        except (OSError, ValueError, KeyError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(f"cannot load {source} as a causal language model: {reason}") from error
        return cls(model.to(device), tokenizer, batch_size)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The model's own ids of texts, without special tokens; what looks like one in a text is text."""
        return [
            self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
            for text in texts
        ]

    @torch.no_grad()
    def log_probs(self, sequences: Any, mask: Any = None) -> NDArray[np.float64]:
        """(N, L) natural log-probability of every one of its tokens (N, L) given those before it.

        Parameters
        ----------
        mask : (N, L) bool, True at tokens and False behind the end of shorter texts; None: everywhere.
        """
        ids = torch.as_tensor(np.asarray(sequences))
        if ids.dim() != 2 or ids.is_floating_point():
            raise ValueError(f"sequences has to hold integer ids of the shape (N, L); got {tuple(ids.shape)}")
        keep = torch.ones(ids.shape, dtype=torch.bool) if mask is None else torch.as_tensor(np.asarray(mask)).bool()
        room = ids.shape[1] if self.longest is None else self.longest - 1  # one place is the beginning's
        found = torch.zeros(ids.shape, dtype=torch.float64)
        for rows in torch.split(torch.arange(len(ids)), self.batch_size):
            for places in torch.split(torch.arange(ids.shape[1]), max(room, 1)):
                part = (rows[:, None], places)
                found[part] = self._log_probs(ids[part].long(), keep[part]).double().cpu()
        return found.numpy()

    def nll(self, sequences: Any, mask: Any = None) -> NDArray[np.float64]:
        """(N,) nats per token of its own tokens (N, L), over the positions where ``mask`` (N, L) is True if given."""
        return mean_nats(-self.log_probs(sequences, mask), mask)

    def _log_probs(self, ids: Tensor, keep: Tensor) -> Tensor:
        """Logits at a place are of the next token: with the beginning in front, logits l are of token l.

        So the labels, and with them what counts, are the tokens themselves: a mask over the inputs, moved along with
        the logits, would count the padding behind the end and leave out the last token.
        """
        device = next(self.model.parameters()).device
        shown = torch.cat([torch.full_like(ids[:, :1], self.begin_id), ids], dim=1).to(device)
        real = torch.cat([torch.ones_like(keep[:, :1]), keep], dim=1).long().to(device)
        logits = self.model(input_ids=shown, attention_mask=real).logits[:, :-1]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return -torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids.to(device), reduction="none")
