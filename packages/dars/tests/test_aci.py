"""Tools: what each does and refuses, what they remember in a node's state, and the kinds of their actions."""

import copy
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dars.aci import effect_kind, registry
from dars.aci.common import OBSERVATION_CHARS
from dars.aci.effects import contents
from dars.aci.lint import new_problems
from dars.aci.symbols import SymbolIndex, search_repo
from dars.aci.testing import parse_junit
from dars.config import DarsConfig
from dars.env.base import ExecResult
from dars.env.local import LocalEnvironment
from dars.env.memory import MemoryEnvironment
from dars.models.base import ScriptedModel, ToolCall
from dars.search import Engine
from dars.search.turns import Prompts

TOOLS = registry()
CORE = """def area(w, h):
    return w * h


class Box:
    side = 1

    def area(self):
        return area(self.side, 2)
"""
SUITE = """import pytest

class TestA:
    def test_ok(self): pass

    @pytest.mark.skip
    def test_no(self): pass

def test_bad():
    assert 1 == 2

@pytest.fixture
def broken(): 1 / 0

def test_error(broken): pass
"""
FILES = {
    "pkg/__init__.py": "",
    "pkg/core.py": CORE,
    "pkg/broken.py": "x = undefined_name\n",
    "tests/test_core.py": "from pkg.core import Box\n\nassert Box().area() == 2\n",
    "long.txt": "".join(f"line {i}\n" for i in range(1, 251)),
    "notes.txt": "a\nb\na\n",
    "overlap.txt": "lll",
    "image.bin": b"\x89PNG\0\1",
}


def workspace(oracle=None):
    return MemoryEnvironment(FILES, oracle)


def act(env, state, name, **args):
    return TOOLS[name].run(env, args, state)


def body(seen):
    """The observation without its status line."""
    return seen.text.rpartition("\n")[0]


def numbers(seen):
    """Numbers of the lines shown."""
    return [int(n) for n in re.findall(r"^(\d+):", seen.text, re.MULTILINE)]


# --- declarations -----------------------------------------------------------------------------------------------------

PARAMETERS = {
    "open": "path line?", "goto": "line", "scroll": "direction", "search_dir": "query dir? glob?",
    "search_file": "query path?", "find_file": "pattern dir?", "search_repo": "symbol kind? exclude_tests?",
    "create": "path content?", "append": "content path?", "edit": "old new path? replace_all?",
    "insert": "line content path?", "undo_edit": "path?", "bash": "command timeout?",
    "run_tests": "selection? timeout?", "python": "code", "server": "action command?", "submit": "summary?",
}  # fmt: skip


def test_tools_have_the_parameters_and_kinds_of_the_specification():
    assert set(TOOLS) == set(PARAMETERS)
    for name, tool in TOOLS.items():
        schema = tool.schema
        assert " ".join(key + "?" * (key not in schema["required"]) for key in schema["properties"]) == PARAMETERS[name]
        assert tool.kind == (name if name in ("create", "append", "edit", "insert", "submit") else "other")
        assert tool.description
    assert set(registry("bash")) == {"bash", "submit"}
    with pytest.raises(ValueError, match="'full' or 'bash'"):
        registry("all")


def test_schemas_stay_within_the_strict_mode_of_the_messages_api():
    schemas = [tool.declaration()["input_schema"] for tool in TOOLS.values()]
    assert len(schemas) <= 20
    assert sum(len(schema["properties"]) - len(schema["required"]) for schema in schemas) <= 24
    for schema in schemas:
        assert schema["additionalProperties"] is False
        assert set(schema["required"]) <= set(schema["properties"])
        for value in schema["properties"].values():
            assert value.keys() <= {"type", "enum", "description"}
            assert value["type"] in ("string", "integer", "boolean")
    assert all(tool.declaration()["strict"] for tool in TOOLS.values())


