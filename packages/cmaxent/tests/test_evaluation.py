"""The evaluation obeys the results contract, resumes to the same result, and survives a kill."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from sklearn.metrics import roc_auc_score

from cmaxent import CMaxEntError, Moments, compare_directions, plots
from cmaxent.evaluation import PROFILES, run
from cmaxent.evaluation import report as rp
from cmaxent.evaluation.inference import marginal_log_odds
from cmaxent.evaluation.peers import expected_calibration_error
from cmaxent.evaluation.runner import EXPERIMENTS

TINY = replace(
    PROFILES["quick"],
    name="tiny",
    experiments=tuple(e for e in EXPERIMENTS if e not in ("E12", "GPU")),
    real_sets=("iris", "diabetes"),
    problems=5,
    grid=9,  # fewer have no feasible point off the diagonals
    slope_sizes=(500, 2000),
    slope_seeds=3,
    lda_rows=500,
    star_rows=2000,
    star_seeds=3,
    bridge_splits=2,
    hidden_splits=2,
    direction_problems=8,
    oov_seeds=4,
    edge_seeds=4,
    shift_seeds=3,
    coverage_sims=3,
    coverage_rows=300,
    timing_rows=4000,
    timing_columns=4,
    timing_repeats=2,
    completion_variables=60,
    completion_cliques=4,
    clique_size=20,
    stream_rows=2000,
    stream_columns=5,
    dense_variables=50,
    dense_rows=500,
)

CLAIM_KEYS = ["id", "statement", "source", "paper", "measured", "unit", "ci", "n", "test", "holds", "note"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    out = tmp_path_factory.mktemp("tiny")
    seen = []
    results = run(TINY, 3, out, progress=lambda *args: seen.append(args))
    return out, results, seen


def strict(path):
    def refuse(text):
        raise AssertionError(f"{text} in {path}")

    return json.loads(path.read_text(), parse_constant=refuse)


# --- the contract -----------------------------------------------------------------------------------------


def test_results_have_exactly_the_keys_of_the_contract(tiny):
    out, results, _ = tiny
    assert strict(out / "results.json") == results
    assert list(results) == [
        "schema",
        "package",
        "version",
        "profile",
        "seed",
        "claims",
        "metrics",
        "comparisons",
        "artifacts",
    ]
    assert results["schema"] == "bench/1"
    assert results["package"] == "cmaxent"
    assert results["profile"] == "tiny"
    assert results["seed"] == 3
    for claim in results["claims"]:
        assert list(claim) == CLAIM_KEYS
        assert list(claim["test"]) == ["op", "value"]
        assert claim["n"] >= 1
        assert claim["ci"] is None or claim["ci"][0] <= claim["ci"][1]
        assert claim["statement"]
    for metric in results["metrics"]:
        assert list(metric) == ["name", "value", "unit", "better"]
        assert metric["better"] in ("higher", "lower")
        assert math.isfinite(metric["value"])
    for comparison in results["comparisons"]:
        assert list(comparison) == ["name", "ours", "peer", "peer_name", "unit", "better"]
    for artifact in results["artifacts"]:
        assert (out / artifact["path"]).stat().st_size > 5000
    assert len({c["id"] for c in results["claims"]}) == len(results["claims"])
    assert len({m["name"] for m in results["metrics"]}) == len(results["metrics"])


def test_every_verdict_follows_from_the_near_end_of_the_interval(tiny):
    compare = {">": lambda a, b: a > b, ">=": lambda a, b: a >= b, "<": lambda a, b: a < b, "<=": lambda a, b: a <= b}
    for claim in tiny[1]["claims"]:
        op = claim["test"]["op"]
        near = claim["measured"] if claim["ci"] is None else claim["ci"][0 if op.startswith(">") else 1]
        assert claim["holds"] == compare[op](near, claim["test"]["value"]), claim["id"]


def test_every_criterion_of_the_specification_has_a_claim(tiny):
    ids = {c["id"].split("-")[0] for c in tiny[1]["claims"]}
    assert {f"C{i}" for i in range(1, 12)} | {"E11", "E13", "E14"} <= ids
    assert "E12" in PROFILES["full"].experiments


def test_exact_identities_hold_on_any_seed(tiny):
    exact = ("C1-moments", "C1-empirical", "C2", "C3", "C4", "C5-ignored", "C5-parallel", "C5-implied")
    for claim in tiny[1]["claims"]:
        if claim["id"].startswith(exact):
            assert claim["holds"], claim


def test_progress_is_told_before_and_after_each_experiment(tiny):
    seen, total = tiny[2], len(TINY.experiments)
    assert seen[0][:3] == ("", 0, total)
    assert [s[0] for s in seen[1:]] == list(TINY.experiments)
    assert [s[1] for s in seen[1:]] == list(range(1, total + 1))


# --- the one rule and the intervals -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measured", "ci", "op", "value", "expected"),
    [
        (1.0, (0.4, 2.0), ">", 0.5, False),
        (1.0, (0.6, 2.0), ">", 0.5, True),
        (1.0, (0.4, 2.0), "<=", 1.5, False),
        (1.0, (0.4, 1.5), "<=", 1.5, True),
        (1.0, (0.4, 1.5), "<", 1.5, False),
        (0.5, None, ">=", 0.5, True),
        (0.5, None, ">", 0.5, False),
        (0.0, None, "==", 0.0, True),
    ],
)
def test_holds_is_judged_on_the_near_end(measured, ci, op, value, expected):
    assert rp.holds(measured, ci, op, value) is expected


def test_claim_without_a_finite_number_is_a_mistake():
    with pytest.raises(ValueError, match="not all finite"):
        rp.Claim(id="a", statement="b", measured=float("nan"), op=">", value=0.0, n=1)
    with pytest.raises(ValueError, match="is not one of"):
        rp.holds(1.0, None, "~", 1.0)


def test_intervals_agree_with_known_values():
    assert_allclose(rp.wilson_interval(50, 100), (0.40383153, 0.59616847), atol=1e-8)
    assert_allclose(
        rp.t_interval([1.0, 2.0, 3.0]), (2 - 4.30265273 / np.sqrt(3), 2 + 4.30265273 / np.sqrt(3)), rtol=1e-8
    )
    rng = np.random.default_rng(0)
    y, a, b = rng.random(3000) < 0.3, rng.normal(size=3000), rng.normal(size=3000)
    a, b = a + y, b + 0.5 * y
    assert_allclose(rp.auc(a[y], a[~y]), roc_auc_score(y, a))
    value, low, high = rp.auc_difference_interval(y, a, b)
    assert_allclose(value, roc_auc_score(y, a) - roc_auc_score(y, b), atol=1e-12)

    def difference(y, a, b):
        return roc_auc_score(y, a) - roc_auc_score(y, b)

    assert_allclose((low, high), rp.bootstrap_interval(rng, difference, y, a, b, draws=300), atol=0.006)


def test_calibration_error_of_a_known_table():
    y, p = np.array([1, 0, 0, 0, 1, 1.0]), np.array([0.25, 0.25, 0.25, 0.25, 0.75, 0.75])
    assert_allclose(expected_calibration_error(y, p), (2 / 6) * 0.25)


def test_marginal_log_odds_are_those_of_one_logistic_regression_per_column():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(1)
    X = rng.binomial(2, 0.3, (2000, 5)).astype(float)
    y = (rng.random(2000) < 1 / (1 + np.exp(1 - X @ [0.4, 0, -0.3, 0.1, 0]))).astype(float)
    peer = [LogisticRegression(C=np.inf, tol=1e-10).fit(X[:, [j]], y).coef_[0, 0] for j in range(5)]
    assert_allclose(marginal_log_odds(X, y), peer, atol=1e-5)


# --- resume, only, kill -----------------------------------------------------------------------------------


def timeless(results):
    """Without what depends on the clock."""
    return {
        "claims": [c for c in results["claims"] if not c["id"].startswith("E13")],
        "metrics": [m for m in results["metrics"] if not m["name"].startswith("E13") and m["unit"] != "s"],
        "artifacts": results["artifacts"],
    }


def test_resume_runs_nothing_again_and_gives_the_identical_file(tiny):
    out, results, _ = tiny
    before = (out / "results.json").read_bytes()
    began = time.perf_counter()
    assert run(TINY, 3, out, resume=True) == results
    assert time.perf_counter() - began < 1.0
    assert (out / "results.json").read_bytes() == before


def test_resume_runs_again_what_is_damaged_lost_or_of_another_seed(tiny, tmp_path):
    small = replace(TINY, experiments=("E2", "E4"))
    first = run(small, 0, tmp_path)
    (tmp_path / "experiments" / "E4.json").write_text("{")
    assert timeless(run(small, 0, tmp_path, resume=True)) == timeless(first)
    other = run(small, 1, tmp_path, resume=True)
    assert timeless(other) != timeless(first)
    assert other["seed"] == 1


def test_only_changes_no_result(tiny, tmp_path):
    results = run(TINY, 3, tmp_path, only=["E4", "E2"])
    wanted = [c for c in tiny[1]["claims"] if c["id"].startswith(("C2", "C5"))]
    assert results["claims"] == wanted


def test_killed_evaluation_leaves_valid_json_and_resumes_to_the_same_result(tiny, tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); import test_evaluation as t\n"
        "from dataclasses import replace\n"
        "t.run(replace(t.TINY, experiments=('E2', 'E4', 'E8', 'E9', 'E11', 'E7')), 3, sys.argv[1])"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), os.path.dirname(__file__)])
    deadline = time.monotonic() + 30
    while not (tmp_path / "results.json").exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    partial = strict(tmp_path / "results.json")
    assert partial["schema"] == "bench/1"
    chosen = replace(TINY, experiments=("E2", "E4", "E8", "E9", "E11", "E7"))
    resumed = run(chosen, 3, tmp_path, resume=True)
    by_id = {c["id"]: c for c in tiny[1]["claims"]}
    assert resumed["claims"] == [by_id[c["id"]] for c in resumed["claims"]]
    assert {c["id"] for c in partial["claims"]} <= {c["id"] for c in resumed["claims"]}


def test_raising_experiment_costs_only_itself_and_runs_again_on_resume(tmp_path, monkeypatch):
    from cmaxent.errors import ExperimentError
    from cmaxent.evaluation import theory

    sound = theory.run_e2

    def broken(profile, rng, out):
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(theory, "run_e2", broken)
    with pytest.raises(ExperimentError, match=r"1 of 2 experiments failed: E2 \(ZeroDivisionError: planted\)"):
        run(TINY, 3, tmp_path, only=["E2", "E4"])
    left = strict(tmp_path / "results.json")["claims"]
    assert left
    assert all(c["id"].startswith("C5") for c in left)
    assert "planted" in (tmp_path / "experiments" / "E2.error.txt").read_text()
    monkeypatch.setattr(theory, "run_e2", sound)
    assert {c["id"][:2] for c in run(TINY, 3, tmp_path, only=["E2", "E4"], resume=True)["claims"]} == {"C2", "C5"}


# --- bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"profile": "huge"}, "unknown profile 'huge': use one of quick, full, gpu, paper"),
        ({"profile": "quick", "only": ["E99"]}, "unknown experiment E99"),
        ({"profile": "quick", "only": []}, r"unknown experiment \(none given\)"),
        ({"profile": "quick", "device": "tpu"}, "device 'tpu' is not auto, cpu or cuda"),
    ],
)
def test_unknown_words_are_refused(tmp_path, kwargs, match):
    with pytest.raises(CMaxEntError, match=match):
        run(seed=0, out=tmp_path, **kwargs)


def test_user_table_joins_the_real_sets_and_bad_ones_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    table = pd.DataFrame(rng.normal(size=(400, 4)) + y[:, None], columns=list("abcd")).assign(sick=y)
    good = tmp_path / "mine.csv"
    table.to_csv(good, index=False)
    results = run(
        replace(TINY, real_sets=("iris",)), 0, tmp_path / "out", only=["E5", "E6"], data=[good], target="sick"
    )
    assert any(m["name"].startswith("E5 mine ") for m in results["metrics"])
    assert all(c["n"] == 2 for c in results["claims"])
    text = tmp_path / "text.csv"
    table.assign(e="x").to_csv(text, index=False)
    for path, target, match in (
        (good, "ill", "has no column 'ill'"),
        (good, "a", "the target has to hold 0 and 1"),
        (text, "sick", "every column has to be numeric"),
        (tmp_path / "none.csv", "sick", "cannot read"),
    ):
        with pytest.raises(CMaxEntError, match=match):
            run(TINY, 0, tmp_path / "bad", only=["E5"], data=[path], target=target)


# --- plots ------------------------------------------------------------------------------------------------


def two_features(c=(0.25, -0.1)):
    cov = np.array([[2, 0.6, c[0]], [0.6, 1, c[1]], [c[0], c[1], 0.21]])
    return Moments.from_arrays([1, -2, 0.3], cov, names=["x1", "x2", "y"], kinds={"y": "binary"})


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_direction_figure_is_written_in_any_format(tmp_path, suffix):
    path = tmp_path / f"b.{suffix}"
    plots.direction_figure(compare_directions(two_features(), "y"), path)
    assert path.stat().st_size > 5000
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_direction_figure_shows_the_feasible_side_alone(tmp_path):
    report = compare_directions(two_features(c=(0.5, 0.1)), "y")
    assert report.causal is None
    plots.direction_figure(report, tmp_path / "b.png")
    assert (tmp_path / "b.png").stat().st_size > 5000


def test_direction_figure_refuses_three_classes(tmp_path):
    from sklearn.datasets import load_iris

    X, y = load_iris(return_X_y=True)
    moments = Moments.from_data(pd.DataFrame(X, columns=list("abcd")).assign(y=y.astype(str)))
    with pytest.raises(CMaxEntError, match="two classes"):
        plots.direction_figure(compare_directions(moments, "y"), tmp_path / "b.png")


def test_missing_matplotlib_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(CMaxEntError, match=r"pip install 'cmaxent\[plot\]'"):
        plots.feasibility_map(tmp_path / "f.png")
