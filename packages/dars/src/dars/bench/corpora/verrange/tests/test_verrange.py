import pytest
from verrange import Version, conflicts, parse_range, parse_version, pick, upgrade
from verrange.plan import step
from verrange.version import compare, compare_parts

KNOWN = ["0.9.0", "1.0.0", "1.2.0", "1.2.5", "1.3.0-rc.1", "1.3.0", "2.0.0-beta", "2.0.0", "2.1.0"]


def allowed(text):
    found = parse_range(text)
    return [version for version in KNOWN if found.allows(parse_version(version))]


def test_parse_three_numbers():
    assert parse_version("1.2.3").numbers() == (1, 2, 3)


def test_missing_numbers_are_zero():
    assert parse_version("4").numbers() == (4, 0, 0)


def test_parse_a_pre_release():
    version = parse_version("v1.2.3-rc.1+b5")
    assert (version.pre, version.build) == ("rc.1", "b5")


def test_no_version():
    with pytest.raises(ValueError, match="no version"):
        parse_version("one")


def test_text_of_a_version():
    assert str(Version(1, 2, 3, "rc.1", "b5")) == "1.2.3-rc.1+b5"


def test_order_of_numbers():
    assert parse_version("1.9.0") < parse_version("1.10.0")


def test_order_of_majors():
    assert parse_version("2.0.0") > parse_version("1.99.99")


def test_pre_release_comes_first():
    assert parse_version("1.0.0-rc.1") < parse_version("1.0.0")
    assert parse_version("1.0.0") > parse_version("1.0.0-rc.1")


def test_build_does_not_count():
    assert parse_version("1.0.0+a") == parse_version("1.0.0+b")


def test_numeric_parts():
    assert compare_parts("9", "10") == -1


def test_numbers_before_names():
    assert (compare_parts("1", "alpha"), compare_parts("alpha", "1")) == (-1, 1)


def test_names_by_letters():
    assert (compare_parts("beta", "alpha"), compare_parts("rc", "rc")) == (1, 0)


def test_longer_pre_release_is_later():
    assert compare(parse_version("1.0.0-a.1"), parse_version("1.0.0-a")) == 1


def test_later_part_of_a_pre_release():
    assert compare(parse_version("1.0.0-a.2"), parse_version("1.0.0-a.11")) == -1


def test_bump_major():
    assert str(parse_version("1.2.3").bump("major")) == "2.0.0"


def test_bump_minor():
    assert str(parse_version("1.2.3").bump("minor")) == "1.3.0"


def test_bump_patch():
    assert str(parse_version("1.2.3").bump("patch")) == "1.2.4"


def test_bump_of_a_pre_release_is_its_release():
    assert str(parse_version("1.2.3-rc.1").bump("patch")) == "1.2.3"


def test_exact():
    assert allowed("1.2.0") == ["1.2.0"]


def test_equals_sign():
    assert allowed("=2.1") == ["2.1.0"]


def test_at_least():
    assert allowed(">=1.3") == ["1.3.0", "2.0.0", "2.1.0"]


def test_more_than():
    assert allowed("> 2.0.0") == ["2.1.0"]


def test_less_than():
    assert allowed("<1.0.0") == ["0.9.0"]


def test_at_most():
    assert allowed("<=1.0.0") == ["0.9.0", "1.0.0"]


def test_both_bounds():
    assert allowed(">=1.2 <2") == ["1.2.0", "1.2.5", "1.3.0"]


def test_dash_includes_both_ends():
    assert allowed("1.0.0 - 1.2.5") == ["1.0.0", "1.2.0", "1.2.5"]


def test_alternatives():
    assert allowed("<1 || >=2.1") == ["0.9.0", "2.1.0"]


def test_caret():
    assert allowed("^1.2.0") == ["1.2.0", "1.2.5", "1.3.0"]


def test_caret_below_one():
    found = parse_range("^0.3.1")
    assert [found.allows(parse_version(v)) for v in ("0.3.0", "0.3.1", "0.3.9", "0.4.0")] == [False, True, True, False]


def test_caret_of_a_patch():
    found = parse_range("^0.0.3")
    assert [found.allows(parse_version(v)) for v in ("0.0.2", "0.0.3", "0.0.4")] == [False, True, False]


def test_tilde_with_a_minor():
    assert allowed("~1.2.0") == ["1.2.0", "1.2.5"]


def test_tilde_with_a_major():
    assert allowed("~1") == ["1.0.0", "1.2.0", "1.2.5", "1.3.0"]


def test_wildcard_of_everything():
    assert len(allowed("*")) == 7


def test_wildcard_of_a_major():
    assert allowed("2.x") == ["2.0.0", "2.1.0"]


def test_wildcard_of_a_minor():
    assert allowed("1.2.*") == ["1.2.0", "1.2.5"]


def test_named_pre_release():
    assert allowed(">=1.3.0-rc.0 <2") == ["1.3.0-rc.1", "1.3.0"]


def test_pick_the_newest():
    assert pick(KNOWN, ["^1.0.0"]) == "1.3.0"


def test_pick_the_oldest():
    assert pick(KNOWN, [">=1.0.0"], oldest=True) == "1.0.0"


def test_pick_for_several():
    assert pick(KNOWN, [">=1.2", "<1.3"]) == "1.2.5"


def test_pick_nothing():
    assert pick(KNOWN, ["^3"]) is None


def test_conflicts():
    assert conflicts(KNOWN, {"a": "^1.0", "b": ">=2", "c": "<=2.0"}) == [("a", "b")]


def test_steps():
    old = Version(1, 2, 3)
    found = [step(old, new) for new in (Version(2), Version(1, 3), Version(1, 2, 4), Version(1, 2, 3))]
    assert found == ["major", "minor", "patch", "none"]


def test_upgrade_within_a_major():
    assert upgrade("1.0.0", KNOWN) == "1.3.0"


def test_upgrade_to_anything():
    assert upgrade("1.0.0", KNOWN, most="major") == "2.1.0"


def test_upgrade_of_patches():
    assert upgrade("1.2.0", KNOWN, most="patch") == "1.2.5"


def test_upgrade_of_the_newest():
    assert upgrade("2.1.0", KNOWN, most="major") == "2.1.0"
