"""The console script: what it prints and returns, what it refuses, and what it leaves on the disk."""

import errno
import importlib.util
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dars.bench.execute import own_python
from dars.cli.main import main
from dars.env import sandbox
from dars.errors import SandboxUnavailable
from dars.models import ToolCall
from dars.storage import EVENTS
from dars.testing import FakeMessagesServer, Reply

CHECK = "from logic import either\n\nassert not either(False, False)\n"
SNIPPET = "from logic import either\n\nassert either(False, True)\n"
ISSUE = f"`either` is false where one of the two holds.\n\n```python\n{SNIPPET}```\n"
# Starting pytest takes longer than all the rest of a run.
QUICK = ("--test-command", "python check.py", "--sandbox", "none", "--reviewer", "multiplicity")
SMALL = (*QUICK, "--model", "repair:2", "--strategy", "linear", "--max-steps", "25")
COMMANDS = (
    "run", "resume", "fork", "replay", "show", "tree", "export", "cost", "review", "plan", "theory", "doctor",
    "import", "eval", "swebench", "swebench run", "swebench predict", "swebench eval", "swebench report",
    "reviewer", "reviewer fit", "reviewer fit-verifier", "reviewer eval", "reviewer export-sft", "bench",
)  # fmt: skip
HEAVY = ("anthropic", "openai", "sklearn", "matplotlib", "torch", "cosmic_ray", "datasets", "ray")


@pytest.fixture
def dars(capsys, monkeypatch):
    """Calls the script in this process; its exit code, and what it printed on stdout and stderr."""

    def call(*words):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["dars", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return ended.value.code, printed.out, printed.err

    return call


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch):
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def package(folder):
    """A repository with one wrong operator, and its issue beside it."""
    repo = folder / "repo"
    repo.mkdir(parents=True)
    (repo / "logic.py").write_text("def either(a, b):\n    return a and b\n")
    (repo / "check.py").write_text(CHECK)
    (folder / "issue.md").write_text(ISSUE)
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@b")
    for words in (("init", "-q"), ("add", "."), ("commit", "-qm", "Begin")):
        subprocess.run([*git, *words], cwd=repo, check=True)
    return repo


