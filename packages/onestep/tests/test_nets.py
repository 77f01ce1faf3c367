import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import onestep_diffusion as osd
from onestep_diffusion import nets
from onestep_diffusion.nets.dit import from_patches, position_table, to_patches
from onestep_diffusion.nets.layers import NoRngs, Readout

UNET = dict(image_size=4, channels=1, base=8, mult=(1, 2), blocks=1, attention=(2,), labels=3)
SMALL = {
    "mlp": dict(dim=5, hidden=16, blocks=2, labels=3),
    "mlp_ratio": dict(dim=5, hidden=8, blocks=2, labels=3),
    "song_unet": UNET,
    "song_unet_ratio": UNET,
    "adm_unet": UNET,
    "adm_unet_ratio": UNET,
    "dit": dict(image_size=4, channels=1, patch=2, width=16, depth=2, heads=2, labels=3),
    "dit_ratio": dict(image_size=4, channels=1, patch=2, width=8, depth=2, heads=1, labels=3),
}
RATIOS = [name for name in SMALL if name.endswith("_ratio")]
DENOISERS = [name for name in SMALL if not name.endswith("_ratio")]


def weights_like(params, seed=0):
    """Random everywhere, so that no part of a network is silent."""
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    values = [rng.normal(size=leaf.shape, scale=0.5 / np.sqrt(max(1, leaf.shape[0]))) for leaf in leaves]
    return jax.tree.unflatten(structure, [np.asarray(v, np.float32) for v in values])


@functools.cache
def network(name, **changes):
    graphdef, params = nets.split(nets.abstract({"net": name, **SMALL[name], **changes}))
    return nets.merge(graphdef, weights_like(params))


@functools.cache
def compiled(name, **changes):
    graphdef, _ = nets.split(network(name, **changes))

    @jax.jit
    def both(params, *x, **options):
        net = nets.merge(graphdef, params)
        return net(*x, **options), net.features(*x)

    return both


def run_both(name, *x, params=None, options=None, **changes):
    params = nets.split(network(name, **changes))[1] if params is None else params
    return compiled(name, **changes)(params, *(x or inputs(name)), **(options or {}))


def run(name, *x, **options):
    return run_both(name, *x, **options)[0]


def inputs(name, n=3):
    x = np.random.default_rng(1).normal(size=(n, *network(name).shape)).astype(np.float32)
    return x, np.array([-1.5, 0.2, 1.0], np.float32)[:n], np.arange(n) % 3


def test_a_network_merged_from_its_weights_runs_its_blocks_in_order():
    # Sorted by name, 2x2_block0 would come before 4x4_conv.
    net = nets.build({"net": "song_unet", **UNET}, rngs=nnx.Rngs(0))
    net.out_conv.kernel[...] *= 1e5  # the last layer starts near zero
    direct = jax.jit(net)(*inputs("song_unet"))
    assert float(jnp.std(direct)) > 0.1
    np.testing.assert_allclose(run("song_unet", params=nets.split(net)[1]), direct, atol=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_config_goes_through_json_to_the_same_architecture(name):
    net = nets.abstract({"net": name, **SMALL[name]})
    again = nets.abstract(json.loads(json.dumps(nets.config(net))))
    assert nets.split(net)[0] == nets.split(again)[0]
    assert nets.config(again) == nets.config(net)
    assert nets.config(net)["net"] == name


@pytest.mark.parametrize("name", RATIOS)
def test_a_fresh_ratio_network_is_zero_everywhere_and_a_trained_one_is_not(name):
    params = nets.split(nets.build({"net": name, **SMALL[name]}, rngs=nnx.Rngs(0)))[1]
    x, noise, labels = inputs(name)
    for factor in (0.3, 10):
        np.testing.assert_array_equal(run(name, factor * x, noise, labels, params=params), np.zeros(3))
    assert run(name).shape == (3,)
    assert run(name).all()


@pytest.mark.parametrize("name", DENOISERS)
def test_outputs_have_the_shape_of_inputs_and_depend_on_noise_and_label(name):
    x, noise, labels = inputs(name)
    base = run(name)
    assert base.shape == x.shape
    assert base.dtype == jnp.float32
    assert float(jnp.abs(run(name, x, noise + 0.5, labels) - base).max()) > 1e-4
    assert float(jnp.abs(run(name, x, noise, (labels + 1) % 3) - base).max()) > 1e-4


@pytest.mark.parametrize("name", ["mlp", "dit"])
def test_without_labels_a_conditional_network_is_unconditional(name):
    x, noise, _ = inputs(name)
    base = run(name, x, noise, None)
    assert jnp.isfinite(base).all()
    assert float(jnp.abs(run(name) - base).max()) > 1e-4


@pytest.mark.parametrize("name", DENOISERS)
def test_ratio_head_shares_inputs_and_is_smaller(name):
    net = network(name)
    head = nnx.eval_shape(lambda: net.ratio_head(rngs=NoRngs()))
    assert head.shape == net.shape
    assert head.labels == net.labels
    assert nets.config(head)["net"] == f"{name}_ratio"
    assert osd.count_parameters(head) < osd.count_parameters(net)


@pytest.mark.parametrize("name", ["song_unet", "adm_unet"])
def test_a_full_width_ratio_network_takes_the_denoisers_encoder_as_it_is(name):
    net = network(name)
    ours, theirs = (nets.split(n)[1] for n in (nnx.eval_shape(lambda: net.ratio_head(1.0, rngs=NoRngs())), net))
    shapes = lambda tree: jax.tree.map(lambda leaf: leaf.shape, tree)  # noqa: E731
    for part in ("enc", "embedding"):
        assert shapes(ours[part]) == shapes(theirs[part])


@pytest.mark.parametrize("name", ["mlp", "mlp_ratio", "song_unet", "adm_unet_ratio", "dit"])
def test_features_are_listed_by_block_and_finite(name):
    _, features = run_both(name)
    names = network(name).block_names
    assert len(features) == len(names) == len(set(names))
    assert all(len(feature) == 3 and jnp.isfinite(feature).all() for feature in features)


def test_the_last_features_decide_the_output():
    net = network("song_unet")
    output, features = run_both("song_unet")
    np.testing.assert_allclose(output, net.out_conv(nnx.silu(net.out_norm(features[-1]))), atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "dit", "song_unet_ratio"])
