"""Training speed of the paper's networks on one device: tokens/s, share of the peak, memory."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from ..models import DiT, DiTConfig
from ..plan import DEVICES, flops_per_sample
from ..process import HybridProcess
from ..train.noise import noisy_batch
from ..train.optim import make_optimizer, parameter_groups
from ..train.parallel import World
from ..train.step import Objective, train_step
from .profiles import Profile
from .report import TARGET, Claim, Experiment, Metric, t_interval

WARM_UP = 5  # steps before the clock runs: compilation, allocation


def run_throughput(profile: Profile, rng: np.random.Generator, out: Path, device: str = "cpu") -> Experiment:
    """Time the trainer's own step on random tokens."""
    size, length, rows = profile.speed_model, profile.speed_length, profile.speed_batch
    vocab = profile.speed_vocab
    seed = int(rng.integers(2**31))
    torch.manual_seed(seed)
    config = DiTConfig.preset(size, vocab, max_seq_len=length)
    model = DiT(config).to(device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        for block in model.blocks:
            block.compile()
    process = HybridProcess(vocab, vocab - 1, 0.2)
    objective = Objective(model, process, precision="bf16" if device == "cuda" else "fp32")
    optimizer = make_optimizer(parameter_groups(objective, 0.02), "adamw", 5e-4, (0.9, 0.99), 1e-9)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    world = World(torch.device(device))
    x = torch.randint(vocab - 1, (rows, length), generator=torch.Generator().manual_seed(seed)).to(device)
    spent = []
    for step in range(WARM_UP + profile.speed_steps):
        began = time.perf_counter()
        train_step(objective, parameters, optimizer, [noisy_batch(x, None, process, seed, step)], 1.0, world)
        if device == "cuda":
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - began)
    rate = rows * length / np.array(spent[WARM_UP:])
    where = f"DiT {size}, {rows} × {length} tokens, {device}"
    experiment = Experiment(
        metrics=[
            Metric(f"training speed, {where}", float(np.median(rate)), "token/s", "higher"),
            Metric(f"parameters, DiT {size}", float(model.num_parameters()), "", "lower"),
        ]
    )
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**30
        experiment.metrics.append(Metric(f"training memory, {where}", peak, "GiB", "lower"))
        name = torch.cuda.get_device_name()
        known = next((flops for short, flops in DEVICES.items() if short in name.lower()), None)
        if known is not None:
            shares = rate * flops_per_sample(config, length) / length / known
            experiment.claims.append(
                Claim(
                    id="throughput-mfu",
                    statement=f"Training of the {size} network uses a third of the device's peak",
                    source=TARGET,
                    measured=float(np.mean(shares)),
                    op=">=",
                    value=0.33,
                    n=len(shares),
                    ci=t_interval(shares),
                    unit="of the bfloat16 peak",
                    note=f"{where}, bf16, compiled; peak {known:.3g} FLOP/s on {name}; forward × 3 counted",
                )
            )
    return experiment
