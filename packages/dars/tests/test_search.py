"""The rule of traversal: a released tree and its prunings, identities on random trees, order and workers."""

import json
import shutil
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dars import theory
from dars.aci.base import Observation, Tool
from dars.config import BudgetSection, CandidatesSection, DarsConfig, DedupeSection, FeedbackSection, PolicySection
from dars.env.memory import MemoryEnvironment
from dars.errors import TaskError, TreeFormatError
from dars.models.base import ScriptedModel, ToolCall
from dars.policy import ExpansionPolicy
from dars.runs import restored, search
from dars.search import Engine, simulate_skeleton
from dars.search.state import SearchState
from dars.search.turns import Prompts
from dars.tree import Tree

# A tree that the authors of the paper released, as kinds of actions (arXiv:2503.14269, public data).
RELEASED = (
    "ooo(c(ao(eoeeoeo(s|s)|eoeeoeo(s|s))|c(aoeoeoooeecao(s|s)|aoeoooeo(s|s)))|"
    "c(ao(eoooeeoeo(s|s)|eoeo(s|s))|aooeeoeeoeeoeeoeoeoeoooooooeoeeeeooeoeoeeoeoeeoo))"
)
PRUNINGS = {
    (): (14, 1), ("create",): (27, 2), ("append",): (38, 3), ("edit",): (22, 2), ("submit",): (15, 2),
    ("create", "append"): (97, 5), ("edit", "submit"): (24, 4),
    ("create", "append", "edit", "submit"): (116, 13),
}  # fmt: skip
PAPER = ExpansionPolicy.paper()
KINDS = ("create", "append", "edit", "submit", "other")


def test_released_tree_is_visited_step_by_step():
    trace = simulate_skeleton(RELEASED, PAPER)
    assert (trace.n_steps, trace.n_leaves, trace.replay_steps, trace.missing) == (116, 13, 110, 0)
    assert sum(node.exit == "submit" for node in trace.tree.leaves()) == 12
    assert trace.branches == [
        (3, "create"), (4, "append"), (6, "edit"), (13, "submit"), (4, "append"), (6, "edit"), (15, "submit"),
        (5, "append"), (18, "submit"), (13, "submit"), (13, "submit"), (10, "submit"),
    ]  # fmt: skip
    assert sum(trace.leaf_depths) == 226


@pytest.mark.parametrize("kinds", PRUNINGS)
def test_fewer_limits_give_the_released_prunings(kinds):
    trace = simulate_skeleton(RELEASED, ExpansionPolicy(dict.fromkeys(kinds, 1), PAPER.allowed_after))
    assert (trace.n_steps, trace.n_leaves) == PRUNINGS[kinds]


def test_cutting_a_tree_afterwards_is_searching_with_fewer_limits():
    whole = simulate_skeleton(RELEASED, PAPER).tree
    for size in range(5):
        for kinds in combinations(KINDS[:4], size):
            limits = dict.fromkeys(kinds, 1)
            searched = simulate_skeleton(RELEASED, ExpansionPolicy(limits, PAPER.allowed_after)).tree
            assert whole.prune(limits).skeleton() == searched.skeleton()


def test_empty_skeleton_is_a_leaf():
    trace = simulate_skeleton("", PAPER)
    assert (trace.n_steps, trace.n_leaves, trace.leaf_depths, trace.replay_steps) == (0, 1, [0], 0)
    assert trace.n_leaves == theory.leaf_count([])


def test_skeleton_and_file_round_trips():
    tree = simulate_skeleton("oe(e(s|s)|os)", PAPER, max_depth=9).tree
    again = Tree.from_json(tree.to_json())
    assert again.skeleton() == tree.skeleton()
    assert again.to_json() == tree.to_json()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ox", "position 1"), ("o(e|s", "position 1"), ("o)", "position 1"), ("o(e)", "position 1"),
        ("o(e|s)o", "position 6"), ("o(|s)", "position 2"),
    ],
)  # fmt: skip
def test_malformed_skeletons_name_the_place(text, message):
    with pytest.raises(ValueError, match=message):
        simulate_skeleton(text, PAPER)


