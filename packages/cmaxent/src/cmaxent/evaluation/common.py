"""Small things that several experiments need."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..datasets import MomentProblem, RealSet, load_real
from ..errors import CMaxEntError, InfeasibleMomentsWarning

if TYPE_CHECKING:
    from ..classifier import MergedClassifier
    from ..moments import Moments

Array = NDArray[np.float64]


def problem_moments(problem: MomentProblem) -> Moments:
    """Moments of (x1, …, xd, y) of a random problem."""
    from .. import Moments

    names, mean, cov = problem.joint()
    return Moments.from_arrays(mean, cov, names=names, kinds={"y": "binary"})


def table_moments(table: pd.DataFrame, target: str = "y") -> Moments:
    """Moments of a table; the target is binary and every other column counts as continuous."""
    from .. import Moments

    kinds = {str(c): "binary" if c == target else "continuous" for c in table.columns}
    return Moments.from_data(table, kinds=kinds)


def array_moments(X: Array, y: NDArray[Any]) -> Moments:
    """The same for arrays X (n, d) and y (n,), without the cost of a table."""
    from .. import Moments

    joint = np.column_stack([X, y]).astype(float)
    names = [f"x{i + 1}" for i in range(X.shape[1])] + ["y"]
    return Moments.from_arrays(
        joint.mean(axis=0), np.cov(joint.T, ddof=0), names=names, kinds={"y": "binary"}, n=float(len(joint))
    )


def fit(moments: Moments, graph: str, **options: Any) -> MergedClassifier:
    """A fitted classifier of y; infeasible moments raise unless ``options`` say otherwise, and then do not warn."""
    from .. import MergedClassifier

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InfeasibleMomentsWarning)
        return MergedClassifier("y", graph, **options).fit_moments(moments)


def angle(a: Array, b: Array) -> float:
    """Angle in radians between two vectors, exact also where it is tiny (unlike arccos)."""
    u, v = a / np.linalg.norm(a), b / np.linalg.norm(b)
    return float(2.0 * np.arctan2(np.linalg.norm(u - v), np.linalg.norm(u + v)))


def real_set(name: str) -> RealSet:
    """A named real set, or ``file:TARGET:PATH`` for a csv or parquet file of the user; rows with gaps are dropped."""
    if not name.startswith("file:"):
        return load_real(name)
    _, target, path = name.split(":", 2)
    try:
        table = pd.read_parquet(path) if path.endswith(".parquet") else pd.read_csv(path)
    except (OSError, ValueError, ImportError) as error:
        raise CMaxEntError(f"cannot read {path}: {error}") from None
    if target not in table.columns:
        raise CMaxEntError(f"{path} has no column {target!r}; it has {', '.join(map(str, table.columns[:8]))}")
    table = table.dropna()
    if not set(table[target].unique()) == {0, 1}:
        raise CMaxEntError(f"{path}, column {target}: the target has to hold 0 and 1, both")
    X = table.drop(columns=target)
    try:
        X = X.astype(float)
    except (TypeError, ValueError) as error:
        raise CMaxEntError(f"{path}: every column has to be numeric ({error})") from None
    if X.shape[1] < 2:
        raise CMaxEntError(f"{path}: at least two columns besides {target} are needed")
    return RealSet(Path(path).stem, X.reset_index(drop=True), table[target].to_numpy(dtype=np.int64), path)
