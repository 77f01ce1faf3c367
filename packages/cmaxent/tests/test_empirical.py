"""p(x) from reference rows: logistic regression where it exists, a certificate where it does not."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy.optimize import linprog, minimize
from sklearn.linear_model import LogisticRegression

from cmaxent import CMaxEntError, InfeasibleMomentsError, InfeasibleMomentsWarning, MergedClassifier, Moments

ROWS = np.array([[0.0], [1.0], [2.0], [3.0]])


def steep(cov):
    """Moments that no p(y|x) on ROWS has from cov = .45 on or so."""
    return Moments.from_arrays([0.4, 1.5], [[0.24, cov], [cov, 6.25]], names=["y", "x"], kinds={"y": "binary"})


def strictly_feasible(X, y):
    """Whether some p(y=1|x) strictly between 0 and 1 has the rows' own moments: the largest margin t by HiGHS."""
    n = len(X)
    D = np.column_stack([np.ones(n), X])
    margin = np.vstack([np.c_[-np.eye(n), np.ones(n)], np.c_[np.eye(n), np.ones(n)]])
    found = linprog(
        np.r_[np.zeros(n), -1.0], A_ub=margin, b_ub=np.r_[np.zeros(n), np.ones(n)],
        A_eq=np.c_[D.T, np.zeros(D.shape[1])], b_eq=D.T @ y, bounds=[(0, 1)] * n + [(0, None)], method="highs",
    )  # fmt: skip
    return found.success and found.x[-1] > 1e-7


def problems(count):
    rng = np.random.default_rng(5)
    while count:
        d, n = int(rng.integers(1, 4)), int(rng.choice([6, 12, 40]))
        X = rng.integers(0, 2, (n, d)).astype(float) if rng.random() < 0.6 else rng.standard_normal((n, d))
        y = (X @ rng.standard_normal(d) * rng.choice([0.5, 2, 8]) + rng.logistic(size=n) > 0) * 1.0
        if X.std(axis=0).min() > 0 and y.std() > 0:
            count -= 1
            yield X, y


def test_feasibility_is_that_of_the_linear_programme():
    verdicts = []
    for X, y in problems(80):
        try:
            MergedClassifier(p_x="empirical").fit(X, y)
            verdicts.append(True)
        except InfeasibleMomentsError:
            verdicts.append(False)
        assert verdicts[-1] == strictly_feasible(X, y)
    assert 20 < sum(verdicts) < 60


def test_quasi_complete_separation_is_infeasible_although_the_likelihood_has_a_finite_limit():
    rng = np.random.default_rng(0)
    x = np.repeat([0.0, 1.0], 50)
    y = np.where(x == 1, 1, rng.random(100) < 0.4)
    with pytest.raises(InfeasibleMomentsError, match="separable"):
        MergedClassifier(p_x="empirical").fit(np.column_stack([x, rng.standard_normal(100)]), y)


@pytest.mark.parametrize("cov", [0.5, 0.8, 1.0, 1.2])
def test_ridge_is_the_minimum_that_another_optimiser_finds(cov):
    with pytest.warns(InfeasibleMomentsWarning):
        model = MergedClassifier(p_x="empirical", on_infeasible="ridge").fit_moments(steep(cov), X_ref=ROWS)
    z = (ROWS[:, 0] - 1.5) / ROWS.std()

    def dual(theta):
        return (
            np.logaddexp(0, theta[0] + theta[1] * z).mean()
            - 0.4 * theta[0]
            - cov / ROWS.std() * theta[1]
            + 5e-4 * theta[1] ** 2
        )

    found = minimize(
        dual,
        [0.0, 0.0],
        method="Nelder-Mead",
        options={"xatol": 1e-9, "fatol": 1e-14, "maxiter": 10_000, "maxfev": 10_000},
    )
    ours = np.array([model.intercept_[0] + 1.5 * model.coef_[0, 0], model.coef_[0, 0] * ROWS.std()])
    assert dual(ours) <= found.fun + 1e-9


