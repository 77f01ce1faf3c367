"""Patches: what of a diff belongs to the answer, and which answers are the same.

An agent leaves things behind: scripts that show the failure, logs, tests of its own. A candidate keeps the changes of
files that were there, and of new files only those that a kept change refers to.
"""

from __future__ import annotations

import io
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from unidiff.errors import UnidiffParseError
from unidiff.patch import PatchedFile, PatchSet

NOWHERE = "/dev/null"
TEST_FOLDERS = frozenset({"test", "tests"})
TEST_FILE = re.compile(r"test_.*\.py|.*_test\.py|conftest\.py")

FROM = re.compile(r"^[ \t]*from[ \t]+(\.*[\w.]*)[ \t]+import[ \t]+(\([^)]*\)|[^\n#;]*)", re.MULTILINE)
IMPORT = re.compile(r"^[ \t]*import[ \t]+([\w., \t]+)", re.MULTILINE)
QUOTED = re.compile(r"""["']([A-Za-z_]\w*(?:\.\w+)+)(?::\w+)?["']""")  # "package.module", "package.module:function"
# Imports name these by their stem.
WITHOUT_SUFFIX = frozenset({".js", ".jsx", ".mjs", ".cjs", ".ts", ".tsx", ".vue", ".rb", ".scss"})
ESCAPES = {"n": 10, "t": 9, "r": 13, "a": 7, "b": 8, "f": 12, "v": 11, '"': 34, "\\": 92}


class CleanResult(NamedTuple):
    """What is left of a patch, and (path, reason) of every file that is not."""

    patch: str
    dropped: list[tuple[str, str]]


class Change(NamedTuple):
    """One file of a patch.

    Attributes
    ----------
    path, old_path : after and before; equal unless it was renamed.
    status : "added", "deleted", "renamed", "binary" or "changed".
    section : its part of the patch, verbatim.
    text : context and added lines, that is, what is known of the file afterwards.
    """

    path: str
    old_path: str
    status: str
    added: int
    removed: int
    section: str
    text: str


class Distinct(NamedTuple):
    """One of several equal patches: its place in the list, and how many there are."""

    place: int
    multiplicity: int


def is_test(path: str) -> bool:
    """Whether a path is that of a test: by a whole folder or file name, never by a part of one.

    Examples
    --------
    >>> is_test("pkg/tests/data.json"), is_test("pkg/test_a.py"), is_test("contest.py")
    (True, True, False)
    """
    *folders, name = path.split("/")
    return bool(TEST_FOLDERS.intersection(folders) or TEST_FILE.fullmatch(name))


def parse(patch: str) -> PatchSet:
    """A patch as unidiff reads it; ValueError if it is no unified diff."""
    try:
        return PatchSet(io.StringIO(patch))
    except UnidiffParseError as error:
        raise ValueError(f"this is no unified diff: {' '.join(str(error).split())}") from None


def changes(patch: str) -> list[Change]:
    """Files of a patch, in order.

    Raises
    ------
    ValueError
        It is no unified diff.
    """
    files = parse(patch)
    lines = list(io.StringIO(patch))
    starts = [_start(file, lines) for file in files]
    ends = [*starts, len(lines)][1:]
    return [_change(file, "".join(lines[start:end])) for file, start, end in zip(files, starts, ends, strict=True)]