REFUSALS = [
    ("edit", {"old": "a", "new": "b", "file": "x"}, "no argument 'file'"),
    ("edit", {"old": "a"}, "needs the argument new"),
    ("goto", {"line": "3"}, "of type integer, not str"),
    ("goto", {"line": True}, "of type integer, not bool"),
    ("scroll", {"direction": "left"}, "one of up, down"),
    ("append", {"content": "\ud800", "path": "notes.txt"}, "lone surrogates"),
    ("open", {"path": "core.py"}, "did you mean pkg/core.py"),
    ("open", {"path": "../secret"}, "not a file in the workspace"),
    ("open", {"path": "/etc/passwd"}, "not in the workspace"),
    ("open", {"path": "image.bin"}, "binary file of 6 bytes"),
    ("open", {"path": "notes.txt", "line": 4}, "line 4 is not in notes.txt, which has 3 lines"),
    ("goto", {"line": 1}, "no file is open"),
    ("scroll", {"direction": "up"}, "no file is open"),
    ("search_file", {"query": "x"}, "no file is open"),
    ("search_dir", {"query": ""}, "a text of one line"),
    ("search_dir", {"query": "x", "dir": "nowhere"}, "no folder nowhere"),
    ("search_repo", {"symbol": "a b"}, "no name of Python"),
    ("create", {"path": "notes.txt"}, "exists already"),
    ("create", {"path": "pkg"}, "exists already"),
    ("create", {"path": "new.py", "content": "def f(:\n"}, "invalid-syntax"),
    ("append", {"content": "", "path": "notes.txt"}, "nothing to append"),
    ("append", {"content": "x", "path": "nowhere.txt"}, "no file nowhere.txt"),
    ("append", {"content": "print(unknown)", "path": "pkg/core.py"}, "F821 Undefined name `unknown`"),
    ("insert", {"line": 4, "content": "x", "path": "notes.txt"}, "line 4 is not in notes.txt"),
    ("insert", {"line": 1, "content": "  x = 1", "path": "pkg/core.py"}, "invalid-syntax"),
    ("edit", {"old": "a", "new": "c", "path": "notes.txt"}, "occurs 2 times in notes.txt, at lines 1, 3"),
    ("edit", {"old": "ll", "new": "c", "path": "overlap.txt"}, "occurs 2 times"),
    ("edit", {"old": "", "new": "c", "path": "notes.txt"}, "old is empty"),
    ("edit", {"old": "b", "new": "b", "path": "notes.txt"}, "would change nothing"),
    ("edit", {"old": "return w*h", "new": "x", "path": "pkg/core.py"}, "most like its first one is 2:    return w * h"),
    ("edit", {"old": "w * h", "new": "w * hh", "path": "pkg/core.py"}, "With the change:\n1:def area"),
    ("undo_edit", {"path": "notes.txt"}, "no edit of notes.txt to undo"),
    ("bash", {"command": " "}, "the command is empty"),
    ("bash", {"command": "ls", "timeout": 0}, "a positive number"),
    ("run_tests", {"selection": "'a"}, "cannot be read"),
    ("python", {"code": ""}, "the code is empty"),
    ("server", {"action": "start"}, "needs the command"),
    ("server", {"action": "logs"}, "no server"),
]


@pytest.mark.parametrize(("name", "args", "message"), REFUSALS)
def test_refusals_say_why_and_change_nothing(name, args, message):
    env, state = workspace(), {"cwd": "."}
    before = env.state_hash()
    seen = TOOLS[name].run(env, args, state)
    assert seen.failed
    assert message in seen.text
    assert env.state_hash() == before
    assert state == {"cwd": "."}


# --- looking ----------------------------------------------------------------------------------------------------------


def test_scrolling_down_shows_every_line_with_two_lines_of_overlap():
    env, state = workspace(), {}
    shown = [numbers(act(env, state, "open", path="./long.txt"))]
    assert state["open"] == "long.txt"
    while not (seen := act(env, state, "scroll", direction="down")).failed:
        shown.append(numbers(seen))
    assert shown[0] == list(range(1, 101))
    assert shown[1] == list(range(99, 199))
    assert shown[-1] == list(range(151, 251))  # the last window is a whole one
    assert numbers(act(env, state, "scroll", direction="up")) == list(range(53, 153))
    assert 200 in numbers(act(env, state, "goto", line=200))
    assert 250 in numbers(act(env, state, "open", path="long.txt", line=250))
    assert "line 250" in act(env, state, "goto", line=250).text
    assert "(the file is empty)" in act(env, state, "open", path="pkg/__init__.py").text


