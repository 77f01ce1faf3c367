"""Sets as people write them: "1-3,7,9-"."""

from __future__ import annotations

from .sets import SpanSet
from .span import Span


def parse_part(text: str, last: int | None) -> Span:
    """One part: "4", "2-5" (both included), "-3" or, where ``last`` is known, "7-"."""
    begin, dash, end = text.strip().partition("-")
    if not dash:
        return Span(int(begin), int(begin) + 1)
    if not end and last is None:
        raise ValueError(f"{text!r} has no end")
    first = int(begin) if begin else 0
    return Span(first, (int(end) if end else int(last or 0)) + 1)


def parse_spans(text: str, last: int | None = None) -> SpanSet:
    """The set that a text names."""
    return SpanSet(parse_part(part, last) for part in text.split(",") if part.strip())


def format_spans(spans: SpanSet) -> str:
    """The shortest text for a set."""
    parts = []
    for span in spans.spans:
        if len(span) == 1:
            parts.append(str(span.start))
        elif len(span) == 2:
            parts.append(f"{span.start},{span.stop - 1}")
        else:
            parts.append(f"{span.start}-{span.stop - 1}")
    return ",".join(parts)
