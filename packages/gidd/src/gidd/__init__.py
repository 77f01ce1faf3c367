"""Discrete diffusion language models that correct themselves (arXiv:2503.04482)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .errors import CheckpointError, ConfigError, DataError, GiddError, InvalidProcessError
    from .integrations.diffusers import GiddScheduler
    from .integrations.lm_eval import GiddLM
    from .likelihood import ElboOutput, calibrate_grid, elbo
    from .loss import GiddLossOutput, fused_linear_gidd_loss, gidd_loss
    from .models import DiT, DiTConfig, HFBackbone, ScalingConfig, ScalingTransformer
    from .pipeline import GiddPipeline
    from .process import (
        HybridProcess,
        MaskedProcess,
        MixtureProcess,
        Process,
        SNRProcess,
        UniformProcess,
        process_from_dict,
    )
    from .sampling import (
        CorrectionOutput,
        SampleOutput,
        gibbs,
        sample,
        self_correct,
        token_error_probs,
    )
    from .train import GiddTrainer, TrainConfig

# Where each public name lives. Resolved on first use, so that `gidd --help` does not import torch.
_HOME = {
    "errors": ["CheckpointError", "ConfigError", "DataError", "GiddError", "InvalidProcessError"],
    "integrations": ["GiddLM", "GiddScheduler"],
    "likelihood": ["ElboOutput", "calibrate_grid", "elbo"],
    "loss": ["GiddLossOutput", "fused_linear_gidd_loss", "gidd_loss"],
    "models": ["DiT", "DiTConfig", "HFBackbone", "ScalingConfig", "ScalingTransformer"],
    "pipeline": ["GiddPipeline"],
    "process": [
        "HybridProcess", "MaskedProcess", "MixtureProcess", "Process", "SNRProcess", "UniformProcess",
        "process_from_dict",
    ],
    "sampling": ["CorrectionOutput", "SampleOutput", "gibbs", "sample", "self_correct", "token_error_probs"],
    "train": ["GiddTrainer", "TrainConfig"],
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
_SUBMODULES = (
    "data", "eval", "exact", "hub", "integrations", "likelihood", "loss", "models", "pipeline", "plan", "process",
    "sampling", "train",
)  # fmt: skip

__all__ = [
    "CheckpointError",
    "ConfigError",
    "CorrectionOutput",
    "DataError",
    "DiT",
    "DiTConfig",
    "ElboOutput",
    "GiddError",
    "GiddLM",
    "GiddLossOutput",
    "GiddPipeline",
    "GiddScheduler",
    "GiddTrainer",
    "HFBackbone",
    "HybridProcess",
    "InvalidProcessError",
    "MaskedProcess",
    "MixtureProcess",
    "Process",
    "SNRProcess",
    "SampleOutput",
    "ScalingConfig",
    "ScalingTransformer",
    "TrainConfig",
    "UniformProcess",
    "__version__",
    "calibrate_grid",
    "elbo",
    "fused_linear_gidd_loss",
    "gibbs",
    "gidd_loss",
    "process_from_dict",
    "sample",
    "self_correct",
    "token_error_probs",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    if name in _SUBMODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module 'gidd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
