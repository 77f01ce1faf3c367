import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoica import metrics
from isoica.errors import IsoICAError


def _signed_permutation(rng, d):
    P = np.zeros((d, d))
    P[np.arange(d), rng.permutation(d)] = rng.choice([-1, 1], d) * rng.uniform(0.1, 5, d)
    return P


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_every_score_is_perfect_for_permuted_scaled_sources(seed, d):
    rng = np.random.default_rng(seed)
    S = rng.laplace(size=(60, d))
    P = _signed_permutation(rng, d)
    Z = S @ P.T + rng.normal(size=d)
    assert metrics.mcc(S, Z) == pytest.approx(1, abs=1e-12)
    assert metrics.mcc(S, Z, kind="spearman") == pytest.approx(1, abs=1e-12)
    assert metrics.affine_r2(S, Z) == pytest.approx(1, abs=1e-10)
    assert metrics.amari_distance(P) == pytest.approx(0, abs=1e-12)
    assert metrics.unmixing_error(P) == pytest.approx(0, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_assignment_is_the_best_of_all_permutations(seed, d):
    rng = np.random.default_rng(seed)
    S, Z = rng.normal(size=(2, 40, d))
    c = np.abs(np.corrcoef(S.T, Z.T)[:d, d:])
    brute = max(np.mean([c[i, p[i]] for i in range(d)]) for p in itertools.permutations(range(d)))
    value, match = metrics.mcc(S, Z, return_match=True)
    assert value == pytest.approx(brute, abs=1e-12)
    assert np.mean(c[np.arange(d), match]) == pytest.approx(brute, abs=1e-12)
    P = rng.normal(size=(d, d))

    def error(p):  # least squares scale of every row, by lstsq
        Q = P[list(p)]
        rows = [np.linalg.lstsq(Q[i][:, None], np.eye(d)[i], rcond=None)[0][0] * Q[i] for i in range(d)]
        return np.linalg.norm(np.array(rows) - np.eye(d))

    assert metrics.unmixing_error(P) == pytest.approx(min(map(error, itertools.permutations(range(d)))), abs=1e-10)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_scores_ignore_order_sign_and_scale(seed, d):
    rng = np.random.default_rng(seed)
    P, D, E = rng.normal(size=(d, d)), _signed_permutation(rng, d), _signed_permutation(rng, d)
    flip = np.sign(D)
    assert metrics.amari_distance(flip @ P @ np.sign(E)) == pytest.approx(metrics.amari_distance(P))
    assert 0 <= metrics.amari_distance(P) <= 1
    assert metrics.unmixing_error(D @ P) == pytest.approx(metrics.unmixing_error(P))
    assert metrics.amari_distance(D, np.linalg.inv(D)) == pytest.approx(0, abs=1e-10)


def test_amari_distance_of_a_worked_matrix():
    # rows: (1+.5-1) + (1+.25-1); columns: (1+.25-1) + (1+.5-1); over 2·2·1
    assert metrics.amari_distance([[2.0, 1.0], [0.5, 2.0]]) == pytest.approx((0.5 + 0.25 + 0.25 + 0.5) / 4)


def test_a_source_without_partner_counts_zero():
    S = np.random.default_rng(0).normal(size=(200, 3))
    value, match = metrics.mcc(S, S[:, :2], return_match=True)
    assert value == pytest.approx(2 / 3)
    assert match.tolist() == [0, 1, -1]


def test_procrustes_is_zero_exactly_for_rigid_motions():
    rng = np.random.default_rng(1)
    S = rng.normal(size=(50, 3))
    Q = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    assert metrics.procrustes_residual(S, S @ Q + 4) == pytest.approx(0, abs=1e-12)
    assert metrics.procrustes_residual(S, 2 * S @ Q) == pytest.approx(1, abs=1e-12)
    assert metrics.procrustes_residual(S, 2 * S @ Q, scale=True) == pytest.approx(0, abs=1e-7)


def test_affine_r2_equals_sklearn_regression():
    from sklearn.linear_model import LinearRegression

    rng = np.random.default_rng(2)
    S, Z = rng.normal(size=(80, 2)), rng.normal(size=(80, 3))
    S = S + Z[:, :2]
    residual = S - LinearRegression().fit(Z, S).predict(Z)
    assert metrics.affine_r2(S, Z) == pytest.approx(1 - (residual**2).sum() / ((S - S.mean(0)) ** 2).sum())


def test_dci_separates_aligned_from_mixed_codes():
    rng = np.random.default_rng(3)
    S = rng.uniform(-1, 1, size=(600, 2))
    aligned, mixed = metrics.dci(S, S[:, ::-1]), metrics.dci(S, S @ np.array([[1, 1], [1, -1]]))
    assert aligned.disentanglement > 0.9 > 0.5 > mixed.disentanglement
    assert aligned.completeness > 0.9 > 0.5 > mixed.completeness
    assert aligned.informativeness > 0.95


def test_bad_shapes_are_named():
    with pytest.raises(IsoICAError, match=r"\(5, 2\)"):
        metrics.mcc(np.ones((5, 2)), np.ones((4, 2)))
    with pytest.raises(IsoICAError, match="square"):
        metrics.amari_distance(np.ones((2, 3)))
    with pytest.raises(IsoICAError, match="pearson"):
        metrics.mcc(np.ones((5, 2)), np.ones((5, 2)), kind="kendall")
