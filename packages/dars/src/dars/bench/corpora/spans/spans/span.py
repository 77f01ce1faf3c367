"""One interval."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Span:
    """Whole numbers from ``start`` up to, but not including, ``stop``."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if self.stop < self.start:
            raise ValueError(f"the span ends at {self.stop}, before {self.start}")

    def __len__(self) -> int:
        return self.stop - self.start

    def __contains__(self, value: int) -> bool:
        return self.start <= value < self.stop

    def touches(self, other: Span) -> bool:
        """Whether both together are one interval."""
        return self.start <= other.stop and other.start <= self.stop

    def overlap(self, other: Span) -> Span | None:
        """What lies in both; None if nothing does."""
        start, stop = max(self.start, other.start), min(self.stop, other.stop)
        return Span(start, stop) if start < stop else None

    def shifted(self, by: int) -> Span:
        """The interval further along."""
        return Span(self.start + by, self.stop + by)

    def split(self, at: int) -> tuple[Span, Span]:
        """Both parts; one is empty where ``at`` lies outside."""
        at = min(max(at, self.start), self.stop)
        return Span(self.start, at), Span(at, self.stop)


def merged(spans: list[Span]) -> list[Span]:
    """The same numbers in as few intervals as can be, sorted."""
    done: list[Span] = []
    for span in sorted(spans):
        if len(span) == 0:
            continue
        if done and done[-1].touches(span):
            done[-1] = Span(done[-1].start, max(done[-1].stop, span.stop))
        else:
            done.append(span)
    return done
