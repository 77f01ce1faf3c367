"""General causal orders: factors, moments and predictions against models whose moments are integrated by hand."""

from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.integrate import quad
from scipy.optimize import minimize, root
from scipy.special import expit, log_expit, log_softmax, softmax
from scipy.stats import norm

from cmaxent import (
    CMaxEnt,
    GraphError,
    InconsistentMomentsError,
    InfeasibleMomentsError,
    InfeasibleMomentsWarning,
    MergedClassifier,
    Moments,
    NonlocalConstraintError,
    StateSpaceTooLargeError,
    UnboundedEntropyError,
    load,
)
from cmaxent.chain import fit_chain
from cmaxent.graph import resolve_graph

few = settings(max_examples=10, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
Z = np.linspace(-9, 9, 241)  # the trapezoid rule on a smooth density is exact to rounding
W = norm.pdf(Z) / norm.pdf(Z).sum()
FINE = np.linspace(-12, 12, 4801)
FINE_W = norm.pdf(FINE) / norm.pdf(FINE).sum()


def binary(mean, cov, names, y="y", n=None):
    return Moments.from_arrays(mean, cov, names=names, kinds={y: "binary"}, n=n)


def factor_of(fit, variable):
    return next(f for f in fit.factors if variable in f.variables)


def pick(moments, a, b):
    return moments.cov[moments.names.index(a), moments.names.index(b)]


def logit_law(m, tau):
    """E s(m + tau Z) and E Z s(m + tau Z)."""
    p = FINE_W * expit(m + tau * FINE)
    return p.sum(), p @ FINE


def causal_by_hand(pi, mu, sigma, c):
    """Intercept and slopes of P(y=1|x) for Gaussian x: two equations in two unknowns."""
    direction = np.linalg.solve(sigma, c)
    q = c @ direction

    def gap(theta):
        p, zp = logit_law(*theta)
        return p - pi, zp - np.sqrt(q)

    m, tau = root(gap, [np.log(pi / (1 - pi)), np.sqrt(q) / (pi * (1 - pi))], tol=1e-12).x
    slopes = tau / np.sqrt(q) * direction
    return m - slopes @ mu, slopes


class Truth:
    """A causal model with one binary y: linear-Gaussian variables and one logistic mechanism; its exact moments.

    ``weights``: variable -> {parent: coefficient}, in causal order; y's are those of its log odds.
    """

    def __init__(self, weights, intercept, noise):
        self.weights, self.intercept, self.noise = weights, intercept, noise
        self.names = list(weights)
        p = len(self.names)
        mean, cov = np.zeros(p), np.zeros((p, p))
        for i, v in enumerate(self.names):
            b = np.array([weights[v].get(u, 0.0) for u in self.names[:i]])
            known = cov[:i, :i]
            if v == "y":
                m, tau = intercept[v] + b @ mean[:i], np.sqrt(b @ known @ b)
                mean[i], slope = logit_law(m, tau)
                cov[i, i] = mean[i] * (1 - mean[i])
                cov[i, :i] = known @ b / tau * slope if tau > 0 else 0.0
            else:
                mean[i] = intercept[v] + b @ mean[:i]
                cov[i, :i] = known @ b
                cov[i, i] = b @ known @ b + noise[v]
            cov[:i, i] = cov[i, :i]
        self.mean, self.cov = mean, cov

    @property
    def graph(self):
        return "; ".join(f"{u}->{v}" for v, parents in self.weights.items() for u in parents)

    def moments(self, keep=()):
        """The moments of the pairs that an edge joins, and of those in ``keep``."""
        m = binary(self.mean, self.cov, self.names)
        local = {frozenset((u, v)) for v, pa in self.weights.items() for u in pa} | {frozenset(k) for k in keep}
        pairs = [(u, v) for i, u in enumerate(self.names) for v in self.names[:i] if frozenset((u, v)) not in local]
        return m.hide(pairs)

    def log_density(self, values):
        total = 0.0
        for v, parents in self.weights.items():
            eta = self.intercept[v] + sum(b * values[u] for u, b in parents.items())
            if v == "y":
                total = total + log_expit(np.where(values["y"] == 1, eta, -eta))
            else:
                total = total + norm.logpdf(values[v], eta, np.sqrt(self.noise[v]))
        return total

    def posterior(self, seen):
        """P(y=1 | seen): the factors multiplied on a grid of what is missing, and summed."""
        missing = [v for v in self.names if v != "y" and v not in seen]
        axes = []
        for k, v in enumerate(missing):
            i = self.names.index(v)
            axis = self.mean[i] + np.sqrt(self.cov[i, i]) * np.linspace(-9, 9, 301 if len(missing) > 1 else 2001)
            axes.append(axis.reshape([-1 if j == k else 1 for j in range(len(missing))]))
        values = {**seen, **dict(zip(missing, axes, strict=True))}
        mass = [np.exp(self.log_density({**values, "y": y})).sum() for y in (0, 1)]
        return mass[1] / sum(mass)


def family(seed=None):
    """Parents p -> q of y, children c and h, and a grandchild g of y by c."""
    rng = np.random.default_rng(seed)
    arrows = {"p": [], "q": ["p"], "y": ["p", "q"], "c": ["p", "y"], "h": ["y"], "g": ["q", "c"]}
    weights = {
        v: dict(zip(pa, rng.uniform(0.3, 1.2, len(pa)) * rng.choice([-1, 1], len(pa)), strict=True))
        for v, pa in arrows.items()
    }
    return Truth(
        weights,
        dict(zip(arrows, rng.normal(size=6) * 0.7, strict=True)),
        dict(zip(arrows, rng.uniform(0.4, 2, 6), strict=True)),
    )


# --- the worked chain -------------------------------------------------------------------------------------------------

V = 0.35 * 0.65
WORKED = binary([0.35, 0, 0], [[V, 0.2, 0.3], [0.2, 1, 0.4], [0.3, 0.4, 2]], ["y", "x1", "x2"])
WORKED_GRAPH = "x1->y; y->x2; x1->x2"


def test_worked_chain_has_the_numbers_that_regression_and_quadrature_give():
    fit = fit_chain(WORKED, WORKED_GRAPH)
    gate = factor_of(fit, "y")
    assert_allclose([gate.intercept, *gate.coef], [-0.76366558, 1.07629913], atol=5e-9)
    intercept, slopes = causal_by_hand(0.35, np.zeros(1), np.eye(1), np.array([0.2]))
    assert_allclose([gate.intercept, *gate.coef], [intercept, *slopes], atol=1e-10)

    effect = factor_of(fit, "x2")
    assert effect.parents == ("y", "x1")
    assert_allclose(effect.slopes[0], [1.17333333, 0.16533333], atol=5e-9)
    assert effect.cov[0, 0] == pytest.approx(1.58186667, abs=5e-9)
    normal = np.linalg.lstsq(WORKED.cov[:2, :2], WORKED.cov[:2, 2], rcond=None)[0]
    assert_allclose(effect.slopes[0], normal, atol=1e-12)

    model = MergedClassifier(graph=WORKED_GRAPH).fit_moments(WORKED)
    assert_allclose([model.intercept_[0], *model.coef_[0]], [-0.89421178, 0.95366483, 0.74173972], atol=5e-9)
    # Bayes by hand: the gate's log odds plus the log ratio of two normals for x2
    for x1, x2 in [(0.0, 0.0), (1.3, -0.4), (-2.0, 3.0)]:
        odds = intercept + slopes[0] * x1
        centre = [normal[0] * (y - 0.35) + normal[1] * x1 for y in (0, 1)]
        odds += np.subtract(*norm.logpdf(x2, centre, np.sqrt(effect.cov[0, 0]))[::-1])
        assert model.decision_function([[x1, x2]])[0] == pytest.approx(odds, abs=1e-9)
    assert fit.residual < 1e-12
    assert_allclose(fit.moments.cov, WORKED.cov, atol=1e-12)


def test_entropy_is_the_sum_of_the_integrated_conditional_entropies():
    intercept, slopes = causal_by_hand(0.35, np.zeros(1), np.eye(1), np.array([0.2]))

    def uncertainty(z):
        eta = intercept + slopes[0] * z
        return -(expit(eta) * log_expit(eta) + expit(-eta) * log_expit(-eta)) * norm.pdf(z)

    of_y = quad(uncertainty, -12, 12, epsabs=1e-12)[0]
    expected = 0.5 * np.log(2 * np.pi * np.e) + of_y + 0.5 * np.log(2 * np.pi * np.e * 1.58186666666667)
    assert fit_chain(WORKED, WORKED_GRAPH).entropy == pytest.approx(expected, abs=1e-9)
    assert MergedClassifier(graph=WORKED_GRAPH).fit_moments(WORKED).entropy_ == pytest.approx(expected, abs=1e-9)


def test_multipliers_are_the_coefficients_of_the_log_density():
    """log p(u, w | r, y) = sum of lambda f + const: read off by second differences, which are exact on a quadratic."""
    A = np.random.default_rng(5).normal(size=(4, 7))
    cov = A @ A.T / 7
    cov[0] *= 0.5 / np.sqrt(cov[0, 0])
    cov[:, 0] = cov[0]
    cov[0, 0] = 0.25
    fit = fit_chain(binary([0.5, 1, 2, 3], cov, ["y", "r", "u", "w"]), "y->r; y->u; y->w; r->u; r->w; u--w")
    K = np.linalg.inv(cov)  # the coefficients of a Gaussian regression on everything before

    def log_density(y, r, u, w):
        at = np.array([y, r, u, w]) - [0.5, 1, 2, 3]
        return -0.5 * at @ K @ at

    origin = np.array([0.0, 0.3, -0.2, 0.1])
    unit = dict(zip("yruw", np.eye(4), strict=True))
    for a, b in ("yu", "yw", "ru", "rw", "uw", "uu", "ww"):
        at = (origin, origin + unit[a], origin + unit[b], origin + unit[a] + unit[b])
        mixed = np.dot([1, -1, -1, 1], [log_density(*x) for x in at])
        assert fit.multipliers[f"E[{a} {b}]"] == pytest.approx(mixed / (2 if a == b else 1), rel=1e-9)


# --- a family: parents, children, grandchildren -----------------------------------------------------------------------


@few
@given(seeds)
def test_family_of_y_is_recovered_from_the_moments_of_its_mechanisms_alone(seed):
    truth = family(seed)
    fit = fit_chain(truth.moments(), truth.graph)
    for v, parents in truth.weights.items():
        factor = factor_of(fit, v)
        assert set(factor.parents) == set(parents)
        weights = factor.coef if v == "y" else factor.slopes[0]
        assert_allclose(weights, [parents[u] for u in factor.parents], atol=1e-8)
        assert_allclose(factor.intercept, truth.intercept[v], atol=1e-8)
        if v != "y":
            assert_allclose(factor.cov[0, 0], truth.noise[v], rtol=1e-8)
    # What nobody gave, the graph implies.
    assert_allclose(fit.moments.cov, truth.cov, atol=1e-8 * np.abs(truth.cov).max())
    assert fit.residual < 1e-9 * np.abs(truth.cov).max()


@few
@given(seeds)
def test_log_odds_in_a_family_are_bayes_rule_over_gate_and_child_densities(seed):
    truth = family(seed)
    model = MergedClassifier(graph=truth.graph).fit_moments(truth.moments())
    features = list(model.feature_names_in_)
    rows = np.random.default_rng(seed).normal(size=(6, 5)) * 1.5
    odds = [
        float(truth.log_density({**seen, "y": 1}) - truth.log_density({**seen, "y": 0}))
        for seen in (dict(zip(features, row, strict=True)) for row in rows)
    ]
    assert_allclose(model.decision_function(rows), odds, rtol=1e-7, atol=1e-7)
    # A grandchild says nothing about y once its parents are known.
    assert abs(model.coef_[0, features.index("g")]) < 1e-9


@pytest.mark.parametrize(
    "missing", ["p", "q", "c", "g", "h", "pq", "pc", "pg", "qg", "cg", "ch"], ids=lambda names: "+".join(names)
)
def test_prediction_with_missing_features_is_the_integral_of_the_factorised_density(missing):
    for seed in (0, 1):
        truth = family(seed)
        model = MergedClassifier(graph=truth.graph).fit_moments(truth.moments())
        features = list(model.feature_names_in_)
        row = truth.mean[[truth.names.index(v) for v in features]] + np.random.default_rng(seed).normal(size=5)
        row[[features.index(v) for v in missing]] = np.nan
        seen = {v: x for v, x in zip(features, row, strict=True) if not np.isnan(x)}
        assert model.predict_proba(row[None])[0, 1] == pytest.approx(truth.posterior(seen), abs=1e-8)


def test_nothing_but_one_descendant_still_predicts_and_nothing_at_all_gives_the_prior():
    truth = family(2)
    model = MergedClassifier(graph=truth.graph).fit_moments(truth.moments())
    features = list(model.feature_names_in_)
    rows = np.full((2, 5), np.nan)
    rows[0, features.index("h")] = 0.8
    got = model.predict_proba(rows)[:, 1]
    pi = truth.mean[truth.names.index("y")]
    likelihood = [
        norm.pdf(0.8, truth.intercept["h"] + truth.weights["h"]["y"] * y, np.sqrt(truth.noise["h"])) for y in (0, 1)
    ]
    assert got[0] == pytest.approx(pi * likelihood[1] / (pi * likelihood[1] + (1 - pi) * likelihood[0]), abs=1e-10)
    assert got[1] == pytest.approx(pi, abs=1e-10)


def test_joint_log_density_is_the_sum_of_the_mechanisms():
    truth = family(3)
    model = CMaxEnt(truth.graph).fit_moments(truth.moments())
    rng = np.random.default_rng(0)
    values = {v: rng.normal(size=20) for v in truth.names} | {"y": rng.integers(0, 2, 20)}
    assert_allclose(model.log_prob(values), truth.log_density(values), atol=1e-6)
    assert_allclose(model.implied_moments().cov, truth.cov, atol=1e-7)


def test_consistent_moments_of_pairs_without_a_mechanism_change_nothing(tmp_path):
    truth = family(4)
    spare = [("h", "p"), ("h", "q"), ("h", "c")]  # E[ancestor | y] is linear in y
    lean, rich = truth.moments(), truth.moments(keep=spare)
    assert (rich.known.sum() - lean.known.sum()) // 2 == 3
    one, two = (MergedClassifier(graph=truth.graph).fit_moments(m) for m in (lean, rich))
    assert_allclose(two.coef_, one.coef_, atol=1e-8)
    assert two.residual_ < 1e-7
    two.save(tmp_path / "m.npz")
    rows = np.array([[0.1, np.nan, 0.3, -1, np.nan], [1, 2, 0, 0.5, 0.2]])
    seen = dict(zip(two.feature_names_in_, rows[0], strict=True))
    expected = truth.posterior({v: x for v, x in seen.items() if not np.isnan(x)})
    assert load(tmp_path / "m.npz").predict_proba(rows)[0, 1] == pytest.approx(expected, abs=1e-7)


# --- graphs that are one of the two directions ------------------------------------------------------------------------


@few
@given(seeds)
def test_complete_orders_before_or_after_y_are_the_block_directions(seed):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(3, 6))
    sigma, pi, mu = A @ A.T / 6 + 0.1 * np.eye(3), rng.uniform(0.15, 0.85), rng.normal(size=3)
    c = rng.normal(size=3)
    c *= np.sqrt(0.5 * norm.pdf(norm.ppf(pi)) ** 2 / (c @ np.linalg.solve(sigma, c)))
    v = pi * (1 - pi)
    m = binary(np.r_[pi, mu], np.block([[v, c[None]], [c[:, None], sigma]]), ["y", "a", "b", "c"])

    intercept, slopes = causal_by_hand(pi, mu, sigma, c)
    into = "a->y; b->y; c->y"
    for graph in (
        "causal",
        f"{into}; a->b; a->c; b->c",
        f"{into}; c->a; c->b; b->a",
        f"{into}; a--b; a->c; b->c",
        f"{into}; a--b--c",
    ):
        model = MergedClassifier(graph=graph).fit_moments(m)
        assert_allclose([*model.intercept_, *model.coef_[0]], [intercept, *slopes], rtol=1e-7, atol=1e-7)

    within, delta = sigma - np.outer(c, c) / v, c / v
    weights = np.linalg.solve(within, delta)
    bias = np.log(pi / (1 - pi)) - (2 * mu + (1 - 2 * pi) * delta) @ weights / 2
    out = "y->a; y->b; y->c"
    for graph in (
        "anticausal",
        f"{out}; a->b; a->c; b->c",
        f"{out}; b->c; b->a; c->a",
        f"{out}; a--b; a->c; b->c",
        f"{out}; a--b--c",
    ):
        model = MergedClassifier(graph=graph).fit_moments(m)
        assert_allclose([*model.intercept_, *model.coef_[0]], [bias, *weights], rtol=1e-7, atol=1e-7)