@pytest.mark.parametrize("cov", [0.5, 1.0])
def test_boundary_mode_lands_98_percent_of_the_way_to_the_largest_covariance(cov):
    with pytest.warns(InfeasibleMomentsWarning):
        model = MergedClassifier(p_x="empirical", on_infeasible="boundary").fit_moments(steep(cov), X_ref=ROWS)
    p = model.predict_proba(ROWS)[:, 1]
    # At most .4 of probability 1 on four rows of weight 1/4: all of it on the largest x.
    largest = (0.25 * 3 + 0.15 * 2) - 0.4 * 1.5
    assert_allclose((p * ROWS[:, 0]).mean() - 0.4 * 1.5, np.sqrt(0.98) * largest, rtol=1e-6)
    assert p.mean() == pytest.approx(0.4, abs=1e-9)


def test_every_mode_ends_in_a_model_or_the_infeasible_verdict():
    rng = np.random.default_rng(7)
    for _ in range(40):
        X, y = rng.standard_normal((12, 2)), rng.integers(0, 3, 12)
        y[:3] = [0, 1, 2]
        for mode in ("ridge", "boundary"):
            p = MergedClassifier(p_x="empirical", on_infeasible=mode).fit(X, y).predict_proba(X)
            assert np.isfinite(p).all()


def test_standard_errors_with_a_categorical_feature_are_those_of_dummy_coding():
    rng = np.random.default_rng(0)
    n = 600
    g, x = rng.choice(list("uvw"), n), rng.standard_normal(n)
    y = (x + (g == "u") + rng.logistic(size=n) > 0.4) * 1
    frame = pd.DataFrame({"g": g, "x": x})
    table = MergedClassifier(p_x="empirical").fit(frame, y).summary()
    D = np.column_stack([np.ones(n), g == "u", g == "v", x]).astype(float)
    peer = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(D[:, 1:], y)
    p = peer.predict_proba(D[:, 1:])[:, 1]
    bread = np.linalg.inv((D.T * (p * (1 - p))) @ D)
    meat = (D.T * (y - p) ** 2) @ D
    se = np.sqrt(np.diag(bread @ meat @ bread))
    assert_allclose(table.loc[["intercept", "g=u", "g=v", "x"], "se"], se, rtol=1e-4)
    assert table.loc["g=w", "coef"] == 0.0
    assert table.loc["g=w", "se"] == 0.0


def test_a_collinear_column_gets_no_weight_and_has_to_agree():
    rng = np.random.default_rng(1)
    X = rng.standard_normal((200, 2))
    y = (X[:, 0] + rng.logistic(size=200) > 0) * 1
    plain = MergedClassifier(p_x="empirical").fit(X, y)
    twice = MergedClassifier(p_x="empirical").fit(np.column_stack([X, 2 * X[:, 0] - 1]), y)
    assert_allclose(twice.coef_[0], [*plain.coef_[0], 0.0], atol=1e-8)
    wrong = Moments.from_arrays(
        [0.5, 0, 0], [[0.25, 0.1, 0.3], [0.1, 1, 0.9], [0.3, 0.9, 1]], names=["y", "a", "b"], kinds={"y": "binary"}
    )
    rows = np.repeat(rng.standard_normal((100, 1)), 2, axis=1)
    with pytest.raises(InfeasibleMomentsError, match="contradict a linear dependence of its columns b, a"):
        MergedClassifier(p_x="empirical").fit_moments(wrong, X_ref=rows)


def test_unlinked_target_warns():
    m = Moments.from_arrays([0.4, 0], [[0.24, np.nan], [np.nan, 1]], names=["y", "x"], kinds={"y": "binary"})
    with pytest.warns(UserWarning, match="no source links y"):
        model = MergedClassifier(p_x="empirical").fit_moments(m, X_ref=np.array([[0.0], [1.0]]))
    assert_allclose(model.predict_proba([[3.0]]), [[0.6, 0.4]])


def test_slack_has_to_be_a_number():
    with pytest.raises(CMaxEntError, match="slack has to be a non-negative number"):
        MergedClassifier(slack=None).fit([[0.0], [1.0], [2.0]], [0, 1, 0])
