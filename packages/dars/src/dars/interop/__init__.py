"""Trees of other agents, and files that other programs read."""

from .authors import read_authors
from .export import FORMATS, export
from .predictions import read_predictions, write_predictions
from .reading import read
from .trajectories import read_mini, read_traj

__all__ = [
    "FORMATS", "export", "read", "read_authors", "read_mini", "read_predictions", "read_traj", "write_predictions",
]  # fmt: skip
