"""Ways through weighted graphs."""

from .graph import Graph
from .order import cycle, layers, topological
from .paths import distances, route, within
from .trees import bridges, components, spanning

__all__ = [
    "Graph", "bridges", "components", "cycle", "distances", "layers", "route", "spanning", "topological", "within",
]  # fmt: skip
