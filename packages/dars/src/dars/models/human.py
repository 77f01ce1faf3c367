"""A person at the terminal in the place of a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ..errors import ModelError
from .base import Capabilities, ChatModel, ModelRequest, ModelResponse, ToolCall, answered


class HumanModel(ChatModel):
    """Shows the last turn and asks for an action, ``TOOL {"argument": ...}``; anything else is an answer in words.

    Parameters
    ----------
    ask : prompt -> line, as ``input``.
    show : takes what is to be read, as ``print``.

    Examples
    --------
    >>> model = HumanModel(ask=lambda prompt: 'bash {"command": "ls"}', show=lambda text: None)
    >>> model.complete(ModelRequest("act", (), tools=[{"name": "bash"}])).call.input
    {'command': 'ls'}
    """

    name = "human"
    capabilities = Capabilities(temperature=True)  # needs no instruction to vary

    def __init__(self, ask: Callable[[str], str] = input, show: Callable[[str], None] = print) -> None:
        self.ask = ask
        self.show = show

    def complete(self, request: ModelRequest) -> ModelResponse:
        """The person's answer; asked again until arguments are JSON. ModelError at the end of the input."""
        names = [str(tool["name"]) for tool in request.tools]
        content = request.messages[-1]["content"] if request.messages else ""
        for block in [{"text": content}] if isinstance(content, str) else content:
            self.show(str(block.get("text") or block.get("content") or ""))
        if names:
            self.show(f"tools: {', '.join(names)}")
        while True:
            try:
                line = self.ask(f"{request.role}> ").strip()
            except EOFError as error:
                raise ModelError("the input ended before there was an answer") from error
            name, rest = [*line.split(maxsplit=1), "", ""][:2]
            if name not in names:
                return answered(line, request, self.name)
            try:
                args: Any = json.loads(rest or "{}")
            except ValueError as error:
                self.show(f"the arguments of {name} are no JSON: {error}")
                continue
            if isinstance(args, dict):
                return answered(ToolCall(name, args), request, self.name)
            self.show(f'the arguments of {name} have to be an object, {{"name": value}}')
