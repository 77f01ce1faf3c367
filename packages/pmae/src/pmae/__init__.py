"""Masked autoencoders that hide principal components instead of patches (arXiv:2502.06314)."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Where each public name lives. Resolved on first use, so that `pmae --help` does not import torch.
_HOME = {
    "engine.train": ["TrainResult", "fit"],
    "errors": [
        "BasisTooLargeError", "CheckpointError", "DataError", "MissingSourceError", "NumericalError", "PmaeError",
        "ShapeError",
    ],
    "models": ["PMAE", "PMAEConfig", "PMAEOutput", "PixelMAE", "load"],
    "ratio_search": ["RatioSearch", "search_ratio"],
    "redundancy": ["RedundancyReport", "linear_redundancy"],
    "sklearn": ["PMAETransformer"],
    "space": ["MaskSpace", "Split", "fit_space"],
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
_SUBMODULES = (
    "bands", "bases", "data", "engine", "export", "images", "losses", "models", "plots", "probes", "samplers",
    "standardize",
)  # fmt: skip

__all__ = sorted([*_MODULE_OF, *_SUBMODULES, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    if name in _SUBMODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module 'pmae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
