"""Trees as text again, with no more parentheses than needed."""

from __future__ import annotations

from .parser import LEVELS, NEGATION, Tree


def level(tree: Tree) -> int:
    """How tightly a tree binds."""
    if tree[0] == "op":
        return LEVELS[tree[1]]
    return {"neg": NEGATION, "if": 0}.get(tree[0], 9)


def guarded(tree: Tree, least: int) -> str:
    """A tree in parentheses if it binds more loosely than it has to."""
    return f"({show(tree)})" if level(tree) < least else show(tree)


def number(value: float) -> str:
    """A number without needless zeros."""
    return str(int(value)) if value == int(value) else repr(value)


def show(tree: Tree) -> str:
    """Text that is read as this tree."""
    kind = tree[0]
    if kind == "num":
        return number(tree[1])
    if kind == "var":
        return tree[1]
    if kind == "neg":
        return "-" + guarded(tree[1], NEGATION)
    if kind == "call":
        return f"{tree[1]}({', '.join(show(part) for part in tree[2])})"
    if kind == "if":
        return f"{guarded(tree[1], 1)} ? {show(tree[2])} : {show(tree[3])}"
    mine = LEVELS[tree[1]]
    right_first = tree[1] == "^"
    left = guarded(tree[2], mine + 1 if right_first else mine)
    right = guarded(tree[3], mine if right_first else mine + 1)
    return f"{left} {tree[1]} {right}"
