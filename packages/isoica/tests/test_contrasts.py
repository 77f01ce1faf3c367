import numpy as np
import pytest

from isoica.contrasts import BUILT_IN, Contrast, bias_weight_for, minimax_contrast, reflect, resolve
from isoica.errors import IsoICAError
from isoica.laws import as_law

U = np.linspace(-6, 6, 241)


@pytest.mark.parametrize("contrast", BUILT_IN.values(), ids=BUILT_IN)
def test_g_and_dg_are_the_derivatives_of_G(contrast):
    h = 1e-5
    np.testing.assert_allclose((contrast.G(U + h) - contrast.G(U - h)) / (2 * h), contrast.g(U), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose((contrast.g(U + h) - contrast.g(U - h)) / (2 * h), contrast.dg(U), rtol=1e-6, atol=1e-8)
    assert np.max(np.abs(contrast.dg(U))) <= contrast.L1 + 1e-12


def test_logcosh_is_exact_where_cosh_overflows():
    G = BUILT_IN["logcosh"].G(np.array([-800.0, 1e-9, 800.0]))
    np.testing.assert_allclose(G, [800 - np.log(2), 0.5e-18, 800 - np.log(2)], atol=4e-16)  # rounding at log 2


@pytest.mark.parametrize("contrast", BUILT_IN.values(), ids=BUILT_IN)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("weighted", [False, True])
def test_fused_sums_equal_elementwise_sums(contrast, dtype, tolerance, weighted):
    rng = np.random.default_rng(0)
    Y = rng.laplace(size=(3, 1700)).astype(dtype)
    w = rng.uniform(size=1700).astype(dtype) if weighted else None
    one = np.ones(1700) if w is None else w.astype(float)
    g, dg, G = contrast.sums(Y, w)
    y = Y.astype(float)
    np.testing.assert_allclose(g, contrast.g(y), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(dg, contrast.dg(y) @ one, rtol=tolerance * 10, atol=tolerance * 1700)
    np.testing.assert_allclose(G, contrast.G(y) @ one, rtol=tolerance * 10, atol=tolerance * 1700)


@pytest.mark.parametrize("law", ["uniform", "laplace", "exponential"])
def test_minimax_spline_is_a_contrast_with_unit_slope(law):
    x, w = as_law(law).nodes()
    c = minimax_contrast(x, w)
    h = 1e-5
    np.testing.assert_allclose((c.G(U + h) - c.G(U - h)) / (2 * h), c.g(U), atol=1e-7)
    np.testing.assert_allclose((c.g(U + h) - c.g(U - h)) / (2 * h), c.dg(U), atol=1e-4)
    assert np.max(np.abs(c.dg(U))) <= 1 + 1e-3
    assert c.g(np.zeros(1))[0] == pytest.approx(0, abs=1e-14)


def _risk(contrast, x, w, bias_weight):
    g, dg = contrast.g(x), contrast.dg(x)
    mu, rho = w @ (x * g), w @ dg
    return (w @ (g - w @ g) ** 2 - mu**2 + bias_weight * (w @ (dg - rho) ** 2)) / (mu - rho) ** 2


@pytest.mark.parametrize("bias_weight", [0.1, 1.0])
@pytest.mark.parametrize("law", ["uniform", "laplace", "exponential", "bimodal"])
def test_minimax_spline_beats_every_built_in_contrast(law, bias_weight):
    x, w = as_law(law).nodes()
    ours = _risk(minimax_contrast(x, w, bias_weight), x, w, bias_weight)
    with np.errstate(divide="ignore"):
        others = [_risk(c, x, w, bias_weight) for c in BUILT_IN.values()]
    assert ours <= min(others) * (1 + 1e-3)


def test_bias_weight_minimises_variance_plus_squared_bias():
    # With sigma² = gamma/tau² and kappa² = (gamma + v)/tau² both orders of weighting must rank splines alike.
    x, w = as_law("laplace").nodes()
    n, eta = 1e4, 0.02
    best = bias_weight_for(n, eta)

    def total(bias_weight):
        c = minimax_contrast(x, w, bias_weight)
        return _risk(c, x, w, 0.0) / n + eta**2 * _risk(c, x, w, 1.0)

    assert total(best) <= min(total(b) for b in (0.0, best / 3, min(1.0, best * 1.2), 1.0)) * (1 + 1e-6)


def test_reflected_contrast_treats_minus_s_alike():
    c = Contrast(lambda u: np.exp(-u), lambda u: -np.exp(-u), lambda u: np.exp(-u), name="skewed")
    r = reflect(c)
    np.testing.assert_allclose(r.G(-U), c.G(U))
    np.testing.assert_allclose(r.g(-U), -c.g(U))
    np.testing.assert_allclose(r.dg(-U), c.dg(U))
    assert reflect(BUILT_IN["logcosh"]) is BUILT_IN["logcosh"]
    assert reflect(BUILT_IN["skew"]) is BUILT_IN["skew"]


@pytest.mark.parametrize("bad", ["tanh", ["logcosh"], 3])
def test_unknown_contrasts_are_named(bad):
    with pytest.raises(IsoICAError, match="contrast"):
        resolve(bad, 2)
