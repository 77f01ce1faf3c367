"""The model without a language model: what it reads, draws and never does, and that it repairs."""

import collections
import functools
import json
import math
import random
import re
import subprocess
import sys
import traceback

import pytest

from dars.aci import editing, registry
from dars.bench.mutations import mutate, mutations
from dars.config import BudgetSection, CandidatesSection, CriticSection, DarsConfig, FeedbackSection, HistorySection
from dars.env.base import ExecResult
from dars.env.local import LocalEnvironment
from dars.env.memory import MemoryEnvironment
from dars.errors import ModelError
from dars.models import RepairModel
from dars.models.base import ModelRequest, ToolCall
from dars.models.repair_prior import log_odds
from dars.models.repair_source import changes, file_of, window
from dars.prompts import make_prompts, renderer
from dars.runs import search

TEXT = '''"""Words."""


def squash(text):
    """One blank between words."""
    out = []
    for word in text.split(" "):
        if len(word) > 1:
            out.append(word)
    return " ".join(out)


def initials(text):
    return "".join(word[0] for word in squash(text).split(" "))


def padded(text, width=12):
    if len(text) >= width:
        return text
    return " " * (width - len(text)) + text
'''
LABEL = """from .text import initials, padded, squash


class Label:
    width = 10

    def __init__(self, text):
        self.text = squash(text)

    def short(self):
        if len(self.text) <= self.width and self.text:
            return padded(self.text, self.width)
        return initials(self.text) + "."
"""
TESTS = """from pkg.label import Label
from pkg.text import initials, padded, squash


def test_squash():
    assert squash("ab  cd") == "ab cd"


def test_initials():
    assert initials("ab cd") == "ac"


def test_short():
    assert Label("abcdef ghijkl").short() == "ag."
    assert Label("abcdefghij").short() == "abcdefghij"


def test_padded():
    assert padded("ab", 3) == " ab"
"""
SNIPPET = 'from pkg.text import squash\n\nassert squash("a  bc") == "a bc"\n'
IMPORTS = "from pkg.text import squash\n"
ISSUE = f"`squash` loses words of one letter.\n\n```python\n{SNIPPET}```\n"
FILES = {"pkg/__init__.py": "", "pkg/text.py": TEXT, "pkg/label.py": LABEL, "tests/test_all.py": TESTS}
FAULT, REPAIRS = "len(word) > 1", ("len(word) > 0", "len(word) >= 1", "len(word) != 0")
TOOLS = registry()
DECLARED = make_prompts(ISSUE, list(TOOLS.values())).tools


@functools.cache
def outcome(sources, script):
    """(exit code, output) of a script on the sources of both modules, or of the visible tests."""
    space = {"__name__": "m"}
    code = "\n".join([*sources, script])
    code = re.sub(r"^from .* import .*$", "", code, flags=re.MULTILINE)
    try:
        exec(compile(code, "/work/reproduce.py", "exec"), space)
        bad = []
        for name in [name for name in space if name.startswith("test_")]:
            try:
                space[name]()
            except Exception:
                bad.append(f"FAILED tests/test_all.py::{name}")
    except Exception:
        return 1, re.sub(r'File "/work.*?", line \d+', 'File "/work/reproduce.py", line 1', traceback.format_exc(0))
    return int(bool(bad)), "\n".join(bad) or "passed"


class Executed(MemoryEnvironment):
    """Runs the two modules within this process."""

    def exec(self, cmd, timeout=None, stdin=None):
        sources = tuple(self.read_file(f"pkg/{name}.py").decode() for name in ("text", "label"))
        name = "reproduce.py" if "reproduce.py" in cmd else "tests/test_all.py"
        return ExecResult(*outcome(sources, self.read_file(name).decode()))

    def clone(self):
        twin = super().clone()
        twin.__class__ = Executed
        return twin


