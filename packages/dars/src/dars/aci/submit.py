"""The end of a path: submit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..env.base import Environment
from ..patches import changes
from .base import Observation, State
from .common import STRING, described, make_tool


def _submit(env: Environment, args: Mapping[str, Any], state: State) -> Observation:
    found = changes(env.diff())
    if not found:
        return Observation("Submitted. Nothing differs from the original files.")
    lines = [f"{change.path}: {change.status}, +{change.added} -{change.removed} lines" for change in found]
    return Observation("\n".join(["Submitted:", *lines]))


TOOL = make_tool(
    "submit", "submit", _submit, "End the work. The difference to the original files is the answer.", {},
    {"summary": described(STRING, "what was wrong and what was changed")},
)  # fmt: skip
