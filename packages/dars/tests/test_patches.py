"""Patches: what stays and what goes, by a table and on random patches; what git itself makes; which are the same."""

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dars.env.memory import MemoryEnvironment
from dars.errors import TaskError
from dars.patches import changes, clean_patch, deduplicate, is_test, normalised
from dars.task import Task

BASE = {
    "setup.py": "setup()\n",
    "contest.py": "x = 1\n",
    "src/pkg/__init__.py": "",
    "src/pkg/core.py": "def f():\n    return 1\n",
    "src/pkg/sub/__init__.py": "",
    "src/pkg/sub/deep.py": "y = 1\n",
    "tests/test_core.py": "def test(): pass\n",
    "docs/index.md": "text\n",
    "web/app.js": "run()\n",
}


def diff_with(files, gone=()):
    env = MemoryEnvironment(BASE)
    for path, text in files.items():
        env.write_file(path, text if isinstance(text, bytes) else text.encode())
    for path in gone:
        env.remove_file(path)
    return env.diff()


CORE = "src/pkg/core.py"
TABLE = {
    "source stays": ({CORE: "def f():\n    return 2\n"}, {CORE}),
    "contest.py is no test": ({"contest.py": "x = 2\n"}, {"contest.py"}),
    "reproduction goes": ({"reproduce.py": "from pkg.core import f\n", CORE: "a\n"}, {CORE}),
    "a word is no reference": ({"src/pkg/reproduce.py": "f()\n", CORE: "# reproduce it\nreproduce = 1\n"}, {CORE}),
    "log goes": ({"out.log": "x\n", CORE: "a\n"}, {CORE}),
    "tests go": ({"tests/test_core.py": "a\n", "src/pkg/conftest.py": "a\n", "src/pkg/a_test.py": "a\n"}, set()),
    "imported module stays": ({CORE: "from pkg.new import g\n", "src/pkg/new.py": "g = 1\n"}, {CORE, "src/pkg/new.py"}),
    "relatively imported module stays": (
        {"src/pkg/sub/deep.py": "from ..new import (\n    g,  # why\n    h,\n)\n", "src/pkg/new.py": "g = 1\n"},
        {"src/pkg/sub/deep.py", "src/pkg/new.py"},
    ),
    "sibling named after from . import stays": (
        {CORE: "from . import (\n    sub,\n    new,\n)\n", "src/pkg/new.py": "g = 1\n"},
        {CORE, "src/pkg/new.py"},
    ),
    "chain of new modules stays": (
        {CORE: "import pkg.one\n", "src/pkg/one.py": "from .two import x\n", "src/pkg/two.py": "x = 1\n"},
        {CORE, "src/pkg/one.py", "src/pkg/two.py"},
    ),
    "chain from nowhere goes": ({"run.py": "import pkg.one\n", "src/pkg/one.py": "x\n", CORE: "a\n"}, {CORE}),
    "new package stays whole": (
        {CORE: "from pkg.fresh.mod import x\n", "src/pkg/fresh/__init__.py": "", "src/pkg/fresh/mod.py": "x = 1\n"},
        {CORE, "src/pkg/fresh/__init__.py", "src/pkg/fresh/mod.py"},
    ),
    "same last name elsewhere goes": ({CORE: "import json\n", "src/pkg/json.py": "x = 1\n"}, {CORE}),
    "entry point stays": ({"setup.py": "'pkg.cli:main'\n", "src/pkg/cli.py": "a\n"}, {"setup.py", "src/pkg/cli.py"}),
    "data named by the source stays": (
        {CORE: "open('data/table.csv')\n", "src/pkg/data/table.csv": "1\n", "src/pkg/data/table.csv.bak": "1\n"},
        {CORE, "src/pkg/data/table.csv"},
    ),
    "script outside the source goes": ({CORE: "import scratch.x\n", "scratch/x.py": "a\n"}, {CORE}),
    "new test goes though imported": ({CORE: "import pkg.test_x\n", "src/pkg/test_x.py": "a\n"}, {CORE}),
    "other languages": (
        {"web/app.js": 'import x from "./helper"\n', "web/helper.js": "x\n", "web/scratch.js": "y\n"},
        {"web/app.js", "web/helper.js"},
    ),
    "binary without content goes": ({CORE: b"\xff\0"}, set()),
    "empty patch": ({}, set()),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
def test_cleaning_keeps_what_belongs_to_the_answer(case):
    written, wanted = TABLE[case]
    patch = diff_with(written)
    result = clean_patch(patch, BASE)
    assert {change.path for change in changes(result.patch)} == wanted
    assert {path for path, _ in result.dropped} == set(written) - wanted
    assert all(reason for _, reason in result.dropped)
    sections = [change.section for change in changes(patch) if change.path in wanted]
    assert result.patch == "".join(sections)  # verbatim


def test_file_that_was_moved_is_kept_at_its_new_place():
    """A diff without detection of renames says deleted and new."""
    section = "diff --git a/{0} b/{0}\n{1} file mode 100644\nindex 1..2\n--- {2}\n+++ {3}\n@@ {4} @@\n{5}x\n{5}y\n"
    gone = section.format("pkg/a.html", "deleted", "a/pkg/a.html", "/dev/null", "-1,2 +0,0", "-")
    there = section.format("pkg/b.html", "new", "/dev/null", "b/pkg/b.html", "-0,0 +1,2", "+")
    other = there.replace("b.html", "c.html").replace("+y", "+z")
    assert clean_patch(gone + there + other, ["pkg/a.html"]).patch == gone + there
    assert clean_patch(there, ["pkg/a.html"]).patch == ""


def test_deleted_sources_stay_and_files_named_as_created_count_as_new():
    patch = diff_with({}, gone=["src/pkg/sub/deep.py"])
    assert clean_patch(patch, BASE).patch == patch
    changed = diff_with({"setup.py": "x\n"})
    assert clean_patch(changed, BASE, created=["setup.py"]).dropped[0][0] == "setup.py"


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("contest.py", False), ("latest/a.py", False), ("testing/a.py", False), ("pkg/attest.py", False),
        ("protest_a.py", False), ("test_a.txt", False), ("tests.py", False),
        ("tests/a.py", True), ("pkg/test/data.bin", True), ("test_a.py", True), ("a/b_test.py", True),
        ("a/conftest.py", True),
    ],
)  # fmt: skip
def test_tests_are_known_by_path_components(path, answer):
    assert is_test(path) is answer


