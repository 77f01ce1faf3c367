"""The fused loss beside the straightforward one and beside cross-entropy: time in turns, memory in child processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..loss import fused_linear_gidd_loss, gidd_loss
from ..process import HybridProcess
from .profiles import Profile
from .report import TARGET, Claim, Comparison, Experiment, Metric, geometric_mean
from .timing import in_turns

WIDTH = 256  # of the hidden states of the fused head
HEAD_ROWS = 4  # times the tokens of the loss alone

# One way of computing the loss in a fresh interpreter, and the peak of its resident memory above the logits.
_CHILD = """
import sys, json, torch
torch.set_num_threads(1)
from gidd.evaluation.loss import batch, ways
rows, vocab, way = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
def peak():
    with open('/proc/self/status') as f:
        return next(int(line.split()[1]) / 1024 for line in f if line.startswith('VmHWM'))
data = batch(rows, vocab, 0, 'cpu')
small = batch(8, vocab, 0, 'cpu')
ways(small, vocab)[way]()
open('/proc/self/clear_refs', 'w').write('5')  # forget the peak so far
before = peak()
ways(data, vocab)[way]()
print(json.dumps(peak() - before))
"""


def batch(rows: int, vocab: int, seed: int, device: str) -> tuple[Tensor, ...]:
    """Logits (1, rows, vocab) float32, x, z, t, and a hidden state and head that give logits of the same shape."""
    generator = torch.Generator().manual_seed(seed)
    process = noise(vocab)
    x = torch.randint(process.vocab_size - 1, (1, rows), generator=generator)
    t = torch.rand(1, rows, generator=generator, dtype=torch.float64)
    z = process.q_sample(x, t, generator)
    logits = torch.randn(1, rows, vocab, generator=generator)
    hidden, head = (
        torch.randn(1, rows, WIDTH, generator=generator),
        0.05 * torch.randn(vocab, WIDTH, generator=generator),
    )
    return tuple(value.to(device) for value in (logits, x, z, t, hidden, head))


def noise(vocab: int) -> HybridProcess:
    """The process of the benchmark: a vocabulary that fills the padded width up to 46 columns, p_u = .2."""
    V = max(vocab - 46, 4)
    return HybridProcess(V, V - 1, 0.2)


def ways(data: tuple[Tensor, ...], vocab: int) -> dict[str, Callable[[], Tensor]]:
    """Forward and backward of every way to the same loss; each returns its value."""
    logits, x, z, t, hidden, head = data
    process = noise(vocab)

    def through(function: Callable[[Tensor], Tensor], leaf: Tensor) -> Tensor:
        leaf = leaf.detach().requires_grad_()
        loss = function(leaf)
        torch.autograd.grad(loss, leaf)
        return loss.detach()

    def head_first(leaf: Tensor) -> Tensor:
        return gidd_loss(torch.nn.functional.linear(leaf, head), x, z, t, process).loss

    def fused(leaf: Tensor) -> Tensor:
        return fused_linear_gidd_loss(leaf, head, None, x, z, t, process).loss

    return {
        "fused": lambda: through(lambda a: gidd_loss(a, x, z, t, process).loss, logits),
        "reference": lambda: through(lambda a: gidd_loss(a, x, z, t, process, impl="reference").loss, logits),
        "cross-entropy": lambda: through(lambda a: torch.nn.functional.cross_entropy(a[0], x[0]), logits),
        "linear, fused": lambda: through(fused, hidden),
        "linear, then loss": lambda: through(head_first, hidden),
    }


def run_loss(profile: Profile, rng: np.random.Generator, out: Path, device: str = "cpu") -> Experiment:
    """Speed and memory against the targets; every way has to give the same loss first."""
    rows, vocab = profile.loss_rows, profile.loss_vocab
    torch.set_num_threads(1)
    seed = int(rng.integers(2**31))
    # The head needs more tokens before its products, rather than its weights' way through memory, take the time.
    every = ways(batch(rows, vocab, seed, device), vocab) | {
        name: way for name, way in ways(batch(HEAD_ROWS * rows, vocab, seed, device), vocab).items() if "linear" in name
    }
    values = {name: float(way()) for name, way in every.items()}
    for a, b in (("fused", "reference"), ("linear, fused", "linear, then loss")):
        if abs(values[a] / values[b] - 1) > 1e-4:
            raise RuntimeError(f"{a} and {b} give {values[a]:.6g} and {values[b]:.6g}: timing them would mean nothing")
    spent = in_turns(every, profile.loss_repeats, device)
    experiment = Experiment()
    setting = (
        f"{rows} tokens, {vocab} columns, float32, forward and backward, {device}, {profile.loss_repeats} in turns"
    )
    for name, ours, peer, op, value, statement in (
        ("speed", "reference", "fused", ">=", 4.0, "The fused loss is 4 times faster than the dense formula"),
        ("cross-entropy", "fused", "cross-entropy", "<=", 1.15, "and costs at most 1.15 times a cross-entropy"),
        (
            "head",
            "linear, fused",
            "linear, then loss",
            "<=",
            1.15,
            "Fused with the head it takes 1.15 times as long at most",
        ),
    ):
        measured, interval = geometric_mean(spent[ours] / spent[peer])
        experiment.claims.append(
            Claim(
                id=f"loss-{name}",
                statement=statement,
                source=TARGET,
                measured=measured,
                op=op,
                value=value,
                n=profile.loss_repeats,
                ci=interval,
                unit="×",
                note=f"geometric mean of {ours} / {peer} and its t interval; {setting}; same loss to 1e-4"
                + (f"; {HEAD_ROWS * rows} tokens, width {WIDTH}" if name == "head" else ""),
            )
        )
    for name, peer in (("fused", "reference"), ("fused", "cross-entropy"), ("linear, fused", "linear, then loss")):
        experiment.comparisons.append(
            Comparison(
                f"loss, {name}: {rows} × {vocab}",
                1e3 * float(np.median(spent[name])),
                1e3 * float(np.median(spent[peer])),
                f"{peer} (torch {torch.__version__})",
                "ms",
                "lower",
            )
        )
    if device == "cpu" and sys.platform == "linux":
        _memory(experiment, rows, vocab)
    return experiment


def _memory(experiment: Experiment, rows: int, vocab: int) -> None:
    sizes = {"fused": rows, "reference": rows, "linear, fused": HEAD_ROWS * rows}
    with ThreadPoolExecutor(len(sizes)) as pool:
        extra = dict(zip(sizes, pool.map(lambda name: _peak(sizes[name], vocab, name), sizes), strict=True))
    logits = rows * vocab * 4 / 2**20
    head_logits = HEAD_ROWS * logits
    beyond = {name: extra[name] - logits for name in ("fused", "reference")}  # the gradient is part of the task
    experiment.claims += [
        Claim(
            id="loss-memory",
            statement="Beyond logits and gradient it needs a fifth of the memory of the dense formula",
            source=TARGET,
            measured=max(beyond["fused"], 0.0) / beyond["reference"],
            op="<=",
            value=0.2,
            n=1,
            note=f"{beyond['fused']:.0f} against {beyond['reference']:.0f} MiB of resident memory, child processes",
        ),
        Claim(
            id="loss-head-memory",
            statement="Fused with the head it needs a quarter of what the logits alone would take",
            source=TARGET,
            measured=max(extra["linear, fused"], 0.0) / head_logits,
            op="<=",
            value=0.25,
            n=1,
            note=f"{extra['linear, fused']:.0f} MiB against {head_logits:.0f} MiB of logits, child process",
        ),
    ]
    experiment.metrics += [
        Metric(f"loss, extra memory, {name}", value, "MiB", "lower") for name, value in extra.items()
    ]


def _peak(rows: int, vocab: int, way: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(rows), str(vocab), way], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"a child process failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return float(json.loads(done.stdout.strip().splitlines()[-1]))
