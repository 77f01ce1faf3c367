"""What holds exactly, on mixtures of Gaussians where everything is known: gradients, fields, the verifier."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ..bias import perturbed
from ..divergences import divergence, list_divergences
from ..metrics import sliced_wasserstein
from ..oracle import GaussianMixture, exact_log_ratio
from ..ratio import ratio_field
from ..score import score_field
from ..toy import mixture
from ..verify import resample
from .profiles import Profile
from .report import DERIVED, Claim, Experiment, Metric, factor

ALPHAS = {"alpha": 0.5, "skew_js": 0.5}
DELTA = 0.3  # how far the student of the verifier is from its data
POINTS = 2_000


def run_exactness(profile: Profile, rng: np.random.Generator, out: Path, device: str = "cpu") -> Experiment:
    """Numbers that can be judged against closed forms."""
    seed = int(rng.integers(2**31))
    return Experiment(
        claims=[_weights(), _fields(seed), *_verifier(profile, seed)], metrics=_argmax(seed)
    )  # fmt: skip


def _weights() -> Claim:
    """φ' = −w for every divergence, by automatic differentiation of φ."""
    log_r = jnp.linspace(-6.0, 6.0, 241)

    @jax.jit
    def errors(log_r: jax.Array) -> jax.Array:
        found = []
        for name in list_divergences():
            div = divergence(name, alpha=ALPHAS.get(name))
            weight = div.weight(log_r)
            found.append(jnp.max(jnp.abs(jax.vmap(jax.grad(div.phi))(log_r) + weight) / (1e-6 + weight)))
        return jnp.stack(found)

    worst = float(errors(log_r).max())
    return Claim(
        id="weights", measured=worst, op="<=", value=1e-3, n=len(list_divergences()) * len(log_r), source=DERIVED,
        statement="The gradient of every divergence is its weight times that of the log ratio: no term is dropped.",
        unit="relative error in float32, worst of all divergences",
    )  # fmt: skip


def _fields(seed: int) -> Claim:
    """σ²∇ℓ of the exact ratio is the difference of the exact denoisers."""
    data = mixture("gmm:ring8")
    student = perturbed(data, 1.0, jax.random.key(seed))
    sigma = jnp.repeat(jnp.array([0.1, 0.5, 2.0]), 512)
    keys = jax.random.split(jax.random.key(seed))
    x = student.sample(keys[0], len(sigma))
    x = x + sigma[:, None] * jax.random.normal(keys[1], x.shape)

    @jax.jit
    def fields(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        by_ratio = ratio_field(lambda x, s: exact_log_ratio(data, student, x, s), x, sigma, omega="sigma2").v
        return by_ratio, score_field(data.denoise, student.denoise, x, sigma).v

    a, b = (np.asarray(v).reshape(3, -1) for v in fields(x))
    worst = float(np.max(np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)))
    return Claim(
        id="one-ratio-is-two-scores", measured=worst, op="<=", value=1e-3, n=len(x), source=DERIVED,
        statement="One exact ratio gives the field of two exact scores, with the sign that descends.",
        unit="relative error in float32",
    )  # fmt: skip


def _verifier(profile: Profile, seed: int) -> list[Claim]:
    """Resampling with the exact ratio, paired by candidates."""

    @jax.jit
    def drawn(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        data = mixture("gmm:ring8")
        student = perturbed(data, DELTA, jax.random.fold_in(key, 1))
        known, x = (
            data.sample(jax.random.fold_in(key, 2), POINTS),
            student.sample(jax.random.fold_in(key, 3), 8 * POINTS),
        )
        return known, x, exact_log_ratio(data, student, x, jnp.float32(1e-3))

    gains = []
    for place in range(profile.verifier_seeds):
        known, x, log_r = (np.asarray(v, float) for v in drawn(jax.random.fold_in(jax.random.key(seed), place)))
        kept = resample(log_r, group=8, seed=place)
        before, after = (sliced_wasserstein(known, y, seed=place) for y in (x[::8], x[kept]))
        gains.append(after / before)
    log = np.log(gains)
    return [
        Claim(
            id="verifier-exact", **factor(log),
            op="<", value=1.0, paper="better samples from parallel compute (v5)",
            statement="With the exact ratio, a sample resampled among 8 candidates is nearer to the data.",
            unit="times in sliced Wasserstein", note=f"ring of 8 Gaussians, student at δ = {DELTA}",
        )
    ]  # fmt: skip


def _argmax(seed: int) -> list[Metric]:
    """Student N(0, 1), data N(0.5, 0.8²): what resampling and the best of N do to the deviation."""

    @jax.jit
    def drawn(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        unit = jnp.ones(1)
        data = GaussianMixture(unit, 0.5 * jnp.ones((1, 1)), 0.8 * unit)
        student = GaussianMixture(unit, jnp.zeros((1, 1)), unit)
        x = student.sample(key, 64 * POINTS)
        return x, exact_log_ratio(data, student, x, jnp.float32(1e-3))

    x, log_r = (np.asarray(v, float) for v in drawn(jax.random.key(seed)))
    found = []
    for method, name in (("sir", "resampling among 64"), ("best_of", "the best of 64")):
        kept = x[resample(log_r, method=method, group=64, seed=seed)]
        found.append(Metric(f"{name}: deviation of samples; the data's is 0.8", float(kept.std()), "", "higher"))
    return found