def test_policy_refuses_what_makes_no_sense():
    for limits, after, number in (
        ({"fix": 1}, {}, 2),
        ({"edit": -1}, {}, 2),
        ({"edit": 1}, {"edit": ["fix"]}, 2),
        ({"edit": 1.7}, {}, 2),
        ({}, {}, 0),
        ({}, {}, 1.7),
    ):
        with pytest.raises(ValueError, match=r"unknown kind|at least"):
            ExpansionPolicy(limits, after, number)


# --- random worlds --------------------------------------------------------------------------------------------------

policies = st.builds(
    ExpansionPolicy,
    st.dictionaries(st.sampled_from(KINDS[:4]), st.integers(0, 2), max_size=4),
    st.dictionaries(st.sampled_from(KINDS[:4]), st.lists(st.sampled_from(KINDS[:4]), max_size=3), max_size=4),
    st.integers(1, 3),
)


def world(seed, policy, workers=1, order="shallowest", depth=7, calls=None, value=None, draw=0, **options):
    """An engine in a world where the kind of an action is a hash of its place in the tree."""

    def act(request):
        index = request.sample // 100 if request.role == "act" else request.sample + 1
        value = hash((seed, request.path, index)) % 100
        kind = "submit" if value < 12 else KINDS[value % 5]
        return ToolCall(kind, {"at": [*request.path, index]})

    def run(kind):
        def write(env, args, state):
            env.write_file("log", env.read_file("log") + repr(args["at"]).encode())
            state["count"] = state.get("count", 0) + 1
            return Observation(kind)

        return write

    config = DarsConfig(
        policy=PolicySection(
            limits=dict(policy.limits), allowed_after={k: sorted(v) for k, v in policy.allowed_after.items()},
            num_expansions=policy.num_expansions,
        ),
        candidates=CandidatesSection(k=1, retries=0), feedback=FeedbackSection(enabled=False),
        dedupe=DedupeSection(states=False), budget=BudgetSection(steps=400, depth=depth, calls=calls),
        workers=workers, order=order, seed=draw, **options,
    )  # fmt: skip
    events = []
    tools = {kind: Tool(kind, {}, kind, run(kind)) for kind in KINDS}
    engine = Engine(
        ScriptedModel(act), MemoryEnvironment({"log": ""}), tools, Prompts(), config, log=events.append, value=value
    )
    return engine, events


def places(engine):
    tree = engine.state.tree
    return {(tree.indices(i), n.kind, n.state_hash, n.exit, n.state.get("count")) for i, n in tree.nodes.items()}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), policies)
def test_steps_and_replayed_steps_are_the_depths_of_the_leaves(seed, policy):
    engine, _ = world(seed, policy)
    assert engine.run() in ("done", "steps")
    if engine.stopped:
        return
    nodes = list(engine.state.tree.nodes.values())[1:]
    leaves = [n.depth for n in nodes if not n.children]
    assert len(nodes) + sum(n.depth - 1 for n in nodes if n.child_index) == sum(leaves)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), policies)
def test_nodes_do_not_depend_on_order_or_workers(seed, policy):
    engine, _ = world(seed, policy)
    engine.run()
    if engine.stopped:
        return
    for options in ({"order": "deepest"}, {"order": "breadth"}, {"workers": 3}):
        other, _ = world(seed, policy, **options)
        other.run()
        assert places(other) == places(engine)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), policies)
def test_state_of_every_node_is_that_of_its_path(seed, policy):
    """Whatever was executed in between: restoring brings back the workspace and what the tools remember."""
    engine, _ = world(seed, policy)
    engine.run()
    for node in engine.state.tree.nodes.values():
        indices = engine.state.tree.indices(node.id)
        written = "".join(repr(list(indices[: i + 1])) for i in range(len(indices)))
        assert node.state_hash == MemoryEnvironment({"log": written}).state_hash()
        assert node.state.get("count", 0) == node.depth


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), policies, st.data())
def test_search_goes_on_from_any_event_to_the_same_tree(seed, policy, data):
    engine, events = world(seed, policy)
    engine.run()
    cut = data.draw(st.integers(0, len(events)))
    resumed, _ = world(seed, policy)
    state = SearchState(order=resumed.config.order)
    for event in events[:cut]:
        state.apply(event)
    resumed = replace(resumed, env=MemoryEnvironment({"log": ""}), state=state)  # snapshots are lost: actions run again
    resumed.run()
    assert [n.record() | {"t_start": 0, "wall_s": 0, "snapshot": ""} for n in resumed.state.tree.nodes.values()] == [
        n.record() | {"t_start": 0, "wall_s": 0, "snapshot": ""} for n in engine.state.tree.nodes.values()
    ]