class Recorded(RepairModel):
    """Keeps requests and answers."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.kept = []

    def complete(self, request):
        answer = super().complete(request)
        self.kept.append((request, answer))
        return answer


@pytest.fixture(autouse=True)
def quick_gate(monkeypatch):
    """The gate before edits, asked once for every change."""
    monkeypatch.setattr(editing, "new_problems", GATE)


GATE = functools.lru_cache(maxsize=None)(editing.new_problems)


def searched(model, files=FILES, issue=ISSUE, calls=120, **sections):
    config = DarsConfig(budget=BudgetSection(calls=calls), **sections)
    state, _ = search(issue, model, Executed(files), TOOLS, config)
    return state


def shape(state):
    return [(n.id, n.parent, n.tool, json.dumps(n.args, sort_keys=True), n.patch) for n in state.tree.nodes.values()]


def canonical_shape(state):
    """The same for whatever order nodes were made in."""
    tree = state.tree
    return sorted(
        (tree.indices(n.id), n.tool, json.dumps(n.args, sort_keys=True), n.patch) for n in tree.nodes.values()
    )


def leaf_repairs(leaf):
    return (
        any(f"+        if {repair}:" in leaf.patch for repair in REPAIRS)
        and sum(
            line[:1] == "+" and line[:3] != "+++" for line in leaf.patch.partition("+++ b/reproduce.py")[0].splitlines()
        )
        == 1
    )


def conversation(*steps, issue=ISSUE, feedback=None):
    """Messages of a path of (tool, args, observation)."""
    turns = [{"role": "user", "content": [{"type": "text", "text": make_prompts(issue, ()).issue}]}]
    for i, (tool, args, seen) in enumerate(steps):
        turns.append(
            {"role": "assistant", "content": [{"type": "tool_use", "id": f"t{i}", "name": tool, "input": args}]}
        )
        seen = seen if "exit code" in seen else f"{seen}\n(open file: none, cwd: .)"
        result = {"type": "tool_result", "tool_use_id": f"t{i}", "content": seen}
        turns.append({"role": "user", "content": [result]})
    if feedback is not None:
        turns[-1]["content"].append({"type": "text", "text": feedback})
    return turns


def ask(model, messages, sample=0, role="act", **rest):
    return model.complete(ModelRequest(role, (), sample, messages=messages, tools=DECLARED, **rest))


def shown(path, text):
    lines = text.splitlines()
    return "\n".join([f"[{path}, {len(lines)} lines]", *(f"{i}:{line}" for i, line in enumerate(lines, start=1))])


FAILING = "Traceback\nAssertionError\n(open file: none, cwd: ., exit code: 1)"
LOOKED = [
    ("search_repo", {"symbol": "squash"}, "Definitions of squash:\npkg/text.py:4: function squash: def squash(text):"),
    ("open", {"path": "pkg/text.py", "line": 4}, shown("pkg/text.py", TEXT)),
]
REPRODUCED = [
    *LOOKED,
    ("create", {"path": "reproduce.py", "content": SNIPPET}, "Created reproduce.py."),
    ("bash", {"command": "python reproduce.py"}, FAILING),
]


def test_a_fault_in_a_real_workspace_is_repaired(tmp_path):
    for path, content in FILES.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(content)
    with LocalEnvironment(tmp_path) as env:
        config = DarsConfig(strategy="linear", budget=BudgetSection(calls=60))
        model = RepairModel(seed=4, eps=0, rho=0, max_edits=20)  # more than there are in the function that is named
        state, reason = search(ISSUE, model, env, TOOLS, config)
    (leaf,) = state.tree.leaves()
    assert (reason, leaf.exit) == ("done", "submit")
    assert leaf_repairs(leaf)


def test_leaves_repair_the_fault_more_often_than_edits_at_random():
    sources = (TEXT, LABEL)
    hidden = f"{TESTS}\ndef test_hidden():\n    assert squash('a  bc') == 'a bc'\n"
    every = [(i, mutate(source, m)) for i, source in enumerate(sources) for m in mutations(source)]
    good = sum(outcome((*sources[:i], new, *sources[i + 1 :]), hidden)[0] == 0 for i, new in every)
    leaves = [leaf for seed in range(12) for leaf in searched(RepairModel(seed)).tree.leaves() if leaf.exit == "submit"]
    share = sum(map(leaf_repairs, leaves)) / len(leaves)
    assert good >= 2
    assert share > 1 - (1 - good / len(every)) ** 3  # as many edits as it may make on a path, all over the package


def test_the_same_search_is_made_twice_and_with_several_workers():
    for seed in range(3):
        model = RepairModel(seed)
        once, again = searched(model, calls=None), searched(model, calls=None)
        assert shape(once) == shape(again) == shape(searched(RepairModel(seed), calls=None))
        assert canonical_shape(searched(RepairModel(seed), calls=None, workers=2)) == canonical_shape(once)
    assert shape(searched(RepairModel(7))) != shape(searched(RepairModel(8)))


def test_answers_do_not_depend_on_what_was_asked_before(monkeypatch):
    model = Recorded(3)
    searched(model)
    kept = model.kept[:]
    random.Random(0).shuffle(kept)
    for most in (10**6, 5):
        monkeypatch.setattr("dars.models.repair.KEPT", most)
        fresh = RepairModel(3)
        for request, answer in kept:
            copied = ModelRequest(**{**vars(request), "messages": json.loads(json.dumps(request.messages))})
            assert fresh.complete(copied) == answer


def test_answers_do_not_depend_on_time_place_and_addresses():
    def seen(place, time, address):
        trace = f'  File "{place}reproduce.py", line 3, in <module>\n  File "{place}pkg/text.py", line 8, in squash\n'
        text = f"{trace}TypeError: <object at {address}>\n(open file: none, cwd: ., exit code: 1, wall time: {time})"
        turns = conversation(*REPRODUCED)
        turns[-1]["content"][0]["content"] = text
        return turns

    model = RepairModel(0)
    for sample in range(20):
        here = ask(model, seen("/tmp/a/", "under 1 s", "0x7f9c93d90160"), sample)
        assert here.call == ask(model, seen("/home/b/c/", "2 s", "0x7f71fae38161"), sample).call
    assert (
        len({ask(model, seen("/tmp/a/", "1 s", "0x7f9c93d90160"), sample).call.input["new"] for sample in range(20)})
        > 1
    )


def edits_in(value):
    """(path, lines replaced, lines put there) of every edit in calls and in feedback, read from the JSON alone."""
    old, new = value["old"].split("\n"), value["new"].split("\n")
    while old and new and old[0] == new[0]:
        del old[0], new[0]
    while old and new and old[-1] == new[-1]:
        del old[-1], new[-1]
    return value["path"], tuple(old), tuple(new)


def test_no_edit_is_made_that_was_tried_and_every_answer_is_one_call():
    made = told = 0
    for seed in range(6):
        model = Recorded(seed, rho=(0.0, 0.75, 1.0)[seed % 3])
        searched(model, candidates=CandidatesSection(k=2), feedback=FeedbackSection(keep=seed % 2 == 0))
        for request, answer in model.kept:
            if request.role == "critic":
                assert answer.call is None
                continue
            assert [block["type"] for block in answer.content] == ["tool_use"]
            assert answer.call.name in TOOLS
            if answer.call.name != "edit":
                continue
            tried = set()
            for block in (block for turn in request.messages for block in turn["content"]):
                if block["type"] == "tool_use" and block["name"] == "edit":
                    tried.add(edits_in(block["input"]))
                if block["type"] == "text":
                    found = re.findall(r'<action tool="edit">(.*?)</action>', block["text"])
                    told += len(found)
                    tried |= {edits_in(json.loads(args)) for args in found}
            made += 1
            assert edits_in(answer.call.input) not in tried
    assert made > 50
    assert told > 50


def test_every_edit_applies_and_is_a_mutation_of_the_file():
    applied = 0
    for seed in range(4):
        tree = searched(RepairModel(seed, rho=0)).tree
        for node in tree.nodes.values():
            if node.tool == "edit":
                assert node.observation.startswith("Edited ") or "new errors" in node.observation
                applied += node.observation.startswith("Edited ")
                source = {"pkg/text.py": TEXT, "pkg/label.py": LABEL}[node.args["path"]]
                assert source.count(node.args["old"]) == 1
                after = source.replace(node.args["old"], node.args["new"])
                assert after in {mutate(source, m) for m in mutations(source)}
    assert applied > 10


def function_of(edit):
    """Which function of TEXT an edit changes."""
    line = TEXT[: TEXT.index(edit["old"])].count("\n")
    starts = {"squash": 3, "initials": 12, "padded": 16}
    return max((at, name) for name, at in starts.items() if at <= line)[1]


def expected(weights, tau, tried=()):
    """Probability of every function: its weight times how ordinary what the mutations left in it make would be."""
    mass = dict.fromkeys(weights, 0.0)
    for m in mutations(TEXT):
        old = TEXT[m.start : m.end]
        if m.function in weights and (m.function, old, m.replacement) not in tried:
            mass[m.function] += weights[m.function] * math.exp(log_odds(m.operator, old, m.replacement) / tau)
    return {name: value / sum(mass.values()) for name, value in mass.items()}


def frequencies(model, messages, n, role="act"):
    drawn = collections.Counter(function_of(ask(model, messages, i, role).call.input) for i in range(n))
    return {name: drawn[name] / n for name in ("squash", "initials", "padded")}


def agree(measured, probabilities, n):
    for name, p in probabilities.items():
        assert abs(measured[name] - p) <= 4.5 * math.sqrt(p * (1 - p) / n) + 1e-12, (name, measured[name], p)


def feedback_on(edit, after):
    """What the search tells of an attempt that made an edit and ran the script."""
    seen = [("edit", edit, "Edited pkg/text.py."), ("bash", {"command": "python reproduce.py"}, after)]
    steps = [{"tool": tool, "args": args, "observation": f"{text}"} for tool, args, text in seen]
    attempts = [{"tool": "edit", "args": edit, "steps": steps, "patch": ""}]
    return renderer()("feedback", kind="edit", attempts=attempts)


ISSUE_TWO = f"`squash` or `initials` is wrong.\n\n```python\n{SNIPPET}```\n"
EDIT = {"old": "        if len(word) > 1:", "new": "        if len(word) > 2:", "path": "pkg/text.py"}


@pytest.mark.parametrize(("tau", "kappa"), [(1.0, 3.0), (2.0, 5.0)])
def test_evidence_in_feedback_moves_the_draw_by_kappa(tau, kappa):
    n = 4000
    model = RepairModel(0, tau=tau, kappa=kappa)
    named = math.exp(2 / tau)
    plain = {"squash": named, "initials": named}
    messages = conversation(*REPRODUCED, issue=ISSUE_TWO)
    agree(frequencies(model, messages, n), expected(plain, tau), n)
    for after, factor in ((FAILING, 1 / kappa), (FAILING.replace("Assertion", "Index"), kappa)):
        messages = conversation(*REPRODUCED, issue=ISSUE_TWO, feedback=feedback_on(EDIT, after))
        weights = {**plain, "squash": named * factor}
        # The edit itself is gone.
        agree(frequencies(model, messages, n, "candidate"), expected(weights, tau, tried=[("squash", "1", "2")]), n)


def test_functions_that_are_called_weigh_less_by_the_temperature():
    issue = "`initials` is wrong.\n\n```python\nfrom pkg.text import initials\n\nassert initials('a b') == 'ab'\n```\n"
    n = 4000
    for tau in (1.0, 0.5):
        messages = conversation(*REPRODUCED, issue=issue)
        weights = {"initials": math.exp(2 / tau), "squash": math.exp(1 / tau)}
        agree(frequencies(RepairModel(0, tau=tau), messages, n), expected(weights, tau), n)


def test_stated_weights_are_those_of_the_draws():
    messages = conversation(*REPRODUCED, issue=ISSUE_TWO)
    model, n = RepairModel(0), 5000
    stated = {(made.old, made.new): p for _, _, made, p in model.weights(messages)}
    assert math.isclose(sum(stated.values()), 1)
    drawn = collections.Counter(edits_in(ask(model, messages, i).call.input)[1:] for i in range(n))
    assert drawn.keys() <= stated.keys()
    for key, p in stated.items():
        assert abs(drawn[key] / n - p) <= 4.5 * math.sqrt(p * (1 - p) / n)


def test_submitted_diffs_count_as_tried():
    patch = '--- a/pkg/text.py\n+++ b/pkg/text.py\n@@ -7,3 +7,3 @@\n     for word in text.split(" "):\n'
    patch += "-        if len(word) > 1:\n+        if len(word) > 0:\n             out.append(word)\n"
    attempts = [{"tool": "edit", "args": EDIT, "steps": [], "patch": patch}]
    text = renderer()("feedback", kind="edit", attempts=attempts)
    left = {made.new for _, _, made, _ in RepairModel().weights(conversation(*REPRODUCED, feedback=text))}
    assert ("        if len(word) > 0:",) not in left
    assert ("        if len(word) > 2:",) not in left
    assert ("        if len(word) >= 1:",) in left


def test_share_of_incomplete_scripts_is_eps_and_half_of_it_when_advised():
    n = 3000
    for eps in (0.3, 0.8):
        model, looked = RepairModel(0, eps=eps), conversation(*LOOKED)
        written = [ask(model, looked, i).call.input["content"] for i in range(n)]
        assert set(written) == {SNIPPET, IMPORTS}
        assert abs(written.count(IMPORTS) / n - eps) <= 4.5 * math.sqrt(eps * (1 - eps) / n)
        attempts = [{"tool": "create", "args": {"path": "reproduce.py", "content": IMPORTS}, "steps": [], "patch": ""}]
        told = renderer()("feedback", kind="create", attempts=attempts)
        looked = conversation(*LOOKED, feedback=told)
        advised = [ask(model, looked, i, "candidate").call for i in range(n)]
        complete = sum(call.input["content"].startswith(SNIPPET) for call in advised) / n
        assert abs(complete - (1 - eps / 2)) <= 4.5 * math.sqrt(eps / 2 * (1 - eps / 2) / n)
        assert all(call.input != attempts[0]["args"] for call in advised)


def test_script_that_passes_at_first_is_completed_or_not_believed():
    passing = "(The command printed nothing.)\n(open file: none, cwd: ., exit code: 0)"
    start = [
        *LOOKED,
        ("create", {"path": "reproduce.py", "content": IMPORTS}, "Created reproduce.py."),
        ("bash", {"command": "python reproduce.py"}, passing),
    ]
    model, messages = RepairModel(0, eps=0.5), conversation(*start)
    calls = [ask(model, messages, i).call for i in range(400)]
    appended = [call.input["content"] for call in calls if call.name == "append"]
    assert {call.name for call in calls} == {"append", "edit"}
    assert {IMPORTS + content == SNIPPET for content in appended} == {True, False}
    edited = [*start, ("edit", EDIT, "Edited pkg/text.py.")]
    assert ask(RepairModel(0), conversation(*edited)).call.name == "run_tests"
    tested = [*edited, ("run_tests", {}, "4 passed\n(open file: none, cwd: ., exit code: 0)")]
    assert ask(RepairModel(0), conversation(*tested)).call.name == "submit"


def test_edit_that_does_not_help_is_built_on_with_probability_rho():
    n = 2000
    failed = conversation(
        *REPRODUCED,
        ("edit", EDIT, "Edited pkg/text.py."),
        ("bash", {"command": "python reproduce.py"}, FAILING),
        ("run_tests", {}, "FAILED tests/test_all.py::test_short\n(open file: none, cwd: ., exit code: 1)"),
    )
    for rho in (0.0, 0.4, 1.0):
        model = RepairModel(0, rho=rho)
        calls = [ask(model, failed, i).call for i in range(n)]
        built = sum(call.name == "edit" for call in calls) / n
        assert {call.name for call in calls} <= {"edit", "undo_edit"}
        assert abs(built - rho) <= 4.5 * math.sqrt(rho * (1 - rho) / n)
    assert ask(RepairModel(0, max_edits=1), failed).call.name == "submit"


def test_submission_is_looked_at_again_or_changed_where_tests_failed():
    attempts = [{"tool": "submit", "args": {}, "steps": [], "patch": ""}]
    told = renderer()("feedback", kind="submit", attempts=attempts)
    edited = [*REPRODUCED, ("edit", EDIT, "Edited pkg/text.py.")]
    for code, names in ((0, {"submit", "run_tests"}), (1, {"edit", "undo_edit"})):
        status = f"(open file: none, cwd: ., exit code: {code})"
        path = [*edited, ("bash", {"command": "python reproduce.py"}, status), ("run_tests", {}, status)]
        model = RepairModel(0, max_edits=1)
        assert ask(model, conversation(*path)).call.name == "submit"
        found = {ask(model, conversation(*path, feedback=told), i, "candidate").call.name for i in range(60)}
        assert found == names


def test_function_longer_than_a_window_is_read_whole():
    body = "".join(f"    total += {i} * n\n" for i in range(230))
    source = (
        f'"""Long."""\n\n\ndef other(n):\n    return n\n\n\ndef long(n):\n    total = 0\n{body}    return total - 1\n'
    )
    issue = "`long` is wrong.\n\n```python\nfrom pkg.text import long\n\nassert long(0) == 0\n```\n"
    model = Recorded(0, eps=0)
    searched(model, {**FILES, "pkg/text.py": source}, issue, calls=8, strategy="linear")
    calls = [answer.call for _, answer in model.kept]
    opened = [call for call in calls if call.name == "open"]
    assert len(opened) == 3
    stated = {made.old for _, _, made, _ in model.weights(model.kept[-1][0].messages)}
    assert ("    return total - 1",) in stated
    assert ("    total += 150 * n",) in stated
    edit = next(call for call in calls if call.name == "edit")
    assert source.count(edit.input["old"]) == 1


def test_bug_in_a_function_called_in_another_module_is_in_reach():
    issue = (
        "`Label('ab').short()` has too many blanks.\n\n```python\nfrom pkg.label import Label\n\n"
        "assert Label('ab').short() == '        ab'\n```\n"
    )
    model = Recorded(0, eps=0)
    searched(model, {**FILES, "pkg/text.py": TEXT.replace("(width -", "(width +")}, issue, calls=30, strategy="linear")
    first = next(request for request, answer in model.kept if answer.call.name == "edit")
    reached = {function for _, function, _, _ in model.weights(first.messages)}
    assert {"Label.short", "padded"} <= reached


def test_works_with_observations_left_out():
    config = {"history": HistorySection(mode="last_n", n=4), "strategy": "linear", "calls": 60}
    for seed in range(4):
        state = searched(RepairModel(seed, max_edits=4, rho=0.5), **config)
        (leaf,) = state.tree.leaves()
        assert leaf.exit == "submit"
        assert any(node.tool == "edit" for node in state.tree.nodes.values())


def test_mutations_of_an_edited_function_are_those_of_its_new_source():
    file, compared = file_of(window(shown("a.py", TEXT))), 0
    for before in file.functions:
        for change in changes(before):
            after = before.source[: change.start] + change.text + before.source[change.end :]
            (function,) = [f for f in file.edited(before.source, after).functions if f.name == before.name]
            assert function.source == after
            left = {after[: m.start] + m.text + after[m.end :] for m in changes(function)}
            fresh = {mutate(after, m) for m in mutations(after)}
            assert left <= fresh
            touching = [m for m in changes(before) if m.end >= change.start and m.start <= change.end]
            assert len(left) >= len(changes(before)) - len(touching)
            compared += len(left)
    assert compared > 200


def test_critic_prefers_scripts_that_can_fail_and_answers_as_asked():
    candidates = [
        {"tool": "create", "args": {"path": "reproduce.py", "content": IMPORTS}, "text": ""},
        {"tool": "create", "args": {"path": "reproduce.py", "content": SNIPPET}, "text": ""},
        {"tool": "submit", "args": {}, "text": ""},
    ]
    for full, schema in ((True, None), (False, {"type": "object"})):
        text = renderer()("critic", issue=ISSUE, attempts=[], candidates=candidates, full=full)
        messages = [{"role": "user", "content": [{"type": "text", "text": text}]}]
        answer = ask(RepairModel(0), messages, role="critic", schema=schema)
        assert answer.call is None
        assert (json.loads(answer.text)["index"] == 1) if schema else ("<index>1</index>" in answer.text)


@pytest.mark.parametrize("context", ["compact", "full"])
def test_critic_never_falls_back(context):
    state = searched(RepairModel(2), critic=CriticSection(context=context))
    chosen = [n for n in state.tree.nodes.values() if n.expansion]
    assert chosen
    assert not any("critic_fallback" in n.flags for n in chosen)


def test_restarts_are_independent_runs():
    state = searched(RepairModel(0), strategy="restart", restarts=6, calls=None)
    patches = {leaf.patch for leaf in state.tree.leaves()}
    assert len(state.tree.leaves()) == 6
    assert len(patches) > 2


def test_needs_the_full_set_of_tools():
    tools = [tool.declaration() for tool in registry("bash").values()]
    with pytest.raises(ModelError, match="aci='full'"):
        RepairModel().complete(ModelRequest("act", (), messages=conversation(), tools=tools))


def test_words_for_a_reviewer():
    assert ask(RepairModel(), conversation(), role="summarize").text
    assert ask(RepairModel(), conversation(), role="review").call is None


@pytest.mark.parametrize("wrong", [{"eps": 1.2}, {"rho": -0.1}, {"tau": 0.0}, {"kappa": 0.0}, {"max_edits": 0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="not"):
        RepairModel(**wrong)


def test_mutation_library_is_not_imported_with_the_models():
    code = "import sys, dars.models; print('cosmic_ray' in sys.modules, 'dars.bench' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_call_without_a_snippet_trusts_the_tests():
    model = RepairModel(0)
    path = [*LOOKED, ("edit", EDIT, "Edited pkg/text.py.")]
    assert ask(model, conversation(*LOOKED, issue="`squash` is wrong.")).call.name == "edit"
    assert ask(model, conversation(*path, issue="`squash` is wrong.")).call == ToolCall("run_tests", {}, "toolu_act_0")
