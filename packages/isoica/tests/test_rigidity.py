from math import factorial, prod

import numpy as np
import pytest
from scipy import linalg, stats

from isoica.errors import IsoICAError
from isoica.theory import rigidity_constants


def test_reference_constants_of_the_disc():
    table = {degree: rigidity_constants("ball", 2, degree, unit_variance=False) for degree in (2, 3, 4)}
    assert table[2].korn == pytest.approx(4, abs=1e-9)
    assert [table[k].aff for k in (2, 3, 4)] == pytest.approx([0.5334, 0.5334, 0.5714], abs=5e-5)
    assert table[3].rigid == pytest.approx(0.6026, abs=5e-5)


def test_reference_constants_of_the_square_of_unit_variance():
    values = [rigidity_constants("box", 2, degree).aff for degree in (2, 3, 5, 7)]
    assert values == pytest.approx([1.1357, 1.1357, 1.3012, 1.3119], abs=5e-5)


@pytest.mark.parametrize("degree", range(2, 7))
def test_gaussian_latents_have_root_two_at_every_degree(degree):
    assert rigidity_constants("gaussian", 2, degree).aff == pytest.approx(np.sqrt(2), abs=1e-9)


def test_one_dimension_has_the_poincare_constant_and_no_rotation():
    constants = rigidity_constants("box", 1, 12)
    assert constants.korn == pytest.approx(1)
    assert constants.rigid == pytest.approx(2 * np.sqrt(3) / np.pi, rel=1e-9)  # interval of length 2√3


@pytest.mark.parametrize("domain", ["ball", "box", ["laplace", "uniform"]])
def test_constants_rise_with_the_degree_and_a_rigid_motion_is_affine(domain):
    found = [rigidity_constants(domain, 2, degree) for degree in (2, 3, 4, 6)]
    for name in ("korn", "aff", "rigid"):
        assert (np.diff([getattr(c, name) for c in found]) >= -1e-9).all()
    assert all(c.aff <= c.rigid + 1e-12 for c in found)


def test_dilation_scales_the_affine_constants_and_leaves_korn():
    small, large = (rigidity_constants(stats.uniform(3, w), 2, 5, unit_variance=False) for w in (1.0, 7.0))
    assert large.korn == pytest.approx(small.korn, rel=1e-9)
    assert [large.aff, large.rigid] == pytest.approx([7 * small.aff, 7 * small.rigid], rel=1e-9)
    square = rigidity_constants("box", 2, 5)
    assert 2 * np.sqrt(3) * small.aff == pytest.approx(square.aff, rel=1e-9)


def test_axes_of_unequal_size_do_change_korn():
    wide = rigidity_constants([stats.uniform(0, 1), stats.uniform(0, 9)], 2, 4, unit_variance=False)
    assert wide.korn > 4 * rigidity_constants("box", 2, 4, unit_variance=False).korn


def _by_monomials(moment, d, degree):
    """K_aff from exact moments of monomials, the affine fields fitted by weighted regression: an independent route."""
    exponents = [e for e in np.ndindex(*[degree + 1] * d) if 0 < sum(e) <= degree]
    fields = [(c, e) for c in range(d) for e in exponents]
    zero = (0,) * d

    def slope(e, i):
        return e[i], tuple(np.subtract(e, np.eye(d, dtype=int)[i])) if e[i] else zero

    def inner(a, b):
        return moment(tuple(np.add(a, b)))

    size = len(fields)
    mass, strain = np.zeros((2, size, size))
    for m, (c, e) in enumerate(fields):
        for n, (k, g) in enumerate(fields):
            mass[m, n] = (c == k) * (inner(e, g) - inner(e, zero) * inner(g, zero))
            for i in range(d):
                (f1, e1), (f2, g2) = slope(e, i), slope(g, i)
                strain[m, n] += 0.5 * (c == k) * f1 * f2 * inner(e1, g2)
            (f1, e1), (f2, g2) = slope(e, k), slope(g, c)
            strain[m, n] += 0.5 * f1 * f2 * inner(e1, g2)
    linear = np.array([sum(e) == 1 for _, e in fields])
    rest, low = np.flatnonzero(~linear), np.flatnonzero(linear)

    def schur(A, inverse):
        return A[np.ix_(rest, rest)] - A[np.ix_(rest, low)] @ inverse(A[np.ix_(low, low)]) @ A[np.ix_(low, rest)]

    return np.sqrt(linalg.eigh(schur(mass, np.linalg.inv), schur(strain, np.linalg.pinv), eigvals_only=True)[-1])


def _uniform_ball(e):
    """Moment of x^e on the unit ball, from Gamma functions (Folland 2001)."""
    from scipy.special import gamma

    d = len(e)
    if any(k % 2 for k in e):
        return 0.0
    return gamma(d / 2 + 1) / np.pi ** (d / 2) * prod(gamma((k + 1) / 2) for k in e) / gamma((sum(e) + d) / 2 + 1)


def _laplace(e):
    return 0.0 if any(k % 2 for k in e) else float(prod(factorial(k) * 0.5 ** (k / 2) for k in e))


@pytest.mark.parametrize(("domain", "moment"), [("ball", _uniform_ball), ("laplace", _laplace)])
def test_orthonormal_basis_agrees_with_exact_moments_of_monomials(domain, moment):
    ours = rigidity_constants(domain, 3, 4, unit_variance=domain == "laplace").aff
    assert ours == pytest.approx(_by_monomials(moment, 3, 4), rel=1e-7)


def test_laws_without_moments_or_with_few_points_are_refused():
    with pytest.raises(IsoICAError, match="2 points of support"):
        rigidity_constants("bernoulli", 2, 4)
    with pytest.raises(IsoICAError, match="moment of order 8"):
        rigidity_constants("student:5", 2, 4)
    with pytest.raises(IsoICAError, match="too large"):
        rigidity_constants("box", 10, 6)
