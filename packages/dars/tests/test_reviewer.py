"""Reviewers: the cross-branch matrix, models asked in several orders, learning, ensembles, training data."""

import json
import math
import random
import re
import shlex
from dataclasses import replace
from itertools import permutations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dars.aci.registry import registry
from dars.aci.testing import REPORT
from dars.agent import run
from dars.bench.execute import own_python
from dars.candidates import Candidate, harvest
from dars.cli.main import main
from dars.config import BudgetSection, CandidatesSection, DarsConfig, ReviewSection
from dars.env import ExecResult, LocalEnvironment, MemoryEnvironment
from dars.errors import ModelError, TaskError
from dars.models import AnthropicModel, ModelRequest, ScriptedModel, ToolCall, price
from dars.prompts import make_prompts
from dars.reviewer import (
    Case,
    EnsembleReviewer,
    ExecutionReviewer,
    Labelled,
    LearnedReviewer,
    LLMReviewer,
    MultiplicityReviewer,
    OracleReviewer,
    RandomReviewer,
    Review,
    Scorer,
    borda,
    export_sft,
    fit,
    label,
    lora_config,
    make_reviewer,
    ranking,
    read_labelled,
    review_json,
    scored,
    write_labelled,
)
from dars.reviewer.aggregate import presentation_orders
from dars.reviewer.execution import class_sizes, matrix_scores
from dars.reviewer.learned import FEATURES, features
from dars.reviewer.llm import fitted, read_verdict
from dars.reviewer.scripts import scripts
from dars.reviewer.sft import estimated_tokens, model_critiques
from dars.search.engine import Engine
from dars.task import Task
from dars.testing import FakeMessagesServer
from dars.tree import Node, Tree

BASE = {
    "calc.py": "def add(a, b):\n    return a - b\n\n\ndef twice(a):\n    return 2 * a\n",
    "tests/test_calc.py": "from calc import add, twice\n\n\ndef test_twice():\n    assert twice(2) == 4\n\n\n"
    "def test_zero():\n    assert add(5, 0) == 5\n\n\ndef test_known_to_fail():\n    assert add(1, 1) == 2\n",
}  # fmt: skip
VISIBLE = {
    "tests/test_calc.py::test_twice": "twice(2) == 4",
    "tests/test_calc.py::test_zero": "add(5, 0) == 5",
    "tests/test_calc.py::test_known_to_fail": "add(1, 1) == 2",
}
BODIES = {
    "right": "    return a + b\n",
    "sorted": "    return sum(sorted([a, b]))\n",  # right as well
    "abs": "    return abs(a - b)\n",
    "three": "    return 3\n",
    "breaks": "    return a + b if b else 0\n",
}


class Memory(MemoryEnvironment):
    """Runs ``python FILE`` and pytest on the files in memory; with ``report`` the latter writes a JUnit report."""

    def __init__(self, files=BASE, report=False):
        super().__init__(files)
        self.report, self.commands = report, []

    def exec(self, cmd, timeout=None, stdin=None):
        self.commands.append(cmd)
        words = shlex.split(cmd.split("\n")[-1])
        space = {}
        try:
            exec(self.read_file("calc.py"), space)
            if "pytest" not in words:
                exec(self.read_file(words[1]).decode().replace(IMPORT, ""), space)
                return ExecResult(0, "")
            chosen = [word for word in words if "::" in word] or list(VISIBLE)
            failed = [test for test in chosen if not eval(VISIBLE[test], space)]
        except Exception as error:
            return ExecResult(1, repr(error))
        if self.report:
            cases = "".join(
                f'<testcase classname="tests.test_calc" name="{test.split("::")[1]}">'
                f"{'<failure/>' if test in failed else ''}</testcase>"
                for test in chosen
            )
            self.write_file(REPORT, f"<testsuite>{cases}</testsuite>".encode())
        return ExecResult(int(bool(failed)), "")


def task(tmp_path, **settings):
    return Task(tmp_path, "add(1, 2) in calc.py gives -1 and not 3", "calc-1", **settings)


def body_patch(body):
    env = MemoryEnvironment(BASE)
    env.write_file("calc.py", BASE["calc.py"].replace("    return a - b\n", body).encode())
    return env.diff()


def named_candidates(*names, **settings):
    return [Candidate(i + 1, body_patch(BODIES[name]), "", **settings) for i, name in enumerate(names)]


def case_of(env, tree, candidates, task, **settings):
    return Case(task, candidates, tree, env, env.snapshot(), **settings)


def chain(*scripts_of_leaf, patches=()):
    """A tree that branches at the root; each child writes a script and each of its own children submits."""
    tree = Tree()
    for n, text in enumerate(scripts_of_leaf):
        node = Node(len(tree), 0, n, "create", "create", {"path": f"repro{n}.py", "content": text}, depth=1)
        tree.add(node)
        env = MemoryEnvironment(BASE)
        env.write_file(f"repro{n}.py", text.encode())
        tree.add(Node(len(tree), node.id, 0, "submit", "submit", depth=2, exit="submit", patch=env.diff()))
    return tree


IMPORT = "from calc import add, twice\n"
ALONE = "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1"  # faster
SCRIPTS = (
    IMPORT + "assert add(1, 2) == 3\n",
    IMPORT + "assert add(-1, 1) == 0\nassert add(5, 0) == 5\n",
    IMPORT + "assert twice(1) == 2\n",
)


# --- the matrix -------------------------------------------------------------------------------------------------------


def test_cross_branch_matrix_picks_the_unique_patch_that_passes_all_scripts(tmp_path):
    candidates = named_candidates("abs", "three", "right")
    case = case_of(Memory(), chain(*SCRIPTS), candidates, task(tmp_path))
    review = ExecutionReviewer().review(case)
    assert ranking(review.scores, candidates)[0] == 2
    told = review.evidence
    assert told["matrix"] == [[0, 1, 1], [0, 0, 1]]  # the third script passes at the base and proves nothing
    assert [script["kept"] for script in told["scripts"]] == [True, True, False]
    assert case.env.state_hash() == MemoryEnvironment(BASE).state_hash()
    json.dumps(review_json(case, review, ranking(review.scores, candidates)))


@given(st.integers(1, 6), st.integers(2, 6), st.randoms(use_true_random=False))
def test_among_distinct_columns_the_one_without_failures_comes_first(rows, n, chance):
    columns = list({tuple(chance.randint(0, 1) for _ in range(rows)) for _ in range(n)} - {(1,) * rows})
    columns.insert(chance.randint(0, len(columns)), (1,) * rows)
    matrix = [list(row) for row in zip(*columns, strict=True)]
    scores = matrix_scores(matrix, [chance.uniform(0.1, 1) for _ in matrix], [0] * len(columns))
    best = columns.index((1,) * rows)
    assert all(scores[best] > score for p, score in enumerate(scores) if p != best)


