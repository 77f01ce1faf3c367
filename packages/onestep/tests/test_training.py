"""Training as a whole: the same run however it is cut, interrupted, spread or repeated; and what it says of itself."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import onestep_diffusion as osd
from onestep_diffusion import loop, methods, monitor, train
from onestep_diffusion.errors import DivergedError, InterruptedRun
from onestep_diffusion.evaluation.assets import shipped_teacher
from onestep_diffusion.features import features
from onestep_diffusion.score import denoising_loss

NET = {"hidden": 8, "blocks": 1}
TEACHER = osd.TeacherConfig(net_kwargs=NET, steps=20, batch_size=16, steps_per_call=5)
STUDENT = osd.StudentConfig(steps=20, batch_size=16, steps_per_call=5, aux_updates=2)
DATA = osd.load_data("rings", rows=400)


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    """Each program is compiled once for all tests here and their child processes."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.2,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield {name.upper(): str(value) for name, value in settings.items()}
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def teacher():
    return osd.train_teacher(DATA, TEACHER, seed=1)


@pytest.fixture(scope="module")
def whole(teacher):
    """The run that nothing disturbed."""
    return osd.train_student(DATA, teacher, STUDENT, seed=3)


def assert_same(a, b):
    """Bit for bit."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def assert_same_run(found, whole):
    for name in ("generator", "generator_ema", "ratio"):
        assert_same(getattr(found, name).params, getattr(whole, name).params)
    keep = [{k: v for k, v in entry.items() if k != "images_per_s"} for entry in whole.history]
    assert [{k: v for k, v in entry.items() if k != "images_per_s"} for entry in found.history] == keep


def test_a_run_stopped_by_a_signal_goes_on_bit_for_bit(teacher, whole, tmp_path):
    def stop(entry):
        if entry["step"] == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(InterruptedRun, match=r"stopped at step \d+ of 20; go on with --resume --out") as stopped:
        osd.train_student(DATA, teacher, STUDENT, seed=3, out=tmp_path, report=stop)
    assert signal.getsignal(signal.SIGTERM) is before
    assert 5 <= int(str(stopped.value).split()[3]) < 20
    saved = osd.load_model(tmp_path, "generator")
    assert saved.sample(4).shape == (4, 2)

    with pytest.raises(osd.ConfigError, match="already holds a run; resume it with --resume"):
        osd.train_student(DATA, teacher, STUDENT, seed=3, out=tmp_path)
    with pytest.raises(osd.ConfigError, match=r"lr was 0\.0002, is 0\.1"):
        osd.train_student(DATA, teacher, STUDENT.replace(lr=0.1), seed=3, out=tmp_path, resume=True)

    found = osd.train_student(DATA, teacher, STUDENT, seed=3, out=tmp_path, resume=True)
    assert_same_run(found, whole)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert sorted({line["step"] for line in lines}) == [5, 10, 15, 20]
    assert_same(osd.load_model(tmp_path, "generator").params, whole.generator_ema.params)
    assert_same(osd.load_model(tmp_path, "ratio").params, whole.ratio.params)
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 3
    assert {file.name for file in tmp_path.iterdir()} >= {"curve.png", "samples_000020.png", "checkpoints"}


KILLED = """
import sys
from pathlib import Path
import onestep_diffusion as osd
steps, folder = int(sys.argv[1]), sys.argv[2]
cfg = osd.TeacherConfig(net_kwargs={"hidden": 8, "blocks": 1}, steps=20, batch_size=16, steps_per_call=5)
cfg = cfg.replace(steps=steps, schedule="constant")
osd.train_teacher(osd.load_data("rings", rows=400), cfg, seed=1, out=folder, eval_every=5)
"""


def test_a_killed_run_goes_on_bit_for_bit(compiled, tmp_path):
    """SIGKILL at any moment: the last whole checkpoint is what training goes on from."""
    command = [sys.executable, "-c", KILLED, "100000", str(tmp_path / "run")]
    checkpoints = tmp_path / "run" / "checkpoints"
    with subprocess.Popen(command, env=os.environ | compiled) as child:
        for _ in range(3000):
            if checkpoints.is_dir() and sum(entry.name.isdigit() for entry in checkpoints.iterdir()) >= 2:
                break
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    steps = max(int(entry.name) for entry in checkpoints.iterdir() if entry.name.isdigit()) + 10
    cfg = TEACHER.replace(steps=steps, schedule="constant")
    found = osd.train_teacher(DATA, cfg, seed=1, out=tmp_path / "run", resume=True, eval_every=steps)
    assert_same(found.params, osd.train_teacher(DATA, cfg, seed=1).params)
    lines = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(lines)) == list(range(5, steps + 1, 5))


def test_steps_in_one_call_or_in_many_are_the_same_steps(teacher):
    step = osd.make_student_step(DATA, teacher, STUDENT, seed=3)
    many, _ = step.run(jax.tree.map(jnp.copy, step.state), step.pool, step.frozen, length=5)
    state = step.state
    for _ in range(5):
        state, _ = step.run(state, step.pool, step.frozen, length=1)
    for x, y in zip(jax.tree.leaves((state.params, state.aux)), jax.tree.leaves((many.params, many.aux)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    assert int(state.step) == int(many.step) == 5


def test_the_state_is_donated_and_nothing_compiles_twice(teacher):
    step = osd.make_student_step(DATA, teacher, STUDENT, seed=3)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(step.state._replace(key=())))
    memory = step.run.lower(step.state, step.pool, step.frozen, length=5).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= 0.95 * size
    state = step.state
    for _ in range(3):
        state, _ = step.run(state, step.pool, step.frozen, length=5)
    assert step.run._cache_size() == 1


def test_the_ratio_never_sees_the_teacher(teacher):
    """Beyond the initial weights: the step has no argument that holds it, and no constant of its size."""
    step = osd.make_student_step(DATA, teacher, STUDENT)
    assert jax.tree.leaves(step.frozen) == []
    assert set(step.state.aux) == {"ratio"}
    text = step.run.lower(step.state, step.pool, step.frozen, length=5).as_text()
    biggest = max(leaf.size for leaf in jax.tree.leaves(teacher.params))
    constants = [line for line in text.splitlines() if 'stablehlo.constant dense<"' in line]
    assert not any(f"tensor<{biggest}x" in line or "64x8xf32" in line for line in constants)


def test_the_distance_to_digits_falls_fivefold_in_300_updates():
    """Frechet distance in the features of a classifier of digits, from the shipped teacher's single step on."""
    data = osd.load_data("digits")
    reference = features(data.x, "digits")
    teacher = shipped_teacher("multi")
    found = osd.train_student(data, teacher, osd.StudentConfig(steps=300, aux_updates=1))

    def distance(generator):
        rows = generator.sample(1500, seed=1).reshape(1500, *data.shape)
        return osd.fid(features(rows, "digits"), reference)

    assert distance(found.generator_ema) < distance(teacher.one_step()) / 5


