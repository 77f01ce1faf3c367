"""The functions of a module, and those that a patch changes: what a verifier reads."""

from __future__ import annotations

import ast
import textwrap
from collections import deque
from collections.abc import Mapping

from ..env.apply import applied
from ..errors import EnvError
from ..patches import changes
from .base import Case

Pair = tuple[str, str]  # a function before and after


def named_functions(source: str) -> dict[str, str]:
    """Texts of all functions and methods of a module by their dotted names, outer ones first; inner ones too.

    Decorators are left out and the indentation is taken away. A name that was given before has a stroke more.

    Examples
    --------
    >>> named_functions("class A:\\n    def f(self):\\n        return 1\\n")
    {'A.f': 'def f(self):\\n    return 1'}
    """
    lines = source.encode().splitlines(keepends=True)  # ast counts lines and bytes as a tokenizer does
    found: dict[str, str] = {}
    todo: deque[tuple[str, ast.AST]] = deque([("", ast.parse(source))])
    while todo:
        name, node = todo.popleft()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{name}.{node.name}" if name else node.name
            while name in found:
                name += "'"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            text = b"".join(lines[node.lineno - 1 : node.end_lineno]).decode()
            found[name] = textwrap.dedent(text).rstrip()
        todo.extend((name, child) for child in ast.iter_child_nodes(node))
    return found


def changed_functions(files: Mapping[str, bytes], patch: str) -> tuple[Pair, ...] | None:
    """The innermost functions that a patch changes, before and after; None if it does not apply.

    Functions that are new or gone have nothing to be compared with, and are left out; so are files that are no Python.

    Parameters
    ----------
    files : those that the patch names, as they were.
    """
    try:
        after = applied(files, patch)
    except ValueError:
        return None
    pairs: list[Pair] = []
    for change in changes(patch):
        if change.path.endswith(".py") and change.old_path in files and change.path in after:
            was, now = _parsed(files[change.old_path]), _parsed(after[change.path])
            differ = [name for name in was if name in now and was[name] != now[name]]
            inner = [name for name in differ if not any(other.startswith(f"{name}.") for other in differ)]
            pairs += [(was[name], now[name]) for name in inner]
    return tuple(pairs)


def functions_of(case: Case) -> tuple[tuple[Pair, ...] | None, ...]:
    """Of each candidate the functions that it changes."""
    env = case.env
    env.restore(case.base)
    files = {}
    for path in {change.old_path for candidate in case.candidates for change in changes(candidate.patch)}:
        try:
            files[path] = env.read_file(path)
        except EnvError:
            continue  # new
    return tuple(changed_functions(files, candidate.patch) for candidate in case.candidates)


def _parsed(data: bytes) -> dict[str, str]:
    try:
        return named_functions(data.decode())
    except (SyntaxError, ValueError, RecursionError):
        return {}
