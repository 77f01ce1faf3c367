"""The numbers that were worked out by hand (2-D quadrature, explicit inverses) for small problems, to 1e-8."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from cmaxent import (
    MergedClassifier,
    MergedRegressor,
    Moments,
    compare_directions,
    feasible_interval,
    max_linear_r2,
    merge,
    solve_binary_scale,
)

FULL = Moments.from_arrays(
    [0.3, 1, -2], [[np.nan, 0.25, -0.1], [0.25, 2, 0.6], [-0.1, 0.6, 1]], names=["y", "x1", "x2"], kinds={"y": "binary"}
)


def fitted(graph, moments=FULL):
    return MergedClassifier(graph=graph).fit_moments(moments)


def assert_logit(model, intercept, coef):
    assert_allclose(model.intercept_, [intercept], atol=1e-8)
    assert_allclose(model.coef_[0], coef, atol=1e-8)


def test_binary_scale():
    assert_allclose(solve_binary_scale(0.3, 0.06859756097560976), (-1.3803449169271833, 1.9905874890213262), atol=1e-12)


@pytest.mark.parametrize(
    ("pi", "limit"),
    [(0.5, 0.63662), (0.4, 0.62192), (0.3, 0.57567), (0.2, 0.48987), (0.1, 0.34222), (0.05, 0.22394), (0.01, 0.07175)],
)
def test_largest_r2_of_a_binary_effect(pi, limit):
    assert max_linear_r2(pi) == pytest.approx(limit, abs=5e-6)


def test_full_information():
    assert_logit(fitted("causal"), -6.0609764995922, [1.436629495669, -1.622001043498])
    assert_logit(fitted("anticausal"), -5.664645239183, [1.336783096162, -1.509271237602])
    report = compare_directions(FULL, "y")
    assert report.angle < 1e-8
    assert_allclose(report.scale_ratio, 1.074691548535, atol=1e-8)
    assert_allclose([report.t_causal, report.t_anticausal], [0.6934359452, 0.7068841682], atol=1e-9)
    assert_allclose(report.disagreement, 0.0041987739, atol=1e-9)


def test_covariance_of_features_unknown():
    hidden = FULL.hide([("x1", "x2")])
    assert_logit(fitted("causal", hidden), -3.052058038810, [0.754425103499, -0.603540082799])
    anticausal = fitted("anticausal", hidden)
    assert_logit(anticausal, -2.760717773807, [0.699300699301, -0.5])
    assert anticausal.implied_moments_.cov[1, 2] == pytest.approx(-0.119047619048, abs=1e-11)
    assert_allclose(feasible_interval(hidden, "x1", "x2"), (-1.3923563769, 1.1542611387), atol=1e-9)


def test_one_feature_never_seen_with_the_target():
    hidden = FULL.hide([("y", "x2")])
    assert_logit(fitted("causal", hidden), -1.723979538457, [0.706034863093, 0])
    assert_logit(fitted("anticausal", hidden), -1.713098726188, [0.699300699301, 0])
    for graph in ("causal", "anticausal"):
        assert fitted(graph, hidden).coef_[0, 1] == 0.0
        assert fitted(graph, hidden).implied_moments_.cov[0, 2] == pytest.approx(0.075, abs=1e-12)


def test_missing_feature_at_prediction():
    row = [[2.5, np.nan]]
    assert fitted("causal").predict_proba(row)[0, 1] == pytest.approx(0.5079771601, abs=1e-9)
    assert fitted("anticausal").predict_proba(row)[0, 1] == pytest.approx(0.5087873506, abs=1e-9)


def test_three_features_one_pair_unknown():
    cov = [[0.24, 0.18, 0.1, -0.12], [0.18, 1, 0.5, np.nan], [0.1, 0.5, 1, -0.3], [-0.12, np.nan, -0.3, 1]]
    moments = Moments.from_arrays([0.4, 0, 0, 0], cov, names=["y", "x1", "x2", "x3"], kinds={"y": "binary"})
    causal, anticausal = fitted("causal", moments), fitted("anticausal", moments)
    assert_logit(causal, -0.494404277742, [0.8778224424, -0.0827364348, -0.5008707934])
    assert_logit(anticausal, -0.488307256440, [0.8354755784, -0.0524238052, -0.4473161034])
    assert causal.completed_cov_[0, 2] == pytest.approx(-0.15, abs=1e-12)
    assert anticausal.completed_cov_[0, 2] == pytest.approx(-0.200869565217, abs=1e-11)


def test_star_infers_what_the_block_ignores():
    cov = [[0.24, 0.18, np.nan], [0.18, 1, 0.3], [np.nan, 0.3, 1]]
    moments = Moments.from_arrays([0.4, 0, 0], cov, names=["y", "x1", "x2"], kinds={"y": "binary"})
    star, block = fitted("anticausal-star", moments), fitted("anticausal", moments)
    assert_allclose(star.coef_[0], [0.8670520231, 5.0], atol=1e-9)
    assert star.implied_moments_.cov[0, 2] == pytest.approx(0.4, abs=1e-12)
    assert block.implied_moments_.cov[0, 2] == pytest.approx(0.054, abs=1e-12)
    assert block.coef_[0, 1] == pytest.approx(0.0, abs=1e-15)


def test_continuous_target():
    full = Moments.from_arrays([0, 0, 0], [[2, 0.8, 0.5], [0.8, 1, 0.4], [0.5, 0.4, 1.5]], names=["y", "x1", "x2"])
    hidden = full.hide([("x1", "x2")])
    for graph in ("causal", "anticausal"):
        assert_allclose(MergedRegressor(graph=graph).fit_moments(full).coef_, [0.7462686567, 0.1343283582], atol=1e-9)
    assert_allclose(MergedRegressor(graph="causal").fit_moments(hidden).coef_, [0.8, 1 / 3], atol=1e-12)
    anticausal = MergedRegressor(graph="anticausal").fit_moments(hidden)
    assert_allclose(anticausal.coef_, [0.7534246575, 0.2328767123], atol=1e-9)
    assert anticausal.sigma_**2 == pytest.approx(1.2808219178, abs=1e-9)


def test_chain_through_the_target():
    v = 0.35 * 0.65
    moments = Moments.from_arrays(
        [0.35, 0, 0], [[v, 0.2, 0.3], [0.2, 1, 0.4], [0.3, 0.4, 2]], names=["y", "x1", "x2"], kinds={"y": "binary"}
    )
    model = fitted("x1->y; y->x2; x1->x2", moments)
    assert_logit(model, -0.89421178, [0.95366483, 0.74173972])
    assert model.multipliers_["E[y]"] == pytest.approx(-0.76366558, abs=1e-8)
    assert model.multipliers_["E[y x1]"] == pytest.approx(1.07629913, abs=1e-8)


def test_label_shift_between_sources():
    sources = [
        Moments.from_class_stats("y", [0, 1], [1 - pi, pi], [[0.0], [1.0]], [[1.0]], names=[name], n=1000)
        for name, pi in (("x1", 0.2), ("x2", 0.7))
    ]
    assert_allclose(fitted("anticausal", merge(sources, pooling="mechanism", target="y")).coef_[0], [1, 1], atol=1e-12)
    assert_allclose(fitted("anticausal", merge(sources)).coef_[0], [0.61185468, 0.82232012], atol=1e-8)


def test_marginal_effect():
    m = Moments.from_marginal_effects([0.25], var=[0.42], prevalence=0.3, target="y", names=["snp"])
    assert m.cov[0, 1] == pytest.approx(0.0219295260, abs=1e-10)
