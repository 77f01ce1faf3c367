"""What masking costs (C9): our projections beside the four products of the released code, and whole training steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..models import PMAE, PixelMAE, PMAEConfig
from ..samplers import ComponentSampler
from ..space import MaskSpace, fit_space
from .profiles import Profile
from .redundancy import photos
from .report import TARGET, Claim, Comparison, Experiment, Metric
from .timing import in_turns, ratio_interval

RATIO = 0.2


def run_cost(profile: Profile, rng: np.random.Generator, out: Path, device: str = "cpu") -> Experiment:
    """Timings on one CPU thread, or on the GPU; every pair is checked for the same answer first."""
    experiment = Experiment()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        images = photos(2 * profile.split_batch, side=profile.split_side)
        # Random directions cost what principal ones cost, and need no decomposition.
        space = fit_space(images, "rotation", seed=int(rng.integers(2**31))).to(device)
        _split(experiment, profile, space, images, rng, device)
        _steps(experiment, profile, rng, device)
    finally:
        torch.set_num_threads(threads)
    return experiment


def training_flops(model: Any, x: Tensor, draws: int = 1) -> float:
    """Of an image, forward and backward, a mean over so many draws of masks for the images (B, C, H, W)."""
    counter = FlopCounterMode(display=False)
    with counter:
        for _ in range(draws):
            model(x).loss.backward()
    return counter.get_total_flops() / (draws * len(x))


def _split(
    experiment: Experiment,
    profile: Profile,
    space: MaskSpace,
    images: np.ndarray,
    rng: np.random.Generator,
    device: str,
) -> None:
    x = space.standardize(torch.from_numpy(images[: profile.split_batch]).to(device).float() / 255)
    prediction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(device)
    v = space.matrix().contiguous()  # (D, K): columns are gathered, as in the released code
    mask = ComponentSampler(space.shares, RATIO, "count", seed=int(rng.integers(2**31))).sample()

    def ours() -> tuple[Tensor, Tensor, Tensor]:
        guess = prediction.clone().requires_grad_()
        hidden = space.hidden(mask, reduction="count")
        split = hidden.split(x)
        loss, _ = hidden.loss(guess, split.target)
        loss.backward()  # type: ignore[no-untyped-call]
        assert guess.grad is not None
        return split.visible, loss.detach(), guess.grad

    def four_products() -> tuple[Tensor, Tensor, Tensor]:
        guess = prediction.clone().requires_grad_()
        return (*_four_products(x, guess, v, mask.to(device)), guess.grad)  # type: ignore[return-value]

    for one, other in zip(ours(), four_products(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    spent = in_turns({"ours": ours, "theirs": four_products}, profile.split_repeats, device)
    faster, interval = ratio_interval(spent["theirs"], spent["ours"])
    share = float(mask.float().mean())
    experiment.claims.append(
        Claim(
            id="split-and-loss", measured=faster, ci=interval, op=">=", value=3.0, n=len(spent["ours"]), source=TARGET,
            statement="Split and loss, with gradient, are three times as fast as the released code's four products.",
            unit="times", note=f"D = {space.dim:,}, batch {len(x)}, {share:.0%} of the components hidden, {device}",
        )
    )  # fmt: skip
    experiment.comparisons.append(
        Comparison(
            f"split and loss, D = {space.dim:,}, batch {len(x)}", 1e3 * float(np.median(spent["ours"])),
            1e3 * float(np.median(spent["theirs"])), "four products with gathered columns (torch)", "ms", "lower",
        )
    )  # fmt: skip


def _four_products(x: Tensor, guess: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Target, coefficients that stay, rotated back, prediction: visible image and loss, with the gradient taken."""
    flat = x.flatten(1)
    hidden, kept = v[:, mask], v[:, ~mask]
    target = flat @ hidden
    visible = (flat @ kept) @ kept.T
    loss = (guess.flatten(1) @ hidden - target).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    return visible.reshape(x.shape), loss.detach()


