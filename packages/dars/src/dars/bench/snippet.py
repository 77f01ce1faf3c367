"""A script that shows what a failing test shows, without being a test.

Everything is read from the test's source: what it imports, what it defines on the way, and the statement that failed.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ..errors import TaskError
from .tasks import find_function

ASSERTED = {"assertEqual": ast.Eq, "assertNotEqual": ast.NotEq, "assertIs": ast.Is, "assertIn": ast.In}


class Snippet(NamedTuple):
    """A script in parts.

    Attributes
    ----------
    setup : everything before the last statement.
    last : the statement that fails.
    sides : both sides of ``last`` where it asserts that two values are equal.
    calls : names of what ``last`` calls, outermost first, without those of Python and pytest.
    """

    setup: str
    last: str
    sides: tuple[str, str] | None
    calls: tuple[str, ...]

    @property
    def text(self) -> str:
        """The script."""
        return f"{self.setup}{self.last}\n"


def snippet(source: str, names: Sequence[str], line: int, parameters: Mapping[str, str], path: str) -> Snippet | None:
    """The script of a test; None where it cannot be written: fixtures, or helpers from elsewhere.

    Parameters
    ----------
    source : of the file of the test.
    names : of the test's classes and function.
    line : that failed, counted from 1.
    parameters : values of its arguments, as Python writes them.
    """
    tree = ast.parse(source)
    try:
        function, holder = find_function(tree, names, path)
    except TaskError:
        return None
    method = isinstance(holder, ast.ClassDef)
    arguments = [argument.arg for argument in function.args.args][1 if method else 0 :]
    if set(arguments) != set(parameters) or isinstance(function, ast.AsyncFunctionDef):
        return None
    body = []
    for statement in function.body:
        body.append(_plain(statement) if method else statement)
        if statement.lineno <= line <= (statement.end_lineno or statement.lineno):
            break
    else:
        return None
    *before, last = body
    kept = [one for one in before if not isinstance(one, ast.Assert) and not _is_text(one)]
    given = [ast.parse(f"{name} = {value}").body[0] for name, value in parameters.items() if _literal(value)]
    if len(given) < len(parameters) or "self" in _used([*kept, last]):
        return None
    outer = _needed(tree, [*kept, last], set(parameters))
    if outer is None:
        return None
    imports = [node for node in outer if isinstance(node, (ast.Import, ast.ImportFrom))]
    others = [node for node in outer if node not in imports]
    # What is written between lines of imports may not matter for order; a definition after them is where people look.
    parts = ["\n".join(map(ast.unparse, imports)), *map(ast.unparse, others)]
    parts.append("\n".join(map(ast.unparse, [*given, *kept])))
    setup = "\n\n".join(part for part in parts if part)
    separator = "\n" if given or kept else "\n\n"
    return Snippet(setup + separator if setup else "", ast.unparse(last), _sides(last), tuple(_calls(last)))


def _plain(statement: ast.stmt) -> ast.stmt:
    """An assertion of unittest as an assert."""
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Call):
        return statement
    call = statement.value
    if not isinstance(call.func, ast.Attribute) or ast.unparse(call.func.value) != "self":
        return statement
    name, given = call.func.attr, call.args
    if name in ASSERTED and len(given) >= 2:
        test: ast.expr = ast.Compare(given[0], [ASSERTED[name]()], [given[1]])
    elif name in ("assertTrue", "assertFalse") and given:
        test = given[0] if name == "assertTrue" else ast.UnaryOp(ast.Not(), given[0])
    else:
        return statement
    return ast.copy_location(ast.Assert(test), statement)


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _literal(value: str) -> bool:
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError):
        return False
    return True


def _used(nodes: Sequence[ast.AST]) -> set[str]:
    return {name.id for node in nodes for name in ast.walk(node) if isinstance(name, ast.Name)}


def _needed(tree: ast.Module, nodes: Sequence[ast.AST], known: set[str]) -> list[ast.stmt] | None:
    """Statements of a module that bind names which some code uses, in order; None if one cannot be moved."""
    wanted = _used(nodes) - known
    taken: dict[int, ast.stmt] = {}
    while True:
        before = len(taken)
        for i, node in enumerate(tree.body):
            names = set(_bound(node)) & wanted
            if not names or (i in taken and not isinstance(node, (ast.Import, ast.ImportFrom))):
                continue
            if isinstance(node, ast.ImportFrom) and (node.level or node.module == "__future__"):
                return None
            if any(name.startswith("test") for name in names):  # another test, called by this one
                return None
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                taken[i] = _only(node, names)
            else:
                taken[i] = node
                wanted |= _used([node])
        if len(taken) == before:
            return [taken[i] for i in sorted(taken)]


def _bound(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        for alias in node.names:
            yield alias.asname or alias.name.partition(".")[0]
    elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, (ast.Assign, ast.AnnAssign)):
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                yield inner.id


def _only(node: ast.Import | ast.ImportFrom, names: set[str]) -> ast.stmt:
    aliases = [alias for alias in node.names if (alias.asname or alias.name.partition(".")[0]) in names]
    if isinstance(node, ast.ImportFrom):
        return ast.ImportFrom(node.module, aliases, 0)
    return ast.Import(aliases)


def _sides(statement: ast.stmt) -> tuple[str, str] | None:
    if not isinstance(statement, ast.Assert) or not isinstance(statement.test, ast.Compare):
        return None
    test = statement.test
    if len(test.ops) != 1 or not isinstance(test.ops[0], ast.Eq):
        return None
    return ast.unparse(test.left), ast.unparse(test.comparators[0])


def _calls(statement: ast.stmt) -> Iterator[str]:
    for node in ast.walk(statement):
        if isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)):
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            if not hasattr(builtins, name) and name not in ("raises", "warns"):
                yield name
