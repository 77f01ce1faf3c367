"""A tree to look at: one HTML file without a network, and plain text for a terminal."""

from .details import node_text, sibling_diff
from .page import html
from .terminal import text

__all__ = ["html", "node_text", "sibling_diff", "text"]
