"""The experiments behind ``dars eval``: the claims of the paper, tested on this machine."""

from __future__ import annotations

from .profiles import PROFILES, Profile
from .runner import run

__all__ = ["PROFILES", "Profile", "run"]
