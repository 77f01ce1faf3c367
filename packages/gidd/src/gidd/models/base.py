"""What the architectures share: configuration, rotary positions, attention masks, checks, saving and loading."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import CheckpointError, ConfigError

Rope = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes that every architecture has.

    Attributes
    ----------
    vocab_size : V, mask and special tokens included.
    hidden : width d.
    layers : number of blocks.
    pad_vocab_to : embedding and head have the next multiple of this many rows; 1 for none.
    max_seq_len : longest sequence the network takes.
    mlp_ratio : width of the MLP in units of d.
    """

    vocab_size: int
    hidden: int
    layers: int
    pad_vocab_to: int = 128
    max_seq_len: int = 512
    mlp_ratio: int = 4

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden", "layers", "pad_vocab_to", "max_seq_len", "mlp_ratio"):
            require_positive(self, name)

    @property
    def padded_vocab_size(self) -> int:
        """Vp: rows of the embedding and columns of the logits."""
        return -(-self.vocab_size // self.pad_vocab_to) * self.pad_vocab_to

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of :meth:`to_dict`; ConfigError names keys that are unknown or missing."""
        if not isinstance(values, dict):
            raise ConfigError(f"{cls.__name__} needs a mapping; got {type(values).__name__}")
        known = {field.name for field in fields(cls)}
        required = {field.name for field in fields(cls) if field.default is MISSING}
        wrong = [f"unknown {name!r}" for name in sorted(values.keys() - known)]
        wrong += [f"missing {name!r}" for name in sorted(required - values.keys())]
        if wrong:
            raise ConfigError(f"{cls.__name__}: {', '.join(wrong)}; the keys are {', '.join(sorted(known))}")
        return cls(**values)

    def _refuse(self, name: str, what: str) -> None:
        raise ConfigError(f"{type(self).__name__}.{name} {what}; got {getattr(self, name)!r}")


def require_positive(config: ModelConfig, name: str) -> None:
    """ConfigError unless the field is an integer of at least 1."""
    value = getattr(config, name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        config._refuse(name, "has to be a positive integer")


class Backbone(nn.Module, ABC):
    """A network ``model(z, t) -> logits``, split into hidden states and a linear head.

    ``logits = hidden(z, t) @ head.weight.T + head.bias`` always, so that
    :func:`gidd.fused_linear_gidd_loss` can do the last step a few tokens at a time.

    Attributes
    ----------
    head : linear layer of (Vp, d).
    activation_checkpointing : compute blocks again in backward instead of keeping their activations.
    """

    architecture: ClassVar[str]
    config_type: ClassVar[type[ModelConfig]]
    config: Any
    embed: nn.Embedding
    head: nn.Linear

    def __init__(self, config: ModelConfig, activation_checkpointing: bool = False) -> None:
        super().__init__()
        if not isinstance(config, self.config_type):
            raise ConfigError(f"{type(self).__name__} needs a {self.config_type.__name__}; got {type(config).__name__}")
        self.activation_checkpointing = activation_checkpointing

    @abstractmethod
    def hidden(self, z: Tensor, t: Tensor) -> Tensor:
        """(B, L, d) states from which ``head`` makes logits."""

    def num_parameters(self, embeddings: bool = True) -> int:
        """Number of parameters; ``embeddings=False`` leaves out the token embedding and the head."""
        total = sum(p.numel() for p in self.parameters())
        if embeddings:
            return total
        return total - self.embed.weight.numel() - sum(p.numel() for p in self.head.parameters())

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``model.safetensors`` and ``config.json``; see :func:`gidd.hub.save_checkpoint` to add the process."""
        from ..hub import save_checkpoint

        save_checkpoint(folder, self, None)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> Self:
        """The network of a checkpoint folder or Hub repository, in evaluation mode, on the CPU, in the stored dtype.

        Raises
        ------
        CheckpointError
            Nothing there, damaged, or another architecture.
        """
        from ..hub import load_model

        model = load_model(source)
        if not isinstance(model, cls):
            raise CheckpointError(f"{source} holds a {type(model).__name__}, no {cls.__name__}")
        return model

    def _run(self, block: Callable[..., Any], *inputs: Any) -> Any:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)


# --- pieces ---------------------------------------------------------------------------------------------------------


def rope(length: int, head_dim: int, device: torch.device, start: int = 0) -> Rope:
    """cos and sin (length, head_dim / 2) float32 of rotary positions start, start + 1, ...; base 10^4.

    Computed when needed: a buffer would be rounded by ``model.to(torch.bfloat16)`` and lost on the meta device.
    """
    frequencies = 1.0 / 10_000.0 ** (torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)
    angles = torch.arange(start, start + length, dtype=torch.float32, device=device)[:, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: Rope) -> Tensor:
    """Rotate pairs (i, i + head_dim / 2) of queries or keys (B, L, H, head_dim)."""
    cos, sin = (part[:, None] for part in rotation)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def at_least_float32(x: Tensor) -> Tensor:
    """float64 stays, everything else becomes float32: the precision of norms and softmax."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def expand_mask(mask: Tensor | None, z: Tensor) -> Tensor | None:
    """(B, L) "this token exists" or (B, L, L) "query may look at key" -> bool, broadcastable to (B, H, L, L)."""
    if mask is None:
        return None
    batch, length = z.shape
    if tuple(mask.shape) not in ((batch, length), (batch, length, length)):
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}; it has to be (B, L) or (B, L, L) for B, L = {batch, length}"
        )
    return mask.bool()[:, None, None, :] if mask.dim() == 2 else mask.bool()[:, None]


def check_tokens(z: Tensor, config: ModelConfig, longest: int | None = None) -> None:
    """ValueError unless z holds ids (B, L) the network knows; ids are looked at on the CPU only, to keep GPUs busy."""
    if z.dim() != 2 or z.is_floating_point() or z.dtype == torch.bool:
        raise ValueError(f"z has to hold integer ids of shape (B, L); got {z.dtype} of shape {tuple(z.shape)}")
    longest = config.max_seq_len if longest is None else longest
    if z.shape[1] > longest:
        raise ValueError(f"z has {z.shape[1]} tokens; max_seq_len={config.max_seq_len} leaves room for {longest}")
    if z.device.type == "cpu" and z.numel() and not torch.compiler.is_compiling():
        low, high = int(z.min()), int(z.max())
        if low < 0 or high >= config.padded_vocab_size:
            raise ValueError(f"z holds the id {low if low < 0 else high}, outside [0, {config.vocab_size})")
