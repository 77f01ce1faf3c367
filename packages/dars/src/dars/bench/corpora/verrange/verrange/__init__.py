"""Versions, and the ranges that people write for them."""

from .plan import conflicts, pick, upgrade
from .ranges import Range, parse_range
from .version import Version, parse_version

__all__ = ["Range", "Version", "conflicts", "parse_range", "parse_version", "pick", "upgrade"]
