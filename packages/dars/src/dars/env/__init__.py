"""Workspaces: files and a shell, states that are remembered and put back."""

from .base import Environment, ExecResult
from .local import LocalEnvironment
from .memory import MemoryEnvironment

__all__ = ["Environment", "ExecResult", "LocalEnvironment", "MemoryEnvironment"]
