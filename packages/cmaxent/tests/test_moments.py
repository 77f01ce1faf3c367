"""Moments as an exchange format: validation, streaming, files."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from cmaxent import Accumulator, CMaxEntError, InconsistentMomentsError, Moments


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1e8), st.booleans())
def test_streaming_in_any_chunks_equals_the_batch(seed, offset, holes):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(300, 4)) @ rng.normal(size=(4, 4)) + offset
    if holes:
        X[rng.random(X.shape) < 0.2] = np.nan
    names = list("abcd")
    parts = np.split(X, np.sort(rng.integers(0, 300, size=4)))
    left, right = Accumulator(names), Accumulator(names)
    for k, part in enumerate(parts):
        (left if k < 2 else right).update(part)
    streamed, batch = left.merge(right).finalize(), Moments.from_data(X, names=names)
    scale = np.sqrt(np.outer(batch.cov.diagonal(), batch.cov.diagonal()))
    assert_allclose(streamed.cov / scale, batch.cov / scale, atol=1e-12)
    assert_allclose(streamed.mean, batch.mean, rtol=1e-14, atol=1e-12)
    centred = pd.DataFrame(X - offset)
    expected = np.array([[centred[[i, j]].dropna().cov(ddof=0).iloc[0, -1] for j in range(4)] for i in range(4)])
    tolerance = 1e-6 if offset > 1e4 else 1e-9  # subtracting the offset from the data already costs these digits
    assert_allclose(batch.cov / scale, expected / scale, atol=tolerance)


def test_merging_accumulators_is_associative():
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(50, 3)) for _ in range(3)]
    a, b = ([Accumulator("xyz").update(p) for p in parts] for _ in range(2))
    left = a[0].merge(a[1]).merge(a[2]).finalize()
    right = b[0].merge(b[1].merge(b[2])).finalize()
    assert_allclose(left.cov, right.cov, atol=1e-14)


def test_poisson_bootstrap_in_the_same_pass_spreads_like_the_sampling_error():
    X = np.random.default_rng(0).normal(size=(2000, 1))
    replicates = Accumulator(["x"], bootstrap=200, random_state=1).update(X).finalize_bootstrap()
    assert np.std([m.mean[0] for m in replicates]) == pytest.approx(1 / np.sqrt(2000), rel=0.2)


def test_weights_are_repeated_rows():
    rng = np.random.default_rng(0)
    X, w = rng.normal(size=(40, 2)), rng.integers(0, 4, size=40)
    assert_allclose(
        Moments.from_data(X, sample_weight=w).cov, Moments.from_data(np.repeat(X, w, axis=0)).cov, atol=1e-13
    )


def test_kinds_are_inferred_and_categories_become_indicators():
    frame = pd.DataFrame(
        {"y": list("abcab"), "s": [True, False, True, True, False], "b": [0, 1, 1, 0, 0], "x": [0.5, 1, 2, 3, 4]}
    )
    m = Moments.from_data(frame)
    assert m.names == ("y=a", "y=b", "y=c", "s", "b", "x")
    assert dict(m.kinds) == {"y": "categorical", "s": "binary", "b": "binary", "x": "continuous"}
    assert_allclose(m.cov[:3].sum(axis=0), 0, atol=1e-15)


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_files_round_trip_and_notice_damage(tmp_path, suffix):
    m = Moments.from_arrays(
        [0.3, 1, -2],
        [[np.nan, 0.25, np.nan], [0.25, 2, 0.6], [np.nan, 0.6, 1]],
        names=["y", "a", "b"],
        kinds={"y": "binary"},
        n=50,
    )
    path = tmp_path / f"m{suffix}"
    m.save(path)
    back = Moments.load(path)
    assert back.names == m.names
    assert back.kinds == m.kinds
    assert back.n == 50
    assert np.array_equal(back.cov, m.cov, equal_nan=True)
    assert not list(tmp_path.glob(".*"))
    data = bytearray(path.read_bytes())
    if suffix == ".json":
        body = json.loads(data)
        body["meta"]["mean"][1] = 7.0
        path.write_text(json.dumps(body))
    else:
        at = data.find(np.float64(2.0).tobytes(), 200)
        data[at] ^= 1
        path.write_bytes(data)
    with pytest.raises(CMaxEntError, match=r"checksum|damaged"):
        Moments.load(path)
    if suffix == ".json":
        body["version"] = 99
        path.write_text(json.dumps(body))
        with pytest.raises(CMaxEntError, match="version"):
            Moments.load(path)


def test_moments_are_immutable_and_methods_return_new_ones():
    m = Moments.from_arrays([0, 0], [[1, 0.5], [0.5, 1]], names=["a", "b"])
    hidden = m.hide([("a", "b")])
    assert m.known.all()
    assert not hidden.known[0, 1]
    with pytest.raises(ValueError, match="read-only"):
        m.cov[0, 0] = 2
    assert m.rename({"a": "c"}).names == ("c", "b")
    assert m.subset(["b"]).cov.shape == (1, 1)


BAD = {
    "asymmetric": ([0, 0], [[1, 0.5], [0.2, 1]], "asymmetric"),
    "one-sided NaN": ([0, 0], [[1, np.nan], [0.2, 1]], "one side"),
    "correlation": ([0, 0], [[1, 1.5], [1.5, 1]], "outside"),
    "negative variance": ([0, 0], [[-1, 0], [0, 1]], "negative variance"),
    "constant": ([0, 0], [[0, 0], [0, 1]], "constant"),
    "infinite": ([0, np.inf], [[1, 0], [0, 1]], "finite"),
    "shape": ([0, 0, 0], [[1, 0], [0, 1]], "shape"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_moments_are_named(case):
    mean, cov, message = BAD[case]
    with pytest.raises(CMaxEntError, match=message):
        Moments.from_arrays(mean, cov, names=["a", "b"])


def test_binary_and_categorical_moments_are_verified():
    with pytest.raises(InconsistentMomentsError, match="variance"):
        Moments.from_arrays([0.3], [[0.25]], names=["y"], kinds={"y": "binary"})
    with pytest.raises(CMaxEntError, match="strictly between 0 and 1"):
        Moments.from_arrays([1.0], [[np.nan]], names=["y"], kinds={"y": "binary"})
    with pytest.raises(CMaxEntError, match="one class"):
        Moments.from_arrays([0.5], [[np.nan]], names=["y=a"], kinds={"y": "categorical"})
    with pytest.raises(InconsistentMomentsError, match="sum to"):
        Moments.from_arrays([0.5, 0.6], np.full((2, 2), np.nan), names=["y=a", "y=b"], kinds={"y": "categorical"})
    with pytest.raises(CMaxEntError, match="distinct"):
        Moments.from_arrays([0, 0], np.eye(2), names=["a", "a"])


def test_bad_rows_name_column_and_row():
    with pytest.raises(CMaxEntError, match="column b, row 1: 'oops' is not a number"):
        Moments.from_data(pd.DataFrame({"a": [1.0, 2], "b": [1, "oops"]}), kinds={"b": "continuous"})
    with pytest.raises(CMaxEntError, match="infinite"):
        Moments.from_data(np.array([[1.0], [np.inf]]))
    with pytest.raises(CMaxEntError, match="constant"):
        Moments.from_data(np.array([[1.5, 2], [1.5, 3]]))
    with pytest.raises(CMaxEntError, match="empty"):
        Accumulator(["a"]).finalize()


@pytest.mark.parametrize("first", [100, 5000])
def test_column_that_is_empty_at_first_keeps_its_digits(first):
    """Its origin is the mean of the first values it has, not zero."""
    rng = np.random.default_rng(1)
    late = rng.standard_normal((2000, 2)) + np.array([0, 1e8])
    early = np.column_stack([rng.standard_normal(first), np.full(first, np.nan)])
    whole = Accumulator(["a", "b"]).update(early).update(late)
    merged = Accumulator(["a", "b"]).update(early).merge(Accumulator(["a", "b"]).update(late))
    backwards = Accumulator(["a", "b"]).update(late).merge(Accumulator(["a", "b"]).update(early))
    at_once = Accumulator(["a", "b"]).update(np.vstack([early, late]))
    for made in (whole, merged, backwards, at_once):
        m = made.finalize()
        assert m.cov[1, 1] == pytest.approx((late[:, 1] - 1e8).var(), rel=1e-9)
        assert m.cov[0, 1] == pytest.approx(np.cov(late[:, 0], late[:, 1] - 1e8, ddof=0)[0, 1], abs=1e-9)


def test_chunks_larger_than_a_strip_and_failed_ones_change_nothing_else():
    rng = np.random.default_rng(2)
    X = rng.standard_normal((9000, 130))
    made = Accumulator([f"x{i}" for i in range(130)]).update(X)
    assert_allclose(made.finalize().cov, np.cov(X.T, ddof=0), atol=1e-12)
    before = made.finalize().cov
    X[8999, 3] = np.inf
    with pytest.raises(CMaxEntError, match="column x3, row 8999: infinite value"):
        made.update(X)
    assert np.array_equal(made.finalize().cov, before)


def test_merging_leaves_the_other_accumulator_as_it_was():
    rng = np.random.default_rng(3)
    a, b = Accumulator(["a", "b"]), Accumulator(["a", "b"]).update(rng.standard_normal((50, 2)))
    before = b.finalize().cov.copy()
    a.merge(b).update(rng.standard_normal((50, 2)))
    assert np.array_equal(b.finalize().cov, before)


def test_frames_are_read_alike_whatever_their_layout():
    rng = np.random.default_rng(4)
    X = rng.standard_normal((300, 4))
    frames = [
        pd.DataFrame(X, columns=list("abcd")),
        pd.DataFrame({c: X[:, i].copy() for i, c in enumerate("abcd")}),
        pd.DataFrame(X[:, ::-1], columns=list("dcba")),
        pd.DataFrame(X, columns=list("abcd")).assign(a=lambda f: f["a"].astype(object)),
    ]
    for frame in frames:
        assert_allclose(Accumulator(list("abcd")).update(frame).finalize().cov, np.cov(X.T, ddof=0), atol=1e-13)


@pytest.mark.parametrize("damage", ["array", "empty", "cut", "text"])
def test_file_that_is_no_archive_is_refused_in_one_line(tmp_path, damage):
    path = tmp_path / "m.npz"
    Moments.from_arrays([0], [[1]], names=["a"]).save(path)
    whole = path.read_bytes()
    if damage == "array":
        np.save(tmp_path / "m.npy", np.eye(2))
        path.write_bytes((tmp_path / "m.npy").read_bytes())
    else:
        path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "text": b"hello"}[damage])
    with pytest.raises(CMaxEntError, match=r"not a cmaxent .npz file or damaged"):
        Moments.load(path)