def test_block_written_with_edges_completes_like_the_named_direction():
    cov = np.array([[0.24, 0.18, 0.10, -0.12], [0.18, 1, 0.5, np.nan], [0.10, 0.5, 1, -0.3], [-0.12, np.nan, -0.3, 1]])
    m = binary([0.4, 0, 0, 0], cov, ["y", "a", "b", "c"])

    def loss(t):  # the entropy of (y, x) over the unknown covariance
        M = np.where(np.isnan(cov), t, cov)
        return -np.linalg.slogdet(M)[1]

    bridged = minimize(loss, [0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-15}).x[0]
    assert bridged == pytest.approx(-0.200869565217, abs=1e-6)
    K = np.linalg.inv(np.where(np.isnan(cov), -0.200869565217, cov))
    for graph in (
        "y->a; y->b; y->c; a--b--c",
        [("y", "a"), ("y", "b"), ("y", "c"), ("a", "--", "b"), ("b", "--", "c")],
    ):
        model = MergedClassifier(graph=graph).fit_moments(m)
        assert_allclose(model.coef_[0], -K[0, 1:], atol=1e-9)
    model = MergedClassifier(graph="a->y; b->y; c->y; a--b--c").fit_moments(m)
    filled = np.where(np.isnan(cov), 0.5 * -0.3, cov)  # a independent of c given b, without looking at y
    intercept, slopes = causal_by_hand(0.4, np.zeros(3), filled[1:, 1:], cov[0, 1:])
    assert_allclose([*model.intercept_, *model.coef_[0]], [intercept, *slopes], atol=1e-8)


