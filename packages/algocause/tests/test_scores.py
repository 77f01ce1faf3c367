from math import log2

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algocause import DataError, DegenerateError, EnvData, Scorer, local_score
from algocause.scores import CODES

EVERY = [(family, code) for family, codes in CODES.items() for code in codes]


def rows(family, rng, n_envs=4, n=40):
    env = np.repeat(np.arange(n_envs), n)
    X = rng.normal(size=(n_envs * n, 4))
    X[:, 1] += X[:, 0] * np.where(env < 2, 1.5, -1)
    X[:, 2] += np.tanh(2 * X[:, 1]) + env % 2
    if family == "discrete":
        X = np.digitize(X, [-0.5, 0.8])
    if family == "mixed":
        X[:, 0] = np.digitize(X[:, 0], [-0.5, 0.8])
    return X, env


@pytest.mark.parametrize(("family", "code"), EVERY)
def test_bits_are_the_sum_of_their_parts(family, code):
    X, env = rows(family, np.random.default_rng(0))
    found = local_score(X, env, 2, (0, 1), family, code)
    assert found.bits == pytest.approx(found.mechanism_bits + found.partition_bits + found.parent_bits, rel=1e-12)
    assert found.mechanism_bits == pytest.approx(sum(found.block_bits), rel=1e-12)
    assert len(found.block_bits) == len(found.partition)
    assert found.parent_bits == pytest.approx(log2(4) + log2(3))
    assert sorted(label for block in found.partition for label in block) == [0, 1, 2, 3]
    scorer = Scorer.of(EnvData.read(X, env, family), family, code)
    assert scorer.score(2, (0, 1)) == pytest.approx(found.bits, rel=1e-12)
    given_ = local_score(X, env, 2, (0, 1), family, code, partition=found.partition)
    assert given_.bits == pytest.approx(found.bits, rel=1e-12)


@pytest.mark.parametrize("family", list(CODES))
@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6))
def test_order_of_rows_and_columns_and_names_of_environments_do_not_matter(family, seed):
    rng = np.random.default_rng(seed)
    X, env = rows(family, rng)
    found = local_score(X, env, 2, (0, 1), family)
    shuffled, place = rng.permutation(len(X)), rng.permutation(4)
    names = np.array(["north", "east", "south", "west"])[rng.permutation(4)]
    other = local_score(
        X[shuffled][:, place], names[env[shuffled]], int(np.argmax(place == 2)),
        [int(np.argmax(place == 1)), int(np.argmax(place == 0))], family,
    )  # fmt: skip
    assert other.bits == pytest.approx(found.bits, rel=1e-9)
    renamed = {frozenset(str(names[e]) for e in block) for block in found.partition}
    assert {frozenset(block) for block in other.partition} == renamed


@pytest.mark.parametrize(("family", "code"), [("gaussian", "bge"), ("gaussian", "bic"), ("basis", "nig")])
@settings(max_examples=8, deadline=None)
@given(st.floats(1e-6, 1e6), st.floats(-100, 100))
def test_scaling_a_column_by_c_adds_n_log2_c_bits(family, code, c, shift):
    X, env = rows(family, np.random.default_rng(1))
    child, parent = X.copy(), X.copy()
    child[:, 2] = c * (child[:, 2] + shift)
    parent[:, 1] = -c * (parent[:, 1] + shift)
    before = local_score(X, env, 2, (0, 1), family, code).bits
    scaled = local_score(child, env, 2, (0, 1), family, code).bits
    assert scaled - before == pytest.approx(len(X) * log2(c), abs=1e-5)
    if family == "gaussian":  # the bumps of a reflected parent are the same set only up to rounding of quantiles
        assert local_score(parent, env, 2, (0, 1), family, code).bits == pytest.approx(before, abs=1e-5)


def test_split_bits_scale_too():
    X, env = rows("gaussian", np.random.default_rng(2))
    before = local_score(X, env, 2, (0, 1), code="bic", components="split")
    after = local_score(X * [1, 7, 8, 1], env, 2, (0, 1), code="bic", components="split")
    assert after.bits - before.bits == pytest.approx(3 * len(X), abs=1e-6)
    assert after.components == before.components


