"""The conditional dual against brute force, its certificates against the inequalities they claim."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.optimize import LinearConstraint, minimize
from scipy.special import logsumexp

from cmaxent.dual import (
    InconsistentConstraintsError,
    InfeasibleConstraintsError,
    solve_conditional,
)
from cmaxent.errors import CMaxEntError, InconsistentMomentsError, InfeasibleMomentsError

SEEDS = st.integers(0, 10**6)


def random_problem(seed, n_w=4, n_v=5, J=3):
    rng = np.random.default_rng(seed)
    f = rng.normal(size=(n_w, n_v, J)) * np.exp(rng.normal(size=J)) + rng.normal(size=J)
    w = rng.dirichlet(np.ones(n_w))
    p = rng.dirichlet(np.ones(n_v), size=n_w)
    return f, w, np.einsum("w,wv,wvj->j", w, p, f), rng


def conditional(f, solution, log_base):
    logs = f @ solution.finite + log_base
    if solution.support is not None:
        logs = np.where(solution.support, logs, -np.inf)
    return np.exp(logs - logsumexp(logs, axis=1, keepdims=True))


def moments(f, w, p):
    return np.einsum("w,wv,wvj->j", w, p, f)


def farkas_gap(f, w, m, u):
    """Independent of the solver: u . m - E max_v u . f."""
    return u @ m - w @ (f @ u).max(axis=1)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 6), st.integers(2, 6), st.integers(1, 6))
def test_solution_is_exponential_and_meets_the_moments(seed, n_w, n_v, J):
    f, w, m, rng = random_problem(seed, n_w, n_v, J)
    base = rng.normal(size=n_v)
    s = solve_conditional(f, m, w, base)
    p = conditional(f, s, base)
    assert_allclose(moments(f, w, p), m, atol=1e-8 * np.abs(f).max())
    assert_allclose(s.entropy, -(w @ (p * (np.log(p) - base)).sum(axis=1)), atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_multipliers_match_a_general_minimiser_of_the_dual(seed):
    f, w, m, _ = random_problem(seed)
    omega = 0.1 * np.eye(3) if seed % 2 else np.zeros((3, 3))
    s = solve_conditional(f, m, w, np.zeros(5), omega=omega)
    peer = minimize(
        lambda lam: w @ logsumexp(f @ lam, axis=1) - lam @ m + lam @ omega @ lam / 2,
        np.zeros(3),
        method="BFGS",
        options={"gtol": 1e-9},
    )
    assert_allclose(s.multipliers, peer.x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_no_distribution_on_the_simplex_has_larger_conditional_entropy(seed):
    f, w, m, _ = random_problem(seed, n_w=3, n_v=4, J=2)
    s = solve_conditional(f, m, w, np.zeros(4))

    def negative_entropy(q):
        p = q.reshape(3, 4)
        return w @ (p * np.log(np.maximum(p, 1e-300))).sum(axis=1)

    rows = np.kron(np.eye(3), np.ones(4))
    means = (w[:, None, None] * f).reshape(12, 2).T
    peer = minimize(
        negative_entropy,
        np.full(12, 0.25),
        method="SLSQP",
        bounds=[(1e-12, 1)] * 12,
        constraints=[LinearConstraint(rows, 1, 1), LinearConstraint(means, m, m)],
        options={"ftol": 1e-13, "maxiter": 500},
    )
    assert_allclose(-peer.fun, s.entropy, atol=1e-6)
    assert_allclose(peer.x.reshape(3, 4), conditional(f, s, np.zeros(4)), atol=1e-3)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 4))
def test_farkas_vector_proves_infeasibility(seed, J):
    f, w, m, rng = random_problem(seed, J=J)
    direction = rng.normal(size=J)
    top = w @ (f @ direction).max(axis=1)  # beyond the support function in one direction: impossible
    m = m + direction * (top - direction @ m + 0.3) / (direction @ direction)
    with pytest.raises(InfeasibleMomentsError) as caught:
        solve_conditional(f, m, w, np.zeros(5), names=[f"c{j}" for j in range(J)])
    error = caught.value
    assert isinstance(error, InfeasibleConstraintsError)
    assert farkas_gap(f, w, m, error.certificate) > 0
    assert_allclose(farkas_gap(f, w, m, error.certificate), error.gap, rtol=1e-9)
    assert set(error.names) == {f"c{j}" for j in np.flatnonzero(error.certificate)}
    assert all(name in str(error) for name in error.names)


def test_conflict_is_irreducible_and_innocent_constraints_are_not_named():
    # x z <= 2 x for z in {0, 1, 2}, so E xz = 1.9 needs E x >= .95, whatever the law of z.
    x, z = (a.ravel() for a in np.meshgrid([0.0, 1.0], [0.0, 1.0, 2.0]))
    names = ["Ex", "Pz1", "Exz", "Pz2"]
    f = np.stack([x, z == 1, x * z, z == 2], axis=-1)[None].astype(float)
    with pytest.raises(InfeasibleConstraintsError, match=r"\[Exz\]") as caught:
        solve_conditional(f, [0.3, 0.02, 1.9, 0.96], [1.0], np.zeros(6), names=names)
    assert caught.value.names == ("Ex", "Exz")


def test_single_impossible_moment_says_which_values_are_possible():
    f = np.array([[[0.0], [1.0]], [[0.0], [0.0]]])
    with pytest.raises(InfeasibleMomentsError, match=r"no distribution has P = 0.6: it can be at most 0.5"):
        solve_conditional(f, [0.6], [0.5, 0.5], np.zeros(2), names=["P"])
    with pytest.raises(InfeasibleMomentsError, match=r"at least 0"):
        solve_conditional(f, [-0.1], [0.5, 0.5], np.zeros(2), names=["P"])


def test_boundary_moment_gives_structural_zero_and_infinite_multiplier():
    f = np.zeros((2, 2, 1))
    f[0, 1, 0] = 1
    s = solve_conditional(f, [0.0], [0.5, 0.5], np.zeros(2))
    assert s.multipliers[0] == -np.inf
    assert s.support.tolist() == [[True, False], [True, True]]
    assert_allclose(s.entropy, np.log(2) / 2)
    # The upper end of the polytope: P(w=0, v=1) = P(w=0).
    s = solve_conditional(f, [0.5], [0.5, 0.5], np.zeros(2))
    assert s.multipliers[0] == np.inf
    assert s.support.tolist() == [[False, True], [True, True]]


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 3))
def test_random_face_of_the_polytope_is_found_and_its_interior_solved(seed, J):
    f, w, _, rng = random_problem(seed, n_w=3, n_v=4, J=J)
    f = np.round(f)  # integer features: faces with several points
    u = np.round(rng.normal(size=J) * 2)
    exponent = f @ u
    face = exponent == exponent.max(axis=1, keepdims=True)
    p = np.where(face, rng.uniform(0.2, 1, face.shape), 0)
    p /= p.sum(axis=1, keepdims=True)
    m = moments(f, w, p)
    s = solve_conditional(f, m, w, np.zeros(4))
    q = conditional(f, s, np.zeros(4))
    assert_allclose(moments(f, w, q), m, atol=1e-7)
    # The entropy is at least that of any distribution with these moments, and no mass leaves the face.
    assert s.entropy >= -(w @ np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(axis=1)) - 1e-9
    assert q[~face].max(initial=0) < 1e-7
    if s.support is not None and not s.support.all():
        top = (f @ s.recession).max(axis=1, keepdims=True)
        assert_allclose((f @ s.recession)[s.support] - np.broadcast_to(top, face.shape)[s.support], 0, atol=1e-6)
        assert ((top - f @ s.recession)[~s.support] > 0.5).all()


@pytest.mark.parametrize("m", [1e-3, 1e-6, 1e-9, 1e-12])
def test_tiny_probability_is_resolved_not_declared_zero(m):
    f = np.zeros((1, 4, 1))
    f[0, 0, 0] = 1
    s = solve_conditional(f, [m], [1.0], np.zeros(4))
    assert s.support is None
    assert_allclose(s.multipliers[0], np.log(3 * m / (1 - m)), rtol=1e-4)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 4), st.integers(2, 6), st.integers(1, 5))
def test_moments_of_laws_with_vanishing_probabilities_are_met(seed, n_w, n_v, J):
    rng = np.random.default_rng(seed)
    f, w = rng.normal(size=(n_w, n_v, J)), rng.dirichlet(np.ones(n_w))
    p = rng.dirichlet(np.full(n_v, 0.03), size=n_w)  # probabilities down to 1e-100
    s = solve_conditional(f, moments(f, w, p), w, np.zeros(n_v))
    q = conditional(f, s, np.zeros(n_v))
    assert_allclose(moments(f, w, q), moments(f, w, p), atol=1e-7)
    entropy = -(w @ np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(axis=1))
    assert s.entropy >= entropy - 1e-7


def test_redundant_features_get_minimum_norm_multipliers_and_the_same_density():
    f, w, m, _ = random_problem(1)
    plain = solve_conditional(f, m, w, np.zeros(5))
    doubled = solve_conditional(np.concatenate([f, f[..., :1]], axis=2), [*m, m[0]], w, np.zeros(5))
    assert_allclose(doubled.multipliers, [plain.multipliers[0] / 2, *plain.multipliers[1:], plain.multipliers[0] / 2])
    assert_allclose(doubled.entropy, plain.entropy, atol=1e-12)
    assert_allclose(doubled.log_partition, plain.log_partition, atol=1e-9)


def test_feature_that_only_depends_on_the_condition_has_no_say():
    f, w, m, rng = random_problem(2)
    g = np.broadcast_to(rng.normal(size=4)[:, None, None], (4, 5, 1))
    value = w @ g[:, 0, 0]
    plain = solve_conditional(f, m, w, np.zeros(5))
    s = solve_conditional(np.concatenate([f, g], axis=2), [*m, value], w, np.zeros(5))
    assert_allclose(s.multipliers, [*plain.multipliers, 0], atol=1e-8)
    with pytest.raises(InconsistentMomentsError, match="extra cannot be moved"):
        solve_conditional(np.concatenate([f, g], axis=2), [*m, value + 0.1], w, np.zeros(5), names=[*"abc", "extra"])


def test_contradictory_redundant_constraints_are_named_and_slack_compromises():
    f, w, m, _ = random_problem(3)
    g = np.concatenate([f, (2 * f[..., :1] - f[..., 1:2])], axis=2)
    wrong = [*m, 2 * m[0] - m[1] + 0.05]
    with pytest.raises(InconsistentConstraintsError) as caught:
        solve_conditional(g, wrong, w, np.zeros(5), names=["a", "b", "c", "d"])
    assert caught.value.names == ("a", "b", "d")
    n = caught.value.certificate
    assert_allclose(np.ptp(g @ n, axis=1), 0, atol=1e-9)  # the combination is fixed by w
    assert abs(n @ wrong - w @ (g @ n)[:, 0]) > 1e-3
    omega = np.diag([1e-8, 1e-8, 1e-8, 1e-4])
    s = solve_conditional(g, wrong, w, np.zeros(5), omega=omega)
    errors = moments(g, w, conditional(g, s, np.zeros(5))) - wrong
    assert_allclose(errors, -omega @ s.multipliers, atol=1e-9)
    assert np.abs(errors[3]) > 100 * np.abs(errors[:3]).max()  # precise moments give way least


def test_slack_makes_impossible_moments_solvable():
    f = np.array([[[0.0], [1.0]]])
    s = solve_conditional(f, [1.2], [1.0], np.zeros(2), omega=np.array([[0.1]]))
    p = 1 / (1 + np.exp(-s.multipliers[0]))
    assert_allclose(p - 1.2 + 0.1 * s.multipliers[0], 0, atol=1e-10)


def test_lazy_features_give_the_same_solution_as_an_array():
    f, w, m, _ = random_problem(4)
    seen = []

    def lazy(rows):
        seen.append(rows)
        return f[rows]

    s, t = (solve_conditional(g, m, w, np.zeros(5)) for g in (lazy, f))
    assert_allclose(s.multipliers, t.multipliers)
    assert seen


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_solution_is_equivariant_under_affine_changes_of_the_features(seed):
    f, w, m, rng = random_problem(seed)
    A, b = rng.normal(size=(3, 3)) + 3 * np.eye(3), 100 * rng.normal(size=3)
    s, t = solve_conditional(f, m, w, np.zeros(5)), solve_conditional(f @ A.T + b, A @ m + b, w, np.zeros(5))
    assert_allclose(A.T @ t.multipliers, s.multipliers, rtol=1e-6, atol=1e-6)
    assert_allclose(t.entropy, s.entropy, atol=1e-9)


def test_covariance_is_the_derivative_of_the_moments():
    f, w, m, _ = random_problem(5)
    s = solve_conditional(f, m, w, np.zeros(5))
    eps = 1e-5
    for j in range(3):
        shifted = np.eye(3)[j] * eps
        up = moments(f, w, _tilt(f, s.multipliers + shifted))
        down = moments(f, w, _tilt(f, s.multipliers - shifted))
        assert_allclose((up - down) / (2 * eps), s.covariance[j], rtol=1e-5, atol=1e-7)


def _tilt(f, lam):
    return np.exp(f @ lam - logsumexp(f @ lam, axis=1, keepdims=True))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"targets": [np.nan, 0, 0]}, "value of f0 is not finite"),
        ({"weights": [0.5, 0.5, 0.5, 0.5]}, "sum to one"),
        ({"weights": [1.0, 0.0, 0.0, 0.0]}, "positive"),
        ({"omega": -np.eye(3)}, "positive semi-definite"),
        ({"names": ["a"]}, "names"),
        ({"targets": [0.0]}, "names|shape"),
    ],
)
def test_bad_input_is_refused_in_words(change, match):
    f, w, m, _ = random_problem(0)
    arguments = {"features": f, "targets": m, "weights": w, "log_base": np.zeros(5)} | change
    with pytest.raises(CMaxEntError, match=match):
        solve_conditional(**arguments)


def test_infinite_feature_is_refused_by_name():
    f, w, m, _ = random_problem(0)
    f[0, 0, 1] = np.inf
    with pytest.raises(CMaxEntError, match="function of constraint b is not finite"):
        solve_conditional(f, m, w, np.zeros(5), names=["a", "b", "c"])


def test_problem_too_large_for_a_linear_programme_still_carries_its_certificate():
    rng = np.random.default_rng(0)
    n_w = 70_000
    f = rng.integers(0, 2, size=(n_w, 4, 1)).astype(float)
    w = np.full(n_w, 1 / n_w)
    with pytest.raises(InfeasibleConstraintsError) as caught:
        solve_conditional(f, [1.5], w, np.zeros(4))
    assert farkas_gap(f, w, np.array([1.5]), caught.value.certificate) > 0
