"""One-step generators trained by density ratios, without distillation (arXiv:2502.08005)."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Where each public name lives. Resolved on first use, so that `onestep-diffusion --help` does not import jax.
_HOME: dict[str, list[str]] = {
    "bias": ["error_slopes", "gradient_bias", "perturbed"],
    "certificate": ["Certificate", "certify", "reliability"],
    "checkpoint": ["Checkpoints", "Restored", "load_model", "save_model"],
    "config": ["StudentConfig", "TeacherConfig"],
    "convert": ["load_edm"],
    "costs": ["Cost", "update_cost", "update_passes"],
    "data": ["Dataset", "load_data", "make_dataset"],
    "denoiser": ["Denoiser", "Generator", "Ratio", "denoise", "log_ratio"],
    "distance": ["Distance", "certified_distance"],
    "divergences": ["Divergence", "divergence", "list_divergences"],
    "errors": ["CheckpointError", "ConfigError", "DataError", "DivergedError", "InterruptedRun", "OnestepError"],
    "estimator": ["OneStepGenerator"],
    "frontier": ["alpha_frontier"],
    "generator": [
        "Field",
        "hybrid_field",
        "hybrid_mix",
        "omega_weight",
        "score_difference_target",
        "surrogate_loss",
        "unit_normalize",
        "zero_nonfinite",
    ],
    "initialise": ["init_student"],
    "loop": ["Run", "data_mesh"],
    "metrics": ["fid", "frechet_distance", "kid", "mmd2", "mode_stats", "prdc", "sliced_wasserstein"],
    "nets": ["count_parameters"],
    "noise": ["Fixed", "Karras", "LogNormal", "LogUniform", "SigmaLaw", "karras_sigmas", "parse_sigma_law"],
    "oracle": ["EmpiricalOracle", "GaussianMixture", "exact_log_ratio"],
    "precondition": ["edm_loss_weight", "edm_precond", "ratio_decay"],
    "probes": ["block_features", "linear_cka", "map_error", "participation_ratio", "probe_features"],
    "ratio": ["effective_sample_size", "log_softplus_ratio", "ratio_field", "ratio_loss", "ratio_weight"],
    "sampling": ["heun"],
    "score": ["denoising_loss", "score_field"],
    "selection": ["Selection", "cost_quality", "select_samples"],
    "train": ["StudentResult", "make_student_step", "train_student", "train_students", "train_teacher"],
    "transfer": ["Comparison", "compare_strategies", "teacher_budget"],
    "verify": ["importance_ess", "refit_ratio", "resample", "verifier_log_ratio"],
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
_SUBMODULES: tuple[str, ...] = ("features", "nets")

__all__ = sorted([*_MODULE_OF, *_SUBMODULES, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    if name in _SUBMODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module 'onestep_diffusion' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
