"""The estimator contract: scikit-learn's checks, missing columns, files, errors, uncertainty."""

import pickle
import warnings

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy.special import expit
from sklearn.datasets import load_breast_cancer
from sklearn.utils.estimator_checks import parametrize_with_checks

from cmaxent import (
    CMaxEntError,
    GraphError,
    InconsistentMomentsError,
    InfeasibleMomentsError,
    InfeasibleMomentsWarning,
    MergedClassifier,
    MergedRegressor,
    Moments,
    NonlocalConstraintError,
    check_feasible,
    load,
)
from cmaxent.graph import resolve_graph

# The checks fit separable and singular data, which the estimators refuse by default (on_infeasible="raise").
CHECKED = [
    MergedClassifier(graph="anticausal", shrinkage=0.1),
    MergedClassifier(on_infeasible="ridge", shrinkage=0.05),
    MergedRegressor(shrinkage=0.1),
    MergedRegressor(graph="anticausal", shrinkage=0.1),
]


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(CHECKED)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def gaussian_problem(n, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.multivariate_normal([1, 0, -1], [[1, 0.4, 0.2], [0.4, 1.5, -0.1], [0.2, -0.1, 0.8]], n)
    return X, (rng.random(n) < expit(X @ [0.8, -0.5, 0.3] - 0.5)).astype(int)


@pytest.mark.parametrize("graph", ["causal", "anticausal", "x0->y; y->x1; x0->x1; y->x2; x1->x2; x0->x2"])
def test_missing_features_are_integrated_out(graph):
    X, y = gaussian_problem(3000)
    model = MergedClassifier(graph=graph).fit(X, y)
    from cmaxent.uncertainty import simulate

    draws, labels = simulate(model._direction.model, 2_000_000, np.random.default_rng(0))
    near = np.abs(draws[:, 1] - 0.5) < 0.02
    expected, error = labels[near].mean(), 1 / np.sqrt(near.sum())
    assert model.predict_proba([[np.nan, 0.5, np.nan]])[0, 1] == pytest.approx(expected, abs=3 * error)
    assert model.predict_proba([[np.nan] * 3])[0, 1] == pytest.approx(y.mean(), abs=1e-9)


def test_columns_are_matched_by_name_and_may_be_absent():
    X, y = gaussian_problem(500)
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    model = MergedClassifier().fit(frame, y)
    assert_allclose(model.predict_proba(frame[["c", "a", "b"]].assign(extra=1)), model.predict_proba(X))
    without = frame.assign(b=np.nan)
    assert_allclose(model.predict_proba(frame[["c", "a"]]), model.predict_proba(without))
    with pytest.raises(CMaxEntError, match="none of the features"):
        model.predict(frame[["a"]].rename(columns={"a": "z"}))


def test_unlabelled_rows_inform_the_features():
    X, y = gaussian_problem(400)
    labelled = y.astype(float)
    labelled[200:] = np.nan
    model = MergedClassifier().fit(X, labelled)
    assert_allclose(model.completed_cov_, np.cov(X.T, ddof=0), rtol=1e-12)


def test_partial_fit_equals_fit():
    X, y = gaussian_problem(600)
    model = MergedClassifier()
    for part in np.array_split(np.arange(600), 7):
        model.partial_fit(X[part], y[part], classes=[0, 1])
    assert_allclose(model.coef_, MergedClassifier().fit(X, y).coef_, rtol=1e-10)


@pytest.mark.parametrize(
    "graph", ["causal", "anticausal", [("x0", "y"), ("y", "x1"), ("x0", "x1"), ("y", "x2"), ("x1", "x2"), ("x0", "x2")]]
)
def test_saved_models_predict_the_same(tmp_path, graph):
    X, y = gaussian_problem(500)
    model = MergedClassifier(graph=graph).fit(X, np.where(y, "yes", "no"))
    model.save(tmp_path / "m.npz")
    back = load(tmp_path / "m.npz")
    X[0, 1] = np.nan
    assert_allclose(back.predict_proba(X), model.predict_proba(X), rtol=1e-12)
    assert (back.predict(X) == model.predict(X)).all()
    assert_allclose(back.coef_cov_, model.coef_cov_)
    assert_allclose(pickle.loads(pickle.dumps(model)).predict_proba(X), model.predict_proba(X))


def test_breast_cancer_is_infeasible_causally_and_the_error_says_why():
    X, y = load_breast_cancer(return_X_y=True)
    X = X[:, :10]
    with pytest.raises(InfeasibleMomentsError, match=r"R\^2.*0\.6827.*0\.6125.*remedies"):
        MergedClassifier().fit(X, y)
    report = check_feasible(MergedClassifier(graph="anticausal").fit(X, y).moments_, "y", "causal")
    assert not report.feasible
    assert report.r2 == pytest.approx(0.683, abs=1e-3)
    assert report.r2_max == pytest.approx(0.613, abs=1e-3)
    for mode in ("ridge", "boundary"):
        with pytest.warns(InfeasibleMomentsWarning, match="R\\^2"):
            model = MergedClassifier(on_infeasible=mode).fit(X, y)
        assert model.score(X, y) > 0.9


def test_residuals_are_tiny_and_multipliers_named():
    X, y = gaussian_problem(500)
    for graph in ("causal", "anticausal"):
        model = MergedClassifier(graph=graph).fit(X, y)
        assert model.residual_ <= 1e-9
        assert set(model.multipliers_) == {"E[y]", "E[y x0]", "E[y x1]", "E[y x2]"}
        assert model.implied_moments_.known.all()
    boundary = model.decision_boundary(0.3)
    point = -boundary.offset * boundary.normal / (boundary.normal @ boundary.normal)
    assert model.predict_proba(point[None])[0, 1] == pytest.approx(0.3)


@pytest.mark.parametrize("graph", ["causal", "anticausal"])
@pytest.mark.parametrize("hide", [[], [("x0", "x2")]])
def test_standard_errors_match_repeated_sampling(graph, hide):
    n, fits = 1500, []
    for seed in range(200):
        X, y = gaussian_problem(n, seed)
        full = MergedClassifier(graph=graph).fit(X, y)
        fits.append(MergedClassifier(graph=graph).fit_moments(full.moments_.hide(hide)))
    spread = np.std([np.r_[f.intercept_, f.coef_[0]] for f in fits], axis=0)
    model_based = np.sqrt(np.diag(fits[0].coef_cov_))
    assert_allclose(model_based, spread, rtol=0.25)
    from_rows = np.sqrt(np.diag(full.coef_cov_))
    assert from_rows.shape == (4,)
    lo, hi = fits[0].predict_proba_interval([[0.0, 0, 0], [np.nan, 1, 0]])
    p = fits[0].predict_proba([[0.0, 0, 0], [np.nan, 1, 0]])[:, 1]
    assert ((lo < p) & (p < hi)).all()


def test_slack_approaches_the_exact_solution():
    X, y = gaussian_problem(800)
    for graph in ("causal", "anticausal"):
        exact = MergedClassifier(graph=graph).fit(X, y)
        assert_allclose(MergedClassifier(graph=graph, slack=1e-10).fit(X, y).coef_, exact.coef_, rtol=1e-6)
        loose = MergedClassifier(graph=graph, slack="se").fit(X, y)
        assert np.linalg.norm(loose.coef_) < np.linalg.norm(exact.coef_)


def test_graph_implications_are_tested():
    X, y = gaussian_problem(500)
    m = MergedClassifier(graph="anticausal").fit(X, y).moments_
    for graph in ("causal-star", "anticausal-star"):
        with pytest.raises(InconsistentMomentsError, match="without an edge between"):
            MergedClassifier(graph=graph).fit_moments(m)
        assert MergedClassifier(graph=graph, slack="se").fit_moments(m).coef_.shape == (1, 3)
        with pytest.raises(NonlocalConstraintError):
            MergedClassifier(graph=graph, nonlocal_="error").fit_moments(m)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ("x0->y; y->x0; x1->y; x2->y", "cycle"),
        ("x0->y; zz->y; x1->y; x2->y", "zz"),
        ("x0->y", "does not place"),
        ("x0->x1; x0--x1; x1->y; x2->y", "inside the block"),
        ("sideways", "unknown graph"),
    ],
)
def test_bad_graphs_are_named(graph, message):
    X, y = gaussian_problem(100)
    with pytest.raises(GraphError, match=message):
        MergedClassifier(graph=graph).fit(X, y)


