"""What students take from teachers, the alpha frontier, and what an update costs."""

import jax
import numpy as np
import pytest
from flax import nnx

from onestep_diffusion import (
    ConfigError,
    Denoiser,
    alpha_frontier,
    compare_strategies,
    nets,
    teacher_budget,
    update_cost,
    update_passes,
)
from onestep_diffusion.config import StudentConfig, TeacherConfig
from onestep_diffusion.data import load_data, make_dataset
from onestep_diffusion.frontier import save_frontier_plot
from onestep_diffusion.train import make_student_step
from onestep_diffusion.transfer import save_budget_plot, save_heat_maps

SHORT = {"steps": 4, "batch_size": 8, "steps_per_call": 2, "aux_updates": 1}
ALONE = SHORT | {"method": "ict"}  # one network: half the time to compile
NET = {"hidden": 8, "blocks": 1}


@pytest.fixture(scope="module", autouse=True)
def _quick_to_compile():
    """What is tested here does not depend on how well XLA optimises, and compiling takes most of the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def data():
    return load_data("moons", rows=300)


@pytest.fixture(scope="module")
def teacher(data):
    """Random weights throughout, the last layer included."""
    net = nets.build({"net": "mlp", "dim": 2, **NET}, rngs=nnx.Rngs(0))
    model = Denoiser(net=net, shift=data.shift, scale=data.scale)
    return model.with_params(jax.tree.map(lambda leaf: leaf + 0.1, model.params))


def test_strategies_are_probed_before_and_measured_after_training(data, teacher, tmp_path):
    strategies = ("teacher", "features_only")
    found = compare_strategies(
        data, teacher, StudentConfig(**ALONE), strategies, np.asarray, seeds=(0, 1), sigmas=(0.2, 1.0),
        head_warmup=True, n=100, probe_rows=50, eval_every=2,
    )  # fmt: skip
    rows = {row["strategy"]: row for row in found.table}
    assert list(rows) == ["teacher", "features_only", "features_only + head warm-up"]
    assert rows["teacher"]["e_map"] == 0
    assert rows["teacher"]["cka"] == pytest.approx(1)
    assert rows["features_only"]["e_map"] > 0
    for row in rows.values():
        assert [step for step, _ in row["curve"]] == [2, 4]
        assert row["fd"] == pytest.approx(np.mean(row["fds"]))
        assert len(row["fds"]) == 2
    places = [(row["sigma"], row["block"]) for row in found.probes["teacher"]]
    assert places == [(sigma, block) for sigma in (0.2, 1.0) for block in ("stem", "block0")]
    assert save_heat_maps(tmp_path / "cka.png", found.probes, "cka")
    assert not save_heat_maps(tmp_path / "accuracy.png", found.probes, "accuracy")
    assert [path.name for path in tmp_path.iterdir()] == ["cka.png"]


def test_unknown_and_repeated_strategies_are_refused(data, teacher):
    for strategies, words in ((("teacher", "best"), "'best' is not one of"), (("random", "random"), "given twice")):
        with pytest.raises(ConfigError, match=words):
            compare_strategies(data, teacher, StudentConfig(**SHORT), strategies, np.asarray)


def test_teacher_budget_counts_the_work_of_both(data, tmp_path):
    teacher_cfg = TeacherConfig(net_kwargs=NET, steps=1, batch_size=8, steps_per_call=2)
    rows = teacher_budget(data, teacher_cfg, StudentConfig(**ALONE), (0, 2), np.asarray, n=100)
    assert [row["teacher_steps"] for row in rows] == [0, 2]
    assert [row["teacher_passes"] for row in rows] == [0, 3 * 2 * 8]
    assert [row["student_passes"] for row in rows] == [4 * 4 * 8] * 2
    assert all(row["fd"] > 0 for row in rows)
    save_budget_plot(tmp_path / "b.png", rows)
    with pytest.raises(ConfigError, match="zero or more"):
        teacher_budget(data, teacher_cfg, StudentConfig(**ALONE), (-1,), np.asarray)


def test_frontier_has_a_student_for_every_alpha_and_seed(data, teacher, tmp_path):
    table = alpha_frontier(data, teacher, StudentConfig(**SHORT), (0.0, 1.0), np.asarray, seeds=(0, 1), n=100)
    assert [(row["alpha"], row["seed"]) for row in table] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert all(0 <= row["precision"] <= 1 and 0 <= row["recall"] <= 1 for row in table)
    save_frontier_plot(tmp_path / "f.png", table)
    assert (tmp_path / "f.png").is_file()


def test_passes_are_those_of_the_methods():
    def passes(**settings):
        return update_passes(StudentConfig(**settings), 0.09)

    assert passes(aux_updates=1) == pytest.approx(4 + 8 * 0.09)
    assert passes(aux_updates=4) == pytest.approx(3 + 2 * 0.09 + 4 * (1 + 6 * 0.09))
    assert passes(aux_updates=4, share_latents=True) == pytest.approx(passes(aux_updates=4) - 4)
    assert passes(method="score", aux_updates=1) == 9
    assert passes(method="score", aux_updates=4) == 21


@pytest.mark.parametrize("method", ["ratio", "score"])
def test_cost_is_near_what_xla_counts_and_stores(method):
    net = {"net": "mlp", "dim": 32, "hidden": 64, "blocks": 2}
    teacher = Denoiser(net=nets.build(net, rngs=nnx.Rngs(0)))
    rows = make_dataset(np.random.default_rng(0).normal(size=(64, 32)))
    cfg = StudentConfig(method=method, aux_updates=1, batch_size=16)
    step = make_student_step(rows, teacher, cfg)
    program = step.run.lower(step.state, step.pool, step.frozen, length=1)
    cost = update_cost(cfg, nets.config(teacher.net))
    assert cost.flops == pytest.approx(program.compile().cost_analysis()["flops"], rel=0.2)
    arrays = [step.state.params, step.state.ema, step.state.opt, step.state.aux, step.state.aux_opt, step.frozen]
    stored = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
    assert cost.state_bytes == pytest.approx(stored, rel=0.01)
