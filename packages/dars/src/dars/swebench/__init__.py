"""SWE-bench: instances, runs over many of them, and the official grading."""

from .grading import evaluate, grade
from .history import prepare_container
from .instances import read_instances, shard
from .report import Report, candidate_predictions, report
from .runner import RunSummary, run_instances

__all__ = [
    "Report", "RunSummary", "candidate_predictions", "evaluate", "grade", "prepare_container", "read_instances",
    "report", "run_instances", "shard",
]  # fmt: skip
