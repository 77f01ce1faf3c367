import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from isoica.datasets import make_perturbed_linear, make_sources, measure_preserving_flow
from isoica.errors import IsoICAError
from isoica.eta_bound import dirichlet_basis
from isoica.linear import PerturbedICA
from isoica.metrics import mcc
from isoica.theory import eta_lower_bound


@pytest.mark.parametrize("degree", [1, 5, 9])
def test_basis_is_orthonormal_with_diagonal_dirichlet_form(degree):
    x = make_sources(2000, ["laplace"], 0)[:, 0]
    phi, rates = dirichlet_basis(x, degree, 0.0)
    np.testing.assert_allclose(phi.T @ phi / len(x), np.eye(degree), atol=1e-9)
    np.testing.assert_allclose(phi.mean(axis=0), 0, atol=1e-9)
    # Derivatives by an independent route: each column is a polynomial of x, refitted at Chebyshev order.
    z = (x - x.mean()) / x.std()
    fits = [np.polynomial.Chebyshev.fit(z, column, degree) for column in phi.T]
    slopes = np.stack([f.deriv()(z) for f in fits], axis=1)
    np.testing.assert_allclose(slopes.T @ slopes / len(x), np.diag(rates), atol=1e-6 * rates.max())


@pytest.mark.parametrize("order", [2, 3])
def test_statistic_is_the_supremum_over_all_test_functions(order):
    # sup of (E psi)²/E|grad psi|² over the tensor space, by a generalised eigenproblem with product-measure moments.
    S = make_sources(400, ["uniform", "laplace", "exponential"], 1)
    S = S + 0.3 * np.sin(S[:, [1, 2, 0]] * S[:, [2, 0, 1]])
    K, n = 2, len(S)
    Z = (S - S.mean(axis=0)) / S.std(axis=0)
    powers = [np.stack([z ** (a + 1) for a in range(K)], axis=1) for z in Z.T]
    slopes = [np.stack([(a + 1) * z**a for a in range(K)], axis=1) for z in Z.T]
    powers = [p - p.mean(axis=0) for p in powers]
    mass = [p.T @ p / n for p in powers]
    stiff = [s.T @ s / n for s in slopes]
    total = 0.0
    groups = [(0, 1), (0, 2), (1, 2)] + ([(0, 1, 2)] if order == 3 else [])
    for group in groups:
        psi, form = np.ones((n, 1)), np.zeros((1, 1))
        weight = np.ones((1, 1))
        for i in group:
            psi = (psi[:, :, None] * powers[i][:, None, :]).reshape(n, -1)
            form = np.kron(form, mass[i]) + np.kron(weight, stiff[i])
            weight = np.kron(weight, mass[i])
        m = psi.mean(axis=0)
        total += m @ np.linalg.solve(form, m)
    bound = eta_lower_bound(S, degree=K, order=order, n_permutations=5, winsorize=0.0, random_state=0)
    assert bound.raw == pytest.approx(total, rel=1e-8)
    assert bound.estimate == pytest.approx(np.sqrt(max(0, bound.raw - bound.bias)))
    assert np.sum(np.triu(bound.pairs) ** 2) >= bound.estimate**2 - 1e-12 or order == 3


@pytest.mark.parametrize("order", [2, 3])
def test_bias_is_the_mean_of_the_statistic_under_independence(order):
    found = [eta_lower_bound(make_sources(500, ["uniform", "laplace", "bimodal"], s), order=order, n_permutations=1)
             for s in range(60)]  # fmt: skip
    raw, bias = np.array([b.raw for b in found]), np.array([b.bias for b in found])
    assert abs(np.mean(raw - bias)) < 3 * np.std(raw) / np.sqrt(60)


