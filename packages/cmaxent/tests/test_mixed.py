"""Discrete features: the conditional Gaussian law and both directions against brute force and known special cases."""

import warnings

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, logsumexp
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import BernoulliNB

from cmaxent import MergedClassifier, Moments
from cmaxent import directions as dr
from cmaxent.errors import (
    GraphError,
    InconsistentMomentsError,
    InfeasibleMomentsError,
    InfeasibleMomentsWarning,
    StateSpaceTooLargeError,
)
from cmaxent.graph import resolve_graph
from cmaxent.mixed import fit_mixed
from cmaxent.mixed_model import mixed_from_state


def fit(moments, graph, **options):
    t = dr.class_target(moments, "y")
    return fit_mixed(moments, t, resolve_graph(graph, moments.variables, "y"), **options)


def table(seed, n=3000, K=2):
    """Two binary features, a categorical and two continuous ones, all dependent."""
    rng = np.random.default_rng(seed)
    U = rng.normal(size=(5, 7)) @ rng.normal(size=(7, n))
    frame = pd.DataFrame({"z1": U[0] > 1, "x1": U[2] + 3 + 0.5 * U[0], "z2": U[1] > -0.5, "x2": 2 * U[3]})
    frame["c"] = pd.Categorical(np.array(["a", "b", "d"])[np.digitize(U[4], [-1, 1.5])])
    score = 0.8 * U[0] - 0.5 * U[2] + 0.7 * (frame.c == "a") + 0.6 * frame.z2 + rng.logistic(size=n) * 1.5
    frame["y"] = score > 0.7 if K == 2 else pd.Categorical(np.array(["p", "q", "r"])[np.digitize(score, [-0.5, 1])])
    return frame


HIDDEN = [
    [],
    [("z1", "x1")],
    [("z1", "z2")],
    [("z1", "c"), ("x1", "x2"), ("y", "c")],
    [("z1", "z2"), ("z1", "c"), ("y", "x2"), ("y", "z1"), ("z2", "x1")],
]


# --- the law ---------------------------------------------------------------------------------------------------------


def full_log_density(law, Y, X):
    """log p(features of the block | y) at rows X, by hand."""
    out = np.empty(len(X))
    for r in range(len(X)):
        s = int(np.flatnonzero((law.states == X[r, law.discrete]).all(axis=1))[0])
        k = Y[r] if len(law.log_p) > 1 else 0
        gap = X[r, law.continuous] - law.offset[k] - law.states[s] @ law.slopes
        out[r] = law.log_p[k, s] - 0.5 * gap @ np.linalg.solve(law.cov, gap)
    return out


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("K", [2, 3])
def test_anticausal_law_has_the_moments_and_the_exponential_form_without_terms_for_unknown_pairs(hidden, K):
    moments = Moments.from_data(table(0, K=K)).hide(hidden)
    t = dr.class_target(moments, "y")
    found = fit(moments, "anticausal")
    known = ~np.isnan(t.sigma)
    assert_allclose(found.cov[known], t.sigma[known], atol=1e-9)
    assert_allclose(found.C[t.observed], t.C[t.observed], atol=1e-10)
    # log p(y, z, x) lies in the span of 1, single coordinates, squares and products of *known* pairs: together with
    # the moments this characterises the law of largest entropy.
    (law,) = found.model.laws
    rng = np.random.default_rng(1)
    states = rng.integers(len(law.states), size=600)
    X, Y = np.empty((600, len(t.names))), rng.integers(K, size=600)
    X[:, law.discrete] = law.states[states]
    X[:, law.continuous] = t.mu[law.continuous] + 2 * rng.normal(size=(600, len(law.continuous)))
    log_p = full_log_density(law, Y, X) + np.log(t.pi)[Y]
    owner = [name.split("=")[0] for name in t.names]
    columns = [np.ones(600), *X.T, *(np.eye(K)[Y].T)]
    columns += [
        X[:, i] * X[:, j]
        for i in range(len(owner))
        for j in range(i + 1)
        if known[i, j] and (i == j or owner[i] != owner[j])
    ]
    columns += [X[:, i] * (k == Y) for i in np.flatnonzero(t.observed) for k in range(K)]
    design = np.column_stack(columns)
    gap = design @ np.linalg.lstsq(design, log_p, rcond=1e-12)[0] - log_p
    assert np.abs(gap).max() < 1e-8 * np.ptp(log_p)
    # and the logits are those of the density
    by_class = np.stack([full_log_density(law, np.full(600, k), X) + np.log(t.pi[k]) for k in range(K)], axis=1)
    assert_allclose(log_softmax(by_class, axis=1), found.model.log_proba(X), atol=1e-8)


