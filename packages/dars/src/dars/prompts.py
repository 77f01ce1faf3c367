"""Prompt texts: templates of the package, each of which a file of the same name in ``prompts_dir`` replaces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined, TemplateError

from .aci.base import Tool
from .errors import TaskError
from .search.turns import Prompts


@cache
def renderer(prompts_dir: str | Path | None = None) -> Callable[..., str]:
    """render(name, **values) -> text.

    Raises
    ------
    TaskError
        ``prompts_dir`` is no folder; later, a template that is missing or broken.
    """
    loaders: list[Any] = [PackageLoader("dars", "templates")]
    if prompts_dir is not None:
        if not Path(prompts_dir).is_dir():
            raise TaskError(f"prompts_dir {prompts_dir} is no folder")
        loaders.insert(0, FileSystemLoader(str(prompts_dir)))
    # Nothing is escaped: the texts go to a model, not to a browser.
    environment = Environment(
        loader=ChoiceLoader(loaders), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )

    def render(name: str, **values: Any) -> str:
        try:
            return environment.get_template(f"{name}.j2").render(**values).strip()
        except TemplateError as error:
            raise TaskError(f"template {name}.j2: {error}") from error

    return render


def make_prompts(
    issue: str, tools: Sequence[Tool], test_command: str | None = None, prompts_dir: str | Path | None = None
) -> Prompts:
    """The fixed part of all requests of a search."""
    render = renderer(prompts_dir)
    return Prompts(
        system=render("system"),
        issue=render("issue", issue=issue, test_command=test_command),
        tools=tuple(tool.declaration() for tool in sorted(tools, key=lambda tool: tool.name)),
        render=render,
    )
