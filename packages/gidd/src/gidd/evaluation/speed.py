"""How fast models sample, correct and train on this machine: ours and what to hold it against, in turns."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
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
from .profiles import Profile
from .report import TARGET, Claim, Comparison, Experiment, Metric, geometric_mean, t_interval
from .timing import in_turns

STEPS = 8  # of the sampler
SEQUENCES, CELLS, CORRECTIONS = 32, 32, 8  # sequences to correct, their tokens, replacements in each


class Turns(NamedTuple):
    """The same quantity of ours and of a peer in every turn, on the same input; ``better`` is higher or lower."""

    name: str
    ours: NDArray[np.float64]
    peer: NDArray[np.float64]
    peer_name: str
    unit: str
    better: str

    def comparison(self) -> Comparison:
        """Medians."""
        ours, peer = float(np.median(self.ours)), float(np.median(self.peer))
        return Comparison(self.name, ours, peer, self.peer_name, self.unit, self.better)


def run_speed(profile: Profile, rng: np.random.Generator, out: Path, device: str = "cpu") -> Experiment:
    """Sampling and batched correction against their targets."""
    step, correction = time_sampling(profile.speed_rows, profile.speed_columns, profile.loss_repeats, device)
    return Experiment(
        claims=[
            _ratio(step, "speed-sampling", "A sampling step costs at most 1.5 times a pass of the network", "<=", 1.5),
            _ratio(
                correction,
                "speed-correction",
                f"{SEQUENCES} sequences are corrected faster together than one by one",
                ">=",
                15.0 if device == "cuda" else 2.0,
            ),
        ],
        comparisons=[step.comparison(), correction.comparison()],
    )


def run_throughput(profile: Profile, rng: np.random.Generator, out: Path, device: str = "cpu") -> Experiment:
    """Training speed of one of the paper's networks on random tokens, against the device's peak."""
    hidden, layers, heads = profile.speed_widths
    config = DiTConfig(
        vocab_size=profile.speed_vocab, hidden=hidden, layers=layers, heads=heads, max_seq_len=profile.speed_length
    )
    tokens = profile.speed_batch * profile.speed_length
    turns = time_training(tokens, profile.speed_vocab, profile.speed_steps, device, config)
    experiment = Experiment(comparisons=[turns.comparison()])
    peak = peak_flops(device)
    if device == "cuda":
        memory = torch.cuda.max_memory_allocated() / 2**30
        experiment.metrics.append(Metric(f"training memory of both, {turns.name}", memory, "GiB", "lower"))
    if peak is not None:
        shares = turns.ours * flops_per_token(config, profile.speed_length) / peak
        experiment.claims.append(
            Claim(
                id="throughput-mfu",
                statement=f"Training of a network of {layers} × {hidden} uses a third of the device's peak",
                source=TARGET,
                measured=float(np.mean(shares)),
                op=">=",
                value=0.33,
                n=len(shares),
                ci=t_interval(shares),
                unit="of the bfloat16 peak",
                note=f"{turns.name}; peak {peak:.3g} FLOP/s; forward × 3 counted",
            )
        )
    return experiment


def _ratio(turns: Turns, identifier: str, statement: str, op: str, value: float) -> Claim:
    measured, interval = geometric_mean(turns.ours / turns.peer)
    return Claim(
        id=identifier,
        statement=statement,
        source=TARGET,
        measured=measured,
        op=op,
        value=value,
        n=len(turns.ours),
        ci=interval,
        unit="×",
        note=f"{turns.name}, against {turns.peer_name}; geometric mean and its t interval",
    )


def time_sampling(rows: int, vocab: int, repeats: int, device: str = "cpu") -> tuple[Turns, Turns]:
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
    steps()
    forward()
    ours, peer = in_turns({"steps": steps, "forward": forward}, repeats, device).values()
    batched, single = in_turns({"together": together, "one by one": one_by_one}, repeats, device).values()
    return (
        Turns(
            f"sampling step: {shape[0]} × {length} tokens, {vocab} columns", 1e3 * ours / STEPS, 1e3 * peer,
            "one pass of the network", "ms", "lower",
        ),
        Turns(
            f"self-correction: {SEQUENCES} sequences of {CELLS}, {vocab} columns", SEQUENCES / batched,
            SEQUENCES / single, "one at a time", "sequences/s", "higher",
        ),
    )  # fmt: skip


def time_training(rows: int, vocab: int, repeats: int, device: str, config: DiTConfig) -> Turns:
    """The trainer's step beside the same network trained on plain cross-entropy without noise.

    On a GPU in bfloat16 with compiled blocks.

    Parameters
    ----------
    rows : tokens of a batch.
    config : of the network.
    """
    torch.set_num_threads(1)
    half = device == "cuda"
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

    ours()
    peer()
    step, baseline = in_turns({"ours": ours, "peer": peer}, repeats, device).values()
    size = f"{config.layers} × {config.hidden}, {x.shape[0]} × {length} tokens, {vocab} columns"
    name = f"training, DiT {size}, {'bfloat16' if half else 'float32'}"
    return Turns(name, x.numel() / step, x.numel() / baseline, "cross-entropy, no noise", "token/s", "higher")


def small(vocab: int) -> DiTConfig:
    """The network of the timings on a CPU."""
    return DiTConfig(vocab_size=vocab, hidden=256, layers=4, heads=4, max_seq_len=128)


def _small(vocab: int, device: str) -> DiT:
    torch.manual_seed(0)
    model = DiT(small(vocab)).eval()
    torch.nn.init.normal_(model.head.weight, std=0.5)  # it starts at zero, and no opinion is quickly sampled
    return model.to(device)


def _corrected(model: DiT, process: HybridProcess, tokens: Tensor, generator: torch.Generator) -> Tensor:
    return self_correct(model, process, tokens, max_steps=CORRECTIONS, generator=generator).tokens


def peak_flops(device: str) -> float | None:
    """Dense bfloat16 FLOP/s of the GPU, if it is one we know."""
    if device != "cuda":
        return None
    name = torch.cuda.get_device_name().lower().replace(" ", "")
    return next((float(peak) for key, peak in DEVICES.items() if key in name), None)
