"""The cache."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from .clock import ManualClock
from .order import UseOrder
from .sizes import size_of


class Cache:
    """Values by key, up to a total size, each for some seconds.

    policy : "lru" forgets what was used longest ago, "lfu" what was used least.
    """

    def __init__(
        self, limit: int, ttl: float | None = None, clock: Callable[[], float] | None = None, policy: str = "lru"
    ) -> None:
        if limit < 1:
            raise ValueError("a cache has to hold something")
        if policy not in ("lru", "lfu"):
            raise ValueError(f"there is no policy {policy!r}")
        self.limit, self.ttl, self.policy = limit, ttl, policy
        self.clock = clock or ManualClock()
        self.hits = self.misses = self.evictions = 0
        self._values: dict[Hashable, Any] = {}
        self._until: dict[Hashable, float] = {}
        self._order = UseOrder()

    def __len__(self) -> int:
        self.expire()
        return len(self._values)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values and not self._stale(key)

    def _stale(self, key: Hashable) -> bool:
        return key in self._until and self._until[key] <= self.clock()

    def total(self) -> int:
        """Size of all values."""
        return sum(size_of(value) for value in self._values.values())

    def put(self, key: Hashable, value: Any, ttl: float | None = None) -> bool:
        """Keep a value, whatever has to go for it; False if it is larger than the cache."""
        if size_of(value) > self.limit:
            return False
        if key in self._values:
            self.forget(key)
        self.expire()
        while self.total() + size_of(value) > self.limit:
            self.forget(self._order.oldest() if self.policy == "lru" else self._order.rarest())
            self.evictions += 1
        self._values[key] = value
        self._order.use(key)
        seconds = self.ttl if ttl is None else ttl
        if seconds is not None:
            self._until[key] = self.clock() + seconds
        return True

    def get(self, key: Hashable, default: Any = None) -> Any:
        """The value of a key."""
        if key not in self:
            self.misses += 1
            return default
        self.hits += 1
        self._order.use(key)
        return self._values[key]

    def forget(self, key: Hashable) -> None:
        """Drop a key; nothing happens if it is not there."""
        if key in self._values:
            del self._values[key]
            self._until.pop(key, None)
            self._order.drop(key)

    def expire(self) -> int:
        """Drop what is too old; how many there were."""
        stale = [key for key in self._values if self._stale(key)]
        for key in stale:
            self.forget(key)
        return len(stale)

    def left(self, key: Hashable) -> float | None:
        """Seconds until a key expires; None if it never does."""
        if key not in self._until:
            return None
        return max(0.0, self._until[key] - self.clock())

    def hit_rate(self) -> float:
        """Share of questions that were answered."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0
