"""What the search asks of a model, whoever provides it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Role = Literal["act", "candidate", "critic", "summarize", "review"]
StopReason = Literal["tool_use", "end_turn", "max_tokens", "refusal", "context", "error"]
Block = dict[str, Any]
Message = dict[str, Any]


@dataclass(frozen=True)
class ToolCall:
    """One action: a tool and its arguments."""

    name: str
    input: dict[str, Any] = field(default_factory=dict)
    id: str = ""


class Usage(NamedTuple):
    """Tokens of one or several responses; ``output`` includes ``thinking``."""

    input: int = 0
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    output: int = 0
    thinking: int = 0

    def __add__(self, other: object) -> Usage:
        if not isinstance(other, Usage):
            return NotImplemented
        return Usage(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def cache_efficiency(self) -> float:
        """Share of the input that was read from the cache; 0 without input."""
        total = self.cache_read + self.cache_write_5m + self.cache_write_1h + self.input
        return self.cache_read / total if total else 0.0


NOTHING = Usage()


def add_costs(a: float | None, b: float | None) -> float | None:
    """The sum of two costs in US$; unknown (None) as soon as one of them is."""
    return None if a is None or b is None else a + b


@dataclass(frozen=True)
class ModelRequest:
    """One question to the model.

    Attributes
    ----------
    role : "act" (the next action), "candidate" (a replacement), "critic", "summarize" or "review".
    path : child indices from the root to the user node that is being extended.
    sample : number of the draw among those of the same role and path.
    system, messages, tools : as the Messages API has them; messages of a path are prefixes of those below it.
    temperature : None where the provider has none, or for its default.
    schema : JSON schema of the answer, where one is forced.
    long_lived : index of the message up to which the cache should last an hour, if that pays. A later request cannot
        make an entry last longer: set it in the first request that ends there, or the branch point has five minutes.
    """

    role: Role
    path: tuple[int, ...]
    sample: int = 0
    system: str = ""
    messages: Sequence[Message] = ()
    tools: Sequence[dict[str, Any]] = ()
    max_tokens: int = 4096
    temperature: float | None = None
    schema: dict[str, Any] | None = None
    long_lived: int | None = None


@dataclass(frozen=True)
class ModelResponse:
    """What came back.

    Attributes
    ----------
    content : the assistant's blocks, verbatim (thinking included), as they have to be sent back.
    call : the first tool call, if any.
    text : all text of the answer.
    stop : why it ended.
    detail : category of a refusal, or why there is no answer.
    cache_miss : the provider's reason why the prefix of the request above could not be reused, "" if it was.
    """

    content: Sequence[Block]
    call: ToolCall | None
    text: str
    stop: StopReason
    usage: Usage = NOTHING
    cost_usd: float | None = 0.0
    detail: str = ""
    model: str = ""
    cache_miss: str = ""


def sendable(value: Any) -> Any:
    """The same with a replacement character for every half of a pair of surrogates, which JSON can hold and UTF-8 not.

    Examples
    --------
    >>> sendable({"command": ["echo \\ud800", "\\ud83d\\ude00"]}) == {"command": ["echo \\ufffd", "\\U0001f600"]}
    True
    """
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, dict):
        return {sendable(key): sendable(item) for key, item in value.items()}
    return [sendable(item) for item in value] if isinstance(value, list) else value


class Capabilities(NamedTuple):
    """What a provider can do: a sampling temperature, prefix caching, native tools, counting tokens."""

    temperature: bool = False
    cache: bool = False
    tools: bool = True
    count_tokens: bool = False


class ChatModel(ABC):
    """A chat model with tools."""

    name: str = "model"
    capabilities: Capabilities = Capabilities()
    context_window: int | None = None
    priced: bool = True  # whether what it costs is known

    @property
    def greedy(self) -> float | None:
        """The temperature of turns that are not to vary: 0, or None where the provider takes none."""
        return 0.0 if self.capabilities.temperature else None

    def check(self) -> None:
        """ModelError where it cannot be asked, for lack of credentials; asks nothing."""
        return

    @abstractmethod
    def complete(self, request: ModelRequest) -> ModelResponse:
        """Answer one request; ModelError if the provider refuses it for good."""

    def complete_many(
        self,
        requests: Sequence[ModelRequest],
        share_prefix: bool = True,
        more: Callable[[ModelResponse], bool] = lambda response: True,
    ) -> list[ModelResponse]:
        """Answer several; with ``share_prefix`` the first alone, so that the others read what it wrote to a cache.

        more : takes every response once. Where it says no, requests that have not been sent are not, and the responses
            are those to the first ones alone.
        """
        responses: list[ModelResponse] = []
        for request in requests:
            responses.append(self.complete(request))
            if not more(responses[-1]):
                break
        return responses


class ScriptedModel(ChatModel):
    """A model whose answers are a pure function of (role, path, sample), so that order and workers do not matter.

    Parameters
    ----------
    policy : returns a :class:`ToolCall`, or a str for an answer in words. Calls cost nothing and count as calls.

    Examples
    --------
    >>> model = ScriptedModel(lambda request: ToolCall("submit"))
    >>> model.complete(ModelRequest("act", ())).call.name
    'submit'
    """

    name = "scripted"
    capabilities = Capabilities(temperature=True)

    def __init__(self, policy: Callable[[ModelRequest], ToolCall | str]) -> None:
        self.policy = policy

    def complete(self, request: ModelRequest) -> ModelResponse:
        """The policy's answer."""
        return answered(self.policy(request), request, self.name)


def answered(answer: ToolCall | str, request: ModelRequest, model: str) -> ModelResponse:
    """An answer as a response without usage; the id of a tool call is a function of the request."""
    if isinstance(answer, str):
        return ModelResponse([{"type": "text", "text": answer}], None, answer, "end_turn", model=model)
    identity = "_".join(["toolu", request.role, *map(str, request.path), str(request.sample)])
    call = ToolCall(answer.name, answer.input, answer.id or identity)
    block = {"type": "tool_use", "id": call.id, "name": call.name, "input": call.input}
    return ModelResponse([block], call, "", "tool_use", model=model)
