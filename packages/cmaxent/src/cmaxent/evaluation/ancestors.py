"""E8 to E10: what the package takes over from the papers around it — unseen causes, edges, label shift."""

from __future__ import annotations

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
from .report import PAPER, PEERS_PAPER, Claim, Experiment, Metric, auc, bootstrap_interval

Array = NDArray[np.float64]


def run_e8(profile: Profile, rng: np.random.Generator, out: Path) -> Experiment:
    """C9: the skewness of residuals tells the effect of a cause that the source environment lacks."""
    linear = _oov_ratios(rng, profile.oov_seeds, level=0)

    def median(x: Array) -> float:
        return float(np.median(x))

    note = f"median over {profile.oov_seeds} random mechanisms, n = 10 000 split 90/10; percentile bootstrap interval; oracle: regression in the target environment"
    result = Experiment()
    result.claims += [
        Claim(
            "C9-skewness", "The residual-skewness predictor is close to an oracle that sees Y with the new cause (linear mechanism)",
            PEERS_PAPER["oov"], "close to the oracle", median(linear[:, 0]), "<=", 1.1, len(linear),
            bootstrap_interval(rng, median, linear[:, 0]), "MSE / oracle MSE", note,
        ),
        Claim(
            "C9-marginal", "The marginal predictor without the new cause is not",
            PEERS_PAPER["oov"], "worse than the proposed", median(linear[:, 1]), ">=", 1.5, len(linear),
            bootstrap_interval(rng, median, linear[:, 1]), "MSE / oracle MSE", note,
        ),
    ]  # fmt: skip
    for level in (1, 2):
        ratios = _oov_ratios(rng, max(20, profile.oov_seeds // 4), level=level)
        for k, who in enumerate(("skewness", "marginal")):
            result.metrics.append(Metric(f"E8 interactions, level {level}: {who}", median(ratios[:, k]), "MSE / oracle MSE", "lower"))
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
        truth = np.array(edge)  # (seeds, 5): resampled by seed, since the five causes of one seed share rows
        scores = {"known": np.nan_to_num(np.array(known)), "estimated": np.nan_to_num(np.array(estimated))}

        def pooled(edges: Array, score: Array) -> float:
            return auc(score[edges.astype(bool)], score[~edges.astype(bool)])

        def difference(edges: Array, a: Array, b: Array) -> float:
            return pooled(edges, a) - pooled(edges, b)

        setting = f"generator G{generator}, {len(truth)} of {profile.edge_seeds} seeds (Y constant in the rest), n = 1000; |z| of the gauge-free contrast; bootstrap over seeds"
        result.claims += [
            Claim(
                f"C10-known-g{generator}", f"Edges are found from merged tables when p(x) is known (G{generator})",
                PEERS_PAPER["merging"], "", pooled(truth, scores["known"]), ">=", 0.78, len(truth),
                bootstrap_interval(rng, pooled, truth, scores["known"]), "AUC", setting,
            ),
            Claim(
                f"C10-estimated-g{generator}", f"Edges are found also when p(x) is estimated by MAXENT (G{generator})",
                PEERS_PAPER["merging"], "", pooled(truth, scores["estimated"]), ">=", 0.70, len(truth),
                bootstrap_interval(rng, pooled, truth, scores["estimated"]), "AUC", setting,
            ),
            Claim(
                f"C10-order-g{generator}", f"A known p(x) finds edges better than an estimated one (G{generator})",
                PEERS_PAPER["merging"], "known p(x) is better", difference(truth, scores["known"], scores["estimated"]), ">", 0.0,
                len(truth), bootstrap_interval(rng, difference, truth, scores["known"], scores["estimated"]), "AUC", setting,
            ),
        ]  # fmt: skip
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
        for pooling, found in weights.items():
            model = MergedClassifier("y", "anticausal", pooling=pooling).fit_sources(sources)
            found.append(model.coef_[0])

    def z(pooling: str, limit: Array) -> float:
        found = np.array(weights[pooling])
        error = found.std(axis=0, ddof=1) / np.sqrt(len(found))
        return float((np.abs(found.mean(axis=0) - limit) / error).max())

    means = {k: np.mean(v, axis=0) for k, v in weights.items()}
    setting = f"largest |mean − limit| / SE of the two weights over {profile.shift_seeds} replicates of {rows} rows per source, δ = (1, 1), π = .2 and .7"
    return Experiment(
        claims=[
            Claim(
                "C11-mechanism", "Mechanism pooling recovers the shared mechanism under label shift",
                PAPER, "", z("mechanism", pair.coef), "<=", 3.0, profile.shift_seeds, unit="SE",
                note=f"{setting}; mean {means['mechanism'].round(4).tolist()}, truth {pair.coef.tolist()}",
            ),
            Claim(
                "C11-raw-bias", "Pooling raw moments is biased as the formula says",
                PAPER, "", z("raw", pair.naive_limit), "<=", 3.0, profile.shift_seeds, unit="SE",
                note=f"{setting}; mean {means['raw'].round(4).tolist()}, formula {pair.naive_limit.round(4).tolist()}",
            ),
        ]
    )  # fmt: skip
