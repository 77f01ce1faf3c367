"""Trees of others: written by hand as their programs write them, read, and compared with what is in them."""

import json

import pytest

from dars import ExpansionPolicy, Tree
from dars.errors import TaskError, TreeFormatError
from dars.interop import export, read, read_authors, read_mini, read_predictions, read_traj, write_predictions
from dars.interop.actions import parse_action
from dars.search import simulate_skeleton
from dars.storage import write_atomic
from dars.tree import Node

RELEASED = (
    "ooo(c(ao(eoeeoeo(s|s)|eoeeoeo(s|s))|c(aoeoeoooeecao(s|s)|aoeoooeo(s|s)))|"
    "c(ao(eoooeeoeo(s|s)|eoeo(s|s))|aooeeoeeoeeoeeoeoeoeoooooooeoeeeooeoeoeeoeoeeoo))"
)
PAPER = ExpansionPolicy.paper()
COMMANDS = {
    "create": "create reproduce.py\n", "append": "append $'import a\\nprint(\"it\\'s\")'\n",
    "edit": "edit $'    x = 1' $'    x = 2\\n    y = \\'3\\''\n", "submit": "submit\n", "other": "grep -rn submit .\n",
}  # fmt: skip
PATCH = "diff --git a/a.py b/a.py\nindex 1..2 100644\n--- a/a.py\n+++ b/a.py\n@@ -1 +1 @@\n-x = 1\n+x = 2\n"
STATUS = "(Open file: /repo/a.py)\n(Current directory: /repo)\nbash-$"


def turn(role, content, children, node, **more):
    """One turn with all keys of the authors' files."""
    return {
        "role": role, "content": content, "thought": None, "action": None, "agent": "primary", "is_demo": False,
        "is_terminal": False, "_depth": 0, "node_id": None, "expansion_history": list(node.history),
        "_action_expansion_limit": dict(node.remaining), "codegraph_keyword": None, "codegraph_context": None,
        "expansion_prompt": None, "critic_prompt": None, "critic_response": None, "expansion_candidates": None,
        "children": children, "has_solution": False, **more,
    }  # fmt: skip


def as_authors(tree):
    """A tree of this package as the authors' program would have saved it."""

    def user(node):
        ended = node.exit == "submit"
        seen = f"\n{PATCH}\n{STATUS}" if ended else f"output {node.id}\n{STATUS}"
        below = [assistant(tree.nodes[i]) for i in node.children]
        return turn("user", seen, below, node, node_id=node.id, is_terminal=ended, _depth=2 * node.depth)

    def assistant(node):
        more = {}
        if node.child_index:
            drawn = [["why", COMMANDS[node.kind], "..."], ["DISCUSSION\nor this", "ls -a\n", "..."]]
            reply = "<action_analysis>...</action_analysis>\n<best_action_index>1</best_action_index>"
            more = {"expansion_candidates": drawn, "expansion_prompt": "tried before", "critic_prompt": "choose"}
            more["critic_response"] = reply if node.id % 2 else "DISCUSSION\n```\nls\n```"
        thought = f"DISCUSSION\nthought {node.id}\n\n"
        return turn("assistant", "", [user(node)], node, thought=thought, action=COMMANDS[node.kind], **more)

    root = user(tree.root)
    root["content"] = f"SETTING\n<pr_description>\nit fails\n</pr_description>\n(Open file: n/a)\n{STATUS[-7:]}"
    demo = turn("user", "a demonstration", [root], tree.root, is_demo=True)
    system = turn("system", "SETTING", [demo], tree.root)
    return {"root": system, "iterations": 185, "node_count": len(tree), "current_node_id": 3, "node_id_stack": []}


@pytest.fixture(scope="module")
def released():
    return simulate_skeleton(RELEASED, PAPER).tree


# --- the authors' trees -----------------------------------------------------------------------------------------------


def test_released_tree_comes_back_with_its_order_limits_and_ends(released, tmp_path):
    path = tmp_path / "astropy.prev.root"
    path.write_text(json.dumps(as_authors(released), indent=4))
    tree = read(path)
    assert tree.skeleton() == released.skeleton()
    for node in released.nodes.values():
        there = tree.nodes[node.id]
        assert (there.parent, there.child_index, there.depth) == (node.parent, node.child_index, node.depth)
        assert (there.history, there.remaining, there.exit) == (node.history, node.remaining, node.exit)
        assert there.patch == (PATCH if node.exit == "submit" else "")
        assert there.thought == (f"thought {node.id}" if node.id else "")
    assert tree.meta["issue"] == "it fails"
    for kinds in ((), ("create",), ("edit", "submit")):
        limits = dict.fromkeys(kinds, 1)
        assert tree.prune(limits).skeleton() == released.prune(limits).skeleton()