def git(*words, cwd):
    done = subprocess.run(["git", *words], cwd=cwd, capture_output=True, check=True)
    return done.stdout.decode("utf-8", "surrogateescape")


def test_what_is_kept_of_gits_own_patch_applies_with_renames_binaries_modes_and_odd_names(tmp_path):
    root = tmp_path / "repo"
    (root / "pkg").mkdir(parents=True)
    names = {
        "pkg/__init__.py": b"", "pkg/old.py": b"a = 1\nb = 2\nc = 3\n", "pkg/logo.png": bytes(range(256)),
        "run.sh": b"true\n", "pkg/with space.py": b"x\n", "pkg/\xc3\xbc\"q.py".encode("latin1").decode(): b"x\n",
        "crlf.txt": b"a\r\nb\r\n",
    }  # fmt: skip
    for name, data in names.items():
        (root / name).write_bytes(data)
    git("init", "-q", ".", cwd=root)
    git("add", "-A", cwd=root)
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "Base", cwd=root)
    (root / "pkg/old.py").rename(root / "pkg/fresh.py")
    (root / "pkg/fresh.py").write_bytes(b"a = 1\nb = 2\nc = 4\n")
    (root / "pkg/logo.png").write_bytes(bytes(range(255, -1, -1)))
    (root / "run.sh").chmod(0o755)
    (root / "pkg/with space.py").write_bytes(b"y")
    (root / 'pkg/ü"q.py').write_bytes(b"--- a\n+++ b\n")
    (root / "crlf.txt").write_bytes(b"a\r\nc\r\n")
    (root / "scratch.bin").write_bytes(b"\0\1\2")
    (root / "reproduce.py").write_text("import pkg\n")
    git("add", "-A", cwd=root)
    patch = git("diff", "--cached", "--binary", "-M", cwd=root)
    result = clean_patch(patch, names)
    assert [path for path, _ in result.dropped] == ["reproduce.py", "scratch.bin"]
    assert {change.path for change in changes(result.patch)} == {
        "crlf.txt", "pkg/fresh.py", "pkg/logo.png", "pkg/with space.py", "pkg/ü\"q.py", "run.sh",
    }  # fmt: skip
    git("reset", "-q", "--hard", cwd=root)
    (tmp_path / "clean.diff").write_bytes(result.patch.encode("utf-8", "surrogateescape"))
    git("apply", "--index", str(tmp_path / "clean.diff"), cwd=root)
    assert git("diff", "--cached", "--binary", "-M", cwd=root) == result.patch