def test_precision_adds_its_bits_to_every_row():
    X, env = rows("gaussian", np.random.default_rng(3))
    for family in ("gaussian", "basis"):
        coarse = local_score(X, env, 2, (0, 1), family, precision=1.0).bits
        fine = local_score(X, env, 2, (0, 1), family, precision=2.0**-10).bits
        assert fine - coarse == pytest.approx(10 * len(X), abs=1e-8)


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize(("family", "part_code"), [("gaussian", "crp"), ("gaussian", "stirling"), ("discrete", "crp")])
def test_many_scores_at_once_are_the_scores_one_by_one(family, part_code, n_jobs):
    X, env = rows(family, np.random.default_rng(4))
    requests = [(v, S) for v in range(4) for S in [(), (0,), (1, 3), (0, 1, 2)] if v not in S]
    for exact in (True, False):
        options = {"part_code": part_code, "exact": exact, "must_link": {0: [(1, 2)]}}
        many = Scorer.of(EnvData.read(X, env, family), family, n_jobs=n_jobs, **options)
        one = Scorer.of(EnvData.read(X, env, family), family, **options)
        assert many.scores(requests).tolist() == [one.score(v, S) for v, S in requests]
        assert [many.partition(v, S) for v, S in requests] == [one.partition(v, S) for v, S in requests]


@pytest.mark.parametrize("family", list(CODES))
@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10**6))
def test_data_read_in_parts_score_as_data_read_at_once(family, seed):
    rng = np.random.default_rng(seed)
    X, env = rows(family, rng)
    X = X + 0.0 if family in ("discrete", "mixed") else X + 1e6
    whole = EnvData.read(X, env, family)
    order = rng.permutation(len(X))
    parts = [EnvData.read(X[i], env[i], family) for i in np.array_split(order, 3)]
    [part.moments for part in parts]
    together = parts[0] + parts[1] + parts[2]
    kept = [(whole, together)]
    if family == "gaussian":
        kept.append((whole, parts[0].without_rows() + parts[1] + parts[2].without_rows()))
    for a, b in kept:
        assert a.labels == b.labels
        assert a.n_per_env.tolist() == b.n_per_env.tolist()
        one, other = Scorer.of(a, family), Scorer.of(b, family)
        assert other.score(2, (0, 1)) == pytest.approx(one.score(2, (0, 1)), abs=1e-5)
        assert other.partition(2, (0, 1)) == one.partition(2, (0, 1))


def test_parts_may_hold_different_environments_and_levels():
    a = EnvData.read(np.array([["x", "u"], ["y", "v"]] * 5), ["late"] * 10, "discrete")
    b = EnvData.read(np.array([["w", "u"], ["y", "t"]] * 5), ["early"] * 10, "discrete")
    both = a + b
    assert both.labels == ("early", "late")
    assert both.levels == (("w", "x", "y"), ("t", "u", "v"))
    assert both.arities == (3, 3)
    assert Scorer.of(both, "discrete").score(0, (1,)) == local_score(
        np.array([["x", "u"], ["y", "v"]] * 5 + [["w", "u"], ["y", "t"]] * 5), ["late"] * 10 + ["early"] * 10, 0, [1],
        "discrete",
    ).bits  # fmt: skip


def test_a_shift_of_the_mean_does_not_change_the_scale_of_standardisation():
    rng = np.random.default_rng(5)
    X = rng.normal(size=(400, 2)) * [1, 5]
    env = np.repeat([0, 1], 200)
    still = EnvData.read(X, env).moments.location_scale()[1]
    moved = EnvData.read(X + 1000 * env[:, None], env).moments.location_scale()[1]
    np.testing.assert_allclose(moved, still, rtol=1e-9)
    np.testing.assert_allclose(still**2, (X[:200].var(axis=0, ddof=1) + X[200:].var(axis=0, ddof=1)) / 2, rtol=1e-12)


