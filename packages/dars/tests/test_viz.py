"""The viewer: one file that loads nothing, texts stay texts, a node is an element; and the same in plain text."""

import base64
import hashlib
import json
import re
import shutil
import subprocess

import pytest

from dars import ExpansionPolicy, viz
from dars.candidates import Candidate
from dars.errors import TreeFormatError
from dars.models.base import Usage
from dars.reviewer.base import Review, ranking
from dars.search import simulate_skeleton
from dars.tree import Node, Tree

SKELETON = "oo(c(e(s|s)|eo(s|s))|cae(s|s))"
HOSTILE = "</script><script>alert(1)</script><!-- <script> @@data@@ & https://example.org \udcff \u2028 <b>bold</b>"
PATCH = "diff --git a/a.py b/a.py\n--- a/a.py\n+++ b/a.py\n@@ -1,2 +1,2 @@\n x\n-{}\n+{}\n"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def tree():
    """A decision with two attempts, of which one draws from candidates."""
    tree = Tree(meta={"issue": "it fails"})
    tree.add(Node(1, 0, 0, "other", "bash", {"command": "ls"}, "look", observation=HOSTILE, depth=1, cost_usd=0.5))
    edit = {"old": "one\ntwo", "new": "one\nthree"}
    tree.add(
        Node(
            2, 1, 0, "edit", "edit", edit, "first idea", depth=2, state={"open": "a.py"}, usage=Usage(60, 40, 0, 0, 7),
            assistant=[{"type": "thinking", "thinking": "deep thought"}],
        )
    )  # fmt: skip
    tree.add(Node(3, 2, 0, "submit", "submit", depth=3, terminal=True, exit="submit", patch=PATCH.format("y", "z")))
    drawn = {
        "candidates": [
            {"tool": "bash", "args": {"command": "pwd"}, "text": "why not"},
            {"tool": "edit", "args": {"old": "one\ntwo", "new": "four\ntwo"}, "text": "better"},
        ],
        "rejected": [{"reason": "repeats an earlier action", "tool": "edit"}],
        "critic": {"reply": "the second", "index": 1, "fallback": True},
        "feedback": "this was tried",
    }
    edit = {"old": "one\ntwo", "new": "four\ntwo"}
    tree.add(Node(4, 1, 1, "edit", "edit", edit, depth=2, expansion=drawn, flags=["critic_fallback"]))
    tree.add(Node(5, 4, 0, "other", "bash", {"command": "make"}, depth=3))
    tree.nodes[5].exit, tree.nodes[5].patch, tree.nodes[5].terminal = "exit_depth", PATCH.format("y", "w"), True
    return tree


def embedded(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def in_browser(page, folder, at="", script=None):
    """The document after its scripts have run; ``script`` runs last, for which the policy is taken out."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    if script is not None:
        page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
        page = page.replace("</body>", f"<script>{script}</script></body>")
    file = folder / "tree.html"
    file.write_text(page, encoding="utf-8")
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--dump-dom",
        f"--user-data-dir={folder}/profile",
    ]
    done = subprocess.run([*command, f"file://{file}{at}"], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


# --- the page ---------------------------------------------------------------------------------------------------------


def test_page_names_no_address_and_its_policy_allows_only_its_own_scripts_and_style(tree):
    page = viz.html(tree, title="a <title>")
    assert not re.search(r"""\w+://|(?:src|href)\s*=|@import|url\(""", page)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1]
    scripts, styles = (re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL) for tag in ("script", "style"))
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (*scripts, *styles)]
    assert len(scripts) == 2
    assert policy.split("; ") == [
        "default-src 'none'", f"script-src 'sha256-{hashes[0]}' 'sha256-{hashes[1]}'",
        f"style-src 'sha256-{hashes[2]}'", "base-uri 'none'", "form-action 'none'",
    ]  # fmt: skip
    assert "<title>a &lt;title&gt;</title>" in page
    assert "Mike Bostock" in page
    assert "without fee" in page  # the licence travels with the library