def _steps(experiment: Experiment, profile: Profile, rng: np.random.Generator, device: str) -> None:
    """FLOPs of both methods, and images/s beside an implementation on transformers' ViTMAE."""
    side, batch = profile.side, profile.step_batch
    images = photos(2 * max(batch, 64), side=side)
    space = fit_space(images, "rotation").to(device)
    x = torch.from_numpy(images[:batch]).to(device).float() / 255
    ours = PMAE(PMAEConfig(profile.preset, ratio=RATIO, masks_per_batch=1), space).to(device)  # as the peer
    mae = PixelMAE(PMAEConfig(profile.preset), space).to(device)
    flops = {}
    for name, model in (("PMAE", ours), ("MAE", mae)):
        flops[name] = training_flops(model, x)
        experiment.metrics.append(Metric(f"{name}: training", flops[name] / 1e9, "GFLOP/image", "lower"))
    experiment.metrics.append(Metric("PMAE FLOPs over those of MAE 75 %", flops["PMAE"] / flops["MAE"], "", "lower"))
    steps: dict[str, Callable[[], Any]] = {
        "ours": _step(ours, lambda: ours(x).loss),
        "mae": _step(mae, lambda: mae(x).loss),
    }
    peer = _peer(ours, space)
    if peer is not None:
        v = space.matrix().contiguous()
        standard = space.standardize(x)
        sampler = ComponentSampler(space.shares, RATIO)
        steps["peer"] = _step(peer, lambda: _peer_loss(peer, standard, v, sampler.sample().to(device)))
    spent = in_turns(steps, profile.step_repeats, device)
    speed = {name: batch / float(np.median(times)) for name, times in spent.items()}
    experiment.comparisons.append(
        Comparison(
            f"training step, {profile.preset}, {side} px",
            speed["ours"],
            speed["mae"],
            "our MAE 75 %",
            "images/s",
            "higher",
        )
    )
    if peer is None:
        return
    faster, interval = ratio_interval(spent["peer"], spent["ours"])
    target = 5.0 if device == "cuda" else 1.5
    experiment.claims.append(
        Claim(
            id="training-step", measured=faster, ci=interval, op=">=", value=target, n=len(spent["ours"]),
            source=TARGET, unit="times",
            statement=f"A training step is {target:g} times as fast as with transformers' ViTMAE and four products.",
            note="same widths, depths and tokens; mask_ratio 0, eager attention, float32, AdamW on both",
        )
    )  # fmt: skip
    experiment.comparisons.append(
        Comparison(
            f"training step, {profile.preset}, {side} px", speed["ours"], speed["peer"],
            "transformers ViTMAE, mask_ratio 0, four products", "images/s", "higher",
        )
    )  # fmt: skip


def _step(model: Any, loss: Callable[[], Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _peer(ours: PMAE, space: MaskSpace) -> Any:
    """ViTMAE of the same sizes, that drops no patch; None without transformers."""
    try:
        from transformers import ViTMAEConfig, ViTMAEForPreTraining
    except ImportError:
        return None
    c = ours.config
    return ViTMAEForPreTraining(
        ViTMAEConfig(
            num_channels=space.image_shape[0], image_size=space.image_shape[1], patch_size=c.patch_size,
            hidden_size=c.dim, num_hidden_layers=c.depth, num_attention_heads=c.heads,
            intermediate_size=int(c.dim * c.mlp_ratio),
            decoder_hidden_size=c.decoder_dim, decoder_num_hidden_layers=c.decoder_depth,
            decoder_num_attention_heads=c.decoder_heads, decoder_intermediate_size=int(c.decoder_dim * c.mlp_ratio),
            mask_ratio=0.0, attn_implementation="eager",
        )
    ).to(space.mean.device)  # fmt: skip


def _peer_loss(peer: Any, x: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    hidden, kept = v[:, mask], v[:, ~mask]
    flat = x.flatten(1)
    target = flat @ hidden
    visible = ((flat @ kept) @ kept.T).reshape(x.shape)
    prediction = peer.unpatchify(peer(visible).logits)
    return (prediction.flatten(1) @ hidden - target).square().mean()
