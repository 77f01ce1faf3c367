"""Source as windows of numbered lines show it: files with gaps, the functions in them, and the edits of a function."""

from __future__ import annotations

import ast
import builtins
import re
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from ..bench.mutations import mutations
from .repair_prior import log_odds

Lines = tuple[str | None, ...]  # None: not seen
DEFINITION = re.compile(r"([ \t]*)(?:async[ \t]+)?def[ \t]+(\w+)")
CLASS = re.compile(r"([ \t]*)class[ \t]+(\w+)")
HEADER = re.compile(r"^\[(.+), (\d+) lines\]$", re.MULTILINE)
ROW = re.compile(r"^(\d+):(.*)$", re.MULTILINE)
SHELTER = "class _:\n"  # makes an indented function parse; nothing in it can be mutated
ENDS = 20  # places at which a function may end, tried one after the other
UNSEEN = "\0"
OUTSIDE = frozenset(dir(builtins)) | sys.stdlib_module_names | {"self", "cls"}


class Window(NamedTuple):
    """What an observation shows of a file: lines from number ``first`` on, counted from 0, of ``total``."""

    path: str
    total: int
    first: int
    lines: tuple[str, ...]


class Change(NamedTuple):
    """Characters ``start`` to ``end`` of a text are replaced by ``text``, which is so much commoner (``odds``)."""

    start: int
    end: int
    text: str
    odds: float = 0.0


class Uses(NamedTuple):
    """Names that a function uses, and of those the bare ones that it calls and does not set itself."""

    all: frozenset[str]
    called: tuple[str, ...]


class Function(NamedTuple):
    """A function or method; ``first`` is the index of its line of definition.

    base, made : the source that its mutations are enumerated in, and the changes since, each in the text before it.
    """

    name: str
    first: int
    source: str
    base: str
    made: tuple[Change, ...] = ()

    @property
    def word(self) -> str:
        """The name without its class."""
        return self.name.rpartition(".")[2]

    @property
    def uses(self) -> Uses:
        """What it uses, as it was when it was read."""
        return uses(self.base) or Uses(frozenset(), ())


@lru_cache(maxsize=4096)
def window(observation: str) -> Window | None:
    """The window in an observation; None where it shows none."""
    head = HEADER.search(observation)
    if head is None:
        return None
    rows = ROW.findall(observation, head.end())
    first = int(rows[0][0]) - 1 if rows else 0
    lines = [text for i, (number, text) in enumerate(rows) if int(number) == first + i + 1]
    return Window(head[1], int(head[2]), first, tuple(lines))


class File:
    """What is known of a file; never changed.

    Attributes
    ----------
    lines : of the file.
    functions : whole ones, outermost functions and methods of classes.
    cut : index of the first unseen line -> names of functions that go on there.
    classes : name -> index of its line.
    """

    def __init__(self, lines: Lines, found: tuple[Function, ...] | None = None) -> None:
        self.lines = lines
        self.functions, self.cut, self.classes = _scan(lines) if found is None else (found, {}, _classes(lines))

    def seen(self, shown: Window) -> File:
        """With the lines of a window; a file of another length was changed by other hands, and is begun anew."""
        at, end = shown.first, shown.first + len(shown.lines)
        if shown.total != len(self.lines):
            return _shown(shown)
        if self.lines[at:end] == shown.lines:
            return self
        return File((*self.lines[:at], *shown.lines, *self.lines[end:]))

    def place(self, old: str) -> int | None:
        """Offset of a text in :meth:`text`."""
        at = self.text().find(old)
        return None if at < 0 else at

    def text(self) -> str:
        """All lines, those not seen as one character that no text has."""
        return "\n".join([UNSEEN if line is None else line for line in self.lines])

    def edited(self, old: str, new: str) -> File:
        """After an edit; without knowledge of its place, nothing is known any more."""
        at = self.place(old)
        if at is None:
            return File((None,))
        text = self.text()
        after = text[:at] + new + text[at + len(old) :]
        lines = tuple(None if line == UNSEEN else line for line in after.split("\n"))
        return File(lines, None if self.cut else _moved(self.functions, text, _difference(text, after)))

    def function_at(self, line: int) -> Function | None:
        """The function that a line, counted from 0, belongs to."""
        for function in self.functions:
            if function.first <= line <= function.first + function.source.count("\n"):
                return function
        return None


