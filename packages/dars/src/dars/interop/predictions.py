"""SWE-bench predictions: one JSON object a line with exactly the three fields that the official harness reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import TaskError
from ..storage import write_atomic

FIELDS = ("instance_id", "model_name_or_path", "model_patch")


def prediction_line(row: Mapping[str, Any]) -> str:
    """One line without its newline; other fields are left out, no patch is "".

    Raises
    ------
    TaskError
        A field is missing or no text.
    """
    values = {name: row.get(name) for name in FIELDS}
    values["model_patch"] = "" if "model_patch" in row and row["model_patch"] is None else values["model_patch"]
    for name, value in values.items():
        if not isinstance(value, str) or (not value and name != "model_patch"):
            raise TaskError(f"a prediction of {row.get('instance_id')}: {name} is missing or no text")
    return json.dumps(values)


def write_predictions(rows: Iterable[Mapping[str, Any]], path: str | Path) -> None:
    """Write ``predictions.jsonl``.

    Raises
    ------
    TaskError
        A field is missing, or an instance comes twice.
    """
    seen: set[str] = set()
    lines = []
    for row in rows:
        lines.append(prediction_line(row) + "\n")
        if row["instance_id"] in seen:
            raise TaskError(f"there are two predictions of {row['instance_id']}; the harness would take the last")
        seen.add(row["instance_id"])
    write_atomic(Path(path), "".join(lines))


def read_predictions(path: str | Path) -> list[dict[str, str]]:
    """Predictions of a ``.jsonl`` file, or of a ``.json`` file with a list or an object of them by instance.

    Raises
    ------
    TaskError
        The file cannot be read, or a prediction is malformed; its place is named.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        if Path(path).suffix == ".json":
            value = json.loads(text)
            rows = list(value.values()) if isinstance(value, dict) else value
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except OSError as error:
        raise TaskError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise TaskError(f"{path} holds no predictions: {error}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise TaskError(f"{path} holds no predictions: every one has to be an object")
    try:
        return [json.loads(prediction_line(row)) for row in rows]
    except TaskError as error:
        raise TaskError(f"{path}: {error}") from None
