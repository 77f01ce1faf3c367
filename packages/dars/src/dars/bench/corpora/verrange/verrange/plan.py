"""Choosing versions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .ranges import parse_range
from .version import Version, parse_version


def pick(versions: Iterable[str], wanted: Iterable[str], oldest: bool = False) -> str | None:
    """The newest version that all ranges allow; None if there is none."""
    ranges = [parse_range(text) for text in wanted]
    allowed = [v for v in map(parse_version, versions) if all(r.allows(v) for r in ranges)]
    if not allowed:
        return None
    return str(min(allowed) if oldest else max(allowed))


def conflicts(versions: Iterable[str], wanted: Mapping[str, str]) -> list[tuple[str, str]]:
    """Pairs of packages whose ranges no version satisfies together."""
    known = list(versions)
    names = sorted(wanted)
    found = []
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            if pick(known, [wanted[a], wanted[b]]) is None:
                found.append((a, b))
    return found


def step(old: Version, new: Version) -> str:
    """Which part differs first."""
    if old.major != new.major:
        return "major"
    if old.minor != new.minor:
        return "minor"
    return "patch" if old != new else "none"


def upgrade(current: str, versions: Iterable[str], most: str = "minor") -> str:
    """The newest version that is newer and differs by no larger a step; else the current one."""
    sizes = {"none": 0, "patch": 1, "minor": 2, "major": 3}
    here = parse_version(current)
    best = here
    for version in map(parse_version, versions):
        if version.pre or version <= best:
            continue
        if sizes[step(here, version)] <= sizes[most]:
            best = version
    return str(best)
