"""E8 to E10: what the package takes over from the papers around it — unseen causes, edges, label shift."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures

from ..datasets import binary_causes, label_shift_pair, three_causes
from ..oov import ResidualSkewRegressor
from .profiles import Profile
from .report import PEERS_PAPER, Claim, Experiment, Metric, auc, bootstrap_interval

Array = NDArray[np.float64]


def run_e8(profile: Profile, rng: np.random.Generator, out: Path) -> Experiment:
    """C9: the skewness of residuals tells the effect of a cause that the source environment lacks."""
    linear = _oov_ratios(rng, profile.oov_seeds, level=0)

    def median(x: Array) -> float:
        return float(np.median(x))

    note = (
        f"median over {profile.oov_seeds} random mechanisms, n = 10 000 split 90/10; percentile bootstrap interval; "
        "oracle: regression in the target environment"
    )
    result = Experiment()
    result.claims += [
        Claim(
            id="C9-skewness",
            statement="On linear mechanisms residual skewness comes close to an oracle that sees Y with the new cause",
            source=PEERS_PAPER["oov"],
            paper="close to the oracle",
            measured=median(linear[:, 0]),
            op="<=",
            value=1.1,
            n=len(linear),
            ci=bootstrap_interval(rng, median, linear[:, 0]),
            unit="MSE / oracle MSE",
            note=note,
        ),
        Claim(
            id="C9-marginal",
            statement="The marginal predictor without the new cause is not",
            source=PEERS_PAPER["oov"],
            paper="worse than the proposed",
            measured=median(linear[:, 1]),
            op=">=",
            value=1.5,
            n=len(linear),
            ci=bootstrap_interval(rng, median, linear[:, 1]),
            unit="MSE / oracle MSE",
            note=note,
        ),
    ]
    for level in (1, 2):
        ratios = _oov_ratios(rng, max(20, profile.oov_seeds // 4), level=level)
        for k, who in enumerate(("skewness", "marginal")):
            result.metrics.append(
                Metric(f"E8 interactions, level {level}: {who}", median(ratios[:, k]), "MSE / oracle MSE", "lower")
            )
    return result


def _oov_ratios(rng: np.random.Generator, seeds: int, *, level: int) -> Array:
    """(seeds, 2) MSE of the skewness and of the marginal predictor, relative to the oracle, on target rows."""
    ratios = []
    quadratic = make_pipeline(PolynomialFeatures(2), LinearRegression())
    base, derivative = (None, "constant") if level == 0 else (quadratic, quadratic)
    for _ in range(seeds):
        data = three_causes(rng, level=level)
        source, target = data.source, data.target
        model = ResidualSkewRegressor(base, derivative).fit(source[["x1", "x2"]], source["y"], target[["x2", "x3"]])
        oracle = (LinearRegression() if level == 0 else quadratic).fit(target[["x2", "x3"]], target["y"])
        guesses = model.predict(target), model.base_.predict(target[["x2"]]), oracle.predict(target[["x2", "x3"]])
        mse = [float(np.mean((target["y"] - guess) ** 2)) for guess in guesses]
        ratios.append((mse[0] / mse[2], mse[1] / mse[2]))
    return np.array(ratios)


def run_e9(profile: Profile, rng: np.random.Generator, out: Path) -> Experiment:
    """C10: edges between causes and Y from tables that were never joined."""
    from ..parents import edge_tests, tables_from_rows

    names = [f"x{i + 1}" for i in range(5)]
    result = Experiment()
    for generator in (1, 2):
        edge, known, estimated = [], [], []
        for _ in range(profile.edge_seeds):
            data = binary_causes(rng, 1000, generator=generator)
            if len(np.unique(data.y)) < 2 or (data.X.std(axis=0) == 0).any():
                continue  # nothing to test
            rows = pd.DataFrame(data.X, columns=names)
            means, marginals = tables_from_rows(rows, data.y)
            edge.append(data.edge)
            # tables from the same rows; p(x) as the joint table, or as the MAXENT law of the one-way tables
            known.append(edge_tests(means, 1000, rows.value_counts(normalize=True), shared_rows=True)["z"].abs())
            estimated.append(edge_tests(means, 1000, marginals, shared_rows=True)["z"].abs())
        truth = np.array(edge, dtype=float)  # (seeds, 5): resampled by seed, whose five causes share rows
        scores = {"known": np.nan_to_num(np.array(known)), "estimated": np.nan_to_num(np.array(estimated))}

        def pooled(edges: Array, score: Array) -> float:
            return auc(score[edges.astype(bool)], score[~edges.astype(bool)])

        def difference(edges: Array, a: Array, b: Array) -> float:
            return pooled(edges, a) - pooled(edges, b)

        setting = (
            f"generator G{generator}, {len(truth)} of {profile.edge_seeds} seeds (Y constant in the rest), n = 1000; "
            "|z| of the gauge-free contrast; bootstrap over seeds"
        )
        result.claims += [
            Claim(
                id=f"C10-known-g{generator}",
                statement=f"Edges are found from merged tables when p(x) is known (G{generator})",
                source=PEERS_PAPER["merging"],
                measured=pooled(truth, scores["known"]),
                op=">=",
                value=0.78,
                n=len(truth),
                ci=bootstrap_interval(rng, pooled, truth, scores["known"]),
                unit="AUC",
                note=setting,
            ),
            Claim(
                id=f"C10-estimated-g{generator}",
                statement=f"Edges are found also when p(x) is estimated by MAXENT (G{generator})",
                source=PEERS_PAPER["merging"],
                measured=pooled(truth, scores["estimated"]),
                op=">=",
                value=0.70,
                n=len(truth),
                ci=bootstrap_interval(rng, pooled, truth, scores["estimated"]),
                unit="AUC",
                note=setting,
            ),
            Claim(
                id=f"C10-order-g{generator}",
                statement=f"A known p(x) finds edges better than an estimated one (G{generator})",
                source=PEERS_PAPER["merging"],
                paper="known p(x) is better",
                measured=difference(truth, scores["known"], scores["estimated"]),
                op=">",
                value=0.0,
                n=len(truth),
                ci=bootstrap_interval(rng, difference, truth, scores["known"], scores["estimated"]),
                unit="AUC",
                note=setting,
            ),
        ]
    return result


def run_e10(profile: Profile, rng: np.random.Generator, out: Path) -> Experiment:
    """C11: under label shift the mechanism can be pooled, raw moments cannot."""
    from .. import MergedClassifier

    rows, weights = 20_000, {"mechanism": [], "raw": []}  # type: ignore[var-annotated]
    for _ in range(profile.shift_seeds):
        pair = label_shift_pair(rng, rows)
        sources = [
            pd.DataFrame({"y": pair.first.y, "x1": pair.first.X[:, 0]}),
            pd.DataFrame({"y": pair.second.y, "x2": pair.second.X[:, 1]}),
        ]
        with warnings.catch_warnings():  # raw pooling rightly warns that the prevalences differ
            warnings.simplefilter("ignore", UserWarning)
            for pooling, found in weights.items():
                model = MergedClassifier("y", "anticausal", pooling=pooling).fit_sources(sources)
                found.append(model.coef_[0])

    def z(pooling: str, limit: Array) -> float:
        found = np.array(weights[pooling])
        error = found.std(axis=0, ddof=1) / np.sqrt(len(found))
        return float((np.abs(found.mean(axis=0) - limit) / error).max())

    means = {k: np.mean(v, axis=0) for k, v in weights.items()}
    setting = (
        f"largest |mean − limit| / SE of the two weights over {profile.shift_seeds} replicates of {rows} rows per "
        "source, δ = (1, 1), π = .2 and .7"
    )
    return Experiment(
        claims=[
            Claim(
                id="C11-mechanism",
                statement="Mechanism pooling recovers the shared mechanism under label shift",
                measured=z("mechanism", pair.coef),
                op="<=",
                value=3.0,
                n=profile.shift_seeds,
                unit="SE",
                note=f"{setting}; mean {means['mechanism'].round(4).tolist()}, truth {pair.coef.tolist()}",
            ),
            Claim(
                id="C11-raw-bias",
                statement="Pooling raw moments is biased as the formula says",
                measured=z("raw", pair.naive_limit),
                op="<=",
                value=3.0,
                n=profile.shift_seeds,
                unit="SE",
                note=f"{setting}; mean {means['raw'].round(4).tolist()}, formula {pair.naive_limit.round(4).tolist()}",
            ),
        ]
    )
