"""Model files: what a fitted estimator is, as JSON and arrays, and back."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from . import directions as dr
from .errors import CMaxEntError
from .gated import GatedGaussian
from .graph import BlockGraph, edge_list
from .mixed_model import mixed_from_state
from .moments import Moments
from .storage import load_npz

if TYPE_CHECKING:
    from .classifier import MergedClassifier
    from .regressor import MergedRegressor

Array = NDArray[np.float64]


def classifier_state(model: MergedClassifier) -> tuple[dict[str, Any], dict[str, Array]]:
    """What :func:`load` needs to make the classifier again: (JSON values, arrays)."""
    fit, t = model._direction, model._target_view
    moments = model.moments_
    report = fit.feasibility
    meta = {
        "parameters": {k: jsonable(v) for k, v in model.get_params().items()},
        "target": t.name,
        "classes": [c.item() if isinstance(c, np.generic) else c for c in t.classes],
        "features": list(t.names),
        "moments": {
            "names": list(moments.names),
            "kinds": dict(moments.kinds),
            "levels": {k: [x.item() if isinstance(x, np.generic) else x for x in v] for k, v in moments.levels.items()},
        },
        "n": moments.n if not isinstance(moments.n, np.ndarray) else None,
        "multipliers": fit.multipliers(),
        "entropy": fit.entropy,
        "residual": fit.residual,
        "feasibility": [
            report.feasible,
            _finite(report.margin),
            _finite(report.r2),
            _finite(report.r2_max),
            report.reason,
            list(report.conflicting),
        ],
        "info": {k: jsonable(v) for k, v in fit.info.items()},
        "slack_used": fit.slack_used,
    }
    m = fit.model
    arrays = {"cov": fit.cov, "C": fit.C, "mean": moments.mean, "moment_cov": moments.cov}
    if isinstance(m, GatedGaussian):
        arrays |= {
            "gate_intercept": m.gate_intercept, "gate_coef": m.gate_coef, "means": m.means, "within": m.cov,
            "intercept": m.intercept, "coef": m.coef,
        }  # fmt: skip
    else:
        arrays |= m.state()
    if isinstance(moments.n, np.ndarray):
        arrays["n"] = moments.n
    if len(t.classes) == 2:
        # Without n behind the moments the model is stored without standard errors.
        with contextlib.suppress(CMaxEntError):
            arrays["coef_cov"] = model.coef_cov_
    return meta, arrays


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def jsonable(value: Any) -> Any:
    """A parameter of an estimator as JSON values; a graph becomes its edge list."""
    if isinstance(value, (str, bool, type(None), int, float)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (BlockGraph, nx.DiGraph)):
        return [list(edge) for edge in edge_list(value)]
    return [jsonable(v) for v in value]


def load(path: str | os.PathLike[str]) -> Any:
    """Read a file written by ``save``: a :class:`MergedClassifier`, a ``MergedRegressor`` or :class:`Moments`."""
    if Path(path).suffix == ".json":
        return Moments.load(path)
    kind, meta, arrays = load_npz(path)
    if kind == "moments":
        return Moments.load(path)
    if kind == "regressor":
        return _regressor(meta, arrays)
    if kind != "classifier":
        raise CMaxEntError(f"{path}: holds a cmaxent {kind}, which this version cannot load")
    return _classifier(meta, arrays)


def _regressor(meta: Mapping[str, Any], arrays: Mapping[str, Array]) -> MergedRegressor:
    """A regressor is a function of its moments: refit."""
    from .regressor import MergedRegressor

    moments = Moments.from_arrays(
        arrays["mean"], arrays["cov"], names=meta["names"], kinds=meta["kinds"],
        n=arrays.get("n", meta["n"]), levels=meta["levels"],
    )  # fmt: skip
    return MergedRegressor(**meta["parameters"]).fit_moments(moments)


def _classifier(meta: Mapping[str, Any], arrays: Mapping[str, Array]) -> MergedClassifier:
    from .classifier import MergedClassifier

    model = MergedClassifier(**meta["parameters"])
    moments = Moments.from_arrays(
        arrays["mean"], arrays["moment_cov"], names=meta["moments"]["names"], kinds=meta["moments"]["kinds"],
        n=arrays.get("n", meta["n"]), levels=meta["moments"]["levels"],
    )  # fmt: skip
    target = dr.class_target(moments, meta["target"])
    f = meta["feasibility"]
    nan = float("nan")
    margin, r2, r2_max = (nan if v is None else float(v) for v in f[1:4])
    report = dr.FeasibilityReport(f[0], margin, r2, r2_max, f[4], tuple(f[5]))
    gated: Any
    if "mixed_coef" in arrays:
        gated = mixed_from_state(arrays)
    else:
        gated = GatedGaussian(
            arrays["gate_intercept"],
            arrays["gate_coef"],
            arrays["means"],
            arrays["within"],
            arrays["intercept"],
            arrays["coef"],
        )
    fit = dr.DirectionFit(
        gated,
        arrays["cov"],
        arrays["C"],
        meta["entropy"],
        dr.Constant(meta["multipliers"]),
        meta["residual"],
        report,
        meta["info"],
        meta["slack_used"],
    )
    model._set(fit, target, moments)
    model.n_features_in_ = len(model.feature_names_in_)
    model._coef_cov = arrays.get("coef_cov")
    return model