def clean_patch(patch: str, base_files: Iterable[str], created: Iterable[str] = ()) -> CleanResult:
    """The part of a patch that is an answer; cleaning it again changes nothing.

    Parameters
    ----------
    base_files : paths that were there before.
    created : paths that count as new although they are among them.

    Raises
    ------
    ValueError
        The patch is no unified diff.

    Examples
    --------
    >>> clean_patch("diff --git a/log b/log\\nnew file mode 100644\\n", base_files=["a.py"])
    CleanResult(patch='', dropped=[('log', 'new, and no kept change refers to it')])
    """
    base = set(base_files) - set(created)
    found = changes(patch)
    dropped: dict[int, str] = {}
    waiting = []
    for i, change in enumerate(found):
        if is_test(change.path):
            dropped[i] = "a test"
        elif change.status == "binary" and "\nGIT binary patch\n" not in change.section:
            dropped[i] = "binary, and the patch does not hold its content"
        elif change.old_path not in base:
            waiting.append(i)
    kept = [i for i in range(len(found)) if i not in dropped and i not in waiting]
    folders = {posixpath.dirname(path) for path in base if not is_test(path)}
    packages = {posixpath.dirname(path) for path in base if posixpath.basename(path) == "__init__.py"}
    packages |= {posixpath.dirname(found[i].path) for i in waiting if found[i].path.endswith("/__init__.py")}
    asking = list(kept)
    gone = {_content(found[i]) for i in kept if found[i].status == "deleted"}
    moved = [i for i in waiting if _content(found[i]) in gone and found[i].added]  # else its old place alone is emptied
    waiting = [i for i in waiting if i not in moved]
    kept += moved
    asking += moved
    while asking:  # what a kept file refers to is kept, and may refer to others
        texts = [found[i] for i in asking]
        asking = [
            i for i in waiting if _in_source(found[i].path, folders, packages) and _wanted(found[i], texts, packages)
        ]
        waiting = [i for i in waiting if i not in asking]
        kept += asking
    for i in waiting:
        dropped[i] = "new, and no kept change refers to it"
    return CleanResult(
        "".join(found[i].section for i in sorted(kept)), [(found[i].path, dropped[i]) for i in sorted(dropped)]
    )


def normalised(patch: str) -> str:
    """The same for patches that do the same: without index lines, line numbers of hunks and the order of files."""
    sections = []
    for change in changes(patch):
        lines = [line for line in change.section.split("\n") if not line.startswith(("index ", "similarity index "))]
        sections.append("\n".join("@@" if line.startswith("@@ ") else line for line in lines))
    return "".join(sorted(sections))


def deduplicate(patches: Sequence[tuple[str, int]]) -> list[Distinct]:
    """Of equal patches the one with the shortest trajectory, the first among equals; in the order of the list.

    Parameters
    ----------
    patches : (patch, number of actions that led to it).
    """
    classes: dict[str, list[int]] = {}
    for i, (patch, _) in enumerate(patches):
        classes.setdefault(normalised(patch), []).append(i)
    best = [Distinct(min(same, key=lambda i: (patches[i][1], i)), len(same)) for same in classes.values()]
    return sorted(best)


# --- sections ---------------------------------------------------------------------------------------------------------


def _start(file: PatchedFile, lines: Sequence[str]) -> int:
    start = (file.diff_line_no or 1) - 1
    return start - 1 if lines[start].startswith("+++ ") else start  # a file without a "diff --git" line


def _change(file: PatchedFile, section: str) -> Change:
    old, new = plain_path(file.source_file), plain_path(file.target_file)
    if file.is_binary_file:
        status = "binary"
    elif old == NOWHERE or new == NOWHERE:
        status = "added" if old == NOWHERE else "deleted"
    else:
        status = "changed" if old == new else "renamed"
    text = "".join(line.value for hunk in file for line in hunk.target_lines())
    path = old if new == NOWHERE else new
    return Change(path, path if old == NOWHERE else old, status, file.added, file.removed, section, text)


def plain_path(name: str) -> str:
    """A path without its prefix, and without the quotes that git puts around unusual ones."""
    if name.startswith('"') and name.endswith('"'):
        name = _unquoted(name[1:-1])
    return name if name == NOWHERE else re.sub(r"^[ab]/", "", name)


