import numpy as np
import pytest

from isoica import isometry, metrics
from isoica.datasets import DeepIsometry, make_images, make_near_isometric
from isoica.errors import IsoICAError


@pytest.mark.parametrize(("d", "depth"), [(1, 3), (2, 2), (3, 1), (4, 0)])
def test_deep_isometry_has_orthonormal_jacobians_everywhere(d, depth):
    f = DeepIsometry(d, depth, random_state=0)
    s = np.random.default_rng(1).normal(size=(30, d)) * 3
    J = f.jacobian(s)
    assert J.shape == (30, d * 3**depth, d) == (30, f.out_dim, d)
    np.testing.assert_allclose(np.swapaxes(J, 1, 2) @ J, np.broadcast_to(np.eye(d), (30, d, d)), atol=1e-12)
    by_jax = isometry.theta(f, s, method="jvp")
    assert by_jax.value < 1e-10
    np.testing.assert_allclose(f(s[0]), f(s)[0], atol=1e-12)


@pytest.mark.parametrize("where", ["inner", "outer"])
@pytest.mark.parametrize("theta", [0.02, 0.3])
def test_near_isometric_mixing_is_as_far_from_isometry_as_asked(where, theta):
    data = make_near_isometric(400, 2, theta=theta, where=where, random_state=2)
    by_jax = isometry.theta(data.f, data.S, method="jvp")
    assert by_jax.value == pytest.approx(theta, rel=0.01)
    assert isometry.theta_from_jacobians(data.f.jacobian(data.S)).value == pytest.approx(by_jax.value, rel=1e-9)
    np.testing.assert_allclose(data.f(data.S), data.X)


def test_noise_is_added_with_its_standard_deviation():
    clean, noisy = (make_near_isometric(500, 2, noise=s, random_state=3) for s in (0.0, 0.05))
    np.testing.assert_allclose(noisy.S, clean.S)
    assert (noisy.X - clean.X).std() == pytest.approx(0.05, rel=0.05)


def test_a_sprite_moves_at_constant_speed_and_a_brightness_gradient_ends_that():
    values = [make_images(200, "sprite", gradient=g, random_state=4).theta for g in (0.0, 0.5, 1.0)]
    assert values[0] < 2e-3
    assert 10 * values[0] < values[1] < values[2]


@pytest.mark.parametrize(("kind", "d"), [("sprite", 3), ("lanes", 1), ("lanes", 4), ("multi", 4)])
@pytest.mark.filterwarnings("ignore:the angle")
def test_images_are_near_isometric_renderings_of_their_latents(kind, d):
    data = make_images(300, kind, d=d, size=40, random_state=5)
    assert data.images.shape == (300, 40, 40)
    assert data.images.dtype == np.float32
    assert data.S.shape == (300, d)
    assert data.theta < 0.03
    edge = np.concatenate([data.images[:, :, 0], data.images[:, :, -1]], axis=1)
    assert edge.max() < 0.05 * data.images.max()  # nothing leaves the frame
    np.testing.assert_allclose(data.render(data.S[:5]), data.images[:5], atol=1e-6)


def test_positions_are_rotated_latents():
    data = make_images(2000, "lanes", d=2, random_state=6)
    mass = data.images.reshape(2000, 2, 16, 32).sum(axis=2)
    centre = (mass * np.arange(32)).sum(axis=2) / mass.sum(axis=2)
    assert metrics.affine_r2(centre, data.S) > 0.999
    assert metrics.mcc(data.S, centre) < 0.99


def test_impossible_requests_are_named():
    with pytest.raises(IsoICAError, match="inner"):
        make_near_isometric(10, where="between")
    with pytest.raises(IsoICAError, match="pitch"):
        DeepIsometry(2, pitch=0)
    with pytest.raises(IsoICAError, match="even number"):
        make_images(5, "multi", d=3)
    with pytest.raises(IsoICAError, match="too small"):
        make_images(5, "lanes", size=16, d=4)
