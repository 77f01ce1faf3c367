"""What to train, on what, and how: one validated YAML file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import ConfigError
from ..models import Backbone, DiT, DiTConfig, ModelConfig, ScalingConfig, ScalingTransformer
from ..process import PRESETS, Process, SNRProcess, process_from_dict

_ARCHITECTURES: dict[str, tuple[type[Backbone], type[DiTConfig] | type[ScalingConfig]]] = {
    "dit": (DiT, DiTConfig),
    "scaling": (ScalingTransformer, ScalingConfig),
}

SHIPPED = Path(__file__).parents[1] / "configs"

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class ModelSection(BaseModel):
    """The network: a preset, sizes, or a preset with some sizes changed; the vocabulary comes from the corpus.

    All other keys are those of :class:`gidd.DiTConfig` or :class:`gidd.ScalingConfig`.
    """

    # Which keys there are is up to the architecture, which refuses others itself.
    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    architecture: Literal["dit", "scaling"] = "dit"
    preset: str | None = None

    @model_validator(mode="after")
    def _known(self) -> Self:
        if "vocab_size" in self._sizes():
            raise ValueError("vocab_size comes from the corpus: leave it out")
        self.config(2)
        return self

    def _sizes(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})

    def config(self, vocab_size: int) -> ModelConfig:
        """The architecture's configuration for a vocabulary."""
        kind = _ARCHITECTURES[self.architecture][1]
        if self.preset is not None:
            return kind.preset(self.preset, vocab_size, **self._sizes())
        return kind.from_dict({"vocab_size": vocab_size, **self._sizes()})

    def build(self, vocab_size: int, activation_checkpointing: bool = False) -> Backbone:
        """A new network with random weights."""
        config: Any = self.config(vocab_size)
        return _ARCHITECTURES[self.architecture][0](config, activation_checkpointing)


