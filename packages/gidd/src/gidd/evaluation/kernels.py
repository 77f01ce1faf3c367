"""The loss on an accelerator: every implementation beside the bytes that any of them has to move."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..loss import gidd_loss
from .loss import batch, noise
from .profiles import Profile
from .report import TARGET, Claim, Comparison, Experiment, Metric, geometric_mean
from .timing import in_turns, seconds


def run_kernels(profile: Profile, rng: np.random.Generator, out: Path, device: str = "cpu") -> Experiment:
    """Time and extra memory of the loss, forward and backward, at every number of tokens of the profile."""
    experiment = Experiment()
    for rows in profile.kernel_tokens:
        _table(experiment, profile, rows, int(rng.integers(2**31)), device)
    return experiment


def _table(experiment: Experiment, profile: Profile, rows: int, seed: int, device: str) -> None:
    vocab = profile.loss_vocab
    logits, x, z, t = batch(rows, vocab, seed, device)[:4]
    logits = logits.bfloat16() if device == "cuda" else logits
    ways = {
        name: way for name, way in _ways(logits, x, z, t, vocab, device).items() if _fits(experiment, name, way, rows)
    }
    ours = "triton" if "triton" in ways else "chunked"
    value = float(ways[ours]())
    for name in ways:
        if name != "cross-entropy" and abs(float(ways[name]()) / value - 1) > 1e-2:
            raise RuntimeError(f"{name} and {ours} give {float(ways[name]()):.6g} and {value:.6g} at {rows} tokens")
    spent = in_turns(ways, profile.loss_repeats, device)
    extra = {name: _extra_memory(way, logits) for name, way in ways.items()} if device == "cuda" else {}
    moved = 2 * logits.numel() * logits.element_size()  # logits read once, gradient written once
    floor = moved / _bandwidth(logits)
    where = f"{rows} × {vocab}, {str(logits.dtype).removeprefix('torch.')}"
    experiment.metrics.append(Metric(f"kernels, byte floor: {where}", 1e3 * floor, "ms", "lower"))
    for name in ways:
        if name == ours:
            experiment.metrics.append(
                Metric(f"kernels, {name}: {where}", 1e3 * float(np.median(spent[name])), "ms", "lower")
            )
            continue
        experiment.comparisons.append(
            Comparison(
                f"kernels, {ours}: {where}",
                1e3 * float(np.median(spent[ours])),
                1e3 * float(np.median(spent[name])),
                f"{name} (torch {torch.__version__})",
                "ms",
                "lower",
            )
        )
    for name, value in extra.items():
        experiment.metrics.append(Metric(f"kernels, extra memory, {name}: {where}", value, "of the logits", "lower"))
    if ours != "triton":
        return  # the targets are the kernel's
    for peer, op, target, statement in (
        (None, "<=", 2.5, "The kernel takes 2.5 times as long at most as moving its bytes"),
        ("reference", ">=", 8.0, "It is 8 times faster than the dense formula"),
        ("reference, compiled", ">=", 2.5, "and 2.5 times faster than the dense formula compiled"),
    ):
        if peer is not None and peer not in spent:
            continue
        ratio = spent[ours] / floor if peer is None else spent[peer] / spent[ours]
        measured, interval = geometric_mean(ratio)
        experiment.claims.append(
            Claim(
                id=f"kernels-{(peer or 'floor').replace(', ', '-')}-{rows}",
                statement=f"{statement} ({rows} tokens)",
                source=TARGET,
                measured=measured,
                op=op,
                value=target,
                n=len(ratio),
                ci=interval,
                unit="×",
                note=f"{where}; {profile.loss_repeats} in turns; floor {1e3 * floor:.2f} ms at the speed of a copy",
            )
        )
    experiment.claims.append(
        Claim(
            id=f"kernels-memory-{rows}",
            statement=f"The kernel needs 1 % of the logits' memory beyond logits and gradient ({rows} tokens)",
            source=TARGET,
            measured=max(extra[ours] - 1.0, 0.0),
            op="<=",
            value=0.01,
            n=1,
            unit="of the logits",
            note=where,
        )
    )


def _ways(logits: Tensor, x: Tensor, z: Tensor, t: Tensor, vocab: int, device: str) -> dict[str, Callable[[], Tensor]]:
    process = noise(vocab)

    def gidd(implementation: str) -> Callable[[Tensor], Tensor]:
        return lambda a: gidd_loss(a, x, z, t, process, impl=implementation).loss

    def both(loss: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            leaf = logits.detach().requires_grad_()
            value = loss(leaf)
            torch.autograd.grad(value, leaf)
            return value.detach()

        return run

    ways = {name: both(gidd(name)) for name in ("reference", "chunked")}
    ways["cross-entropy"] = both(lambda a: torch.nn.functional.cross_entropy(a[0], x[0]))
    if device == "cuda":
        ways["reference, compiled"] = both(torch.compile(gidd("reference")))
        if find_spec("triton") is not None:
            ways["triton"] = both(gidd("triton"))
    return ways


def _fits(experiment: Experiment, name: str, way: Callable[[], Tensor], rows: int) -> bool:
    """Run once, compiling what is to be compiled; a way that the device has no memory for is left out and named."""
    try:
        way()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        experiment.metrics.append(Metric(f"kernels, out of memory: {name}, {rows} tokens", 1.0, "", "lower"))
        return False
    return True


def _bandwidth(logits: Tensor) -> float:
    """Bytes per second, read plus written, of copying the logits."""
    target = torch.empty_like(logits)
    best = min(seconds(lambda: target.copy_(logits), logits.device.type) for _ in range(5))
    return 2 * logits.numel() * logits.element_size() / best


def _extra_memory(way: Callable[[], Tensor], logits: Tensor) -> float:
    """Peak of what is allocated beyond the logits, gradient included, in units of the logits."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    way()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / (logits.numel() * logits.element_size())
