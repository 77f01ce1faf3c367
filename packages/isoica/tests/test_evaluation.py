import json
from dataclasses import replace

import numpy as np
import pytest

from isoica.errors import IsoICAError
from isoica.evaluation import PROFILES, ExperimentError, profiles, report, run, runner

TINY = replace(
    profiles.QUICK, name="tiny", n=2_000, seeds=(0, 1), etas=(0.05, 0.1), manifold_n=250, thetas=(0.1, 0.2),
    bound_runs=2, bound_n=1_000,
)  # fmt: skip


def test_a_claim_is_tested_on_the_near_end_of_its_interval():
    assert not report.holds(1.0, (0.8, 1.2), ">=", 0.9)
    assert report.holds(1.0, (0.8, 1.2), "<=", 1.2)
    with pytest.raises(ValueError, match="op '~' is not one of"):
        report.holds(1, None, "~", 1)


def test_near_tests_the_end_of_the_interval_that_is_further_from_the_target():
    found = report.near([0.9, 1.0, 1.1], 1.0)
    low, high = report.t_interval([0.9, 1.0, 1.1])
    assert found["measured"] == pytest.approx(0)
    assert found["ci"] == pytest.approx((0, high - 1))
    assert report.near([2.0, 2.001], 1.0)["ci"][0] > 0.0
    assert low < 1 < high


def test_results_follow_the_contract_and_finished_experiments_are_taken_again(tmp_path, monkeypatch):
    seen = []
    results = run(TINY, out=tmp_path, only=["E3", "E9"], progress=lambda *event: seen.append(event[0]))
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert (results["schema"], results["package"], results["profile"]) == ("bench/1", "isoica", "tiny")
    assert {c["id"] for c in results["claims"]} >= {"margin-controls", "gaussians-flagged", "bound-valid"}
    for claim in results["claims"]:
        assert claim["holds"] == report.holds(claim["measured"], claim["ci"], **claim["test"])
    assert all((tmp_path / a["path"]).stat().st_size > 2_000 for a in results["artifacts"])
    assert seen == ["", "E3", "E9"]
    monkeypatch.setattr(runner, "import_module", lambda *_: pytest.fail("an experiment ran again"))
    again = run(TINY, out=tmp_path, only=["E3", "E9"], resume=True)
    assert again == results


def test_an_experiment_that_raises_costs_only_itself(tmp_path, monkeypatch):
    from isoica.evaluation import linear

    monkeypatch.setattr(linear, "run_e4", lambda *_: 1 / 0)
    with pytest.raises(ExperimentError, match=r"1 of 2 experiments failed: E4 \(ZeroDivisionError"):
        run(TINY, out=tmp_path, only=["E3", "E4"])
    assert json.loads((tmp_path / "results.json").read_text())["claims"]
    assert "1 / 0" in (tmp_path / "experiments" / "E4.error.txt").read_text()


def test_unknown_profiles_and_experiments_are_refused(tmp_path):
    with pytest.raises(IsoICAError, match="unknown profile 'fast': use one of quick, full, gpu, paper"):
        run("fast", out=tmp_path)
    with pytest.raises(IsoICAError, match="unknown experiment E11"):
        run(TINY, out=tmp_path, only=["E11"])
    assert set(PROFILES) == {"quick", "full", "gpu", "paper"}


def test_signal_to_interference_of_a_tenth_of_the_other_source_is_twenty_decibels():
    from isoica.evaluation.speech import signal_to_interference

    rng = np.random.default_rng(0)
    S = rng.normal(size=(200_000, 2))
    mixed = S @ np.array([[1.0, 0.1], [0.1, 1.0]])
    assert signal_to_interference(S, mixed) == pytest.approx([20, 20], abs=0.1)