METHODS = {  # method -> (arrays trained beside the generator, teacher in the step)
    "ratio": ({"ratio"}, False),
    "gan": ({"ratio"}, False),
    "score": ({"fake"}, True),
    "sid": ({"fake"}, True),
    "smt": ({"fake"}, False),
    "ict": (set(), False),
    "meanflow": (set(), False),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_what_it_says_and_follows_no_one_else(method, teacher):
    """Traced, not run: shapes and structure of the state come out as they went in."""
    aux, follows = METHODS[method]
    step = osd.make_student_step(DATA, teacher, STUDENT.replace(method=method))
    assert set(step.state.aux) == aux
    assert set(step.frozen) == ({"teacher"} if follows else set())
    state, metrics = jax.eval_shape(lambda *args: step.run(*args, length=5), step.state, step.pool, step.frozen)
    assert jax.tree.structure(state) == jax.tree.structure(step.state)
    assert [leaf.shape for leaf in jax.tree.leaves(state)] == [leaf.shape for leaf in jax.tree.leaves(step.state)]
    assert ("js_bins" in metrics) == ("ratio" in aux)
    assert ("loss" in metrics) == (not aux)


def test_f_distill_trains_a_ratio_beside_the_fake_score(teacher):
    step = osd.make_student_step(DATA, teacher, STUDENT.replace(method="score", divergence="js"))
    assert set(step.state.aux) == {"ratio", "fake"}


def test_score_and_its_relatives_need_a_teacher():
    with pytest.raises(osd.ConfigError, match="needs a teacher; train one first"):
        osd.make_student_step(DATA, None, STUDENT.replace(method="score"))
    with pytest.raises(
        osd.ConfigError, match=r"init='teacher' needs a teacher; without one there are random and warmup"
    ):
        osd.make_student_step(DATA, None, STUDENT)


def test_runs_side_by_side_are_the_runs_apart(teacher, whole):
    cfgs = [STUDENT, STUDENT.replace(divergence="js", lr=1e-3)]
    seen = []

    def measure(step, generators):
        seen.append(step)
        return [{"fd": float(index)} for index in range(len(generators))]

    both = osd.train_students(DATA, teacher, cfgs, [3, 4], eval_every=10, on_eval=measure)
    assert seen == [10, 20]
    assert [run.history[-1]["fd"] for run in both] == [0, 1]
    for name in ("generator", "generator_ema", "ratio"):
        a, b = (getattr(run, name).params for run in (both[0], whole))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)
    moved = np.abs(both[1].generator.params["stem"]["kernel"] - teacher.params["stem"]["kernel"]).mean()
    assert moved > 2 * np.abs(both[0].generator.params["stem"]["kernel"] - teacher.params["stem"]["kernel"]).mean()
    with pytest.raises(osd.ConfigError, match="these differ in batch_size"):
        osd.train_students(DATA, teacher, [STUDENT, STUDENT.replace(batch_size=32)], [0, 1])
    with pytest.raises(osd.ConfigError, match="every settings need a seed"):
        osd.train_students(DATA, teacher, [STUDENT], [0, 1])


