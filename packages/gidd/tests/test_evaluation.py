"""The experiments at toy size: the contract of results.json, resuming, and failures that cost only themselves."""

import json
from dataclasses import replace

import numpy as np
import pytest

from gidd import ConfigError
from gidd.data import prepare
from gidd.errors import ExperimentError
from gidd.evaluation import run, speed
from gidd.evaluation.detection import auc, calibration_error, plant
from gidd.evaluation.profiles import FULL, GPU, PROFILES, QUICK
from gidd.evaluation.report import Claim, bootstrap_difference, holds

TINY = replace(
    FULL,
    name="quick",
    joints=2,
    d3pm_steps=(32, 256),
    loss_rows=32,
    loss_vocab=512,
    loss_repeats=2,
    latin_order=3,
    latin_steps=4,
    latin_batch=8,
    latin_seeds=2,
    latin_samples=8,
    latin_times=(2, 4),
    latin_corrected=(2,),
    latin_corrections=3,
    latin_widths=(16, 1, 2),
    text_steps=3,
    text_batch=4,
    text_length=16,
    text_seeds=2,
    text_samples=4,
    text_times=(2,),
    text_curve=(1,),
    text_corrections=2,
    text_widths=(16, 1, 2),
    text_held_out=(8, 8),
    speed_rows=16,
    speed_columns=64,
    workers=1,
)


@pytest.fixture(scope="module", autouse=True)
def small_timings():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "SEQUENCES", 3)
        patch.setattr(speed, "CORRECTIONS", 2)
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    out = tmp_path_factory.mktemp("tiny")
    return out, run(TINY, 1, out, device="cpu")


def test_results_follow_the_contract(tiny):
    out, results = tiny
    assert json.loads((out / "results.json").read_text()) == results
    assert {k: results[k] for k in ("schema", "package", "profile", "seed")} == {
        "schema": "bench/1", "package": "gidd-diffusion", "profile": "quick", "seed": 1,
    }  # fmt: skip
    assert set(results) == {
        "schema", "package", "version", "profile", "seed", "claims", "metrics", "comparisons", "artifacts",
    }  # fmt: skip
    for claim in results["claims"]:
        assert claim["holds"] == holds(claim["measured"], claim["ci"], claim["test"]["op"], claim["test"]["value"])
        assert claim["statement"]
        assert claim["n"] > 0
    assert len({c["id"] for c in results["claims"]}) == len(results["claims"])
    assert all((out / a["path"]).exists() for a in results["artifacts"])
    assert {a["path"] for a in results["artifacts"]} == {"latin.png", "text.png", "correction.png", "samples.txt"}


def test_every_claim_of_the_specification_is_there(tiny):
    found = {c["id"] for c in tiny[1]["claims"]}
    assert {
        "exact-masked", "exact-leave-one-out", "exact-discrete-limit", "loss-speed", "loss-memory", "latin-difference",
        "latin-few-steps-4", "latin-equal-calls", "latin-self-accuracy", "latin-detection", "latin-hybridise",
        "text-ar", "text-gidd-plus", "text-weighting", "text-weighting-more", "text-cost-0.1", "text-cost-limit",
        "text-difference", "text-difference-ar", "text-few-steps-2", "text-equal-calls", "text-detection",
    } <= found  # fmt: skip


def test_identities_hold_on_any_seed(tiny):
    assert all(c["holds"] for c in tiny[1]["claims"] if c["id"].startswith("exact"))


def test_every_judge_number_has_entropy_beside_it(tiny):
    names = [m["name"] for m in tiny[1]["metrics"]]
    for name in names:
        if "judge before" in name or "judge after" in name:
            assert name.replace("AR judge", "judge").replace("judge", "unigram entropy") in names


