"""Changing files: create, append, edit, insert, undo_edit. Each change of a Python file passes the lint gate first."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import SequenceMatcher
from typing import Any

from ..env.base import Environment
from ..errors import EnvError
from .base import Observation, State
from .common import (
    BOOLEAN,
    INTEGER,
    STRING,
    Text,
    chosen_path,
    described,
    digest,
    exists,
    inner_path,
    lines_of,
    make_tool,
    numbered,
    read_text,
    shown,
)  # fmt: skip
from .lint import new_problems
from .window import look_at, view

AROUND = 10  # lines shown above and below a refused change
PATH = described(STRING, "path from the workspace's root; default: the open file")


def _create(env: Environment, args: Mapping[str, Any], state: State) -> Observation:
    path = inner_path(env, args["path"])
    if exists(env, path):
        raise EnvError(f"{path} exists already: change it with edit, insert or append")
    return _apply(env, state, path, None, args.get("content", ""), "Created")


def _append(env: Environment, args: Mapping[str, Any], state: State) -> Observation:
    path = chosen_path(env, args, state)
    if not args["content"]:
        raise EnvError("the content is empty: there is nothing to append")
    old = read_text(env, path)
    gap = "" if not old.text or old.text.endswith("\n") else "\n"
    return _apply(env, state, path, old, old.text + gap + _whole_lines(args["content"]), "Appended to")


def _insert(env: Environment, args: Mapping[str, Any], state: State) -> Observation:
    path, line = chosen_path(env, args, state), args["line"]
    if not args["content"]:
        raise EnvError("the content is empty: there is nothing to insert")
    old = read_text(env, path)
    lines = re.findall(r"[^\n]*\n|[^\n]+", old.text)
    if not 0 <= line <= len(lines):
        raise EnvError(f"line {line} is not in {path}, which has {len(lines)} lines; 0 inserts at the top")
    if line and not lines[line - 1].endswith("\n"):
        lines[line - 1] += "\n"
    new = "".join([*lines[:line], _whole_lines(args["content"]), *lines[line:]])
    return _apply(env, state, path, old, new, "Inserted into")


def _edit(env: Environment, args: Mapping[str, Any], state: State) -> Observation:
    path = chosen_path(env, args, state)
    old, new = args["old"], args["new"]
    if not old:
        raise EnvError("old is empty: give the text to replace, or use insert")
    file = read_text(env, path)
    if file.crlf or "\r\n" not in file.text:  # else the file has ends of both kinds, and what is meant is as written
        old, new = old.replace("\r\n", "\n"), new.replace("\r\n", "\n")
    if old == new:
        raise EnvError("old and new are the same: the edit would change nothing")
    at = _places(file.text, old)
    if not at:
        raise EnvError(f"old was not found in {path}.{_near(file.text, old)}")
    if len(at) > 1 and not args.get("replace_all", False):
        where = ", ".join(str(file.text.count("\n", 0, i) + 1) for i in at[:20])
        raise EnvError(
            f"old occurs {len(at)} times in {path}, at lines {where}: add lines around it, or set replace_all"
        )
    return _apply(env, state, path, file, file.text.replace(old, new), "Edited")


def _undo(env: Environment, args: Mapping[str, Any], state: State) -> Observation:
    path = chosen_path(env, args, state)
    stack = state.get("undo", {}).get(path, [])
    if not stack:
        raise EnvError(f"there is no edit of {path} to undo")
    last = stack[-1]
    data = env.read_file(path)
    if digest(data) != last["after"]:
        raise EnvError(f"{path} was changed since by something else than an edit: change it by hand")
    state["undo"] = {**state["undo"], path: stack[:-1]}
    if last["was"] is None:
        env.remove_file(path)
        if state.get("open") == path:
            state["open"] = ""
        return Observation(f"Undone: {path} is removed again.")
    text, at = data.decode("utf-8", "surrogateescape"), last["at"]
    env.write_file(path, (text[:at] + last["was"] + text[at + last["length"] :]).encode("utf-8", "surrogateescape"))
    look_at(state, path, text.count("\n", 0, at) + 1)
    return Observation(f"Undone: the last edit of {path}.\n{view(path, read_text(env, path).text, state)}")


# --- applying ---------------------------------------------------------------------------------------------------------


def _apply(env: Environment, state: State, path: str, old: Text | None, new: str, done: str) -> Observation:
    """Pass the gate, write, remember how to undo, and show the place."""
    before = b"" if old is None else old.data
    after = (old or Text(b"")).encode(new)
    was = "" if old is None else old.text
    changed = new.count("\n", 0, _shared(was, new)) + 1
    if path.endswith(".py"):
        problems = new_problems(path, before, after)
        if problems:
            listed = "\n".join(f"- line {p.line}: {p.code} {p.message}" for p in problems[:10])
            raise EnvError(
                f"{path} was left as it is, since the change would bring new errors:\n{listed}\n\n"
                f"With the change:\n{_around(new, changed)}\n\nWithout:\n{_around(was, changed)}\n\n"
                "Mend the change and try again."
            )
    env.write_file(path, after)
    entry = _entry(None if old is None else before, after)
    stacks = state.get("undo", {})
    state["undo"] = {**stacks, path: [*stacks.get(path, []), entry]}
    look_at(state, path, changed)
    return Observation(f"{done} {path}.\n{view(path, new, state)}")


def _entry(before: bytes | None, after: bytes) -> dict[str, Any]:
    """How to undo a change: what ``length`` characters at ``at`` were before; None for a file that was not there.

    Only what differs is kept, since every node below carries it.
    """
    if before is None:
        return {"after": digest(after), "at": 0, "length": 0, "was": None}
    then, now = (data.decode("utf-8", "surrogateescape") for data in (before, after))
    at = _shared(then, now)
    tail = _shared(then[at:][::-1], now[at:][::-1])
    return {"after": digest(after), "at": at, "length": len(now) - at - tail, "was": then[at : len(then) - tail]}


def _shared(one: str, other: str) -> int:
    """Length of the longest common beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _whole_lines(content: str) -> str:
    content = content.replace("\r\n", "\n")
    return content if content.endswith("\n") else f"{content}\n"


