"""Tilted factors against direct integrals."""

import numpy as np
from numpy.testing import assert_allclose
from scipy.special import logsumexp
from scipy.stats import kstest

from cmaxent.tilted import Nodes, TiltedFactor, product_nodes


def legendre(name, low, high, n):
    x, w = np.polynomial.legendre.leggauss(n)
    half = (high - low) / 2
    ends = low + half * np.concatenate([[0.0], np.cumsum(w)])
    return Nodes({name: low + half * (1 + x)}, np.log(half * w), {name: np.stack([ends[:-1], ends[1:]], axis=1)})


def tilted():
    """p(s, t | x) on [0, 1] x {-1, 1}, proportional to exp(x s + 2 s t)."""
    return TiltedFactor(
        ("s", "t"),
        ("x",),
        lambda v: np.column_stack([v["x"] * v["s"], v["s"] * v["t"]]),
        np.array([1.0, 2.0]),
        None,
        (legendre("s", 0.0, 1.0, 40), Nodes({"t": np.array([-1.0, 1.0])}, np.zeros(2))),
        lambda v: (v["s"] >= 0) & (v["s"] <= 1) & np.isin(v["t"], [-1.0, 1.0]),
    )


def integral(a):
    return np.expm1(a) / a


def test_tilted_factor_is_normalised_and_its_draws_follow_it():
    f, n = tilted(), 20_000
    x = np.array([0.3, -1.0, 0.3])
    log_z = np.log(integral(x + 2) + integral(x - 2))
    values = {"x": x, "s": np.array([0.5, 0.2, 1.5]), "t": np.array([1.0, -1.0, 1.0])}
    expected = np.where(values["s"] <= 1, x * values["s"] + 2 * values["s"] * values["t"] - log_z, -np.inf)
    assert_allclose(f.log_prob(values), expected, atol=1e-12)
    draws = f.sample({"x": np.tile([0.3, -1.0], n)}, np.random.default_rng(0))
    for k, a in enumerate([0.3, -1.0]):
        up = integral(a + 2) / (integral(a + 2) + integral(a - 2))
        s, t = draws["s"][k::2], draws["t"][k::2]
        assert abs((t > 0).mean() - up) < 4 * np.sqrt(up * (1 - up) / n)
        assert kstest(s[t > 0], lambda q, a=a: np.expm1((a + 2) * q) / np.expm1(a + 2)).pvalue > 1e-3


def test_proposal_weights_turn_cells_into_the_target():
    f = tilted()
    u = np.random.default_rng(0).random((50_000, 2))
    points, log_weight = f.propose({"x": np.zeros(50_000)}, u)
    grid = np.linspace(0, 1, 20_001)
    mean_s = np.mean(grid * 2 * np.cosh(2 * grid)) / np.mean(2 * np.cosh(2 * grid))
    assert_allclose(np.average(points["s"], weights=np.exp(log_weight)), mean_s, atol=5e-3)
    assert_allclose(np.exp(log_weight).mean(), 1, atol=2e-3)


def test_tilted_marginals_and_entropies_agree_with_direct_integrals():
    f = tilted()
    x = np.array([0.3, -1.0])
    s = f.marginal(["s"])
    q = np.array([0.1, 0.9])
    log_z = np.log(integral(x + 2) + integral(x - 2))
    assert_allclose(s.log_prob({"x": x, "s": q}), logsumexp([(x + 2) * q, (x - 2) * q], axis=0) - log_z, atol=1e-12)
    grid, w = np.polynomial.legendre.leggauss(60)
    grid, w = (1 + grid) / 2, w / 2
    for i, a in enumerate(x):
        joint = np.array([a * grid + 2 * grid * t - log_z[i] for t in (-1, 1)])
        assert_allclose(f.conditional_entropy({"x": x})[i], -(np.exp(joint) * joint).sum(axis=0) @ w, atol=1e-10)
        alone = logsumexp(joint, axis=0)
        assert_allclose(s.conditional_entropy({"x": x})[i], -(np.exp(alone) * alone) @ w, atol=1e-10)
    assert f.marginal(["s", "t"]) is f


def test_recession_excludes_the_points_below_the_face():
    nodes = Nodes({"t": np.array([0, 1, 2])}, np.zeros(3))
    f = TiltedFactor(
        ("t",), (), lambda v: np.column_stack([v["t"] == 1, v["t"] == 2]).astype(float), np.array([0.0, 0.0]),
        np.array([-1.0, 0.0]), (nodes,), lambda v: np.isin(v["t"], [0, 1, 2]),
    )  # fmt: skip
    assert_allclose(np.exp(f.log_prob({"t": np.array([0, 1, 2])})), [0.5, 0, 0.5])
    assert set(f.sample({}, np.random.default_rng(0), 200)["t"]) == {0, 2}
    assert_allclose(f.conditional_entropy({}, 1), np.log(2))


def test_product_rule_integrates_products():
    grid = product_nodes([legendre("s", 0.0, 2.0, 5), legendre("t", -1.0, 1.0, 5)])
    assert_allclose(np.exp(grid.log_weights) @ (grid.values["s"] ** 3 * grid.values["t"] ** 2), 4 * 2 / 3)