def test_searches_find_what_a_walk_finds():
    env, state = workspace(), {}
    texts = {path: text for path, text in FILES.items() if isinstance(text, str)}
    wanted = [
        f"{path}:{i}: {line.strip()}"
        for path, text in sorted(texts.items()) for i, line in enumerate(text.splitlines(), 1) if "area" in line
    ]  # fmt: skip
    assert body(act(env, state, "search_dir", query="area")).split("\n")[1:] == wanted
    assert body(act(env, state, "search_dir", query="area", dir="pkg/")).split("\n")[1:] == [
        line for line in wanted if line.startswith("pkg/")
    ]
    assert "tests/" not in act(env, state, "search_dir", query="area", glob="core.*").text
    assert "(150 more" in act(env, state, "search_dir", query="line").text
    assert "was not found" in act(env, state, "search_dir", query="a(r|e)ea").text  # a text, no pattern
    act(env, state, "open", path="notes.txt")
    assert body(act(env, state, "search_file", query="a")).split("\n")[1:] == ["notes.txt:1: a", "notes.txt:3: a"]
    assert body(act(env, state, "find_file", pattern="*.txt")).split("\n")[1:] == [
        "long.txt", "notes.txt", "overlap.txt",
    ]  # fmt: skip
    assert body(act(env, state, "find_file", pattern="core")).split("\n")[1:] == ["pkg/core.py", "tests/test_core.py"]
    assert "No file fits" in act(env, state, "find_file", pattern="*.rs").text


def test_symbols_are_found_where_they_are_defined_and_used():
    env, state = workspace(), {}
    text = act(env, state, "search_repo", symbol="area").text
    assert re.findall(r"^(\S+:\d+): (\w+) ", text.split("References")[0], re.MULTILINE) == [
        ("pkg/core.py:1", "function"), ("pkg/core.py:8", "function"),
    ]  # fmt: skip
    assert re.findall(r"^(\S+:\d+):", text.split("References")[1], re.MULTILINE) == [
        "pkg/core.py:9", "tests/test_core.py:3",
    ]  # fmt: skip
    only = act(env, state, "search_repo", symbol="Box.area", kind="def").text
    assert "pkg/core.py:8: function Box.area" in only
    assert "core.py:1:" not in only
    assert "pkg/core.py:6: variable Box.side" in act(env, state, "search_repo", symbol="core.Box.side").text
    assert "tests/" not in act(env, state, "search_repo", symbol="area", exclude_tests=True).text
    assert "Definitions of nothing: none." in act(env, state, "search_repo", symbol="nothing").text


def test_only_changed_files_are_parsed_again_also_after_going_back():
    index, env = SymbolIndex(), workspace()
    tool = search_repo(index)
    base = env.snapshot()
    tool.run(env, {"symbol": "area"}, {})
    first = index.parsed
    assert first == sum(path.endswith(".py") for path in FILES)
    env.write_file("pkg/core.py", b"def perimeter(): pass\n")
    assert "pkg/core.py:1" in tool.run(env, {"symbol": "perimeter"}, {}).text
    assert "Definitions of area: none" in tool.run(env, {"symbol": "area"}, {}).text
    env.restore(base)
    assert "pkg/core.py:1" in tool.run(env, {"symbol": "area"}, {}).text
    assert index.parsed == first + 1


# --- changing ---------------------------------------------------------------------------------------------------------


