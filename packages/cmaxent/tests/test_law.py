"""Variable elimination, Sobol points and conditionals against enumeration of the joint table."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from cmaxent.errors import StateSpaceTooLargeError
from cmaxent.factors import GaussianFactor, LogisticFactor, TableFactor
from cmaxent.law import Law, eliminate
from cmaxent.tilted import Nodes

SIZES = {"a": 2, "b": 3, "c": 2, "d": 4}


def random_law(seed=0):
    rng = np.random.default_rng(seed)
    law, joint = Law(), np.ones((1, 1, 1, 1))
    for v, parents in {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c")}.items():
        shape = [SIZES[p] for p in parents]
        t = rng.dirichlet(np.ones(SIZES[v]), size=shape)
        labels = {w: tuple(range(SIZES[w])) for w in (*parents, v)}
        law = law.then(
            TableFactor((v,), parents, labels, np.log(t)), {v: Nodes({v: np.arange(SIZES[v])}, np.zeros(SIZES[v]))}
        )
        names = (*parents, v)
        joint = joint * np.einsum(t, ["abcd".index(w) for w in names], sorted("abcd".index(w) for w in names)).reshape(
            [SIZES[w] if w in names else 1 for w in "abcd"]
        )
    return law, joint


def test_marginals_match_the_joint_table_in_any_order_of_axes():
    law, joint = random_law()
    assert_allclose(law.marginal("abcd"), joint)
    assert_allclose(law.marginal(("d", "a")), joint.sum(axis=(1, 2)).T)
    assert_allclose(law.marginal(("c",)), joint.sum(axis=(0, 1, 3)))


def test_elimination_handles_networks_whose_joint_table_could_not_be_held():
    rng = np.random.default_rng(0)
    tables, p = [(("x0",), np.array([0.3, 0.7]))], np.array([0.3, 0.7])
    for i in range(1, 200):
        t = rng.dirichlet(np.ones(2), size=2)
        tables.append(((f"x{i - 1}", f"x{i}"), t))
        p = p @ t
    assert_allclose(eliminate(tables, ("x199",)), p)
    with pytest.raises(StateSpaceTooLargeError, match="states"):
        eliminate(tables, tuple(f"x{i}" for i in range(40)))


def test_conditional_matches_bayes_rule():
    law, joint = random_law(1)
    values, logs = law.conditional(("d",), ("a",))({"d": np.array([0, 3])}, 2)
    expected = joint.sum(axis=(1, 2))[:, [0, 3]].T
    assert_allclose(np.exp(logs), expected)
    assert values["a"].tolist() == [[0, 1], [0, 1]]


def test_interventions_drop_the_mechanism():
    law, joint = random_law(2)
    conditional_d = joint / joint.sum(axis=3, keepdims=True)
    p_ab = joint.sum(axis=(2, 3))
    expected = np.einsum("ab,abd->d", p_ab, conditional_d[:, :, 1])
    assert_allclose(law.do({"c": 1}).marginal(("d",)), expected)


def gaussian_chain():
    one = np.ones((1, 1))
    x = GaussianFactor(("x",), (), np.zeros(1), np.zeros((1, 0)), one)
    z = GaussianFactor(("z",), ("x",), np.zeros(1), 0.8 * one, 0.36 * one)
    y = LogisticFactor("y", ("z",), 0.0, np.array([1.5]))
    return Law((x, z, y), {"y": Nodes({"y": np.arange(2)}, np.zeros(2))})


def test_points_of_continuous_factors_have_their_moments():
    values, weights = gaussian_chain().points(("x", "y"))
    assert_allclose(weights @ values["x"] ** 2, 1, atol=5e-3)
    assert_allclose(weights @ (values["x"] * values["z"]), 0.8, atol=5e-3)
    assert_allclose(weights @ values["y"], 0.5, atol=5e-3)


def test_likelihood_weighting_recovers_the_gaussian_posterior():
    values, logs = gaussian_chain().conditional(("z",), ("x",))({"z": np.array([-1.0, 0.5])}, 2)
    p = np.exp(logs)
    assert_allclose((p * values["x"]).sum(axis=1) / p.sum(axis=1), 0.8 * np.array([-1.0, 0.5]), atol=0.01)
    assert_allclose(p.sum(axis=1), np.exp(-np.array([1.0, 0.25]) / 2) / np.sqrt(2 * np.pi), rtol=0.01)


def test_parent_coordinates_are_traced_to_their_variable():
    law = gaussian_chain()
    child = GaussianFactor(("w",), ("y=1", "x"), np.zeros(1), np.ones((1, 2)), np.ones((1, 1)))
    assert law.then(child, {}).parents_of(child) == ("y", "x")
