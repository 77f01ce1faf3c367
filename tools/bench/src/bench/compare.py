"""Two runs side by side: claims that flipped, and figures that moved by more than their noise.

The rule, one for all: a figure with an interval has moved where its old and new intervals are disjoint, which for two
95 % intervals happens by chance in about one of 200 comparisons. A figure without an interval on both sides has moved
where it changed by more than FACTOR or changed sign; that is a convention, and the output says so.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.contract import FAILS, HOLDS
from bench.files import BenchError, parse_json
from bench.runs import load_runs, rows

FACTOR = 1.25
NOTHING = 1e-12  # two figures this small are both zero, whatever their ratio

Row = Mapping[str, Any]
Key = tuple[str, str, str]


@dataclass(frozen=True)
class Change:
    """One difference. `what` is one of the headings in ORDER; `worse` marks a claim that held and no longer does."""

    what: str
    package: str
    name: str
    old: str
    new: str
    why: str = ""
    worse: bool = False


ORDER = (
    "held, now fails",
    "held, now not measured",
    "held, now its evaluation broke",
    "failed, now holds",
    "verdict changed",
    "claim moved",
    "comparison moved",
    "metric moved",
    "new claim",
    "removed claim",
    "evaluation broke",
    "evaluation works again",
    "only in OLD",
    "only in NEW",
    "not like with like",
)


def read(path: Path) -> dict[Key, Row]:
    """The rows of a run folder or a results.jsonl, by kind, package and name."""
    found = list(rows(load_runs(path))) if path.is_dir() else list(_lines(path))
    result: dict[Key, Row] = {}
    for row in found:
        if _key(row) in result:
            raise BenchError(f"{path}: {' '.join(_key(row))} occurs twice; give one run of each package")
        result[_key(row)] = row
    return result


def compare(old: Mapping[Key, Row], new: Mapping[Key, Row]) -> list[Change]:
    """Every difference worth a look, the worst first."""
    changes = [*_runs(old, new), *_claims(old, new), *_figures(old, new)]
    return sorted(changes, key=lambda change: (ORDER.index(change.what), change.package, change.name))


def exit_code(changes: Sequence[Change]) -> int:
    """1 where a claim that held no longer does, else 0."""
    return int(any(change.worse for change in changes))


def as_json(changes: Sequence[Change]) -> str:
    """The differences and the factor they were found with, as JSON."""
    document = {"factor": FACTOR, "changes": [asdict(change) for change in changes]}
    return json.dumps(document, indent=2, ensure_ascii=False)


def _runs(old: Mapping[Key, Row], new: Mapping[Key, Row]) -> Iterator[Change]:
    for kind, package, _ in dict.fromkeys([*old, *new]):
        if kind != "run":
            continue
        before, after = old.get((kind, package, "")), new.get((kind, package, ""))
        if not before or not after:
            yield Change("only in OLD" if before else "only in NEW", package, "", "", "")
            continue
        for field in ("profile", "seed"):
            if before[field] != after[field]:
                yield Change("not like with like", package, field, str(before[field]), str(after[field]))
        if before["valid"] and not after["valid"]:
            yield Change("evaluation broke", package, "", "worked", after["status"], " ".join(after["problems"][:1]))
        elif after["valid"] and not before["valid"]:
            yield Change("evaluation works again", package, "", before["status"], "works")


def _claims(old: Mapping[Key, Row], new: Mapping[Key, Row]) -> Iterator[Change]:
    for key in dict.fromkeys([*old, *new]):
        kind, package, name = key
        runs = old.get(("run", package, "")), new.get(("run", package, ""))
        if kind != "claim" or not all(runs):
            continue
        before, after = old.get(key), new.get(key)
        if before and not after:
            if runs[1] and runs[1]["valid"]:
                yield Change("removed claim", package, name, _claim(before), "")
            elif before["verdict"] == HOLDS:
                yield Change("held, now its evaluation broke", package, name, _claim(before), "", worse=True)
        elif after and not before:
            if runs[0] and runs[0]["valid"]:
                yield Change("new claim", package, name, "", _claim(after))
        elif before and after:
            yield from _claim_change(before, after)


def _claim_change(before: Row, after: Row) -> Iterator[Change]:
    package, name, shown = before["package"], before["id"], (_claim(before), _claim(after))
    if before["verdict"] != after["verdict"]:
        if before["verdict"] == HOLDS:
            yield Change(f"held, now {after['verdict']}", package, name, *shown, worse=True)
        elif before["verdict"] == FAILS and after["verdict"] == HOLDS:
            yield Change("failed, now holds", package, name, *shown)
        else:
            yield Change("verdict changed", package, name, *shown)
    elif why := moved(before["measured"], after["measured"], before.get("ci"), after.get("ci")):
        yield Change("claim moved", package, name, *shown, why)


def _figures(old: Mapping[Key, Row], new: Mapping[Key, Row]) -> Iterator[Change]:
    for key, before in old.items():
        after = new.get(key)
        if not after:
            continue
        if key[0] == "metric":
            intervals = [_around(row["value"], row.get("spread")) for row in (before, after)]
            if why := moved(before["value"], after["value"], *intervals):
                trend = _trend(before["value"], after["value"], before.get("better"))
                yield Change("metric moved", key[1], key[2], _figure(before), _figure(after), f"{why}{trend}")
        elif key[0] == "comparison" and before["gain"] and after["gain"]:
            intervals = [_ratio_interval(row) for row in (before, after)]
            if why := moved(before["gain"], after["gain"], *intervals):
                trend = _trend(before["gain"], after["gain"], "higher")
                yield Change("comparison moved", key[1], key[2], _ratio(before), _ratio(after), f"{why}{trend}")


def moved(old: float | None, new: float | None, old_ci: Sequence[float] | None, new_ci: Sequence[float] | None) -> str:
    """Why a figure counts as moved beyond its noise; empty where it does not."""
    if old is None or new is None:
        return ""
    if old_ci and new_ci:
        return "intervals disjoint" if old_ci[1] < new_ci[0] or new_ci[1] < old_ci[0] else ""
    small, large = sorted((abs(old), abs(new)))
    if large <= NOTHING:
        return ""
    if old * new < 0:
        return "changed sign"
    return f"changed by more than {FACTOR}×" if large > FACTOR * small else ""


def _row_name(row: Row) -> str:
    return str(row.get("id") or row.get("name") or "")


def _ratio_interval(row: Row) -> tuple[float, float] | None:
    """The gain's interval: relative half-widths of two independent figures add in quadrature, on the log scale."""
    spreads = row.get("ours_spread"), row.get("peer_spread")
    if None in spreads:
        return None
    width = math.hypot(spreads[0] / row["ours"], spreads[1] / row["peer"])
    return row["gain"] * math.exp(-width), row["gain"] * math.exp(width)


