"""The experiments at toy size: the contract of results.json, claims that can fail, resuming, broken experiments."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from dars import theory
from dars.errors import ExperimentError, TaskError
from dars.evaluation import PROFILES, run
from dars.evaluation.ledger import Ledger, breaks_over_bound, prefix_breaks
from dars.evaluation.overhead import staged_search, steps_in_a_row
from dars.evaluation.profiles import QUICK
from dars.evaluation.report import Claim, binomial_interval, holds
from dars.evaluation.runner import EXPERIMENTS
from dars.evaluation.skeletons import GAPS, STAGES
from dars.evaluation.traversal import advantage
from dars.models.base import NOTHING
from dars.policy import ExpansionPolicy
from dars.search import simulate_skeleton
from dars.tree import Node, Tree

TINY = replace(
    QUICK, experiments=("traversal", "restore", "ledger", "overhead"),  # for the others see test_trials
    flips=4_000, random_trees=15, map_points=5, restore_files=20, restore_depths=(1, 2, 6), restore_rounds=2,
    snapshot_files=30, ledger_gaps=(3, 1, 2, 4, 0), ledger_chars=800, ledger_high=800, ledger_low=300,
    log_scales=(0.1, 1), log_chars=300, memory_nodes=60, worker_step_s=0.0,
)  # fmt: skip
IDENTITIES = {  # not timings, which a busy machine may miss, nor growth, of which toy sizes say nothing
    "released-tree", "released-prunings", "sixteen-prunings", "replay-identity-released", "replay-identity-random",
    "theory-counts", "theory-success", "steps-per-leaf", "equal-calls-same-odds", "equal-calls-long-prefix",
    "equal-calls-hard", "equal-calls-easy", "restore-same-state", "ledger-same-tree", "ledger-exact", "ledger-tokens",
    "prefix-breaks", "blockwise-cheaper", "workers-same-tree", "log-size", "tree-size", "memory",
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    out = tmp_path_factory.mktemp("tiny")
    return out, run(TINY, 1, out)


TEXT, NUMBER = str, (int, float)
FIELDS = {  # of the contract bench/1
    "claims": {
        "id": TEXT, "statement": TEXT, "source": TEXT, "paper": TEXT, "measured": NUMBER, "unit": TEXT,
        "ci": (list, type(None)), "n": int, "test": dict, "holds": bool, "note": TEXT,
    },
    "metrics": {"name": TEXT, "value": NUMBER, "unit": TEXT, "better": TEXT},
    "comparisons": {
        "name": TEXT, "ours": NUMBER, "peer": NUMBER, "peer_name": TEXT, "unit": TEXT, "better": TEXT,
    },
    "artifacts": {"path": TEXT, "title": TEXT},
}  # fmt: skip


def test_results_follow_the_contract(tiny):
    out, results = tiny
    assert json.loads((out / "results.json").read_text()) == results
    assert set(results) == {"schema", "package", "version", "profile", "seed", *FIELDS}
    assert [results[k] for k in ("schema", "package", "profile", "seed")] == ["bench/1", "dars-agent", "quick", 1]
    for part, fields in FIELDS.items():
        assert results[part]
        for row in results[part]:
            assert set(row) == set(fields)
            for name, kind in fields.items():
                assert isinstance(row[name], kind)
                assert name in ("paper", "unit", "note") or row[name] != ""
                assert not isinstance(row[name], float) or np.isfinite(row[name])
            assert row.get("better", "lower") in ("higher", "lower")
    for claim in results["claims"]:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", claim["id"])
        assert claim["n"] > 0
        assert set(claim["test"]) == {"op", "value"}
        assert claim["holds"] == holds(claim["measured"], claim["ci"], claim["test"]["op"], claim["test"]["value"])
    assert len({claim["id"] for claim in results["claims"]}) == len(results["claims"])


def test_every_claim_is_there_and_what_is_not_timed_holds(tiny):
    claims = {claim["id"]: claim for claim in tiny[1]["claims"]}
    measured = {"restore-constant", "replay-grows", "snapshot-and-restore", "engine-step", "workers-time", "log-growth"}
    assert set(claims) == IDENTITIES | measured
    assert [name for name in IDENTITIES if not claims[name]["holds"]] == []


def test_pictures_are_drawn(tiny):
    out, results = tiny
    assert {a["path"] for a in results["artifacts"]} == {"break_even.png", "restore.png", "ledger.png"}
    assert all((out / a["path"]).read_bytes().startswith(b"\x89PNG") for a in results["artifacts"])


def test_every_profile_names_experiments_that_exist():
    for name, profile in PROFILES.items():
        assert profile.name == name
        assert set(profile.experiments) <= set(EXPERIMENTS)
        assert 1 in profile.log_scales


# --- claims that can fail ---------------------------------------------------------------------------------------------


def test_wrong_closed_forms_are_noticed(tmp_path, monkeypatch):
    exact, count = theory.success_probability, theory.replay_count
    monkeypatch.setattr(theory, "success_probability", lambda *args, **more: 0.97 * exact(*args, **more))
    monkeypatch.setattr(theory, "replay_count", lambda *args: count(*args) + 1)
    found = {c["id"]: c for c in run(replace(TINY, flips=20_000), 0, tmp_path, only=["traversal"])["claims"]}
    assert not found["theory-success"]["holds"]
    assert found["theory-counts"]["measured"] == TINY.random_trees
    assert found["replay-identity-random"]["holds"]


def test_a_price_that_is_off_by_a_cent_is_noticed(tmp_path, monkeypatch):
    from dars.models import anthropic

    right = anthropic.price
    monkeypatch.setattr(anthropic, "price", lambda usage, *rest: 1.2 * right(usage, *rest))
    found = {c["id"]: c for c in run(TINY, 0, tmp_path, only=["ledger"])["claims"]}
    assert not found["ledger-exact"]["holds"]
    assert found["ledger-tokens"]["holds"]


def test_claims_are_judged_on_the_near_end_of_their_interval():
    assert holds(1.0, (0.5, 1.6), "<=", 1.6)
    assert not holds(1.0, (0.5, 1.6), "<=", 1.5)
    assert not holds(1.0, (0.5, 1.6), ">", 0.5)
    assert holds(1.0, None, "==", 1.0)
    with pytest.raises(ValueError, match="finite"):
        Claim(id="x", statement="x", measured=float("nan"), op="<", value=1, n=1)
    with pytest.raises(ValueError, match="not one of"):
        holds(1.0, None, "~", 1.0)


def test_binomial_interval_covers_as_often_as_it_says():
    low, high = binomial_interval(0, 10)
    assert low == pytest.approx(0, abs=1e-12)
    assert high == pytest.approx(0.2775, abs=1e-4)  # Wilson's, from tables
    rng = np.random.default_rng(0)
    hits = rng.binomial(500, 0.3, size=4000)
    inside = np.mean([low <= 0.3 <= high for low, high in (binomial_interval(int(h), 500, 0.9) for h in hits)])
    assert inside == pytest.approx(0.9, abs=0.02)


def test_advantage_is_the_tree_less_restarts_of_as_many_calls():
    p, q = 0.4, 0.7
    tree = theory.success_probability(STAGES, [p, p, p, 1], [q, q, q, 1])
    calls = 67 - 11 + 11 * 4  # eleven alternatives of four calls each
    again = theory.restart_success(p**3, calls / 14)
    assert float(advantage(np.array(p), np.array(q), GAPS)) == pytest.approx(tree - again)


# --- parts ----------------------------------------------------------------------------------------------------------


def request(*turns):
    """Body of an ordinary turn after these (call, observation)."""
    messages = [{"role": "user", "content": [{"type": "text", "text": "issue"}]}]
    for call, seen in turns:
        use = {"type": "tool_use", "id": call, "name": "other", "input": {}}
        result = {"type": "tool_result", "tool_use_id": call, "content": seen, "cache_control": {"type": "ephemeral"}}
        messages += [{"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    return {"tools": [{"name": "other"}], "messages": messages}


def test_prefix_breaks_are_counted_along_every_path():
    bodies = [
        request(),
        request(("a", "one")),
        request(("a", "one"), ("b", "two")),
        request(("a", "-"), ("b", "two"), ("c", "three")),  # "one" was left out: a break
        request(("a", "-"), ("b", "two"), ("d", "four"), ("e", "five")),  # nothing is known of the request above
    ]
    tree = Tree()
    for i, call in enumerate("abc", start=1):
        tree.add(Node(i, parent=i - 1, depth=i, assistant=[{"id": call}], observation="x" * 40))
    ledger = Ledger(tree, 0.0, NOTHING, NOTHING, bodies[:4], [])
    assert prefix_breaks(ledger) == {("a", "b", "c"): 1}
    assert breaks_over_bound(ledger, 20) == [1 - 2]  # 30 tokens in blocks of 20
    assert prefix_breaks(replace(ledger, bodies=bodies)) == {("a", "b", "c"): 1, ("a", "b", "d", "e"): 0}


def test_steps_that_wait_for_one_another():
    edit = ExpansionPolicy({"edit": 1}, {}, 3)
    assert steps_in_a_row(simulate_skeleton("oooo", edit).tree) == 4
    # all alternatives can begin once the first path has ended: o, three steps, and then the longer of oo and oooo
    assert steps_in_a_row(simulate_skeleton("o(eoo|eo|eooo)", edit).tree) == 1 + 3 + 4
    assert steps_in_a_row(simulate_skeleton("o(eoo|eo|eooo)", ExpansionPolicy({}, {}, 1)).tree) == 4


def test_scripted_search_has_the_steps_of_the_closed_form():
    for workers in (1, 3):
        state = staged_search(GAPS, lambda call: call, workers=workers)
        assert state.steps == theory.step_count(STAGES, GAPS)
        assert len(state.tree.leaves()) == theory.leaf_count(STAGES)


# --- running ----------------------------------------------------------------------------------------------------------


def test_resume_takes_what_is_finished_and_of_the_same_kind(tmp_path, monkeypatch):
    from dars.evaluation import traversal

    made = []
    real = traversal.run
    monkeypatch.setattr(traversal, "run", lambda *args: made.append(1) or real(*args))
    small = replace(TINY, random_trees=2, flips=200)
    first = run(small, 3, tmp_path, only=["traversal"])
    assert run(small, 3, tmp_path, only=["traversal"], resume=True) == first
    assert len(made) == 1
    run(small, 4, tmp_path, only=["traversal"], resume=True)
    run(replace(small, random_trees=3), 4, tmp_path, only=["traversal"], resume=True)
    assert len(made) == 3
    (tmp_path / "break_even.png").unlink()
    run(replace(small, random_trees=3), 4, tmp_path, only=["traversal"], resume=True)
    assert len(made) == 4
    assert (tmp_path / "break_even.png").exists()


def test_experiment_that_breaks_costs_only_itself(tmp_path, monkeypatch):
    from dars.evaluation import restore

    def broken(*args):
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(restore, "run", broken)
    seen = []
    with pytest.raises(ExperimentError, match=r"1 of 2 .*restore \(RuntimeError: the disk is full\)"):
        run(TINY, 0, tmp_path, only=["traversal", "restore"], progress=lambda *args: seen.append(args[:3]))
    results = json.loads((tmp_path / "results.json").read_text())
    assert "released-tree" in {claim["id"] for claim in results["claims"]}
    assert "RuntimeError" in (tmp_path / "experiments" / "restore.error.txt").read_text()
    assert not (tmp_path / "experiments" / "restore.json").exists()
    assert seen == [("", 0, 2), ("traversal", 1, 2), ("restore", 2, 2)]


def test_unknown_names_say_which_there_are(tmp_path):
    with pytest.raises(TaskError, match="quick, full"):
        run("fast", 0, tmp_path)
    for only in (["speed"], []):
        with pytest.raises(TaskError, match="traversal, restore"):
            run(TINY, 0, tmp_path, only=only)
