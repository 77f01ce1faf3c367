import numpy as np
import pytest

from isoica.contrasts import BUILT_IN, LOGCOSH, SKEW
from isoica.datasets import make_sources
from isoica.solvers import (
    deflation,
    fixed_point,
    minimise,
    numpy_pass,
    polar_factor,
    saddle_test,
    stability,
    symmetric,
)
from isoica.whitening import moments, white_chunks, whitening_matrix

LAWS = ["uniform", "laplace", "exponential", "bimodal"]


def white(S, weights=None, dtype="float64", batch_size=None):
    mean, cov = moments(S, weights, 1000)
    K, _ = whitening_matrix(cov, len(S), None)
    return white_chunks(S, mean, K, weights, dtype, batch_size), (S - mean) @ K.T


def rotation(d, seed):
    return polar_factor(np.random.default_rng(seed).normal(size=(d, d)))


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("weighted", [False, True])
def test_fused_pass_equals_plain_sums(name, weighted):
    S = make_sources(3001, LAWS, 0)
    w = np.random.default_rng(1).uniform(size=len(S)) if weighted else None
    chunks, Z = white(S, w, batch_size=700)
    W, c = rotation(4, 2), BUILT_IN[name]
    M, rho, m = numpy_pass(chunks)(W[1:3], [c] * 2)
    Y, p = Z @ W[1:3].T, np.full(len(S), 1 / len(S)) if w is None else w / w.sum()
    np.testing.assert_allclose(M, (p[:, None] * c.g(Y)).T @ Z, atol=1e-12)
    np.testing.assert_allclose(rho, p @ c.dg(Y), atol=1e-12)
    np.testing.assert_allclose(m, p @ c.G(Y), atol=1e-12)


@pytest.mark.parametrize("name", ["logcosh", "cube", "gauss"])
def test_solution_is_stationary_for_the_plain_objective(name):
    from scipy.linalg import expm

    chunks, Z = white(make_sources(4000, LAWS, 3))
    c = BUILT_IN[name]
    found = symmetric(numpy_pass(chunks), rotation(4, 0), [c] * 4, tol=1e-9, max_iter=200)
    assert found.converged

    def f(W):
        return -sum(s * np.mean(c.G(y)) for s, y in zip(found.signs, (Z @ W.T).T, strict=True))

    assert found.objective == pytest.approx(f(found.W), rel=1e-12)
    h = 1e-4
    for i in range(4):
        for j in range(i):
            E = np.zeros((4, 4))
            E[i, j], E[j, i] = h, -h
            up, down = f(expm(E) @ found.W), f(expm(-E) @ found.W)
            assert abs(up - down) / (2 * h) < 1e-6
            assert up + down - 2 * found.objective > 0  # a minimum, not a saddle


def test_deflation_rows_are_one_unit_optima_given_those_before():
    chunks, Z = white(make_sources(4000, LAWS, 4))
    found = deflation(numpy_pass(chunks), rotation(4, 1), [LOGCOSH] * 4, tol=1e-9, max_iter=200)
    assert found.converged
    np.testing.assert_allclose(found.W @ found.W.T, np.eye(4), atol=1e-12)
    for i in range(3):
        t = np.tanh(Z @ found.W[i]) @ Z / len(Z)
        assert np.max(np.abs(found.W[i + 1 :] @ t)) < 1e-8


@pytest.mark.parametrize("algorithm", ["symmetric", "deflation"])
def test_fixed_point_and_lbfgs_agree(algorithm):
    chunks, _ = white(make_sources(4000, LAWS, 5))
    pass_, cs, W = numpy_pass(chunks), [LOGCOSH] * 4, rotation(4, 2)
    slow = fixed_point(pass_, W, cs, algorithm=algorithm, tol=1e-10, max_iter=500)
    fast = (symmetric if algorithm == "symmetric" else deflation)(pass_, slow.W, cs, tol=1e-10, max_iter=5)
    assert slow.converged
    assert fast.converged
    np.testing.assert_allclose(np.abs(fast.W @ slow.W.T), np.eye(4), atol=1e-8)


def test_saddle_test_leaves_a_saddle_and_only_a_saddle():
    # Two sources turned by 45° are a stationary point of the exchangeable pair, but not a minimum.
    S = make_sources(20000, ["laplace"] * 3, 6)
    S = np.concatenate([S, S[:, [1, 0, 2]]])  # exchangeable in the first two: stationary by symmetry
    chunks, Z = white(np.concatenate([S, -S]))
    K = np.linalg.lstsq(np.concatenate([S, -S]), Z, rcond=None)[0].T
    pair = polar_factor(np.linalg.inv(K))
    turn = np.eye(3)
    turn[:2, :2] = np.array([[1, 1], [-1, 1]]) * np.sqrt(0.5)
    pass_, cs = numpy_pass(chunks), [LOGCOSH] * 3
    stuck = minimise(pass_, turn @ pair, cs, range(3), tol=1e-3, max_iter=0)
    free = saddle_test(chunks, cs, 40000)(stuck.W, stuck.signs, stuck.objective)
    assert free is not None
    moved = symmetric(pass_, stuck.W, cs, tol=1e-3, max_iter=100, saddle=saddle_test(chunks, cs, 40000))
    assert moved.objective < stuck.objective - 1e-3
    assert saddle_test(chunks, cs, 40000)(moved.W, moved.signs, moved.objective) is None


def test_float32_data_and_streaming_give_the_same_rotation():
    S = make_sources(5000, LAWS, 7)
    base = symmetric(numpy_pass(white(S)[0]), rotation(4, 3), [LOGCOSH] * 4, tol=1e-8, max_iter=200).W
    for options, tolerance in (({"batch_size": 333}, 1e-7), ({"dtype": "float32"}, 1e-5)):
        other = symmetric(numpy_pass(white(S, **options)[0]), rotation(4, 3), [LOGCOSH] * 4, tol=1e-6, max_iter=200).W
        np.testing.assert_allclose(np.abs(other @ base.T), np.eye(4), atol=max(tolerance, 1e-5))


def test_interruption_keeps_the_rotation_so_far():
    chunks, _ = white(make_sources(2000, LAWS, 8))
    inner, calls = numpy_pass(chunks), []

    def pass_(rows, contrasts):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return inner(rows, contrasts)

    found = symmetric(pass_, rotation(4, 4), [LOGCOSH] * 4, tol=1e-12, max_iter=100)
    assert found.interrupted
    assert not found.converged
    assert 0 < found.n_iter < 4
    np.testing.assert_allclose(found.W @ found.W.T, np.eye(4), atol=1e-12)


def test_stability_is_one_for_equal_runs_and_low_for_random_ones():
    runs = [rotation(5, s) for s in range(6)]
    same = [np.diag([1, -1, 1, 1, -1]) @ runs[0][np.random.default_rng(s).permutation(5)] for s in range(6)]
    np.testing.assert_allclose(stability(same, 2), 1, atol=1e-12)
    assert np.all(stability(runs, 0) < 0.7)
    assert np.all(np.isnan(stability(runs[:1], 0)))


def test_skew_finds_skewed_sources_of_either_sign():
    S = make_sources(20000, ["exponential"] * 3, 9) * [1, -1, 1]
    chunks, Z = white(S)
    found = symmetric(numpy_pass(chunks), rotation(3, 5), [SKEW] * 3, tol=1e-8, max_iter=200)
    c = np.abs(np.corrcoef(S.T, (Z @ found.W.T).T)[:3, 3:])
    assert np.all(np.sort(c, axis=1)[:, -1] > 0.999)
