"""Fields and losses of the other methods, at denoisers whose law is known exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.stats import norm

import onestep_diffusion as osd
from onestep_diffusion import methods, nets
from onestep_diffusion.baselines import ict, meanflow, sid, smt

DATA = osd.GaussianMixture(np.array([0.6, 0.4]), np.array([[0.5, 0.2], [-0.6, 0.1]]), np.array([0.2, 0.3]))
STUDENT = osd.GaussianMixture(np.array([1.0]), np.array([[0.1, -0.2]]), np.array([0.4]))


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_the_score_of_mixture_field_is_that_of_the_skewed_divergence():
    """SMT's field from exact scores of exact mixtures is the ratio's field with the weight of `skew_js`."""
    n, alpha, omega = 200, 0.3, "sigma2"
    sigma = osd.LogNormal(-0.5, 0.7).sample(jax.random.key(0), (n,))
    x = STUDENT.sample(jax.random.key(1), n) + sigma[:, None] * normal(2, n, 2)

    def mixture_denoiser(x, sigma, share):
        """Tweedie's denoiser of share p_data + (1 - share) p_student."""
        ratio = jax.nn.sigmoid(osd.exact_log_ratio(DATA, STUDENT, x, sigma) + jax.scipy.special.logit(share))
        score = ratio[:, None] * DATA.score(x, sigma) + (1 - ratio)[:, None] * STUDENT.score(x, sigma)
        return x + sigma[:, None] ** 2 * score

    found = smt.smt_field(mixture_denoiser, x, sigma, jnp.full(n, alpha), omega=omega)
    exact = osd.ratio_field(
        lambda x, sigma: osd.exact_log_ratio(DATA, STUDENT, x, sigma),
        x,
        sigma,
        divergence="skew_js",
        alpha=alpha,
        omega=omega,
        logit_clip=None,
    )
    np.testing.assert_allclose(found.v, exact.v, rtol=1e-3, atol=1e-4)


def test_mixtures_are_drawn_in_their_shares():
    alpha, is_data = smt.draw_mixture(jax.random.uniform(jax.random.key(0), (20_000, 4)))
    assert np.mean(alpha == 0) == pytest.approx(smt.ZEROS, abs=0.015)
    assert not is_data[alpha == 0].any()
    for low, high in ((0.0, 0.2), (0.4, 0.6), (0.8, 1.0)):
        inside = (alpha > low) & (alpha <= high)
        assert np.mean(is_data[inside]) == pytest.approx((low + high) / 2, abs=0.04)
    np.testing.assert_allclose(alpha * smt.GRID, np.round(alpha * smt.GRID), atol=1e-3)


def test_the_sid_field_is_the_gradient_through_both_denoisers():
    """Linear denoisers D_T = t x, D_F = f x + c: the loss is a parabola, whose gradient is written out here."""
    n, t, f, c, alpha = 50, 0.7, 0.5, 0.2, 1.2
    x, noise, sigma = normal(0, n, 3), normal(1, n, 3), jnp.linspace(0.1, 2, n)
    found = sid.sid_field(lambda x, s: t * x, lambda x, s: f * x + c, x, sigma, noise, alpha).v
    at = np.asarray(x + sigma[:, None] * noise)
    gap = (t - f) * at - c
    rest = t * at - np.asarray(x) - alpha * gap
    slope = (t - f) * rest + gap * (t - 1 - alpha * (t - f))
    scale = np.abs(np.asarray(x) - t * at).mean(1, keepdims=True) + 1e-8
    np.testing.assert_allclose(found, slope / scale, rtol=1e-4, atol=1e-5)


def test_the_sid_field_vanishes_where_the_fake_score_is_the_teachers():
    x, noise = normal(0, 40, 2), normal(1, 40, 2)
    v = sid.sid_field(DATA.denoise, DATA.denoise, x, jnp.full(40, 0.5), noise).v
    np.testing.assert_allclose(v, 0, atol=1e-6)


def test_a_consistent_network_has_no_consistency_loss_and_others_do():
    """Of a point mass, the constant denoiser is consistent."""
    x, noise, u = jnp.ones((64, 2)), normal(0, 64, 2), jax.random.uniform(jax.random.key(1), (64,))
    good = ict.ict_loss(lambda x, s: jnp.ones_like(x), x, noise, u, jnp.int32(10), 100)
    bad = ict.ict_loss(lambda x, s: 0.5 * x, x, noise, u, jnp.int32(10), 100)
    np.testing.assert_allclose(good, 0, atol=1e-6)
    assert (np.asarray(bad) > 0).all()


