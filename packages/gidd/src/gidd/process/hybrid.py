"""The paper's hybrid schedule: masking mixed with uniform noise; pure masking and pure uniform noise are its limits."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .base import Process, aligned, check_time, check_vocabulary


class HybridProcess(Process):
    """q_t = [(1 - t) x + t m + c_t u] / C_t with c_t = B t^(gamma/2) (1 - t)^(gamma/2) and C_t = 1 + c_t.

    u is uniform over all tokens but the mask and B = 2^gamma p_u / (1 - p_u), so that exactly ``p_uniform`` of the
    tokens is uniform noise at t = 1/2 (von Rütte et al. 2025, section 3.3). p_uniform = 0 is masked diffusion, exactly.

    Parameters
    ----------
    vocab_size : V, the mask included.
    mask_id : id of the mask token.
    p_uniform : p_u in [0, 1).
    gamma : exponent in (0, 2]; beyond 2 rates are negative (:meth:`validate` says where).
    t_eps : training times lie in [t_eps, 1 - t_eps].

    Examples
    --------
    >>> p = HybridProcess(vocab_size=6, mask_id=5, p_uniform=0.2)
    >>> p.marginal(torch.tensor(0), torch.tensor(0.5)).round(decimals=3)
    tensor([0.4400, 0.0400, 0.0400, 0.0400, 0.0400, 0.4000], dtype=torch.float64)
    """

    def __init__(
        self, vocab_size: int, mask_id: int, p_uniform: float = 0.1, gamma: float = 1.0, t_eps: float = 1e-4
    ) -> None:
        check_vocabulary(vocab_size, mask_id)
        if mask_id is None:
            raise ValueError("HybridProcess needs a mask_id; UniformProcess has no mask")
        if not 0.0 <= p_uniform < 1.0:
            raise ValueError(f"p_uniform has to lie in [0, 1); got {p_uniform!r}")
        if not 0.0 < gamma < float("inf"):
            raise ValueError(f"gamma has to be positive, and at most 2 for a valid process; got {gamma!r}")
        if not 0.0 < t_eps < 0.5:
            raise ValueError(f"t_eps has to lie in (0, 0.5); got {t_eps!r}")
        self.vocab_size, self.mask_id = vocab_size, mask_id
        self.p_uniform, self.gamma, self.t_eps = float(p_uniform), float(gamma), float(t_eps)
        self.B = 2.0**self.gamma * self.p_uniform / (1.0 - self.p_uniform)

    def _c(self, t: Tensor) -> Tensor:
        return self.B * (t * (1 - t)) ** (self.gamma / 2)

    def _c_over(self, t: Tensor) -> Tensor:
        """c / (t (1 - t)), also at the ends of time, where it is infinite for gamma < 2."""
        return self.B * (t * (1 - t)) ** (self.gamma / 2 - 1) if self.B else torch.zeros_like(t)

    def alpha(self, t: Tensor) -> Tensor:
        t = check_time(t)
        return (1 - t) / (1 + self._c(t))

    def alpha_rate(self, t: Tensor) -> Tensor:
        t = check_time(t)
        c = self._c(t)
        slope = torch.where(t < 1, (1 - t) * self._c_over(t), 0.0)  # c / t
        return -(1 + c + slope * (self.gamma / 2) * (1 - 2 * t)) / (1 + c) ** 2

    def masses(self, t: Tensor) -> Tensor:
        t = check_time(t)
        c = self._c(t)
        return torch.stack([t, c], dim=-1) / (1 + c)[..., None]

    def rate_masses(self, t: Tensor) -> Tensor:
        t = check_time(t)
        c = self._c(t)
        uniform = self._c_over(t) * (self.gamma / 2 + (1 - self.gamma) * t)
        return torch.stack([1 / (1 - t), uniform], dim=-1) / (1 + c)[..., None]

    def elbo_weight(self, z: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Closed form: 1/(t(1-t)) on masks, (gamma/2 + (1-gamma) t)/(t(1-t)) on other noise, little where z = x."""
        t = aligned(check_time(t, z.device), z)
        c, n = self._c(t), self.vocab_size - 1
        mask = 1 / (t * (1 - t))
        share = self.gamma / 2 + (1 - self.gamma) * t
        clean = share * (self._c_over(t) / n) / (1 - t + c / n).clamp_min(1e-300)
        # At gamma = 2 it is 1 / t, also at t = 1.
        noise = torch.where(share != 0, share * mask, 1.0) if self.B else torch.zeros_like(t)
        return torch.where(torch.eq(z, self._mask), mask, torch.where(z.eq(x), clean, noise))

    @cached_property
    def measures(self) -> Tensor:
        mask = torch.zeros(self.vocab_size, dtype=torch.float64)
        mask[self.mask_id] = 1.0
        return torch.stack([mask, (1 - mask) / (self.vocab_size - 1)])

    def _dynamic(self, z: Tensor, x: Tensor, t: Tensor) -> Tensor:
        if self.gamma != 1.0:
            return self._dynamic_exact(z, x, t)
        log_snr = self.log_snr(t).clamp(-20.0, 20.0)
        clean = (self.B / self.vocab_size) * torch.exp(-log_snr / 2)
        return (1.0 + (z == self.mask_id) + (clean - 1.0) * (z == x)).clamp(0.0, 2.0)

    def _dynamic_released(self, z: Tensor, x: Tensor, t: Tensor) -> Tensor:
        clean = (self.B / self.vocab_size) * torch.exp(self.gamma / 2 * torch.sigmoid(-t))
        return (1.0 + (z == self.mask_id) + (clean - 1.0) * (z == x)).clamp(0.0, 2.0)

    def _remedy(self) -> str:
        return f" (gamma={self.gamma:g}; with uniform noise it has to be at most 2)" if self.gamma > 2 else ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "type": "hybrid",
            "vocab_size": self.vocab_size,
            "mask_id": self.mask_id,
            "p_uniform": self.p_uniform,
            "gamma": self.gamma,
            "t_eps": self.t_eps,
        }


class MaskedProcess(HybridProcess):
    """Masked diffusion: alpha = 1 - t, all noise is the mask. Equal to ``HybridProcess(p_uniform=0)``."""

    def __init__(self, vocab_size: int, mask_id: int) -> None:
        super().__init__(vocab_size, mask_id, p_uniform=0.0)

    def to_dict(self) -> dict[str, Any]:
        return {"type": "masked", "vocab_size": self.vocab_size, "mask_id": self.mask_id}


class UniformProcess(Process):
    """Uniform noise over all tokens, no mask: alpha = 1 - t."""

    mask_id = None

    def __init__(self, vocab_size: int) -> None:
        check_vocabulary(vocab_size, None)
        self.vocab_size = vocab_size

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - check_time(t)

    def alpha_rate(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t, dtype=torch.float64)

    def masses(self, t: Tensor) -> Tensor:
        return check_time(t)[..., None]

    def rate_masses(self, t: Tensor) -> Tensor:
        return 1 / (1 - t.double())[..., None]

    @cached_property
    def measures(self) -> Tensor:
        return torch.full((1, self.vocab_size), 1 / self.vocab_size, dtype=torch.float64)

    def to_dict(self) -> dict[str, Any]:
        return {"type": "uniform", "vocab_size": self.vocab_size}
