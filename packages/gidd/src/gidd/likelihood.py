"""How likely a model finds a text: an upper bound on -ln p(x), boundary terms and standard errors included.

The bound is the sum of three terms (arXiv:2503.04482, section 3.3, prints the first only):

- path: the integral of sum_l E[w (KL + IS)] over [t_eps, 1 - t_eps], measured at ``num_times`` times;
- reconstruction: E[-sum_l ln P(x_l | z)] at t_eps. The network predicts a token from the others, P(x_l | z_{-l}); what
  z_l itself says is multiplied in here. Not negligible with uniform noise, whose share is of order sqrt(t_eps);
- tail: the path's integrand over [1 - t_eps, 1). At t = 1 nothing of x is left, so that no prior term follows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .loss import gidd_loss
from .process import Process
from .sampling.ancestral import auto_grid, power_of

Model = Callable[[Tensor, Tensor], Tensor]

ESTIMATORS = ("stratified", "uniform", "quadrature")


class ElboOutput(NamedTuple):
    """The bound and its terms; all (B,) float64, in nats per sequence, summed over the tokens that count.

    nelbo : upper bound on -ln p(x): nelbo_path + reconstruction + tail, or nelbo_path alone without ``boundary``.
    nelbo_path : the path integral over [t_eps, 1 - t_eps], the paper's number (the authors print the mean over t, which
        is larger by 1 / (1 - 2 t_eps)).
    reconstruction, tail : the boundary terms; 0 without ``boundary``.
    stderr : standard error of nelbo over draws of times and noise. Its square errs on the large side on average; a
        single one may miss rare and costly noise. NaN for one time only.
    num_tokens : (B,) int64, tokens that count.
    """

    nelbo: Tensor
    nelbo_path: Tensor
    reconstruction: Tensor
    tail: Tensor
    stderr: Tensor
    num_tokens: Tensor


@torch.no_grad()
def elbo(
    model: Model,
    x: Tensor,
    process: Process,
    *,
    num_times: int = 128,
    estimator: str = "stratified",
    grid: str | Tensor = "auto",
    boundary: bool = True,
    loss_mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
) -> ElboOutput:
    """Upper bound on -ln p(x) of every sequence.

    Calls the model num_times times per sequence, plus 1 + max(2, num_times // 8) times with ``boundary``. Put a module
    with dropout into evaluation mode first.

    Parameters
    ----------
    model : ``model(z (N, L) long, t (N,) float32) -> logits (N, L, >= V)``.
    x : (B, L) clean ids.
    num_times : times at which the integrand is measured, the same for all sequences.
    estimator : "stratified" (one draw in each of num_times strata of equal size), "uniform" (independent draws),
        "quadrature" (midpoints of the strata; the noise is still drawn, and the rule has a bias that shrinks with
        num_times).
    grid : which times are measured more often; unbiased whatever it is. "linear"; "power:k" for t = u**k with u
        uniform; "auto" for power:3 where there is uniform noise in a HybridProcess, whose integrand is of order
        t**(gamma/2 - 1), and linear elsewhere; times of :func:`calibrate_grid`; or "calibrated" for those of a first
        run over x with half as many times and noise of its own.
    boundary : add reconstruction and tail. Without them the result is no bound.
    loss_mask : (B, L) bool, True where a token counts. The others are shown to the model clean: the result bounds
        -ln p(tokens that count | the others).
    generator : two numbers are drawn from it, the seeds of the times and of the noise. Sequence i draws noise from a
        stream of its own, on the CPU: neither batch_size nor the sequences after it change its result.
    batch_size : sequences per model call; all at once by default.

    Raises
    ------
    ValueError
        Ids outside [0, V), a mask token that counts, shapes that do not fit, unknown estimators and grids.
    InvalidProcessError
        The process has negative rates.

    Examples
    --------
    >>> p = HybridProcess(vocab_size=6, mask_id=5)
    >>> out = elbo(lambda z, t: torch.zeros(*z.shape, 6), torch.randint(5, (2, 8)), p, num_times=16)
    >>> bool((out.nelbo == out.nelbo_path + out.reconstruction + out.tail).all())
    True
    """
    process.validate()
    x, keep = _checked(x, process, loss_mask, num_times, batch_size)
    if isinstance(grid, str) and grid == "calibrated":
        grid = calibrate_grid(
            model,
            x,
            process,
            num_times=max(2, num_times // 2),
            loss_mask=keep,
            generator=generator,
            batch_size=batch_size,
        )
    times_seed, noise_seed = _seeds(generator)
    fraction = fractions(num_times, estimator, times_seed)
    t, measure = times_on_grid(grid, process, fraction)
    if not len(x):
        none = torch.zeros(0, dtype=torch.float64, device=x.device)
        return ElboOutput(none, none, none, none, none, keep.sum(dim=1))
    parts = [
        _batch(model, x[rows], keep[rows], process, t, measure, boundary, noise_seed + rows.start)
        for rows in _rows(len(x), batch_size)
    ]
    path, reconstruction, tail = (torch.cat(p, dim=1) for p in zip(*parts, strict=True))  # (n, B) each, draws first

    nelbo_path = path.sum(dim=0)
    variance = _variance_of_sum(path, independent=estimator == "uniform")
    if not boundary:
        zero = torch.zeros_like(nelbo_path)
        return ElboOutput(nelbo_path, nelbo_path, zero, zero, variance.sqrt(), keep.sum(dim=1))
    mean = reconstruction.mean(dim=0)
    # The tail is one draw: its size, which is of order t_eps, stands in for its standard deviation.
    variance = variance + reconstruction.var(dim=0) / len(reconstruction) + tail[0] ** 2
    return ElboOutput(nelbo_path + mean + tail[0], nelbo_path, mean, tail[0], variance.sqrt(), keep.sum(dim=1))


@torch.no_grad()
def calibrate_grid(
    model: Model,
    x: Tensor,
    process: Process,
    *,
    num_points: int = 128,
    num_times: int = 128,
    loss_mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """Times between which the ELBO of this model grows by equal amounts, from one likelihood run over x.

    A grid for :func:`elbo`, of any num_times, and for :func:`gidd.sample` with num_points steps, which then all resolve
    equally much.

    Parameters
    ----------
    model, x, process, num_times, loss_mask, generator, batch_size : as in :func:`elbo`.
    num_points : intervals of the grid.

    Returns
    -------
    (num_points + 1,) float64, falling from exactly 1 to exactly 0.
    """
    process.validate()
    if num_points < 1:
        raise ValueError(f"num_points has to be positive; got {num_points}")
    x, keep = _checked(x, process, loss_mask, num_times, batch_size)
    times_seed, noise_seed = _seeds(generator)
    t, measure = times_on_grid("auto", process, fractions(num_times, "stratified", times_seed))
    edges, _ = times_on_grid("auto", process, torch.linspace(0, 1, num_times + 1, dtype=torch.float64))
    total = torch.zeros(num_times + 2, dtype=torch.float64)
    for rows in _rows(len(x), batch_size):
        path, reconstruction, tail = _batch(
            model, x[rows], keep[rows], process, t, measure, True, noise_seed + rows.start
        )
        ends = reconstruction.mean(dim=0).sum(), tail.sum()
        total += torch.cat([ends[0][None], path.sum(dim=1), ends[1][None]]).cpu()
    # A floor of 1 % keeps every time possible, so that elbo() stays unbiased on other texts.
    total = total.clamp_min(0.0) + 0.01 * total.sum().clamp_min(1e-300) / len(total)
    level = np.concatenate([[0.0], total.cumsum(0).numpy()])
    at = np.concatenate([[0.0], edges.numpy(), [1.0]])
    times = torch.from_numpy(np.interp(np.linspace(0, level[-1], num_points + 1), level, at))
    times[0], times[-1] = 0.0, 1.0
    return times.flip(0)


# --- draws --------------------------------------------------------------------------------------------------------


def _batch(
    model: Model,
    x: Tensor,
    keep: Tensor,
    process: Process,
    t: Tensor,
    measure: Tensor,
    boundary: bool,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(n, B) contributions to the path, (R, B) draws of the reconstruction and (1, B) tail; t and measure are (n,).

    R = max(2, n // 8): tokens that noise has replaced at t_eps are rare and expensive, one draw would say little.
    """
    generators = [torch.Generator().manual_seed((seed + i) % 2**63) for i in range(len(x))]
    z = _noisy(x, keep, process, t.expand(len(x), -1), generators)
    terms = zip(z, t, measure, strict=True)
    path = torch.stack([m * path_integrand(model, x, z_j, t_j.expand(len(x)), keep, process) for z_j, t_j, m in terms])
    if not boundary:
        return path, path[:0], path[:0]

    eps = process.t_eps
    early = torch.full((len(x), max(2, len(t) // 8)), eps, dtype=torch.float64)
    z = _noisy(x, keep, process, early, generators)
    reconstruction = torch.stack([reconstruction_term(model, x, z_j, keep, process) for z_j in z])
    late = torch.stack([1 - eps * torch.rand(1, dtype=torch.float64, generator=g) for g in generators])
    late = late.clamp_max(1 - 1e-12)  # at exactly 1 weights are infinite
    (z_late,) = _noisy(x, keep, process, late, generators)
    return path, reconstruction, eps * path_integrand(model, x, z_late, late[:, 0], keep, process)[None]


def _noisy(x: Tensor, keep: Tensor, process: Process, t: Tensor, generators: list[torch.Generator]) -> Tensor:
    """(n, B, L) noisy copies of x (B, L) at times t (B, n), a generator for each sequence; clean outside keep."""
    shown = x
    if process.mask_id is not None:  # masks outside keep stay as they are; here any other token will do
        shown = torch.where(x == process.mask_id, int(process.mask_id == 0), x)
    rows = zip(shown.cpu(), t, generators, strict=True)
    z = torch.stack([process.q_sample(row.expand(len(own), -1), own, g) for row, own, g in rows], dim=1)
    return torch.where(keep, z.to(x.device), x)


def path_integrand(model: Model, x: Tensor, z: Tensor, t: Tensor, keep: Tensor, process: Process) -> Tensor:
    """(B,) sum_l w (KL + IS) at times t (B,)."""
    t = t.to(x.device)
    logits = _logits(model, z, t, process)
    out = gidd_loss(logits, x, z, t, process, weighting="none", loss_mask=keep, reduction="none")
    return out.elbo.double().sum(dim=1)


def reconstruction_term(model: Model, x: Tensor, z: Tensor, keep: Tensor, process: Process) -> Tensor:
    """(B,) -sum_l ln P(x_l | z) at t_eps, P(v | z) = x_theta(v) q(z_l | v) / q(z_l | x_theta)."""
    t = torch.full((len(x),), process.t_eps, dtype=torch.float64, device=x.device)
    scores = _logits(model, z, t, process)[..., : process.vocab_size]
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if process.mask_id is not None:
        scores = scores.index_fill(-1, torch.tensor([process.mask_id], device=x.device), -torch.inf)
    total = scores.logsumexp(dim=-1).double()
    log_x = scores.gather(-1, x[..., None])[..., 0].double() - total
    log_z = scores.gather(-1, z[..., None])[..., 0].double() - total
    alpha, noise = process.alpha(t)[:, None], process.noise_at(z, t[:, None])
    log_q = torch.log(alpha * (z == x) + noise)
    log_p = log_x + log_q - torch.logaddexp(torch.log(alpha) + log_z, torch.log(noise))
    # A token that no noise leads to is clean for certain.
    certain = (z == x) & (noise == 0)
    return -torch.where(keep & ~certain, log_p, 0.0).sum(dim=1)


def _logits(model: Model, z: Tensor, t: Tensor, process: Process) -> Tensor:
    # The network has seen no times outside [t_eps, 1 - t_eps].
    logits = model(z, t.clamp(process.t_eps, 1 - process.t_eps).float())
    if logits.shape[:2] != z.shape or logits.dim() != 3 or logits.shape[2] < process.vocab_size:
        want = f"({z.shape[0]}, {z.shape[1]}, at least {process.vocab_size})"
        raise ValueError(f"the model returned logits of shape {tuple(logits.shape)}; they have to be {want}")
    return logits


def _variance_of_sum(parts: Tensor, independent: bool) -> Tensor:
    """(B,) variance of parts (n, B) summed over n; NaN for a single one.

    Strata are drawn from once. The squared difference of neighbours has the sum of their variances as its mean, and
    more where the integrand slopes; with the two outermost ones taken twice, every stratum is counted at least once.
    """
    n = len(parts)
    if n < 2:
        return torch.full_like(parts[0], torch.nan)
    if independent:
        return n * parts.var(dim=0)
    squares = (parts[1:] - parts[:-1]).square()
    return (squares.sum(dim=0) + squares[0] + squares[-1]) / 2


# --- times --------------------------------------------------------------------------------------------------------


def fractions(num: int, estimator: str, seed: int) -> Tensor:
    """(num,) points in [0, 1], each of which stands for 1 / num of it."""
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator {estimator!r} is not one of {', '.join(ESTIMATORS)}")
    draw = torch.rand(num, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    if estimator == "uniform":
        return draw
    offset = draw if estimator == "stratified" else torch.full_like(draw, 0.5)
    return (torch.arange(num) + offset) / num


def times_on_grid(grid: str | Tensor, process: Process, fraction: Tensor) -> tuple[Tensor, Tensor]:
    """Times in [t_eps, 1 - t_eps] at fractions (n,) of the grid, and dt / dfraction / n; both (n,)."""
    low, high = process.t_eps, 1 - process.t_eps
    if isinstance(grid, Tensor):
        t, slope = _interpolated(grid, low, high, fraction)
        return t, slope / len(fraction)
    power = _power(grid, process)
    low, high = low ** (1 / power), high ** (1 / power)
    u = low + (high - low) * fraction
    return u**power, (high - low) * power * u ** (power - 1) / len(fraction)


def _power(grid: str, process: Process) -> float:
    """k of t = u**k."""
    grid = auto_grid(process) if grid == "auto" else grid
    power = 1.0 if grid == "linear" else power_of(grid)
    if power is None:
        raise ValueError(f"grid {grid!r} is not auto, linear, power:k with k > 0, calibrated, or a tensor of times")
    return power


def _interpolated(grid: Tensor, low: float, high: float, fraction: Tensor) -> tuple[Tensor, Tensor]:
    """Times linear between the given ones, and their slope, within [low, high]."""
    times = grid.detach().double().cpu().numpy()
    if times.ndim == 1 and len(times) and times[0] > times[-1]:
        times = times[::-1].copy()  # samplers run from 1 to 0
    if times.ndim != 1 or len(times) < 2 or not (np.diff(times) > 0).all() or times[0] > low or times[-1] < high:
        raise ValueError(f"grid has to hold falling or increasing times that cover [{low:g}, {high:g}]; got {grid}")
    index = np.arange(len(times))
    first, last = np.interp([low, high], times, index)
    at = first + (last - first) * fraction.numpy()
    cell = np.minimum(at.astype(int), len(times) - 2)
    return torch.from_numpy(np.interp(at, index, times)), torch.from_numpy(np.diff(times)[cell] * (last - first))


# --- checks -------------------------------------------------------------------------------------------------------


def _checked(
    x: Tensor, process: Process, loss_mask: Tensor | None, num_times: int, batch_size: int | None
) -> tuple[Tensor, Tensor]:
    if x.dim() != 2:
        raise ValueError(f"x has to be (B, L); got shape {tuple(x.shape)}")
    x = process.check_ids(x, "x")
    if loss_mask is None:
        loss_mask = torch.ones_like(x, dtype=torch.bool)
    if loss_mask.shape != x.shape or loss_mask.dtype != torch.bool:
        raise ValueError(
            f"loss_mask has to be bool of shape {tuple(x.shape)}; got {loss_mask.dtype} of {tuple(loss_mask.shape)}"
        )
    if process.mask_id is not None and bool(((x == process.mask_id) & loss_mask).any()):
        raise ValueError(f"x holds the mask token {process.mask_id}: clean tokens are never masked")
    for name, value in (("num_times", num_times), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} has to be positive; got {value}")
    return x, loss_mask.to(x.device)


def _seeds(generator: torch.Generator | None) -> list[int]:
    device = None if generator is None else generator.device
    return [int(s) for s in torch.randint(2**62, (2,), generator=generator, device=device)]


def _rows(num: int, batch_size: int | None) -> list[slice]:
    step = batch_size or max(num, 1)
    return [slice(start, min(start + step, num)) for start in range(0, num, step)]
