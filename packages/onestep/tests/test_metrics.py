"""Sample metrics against peers (scipy, POT, prdc, torch-fidelity where installed) and against what they estimate."""

import contextlib
import importlib
import io

import numpy as np
import ot
import pytest
from prdc import compute_prdc
from scipy import linalg

import onestep_diffusion as osd

RNG = np.random.default_rng(0)


def features(n, d=12, rank=None, seed=0, shift=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, rank or d)) @ rng.normal(size=(rank or d, d)) + shift


def covariance(d, seed):
    return np.cov(features(3 * d, d, seed=seed).T)


# --- Frechet --------------------------------------------------------------------------------------------------------


def test_frechet_distance_is_that_of_the_matrix_root():
    mu1, mu2, c1, c2 = RNG.normal(size=8), RNG.normal(size=8), covariance(8, 1), covariance(8, 2)
    root = linalg.sqrtm(c1 @ c2).real
    exact = np.sum((mu1 - mu2) ** 2) + np.trace(c1 + c2 - 2 * root)
    assert osd.frechet_distance(mu1, c1, mu2, c2) == pytest.approx(exact, rel=1e-10)


def test_frechet_distance_is_the_wasserstein_distance_of_gaussians():
    mu1, mu2, c1, c2 = RNG.normal(size=5), RNG.normal(size=5), covariance(5, 3), covariance(5, 4)
    exact = ot.gaussian.bures_wasserstein_distance(mu1, mu2, c1, c2) ** 2
    assert osd.frechet_distance(mu1, c1, mu2, c2) == pytest.approx(exact, rel=1e-8)


def test_frechet_distance_of_singular_and_of_equal_covariances():
    """Point masses against N(0, I): |mu|^2 + d; a rank-one law with itself: 0; never negative."""
    d, zero, line = 4, np.zeros((4, 4)), np.outer(np.arange(4), np.arange(4.0))
    assert osd.frechet_distance(np.ones(d), zero, np.zeros(d), np.eye(d)) == pytest.approx(2 * d)
    assert osd.frechet_distance(np.ones(d), line, np.ones(d), line) == pytest.approx(0, abs=1e-6)
    assert osd.frechet_distance(np.zeros(d), line, np.zeros(d), np.eye(d)) == pytest.approx(14 + 4 - 2 * np.sqrt(14))


def test_fid_is_the_frechet_distance_of_the_moments():
    a, b = features(60), features(50, seed=1, shift=0.5)
    exact = osd.frechet_distance(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))
    assert osd.fid(a, b) == pytest.approx(exact)
    assert osd.fid(a[:, :1], b[:, :1]) == pytest.approx(
        (a[:, 0].mean() - b[:, 0].mean()) ** 2 + (a[:, 0].std(ddof=1) - b[:, 0].std(ddof=1)) ** 2
    )


def let_torchvision_load():
    """A wheel of torchvision for another build of torch stops its import at operators that nothing here calls."""
    torch = pytest.importorskip("torch")
    with contextlib.suppress(ImportError):
        try:
            importlib.import_module("torchvision")
        except RuntimeError:
            library = torch.library.Library("torchvision", "FRAGMENT")
            for name in ("nms", "qnms"):
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            importlib.import_module("torchvision")
            return library  # the declarations live as long as it does
    return None


def test_fid_and_kid_agree_with_torch_fidelity():
    kept = let_torchvision_load()
    fidelity = pytest.importorskip("torch_fidelity")
    from torch_fidelity import metric_fid, metric_kid

    a, b = features(80), features(80, rank=5, seed=1)
    moments = [{"mu": f.mean(0), "sigma": np.cov(f.T)} for f in (a, b)]
    theirs = metric_fid.fid_statistics_to_metric(*moments, False)[fidelity.KEY_METRIC_FID]
    assert osd.fid(a, b) == pytest.approx(theirs, rel=1e-6)
    options = dict(kid_kernel="poly", kid_kernel_poly_degree=3, kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1)
    assert osd.kid(a, b, subsets=1, subset_size=80)[0] == pytest.approx(metric_kid.kernel_mmd(a, b, **options))
    del kept


# --- kernels --------------------------------------------------------------------------------------------------------


