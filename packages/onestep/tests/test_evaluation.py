"""The contract of results.json, resuming, and what the claims are computed from."""

import json
from dataclasses import replace

import numpy as np
import pytest

from onestep_diffusion.config import StudentConfig
from onestep_diffusion.errors import ConfigError, DataError
from onestep_diffusion.evaluation import exactness, initialisation, runner
from onestep_diffusion.evaluation.assets import shipped_teacher
from onestep_diffusion.evaluation.profiles import PROFILES, QUICK
from onestep_diffusion.evaluation.report import Claim, factor, holds
from onestep_diffusion.evaluation.students import Run
from onestep_diffusion.probes import map_error

TINY = replace(
    QUICK, experiments=("exactness",), verifier_seeds=2, updates=4, steps_per_call=2, evaluations=2, seeds=(0,),
    samples=64, workers=1,
)  # fmt: skip


def test_results_follow_the_contract_and_are_taken_again(tmp_path):
    results = runner.run(TINY, 3, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert {k: results[k] for k in ("schema", "package", "profile", "seed")} == {
        "schema": "bench/1", "package": "onestep-diffusion", "profile": "quick", "seed": 3,
    }  # fmt: skip
    for claim in results["claims"]:
        assert claim["holds"] == holds(claim["measured"], claim["ci"], claim["test"]["op"], claim["test"]["value"])
        assert claim["statement"]
        assert claim["n"] > 0
    assert runner.run(TINY, 3, tmp_path, resume=True)["metrics"] == results["metrics"]  # the wall time, too


def curves(method, **ends):
    """Three runs of each initialisation: FD 100 at the start, then `middle`, then `end` after 100 updates."""
    return {
        (method, init): [Run(StudentConfig(method=method, init=init), seed, [(0, 100.0), (50, middle), (100, end * f)])
                         for seed, f in enumerate((0.99, 1.0, 1.01))]
        for init, (middle, end) in ends.items()
    }  # fmt: skip


RUNS = curves(
    "ratio", teacher=(10.0, 2.0), random=(60.0, 40.0), single_level=(30.0, 12.0), off_level=(12.0, 3.0)
) | curves("score", teacher=(10.0, 3.0), random=(80.0, 5.0), single_level=(30.0, 4.0), off_level=(12.0, 3.0))


def test_share_of_the_gap_is_of_start_and_floor():
    relative, alone = initialisation._score_free(RUNS, 1.0, QUICK)
    assert alone.measured == pytest.approx((100 - 2) / 99, rel=1e-3)
    assert relative.measured == pytest.approx((100 - 2) / (100 - 3), rel=1e-3)
    assert relative.holds
    assert alone.holds


def test_initialisations_are_compared_by_factors_of_the_distance():
    claims = {claim.id: claim for claim in initialisation._needs_weights(RUNS, "quick")}
    assert claims["teacher-init-ratio"].measured == pytest.approx(20)
    assert claims["teacher-init-ratio"].holds
    assert not claims["teacher-init-score"].holds  # 5 over 3
    # The teacher's is at 15 after 41 updates, random weights never within 100, which is what counts for them.
    reached = 50 * np.log(100 / 15) / np.log(100 / 10)
    assert claims["teacher-init-speed-ratio"].measured == pytest.approx(100 / reached)
    assert "3 of 3 did not get there" in claims["teacher-init-speed-ratio"].note
    maps = {"single_level": 0.1, "off_level": 1.0, "random": 10.0}
    map_error, ratio, score = initialisation._features_not_map(RUNS, maps)
    assert (map_error.measured, ratio.measured) == (pytest.approx(0.1), pytest.approx(4))
    assert map_error.holds
    assert ratio.holds
    assert not score.holds  # 4 over 3


def test_shipped_teachers_have_the_maps_that_they_are_shipped_for():
    multi, single, off = (shipped_teacher(name) for name in ("multi", "single", "off"))
    near, far = map_error(single, multi), map_error(off, multi)
    assert near < 0.3 * far
    assert far > 0.5


def test_an_experiment_that_fails_costs_itself_only(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no such thing")

    monkeypatch.setattr(exactness, "run_exactness", fail)
    with pytest.raises(runner.ExperimentError, match=r"1 of 1 experiments failed: exactness \(RuntimeError: no such"):
        runner.run(TINY, 0, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["claims"] == []

    def refuse(*_, **__):
        raise DataError("bad rows")

    monkeypatch.setattr(exactness, "run_exactness", refuse)
    with pytest.raises(DataError, match="bad rows"):
        runner.run(TINY, 0, tmp_path)


@pytest.mark.parametrize(("arguments", "says"), [
    ({"profile": "huge"}, "quick, full, gpu, paper"),
    ({"profile": TINY, "only": ["nothing"]}, "unknown experiment nothing"),
    ({"profile": TINY, "device": "tpu"}, "one of auto, cpu, gpu"),
])  # fmt: skip
def test_unknown_names_are_refused(tmp_path, arguments, says):
    with pytest.raises(ConfigError, match=says):
        runner.run(out=tmp_path, **arguments)


def test_every_experiment_of_every_profile_exists():
    assert all(set(profile.experiments) <= set(runner.EXPERIMENTS) for profile in PROFILES.values())


def test_a_claim_with_an_interval_is_judged_by_its_near_end():
    claims = [Claim(id="x", statement="x", measured=0.5, ci=ci, op=op, value=v, n=3)
              for ci, op, v in (((0.1, 0.9), ">", 0.0), ((-0.1, 0.9), ">", 0.0), ((0.1, 1.1), "<", 1.0))]  # fmt: skip
    assert [claim.holds for claim in claims] == [True, False, False]


def test_interval_of_a_factor_is_symmetric_in_logarithms():
    low, high = factor(np.log([1.0, 2.0, 4.0]))["ci"]
    assert low * high == pytest.approx(4.0)
    assert low < 2 < high


def test_updates_to_a_level_are_interpolated_in_logarithms():
    run = Run(StudentConfig(), 0, [(0, 100.0), (100, 10.0), (200, 1.0)])
    assert run.updates_to(10**1.5) == pytest.approx(50)
    assert run.updates_to(1.0) == pytest.approx(200)
    assert run.updates_to(0.5) == float("inf")
    assert (run.start, run.final) == (100.0, 1.0)