def test_environments_of_one_row_can_be_coded():
    X = np.random.default_rng(6).normal(size=(12, 3))
    with pytest.warns(UserWarning, match="fewer than 5 rows"):
        found = local_score(X, np.arange(12), 0, (1, 2))
    assert np.isfinite(found.bits)


def test_frames_name_their_columns_and_environments():
    X, env = rows("gaussian", np.random.default_rng(7))
    frame = pd.DataFrame(X, columns=list("abcd")).assign(lab=[f"lab {e}" for e in env])
    found = local_score(frame, "lab", "c", ["a", "b"])
    assert found.bits == pytest.approx(local_score(X, env, 2, (0, 1)).bits, rel=1e-12)
    assert found.partition == (("lab 0", "lab 2"), ("lab 1", "lab 3"))


def bad_data():
    rng = np.random.default_rng(8)
    X = rng.normal(size=(20, 3))
    env = np.repeat([0, 1], 10)
    holes = X.copy()
    holes[:3, 1] = np.nan
    holes[0, 2] = np.inf
    constant = X.copy()
    constant[:, 2] = 4
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    yield holes, env, r"missing or infinite values \(1: 3, 2: 1\)"
    yield constant, env, r"equal values \(a constant\) \(2: 20\)"
    yield X, env[:-1], r"each of the 20 rows.*\(19,\)"
    yield X, [None, *env[1:]], "1 missing label"
    yield X[0], None, r"shape \(3,\)"
    yield X[:1], None, "1 row"
    yield frame.assign(b=pd.array([None, *range(19)], dtype="Int64")), env, r"missing or infinite values \('b': 1\)"
    yield frame.assign(b="text"), env, r"not numbers \('b': 20\)"
    yield frame, "lab", "no column 'lab' of environments"
    yield frame.set_axis(["a", "a", "c"], axis=1), env, "twice: 'a'"
    yield X, "lab", "array without names"


@pytest.mark.parametrize(("X", "env", "message"), list(bad_data()), ids=lambda value: "")
def test_bad_data_are_refused_by_column_and_count(X, env, message):
    with pytest.raises(DataError, match=message):
        EnvData.read(X, env)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"family": "linear"}, "gaussian, discrete, basis, mixed"),
        ({"code": "aic"}, "no code 'aic': it has bge, bic"),
        ({"node": 9}, "no column 9"),
        ({"parents": [1, 1]}, "distinct"),
        ({"parents": [0]}, "not the node"),
        ({"partition": [[0], [2]]}, "unknown or repeated 2; absent 1"),
        ({"theta": 0.0}, "theta"),
        ({"part_code": "uniform"}, "part_code"),
        ({"components": "split", "code": "bge", "family": "discrete"}, "split"),
        ({"precision": 0.0}, "precision"),
        ({"must_link": {0: [(0, 7)]}}, "unknown environments 7"),
        ({"n_bases": 4}, "unknown options n_bases"),
    ],
)
def test_bad_arguments_are_refused_with_what_would_be_right(arguments, message):
    X = np.random.default_rng(9).normal(size=(20, 3))
    with pytest.raises(DataError, match=message):
        local_score(**{"X": X, "env": np.repeat([0, 1], 10), "node": 0, "parents": [1], **arguments})


def test_exact_collinearity_is_named_under_bic_and_coded_under_bge():
    X = np.random.default_rng(10).normal(size=(60, 3))
    frame = pd.DataFrame(X, columns=["a", "b", "c"]).assign(sum=X[:, 0] - 2 * X[:, 2])
    env = np.repeat([0, 1], 30)
    for options in ({}, {"components": "split"}):
        with pytest.raises(DegenerateError, match="'sum' is an exact linear function of 'a', 'c'"):
            local_score(frame, env, "b", ["a"], code="bic", **options)
    assert np.isfinite(local_score(frame, env, "sum", ["a", "c"]).bits)