@pytest.mark.parametrize("hidden", [[], [("z1", "z2")], [("y", "z2")], [("z1", "z2"), ("y", "z1")]])
def test_anticausal_discrete_law_maximises_entropy_over_tables(hidden):
    rng = np.random.default_rng(3)
    p = rng.dirichlet(np.full(12, 3.0)).reshape(2, 2, 3)  # y, z1, c
    rows = np.array([(y, z, *np.eye(3)[c]) for y in range(2) for z in range(2) for c in range(3)])
    mean = p.ravel() @ rows
    cov = (rows - mean).T @ (p.reshape(-1, 1) * (rows - mean))
    kinds = {"y": "binary", "z1": "binary", "z2": "categorical"}
    moments = Moments.from_arrays(mean, cov, names=["y", "z1", "z2=a", "z2=b", "z2=c"], kinds=kinds).hide(hidden)
    found = fit(moments, "anticausal")
    known = moments.known
    equations = [np.ones(12), *rows.T] + [rows[:, i] * rows[:, j] for i in range(5) for j in range(i) if known[i, j]]
    A = np.linalg.svd(np.array(equations))[2][: np.linalg.matrix_rank(np.array(equations))]  # independent equations
    brute = minimize(
        lambda q: float(np.sum(q * np.log(q))),
        p.ravel(),
        jac=lambda q: np.log(q) + 1,
        constraints={"type": "eq", "fun": lambda q: A @ (q - p.ravel()), "jac": lambda q: A},
        bounds=[(1e-9, 1)] * 12,
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    assert_allclose(found.entropy, -brute.fun, atol=1e-8)
    joint = brute.x.reshape(2, 6)
    assert_allclose(np.exp(found.model.log_proba(rows[:6, 1:])), (joint / joint.sum(axis=0)).T, atol=1e-5)


def test_causal_discrete_fit_maximises_the_two_entropies_one_after_the_other():
    rng = np.random.default_rng(5)
    p = rng.dirichlet(np.full(8, 4.0))
    rows = np.array([(y, a, b) for y in range(2) for a in range(2) for b in range(2)], dtype=float)
    mean = p @ rows
    moments = Moments.from_arrays(
        mean,
        (rows - mean).T @ (p[:, None] * (rows - mean)),
        names=["y", "a", "b"],
        kinds=dict.fromkeys("yab", "binary"),
    ).hide([("a", "b")])
    found = fit(moments, "causal")
    p_x = np.outer([1 - mean[1], mean[1]], [1 - mean[2], mean[2]]).ravel()  # independent: Cov(a, b) is unknown
    goal = np.array([p @ rows[:, 0], *(p @ (rows[:, [0]] * rows[:, 1:]))])
    A = np.column_stack([np.ones(4), rows[:4, 1:]]).T * p_x

    def negative_entropy(s):
        return float(p_x @ (s * np.log(s) + (1 - s) * np.log1p(-s)))

    brute = minimize(
        negative_entropy, np.full(4, 0.5), constraints={"type": "eq", "fun": lambda s: A @ s - goal},
        bounds=[(1e-6, 1 - 1e-6)] * 4, method="SLSQP", options={"ftol": 1e-15, "maxiter": 500},
    )  # fmt: skip
    assert_allclose(np.exp(found.model.log_proba(rows[:4, 1:]))[:, 1], brute.x, atol=1e-5)
    assert_allclose(found.entropy, -float(p_x @ np.log(p_x)) - brute.fun, atol=1e-8)


# --- special cases with another solver -------------------------------------------------------------------------------


@pytest.mark.parametrize("K", [2, 3])
@pytest.mark.parametrize("hidden", [[], [("x0", "x1")], [("y", "x2")], [("y", "x2"), ("x0", "x1")]])
def test_continuous_features_only_equals_the_closed_forms(K, hidden):
    rng = np.random.default_rng(K)
    X = rng.normal(size=(4000, 3)) @ rng.normal(size=(3, 3)) + 1
    y = (0.5 * X @ rng.normal(size=(3, K)) + rng.gumbel(size=(4000, K))).argmax(axis=1)
    frame = pd.DataFrame(X, columns=["x0", "x1", "x2"]).assign(y=pd.Categorical([f"c{k}" for k in y]))
    moments = Moments.from_data(frame).hide(hidden)
    t = dr.class_target(moments, "y")
    holes = X[:60].copy()
    holes[:30, 0] = holes[20:40, 2] = holes[35:50, 1] = np.nan
    for graph, closed in (("causal", dr.fit_causal), ("anticausal", dr.fit_anticausal)):
        a, b = fit(moments, graph), closed(t)
        assert_allclose(a.model.coef, b.model.coef, atol=1e-9)
        for got, want in ((a.cov, b.cov), (a.C, b.C), (a.entropy, b.entropy)):
            assert_allclose(got, want, atol=1e-9)
        assert_allclose(a.model.log_proba(X), b.model.log_proba(X), atol=1e-8)
        # three classes with missing causes: the closed forms use quasi-random points
        tolerance = 1e-3 if (graph, K) == ("causal", 3) else 1e-8
        assert_allclose(np.exp(a.model.log_proba(holes)), np.exp(b.model.log_proba(holes)), atol=tolerance)


def test_anticausal_star_of_binary_features_is_naive_bayes():
    rng = np.random.default_rng(0)
    y = rng.random(800) < 0.35
    Z = (rng.random((800, 20)) < np.where(y[:, None], rng.random(20), rng.random(20))).astype(int)
    frame = pd.DataFrame(Z.astype(bool), columns=[f"z{i}" for i in range(20)]).assign(y=y)
    pairs = [(f"z{i}", f"z{j}") for i in range(20) for j in range(i)]
    found = fit(Moments.from_data(frame).hide(pairs), "anticausal-star")  # 2^20 states, but 2 per feature
    peer = BernoulliNB(alpha=1e-12, force_alpha=True).fit(Z, y)
    assert_allclose(np.exp(found.model.log_proba(Z.astype(float))), peer.predict_proba(Z), atol=1e-8)


def test_anticausal_with_all_pairs_known_of_one_binary_and_one_continuous_feature_by_quadrature():
    moments = Moments.from_data(table(2)[["y", "z1", "x1"]])
    found = fit(moments, "anticausal")
    (law,) = found.model.laws
    pi = found.model.pi

    def density(k, z, x):
        m, sd = law.offset[k, 0] + z * law.slopes[0, 0], np.sqrt(law.cov[0, 0])
        return pi[k] * np.exp(law.log_p[k, int(z)]) * norm.pdf(x, m, sd)

    def integral(f):
        def integrand(x, k, z):
            return f(k, z, x) * density(k, z, x)

        return sum(
            quad(integrand, -30, 40, args=a, points=[3.0], limit=200)[0] for a in ((0, 0), (0, 1), (1, 0), (1, 1))
        )

    m = dict(zip(moments.names, moments.mean, strict=True))
    second = moments.cov + np.outer(moments.mean, moments.mean)
    at = moments.names.index
    assert_allclose(integral(lambda k, z, x: 1.0), 1.0, atol=1e-9)
    assert_allclose(integral(lambda k, z, x: k * x), second[at("y"), at("x1")], atol=1e-8)
    assert_allclose(integral(lambda k, z, x: z * x), second[at("z1"), at("x1")], atol=1e-8)
    assert_allclose(integral(lambda k, z, x: k * z), second[at("y"), at("z1")], atol=1e-8)
    assert_allclose(integral(lambda k, z, x: x), m["x1"], atol=1e-8)
    assert_allclose(integral(lambda k, z, x: -np.log(density(k, z, x) + 1e-300)), found.entropy, atol=1e-7)
    by_class = np.array([density(k, 1.0, 2.5) for k in (0, 1)])
    assert_allclose(np.exp(found.model.log_proba(np.array([[1.0, 2.5]])))[0], by_class / by_class.sum(), atol=1e-10)


@pytest.mark.parametrize("columns", [["z1"], ["z1", "z2"]])
def test_causal_with_binary_features_is_logistic_regression_where_p_x_is_the_empirical_law(columns):
    # One or two binary features with their own table: the maximum entropy law of X is the observed table, so that the
    # dual is the log-likelihood.
    frame = table(4)[["y", *columns]]
    found = fit(Moments.from_data(frame), "causal")
    peer = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000).fit(frame[columns].to_numpy(float), frame.y)
    assert_allclose(found.model.coef[1], peer.coef_[0], atol=1e-5)
    assert_allclose(found.model.intercept[1], peer.intercept_[0], atol=1e-5)


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("K", [2, 3])
def test_causal_fit_has_the_moments_and_a_law_of_x_that_ignores_y(hidden, K):
    moments = Moments.from_data(table(1, K=K)).hide(hidden)
    t = dr.class_target(moments, "y")
    found = fit(moments, "causal")
    assert found.residual < 1e-9
    assert_allclose(found.model.coef[:, ~t.observed], 0.0, atol=0)
    without = t.sigma * 1.0
    known = ~np.isnan(without)
    assert_allclose(found.cov[known], without[known], atol=1e-9)
    assert found.entropy <= fit(moments, "anticausal").entropy + 1e-9  # T5
    # Cov(X, Y) from draws of the fitted law
    X, _ = found.model.sample(400_000, np.random.default_rng(0))
    P = np.exp(found.model.log_proba(X))
    C = (X - X.mean(axis=0)).T @ (P - P.mean(axis=0)) / len(X)
    assert_allclose(C, found.C, atol=5 * np.sqrt(t.sigma.diagonal().max() / len(X)))


