"""A finished text, read again: fixed-point and Gibbs correction, and the probability that a token is wrong.

An ELBO-trained model predicts a token from all *others*: x_theta(z)_l = P(x_l | z without z_l, t). So a visible token
can be judged (arXiv:2503.04482, section 5.3), drawn anew exactly, and given a calibrated error probability.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..process import Process
from .predict import Model, clean_logits, draw, sharpen
from .streams import Streams

STRATEGIES = ("fixed_point", "gibbs")


class CorrectionOutput(NamedTuple):
    """What correction did.

    tokens : (B, L);  initial_accuracy, final_accuracy : (B,) share of tokens that are the model's first choice;
    num_changed : (B,) positions that differ from the input;  num_steps : (B,);  stop_reason : "converged", "patience"
    or "max_steps" of every sequence;  num_model_calls : of the batch.
    """

    tokens: Tensor
    initial_accuracy: Tensor
    final_accuracy: Tensor
    num_changed: Tensor
    num_steps: Tensor
    stop_reason: list[str]
    num_model_calls: int


@torch.no_grad()
def self_correct(
    model: Model,
    process: Process,
    tokens: Tensor,
    *,
    max_steps: int = 128,
    temperature: float = 0.1,
    t0: float = 0.01,
    tokens_per_step: int = 1,
    patience: int = 32,
    strategy: str = "fixed_point",
    x0_kind: str = "loo",
    frozen: Tensor | None = None,
    return_best: bool = False,
    generator: torch.Generator | None = None,
) -> CorrectionOutput:
    """Let the model replace tokens it disagrees with, until it agrees with all, stops improving, or max_steps.

    Parameters
    ----------
    tokens : (B, L) finished sequences.
    temperature : of the proposals of "fixed_point"; low, the paper's is 0.1.
    t0 : noise level that the model is told.
    tokens_per_step : replacements per sequence and step, at most L.
    patience : stop once self-accuracy has not exceeded its best for more than this many steps in a row.
    strategy : "fixed_point" (a proposal for every position; the most probable that differ are taken) or "gibbs"
        (positions whose token is least probable are drawn anew from alpha x_theta + b, the mask excluded).
    x0_kind : "loo" for a model trained on the ELBO; "plain" for one trained with plain cross-entropy, whose opinion on
        a visible token contains that token: ln(1 + alpha/b) is subtracted from its logit.
    frozen : (B, L) bool, positions never changed.
    return_best : return the state of highest self-accuracy instead of the last.

    Raises
    ------
    ValueError
        Arguments out of range; x0_kind="plain" for a process without noise on visible tokens.
    """
    z = _tokens(tokens, process)
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy {strategy!r} is not one of {', '.join(STRATEGIES)}")
    for name, value, least in (
        ("max_steps", max_steps, 0),
        ("tokens_per_step", tokens_per_step, 1),
        ("patience", patience, 0),
    ):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} has to be an integer of at least {least}; got {value!r}")
    batch, length = z.shape
    if batch and tokens_per_step > length:
        raise ValueError(f"tokens_per_step = {tokens_per_step} is more than the {length} tokens of a sequence")
    time = _level(t0, z)
    fixed = torch.zeros_like(z, dtype=torch.bool) if frozen is None else _frozen(frozen, z)
    z = z.clone()
    best_z, best = z.clone(), torch.full((batch,), -1.0, device=z.device)
    initial, final = torch.zeros(batch, device=z.device), torch.zeros(batch, device=z.device)
    steps, stalled = (torch.zeros(batch, dtype=torch.long, device=z.device) for _ in range(2))
    reason = ["max_steps"] * batch
    active = torch.arange(batch, device=z.device) if length else torch.zeros(0, dtype=torch.long, device=z.device)
    streams = Streams.of(generator, batch, z.device).select(active)
    calls = 0
    for step in range(max_steps + 1):
        if len(active) == 0:
            break
        now = z[active]
        logits = _loo(clean_logits(model, now, t0, process), now, time, process, x0_kind)
        calls += 1
        accuracy = (logits.argmax(-1) == now).float().mean(1)
        if step == 0:
            initial[active] = accuracy
        final[active] = accuracy
        better = accuracy > best[active]
        best_z[active[better]], best[active[better]] = now[better], accuracy[better]
        stalled[active] = torch.where(better, 0, stalled[active] + 1)
        if step == max_steps:
            break
        new, settled = _propose(
            logits, now, time, process, fixed[active], streams, temperature, tokens_per_step, strategy
        )
        tired = stalled[active] > patience
        for i in active[settled].tolist():
            reason[i] = "converged"
        for i in active[~settled & tired].tolist():
            reason[i] = "patience"
        going = ~settled & ~tired
        z[active[going]] = new[going]
        steps[active[going]] += 1
        active, streams = active[going], streams.select(going)
    if return_best:
        z, final = best_z, best.clamp_min(0.0)
    return CorrectionOutput(z, initial, final, (z != tokens).sum(1), steps, reason, calls)


def _propose(
    logits: Tensor,
    z: Tensor,
    t: Tensor,
    process: Process,
    fixed: Tensor,
    streams: Streams,
    temperature: float,
    count: int,
    strategy: str,
) -> tuple[Tensor, Tensor]:
    """The next state (b, L), and (b,) whether every proposal is what stands there already."""
    u = streams.uniform(z.shape[1])
    if strategy == "gibbs":
        log_p = logits.log_softmax(-1)
        doubt = -log_p.gather(-1, z[..., None])[..., 0]
        doubt = doubt.nan_to_num(posinf=torch.finfo(doubt.dtype).max).masked_fill(fixed, -torch.inf)
        places = doubt.topk(count, dim=1).indices
        chosen = torch.zeros_like(fixed).scatter_(1, places, True) & ~fixed
        new = z.clone()
        new[chosen] = draw(_noisy(log_p[chosen], t, process), u[chosen])
        return new, torch.zeros(len(z), dtype=torch.bool, device=z.device)
    log_p = sharpen(logits, temperature)
    proposal = draw(log_p.flatten(0, 1), u.flatten()).reshape(z.shape)
    score = log_p.gather(-1, proposal[..., None])[..., 0].exp()
    differs = (proposal != z) & ~fixed
    score = torch.where(differs, score, 0.0)
    top, places = score.topk(count, dim=1)
    chosen = torch.zeros_like(fixed).scatter_(1, places, top > 0)
    return torch.where(chosen, proposal, z), ~differs.any(1)


def _noisy(log_p: Tensor, t: Tensor, process: Process, mask: bool = False) -> Tensor:
    """log (alpha x_theta + b) of (M, V); without the mask token unless asked for."""
    mixed = process.alpha(t) * log_p.double().exp() + process.noise_vector(t)
    if process.mask_id is not None and not mask:
        mixed = mixed.index_fill(-1, torch.tensor([process.mask_id], device=mixed.device), 0.0)
    return mixed.log()


@torch.no_grad()
def gibbs(
    model: Model,
    process: Process,
    tokens: Tensor,
    t: float,
    num_updates: int,
    *,
    select: str = "random",
    frozen: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Redraw one position of every sequence, ``num_updates`` times, from alpha_t x_theta + b_t.

    With select="random" and an exact leave-one-out model this leaves the marginal p_t of the process invariant: it is a
    Gibbs sampler, and may be mixed with ancestral steps at any t. select="lowest" takes the least probable token.

    Parameters
    ----------
    tokens : (B, L) states at time t, masks included.
    frozen : (B, L) bool, positions never drawn.
    """
    if select not in ("random", "lowest"):
        raise ValueError(f"select {select!r} is not 'random' or 'lowest'")
    if not isinstance(num_updates, int) or num_updates < 0:
        raise ValueError(f"num_updates has to be a non-negative integer; got {num_updates!r}")
    z = _tokens(tokens, process).clone()
    time = _level(t, z)
    fixed = torch.zeros_like(z, dtype=torch.bool) if frozen is None else _frozen(frozen, z)
    streams = Streams.of(generator, len(z), z.device)
    rows = (~fixed).any(1).nonzero()[:, 0]
    if z.numel() == 0 or len(rows) == 0:
        return z
    for _ in range(num_updates):
        log_p = clean_logits(model, z, t, process).log_softmax(-1)
        place, value = streams.uniform(z.shape[1]), streams.uniform(1)[:, 0]
        if select == "random":
            at = place.masked_fill(fixed, -1.0).argmax(1)
        else:
            mass = _noisy(log_p.flatten(0, 1), time, process, mask=True).reshape(log_p.shape)
            at = mass.gather(-1, z[..., None])[..., 0].masked_fill(fixed, torch.inf).argmin(1)
        own = log_p[rows, at[rows]]
        z[rows, at[rows]] = draw(_noisy(own, time, process, mask=True), value[rows])
    return z


