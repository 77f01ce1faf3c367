from itertools import combinations, pairwise, product
from math import log2, pi

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from algocause.datasets import paper_bivariate, paper_covariate_shift
from algocause.errors import DataError, LimitError
from algocause.fc import (
    FAMILIES,
    bivariate_gaussian,
    covariate_shift,
    estimate_bivariate,
    log2_pmf,
    paper_candidates,
    penalty_bits,
    select_codewords,
)

# Exact optima of the paper's shipped setting: (k, FC, smallest NLL) forward and backward, without the labels.
TABLE = [
    ((2, 1, 1), 782.615, 735.858, (1, 2, 1), 812.652, 736.520),
    ((3, 1, 1), 761.700, 703.421, (1, 2, 2), 767.779, 700.695),
    ((2, 1, 1), 804.030, 751.770, (1, 2, 2), 824.931, 752.362),
    ((3, 1, 1), 772.087, 719.632, (1, 3, 1), 781.913, 717.752),
    ((2, 1, 1), 762.372, 712.242, (1, 2, 2), 781.806, 708.927),
]


@pytest.mark.parametrize("seed", range(5))
def test_the_paper_s_bivariate_setting_has_the_known_optimum(seed):
    X, theta = paper_bivariate(seed)
    for direction, (k, fc, nll) in zip(("X1->X2", "X2->X1"), (TABLE[seed][:3], TABLE[seed][3:]), strict=True):
        points = bivariate_gaussian(X, paper_candidates(theta, direction, 8), direction, k_max=15)
        best = min(points, key=lambda p: p.total_bits)
        assert best.k == k
        assert best.total_bits == pytest.approx(fc, abs=0.006)
        assert min(p.nll_bits for p in points) == pytest.approx(nll, abs=0.006)


def test_penalty_counts_the_programs_exactly():
    def surjections(n, k):
        return sum(set(f) == set(range(k)) for f in product(range(k), repeat=n))

    for n, k, m in [(1, 1, 1), (5, 1, 8), (5, 2, 8), (4, 3, 3), (5, 5, 6)]:
        chosen = sum(1 for _ in combinations(range(m), k))
        assert penalty_bits(n, k, m, "ideal") == pytest.approx(log2(chosen * surjections(n, k) * k), abs=1e-12)
    assert penalty_bits(5, 1, 8) == 7.0
    assert penalty_bits(5, 2, 8) == pytest.approx(22.4285, abs=1e-4)


def test_penalty_is_not_monotone_and_does_not_overflow():
    assert penalty_bits(10, 7, 20) > penalty_bits(10, 10, 20)
    assert 2 * 1000 * log2(400) < penalty_bits(1000, 400, 500) < 2 * 1000 * log2(500) + 2 * 500 + 2 * 400 * log2(400)


@pytest.mark.parametrize("k", [0, 4, 9])
def test_penalty_refuses_more_codewords_than_there_are(k):
    with pytest.raises(DataError, match=r"k must lie in 1\.\.3"):
        penalty_bits(3, k, 8)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 7), st.integers(1, 9), st.data())
def test_dp_equals_exhaustive_on_unimodal_costs(seed, n, m, data):
    k = data.draw(st.integers(1, m))
    rng = np.random.default_rng(seed)
    cost = np.empty((n, m))
    for row in cost:  # falls, then rises, in integer steps with ties and sometimes impossible codewords at the ends
        low = rng.integers(m)
        steps = rng.integers(0, 4, m)
        row[low:] = np.concatenate([[0], np.cumsum(steps[low + 1 :])])
        row[:low] = np.cumsum(steps[:low][::-1])[::-1]
        row[: rng.integers(low + 1)] = np.inf
    total, chosen, assign = select_codewords(cost, k)
    assert total == select_codewords(cost, k, "exhaustive")[0]
    assert len(set(chosen)) == k
    assert set(assign) <= set(chosen)
    assert total == min(cost[:, list(s)].min(1).sum() for s in combinations(range(m), k))


def test_dp_refuses_costs_that_rise_and_fall_again():
    cost = np.array([[0.0, 1, 2], [0, 1, 0]])
    with pytest.raises(DataError, match="environment 1"):
        select_codewords(cost, 1)
    assert select_codewords(cost, 1, "exhaustive")[:2] == (0.0, (0,))


def test_exhaustive_says_its_limit():
    with pytest.raises(LimitError, match="dp"):
        select_codewords(np.ones((2, 60)), 30, "exhaustive")


@pytest.mark.parametrize("direction", ["X1->X2", "X2->X1"])
def test_joint_solution_equals_enumeration_of_all_programs(direction):
    X, theta = paper_bivariate(3, n=6)
    books = paper_candidates(theta, direction, 4)
    points = {p.k: p for p in bivariate_gaussian(X, books, direction)}

    def nll(e, v1, v2, b):
        if v1 <= 0 or v2 <= 0:
            return np.inf
        if direction == "X1->X2":
            cov = [[v1, b * v1], [b * v1, b * b * v1 + v2]]
        else:
            cov = [[b * b * v2 + v1, b * v2], [b * v2, v2]]
        return -stats.multivariate_normal([0, 0], cov).logpdf(X[e]).sum() / np.log(2)

    table = np.array([[[nll(e, a, b, c) for c in books[2]] for b in books[1]]
                      for e in range(5) for a in books[0]]).reshape(5, *map(len, books))  # fmt: skip
    for k in [(1, 1, 1), (2, 1, 1), (2, 2, 1), (1, 2, 3), (3, 2, 2)]:
        best = min(
            table[np.ix_(range(5), *sets)].reshape(5, -1).min(1).sum()
            for sets in product(*(combinations(range(len(b)), m) for b, m in zip(books, k, strict=True)))
        )
        assert points[k].nll_bits == pytest.approx(best, abs=1e-9)
        assert sum(nll(e, *w) for e, w in enumerate(zip(*points[k].assignment, strict=True))) == pytest.approx(best)
        assert [len(w) for w in points[k].codewords] == list(k)


