"""Ratio loss, fields of ratio and scores, and the generator's surrogate, against exact laws and autodiff."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onestep_diffusion as osd

RNG = np.random.default_rng(0)
ROWS = [(name, None) for name in osd.list_divergences() if name not in ("alpha", "skew_js")]
ROWS += [("alpha", -0.5), ("alpha", 0.3), ("skew_js", 0.3)]


@pytest.fixture(autouse=True)
def _f64():
    with jax.enable_x64(True):
        yield


def mixtures():
    data = osd.GaussianMixture([0.3, 0.7], [[-0.5, 0.2], [0.4, -0.3]], [0.3, 0.2])
    student = osd.GaussianMixture([0.6, 0.4], [[0.1, 0.4], [-0.2, -0.6]], [0.4, 0.3])
    return data, student


def points(n=64):
    """Points in the plane and a noise level for each."""
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(n, 2))), jnp.asarray(np.exp(rng.uniform(np.log(0.05), np.log(3), n)))


# --- the loss of the ratio ------------------------------------------------------------------------------------------

# Two laws on four atoms, as samples in which atom k occurs so many times: means are exact expectations.
DATA, STUDENT = np.array([1, 2, 3, 4]), np.array([4, 3, 2, 1])
P, Q = DATA / DATA.sum(), STUDENT / STUDENT.sum()


def loss_at(l, kind="logistic", data=DATA, **options):
    of_data, of_student = (l[np.repeat(np.arange(4), counts)] for counts in (data, STUDENT))
    return osd.ratio_loss(of_data, of_student, kind=kind, **options)


def minima():
    m = (P + Q) / 2
    js = (np.sum(P * np.log(P / m)) + np.sum(Q * np.log(Q / m))) / 2
    lecam = np.sum((P - Q) ** 2 / (P + Q)) / 2
    return {
        "logistic": 2 * np.log(2) - 2 * js,
        "brier": 0.5 - lecam / 2,
        "ulsif": -np.sum(P**2 / Q) / 2,
        "kliep": -np.sum(P * np.log(P / Q)),
    }


@pytest.mark.parametrize("kind", ["logistic", "brier", "ulsif", "kliep"])
def test_each_loss_has_its_minimum_at_the_log_ratio(kind):
    l = jnp.log(P / Q)
    best = loss_at(l, kind)
    assert float(best) == pytest.approx(minima()[kind], rel=1e-12)
    np.testing.assert_allclose(jax.grad(loss_at)(l, kind), 0, atol=1e-12)
    for _ in range(20):
        assert loss_at(l + 0.3 * RNG.normal(size=4), kind) > best


@pytest.mark.parametrize("kind", ["logistic", "brier", "ulsif", "kliep"])
@pytest.mark.parametrize("log_prior", [-1.0, float(np.log(3))])
def test_a_prior_shifts_the_logit_and_not_the_minimiser(kind, log_prior):
    """Three data samples to each student sample: the plain classifier learns l + log 3, the corrected one l."""
    l = jnp.log(P / Q)
    np.testing.assert_allclose(jax.grad(loss_at)(l, kind, 3 * DATA, log_prior=log_prior), 0, atol=1e-12)
    if kind == "logistic" and log_prior > 0:
        logit = np.log(P / Q) + log_prior
        pooled = (3 * DATA @ np.logaddexp(0, -logit) + STUDENT @ np.logaddexp(0, logit)) / (3 * DATA + STUDENT).sum()
        assert float(loss_at(l, kind, 3 * DATA, log_prior=log_prior)) == pytest.approx(2 * pooled)


def test_the_loss_weighs_pairs_and_is_single_precision_at_least():
    l, weight = jnp.asarray([0.5, -1.0]), jnp.asarray([2.0, 0.0])
    expected = np.logaddexp(0, -0.5) + np.logaddexp(0, 0.5)
    assert float(osd.ratio_loss(l, l, weight=weight)) == pytest.approx(expected, rel=1e-6)
    assert osd.ratio_loss(l.astype(jnp.bfloat16), l.astype(jnp.bfloat16)).dtype == jnp.float32
    assert float(osd.ratio_loss([0.5], [0.5])) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="log ratios of both classes are needed"):
        osd.ratio_loss(l[:0], l)
    with pytest.raises(ValueError, match="'hinge' is not one of logistic, brier, ulsif, kliep"):
        osd.ratio_loss(l, l, kind="hinge")
    with pytest.raises(ValueError, match=r"weight has to have the shape .* \(2,\) for \(2,\) and \(1,\)"):
        osd.ratio_loss(l, l[:1], weight=weight)


def test_softplus_parametrised_ratio_is_the_softplus():
    raw = jnp.asarray([-200.0, -50.0, -10.5, -9.5, 0.0, 3.0, 80.0])
    with jax.enable_x64(True):
        exact = np.log(np.log1p(np.exp(np.asarray(raw, np.float64)))) - np.log(np.log(2))
    np.testing.assert_allclose(osd.log_softplus_ratio(raw)[1:], exact[1:], rtol=1e-6, atol=1e-6)
    assert osd.log_softplus_ratio(raw)[0] == pytest.approx(-200 - np.log(np.log(2)))
    slope = jax.vmap(jax.grad(osd.log_softplus_ratio))(raw)
    np.testing.assert_allclose(slope[:3], 1, atol=1e-4)
    assert jnp.isfinite(slope).all()


def test_fitted_ratio_network_is_calibrated_at_every_noise_level():
    """A small network on N(0, I) against N((1, 0), I / 4) in the plane; held-out calibration error below .03."""
    rng, sizes, steps = np.random.default_rng(0), (3, 32, 32, 1), 600

    def draw(*shape):
        sigma = np.exp(rng.normal(-0.5, 0.8, shape))
        data, student = (np.hypot(std, sigma)[..., None] * rng.normal(size=(*shape, 2)) for std in (1, 0.5))
        return [jnp.asarray(v, jnp.float32) for v in (sigma, data, student + np.eye(2)[0])]

    def ratio(params, x, sigma):
        _, _, c_in, c_noise = osd.edm_precond(sigma, 1.0)
        h = jnp.concatenate([c_in[:, None] * x, c_noise[:, None]], 1)
        for w, b in params[:-1]:
            h = jax.nn.silu(h @ w + b)
        return (h @ params[-1][0] + params[-1][1])[:, 0]

    def loss(params, sigma, x, y):
        return osd.ratio_loss(ratio(params, x, sigma), ratio(params, y, sigma))

    adam = optax.adam(optax.cosine_decay_schedule(1e-2, steps))

    def step(carry, batch):
        params, state = carry
        updates, state = adam.update(jax.grad(loss)(params, *batch), state)
        return (optax.apply_updates(params, updates), state), None

    with jax.enable_x64(False):
        start = [(jnp.asarray(rng.normal(size=(i, o)) / np.sqrt(i), jnp.float32), jnp.zeros(o))
                 for i, o in pairwise(sizes)]  # fmt: skip
        (params, _), _ = jax.lax.scan(step, (start, adam.init(start)), draw(steps, 256))
        sigma, x, y = draw(20_000)
        log_r = [np.asarray(ratio(params, v, sigma)) for v in (x, y)]
    for low, high in [(0.0, 0.4), (0.4, 0.9), (0.9, 80.0)]:
        rows = np.asarray((sigma > low) & (sigma <= high))
        assert osd.certify(log_r[0][rows], log_r[1][rows], n_boot=10).ece < 0.03


# --- fields ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("omega", ["sigma", "sigma2", "one", "snr"])
def test_ratio_field_of_reverse_kl_is_the_score_difference(omega):
    """-sigma^2 grad log r = D_student - D_data, hence the same field whatever omega."""
    data, student = mixtures()
    x, sigma = points()
    log_ratio = partial(osd.exact_log_ratio, data, student)
    by_ratio = jax.jit(partial(osd.ratio_field, log_ratio, omega=omega))(x, sigma)
    by_score = jax.jit(partial(osd.score_field, data.denoise, student.denoise, omega=omega))(x, sigma)
    np.testing.assert_allclose(by_ratio.v, by_score.v, rtol=1e-9, atol=1e-10)
    expected = {"sigma": sigma, "sigma2": sigma**2, "one": sigma**0, "snr": sigma**2 / (sigma**2 + 0.25)}[omega]
    difference = jax.jit(lambda x, s: student.score(x, s) - data.score(x, s))(x, sigma)
    np.testing.assert_allclose(by_ratio.v, expected[:, None] * difference, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(by_ratio.log_r, jax.jit(log_ratio)(x, sigma))
    assert by_score.log_r is None


def test_descending_a_field_moves_the_student_towards_the_data():
    data, student = (osd.GaussianMixture([0.5, 0.5], [[m, m], [m, m]], [0.5, 0.5]) for m in (2.0, -2.0))
    x = jnp.full((64, 2), -2.0)
    for v in (
        jax.jit(partial(osd.ratio_field, partial(osd.exact_log_ratio, data, student)))(x, 1.0).v,
        jax.jit(partial(osd.score_field, data.denoise, student.denoise))(x, 1.0).v,
    ):
        assert (-v > 0).all()


@pytest.mark.parametrize(("name", "alpha"), ROWS)
def test_surrogate_gradient_is_autodiff_through_phi(name, alpha):
    """For a nonlinear generator of 1x2x1 images, with clipping off: theta moves x only, the ratio is held fixed."""
    rng = np.random.default_rng(1)
    theta = jnp.asarray(rng.normal(size=(2, 2)))
    z, e = jnp.asarray(rng.normal(size=(2, 64, 2)))
    sigma = jnp.asarray(rng.uniform(0.3, 1.5, 64))

    def generate(theta):
        return jnp.tanh(z @ theta).reshape(-1, 1, 2, 1)

    def noised(theta):
        return generate(theta) + (sigma[:, None] * e).reshape(-1, 1, 2, 1)

    def ratio(x, sigma):
        return jnp.sin(2 * x[:, 0, 0, 0]) - x[:, 0, 1, 0] ** 2 / (1 + sigma**2)

    def by_phi(theta):
        return osd.divergence(name, alpha=alpha).phi(ratio(noised(theta), sigma)).mean()

    def by_field(theta):
        field = osd.ratio_field(ratio, noised(theta), sigma, divergence=name, alpha=alpha, omega="one", logit_clip=None)
        return osd.surrogate_loss(field.v, generate(theta))

    np.testing.assert_allclose(jax.grad(by_field)(theta), jax.grad(by_phi)(theta), rtol=1e-9, atol=1e-12)


def test_linear_generator_trained_by_the_exact_ratio_learns_a_gaussian():
    """G(z) = A z + b, data N(mu, S): A A^T -> S and b -> mu. At the end every sample's field is zero."""
    mu, factor = jnp.asarray([0.5, -1.0]), jnp.asarray([[0.8, 0.0], [0.5, 0.3]])
    cov, law = factor @ factor.T, osd.LogNormal(-1.2, 1.2)

    def log_normal(x, mean, cov, sigma):
        noisy = cov + sigma[:, None, None] ** 2 * jnp.eye(2)
        square = jnp.einsum("ni,nij,nj->n", x - mean, jnp.linalg.inv(noisy), x - mean)
        return -0.5 * (square + jnp.linalg.slogdet(noisy)[1])

    def step(theta, key):
        a, b = theta
        k1, k2, k3 = jax.random.split(key, 3)
        z, sigma = jax.random.normal(k1, (128, 2)), law.sample(k2, (128,))

        def ratio(x, sigma):
            return log_normal(x, mu, cov, sigma) - log_normal(x, b, a @ a.T, sigma)

        def loss(theta):
            x = z @ theta[0].T + theta[1]
            x_sigma = x + sigma[:, None] * jax.random.normal(k3, x.shape)
            return osd.surrogate_loss(osd.ratio_field(ratio, x_sigma, sigma).v, x)

        return jax.tree.map(lambda p, g: p - 0.2 * g, theta, jax.grad(loss)(theta)), None

    start = (jnp.asarray([[1.0, 0.3], [-0.2, 1.0]]), jnp.zeros(2))
    (a, b), _ = jax.lax.scan(step, start, jax.random.split(jax.random.key(0), 1500))
    np.testing.assert_allclose(a @ a.T, cov, atol=2e-3)
    np.testing.assert_allclose(b, mu, atol=2e-3)


