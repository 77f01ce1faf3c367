"""Instances of SWE-bench from a file or from the Hugging Face hub, and their division over a job array."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import TaskError
from ..task import Task

SUFFIXES = (".jsonl", ".json", ".parquet")
ALIASES = {
    "lite": "SWE-bench/SWE-bench_Lite", "verified": "SWE-bench/SWE-bench_Verified", "full": "SWE-bench/SWE-bench",
}  # fmt: skip
IDENTITY = re.compile(r"[\w.+-]*\w[\w.+-]*")  # it becomes the name of a folder

Row = dict[str, Any]


def read_instances(source: str | Path, split: str = "test") -> list[Row]:
    """Rows of a data set.

    Parameters
    ----------
    source : a ``.jsonl``, ``.json`` or ``.parquet`` file, or the name of a data set on the hub; "lite", "verified" and
        "full" are short for the official ones.
    split : of a data set on the hub; a file is one split.

    Raises
    ------
    TaskError
        No such file, no rows in it, a row without what a task needs, or two with the same instance_id.
    """
    path = Path(source)
    name = ALIASES.get(str(source).lower(), str(source))
    rows = _file(path) if path.suffix in SUFFIXES else _hub(name, split)
    if not rows:
        raise TaskError(f"{source} holds no instances")
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        identity = row.get("instance_id") if isinstance(row, dict) else None
        if not isinstance(identity, str) or not IDENTITY.fullmatch(identity):
            raise TaskError(f"{source}, row {number}: instance_id is missing or no name: {identity!r}")
        if identity in seen:
            raise TaskError(f"{source}, row {number}: {identity} was there before")
        seen.add(identity)
    for number, row in enumerate(rows, start=1):
        try:
            Task.from_swebench(row)
        except TaskError as error:
            raise TaskError(f"{source}, row {number}: {error}") from None
    return rows


def shard(rows: Sequence[Row], i: int, n: int) -> list[Row]:
    """Part ``i`` of ``n``, counted from 0: every n-th row, so that no part gets one repository alone.

    Raises
    ------
    TaskError
        i outside [0, n).

    Examples
    --------
    >>> [len(shard([{}] * 10, i, 4)) for i in range(4)]
    [3, 3, 2, 2]
    """
    if not 0 <= i < n:
        raise TaskError(f"there is no part {i}/{n}: parts of {n} are counted from 0 to {n - 1}")
    return list(rows[i::n])


def _file(path: Path) -> list[Row]:
    try:
        if path.suffix == ".parquet":
            return _parquet(path)
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise TaskError(f"cannot read {path}: {error.strerror or error}") from error
    if path.suffix == ".jsonl":
        return [_row(line, f"{path}, line {number}") for number, line in _lines(text)]
    value = _row(text, str(path))
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        raise TaskError(f"{path} has to hold a list of rows, not a {type(value).__name__}")
    return value


def _lines(text: str) -> Iterable[tuple[int, str]]:
    return ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())


def _row(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise TaskError(f"{place}: no JSON ({error})") from None


def _parquet(path: Path) -> list[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise TaskError(f"reading {path} needs pyarrow: pip install 'dars-agent[swebench]'") from None
    try:
        rows: list[Row] = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise TaskError(f"{path} is no parquet file: {error}") from None
    return rows


def _hub(name: str, split: str) -> list[Row]:
    try:
        import datasets
    except ImportError:
        raise TaskError(
            f"{name} is no {', '.join(SUFFIXES)} file; loading it from the hub needs datasets: "
            "pip install 'dars-agent[swebench]'"
        ) from None
    try:
        return [dict(row) for row in datasets.load_dataset(name, split=split)]
    except (OSError, ValueError) as error:  # not found, no such split, no network
        raise TaskError(f"cannot load the split {split} of {name}: {' '.join(str(error).split())[:300]}") from error
