"""Looking into a file through a window of lines: open, goto, scroll."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..env.base import Environment
from ..errors import EnvError
from .base import Observation, State
from .common import INTEGER, STRING, described, inner_path, lines_of, make_tool, numbered, one_of, read_text

WINDOW, OVERLAP = 100, 2
ABOVE = WINDOW // 6  # lines shown above the one that was asked for


def view(path: str, text: str, state: State) -> str:
    """The window that ``state`` has on a text, moved so that it lies inside."""
    lines = lines_of(text)
    first = max(1, min(int(state.get("line", 1)), len(lines) - WINDOW + 1))
    last = min(len(lines), first + WINDOW - 1)
    state["line"] = first
    out = [f"[{path}, {len(lines)} lines]"]
    if first > 1:
        out.append(f"({first - 1} lines above)")
    if lines:
        out.append(numbered(lines, first, last))
    else:
        out.append("(the file is empty)")
    if last < len(lines):
        out.append(f"({len(lines) - last} lines below)")
    return "\n".join(out)


def look_at(state: State, path: str, line: int) -> None:
    """Open a file in ``state`` with a line in sight."""
    state["open"] = path
    state["line"] = max(1, line - ABOVE)


def _open(env: Environment, args: Mapping[str, Any], state: State) -> Observation:
    path = inner_path(env, args["path"])
    text = read_text(env, path).text
    line = args.get("line", 1)
    _check_line(path, text, line)
    look_at(state, path, line)
    return Observation(view(path, text, state))


def _goto(env: Environment, args: Mapping[str, Any], state: State) -> Observation:
    path, text = _opened(env, state)
    _check_line(path, text, args["line"])
    look_at(state, path, args["line"])
    return Observation(view(path, text, state))


def _scroll(env: Environment, args: Mapping[str, Any], state: State) -> Observation:
    path, text = _opened(env, state)
    first, count = int(state.get("line", 1)), len(lines_of(text))
    down = args["direction"] == "down"
    if down and first + WINDOW - 1 >= count:
        raise EnvError(f"the window is at the end of {path} already")
    if not down and first == 1:
        raise EnvError(f"the window is at the top of {path} already")
    state["line"] = max(1, first + (WINDOW - OVERLAP) * (1 if down else -1))
    return Observation(view(path, text, state))


def _opened(env: Environment, state: State) -> tuple[str, str]:
    if not state.get("open"):
        raise EnvError("no file is open: open one first")
    path = str(state["open"])
    return path, read_text(env, path).text


def _check_line(path: str, text: str, line: int) -> None:
    count = len(lines_of(text))
    if not 1 <= line <= max(1, count):
        raise EnvError(f"line {line} is not in {path}, which has {count} lines")


TOOLS = (
    make_tool(
        "open", "other", _open, f"Open a file and show a window of {WINDOW} lines, from its top or around a line.",
        {"path": described(STRING, "path from the workspace's root")}, {"line": INTEGER},
    ),
    make_tool("goto", "other", _goto, "Move the window of the open file to a line.", {"line": INTEGER}),
    make_tool(
        "scroll", "other", _scroll, f"Move the window of the open file by {WINDOW - OVERLAP} lines.",
        {"direction": one_of("up", "down")},
    ),
)  # fmt: skip