def test_candidates_and_the_critics_answer_are_kept_and_a_missing_index_is_a_fallback(released):
    tree = read_authors(as_authors(released))
    alternatives = [node for node in tree.nodes.values() if node.child_index]
    assert len(alternatives) == 12
    for node in alternatives:
        critic = node.expansion["critic"]
        assert (critic["index"], critic["fallback"]) == ((1, False) if node.id % 2 else (0, True))
        assert ("critic_fallback" in node.flags) == critic["fallback"]
        assert node.expansion["candidates"][1] == {
            "tool": "bash", "args": {"command": "ls -a"}, "text": "DISCUSSION\nor this",
        }  # fmt: skip
        assert node.expansion["feedback"] == "tried before"


def test_kind_is_the_command_word_and_arguments_have_names():
    table = {
        "edit $'a' $'b\\nc'": ("edit", "edit", {"old": "a", "new": "b\nc"}),
        'insert 12 $\'x = "1"\'': ("insert", "insert", {"line": 12, "content": 'x = "1"'}),
        "append $'it\\'s \\\\n'": ("append", "append", {"content": "it's \\n"}),
        "create a.py": ("create", "create", {"path": "a.py"}),
        'search_dir "def f(" src': ("other", "search_dir", {"query": "def f(", "dir": "src"}),
        "open a.py 7": ("other", "open", {"path": "a.py", "line": 7}),
        "submit\n": ("submit", "submit", {}),
        "grep -rn submit .": ("other", "bash", {"command": "grep -rn submit ."}),
        "submitted": ("other", "bash", {"command": "submitted"}),
        "edit 3:4\nx = 1\nend_of_edit": ("edit", "edit", {"command": "edit 3:4\nx = 1\nend_of_edit"}),
        "edit $'open": ("edit", "edit", {"command": "edit $'open"}),
        'edit {"old": "a", "new": "b"}': ("edit", "edit", {"old": "a", "new": "b"}),
        "str_replace_editor create /a.py --file_text 'x'": (
            "create", "str_replace_editor", {"command": "str_replace_editor create /a.py --file_text 'x'"},
        ),
        "str_replace_editor view /a.py": ("other", "str_replace_editor", {"command": "str_replace_editor view /a.py"}),
        "": ("other", "bash", {"command": ""}),
    }  # fmt: skip
    for text, expected in table.items():
        assert parse_action(text) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"root": []}, "no object under root"),
        (
            {"root": {"role": "user", "children": [{"role": "assistant", "children": [{"role": "assistant"}]}]}},
            "one user",
        ),
        ({"root": {"role": "user", "children": [{"role": "tool"}]}}, "has to be an object with the role"),
        ({"root": {"role": "user", "children": {}, "_action_expansion_limit": {"edit": "x"}}}, "damaged: ValueError"),
        (
            {"root": {"role": "user", "children": [{"role": "assistant", "expansion_candidates": ["x"]}]}},
            "lists of thought",
        ),
    ],
)
def test_malformed_trees_name_the_file_and_the_reason(change, message, tmp_path):
    path = tmp_path / "x.root"
    path.write_text(json.dumps(change))
    with pytest.raises(TreeFormatError, match=rf"x\.root.*{message}"):
        read(path)


# --- straight trajectories --------------------------------------------------------------------------------------------

TRAJ = {
    "environment": "swe_main", "replay_config": "{}",
    "trajectory": [
        {"action": "create r.py", "observation": "[File: r.py]", "response": "x", "thought": "first\n", "state": {},
         "execution_time": 0.25, "query": []},
        {"action": "str_replace_editor str_replace /a.py --old_str 'a' --new_str 'b'", "observation": "ok",
         "thought": ""},
        {"action": "submit", "observation": "", "thought": "done"},
    ],
    "history": [
        {"role": "system", "content": "SETTING"}, {"role": "user", "content": "demo", "is_demo": True},
        {"role": "user", "content": [{"type": "text", "text": "<pr_description>\nit fails\n</pr_description>"}]},
    ],
    "info": {"exit_status": "submitted", "submission": PATCH, "model_stats": {"instance_cost": 0.3, "api_calls": 3}},
}  # fmt: skip


