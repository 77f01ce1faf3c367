"""Private moments: the calibration, the sensitivity behind it, and that what comes out can be used."""

import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.special import ndtr
from scipy.stats import kstest

from cmaxent import MergedClassifier, Moments, merge
from cmaxent.errors import CMaxEntError
from cmaxent.privacy import _Release, _scaled_moments, _scaling, gaussian_noise_scale

BOUNDS = {"x1": (-5.0, 5.0), "x2": (0.0, 40.0)}


def table(n, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.random(n) < 0.4
    frame = pd.DataFrame({"y": y})
    frame["x1"] = np.clip(rng.normal(size=n) + y, -5, 5)
    frame["x2"] = np.clip(20 + 6 * rng.normal(size=n) - 3 * frame.x1, 0, 40)
    frame["c"] = pd.Categorical(np.array(["a", "b", "d"])[np.digitize(rng.normal(size=n) + 0.5 * y, [-0.5, 1])])
    frame["z"] = rng.random(n) < 0.3 + 0.2 * y
    return frame


# --- calibration -----------------------------------------------------------------------------------------------------


@given(st.floats(1e-3, 30), st.floats(1e-12, 0.5), st.floats(1e-6, 1e3))
@settings(max_examples=200, deadline=None)
def test_noise_scale_is_the_smallest_that_satisfies_the_exact_inequality(epsilon, delta, sensitivity):
    s = gaussian_noise_scale(epsilon, delta, sensitivity) / sensitivity

    def exact(s):
        return ndtr(0.5 / s - epsilon * s) - np.exp(epsilon) * ndtr(-0.5 / s - epsilon * s)

    assert_allclose(exact(s), delta, rtol=1e-6, atol=1e-15)
    assert exact(0.99 * s) > delta
    if epsilon < 1 and delta < 0.1:  # where the textbook constant is valid
        assert s < np.sqrt(2 * np.log(1.25 / delta)) / epsilon


def test_noise_has_the_calibrated_scale_on_every_entry_and_mirrors_the_matrix():
    moments = Moments.from_data(table(10**6)[["y", "x1", "x2"]])
    release = _Release.of(moments)
    scale = gaussian_noise_scale(1.0, 1e-6, release.sensitivity / 1e6)
    middle, width = _scaling(moments, BOUNDS)
    mean, second = _scaled_moments(moments, middle, width)
    gaps = []
    for seed in range(200):
        private = moments.privatize(1.0, 1e-6, BOUNDS, seed)
        assert np.array_equal(private.cov, private.cov.T)
        noisy_mean, noisy_second = _scaled_moments(private, middle, width)
        i, j = release.seconds
        gaps.append(np.concatenate([(noisy_mean - mean)[release.means], (noisy_second - second)[i, j]]) / scale)
    gaps = np.array(gaps)
    assert kstest(gaps.ravel(), "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(gaps.T) - np.eye(gaps.shape[1])).max() < 0.35  # independent entries


# --- sensitivity -----------------------------------------------------------------------------------------------------


def released(frame):
    moments = Moments.from_data(
        frame, kinds={"y": "binary", "z": "binary", "c": "categorical"} if "c" in frame else "infer"
    )
    middle, width = _scaling(moments, {v: b for v, b in BOUNDS.items() if v in frame})
    mean, second = _scaled_moments(moments, middle, width)
    release = _Release.of(moments)
    i, j = release.seconds
    return np.concatenate([mean[release.means], second[i, j]]), release


@pytest.mark.parametrize("columns", [["y", "x1"], ["y", "x1", "x2", "c", "z"], ["x1", "x2"]])
def test_sensitivity_bounds_the_effect_of_replacing_any_row(columns):
    n = 12
    frame = table(n, seed=3)[columns]
    rng = np.random.default_rng(0)
    largest = 0.0
    extremes = {
        "x1": (-5.0, 5.0, 0.0),
        "x2": (0.0, 40.0, 20.0),
        "y": (False, True),
        "z": (False, True),
        "c": ("a", "b", "d"),
    }
    candidates = list(itertools.product(*(extremes[c] for c in columns)))
    if len(candidates) > 60:
        candidates = [candidates[k] for k in rng.choice(len(candidates), 60, replace=False)]
    vectors = []
    for row in candidates:
        changed = frame.copy()
        for column, value in zip(columns, row, strict=True):
            changed.loc[0, column] = value
        vector, release = released(changed)
        vectors.append(vector)
    distances = np.linalg.norm(np.array(vectors)[:, None] - np.array(vectors)[None], axis=2)
    largest = distances.max()
    assert largest <= release.sensitivity / n * (1 + 1e-9)
    assert largest >= 0.5 * release.sensitivity / n  # not a wasteful bound


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(0, 6))
@settings(max_examples=60, deadline=None)
def test_sensitivity_bounds_the_distance_of_any_two_rows_for_any_known_pairs(seed, continuous, binary):
    rng = np.random.default_rng(seed)
    q = continuous + binary
    names = [f"v{i}" for i in range(q)]
    cov = np.where(rng.random((q, q)) < rng.random(), np.nan, 0.0)
    cov = np.triu(cov, 1) + np.triu(cov, 1).T + np.diag(np.r_[np.ones(continuous), np.full(binary, 0.25)])
    mean = np.r_[np.zeros(continuous), np.full(binary, 0.5)]
    moments = Moments.from_arrays(mean, cov, names=names, kinds=dict.fromkeys(names[continuous:], "binary"))
    release = _Release.of(moments)
    i, j = release.seconds

    def row():
        u = rng.uniform(-0.5, 0.5, q) if rng.random() < 0.5 else rng.choice([-0.5, 0.0, 0.5], q)
        u[continuous:] = rng.choice([-0.5, 0.5], binary)
        return np.concatenate([u, u[i] * u[j]])

    for _ in range(100):
        assert np.linalg.norm(row() - row()) <= release.sensitivity * (1 + 1e-12)


# --- what comes out --------------------------------------------------------------------------------------------------


def test_error_shrinks_in_proportion_to_the_number_of_rows():
    errors = []
    for n in (10**4, 10**5, 10**6):
        moments = Moments.from_data(table(2000)[["y", "x1", "x2"]])
        moments = Moments.from_arrays(moments.mean, moments.cov, names=moments.names, kinds=moments.kinds, n=n)
        sd = np.sqrt(moments.cov.diagonal())
        draws = [moments.privatize(1.0, 1e-7, BOUNDS, seed) for seed in range(40)]
        errors.append(np.sqrt(np.mean([((d.cov - moments.cov) / np.outer(sd, sd)) ** 2 for d in draws])))
    slopes = np.diff(np.log10(errors))
    assert_allclose(slopes, -1.0, atol=0.1)


def test_same_seed_same_result_and_generators_advance():
    moments = Moments.from_data(table(3000))
    a, b, c = (moments.privatize(1.0, 1e-6, BOUNDS, seed) for seed in (1, 1, 2))
    assert np.array_equal(a.cov, b.cov)
    assert np.array_equal(a.mean, b.mean)
    assert not np.array_equal(a.mean, c.mean)
    rng = np.random.default_rng(1)
    first, second = moments.privatize(1.0, 1e-6, BOUNDS, rng), moments.privatize(1.0, 1e-6, BOUNDS, rng)
    assert np.array_equal(a.mean, first.mean)
    assert not np.array_equal(first.mean, second.mean)


@pytest.mark.parametrize("graph", ["causal", "anticausal"])
@pytest.mark.parametrize("columns", [["y", "x1", "x2"], ["y", "x1", "x2", "c", "z"]])
def test_private_moments_give_nearly_the_same_predictor(graph, columns):
    frame = table(100_000)[columns]
    moments = Moments.from_data(frame)
    private = moments.privatize(2.0, 1e-7, BOUNDS, 0)
    assert private.repair_alpha == 0.0
    X = frame.drop(columns="y").iloc[:500]
    a, b = (MergedClassifier(graph=graph).fit_moments(m).predict_proba(X) for m in (moments, private))
    assert np.abs(a - b).max() < 0.05


def test_sources_with_different_columns_merge_after_privatising():
    frame = table(60_000)
    parts = [frame[["y", "x1", "z"]].iloc[:30_000], frame[["y", "x2", "c"]].iloc[30_000:]]
    made = [
        Moments.from_data(part).privatize(2.0, 1e-7, {v: b for v, b in BOUNDS.items() if v in part}, seed)
        for seed, part in enumerate(parts)
    ]
    merged = merge(made)
    fitted = MergedClassifier(graph="anticausal").fit_moments(merged)
    assert fitted.residual_ < 1e-9
    assert fitted.score(frame.drop(columns="y"), frame.y) > 0.6


@pytest.mark.parametrize("seed", range(12))
def test_heavy_noise_is_repaired_into_usable_moments(seed):
    moments = Moments.from_data(table(400, seed))
    if seed % 2:
        moments = moments.hide([("x1", "x2"), ("c", "z")])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        private = moments.privatize(0.3, 1e-6, BOUNDS, seed)
    assert private.repair_alpha >= 0.0
    assert np.array_equal(private.known, moments.known)
    assert private.kinds == moments.kinds
    assert private.n == moments.n
    at = private.coordinates
    for v in ("y", "z"):
        (k,) = at(v)
        assert 0 < private.mean[k] < 1
        assert_allclose(private.cov[k, k], private.mean[k] * (1 - private.mean[k]))
    own = at("c")
    assert_allclose(private.mean[own].sum(), 1.0)
    assert_allclose(private.cov[own].sum(axis=0)[~np.isnan(private.cov[own].sum(axis=0))], 0.0, atol=1e-9)
    for v, (low, high) in BOUNDS.items():
        assert low <= private.mean[at(v)[0]] <= high
        assert private.cov[at(v)[0], at(v)[0]] > 0
    scale = np.sqrt(private.cov.diagonal())
    assert np.nanmax(np.abs(private.cov / np.outer(scale, scale)) - np.eye(private.p)) < 1
    cells = private.cov[at("y")[0], own] + private.mean[at("y")[0]] * private.mean[own]
    assert (cells > -1e-12).all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        MergedClassifier(graph="causal", on_infeasible="ridge").fit_moments(private.subset(["y", "x1", "x2"]))


def test_strong_collinearity_is_repaired_and_reported():
    rng = np.random.default_rng(0)
    base = rng.uniform(-1, 1, size=2000)
    frame = pd.DataFrame({f"x{i}": base + 1e-3 * rng.normal(size=2000) for i in range(6)})
    with pytest.warns(UserWarning, match="hides the variance"):
        private = Moments.from_data(frame).privatize(0.5, 1e-6, dict.fromkeys(frame, (-2.0, 2.0)), 0)
    assert private.repair_alpha > 0
    scale = np.sqrt(private.cov.diagonal())
    assert np.linalg.eigvalsh(private.cov / np.outer(scale, scale))[0] > 1e-4


def test_a_variance_below_the_noise_is_floored_with_a_warning():
    moments = Moments.from_arrays([0.0], [[1e-4]], names=["x"], n=100)
    with pytest.warns(UserWarning, match=r"hides the variance of x: give tighter bounds"):
        private = moments.privatize(1.0, 1e-6, {"x": (-100, 100)}, 0)
    assert private.cov[0, 0] > 0


def test_smallest_pair_count_sets_the_noise():
    counts = np.full((2, 2), 1e6)
    moments = {}
    for pairs in (1e6, 1e4):
        counts[0, 1] = counts[1, 0] = pairs
        moments[pairs] = Moments.from_arrays([0, 0], [[1, 0.2], [0.2, 1]], names=["a", "b"], n=counts)
    bounds = {"a": (-3.0, 3.0), "b": (-3.0, 3.0)}
    many, few = (np.abs(moments[k].privatize(3.0, 1e-5, bounds, 0).mean) for k in (1e6, 1e4))
    assert_allclose(few, 100 * many, rtol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": 0.0}, "epsilon has to be a positive number"),
        ({"epsilon": np.inf}, "epsilon has to be a positive number"),
        ({"delta": 0.0}, "delta has to lie strictly between 0 and 1"),
        ({"delta": 1.0}, "delta has to lie strictly between 0 and 1"),
        ({"bounds": {"x1": (-5, 5)}}, "bounds are missing for x2"),
        ({"bounds": BOUNDS | {"w": (0, 1)}}, "bounds name w"),
        ({"bounds": BOUNDS | {"y": (0, 1)}}, "y is discrete"),
        ({"bounds": BOUNDS | {"x1": (5, -5)}}, "finite and increasing"),
        ({"bounds": BOUNDS | {"x1": 5}}, r"pair \(lowest, highest\)"),
        ({"bounds": BOUNDS | {"x2": (0, 3)}}, "x2 has mean .* outside its bounds"),
        ({"bounds": BOUNDS | {"x2": (19, 21)}}, "x2 has .*"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"epsilon": 1.0, "delta": 1e-6, "bounds": BOUNDS} | change
    with pytest.raises(CMaxEntError, match=message):
        Moments.from_data(table(500)).privatize(**arguments)


def test_moments_without_counts_are_refused():
    with pytest.raises(CMaxEntError, match="needs the number of rows"):
        Moments.from_arrays([0.0], [[1.0]], names=["x"]).privatize(1.0, 1e-6, {"x": (-1, 1)})
