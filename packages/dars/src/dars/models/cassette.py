"""Answers recorded once and given again: a search repeated to the byte, without a provider."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from ..errors import CassetteMiss, ModelError, TaskError, because
from .base import Capabilities, ChatModel, ModelRequest, ModelResponse, ToolCall, Usage

Mode = Literal["replay", "record", "auto"]
# What differs when the same is done again: times, addresses, and the folder of a workspace that is not closed in.
VARYING = r"wall time: [^)]*|\b(?:in|after) \d+(?:\.\d+)? ?s\b|\b0x[0-9a-f]{6,}\b|/[^\s\"]*/work-\d+-[0-9a-f]{8}\b"


class CassetteModel(ChatModel):
    """A model whose answers come from a file of one JSON line each, or go there.

    An answer is found by a hash of the whole request and by how often that request was made before, so that neither
    the order nor the number of workers matters. Every answer is on the disk before it is given.

    Parameters
    ----------
    path : the file; its first line names the model and what it can do, since requests depend on that.
    inner : who answers what is not recorded.
    mode : "replay" asks nobody; "record" asks ``inner`` always, into a new file; "auto" asks where nothing is recorded.
    ignore : regular expression; what it matches in a request does not count (times in observations: ``VARYING``). It
        is kept in the file, and None takes that.

    Raises
    ------
    CassetteMiss
        From :meth:`complete`, for a request that was not recorded.
    TaskError
        No file to replay, one to record into that has answers already, or no ``inner`` where one is needed.
    ModelError
        A damaged file; a last line that was cut off is dropped.
    """

    def __init__(
        self, path: str | Path, inner: ChatModel | None = None, mode: Mode = "replay", *, ignore: str | None = None
    ) -> None:
        self.path = Path(path)
        self.inner = inner
        self.mode = mode
        self._lock = threading.Lock()
        self._asked: dict[str, int] = {}
        if mode not in ("replay", "record", "auto"):
            raise TaskError(f"mode {mode!r} of a cassette: use replay, record or auto")
        if mode == "record" and inner is None:
            raise TaskError("a cassette cannot record without an inner model")
        there = self.path.exists() and self.path.stat().st_size > 0
        if mode == "record" and there:
            raise TaskError(f"{self.path} has answers already: record into a new file, or use mode='auto' to add")
        if mode == "replay" and not there:
            raise TaskError(f"there is no recording {self.path}")
        head, self._answers = self._read() if there else ({}, {})
        if mode == "auto" and inner is not None and not self._answers:  # begun for a model that never answered
            self.path.unlink(missing_ok=True)
            ignore = head.get("ignore") if ignore is None else ignore
            head = {}
        if not head:
            if inner is None:
                raise TaskError(f"{self.path} is not there or holds nothing, and there is no inner model to ask")
            head = {"model": inner.name, "capabilities": list(inner.capabilities), "context": inner.context_window,
                    "ignore": ignore or ""}  # fmt: skip
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._append([head])
        pattern = head.get("ignore", "") if ignore is None else ignore
        self.ignore = re.compile(pattern) if pattern else None
        self.name = str(head["model"])
        self.capabilities = Capabilities(*head["capabilities"])
        self.context_window = head["context"]
        self.priced = inner is None or inner.priced

    def complete(self, request: ModelRequest) -> ModelResponse:
        """The recorded answer, or the inner model's."""
        return self.complete_many([request])[0]

    def complete_many(
        self,
        requests: Sequence[ModelRequest],
        share_prefix: bool = True,
        more: Callable[[ModelResponse], bool] = lambda response: True,
    ) -> list[ModelResponse]:
        """Recorded answers, and the inner model's to the rest, asked together.

        What is recorded was sent, also after a response that says no: beside it, but for the first, which goes alone.
        """
        with self._lock:
            places = [self._place(request) for request in requests]
            found = {place: self._answers[place] for place in places if place in self._answers}
        known = [found[place] for place in itertools.takewhile(found.__contains__, places)]
        alone = known[:1] if share_prefix else []
        if not all(map(more, alone)):
            known = alone
        elif not sum(not more(response) for response in known[len(alone) :]) and len(known) < len(requests):
            known += self._asked_for(requests[len(known) :], places[len(known) :], found, share_prefix, more)
        with self._lock:
            for key, _ in places[len(known) :]:
                self._asked[key] -= 1
        return known

    def _asked_for(
        self,
        requests: Sequence[ModelRequest],
        places: Sequence[tuple[str, int]],
        found: dict[tuple[str, int], ModelResponse],
        share_prefix: bool,
        more: Callable[[ModelResponse], bool],
    ) -> list[ModelResponse]:
        """Answers of which the first is not recorded."""
        if self.inner is None or self.mode == "replay":
            raise CassetteMiss(_explain(self.path, requests[0], *places[0]))
        missing = [i for i, place in enumerate(places) if place not in found]
        new = self.inner.complete_many([requests[i] for i in missing], share_prefix, more)
        asked = {places[i]: response for i, response in zip(missing, new, strict=False)}
        with self._lock:
            self._append([{"key": k, "n": n, "response": _record(response)} for (k, n), response in asked.items()])
        for place in places:
            if place in found:
                more(found[place])
        asked |= found
        return [asked[place] for place in itertools.takewhile(asked.__contains__, places)]

    def _place(self, request: ModelRequest) -> tuple[str, int]:
        key = request_key(request, self.ignore)
        number = self._asked.get(key, 0)
        self._asked[key] = number + 1
        return key, number

    # --- file -----------------------------------------------------------------------------------------------------

    def _append(self, lines: Sequence[dict[str, Any]]) -> None:
        data = "".join(json.dumps(line) + "\n" for line in lines)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise because(f"cannot write {self.path}", error, ModelError) from error

    def _read(self) -> tuple[dict[str, Any], dict[tuple[str, int], ModelResponse]]:
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data) and self.mode == "auto":
            with self.path.open("r+b") as file:  # what follows has to begin on a line of its own
                file.truncate(whole)
        head: dict[str, Any] = {}
        answers = {}
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                value = json.loads(line)
                if number == 1:
                    head = {"ignore": "", **value}
                    [head[name] for name in ("model", "capabilities", "context")]
                else:
                    answers[value["key"], value["n"]] = _response(value["response"])
            except (ValueError, KeyError, TypeError) as error:
                raise ModelError(f"{self.path}:{number} is no line of a recording: {error}") from error
        return head, answers


def request_key(request: ModelRequest, ignore: re.Pattern[str] | None = None) -> str:
    """A hash of everything in a request, whatever the order of keys in its objects."""
    text = json.dumps(asdict(request), sort_keys=True, ensure_ascii=False)
    data = (ignore.sub("", text) if ignore else text).encode("utf-8", "surrogatepass")
    return hashlib.sha256(data).hexdigest()


def _explain(path: Path, request: ModelRequest, key: str, number: int) -> str:
    at = "/".join(map(str, request.path)) or "the root"
    asked = f"{request.role} request at {at}, sample {request.sample}"
    return f"{path} has no answer to the {asked} (asked {number} times before, hash {key[:12]}): record it again"


def _record(response: ModelResponse) -> dict[str, Any]:
    return {**asdict(response), "usage": list(response.usage)}


def _response(record: dict[str, Any]) -> ModelResponse:
    call = None if record["call"] is None else ToolCall(**record["call"])
    return ModelResponse(**{**record, "call": call, "usage": Usage(*record["usage"])})
