"""Merge predictors and summary statistics under a declared causal direction (arXiv:2501.08426)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .accumulate import Accumulator
    from .classifier import LinearBoundary, MergedClassifier
    from .closedform import max_linear_r2, solve_binary_scale
    from .compare import (
        DirectionReport,
        LovoResult,
        PredictionBand,
        check_feasible,
        compare_directions,
        feasible_interval,
        lovo,
        prediction_band,
        sample_completions,
    )
    from .completion import CompletionResult, complete_covariance
    from .directions import FeasibilityReport
    from .errors import (
        CMaxEntError,
        ConvergenceError,
        GraphError,
        InconsistentMomentsError,
        InfeasibleMomentsError,
        InfeasibleMomentsWarning,
        NonlocalConstraintError,
        StateSpaceTooLargeError,
        UnboundedEntropyError,
    )
    from .model import CMaxEnt, Constraint, Support
    from .model_files import load
    from .moments import Moments
    from .pooling import merge
    from .regressor import MergedRegressor

# Where each public name lives. Resolved on first use, so that `cmaxent --help` imports neither numpy nor pandas.
_HOME = {
    "accumulate": ["Accumulator"],
    "classifier": ["LinearBoundary", "MergedClassifier"],
    "closedform": ["max_linear_r2", "solve_binary_scale"],
    "compare": [
        "DirectionReport", "LovoResult", "PredictionBand", "check_feasible", "compare_directions", "feasible_interval",
        "lovo", "prediction_band", "sample_completions",
    ],
    "completion": ["CompletionResult", "complete_covariance"],
    "directions": ["FeasibilityReport"],
    "errors": [
        "CMaxEntError", "ConvergenceError", "GraphError", "InconsistentMomentsError", "InfeasibleMomentsError",
        "InfeasibleMomentsWarning", "NonlocalConstraintError", "StateSpaceTooLargeError", "UnboundedEntropyError",
    ],
    "model": ["CMaxEnt", "Constraint", "Support"],
    "model_files": ["load"],
    "moments": ["Moments"],
    "pooling": ["merge"],
    "regressor": ["MergedRegressor"],
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
_SUBMODULES = ("oov", "parents", "plots", "datasets")

__all__ = [
    "Accumulator",
    "CMaxEnt",
    "CMaxEntError",
    "CompletionResult",
    "Constraint",
    "ConvergenceError",
    "DirectionReport",
    "FeasibilityReport",
    "GraphError",
    "InconsistentMomentsError",
    "InfeasibleMomentsError",
    "InfeasibleMomentsWarning",
    "LinearBoundary",
    "LovoResult",
    "MergedClassifier",
    "MergedRegressor",
    "Moments",
    "NonlocalConstraintError",
    "PredictionBand",
    "StateSpaceTooLargeError",
    "Support",
    "UnboundedEntropyError",
    "__version__",
    "check_feasible",
    "compare_directions",
    "complete_covariance",
    "feasible_interval",
    "load",
    "lovo",
    "max_linear_r2",
    "merge",
    "prediction_band",
    "sample_completions",
    "solve_binary_scale",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    if name in _SUBMODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module 'cmaxent' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
