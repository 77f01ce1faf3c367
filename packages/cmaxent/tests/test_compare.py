"""Direction report, LOVO, intervals and completions against definitions."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy.special import ndtr
from scipy.stats import norm

from cmaxent import (
    CMaxEntError,
    InfeasibleMomentsError,
    Moments,
    check_feasible,
    compare_directions,
    complete_covariance,
    feasible_interval,
    lovo,
    prediction_band,
    sample_completions,
)
from cmaxent.compare import _mass_between


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


def mass_by_conditioning(z1, z2, angle):
    """P(U > 0 > V) + P(U < 0 < V) for unit Gaussians with means z and correlation cos(angle), one integral each."""
    versine, sine = 2 * np.sin(angle / 2) ** 2, np.sin(angle)

    def opposite(z1, z2):
        def density(u):
            return norm.pdf(u - z1) * ndtr(-(z2 - z1 + u - versine * (u - z1)) / sine)

        kink = (z1 * np.cos(angle) - z2) / np.cos(angle)
        steps = np.array([-9, -6, -3, -1, 0, 1, 3, 6, 9])
        decay = np.array([1, 2, 4, 8, 16, 32])
        cuts = np.r_[kink + steps * sine, kink + decay / (1 + abs(z2)), z1 + steps, decay / (1 + abs(z1))]
        ends = np.r_[0, np.sort(cuts[cuts > 0]), max(cuts.max(), 0) + 40]
        node, weight = np.polynomial.legendre.leggauss(50)
        middle, half = (ends[1:] + ends[:-1]) / 2, (ends[1:] - ends[:-1]) / 2
        return float(half @ density(middle[:, None] + half[:, None] * node) @ weight)

    return opposite(z1, z2) + opposite(-z1, -z2)


@pytest.mark.parametrize("angle", [1e-9, 1e-6, 1e-3, 0.3, 1.5, 2.9, np.pi - 1e-3, np.pi - 1e-6])
@pytest.mark.parametrize("z", [(0.7, -0.4), (0.3, 0.3 + 1e-8), (1.2, -1.2), (0, 0), (6, 6.5), (-9, -9), (15, 14)])
def test_mass_between_lines_keeps_its_digits_at_any_angle(z, angle):
    found = _mass_between(-np.array(z[:1]), -np.array(z[1:]), np.sin(angle / 2), np.cos(angle / 2))
    assert_allclose(found, mass_by_conditioning(*z, angle), rtol=1e-9)


def test_mass_between_parallel_and_opposite_lines():
    d1, d2 = np.array([0.3, -1.0, 0.2, 8.0]), np.array([0.3, 0.5, 0.2 + 1e-9, 8.0 + 1e-7])
    parallel = _mass_between(d1, d2, 0.0, 1.0)
    expected = [0, ndtr(0.5) - ndtr(-1), 1e-9 * norm.pdf(0.2), 1e-7 * norm.pdf(8)]
    assert_allclose(parallel, expected, rtol=1e-6)
    assert_allclose(_mass_between(d1, -d2, 1.0, 0.0), 1 - parallel, atol=1e-14)


def test_nearly_parallel_boundaries():
    m = Moments.from_arrays(
        [0.3, 0, 0], [[0.21, 0.2, 0.20002], [0.2, 1, np.nan], [0.20002, np.nan, 1]],
        names=["y", "x1", "x2"], kinds={"y": "binary"},
    )  # fmt: skip
    r = compare_directions(m, "y")
    masses = []
    for side in (r.causal, r.anticausal):
        B = np.vstack([r.causal.coef_, r.anticausal.coef_])
        cov = B @ side.completed_cov_ @ B.T
        sd = np.sqrt(cov.diagonal())
        angle = np.arcsin(np.sqrt(np.linalg.det(cov)) / sd.prod())
        masses.append(mass_by_conditioning(*np.r_[r.causal.intercept_, r.anticausal.intercept_] / sd, angle))
    assert 0 < r.angle < 1e-4
    assert r.disagreement == pytest.approx(np.mean(masses), rel=1e-6)


def binary_moments(pi, c):
    cov = [[pi * (1 - pi), *c], [c[0], 0.25, np.nan], [c[1], np.nan, 0.25]]
    return Moments.from_arrays([pi, 0.5, 0.5], cov, names=["y", "a", "b"], kinds=["binary"] * 3)


@pytest.mark.parametrize(
    ("pi", "c", "differs"), [(0.3, (0.08, 0.1), False), (0.45, (0.06, 0.09), True), (0.2, (0.04, 0.09), True)]
)
def test_disagreement_of_binary_features_is_a_sum_over_cells(pi, c, differs):
    r = compare_directions(binary_moments(pi, c), "y")
    cells = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    differ = r.causal.predict(cells) != r.anticausal.predict(cells)
    (law,) = r.anticausal._direction.model.laws
    by_class = {tuple(state): np.array([1 - pi, pi]) @ np.exp(law.log_p[:, s]) for s, state in enumerate(law.states)}
    anticausal = sum(by_class[tuple(cell)] for cell in cells[differ])
    assert r.disagreement == pytest.approx(
        (differ.mean() + anticausal) / 2, abs=1e-12
    )  # causally a and b are fair coins
    if c == (0.08, 0.1):
        assert r.disagreement == 0.0


def test_scores_that_vanish_up_to_rounding_are_ties():
    assert compare_directions(binary_moments(0.5, (0.1, 0.1)), "y").disagreement == 0.0


def mixed_table(n=4000):
    rng = np.random.default_rng(3)
    g = rng.choice(["p", "q", "r"], n, p=[0.5, 0.3, 0.2])
    x = rng.normal(size=n) + (g == "q")
    w = rng.normal(size=n) + 0.5 * x
    y = (x - w + 2.0 * (g == "r") + rng.logistic(size=n) > 1.5).astype(int)
    return pd.DataFrame({"y": y, "g": g, "x": x, "w": w})


def test_disagreement_of_mixed_features_is_that_of_draws_from_the_fitted_laws():
    m = Moments.from_data(mixed_table()).hide([("g", "x"), ("x", "w"), ("g", "w")])
    r = compare_directions(m, "y")
    share, rng = [], np.random.default_rng(0)
    for side in (r.causal, r.anticausal):
        X, _ = side._direction.model.sample(400_000, rng)
        log_p = [s._direction.model.log_proba(X) for s in (r.causal, r.anticausal)]
        share.append(np.mean(log_p[0].argmax(axis=1) != log_p[1].argmax(axis=1)))
    assert r.disagreement > 0.01
    assert r.disagreement == pytest.approx(np.mean(share), abs=1.5e-3)
    logit, cov = r.causal.coef_[0], r.causal.completed_cov_
    at_mean = r.causal.intercept_[0] + logit @ m.mean[1:]
    assert r.t_causal == pytest.approx(-at_mean / np.sqrt(logit @ cov @ logit))


def test_lovo_predictions_are_the_completions(moments):
    table = lovo(moments, "y").table.set_index(["a", "b"])
    sd = np.sqrt(moments.cov.diagonal())
    hidden = moments.hide([("a", "c")]).cov
    joint = complete_covariance(hidden).cov[1, 3] / (sd[1] * sd[3])
    alone = complete_covariance(hidden[1:, 1:]).cov[0, 2] / (sd[1] * sd[3])
    assert_allclose(table.loc[("a", "c"), ["causal", "anticausal"]].astype(float), [alone, joint], atol=1e-10)
    groups = lovo(moments, "y", groups=[["a", "b"], ["c", "d"]])
    assert groups.error_causal == pytest.approx(1.0)


def test_score_and_errors_of_continuous_pairs_are_their_formulas(moments):
    result = lovo(moments, "y")
    sd = np.sqrt(moments.cov.diagonal())
    R = moments.cov / np.outer(sd, sd)
    pairs = [(i, j) for i in range(1, 5) for j in range(i + 1, 5)]
    score = sum(R[i, j] ** 2 - (R[i, j] - R[0, i] * R[0, j]) ** 2 for i, j in pairs)
    assert result.score == pytest.approx(score, rel=1e-12)
    for side in ("causal", "anticausal"):
        gaps = result.table[side] - result.table["observed"]
        assert getattr(result, f"error_{side}") == pytest.approx(np.sqrt(np.mean(gaps**2)))


def test_lovo_hides_categorical_features_as_a_whole():
    m = Moments.from_data(mixed_table())
    result = lovo(m, "y")
    table = result.table.set_index(["a", "b"])
    levels = ["g=p", "g=q", "g=r"]
    assert list(table.index) == [(g, v) for v in ("x", "w") for g in levels] + [("x", "w")]
    # The completion of two blocks that meet in a separator: S_gR S_RR^-1 S_Rx, with R = w, or (y, w).
    at = {name: i for i, name in enumerate(m.names)}
    sd = np.sqrt(m.cov.diagonal())
    R = m.cov / np.outer(sd, sd)
    mean_squares, scores = {"causal": [], "anticausal": []}, []
    for A, b, rest in ((levels, "x", ["w"]), (levels, "w", ["x"]), (["x"], "w", ["g=p", "g=q"])):
        A, j = [at[name] for name in A], at[b]
        for side, via in (("causal", rest), ("anticausal", ["y", *rest])):
            Z = [at[name] for name in via]
            predicted = R[np.ix_(A, Z)] @ np.linalg.solve(R[np.ix_(Z, Z)], R[Z, j])
            found = table.loc[[(m.names[i], b) for i in A], side]
            assert_allclose(found, predicted, atol=1e-10)
            mean_squares[side].append(np.mean((predicted - R[A, j]) ** 2))
        scores.append(np.mean(R[A, j] ** 2 - (R[A, j] - R[A, at["y"]] * R[j, at["y"]]) ** 2))
    assert result.error_causal == pytest.approx(np.sqrt(np.mean(mean_squares["causal"])))
    assert result.error_anticausal == pytest.approx(np.sqrt(np.mean(mean_squares["anticausal"])))
    assert result.score == pytest.approx(np.sum(scores))


def test_lovo_takes_names_of_categorical_features():
    m = Moments.from_data(mixed_table())
    chosen = lovo(m, "y", pairs=[("g", "x")])
    assert list(chosen.table["a"]) == ["g=p", "g=q", "g=r"]
    groups = lovo(m, "y", groups=[["g"], ["x"]])
    size = np.linalg.norm(chosen.table["observed"])
    for side in ("causal", "anticausal"):
        gap = np.linalg.norm(chosen.table[side] - chosen.table["observed"])
        assert groups.table[side][0] == pytest.approx(gap / size)
    # With other pairs unknown, the completion is that of the whole matrix.
    hidden = m.hide([("x", "w")])
    found = lovo(hidden, "y", pairs=[("x", "g")]).table["anticausal"]
    cov = np.delete(np.delete(hidden.hide([("g", "x")]).cov, 3, 0), 3, 1)
    filled = complete_covariance(cov).cov[[1, 2], 3]
    sd = np.sqrt(m.cov.diagonal())
    assert_allclose(found, np.r_[filled, -filled.sum()] / (sd[1:4] * sd[4]), atol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pairs": [("g", "g")]}, "two different features"),
        ({"pairs": [("g=p", "x")]}, "one level"),
        ({"pairs": [("y", "x")]}, "'y' is not one of"),
        ({"pairs": ["gx"]}, "pairs of names"),
        ({"pairs": "every"}, "'all' or a list"),
        ({"pairs": [("x", "w")]}, "unknown already"),
        ({"groups": [["g"]]}, "at least two groups"),
        ({"groups": [["g"], "x"]}, "list of features"),
        ({"groups": [["g", "x"], ["x"]]}, "must not overlap"),
        ({"groups": [["x"], ["w"]]}, "unknown already"),
    ],
)
def test_lovo_refuses_in_one_line(arguments, message):
    m = Moments.from_data(mixed_table(200)).hide([("x", "w")])
    with pytest.raises(CMaxEntError, match=message) as caught:
        lovo(m, "y", **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arguments", [{}, {"groups": [["x1"], ["x2"]]}])
def test_lovo_names_the_variables_of_singular_and_impossible_covariances(arguments):
    names, kinds = ["y", "x1", "x2", "x3"], {"y": "binary"}
    twice = [[0.21, 0.1, 0.2, 0], [0.1, 1, 2, 0], [0.2, 2, 4, 0], [0, 0, 0, 1]]
    with pytest.raises(InfeasibleMomentsError, match=r"x1, x2.*singular"):
        lovo(Moments.from_arrays([0.3, 0, 0, 0], twice, names=names, kinds=kinds), "y", **arguments)
    impossible = [[0.21, 0, 0, 0], [0, 1, 0.9, 0.9], [0, 0.9, 1, -0.9], [0, 0.9, -0.9, 1]]
    with pytest.raises(InfeasibleMomentsError, match=r"x1, x2, x3.*not positive definite"):
        lovo(Moments.from_arrays([0.3, 0, 0, 0], impossible, names=names, kinds=kinds), "y", **arguments)


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


@pytest.mark.parametrize("level", [2, 0, -0.5, float("nan")])
def test_prediction_band_refuses_impossible_levels(moments, level):
    with pytest.raises(CMaxEntError, match="level has to be above 0 and at most 1"):
        prediction_band(moments.hide([("a", "b")]), "y", np.zeros((1, 4)), n=3, level=level)


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
