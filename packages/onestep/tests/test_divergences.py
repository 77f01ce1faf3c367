"""The rows of the divergence table, against the definitions of the divergences and autodiff; the gradient theorem."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onestep_diffusion as osd

PLAIN = [(name, None) for name in osd.list_divergences() if name not in ("alpha", "skew_js")]
FAMILIES = [("alpha", a) for a in (-1.5, -0.5, 0.0, 0.3, 0.5, 1.0, 1.5, 2.0)] + [
    ("skew_js", a) for a in (0.1, 0.5, 0.9)
]
ROWS = PLAIN + FAMILIES
LINE = np.linspace(-10, 10, 41)  # of log ratios
every_row = pytest.mark.parametrize(("name", "alpha"), ROWS)


@pytest.fixture
def f64():
    with jax.enable_x64(True):
        yield


def kl(p, q):
    return np.sum(p * np.log(p / q), -1)


def by_definition(name, alpha, p, q):
    """D(p_data = p || p_student = q) for probabilities on the last axis."""
    m = (p + q) / 2
    return {
        "rkl": lambda: kl(q, p),
        "fkl": lambda: kl(p, q),
        "js": lambda: (kl(p, m) + kl(q, m)) / 2,
        "ns": lambda: 2 * kl(m, p),
        "softened_fkl": lambda: 2 * kl(m, q),
        "jeffreys": lambda: kl(p, q) + kl(q, p),
        "hellinger": lambda: 1 - np.sum(np.sqrt(p * q), -1),
        "chi2": lambda: np.sum((p - q) ** 2 / q, -1),
        "neyman": lambda: np.sum((p - q) ** 2 / p, -1),
        "lecam": lambda: np.sum((p - q) ** 2 / (p + q), -1) / 2,
        "alpha": lambda: (
            kl(q, p)
            if alpha == 0
            else kl(p, q)
            if alpha == 1
            else (1 - np.sum(p**alpha * q ** (1 - alpha), -1)) / (alpha * (1 - alpha))
        ),
        "skew_js": lambda: (
            kl(q, alpha * p + (1 - alpha) * q) / alpha + kl(p, alpha * p + (1 - alpha) * q) / (1 - alpha)
        ),
    }[name]()


def slope(function, at):
    """Derivative of an elementwise function at an array, again elementwise."""
    return jax.jvp(function, (at,), (jnp.ones_like(at),))[1]


def laws(seed):
    """Two laws on as many atoms as LINE has points: jax compiles an operation once for each shape."""
    return np.random.default_rng(seed).dirichlet(np.ones(len(LINE)), size=2)


# --- the table --------------------------------------------------------------------------------------------------


def test_there_are_the_twelve_rows():
    assert set(osd.list_divergences()) == {
        "rkl", "fkl", "js", "ns", "softened_fkl", "jeffreys", "hellinger", "chi2", "neyman", "lecam", "alpha", "skew_js"
    }  # fmt: skip


@every_row
def test_mean_of_f_under_the_student_is_the_divergence(f64, name, alpha):
    for seed in range(5):
        p, q = laws(seed)
        value = float(q @ osd.divergence(name, alpha=alpha).f(np.log(p / q)))
        assert value == pytest.approx(by_definition(name, alpha, p, q), rel=1e-10)
        assert value > 0


@every_row
def test_derivative_of_phi_is_minus_the_weight(f64, name, alpha):
    div, l = osd.divergence(name, alpha=alpha), jnp.asarray(LINE)
    np.testing.assert_allclose(slope(div.phi, l), -div.weight(l), rtol=1e-9, atol=1e-10)
    assert (div.weight(l) >= 0).all()


@every_row
def test_weight_is_r_squared_times_the_second_derivative_of_f(f64, name, alpha):
    div, r = osd.divergence(name, alpha=alpha), jnp.exp(0.4 * LINE)

    def f(r):
        return div.f(jnp.log(r))

    second = slope(lambda r: slope(f, r), r)
    phi = div.phi(jnp.log(r))
    np.testing.assert_allclose(div.weight(jnp.log(r)), r**2 * second, rtol=1e-8)
    shift = f(r) - r * slope(f, r) - phi
    np.testing.assert_allclose(shift, shift[0], atol=1e-11 * float(jnp.abs(phi).max() + 1), err_msg="f - r f' - phi")


@every_row
def test_f_is_convex_and_zero_at_one(f64, name, alpha):
    div, r = osd.divergence(name, alpha=alpha), jnp.exp(0.4 * LINE)
    f = np.asarray(div.f(jnp.log(r)))
    assert f[20] == pytest.approx(0, abs=1e-15)  # r = 1
    for shift in range(1, 41):
        chord = (f + np.roll(f, shift)) / 2
        middle = div.f(jnp.log((r + np.roll(r, shift)) / 2))
        assert (middle <= chord + 1e-12 * (1 + np.abs(chord))).all()


@every_row
def test_single_precision_is_finite_and_right_wherever_the_value_is_representable(name, alpha):
    div, l = osd.divergence(name, alpha=alpha), (8 * LINE).astype(np.float32)
    largest = np.finfo(np.float32).max / 10  # intermediate values are a few times larger
    for column in ("f", "weight", "phi"):
        single = np.asarray(getattr(div, column)(l))
        with jax.enable_x64(True):
            exact = np.asarray(getattr(div, column)(l.astype(np.float64)))
        assert single.dtype == np.float32
        assert exact.dtype == np.float64
        assert np.isfinite(exact).all()
        representable = np.abs(exact) < largest
        assert np.isfinite(single[representable]).all()
        np.testing.assert_allclose(single[representable], exact[representable], rtol=3e-5, atol=3e-6)


@pytest.mark.parametrize(("name", "alpha"), [("js", None), ("ns", None), ("softened_fkl", None), ("skew_js", 0.3)])
def test_f_keeps_its_digits_where_the_ratio_is_nearly_one(name, alpha):
    # There f of the symmetric rows is of second order in l, a difference of terms of first order.
    div, l = osd.divergence(name, alpha=alpha), np.float32([-0.4, -0.1, -0.01, 1e-3, 1e-4, 0.02, 0.3])
    rtol = 3e-4 if name == "skew_js" else 1e-6
    with jax.enable_x64(True):
        exact = {
            "js": lambda r: (r * np.log(2 * r / (1 + r)) + np.log(2 / (1 + r))) / 2,
            "ns": lambda r: (1 + r) * np.log((1 + r) / (2 * r)),
            "softened_fkl": lambda r: (1 + r) * np.log((1 + r) / 2),
            "skew_js": lambda r: (
                -np.log(alpha * r + 1 - alpha) / alpha + r * np.log(r / (alpha * r + 1 - alpha)) / (1 - alpha)
            ),
        }[name](np.exp(l.astype(np.longdouble)))
    np.testing.assert_allclose(div.f(l), exact.astype(float), rtol=rtol)


@every_row
def test_the_dtype_and_the_shape_are_kept(name, alpha):
    for dtype in (jnp.bfloat16, jnp.float32):
        for column in ("f", "weight", "phi"):
            out = jax.eval_shape(getattr(osd.divergence(name, alpha=alpha), column), jnp.ones((1, 2), dtype))
            assert (out.dtype, out.shape) == (dtype, (1, 2))


@every_row
def test_bounded_says_whether_the_weight_is(f64, name, alpha):
    div = osd.divergence(name, alpha=alpha)
    assert div.bounded == bool(div.weight(6 * LINE).max() < 100)


def test_identities_between_rows(f64):
    l = 2 * LINE
    js, ns, skew = osd.divergence("js"), osd.divergence("ns"), osd.divergence("skew_js", alpha=0.5)
    np.testing.assert_allclose(js.weight(l), ns.weight(-l) / 2, rtol=1e-12)
    np.testing.assert_allclose(skew.weight(l), 4 * js.weight(l), rtol=1e-12)
    for name, alpha, factor in [("chi2", 2.0, 2), ("neyman", -1.0, 2), ("hellinger", 0.5, 0.25)]:
        amari = osd.divergence("alpha", alpha=alpha)
        np.testing.assert_allclose(osd.divergence(name).weight(l), factor * amari.weight(l), rtol=1e-12)


@pytest.mark.parametrize(
    ("family", "near", "limit"),
    [
        ("alpha", 1e-7, "rkl"),
        ("alpha", -1e-7, "rkl"),
        ("alpha", 1 - 1e-7, "fkl"),
        ("alpha", 1 + 1e-7, "fkl"),
        ("skew_js", 1e-7, "fkl"),
        ("skew_js", 1 - 1e-7, "rkl"),
    ],
)
def test_families_tend_to_their_limits(f64, family, near, limit):
    p, q = laws(7)
    l = np.log(p / q)
    div, target = osd.divergence(family, alpha=near), osd.divergence(limit)
    assert float(q @ div.f(l)) == pytest.approx(float(q @ target.f(l)), rel=1e-4)
    np.testing.assert_allclose(div.weight(l), target.weight(l), rtol=1e-3)
    shift = np.asarray(div.phi(l) - target.phi(l))
    np.testing.assert_allclose(shift, shift[0], atol=1e-3 * float(1 + jnp.abs(target.phi(l)).max()))


@pytest.mark.parametrize(
    ("name", "alpha", "message"),
    [
        ("wasserstein", None, "'wasserstein' is not one of rkl, fkl, js"),
        ("alpha", None, "needs alpha, any real number"),
        ("alpha", float("nan"), "needs alpha"),
        ("skew_js", None, "between 0 and 1"),
        ("skew_js", 1.0, "between 0 and 1.*got 1.0"),
        ("rkl", 0.5, "'rkl' takes no alpha"),
    ],
)
def test_unknown_names_and_illegal_alphas_are_refused(name, alpha, message):
    with pytest.raises(ValueError, match=message):
        osd.divergence(name, alpha=alpha)


# --- diffused divergences in one dimension, by quadrature ----------------------------------------------------------


def diffused(names, data, student, sigma):
    """Means within 3 and scales from 0.5 to 1, or exact points: nothing over- or underflows on this grid."""
    x = np.linspace(-1, 1, 2001)[:, None] * (3 + 8 * np.sqrt(1 + sigma**2))
    density = jnp.exp(student.log_prob(x, sigma)) * (x[1] - x[0])
    l = osd.exact_log_ratio(data, student, x, sigma)
    return np.array([float(density @ osd.divergence(name).f(l)) for name in names])


def test_gradient_theorem(f64):
    """d D_f / d(a, b) for the student a z + b equals -E[w_f grad log r dx/d(a, b)], for every row and noise level."""
    data = osd.GaussianMixture([0.4, 0.6], [[-0.6], [0.6]], [0.5, 0.4])
    a, b = 0.6, 0.2
    line = np.linspace(-11, 11, 151)  # trapezoids are spectrally accurate for what decays like a Gaussian
    z, e = (jnp.asarray(v.ravel()) for v in np.meshgrid(line, line))
    joint = jnp.exp(-(z**2 + e**2) / 2) * (line[1] - line[0]) ** 2 / (2 * jnp.pi)
    x = jnp.linspace(-12.0, 12.0, len(z))

    def log_normal(x, a, b, sigma):
        return -0.5 * ((x - b) ** 2 / (a**2 + sigma**2) + jnp.log(2 * jnp.pi * (a**2 + sigma**2)))

    for sigma in (0.4, 0.7, 1.5):
        data_log = data.log_prob(x[:, None], sigma)
        noised = a * z + b + sigma * e
        l = data.log_prob(noised[:, None], sigma) - log_normal(noised, a, b, sigma)
        steepness = data.score(noised[:, None], sigma)[:, 0] + (noised - b) / (a**2 + sigma**2)
        for name, alpha in [*PLAIN, ("alpha", -0.5), ("alpha", 0.3), ("skew_js", 0.3)]:
            div = osd.divergence(name, alpha=alpha)

            def total(a, b, div=div, sigma=sigma, data_log=data_log):
                student_log = log_normal(x, a, b, sigma)
                return jnp.sum(jnp.exp(student_log) * div.f(data_log - student_log)) * (x[1] - x[0])

            by_quadrature = jax.grad(total, (0, 1))(a, b)
            pulled = -joint * div.weight(l) * steepness
            by_field = jnp.sum(pulled * z), jnp.sum(pulled)
            np.testing.assert_allclose(by_field, by_quadrature, rtol=1e-6, atol=1e-8, err_msg=f"{name} {alpha} {sigma}")


@pytest.mark.parametrize(("sigma", "value"), [(0.0, 0.818147), (0.5, 0.558145), (1.0, 0.297502), (3.0, 0.051481)])
def test_kl_of_noised_gaussians_has_its_closed_form(f64, sigma, value):
    """Student N(1, 1/4), data N(0, 1): KL = (v_s/v_d + 1/v_d - 1 - log v_s/v_d) / 2 with v = variance + sigma^2."""
    data, student = (osd.GaussianMixture([1, 1, 1], [[m]] * 3, [s] * 3) for m, s in ((0.0, 1.0), (1.0, 0.5)))
    share = (0.25 + sigma**2) / (1 + sigma**2)
    exact = (share + 1 / (1 + sigma**2) - 1 - np.log(share)) / 2
    assert exact == pytest.approx(value, abs=5e-7)
    assert diffused(["rkl"], data, student, sigma)[0] == pytest.approx(exact, abs=1e-9)


mixtures = (
    st.integers(0, 2**31 - 1)
    .map(np.random.default_rng)
    .map(
        lambda rng: [
            osd.GaussianMixture(rng.dirichlet(np.ones(3)), rng.uniform(-3, 3, (3, 1)), rng.uniform(0.5, 1.0, 3))
            for _ in range(2)
        ]
    )
)


@settings(max_examples=20, deadline=None)
@given(mixtures)
def test_noise_never_increases_a_divergence_and_never_makes_it_zero(pair):
    with jax.enable_x64(True):
        data, student = (osd.GaussianMixture(g.weights, g.means, g.scales) for g in pair)
        names = ("rkl", "fkl", "js", "ns", "hellinger", "lecam")
        values = np.array([diffused(names, data, student, sigma) for sigma in (0.0, 0.3, 1.0, 3.0)])
        assert (np.diff(values, axis=0) <= 1e-9).all()
        assert (values[-1] > 0).all()
        np.testing.assert_allclose(diffused(names, data, data, 0.3), 0, atol=1e-12)


def test_noise_makes_divergences_of_disjoint_points_finite(f64):
    data = osd.GaussianMixture([1, 1, 2], [[-1.0], [-1.0], [1.0]], [0, 0, 0])
    student = osd.GaussianMixture([1, 1, 1], [[0.0]] * 3, [0, 0, 0])
    # Two points against one: KL(student || data) = -E log(exp(-1/2s^2) cosh(x/s^2)) at x ~ N(0, s^2).
    x, w = np.polynomial.hermite_e.hermegauss(120)
    for sigma in (0.5, 1.0):
        y = sigma * x
        exact = np.sum(w * (0.5 / sigma**2 - np.log(np.cosh(y / sigma**2)))) / w.sum()
        assert diffused(["rkl"], data, student, sigma)[0] == pytest.approx(exact, rel=1e-3)
