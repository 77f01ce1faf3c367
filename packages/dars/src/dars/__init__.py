"""Dynamic action re-sampling: a coding agent that goes back to its key decisions (arXiv:2503.14269)."""

from .agent import RunResult, fork, resume, review, run
from .candidates import Candidate
from .config import DarsConfig
from .errors import DarsError
from .policy import ExpansionPolicy
from .task import Task
from .tree import Tree, load_tree

__version__ = "0.1.0"

__all__ = [
    "Candidate",
    "DarsConfig",
    "DarsError",
    "ExpansionPolicy",
    "RunResult",
    "Task",
    "Tree",
    "__version__",
    "fork",
    "load_tree",
    "resume",
    "review",
    "run",
]
