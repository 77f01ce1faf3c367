"""Bridges and residual skewness, against population formulas and synthetic truth."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy.special import expit
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures

from cmaxent import CMaxEntError
from cmaxent.datasets import three_causes
from cmaxent.oov import ResidualSkewRegressor, bridge_report, log_loss


def bridge_tables(n, seed=0):
    """Y → A → B: everything that B knows about Y has gone through A, so that a bridge loses nothing."""
    rng = np.random.default_rng(seed)

    def rows(m):
        y = (rng.random(m) < 0.4).astype(int)
        a = np.column_stack([1.5 * y, -1.0 * y]) + rng.standard_normal((m, 2))
        b = a @ np.array([[0.9, 0.2], [0.1, 0.8]]) + 0.5 * rng.standard_normal((m, 2))
        return pd.DataFrame(np.column_stack([a, b, y]), columns=["a1", "a2", "b1", "b2", "y"]).astype({"y": int})

    return rows(n), rows(n), rows(n)


def test_bridge_reaches_the_oracle_where_a_separates_y_from_b():
    labelled, unlabelled, test = bridge_tables(40_000)
    report = bridge_report(labelled[["a1", "a2", "y"]], unlabelled.drop(columns="y"), test, oracle=unlabelled)
    assert report.oracle < report.anticausal < report.prior
    assert report.share("anticausal") > 0.98
    assert report.share("causal") > 0.98
    assert report.causal_feasible
    assert report.n_test == 40_000


def test_bridge_is_lda_with_the_transmitted_covariance():
    labelled, unlabelled, test = bridge_tables(3000, seed=1)
    report = bridge_report(labelled[["a1", "a2", "y"]], unlabelled.drop(columns="y"), test)
    # by hand, pooling as `merge` does: (A, A) from both tables, (Y, A) and (A, B) from one each
    a, b = ["a1", "a2"], ["b1", "b2"]
    both = pd.concat([labelled[a], unlabelled[a]])
    aa = np.cov(both.T, ddof=0)
    ab = np.cov(unlabelled[a + b].T, ddof=0)
    c_a = np.cov(labelled[[*a, "y"]].T, ddof=0)[:2, 2]
    c_b = ab[2:, :2] @ np.linalg.solve(aa, c_a)
    pi = labelled["y"].mean()
    v = pi * (1 - pi)
    mu = unlabelled[b].mean().to_numpy()
    w = np.linalg.solve(ab[2:, 2:] - np.outer(c_b, c_b) / v, c_b / v)
    delta = c_b / v
    bias = np.log(pi / (1 - pi)) - w @ (mu + (0.5 - pi) * delta)
    assert_allclose(report.anticausal, log_loss(test["y"], expit(test[b].to_numpy() @ w + bias)), atol=1e-6)
    assert np.isnan(report.oracle)
    assert np.isnan(report.share())


@pytest.mark.parametrize(
    ("labelled", "unlabelled", "match"),
    [
        (["a1", "y"], ["b1", "b2"], "a bridge needs columns in both tables"),
        (["a1", "a2", "y"], ["a1", "a2"], "a bridge needs columns in both tables"),
        (["a1", "a2"], ["a1", "b1"], "the labelled table has to have the target 'y'"),
        (["a1", "y"], ["a1", "b1", "y"], "the unlabelled one must not"),
    ],
)
def test_tables_that_make_no_bridge_are_refused(labelled, unlabelled, match):
    table, _, _ = bridge_tables(50)
    with pytest.raises(CMaxEntError, match=match):
        bridge_report(table[labelled], table[unlabelled], table)


def test_test_table_without_b_is_refused():
    table, _, _ = bridge_tables(50)
    with pytest.raises(CMaxEntError, match="the test table lacks b2"):
        bridge_report(table[["a1", "y"]], table[["a1", "b1", "b2"]], table.drop(columns="b2"))


def test_log_loss_keeps_certain_mistakes_finite():
    assert_allclose(log_loss([1, 0], [0.5, 0.5]), np.log(2))
    assert np.isfinite(log_loss([1], [0.0]))


# --- residual skewness ------------------------------------------------------------------------------------


def fitted(data, **kwargs):
    return ResidualSkewRegressor(**kwargs).fit(data.source[["x1", "x2"]], data.source["y"], data.target[["x2", "x3"]])


def test_derivative_is_recovered_on_linear_mechanisms():
    errors = []
    for seed in range(30):
        data = three_causes(np.random.default_rng(seed), level=0)
        model = fitted(data)
        errors.append(abs(model.derivative_ - data.derivative) / max(abs(data.derivative), 0.2))
        assert model.shared_ == ["x2"]
        assert model.source_only_ == ["x1"]
        assert model.new_ == "x3"
    assert np.median(errors) < 0.06


def test_predictions_are_close_to_an_oracle_that_sees_y():
    ratios = []
    for seed in range(30):
        data = three_causes(np.random.default_rng(seed), level=0)
        target = data.target
        oracle = LinearRegression().fit(target[["x2", "x3"]], target["y"]).predict(target[["x2", "x3"]])
        mse = [np.mean((target["y"] - p) ** 2) for p in (fitted(data).predict(target), oracle)]
        ratios.append(mse[0] / mse[1])
    assert np.median(ratios) < 1.1


def test_error_shrinks_like_the_standard_error():
    z = []
    for seed in range(40):
        data = three_causes(np.random.default_rng(seed), n=20_000, level=0)
        model = fitted(data)
        z.append((model.derivative_ - data.derivative) / model.derivative_se_)
    assert 0.4 < np.median(np.abs(z)) < 1.2  # .67 for a normal error


def test_varying_derivative_beats_the_constant_one_under_interactions():
    quadratic = make_pipeline(PolynomialFeatures(2), LinearRegression())
    gain = []
    for seed in range(15):
        data = three_causes(np.random.default_rng(seed), level=1)
        mse = []
        for kwargs in ({"regressor": quadratic}, {"regressor": quadratic, "derivative": quadratic}):
            mse.append(np.mean((data.target["y"] - fitted(data, **kwargs).predict(data.target)) ** 2))
        gain.append(mse[1] / mse[0])
    assert np.median(gain) < 1.0


def test_bad_tables_are_refused():
    data = three_causes(np.random.default_rng(0), n=500)
    X, y, target = data.source[["x1", "x2"]], data.source["y"], data.target
    with pytest.raises(CMaxEntError, match="exactly one column that the source lacks"):
        ResidualSkewRegressor().fit(X, y, target[["x1", "x2"]])
    with pytest.raises(CMaxEntError, match="exactly one column that the source lacks"):
        ResidualSkewRegressor().fit(X, y, target[["x3"]])
    symmetric = pd.DataFrame({"x2": [0.0, 1.0, 2.0, 3.0], "x3": [-1.0, 1.0, -2.0, 2.0]})
    with pytest.raises(CMaxEntError, match="x3 has no skewness"):
        ResidualSkewRegressor().fit(X, y, symmetric)
    with pytest.raises(CMaxEntError, match="derivative='linear' is not"):
        ResidualSkewRegressor(derivative="linear").fit(X, y, target[["x2", "x3"]])
    with pytest.raises(CMaxEntError, match="the table lacks x3"):
        fitted(data).predict(target[["x2"]])
