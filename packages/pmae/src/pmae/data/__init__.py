"""Data sets by name."""

from .check import check
from .imageset import ImageSet
from .make import make
from .registry import listing, load

__all__ = ["ImageSet", "check", "listing", "load", "make"]
