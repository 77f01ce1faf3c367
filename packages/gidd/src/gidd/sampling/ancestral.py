"""Sampling: ancestral steps by routes, and the adaptive sampler of the follow-up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..process import HybridProcess, Process
from .predict import Model, clean_logits, draw, sharpen
from .streams import Streams

SAMPLERS = ("ancestral", "adaptive")


class SampleOutput(NamedTuple):
    """tokens : (B, L);  num_model_calls : of the whole batch;  trajectory : (steps + 1, B, L) states, or None."""

    tokens: Tensor
    num_model_calls: int
    trajectory: Tensor | None


def time_grid(process: Process, steps: int, grid: str | Tensor | Sequence[float] = "auto") -> Tensor:
    """(steps + 1,) float64 times from exactly 1 down to exactly 0.

    Parameters
    ----------
    grid : "linear" (the paper's), "cosine" (t = 1/2 - cos(pi u)/2), "power:k" (t = u^k, u uniform), "auto" (power:3
        where uniform noise enters as a root of t, else linear), or the times themselves.
    """
    if not isinstance(grid, str):
        times = torch.as_tensor(grid, dtype=torch.float64)
        if (
            times.shape != (steps + 1,)
            or float(times[0]) != 1.0
            or float(times[-1]) != 0.0
            or bool((times.diff() >= 0).any())
        ):
            raise ValueError(f"a grid of {steps} steps needs {steps + 1} falling times from exactly 1 to exactly 0")
        return times
    u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    if grid == "auto":
        grid = "power:3" if isinstance(process, HybridProcess) and process.p_uniform > 0 else "linear"
    if grid == "linear":
        return u
    if grid == "cosine":
        times = 0.5 - 0.5 * torch.cos(torch.pi * u)
        times[0], times[-1] = 1.0, 0.0
        return times
    kind, _, power = grid.partition(":")
    try:
        exponent = float(power)
    except ValueError:
        exponent = -1.0
    if kind != "power" or exponent <= 0:
        raise ValueError(f"grid {grid!r} is not auto, linear, cosine or power:k with k > 0")
    return u**exponent


@torch.no_grad()
def sample(
    model: Model,
    process: Process,
    shape: tuple[int, int],
    steps: int = 128,
    *,
    sampler: str = "ancestral",
    grid: str | Tensor | Sequence[float] = "auto",
    prompt: Tensor | None = None,
    frozen: Tensor | None = None,
    temperature: float = 1.0,
    top_p: float | None = None,
    top_k: int | None = None,
    min_prob: float = 0.0,
    guidance: Callable[[Tensor, Tensor, float], Tensor] | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    return_trajectory: bool = False,
    callback: Callable[[int, float, Tensor], None] | None = None,
) -> SampleOutput:
    """Generate sequences from the prior pi_1 down to t = 0.

    Parameters
    ----------
    model : model(z (B, L) long, t (B,) float) -> logits (B, L, Vp).
    shape : (B, L).
    steps : T; the ancestral sampler calls the model exactly T times.
    sampler : "ancestral", or "adaptive" (every step changes the positions where the model is surest that something else
        belongs there).
    grid : see :func:`time_grid`.
    prompt : ids of a prefix, (P,) or (B, P), that is kept; or of whole sequences, (L,) or (B, L), with ``frozen``.
    frozen : (L,) or (B, L) bool: positions of ``prompt`` to keep, for infilling.
    temperature, top_p, top_k : of x_theta, before it is used.
    min_prob : entries of the posterior p(z_s | z_t) below it are dropped.
    guidance : called as guidance(logits, z, t), returns the logits to use.
    generator : seeds one stream of random numbers per sequence, so that a sequence does not depend on its batch.
    return_trajectory : keep the state at every time.
    callback : called as callback(step, t, z) after every step.

    Raises
    ------
    InvalidProcessError
        The process has negative rates.
    ValueError
        Arguments that do not fit.
    """
    batch, length = _shape(shape)
    if not isinstance(steps, int) or steps < 0:
        raise ValueError(f"steps has to be a non-negative integer; got {steps!r}")
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler {sampler!r} is not one of {', '.join(SAMPLERS)}")
    if not 0 <= min_prob < 1:
        raise ValueError(f"min_prob has to lie in [0, 1); got {min_prob!r}")
    process.validate()
    device = torch.device(device) if device is not None else _device_of(model, prompt)
    streams = Streams.of(generator, batch, device)
    one = torch.ones((), dtype=torch.float64, device=device)
    z = process.noise_from(one, streams.uniform(length), streams.uniform(length))
    kept, values = _kept(prompt, frozen, batch, length, process, device)
    z = torch.where(kept, values, z)
    states = [z]
    if steps == 0 or batch == 0 or length == 0:
        return SampleOutput(z, 0, z[None] if return_trajectory else None)
    times = time_grid(process, steps, grid).to(device)
    shaping: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    calls = 0
    log_x = None
    for i in range(steps):
        t, s = times[i], times[i + 1]
        if log_x is None:
            logits = clean_logits(model, z, t, process)
            calls += 1
            if guidance is not None:
                logits = guidance(logits, z, float(t))
            log_x = sharpen(logits, **shaping)
        if sampler == "ancestral":
            new, log_x_next = ancestral_step(process, z, log_x, s, t, streams, min_prob), None
        else:
            new = _adaptive_step(process, z, log_x, i, steps, streams, kept)
            log_x_next = log_x if bool((new == z).all()) else None  # nothing changed: the same logits
        z, log_x = torch.where(kept, values, new), log_x_next
        if return_trajectory:
            states.append(z)
        if callback is not None:
            callback(i + 1, float(s), z)
    return SampleOutput(z, calls, torch.stack(states) if return_trajectory else None)


def ancestral_step(
    process: Process, z: Tensor, log_x: Tensor, s: Tensor, t: Tensor, streams: Streams, min_prob: float
) -> Tensor:
    """Draw z_s given z_t = z by one of three routes, without the (B, L, V) posterior.

    z_s = z_t (no jump since s), or z_t is noise that came after s and z_s is then the predicted clean token or noise:
    weights a (alpha_s x(z) + b_s(z)), n(z) alpha_s and n(z) (1 - alpha_s), which sum to q_t(z | x_theta).
    """
    length = z.shape[1]
    route, which, where, clean = (streams.uniform(length) for _ in range(4))
    if min_prob > 0:
        posterior = process.posterior(z, log_x.double().exp(), s, t)
        posterior = torch.where(posterior < min_prob, 0.0, posterior)
        stay = posterior.sum(-1) <= 0
        drawn = draw(posterior.log().flatten(0, 1), clean.flatten()).reshape(z.shape)
        return torch.where(stay, z, drawn)
    alpha_s, a = process.alpha(s), process.alpha(t) / process.alpha(s)
    noise_s = process.noise_at(z, s)
    n = (process.noise_at(z, t) - a * noise_s).clamp_min(0.0)
    x_z = log_x.gather(-1, z[..., None])[..., 0].double().exp()
    stay = a * (alpha_s * x_z + noise_s)
    total = stay + n
    route = route * total
    to_clean = (route >= stay) & (route < stay + n * alpha_s)
    to_noise = (route >= stay + n * alpha_s) & (total > 0)
    new = torch.where(to_noise, process.noise_from(s, which, where), z)
    if bool(to_clean.any()):
        new[to_clean] = draw(log_x[to_clean], clean[to_clean])
    return new


def _adaptive_step(
    process: Process, z: Tensor, log_x: Tensor, step: int, steps: int, streams: Streams, kept: Tensor
) -> Tensor:
    """Change the positions with the largest (max_v x(v) - x(z)) pi_1(z): as many as are left, shared over the steps."""
    length = z.shape[1]
    u = streams.uniform(length)
    one = torch.ones((), dtype=torch.float64, device=z.device)
    p = log_x.exp()
    gain = (p.amax(-1) - p.gather(-1, z[..., None])[..., 0]).double() * process.noise_at(z, one)
    gain = gain.masked_fill(kept, 0.0)
    count = -(-length // steps) if step < steps - 1 else length
    order = gain.argsort(dim=1, descending=True, stable=True)[:, :count]
    chosen = torch.zeros_like(kept).scatter_(1, order, True) & (gain > 0)
    new = z.clone()
    if bool(chosen.any()):
        new[chosen] = draw(log_x[chosen], u[chosen])
    return new


def _shape(shape: Any) -> tuple[int, int]:
    if len(tuple(shape)) != 2 or any(int(n) != n or n < 0 for n in shape):
        raise ValueError(f"shape has to be (batch, length); got {shape!r}")
    return int(shape[0]), int(shape[1])


def _device_of(model: Any, prompt: Tensor | None) -> torch.device:
    if isinstance(model, torch.nn.Module):
        for parameter in model.parameters():
            return parameter.device
    return prompt.device if prompt is not None else torch.device("cpu")


def _kept(
    prompt: Tensor | None, frozen: Tensor | None, batch: int, length: int, process: Process, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(B, L) which positions are given, and their ids."""
    kept = torch.zeros(batch, length, dtype=torch.bool, device=device)
    values = torch.zeros(batch, length, dtype=torch.long, device=device)
    if prompt is None:
        if frozen is not None:
            raise ValueError("frozen says which tokens of prompt to keep: give prompt too")
        return kept, values
    ids = process._ids(torch.as_tensor(prompt, device=device), "prompt")
    ids = ids[None].expand(batch, -1) if ids.dim() == 1 else ids
    if ids.dim() != 2 or len(ids) != batch or ids.shape[1] > length:
        raise ValueError(f"prompt has shape {tuple(prompt.shape)}; it has to be (P,) or ({batch}, P), P <= {length}")
    if frozen is None:
        kept[:, : ids.shape[1]] = True
    else:
        mask = torch.as_tensor(frozen, device=device)
        mask = mask[None].expand(batch, -1) if mask.dim() == 1 else mask
        if mask.dtype != torch.bool or mask.shape != (batch, length) or ids.shape[1] != length:
            raise ValueError(f"with frozen, prompt and frozen (bool) have to cover all ({batch}, {length}) positions")
        kept = mask.clone()
    values[:, : ids.shape[1]] = ids
    if process.mask_id is not None and bool((kept & (values == process.mask_id)).any()):
        raise ValueError(f"prompt keeps the mask token {process.mask_id}: mark such positions as not frozen")
    return kept, values