def test_scores_are_those_of_the_formula(tmp_path):
    # Two scripts from one subtree, one from the other; two candidates that no script tells apart; one breaks a test.
    tree = chain(*SCRIPTS[:2])
    tree.add(
        Node(len(tree), 1, 1, "create", "create", {"path": "more.py", "content": IMPORT + "assert add(2, 2) == 4\n"})
    )
    candidates = named_candidates("right", "three", "sorted", "breaks")
    tests = list(VISIBLE)
    case = case_of(Memory(report=True), tree, candidates, task(tmp_path, visible_tests=tests))
    review = ExecutionReviewer(penalty=0.25).review(case)
    told = review.evidence
    weights = {script["path"]: script["weight"] for script in told["scripts"]}
    assert weights == {"repro0.py": 1 / 2, "more.py": 1 / 2, "repro1.py": 1}
    assert [entry["class"] for entry in told["candidates"]] == [2, 1, 2, 1]
    assert told["tests"] == {"tests.test_calc::test_twice": [1] * 4, "tests.test_calc::test_zero": [1, 0, 1, 0]}
    wanted = [2 * math.sqrt(2), 0.5 - 0.25, 2 * math.sqrt(2), 1 - 0.25]
    assert review.scores == pytest.approx(wanted)


def test_tests_without_a_report_are_run_one_by_one_and_agree_with_the_report(tmp_path):
    candidates = named_candidates("right", "three", "breaks", "abs")
    broken = []
    for report in (True, False):
        case = case_of(Memory(report=report), chain(), candidates, task(tmp_path, visible_tests=list(VISIBLE)))
        review = ExecutionReviewer().review(case)
        broken.append([[t.split("::")[-1] for t in c["broken"]] for c in review.evidence["candidates"]])
        assert review.scores == (0.0, -1.0, -1.0, 0.0)
    assert broken[0] == broken[1] == [[], ["test_zero"], ["test_zero"], []]


def test_tests_that_pytest_collects_are_visible_where_none_are_named(tmp_path):
    candidates = named_candidates("right", "three", "breaks", "abs")
    named = case_of(Memory(report=True), chain(), candidates, task(tmp_path, visible_tests=list(VISIBLE)))
    collected = case_of(Memory(report=True), chain(), candidates, task(tmp_path))
    reviews = [ExecutionReviewer().review(case) for case in (named, collected)]
    assert reviews[0] == reviews[1]
    assert reviews[1].scores == (0.0, -1.0, -1.0, 0.0)
    without = case_of(Memory(), chain(), candidates, task(tmp_path))  # no report: there is no pytest
    review = ExecutionReviewer().review(without)
    assert review.scores == (0.0,) * 4
    assert sum("pytest" in command for command in without.env.commands) == 1


def test_projects_tests_judge_the_candidates_of_a_default_run(tmp_path):
    """The first edit, which the reproduction cannot tell from the right one, breaks a test of the project."""
    for name, text in BASE.items():
        (tmp_path / "repo" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "repo" / name).write_text(text)

    def answer(request):
        if request.role == "critic":
            return json.dumps({"notes": [], "scores": [], "index": 0})
        body = BODIES["breaks" if request.role == "act" else "right"].strip()
        if not request.path:
            return ToolCall("edit", {"path": "calc.py", "old": "return a - b", "new": body})
        return ToolCall("submit", {"summary": str(request.sample)})

    config = DarsConfig(candidates=CandidatesSection(k=1), budget=BudgetSection(depth=3))
    with own_python():
        result = run(Task(tmp_path / "repo", "add is wrong"), ScriptedModel(answer), config, out=tmp_path / "out")
    assert [f"+{BODIES[name]}" in c.patch for c in result.candidates for name in ("right", "breaks")] == [
        True, False, False, True,
    ]  # fmt: skip
    evidence = json.loads((tmp_path / "out" / "review.json").read_text())["evidence"]
    assert set(evidence["tests"]) == {f"tests.test_calc::{name}" for name in ("test_twice", "test_zero")}


def test_script_that_no_candidate_passes_weighs_nothing(tmp_path):
    candidates = named_candidates("right", "three")
    case = case_of(Memory(), chain("raise SystemError\n", SCRIPTS[0]), candidates, task(tmp_path))
    review = ExecutionReviewer().review(case)
    assert [script["weight"] for script in review.evidence["scripts"]] == [0.0, 1.0]
    assert review.scores == pytest.approx([math.sqrt(2)] * 2)


def test_patch_that_does_not_apply_comes_last_and_says_why(tmp_path):
    candidates = named_candidates("three", "right")
    candidates[0] = replace(candidates[0], patch=candidates[0].patch.replace("return a - b", "return b - a"))
    case = case_of(Memory(), chain("raise SystemError\n"), candidates, task(tmp_path))
    review = ExecutionReviewer().review(case)
    assert review.scores[0] < review.scores[1]
    assert "does not apply" in review.evidence["candidates"][0]["error"]


def test_every_script_runs_in_a_fresh_copy(tmp_path):
    class Dirty(Memory):
        def exec(self, cmd, timeout=None, stdin=None):
            done = super().exec(cmd, timeout, stdin)
            if "pytest" not in cmd:
                seen.append(sorted(set(self.list_files()) - set(BASE)))
            self.write_file("left behind", b"x")
            return done

    seen = []
    case = case_of(Dirty(), chain(*SCRIPTS[:2]), named_candidates("right", "abs"), task(tmp_path))
    ExecutionReviewer().review(case)
    assert set(map(tuple, seen)) == {("repro0.py",), ("repro1.py",)}


class Sealed(Task):
    """A task whose hidden tests must not be looked at."""

    def __getattribute__(self, name):
        if name == "hidden_tests" and "sealed" in object.__getattribute__(self, "__dict__"):
            raise AssertionError("hidden tests were looked at")
        return super().__getattribute__(name)


def sealed(tmp_path):
    made = Sealed(tmp_path, "add is wrong", visible_tests=list(VISIBLE), hidden_tests=["secret"])
    object.__setattr__(made, "sealed", True)
    with pytest.raises(AssertionError):
        _ = made.hidden_tests
    return made


def test_no_reviewer_looks_at_hidden_tests(tmp_path):
    model = ScriptedModel(lambda request: verdict(request, lambda patch: 1))
    LearnedReviewer(dict.fromkeys(FEATURES, 1.0)).save(tmp_path / "model.json")
    names = ["execution", "llm", "multiplicity", f"learned:{tmp_path / 'model.json'}", "random"]
    case = case_of(Memory(), chain(*SCRIPTS), named_candidates("right", "abs"), sealed(tmp_path))
    review = make_reviewer(ReviewSection(reviewers=names), model).review(case)
    review_json(case, review, ranking(review.scores, case.candidates))


