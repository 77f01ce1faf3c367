"""Formulas as tokens."""

from __future__ import annotations

from typing import NamedTuple

TWO = ("<=", ">=", "==", "!=")
ONE = "+-*/^%(),<>?:"


class FormulaError(Exception):
    """A formula that cannot be read or evaluated; it says where."""

    def __init__(self, message: str, at: int) -> None:
        super().__init__(f"{message} at {at}")
        self.at = at


class Token(NamedTuple):
    """A number, a name, a sign or the end."""

    kind: str
    text: str
    at: int


def number_end(text: str, at: int) -> int:
    """Where a number that begins at a place ends."""
    end, dots = at, 0
    while end < len(text) and (text[end].isdigit() or (text[end] == "." and dots == 0)):
        dots += text[end] == "."
        end += 1
    return end


def name_end(text: str, at: int) -> int:
    """Where a name that begins at a place ends."""
    end = at
    while end < len(text) and (text[end].isalnum() or text[end] == "_"):
        end += 1
    return end


def tokenize(text: str) -> list[Token]:
    """Tokens of a formula; the last is the end."""
    tokens: list[Token] = []
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        if text[at].isdigit() or text[at] == ".":
            kind, end = "number", number_end(text, at)
        elif text[at].isalpha():
            kind, end = "name", name_end(text, at)
        elif text[at : at + 2] in TWO:
            kind, end = "sign", at + 2
        elif text[at] in ONE:
            kind, end = "sign", at + 1
        else:
            raise FormulaError(f"unexpected {text[at]!r}", at)
        tokens.append(Token(kind, text[at:end], at))
        at = end
    tokens.append(Token("end", "", len(text)))
    return tokens
