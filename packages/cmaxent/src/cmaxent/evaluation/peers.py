"""E14: other ways to merge two tables that never met, scored on real data with every covariance between them hidden."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from ..datasets import RealSet
from ..oov import log_loss
from .common import real_set, table_moments
from .profiles import Profile
from .real import _halves, _stratified
from .report import TARGET, Artifact, Claim, Experiment, Metric, t_interval

Array = NDArray[np.float64]
OURS = ("anticausal merge", "anticausal merge, shrinkage .1", "causal merge")
BASELINES = ("product of experts", "averaging", "stacking, imputed", "one model, imputed", "GENMETA equation")
MEASURES = ("log-loss", "Brier", "ECE", "accuracy")


def expected_calibration_error(y: Array, p: Array, bins: int = 10) -> float:
    """Mean |frequency − probability| over equal-width bins of the probability, weighted by their rows."""
    which = np.minimum((p * bins).astype(int), bins - 1)
    total = np.bincount(which, minlength=bins)
    gap = np.abs(np.bincount(which, y, bins) - np.bincount(which, p, bins))
    return float(gap[total > 0].sum() / len(y))


def _scores(y: Array, p: Array) -> list[float]:
    return [
        log_loss(y, p),
        float(np.mean((y - p) ** 2)),
        expected_calibration_error(y, p),
        float(np.mean((p > 0.5) == (y == 1))),
    ]


def _expert() -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))


def merged_predictions(
    first: pd.DataFrame, second: pd.DataFrame, reference: pd.DataFrame, test: pd.DataFrame, joint: pd.DataFrame
) -> dict[str, Array]:
    """P(Y=1) of every method on the test rows.

    Parameters
    ----------
    first, second : labelled tables (A, y) and (B, y) of different rows: what every method may see.
    reference : unlabelled rows of (A, B), for the GENMETA equation only, which cannot do without.
    test : rows of (A, B).
    joint : labelled rows of (A, B, y), for the oracle.
    """
    from .. import MergedClassifier

    a, b = [c for c in first.columns if c != "y"], [c for c in second.columns if c != "y"]
    prior = float(pd.concat([first["y"], second["y"]]).mean())
    experts = _expert().fit(first[a], first["y"]), _expert().fit(second[b], second["y"])
    logits = [
        logit(np.clip(e.predict_proba(test[c])[:, 1], 1e-12, 1 - 1e-12)) for e, c in zip(experts, (a, b), strict=True)
    ]
    out = {
        "product of experts": expit(logits[0] + logits[1] - logit(prior)),
        "averaging": (expit(logits[0]) + expit(logits[1])) / 2,
    }

    # stacking: the logit of the expert that a row cannot have is imputed by its mean
    level = [
        logit(np.clip(cross_val_predict(_expert(), t[c], t["y"], cv=5, method="predict_proba")[:, 1], 1e-6, 1 - 1e-6))
        for t, c in ((first, a), (second, b))
    ]
    meta_X = np.block(
        [
            [level[0][:, None], np.full((len(first), 1), level[1].mean())],
            [np.full((len(second), 1), level[0].mean()), level[1][:, None]],
        ]
    )
    meta = LogisticRegression().fit(meta_X, np.concatenate([first["y"], second["y"]]))
    out["stacking, imputed"] = meta.predict_proba(np.column_stack(logits))[:, 1]
    stacked = pd.concat([first, second], ignore_index=True)
    imputed = make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression(max_iter=5000)).fit(
        stacked[[*a, *b]], stacked["y"]
    )
    out["one model, imputed"] = imputed.predict_proba(test[[*a, *b]])[:, 1]

    sources = [table_moments(first), table_moments(second)]
    # shrinkage towards a multiple of the identity needs columns of one scale
    centre = pd.concat([first[a].mean(), second[b].mean()])
    scale = pd.concat([first[a].std(), second[b].std()])
    scaled = [table_moments(((t[c] - centre[c]) / scale[c]).assign(y=t["y"])) for t, c in ((first, a), (second, b))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        anticausal = MergedClassifier("y", "anticausal").fit_sources(sources)
        causal = MergedClassifier("y", "causal", on_infeasible="boundary").fit_sources(sources)
        out["anticausal merge"] = anticausal.predict_proba(test)[:, 1]
        # The experts below are regularised by default, which matters on sets of a hundred rows.
        shrunk = MergedClassifier("y", "anticausal", shrinkage=0.1).fit_sources(scaled)
        out["anticausal merge, shrinkage .1"] = shrunk.predict_proba((test[[*a, *b]] - centre) / scale)[:, 1]
        out["causal merge"] = causal.predict_proba(test)[:, 1]
        # Without a ridge its equations have no solution on the small reference samples of most sets.
        genmeta = MergedClassifier("y", "causal", p_x="empirical", slack=0.01).fit_moments(
            causal.moments_, reference[[*a, *b]]
        )
        out["GENMETA equation"] = genmeta.predict_proba(test)[:, 1]
    out["oracle, joint rows"] = _expert().fit(joint[[*a, *b]], joint["y"]).predict_proba(test[[*a, *b]])[:, 1]
    return out


def _mean_scores(data: RealSet, rng: np.random.Generator, splits: int) -> pd.DataFrame:
    """Scores (methods × measures), mean over random splits: 25 % of rows per table, 30 % reference, 20 % test."""
    table = data.X.assign(y=data.y)
    total: dict[str, list[list[float]]] = {}
    for _ in range(splits):
        a, b = ([str(data.X.columns[i]) for i in half] for half in _halves(rng, data.X.shape[1]))
        rest, test = _stratified(rng, data.y, 0.8)
        labelled, reference = (rest[i] for i in _stratified(rng, data.y[rest], 0.625))
        first, second = (labelled[i] for i in _stratified(rng, data.y[labelled], 0.5))
        # a column that is constant in its table carries nothing there
        a, b = [c for c in a if table[c].iloc[first].std() > 0], [c for c in b if table[c].iloc[second].std() > 0]
        guesses = merged_predictions(
            table.iloc[first][[*a, "y"]],
            table.iloc[second][[*b, "y"]],
            table.iloc[reference],
            table.iloc[test],
            table.iloc[labelled],
        )
        for method, p in guesses.items():
            total.setdefault(method, []).append(_scores(data.y[test].astype(float), p))
    return pd.DataFrame({m: np.mean(s, axis=0) for m, s in total.items()}, index=list(MEASURES)).T


def run_e14(profile: Profile, rng: np.random.Generator, out: Path) -> Experiment:
    """The anticausal merge against the usual ways to combine predictors of different columns."""
    from .. import plots

    by_set = {s.name: _mean_scores(s, rng, profile.hidden_splits) for s in map(real_set, profile.real_sets)}
    n = len(by_set)
    loss = pd.DataFrame({name: scores["log-loss"] for name, scores in by_set.items()}).T
    result = Experiment()
    setting = (
        f"two tables of different rows and random column halves, {profile.hidden_splits} splits; "
        f"t interval over {n} real sets"
    )
    for baseline in (*BASELINES, "causal merge"):
        gain = loss[baseline] - loss["anticausal merge"]
        note = f"mean log-loss of the baseline minus ours; ours lower on {int((gain > 0).sum())} of {n} sets; {setting}"
        if baseline == "GENMETA equation":
            note += "; the baseline alone sees unlabelled rows of all columns; ridge .01"
        result.claims.append(
            Claim(
                id=f"E14-{baseline.lower().replace(', ', '-').replace(' ', '-')}",
                statement=f"The anticausal merge has a lower test log-loss than: {baseline}",
                source=TARGET,
                measured=float(gain.mean()),
                op=">",
                value=0.0,
                n=n,
                ci=t_interval(gain),
                unit="nat",
                note=note,
            )
        )
    for measure in MEASURES:
        table = pd.DataFrame({name: scores[measure] for name, scores in by_set.items()}).T
        better = "higher" if measure == "accuracy" else "lower"
        for method in (*OURS, *BASELINES, "oracle, joint rows"):
            result.metrics.append(Metric(f"E14 mean {measure}, {method}", float(table[method].mean()), "", better))
        sign = 1 if better == "higher" else -1
        wins = (sign * table["averaging"] > sign * table["anticausal merge"]).sum()
        result.metrics.append(
            Metric(
                f"E14 sets on which averaging beats the anticausal merge, {measure}", float(wins), f"of {n}", "lower"
            )
        )
    relative = loss.sub(loss["oracle, joint rows"], axis=0)
    plots.paired_dots(
        relative.sort_values("anticausal merge"),
        out / "baselines.png",
        columns={
            "averaging": ("averaging", "#8E8E8E"),
            "product of experts": ("product of experts", "#4C9A6A"),
            "GENMETA equation": ("GENMETA equation", "#9B72B0"),
            "causal merge": ("X → Y merge", plots.CAUSAL),
            "anticausal merge": ("Y → X merge", plots.ANTICAUSAL),
        },
        xlabel="test log-loss above logistic regression on joint rows [nat]",
        title="Merging two tables that never met",
        marks={0.0: "oracle"},
        xlim=(min(-0.05, float(relative["anticausal merge"].min())), 0.6),
    )
    result.artifacts.append(
        Artifact("baselines.png", "Log-loss of merging methods on real data, relative to an oracle")
    )
    return result
