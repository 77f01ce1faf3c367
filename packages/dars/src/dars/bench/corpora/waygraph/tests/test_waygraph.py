import pytest
from waygraph import Graph, bridges, components, cycle, distances, layers, route, spanning, topological, within
from waygraph.order import entering, longest
from waygraph.paths import centre, eccentricity
from waygraph.trees import Groups


def square():
    return Graph([("a", "b", 1), ("b", "c", 2), ("c", "d", 1), ("a", "d", 5)])


def house():
    return Graph([("a", "b"), ("b", "c"), ("a", "c"), ("c", "d"), ("d", "e"), ("x", "y")])


def tasks():
    return Graph([("wash", "cook", 2), ("cut", "cook", 3), ("cook", "eat", 4), ("lay", "eat", 1)], directed=True)


def test_edges_are_named_once():
    assert Graph([("b", "a"), ("a", "b")]).edges() == [("a", "b", 1)]


def test_directed_edges():
    assert Graph([("b", "a"), ("a", "b", 3)], directed=True).edges() == [("a", "b", 3), ("b", "a", 1)]


def test_lighter_edge_counts():
    assert Graph([("a", "b", 4), ("a", "b", 2), ("a", "b", 3)]).edges() == [("a", "b", 2)]


def test_weight_of_zero():
    assert Graph([("a", "b", 0)]).edges() == [("a", "b", 0)]


def test_negative_weight():
    with pytest.raises(ValueError, match="negative"):
        Graph([("a", "b", -1)])


def test_loop_is_an_edge():
    assert Graph([("a", "a", 2)]).edges() == [("a", "a", 2)]


def test_degree():
    assert [square().degree(name) for name in "abcd"] == [2, 2, 2, 2]


def test_degree_of_directed_nodes():
    assert (tasks().degree("cook"), tasks().degree("eat")) == (1, 0)


def test_without_an_edge():
    assert square().without("b", "a").edges() == [("a", "d", 5), ("b", "c", 2), ("c", "d", 1)]


def test_without_keeps_nodes():
    assert sorted(Graph([("a", "b")]).without("a", "b").next) == ["a", "b"]


def test_without_looks_at_the_direction():
    assert len(tasks().without("cook", "wash").edges()) == 4


def test_reverse():
    assert Graph([("a", "b", 2)], directed=True).reverse().edges() == [("b", "a", 2)]


def test_distances():
    assert distances(square(), "a") == {"a": 0, "b": 1, "c": 3, "d": 4}


def test_distances_leave_out_what_is_apart():
    assert "x" not in distances(house(), "a")


def test_distances_follow_directions():
    assert distances(tasks(), "cook") == {"cook": 0, "eat": 4}


def test_unknown_start():
    with pytest.raises(KeyError):
        distances(square(), "z")


def test_route():
    assert route(square(), "a", "d") == ["a", "b", "c", "d"]


def test_route_to_itself():
    assert route(square(), "a", "a") == ["a"]


def test_no_route():
    assert route(house(), "a", "y") == []


def test_route_takes_the_first_of_equals():
    diamond = Graph([("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")])
    assert route(diamond, "a", "d") == ["a", "b", "d"]


def test_within():
    assert within(square(), "a", 3) == ["b", "c"]


def test_within_is_sorted_by_distance():
    assert within(Graph([("m", "a", 3), ("m", "z", 1)]), "m", 9) == ["z", "a"]


def test_within_nothing():
    assert within(square(), "d", 0) == []


def test_eccentricity():
    assert [eccentricity(square(), name) for name in "abcd"] == [4, 3, 3, 4]


def test_centre():
    assert centre(Graph([("a", "b"), ("b", "c"), ("c", "d"), ("d", "e")])) == "c"


def test_centre_of_equals():
    assert centre(square()) == "b"


def test_entering():
    assert entering(tasks()) == {"wash": 0, "cook": 2, "cut": 0, "eat": 2, "lay": 0}


def test_layers():
    assert layers(tasks()) == [["cut", "lay", "wash"], ["cook"], ["eat"]]


def test_layers_of_nothing():
    assert layers(Graph()) == []


def test_layers_stop_at_a_cycle():
    assert layers(Graph([("a", "b"), ("b", "c"), ("c", "b")], directed=True)) == [["a"]]


def test_topological():
    assert topological(tasks()) == ["cut", "lay", "wash", "cook", "eat"]


def test_topological_names_the_cycle():
    with pytest.raises(ValueError, match="a b a"):
        topological(Graph([("a", "b"), ("b", "a")], directed=True))


def test_no_cycle():
    assert cycle(tasks()) == []


def test_cycle_with_a_way_to_it():
    assert cycle(Graph([("a", "b"), ("b", "c"), ("c", "d"), ("d", "b")], directed=True)) == ["b", "c", "d", "b"]


def test_cycle_of_one():
    assert cycle(Graph([("a", "a")], directed=True)) == ["a", "a"]


def test_longest():
    assert longest(tasks()) == 7


def test_longest_of_nothing():
    assert longest(Graph()) == 0


def test_groups_join_once():
    groups = Groups()
    assert [groups.join("a", "b"), groups.join("b", "a")] == [True, False]


def test_groups_follow_chains():
    groups = Groups()
    groups.join("c", "d")
    groups.join("b", "c")
    groups.join("a", "b")
    assert {groups.find(name) for name in "abcd"} == {"a"}


def test_components():
    assert components(house()) == [["a", "b", "c", "d", "e"], ["x", "y"]]


def test_components_of_single_nodes():
    graph = Graph([("b", "c")])
    graph.node("a")
    assert components(graph) == [["b", "c"], ["a"]]


def test_spanning_leaves_out_the_heaviest():
    assert spanning(square()) == [("a", "b", 1), ("c", "d", 1), ("b", "c", 2)]


def test_spanning_of_two_components():
    assert len(spanning(house())) == 5


def test_bridges():
    assert bridges(house()) == [("c", "d"), ("d", "e"), ("x", "y")]


def test_ring_has_no_bridges():
    assert bridges(square()) == []
