"""Edges and effect bounds from tables that were never joined."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from cmaxent.datasets import binary_causes
from cmaxent.errors import CMaxEntError, InconsistentMomentsError
from cmaxent.parents import ace_bounds, edge_tests, maxent_law, tables_from_rows

SEEDS = st.integers(0, 10**6)


def law_of(shape, rng, names="abc"):
    index = pd.MultiIndex.from_product([range(k) for k in shape], names=list(names[: len(shape)]))
    return pd.Series(rng.dirichlet(np.full(len(index), 3.0)), index=index)


def additive(law, effects, offset=0.0):
    """p(y=1|x) with log odds offset + sum of the causes' effects; effects: cause -> list over levels."""
    eta = np.full(len(law), offset)
    for v, e in effects.items():
        eta = eta + np.array(e)[law.index.get_level_values(v)]
    return expit(eta)


def exact_means(law, p):
    return {v: (law * p).groupby(v).sum() / law.groupby(v).sum() for v in law.index.names}


def test_contrasts_of_an_additive_mechanism_are_recovered_from_one_table_each():
    law = law_of((2, 2, 3), np.random.default_rng(0))
    p = additive(law, {"a": [0, 1.2], "c": [0, -0.5, 0.8]}, -0.3)
    report = edge_tests(exact_means(law, p), 1e8, law)
    assert_allclose(report.contrast, [1.2, 0.0, 1.3], atol=1e-5)
    assert report.p["a"] < 1e-9 < 0.5 < report.p["b"]
    assert_allclose(report.z, report.contrast / report.se)
    # b is associated with y through a and c: its own table is not flat.
    assert np.ptp(exact_means(law, p)["b"]) > 0.01
    assert report.author_score["b"] < 1e-4 < 0.1 < report.author_score["a"] <= 1


def test_known_law_and_shared_rows_reproduce_logistic_regression_and_its_errors():
    rng = np.random.default_rng(0)
    n = 40_000
    law = law_of((2, 2, 2), rng)
    rows = law.index[rng.choice(len(law), n, p=law)].to_frame(index=False)
    y = rng.random(n) < expit(0.2 + 0.4 * rows["a"] - 0.3 * rows["b"])
    means, _ = tables_from_rows(rows, y)
    report = edge_tests(means, n, rows.value_counts(normalize=True), shared_rows=True)
    design = np.column_stack([np.ones(n), rows])
    peer = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=1000).fit(design, y)
    assert_allclose(report.contrast, peer.coef_[0, 1:], atol=2e-4)
    p = peer.predict_proba(design)[:, 1]
    se = np.sqrt(np.diag(np.linalg.inv((design.T * (p * (1 - p))) @ design)))[1:]
    assert_allclose(report.se, se, rtol=0.03)


def test_z_of_a_missing_edge_is_standard_normal_over_separate_studies():
    rng = np.random.default_rng(1)
    law = law_of((2, 2, 2), rng)
    p = additive(law, {"a": [0, 1.0], "c": [0, -1.0]})
    z = []
    for _ in range(300):
        means = {}
        for v in "abc":  # a study of its own for each cause
            x = rng.choice(len(law), 2000, p=law)
            y = rng.random(2000) < p[x]
            means[v] = pd.Series(y).groupby(law.index.get_level_values(v)[x]).mean()
        z.append(edge_tests(means, 2000, law).z["b"])
    assert abs(np.mean(z)) < 0.2
    assert 0.88 < np.std(z) < 1.12


def test_wald_test_of_a_cause_with_three_levels_has_two_degrees_of_freedom():
    rng = np.random.default_rng(2)
    law = law_of((2, 3), rng)
    p = additive(law, {"a": [0, 0.7]})
    pvalues = []
    for _ in range(200):
        x = rng.choice(len(law), 3000, p=law)
        rows = law.index[x].to_frame(index=False)
        means, _ = tables_from_rows(rows, rng.random(3000) < p[x])
        pvalues.append(edge_tests(means, 3000, law, shared_rows=True).p["b"])
    assert 0.01 < np.mean(np.array(pvalues) < 0.05) < 0.11
    assert abs(np.mean(pvalues) - 0.5) < 0.08


def test_levels_may_be_labels_and_order_of_the_law_is_free():
    law = law_of((2, 2), np.random.default_rng(3), "ab")
    means = exact_means(law, additive(law, {"a": [0, 1.0], "b": [0, -1.0]}))
    named = law.rename({0: "no", 1: "yes"}, level="a").swaplevel()
    renamed = {"a": means["a"].rename({0: "no", 1: "yes"}), "b": means["b"]}
    assert_allclose(edge_tests(renamed, 1e6, named), edge_tests(means, 1e6, law), rtol=1e-6)


def test_cell_without_successes_gets_a_finite_contrast():
    law = law_of((2, 2), np.random.default_rng(4))
    report = edge_tests({"a": pd.Series([0.0, 0.6]), "b": pd.Series([0.3, 0.4])}, {"a": 500, "b": 80}, law)
    assert np.isfinite(report).all().all()
    assert report.z["a"] > 3


def test_cause_that_is_a_copy_of_another_has_no_contrast_of_its_own():
    law = pd.Series(
        [0.2, 0.3, 0.3, 0.2],
        index=pd.MultiIndex.from_tuples([(0, 0, 0), (0, 0, 1), (1, 1, 0), (1, 1, 1)], names=list("abc")),
    )
    means = {v: pd.Series([0.3, 0.5]) for v in "abc"}
    report = edge_tests(means, 1000, law)
    assert report.loc[["a", "b"]].isna().all().all()
    assert np.isfinite(report.loc["c"]).all()