# --- weights --------------------------------------------------------------------------------------------------------


def constant_slope(x, sigma):
    """A ratio function with log r = x_0, so that the field is -omega w along the first coordinate."""
    return x[:, 0]


def test_weights_are_clipped_but_the_log_ratio_is_not():
    x = jnp.asarray([[30.0, 0.0], [-30.0, 0.0], [1.0, 0.0]])
    field = osd.ratio_field(constant_slope, x, 1.0, divergence="fkl", logit_clip=2.0)
    np.testing.assert_allclose(field.weight, np.exp([2.0, -2.0, 1.0]), rtol=1e-6)
    np.testing.assert_allclose(field.log_r, x[:, 0])
    np.testing.assert_allclose(field.v[:, 0], -field.weight, rtol=1e-6)
    assert osd.ratio_field(constant_slope, x, 1.0, divergence="fkl", logit_clip=None).weight[0] > 1e12


def test_batch_normalised_weights_have_mean_one_overall_and_binned_ones_in_every_bin():
    x, sigma = points()
    plain = osd.ratio_field(constant_slope, x, sigma, divergence="fkl").weight
    batch = osd.ratio_field(constant_slope, x, sigma, divergence="fkl", weight_norm="batch").weight
    np.testing.assert_allclose(batch, plain / plain.mean(), rtol=1e-5)
    binned = np.asarray(osd.ratio_field(constant_slope, x, sigma, divergence="fkl", weight_norm="sigma_bin").weight)
    by_level = binned[np.argsort(np.asarray(sigma))].reshape(8, 8)
    np.testing.assert_allclose(by_level.mean(1), 1, rtol=1e-5)
    # One level only is one bin.
    one = osd.ratio_field(constant_slope, x, 0.5, divergence="fkl", weight_norm="sigma_bin").weight
    np.testing.assert_allclose(one, batch, rtol=1e-5)


