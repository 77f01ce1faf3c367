import json
import pickle
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.decomposition import FastICA
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

from isoica import HeavyTailWarning, ModelFileError, PerturbedICA, UnidentifiedWarning, theory
from isoica.contrasts import BUILT_IN, Contrast
from isoica.datasets import make_perturbed_linear, make_sources
from isoica.metrics import mcc, unmixing_error

LAWS = ["uniform", "laplace", "exponential"]


def mixture(n=4000, laws=LAWS, seed=0):
    S = make_sources(n, laws, seed)
    A = np.random.default_rng(seed + 1).normal(size=(S.shape[1], S.shape[1]))
    return S, A, S @ A.T + 3.0


def match(Z, Y):
    """Y with columns permuted and signed to match Z."""
    d = Z.shape[1]
    c = np.corrcoef(Z.T, Y.T)[:d, d:]
    at = np.abs(c).argmax(axis=1)
    return Y[:, at] * np.sign(c[np.arange(d), at])


@parametrize_with_checks([PerturbedICA()])
def test_scikit_learn_contract(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)


@pytest.mark.parametrize("algorithm", ["symmetric", "deflation"])
@pytest.mark.parametrize(("fun", "contrast"), [("logcosh", "logcosh"), ("cube", "cube"), ("exp", "gauss")])
def test_fastica_solver_repeats_the_iterates_of_sklearn(algorithm, fun, contrast):
    _, _, X = mixture()
    steps = 7
    peer = FastICA(
        algorithm="parallel" if algorithm == "symmetric" else algorithm,
        fun=fun, whiten="unit-variance", tol=1e-300, max_iter=steps, random_state=0,
    )  # fmt: skip
    ours = PerturbedICA(
        solver="fastica", algorithm=algorithm, contrast=contrast, tol=1e-300, max_iter=steps, random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Z, Y = peer.fit_transform(X), ours.fit_transform(X)
    np.testing.assert_allclose(match(Z, Y), Z, atol=1e-8)


def test_solution_equals_picard():
    picard = pytest.importorskip("picard").picard
    _, _, X = mixture(laws=[*LAWS, "bimodal", "logistic"])
    _, _, Z = picard(X.T, ortho=True, extended=True, tol=1e-9, max_iter=500, random_state=0)
    Z = Z.T / Z.std(axis=1)
    np.testing.assert_allclose(match(Z, PerturbedICA(tol=1e-9, random_state=3).fit_transform(X)), Z, atol=1e-6)


@pytest.mark.parametrize("contrast", ["logcosh", "cube", "gauss"])
@pytest.mark.parametrize("algorithm", ["symmetric"])
def test_sources_do_not_depend_on_the_basis_of_the_data(contrast, algorithm):
    _, _, X = mixture()
    B = np.random.default_rng(5).normal(size=(3, 3))
    one = PerturbedICA(contrast=contrast, algorithm=algorithm, tol=1e-9, random_state=0).fit_transform(X)
    two = PerturbedICA(contrast=contrast, algorithm=algorithm, tol=1e-9, random_state=1).fit_transform(X @ B.T - 7)
    np.testing.assert_allclose(match(one, two), one, atol=1e-6)


@pytest.mark.parametrize("options", [
    {}, {"algorithm": "deflation"}, {"contrast": "cube"}, {"contrast": "gauss"}, {"contrast": "minimax"},
    {"contrast": "minimax", "algorithm": "deflation", "bias_weight": 0.5}, {"dtype": "float32"}, {"batch_size": 500},
    {"contrast": ["logcosh", "gauss", "logcosh"]}, {"solver": "fastica"},
])  # fmt: skip
def test_every_way_recovers_clean_sources_and_its_attributes_fit_together(options):
    S, A, X = mixture(10000)
    m = PerturbedICA(random_state=0, n_restarts=2, **options).fit(X)
    Z = m.transform(X)
    assert m.converged_
    assert mcc(S, Z) > 0.998
    assert unmixing_error(m.components_, A) < 0.1
    tolerance = 1e-5 if m.dtype == "float32" else 1e-8
    np.testing.assert_allclose(m.components_, m.rotation_ @ m.whitening_, atol=1e-12)
    np.testing.assert_allclose(m.rotation_ @ m.rotation_.T, np.eye(3), atol=1e-10)
    np.testing.assert_allclose(m.components_ @ m.mixing_, np.eye(3), atol=1e-10)
    np.testing.assert_allclose(np.cov(Z.T, ddof=0), np.eye(3), atol=tolerance)
    np.testing.assert_allclose(m.inverse_transform(Z), X, atol=1e-3 if m.dtype == "float32" else 1e-10)
    largest = m.mixing_[np.abs(m.mixing_).argmax(axis=0), np.arange(3)]
    assert np.all(largest > 0)
    z = np.abs(m.alpha_) / m.alpha_se_
    assert np.all(np.diff(z) <= 0)
    # The contrasts belong to the components as they are now, in order and sign.
    alpha = [np.mean(s * c.g(s) - c.dg(s)) for c, s in zip(m.contrasts_, Z.T.astype(float), strict=True)]
    np.testing.assert_allclose(m.alpha_, alpha, atol=1e-4)
    assert m.kappa_.shape == m.stderr_.shape == (3, 3)
    assert np.all(np.diag(m.kappa_) == 0)
    assert np.all((m.stability_ <= 1) & (m.stability_ > 0.8))


def test_skew_margins_have_the_sign_of_the_components():
    S = make_sources(8000, ["exponential"] * 3, 3) * [1, -1, -1]
    m = PerturbedICA(contrast="skew", random_state=0).fit(S)
    np.testing.assert_allclose(m.alpha_, np.mean(m.transform(S) ** 3, axis=0), atol=1e-9)


def test_kappa_and_stderr_equal_the_plug_in_formulas():
    _, _, X = mixture(3000)
    m = PerturbedICA(random_state=0).fit(X)
    Z, n = m.transform(X), 3000
    np.testing.assert_allclose(m.kappa_, theory.sensitivity(Z, "logcosh"), rtol=1e-6)
    g, dg = np.tanh(Z), 1 - np.tanh(Z) ** 2
    mu, rho = np.mean(Z * g, axis=0), dg.mean(axis=0)
    s, tau, g = np.sign(mu - rho), np.abs(mu - rho), g - g.mean(axis=0)
    for i in range(3):
        for j in range(3):
            psi = (
                s[i] * g[:, i] * Z[:, j] - s[j] * g[:, j] * Z[:, i] - (s[i] * mu[i] - s[j] * rho[j]) * Z[:, i] * Z[:, j]
            )
            psi = psi / (tau[i] + tau[j]) if i != j else -(Z[:, i] ** 2 - 1) / 2
            assert m.stderr_[i, j] == pytest.approx(psi.std() / np.sqrt(n), rel=1e-6)


def test_kurtosis_of_gaussian_data_has_its_classical_error():
    X = np.random.default_rng(0).normal(size=(20000, 1))
    m = PerturbedICA(contrast="cube", random_state=0).fit(X)
    assert m.alpha_se_[0] == pytest.approx(np.sqrt(24 / 20000), rel=0.1)
    assert abs(m.components_[0, 0]) == pytest.approx(1 / X.std())


@pytest.mark.parametrize("algorithm", ["symmetric", "deflation"])
def test_standard_errors_cover(aligned, algorithm):
    n, runs = 1000, 250
    inside = np.zeros((3, 3))
    for seed in range(runs):
        S = make_sources(n, ["uniform", "laplace", "exponential"], seed)
        m = PerturbedICA(random_state=0, algorithm=algorithm, tol=1e-5).fit(S)
        B, row = aligned(m.components_, np.eye(3))
        inside += np.abs(B - np.eye(3)) <= 1.96 * m.stderr_[np.ix_(row, row)]
    # Binomial error of one entry is 1.4 %; the smallest and largest of nine stay within these.
    assert np.all(inside / runs > 0.89)
    assert np.all(inside / runs < 0.995)


def test_intervals_with_the_sensitivity_cover_under_a_perturbation(aligned):
    eta, covered, plain = 0.1, [], []
    for seed in range(20):
        data = make_perturbed_linear(4000, d=3, eta=eta, random_state=seed)
        m = PerturbedICA(random_state=0).fit(data.X)
        B, row = aligned(m.components_, data.A)
        off = ~np.eye(3, dtype=bool)
        order = np.ix_(row, row)
        covered.append(np.abs(B)[off] <= 1.96 * m.report(n_permutations=1).total_error(eta)[order][off])
        plain.append(np.abs(B)[off] <= 1.96 * m.stderr_[order][off])
    assert np.mean(covered) > 0.97
    assert np.mean(plain) < 0.9  # what ignoring the misspecification costs


def test_weights_equal_repetition():
    _, _, X = mixture(600)
    w = np.random.default_rng(0).integers(0, 4, len(X))
    one = PerturbedICA(random_state=0, tol=1e-9).fit(X, sample_weight=w)
    two = PerturbedICA(random_state=0, tol=1e-9).fit(np.repeat(X, w, axis=0))
    np.testing.assert_allclose(one.components_, two.components_, atol=1e-7)
    np.testing.assert_allclose(one.kappa_, two.kappa_, atol=1e-6)
    assert one.n_effective_ == pytest.approx(w.sum() ** 2 / (w**2).sum())


def test_gaussian_subspace_is_named():
    S, A, _ = mixture(6000)
    S = np.column_stack([S[:, :2], np.random.default_rng(9).normal(size=(6000, 2))])
    A = np.random.default_rng(2).normal(size=(4, 4))
    with pytest.warns(UnidentifiedWarning, match="span"):
        m = PerturbedICA(random_state=0).fit(S @ A.T)
    report = m.report(n_permutations=5)
    assert report.identified.tolist() == [True, True, False, False]
    assert any("Gaussian" in w for w in report.warnings)
    P = m.unidentified_subspace_
    np.testing.assert_allclose(P @ P, P, atol=1e-10)
    assert np.trace(P) == pytest.approx(2)
    direction = A[:, 2] / np.linalg.norm(A[:, 2])
    assert np.linalg.norm(P @ direction - direction) < 0.1


def test_fewer_components_than_columns_and_rank():
    S, _, _ = mixture()
    wide = S @ np.random.default_rng(3).normal(size=(3, 6))
    with pytest.warns(UserWarning, match="rank 3"):
        m = PerturbedICA(random_state=0).fit(wide)
    assert m.components_.shape == (3, 6)
    assert mcc(S, m.transform(wide)) > 0.99
    with pytest.raises(ValueError, match="rank 3"):
        PerturbedICA(5).fit(wide)
    noisy = wide + 0.01 * np.random.default_rng(4).normal(size=wide.shape)
    assert PerturbedICA(3, random_state=0).fit(noisy).mixing_.shape == (6, 3)


def test_report_formulas_and_json():
    data = make_perturbed_linear(8000, d=3, eta=0.2, random_state=1)
    m = PerturbedICA(random_state=0, n_restarts=3).fit(data.X)
    r = m.report(eta=0.1, n_permutations=30)
    np.testing.assert_allclose(r.total_error(0.1), np.sqrt(m.stderr_**2 + (0.1 * m.kappa_) ** 2))
    off = ~np.eye(3, dtype=bool)
    np.testing.assert_allclose(r.n_star[off], (m.stderr_**2 * 8000 / (0.1 * m.kappa_ + np.eye(3)) ** 2)[off])
    np.testing.assert_allclose(r.z, m.alpha_ / m.alpha_se_)
    assert 0 < r.eta_lower <= r.eta_hat < 0.2
    assert r.p_value == pytest.approx(1 / 31)
    again = m.report(data.X, eta=0.1, n_permutations=30)
    assert again.eta_hat == pytest.approx(r.eta_hat)
    assert json.loads(json.dumps(r.to_dict(), allow_nan=False))["identified"] == [True] * 3
    assert "undetectable" in r.to_text()
    assert np.all(np.isfinite(m.report(n_permutations=5).n_star[off]))


def test_save_and_load_round_trip(tmp_path):
    _, _, X = mixture()
    m = PerturbedICA(random_state=0, contrast="gauss", n_restarts=2).fit(X)
    m.save(tmp_path / "model.npz")
    again = PerturbedICA.load(tmp_path / "model.npz")
    np.testing.assert_array_equal(again.transform(X), m.transform(X))
    np.testing.assert_array_equal(again.inverse_transform(X), m.inverse_transform(X))
    assert again.get_params() == m.get_params()
    assert again.report(X, n_permutations=5).to_dict() == m.report(X, n_permutations=5).to_dict()
    assert "pass X" in again.report().to_text()
    assert [p.name for p in tmp_path.iterdir()] == ["model.npz"]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(m)).transform(X), m.transform(X))


