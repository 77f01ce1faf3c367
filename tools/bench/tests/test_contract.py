"""The contract: what the schema refuses, and that `holds` must follow from the claim's own numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.contract import follows, read_results

Make = Callable[..., dict[str, Any]]
EXPECTED = {"package": "p", "profile": "quick", "seed": 0}


def problems(folder: Path, document: object) -> list[str]:
    text = document if isinstance(document, str) else json.dumps(document)
    (folder / "results.json").write_text(text)
    return read_results(folder / "results.json", EXPECTED)[1]


def test_valid_results_have_no_problem(tmp_path: Path, claims: Make) -> None:
    assert problems(tmp_path, claims()) == []
    assert problems(tmp_path, claims(ci=[0.5, 1.5], n=3, unit="nat", note="", paper_value=2)) == []
    assert problems(tmp_path, {**claims(), "x-own": {"anything": [1]}}) == []


@pytest.mark.parametrize(
    ("op", "value", "ci", "holds"),
    [
        (">", 0.0, [0.1, 2.0], True), (">", 0.0, [0.0, 2.0], False), (">=", 0.0, [0.0, 2.0], True),
        ("<", 3.0, [0.1, 2.0], True), ("<", 1.5, [0.1, 2.0], False), ("<=", 2.0, [0.1, 2.0], True),
        ("==", 1.0, [1.0, 1.0], True), ("==", 1.0, [0.0, 2.0], False),
        ("!=", 3.0, [0.0, 2.0], True), ("!=", 1.5, [0.0, 2.0], False),
        (">", 0.5, None, True), (">", 1.0, None, False), ("==", 1.0, None, True), ("!=", 1.0, None, False),
    ],
)  # fmt: skip
def test_a_test_must_pass_on_the_whole_interval_and_a_lie_either_way_is_an_error(
    tmp_path: Path, claims: Make, op: str, value: float, ci: list[float] | None, holds: bool
) -> None:
    fields = {"ci": ci, "test": {"op": op, "value": value}}
    assert follows(claims(**fields)["claims"][0]) is holds
    assert problems(tmp_path, claims(**fields, holds=holds)) == []
    (lie,) = problems(tmp_path, claims(**fields, holds=not holds))
    assert lie.startswith("results.json /claims/0/holds: contradicts its own numbers: measured 1.0")
    assert lie.endswith(f"want {str(holds).lower()}")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"measured": None}, "/claims/0/holds: is true but measured is null; want false and a note that says why"),
        ({"measured": None, "holds": False}, "/claims/0/note: is empty but measured is null; want the reason"),
        ({"measured": "1"}, '/claims/0/measured: is "1"; want a number, or null where it could not be measured'),
        ({"measured": True}, "/claims/0/measured: is true; want a number"),
        ({"ci": [2, 1]}, "/claims/0/ci: is [2, 1]; want [low, high] with low <= high"),
        ({"ci": [1]}, "/claims/0/ci: is [1]; want the interval's two ends"),
        ({"n": 0}, "/claims/0/n: is 0; want a positive integer"),
        ({"n": 2.5}, "/claims/0/n: is 2.5; want a positive integer"),
        ({"test": {"op": "~", "value": 0}}, '/claims/0/test/op: is "~"; want one of > >= < <= == !='),
        ({"test": {"op": ">"}}, "/claims/0/test/value: is missing; want the number"),
        ({"meassured": 1}, '/claims/0/meassured: unknown key; did you mean "measured"?'),
        ({"statement": " "}, '/claims/0/statement: is " "; want the claim in one sentence'),
        ({"id": "a b"}, '/claims/0/id: is "a b"; want a short identifier'),
    ],
)
def test_each_mistake_is_told_with_its_place_and_its_cure(
    tmp_path: Path, claims: Make, fields: dict[str, Any], expected: str
) -> None:
    assert problems(tmp_path, claims(**fields))[0].startswith(f"results.json {expected}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "not JSON: Expecting property name"),
        ('{"a": 1, "a": 2}', 'the key "a" occurs twice'),
        ('{"claims": [{"measured": NaN}]}', "/claims/0/measured: nan is not a JSON number"),
        ('{"claims": [{"measured": -Infinity}]}', "/claims/0/measured: -inf is not a JSON number"),
        ('{"claims": [{"measured": 1e999}]}', "/claims/0/measured: inf is not a JSON number"),
        ('{"seed": 1' + "0" * 400 + "}", "/seed: the number has 401 digits"),
        ('{"x-a": "\\ud800"}', "/x-a: the text holds a lone surrogate"),
        ("[" * 100_000, "nested too deep"),
        ("[]", "/: is []; want an object with schema, package"),
    ],
)
def test_what_is_not_strict_json_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in problems(tmp_path, text)[0]


def test_results_of_another_run_are_refused(tmp_path: Path, claims: Make) -> None:
    assert problems(tmp_path, {**claims(), "seed": 1}) == [
        "results.json /seed: is 1; want 0, what this run asked for"
    ]  # fmt: skip


def test_claim_ids_and_names_occur_once(tmp_path: Path, claims: Make) -> None:
    document = claims()
    document["claims"] *= 2
    document["metrics"] = [{"name": "a", "value": 1}, {"name": "a", "value": 2}]
    found = problems(tmp_path, document)
    assert 'results.json /claims/1/id: "one" is also the id of /claims/0; want each id once' in found
    assert any("/metrics/1/name" in problem for problem in found)


@pytest.mark.parametrize("path", ["/etc/hostname", "../secret", "a/../../secret", "link", "missing", ".", "a\0b"])
def test_artifacts_are_existing_files_inside_the_folder(tmp_path: Path, claims: Make, path: str) -> None:
    folder = tmp_path / "out"
    (folder / "a").mkdir(parents=True)
    (tmp_path / "secret").write_text("s")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "fine.txt").write_text("f")
    assert problems(folder, {**claims(), "artifacts": [{"path": "fine.txt", "title": "t"}]}) == []
    (problem,) = problems(folder, {**claims(), "artifacts": [{"path": path, "title": "t"}]})
    assert problem.startswith("results.json /artifacts/0/path: ")
    assert "want" in problem