def test_sources_that_never_meet_the_target_warn():
    labels = Moments.from_arrays([0.3], [[0.21]], names=["y"], kinds={"y": "binary"}, n=10)
    features = Moments.from_arrays([0.0], [[1.0]], names=["x"], n=10)
    with pytest.warns(UserWarning, match="no source links y"):
        model = MergedClassifier(pooling="raw").fit_sources([labels, features])
    assert model.predict_proba([[3.0]])[0, 1] == pytest.approx(0.3)


def test_unknown_target_and_continuous_target():
    m = Moments.from_arrays([0.3, 0], [[0.21, 0.1], [0.1, 1]], names=["y", "x"])
    with pytest.raises(CMaxEntError, match="continuous"):
        MergedClassifier().fit_moments(m)
    with pytest.raises(CMaxEntError, match="no target 'z'"):
        MergedClassifier("z").fit_moments(m)
    with pytest.raises(CMaxEntError, match="no source has the target"):
        MergedClassifier("z").fit_sources([m])


def test_models_with_binary_features_are_saved_and_have_standard_errors(tmp_path):
    rng = np.random.default_rng(0)
    b = rng.random(2000) < 0.4
    x = rng.normal(size=2000) + b
    frame = pd.DataFrame({"b": b, "x": x, "g": rng.choice(["u", "v", "w"], size=2000)})
    y = (rng.random(2000) < expit(x - b)).astype(int)
    for graph in ("causal", "anticausal"):
        model = MergedClassifier(graph=graph).fit(frame, y)
        model.save(tmp_path / "m.npz")
        rows = frame[:5].astype(object)
        rows.loc[0, "b"] = None
        assert_allclose(load(tmp_path / "m.npz").predict_proba(rows), model.predict_proba(rows), rtol=1e-12)
        assert (model.summary()["se"].iloc[:-1] > 0).all()  # the last level is the reference
    with pytest.raises(CMaxEntError, match="continuous features"):
        MergedClassifier(slack="se").fit(frame, y)


