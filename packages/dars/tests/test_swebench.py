"""SWE-bench: rows, runs that are cut off and go on, the official grading, and histories without a future."""

import json
import random
import stat
import subprocess
import sys
import threading

import pytest

from dars.env.base import ExecResult
from dars.env.memory import MemoryEnvironment
from dars.errors import EnvError, TaskError
from dars.interop import read_predictions, write_predictions
from dars.swebench import (
    RunSummary,
    candidate_predictions,
    evaluate,
    grade,
    prepare_container,
    read_instances,
    report,
    run_instances,
    shard,
)

ROWS = [{"instance_id": f"a__b-{i}", "problem_statement": f"issue {i}", "base_commit": "c0"} for i in range(5)]


def solve(task, folder):
    assert folder.is_dir()
    number = int(task.id[-1])
    if number == 3:
        raise ValueError("no luck")
    return RunSummary(f"patch {number}", ("other",) * (number == 1), "done", steps=number, calls=2, cost_usd=0.25)


def predictions(out):
    return {row["instance_id"]: row["model_patch"] for row in read_predictions(out / "predictions.jsonl")}


# --- rows -------------------------------------------------------------------------------------------------------------


def test_rows_are_the_same_from_every_format(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS) + "\n")
    (tmp_path / "b.json").write_text(json.dumps(ROWS))
    (tmp_path / "c.json").write_text(json.dumps({row["instance_id"]: row for row in ROWS}))
    for name in ("a.jsonl", "b.json", "c.json"):
        assert read_instances(tmp_path / name) == ROWS


def test_rows_that_no_task_can_be_made_of_are_named(tmp_path):
    for field, value in (("problem_statement", " "), ("FAIL_TO_PASS", "no list")):
        (tmp_path / "a.json").write_text(json.dumps([*ROWS[:2], {**ROWS[2], field: value}]))
        with pytest.raises(TaskError, match=rf"a\.json, row 3: the row a__b-2: {field}"):
            read_instances(tmp_path / "a.json")


def test_parquet_holds_the_same_rows(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert read_instances(tmp_path / "a.parquet") == ROWS
    (tmp_path / "b.parquet").write_text("nothing")
    with pytest.raises(TaskError, match=r"b\.parquet is no parquet file"):
        read_instances(tmp_path / "b.parquet")


def test_hub_is_asked_for_the_official_name_and_the_split(monkeypatch):
    asked = []

    class Hub:
        @staticmethod
        def load_dataset(name, split):
            asked.append((name, split))
            if split == "dev":
                raise ValueError("no such split")
            return ROWS

    monkeypatch.setitem(sys.modules, "datasets", Hub)
    assert read_instances("lite") == read_instances("someone/set", "train") == ROWS
    assert asked == [("SWE-bench/SWE-bench_Lite", "test"), ("someone/set", "train")]
    with pytest.raises(TaskError, match="cannot load the split dev of x: no such split"):
        read_instances("x", "dev")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TaskError, match=r"dars-agent\[swebench\]"):
        read_instances("lite")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1', "line 1: no JSON"), ("", "holds no instances"), ('{"instance_id": "../x"}', "row 1: instance_id"),
        ('{"x": 1}', "row 1: instance_id"), ("3", "row 1"), ('{"instance_id": ".."}', "row 1"),
        ('{"instance_id": "a"}\n{"instance_id": "a"}', "row 2: a was there before"),
    ],
)  # fmt: skip
def test_bad_rows_are_named(tmp_path, text, message):
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(TaskError, match=rf"x\.jsonl.*{message}"):
        read_instances(tmp_path / "x.jsonl")
    with pytest.raises(TaskError, match="cannot read"):
        read_instances(tmp_path / "none.jsonl")


