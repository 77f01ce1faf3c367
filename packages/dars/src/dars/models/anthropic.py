"""Claude through the ``anthropic`` SDK, with requests laid out for its prefix cache.

Along a path every request is a prefix of the next. At most four breakpoints: tools and system, the issue, the deepest
branch point, the end of what will be read again. The SDK alone retries.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anthropic

from ..errors import ModelError
from ..storage import write_atomic
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
from .registry import BATCH, UNKNOWN, Row, price, read_rows

OLD_VERSION = {"anthropic-version": "2023-06-01"}  # the API version in which sampling keys are accepted
MAX_WAIT_S, FULL_OUTPUT_S, FULL_OUTPUT = 600, 3600, 128_000  # the SDK's guard on answers that are not streamed
CHARS_PER_TOKEN = 3  # low, so that the estimate of a request is high
COUNT_ABOVE = 0.8  # of the window
TOO_LONG = "prompt is too long"
NO_CREDENTIALS = "no credentials: set ANTHROPIC_API_KEY, or pass api_key"
SHORT_LIFETIME_S = 300.0
UNMARKED = ("thinking", "redacted_thinking")  # blocks that cannot end a cached prefix
STOPS: dict[str, StopReason] = {
    "tool_use": "tool_use", "end_turn": "end_turn", "stop_sequence": "end_turn", "pause_turn": "end_turn",
    "max_tokens": "max_tokens", "refusal": "refusal", "model_context_window_exceeded": "context",
}  # fmt: skip


@dataclass(frozen=True)
class CachePolicy:
    """Whether a branch point is worth a cache entry of an hour.

    Attributes
    ----------
    return_s : seconds after which the search is expected to come back to a branch point.
    """

    return_s: float = 600.0

    def an_hour(self, new: int, prefix: int) -> bool:
        """True iff five minutes are too short and writing the ``new`` tokens for an hour costs less than the prefix.

        The longer lifetime costs 2 - 1.25 input prices for each new token, writing the prefix again 1.25 - 0.1.
        """
        return self.return_s > SHORT_LIFETIME_S and 0.75 * new < 1.15 * prefix


class AnthropicModel(ChatModel):
    """A Claude model.

    Parameters
    ----------
    model : name of the model.
    api_key, base_url : None for those of the environment, as the SDK finds them.
    max_retries : of the SDK, for 408, 409, 429 and 5xx.
    thinking : setting of the Messages API, the same in all requests.
    rows : prices and abilities by model; None for the shipped ones.
    cache_policy : decides the lifetime of branch points.

    Raises
    ------
    ModelError
        From :meth:`complete`, for what the API refuses for good or still refuses after the retries.
    """

    def __init__(
        self,
        model: str = "claude-sonnet-5-5",
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        max_retries: int = 5,
        thinking: dict[str, Any] | None = None,
        rows: Mapping[str, Row] | None = None,
        cache_policy: CachePolicy | None = None,
    ) -> None:
        self.name = model
        self.rows = read_rows() if rows is None else rows
        self.row = self.rows.get(model, UNKNOWN)
        self.context_window = self.row.context
        self.priced = self.row.input is not None and self.row.output is not None
        warm = bool(self.row.temperature) and thinking is None  # with thinking it has to be 1
        self.capabilities = Capabilities(warm, cache=True, tools=True, count_tokens=True)
        self.thinking = thinking
        self.cache_policy = cache_policy or CachePolicy()
        self.client = anthropic.Anthropic(
            api_key=api_key,
            base_url=base_url,
            max_retries=max_retries,
            default_headers=OLD_VERSION if self.row.temperature else None,
        )
        self._last: dict[tuple[int, ...], str] = {}  # path -> id of the action's message, for cache diagnostics

    def check(self) -> None:
        """ModelError where there are no credentials."""
        given = {name.lower() for name, value in self.client.default_headers.items() if isinstance(value, str)}
        if self.client.credentials is None and not given & {"authorization", "x-api-key"}:
            raise ModelError(f"{self.name}: {NO_CREDENTIALS}")

    def complete(self, request: ModelRequest) -> ModelResponse:
        """Answer one request."""
        return self._send(request, None)

    def complete_many(
        self,
        requests: Sequence[ModelRequest],
        share_prefix: bool = True,
        more: Callable[[ModelResponse], bool] = lambda response: True,
    ) -> list[ModelResponse]:
        """Answer several: the first alone, the others at once when it has written what all have in common."""
        alone: list[ModelResponse] = []
        shared = None
        if share_prefix and len(requests) > 1:
            shared = _shared(requests)
            alone = [self._send(requests[0], shared)]
            if not more(alone[0]):
                return alone
        others = self._at_once(requests[len(alone) :], shared)
        for response in others:
            more(response)
        return [*alone, *others]

    def _at_once(self, requests: Sequence[ModelRequest], shared: tuple[int, int] | None) -> list[ModelResponse]:
        if len(requests) < 2:
            return [self._send(request, shared) for request in requests]
        with ThreadPoolExecutor(len(requests)) as pool:
            return list(pool.map(lambda request: self._send(request, shared), requests))

    # --- one request ------------------------------------------------------------------------------------------------

    def _send(self, request: ModelRequest, shared: tuple[int, int] | None) -> ModelResponse:
        body = self.layout(request, shared)
        with self._errors():
            try:
                full = self._too_long(body)
                if full:
                    return ModelResponse([], None, "", "context", detail=full, model=self.name)
                if FULL_OUTPUT_S * body["max_tokens"] / FULL_OUTPUT > MAX_WAIT_S:
                    with self.client.messages.stream(**body) as stream:
                        message: Any = stream.get_final_message()
                else:
                    message = self.client.messages.create(**body)
            except anthropic.BadRequestError as error:
                if TOO_LONG not in (error.api_message or ""):
                    raise
                return ModelResponse([], None, "", "context", detail=str(error.api_message), model=self.name)
            except ValueError as error:
                if "tool parameter JSON" not in str(error):
                    raise
                # The stream's helper could not read the arguments. What the answer cost is lost with it.
                return ModelResponse([], None, "", "end_turn", detail=str(error), model=self.name)
        if request.role == "act":
            self._last[request.path] = message.id
        return self._response(message)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """What the SDK raises as a ModelError."""
        try:
            yield
        except anthropic.APIStatusError as error:
            raise ModelError(f"{self.name}: {error.status_code} {error.type}: {error.api_message or error}") from error
        except anthropic.AnthropicError as error:
            raise ModelError(f"{self.name}: {error} ({self.client.base_url})") from error
        except TypeError as error:
            if "authentication" not in str(error):
                raise
            raise ModelError(f"{self.name}: {NO_CREDENTIALS}") from None

    # --- batches ----------------------------------------------------------------------------------------------------

    def complete_batch(
        self,
        requests: Sequence[ModelRequest],
        folder: str | Path,
        poll_s: float = 30.0,
        wait: Callable[[float], object] = time.sleep,
    ) -> list[ModelResponse]:
        """Answer all in one message batch: at half the price, within a day.

        The batch's id is written to a file of ``folder`` that the requests name. So the same requests again, after a
        crash or later, wait for the same batch, or take its results, which are kept for 29 days.

        A request that failed alone has a response with stop "error", or "context" if it was too long.
        """
        if not requests:
            return []
        bodies = [self.layout(request) for request in requests]
        bodies = [{**body, **body.pop("extra_body", {})} for body in bodies]
        names = [f"request-{i}" for i in range(len(bodies))]
        which = [[request.role, request.path, request.sample] for request in requests]  # a retry has the same body
        asked = hashlib.sha256(json.dumps([which, bodies], sort_keys=True).encode()).hexdigest()
        file = Path(folder) / f"batch-{asked[:32]}.json"
        with self._errors():
            batches = self.client.messages.batches
            if file.exists():
                batch = batches.retrieve(_batch_id(file))
            else:
                Path(folder).mkdir(parents=True, exist_ok=True)
                several: Any = [{"custom_id": name, "params": body} for name, body in zip(names, bodies, strict=True)]
                batch = batches.create(requests=several)
                write_atomic(file, json.dumps({"id": batch.id, "model": self.name, "requests": len(bodies)}))
            while batch.processing_status != "ended":
                wait(poll_s)
                batch = batches.retrieve(batch.id)
            results = {entry.custom_id: entry.result for entry in batches.results(batch.id)}
        missing = [name for name in names if name not in results]
        if missing:
            raise ModelError(
                f"{self.name}: batch {batch.id} has no result for {missing[0]}; delete {file} to ask again"
            )
        return [self._result(results[name]) for name in names]

    def _result(self, result: Any) -> ModelResponse:
        if result.type == "succeeded":
            response = self._response(result.message)
            cost = None if response.cost_usd is None else BATCH * response.cost_usd
            return replace(response, cost_usd=cost)
        detail = result.error.error.message if result.type == "errored" else str(result.type)  # canceled, expired
        return ModelResponse([], None, "", "context" if TOO_LONG in detail else "error", detail=detail, model=self.name)

    # --- layout -----------------------------------------------------------------------------------------------------

    def layout(self, request: ModelRequest, shared: tuple[int, int] | None = None) -> dict[str, Any]:
        """Keyword arguments of ``messages.create``.

        shared : (message, block) up to which other requests will be the same; None: the path goes on from here.
        """
        messages = _in_blocks(request.messages)
        limit = min(request.max_tokens, self.row.max_output or request.max_tokens)
        body: dict[str, Any] = {"model": self.name, "max_tokens": limit, "messages": messages}
        if self.thinking is not None:
            body["thinking"] = self.thinking
        if request.schema is not None:
            body["output_config"] = {"format": {"type": "json_schema", "schema": request.schema}}
        if request.temperature is not None and self.capabilities.temperature:
            body["extra_body"] = {"temperature": request.temperature}
        if request.system:
            body["system"] = [{"type": "text", "text": request.system}]
        if not request.tools:  # a single question: nothing of it is read again
            return body
        body["tools"] = sorted(request.tools, key=lambda tool: str(tool["name"]))
        body["tool_choice"] = {"type": "auto", "disable_parallel_tool_use": True}
        body["diagnostics"] = {"previous_message_id": self._last.get(request.path, self._last.get(request.path[:-1]))}

        # An hour may not come after five minutes, so what precedes an entry of an hour asks for an hour as well. It is
        # in the cache already, and what is read is not written again.
        branch = request.long_lived
        long = branch is not None and self._an_hour(messages, branch)
        early = {"type": "ephemeral", "ttl": "1h"} if long else {"type": "ephemeral"}
        head = "system" if request.system else "tools"
        body[head] = [*body[head][:-1], {**body[head][-1], "cache_control": early}]
        # A turn's first block is the tool's result (or the issue); text after it belongs to one request only.
        marks = {(0, 0): early}
        if branch is not None:
            marks[branch % len(messages), 0] = early
        end = (len(messages) - 1, len(messages[-1]["content"]) - 1) if shared is None else shared
        marks.setdefault(end, {"type": "ephemeral"})
        if shared is None and marks[end] is not early:
            del marks[end]
            body["cache_control"] = {"type": "ephemeral"}
        for (turn, block), mark in marks.items():
            content = list(messages[turn]["content"])
            content[block] = {**content[block], "cache_control": mark}
            messages[turn] = {**messages[turn], "content": content}
        return body

    def _an_hour(self, messages: Sequence[Message], branch: int) -> bool:
        branch %= len(messages)
        new, prefix = _estimate(messages[max(0, branch - 1) : branch + 1]), _estimate(messages[: branch + 1])
        return self.cache_policy.an_hour(new, prefix)

    def _too_long(self, body: Mapping[str, Any]) -> str:
        """Why a request cannot be sent, or ""; tokens are counted only where an estimate comes near the window."""
        if self.context_window is None or _estimate(body) <= COUNT_ABOVE * self.context_window:
            return ""
        counted = ("messages", "model", "system", "tools", "tool_choice", "thinking")
        tokens = self.client.messages.count_tokens(**{k: body[k] for k in counted if k in body}).input_tokens
        return f"{tokens} tokens, and the window has {self.context_window}" if tokens >= self.context_window else ""

    def _response(self, message: Any) -> ModelResponse:
        content: list[Block] = [sendable(block.to_dict()) for block in message.content]
        for block in content:
            block.pop("parsed_output", None)  # the stream helper's own, not the API's
        calls = [block for block in content if block["type"] == "tool_use"]
        content = [b for b in content if b["type"] != "tool_use" or b is calls[0]]  # each would need a result
        call = ToolCall(calls[0]["name"], dict(calls[0]["input"]), calls[0]["id"]) if calls else None
        text = "".join(block["text"] for block in content if block["type"] == "text")
        stop = STOPS.get(message.stop_reason, "error")
        refused = message.stop_details
        detail = str(message.stop_reason) if stop == "error" else str((refused and refused.category) or "")
        missed = message.diagnostics and message.diagnostics.cache_miss_reason
        usage = _usage(message.usage)
        cost = price(usage, self.name, self.rows)
        miss = missed.type if missed else ""
        return ModelResponse(content, call, text, stop, usage, cost, detail, message.model, miss)


def _batch_id(file: Path) -> str:
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["id"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(f"{file} does not name a batch: delete it to ask again") from None


def _usage(counts: Any) -> Usage:
    written, details = counts.cache_creation, counts.output_tokens_details
    hour = written.ephemeral_1h_input_tokens if written else 0
    total = counts.cache_creation_input_tokens or 0
    return Usage(
        input=counts.input_tokens,
        cache_read=counts.cache_read_input_tokens or 0,
        cache_write_5m=total - hour,
        cache_write_1h=hour,
        output=counts.output_tokens,
        thinking=details.thinking_tokens if details else 0,
    )


def _shared(requests: Sequence[ModelRequest]) -> tuple[int, int] | None:
    """(message, block) of the last block that all requests have in common; None if they are the same to the end."""
    paths = [
        [((turn, at), message["role"], block) for turn, message in enumerate(_in_blocks(request.messages))
         for at, block in enumerate(message["content"])]
        for request in requests
    ]  # fmt: skip
    last = None
    for steps in zip(*paths, strict=False):
        place, _, block = steps[0]
        if any(step != steps[0] for step in steps):
            return last
        if block["type"] not in UNMARKED and block.get("text") != "":
            last = place
    return None if all(len(path) == len(paths[0]) for path in paths) else last


def _in_blocks(messages: Sequence[Message]) -> list[Message]:
    """The same with every content as a list of blocks."""
    return [
        {**m, "content": [{"type": "text", "text": m["content"]}]} if isinstance(m["content"], str) else m
        for m in messages
    ]


def _estimate(value: Any) -> int:
    """Tokens, rather too many."""
    return len(json.dumps(value, ensure_ascii=False)) // CHARS_PER_TOKEN
