"""A cache that forgets: what is too old, then what was not asked for."""

from .cache import Cache
from .clock import ManualClock
from .memo import memoise
from .sizes import parse_size

__all__ = ["Cache", "ManualClock", "memoise", "parse_size"]