def test_matrix_is_made_in_a_real_workspace(tmp_path):
    for path, text in BASE.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    candidates = named_candidates("abs", "right", "breaks")
    with LocalEnvironment(tmp_path) as env:
        about = task(tmp_path, test_command=f"{ALONE} python -m pytest -q", visible_tests=list(VISIBLE))
        case = case_of(env, chain(*SCRIPTS[:2]), candidates, about)
        review = ExecutionReviewer(timeout=20).review(case)
    assert review.evidence["matrix"] == [[0, 1, 1], [0, 1, 0]]
    assert list(review.evidence["tests"]) == ["tests.test_calc::test_twice", "tests.test_calc::test_zero"]
    assert [entry["broken"] for entry in review.evidence["candidates"]] == [[], [], ["tests.test_calc::test_zero"]]
    assert ranking(review.scores, candidates)[0] == 1


# --- scripts ----------------------------------------------------------------------------------------------------------


def searched():
    """A real search: the model writes a script, mends the source and submits; alternatives do it better."""

    def policy(request):
        place = len(request.path)
        again = request.role == "candidate"
        if request.role == "critic":
            return json.dumps({"notes": [], "scores": [], "index": 0})
        if place == 0:
            return ToolCall("create", {"path": "repro.py", "content": SCRIPTS[int(again)]})
        if place == 1:
            body = BODIES["right" if again else ("abs", "three")[request.path[0]]]
            return ToolCall("edit", {"path": "calc.py", "old": "    return a - b\n", "new": body})
        return ToolCall("submit", {"summary": f"{request.path} {request.sample}"})

    tools = registry()
    sections = {"budget": BudgetSection(steps=60, depth=5), "candidates": CandidatesSection(k=1, retries=0)}
    env = Memory()
    prompts = make_prompts("add is wrong", list(tools.values()))
    engine = Engine(ScriptedModel(policy), env, tools, prompts, DarsConfig(**sections))
    engine.run()
    return engine, env


def test_search_harvest_and_matrix_find_the_patch_that_satisfies_the_scripts_of_all_branches(tmp_path):
    engine, env = searched()
    candidates = harvest(engine.state.tree, BASE)
    assert len(candidates) == 3
    case = Case(task(tmp_path), candidates, engine.state.tree, env, engine.state.tree.root.snapshot)
    review = ExecutionReviewer().review(case)
    best = candidates[ranking(review.scores, candidates)[0]]
    assert "+    return a + b" in best.patch
    assert best.multiplicity > 1
    assert [script["path"] for script in review.evidence["scripts"]] == ["repro.py"] * 2
    assert sorted(script["subtree"] for script in review.evidence["scripts"]) == engine.state.tree.root.children


def test_scripts_are_found_when_deleted_or_unsubmitted_and_as_they_stood_at_the_end():
    tree = Tree()
    for node in (
        Node(1, 0, tool="create", args={"path": "repro.py", "content": "a = 1\n"}),
        Node(2, 1, 0, tool="append", args={"content": "b = 2\n"}, flags=[]),
        Node(3, 1, 1, tool="append", args={"path": "repro.py", "content": "c = 3\n"}),
        Node(4, 2, tool="edit", args={"path": "calc.py", "old": "x", "new": "y"}),
        Node(5, 4, tool="edit", args={"path": "repro.py", "old": "nowhere", "new": "y"}, flags=["failed"]),
    ):
        tree.add(node)
    tree.nodes[1].state = {"open": "repro.py"}
    found = scripts(tree, MemoryEnvironment(BASE), set(BASE))
    assert {(s.content, s.node, s.subtree) for s in found} == {(b"a = 1\nb = 2\n", 5, 2), (b"a = 1\nc = 3\n", 3, 3)}
    assert {s.command for s in found} == {"python repro.py"}


def test_files_of_the_base_of_candidates_and_of_no_language_are_no_scripts():
    env = MemoryEnvironment(BASE)
    for path in ("calc.py", "helper.py", "log.txt", "repro.sh", "unused.sh", "test_it.py", "run_test.py"):
        env.write_file(path, b"if __name__ == '__main__': ...\n" if path == "run_test.py" else path.encode())
    tree = Tree()
    tree.add(Node(1, 0, tool="bash", args={"command": "X=1 bash ./repro.sh"}))
    tree.add(Node(2, 1, tool="bash", args={"command": "cat unused.sh log.txt; bash unused.sh | head"}))
    tree.add(Node(3, 2, tool="submit", exit="submit", patch=env.diff()))
    found = scripts(tree, env, set(BASE), patched={"helper.py"})
    assert {s.path: s.command for s in found} == {
        "repro.sh": "X=1 bash ./repro.sh", "run_test.py": "python run_test.py",
        "test_it.py": "python -m pytest -q test_it.py",
    }  # fmt: skip


def test_equal_scripts_count_once_and_belong_to_what_their_paths_share():
    tree = chain(SCRIPTS[0], SCRIPTS[0], SCRIPTS[1])
    found = scripts(tree, MemoryEnvironment(BASE), set(BASE))
    assert [(s.content.decode(), s.subtree) for s in found] == [(SCRIPTS[0], 0), (SCRIPTS[1], 5)]


# --- synthetic cases --------------------------------------------------------------------------------------------------


def test_oracle_is_at_least_as_good_as_any_and_scripts_are_better_than_chance(tmp_path):
    chance = random.Random(3)
    won = {"oracle": 0, "execution": 0, "random": 0, "any": 0}
    about = task(tmp_path)
    expected = 0.0
    for number in range(400):
        n, t = chance.randint(2, 6), chance.randint(1, 5)
        truth = [chance.random() < 0.4 for _ in range(n)]
        matrix = [[int(chance.random() < (0.9 if good else 0.4)) for good in truth] for _ in range(t)]
        candidates = [Candidate(i + 1, body_patch(f"    return {number} + {i}\n"), "") for i in range(n)]
        case = Case(replace_id(about, number), candidates, Tree(), MemoryEnvironment({}), "")
        picks = {
            "oracle": OracleReviewer(lambda _, c, truth=truth: truth[c.node_id - 1]).review(case).scores,
            "execution": matrix_scores(matrix, [float(any(row)) for row in matrix], [0] * n),
            "random": RandomReviewer(seed=1).review(case).scores,
        }
        best = {name: truth[ranking(scores, candidates)[0]] for name, scores in picks.items()}
        assert all(best["oracle"] >= good for good in best.values())
        for name, good in best.items():
            won[name] += good
        won["any"] += any(truth)
        expected += sum(truth) / n
    assert won["oracle"] == won["any"]
    assert won["execution"] > won["random"] + 50
    assert abs(won["random"] - expected) < 4 * math.sqrt(400) / 2  # four standard deviations


