"""Laws of the noise level, the sampling grid and EDM's preconditioning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import onestep_diffusion as osd

LAWS = [osd.LogNormal(), osd.LogNormal(-1.8, 0.6), osd.LogUniform(0.01, 10.0), osd.Karras(), osd.Fixed(2.5)]


def test_karras_grid_goes_from_the_largest_level_to_the_smallest_evenly_in_its_root():
    sigmas = osd.karras_sigmas(18)
    assert sigmas.shape == (18,)
    assert sigmas[0] == pytest.approx(80, rel=1e-5)
    assert sigmas[-1] == pytest.approx(0.002, rel=1e-5)
    i = np.arange(18)
    by_paper = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(sigmas, by_paper, rtol=1e-4)


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_samples_follow_the_quantile_function(law):
    draws = np.asarray(law.sample(jax.random.key(0), (40, 100)))
    assert draws.shape == (40, 100)
    for u in (0.1, 0.5, 0.9):
        share = np.mean(draws.ravel() <= float(law.quantile(u)) * (1 + 1e-6))
        expected = 1.0 if isinstance(law, osd.Fixed) else u
        assert abs(share - expected) <= 4 * np.sqrt(u * (1 - u) / 4000)


def test_log_normal_is_log_normal_and_clipped():
    draws = np.log(np.asarray(osd.LogNormal(low=1e-9, high=1e9).sample(jax.random.key(1), (40, 100))).ravel())
    assert stats.kstest(draws, "norm", (-1.2, 1.2)).pvalue > 1e-3
    clipped = osd.LogNormal(low=0.2, high=0.5)
    np.testing.assert_allclose(clipped.quantile(jnp.asarray([0.0, 1.0])), [0.2, 0.5], rtol=1e-6)


def test_off_level_law_hardly_ever_reaches_the_students_level():
    """exp N(-1.8, 0.6^2) exceeds 2.5 with probability 3e-6."""
    with jax.enable_x64(True):
        law, tail = osd.LogNormal(-1.8, 0.6), stats.norm.sf((np.log(2.5) + 1.8) / 0.6)
        assert tail == pytest.approx(3e-6, rel=0.02)
        assert float(law.quantile(1 - tail)) == pytest.approx(2.5, rel=1e-6)


def test_karras_law_is_uniform_on_the_lower_part_of_the_grid():
    law, grid = osd.Karras(t_max=0.8), osd.karras_sigmas(1001)
    np.testing.assert_allclose(
        law.quantile(jnp.asarray([0.0, 0.5, 1.0])), grid[jnp.asarray([1000, 600, 200])], rtol=1e-4
    )


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_a_law_survives_its_text(law):
    assert osd.parse_sigma_law(str(law)) == law
    assert osd.parse_sigma_law("lognormal:-1.8,0.6") == osd.LogNormal(-1.8, 0.6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: osd.LogNormal(std=0.0), "LogNormal: std=0.0"),
        (lambda: osd.LogUniform(low=-1.0), "LogUniform: low=-1.0"),
        (lambda: osd.LogUniform(low=2.0, high=1.0), "LogUniform: high=1.0"),
        (lambda: osd.Karras(t_max=1.5), "Karras: t_max=1.5"),
        (lambda: osd.Fixed(float("nan")), "Fixed: value has to be a finite number; got nan"),
        (lambda: osd.parse_sigma_law("cosine"), "'cosine' is not one of lognormal, loguniform, karras, fixed"),
        (lambda: osd.parse_sigma_law("fixed"), "write fixed:value"),
        (lambda: osd.parse_sigma_law("fixed:a"), "write fixed:value"),
        (lambda: osd.parse_sigma_law("fixed:-1"), "Fixed: value=-1.0"),
        (lambda: osd.karras_sigmas(0), "n has to be an integer of at least 1; got 0"),
        (lambda: osd.karras_sigmas(5, sigma_min=0.0), "sigma_min=0.0"),
    ],
)
def test_illegal_laws_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_preconditioned_inputs_and_targets_have_unit_variance():
    """EDM's two conditions, and that c_skip makes c_out smallest: the best linear denoiser's error is c_out^2."""
    with jax.enable_x64(True):
        sigma, sigma_data = jnp.asarray([0.002, 0.1, 0.5, 2.5, 80.0]), 0.7
        c_skip, c_out, c_in, c_noise = osd.edm_precond(sigma, sigma_data)
        np.testing.assert_allclose(c_in**2 * (sigma**2 + sigma_data**2), 1)
        # target (x - c_skip (x + sigma e)) / c_out
        target = ((1 - c_skip) ** 2 * sigma_data**2 + c_skip**2 * sigma**2) / c_out**2
        np.testing.assert_allclose(target, 1)
        for shift in (-1e-3, 1e-3):
            other = (1 - c_skip - shift) ** 2 * sigma_data**2 + (c_skip + shift) ** 2 * sigma**2
            assert (other > c_out**2).all()
        np.testing.assert_allclose(c_noise, np.log(sigma) / 4)
        np.testing.assert_allclose(osd.edm_loss_weight(sigma, sigma_data) * c_out**2, 1)


def test_the_best_linear_denoiser_is_exact_for_a_gaussian():
    """With F = 0 the denoiser is c_skip x, the posterior mean of N(0, sigma_data^2) data."""
    gm, sigma = osd.GaussianMixture([1], [[0.0, 0.0]], [0.5]), jnp.asarray([0.1, 2.0])
    x = jnp.asarray([[1.0, -2.0], [0.3, 4.0]])
    np.testing.assert_allclose(osd.edm_precond(sigma)[0][:, None] * x, gm.denoise(x, sigma), rtol=1e-6)


def test_levels_at_zero_stay_finite_and_the_ratio_decays():
    assert all(jnp.isfinite(c) for c in osd.edm_precond(0.0))
    assert jnp.isfinite(osd.edm_loss_weight(0.0))
    np.testing.assert_allclose(osd.ratio_decay(jnp.asarray([0.0, 1e3])), [2.0, 1e-3], rtol=1e-6)
