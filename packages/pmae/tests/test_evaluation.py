"""The contract of results.json, resuming, and failures that cost only themselves."""

import json
from dataclasses import replace

import numpy as np
import pytest

from pmae.errors import DataError
from pmae.evaluation import runner, samplers, table1
from pmae.evaluation.profiles import FULL, QUICK
from pmae.evaluation.report import Claim, holds, t_interval
from pmae.models import PMAEConfig

TINY = replace(QUICK, experiments=("samplers",), train=200, photos=200, draws=2_000, workers=1)


def test_results_follow_the_contract_and_are_taken_again(tmp_path):
    results = runner.run(TINY, 3, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert {k: results[k] for k in ("schema", "package", "profile", "seed")} == {
        "schema": "bench/1", "package": "pmae", "profile": "quick", "seed": 3,
    }  # fmt: skip
    for claim in results["claims"]:
        assert claim["holds"] == holds(claim["measured"], claim["ci"], claim["test"]["op"], claim["test"]["value"])
        assert claim["statement"]
        assert claim["n"] > 0
    assert all((tmp_path / artifact["path"]).exists() for artifact in results["artifacts"])
    again = runner.run(TINY, 3, tmp_path, resume=True)
    assert again["metrics"] == results["metrics"]  # the wall time, too: nothing ran


def test_an_experiment_that_fails_costs_itself_only(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no such thing")

    monkeypatch.setattr(table1, "run_table1", fail)
    both = replace(TINY, experiments=("table1", "samplers"))
    with pytest.raises(runner.ExperimentError, match=r"1 of 2 experiments failed: table1 \(RuntimeError: no such"):
        runner.run(both, 0, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["claims"]
    assert "no such thing" in (tmp_path / "experiments" / "table1.error.txt").read_text()

    def refuse(*_, **__):
        raise DataError("bad images")

    monkeypatch.setattr(samplers, "run_samplers", refuse)
    with pytest.raises(DataError, match="bad images"):
        runner.run(TINY, 0, tmp_path)


@pytest.mark.parametrize(("arguments", "says"), [
    ({"profile": "huge"}, "quick, full, gpu, paper"),
    ({"profile": TINY, "only": ["nothing"]}, "unknown experiment nothing"),
    ({"profile": TINY, "device": "tpu"}, "one of auto, cpu, cuda"),
])  # fmt: skip
def test_unknown_names_are_refused(tmp_path, arguments, says):
    with pytest.raises(ValueError, match=says):
        runner.run(out=tmp_path, **arguments)


@pytest.mark.parametrize(("ci", "op", "value", "verdict"), [
    ((0.1, 0.9), ">", 0.0, True), ((-0.1, 0.9), ">", 0.0, False), ((0.1, 0.9), "<", 1.0, True),
    ((0.1, 1.1), "<", 1.0, False), (None, ">", 0.4, True), (None, "<=", 0.5, True),
])  # fmt: skip
def test_a_claim_is_judged_by_the_near_end_of_its_interval(ci, op, value, verdict):
    claim = Claim(id="x", statement="x", measured=0.5, ci=ci, op=op, value=value, n=3)
    assert claim.holds is verdict


def test_interval_of_a_mean_is_students():
    low, high = t_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.302653 / np.sqrt(3), 2 + 4.302653 / np.sqrt(3)), rel=1e-6)


def test_the_full_profile_is_the_configuration_that_was_chosen_beforehand():
    assert (FULL.epochs, FULL.train, FULL.test, FULL.model_seeds) == (30, 6_000, 3_000, (10, 11, 12))
    assert (FULL.masks_per_batch, FULL.crop_seeds, FULL.batch) == (4, (1010, 1011), 64)


def test_every_cell_of_table_1_is_a_configuration():
    cells = table1.cells()
    assert len(cells) == 5 * 5 * 3 + 2
    for cell in cells.values():
        model = dict(cell["model"])
        if isinstance(model.get("ratio"), list):
            model["ratio"] = tuple(model["ratio"])
        assert PMAEConfig(**model).preset in ("vit_t8_paper", "vit_s16", "vit_b16")