def pairwise_mmd2(x, y, kernel):
    """The definition, pair by pair."""
    xx = np.mean([kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    yy = np.mean([kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    return xx + yy - 2 * np.mean([kernel(a, b) for a in x for b in y])


def test_mmd_and_kid_are_their_definitions():
    x, y = features(11, d=3), features(9, d=3, seed=1, shift=0.3)
    exact = pairwise_mmd2(x, y, lambda a, b: np.mean([np.exp(-np.sum((a - b) ** 2) / (2 * h**2)) for h in (0.7, 2.0)]))
    for chunk in (4, 1024):
        assert osd.mmd2(x, y, bandwidths=[0.7, 2.0], chunk=chunk) == pytest.approx(exact, rel=1e-9)
    cubic = pairwise_mmd2(x[:9], y, lambda a, b: (a @ b / 3 + 1) ** 3)
    mean, std = osd.kid(x[:9], y, subsets=3, subset_size=9)
    assert mean == pytest.approx(cubic, rel=1e-9)
    assert std == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("metric", ["mmd2", "kid"])
def test_unbiased_metrics_have_mean_zero_between_equal_laws(metric):
    rng = np.random.default_rng(5)

    def one():
        x, y = rng.normal(size=(2, 30, 2))
        return osd.mmd2(x, y) if metric == "mmd2" else osd.kid(x, y, subsets=2, subset_size=20)[0]

    values = np.array([one() for _ in range(300)])
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(300)
    assert (values < 0).any()
    x, y = rng.normal(size=(2, 200, 2))
    assert (osd.mmd2(x, y + 1) if metric == "mmd2" else osd.kid(x, y + 1, subset_size=100)[0]) > 10 * values.std()


# --- sliced Wasserstein ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("sizes", [(40, 40), (35, 50), (7, 100)])
def test_sliced_wasserstein_agrees_with_pot(p, sizes):
    x, y = features(sizes[0], d=5), features(sizes[1], d=5, seed=1)
    directions = np.random.default_rng(3).standard_normal((5, 64))
    directions /= np.linalg.norm(directions, axis=0)
    theirs = ot.sliced_wasserstein_distance(x, y, projections=directions, p=p)
    assert osd.sliced_wasserstein(x, y, n_proj=64, p=p, seed=3) == pytest.approx(theirs, rel=1e-10)


def test_sliced_wasserstein_of_shifted_samples_is_the_mean_projection_of_the_shift():
    x, shift = features(30, d=3), np.array([1.0, -2.0, 0.5])
    many = osd.sliced_wasserstein(x, x + shift, n_proj=20_000)
    assert many == pytest.approx(np.linalg.norm(shift) / np.sqrt(3), rel=0.02)
    assert osd.sliced_wasserstein(x, x) == 0


# --- neighbours and modes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3, 5])
def test_prdc_is_exactly_that_of_the_reference(k):
    real, fake = features(90, d=4), features(70, d=4, seed=1, shift=0.4)
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = compute_prdc(real, fake, k)
    for chunk in (16, 1024):
        assert osd.prdc(real, fake, k=k, chunk=chunk) == pytest.approx(theirs, abs=0, rel=1e-15)


def test_prdc_tells_missing_modes_from_bad_samples():
    rng = np.random.default_rng(1)
    real = np.concatenate([rng.normal(size=(200, 2)), rng.normal(size=(200, 2)) + 20])
    one_mode, scattered = rng.normal(size=(400, 2)), rng.uniform(-60, 60, size=(400, 2))
    collapsed, noisy = osd.prdc(real, one_mode), osd.prdc(real, scattered)
    assert collapsed["precision"] > 0.9 > 0.6 > collapsed["recall"]
    assert collapsed["coverage"] < 0.6
    assert noisy["precision"] < 0.2


def test_mode_statistics_count_modes_quality_and_balance():
    gm = osd.GaussianMixture([0.25, 0.25, 0.5], [[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]], [1.0, 0.5, 1.0])
    x = np.array([[0.0, 0.0], [0.0, 2.9], [0.0, 3.1], [10.0, 1.4], [10.0, 1.6]])  # two modes, the last two too wide
    out = osd.mode_stats(x, gm)
    assert (out["modes"], out["high_quality"]) == (2, 3 / 5)
    assert out["kl"] == pytest.approx(0.6 * np.log(0.6 / 0.25) + 0.4 * np.log(0.4 / 0.25), rel=1e-6)
    k = RNG.choice(3, 4000, p=np.asarray(gm.weights))
    drawn = np.asarray(gm.means)[k] + np.asarray(gm.scales)[k, None] * RNG.normal(size=(4000, 2))
    truth = osd.mode_stats(drawn, gm)
    assert truth["modes"] == 3
    assert truth["high_quality"] == pytest.approx(1 - np.exp(-4.5), abs=0.01)  # P(|x| < 3) in the plane
    assert truth["kl"] < 0.005


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: osd.fid(x, x[:, :1]), "equally many columns; got 2 and 1"),
        (lambda x: osd.fid(x[:1], x), "at least 2 rows; got 1"),
        (lambda x: osd.fid(np.full_like(x, np.nan), x), "finite"),
        (lambda x: osd.fid(x[:, 0], x), r"\(n, d\); got shape \(6,\)"),
        (lambda x: osd.kid(x, x, subset_size=7), "subset_size=7 has to lie between 2 and the number of rows, 6 and 6"),
        (lambda x: osd.prdc(x, x, k=6), "at least 7 rows; got 6"),
        (lambda x: osd.mmd2(x, x, bandwidths=[0.0]), "bandwidths have to be positive"),
        (lambda x: osd.frechet_distance(x[0], np.eye(2), x[0], np.eye(3)), r"got \(2,\), \(2, 2\), \(2,\), \(3, 3\)"),
    ],
)
def test_samples_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.arange(12.0).reshape(6, 2))


@pytest.mark.parametrize("call", [
    lambda x: osd.sliced_wasserstein(x, x, p=0), lambda x: osd.sliced_wasserstein(x, x, n_proj=0),
    lambda x: osd.prdc(x, x, k=0), lambda x: osd.kid(x, x, subsets=0, subset_size=5),
])  # fmt: skip
def test_settings_out_of_range_are_refused(call):
    with pytest.raises(ValueError, match=r"has to be|have to be"):
        call(np.random.default_rng(0).normal(size=(20, 3)))
