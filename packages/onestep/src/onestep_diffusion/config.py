"""Settings of training: frozen dataclasses whose every field is checked when they are made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

import numpy as np

from . import nets
from .denoiser import OUTPUTS
from .divergences import divergence as divergence_named
from .errors import ConfigError
from .generator import omega_weight
from .nets import PRESETS
from .nets.layers import DTYPES
from .noise import LogNormal, SigmaLaw, parse_sigma_law

METHODS = ("ratio", "score", "sid", "smt", "gan", "ict", "meanflow")
NEEDS_TEACHER = ("score", "sid")  # beyond the initial weights
EDM_LAW = LogNormal()
SINGLE_NETWORK = ("ict", "meanflow")  # no second network at all
STRATEGIES = (  # of initialisation, see `init_student`; warmup is the student's own training
    "teacher",
    "random",
    "single_level",
    "off_level",
    "clone_map",
    "features_only",
    "map_only",
    "scrambled",
    "blocks:<glob>",
    "freeze:<glob>",
    "warmup:<steps>",
)

_KINDS: dict[str, tuple[tuple[type, ...], str]] = {  # of fields, by their annotation
    "int": ((int,), "an integer"),
    "float": ((int, float), "a finite number"),
    "str": ((str,), "text"),
    "bool": ((bool,), "true or false"),
    "dict[str, Any]": ((dict,), "a dict"),
}


@dataclass(frozen=True)
class Config:
    """What teacher and student training share: a round trip through JSON."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; noise laws as the text that `parse_sigma_law` reads."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: str(value) if isinstance(value, SigmaLaw) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; ConfigError for a setting that does not exist."""
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ConfigError(f"there is no setting {', '.join(unknown)}; there are {', '.join(known)}")
        return cls(**values)

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, and checked."""
        return dataclasses.replace(self, **changes)

    def _check_kinds(self) -> None:
        """Before anything is compared: every value is of its field's kind, and finite."""
        for f in fields(self):
            kind, _, optional = str(f.type).partition(" | ")
            value = getattr(self, f.name)
            if kind not in _KINDS or (optional and value is None):
                continue
            types, wanted = _KINDS[kind]
            if isinstance(value, np.generic):  # numpy's numbers do not go into JSON
                value = value.item()
                object.__setattr__(self, f.name, value)
            fits = isinstance(value, types) and (kind == "bool" or not isinstance(value, bool))
            if not fits or (isinstance(value, float) and not math.isfinite(value)):
                raise ConfigError(f"{f.name} has to be {wanted}; got {value!r}")

    def _check(self, legal: Mapping[str, tuple[bool, str]]) -> None:
        for name, (holds, wanted) in legal.items():
            if not holds:
                raise ConfigError(f"{name} has to be {wanted}; got {getattr(self, name)!r}")

    def _read_law(self, *names: str, optional: bool = False) -> None:
        """Noise laws may be given as text."""
        for name in names:
            value = getattr(self, name)
            if isinstance(value, str):
                try:
                    object.__setattr__(self, name, parse_sigma_law(value))
                except ConfigError as error:
                    raise ConfigError(f"{name}={value!r}: {error}") from None
            elif not isinstance(value, SigmaLaw) and not (optional and value is None):
                raise ConfigError(f"{name} has to be a noise law or its text, as lognormal:-1.2,1.2; got {value!r}")


@dataclass(frozen=True)
class TeacherConfig(Config):
    """Denoising score matching (EDM).

    net: a preset of `nets.PRESETS`; net_kwargs override its settings. sigma_law: see `parse_sigma_law`.
    schedule: of the learning rate after `warmup` linear steps: `constant` | `cosine` to zero.
    ema_halflife_images: half-life of the average of weights; never more than `ema_ramp` times the images seen
    (0: no such bound). conditional: use the data's labels. steps_per_call: updates in one compiled call.
    micro_batch: gradients are accumulated over pieces of so many samples.
    """

    net: str = "mlp"
    net_kwargs: dict[str, Any] = field(default_factory=dict)
    sigma_law: SigmaLaw = EDM_LAW
    steps: int = 6000
    batch_size: int = 128
    lr: float = 1e-3
    schedule: str = "cosine"
    warmup: int = 100
    ema_halflife_images: float = 500_000.0
    ema_ramp: float = 0.05
    precision: str = "f32"
    steps_per_call: int = 50
    micro_batch: int | None = None
    conditional: bool = False

    def __post_init__(self) -> None:
        self._check_kinds()
        self._read_law("sigma_law")
        self._check(_common(self) | {"schedule": one_of(self.schedule, ("constant", "cosine"))})


