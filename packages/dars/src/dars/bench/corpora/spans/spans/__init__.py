"""Sets of half-open intervals of whole numbers."""

from .parse import format_spans, parse_spans
from .sets import SpanSet
from .span import Span

__all__ = ["Span", "SpanSet", "format_spans", "parse_spans"]
