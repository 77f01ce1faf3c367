"""Files as the harness writes and reads them: whole or not at all, and strict JSON with the place of each mistake."""

import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 32 * 2**20  # a results file holds figures, not data; what is bigger is a mistake


class BenchError(Exception):
    """Bad input, told in one line: what is wrong, where, and what would be right."""


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write under a temporary name in the same folder, then rename: a killed run leaves the old file or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write JSON for machines that a person can read too."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def parse_json(data: bytes) -> Any:
    """Parse strict JSON: UTF-8, no duplicate keys, no NaN or infinity, no text that cannot be written again.

    Raises:
        ValueError: with the JSON pointer of the first offence where there is one.
    """
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"{len(data)} bytes; want at most {MAX_JSON_BYTES}")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_object)
        offence = next(_unwritable(value, ""), None)
    except RecursionError:
        raise ValueError("nested too deep to read") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    if offence:
        raise ValueError(offence)
    return value


def pointer(parts: Iterable[object]) -> str:
    """The JSON pointer (RFC 6901) to a place in a document; the document itself is '/'."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts) or "/"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f'the key "{repeated}" occurs twice in one object')
    return result


def _unwritable(value: Any, where: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _unwritable(key, where)
            yield from _unwritable(item, where + pointer([key]))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unwritable(item, where + pointer([index]))
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{where or '/'}: {value} is not a JSON number; want a finite number, or null with a note"
    elif isinstance(value, int) and abs(value) > 2**1023:
        yield f"{where or '/'}: the number has {len(str(value))} digits; want one that a double can hold"
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            yield f"{where or '/'}: the text holds a lone surrogate; want valid Unicode"
