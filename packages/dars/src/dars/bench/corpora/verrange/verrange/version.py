"""Versions of three numbers, and their order."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import total_ordering

FORM = re.compile(r"v?(\d+)(?:\.(\d+))?(?:\.(\d+))?(?:-([0-9A-Za-z.-]+))?(?:\+([0-9A-Za-z.-]+))?")


@total_ordering
@dataclass(frozen=True, eq=False)
class Version:
    """A version; ``pre`` names a release before it, and ``build`` does not count."""

    major: int
    minor: int = 0
    patch: int = 0
    pre: str = ""
    build: str = ""

    def numbers(self) -> tuple[int, int, int]:
        """The three numbers."""
        return self.major, self.minor, self.patch

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Version) and compare(self, other) == 0

    def __lt__(self, other: Version) -> bool:
        return compare(self, other) < 0

    def __hash__(self) -> int:
        return hash((self.numbers(), self.pre))

    def __str__(self) -> str:
        text = ".".join(str(number) for number in self.numbers())
        return text + (f"-{self.pre}" if self.pre else "") + (f"+{self.build}" if self.build else "")

    def bump(self, part: str) -> Version:
        """The next version that differs in a part."""
        if part == "major":
            return Version(self.major + 1)
        if part == "minor":
            return Version(self.major, self.minor + 1)
        if self.pre:
            return Version(*self.numbers())
        return Version(self.major, self.minor, self.patch + 1)


def parse_version(text: str) -> Version:
    """The version of a text; numbers that are missing are 0."""
    found = FORM.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no version")
    major, minor, patch, pre, build = found.groups()
    return Version(int(major), int(minor or 0), int(patch or 0), pre or "", build or "")


def compare_parts(a: str, b: str) -> int:
    """Order of two parts of a pre-release: numbers before names."""
    if a.isdigit() and b.isdigit():
        return (int(a) > int(b)) - (int(a) < int(b))
    if a.isdigit() != b.isdigit():
        return -1 if a.isdigit() else 1
    return (a > b) - (a < b)


def compare(a: Version, b: Version) -> int:
    """-1, 0 or 1; a pre-release comes before its release."""
    if a.numbers() != b.numbers():
        return 1 if a.numbers() > b.numbers() else -1
    if not a.pre or not b.pre:
        return (not a.pre) - (not b.pre)
    left, right = a.pre.split("."), b.pre.split(".")
    for x, y in zip(left, right, strict=False):
        order = compare_parts(x, y)
        if order != 0:
            return order
    return (len(left) > len(right)) - (len(left) < len(right))
