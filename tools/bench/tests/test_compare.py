"""Comparison of two runs: what flipped, what moved beyond noise, and what is noise."""

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import Repository, bench

from bench.compare import moved

COMMON = {"package": "p", "version": "1", "profile": "quick", "seed": 0, "commit": None}
RUN = {"kind": "run", **COMMON, "status": "finished", "valid": True, "problems": []}


def claim(id: str = "one", verdict: str = "holds", measured: float | None = 1.0, **more: Any) -> dict[str, Any]:
    test = {"op": ">", "value": 0.0}
    return {"kind": "claim", **COMMON, "id": id, "verdict": verdict, "measured": measured, "test": test, **more}


def ratio(gain: float, **more: Any) -> dict[str, Any]:
    figures = {"ours": 1.0, "peer": gain, "peer_name": "peer", "gain": gain}
    return {"kind": "comparison", **COMMON, "name": "fit", **figures, "better": "lower", **more}


def metric(value: float, **more: Any) -> dict[str, Any]:
    return {"kind": "metric", **COMMON, "name": "m", "value": value, "better": "higher", **more}


def changes(folder: Path, old: list[dict[str, Any]], new: list[dict[str, Any]]) -> tuple[int, list[str]]:
    for name, rows in (("old", old), ("new", new)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = bench("compare", str(folder / "old"), str(folder / "new"), "--json")
    return done.returncode, [change["what"] for change in json.loads(done.stdout)["changes"]]


BROKEN = {**RUN, "valid": False, "status": "crashed", "problems": ["exit code 1"]}


@pytest.mark.parametrize(
    ("old", "new", "code", "what"),
    [
        ([claim()], [claim()], 0, []),
        ([claim()], [claim(verdict="fails", measured=-1.0)], 1, ["held, now fails"]),
        ([claim()], [claim(verdict="not measured", measured=None)], 1, ["held, now not measured"]),
        ([claim(verdict="fails", measured=-1.0)], [claim()], 0, ["failed, now holds"]),
        ([claim()], [claim(), claim("two")], 0, ["new claim"]),
        ([claim(), claim("two")], [claim()], 0, ["removed claim"]),
        ([claim(ci=[0.9, 1.1])], [claim(measured=1.3, ci=[1.2, 1.4])], 0, ["claim moved"]),
        ([claim(ci=[0.5, 1.5])], [claim(measured=1.4, ci=[1.2, 1.6])], 0, []),
        ([claim()], [claim(measured=1.2)], 0, []),
        ([claim()], [claim(measured=1.3)], 0, ["claim moved"]),
        ([ratio(3.0)], [ratio(3.5)], 0, []),
        ([ratio(3.0)], [ratio(2.0)], 0, ["comparison moved"]),
        ([ratio(3.0, ours_spread=0.5, peer_spread=0.5)], [ratio(2.0, ours_spread=0.5, peer_spread=0.5)], 0, []),
        ([ratio(3.0, ours_spread=0.01, peer_spread=0.01)], [ratio(2.8, ours_spread=0.01, peer_spread=0.01)], 0,
         ["comparison moved"]),
        ([metric(10.0)], [metric(13.0)], 0, ["metric moved"]),
        ([metric(10.0, spread=2)], [metric(13.0, spread=2)], 0, []),
    ],
)  # fmt: skip
def test_flips_and_moves_are_told_and_noise_is_not(
    tmp_path: Path, old: list[dict[str, Any]], new: list[dict[str, Any]], code: int, what: list[str]
) -> None:
    assert changes(tmp_path, [RUN, *old], [RUN, *new]) == (code, what)


def test_a_broken_evaluation_takes_its_held_claims_down(tmp_path: Path) -> None:
    found = changes(tmp_path, [RUN, claim()], [BROKEN])
    assert found == (1, ["held, now its evaluation broke", "evaluation broke"])
    assert changes(tmp_path, [BROKEN], [RUN, claim()]) == (0, ["evaluation works again"])


def test_a_package_that_was_not_run_is_not_a_regression(tmp_path: Path) -> None:
    other = {**RUN, "package": "q"}
    assert changes(tmp_path, [RUN, claim(), other], [other]) == (0, ["only in OLD"])


def test_different_profiles_are_pointed_out(tmp_path: Path) -> None:
    assert changes(tmp_path, [RUN], [{**RUN, "profile": "full"}]) == (0, ["not like with like"])


def test_no_move_without_a_change_and_none_from_rounding_about_zero() -> None:
    assert moved(0.0, 0.0, None, None) == ""
    assert moved(1e-17, -1e-17, None, None) == ""
    assert moved(1.0, -1.0, None, None) == "changed sign"
    assert moved(0.0, 1.0, None, None) == "changed by more than 1.25×"


def test_run_folders_are_compared_and_the_text_states_the_rule(finished: Repository) -> None:
    done = bench("compare", str(finished.out), str(finished.out / "results.jsonl"))
    assert done.returncode == 0
    assert "without two intervals, a change by more than 1.25×" in done.stdout
    assert "Nothing changed beyond noise." in done.stdout


def test_unusable_input_is_one_line(tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.write_text(json.dumps(RUN) + "\n")
    cases = {
        "{": "line 1: not JSON",
        "": "is empty; want a results.jsonl that bench wrote",
        '{"kind": "claim", "package": "p"}': "line 1: has no id",
        "[]": "line 1: no row of kind",
        "\n".join([json.dumps(RUN)] * 2): "run p  occurs twice",
    }
    for text, told in cases.items():
        bad = tmp_path / "bad"
        bad.write_text(text)
        done = bench("compare", str(good), str(bad))
        assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
        assert " ".join(told.split()) in done.stderr, done.stderr
    assert bench("compare", str(good), str(tmp_path / "no")).returncode == 2
