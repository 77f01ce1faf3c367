"""Reviewers by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..config import ReviewSection
from ..errors import TaskError
from ..models.base import ChatModel
from .aggregate import EnsembleReviewer
from .base import Reviewer
from .baselines import MultiplicityReviewer, RandomReviewer
from .execution import ExecutionReviewer
from .learned import LearnedReviewer
from .llm import LLMReviewer

NAMES = ("execution", "llm", "multiplicity", "learned:PATH", "verifier:PATH", "random")


def make_reviewer(
    config: ReviewSection,
    model: ChatModel | None = None,
    seed: int = 0,
    render: Callable[..., str] | None = None,
    batch: Path | None = None,
) -> Reviewer:
    """The reviewer that a configuration names; an ensemble if it names several.

    Parameters
    ----------
    model : of "llm".
    render, batch : see :class:`~.llm.LLMReviewer`.

    Raises
    ------
    TaskError
        A name that is not known, "llm" without a model, a file that is no model, weights that do not fit, "verifier"
        without torch.
    """
    execution = ExecutionReviewer()  # one, so that those who need the matrix share it

    def make(name: str) -> Reviewer:
        if name == "execution":
            return execution
        if name == "llm":
            if model is None:
                raise TaskError("the reviewer llm needs a model: name one")
            return LLMReviewer(model, config.mode, config.n_orders, seed, render, batch=batch)
        if name == "multiplicity":
            return MultiplicityReviewer()
        if name == "random":
            return RandomReviewer(seed)
        if name.startswith("learned:"):
            return LearnedReviewer.load(name.removeprefix("learned:"), execution)
        if name.startswith("verifier:"):
            return _verifier(name.removeprefix("verifier:"))
        raise TaskError(f"review.reviewers: there is no reviewer {name!r}; there are {', '.join(NAMES)}")

    reviewers = [make(name) for name in config.reviewers]
    if len(reviewers) == 1 and config.weights is None:
        return reviewers[0]
    return EnsembleReviewer(reviewers, config.weights)


def _verifier(path: str) -> Reviewer:
    try:
        from .verifying import VerifierReviewer
    except ImportError as error:
        raise TaskError("the reviewer verifier needs torch: pip install 'dars-agent[verifier]'") from error
    return VerifierReviewer.load(path)
