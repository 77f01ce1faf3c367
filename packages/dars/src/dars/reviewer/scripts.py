"""Reproduction scripts: what the agent wrote along its paths to show the failure, and how each of them is run."""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..aci.registry import registry
from ..aci.testing import PYTEST
from ..env.apply import applied
from ..env.base import Environment
from ..env.memory import MemoryEnvironment
from ..patches import changes, is_test
from ..tree import Node, Tree

WRITING = frozenset({"create", "append", "edit", "insert", "undo_edit"})
RUNNER = re.compile(r"python[\d.]*|pytest|bash|sh|node|ruby|perl|php")
NOT_SIMPLE = re.compile(r"[|;&<>`\n]|\$\(")  # what can hide an exit code, or do something else besides

Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Script:
    """One script.

    Attributes
    ----------
    command : runs it in the workspace's root; exit code 0 says that the issue is resolved.
    node : last common node of all paths at whose end it stands like this.
    subtree : the child, on the way to ``node``, of the tree's first decision with several children; the root (0) for
        scripts that were there before any. Subtrees are independent attempts, and each has one voice.
    """

    path: str
    content: bytes
    command: str
    node: int
    subtree: int


def scripts(tree: Tree, env: Environment, base_files: Collection[str], patched: Collection[str] = ()) -> list[Script]:
    """Distinct scripts of a tree, in the order of its leaves.

    A file counts that is not among ``base_files`` and in none of the candidates (``patched``), and that is Python or
    was run by a simple command of the agent. At the end of a path it has the content that the leaf's patch gives it;
    one that was deleted, or whose leaf has no patch, that which the tools wrote. Equal files in one folder are one.

    env : asked only where it lies, for absolute paths of tools.
    """
    written = _written(tree, env)
    found: dict[tuple[str, bytes], tuple[str, str, list[Node]]] = {}
    for leaf in tree.leaves():
        path = tree.path(leaf.id)
        files = {**written[leaf.id], **_added(leaf.patch)}
        for name in sorted(files.keys() - set(base_files) - set(patched)):
            command = _command(name, files[name], path)
            if not command:
                continue
            key = (posixpath.dirname(name), files[name])
            _, _, common = found.setdefault(key, (name, command, path))
            found[key] = (*found[key][:2], [a for a, b in zip(common, path, strict=False) if a is b])
    return [
        Script(name, content, command, common[-1].id, _subtree(common))
        for (_, content), (name, command, common) in found.items()
    ]


def _written(tree: Tree, env: Environment) -> dict[int, Files]:
    """New files that the tools wrote, for each node.

    The tools themselves write again, in a workspace without the repository: what they did to its files is refused.
    """
    tools = registry()
    memory = MemoryEnvironment({}, lambda _, command: env.exec(command))
    found: dict[int, Files] = {0: {}}
    snapshots = {0: memory.snapshot()}
    for node in tree.nodes.values():  # parents come first
        if node.parent is None:
            continue
        found[node.id], snapshots[node.id] = found[node.parent], snapshots[node.parent]
        if node.tool in WRITING and "failed" not in node.flags:
            memory.restore(snapshots[node.parent])
            tools[node.tool].run(memory, node.args, dict(tree.nodes[node.parent].state))
            found[node.id] = {path: memory.read_file(path) for path in memory.list_files()}
            snapshots[node.id] = memory.snapshot()
    return found


def _added(patch: str) -> Files:
    """New text files of a patch."""
    files: dict[str, bytes] = {}
    for change in changes(patch):
        if change.status == "added":
            files |= applied({}, change.section)
    return files


def _command(name: str, content: bytes, path: Sequence[Node]) -> str:
    """The agent's last simple command that runs a file; else Python's, "" for other files."""
    for above, node in zip(path[-2::-1], path[:0:-1], strict=True):
        command = str(node.args.get("command", "")).strip() if node.tool == "bash" else ""
        if above.state.get("cwd", ".") == "." and _runs(command, name):
            return command
    if not name.endswith(".py"):
        return ""
    alone = not is_test(name) or b"__main__" in content
    return f"{'python' if alone else PYTEST} {shlex.quote(name)}"


def _runs(command: str, name: str) -> bool:
    if NOT_SIMPLE.search(command):
        return False
    try:
        words = shlex.split(command)
    except ValueError:
        return False
    while words and re.match(r"\w+=", words[0]):
        words.pop(0)
    if not words:
        return False
    if RUNNER.fullmatch(posixpath.basename(words[0])):
        return any(posixpath.normpath(word) == name for word in words[1:])
    return "/" in words[0] and posixpath.normpath(words[0]) == name


def _subtree(common: Sequence[Node]) -> int:
    for above, node in pairwise(common):
        if len(above.children) > 1:
            return node.id
    return 0
