"""CMAXENT densities against brute force over the simplex, closed forms, and each other."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.integrate import trapezoid
from scipy.optimize import minimize
from scipy.stats import chisquare, kstest, norm

from cmaxent.closedform import solve_binary_scale
from cmaxent.errors import (
    CMaxEntError,
    GraphError,
    InconsistentMomentsError,
    InfeasibleMomentsError,
    NonlocalConstraintError,
    StateSpaceTooLargeError,
    UnboundedEntropyError,
)
from cmaxent.factors import TableFactor
from cmaxent.model import CMaxEnt, Constraint, Support
from cmaxent.moments import Moments

BIT = Support.discrete([0, 1])
REAL = Support.real()
SEEDS = st.integers(0, 10**6)


def mean(v, value, **kw):
    return Constraint(lambda x: x, (v,), value, name=f"E{v}", **kw)


def square(v, value):
    return Constraint(lambda x: x**2, (v,), value, name=f"E{v}{v}")


def product(v, w, value, **kw):
    return Constraint(lambda x, y: x * y, (v, w), value, name=f"E{v}{w}", **kw)


def gaussian_constraints(names, mu, sigma):
    second = sigma + np.outer(mu, mu)
    return [
        *(mean(v, m) for v, m in zip(names, mu, strict=True)),
        *(square(v, second[i, i]) for i, v in enumerate(names)),
        *(product(names[i], names[j], second[i, j]) for j in range(len(names)) for i in range(j)),
    ]


def random_table(rng, shape):
    return rng.dirichlet(np.ones(np.prod(shape))).reshape(shape)


# --- the principle ----------------------------------------------------------------------------------------


def test_paradox_joint_and_causal_maxent_differ():
    both = [Constraint(lambda x, y: (x == 0) & (y == 1), ("x", "y"), 0.0, name="P01")]
    supports = {"x": BIT, "y": BIT}
    joint = CMaxEnt(None, both, supports).fit()
    assert_allclose(joint.prob_table(), [1 / 3, 0, 1 / 3, 1 / 3], atol=1e-12)
    causal = CMaxEnt("x->y", both, supports).fit()
    assert_allclose(causal.prob_table(), [0.5, 0, 0.25, 0.25], atol=1e-12)
    assert causal.multipliers_ == {"P01": -np.inf}
    assert causal.log_prob({"x": [0], "y": [1]})[0] == -np.inf
    assert_allclose(CMaxEnt("y->x", both, supports).fit().prob_table().groupby("y").sum(), [0.5, 0.5], atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_chain_of_three_matches_entropy_maximisation_block_by_block(seed):
    rng = np.random.default_rng(seed)
    shape, names = (2, 3, 2), ("x", "y", "z")
    truth = random_table(rng, shape)
    grid = np.indices(shape)
    f_y, f_z = rng.normal(size=(2, 3)), rng.normal(size=(3, 2))
    m_x, m_y, m_z = (
        (truth * grid[0]).sum(),
        (truth * f_y[grid[0], grid[1]]).sum(),
        (truth * f_z[grid[1], grid[2]]).sum(),
    )
    model = CMaxEnt(
        "x->y->z",
        [
            mean("x", m_x),
            Constraint(lambda x, y: f_y[x, y], ("x", "y"), m_y, name="fy"),
            Constraint(lambda y, z: f_z[y, z], ("y", "z"), m_z, name="fz"),
        ],
        dict(zip(names, (Support.discrete(range(k)) for k in shape), strict=True)),
    ).fit()
    # Brute force: one block after the other over its conditional simplex.
    p_x = np.array([1 - m_x, m_x])
    p_yx = _brute_force(p_x, f_y, m_y)
    p_zy = _brute_force(p_x @ p_yx, f_z, m_z)
    expected = p_x[:, None, None] * p_yx[:, :, None] * p_zy[None]
    assert_allclose(model.prob_table().to_numpy().reshape(shape), expected, atol=2e-4)
    # Chain rule of entropy, and the table's own entropy.
    table = model.prob_table().to_numpy()
    assert_allclose(model.entropy(), -(table * np.log(table)).sum(), atol=1e-10)
    assert_allclose(model.implied_moments(), [m_x, m_y, m_z], atol=1e-9)


def _brute_force(w, f, m):
    def negative_entropy(q):
        p = q.reshape(f.shape)
        return w @ (p * np.log(p)).sum(axis=1)

    peer = minimize(
        negative_entropy,
        np.full(f.size, 1 / f.shape[1]),
        method="SLSQP",
        bounds=[(1e-10, 1)] * f.size,
        constraints=[
            {"type": "eq", "fun": lambda q: q.reshape(f.shape).sum(axis=1) - 1},
            {"type": "eq", "fun": lambda q: w @ (q.reshape(f.shape) * f).sum(axis=1) - m},
        ],
        options={"ftol": 1e-13, "maxiter": 300},
    )
    return peer.x.reshape(f.shape)


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_constraints_on_the_effect_never_change_the_law_of_the_cause(seed):
    rng = np.random.default_rng(seed)
    truth = random_table(rng, (3, 2))
    supports = {"x": Support.discrete([-1.0, 0.5, 2.0]), "y": BIT}
    values = np.array([-1.0, 0.5, 2.0])
    on_x = [mean("x", truth.sum(axis=1) @ values), square("x", truth.sum(axis=1) @ values**2)]  # all of p(x)
    alone = CMaxEnt(None, on_x, {"x": supports["x"]}).fit().prob_table()
    both = CMaxEnt(
        "x->y", [*on_x, mean("y", truth[:, 1].sum()), product("x", "y", truth[:, 1] @ values)], supports
    ).fit()
    assert_allclose(both.prob_table().groupby("x").sum(), alone, atol=1e-10)
    # T5: with Y's law known, the anticausal order is the joint maximum, which no other order exceeds.
    anticausal = CMaxEnt("y->x", both.constraints, supports).fit()
    joint = CMaxEnt(None, both.constraints, supports).fit()
    assert_allclose(anticausal.entropy(), joint.entropy(), atol=1e-9)
    assert anticausal.entropy() >= both.entropy() - 1e-9


def test_labels_need_not_be_numbers_and_table_order_is_the_graphs():
    colours = Support.discrete(["red", "green", "blue"])
    model = CMaxEnt(
        "c->y",
        [
            Constraint(lambda c: c == "red", ("c",), 0.5, name="red"),
            Constraint(lambda y, c: (c == "blue") & (y == 1), ("y", "c"), 0.2, name="blue1"),
        ],
        {"y": BIT, "c": colours},
    ).fit()
    table = model.prob_table()
    assert table.index.names == ["c", "y"]
    assert model.variables_ == ("c", "y")
    assert_allclose(table.loc["blue", 1], 0.2)
    assert_allclose(table.loc["green", 1], 0.125)
    assert_allclose(table.sum(), 1)
    frame = model.sample(500, 0)
    assert set(frame["c"]) <= {"red", "green", "blue"}
    assert_allclose(np.exp(model.log_prob(frame)), table.loc[list(zip(frame["c"], frame["y"], strict=True))])
    assert model.log_prob({"c": ["pink"], "y": [1]})[0] == -np.inf


def test_sample_frequencies_agree_with_the_table():
    rng = np.random.default_rng(0)
    truth = random_table(rng, (2, 3, 2))
    constraints = [
        Constraint(lambda a, b, i=i, j=j: (a == i) & (b == j), ("a", "b"), truth[i, j].sum(), name=f"ab{i}{j}")
        for i in range(2)
        for j in range(2)
    ]
    constraints += [mean("a", truth[1].sum()), product("b", "c", truth[:, 1, 1].sum() + 2 * truth[:, 2, 1].sum())]
    model = CMaxEnt("a->b->c", constraints, {"a": BIT, "b": Support.discrete([0, 1, 2]), "c": BIT}).fit()
    n = 20_000
    counts = model.sample(n, 1).value_counts().reindex(model.prob_table().index, fill_value=0)
    assert chisquare(counts, n * model.prob_table()).pvalue > 1e-3
    pd.testing.assert_frame_equal(model.sample(5, 3), model.sample(5, np.random.default_rng(3)))


# --- moments across the graph -----------------------------------------------------------------------------


def chain_supports():
    return {"x": BIT, "z": Support.discrete([0, 1, 2]), "y": BIT}


def chain_constraints(truth):
    x, _, y = np.indices(truth.shape)
    out = [mean("x", truth[1].sum())]
    out += [
        Constraint(lambda x, z, i=i, j=j: (x == i) & (z == j), ("x", "z"), truth[i, j].sum(), name=f"xz{i}{j}")
        for i in range(2)
        for j in range(2)
    ]
    return out, float((truth * y).sum()), float((truth * x * y).sum())


def markov_truth(seed):
    """A table with x -> z -> y."""
    rng = np.random.default_rng(seed)
    xz = random_table(rng, (2, 3))
    y = rng.uniform(0.1, 0.9, 3)
    return xz[:, :, None] * np.stack([1 - y, y], axis=1)[None]


@pytest.mark.parametrize("seed", range(3))
def test_moment_across_a_missing_edge_is_projected_exactly(seed):
    on_xz, e_y, e_xy = chain_constraints(markov_truth(seed))
    model = CMaxEnt("x->z->y", [*on_xz, mean("y", e_y), product("x", "y", e_xy)], chain_supports()).fit()
    table = model.prob_table().to_numpy().reshape(2, 3, 2)
    assert_allclose(table[1, :, 1].sum(), e_xy, atol=1e-9)
    assert_allclose(table[:, :, 1].sum(), e_y, atol=1e-9)
    # The logit of y is affine in E[x|z], the projected feature.
    p_xz = table.sum(axis=2)
    feature, logit = p_xz[1] / p_xz.sum(axis=0), np.log(table[0, :, 1] / table[0, :, 0])
    slope, offset = np.polyfit(feature, logit, 1)
    assert_allclose(offset + slope * feature, logit, atol=1e-9)
    assert_allclose(model.multipliers_["Exy"], slope, rtol=1e-7)


def test_contradiction_of_two_projected_moments_names_the_missing_edge():
    # z binary: E[x y] and E[z y] are affine in y(z) together with E[y], so x->y missing is testable.
    truth = markov_truth(0)[:, :2]
    truth = truth / truth.sum()
    x, z, y = np.indices(truth.shape)
    on_xz = [mean("x", truth[1].sum()), mean("z", truth[:, 1].sum()), product("x", "z", truth[1, 1].sum())]
    on_y = [mean("y", (truth * y).sum()), product("z", "y", (truth * z * y).sum())]
    supports = {"x": BIT, "z": BIT, "y": BIT}
    right = float((truth * x * y).sum())
    CMaxEnt("x->z->y", [*on_xz, *on_y, product("x", "y", right)], supports).fit()
    wrong = [*on_xz, *on_y, product("x", "y", right + 0.02, se=0.01)]
    with pytest.raises(InconsistentMomentsError, match=r"x->y.*testable implication") as caught:
        CMaxEnt("x->z->y", wrong, supports).fit()
    assert set(caught.value.names) == {"Ey", "Ezy", "Exy"}
    with pytest.raises(NonlocalConstraintError, match="spans x"):
        CMaxEnt("x->z->y", wrong, supports, nonlocal_="error").fit()
    # With standard errors the exact moments win and the noisy one gives way.
    compromise = CMaxEnt("x->z->y", wrong, supports, slack="se").fit()
    assert_allclose(compromise.implied_moments()["Exy"], right, atol=1e-9)
    both = CMaxEnt("x->z->y", wrong, supports, slack=1e-4).fit()
    assert right < both.implied_moments()["Exy"] < right + 0.02


def test_gaussian_moment_across_a_missing_edge_is_projected_by_quadrature():
    # x -> z -> y linear-Gaussian: E[xy] = slope(z on x) E[zy], so E[xy] alone fixes the slope of y on z.
    rho = 0.8
    constraints = [
        *gaussian_constraints(["x", "z"], np.zeros(2), np.array([[1, rho], [rho, 1.0]])),
        mean("y", 0.0),
        square("y", 1.0),
        product("x", "y", 0.4),
    ]
    model = CMaxEnt("x->z->y", constraints, {"x": REAL, "z": REAL, "y": REAL}).fit()
    z = np.array([-1.0, 0.3, 1.0])
    slope = 0.4 / rho
    expected = (
        norm(0, 1).logpdf(0)
        + norm(0, np.sqrt(1 - rho**2)).logpdf(z)
        + norm(slope * z, np.sqrt(1 - slope**2)).logpdf(0.2)
    )
    assert_allclose(model.log_prob({"x": 0 * z, "z": z, "y": 0 * z + 0.2}), expected, atol=1e-7)


# --- interventions ----------------------------------------------------------------------------------------


def test_interventional_moment_is_met_and_has_the_closed_form():
    # Confounded causes x1, x2 of y: E[y | do(x1=1)] fixes sum_x2 p(x2) p(y|1,x2).
    p = np.array([[0.4, 0.1], [0.15, 0.35]])
    causes = [
        Constraint(lambda a, b, i=i, j=j: (a == i) & (b == j), ("x1", "x2"), p[i, j], name=f"p{i}{j}")
        for i in range(2)
        for j in range(2)
    ]
    supports = {"x1": BIT, "x2": BIT, "y": BIT}
    graph = "x1->y;x2->y;x1--x2"
    cons = [*causes, mean("y", 0.5), Constraint(lambda y: y, ("y",), 0.8, name="do1", do={"x1": 1})]
    model = CMaxEnt(graph, cons, supports).fit()
    assert_allclose(model.implied_moments()[["Ey", "do1"]], [0.5, 0.8], atol=1e-9)
    assert_allclose(model.do({"x1": 1}).prob_table().groupby("y").sum().loc[1], 0.8, atol=1e-9)
    # p(y=1|x) = logistic(a + b w_r(x)/w(x)) with w_r = 1[x1=1] p(x2).
    table = model.prob_table().to_numpy().reshape(2, 2, 2)
    logit = np.log(table[..., 1] / table[..., 0])
    ratio = np.array([[0, 0], p.sum(axis=0) / p[1]])
    a, b = model.multipliers_["Ey"], model.multipliers_["do1"]
    assert_allclose(logit, a + b * ratio, atol=1e-9)


def test_interventional_moment_where_the_cause_never_occurs_is_refused():
    cons = [mean("x", 0.0), Constraint(lambda y: y, ("y",), 0.8, name="do1", do={"x": 1})]
    with pytest.raises(CMaxEntError, match="do1 was measured where the causes x have probability zero"):
        CMaxEnt("x->y", cons, {"x": BIT, "y": BIT}).fit()


def test_do_replaces_the_mechanism_and_keeps_all_others():
    on_xz, e_y, e_xy = chain_constraints(markov_truth(4))
    model = CMaxEnt("x->z->y;x->y", [*on_xz, mean("y", e_y), product("x", "y", e_xy)], chain_supports()).fit()
    table = model.prob_table().to_numpy().reshape(2, 3, 2)
    mutilated = model.do({"z": 2})
    got = mutilated.prob_table().to_numpy().reshape(2, 3, 2)
    p_x = table.sum(axis=(1, 2))
    expected = np.zeros((2, 3, 2))
    expected[:, 2] = p_x[:, None] * table[:, 2] / table[:, 2].sum(axis=1, keepdims=True)
    assert_allclose(got, expected, atol=1e-12)
    assert mutilated.graph_.parents[mutilated.graph_.block_of("z")] == ()
    assert (mutilated.sample(50, 0)["z"] == 2).all()
    positive = expected[expected > 0]
    assert_allclose(mutilated.entropy(), -(positive * np.log(positive)).sum(), atol=1e-10)
    assert_allclose(model.prob_table().to_numpy().reshape(2, 3, 2), table)  # the original is untouched


def test_do_on_a_member_of_a_block_leaves_the_rest_its_marginal():
    p = np.array([[0.4, 0.1], [0.15, 0.35]])
    causes = [
        Constraint(lambda a, b, i=i, j=j: (a == i) & (b == j), ("a", "b"), p[i, j], name=f"p{i}{j}")
        for i in range(2)
        for j in range(2)
    ]
    model = CMaxEnt(None, causes, {"a": BIT, "b": BIT}).fit()
    assert_allclose(model.do({"a": 1}).prob_table().loc[1], p.sum(axis=0), atol=1e-10)


def test_do_on_a_continuous_cause_evaluates_the_mechanism_there():
    constraints = [mean("x", 0.0), square("x", 1.0), mean("y", 0.5), product("x", "y", 0.2)]
    model = CMaxEnt("x->y", constraints, {"x": REAL, "y": BIT}).fit()
    slope, offset = model.multipliers_["Exy"], model.multipliers_["Ey"]
    mutilated = model.do({"x": 3.7})
    p = 1 / (1 + np.exp(-(offset + slope * 3.7)))
    assert_allclose(np.exp(mutilated.log_prob({"x": [3.7, 3.7, 0.0], "y": [1, 0, 1]})), [p, 1 - p, 0], atol=1e-10)
    assert_allclose(mutilated.entropy(), -(p * np.log(p) + (1 - p) * np.log(1 - p)), atol=1e-10)


# --- continuous variables ---------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.floats(-1e3, 1e3), st.floats(-3, 3))
def test_mean_and_second_moment_on_the_line_give_the_gaussian(mu, log_sd):
    sd = 10.0**log_sd
    if abs(mu) > 1e4 * sd:  # the second moment itself then carries no variance in double precision
        mu = 1e4 * sd
    model = CMaxEnt(None, [mean("x", mu), square("x", mu**2 + sd**2)], {"x": REAL}).fit()
    x = mu + sd * np.array([-3.0, -1.0, 0.0, 2.0])
    assert_allclose(model.log_prob(x[:, None]), norm(mu, sd).logpdf(x), atol=1e-5)
    assert_allclose(model.entropy(), norm(mu, sd).entropy(), atol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_absolute_mean_on_the_line_gives_the_laplace_law_at_any_scale(scale):
    model = CMaxEnt(None, [Constraint(np.abs, ("x",), scale, name="abs")], {"x": REAL}).fit()
    assert_allclose(model.multipliers_["abs"], -1 / scale, rtol=1e-9)
    assert_allclose(model.entropy(), 1 + np.log(2 * scale), atol=1e-9)


def test_mean_on_an_interval_gives_the_truncated_exponential_and_its_samples():
    model = CMaxEnt(None, [mean("x", 0.3)], {"x": Support.interval(0, 1)}).fit()
    lam = model.multipliers_["Ex"]
    assert_allclose(1 / (1 - np.exp(-lam)) - 1 / lam, 0.3, atol=1e-10)
    assert_allclose(model.log_prob([[0.25]]), np.log(lam / np.expm1(lam)) + lam * 0.25, atol=1e-10)
    assert model.log_prob([[1.5]])[0] == -np.inf
    draws = model.sample(20_000, 0)["x"]
    assert kstest(draws, lambda t: np.expm1(lam * t) / np.expm1(lam)).pvalue > 1e-3


def test_discontinuous_function_is_integrated_with_a_warning_and_sampled_correctly():
    jump = Constraint(lambda x: x > 0.3, ("x",), 0.5, name="jump")
    with pytest.warns(UserWarning, match="a function that jumps"):
        model = CMaxEnt(None, [jump], {"x": Support.interval(0, 1)}).fit()
    assert_allclose(model.log_prob([[0.1], [0.8]]), np.log([0.5 / 0.3, 0.5 / 0.7]), atol=2e-3)
    assert_allclose((model.sample(20_000, 0)["x"] > 0.3).mean(), 0.5, atol=0.015)


def test_log_prob_of_a_mixed_density_integrates_to_one():
    constraints = [
        mean("y", 0.4),
        mean("x", 0.1),
        square("x", 0.5),
        product("x", "y", 0.2),
        Constraint(lambda x, u: np.cos(x) * u, ("x", "u"), 0.45, name="cos"),
    ]
    supports = {"y": BIT, "x": REAL, "u": Support.interval(0, 2)}
    model = CMaxEnt("y->x->u", constraints, supports).fit()
    x, u = np.linspace(-9, 9, 721), np.linspace(0, 2, 201)
    grid = np.meshgrid([0, 1], x, u, indexing="ij")
    density = np.exp(model.log_prob(np.stack([g.ravel() for g in grid], axis=1))).reshape(2, 721, 201)
    assert_allclose(trapezoid(trapezoid(density, u, axis=2), x, axis=1).sum(), 1, atol=1e-4)
    assert_allclose(model.implied_moments(), [0.4, 0.1, 0.5, 0.2, 0.45], atol=1e-8)
    draws = model.sample(20_000, 0)
    assert_allclose((np.cos(draws["x"]) * draws["u"]).mean(), 0.45, atol=0.02)
    assert_allclose((draws["x"] * draws["y"]).mean(), 0.2, atol=0.02)


def test_generic_fit_reproduces_the_worked_numbers_of_both_directions():
    mu, sigma, c, pi = np.array([1, -2.0]), np.array([[2, 0.6], [0.6, 1]]), np.array([0.25, -0.1]), 0.3
    constraints = [
        *gaussian_constraints(["x1", "x2"], mu, sigma),
        mean("y", pi),
        product("x1", "y", c[0] + pi * mu[0]),
        product("x2", "y", c[1] + pi * mu[1]),
    ]
    supports = {"x1": REAL, "x2": REAL, "y": BIT}
    causal = CMaxEnt("causal", constraints, supports, target="y").fit()
    lam = [causal.multipliers_[k] for k in ("Ey", "Ex1y", "Ex2y")]
    assert_allclose(lam, [-6.0609764995922, 1.436629495669, -1.622001043498], atol=1e-8)
    anticausal = CMaxEnt("anticausal", constraints, supports, target="y").fit()
    points = {"x1": [0, 0, 1, 1, 0, 0], "x2": [0, 0, 0, 0, 1, 1], "y": [1, 0] * 3}
    odds = -np.diff(anticausal.log_prob(points))[::2]
    assert_allclose([odds[0], *(odds[1:] - odds[0])], [-5.664645239183, 1.336783096162, -1.509271237602], atol=1e-8)


def test_three_real_variables_in_one_block_give_the_gaussian_entropy():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(3, 3))
    sigma = a @ a.T + 0.3 * np.eye(3)
    model = CMaxEnt(None, gaussian_constraints("abc", np.zeros(3), sigma), dict.fromkeys("abc", REAL)).fit()
    assert_allclose(model.entropy(), np.linalg.slogdet(2 * np.pi * np.e * sigma)[1] / 2, atol=1e-9)


def test_five_real_variables_by_quasi_monte_carlo_come_close_to_the_gaussian():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(5, 5)) / np.sqrt(5)
    sigma = a @ a.T + 0.5 * np.eye(5)
    model = CMaxEnt(None, gaussian_constraints("abcde", np.zeros(5), sigma), dict.fromkeys("abcde", REAL)).fit()
    assert_allclose(model.entropy(), np.linalg.slogdet(2 * np.pi * np.e * sigma)[1] / 2, atol=0.02)
    assert_allclose(model.sample(5000, 0).cov(), sigma, atol=0.12)


def test_binary_effect_of_six_real_causes_by_quasi_monte_carlo():
    d, c = 6, 0.1
    names = [f"x{i}" for i in range(d)]
    constraints = [k for v in names for k in (mean(v, 0.0), square(v, 1.0))]
    constraints += [mean("y", 0.5), *(product(v, "y", c) for v in names)]
    model = CMaxEnt(";".join(f"{v}->y" for v in names), constraints, {**dict.fromkeys(names, REAL), "y": BIT}).fit()
    q = d * c**2
    tau = solve_binary_scale(0.5, q)[1]
    assert_allclose([model.multipliers_[f"E{v}y"] for v in names], tau / np.sqrt(q) * c, rtol=0.1)
    assert model.solver_info_["y"]["integration"] == "quasi-Monte-Carlo"


@pytest.mark.parametrize(
    ("constraints", "supports"),
    [
        ([], {"x": REAL}),
        ([mean("x", 3.0)], {"x": REAL}),
        ([Constraint(lambda x, y: (x + y) ** 2, ("x", "y"), 1.0, name="sum")], {"x": REAL, "y": REAL}),
        ([product("x", "b", 0.2)], {"x": REAL, "b": BIT}),
    ],
)
def test_line_without_second_moment_has_unbounded_entropy(constraints, supports):
    with pytest.raises(UnboundedEntropyError, match="x"):
        CMaxEnt(None, constraints, supports).fit()


def test_structural_zeros_over_a_continuous_cause_hold_between_the_nodes():
    # y never occurs where x > 1/2, so p(y=1|x) = .4 below and 0 above gives E[y] = .2.
    constraints = [Constraint(lambda x, y: (x > 0.5) * y, ("x", "y"), 0.0, name="never"), mean("y", 0.2)]
    model = CMaxEnt("x->y", constraints, {"x": Support.interval(0, 1), "y": BIT}).fit()
    p = np.exp(model.log_prob({"x": [0.1, 0.4999, 0.5001, 0.77], "y": [1] * 4}))
    assert_allclose(p, [0.4, 0.4, 0, 0], atol=1e-9)
    assert model.multipliers_["never"] == -np.inf
    assert np.isfinite(model.multipliers_["Ey"])
    draws = model.sample(5000, 0)
    assert not ((draws["x"] > 0.5) & (draws["y"] == 1)).any()


def test_interventional_moment_with_a_continuous_confounder():
    constraints = [mean("u", 0.0), square("u", 1.0), mean("x", 0.4), product("u", "x", 0.15), mean("y", 0.5)]
    constraints += [product("u", "y", 0.1), Constraint(lambda y: y, ("y",), 0.7, name="do1", do={"x": 1})]
    model = CMaxEnt("u->x;u->y;x->y", constraints, {"u": REAL, "x": BIT, "y": BIT}).fit()
    assert_allclose(model.implied_moments(), [c.value for c in constraints], atol=1e-8)
    mutilated = model.do({"x": 1}).sample(40_000, 0)
    assert_allclose(mutilated["y"].mean(), 0.7, atol=0.01)
    assert_allclose(mutilated["u"].mean(), 0.0, atol=0.02)
    observed = model.sample(40_000, 1)
    assert_allclose((observed["u"] * observed["x"]).mean(), 0.15, atol=0.02)


# --- errors -----------------------------------------------------------------------------------------------


def test_causal_infeasibility_names_block_and_constraints_though_the_joint_is_feasible():
    # y = x almost surely and E[y] = .9 is fine jointly, but not when x is a fair coin first.
    constraints = [Constraint(lambda x, y: x == y, ("x", "y"), 1.0, name="same"), mean("y", 0.9)]
    supports = {"x": BIT, "y": BIT}
    CMaxEnt(None, constraints, supports).fit()
    with pytest.raises(InfeasibleMomentsError, match="mechanism of y given x") as caught:
        CMaxEnt("x->y", constraints, supports).fit()
    assert caught.value.names == ("same", "Ey")
    u = caught.value.certificate
    f = np.array([[[1, 0], [0, 1]], [[0, 0], [1, 1]]], float)  # (x, y, feature)
    assert u @ [1.0, 0.9] > (f @ u).max(axis=1).mean()


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: CMaxEnt("x->y", [], None).fit(), CMaxEntError, "support of every variable"),
        (lambda: CMaxEnt("x->y", [mean("q", 1.0)], {"x": BIT, "y": BIT}).fit(), CMaxEntError, "names q"),
        (lambda: CMaxEnt("x->q", [], {"x": BIT, "y": BIT}).fit(), GraphError, "q"),
        (lambda: CMaxEnt("x->y", [mean("x", 0.5)] * 2, {"x": BIT, "y": BIT}).fit(), CMaxEntError, "two constraints"),
        (lambda: CMaxEnt("x->y", [], {"x": BIT, "y": BIT}, slack=-1).fit(), CMaxEntError, "slack"),
        (lambda: CMaxEnt("x->y", [], {"x": BIT, "y": [0, 1]}).fit(), CMaxEntError, "support of y is a list"),
        (lambda: CMaxEnt("x->y", [], {"x": BIT, "y": BIT}, nonlocal_="x").fit(), CMaxEntError, "nonlocal_"),
        (lambda: CMaxEnt(None, [], dict.fromkeys("abcdefghijklmnopq", BIT)).fit(), StateSpaceTooLargeError, "131072"),
        (lambda: CMaxEnt("x->y", [], {"x": BIT, "y": BIT}).prob_table(), CMaxEntError, "not fitted"),
        (lambda: CMaxEnt("x->y", [], {"x": BIT, "y": BIT}).fit().log_prob({"x": [1]}), CMaxEntError, "lack y"),
        (lambda: CMaxEnt("x->y", [], {"x": BIT, "y": BIT}).fit().log_prob([[1]]), CMaxEntError, "expected 2 columns"),
        (lambda: CMaxEnt("x->y", [], {"x": BIT, "y": BIT}).fit().do({"x": 2}), CMaxEntError, "outside the support"),
        (lambda: CMaxEnt("x->y", [], {"x": BIT, "y": BIT}).fit().do({"w": 1}), CMaxEntError, "variables are x, y"),
        (lambda: CMaxEnt(None, [], {"x": Support.interval(0, 1)}).fit().prob_table(), CMaxEntError, "no finite"),
        (lambda: Support.interval(1, 0), CMaxEntError, "a < b"),
        (lambda: Support.discrete([1, 1]), CMaxEntError, "distinct"),
        (lambda: Constraint(lambda x: x, ("x",), np.nan, name="m"), CMaxEntError, "m is nan"),
        (lambda: Constraint(lambda x: x, (), 1.0), CMaxEntError, "scope"),
        (
            lambda: CMaxEnt("x->y", [Constraint(lambda x: x[:1], ("x",), 0.5)], {"x": BIT, "y": BIT}).fit(),
            CMaxEntError,
            "returned shape",
        ),
        (
            lambda: CMaxEnt("x->y", [mean("x", 0.5, do={"y": 1})], {"x": BIT, "y": BIT}).fit(),
            CMaxEntError,
            "come before",
        ),
        (lambda: CMaxEnt("x->y", [mean("y", 0.5, do={"x": 7})], {"x": BIT, "y": BIT}).fit(), CMaxEntError, "outside"),
    ],
)
def test_bad_input_is_refused_in_words(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_no_constraints_give_the_uniform_law():
    model = CMaxEnt("x->y", None, {"x": Support.discrete("abc"), "y": Support.interval(0, 4)}).fit()
    assert_allclose(model.entropy(), np.log(12), atol=1e-12)
    assert isinstance(model.factors_[0], TableFactor)
    assert model.multipliers_ == {}


# --- from first and second moments ------------------------------------------------------------------------


def chain_moments():
    sigma = np.array([[1, 0.2, 0.4], [0.2, 0.2275, 0.3], [0.4, 0.3, 2]])
    return Moments.from_arrays([0, 0.35, 0], sigma, names=["x1", "y", "x2"], kinds={"y": "binary"})


def test_fit_moments_reproduces_the_worked_chain_and_its_prediction():
    model = CMaxEnt("x1->y; y->x2; x1->x2").fit_moments(chain_moments())
    x = {"x1": np.zeros(6), "x2": np.zeros(6), "y": np.array([0, 1] * 3)}
    x["x1"][2:4], x["x2"][4:6] = 1, 1
    odds = np.diff(model.log_prob(x))[::2]
    assert_allclose([odds[0], *(odds[1:] - odds[0])], [-0.89421178, 0.95366483, 0.74173972], atol=1e-7)
    implied = model.implied_moments()
    assert_allclose(implied.cov, chain_moments().cov, atol=1e-9)
    draws = model.sample(100_000, 0)[["x1", "y", "x2"]]
    assert_allclose(draws.cov(ddof=0), implied.cov, atol=0.03)
    # The chain rule against the average of -log p.
    assert_allclose(model.entropy(), -model.log_prob(draws).mean(), atol=0.02)


def test_fit_moments_and_generic_fit_agree():
    sigma = np.array([[1, 0.3], [0.3, 0.21]])
    moments = Moments.from_arrays([0.5, 0.3], sigma, names=["x", "y"], kinds={"y": "binary"})
    closed = CMaxEnt("x->y").fit_moments(moments)
    constraints = [mean("x", 0.5), square("x", 1.25), mean("y", 0.3), product("x", "y", 0.45)]
    generic = CMaxEnt("x->y", constraints, {"x": REAL, "y": BIT}).fit()
    points = {"x": [0.3, -1.0, 2.0], "y": [1, 0, 1]}
    assert_allclose(closed.log_prob(points), generic.log_prob(points), atol=1e-8)
    assert_allclose(closed.entropy(), generic.entropy(), atol=1e-9)
    assert_allclose(
        closed.do({"x": 1.0}).log_prob({"x": [1.0], "y": [1]}), generic.do({"x": 1.0}).log_prob({"x": [1.0], "y": [1]})
    )


def test_fit_moments_do_cuts_the_arrow_into_the_intervened_variable():
    mutilated = CMaxEnt("x1->y; y->x2; x1->x2").fit_moments(chain_moments()).do({"y": 1})
    draws = mutilated.sample(50_000, 0)
    assert (draws["y"] == 1).all()
    assert_allclose(draws["x1"].mean(), 0, atol=0.02)  # observing y=1 would shift it
    assert_allclose(draws["x2"].mean(), 1.17333333 * 0.65, atol=0.03)
    assert np.isfinite(mutilated.entropy())


def test_fit_moments_without_a_graph_says_what_to_do():
    with pytest.raises(CMaxEntError, match="needs a graph"):
        CMaxEnt().fit_moments(chain_moments())
