import importlib.util
from pathlib import Path

import numpy as np
import torch

import onestep_diffusion as osd

FILE = Path(__file__).parents[1] / "benchmarks" / "torch_step.py"


def test_the_pytorch_update_trains_on_the_network_whose_outputs_are_ours(tmp_path):
    spec = importlib.util.spec_from_file_location("torch_step", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net, teacher = module.networks(module.SMALL, "f32", "cpu")
    assert isinstance(teacher, osd.Denoiser)
    shape = (4, 1, 8, 8)
    assert module.agreement(net, teacher, shape, torch.float32) < 1e-4
    step = module.TorchScore(net, torch.float32, "cpu", compiled=False)
    before = [p.detach().clone() for p in step.generator.parameters()]
    step(shape)
    changes = [float((a - b.detach()).abs().max()) for a, b in zip(before, step.generator.parameters(), strict=True)]
    assert 0 < max(changes) <= 2e-4  # Adam's first step
    assert all(np.array_equal(a.detach(), b.detach())
               for a, b in zip(net.parameters(), step.teacher.parameters(), strict=True))  # fmt: skip
