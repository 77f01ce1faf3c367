"""Data sets by name."""

from .imageset import ImageSet
from .inspect import check
from .make import make
from .registry import listing, load

__all__ = ["ImageSet", "check", "listing", "load", "make"]