def _around(value: float, spread: float | None) -> tuple[float, float] | None:
    return None if spread is None else (value - spread, value + spread)


def _trend(old: float, new: float, better: str | None) -> str:
    if not better:
        return ""
    return ", better" if (new > old) == (better == "higher") else ", worse"


def _claim(row: Row) -> str:
    if row["measured"] is None:
        return str(row["verdict"])
    interval = f" [{row['ci'][0]:.4g}, {row['ci'][1]:.4g}]" if row.get("ci") else ""
    return f"{row['verdict']}: {row['measured']:.4g}{interval}, test {row['test']['op']} {row['test']['value']:.4g}"


def _figure(row: Row) -> str:
    return f"{row['value']:.4g} {row.get('unit', '')}".strip()


def _ratio(row: Row) -> str:
    return f"{row['gain']:.3g}×"


def _key(row: Row) -> Key:
    peer = f" / {row['peer_name']}" if row["kind"] == "comparison" else ""
    return row["kind"], row["package"], _row_name(row) + peer


NEEDED = {
    "run": ("package", "profile", "seed", "valid", "status", "problems"),
    "claim": ("package", "id", "verdict", "measured", "test"),
    "metric": ("package", "name", "value"),
    "comparison": ("package", "name", "ours", "peer", "peer_name", "gain"),
}


def _lines(path: Path) -> Iterator[Row]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise BenchError(f"{path}: {error.strerror}; give a run folder or a results.jsonl") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        at = f"{path}, line {number}"
        try:
            row = parse_json(line)
        except ValueError as error:
            raise BenchError(f"{at}: {error}; want a results.jsonl that bench wrote") from None
        if not isinstance(row, dict) or row.get("kind") not in NEEDED:
            raise BenchError(f"{at}: no row of kind {', '.join(NEEDED)}; want a results.jsonl that bench wrote")
        if missing := [field for field in NEEDED[row["kind"]] if field not in row]:
            raise BenchError(f"{at}: has no {missing[0]}; want a results.jsonl that bench wrote")
        yield row
    if not any(line.strip() for line in lines):
        raise BenchError(f"{path}: is empty; want a results.jsonl that bench wrote")
