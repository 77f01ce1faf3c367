"""Models by a short text, as the command line and ``meta.json`` name them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

from ..errors import TaskError
from .base import ChatModel
from .cassette import CassetteModel
from .human import HumanModel
from .openai import OpenAIModel
from .registry import Row

KNOWN = "a Claude model (claude-sonnet-5-5), openai:NAME[@URL], cassette:FILE, repair[:SEED] or human"


def make_model(name: str, rows: Mapping[str, Row] | None = None) -> ChatModel:
    """The model of a name.

    Parameters
    ----------
    name : "claude-…"; "openai:NAME" or "openai:NAME@http://host:port/v1" for chat completions; "cassette:FILE" for a
        recording; "repair" or "repair:SEED" for the offline model that mutates code back; "human".
    rows : prices and abilities by model; None for the shipped ones.

    Raises
    ------
    TaskError
        No such model; what it needs is not installed.

    Examples
    --------
    >>> make_model("human").name
    'human'
    """
    kind, _, rest = name.partition(":")
    if kind.startswith("claude-") and not rest:
        from .anthropic import AnthropicModel

        return AnthropicModel(name, rows=rows)
    if kind == "openai" and rest:
        model, _, url = rest.partition("@")
        return OpenAIModel(model, base_url=url or None, rows=rows)
    if kind == "cassette" and rest:
        return CassetteModel(rest)
    if kind == "repair" and (not rest or rest.isdecimal()):
        if find_spec("cosmic_ray") is None:  # else said at its first edit
            raise TaskError(f"the model {name} needs cosmic-ray: pip install 'dars-agent[bench]'")
        from .repair import RepairModel

        return RepairModel(seed=int(rest or 0))
    if name == "human":
        return HumanModel()
    raise TaskError(f"there is no model {name!r}: give {KNOWN}")
