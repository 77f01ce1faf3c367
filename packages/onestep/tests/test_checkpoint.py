import functools
import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import onestep_diffusion as osd
from onestep_diffusion import checkpoint as module
from onestep_diffusion import nets

CONFIG = {"lr": 1e-4, "net": {"net": "mlp", "mult": (1, 2)}, "steps": 100}


def state_at(step):
    """A training state that follows from its step."""
    params = {"a": {"kernel": jnp.full((40, 50), 1.5 * step), "bias": jnp.arange(50.0) + step}}
    return {
        "params": params,
        "ema": jax.tree.map(lambda p: (p / 3).astype(jnp.bfloat16), params),
        "opt": optax.adam(1e-3).init(params),
        "step": jnp.int32(step),
        "key": jax.random.fold_in(jax.random.key(0), step),
        "warm": jnp.array([True, False]),
    }


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


def open_at(path, config=CONFIG, kind="teacher", **options):
    return osd.Checkpoints(path / "checkpoints", config, kind=kind, **options)


def fill(path, steps, metrics=()):
    with open_at(path) as checkpoints:
        for step, metric in zip(steps, [*metrics, *[None] * len(steps)], strict=False):
            checkpoints.save(step, state_at(step), cursor={"epoch": step}, metric=metric)


def biggest_file(folder):
    return max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def test_a_training_state_comes_back_bit_for_bit(tmp_path):
    fill(tmp_path, [7])
    with open_at(tmp_path) as checkpoints:
        found = checkpoints.restore(state_at(0))
    assert (found.step, found.cursor, found.skipped) == (7, {"epoch": 7}, ())
    assert_same(found.state, state_at(7))


def test_the_last_three_and_the_best_are_kept(tmp_path):
    fill(tmp_path, range(1, 8), metrics=[9.0, 2.0, float("nan"), 5.0, None, 6.0, 7.0])
    with open_at(tmp_path) as checkpoints:
        assert checkpoints.steps == (2, 5, 6, 7)


def test_a_state_may_be_donated_while_it_is_written(tmp_path):
    @functools.partial(jax.jit, donate_argnums=0)
    def advance(x):
        return x + 1

    x = jnp.zeros((500, 1000))
    with open_at(tmp_path) as checkpoints:
        for step in range(1, 4):
            x = advance(x)
            checkpoints.save(step, {"x": x})
        for _ in range(20):
            x = advance(x)
        checkpoints.wait()
        found = checkpoints.restore({"x": x})
    np.testing.assert_array_equal(found.state["x"], np.full((500, 1000), 3))


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 16
    file.write_bytes(data)


