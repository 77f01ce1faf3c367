import sys

import networkx as nx
import numpy as np
import pytest

from algocause.errors import AlgocauseError, DataError
from algocause.metrics import orientation_accuracy, shd, sid, skeleton_f1, target_f1


def graph(*edges, nodes="abcd"):
    g = nx.DiGraph()
    g.add_nodes_from(nodes)
    g.add_edges_from(tuple(e) for e in edges)
    return g


TRUE = graph("ab", "bc", "cd")
MIXED = graph("ab", "cb", "cd", "dc", "ad")  # right, reversed, undirected, too many


def test_graph_distances_of_known_graphs():
    assert shd(TRUE, TRUE) == 0
    assert shd(TRUE, graph()) == 3
    assert shd(TRUE, MIXED) == shd(MIXED, TRUE) == 3
    assert shd(TRUE, MIXED, half_undirected=True) == 2.5
    assert shd(TRUE, graph("ba", "cb", "dc"), half_undirected=True) == 3
    assert shd(graph(), graph("ab", "ba"), half_undirected=True) == 1
    assert orientation_accuracy(TRUE, MIXED) == pytest.approx((1 + 0 + 0.5) / 3)
    assert orientation_accuracy(TRUE, graph()) == 0
    assert np.isnan(orientation_accuracy(graph(), TRUE))
    assert skeleton_f1(TRUE, MIXED) == pytest.approx(2 * 3 / (3 + 4))
    assert skeleton_f1(graph(), graph()) == 1


def test_target_scores_of_known_targets():
    true = {0: set(), 1: {"a", "b"}, 2: {"c"}}
    assert target_f1(true, true) == 1
    assert target_f1(true, {0: {"a"}, 1: {"a"}, 2: {"c"}}) == pytest.approx(2 * 2 / (3 + 3))
    assert target_f1({0: set()}, {}) == 1


def test_node_order_does_not_matter():
    assert shd(TRUE, graph(*TRUE.edges, nodes="dcba")) == 0


def test_other_nodes_are_an_error():
    with pytest.raises(DataError, match="'d', 'e'"):
        shd(TRUE, graph("ab", nodes="abce"))


def test_structural_intervention_distance_of_known_graphs():
    pytest.importorskip("gadjid")
    assert sid(TRUE, TRUE) == 0
    assert sid(graph("ab"), graph("ab", "ac")) == 0  # a parent too many of a root misstates nothing
    assert sid(graph("ab", nodes="ab"), graph("ba", nodes="ab")) == 2
    with pytest.raises(DataError, match="estimated graph"):
        sid(TRUE, MIXED)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gadjid", None)
    with pytest.raises(AlgocauseError, match="pip install"):
        sid(TRUE, TRUE)