def replace_id(about, number):
    return replace(about, id=f"case-{number}")


def test_random_scores_belong_to_patches_and_change_with_the_seed(tmp_path):
    candidates = named_candidates("right", "abs", "three")
    scores = [
        RandomReviewer(seed).review(Case(task(tmp_path), order, Tree(), Memory(), "")).scores
        for seed, order in ((0, candidates), (0, candidates[::-1]), (1, candidates))
    ]
    assert scores[0] == scores[1][::-1] != scores[2]
    assert all(0 <= score < 1 for score in scores[0])


def test_without_candidates_every_reviewer_abstains(tmp_path):
    model = ScriptedModel(lambda request: pytest.fail("nothing is to be asked"))
    case = case_of(Memory(), chain(*SCRIPTS), [], task(tmp_path))
    coefficients = dict.fromkeys(FEATURES, 1.0)
    reviewers = [
        ExecutionReviewer(), LLMReviewer(model), LLMReviewer(model, "pairwise"), LearnedReviewer(coefficients),
        MultiplicityReviewer(), RandomReviewer(), OracleReviewer(lambda *_: True),
    ]  # fmt: skip
    for reviewer in [*reviewers, EnsembleReviewer(reviewers)]:
        review = reviewer.review(case)
        told = review_json(case, review, ranking(review.scores, case.candidates))
        assert (review.scores, told["abstained"], told["best"], told["ranking"]) == ((), True, None, [])


# --- a model ----------------------------------------------------------------------------------------------------------


def shown(request):
    """Patches of a request in their order."""
    body = request.messages[0]["content"][0]["text"]
    return re.findall(r'<patch number="\d+"[^>]*>\n(.*?)\n</patch>', body, re.DOTALL)


def verdict(request, quality, best=None):
    """An answer that scores the patches by a function and names the best of it, or the one at a place."""
    patches = shown(request)
    scores = [quality(patch) for patch in patches]
    entries = [{"number": i + 1, "analysis": "…", "bug": s, "regression": 1} for i, s in enumerate(scores)]
    best = scores.index(max(scores)) if best is None else best
    return json.dumps({"patches": entries, "best": best + 1})


def truthful(patch):
    return 2 if "+    return a + b\n" in patch + "\n" else 1 if "abs" in patch else 0


def llm_case(tmp_path, names, **settings):
    return Case(task(tmp_path), named_candidates(*names), Tree(), Memory(), "", **settings)


@pytest.mark.parametrize("mode", ["single", "pairwise"])
@pytest.mark.parametrize("likes_first", [False, True])
def test_scores_do_not_depend_on_the_order_of_the_candidates(tmp_path, mode, likes_first):
    model = ScriptedModel(lambda request: verdict(request, truthful, 0 if likes_first else None))
    case = llm_case(tmp_path, ["abs", "right", "three", "breaks"])
    outcomes = set()
    for order in permutations(case.candidates):
        review = LLMReviewer(model, mode, n_orders=2, seed=5).review(replace(case, candidates=order))
        outcomes.add(tuple(sorted(zip((c.node_id for c in order), review.scores, strict=True))))
        best = order[ranking(review.scores, order)[0]]
        assert likes_first or best.node_id == 2
    assert len(outcomes) == 1


def test_liking_for_a_place_cancels_out(tmp_path):
    model = ScriptedModel(lambda request: verdict(request, lambda patch: 1, best=0))
    review = LLMReviewer(model, n_orders=3).review(llm_case(tmp_path, ["abs", "right"]))
    assert review.scores == (0.5, 0.5)
    names = ["abs", "right", "three", "breaks"]
    review = LLMReviewer(model, n_orders=len(names)).review(llm_case(tmp_path, names))
    assert review.scores == pytest.approx([0.5] * 4)
    knockout = LLMReviewer(model, "pairwise", n_orders=1).review(llm_case(tmp_path, names))
    assert ranking(knockout.scores, named_candidates(*names))[0] == ranking([0] * 4, named_candidates(*names))[0]


