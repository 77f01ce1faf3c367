"""Resampling by the exact ratio: the table of SIR and argmax, groups, temperature, rejection."""

import numpy as np
import pytest
from scipy import integrate, stats

import onestep_diffusion as osd

# Student N(0, 1), data N(0.5, 0.8^2): standard deviation of what each method returns from groups of N.
SIR = {2: 0.873, 4: 0.829, 16: 0.807, 64: 0.798}
ARGMAX = {2: 0.787, 4: 0.590, 16: 0.247, 64: 0.070}


def candidates(n, seed=0):
    x = np.random.default_rng(seed).normal(size=n)
    return x, stats.norm.logpdf(x, 0.5, 0.8) - stats.norm.logpdf(x)


def chosen_std(method, group, groups=6000):
    x, l = candidates(group * groups, seed=group)
    out = x[osd.resample(l, method=method, group=group, seed=1)]
    error = np.sqrt(np.var((out - out.mean()) ** 2) / groups) / (2 * out.std())  # delta method
    return out.std(), error


@pytest.mark.parametrize("group", SIR)
def test_sir_spreads_like_the_data_as_groups_grow(group):
    std, error = chosen_std("sir", group)
    assert abs(std - SIR[group]) < 4 * error + 0.001  # the table is rounded
    if group == 64:
        assert abs(std - 0.8) < 4 * error + 0.003


@pytest.mark.parametrize("group", ARGMAX)
def test_argmax_contracts_as_groups_grow(group):
    """The ratio is a parabola around 25/18, so the best of N is the candidate nearest to it: an order statistic."""
    top = 25 / 18

    def density(x):
        closer = stats.norm.cdf(top + abs(x - top)) - stats.norm.cdf(top - abs(x - top))
        return group * stats.norm.pdf(x) * (1 - closer) ** (group - 1)

    moments = [integrate.quad(lambda x, k=k: x**k * density(x), -8, 8, points=[top], limit=200)[0] for k in range(3)]
    exact = np.sqrt(moments[2] - moments[1] ** 2)
    std, error = chosen_std("best_of", group)
    assert moments[0] == pytest.approx(1)
    assert abs(std - exact) < 4 * error
    assert abs(std - ARGMAX[group]) < 4 * error + 0.0005


def test_sir_of_pairs_has_its_exact_spread():
    """Two candidates: the law is E[(r_1 delta_1 + r_2 delta_2) / (r_1 + r_2)], a two-dimensional integral."""
    x, w = np.polynomial.hermite_e.hermegauss(80)
    w = np.outer(w, w) / w.sum() ** 2
    l = stats.norm.logpdf(x, 0.5, 0.8) - stats.norm.logpdf(x)
    share = w * 2 / (1 + np.exp(l[None] - l[:, None]))
    exact = np.sqrt(np.sum(share * x[:, None] ** 2) - np.sum(share * x[:, None]) ** 2)
    std, error = chosen_std("sir", 2)
    assert abs(std - exact) < 4 * error


