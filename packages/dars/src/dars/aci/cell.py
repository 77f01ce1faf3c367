"""A Python session: python. What a cell leaves behind lies in the state, not in a process.

Imports, functions and classes are kept as source and run again before the next cell, so that an edited module is seen;
other values are pickled. Values that cannot be, such as open files, are lost, and the observation names them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..env.base import Environment
from ..errors import EnvError
from .base import Observation, State
from .common import STRING, make_tool
from .shell import report, run_command

RESULT = ".dars-cell.json"
MOST_BYTES = 256 * 1024  # of all pickled values together

# Runs in the workspace's own Python, on any version from 3.8. It unpickles only what it pickled itself, closed in.
RUNNER = r"""
import ast, base64, json, pickle, sys, traceback, types
given = json.load(sys.stdin)
main = sys.modules["__main__"] = types.ModuleType("__main__")
space = main.__dict__
def define(sources):
    late = []
    for source in sources:
        try:
            exec(compile(source, "<cell>", "exec"), space)
        except Exception:
            late.append(source)
    return late
late = define(given["sources"])
if given["values"]:
    try:
        space.update(pickle.loads(base64.b64decode(given["values"])))
    except Exception:
        print("(the values of earlier cells cannot be read any more: a class or module changed)")
define(late)
sources, code = list(given["sources"]), 0
kept = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
named = set()
try:
    tree = ast.parse(given["code"], "<cell>")
    lines = given["code"].split("\n")
    for node in tree.body:
        first = min([node.lineno] + [d.lineno for d in getattr(node, "decorator_list", [])])
        if isinstance(node, ast.Expr) and node is tree.body[-1]:
            value = eval(compile(ast.Expression(node.value), "<cell>", "eval"), space)
            if value is not None:
                print(repr(value))
        else:
            exec(compile(ast.Module([node], []), "<cell>", "exec"), space)
        if isinstance(node, kept):
            sources.append("\n".join(lines[first - 1:node.end_lineno]) if node.col_offset == 0 else ast.unparse(node))
except SystemExit as error:
    code = error.code if isinstance(error.code, int) else int(error.code is not None)
except BaseException as error:
    code = 1
    shown = error.__traceback__.tb_next if not isinstance(error, SyntaxError) else None
    traceback.print_exception(type(error), error, shown)
values, lost = {}, []
for name, value in space.items():
    own = getattr(value, "__module__", None) == "__main__" and isinstance(value, (type, types.FunctionType))
    if name.startswith("__") or own or isinstance(value, (types.ModuleType, types.BuiltinFunctionType)):
        continue
    try:
        pickle.loads(pickle.dumps(value))
        values[name] = value
    except Exception:
        lost.append(name)
data = pickle.dumps(values)
if len(data) > given["most"]:
    for name in sorted(values, key=lambda name: len(pickle.dumps(values[name])), reverse=True):
        lost.append(name)
        del values[name]
        data = pickle.dumps(values)
        if len(data) <= given["most"]:
            break
with open(given["result"], "w") as file:
    json.dump({"sources": list(dict.fromkeys(reversed(sources)))[::-1], "lost": lost, "code": code,
               "values": base64.b64encode(data).decode() if values else ""}, file)
"""


def _python(env: Environment, args: Mapping[str, Any], state: State) -> Observation:
    if not args["code"].strip():
        raise EnvError("the code is empty")
    cell = state.get("cell") or {"sources": [], "values": ""}
    given = {**cell, "code": args["code"], "result": RESULT, "most": MOST_BYTES}
    command = "python -c " + "'" + RUNNER.replace("'", "'\\''") + "'"
    done = run_command(env, {**state, "cwd": "."}, command, stdin=json.dumps(given).encode())
    kept = None
    with contextlib.suppress(EnvError):
        data = env.read_file(RESULT)
        env.remove_file(RESULT)
        kept = _parse(data)
    seen = report(done, state)
    if kept is None:
        return seen._replace(text=f"{seen.text}\n(The cell did not end: the session is as before it.)", volatile=True)
    state["cell"] = {"sources": kept.sources, "values": kept.values}
    text = done.output.rstrip() or "(The cell printed nothing.)"
    if kept.lost:
        text += f"\n(Not kept for later cells: {', '.join(kept.lost)}.)"
    return seen._replace(text=text, exit_code=kept.code, volatile=True)


class Kept(NamedTuple):
    """What a cell left behind: sources of definitions, pickled values, names of what was lost, its exit code."""

    sources: list[str]
    values: str
    lost: list[str]
    code: int


def _parse(data: bytes) -> Kept | None:
    """None for what the runner would not have written: the cell can reach the file too."""
    try:
        found: Any = json.loads(data)
        kept = Kept(found["sources"], found["values"], found["lost"], found["code"])
    except (ValueError, TypeError, KeyError):
        return None
    lists = all(isinstance(x, list) and all(isinstance(name, str) for name in x) for x in (kept.sources, kept.lost))
    return kept if lists and isinstance(kept.values, str) and isinstance(kept.code, int) else None


TOOL = make_tool(
    "python", "other", _python,
    "Run Python in the workspace and see what it prints, and the value of a last expression. Imports, definitions and "
    "values stay for later cells.",
    {"code": STRING}, code_arguments=("code",),
)  # fmt: skip
