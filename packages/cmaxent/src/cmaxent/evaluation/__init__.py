"""The experiments behind ``cmaxent eval``: the claims of the paper, tested on this machine (spec 3, 9 and 10)."""

from __future__ import annotations

from .profiles import PROFILES, Profile
from .runner import run

__all__ = ["PROFILES", "Profile", "run"]