def test_shards_are_a_partition():
    for n in (1, 2, 3, 7):
        parts = [shard(ROWS, i, n) for i in range(n)]
        assert sorted(row["instance_id"] for part in parts for row in part) == [row["instance_id"] for row in ROWS]
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for i, n in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(TaskError, match="counted from 0"):
            shard(ROWS, i, n)


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_failing_instance_costs_only_itself_and_is_tried_again(tmp_path):
    seen = []
    totals = run_instances(ROWS, solve, tmp_path, "dars", workers=2, on_progress=seen.append)
    assert sorted(totals.done) == [f"a__b-{i}" for i in (0, 1, 2, 4)]
    assert totals.failed == {"a__b-3": "ValueError: no luck"}
    assert "no luck" in json.loads((tmp_path / "a__b-3/error.json").read_text())["traceback"]
    assert predictions(tmp_path) == {f"a__b-{i}": f"patch {i}" for i in (0, 1, 2, 4)}
    assert [event["number"] for event in seen] == [1, 2, 3, 4, 5]
    assert [event["error"] for event in seen if "error" in event] == ["ValueError: no luck"]
    tried = []
    again = run_instances(ROWS, lambda task, folder: tried.append(task.id) or RunSummary("mended"), tmp_path, "dars")
    assert tried == ["a__b-3"]
    assert (again.done, len(again.skipped), again.failed) == (("a__b-3",), 4, {})
    assert predictions(tmp_path)["a__b-3"] == "mended"
    assert not (tmp_path / "a__b-3/error.json").exists()


def test_a_row_without_an_issue_and_an_answer_of_another_type_are_failures_of_their_instances(tmp_path):
    rows = [{"instance_id": "x"}, {**ROWS[0], "instance_id": "y"}, ROWS[1]]
    totals = run_instances(rows, lambda task, folder: None if task.id == "y" else RunSummary("p"), tmp_path, "dars")
    assert totals.done == ("a__b-1",)
    assert "problem_statement" in totals.failed["x"]
    assert totals.failed["y"].startswith("TypeError")


@pytest.mark.parametrize("kept", [0, 1, 30, 10**6])
def test_predictions_are_whole_again_after_a_cut_at_any_byte(tmp_path, kept):
    run_instances(ROWS[:3], solve, tmp_path, "dars")
    whole = predictions(tmp_path)
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(path.read_bytes()[:-1][:kept])  # the last line is torn at least
    assert len(run_instances(ROWS[:3], solve, tmp_path, "dars").skipped) == 3
    assert predictions(tmp_path) == whole
    assert path.read_bytes().count(b"\n") == 3


def test_shards_that_share_a_folder_lose_no_line(tmp_path):
    rows = [{"instance_id": f"r-{i}", "problem_statement": "x"} for i in range(40)]

    def run(i):
        run_instances(rows, lambda task, folder: RunSummary("p" * 500), tmp_path, "dars", 3, (i, 4))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert predictions(tmp_path) == {row["instance_id"]: "p" * 500 for row in rows}


def test_an_interrupted_run_begins_nothing_new(tmp_path):
    begun, released = [], threading.Event()

    def slow(task, folder):
        begun.append(task.id)
        if len(begun) > 1:
            released.wait(10)
        return RunSummary("p")

    def stop(event):
        threading.Timer(0.2, released.set).start()  # the second one is running then, and ends
        raise KeyboardInterrupt

    rows = [{"instance_id": f"r-{i}", "problem_statement": "x"} for i in range(20)]
    with pytest.raises(KeyboardInterrupt):
        run_instances(rows, slow, tmp_path, "dars", on_progress=stop)
    assert len(begun) <= 2
    assert len(run_instances(rows[:1], slow, tmp_path, "dars").skipped) == 1


def test_results_of_another_model_and_wrong_arguments_are_refused(tmp_path):
    run_instances(ROWS[:1], solve, tmp_path, "dars")
    with pytest.raises(TaskError, match="a result of 'dars': use a new folder for 'other'"):
        run_instances(ROWS[:1], solve, tmp_path, "other")
    with pytest.raises(TaskError, match="at least one worker"):
        run_instances(ROWS, solve, tmp_path, "dars", workers=0)
    with pytest.raises(TaskError, match="there are threads, ray"):
        run_instances(ROWS, solve, tmp_path, "dars", executor="processes")
    (tmp_path / "a__b-0/result.json").write_text("{")
    with pytest.raises(TaskError, match=r"result\.json is damaged"):
        run_instances(ROWS[:1], solve, tmp_path, "dars")


def test_ray_gives_the_same_predictions(tmp_path):
    ray = pytest.importorskip("ray")
    run_instances(ROWS, solve, tmp_path / "ray", "dars", workers=2, executor="ray")
    ray.shutdown()
    run_instances(ROWS, solve, tmp_path / "threads", "dars")
    assert predictions(tmp_path / "ray") == predictions(tmp_path / "threads")


# --- grading ----------------------------------------------------------------------------------------------------------

