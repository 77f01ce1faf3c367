"""First-order mutations of Python source: every small fault that cosmic-ray's operators can put into a file.

The library's own function parses the file anew for every occurrence; here a file is parsed once and its operators are
asked node by node. Comparisons and arithmetic stay within their family, so that every such fault has an inverse.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import TaskError

COMPARISONS = (("Eq", "NotEq", "Lt", "LtE", "Gt", "GtE"), ("Is", "IsNot"))
ARITHMETIC = (("Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow"), ("RShift", "LShift", "BitOr", "BitAnd", "BitXor"))
SIGNS = (("USub", "UAdd"),)
KEYWORDS = (
    "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd",
    "ReplaceBreakWithContinue", "ReplaceContinueWithBreak",
)  # fmt: skip
REMOVE_NOT = "ReplaceUnaryOperator_Delete_Not"
# A star or slash elsewhere unpacks or marks parameters.
ARITHMETIC_PARENTS = frozenset({"arith_expr", "term", "power", "shift_expr", "expr", "and_expr", "xor_expr"})
NOT_NEGATED = frozenset({"namedexpr_test", "lambdef"})  # "not a := b" is no Python


@dataclass(frozen=True, order=True)
class Mutation:
    """One replacement in a source.

    Attributes
    ----------
    operator : name of cosmic-ray's operator.
    start, end : offsets in the source, in characters.
    replacement : what stands there afterwards.
    function : qualified name of the function around it; "" in none.
    line : of ``start``, counted from 1.
    """

    operator: str
    start: int
    end: int
    replacement: str
    function: str
    line: int


def mutate(source: str, mutation: Mutation) -> str:
    """The source with the replacement made."""
    return source[: mutation.start] + mutation.replacement + source[mutation.end :]


def mutations(source: str) -> list[Mutation]:
    """All first-order mutations, ordered by (start, end, operator, replacement).

    Annotations are left alone: nothing runs them.

    Raises
    ------
    TaskError
        cosmic-ray is not installed.
    """
    operators = _operators()
    from cosmic_ray.ast import get_ast
    from parso.utils import split_lines

    lines = split_lines(source, keepends=True)
    starts = [0, *itertools.accumulate(len(line) for line in lines)]

    def offset(position: tuple[int, int]) -> int:
        return starts[position[0] - 1] + position[1]

    found: dict[tuple[int, int, str], Mutation] = {}
    for node, function in _nodes(get_ast(source), "", False):
        for name, operator in operators.get(node.type, {}).items():
            if not _applies(name, node):
                continue
            for index, (begin, close) in enumerate(operator.mutation_positions(node)):
                start, end = offset(begin), offset(close)
                text = _replacement(operator, node, index)
                if name == REMOVE_NOT:
                    end = offset(node.children[1].start_pos)  # with the blank after it
                elif text[:1].isidentifier() and source[start - 1 : start].isidentifier():
                    text = " " + text  # "if(x)" becomes "if not(x)"
                found.setdefault((start, end, text), Mutation(name, start, end, text, function, begin[0]))
    return sorted(found.values(), key=lambda made: (made.start, made.end, made.operator, made.replacement))


@functools.cache
def _operators() -> Mapping[str, Mapping[str, Any]]:
    """Type of node -> name -> operator."""
    try:
        from cosmic_ray.operators.provider import OperatorProvider
    except ImportError:
        raise TaskError("mutations need cosmic-ray: pip install 'dars-agent[bench]'") from None
    known = OperatorProvider()
    table: dict[str, list[str]] = {
        "comparison": _pairs("ReplaceComparisonOperator", COMPARISONS),
        "operator": _pairs("ReplaceBinaryOperator", ARITHMETIC),
        "factor": _pairs("ReplaceUnaryOperator", SIGNS),
        "not_test": [REMOVE_NOT],
        "number": ["NumberReplacer"],
        "keyword": list(KEYWORDS),
        "for_stmt": ["ZeroIterationForLoop"],
    }
    for kind in ("if_stmt", "while_stmt", "assert_stmt", "ternary", "test"):
        table[kind] = ["AddNot"]
    return {kind: {name: known[name]() for name in names} for kind, names in table.items()}


def _pairs(kind: str, families: tuple[tuple[str, ...], ...]) -> list[str]:
    return [f"{kind}_{old}_{new}" for family in families for old, new in itertools.permutations(family, 2)]


def _nodes(node: Any, function: str, inside: bool) -> Iterator[tuple[Any, str]]:
    """Nodes below one with the name of the function around each; ``function`` may be a class's, then not ``inside``."""
    yield node, function if inside else ""
    if node.type in ("funcdef", "classdef"):
        name = node.name.value
        function, inside = f"{function}.{name}" if function else name, node.type == "funcdef" or inside
    for child in _children(node):
        yield from _nodes(child, function, inside)


def _children(node: Any) -> list[Any]:
    """Children without annotations."""
    children = getattr(node, "children", [])
    if node.type == "tfpdef":
        return []
    if node.type == "annassign":
        return children[3:]  # ":" type "=" value
    if node.type == "funcdef":
        return [child for child in children if child is not node.annotation]
    return list(children)


def _applies(name: str, node: Any) -> bool:
    if node.type == "operator":
        return node.parent is not None and node.parent.type in ARITHMETIC_PARENTS
    if name == "AddNot":
        return node.children[2 if node.type in ("ternary", "test") else 1].type not in NOT_NEGATED
    return True


def _replacement(operator: Any, node: Any, index: int) -> str:
    """What an operator puts in the place of its position; the node is left as it was."""
    if not hasattr(node, "children"):
        value = node.value
        text = operator.mutate(node, index).value
        node.value = value
        return text.strip()
    before, first = list(node.children), node.children[0]
    value = getattr(first, "value", None)
    operator.mutate(node, index)
    changed = next((new for old, new in zip(before, node.children, strict=True) if new is not old), first)
    text = changed.get_code()
    node.children = before
    if value is not None:
        first.value = value
    return text.strip()
