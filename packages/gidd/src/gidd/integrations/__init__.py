"""What other libraries need to use a model of ours; each part needs that library, and importing this one does not.

* :class:`gidd.integrations.lm_eval.GiddLM`: the evaluation harness (``pip install 'gidd-diffusion[harness]'``);
* :class:`gidd.integrations.diffusers.GiddScheduler`: a scheduler (``'gidd-diffusion[diffusers]'``);
* :func:`gidd.integrations.transformers.register`: ``AutoConfig`` and ``AutoModel`` (``'gidd-diffusion[hf]'``).
"""

from importlib import import_module
from typing import Any

_HOME = {"GiddLM": "lm_eval", "GiddScheduler": "diffusers", "register": "transformers"}

__all__ = ["GiddLM", "GiddScheduler", "register"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
