"""Choosing among candidates by the ratio, and certificates of the distance, with exact and with untrained ratios."""

from dataclasses import replace

import numpy as np
import pytest
from flax import nnx
from scipy.integrate import quad
from scipy.stats import norm

from onestep_diffusion import (
    ConfigError,
    DataError,
    Generator,
    Ratio,
    certified_distance,
    cost_quality,
    nets,
    precondition,
    select_samples,
)
from onestep_diffusion.data import make_dataset
from onestep_diffusion.distance import save_distance_plot


@pytest.fixture(scope="module")
def generator():
    """Of a network that is zero: G(z) = c_skip sigma_init z, a Gaussian with the same spread for every class."""
    return Generator(net=nets.build({"net": "mlp", "dim": 1, "hidden": 4, "labels": 3}, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def plain(generator):
    return replace(generator, net=nets.build({"net": "mlp", "dim": 1, "hidden": 4}, rngs=nnx.Rngs(0)))


def ratio_like(generator, slope=0.0):
    """A ratio network that is zero, or linear in the last hidden unit of a random body."""
    net = generator.net.ratio_head(1.0, rngs=nnx.Rngs(1))
    graphdef, params = nets.split(net)
    params["out"]["kernel"] = params["out"]["kernel"] + slope
    return Ratio(net=nets.merge(graphdef, params))


def test_one_candidate_is_a_plain_sample(generator):
    found = select_samples(generator, ratio_like(generator), 6, candidates=1, seed=4)
    np.testing.assert_allclose(found.x, generator.sample(6, seed=4), rtol=1e-6)
    assert found.ess == 1


@pytest.mark.parametrize("method", ["sir", "best_of"])
def test_choice_is_among_the_candidates_of_the_label(generator, method):
    labels = np.array([0, 2, 1, 1, 0])
    ratio = ratio_like(generator, slope=0.5)
    found = select_samples(generator, ratio, 5, candidates=4, method=method, labels=labels, seed=1)
    groups = generator.sample(20, 1, np.repeat(labels, 4)).reshape(5, 4)
    np.testing.assert_array_equal(found.labels, labels)
    assert all(np.isclose(x, group).any() for x, group in zip(found.x[:, 0], groups, strict=True))


def test_ratio_that_knows_nothing_weighs_all_candidates_alike(generator):
    assert select_samples(generator, ratio_like(generator), 5, candidates=4).ess == pytest.approx(4)
    kept = select_samples(generator, ratio_like(generator), 5, candidates=4, method="rejection", labels=2)
    np.testing.assert_allclose(kept.x, generator.sample(20, 0, 2)[-5:], rtol=1e-6)


def test_illegal_choices_are_named(generator):
    ratio = ratio_like(generator)
    with pytest.raises(ConfigError, match="candidates=0"):
        select_samples(generator, ratio, 5, candidates=0)
    with pytest.raises(ConfigError, match="'top' is not one of sir"):
        select_samples(generator, ratio, 5, candidates=2, method="top")
    data = make_dataset(np.arange(9.0)[:, None])
    for how in ({"method": "rejection"}, {"candidates": (0, 1)}):
        with pytest.raises(ConfigError, match="candidates"):
            cost_quality(generator, ratio, data, np.asarray, **how)


def test_curve_of_a_ratio_that_knows_nothing_is_flat(plain):
    data = make_dataset(np.random.default_rng(0).normal(size=(500, 1)))
    rows = cost_quality(plain, ratio_like(plain), data, np.asarray, candidates=(1, 2, 4), n=4000)
    assert [row["candidates"] for row in rows] == [1, 2, 4]
    assert [row["ess"] for row in rows] == pytest.approx([1, 2, 4])
    assert max(row["fd"] for row in rows) - min(row["fd"] for row in rows) < 0.02


def gaussian_log_ratio(mean, spread, student_spread):
    def log_ratio(x, sigma, labels):
        variance, other = spread**2 + sigma**2, student_spread**2 + sigma**2
        return np.asarray(
            -0.5 * ((x[:, 0] - mean) ** 2 / variance - x[:, 0] ** 2 / other) - 0.5 * np.log(variance / other)
        )

    return log_ratio


def js(mean, spread, student_spread, sigma):
    """Jensen-Shannon divergence of two Gaussians, nats, by quadrature."""
    a, b = np.hypot(spread, sigma), np.hypot(student_spread, sigma)

    def integrand(x):
        p, q = norm.logpdf(x, mean, a), norm.logpdf(x, 0.0, b)
        m = np.logaddexp(p, q) - np.log(2)
        return 0.5 * (np.exp(p) * (p - m) + np.exp(q) * (q - m))

    return quad(integrand, -5, 5, points=[mean, 0.0])[0]


def test_exact_ratio_certifies_nearly_the_whole_divergence(plain, tmp_path):
    c_skip = float(precondition.edm_precond(2.5)[0])
    student = c_skip * 2.5
    mean, spread = 0.3, 0.2
    rows = mean + spread * np.random.default_rng(1).standard_normal((40_000, 1))
    data = replace(make_dataset(rows, held_out=0.5), shift=0.0, scale=1.0)
    found = certified_distance(plain, gaussian_log_ratio(mean, spread, student), data, (0.1, 0.5), n_boot=200)
    for sigma, certificate in zip(found.sigmas, found.certificates, strict=True):
        exact = js(mean, spread, student, sigma)
        assert certificate.js == pytest.approx(exact, abs=0.01)
        assert certificate.js_lower <= exact + 0.005
    assert found.js_lower <= max(c.js_lower for c in found.certificates)
    assert found.js_lower > js(mean, spread, student, 0.5)  # the better level carries it
    save_distance_plot(tmp_path / "d.png", found)
    assert (tmp_path / "d.png").stat().st_size > 1000


def test_untrained_ratio_certifies_nothing(generator):
    rng = np.random.default_rng(2)
    data = make_dataset(rng.normal(size=(400, 1)), rng.integers(3, size=400), held_out=0.5)
    found = certified_distance(generator, ratio_like(generator), data, (0.2,), n_boot=50)
    assert found.js_lower <= 1e-6
    assert found.certificates[0].auc == 0.5


def test_too_few_or_other_rows_are_refused(plain):
    ratio = ratio_like(plain)
    with pytest.raises(DataError, match="at least 20 held-out rows are needed; got 1"):
        certified_distance(plain, ratio, make_dataset(np.arange(9.0)[:, None]))
    with pytest.raises(DataError, match="samples are \\(1,\\)"):
        certified_distance(plain, ratio, make_dataset(np.eye(9)))
