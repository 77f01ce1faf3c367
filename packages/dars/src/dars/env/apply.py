"""Applying a unified diff to files in memory, exactly as ``git apply`` does where every hunk stands at its line."""

from __future__ import annotations

import re
from collections.abc import Mapping

from unidiff.constants import LINE_TYPE_ADDED, LINE_TYPE_NO_NEWLINE, LINE_TYPE_REMOVED
from unidiff.patch import Hunk, PatchedFile

from ..patches import NOWHERE, parse, plain_path


def applied(files: Mapping[str, bytes], patch: str) -> dict[str, bytes]:
    """The files after a patch; a new dict, the contents of untouched files shared.

    Modes are not known here, so that a change of mode alone changes nothing.

    Raises
    ------
    ValueError
        A file is missing, in the way, or not as the patch says; a change of a binary file.
    """
    sections = parse(patch)
    if patch.strip() and not sections:
        raise ValueError("it names no file")
    gone: set[str] = set()
    made: dict[str, bytes] = {}
    created: list[str] = []
    for file in sections:
        old, new = plain_path(file.source_file), plain_path(file.target_file)
        if file.is_binary_file:
            raise ValueError(f"{old}: binary files cannot be changed by a patch here")
        if old != NOWHERE and old not in files:
            raise ValueError(f"{old}: there is no such file")
        after = _changed(b"" if old == NOWHERE else files[old], file, old)
        if new == NOWHERE:
            if after:
                raise ValueError(f"{old}: it is to be deleted, but holds more than the patch says")
        elif new in made:
            raise ValueError(f"{new}: it is named twice")
        else:
            made[_inside(new)] = after
        if old != new and new != NOWHERE:
            created.append(new)
        if new == NOWHERE or (old not in (new, NOWHERE) and not _is_copy(file)):
            gone.add(old)
    for path in created:
        if path in files and path not in gone:
            raise ValueError(f"{path}: it is there already")
    return {**{path: data for path, data in files.items() if path not in gone}, **made}


def _changed(before: bytes, file: PatchedFile, path: str) -> bytes:
    lines = re.findall(r"[^\n]*\n|[^\n]+", before.decode("utf-8", "surrogateescape"))
    out: list[str] = []
    done = 0
    for hunk in file:
        old, new = _sides(hunk)
        at = hunk.source_start - 1 if hunk.source_length else hunk.source_start  # an empty side names the line before
        if at < done or lines[at : at + len(old)] != old:
            raise ValueError(f"{path}: lines from {at + 1} on are not as the patch says")
        # Without context after it, a change is one of the file's end; git takes it so too.
        if (not old or old[-1:] != new[-1:]) and at + len(old) != len(lines):
            raise ValueError(f"{path}: there is more after line {at + len(old)} than the patch says")
        out += [*lines[done:at], *new]
        done = at + len(old)
    return "".join(out + lines[done:]).encode("utf-8", "surrogateescape")


def _sides(hunk: Hunk) -> tuple[list[str], list[str]]:
    """Lines of a hunk before and after."""
    old: list[str] = []
    new: list[str] = []
    touched: tuple[list[str], ...] = ()
    for line in hunk:
        if line.line_type == LINE_TYPE_NO_NEWLINE:  # of the line before
            for side in touched:
                side[-1] = side[-1].removesuffix("\n")
            continue
        touched = (
            (old,)
            if line.line_type == LINE_TYPE_REMOVED
            else (new,)
            if line.line_type == LINE_TYPE_ADDED
            else (old, new)
        )
        for side in touched:
            side.append(line.value)
    return old, new


def _is_copy(file: PatchedFile) -> bool:
    return any(line.startswith("copy from ") for line in file.patch_info or ())


def _inside(path: str) -> str:
    if path.startswith("/") or ".." in path.split("/"):
        raise ValueError(f"{path}: it is not a path inside the workspace")
    return path