@pytest.mark.parametrize("content", [b"", b"not a model", None])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "x.npz"
    if content is None:
        np.savez(path, a=np.ones(3))
    else:
        path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"x\.npz"):
        PerturbedICA.load(path)
    with pytest.raises(ModelFileError, match="does not exist"):
        PerturbedICA.load(tmp_path / "absent.npz")


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda X: np.where(np.arange(3) == 1, np.nan, X), {}, "NaN"),
        (lambda X: np.where(np.arange(3) == 1, 4.0, X), {}, "constant column.*: 1"),
        (lambda X: X[:3], {"n_components": 3}, "n_samples = 3 is too few"),
        (lambda X: X, {"n_components": 4}, "rank 3"),
        (lambda X: X, {"contrast": "tanh"}, "logcosh"),
        (lambda X: X, {"algorithm": "parallel"}, "symmetric"),
        (lambda X: X, {"whiten": False}, "covariance identity"),
        (lambda X: X, {"tol": 0.0}, "positive"),
        (lambda X: X, {"bias_weight": 2.0}, r"\[0, 1\]"),
        (lambda X: X, {"batch_size": 0}, "batch_size"),
        (lambda X: X, {"n_restarts": 0}, "n_restarts"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_bad_input_is_named(change, options, message):
    _, _, X = mixture(200)
    with pytest.raises(ValueError, match=message):
        PerturbedICA(**options).fit(change(X))


def test_warnings_name_their_cause():
    _, _, X = mixture(25)
    with pytest.warns(UserWarning, match="25 samples for 3 components"), warnings.catch_warnings():
        PerturbedICA(random_state=0).fit(X)
    _, _, X = mixture(400)
    with pytest.warns(ConvergenceWarning, match="gradient"):
        PerturbedICA(max_iter=1, random_state=0).fit(X)
    X[0] = 300.0
    with pytest.warns(HeavyTailWarning, match="five samples"):
        PerturbedICA(contrast="cube", random_state=0).fit(X)
    with pytest.raises(NotFittedError):
        PerturbedICA().transform(X)


def test_user_contrast_is_used_and_saved_by_name(tmp_path):
    _, _, X = mixture()
    c = BUILT_IN["logcosh"]
    mine = Contrast(c.G, c.g, c.dg, 1.0, "mine")
    one = PerturbedICA(contrast=mine, random_state=0, tol=1e-9).fit(X)
    two = PerturbedICA(random_state=0, tol=1e-9).fit(X)
    np.testing.assert_allclose(one.components_, two.components_, atol=1e-8)
    assert clone(one).contrast is not None
    one.save(tmp_path / "m.npz")
    assert PerturbedICA.load(tmp_path / "m.npz").contrast == "mine"


def test_white_data_need_no_whitening_and_streams_equal_arrays(tmp_path):
    S, _, X = mixture()
    Z = PerturbedICA(random_state=0).fit_transform(X)
    m = PerturbedICA(whiten=False, random_state=1).fit(Z)
    np.testing.assert_allclose(np.abs(m.components_).max(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(m.whitening_, np.eye(3))
    np.save(tmp_path / "x.npy", X)
    stream = PerturbedICA(random_state=0, batch_size=512, tol=1e-9).fit(np.load(tmp_path / "x.npy", mmap_mode="r"))
    whole = PerturbedICA(random_state=0, tol=1e-9).fit(X)
    np.testing.assert_allclose(stream.components_, whole.components_, atol=1e-8)
    assert mcc(S, stream.transform(X)) > 0.99


def test_import_leaves_frameworks_alone():
    import subprocess
    import sys

    code = "import isoica, sys; print([m for m in ('jax', 'numpy', 'sklearn', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    code = "from isoica import PerturbedICA, theory, metrics, datasets; import sys; print('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("batch_size", [None, 700])
def test_winsorising_bounds_what_a_few_samples_can_do(batch_size):
    _, A, X = mixture(6000)
    X = X.copy()
    X[::1500] *= 1e3
    kept = PerturbedICA(random_state=0, winsorize=1e-3, batch_size=batch_size).fit(X)
    low, high = np.quantile(X, [1e-3, 1 - 1e-3], axis=0)
    by_hand = PerturbedICA(random_state=0).fit(np.clip(X, low, high))
    np.testing.assert_allclose(kept.components_, by_hand.components_, atol=1e-6)
    assert unmixing_error(kept.components_, A) < 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert unmixing_error(PerturbedICA(random_state=0).fit(X).components_, A) > 0.3
