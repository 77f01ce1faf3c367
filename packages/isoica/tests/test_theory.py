import numpy as np
import pytest
from scipy import stats

from isoica import theory
from isoica.contrasts import BUILT_IN
from isoica.datasets import canonical_part
from isoica.errors import IsoICAError
from isoica.laws import as_law
from isoica.solvers import deflation, numpy_pass, symmetric
from isoica.whitening import moments, white_chunks

# One-unit sensitivities, to the digits known.
KAPPA = {
    ("uniform", "logcosh"): 2.504, ("uniform", "cube"): 2.330, ("uniform", "gauss"): 2.522,
    ("laplace", "logcosh"): 2.579, ("laplace", "cube"): 3.317, ("laplace", "gauss"): 2.727,
    ("exponential", "logcosh"): 2.705, ("exponential", "skew"): np.sqrt(2),
    ("uniform", "minimax"): 2.326, ("laplace", "minimax"): 2.543,
}  # fmt: skip


@pytest.mark.parametrize(("law", "contrast"), KAPPA)
def test_reference_sensitivities(law, contrast):
    assert theory.margins(law, contrast).kappa == pytest.approx(KAPPA[law, contrast], abs=6e-4)


def test_minimax_sensitivity_of_the_exponential():
    assert theory.margins("exponential", "minimax").kappa == pytest.approx(1.270, rel=3e-3)


@pytest.mark.parametrize("contrast", BUILT_IN)
def test_stein_no_contrast_sees_a_gaussian(contrast):
    assert abs(theory.margins(stats.norm(3, 2), contrast).alpha) < 1e-12


def test_margins_by_adaptive_quadrature():
    from scipy.integrate import quad

    m, c = theory.margins("laplace", "logcosh"), BUILT_IN["logcosh"]

    def expect(f):
        return 2 * quad(lambda s: f(s) * np.exp(-np.sqrt(2) * s) / np.sqrt(2), 0, 40, epsabs=1e-13)[0]

    mu, rho = expect(lambda s: s * c.g(s)), expect(c.dg)
    gamma, v = expect(lambda s: c.g(s) ** 2) - mu**2, expect(lambda s: c.dg(s) ** 2) - rho**2
    expected = [mu, rho, mu - rho, gamma, v, np.sqrt(gamma + v) / abs(mu - rho), np.sqrt(gamma) / abs(mu - rho)]
    np.testing.assert_allclose([m.mu, m.rho, m.alpha, m.gamma, m.var_dg, m.kappa, m.stat_sd], expected, rtol=1e-9)


def test_margins_of_a_sample_approach_those_of_its_law():
    x = as_law("exponential").rvs(200_000, np.random.default_rng(0))
    assert theory.margins(7 + 3 * x, "gauss").kappa == pytest.approx(
        theory.margins("exponential", "gauss").kappa, rel=0.05
    )


def test_a_moment_that_diverges_is_infinite():
    assert np.isinf(theory.margins("student:5", "cube").kappa)
    assert np.isfinite(theory.margins("student:5", "logcosh").kappa)


def test_sensitivity_combines_margins():
    laws, c = ["uniform", "laplace", "exponential"], "logcosh"
    m = [theory.margins(law, c) for law in laws]
    q = [x.gamma + x.var_dg for x in m]
    sym, one = theory.sensitivity(laws, c), theory.sensitivity(laws, c, "deflation")
    for i in range(3):
        for j in range(3):
            if i != j:
                assert sym[i, j] == pytest.approx(np.sqrt(q[i] + q[j]) / (abs(m[i].alpha) + abs(m[j].alpha)))
                assert one[i, j] == pytest.approx(m[i].kappa)
    assert np.all(np.diag(sym) == 0)
    assert np.all(np.diag(one) == 0)


def fit(X, contrast, algorithm):
    """ICA started at the identity, whitened symmetrically: B (d, d) close to I for perturbed sources."""
    mean, cov = moments(X, None, len(X))
    values, vectors = np.linalg.eigh(cov)
    K = vectors / np.sqrt(values) @ vectors.T
    d = X.shape[1]
    pass_ = numpy_pass(white_chunks(X, mean, K, None, "float64", None))
    solve = symmetric if algorithm == "symmetric" else deflation
    return solve(pass_, np.eye(d), [BUILT_IN[contrast]] * d, tol=1e-11, max_iter=200).W @ K


def derivative(S, k, contrast, algorithm, step=1e-4):
    return (fit(S + step * k, contrast, algorithm) - fit(S - step * k, contrast, algorithm)) / (2 * step)


