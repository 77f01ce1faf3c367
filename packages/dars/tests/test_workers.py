"""Searches in real workspaces: the same nodes, files and patches with any number of workers and any way to remember."""

import subprocess
from pathlib import Path

import pytest

from dars.aci import registry
from dars.config import CandidatesSection, DarsConfig, FeedbackSection
from dars.env.local import LocalEnvironment
from dars.models.base import ScriptedModel, ToolCall
from dars.search import Engine
from dars.search.turns import Prompts

MODULE = "VALUE = 0\n\n\ndef value():\n    return VALUE\n"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("src") / "project"
    folder.mkdir()
    (folder / "module.py").write_text(MODULE)
    (folder / "notes.log").write_text("")
    (folder / ".gitignore").write_text("*.log\n")
    return folder


def mark(request) -> str:
    """A number that tells of the action's place in the tree."""
    index = 0 if request.role == "act" else request.sample + 1
    return "".join(f"{i:02}" for i in (*request.path, index))


def act(request) -> ToolCall:
    """Note, reproduce, add to it, change the source, look at what is there, submit."""
    here = mark(request)
    calls = (
        ToolCall("bash", {"command": f"echo {here} >> notes.log; mkdir -p scratch/empty; ln -s notes.log link"}),
        ToolCall("create", {"path": "reproduce.py", "content": f"MARK = {int(here) + 1}\n"}),
        ToolCall("append", {"content": f"AGAIN = {int(here) + 1}", "path": "reproduce.py"}),
        ToolCall("edit", {"path": "module.py", "old": "VALUE = 0", "new": f"VALUE = {int(here) + 1}"}),
        ToolCall(
            "bash", {"command": f"rm -f link; chmod +x module.py; rmdir scratch/empty; cat *.py > scratch/{here}"}
        ),
        ToolCall("submit", {"summary": here}),
    )
    return calls[len(request.path)]


def run(source: Path, backend: str, workers: int) -> dict:
    config = DarsConfig(
        workers=workers, candidates=CandidatesSection(k=1, retries=0), feedback=FeedbackSection(enabled=False)
    )
    with LocalEnvironment(source, backend=backend, sandbox="none") as env:
        engine = Engine(ScriptedModel(act), env, registry(), Prompts(), config)
        assert engine.run() == "done"
        tree = engine.state.tree
        return {
            tree.indices(node.id): (node.kind, node.exit, node.state_hash, node.patch, node.state, node.history)
            for node in tree.nodes.values()
        }


def test_nodes_of_real_workspaces_do_not_depend_on_workers_or_backends(source, tmp_path):
    expected = run(source, "git", 1)
    assert sum(exit == "submit" for _, exit, *_ in expected.values()) == 12
    for backend, workers in (("git", 3), ("copy", 1), ("copy", 3)):
        assert run(source, backend, workers) == expected
    assert (source / "module.py").read_text() == MODULE
    # Each patch gives what a shell gives that does the same as the path, on a copy of its own.
    for number, (place, (_, exit, _, patch, _, _)) in enumerate(expected.items()):
        if exit != "submit":
            continue
        by_patch, by_hand = tmp_path / f"patch{number}", tmp_path / f"hand{number}"
        for folder in (by_patch, by_hand):
            subprocess.run(["cp", "-r", source, folder], check=True)
        subprocess.run(["git", "apply"], cwd=by_patch, input=patch.encode(), check=True)
        marks = ["".join(f"{i:02}" for i in place[: depth + 1]) for depth in range(len(place))]
        (by_hand / "notes.log").write_text(f"{marks[0]}\n")
        (by_hand / "reproduce.py").write_text(f"MARK = {int(marks[1]) + 1}\nAGAIN = {int(marks[2]) + 1}\n")
        (by_hand / "module.py").write_text(MODULE.replace("0", str(int(marks[3]) + 1), 1))
        (by_hand / "module.py").chmod(0o755)
        (by_hand / "scratch").mkdir()
        both = (by_hand / "module.py").read_text() + (by_hand / "reproduce.py").read_text()
        (by_hand / "scratch" / marks[4]).write_text(both)
        subprocess.run(["diff", "-r", by_patch, by_hand], check=True)
