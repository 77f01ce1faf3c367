"""MutBench: mutations, tasks made of them, and outcomes that are the same in memory and in a real workspace."""

import ast
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from dars.aci import registry
from dars.bench.build import build
from dars.bench.execute import COMMAND, WORKSPACE, Worker
from dars.bench.memory import memory_environment
from dars.bench.mutations import mutate, mutations
from dars.bench.outcomes import (
    SUITE,
    Outcomes,
    Run,
    Table,
    dump_table,
    edits,
    imports_of,
    load_table,
    record,
    script_key,
)
from dars.bench.sdists import unpack
from dars.bench.snippet import snippet
from dars.bench.tasks import (
    SHIPPED,
    as_task,
    corpus,
    inject,
    junit_id,
    load_tasks,
    modules,
    package_of,
    read_package,
    save_tasks,
    without_tests,
    workspace,
)
from dars.bench.verify import verify
from dars.env.local import LocalEnvironment
from dars.env.sandbox import clean_environment, works
from dars.errors import TaskError

SOURCE = '''
import os
def f(a, *, b: int = 1, **k) -> int | None:
    """Doc 1."""
    if(a):
        return not a
    elif a is not None and b == 3:
        return a if b > 2 else -1
    for x in range(10):
        if (y := x): break
        else: continue
    return f"{a + 1:>10}" + str({**k}) + str(0x10)
class C:
    z = 3
    def m(self, t: 3 = 4):
        def inner(): return 1 // 2
        while not t: pass
        return True
'''
TESTS = """import math
from pkg.core import area, grow

SIDE = 3

def helper(n):
    return area(n, SIDE)

def test_area():
    big = helper(4)
    assert area(1, 1) == 1
    assert big == 12

@pytest.mark.parametrize("n", [1, 2])
def test_grow(n):
    assert grow(n) > n

class TestMath:
    def test_root(self):
        with pytest.raises(ValueError):
            math.sqrt(-1)
        self.assertEqual(area(2, 2), 4, "why")

    def test_own(self):
        assert self.side == 2

def test_fixture(tmp_path):
    assert area(1, 2) == 2
"""
needs_sandbox = pytest.mark.skipif(
    bool(works("bwrap")) and bool(works("unshare")), reason="commands cannot be closed in on this machine"
)


