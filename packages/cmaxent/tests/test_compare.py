"""Direction report, LOVO, intervals and completions against definitions."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from cmaxent import (
    Moments,
    check_feasible,
    compare_directions,
    complete_covariance,
    feasible_interval,
    lovo,
    prediction_band,
    sample_completions,
)


@pytest.fixture
def moments():
    rng = np.random.default_rng(0)
    A = rng.normal(size=(4, 6))
    sigma = A @ A.T / 6
    pi = 0.4
    c = sigma @ rng.normal(size=4)
    c *= np.sqrt(0.3 * pi * (1 - pi) / (c @ np.linalg.solve(sigma, c)))
    cov = np.block([[np.array([[pi * (1 - pi)]]), c[None]], [c[:, None], sigma]])
    return Moments.from_arrays(
        np.r_[pi, 0, 0, 0, 0], cov, names=["y", "a", "b", "c", "d"], kinds={"y": "binary"}, n=500
    )


def test_disagreement_is_the_mass_between_the_boundaries(moments):
    h = moments.hide([("a", "b"), ("c", "d")])
    r = compare_directions(h, "y")
    rng = np.random.default_rng(1)
    share = []
    for side in (r.causal, r.anticausal):
        X = rng.multivariate_normal(np.zeros(4), side.completed_cov_, 400_000)
        share.append(np.mean(r.causal.predict(X) != r.anticausal.predict(X)))
    assert r.disagreement == pytest.approx(np.mean(share), abs=2e-3)
    u, v = r.causal.coef_[0], r.anticausal.coef_[0]
    assert r.angle == pytest.approx(np.arccos(u @ v / np.linalg.norm(u) / np.linalg.norm(v)), abs=1e-7)


def test_lovo_predictions_are_the_completions(moments):
    table = lovo(moments, "y").table.set_index(["a", "b"])
    sd = np.sqrt(moments.cov.diagonal())
    hidden = moments.hide([("a", "c")]).cov
    joint = complete_covariance(hidden).cov[1, 3] / (sd[1] * sd[3])
    alone = complete_covariance(hidden[1:, 1:]).cov[0, 2] / (sd[1] * sd[3])
    assert_allclose(table.loc[("a", "c"), ["causal", "anticausal"]].astype(float), [alone, joint], atol=1e-10)
    groups = lovo(moments, "y", groups=[["a", "b"], ["c", "d"]])
    assert groups.error_causal == pytest.approx(1.0)


def test_feasible_interval_ends_where_the_matrix_becomes_singular(moments):
    for hidden in ([("a", "b")], [("a", "b"), ("c", "d")]):
        h = moments.hide(hidden)
        for end in feasible_interval(h, "a", "b"):
            cov = h.cov.copy()
            cov[1, 2] = cov[2, 1] = end
            filled = cov if len(hidden) == 1 else complete_covariance(cov * (1 + 1e-7 * np.eye(5))).cov
            scale = np.sqrt(np.outer(filled.diagonal(), filled.diagonal()))
            assert abs(np.linalg.eigvalsh(filled / scale)[0]) < 1e-4


def test_sampled_completions_are_positive_definite_and_uniform_in_one_dimension(moments):
    h = moments.hide([("a", "b")])
    draws = sample_completions(h, 400, random_state=0)
    assert min(np.linalg.eigvalsh(d)[0] for d in draws) > 0
    known = h.known
    assert all(np.allclose(d[known], h.cov[known]) for d in draws)
    lo, hi = feasible_interval(h, "a", "b")
    share = (draws[:, 1, 2] - lo) / (hi - lo)
    assert abs(share.mean() - 0.5) < 0.07
    assert share.std() == pytest.approx(1 / np.sqrt(12), abs=0.04)


def test_prediction_band_contains_the_maximum_entropy_point(moments):
    band = prediction_band(moments.hide([("a", "b")]), "y", np.zeros((1, 4)) + 0.5, n=50)
    assert band.lo[0] < band.point[0] < band.hi[0]
    assert band.feasible_share == 1.0


def test_feasibility_reports_never_raise_on_infeasible_moments():
    v = 0.25
    strong = Moments.from_arrays([0.5, 0], [[v, 0.49], [0.49, 1]], names=["y", "x"], kinds={"y": "binary"})
    causal, anticausal = (check_feasible(strong, "y", g) for g in ("causal", "anticausal"))
    assert not causal.feasible
    assert causal.margin < 0
    assert "x" in causal.conflicting
    assert anticausal.feasible
    r = compare_directions(strong, "y")
    assert r.causal is None
    assert "R^2" in r.reasons["causal"]
    assert r.anticausal is not None
    broken = Moments.from_arrays(
        [0.5, 0, 0], [[v, 0.45, -0.45], [0.45, 1, 0.9], [-0.45, 0.9, 1]], names=["y", "a", "b"], kinds={"y": "binary"}
    )
    assert not check_feasible(broken, "y", "anticausal").feasible
    no_variance = Moments.from_arrays([0.5, 0], [[v, 0.1], [0.1, np.nan]], names=["y", "x"], kinds={"y": "binary"})
    assert "variance" in check_feasible(no_variance, "y").reason
