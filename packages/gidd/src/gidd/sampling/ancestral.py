"""Sampling: ancestral steps by routes, and the adaptive sampler of the follow-up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..process import HybridProcess, Process
from .predict import Model, clean_logits, draw, sharpen, without_mask
from .streams import Streams

SAMPLERS = ("ancestral", "adaptive")


class SampleOutput(NamedTuple):
    """tokens : (B, L);  num_model_calls : of the whole batch;  trajectory : (steps + 1, B, L) states, or None."""

    tokens: Tensor
    num_model_calls: int
    trajectory: Tensor | None


def auto_grid(process: Process) -> str:
    """What grid="auto" is: uniform noise of a HybridProcess enters as a root of t, so early times need more of them."""
    return "power:3" if isinstance(process, HybridProcess) and process.p_uniform > 0 else "linear"


def power_of(grid: str) -> float | None:
    """k of "power:k"; None for anything else, and where k is no positive number."""
    kind, _, number = grid.partition(":")
    try:
        power = float(number) if kind == "power" else 0.0
    except ValueError:
        return None
    return power if 0.0 < power < float("inf") else None


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
        grid = auto_grid(process)
    if grid == "linear":
        return u
    if grid == "cosine":
        times = 0.5 - 0.5 * torch.cos(torch.pi * u)
        times[0], times[-1] = 1.0, 0.0
        return times
    if grid == "calibrated":
        raise ValueError("grid 'calibrated' needs texts: pass calibrate_grid(model, x, process, num_points=steps)")
    exponent = power_of(grid)
    if exponent is None:
        raise ValueError(f"grid {grid!r} is not auto, linear, cosine or power:k with k > 0")
    times = u**exponent
    if bool((times.diff() >= 0).any()):
        raise ValueError(f"grid {grid!r} has times so small that they are 0: with {steps} steps take a smaller power")
    return times


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
    callback: Callable[[int, float, Tensor], Tensor | None] | None = None,
) -> SampleOutput:
    """Generate sequences from the prior pi_1 down to t = 0.

    Parameters
    ----------
    model : model(z (B, L) long, t (B,) float) -> logits (B, L, Vp).
    shape : (B, L).
    steps : T; the ancestral sampler calls the model exactly T times.
    sampler : "ancestral", or "adaptive" (every step draws the L / T positions anew where the model is surest that
        something else belongs there; while nothing changes, the logits are not computed again).
    grid : see :func:`time_grid`.
    prompt : ids of a prefix, (P,) or (B, P), that is kept; or of whole sequences, (L,) or (B, L), with ``frozen``.
    frozen : (L,) or (B, L) bool: positions of ``prompt`` to keep, for infilling.
    temperature, top_p, top_k : of x_theta, before it is used.
    min_prob : entries of the posterior p(z_s | z_t) below it are dropped.
    guidance : called as guidance(logits (B, L, V), z, t), returns the logits to use; the mask stays excluded.
    generator : seeds one stream of random numbers per sequence, so that a sequence does not depend on its batch.
    return_trajectory : keep the state at every time.
    callback : called as callback(step, t, z) after every step; tokens (B, L) that it returns take the place of z, e.g.
        of :func:`gibbs` at t, which mixes an invariant corrector with the predictor.

    Raises
    ------
    InvalidProcessError
        The process has negative rates.
    ValueError
        Arguments that do not fit.
    """
    batch, length = check_shape(shape)
    way = Way(sampler, temperature, top_p, top_k, min_prob, guidance)
    check_way(process, steps, way)
    device = torch.device(device) if device is not None else device_of(model, prompt)
    streams = Streams.of(generator, batch, device)
    kept, values = keep(prompt, frozen, batch, length, process, device)
    times = time_grid(process, steps, grid) if steps else torch.ones(1, dtype=torch.float64)
    return denoise(model, process, times.to(device), kept, values, streams, way, return_trajectory, callback)


class Way(NamedTuple):
    """How to take steps; the arguments of :func:`sample` of these names."""

    sampler: str
    temperature: float
    top_p: float | None
    top_k: int | None
    min_prob: float
    guidance: Callable[[Tensor, Tensor, float], Tensor] | None = None


def check_way(process: Process, steps: int, way: Way) -> None:
    """Refuse arguments that do not fit, and processes with negative rates."""
    if not isinstance(steps, int) or steps < 0:
        raise ValueError(f"steps has to be a non-negative integer; got {steps!r}")
    if way.sampler not in SAMPLERS:
        raise ValueError(f"sampler {way.sampler!r} is not one of {', '.join(SAMPLERS)}")
    if not 0 <= way.min_prob < 1:
        raise ValueError(f"min_prob has to lie in [0, 1); got {way.min_prob!r}")
    process.validate()


def denoise(
    model: Model,
    process: Process,
    times: Tensor,
    kept: Tensor,
    values: Tensor,
    streams: Streams,
    way: Way,
    return_trajectory: bool = False,
    callback: Callable[[int, float, Tensor], Tensor | None] | None = None,
) -> SampleOutput:
    """From the prior through falling ``times`` (T + 1,), with ``values`` (B, L) wherever ``kept`` (B, L)."""
    length, steps = kept.shape[1], len(times) - 1
    one = torch.ones((), dtype=torch.float64, device=kept.device)
    z = torch.where(kept, values, process.noise_from(one, streams.uniform(length), streams.uniform(length)))
    states = [z]
    calls, logits = 0, None
    for i in range(steps if z.numel() else 0):
        t, s = times[i], times[i + 1]
        if logits is None:
            logits = clean_logits(model, z, t, process)
            calls += 1
            if way.guidance is not None:
                logits = without_mask(way.guidance(logits, z, float(t)), process)
            log_x = sharpen(logits, way.temperature, way.top_p, way.top_k)
        if way.sampler == "ancestral":
            new = ancestral_step(process, z, log_x, s, t, streams, way.min_prob)
        else:
            new = _adaptive_step(process, z, logits, log_x, i, steps, streams, kept)
        new = torch.where(kept, values, new)
        if way.sampler == "ancestral" or not torch.equal(new, z):
            logits = None
        z = new
        if return_trajectory:
            states.append(z)
        if callback is not None:
            changed = callback(i + 1, float(s), z)
            if changed is not None:
                z, logits = torch.where(kept, values, process.check_ids(changed, "what callback returned")), None
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
        # The most probable entry stays whatever its probability: at s = 0 it is no mask.
        kept = (posterior >= min_prob) | (posterior == posterior.amax(-1, keepdim=True))
        return draw(torch.where(kept, posterior, 0.0).log().flatten(0, 1), clean.flatten()).reshape(z.shape)
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
    process: Process,
    z: Tensor,
    logits: Tensor,
    log_x: Tensor,
    step: int,
    steps: int,
    streams: Streams,
    kept: Tensor,
) -> Tensor:
    """Draw from log_x, where (max_v x(v) - x(z)) pi(z) is largest: L / T positions, in the last step all masks too.

    x are the probabilities of ``logits``, whatever the temperature of the draw, and pi is the noise at the smallest
    log-SNR of training (arXiv:2512.10858); under it visible tokens are replaced after masks, if noise can be visible.
    """
    length = z.shape[1]
    u = streams.uniform(length)
    latest = torch.tensor(1 - process.t_eps, dtype=torch.float64, device=z.device)
    x = logits.log_softmax(-1)
    surer = x.amax(-1).exp() - x.gather(-1, z[..., None])[..., 0].exp()
    gain = (surer.double() * process.noise_at(z, latest)).masked_fill(kept, 0.0)
    order = gain.argsort(dim=1, descending=True, stable=True)[:, : -(-length // steps)]
    chosen = torch.zeros_like(kept).scatter_(1, order, True) & (gain > 0)
    if step == steps - 1 and process.mask_id is not None:
        chosen |= (z == process.mask_id) & ~kept
    new = z.clone()
    if bool(chosen.any()):
        new[chosen] = draw(log_x[chosen], u[chosen])
    return new


def check_shape(shape: Any) -> tuple[int, int]:
    """(batch, length) as integers, none of them negative."""
    if len(tuple(shape)) != 2 or any(int(n) != n or n < 0 for n in shape):
        raise ValueError(f"shape has to be (batch, length); got {shape!r}")
    return int(shape[0]), int(shape[1])


def device_of(model: Any, prompt: Tensor | None) -> torch.device:
    """Where the model's parameters are, else the prompt."""
    if isinstance(model, torch.nn.Module):
        for parameter in model.parameters():
            return parameter.device
    return prompt.device if isinstance(prompt, Tensor) else torch.device("cpu")


def keep(
    prompt: Tensor | None, frozen: Tensor | None, batch: int, length: int, process: Process, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(B, L) which positions are given, and their ids."""
    kept = torch.zeros(batch, length, dtype=torch.bool, device=device)
    values = torch.zeros(batch, length, dtype=torch.long, device=device)
    if prompt is None:
        if frozen is not None:
            raise ValueError("frozen says which tokens of prompt to keep: give prompt too")
        return kept, values
    ids = process.check_ids(torch.as_tensor(prompt, device=device), "prompt")
    ids = ids[None].expand(batch, -1) if ids.dim() == 1 else ids
    if ids.dim() != 2 or len(ids) != batch or ids.shape[1] > length:
        raise ValueError(f"prompt has shape {tuple(ids.shape)}; it has to be (P,) or ({batch}, P), P <= {length}")
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
