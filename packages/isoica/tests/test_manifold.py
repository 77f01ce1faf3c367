import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import check_estimator

from isoica import RigidAlignment
from isoica.alignment import align, global_rhs, laplacian, laplacian_solver, local_step
from isoica.charts import Atlas
from isoica.datasets import DeepIsometry, make_near_isometric
from isoica.errors import IsoICAError, ModelFileError
from isoica.metrics import affine_r2, procrustes_residual
from isoica.neighbours import intrinsic_dimension, neighbours_of, tangent_places


def _patch(n, d, D, seed=0):
    rng = np.random.default_rng(seed)
    S = rng.uniform(size=(n, d))
    return S, S @ np.linalg.qr(rng.normal(size=(D, D)))[0][:d] + 3.0


@pytest.fixture(scope="module")
def curved():
    data = make_near_isometric(600, 2, theta=0.05, noise=0.01, random_state=1)
    return data, RigidAlignment(2, random_state=0).fit(data.X)


@pytest.mark.filterwarnings("ignore")
def test_follows_the_contract_of_scikit_learn():
    failed = [r for r in check_estimator(RigidAlignment(random_state=0), on_fail=None) if r["status"] == "failed"]
    assert not failed, failed


@pytest.mark.parametrize(("d", "D"), [(1, 1), (1, 4), (2, 2), (2, 7), (3, 40)])
def test_flat_patches_are_recovered_up_to_a_rigid_motion(d, D):
    S, X = _patch(400, d, D)
    model = RigidAlignment(d, random_state=0).fit(X)
    assert procrustes_residual(S, model.embedding_) < 1e-6
    assert model.theta_ < 1e-6


@pytest.mark.filterwarnings("ignore:the graph")
def test_a_curve_is_laid_out_by_its_arclength():
    t = np.sort(np.random.default_rng(2).uniform(0, 2 * np.pi * 1.5, size=1500))
    helix = np.stack([np.cos(t), np.sin(t), t], axis=1)
    model = RigidAlignment(1, n_neighbors=6, random_state=0).fit(helix)
    assert procrustes_residual(np.sqrt(2) * t[:, None], model.embedding_) < 2e-4


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_energy_never_rises(noise):
    data = make_near_isometric(300, 2, theta=0.2, noise=noise, random_state=3)
    model = RigidAlignment(2, init="pca", random_state=0).fit(data.X)
    assert (np.diff(model.energies_) <= 1e-12 * model.energies_[0]).all()


def test_plain_local_and_global_steps_never_raise_the_energy_and_the_solution_is_stationary():
    data = make_near_isometric(200, 2, theta=0.3, noise=0.05, random_state=4)
    hood = tangent_places(data.X, neighbours_of(data.X, 10), 2, "projected")
    solve = laplacian_solver(laplacian(hood), 2, "direct")
    z = np.random.default_rng(5).normal(size=(200, 2))
    energies = []
    for _ in range(30):
        R, energy = local_step(hood, z)
        energies.append(energy)
        z = solve(global_rhs(hood, R), z)
    assert (np.diff(energies) <= 1e-12 * energies[0]).all()
    found = align(hood, z, solve, 2000, 1e-14)
    step = 1e-5 * np.random.default_rng(6).normal(size=z.shape)
    up, down = (local_step(hood, found.z + s)[1] for s in (step, -step))
    assert abs(up - down) < 1e-4 * (up + down - 2 * found.energies[-1])


@pytest.mark.parametrize("kind", ["amg", "cg"])
@pytest.mark.filterwarnings("ignore:not converged")
def test_iterative_solvers_give_the_embedding_of_the_direct_one(kind):
    data = make_near_isometric(300, 2, theta=0.1, random_state=7)
    direct, other = (
        RigidAlignment(2, eigen_solver=k, max_iter=20, tol=0, random_state=0).fit(data.X) for k in ("direct", kind)
    )
    np.testing.assert_allclose(other.embedding_, direct.embedding_, atol=1e-4)


@pytest.mark.parametrize("init", ["isomap", "hlle", "ltsa"])
def test_every_start_reaches_the_same_chart(init, curved):
    data, reference = curved
    model = RigidAlignment(2, init=init, max_iter=1000, tol=1e-10, random_state=0).fit(data.X)
    assert procrustes_residual(reference.embedding_, model.embedding_) < 1e-3


def test_affine_ambiguous_starts_have_the_metric_of_the_data():
    data = make_near_isometric(600, 2, theta=0.0, random_state=8)
    for init in ("hlle", "ltsa"):
        model = RigidAlignment(2, init=init, max_iter=0, random_state=0).fit(data.X)
        assert procrustes_residual(data.S, model.embedding_) < 0.02


