"""The certificate: valid bounds, uniform p-values, and its parts against scikit-learn."""

import numpy as np
import pytest
from scipy import integrate, special, stats
from sklearn.metrics import roc_auc_score

import onestep_diffusion as osd


class Mixture:
    """Random mixture of two to four normals on the line."""

    def __init__(self, rng):
        k = rng.integers(2, 5)
        self.weights, self.means, self.scales = rng.dirichlet(np.ones(k)), rng.normal(size=k), rng.uniform(0.3, 1, k)

    def sample(self, rng, n):
        k = rng.choice(len(self.weights), n, p=self.weights)
        return self.means[k] + self.scales[k] * rng.normal(size=n)

    def log_prob(self, x):
        return special.logsumexp(np.log(self.weights) + stats.norm.logpdf(x[:, None], self.means, self.scales), axis=1)


def divergences(p, q):
    x = np.linspace(-9, 9, 3001)
    lp, lq = p.log_prob(x), q.log_prob(x)
    mean = np.logaddexp(lp, lq) - np.log(2)
    js = np.exp(lp) * (lp - mean) / 2 + np.exp(lq) * (lq - mean) / 2
    return [integrate.trapezoid(v, x) for v in (js, np.exp(lp) * (lp - lq), np.exp(lq) * (lq - lp))]


def coverage(seed, distort):
    """Share of 200 random pairs whose bounds lie below the truth, for the log ratio bent by `distort`."""
    rng, held = np.random.default_rng(seed), []
    for trial in range(200):
        p, q = Mixture(rng), Mixture(rng)
        bend, shift = distort * rng.normal(size=2)
        d, s = ((1 + bend) * (p.log_prob(x) - q.log_prob(x)) + shift for x in (p.sample(rng, 300), q.sample(rng, 200)))
        out = osd.certify(np.clip(d, -5, 5), np.clip(s, -5, 5), n_boot=200, seed=trial)
        held.append(np.array([out.js_lower, out.kl_lower, out.rkl_lower]) <= divergences(p, q))
    return np.mean(held, axis=0)


def test_bounds_lie_below_the_truth_for_estimated_ratios():
    """At the 95 % level, in at least 93 % of 200 pairs; a ratio that is off makes the bounds looser."""
    assert (coverage(0, 0.3) >= 0.93).all()


def test_the_js_bound_holds_as_often_as_it_says_for_the_exact_ratio():
    """Where the bound is tight: within the binomial's reach of 95 %."""
    assert coverage(1, 0.0)[0] >= stats.binom.ppf(1e-3, 200, 0.95) / 200


def test_the_js_estimate_of_the_exact_ratio_is_the_divergence():
    rng = np.random.default_rng(2)
    p, q = Mixture(rng), Mixture(rng)
    d, s = (p.log_prob(x) - q.log_prob(x) for x in (p.sample(rng, 20_000), q.sample(rng, 20_000)))
    out = osd.certify(d, s, n_boot=100)
    js, kl, rkl = divergences(p, q)
    assert out.js == pytest.approx(js, abs=0.01)
    assert out.js_lower < out.js
    assert out.js_interval[0] < js < out.js_interval[1]
    assert kl - 0.1 < out.kl_lower < kl
    assert rkl - 0.1 < out.rkl_lower < rkl
    assert osd.certify(d / 2, s / 2, n_boot=10).js < out.js - 0.001  # another function gives less


def test_intervals_narrow_as_the_root_of_the_sample_size():
    rng = np.random.default_rng(3)
    d, s = rng.normal(0.5, 1, 16_000), rng.normal(-0.5, 1, 16_000)
    widths = [np.diff(osd.certify(d[:n], s[:n], n_boot=300).js_interval)[0] for n in (1_000, 16_000)]
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.2)


@pytest.mark.parametrize(("sizes", "threshold"), [((1500, 1500), 0.0), ((1500, 600), 0.5)])
def test_p_values_are_uniform_where_the_student_is_the_data(sizes, threshold):
    """Also when the rule calls two in three samples data, and for unequal sizes."""
    rng = np.random.default_rng(4)
    p = [
        osd.certify(rng.normal(threshold, 1, sizes[0]), rng.normal(threshold, 1, sizes[1]), n_boot=1).p_value
        for _ in range(300)
    ]
    assert stats.kstest(p, "uniform").pvalue > 1e-3