def test_bf16_bodies_stay_near_f32_and_keep_f32_weights_and_outputs(name):
    abstract = nets.abstract({"net": name, **SMALL[name], "precision": "bf16"})
    assert {leaf.dtype for leaf in jax.tree.leaves(nets.split(abstract)[1])} == {jnp.dtype("float32")}
    exact, (rounded, features) = run(name), run_both(name, precision="bf16")
    assert rounded.dtype == jnp.float32
    assert features[-1].dtype == jnp.bfloat16
    assert 0 < float(jnp.abs(rounded - exact).max()) < 0.05 * float(jnp.abs(exact).max())


def test_attention_pooling_starts_as_the_mean_and_then_chooses():
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 8))
    mean, attention = (Readout(8, pooling, 1e-6, jnp.float32, rngs=nnx.Rngs(0)) for pooling in ("mean", "attention"))
    for readout in (mean, attention):
        readout.linear.kernel[...] = jnp.ones((8, 1))
    np.testing.assert_allclose(attention(x), mean(x), atol=1e-5)
    attention.query.kernel[...] = 100 * jnp.eye(8)[:, :1]  # looks where the first channel is largest
    h = nnx.silu(mean.norm(x)).reshape(2, 9, 8)
    chosen = h[jnp.arange(2), h[:, :, 0].argmax(axis=1)]
    np.testing.assert_allclose(attention(x), chosen.sum(axis=1), atol=1e-2)


def test_dropout_acts_only_with_a_key_and_keeps_the_mean():
    config = {"net": "song_unet_ratio", **UNET, "mult": (1,), "attention": ()}
    graphdef, params = nets.split(nets.abstract({**config, "dropout": 0.3}))
    net = nets.merge(graphdef, weights_like(params))
    with_key = jax.jit(lambda seed: net(*inputs("song_unet_ratio"), dropout_key=jax.random.key(seed)))
    assert (with_key(0) == with_key(0)).all()
    assert (with_key(0) != with_key(1)).all()

    block = net.enc["4x4_block0"]
    plain = nets.merge(nets.split(nets.abstract(config))[0], weights_like(params)).enc["4x4_block0"]
    x = np.random.default_rng(0).normal(size=(1, 4, 4, 8)).astype(np.float32), np.ones((1, 32), np.float32)
    outputs = jax.jit(lambda keys: (jax.vmap(lambda key: block(*x, key))(keys), block(*x), plain(*x)))
    many, without_key, exact = outputs(jax.random.split(jax.random.key(2), 4000))
    np.testing.assert_array_equal(without_key, exact)
    error = many.std(axis=0) / np.sqrt(len(many))  # all that follows dropout in a block is linear
    assert float(error.min()) > 0
    assert float((jnp.abs(many.mean(axis=0) - exact) / error).max()) < 5


