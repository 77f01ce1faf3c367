"""A tool of the agent-computer interface: a name, a schema, the kind of its action, and what it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..env.base import Environment

State = dict[str, Any]  # what tools remember between actions; plain values, kept with every node


class Observation(NamedTuple):
    """What the model is shown after an action.

    failed : the tool refused, and the workspace is unchanged;  volatile : something that a snapshot does not hold was
    used (a server, a stateful cell).
    """

    text: str
    exit_code: int | None = None
    wall_s: float = 0.0
    failed: bool = False
    volatile: bool = False


Run = Callable[[Environment, Mapping[str, Any], State], Observation]


@dataclass(frozen=True)
class Tool:
    """One tool.

    Attributes
    ----------
    schema : JSON schema of the arguments.
    kind : of its actions, one of ``dars.policy.KINDS``.
    run : run(env, args, state) -> observation; it may change the workspace and ``state``.
    """

    name: str
    schema: dict[str, Any]
    kind: str
    run: Run
    description: str = ""
    code_arguments: tuple[str, ...] = field(default=())  # arguments that hold Python, for comparing actions

    def declaration(self) -> dict[str, Any]:
        """As the Messages API wants it."""
        return {"name": self.name, "description": self.description, "input_schema": self.schema, "strict": True}