@given(st.integers(1, 7), st.integers(1, 16), st.integers(0, 99))
def test_orders_put_everything_everywhere_equally_often(n, n_orders, seed):
    orders = presentation_orders(n, n_orders, seed)
    assert min(n, n_orders) <= len(orders) == len(set(orders)) <= n_orders
    assert all(sorted(order) == list(range(n)) for order in orders)
    assert orders == presentation_orders(n, n_orders, seed)
    for i in range(n):
        at = [order.index(i) for order in orders]
        if n_orders % n == 0:
            assert {at.count(place) for place in range(n)} == {len(orders) // n}


@given(st.lists(st.integers(0, 4), min_size=1, max_size=7))
def test_borda_points_count_who_is_beaten(values):
    n = len(values)
    pairs = [(v > w) + (v == w) / 2 for i, v in enumerate(values) for j, w in enumerate(values) if i != j]
    wanted = [sum(pairs[i * (n - 1) : (i + 1) * (n - 1)]) / (n - 1) for i in range(n)] if n > 1 else [1.0]
    assert borda(values) == pytest.approx(wanted)
    assert sum(borda(values)) == pytest.approx(n / 2 if n > 1 else 1.0)


@settings(deadline=None, max_examples=25)
@given(st.permutations(range(5)), st.integers(0, 9))
def test_knockout_is_won_by_who_wins_every_pair_and_asks_no_pair_twice(strength, seed):
    bodies = [f"    return {i}\n" for i in range(5)]
    candidates = [Candidate(i + 1, body_patch(body), "") for i, body in enumerate(bodies)]
    asked = []

    def policy(request):
        patches = shown(request)
        who = [next(i for i, body in enumerate(bodies) if "+" + body.rstrip() in patch) for patch in patches]
        asked.append((request.sample, tuple(who)))
        entries = [{"number": i, "analysis": "", "bug": 1, "regression": 1} for i in (1, 2)]
        return json.dumps({"patches": entries, "best": 1 if strength[who[0]] > strength[who[1]] else 2})

    case = Case(Task(None, "x", image="i"), candidates, Tree(), MemoryEnvironment({}), "")
    review = LLMReviewer(ScriptedModel(policy), "pairwise", n_orders=3, seed=seed).review(case)
    assert max(range(5), key=lambda i: review.scores[i]) == strength.index(4)
    assert review.scores[strength.index(4)] == 1.0
    assert len(set(asked)) == len(asked) == len({sample for sample, _ in asked}) <= 20
    assert {pair[::-1] for _, pair in asked} == {pair for _, pair in asked}  # always in both orders


@pytest.mark.parametrize("reply", ["no JSON", '{"patches": [], "best": 1}', ToolCall("submit")])
def test_unreadable_answers_are_asked_again_once_and_then_count_as_neutral(tmp_path, reply):
    asked, spent = [], []

    def policy(request):
        asked.append(request)
        return reply

    case = llm_case(tmp_path, ["abs", "right"], spent=spent.append)
    review = LLMReviewer(ScriptedModel(policy), n_orders=2).review(case)
    assert review.scores == (0.5, 0.5)
    assert len(asked) == len(spent) == 4
    assert len({request.sample for request in asked}) == 4
    assert {request.role for request in asked} == {"review"}
    assert review.evidence["fallbacks"] == 2
    assert review.evidence["candidates"][0] == {"node": 1, "answers": 0, "bug": None, "regression": None}

    def mended(request):
        return reply if request.sample % 2 == 0 else verdict(request, truthful)

    review = LLMReviewer(ScriptedModel(mended), n_orders=2).review(case)
    assert review.scores == (0.0, 1.0)
    assert review.evidence["fallbacks"] == 0


def test_no_question_is_asked_once_the_budget_has_ended(tmp_path):
    spent = []
    model = ScriptedModel(lambda request: verdict(request, truthful))
    case = llm_case(tmp_path, ["abs", "right", "three", "breaks"], spent=spent.append, stop=lambda: len(spent) >= 4)
    review = LLMReviewer(model, "pairwise", n_orders=1).review(case)
    assert len(spent) == 4  # the first round, two pairs in both orders
    assert review.evidence["fallbacks"] == 2
    assert "stopped" in {entry["fallback"] for entry in review.evidence["asked"]}


def test_rubric_scores_of_every_patch_are_in_the_evidence(tmp_path):
    model = ScriptedModel(lambda request: verdict(request, truthful))
    review = LLMReviewer(model, n_orders=3).review(llm_case(tmp_path, ["abs", "right", "three"]))
    told = {
        entry["node"]: (entry["bug"], entry["regression"], entry["answers"]) for entry in review.evidence["candidates"]
    }
    assert told == {1: (1.0, 1.0, 3), 2: (2.0, 1.0, 3), 3: (0.0, 1.0, 3)}
    assert review.evidence["asked"][0]["best"] == 2


WRONG = [
    {"best": 3}, {"best": 0}, {"best": True}, {"best": None}, {"patches": [1]},
    {"patches": [{"number": 1, "analysis": "", "bug": 3, "regression": 0}]},
    {"patches": [{"number": 1, "analysis": "", "bug": 1, "regression": 0}] * 2},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_answers_that_are_not_whole_are_not_read(wrong):
    entries = [{"number": i, "analysis": "a", "bug": 2, "regression": 0} for i in (2, 1)]
    good = {"patches": entries, "best": 2}
    assert read_verdict(f"So: {json.dumps(good)}.", 2).best == 1
    assert read_verdict(json.dumps({**good, **wrong}), 2) is None


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=6), st.integers(0, 2000), st.integers(500, 4000))
def test_prompts_stay_below_their_limit_and_what_fits_is_whole(lengths, issue, limit):
    patches = ["x" * length for length in lengths]
    cut_issue, cut = fitted("i" * issue, patches, limit)
    note = 60  # of what was left out
    assert len(cut_issue) + sum(map(len, cut)) <= limit + note * (1 + len(cut))
    if issue <= 0.3 * limit and issue + sum(lengths) <= limit:
        assert (cut_issue, cut) == ("i" * issue, patches)
    assert all("elided" in new for old, new in zip(patches, cut, strict=True) if new != old)


def test_long_patches_are_cut_with_a_note_in_the_prompt(tmp_path):
    prompts = []

    def policy(request):
        prompts.append(request.messages[0]["content"][0]["text"])
        return verdict(request, truthful)

    case = llm_case(tmp_path, ["abs", "right"])
    long = replace(case.candidates[0], patch=body_patch("    return abs(a - b)\n" + "    # more\n" * 9000))
    LLMReviewer(ScriptedModel(policy), n_orders=1, prompt_chars=5000).review(
        replace(case, candidates=[long, case.candidates[1]])
    )
    assert len(prompts[0]) < 7000
    assert "characters elided" in prompts[0]
    assert case.candidates[1].patch.strip() in prompts[0]


# --- message batches --------------------------------------------------------------------------------------------------


def answering(body):
    request = ModelRequest("review", (), messages=body["messages"])
    return verdict(request, truthful)


@pytest.mark.parametrize("mode", ["single", "pairwise"])
def test_batches_give_the_same_review_at_half_the_price_and_are_found_again(tmp_path, mode):
    names = ["abs", "right", "three"]
    with FakeMessagesServer(answering, clock=lambda: 0.0) as server:
        server.polls = 0
        model = AnthropicModel("claude-opus-5-5", api_key="none", base_url=server.url)
        spent = {"live": [], "batch": [], "again": []}
        reviews, sent = {}, {}
        for how, responses in spent.items():
            before = len(server.requests)
            folder = None if how == "live" else tmp_path / "batches"
            case = llm_case(tmp_path, names, spent=responses.append)
            reviews[how] = LLMReviewer(model, mode, batch=folder).review(case)
            sent[how] = [seen.path for seen in server.requests[before:]]
    assert reviews["live"] == reviews["batch"] == reviews["again"]
    cost = {how: sum(response.cost_usd for response in responses) for how, responses in spent.items()}
    assert cost["batch"] == cost["again"] == pytest.approx(cost["live"] / 2)
    assert cost["live"] == pytest.approx(sum(price(r.usage, "claude-opus-5-5") for r in spent["live"]))
    assert set(sent["live"]) == {"/v1/messages"}
    assert "/v1/messages/batches" in sent["batch"]
    assert "/v1/messages" not in sent["batch"]
    assert "/v1/messages/batches" not in sent["again"]  # nothing new was submitted


def test_unreadable_answers_of_a_batch_are_asked_again_in_another(tmp_path):
    answers = []

    def responder(body):
        answers.append("no JSON" if len(answers) < 2 else answering(body))
        return answers[-1]

    with FakeMessagesServer(responder) as server:
        server.polls = 0
        model = AnthropicModel(api_key="none", base_url=server.url)
        for _ in range(2):  # the second time from what is stored
            review = LLMReviewer(model, n_orders=3, batch=tmp_path).review(llm_case(tmp_path, ["abs", "right"]))
            assert review.scores == (0.0, 1.0)
            assert review.evidence["fallbacks"] == 0
    assert len(answers) == 2 + 2  # of two patches there are two orders, each asked about once
    assert len(list(tmp_path.glob("batch-*.json"))) == 2


def question(text, **settings):
    return ModelRequest("review", (), messages=[{"role": "user", "content": text}], max_tokens=50, **settings)


