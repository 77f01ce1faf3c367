import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import onestep_diffusion as osd
from onestep_diffusion import denoiser as module
from onestep_diffusion import nets


def random_net(kind=nets.MLPDenoiser, dim=3, labels=0):
    graphdef, params = nets.split(kind(dim, hidden=16, blocks=1, labels=labels, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)  # fresh networks have layers that are zero
    return nets.merge(graphdef, jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape) / 4, jnp.float32), params))


def test_denoise_is_edms_equation_seven():
    net = random_net()
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    sigma = np.array([0.01, 0.4, 2.5, 70.0])
    f = np.asarray(jax.jit(net)((x / np.hypot(sigma, 0.3)[:, None]).astype(np.float32), np.log(sigma) / 4), float)
    total = sigma**2 + 0.3**2
    expected = (0.3**2 / total)[:, None] * x + (sigma * 0.3 / np.sqrt(total))[:, None] * f
    ours = jax.jit(lambda x, sigma: osd.denoise(net, x, sigma, sigma_data=0.3))(x, sigma)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_one_level_for_all_is_that_level_for_each():
    model = osd.Denoiser(net=random_net())
    both = jax.jit(lambda x, sigma: (model(x, sigma), model.features(x, sigma)[-1]))
    for one, each in zip(both(np.ones((2, 3)), 0.7), both(np.ones((2, 3)), np.full(2, 0.7)), strict=True):
        np.testing.assert_array_equal(one, each)


def test_without_noise_the_denoiser_is_the_identity():
    x = jnp.ones((2, 3))
    np.testing.assert_allclose(jax.jit(osd.Denoiser(net=random_net()))(x, 0.0), x, atol=1e-2)


def test_log_ratio_is_the_logit_times_the_decay_over_the_temperature():
    net, x, sigma = random_net(nets.MLPRatio), jnp.ones((3, 3)), np.array([0.1, 1.0, 10.0])
    logit = np.asarray(jax.jit(net)((x / np.hypot(sigma, 0.5)[:, None]).astype(jnp.float32), np.log(sigma) / 4))
    plain = jax.jit(osd.Ratio(net=net, output="plain"))(x, sigma)
    decaying = jax.jit(osd.Ratio(net=net, temperature=2.0))(x, sigma)
    np.testing.assert_allclose(plain, logit, rtol=1e-5)
    np.testing.assert_allclose(decaying, logit / np.hypot(sigma, 0.5) / 2, rtol=1e-5)


def test_generator_is_the_denoiser_at_one_level_on_scaled_noise():
    model, z = osd.Denoiser(net=random_net(), sigma_data=0.4), jax.random.normal(jax.random.key(0), (5, 3))
    generator = model.one_step(sigma_init=3.0)
    assert generator.sigma_data == 0.4
    np.testing.assert_allclose(jax.jit(generator)(z), jax.jit(model)(3.0 * z, 3.0), atol=1e-6)


def test_a_fresh_network_is_the_exact_denoiser_of_a_gaussian_and_heun_samples_it():
    # F = 0 leaves D = c_skip x, which is E[x | x_sigma] for x ~ N(0, sigma_data^2).
    net = nets.MLPDenoiser(2, hidden=4, blocks=0, rngs=nnx.Rngs(0))
    model = osd.Denoiser(net=net, shift=7.0, scale=3.0)
    x = model.sample(20_000, seed=0, steps=40)
    np.testing.assert_allclose(x.mean(axis=0), [7, 7], atol=4 * 1.5 / np.sqrt(20_000))
    np.testing.assert_allclose(x.std(axis=0), [1.5, 1.5], rtol=0.03)
    assert abs(np.corrcoef(x.T)[0, 1]) < 0.03
    y = model.one_step(2.5).sample(20_000, seed=0)  # c_skip sigma_init z
    np.testing.assert_allclose(y.std(axis=0), np.full(2, 3 * 2.5 * 0.25 / (2.5**2 + 0.25)), rtol=0.03)


def test_samples_follow_from_seed_and_place_and_not_from_batches():
    model = osd.Denoiser(net=random_net())
    for draw in (osd.Generator(net=random_net(labels=4)).sample, lambda *a, **k: model.sample(*a, steps=3, **k)):
        whole = draw(10, seed=5)
        assert whole.shape == (10, 3)
        assert whole.dtype == np.float32
        np.testing.assert_array_equal(whole, draw(10, seed=5))
        np.testing.assert_allclose(whole, draw(10, seed=5, batch=4), atol=1e-4)
        np.testing.assert_allclose(whole[:7], draw(7, seed=5, batch=4), atol=1e-4)
        assert np.abs(whole - draw(10, seed=6)).min() > 0


