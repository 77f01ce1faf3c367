"""The refitted ratio of a generator and data whose laws are known: two Gaussians."""

import numpy as np
import pytest
from flax import nnx
from scipy import stats

import onestep_diffusion as osd
from onestep_diffusion import nets

MEAN, STD = np.array([0.15, -0.1]), 0.33  # of the data
STUDENT_STD = 0.25


@pytest.fixture(scope="module")
def pair():
    """A fresh denoiser is that of N(0, 0.5^2), so at sigma_init = 0.5 it generates N(0, 0.25^2)."""
    net = nets.build({"net": "mlp", "dim": 2, "hidden": 24, "blocks": 1, "labels": 0}, rngs=nnx.Rngs(0))
    rows = MEAN + STD * np.random.default_rng(0).normal(size=(6000, 2))
    data = osd.make_dataset(rows, held_out=0.2)
    generator = osd.Generator(net=net, sigma_init=0.5)
    return generator, data


@pytest.fixture(scope="module")
def refitted(pair):
    return osd.refit_ratio(pair[0], None, pair[1], steps=1500, seed=1)


def exact(x, sigma):
    data = stats.multivariate_normal(MEAN, (STD**2 + sigma**2) * np.eye(2))
    student = stats.multivariate_normal(np.zeros(2), (STUDENT_STD**2 + sigma**2) * np.eye(2))
    return data.logpdf(x) - student.logpdf(x)


def test_the_generator_is_the_gaussian_it_is_taken_for(pair):
    x = pair[0].sample(4000)
    assert x.std() == pytest.approx(STUDENT_STD, rel=0.03)


def log_ratios(pair, ratio, sigma):
    """(found, exact) at held-out rows and at fresh samples."""
    rng = np.random.default_rng(3)
    noised = [x + sigma * rng.normal(size=x.shape) for x in (pair[1].held_out, pair[0].sample(1200, seed=9))]
    return [(np.asarray(ratio(ratio.to_model(x), sigma)), exact(x, sigma)) for x in noised]


def test_a_refitted_ratio_is_near_the_exact_one(pair, refitted):
    for found, wanted in log_ratios(pair, refitted, 0.5):
        assert np.corrcoef(found, wanted)[0, 1] > 0.95
        assert np.polyfit(wanted, found, 1)[0] == pytest.approx(1, abs=0.25)


def test_it_is_calibrated_at_its_level(pair, refitted):
    (of_data, _), (of_student, _) = log_ratios(pair, refitted, refitted.sigma_v)
    assert osd.certify(of_data, of_student, n_boot=10).ece < 0.05
    assert refitted.sigma_v in (0.1, 0.2, 0.3, 0.5, 0.8, 1.2)


def test_resampling_by_it_brings_samples_nearer_to_the_data(pair, refitted):
    x = pair[0].sample(8 * 1500, seed=5)
    kept = x[osd.resample(osd.verifier_log_ratio(refitted, x), group=8)]
    fresh = MEAN + STD * np.random.default_rng(8).normal(size=(1500, 2))
    before, after = (osd.sliced_wasserstein(rows, fresh) for rows in (x[:1500], kept))
    assert after < 0.7 * before


def test_log_ratios_of_samples_are_means_over_noise_in_pieces_of_any_size(refitted):
    x = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    with pytest.raises(osd.DataError, match=r"samples have to be \(n, "):
        osd.verifier_log_ratio(refitted, x[:, :1])
    with pytest.raises(osd.ConfigError, match="has no classes"):
        osd.verifier_log_ratio(refitted, x, labels=np.zeros(len(x), int))
    many = osd.verifier_log_ratio(refitted, x, sigma=1e-3)
    direct = np.asarray(refitted(refitted.to_model(x), 1e-3))
    np.testing.assert_allclose(many, direct, atol=0.05)  # hardly any noise
    np.testing.assert_allclose(osd.verifier_log_ratio(refitted, x, sigma=1e-3, batch=16), direct, atol=0.05)


def test_calibration_needs_rows_that_nothing_was_trained_on(pair):
    few = osd.make_dataset(pair[1].x[:50], held_out=0.2)
    with pytest.raises(osd.DataError, match="at least 20 held-out rows are needed to calibrate; got 10"):
        osd.refit_ratio(pair[0], None, few, steps=1)