# --- stars ------------------------------------------------------------------------------------------------------------


def test_star_of_independent_causes_meets_its_moments_under_quadrature():
    pi, mu, s, c = 0.3, np.array([1.0, -2.0]), np.array([2.0, 1.0]), np.array([0.25, -0.1])
    cov = np.block([[pi * (1 - pi), c[None]], [c[:, None], np.where(np.eye(2), np.diag(s), np.nan)]])
    m = binary([pi, *mu], cov, ["y", "a", "b"])
    model = MergedClassifier(graph="causal-star").fit_moments(m)
    # The dual is convex: the logistic law whose moments under independent normals are the given ones is the solution.
    a, b = mu[0] + np.sqrt(s[0]) * Z[:, None], mu[1] + np.sqrt(s[1]) * Z[None]
    mass = np.outer(W, W) * expit(model.intercept_[0] + model.coef_[0, 0] * a + model.coef_[0, 1] * b)
    assert mass.sum() == pytest.approx(pi, abs=1e-12)
    assert_allclose([(mass * (a - mu[0])).sum(), (mass * (b - mu[1])).sum()], c, atol=1e-12)
    assert model.completed_cov_[0, 1] == 0
    for graph in ("a->y; b->y", nx.DiGraph([("a", "y"), ("b", "y")])):
        assert_allclose(MergedClassifier(graph=graph).fit_moments(m).coef_, model.coef_, rtol=1e-12)


def test_star_of_effects_is_naive_bayes_with_gaussian_features():
    rng = np.random.default_rng(0)
    pi, delta, within, mu = 0.35, rng.normal(size=4), rng.uniform(0.5, 2, 4), rng.normal(size=4)
    v = pi * (1 - pi)
    spread = np.where(np.eye(4), np.diag(within + v * delta**2), np.nan)
    m = binary([pi, *mu], np.block([[v, v * delta[None]], [v * delta[:, None], spread]]), ["y", *"abcd"])
    model = MergedClassifier(graph="anticausal-star").fit_moments(m)
    rows = rng.normal(size=(8, 4)) * 2
    rows[2, 1] = rows[3, :3] = np.nan
    log_ratio = norm.logpdf(rows, mu + (1 - pi) * delta, np.sqrt(within)) - norm.logpdf(
        rows, mu - pi * delta, np.sqrt(within)
    )
    expected = np.log(pi / (1 - pi)) + np.nansum(log_ratio, axis=1)
    assert_allclose(model.decision_function(rows), expected, atol=1e-10)
    implied = model.implied_moments_.cov[1:, 1:]
    assert_allclose(implied - np.diag(implied.diagonal()), v * (np.outer(delta, delta) - np.diag(delta**2)), atol=1e-12)


@pytest.mark.parametrize("unseen", ["x1", "x2"])
def test_star_infers_the_unknown_effect_of_y_through_the_features_where_a_block_ignores_it(unseen):
    """Also when the feature without a covariance with y comes first in the table."""
    seen = {"x1": "x2", "x2": "x1"}[unseen]
    v, c1 = 0.24, 0.18
    cov = np.array([[v, c1, np.nan], [c1, 1, 0.3], [np.nan, 0.3, 1]])
    m = binary([0.4, 0, 0], cov, ["y", seen, unseen]).subset(["y", "x1", "x2"])
    at = [0, 1] if seen == "x1" else [1, 0]
    star = MergedClassifier(graph="anticausal-star").fit_moments(m)
    assert pick(star.implied_moments_, "y", unseen) == pytest.approx(v * 0.3 / c1, abs=1e-12)
    assert_allclose(star.coef_[0, at], [0.8670520231, 5.0], atol=1e-9)
    delta = np.array([c1 / v, 0.3 / (v * (c1 / v))])
    assert_allclose(star.coef_[0, at], delta / (1 - v * delta**2), rtol=1e-10)
    block = MergedClassifier(graph="anticausal").fit_moments(m)
    assert pick(block.implied_moments_, "y", unseen) == pytest.approx(0.3 * c1, abs=1e-12)
    assert_allclose(block.coef_[0, at], [0.8670520231, 0], atol=1e-9)


def test_star_needs_a_smaller_correlation_of_the_features_than_that_with_y():
    r1 = 0.18**2 / 0.24  # squared correlation of x1 with y
    for share, feasible in ((0.98, True), (1.02, False)):
        cov = np.array([[0.24, 0.18, np.nan], [0.18, 1, r := np.sqrt(share * r1)], [np.nan, r, 1]])
        m = binary([0.4, 0, 0], cov, ["y", "x1", "x2"])
        if feasible:
            coef = MergedClassifier(graph="anticausal-star").fit_moments(m).coef_[0, 1]
            delta = r / 0.18
            assert coef == pytest.approx(delta / (1 - 0.24 * delta**2), rel=1e-9)
        else:
            with pytest.raises(InfeasibleMomentsError, match="x2 would be a deterministic function of y"):
                MergedClassifier(graph="anticausal-star").fit_moments(m)


# --- unknown pairs: natural parameters --------------------------------------------------------------------------------


def random_covariance(rng, p):
    A = rng.normal(size=(p, p + 4))
    return A @ A.T / (p + 4)


def most_entropic_effects(joint, p, start, equalities=()):
    """Maximise logdet Cov(effects | causes) over the unknown entries, Cov(causes) = joint[:p, :p] held."""
    rows, cols = np.nonzero(np.triu(np.isnan(joint), 1))

    def filled(theta):
        M = joint.copy()
        M[rows, cols] = M[cols, rows] = theta
        return M

    def loss(theta):
        M = filled(theta)
        if np.linalg.eigvalsh(M)[0] <= 0:
            return np.inf, np.zeros(len(theta))
        return -np.linalg.slogdet(M)[1], -2 * np.linalg.inv(M)[rows, cols]

    assert not np.isnan(joint[:p, :p]).any()
    if equalities:
        constraints = [{"type": "eq", "fun": lambda t, g=g: g(filled(t))} for g in equalities]
        how = dict(method="SLSQP", options={"ftol": 1e-14, "maxiter": 500})
        return filled(minimize(loss, start[rows, cols], jac=True, constraints=constraints, **how).x)
    found = minimize(loss, start[rows, cols], jac=True, method="BFGS", options={"gtol": 1e-7})
    return filled(root(lambda t: np.linalg.inv(filled(t))[rows, cols], found.x, tol=1e-12).x)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seeds)
def test_unknown_pairs_of_an_effect_block_maximise_its_conditional_entropy(seed):
    rng = np.random.default_rng(seed)
    truth = random_covariance(rng, 5)
    names = ["a", "b", "u", "v", "w"]
    candidates = [(i, j) for j in range(2, 5) for i in range(j)]
    pairs = [pair for pair in candidates if rng.random() < 0.4] or [(0, 2)]
    m = Moments.from_arrays(np.zeros(5), truth, names=names).hide([(names[i], names[j]) for i, j in pairs])
    fit = fit_chain(m, "a--b; " + "; ".join(f"{p}->{x}" for p in "ab" for x in "uvw") + "; u--v--w")
    expected = most_entropic_effects(m.cov, 2, truth)
    assert_allclose(fit.moments.cov, expected, atol=1e-7)
    for i, j in pairs:  # the natural parameter of an unknown pair is zero, whatever its regression coefficient
        assert abs(fit.multipliers[f"E[{names[i]} {names[j]}]"]) < 1e-8
    assert fit.entropy == pytest.approx(0.5 * np.linalg.slogdet(2 * np.pi * np.e * expected)[1], abs=1e-8)


