"""Requests and replacements: message layout, feedback, rejection, the critic, endings."""

import hashlib
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dars.aci.base import Observation, Tool
from dars.config import (
    BudgetSection,
    CandidatesSection,
    CriticSection,
    DarsConfig,
    DedupeSection,
    FeedbackSection,
    HistorySection,
)
from dars.env.memory import MemoryEnvironment
from dars.models.base import Capabilities, ModelResponse, ScriptedModel, ToolCall, answered
from dars.prompts import make_prompts
from dars.runs import used
from dars.search.engine import Engine
from dars.search.resample import canonical
from dars.search.turns import elide
from dars.tree import Tree
from dars.viz import node_text

KINDS = ("create", "append", "edit", "submit", "other")


def tool(kind):
    def run(env, args, state):
        env.write_file("log", env.read_file("log") + json.dumps(args).encode())
        return Observation(f"did {kind} {json.dumps(args, sort_keys=True)}")

    return Tool(kind, {"type": "object"}, kind, run, code_arguments=("code",))


TOOLS = {kind: tool(kind) for kind in KINDS}


class Recording(ScriptedModel):
    """Keeps every request."""

    def __init__(self, policy):
        super().__init__(policy)
        self.requests = []

    def complete(self, request):
        self.requests.append(request)
        answer = self.policy(request)
        return answer if isinstance(answer, ModelResponse) else answered(answer, request, self.name)


def searched(answer, **sections):
    sections = {"budget": BudgetSection(steps=60, depth=8), "candidates": CandidatesSection(k=2, retries=1), **sections}
    model, events = Recording(answer), []
    prompts = make_prompts("the sum is wrong", list(TOOLS.values()))
    engine = Engine(model, MemoryEnvironment({"log": ""}), TOOLS, prompts, DarsConfig(**sections), log=events.append)
    engine.run()
    return engine, model, events


def script(kinds):
    """First choices of these kinds; candidates of the same kind with other arguments; the critic takes the last."""

    def policy(request):
        depth = len(request.path)
        if request.role == "critic":
            return json.dumps({"notes": [], "scores": [], "index": 1})
        return ToolCall(kinds[depth], {"n": request.sample, "at": depth, "role": request.role})

    return policy


STORY = ["other", "edit", "other", "submit"]