def test_batch_is_waited_for_and_its_results_come_to_their_requests(tmp_path):
    waits = []
    with FakeMessagesServer(lambda body: body["messages"][0]["content"][0]["text"].upper()) as server:
        server.polls = 3
        model = AnthropicModel(api_key="none", base_url=server.url)
        requests = [question(f"text {i}") for i in range(5)]
        answers = model.complete_batch(requests, tmp_path, poll_s=7, wait=waits.append)
        assert [answer.text for answer in answers] == [f"TEXT {i}" for i in range(5)]
        assert waits == [7] * 3
        assert model.complete_batch([], tmp_path) == []
        assert model.complete_batch(requests[:2], tmp_path, wait=waits.append)[1].text == "TEXT 1"
    assert len(list(tmp_path.glob("batch-*.json"))) == 2


def test_batch_that_was_submitted_before_a_crash_is_taken_up(tmp_path):
    class Crash(Exception):
        pass

    def crash(seconds):
        raise Crash

    with FakeMessagesServer(lambda body: "yes") as server:
        model = AnthropicModel(api_key="none", base_url=server.url)
        with pytest.raises(Crash):
            model.complete_batch([question("a")], tmp_path, wait=crash)
        again = AnthropicModel(api_key="none", base_url=server.url)
        assert again.complete_batch([question("a")], tmp_path, wait=lambda seconds: None)[0].text == "yes"
        assert sum(seen.path == "/v1/messages/batches" for seen in server.requests) == 1
        (file,) = tmp_path.glob("batch-*.json")
        file.write_text("{")
        with pytest.raises(ModelError, match="delete it"):
            again.complete_batch([question("a")], tmp_path)


def test_request_that_fails_in_a_batch_fails_alone(tmp_path):
    with FakeMessagesServer(lambda body: "yes") as server:
        server.polls = 0
        model = AnthropicModel(api_key="none", base_url=server.url)
        bad = ModelRequest("review", (), messages=[{"role": "assistant", "content": "x"}], max_tokens=5)
        good, failed = model.complete_batch([question("a"), bad], tmp_path)
    assert (good.text, good.stop) == ("yes", "end_turn")
    assert (failed.text, failed.stop, failed.cost_usd) == ("", "error", 0.0)
    assert "user role" in failed.detail


def test_batches_are_refused_where_the_model_has_none(tmp_path):
    with pytest.raises(TaskError, match="no message batches"):
        LLMReviewer(ScriptedModel(lambda request: ""), batch=tmp_path)


# --- learning ---------------------------------------------------------------------------------------------------------


def labelled_cases(count, seed):
    """Cases in which right patches pass most scripts and wrong ones few, of any size and frequency."""
    chance = random.Random(seed)
    cases = []
    for number in range(count):
        n = chance.randint(2, 5)
        truth = [chance.random() < 0.5 for _ in range(n)]
        candidates = tuple(
            Candidate(
                i + 1, body_patch("    # more\n" * chance.randint(0, 9) + f"    return {i} + {number}\n"), "",
                chance.randint(1, 3), chance.random() < 0.3, dropped=(("repro.py", "new"),) * chance.randint(0, 1),
            )
            for i in range(n)
        )  # fmt: skip
        matrix = [[int(chance.random() < (0.9 if good else 0.3)) for good in truth] for _ in range(3)]
        evidence = {
            "scripts": [{"kept": True, "weight": 1 / 3}] * 3, "matrix": matrix, "tests": {"a": [1] * n},
            "candidates": [{"node": i + 1, "class": k, "broken": []} for i, k in enumerate(class_sizes(matrix, n))],
        }  # fmt: skip
        depths = tuple(chance.randint(3, 40) for _ in range(n))
        cases.append(Labelled(f"case-{number}", "add is wrong", candidates, depths, tuple(truth), evidence))
    return cases


def accuracy(cases, score):
    mixed = [case for case in cases if case.mixed]
    return sum(c.resolved[ranking(score(c), c.candidates)[0]] for c in mixed) / len(mixed)


def test_fitted_reviewer_is_better_than_the_untrained_on_other_cases_and_a_file_keeps_it(tmp_path):
    pytest.importorskip("sklearn")
    trained, held_out = labelled_cases(150, 0), labelled_cases(150, 1)
    reviewer = fit(trained)
    untrained = LearnedReviewer(dict.fromkeys(FEATURES, 0.0))
    assert accuracy(held_out, reviewer.scores) > accuracy(held_out, untrained.scores) + 0.15
    assert reviewer.coefficients["scripts"] > 0
    reviewer.save(tmp_path / "model.json")
    again = LearnedReviewer.load(tmp_path / "model.json")
    assert [again.scores(case) for case in held_out] == [reviewer.scores(case) for case in held_out]
    assert set(json.loads((tmp_path / "model.json").read_text())) == {"format", "coefficients"}


def test_fit_equals_the_logistic_regression_of_scikit_learn_on_scaled_differences():
    linear_model = pytest.importorskip("sklearn.linear_model")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    np = pytest.importorskip("numpy")
    cases = [case for case in labelled_cases(60, 2) if case.mixed]
    blocks = [features(c.issue, c.candidates, c.depths, c.execution) for c in cases]
    x = np.concatenate([block - block.mean(0) for block in blocks])
    y = [good for case in cases for good in case.resolved]
    each = np.concatenate([[1 / len(block)] * len(block) for block in blocks])
    scaler = preprocessing.StandardScaler().fit(x)
    model = linear_model.LogisticRegression(max_iter=1000).fit(scaler.transform(x), y, each * len(y) / each.sum())
    reviewer = fit(labelled_cases(60, 2))
    for case, block in zip(cases, blocks, strict=True):
        theirs = model.decision_function(scaler.transform(block - block.mean(0)))
        ours = np.array(reviewer.scores(case))
        assert np.allclose(ours - ours[0], theirs - theirs[0], atol=1e-4)  # up to what is the same in a case


def test_learned_scores_in_a_search_are_those_of_its_labelled_case(tmp_path):
    engine, env = searched()
    candidates = harvest(engine.state.tree, BASE)
    case = Case(task(tmp_path), candidates, engine.state.tree, env, engine.state.tree.root.snapshot)
    chance = random.Random(0)
    reviewer = LearnedReviewer({name: chance.uniform(-1, 1) for name in FEATURES})
    review = reviewer.review(case)
    known = label(case, [False, True, False], ExecutionReviewer().review(case).evidence)
    write_labelled(tmp_path / "cases.jsonl", [known])
    (read,) = read_labelled(tmp_path / "cases.jsonl")
    assert read == replace(known, execution=json.loads(json.dumps(known.execution)))
    assert reviewer.scores(read) == pytest.approx(list(review.scores))
    for told, score in zip(review.evidence["candidates"], review.scores, strict=True):
        assert sum(told["parts"].values()) == pytest.approx(score)
    with pytest.raises(TaskError, match="2 labels for 3"):
        label(case, [True, False])