@dataclass(frozen=True)
class StudentConfig(Config):
    """Training of the one-step generator.

    Args:
        method: `ratio` | `score` (Diff-Instruct; with a divergence other than rkl, f-distill) | `sid` | `smt` |
            `gan` (the ratio at sigma = 0.02 alone, with `ns`) | `ict` | `meanflow`.
        divergence, alpha: see `divergence`. alpha_end: the end of a linear schedule of `alpha` over the run.
        init: one of `STRATEGIES`, see `init_student`; `warmup:K`: K steps of denoising of the student's own.
        net, net_kwargs: the student's network if there is no teacher, else the teacher's is taken.
        lr, ratio_lr: of the generator; of the ratio network, or the fake score. The second should not be the smaller.
        warmup: steps over which both rise linearly from zero.
        aux_updates: updates of the second network per update of the generator.
        sigma_init: noise level at which the generator is evaluated.
        few_steps: 1 | 2 | 4: also train at so many of `few_step_levels`, on own samples noised again. One ratio sees
            the samples of all of them, so it is their mixture that is fitted to the data.
        sigma_law, ratio_sigma_law: noise levels of the generator's and of the second network's updates; None is the
            method's own: EDM's lognormal law, SiD's for its generator, sigma = 0.02 for `gan`.
        omega: see `omega_weight`; `auto` becomes `sigma` for methods with a ratio, `sigma2` for scores.
        weight_norm: see `ratio_weight`; `auto` is `batch` where the weight is unbounded. logit_clip: inside the weight;
            None: unclipped.
        normalize: `none` | `unit` (`unit_normalize`) | `dmd` (score only).
        ratio_loss: see `ratio_loss`. ratio_output: `decaying` | `plain`, see `log_ratio`. ratio_width: channels of the
            ratio network over the student's. ratio_init: `random` | `teacher_encoder` (needs ratio_width 1).
        ratio_r1: gamma of a penalty gamma/2 |grad l|^2 at noised data. ratio_spectral_norm: bound every layer's
            operator norm by one. Both off by default: the method does not need them.
        share_latents: one batch of latents serves all updates of a step.
        head_warmup: share of the steps in which only the layers that `init` made afresh train, at ten times lr.
        ema_halflife_images, ema_ramp, precision, steps_per_call, micro_batch: as of `TeacherConfig`.
        conditional: use the data's labels, if there is no teacher; else the teacher decides.
        stop_when: `never` | `indistinguishable` (held-out two-sample tests at all levels, three checks in a row).

    Defaults are those for images of 32 x 32 in the peers' code where they agree.
    """

    method: str = "ratio"
    divergence: str = "rkl"
    alpha: float | None = None
    alpha_end: float | None = None
    init: str = "teacher"
    net: str = "mlp"
    net_kwargs: dict[str, Any] = field(default_factory=dict)
    steps: int = 2000
    batch_size: int = 128
    lr: float = 2e-4
    ratio_lr: float = 1e-3
    warmup: int = 100
    aux_updates: int = 4
    sigma_init: float = 2.5
    few_steps: int = 1
    sigma_law: SigmaLaw | None = None
    ratio_sigma_law: SigmaLaw | None = None
    omega: str = "auto"
    weight_norm: str = "auto"
    normalize: str = "none"
    logit_clip: float | None = 10.0
    ratio_loss: str = "logistic"
    ratio_output: str = "decaying"
    ratio_width: float = 0.5
    ratio_init: str = "random"
    ratio_r1: float = 0.0
    ratio_spectral_norm: bool = False
    share_latents: bool = False
    head_warmup: float = 0.0
    ema_halflife_images: float = 500_000.0
    ema_ramp: float = 0.05
    precision: str = "f32"
    steps_per_call: int = 50
    micro_batch: int | None = None
    conditional: bool = False
    stop_when: str = "never"

    def __post_init__(self) -> None:
        self._check_kinds()
        self._read_law("sigma_law", "ratio_sigma_law", optional=True)
        divergence_named(self.divergence, alpha=self.alpha)
        parse_strategy(self.init)
        if self.omega == "auto":
            object.__setattr__(self, "omega", "sigma" if self.method in ("ratio", "gan") else "sigma2")
        omega_weight(self.omega, 1.0)  # type: ignore[arg-type]
        self._check(
            _common(self)
            | {
                "method": one_of(self.method, METHODS),
                "alpha_end": (self.alpha_end is None or self.divergence == "alpha", "left out unless divergence=alpha"),
                "ratio_lr": (self.ratio_lr > 0, "positive"),
                "aux_updates": (self.aux_updates >= 1, "at least 1"),
                "sigma_init": (self.sigma_init > 0, "positive"),
                "few_steps": one_of(self.few_steps, (1, 2, 4)),
                "weight_norm": one_of(self.weight_norm, ("auto", "none", "batch", "sigma_bin")),
                "normalize": one_of(self.normalize, ("none", "unit", "dmd")),
                "logit_clip": (self.logit_clip is None or self.logit_clip > 0, "positive, or None for no clipping"),
                "ratio_loss": one_of(self.ratio_loss, ("logistic", "brier", "ulsif", "kliep")),
                "ratio_output": one_of(self.ratio_output, OUTPUTS),
                "ratio_width": (self.ratio_width > 0, "positive"),
                "ratio_init": one_of(self.ratio_init, ("random", "teacher_encoder")),
                "ratio_r1": (self.ratio_r1 >= 0, "zero or more"),
                "head_warmup": (0 <= self.head_warmup < 1, "a share of the steps, from 0 up to but not 1"),
                "stop_when": one_of(self.stop_when, ("never", "indistinguishable")),
            }
        )
        fixed = {"gan": ("rkl", "ns")}.get(self.method, ("rkl",))
        if self.method not in ("ratio", "score") and self.divergence not in fixed:
            raise ConfigError(
                f"divergence={self.divergence!r} is for methods ratio and score; {self.method} has its own"
            )
        if self.normalize == "dmd" and self.method != "score":
            raise ConfigError(f"normalize='dmd' needs a teacher's score, method='score'; got method={self.method!r}")
        if self.ratio_init == "teacher_encoder" and self.ratio_width != 1:
            raise ConfigError(f"ratio_init='teacher_encoder' needs ratio_width=1; got {self.ratio_width}")
        if self.few_steps > 1 and self.method in SINGLE_NETWORK:
            raise ConfigError(f"few_steps={self.few_steps} is not for method={self.method!r}")
        if self.stop_when != "never" and self.method not in ("ratio", "gan"):
            raise ConfigError(f"stop_when={self.stop_when!r} needs a ratio: method ratio or gan; got {self.method!r}")


