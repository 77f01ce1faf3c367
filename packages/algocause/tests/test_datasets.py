import importlib.metadata
import sys

import networkx as nx
import numpy as np
import pytest

from algocause.datasets import (
    PAPER_SHIFTS,
    load_bif,
    load_sachs,
    paper_bivariate,
    paper_covariate_shift,
    sample_network,
    sample_sms,
)
from algocause.errors import AlgocauseError, DataError

BIF = """network unknown { }
variable rain { type discrete [ 2 ] { no, yes }; }
variable wet { type discrete [ 3 ] { dry, damp, wet }; }
variable grey { type discrete [ 2 ] { no, yes }; }
probability ( rain | grey ) { (no) 0.9, 0.1; (yes) 0.3, 0.7; }
probability ( wet | rain, grey ) {
  (no, no) 1.0, 0.0, 0.0; (yes, no) 0.0, 0.5, 0.5; (no, yes) 0.5, 0.5, 0.0; (yes, yes) 0.0, 0.0, 1.0;
}
probability ( grey ) { table 0.6, 0.4; }
"""


def test_paper_settings_are_reproducible_and_of_the_stated_shapes():
    X, theta = paper_bivariate(3)
    assert X.shape == (5, 20, 2)
    np.testing.assert_array_equal(X, paper_bivariate(3)[0])
    # environments are drawn one after the other
    np.testing.assert_array_equal(
        X[0], np.random.RandomState(3).multivariate_normal([0, 0], [[1, 1], [1, 17]], size=20)
    )
    assert [len(set(t)) for t in PAPER_SHIFTS.values()] == list(PAPER_SHIFTS)
    X1, X2, env, book = paper_covariate_shift(0, 2)
    assert X1.shape == X2.shape == env.shape == (100,)
    assert np.bincount(env).tolist() == [10] * 10
    np.testing.assert_allclose(book * 22, np.arange(1, 22))
    assert X1[env < 8].mean() < X1[env >= 8].mean()
    assert theta.shape == (5, 3)


@pytest.mark.parametrize("kind", ["linear", "basis"])
def test_reference_has_mean_zero_and_variance_one(kind):
    n = 40_000
    result = sample_sms(8, 1, n, expected_degree=3.0, kind=kind, random_state=1)
    tolerance = 0.05 if kind == "linear" else 0.08  # 5 standard errors and more, and those of the pilot rows
    np.testing.assert_allclose(result.X.mean(0), 0, atol=tolerance)
    np.testing.assert_allclose(result.X.var(0), 1, atol=tolerance)


@pytest.mark.parametrize("kind", ["linear", "basis", "discrete"])
def test_targets_partitions_and_rows_fit_together(kind):
    result = sample_sms(6, 5, [30, 1, 40, 50, 60], p_shift=0.4, kind=kind, random_state=2)
    assert np.bincount(result.env).tolist() == [30, 1, 40, 50, 60]
    assert result.X.shape == (181, 6)
    assert nx.is_directed_acyclic_graph(result.dag)
    assert result.targets[0] == set()
    for v, blocks in result.partitions.items():
        assert sorted(e for b in blocks for e in b) == list(range(5))
        reference = next(b for b in blocks if 0 in b)
        assert {e for e in range(5) if v in result.targets[e]} == set(range(5)) - set(reference)
        assert all(len(b) == 1 for b in blocks if b != reference)
    again = sample_sms(6, 5, [30, 1, 40, 50, 60], p_shift=0.4, kind=kind, random_state=2)
    np.testing.assert_array_equal(result.X, again.X)