def test_experiments_of_the_accelerator_run_anywhere(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"one two three, line {i} of a text that repeats itself" for i in range(400)))
    prepare(f"files:{text}", "char", tmp_path / "corpus")
    profile = replace(
        GPU, kernel_tokens=(16, 32), loss_vocab=256, loss_repeats=2, speed_rows=16, speed_columns=64,
        speed_widths=(32, 1, 2), speed_vocab=300, speed_batch=1, speed_length=8, speed_steps=2,
        data=str(tmp_path / "corpus"), corpus_widths=(32, 1, 2), corpus_length=8, corpus_batch=2, corpus_steps=2,
        corpus_samples=3, corpus_times=(2,), corpus_corrections=2,
    )  # fmt: skip
    found = run(profile, 0, tmp_path / "out", only=["kernels", "speed", "throughput", "corpus"], device="cpu")
    assert {c["id"] for c in found["claims"]} == {
        "speed-sampling", "speed-correction", "corpus-correction-hybrid", "corpus-correction-masked",
        "corpus-difference", "corpus-batching",
    }  # fmt: skip
    assert "kernels, byte floor: 32 × 256, float32" in {m["name"] for m in found["metrics"]}
    assert {c["peer_name"].split(" (")[0] for c in found["comparisons"]} == {
        "reference", "cross-entropy", "one pass of the network", "one at a time", "cross-entropy, no noise",
    }  # fmt: skip


def test_planted_errors_and_their_scores():
    rng = np.random.default_rng(0)
    clean = rng.integers(0, 7, (200, 50))
    shown, wrong = plant(rng, clean, 7)
    assert (shown[~wrong] == clean[~wrong]).all()
    assert (shown[wrong] != clean[wrong]).all()
    assert shown.max() < 7
    assert abs(wrong.mean() - 0.08) < 4 * (0.08 * 0.92 / wrong.size) ** 0.5
    score = rng.random(wrong.shape).round(1)  # with ties, by pairs
    pairs = np.sign(score[wrong][:, None] - score[~wrong][None])
    assert auc(score, wrong) == pytest.approx((pairs.mean() + 1) / 2)
    p = rng.random(400_000)
    assert calibration_error(p, rng.random(p.shape) < p) < 0.01
    assert calibration_error(p, rng.random(p.shape) < p / 2) == pytest.approx(0.25, abs=0.01)


def test_experiments_do_not_depend_on_which_others_run(tiny, tmp_path):
    alone = run(TINY, 1, tmp_path, only=["exact"], device="cpu")
    assert alone["claims"] == [c for c in tiny[1]["claims"] if c["id"].startswith("exact")]


def test_resume_takes_what_is_finished(tiny):
    out, results = tiny
    seen = []
    again = run(TINY, 1, out, resume=True, device="cpu", progress=lambda *a: seen.append(a))
    assert again == results
    other = run(TINY, 2, out, only=["exact"], resume=True, device="cpu")
    assert other["seed"] == 2


def test_raising_experiment_costs_only_itself(tmp_path, monkeypatch):
    from gidd.evaluation import exactness

    monkeypatch.setattr(exactness, "_closed_form", lambda generator: 1 / 0)
    profile = replace(TINY, experiments=("exact", "loss"))
    with pytest.raises(ExperimentError, match=r"1 of 2 experiments failed: exact \(ZeroDivisionError"):
        run(profile, 1, tmp_path, device="cpu")
    left = json.loads((tmp_path / "results.json").read_text())["claims"]
    assert left
    assert all(c["id"].startswith("loss") for c in left)


def test_unknown_words_are_refused(tmp_path):
    for options in (
        {"profile": "huge"},
        {"profile": "quick", "only": ["magic"]},
        {"profile": "quick", "device": "tpu"},
    ):
        with pytest.raises(ConfigError):
            run(out=tmp_path, **options)


def test_profiles_are_complete():
    assert set(PROFILES) == {"quick", "full", "gpu", "paper"}
    assert QUICK.latin_seeds == 1
    assert FULL.latin_seeds >= 3


def test_claim_without_a_number_is_a_mistake():
    with pytest.raises(ValueError, match="not all finite"):
        Claim(id="a", statement="s", measured=float("nan"), op=">", value=0, n=1)


def test_bootstrap_of_a_difference_covers_it():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        low, high = bootstrap_difference(rng, rng.normal(1, 1, 60), rng.normal(0, 2, 80), draws=300)
        inside += low <= 1 <= high
    assert 0.88 <= inside / 200 <= 0.99
