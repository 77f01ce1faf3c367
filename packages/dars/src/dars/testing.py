"""A Messages API on the loopback device, for tests through the real SDK.

Its prefix cache follows the documented one. A prefix is known by all its blocks, byte for byte. An entry is written at
a breakpoint, and only after the answer. A request reads the longest entry that one of its breakpoints finds at its own
block or at one of the 19 before. Reading renews an entry for its own lifetime; a longer lifetime asked for later does
not lengthen it, and nothing up to the block that was read is written or billed again.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from types import TracebackType
from typing import Any, NamedTuple, Self

from .models.base import NOTHING, Block, ToolCall, Usage

SAMPLING = ("temperature", "top_p", "top_k")
OLD_VERSION = "2023-06-01"  # of the API, in which the sampling keys are still accepted
LIFETIMES = {"5m": 300.0, "1h": 3600.0}
LOOK_BACK = 20
MAX_BREAKPOINTS = 4
BATCHES = "/v1/messages/batches"
CUSTOM_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
DAY = "2026-01-01T00:00:00Z"  # of all batches
ERRORS = {400: "invalid_request_error", 404: "not_found_error", 429: "rate_limit_error", 529: "overloaded_error"}


def len_over_4(text: str) -> int:
    """Tokens of a text: a quarter of its characters."""
    return len(text) // 4


@dataclass(frozen=True)
class Reply:
    """An answer in full.

    Attributes
    ----------
    content : the assistant's blocks.
    stop : stop_reason; "" for what the content says: "tool_use" if it calls a tool, else "end_turn".
    status : of HTTP; not 200: an error with ``detail`` as its message.
    detail : category of a refusal, or message of an error.
    delay_s : seconds before the answer.
    thinking_tokens : how many of the output tokens were thought.
    """

    content: Sequence[Block] = ()
    stop: str = ""
    status: int = 200
    detail: str = ""
    delay_s: float = 0.0
    thinking_tokens: int = 0


Responder = Callable[[dict[str, Any]], "Reply | ToolCall | str | list[Block]"]


class Seen(NamedTuple):
    """A request as it came in: path, parsed body, headers with small letters, and the bytes of the body."""

    path: str
    body: dict[str, Any]
    headers: dict[str, str]
    raw: bytes


class _Rejected(Exception):
    """A request that the API refuses with 400."""


@dataclass
class _Entry:
    lifetime: float
    expires: float


@dataclass
class _Batch:
    entries: list[dict[str, Any]]
    polls_left: int
    results: list[dict[str, Any]] = field(default_factory=list)


class FakeMessagesServer:
    """``/v1/messages`` (whole and streamed), its ``count_tokens`` and its ``batches``, as a context manager.

    Parameters
    ----------
    responder : body of a request -> a text, a tool call, blocks, or a :class:`Reply`. May be called from several
        threads.
    clock : seconds; what the lifetimes of the cache are measured by.
    min_tokens : prefixes shorter than this are not cached.
    tokenizer : text -> tokens. A block has those of its JSON without ``cache_control``; an output block those of its
        JSON, at least one.

    Attributes
    ----------
    url : base URL, without ``/v1``.
    requests : :class:`Seen` in order of arrival, those refused included.
    usage_total : tokens of all answers.
    failures : statuses with which the next requests are refused, before the responder is asked.
    polls : how often a batch is asked for before it has ended. Its results come in another order than its requests.

    Examples
    --------
    >>> import anthropic
    >>> with FakeMessagesServer(lambda body: "hello") as server:
    ...     client = anthropic.Anthropic(api_key="none", base_url=server.url)
    ...     ask = [{"role": "user", "content": "hi"}]
    ...     client.messages.create(model="claude-sonnet-5-5", max_tokens=9, messages=ask).content[0].text
    'hello'
    """

    def __init__(
        self,
        responder: Responder,
        *,
        clock: Callable[[], float] | None = None,
        min_tokens: int = 0,
        tokenizer: Callable[[str], int] = len_over_4,
    ) -> None:
        self.responder = responder
        self.clock = clock or time.monotonic
        self.min_tokens = min_tokens
        self.tokenizer = tokenizer
        self.requests: list[Seen] = []
        self.usage_total = NOTHING
        self.failures: list[int] = []
        self.polls = 1
        self._batches: dict[str, _Batch] = {}
        self._cache: dict[str, _Entry] = {}
        self._known: dict[str, tuple[str, list[str], list[str], list[str]]] = {}  # by id of the answer
        self._lock = threading.Lock()
        self._http = _Http(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    # --- requests -------------------------------------------------------------------------------------------------

    def handle(self, seen: Seen) -> tuple[int, Any]:
        """Status and body of the answer; a list for JSON lines."""
        with self._lock:
            self.requests.append(seen)
            failure = self.failures.pop(0) if self.failures else 0
        if failure:
            return failure, _error(failure, "asked for by the test")
        try:
            if seen.path == "/v1/messages/count_tokens":
                _check(seen, counting=True)
                return 200, {"input_tokens": sum(self._tokens(block) for _, _, block in _blocks(seen.body))}
            if seen.path.startswith(BATCHES):
                return self._batch(seen)
            if seen.path != "/v1/messages":
                return 404, _error(404, f"there is no {seen.path}")
            _check(seen)
        except _Rejected as error:
            return 400, _error(400, str(error))
        return self._answer(seen.body)

    def _batch(self, seen: Seen) -> tuple[int, Any]:
        """Make a batch (with a body), or tell how far it is; a list is sent line by line."""
        if seen.path == BATCHES:
            entries = seen.body.get("requests") or []
            names = [str(entry["custom_id"]) for entry in entries]
            if not entries or len(set(names)) < len(names) or not all(map(CUSTOM_ID.fullmatch, names)):
                raise _Rejected("requests: custom_id has to be unique, of 1 to 64 letters, digits, _ and -")
            with self._lock:
                name = f"msgbatch_{len(self._batches):06d}"
                self._batches[name] = _Batch(entries, self.polls)
            return 200, self._batch_record(name)
        name, _, rest = seen.path.removeprefix(f"{BATCHES}/").partition("/")
        if name not in self._batches or rest not in ("", "results"):
            return 404, _error(404, f"there is no {seen.path}")
        batch = self._batches[name]
        if not rest:
            batch.polls_left -= 1
            return 200, self._batch_record(name)
        if not batch.results:
            batch.results = [self._batch_result(entry, seen) for entry in batch.entries[::-1]]
        return 200, batch.results

    def _batch_record(self, name: str) -> dict[str, Any]:
        batch = self._batches[name]
        ended, n = batch.polls_left <= 0, len(batch.entries)
        counts = {"processing": 0 if ended else n, "succeeded": n if ended else 0}
        return {
            "id": name, "type": "message_batch", "processing_status": "ended" if ended else "in_progress",
            "request_counts": {**counts, "errored": 0, "canceled": 0, "expired": 0}, "created_at": DAY,
            "expires_at": DAY, "ended_at": DAY if ended else None, "archived_at": None, "cancel_initiated_at": None,
            "results_url": f"{self.url}{BATCHES}/{name}/results" if ended else None,
        }  # fmt: skip

    def _batch_result(self, entry: Mapping[str, Any], seen: Seen) -> dict[str, Any]:
        try:
            _check(seen._replace(body=entry["params"]))
            status, answer = self._answer(entry["params"])
        except _Rejected as error:
            status, answer = 400, _error(400, str(error))
        result = {"type": "succeeded", "message": answer} if status == 200 else {"type": "errored", "error": answer}
        return {"custom_id": entry["custom_id"], "result": result}

    def _answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        blocks = list(_blocks(body))
        keys = _keys(body, blocks)
        ends, total = [], 0
        for _, _, block in blocks:
            total += self._tokens(block)
            ends.append(total)
        with self._lock:
            read = self._read(body, blocks, keys, ends)
        reply = (
            Reply(stop="max_tokens") if body["max_tokens"] == 0 else _reply(self.responder(body), len(self.requests))
        )
        if reply.delay_s:
            time.sleep(reply.delay_s)
        if reply.status != 200:
            return reply.status, _error(reply.status, reply.detail or "asked for by the test")
        output = sum(max(1, self.tokenizer(json.dumps(block))) for block in reply.content)
        with self._lock:
            w5, w1h = self._write(body, blocks, keys, ends, read)
            usage = Usage(total - read - w5 - w1h, read, w5, w1h, output, reply.thinking_tokens)
            self.usage_total += usage
            name = f"msg_{len(self._known):06d}"
            diagnostics = self._diagnose(body)
            self._known[name] = _fingerprint(body)
        return 200, {
            "id": name, "type": "message", "role": "assistant", "model": body["model"],
            "content": list(reply.content), "stop_reason": reply.stop, "stop_sequence": None,
            "stop_details": {"type": "refusal", "category": reply.detail or None, "explanation": None}
            if reply.stop == "refusal" else None,
            "diagnostics": diagnostics,
            "usage": {
                "input_tokens": usage.input, "cache_read_input_tokens": read, "cache_creation_input_tokens": w5 + w1h,
                "cache_creation": {"ephemeral_5m_input_tokens": w5, "ephemeral_1h_input_tokens": w1h},
                "output_tokens": output, "output_tokens_details": {"thinking_tokens": reply.thinking_tokens},
            },
        }  # fmt: skip

    def _tokens(self, block: Mapping[str, Any]) -> int:
        return self.tokenizer(json.dumps(_plain(block), ensure_ascii=False))

    # --- cache ----------------------------------------------------------------------------------------------------

    def _read(self, body: Mapping[str, Any], blocks: list[_At], keys: list[str], ends: list[int]) -> int:
        """Tokens of the longest prefix found; what each breakpoint finds is renewed."""
        now, read = self.clock(), 0
        for at in _breakpoints(body, blocks):
            for i in range(at, max(-1, at - LOOK_BACK), -1):
                entry = self._cache.get(keys[i])
                if entry is not None and entry.expires > now:
                    entry.expires = now + entry.lifetime
                    read = max(read, ends[i])
                    break
        return read

    def _write(
        self, body: Mapping[str, Any], blocks: list[_At], keys: list[str], ends: list[int], read: int
    ) -> tuple[int, int]:
        """Tokens written for five minutes and for an hour: from what was read up to the last breakpoint."""
        now, done = self.clock(), read
        written = {"5m": 0, "1h": 0}
        for at, lifetime in sorted(_breakpoints(body, blocks).items()):
            if ends[at] > done and ends[at] >= self.min_tokens:
                self._cache[keys[at]] = _Entry(LIFETIMES[lifetime], now + LIFETIMES[lifetime])
                written[lifetime] += ends[at] - done
                done = ends[at]
        return written["5m"], written["1h"]

    def _diagnose(self, body: Mapping[str, Any]) -> dict[str, Any] | None:
        """What keeps the prefix of the request named by ``previous_message_id`` from being reused; None: nothing."""
        previous = (body.get("diagnostics") or {}).get("previous_message_id")
        if previous is None:
            return None
        if previous not in self._known:
            return {"cache_miss_reason": {"type": "previous_message_not_found"}}
        before, now = self._known[previous], _fingerprint(body)
        for name, old, new in zip(("model", "tools", "system", "messages"), before, now, strict=True):
            if (old != new) if name != "messages" else (old != new[: len(old)]):
                return {"cache_miss_reason": {"type": f"{name}_changed", "cache_missed_input_tokens": 0}}
        return None


_At = tuple[str, str, dict[str, Any]]  # section ("tools", "system", "messages"), role, block


def _blocks(body: Mapping[str, Any]) -> Iterator[_At]:
    """All blocks of a request in the order in which they are cached."""
    for tool in body.get("tools", ()):
        yield "tools", "", tool
    system = body.get("system", ())
    for block in [{"type": "text", "text": system}] if isinstance(system, str) else system:
        yield "system", "", block
    for message in body["messages"]:
        content = message["content"]
        for block in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            yield "messages", message["role"], block


def _plain(block: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in block.items() if key != "cache_control"}


def _keys(body: Mapping[str, Any], blocks: Sequence[_At]) -> list[str]:
    """A hash of the prefix that ends with each block; settings of the model's answer belong to the messages."""
    settings = [body.get(name) for name in ("tool_choice", "thinking", "output_config")]
    keys, key, before = [], str(body["model"]), ""
    for section, role, block in blocks:
        extra = settings if section == "messages" and before != "messages" else None
        before = section
        key = hashlib.sha256(json.dumps([key, extra, section, role, _plain(block)]).encode()).hexdigest()
        keys.append(key)
    return keys