def test_causal_features_without_shared_moments_are_independent_and_the_moments_hold_by_quadrature():
    moments = Moments.from_data(table(6)[["y", "z1", "x1"]]).hide([("z1", "x1")])
    found = fit(moments, "causal")
    _, b = found.model.intercept
    bz, bx = found.model.coef[1]
    at = moments.names.index
    p, mu, sd = moments.mean[at("z1")], moments.mean[at("x1")], np.sqrt(moments.cov[at("x1"), at("x1")])

    def expectation(f):
        def integrand(x, z):
            return f(z, x) * expit(b + bz * z + bx * x) * norm.pdf(x, mu, sd)

        halves = [quad(integrand, mu - 12 * sd, mu + 12 * sd, args=(z,), limit=200)[0] for z in (0, 1)]
        return (1 - p) * halves[0] + p * halves[1]

    second = moments.cov + np.outer(moments.mean, moments.mean)
    assert_allclose(expectation(lambda z, x: 1.0), moments.mean[at("y")], atol=1e-9)
    assert_allclose(expectation(lambda z, x: z), second[at("y"), at("z1")], atol=1e-9)
    assert_allclose(expectation(lambda z, x: x), second[at("y"), at("x1")], atol=1e-8)


# --- missing values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", ["causal", "anticausal"])
@pytest.mark.parametrize("K", [2, 3])
def test_missing_values_are_integrated_out(graph, K):
    moments = Moments.from_data(table(7, K=K)[["z1", "x1", "c", "y"]])
    model = fit(moments, graph).model
    X, y = model.sample(200_000, np.random.default_rng(0))
    names = list(dr.class_target(moments, "y").names)
    for gone in (["x1"], ["z1", "x1"], ["x1", "c=a", "c=b", "c=d"]):
        holes = X.copy()
        holes[:, [names.index(n) for n in gone]] = np.nan
        P = np.exp(model.log_proba(holes))
        assert_allclose(P.sum(axis=1), 1.0, atol=1e-12)
        # the frequency of y among the rows that share the observed values
        for key, group in pd.DataFrame(P.round(10)).groupby(list(range(K))).indices.items():
            if len(group) > 2000:
                share = np.bincount(y[group], minlength=K) / len(group)
                assert_allclose(share, key, atol=4 * 0.5 / np.sqrt(len(group)))
    # one row in full detail, by brute force over the missing values
    row = X[:1].copy()
    row[0, names.index("z1")] = np.nan
    (law,) = model.laws
    log_joint = []
    for z in (0.0, 1.0):
        full = row.copy()
        full[0, names.index("z1")] = z
        marginal = np.array([np.exp(full_log_density(law, np.full(1, k), full))[0] for k in range(K)])
        posterior = np.exp(model.log_proba(full))[0]
        log_joint.append(np.log(posterior) + np.log(marginal @ model.pi if graph == "anticausal" else marginal[0]))
    want = logsumexp(log_joint, axis=0)
    assert_allclose(model.log_proba(row)[0], want - logsumexp(want), atol=1e-10)