DEVICES = """
import jax, numpy as np
import onestep_diffusion as osd
from onestep_diffusion.loop import data_mesh
data = osd.load_data("rings", rows=400)
cfg = osd.TeacherConfig(net_kwargs={"hidden": 8, "blocks": 1}, steps=20, batch_size=16, steps_per_call=20)
assert jax.device_count() == 2
for shard in ("none", "params"):
    seen = []
    for mesh in (None, data_mesh()):
        history = []
        model = osd.train_teacher(data, cfg, seed=1, mesh=mesh, shard=shard if mesh else "none", report=history.append)
        seen.append((history[-1]["loss"], jax.device_get(model.params)))
    (a, p), (b, q) = seen
    np.testing.assert_allclose(a, b, rtol=1e-4)
    for x, y in zip(jax.tree.leaves(p), jax.tree.leaves(q), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4)
print("same")
"""


def test_two_devices_train_as_one(compiled):
    flags = "--xla_cpu_multi_thread_eigen=false --xla_force_host_platform_device_count=2"
    env = os.environ | compiled | {"XLA_FLAGS": flags}
    done = subprocess.run([sys.executable, "-c", DEVICES], env=env, capture_output=True, text=True)
    assert done.stdout.endswith("same\n"), done.stderr


def test_a_student_warms_up_at_many_levels_whatever_its_second_network_sees():
    cfg = STUDENT.replace(init="warmup:3", net_kwargs=NET)
    weights = [train._plan(DATA, None, [c], None).weights(0, 3, c.init, None, None)
               for c in (cfg, cfg.replace(method="gan"), cfg.replace(ratio_sigma_law="fixed:1"))]  # fmt: skip
    for other in weights[1:]:
        assert jax.tree.all(jax.tree.map(np.array_equal, weights[0], other))


def test_without_a_teacher_a_student_warms_up_on_its_own():
    """The weights it starts from are those of a short training at many levels, not random ones."""
    cfg = STUDENT.replace(init="warmup:20", net_kwargs=NET)
    step = osd.make_student_step(DATA, None, cfg, seed=3)
    random = osd.make_student_step(DATA, None, cfg.replace(init="random"), seed=3)
    assert jax.tree.structure(step.state) == jax.tree.structure(random.state)
    plan = train._plan(DATA, None, [cfg], None)

    def loss(params):
        x = jnp.asarray(DATA.to_model(DATA.held_out))
        sigma = osd.LogNormal().sample(jax.random.key(0), (len(x),))
        noise = jax.random.normal(jax.random.key(1), x.shape)
        fn = methods.net_fn(plan.net, DATA.sigma_data)
        return float(denoising_loss(lambda x, s: fn(params, x, s, None), x, sigma, noise).mean())

    assert loss(step.state.params) < loss(random.state.params)


def test_a_student_of_a_teachers_seed_does_not_begin_as_the_young_teacher():
    net = methods.nets.preset("mlp", (2,)) | NET
    key = train.run_keys(1, "student")
    for other in train.run_keys(1, "teacher"):
        assert not any((jax.random.key_data(k) == jax.random.key_data(other)).all() for k in key)
    assert net["dim"] == 2


def test_rows_of_another_shape_than_the_teachers_are_refused(teacher):
    with pytest.raises(osd.DataError, match=r"rows are \(3,\), but the teacher's samples are \(2,\)"):
        osd.make_student_step(np.random.default_rng(0).normal(size=(50, 3)), teacher, STUDENT)