@torch.no_grad()
def token_error_probs(
    model: Model, process: Process, tokens: Tensor, t0: float = 0.01, error_rate: float | None = None
) -> Tensor:
    """(B, L) probability that each token is wrong: 1 - P(x_l = z_l | z) = 1 - (alpha + b) p / (alpha p + b).

    Here p = x_theta(z_l), the model's leave-one-out probability of the token, and b the noise that would put it there.
    Masks get 1; visible tokens of a process without noise on them get 0.

    Parameters
    ----------
    tokens : (B, L).
    error_rate : in the place of the process's own b / (alpha + b) at t0: how often a token stands where one particular
        other belongs, over how often it is right. Where a share e of all tokens is wrong, each of N wrong ones equally
        often, that is (e / N) / (1 - e).
    """
    if error_rate is not None and not 0 <= error_rate <= 1:
        raise ValueError(f"error_rate has to lie in [0, 1]; got {error_rate!r}")
    z = _tokens(tokens, process)
    time = _level(t0, z)
    p = clean_logits(model, z, t0, process).log_softmax(-1).gather(-1, z[..., None])[..., 0].double().exp()
    alpha, b = process.alpha(time).expand(z.shape), process.noise_at(z, time).expand(z.shape)
    if error_rate is not None:
        b = torch.where(b > 0, torch.as_tensor(error_rate, dtype=torch.float64, device=z.device), 0.0)
        alpha = 1 - b
    wrong = torch.where(b > 0, b * (1 - p) / (alpha * p + b).clamp_min(1e-300), 0.0)
    if process.mask_id is not None:
        wrong = torch.where(z == process.mask_id, 1.0, wrong)
    return wrong.clamp(0.0, 1.0)