def test_features_are_what_their_table_says():
    patch = body_patch("    return add(a, b)\n    # twice\n")
    candidates = [Candidate(1, patch, "", 3, dropped=(("r.py", "new"),)), Candidate(2, patch, "", 1, True)]
    told = {
        "scripts": [{"kept": True, "weight": 0.5}, {"kept": False, "weight": 0.0}, {"kept": True, "weight": 1.0}],
        "matrix": [[1, 0], [0, 1]],
        "candidates": [{"class": 1, "broken": []}, {"class": 1, "broken": ["a", "b"]}],
    }
    rows = features("calc: twice is wrong", candidates, [4, 9], told)
    values = [dict(zip(FEATURES, row, strict=True)) for row in rows]
    # changed lines use return, add, twice, and the issue names one of the three
    assert values[0] == pytest.approx(
        {
            "lines_added": math.log(3), "lines_removed": math.log(2), "files": 0, "new_files": 0, "multiplicity": 0.75,
            "submitted": 1, "depth": math.log(5), "issue_words": 1 / 3, "issue_files": 1, "left_scratch": 1,
            "scripts": 0.5 / 1.5, "class": 0.5, "broken": 0, "breaks": 0,
        }
    )  # fmt: skip
    assert (values[1]["scripts"], values[1]["broken"]) == pytest.approx((1 / 1.5, math.log(3)))
    assert (values[1]["submitted"], values[1]["left_scratch"], values[1]["breaks"]) == (0, 0, 1)


def test_line_of_a_case_has_the_scores_of_its_review(tmp_path):
    engine, env = searched()
    candidates = harvest(engine.state.tree, BASE)
    case = Case(task(tmp_path), candidates, engine.state.tree, env, engine.state.tree.root.snapshot)
    model = ScriptedModel(lambda request: verdict(request, truthful))
    labels = [truthful(candidate.patch) == 2 for candidate in candidates]
    known = label(case, labels, ExecutionReviewer().review(case).evidence)
    calls = []
    for reviewer in (ExecutionReviewer(), MultiplicityReviewer(), RandomReviewer(3), LLMReviewer(model, "pairwise")):
        assert isinstance(reviewer, Scorer)
        assert list(reviewer.scores(known)) == list(reviewer.review(case).scores)
        flipped = replace(known, resolved=tuple(not good for good in known.resolved))
        assert reviewer.scores(flipped) == reviewer.scores(known)
    LLMReviewer(model).scores(known, calls.append)
    assert len(calls) == 3
    with pytest.raises(TaskError, match=r"calc-1 was labelled without execution"):
        ExecutionReviewer().scores(replace(known, execution=None))


def test_reviewers_are_measured_on_labelled_cases_beside_chance(tmp_path, capsys, monkeypatch):
    def told(*words):
        monkeypatch.setattr("sys.argv", ["dars", "reviewer", "eval", str(tmp_path / "cases.jsonl"), *words])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return ended.value.code, printed.out.splitlines(), printed.err

    cases = labelled_cases(30, 7)
    mixed = [case for case in cases if case.mixed]
    write_labelled(tmp_path / "cases.jsonl", cases)
    LearnedReviewer({name: float(name == "scripts") for name in FEATURES}).save(tmp_path / "m.json")
    learned = accuracy(cases, LearnedReviewer.load(tmp_path / "m.json").scores)
    chance = sum(sum(case.resolved) / len(case.resolved) for case in mixed) / len(mixed)
    code, lines, _ = told("--reviewer", "multiplicity", "--reviewer", f"learned:{tmp_path / 'm.json'}")
    assert code == 0
    assert lines == [
        f"{len(mixed)} mixed cases", f"chance         {chance:.3f}",
        f"multiplicity   {accuracy(cases, lambda c: [0.0] * len(c.candidates)):.3f}", f"learned        {learned:.3f}",
    ]  # fmt: skip

    right = {
        c.patch.strip("\n") for case in mixed for c, good in zip(case.candidates, case.resolved, strict=True) if good
    }

    def asked(body):
        request = ModelRequest("review", (), messages=body["messages"])
        return verdict(request, lambda patch: 2 * (patch.strip("\n") in right))

    with FakeMessagesServer(asked) as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "key")
        code, lines, _ = told("--model", "claude-sonnet-5-5", "--orders", "1")
        assert len(server.requests) == len(mixed)
    assert code == 0
    assert lines[3] == "llm            1.000"
    assert re.fullmatch(rf"{len(mixed)} calls of claude-sonnet-5-5; cost \d+\.\d+ US\$", lines[4])
    for words, said in (
        (("--reviewer", "llm"), "needs a model"), (("--reviewer", "best"), "no reviewer 'best'"),
        (("--mode", "x"), "single"), (("--model", "gpt"), "gpt"),
    ):  # fmt: skip
        code, lines, error = told(*words)
        assert (code, lines, error.count("\n")) == (2, [], 1)
        assert said in error