def test_every_request_keeps_the_layout_of_messages():
    engine, model, _ = searched(script(STORY))
    assert len(model.requests) > 10
    for request in model.requests:
        turns = request.messages
        assert [turn["role"] for turn in turns] == ["user", "assistant"] * (len(turns) // 2) + ["user"]
        for said, heard in zip(turns[1::2], turns[2::2], strict=True):
            calls = [block for block in said["content"] if block["type"] == "tool_use"]
            assert len(calls) == 1
            assert heard["content"][0]["type"] == "tool_result"
            assert heard["content"][0]["tool_use_id"] == calls[0]["id"]
        if request.role != "critic":
            assert len(turns) == 1 + 2 * len(request.path)
    assert engine.state.tree.skeleton() == "o(eo(s|s)|eo(s|s))"


@pytest.mark.parametrize("context", ["compact", "full"])
def test_only_replacements_are_drawn_warm(context):
    settings = {"critic": CriticSection(context=context), "feedback": FeedbackSection(summarize=True)}
    _, model, _ = searched(script(STORY), **settings)
    found = {(r.role, r.temperature) for r in model.requests}
    assert found == {("act", 0.0), ("candidate", 0.8), ("critic", 0.0), ("summarize", 0.0)}
    _, model, _ = searched(script(STORY), strategy="restart", restarts=2)
    assert {(r.role, r.temperature) for r in model.requests} == {("act", 0.8)}  # else all runs would be the same


def test_no_temperature_is_asked_of_a_provider_without_one():
    class Cold(Recording):
        capabilities = Capabilities()

    model = Cold(script(STORY))
    config = DarsConfig(budget=BudgetSection(depth=8), candidates=CandidatesSection(k=2))
    prompts = make_prompts("the sum is wrong", list(TOOLS.values()))
    Engine(model, MemoryEnvironment({"log": ""}), TOOLS, prompts, config).run()
    assert {r.role for r in model.requests} == {"act", "candidate", "critic"}
    assert {r.temperature for r in model.requests} == {None}


def test_feedback_stands_after_the_result_in_one_request_only():
    _, model, _ = searched(script(STORY))
    for request in model.requests:
        texts = [b for turn in request.messages[1:] for b in turn["content"] if b["type"] == "text"]
        if request.role == "act":
            assert not texts
        if request.role == "candidate":
            assert texts == [b for b in request.messages[-1]["content"] if b["type"] == "text"]
            assert "was tried here" in texts[0]["text"]
    told = next(r for r in model.requests if r.role == "candidate" and len(r.path) == 1)
    text = told.messages[-1]["content"][1]["text"]
    assert "replaces the action" in text
    assert "did other" in text  # what followed from the first choice
    assert "replaces the action above" in text
    shallow = next(r for r in model.requests if r.role == "candidate" and len(r.path) == 3)
    assert "did submit" not in shallow.messages[-1]["content"][1]["text"]  # submit: no trajectory


def test_what_was_tried_is_told_once_to_model_and_critic():
    engine, model, _ = searched(script(STORY))
    edit, after = (engine.state.tree.nodes[i] for i in (2, 3))
    told = [r.messages[-1]["content"][-1]["text"] for r in model.requests if r.path == (0,) and r.role != "act"]
    assert len(told) == 3  # two candidates and their critic
    for text in told:
        action = f'<action tool="edit">{json.dumps(edit.args, sort_keys=True)}</action>'
        assert text.count(action) == text.count('<action tool="edit">') == 1
        assert f"{action}\n<observation>{edit.observation}</observation>\n<step><action" in text
        assert text.count(after.observation) == 1


def test_feedback_can_stay_on_the_path_of_the_alternative():
    _, model, _ = searched(script(STORY), feedback=FeedbackSection(keep=True))
    below = [r for r in model.requests if r.role == "act" and r.path[:2] == (0, 1)]
    assert below
    assert all("was tried here" in r.messages[2]["content"][1]["text"] for r in below)
    assert all(len(r.messages[2]["content"]) == 1 for r in model.requests if r.role == "act" and r.path[:2] == (0, 0))


def test_requests_of_children_begin_with_those_of_their_parents():
    _, model, _ = searched(script(STORY))
    acts = {r.path: r.messages for r in model.requests if r.role == "act"}
    for path, turns in acts.items():
        if path[:-1] in acts:
            parent = acts[path[:-1]]
            assert json.dumps(turns[: len(parent)]) == json.dumps(parent)


def test_repetitions_are_rejected_and_drawn_again():
    def policy(request):
        if request.role == "critic":
            raise AssertionError("one candidate needs no critic")
        if len(request.path) == 1 and request.role == "candidate":
            fresh = request.sample >= 2  # the first round repeats the first choice, written in another order
            return ToolCall("edit", {"b": 2, "a": 1} if not fresh else {"a": request.sample})
        return ToolCall(STORY[len(request.path)], {"a": 1, "b": 2})

    engine, model, _ = searched(policy, candidates=CandidatesSection(k=1, retries=2))
    samples = [r.sample for r in model.requests if r.role == "candidate" and len(r.path) == 1]
    assert samples == [0, 1, 2]
    (alternative,) = [n for n in engine.state.tree.nodes.values() if n.child_index == 1 and n.depth == 2]
    assert len(alternative.expansion["rejected"]) == 2
    assert alternative.args == {"a": 2}


def test_alternatives_carry_the_hash_of_the_prompt_that_they_were_drawn_from():
    engine, model, events = searched(script(STORY))
    asked = {r.path: r for r in reversed(model.requests) if r.role == "candidate"}
    kept = [event["node"] for event in events if event["type"] == "step" and event["node"]["expansion"]]
    assert kept
    for node in kept:
        request = asked[engine.state.tree.indices(node["parent"])]
        said = json.dumps([request.system, request.messages], sort_keys=True).encode()
        assert node["expansion"]["prompt_hash"] == hashlib.sha256(said).hexdigest()
        assert node["expansion"]["prompt_hash"] in node_text(engine.state.tree, node["id"])
        del node["expansion"]["prompt_hash"]  # as in trees of before
        assert "drawn from" not in node_text(Tree.from_json(engine.state.tree.to_json()), node["id"])


def test_node_without_another_action_is_exhausted_and_logged():
    def policy(request):
        return ToolCall(STORY[len(request.path)], {"same": True})

    engine, _, events = searched(policy)
    assert engine.state.tree.skeleton() == "oeos"
    logged = {e["node"]: e["rejected"] for e in events if e["type"] == "exhausted"}
    assert list(logged) == [1, 3]
    again = Tree.from_json(engine.state.tree.to_json())
    assert {node.id: node.rejected for node in again.nodes.values() if node.rejected} == logged
    assert node_text(again, 1).count("- repeats an earlier action: edit") == len(logged[1]) == 4
    assert engine.state.pending == []


def test_python_is_compared_by_its_syntax():
    one, two = ToolCall("edit", {"code": "x = 1"}), ToolCall("edit", {"code": "x=1  # one\n"})
    assert canonical(one, TOOLS) == canonical(two, TOOLS)
    assert canonical(one, TOOLS) != canonical(ToolCall("edit", {"code": "x = 2"}), TOOLS)
    assert canonical(ToolCall("edit", {"code": "x ="}), TOOLS) != canonical(ToolCall("edit", {"code": "y ="}), TOOLS)
    assert canonical(ToolCall("edit", {"text": "x = 1"}), TOOLS) != canonical(ToolCall("edit", {"text": "x=1"}), TOOLS)


@pytest.mark.parametrize(
    ("reply", "taken", "fallback"),
    [
        (json.dumps({"notes": [], "scores": [], "index": 1}), 1, False),
        ("the second is better <index>1</index>", 1, False),
        (json.dumps({"index": 7}), 0, True),
        (json.dumps({"index": True}), 0, True),
        ("I cannot decide", 0, True),
        (ToolCall("edit", {"n": 1}), 0, True),
    ],
)
def test_critic_chooses_or_falls_back_after_one_retry(reply, taken, fallback):
    def policy(request):
        if request.role == "critic":
            return reply
        return ToolCall(STORY[len(request.path)], {"n": request.sample, "role": request.role})

    for context in ("compact", "full"):
        engine, model, _ = searched(policy, critic=CriticSection(context=context))
        alternative = next(n for n in engine.state.tree.nodes.values() if n.child_index == 1 and n.depth == 2)
        assert alternative.expansion["critic"]["index"] == taken
        assert alternative.args["n"] == taken
        assert ("critic_fallback" in alternative.flags) == fallback
        asked = [r for r in model.requests if r.role == "critic" and len(r.path) == 1]
        assert len(asked) == 2 if fallback else 1
        assert all((r.tools != ()) == (context == "full") for r in asked)


@pytest.mark.parametrize(("bad", "rate"), [((), 0.0), ((1,), 1 / 3), ((1, 3), 1.0), (None, None)])
def test_rate_of_fallbacks_is_that_of_the_choices_that_a_critic_was_asked_for(bad, rate):
    """Three choices, after one action and (on two paths) after three."""

    def policy(request):
        if request.role == "critic":
            return "I cannot decide" if len(request.path) in bad else "0"
        return ToolCall(STORY[len(request.path)], {"n": request.sample, "role": request.role})

    engine, model, _ = searched(policy, candidates=CandidatesSection(k=1 if bad is None else 2))
    assert any(r.role == "critic" for r in model.requests) == (bad is not None)
    assert engine.state.tree.critic_fallback_rate == used(engine.state)["critic_fallback_rate"] == rate


def test_samples_of_alternatives_do_not_overlap():
    policy = DarsConfig().policy.model_copy(update={"num_expansions": 3})
    engine, model, _ = searched(script(STORY), policy=policy)
    asked = [r.sample for r in model.requests if r.role == "candidate" and r.path == (0,)]
    assert asked == [0, 1, 4, 5]
    assert len(engine.state.tree.nodes[1].children) == 3


def merged(run):
    """A search whose tool "edit" does this, and the alternative to its first edit."""

    def policy(request):
        if request.role == "critic":
            return json.dumps({"notes": [], "scores": [], "index": 0})
        return ToolCall(STORY[len(request.path)], {"n": request.sample if request.role == "candidate" else "first"})

    same = TOOLS | {"edit": Tool("edit", {}, "edit", run)}
    model, events = Recording(policy), []
    config = DarsConfig(candidates=CandidatesSection(k=2, retries=0), budget=BudgetSection(depth=8))
    prompts = make_prompts("x", list(same.values()))
    engine = Engine(model, MemoryEnvironment({"log": ""}), same, prompts, config, log=events.append)
    engine.run()
    return engine, next(n for n in engine.state.tree.nodes.values() if n.child_index == 1 and n.depth == 2)


def write_the_same(env, args, state):
    env.write_file("log", b"the same")
    return Observation("the same")


def test_branch_whose_workspace_equals_a_siblings_is_not_continued():
    _, alternative = merged(write_the_same)
    assert alternative.exit == "transposed"
    assert not alternative.children


def test_branch_that_only_read_is_continued_beside_another_that_did():
    _, alternative = merged(lambda env, args, state: Observation(f"seen: {args['n']}"))
    assert alternative.exit == ""
    assert alternative.children


@pytest.mark.parametrize("asked", [{"action": {"name": "edit", "input": {"n": "by hand"}}}, {"hint": "again"}, {}])
def test_branch_that_a_person_asked_for_is_continued_whatever_a_sibling_did(asked):
    engine, alternative = merged(write_the_same)
    at = alternative.parent
    engine.state.apply({"type": "fork", "node": at, **asked})
    engine.run()
    forked = engine.state.tree.children(at)[2]
    assert forked.state_hash == alternative.state_hash
    assert forked.children


def test_endings_without_an_action():
    def reply(stop, call=None):
        content = [{"type": "text", "text": "no"}]
        return ModelResponse(content, call, "no", stop, detail="violence")

    endings = ("end_turn", "exit_format", 3), ("refusal", "exit_refusal", 1), ("context", "exit_context", 2)
    for stop, exit, calls in endings:
        engine, model, _ = searched(lambda request, stop=stop: reply(stop))
        assert engine.state.tree.root.exit == exit
        assert len(model.requests) == calls
    for call in (None, ToolCall("other", {}, "cut")):
        engine, model, _ = searched(lambda request, call=call: reply("max_tokens", call))
        assert [r.max_tokens for r in model.requests] == [4096, 8192]
        assert (engine.state.tree.root.exit, engine.state.calls) == ("exit_format", 2)
    corrected = [len(r.messages) for r in searched(lambda request: reply("end_turn"))[1].requests]
    assert corrected == [1, 3, 3]  # the correction is in the next request only


def test_replacement_that_was_cut_off_is_drawn_again_with_twice_the_tokens_and_never_executed():
    def policy(request):
        if request.role == "candidate" and request.max_tokens == 4096:
            return ModelResponse([], ToolCall("edit", {"n": "half"}), "I will", "max_tokens")
        return script(STORY)(request)

    engine, model, _ = searched(policy)
    at = [(r.path, r.max_tokens) for r in model.requests if r.role == "candidate"]
    first = [limit for path, limit in at if path == at[0][0]]
    assert first == [4096, 4096, 8192, 8192]
    alternatives = [n for n in engine.state.tree.nodes.values() if n.child_index]
    assert alternatives
    assert not any(n.args.get("n") == "half" for n in engine.state.tree.nodes.values())
    reasons = [{r["reason"] for r in n.expansion["rejected"]} for n in alternatives]
    assert reasons == [{"cut off at the limit of tokens"}] * len(alternatives)


def test_unsubmitted_work_is_harvested():
    engine, _, _ = searched(lambda request: ToolCall("other", {"n": len(request.path)}))
    (leaf,) = engine.state.tree.leaves()
    assert leaf.exit == "exit_depth"
    assert "+++ b/log" in leaf.patch


texts = st.lists(st.text("ab\n", max_size=400), max_size=40)


@settings(max_examples=60, deadline=None)
@given(texts, st.integers(40, 200), st.integers(0, 39))
def test_blockwise_elision_seldom_breaks_a_prefix(observations, high, low):
    history = HistorySection(mode="blockwise", high=high, low=low)
    breaks, before = 0, []
    for length in range(len(observations) + 1):
        shown = elide(observations[:length], history)
        kept = [text for text, whole in zip(shown, observations, strict=False) if text == whole]
        assert sum(len(text) // 4 for text in kept[:-1]) <= high
        breaks += shown[: len(before)] != before
        before = shown
    total = sum(len(text) // 4 for text in observations)
    assert breaks <= math.ceil(total / (high - low))


@pytest.mark.parametrize(("high", "low"), [(10, 10), (10, 20)])
def test_elision_that_would_never_end_is_refused(high, low):
    with pytest.raises(ValueError, match=f"low is {low} and high is {high}; low has to be below high"):
        HistorySection(high=high, low=low)


def test_last_n_keeps_the_last_observations():
    shown = elide(["a\nb", "c", "d"], HistorySection(mode="last_n", n=2))
    assert shown == ["[observation left out: 2 lines]", "c", "d"]


def test_states_are_compared_only_when_asked():
    engine, _, _ = searched(script(STORY), dedupe=DedupeSection(states=False))
    assert all(node.exit != "transposed" for node in engine.state.tree.nodes.values())


def test_prefix_lasts_up_to_where_alternatives_are_or_may_be_owed():
    _, model, _ = searched(script(STORY))
    lasting = {r.path: r.long_lived for r in model.requests if r.role == "act"}
    assert lasting[()] == 0  # the first action may open an expansion
    assert lasting[0,] == 2
    assert lasting[0, 0] == 4  # a submit may still
    assert lasting[0, 1] == 4
    assert all(r.long_lived == 2 * len(r.path) for r in model.requests if r.role == "candidate")
    edits = DarsConfig().policy.model_copy(update={"limits": {"edit": 1}})
    _, model, _ = searched(script(STORY), policy=edits)
    lasting = {r.path: r.long_lived for r in model.requests if r.role == "act"}
    assert lasting[0, 0, 0] == 2  # nothing opens below: what has to last ends where the edit was decided
    assert lasting[0, 1, 0] is None  # nothing is owed on this path any more