def _breakpoints(body: Mapping[str, Any], blocks: Sequence[_At]) -> dict[int, str]:
    """Index of a block -> lifetime; the one for the whole request falls on the last block."""
    found = {i: block["cache_control"].get("ttl", "5m") for i, (_, _, block) in enumerate(blocks)
             if block.get("cache_control")}  # fmt: skip
    if body.get("cache_control"):
        found.setdefault(len(blocks) - 1, body["cache_control"].get("ttl", "5m"))
    return found


def _fingerprint(body: Mapping[str, Any]) -> tuple[str, list[str], list[str], list[str]]:
    parts: dict[str, list[str]] = {"tools": [], "system": [], "messages": []}
    for section, role, block in _blocks(body):
        parts[section].append(json.dumps([role, _plain(block)]))
    return str(body["model"]), parts["tools"], parts["system"], parts["messages"]


# --- checks -----------------------------------------------------------------------------------------------------------


def _check(seen: Seen, counting: bool = False) -> None:
    """Refuse what the API refuses."""
    body = seen.body
    for name in ("model", "messages", *(() if counting else ("max_tokens",))):
        if name not in body:
            raise _Rejected(f"{name}: Field required")
    if seen.headers.get("anthropic-version") != OLD_VERSION:
        for name in SAMPLING:
            if name in body:
                raise _Rejected(f"{name}: Extra inputs are not permitted")
    messages = body["messages"]
    if not messages or messages[0]["role"] != "user":
        raise _Rejected("messages: first message must use the user role")
    for i, (one, other) in enumerate(pairwise(messages)):
        if one["role"] == other["role"]:
            raise _Rejected(f"messages.{i + 1}: roles must alternate")
    _check_pairs(messages)
    blocks = list(_blocks(body))
    found = _breakpoints(body, blocks)
    if len(found) > MAX_BREAKPOINTS:
        raise _Rejected(
            f"A maximum of {MAX_BREAKPOINTS} blocks with cache_control may be provided. Found {len(found)}."
        )
    lifetimes = [found[i] for i in sorted(found)]
    if any(lifetime not in LIFETIMES for lifetime in lifetimes):
        raise _Rejected("cache_control.ttl: Input should be '5m' or '1h'")
    if "5m" in lifetimes and "1h" in lifetimes[lifetimes.index("5m") :]:
        raise _Rejected("a ttl='1h' cache_control block must not come after a ttl='5m' cache_control block")
    for i in found:
        block = blocks[i][2]
        if block.get("type") in ("thinking", "redacted_thinking") or (
            block.get("type") == "text" and not block["text"]
        ):
            raise _Rejected("cache_control cannot be set for thinking blocks or empty text blocks")
    whole, last = body.get("cache_control"), blocks[-1][2].get("cache_control")
    if whole and last and whole.get("ttl", "5m") != last.get("ttl", "5m"):
        raise _Rejected("cache_control: the last block has another ttl")


