import pytest
from spans import Span, SpanSet, format_spans, parse_spans
from spans.span import merged


def test_length():
    assert len(Span(2, 7)) == 5


def test_ends_before_it_starts():
    with pytest.raises(ValueError, match="before 4"):
        Span(4, 3)


def test_start_is_inside_and_stop_is_not():
    span = Span(2, 4)
    assert [value in span for value in (1, 2, 3, 4)] == [False, True, True, False]


def test_neighbours_touch():
    assert Span(1, 3).touches(Span(3, 5))
    assert Span(3, 5).touches(Span(1, 3))


def test_distant_spans_do_not_touch():
    assert not Span(1, 3).touches(Span(4, 5))
    assert not Span(4, 5).touches(Span(1, 3))


def test_overlap():
    assert Span(1, 5).overlap(Span(3, 9)) == Span(3, 5)


def test_neighbours_do_not_overlap():
    assert Span(1, 3).overlap(Span(3, 5)) is None


def test_shifted():
    assert Span(1, 3).shifted(-4) == Span(-3, -1)


def test_split_inside():
    assert Span(1, 5).split(3) == (Span(1, 3), Span(3, 5))


def test_split_before():
    assert Span(3, 5).split(1) == (Span(3, 3), Span(3, 5))


def test_split_after():
    assert Span(3, 5).split(9) == (Span(3, 5), Span(5, 5))


def test_merging_sorts():
    assert merged([Span(5, 6), Span(1, 2)]) == [Span(1, 2), Span(5, 6)]


def test_merging_neighbours():
    assert merged([Span(1, 3), Span(3, 4)]) == [Span(1, 4)]


def test_merging_keeps_the_longer_one():
    assert merged([Span(1, 9), Span(2, 4)]) == [Span(1, 9)]


def test_merging_drops_empty_ones():
    assert merged([Span(4, 4)]) == []


def test_set_of_pairs():
    assert SpanSet([(4, 6), Span(1, 2)]).spans == [Span(1, 2), Span(4, 6)]


def test_size_of_a_set():
    assert len(SpanSet([(0, 3), (5, 7)])) == 5


def test_numbers_of_a_set():
    assert list(SpanSet([(0, 2), (5, 7)])) == [0, 1, 5, 6]


def test_membership():
    numbers = SpanSet([(0, 2), (5, 7)])
    assert [value for value in range(-1, 9) if value in numbers] == [0, 1, 5, 6]


def test_nothing_is_in_an_empty_set():
    assert 0 not in SpanSet()


def test_union():
    assert SpanSet([(0, 3)]) | SpanSet([(2, 5), (8, 9)]) == SpanSet([(0, 5), (8, 9)])


def test_intersection():
    assert SpanSet([(0, 5), (8, 12)]) & SpanSet([(3, 10)]) == SpanSet([(3, 5), (8, 10)])


def test_intersection_goes_on_after_the_shorter():
    assert SpanSet([(0, 10)]) & SpanSet([(1, 2), (4, 6), (9, 20)]) == SpanSet([(1, 2), (4, 6), (9, 10)])


def test_no_intersection():
    assert len(SpanSet([(0, 5)]) & SpanSet([(5, 6)])) == 0


def test_difference_cuts_a_hole():
    assert SpanSet([(0, 10)]) - SpanSet([(3, 5)]) == SpanSet([(0, 3), (5, 10)])


def test_difference_cuts_many():
    assert SpanSet([(0, 4), (6, 9)]) - SpanSet([(1, 2), (3, 7)]) == SpanSet([(0, 1), (2, 3), (7, 9)])


def test_difference_of_everything():
    assert SpanSet([(2, 4)]) - SpanSet([(0, 9)]) == SpanSet()


def test_gaps():
    assert SpanSet([(0, 2), (4, 5), (9, 10)]).gaps() == [Span(2, 4), Span(5, 9)]


def test_bounds():
    assert SpanSet([(4, 5), (9, 12)]).bounds() == Span(4, 12)


def test_bounds_of_nothing():
    assert SpanSet().bounds() is None


def test_nearest_inside():
    assert SpanSet([(2, 6)]).nearest(4) == 4


def test_nearest_outside():
    numbers = SpanSet([(0, 3), (9, 12)])
    assert [numbers.nearest(value) for value in (-5, 4, 8, 40)] == [0, 2, 9, 11]


def test_nearest_of_two_is_the_smaller():
    assert SpanSet([(0, 3), (6, 8)]).nearest(4) == 2


def test_nearest_of_nothing():
    assert SpanSet().nearest(3) is None


def test_free_before_everything():
    assert SpanSet([(5, 9)]).first_free(5) == 0


def test_free_in_a_gap():
    assert SpanSet([(0, 2), (4, 6), (9, 12)]).first_free(3) == 6


def test_free_from_a_start():
    assert SpanSet([(0, 2), (4, 6)]).first_free(2, start=3) == 6


def test_free_at_the_end():
    assert SpanSet([(0, 4), (5, 7)]).first_free(2) == 7


def test_parse_numbers_and_ranges():
    assert parse_spans("1-3, 7") == SpanSet([(1, 4), (7, 8)])


def test_parse_an_open_start():
    assert parse_spans("-2") == SpanSet([(0, 3)])


def test_parse_an_open_end():
    assert parse_spans("7-", last=9) == SpanSet([(7, 10)])


def test_open_end_needs_the_last():
    with pytest.raises(ValueError, match="no end"):
        parse_spans("7-")


def test_parse_ignores_empty_parts():
    assert parse_spans("1,,2,") == SpanSet([(1, 3)])


def test_format():
    assert format_spans(SpanSet([(1, 2), (4, 6), (8, 12)])) == "1,4,5,8-11"


def test_format_and_parse_are_inverse():
    numbers = SpanSet([(0, 3), (5, 6), (8, 10), (20, 30)])
    assert parse_spans(format_spans(numbers)) == numbers
