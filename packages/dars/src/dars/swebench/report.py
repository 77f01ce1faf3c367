"""What a run over instances came to: resolved by the answer, by any candidate, and what it cost."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from ..errors import TaskError
from ..interop.predictions import write_predictions
from ..models.base import add_costs
from .runner import ERROR, RESULT

SUFFIX = "--candidate-"


@dataclass(frozen=True)
class Report:
    """Of one run.

    Attributes
    ----------
    rows : of every instance: instance_id, resolved, resolved_any, steps, calls, cost_usd, exit_reason. resolved is None
        where it was not graded; resolved_any where a further candidate was not, and none resolves.
    summary : instances, failed, resolved, resolved_any, cost_usd, cost_per_resolved.
    """

    rows: tuple[dict[str, Any], ...]
    summary: dict[str, Any]

    def table(self) -> str:
        """As Markdown."""
        names = ("instance_id", "resolved", "resolved_any", "steps", "calls", "cost_usd", "exit_reason")
        lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
        lines += ["| " + " | ".join(_cell(row[name]) for name in names) + " |" for row in self.rows]
        facts = ", ".join(f"{name} {_cell(value)}" for name, value in self.summary.items())
        return "\n".join([*lines, "", facts]) + "\n"


def candidate_predictions(folder: str | Path) -> list[Path]:
    """Predictions of the further candidates: ``candidates-k.jsonl`` holds the k-th of every instance that has one.

    The harness grades one patch of an instance in a run, so each file is to be evaluated by itself.
    """
    folder = Path(folder)
    ranked: dict[int, list[dict[str, str]]] = {}
    for result in _results(folder):
        for k, patch in enumerate(result.get("others", ()), start=1):
            name = f"{result['model_name_or_path']}{SUFFIX}{k}"
            row = {"instance_id": result["instance_id"], "model_name_or_path": name, "model_patch": patch}
            ranked.setdefault(k, []).append(row)
    paths = []
    for k, rows in sorted(ranked.items()):
        paths.append(folder / f"candidates-{k}.jsonl")
        write_predictions(rows, paths[-1])
    return paths


def report(folder: str | Path, run_id: str | None = None) -> Report:
    """Results of a run with the verdicts that :func:`evaluate` left in its ``evaluation`` folder.

    ``resolved_any`` (any candidate resolves) is not pass@k, whose samples would be independent.

    Parameters
    ----------
    run_id : of the evaluation; None where there is one only, or none yet.

    Raises
    ------
    TaskError
        The folder holds no results; there are evaluations of several ids and none was chosen.
    """
    folder = Path(folder)
    results = _results(folder)
    errors = {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob(f"*/{ERROR}"))}
    if not results and not errors:
        raise TaskError(f"{folder} holds no results of instances")
    verdicts = _verdicts(folder / "evaluation", run_id)
    rows = []
    for result in results:
        identity = result["instance_id"]
        name = str(result["model_name_or_path"]).replace("/", "__")
        own = _verdict(verdicts, name, identity, result["model_patch"])
        others = [
            _verdict(verdicts, f"{name}{SUFFIX}{k}", identity, patch)
            for k, patch in enumerate(result.get("others", ()), start=1)
        ]
        every = [own, *others]
        some = True if True in every else None if None in every else False
        spent = {key: result.get(key) for key in ("steps", "calls", "cost_usd", "exit_reason")}
        rows.append({"instance_id": identity, "resolved": own, "resolved_any": some, **spent})
    for identity in errors.keys() - {row["instance_id"] for row in rows}:
        failed = dict.fromkeys(("resolved", "resolved_any"), False)
        rows.append(
            {"instance_id": identity, **failed, "steps": None, "calls": None, "cost_usd": None}
            | {"exit_reason": errors[identity]["error"]}
        )
    rows.sort(key=lambda row: str(row["instance_id"]))
    nothing: float | None = 0.0
    cost = reduce(add_costs, (result.get("cost_usd") for result in results), nothing)
    resolved = _count(rows, "resolved")
    summary = {
        "instances": len(rows), "failed": len(rows) - len(results), "resolved": resolved,
        "resolved_any": _count(rows, "resolved_any"), "cost_usd": cost,
        "cost_per_resolved": cost / resolved if cost is not None and resolved else None,
    }  # fmt: skip
    return Report(tuple(rows), summary)


def _results(folder: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"*/{RESULT}"))]
    except ValueError as error:
        raise TaskError(f"a {RESULT} in {folder} is damaged: {error}") from error


def _verdicts(folder: Path, run_id: str | None) -> dict[str, dict[str, Any]]:
    """Official reports by model name."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        name, _, identity = path.stem.rpartition(".")
        if run_id is not None and identity != run_id:
            continue
        if name in found:
            raise TaskError(f"{folder} holds several evaluations of {name}: name one by its run_id")
        found[name] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _verdict(verdicts: dict[str, dict[str, Any]], name: str, identity: str, patch: str) -> bool | None:
    if not patch:
        return False
    graded = verdicts.get(name)
    if graded is None or identity not in graded["submitted_ids"]:
        return None
    return identity in graded["resolved_ids"]


def _count(rows: list[dict[str, Any]], name: str) -> int | None:
    """How many are true; None where some are unknown."""
    values = [row[name] for row in rows]
    return None if None in values else sum(values)


def _cell(value: Any) -> str:
    if value is None:
        return "?"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("\n", " ")[:120]