@pytest.mark.parametrize("kind", ["DiGraph", "BlockGraph", "list"])
def test_graph_objects_survive_a_file(tmp_path, kind):
    m = Moments.from_arrays(
        [0.3, 0, 0, 0], np.diag([0.21, 1, 1, 1]) + 0.05 * (1 - np.eye(4)), names=["y", "a", "b", "c"],
        kinds={"y": "binary"}, n=500,
    ).hide([("c", v) for v in "yab"])  # fmt: skip
    edges = [("a", "y"), ("y", "b"), ("a", "b"), ("c",)]
    graph = edges
    if kind == "DiGraph":
        graph = nx.DiGraph(edges[:3])
        graph.add_node("c")
    if kind == "BlockGraph":
        graph = resolve_graph(edges, m.variables)
    model = MergedClassifier(graph=graph).fit_moments(m)
    model.save(tmp_path / "m.npz")
    again = load(tmp_path / "m.npz")
    X = np.array([[0.5, np.nan, 1.0], [1.0, 2.0, np.nan]])
    assert_allclose(again.predict_proba(X), model.predict_proba(X))
    assert_allclose(again.predict_proba_interval(X), model.predict_proba_interval(X))


def test_chunks_without_labels_count_and_arrays_do_not_warn():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((300, 2))
    y = (X[:, 0] + rng.logistic(size=300) > 0).astype(float)
    y[100:200] = np.nan
    model = MergedClassifier()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for start in (0, 100, 200):
            model.partial_fit(X[start : start + 100], y[start : start + 100])
    assert_allclose(model.coef_, MergedClassifier().fit(X, y).coef_, rtol=1e-9)


def test_partial_fit_after_fit_moments_starts_anew():
    rng = np.random.default_rng(1)
    X, y = rng.standard_normal((100, 2)), rng.integers(0, 2, 100)
    model = MergedClassifier().fit(X, y)
    model.fit_moments(Moments.from_arrays([0.3, 1], [[0.21, 0.1], [0.1, 1]], names=["y", "z"], kinds={"y": "binary"}))
    assert_allclose(model.partial_fit(X, y).coef_, MergedClassifier().fit(X, y).coef_)