def network(S, seed=0):
    rng = np.random.default_rng(seed)
    d = S.shape[1]
    return np.tanh(S @ rng.normal(size=(d, 8)) + rng.normal(size=8)) @ rng.normal(size=(8, d))


@pytest.mark.parametrize("algorithm", ["symmetric", "deflation"])
@pytest.mark.parametrize("contrast", BUILT_IN)
def test_first_order_equals_finite_differences(product_grid, contrast, algorithm):
    laws = ["exponential"] * 3 if contrast == "skew" else ["uniform", "laplace", "exponential"]
    S = product_grid(laws, 16)
    k = network(S)
    predicted = theory.first_order(S, k, contrast, algorithm, order=[0, 1, 2] if algorithm == "deflation" else None)
    np.testing.assert_allclose(derivative(S, k, contrast, algorithm), predicted.unmixing, atol=1e-5)


def test_first_extracted_row_has_its_one_unit_value_and_the_next_inherits(product_grid):
    S = product_grid(["uniform", "laplace", "exponential"], 16)
    k = network(S, 1)
    one_unit = theory.first_order(S, k, "logcosh", "deflation").unmixing
    measured = derivative(S, k, "logcosh", "deflation")
    np.testing.assert_allclose(np.triu(measured, 1), np.triu(one_unit, 1), atol=1e-5)
    assert abs(measured[1, 0] - one_unit[1, 0]) > 0.1  # Gram-Schmidt binds row 1 to row 0


def test_linear_perturbation_is_inverted_exactly(product_grid):
    S = product_grid(["uniform", "laplace", "exponential"], 12)
    K = np.random.default_rng(0).normal(size=(3, 3))
    for algorithm in ("symmetric", "deflation"):
        effect = theory.first_order(S, S @ K.T, "logcosh", algorithm)
        np.testing.assert_allclose(effect.unmixing, -K, atol=1e-10)
        np.testing.assert_allclose(effect.corr_loss, 0, atol=1e-20)


def test_correlation_loss_is_second_order(product_grid):
    S = product_grid(["uniform", "laplace", "exponential"], 16)
    k, eta = network(S, 2), 1e-3
    recovered = (S + eta * k) @ fit(S + eta * k, "logcosh", "symmetric").T
    loss = [1 - np.corrcoef(S[:, i], recovered[:, i])[0, 1] for i in range(3)]
    np.testing.assert_allclose(np.array(loss) / eta**2, theory.first_order(S, k, "logcosh").corr_loss, rtol=0.02)


@pytest.mark.parametrize("algorithm", ["symmetric", "deflation"])
@pytest.mark.parametrize(("i", "j"), [(0, 1), (1, 2)])
def test_worst_case_perturbation_attains_the_sensitivity(product_grid, algorithm, i, j):
    S = product_grid(["uniform", "laplace", "exponential"], 16)
    k = theory.worst_case_perturbation(S, "logcosh", i, j, algorithm)
    assert np.mean(np.sum(k * k, axis=1)) == pytest.approx(1)
    np.testing.assert_allclose(S.T @ k / len(S), 0, atol=1e-12)
    kappa = theory.sensitivity(S, "logcosh", algorithm)[i, j]
    assert derivative(S, k, "logcosh", algorithm)[i, j] == pytest.approx(kappa, rel=1e-4)


@pytest.mark.parametrize("algorithm", ["symmetric", "deflation"])
def test_no_canonical_perturbation_exceeds_the_sensitivity(product_grid, algorithm):
    S = product_grid(["uniform", "laplace", "exponential"], 12)
    kappa = theory.sensitivity(S, "cube", algorithm)
    for seed in range(40):
        k = canonical_part(S, network(S, seed))
        k /= np.sqrt(np.mean(np.sum(k * k, axis=1)))
        leak = np.abs(theory.first_order(S, k, "cube", algorithm).unmixing)
        np.fill_diagonal(leak, 0)
        assert np.all(leak <= kappa + 1e-12)