def test_p_value_is_fishers_and_finds_a_difference():
    rng = np.random.default_rng(5)
    d, s = rng.normal(0.2, 1, 300), rng.normal(0, 1, 200)
    table = [[(d > 0).sum(), (d <= 0).sum()], [(s > 0).sum(), (s <= 0).sum()]]
    assert osd.certify(d, s, n_boot=1).p_value == pytest.approx(stats.fisher_exact(table, "greater").pvalue)
    assert osd.certify(d + 1, s, n_boot=1).p_value < 1e-6


def test_auc_and_accuracy_are_scikit_learns():
    rng = np.random.default_rng(6)
    d, s = np.round(rng.normal(0.5, 1, 300), 1), np.round(rng.normal(0, 1, 200), 1)  # with ties
    out = osd.certify(d, s, n_boot=1)
    labels = np.repeat([1, 0], [300, 200])
    assert out.auc == pytest.approx(roc_auc_score(labels, np.concatenate([d, s])))
    assert out.accuracy == pytest.approx(((d > 0).mean() + (s <= 0).mean()) / 2)


def test_the_exact_ratio_is_calibrated_and_an_overconfident_one_is_not():
    """N(0, 1) against N(1, 1), of unequal numbers: l = 1/2 - x."""
    rng = np.random.default_rng(7)
    d, s = 0.5 - rng.normal(0, 1, 30_000), 0.5 - rng.normal(1, 1, 10_000)
    assert osd.certify(d, s, n_boot=1).ece < 0.01
    assert osd.certify(3 * d, 3 * s, n_boot=1).ece > 0.1
    predicted, observed, mass = osd.reliability(d, s)
    assert mass.sum() == pytest.approx(1)
    assert np.abs(predicted - observed).max() < 0.05
    assert ((predicted >= np.arange(10) / 10) & (predicted <= np.arange(1, 11) / 10)).all()


def test_a_ratio_that_knows_nothing_proves_nothing():
    out = osd.certify(np.zeros(50), np.zeros(40))
    assert out.js == pytest.approx(0, abs=1e-15)
    assert max(out.js_lower, out.kl_lower, out.rkl_lower) <= 0  # rounding must not prove anything
    assert (out.js_lower, out.kl_lower, out.rkl_lower) == pytest.approx((0, 0, 0), abs=1e-11)
    assert (out.auc, out.accuracy, out.p_value) == (0.5, 0.5, 1.0)
    assert out.ece == pytest.approx(0)


def test_the_seed_decides():
    rng = np.random.default_rng(8)
    d, s = rng.normal(size=(2, 100))
    assert osd.certify(d, s, seed=1) == osd.certify(d, s, seed=1)
    assert osd.certify(d, s, seed=1).js_lower != osd.certify(d, s, seed=2).js_lower


@pytest.mark.parametrize(
    ("d", "s", "options", "message"),
    [
        ([0.0], [0.0, 1.0], {}, r"log_r_data has to be a vector of at least two finite numbers; got shape \(1,\)"),
        ([0.0, 1.0], [0.0, np.nan], {}, "log_r_student has to be"),
        ([0.0, 1.0], [0.0, 1.0], {"level": 1.0}, "level=1.0 has to lie between 0 and 1"),
        ([0.0, 1.0], [0.0, 1.0], {"n_boot": 0}, "n_boot=0 to be positive"),
    ],
)
def test_illegal_samples_and_settings_are_refused(d, s, options, message):
    with pytest.raises(ValueError, match=message):
        osd.certify(d, s, **options)


def test_a_bound_that_overflows_says_nothing():
    rng = np.random.default_rng(0)
    found = osd.certify(500 * rng.normal(1, 1, 300), 500 * rng.normal(-1, 1, 300))
    assert (found.kl_lower, found.rkl_lower) == (-np.inf, -np.inf)
    assert np.isfinite(found.js)
