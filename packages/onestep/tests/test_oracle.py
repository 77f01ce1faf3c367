"""The exact laws against autodiff, Tweedie's formula and sampling; Heun's method started from their exact denoiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import onestep_diffusion as osd

WEIGHTS, MEANS, SCALES = [0.2, 0.5, 0.3], [[0.5, -0.2], [-0.6, 0.1], [0.1, 0.8]], [0.3, 0.1, 0.2]


@pytest.fixture
def f64():
    with jax.enable_x64(True):
        yield


def mixture():
    return osd.GaussianMixture(WEIGHTS, MEANS, SCALES)


def points(n=24):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(n, 2))), jnp.asarray(np.exp(rng.uniform(np.log(0.02), np.log(5), n)))


def test_density_is_that_of_the_noised_mixture(f64):
    (x, sigma), log_prob = points(), jax.jit(mixture().log_prob)
    for level in (0.0, 0.7, sigma):
        level_of = np.broadcast_to(level, len(x))
        exact = [
            np.log(sum(w * stats.multivariate_normal.pdf(xi, m, s**2 + t**2)
                       for w, m, s in zip(WEIGHTS, MEANS, SCALES, strict=True)))
            for xi, t in zip(np.asarray(x), level_of, strict=True)
        ]  # fmt: skip
        np.testing.assert_allclose(log_prob(x, level), exact, rtol=1e-10)


def test_score_is_the_gradient_of_the_log_density(f64):
    gm, (x, sigma) = mixture(), points()
    by_autodiff = jax.jit(jax.grad(lambda x: gm.log_prob(x, sigma).sum()))(x)
    np.testing.assert_allclose(jax.jit(gm.score)(x, sigma), by_autodiff, rtol=1e-8, atol=1e-10)


def test_denoiser_is_tweedies(f64):
    gm, (x, sigma) = mixture(), points()
    clean, score = jax.jit(gm.denoise)(x, sigma), jax.jit(gm.score)(x, sigma)
    np.testing.assert_allclose(clean, np.asarray(x) + np.asarray(sigma)[:, None] ** 2 * score, atol=1e-12)


def test_samples_have_the_mixtures_moments():
    n = 20_000
    x = np.asarray(mixture().sample(jax.random.key(0), n), float)
    w, m, s = (np.asarray(v) for v in (WEIGHTS, MEANS, SCALES))
    mean = w @ m
    cov = np.einsum("k,ki,kj->ij", w, m - mean, m - mean) + w @ s**2 * np.eye(2)
    assert (np.abs(x.mean(0) - mean) < 4 * np.sqrt(np.diag(cov) / n)).all()
    centred = x - mean
    products = centred[:, :, None] * centred[:, None, :]
    assert (np.abs(products.mean(0) - cov) < 4 * products.std(0) / np.sqrt(n)).all()
    nearest = np.linalg.norm(x[:, None] - m, axis=-1).argmin(1)
    assert (np.abs(np.bincount(nearest) / n - w) < 0.03).all()


def test_weights_are_normalised():
    np.testing.assert_allclose(osd.GaussianMixture([2, 6], np.zeros((2, 1)), [1, 1]).weights, [0.25, 0.75])


def test_empirical_law_is_the_mixture_of_points_without_width(f64):
    """Whatever the chunk; and the denoiser is the softmax mean of the points."""
    rng = np.random.default_rng(1)
    data, (x, sigma) = rng.normal(size=(50, 2)), points()
    dust = osd.GaussianMixture(np.ones(50), data, np.zeros(50))
    oracle = osd.EmpiricalOracle(data, chunk=7)
    for name in ("log_prob", "score", "denoise"):
        exact = jax.jit(getattr(dust, name))(x, sigma)
        np.testing.assert_allclose(getattr(oracle, name)(x, sigma), exact, rtol=1e-9)
    np.testing.assert_allclose(osd.EmpiricalOracle(data).denoise(x, sigma), oracle.denoise(x, sigma), rtol=1e-12)
    weight = np.exp(-((np.asarray(x)[:, None] - data) ** 2).sum(-1) / 2 / np.asarray(sigma)[:, None] ** 2)
    np.testing.assert_allclose(oracle.denoise(x, sigma), weight @ data / weight.sum(1, keepdims=True), rtol=1e-6)
    drawn = np.asarray(oracle.sample(jax.random.key(0), 24))
    assert (np.abs(drawn[:, None] - data).max(-1).min(1) < 1e-12).all()


def test_empirical_law_is_accurate_at_small_noise_far_from_the_origin():
    """In single precision: differences are squared, not squares subtracted."""
    data = np.asarray([[10.0, 10.0], [10.01, 10.0]], np.float32)
    x = jnp.asarray([[10.004, 10.0]])
    exact = (0.006**2 - 0.004**2) / (2 * 0.004**2)  # log odds of the nearer point
    share = 1 / (1 + np.exp(-exact))
    expected = share * 10 + (1 - share) * 10.01
    assert float(osd.EmpiricalOracle(data).denoise(x, 0.004)[0, 0]) == pytest.approx(expected, abs=2e-5)


def test_empirical_law_needs_memory_for_one_chunk_only():
    oracle = osd.EmpiricalOracle(np.random.default_rng(0).normal(size=(2000, 64)), chunk=32)
    x = jax.ShapeDtypeStruct((4096, 64), jnp.float32)
    used = jax.jit(lambda x: oracle.score(x, 1.0)).lower(x).compile().memory_analysis().temp_size_in_bytes
    whole = 4 * 4096 * 2000
    assert used < whole / 4  # a chunk's (32, 2000) numbers several times, far from (4096, 2000) or (32, 2000, 64)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: osd.GaussianMixture([1, 1], [[0.0]], [1]), r"\(K,\), \(K, d\), \(K,\); got \(2,\), \(1, 1\), \(1,\)"),
        (
            lambda: osd.GaussianMixture([1, 0], [[0.0], [1.0]], [1, 1]),
            "weights have to be positive and finite; got 0.0",
        ),
        (lambda: osd.GaussianMixture([1], [[np.nan]], [1]), "means have to be finite; got nan"),
        (lambda: osd.GaussianMixture([1], [[0.0]], [-1]), "scales have to be zero or more and finite; got -1.0"),
        (lambda: osd.EmpiricalOracle(np.zeros(3)), r"got shape \(3,\)"),
        (lambda: osd.EmpiricalOracle([[np.inf]]), "finite numbers"),
        (lambda: osd.EmpiricalOracle([[0.0]]).log_prob(jnp.zeros((1, 1)), 0.0), "sigma has to be positive"),
        (lambda: osd.heun(lambda x, s: x, jnp.zeros((1, 1)), jnp.asarray([1.0, 0.0])), "sigma has to be positive"),
        (lambda: osd.heun(lambda x, s: x, jnp.zeros((1, 1)), jnp.asarray([1.0, 2.0])), "sigmas have to descend"),
    ],
)
def test_illegal_laws_and_levels_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- Heun -----------------------------------------------------------------------------------------------------------


def test_heun_with_the_exact_denoiser_samples_the_mixture():
    gm, n = mixture(), 4000
    z = jax.random.normal(jax.random.key(0), (n, 2))
    samples = jax.jit(lambda z: osd.heun(gm.denoise, z, osd.karras_sigmas(40)))(z)
    truth, other = gm.sample(jax.random.key(1), n), gm.sample(jax.random.key(2), n)
    assert osd.sliced_wasserstein(samples, truth) < 2 * osd.sliced_wasserstein(other, truth)


def test_heun_is_of_second_order():
    """On N(0, 1/4) data the flow is x(sigma) = x(sigma_0) sqrt((1/4 + sigma^2) / (1/4 + sigma_0^2)), linear in z."""

    def denoise(x, sigma):
        return osd.edm_precond(sigma)[0][:, None] * x

    with jax.enable_x64(True):
        z = jnp.asarray([[1.0], [-0.5]])
        error = [
            jnp.abs(osd.heun(denoise, z, osd.karras_sigmas(n)) - 40 * z / np.hypot(0.5, 80)).max() for n in (20, 40)
        ]
        assert 3 < error[0] / error[1] < 6  # four for second order


def test_heun_takes_2n_minus_1_evaluations_at_the_grids_levels():
    levels = []

    def denoise(x, sigma):
        levels.append(np.asarray(sigma))
        return x / 2

    with jax.disable_jit():
        osd.heun(denoise, jnp.ones((3, 2, 2, 1)), jnp.asarray([4.0, 2.0, 1.0]))
    np.testing.assert_array_equal(levels, np.repeat([[4.0], [2], [2], [1], [1]], 3, axis=1))


def test_negative_levels_and_points_of_another_dimension_are_refused():
    gm = osd.GaussianMixture(jnp.ones(1), jnp.zeros((1, 2)), jnp.ones(1))
    x = jnp.zeros((3, 2))
    for call in (gm.log_prob, gm.score, gm.denoise):
        with pytest.raises(ValueError, match="sigma has to be zero or positive"):
            call(x, -1.0)
        with pytest.raises(ValueError, match=r"points have to be \(n, 2\)"):
            call(jnp.zeros((3, 5)), 1.0)
    for call in (osd.edm_precond, osd.edm_loss_weight):
        with pytest.raises(ValueError, match="sigma has to be zero or positive"):
            call(-1.0)
        with pytest.raises(ValueError, match="sigma_data has to be positive"):
            call(1.0, sigma_data=0)
