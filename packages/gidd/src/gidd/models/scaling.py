"""The follow-up's network, made to scale: no time input, normed queries and keys, capped scores (arXiv:2512.10858)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

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

# Named after the parameters outside embedding and head: (layers, hidden).
PRESETS = {"25M": (8, 512), "49M": (10, 640), "85M": (12, 768), "201M": (16, 1024), "567M": (20, 1536)}


@dataclass(frozen=True, kw_only=True)
class ScalingConfig(ModelConfig):
    """Sizes and constants of a :class:`ScalingTransformer`.

    Attributes
    ----------
    head_dim : width of an attention head.
    soft_cap : attention scores s become soft_cap tanh(s / soft_cap).
    residual_scale : every branch is added residual_scale / layers times.
    head_scale : logits are multiplied by head_scale / hidden.
    weight_scale : factor of the weights of a block's linear layers; None for fan_in^-1/2, so that they start and move
        alike at any width.
    mlp_bias : whether the MLP has biases.
    norm_eps : added to the mean square in a norm.
    init, aux_init : standard deviations of a block's weights and of embedding and head. With a ``weight_scale`` of 1
        (the released models) ``init`` has to shrink with the width: 0.4 / hidden^1/2.
    """

    max_seq_len: int = 2048
    head_dim: int = 64
    soft_cap: float = 30.0
    residual_scale: float = 4.0
    head_scale: float = 512.0
    weight_scale: float | None = None
    mlp_bias: bool = True
    norm_eps: float = 1e-6
    init: float = 0.4
    aux_init: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "head_dim")
        if self.head_dim % 2 or self.hidden % self.head_dim:
            self._refuse("head_dim", f"has to be even and divide hidden={self.hidden}")
        for name in ("soft_cap", "residual_scale", "head_scale", "norm_eps"):
            if not getattr(self, name) > 0:
                self._refuse(name, "has to be positive")
        if self.weight_scale is not None and not self.weight_scale > 0:
            self._refuse("weight_scale", "has to be positive, or None for fan_in^-1/2")

    @classmethod
    def preset(cls, name: str, vocab_size: int, pad_vocab_to: int = 128, **overrides: Any) -> Self:
        """One of the follow-up's sizes, by the number of parameters outside embedding and head."""
        if name not in PRESETS:
            raise ConfigError(f"preset {name!r} is not one of {', '.join(PRESETS)}")
        layers, hidden = PRESETS[name]
        sizes: dict[str, Any] = {"hidden": hidden, "layers": layers}
        return cls.from_dict({"vocab_size": vocab_size, "pad_vocab_to": pad_vocab_to, **sizes, **overrides})


class PrefixCache(NamedTuple):
    """Keys and values (B, H, P, head_dim) of a clean prefix in every block, made by ``encode_prefix``."""

    keys: list[Tensor]
    values: list[Tensor]

    @property
    def length(self) -> int:
        """P."""
        return self.keys[0].shape[2]


