"""A linear model of what candidates that resolve their issue have in common, kept as JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..candidates import Candidate
from ..errors import TaskError
from ..patches import changes
from ..storage import write_atomic
from .base import Case, Review
from .execution import ExecutionReviewer
from .labels import Labelled

FORMAT = "dars-reviewer/1"
FEATURES = {
    "lines_added": "ln(1 + added lines)",
    "lines_removed": "ln(1 + removed lines)",
    "files": "ln(files of the patch)",
    "new_files": "files that the patch creates",
    "multiplicity": "share of all paths that end in this patch",
    "submitted": "1 if a path submitted it, 0 if it was only harvested",
    "depth": "ln(1 + actions that led to it)",
    "issue_words": "share of the identifiers on changed lines that stand in the issue too",
    "issue_files": "share of its files whose module or name stands in the issue",
    "left_scratch": "1 if cleaning took scripts or tests out",
    "scripts": "weighted share of the reproduction scripts that pass (M and w of the execution reviewer)",
    "class": "share of the candidates that the scripts cannot tell from it",
    "broken": "ln(1 + visible tests that it breaks)",
    "breaks": "1 if it breaks one, or does not apply",
}
WORD = re.compile(r"[A-Za-z_]\w{2,}")

Array = NDArray[np.float64]


class LearnedReviewer:
    """score = sum of coefficient * feature, features as differences from the mean of the case's candidates.

    Parameters
    ----------
    coefficients : by name, of :data:`FEATURES`.
    execution : makes the matrix that some features are read from.
    """

    name = "learned"

    def __init__(self, coefficients: Mapping[str, float], execution: ExecutionReviewer | None = None) -> None:
        if set(coefficients) != set(FEATURES):
            other = ", ".join(sorted(set(coefficients) ^ set(FEATURES)))
            raise TaskError(f"the model was fitted to other features ({other}): fit it again")
        self.coefficients = {name: float(coefficients[name]) for name in FEATURES}
        self.execution = execution or ExecutionReviewer()

    def review(self, case: Case) -> Review:
        """Judge; the evidence holds every feature and what it adds to the score."""
        if not case.candidates:
            return Review((), {"candidates": []})
        evidence = self.execution.review(case).evidence
        depths = [case.tree.nodes[candidate.node_id].depth for candidate in case.candidates]
        raw = features(case.task.issue, case.candidates, depths, evidence)
        parts = self._parts(raw)
        told = [
            {
                "node": candidate.node_id,
                "features": dict(zip(FEATURES, map(float, values), strict=True)),
                "parts": dict(zip(FEATURES, map(float, added), strict=True)),
            }
            for candidate, values, added in zip(case.candidates, raw, parts, strict=True)
        ]
        return Review(tuple(map(float, parts.sum(axis=1))), {"candidates": told, "execution": dict(evidence)})

    def scores(self, case: Labelled) -> list[float]:
        """Of a case whose execution is known already, such as a held-out one; the labels are not looked at."""
        parts = self._parts(features(case.issue, case.candidates, case.depths, case.execution))
        return [float(score) for score in parts.sum(axis=1)]

    def _parts(self, raw: Array) -> Array:
        """What every feature adds to the scores: (candidates, features)."""
        return (raw - raw.mean(axis=0)) * np.array(list(self.coefficients.values()))

    def save(self, path: str | Path) -> None:
        """Write the model as JSON."""
        value = {"format": FORMAT, "coefficients": self.coefficients}
        write_atomic(Path(path), json.dumps(value, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path, execution: ExecutionReviewer | None = None) -> LearnedReviewer:
        """Read a model; TaskError if the file is missing, damaged or of other features."""
        try:
            value = json.loads(Path(path).read_text(encoding="utf-8"))
            if value["format"] != FORMAT:
                raise TaskError(f"{path} has the format {value['format']}; this version reads {FORMAT}")
            numbers = {str(name): float(number) for name, number in value["coefficients"].items()}
        except OSError as error:
            raise TaskError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError):
            raise TaskError(f"{path} is no model of a reviewer: make one with dars reviewer fit") from None
        if not all(map(math.isfinite, numbers.values())):
            raise TaskError(f"{path} holds coefficients that are no numbers: fit it again")
        return cls(numbers, execution)


def fit(cases: Iterable[Labelled], strength: float = 1.0) -> LearnedReviewer:
    """Logistic regression on the candidates of the cases that have both resolving and other ones.

    Features are centred within each case, since only differences between candidates of one issue can choose among
    them; scaled to unit variance over all; and every case counts the same.

    Parameters
    ----------
    strength : inverse of the penalty on squared coefficients (C of scikit-learn).

    Raises
    ------
    TaskError
        No such case, or scikit-learn is missing.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise TaskError("fitting a reviewer needs scikit-learn: pip install 'dars-agent[bench]'") from error
    mixed = [case for case in cases if case.mixed]
    if not mixed:
        raise TaskError("no case has both candidates that resolve its issue and others: there is nothing to learn")
    blocks = [features(case.issue, case.candidates, case.depths, case.execution) for case in mixed]
    x = np.concatenate([block - block.mean(axis=0) for block in blocks])
    y = np.concatenate([case.resolved for case in mixed])
    weights = np.concatenate([np.full(len(block), 1 / len(block)) for block in blocks])
    scale = x.std(axis=0)
    scale[scale == 0] = 1.0  # the same in every case: its coefficient stays 0
    model = LogisticRegression(C=strength, max_iter=1000).fit(x / scale, y, weights * len(y) / weights.sum())
    return LearnedReviewer(dict(zip(FEATURES, (model.coef_[0] / scale).tolist(), strict=True)))