def test_kinds_by_effect_are_the_kinds_of_the_tools():
    env, state = workspace(), {}
    script = [
        ("open", {"path": "notes.txt"}), ("create", {"path": "a/b.py", "content": "import sys\n"}),
        ("append", {"content": "print(sys.argv)"}), ("edit", {"old": "argv", "new": "path"}),
        ("search_dir", {"query": "sys"}), ("create", {"path": "empty"}), ("append", {"content": "x", "path": "empty"}),
        ("edit", {"old": "a", "new": "c", "path": "notes.txt", "replace_all": True}), ("submit", {}),
    ]  # fmt: skip
    for name, args in script:
        before = contents(env)
        assert not TOOLS[name].run(env, args, state).failed
        kind = effect_kind(before, contents(env))
        assert (TOOLS[name].kind if name != "submit" else "other") == kind
    assert env.read_file("a/b.py") == b"import sys\nprint(sys.path)\n"
    assert env.read_file("notes.txt") == b"c\nb\nc\n"


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        ({}, {}, "other"), ({"a": b"1"}, {"a": b"1"}, "other"), ({}, {"a": b""}, "create"),
        ({"a": b"1"}, {"a": b"1", "b": b"", "c": b""}, "create"), ({"a": b"1"}, {"a": b"12"}, "append"),
        ({"a": b"", "b": b"1"}, {"a": b"x", "b": b"1\n"}, "append"), ({"a": b"12"}, {"a": b"1"}, "edit"),
        ({"a": b"1"}, {"a": b"21"}, "edit"), ({"a": b"1"}, {}, "edit"), ({"a": b"1"}, {"b": b"1"}, "edit"),
        ({"a": b"1"}, {"a": b"12", "b": b""}, "edit"),
    ],
)  # fmt: skip
def test_effect_kinds(before, after, kind):
    assert effect_kind(before, after) == kind


def test_inserting_puts_lines_after_a_line():
    for line, wanted in ((0, "x\na\nb"), (1, "a\nx\nb"), (2, "a\nb\nx\n")):
        env = MemoryEnvironment({"f": "a\nb"})
        assert not act(env, {}, "insert", line=line, content="x", path="f").failed
        assert env.read_file("f").decode() == wanted
    env = MemoryEnvironment({"f": "a\nb"})
    act(env, {}, "append", content="x", path="f")
    assert env.read_file("f") == b"a\nb\nx\n"


def test_whitespace_differences_are_reported_with_the_lines_as_they_are():
    env = MemoryEnvironment({"f.py": "def f():\n\tif 1:\n\t\treturn  2\n"})
    seen = act(env, {}, "edit", old="    if 1:\n        return 2\n", new="pass\n", path="f.py")
    assert seen.failed
    assert "whitespace only" in seen.text
    assert "2:'\\tif 1:'\n3:'\\t\\treturn  2'" in seen.text


def test_new_fatal_errors_are_refused_and_old_ones_are_not_held_against_an_edit():
    for name in ("-x.py", "--fix.py", "-"):
        assert [p.code for p in new_problems(name, b"x = 1\n", b"x = y\n")] == ["F821"]
    gate = lambda before, after: [p.code for p in new_problems("f.py", before.encode(), after.encode())]  # noqa: E731
    assert gate("x = a\n", "y = 1\nx = a\n") == []  # moved, not new
    assert gate("x = a\n", "x = a\ny = a\n") == ["F821"]  # one more of the same
    assert gate("def f(:\n", "def f():\n    return b\n") == []  # mended: b was hidden, not new
    assert gate("def f(:\n", "def f(:\ndef g(:\n") != []
    assert gate("", "def f():\n\treturn 1\n        x = 2\n") != []
    assert gate("", "assert (1, 'never')\n") == ["F631"]
    assert gate("", "import os\nunused = 1\nmatch unused:\n    case 1: pass\n") == []  # style is nobody's business here
    env = workspace()
    assert not act(env, {}, "append", content="more = 1", path="pkg/broken.py").failed
    assert not act(env, {}, "create", path="notes.md", content="def f(:\n").failed


texts = st.text(st.sampled_from("ab \n\t"), max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(("edit", "append", "insert", "undo_edit")), texts, texts), max_size=8),
       st.binary(max_size=8).filter(lambda data: b"\0" not in data), st.sampled_from((b"\n", b"\r\n")))  # fmt: skip
