"""Continuous targets: every number against least squares, Gaussian conditioning or a direct entropy maximisation."""

import tracemalloc

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.optimize import minimize, root

from cmaxent import (
    CMaxEntError,
    GraphError,
    InconsistentMomentsError,
    InfeasibleMomentsError,
    MergedRegressor,
    Moments,
    NonlocalConstraintError,
    UnboundedEntropyError,
    load,
)

few = settings(max_examples=12, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
DIRECTIONS = ["causal", "anticausal"]
CHAIN = "x1->y; y->x2"

WORKED = Moments.from_arrays([0, 0, 0], [[2, 0.8, 0.5], [0.8, 1, 0.4], [0.5, 0.4, 1.5]], names=["y", "x1", "x2"])
MEANS = np.array([1.0, -2.0, 3.0])


def fit(graph, moments, **kw):
    return MergedRegressor(graph=graph, **kw).fit_moments(moments)


def random_covariance(rng, p):
    A = rng.normal(size=(p, p + 3))
    return A @ A.T / p * np.outer(s := np.exp(rng.normal(size=p)), s)


def table(seed, n=80, d=3):
    """Rows with correlated features away from the origin."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) @ (rng.normal(size=(d, d)) + 2 * np.eye(d)) + rng.normal(size=d) * 5
    return X, X @ rng.normal(size=d) + 3 + rng.normal(size=n)


def least_squares(X, y):
    """(slopes, intercept, root mean squared residual)."""
    design = np.column_stack([X, np.ones(len(X))])
    solution = np.linalg.lstsq(design, y, rcond=None)[0]
    return solution[:-1], solution[-1], np.sqrt(np.mean((y - design @ solution) ** 2))


def assert_least_squares(model, X, y, rtol=1e-8):
    slopes, intercept, sd = least_squares(X, y)
    assert_allclose(model.coef_, slopes, rtol=rtol, atol=1e-9)
    assert_allclose(model.intercept_, intercept, rtol=rtol, atol=1e-8)
    assert_allclose(model.sigma_, sd, rtol=rtol)


def largest_determinant(truth, unknown):
    """Maximise logdet numerically over the unknown entries, from a positive definite start."""
    rows, cols = np.array(sorted(unknown)).reshape(-1, 2).T
    if len(rows) == 0:
        return truth

    def filled(theta):
        M = truth.copy()
        M[rows, cols] = M[cols, rows] = theta
        return M

    def loss(theta):
        M = filled(theta)
        if np.linalg.eigvalsh(M)[0] <= 0:
            return np.inf, np.zeros(len(theta))
        return -np.linalg.slogdet(M)[1], -2 * np.linalg.inv(M)[rows, cols]

    found = minimize(loss, truth[rows, cols], jac=True, method="BFGS", options={"gtol": 1e-7})
    return filled(root(lambda t: np.linalg.inv(filled(t))[rows, cols], found.x, tol=1e-12).x)


def causal_joint(truth, unknown):
    """First the entropy of x, then with it frozen the entropy of y given x; y is coordinate 0."""
    joint = truth.copy()
    S = joint[1:, 1:] = largest_determinant(truth[1:, 1:], [(i - 1, j - 1) for i, j in unknown if i > 0])
    free = [j - 1 for i, j in unknown if i == 0]
    c = joint[0, 1:].copy()

    def explained(theta):
        c[free] = theta
        return c @ np.linalg.solve(S, c), 2 * np.linalg.solve(S, c)[free]

    if free:
        c[free] = minimize(explained, np.zeros(len(free)), jac=True, method="BFGS", options={"gtol": 1e-10}).x
    joint[0, 1:] = joint[1:, 0] = c
    assert c @ np.linalg.solve(S, c) < truth[0, 0], "the random problem has to be feasible"
    return joint


def hidden(moments, pairs):
    return moments.hide([(moments.names[i], moments.names[j]) for i, j in pairs])


# --- the numbers of the paper's setting -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("graph", "hide", "slopes", "variance", "covariance"),
    [
        ("causal", [], [0.7462686567, 0.1343283582], 2 - 0.8 * 0.7462686567 - 0.5 * 0.1343283582, 0.4),
        ("anticausal", [], [0.7462686567, 0.1343283582], 2 - 0.8 * 0.7462686567 - 0.5 * 0.1343283582, 0.4),
        ("causal", [("x1", "x2")], [0.8, 1 / 3], 2 - 0.64 - 1 / 6, 0.0),
        ("anticausal", [("x1", "x2")], [0.7534246575, 0.2328767123], 1.2808219178, 0.8 * 0.5 / 2),
    ],
)
def test_worked_numbers_of_both_directions(graph, hide, slopes, variance, covariance):
    moved = Moments.from_arrays(MEANS, WORKED.cov, names=WORKED.names)
    model = fit(graph, moved.hide(hide))
    assert_allclose(model.coef_, slopes, atol=1e-9)
    assert model.sigma_**2 == pytest.approx(variance, abs=1e-9)
    assert model.completed_cov_[0, 1] == pytest.approx(covariance, abs=1e-12)
    assert model.intercept_ == pytest.approx(MEANS[0] - np.dot(slopes, MEANS[1:]), abs=1e-9)
    assert model.residual_ < 1e-12


@pytest.mark.parametrize("graph", DIRECTIONS)
def test_feature_never_seen_with_the_target_has_no_weight_but_an_implied_covariance(graph):
    model = fit(graph, WORKED.hide([("y", "x2")]))
    assert_allclose(model.coef_, [0.8, 0], atol=1e-12)
    assert model.coef_[1] == 0.0
    assert model.implied_moments_.cov[0, 2] == pytest.approx(0.4 * 0.8, abs=1e-12)
    assert model.sigma_**2 == pytest.approx(2 - 0.64, abs=1e-12)


# --- everything known is least squares --------------------------------------------------------------------------------


@few
@given(
    seeds,
    st.sampled_from([*DIRECTIONS, "x2->x0; x2->x1; x0->x1; x0->y; x1->y; x2->y", "y->x0; y->x1; y->x2; x0--x1--x2"]),
)
def test_full_rows_give_least_squares_whatever_the_graph(seed, graph):
    X, y = table(seed)
    model = MergedRegressor(graph=graph).fit(X, y)
    assert_least_squares(model, X, y)
    slopes, intercept, sd = least_squares(X, y)
    mean, std = model.predict(X[:5], return_std=True)
    assert_allclose(mean, X[:5] @ slopes + intercept, rtol=1e-8, atol=1e-8)
    assert_allclose(std, sd, rtol=1e-7)


@pytest.mark.parametrize("graph", DIRECTIONS)
def test_integer_weights_are_repeated_rows_and_zero_weights_drop_rows(graph):
    X, y = table(4, n=60)
    weight = np.random.default_rng(0).integers(0, 4, 60)
    assert (weight == 0).any()
    model = MergedRegressor(graph=graph).fit(X, y, sample_weight=weight)
    assert_least_squares(model, np.repeat(X, weight, axis=0), np.repeat(y, weight))
    assert_least_squares(
        MergedRegressor(graph=graph).fit(X, y, sample_weight=weight * 0.37),
        np.repeat(X, weight, axis=0),
        np.repeat(y, weight),
    )


@few
@given(seeds)
def test_shrinkage_is_least_squares_with_extra_rows(seed):
    """(1 - g) S + g tr(S)/d I is the Gram matrix of scaled centred rows on top of multiples of the unit vectors."""
    X, y = table(seed)
    gamma, (n, d) = 0.3, X.shape
    Z, t = X - X.mean(axis=0), y - y.mean()
    extra = np.sqrt(gamma * n * X.var(axis=0).mean()) * np.eye(d)
    rows = np.vstack([np.sqrt(1 - gamma) * Z, extra])
    expected = np.linalg.lstsq(rows, np.r_[t / np.sqrt(1 - gamma), np.zeros(d)], rcond=None)[0]
    model = MergedRegressor(shrinkage=gamma).fit(X, y)
    assert_allclose(model.coef_, expected, rtol=1e-8, atol=1e-10)
    assert_allclose(model.predict(X.mean(axis=0)[None]), y.mean(), rtol=1e-9, atol=1e-9)


def ridged(S, gamma):
    """Shrinkage written entry by entry."""
    d = len(S)
    return np.array(
        [[(1 - gamma) * S[i, j] + (gamma * np.trace(S) / d) * (i == j) for j in range(d)] for i in range(d)]
    )


def posterior(v, delta, within):
    """(slopes, variance) of y ~ N(0, v) given x = delta y + noise, by Bayes' rule for Gaussians."""
    weights = np.linalg.solve(within, delta)
    precision = 1 / v + delta @ weights
    return weights / precision, 1 / precision


@few
@given(seeds)
def test_anticausal_shrinkage_is_of_the_residuals_of_the_features_on_the_target(seed):
    X, y = table(seed)
    design = np.column_stack([y, np.ones(len(y))])
    lines = np.linalg.lstsq(design, X, rcond=None)[0]
    within = np.cov((X - design @ lines).T, ddof=0)
    slopes, variance = posterior(y.var(), lines[0], ridged(within, 0.3))
    model = MergedRegressor(graph="anticausal", shrinkage=0.3).fit(X, y)
    assert_allclose(model.coef_, slopes, rtol=1e-8, atol=1e-10)
    assert_allclose(model.sigma_**2, variance, rtol=1e-8)
    implied = model.implied_moments_
    assert_allclose(implied.cov[-1], np.cov(np.column_stack([X, y]).T, ddof=0)[-1], rtol=1e-9)  # none with y has moved


def test_anticausal_shrinkage_does_not_depend_on_whether_a_pair_is_hidden_or_given_as_completed():
    cov = WORKED.cov.copy()
    cov[1, 2] = cov[2, 1] = 0.8 * 0.5 / 2  # what the anticausal direction completes it to
    whole = Moments.from_arrays(MEANS, cov, names=WORKED.names)
    within = np.diag([1 - 0.8**2 / 2, 1.5 - 0.5**2 / 2])
    for gamma in (0.0, 0.25, 1.0):
        expected, _ = posterior(2.0, np.array([0.4, 0.25]), ridged(within, gamma))
        for moments in (whole, whole.hide([("x1", "x2")])):
            assert_allclose(fit("anticausal", moments, shrinkage=gamma).coef_, expected, rtol=1e-12)


@few
@given(seeds, st.sampled_from([0.0, 1e-9, 0.2, 1.0]))
def test_anticausal_shrinkage_with_features_never_seen_with_the_target(seed, gamma):
    rng = np.random.default_rng(seed)
    truth = random_covariance(rng, 5)
    truth += 2 * np.diag(truth.diagonal())  # so that zeros in the unknown places are a positive definite start
    pairs = [(0, 3), (0, 4), (1, 2), (2, 4)]
    bridge = np.zeros((4, 4))
    bridge[:2, :2] = np.outer(truth[0, 1:3], truth[0, 1:3]) / truth[0, 0]  # of the two features seen with y
    start = truth.copy()
    start[1:, 1:] = ridged(truth[1:, 1:] - bridge, gamma) + bridge
    for i, j in pairs:
        start[i, j] = start[j, i] = 0.0
    assert np.linalg.eigvalsh(start)[0] > 0
    K = np.linalg.inv(largest_determinant(start, pairs))
    model = fit(
        "anticausal", hidden(Moments.from_arrays(np.zeros(5), truth, names=list("yabcd")), pairs), shrinkage=gamma
    )
    unit = np.sqrt(truth[0, 0] / truth.diagonal()[1:])
    assert_allclose(model.coef_ / unit, -K[0, 1:] / K[0, 0] / unit, atol=1e-6)
    assert list(model.coef_[2:]) == [0.0, 0.0]


@pytest.mark.parametrize("graph", DIRECTIONS)
def test_shrinkage_carries_more_features_than_rows_also_when_some_were_never_seen_with_the_target(graph):
    rng = np.random.default_rng(3)
    X, d = rng.normal(size=(12, 20)), 20
    y = X[:, 0] + rng.normal(size=12)
    whole = np.cov(np.column_stack([y, X]).T, ddof=0)
    m = Moments.from_arrays(np.zeros(d + 1), whole, names=["y", *(f"x{i}" for i in range(d))])
    model = fit(graph, m.hide([("y", f"x{i}") for i in range(10, d)]), shrinkage=0.2)
    c, S = whole[0, 1:11], whole[1:, 1:].copy()
    if graph == "causal":
        expected = np.linalg.solve(ridged(S, 0.2)[:10, :10], c)
    else:
        S[:10, :10] -= np.outer(c, c) / whole[0, 0]
        expected, _ = posterior(whole[0, 0], c / whole[0, 0], ridged(S, 0.2)[:10, :10])
    assert_allclose(model.coef_, np.r_[expected, np.zeros(10)], rtol=1e-9)


def test_shrinkage_reaches_the_blocks_of_any_graph():
    rng = np.random.default_rng(5)
    truth = random_covariance(rng, 4)
    truth[0, 0] *= 4
    moments = Moments.from_arrays(np.zeros(4), truth, names=["y", "a", "b", "e"]).hide([("a", "e"), ("b", "e")])
    model = fit("a--b; a->y; b->y; y->e", moments, shrinkage=0.3)
    S, c = ridged(truth[1:3, 1:3], 0.3), truth[0, 1:3]
    slopes = np.linalg.solve(S, c)
    # The structural equations: (a, b) ~ S, y = slopes (a, b) + noise, e = effect y + noise.
    B, N = np.zeros((4, 4)), np.zeros((4, 4))
    B[0, 1:3], B[3, 0] = slopes, truth[0, 3] / truth[0, 0]
    N[0, 0], N[1:3, 1:3], N[3, 3] = truth[0, 0] - c @ slopes, S, truth[3, 3] - truth[0, 3] ** 2 / truth[0, 0]
    mixing = np.linalg.inv(np.eye(4) - B)
    K = np.linalg.inv(mixing @ N @ mixing.T)
    assert_allclose(model.coef_, -K[0, 1:] / K[0, 0], rtol=1e-9)
    assert_allclose(model.sigma_, K[0, 0] ** -0.5, rtol=1e-9)
    assert np.abs(model.coef_ / fit("a--b; a->y; b->y; y->e", moments).coef_ - 1).max() > 0.01


@pytest.mark.parametrize("graph", DIRECTIONS)
def test_implied_moments_say_which_variances_shrinkage_has_moved(graph):
    frame, y = coloured(), coloured_target()
    plain = MergedRegressor(graph=graph).fit(frame, y)
    assert plain.implied_moments_.kinds == plain.moments_.kinds
    assert plain.implied_moments_.levels == plain.moments_.levels
    assert_allclose(plain.implied_moments_.cov, plain.moments_.cov, rtol=1e-8, atol=1e-12)
    model = MergedRegressor(graph=graph, shrinkage=0.2).fit(frame, y)
    implied = model.implied_moments_
    assert implied.names == plain.moments_.names
    assert set(implied.kinds.values()) == {"continuous"}
    at = [implied.names.index(n) for n in ("size", "sold", "colour=blue", "colour=green")]
    numbers = np.column_stack([frame["size"], frame.sold, frame.colour == "blue", frame.colour == "green"]).astype(
        float
    )
    S = np.cov(numbers.T, ddof=0)
    v, c = y.var(), np.array([np.cov(col, y, ddof=0)[0, 1] for col in numbers.T])
    bridge = np.outer(c, c) / v if graph == "anticausal" else 0
    S = ridged(S - bridge, 0.2) + bridge
    assert_allclose(implied.cov[np.ix_(at, at)], S, rtol=1e-9)
    assert_allclose(implied.cov[:, implied.names.index("y")][at], c, rtol=1e-9)
    assert_allclose(model.completed_cov_[:, -1] + model.completed_cov_[:, -2], -model.completed_cov_[:, -3], atol=1e-12)


def test_a_binary_feature_enters_through_its_first_two_moments():
    X, y = table(8, n=120)
    frame = pd.DataFrame(X, columns=["a", "b", "c"]).assign(b=X[:, 1] > np.median(X[:, 1]), y=y)
    moments = Moments.from_data(frame)
    assert moments.kinds["b"] == "binary"
    numbers = frame[["a", "b", "c"]].to_numpy(dtype=float)
    for graph in DIRECTIONS:
        model = fit(graph, moments)
        assert_least_squares(model, numbers, y)
        slopes, intercept, _ = least_squares(numbers, y)
        assert_allclose(model.predict(frame), numbers @ slopes + intercept, rtol=1e-8)


# --- categories -------------------------------------------------------------------------------------------------------


def coloured(n=150):
    rng = np.random.default_rng(12)
    colour = rng.choice(["red", "green", "blue"], n, p=[0.5, 0.3, 0.2])
    size = rng.normal(size=n) + (colour == "red")
    sold = rng.random(n) < 0.3 + 0.3 * (colour == "blue")
    return pd.DataFrame({"size": size, "sold": sold, "colour": pd.Categorical(colour)})


def coloured_target():
    frame = coloured()
    noise = np.random.default_rng(13).normal(size=len(frame))
    return (frame["size"] + 2 * frame.sold + 3 * (frame.colour == "green") + noise + 5).to_numpy()


def dummies(frame):
    return pd.get_dummies(frame.astype({"sold": float}), columns=["colour"]).to_numpy(dtype=float)


GRAPHS = [*DIRECTIONS, "size--sold; size->y; sold->y; y->colour; size->colour; sold->colour"]


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("dtype", ["category", "object", "str"])
def test_categories_are_least_squares_on_indicators(graph, dtype):
    frame, y = coloured().astype({"colour": dtype}), coloured_target()
    model = MergedRegressor(graph=graph).fit(frame, y)
    slopes, intercept, sd = least_squares(dummies(frame)[:, :-1], y)
    assert_allclose(model.coef_, [*slopes, 0.0], rtol=1e-8)
    assert model.coef_[-1] == 0.0
    assert_allclose([model.intercept_, model.sigma_], [intercept, sd], rtol=1e-8)
    assert list(model.feature_names_in_) == ["size", "sold", "colour"]
    assert model.n_features_in_ == 3
    expected = dummies(frame)[:, :-1] @ slopes + intercept
    assert_allclose(model.predict(frame), expected, rtol=1e-8)
    assert_allclose(model.predict(frame[["colour", "sold", "size"]].assign(z="?")), expected, rtol=1e-8)
    assert_allclose(model.predict(frame.to_numpy(dtype=object)), expected, rtol=1e-8)
    # Without the colour: least squares on the other two.
    for without in (frame[["size", "sold"]], frame.assign(colour=None)):
        mean, std = model.predict(without, return_std=True)
        slopes, intercept, sd = least_squares(dummies(frame)[:, :2], y)
        assert_allclose(mean, dummies(frame)[:, :2] @ slopes + intercept, rtol=1e-7)
        assert_allclose(std, sd, rtol=1e-7)
    whole = Moments.from_data(frame.assign(y=y))
    assert_allclose(MergedRegressor(graph=graph).fit_moments(whole).coef_, model.coef_, rtol=1e-12)
    assert_allclose(MergedRegressor(graph=graph).fit_sources([frame.assign(y=y)]).coef_, model.coef_, rtol=1e-12)


@pytest.mark.parametrize("graph", DIRECTIONS)
def test_hidden_pairs_with_a_category_are_completed_on_its_indicators(graph):
    frame, y = coloured(), coloured_target()
    moments = Moments.from_data(frame.assign(y=y)[["colour", "y", "size", "sold"]])
    model = fit(graph, moments.hide([("colour", "size"), ("y", "sold")]))
    rows = np.column_stack([y, frame.colour == "blue", frame.colour == "green", frame["size"], frame.sold]).astype(
        float
    )
    pairs = [(1, 3), (2, 3), (0, 4)]
    truth = np.cov(rows.T, ddof=0)
    joint = causal_joint(truth, pairs) if graph == "causal" else largest_determinant(truth, pairs)
    K = np.linalg.inv(joint)
    assert_allclose(model.coef_, np.insert(-K[0, 1:] / K[0, 0], 2, 0.0), atol=1e-6)
    assert_allclose(
        model.predict(frame), y.mean() + (rows - rows.mean(axis=0))[:, 1:] @ (-K[0, 1:] / K[0, 0]), atol=1e-5
    )
    implied = model.implied_moments_
    at = [implied.names.index(n) for n in ("y", "colour=blue", "colour=green", "size", "sold")]
    assert_allclose(implied.cov[np.ix_(at, at)], joint, atol=1e-6)
    assert_allclose(implied.cov[:3].sum(axis=0), 0, atol=1e-12)


def test_a_discrete_feature_is_a_number_in_every_graph():
    """Effects of a common y, one of them a rare category: linear mechanisms as in the direction of the same law."""
    rng = np.random.default_rng(2)
    y = rng.normal(size=400)
    frame = pd.DataFrame(
        {"a": y + rng.normal(size=400), "k": np.where(y > 1, "hi", np.where(y < -1, "lo", "mid")), "y": y}
    )
    hidden_pair = Moments.from_data(frame).hide([("a", "k")])
    assert_allclose(fit("y->a; y->k", hidden_pair).coef_, fit("anticausal", hidden_pair).coef_, rtol=1e-9)


def test_coordinates_of_a_category_need_not_stand_together():
    frame, y = coloured(), coloured_target()
    moments = Moments.from_data(frame.assign(y=y))
    order = [moments.names.index(n) for n in ("colour=red", "size", "y", "colour=green", "sold", "colour=blue")]
    mixed = Moments.from_arrays(
        moments.mean[order],
        moments.cov[np.ix_(order, order)],
        names=[moments.names[i] for i in order],
        kinds=moments.kinds,
        levels={"colour": ("red", "green", "blue"), "sold": (False, True)},
    )
    model = fit("causal", mixed)
    assert list(model.feature_names_in_) == ["colour", "size", "sold"]
    assert model.coef_[-1] == 0.0
    assert_allclose(model.predict(frame), MergedRegressor().fit(frame, y).predict(frame), rtol=1e-9)


# --- unknown pairs ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:no source links")
@settings(max_examples=20, deadline=None, derandomize=True)
@given(seeds)
def test_any_pattern_of_unknown_pairs_maximises_the_entropy_found_by_a_general_optimiser(seed):
    rng = np.random.default_rng(seed)
    p = int(rng.integers(3, 6))
    truth = random_covariance(rng, p)
    truth[0, 0] *= 3  # leaves room for the causal completion, which may explain more of y
    moments = Moments.from_arrays(rng.normal(size=p), truth, names=["y", *(f"x{i}" for i in range(1, p))])
    pairs = [(i, j) for i in range(p) for j in range(i + 1, p) if rng.random() < 0.4]
    h = hidden(moments, pairs)
    known = ~np.isnan(h.cov)
    size = np.sqrt(np.outer(truth.diagonal(), truth.diagonal()))

    bridged = largest_determinant(truth, pairs)
    K = np.linalg.inv(bridged)
    anticausal = fit("anticausal", h)
    unit = np.sqrt(truth[0, 0] / truth.diagonal()[1:])
    assert_allclose(anticausal.coef_ / unit, -K[0, 1:] / K[0, 0] / unit, atol=1e-7)
    assert_allclose(anticausal.sigma_, K[0, 0] ** -0.5, rtol=1e-7)
    assert_allclose(anticausal.implied_moments_.cov / size, bridged / size, atol=1e-7)
    assert_allclose(anticausal.entropy_, 0.5 * np.linalg.slogdet(2 * np.pi * np.e * bridged)[1], atol=1e-8)
    assert_allclose((anticausal.implied_moments_.cov / size)[known], (truth / size)[known], atol=1e-9)

    joint = causal_joint(truth, pairs)
    causal = fit("causal", h)
    assert_allclose(causal.coef_ / unit, np.linalg.solve(joint[1:, 1:], joint[0, 1:]) / unit, atol=1e-7)
    assert_allclose(causal.implied_moments_.cov / size, joint / size, atol=1e-7)
    assert_allclose(causal.sigma_, np.linalg.inv(joint)[0, 0] ** -0.5, rtol=1e-6)
    for model in (causal, anticausal):
        assert [model.coef_[j - 1] for i, j in pairs if i == 0] == [0.0 for i, _ in pairs if i == 0]
    # The causal law is one of those that the anticausal one was chosen among.
    assert np.linalg.slogdet(joint)[1] <= np.linalg.slogdet(bridged)[1] + 1e-9


def test_r2_of_more_than_one_is_infeasible_causally_and_fine_anticausally():
    cov = np.array([[1, 0.8, 0.8], [0.8, 1, np.nan], [0.8, np.nan, 1]])
    moments = Moments.from_arrays([0, 0, 0], cov, names=["y", "a", "b"])
    with pytest.raises(InfeasibleMomentsError, match=r"R\^2 of y on a, b is 1\.28, more than 1"):
        fit("causal", moments)
    K = np.linalg.inv(largest_determinant(np.where(np.isnan(cov), 0.64, cov), [(1, 2)]))
    assert_allclose(fit("anticausal", moments).coef_, -K[0, 1:] / K[0, 0], atol=1e-9)


@few
@given(seeds, st.sampled_from(DIRECTIONS))
def test_changing_units_and_order_of_variables_changes_nothing_else(seed, graph):
    rng = np.random.default_rng(seed)
    truth = random_covariance(rng, 4)
    truth[0, 0] *= 3
    moments = Moments.from_arrays(rng.normal(size=4), truth, names=["y", "a", "b", "c"]).hide([("a", "b"), ("y", "c")])
    scale, shift = np.exp(rng.normal(size=4)) * rng.choice([-1, 1], 4), rng.normal(size=4)
    moved = Moments.from_arrays(moments.mean * scale + shift, moments.cov * np.outer(scale, scale), names=moments.names)
    x = rng.normal(size=(6, 3))
    x[0, 1] = np.nan
    mean, std = fit(graph, moments).predict(x, return_std=True)
    there = fit(graph, moved).predict(x * scale[1:] + shift[1:], return_std=True)
    assert_allclose(there[0], mean * scale[0] + shift[0], rtol=1e-8, atol=1e-8)
    assert_allclose(there[1], std * abs(scale[0]), rtol=1e-8)
    turned = fit(graph, moments.subset(["c", "a", "y", "b"])).predict(x[:, [2, 0, 1]], return_std=True)
    assert_allclose(turned, (mean, std), rtol=1e-8, atol=1e-8)


# --- missing values ---------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seeds, st.sampled_from(DIRECTIONS))
def test_missing_features_are_conditioned_out_of_the_completed_gaussian(seed, graph):
    rng = np.random.default_rng(seed)
    truth = random_covariance(rng, 5)
    truth[0, 0] *= 3
    pairs = [(1, 2), (3, 4), (0, 4)]
    joint = causal_joint(truth, pairs) if graph == "causal" else largest_determinant(truth, pairs)
    mean = rng.normal(size=5)
    model = fit(graph, hidden(Moments.from_arrays(mean, truth, names=["y", "a", "b", "c", "d"]), pairs))
    rows = rng.normal(size=(8, 4))
    rows[rng.random((8, 4)) < 0.5] = np.nan
    rows[0] = np.nan
    got, spread = model.predict(rows, return_std=True)
    K = np.linalg.inv(joint)  # conditioning through the precision matrix: (y, missing) given the rest
    for row, m, s in zip(rows, got, spread, strict=True):
        O = np.flatnonzero(~np.isnan(row)) + 1
        H = np.setdiff1d(np.arange(5), O)
        cov = np.linalg.inv(K[np.ix_(H, H)])
        centre = mean[H] - cov @ K[np.ix_(H, O)] @ (row[O - 1] - mean[O])
        assert m == pytest.approx(centre[0], rel=1e-5, abs=1e-5)
        assert s == pytest.approx(np.sqrt(cov[0, 0]), rel=1e-5)
    assert (got[0], spread[0]) == (pytest.approx(mean[0]), pytest.approx(np.sqrt(truth[0, 0])))
    assert_allclose(model.predict(rows), got)


@pytest.mark.parametrize(
    ("graph", "density"),
    [
        # unnormalised log p(y, x1, x2) written from the worked slopes, means zero
        ("causal", lambda y, a, b: -0.5 * (a**2 + b**2 / 1.5 + (y - 0.8 * a - b / 3) ** 2 / (2 - 0.64 - 1 / 6))),
        ("anticausal", lambda y, a, b: -0.5 * (y**2 / 2 + (a - 0.4 * y) ** 2 / 0.68 + (b - 0.25 * y) ** 2 / 1.375)),
        ("x1->y; y->x2", lambda y, a, b: -0.5 * (a**2 + (y - 0.8 * a) ** 2 / 1.36 + (b - 0.25 * y) ** 2 / 1.375)),
        ("x2->x1; x1->y", lambda y, a, b: -0.5 * (b**2 / 1.5 + a**2 + (y - 0.8 * a) ** 2 / 1.36)),
    ],
)
def test_prediction_with_a_missing_feature_is_the_integral_of_the_factorised_density(graph, density):
    pairs = [("x1", "x2")] if "x2->x1" not in graph else [("x1", "x2"), ("y", "x2")]
    model = fit(graph, WORKED.hide(pairs))
    y, x = np.linspace(-16, 16, 801), np.linspace(-12, 12, 601)
    for seen in (0, 1):
        axes = (y[:, None], 0.7, x[None]) if seen == 0 else (y[:, None], x[None], 0.7)
        p = np.exp(density(*axes)).sum(axis=1)
        p /= p.sum()
        row = np.full((1, 2), np.nan)
        row[0, seen] = 0.7
        mean, std = model.predict(row, return_std=True)
        assert mean[0] == pytest.approx(p @ y, abs=1e-9)
        assert std[0] == pytest.approx(np.sqrt(p @ y**2 - (p @ y) ** 2), abs=1e-9)


def pairwise(rows):
    """Means over the rows that have a column, covariances over the rows that have both; NaN where no row has."""
    seen = ~np.isnan(rows)
    p = rows.shape[1]
    mean = np.array([rows[seen[:, i], i].mean() for i in range(p)])
    cov = np.full((p, p), np.nan)
    for i in range(p):
        for j in range(p):
            both = rows[seen[:, i] & seen[:, j]][:, [i, j]]
            if len(both):
                cov[i, j] = (both[:, 0] * both[:, 1]).mean() - both[:, 0].mean() * both[:, 1].mean()
    return mean, cov


def by_hand(graph, mean, cov):
    """Slopes and intercept of (y, x1, x2) with Cov(x1, x2) unknown."""
    c, s, v = cov[0, 1:], cov.diagonal()[1:], cov[0, 0]
    if graph == "causal":
        slopes = c / s
    else:
        implied = c[0] * c[1] / v
        slopes = np.linalg.solve([[s[0], implied], [implied, s[1]]], c)
    return slopes, mean[0] - slopes @ mean[1:]


@pytest.mark.parametrize("graph", DIRECTIONS)
def test_rows_with_holes_give_pairwise_moments_and_unlabelled_rows_still_inform_the_features(graph):
    X, y = table(3, n=90, d=2)
    y += 4 * np.random.default_rng(1).normal(size=90) * X.std()
    X[:40, 0], X[40:80, 1], X[80:] = np.nan, np.nan, [[4.0, np.nan]] * 10
    y[75:85] = np.nan
    mean, cov = pairwise(np.column_stack([y, X]))
    assert np.isnan(cov[1, 2])
    model = MergedRegressor(graph=graph).fit(X, y)
    slopes, intercept = by_hand(graph, mean, cov)
    assert_allclose(model.coef_, slopes, rtol=1e-9)
    assert_allclose(model.intercept_, intercept, rtol=1e-9)
    assert_allclose(model.completed_cov_.diagonal(), [cov[1, 1], cov[2, 2]], rtol=1e-10)


@pytest.mark.parametrize("graph", [*DIRECTIONS, "x1->x2; x2->y"])
def test_a_target_that_no_source_links_to_a_feature_is_predicted_by_its_mean_with_a_warning(graph):
    moments = Moments.from_arrays(MEANS, WORKED.cov, names=WORKED.names).hide([("y", "x1"), ("y", "x2")])
    with pytest.warns(UserWarning, match="no source links y to any feature: the prediction is the mean"):
        model = fit(graph, moments)
    mean, std = model.predict([[5.0, -3.0], [np.nan, 2.0]], return_std=True)
    assert_allclose(mean, 1.0)
    assert_allclose(std, np.sqrt(2))


def test_slack_without_effect_is_said():
    with pytest.warns(UserWarning, match="slack=0.5 changes nothing: the causal direction meets every moment"):
        model = fit("causal", WORKED, slack=0.5)
    assert_allclose(model.coef_, fit("causal", WORKED).coef_)


def test_fit_copies_an_array_once_and_leaves_it_alone():
    X, y = table(6, n=200_000, d=8)
    kept = X.copy()
    MergedRegressor().fit(X[:100], y[:100])  # imports
    tracemalloc.start()
    try:
        MergedRegressor().fit(X, y)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.6 * X.nbytes  # one table of X and y while it is summed, labels, a strip
    assert_allclose(X, kept, rtol=0)


@pytest.mark.parametrize("graph", DIRECTIONS)
def test_partial_fit_on_pieces_is_fit_on_the_whole(graph):
    X, y = table(9, n=100)
    model = MergedRegressor(graph=graph)
    with pytest.raises(CMaxEntError, match=r"do not determine a predictor: x0, .* constant"):
        model.partial_fit(X[:1], y[:1]).predict(X)
    for start, stop in [(1, 3), (3, 40), (40, 100)]:
        model.partial_fit(X[start:stop], y[start:stop])
    assert_least_squares(model, X, y)
    frame, target = coloured(), coloured_target()
    streamed = MergedRegressor(graph=graph).partial_fit(frame[:60], target[:60])
    streamed.partial_fit(frame[60:][["colour", "size", "sold"]], target[60:])
    assert_allclose(streamed.coef_, MergedRegressor(graph=graph).fit(frame, target).coef_, rtol=1e-9)
    # A fit starts afresh; more rows go on from there.
    again = MergedRegressor(graph=graph).fit(X[50:], y[50:]).fit(X[:50], y[:50]).partial_fit(X[50:], y[50:])
    assert_least_squares(again, X, y)


# --- sources, names, files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", DIRECTIONS)
@pytest.mark.parametrize("as_moments", [False, True])
def test_sources_with_different_columns_are_pooled_and_completed(graph, as_moments):
    rng = np.random.default_rng(7)
    mixing = np.array([[1, 0.4], [0, 1]])
    one = pd.DataFrame(rng.normal(size=(70, 2)) @ mixing + [1, 2], columns=["y", "x1"])
    two = pd.DataFrame(rng.normal(size=(110, 2)) @ mixing - [0.5, 1], columns=["y", "x2"])
    mean, cov = pairwise(pd.concat([one, two])[["y", "x1", "x2"]].to_numpy())
    sources = [Moments.from_data(one), Moments.from_data(two)] if as_moments else [one, two]
    model = MergedRegressor(graph=graph).fit_sources(sources)
    slopes, intercept = by_hand(graph, mean, cov)
    assert_allclose(model.coef_, slopes, rtol=1e-9)
    assert_allclose(model.intercept_, intercept, rtol=1e-9)
    assert list(model.feature_names_in_) == ["x1", "x2"]


@pytest.mark.parametrize("graph", DIRECTIONS)
def test_row_splits_of_one_table_are_least_squares_on_the_whole(graph):
    X, y = table(11, n=100)
    frame = pd.DataFrame(X, columns=["a", "b", "c"]).assign(y=y)
    model = MergedRegressor(graph=graph).fit_sources(
        [frame[:13], frame[13:70].sample(frac=1, random_state=0), frame[70:]]
    )
    assert_least_squares(model, X, y)
    assert_least_squares(MergedRegressor(graph=graph).fit_sources(frame), X, y)


def test_contradictory_sources_are_refused_or_shrunk_just_enough():
    """Correlations .9, .9, -.9 of three tables have no joint law; off-diagonals times 1 / 1.8 are the limit of one."""
    pairs = {("y", "a"): 0.9, ("y", "b"): 0.9, ("a", "b"): -0.9}
    sources = [Moments.from_arrays([0, 0], [[1, r], [r, 1]], names=names, n=100) for names, r in pairs.items()]
    with pytest.raises(InfeasibleMomentsError, match="not positive"):
        MergedRegressor().fit_sources(sources)
    model = MergedRegressor(repair="shrink").fit_sources(sources)
    expected = np.array([[1, 0.5, 0.5], [0.5, 1, -0.5], [0.5, -0.5, 1]])  # .9 / 1.8, singular
    assert_allclose(model.implied_moments_.cov, expected, atol=1e-5)


@pytest.mark.parametrize("graph", DIRECTIONS)
def test_columns_are_matched_by_name_and_absent_ones_are_missing(graph):
    X, y = table(5)
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    model = MergedRegressor("outcome", graph).fit(frame, y)
    slopes, intercept, _ = least_squares(X, y)
    expected = X @ slopes + intercept
    assert list(model.feature_names_in_) == ["a", "b", "c"]
    assert_allclose(model.predict(frame[["c", "a", "b"]].assign(outcome=0, extra="z")), expected, rtol=1e-8)
    assert_allclose(model.predict(X), expected, rtol=1e-8)
    # With b absent the best linear predictor from the other two is least squares on them.
    short, constant, sd = least_squares(X[:, [0, 2]], y)
    mean, std = model.predict(frame[["c", "a"]], return_std=True)
    assert_allclose(mean, X[:, [0, 2]] @ short + constant, rtol=1e-7, atol=1e-7)
    assert_allclose(std, sd, rtol=1e-7)


@pytest.mark.parametrize(
    ("graph", "slopes"),
    [
        ("causal", [0.8, 1 / 3]),
        ("anticausal", [0.7534246575, 0.2328767123]),
        (CHAIN, [0.7534246575, 0.2328767123]),
        ([("x1", "y"), ("y", "x2")], [0.7534246575, 0.2328767123]),
        ([("x1", "--", "x2"), ("x1", "y"), ("x2", "y")], [0.8, 1 / 3]),
    ],
)
def test_a_saved_regressor_comes_back_with_the_same_law(tmp_path, graph, slopes):
    model = MergedRegressor(graph=graph, random_state=3).fit_moments(WORKED.hide([("x1", "x2")]))
    model.save(tmp_path / "r.npz")
    back = load(tmp_path / "r.npz")
    assert isinstance(back, MergedRegressor)
    assert back.get_params()["random_state"] == 3
    rows = np.array([[0.3, -1.0], [np.nan, 2.0], [1.0, np.nan], [np.nan, np.nan]])
    assert_allclose(back.predict(rows, return_std=True), model.predict(rows, return_std=True), rtol=1e-13)
    assert_allclose(back.implied_moments_.cov, model.implied_moments_.cov, rtol=1e-13)
    assert list(back.feature_names_in_) == list(model.feature_names_in_)
    assert_allclose(back.coef_, slopes, atol=1e-9)


def test_a_saved_regressor_keeps_its_categories(tmp_path):
    frame, y = coloured(), coloured_target()
    model = MergedRegressor(graph="anticausal", shrinkage=0.1).fit(frame, y)
    model.save(tmp_path / "r.npz")
    back = load(tmp_path / "r.npz")
    for rows in (frame, frame[["colour"]], frame.assign(colour=None)):
        assert_allclose(back.predict(rows, return_std=True), model.predict(rows, return_std=True), rtol=1e-13)
    assert_allclose(back.coef_, model.coef_, rtol=1e-13)


# --- graphs -----------------------------------------------------------------------------------------------------------


def test_a_chain_through_the_target_is_the_anticausal_answer_and_a_fork_is_not():
    """x1 -> y -> x2 and y -> {x1, x2} both say x1 independent of x2 given y; x1 -> y <- x2 says independent causes."""
    h = WORKED.hide([("x1", "x2")])
    bridge = np.linalg.solve([[1, 0.2], [0.2, 1.5]], [0.8, 0.5])
    for graph in (CHAIN, "x2->y; y->x1", nx.DiGraph([("y", "x1"), ("y", "x2")]), "anticausal-star"):
        assert_allclose(fit(graph, h).coef_, bridge, rtol=1e-12)
    for graph in ("x1->y; x2->y", "causal-star"):
        assert_allclose(fit(graph, h).coef_, [0.8, 1 / 3], rtol=1e-12)


def test_a_star_takes_the_unknown_covariance_with_the_target_from_the_features():
    """Y -> x1, Y -> x2 without an edge between them: Cov(x1, x2) = c1 c2 / v gives c2; a block ignores it."""
    h = WORKED.hide([("y", "x2")])
    c2 = 2 * 0.4 / 0.8
    expected = np.linalg.solve([[1, 0.4], [0.4, 1.5]], [0.8, c2])
    star = fit("anticausal-star", h)
    assert_allclose(star.coef_, expected, rtol=1e-12)
    assert star.implied_moments_.cov[0, 2] == pytest.approx(c2)
    assert_allclose(fit("anticausal", h).coef_, [0.8, 0], atol=1e-12)


def test_over_identified_graphs_are_refused_by_name_or_projected_away():
    with pytest.raises(InconsistentMomentsError, match=r"Cov\(x1, x2\) = 0\.4 .* implies 0\.2 "):
        fit(CHAIN, WORKED)
    with pytest.raises(NonlocalConstraintError, match=r"\(x2, x1\)"):
        fit(CHAIN, WORKED, nonlocal_="error")
    consistent = WORKED.cov.copy()
    consistent[1, 2] = consistent[2, 1] = 0.2
    model = fit(CHAIN, Moments.from_arrays(np.zeros(3), consistent, names=WORKED.names))
    assert_allclose(model.coef_, np.linalg.solve(consistent[1:, 1:], consistent[0, 1:]), rtol=1e-12)


# --- errors -----------------------------------------------------------------------------------------------------------


def rows_of(n=6, d=2):
    return np.random.default_rng(0).normal(size=(n, d))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: MergedRegressor("z").fit_moments(WORKED),
            CMaxEntError,
            r"no target 'z' among the variables y, x1, x2",
        ),
        (lambda: MergedRegressor().fit_moments(WORKED.cov), CMaxEntError, "takes Moments, not ndarray"),
        (
            lambda: MergedRegressor().fit_moments(
                Moments.from_arrays([0.3, 0], [[0.21, 0.1], [0.1, 1]], names=["y", "x"], kinds={"y": "binary"})
            ),
            CMaxEntError,
            "target y is binary: use MergedClassifier",
        ),
        (
            lambda: MergedRegressor().fit_moments(
                Moments.from_arrays([0, 0], [[1, 0.1], [0.1, np.nan]], names=["y", "x"])
            ),
            UnboundedEntropyError,
            "variance of x is unknown",
        ),
        (lambda: MergedRegressor(graph="up").fit_moments(WORKED), GraphError, "unknown graph 'up'"),
        (
            lambda: MergedRegressor(graph="x1->y; y->x1; x2->y").fit_moments(WORKED),
            GraphError,
            "x1 -> y -> x1|y -> x1 -> y",
        ),
        (lambda: MergedRegressor(graph="x1->y").fit_moments(WORKED), GraphError, "does not place x2"),
        (
            lambda: MergedRegressor(shrinkage=1.5).fit_moments(WORKED),
            CMaxEntError,
            "shrinkage has to lie in .* got 1.5",
        ),
        (lambda: MergedRegressor().fit(rows_of(), None), CMaxEntError, "the target y is None"),
        (lambda: MergedRegressor().fit(rows_of(), np.zeros(5)), CMaxEntError, "X has 6 rows but y has 5"),
        (lambda: MergedRegressor().fit(rows_of(1), np.zeros(1)), ValueError, "1 sample"),
        (
            lambda: MergedRegressor().fit(pd.DataFrame(rows_of(), columns=["y", "x"]), np.zeros(6)),
            CMaxEntError,
            "X has a column 'y'",
        ),
        (lambda: MergedRegressor().fit(rows_of(), np.arange(6.0), np.zeros(6)), CMaxEntError, "all zero"),
        (lambda: MergedRegressor().fit(rows_of(), [np.inf, *range(5)]), ValueError, "infinity"),
        (
            lambda: MergedRegressor().fit(rows_of()[:, [0, 0]], np.arange(6.0)),
            InfeasibleMomentsError,
            "x0, x1 are singular",
        ),
        (lambda: fit("causal", WORKED).predict(np.zeros((2, 3))), CMaxEntError, "3 features, but .* expecting 2"),
        (
            lambda: fit("causal", WORKED).predict(pd.DataFrame({"u": [1.0]})),
            CMaxEntError,
            "none of the features x1, x2; it has u",
        ),
        (
            lambda: fit("causal", WORKED).predict(pd.DataFrame({"x1": [np.inf]})),
            CMaxEntError,
            "column x1, row 0: infinite",
        ),
        (
            lambda: fit("causal", WORKED).predict(pd.DataFrame({"x1": [1.0, 2.0], "x2": ["3", "blue"]})),
            CMaxEntError,
            "column x2, row 1: 'blue' is not a number",
        ),
        *(
            (lambda k=k, v=v: MergedRegressor(**{k: v}).fit_moments(WORKED), CMaxEntError, rf"^{k}.*{v!r}")
            for k, v in [
                ("slack", -1),
                ("slack", "se"),
                ("slack", None),
                ("slack", np.nan),
                ("slack", np.inf),
                ("nonlocal_", "drop"),
                ("repair", "smooth"),
                ("shrinkage", -0.1),
                ("shrinkage", "auto"),
                ("shrinkage", np.nan),
            ]
        ),
        (lambda: MergedRegressor(slack=-1).fit(rows_of(), np.arange(6.0)), CMaxEntError, "slack .* got -1"),
        (lambda: MergedRegressor(slack=-1).partial_fit(rows_of(), np.arange(6.0)), CMaxEntError, "slack .* got -1"),
        (lambda: MergedRegressor(graph="up").partial_fit(rows_of(), np.arange(6.0)), GraphError, "unknown graph"),
        (lambda: fit("y--x1; x1->x2", WORKED, shrinkage=0.1), CMaxEntError, "y, which shares a block with x1"),
        (
            lambda: MergedRegressor().fit(coloured(), coloured_target()).predict(coloured().assign(colour="mauve")),
            CMaxEntError,
            "column colour, row 0: value 'mauve' is not among the levels blue, green, red",
        ),
    ],
)
def test_bad_input_is_one_line_that_names_what_is_wrong(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_nothing_is_predicted_or_saved_before_fitting(tmp_path):
    from sklearn.exceptions import NotFittedError

    for use in (
        lambda m: m.predict(rows_of()),
        lambda m: m.save(tmp_path / "r.npz"),
        lambda m: m.implied_moments_,
        lambda m: m.completed_cov_,
    ):
        with pytest.raises(NotFittedError):
            use(MergedRegressor())
    assert not (tmp_path / "r.npz").exists()