STATUSES = ("PASSED", "FAILED", "SKIPPED", "ERROR", "XFAIL", "XPASS")
NAMES = ["t::a", "t::b[1]", "t::b[2]", "t::c[x-1]", "t::c[x-2]", "t::d", "t::c[x", "t::c[", "t::e[log(x", "d"]


def test_verdicts_are_those_of_the_official_harness_on_random_outcomes():
    official = pytest.importorskip("swebench.harness.grading")
    rng = random.Random(0)
    names = {"RESOLVED_FULL": "resolved", "RESOLVED_PARTIAL": "partial", "RESOLVED_NO": "no"}
    seen = set()
    for _ in range(20_000):
        weights = [rng.choice([1, 8]), *(rng.choice([0, 0, 1]) for _ in STATUSES[1:])]
        outcomes = {n: rng.choices(STATUSES, weights)[0] for n in rng.sample(NAMES[:6], rng.randint(0, 6))}
        repaired, kept = (rng.sample(NAMES, rng.randint(0, 4)) for _ in range(2))
        tests = official.get_eval_tests_report(outcomes, {"FAIL_TO_PASS": repaired, "PASS_TO_PASS": kept})
        expected = names[official.get_resolution_status(tests)]
        assert grade(repaired, kept, outcomes) == expected
        seen.add(expected)
    assert seen == set(names.values())


@pytest.mark.parametrize(
    ("repaired", "kept", "outcomes", "verdict"),
    [
        ("ab", "c", "PPP", "resolved"), ("ab", "c", "PFP", "partial"), ("ab", "c", "FFP", "no"),
        ("ab", "c", "PPF", "no"),
        ("a", "bc", "PSX", "resolved"), ("a", "b", "SP", "no"), ("a", "bc", "PE", "no"), ("ax", "b", "PP", "partial"),
        ("", "", "", "resolved"), ("a", "", "X", "resolved"), ("a", "x", "P", "no"),
    ],
)  # fmt: skip
def test_verdict_by_hand(repaired, kept, outcomes, verdict):
    words = {"P": "PASSED", "F": "FAILED", "S": "SKIPPED", "E": "ERROR", "X": "XFAIL"}
    status_map = {test: words[letter] for test, letter in zip("abc", outcomes, strict=False)}
    assert grade(repaired, kept, status_map) == verdict


HARNESS = """#!{python}
import json, pathlib, sys
args = sys.argv[1:]
pathlib.Path("called.json").write_text(json.dumps(args))
rows = [json.loads(line) for line in open(args[args.index("-p") + 1])]
if args[1] == "broken":
    sys.exit("no docker here")
ids = [row["instance_id"] for row in rows]
good = [row["instance_id"] for row in rows if row["model_patch"] in ("patch 0", "other")]
name = rows[0]["model_name_or_path"].replace("/", "__") + "." + args[args.index("--run-id") + 1] + ".json"
folder = pathlib.Path(args[args.index("--report-dir") + 1])
(folder / name).write_text(json.dumps({{"submitted_ids": ids, "resolved_ids": good}}))
"""


@pytest.fixture
def harness(tmp_path, monkeypatch):
    """A program in the place of the official one: it resolves two patches."""
    program = tmp_path / "bin" / "swebench"
    program.parent.mkdir()
    program.write_text(HARNESS.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(program.parent / "python"))
    return program


def test_harness_is_called_as_its_command_line_says(tmp_path, harness):
    out = tmp_path / "run"
    run_instances(ROWS, solve, out, "org/dars")
    path = evaluate(out / "predictions.jsonl", "verified", "r1", workers=3)
    assert path == out / "evaluation" / "org__dars.r1.json"
    assert json.loads((out / "evaluation/called.json").read_text()) == [
        "eval", "verified", "-p", str(out / "predictions.jsonl"), "--run-id", "r1", "-j", "3", "--split", "test",
        "--report-dir", str(out / "evaluation"),
    ]  # fmt: skip
    with pytest.raises(EnvError, match=r"exit code 1.*no docker here"):
        evaluate(out / "predictions.jsonl", "broken", "r2")
    write_predictions([], tmp_path / "empty.jsonl")
    with pytest.raises(TaskError, match="holds no predictions"):
        evaluate(tmp_path / "empty.jsonl", "verified", "r3")


def test_missing_harness_is_named_with_its_extra(tmp_path, monkeypatch):
    write_predictions([{"instance_id": "a", "model_name_or_path": "m", "model_patch": ""}], tmp_path / "p.jsonl")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(TaskError, match=r"dars-agent\[swebench\]"):
        evaluate(tmp_path / "p.jsonl", "verified", "r")


