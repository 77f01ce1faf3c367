"""The initialisation laboratory: strategies touch the parameters they say, and probes see what they left."""

from fnmatch import fnmatchcase

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.stats import ortho_group

import onestep_diffusion as osd
from onestep_diffusion import initialise, nets
from onestep_diffusion.checkpoint import dotted
from onestep_diffusion.denoiser import latents

NET = {"net": "mlp", "dim": 4, "hidden": 16, "blocks": 2, "labels": 0}
ENDS = ("stem.*", "out.*")


def denoiser(seed, net=NET):
    """All weights drawn, also those that are zero in a fresh network."""
    module = nets.build(net, rngs=nnx.Rngs(seed))
    graphdef, params = nets.split(module)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    drawn = [leaf + 0.2 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return osd.Denoiser(net=nets.merge(graphdef, jax.tree.unflatten(tree, drawn)))


TEACHER, SINGLE, OFF = (denoiser(seed) for seed in range(3))


def flat(params):
    return {dotted(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def start(strategy, seed=0, teacher=TEACHER):
    key = jax.random.key(seed)
    return initialise.init_student(teacher, strategy, key=key, single_level=SINGLE, off_level=OFF)


def matches(name, *globs):
    return any(fnmatchcase(name, glob) for glob in globs)


TAKEN = {  # strategy -> whether a parameter is the teacher's
    "teacher": lambda name: True,
    "random": lambda name: False,
    "features_only": lambda name: not matches(name, *ENDS),
    "map_only": lambda name: matches(name, *ENDS),
    "blocks:block1.*": lambda name: matches(name, "block1.*"),
    "blocks:linear0": lambda name: "linear0" in name,
    "freeze:out.*": lambda name: True,
}


@pytest.mark.parametrize("strategy", TAKEN)
def test_a_strategy_takes_exactly_the_parameters_it_says(strategy):
    found, theirs = flat(start(strategy)), flat(TEACHER.params)
    fresh = flat(initialise.fresh_weights(nets.config(TEACHER.net), jax.random.key(9)))
    new = flat(initialise.made_fresh(TEACHER.net, strategy))
    for name, value in found.items():
        taken = TAKEN[strategy](name)
        if theirs[name].any() and fresh[name].any():  # not a bias, which is zero when fresh
            assert np.array_equal(value, theirs[name]) == taken, name
        assert bool(new[name]) == (not taken)
    assert {name: v.shape for name, v in found.items()} == {name: v.shape for name, v in theirs.items()}


def test_given_teachers_are_taken_whole():
    for strategy, given in (("single_level", SINGLE), ("off_level", OFF)):
        for a, b in zip(jax.tree.leaves(start(strategy)), jax.tree.leaves(given.params), strict=True):
            np.testing.assert_array_equal(a, b)


def test_only_frozen_parameters_do_not_train():
    moves = flat(initialise.trainable(TEACHER.net, "freeze:block0.*"))
    assert {name for name, value in moves.items() if not value} == {name for name in moves if "block0." in name}
    assert all(flat(initialise.trainable(TEACHER.net, "teacher")).values())


def test_scrambled_output_is_the_teachers_permuted():
    x, noise = jax.random.normal(jax.random.key(0), (7, 4)), jnp.linspace(-1, 1, 7)
    graphdef, _ = nets.split(TEACHER.net)
    ours = np.asarray(nets.merge(graphdef, start("scrambled"))(x, noise))
    theirs = np.asarray(TEACHER.net(x, noise))
    order = [int(np.abs(theirs - ours[:, [j]]).max(0).argmin()) for j in range(4)]
    assert sorted(order) == [0, 1, 2, 3]
    assert order != [0, 1, 2, 3]
    np.testing.assert_allclose(ours, theirs[:, order], atol=1e-6)


def test_fresh_students_differ_from_each_other_by_the_key_alone():
    a, b, c = (flat(start("random", seed)) for seed in (0, 0, 1))
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
    assert any((a[name] != c[name]).any() for name in a)
    assert np.std(a["out.kernel"]) == pytest.approx(np.sqrt(1 / 16), rel=0.3)  # a map from the start


def test_a_clone_has_the_teachers_map_and_not_its_weights():
    small = denoiser(5, NET | {"dim": 2, "hidden": 8, "blocks": 1})
    clone = small.with_params(initialise.init_student(small, "clone_map", key=jax.random.key(0)))
    # The regression stops at 5 % on average weights of its last steps; fresh latents add to that.
    assert osd.map_error(clone, small) < 0.1
    fresh = small.with_params(initialise.init_student(small, "random", key=jax.random.key(0)))
    assert osd.map_error(fresh, small) > 0.3
    a, b = clone.params["stem"]["kernel"], small.params["stem"]["kernel"]
    assert abs(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]) < 0.9


ERRORS = [
    ("single_level", {}, "--init single_level needs a teacher trained at one noise level; run: onestep-diffusion"),
    ("off_level", {"off_level": denoiser(0, NET | {"hidden": 8})}, "has another architecture"),
    ("blocks:nothing*", {}, r"no parameter matches 'nothing\*'; their paths are"),
    ("freeze:conv", {}, "no parameter matches"),
    ("warmup:9", {}, "is training"),
    ("magic", {}, "'magic' is not one of teacher, random"),
]


@pytest.mark.parametrize(("strategy", "given", "words"), ERRORS)
def test_what_cannot_be_is_one_line(strategy, given, words):
    with pytest.raises(osd.ConfigError, match=words) as error:
        initialise.init_student(TEACHER, strategy, key=jax.random.key(0), **given)
    assert "\n" not in str(error.value)


def test_map_error_is_zero_for_the_teacher_and_its_definition_else():
    assert osd.map_error(TEACHER, TEACHER) == 0
    n = 512
    found = osd.map_error(SINGLE, TEACHER, n=n)
    z = latents(jax.random.key(0), jnp.arange(n), (4,))
    ours, theirs = (np.asarray(d(2.5 * z, 2.5), float) for d in (SINGLE, TEACHER))
    assert found == pytest.approx(((ours - theirs) ** 2).sum(1).mean() / np.trace(np.cov(theirs.T, ddof=0)), rel=1e-4)


def test_cka_ignores_rotation_and_scale_and_knows_its_ends():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(300, 6)), rng.normal(size=(300, 4))
    assert osd.linear_cka(a, a) == pytest.approx(1)
    assert osd.linear_cka(a, 3 * a @ ortho_group.rvs(6, random_state=0) + 5) == pytest.approx(1)
    assert osd.linear_cka(a, b) == pytest.approx(osd.linear_cka(b, a))
    assert 0 <= osd.linear_cka(a, b) < 0.1
    assert osd.linear_cka(a, np.ones((300, 2))) == 0
    # More features than samples go by Gram matrices: the same number.
    wide = rng.normal(size=(50, 80))
    x, y = (v - v.mean(0) for v in (a[:50], wide))
    direct = np.linalg.norm(x.T @ y) ** 2 / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)
    assert osd.linear_cka(a[:50], wide) == pytest.approx(direct)
    with pytest.raises(osd.DataError, match="features of the same samples"):
        osd.linear_cka(a, b[:9])