@pytest.mark.parametrize("K", [2, 3])
def test_missing_continuous_cause_by_monte_carlo(K):
    moments = Moments.from_data(table(8, K=K))
    model = fit(moments, "causal").model
    names = dr.class_target(moments, "y").names
    (law,) = model.laws
    x1, x2 = names.index("x1"), names.index("x2")
    rng = np.random.default_rng(0)
    X, _ = model.sample(1, rng)
    s = int(np.flatnonzero((law.states == X[0, law.discrete]).all(axis=1))[0])
    place = {int(c): i for i, c in enumerate(law.continuous)}
    m, V = law.means()[0, s], law.cov
    a, b = place[x1], place[x2]
    mean = m[a] + V[a, b] / V[b, b] * (X[0, x2] - m[b])
    draws = np.repeat(X, 200_000, axis=0)
    draws[:, x1] = mean + np.sqrt(V[a, a] - V[a, b] ** 2 / V[b, b]) * rng.normal(size=len(draws))
    P = np.exp(model.log_proba(draws))
    X[0, x1] = np.nan
    assert_allclose(np.exp(model.log_proba(X))[0], P.mean(axis=0), atol=5 * P.std() / np.sqrt(len(P)))


# --- graphs, infeasible moments, files -------------------------------------------------------------------------------