PATHS = (*BASE, "new.py", "src/pkg/new.py", "src/pkg/sub/other.py", "src/pkg/fresh/__init__.py", "src/pkg/fresh/mod.py",
         "src/pkg/data.json", "reproduce.py", "out.log")  # fmt: skip
LINES = st.sampled_from(
    ("import pkg.new", "from .new import x", "from pkg.fresh import mod", "from . import fresh", "import new",
     "open('data.json')", "from ..sub import other", "x = 1", "'pkg.new:f'")
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.sampled_from(PATHS), st.lists(LINES, max_size=3), max_size=6))
def test_cleaning_is_idempotent_and_splits_the_patch(files):
    patch = diff_with({path: "".join(f"{line}\n" for line in lines) for path, lines in files.items()})
    once = clean_patch(patch, BASE)
    twice = clean_patch(once.patch, BASE)
    assert twice == (once.patch, [])
    kept = {change.path for change in changes(once.patch)}
    gone = {path for path, _ in once.dropped}
    assert kept | gone == {change.path for change in changes(patch)}
    assert not kept & gone


def test_malformed_patches_are_refused():
    with pytest.raises(ValueError, match="no unified diff"):
        clean_patch("--- a/x\n+++ b/x\n@@ -1,3 +1,1 @@\n-a\n", ["x"])


def test_equal_patches_keep_the_shortest_trajectory_and_their_number():
    one = diff_with({CORE: "def f():\n    return 2\n", "setup.py": "x\n"})
    moved = one.replace("@@ -1,2 +1,2 @@", "@@ -8,2 +8,2 @@ class A:")
    moved = moved.replace("--- a/setup", "index 12..34\n--- a/setup")
    turned = "".join(change.section for change in reversed(changes(one)))
    other = diff_with({CORE: "def f():\n    return 3\n"})
    assert normalised(one) == normalised(moved) == normalised(turned) != normalised(other)
    assert deduplicate([(one, 9), (other, 2), (moved, 5), (turned, 5)]) == [(1, 1), (2, 3)]
    assert deduplicate([]) == []


# --- tasks ------------------------------------------------------------------------------------------------------------

ROW = {
    "instance_id": "Owner__repo-12", "repo": "owner/repo", "base_commit": "abc", "problem_statement": "It fails.",
    "FAIL_TO_PASS": '["a::b"]', "PASS_TO_PASS": ["c::d"],
}  # fmt: skip


def test_a_row_of_swebench_becomes_a_task_whose_tests_are_hidden():
    task = Task.from_swebench(ROW)
    assert (task.id, task.issue, task.base_commit, task.repo) == ("Owner__repo-12", "It fails.", "abc", None)
    assert task.image == "swebench/sweb.eval.x86_64.owner_1776_repo-12:latest"
    assert task.hidden_tests == ("a::b", "c::d")
    assert task.visible_tests == ()


def test_malformed_tasks_are_refused_with_what_is_wrong(tmp_path):
    for make, message in (
        (lambda: Task(tmp_path, " \n"), "issue is empty"),
        (lambda: Task(tmp_path / "nowhere", "x"), "is no folder"),
        (lambda: Task(None, "x"), "neither a repository nor an image"),
        (lambda: Task(tmp_path, "x", visible_tests="test"), "list of tests"),
        (lambda: Task(tmp_path, "x", visible_tests=["a"], hidden_tests=["a"]), "both a visible and a hidden"),
        (lambda: Task.from_swebench({}), "instance_id"),
        (lambda: Task.from_swebench({**ROW, "problem_statement": ""}), "Owner__repo-12: problem_statement"),
        (lambda: Task.from_swebench({**ROW, "FAIL_TO_PASS": "a::b"}), "FAIL_TO_PASS is no JSON"),
        (lambda: Task.from_swebench({**ROW, "PASS_TO_PASS": [1]}), "PASS_TO_PASS has to be"),
    ):
        with pytest.raises(TaskError, match=message):
            make()
    assert Task(str(tmp_path), "x").repo == tmp_path