BAD_LINES = {
    "{": "line 2",
    "[]": "it has to be an object",
    '{"id": "a", "issue": "b"}': "candidates is missing",
    '{"id": "a", "issue": "b", "candidates": [{"node_id": 1, "patch": "x"}]}': "resolved is missing",
    '{"id": "a", "issue": "b", "candidates": [{"node_id": 1, "patch": "x", "resolved": true}]}': "unified diff",
    '{"id": "a", "issue": "b", "candidates": [{"node_id": 1, "patch": "x", "resolved": 1}]}': "true or false",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_damaged_lines_are_named(tmp_path, line):
    good = json.dumps(labelled_cases(1, 0)[0].record())
    (tmp_path / "cases.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(TaskError, match=rf"line 2.*{BAD_LINES[line]}|{BAD_LINES[line]}"):
        read_labelled(tmp_path / "cases.jsonl")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot read"), ("{", "no model"), ('{"format": "x", "coefficients": {}}', "format x"),
        ('{"format": "dars-reviewer/1", "coefficients": {"a": 1}}', "other features"),
        ('{"format": "dars-reviewer/1", "coefficients": {"files": NaN}}', "no numbers"),
    ],
)  # fmt: skip
def test_models_that_cannot_be_used_are_refused(tmp_path, text, said):
    if text is not None:
        (tmp_path / "model.json").write_text(text)
    with pytest.raises(TaskError, match=said):
        LearnedReviewer.load(tmp_path / "model.json")


def test_nothing_is_learnt_from_cases_without_a_choice():
    pytest.importorskip("sklearn")
    cases = [replace(case, resolved=(True,) * len(case.resolved)) for case in labelled_cases(5, 0)]
    with pytest.raises(TaskError, match="nothing to learn"):
        fit(cases)


# --- together ---------------------------------------------------------------------------------------------------------


class Fixed:
    """Always the same scores."""

    def __init__(self, *scores):
        self.scores, self.name = scores, "fixed"

    def review(self, case):
        return Review(self.scores)


def test_ensemble_is_the_weighted_mean_of_ranks_whatever_the_scales(tmp_path):
    case = llm_case(tmp_path, ["right", "abs", "three"])
    first, second = Fixed(1e9, 5.0, -1e9), Fixed(0.1, 0.3, 0.2)
    review = EnsembleReviewer([first, second], [3, 1]).review(case)
    assert review.scores == pytest.approx([(3 * 1 + 0) / 4, (3 * 0.5 + 1) / 4, (0 + 0.5) / 4])
    assert [part["weight"] for part in review.evidence["parts"]] == [3, 1]
    assert scored(case, review, "ensemble")[0].scores == {"ensemble": review.scores[0], "fixed": 0.1}


@pytest.mark.parametrize("weights", [[1], [1, -1], [0, 0]])
def test_weights_that_do_not_fit_are_refused(weights):
    with pytest.raises(TaskError, match="weights"):
        EnsembleReviewer([Fixed(1), Fixed(1)], weights)


def test_reviewers_are_made_by_name(tmp_path):
    model = ScriptedModel(lambda request: "")
    LearnedReviewer(dict.fromkeys(FEATURES, 0.0)).save(tmp_path / "m.json")
    assert isinstance(make_reviewer(ReviewSection()), ExecutionReviewer)
    assert isinstance(make_reviewer(ReviewSection(reviewers=["llm"], mode="pairwise"), model), LLMReviewer)
    several = make_reviewer(ReviewSection(reviewers=["execution", f"learned:{tmp_path / 'm.json'}"], weights=[1, 2]))
    execution, learned = several.reviewers
    assert learned.execution is execution
    for names, said in ((["llm"], "needs a model"), (["exec"], "no reviewer 'exec'"), ([], "at least one")):
        with pytest.raises(TaskError, match=said):
            make_reviewer(ReviewSection(reviewers=names))


def test_review_json_holds_the_ranking_and_all_evidence(tmp_path):
    candidates = named_candidates("abs", "right", "three")
    candidates[2] = replace(candidates[2], multiplicity=4, dropped=(("repro.py", "new"),))
    case = replace(llm_case(tmp_path, ["abs"]), candidates=candidates)
    review = MultiplicityReviewer().review(case)
    told = review_json(case, review, ranking(review.scores, candidates))
    assert (told["best"], told["abstained"], told["task"]) == (3, False, "calc-1")
    assert [entry["node_id"] for entry in told["ranking"]] == [3, 1, 2]
    assert told["ranking"][0] == {
        "place": 1, "node_id": 3, "score": 4.0, "multiplicity": 4, "auto_submitted": False, "changed_lines": 2,
        "files": ["calc.py"], "dropped": [["repro.py", "new"]],
    }  # fmt: skip


# --- training data ----------------------------------------------------------------------------------------------------


def test_rows_teach_the_answers_that_the_reviewer_reads(tmp_path):
    cases = labelled_cases(12, 4)
    rows = export_sft(cases, permutations=2)
    teachable = [case for case in cases if any(case.resolved)]
    assert {row["id"] for row in rows} == {case.id for case in teachable}
    known = {case.id: case for case in cases}
    for row in rows:
        question, answer = row["messages"]
        assert (question["role"], answer["role"]) == ("user", "assistant")
        case = known[row["id"]]
        read = read_verdict(answer["content"], len(case.candidates))
        truth = [case.resolved[node - 1] for node in row["order"]]
        assert truth[read.best]
        assert [opinion.bug == 2 for opinion in read.opinions] == truth
        request = ModelRequest("review", (), messages=[{"role": "user", "content": [{"text": question["content"]}]}])
        assert shown(request) == [case.candidates[node - 1].patch.strip("\n") for node in row["order"]] or shown(
            request
        ) == [case.candidates[node - 1].patch for node in row["order"]]
    assert all(len({tuple(r["order"]) for r in rows if r["id"] == case.id}) == 2 for case in teachable)


@pytest.mark.parametrize("limit", [14_000, 3_000])
def test_rows_stay_below_the_limit_of_tokens(limit):
    case = next(case for case in labelled_cases(9, 5) if case.mixed)
    long = body_patch("    # a long line of words that say nothing\n" * 4000)
    case = replace(case, candidates=tuple(replace(c, patch=long) for c in case.candidates), issue="why? " * 9000)
    rows = export_sft([case], max_tokens=limit)
    assert rows
    for row in rows:
        assert limit / 2 < sum(estimated_tokens(message["content"]) for message in row["messages"]) <= limit
        assert "characters elided" in row["messages"][0]["content"]
    assert export_sft([case], max_tokens=300) == []


def test_critiques_of_a_model_count_only_where_they_fit_the_outcome():
    cases = [case for case in labelled_cases(10, 6) if case.mixed]

    def policy(request):
        told = re.findall(r'resolves_the_issue="(yes|no)"', request.messages[0]["content"][0]["text"])
        scores = [2 if word == "yes" else 0 for word in told]
        if request.sample == 0:
            scores[0] = 2 - scores[0]
        entries = [{"number": i + 1, "analysis": f"patch {i}", "bug": s, "regression": 2} for i, s in enumerate(scores)]
        return json.dumps({"patches": entries, "best": 1})

    told = model_critiques(cases, ScriptedModel(policy))
    assert told[0] is None
    assert all(
        [opinion.bug == 2 for opinion in said] == list(c.resolved) for said, c in zip(told[1:], cases[1:], strict=True)
    )
    known = dict(zip((case.id for case in cases), told, strict=True))
    rows = export_sft(cases, critiques=lambda case: known[case.id], permutations=1)
    assert {row["id"] for row in rows} == {case.id for case in cases[1:]}
    assert "patch 0" in rows[0]["messages"][1]["content"]


@pytest.mark.parametrize(("size", "rate", "batch"), [("7B", 1e-5, 48), ("14b", 5e-6, 48), ("32B", 1e-6, 32)])
def test_training_settings_are_those_of_the_paper(size, rate, batch):
    told = yaml.safe_load(lora_config(size))
    assert (told["learning_rate"], told["gradient_accumulation_steps"]) == (rate, batch)
    assert (told["lora_r"], told["lora_alpha"], told["lora_dropout"]) == (8, 32, 0.1)
    assert (told["bf16"], told["lr_scheduler_type"], told["num_train_epochs"]) == (True, "cosine", 1)
    assert told["model_name_or_path"].endswith(size.upper())
    with pytest.raises(TaskError, match="7B, 14B, 32B"):
        lora_config("8B")