def test_sets_too_large_for_the_device_come_in_random_parts(monkeypatch):
    monkeypatch.setattr(loop, "RESIDENT_BYTES", 0)
    pools = loop.Pools(DATA, 0, STUDENT)
    first, again, later = pools.at(0), pools.at(0), pools.at(5)
    assert len(first.x) == STUDENT.batch_size * STUDENT.steps_per_call * (1 + STUDENT.aux_updates)
    np.testing.assert_array_equal(first.x, again.x)
    assert not np.array_equal(first.x, later.x)
    known = {tuple(row) for row in DATA.x.tolist()}
    assert all(tuple(row) in known for row in np.asarray(first.x).tolist())


def watch(**options):
    return monitor.Monitor(steps=10_000, batch_size=8, sigma_data=0.5, **options)


def test_a_loss_or_field_that_is_not_finite_stops_the_run():
    with pytest.raises(DivergedError, match="diverged before step 50: the loss is not finite; lower lr"):
        watch().add(50, {"aux_loss": np.nan})
    with pytest.raises(DivergedError, match=r"2\.0% of the field is not finite"):
        watch().add(50, {"aux_loss": 1.0, "nonfinite": 0.02})
    assert watch().add(50, {"aux_loss": 1.0, "nonfinite": 0.005})["nonfinite"] == 0.005
    with pytest.warns(UserWarning, match="diverged"):  # side by side the others go on
        watch(stop=False).add(50, {"aux_loss": np.nan})


def test_a_classifier_that_stays_perfect_is_warned_about():
    bound = np.full(5, np.log(2) - 1e-4)
    one = watch()
    for step in range(50, 500, 50):
        one.add(step, {"aux_loss": 2e-4, "js_bins": bound})
    with pytest.warns(UserWarning, match="student left the data; lower lr, raise ratio_lr, or start from a teacher"):
        one.add(500, {"aux_loss": 2e-4, "js_bins": bound})
    level = np.append(bound[:4], 0.3)  # of one level that is not perfect
    for step in range(50, 2000, 50):
        one.add(step, {"aux_loss": 2e-4, "js_bins": level})


def test_samples_far_from_the_datas_spread_warn_and_then_stop():
    one = watch()
    for step in range(100, 500, 100):
        one.add(step, {"std": 5.0})
    with pytest.warns(UserWarning, match="10 times the data's deviation for 500 steps"):
        one.add(500, {"std": 5.0})
    for step in range(600, 5000, 100):
        one.add(step, {"std": 5.0})
    with pytest.raises(DivergedError, match="10 times the data's deviation"):
        one.add(5000, {"std": 5.0})


def test_few_effective_samples_and_collapse_are_warned_about_once():
    one = watch()
    with pytest.warns(UserWarning, match=r"effective share 0\.05\); use weight_norm=batch"):
        one.add(50, {"ess": 0.05})
    one.add(100, {"ess": 0.05})
    with pytest.warns(UserWarning, match=r"vary in 1\.0 directions, data in 30\.0: collapsed"):
        one.warn_collapse(100, 1.0, 30.0)
    one.warn_collapse(150, 2.0, 30.0)


def test_the_log_of_a_resumed_run_is_cut_where_it_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    one = watch(path=path)
    for step in (10, 20, 30):
        one.add(step, {"loss": float(step)})
    one.note(fd=1.5)
    with path.open("a") as file:
        file.write('{"step": 40, "lo')  # what a kill leaves
    again = watch(path=path, done=20)
    assert [entry["step"] for entry in again.history] == [10, 20]
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 20]
    assert [entry["step"] for entry in watch(path=path, done=0).history] == []


def test_training_stops_at_three_tests_in_a_row_that_find_nothing():
    good, bad = {"two_sample_p": [0.5, 0.3]}, {"two_sample_p": [0.9, 0.1]}
    assert loop.indistinguishable([bad, good, {}, good, good])
    assert not loop.indistinguishable([good, good])
    assert not loop.indistinguishable([good, good, good, bad])
    assert not loop.indistinguishable([good, good, bad, good])


def test_the_two_sample_test_passes_the_datas_own_law_and_not_another(teacher, whole):
    """By an untrained ratio nothing is found; by one that reads the radius a far student is."""
    test = loop._TwoSampleTest(osd.load_data("rings", rows=2000), 0)
    far = whole.generator_ema
    blind = osd.Ratio(net=whole.ratio.net).with_params(jax.tree.map(jnp.zeros_like, whole.ratio.params))
    assert min(test.p_values(5, {"generator": far, "ratio": blind})) > 0.2
    with pytest.raises(osd.DataError, match="needs 100 held-out rows; got 40"):
        loop._TwoSampleTest(DATA, 0)
