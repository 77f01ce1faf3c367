"""One-step generators trained by density ratios, without distillation (arXiv:2502.08005)."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Where each public name lives. Resolved on first use, so that `onestep-diffusion --help` does not import jax.
_HOME: dict[str, list[str]] = {
    "errors": ["CheckpointError", "ConfigError", "DataError", "DivergedError", "OnestepError"],
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
_SUBMODULES: tuple[str, ...] = ("nets",)

__all__ = sorted([*_MODULE_OF, *_SUBMODULES, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    if name in _SUBMODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module 'onestep_diffusion' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