def features(
    issue: str, candidates: Sequence[Candidate], depths: Sequence[int], execution: Mapping[str, Any] | None
) -> Array:
    """(candidates, features) as :data:`FEATURES` says; those of the execution are 0 where there was none."""
    words = set(WORD.findall(issue))
    paths = sum(candidate.multiplicity for candidate in candidates)
    rows = [
        {
            **_of_patch(candidate, words),
            "multiplicity": candidate.multiplicity / paths,
            "submitted": float(not candidate.auto_submitted),
            "depth": math.log1p(depth),
            **ran,
        }
        for candidate, depth, ran in zip(candidates, depths, _of_execution(execution, len(candidates)), strict=True)
    ]
    return np.array([[row[name] for name in FEATURES] for row in rows])


def _of_patch(candidate: Candidate, words: set[str]) -> dict[str, float]:
    files = changes(candidate.patch)
    lines = [
        line[1:]
        for file in files
        for line in file.section.split("\n")
        if line.startswith(("+", "-")) and not line.startswith(("+++ ", "--- "))
    ]
    used = {word for line in lines for word in WORD.findall(line)}
    named = [file for file in files if set(WORD.findall(file.path.rpartition("/")[2])) & words]
    return {
        "lines_added": math.log1p(sum(file.added for file in files)),
        "lines_removed": math.log1p(sum(file.removed for file in files)),
        "files": math.log(max(1, len(files))),
        "new_files": float(sum(file.status == "added" for file in files)),
        "issue_words": len(used & words) / max(1, len(used)),
        "issue_files": len(named) / max(1, len(files)),
        "left_scratch": float(bool(candidate.dropped)),
    }


def _of_execution(evidence: Mapping[str, Any] | None, n: int) -> list[dict[str, float]]:
    if evidence is None:
        return [dict.fromkeys(("scripts", "class", "broken", "breaks"), 0.0)] * n
    weights = [script["weight"] for script in evidence["scripts"] if script["kept"]]
    rows = []
    for p, candidate in enumerate(evidence["candidates"]):
        passed = sum(weight * row[p] for weight, row in zip(weights, evidence["matrix"], strict=True))
        broken = len(candidate["broken"])
        rows.append(
            {
                "scripts": passed / sum(weights) if any(weights) else 0.0,
                "class": candidate["class"] / n,
                "broken": math.log1p(broken),
                "breaks": float(broken > 0 or "error" in candidate),
            }
        )
    return rows
