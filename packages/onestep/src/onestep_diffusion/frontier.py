"""From covering the data to seeking its modes: precision and recall along the alpha-divergences (alpha 1: KL(data||.),
alpha 0: KL(.||data))."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .config import StudentConfig
from .data import Dataset
from .denoiser import Denoiser
from .errors import ConfigError
from .metrics import fid, prdc
from .monitor import Entry
from .pictures import figure, save_figure
from .train import train_students

Table = list[dict[str, Any]]


def alpha_frontier(
    data: Dataset,
    teacher: Denoiser | None,
    cfg: StudentConfig,
    alphas: Sequence[float],
    extract: Callable[[NDArray[Any]], NDArray[Any]],
    *,
    seeds: Sequence[int] = (0,),
    alpha_end: float | None = None,
    n: int = 2000,
    k: int = 5,
    report: Callable[[Entry], None] | None = None,
) -> Table:
    """A student for every alpha and seed, all trained side by side, against at most n training rows.

    Args:
        extract: rows in data units -> features (n, p). alpha_end: where every schedule ends, None for constant alphas.
        k: neighbours of `prdc`.

    Returns:
        Rows with alpha, seed, precision, recall, density, coverage, fd.
    """
    if not alphas or not seeds:
        raise ConfigError("at least one alpha and one seed are needed")
    runs = [(alpha, seed) for alpha in alphas for seed in seeds]
    cfgs = [cfg.replace(divergence="alpha", alpha=float(alpha), alpha_end=alpha_end) for alpha, _ in runs]
    found = train_students(data, teacher, cfgs, [seed for _, seed in runs], eval_every=cfg.steps, report=report)
    known = extract(data.x[:n])
    table: Table = []
    for (alpha, seed), result in zip(runs, found, strict=True):
        features = extract(result.generator_ema.sample(n, seed).reshape(-1, *data.shape))
        measured = {**prdc(known, features, k), "fd": fid(known, features)}
        table.append({"alpha": float(alpha), "seed": int(seed), **measured})
    return table


def save_frontier_plot(path: Path, table: Table) -> None:
    """A PNG of recall against precision, a point a run, lines through the means of each alpha."""
    sheet = figure(5, 4)
    axes = sheet.subplots()
    alphas = sorted({row["alpha"] for row in table})
    means = [
        tuple(np.mean([(row["precision"], row["recall"]) for row in table if row["alpha"] == a], axis=0))
        for a in alphas
    ]
    axes.plot(*zip(*means, strict=True), color="grey", linewidth=0.8)
    axes.scatter([row["precision"] for row in table], [row["recall"] for row in table], s=12)
    for alpha, point in zip(alphas, means, strict=True):
        axes.annotate(f"α = {alpha:g}", point, fontsize="small")
    axes.locator_params(nbins=5)
    axes.set(xlabel="precision", ylabel="recall")
    save_figure(sheet, path)
