"""Our networks as models of ``transformers``: ``AutoConfig``, ``AutoModel`` and ``AutoModelForMaskedLM``.

>>> from gidd.integrations.transformers import GiddForMaskedLM, register
>>> register()
>>> GiddForMaskedLM.from_checkpoint("runs/owt/latest").save_pretrained("for-transformers")
>>> model = AutoModelForMaskedLM.from_pretrained("for-transformers")
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, ConfigError
from ..hub import ARCHITECTURES, load_checkpoint
from ..process import Process, process_from_dict

try:
    from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, PretrainedConfig, PreTrainedModel
    from transformers.modeling_outputs import MaskedLMOutput
except ImportError:
    raise ConfigError("this needs transformers: pip install 'gidd-diffusion[hf]'") from None


class GiddConfig(PretrainedConfig):
    """Configuration of network and process.

    Parameters
    ----------
    architecture : "dit" or "scaling".
    network : ``model.config.to_dict()``.
    process : ``process.to_dict()``.
    """

    model_type = "gidd-diffusion"

    def __init__(
        self,
        architecture: str = "dit",
        network: dict[str, Any] | None = None,
        process: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if architecture not in ARCHITECTURES:
            raise ConfigError(f"architecture {architecture!r} is not one of {', '.join(ARCHITECTURES)}")
        self.architecture, self.network, self.process = architecture, network or {}, process or {}
        # Under the names that other code looks for.
        self.vocab_size = self.process.get("vocab_size")
        self.hidden_size, self.num_hidden_layers = self.network.get("hidden"), self.network.get("layers")
        self.max_position_embeddings = self.network.get("max_seq_len")
        self.mask_token_id = self.process.get("mask_id")
        super().__init__(**{**kwargs, "tie_word_embeddings": False})


class GiddForMaskedLM(PreTrainedModel):
    """A network of ours in the shape of a masked language model; ``model.network`` is the network itself."""

    config_class = GiddConfig
    base_model_prefix = "network"
    main_input_name = "input_ids"
    _supports_sdpa = True

    def __init__(self, config: GiddConfig) -> None:
        super().__init__(config)
        if not config.network or not config.process:
            raise ConfigError("a GiddConfig without network and process describes no model: use from_checkpoint")
        architecture = ARCHITECTURES[config.architecture]
        self.network = architecture(architecture.config_type.from_dict(config.network))
        self.process: Process = process_from_dict(config.process)
        self.post_init()

    @classmethod
    def from_checkpoint(cls, source: str | Path) -> GiddForMaskedLM:
        """The model of one of our checkpoints; CheckpointError as in :func:`gidd.hub.load_checkpoint`."""
        network, process, _, meta = load_checkpoint(source)
        if meta["architecture"] not in ARCHITECTURES:
            raise CheckpointError(f"{source} holds a {meta['architecture']!r}, which has no model of transformers")
        config = GiddConfig(meta["architecture"], network.config.to_dict(), process.to_dict())
        model = cls(config)
        model.network = network
        return model.eval()

    def forward(
        self,
        input_ids: Tensor,
        timestep: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_dict: bool | None = None,
        **ignored: Any,
    ) -> Any:
        """Logits (B, L, V) of the clean tokens, the mask's at -inf.

        Parameters
        ----------
        input_ids : (B, L) noisy ids.
        timestep : (B,) times in [0, 1]; default: the share of masks in each sequence.
        attention_mask : (B, L), true where there is a token.

        Raises
        ------
        ConfigError
            ``labels``: a loss needs clean tokens and times, see :func:`gidd.gidd_loss`.
        """
        if ignored.get("labels") is not None:
            raise ConfigError("this model makes no loss of labels: use gidd.gidd_loss(logits, x, z, t, process)")
        mask_id, eps = self.process.mask_id, self.process.t_eps
        if timestep is None:
            masks = torch.zeros_like(input_ids) if mask_id is None else input_ids == mask_id
            timestep = masks.float().mean(dim=1)
        logits = self.network(input_ids, timestep.float().clamp(eps, 1 - eps), attention_mask)
        logits = logits[..., : self.process.vocab_size]
        if mask_id is not None:
            logits = logits.index_fill(-1, torch.tensor([mask_id], device=logits.device), -torch.inf)
        return MaskedLMOutput(logits=logits) if return_dict is not False else (logits,)

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.network.embed

    def set_input_embeddings(self, value: Any) -> None:
        self.network.embed = value

    def _init_weights(self, module: torch.nn.Module) -> None:
        """The networks initialise themselves."""


def register() -> None:
    """Make ``AutoConfig``, ``AutoModel`` and ``AutoModelForMaskedLM`` know these classes; may be called again."""
    AutoConfig.register(GiddConfig.model_type, GiddConfig, exist_ok=True)
    for auto in (AutoModel, AutoModelForMaskedLM):
        auto.register(GiddConfig, GiddForMaskedLM, exist_ok=True)
