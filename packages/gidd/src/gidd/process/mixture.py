"""Any mixture of fixed distributions with time-varying masses, e.g. unigram noise or noise within word classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from .base import Process, check_time, check_vocabulary

Schedule = Callable[[Tensor], Tensor]


class MixtureProcess(Process):
    """q_t = alpha(t) x + sum_k beta_k(t) u_k with sum_k beta_k = 1 - alpha.

    Parameters
    ----------
    vocab_size : V.
    alpha : differentiable function of a float64 tensor of times, 1 at t = 0 and 0 at t = 1.
    masses : one such function per measure.
    measures : (K, V) tensor or K vectors; normalised here.
    mask_id : the mask token, if there is one. Its mass has to come from a measure of its own.
    """

    def __init__(
        self,
        vocab_size: int,
        alpha: Schedule,
        masses: Sequence[Schedule],
        measures: Tensor | Sequence[Tensor],
        mask_id: int | None = None,
    ) -> None:
        check_vocabulary(vocab_size, mask_id)
        if len(measures) == 0:
            raise ValueError("measures have to be at least one vector: without noise there is no process")
        vectors = torch.stack([torch.as_tensor(u, dtype=torch.float64) for u in measures])
        if vectors.shape != (len(masses), vocab_size):
            raise ValueError(
                f"measures have to be {len(masses)} vectors of {vocab_size} entries; got shape {tuple(vectors.shape)}"
            )
        if not bool(torch.isfinite(vectors).all()) or bool((vectors < 0).any()) or bool((vectors.sum(-1) <= 0).any()):
            raise ValueError("every measure has to be finite, not negative, and not all zero")
        self.vocab_size, self.mask_id = vocab_size, mask_id
        self._alpha, self._masses = alpha, list(masses)
        self._vectors = vectors / vectors.sum(-1, keepdim=True)
        if mask_id is not None:
            self._split(mask_id)

    def _split(self, mask_id: int) -> None:
        """A measure that mixes the mask with other tokens becomes two: the mask, and the rest."""
        masses, vectors = [], []
        mask = torch.zeros(self.vocab_size, dtype=torch.float64)
        mask[mask_id] = 1.0
        for mass, vector in zip(self._masses, self._vectors, strict=True):
            share = float(vector[mask_id])
            if 0 < share < 1:
                masses += [_scaled(mass, share), _scaled(mass, 1 - share)]
                vectors += [mask, (vector * (1 - mask)) / (1 - share)]
            else:
                masses.append(mass)
                vectors.append(vector)
        self._masses, self._vectors = masses, torch.stack(vectors)

    def alpha(self, t: Tensor) -> Tensor:
        return self._alpha(check_time(t))

    def alpha_rate(self, t: Tensor) -> Tensor:
        return _derivative(self._alpha, t)

    def masses(self, t: Tensor) -> Tensor:
        t = check_time(t)
        return torch.stack(
            [torch.as_tensor(beta(t), dtype=torch.float64).expand_as(t) for beta in self._masses], dim=-1
        )

    def rate_masses(self, t: Tensor) -> Tensor:
        slopes = torch.stack([_derivative(beta, t) for beta in self._masses], dim=-1)
        return slopes - (self.alpha_rate(t) / self.alpha(t))[..., None] * self.masses(t)

    @cached_property
    def measures(self) -> Tensor:
        return self._vectors

    def to_dict(self) -> dict[str, Any]:
        raise ConfigError("a MixtureProcess is made of functions and cannot be stored; make it again in your code")

    def __repr__(self) -> str:
        return f"MixtureProcess(vocab_size={self.vocab_size}, K={len(self._masses)}, mask_id={self.mask_id})"

    __eq__ = object.__eq__
    __hash__ = object.__hash__


def _scaled(mass: Schedule, factor: float) -> Schedule:
    return lambda t: factor * mass(t)


def _derivative(function: Schedule, t: Tensor) -> Tensor:
    with torch.enable_grad():
        at = t.detach().double().requires_grad_(True)
        value = torch.as_tensor(function(at), dtype=torch.float64)
        if not value.requires_grad:
            return torch.zeros_like(at)
        (slope,) = torch.autograd.grad(value.sum(), at)
    return slope