def _check_pairs(messages: Sequence[Mapping[str, Any]]) -> None:
    """Every tool_use is answered at the beginning of the next user turn, and nothing else is."""
    called: list[str] = []
    for i, message in enumerate(messages):
        content = message["content"] if isinstance(message["content"], list) else []
        if message["role"] == "assistant":
            called = [block["id"] for block in content if block["type"] == "tool_use"]
            if called and i == len(messages) - 1:
                raise _Rejected(f"messages.{i}: tool_use ids were found without tool_result blocks: {called}")
            continue
        answered = [block["tool_use_id"] for block in content if block["type"] == "tool_result"]
        if sorted(answered) != sorted(called):
            raise _Rejected(f"messages.{i}: tool_result blocks {answered} do not match the tool_use blocks {called}")
        if any(block["type"] != "tool_result" for block in content[: len(answered)]):
            raise _Rejected(f"messages.{i}: tool_result blocks have to come first")
        called = []


# --- answers ----------------------------------------------------------------------------------------------------------


def _reply(answer: Reply | ToolCall | str | list[Block], number: int) -> Reply:
    if isinstance(answer, str):
        answer = [{"type": "text", "text": answer}]
    elif isinstance(answer, ToolCall):
        name = answer.id or f"toolu_{number:06d}"
        answer = [{"type": "tool_use", "id": name, "name": answer.name, "input": answer.input}]
    reply = answer if isinstance(answer, Reply) else Reply(answer)
    if reply.stop:
        return reply
    stop = "tool_use" if any(block["type"] == "tool_use" for block in reply.content) else "end_turn"
    return Reply(reply.content, stop, reply.status, reply.detail, reply.delay_s, reply.thinking_tokens)