def test_consistency_levels_are_neighbours_whose_number_doubles():
    counts = [int(ict.intervals(jnp.int32(step), 800)) for step in range(0, 800, 100)]
    assert counts == [10, 20, 40, 80, 160, 320, 640, 1280]
    lower, upper = ict.adjacent_levels(jax.random.uniform(jax.random.key(0), (20_000,)), jnp.float32(10))
    grid = np.sort(np.asarray(osd.karras_sigmas(11)))
    place = np.abs(np.asarray(lower)[:, None] - grid).argmin(1)
    np.testing.assert_allclose(lower, grid[place], rtol=1e-4)
    np.testing.assert_allclose(upper, grid[place + 1], rtol=1e-4)
    mass = np.diff(norm.cdf((np.log(grid) - ict.LOG_MEAN) / ict.LOG_STD))
    share = np.bincount(place, minlength=10) / len(place)
    np.testing.assert_allclose(share, mass / mass.sum(), atol=5 * np.sqrt(0.25 / 20_000))


def test_the_meanflow_loss_is_stationary_at_the_mean_velocity_of_a_gaussian():
    """Data N(0, d^2): paths are x(s) = x sqrt((s^2 + d^2) / (sigma^2 + d^2)), and u is their mean slope."""
    n, d = 20_000, 0.5
    x, noise = d * normal(0, n, 1), normal(1, n, 1)
    sigma, s = jnp.full(n, 1.2), jnp.full(n, 0.4)

    def slopes(at):
        """Derivative of every sample's loss in a, where u = exact + a x."""

        def loss(a):
            def denoiser(x, sigma, share):
                low = share * sigma
                end = x * jnp.sqrt((low**2 + d**2) / (sigma**2 + d**2))[:, None]
                return x - sigma[:, None] * ((x - end) / (sigma - low)[:, None] + a * x)

            return meanflow.meanflow_loss(denoiser, x, noise, sigma, s)

        return np.asarray(jax.jvp(loss, (at,), (1.0,))[1], float)

    z_score = {at: slopes(at).mean() / slopes(at).std() * np.sqrt(n) for at in (-0.2, 0.0, 0.2)}
    assert abs(z_score[0.0]) < 4
    assert z_score[-0.2] < -4
    assert z_score[0.2] > 4


def test_meanflow_levels_are_ordered_and_a_quarter_is_apart():
    sigma, s = meanflow.draw_levels(jax.random.uniform(jax.random.key(0), (10_000, 4)))
    assert (sigma >= s).all()
    assert np.mean(sigma > s) == pytest.approx(meanflow.APART, abs=0.02)


def test_an_extra_channel_of_zeros_changes_nothing():
    """The networks of SMT and MeanFlow start as, and end as, the one without their extra channel."""
    net = {"net": "mlp", "dim": 3, "hidden": 8, "blocks": 1, "labels": 0, "precision": "f32"}
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * normal(3, *leaf.shape), nets.split(nets.build(net, rngs=nnx.Rngs(0)))[1]
    )
    wide_net = methods.extra_channel(net)
    wide = methods.widen(params, nets.split(nets.abstract(wide_net))[1])
    x, sigma = normal(0, 10, 3), jnp.linspace(0.1, 3, 10)
    plain = methods.net_fn(net, 0.5)(params, x, sigma, None)
    for extra in (0.0, 0.7):
        found = methods.wide_net_fn(wide_net, 0.5)(wide, x, sigma, None, jnp.full(10, extra))
        np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-6)
    for a, b in zip(jax.tree.leaves(methods.narrow(wide, params)), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(osd.ConfigError, match="whose channels are in patches"):
        methods.extra_channel({"net": "dit", "channels": 4})


def test_spectral_bound_is_the_operator_norm():
    rng = np.random.default_rng(0)
    kernels = {"a": 2 * rng.normal(size=(6, 4)), "conv": 0.3 * rng.normal(size=(3, 3, 2, 5)), "bias": 5 * np.ones(3)}
    kernels["small"] = 0.01 * kernels["a"]
    found = methods.spectral_bounded(jax.tree.map(jnp.asarray, kernels), iterations=60)
    norms = {name: np.linalg.norm(np.asarray(k).reshape(-1, k.shape[-1]), 2) for name, k in found.items()}
    assert norms["a"] == pytest.approx(1, rel=1e-3)
    assert norms["conv"] == pytest.approx(1, rel=1e-3)
    np.testing.assert_allclose(found["small"], kernels["small"], rtol=1e-6)
    np.testing.assert_allclose(found["bias"], kernels["bias"])
