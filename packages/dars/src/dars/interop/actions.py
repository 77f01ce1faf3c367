"""Actions written as commands: their kind by the command word alone, and their arguments where they can be told."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from ..models.base import Block

KINDS = frozenset({"create", "append", "edit", "insert", "submit"})
EDITOR = {"create": "create", "str_replace": "edit", "insert": "insert"}  # of str_replace_editor in SWE-agent 1.x
NAMES = {
    "create": ("path",), "append": ("content",), "edit": ("old", "new"), "insert": ("line", "content"),
    "open": ("path", "line"), "goto": ("line",), "search_dir": ("query", "dir"), "search_file": ("query", "path"),
    "find_file": ("pattern", "dir"), "search_repo": ("symbol",), "undo_edit": ("path",), "execute_ipython": ("code",),
    "execute_server": ("command",), "scroll_up": (), "scroll_down": (), "submit": (),
}  # fmt: skip
WORD = re.compile(r"""\s*(?:\$'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)"|'([^']*)'|([^\s'"$]\S*))(?=\s|\Z)""", re.DOTALL)
ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v", "0": "\0"}


class Action(NamedTuple):
    """One command."""

    kind: str
    tool: str
    args: dict[str, Any]


def parse_action(text: str) -> Action:
    """The action of a command.

    The kind is that of the first word, so that ``grep -rn submit .`` submits nothing. Commands of the file editor get
    their arguments by name; all others, and what cannot be taken apart, are ``{"command": text}``.

    Examples
    --------
    >>> parse_action("edit $'a = 1' $'a = 2'").args
    {'old': 'a = 1', 'new': 'a = 2'}
    >>> parse_action("grep -rn submit .")
    Action(kind='other', tool='bash', args={'command': 'grep -rn submit .'})
    """
    text = text.strip()
    word, _, rest = text.partition(" ") if "\n" not in text.split(" ", 1)[0] else text.partition("\n")
    if word == "str_replace_editor":
        return Action(EDITOR.get(rest.split(" ", 1)[0], "other"), word, {"command": text})
    kind = word if word in KINDS else "other"
    if rest.lstrip().startswith("{"):
        try:
            return Action(kind, word, dict(json.loads(rest)))
        except ValueError:
            pass  # a command that happens to go on with a brace
    if word not in NAMES:
        return Action(kind, "bash", {"command": text})
    words = _words(rest)
    names = NAMES[word]
    if words is None or len(words) > len(names) or (kind != "other" and len(words) < len(names)):
        return Action(kind, word, {"command": text})
    args: dict[str, Any] = dict(zip(names, words, strict=False))
    if str(args.get("line", "")).isdigit():
        args["line"] = int(args["line"])
    return Action(kind, word, args)


def assistant_turn(thought: str, action: Action, number: int) -> list[Block]:
    """The turn as the Messages API would have it, so that an imported path can be continued."""
    block = {"type": "tool_use", "id": f"imported_{number}", "name": action.tool, "input": action.args}
    return [*([{"type": "text", "text": thought}] if thought else []), block]


def _words(text: str) -> list[str] | None:
    """Words of a command line, $'...' with its escapes resolved; None if it is none."""
    words, at = [], 0
    text = text.rstrip()
    while at < len(text):
        found = WORD.match(text, at)
        if not found:
            return None
        literal, double, single, plain = found.groups()
        if literal is not None:
            words.append(re.sub(r"\\(.)", lambda m: ESCAPED.get(m[1], m[1]), literal, flags=re.DOTALL))
        elif double is not None:
            words.append(re.sub(r'\\(["\\$`])', r"\1", double))
        else:
            words.append(single if single is not None else plain)
        at = found.end()
    return words