def test_star_graphs_refuse_covariances_that_only_a_missing_edge_explains():
    moments = Moments.from_data(table(0)[["z1", "x1", "y"]])
    with pytest.raises(InconsistentMomentsError, match=r"no edge between z1 and x1.*z1--x1"):
        fit(moments, "anticausal-star")
    with pytest.raises(InconsistentMomentsError, match="independent, which implies the correlation"):
        fit(moments, "causal-star")
    hidden = moments.hide([("z1", "x1")])
    star, block = fit(hidden, "causal-star"), fit(hidden, "causal")
    assert_allclose(star.model.coef, block.model.coef, atol=1e-9)  # nothing known: independent anyway
    star, block = fit(hidden, "anticausal-star"), fit(hidden, "anticausal")
    assert_allclose(star.model.coef, block.model.coef, atol=1e-7)
    assert_allclose(star.entropy, block.entropy, atol=1e-9)


def test_other_graphs_are_refused():
    moments = Moments.from_data(table(0)[["z1", "x1", "y"]])
    with pytest.raises(GraphError, match="kinds='continuous' or use CMaxEnt"):
        fit(moments, "z1->y; y->x1")


def test_too_many_states_are_counted_in_the_error():
    p = 17
    names = [*(f"z{i}" for i in range(p)), "y"]
    moments = Moments.from_arrays(
        np.full(p + 1, 0.5), np.eye(p + 1) / 4, names=names, kinds=dict.fromkeys(names, "binary")
    )
    with pytest.raises(StateSpaceTooLargeError, match=r"131072 joint states.*kinds='continuous'.*p_x='empirical'"):
        fit(moments, "causal")


def pair(p_z, p_y, both, extra=None):
    c = both - p_z * p_y
    cov = [[p_z * (1 - p_z), c], [c, p_y * (1 - p_y)]]
    return Moments.from_arrays([p_z, p_y], cov, names=["z", "y"], kinds={"z": "binary", "y": "binary"})