def _error(status: int, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": ERRORS.get(status, "api_error"), "message": message}}


def _events(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """An answer as the events of a stream, every text in two pieces."""
    usage = message["usage"]
    empty = {**message, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 0}}
    yield {"type": "message_start", "message": empty}
    for index, block in enumerate(message["content"]):
        start: dict[str, Any]
        if block["type"] == "text":
            start, pieces = {**block, "text": ""}, [("text_delta", "text", part) for part in _halves(block["text"])]
        elif block["type"] == "thinking":
            start = {**block, "thinking": "", "signature": ""}
            pieces = [("thinking_delta", "thinking", part) for part in _halves(block["thinking"])]
            pieces.append(("signature_delta", "signature", block["signature"]))
        elif block["type"] == "tool_use":
            start = {**block, "input": {}}
            pieces = [("input_json_delta", "partial_json", part) for part in _halves(json.dumps(block["input"]))]
        else:
            start, pieces = block, []
        yield {"type": "content_block_start", "index": index, "content_block": start}
        for kind, name, part in pieces:
            yield {"type": "content_block_delta", "index": index, "delta": {"type": kind, name: part}}
        yield {"type": "content_block_stop", "index": index}
    delta = {name: message[name] for name in ("stop_reason", "stop_sequence", "stop_details")}
    counts = {name: usage[name] for name in ("output_tokens", "output_tokens_details")}
    yield {"type": "message_delta", "delta": delta, "usage": counts}
    yield {"type": "message_stop"}


def _halves(text: str) -> tuple[str, str]:
    return text[: len(text) // 2], text[len(text) // 2 :]


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # candidates come together


def _handler(server: FakeMessagesServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet, else the second waits for an acknowledgement

        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            seen = Seen(self.path.split("?")[0], json.loads(raw or b"{}"), headers, raw)
            status, answer = server.handle(seen)
            streamed = status == 200 and seen.body.get("stream")
            if streamed:
                lines = [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in _events(answer)]
                data = "".join(lines).encode()
            elif isinstance(answer, list):
                data = "".join(json.dumps(line) + "\n" for line in answer).encode()
            else:
                data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "text/event-stream" if streamed else "application/json")
            self.send_header("content-length", str(len(data)))
            if status != 200:
                self.send_header("retry-after-ms", "1")  # the SDK waits as long as it is told
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing on the terminal."""

    return Handler