def test_scripts_never_parse_texts_as_markup():
    script = viz.html(Tree()).rpartition("<script>")[2]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|eval\(|Function\(", script)


def test_texts_come_back_from_the_page_as_they_were(tree):
    data = embedded(viz.html(tree, title=HOSTILE))
    shown = HOSTILE.replace("\udcff", "\ufffd")  # a byte that was no UTF-8
    assert data["title"] == shown
    assert [node["observation"] for node in data["nodes"]] == ["", shown, "", "", "", ""]
    assert data["nodes"][2]["thinking"] == "deep thought"
    assert data["nodes"][4]["expansion"] == tree.nodes[4].expansion
    assert (data["nodes"][3]["size"], data["nodes"][2]["file"]) == ([1, 1], "a.py")


def test_totals_are_sums_over_the_nodes(tree):
    sums = embedded(viz.html(tree))["totals"]
    assert (sums["steps"], sums["leaves"], sums["expansions"], sums["cost_usd"]) == (5, 2, 1, 0.5)
    assert sums["usage"]["cache_read"] == 40
    tree.nodes[2].cost_usd = None
    assert embedded(viz.html(tree))["totals"]["cost_usd"] is None


def test_best_is_the_first_of_the_ranking(tree):
    found = [Candidate(3, PATCH.format("y", "z"), ""), Candidate(5, PATCH.format("y", "w"), "", 2)]
    for scores in ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (float("-inf"), 0.0)):
        data = embedded(viz.html(tree, found, Review(scores, {"matrix": [[1, float("nan")]]})))
        order = ranking(scores, found)
        assert data["best"] == found[order[0]].node_id
        assert [candidate["rank"] for candidate in data["candidates"]] == [order.index(0), order.index(1)]
    assert embedded(viz.html(tree, found))["best"] is None
    assert embedded(viz.html(tree, found[:1]))["best"] == 3


def test_reviews_and_candidates_of_another_tree_are_refused(tree):
    with pytest.raises(ValueError, match="1 scores for 0 candidates"):
        viz.html(tree, (), Review((1.0,)))
    with pytest.raises(ValueError, match="node 9, which is not in the tree"):
        viz.html(tree, [Candidate(9, PATCH.format("y", "z"), "")])


def test_browser_draws_one_element_for_every_node_and_shows_hostile_texts_as_texts(tree, tmp_path):
    whole = simulate_skeleton(SKELETON, ExpansionPolicy.paper()).tree
    document = in_browser(viz.html(whole), tmp_path)
    drawn = re.findall(r'<g class="node [^"]*" data-id="(\d+)"', document)
    assert sorted(map(int, drawn)) == sorted(whole.nodes)
    assert f'data-node-count="{len(whole)}"' in document
    tree.nodes[1].rejected = [{"reason": "no tool call", "text": "<b>bold I would"}]
    document = in_browser(viz.html(tree), tmp_path, "#n1")
    assert "No other action found" in document[: document.index('<script type="application/json"')]
    body = document[: document.index('<script type="application/json"')]
    assert "&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;&lt;!--" in body
    assert not re.search(r"<script|<b>bold", body)
    assert len(re.findall(r"<script\b", document)) == 2 + 1


def test_keys_search_and_comparison_work_in_the_browser(tree, tmp_path):
    script = """
    const said = [];
    const key = (name) => {
      document.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
      said.push(name + selected);
    };
    select(0);
    ["ArrowRight", "ArrowRight", "]", "ArrowRight", "ArrowLeft", "Home", "d", "n", "b"].forEach(key);
    const box = document.getElementById("search"); box.value = "FIRST IDEA"; box.dispatchEvent(new Event("input"));
    said.push("hits:" + hits.join()); nextHit(1); said.push("at" + selected); key("c");
    said.push(document.querySelector(".pair").textContent.includes("four") ? "compared" : "nothing");
    const lines = (a, b) => difference(a.split(""), b.split("")).map(([mark, line]) => mark + line).join("");
    tab = "run"; show();
    said.push([...document.querySelectorAll(".matrix tr")].map((row) => row.textContent).join("/"));
    said.push(lines("abcd", "axcd"), lines("", "a"), lines("abc", "abc"));
    document.title = said.join(" | ");
    """
    found = [Candidate(3, PATCH.format("y", "z"), ""), Candidate(5, PATCH.format("y", "w"), "")]
    scripts = [{"path": "gone.py", "node": 1, "kept": False}, {"path": "r.py", "node": 1, "kept": True, "weight": 0.5}]
    ran = {
        "scripts": scripts,
        "matrix": [[1, 0]],
        "candidates": [{"node": 3, "broken": []}, {"node": 5, "broken": ["t"]}],
    }
    page = viz.html(tree, found, Review((1.0, 0.0), {"parts": [{"evidence": ran}]}))
    title = re.search(r"<title>(.*?)</title>", in_browser(page, tmp_path, script=script))[1]
    assert title.split(" | ") == [
        "ArrowRight1", "ArrowRight2", "]4", "ArrowRight5", "ArrowLeft4", "Home0", "d1", "n2", "b3",
        "hits:2", "at2", "c2", "compared",
        "scriptofweight#3#5/r.py#10.5✓✗/visible tests broken01", " a-b+x c d", "+a", " a b c",
    ]  # fmt: skip


# --- plain text -------------------------------------------------------------------------------------------------------


def test_every_node_is_in_one_run_of_the_text_and_leaves_say_how_they_ended():
    trace = simulate_skeleton(SKELETON, ExpansionPolicy.paper())
    tree, lines = trace.tree, viz.text(trace.tree).split("\n")
    shown = set()
    for line in lines[1:]:
        first, last = re.search(r"#(\d+)(?:–(\d+))?", line).groups()
        end = [node.id for node in tree.path(int(last or first))]
        run = set(end[end.index(int(first)) :])
        assert not shown & run
        shown |= run
        kinds = re.search(r"#\S+ ([^■◆]*)", line)[1].strip()
        assert sum(int((re.search(r"×(\d+)", part) or (0, 1))[1]) for part in kinds.split(", ")) == len(run)
    assert shown == set(tree.nodes) - {0}
    assert sum("■ submit" in line for line in lines) == len(tree.leaves())
    assert sum("◆" in line for line in lines) == len(trace.branches)
    assert f"{len(trace.branches)} expansions" in lines[0]


def test_text_keeps_to_its_width_and_shows_sizes_and_exits(tree):
    tree.nodes[2].flags.append("exhausted")
    text = viz.text(tree)
    assert "#3 submit ■ submit  +1 −1" in text
    assert "■ exit_depth  +1 −1" in text
    assert "#2 edit ◆ no other action found" in text
    assert (
        text.split("\n")[0]
        == "5 steps, 2 leaves (exit_depth 1, submit 1), 2 expansions, $0.5000, 40% of the input from the cache"
    )
    deep = simulate_skeleton("o" * 5 + "e(" + "oe" * 20 + "s|s)", ExpansionPolicy.paper()).tree
    assert max(map(len, viz.text(deep, 40).split("\n"))) == 40
    assert viz.text(Tree()).startswith("0 steps, 0 leaves")
    with pytest.raises(ValueError, match="at least 20"):
        viz.text(tree, 10)


def test_node_text_holds_everything_of_a_node(tree):
    text = viz.node_text(tree, 4)
    for part in (
        "node 4 · edit · depth 2", "0 › 1 › 4", "critic_fallback", "candidate 1 (chosen)", "better", "the second",
        "no index could be read", "repeats an earlier action: edit", "this was tried", "\n-one\n+four\n two",
    ):  # fmt: skip
        assert part in text
    assert "deep thought" in viz.node_text(tree, 2)
    assert "input 60, cache read 40, output 7" in viz.node_text(tree, 2)
    assert HOSTILE in viz.node_text(tree, 1)
    assert PATCH.format("y", "z") in viz.node_text(tree, 3)
    assert "it fails" in viz.node_text(tree, 0)
    with pytest.raises(TreeFormatError, match="no node 7: ids of this tree run from 0 to 5"):
        viz.node_text(tree, 7)


def test_siblings_are_compared_by_action_and_by_the_patches_they_lead_to(tree):
    lines = viz.sibling_diff(tree, 2, 4).split("\n")
    assert {"-  three", "+  four", "-+z", "++w"} <= set(lines)
    assert "2 leads to node 3: submit  +1 −1" in lines
    for pair in ((2, 3), (2, 2), (0, 1)):
        with pytest.raises(TreeFormatError, match="no siblings"):
            viz.sibling_diff(tree, *pair)