def test_budget_in_calls_holds():
    engine, _ = world(3, PAPER, calls=9)
    assert engine.run() == "calls"
    assert engine.state.calls == 9


# --- files ------------------------------------------------------------------------------------------------------------


def test_run_that_was_cut_anywhere_goes_on_from_its_folder(tmp_path):
    """Bytes of the log are cut off in the middle of a line, as a crash would leave them."""
    whole, _ = world(11, PAPER)
    config, model, tools = whole.config, whole.model, whole.tools
    state, reason = search("an issue", model, MemoryEnvironment({"log": ""}), tools, config, tmp_path / "whole")
    assert reason == "done"
    log = (tmp_path / "whole" / "events.jsonl").read_bytes()
    expected = [stable(node) for node in state.tree.nodes.values()]
    for cut in range(0, len(log), max(1, len(log) // 12)):
        folder = tmp_path / f"cut{cut}"
        shutil.copytree(tmp_path / "whole", folder)
        (folder / "events.jsonl").write_bytes(log[:cut])
        again, _ = search("an issue", model, MemoryEnvironment({"log": ""}), tools, config, folder)
        assert [stable(node) for node in again.tree.nodes.values()] == expected
        assert Tree.from_json((folder / "tree.json").read_text()).skeleton() == state.tree.skeleton()


def stable(node):
    return node.record() | {"t_start": 0, "wall_s": 0, "snapshot": ""}


def test_damage_in_the_middle_of_a_log_is_named(tmp_path):
    whole, _ = world(11, PAPER)
    search("an issue", whole.model, MemoryEnvironment({"log": ""}), whole.tools, whole.config, tmp_path)
    log = (tmp_path / "events.jsonl").read_bytes().split(b"\n")
    log[2] = log[2][:-3]
    (tmp_path / "events.jsonl").write_bytes(b"\n".join(log))
    with pytest.raises(TreeFormatError, match="line 3"):
        restored(tmp_path)


def test_missing_line_of_a_log_is_named_whichever_it_is(tmp_path):
    whole, _ = world(11, PAPER)
    search("an issue", whole.model, MemoryEnvironment({"log": ""}), whole.tools, whole.config, tmp_path)
    log = (tmp_path / "events.jsonl").read_bytes().splitlines(keepends=True)
    assert len(log) > 5
    for gone in range(len(log) - 1):
        (tmp_path / "events.jsonl").write_bytes(b"".join(log[:gone] + log[gone + 1 :]))
        with pytest.raises(TreeFormatError, match=rf"events\.jsonl, line {gone + 1}: .*missing"):
            restored(tmp_path)
    unnumbered = [json.dumps({k: v for k, v in json.loads(line).items() if k != "n"}) for line in log]
    (tmp_path / "events.jsonl").write_text("\n".join(unnumbered) + "\n")
    state = restored(tmp_path)  # as of before
    del unnumbered[2]
    (tmp_path / "events.jsonl").write_text("\n".join(unnumbered) + "\n")
    with pytest.raises(TreeFormatError, match=r"events\.jsonl, line 3: "):
        restored(tmp_path)
    assert len(state.tree) > 3


@pytest.mark.parametrize("meta", ["{}", "[]", "3", '{"issue": 3, "config": {}}', '{"issue": "x", "config": {"a": 1}}'])
def test_damaged_description_of_a_run_is_refused(meta, tmp_path):
    (tmp_path / "meta.json").write_text(meta)
    (tmp_path / "events.jsonl").write_text("")
    with pytest.raises(TreeFormatError, match=r"meta\.json is missing or damaged"):
        restored(tmp_path)


def test_folder_of_another_run_is_refused(tmp_path):
    whole, _ = world(11, PAPER)
    search("an issue", whole.model, MemoryEnvironment({"log": ""}), whole.tools, whole.config, tmp_path)
    with pytest.raises(TaskError, match="another issue"):
        search("another", whole.model, MemoryEnvironment({"log": ""}), whole.tools, whole.config, tmp_path)


# --- other strategies -------------------------------------------------------------------------------------------------


def test_linear_is_one_path():
    engine, _ = world(5, PAPER, strategy="linear")
    engine.run()
    assert all(len(node.children) <= 1 for node in engine.state.tree.nodes.values())


def test_restarts_are_independent_runs_from_the_root():
    engine, _ = world(5, PAPER, strategy="restart", restarts=4)
    assert engine.run() == "done"
    tree = engine.state.tree
    assert len(tree.root.children) == 4
    assert len(tree.leaves()) == 4
    assert all(node.history == () for node in tree.nodes.values())
    alone, _ = world(5, PAPER, strategy="linear")
    alone.run()
    assert alone.state.tree.skeleton() == tree.prune({}).skeleton()


def test_restarts_go_on_until_the_budget_ends():
    engine, _ = world(5, PAPER, strategy="restart", calls=40)
    assert engine.run() == "calls"
    assert engine.state.calls == 40


@pytest.mark.parametrize("starts", [0, 1, 3])
@pytest.mark.parametrize(("stop", "asked"), [("refusal", 1), ("end_turn", 3)])
def test_restarts_end_at_a_start_without_an_action(starts, stop, asked):
    """No step is made by it, so that a limit of steps alone would never end the search."""
    requests = []

    def act(request):
        requests.append(request)
        assert len(requests) < 50
        return ToolCall("submit") if request.sample // 100 < starts else "no"

    class Silent(ScriptedModel):
        def complete(self, request):
            return replace(super().complete(request), stop="tool_use" if request.sample // 100 < starts else stop)

    config = DarsConfig(strategy="restart", budget=BudgetSection(steps=starts + 5))
    tools = {"submit": Tool("submit", {}, "submit", lambda env, args, state: Observation(""))}
    engine = Engine(Silent(act), MemoryEnvironment({}), tools, Prompts(), config)
    assert engine.run() == "done"
    assert len(engine.state.tree.root.children) == starts
    assert len(requests) == engine.state.calls == starts + asked
    assert not engine.state.pending


def test_random_branches_are_as_many_as_asked_and_as_the_seed_says():
    shapes = []
    for seed in (0, 0, 1):
        engine, _ = world(5, PAPER, strategy="random_branch", branches=3, draw=seed)
        engine.run()
        assert sum(len(node.children) > 1 for node in engine.state.tree.nodes.values()) == 3
        shapes.append(engine.state.tree.skeleton())
    assert shapes[0] == shapes[1] != shapes[2]


def test_uct_returns_where_leaves_were_good():
    """Leaves below the root's first child are worth 1, others nothing: after a while it stays there."""

    def value(leaf, spent):
        return float(leaf.kind == "submit")

    engine, _ = world(8, PAPER, strategy="mcts", value=value, calls=120)
    engine.run()
    tree = engine.state.tree
    assert max(len(node.children) for node in tree.nodes.values()) <= 3
    assert len(tree.leaves()) > 10
    again, _ = world(8, PAPER, strategy="mcts", value=value, calls=120)
    again.run()
    assert again.state.tree.skeleton() == tree.skeleton()
    with pytest.raises(TaskError, match="value of leaves"):
        world(8, PAPER, strategy="mcts")


def test_unsubmitted_patch_is_that_of_the_path_with_any_number_of_workers():
    def act(request):
        depth = len(request.path)
        if depth == 2:
            return "nothing more comes to mind"  # ends the path without submitting
        return ToolCall("edit", {"at": [*request.path, request.sample]})

    def run(env, args, state):
        env.write_file("log", repr(args["at"]).encode())
        return Observation("")

    patches = []
    for workers in (1, 3):
        config = DarsConfig(
            candidates=CandidatesSection(k=1, retries=0), feedback=FeedbackSection(enabled=False), workers=workers,
            policy=PolicySection(limits={"edit": 2}, allowed_after={"edit": ["edit"]}, num_expansions=3),
        )  # fmt: skip
        tools = {"edit": Tool("edit", {}, "edit", run)}
        engine = Engine(ScriptedModel(act), MemoryEnvironment({"log": ""}), tools, Prompts(), config)
        engine.run()
        tree = engine.state.tree
        patches.append({tree.indices(leaf.id): leaf.patch for leaf in tree.leaves()})
        assert all(repr(leaf.args["at"]) in leaf.patch for leaf in tree.leaves())
    assert patches[0] == patches[1]
