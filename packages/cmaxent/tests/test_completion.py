"""Maximum-determinant completion: closed form, scaling and Newton against each other and against certificates."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from cmaxent import InfeasibleMomentsError, UnboundedEntropyError, complete_covariance


def random_pd(rng, p):
    A = rng.normal(size=(p, p + 3))
    return A @ A.T * np.outer(s := np.exp(rng.normal(size=p)), s)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_chordal_closed_form_equals_both_iterations(seed):
    rng = np.random.default_rng(seed)
    p = int(rng.integers(4, 12))
    M = random_pd(rng, p)
    cut = sorted(rng.choice(np.arange(1, p), size=2, replace=False))
    M[: cut[0], cut[1] :] = M[cut[1] :, : cut[0]] = np.nan
    exact = complete_covariance(M)
    assert exact.chordal
    assert exact.n_iter == 0
    assert_allclose(exact.cov @ exact.precision, np.eye(p), atol=1e-8)
    assert_allclose(exact.logdet, np.linalg.slogdet(exact.cov)[1], rtol=1e-9)
    known = ~np.isnan(M)
    assert (exact.cov[known] == M[known]).all() or np.allclose(exact.cov[known], M[known], rtol=1e-14)
    assert (exact.precision[~known] == 0).all()
    scale = np.sqrt(np.outer(M.diagonal(), M.diagonal()))
    for method in ("ips", "newton"):
        assert_allclose(complete_covariance(M, method=method).cov / scale, exact.cov / scale, atol=1e-7)


@pytest.mark.parametrize("method", ["ips", "newton"])
def test_four_cycle_with_a_hub(method):
    rng = np.random.default_rng(3)
    M = random_pd(rng, 5)
    for i, j in ((1, 3), (2, 4)):  # 1-2-3-4 is a cycle, 0 (the target) is linked to all
        M[i, j] = M[j, i] = np.nan
    r = complete_covariance(M, method=method)
    assert not r.chordal
    K = np.linalg.inv(r.cov)
    assert abs(K[1, 3]) < 1e-8 * np.sqrt(K[1, 1] * K[3, 3])
    assert abs(K[2, 4]) < 1e-8 * np.sqrt(K[2, 2] * K[4, 4])
    assert r.residual <= 1e-10


def test_no_completion_is_certified_although_every_known_block_is_fine():
    nan = np.nan
    M = np.array([[1, 0.9, nan, -0.9], [0.9, 1, 0.9, nan], [nan, 0.9, 1, 0.9], [-0.9, nan, 0.9, 1]])
    with pytest.raises(InfeasibleMomentsError, match="no positive definite completion"):
        complete_covariance(M)


def test_bad_clique_is_named():
    M = np.array([[1, 0.9, -0.9, np.nan], [0.9, 1, 0.9, 0.1], [-0.9, 0.9, 1, 0.1], [np.nan, 0.1, 0.1, 1]])
    with pytest.raises(InfeasibleMomentsError, match="a, b, c are not positive definite"):
        complete_covariance(M, names=["a", "b", "c", "d"])


def test_singular_block_advises_shrinkage():
    with pytest.raises(InfeasibleMomentsError, match="use shrinkage"):
        complete_covariance(np.ones((2, 2)))


def test_unknown_variance_is_unbounded_entropy():
    with pytest.raises(UnboundedEntropyError, match="b"):
        complete_covariance([[1, 0.1], [0.1, np.nan]], names=["a", "b"])


def test_sources_overlapping_in_a_chain_of_2000_variables_complete_exactly():
    rng = np.random.default_rng(0)
    size, overlap, p = 120, 41, 2000
    factors = rng.normal(size=(p, 50))
    S = factors @ factors.T / 50 + np.eye(p)
    M = np.full((p, p), np.nan)
    for start in range(0, p - overlap, size - overlap):
        block = slice(start, min(start + size, p))
        M[block, block] = S[block, block]
    r = complete_covariance(M)
    probe = rng.normal(size=(p, 2))
    assert r.chordal
    assert r.residual <= 1e-9
    assert_allclose(r.precision @ (r.cov @ probe), probe, atol=1e-8)
    assert np.nanmax(np.abs(r.cov - M)) <= 1e-12
