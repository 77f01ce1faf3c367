import numpy as np
import pytest
from scipy import stats

from isoica.datasets import make_sources
from isoica.errors import IsoICAError
from isoica.laws import as_law, cycle, nodes_of

NAMES = ["uniform", "laplace", "exponential", "bernoulli", "logistic", "gennorm:1.3", "student:9", "bimodal"]


@pytest.mark.parametrize("name", NAMES)
def test_quadrature_is_standardised_and_normalised(name):
    x, w = as_law(name).nodes()
    np.testing.assert_allclose([w.sum(), w @ x, w @ x**2], [1, 0, 1], atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_draws_follow_the_distribution_function(name):
    law = as_law(name)
    draws = law.rvs(4000, np.random.default_rng(5))
    if name == "bernoulli":
        assert set(np.unique(draws)) == {-1.0, 1.0}
    else:
        assert stats.kstest(draws, law.cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    ("law", "kurtosis"),
    [("uniform", 1.8), ("laplace", 6.0), ("exponential", 9.0), ("logistic", 4.2), (stats.gamma(0.3), 3 + 6 / 0.3)],
)
def test_fourth_moment_by_quadrature(law, kurtosis):
    x, w = as_law(law).nodes()
    assert w @ x**4 == pytest.approx(kurtosis, rel=1e-9)


def test_discrete_and_mixture_laws_and_samples():
    x, w = as_law(stats.poisson(2.5)).nodes()
    assert w @ x**3 == pytest.approx(1 / np.sqrt(2.5), rel=1e-9)
    x, w = nodes_of([1.0, 2.0, 6.0])
    np.testing.assert_allclose([w @ x, w @ x**2], [0, 1], atol=1e-14)


def test_short_lists_are_cycled():
    assert [law.parts[0][1].dist.name for law in cycle(["uniform", "laplace"], 3)] == ["uniform", "laplace", "uniform"]
    assert make_sources(7, ["uniform", "laplace", "bimodal"], 0).shape == (7, 3)


@pytest.mark.parametrize("bad", ["cauchy", "student:2", "gennorm:x", stats.cauchy(), 3.0])
def test_laws_without_variance_or_name_are_refused(bad):
    with pytest.raises(IsoICAError, match="law"):
        as_law(bad)
