"""Strategies on MutBench: counted in calls, graded by hidden tests, the same every time."""

import math
from dataclasses import replace

import numpy as np
import pytest

from dars.bench.outcomes import Outcomes, load_table
from dars.bench.tasks import load_tasks
from dars.env.apply import applied
from dars.evaluation import PROFILES, ablations, choosing, repair
from dars.evaluation.repair import DARS, LINEAR, MCTS, RANDOM, RESTART
from dars.evaluation.trials import RECORDED, candidates, drawn_seeds, resolves, resolving, searched, trial


@pytest.fixture(scope="module")
def outcomes():
    task = next(task for task in load_tasks() if task.id == "spans-01")
    found = Outcomes(task, load_table())
    yield found
    found.close()


def test_trials_are_the_same_every_time_and_hold_their_budget(outcomes):
    for strategy in (DARS, RESTART, LINEAR, MCTS, RANDOM):
        first, again = (trial(outcomes, strategy, 3, 40) for _ in range(2))
        assert first == again
        assert first.calls <= 40
        assert first.resolved_at is None or first.resolved_at <= first.calls


def test_seeds_are_drawn_from_the_recorded_ones_and_none_twice():
    drawn = [tuple(drawn_seeds(np.random.default_rng(seed), 3)) for seed in range(300)]
    assert all(list(seeds) == sorted(set(seeds)) for seeds in drawn)
    assert len(set(drawn)) == math.comb(RECORDED, 3)  # every set comes
    assert drawn_seeds(np.random.default_rng(0), RECORDED) == list(range(RECORDED))
    with pytest.raises(ValueError, match="larger"):
        drawn_seeds(np.random.default_rng(0), RECORDED + 1)
    for profile in PROFILES.values():
        used = profile.repair_seeds, profile.repair_grid_seeds, profile.choosing_seeds, profile.ablation_seeds
        assert max(used) <= RECORDED


@pytest.mark.parametrize("experiment", [repair, choosing, ablations])
def test_seed_of_the_evaluation_decides_which_searches_are_made(experiment, monkeypatch, tmp_path):
    class Asked(Exception):
        pass

    def over_tasks(function, tasks, *args):
        raise Asked(next(arg for arg in args if isinstance(arg, list)))

    monkeypatch.setattr(experiment, "over_tasks", over_tasks)
    monkeypatch.setattr(repair, "_true", lambda experiment, profile, rng: None)
    profile = replace(PROFILES["full"], ablation_seeds=3)
    asked = []
    for seed in (0, 0, *range(1, 9)):
        with pytest.raises(Asked) as ended:
            experiment.run(profile, np.random.default_rng(seed), tmp_path)
        asked.append(ended.value.args[0])
    assert asked[0] == asked[1]
    assert len({tuple(seeds) for seeds in asked}) > 1
    assert all(len(set(seeds)) == 3 and set(seeds) <= set(range(RECORDED)) for seeds in asked)


def test_smaller_budget_is_the_beginning_of_a_larger_one(outcomes):
    long = trial(outcomes, RESTART, 1, 60, to_the_end=True)
    short = trial(outcomes, RESTART, 1, 30, to_the_end=True)
    assert short.resolved_at == (long.resolved_at if long.within(30) else None)
    assert short.steps < long.steps


def test_linear_run_is_one_path_whatever_is_left(outcomes):
    assert trial(outcomes, LINEAR, 2, 500, to_the_end=True).leaves == 1


def test_candidates_are_labelled_by_the_hidden_tests(outcomes):
    found = candidates(outcomes, DARS, 0, 60)
    assert found.case.candidates
    for candidate, resolved in zip(found.case.candidates, found.resolved, strict=True):
        after = applied(outcomes.base, candidate.patch)
        source = next(iter(outcomes.task.faults)).path
        assert resolved == (not outcomes.hidden(after) and not outcomes.suite(after).bad)
        if after[source] == outcomes.package[source]:
            assert resolved
    assert "hidden" not in str(found.case.task.visible_tests)
    assert found.case.task.hidden_tests == ()


def test_reviewers_that_need_no_training_score_every_candidate(outcomes):
    (case, scores), *_ = choosing.cases_of(outcomes, [0])
    assert {len(values) for values in scores.values()} == {len(case.candidates)}
    assert case.execution is not None


def test_fault_put_right_resolves_and_nothing_does_not(outcomes):
    tree = searched(outcomes, DARS, 0, 30)
    assert len(tree) > 5
    patches = [leaf.patch for leaf in tree.leaves() if leaf.patch]
    assert patches
    assert not outcomes.resolved(outcomes.base)
    assert outcomes.resolved(outcomes.package)
    right = [leaf for leaf in tree.leaves() if leaf.patch and resolves(outcomes, leaf.patch)]
    assert [leaf.id for leaf in right] == resolving(outcomes, tree)
