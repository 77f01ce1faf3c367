"""Runs from a task to a patch: what they write, how they go on, how they branch off."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import dars
from dars import DarsConfig, Task
from dars.config import BudgetSection, CandidatesSection, ReviewSection
from dars.env.memory import MemoryEnvironment
from dars.errors import DiskFull, ModelError, TaskError, because
from dars.models import CassetteModel, OpenAIModel, ScriptedModel, ToolCall
from dars.runs import read_meta, restored
from dars.storage import EVENTS, EventLog

FILES = {"calc.py": "def add(a, b):\n    return a - b\n", "README": "calc\n"}
RIGHT = ToolCall("edit", {"path": "calc.py", "old": "a - b", "new": "a + b"})
WRONG = ToolCall("edit", {"path": "calc.py", "old": "a - b", "new": "a * b"})
REPRO = ToolCall("create", {"path": "repro.py", "content": "from calc import add\nassert add(2, 3) == 5\n"})
SETTINGS = DarsConfig(
    budget=BudgetSection(steps=60, depth=10), candidates=CandidatesSection(k=2, retries=0),
    review=ReviewSection(reviewers=["multiplicity"]),
)  # fmt: skip


def answer(request):
    """Reproduces, makes the wrong edit first and the right one as a replacement, submits."""
    if request.role == "critic":
        return json.dumps({"notes": [], "scores": [], "index": 0})
    if request.role == "candidate":
        number = request.sample
        calls = [replace(REPRO, input={**REPRO.input, "content": f"import calc\nassert {number}\n"}), RIGHT]
        return calls[len(request.path)] if len(request.path) < 2 else ToolCall("submit", {"summary": str(number)})
    return [REPRO, WRONG][len(request.path)] if len(request.path) < 2 else ToolCall("submit")


def task(tmp_path, **more):
    repo = tmp_path / "repo"
    if not repo.exists():
        repo.mkdir()
        for name, text in FILES.items():
            (repo / name).write_text(text)
    return Task(repo, "add(2, 3) gives -1", **more)


def memory():
    return MemoryEnvironment(FILES)


def shape(tree):
    """A tree without what depends on the clock."""
    records = [node.record() for node in tree.nodes.values()]
    return [{k: v for k, v in record.items() if k not in ("wall_s", "t_start", "snapshot")} for record in records]


def actions(tree):
    """What was done where, whatever the order."""
    return {tree.indices(node.id): (node.tool, node.args, node.exit) for node in tree.nodes.values()}


def test_run_writes_candidates_and_leaves_the_repository_alone(tmp_path):
    work, out = task(tmp_path), tmp_path / "out"
    result = dars.run(work, ScriptedModel(answer), SETTINGS, out=out)
    assert {name: (work.repo / name).read_text() for name in os.listdir(work.repo)} == FILES
    assert result.exit_reason == "done"
    patches = {candidate.patch for candidate in result.candidates}
    assert len(patches) == 2
    assert any("+    return a + b" in patch for patch in patches)
    assert not any("repro.py" in patch for patch in patches)
    assert ("repro.py", "new, and no kept change refers to it") in result.candidates[0].dropped
    assert sum(c.multiplicity for c in result.candidates) == len(result.tree.leaves())
    assert (out / "patch.diff").read_text() == result.best.patch
    written = {path.name: path.read_text() for path in (out / "candidates").iterdir()}
    assert written == {f"{c.node_id}.diff": c.patch for c in result.candidates}
    assert dars.load_tree(out).skeleton() == result.tree.skeleton()
    assert json.loads((out / "usage.json").read_text())["calls"] > len(result.tree) - 1
    assert "<html" in (out / "tree.html").read_text()
    subprocess.run(["git", "apply", "--check", str(out / "patch.diff")], cwd=work.repo, check=True)


def test_meta_tells_the_temperature_of_every_kind_of_turn(tmp_path):
    for strategy, act in (("dars", 0.0), ("restart", 0.8)):
        settings = SETTINGS.model_copy(update={"strategy": strategy, "restarts": 1})
        dars.run(task(tmp_path), ScriptedModel(answer), settings, memory(), tmp_path / strategy)
        told = read_meta(tmp_path / strategy)["sampling"]
        assert told == {"act": act, "candidate": 0.8, "critic": 0.0, "diversity_instruction": False}


def test_best_patch_repairs_when_scripts_of_all_branches_judge(tmp_path):
    settings = SETTINGS.model_copy(update={"review": ReviewSection(reviewers=["execution"])})
    work, out = task(tmp_path), tmp_path / "out"
    result = dars.run(work, ScriptedModel(answer), settings, out=out)
    assert "+    return a + b" in result.best.patch
    subprocess.run(["git", "apply", str(out / "patch.diff")], cwd=work.repo, check=True)
    assert (work.repo / "calc.py").read_text() == "def add(a, b):\n    return a + b\n"
    review = json.loads((out / "review.json").read_text())
    assert str(result.best.node_id) in json.dumps(review)


def test_resumed_at_any_event_a_run_ends_as_if_it_had_not_been_cut(tmp_path):
    work = task(tmp_path)
    whole = dars.run(work, ScriptedModel(answer), SETTINGS, memory(), tmp_path / "whole")
    lines = (tmp_path / "whole" / EVENTS).read_bytes().splitlines(keepends=True)
    assert len(lines) > 10
    for kept in range(len(lines)):
        cut = tmp_path / f"cut{kept}"
        shutil.copytree(tmp_path / "whole", cut)
        (cut / EVENTS).write_bytes(b"".join(lines[:kept]) + lines[kept][:7])
        again = dars.resume(cut, ScriptedModel(answer), env=memory())
        assert shape(again.tree) == shape(whole.tree)
        assert again.candidates == whole.candidates
        assert (again.usage, again.cost_usd) == (whole.usage, whole.cost_usd)


def test_killed_process_goes_on_in_another(tmp_path):
    """kill -9 in the middle of an action; the recording answers, and the tree is that of a run that was not killed."""
    work = task(tmp_path)
    tape = tmp_path / "tape.jsonl"
    whole = dars.run(work, CassetteModel(tape, ScriptedModel(answer), "record"), SETTINGS, out=tmp_path / "whole")
    out = tmp_path / "out"
    code = (
        "import dars, time\nfrom pathlib import Path\n"
        f"task = dars.Task(Path({str(work.repo)!r}), {work.issue!r})\n"
        f"config = dars.DarsConfig.model_validate_json({SETTINGS.model_dump_json()!r})\n"
        f"dars.run(task, 'cassette:{tape}', config, out={str(out)!r}, on_event=lambda event: time.sleep(.1))\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    until = time.monotonic() + 60
    while time.monotonic() < until and (not (out / EVENTS).exists() or (out / EVENTS).read_bytes().count(b"\n") < 4):
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert len(restored(out).tree) < len(whole.tree)
    again = dars.resume(out)  # the model's name stands in meta.json
    assert shape(again.tree) == shape(whole.tree)
    assert again.candidates == whole.candidates


def test_budget_that_ends_leaves_unsubmitted_work_and_more_of_it_goes_on(tmp_path):
    work, out = task(tmp_path), tmp_path / "out"
    short = SETTINGS.model_copy(update={"budget": BudgetSection(steps=60, depth=10, calls=2)})
    first = dars.run(work, ScriptedModel(answer), short, memory(), out)
    assert first.exit_reason == "calls"
    assert [(c.auto_submitted, "a * b" in c.patch) for c in first.candidates] == [(True, True)]
    more = dars.resume(out, ScriptedModel(answer), SETTINGS, memory())
    whole = dars.run(work, ScriptedModel(answer), SETTINGS, memory(), tmp_path / "whole")
    assert shape(more.tree) == shape(whole.tree)
    assert more.candidates == whole.candidates


def test_nothing_is_harvested_of_unsubmitted_work_when_not_asked(tmp_path):
    short = SETTINGS.model_copy(
        update={"budget": BudgetSection(steps=60, depth=10, calls=2), "harvest_unsubmitted": False}
    )
    result = dars.run(task(tmp_path), ScriptedModel(answer), short, memory())
    assert (result.candidates, result.best) == ([], None)


def test_interrupted_run_is_saved_and_goes_on(tmp_path):
    work, out, calls = task(tmp_path), tmp_path / "out", []
    stopped = dars.run(
        work, ScriptedModel(answer), SETTINGS, memory(), out, interrupted=lambda: len(calls) >= 3,
        on_event=calls.append,
    )  # fmt: skip
    assert stopped.exit_reason == "interrupted"
    again = dars.resume(out, ScriptedModel(answer), env=memory())
    whole = dars.run(work, ScriptedModel(answer), SETTINGS, memory())
    assert again.tree.skeleton() == whole.tree.skeleton()


@pytest.mark.parametrize("workers", [1, 3])
def test_run_whose_provider_refuses_keeps_what_was_found_and_goes_on(tmp_path, workers):
    work = task(tmp_path)
    whole = dars.run(work, ScriptedModel(answer), SETTINGS, memory(), tmp_path / "whole")
    calls = json.loads((tmp_path / "whole" / "usage.json").read_text())["calls"]
    best = 0
    for allowed in range(calls):
        asked = []

        def refusing(request, asked=asked, allowed=allowed):
            asked.append(request)
            if len(asked) > allowed:
                raise ModelError("400: no")
            return answer(request)

        out = tmp_path / f"out{allowed}"
        with pytest.raises(ModelError, match="400: no") as ended:
            dars.run(work, ScriptedModel(refusing), SETTINGS, memory(), out, workers=workers)
        assert len(asked) <= allowed + workers
        found = ended.value.result
        assert found.exit_reason == read_meta(out)["exit_reason"] == "model"
        assert len(dars.load_tree(out)) == len(found.tree)
        ends = {leaf.patch for leaf in found.tree.leaves() if "a - b" in leaf.patch}
        assert len(ends) >= len(found.candidates) >= bool(ends)
        assert (out / "patch.diff").exists() == bool(ends)
        best += bool(ends)
        again = dars.resume(out, ScriptedModel(answer), env=memory())
        assert {c.patch for c in again.candidates} == {c.patch for c in whole.candidates}
        assert actions(again.tree) == actions(whole.tree)
    assert calls > best > calls / 2


class Small(EventLog):
    """A log on a disk with room for so many more bytes."""

    room = 0

    def __init__(self, folder):
        super().__init__(folder)
        self._file, self.file = self, self._file

    def write(self, data):
        if not Small.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self.file.write(data[: Small.room])
        Small.room -= written
        return written

    def fileno(self):
        return self.file.fileno()

    def close(self):
        self.file.close()


@pytest.mark.parametrize("workers", [1, 3])
def test_full_disk_ends_a_run_that_goes_on_where_there_is_room_again(tmp_path, monkeypatch, workers):
    work = task(tmp_path)
    whole = dars.run(work, ScriptedModel(answer), SETTINGS, memory(), tmp_path / "whole")
    size = (tmp_path / "whole" / EVENTS).stat().st_size
    for room in range(0, size - 600, 2000):
        out = tmp_path / f"out{room}"
        monkeypatch.setattr("dars.runs.EventLog", Small)
        monkeypatch.setattr(Small, "room", room)
        with pytest.raises(DiskFull, match=r"cannot write .*events\.jsonl: No space left"):
            dars.run(work, ScriptedModel(answer), SETTINGS, memory(), out, workers=workers)
        monkeypatch.undo()
        assert not room or (out / EVENTS).stat().st_size == room
        again = dars.run(work, ScriptedModel(answer), SETTINGS, memory(), out)
        assert actions(again.tree) == actions(whole.tree)
        assert [c.patch for c in again.candidates] == [c.patch for c in whole.candidates]


def test_workspace_without_space_ends_the_run_and_not_a_path(tmp_path):
    class Crowded(MemoryEnvironment):
        def write_file(self, path, data):
            raise because(f"cannot write {path}", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    with pytest.raises(DiskFull, match=r"cannot write repro\.py: No space left"):
        dars.run(task(tmp_path), ScriptedModel(answer), SETTINGS, Crowded(FILES), tmp_path / "out")
    again = dars.resume(tmp_path / "out", ScriptedModel(answer), env=memory())
    assert actions(again.tree) == actions(dars.run(task(tmp_path), ScriptedModel(answer), SETTINGS, memory()).tree)


def test_reviewer_whose_provider_refuses_leaves_the_candidates(tmp_path):
    def refusing(request):
        if request.role == "review":
            raise ModelError("400: no")
        return answer(request)

    settings = SETTINGS.model_copy(update={"review": ReviewSection(reviewers=["multiplicity", "llm"])})
    with pytest.raises(ModelError, match="400: no") as ended:
        dars.run(task(tmp_path), ScriptedModel(refusing), settings, memory(), tmp_path / "out")
    by_frequency = dars.run(task(tmp_path), ScriptedModel(answer), SETTINGS, memory())
    assert [c.patch for c in ended.value.result.candidates] == [c.patch for c in by_frequency.candidates]
    assert (tmp_path / "out" / "patch.diff").read_text() == by_frequency.best.patch


def test_fork_with_a_hint_tells_it_once_in_a_copy_of_the_run(tmp_path):
    work, out = task(tmp_path), tmp_path / "out"
    before = dars.run(work, ScriptedModel(answer), SETTINGS, memory(), out)
    log = (out / EVENTS).read_bytes()
    heard = []

    def told(request):
        texts = [block.get("text", "") for block in request.messages[-1]["content"]]
        if any("mind the sign" in text for text in texts):
            heard.append(request.path)
            return ToolCall("edit", {"path": "calc.py", "old": "a - b", "new": "b + a"})
        assert "mind the sign" not in str(request.messages)
        return answer(request)

    node = before.tree.children(before.tree.root.children[0])[0].parent
    result = dars.fork(out, node, hint="mind the sign", model=ScriptedModel(told), env=memory())
    assert heard == [before.tree.indices(node)]
    assert (out / EVENTS).read_bytes() == log
    assert result.out == tmp_path / "out-fork-1"
    assert len(result.tree) > len(before.tree)
    new = result.tree.children(node)[-1]
    assert new.flags == ["forked"]
    assert any("b + a" in c.patch for c in result.candidates)
    assert read_meta(result.out)["forked_from"]["node"] == node
    again = dars.resume(result.out, ScriptedModel(answer), env=memory())
    assert shape(again.tree) == shape(result.tree)


def test_fork_with_an_action_does_it_and_goes_on_below(tmp_path):
    work, out = task(tmp_path), tmp_path / "out"
    dars.run(work, ScriptedModel(answer), SETTINGS, memory(), out)
    result = dars.fork(
        out, 0, action={"tool": "edit", "args": {**RIGHT.input, "new": "sum((a, b))"}}, to=tmp_path / "new",
        model=ScriptedModel(answer), env=memory(),
    )  # fmt: skip
    child = result.tree.children(0)[-1]
    assert (child.tool, child.flags) == ("edit", ["forked"])
    assert child.children
    assert any("sum((a, b))" in c.patch for c in result.candidates)


def test_forks_that_make_no_sense_are_refused(tmp_path):
    out = tmp_path / "out"
    result = dars.run(task(tmp_path), ScriptedModel(answer), SETTINGS, memory(), out)
    leaf = result.tree.leaves()[0]
    for node, options, message in (
        (999, {}, "no node 999"),
        (leaf.id, {}, f"fork its parent, node {leaf.parent}"),
        (1, {"hint": "x", "action": RIGHT}, "not both"),
        (1, {"action": {"args": {}}}, "has the form"),
        (1, {"to": out}, "exists"),
    ):
        with pytest.raises(TaskError, match=message):
            dars.fork(out, node, model=ScriptedModel(answer), env=memory(), **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "repo"]


def test_folder_of_another_run_is_refused_with_what_differs_and_left_alone(tmp_path):
    work, out, model = task(tmp_path), tmp_path / "out", ScriptedModel(answer)
    dars.run(work, model, SETTINGS, out=out, called="repair:1")
    other = tmp_path / "other"
    shutil.copytree(work.repo, other)
    (other / "README").write_text("another package\n")

    def written():  # what other files leave in the store of states is in no state
        return {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and "states" not in p.parts}

    before, linear = written(), SETTINGS.model_copy(update={"strategy": "linear"})
    for message, now, settings, options in (
        (r"another model \(repair:1, not repair:2\)", work, SETTINGS, {"called": "repair:2"}),
        (r"another critic \(none, not repair:3\)", work, SETTINGS, {"critic": "repair:3"}),
        (r"another issue", replace(work, issue="it is slow"), SETTINGS, {}),
        (r"another config \(strategy\)", work, linear, {}),
        (r"another task \(test_command\)", replace(work, test_command="make"), SETTINGS, {}),
        (r"another task \(image\)", replace(work, image="some:tag"), SETTINGS, {"env": memory()}),
        (rf"other files than those of {other}", replace(work, repo=other), SETTINGS, {}),
    ):
        with pytest.raises(TaskError, match=f"{out} holds a run .*{message}"):
            dars.run(now, model, settings, out=out, **{"called": "repair:1", **options})
    (work.repo / "calc.py").write_text("def add(a, b):\n    return b - a\n")
    with pytest.raises(TaskError, match="other files"):
        dars.run(work, model, SETTINGS, out=out, called="repair:1")
    assert written() == before


def test_run_goes_on_with_the_same_files_in_another_place(tmp_path):
    work, out = task(tmp_path), tmp_path / "out"
    short = SETTINGS.model_copy(update={"budget": BudgetSection(steps=2, depth=10)})
    dars.run(work, ScriptedModel(answer), short, out=out)
    moved = replace(work, repo=work.repo.rename(tmp_path / "moved"))
    again = dars.run(moved, ScriptedModel(answer), SETTINGS, out=out)
    assert actions(again.tree) == actions(dars.run(moved, ScriptedModel(answer), SETTINGS).tree)


def test_review_ranks_again_without_searching(tmp_path):
    work, out = task(tmp_path), tmp_path / "out"
    first = dars.run(work, ScriptedModel(answer), SETTINGS, out=out)
    events = (out / EVENTS).read_bytes()
    settings = SETTINGS.model_copy(update={"review": ReviewSection(reviewers=["execution"])})
    again = dars.review(out, ScriptedModel(answer), settings)
    assert (out / EVENTS).read_bytes() == events
    assert {c.patch for c in again.candidates} == {c.patch for c in first.candidates}
    assert "a + b" in again.best.patch
    assert again.exit_reason == "done"


def test_limit_of_cost_needs_a_price(tmp_path):
    unknown = OpenAIModel("no-such-model", base_url="http://127.0.0.1:9/v1", api_key="none")
    limited = SETTINGS.model_copy(update={"budget": BudgetSection(cost_usd=1.0)})
    with pytest.raises(TaskError, match="price of no-such-model is unknown"):
        dars.run(task(tmp_path), unknown, limited, memory(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_of_a_commit_are_worked_on_when_it_is_named(tmp_path):
    work = task(tmp_path)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "base"]):
        subprocess.run([*git, *command], cwd=work.repo, check=True)
    base = subprocess.run(["git", "rev-parse", "HEAD"], cwd=work.repo, capture_output=True, text=True, check=True)
    (work.repo / "calc.py").write_text("def add(a, b):\n    raise NotImplementedError\n")
    subprocess.run([*git, "commit", "-qam", "later"], cwd=work.repo, check=True)
    result = dars.run(replace(work, base_commit=base.stdout.strip()), ScriptedModel(answer), SETTINGS)
    assert any("-    return a - b\n+    return a + b" in c.patch for c in result.candidates)
    with pytest.raises(TaskError, match="has no commit"):
        dars.run(replace(work, base_commit="f" * 40), ScriptedModel(answer), SETTINGS)


def test_workers_find_the_same_candidates(tmp_path):
    alone = dars.run(task(tmp_path), ScriptedModel(answer), SETTINGS)
    together = dars.run(task(tmp_path), ScriptedModel(answer), SETTINGS, workers=3)
    assert {c.patch: c.multiplicity for c in alone.candidates} == {c.patch: c.multiplicity for c in together.candidates}


@pytest.mark.parametrize("name", ["gpt", "claude", "openai:", "repair:x", "cassette:", ""])
def test_unknown_models_are_refused_with_what_there_is(name):
    with pytest.raises(TaskError, match="give a Claude model"):
        dars.models.make_model(name)


def test_strategies_run_from_a_task(tmp_path):
    for strategy in ("linear", "restart", "mcts", "random_branch"):
        settings = SETTINGS.model_copy(update={"strategy": strategy, "restarts": 2, "branches": 2, "max_children": 2})
        result = dars.run(task(tmp_path), ScriptedModel(answer), settings)
        assert result.candidates, strategy


def test_paths_of_the_file_system_stay_out_of_what_the_model_is_told(tmp_path):
    seen = []

    def policy(request):
        seen.append(str(request.messages) + request.system)
        return answer(request)

    dars.run(
        task(tmp_path, hidden_tests=("test_secret.py::test_x",)), ScriptedModel(policy), SETTINGS, out=tmp_path / "o"
    )
    assert not any("test_secret" in text or str(Path(tmp_path / "o")) in text for text in seen)


@pytest.mark.parametrize("limit", range(1, 30))
def test_no_call_begins_after_the_budget_of_calls_is_spent(tmp_path, limit):
    """What was cut off between draws, or between them and the critic, goes on the same."""
    asked = []

    def counted(request):
        asked.append(request.role)
        return answer(request)

    short = SETTINGS.model_copy(update={"budget": BudgetSection(steps=60, depth=10, calls=limit)})
    dars.run(task(tmp_path), ScriptedModel(counted), short, memory(), tmp_path / "out")
    assert len(asked) <= limit
    more = dars.resume(tmp_path / "out", ScriptedModel(answer), SETTINGS, memory())
    whole = dars.run(task(tmp_path), ScriptedModel(answer), SETTINGS, memory())
    unpaid = [[{**r, "usage": 0} for r in shape(tree)] for tree in (more.tree, whole.tree)]
    assert unpaid[0] == unpaid[1]


def test_reviewers_calls_count_against_the_budget_while_they_ask(tmp_path):
    asked = []

    def counted(request):
        asked.append(request.role)
        return "no verdict" if request.role == "review" else answer(request)

    settings = SETTINGS.model_copy(update={"review": ReviewSection(reviewers=["llm"], mode="pairwise", n_orders=8)})
    dars.run(task(tmp_path), ScriptedModel(counted), settings, memory())
    searching = len(asked) - asked.count("review")
    assert asked.count("review") == 4  # both orders of two patches, and each again
    asked.clear()
    settings = settings.model_copy(update={"budget": BudgetSection(steps=60, depth=10, calls=searching + 1)})
    dars.run(task(tmp_path), ScriptedModel(counted), settings, memory())
    assert asked.count("review") == 1


def test_forked_action_comes_before_paths_that_the_budget_had_cut_off(tmp_path):
    work, out = task(tmp_path), tmp_path / "out"
    short = SETTINGS.model_copy(update={"budget": BudgetSection(steps=2, depth=10)})
    dars.run(work, ScriptedModel(answer), short, memory(), out)
    one = SETTINGS.model_copy(update={"budget": BudgetSection(steps=1, depth=10)})
    forked = dars.fork(out, 0, action=RIGHT, model=ScriptedModel(answer), env=memory(), config=one)
    assert [(n.parent, n.args) for n in forked.tree.nodes.values() if "forked" in n.flags] == [(0, RIGHT.input)]


def test_fork_where_no_action_can_follow_is_refused(tmp_path):
    work, out = task(tmp_path), tmp_path / "out"
    low = SETTINGS.model_copy(update={"budget": BudgetSection(steps=20, depth=2)})
    before = dars.run(work, ScriptedModel(answer), low, memory(), out)
    deep = next(node.id for node in before.tree.nodes.values() if node.depth == 2)
    with pytest.raises(TaskError, match="limit of 2 actions"):
        dars.fork(out, deep, action=ToolCall("submit"), model=ScriptedModel(answer), env=memory())
    deeper = dars.fork(out, deep, action=ToolCall("submit"), model=ScriptedModel(answer), env=memory(), config=SETTINGS)
    assert "forked" in deeper.tree.children(deep)[0].flags


def test_run_cut_off_before_its_first_event_goes_on(tmp_path):
    work, out = task(tmp_path), tmp_path / "out"
    whole = dars.run(work, ScriptedModel(answer), SETTINGS, memory(), out)
    (out / EVENTS).unlink()
    assert shape(dars.resume(out, ScriptedModel(answer), env=memory()).tree) == shape(whole.tree)
    (out / "meta.json").unlink()
    with pytest.raises(TaskError, match=r"meta\.json is missing"):
        dars.run(work, ScriptedModel(answer), SETTINGS, memory(), out)


def test_rollouts_cut_off_at_any_event_are_as_long_as_if_they_had_not_been(tmp_path):
    def worker(request):
        if request.role == "review":
            return f"<score>{len(request.path) * 7 % 100}</score>"
        return ToolCall("create", {"path": f"a{request.sample}{len(request.path)}.py", "content": "x = 1\n"})

    settings = SETTINGS.model_copy(
        update={"strategy": "mcts", "value": "model", "rollout": 2, "max_children": 2, "budget": BudgetSection(depth=4)}
    )
    whole = dars.run(task(tmp_path), ScriptedModel(worker), settings, memory(), tmp_path / "whole")
    assert whole.exit_reason == "done"
    lines = (tmp_path / "whole" / EVENTS).read_bytes().splitlines(keepends=True)
    for kept in range(1, len(lines)):
        cut = tmp_path / f"cut{kept}"
        shutil.copytree(tmp_path / "whole", cut)
        (cut / EVENTS).write_bytes(b"".join(lines[:kept]))
        again = dars.resume(cut, ScriptedModel(worker), env=memory())
        assert shape(again.tree) == shape(whole.tree)


def test_paused_rollouts_are_harvested_when_the_budget_ends_and_go_on_with_more(tmp_path):
    calls = [REPRO, WRONG, RIGHT]

    def worker(request):
        if request.role == "review":
            return "<score>50</score>"
        return calls[(len(request.path) + request.sample) % 3]

    short, long = (BudgetSection(steps=steps, depth=6) for steps in (2, 12))
    settings = SETTINGS.model_copy(
        update={"strategy": "mcts", "value": "model", "rollout": 2, "max_children": 1, "budget": short}
    )
    found = dars.run(task(tmp_path), ScriptedModel(worker), settings, memory(), tmp_path / "out")
    assert found.exit_reason == "steps"
    assert [(c.auto_submitted, "+    return a * b" in c.patch) for c in found.candidates] == [(True, True)]
    events = [json.loads(line)["type"] for line in (tmp_path / "out" / EVENTS).read_bytes().splitlines()]
    assert events == ["root", "step", "step", "pause"]
    longer = settings.model_copy(update={"budget": long})
    again = dars.resume(tmp_path / "out", ScriptedModel(worker), longer, memory())
    assert shape(again.tree) == shape(dars.run(task(tmp_path), ScriptedModel(worker), longer, memory()).tree)


def test_fork_at_the_end_of_a_rollout_that_was_cut_off_before_its_pause_is_done(tmp_path):
    calls, out = [REPRO, WRONG, ToolCall("submit")], tmp_path / "out"

    def worker(request):
        return "<score>50</score>" if request.role == "review" else calls[min(len(request.path), 2)]

    settings = SETTINGS.model_copy(update={"strategy": "mcts", "value": "model", "rollout": 2})
    dars.run(task(tmp_path), ScriptedModel(worker), settings, memory(), out)
    lines = (out / EVENTS).read_bytes().splitlines(keepends=True)
    assert json.loads(lines[3])["type"] == "pause"
    (out / EVENTS).write_bytes(b"".join(lines[:3]))
    forked = dars.fork(out, 2, action=RIGHT, model=ScriptedModel(worker), env=memory())
    assert [node.args for node in forked.tree.children(2) if "forked" in node.flags] == [RIGHT.input]
