"""Where a symbol of Python code is defined and used: search_repo, by an index of syntax trees.

What is known of a file is a function of its content alone, so it is kept by the content's hash: a changed workspace, or
another branch, parses only the files that nobody has seen.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ..env.base import Environment
from ..errors import EnvError
from ..patches import is_test
from .base import Observation, State, Tool
from .common import BOOLEAN, STRING, described, digest, lines_of, make_tool, one_of, shown

MOST = 50  # definitions or references shown
KEPT = 10_000  # files remembered


class Definition(NamedTuple):
    """Something defined: its dotted name in the file, "class", "function" or "variable", and the line."""

    name: str
    kind: str
    line: int


class Symbols(NamedTuple):
    """Of one file: definitions in order, and name -> lines that use it."""

    definitions: tuple[Definition, ...]
    references: Mapping[str, tuple[int, ...]]


def symbols_of(source: bytes) -> Symbols:
    """Symbols of a file; none where it does not parse."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return Symbols((), {})
    used: dict[str, set[int]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            used.setdefault(node.id, set()).add(node.lineno)
        elif isinstance(node, ast.Attribute):
            used.setdefault(node.attr, set()).add(node.end_lineno or node.lineno)
        elif isinstance(node, ast.alias):
            used.setdefault(node.name.rpartition(".")[2], set()).add(node.lineno)
    return Symbols(tuple(_definitions(tree.body, "")), {name: tuple(sorted(lines)) for name, lines in used.items()})


def _definitions(body: list[ast.stmt], prefix: str) -> Iterator[Definition]:
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield Definition(prefix + node.name, "function", node.lineno)
            yield from _definitions(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.ClassDef):
            yield Definition(prefix + node.name, "class", node.lineno)
            yield from _definitions(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for name in (n for target in targets for n in ast.walk(target)):
                if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store):
                    yield Definition(prefix + name.id, "variable", node.lineno)
        else:  # if, try, with, for: their blocks belong to the same scope
            for block in ("body", "orelse", "finalbody"):
                yield from _definitions(getattr(node, block, []), prefix)
            for handler in getattr(node, "handlers", []):
                yield from _definitions(handler.body, prefix)


class SymbolIndex:
    """Symbols of all Python files of a workspace.

    Attributes
    ----------
    parsed : files parsed so far.
    """

    def __init__(self) -> None:
        self.parsed = 0
        self._known: dict[str, Symbols] = {}

    def look(self, env: Environment) -> Iterator[tuple[str, bytes, Symbols]]:
        """(path, content, symbols) of every file."""
        if len(self._known) > KEPT:
            self._known = {}
        for path in env.list_files():
            if not path.endswith(".py"):
                continue
            try:
                source = env.read_file(path)
            except EnvError:
                continue  # a link that leads nowhere
            key = digest(source)
            if key not in self._known:
                self._known[key] = symbols_of(source)
                self.parsed += 1
            yield path, source, self._known[key]


def search_repo(index: SymbolIndex) -> Tool:
    """The tool, on an index of its own."""

    def run(env: Environment, args: Mapping[str, Any], state: State) -> Observation:
        symbol, kind = args["symbol"].strip(), args.get("kind", "all")
        if not all(part.isidentifier() for part in symbol.split(".")):
            raise EnvError(f"{symbol!r} is no name of Python: give one such as function, or Class.method")
        defined, used = [], []
        for path, source, known in index.look(env):
            if args.get("exclude_tests") and is_test(path):
                continue
            # Of a dotted name the first parts may be modules.
            dotted = f".{path.removesuffix('.py').removesuffix('/__init__').replace('/', '.')}"
            here = [d for d in known.definitions if f"{dotted}.{d.name}".endswith(f".{symbol}")]
            lines = known.references.get(symbol.rpartition(".")[2], ())
            if not here and not lines:
                continue
            texts = lines_of(source.decode("utf-8", "surrogateescape"))
            defined += [f"{shown(path)}:{d.line}: {d.kind} {d.name}: {_line(texts, d.line)}" for d in here]
            used += [f"{shown(path)}:{line}: {_line(texts, line)}" for line in lines]
        parts = []
        if kind in ("def", "all"):
            parts.append(_section(f"Definitions of {symbol}", defined))
        if kind in ("ref", "all"):
            parts.append(_section(f"References to {symbol.rpartition('.')[2]}", used))
        return Observation("\n".join(parts))

    return make_tool(
        "search_repo", "other", run,
        "Find where a name of the Python code (function, class, variable, Class.method) is defined and used.",
        {"symbol": STRING},
        {
            "kind": described(one_of("def", "ref", "all"), "definitions, references, or both (default)"),
            "exclude_tests": BOOLEAN,
        },
    )  # fmt: skip


def _line(texts: list[str], line: int) -> str:
    return shown(texts[line - 1]).strip()[:200] if line <= len(texts) else ""


def _section(head: str, found: list[str]) -> str:
    if not found:
        return f"{head}: none."
    more = [f"({len(found) - MOST} more)"] if len(found) > MOST else []
    return "\n".join([f"{head}:", *found[:MOST], *more])