DAMAGE = {
    "a bit of the arrays": lambda folder: flip(biggest_file(folder)),
    "half of a file": lambda folder: os.truncate(biggest_file(folder), biggest_file(folder).stat().st_size // 2),
    "a file gone": lambda folder: biggest_file(folder).unlink(),
    "no settings": lambda folder: (folder / "meta" / "metadata").write_text("{"),
    "no description": lambda folder: (folder / "state" / "_METADATA").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(damage, tmp_path):
    fill(tmp_path, [1, 2])
    DAMAGE[damage](tmp_path / "checkpoints" / "2")
    with (
        open_at(tmp_path, read_only=True) as checkpoints,
        pytest.warns(UserWarning, match=r"/2 is damaged .*using .*/1"),
    ):
        found = checkpoints.restore(state_at(0))
    assert found.step == 1
    assert_same(found.state, state_at(1))
    assert (tmp_path / "checkpoints" / "2").is_dir()  # read only

    with open_at(tmp_path) as checkpoints:
        with pytest.warns(UserWarning, match="damaged"):
            assert checkpoints.restore(state_at(0)).step == 1
        checkpoints.save(2, state_at(2))  # training comes by again
        checkpoints.wait()
        assert checkpoints.restore(state_at(0)).step == 2
    assert len(list((tmp_path / "checkpoints").glob("damaged-2-*"))) == 1


def test_when_all_are_damaged_each_is_named(tmp_path):
    fill(tmp_path, [1, 2])
    for step in (1, 2):
        flip(biggest_file(tmp_path / "checkpoints" / str(step)))
    with open_at(tmp_path) as checkpoints, pytest.raises(osd.CheckpointError, match=r"/2 is damaged.*/1 is damaged"):
        checkpoints.restore(state_at(0))
    with open_at(tmp_path) as checkpoints:
        assert checkpoints.steps == (1, 2)


def test_any_altered_word_changes_the_checksum():
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.int8, np.float16, np.uint32):
        x = rng.integers(0, 100, 257).astype(dtype)
        before = module.checksums({"x": x})
        for place in rng.integers(0, x.nbytes, 20):
            y = x.copy()
            y.view(np.uint8)[place] ^= 1 << rng.integers(8)
            assert module.checksums({"x": y}) != before
        assert module.checksums({"x": x[::-1].copy()}) != before


def test_another_configuration_is_refused_with_the_difference(tmp_path):
    fill(tmp_path, [1])
    changed = {**CONFIG, "lr": 1e-3, "batch": 8}
    difference = r"batch was None, is 8; lr was 0\.0001, is 0\.001"
    with open_at(tmp_path, changed) as checkpoints, pytest.raises(osd.ConfigError, match=difference):
        checkpoints.restore(state_at(0))
    with open_at(tmp_path, {**CONFIG, "steps": 200}, free=("steps",)) as checkpoints:
        assert checkpoints.restore(state_at(0)).step == 1


def test_checkpoints_of_another_kind_are_refused(tmp_path):
    fill(tmp_path, [1])
    words = "holds checkpoints of a teacher, not of a student"
    with open_at(tmp_path, kind="student") as checkpoints, pytest.raises(osd.CheckpointError, match=words):
        checkpoints.restore(state_at(0))


def test_an_empty_directory_restores_nothing_and_a_missing_one_is_an_error(tmp_path):
    with open_at(tmp_path) as checkpoints:
        assert checkpoints.restore(state_at(0)) is None
    with pytest.raises(osd.CheckpointError, match="no such directory"):
        open_at(tmp_path / "nowhere", read_only=True)


SAVE_FOR_EVER = """
import sys, jax, jax.numpy as jnp
from onestep_diffusion import Checkpoints

def state_at(step):
    return {"x": jax.random.normal(jax.random.fold_in(jax.random.key(0), step), (600, 600)), "step": jnp.int32(step)}

with Checkpoints(sys.argv[1], {}, kind="teacher") as checkpoints:
    found = checkpoints.restore(state_at(0))
    step = found.step if found else 0
    if found:
        assert (found.state["x"] == state_at(step)["x"]).all(), "not what was saved"
    print(step, flush=True)
    while True:
        step += 1
        checkpoints.save(step, state_at(step))
        checkpoints.wait()
"""


def test_killing_a_save_leaves_the_checkpoints_before_it_whole(tmp_path):
    folder = tmp_path / "checkpoints"
    reached = []
    for _ in range(2):
        child = subprocess.Popen(
            [sys.executable, "-W", "error::UserWarning", "-c", SAVE_FOR_EVER, str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started = child.stdout.readline()
        assert started, child.stderr.read()
        reached.append(int(started))
        goal = time.monotonic() + 300
        while time.monotonic() < goal:  # until a checkpoint is half written, after some whole ones
            half = [entry for entry in folder.glob("*tmp*") if not entry.name.startswith(str(reached[-1] + 1))]
            if half and any(folder.glob("[0-9]*[0-9]")):
                break
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        child.stderr.close()
        assert half
    assert reached[0] == 0 < reached[1]  # the second run went on from what the first had saved
    with osd.Checkpoints(folder, {}, kind="teacher") as checkpoints:
        like = {"x": jnp.zeros((600, 600)), "step": jnp.int32(0)}
        assert int(checkpoints.restore(like).state["step"]) == checkpoints.steps[-1] > reached[1]
    assert not any("tmp" in entry.name for entry in folder.iterdir())  # the remains are cleared


def models():
    def net(kind, **options):
        graphdef, params = nets.split(kind(3, hidden=8, blocks=1, rngs=nnx.Rngs(0), **options))
        rng = np.random.default_rng(0)  # fresh networks have layers that are zero
        return nets.merge(graphdef, jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params))

    return {
        "denoiser": osd.Denoiser(net=net(nets.MLPDenoiser), sigma_data=0.4),
        "generator": osd.Generator(net=net(nets.MLPDenoiser, labels=2), shift=3.0, scale=2.0, label_probs=(0.1, 0.9)),
        "ratio": osd.Ratio(net=net(nets.MLPRatio), temperature=1.7, sigma_v=0.2, output="plain"),
    }


@pytest.mark.parametrize("kind", ["denoiser", "generator", "ratio"])
def test_an_exported_model_is_the_model(kind, tmp_path):
    model = models()[kind]
    path = osd.save_model(tmp_path, model)
    again = osd.load_model(tmp_path, kind)
    assert path == tmp_path / f"{kind}.safetensors"
    assert type(again) is type(model)
    settings = [name for name in vars(model) if name != "net"]
    assert {name: getattr(again, name) for name in settings} == {name: getattr(model, name) for name in settings}
    assert nets.split(again.net)[0] == nets.split(model.net)[0]
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
    assert json.loads(path.with_suffix(".json").read_text())["net"] == nets.config(model.net)
    if kind != "ratio":
        np.testing.assert_array_equal(again.sample(5, seed=1), model.sample(5, seed=1))


def test_half_precision_files_are_half_as_large_and_load_as_f32(tmp_path):
    model = models()["denoiser"]
    full, half = (osd.save_model(tmp_path / f"{d}.safetensors", model, dtype=d) for d in ("float32", "float16"))
    size = 4 * osd.count_parameters(model)
    assert full.stat().st_size - half.stat().st_size == size // 2
    for a, b in zip(*(jax.tree.leaves(osd.load_model(path).params) for path in (full, half)), strict=True):
        assert b.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def test_a_model_can_be_loaded_to_compute_in_another_precision(tmp_path):
    osd.save_model(tmp_path, models()["denoiser"])
    assert osd.load_model(tmp_path, "denoiser", precision="bf16").net.dtype == jnp.bfloat16


def test_an_interrupted_export_leaves_the_old_file(tmp_path, monkeypatch):
    model = models()["denoiser"]
    path = osd.save_model(tmp_path, model)
    before = path.read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        osd.save_model(tmp_path, model.with_params(jax.tree.map(lambda p: 2 * p, model.params)))
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["denoiser.json", "denoiser.safetensors"]


def rewrite(path, change):
    arrays, metadata = module.read_safetensors(path)
    change(arrays, metadata)
    path.write_bytes(module.safetensors_bytes(arrays, metadata=metadata))


def with_config(**changes):
    def change(_, metadata):
        config = json.loads(metadata["config"]) | changes
        metadata["config"] = json.dumps({name: value for name, value in config.items() if value is not ...})

    return change


BAD_FILES = {
    "holds a denoiser, not a generator": lambda path: None,
    "no such file": lambda path: path.unlink(),
    "is no safetensors file": lambda path: path.write_bytes(b"not one"),
    "or a damaged one": lambda path: os.truncate(path, 200),
    "was not written by onestep-diffusion": lambda path: rewrite(path, lambda a, m: m.clear()),
    "lacks stem.kernel": lambda path: rewrite(path, lambda a, m: a.pop("stem.kernel")),
    "has unknown extra": lambda path: rewrite(path, lambda a, m: a.update(extra=np.zeros(1))),
    r"other shapes: stem.bias \(2,\) for \(8,\)": lambda path: rewrite(
        path, lambda a, m: a.update({"stem.bias": np.zeros(2)})
    ),
    "its settings are damaged": lambda path: rewrite(path, lambda a, m: m.update(config="{")),
    "this version reads 'onestep-diffusion/1'": lambda path: rewrite(path, with_config(format="other/2")),
    "not those of a denoiser": lambda path: rewrite(path, with_config(colour="red")),
}


@pytest.mark.parametrize("words", BAD_FILES)
def test_unfit_files_are_one_line_with_their_name(words, tmp_path):
    path = osd.save_model(tmp_path / "m.safetensors", models()["denoiser"])
    BAD_FILES[words](path)
    with pytest.raises(osd.CheckpointError, match=words) as caught:
        osd.load_model(path, "generator" if "not a generator" in words else "denoiser")
    assert "\n" not in str(caught.value)
    assert "m.safetensors" in str(caught.value)


def test_folders_say_what_they_hold(tmp_path):
    osd.save_model(tmp_path, models()["ratio"])
    with pytest.raises(osd.CheckpointError, match="holds no generator; it holds ratio"):
        osd.load_model(tmp_path, "generator")
    with pytest.raises(osd.CheckpointError, match="say which"):
        osd.load_model(tmp_path)


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    model = models()["denoiser"]
    broken = model.with_params(jax.tree.map(lambda p: p * 1e30, model.params))
    with pytest.raises(osd.CheckpointError, match=r"linear0.kernel.* and .* more not finite in float16"):
        osd.save_model(tmp_path, broken, dtype="float16")
    assert not list(tmp_path.iterdir())
