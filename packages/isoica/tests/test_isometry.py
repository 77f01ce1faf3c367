import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import ortho_group

from isoica import isometry
from isoica.errors import IsoICAError


@pytest.fixture
def jacobians():
    return np.random.default_rng(0).normal(size=(40, 5, 3))


def test_polar_factor_is_orthonormal_and_nearest(jacobians):
    Q, P = isometry.polar(jacobians)
    np.testing.assert_allclose(Q @ P, jacobians, atol=1e-12)
    np.testing.assert_allclose(np.swapaxes(Q, 1, 2) @ Q, np.broadcast_to(np.eye(3), (40, 3, 3)), atol=1e-12)
    np.testing.assert_allclose(P, np.swapaxes(P, 1, 2), atol=1e-12)
    distance = isometry.dist_to_orthogonal(jacobians)
    np.testing.assert_allclose(distance, np.linalg.norm(jacobians - Q, axis=(1, 2)))
    others = ortho_group.rvs(5, size=200, random_state=1)[:, :, :3]
    nearest = np.linalg.norm(jacobians[:, None] - others, axis=(2, 3)).min(axis=1)
    assert (distance <= nearest).all()


def test_a_reflection_is_orthogonal_but_two_from_every_rotation():
    J = np.diag([1.0, -1.0])
    assert isometry.dist_to_orthogonal(J) == pytest.approx(0, abs=1e-14)
    assert isometry.dist_to_orthogonal(J, special=True) == pytest.approx(2)
    angle = np.linspace(0, 2 * np.pi, 5000)
    turns = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).transpose(2, 0, 1)
    A = np.random.default_rng(1).normal(size=(2, 2))
    for J in (A, A * [1, -1]):
        brute = np.linalg.norm(J - turns, axis=(1, 2)).min()
        assert isometry.dist_to_orthogonal(J, special=True) == pytest.approx(brute, rel=1e-5)


def test_distance_is_bounded_by_the_gram_defect(jacobians):
    defect = np.linalg.norm(np.swapaxes(jacobians, 1, 2) @ jacobians - np.eye(3), axis=(1, 2))
    assert (isometry.dist_to_orthogonal(jacobians) <= defect + 1e-12).all()


@pytest.mark.parametrize("method", ["auto", "jvp", "fd"])
def test_theta_of_rigid_and_of_stretching_maps(method):
    S = np.random.default_rng(2).normal(size=(30, 2))
    Q = ortho_group.rvs(4, random_state=3)[:2]
    assert isometry.theta(lambda s: s @ Q + 1.0, S, method=method).value < 1e-8
    stretched = isometry.theta(lambda s: s * np.array([2.0, 1.0]), S, method=method)
    assert stretched.value == pytest.approx(1, abs=1e-8)
    assert stretched.stderr < 1e-8
    assert (stretched.sigma_min, stretched.sigma_max) == pytest.approx((1, 2), abs=1e-8)


def test_forward_mode_agrees_with_finite_differences_and_with_the_hand_written_jacobian():
    import jax.numpy as jnp

    S = np.random.default_rng(4).normal(size=(50, 2))

    def on_rows(s):
        return jnp.stack([s[:, 0], jnp.sin(s[:, 1]), s[:, 0] * s[:, 1]], axis=1)

    def on_one(s):
        return jnp.stack([s[0], jnp.sin(s[1]), s[0] * s[1]])

    J = np.zeros((50, 3, 2))
    J[:, 0, 0], J[:, 1, 1], J[:, 2] = 1, np.cos(S[:, 1]), S[:, ::-1]
    expected = isometry.theta_from_jacobians(J, p=3)
    assert isometry.theta(on_rows, S, p=3).value == pytest.approx(expected.value, rel=1e-12)
    assert isometry.theta(on_one, S, p=3).value == pytest.approx(expected.value, rel=1e-12)
    with pytest.warns(UserWarning, match="finite differences"):
        differences = isometry.theta(lambda s: np.stack([s[0], np.sin(s[1]), np.multiply(*s)]), S, p=3)
    assert differences.value == pytest.approx(expected.value, rel=1e-6)
    assert differences.stderr == pytest.approx(expected.stderr, rel=1e-5)


def test_fitted_scale_and_metric_are_minimisers_and_ordered(jacobians):
    for p in (1, 2, 4):
        fitted = isometry.theta_from_jacobians(jacobians, p, scale="fit")
        for c in fitted.scale * np.array([0.99, 1.01]):
            assert fitted.value <= isometry.theta_from_jacobians(jacobians, p, scale=c).value
    plain, scaled = isometry.theta_from_jacobians(jacobians), isometry.theta_from_jacobians(jacobians, scale="fit")
    assert scaled.scale == pytest.approx(np.linalg.svd(jacobians, compute_uv=False).mean())
    metric = isometry.theta_from_jacobians(jacobians, metric="fit")
    assert metric.value <= min(plain.value, scaled.value / scaled.scale)
    rng = np.random.default_rng(5)
    for _ in range(20):
        step = rng.normal(size=(3, 3)) * 0.03
        other = (np.eye(3) + step) @ metric.metric @ (np.eye(3) + step).T
        assert metric.value <= isometry.theta_from_jacobians(jacobians, metric=(other + other.T) / 2).value + 1e-12


