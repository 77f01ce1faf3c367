"""Sets of intervals, with the algebra of sets."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator

from .span import Span, merged


class SpanSet:
    """A set of whole numbers as sorted intervals that do not touch."""

    def __init__(self, spans: Iterable[Span | tuple[int, int]] = ()) -> None:
        self.spans = merged([span if isinstance(span, Span) else Span(*span) for span in spans])

    def __repr__(self) -> str:
        return f"SpanSet({[(span.start, span.stop) for span in self.spans]})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SpanSet) and self.spans == other.spans

    def __hash__(self) -> int:
        return hash(tuple(self.spans))

    def __iter__(self) -> Iterator[int]:
        for span in self.spans:
            yield from range(span.start, span.stop)

    def __len__(self) -> int:
        return sum(len(span) for span in self.spans)

    def __contains__(self, value: int) -> bool:
        at = bisect_right([span.start for span in self.spans], value) - 1
        return at >= 0 and value in self.spans[at]

    def __or__(self, other: SpanSet) -> SpanSet:
        return SpanSet([*self.spans, *other.spans])

    def __and__(self, other: SpanSet) -> SpanSet:
        found, i, j = [], 0, 0
        while i < len(self.spans) and j < len(other.spans):
            common = self.spans[i].overlap(other.spans[j])
            if common is not None:
                found.append(common)
            if self.spans[i].stop < other.spans[j].stop:
                i += 1
            else:
                j += 1
        return SpanSet(found)

    def __sub__(self, other: SpanSet) -> SpanSet:
        left = list(self.spans)
        for hole in other.spans:
            kept = []
            for span in left:
                before, rest = span.split(hole.start)
                kept.append(before)
                kept.append(rest.split(hole.stop)[1])
            left = [span for span in kept if len(span) > 0]
        return SpanSet(left)

    def gaps(self) -> list[Span]:
        """Intervals between the first and the last number that are missing."""
        return [Span(a.stop, b.start) for a, b in zip(self.spans, self.spans[1:], strict=False)]

    def bounds(self) -> Span | None:
        """The smallest interval around all."""
        return Span(self.spans[0].start, self.spans[-1].stop) if self.spans else None

    def nearest(self, value: int) -> int | None:
        """The number of the set that is nearest; of two the smaller."""
        best = None
        for span in self.spans:
            candidate = min(max(value, span.start), span.stop - 1)
            if best is None or abs(candidate - value) < abs(best - value):
                best = candidate
        return best

    def first_free(self, size: int, start: int = 0) -> int:
        """Where the first ``size`` numbers in a row from ``start`` on are not in the set."""
        at = start
        for span in self.spans:
            if span.stop <= at:
                continue
            if span.start - at >= size:
                break
            at = span.stop
        return at
