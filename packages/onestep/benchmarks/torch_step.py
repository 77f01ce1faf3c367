"""An update by two scores in PyTorch, eager and compiled, beside this package's, on the same U-Net and data.

    python benchmarks/torch_step.py            # a GPU: the U-Net of the gpu profile, bf16, batch 512
    python benchmarks/torch_step.py --small    # a CPU: a tiny one, to see that it works

The weights are PyTorch's, converted; both networks must give the same outputs before anything is timed. Prints JSON:
images a second of each, medians of updates that take turns, and of the ratio's update. Not part of the package, which
does not depend on PyTorch.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from safetensors.torch import save_file

import onestep_diffusion as osd
from onestep_diffusion.convert import load_edm

HERE = Path(__file__).resolve().parent
SPEC = importlib.util.spec_from_file_location("edm_reference", HERE.parent / "tests" / "edm_reference.py")
reference = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(reference)

SIGMA_INIT = 2.5
GPU = {"size": 32, "channels": 1, "base": 64, "mult": (1, 2, 2), "blocks": 2, "attention": (16,)}
SMALL = {"size": 8, "channels": 1, "base": 16, "mult": (1, 2), "blocks": 1, "attention": ()}


class TorchScore:
    """Diff-Instruct's update: one of the fake score, then one of the generator along the difference of two scores."""

    def __init__(self, net: torch.nn.Module, dtype: torch.dtype, device: str, compiled: bool) -> None:
        self.teacher, self.fake, self.generator = (copy.deepcopy(net).to(device).train() for _ in range(3))
        self.average = copy.deepcopy(self.generator)
        self.teacher.requires_grad_(False)
        self.nets = [torch.compile(n) if compiled else n for n in (self.teacher, self.fake, self.generator)]
        fused = device == "cuda"
        self.adam = [torch.optim.Adam(n.parameters(), lr=1e-4, betas=(0.0, 0.999), fused=fused)
                     for n in (self.fake, self.generator)]  # fmt: skip
        self.dtype, self.device = dtype, device

    def denoise(self, net: torch.nn.Module, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
            return reference.denoise(net, x, sigma).float()

    def levels(self, n: int) -> torch.Tensor:
        return (1.2 * torch.randn(n, device=self.device) - 1.2).exp().clamp(0.002, 80)

    def sample(self, shape: tuple[int, ...]) -> torch.Tensor:
        z = torch.randn(shape, device=self.device)
        return self.denoise(self.nets[2], SIGMA_INIT * z, torch.full(shape[:1], SIGMA_INIT, device=self.device))

    def __call__(self, shape: tuple[int, ...]) -> None:
        teacher, fake, _ = self.nets
        with torch.no_grad():
            x = self.sample(shape)
        sigma, noise = self.levels(len(x)), torch.randn_like(x)
        weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
        error = self.denoise(fake, x + sigma[:, None, None, None] * noise, sigma) - x
        (weight * error.square().sum((1, 2, 3))).mean().backward()
        self.adam[0].step()
        self.adam[0].zero_grad()
        x = self.sample(shape)
        sigma = self.levels(len(x))
        with torch.no_grad():
            noised = x + sigma[:, None, None, None] * torch.randn_like(x)
            v = self.denoise(fake, noised, sigma) - self.denoise(teacher, noised, sigma)
        (v * x).sum((1, 2, 3)).mean().backward()
        self.adam[1].step()
        self.adam[1].zero_grad()
        with torch.no_grad():
            for a, b in zip(self.average.parameters(), self.generator.parameters(), strict=True):
                a.lerp_(b, 1e-3)


def agreement(net: torch.nn.Module, ours: osd.Denoiser, shape: tuple[int, ...], dtype: torch.dtype) -> float:
    """Largest difference of the denoisers over the largest output, at the same inputs."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, *shape[1:])).astype(np.float32)
    sigma = np.exp(rng.normal(-1.2, 1.2, size=8)).astype(np.float32)
    device = next(net.parameters()).device.type
    with torch.no_grad(), torch.autocast(device, dtype, enabled=dtype != torch.float32):
        theirs = (
            reference.denoise(net, torch.tensor(x).to(device), torch.tensor(sigma).to(device)).float().cpu().numpy()
        )
    mine = np.asarray(ours(jnp.asarray(x.transpose(0, 2, 3, 1)), jnp.asarray(sigma))).transpose(0, 3, 1, 2)
    return float(np.abs(mine - theirs).max() / np.abs(theirs).max())


def networks(spec: dict[str, object], precision: str, device: str) -> tuple[torch.nn.Module, osd.Denoiser]:
    """PyTorch's network with random weights, and the same one of this package."""
    net = reference.randomize(reference.UNet(reference.SONG, **spec), seed=0).to(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        save_file({k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()}, path)
        return net, load_edm(path, precision=precision)


def measure(small: bool, repeats: int) -> dict[str, object]:
    """Every number that is printed."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not small:
        raise SystemExit("error: PyTorch sees no GPU; give --small for a run that is not worth reporting")
    spec, batch, per_call = (SMALL, 8, 2) if small else (GPU, 512, 10)
    precision, dtype = ("f32", torch.float32) if small else ("bf16", torch.bfloat16)
    net, teacher = networks(spec, precision, device)
    shape = (batch, spec["channels"], spec["size"], spec["size"])
    apart = agreement(net, teacher, shape, dtype)
    if apart > (1e-4 if precision == "f32" else 1e-2):
        raise SystemExit(f"error: the networks' outputs differ by {apart:.2g}; nothing was timed")

    images = np.random.default_rng(0).integers(0, 256, (1024, shape[2], shape[3], shape[1]), dtype=np.uint8)
    data = osd.make_dataset(images, held_out=0.0)
    ways = {}
    for method in ("score", "ratio"):
        cfg = osd.StudentConfig(method=method, aux_updates=1, batch_size=batch, precision=precision)
        ways[f"onestep-diffusion, {method}"] = ours(osd.make_student_step(data, teacher, cfg), per_call)
    for name, compiled in (("PyTorch, score, eager", False), ("PyTorch, score, compiled", True)):
        if compiled and small:
            continue  # the compiler wants a C++ toolchain on a CPU
        ways[name] = theirs(TorchScore(net, dtype, device, compiled), shape, per_call)
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()  # compiles
    for _ in range(repeats):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            spent[name].append((time.perf_counter() - began) / per_call)
    return {
        "device": jax.devices()[0].device_kind, "batch": batch, "precision": precision, "outputs differ by": apart,
        "images/s": {name: batch / statistics.median(seconds) for name, seconds in spent.items()},
        "spread": {name: (max(s) - min(s)) / statistics.median(s) for name, s in spent.items()},
    }  # fmt: skip


def ours(step: osd.StudentStep, per_call: int):
    """per_call updates in one program."""
    state = step.state

    def way() -> None:
        nonlocal state
        state, _ = step.run(state, step.pool, step.frozen, length=per_call)
        jax.block_until_ready(state)

    return way


def theirs(step: TorchScore, shape: tuple[int, ...], per_call: int):
    """per_call updates, one after the other."""

    def way() -> None:
        for _ in range(per_call):
            step(shape)
        if step.device == "cuda":
            torch.cuda.synchronize()

    return way


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a tiny network, also without a GPU")
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.small, arguments.repeats), indent=2))