def test_fitted_metric_undoes_unknown_units():
    Q = ortho_group.rvs(6, size=20, random_state=6)[:, :, :3]
    B = np.random.default_rng(7).normal(size=(3, 3))
    result = isometry.theta_from_jacobians(Q @ B, metric="fit")
    assert result.value < 1e-7
    np.testing.assert_allclose(result.metric, B.T @ B, rtol=1e-6)


def test_standard_error_covers_the_sampling_of_points():
    rng = np.random.default_rng(8)
    values = [isometry.theta_from_jacobians(1 + rng.uniform(size=(400, 1, 1))) for _ in range(400)]
    spread = np.std([v.value for v in values])
    assert np.mean([v.stderr for v in values]) == pytest.approx(spread, rel=0.15)
    assert np.mean([v.value for v in values]) == pytest.approx(np.sqrt(1 / 3), rel=0.01)


def test_gram_surrogate_is_unbiased():
    rng = np.random.default_rng(9)
    A = rng.normal(size=(3, 6))
    result = isometry.theta(lambda s: s @ A, rng.normal(size=(200_000, 3)), method="gram")
    exact = np.linalg.norm(A @ A.T - np.eye(3))
    assert abs(result.value - exact) < 4 * result.stderr
    assert result.stderr < 0.02 * exact


def test_weights_count_like_repetitions(jacobians):
    counts = np.random.default_rng(10).integers(0, 4, size=len(jacobians))
    for options in ({}, {"scale": "fit"}, {"metric": "fit"}):
        weighted = isometry.theta_from_jacobians(jacobians, weights=counts, **options)
        repeated = isometry.theta_from_jacobians(np.repeat(jacobians, counts, axis=0), **options)
        assert weighted.value == pytest.approx(repeated.value, rel=1e-9)


def test_bad_input_is_named(jacobians):
    with pytest.raises(IsoICAError, match="D >= d"):
        isometry.theta_from_jacobians(np.swapaxes(jacobians, 1, 2))
    with pytest.raises(IsoICAError, match="NaN"):
        isometry.theta_from_jacobians(jacobians * np.nan)
    with pytest.raises(IsoICAError, match="exclude each other"):
        isometry.theta_from_jacobians(jacobians, scale=1.0, metric="fit")
    with pytest.raises(IsoICAError, match="cannot trace"):
        isometry.theta(lambda s: np.array(s) ** 2, np.ones((3, 2)), method="jvp")
    with pytest.raises(IsoICAError, match="square"):
        isometry.dist_to_orthogonal(jacobians, special=True)


# --- the trainable distance


@pytest.mark.parametrize("J", [np.eye(4)[:, :2], np.diag([2.0, 2.0]), np.diag([1.5, 0.5]), np.diag([3.0, 3.0, 0.1])])
def test_gradient_of_the_squared_distance_at_repeated_singular_values(J):
    import jax

    from isoica.isometry_jax import squared_distance

    rotation = ortho_group.rvs(len(J), random_state=11)
    with jax.enable_x64(True):
        J = rotation @ J
        gradient, by_scale = jax.grad(squared_distance, argnums=(0, 1))(J, 1.2)
        assert squared_distance(J, 1.2) == pytest.approx(
            isometry.theta_from_jacobians(J[None], scale=1.2).value ** 2, abs=1e-12
        )
    numeric = np.empty_like(J)
    for index in np.ndindex(*J.shape):
        step = np.zeros_like(J)
        step[index] = 1e-5
        high, low = (isometry.theta_from_jacobians((J + t)[None], scale=1.2).value ** 2 for t in (step, -step))
        numeric[index] = (high - low) / 2e-5
    np.testing.assert_allclose(gradient, numeric, atol=1e-8)
    high, low = (isometry.theta_from_jacobians(J[None], scale=1.2 + t).value ** 2 for t in (1e-5, -1e-5))
    assert by_scale == pytest.approx((high - low) / 2e-5, abs=1e-8)


def test_squared_distance_of_collapsed_matrices_is_finite_in_float32():
    import jax
    import jax.numpy as jnp

    from isoica.isometry_jax import squared_distance

    J = jnp.zeros((7, 3, 2)).at[0, 0, 0].set(1.0)
    value, gradient = jax.value_and_grad(lambda J: squared_distance(J).sum())(J)
    assert value == pytest.approx(13)
    assert jnp.isfinite(gradient).all()


def test_import_of_the_package_and_of_isometry_leaves_jax_out():
    code = (
        "import sys, numpy as np, isoica; from isoica import isometry; isometry.polar(np.eye(2));"
        "isometry.theta(lambda s: s, np.eye(2), method='fd'); assert 'jax' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
