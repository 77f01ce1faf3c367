"""Samples chosen by the ratio among candidates: more parallel evaluations for better samples (arXiv:2502.08005, v5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import ArrayLike
from numpy.typing import NDArray

from .data import Dataset
from .denoiser import Generator, Ratio
from .errors import ConfigError
from .metrics import fid
from .verify import METHODS, importance_ess, resample, verifier_log_ratio

Table = list[dict[str, Any]]


class Selection(NamedTuple):
    """x (n, *shape) in data units, their labels, and the mean effective sample size of a group (nan for no `sir`)."""

    x: NDArray[np.float32]
    labels: NDArray[np.int32] | None
    ess: float


def select_samples(
    generator: Generator,
    ratio: Ratio,
    n: int,
    *,
    candidates: int,
    method: str = "sir",
    labels: int | ArrayLike | None = None,
    seed: int = 0,
    batch: int | None = None,
    evaluations: int = 1,
) -> Selection:
    """n samples, each chosen among `candidates` of its label; see `resample` for what the methods promise.

    `rejection` goes through all n candidates at once and may accept fewer than n: the last n that it accepts, as they
    are the cleanest. labels, batch, evaluations as of `Generator.sample`. Candidates depend on the seed alone: more of
    them for the same n are other samples.

    Raises ConfigError for candidates < 1 and an unknown method.
    """
    if candidates < 1 or n < 1:
        raise ConfigError(f"n={n} and candidates={candidates} have to be at least 1")
    if method not in METHODS:
        raise ConfigError(f"select: {method!r} is not one of {', '.join(METHODS)}")
    wanted = generator.draw_labels(n, seed, labels)
    all_labels = None if wanted is None else np.repeat(wanted, candidates)
    x = generator.sample(n * candidates, seed, all_labels, batch, evaluations)
    log_r = verifier_log_ratio(ratio, x, labels=all_labels, seed=seed)
    group = None if method == "rejection" else candidates
    kept = resample(log_r, method=method, group=group, seed=seed)[-n:]
    ess = float(importance_ess(log_r, group=candidates).mean()) if method == "sir" else float("nan")
    return Selection(x[kept], None if all_labels is None else all_labels[kept], ess)


def cost_quality(
    generator: Generator,
    ratio: Ratio,
    data: Dataset,
    extract: Callable[[NDArray[Any]], NDArray[Any]],
    *,
    candidates: Sequence[int] = (1, 2, 4, 8, 16),
    method: str = "sir",
    n: int = 5000,
    seed: int = 0,
) -> Table:
    """Rows with `candidates` a sample, `fd` of n samples to training rows (at most 5000), and `ess`.

    All choose from the first of the same candidates, so that rows differ by the choice alone.

    extract: rows in data units -> features (n, p). Raises ConfigError for `rejection`, whose yield differs.
    """
    if method not in ("sir", "best_of"):
        raise ConfigError(f"a curve over candidates is of sir or best_of; got {method!r}")
    if not candidates or min(candidates) < 1:
        raise ConfigError(f"numbers of candidates have to be at least 1; got {list(candidates)}")
    most = max(candidates)
    wanted = generator.draw_labels(n, seed)
    labels = None if wanted is None else np.repeat(wanted, most)
    x = generator.sample(n * most, seed, labels)
    log_r = verifier_log_ratio(ratio, x, labels=labels, seed=seed).reshape(n, most)
    groups, known = x.reshape(n, most, *x.shape[1:]), extract(data.x[:5000])
    table: Table = []
    for count in candidates:
        among, of_each = groups[:, :count].reshape(-1, *x.shape[1:]), log_r[:, :count].ravel()
        kept = resample(of_each, method=method, group=count, seed=seed)
        ess = float(importance_ess(of_each, group=count).mean())
        table.append({"candidates": int(count), "fd": fid(known, extract(among[kept])), "ess": ess})
    return table
