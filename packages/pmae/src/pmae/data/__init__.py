"""Data sets by name."""

from ..errors import MissingSourceError
from .check import check
from .imageset import ImageSet
from .make import make
from .registry import listing, load

__all__ = ["ImageSet", "MissingSourceError", "check", "listing", "load", "make"]
