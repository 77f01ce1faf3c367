"""The paper's network: a transformer over noisy tokens, modulated by the time (arXiv:2503.04482, appendix).

It is the diffusion transformer of Peebles & Xie (arXiv:2212.09748) as SEDD and MDLM use it for text, and computes the
same function as the authors' released checkpoints, which :mod:`gidd.hub` reads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from .base import (
    Backbone,
    ModelConfig,
    Rope,
    at_least_float32,
    check_tokens,
    expand_mask,
    require_positive,
    rope,
    rotate,
)

PRESETS = {"tiny": (512, 8, 8), "small": (768, 12, 12), "base": (1024, 24, 16), "1B": (2048, 24, 32)}
POSITION_EMBEDDINGS = ("none", "learned")
TIME_FREQUENCIES = 256


@dataclass(frozen=True, kw_only=True)
class DiTConfig(ModelConfig):
    """Sizes of a :class:`DiT`.

    Attributes
    ----------
    heads : attention heads; hidden / heads has to be even.
    cond_dim : width of the time's embedding.
    position_embedding : "none" (the paper: rotary positions in attention only) or "learned", which adds a vector per
        absolute position to the tokens. Needed where a position means more than a distance: cell l of an n x n Latin
        square is row l // n and column l % n, and a free vector for each cell contains any embedding of the two.
    dropout : of both branches of a block.

    Examples
    --------
    >>> DiTConfig.preset("small", vocab_size=50258).padded_vocab_size
    50304
    """

    heads: int
    cond_dim: int = 128
    position_embedding: str = "none"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "heads")
        require_positive(self, "cond_dim")
        if self.hidden % (2 * self.heads):
            self._refuse("heads", f"has to split hidden={self.hidden} into parts of even size")
        if self.position_embedding not in POSITION_EMBEDDINGS:
            self._refuse("position_embedding", f"has to be one of {', '.join(POSITION_EMBEDDINGS)}")
        if not 0.0 <= self.dropout < 1.0:
            self._refuse("dropout", "has to lie in [0, 1)")

    @classmethod
    def preset(cls, name: str, vocab_size: int, pad_vocab_to: int = 128, **overrides: Any) -> Self:
        """One of the paper's sizes: tiny, small, base, 1B."""
        if name not in PRESETS:
            raise ConfigError(f"preset {name!r} is not one of {', '.join(PRESETS)}")
        hidden, layers, heads = PRESETS[name]
        sizes: dict[str, Any] = {"hidden": hidden, "layers": layers, "heads": heads}
        return cls.from_dict({"vocab_size": vocab_size, "pad_vocab_to": pad_vocab_to, **sizes, **overrides})


class DiT(Backbone):
    """Logits (B, L, Vp) of the clean tokens, from noisy tokens z (B, L) and times t.

    Every block adds ``gate * f(norm(h) (1 + scale) + shift)`` for f = attention and f = MLP, with shift, scale and gate
    linear in the time's embedding. These, and the head, start at zero: an untrained network predicts all tokens alike.

    Examples
    --------
    >>> model = DiT(DiTConfig(vocab_size=6, hidden=32, layers=2, heads=2))
    >>> model(torch.zeros(3, 5, dtype=torch.long), torch.rand(3)).shape
    torch.Size([3, 5, 128])
    """

    architecture = "dit"
    config_type = DiTConfig

    def __init__(self, config: DiTConfig, activation_checkpointing: bool = False) -> None:
        super().__init__(config, activation_checkpointing)
        self.config = config
        self.embed = nn.Embedding(config.padded_vocab_size, config.hidden)
        nn.init.kaiming_uniform_(self.embed.weight, a=math.sqrt(5))
        self.positions = None
        if config.position_embedding == "learned":
            self.positions = nn.Embedding(config.max_seq_len, config.hidden)
            nn.init.normal_(self.positions.weight, std=0.02)
        self.time = nn.Sequential(
            nn.Linear(TIME_FREQUENCIES, config.cond_dim), nn.SiLU(), nn.Linear(config.cond_dim, config.cond_dim)
        )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = LayerNorm(config.hidden)
        self.adaln = _zero(nn.Linear(config.cond_dim, 2 * config.hidden))
        self.head = _zero(nn.Linear(config.hidden, config.padded_vocab_size))

    def forward(self, z: Tensor, t: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits (B, L, Vp).

        Parameters
        ----------
        z : (B, L) integer ids, L <= max_seq_len.
        t : (B,) times in [0, 1], or (B, L), a time for each token.
        attention_mask : (B, L) bool, True where a token may be looked at; or (B, L, L) for each query and key.
        """
        logits: Tensor = self.head(self.hidden(z, t, attention_mask))
        return logits

    def hidden(self, z: Tensor, t: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, L, d) from which ``head`` makes the logits; arguments as in :meth:`forward`."""
        check_tokens(z, self.config)
        if t.shape not in (z.shape[:1], z.shape):
            raise ValueError(f"t has shape {tuple(t.shape)}; it has to be (B,) or (B, L) for B, L = {tuple(z.shape)}")
        mask = expand_mask(attention_mask, z)
        rotation = rope(z.shape[1], self.config.hidden // self.config.heads, z.device)
        c = F.silu(self.time(time_embedding(t[:, None] if t.dim() == 1 else t).to(self.adaln.weight.dtype)))
        h = self.embed(z)
        if self.positions is not None:
            h = h + self.positions.weight[: z.shape[1]]
        for block in self.blocks:
            h = self._run(block, h, c, rotation, mask)
        shift, scale = self.adaln(c).chunk(2, dim=-1)
        return self.norm(h, shift, scale)


class Block(nn.Module):
    """h + gate attention(norm(h)), then h + gate MLP(norm(h))."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        d = config.hidden
        self.heads, self.dropout = config.heads, config.dropout
        self.norm1 = LayerNorm(d)
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.out = nn.Linear(d, d, bias=False)
        self.norm2 = LayerNorm(d)
        self.mlp = nn.Sequential(
            nn.Linear(d, config.mlp_ratio * d), nn.GELU(approximate="tanh"), nn.Linear(config.mlp_ratio * d, d)
        )
        self.adaln = _zero(nn.Linear(config.cond_dim, 6 * d))

    def forward(self, h: Tensor, c: Tensor, rotation: Rope, mask: Tensor | None) -> Tensor:
        """h (B, L, d); c (B, 1, cond) or (B, L, cond)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaln(c).chunk(6, dim=-1)
        h = h + gate1 * self._drop(self._attention(self.norm1(h, shift1, scale1), rotation, mask))
        return h + gate2 * self._drop(self.mlp(self.norm2(h, shift2, scale2)))

    def _attention(self, h: Tensor, rotation: Rope, mask: Tensor | None) -> Tensor:
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).unbind(dim=2)
        q, k = rotate(q, rotation), rotate(k, rotation)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        projected: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return projected

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class LayerNorm(nn.Module):
    """norm(h) weight (1 + scale) + shift, in float32; no bias of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """h (B, L, d); shift and scale broadcastable to it."""
        normed = F.layer_norm(at_least_float32(h), self.weight.shape) * self.weight
        return (normed * (1 + scale) + shift).to(h.dtype)


def time_embedding(t: Tensor) -> Tensor:
    """(...) -> (..., 256): cosines, then sines, of t times 10^0 ... 10^-4; t itself, not 1000 t, as the authors do."""
    half = TIME_FREQUENCIES // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
