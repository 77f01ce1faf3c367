"""Generated sequences as JSON lines: an object a line, with token ids and, where there is a tokenizer, the text."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import DataError


def write_text(path: str | Path, text: str) -> None:
    """Write under a temporary name and rename: a killed run leaves the old file or the new."""
    path = Path(path)
    if not path.parent.is_dir():
        raise DataError(f"cannot write {path}: the folder {path.parent} does not exist")
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_records(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines, all or nothing."""
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """Read JSON lines that each hold "tokens", a list of ids, or "text"."""
    found = []
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error.msg})") from None
        if not isinstance(record, dict) or not ({"tokens", "text"} & record.keys()):
            raise DataError(f'{path}, line {number}: needs an object with "tokens" or "text"')
        tokens = record.get("tokens")
        if tokens is not None and not (isinstance(tokens, list) and all(type(i) is int for i in tokens)):
            raise DataError(f'{path}, line {number}: "tokens" has to be a list of integers')
        if not isinstance(record.get("text", ""), str):
            raise DataError(f'{path}, line {number}: "text" has to be a string')
        if tokens is None and "text" not in record:
            raise DataError(f'{path}, line {number}: "tokens" is null, and there is no "text"')
        found.append(record)
    if not found:
        raise DataError(f"{path}: holds no sequences")
    return found


def read_text(path: str | Path) -> str:
    """The whole of a UTF-8 file."""
    return "".join(_lines(path))


def _lines(path: str | Path) -> Iterator[str]:
    try:
        with Path(path).open(encoding="utf-8") as file:
            yield from file
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text") from None


def difference(before: Sequence[int], after: Sequence[int], pieces: Mapping[int, str]) -> list[tuple[str, str, str]]:
    """Runs of tokens as ("same" | "changed", old text, new text)."""
    runs: list[tuple[str, str, str]] = []
    for a, b in zip(before, after, strict=True):
        kind, old, new = "same" if a == b else "changed", pieces[a], pieces[b]
        if runs and runs[-1][0] == kind:
            runs[-1] = (kind, runs[-1][1] + old, runs[-1][2] + new)
        else:
            runs.append((kind, old, new))
    return runs


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.6 system-ui, sans-serif; max-width: 48rem; margin: 2rem auto; padding: 0 1rem; }}
p {{ white-space: pre-wrap; overflow-wrap: anywhere; }}
del {{ color: #a33; background: #fbe9e7; text-decoration: line-through; }}
ins {{ color: #164; background: #e3f4e6; text-decoration: none; }}
small {{ color: #666; }}
@media (prefers-color-scheme: dark) {{ body {{ background: #161616; color: #ddd; }}
del {{ color: #f5a99b; background: #3d2320; }} ins {{ color: #a7e0b0; background: #1f3623; }} }}
</style>
<h1>{title}</h1>
{body}
</html>
"""


def difference_page(title: str, sequences: Sequence[tuple[str, list[tuple[str, str, str]]]]) -> str:
    """One self-contained HTML page: a heading and the marked text of every sequence."""
    parts = []
    for heading, runs in sequences:
        text = "".join(
            html.escape(old) if kind == "same" else f"<del>{html.escape(old)}</del><ins>{html.escape(new)}</ins>"
            for kind, old, new in runs
        )
        parts.append(f"<small>{html.escape(heading)}</small>\n<p>{text}</p>")
    return _PAGE.format(title=html.escape(title), body="\n".join(parts))
