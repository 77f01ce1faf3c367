"""The agent-computer interface: tools, what they show, and the kinds of their actions."""

from .base import Observation, State, Tool
from .effects import effect_kind
from .registry import registry

__all__ = ["Observation", "State", "Tool", "effect_kind", "registry"]
