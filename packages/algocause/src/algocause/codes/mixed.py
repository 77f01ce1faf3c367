"""Continuous and discrete variables together: the degenerate Gaussian score on one-hot columns.

Andrews, Ramsey & Cooper (2019), with the Bayesian evidence in place of the BIC.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..data import EnvData, Moments
from .gaussian import Bge, standardised
from .moments import BGE, Design


@dataclass(frozen=True)
class DegenerateGaussian:
    """The BGe quotient on blocks of columns: a score that compares graphs, no code of the data."""

    alpha_mu: float = 1.0
    name = "bge"
    is_code = False
    score_equivalent = True


def design(
    data: EnvData,
    code: DegenerateGaussian,
    standardize: bool = True,
    precision: NDArray[np.float64] | None = None,
) -> Design:
    """A column for each continuous variable and one for each level but the most frequent of each discrete one."""
    X = data.rows()
    columns, places = [], []
    start = 0
    for j, arity in enumerate(data.arities):
        if arity:
            counts = np.bincount(X[:, j].astype(np.intp), minlength=arity)
            kept = [level for level in range(arity) if level != int(counts.argmax())]
            block = (X[:, j, None] == kept).astype(float)
        else:
            block = X[:, [j]]
        columns.append(block)
        places.append(tuple(range(start, start + block.shape[1])))
        start += block.shape[1]
    moments, scale = standardised(Moments.by_environment(np.hstack(columns), data.env, data.n_envs), standardize)
    step = np.ones(data.d) if precision is None else np.broadcast_to(np.asarray(precision, dtype=float), (data.d,))
    prior = Bge(code.alpha_mu).prior
    return Design(
        kind=BGE,
        moments=moments,
        as_parent=tuple(places),
        as_child=tuple(places),
        log2_scale=np.array([np.log2(scale[list(c)]).sum() for c in places]) - np.log2(step),
        parent_prior=np.full(start, prior),
        child_prior=prior,
        mean_weight=code.alpha_mu,
        floor=np.zeros(data.d),
    )
