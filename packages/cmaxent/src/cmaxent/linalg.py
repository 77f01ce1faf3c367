"""Which of several features are linearly independent, as every fit by moments has to know before it solves."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def independent_columns(gram: Array) -> list[int]:
    """Indices of a maximal linearly independent set of features with covariance ``gram``, earlier ones first."""
    kept: list[int] = []
    for r in range(len(gram)):
        block = gram[np.ix_([*kept, r], [*kept, r])]
        scale = np.sqrt(block.diagonal())
        if gram[r, r] > 0 and np.linalg.eigvalsh(block / np.outer(scale, scale))[0] > 1e-9:
            kept.append(r)
    return kept