@pytest.mark.parametrize("graph", ["causal", "anticausal", "anticausal-star"])
@pytest.mark.parametrize("both", [0.305, 0.3])  # P(z=1, y=0) = P(z) - both is negative, then zero
def test_impossible_tables_and_their_boundary_raise_or_are_moved(graph, both):
    moments = pair(0.3, 0.6, both)
    with pytest.raises(InfeasibleMomentsError, match="z") as caught:
        fit(moments, graph)
    assert caught.value.report.conflicting == ("y", "z")
    for mode in ("ridge", "boundary"):
        with pytest.warns(InfeasibleMomentsWarning):
            found = fit(moments, graph, on_infeasible=mode)
        assert found.slack_used
        assert np.isfinite(found.model.coef).all()
        assert found.model.coef[1, 0] > 2.0
    if both == 0.3:
        assert_allclose(found.C[0, 1], np.sqrt(0.98) * 0.12, atol=1e-6)


def test_infeasible_three_way_table_names_the_variables():
    # every pair is possible, but three variables cannot all be pairwise that negatively correlated
    names = ["a", "b", "c", "y"]
    cov = np.full((4, 4), -0.15)
    cov[3] = cov[:, 3] = 0.0
    np.fill_diagonal(cov, 0.25)
    moments = Moments.from_arrays(np.full(4, 0.5), cov, names=names, kinds=dict.fromkeys(names, "binary"))
    with pytest.raises(InfeasibleMomentsError, match=r"a.*b.*c"):
        fit(moments, "causal")


@pytest.mark.parametrize("graph", ["causal", "anticausal"])
def test_discrete_means_that_contradict_covariances_with_a_continuous_feature(graph):
    # no 2 x 2 table of (a, b), of unknown covariance, leaves x enough variance, although a normal (a, b, x) exists
    cov = np.array([[0.24, np.nan, 0.45], [np.nan, 0.09, -0.27], [0.45, -0.27, 1.0]])
    cov = np.block([[cov, np.zeros((3, 1))], [np.zeros((1, 3)), np.full((1, 1), 0.25)]])
    names = ["a", "b", "x", "y"]
    moments = Moments.from_arrays([0.4, 0.1, 0, 0.5], cov, names=names, kinds=dict.fromkeys("aby", "binary"))
    with pytest.raises(InfeasibleMomentsError, match=r"no law of .*a, b, x has these moments"):
        fit(moments, graph)


def test_redundant_features_are_named():
    frame = table(0)[["y", "z1", "z2"]].assign(z3=lambda f: ~f.z1)
    with pytest.raises(InfeasibleMomentsError, match="z1, z3 are redundant"):
        fit(Moments.from_data(frame), "causal")


def test_structural_zero_between_causes_is_no_obstacle():
    # a and b exclude each other: p(x) has three states
    p = np.array([0.5, 0.3, 0.2])
    X = np.array([[0, 0], [1, 0], [0, 1]], dtype=float)
    s = np.array([0.3, 0.6, 0.8])
    rows = np.column_stack([X, s])
    mean = p @ rows
    cov = (rows - mean).T @ (p[:, None] * (rows - mean))
    cov[2, 2] = mean[2] * (1 - mean[2])
    moments = Moments.from_arrays(mean, cov, names=["a", "b", "y"], kinds=dict.fromkeys(["a", "b", "y"], "binary"))
    found = fit(moments, "causal")
    assert_allclose(np.exp(found.model.log_proba(X))[:, 1], s, atol=1e-8)
    assert_allclose(np.exp(found.model.log_proba(np.array([[1.0, np.nan]])))[0, 1], 0.6, atol=1e-8)
    other = fit(moments, "anticausal")
    assert_allclose(np.exp(other.model.log_proba(X))[:, 1], s, atol=1e-6)


