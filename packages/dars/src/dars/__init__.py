"""Dynamic action re-sampling: a coding agent that goes back to its key decisions (arXiv:2503.14269)."""

from .config import DarsConfig
from .errors import DarsError
from .policy import ExpansionPolicy
from .tree import Tree, load_tree

__version__ = "0.1.0"

__all__ = ["DarsConfig", "DarsError", "ExpansionPolicy", "Tree", "__version__", "load_tree"]