def test_maxent_law_of_univariate_tables_is_independent_and_of_a_chain_is_markov():
    rng = np.random.default_rng(5)
    law = law_of((2, 3, 2), rng)
    single = maxent_law([law.groupby(v).sum() for v in "abc"]).to_numpy().reshape(2, 3, 2)
    a, b, c = (law.groupby(v).sum().to_numpy() for v in "abc")
    assert_allclose(single, np.einsum("i,j,k->ijk", a, b, c), atol=1e-9)
    ab, bc = (law.groupby(list(pair)).sum() for pair in ("ab", "bc"))
    chain = maxent_law([ab, bc]).to_numpy().reshape(2, 3, 2)
    expected = np.einsum("ij,jk,j->ijk", ab.to_numpy().reshape(2, 3), bc.to_numpy().reshape(3, 2), 1 / b)
    assert_allclose(chain, expected, atol=1e-9)
    shifted = pd.Series([0.9, 0.1], index=pd.Index([0, 1], name="a"))
    with pytest.raises(InconsistentMomentsError, match=r"table 0.*table 1"):
        maxent_law([ab, shifted])


# --- bounds -----------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(2, 3))
def test_bounds_contain_the_true_effect_of_any_mechanism_with_observed_confounders(seed, levels):
    rng = np.random.default_rng(seed)
    law = law_of((levels, 2, 2), rng)
    p = rng.random(len(law))
    bounds = ace_bounds(exact_means(law, p)["a"], law, "a")
    p_z = law.groupby(["b", "c"]).sum().to_numpy()
    truth = p.reshape(levels, 4) @ p_z
    assert (bounds.probability.lower <= truth + 1e-12).all()
    assert (truth <= bounds.probability.upper + 1e-12).all()
    for (b, a), (low, high) in zip(bounds.effect.index, bounds.effect.to_numpy(), strict=True):
        assert -1 <= low <= truth[b] - truth[a] <= high <= 1


def test_bounds_are_the_stated_ratios():
    law = pd.Series([0.3, 0.2, 0.1, 0.4], index=pd.MultiIndex.from_product([[0, 1], [0, 1]], names=["x", "z"]))
    bounds = ace_bounds(pd.Series([0.1, 0.2]), law, "x")
    given_z = np.array([[0.3, 0.1], [0.2, 0.4]]) / np.array([[0.4], [0.6]])
    joint = np.array([0.5 * 0.1, 0.5 * 0.2])
    assert_allclose(bounds.probability.lower, joint / given_z.max(axis=0))
    assert_allclose(bounds.probability.upper, joint / given_z.min(axis=0))
    low, high = bounds.probability.lower, bounds.probability.upper
    assert_allclose(bounds.effect.loc[(1, 0)], [low[1] - high[0], high[1] - low[0]])


def test_bounds_meet_at_the_conditional_mean_without_confounders_and_are_vacuous_without_overlap():
    alone = pd.Series([0.4, 0.6], index=pd.Index([0, 1], name="x"))
    bounds = ace_bounds(pd.Series([0.1, 0.7]), alone, "x")
    assert_allclose(bounds.probability, [[0.1, 0.1], [0.7, 0.7]])
    assert_allclose(bounds.effect, [[0.6, 0.6]])
    tied = pd.Series([0.5, 0.5], index=pd.MultiIndex.from_tuples([(0, 0), (1, 1)], names=["x", "z"]))
    assert_allclose(ace_bounds(pd.Series([0.1, 0.7]), tied, "x").probability.upper, 1.0)


# --- E9 ---------------------------------------------------------------------------------------------------


def test_edges_among_five_confounded_binary_causes_are_ranked_as_in_the_paper():
    names = [f"x{i}" for i in range(5)]
    found = []
    for generator, seed in itertools.product((1, 2), range(100)):
        problem = binary_causes(np.random.default_rng([seed, generator]), 1000, generator=generator)
        rows = pd.DataFrame(problem.X, columns=names)
        means, marginals = tables_from_rows(rows, problem.y)
        known = edge_tests(means, 1000, rows.value_counts(normalize=True), shared_rows=True)
        estimated = edge_tests(means, 1000, marginals, shared_rows=True)
        found.append(np.stack([problem.edge, known.z.abs(), estimated.z.abs()], axis=1))
    edge, known, estimated = np.concatenate(found).T
    assert roc_auc_score(edge, known) >= 0.78
    assert roc_auc_score(edge, estimated) >= 0.70
    assert roc_auc_score(edge, known) > roc_auc_score(edge, estimated)


# --- errors -----------------------------------------------------------------------------------------------

LAW = pd.Series([0.25] * 4, index=pd.MultiIndex.from_product([[0, 1], [0, 1]], names=["a", "b"]))
FLAT = pd.Series([0.5, 0.5])


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: edge_tests({"q": FLAT}, 10, LAW), r"E\[Y\|q\] is given, but p\(x\) is a law of a, b"),
        (lambda: edge_tests({"a": pd.Series([0.5])}, 10, LAW), "lacks the level 1"),
        (lambda: edge_tests({"a": pd.Series([0.5, 1.2])}, 10, LAW), "between 0 and 1"),
        (lambda: edge_tests({"a": FLAT}, 0, LAW), "n has to be positive"),
        (lambda: edge_tests({"a": FLAT}, 10, LAW * 2), "not a probability table"),
        (lambda: edge_tests({"a": FLAT}, 10, LAW.reset_index(drop=True)), "names of its index levels"),
        (lambda: ace_bounds(FLAT, LAW, "q"), "law of a, b"),
    ],
)
def test_malformed_table_is_refused_in_words(make, match):
    with pytest.raises(CMaxEntError, match=match):
        make()
