"""The contract of results.json, resuming, and what the claims are computed from."""

import json
from dataclasses import replace

import numpy as np
import pytest

from onestep_diffusion.config import StudentConfig
from onestep_diffusion.errors import ConfigError, DataError
from onestep_diffusion.evaluation import exactness, runner
from onestep_diffusion.evaluation.initialisation import run_initialisation
from onestep_diffusion.evaluation.profiles import PROFILES, QUICK
from onestep_diffusion.evaluation.report import Claim, factor_interval, holds
from onestep_diffusion.evaluation.students import Run

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


def test_both_methods_are_compared_from_the_shipped_teachers(tmp_path):
    (tmp_path / "runs").mkdir()
    found = run_initialisation(TINY, np.random.default_rng(0), tmp_path)
    ids = [claim.id for claim in found.claims]
    assert {"score-free", "teacher-init-ratio", "teacher-init-score", "features-not-map-ratio", "map-error"} <= set(ids)
    assert next(claim for claim in found.claims if claim.id == "map-error").holds
    assert all((tmp_path / artifact.path).exists() for artifact in found.artifacts)
    starts = {m.name: m.value for m in found.metrics}
    floor, teacher = (starts[f"FD(digits) of {name}"] for name in
                      ("a half of the real images to all", "the teacher in 35 evaluations"))  # fmt: skip
    assert floor < teacher < starts["FD(digits) of the teacher in one"]


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
    low, high = factor_interval(np.log([1.0, 2.0, 4.0]))
    assert low * high == pytest.approx(4.0)
    assert low < 2 < high


def test_updates_to_a_level_are_interpolated_in_logarithms():
    run = Run(StudentConfig(), 0, [(0, 100.0), (100, 10.0), (200, 1.0)])
    assert run.updates_to(10**1.5) == pytest.approx(50)
    assert run.updates_to(1.0) == pytest.approx(200)
    assert run.updates_to(0.5) == float("inf")
    assert (run.start, run.final) == (100.0, 1.0)
