"""Generating, infilling, correcting and judging token sequences."""

from .ancestral import SAMPLERS, SampleOutput, sample, time_grid
from .blocks import sample_blocks
from .correct import CorrectionOutput, gibbs, self_correct, token_error_probs
from .streams import Streams

__all__ = [
    "SAMPLERS",
    "CorrectionOutput",
    "SampleOutput",
    "Streams",
    "gibbs",
    "sample",
    "sample_blocks",
    "self_correct",
    "time_grid",
    "token_error_probs",
]
