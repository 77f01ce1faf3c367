"""Claim 1: GIDD is masked diffusion at p_u = 0 and its ELBO is exact, in float64 on joints that can be enumerated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..exact import d3pm_nelbo, loo_model, mutual_information, path_nelbo
from ..loss import gidd_loss
from ..process import HybridProcess, SNRProcess
from .profiles import Profile
from .report import DERIVED, PAPER, Claim, Experiment

STATES, LENGTH = 3, 3
T_MIN, T_MAX = 0.05, 0.95


def run_exact(profile: Profile, rng: np.random.Generator, out: Path, device: str = "cpu") -> Experiment:
    """Identities of the loss, the leave-one-out identity, the discrete-time limit, and the log-SNR form."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    return Experiment(
        claims=[
            _masked_diffusion(generator),
            _closed_form(generator),
            _log_snr_form(generator),
            _leave_one_out(profile, generator),
            _discrete_time(profile, generator),
        ]
    )


def _masked_diffusion(generator: torch.Generator) -> Claim:
    V, rows = 50, 400
    process = HybridProcess(V, V - 1, 0.0)
    logits = 3 * torch.randn(rows, 8, V, dtype=torch.float64, generator=generator)
    x = torch.randint(V - 1, (rows, 8), generator=generator)
    t = 1e-4 + (1 - 2e-4) * torch.rand(rows, dtype=torch.float64, generator=generator)
    z = process.q_sample(x, t, generator)
    found = gidd_loss(logits, x, z, t, process, weighting="none", reduction="none").loss
    log_p = logits[..., : V - 1].log_softmax(-1).gather(-1, x[..., None])[..., 0]
    expected = torch.where(z == V - 1, -log_p / t[:, None], 0.0)
    error = (found.double() - expected).abs() / expected.abs().clamp_min(1.0)
    return Claim(
        id="exact-masked",
        statement="At p_u = 0 the loss is the ELBO of masked diffusion, -ln x_theta(x) / t on masks",
        source=f"{PAPER}, Corollary",
        measured=float(error.max()),
        op="<=",
        value=1e-8,
        n=x.numel(),
        note="largest relative error over tokens, float64",
    )


def _closed_form(generator: torch.Generator) -> Claim:
    V, rows = 40, 300
    worst = 0.0
    for p_u in (0.0, 0.1, 0.5):
        process = HybridProcess(V, V - 1, p_u)
        logits = 3 * torch.randn(rows, 1, V + 8, dtype=torch.float64, generator=generator)
        x = torch.randint(V - 1, (rows, 1), generator=generator)
        t = 1e-4 + (1 - 2e-4) * torch.rand(rows, dtype=torch.float64, generator=generator)
        z = process.q_sample(x, t, generator)
        values, slopes = [], []
        for impl in ("chunked", "reference"):
            leaf = logits.clone().requires_grad_()
            loss = gidd_loss(leaf, x, z, t, process, impl=impl, reduction="sum").loss
            (slope,) = torch.autograd.grad(loss, leaf)
            values.append(float(loss.detach()))
            slopes.append(slope)
        worst = max(
            worst, abs(values[0] / values[1] - 1), float((slopes[0] - slopes[1]).abs().max() / slopes[1].abs().max())
        )
    return Claim(
        id="exact-closed-form",
        statement="The closed form over the vocabulary equals the dense formula, value and gradient",
        source=DERIVED,
        measured=worst,
        op="<=",
        value=1e-8,
        n=3 * rows,
        note="largest relative error, p_u in {0, .1, .5}, float64",
    )


def _log_snr_form(generator: torch.Generator) -> Claim:
    V, n = 30, 2000
    process = SNRProcess(V, V - 1, shift=0.5)
    t = 0.001 + 0.998 * torch.rand(n, dtype=torch.float64, generator=generator)
    x = torch.randint(V - 1, (n,), generator=generator)
    z = process.q_sample(x, t, generator)
    by_time = process.elbo_weight(z, x, t)
    # The same weight from rates and marginals, dt = |dt / d lambda| d lambda with dt / d lambda = -t (1 - t).
    rate, marginal = process.rate_vector(t), process.marginal(x, t)
    direct = (rate / marginal).gather(-1, z[:, None])[:, 0]
    by_snr = process.snr_weight(z, x, process.log_snr(t)) / (t * (1 - t))
    error = torch.maximum((by_time / direct - 1).abs(), (by_snr / direct - 1).abs())
    return Claim(
        id="exact-log-snr",
        statement="The log-SNR form of the weights equals the time form",
        source="arXiv:2512.10858",
        measured=float(error.max()),
        op="<=",
        value=1e-8,
        n=n,
        note="largest relative error",
    )


def _joint(generator: torch.Generator) -> torch.Tensor:
    joint = torch.rand((STATES,) * LENGTH, dtype=torch.float64, generator=generator) ** 3
    return joint / joint.sum()


def _leave_one_out(profile: Profile, generator: torch.Generator) -> Claim:
    errors = []
    for k in range(profile.joints):
        joint, process = _joint(generator), HybridProcess(STATES + 1, STATES, (0.0, 0.2, 0.4)[k % 3])
        path = path_nelbo(loo_model(joint, process), joint, process, T_MIN, T_MAX, 256)
        information = mutual_information(joint, process, T_MIN) - mutual_information(joint, process, T_MAX)
        errors.append(abs(path - information))
    return Claim(
        id="exact-leave-one-out",
        statement="With the leave-one-out posterior as the model, the path ELBO is I(x; z_s) - I(x; z_t)",
        source=DERIVED,
        measured=max(errors),
        op="<=",
        value=1e-4,
        n=len(errors),
        unit="nats",
        note=f"largest error over random joints of {LENGTH} tokens, p_u in {{0, .2, .4}}",
    )


def _discrete_time(profile: Profile, generator: torch.Generator) -> Claim:
    coarse, fine = profile.d3pm_steps
    joint, process = _joint(generator), HybridProcess(STATES + 1, STATES, 0.2)
    model = loo_model(joint, process)
    limit = path_nelbo(model, joint, process, T_MIN, T_MAX, 256)
    errors = [abs(d3pm_nelbo(model, joint, process, steps, T_MIN, T_MAX) - limit) for steps in (coarse, fine)]
    return Claim(
        id="exact-discrete-limit",
        statement="The bound of the discrete-time model converges to the ELBO like 1/T",
        source=DERIVED,
        measured=errors[0] / errors[1],
        op=">=",
        value=6.0,
        n=1,
        note=f"error at {coarse} steps ({errors[0]:.2e} nats) over that at {fine} ({errors[1]:.2e}); 8 is exact 1/T",
    )