@pytest.fixture(autouse=True)
def _this_python(monkeypatch):
    """Commands say "python": it has to be the one that has pytest."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@pytest.fixture(scope="module")
def worker():
    with Worker() as found, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        found.script("package", {}, "")  # starts with this PATH
        yield found


@pytest.fixture(scope="module")
def tasks():
    return load_tasks()


@pytest.fixture(scope="module")
def table():
    return load_table()


def single(tasks):
    return next(task for task in tasks if len(task.faults) == 1)


def twofold(tasks):
    return next(task for task in tasks if len(task.faults) == 2)


# --- mutations --------------------------------------------------------------------------------------------------------


def test_one_parse_finds_what_the_library_finds_one_by_one():
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.operators.provider import OperatorProvider

    source = corpus("spans")["spans/sets.py"].decode()
    found = mutations(source)
    known = OperatorProvider()
    for operator in sorted({mutation.operator for mutation in found}):
        ours = [ast.dump(ast.parse(mutate(source, m))) for m in found if m.operator == operator]
        theirs = []
        while (code := mutate_code(source, known[operator](), len(theirs))) is not None:
            theirs.append(ast.dump(ast.parse(code)))
        assert sorted(ours) == sorted(theirs), operator


def test_mutations_are_distinct_ordered_and_valid_python():
    found = mutations(SOURCE)
    assert found == sorted(set(found), key=lambda m: (m.start, m.end, m.operator, m.replacement))
    assert mutations(SOURCE) == found
    for mutation in found:
        changed = mutate(SOURCE, mutation)
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(SOURCE))


def test_mutations_name_their_function_and_spare_annotations():
    found = mutations(SOURCE)
    assert {m.function for m in found} == {"f", "", "C.m", "C.m.inner"}
    assert all(SOURCE[: m.start].count("\n") + 1 == m.line for m in found)
    assert not any("|" in SOURCE[m.start : m.end] or "t: " in SOURCE[m.start - 3 : m.start] for m in found)


# --- tasks ------------------------------------------------------------------------------------------------------------


def test_hidden_tests_are_taken_out_and_nothing_else():
    source = TESTS.encode()
    left = without_tests({"t.py": source}, ["t.py::test_grow[1]", "t.py::TestMath::test_root", "t.py::test_area"])
    names = [node.name for node in ast.walk(ast.parse(left["t.py"])) if isinstance(node, ast.FunctionDef)]
    assert sorted(names) == ["helper", "test_fixture", "test_own"]
    assert b"parametrize" not in left["t.py"]
    empty = without_tests({"t.py": source}, ["t.py::TestMath::test_root", "t.py::TestMath::test_own"])
    assert b"class TestMath:\n    pass\n" in empty["t.py"]
    with pytest.raises(TaskError, match="inherited"):
        without_tests({"t.py": source}, ["t.py::TestMath::test_area"])


def test_snippet_holds_what_the_failing_statement_needs():
    found = snippet(TESTS, ["test_area"], TESTS[: TESTS.index("assert big")].count("\n") + 1, {}, "t.py")
    assert found.sides == ("big", "12")
    assert found.text == (
        "from pkg.core import area\n\nSIDE = 3\n\ndef helper(n):\n    return area(n, SIDE)\n\nbig = helper(4)\n"
        "assert big == 12\n"
    )


def test_snippet_of_a_parametrised_test_and_of_a_method():
    line = TESTS[: TESTS.index("assert grow")].count("\n") + 1
    found = snippet(TESTS, ["test_grow"], line, {"n": "2"}, "t.py")
    assert found.text == "from pkg.core import grow\n\nn = 2\nassert grow(n) > n\n"
    line = TESTS[: TESTS.index("self.assertEqual")].count("\n") + 1
    method = snippet(TESTS, ["TestMath", "test_root"], line, {}, "t.py")
    assert method.last == "assert area(2, 2) == 4"
    assert method.calls == ("area",)


def test_no_snippet_where_a_test_needs_a_fixture_or_itself():
    last = TESTS.count("\n")
    assert snippet(TESTS, ["test_fixture"], last, {}, "t.py") is None
    own = TESTS[: TESTS.index("assert self.side")].count("\n") + 1
    assert snippet(TESTS, ["TestMath", "test_own"], own, {}, "t.py") is None


def test_shipped_tasks_are_four_of_each_package_and_as_the_spec_wants(tasks):
    assert [task.package for task in tasks] == [name for name in SHIPPED for _ in range(4)]
    assert len({task.id for task in tasks}) == 24
    for task in tasks:
        assert 0.01 <= task.killed <= 0.30
        assert task.snippet in task.issue
        assert not set(task.hidden) & set(task.visible)
        assert not any(test.rpartition("::")[2] in task.issue for test in (*task.hidden, *task.visible))
        files = workspace(task, package_of(task))
        for test in task.hidden:
            assert f"def {test.rpartition('::')[2]}(".encode() not in files[test.partition("::")[0]]


@needs_sandbox
def test_script_of_a_shipped_task_fails_until_every_fault_is_mended(tasks, worker):
    for task in tasks:
        package = package_of(task)
        assert worker.script("package", package, task.snippet).code == 0
        for left in (task.faults, *([fault] for fault in task.faults)):
            assert worker.script("package", inject(package, left), task.snippet).code == 1


@needs_sandbox
def test_visible_tests_pass_at_first_and_mending_resolves(tasks, worker):
    task = twofold(tasks)
    outcomes = Outcomes(task, worker=worker)
    assert outcomes.suite(outcomes.base) == Run(0)
    assert outcomes.hidden(outcomes.base) == set(task.hidden)
    assert not outcomes.resolved(outcomes.base)
    clean = without_tests(outcomes.package, task.hidden)
    assert outcomes.resolved(clean)
    assert not outcomes.resolved(without_tests(inject(outcomes.package, task.faults[:1]), task.hidden))


@needs_sandbox
def test_same_seed_builds_the_same_tasks(tmp_path, worker):
    folder = tmp_path / "waygraph"
    for path, data in corpus("waygraph").items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    found = build(folder, 1, 3, double=0, most=12, worker=worker)
    assert found == build("waygraph", 1, 3, double=0, most=12, worker=worker)
    assert [len(task.faults) for task in found] == [1]
    save_tasks(found, tmp_path / "tasks.jsonl")
    assert load_tasks(tmp_path / "tasks.jsonl") == found


@needs_sandbox
def test_a_suite_that_fails_is_refused(tmp_path, worker):
    (tmp_path / "test_a.py").write_text("def test_a():\n    assert False\n")
    with pytest.raises(TaskError, match="does not pass: test_a::test_a"):
        build(tmp_path, 1, 0, worker=worker)


def test_workspace_on_disk_is_that_of_the_task(tmp_path, tasks):
    task = single(tasks)
    made = as_task(task, tmp_path / "w")
    assert read_package(tmp_path / "w") == workspace(task, package_of(task))
    assert (made.id, made.issue, made.test_command) == (task.id, task.issue, COMMAND)
    with pytest.raises(TaskError, match="not empty"):
        as_task(task, tmp_path / "w")


def test_what_is_wrong_with_a_file_of_tasks_is_said(tmp_path, tasks):
    bad = tmp_path / "tasks.jsonl"
    save_tasks([single(tasks)], bad)
    bad.write_text(bad.read_text() + '{"id": "x"}\n')
    with pytest.raises(TaskError, match="line 2: this is no task"):
        load_tasks(bad)
    with pytest.raises(TaskError, match="not the version"):
        package_of(replace(single(tasks), source_hash="0"))
    (tmp_path / "t.gz").write_bytes(b"none")
    with pytest.raises(TaskError, match="no table"):
        load_table(tmp_path / "t.gz")


# --- outcomes ---------------------------------------------------------------------------------------------------------


@needs_sandbox
def test_a_fork_reports_what_pytest_reports(tmp_path, tasks, worker):
    task = twofold(tasks)
    files = inject(package_of(task), task.faults)
    for path, data in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    done = subprocess.run(
        [sys.executable, *COMMAND.split()[1:]], cwd=tmp_path, capture_output=True, text=True,
        env=clean_environment(),  # as the worker has it: where CI is set, pytest does not cut its lines
    )  # fmt: skip
    ran = worker.suite("package", files)
    assert ran.code == done.returncode == 1
    assert ran.output.rpartition(" in ")[0] == done.stdout.rpartition(" in ")[0]


@needs_sandbox
@pytest.mark.parametrize(
    "script",
    [
        "print('é')\n1 / 0\n",
        "def f(n):\n    return f(n + 1)\n\nf(0)\n",
        "def f():\n    try:\n        1 / 0\n    except ZeroDivisionError:\n        raise ValueError('x')\n\nf()\n",
        "raise SystemExit('over')\n",
        "raise SystemExit(3)\n",
        "if True\n",
        "import sys\nprint(__name__, sys.argv, __file__)\n",
    ],
)
def test_a_fork_runs_scripts_as_python_does(tmp_path, worker, script):
    (tmp_path / "reproduce.py").write_text(script, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "reproduce.py"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={"PYTHONUNBUFFERED": "1", "LC_ALL": "C.UTF-8"}, text=True, encoding="utf-8",
    )  # fmt: skip
    ran = worker.script("package", {}, script)
    assert (ran.code, ran.output) == (done.returncode, done.stdout.replace(str(tmp_path), WORKSPACE))


@needs_sandbox
def test_what_has_no_end_is_stopped_and_the_next_run_goes_on(worker):
    ran = worker.script("package", {}, "print('begun')\nwhile True:\n    pass\n")
    assert ran.timed_out
    assert ran.output == "begun\n"
    assert worker.script("package", {}, "print(1)").output == "1\n"


def test_states_are_named_by_how_they_differ(tasks):
    outcomes = Outcomes(twofold(tasks))
    for path, _, content in list(edits(outcomes.base, modules(outcomes.base)))[::20]:
        files = {**outcomes.base, path: content}
        assert outcomes.files(outcomes.state(files)) == files
    path = modules(outcomes.base)[0]
    gone = {name: data for name, data in outcomes.base.items() if name != path}
    assert outcomes.files(outcomes.state(gone)) == gone
    new = {**outcomes.base, f"{outcomes.task.package}/new.py": b"x = 1\n"}
    assert outcomes.files(outcomes.state(new)) == new


def test_an_agents_own_files_make_no_other_state(tasks):
    outcomes = Outcomes(single(tasks))
    beside = {**outcomes.base, "reproduce.py": b"print(1)\n", ".dars-junit.xml": b"<x/>"}
    assert outcomes.state(beside) == outcomes.state(outcomes.base) == "{}"
    assert outcomes.state({**outcomes.base, "conftest.py": b""}) != "{}"


def test_shipped_table_knows_what_an_agent_sees_in_all_single_edits(tasks, table):
    for task in tasks[::5]:
        outcomes = Outcomes(task, table)
        for path, _, content in edits(outcomes.base, sorted({fault.path for fault in task.faults})):
            files = {**outcomes.base, path: content}
            outcomes.suite(files)
            outcomes.script(files, task.snippet)
            outcomes.script(files, imports_of(task.snippet))
            outcomes.resolved(files)
        assert outcomes.executed == 0


def test_every_shipped_task_can_be_resolved_by_its_space_of_edits(tasks, table):
    for task in tasks:
        outcomes = Outcomes(task, table)
        graded = [state for state, runs in outcomes.runs.items() if {"suite", "hidden"} <= runs.keys()]
        assert any(outcomes.resolved(outcomes.files(state)) for state in graded)
        assert outcomes.executed == 0


@needs_sandbox
def test_a_table_survives_writing_and_reading(tmp_path, tasks, worker):
    outcomes = Outcomes(single(tasks), worker=worker)
    path, _, content = next(edits(outcomes.base, modules(outcomes.base)))
    record(outcomes, [outcomes.base, {**outcomes.base, path: content}])
    outcomes.suite(outcomes.base, [outcomes.task.visible[0]])
    data = dump_table([outcomes], worker.versions)
    assert data == dump_table([outcomes], worker.versions)
    (tmp_path / "t.gz").write_bytes(data)
    read = load_table(tmp_path / "t.gz")
    assert read.versions == worker.versions
    assert read.runs[outcomes.task.id] == outcomes.runs
    with pytest.raises(TaskError, match="another task"):
        Outcomes(outcomes.task, Table(read.versions, read.runs, {outcomes.task.id: "0"}))


@needs_sandbox
def test_a_false_entry_is_found_and_true_ones_are_not(tasks, table):
    task = single(tasks)
    state = "{}"
    true = {key: table.runs[task.id][state][key] for key in (SUITE, script_key(task.snippet))}
    small = Table(table.versions, {task.id: {state: true}}, table.sources)
    assert verify([task], small) == []
    false = Table(table.versions, {task.id: {state: {**true, SUITE: Run(1)}}}, table.sources)
    assert [(found.state, found.what) for found in verify([task], false, real=False)] == [(state, SUITE)]


# --- memory -----------------------------------------------------------------------------------------------------------


def act(env, tools, actions):
    """What an agent sees, but for the time that it took."""
    state, seen = {}, []
    for name, arguments in actions:
        found = tools[name].run(env, arguments, state)
        seen.append((re.sub(r"wall time: [^)]*", "", found.text), found.exit_code, found.failed, found.volatile))
    return seen, {path: env.read_file(path) for path in env.list_files()}


@needs_sandbox
def test_an_agent_sees_the_same_in_memory_and_in_a_real_workspace(tmp_path, tasks, table):
    task = twofold(tasks)
    folder = tmp_path / "w"
    made = as_task(task, folder)
    outcomes = Outcomes(task, table)
    path, _, content = next(
        (path, function, content)
        for path, function, content in edits(outcomes.base, modules(outcomes.base))
        if outcomes.suite({**outcomes.base, path: content}).bad
    )
    old, new = outcomes.base[path].decode(), content.decode()
    selection = {"selection": f"{task.visible[0]} {task.visible[1]}"}
    actions = [
        ("search_dir", {"query": "def ", "glob": "*.py"}),
        ("bash", {"command": "python reproduce.py"}),
        ("create", {"path": "reproduce.py", "content": imports_of(task.snippet)}),
        ("bash", {"command": "python reproduce.py"}),
        ("append", {"path": "reproduce.py", "content": task.snippet[len(imports_of(task.snippet)) :]}),
        ("bash", {"command": "python reproduce.py"}),
        ("run_tests", {}),
        ("edit", {"path": path, "old": old, "new": new}),
        ("bash", {"command": "python reproduce.py"}),
        ("run_tests", {}),
        ("run_tests", selection),
        ("undo_edit", {"path": path}),
        ("run_tests", {}),
        ("submit", {}),
    ]
    tools = registry(test_command=made.test_command)
    in_memory = act(memory_environment(task, outcomes, folder), tools, actions)
    with LocalEnvironment(folder) as env:
        real = act(env, tools, actions)
    for (action, _), ours, theirs in zip(actions, in_memory[0], real[0], strict=True):
        assert ours == theirs, action
    assert in_memory[1] == real[1]
    outcomes.close()


def test_a_command_that_memory_does_not_know_is_not_found(tasks, table):
    env = memory_environment(single(tasks), Outcomes(single(tasks), table))
    assert env.exec("ls -l").returncode == 127
    assert env.exec(["pwd"]).output == "/workspace\n"
    with pytest.raises(TaskError, match="outcomes of"):
        memory_environment(twofold(tasks), Outcomes(single(tasks)))


def test_a_clone_in_memory_answers_too(tasks, table):
    env = memory_environment(single(tasks), Outcomes(single(tasks), table))
    before = env.snapshot()
    twin = env.clone()
    twin.write_file("reproduce.py", single(tasks).snippet.encode())
    assert twin.exec("python reproduce.py").returncode == 1
    twin.restore(before)
    assert twin.list_files() == env.list_files()


# --- PyPI -------------------------------------------------------------------------------------------------------------


def archive(names):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 1
            tar.addfile(member, io.BytesIO(b"x"))
        link = tarfile.TarInfo("a-1/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return out.getvalue()


def test_archives_are_unpacked_flat_and_without_links(tmp_path):
    data = archive(["a-1/setup.py", "a-1/src/a/__init__.py", "a-1/tests/t.py"])
    unpack(data, hashlib.sha256(data).hexdigest(), tmp_path)
    assert sorted(read_package(tmp_path)) == ["a/__init__.py", "setup.py", "tests/t.py"]
    assert not os.path.lexists(tmp_path / "link")


@pytest.mark.parametrize("name", ["a-1/../../evil", "/evil", "a-1/x/../../../evil"])
def test_archives_that_lead_outside_are_refused(tmp_path, name):
    data = archive([name])
    with pytest.raises(TaskError, match="leads outside"):
        unpack(data, hashlib.sha256(data).hexdigest(), tmp_path / "in")
    assert not (tmp_path / "evil").exists()


def test_an_archive_with_another_hash_is_refused(tmp_path):
    with pytest.raises(TaskError, match="sha256"):
        unpack(archive(["a-1/x"]), "0" * 64, tmp_path)


def test_names_in_reports():
    assert junit_id("tests/test_a.py::Case::test_b[x/y.py::1]") == "tests.test_a.Case::test_b[x/y.py::1]"
    assert json.loads(json.dumps(junit_id("test_a.py::test_b"))) == "test_a::test_b"
