import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algocause import DataError, LimitError, Scorer
from algocause.codes import crp_bits, stirling_bits
from algocause.codes.gaussian import Bge
from algocause.data import EnvData, Moments
from algocause.partition import Links, agglomerate, blocks_of, optimal_partition


def restricted_growth(n):
    """Every partition of n items, as labels that first occur in order."""
    return [
        labels
        for labels in itertools.product(range(n), repeat=n)
        if all(x <= max(labels[:i], default=-1) + 1 for i, x in enumerate(labels))
    ]


PARTITIONS = [blocks_of(labels) for labels in restricted_growth(6)]


def seven():
    for small in PARTITIONS:
        yield (*small, (6,))
        for b in range(len(small)):
            yield tuple((*block, 6) if i == b else block for i, block in enumerate(small))


def test_optimal_partition_is_the_best_of_all_877_partitions_of_seven():
    every = list(seven())
    assert len(every) == 877
    rng = np.random.default_rng(0)
    for _ in range(20):
        cost = rng.normal(size=128) + 0.5 * rng.random()
        totals = [sum(cost[sum(1 << i for i in block)] for block in p) for p in every]
        total, blocks = optimal_partition(cost, 7)
        assert total == pytest.approx(min(totals), abs=1e-12)
        assert blocks == every[int(np.argmin(totals))]


def test_optimal_partition_refuses_what_it_cannot_search():
    with pytest.raises(LimitError, match="14"):
        optimal_partition(np.zeros(1 << 15), 15)
    with pytest.raises(DataError, match=r"\(8,\)"):
        optimal_partition(np.zeros(7), 3)


def environments(rng, n_envs, spread):
    """Rows of two columns whose mechanism is one of three close ones in each environment."""
    kind = rng.integers(3, size=n_envs)
    env = np.repeat(np.arange(n_envs), 25)
    x = rng.normal(size=len(env))
    y = (kind[env] * spread - 1) * x + rng.normal(size=len(env))
    return np.column_stack([x, y]), env


@pytest.mark.parametrize("part_code", ["crp", "stirling"])
def test_exact_partition_is_the_best_of_all_partitions_of_six(part_code):
    rng = np.random.default_rng(1)
    for spread in (0.3, 1.0):
        X, env = environments(rng, 6, spread)
        scorer = Scorer.of(EnvData.read(X, env), part_code=part_code, theta=0.7, exact=True)
        best = min(scorer.local(1, (0,), blocks).bits for blocks in PARTITIONS)
        assert scorer.score(1, (0,)) == pytest.approx(best, rel=1e-12)
        assert scorer.local(1, (0,)).bits == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("part_code", ["crp", "stirling"])
def test_agglomeration_is_never_shorter_than_the_best_and_nearly_always_equal(part_code):
    rng = np.random.default_rng(2)
    excess = []
    for _ in range(60):
        X, env = environments(rng, 8, rng.uniform(0.2, 1.0))
        data = EnvData.read(X, env)
        exact, greedy = (Scorer.of(data, part_code=part_code, exact=e).score(1, (0,)) for e in (True, False))
        excess.append(greedy - exact)
    assert min(excess) > -1e-8
    assert np.mean(np.array(excess) < 1e-6) >= 0.9


@pytest.mark.parametrize("part_code", ["crp", "stirling"])
def test_the_compiled_search_equals_the_python_one_on_any_statistics(part_code):
    rng = np.random.default_rng(3)
    code = Bge()
    for _ in range(10):
        X, env = environments(rng, 7, 0.5)
        stats = [code.stats(X[env == e]) for e in range(7)]
        total, blocks = agglomerate(stats, lambda m: code.bits(m, 1, (0,)), 2.0, part_code)
        scorer = Scorer.of(EnvData.read(X, env), part_code=part_code, theta=2.0, exact=False, standardize=False)
        found = scorer.local(1, (0,))
        assert total == pytest.approx(found.bits - found.parent_bits, rel=1e-10)
        assert blocks == found.partition
        sizes = [len(b) for b in blocks]
        price = crp_bits(sizes, 2.0) if part_code == "crp" else stirling_bits(7, len(sizes))
        assert found.partition_bits == pytest.approx(price)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("family", ["gaussian", "discrete"])
def test_links_hold_and_the_exact_search_finds_the_best_partition_that_obeys_them(family, exact):
    rng = np.random.default_rng(4)
    X, env = environments(rng, 6, 0.6)
    if family == "discrete":
        X = (X > 0).astype(int)
    must, cannot = [(0, 1), (1, 4)], [(2, 3), (4, 5)]
    scorer = Scorer.of(EnvData.read(X, env, family), family, must_link={1: must}, cannot_link={1: cannot}, exact=exact)

    def obeys(blocks):
        home = {i: b for b, block in enumerate(blocks) for i in block}
        return all(home[a] == home[b] for a, b in must) and all(home[a] != home[b] for a, b in cannot)

    allowed = [blocks for blocks in PARTITIONS if obeys(blocks)]
    best = min(scorer.local(1, (0,), blocks).bits for blocks in allowed)
    assert obeys(scorer.partition(1, (0,)))
    if exact:
        assert scorer.score(1, (0,)) == pytest.approx(best, rel=1e-12)
    else:
        assert scorer.score(1, (0,)) >= best - 1e-8
    assert scorer.score(0, ()) <= scorer.local(0, (), PARTITIONS[-1]).bits + 1e-9


def test_contradictory_links_are_refused():
    with pytest.raises(DataError, match="must share"):
        Links.of(3, [(0, 1), (1, 2)], [(0, 2)])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_moments_of_parts_add_to_the_moments_of_the_whole_far_from_zero(seed, parts):
    rng = np.random.default_rng(seed)
    X = 1e6 + rng.normal(size=(60, 3))
    cuts = np.sort(rng.integers(0, 61, size=parts))
    total = Moments.of(X[:0])
    for part in np.split(X, cuts):
        total = total + Moments.of(part)
    centred = (X - 1e6) - (X - 1e6).mean(axis=0)
    assert total.n == 60
    np.testing.assert_allclose(total.mean, X.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(total.scatter, centred.T @ centred, rtol=1e-7, atol=1e-7)


def test_split_mechanisms_that_must_differ_differ_in_one_slot_at_least():
    rng = np.random.default_rng(5)
    env = np.repeat(np.arange(4), 50)
    X = rng.normal(size=(200, 2))
    free = Scorer.of(EnvData.read(X, env), components="split")
    assert free.partition(1, (0,)) == ((0, 1, 2, 3),)
    bound = Scorer.of(EnvData.read(X, env), components="split", cannot_link={1: [(0, 3)]}, must_link={1: [(1, 3)]})
    home = {e: b for b, block in enumerate(bound.partition(1, (0,))) for e in block}
    assert home[0] != home[3] == home[1]
    assert bound.score(1, (0,)) > free.score(1, (0,))
    assert sum(len(blocks) for blocks in bound.local(1, (0,)).components.values()) == 4
