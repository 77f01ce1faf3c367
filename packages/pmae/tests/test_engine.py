"""Training: that stopping, several processes and damage change nothing they should not."""

import json
import math
import os
import random
import signal
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from common import PROCESSES, digits
from engine_worker import small_model, train_in_turn
from torch import nn

import pmae
from pmae.engine import checkpoint, hints, train
from pmae.engine.distributed import pick_device
from pmae.engine.feed import Feed, order_of
from pmae.engine.run import Recipe, groups
from pmae.engine.schedule import default_warmup, lr_factor, progress_of, scaled_lr

IMAGES = digits()[:192]
CPU = torch.device("cpu")
OPTIONS = {"epochs": 3, "batch_size": 32, "lr": 3e-3, "device": "cpu"}


def numbers(history):
    """What of a history does not depend on the clock."""
    names = ("epoch", "step", "progress", "loss", "fvu", "masked_share", "lr", "skipped")
    return [tuple(record[name] for name in names) for record in history]


def weights(model):
    return {name: value.clone() for name, value in model.network.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def poison(model, bad):
    """Make the network's output NaN in the calls of it that ``bad`` names; returns how often it was called."""
    forward, calls = model.network.forward, [0]

    def poisoned(*arguments, **named):
        calls[0] += 1
        found = forward(*arguments, **named)
        return found * math.nan if bad(calls[0]) else found

    model.network.forward = poisoned
    return calls


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Folders of runs of two processes: copied, sharded, with masks of their own, and stopped after an epoch."""
    root = tmp_path_factory.mktemp("pairs")
    runs = {
        "copied": {"sync_masks": True},
        "sharded": {"sync_masks": True, "parallel": "fsdp2"},
        "own": {"stop_after": 1},
    }
    options = {str(root / name): {"augment": "none", **given} for name, given in runs.items()}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [PROCESSES.Process(target=train_in_turn, args=(rank, 2, port, options)) for rank in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    return root


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# --- schedule ---------------------------------------------------------------------------------------------------------


def test_linear_warmup_then_half_a_cosine():
    assert lr_factor(0, 100, 10) == 0
    assert lr_factor(0.05, 100, 10) == pytest.approx(0.5)
    assert lr_factor(0.1, 100, 10) == 1
    assert lr_factor(0.55, 100, 10) == pytest.approx(0.5)
    assert lr_factor(1.0, 100, 10) == pytest.approx(0, abs=1e-12)
    assert lr_factor(0.5, 100, 0) == pytest.approx(0.5)


def test_exponential_warmup_idles_as_the_released_code_does():
    factors = [lr_factor(epoch / 800, 800, 40, "exp10") for epoch in range(41)]
    assert factors[:40] == pytest.approx([10.0 ** (epoch - 40) for epoch in range(40)])
    assert factors[40] == 1
    assert sum(f < 1e-3 for f in factors) == 37


def test_rules_for_learning_rate_and_warmup():
    assert scaled_lr(512) == pytest.approx(3e-4)
    assert [default_warmup(epochs) for epochs in (10, 399, 400, 800)] == pytest.approx([1, 39.9, 40, 40])


def test_progress_is_by_the_clock_only_where_the_clock_is_ahead():
    assert progress_of(3, 10) == pytest.approx(0.3)
    assert progress_of(3, 10, seconds=2, wall_clock=10) == pytest.approx(0.3)
    assert progress_of(3, 10, seconds=5, wall_clock=10) == pytest.approx(0.5)
    assert progress_of(3, 10, seconds=11, wall_clock=10) == 1


def test_vectors_and_tokens_are_not_decayed():
    network = small_model("mae").network
    recipe = Recipe(1, 1, 1, 0.05, (0.9, 0.95), 0, "linear", "none", False, "fp32", 0, False)
    names = {id(p): name for name, p in network.named_parameters()}
    decayed, free = ({names[id(p)] for p in group["params"]} for group in groups(network, recipe))
    assert {name.rsplit(".", 1)[-1] for name in decayed} == {"weight"}
    assert any("cls_token" in name for name in free)
    assert any("mask_token" in name for name in free)
    assert all(network.get_parameter(name).ndim == 1 for name in free if "token" not in name)
    everything = groups(network, Recipe(1, 1, 1, 0.05, (0.9, 0.95), 0, "linear", "none", True, "fp32", 0, False))
    assert [group["weight_decay"] for group in everything] == [0.05]


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error::DeprecationWarning")
@pytest.mark.parametrize("kind", ["uint8", "float64", "memmap", "strided", "items"])
def test_streamed_batches_equal_resident_ones(kind, tmp_path):
    images = IMAGES[:, None]
    if kind == "float64":
        images = images / 255
    elif kind == "memmap":
        np.save(tmp_path / "images.npy", images)
        images = np.load(tmp_path / "images.npy", mmap_mode="r")
    elif kind == "strided":
        images = np.repeat(images, 2, 0)[::2]
        images.flags.writeable = False
    elif kind == "items":
        images = [(torch.from_numpy(image), 0) for image in images]
    order = order_of(0, len(images), 5, 32, (1,))
    resident, streamed = Feed(images, CPU), Feed(images, CPU, budget=0)
    assert resident.resident
    assert not streamed.resident
    for a, b, row in zip(resident.batches(order), streamed.batches(order), order, strict=True):
        assert torch.equal(a, b)
        expected = IMAGES[row][:, None]
        assert torch.equal(a, torch.from_numpy(expected if a.dtype == torch.uint8 else (expected / 255).astype("f4")))


def test_an_epoch_has_every_image_at_most_once_and_another_order_than_the_next():
    first, second = (order_of(epoch, 100, 3, 32, (0,)) for epoch in (0, 1))
    assert len(np.unique(first)) == 96
    assert not np.array_equal(first, second)
    assert np.array_equal(first, order_of(0, 100, 3, 32, (0,)))


def test_channels_last_are_read_as_such():
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 7, 3), dtype=np.uint8)
    (batch,) = Feed(image, CPU, layout="NHWC", budget=0).batches(np.array([[2, 0]]))
    assert torch.equal(batch, torch.from_numpy(image[[2, 0]]).permute(0, 3, 1, 2))


# --- resume -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("pmae", {"masks_per_batch": 4}), ("pmae", {"masks_per_batch": "sample", "token_drop": 0.25}), ("mae", {})],
    ids=["slices", "per sample", "mae"],
)
def test_resumed_run_is_bit_by_bit_the_run_that_was_not_stopped(kind, settings, tmp_path):
    whole, parts = small_model(kind, **settings), small_model(kind, **settings)
    expected = train.fit(whole, IMAGES, out=tmp_path / "whole", **OPTIONS)
    stopped = train.fit(parts, IMAGES, out=tmp_path / "parts", **OPTIONS, stop_after=1.5)
    assert (stopped.steps, stopped.epochs, stopped.interrupted) == (9, 1.5, False)
    other = small_model(kind, **settings, seed=1)  # weights and masks have to come from the checkpoint
    resumed = train.fit(other, IMAGES, out=tmp_path / "parts", **OPTIONS)
    assert numbers(resumed.history) == numbers(expected.history)
    assert same(weights(other), weights(whole))
    assert numbers(records(tmp_path / "parts")) == numbers(records(tmp_path / "whole"))


def test_signal_saves_and_the_run_goes_on_from_there(tmp_path):
    expected = train.fit(small_model(), IMAGES, **OPTIONS)

    def interrupt(done, record):
        if done >= 0.4 and not sent:
            sent.append(done)
            os.kill(os.getpid(), signal.SIGTERM)

    sent = []
    before = signal.getsignal(signal.SIGTERM)
    stopped = train.fit(small_model(), IMAGES, out=tmp_path, progress=interrupt, **OPTIONS)
    assert stopped.interrupted
    assert stopped.steps < expected.steps
    assert signal.getsignal(signal.SIGTERM) is before
    assert json.loads((tmp_path / "run.json").read_text())["finished"] is False
    assert numbers(train.fit(small_model(), IMAGES, out=tmp_path, **OPTIONS).history) == numbers(expected.history)


def test_finished_run_is_not_trained_further(tmp_path):
    first = train.fit(small_model(), IMAGES, out=tmp_path, **OPTIONS)
    model = small_model(seed=3)
    again = train.fit(model, IMAGES, out=tmp_path, **OPTIONS)
    assert (again.steps, again.seconds) == (first.steps, first.seconds)
    assert same(weights(model), weights(pmae.load(tmp_path)))


def test_resume_from_a_path_and_resume_never(tmp_path):
    train.fit(small_model(), IMAGES, out=tmp_path / "a", **OPTIONS, stop_after=1)
    expected = numbers(train.fit(small_model(), IMAGES, **OPTIONS).history)
    from_run = train.fit(small_model(seed=1), IMAGES, out=tmp_path / "b", resume=tmp_path / "a", **OPTIONS)
    assert numbers(from_run.history) == expected
    anew = train.fit(small_model(), IMAGES, out=tmp_path / "a", resume="never", **OPTIONS, stop_after=1)
    assert numbers(anew.history) == expected[:1]
    spelt = tmp_path / "b" / ".." / "b" / "checkpoints" / "ckpt-18"
    assert train.fit(small_model(), IMAGES, out=tmp_path / "b", resume=spelt, **OPTIONS).steps == 18
    with pytest.raises(pmae.CheckpointError, match="lr is"):  # and what is in the folder stays
        train.fit(small_model(), IMAGES, out=tmp_path / "b", resume=tmp_path / "a", **{**OPTIONS, "lr": 1})
    assert checkpoint.latest(tmp_path / "b" / "checkpoints").name == "ckpt-18"
    with pytest.raises(pmae.CheckpointError, match="holds no checkpoint"):
        train.fit(small_model(), IMAGES, out=tmp_path / "c", resume=tmp_path / "nothing", **OPTIONS)


def test_run_is_not_resumed_as_another_one(tmp_path):
    train.fit(small_model(), IMAGES, out=tmp_path, **OPTIONS, stop_after=1)
    before = (tmp_path / "metrics.jsonl").read_text()
    for options, said in (({"epochs": 4}, "epochs is 3 there, 4 here"), ({"lr": 1e-3}, "lr is 0.003 there")):
        with pytest.raises(pmae.CheckpointError, match=said):
            train.fit(small_model(), IMAGES, out=tmp_path, **{**OPTIONS, **options})
    with pytest.raises(pmae.CheckpointError, match=r"model\.ratio is 0\.15 there, 0\.3 here"):
        train.fit(small_model(ratio=0.3), IMAGES, out=tmp_path, **OPTIONS)
    with pytest.raises(pmae.CheckpointError, match="images is"):
        train.fit(small_model(), digits()[200:392], out=tmp_path, **OPTIONS)
    other = pmae.PMAE(small_model().config, pmae.fit_space(IMAGES, std_floor=0.1))
    with pytest.raises(pmae.CheckpointError, match="scale is"):
        train.fit(other, IMAGES, out=tmp_path, **OPTIONS)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_folder_of_a_run_is_a_model(tmp_path):
    model = small_model()
    train.fit(model, IMAGES, out=tmp_path, **OPTIONS, about={"data": "digits"})
    loaded = pmae.load(tmp_path)
    assert same(weights(loaded), weights(model))
    x = torch.from_numpy(IMAGES[:4, None] / 255).float()
    assert torch.equal(loaded.features(x), model.eval().features(x))
    facts = json.loads((tmp_path / "run.json").read_text())
    assert (facts["data"], facts["finished"], facts["steps_done"]) == ("digits", True, 18)
    assert facts["recipe"]["batch_size"] == 32
    assert facts["pmae"] == pmae.__version__


# --- checkpoints ------------------------------------------------------------------------------------------------------


def save(root, step, loss=1.0):
    tensors = {"w": torch.full((3,), float(step))}
    return checkpoint.save(root, tensors, {"w|exp_avg": tensors["w"] / 2}, {"step": step, "loss": loss})


def test_last_three_and_the_best_are_kept(tmp_path):
    for step, loss in enumerate([3.0, 1.0, 2.0, math.nan, 2.5, 2.6, 2.7]):
        save(tmp_path, step, None if math.isnan(loss) else loss)
    assert sorted(p.name for p in tmp_path.glob("ckpt-*")) == ["ckpt-1", "ckpt-4", "ckpt-5", "ckpt-6"]
    assert checkpoint.latest(tmp_path).name == "ckpt-6"


def test_kill_at_any_point_of_a_checkpoint_leaves_one_that_loads(tmp_path):
    """SIGKILL at every call that reaches the disk, of a checkpoint that is new and of one that replaces another."""
    for step in (2, 1):  # step 1 is there already
        points = 0
        while True:
            root = tmp_path / f"{step}-{points}"
            save(root, 1)
            child = os.fork()
            if child == 0:
                try:
                    kill_at(points)
                    save(root, step, loss=0.5)
                    os._exit(0)
                finally:
                    os._exit(1)  # whatever happens, this process is not to go on with the tests
            _, status = os.waitpid(child, 0)
            found = checkpoint.load(checkpoint.latest(root))
            assert found.state["step"] in (1, step)
            assert torch.equal(found.model["w"], torch.full((3,), float(found.state["step"])))
            if os.WIFEXITED(status):
                assert found.state["loss"] == 0.5
                break
            assert os.WTERMSIG(status) == signal.SIGKILL
            save(root, 3)  # what the killed process left is not in the way
            assert checkpoint.latest(root).name == "ckpt-3"
            assert not list(root.glob("*.tmp"))
            assert not list(root.glob("*.old"))
            points += 1
        assert points >= 8


def kill_at(point):
    """End this process without notice at its so-manieth call of fsync, rename, replace, mkdir or write_tensors."""
    calls = [0]

    def deadly(real):
        def call(*arguments, **named):
            if calls[0] == point:
                os.kill(os.getpid(), signal.SIGKILL)
            calls[0] += 1
            return real(*arguments, **named)

        return call

    os.fsync = deadly(os.fsync)
    checkpoint.write_tensors = deadly(checkpoint.write_tensors)
    for name in ("rename", "replace", "mkdir"):
        setattr(Path, name, deadly(getattr(Path, name)))


def test_full_disk_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    train.fit(small_model(), IMAGES, out=tmp_path, **OPTIONS, stop_after=1)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_tensors", full)
        with pytest.raises(pmae.CheckpointError, match="No space left on device; earlier checkpoints are untouched"):
            train.fit(small_model(), IMAGES, out=tmp_path, **OPTIONS)
    assert checkpoint.load(checkpoint.latest(tmp_path / "checkpoints")).state["step"] == 6
    expected = train.fit(small_model(), IMAGES, **OPTIONS)
    assert numbers(train.fit(small_model(), IMAGES, out=tmp_path, **OPTIONS).history) == numbers(expected.history)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_damaged_checkpoints_are_refused(name, tmp_path):
    folder = save(tmp_path, 1)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(pmae.CheckpointError, match="ckpt-1 is no checkpoint, or damaged"):
        checkpoint.load(folder)


def test_checkpoint_of_another_network_is_refused(tmp_path):
    other = small_model(dim=32).network
    folder = checkpoint.save(tmp_path, checkpoint.model_tensors(other), {}, {"step": 0, "loss": None})
    with pytest.raises(pmae.CheckpointError, match=r"holds another model: .* there, .* here"):
        checkpoint.load_model(small_model().network, checkpoint.load(folder).model, folder)


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_steps_without_a_finite_gradient_change_no_weight():
    model = small_model()
    before = weights(model)
    poison(model, lambda call: True)
    done = train.fit(model, IMAGES, **OPTIONS, stop_after=2 / 6)
    assert same(weights(model), before)
    assert done.history[-1]["skipped"] == 2
    assert done.history[-1]["loss"] is None


def test_run_goes_back_once_with_half_the_learning_rate(tmp_path, caplog):
    model = small_model()
    calls = poison(model, lambda call: call in (8, 9, 10))
    done = train.fit(model, IMAGES, out=tmp_path, **OPTIONS, checkpoint_every=0)
    assert "back to ckpt-7, half the learning rate" in caplog.text
    assert calls[0] == 18 + 3
    assert done.steps == 18
    plain = train.fit(small_model(), IMAGES, **OPTIONS)
    assert [r["lr"] for r in done.history[1:]] == pytest.approx([r["lr"] / 2 for r in plain.history[1:]])
    assert all(math.isfinite(r["loss"]) and r["skipped"] == 0 for r in done.history)


def test_run_without_finite_gradients_ends_and_names_the_images(tmp_path):
    model = small_model()
    poison(model, lambda call: call > 5)
    with pytest.raises(pmae.NumericalError, match=r"3 steps in a row, up to step 3; .*nonfinite\.json"):
        train.fit(model, IMAGES, out=tmp_path, **OPTIONS)
    named = json.loads((tmp_path / "nonfinite.json").read_text())["images_of_step"]
    order = order_of(0, 192, 6, 32, (0, 0))
    assert named == {str(step): order[step].tolist() for step in range(3)}
    with pytest.raises(pmae.NumericalError):
        train.fit(poisoned_model(), IMAGES, **OPTIONS)


def poisoned_model():
    model = small_model()
    poison(model, lambda call: True)
    return model


def test_a_stuck_run_is_called_so(caplog):
    flat = [{"progress": p, "fvu": 0.8} for p in (0.1, 0.3, 0.5)]
    hints.warn_if_stuck(flat[:2])
    assert not caplog.text
    hints.warn_if_stuck(flat)
    assert "stuck on its plateau" in caplog.text
    caplog.clear()
    hints.warn_if_stuck([*flat[:2], {"progress": 0.5, "fvu": 0.7}])
    hints.warn_if_stuck([*flat, {"progress": 0.7, "fvu": 0.8}])
    assert not caplog.text


def test_crops_that_make_constant_pixels_bright_are_warned_of(caplog):
    train.fit(small_model(), IMAGES, **OPTIONS, stop_after=1, augment="flip")
    assert not caplog.text
    space = pmae.fit_space(IMAGES, std_floor=0.01)  # a corner of the digits is dark in nearly all of them
    train.fit(pmae.PMAE(small_model().config, space), IMAGES, **OPTIONS, stop_after=1)
    assert "use augment=flip, a larger std_floor or standardize=channel" in caplog.text


def test_wall_clock_shortens_the_schedule_and_never_cuts_it(monkeypatch, caplog):
    ticks = iter(range(10**6))
    monkeypatch.setattr(train.time, "monotonic", lambda: 0.1 * next(ticks))
    rates = []
    step = train._step
    monkeypatch.setattr(train, "_step", lambda run, pixels: rates.append(step(run, pixels)) or rates[-1])
    done = train.fit(small_model(), IMAGES, **{**OPTIONS, "epochs": 1000}, wall_clock=2.05)
    assert (done.steps, done.epochs) == (21, 3.5)
    expected = [3e-3 * lr_factor(0.1 * k / 2.05, 1000, 40) for k in range(21)]
    assert rates == pytest.approx(expected)
    assert "shortened the schedule from 1000 epochs to 3.5" in caplog.text
    assert done.history[-1]["progress"] == 1


def test_wall_clock_that_is_long_enough_changes_nothing():
    plain = train.fit(small_model(), IMAGES, **OPTIONS)
    assert numbers(train.fit(small_model(), IMAGES, **OPTIONS, wall_clock=1e6).history) == numbers(plain.history)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"augment": "blur"}, ValueError, "augment='blur': one of crop"),
        ({"precision": "fp16"}, ValueError, "precision='fp16': one of fp32, bf16"),
        ({"warmup": "slow"}, ValueError, "warmup='slow'"),
        ({"epochs": 0}, ValueError, "epochs=0: has to be larger than 0"),
        ({"wall_clock": -1}, ValueError, "wall_clock=-1"),
        ({"batch_size": 33, "accumulate": 2}, ValueError, "batch_size=33: has to be a multiple of 2"),
        ({"parallel": "many"}, ValueError, "parallel='many'"),
        ({"device": "abacus"}, ValueError, "device='abacus': auto, cpu"),
    ],
)
def test_options_that_do_not_work_are_named(options, error, said):
    with pytest.raises(error, match=said):
        train.fit(small_model(), IMAGES, **{**OPTIONS, **options})


def test_images_of_another_size_are_refused():
    with pytest.raises(pmae.ShapeError, match=r"images have shape \(1, 8, 6\), the model is for \(1, 8, 8\)"):
        train.fit(small_model(), IMAGES[:, :, :6], **OPTIONS)


def test_a_batch_is_no_larger_than_the_data(caplog):
    done = train.fit(small_model(), IMAGES[:20], **{**OPTIONS, "epochs": 2})
    assert done.steps == 2
    assert "batch_size is 20" in caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_missing_gpu_is_said():
    with pytest.raises(ValueError, match="torch sees no GPU here"):
        pick_device("cuda")


# --- what must not matter ---------------------------------------------------------------------------------------------


def test_fit_uses_and_changes_no_global_random_state():
    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002

    before = states()
    first = train.fit(small_model(token_drop=0.25), IMAGES, **OPTIONS)
    assert states() == before
    random.random(), np.random.random(), torch.rand(1)  # noqa: NPY002
    assert numbers(train.fit(small_model(token_drop=0.25), IMAGES, **OPTIONS).history) == numbers(first.history)


def test_seed_decides_order_views_and_masks():
    runs = [train.fit(small_model(), IMAGES, **OPTIONS, seed=seed).history for seed in (0, 1)]
    assert runs[0][0]["masked_share"] != runs[1][0]["masked_share"]


@pytest.mark.parametrize("settings", [{"masks_per_batch": 4}, {"masks_per_batch": "sample"}], ids=["slices", "sample"])
def test_parts_of_a_batch_add_up_to_the_batch(settings):
    whole = train.fit(small_model(**settings), IMAGES, **OPTIONS)
    parts = train.fit(small_model(**settings), IMAGES, **OPTIONS, accumulate=4)
    for name in ("loss", "fvu", "masked_share"):
        assert [r[name] for r in parts.history] == pytest.approx([r[name] for r in whole.history], rel=1e-5)


def test_compiled_code_sees_few_shapes(monkeypatch):
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(nn.Module, "compile", lambda self: setattr(self, "_compiled_call_impl", torch.compile(
        self._call_impl, backend=backend)))  # fmt: skip
    model = small_model()
    done = train.fit(model, IMAGES, **OPTIONS, compile=True)
    assert model.bucketed
    assert len(graphs) == 1
    plain = train.fit(small_model(), IMAGES, **OPTIONS)
    assert [r["loss"] for r in done.history] == pytest.approx([r["loss"] for r in plain.history], rel=1e-4)


def test_bf16_trains_in_float32_weights():
    model = small_model()
    done = train.fit(model, IMAGES, **OPTIONS, precision="bf16")
    assert {p.dtype for p in model.network.parameters()} == {torch.float32}
    plain = train.fit(small_model(), IMAGES, **OPTIONS)
    assert done.history[-1]["loss"] == pytest.approx(plain.history[-1]["loss"], rel=0.02)
    assert done.history != plain.history


def test_model_is_left_in_its_mode():
    model = small_model().eval()
    train.fit(model, IMAGES, **OPTIONS, stop_after=1)
    assert not model.training


# --- several processes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["copied", "sharded"])
def test_two_processes_with_the_same_masks_are_one_with_the_whole_batch(name, pairs, tmp_path):
    model = small_model()
    alone = train.fit(model, IMAGES, **OPTIONS, augment="none").history
    for number in ("loss", "fvu", "masked_share", "lr"):
        assert [r[number] for r in records(pairs / name)] == pytest.approx([r[number] for r in alone], rel=1e-5)
    x = torch.from_numpy(IMAGES[:16, None] / 255).float()
    assert torch.allclose(pmae.load(pairs / name).features(x), model.eval().features(x), atol=1e-3)


def test_processes_draw_masks_of_their_own_and_may_go_on_as_one(pairs, tmp_path):
    first = records(pairs / "own")[0]
    assert first["masked_share"] != pytest.approx(records(pairs / "copied")[0]["masked_share"], rel=1e-9)
    saved = checkpoint.load(checkpoint.latest(pairs / "own" / "checkpoints")).state["samplers"]
    assert len(saved) == 2
    assert saved[0] != saved[1]
    alone = train.fit(small_model(), IMAGES, out=tmp_path, resume=pairs / "own", **OPTIONS, augment="none")
    assert alone.steps == 18
    assert alone.history[0]["loss"] == first["loss"]


def test_a_space_that_no_file_can_hold_is_refused_before_an_older_run_is_touched(tmp_path):
    pmae.fit(small_model(), digits(), 1, tmp_path, batch_size=64)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    class Pixels:
        shares = np.full(64, 1 / 64)

        def analysis(self, x):
            return x.flatten(1)

        def synthesis(self, z):
            return z.reshape(-1, 1, 8, 8)

    model = pmae.PMAE(pmae.PMAEConfig("tiny", patch_size=2), pmae.fit_space(digits(), Pixels()))
    with pytest.raises(ValueError, match="custom basis"):
        pmae.fit(model, digits(), 1, tmp_path, batch_size=64, resume="never")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
