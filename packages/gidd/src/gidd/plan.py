"""What a budget buys: sizes, batch, learning rate, hours and memory of a training run, from fitted scaling laws.

The laws are those of *Scaling Behavior of Discrete Diffusion Language Models* (arXiv:2512.10858), fitted to networks of
25M to 567M parameters of the follow-up's architecture on sequences of 2048 tokens, for five kinds of noise. They are
power laws of the compute C = M D, M the FLOPs per token without embedding and head, D the tokens seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from .errors import ConfigError
from .models.base import ModelConfig
from .models.dit import PRESETS as DIT_PRESETS
from .models.dit import TIME_FREQUENCIES, DiTConfig
from .models.scaling import PRESETS as SCALING_PRESETS
from .models.scaling import ScalingConfig


class Law(NamedTuple):
    """loss = loss_scale C^loss_power in nats per token, tokens D = token_scale C^token_power; M = C / D."""

    loss_scale: float
    loss_power: float
    token_scale: float
    token_power: float

    def loss(self, flops: float) -> float:
        """Nats per token of the best model that ``flops`` can train, at a constant learning rate."""
        return float(self.loss_scale * flops**self.loss_power)

    def tokens(self, flops: float) -> float:
        """Tokens that model sees."""
        return float(self.token_scale * flops**self.token_power)

    def flops(self, tokens: float) -> float:
        """Inverse of :meth:`tokens`."""
        return float((tokens / self.token_scale) ** (1 / self.token_power))


# Fits with M = non-embedding FLOPs per token, read in the authors' released code. The fitted law of the parameters has
# one or two digits only and is not used: parameters follow from M = C / D and an architecture.
LAWS = {
    "masked": Law(27.22, -0.0496, 56.8, 0.4337),
    "low-uniform": Law(29.12, -0.0509, 15.3, 0.4646),
    "balanced": Law(29.84, -0.0512, 14.5, 0.4664),
    "high-uniform": Law(30.19, -0.0514, 81.9, 0.4270),
    "uniform": Law(31.26, -0.0522, 161.9, 0.4112),
}
BATCH_LAW = (10**-2.4, 0.8225)  # B* = a D^b tokens, all kinds of noise together
LEARNING_RATE_LAWS = {"masked": (0.0104, 0.329), "uniform": (0.0072, 0.355)}  # eta* = a B^b, B in tokens
ANNEALING_GAIN = 0.0245  # relative gain in loss of annealing the learning rate at the end

# Peak dense bfloat16 FLOP/s, from NVIDIA's data sheets.
DEVICES = {"a100": 312e12, "h100": 989e12, "h200": 989e12, "b200": 2250e12, "l40s": 362e12, "rtx4090": 165e12}

_FITTED = (25e6, 570e6)  # parameters without embeddings
_HEAD_DIM, _ASPECT = 64, 64  # of the architectures the laws were fitted on: width = 64 layers, heads of 64


@dataclass(frozen=True)
class Plan:
    """A training run; plain numbers.

    Attributes
    ----------
    noise, arch : as asked for.
    flops : compute C, embedding and head not counted (what the laws are in).
    tokens : D, tokens seen in training.
    layers, hidden : sizes of the network.
    params, params_non_embedding : parameters, with and without token embedding and head.
    flops_per_token : M, three forward passes, embedding and head not counted.
    loss : nats per token of the compute-optimal model for C, at a constant learning rate. A run away from the optimum
        (``off_optimum`` far from 1) does worse.
    loss_annealed : the same with an annealed learning rate.
    optimal_tokens : D* of the fitted law for C; ``tokens`` differs, since networks have whole layers and C = M D.
    off_optimum : tokens over compute-optimal tokens.
    batch_tokens, batch_sequences : B* = 10^-2.4 D^0.8225, in whole sequences of ``seq_len``.
    learning_rate : for LaProp on the follow-up's architecture (factor 0.02 of it for embedding and norms); None for the
        DiT, for which no law was fitted (the paper trains it with AdamW at 5e-4).
    steps : tokens / batch_tokens.
    gpu_hours : device hours at ``mfu`` of ``peak_flops``, head and embedding counted.
    memory_gb : 10^9 bytes per device for ``sequences_per_device``: "state" (fp32 weights, gradients, two moments),
        "activations", "logits", "total".
    notes : what to know about the numbers.
    """

    noise: str
    arch: str
    seq_len: int
    vocab_size: int
    flops: float
    tokens: float
    layers: int
    hidden: int
    params: int
    params_non_embedding: int
    flops_per_token: float
    loss: float
    loss_annealed: float
    optimal_tokens: float
    off_optimum: float
    batch_tokens: int
    batch_sequences: int
    learning_rate: float | None
    steps: int
    mfu: float
    peak_flops: float
    gpu_hours: float
    sequences_per_device: int
    memory_gb: dict[str, float]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def plan(
    *,
    flops: float | None = None,
    tokens: float | None = None,
    noise: str = "balanced",
    arch: str = "scaling",
    vocab_size: int = 50_258,
    seq_len: int | None = None,
    device: str = "h100",
    peak_flops: float | None = None,
    mfu: float = 0.33,
    sequences_per_device: int = 8,
    activation_checkpointing: bool = False,
) -> Plan:
    """The compute-optimal run for a budget, or the run of a given network.

    Parameters
    ----------
    flops, tokens : the budget; exactly one. FLOPs are counted without embedding and head.
    noise : one of masked, low-uniform, balanced, high-uniform, uniform.
    arch : "scaling" or "dit": of a size that the budget is optimal for; or one size: 25M, 49M, 85M, 201M, 567M
        (scaling), tiny, small, base, 1B (DiT).
    vocab_size : V; matters to parameters, memory and hours, not to the laws.
    seq_len : tokens of a sequence; default 2048 for scaling, 512 for DiT.
    device, peak_flops : one of ``DEVICES``, or its peak in FLOP/s.
    mfu : share of the peak that is reached, in (0, 1].
    sequences_per_device : sequences in one forward pass.
    activation_checkpointing : keep one tensor per block.

    Raises
    ------
    ConfigError
        Both budgets or none, numbers out of range, unknown names; a budget too small for any network.

    Examples
    --------
    >>> p = plan(flops=1e20, noise="masked")
    >>> f"{p.loss:.2f} nats, {p.tokens:.2e} tokens"
    '2.77 nats, 2.56e+10 tokens'
    """
    if (flops is None) == (tokens is None):
        raise ConfigError("give exactly one of flops and tokens")
    _require("flops" if tokens is None else "tokens", flops if tokens is None else tokens)
    law = LAWS.get(noise)
    if law is None:
        raise ConfigError(f"noise {noise!r} is not one of {', '.join(LAWS)}")
    _require("mfu", mfu, most=1.0)
    if peak_flops is None and device not in DEVICES:
        raise ConfigError(f"device {device!r} is not one of {', '.join(DEVICES)}; or give peak_flops")
    peak = float(DEVICES[device] if peak_flops is None else peak_flops)
    _require("peak_flops", peak)
    scaling = arch == "scaling" or arch in SCALING_PRESETS
    seq_len = (2048 if scaling else 512) if seq_len is None else seq_len
    counts = {"seq_len": seq_len, "vocab_size": vocab_size, "sequences_per_device": sequences_per_device}
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} has to be a positive integer; got {value!r}")

    if arch in ("scaling", "dit"):
        compute = float(flops) if flops is not None else law.flops(float(tokens or 0))
        config = _sized(arch, compute / law.tokens(compute), vocab_size, seq_len)
    else:
        config = _preset(arch, vocab_size, seq_len)
        compute = 0.0  # follows from the network below
    per_token = flops_per_token(config, seq_len, embedding=False)
    if tokens is not None:
        seen = float(tokens)
        compute = seen * per_token
    else:
        compute = float(flops or 0)
        seen = compute / per_token  # with the network rounded to whole layers, so that C = M D stays exact

    sequences = max(1, round(optimal_batch(seen) / seq_len))
    batch = sequences * seq_len
    rate, rate_note = _learning_rate(noise, batch) if scaling else (None, "")
    notes = ["losses are fitted on the follow-up's data and tokenizer: compare runs with them, not corpora"]
    if not scaling:
        notes.append("the laws were fitted on the scaling architecture; for the DiT they are a guide")
    if rate_note:
        notes.append(rate_note)
    body = num_parameters(config, embeddings=False)
    if not _FITTED[0] <= body <= _FITTED[1]:
        notes.append(f"extrapolated: {body / 1e6:,.0f}M parameters without embeddings; the laws are fitted to 25M-567M")
    loss = law.loss(compute)
    return Plan(
        noise=noise,
        arch=arch,
        seq_len=seq_len,
        vocab_size=vocab_size,
        flops=compute,
        tokens=seen,
        layers=config.layers,
        hidden=config.hidden,
        params=num_parameters(config),
        params_non_embedding=body,
        flops_per_token=per_token,
        loss=loss,
        loss_annealed=loss * (1 - ANNEALING_GAIN),
        optimal_tokens=law.tokens(compute),
        off_optimum=seen / law.tokens(compute),
        batch_tokens=batch,
        batch_sequences=sequences,
        learning_rate=rate,
        steps=max(1, math.ceil(seen / batch)),
        mfu=mfu,
        peak_flops=peak,
        gpu_hours=seen * flops_per_token(config, seq_len) / (mfu * peak) / 3600,
        sequences_per_device=sequences_per_device,
        memory_gb=memory(config, seq_len, sequences_per_device, activation_checkpointing),
        notes=tuple(notes),
    )


def optimal_batch(tokens: float) -> float:
    """B* in tokens for a run over ``tokens`` tokens."""
    _require("tokens", tokens)
    scale, power = BATCH_LAW
    return float(scale * tokens**power)


def learning_rate(noise: str, batch_tokens: float) -> float:
    """LaProp's learning rate for a batch of so many tokens.

    Fitted for masked and uniform noise. For kinds in between, this is the geometric mean of the two, which are within
    14 % of each other for batches of 10^4 to 10^7 tokens.
    """
    _require("batch_tokens", batch_tokens)
    if noise not in LAWS:
        raise ConfigError(f"noise {noise!r} is not one of {', '.join(LAWS)}")
    chosen = [LEARNING_RATE_LAWS[noise]] if noise in LEARNING_RATE_LAWS else list(LEARNING_RATE_LAWS.values())
    return math.prod(scale * batch_tokens**power for scale, power in chosen) ** (1 / len(chosen))


def flops_per_sample(config: ModelConfig, seq_len: int | None = None, embedding: bool = True) -> float:
    """FLOPs of one training sequence, forward and backward: three times the forward pass.

    Forward, with L tokens, width d, h heads, MLP ratio r: embedding 2 L V d, per layer 6 L d^2 (q, k, v) + 4 L^2 d
    (scores and values) + 3 h L^2 (softmax) + 2 L d^2 (output) + 4 r L d^2 (MLP), head 2 L d V (the accounting of
    Hoffmann et al. 2022, arXiv:2203.15556, appendix F, which counts the embedding as a product with one-hot vectors);
    the DiT's time embedding and modulation are counted once per sequence.

    Parameters
    ----------
    seq_len : L; default ``config.max_seq_len``.
    embedding : count embedding and head, with the padded vocabulary.
    """
    length = config.max_seq_len if seq_len is None else seq_len
    d, layers, heads = config.hidden, config.layers, _heads(config)
    layer = (8 + 4 * config.mlp_ratio) * length * d * d + 4 * length**2 * d + 3 * heads * length**2
    forward = float(layers * layer)
    if embedding:
        forward += 4 * length * config.padded_vocab_size * d
    if isinstance(config, DiTConfig):
        c = config.cond_dim
        forward += 2 * c * (TIME_FREQUENCIES + c) + layers * 12 * c * d + 4 * c * d
    return 3 * forward


def flops_per_token(config: ModelConfig, seq_len: int | None = None, embedding: bool = True) -> float:
    """M: :func:`flops_per_sample` over the tokens of the sequence."""
    return flops_per_sample(config, seq_len, embedding) / (config.max_seq_len if seq_len is None else seq_len)


def num_parameters(config: ModelConfig, embeddings: bool = True) -> int:
    """Parameters of the network of a configuration, without building it; ``embeddings`` counts embedding and head."""
    d, vp, r = config.hidden, config.padded_vocab_size, config.mlp_ratio
    linear = (4 + 2 * r) * d * d
    if isinstance(config, DiTConfig):
        c = config.cond_dim
        block = linear + (r + 1) * d + 2 * d + 6 * d * (c + 1)  # + MLP biases, norms, modulation
        rest = (TIME_FREQUENCIES + 1) * c + (c + 1) * c + d + 2 * d * (c + 1)
        rest += config.max_seq_len * d if config.position_embedding == "learned" else 0
        head = (d + 1) * vp
    elif isinstance(config, ScalingConfig):
        block = linear + 4 * d + 2 * d + ((r + 1) * d if config.mlp_bias else 0)  # + norms, sinks, MLP biases
        rest = d
        head = d * vp
    else:
        raise ConfigError(f"no parameter count for {type(config).__name__}")
    return config.layers * block + rest + (vp * d + head if embeddings else 0)


def memory(
    config: ModelConfig, seq_len: int, sequences: int, activation_checkpointing: bool = False
) -> dict[str, float]:
    """Estimate of the bytes / 10^9 on one device that holds the whole model; good to about a third.

    state: 16 bytes a parameter (fp32 weights and gradients, two fp32 moments). activations: 34 bytes per token, layer
    and unit of width (Korthikanti et al. 2022, arXiv:2205.05198, bf16, attention scores not kept); the scaling
    architecture keeps its L x L scores, about 16 bytes each; with checkpointing only 2 bytes per token, layer and unit,
    and one layer in full. logits: bf16, with the gradient written over them.
    """
    tokens, d = sequences * seq_len, config.hidden
    layer = 34.0 * tokens * d
    if isinstance(config, ScalingConfig):
        layer += 16.0 * _heads(config) * tokens * seq_len
    kept = config.layers * 2.0 * tokens * d + layer if activation_checkpointing else config.layers * layer
    parts = {
        "state": 16.0 * num_parameters(config),
        "activations": kept,
        "logits": 2.0 * tokens * config.padded_vocab_size,
    }
    parts["total"] = sum(parts.values())
    return {name: value / 1e9 for name, value in parts.items()}


# --- sizes ------------------------------------------------------------------------------------------------------------


def _sized(arch: str, per_token: float, vocab_size: int, seq_len: int) -> ModelConfig:
    """The network of the family width = 64 layers whose M is nearest, in ratio."""
    best: ModelConfig | None = None
    gap = math.inf
    for layers in range(1, 257):
        config = _family(arch)(layers, vocab_size, seq_len)
        off = abs(math.log(flops_per_token(config, seq_len, embedding=False) / per_token))
        if off > gap:
            break
        best, gap = config, off
    if best is None or gap > math.log(2):
        raise ConfigError(
            f"the budget asks for a network of {per_token:.2e} FLOPs per token, which is outside the sizes known here"
        )
    return best


def _family(arch: str) -> Callable[[int, int, int], ModelConfig]:
    def scaling(layers: int, vocab_size: int, seq_len: int) -> ModelConfig:
        return ScalingConfig(
            vocab_size=vocab_size, hidden=_ASPECT * layers, layers=layers, head_dim=_HEAD_DIM, max_seq_len=seq_len
        )

    def dit(layers: int, vocab_size: int, seq_len: int) -> ModelConfig:
        return DiTConfig(
            vocab_size=vocab_size, hidden=_ASPECT * layers, layers=layers, heads=layers, max_seq_len=seq_len
        )

    return scaling if arch == "scaling" else dit


def _preset(arch: str, vocab_size: int, seq_len: int) -> ModelConfig:
    if arch in SCALING_PRESETS:
        return ScalingConfig.preset(arch, vocab_size, max_seq_len=seq_len)
    if arch in DIT_PRESETS:
        return DiTConfig.preset(arch, vocab_size, max_seq_len=seq_len)
    raise ConfigError(f"arch {arch!r} is not one of scaling, dit, {', '.join([*SCALING_PRESETS, *DIT_PRESETS])}")


def _heads(config: ModelConfig) -> int:
    if isinstance(config, DiTConfig):
        return config.heads
    if isinstance(config, ScalingConfig):
        return config.hidden // config.head_dim
    raise ConfigError(f"no FLOP count for {type(config).__name__}")


def _learning_rate(noise: str, batch: int) -> tuple[float, str]:
    fitted = noise in LEARNING_RATE_LAWS
    note = "" if fitted else f"no law for the learning rate with {noise} noise: the mean of masked and uniform is given"
    return learning_rate(noise, batch), note


def _require(name: str, value: float | None, most: float = math.inf) -> None:
    ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and 0 < value <= most
    if not ok:
        limit = "" if most == math.inf else f" and at most {most:g}"
        raise ConfigError(f"{name} has to be a positive number{limit}; got {value!r}")