@pytest.mark.parametrize("eta", [0.0005, 0.002, 0.005])
def test_certificate_holds_and_formula(product_grid, eta):
    S = product_grid(["uniform", "laplace", "exponential"], 14)
    k = theory.worst_case_perturbation(S, "logcosh", 0, 1)
    certificates = theory.certificate(S, "logcosh", 1.0, eta)
    recovered = (S + eta * k) @ fit(S + eta * k, "logcosh", "deflation").T
    for i, c in enumerate(certificates):
        alpha = theory.margins(S[:, i], "logcosh").alpha
        assert c.radius == pytest.approx(2 * 4 / np.sqrt(3) * eta / abs(alpha))
        assert np.corrcoef(S[:, i], recovered[:, i])[0, 1] >= c.corr_lower
        if c.valid:
            assert c.certified == "numerical"
            assert c.corr_lower == pytest.approx(1 - 0.5 * (1.04 * c.radius + eta) ** 2)
    assert all(c.valid for c in certificates) or eta == 0.005


def test_certificate_refuses_what_it_cannot_prove(product_grid):
    S = product_grid(["uniform", "laplace"], 12)
    assert not any(c.valid for c in theory.certificate(S, "cube", 1.0, 0.001))  # unbounded g'
    assert not any(c.valid for c in theory.certificate(S, "logcosh", 1.0, 0.5))  # radius above 1/2
    G = product_grid(["gaussian", "gaussian"], 60)
    assert not any(c.valid for c in theory.certificate(G, "logcosh", 1.0, 0.001))


def test_certificate_condition_equals_differences_of_the_map(product_grid):
    # The derivative of F_0 that the condition uses, by differences at a point off the centre.
    S, c = product_grid(["uniform", "laplace", "exponential"], 10), BUILT_IN["logcosh"]
    x, rest, v, h = S[:, 0], S[:, 1:], np.array([0.2, -0.1]), 1e-5

    def F(v):
        root = np.sqrt(1 - v @ v)
        return np.mean(c.g(root * x + rest @ v)[:, None] * (rest - np.outer(x, v / root)), axis=0)

    D = np.stack([(F(v + h * e) - F(v - h * e)) / (2 * h) for e in np.eye(2)], axis=1)
    np.testing.assert_allclose(theory.tangent_derivative(x, rest, c, v), D, atol=1e-8)


def test_ball_points_fill_the_ball():
    points = theory.ball_points(3, 0.4, 256)
    norms = np.linalg.norm(points, axis=1)
    assert points.shape == (256, 3)
    assert norms[0] == 0
    assert np.sum(np.isclose(norms, 0.4)) == 64
    assert np.all(norms <= 0.4 + 1e-12)
    assert np.all(np.abs(points.mean(axis=0)) < 0.02)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda S: theory.first_order(S, S[:, :1], "logcosh"), "shape"),
        (lambda S: theory.first_order(5 * S, S, "logcosh"), "variance 1"),
        (lambda S: theory.sensitivity("uniform", "logcosh"), "list"),
        (lambda S: theory.sensitivity(["uniform"], "logcosh", "parallel"), "algorithm"),
        (lambda S: theory.certificate(S, "logcosh", -1.0, 0.1), "norm_k"),
        (lambda S: theory.worst_case_perturbation(S, "logcosh", 1, 1), "different"),
    ],
)
def test_bad_input_is_named(product_grid, call, message):
    with pytest.raises(IsoICAError, match=message):
        call(product_grid(["uniform", "laplace"], 8))


@pytest.mark.parametrize("algorithm", ["symmetric", "deflation"])
def test_what_if_predicts_to_first_order_what_it_then_carries_out(algorithm):
    from isoica import PerturbedICA
    from isoica.datasets import make_sources

    X = make_sources(4000, ["uniform", "laplace", "exponential"], 0) @ np.random.default_rng(1).normal(size=(3, 3))
    model = PerturbedICA(algorithm=algorithm, random_state=0, tol=1e-10).fit(X)
    misses = []
    for eta in (0.02, 0.01):
        found = model.what_if(X, eta)
        i, j = found.pair
        # kappa_ takes the sources for independent, which in a sample they are up to 1/sqrt(n)
        assert found.leakage_predicted == pytest.approx(eta * model.kappa_[i, j], rel=4 / np.sqrt(4000))
        assert model.kappa_[i, j] == model.kappa_.max()
        misses.append([abs(found.leakage - found.leakage_predicted), np.abs(found.loss - found.loss_predicted).max()])
        np.testing.assert_allclose(found.loss, 1 - np.diag(np.corrcoef(found.sources.T, found.perturbed.T)[:3, 3:]))
        np.testing.assert_allclose(found.sources, model.transform(X), atol=1e-6)
    # What is left is of the next order: halving eta divides it by about 4 (leakage) and 8 (loss).
    assert misses[1][0] < misses[0][0] / 2.5
    assert misses[1][0] < 0.05 * found.leakage
    assert misses[1][1] < misses[0][1] / 4
