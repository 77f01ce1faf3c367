"""Applying patches: in memory and with git the same files come out."""

import os
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dars.env import LocalEnvironment, MemoryEnvironment
from dars.errors import EnvError
from dars.patches import changes

GIT = {"PATH": os.defpath, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "HOME": os.devnull}
LINES = st.sampled_from(
    ["a\n", "b\n", "\n", "c\r\n", "x\x0cy\n", "  d\n", "-- e\n", "+++ f\n", "é\u2028ß\n", "@@ -1 +1 @@\n"]
)
TEXTS = st.tuples(st.lists(LINES, max_size=14), st.sampled_from(["", "", "end"])).map(lambda t: "".join(t[0]) + t[1])
NAMES = st.sampled_from(["a.py", "pkg/b.py", "pkg/deep/c d.txt", "é.py", 'q"uote', "tab\there"])
FILES = st.dictionaries(NAMES, TEXTS, max_size=4)


def git(*args, cwd, **kwargs):
    return subprocess.run(["git", *args], cwd=cwd, env=GIT, capture_output=True, check=False, **kwargs)


def write(root, files):
    for path, text in files.items():
        there = root / path
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(text.encode())


def read(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def contents(env):
    return {path: env.read_file(path) for path in env.list_files()}


@st.composite
def edits(draw):
    """Files, and the same after some lines were changed, files added, deleted and moved."""
    before = draw(FILES)
    after = dict(before)
    for path in list(after):
        what = draw(st.sampled_from(["keep", "lines", "lines", "replace", "delete", "move"]))
        if what == "lines":
            lines = after[path].split("\n")
            for _ in range(draw(st.integers(1, 3))):
                at = draw(st.integers(0, len(lines) - 1))
                lines[at : at + draw(st.integers(0, 2))] = draw(st.lists(st.sampled_from(["new", "", "b"]), max_size=2))
                lines = lines or [""]
            after[path] = "\n".join(lines)
        elif what == "replace":
            after[path] = draw(TEXTS)
        elif what == "delete":
            del after[path]
        elif what == "move":
            after["moved/" + path] = after.pop(path)
    for path, text in draw(st.dictionaries(st.sampled_from(["new.py", "pkg/new.txt"]), TEXTS, max_size=2)).items():
        after.setdefault(path, text)
    return before, after


@settings(max_examples=60, deadline=None)
@given(edits())
def test_memory_applies_what_git_writes(tmp_path_factory, case):
    before, after = case
    memory = MemoryEnvironment(before)
    memory.apply(whole_diff(tmp_path_factory.mktemp("repo"), before, after))
    assert contents(memory) == {path: text.encode() for path, text in after.items()}


@settings(max_examples=60, deadline=None)
@given(edits(), FILES)
def test_what_memory_writes_and_accepts_git_accepts_with_the_same_result(tmp_path_factory, case, others):
    before, after = case
    memory = MemoryEnvironment(before)
    for path in before:
        memory.remove_file(path)
    for path, text in after.items():
        memory.write_file(path, text.encode())
    patch = memory.diff()
    for start in (before, {**before, **others}):
        memory = MemoryEnvironment(start)
        try:
            memory.apply(patch)
        except EnvError:
            assert start != before
            assert contents(memory) == {path: text.encode() for path, text in start.items()}
            continue
        root = tmp_path_factory.mktemp("files")
        write(root, start)
        if patch:
            done = git("apply", "--whitespace=nowarn", "-", cwd=root, input=patch.encode())
            assert not done.returncode, done.stderr.decode()
        assert read(root) == contents(memory)


UNUSUAL = st.text(st.characters(min_codepoint=1, max_codepoint=0x2FF, exclude_characters="/"), min_size=1, max_size=5)


@settings(max_examples=30, deadline=None)
@given(UNUSUAL.filter(lambda name: name.strip(".") and name != ".git"), st.sampled_from(["add", "change", "delete"]))
def test_names_in_diffs_of_memory_are_those_of_git(tmp_path_factory, name, what):
    before = {} if what == "add" else {name: "one\n"}
    after = {} if what == "delete" else {name: "two\n"}
    memory = MemoryEnvironment(before)
    memory.write_file(name, b"two\n")
    if what == "delete":
        memory.remove_file(name)
    patch = memory.diff()
    git_says = whole_diff(tmp_path_factory.mktemp("repo"), before, after)
    assert patch == "".join(line for line in git_says.splitlines(True) if not line.startswith("index "))
    assert [change.path for change in changes(patch)] == [name]


def whole_diff(repo, before, after):
    """As git tells the change, renames found."""
    git("init", "-q", ".", cwd=repo)
    write(repo, before)
    git("add", "-A", cwd=repo)
    first = git("write-tree", cwd=repo).stdout.decode().strip()
    for path in before:
        (repo / path).unlink()
    write(repo, after)
    git("add", "-A", cwd=repo)
    second = git("write-tree", cwd=repo).stdout.decode().strip()
    return git("diff", "--no-color", "-M", "-U3", first, second, cwd=repo).stdout.decode()


def section(path, old, new, body=""):
    return f"diff --git a/{path} b/{path}\n--- {old}\n+++ {new}\n{body}"


REFUSED = {
    "another line": section("a", "a/a", "b/a", "@@ -1 +1 @@\n-other\n+new\n"),
    "missing file": section("c", "a/c", "b/c", "@@ -1 +1 @@\n-one\n+new\n"),
    "file in the way": "diff --git a/b b/b\nnew file mode 100644\n--- /dev/null\n+++ b/b\n@@ -0,0 +1 @@\n+new\n",
    "more to delete": section("b", "a/b", "/dev/null", "@@ -1 +0,0 @@\n-one\n"),
    "newline at the end": section("a", "a/a", "b/a", "@@ -1 +1 @@\n-one\n\\ No newline at end of file\n+new\n"),
    "outside": "diff --git a/../x b/../x\n--- /dev/null\n+++ b/../x\n@@ -0,0 +1 @@\n+new\n",
    "words": "please change the first line\n",
}


@pytest.mark.parametrize("case", REFUSED)
def test_patches_that_do_not_fit_change_nothing(case, tmp_path):
    files = {"a": "one\n", "b": "one\ntwo\n"}
    write(tmp_path / "source", files)
    good = section("b", "a/b", "b/b", "@@ -2 +2 @@\n-two\n+2\n")
    patch = REFUSED[case] if case in ("words", "more to delete", "file in the way") else good + REFUSED[case]
    with LocalEnvironment(tmp_path / "source") as local:
        for env in (MemoryEnvironment(files), local):
            before = env.state_hash()
            with pytest.raises(EnvError, match="does not apply"):
                env.apply(patch)
            assert env.state_hash() == before


def test_both_workspaces_reach_the_same_files_and_their_own_diff_leads_there_again(tmp_path):
    files = {"a": "one\ntwo", "b": "x\r\ny\n", "gone": "z\n"}
    write(tmp_path / "source", files)
    with LocalEnvironment(tmp_path / "source") as local:
        memory = MemoryEnvironment(files)
        base = local.snapshot()
        for env in (memory, local):
            env.write_file("a", b"one\n2\n")
            env.write_file("b", b"x\r\ny\nz")
            env.write_file("new/c", b"")
            env.remove_file("gone")
        reached, patch = contents(memory), local.diff()
        local.restore(base)
        fresh = MemoryEnvironment(files)
        for env in (fresh, local):
            env.apply(patch)
            assert contents(env) == reached
            env.apply("")
            assert contents(env) == reached