def _loo(logits: Tensor, z: Tensor, t: Tensor, process: Process, kind: str) -> Tensor:
    """Leave-one-out logits; a plain posterior's logit of the visible token is lowered by ln(1 + alpha / b)."""
    if kind == "loo":
        return logits
    if kind != "plain":
        raise ValueError(f"x0_kind {kind!r} is not 'loo' or 'plain'")
    b = process.noise_at(z, t)
    visible = torch.ones_like(z, dtype=torch.bool) if process.mask_id is None else z != process.mask_id
    if bool((visible & (b <= 0)).any()):
        raise ValueError("x0_kind='plain' divides by the noise on visible tokens, which this process does not have")
    shift = torch.where(visible, torch.log1p(process.alpha(t) / b.clamp_min(1e-300)), 0.0).to(logits.dtype)
    return logits.scatter_add(-1, z[..., None], -shift[..., None])


def _tokens(tokens: Tensor, process: Process) -> Tensor:
    z = process.check_ids(tokens, "tokens")
    if z.dim() != 2:
        raise ValueError(f"tokens have to be (B, L); got shape {tuple(z.shape)}")
    return z


def _level(t: float, z: Tensor) -> Tensor:
    if not 0 < float(t) < 1:
        raise ValueError(f"the noise level t has to lie strictly between 0 and 1; got {t!r}")
    return torch.as_tensor(float(t), dtype=torch.float64, device=z.device)


def _frozen(frozen: Tensor, z: Tensor) -> Tensor:
    mask = torch.as_tensor(frozen, device=z.device)
    mask = mask[None].expand(z.shape) if mask.dim() == 1 else mask
    if mask.dtype != torch.bool or mask.shape != z.shape:
        raise ValueError(f"frozen has to be bool of shape {tuple(z.shape)}; got {mask.dtype} of {tuple(mask.shape)}")
    return mask