def quoted_path(name: str) -> str:
    """A path as git writes it into a diff: unusual ones in quotes, bytes that are not printable ASCII escaped.

    Examples
    --------
    >>> print(quoted_path("a/plain name"), quoted_path("a/tab\\t"), quoted_path("a/é"))
    a/plain name "a/tab\\t" "a/\\303\\251"
    """
    letters = {byte: f"\\{letter}" for letter, byte in ESCAPES.items()}
    data = name.encode("utf-8", "surrogateescape")
    text = "".join(letters.get(byte, chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}") for byte in data)
    return name if text == name else f'"{text}"'


def _unquoted(text: str) -> str:
    out = bytearray()
    for match in re.finditer(r"\\([0-7]{3})|\\(.)|([^\\]+)", text):
        octal, letter, plain = match.groups()
        if octal or letter:
            out.append(int(octal, 8) & 255 if octal else ESCAPES.get(letter, ord(letter) & 255))
        else:
            out += plain.encode("utf-8", "surrogateescape")
    return out.decode("utf-8", "surrogateescape")


# --- references -------------------------------------------------------------------------------------------------------


def _content(change: Change) -> tuple[str, ...]:
    """Lines of a file that was added or deleted, without their sign."""
    return tuple(line[1:] for line in change.section.partition("\n@@ ")[2].split("\n")[1:])


def _in_source(path: str, folders: set[str], packages: set[str]) -> bool:
    """Whether a new file lies where source files lie: in a folder that holds some, or below a package."""
    folder = posixpath.dirname(path)
    if folder in folders or folder in packages:
        return True
    return any(above in folders or above in packages for above in _ancestors(folder))


def _ancestors(folder: str) -> Iterator[str]:
    """Folders above, the root left out: everything lies below it."""
    while folder := posixpath.dirname(folder):
        yield folder


def _wanted(new: Change, kept: Sequence[Change], packages: set[str]) -> bool:
    """Whether one of the kept files refers to a new one."""
    if not new.path.endswith(".py"):
        stem, suffix = posixpath.splitext(posixpath.basename(new.path))
        said = rf"(?<![\w.-]){re.escape(stem + suffix)}(?![\w-])"
        if suffix in WITHOUT_SUFFIX:
            said += rf"""|["'][^"'\n]*\b{re.escape(stem)}["']"""
        return any(re.search(said, other.text) for other in kept)
    parts = new.path.removesuffix(".py").split("/")
    if parts[-1] == "__init__":
        parts.pop()
        if any(posixpath.dirname(other.path) == "/".join(parts) and other.status == "added" for other in kept):
            return True
    names = {"/" + "/".join(parts)}  # as relative imports are resolved
    for i in range(len(parts)):
        if i == 0 or "/".join(parts[:i]) not in packages:  # modules are named from the first folder that is no package
            names.add(".".join(parts[i:]))
    return any(names & set(_imports(other)) for other in kept)


def _imports(change: Change) -> Iterator[str]:
    """Dotted names that a file imports or quotes, each with its parents; relative ones as "/path/of/module"."""
    for quoted in QUOTED.findall(change.text):
        yield from _parents(quoted, ".")
    if not change.path.endswith(".py"):
        return
    for names in IMPORT.findall(change.text):
        for name in names.split(","):
            yield from _parents(name.split()[0] if name.split() else "", ".")
    for module, names in FROM.findall(change.text):
        wanted = [part.split()[0] for part in re.sub(r"[()\\]|#[^\n]*", " ", names).split(",") if part.split()]
        dots = len(module) - len(module.lstrip("."))
        if not dots:
            for name in (module, *(f"{module}.{name}" for name in wanted)):
                yield from _parents(name, ".")
            continue
        folder = posixpath.dirname(change.path).split("/")
        base = folder[: max(0, len(folder) - dots + 1)]
        place = "/".join(["", *base, *(part for part in module.lstrip(".").split(".") if part)])
        for path in (place, *(f"{place}/{name}" for name in wanted)):
            yield from _parents(path, "/")


def _parents(name: str, separator: str) -> Iterator[str]:
    parts = name.split(separator)
    for i in range(1, len(parts) + 1):
        yield separator.join(parts[:i])
