"""Any file that holds a tree or a trajectory, recognised by its keys."""

from __future__ import annotations

from pathlib import Path

from ..errors import TreeFormatError
from ..tree import Tree, load_tree
from .authors import read_authors
from .files import content
from .trajectories import read_mini, read_traj

READERS = {"root": read_authors, "trajectory": read_traj, "messages": read_mini}


def read(path: str | Path) -> Tree:
    """A tree of this package (file or folder of a run), of the paper's authors, of SWE-agent or of mini-swe-agent.

    Raises
    ------
    TreeFormatError
        Another format, or a damaged file; the message names it.
    """
    if Path(path).is_dir():
        return load_tree(path)
    _, value = content(path)
    if "nodes" in value and "schema_version" in value:
        return load_tree(path)
    for key, reader in READERS.items():
        if key in value:
            return reader(path)
    found = ", ".join(list(value)[:6]) or "nothing"
    raise TreeFormatError(
        f"{path} is of no known format: it has {found}; a tree has nodes, the authors' root, SWE-agent's trajectory, "
        "mini-swe-agent's messages"
    )
