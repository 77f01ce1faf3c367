import pytest
from textflow import align, columns, fill, justify, paragraphs, table, wrap
from textflow.align import spread
from textflow.columns import is_number
from textflow.wrap import chunks, words_of


def test_short_word_is_one_chunk():
    assert chunks("tree", 4) == ["tree"]


def test_long_word_is_hyphenated():
    assert chunks("abcdefg", 4) == ["abc-", "defg"]


def test_chunks_of_one_column_have_no_hyphen():
    assert chunks("abc", 1) == ["a", "b", "c"]


def test_words_are_broken_only_if_asked():
    assert words_of("a abcdef", 4) == ["a", "abc-", "def"]
    assert words_of("a abcdef", 4, breaks=False) == ["a", "abcdef"]


def test_word_as_wide_as_the_page_stays():
    assert words_of("abcd ef", 4) == ["abcd", "ef"]


def test_wrap_fills_lines():
    assert wrap("one two three four", 9) == ["one two", "three", "four"]


def test_wrap_uses_the_last_column():
    assert wrap("aa bb cc", 5) == ["aa bb", "cc"]


def test_wrap_of_nothing():
    assert wrap("   ", 5) == []


def test_wrap_takes_blanks_together():
    assert wrap("a    b", 9) == ["a b"]


def test_wrap_indents_the_first_line():
    assert wrap("aa bb cc", 6, indent=2) == ["  aa", "bb cc"]


def test_wrap_hangs_the_others():
    assert wrap("aa bb cc dd", 7, hanging=2) == ["aa bb", "  cc dd"]


def test_wrap_breaks_to_the_narrower_width():
    assert wrap("abcdefgh", 6, hanging=2) == ["abc-", "  def-", "  gh"]


def test_wrap_needs_a_column():
    with pytest.raises(ValueError, match="nothing fits"):
        wrap("a", 0)


def test_wrap_needs_room_beside_the_indent():
    with pytest.raises(ValueError, match="nothing fits"):
        wrap("a", 3, indent=3)


def test_wrap_in_one_column():
    assert wrap("ab c", 1) == ["a", "b", "c"]


def test_paragraphs_are_joined():
    assert paragraphs("a\nb\n\nc") == ["a b", "c"]


def test_many_empty_lines_separate_once():
    assert paragraphs("\n\na\n \n\n\nb\n\n") == ["a", "b"]


def test_no_paragraphs():
    assert paragraphs("") == []


def test_fill_keeps_paragraphs_apart():
    assert fill("aa bb\n\ncc", 3) == "aa\nbb\n\ncc"


def test_fill_with_a_wider_gap():
    assert fill("a\n\nb", 3, gap=2) == "a\n\n\nb"


def test_align_left():
    assert align("ab", 4) == "ab  "


def test_align_right():
    assert align("ab", 5, "right") == "   ab"


def test_centre_with_an_even_rest():
    assert align("ab", 6, "centre") == "  ab  "


def test_centre_with_an_odd_rest():
    assert align("ab", 5, "centre") == " ab  "


def test_align_leaves_long_lines():
    assert align("abcdef", 4, "right") == "abcdef"


def test_unknown_side():
    with pytest.raises(ValueError, match="no side"):
        align("a", 3, "top")


def test_spread_two_words():
    assert spread(["a", "b"], 5) == "a   b"


def test_spread_gives_the_rest_to_the_first_gaps():
    assert spread(["a", "b", "c"], 8) == "a   b  c"


def test_spread_of_one_word():
    assert spread(["abc"], 8) == "abc"


def test_justify_all_but_the_last():
    assert justify("a bb c dd e", 6) == ["a bb c", "dd e"]


def test_justify_stretches():
    assert justify("aa b cccc", 5) == ["aa  b", "cccc"]


def test_justify_puts_the_last_line_right():
    assert justify("aaa bbb c", 7, last="right") == ["aaa bbb", "      c"]


def test_justify_of_nothing():
    assert justify("", 7) == []


def test_columns_side_by_side():
    assert columns(["aa bb", "cc"], 6) == ["aa  cc", "bb"]


def test_columns_with_a_wide_gutter():
    assert columns(["a", "b"], 7, gutter=5) == ["a     b"]


def test_three_columns():
    assert columns(["a", "b c", "d"], 7) == ["a  b  d", "   c"]


def test_no_columns():
    assert columns([], 10) == []


def test_what_counts_as_number():
    assert [is_number(cell) for cell in ["12", "-3.5", "1.2.3", "x1", "-", ""]] == [True, True] + [False] * 4


def test_table_aligns_numbers_right():
    assert table([["a", "10"], ["bcd", "7"]]) == ["a    10", "bcd   7"]


def test_table_fills_short_rows():
    assert table([["a"], ["b", "c"]]) == ["a", "b  c"]


def test_table_underlines_its_header():
    assert table([["k", "v"], ["xx", "1"]], header=True) == ["k   v", "-----", "xx  1"]


def test_table_without_rows():
    assert table([]) == []
