"""Ranges: ">=1.2 <2", "^1.4", "~0.3.1", "1.x", "1.2 - 1.4", and several with "||" between."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .version import Version, parse_version

SIGN = re.compile(r"(<=|>=|<|>|=|\^|~)?\s*([^\s<>=^~]\S*)")


@dataclass(frozen=True)
class Bound:
    """One comparison."""

    sign: str
    version: Version

    def allows(self, version: Version) -> bool:
        """Whether a version is on the right side."""
        if self.sign == "<":
            return version < self.version
        if self.sign == "<=":
            return version <= self.version
        if self.sign == ">":
            return version > self.version
        if self.sign == ">=":
            return version >= self.version
        return version == self.version


@dataclass(frozen=True)
class Range:
    """Alternatives, each of bounds that all have to hold."""

    alternatives: tuple[tuple[Bound, ...], ...]

    def allows(self, version: Version) -> bool:
        """Whether a version is in the range; a pre-release has to be named."""
        for bounds in self.alternatives:
            if all(bound.allows(version) for bound in bounds) and (not version.pre or names_it(bounds, version)):
                return True
        return False


def names_it(bounds: tuple[Bound, ...], version: Version) -> bool:
    """Whether a bound is a pre-release of the same numbers."""
    return any(bound.version.pre and bound.version.numbers() == version.numbers() for bound in bounds)


def caret(version: Version) -> list[Bound]:
    """Up to the next version that may break: the first number that is not 0 stays."""
    if version.major > 0:
        end = version.bump("major")
    elif version.minor > 0:
        end = version.bump("minor")
    else:
        end = Version(0, 0, version.patch + 1)
    return [Bound(">=", version), Bound("<", end)]


def tilde(text: str) -> list[Bound]:
    """The last number that is written may grow, the patch at least."""
    version = parse_version(text)
    end = version.bump("major") if text.count(".") == 0 else version.bump("minor")
    return [Bound(">=", version), Bound("<", end)]


def wildcard(text: str) -> list[Bound]:
    """Bounds of "*", "1.x" or "1.2.*"."""
    numbers = [part for part in text.split(".") if part not in ("x", "*")]
    if not numbers:
        return []
    version = parse_version(".".join(numbers))
    return [Bound(">=", version), Bound("<", version.bump("major" if len(numbers) == 1 else "minor"))]


def parse_bounds(text: str) -> list[Bound]:
    """Bounds of one alternative."""
    low, dash, high = text.partition(" - ")
    if dash:
        return [Bound(">=", parse_version(low)), Bound("<=", parse_version(high))]
    bounds: list[Bound] = []
    for sign, version in SIGN.findall(text):
        if sign == "^":
            bounds += caret(parse_version(version))
        elif sign == "~":
            bounds += tilde(version)
        elif "x" in version.split(".") or "*" in version:
            bounds += wildcard(version)
        else:
            bounds.append(Bound(sign or "=", parse_version(version)))
    return bounds


def parse_range(text: str) -> Range:
    """The range of a text."""
    return Range(tuple(tuple(parse_bounds(part.strip())) for part in text.split("||")))
