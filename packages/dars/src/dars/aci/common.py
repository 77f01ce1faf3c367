"""What all tools share: arguments are checked, refusals change nothing, observations are capped and end in a status.

A tool keeps what it remembers in ``state`` under its own keys, as plain values that are replaced and never changed in
place: nodes share them, so that putting a node's state back is putting its dictionary back.
"""

from __future__ import annotations

import difflib
import hashlib
import posixpath
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..env.base import Environment
from ..env.output import shorten
from ..errors import EnvError
from .base import Observation, Run, State, Tool

OBSERVATION_CHARS = 20_000
JSON_TYPES: dict[str, type] = {"string": str, "integer": int, "boolean": bool}

# Schemas of properties. The strict mode of the Messages API allows additionalProperties: false and optional properties
# (24 in all tools together, of at most 20 tools), but no ranges; "null" as a second type is dearer than leaving out.
STRING = {"type": "string"}
INTEGER = {"type": "integer"}
BOOLEAN = {"type": "boolean"}


def one_of(*values: str) -> dict[str, Any]:
    """Schema of a string that is one of some."""
    return {"type": "string", "enum": list(values)}


def described(schema: Mapping[str, Any], text: str) -> dict[str, Any]:
    """A schema with a description."""
    return {**schema, "description": text}


def make_tool(
    name: str,
    kind: str,
    run: Run,
    description: str,
    required: Mapping[str, Mapping[str, Any]] | None = None,
    optional: Mapping[str, Mapping[str, Any]] | None = None,
    code_arguments: Sequence[str] = (),
) -> Tool:
    """A tool that refuses instead of raising.

    ``run`` works on a copy of the state, which counts only if it does not raise EnvError; it has to raise before it
    changes the workspace.
    """
    properties = {key: dict(value) for key, value in {**(required or {}), **(optional or {})}.items()}
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(required or {}),
        "additionalProperties": False,
    }

    def checked(env: Environment, args: Mapping[str, Any], state: State) -> Observation:
        began = time.monotonic()
        fresh = dict(state)
        try:
            seen = run(env, check_arguments(name, schema, args), fresh)
        except EnvError as error:
            seen = Observation(str(error), failed=True)
        else:
            state.clear()
            state.update(fresh)
        wall_s = seen.wall_s or time.monotonic() - began
        text = shown(f"{shorten(seen.text.rstrip(), OBSERVATION_CHARS)[0]}\n{status(state, seen.exit_code, wall_s)}")
        return seen._replace(text=text, wall_s=wall_s)

    return Tool(name, schema, kind, checked, description, tuple(code_arguments))