def test_unknown_child_parent_pair_is_zero_in_the_natural_parameter_not_in_the_regression():
    """y -> {u, w} with Cov(y, w) unknown: w depends on y through its twin u, so its slope on y is not zero."""
    arrows = {"a": {}, "y": {"a": 0.8}, "u": {"y": 1.1}, "w": {"u": 0.6}}
    truth = Truth(arrows, dict(a=0.0, y=-0.4, u=0.2, w=0.0), dict(a=1.0, u=0.7, w=0.9))
    m = binary(truth.mean, truth.cov, truth.names).hide([("y", "w"), ("a", "u"), ("a", "w")])
    fit = fit_chain(m, "a->y; y->u; y->w; u--w")
    block = factor_of(fit, "w")
    assert block.variables == ("u", "w")
    assert fit.multipliers["E[y w]"] == pytest.approx(0, abs=1e-12)
    assert_allclose(block.slopes[:, 0], [1.1, 0.6 * 1.1], atol=1e-9)
    assert pick(fit.moments, "y", "w") == pytest.approx(pick(m, "y", "u") * 0.6, abs=1e-9)
    assert_allclose(block.cov, [[0.7, 0.42], [0.42, 0.9 + 0.36 * 0.7]], atol=1e-9)
    # w adds nothing about y to what u says.
    coef = MergedClassifier(graph="a->y; y->u; y->w; u--w").fit_moments(m).coef_[0]
    assert_allclose(coef, [0.8, 1.1 / 0.7, 0], atol=1e-8)


def test_unknown_parent_has_no_weight_but_the_covariance_that_its_correlated_sibling_brings():
    sigma, c = np.array([[1, 0.6], [0.6, 2]]), 0.2
    cov = np.block([[np.array([[0.25]]), np.array([[c, np.nan]])], [np.array([[c], [np.nan]]), sigma]])
    fit = fit_chain(binary([0.5, 0, 0], cov, ["y", "a", "b"]), "a->b; a->y; b->y")
    gate = factor_of(fit, "y")
    _, slopes = causal_by_hand(0.5, np.zeros(1), np.eye(1), np.array([c]))
    assert_allclose(gate.coef, [slopes[0], 0], atol=1e-9)
    assert pick(fit.moments, "y", "b") == pytest.approx(0.6 * c, abs=1e-10)

    real = Moments.from_arrays(np.zeros(3), np.where(cov == 0.25, 1, cov), names=["y", "a", "b"])
    fit = fit_chain(real, "a->b; a->y; b->y")
    assert_allclose(factor_of(fit, "y").slopes[0], [c, 0], atol=1e-12)
    assert pick(fit.moments, "y", "b") == pytest.approx(0.6 * c, abs=1e-12)


# --- moments without a common mechanism -------------------------------------------------------------------------------


@few
@given(seeds)
def test_linear_gaussian_orders_imply_every_pair_that_was_not_given(seed):
    rng = np.random.default_rng(seed)
    names, p = list("abcde"), 5
    B = np.tril(rng.normal(size=(p, p)), -1) * np.tril(rng.random((p, p)) < 0.5, -1)
    mixing = np.linalg.inv(np.eye(p) - B)
    cov = mixing @ np.diag(rng.uniform(0.5, 2, p)) @ mixing.T
    dag = nx.DiGraph([(names[j], names[i]) for i, j in zip(*np.nonzero(B), strict=True)])
    dag.add_nodes_from(names)
    m = Moments.from_arrays(rng.normal(size=p), cov, names=names)
    apart = [(u, v) for i, u in enumerate(names) for v in names[:i] if not dag.has_edge(v, u)]
    sd = np.sqrt(cov.diagonal())
    for given_moments in (m, m.hide(apart)):
        fit = fit_chain(given_moments, dag)
        assert_allclose(fit.moments.cov / np.outer(sd, sd), cov / np.outer(sd, sd), atol=1e-9)
        for i, v in enumerate(names):
            factor = factor_of(fit, v)
            assert_allclose(factor.slopes[0], [B[i, names.index(u)] for u in factor.parents], atol=1e-8)
    # Move one covariance that the graph determines: it is refused by name, and left alone when it is hidden.
    for u, v in apart[:2]:
        i, j = names.index(u), names.index(v)
        moved = cov.copy()
        moved[i, j] = moved[j, i] = cov[i, j] - np.sign(cov[i, j] or 1) * 0.05 * sd[i] * sd[j]
        wrong = Moments.from_arrays(m.mean, moved, names=names)
        with pytest.raises(InconsistentMomentsError, match=rf"without an edge between ({u} and {v}|{v} and {u}) "):
            fit_chain(wrong, dag)
        assert_allclose(fit_chain(wrong.hide([(u, v)]), dag).moments.cov[i, j], cov[i, j], atol=1e-9 * sd[i] * sd[j])


def test_a_covariance_with_an_ancestor_identifies_an_unknown_edge():
    """r -> z -> x with Cov(z, x) unknown: Cov(r, x) = slope Cov(r, z) has one solution."""
    cov = np.array([[1, 0.5, 0.3], [0.5, 2, np.nan], [0.3, np.nan, 1.5]])
    fit = fit_chain(Moments.from_arrays([1, 2, 3], cov, names=["r", "z", "x"]), "r->z->x")
    assert_allclose(factor_of(fit, "x").slopes[0], [0.3 / 0.5], atol=1e-12)
    assert pick(fit.moments, "z", "x") == pytest.approx(0.6 * 2, abs=1e-12)
    assert factor_of(fit, "x").cov[0, 0] == pytest.approx(1.5 - 0.36 * 2, abs=1e-12)
    # With y in the middle as a cause that is binary, the conditional mean of r is linear in it too.
    truth = Truth({"r": {}, "y": {"r": 0.9}, "x": {"y": 1.4}}, dict(r=0.5, y=-0.3, x=0.0), dict(r=1.0, x=1.0))
    fit = fit_chain(binary(truth.mean, truth.cov, truth.names).hide([("y", "x")]), truth.graph)
    assert_allclose(factor_of(fit, "x").slopes[0], [1.4], atol=1e-8)
    # And a binary effect at the end: the projection of r on z is what its log odds are linear in.
    truth = Truth({"r": {}, "z": {"r": 0.7}, "y": {"z": -0.8}}, dict(r=0.0, z=1.0, y=0.2), dict(r=1.0, z=0.6))
    fit = fit_chain(binary(truth.mean, truth.cov, truth.names).hide([("z", "y")]), truth.graph)
    assert_allclose([factor_of(fit, "y").intercept, *factor_of(fit, "y").coef], [0.2, -0.8], atol=1e-8)


@pytest.mark.parametrize("seed", range(4))
def test_projected_constraints_on_a_block_match_constrained_entropy_maximisation(seed):
    """Causes a, b of the block {u, w}; covariances with their cause r stand in for some of theirs."""
    rng = np.random.default_rng(seed)
    names = ["r", "a", "b", "u", "w"]
    B = np.array([[0, 0, 0, 0, 0], [1.0, 0, 0, 0, 0], [-0.6, 0, 0, 0, 0], [0, 0.5, 0.8, 0, 0], [0, -0.7, 0.4, 0, 0]])
    B = B * rng.uniform(0.5, 1.5, (5, 5))
    noise = np.diag([1, 0.8, 1.2, 1, 1.0])
    noise[3, 4] = noise[4, 3] = 0.4
    mixing = np.linalg.inv(np.eye(5) - B)
    cov = mixing @ noise @ mixing.T
    hide = [("u", "a"), ("u", "b"), ("w", "b"), *([("u", "w")] if seed % 2 else [])]
    m = Moments.from_arrays(np.zeros(5), cov, names=names).hide(hide)
    fit = fit_chain(m, "r->a; r->b; a->u; b->u; a->w; b->w; u--w")
    slope = np.linalg.solve(cov[1:3, 1:3], cov[1:3, 0])  # E[r | a, b]
    joint = m.cov[1:, 1:].copy()
    meets = [lambda M: M[2, :2] @ slope - cov[3, 0], lambda M: M[3, :2] @ slope - cov[4, 0]]
    expected = most_entropic_effects(joint, 2, cov[1:, 1:], meets)
    assert_allclose(fit.moments.cov[1:, 1:], expected, atol=2e-5)
    assert_allclose(fit.moments.cov[0, 3:], cov[0, 3:], atol=1e-9)
    assert fit.residual < 1e-9
    entropy = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * cov[:3, :3])[1]
    conditional = expected[2:, 2:] - expected[2:, :2] @ np.linalg.solve(expected[:2, :2], expected[:2, 2:])
    # Never below what a general optimiser finds, and no more than its constraint violation above.
    assert fit.entropy == pytest.approx(entropy + 0.5 * np.linalg.slogdet(2 * np.pi * np.e * conditional)[1], abs=1e-6)


