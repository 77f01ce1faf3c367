"""What models cost and can do: one row for each, in ``registry.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import TaskError
from .base import Usage

CACHE_READ, CACHE_WRITE_5M, CACHE_WRITE_1H = 0.1, 1.25, 2.0  # in prices of uncached input
BATCH = 0.5  # of all prices, for message batches


class Row(BaseModel):
    """One model; prices in US dollars per million tokens, None where unknown.

    temperature : whether requests may name one; None: what most models of the protocol do (Claude no, others yes).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: float | None = Field(default=None, ge=0)
    output: float | None = Field(default=None, ge=0)
    context: int | None = Field(default=None, ge=1)
    max_output: int | None = Field(default=None, ge=1)
    temperature: bool | None = None


UNKNOWN = Row()
Rows = Mapping[str, Row]


def read_rows(path: str | Path | None = None) -> dict[str, Row]:
    """Rows by name of the model; those of a YAML file replace the shipped ones. TaskError for a malformed file."""
    rows = dict(_shipped())
    if path is not None:
        try:
            rows.update(_parse(Path(path).read_text(encoding="utf-8"), str(path)))
        except (OSError, UnicodeDecodeError) as error:
            raise TaskError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    return rows


def price(usage: Usage, model: str, rows: Rows | None = None) -> float | None:
    """US dollars; None for a model without a price.

    Examples
    --------
    >>> price(Usage(input=1_000_000, output=100_000), "claude-sonnet-5-5")
    3.0
    """
    row = (_shipped() if rows is None else rows).get(model, UNKNOWN)
    if row.input is None or row.output is None:
        return None
    written = CACHE_WRITE_5M * usage.cache_write_5m + CACHE_WRITE_1H * usage.cache_write_1h
    return (row.input * (usage.input + written + CACHE_READ * usage.cache_read) + row.output * usage.output) / 1e6


@cache
def _shipped() -> dict[str, Row]:
    return _parse(resources.files(__package__).joinpath("registry.yaml").read_text(encoding="utf-8"), "registry.yaml")


def _parse(text: str, name: str) -> dict[str, Row]:
    try:
        values: Any = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise TaskError(f"{name} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise TaskError(f"{name} has to hold rows by name of a model, not a {type(values).__name__}")
    rows = {}
    for model, row in values.items():
        try:
            rows[str(model)] = Row.model_validate(row)
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(map(str, (model, *problem["loc"])))
            raise TaskError(f"{name}: {place}: {problem['msg']}; fields are {', '.join(Row.model_fields)}") from None
    return rows
