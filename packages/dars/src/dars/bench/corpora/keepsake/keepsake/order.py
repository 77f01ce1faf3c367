"""Keys in the order in which they were used."""

from __future__ import annotations

from collections.abc import Hashable, Iterator


class UseOrder:
    """Keys from the one that was used longest ago to the last, with the count of uses of each."""

    def __init__(self) -> None:
        self._uses: dict[Hashable, int] = {}

    def __len__(self) -> int:
        return len(self._uses)

    def __iter__(self) -> Iterator[Hashable]:
        return iter(list(self._uses))

    def use(self, key: Hashable) -> None:
        """Put a key at the end."""
        self._uses[key] = self._uses.pop(key, 0) + 1

    def drop(self, key: Hashable) -> None:
        """Forget a key."""
        del self._uses[key]

    def uses(self, key: Hashable) -> int:
        """How often a key was used."""
        return self._uses.get(key, 0)

    def oldest(self) -> Hashable:
        """The key that was used longest ago."""
        return next(iter(self._uses))

    def rarest(self) -> Hashable:
        """The key that was used least; of several the oldest."""
        best = self.oldest()
        for key, count in self._uses.items():
            if count < self._uses[best]:
                best = key
        return best
