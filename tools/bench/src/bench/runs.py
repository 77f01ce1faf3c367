"""A finished run as it lies on disk: DIR/<package>/run.json and results.json, read and judged again each time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.contract import FAILS, HOLDS, NOT_MEASURED, read_results, schema_problems, verdict
from bench.files import BenchError, parse_json


@dataclass(frozen=True)
class Run:
    """One package's run. `results` is None where there are none to trust; `problems` says why, a line each."""

    name: str
    folder: Path
    record: Mapping[str, Any]
    results: Mapping[str, Any] | None
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What a run comes to: whether the evaluation itself worked, and how its claims stand."""

    valid: bool
    word: str
    holds: int
    fails: int
    not_measured: int


def load_runs(folder: Path) -> list[Run]:
    """All runs in a run folder, by package name."""
    if not folder.is_dir():
        raise BenchError(f"{folder}: is no folder; give one that `bench run --out` wrote")
    found = [load_run(path.parent) for path in sorted(folder.glob("*/run.json"))]
    if not found:
        raise BenchError(f"{folder}: holds no runs (no */run.json); give a folder that `bench run --out` wrote")
    return found


def load_run(folder: Path) -> Run:
    """Read one run.

    Raises:
        BenchError: when its run.json is not one that bench wrote.
    """
    path = folder / "run.json"
    try:
        record = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BenchError(f"{path}: {error}; run the package again") from None
    if problems := schema_problems(record, "run.schema.json"):
        raise BenchError(f"{path}: {problems[0]}; run the package again")
    if record["status"] != "finished":
        return Run(folder.name, folder, record, None, (_why(record),))
    expected = {"package": record["distribution"], "profile": record["profile"], "seed": record["seed"]}
    results, problems = read_results(folder / "results.json", expected)
    return Run(folder.name, folder, record, results, tuple(problems))


def outcome(run: Run) -> Outcome:
    """Judge a run. Where the evaluation broke, no claim counts: its figures cannot be trusted."""
    if run.problems:
        word = run.record["status"] if run.record["status"] != "finished" else "invalid results"
        return Outcome(False, word, 0, 0, 0)
    verdicts = [verdict(claim) for claim in claims(run)]
    holds, fails, missing = (verdicts.count(word) for word in (HOLDS, FAILS, NOT_MEASURED))
    if fails:
        word = f"{fails} of {len(verdicts)} fails" if fails == 1 else f"{fails} of {len(verdicts)} fail"
    elif missing:
        word = f"{missing} of {len(verdicts)} not measured"
    else:
        word = "all hold" if verdicts else "no claims"
    return Outcome(True, word, holds, fails, missing)


def claims(run: Run) -> Sequence[Mapping[str, Any]]:
    """The claims of a valid run; none of a broken one."""
    return run.results["claims"] if run.results and not run.problems else ()


def version(run: Run) -> str:
    """The version that the results name, else the installed one; empty where unknown."""
    return str((run.results or {}).get("version") or run.record.get("package_version") or "")


def exit_code(runs: Sequence[Run]) -> int:
    """0 where every claim holds, 1 where one does not (a claim that was not measured does not), 2 where a run broke."""
    outcomes = [outcome(run) for run in runs]
    if not all(item.valid for item in outcomes):
        return 2
    return 1 if any(item.fails or item.not_measured for item in outcomes) else 0


def rows(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """The lines of results.jsonl: one per run, claim, metric and comparison, each with where it comes from."""
    for run in runs:
        common = {
            "package": run.name,
            "version": version(run),
            "profile": run.record["profile"],
            "seed": run.record["seed"],
            "commit": run.record.get("git", {}).get("commit"),
        }
        judged = outcome(run)
        yield {
            "kind": "run",
            **common,
            "status": run.record["status"],
            "valid": judged.valid,
            "wall_s": run.record.get("wall_s"),
            "peak_memory_bytes": run.record.get("peak_memory_bytes"),
            "problems": list(run.problems),
        }
        if run.results is None or not judged.valid:
            continue
        for claim in run.results["claims"]:
            yield {"kind": "claim", **common, **claim, "verdict": verdict(claim)}
        for metric in run.results["metrics"]:
            yield {"kind": "metric", **common, **metric}
        for comparison in run.results["comparisons"]:
            yield {"kind": "comparison", **common, **comparison, "gain": gain(comparison)}


def gain(comparison: Mapping[str, Any]) -> float | None:
    """How many times better than the peer, below 1 where worse; None where the figures have no ratio."""
    ours, peer = comparison["ours"], comparison["peer"]
    if ours <= 0 or peer <= 0:
        return None
    return float(ours / peer if comparison["better"] == "higher" else peer / ours)


def _why(record: Mapping[str, Any]) -> str:
    detail = record.get("detail", "")
    if record["status"] == "running":
        detail = "no end is recorded: it still runs, or bench itself was killed"
    return f"{record['status']}: {detail}" if detail else str(record["status"])