def test_residual_of_a_near_isometry_is_of_the_order_of_theta_and_below_that_of_the_start():
    ratios = []
    for theta in (0.05, 0.1, 0.2):
        data = make_near_isometric(800, 2, theta=theta, random_state=9)
        model = RigidAlignment(2, random_state=0).fit(data.X)
        ratios.append(np.sqrt(2 * (1 - affine_r2(data.S, model.embedding_))) / theta)
    assert max(ratios) < 1.14 * 2  # K_aff (1 + L/ℓ) to first order
    assert max(ratios) < 1.5 * min(ratios)


def test_charts_return_the_embedding_on_training_points_and_invert_each_other(curved):
    data, model = curved
    np.testing.assert_allclose(model.transform(data.X), model.embedding_, atol=1e-12)
    np.testing.assert_allclose(model.inverse_transform(model.embedding_), data.X, atol=1e-12)
    S = np.random.default_rng(10).uniform(-1.5, 1.5, size=(200, 2))
    X = data.f(S)
    back = model.inverse_transform(model.transform(X))
    assert np.sqrt(np.mean(np.sum((back - X) ** 2, axis=1))) < 0.05
    assert affine_r2(S, model.transform(X)) > 0.995


def test_jacobians_of_the_charts_agree_with_finite_differences(curved):
    data, model = curved
    X = np.random.default_rng(11).normal(size=(20, data.X.shape[1])) * 0.01 + data.X[:20]
    J = model.jacobian(X)
    assert J.shape == (20, 2, data.X.shape[1])
    for c in range(0, data.X.shape[1], 5):
        step = 1e-6 * np.eye(data.X.shape[1])[c]
        numeric = (model.transform(X + step) - model.transform(X - step)) / 2e-6
        np.testing.assert_allclose(J[:, :, c], numeric, atol=1e-5)
    at_training = model.jacobian(data.X[:5])
    np.testing.assert_allclose(at_training, model.rotations_[:5] @ np.swapaxes(model.tangents_[:5], 1, 2), atol=1e-12)


def test_an_atlas_of_one_affine_map_is_that_map():
    rng = np.random.default_rng(12)
    A, a = rng.normal(size=(3, 2)), rng.normal(size=(50, 2))
    atlas = Atlas.build(a, a @ A.T + 1, np.broadcast_to(A, (50, 3, 2)), 8)
    x = rng.normal(size=(30, 2))
    np.testing.assert_allclose(atlas(x), x @ A.T + 1, atol=1e-12)
    np.testing.assert_allclose(atlas.jacobian(x), np.broadcast_to(A, (30, 3, 2)), atol=1e-10)


def test_theta_is_above_its_floor_only_where_the_manifold_is_no_isometric_image():
    def verdict(theta, noise, seed):
        data = make_near_isometric(700, 2, theta=theta, noise=noise, random_state=seed)
        model = RigidAlignment(2, n_neighbors=20, random_state=0).fit(data.X)
        assert model.theta_p_(2) == pytest.approx(model.theta_)
        assert model.theta_p_(1) < model.theta_ < model.theta_p_(4)
        return model.deviation_detected_

    assert not any(verdict(0.0, noise, seed) for noise in (0.0, 0.02) for seed in range(3))
    assert all(verdict(0.3, 0.0, seed) for seed in range(3))


def test_a_warp_inside_an_isometry_cannot_be_seen():
    data = make_near_isometric(700, 2, theta=0.15, where="inner", random_state=13)
    model = RigidAlignment(2, random_state=0).fit(data.X)
    assert model.theta_ < 0.01
    assert not model.deviation_detected_


def test_noise_is_estimated_and_decides_the_lengths():
    f = DeepIsometry(2, random_state=14)
    S = np.random.default_rng(14).uniform(-1, 1, size=(1500, 2))
    for noise, lengths in ((0.0, "chord"), (0.03, "projected")):
        X = f(S) + noise * np.random.default_rng(15).normal(size=(1500, f.out_dim))
        model = RigidAlignment(2, random_state=0).fit(X)
        assert model.lengths_ == lengths
        assert model.noise_ == pytest.approx(noise, rel=0.25, abs=0.002)


def test_jackknife_error_has_the_size_of_the_scatter_over_samples():
    models = [
        RigidAlignment(2, random_state=0).fit(make_near_isometric(400, 2, theta=0.0, noise=0.02, random_state=s).X)
        for s in range(12)
    ]
    ratio = np.mean([m.theta_stderr_ for m in models]) / np.std([m.theta_ for m in models])
    assert 0.3 < ratio < 3