def test_mechanisms_are_shared_within_a_block_and_differ_between_blocks():
    n = 20_000
    result = sample_sms(5, 4, n, p_shift=0.5, random_state=0)
    differ = 0
    for v, blocks in result.partitions.items():
        parents = sorted(result.dag.predecessors(v))
        fits = []
        for e in range(4):
            rows = result.X[result.env == e]
            A = np.column_stack([np.ones(n), rows[:, parents]])
            w, rest = np.linalg.lstsq(A, rows[:, v], rcond=None)[:2]
            fits.append([*w, np.sqrt(rest[0] / n)])
        for b in blocks:
            np.testing.assert_allclose(
                [fits[e] for e in b], np.broadcast_to(fits[b[0]], (len(b), len(fits[0]))), atol=0.1
            )
        differ += sum(np.abs(np.subtract(fits[a[0]], fits[b[0]])).max() > 0.1 for a in blocks for b in blocks if a < b)
    assert differ == sum(len(b) * (len(b) - 1) // 2 for b in result.partitions.values())


def test_a_shift_changes_what_it_names_alone():
    result = sample_sms(4, 2, 50_000, expected_degree=3.0, p_shift=1.0, shift=("mean",), random_state=0)
    covariances = [np.cov(result.X[result.env == e], rowvar=False) for e in (0, 1)]
    np.testing.assert_allclose(*covariances, atol=0.05)
    assert result.targets[1] == {0, 1, 2, 3}
    slopes = sample_sms(6, 2, 10, expected_degree=1.0, p_shift=1.0, shift=("slope",), random_state=0)
    assert slopes.targets[1] == {v for v in slopes.dag if slopes.dag.in_degree(v)}


def test_expected_degree_and_shift_rate_are_met():
    results = [sample_sms(40, 6, 1, expected_degree=4.0, p_shift=0.3, random_state=s) for s in range(20)]
    edges = np.mean([r.dag.number_of_edges() for r in results])
    assert edges == pytest.approx(80, abs=5 * np.sqrt(80 / 20))
    shifts = np.mean([len(r.targets[e]) / 40 for r in results for e in range(1, 6)])
    assert shifts == pytest.approx(0.3, abs=5 * np.sqrt(0.21 / (20 * 40 * 5)))


def test_discrete_values_follow_the_parents():
    result = sample_sms(5, 3, 2000, expected_degree=4.0, kind="discrete", levels=3, random_state=0)
    assert set(np.unique(result.X)) == {0, 1, 2}
    u, v = next(iter(result.dag.edges))
    table = np.array([np.bincount(result.X[result.X[:, u] == x, v], minlength=3) for x in range(3)])
    assert np.abs(table / table.sum(1, keepdims=True) - table.sum(0) / table.sum()).max() > 0.02


def test_bif_tables_are_read_and_sampled(tmp_path):
    pytest.importorskip("pgmpy.readwrite")
    path = tmp_path / "rain.bif"
    path.write_text(BIF)
    network = load_bif(path)
    assert set(network.dag.edges) == {("grey", "rain"), ("rain", "wet"), ("grey", "wet")}
    parents, table = network.tables["wet"]
    assert table.shape == (*(len(network.states[p]) for p in parents), 3)
    at = {p: i for i, p in enumerate(parents)}
    cell = [0, 0]
    cell[at["rain"]] = 1
    np.testing.assert_allclose(table[tuple(cell)], [0, 0.5, 0.5])

    result = sample_network(network, 3, 4000, p_shift=0.5, random_state=1)
    reference = result.X[result.env == 0]
    assert (reference.grey == 1).mean() == pytest.approx(0.4, abs=5 * 0.5 / np.sqrt(4000))
    assert (reference.rain[reference.grey == 1] == 1).mean() == pytest.approx(0.7, abs=0.06)
    assert set(reference.wet[(reference.rain == 0) & (reference.grey == 0)]) == {0}
    assert set(result.partitions) == {"rain", "wet", "grey"}
    assert len(sample_network(load_bif("alarm"), 2, 10).X.columns) == 37
    with pytest.raises(DataError, match=r"alarm, .*asia"):
        load_bif("nowhere")


def test_sachs_data_have_nine_conditions():
    try:
        X, env, dag = load_sachs()
    except AlgocauseError:
        pytest.skip("cdt is not installed")
    assert X.shape == (7466, 11)
    assert np.isfinite(X.to_numpy()).all()
    assert len(set(env)) == 9
    assert (env == "b2camp").sum() == 707
    assert dag.number_of_edges() == 18
    assert set(dag) == set(X.columns)
    assert "cdt" not in sys.modules


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pgmpy.readwrite", None)
    monkeypatch.setitem(sys.modules, "pgmpy", None)
    with pytest.raises(AlgocauseError, match="pgmpy"):
        load_bif("asia")

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(AlgocauseError, match="cdt"):
        load_sachs()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"p_shift": 1.5}, "p_shift"),
        ({"n_per_env": [5, 5]}, "3 environments"),
        ({"n_per_env": 0}, "n_per_env"),
        ({"levels": 1}, "levels"),
        ({"kind": "quantum"}, "kind"),
        ({"shift": ("scale",)}, "shift"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample_sms(**{"d": 3, "n_envs": 3, "n_per_env": 5} | arguments)
