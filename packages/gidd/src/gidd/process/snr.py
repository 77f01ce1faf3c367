"""The follow-up's processes, given by the log-SNR (von Rütte et al. 2025, arXiv:2512.10858)."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .base import Process, aligned, check_time, check_vocabulary

PRESETS = {"masked": -1000.0, "low-uniform": -2.0, "balanced": 0.0, "high-uniform": 2.0, "uniform": 1000.0}


class SNRProcess(Process):
    """alpha = 1 - t and noise pi = sigma(a lambda + b) u + (1 - sigma(a lambda + b)) m, lambda = ln(alpha/(1-alpha)).

    The mixture sees lambda clamped to [min_log_snr, max_log_snr]; alpha does not, so that at t = 1 the state is exactly
    the prior. Valid for |a| <= 1.

    Parameters
    ----------
    vocab_size : V, the mask included.
    mask_id : id of the mask token; u is uniform over all others.
    scale : a.
    shift : b; see ``PRESETS``.
    """

    def __init__(
        self,
        vocab_size: int,
        mask_id: int,
        scale: float = 1.0,
        shift: float = 0.0,
        min_log_snr: float = -9.0,
        max_log_snr: float = 9.0,
    ) -> None:
        check_vocabulary(vocab_size, mask_id)
        if mask_id is None:
            raise ValueError("SNRProcess needs a mask_id; UniformProcess has no mask")
        if not (math.isfinite(scale) and math.isfinite(shift)):
            raise ValueError(f"scale and shift have to be finite; got {scale!r} and {shift!r}")
        if not min_log_snr < max_log_snr:
            raise ValueError(f"min_log_snr has to be below max_log_snr; got {min_log_snr!r} and {max_log_snr!r}")
        self.vocab_size, self.mask_id = vocab_size, mask_id
        self.scale, self.shift = float(scale), float(shift)
        self.min_log_snr, self.max_log_snr = float(min_log_snr), float(max_log_snr)

    @classmethod
    def preset(cls, name: str, vocab_size: int, mask_id: int) -> SNRProcess:
        """One of masked, low-uniform, balanced, high-uniform, uniform."""
        if name not in PRESETS:
            raise ValueError(f"preset {name!r} is not one of {', '.join(PRESETS)}")
        return cls(vocab_size, mask_id, shift=PRESETS[name])

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - check_time(t)

    def alpha_rate(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t, dtype=torch.float64)

    def log_snr(self, t: Tensor) -> Tensor:
        t = check_time(t)
        return torch.log1p(-t) - torch.log(t)

    def time(self, log_snr: Tensor | float) -> Tensor:
        return torch.sigmoid(-torch.as_tensor(log_snr, dtype=torch.float64))

    def _uniform_share(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(self.scale * log_snr.clamp(self.min_log_snr, self.max_log_snr) + self.shift)

    def _share_slope(self, log_snr: Tensor) -> Tensor:
        """d share / d lambda, zero where lambda is clamped."""
        share = self._uniform_share(log_snr)
        inside = (log_snr > self.min_log_snr) & (log_snr < self.max_log_snr)
        return self.scale * share * (1 - share) * inside

    def masses(self, t: Tensor) -> Tensor:
        share = self._uniform_share(self.log_snr(t))
        return check_time(t)[..., None] * torch.stack([1 - share, share], dim=-1)

    def rate_masses(self, t: Tensor) -> Tensor:
        log_snr = self.log_snr(t)
        share, slope = self._uniform_share(log_snr), self._share_slope(log_snr)
        return torch.stack([1 - share + slope, share - slope], dim=-1) / (1 - t.double())[..., None]

    def snr_weight(self, z: Tensor, x: Tensor, log_snr: Tensor) -> Tensor:
        """w_lambda(z, x) = (pi(z) - pi'(z)) / (pi(z) + e^lambda 1[z = x]): the ELBO's weight per unit of log-SNR."""
        pi, rate = self._pi_and_rate(z, log_snr)
        below = pi + torch.exp(log_snr) * (z == x)
        return torch.where(rate > 0, rate / below.clamp_min(1e-300), 0.0)

    def elbo_weight(self, z: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The same divided by t (1 - t), with e^lambda = (1 - t) / t."""
        t = aligned(check_time(t, z.device), z)
        pi, rate = self._pi_and_rate(z, self.log_snr(t))
        return torch.where(rate > 0, rate / ((1 - t) * (t * pi + (1 - t) * (z == x))), 0.0)

    def _pi_and_rate(self, z: Tensor, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """pi(z) and pi(z) - pi'(z)."""
        share, slope = self._uniform_share(log_snr), self._share_slope(log_snr)
        n = self.vocab_size - 1
        mask = torch.eq(z, self._mask)
        return torch.where(mask, 1 - share, share / n), torch.where(mask, 1 - share + slope, (share - slope) / n)

    def loss_weight(self, z: Tensor, x: Tensor, t: Tensor, scheme: str = "dynamic", w_max: float = 1.0) -> Tensor:
        if scheme == "snr":
            t = aligned(check_time(t, z.device), z)
            return self.snr_weight(z, x, self.log_snr(t)).clamp(0.0, 1e3)
        return super().loss_weight(z, x, t, scheme, w_max)

    @cached_property
    def measures(self) -> Tensor:
        mask = torch.zeros(self.vocab_size, dtype=torch.float64)
        mask[self.mask_id] = 1.0
        return torch.stack([mask, (1 - mask) / (self.vocab_size - 1)])

    def _remedy(self) -> str:
        return f" (scale={self.scale:g}; its size has to be at most 1)" if abs(self.scale) > 1 else ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "type": "snr",
            "vocab_size": self.vocab_size,
            "mask_id": self.mask_id,
            "scale": self.scale,
            "shift": self.shift,
            "min_log_snr": self.min_log_snr,
            "max_log_snr": self.max_log_snr,
        }
