"""The oracle laboratory: exact answers by other means, and what must hold whatever the networks learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onestep_diffusion import ConfigError, GaussianMixture, exact_log_ratio, gradient_bias, perturbed
from onestep_diffusion.bias import ESTIMATORS, error_slopes
from onestep_diffusion.toy import mixture

DELTAS, SIGMAS = (1.0, 0.1), (0.1, 1.0)


pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module")
def table():
    return gradient_bias(deltas=DELTAS, sigmas=SIGMAS, seeds=(0, 1), steps=3, hidden=4, blocks=1, points=4000)


def test_students_are_as_far_as_delta_says():
    data = mixture("gmm:ring8")
    same = perturbed(data, 0.0, jax.random.key(0))
    for name in ("weights", "means", "scales"):
        np.testing.assert_allclose(getattr(same, name), getattr(data, name), rtol=1e-6)
    students = [perturbed(data, 0.2, jax.random.key(seed)) for seed in range(200)]
    moves = np.stack([np.asarray(s.means - data.means) for s in students])
    assert moves.std() == pytest.approx(0.3 * 0.2, rel=0.05)
    logits = np.stack([np.log(s.weights) for s in students])
    assert (logits - logits.mean(1, keepdims=True)).std() == pytest.approx(1.5 * 0.2 * np.sqrt(7 / 8), rel=0.06)
    np.testing.assert_allclose(students[0].scales, 1.2 * data.scales, rtol=1e-6)


def test_rows_are_seeds_times_deltas_times_sigmas(table):
    places = [(row["seed"], row["delta"], row["sigma"]) for row in table]
    assert places == [(seed, delta, sigma) for seed in (0, 1) for delta in DELTAS for sigma in SIGMAS]


def test_size_is_that_of_finite_differences_of_the_exact_log_ratio(table):
    data, h = mixture("gmm:ring8"), 1e-2
    for row in (row for row in table if row["sigma"] == 1.0):
        # The students' keys are the first of five of the seed's.
        student = perturbed(data, row["delta"], jax.random.split(jax.random.key(row["seed"]), 5)[0])
        clean = student.sample(jax.random.key(7), 20_000)
        x = clean + row["sigma"] * jax.random.normal(jax.random.key(8), clean.shape)
        ahead, behind = (
            jnp.stack([exact_log_ratio(data, student, x + step, row["sigma"]) for step in sign * h * jnp.eye(2)])
            for sign in (1, -1)
        )
        slopes = (ahead - behind) / (2 * h)
        assert row["size"] == pytest.approx(float(jnp.sqrt(jnp.mean(slopes**2))), rel=0.05)


def test_hybrid_is_never_much_worse_than_either(table):
    for row in table:
        assert row["hybrid"] <= 1.05 * min(row["scores_from_teacher"], row["ratio"])
        assert 0 <= row["mix"] <= 1
        assert 0 <= row["mix_from_samples"] <= 1


def test_ratio_that_hardly_learned_is_wrong_by_the_whole_gradient(table):
    # The network is zero at the start; Adam's three steps of 1e-3 leave it there.
    assert all(
        row["ratio"] == pytest.approx(1, abs=0.1) for row in table if row["delta"] == 1.0 and row["sigma"] == 0.1
    )


def test_slopes_are_the_powers_of_delta():
    power = dict(zip(ESTIMATORS, (-1.0, -0.75, -0.1, 0.0, 0.2), strict=True))
    rows = [
        {"seed": seed, "delta": delta, "sigma": 0.1} | {name: (1 + seed) * delta**p for name, p in power.items()}
        for seed in (0, 1)
        for delta in (1.0, 0.3, 0.1)
    ]
    (found,) = error_slopes(rows)
    assert {name: found[name] for name in ESTIMATORS} == pytest.approx(power)
    assert np.isnan(error_slopes(rows[:1])[0]["ratio"])


def test_illegal_settings_are_named():
    with pytest.raises(ConfigError, match="delta has to be zero or more; got -1"):
        perturbed(GaussianMixture([1.0], [[0.0]], [1.0]), -1, jax.random.key(0))
    with pytest.raises(ConfigError, match="at least one delta"):
        gradient_bias(deltas=())
    with pytest.raises(ConfigError, match="sigma"):
        gradient_bias(sigmas=(0.0,))
