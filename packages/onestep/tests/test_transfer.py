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
from onestep_diffusion.transfer import save_heat_maps

SHORT = {"steps": 4, "batch_size": 8, "steps_per_call": 2, "aux_updates": 1}
NET = {"hidden": 8, "blocks": 1}


pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module")
def data():
    return load_data("moons", rows=300)


@pytest.fixture(scope="module")
def teacher(data):
    """Random weights throughout, the last layer included."""
    net = nets.build({"net": "mlp", "dim": 2, **NET}, rngs=nnx.Rngs(0))
    model = Denoiser(net=net, shift=data.shift, scale=data.scale)
    return model.with_params(jax.tree.map(lambda leaf: leaf + 0.1, model.params))


def test_unknown_and_repeated_strategies_are_refused(data, teacher):
    for strategies, words in ((("teacher", "best"), "'best' is not one of"), (("random", "random"), "given twice")):
        with pytest.raises(ConfigError, match=words):
            compare_strategies(data, teacher, StudentConfig(**SHORT), strategies, np.asarray)


def test_heat_maps_are_of_what_was_probed(tmp_path):
    rows = [{"block": b, "sigma": s, "cka": 0.5, "rank": 3.0} for s in (0.1, 1.0) for b in ("stem", "block0")]
    assert save_heat_maps(tmp_path / "cka.png", {"teacher": rows, "random": rows}, "cka")
    assert not save_heat_maps(tmp_path / "accuracy.png", {"teacher": rows}, "accuracy")
    assert [path.name for path in tmp_path.iterdir()] == ["cka.png"]


def test_teacher_steps_are_zero_or_more(data):
    with pytest.raises(ConfigError, match="zero or more; got \\[-1\\]"):
        teacher_budget(data, TeacherConfig(), StudentConfig(), (-1,), np.asarray)


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
    # Each of the five sets of samples of an update is made anew from what three passes gave.
    assert passes(aux_updates=4, few_steps=4) == pytest.approx(passes(aux_updates=4) + 3 * 5)


def test_cost_is_near_what_xla_counts_and_stores():
    net = {"net": "mlp", "dim": 32, "hidden": 64, "blocks": 2}
    teacher = Denoiser(net=nets.build(net, rngs=nnx.Rngs(0)))
    rows = make_dataset(np.random.default_rng(0).normal(size=(64, 32)))
    cfg = StudentConfig(method="score", divergence="js", aux_updates=1, batch_size=16)  # has all three networks
    step = make_student_step(rows, teacher, cfg)
    program = step.run.lower(step.state, step.pool, step.frozen, length=1)
    cost = update_cost(cfg, nets.config(teacher.net))
    assert cost.flops == pytest.approx(program.compile().cost_analysis()["flops"], rel=0.2)
    arrays = [step.state.params, step.state.ema, step.state.opt, step.state.aux, step.state.aux_opt, step.frozen]
    stored = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
    assert cost.state_bytes == pytest.approx(stored, rel=0.01)
