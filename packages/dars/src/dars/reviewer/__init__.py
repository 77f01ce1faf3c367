"""Reviewers: which of the candidates is the answer (section 3.3 of the paper)."""

from .aggregate import EnsembleReviewer, borda
from .base import Case, Review, Reviewer, ranking
from .baselines import MultiplicityReviewer, OracleReviewer, RandomReviewer
from .execution import ExecutionReviewer
from .labels import Labelled, Scorer, label, read_labelled, write_labelled
from .learned import LearnedReviewer, fit
from .llm import LLMReviewer
from .make import make_reviewer
from .report import review_json, scored
from .sft import export_sft, lora_config

__all__ = [
    "Case",
    "EnsembleReviewer",
    "ExecutionReviewer",
    "LLMReviewer",
    "Labelled",
    "LearnedReviewer",
    "MultiplicityReviewer",
    "OracleReviewer",
    "RandomReviewer",
    "Review",
    "Reviewer",
    "Scorer",
    "borda",
    "export_sft",
    "fit",
    "label",
    "lora_config",
    "make_reviewer",
    "ranking",
    "read_labelled",
    "review_json",
    "scored",
    "write_labelled",
]
