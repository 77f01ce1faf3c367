"""Searches over directed acyclic graphs for a decomposable score, and what the best one leaves undirected.

A score is `score(v, parents) -> bits` for column v and its sorted parents; `batch(requests)` may give many at once.
"""

# Not lazy: `boss` is a function and the module that holds it, and only an import here makes the function win.
from .boss import BossState, boss, screen
from .essential import cpdag, essential_graph, meek_closure
from .exact import ScoreTable, arc_margin, best_dag, exact_dag, score_table
from .knowledge import Knowledge

__all__ = [
    "BossState",
    "Knowledge",
    "ScoreTable",
    "arc_margin",
    "best_dag",
    "boss",
    "cpdag",
    "essential_graph",
    "exact_dag",
    "meek_closure",
    "score_table",
    "screen",
]
