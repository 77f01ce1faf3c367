"""How fast models sample, correct and train on this machine: ours and what to hold it against, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..models import DiT, DiTConfig
from ..plan import DEVICES, flops_per_token
from ..process import HybridProcess
from ..sampling import sample, self_correct
from ..sampling.predict import clean_logits
from ..train.noise import noisy_batch
from ..train.optim import make_optimizer, parameter_groups
from ..train.parallel import World
from ..train.step import Objective, train_step

STEPS = 8  # of the sampler
SEQUENCES, CELLS, CORRECTIONS = 32, 32, 8  # sequences to correct, their tokens, replacements in each


class Timing(NamedTuple):
    """The same quantity of ours and of a peer: medians of turns on the same input; ``better`` is higher or lower."""

    name: str
    ours: float
    peer: float
    peer_name: str
    unit: str
    better: str


def time_sampling(rows: int, vocab: int, repeats: int, device: str = "cpu") -> list[Timing]:
    """A sampling step beside one pass of the network, correction of a batch beside one sequence at a time.

    Parameters
    ----------
    rows : tokens of the sampled batch, in sequences of 128.
    vocab : V.
    """
    torch.set_num_threads(1)
    model, process = _small(vocab, device), HybridProcess(vocab, vocab - 1, 0.2)
    length = min(128, rows)
    shape = (max(rows // length, 1), length)
    z = process.prior_sample(shape, torch.Generator().manual_seed(0)).to(device)

    def forward() -> None:
        with torch.no_grad():
            clean_logits(model, z, 0.5, process)

    def steps() -> None:
        sample(model, process, shape, STEPS, generator=torch.Generator().manual_seed(0), device=device)

    given = torch.randint(vocab - 1, (SEQUENCES, CELLS), generator=torch.Generator().manual_seed(1)).to(device)

    def together() -> Tensor:
        return _corrected(model, process, given, torch.Generator().manual_seed(2))

    def one_by_one() -> Tensor:
        generator = torch.Generator().manual_seed(2)
        return torch.cat([_corrected(model, process, row[None], generator) for row in given])

    # Sums in another order may turn a draw or two; more would mean that something else is timed.
    same = float((together() == one_by_one()).float().mean())
    if same < 0.95:
        raise RuntimeError(
            f"batched and single correction agree on {same:.0%} of tokens: timing them would mean nothing"
        )
    ours, peer = _in_turns([steps, forward], repeats, device)
    batched, single = _in_turns([together, one_by_one], repeats, device)
    return [
        Timing(
            f"sampling step: {shape[0]} × {length} tokens, {vocab} columns", 1e3 * ours / STEPS, 1e3 * peer,
            "one pass of the network", "ms", "lower",
        ),
        Timing(
            f"self-correction: {SEQUENCES} sequences of {CELLS}", SEQUENCES / batched, SEQUENCES / single,
            "one at a time", "sequences/s", "higher",
        ),
    ]  # fmt: skip


def time_training(
    rows: int, vocab: int, repeats: int, device: str = "cpu", config: DiTConfig | None = None
) -> tuple[list[Timing], dict[str, float]]:
    """The trainer's step beside the same network trained on plain cross-entropy without noise.

    On a GPU in bfloat16 with compiled blocks.

    Parameters
    ----------
    rows : tokens of a batch.
    config : of the network; default 4 layers of 256.

    Returns
    -------
    The timing, and "FLOP/s" with, for a GPU whose peak is known, "MFU".
    """
    torch.set_num_threads(1)
    half = device == "cuda"
    config = _config(vocab) if config is None else config
    process = HybridProcess(vocab, vocab - 1, 0.2)
    length = min(config.max_seq_len, rows)
    x = torch.randint(vocab - 1, (max(rows // length, 1), length), generator=torch.Generator().manual_seed(0))
    x = x.to(device)
    world = World(torch.device(device))

    def trained() -> tuple[DiT, torch.optim.Optimizer, list[Tensor]]:
        torch.manual_seed(0)
        model = DiT(config).to(device)
        if half:
            for block in model.blocks:
                block.compile()
        optimizer = make_optimizer(parameter_groups(model, 0.02))
        return model, optimizer, list(model.parameters())

    model, optimizer, parameters = trained()
    objective = Objective(model, process, precision="bf16" if half else "fp32")
    count = 0

    def ours() -> None:
        nonlocal count
        count += 1
        train_step(objective, parameters, optimizer, [noisy_batch(x, None, process, 0, count)], 1.0, world)

    plain, other, its = trained()

    def peer() -> None:
        other.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
            logits = plain(x, torch.zeros(len(x), device=x.device))
        loss = torch.nn.functional.cross_entropy(logits[..., :vocab].flatten(0, 1), x.flatten())
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(its, 1.0)
        other.step()

    step, baseline = _in_turns([ours, peer], repeats, device)
    rate = x.numel() / step
    work = rate * flops_per_token(config, length)
    measured = {"FLOP/s": work}
    peak = _peak(device)
    if peak is not None:
        measured["MFU"] = work / peak
    size = f"{config.layers} × {config.hidden}, {x.shape[0]} × {length} tokens, {vocab} columns"
    name = f"training, DiT {size}, {'bfloat16' if half else 'float32'}"
    return [Timing(name, rate, x.numel() / baseline, "cross-entropy, no noise", "token/s", "higher")], measured


def _config(vocab: int) -> DiTConfig:
    return DiTConfig(vocab_size=vocab, hidden=256, layers=4, heads=4, max_seq_len=128)


def _small(vocab: int, device: str) -> DiT:
    torch.manual_seed(0)
    model = DiT(_config(vocab)).eval()
    torch.nn.init.normal_(model.head.weight, std=0.5)  # it starts at zero, and no opinion is quickly sampled
    return model.to(device)


def _corrected(model: DiT, process: HybridProcess, tokens: Tensor, generator: torch.Generator) -> Tensor:
    return self_correct(model, process, tokens, max_steps=CORRECTIONS, generator=generator).tokens


def _in_turns(ways: list[Callable[[], Any]], repeats: int, device: str) -> list[float]:
    """Median seconds of each: processor time on a CPU that others may use too, else wall time."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    for way in ways:
        way()
    spent: list[list[float]] = [[] for _ in ways]
    for _ in range(repeats):
        for way, seconds in zip(ways, spent, strict=True):
            if device == "cuda":
                torch.cuda.synchronize()
            began = clock()
            way()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(clock() - began)
    return [float(np.median(seconds)) for seconds in spent]


def _peak(device: str) -> float | None:
    if device != "cuda":
        return None
    name = torch.cuda.get_device_name().lower().replace(" ", "")
    return next((float(peak) for key, peak in DEVICES.items() if key in name), None)