def test_patches_are_cut_and_joined_without_loss_and_places_differ():
    x = jnp.arange(2 * 6 * 6 * 3.0).reshape(2, 6, 6, 3)
    tokens = to_patches(x, 2)
    assert tokens.shape == (2, 9, 12)
    np.testing.assert_array_equal(tokens[0, 1].reshape(2, 2, 3), x[0, 0:2, 2:4])
    np.testing.assert_array_equal(from_patches(tokens, 2), x)
    assert len(np.unique(position_table(6, 16).round(4), axis=0)) == 36


def test_a_fresh_dit_passes_its_tokens_through_and_gives_zero():
    params = nets.split(nets.build({"net": "dit", **SMALL["dit"]}, rngs=nnx.Rngs(0)))[1]
    output, (stem, first, second) = run_both("dit", params=params)
    np.testing.assert_array_equal(first, stem)
    np.testing.assert_array_equal(second, stem)
    assert not output.any()


def test_fresh_weights_have_edms_spread_and_do_not_repeat():
    net = nets.build({"net": "song_unet", "base": 64, "mult": (1,), "blocks": 1, "attention": (32,)}, rngs=nnx.Rngs(0))
    block = net.enc["32x32_block0"]
    bound = np.sqrt(6 / (2 * 9 * 64))  # Glorot and Bengio 2010
    kernel = np.asarray(block.conv0.kernel)
    assert bound * 0.99 < np.abs(kernel).max() <= bound
    assert kernel.std() == pytest.approx(bound / np.sqrt(3), rel=0.02)
    assert np.abs(np.asarray(block.conv1.kernel)).max() <= 1e-5 * bound
    qkv = np.asarray(block.qkv.kernel)
    assert qkv.std() == pytest.approx(np.sqrt(0.2 * 2 / (64 + 192)), rel=0.02)
    assert len({float(np.asarray(leaf).ravel()[0]) for leaf in (kernel, qkv, net.enc["32x32_conv"].kernel)}) == 3
    assert len(np.unique(kernel)) > 0.99 * kernel.size


def test_weights_follow_from_the_seed_alone_also_under_jit():
    def weights(seed):
        return nets.split(nets.build({"net": "mlp", "dim": 2, "hidden": 300}, rngs=nnx.Rngs(seed)))[1]

    eager, again, traced, other = weights(3), weights(3), jax.jit(lambda: weights(3))(), weights(4)
    jax.tree.map(np.testing.assert_array_equal, eager, again)
    jax.tree.map(np.testing.assert_array_equal, eager, traced)
    assert (eager["stem"]["kernel"] != other["stem"]["kernel"]).all()


def test_presets_follow_the_data():
    assert nets.preset("mlp", (64,), labels=10) == {"net": "mlp", "labels": 10, "dim": 64}
    assert nets.abstract(nets.preset("unet8", (8, 8, 1))).shape == (8, 8, 1)
    for name in nets.PRESETS:
        assert nets.preset(name, (8,) if name == "mlp" else (64, 64, 4))["net"] in nets.NETS


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "net: None is not one of mlp"),
        ({"net": "unet"}, "'unet' is not one of mlp"),
        ({"net": "mlp"}, "mlp needs dim"),
        ({"net": "mlp", "dim": 2, "width": 3}, "mlp has no setting width; it has dim, hidden"),
        ({"net": "mlp", "dim": 0}, "dim has to be an integer of at least 1; got 0"),
        ({"net": "mlp", "dim": 2, "labels": -1}, "labels"),
        ({"net": "mlp", "dim": 2, "precision": "f16"}, "'f16' is not one of f32, bf16"),
        ({"net": "song_unet", "image_size": 30}, "image_size=30 has to be a multiple of 4, as 3 levels halve it"),
        ({"net": "song_unet", "base": 7}, "base=7 has to be even"),
        ({"net": "song_unet", "mult": ()}, "levels has to be an integer of at least 1"),
        ({"net": "song_unet", "dropout": 1.0}, "dropout"),
        ({"net": "song_unet_ratio", "pooling": "max", "blocks": 1}, "'max' is not one of mean, attention"),
        ({"net": "dit", "image_size": 9}, "image_size=9 has to be a multiple of patch=2"),
        ({"net": "dit", "width": 100, "heads": 3}, "width=100 has to be a multiple of 4 and of heads=3"),
    ],
)
def test_bad_settings_are_one_line_that_says_what_would_be_right(config, words):
    with pytest.raises(osd.ConfigError, match=words) as caught:
        nets.abstract(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [("vgg", (2,), "'vgg'"), ("mlp", (8, 8, 1), "takes vectors"), ("unet32", (8, 4, 1), "takes square images")],
)
def test_presets_refuse_data_that_do_not_fit(name, shape, words):
    with pytest.raises(osd.ConfigError, match=words):
        nets.preset(name, shape)
