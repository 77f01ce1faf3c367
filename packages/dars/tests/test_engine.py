"""What happens at a node: kinds by effect, workspaces that fail, rollouts, what critics and summaries are shown."""

import json
import shlex

import pytest

from dars.aci import registry
from dars.aci.base import Observation, Tool
from dars.config import BudgetSection, CandidatesSection, CriticSection, DarsConfig, FeedbackSection
from dars.env.memory import MemoryEnvironment
from dars.errors import EnvError
from dars.models.base import ScriptedModel, ToolCall
from dars.prompts import make_prompts
from dars.search import Engine
from dars.search.values import passing_share

FILES = {"a.py": "x = 1\n", "b.py": "y = 1\n"}
WORK = [
    ToolCall("search_dir", {"query": "x"}),
    ToolCall("create", {"path": "repro.py", "content": "import a\n"}),
    ToolCall("append", {"path": "repro.py", "content": "print(a.x)\n"}),
    ToolCall("edit", {"path": "a.py", "old": "x = 1", "new": "x = 2"}),
    ToolCall("submit"),
]


def engine_for(answer, env=None, tools=None, value=None, **settings):
    config = DarsConfig(
        **{"budget": BudgetSection(steps=80, depth=12), "candidates": CandidatesSection(k=2, retries=0), **settings}
    )
    tools = registry() if tools is None else tools
    requests, events = [], []

    def policy(request):
        requests.append(request)
        return answer(request)

    prompts = make_prompts("the sum is wrong", list(tools.values()))
    env = MemoryEnvironment(FILES) if env is None else env
    return Engine(ScriptedModel(policy), env, tools, prompts, config, log=events.append, value=value), requests, events


def worker(request):
    """The script; candidates differ by a further line."""
    if request.role == "critic":
        return json.dumps({"notes": [], "scores": [], "index": 1})
    if request.role == "summarize":
        return f"in short: {len(request.messages[0]['content'][0]['text'])}"
    call = WORK[min(len(request.path), len(WORK) - 1)]
    if request.role == "candidate":
        key = {"create": "content", "append": "content", "edit": "new"}.get(call.name)
        note = f"note_{request.sample} = {len(request.path)}\n"
        return ToolCall(
            call.name, {**call.input, key: f"{call.input[key].rstrip()}\n{note}"} if key else {"summary": note}
        )
    return call


def test_kinds_by_effect_are_those_of_the_tools():
    by_tool, _, _ = engine_for(worker)
    by_effect, _, _ = engine_for(worker, kind_source="effect")
    by_tool.run(), by_effect.run()
    assert by_effect.state.tree.skeleton() == by_tool.state.tree.skeleton()
    assert by_effect.state.expansions == by_tool.state.expansions
    assert len(by_tool.state.expansions) > 4


def test_agent_with_a_shell_alone_is_expanded_by_what_its_commands_do():
    script = ["grep -rn submit .", "write repro.py", "more repro.py", "write a.py", "submit"]

    def run(env, args, state):
        verb, _, path = args["command"].partition(" ")
        if verb == "write":
            env.write_file(path, f"{args['command']} {args.get('n')}\n".encode())
        if verb == "more":
            env.write_file(path, env.read_file(path) + f"more {args.get('n')}\n".encode())
        return Observation("./a.py: submit")

    def answer(request):
        if request.role == "critic":
            return "0"
        return ToolCall("bash", {"command": script[min(len(request.path), 4)], "n": request.sample})

    shell = {"bash": Tool("bash", {}, "other", run)}
    engine, _, _ = engine_for(answer, tools=shell, kind_source="effect")
    engine.run()
    first = [node.kind for node in engine.state.tree.first_line(0)][1:]
    assert first == ["other", "create", "append", "edit", "submit"]
    assert {e.kind for e in engine.state.expansions} == {"create", "append", "edit", "submit"}
    assert all(leaf.args["command"] == "submit" for leaf in engine.state.tree.leaves())


class Breaking(MemoryEnvironment):
    """Fails when it is to remember, or to put back, for the n-th time."""

    def __init__(self, files, left):
        super().__init__(files)
        self.left = {"snapshot": 10**9, "restore": 10**9, **left}

    def _use(self, name):
        self.left = {**self.left, name: self.left[name] - 1}
        if self.left[name] < 0:
            raise EnvError(f"no {name}: the disk is full")

    def snapshot(self):
        self._use("snapshot")
        return super().snapshot()

    def restore(self, snapshot_id):
        self._use("restore")
        super().restore(snapshot_id)