def test_a_broken_sample_does_not_touch_the_weights_and_the_norm_of_the_others():
    x, sigma = points()
    broken = x.at[3].set(jnp.nan)
    keep = np.arange(64) != 3
    for norm in ("batch", "sigma_bin"):
        weight = osd.ratio_field(constant_slope, broken, sigma, divergence="fkl", weight_norm=norm).weight
        assert np.isfinite(weight[keep]).all()
        assert np.isnan(weight[3])
    v, count = osd.zero_nonfinite(osd.unit_normalize(broken))
    assert int(count) == 1
    assert (v[3] == 0).all()
    np.testing.assert_allclose(v[keep], osd.unit_normalize(x[keep]), rtol=1e-6)


def test_a_batch_in_pieces_gives_the_field_of_the_whole():
    x, sigma = points()
    whole = osd.ratio_field(constant_slope, x, sigma, divergence="fkl", weight_norm="batch")
    pieces = [osd.ratio_field(constant_slope, x[i : i + 16], sigma[i : i + 16]) for i in range(0, 64, 16)]
    log_r = jnp.concatenate([p.log_r for p in pieces])
    weight = osd.ratio_weight(log_r, sigma, osd.divergence("fkl"), weight_norm="batch")
    np.testing.assert_allclose(jnp.concatenate([p.v for p in pieces]) * weight[:, None], whole.v, rtol=1e-5)