def test_permutation_p_values_are_uniform_under_independence():
    p = [
        eta_lower_bound(make_sources(300, ["uniform", "laplace"], s), n_permutations=39, random_state=s).p_value
        for s in range(150)
    ]
    jitter = np.random.default_rng(0).uniform(0, 1 / 40, 150)  # p lies on a grid of 40
    assert kstest(np.array(p) - jitter, "uniform").pvalue > 1e-3


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.02, 0.3), st.sampled_from(["mlp", "quadratic", "saturation"]))
def test_bound_stays_below_the_perturbation(seed, eta, perturbation):
    data = make_perturbed_linear(4000, d=3, eta=eta, perturbation=perturbation, random_state=seed)
    k = np.linalg.solve(data.A, data.h.T).T
    bound = eta_lower_bound(data.S + eta * k, n_permutations=40, random_state=0)
    assert bound.lower <= bound.estimate
    assert bound.lower <= eta * 1.05  # linearised: exact to first order in eta


def test_bound_grows_with_the_perturbation():
    found = []
    for eta in (0.05, 0.1, 0.2):
        data = make_perturbed_linear(30_000, d=3, eta=eta, random_state=4)
        Z = PerturbedICA(random_state=0).fit_transform(data.X)
        found.append(eta_lower_bound(Z, n_permutations=20, random_state=0))
    assert [b.p_value for b in found] == [pytest.approx(1 / 21)] * 3
    assert found[2].estimate / found[1].estimate == pytest.approx(2, rel=0.2)
    assert found[1].estimate / found[0].estimate == pytest.approx(2, rel=0.3)


def test_flow_cannot_be_detected_yet_costs_a_quarter_of_eta_squared():
    S = make_sources(20_000, ["uniform", "uniform"], 0)
    F = measure_preserving_flow(S, 0.1)
    assert np.sqrt(np.mean(np.sum((F - S) ** 2, axis=1))) == pytest.approx(0.1, rel=1e-6)
    assert np.max(np.abs(F)) <= np.sqrt(3)
    bound = eta_lower_bound(F, n_permutations=50, random_state=1)
    assert bound.p_value > 0.01
    assert bound.lower == 0
    loss = 1 - mcc(S, PerturbedICA(random_state=0).fit_transform(F))
    assert loss == pytest.approx(0.1**2 / 4, rel=0.2)


def test_flow_is_invertible_and_preserves_area():
    rng = np.random.default_rng(2)
    S = rng.uniform(-1.5, 1.5, size=(200, 2))
    h = 1e-5
    corners = np.concatenate([S + h * np.array(e) for e in ([1, 0], [-1, 0], [0, 1], [0, -1])])
    F = measure_preserving_flow(corners, 0.2)
    right, left, up, down = np.split(F, 4)
    dx, dy = (right - left) / (2 * h), (up - down) / (2 * h)
    np.testing.assert_allclose(dx[:, 0] * dy[:, 1] - dx[:, 1] * dy[:, 0], 1, atol=1e-6)
    back = measure_preserving_flow(measure_preserving_flow(S, 0.2), -0.2)
    assert np.max(np.abs(back - S)) < 5e-3  # the time back is found from the moved points, so only nearly equal


def test_flow_keeps_other_laws_and_odd_columns():
    S = make_sources(5000, ["laplace"] * 3, 3)
    F = measure_preserving_flow(S, 0.1, law="laplace")
    np.testing.assert_array_equal(F[:, 2], S[:, 2])
    from isoica.laws import as_law

    assert kstest(F[:, 0], as_law("laplace").cdf).pvalue > 1e-3


def test_few_values_and_one_source_are_handled():
    S = make_sources(500, ["bernoulli", "bernoulli"], 0)
    assert np.isfinite(eta_lower_bound(S, n_permutations=20).raw)
    assert eta_lower_bound(S[:, :1]).estimate == 0


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda S: S[:10], {}, "too few"),
        (lambda S: S, {"order": 4}, "order"),
        (lambda S: np.where(np.arange(2) == 0, np.nan, S), {}, "NaN"),
        (lambda S: np.where(np.arange(2) == 0, 1.0, S), {}, "constant"),
        (lambda S: S[:, 0], {}, "shape"),
    ],
)
def test_bad_input_is_named(change, options, message):
    with pytest.raises(IsoICAError, match=message):
        eta_lower_bound(change(make_sources(100, ["uniform", "laplace"], 0)), **options)