@pytest.mark.parametrize("method", ["sir", "best_of"])
def test_indices_stay_inside_their_groups(method):
    index = osd.resample(candidates(300)[1], method=method, group=6)
    assert index.shape == (50,)
    np.testing.assert_array_equal(index // 6, np.arange(50))


def test_a_high_temperature_makes_the_choice_uniform_and_a_low_one_greedy():
    l = np.tile([0.0, 1.0, -2.0, 3.0], 4000)
    counts = np.bincount(osd.resample(l, group=4, temperature=1e6) % 4, minlength=4)
    assert stats.chisquare(counts).pvalue > 1e-3
    with pytest.warns(UserWarning, match="effective sample size"):
        assert (osd.resample(np.tile([0.0, 1, -2, 3, 0], 5), group=5, temperature=1e-3) % 5 == 3).all()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_sir_chooses_in_proportion_to_the_ratio_wherever_a_candidate_stands(temperature):
    l, order = np.array([0.0, 0.7, -0.5, 1.2]), np.array([2, 0, 3, 1])
    p = np.exp(l / temperature) / np.exp(l / temperature).sum()
    for arrangement in (np.arange(4), order):
        index = osd.resample(np.tile(l[arrangement], 8000), group=4, temperature=temperature, seed=3) % 4
        counts = np.bincount(arrangement[index], minlength=4)
        assert stats.chisquare(counts, 8000 * p).pvalue > 1e-3


def test_best_of_follows_a_permutation_of_the_candidates():
    l = np.random.default_rng(0).normal(size=40)
    order = np.concatenate([8 * g + np.random.default_rng(g).permutation(8) for g in range(5)])
    best, permuted = (osd.resample(v, method="best_of", group=8) for v in (l, l[order]))
    np.testing.assert_array_equal(order[permuted], best)


def test_a_pool_is_resampled_to_the_data_and_its_best_are_sorted():
    x, l = candidates(50_000)
    out = x[osd.resample(l, n_out=4000)]
    assert stats.kstest(out, stats.norm(0.5, 0.8).cdf).pvalue > 1e-3
    assert osd.resample(l).shape == (50_000,)
    np.testing.assert_array_equal(osd.resample(l, method="best_of", n_out=3), np.argsort(-l)[:3])
    assert osd.resample(l, method="best_of").shape == (1,)


def test_rejection_keeps_the_datas_law_and_the_order():
    x, l = candidates(20_000)
    index = osd.resample(l, method="rejection")
    assert (np.diff(index) > 0).all()
    # The maximum of the ratio is r(25/18); from then on a share 1/max is kept.
    top = np.exp(stats.norm.logpdf(25 / 18, 0.5, 0.8) - stats.norm.logpdf(25 / 18))
    late = index[index > 1000]
    assert abs(len(late) / 19_000 - 1 / top) < 4 * np.sqrt(0.25 / 19_000)
    assert stats.kstest(x[late], stats.norm(0.5, 0.8).cdf).pvalue > 1e-3
    np.testing.assert_array_equal(osd.resample(l, method="rejection", n_out=10), index[:10])


def test_effective_sample_size_lies_between_one_and_the_group():
    l = np.concatenate([np.zeros(4), [0, -np.inf, -np.inf, -np.inf], [5, 5, -np.inf, -np.inf]])
    np.testing.assert_allclose(osd.importance_ess(l, group=4), [4, 1, 2])
    ess = osd.importance_ess(candidates(4000)[1], group=8)
    assert ((ess >= 1) & (ess <= 8)).all()
    assert osd.importance_ess(np.zeros(7)) == pytest.approx(7)


def test_the_seed_decides():
    l = candidates(800)[1]
    np.testing.assert_array_equal(osd.resample(l, group=8, seed=4), osd.resample(l, group=8, seed=4))
    assert (osd.resample(l, group=8, seed=4) != osd.resample(l, group=8, seed=5)).any()


@pytest.mark.parametrize(
    ("l", "options", "message"),
    [
        ([0.0, 1.0, 2.0], {"group": 2}, "number of candidates, 3, has to be a multiple of the integer group=2"),
        ([0.0, 1.0], {"method": "greedy"}, "'greedy' is not one of sir, rejection, best_of"),
        ([0.0, 1.0], {"temperature": 0.0}, "temperature has to be positive; got 0.0"),
        ([0.0, 1.0], {"method": "rejection", "group": 2}, "leave out group=2"),
        ([0.0, 1.0], {"group": 2, "n_out": 1}, "n_out=1 has to be positive, and is given only without a group"),
        ([0.0, np.nan], {}, "log_ratio has to be"),
        ([[0.0, 1.0]], {}, r"got shape \(1, 2\)"),
        ([-np.inf, -np.inf, 0, 0], {"group": 2}, "only candidates with log ratio -inf"),
    ],
)
def test_illegal_requests_are_refused(l, options, message):
    with pytest.raises(ValueError, match=message):
        osd.resample(l, **options)