def _shown(shown: Window) -> File:
    after = shown.total - shown.first - len(shown.lines)
    return File((*(None,) * shown.first, *shown.lines, *(None,) * max(0, after)))


def file_of(shown: Window) -> File:
    """A file of which one window is known."""
    return _shown(shown)


def _scan(lines: Lines) -> tuple[tuple[Function, ...], dict[int, tuple[str, ...]], dict[str, int]]:
    found: list[Function] = []
    cut: dict[int, tuple[str, ...]] = {}
    around: list[tuple[int, str]] = []  # classes, by indentation
    i = 0
    while i < len(lines):
        line = lines[i] or ""
        head = CLASS.match(line) or DEFINITION.match(line)
        if head is None:
            i += 1
            continue
        indent = len(head[1])
        around = [entry for entry in around if entry[0] < indent]
        name = ".".join([*(entry[1] for entry in around), head[2]])
        if line.lstrip().startswith("class"):
            around.append((indent, head[2]))
            i += 1
            continue
        end, whole = _end(lines, i, indent)
        if whole:
            found.append(Function(name, i, source := "\n".join(map(str, lines[i:end])), source))
        elif end < len(lines) and lines[end] is None:
            cut[end] = (*cut.get(end, ()), head[2])
        i = end if whole else i + 1
    return tuple(found), cut, _classes(lines)


def _classes(lines: Lines) -> dict[str, int]:
    heads = ((CLASS.match(line), i) for i, line in enumerate(lines) if line)
    return {head[2]: i for head, i in heads if head}


def _end(lines: Lines, start: int, indent: int) -> tuple[int, bool]:
    """Where the function that begins at a line ends, and whether all of it is known.

    The first line that is indented no deeper may belong to a signature or a text of several lines, so what comes before
    it has to parse.
    """
    tried = 0
    for j in range(start + 1, len(lines) + 1):
        line = lines[j] if j < len(lines) else ""
        if line is None:
            return j, False
        bare = line.lstrip()
        if j < len(lines) and (not bare or bare[0] == "#" or len(line) - len(bare) > indent):
            continue
        last = j
        while not (lines[last - 1] or "").strip():
            last -= 1
        if uses("\n".join(map(str, lines[start:last]))) is not None:
            return last, True
        tried += 1
        if tried == ENDS:
            break
    return start + 1, False