def parse_strategy(strategy: str) -> tuple[str, str]:
    """(name, argument) of an initialisation, as ("blocks", "block0.*"); ConfigError if there is none like it."""
    name, _, argument = strategy.partition(":")
    known = dict(text.partition(":")[::2] for text in STRATEGIES)
    if name not in known or bool(known[name]) != bool(argument):
        raise ConfigError(f"init: {strategy!r} is not one of {', '.join(STRATEGIES)}")
    if name == "warmup" and not (argument.isdecimal() and int(argument) > 0):
        raise ConfigError(f"init: {strategy!r} needs a number of steps, as warmup:1000")
    return name, argument


def one_of(value: Any, choices: tuple[Any, ...]) -> tuple[bool, str]:
    """A check for `Config._check`."""
    return value in choices, f"one of {', '.join(map(str, choices))}"


def _common(cfg: TeacherConfig | StudentConfig) -> dict[str, tuple[bool, str]]:
    micro, batch = cfg.micro_batch, cfg.batch_size
    known = nets.settings_of(PRESETS[cfg.net]["net"]) if cfg.net in PRESETS else ()
    return {
        "net": one_of(cfg.net, tuple(PRESETS)),
        "net_kwargs": (set(cfg.net_kwargs) <= set(known), f"a dict of settings among {', '.join(known)}"),
        "steps": (cfg.steps >= 1, "at least 1"),
        "batch_size": (batch >= 2, "at least 2"),
        "lr": (cfg.lr > 0, "positive"),
        "warmup": (cfg.warmup >= 0, "zero or more"),
        "ema_halflife_images": (cfg.ema_halflife_images > 0, "positive"),
        "ema_ramp": (cfg.ema_ramp >= 0, "zero or more"),
        "precision": one_of(cfg.precision, tuple(DTYPES)),
        "steps_per_call": (cfg.steps_per_call >= 1, "at least 1"),
        "micro_batch": (micro is None or (micro >= 1 and batch % micro == 0), f"a divisor of batch_size={batch}"),
    }