def test_report_tells_resolved_from_resolved_by_any_candidate(tmp_path, harness):
    out = tmp_path / "run"
    run_instances(ROWS, solve, out, "dars")
    before = report(out)
    assert (before.summary["resolved"], before.summary["instances"], before.summary["failed"]) == (None, 5, 1)
    evaluate(out / "predictions.jsonl", "verified", "r1")
    half = report(out)
    rows = {row["instance_id"]: (row["resolved"], row["resolved_any"]) for row in half.rows}
    assert rows["a__b-0"] == (True, True)
    assert rows["a__b-1"] == (False, None)  # its other candidate is not graded yet
    assert half.summary["resolved_any"] is None
    (further,) = candidate_predictions(out)
    assert [row["model_patch"] for row in read_predictions(further)] == ["other"]
    evaluate(further, "verified", "r1")
    whole = report(out)
    assert whole.summary == {
        "instances": 5, "failed": 1, "resolved": 1, "resolved_any": 2, "cost_usd": 1.0, "cost_per_resolved": 1.0,
    }  # fmt: skip
    assert "| a__b-1 | no | yes | 1 | 2 | 0.25 | done |" in whole.table()
    assert "ValueError: no luck" in whole.table()
    evaluate(out / "predictions.jsonl", "verified", "r2")
    with pytest.raises(TaskError, match="several evaluations of dars"):
        report(out)
    assert report(out, "r1") == whole
    with pytest.raises(TaskError, match="no results"):
        report(tmp_path / "bin")


# --- histories --------------------------------------------------------------------------------------------------------


class Here(MemoryEnvironment):
    """Commands in a folder of this machine."""

    def __init__(self, folder):
        super().__init__({})
        self.folder = folder

    def exec(self, cmd, timeout=None, stdin=None):
        done = subprocess.run(["sh", "-c", cmd], cwd=self.folder, capture_output=True, text=True, check=False)
        return ExecResult(done.returncode, done.stdout + done.stderr)


def git(folder, *args):
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *who, *args], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def commit(folder, text):
    (folder / "a.py").write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", text)
    return git(folder, "rev-parse", "HEAD")


@pytest.mark.parametrize("detached", [False, True])
def test_future_commits_are_gone_and_the_past_stays(tmp_path, detached):
    origin, work = tmp_path / "origin", tmp_path / "work"
    origin.mkdir()
    git(origin, "init", "-q", "-b", "main")
    base = commit(origin, "x = 1\n")
    now = commit(origin, "x = 2\n")
    git(origin, "tag", "-am", "old release", "v1", base)
    future = [commit(origin, f"fix = {i}\n") for i in range(3)]
    git(origin, "tag", "-am", "release", "v2")
    git(origin, "branch", "a-branch")
    git(tmp_path, "clone", "-q", str(origin), "work")
    git(work, "checkout", "-q", now) if detached else git(work, "reset", "-q", "--hard", now)
    (work / "a.py").write_text("x = 3\n")
    git(work, "stash")
    stashed = git(work, "rev-parse", "stash")
    (work / "a.py").write_text("x = 4\n")  # an uncommitted change stays
    blob = git(work, "rev-parse", f"{future[-1]}:a.py")
    for name in (*future, stashed, blob):
        assert git(work, "cat-file", "-t", name)
    prepare_container(Here(work))
    for name in (*future, stashed, blob):
        with pytest.raises(subprocess.CalledProcessError):
            git(work, "cat-file", "-t", name)
    assert git(work, "rev-list", "HEAD").split() == [now, base]
    assert git(work, "for-each-ref", "--format=%(refname)") == ("" if detached else "refs/heads/main")
    assert git(work, "remote") == git(work, "tag") == git(work, "reflog") == git(work, "stash", "list") == ""
    assert (work / "a.py").read_text() == "x = 4\n"
    assert git(work, "status", "--porcelain") == "M a.py"
    text = b"".join(p.read_bytes() for p in (work / ".git").rglob("*") if p.is_file() and "objects" not in p.parts)
    assert not any(name.encode() in text for name in future)
    prepare_container(Here(work))  # again: nothing is left to do


def test_a_folder_without_a_history_is_an_error(tmp_path):
    with pytest.raises(EnvError, match=r"cannot clean the history|still holds"):
        prepare_container(Here(tmp_path))
