"""Putting a workspace into the state of a node, and executing actions in it."""

from __future__ import annotations

from collections.abc import Mapping

from ..aci.base import Observation, State, Tool
from ..env.base import Environment
from ..errors import EnvError
from ..models.base import ToolCall
from ..tree import Tree

Tools = Mapping[str, Tool]


def restore(tree: Tree, node_id: int, env: Environment, tools: Tools) -> State:
    """From the nearest snapshot above a node; actions below it run again. Returns what the tools remember there.

    Raises
    ------
    EnvError
        The workspace knows no state above the node, or cannot put it back.
    """
    path = tree.path(node_id)
    known = max((i for i, node in enumerate(path) if node.snapshot and env.knows(node.snapshot)), default=None)
    if known is None:
        raise EnvError(f"the workspace remembers no state on the path to node {node_id}")
    env.restore(path[known].snapshot)
    state: State = dict(path[known].state)
    for node in path[known + 1 :]:
        execute(tools, ToolCall(node.tool, node.args), env, state)
    return state


def execute(tools: Tools, call: ToolCall, env: Environment, state: State) -> Observation:
    """Do what a model asked for; a tool that is not there, or that fails, is an observation."""
    tool = tools.get(call.name)
    if tool is None:
        return Observation(f"There is no tool {call.name!r}; there are {', '.join(sorted(tools))}.", failed=True)
    try:
        return tool.run(env, call.input, state)
    except EnvError as error:
        return Observation(str(error), failed=True)
