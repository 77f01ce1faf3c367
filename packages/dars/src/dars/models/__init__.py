"""Chat models, and what the search asks of them."""

from typing import TYPE_CHECKING, Any

from .base import Capabilities, ChatModel, ModelRequest, ModelResponse, ScriptedModel, ToolCall, Usage
from .cassette import CassetteModel
from .choose import make_model
from .human import HumanModel
from .openai import OpenAIModel
from .registry import price, read_rows

if TYPE_CHECKING:
    from .anthropic import AnthropicModel, CachePolicy
    from .repair import RepairModel

__all__ = [
    "AnthropicModel",
    "CachePolicy",
    "Capabilities",
    "CassetteModel",
    "ChatModel",
    "HumanModel",
    "ModelRequest",
    "ModelResponse",
    "OpenAIModel",
    "RepairModel",
    "ScriptedModel",
    "ToolCall",
    "Usage",
    "make_model",
    "price",
    "read_rows",
]


def __getattr__(name: str) -> Any:
    # The SDK takes seconds to import, and most of this package does without it.
    if name in ("AnthropicModel", "CachePolicy"):
        from . import anthropic

        return getattr(anthropic, name)
    if name == "RepairModel":  # needs the extra "bench"
        from .repair import RepairModel

        return RepairModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
