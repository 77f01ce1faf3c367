"""The family of processes q_t(z|x) = alpha_t 1[z=x] + beta_t pi_t(z) and everything that follows from it.

Generalized interpolating discrete diffusion (von Rütte et al. 2025, arXiv:2503.04482). A process says what alpha_t is
and how the noise b_t = beta_t pi_t is mixed from a few fixed distributions ("measures") with time-dependent
masses; the rates, transitions, posteriors and ELBO weights below need nothing else. Schedules are computed in float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidProcessError

SCHEMES = ("none", "clip", "dynamic", "dynamic_exact", "dynamic_released", "snr")


class Process(ABC):
    """A forward process over ``vocab_size`` tokens; t = 0 is clean, t = 1 is noise.

    Subclasses define :meth:`alpha`, :meth:`masses` and their time derivatives, and ``measures``.

    Attributes
    ----------
    vocab_size : V, mask and special tokens included.
    mask_id : id of the mask token, or None for a process without one.
    t_eps : training and the path integral of the ELBO stay within [t_eps, 1 - t_eps].
    """

    vocab_size: int
    mask_id: int | None
    t_eps: float = 1e-4

    # --- what a process is -----------------------------------------------------------------------------------

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Probability that a token is untouched at t; any shape, float64."""

    @abstractmethod
    def alpha_rate(self, t: Tensor) -> Tensor:
        """d alpha / dt; any shape, float64."""

    @abstractmethod
    def masses(self, t: Tensor) -> Tensor:
        """(..., K) weight of every measure in the noise b_t; they sum to 1 - alpha."""

    @abstractmethod
    def rate_masses(self, t: Tensor) -> Tensor:
        """(..., K) weights of the measures in r_t = b'_t - (alpha'_t / alpha_t) b_t, the rate into every token."""

    @cached_property
    @abstractmethod
    def measures(self) -> Tensor:
        """(K, V) float64 probability vectors."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain values from which :func:`gidd.process_from_dict` makes the process again."""

    # --- marginals and noise -----------------------------------------------------------------------------------

    def log_snr(self, t: Tensor) -> Tensor:
        """lambda = ln(alpha / (1 - alpha)); any shape."""
        alpha = self.alpha(t)
        return torch.log(alpha) - torch.log1p(-alpha)

    def time(self, log_snr: Tensor | float) -> Tensor:
        """The t at which ``log_snr`` is reached, by bisection; any shape, float64."""
        target = torch.as_tensor(log_snr, dtype=torch.float64)
        low, high = torch.zeros_like(target), torch.ones_like(target)
        for _ in range(80):
            middle = (low + high) / 2
            later = self.log_snr(middle) > target
            low, high = torch.where(later, middle, low), torch.where(later, high, middle)
        return (low + high) / 2

    def noise_vector(self, t: Tensor) -> Tensor:
        """(..., V) b_t = beta_t pi_t, which sums to 1 - alpha_t."""
        t = check_time(t)
        return self.masses(t) @ self._on(t, "measures")

    def noise_at(self, v: Tensor, t: Tensor) -> Tensor:
        """b_t(v) for ids v, broadcast against t."""
        return _mix(self.masses(t), self._on(v, "measures"), v)

    def rate_vector(self, t: Tensor) -> Tensor:
        """(..., V) r_t: the rate from any other token into v."""
        t = check_time(t)
        measures = self._on(t, "measures")
        # At the ends of time rates are infinite, but not into tokens that the measure does not have.
        parts = torch.where(measures > 0, self.rate_masses(t)[..., None] * measures, 0.0)
        return parts.sum(-2)

    def rate_at(self, v: Tensor, t: Tensor) -> Tensor:
        """r_t(v) for ids v, broadcast against t."""
        return _mix(self.rate_masses(t), self._on(v, "measures"), v)

    def marginal(self, x: Tensor, t: Tensor) -> Tensor:
        """(..., V) q_t(. | x); x holds ids (...) or probabilities (..., V) with t of the shape (...)."""
        probabilities = x.is_floating_point()
        t = aligned(check_time(t, x.device), x[..., 0] if probabilities else x)
        p = x.double() if probabilities else _one_hot(self.check_ids(x, "x"), self.vocab_size)
        return self.alpha(t)[..., None] * p + self.noise_vector(t)

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """q_{t|s}(z_t | z_s) = a 1[z_t = z_s] + n(z_t) for s < t, as (a of shape (...), n of shape (..., V))."""
        s, t = check_time(s), check_time(t)
        if not bool((s < t).all()):
            raise ValueError("transition needs s < t: s is the cleaner time")
        a = self.alpha(t) / self.alpha(s)
        return a, (self.masses(t) - a[..., None] * self.masses(s)) @ self._on(t, "measures")

    def posterior(self, z: Tensor, x_probs: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """(..., V) p(z_s | z_t = z) with x replaced by its predicted distribution x_probs (..., V).

        Where the model excludes z itself, so that nothing is left, z stays.
        """
        z = self.check_ids(z, "z")
        s, t = (aligned(check_time(v, z.device), z) for v in (s, t))
        a, n = self.transition(s, t)
        stay = _one_hot(z, self.vocab_size)
        n = n.expand(stay.shape)
        into = a[..., None] * stay + n.gather(-1, z[..., None])
        joint = into * self.marginal(x_probs, s.expand(z.shape))
        total = joint.sum(-1, keepdim=True)
        return torch.where(total > 0, joint / total.clamp_min(1e-300), stay)

    # --- likelihood weights --------------------------------------------------------------------------------------

    def elbo_weight(self, z: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """w_t(z, x) = r_t(z) / q_t(z | x) of the negative ELBO's integrand w (KL + IS); float64, 0 where r_t(z) is."""
        t = aligned(check_time(t, z.device), z)
        rate = self.rate_at(z, t)
        return torch.where(rate > 0, rate / (self.alpha(t) * (z == x) + self.noise_at(z, t)), 0.0)

    def loss_weight(self, z: Tensor, x: Tensor, t: Tensor, scheme: str = "dynamic", w_max: float = 1.0) -> Tensor:
        """The weight that training puts in the place of :meth:`elbo_weight`; float64.

        Parameters
        ----------
        scheme : "none" (the ELBO's own), "clip" (at w_max), "dynamic" (the paper's, 2 w_max on masks, w_max on other
            noise, little on what looks clean), "dynamic_exact" (the same with the exact ratio of the last two, for any
            process), "dynamic_released" (what the authors' code computes instead), "snr" (the follow-up's, per unit
            of log-SNR, at most 1000).
        """
        t = aligned(check_time(t, z.device), z)
        if not 0 < w_max < float("inf"):
            raise ValueError(f"w_max has to be positive and finite; got {w_max!r}")
        if scheme == "none":
            return self.elbo_weight(z, x, t)
        if scheme == "clip":
            return self.elbo_weight(z, x, t).clamp_max(w_max)
        if scheme == "snr":
            t = t.clamp(1e-12, 1 - 1e-12)  # it has limits at the ends of time, but is 0/0 there
            alpha = self.alpha(t)
            return (self.elbo_weight(z, x, t) * alpha * (1 - alpha) / -self.alpha_rate(t)).clamp(0.0, 1e3)
        if scheme == "dynamic":
            return w_max * self._dynamic(z, x, t)
        if scheme == "dynamic_exact":
            return w_max * self._dynamic_exact(z, x, t)
        if scheme == "dynamic_released":
            return w_max * self._dynamic_released(z, x, t)
        raise ValueError(f"weighting {scheme!r} is not one of {', '.join(SCHEMES)}")

    def _dynamic_exact(self, z: Tensor, x: Tensor, t: Tensor) -> Tensor:
        noise = self.noise_at(z, t)
        clean = noise / (self.alpha(t) + noise).clamp_min(1e-300)
        other = torch.ones_like(clean)
        if self.mask_id is not None:
            other = other + (z == self.mask_id)
        return torch.where(z.eq(x), clean, other)

    def _dynamic(self, z: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return self._dynamic_exact(z, x, t)

    def _dynamic_released(self, z: Tensor, x: Tensor, t: Tensor) -> Tensor:
        raise ValueError("weighting 'dynamic_released' reproduces the authors' code: it exists for HybridProcess only")

    # --- sampling --------------------------------------------------------------------------------------------------

    def q_sample(self, x: Tensor, t: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw z ~ q_t(. | x): ids of the shape of x, none a mask; t broadcasts from the left ((B,) or (B, L))."""
        x = self.check_ids(x, "x")
        if self.mask_id is not None and bool((x == self.mask_id).any()):
            raise ValueError(f"x holds the mask token {self.mask_id}: clean tokens are never masked")
        t = _left(check_time(t, x.device), x)
        keep = torch.rand(x.shape, dtype=torch.float64, device=x.device, generator=generator)
        noise = self.sample_noise(t, x.shape, generator)
        return torch.where(keep < self.alpha(t), x, noise)

    def sample_noise(self, t: Tensor, shape: Any, generator: torch.Generator | None = None) -> Tensor:
        """Draw ids from pi_t; t broadcasts against ``shape``."""
        shape = torch.Size(shape)
        which, where = (torch.rand(shape, dtype=torch.float64, device=t.device, generator=generator) for _ in range(2))
        return self.noise_from(t, which, where)

    def noise_from(self, t: Tensor, which: Tensor, where: Tensor) -> Tensor:
        """Turn two independent uniform float64 numbers per token into a draw from pi_t; t broadcasts against them."""
        masses = self.masses(t)
        share = masses.cumsum(-1) / masses.sum(-1, keepdim=True).clamp_min(1e-300)
        measure = (which[..., None] >= share).sum(-1).clamp_max(masses.shape[-1] - 1)
        cdf = self._on(t, "_cumulative")
        out = torch.zeros_like(measure)
        for k in range(len(cdf)):
            out = torch.where(measure == k, torch.searchsorted(cdf[k], where, right=True), out)
        return out

    def prior_sample(
        self, shape: Any, generator: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        """Draw ids from pi_1, where every trajectory of the reverse process begins."""
        return self.sample_noise(torch.ones((), dtype=torch.float64, device=device), shape, generator)

    # --- checks ------------------------------------------------------------------------------------------------------

    def validate(self, num: int = 4001) -> None:
        """Check on a grid of ``num`` times that this is a Markov process.

        Raises
        ------
        InvalidProcessError
            A negative rate r_t(v) or mass b_t(v) (the class of tokens, the time and the value are named), masses that
            do not complement alpha, or an alpha that does not fall from 1 to 0.
        """
        inner = torch.linspace(0, 1, num, dtype=torch.float64)[1:-1]
        far = torch.logspace(-6, -3, 61, dtype=torch.float64)
        t = torch.cat([far, inner, 1 - far]).sort().values
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        alpha, masses = self.alpha(t), self.masses(t)
        if not float((self.alpha(ends) + ends - 1).abs().max()) <= 1e-9:
            start, end = self.alpha(ends).tolist()
            raise InvalidProcessError(f"alpha runs from {start:g} to {end:g}; it has to run from 1 at t=0 to 0 at t=1")
        off = alpha + masses.sum(-1) - 1
        if not bool((off.abs() <= 1e-9).all()):
            i = int((~(off.abs() <= 1e-9)).nonzero()[0])
            raise InvalidProcessError(f"alpha and the masses miss 1 by {float(off[i]):.6g} at t={float(t[i]):.6g}")
        measures = self.measures
        if bool((measures < 0).any()) or not torch.allclose(measures.sum(-1), torch.ones(()).double(), atol=1e-9):
            raise InvalidProcessError("every measure has to be a probability vector over the vocabulary")
        # b and r are constant over tokens with the same column of measures: look at one of each kind.
        columns, kind = _unique(measures.T)
        for what, weights in (("mass", masses), ("rate", self.rate_masses(t))):
            values = weights @ columns.T
            # A token's own rate may be a tiny part of all, so rounding is judged by what its rate is made of.
            made_of = weights.abs() @ columns.T + 1e-5 * weights.abs().sum(-1, keepdim=True)
            worst = (values / made_of.clamp_min(1e-300)).nan_to_num(nan=-torch.inf)
            if bool((worst < -1e-9).any()):
                i, c = (int(k) for k in (worst == worst.min()).nonzero()[0])
                v = int((kind == c).nonzero()[0])
                name = "the mask token" if v == self.mask_id else f"token {v} and {int((kind == c).sum()) - 1} alike"
                raise InvalidProcessError(
                    f"{what} of {name} at t={float(t[i]):.6g} is {float(values[i, c]):.6g}, below zero: no Markov "
                    f"process has these marginals{self._remedy()}"
                )
        # Where alpha increases rates add up to less than zero: left are increases between the times looked at.
        rise = alpha.diff()
        if bool((rise > 1e-12).any()):
            i = int((rise > 1e-12).nonzero()[0])
            raise InvalidProcessError(
                f"alpha of every token increases by {float(rise[i]):.6g} up to t={float(t[i + 1]):.6g}: it has to fall"
            )

    def _remedy(self) -> str:
        return ""

    def check_ids(self, ids: Tensor, name: str) -> Tensor:
        """The ids as int64; ValueError naming ``name`` unless they are integers in [0, V)."""
        ids = torch.as_tensor(ids)
        if ids.is_floating_point() or ids.dtype == torch.bool:
            raise ValueError(f"{name} has to hold integer token ids; got {ids.dtype}")
        if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < self.vocab_size):
            bad = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
            raise ValueError(f"{name} holds the id {bad}, outside [0, {self.vocab_size})")
        return ids.long()

    @cached_property
    def _cumulative(self) -> Tensor:
        """(K, V) cumulative measures that end in exactly 1 at the last token with mass: no draw falls behind it."""
        cdf = self.measures.cumsum(-1)
        last = self.vocab_size - 1 - (self.measures.flip(-1) > 0).long().argmax(-1)
        tail = torch.arange(self.vocab_size) >= last[:, None]
        return torch.where(tail, 1.0, cdf)

    def _on(self, like: Tensor, name: str) -> Tensor:
        """A cached tensor of the process on the device of another tensor."""
        key = (name, str(like.device))
        cache = self.__dict__.setdefault("_devices", {})
        if key not in cache:
            cache[key] = getattr(self, name).to(like.device)
        return cache[key]

    @property
    def _mask(self) -> int:
        return -1 if self.mask_id is None else self.mask_id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Process) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(repr(self.to_dict()))

    def __repr__(self) -> str:
        values = {k: v for k, v in self.to_dict().items() if k != "type"}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in values.items())})"


# --- shapes -------------------------------------------------------------------------------------------------------


def check_time(t: Tensor | float, device: Any = None) -> Tensor:
    """t in float64, refused outside [0, 1]; on a GPU it is not looked at, since that would wait for it."""
    t = torch.as_tensor(t, device=device).double()
    if t.device.type == "cpu" and t.numel() and not (float(t.min()) >= 0.0 and float(t.max()) <= 1.0):
        raise ValueError(f"t has to lie in [0, 1]; got {float(t.min()):g} to {float(t.max()):g}")
    return t


def _unique(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct rows, and which of them each row is."""
    distinct, which = torch.unique(rows, dim=0, return_inverse=True)
    return distinct, which


def _left(t: Tensor, x: Tensor) -> Tensor:
    """t of shape (B,) or (B, L) against x (B, L): dimensions are added on the right."""
    if t.dim() > x.dim() or any(a not in (1, b) for a, b in zip(t.shape, x.shape, strict=False)):
        raise ValueError(f"t of shape {tuple(t.shape)} does not fit tokens of shape {tuple(x.shape)}: (B,) or (B, L)")
    return t.reshape(t.shape + (1,) * (x.dim() - t.dim()))


def aligned(t: Tensor, tokens: Tensor) -> Tensor:
    """t (B,) as (B, 1) beside tokens (B, L); t with as many dimensions broadcasts as usual."""
    return _left(t, tokens) if t.dim() < tokens.dim() else t


def _mix(weights: Tensor, measures: Tensor, v: Tensor) -> Tensor:
    """sum_k weights_k measures_k(v), without a (..., V) tensor."""
    total = torch.zeros((), dtype=torch.float64, device=v.device)
    for k in range(len(measures)):
        at = measures[k][v]
        total = total + torch.where(at > 0, weights[..., k] * at, 0.0)
    return total


def _one_hot(ids: Tensor, size: int) -> Tensor:
    return torch.nn.functional.one_hot(ids, size).double()


def check_vocabulary(vocab_size: int, mask_id: int | None, least: int = 2) -> None:
    """Refuse sizes and ids that no process can have."""
    if not isinstance(vocab_size, int) or vocab_size < least:
        raise ValueError(f"vocab_size has to be an integer of at least {least}; got {vocab_size!r}")
    if mask_id is not None and not (isinstance(mask_id, int) and 0 <= mask_id < vocab_size):
        raise ValueError(f"mask_id has to lie in [0, {vocab_size}); got {mask_id!r}")