OVER = "a->y; y->x"  # Cov(a, x) = Cov(a, y) Cov(y, x) / Var y can be tested


def over_identified(given_cov, n=None):
    v = 0.21
    return binary([0.3, 1, -1], [[v, 0.15, 0.2], [0.15, 1, given_cov], [0.2, given_cov, 2]], ["y", "a", "x"], n=n)


def test_a_testable_implication_of_a_binary_bridge_is_enforced_and_named():
    implied = 0.15 * 0.2 / 0.21
    model = MergedClassifier(graph=OVER).fit_moments(over_identified(implied))
    free = MergedClassifier(graph=OVER).fit_moments(over_identified(np.nan))
    assert_allclose(model.coef_, free.coef_, rtol=1e-12)
    assert pick(free.implied_moments_, "a", "x") == pytest.approx(implied, abs=1e-10)
    message = rf"Cov\(a, x\) = 0\.3 is given, but without an edge between a and x the graph implies {implied:.6g} "
    with pytest.raises(InconsistentMomentsError, match=message) as caught:
        MergedClassifier(graph=OVER).fit_moments(over_identified(0.3))
    assert "\n" not in str(caught.value)
    MergedClassifier(graph=f"{OVER}; a->x").fit_moments(over_identified(0.3))  # the remedy that it names
    with pytest.raises(InconsistentMomentsError, match="between a and b the graph implies 0 "):
        fit_chain(Moments.from_arrays([0, 0], [[1, 0.2], [0.2, 1]], names=["a", "b"]), nx.empty_graph("ab", nx.DiGraph))


def test_slack_compromises_between_contradictory_moments_by_their_sampling_variances():
    counts = np.array([[900, 500, 900], [500, 500, 200], [900, 200, 900]])
    m = over_identified(0.3, n=counts)
    fit = fit_chain(m, OVER, slack="se")

    def loss(slope):  # generalised least squares on Cov(y, x) and Cov(a, x), each with its Gaussian sampling variance
        parts = [(slope[0] * 0.21 - 0.2, 0.21 * 2 + 0.2**2, 900), (slope[0] * 0.15 - 0.3, 1 * 2 + 0.3**2, 200)]
        return sum(gap**2 * n / variance for gap, variance, n in parts)

    expected = minimize(loss, [1.0], method="BFGS", options={"gtol": 1e-10}).x[0]
    assert factor_of(fit, "x").slopes[0, 0] == pytest.approx(expected, rel=1e-6)
    assert fit.slack_used
    assert not fit_chain(over_identified(np.nan), OVER, slack="se").slack_used


def test_nonlocal_moments_can_be_refused():
    for graph, moments, pair in (
        (OVER, over_identified(0.15 * 0.2 / 0.21), r"\(x, a\)"),
        ("a->y; x->y", over_identified(0.0), r"\(x, a\)"),
    ):
        with pytest.raises(NonlocalConstraintError, match=f"Cov of {pair} is given"):
            fit_chain(moments, graph, nonlocal_="error")
        hidden = moments.hide([("a", "x")])
        local, projected = (fit_chain(hidden, graph, nonlocal_=how) for how in ("error", "project"))
        assert_allclose(local.moments.cov, projected.moments.cov, rtol=1e-14)
        assert pick(local.moments, "a", "x") == pytest.approx(pick(moments, "a", "x"), abs=1e-10)


def test_a_projection_that_is_not_linear_is_refused_unless_the_linear_mechanism_meets_it():
    """E[a | x] is no linear function of x when the binary y lies between them."""
    arrows = {"a": {}, "y": {"a": 1.0}, "x": {"y": 2.0}, "z": {"x": 0.5}}
    truth = Truth(arrows, dict.fromkeys("ayxz", 0.0), dict(a=1.0, x=0.5, z=1.0))
    joint = [[np.exp(truth.log_density({"a": Z, "y": y, "x": x, "z": 0})) for y in (0, 1)] for x in (1, 3, 5)]
    means = [sum((Z * p).sum() for p in ps) / sum(p.sum() for p in ps) for ps in joint]
    assert abs(means[0] - 2 * means[1] + means[2]) > 0.1  # it is curved indeed
    m = truth.moments(keep=[("z", "a")])
    assert_allclose(factor_of(fit_chain(m, truth.graph), "z").slopes, [[0.5]], atol=1e-9)
    i, j = m.names.index("z"), m.names.index("a")
    cov = m.cov.copy()
    cov[i, j] = cov[j, i] = cov[i, j] + 0.05
    wrong = binary(m.mean, cov, m.names)
    message = (
        rf"\(z, a\) cannot be projected onto x: .* given {cov[i, j]:.6g} .* implies {m.cov[i, j]:.6g}\) .*a->z, hide"
    )
    with pytest.raises(NonlocalConstraintError, match=message):
        fit_chain(wrong, truth.graph)
    fit_chain(wrong, f"{truth.graph}; a->z")  # the remedies that it names
    fit_chain(wrong.hide([("z", "a")]), truth.graph)


def test_all_moments_of_a_family_with_a_discrete_member_are_accepted_when_they_are_its_own():
    arrows = {"p": {}, "q": {"p": 0.7}, "y": {"p": 0.5, "q": -0.8}, "c": {"p": 0.4, "y": 1.2}}
    truth = Truth(arrows, dict.fromkeys("pqyc", 0.1), dict(p=1.0, q=0.7, c=0.9))
    m = binary(truth.mean, truth.cov, truth.names)
    fit = fit_chain(m, truth.graph)
    assert_allclose(fit.moments.cov, truth.cov, atol=1e-8)
    cov = truth.cov.copy()
    cov[1, 3] = cov[3, 1] = cov[1, 3] + 0.02
    with pytest.raises(NonlocalConstraintError, match=r"\(c, q\) cannot be projected onto p, y"):
        fit_chain(binary(truth.mean, cov, truth.names), truth.graph)


# --- discrete nodes with discrete causes ------------------------------------------------------------------------------


class Table:
    """Discrete variables with softmax mechanisms on their parents' indicators, and the joint law, enumerated."""

    def __init__(self, sizes, arrows, seed):
        rng = np.random.default_rng(seed)
        self.sizes, self.arrows, self.names = sizes, arrows, list(sizes)
        self.states = np.indices(list(sizes.values())).reshape(len(sizes), -1)
        self.coordinates, self.kinds, columns = [], {}, []
        for v, code in zip(self.names, self.states, strict=True):
            self.kinds[v] = "binary" if sizes[v] == 2 else "categorical"
            levels = [1] if sizes[v] == 2 else range(sizes[v])
            self.coordinates += [v] if sizes[v] == 2 else [f"{v}={k}" for k in levels]
            columns += [code == k for k in levels]
        self.F = np.array(columns, dtype=float).T
        self.conditional = {}
        for v in self.names:
            D = self.design(arrows[v])
            logits = D @ rng.normal(size=(D.shape[1], sizes[v])) * 0.7
            self.conditional[v] = softmax(logits, axis=1)  # (states, K)
        self.p = np.prod([self.conditional[v][np.arange(len(self.F)), c] for v, c in self.codes()], axis=0)

    def codes(self):
        return zip(self.names, self.states, strict=True)

    def columns(self, v):
        return [i for i, n in enumerate(self.coordinates) if n == v or n.startswith(f"{v}=")]

    def design(self, variables):
        kept = [i for u in variables for i in (self.columns(u) if self.sizes[u] == 2 else self.columns(u)[:-1])]
        return np.column_stack([np.ones(len(self.F)), self.F[:, kept]])

    def moments(self, p=None):
        p = self.p if p is None else p
        mean = p @ self.F
        return Moments.from_arrays(
            mean, ((self.F - mean).T * p) @ (self.F - mean), names=self.coordinates, kinds=self.kinds
        )

    def local(self):
        joined = {frozenset((u, v)) for v, pa in self.arrows.items() for u in pa}
        pairs = [(u, v) for i, u in enumerate(self.names) for v in self.names[:i] if frozenset((u, v)) not in joined]
        return self.moments().hide(pairs)

    @property
    def graph(self):
        return "; ".join(f"{u}->{v}" for v, pa in self.arrows.items() for u in pa)

    def law_of(self, fit):
        """Probability of every state under the fitted factors."""
        values = {v: code if self.sizes[v] == 2 else code.astype(str).astype(object) for v, code in self.codes()}
        return np.exp(sum(f.log_prob(values) for f in fit.factors))