@lru_cache(maxsize=4096)
def uses(source: str) -> Uses | None:
    """What a function uses; None where the text is no function."""
    try:
        tree = ast.parse(_shelter(source) + source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    names: set[str] = set()
    own: set[str] = set()
    called: dict[str, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (names if isinstance(node.ctx, ast.Load) else own).add(node.id)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.arg):
            own.add(node.arg)
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                called[node.func.id] = None
            elif isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
                base = node.func.value.id
                if base not in OUTSIDE:
                    called[f"{base}.{node.func.attr}"] = None
    bare = [name for name in called if name.partition(".")[0] not in own | OUTSIDE]
    return Uses(frozenset(names), tuple(name.rpartition(".")[2] for name in bare))


@lru_cache(maxsize=8192)
def changes(function: Function) -> tuple[Change, ...]:
    """Mutations of a function, those that touch what was changed since its base left out.

    A mutation of another place is the same text at another offset, so that what was edited is not parsed again.
    """
    found = _enumerated(function.base)
    for start, end, text, _ in function.made:
        shift = len(text) - (end - start)
        found = tuple(
            change if change.end < start else change._replace(start=change.start + shift, end=change.end + shift)
            for change in found
            if change.end < start or change.start > end
        )
    return found


@lru_cache(maxsize=4096)
def _enumerated(source: str) -> tuple[Change, ...]:
    shelter = len(_shelter(source))
    found = mutations(_shelter(source) + source)
    places: dict[tuple[int, int, str], float] = {}
    for made in found:
        start, end = made.start - shelter, made.end - shelter
        if start >= 0:
            places.setdefault(
                (start, end, made.replacement), log_odds(made.operator, source[start:end], made.replacement)
            )
    return tuple(Change(*place, odds) for place, odds in places.items())


def _shelter(source: str) -> str:
    return SHELTER if source[:1] in (" ", "\t") else ""


def _difference(old: str, new: str) -> Change:
    """The least change from one text to another."""
    most = min(len(old), len(new))
    start = next((i for i in range(most) if old[i] != new[i]), most)
    same = next((i for i in range(most - start) if old[-1 - i] != new[-1 - i]), most - start)
    return Change(start, len(old) - same, new[start : len(new) - same])


def _moved(functions: Sequence[Function], text: str, change: Change) -> tuple[Function, ...] | None:
    """Functions after a change of the text; None where it is not inside of one."""
    starts = [0]
    for line in text.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    out: list[Function] = []
    inside = False
    for function in functions:
        begin = starts[function.first]
        end = begin + len(function.source)
        if end <= change.start:
            out.append(function)
        elif begin >= change.end:
            more = change.text.count("\n") - text.count("\n", change.start, change.end)
            out.append(function._replace(first=function.first + more))
        elif begin <= change.start and change.end <= end:
            made = Change(change.start - begin, change.end - begin, change.text)
            source = function.source[: made.start] + made.text + function.source[made.end :]
            out.append(function._replace(source=source, made=(*function.made, made)))
            inside = True
        else:
            return None
    return tuple(out) if inside else None


# --- edits ------------------------------------------------------------------------------------------------------------


class Replacement(NamedTuple):
    """Whole lines, and those that take their place."""

    old: tuple[str, ...]
    new: tuple[str, ...]

    @property
    def inverse(self) -> Replacement:
        """The way back."""
        return Replacement(self.new, self.old)


def replacement(old: Sequence[str], new: Sequence[str]) -> Replacement:
    """The lines that differ, without those around them."""
    head = _head(old, new)
    rest = min(len(old), len(new)) - head
    tail = next((i for i in range(rest) if old[-1 - i] != new[-1 - i]), rest)
    return Replacement(tuple(old[head : len(old) - tail]), tuple(new[head : len(new) - tail]))


def _head(old: Sequence[str], new: Sequence[str]) -> int:
    return next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))


@lru_cache(maxsize=65536)
def changed_lines(source: str, change: Change) -> tuple[int, Replacement]:
    """The first line of a function, counted from 0, that a change of it touches, and the lines that it replaces."""
    first = source.count("\n", 0, change.start)
    begin = source.rfind("\n", 0, change.start) + 1
    end = source.find("\n", change.end)
    end = len(source) if end < 0 else end
    new = source[begin : change.start] + change.text + source[change.end : end]
    before = source[begin:end].split("\n")
    made = replacement(before, new.split("\n"))
    return first + _head(before, new.split("\n")), made


def unique_context(file: File, first: int, made: Replacement) -> tuple[str, str]:
    """Old and new text of an edit: with as many lines around as make the old one occur once in what is known."""
    text, count = file.text(), len(file.lines)
    begin, end = first, first + len(made.old)
    while True:
        above, below = file.lines[begin:first], file.lines[first + len(made.old) : end]
        old = "\n".join(map(str, (*above, *made.old, *below)))
        if text.find(old, text.find(old) + 1) < 0:
            return old, "\n".join(map(str, (*above, *made.new, *below)))
        if begin > 0 and file.lines[begin - 1] is not None and (first - begin <= end - first - len(made.old)):
            begin -= 1
        elif end < count and file.lines[end] is not None:
            end += 1
        elif begin > 0 and file.lines[begin - 1] is not None:
            begin -= 1
        else:
            return old, "\n".join(map(str, (*above, *made.new, *below)))