def _places(text: str, part: str) -> list[int]:
    found, at = [], text.find(part)
    while at >= 0:
        found.append(at)
        at = text.find(part, at + 1)  # overlapping ones too: which is meant would be unclear
    return found


def _near(text: str, old: str) -> str:
    """Where the text occurs but for whitespace, or the line most like its first one."""
    lines, wanted = lines_of(text), [_squeezed(line) for line in lines_of(old)]
    squeezed = [_squeezed(line) for line in lines]
    size = len(wanted)
    hits = [i for i in range(len(lines) - size + 1) if squeezed[i : i + size] == wanted] if any(wanted) else []
    if hits:
        shown_lines = "\n".join(f"{i + 1}:{shown(lines[i])!r}" for i in range(hits[0], hits[0] + size))
        more = f" ({len(hits)} such places)" if len(hits) > 1 else ""
        return f" These lines differ from it in whitespace only{more}; with tabs and spaces as they are:\n{shown_lines}"
    first = next((line for line in wanted if line), "")
    matcher = SequenceMatcher(b=first)
    best, place = 0.6, -1
    for i, line in enumerate(squeezed):
        matcher.set_seq1(line)
        if matcher.real_quick_ratio() > best and matcher.quick_ratio() > best and matcher.ratio() > best:
            best, place = matcher.ratio(), i
    return f" The line most like its first one is {place + 1}:{shown(lines[place])}" if place >= 0 else ""


def _squeezed(line: str) -> str:
    return " ".join(line.split())


def _around(text: str, line: int) -> str:
    lines = lines_of(text)
    first, last = max(1, line - AROUND), min(len(lines), line + AROUND)
    return numbered(lines, first, last) if lines else "(no lines)"


TOOLS = (
    make_tool(
        "create", "create", _create, "Make a new file, with its folders.",
        {"path": described(STRING, "path from the workspace's root")}, {"content": STRING}, ("content",),
    ),
    make_tool(
        "append", "append", _append, "Add lines at the end of a file.", {"content": STRING}, {"path": PATH},
        ("content",),
    ),
    make_tool(
        "edit", "edit", _edit,
        "Replace a text of a file by another. The old text has to occur exactly once, whitespace included.",
        {"old": STRING, "new": STRING},
        {"path": PATH, "replace_all": described(BOOLEAN, "replace every occurrence")}, ("new",),
    ),
    make_tool(
        "insert", "insert", _insert, "Insert lines after a line of a file; 0 inserts at the top.",
        {"line": INTEGER, "content": STRING}, {"path": PATH}, ("content",),
    ),
    make_tool("undo_edit", "other", _undo, "Take back the last edit of a file.", {}, {"path": PATH}),
)  # fmt: skip