class ProcessSection(BaseModel):
    """The noise: the type and its numbers, e.g. ``{type: hybrid, p_uniform: 0.2}``; ids come from the corpus."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    type: Literal["hybrid", "masked", "uniform", "snr"] = "hybrid"
    preset: str | None = None

    @model_validator(mode="after")
    def _known(self) -> Self:
        ids = {"vocab_size", "mask_id"} & (self.__pydantic_extra__ or {}).keys()
        if ids:
            raise ValueError(f"{', '.join(sorted(ids))} comes from the corpus: leave it out")
        self.build(4, 3).validate()
        return self

    def build(self, vocab_size: int, mask_id: int) -> Process:
        """The process over a vocabulary."""
        values = dict(self.__pydantic_extra__ or {})
        if self.preset is not None:
            if self.type != "snr" or self.preset not in PRESETS:
                raise ValueError(f"preset {self.preset!r} is not one of {', '.join(PRESETS)}, for the type snr")
            return SNRProcess(vocab_size, mask_id, **{"shift": PRESETS[self.preset], **values})
        ids = {"vocab_size": vocab_size} if self.type == "uniform" else {"vocab_size": vocab_size, "mask_id": mask_id}
        return process_from_dict({"type": self.type, **ids, **values})


class DataSection(_Section):
    """A prepared corpus and how it is cut into batches.

    path : folder made by ``gidd data prepare``.
    length : tokens per sequence.
    mode : "crop" (a random window of each document, the paper's), "pack" or "pad".
    batch_size : sequences per optimizer step over all devices and accumulated parts: the batch of the recipe.
    micro_batch_size : sequences per device and forward pass; None: no accumulation.
    """

    path: str
    length: Positive = 512
    mode: Literal["crop", "pack", "pad"] = "crop"
    batch_size: Positive = 512
    micro_batch_size: Positive | None = None
    workers: Count = 0


class OptimizerSection(_Section):
    """AdamW or LaProp (Ziyin et al. 2020) with decoupled weight decay on matrices.

    aux_lr_factor : factor of the learning rate of everything but the matrices inside blocks (0.02 in the follow-up).
    ema : decay of the average of the weights; None for no average.
    """

    name: Literal["adamw", "laprop"] = "adamw"
    lr: Annotated[float, Field(gt=0.0)] = 5e-4
    betas: Annotated[tuple[Decay, Decay], Field(strict=False)] = (0.9, 0.99)
    eps: Annotated[float, Field(gt=0.0)] = 1e-9
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.02
    clip: Annotated[float, Field(gt=0.0)] = 1.0
    aux_lr_factor: Annotated[float, Field(gt=0.0)] = 1.0
    ema: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None


class ScheduleSection(_Section):
    """Learning rate: linear warm-up, then a cosine down to ``final`` of it, or constant."""

    steps: Positive
    warmup: Count = 10_000
    shape: Literal["cosine", "constant"] = "cosine"
    final: Share = 0.1


class LossSection(_Section):
    """Weighting and noise; see :func:`gidd.gidd_loss` and :func:`gidd.train.noisy_batch`.

    fused : compute head and loss together, a few tokens at a time; "auto": from 8,192 tokens of vocabulary.
    p_independent, p_prompt, p_infill, max_empty_frac : how often sequences get other noise than one time for all.
    """

    weighting: Literal["none", "clip", "dynamic", "dynamic_exact", "dynamic_released", "snr"] = "dynamic"
    w_max: Annotated[float, Field(gt=0.0)] = 1.0
    impl: Literal["auto", "chunked", "triton", "reference"] = "auto"
    fused: bool | Literal["auto"] = "auto"
    p_independent: Share = 0.0
    p_prompt: Share = 0.0
    p_infill: Share = 0.0
    max_empty_frac: Decay = 0.0

    @model_validator(mode="after")
    def _exclusive(self) -> Self:
        if self.p_prompt + self.p_infill > 1.0:
            raise ValueError(f"p_prompt + p_infill has to be at most 1; got {self.p_prompt + self.p_infill:g}")
        return self


class CheckpointSection(_Section):
    """How often to save, and how many of the last checkpoints to keep; the last step is always saved.

    background : copy to memory and go on training while the copy is written. A kill meanwhile leaves the one before.
    """

    every: Positive = 1000
    keep: Positive = 2
    background: bool = False


class ValidationSection(_Section):
    """The ELBO of the first ``sequences`` validation sequences, with the same noise every time.

    every : steps between; 0 for never.
    """

    every: Count = 0
    sequences: Positive = 64
    num_times: Positive = 32
    batch_size: Positive = 16


class LoggingSection(_Section):
    """Where numbers go: always ``log.jsonl``, on request TensorBoard and Weights & Biases (name of the project)."""

    every: Positive = 10
    tensorboard: bool = False
    wandb: str | None = None


class TrainConfig(_Section):
    """A training run.

    out : folder of checkpoints and logs.
    objective : "diffusion", or "autoregressive": the next-token cross-entropy of the same network with a causal mask,
        for baselines and judges; of the process only the mask token and of ``loss`` nothing matters then.
    precision : "bf16" computes in bfloat16 where that is safe; weights and optimizer are float32 either way.
    parallel : under torchrun, "ddp" copies the model, "fsdp2" shards it; "auto" is ddp.
    compile : compile each block.

    Examples
    --------
    >>> config = TrainConfig.model_validate(
    ...     {
    ...         "out": "runs/kjv",
    ...         "model": {"hidden": 96, "layers": 3, "heads": 3},
    ...         "data": {"path": "data/kjv", "length": 64, "batch_size": 64},
    ...         "schedule": {"steps": 800, "warmup": 50},
    ...     }
    ... )
    >>> config.process.type, config.optimizer.betas
    ('hybrid', (0.9, 0.99))
    """

    out: str
    objective: Literal["diffusion", "autoregressive"] = "diffusion"
    seed: Count = 0
    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    parallel: Literal["auto", "ddp", "fsdp2"] = "auto"
    compile: bool = False
    activation_checkpointing: bool = False
    model: ModelSection
    process: ProcessSection = ProcessSection()
    data: DataSection
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection
    loss: LossSection = LossSection()
    checkpoint: CheckpointSection = CheckpointSection()
    validation: ValidationSection = ValidationSection()
    logging: LoggingSection = LoggingSection()


def shipped_configs() -> list[str]:
    """Names of the configurations that come with the package."""
    return sorted(file.stem for file in SHIPPED.glob("*.yaml"))


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> TrainConfig:
    """Read a YAML file and change some of its values.

    Parameters
    ----------
    path : of the file, or one of :func:`shipped_configs`.
    overrides : "section.key=value", where the value is YAML, e.g. "optimizer.lr=1e-3" or "model.preset=small".

    Raises
    ------
    ConfigError
        One line that names the file, every field that is wrong, and what it may be.
    """
    file = Path(path)
    if str(path) in shipped_configs() and not file.is_file():
        file = SHIPPED / f"{path}.yaml"
    try:
        values = yaml.load(file.read_text(encoding="utf-8"), _Loader) or {}
    except FileNotFoundError as error:
        known = ", ".join(shipped_configs())
        raise ConfigError(f"cannot read {path}: no such file, and none of ours ({known})") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} has to hold sections, not a {type(values).__name__}")
    for override in overrides:
        _override(values, override)
    return parse_config(values, str(path))


def parse_config(values: dict[str, Any], source: str = "configuration") -> TrainConfig:
    """The same from plain values; raises ConfigError as :func:`load_config`."""
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{source}: {'; '.join(_explain(problem) for problem in error.errors())}") from None


def _override(values: dict[str, Any], override: str) -> None:
    name, found, text = override.partition("=")
    keys = name.strip().split(".")
    if not found or not all(keys):
        raise ConfigError(f"override {override!r} has to look like section.key=value")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r} has no YAML value: {' '.join(str(error).split())}") from error
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise ConfigError(f"override {override!r}: {key} is no section")
    values[keys[-1]] = value


def _explain(problem: Any) -> str:
    where = [str(part) for part in problem["loc"]]
    name = ".".join(where) or "file"
    kind, got = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        return f"{name}: no such key; there are {', '.join(_keys(where[:-1]))}"
    if kind == "missing":
        return f"{name}: missing"
    text = str(problem["msg"]).removeprefix("Value error, ")
    text = f"{text[:1].lower()}{text[1:]}" if text.startswith(("Input", "Value")) else text
    return f"{name}: {' '.join(text.split())}" + ("" if isinstance(got, dict | BaseModel) else f"; got {got!r}")


def _keys(where: Sequence[str]) -> Iterable[str]:
    section: Any = TrainConfig
    for name in where:
        section = section.model_fields[name].annotation
    return section.model_fields


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers: in 1.1, which PyYAML reads, 1e-3 is a word."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
