"""T1-T9 as properties of random problems, each against an independent computation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.optimize import minimize
from scipy.special import expit, log_expit, ndtri
from sklearn.datasets import load_iris, load_wine
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LinearRegression, LogisticRegression

from cmaxent import (
    InfeasibleMomentsError,
    MergedClassifier,
    MergedRegressor,
    Moments,
    compare_directions,
    complete_covariance,
    max_linear_r2,
    solve_binary_scale,
)
from cmaxent.closedform import max_linear_q, mean_logistic, solve_softmax_scale

problems = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


def random_moments(seed, d=None, r2_share=None):
    """Random feasible binary moments: any covariance, R^2 a random share of the causal limit."""
    rng = np.random.default_rng(seed)
    d = d or int(rng.integers(2, 7))
    A = rng.normal(size=(d, d + 2))
    sigma = A @ A.T / d * np.outer(s := np.exp(rng.normal(size=d)), s)
    pi = float(rng.uniform(0.05, 0.95))
    u = rng.normal(size=d)
    share = rng.uniform(0.02, 0.9) if r2_share is None else r2_share
    c = sigma @ u * np.sqrt(share * max_linear_q(pi) / (u @ sigma @ u))
    cov = np.block([[np.array([[pi * (1 - pi)]]), c[None]], [c[:, None], sigma]])
    names = ["y", *(f"x{i}" for i in range(d))]
    return Moments.from_arrays(np.r_[pi, rng.normal(size=d)], cov, names=names, kinds={"y": "binary"}, n=1000)


def fit(graph, m, **kw):
    return MergedClassifier(graph=graph, **kw).fit_moments(m)


@problems
@given(seeds)
def test_causal_solution_minimises_the_two_dimensional_dual_by_brute_force(seed):
    m = random_moments(seed, d=2, r2_share=0.4)
    pi, mu, sigma, c = m.mean[0], m.mean[1:], m.cov[1:, 1:], m.cov[0, 1:]
    z = np.linspace(-9, 9, 241)
    w = np.exp(-z * z / 2)
    Z = np.stack(np.meshgrid(z, z), -1).reshape(-1, 2)
    W = np.outer(w, w).ravel() / w.sum() ** 2
    X = mu + Z @ np.linalg.cholesky(sigma).T
    moment = c + pi * mu

    def dual(theta):
        eta = theta[0] + X @ theta[1:]
        p = expit(eta)
        return -W @ log_expit(-eta) - theta[0] * pi - theta[1:] @ moment, np.r_[W @ p - pi, (W * p) @ X - moment]

    start = np.r_[np.log(pi / (1 - pi)), np.zeros(2)]
    brute = minimize(dual, start, jac=True, method="BFGS", options={"gtol": 1e-10}).x
    model = fit("causal", m)
    assert_allclose(np.r_[model.intercept_, model.coef_[0]], brute, rtol=2e-4, atol=2e-5)
    _, gradient = dual(np.r_[model.intercept_, model.coef_[0]])
    assert np.abs(gradient).max() < 1e-9


@problems
@given(seeds)
def test_full_information_directions_are_parallel_and_ordered(seed):
    m = random_moments(seed)
    r = compare_directions(m, "y")
    assert r.angle < 1e-8
    assert r.scale_ratio >= 1 - 1e-12
    assert abs(r.t_causal) <= abs(r.t_anticausal) + 1e-12
    assert r.anticausal.entropy_ >= r.causal.entropy_ - 1e-12
    rows = np.random.default_rng(seed).normal(size=(50, m.p - 1)) * 3
    assert (np.argsort(r.causal.decision_function(rows)) == np.argsort(r.anticausal.decision_function(rows))).all()


def test_boundaries_coincide_only_at_balanced_classes():
    for pi in (0.2, 0.5, 0.8):
        v, q = pi * (1 - pi), 0.5 * max_linear_q(pi)
        m = Moments.from_arrays([pi, 0], [[v, np.sqrt(q)], [np.sqrt(q), 1]], names=["y", "x"], kinds={"y": "binary"})
        r = compare_directions(m, "y")
        assert (abs(r.t_causal - r.t_anticausal) < 1e-10) == (pi == 0.5)


@pytest.mark.parametrize("pi", [0.01, 0.3, 0.5, 0.97])
def test_feasibility_ends_exactly_at_the_biserial_limit(pi):
    q_max = max_linear_q(pi)
    for share in (1 - 1e-4, 1 - 1e-8, 1 - 1e-11):
        m, tau = solve_binary_scale(pi, share * q_max)
        assert mean_logistic(m, tau) == pytest.approx(pi, abs=1e-12)
    assert -m / tau == pytest.approx(ndtri(1 - pi), abs=1e-4)
    for q in (q_max, 1.5 * q_max):
        with pytest.raises(InfeasibleMomentsError, match="R\\^2"):
            solve_binary_scale(pi, q)
    m, tau = solve_binary_scale(pi, 1e-14)
    assert tau / 1e-7 == pytest.approx(1 / (pi * (1 - pi)), rel=1e-4)
    assert max_linear_r2(pi) == pytest.approx(max_linear_r2(1 - pi))


@problems
@given(seeds)
def test_hidden_pairs_are_zeros_of_the_natural_parameter(seed):
    rng = np.random.default_rng(seed)
    m = random_moments(seed, d=5, r2_share=0.3)
    names = m.names[1:]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if rng.random() < 0.4] or [("x0", "x1")]
    h = m.hide(pairs)
    causal = fit("causal", h, on_infeasible="ridge")
    K = np.linalg.inv(causal.completed_cov_)
    joint = np.linalg.inv(fit("anticausal", h).implied_moments_.cov)
    for a, b in pairs:
        i, j = names.index(a), names.index(b)
        assert abs(K[i, j]) < 1e-7 * np.sqrt(K[i, i] * K[j, j])
        assert abs(joint[i + 1, j + 1]) < 1e-7 * np.sqrt(joint[i + 1, i + 1] * joint[j + 1, j + 1])
    assert fit("anticausal", h).residual_ <= 1e-9 * np.abs(m.cov).max()


@problems
@given(seeds)
def test_two_features_with_unknown_covariance(seed):
    m = random_moments(seed, d=2, r2_share=0.5).hide([("x0", "x1")])
    v, c, s = m.cov[0, 0], m.cov[0, 1:], m.cov[1:, 1:].diagonal()
    model = fit("anticausal", m)
    assert_allclose(model.coef_[0], c / (v * s - c**2), rtol=1e-10)
    assert model.implied_moments_.cov[1, 2] == pytest.approx(c[0] * c[1] / v, rel=1e-10)
    # product of experts divided by the prior, exactly
    rows = np.random.default_rng(seed).normal(size=(20, 2))
    prior = np.log(m.mean[0] / (1 - m.mean[0]))
    experts = sum(
        fit("anticausal", m.subset(["y", n])).decision_function(rows[:, [i]]) for i, n in enumerate(("x0", "x1"))
    )
    assert_allclose(model.decision_function(rows), experts - prior, rtol=1e-9, atol=1e-9)
    # the anticausal answer is the middle of what positive definiteness allows
    from cmaxent import feasible_interval

    lo, hi = feasible_interval(m, "x0", "x1")
    assert (lo + hi) / 2 == pytest.approx(c[0] * c[1] / v, rel=1e-9)
    if c @ (c / s) < 0.95 * max_linear_q(m.mean[0]):
        causal = fit("causal", m)
        assert_allclose(causal.coef_[0, 0] / causal.coef_[0, 1], (c[0] / s[0]) / (c[1] / s[1]), rtol=1e-9)


@problems
@given(seeds)
def test_affine_maps_relabelling_and_permutation_change_nothing_else(seed):
    rng = np.random.default_rng(seed)
    m = random_moments(seed, d=3)
    A, b = rng.normal(size=(3, 3)) + 3 * np.eye(3), rng.normal(size=3)
    T = np.block([[np.eye(1), np.zeros((1, 3))], [np.zeros((3, 1)), A]])
    moved = Moments.from_arrays(np.r_[m.mean[0], A @ m.mean[1:] + b], T @ m.cov @ T.T, names=m.names, kinds=m.kinds)
    flip = np.diag([-1.0, 1, 1, 1])
    flipped = Moments.from_arrays(np.r_[1 - m.mean[0], m.mean[1:]], flip @ m.cov @ flip, names=m.names, kinds=m.kinds)
    permuted = m.subset(["x2", "y", "x0", "x1"])
    x = rng.normal(size=(10, 3))
    for graph in ("causal", "anticausal"):
        f = fit(graph, m).decision_function(x)
        assert_allclose(fit(graph, moved).decision_function(x @ A.T + b), f, rtol=1e-7, atol=1e-7)
        assert_allclose(fit(graph, flipped).decision_function(x), -f, rtol=1e-8, atol=1e-8)
        assert_allclose(fit(graph, permuted).decision_function(x[:, [2, 0, 1]]), f, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("load", [load_iris, load_wine])
@pytest.mark.parametrize("shrinkage", [None, 0.2])
def test_anticausal_with_full_data_is_linear_discriminant_analysis(load, shrinkage):
    X, y = load(return_X_y=True)
    ours = MergedClassifier(graph="anticausal", shrinkage=shrinkage).fit(X, y)
    peer = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(X, y)
    assert_allclose(ours.predict_proba(X), peer.predict_proba(X), atol=1e-8)
    two = y < 2
    ours, peer = ours.fit(X[two], y[two]), peer.fit(X[two], y[two])
    assert_allclose(ours.coef_, peer.coef_, rtol=1e-7)
    assert_allclose(ours.intercept_, peer.intercept_, rtol=1e-7)


def test_causal_with_reference_rows_is_logistic_regression():
    rng = np.random.default_rng(0)
    X = rng.gamma(2.0, size=(800, 3))
    y = (rng.random(800) < expit(X @ [0.5, -0.7, 0.2])).astype(int)
    ours = MergedClassifier(p_x="empirical").fit(X, y)
    peer = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(X, y)
    assert_allclose(ours.coef_, peer.coef_, rtol=1e-5)
    assert_allclose(ours.intercept_, peer.intercept_, rtol=1e-5)
    three = y + (rng.random(800) < 0.3)
    ours, peer = ours.fit(X, three), peer.fit(X, three)
    assert_allclose(ours.predict_proba(X), peer.predict_proba(X), atol=1e-5)


def test_gaussian_and_empirical_causes_agree_in_the_limit():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(200_000, 2))
    y = (rng.random(200_000) < expit(X @ [1.0, -0.5] - 0.3)).astype(int)
    gaussian, rows = MergedClassifier().fit(X, y), MergedClassifier(p_x="empirical").fit(X, y)
    assert_allclose(gaussian.coef_, rows.coef_, atol=0.02)


def test_single_sources_come_back_unchanged():
    sigma = np.array([[1, 0.3], [0.3, 2]])
    logistic = Moments.from_logistic([0.8, -0.4], 0.2, [1, 2], sigma, target="y", names=["a", "b"])
    model = fit("causal", logistic)
    assert_allclose(model.coef_[0], [0.8, -0.4], atol=1e-9)
    assert_allclose(model.intercept_, [0.2], atol=1e-9)
    X, y = load_wine(return_X_y=True)
    lda = LinearDiscriminantAnalysis(solver="lsqr", store_covariance=True).fit(X, y)
    names = [f"f{i}" for i in range(X.shape[1])]
    stats = Moments.from_class_stats("y", [0, 1, 2], lda.priors_, lda.means_, lda.covariance_, names=names)
    assert_allclose(fit("anticausal", stats).predict_proba(X), lda.predict_proba(X), atol=1e-8)


def test_naive_gaussian_discriminant_is_the_star_without_feature_covariances():
    X, y = load_iris(return_X_y=True)
    m = MergedClassifier(graph="anticausal").fit(X, y).moments_
    names = [n for n in m.names if n.startswith("x")]
    hidden = m.hide([(a, b) for i, a in enumerate(names) for b in names[i + 1 :]])
    pi, means = np.bincount(y) / len(y), np.array([X[y == k].mean(0) for k in range(3)])
    within = sum(((X[y == k] - means[k]) ** 2).sum(0) for k in range(3)) / len(y)
    score = np.log(pi) + np.array([-0.5 * ((X - mu) ** 2 / within).sum(1) for mu in means]).T
    expected = np.exp(score - score.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    for graph in ("anticausal", "anticausal-star"):
        assert_allclose(fit(graph, hidden).predict_proba(X), expected, atol=1e-8)


def test_multiclass_causal_solver_recovers_its_truth():
    sigma = np.array([[1.0, 0.3], [0.3, 0.8]])
    beta, bias = np.array([[0.0, 0.0], [0.9, -0.4], [-0.3, 0.7]]), np.array([0.0, 0.3, -0.2])
    z = np.linspace(-8.5, 8.5, 341)
    w = np.exp(-z * z / 2)
    X = np.stack(np.meshgrid(z, z), -1).reshape(-1, 2) @ np.linalg.cholesky(sigma).T
    W = np.outer(w, w).ravel() / w.sum() ** 2
    eta = X @ beta.T + bias
    P = np.exp(eta - eta.max(1, keepdims=True))
    P /= P.sum(1, keepdims=True)
    pi, C = W @ P, (X * W[:, None]).T @ P
    names = ["y=0", "y=1", "y=2", "a", "b"]
    cov = np.block([[np.diag(pi) - np.outer(pi, pi), C.T], [C, sigma]])
    m = Moments.from_arrays(np.r_[pi, 0, 0], cov, names=names, kinds={"y": "categorical"})
    model = fit("causal", m)
    assert_allclose(model.coef_ - model.coef_[0], beta - beta[0], atol=1e-7)
    assert_allclose(pi @ model.coef_, 0, atol=1e-12)
    assert model.residual_ < 1e-9
    subspaces = compare_directions(m, "y")
    assert subspaces.angle < 1e-7


def test_multiclass_solver_with_two_classes_is_the_binary_one():
    pi, q = 0.3, 0.06
    b, T = solve_softmax_scale(np.array([1 - pi, pi]), np.sqrt(q) * np.array([[-1.0], [1.0]]))
    assert_allclose([b[1] - b[0], T[1, 0] - T[0, 0]], solve_binary_scale(pi, q), atol=1e-11)


@problems
@given(seeds)
def test_continuous_target_with_full_information_is_least_squares_in_both_directions(seed):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(60, 4)) @ rng.normal(size=(4, 4))
    y = X @ rng.normal(size=4) + rng.normal(size=60)
    peer = LinearRegression().fit(X, y)
    for graph in ("causal", "anticausal"):
        ours = MergedRegressor(graph=graph).fit(X, y)
        assert_allclose(ours.coef_, peer.coef_, rtol=1e-8, atol=1e-8)
        assert_allclose(ours.sigma_, np.sqrt(np.mean((y - peer.predict(X)) ** 2)), rtol=1e-8)


def test_k_class_anticausal_with_unknown_pairs_completes_the_indicator_matrix():
    X, y = load_wine(return_X_y=True)
    m = MergedClassifier(graph="anticausal").fit(X[:, :4], y).moments_.hide([("x0", "x2"), ("y", "x3")])
    model = fit("anticausal", m)
    keep = [m.names.index(n) for n in ("y=0", "y=1", "x0", "x1", "x2", "x3")]
    K = complete_covariance(m.cov[np.ix_(keep, keep)]).precision
    assert_allclose(model.coef_[:2] - model.coef_[2], -K[:2, 2:], rtol=1e-8, atol=1e-10)


def test_anticausal_solution_maximises_conditional_entropy_on_a_grid():
    """p(x|y) on a grid, maximised numerically under the moments, has log odds linear in x with the LDA weights."""
    m = Moments.from_arrays([0.4, 0.0], [[0.24, 0.15], [0.15, 1.0]], names=["y", "x"], kinds={"y": "binary"})
    x = np.linspace(-6, 6, 241)
    pi = np.array([0.6, 0.4])
    f = np.stack([np.stack([x, y * x, x * x]) for y in (0, 1)])  # (2, 3, n)
    target = np.array([0.0, 0.15, 1.0])

    def dual(lam):
        eta = np.einsum("j,yjn->yn", lam, f)
        top = eta.max(1, keepdims=True)
        p = np.exp(eta - top)
        Z = p.sum(1)
        p /= Z[:, None]
        return pi @ (np.log(Z) + top[:, 0]) - lam @ target, np.einsum("y,yn,yjn->j", pi, p, f) - target

    lam = minimize(dual, [0, 0, -0.5], jac=True, method="BFGS", options={"gtol": 1e-10}).x
    assert fit("anticausal", m).coef_[0, 0] == pytest.approx(lam[1], abs=1e-6)
