"""Finding text and files: search_dir, search_file, find_file."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from ..env.base import Environment
from ..errors import EnvError
from .base import Observation, State
from .common import STRING, chosen_path, described, files_below, lines_of, make_tool, read_text, shown

MOST = 100  # results shown
LINE_CHARS = 200
ROOT = "folder from the workspace's root; default: all of it"


def matches(path: str, pattern: str) -> bool:
    """Whether a shell pattern fits the name of a file or its whole path."""
    return fnmatchcase(posixpath.basename(path), pattern) or fnmatchcase(path, pattern)


def _search_dir(env: Environment, args: Mapping[str, Any], state: State) -> Observation:
    query, glob = _query(args), args.get("glob", "*")
    found, files = [], 0
    for path in files_below(env, args.get("dir")):
        if not matches(path, glob):
            continue
        try:
            text = read_text(env, path).text
        except EnvError:
            continue  # binary, or a link to a folder
        hits = _hits(path, text, query)
        found += hits
        files += bool(hits)
    if not found:
        return Observation(f"{query!r} was not found.")
    head = f"{len(found)} lines with {query!r} in {files} files"
    return Observation(_listed(head, found, "narrow the query, dir or glob"))


def _search_file(env: Environment, args: Mapping[str, Any], state: State) -> Observation:
    query, path = _query(args), chosen_path(env, args, state)
    found = _hits(path, read_text(env, path).text, query)
    if not found:
        return Observation(f"{query!r} was not found in {path}.")
    return Observation(_listed(f"{len(found)} lines with {query!r} in {path}", found, "narrow the query"))


def _find_file(env: Environment, args: Mapping[str, Any], state: State) -> Observation:
    pattern = args["pattern"]
    glob = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    found = [path for path in files_below(env, args.get("dir")) if matches(path, glob)]
    if not found:
        return Observation(f"No file fits {pattern!r}.")
    return Observation(_listed(f"{len(found)} files fit {pattern!r}", [shown(path) for path in found], "narrow it"))


def _query(args: Mapping[str, Any]) -> str:
    query: str = args["query"]
    if not query or "\n" in query:
        raise EnvError("the query has to be a text of one line")
    return query


def _hits(path: str, text: str, query: str) -> list[str]:
    if query not in text:
        return []
    lines = enumerate(lines_of(text), start=1)
    return [f"{shown(path)}:{i}: {shown(line).strip()[:LINE_CHARS]}" for i, line in lines if query in line]


def _listed(head: str, found: list[str], advice: str) -> str:
    more = [f"({len(found) - MOST} more: {advice})"] if len(found) > MOST else []
    return "\n".join([f"{head}:", *found[:MOST], *more])


TOOLS = (
    make_tool(
        "search_dir", "other", _search_dir, "Find lines that contain a text, exactly as it is written, in all files.",
        {"query": STRING}, {"dir": described(STRING, ROOT), "glob": described(STRING, "of file names, such as *.py")},
    ),
    make_tool(
        "search_file", "other", _search_file, "Find lines that contain a text in one file; default: the open file.",
        {"query": STRING}, {"path": STRING},
    ),
    make_tool(
        "find_file", "other", _find_file, "Find files whose name or path fits a shell pattern, or contains a word.",
        {"pattern": STRING}, {"dir": described(STRING, ROOT)},
    ),
)  # fmt: skip
