"""Causal structure from compression across environments (arXiv:2502.04210)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .data import EnvData
    from .errors import AlgocauseError, DataError, DegenerateError, FormatError, LimitError
    from .scores import LocalScore, Scorer, local_score

# Where each public name lives. Resolved on first use, so that `import algocause` imports neither numpy nor numba.
_HOME = {
    "data": ["EnvData"],
    "errors": ["AlgocauseError", "DataError", "DegenerateError", "FormatError", "LimitError"],
    "scores": ["LocalScore", "Scorer", "local_score"],
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "AlgocauseError",
    "DataError",
    "DegenerateError",
    "EnvData",
    "FormatError",
    "LimitError",
    "LocalScore",
    "Scorer",
    "__version__",
    "local_score",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module 'algocause' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