def test_swe_agents_trajectory_is_a_tree_with_one_leaf():
    tree = read_traj(TRAJ)
    assert [node.kind for node in tree.path(3)] == ["", "create", "edit", "submit"]
    assert [node.depth for node in tree.nodes.values()] == [0, 1, 2, 3]
    leaf = tree.leaves()[0]
    assert (leaf.exit, leaf.terminal, leaf.patch, leaf.thought) == ("submit", True, PATCH, "done")
    assert (tree.nodes[1].wall_s, tree.nodes[1].args, tree.nodes[1].observation) == (
        0.25,
        {"path": "r.py"},
        "[File: r.py]",
    )
    assert tree.meta["issue"] == "it fails"
    assert tree.meta["model_stats"]["instance_cost"] == 0.3
    assert leaf.cost_usd is None


@pytest.mark.parametrize(
    ("status", "exit"),
    [
        ("submitted", "submit"), ("submitted (exit_cost)", "exit_budget"), ("exit_context", "exit_context"),
        ("exit_cost", "exit_budget"), ("early_exit", "exit_early_exit"), (None, ""),
    ],
)  # fmt: skip
def test_exit_status_becomes_an_exit_of_this_package(status, exit):
    steps = TRAJ["trajectory"][:2]
    tree = read_traj({**TRAJ, "trajectory": steps, "info": {"exit_status": status, "submission": None}})
    assert (tree.nodes[2].exit, tree.nodes[2].terminal, tree.nodes[2].patch) == (exit, bool(exit), "")


def mini(status="Submitted"):
    call = {"id": "c1", "function": {"name": "bash", "arguments": '{"command": "ls"}'}}
    return {
        "info": {"exit_status": status, "submission": PATCH, "model_stats": {"instance_cost": 0.5, "api_calls": 4}},
        "messages": [
            {"role": "system", "content": "You can"},
            {"role": "user", "content": "<pr_description>it fails</pr_description>"},
            {"role": "assistant", "content": "look", "tool_calls": [call],
             "extra": {"cost": 0.2, "actions": [{"command": "ls", "tool_call_id": "c1"}, {"command": "pwd"}]}},
            {"role": "tool", "content": "a.py", "tool_call_id": "c1"}, {"role": "tool", "content": "/repo"},
            {"role": "assistant", "content": "no command here", "extra": {"cost": 0.1}},
            {"role": "user", "content": "Please give one action."},
            {"role": "assistant", "content": "now\n```bash\nsed -i s/1/2/ a.py\n```\n", "extra": {"cost": 0.1}},
            {"role": "user", "content": "done"},
            {"role": "assistant", "content": None,
             "tool_calls": [{"function": {"arguments": '{"command": "echo END"}'}}], "extra": {"cost": 0.1}},
            {"role": "exit", "content": PATCH, "extra": {"exit_status": status, "submission": PATCH}},
        ],
        "trajectory_format": "mini-swe-agent-1.1", "instance_id": "a__b-1",
    }  # fmt: skip


def test_mini_swe_agents_messages_are_actions_and_observations():
    tree = read_mini(mini())
    steps = [(n.kind, n.args["command"], n.observation, n.thought, n.cost_usd) for n in tree.path(4)[1:]]
    assert steps == [
        ("other", "ls", "a.py", "look", 0.2), ("other", "pwd", "/repo", "", 0.0),
        ("other", "sed -i s/1/2/ a.py", "done", "now", 0.1), ("submit", "echo END", "", "", 0.1),
    ]  # fmt: skip
    assert (tree.nodes[4].exit, tree.nodes[4].patch, tree.meta["instance_id"]) == ("submit", PATCH, "a__b-1")
    cut = read_mini(mini("LimitsExceeded")).nodes[4]
    assert (cut.kind, cut.exit) == ("other", "exit_budget")