def test_effective_sample_size_counts_equal_weights():
    assert float(osd.effective_sample_size(jnp.full(10, 3.0))) == pytest.approx(10)
    assert float(osd.effective_sample_size(jnp.asarray([1e30, 1.0, 1.0]))) == pytest.approx(1)
    np.testing.assert_allclose(osd.effective_sample_size(jnp.asarray([[1.0, 1, 0], [2, 1, 0]])), [2, 9 / 5], rtol=1e-6)


# --- normalisations -------------------------------------------------------------------------------------------------


def test_unit_normalisation_equalises_norms_and_keeps_directions_and_the_mean_norm():
    v = jnp.asarray(RNG.normal(size=(20, 2, 3, 1)) * RNG.uniform(0.1, 10, (20, 1, 1, 1)), jnp.float32)
    out = osd.unit_normalize(v)
    before, after = (np.sqrt(np.mean(np.asarray(u) ** 2, axis=(1, 2, 3))) for u in (v, out))
    np.testing.assert_allclose(after, before.mean(), rtol=1e-5)
    np.testing.assert_allclose(
        np.asarray(out) / np.asarray(v), (after / before)[:, None, None, None] + 0 * v, rtol=1e-4
    )
    assert (osd.unit_normalize(jnp.zeros((2, 3))) == 0).all()


def test_dmd_normalisation_divides_by_the_teachers_distance():
    data, student = mixtures()
    x_sigma, sigma = points()
    x = x_sigma - 0.1
    plain = osd.score_field(data.denoise, student.denoise, x_sigma, sigma).v
    dmd = osd.score_field(data.denoise, student.denoise, x_sigma, sigma, normalize="dmd", x=x).v
    distance = jnp.abs(x - data.denoise(x_sigma, sigma)).mean(1, keepdims=True)
    np.testing.assert_allclose(dmd * distance, plain, rtol=1e-4)
    unit = osd.score_field(data.denoise, student.denoise, x_sigma, sigma, normalize="unit").v
    np.testing.assert_allclose(unit, osd.unit_normalize(plain), rtol=1e-5)