def mass_of(p, codes):
    """The marginal probability of each state's own values of some variables."""
    group = np.unique(np.array(codes), axis=1, return_inverse=True)[1].ravel()
    return np.bincount(group, p)[group]


def conditional_entropy(p, of, given):
    """H(of | given) of a table."""

    return (p * (np.log(mass_of(p, given)) - np.log(mass_of(p, [*given, *of])))).sum()


def test_a_binary_cause_of_a_binary_effect_is_its_two_by_two_table():
    m = Moments.from_arrays(
        [0.4, 0.5], [[0.24, 0.08], [0.08, 0.25]], names=["z", "y"], kinds=dict.fromkeys("zy", "binary")
    )
    fit = fit_chain(m, "z->y")
    one, zero = (0.4 * 0.5 + 0.08) / 0.4, (0.6 * 0.5 - 0.08) / 0.6  # P(y=1 | z)
    odds = np.log(zero / (1 - zero)), np.log(one / (1 - one))
    gate = factor_of(fit, "y")
    assert_allclose([gate.intercept, gate.coef[0]], [odds[0], odds[1] - odds[0]], atol=1e-10)
    assert_allclose([gate.intercept, gate.coef[0]], [-0.546544, 1.393842], atol=5e-7)
    cells = np.array([0.6 * (1 - zero), 0.6 * zero, 0.4 * (1 - one), 0.4 * one])
    assert fit.entropy == pytest.approx(-(cells * np.log(cells)).sum(), abs=1e-12)
    assert fit.residual < 1e-12


