"""JSON files of others: read whole, or a TreeFormatError with the file and the reason."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import TreeFormatError

Source = str | Path | Mapping[str, Any]


def content(source: Source) -> tuple[str, Mapping[str, Any]]:
    """(what to call it in messages, the object) of a file, or of an object that was read already."""
    if isinstance(source, Mapping):
        return "the object", source
    try:
        value = json.loads(Path(source).read_text(encoding="utf-8"))
    except OSError as error:
        raise TreeFormatError(f"cannot read {source}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise TreeFormatError(f"{source} is no JSON file: {error}") from None
    if not isinstance(value, dict):
        raise TreeFormatError(f"{source} holds a {type(value).__name__} where an object was expected")
    return str(source), value


@contextmanager
def expecting(name: str) -> Iterator[None]:
    """Values of an unexpected type in the file become a TreeFormatError that names it."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TreeFormatError(f"{name} is damaged: {type(error).__name__}: {error}") from error


def text_of(value: Any) -> str:
    """A message's content: a text, or the texts of its blocks."""
    if isinstance(value, list):
        return "\n".join(str(block.get("text", "")) for block in value if isinstance(block, Mapping))
    return "" if value is None else str(value)


def between(text: str, tag: str) -> str:
    """What stands in <tag>...</tag>, else the whole text."""
    _, opened, rest = text.partition(f"<{tag}>")
    inside, closed, _ = rest.partition(f"</{tag}>")
    return inside.strip() if opened and closed else text.strip()