def test_causal_infeasibility_with_a_strong_gaussian_cause():
    kinds = {"z": "binary", "y": "binary"}
    cov = np.array([[0.24, 0.0, 0.05], [0.0, 1.0, 0.395], [0.05, 0.395, 0.25]])
    moments = Moments.from_arrays([0.4, 0.0, 0.5], cov, names=["z", "x", "y"], kinds=kinds)
    with pytest.raises(InfeasibleMomentsError, match="dual has no minimum"):
        fit(moments, "causal")
    with pytest.warns(InfeasibleMomentsWarning):
        found = fit(moments, "causal", on_infeasible="boundary")
    ratio = found.C[:, 1] / cov[:2, 2]
    assert_allclose(ratio, ratio[0], rtol=1e-6)
    assert 0.9 < ratio[0] < 1
    with pytest.warns(InfeasibleMomentsWarning):
        assert fit(moments, "causal", on_infeasible="ridge").slack_used


@pytest.mark.parametrize("graph", ["causal", "anticausal"])
def test_slack_of_continuous_features_equals_the_closed_forms(graph):
    moments = Moments.from_data(table(3)[["x1", "x2", "y"]])
    t = dr.class_target(moments, "y")
    closed = dr.fit_causal if graph == "causal" else dr.fit_anticausal
    assert_allclose(fit(moments, graph, slack=0.05).model.coef, closed(t, slack=0.05).model.coef, atol=1e-8)


@pytest.mark.parametrize("graph", ["causal", "anticausal", "anticausal-star"])
def test_slack_shrinks_coefficients_and_leaves_means_and_features_alone(graph):
    moments = Moments.from_data(table(3)).hide([("z1", "z2")])
    if graph == "anticausal-star":
        moments = moments.hide(
            [(a, b) for a in moments.variables for b in moments.variables if "y" not in (a, b) and a != b]
        )
    exact, soft = fit(moments, graph), fit(moments, graph, slack=0.1)
    assert np.abs(soft.C).sum() < np.abs(exact.C).sum()
    t = dr.class_target(moments, "y")
    known = ~np.isnan(t.sigma)
    assert_allclose(soft.cov[known], t.sigma[known], atol=1e-8)
    X, _ = soft.model.sample(200_000, np.random.default_rng(0))
    assert_allclose(np.exp(soft.model.log_proba(X)).mean(axis=0), t.pi, atol=0.005)


def test_affine_changes_of_continuous_features_change_nothing():
    frame = table(9)
    moved = frame.assign(x1=1e3 * frame.x1 + 1e4, x2=-0.01 * frame.x2)
    for hidden in HIDDEN:
        for graph in ("causal", "anticausal"):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                a, b = (fit(Moments.from_data(f).hide(hidden), graph) for f in (frame, moved))
            X = a.model.sample(200, np.random.default_rng(0))[0]
            names = dr.class_target(Moments.from_data(frame), "y").names
            Z = X.copy()
            Z[:, names.index("x1")] = 1e3 * X[:, names.index("x1")] + 1e4
            Z[:, names.index("x2")] *= -0.01
            assert_allclose(a.model.log_proba(X), b.model.log_proba(Z), atol=1e-6)
            Z[:, names.index("x2")] = X[:, names.index("x2")] = np.nan
            assert_allclose(a.model.log_proba(X), b.model.log_proba(Z), atol=1e-6)


def test_state_round_trip():
    moments = Moments.from_data(table(0))
    for graph in ("causal", "anticausal"):
        model = fit(moments, graph).model
        again = mixed_from_state(model.state())
        X, _ = model.sample(50, np.random.default_rng(0))
        X[:20, 0] = X[10:30, 1] = np.nan
        assert_allclose(again.log_proba(X), model.log_proba(X), atol=0)


def test_estimator_takes_mixed_tables():
    frame = table(0)
    merged = MergedClassifier(graph="causal").fit(frame.drop(columns="y"), frame.y)
    peer_design = np.column_stack([frame[["z1", "x1", "z2", "x2"]].astype(float), frame.c == "a", frame.c == "b"])
    peer = LogisticRegression(C=np.inf, max_iter=10_000).fit(peer_design, frame.y)
    gap = merged.predict_proba(frame.drop(columns="y"))[:, 1] - peer.predict_proba(peer_design)[:, 1]
    assert np.abs(gap).mean() < 0.02  # same moments, another law of X
    assert merged.residual_ < 1e-9
    assert merged.predict_proba(frame[["z1", "x2"]].iloc[:5]).shape == (5, 2)