def test_participation_ratio_counts_directions():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20_000, 5))
    assert osd.participation_ratio(x) == pytest.approx(5, rel=0.01)
    assert osd.participation_ratio(x @ rng.normal(size=(5, 1)) @ np.ones((1, 9))) == pytest.approx(1)
    assert osd.participation_ratio(np.ones((9, 3))) == 0
    variances = np.array([4.0, 1.0, 1.0])
    found = osd.participation_ratio(rng.normal(size=(50_000, 3)) * np.sqrt(variances))
    assert found == pytest.approx(variances.sum() ** 2 / (variances**2).sum(), rel=0.03)


def test_the_probe_has_a_row_for_each_block_and_level():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 120)
    x = 0.3 * rng.normal(size=(120, 4)) + y[:, None]
    table = osd.probe_features(TEACHER, x, y, (0.1, 20.0), teacher=TEACHER)
    assert [(row["block"], row["sigma"]) for row in table] == [
        (block, sigma) for sigma in (0.1, 20.0) for block in ("stem", "block0", "block1")
    ]
    assert all(row["cka"] == pytest.approx(1) for row in table)
    clean, noisy = ([row["accuracy"] for row in table if row["sigma"] == sigma] for sigma in (0.1, 20.0))
    assert min(clean) > 0.9
    assert max(noisy) < 0.75
    assert "accuracy" not in osd.probe_features(TEACHER, x, None, [0.1])[0]
