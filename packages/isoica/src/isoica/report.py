"""IdentifiabilityReport: which components are identified, and by how much to widen their error bars."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .eta_bound import eta_lower_bound

if TYPE_CHECKING:
    from .linear import PerturbedICA

Array = NDArray[np.float64]


@dataclass(frozen=True)
class IdentifiabilityReport:
    """What a fitted PerturbedICA knows about its components.

    alpha, z : (k,) margins and margins over their standard errors. identified : (k,) bool, |z| >= 3.
    kappa, stderr : (k, k) leakage of source j into estimate i per unit of perturbation, and by sampling.
    eta_hat, eta_lower, p_value : perturbation that the data prove; NaN where no data were at hand. One-sided: the
    perturbation may be larger, never provably smaller.
    n_star : (k, k) sample size beyond which more data does not help, at ``eta``.
    stability : (k,) agreement of restarts, NaN for one run.
    """

    alpha: Array
    z: Array
    identified: NDArray[np.bool_]
    kappa: Array
    stderr: Array
    eta_hat: float
    eta_lower: float
    p_value: float
    n_star: Array
    stability: Array
    warnings: list[str] = field(default_factory=list)
    eta: float = float("nan")
    level: float = 0.95

    def total_error(self, eta: float) -> Array:
        """``√(stderr² + (ηκ)²)`` (k, k): standard error with room for a perturbation of size ``eta``."""
        with np.errstate(invalid="ignore"):
            bias = np.where(eta == 0, 0.0, eta * self.kappa)
        return np.sqrt(self.stderr**2 + bias**2)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; NaN and infinity become None."""
        names = (
            "alpha", "z", "identified", "kappa", "stderr", "eta_hat", "eta_lower", "p_value", "n_star", "stability",
            "warnings", "eta", "level",
        )  # fmt: skip
        values = {name: _json(getattr(self, name)) for name in names}
        return {**values, "total_error": _json(self.total_error(self.eta)) if np.isfinite(self.eta) else None}

    def to_text(self) -> str:
        """A page to read."""
        lines = ["component      alpha        z  identified  max kappa  max stderr  stability"]
        for i in range(len(self.alpha)):
            lines.append(
                f"{i:9d}  {self.alpha[i]:9.4f}  {self.z[i]:7.1f}  {'yes' if self.identified[i] else 'NO':>10}"
                f"  {self.kappa[i].max():9.3f}  {self.stderr[i].max():10.4f}  {self.stability[i]:9.3f}"
            )
        if np.isfinite(self.eta_hat):
            lines += [
                f"perturbation proven by the data: eta >= {self.eta_lower:.4f} ({100 * self.level:g} % bound), point "
                f"{self.eta_hat:.4f}, p = {self.p_value:.3g}",
                "  gradient part: detectable; divergence-free part: undetectable; componentwise part: harmless.",
                "  The perturbation may be larger than this; no statistic of the data can exclude it.",
            ]
        if np.isfinite(self.eta) and self.eta > 0 and len(self.alpha) > 1:
            total = self.total_error(self.eta)
            off = ~np.eye(len(total), dtype=bool)
            lines.append(
                f"at eta = {self.eta:.4g}: largest leakage {total[off].max():.4f} in all, {self.stderr[off].max():.4f} "
                f"by sampling; more than {self.n_star[off].max():.3g} samples help no component"
            )
        return "\n".join([*lines, *[f"warning: {w}" for w in self.warnings]])


def make_report(
    model: PerturbedICA, S: Array | None, eta: float | None, level: float, n_permutations: int
) -> IdentifiabilityReport:
    """The report of a fitted model; ``S`` (n, k) are recovered sources on which η is bounded (None: not at all)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.nan_to_num(model.alpha_ / model.alpha_se_, posinf=np.inf, neginf=-np.inf)
    identified = np.abs(z) >= 3
    notes = []
    eta_hat = eta_lower = p_value = float("nan")
    if S is None:
        notes.append("no data: pass X to bound the perturbation from below")
    elif len(S) <= 12:
        notes.append(f"{len(S)} samples are too few to bound the perturbation")
    else:
        bound = eta_lower_bound(S, n_permutations=n_permutations, random_state=0, level=level)
        eta_hat, eta_lower, p_value = bound.estimate, bound.lower, bound.p_value
    used = eta_hat if eta is None else float(eta)
    with np.errstate(divide="ignore", invalid="ignore"):
        n_star = np.nan_to_num(
            model.stderr_**2 * model.n_effective_ / (used * model.kappa_) ** 2, nan=0.0, posinf=np.inf
        )
    np.fill_diagonal(n_star, np.inf)
    weak = np.flatnonzero(~identified)
    if weak.size >= 2:
        notes.append(
            f"components {weak.tolist()} cannot be told from Gaussian: only their span is identified "
            "(unidentified_subspace_)"
        )
    elif weak.size == 1 and len(z) > 1:
        notes.append(f"component {int(weak[0])} may be Gaussian: it is what the others leave")
    if not model.converged_:
        notes.append(f"the fit has not converged (largest gradient entry {model.gradient_norm_:.1e})")
    return IdentifiabilityReport(
        model.alpha_, z, identified, model.kappa_, model.stderr_, eta_hat, eta_lower, p_value, n_star, model.stability_,
        notes, used, level,
    )  # fmt: skip


def _json(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [_json(v) for v in value.tolist()]
    if isinstance(value, list):
        return [_json(v) for v in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value