def test_undoing_brings_back_every_earlier_content_byte_by_byte(steps, noise, end):
    env, state = MemoryEnvironment({"f": b"a b" + end + noise.replace(b"\n", end) + end + b"b a" + end}), {}
    stack = [env.read_file("f")]
    for name, old, new in steps:
        args = {
            "edit": {"old": old, "new": new, "replace_all": True}, "append": {"content": new},
            "insert": {"line": len(old) % 4, "content": new}, "undo_edit": {},
        }[name]  # fmt: skip
        earlier, frozen = dict(state), copy.deepcopy(state)
        seen = TOOLS[name].run(env, {**args, "path": "f"}, state)
        assert earlier == frozen  # values are replaced, not changed: nodes share them
        if seen.failed:
            assert env.read_file("f") == stack[-1]
        elif name == "undo_edit":
            stack.pop()
            assert env.read_file("f") == stack[-1]
        else:
            stack.append(env.read_file("f"))
    while len(stack) > 1:
        stack.pop()
        assert not act(env, state, "undo_edit", path="f").failed
        assert env.read_file("f") == stack[-1]
    assert act(env, state, "undo_edit", path="f").failed


def test_restoring_a_node_restores_what_can_be_undone():
    env, state = workspace(), {}
    act(env, state, "create", path="new.py", content="x = 1\n")
    act(env, state, "edit", old="x = 1", new="x = 2")
    node = env.snapshot(), json.dumps(state)
    act(env, state, "edit", old="x = 2", new="x = 3")
    act(env, state, "edit", old="a\nb", new="c", path="notes.txt")
    env.restore(node[0])
    state = json.loads(node[1])  # as it is read from a log
    assert act(env, state, "undo_edit", path="notes.txt").failed  # on the other branch alone
    assert not act(env, state, "undo_edit").failed
    assert env.read_file("new.py") == b"x = 1\n"
    assert not act(env, state, "undo_edit").failed
    assert "new.py" not in env.list_files()
    assert state["open"] == ""
    act(env, state, "edit", old="b", new="c", path="notes.txt")
    env.write_file("notes.txt", b"by a command\n")
    seen = act(env, state, "undo_edit", path="notes.txt")
    assert seen.failed
    assert "changed since" in seen.text


# --- observations -----------------------------------------------------------------------------------------------------


def printing(output, code=0):
    return workspace(lambda state, command: ExecResult(code, output, wall_s=2.2))


def test_observations_end_in_a_status_and_say_when_nothing_was_printed():
    seen = act(printing("", 3), {"open": "a.py", "cwd": "pkg"}, "bash", command="true")
    assert seen.text == (
        "(The command printed nothing.)\n(open file: a.py, cwd: pkg, exit code: 3, wall time: 2 s)"
    )  # fmt: skip
    assert (seen.exit_code, seen.failed, seen.volatile) == (3, False, False)