@pytest.mark.parametrize("seed", range(3))
def test_maximum_likelihood_is_never_longer_than_the_divergence_rule(seed):
    X, theta = paper_bivariate(seed)
    for direction in ("X1->X2", "X2->X1"):
        books = paper_candidates(theta, direction, 8)
        ml, kl = (bivariate_gaussian(X, books, direction, assign=a) for a in ("ml", "kl"))
        assert [p.k for p in ml] == [p.k for p in kl]
        assert all(a.nll_bits <= b.nll_bits + 1e-9 for a, b in zip(ml, kl, strict=True))
        assert any(a.nll_bits < b.nll_bits - 1e-3 for a, b in zip(ml, kl, strict=True))


def test_codebooks_hold_the_truth_or_leave_it_out():
    _, theta = paper_bivariate(0)
    forward = paper_candidates(theta, "X1->X2", 8)
    assert all(set(theta[:, i]) <= set(forward[i]) and len(forward[i]) == 8 for i in range(3))
    assert min(forward[0]) == 0
    honest = paper_candidates(theta, "X1->X2", 8, include_truth=False)
    assert [len(b) for b in honest] == [8, 8, 8]
    assert 9.0 not in honest[0]
    np.testing.assert_allclose(honest[2], np.linspace(0.85, 2.65, 8))
    tau1, tau2, back = (b.max() for b in paper_candidates(theta, "X2->X1", 8))
    assert tau2 >= 25 * 2.5**2 + 25
    assert tau1 > 0
    assert back < 1


def test_estimates_are_those_of_the_data():
    X, _ = paper_bivariate(0)
    for x, (v1, v2, b) in zip(X, estimate_bivariate(X), strict=True):
        np.testing.assert_allclose([[v1, b * v1], [b * v1, b * b * v1 + v2]], x.T @ x / len(x))


@pytest.mark.parametrize("family", FAMILIES)
def test_codewords_are_distributions(family):
    log_p = log2_pmf(family, np.linspace(0, 1, 23)[1:-1], 20)
    np.testing.assert_allclose((2.0**log_p).sum(1), 1, atol=1e-12)
    if family == "gaussian":  # far in both tails, against a normal density over one cell
        expected = stats.norm.logpdf(0, 21 / 22 * 22) / np.log(2)
        assert log_p[-1, 1] == pytest.approx(expected + log2(np.exp(20) * (np.exp(10) - np.exp(-10)) / 20), rel=0.01)


@pytest.mark.parametrize("family", ["poisson", "geometric", "gaussian"])
def test_covariate_shift_is_the_exact_optimum_and_never_grows_with_k(family):
    X1, X2, env, book = paper_covariate_shift(0, 4, family)
    points = covariate_shift(X1, env, family, book, 10)
    assert [p.k for p in points] == list(range(1, 11))
    assert len(book) == 21
    assert all(a.nll_bits >= b.nll_bits - 1e-9 for a, b in pairwise(points))
    log_p = log2_pmf(family, book, 20)
    cost = np.array([-log_p[:, X1[env == e]].sum(1) for e in range(10)])
    for p in points[:3]:
        assert p.nll_bits == pytest.approx(select_codewords(cost, p.k, "exhaustive")[0], abs=1e-9)
        assert p.penalty_bits == penalty_bits(10, p.k, 20)
    assert set(X2) <= set(range(20))
    assert len(X2) == 100


@pytest.mark.parametrize("truth", [2, 4])
def test_few_mechanisms_are_counted_right_and_seven_are_not(truth):
    def best_k(seed, n_mechanisms):
        X1, _, env, book = paper_covariate_shift(seed, n_mechanisms, n=200)
        return min(covariate_shift(X1, env, "poisson", book), key=lambda p: p.total_bits).k

    assert [best_k(seed, truth) for seed in range(5)] == [truth] * 5
    assert [best_k(seed, 7) for seed in range(5)] == [10] * 5  # the penalty falls from k = 7 to k = 10


def test_bad_input_is_named():
    X, theta = paper_bivariate(0)
    books = paper_candidates(theta, "X1->X2", 8)
    with pytest.raises(ValueError, match="direction"):
        bivariate_gaussian(X, books, "X1<-X2")
    with pytest.raises(DataError, match=r"\(environments, rows, 2\)"):
        bivariate_gaussian(X[0], books, "X1->X2")
    with pytest.raises(DataError, match="variances of X1"):
        bivariate_gaussian(X, ([-1.0], *books[1:]), "X1->X2")
    with pytest.raises(DataError, match="0 to 19"):
        covariate_shift([0, 20], [0, 1], "poisson", np.linspace(0.1, 0.9, 21))
    with pytest.raises(LimitError, match="k_max"):
        bivariate_gaussian(X, [np.arange(1.0, 40)] * 3, "X1->X2")


def test_normal_bits_are_those_of_the_density():
    X = np.random.default_rng(0).normal(size=(1, 9, 2))
    (point,) = bivariate_gaussian(X, ([2.0], [3.0], [0.5]), "X1->X2")
    x, y = X[0].T
    bits = 9 * log2(2 * pi) + 4.5 * log2(6) + (x @ x / 4 + (y - x / 2) @ (y - x / 2) / 6) / np.log(2)
    assert point.nll_bits == pytest.approx(bits)
    assert point.penalty_bits == 3.0