@pytest.fixture
def repo(tmp_path):
    return package(tmp_path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A finished, recorded run with several paths; (its package, its folder, what it printed)."""
    top = tmp_path_factory.mktemp("saved")
    repo = package(top)
    words = ("run", "--repo", repo, "--issue", top / "issue.md", "--out", top / "out", "--record", "--max-calls", 25)
    done = subprocess.run(script(*words, *QUICK, "--model", "repair:1"), capture_output=True, text=True, check=True)
    return repo, top / "out", done


def script(*words):
    return [sys.executable, "-m", "dars", *map(str, words)]


def files(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and ".git" not in p.parts
    }


def refused(said):
    """Whether it ended in one line that says what is wrong."""
    return said.startswith("error: ") and said.count("\n") == 1 and said.endswith("\n")


# --- a run and what can be done with it -------------------------------------------------------------------------------


def test_run_repairs_a_package_that_it_leaves_alone(saved, tmp_path):
    repo, out, done = saved
    assert str(out / "patch.diff") in done.stdout
    assert done.stderr == ""
    assert {"logic.py", "check.py"} == set(os.listdir(repo)) - {".git"}
    assert subprocess.run(["git", "status", "--porcelain"], cwd=repo, capture_output=True, check=True).stdout == b""
    fixed = tmp_path / "fixed"
    shutil.copytree(repo, fixed)
    (fixed / "hidden.py").write_text(SNIPPET + CHECK)
    assert subprocess.run([sys.executable, "hidden.py"], cwd=fixed, capture_output=True, check=False).returncode
    subprocess.run(["git", "apply", out / "patch.diff"], cwd=fixed, check=True)
    subprocess.run([sys.executable, "hidden.py"], cwd=fixed, check=True)
    assert {"tree.json", "tree.html", "review.json", "usage.json", "meta.json", "candidates"} <= set(os.listdir(out))


def test_saved_run_is_told_shown_and_exported(dars, saved, tmp_path):
    _, out, _ = saved
    before = files(out)
    nodes = json.loads((out / "tree.json").read_text())["nodes"]
    code, tree, _ = dars("tree", out)
    assert (code, tree.splitlines()[0].split(",")[0]) == (0, f"{len(nodes) - 1} steps")
    letters = dars("tree", out, "--skeleton")[1].strip()
    assert len(re.sub(r"[(|)]", "", letters)) == len(nodes) - 1
    code, shown, _ = dars("show", out, 1)
    assert code == 0
    assert nodes[1]["tool"] in shown
    first, second = next(
        [n["id"] for n in nodes if n["parent"] == parent["id"]]
        for parent in nodes
        if sum(n["parent"] == parent["id"] for n in nodes) > 1
    )[:2]
    assert dars("show", out, second, "--against", first)[0] == 0
    cost = dict(line.rsplit(maxsplit=1) for line in dars("cost", out)[1].splitlines())
    assert int(cost["calls"]) == 25
    assert int(cost["steps"]) == len(nodes) - 1
    asked = [node for node in nodes if node["expansion"] and len(node["expansion"]["candidates"]) > 1]
    fell = sum("critic_fallback" in node["flags"] for node in asked)
    assert cost["critic fell back to the first"] == f"{fell / len(asked):.1%}"
    for form in ("html", "json", "traj", "dot"):
        target = tmp_path / f"run.{form}"
        assert dars("export", out, "--to", target, "--format", form)[0] == 0
        assert dars("export", out, "--to", "-", "--format", form)[1] == target.read_text()
    assert json.loads((tmp_path / "run.json").read_text())["nodes"] == nodes
    row = json.loads(dars("export", out, "--to", "-", "--format", "predictions")[1])
    assert row == {
        "instance_id": "local", "model_name_or_path": "dars", "model_patch": (out / "patch.diff").read_text(),
    }  # fmt: skip
    assert files(out) == before


def test_cost_of_a_run_that_was_cut_off_is_that_of_its_events(dars, saved, tmp_path):
    def told(folder):
        code, printed, said = dars("cost", folder)
        assert (code, said) == (0, "")
        return dict(line.rsplit(maxsplit=1) for line in printed.splitlines())

    cut = tmp_path / "cut"
    cut.mkdir()
    shutil.copy(saved[1] / "meta.json", cut)
    shutil.copytree(saved[1] / "blobs", cut / "blobs")
    lines = (saved[1] / EVENTS).read_bytes().splitlines(keepends=True)
    (cut / EVENTS).write_bytes(b"".join(lines[:-2]) + lines[-2][:9])
    events = [json.loads(line) for line in lines[:-2]]
    assert told(cut)["calls"] == str(sum(event.get("calls", 0) for event in events))
    assert told(cut)["steps"] == str(sum(event["type"] == "step" for event in events))
    (cut / EVENTS).write_bytes(b"".join(lines))
    whole = json.loads((saved[1] / "usage.json").read_text())
    assert {name: told(cut)[name] for name in ("calls", "steps")} == {n: str(whole[n]) for n in ("calls", "steps")}


def test_exported_prediction_keeps_the_line_ends_of_the_patch(dars, saved, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(saved[1], copy)
    patch = (copy / "patch.diff").read_bytes().replace(b" a or b\n", b" a or b\r\n")
    assert b"\r\n" in patch
    (copy / "patch.diff").write_bytes(patch)
    row = json.loads(dars("export", copy, "--to", "-", "--format", "predictions")[1])
    assert row["model_patch"].encode() == patch


def test_recording_replayed_gives_the_same_tree(dars, saved, tmp_path):
    _, out, _ = saved
    nodes = json.loads((out / "tree.json").read_text())["nodes"]
    assert dars("replay", out) == (0, f"the same tree: {len(nodes)} nodes\n", "")
    other = tmp_path / "other"
    shutil.copytree(out, other)
    tape = (other / "cassette.jsonl").read_text().splitlines(keepends=True)
    (other / "cassette.jsonl").write_text("".join(tape[:4]))
    code, _, said = dars("replay", other)
    assert code == 4
    assert refused(said)
    assert "record it again" in said


def test_review_ranks_again_without_going_on(dars, saved, tmp_path):
    _, out, _ = saved
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    code, printed, _ = dars("review", copy, "--reviewer", "multiplicity", "--reviewer", "random", "--model", "repair")
    assert code == 0
    assert printed.startswith("1. node ")
    assert json.loads((copy / "tree.json").read_text())["nodes"] == json.loads((out / "tree.json").read_text())["nodes"]
    code, _, said = dars("review", copy, "--reviewer", "best", "--model", "repair")
    assert code == 2
    assert refused(said)
    assert "multiplicity" in said


def test_review_of_a_run_that_was_killed_is_a_success(dars, saved, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    meta = json.loads((saved[1] / "meta.json").read_text())
    del meta["exit_reason"]  # written at the end
    (copy / "meta.json").write_text(json.dumps(meta))
    for name in ("blobs", "states"):
        shutil.copytree(saved[1] / name, copy / name)
    lines = (saved[1] / EVENTS).read_bytes().splitlines(keepends=True)
    (copy / EVENTS).write_bytes(b"".join(lines[:-1]))
    code, printed, said = dars("review", copy)
    assert (code, said) == (0, "")
    assert printed.startswith("1. node ")


def test_fork_does_an_action_in_a_copy_and_resume_goes_on_with_more_budget(dars, saved, tmp_path):
    _, out, _ = saved
    before, new = files(out), tmp_path / "new"
    edit = 'edit {"path": "logic.py", "old": "a and b", "new": "b or a"}'
    code, printed, _ = dars("fork", out, 0, "--action", edit, "--out", new, "--model", "repair:1", "--max-calls", 1)
    assert code == 0
    assert str(new / "patch.diff") in printed
    assert files(out) == before
    made = json.loads((new / "tree.json").read_text())["nodes"]
    (forked,) = [n for n in made if "forked" in n["flags"]]
    assert (forked["parent"], forked["tool"], forked["args"]["new"]) == (0, "edit", "b or a")
    code, _, _ = dars("resume", new, "--model", "repair:1", "--max-calls", 4)
    assert code == 0
    assert len(json.loads((new / "tree.json").read_text())["nodes"]) > len(made)


def test_run_on_a_task_is_graded_and_can_be_reviewed_forked_and_resumed(dars, tmp_path):
    settings = tmp_path / "quick.yaml"
    settings.write_text("review: {reviewers: [multiplicity]}\nbudget: {calls: 16}\n")
    words = ("bench", "run", "--out", tmp_path / "runs", "--only", "spans-01", "--config", settings, "--model")
    with own_python():
        code, printed, said = dars(*words, "repair:2")
        run = tmp_path / "runs" / "spans-01"
        result, usage = (json.loads((run / name).read_text()) for name in ("result.json", "usage.json"))
        assert (code, said, usage["calls"]) == (0, "", 16)
        assert f"spans-01 {'resolved' if result['resolved'] else 'not resolved'} (" in printed
        assert [f"{c['node']}.diff" for c in result["candidates"]] == sorted(os.listdir(run / "candidates"))
        assert result["any"] == any(c["resolved"] for c in result["candidates"])
        code, printed, _ = dars("review", run)
        assert code == 0
        assert printed.startswith("1. node ")
        assert dars("fork", run, 0, "--action", "submit", "--max-steps", 1)[0] in (0, 1)
        assert dars("resume", run, "--max-calls", 20)[0] == 0
        before = files(run)
        code, _, said = dars(*words, "repair:3")
        assert (code, refused(said)) == (2, True)
        assert "repair:2, not repair:3" in said
        assert files(run) == before


def test_missing_packages_are_named_before_a_task_is_begun(dars, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    for module, package, model in (("models.choose", "cosmic_ray", "repair"), ("bench.solve", "pytest", "human")):
        monkeypatch.setattr(f"dars.{module}.find_spec", lambda name, absent=package: None if name == absent else found)
        code, _, said = dars("bench", "run", "--out", tmp_path / "runs", "--only", "spans-01", "--model", model)
        assert (code, refused(said)) == (2, True)
        assert "dars-agent[bench]" in said
        assert os.listdir(tmp_path) == []


def test_fork_that_could_not_begin_leaves_nothing(dars, saved, tmp_path):
    top = tmp_path / "top"
    shutil.copytree(saved[1], top / "out")
    meta = json.loads((top / "out" / "meta.json").read_text())
    meta["task"]["repo"] = str(tmp_path / "gone")
    (top / "out" / "meta.json").write_text(json.dumps(meta))
    code, _, said = dars("fork", top / "out", 0, "--model", "repair")
    assert (code, refused(said)) == (2, True)
    assert "gone is no folder" in said
    assert os.listdir(top) == ["out"]


def test_issue_from_stdin_and_dry_run_ask_no_model(dars, repo, tmp_path, monkeypatch):
    with FakeMessagesServer(lambda body: Reply(status=400)) as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "key")
        words = ("run", "--repo", repo, "--issue", "-", "--dry-run", "--out", tmp_path / "out", "--sandbox", "none")
        monkeypatch.setattr("sys.stdin", open(tmp_path / "issue.md", encoding="utf-8"))  # noqa: SIM115
        code, printed, _ = dars(*words)
        assert server.requests == []
    assert code == 0
    assert "2 files" in printed
    assert "price known" in printed
    assert not (tmp_path / "out").exists()


def test_trajectory_of_another_agent_is_imported(dars, tmp_path):
    steps = [
        {"action": "ls -a", "thought": "Look.", "observation": "logic.py"},
        {"action": "submit", "thought": "Done.", "observation": ""},
    ]
    (tmp_path / "a.traj").write_text(json.dumps({"trajectory": steps, "info": {"exit_status": "submitted"}}))
    code, printed, _ = dars("import", tmp_path / "a.traj", "--out", tmp_path / "out")
    assert (code, printed.split(":")[0]) == (0, "2 steps, 1 ends")
    assert "ls -a" in dars("show", tmp_path / "out", 1)[1]
    assert dars("tree", tmp_path / "out", "--skeleton")[1] == "os\n"
    code, _, said = dars("import", tmp_path / "a.traj", "--out", tmp_path / "out")
    assert (code, refused(said)) == (2, True)


def test_run_over_instances_tells_why_one_failed_and_names_no_file_that_is_not_there(dars, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"instance_id": "a__b-1", "problem_statement": "it is wrong"}\n')
    (tmp_path / "none.yaml").write_text("env: {container_cli: no-such-program}\n")
    words = ("swebench", "run", tmp_path / "rows.jsonl", "--out", tmp_path / "out", "--model", "repair")
    code, printed, said = dars(*words, "--config", tmp_path / "none.yaml")
    assert (code, printed) == (1, "0 done, 0 were done, 1 failed\n")
    assert said.startswith("1 of 1: a__b-1 failed: EnvError: the program no-such-program is not there")


# --- exit codes -------------------------------------------------------------------------------------------------------


def test_no_candidate_is_1_and_a_budget_that_ended_before_is_5(dars, repo, tmp_path):
    words = ("run", "--repo", repo, "--issue-text", "`nothing_there` is wrong", *SMALL)
    code, _, said = dars(*words, "--out", tmp_path / "one")
    assert (code, refused(said)) == (1, True)
    code, _, said = dars(*words, "--out", tmp_path / "two", "--max-calls", 1, "--issue", tmp_path / "issue.md")
    assert code == 2
    code, _, said = dars(*words, "--out", tmp_path / "two", "--max-steps", 1, "--strategy", "dars")
    assert code in (1, 5)
    code, _, said = dars("run", "--repo", repo, "--issue", tmp_path / "issue.md", *SMALL, "--max-calls", 1, "--out",
                         tmp_path / "three")  # fmt: skip
    assert (code, refused(said)) == (5, True)
    assert "calls" in said
    assert not (tmp_path / "three" / "patch.diff").exists()


BAD = {
    "an empty issue": (("--issue-text", " "), "issue is empty"),
    "no issue": ((), "--issue-text"),
    "two issues": (("--issue", "issue.md", "--issue-text", "a"), "--issue-text"),
    "a missing issue": (("--issue", "nowhere.md"), "nowhere.md"),
    "an issue that is no text": (("--issue", "binary"), "UTF-8"),
    "an unknown model": (("--issue-text", "a", "--model", "gpt-9"), "claude-sonnet-5-5"),
    "a recording that is not there": (("--issue-text", "a", "--model", "cassette:nowhere"), "nowhere"),
    "an unknown setting": (("--issue-text", "a", "--config", "bad.yaml"), "did you mean steps?"),
    "no YAML": (("--issue-text", "a", "--config", "no.yaml"), "no.yaml"),
    "an unknown kind": (("--issue-text", "a", "--config", "kind.yaml"), "'exit'"),
    "elision down to more than where it begins": (("--issue-text", "a", "--config", "low.yaml"), "history"),
    "a limit of 0 steps": (("--issue-text", "a", "--max-steps", "0"), "--max-steps"),
    "a limit of 0 calls": (("--issue-text", "a", "--max-calls", "0"), "--max-calls"),
    "a limit of 0 US$": (("--issue-text", "a", "--max-cost", "0"), "--max-cost"),
    "a negative limit": (("--issue-text", "a", "--max-steps", "-1"), "--max-steps"),
    "a limit of cost without prices": (
        ("--issue-text", "a", "--max-cost", "1", "--model", "claude-unheard-1"), "--allow-unknown-price"
    ),
    "a folder in the repository": (("--issue-text", "a", "--out", "repo/out"), "repo/out"),
    "an unknown reviewer": (("--issue-text", "a", "--reviewer", "best"), "multiplicity"),
    "an unknown strategy": (("--issue-text", "a", "--strategy", "best"), "--strategy"),
    "an unknown sandbox": (("--issue-text", "a", "--sandbox", "best"), "--sandbox"),
    "a critic that is not there": (("--issue-text", "a", "--critic", "gpt-9"), "claude-sonnet-5-5"),
    "a critic that is not there, of a file": (("--issue-text", "a", "--config", "critic.yaml"), "'gpt-9'"),
    "a limit of cost without prices of the critic": (
        ("--issue-text", "a", "--max-cost", "1", "--critic", "claude-unheard-1"), "--allow-unknown-price"
    ),
    "a file in place of a folder": (("--issue-text", "a", "--out", "issue.md"), "issue.md is a file"),
    "an unknown commit": (("--issue-text", "a", "--base-commit", "abc123"), "abc123"),
    "no workers": (("--issue-text", "a", "--workers", "0"), "--workers"),
    "an unknown flag": (("--issue-text", "a", "--max-stops", "3"), "--max-stops"),
}  # fmt: skip


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_2_in_one_line_and_leaves_nothing(case, dry, dars, repo, tmp_path, monkeypatch):
    words, expected = BAD[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text("budget: {step: 3}\n")
    (tmp_path / "no.yaml").write_text("a: [\n")
    (tmp_path / "kind.yaml").write_text("policy: {limits: {exit: 1}}\n")
    (tmp_path / "low.yaml").write_text("history: {high: 10000}\n")
    (tmp_path / "critic.yaml").write_text("critic: {model: gpt-9}\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "key")
    before = files(tmp_path)
    code, printed, said = dars("run", "--repo", "repo", "--model", "repair", "--out", "out", *words, *dry)
    assert (code, printed) == (2, "")
    assert refused(said)
    assert expected in said
    assert files(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_missing_repository_is_named(dars, tmp_path):
    for words in (("--repo", tmp_path / "nowhere"), ()):
        code, _, said = dars("run", *words, "--issue-text", "a", "--model", "repair", "--out", tmp_path / "out")
        assert (code, refused(said)) == (2, True)
    assert not (tmp_path / "out").exists()


WRONG = {
    "no JSON": (("fork", "RUN", 1, "--action", "edit {bad"), "JSON"),
    "no object": (("fork", "RUN", 1, "--action", "edit [1]"), "object"),
    "an unknown tool": (("fork", "RUN", 1, "--action", "eddit {}"), "'eddit'"),
    "an empty action": (("fork", "RUN", 1, "--action", ""), "there is no tool"),
    "a hint and an action": (("fork", "RUN", 1, "--action", "submit", "--hint", "a"), "not both"),
    "an unknown node to fork": (("fork", "RUN", 999), "no node 999"),
    "an unknown node to show": (("show", "RUN", 999), "no node 999"),
    "an unknown node to compare": (("show", "RUN", 1, "--against", 999), "no node 999"),
    "an unknown format": (("export", "RUN", "--to", "x", "--format", "pdf"), "predictions"),
    "an empty description of a run to resume": (("resume", "EMPTY"), "holds no run"),
    "an empty description of a run to fork": (("fork", "EMPTY", 0), "holds no run"),
    "an empty description of a run to review": (("review", "EMPTY"), "holds no run"),
    "an empty description of a run to account for": (("cost", "EMPTY"), "holds no run"),
    "instances without an issue": (("swebench", "run", "EMPTY/rows.jsonl", "--out", "y"), "problem_statement"),
    "a folder that is not there": (("export", "RUN", "--to", "nowhere/x.html"), "nowhere/x.html"),
    "no run to resume": (("resume", "nowhere"), "holds no run"),
    "no run to look at": (("tree", "nowhere"), "nowhere"),
    "a negative budget": (("plan", "--budget", "-1", "--p", ".5,.5,.5,1"), "budget"),
    "an unknown unit": (("plan", "--budget", "100", "--p", ".5,.5,.5,1", "--unit", "miles"), "usd"),
    "chances of other stages": (("theory", "--p", ".5"), "4 stages"),
    "no chances": (("theory", "--p", ".5,.5,x,1"), "--p"),
    "chances above 1": (("theory", "--p", ".5,.5,2,1"), "p"),
    "an unknown stage": (("theory", "--stages", "cook"), "cook"),
    "no gaps": (("theory", "--gaps", ""), "--gaps"),
    "an unknown command": (("cook",), "cook"),
    "a shard of nothing": (("swebench", "run", "x.jsonl", "--out", "y", "--shard", "4/4"), "x.jsonl"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_commands_on_saved_runs_refuse_what_they_cannot_do(case, dars, saved, tmp_path, tmp_path_factory, monkeypatch):
    words, expected = WRONG[case]
    monkeypatch.chdir(tmp_path)
    run = saved[1]
    before = files(run.parent)
    empty = tmp_path_factory.mktemp("empty")
    (empty / "meta.json").write_text("{}")
    (empty / EVENTS).write_text("")
    (empty / "rows.jsonl").write_text('{"instance_id": "a__b-1"}\n')
    places = {"RUN": run, "EMPTY": empty, "EMPTY/rows.jsonl": empty / "rows.jsonl"}
    code, _, said = dars(*[places.get(word, word) for word in words])
    assert code == 2
    assert refused(said)
    assert expected in said
    assert files(run.parent) == before
    assert os.listdir(tmp_path) == []


def test_damaged_runs_name_the_file_and_the_line(dars, saved, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(saved[1], copy)
    (copy / "tree.json").write_text("{")
    for words in (("tree", copy), ("show", copy, 1), ("export", copy, "--to", tmp_path / "x")):
        code, _, said = dars(*words)
        assert (code, refused(said)) == (2, True)
    lines = (copy / EVENTS).read_bytes().splitlines(keepends=True)
    lines[2] = lines[2][:20] + b"\n"
    (copy / EVENTS).write_bytes(b"".join(lines))
    for words in (("resume", copy, "--model", "repair"), ("fork", copy, 1, "--model", "repair"), ("cost", copy)):
        code, _, said = dars(*words)
        assert (code, refused(said)) == (2, True)
        assert "line 3" in said
    assert os.listdir(tmp_path) == ["copy"]


def test_no_sandbox_is_3_and_the_folder_can_be_used_without_one(dars, repo, tmp_path, monkeypatch):
    def none(kind):
        if kind != "none":
            raise SandboxUnavailable("neither bwrap nor unshare works")
        return kind

    monkeypatch.setattr(sandbox, "choose", none)
    monkeypatch.setattr("dars.env.local.choose", none)
    words = ("run", "--repo", repo, "--issue", tmp_path / "issue.md", "--out", tmp_path / "out", *SMALL)
    code, _, said = dars(*words, "--sandbox", "auto")
    assert (code, refused(said)) == (3, True)
    assert not (tmp_path / "out").exists()
    assert dars(*words)[0] == 0


@pytest.mark.parametrize("status", [400, 401])
def test_refusing_api_is_4_asked_once_and_the_run_goes_on_with_another_key(status, dars, repo, tmp_path, monkeypatch):
    with FakeMessagesServer(lambda body: Reply(status=status, detail="not for you")) as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "key")
        out = tmp_path / "out"
        words = ("run", "--repo", repo, "--issue", tmp_path / "issue.md", "--out", out, *SMALL)
        code, _, said = dars(*words, "--model", "claude-sonnet-5-5")
        assert len(server.requests) == 1
    assert (code, refused(said)) == (4, True)
    assert "not for you" in said
    assert f"dars resume {out}" in said
    assert dars("tree", out, "--skeleton")[0] == 0
    assert dars("resume", out, "--model", "repair:2")[0] == 0


def test_api_that_refuses_later_is_4_and_the_patch_so_far_is_named(dars, repo, tmp_path, monkeypatch):
    edit = ToolCall("edit", {"path": "logic.py", "old": "a and b", "new": "a or b"})
    with FakeMessagesServer(lambda body: edit if len(body["messages"]) == 1 else Reply(status=400, detail="no")) as api:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", api.url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "key")
        out = tmp_path / "out"
        words = ("run", "--repo", repo, "--issue", tmp_path / "issue.md", "--out", out, *SMALL)
        code, printed, said = dars(*words, "--model", "claude-sonnet-5-5")
    assert (code, refused(said)) == (4, True)
    assert f"dars resume {out}" in said
    assert f"patch: {out / 'patch.diff'} (not submitted" in printed
    subprocess.run(["git", "apply", out / "patch.diff"], cwd=repo, check=True)
    assert (repo / "logic.py").read_text() == "def either(a, b):\n    return a or b\n"


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("place", "name", "after"),
    [(os, "fsync", 0), (os, "fsync", 5), (os, "replace", 0), (os, "replace", 9), (Path, "write_bytes", 0),
     (shutil, "copy2", 0)],
)  # fmt: skip
def test_full_disk_is_3_in_one_line_and_the_run_goes_on(place, name, after, dars, repo, tmp_path, monkeypatch):
    write, calls = getattr(place, name), itertools.count()

    def full(*args, **kwargs):
        if next(calls) >= after:
            raise FULL
        return write(*args, **kwargs)

    words = ("run", "--repo", repo, "--issue", tmp_path / "issue.md", "--out", tmp_path / "out", *SMALL, "--record")
    with monkeypatch.context() as patch:
        patch.setattr(place, name, full)
        code, _, said = dars(*words)
    assert (code, refused(said)) == (3, True)
    assert "No space left on device" in said
    assert dars(*words)[0] == 0


@pytest.mark.parametrize("words", [(), ("--model", "repair", "--critic", "claude-opus-5-5")])
def test_missing_credentials_are_4_before_anything_is_done(words, dars, repo, tmp_path):
    for dry in ((), ("--dry-run",)):
        line = ("run", "--repo", repo, "--issue-text", "a", "--out", tmp_path / "out", "--sandbox", "none")
        code, printed, said = dars(*line, *words, *dry)
        assert (code, printed, refused(said)) == (4, "", True)
        assert "ANTHROPIC_API_KEY" in said
        assert not (tmp_path / "out").exists()


def test_review_by_a_model_needs_a_price_for_a_limit_of_cost_and_one_by_execution_does_not(dars, saved, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(saved[1], copy)
    words = ("review", copy, "--model", "claude-unheard-1", "--max-cost", "0.1", "--reviewer")
    before = files(copy)
    code, _, said = dars(*words, "llm")
    assert (code, refused(said)) == (2, True)
    assert "--allow-unknown-price" in said
    assert files(copy) == before
    assert dars(*words, "multiplicity")[0] == 0


def test_run_that_made_no_call_gives_its_folder_to_another_model_and_repository(dars, repo, tmp_path, monkeypatch):
    out = tmp_path / "out"
    words = ("run", "--issue", tmp_path / "issue.md", "--out", out, *SMALL, "--record")
    (tmp_path / "empty").mkdir()
    with FakeMessagesServer(lambda body: Reply(status=401, detail="who are you?")) as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "wrong")
        assert dars(*words, "--repo", tmp_path / "empty", "--model", "claude-sonnet-5-5")[0] == 4
    assert dars(*words, "--repo", repo)[0] == 0
    meta = json.loads((out / "meta.json").read_text())
    assert (meta["model"], meta["task"]["repo"]) == ("repair:2", str(repo))
    assert json.loads((out / "cassette.jsonl").read_text().splitlines()[0])["model"] == "repair"
    assert dars("replay", out)[0] == 0
    code, _, said = dars(*words, "--repo", repo, "--model", "repair:3")
    assert (code, refused(said)) == (2, True)
    assert "repair:2, not repair:3" in said


def test_internal_error_is_told_without_a_traceback_unless_asked(dars, repo, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dars.viz.text", lambda tree, width: 1 // 0)
    (tmp_path / "tree.json").write_text('{"schema_version": 1, "nodes": [{"id": 0}]}')
    code, _, said = dars("tree", tmp_path)
    assert (code, refused(said)) == (1, True)
    assert "--debug" in said
    monkeypatch.setattr(sys, "argv", ["dars", "tree", str(tmp_path), "--debug"])
    with pytest.raises(SystemExit):
        main()
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_interrupted_run_is_saved_says_how_to_go_on_and_does(dars, repo, tmp_path):
    out = tmp_path / "out"
    words = ("run", "--repo", repo, "--issue", tmp_path / "issue.md", "--out", out, *SMALL)
    child = subprocess.Popen(script(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while time.monotonic() < until and (not (out / EVENTS).exists() or (out / EVENTS).read_bytes().count(b"\n") < 4):
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130
    assert f"dars resume {out}" in said
    assert "Traceback" not in said
    done = len(json.loads((out / "tree.json").read_text())["nodes"])
    code, printed, _ = dars("resume", out)
    assert code == 0
    assert str(out / "patch.diff") in printed
    assert len(json.loads((out / "tree.json").read_text())["nodes"]) > done


def test_run_that_another_process_works_on_is_not_touched(dars, repo, tmp_path):
    out = tmp_path / "out"
    words = ("run", "--repo", repo, "--issue", tmp_path / "issue.md", "--out", out, *SMALL)
    assert dars(*words)[0] == 0
    before = files(out)
    holder = (
        f"import sys, dars.storage as s; log = s.EventLog({str(out)!r}); print('held', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen([sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b"held\n"
        for again in (("resume", out), ("review", out), words):
            code, _, said = dars(*again)
            assert (code, refused(said)) == (2, True)
            assert "another process" in said
        assert files(out) == before
    finally:
        child.communicate()
    assert dars("resume", out)[0] == 0


# --- help and numbers -------------------------------------------------------------------------------------------------


def test_help_of_every_command_imports_no_framework():
    code = (
        "import contextlib, io, sys\nfrom dars.cli.main import main\n"
        f"for words in {[c.split() for c in COMMANDS] + [[]]!r}:\n"
        "    sys.argv = ['dars', *words, '--help']\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out:\n"
        "        try:\n            main()\n"
        "        except SystemExit as ended:\n            assert not ended.code, words\n"
        "    assert 'Usage: dars ' + ' '.join(words) in out.getvalue(), words\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_version_is_that_of_the_package(dars):
    import dars as package

    assert dars("--version") == (0, f"{package.__version__}\n", "")


def test_theory_prints_the_documented_numbers(dars):
    values = json.loads(dars("theory", "--json", "--p", ".5,.5,.5,1")[1])
    assert (values["leaves"], values["steps"], values["steps replayed without snapshots"]) == (12, 67, 101)
    assert values["chance that any leaf resolves"] == pytest.approx(0.460693, abs=5e-7)
    better = json.loads(dars("theory", "--json", "--p", ".6,.6,.6,1", "--q", ".8,.8,.8,.8")[1])
    assert better["chance that any leaf resolves"] == pytest.approx(0.791448, abs=5e-7)
    code, printed, _ = dars("theory", "--p", ".6,.6,.6,1", "--q", ".8,.8,.8,.8")
    assert code == 0
    for number in ("12", "67", "101", "0.791448", "0.216"):
        assert f" {number}\n" in printed


def test_plan_spends_no_more_than_the_budget(dars):
    found = json.loads(dars("plan", "--budget", 100, "--p", ".5,.5,.5,1", "--q", ".9,.9,.9,1", "--json")[1])
    assert found
    assert all(one["cost"] * one["runs"] <= 100 * (1 + 1e-9) for one in found)
    assert [one["success"] for one in found] == sorted((one["success"] for one in found), reverse=True)


def test_doctor_says_what_is_there_and_what_to_do_about_the_rest(dars):
    code, printed, _ = dars("doctor")
    assert code == 0
    assert re.search(r"^ok +git +2", printed, re.MULTILINE)
    assert re.search(r"^missing Anthropic credentials .*\n +export ANTHROPIC_API_KEY", printed, re.MULTILINE)
