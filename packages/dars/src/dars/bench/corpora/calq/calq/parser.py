"""Formulas as trees: tuples whose first part says what they are."""

from __future__ import annotations

from typing import Any

from .tokens import FormulaError, Token, tokenize

LEVELS = {"<": 1, "<=": 1, ">": 1, ">=": 1, "==": 1, "!=": 1, "+": 2, "-": 2, "*": 3, "/": 3, "%": 3, "^": 5}
NEGATION = 4

Tree = tuple[Any, ...]


class Parser:
    """Reads one formula by precedence climbing."""

    def __init__(self, text: str) -> None:
        self.tokens = tokenize(text)
        self.place = 0

    def peek(self) -> Token:
        """The next token."""
        return self.tokens[self.place]

    def take(self, text: str = "") -> Token:
        """The next token, which has to be ``text`` if that is given; go on behind it."""
        token = self.peek()
        if text and token.text != text:
            raise FormulaError(f"expected {text!r}", token.at)
        self.place += 1
        return token

    def whole(self) -> Tree:
        """The formula up to its end."""
        tree = self.choice()
        if self.peek().kind != "end":
            raise FormulaError(f"unexpected {self.peek().text!r}", self.peek().at)
        return tree

    def choice(self) -> Tree:
        """A formula, or one of two: condition ? yes : no."""
        tree = self.binary(1)
        if self.peek().text == "?":
            self.take("?")
            yes = self.choice()
            self.take(":")
            return ("if", tree, yes, self.choice())
        return tree

    def binary(self, least: int) -> Tree:
        """Operands joined by signs that bind at least so tightly."""
        left = self.unary()
        while LEVELS.get(self.peek().text, 0) >= least:
            sign = self.take().text
            level = LEVELS[sign]
            right = self.binary(level if sign == "^" else level + 1)
            left = ("op", sign, left, right)
        return left

    def unary(self) -> Tree:
        """An operand with its sign."""
        if self.peek().text == "-":
            self.take("-")
            return ("neg", self.binary(NEGATION))
        return self.operand()

    def operand(self) -> Tree:
        """A number, a name, a call or a formula in parentheses."""
        token = self.take()
        if token.kind == "number":
            return ("num", float(token.text))
        if token.kind == "name":
            if self.peek().text == "(":
                return ("call", token.text, self.arguments())
            return ("var", token.text)
        if token.text == "(":
            tree = self.choice()
            self.take(")")
            return tree
        raise FormulaError("expected a value", token.at)

    def arguments(self) -> list[Tree]:
        """What stands between the parentheses of a call."""
        found: list[Tree] = []
        self.take("(")
        while self.peek().text != ")":
            if found:
                self.take(",")
            found.append(self.choice())
        self.take(")")
        return found


def parse(text: str) -> Tree:
    """The tree of a formula."""
    return Parser(text).whole()
