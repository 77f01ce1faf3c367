"""Functions that remember."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .cache import Cache

MISSING = object()


def memoise(function: Callable[..., Any], cache: Cache) -> Callable[..., Any]:
    """The function with its results in a cache; a result that does not fit is computed each time."""

    def remembered(*args: Any, **named: Any) -> Any:
        key = (args, tuple(sorted(named.items())))
        known = cache.get(key, MISSING)
        if known is not MISSING:
            return known
        value = function(*args, **named)
        cache.put(key, value)
        return value

    return remembered