def test_score_fields_take_the_weights_of_a_divergence():
    """f-distill: the score difference times w_f is the ratio field of f."""
    data, student = mixtures()
    x, sigma = points()
    by_ratio = osd.ratio_field(
        lambda x, s: osd.exact_log_ratio(data, student, x, s), x, sigma, divergence="jeffreys", omega="sigma2"
    )
    by_score = osd.score_field(data.denoise, student.denoise, x, sigma, weight=by_ratio.weight)
    np.testing.assert_allclose(by_ratio.v, by_score.v, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda x: osd.ratio_field(constant_slope, x, 1.0, omega="cubic"),
            "omega: 'cubic' is not one of sigma, sigma2",
        ),
        (lambda x: osd.ratio_field(constant_slope, x, 1.0, weight_norm="max"), "not one of none, batch, sigma_bin"),
        (lambda x: osd.ratio_field(constant_slope, x, 0.0), "sigma has to be positive and finite; got 0.0"),
        (lambda x: osd.ratio_field(lambda x, s: x, x, 1.0), r"one number a sample, \(4,\); got \(4, 2\)"),
        (lambda x: osd.score_field(lambda x, s: x, lambda x, s: x, x, -1.0), "sigma has to be positive"),
        (lambda x: osd.score_field(lambda x, s: x, lambda x, s: x, x, 1.0, normalize="dmd"), "needs x"),
        (lambda x: osd.score_field(lambda x, s: x, lambda x, s: x, x, 1.0, normalize="l2"), "not one of none, unit"),
    ],
)
def test_illegal_settings_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make(jnp.ones((4, 2)))


# --- the hybrid field -----------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), st.floats(0.01, 10), st.floats(0.01, 10))
def test_hybrid_field_is_never_worse_than_either(seed, score_error, ratio_error):
    rng = np.random.default_rng(seed)
    exact, e1, e2 = jnp.asarray(rng.normal(size=(3, 20, 2)), jnp.float32)
    score, ratio = (osd.Field(exact + s * e, None, jnp.ones(20)) for s, e in ((score_error, e1), (ratio_error, e2)))
    mix = osd.hybrid_mix(score.v, ratio.v, exact)
    assert 0 <= mix <= 1
    error, *ends = (float(jnp.sum((f.v - exact) ** 2)) for f in (osd.hybrid_field(score, ratio, mix), score, ratio))
    assert error <= min(ends) * (1 + 1e-4)


def test_hybrid_mix_needs_no_exact_field():
    """Noise of data and student samples stands for the exact field: the mix agrees within its standard error."""
    rng, n, sigma = np.random.default_rng(2), 40_000, 0.5
    parts = []
    laws = mixtures()
    for gm, from_data in zip(laws, (True, False), strict=True):
        k, e = rng.choice(2, n, p=np.asarray(gm.weights)), rng.normal(size=(n, 2))
        clean = np.asarray(gm.means)[k] + np.asarray(gm.scales)[k, None] * rng.normal(size=(n, 2))
        x, e = jnp.asarray(clean + sigma * e), jnp.asarray(e)
        log_r = jax.jit(partial(osd.exact_log_ratio, *laws))(x, sigma)
        target, weight = osd.score_difference_target(e, sigma, log_r, from_data=from_data)
        parts.append(
            (x, target, weight, sigma**2 * jax.jit(lambda x: laws[1].score(x, sigma) - laws[0].score(x, sigma))(x))
        )
    x, target, weight, exact = (np.concatenate(v) for v in zip(*parts, strict=True))
    score, ratio = 0.5 * exact - 0.1 * x, 1.3 * exact + 0.2  # wrong in different ways
    wanted, found = (float(osd.hybrid_mix(score, ratio, t, weight)) for t in (exact, target))
    step = ratio - score
    terms = weight * np.sum(step * (target - score - wanted * step), 1)
    error = np.sqrt(2 * n) * terms.std() / np.sum(weight[:, None] * step**2)
    assert 0.1 < wanted < 0.9
    assert abs(found - wanted) < 4 * error < 0.2
    assert osd.hybrid_mix(score, score, exact) == 0
