"""Which tools an agent has."""

from __future__ import annotations

from typing import Literal

from . import cell, editing, search, shell, submit, window
from .base import Tool
from .symbols import SymbolIndex, search_repo
from .testing import run_tests


def registry(aci: Literal["full", "bash"] = "full", test_command: str | None = None) -> dict[str, Tool]:
    """Tools by name.

    Parameters
    ----------
    aci : "full", or "bash" for a shell and submit only.
    test_command : of run_tests; default pytest.

    Raises
    ------
    ValueError
        Another ``aci``.

    Examples
    --------
    >>> sorted(registry("bash"))
    ['bash', 'submit']
    """
    if aci not in ("full", "bash"):
        raise ValueError(f"aci is {aci!r}; it has to be 'full' or 'bash'")
    tools: list[Tool] = [shell.BASH, submit.TOOL]
    if aci == "full":
        tools = [*window.TOOLS, *search.TOOLS, search_repo(SymbolIndex()), *editing.TOOLS, *shell.TOOLS]
        tools += [run_tests(test_command), cell.TOOL, submit.TOOL]
    return {tool.name: tool for tool in tools}
