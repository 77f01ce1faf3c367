"""Values of formulas."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .parser import Tree, parse
from .tokens import FormulaError

SIGNS: dict[str, Callable[[float, float], float]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "^": lambda a, b: a**b,
    "<": lambda a, b: float(a < b),
    "<=": lambda a, b: float(a <= b),
    ">": lambda a, b: float(a > b),
    ">=": lambda a, b: float(a >= b),
    "==": lambda a, b: float(a == b),
    "!=": lambda a, b: float(a != b),
}


def mean(*values: float) -> float:
    """The average."""
    return sum(values) / len(values)


def clamp(value: float, low: float, high: float) -> float:
    """The value, or the nearer bound."""
    if value < low:
        return low
    return high if value > high else value


FUNCTIONS: dict[str, Callable[..., float]] = {"max": max, "min": min, "abs": abs, "mean": mean, "clamp": clamp}


def divide(sign: str, a: float, b: float) -> float:
    """A quotient or a remainder."""
    if b == 0:
        raise FormulaError("division by zero", 0)
    return a / b if sign == "/" else a % b


def value_of(tree: Tree, names: Mapping[str, float]) -> float:
    """Value of a tree."""
    kind = tree[0]
    if kind == "num":
        return tree[1]
    if kind == "var":
        if tree[1] not in names:
            raise FormulaError(f"unknown name {tree[1]}", 0)
        return names[tree[1]]
    if kind == "neg":
        return -value_of(tree[1], names)
    if kind == "if":
        return value_of(tree[2] if value_of(tree[1], names) != 0 else tree[3], names)
    if kind == "call":
        if tree[1] not in FUNCTIONS:
            raise FormulaError(f"unknown function {tree[1]}", 0)
        return FUNCTIONS[tree[1]](*[value_of(part, names) for part in tree[2]])
    a, b = value_of(tree[2], names), value_of(tree[3], names)
    return divide(tree[1], a, b) if tree[1] in "/%" else SIGNS[tree[1]](a, b)


def evaluate(text: str, **names: float) -> float:
    """Value of a formula."""
    return value_of(parse(text), names)


class Calculator:
    """Remembers variables: "x = 3" sets one."""

    def __init__(self) -> None:
        self.names: dict[str, float] = {"pi": 3.141592653589793}
        self.count = 0

    def enter(self, line: str) -> float:
        """Value of a line; it is also kept as ``ans``."""
        name, equals, formula = line.partition("=")
        assigns = equals == "=" and name.strip().isidentifier() and not formula.startswith("=")
        value = evaluate(formula if assigns else line, **self.names)
        if assigns:
            self.names[name.strip()] = value
        self.names["ans"] = value
        self.count += 1
        return value
