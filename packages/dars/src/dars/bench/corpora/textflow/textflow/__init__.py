"""Plain text in columns: breaking into lines, aligning, justifying, setting side by side."""

from .align import align, justify
from .columns import columns, table
from .wrap import fill, paragraphs, wrap

__all__ = ["align", "columns", "fill", "justify", "paragraphs", "table", "wrap"]
