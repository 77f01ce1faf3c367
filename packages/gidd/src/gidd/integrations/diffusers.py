"""Our ancestral sampler as a scheduler of ``diffusers``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..process import Process, process_from_dict
from ..sampling import Streams, time_grid
from ..sampling.ancestral import ancestral_step
from ..sampling.predict import clean_logits, sharpen

try:
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.schedulers.scheduling_utils import SchedulerMixin
    from diffusers.utils import BaseOutput
except ImportError:
    raise ConfigError("GiddScheduler needs diffusers: pip install 'gidd-diffusion[diffusers]'") from None


@dataclass
class GiddSchedulerOutput(BaseOutput):
    """prev_sample : (B, L) ids, one step cleaner."""

    prev_sample: Tensor


class GiddScheduler(SchedulerMixin, ConfigMixin):
    """Reverse process of a checkpoint, step by step; with the same generator equal to :func:`gidd.sample`.

    Parameters
    ----------
    process : ``process.to_dict()``: what a scheduler's configuration file can hold.
    grid : where the steps are, as in :func:`gidd.sample`.
    temperature, top_p, top_k : of x_theta.
    min_prob : entries of the posterior below it are dropped.

    Examples
    --------
    >>> scheduler = GiddScheduler(process.to_dict())
    >>> scheduler.set_timesteps(64)
    >>> z = scheduler.init_sample((8, 512), generator=torch.Generator().manual_seed(0))
    >>> for t in scheduler.timesteps:
    ...     z = scheduler.step(model(z, scheduler.time_input(t, len(z))), t, z).prev_sample
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        process: dict[str, Any],
        grid: str = "auto",
        temperature: float = 1.0,
        top_p: float | None = None,
        top_k: int | None = None,
        min_prob: float = 0.0,
    ) -> None:
        self.process: Process = process_from_dict(dict(process))
        self.process.validate()
        self.num_inference_steps: int | None = None
        self.timesteps = torch.empty(0, dtype=torch.float64)
        self._times = torch.empty(0, dtype=torch.float64)
        self._streams: Streams | None = None

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Make ``timesteps`` (num_inference_steps,): falling times from 1, at which the model is to be called."""
        if not isinstance(num_inference_steps, int) or num_inference_steps < 1:
            raise ValueError(f"num_inference_steps has to be a positive integer; got {num_inference_steps!r}")
        self.num_inference_steps = num_inference_steps
        self._times = time_grid(self.process, num_inference_steps, self.config.grid).to(device)
        self.timesteps = self._times[:-1]
        self._streams = None

    def init_sample(
        self,
        shape: tuple[int, int],
        generator: torch.Generator | None = None,
        device: str | torch.device | None = None,
    ) -> Tensor:
        """(B, L) ids from the prior pi_1; seeds the random numbers of the steps that follow, one stream a sequence."""
        batch, length = shape
        self._streams = Streams.of(generator, batch, device)
        one = torch.ones((), dtype=torch.float64, device=device)
        return self.process.noise_from(one, self._streams.uniform(length), self._streams.uniform(length))

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample itself; schedulers are expected to have this."""
        return sample

    def time_input(self, timestep: float | Tensor, batch: int) -> Tensor:
        """(B,) float32 times to call the model with: within [t_eps, 1 - t_eps], where it was trained."""
        t = torch.as_tensor(timestep, dtype=torch.float32).clamp(self.process.t_eps, 1 - self.process.t_eps)
        return t.expand(batch)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> GiddSchedulerOutput | tuple[Tensor]:
        """One step of ancestral sampling.

        Parameters
        ----------
        model_output : (B, L, >= V) logits at ``timestep``; the mask and padding columns are ignored.
        timestep : one of ``timesteps``.
        sample : (B, L) ids at that time.
        generator : seeds the random numbers where :meth:`init_sample` has not: read in the first step only.

        Raises
        ------
        ValueError
            No timesteps set, another time than one of them, or shapes that do not fit.
        """
        if self.num_inference_steps is None:
            raise ValueError("call set_timesteps before step")
        z = self.process.check_ids(sample, "sample")
        wanted = torch.as_tensor(timestep, dtype=torch.float64, device=self.timesteps.device)
        found = (self.timesteps == wanted).nonzero()
        if found.numel() != 1:
            raise ValueError(f"timestep {float(timestep):g} is none of the scheduler's {self.num_inference_steps}")
        i = int(found)
        # At the first time, streams that have served more than init_sample are those of an earlier sample.
        stale = self._streams is not None and i == 0 and self._streams.count > 2 * z.shape[1]
        if self._streams is None or stale or len(self._streams.seeds) != len(z):
            self._streams = Streams.of(generator, len(z), z.device)
        s, t = self._times[i + 1].to(z.device), self._times[i].to(z.device)
        logits = clean_logits(lambda _z, _t: model_output, z, t, self.process)
        config = self.config
        log_x = sharpen(logits, config.temperature, config.top_p, config.top_k)
        new = ancestral_step(self.process, z, log_x, s, t, self._streams, config.min_prob)
        return GiddSchedulerOutput(prev_sample=new) if return_dict else (new,)

    def add_noise(
        self,
        original_samples: Tensor,
        noise: Tensor | None,
        timesteps: float | Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw z ~ q_t(. | x): ids of the shape of ``original_samples`` (B, L).

        Parameters
        ----------
        noise : (3, B, L) uniform float64 numbers in [0, 1): whether to keep a token, and two that choose the noise;
            None to draw them. (Noise of this kind is no tensor of the sample's shape.)
        timesteps : one time in [0, 1], or (B,), or (B, L).
        """
        x = original_samples
        t = torch.as_tensor(timesteps, dtype=torch.float64, device=x.device)
        if noise is None:
            return self.process.q_sample(x, t, generator)
        if noise.shape != (3, *x.shape):
            raise ValueError(f"noise has shape {tuple(noise.shape)}; it has to be {(3, *x.shape)}")
        if not bool(((t >= 0) & (t <= 1)).all()):
            raise ValueError(f"timesteps have to lie in [0, 1]; got {timesteps}")
        x = self.process.check_ids(x, "original_samples")
        t = t.reshape(*t.shape, *[1] * (x.dim() - t.dim()))
        drawn = self.process.noise_from(t, noise[1], noise[2])
        return torch.where(noise[0] < self.process.alpha(t), x, drawn)

    def __len__(self) -> int:
        return self.num_inference_steps or 0