def test_parts_are_bridged_with_a_warning_or_refused():
    S, X = _patch(300, 2, 5)
    X = np.concatenate([X, X[:150] + 10.0])
    with pytest.raises(IsoICAError, match=r"2 components of 300, 150 points"):
        RigidAlignment(2, connect="error").fit(X)
    with pytest.warns(UserWarning, match="bridges"):
        model = RigidAlignment(2, random_state=0).fit(X)
    assert procrustes_residual(S, model.embedding_[:300]) < 1e-3
    assert procrustes_residual(S[:150], model.embedding_[300:]) < 1e-3


def test_repeated_points_share_their_place():
    S, X = _patch(200, 2, 4)
    again = np.r_[np.arange(200), np.arange(50)]
    model = RigidAlignment(2, random_state=0).fit(X[again])
    np.testing.assert_array_equal(model.embedding_[:50], model.embedding_[200:])
    assert procrustes_residual(S[again], model.embedding_) < 1e-6


def test_a_fit_cut_short_says_so_and_keeps_what_it_has(monkeypatch, curved):
    data, reference = curved
    with pytest.warns(ConvergenceWarning, match="not converged after 2 iterations"):
        model = RigidAlignment(2, max_iter=2, random_state=0).fit(data.X)
    assert (model.converged_, model.n_iter_) == (False, 2)

    calls = iter(range(100))

    def interrupt_the_fifth(*args):
        if next(calls) == 4:
            raise KeyboardInterrupt
        return global_rhs(*args)

    monkeypatch.setattr("isoica.alignment.global_rhs", interrupt_the_fifth)
    with pytest.warns(ConvergenceWarning, match="interrupted"):
        model = RigidAlignment(2, random_state=0).fit(data.X)
    assert not model.converged_
    assert reference.energy_ < model.energy_ < model.energies_[0]
    assert np.isfinite(model.transform(data.X[:3])).all()


def test_result_does_not_depend_on_the_number_of_jobs(curved):
    data, model = curved
    np.testing.assert_array_equal(RigidAlignment(2, n_jobs=2, random_state=0).fit(data.X).embedding_, model.embedding_)


def test_few_points_reduce_the_neighbours_with_a_warning():
    with pytest.warns(UserWarning, match="reduced to 7"):
        RigidAlignment(2, random_state=0).fit(np.random.default_rng(16).normal(size=(8, 3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_components": 9}, "exceeds n_features = 5"),
        ({"n_neighbors": 2}, "tangent plane"),
        ({"init": "umap"}, "'isomap'"),
        ({"tol": -1}, "negative"),
    ],
)
def test_bad_parameters_are_named(options, message):
    with pytest.raises(IsoICAError, match=message):
        RigidAlignment(**options).fit(_patch(50, 2, 5)[1])


def test_too_few_different_points_are_named():
    with pytest.raises(IsoICAError, match="1 different points"):
        RigidAlignment(2).fit(np.ones((10, 3)))


def test_saved_model_gives_the_same_charts(curved, tmp_path):
    data, model = curved
    model.save(tmp_path / "model.npz")
    loaded = RigidAlignment.load(tmp_path / "model.npz")
    np.testing.assert_array_equal(loaded.transform(data.X[:9] + 0.01), model.transform(data.X[:9] + 0.01))
    np.testing.assert_array_equal(loaded.embedding_, model.embedding_)
    assert (loaded.theta_, loaded.theta_floor_, loaded.get_params()) == (
        model.theta_, model.theta_floor_, model.get_params(),
    )  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["model.npz"]
    (tmp_path / "other.npz").write_bytes(b"no model")
    with pytest.raises(ModelFileError, match="not a saved model"):
        RigidAlignment.load(tmp_path / "other.npz")


@pytest.mark.parametrize(("d", "D"), [(1, 3), (2, 6), (4, 12)])
def test_both_estimates_of_the_dimension_find_that_of_a_flat_patch(d, D):
    found = intrinsic_dimension(_patch(1500, d, D)[1])
    assert (found.taken, found.local_pca, found.agree) == (d, d, True)
    assert found.two_nn == pytest.approx(d, rel=0.12)


def test_noise_at_the_scale_of_the_nearest_neighbours_does_not_raise_the_dimension_taken():
    data = make_near_isometric(1500, 2, theta=0.05, noise=0.02, random_state=17)
    found = intrinsic_dimension(data.X)
    assert found.two_nn > 4
    assert (found.taken, found.agree) == (2, False)
