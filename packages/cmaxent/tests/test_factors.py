"""Each factor's density, draws, entropy and marginals against an independent computation."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import softmax
from scipy.stats import chisquare, entropy, multivariate_normal, norm

from cmaxent.errors import CMaxEntError
from cmaxent.factors import (
    GaussianFactor,
    LogisticFactor,
    PointMass,
    SoftmaxFactor,
    TableFactor,
    binary_entropy,
    design,
    draw_codes,
)


def gaussian():
    cov = np.array([[2.0, 0.5], [0.5, 1.0]])
    return GaussianFactor(("u", "v"), ("x", "y=b"), np.array([1.0, -1.0]), np.array([[0.5, 2.0], [0.0, -1.0]]), cov)


def test_gaussian_factor_is_the_multivariate_normal_of_its_linear_predictor():
    f, rng = gaussian(), np.random.default_rng(0)
    values = {
        "x": rng.normal(size=4),
        "y": np.array(list("abba"), object),
        "u": rng.normal(size=4),
        "v": rng.normal(size=4),
    }
    for i in range(4):
        mean = f.intercept + f.slopes @ [values["x"][i], values["y"][i] == "b"]
        expected = multivariate_normal(mean, f.cov).logpdf([values["u"][i], values["v"][i]])
        assert_allclose(f.log_prob(values)[i], expected)
    assert_allclose(f.conditional_entropy(values), multivariate_normal(np.zeros(2), f.cov).entropy())
    draws = f.sample({"x": np.full(50_000, 2.0), "y": np.full(50_000, "b", object)}, rng)
    assert_allclose([draws["u"].mean(), draws["v"].mean()], [4.0, -2.0], atol=0.03)
    assert_allclose(np.cov(draws["u"], draws["v"]), f.cov, atol=0.05)
    assert_allclose(f.marginal(["v"]).log_prob(values), norm(-1 - (values["y"] == "b"), 1).logpdf(values["v"]))


def test_logistic_factor_gives_log_probabilities_without_underflow():
    f = LogisticFactor("y", ("x",), 0.5, np.array([2.0]))
    values = {"x": np.array([0.0, 1.0, -1000.0]), "y": np.array([1, 0, 1])}
    assert_allclose(f.log_prob(values), [-np.log1p(np.exp(-0.5)), -np.log1p(np.exp(2.5)), -1999.5])
    assert f.log_prob({"x": np.zeros(1), "y": np.array([2])})[0] == -np.inf
    draws = f.sample({"x": np.full(20_000, 0.3)}, np.random.default_rng(0))["y"]
    assert_allclose(draws.mean(), 1 / (1 + np.exp(-1.1)), atol=0.01)


def test_binary_entropy_is_exact_in_both_tails():
    eta = np.array([-2.0, 0.0, 0.7])
    p = 1 / (1 + np.exp(-eta))
    assert_allclose(binary_entropy(eta), [entropy([a, 1 - a]) for a in p])
    assert_allclose(binary_entropy(np.array([40.0, -40.0])), 41 * np.exp(-40.0), rtol=1e-10)


def test_softmax_factor_takes_labels_and_serves_as_a_parent_through_indicators():
    rng = np.random.default_rng(0)
    f = SoftmaxFactor("y", ("a", "b", "c"), ("x",), np.array([0.0, 1.0, -1.0]), rng.normal(size=(3, 1)))
    x = np.array([0.2, -1.0])
    expected = softmax(f.intercept + x[:, None] @ f.coef.T, axis=1)
    got = f.log_prob({"x": x, "y": np.array(["c", "a"], object)})
    assert_allclose(np.exp(got), expected[[0, 1], [2, 0]])
    assert_allclose(f.conditional_entropy({"x": x}), entropy(expected, axis=1))
    draws = f.sample({"x": np.full(20_000, 0.2)}, rng)["y"]
    counts = [np.sum(draws == level) for level in "abc"]
    assert chisquare(counts, 20_000 * expected[0]).pvalue > 1e-3
    assert_allclose(design(["y=c"], {"y": draws})[:, 0], draws == "c")
    integers = SoftmaxFactor("y", (10, 20), (), np.zeros(2), np.zeros((2, 0)))
    assert integers.log_prob({"y": np.array([20, 1])}).tolist() == [-np.log(2), -np.inf]


def table():
    rng = np.random.default_rng(1)
    t = rng.dirichlet(np.ones(6), size=2).reshape(2, 2, 3)
    return TableFactor(("a", "b"), ("p",), {"p": ("n", "y"), "a": (0, 1), "b": (1.5, 2.5, 3.5)}, np.log(t)), t


def test_table_factor_looks_up_draws_and_marginalises():
    f, t = table()
    values = {"p": np.array(["y", "n"], object), "a": np.array([1, 0]), "b": np.array([2.5, 9.0])}
    assert_allclose(f.log_prob(values), [np.log(t[1, 1, 1]), -np.inf])
    draws = f.sample({"p": np.full(30_000, "n", object)}, np.random.default_rng(0))
    counts = [((draws["a"] == a) & (draws["b"] == b)).sum() for a in (0, 1) for b in (1.5, 2.5, 3.5)]
    assert chisquare(counts, 30_000 * t[0].ravel()).pvalue > 1e-3
    assert_allclose(np.exp(f.marginal(["b"]).log_table), t.sum(axis=1))
    assert_allclose(f.conditional_entropy({"p": values["p"]}), [entropy(t[1].ravel()), entropy(t[0].ravel())])
    with pytest.raises(CMaxEntError, match="p = 'q' is outside its support"):
        f.sample({"p": np.array(["q"], object)}, np.random.default_rng(0))


def test_draw_codes_never_returns_an_impossible_category():
    logs = np.log(np.array([[0.0, 0.5, 0.0, 0.5, 0.0]]) + 1e-320) + np.array([[-np.inf, 0, -np.inf, 0, -np.inf]])
    u = np.linspace(0, 1, 1001)[1:-1]
    assert set(draw_codes(np.repeat(logs, len(u), axis=0), u)) == {1, 3}


def test_point_mass():
    f = PointMass("x", 2.0)
    assert f.log_prob({"x": np.array([2.0, 3.0])}).tolist() == [0.0, -np.inf]
    assert f.sample({}, np.random.default_rng(0), 3)["x"].tolist() == [2.0] * 3
    assert f.conditional_entropy({}, 2).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: GaussianFactor(("x",), (), np.zeros(2), np.zeros((1, 0)), np.eye(1)), "intercept of the factor of x"),
        (lambda: GaussianFactor(("x",), (), np.zeros(1), np.zeros((1, 0)), -np.eye(1)), "not positive definite"),
        (lambda: LogisticFactor("y", ("x",), 0.0, np.array([np.nan])), "contains NaN"),
        (lambda: SoftmaxFactor("y", ("a", "b"), (), np.zeros(3), np.zeros((2, 0))), "expected"),
        (lambda: LogisticFactor("y", ("x",), 0.0, np.ones(1)).log_prob({"y": np.ones(1)}), "needs the value of x"),
    ],
)
def test_malformed_factor_is_refused_in_words(make, match):
    with pytest.raises(CMaxEntError, match=match):
        make()
