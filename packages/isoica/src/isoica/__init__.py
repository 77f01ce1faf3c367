"""Approximately identifiable nonlinear ICA for almost-isometric mixings (arXiv:2503.15355)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .autoencoder import IsometricAutoencoder
    from .contrasts import Contrast
    from .errors import HeavyTailWarning, IsoICAError, ModelFileError, UnidentifiedWarning
    from .linear import PerturbedICA
    from .manifold import RigidAlignment
    from .pipeline import NearIsometricICA, NearIsometryReport
    from .report import IdentifiabilityReport

# Where each public name lives. Resolved on first use, so that `isoica --help` imports neither numpy nor scikit-learn.
_HOME = {
    "autoencoder": ["IsometricAutoencoder"],
    "contrasts": ["Contrast"],
    "errors": ["HeavyTailWarning", "IsoICAError", "ModelFileError", "UnidentifiedWarning"],
    "linear": ["PerturbedICA"],
    "manifold": ["RigidAlignment"],
    "pipeline": ["NearIsometricICA", "NearIsometryReport"],
    "report": ["IdentifiabilityReport"],
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
_SUBMODULES = ("datasets", "isometry", "metrics", "theory")

__all__ = [
    "Contrast",
    "HeavyTailWarning",
    "IdentifiabilityReport",
    "IsoICAError",
    "IsometricAutoencoder",
    "ModelFileError",
    "NearIsometricICA",
    "NearIsometryReport",
    "PerturbedICA",
    "RigidAlignment",
    "UnidentifiedWarning",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    if name in _SUBMODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module 'isoica' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
