"""Where a path leads, through links as the system follows them, and whether that is inside the workspace."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

Target = Callable[[list[str]], "str | None"]


def resolve(target: Target, shown_at: str, inner: str, follow: bool = True) -> list[str] | None:
    """Parts of the path below the workspace to which a relative path leads through all links; None if outside.

    An absolute link below ``shown_at`` leads inside, as it does for commands.

    Parameters
    ----------
    target : parts of a path without links above -> where a link leads; None for what is no link.
    follow : whether a link at the end counts.
    """
    done: list[str] = []
    ahead = inner.split("/")[::-1]
    links = 0
    while ahead:
        part = ahead.pop()
        if part in ("", "."):
            continue
        if part == "..":
            if not done:
                return None
            done.pop()
            continue
        to = target([*done, part]) if ahead or follow else None
        if to is None:
            done.append(part)
            continue
        links += 1
        rest: str | None = to
        if os.path.isabs(to):
            done, rest = [], below(shown_at, to)
        if rest is None or links > 40:
            return None
        ahead.extend(rest.split("/")[::-1])
    return done


def link_target(root: Path) -> Target:
    """For :func:`resolve`: links on disk."""

    def target(parts: list[str]) -> str | None:
        there = os.path.join(root, *parts)
        return os.readlink(there) if os.path.islink(there) else None  # nor is a name that no file can have

    return target


def below(top: str, path: str) -> str | None:
    """What follows ``top`` in an absolute path; None if something else precedes."""
    return path[len(top) :].lstrip("/") if f"{path}/".startswith(f"{top}/") else None