def check_arguments(name: str, schema: Mapping[str, Any], args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, without those that are null; EnvError says which one is wrong."""
    properties: Mapping[str, Mapping[str, Any]] = schema["properties"]
    given = {key: value for key, value in args.items() if value is not None}
    for key in given:
        if key not in properties:
            raise EnvError(f"{name} has no argument {key!r}; it has {', '.join(properties) or 'none'}")
    for key in schema["required"]:
        if key not in given:
            raise EnvError(f"{name} needs the argument {key}")
    for key, value in given.items():
        wanted = properties[key]
        if type(value) is not JSON_TYPES[wanted["type"]]:
            raise EnvError(f"{name}: {key} has to be of type {wanted['type']}, not {type(value).__name__}")
        if "enum" in wanted and value not in wanted["enum"]:
            raise EnvError(f"{name}: {key} is {value!r}; it has to be one of {', '.join(wanted['enum'])}")
        if isinstance(value, str):
            try:
                value.encode("utf-8", "surrogateescape")
            except UnicodeEncodeError:
                raise EnvError(f"{name}: {key} holds characters that no file can hold (lone surrogates)") from None
    return given


def status(state: State, exit_code: int | None, wall_s: float) -> str:
    """The last line of every observation.

    Wall time is in whole seconds: a recording finds its next answer by the text of the request, which should not differ
    by milliseconds.
    """
    parts = [f"open file: {state.get('open') or 'none'}", f"cwd: {state.get('cwd', '.')}"]
    if exit_code is not None:
        parts.append(f"exit code: {exit_code}")
    parts.append(f"wall time: {wall_s:.0f} s" if wall_s >= 1 else "wall time: under 1 s")
    return f"({', '.join(parts)})"


# --- paths ------------------------------------------------------------------------------------------------------------


def inner_path(env: Environment, path: str) -> str:
    """A path relative to the workspace, in one spelling; an absolute one has to lie below it.

    Links are followed by the environment, which refuses those that lead outside.
    """
    if path.startswith("/"):
        where = env.exec(["pwd"])
        root = where.output.strip()
        if where.returncode or not root.startswith("/") or not path.startswith(f"{root.rstrip('/')}/"):
            raise EnvError(f"{path} is not in the workspace: give a path from the workspace's root")
        path = posixpath.relpath(path, root)
    inner = posixpath.normpath(path)
    if inner in (".", "..") or inner.startswith("../") or "\0" in inner:
        raise EnvError(f"{path!r} is not a file in the workspace: give a path from the workspace's root")
    return inner


def chosen_path(env: Environment, args: Mapping[str, Any], state: State) -> str:
    """The path of the arguments, or that of the open file."""
    if "path" in args:
        return inner_path(env, args["path"])
    if not state.get("open"):
        raise EnvError("no file is open: give its path, or open it first")
    return str(state["open"])


def files_below(env: Environment, folder: str | None) -> list[str]:
    """Files of a folder; without one, or with ".", of the workspace."""
    paths = env.list_files()
    if folder is None or posixpath.normpath(folder) == ".":
        return paths
    prefix = inner_path(env, folder) + "/"
    found = [path for path in paths if path.startswith(prefix)]
    if not found:
        raise EnvError(f"there is no folder {folder} with files in it")
    return found


def exists(env: Environment, path: str) -> bool:
    """Whether there is a file, or a folder with files, of this name."""
    if any(known == path or known.startswith(f"{path}/") for known in env.list_files()):
        return True
    try:
        env.read_file(path)  # in a folder that no state holds, .git for one
    except EnvError:
        return False
    return True


# --- texts ------------------------------------------------------------------------------------------------------------


class Text:
    """A file's text, line ends as "\\n"; :meth:`encode` gives the bytes of a changed text in the file's own way.

    Bytes that are not UTF-8 become lone surrogates and come back unchanged.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        text = data.decode("utf-8", "surrogateescape")
        self.crlf = "\r\n" in text and text.count("\r\n") == text.count("\n")
        self.text = text.replace("\r\n", "\n") if self.crlf else text

    def encode(self, text: str) -> bytes:
        """Bytes of a text with the line ends of this file."""
        return (text.replace("\n", "\r\n") if self.crlf else text).encode("utf-8", "surrogateescape")


def read_text(env: Environment, path: str) -> Text:
    """A text file; EnvError with similar paths if there is none, and for binary files."""
    try:
        data = env.read_file(path)
    except EnvError as error:
        raise EnvError(f"{error}{_similar(env, path)}") from None
    if b"\0" in data[:8192]:
        raise EnvError(f"{path} is a binary file of {len(data)} bytes")
    return Text(data)


def _similar(env: Environment, path: str) -> str:
    paths = env.list_files()
    name = posixpath.basename(path)
    near = [known for known in paths if posixpath.basename(known) == name][:3]
    near = near or difflib.get_close_matches(path, paths, 3)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def lines_of(text: str) -> list[str]:
    """Lines as editors count them: by newlines alone, a last one without text not counted."""
    lines = text.split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def shown(text: str) -> str:
    """A text that can be sent: what is not UTF-8 becomes a replacement character."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def numbered(lines: Sequence[str], first: int, last: int) -> str:
    """Lines ``first`` to ``last``, counted from 1, each with its number."""
    return "\n".join(f"{i}:{shown(lines[i - 1])}" for i in range(first, last + 1))


def digest(data: bytes) -> str:
    """A short name of a content."""
    return hashlib.sha256(data).hexdigest()[:16]