@pytest.mark.parametrize(("name", "after"), [("snapshot", 3), ("snapshot", 9), ("restore", 1), ("restore", 2)])
def test_workspace_that_fails_ends_a_path_and_not_the_search(name, after):
    engine, _, events = engine_for(worker, Breaking(FILES, {name: after}))
    assert engine.run() == "done"
    ended = [e for e in events if e["type"] == "end" and e["exit"] == "exit_env"]
    dropped = [e for e in events if e["type"] == "exhausted" and "exit_env" in str(e["rejected"])]
    assert ended or dropped
    assert not engine.state.pending
    assert not engine.state.open


def test_compact_critic_is_told_the_issue_and_what_followed():
    engine, requests, _ = engine_for(worker)
    engine.run()
    asked = next(r for r in requests if r.role == "critic" and len(r.path) == 3)
    text = asked.messages[0]["content"][0]["text"]
    assert len(asked.messages) == 1
    assert asked.schema is not None
    assert not asked.tools
    assert "the sum is wrong" in text
    assert '"create"' not in text  # what came before the decision is not its attempt
    assert "Submitted:" in text  # how the first attempt ended
    assert text.count("<candidate ") == 2


def test_full_critic_is_asked_in_the_history_of_the_agent():
    engine, requests, _ = engine_for(worker, critic=CriticSection(context="full"))
    engine.run()
    asked = next(r for r in requests if r.role == "critic")
    acted = next(r for r in requests if r.role == "act" and r.path == asked.path)
    assert asked.messages[: len(acted.messages) - 1] == acted.messages[:-1]
    assert asked.tools == acted.tools
    assert asked.schema is None
    assert "<index>" in asked.messages[-1]["content"][-1]["text"]


def test_summary_stands_in_place_of_the_steps_and_is_a_call():
    engine, requests, events = engine_for(worker, feedback=FeedbackSection(summarize=True))
    engine.run()
    asked = [r for r in requests if r.role == "summarize"]
    told = [r for r in requests if r.role == "candidate" and len(r.path) == 3]
    assert asked
    assert told
    for request in told:
        text = request.messages[-1]["content"][1]["text"]
        assert "<summary>in short:" in text
        assert "<observation>" not in text
        assert "+x = 2" in text  # the submitted diff stays
    assert engine.state.calls == len(requests)
    assert sum(event.get("calls", 0) for event in events) == len(requests)


def test_rollouts_pause_and_can_go_on():
    def value(leaf, spent):
        return leaf.depth / 12

    engine, _, events = engine_for(worker, value=value, strategy="mcts", rollout=2, max_children=1)
    assert engine.run() == "done"
    kinds = [event["type"] for event in events]
    assert kinds.count("pause") == kinds.count("reopen") == 2
    line = list(engine.state.tree.first_line(0))
    assert [node.tool for node in line[1:]] == [call.name for call in WORK]
    assert line[-1].exit == "submit"
    assert all(node.exit == "" for node in line[:-1])


def test_value_by_tests_is_the_share_that_passes_in_the_state_of_a_leaf():
    report = '<testsuite><testcase classname="t" name="a"/><testcase classname="t" name="b">{}</testcase></testsuite>'

    ran = []

    class Tested(MemoryEnvironment):
        def exec(self, cmd, timeout=None, stdin=None):
            ran.append(shlex.split(cmd.splitlines()[-1]))
            broken = "" if b"x = 2" in self.read_file("a.py") else "<failure/>"
            self.write_file(".dars-junit.xml", report.format(broken).encode())
            return super().exec(cmd, timeout, stdin)

        def clone(self):
            twin = Tested({})
            twin._files, twin._base, twin._known = dict(self._files), self._base, self._known
            return twin

    env = Tested(FILES)
    engine, _, _ = engine_for(worker, env)
    engine.run()
    visible = ["tests/test_a.py::test_a[x y]", "tests/test_a.py::test_b['$HOME']"]
    value = passing_share(engine.state.tree, env.clone(), engine.tools, visible=visible)
    nodes = engine.state.tree.nodes
    assert value(nodes[2], print) == 0.5
    assert {value(leaf, print) for leaf in engine.state.tree.leaves()} == {1.0}
    assert all(words == ["python", "-m", "pytest", "-q", *visible] for words in ran)