def test_formats_are_recognised_by_their_keys(tmp_path, released):
    whole = {"a.traj": TRAJ, "b.traj.json": mini(), "c.root": as_authors(released)}
    for name, value in whole.items():
        (tmp_path / name).write_text(json.dumps(value))
    write_atomic(tmp_path / "tree.json", released.to_json())
    assert [read(tmp_path / name).meta["format"] for name in whole] == ["traj", "mini", "authors"]
    assert read(tmp_path / "tree.json").to_json() == read(tmp_path).to_json() == released.to_json()
    for text, message in (
        ('{"steps": []}', "no known format: it has steps"), ("[1]", "holds a list"), ("{", "is no JSON file"),
        ('{"trajectory": {}}', "trajectory has to be a list"), ('{"trajectory": [{}]}', "step 0 has no action"),
        ('{"messages": [{"role": "assistant", "extra": 3}]}', "damaged"), ('{"messages": [], "info": 3}', "info"),
    ):  # fmt: skip
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(TreeFormatError, match=rf"bad\.json.*{message}"):
            read(tmp_path / "bad.json")
    with pytest.raises(TreeFormatError, match=r"none\.json: No such file"):
        read(tmp_path / "none.json")


# --- writing ----------------------------------------------------------------------------------------------------------


def test_exported_path_comes_back_as_a_trajectory_of_swe_agent(released):
    tree = read_authors(as_authors(released))
    for leaf in tree.leaves():
        again = read_traj(json.loads(export(tree, "traj", leaf.id)))
        path = tree.path(leaf.id)[1:]
        assert [(n.kind, n.args, n.observation, n.thought, n.patch) for n in again.path(leaf.depth)[1:]] == [
            (n.kind, n.args, n.observation, n.thought, n.patch) for n in path
        ]
        assert again.leaves()[0].exit == leaf.exit
    first = json.loads(export(tree, "traj"))
    assert len(first["trajectory"]) == min(n.depth for n in tree.leaves() if n.id == 14)
    assert first["info"]["submission"] == PATCH


def test_tree_is_exported_as_json_page_and_graph(released):
    assert Tree.from_json(export(released, "json")).to_json() == released.to_json()
    assert f'"nodes":[{{"id":{0}' in export(released, "html").replace(" ", "")
    graph = export(released, "dot").split("\n")
    edges = {tuple(line.strip(" ;").split(" [")[0].split(" -> ")) for line in graph if "->" in line}
    assert edges == {(f"n{n.parent}", f"n{n.id}") for n in released.nodes.values() if n.id}
    assert sum("dashed" in line for line in graph) == sum(n.child_index > 0 for n in released.nodes.values())
    quoted = Tree({0: Node(0), 1: Node(1, 0, tool='a"b\\')})
    assert 'label="#1 a\\"b\\\\"' in export(quoted, "dot")
    with pytest.raises(TaskError, match=r"'pdf'; there are json, html, traj, dot"):
        export(released, "pdf")
    with pytest.raises(TreeFormatError, match="no node 900"):
        export(released, "traj", 900)


def test_predictions_have_exactly_three_fields(tmp_path):
    rows = [
        {"instance_id": "a__b-1", "model_name_or_path": "dars", "model_patch": PATCH + "+é\u2028\r\n", "cost": 3},
        {"instance_id": "a__b-2", "model_name_or_path": "dars", "model_patch": None},
    ]
    path = tmp_path / "predictions.jsonl"
    write_predictions(rows, path)
    lines = [json.loads(line) for line in path.read_bytes().decode().split("\n")[:-1]]
    assert [set(line) for line in lines] == [{"instance_id", "model_name_or_path", "model_patch"}] * 2
    assert [line["model_patch"] for line in lines] == [rows[0]["model_patch"], ""]
    assert read_predictions(path) == lines
    (tmp_path / "all.json").write_text(json.dumps({row["instance_id"]: row for row in rows}))
    assert read_predictions(tmp_path / "all.json") == lines


def test_malformed_predictions_are_refused(tmp_path):
    good = {"instance_id": "a", "model_name_or_path": "m", "model_patch": ""}
    for bad in ({**good, "instance_id": ""}, {**good, "model_patch": 3}, {k: good[k] for k in list(good)[:2]}):
        with pytest.raises(TaskError, match="missing or no text"):
            write_predictions([bad], tmp_path / "p.jsonl")
    with pytest.raises(TaskError, match="two predictions of a"):
        write_predictions([good, good], tmp_path / "p.jsonl")
    assert not (tmp_path / "p.jsonl").exists()
    (tmp_path / "p.jsonl").write_text('{"instance_id": "a"}\n')
    with pytest.raises(TaskError, match=r"p\.jsonl: a prediction of a: model_name_or_path"):
        read_predictions(tmp_path / "p.jsonl")
    (tmp_path / "p.jsonl").write_text("nothing\n")
    with pytest.raises(TaskError, match="holds no predictions"):
        read_predictions(tmp_path / "p.jsonl")
