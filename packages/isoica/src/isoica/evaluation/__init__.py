"""The experiments behind `isoica eval`."""

from .profiles import PROFILES, Profile
from .runner import EXPERIMENTS, ExperimentError, run

__all__ = ["EXPERIMENTS", "PROFILES", "ExperimentError", "Profile", "run"]