def test_long_observations_keep_head_and_tail_and_say_how_much_is_missing():
    text = "".join(chr(0x4E00 + i % 2000) for i in range(50_000))
    shown = body(act(printing(text), {}, "bash", command="cat"))
    head, count, tail = re.split(r"\n\[\.\.\. (\d+) characters elided \.\.\.\]\n", shown)
    assert (len(head), len(tail)) == (OBSERVATION_CHARS * 6 // 10, OBSERVATION_CHARS * 4 // 10)
    assert text.startswith(head)
    assert text.endswith(tail)
    assert int(count) == 50_000 - OBSERVATION_CHARS


def test_files_of_other_encodings_and_with_both_line_ends_can_be_edited_byte_by_byte():
    latin = "# -*- coding: latin-1 -*-\ns = 'caf\xe9'\n".encode("latin-1")
    env = MemoryEnvironment({"latin.py": latin, "none.py": b"s = 'caf\xe9'\n", "mixed.txt": b"a\r\nb\nc\r\n"})
    for name in ("latin.py", "none.py"):
        assert not act(env, {}, "edit", path=name, old="s = 'caf", new="tt = 'CAF").failed
        assert env.read_file(name).endswith(b"tt = 'CAF\xe9'\n")
        assert "Undefined name `u`" in act(env, {}, "append", path=name, content="print(u)").text
    assert act(env, {}, "edit", path="mixed.txt", old="a\nb", new="x").failed
    assert not act(env, {}, "edit", path="mixed.txt", old="a\r\nb\n", new="A\r\nB\n").failed
    assert env.read_file("mixed.txt") == b"A\r\nB\nc\r\n"


def test_observations_can_be_sent_whatever_the_names_of_files_are():
    env = MemoryEnvironment({"caf\udce9/one.py": "x = 1\n"})
    for name, args in (
        ("open", {"path": "one.py"}),
        ("open", {"path": "caf\udce9/one.py"}),
        ("find_file", {"pattern": "*"}),
    ):
        seen = act(env, {}, name, **args)
        assert "caf\ufffd/one.py" in seen.text
        seen.text.encode()


def test_submitting_shows_what_differs():
    env = workspace()
    assert "Nothing differs" in act(env, {}, "submit").text
    act(env, {}, "edit", old="w * h", new="h * w", path="pkg/core.py")
    act(env, {}, "create", path="x.txt", content="1\n2\n")
    text = act(env, {}, "submit", summary="Done.").text
    assert "pkg/core.py: changed, +1 -1 lines" in text
    assert "x.txt: added, +2 -0 lines" in text


def test_the_word_submit_ends_nothing_but_the_tool_does():
    script = [
        ToolCall("bash", {"command": "grep -rn submit ."}), ToolCall("bash", {"command": "submit"}),
        ToolCall("submit", {}),
    ]  # fmt: skip
    env = printing("core.py:1: submit\nsubmit\n")
    engine = Engine(
        ScriptedModel(lambda request: script[len(request.path)]), env, registry("bash"), Prompts(),
        DarsConfig(strategy="linear", aci="bash"),
    )  # fmt: skip
    engine.run()
    nodes = list(engine.state.tree.nodes.values())[1:]
    assert [(node.kind, node.terminal) for node in nodes] == [("other", False), ("other", False), ("submit", True)]


# --- commands, in a real workspace ------------------------------------------------------------------------------------


@pytest.fixture
def local(tmp_path):
    root = tmp_path / "repo"
    for path, text in FILES.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(text if isinstance(text, bytes) else text.encode())
    (tmp_path / "secret").write_text("secret")
    (root / "link").symlink_to("../secret")
    with LocalEnvironment(root, sandbox="none") as env:
        yield env


def test_the_folder_of_a_command_is_kept_and_restored_with_the_state(local):
    state = {}
    assert body(act(local, state, "bash", command="cd pkg\nls")) == "__init__.py\nbroken.py\ncore.py"
    saved = dict(state)
    seen = act(local, state, "bash", command="test -f core.py && (cd ..; ls -d tests) && cd ../tests && exit 4")
    assert (body(seen), seen.exit_code, state["cwd"]) == ("tests", 4, "tests")
    assert act(local, state, "bash", command="cd /").exit_code == 0
    assert state["cwd"] == "tests"  # a place outside is not kept
    assert body(act(local, saved, "bash", command="ls core.py")) == "core.py"
    seen = act(local, saved, "bash", command="sleep 9; cd ..", timeout=1)
    assert seen.exit_code == 124
    assert "stopped after 1 s" in seen.text
    assert saved["cwd"] == "pkg"
    act(local, saved, "python", code="import shutil; shutil.rmtree('pkg')")
    seen = act(local, saved, "bash", command="ls -d tests")
    assert (body(seen).splitlines()[-1], seen.exit_code, saved["cwd"]) == ("tests", 0, ".")
    assert "The folder pkg is gone" in seen.text


def test_paths_lead_nowhere_outside(local, tmp_path):
    for path in ("link", "../secret", str(tmp_path / "secret"), "pkg/../../secret"):
        for name, args in (("open", {}), ("append", {"content": "x"}), ("edit", {"old": "s", "new": "t"})):
            seen = TOOLS[name].run(local, {"path": path, **args}, {})
            assert seen.failed
            assert "secret\n" not in body(seen)
    assert (tmp_path / "secret").read_text() == "secret"
    state = {}
    where = local.exec(["pwd"]).output.strip()
    assert not act(local, state, "open", path=f"{where}/notes.txt").failed
    assert state["open"] == "notes.txt"
    long = act(local, {}, "create", path="x" * 300)
    assert long.failed
    assert "File name too long" in long.text


def test_files_that_no_state_holds_are_not_created_over(local):
    config = local.read_file(".git/config")
    assert "exists already" in act(local, {}, "create", path=".git/config", content="").text
    assert local.read_file(".git/config") == config


def test_a_python_session_lives_in_the_state(local):
    state = {}
    first = act(
        local, state, "python",
        code="from pkg.core import area\nimport pkg.core as core\nclass P:\n    n = 2\nx = [1]\ny = x\np = P()\n"
        "f = open('notes.txt')\ndef g(): return len(x)\narea(2, 3)",
    )  # fmt: skip
    assert body(first) == "6\n(Not kept for later cells: f.)"
    assert first.volatile
    node = json.dumps(state), local.snapshot()
    act(local, state, "edit", old="w * h", new="w + h", path="pkg/core.py")
    seen = act(local, state, "python", code="y.append(p.n); print(x, g(), core.area(2, 3), area(2, 3))")
    assert body(seen) == "[1, 2] 2 5 5"  # the edited module
    failed = act(local, state, "python", code="x.append(7)\n1 / 0")
    assert failed.exit_code == 1
    assert "ZeroDivisionError" in failed.text
    assert body(act(local, state, "python", code="x")) == "[1, 2, 7]"  # as in any session
    for left in ("[1]", '{"sources": [1], "values": "", "lost": [], "code": 0}', "no json"):
        code = f"open('.dars-cell.json', 'w').write({left!r})\nimport os; os._exit(0)"
        assert "session is as before it" in act(local, state, "python", code=code).text
    assert body(act(local, state, "python", code="x")) == "[1, 2, 7]"
    local.restore(node[1])
    assert body(act(local, json.loads(node[0]), "python", code="print(x, g(), area(2, 3))")) == "[1] 1 6"
    assert local.diff() == ""


def test_the_report_of_the_tests_is_read_and_removed(local):
    local.write_file("tests/test_core.py", SUITE.encode())
    before = contents(local)
    seen = act(local, {"cwd": "pkg"}, "run_tests", selection="tests/test_core.py")
    assert seen.text.startswith("1 passed, 1 failed, 1 error, 1 skipped")
    assert "FAILED tests.test_core::test_bad" in seen.text
    assert "assert 1 == 2" in seen.text
    assert "ZeroDivisionError" in seen.text
    assert seen.exit_code == 1
    assert contents(local) == before
    plain = registry(test_command="echo 3 examples")["run_tests"].run(local, {"selection": "-k 'a b'"}, {})
    assert body(plain) == "3 examples -k a b"  # no report: what was printed


def test_a_server_runs_beside_commands_and_is_gone_after_them(local):
    state = {}
    serve = "echo up; echo $((6 * 7)) >&2; sleep 60"
    assert "beside every command" in act(local, state, "server", action="start", command=serve).text
    assert "there already" in act(local, state, "server", action="start", command=serve).text
    seen = act(local, state, "bash", command="sleep 0.3; wait; echo done")  # which a plain job would hold up
    assert (body(seen), seen.volatile, state["cwd"]) == ("done", True, ".")
    assert body(act(local, state, "server", action="logs")) == "up\n42"
    assert not act(local, json.loads(json.dumps(state)), "server", action="stop").failed
    assert not act(local, state, "server", action="stop").failed
    assert not act(local, state, "bash", command="true").volatile


def test_junit_reports_are_read_whatever_the_order_of_their_parts():
    report = b"""<testsuites><testsuite><testcase classname="a.B" name="x[1]"/>
    <testcase classname="a" name="y"><failure message="m">long</failure></testcase>
    <testcase classname="a" name="z"/><testcase classname="a" name="z"><error message="teardown"/></testcase>
    <testcase name="s"><skipped/></testcase></testsuite></testsuites>"""
    assert [tuple(case) for case in parse_junit(report)] == [
        ("a.B::x[1]", "passed", "", ""), ("a::y", "failed", "m", "long"), ("a::z", "error", "teardown", ""),
        ("s", "skipped", "", ""),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no XML"):
        parse_junit(b"<testsuites>")