class ScalingTransformer(Backbone):
    """Logits (B, L, Vp) of the clean tokens, from noisy tokens z (B, L) alone: how noisy they are shows.

    Trained with clean prompts, it lets a clean token look at clean tokens only, so that what it computes for a prompt
    does not depend on the noise and can be kept (:meth:`encode_prefix`).

    Examples
    --------
    >>> model = ScalingTransformer(ScalingConfig(vocab_size=6, hidden=64, layers=2, head_dim=32))
    >>> model(torch.zeros(3, 5, dtype=torch.long)).shape
    torch.Size([3, 5, 128])
    """

    architecture = "scaling"
    config_type = ScalingConfig

    def __init__(self, config: ScalingConfig, activation_checkpointing: bool = False) -> None:
        super().__init__(config, activation_checkpointing)
        self.config = config
        self.embed = nn.Embedding(config.padded_vocab_size, config.hidden)
        nn.init.normal_(self.embed.weight, std=config.aux_init)
        self.blocks = nn.ModuleList(ScalingBlock(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.hidden, config.norm_eps)
        self.head = nn.Linear(config.hidden, config.padded_vocab_size, bias=False)
        nn.init.normal_(self.head.weight, std=config.aux_init)

    def forward(
        self,
        z: Tensor,
        t: Tensor | None = None,
        attention_mask: Tensor | None = None,
        clean: Tensor | None = None,
        prefix: PrefixCache | None = None,
    ) -> Tensor:
        """Logits (B, L, Vp).

        Parameters
        ----------
        z : (B, L) integer ids, L <= max_seq_len.
        t : ignored; there so that all networks are called alike.
        attention_mask : (B, L) bool, True where a token may be looked at; or (B, L, L) for each query and key.
        clean : (B, L) bool, True at tokens of a clean prompt, which look at clean tokens only.
        prefix : cache of P clean tokens before z, instead of putting them into z; z is then at positions P, P + 1, ...
        """
        logits: Tensor = self.head(self.hidden(z, t, attention_mask, clean, prefix))
        return logits

    def hidden(
        self,
        z: Tensor,
        t: Tensor | None = None,
        attention_mask: Tensor | None = None,
        clean: Tensor | None = None,
        prefix: PrefixCache | None = None,
    ) -> Tensor:
        """(B, L, d) from which ``head`` makes the logits, scale included; arguments as in :meth:`forward`."""
        past = 0 if prefix is None else prefix.length
        check_tokens(z, self.config, self.config.max_seq_len - past)
        mask = expand_mask(attention_mask, z)
        if clean is not None:
            if clean.shape != z.shape:
                raise ValueError(f"clean has shape {tuple(clean.shape)}; it has to be (B, L) = {tuple(z.shape)}")
            may = (~clean.bool()[:, :, None] | clean.bool()[:, None, :])[:, None]
            mask = may if mask is None else mask & may
        if prefix is not None and mask is not None:
            raise ValueError("with a prefix all tokens look at everything: leave out attention_mask and clean")
        rotation = rope(z.shape[1], self.config.head_dim, z.device, past)
        h = self.embed(z)
        for i, block in enumerate(self.blocks):
            before = None if prefix is None else (prefix.keys[i], prefix.values[i])
            h, _ = self._run(block, h, rotation, mask, before)
        return self.norm(h) * (self.config.head_scale / self.config.hidden)

    def encode_prefix(self, tokens: Tensor) -> PrefixCache:
        """What later tokens need to know of clean ``tokens`` (B, P)."""
        check_tokens(tokens, self.config)
        rotation = rope(tokens.shape[1], self.config.head_dim, tokens.device)
        h, seen = self.embed(tokens), []
        for block in self.blocks:
            h, keys_values = block(h, rotation, None, None)
            seen.append(keys_values)
        return PrefixCache([k for k, _ in seen], [v for _, v in seen])


class ScalingBlock(nn.Module):
    """h + s attention(norm(h)), then h + s MLP(norm(h)), s = residual_scale / layers."""

    def __init__(self, config: ScalingConfig) -> None:
        super().__init__()
        d = config.hidden
        self.heads, self.soft_cap = d // config.head_dim, config.soft_cap
        self.scale = config.residual_scale / config.layers
        self.norm1 = RMSNorm(d, config.norm_eps)
        self.q = ScaledLinear(d, d, config)
        self.k = ScaledLinear(d, d, config)
        self.v = ScaledLinear(d, d, config)
        self.out = ScaledLinear(d, d, config)
        # Over the full width, before it is split into heads.
        self.q_norm = RMSNorm(d, config.norm_eps)
        self.k_norm = RMSNorm(d, config.norm_eps)
        # A key and value that belong to no token: where a head goes to look at nothing.
        self.sink_key = nn.Parameter(torch.zeros(self.heads, config.head_dim))
        self.sink_value = nn.Parameter(torch.zeros(self.heads, config.head_dim))
        self.norm2 = RMSNorm(d, config.norm_eps)
        self.up = ScaledLinear(d, config.mlp_ratio * d, config, bias=config.mlp_bias)
        self.down = ScaledLinear(config.mlp_ratio * d, d, config, bias=config.mlp_bias)

    def forward(
        self, h: Tensor, rotation: Rope, mask: Tensor | None, before: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """h (B, L, d) -> the same, and its keys and values (B, H, L, head_dim); ``before`` are those of a prefix."""
        normed = self.norm1(h)
        q, k, v = self.q_norm(self.q(normed)), self.k_norm(self.k(normed)), self.v(normed)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in (q, k, v))
        q, k, v = (part.transpose(1, 2) for part in (rotate(q, rotation), rotate(k, rotation), v))
        own = (k, v)
        if before is not None:
            k, v = torch.cat([before[0], k], dim=2), torch.cat([before[1], v], dim=2)
        h = h + self.scale * self.out(self._attention(q, k, v, mask).transpose(1, 2).flatten(2))
        return h + self.scale * self.down(F.relu(self.up(self.norm2(h))).square()), own

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Softmax attention by hand: the library's has neither a cap nor a sink."""
        sink_key, sink_value = (
            sink.to(k.dtype)[:, None].expand(len(k), -1, -1, -1) for sink in (self.sink_key, self.sink_value)
        )
        k, v = torch.cat([sink_key, k], dim=2), torch.cat([sink_value, v], dim=2)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        scores = self.soft_cap * torch.tanh(at_least_float32(scores) / self.soft_cap)
        if mask is not None:
            scores = scores.masked_fill(~F.pad(mask, (1, 0), value=True), -torch.inf)
        return scores.softmax(dim=-1).to(v.dtype) @ v


class ScaledLinear(nn.Linear):
    """scale W x + b; W starts with standard deviation ``init``, b at zero."""

    def __init__(self, inputs: int, outputs: int, config: ScalingConfig, bias: bool = False) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.scale = inputs**-0.5 if config.weight_scale is None else config.weight_scale
        nn.init.normal_(self.weight, std=config.init)
        if bias:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        y = F.linear(x, self.weight) * self.scale
        return y if self.bias is None else y + self.bias.to(y.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) (1 + weight), in float32; weight starts at zero."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> the same."""
        wide = at_least_float32(x)
        return (wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps) * (1 + self.weight)).to(x.dtype)
