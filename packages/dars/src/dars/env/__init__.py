"""Workspaces: files and a shell, states that are remembered and put back."""

from .base import Environment, ExecResult
from .container import ContainerEnvironment
from .local import LocalEnvironment
from .memory import MemoryEnvironment

__all__ = ["ContainerEnvironment", "Environment", "ExecResult", "LocalEnvironment", "MemoryEnvironment"]
