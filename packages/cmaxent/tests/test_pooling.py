"""Merging sources: exact for row splits, right under label shift, loud about disagreement."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from cmaxent import InconsistentMomentsError, InfeasibleMomentsError, MergedClassifier, Moments, merge
from cmaxent.errors import CMaxEntError


def table(seed, n=300, holes=False):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 3)) @ (rng.uniform(-0.5, 0.5, size=(3, 3)) + 2 * np.eye(3)) + 20
    if holes:
        X[rng.random(X.shape) < 0.2] = np.nan
    y = (rng.random(n) < 0.4).astype(float)
    return pd.DataFrame(np.column_stack([y, X]), columns=["y", "a", "b", "c"])


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from(["raw", "mechanism"]))
def test_row_splits_merge_back_to_the_table(seed, holes, pooling):
    df = table(seed, holes=holes and pooling == "raw")
    whole = Moments.from_data(df)
    parts = [Moments.from_data(p) for p in (df[:70], df[70:200], df[200:])]
    merged = merge(parts, pooling=pooling, target="y", repair="raise")
    assert_allclose(merged.cov, whole.cov, rtol=1e-11, atol=1e-11)
    assert_allclose(merged.mean, whole.mean, rtol=1e-12)
    shuffled = merge(parts[::-1], pooling=pooling, target="y")
    assert_allclose(shuffled.cov, merged.cov, rtol=1e-11, atol=1e-11)


def test_disjoint_columns_leave_their_pair_unknown():
    df = table(0)
    m = merge([Moments.from_data(df[["y", "a"]]), Moments.from_data(df[["y", "b"]])])
    assert np.isnan(m.cov[m.names.index("a"), m.names.index("b")])


def test_unlabelled_source_is_converted_with_its_own_prevalence():
    rng = np.random.default_rng(0)

    def draw(pi, n=200_000):
        y = (rng.random(n) < pi).astype(float)
        return pd.DataFrame({"y": y, "a": y + rng.normal(size=n), "b": y + rng.normal(size=n)})

    sources = [
        Moments.from_data(draw(0.2)[["y", "a"]]),
        Moments.from_data(draw(0.7)[["y", "b"]]),
        Moments.from_data(draw(0.5)[["a", "b"]]),
    ]
    right = merge(sources, pooling="mechanism", target="y", prevalence={2: 0.5})
    assert_allclose(MergedClassifier(graph="anticausal").fit_moments(right).coef_[0], [1, 1], atol=0.03)
    with pytest.warns(UserWarning, match="prevalence"):
        merge(sources, pooling="mechanism", target="y", prevalence=0.2)


def test_prevalence_moves_only_the_offset():
    df = table(1)
    m = [Moments.from_data(df)]
    at = {
        p: MergedClassifier(graph="anticausal").fit_moments(merge(m, pooling="mechanism", target="y", prevalence=p))
        for p in (0.1, 0.6)
    }
    assert_allclose(at[0.1].coef_, at[0.6].coef_, rtol=1e-9)
    gap = np.log(0.6 / 0.4) - np.log(0.1 / 0.9)
    assert at[0.6].intercept_[0] - at[0.1].intercept_[0] == pytest.approx(gap, rel=1e-9)


def test_heterogeneity_is_cochrans_q():
    a = Moments.from_arrays([0.0], [[1.0]], names=["x"], n=100)
    b = Moments.from_arrays([0.5], [[1.0]], names=["x"], n=300)
    h = merge([a, b]).heterogeneity.set_index("moment")
    w = np.array([100, 300])
    centre = w @ [0, 0.5] / w.sum()
    assert h.loc["E[x]", "Q"] == pytest.approx(w @ (np.array([0, 0.5]) - centre) ** 2)
    assert h.loc["E[x]", "I2"] == pytest.approx(1 - 1 / h.loc["E[x]", "Q"])
    assert h.loc["E[x]", "df"] == 1


def contradictory():
    pair = lambda a, b, r: Moments.from_arrays([0, 0], [[1, r], [r, 1]], names=[a, b], n=100)  # noqa: E731
    return [pair("a", "b", 0.9), pair("b", "c", 0.9), pair("a", "c", -0.9)]


def test_contradictory_sources_raise_and_can_be_repaired():
    with pytest.raises(InfeasibleMomentsError, match="a, b, c"):
        merge(contradictory())
    shrunk = merge(contradictory(), repair="shrink")
    assert shrunk.repair_alpha == pytest.approx(4 / 9, abs=2e-6)  # .9 (1 - alpha) = 1/2 makes the matrix singular
    likely = merge(contradictory(), repair="ml")
    assert np.linalg.eigvalsh(likely.cov)[0] >= -1e-9


def test_kinds_and_counts_have_to_agree():
    a = Moments.from_arrays([0.5], [[0.25]], names=["x"], kinds={"x": "binary"}, n=10)
    b = Moments.from_arrays([0.5], [[0.3]], names=["x"], n=10)
    with pytest.raises(InconsistentMomentsError, match="x is binary"):
        merge([a, b])
    with pytest.raises(CMaxEntError, match="no n"):
        merge([Moments.from_arrays([0.5], [[0.3]], names=["x"]), b])
    with pytest.raises(CMaxEntError, match="at least one source"):
        merge([])


def test_a_pair_that_is_no_correlation_of_the_pooled_variances_can_be_repaired():
    wide = Moments.from_arrays([0, 0], [[4, 3.9], [3.9, 4]], names=["a", "b"], n=100)
    narrow = [Moments.from_arrays([0], [[1]], names=[name], n=900) for name in "ab"]
    with pytest.raises(InfeasibleMomentsError, match="a and b"):
        merge([wide, *narrow])
    assert np.linalg.eigvalsh(merge([wide, *narrow], repair="shrink").cov)[0] > 0


@pytest.mark.parametrize(
    "graph", ["y->a; y->b; a--b", [("y", "a"), ("y", "b"), ("a", "--", "b")], "y->a; y->b", "anticausal"]
)
def test_any_graph_without_causes_of_the_target_pools_mechanisms(graph):
    """Spec 2.8: delta = (1, 1), unit variances, prevalence .2 and .7 give weights (1, 1), not (.61, .82)."""

    def one(pi, feature):
        return Moments.from_class_stats("y", [0, 1], [1 - pi, pi], [[0.0], [1.0]], [[1.0]], names=[feature], n=1000)

    model = MergedClassifier(graph=graph).fit_sources([one(0.2, "a"), one(0.7, "b")])
    assert_allclose(model.coef_[0], [1, 1], atol=1e-9)


def test_prevalence_of_one_source_is_honoured():
    m = Moments.from_class_stats("y", [0, 1], [0.7, 0.3], [[0.0], [1.0]], [[1.0]], names=["a"], n=1000)
    shifted = MergedClassifier(graph="anticausal", prevalence=0.5).fit_sources([m])
    plain = MergedClassifier(graph="anticausal").fit_sources([m])
    assert_allclose(shifted.coef_, plain.coef_, atol=1e-9)
    assert_allclose(shifted.intercept_ - plain.intercept_, np.log(0.7 / 0.3), atol=1e-9)


def test_other_units_are_told():
    rng = np.random.default_rng(0)
    height = rng.normal(170, 10, size=500)
    metres, centimetres = (
        Moments.from_data(pd.DataFrame({"h": h, "w": rng.normal(size=500)})) for h in (height / 100, height)
    )
    with pytest.warns(UserWarning, match="the means of h differ by more than 20 standard errors between sources"):
        merge([metres, centimetres])


def test_likelihood_repair_can_be_fitted():
    """The maximum is singular here; what is returned is kept off it."""

    def pair(a, b, r):
        return Moments.from_arrays([0, 0], [[1, r], [r, 1]], names=[a, b], n=100)

    y = Moments.from_arrays([0.5, 0], [[0.25, 0.05], [0.05, 1]], names=["y", "a"], kinds={"y": "binary"}, n=100)
    sources = [y, pair("a", "b", 0.9), pair("b", "c", 0.9), pair("a", "c", -0.9)]
    model = MergedClassifier(graph="anticausal", repair="ml", pooling="raw").fit_sources(sources)
    assert np.isfinite(model.coef_).all()
    R = model.moments_.cov[1:, 1:] / np.sqrt(np.outer(*[model.moments_.cov.diagonal()[1:]] * 2))
    assert np.linalg.eigvalsh(R)[0] > 1e-7
