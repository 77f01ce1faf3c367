"""Chat completions through the ``openai`` SDK: OpenAI's, and servers that speak the same (vLLM, Ollama, llama.cpp)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..errors import ModelError, TaskError
from .base import (
    Block,
    Capabilities,
    ChatModel,
    Message,
    ModelRequest,
    ModelResponse,
    StopReason,
    ToolCall,
    Usage,
    sendable,
)
from .registry import UNKNOWN, Row, price, read_rows

STOPS: dict[str, StopReason] = {
    "tool_calls": "tool_use", "stop": "end_turn", "length": "max_tokens", "content_filter": "refusal",
}  # fmt: skip
WRITTEN = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>|```(?:json)?\s*\n(\{.*?\})\s*```", re.DOTALL)


class OpenAIModel(ChatModel):
    """A model behind a chat completions endpoint.

    Parameters
    ----------
    model : as the server calls it.
    base_url, api_key : None for those of the environment; local servers take any key.
    max_retries : of the SDK.
    rows : prices and windows by model; a model without a row has no price.

    Raises
    ------
    TaskError
        The ``openai`` package is not installed, or there is no key.
    ModelError
        From :meth:`complete`, for what the server refuses.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        max_retries: int = 5,
        rows: Mapping[str, Row] | None = None,
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise TaskError("this model needs the openai package: pip install 'dars-agent[openai]'") from error
        self.name = model
        self.rows = read_rows() if rows is None else rows
        row = self.rows.get(model, UNKNOWN)
        self.context_window = row.context
        self.priced = row.input is not None and row.output is not None
        self.capabilities = Capabilities(row.temperature is not False, cache=False, tools=True, count_tokens=False)
        self._errors = openai
        if base_url is not None and api_key is None and not os.environ.get("OPENAI_API_KEY"):
            api_key = "none"  # the client insists on one; servers of one's own ask for none
        try:
            self.client = openai.OpenAI(base_url=base_url, api_key=api_key, max_retries=max_retries)
        except openai.OpenAIError as error:
            raise TaskError(f"{model}: {error}") from error
        # OpenAI's reasoning models refuse the old name, most other servers do not know the new one.
        self.limit = "max_completion_tokens" if self.client.base_url.host == "api.openai.com" else "max_tokens"

    def complete(self, request: ModelRequest) -> ModelResponse:
        """Answer one request."""
        body: dict[str, Any] = {"model": self.name, self.limit: request.max_tokens, "messages": to_chat(request)}
        if request.temperature is not None and self.capabilities.temperature:
            body["temperature"] = request.temperature
        if request.tools:
            body["tools"] = [_function(tool) for tool in sorted(request.tools, key=lambda tool: str(tool["name"]))]
            body["parallel_tool_calls"] = False
        if request.schema is not None:
            schema = {"name": "answer", "schema": request.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        try:
            answer = self.client.chat.completions.create(**body)
        except self._errors.APIStatusError as error:
            if error.status_code == 400 and _too_long(error):
                return ModelResponse([], None, "", "context", detail=error.message, model=self.name)
            hint = "; if it takes none, say so in --rows: temperature: false" if error.param == "temperature" else ""
            raise ModelError(f"{self.name}: {error.status_code}: {error.message}{hint}") from error
        except self._errors.OpenAIError as error:
            raise ModelError(f"{self.name}: {error} ({self.client.base_url})") from error
        return self._response(answer, request)

    def complete_many(
        self,
        requests: Sequence[ModelRequest],
        share_prefix: bool = True,
        more: Callable[[ModelResponse], bool] = lambda response: True,
    ) -> list[ModelResponse]:
        """Answer several; the first alone, since servers that cache prefixes do so by themselves."""
        alone = [self.complete(request) for request in requests[: 1 if share_prefix else 0]]
        if not all(map(more, alone)) or len(alone) == len(requests):
            return alone
        with ThreadPoolExecutor(len(requests)) as pool:
            others = list(pool.map(self.complete, requests[len(alone) :]))
        for response in others:
            more(response)
        return [*alone, *others]

    def _response(self, answer: Any, request: ModelRequest) -> ModelResponse:
        if not answer.choices:
            raise ModelError(f"{self.name}: the answer has no choices")
        choice = answer.choices[0]
        text = sendable(choice.message.content or "")
        names = {str(tool["name"]) for tool in request.tools}
        call = _called(choice.message.tool_calls) or written_call(text, names, f"call_{answer.id}")
        content: list[Block] = [{"type": "text", "text": text}] if text else []
        if call is not None:
            content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": call.input})
        stop = STOPS.get(choice.finish_reason, "error")
        if call is not None and stop == "end_turn":
            stop = "tool_use"
        elif call is None and choice.message.refusal:  # which ends with "stop"
            stop = "refusal"
        detail = (choice.message.refusal or "") if stop == "refusal" else ""
        usage = _usage(answer.usage)
        cost = price(usage, self.name, self.rows)
        return ModelResponse(content, call, text, stop, usage, cost, detail, answer.model)


def to_chat(request: ModelRequest) -> list[dict[str, Any]]:
    """Messages of the Messages API as chat messages; thinking is left out, results come before what follows them."""
    out: list[dict[str, Any]] = [{"role": "system", "content": request.system}] if request.system else []
    for message in request.messages:
        out += _assistant(message) if message["role"] == "assistant" else _user(message)
    return out


def _assistant(message: Message) -> Iterator[dict[str, Any]]:
    calls = [
        {"id": b["id"], "type": "function", "function": {"name": b["name"], "arguments": json.dumps(b["input"])}}
        for b in message["content"]
        if b["type"] == "tool_use"
    ]
    yield {
        "role": "assistant",
        "content": _text(message["content"]) or None,
        **({"tool_calls": calls} if calls else {}),
    }


def _user(message: Message) -> Iterator[dict[str, Any]]:
    for block in message["content"]:
        if block["type"] == "tool_result":
            result = block["content"]
            text = result if isinstance(result, str) else _text(result)
            yield {"role": "tool", "tool_call_id": block["tool_use_id"], "content": text}
    text = _text(message["content"])
    if text:
        yield {"role": "user", "content": text}


def _text(content: Sequence[Block]) -> str:
    return "\n\n".join(block["text"] for block in content if block["type"] == "text")


def _function(tool: Mapping[str, Any]) -> dict[str, Any]:
    # Not strict: the strict mode of this protocol has no optional arguments.
    function = {"name": tool["name"], "description": tool.get("description", ""), "parameters": tool["input_schema"]}
    return {"type": "function", "function": function}


def _called(calls: Sequence[Any] | None) -> ToolCall | None:
    """The first tool call; None if there is none or its arguments are no JSON object."""
    if not calls:
        return None
    try:
        args = sendable(json.loads(calls[0].function.arguments or "{}"))
    except ValueError:
        return None
    return ToolCall(calls[0].function.name, args, calls[0].id) if isinstance(args, dict) else None


def written_call(text: str, names: set[str], identity: str = "") -> ToolCall | None:
    """A tool call that a model wrote into its text: in <tool_call> tags, in a fenced block, or as the whole text.

    Its arguments may be called arguments, parameters or input. None unless the tool is one of ``names``.

    Examples
    --------
    >>> written_call('<tool_call>{"name": "bash", "arguments": {"command": "ls"}}</tool_call>', {"bash"}).input
    {'command': 'ls'}
    """
    found = [first or second for first, second in WRITTEN.findall(text)] or [text.strip()]
    for candidate in found:
        try:
            value = sendable(json.loads(candidate))
        except ValueError:
            continue
        if not isinstance(value, dict) or value.get("name") not in names:
            continue
        args: Any = next((value[key] for key in ("arguments", "parameters", "input") if key in value), {})
        if isinstance(args, dict):
            return ToolCall(value["name"], args, identity)
    return None


def _usage(counts: Any) -> Usage:
    if counts is None:
        return Usage()
    cached = getattr(counts.prompt_tokens_details, "cached_tokens", None) or 0
    thinking = getattr(counts.completion_tokens_details, "reasoning_tokens", None) or 0
    return Usage(counts.prompt_tokens - cached, cached, output=counts.completion_tokens, thinking=thinking)


def _too_long(error: Any) -> bool:
    """As OpenAI, vLLM and llama.cpp say it."""
    said = ("maximum context length", "exceeds the available context size")
    coded = error.code == "context_length_exceeded" or error.type == "exceed_context_size_error"
    return coded or any(words in error.message for words in said)