@pytest.mark.parametrize("seed", range(6))
def test_discrete_orders_are_recovered_by_enumeration(seed):
    arrows = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"], "e": ["c", "d"], "f": ["b"]}
    truth = Table({"a": 2, "b": 3, "c": 2, "d": 2 + seed % 2, "e": 3, "f": 2}, arrows, seed)
    fit = fit_chain(truth.local(), truth.graph)
    assert_allclose(truth.law_of(fit), truth.p, atol=1e-8)
    assert_allclose(fit.moments.cov, truth.moments().cov, atol=1e-9)
    assert fit.residual < 1e-10
    assert fit.entropy == pytest.approx(-(truth.p * np.log(truth.p)).sum(), abs=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_consistent_moments_of_discrete_variables_without_an_edge_change_nothing(seed):
    """A binary chain with all its moments: those of its ends are implied, or else refused by name."""
    truth = Table({"a": 2, "b": 2, "c": 2, "d": 2}, {"a": [], "b": ["a"], "c": ["b"], "d": ["c"]}, seed)
    fit = fit_chain(truth.moments(), truth.graph)
    assert_allclose(truth.law_of(fit), truth.p, atol=1e-9)
    cov = truth.moments().cov.copy()
    cov[0, 2] = cov[2, 0] = cov[0, 2] + 0.01
    wrong = Moments.from_arrays(truth.moments().mean, cov, names=truth.coordinates, kinds=truth.kinds)
    with pytest.raises(InconsistentMomentsError, match="without an edge between a and c"):
        fit_chain(wrong, truth.graph)
    with pytest.raises(NonlocalConstraintError, match=r"Cov of \(c, a\) is given"):
        fit_chain(truth.moments(), truth.graph, nonlocal_="error")


@pytest.mark.parametrize("seed", range(4))
def test_projected_moments_of_discrete_nodes_maximise_conditional_entropy(seed):
    """q causes u and v, which cause c; Cov(q, c) is another one than the mechanism c | u, v would have by itself."""
    K = 2 + seed % 2
    truth = Table({"q": K, "u": 2, "v": 2, "c": 2}, {"q": [], "u": ["q"], "v": ["q"], "c": ["u", "v"]}, seed)
    q, u, v, c = truth.states
    rng = np.random.default_rng(seed)
    effect = rng.uniform(0.15, 0.85, (2, 2))[u, v]  # with an interaction
    causes = np.prod([truth.conditional[w][np.arange(len(q)), code] for w, code in truth.codes() if w != "c"], axis=0)
    p = causes * np.where(c == 1, effect, 1 - effect)
    m = truth.moments(p)
    if seed == 3:
        m = m.hide([("c", "v")])  # so that the projection stands in for a local moment
    fit = fit_chain(m.hide([("u", "v")]), truth.graph)

    features = [np.ones(len(q)), u, *([] if seed == 3 else [v]), *((q == k).astype(float) for k in range(K - 1))]
    goals = [p @ (f * c) for f in features]
    ones = c == 1

    def loss(at):  # minus E H(c | u, v) for P(c=1 | u, v)
        prob = at[2 * u + v]
        cells = causes * np.where(ones, prob, 1 - prob)
        return (cells * np.log(np.where(ones, prob, 1 - prob))).sum()

    meets = [
        {"type": "eq", "fun": lambda at, f=f, g=g: (causes * f * ones * at[2 * u + v]).sum() - g}
        for f, g in zip(features[:4], goals[:4], strict=True)  # a fifth is implied: there are four states
    ]
    how = dict(method="SLSQP", bounds=[(1e-6, 1 - 1e-6)] * 4, options={"ftol": 1e-15, "maxiter": 500})
    best = minimize(loss, np.full(4, 0.5), constraints=meets, **how)
    assert max(abs(g["fun"](best.x)) for g in meets) < 1e-8
    got = truth.law_of(fit)
    expected = causes * np.where(ones, best.x[2 * u + v], 1 - best.x[2 * u + v])
    assert_allclose(got, expected, atol=2e-5)
    assert fit.residual < 1e-9
    assert conditional_entropy(got, [c], [u, v]) == pytest.approx(-best.fun, abs=1e-7)
    assert fit.entropy == pytest.approx(-(got * np.log(got)).sum(), abs=1e-9)
    model = CMaxEnt(truth.graph).fit_moments(m.hide([("u", "v")]))  # the table works wherever a factor does
    assert model.prob_table().to_numpy().sum() == pytest.approx(1, abs=1e-12)
    forced = model.do({"u": 1}).prob_table()
    row = got * (u == 1) * truth.conditional["q"][0, q] / mass_of(got, [q, u])
    assert forced.xs(1, level="c").sum() == pytest.approx(row[(u == 1) & ones].sum(), abs=1e-9)


def test_many_joint_states_of_the_causes_are_refused_and_many_ancestors_are_not():
    """Sixteen steps of a chain are eliminated one by one; seventeen causes of one node are too many."""
    n = 25
    names = [f"z{i}" for i in range(n)]
    cov = np.full((n, n), np.nan)
    np.fill_diagonal(cov, 0.25)
    for i in range(n - 1):
        cov[i, i + 1] = cov[i + 1, i] = 0.1
    m = Moments.from_arrays(np.full(n, 0.5), cov, names=names, kinds=dict.fromkeys(names, "binary"))
    fit = fit_chain(m, "; ".join(f"{a}->{b}" for a, b in pairwise(names)))
    steps = np.abs(np.subtract.outer(range(n), range(n)))
    assert_allclose(fit.moments.cov, 0.25 * 0.4**steps, atol=1e-12)  # a Markov chain with autocorrelation 0.4
    few = names[:18]
    with pytest.raises(StateSpaceTooLargeError, match="131072 joint states, more than the 65536"):
        fit_chain(
            m.subset(few).hide(list(pairwise(few))),
            "; ".join(f"{v}->z17" for v in few[:-1]),
        )


# --- discrete nodes with mixed causes ---------------------------------------------------------------------------------


def test_causes_that_are_gaussian_given_a_discrete_one_are_integrated_state_by_state():
    """z (three levels) -> a, {z, a} -> y, {z, y} -> w, b -> w: moments by quadrature, coefficients recovered."""
    share, shift = np.array([0.2, 0.5, 0.3]), np.array([0.6, -0.7, 0.0])
    grid = 0.4 + shift[:, None] + np.sqrt(0.8) * FINE  # a
    p = share[:, None] * FINE_W
    y = expit(0.3 + np.array([0.5, -0.4, 0.0])[:, None] - 0.9 * grid)
    mean_a = (p * grid).sum()
    spread = np.diag(share) - np.outer(share, share)
    cov = np.full((5, 5), np.nan)
    cov[:3, :3] = spread
    cov[:3, 3] = cov[3, :3] = [(p[k] * (grid[k] - mean_a)).sum() for k in range(3)]
    cov[3, 3] = (p * (grid - mean_a) ** 2).sum()
    pi = (p * y).sum()
    cov[:3, 4] = cov[4, :3] = [(p[k] * (y[k] - pi)).sum() for k in range(3)]
    cov[3, 4] = cov[4, 3] = (p * (grid - mean_a) * y).sum()
    cov[4, 4] = pi * (1 - pi)
    names = ["z=r", "z=s", "z=t", "a", "y"]
    m = Moments.from_arrays([*share, mean_a, pi], cov, names=names, kinds={"z": "categorical", "y": "binary"})
    fit = fit_chain(m, "z->a; z->y; a->y")
    gate = factor_of(fit, "y")
    at = dict(zip(gate.parents, gate.coef, strict=True))
    assert_allclose([gate.intercept, at["z=r"], at["z=s"], at["a"]], [0.3, 0.5, -0.4, -0.9], atol=1e-8)
    assert fit.residual < 1e-10
    entropy = -(share * np.log(share)).sum() + 0.5 * np.log(2 * np.pi * np.e * 0.8)
    entropy -= (p * (y * np.log(y) + (1 - y) * np.log1p(-y))).sum()
    assert fit.entropy == pytest.approx(entropy, abs=1e-8)
    # Without z as a cause of y, what z and y share goes through a alone.
    thin = fit_chain(m.hide([("z", "y")]), "z->a; a->y")
    slope = factor_of(thin, "y")
    prob = expit(slope.intercept + slope.coef[0] * grid)
    assert_allclose([(p * prob).sum(), (p * (grid - mean_a) * prob).sum()], [pi, cov[3, 4]], atol=1e-9)
    assert_allclose(thin.moments.cov[:3, 4], [(p[k] * (prob[k] - pi)).sum() for k in range(3)], atol=1e-9)


def test_many_gaussian_causes_beside_a_discrete_one_still_need_one_dimensional_integrals():
    rng = np.random.default_rng(1)
    d, share = 8, 0.35
    A = rng.normal(size=(d, d + 3))
    noise, shift, weights = A @ A.T / (d + 3), rng.normal(size=d), rng.normal(size=d) * 0.4
    pi, C, Cz = 0.0, np.zeros(d), 0.0
    for z, mass in ((0, 1 - share), (1, share)):
        tau = np.sqrt(weights @ noise @ weights)
        prob, slope = logit_law(0.2 - 0.7 * z + weights @ shift * z, tau)
        pi += mass * prob
        C += mass * (prob * shift * z + noise @ weights / tau * slope)
        Cz += mass * z * prob
    C -= share * shift * pi
    v = share * (1 - share)
    cov = np.block([
        [np.array([[v]]), v * shift[None], np.array([[Cz - share * pi]])],
        [v * shift[:, None], noise + v * np.outer(shift, shift), C[:, None]],
        [np.array([[Cz - share * pi]]), C[None], np.array([[pi * (1 - pi)]])],
    ])  # fmt: skip
    x = [f"x{i}" for i in range(d)]
    m = Moments.from_arrays(
        [share, *share * shift, pi], cov, names=["z", *x, "y"], kinds={"z": "binary", "y": "binary"}
    )
    fit = fit_chain(m, "; ".join(["z->y", "--".join(x), *(f"z->{n}; {n}->y" for n in x)]))
    gate = factor_of(fit, "y")
    at = dict(zip(gate.parents, gate.coef, strict=True))
    assert_allclose([gate.intercept, at["z"], *(at[n] for n in x)], [0.2, -0.7, *weights], atol=1e-7)
    assert fit.residual < 1e-9


@pytest.mark.parametrize("steep", [-0.8, 7.0])
def test_a_discrete_cause_with_continuous_causes_of_its_own_is_weighted_exactly(steep):
    """a -> z, {a, z} -> y, z -> h: nothing here is Gaussian given z, and one integral over a has it all."""
    z = expit(-0.3 + 1.4 * FINE)
    states = [(0, 1 - z), (1, z)]
    py = [expit(0.4 + steep * FINE + 1.1 * k) for k, _ in states]
    ph = [expit(-0.5 + 0.9 * k) for k, _ in states]
    mean = [0, FINE_W @ z, sum(FINE_W @ (w * p) for (_, w), p in zip(states, py, strict=True)), 0]
    mean[3] = sum(FINE_W @ w * p for (_, w), p in zip(states, ph, strict=True))
    values = [
        (FINE, np.full_like(FINE, k), p, np.full_like(FINE, q)) for (k, _), p, q in zip(states, py, ph, strict=True)
    ]
    cov = np.zeros((4, 4))
    for (_, w), row in zip(states, values, strict=True):  # y and h are independent given (a, z)
        R = np.array(row) - np.array(mean)[:, None]
        cov += (R * (FINE_W * w)) @ R.T
    np.fill_diagonal(cov, [1, *(q * (1 - q) for q in mean[1:])])
    names = ["a", "z", "y", "h"]
    m = Moments.from_arrays(mean, cov, names=names, kinds=dict.fromkeys("zyh", "binary"))
    fit = fit_chain(m.hide([("a", "h"), ("y", "h")]), "a->z; a->y; z->y; z->h")
    gate = factor_of(fit, "y")
    at = dict(zip(gate.parents, gate.coef, strict=True))
    assert_allclose([gate.intercept, at["a"], at["z"]], [0.4, steep, 1.1], atol=1e-7)
    assert_allclose([factor_of(fit, "h").intercept, factor_of(fit, "h").coef[0]], [-0.5, 0.9], atol=1e-8)
    assert_allclose(fit.moments.cov, cov, atol=1e-9)
    assert fit_chain(m, "a->z; a->y; z->y; z->h").residual < 1e-8  # z alone is the parent of h: projections are linear
    # A sibling b of z and y that causes neither shares with them what its own cause a does.
    wide = np.full((5, 5), np.nan)
    wide[1:, 1:], wide[0, 0] = m.hide([("a", "h"), ("y", "h")]).cov, 2.0
    wide[0, 1] = wide[1, 0] = 0.6
    kinds = dict.fromkeys("zyh", "binary")
    more = Moments.from_arrays([1, *mean], wide, names=["b", *names], kinds=kinds)
    implied = fit_chain(more, "a->b; a->z; a->y; z->y; z->h").moments
    assert_allclose(implied.cov[0, 1:], 0.6 * cov[0], atol=1e-8)


def test_four_directions_take_sobol_points_and_the_residual_admits_it():
    rng = np.random.default_rng(0)
    names = ["x0", "x1", "x2", "x3", "x4", "z", "y"]
    z_slopes = rng.normal(size=5) * 0.5
    c = 0.15 * rng.normal(size=5)
    tau = np.sqrt(z_slopes @ z_slopes)
    pi, slope = logit_law(0.2, tau)
    cov = np.full((7, 7), np.nan)
    cov[:5, :5] = np.eye(5)
    cov[:5, 5] = cov[5, :5] = z_slopes / tau * slope
    cov[5, 5], cov[6, 6] = pi * (1 - pi), 0.24
    cov[:5, 6] = cov[6, :5] = c
    cov[5, 6] = cov[6, 5] = 0.03
    m = Moments.from_arrays([0, 0, 0, 0, 0, pi, 0.4], cov, names=names, kinds={"z": "binary", "y": "binary"})
    edges = "; ".join([*(f"x{i}->z; x{i}->y" for i in range(5)), "z->y"])
    one, two = fit_chain(m, edges, seed=0), fit_chain(m, edges, seed=0)
    assert_allclose(factor_of(one, "y").coef, factor_of(two, "y").coef, rtol=0)
    # The moments of the mechanism, integrated over its two log odds: an independent rule for both directions.
    gate = factor_of(one, "y")
    weights = dict(zip(gate.parents, gate.coef, strict=True))
    y_slopes = np.array([weights[f"x{i}"] for i in range(5)])
    basis = np.linalg.qr(np.column_stack([z_slopes, y_slopes]))[0]
    first, second = np.meshgrid(Z, Z, indexing="ij")
    W2 = np.outer(W, W)
    u = np.stack([first, second])
    pz = expit(0.2 + np.tensordot(z_slopes @ basis, u, 1))
    py = [expit(gate.intercept + weights["z"] * k + np.tensordot(y_slopes @ basis, u, 1)) for k in (0, 1)]
    prob = (1 - pz) * py[0] + pz * py[1]
    got = [(W2 * u[k] * prob).sum() for k in range(2)]
    errors = np.abs([*(basis @ got - c), (W2 * pz * py[1]).sum() - 0.4 * pi - 0.03])
    assert errors.max() < 1e-4
    assert one.residual == pytest.approx(errors.max(), rel=0.05, abs=1e-6)


# --- feasibility ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pi", [0.1, 0.5, 0.8])
def test_y_inside_a_graph_is_feasible_up_to_the_biserial_limit_of_its_parents(pi):
    limit = norm.pdf(norm.ppf(pi)) ** 2
    for share in (0.999, 1.001):
        c = np.sqrt(share * limit)
        cov = [[pi * (1 - pi), c, 0.1], [c, 1, np.nan], [0.1, np.nan, 1]]
        m = binary([pi, 0, 0], cov, ["y", "a", "x"])
        if share < 1:  # the gate, steep as it is, has the moments
            gate = factor_of(fit_chain(m, OVER), "y")
            p, zp = logit_law(gate.intercept, gate.coef[0])
            assert (p, zp) == (pytest.approx(pi, abs=1e-9), pytest.approx(c, abs=1e-9))
            continue
        with pytest.raises(InfeasibleMomentsError, match=r"R\^2"):
            MergedClassifier(graph=OVER).fit_moments(m)
        with pytest.warns(InfeasibleMomentsWarning, match=r"R\^2"):
            model = MergedClassifier(graph=OVER, on_infeasible="boundary").fit_moments(m)
        _, slopes = causal_by_hand(pi, np.zeros(1), np.eye(1), np.array([np.sqrt(0.98 * limit)]))
        assert model.coef_[0, 0] == pytest.approx(slopes[0], rel=1e-6)


# --- K classes --------------------------------------------------------------------------------------------------------


def three_classes():
    """a -> y (three classes), {a, y} -> b, b -> g; y -> h. Names, moments, log p(values, y) and what it was made of."""
    bias, slope = np.array([0.2, -0.3, 0.0]), np.array([1.1, -0.6, 0.0])
    shift_b, shift_h = np.array([0.5, -0.8, 0.3]), np.array([0.0, 1.0, -1.5])
    P = softmax(bias + np.outer(Z, slope), axis=1)
    pi, cov_a = W @ P, (W * Z) @ P  # a is standard normal
    D = np.diag(pi) - np.outer(pi, pi)
    names = ["y=u", "y=v", "y=w", "a", "b", "g", "h"]
    S = np.zeros((7, 7))
    S[:3, :3], S[3, 3] = D, 1
    S[3, :3] = S[:3, 3] = cov_a
    for i, parents, weights, noise in (
        (4, [0, 1, 2, 3], [*shift_b, 0.7], 0.6),
        (5, [4], [-0.9], 1.1),
        (6, [0, 1, 2], shift_h, 0.8),
    ):
        done = list(range(i))
        w = np.asarray(weights)
        S[i, done] = S[done, i] = S[np.ix_(done, parents)] @ w
        S[i, i] = w @ S[np.ix_(parents, parents)] @ w + noise
    mean = np.array([*pi, 0, pi @ shift_b, -0.9 * (pi @ shift_b), pi @ shift_h])
    m = Moments.from_arrays(mean, S, names=names, kinds={"y": "categorical"})

    def log_joint(values, k):  # leaves g and h integrate to one where they are absent
        a, b = values["a"], values["b"]
        total = norm.logpdf(a) + log_softmax(bias + np.multiply.outer(np.asarray(a, float), slope), axis=-1)[..., k]
        total = total + norm.logpdf(b, shift_b[k] + 0.7 * a, np.sqrt(0.6))
        if "g" in values:
            total = total + norm.logpdf(values["g"], -0.9 * b, np.sqrt(1.1))
        if "h" in values:
            total = total + norm.logpdf(values["h"], shift_h[k], np.sqrt(0.8))
        return total

    pairs = [("g", "a"), ("g", "y"), ("g", "h"), ("b", "h"), ("a", "h")]
    return m.hide(pairs), S, log_joint


THREE = "a->y; a->b; y->b; b->g; y->h"


def test_three_classes_inside_a_graph_are_bayes_rule_with_and_without_all_features():
    m, S, log_joint = three_classes()
    model = MergedClassifier(graph=THREE).fit_moments(m)
    assert list(model.classes_) == ["u", "v", "w"]
    assert_allclose(model.implied_moments_.cov, S, atol=1e-8)
    order = list(model.feature_names_in_)
    grid = {"a": np.linspace(-12, 12, 401)[:, None], "b": np.linspace(-12, 12, 401)[None]}
    full = {"a": 0.4, "b": -1.0, "g": 0.7, "h": 0.2}
    for absent in ("", "a", "b", "g", "h", "ag", "bh", "bg", "ab", "abg"):
        seen = {v: x for v, x in full.items() if v not in absent}
        values = seen | {v: x for v, x in grid.items() if v in absent}
        mass = np.array([np.exp(log_joint(values, k)).sum() for k in range(3)])
        expected = mass / mass.sum()
        row = [[seen.get(v, np.nan) for v in order]]
        assert_allclose(model.predict_proba(row)[0], expected, atol=1e-8, err_msg=f"without {absent}")
        assert model.predict(row)[0] == "uvw"[expected.argmax()]


# --- graphs as they are written ---------------------------------------------------------------------------------------


CYCLE = [("a", "b"), ("b", "c"), ("c", "a")]


@pytest.mark.parametrize(
    ("graph", "path"),
    [
        ("a->b; b->c; c->a; y->a", {"a", "b", "c"}),
        ("a->b->c->a; a->y", {"a", "b", "c"}),
        ("b<-a; a<-y; y<-b; c->y", {"a", "b", "y"}),
        ([*CYCLE, ("a", "y")], {"a", "b", "c"}),
        (nx.DiGraph([*CYCLE, ("c", "y")]), {"a", "b", "c"}),
        ("a->y; y->b; a--b; c->y", {"a--b", "y"}),
    ],
)
def test_cycles_are_refused_and_the_path_is_named(graph, path):
    m = binary([0.3, 0, 0, 0], np.diag([0.21, 1, 1, 1]), ["y", "a", "b", "c"])
    for call in (lambda: fit_chain(m, graph), lambda: MergedClassifier(graph=graph).fit_moments(m)):
        with pytest.raises(GraphError, match="the graph has a cycle: ") as caught:
            call()
        steps = str(caught.value).removeprefix("the graph has a cycle: ").split(" -> ")
        assert steps[0] == steps[-1]
        assert set(steps) == path
        assert len(steps) == len(path) + 1


def test_every_way_to_write_a_graph_is_the_same_graph():
    marked = nx.DiGraph([("a", "y"), ("y", "b"), ("y", "c")])
    marked.add_edge("b", "c", undirected=True)
    ways = [
        "a->y; y->b; y->c; b--c",
        "a->y->b--c\ny->c",
        "b<-y<-a; y -> c;; b -- c;",
        [("a", "y"), ("y", "->", "b"), ("y", "c"), ("b", "--", "c")],
        marked,
    ]
    for way in ways:
        graph = resolve_graph(way, ["c", "y", "a", "b"])
        assert graph.blocks == (("a",), ("y",), ("c", "b"))
        assert graph.parents == ((), ("a",), ("y",))
        assert resolve_graph(graph, ["c", "y", "a", "b"]) == graph
        assert set(graph.to_networkx().edges) == {("a", "y"), ("y", "b"), ("y", "c")}


def test_a_block_that_mixes_y_with_features_is_refused():
    m = binary([0.3, 0, 0], np.diag([0.21, 1, 1]), ["y", "a", "b"])
    with pytest.raises(GraphError, match=r"block \{y, a\} holds the discrete y"):
        fit_chain(m, "y--a; y->b; a->b")
    with pytest.raises(GraphError, match="y shares a block with a"):
        MergedClassifier(graph="y--a; y->b; a->b").fit_moments(m)


def test_unknown_variances_leave_the_entropy_unbounded():
    m = Moments.from_arrays([0, 0], [[1, 0.2], [0.2, np.nan]], names=["a", "b"])
    with pytest.raises(UnboundedEntropyError, match="the variance of b is unknown"):
        fit_chain(m, "a->b")