def test_sampling_compiles_once_for_all_pieces_and_seeds():
    generator = osd.Generator(net=random_net())
    generator.sample(64, batch=16)
    before = module._generate._cache_size()
    generator.sample(50, seed=3, batch=16)
    generator.with_params(jax.tree.map(lambda p: 2 * p, generator.params)).sample(64, batch=16)
    assert module._generate._cache_size() == before


def test_labels_are_drawn_by_the_datas_frequencies_and_steer_the_samples():
    probs = np.array([0.6, 0.0, 0.3, 0.1])
    generator = osd.Generator(net=random_net(labels=4), label_probs=tuple(probs))
    n = 20_000
    share = np.bincount(generator.draw_labels(n, seed=1), minlength=4) / n
    assert (np.abs(share - probs) <= 4 * np.sqrt(probs * (1 - probs) / n)).all()
    even = osd.Generator(net=random_net(labels=4)).draw_labels(n)
    assert np.abs(np.bincount(even, minlength=4) / n - 0.25).max() < 4 * np.sqrt(0.25 * 0.75 / n)

    drawn = generator.draw_labels(6, seed=2)
    by_default, by_hand = generator.sample(6, seed=2), generator.sample(6, seed=2, labels=drawn)
    np.testing.assert_array_equal(by_default, by_hand)
    np.testing.assert_array_equal(generator.draw_labels(3, labels=2), [2, 2, 2])
    assert np.abs(generator.sample(6, labels=0) - generator.sample(6, labels=2)).min() > 0
    assert osd.Generator(net=random_net()).draw_labels(3) is None


def test_data_units_are_shift_plus_scale_times_model_units_and_back():
    model = osd.Generator(net=random_net(), shift=10.0, scale=4.0)
    np.testing.assert_allclose(model.to_data([[0.0, 1.0, -1.0]]), [[10, 14, 6]])
    np.testing.assert_allclose(model.to_model(model.to_data([[0.3]])), [[0.3]], atol=1e-6)


def test_gradients_reach_the_weights_through_split_and_merge():
    graphdef, params = nets.split(random_net())
    x, target = jnp.ones((4, 3)), jnp.zeros((4, 3))

    @jax.jit
    def loss(params):
        return jnp.mean((osd.denoise(nets.merge(graphdef, params), x, 1.0) - target) ** 2)

    gradient = jax.jit(jax.grad(loss))(params)
    step = 1e-3
    moved = jax.tree.map(lambda p, g: p - step * g, params, gradient)
    expected = step * sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient))
    assert float(loss(params) - loss(moved)) == pytest.approx(float(expected), rel=0.1)


def raises(words, call, error=osd.ConfigError):
    with pytest.raises(error, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_bad_arguments_are_one_line_that_says_what_would_be_right():
    plain, labelled = random_net(), random_net(labels=3)
    generator = osd.Generator(net=labelled)
    raises(r"have to lie in 0 … 2; got 0 … 3", lambda: generator.sample(2, labels=[0, 3]))
    raises(r"one integer or \(2,\) integers; got int64 of \(3,\)", lambda: generator.sample(2, labels=[0, 1, 2]))
    raises("integers; got float64", lambda: generator.sample(2, labels=1.5))
    raises("has no classes", lambda: osd.Generator(net=plain).sample(2, labels=1))
    raises("n=0", lambda: generator.sample(0))
    raises("batch=0", lambda: generator.sample(2, batch=0))
    raises("n has to be an integer of at least 1; got 0", lambda: osd.Denoiser(net=plain).sample(2, steps=0))
    raises("sigma_init has to be positive; got -1", lambda: osd.Generator(net=plain, sigma_init=-1))
    raises("scale=0", lambda: osd.Denoiser(net=plain, scale=0))
    raises("label_probs has to be 3 shares", lambda: osd.Generator(net=labelled, label_probs=(0.5, 0.5)))
    raises("temperature=0", lambda: osd.Ratio(net=plain, temperature=0))
    raises("'linear' is not one of decaying, plain", lambda: osd.Ratio(net=plain, output="linear"))
    raises(r"samples have to be \(n, 3\); got \(2, 4\)", lambda: generator(jnp.ones((2, 4))), osd.DataError)
    two = jnp.ones((2, 3))
    for model in (osd.Denoiser(net=labelled), osd.Ratio(net=labelled.ratio_head(rngs=nnx.Rngs(0)))):
        raises("sigma has to be positive and finite; got 0", lambda model=model: model(two, 0.0))
        raises(r"sigma has to be one number or \(2,\)", lambda model=model: model(two, jnp.ones(3)), osd.DataError)
        raises("lie in 0 … 2; got 0 … 3", lambda model=model: model(two, 1.0, jnp.array([0, 3])))
        raises(r"or \(2,\) integers", lambda model=model: model.features(two, 1.0, jnp.zeros(3, int)))
    raises("lie in 0 … 2", lambda: generator(two, jnp.array([0, 3])))
