import itertools
from math import comb, factorial, inf, lgamma, log, log2

import numpy as np
import pytest
from scipy import stats
from scipy.special import multigammaln

from algocause import LimitError, Scorer, local_score
from algocause.codes import crp_bits, log2_multinomial_nml, log2_stirling2, parent_set_bits, stirling_bits
from algocause.codes.basis import Nig
from algocause.codes.discrete import DiscreteCode
from algocause.codes.gaussian import Bge, GaussianBic
from algocause.codes.split import SplitBic, SplitDesign
from algocause.data import EnvData, Moments
from algocause.partition import Links, PartitionCode, labels_of
from algocause.scores import CODES


def partitions(items):
    """Every set partition, by inserting the first item into each block of the others."""
    if not items:
        yield []
        return
    for rest in partitions(items[1:]):
        yield [[items[0]], *rest]
        for b in range(len(rest)):
            yield [*rest[:b], [items[0], *rest[b]], *rest[b + 1 :]]


def normal_wishart_log_evidence(Y, a):
    """Sum of sequential multivariate-t log predictives (κ0 = a, ν0 = a + 1 + l, mean 0, scale t·1)."""
    l = Y.shape[1]
    if l == 0:
        return 0.0
    kappa, nu, mean, T = a, a + 1 + l, np.zeros(l), np.eye(l) * a**2 / (a + 1)
    total = 0.0
    for y in Y:
        df = nu - l + 1
        total += stats.multivariate_t.logpdf(y, mean, T * (kappa + 1) / (kappa * df), df=df)
        step = y - mean
        T = T + kappa / (kappa + 1) * np.outer(step, step)
        mean = (kappa * mean + y) / (kappa + 1)
        kappa, nu = kappa + 1, nu + 1
    return float(total)


def bge_log_evidence(Y, a):
    """The closed form: ln p(D_Y) with multivariate gamma functions."""
    n, l = Y.shape
    A, t, mean = a + 1 + l, a**2 / (a + 1), Y.mean(axis=0)
    C = (Y - mean).T @ (Y - mean)
    R = t * np.eye(l) + C + n * a / (n + a) * np.outer(mean, mean)
    return (
        l / 2 * log(a / (n + a))
        + multigammaln((n + A) / 2, l)
        - multigammaln(A / 2, l)
        - l * n / 2 * log(np.pi)
        + A * l / 2 * log(t)
        - (n + A) / 2 * np.linalg.slogdet(R)[1]
    )


@pytest.mark.parametrize("a", [1.0, 2.5])
@pytest.mark.parametrize("n", [1, 2, 30])
def test_bge_is_a_quotient_of_sums_of_sequential_multivariate_t_predictives(n, a):
    rng = np.random.default_rng(0)
    Y = rng.normal(size=(n, 4)) @ rng.normal(size=(4, 4)) + rng.normal(size=4)
    for parents in [(), (0,), (2, 0), (0, 1, 2)]:
        code = Bge(a)
        bits = code.bits(code.stats(Y), 3, parents)
        sequential = normal_wishart_log_evidence(Y[:, [*parents, 3]], a) - normal_wishart_log_evidence(
            Y[:, list(parents)], a
        )
        assert bits == pytest.approx(-sequential / log(2), abs=1e-9 * max(1.0, abs(bits)))
        closed = bge_log_evidence(Y[:, [*parents, 3]], a) - (bge_log_evidence(Y[:, list(parents)], a) if parents else 0)
        assert bits == pytest.approx(-closed / log(2), rel=1e-10)


def test_basis_evidence_is_the_sum_of_sequential_student_t_predictives():
    rng = np.random.default_rng(1)
    x = rng.normal(size=40)
    y = np.sin(2 * x) + 0.3 * rng.normal(size=40)
    X = np.column_stack([x, y])
    scorer = Scorer.of(EnvData.read(X), "basis", n_basis=5, standardize=False)
    design = scorer.design

    # The columns again, from their definition: the parent and four bumps at its quantiles, each centred.
    knots = np.quantile(x, np.linspace(0.03, 0.97, 4))
    bumps = np.exp(-0.5 * ((x[:, None] - knots) / ((knots[-1] - knots[0]) / 3)) ** 2)
    Phi = np.column_stack([np.ones(40), x, bumps - bumps.mean(axis=0)])
    precision, shape, rate = np.diag([0.1, 0.1, 1, 1, 1, 1]), 1.0, 0.5
    weights = np.zeros(6)
    nats = 0.0
    for row, target in zip(Phi, y, strict=True):
        spread = 1 + row @ np.linalg.solve(precision, row)
        nats -= stats.t.logpdf(target, 2 * shape, row @ weights, np.sqrt(rate / shape * spread))
        step = target - row @ weights
        updated = precision + np.outer(row, row)
        weights = np.linalg.solve(updated, precision @ weights + row * target)
        precision, shape, rate = updated, shape + 0.5, rate + 0.5 * step**2 / spread
    assert design.block_bits(1, (0,), ((0,),))[0] == pytest.approx(nats / log(2), abs=1e-9 * nats)


def test_bic_is_the_gaussian_likelihood_of_least_squares_and_half_a_logarithm_a_parameter():
    rng = np.random.default_rng(2)
    X = rng.normal(size=(50, 3)) + 5
    code = GaussianBic()
    A = np.column_stack([np.ones(50), X[:, :2]])
    residual = X[:, 2] - A @ np.linalg.lstsq(A, X[:, 2], rcond=None)[0]
    sd = np.sqrt(np.mean(residual**2))
    likelihood = -stats.norm.logpdf(residual, 0, sd).sum() / log(2)
    assert code.bits(code.stats(X), 2, (0, 1)) == pytest.approx(likelihood + 4 / 2 * log2(50), rel=1e-12)
    assert code.bits(code.stats(X[:4]), 2, (0, 1)) == inf


@pytest.mark.parametrize(("name", "proper"), [("kt", True), ("fnml", True), ("bdeu", True), ("qnml", False)])
def test_proper_discrete_codes_fill_the_kraft_sum_and_qnml_overfills_it(name, proper):
    code = DiscreteCode(name)
    assert code.is_code is proper
    worst = 0.0
    for n in (1, 4, 8):
        for parents in ([0] * n, [0] * (n // 2) + [1] * (n - n // 2)):
            total = 0.0
            for child in itertools.product(range(2), repeat=n):
                rows = np.column_stack([parents, child])
                total += 2.0 ** -code.bits(code.stats(rows, (2, 2)), 1, (0,))
            if proper:
                assert total == pytest.approx(1, abs=1e-9)
            worst = max(worst, total)
    assert (worst > 1.01) is not proper


def test_grid_code_is_a_prefix_code_and_its_grid_point_is_the_most_likely():
    code = DiscreteCode("fc", resolution=4)
    total = 0.0
    for child in itertools.product(range(3), repeat=5):
        rows = np.array(child)[:, None]
        bits = code.bits(code.stats(rows, (3,)), 0, ())
        counts = np.bincount(child, minlength=3)
        grid = [k for k in itertools.product(range(5), repeat=3) if sum(k) == 4]
        least = min(
            -sum(c * log2(x / 4) for c, x in zip(counts, k, strict=True) if c)
            for k in grid
            if all(x or not c for c, x in zip(counts, k, strict=True))
        )
        assert bits == pytest.approx(least + log2(comb(6, 2)), abs=1e-9)
        total += 2.0**-bits
    assert total <= 1


@pytest.mark.parametrize("K", [2, 3, 4])
def test_multinomial_nml_is_the_sum_of_maximum_likelihoods(K):
    for n in range(1, 31):
        total = 0.0
        for cuts in itertools.combinations(range(n + K - 1), K - 1):
            counts = np.diff([-1, *cuts, n + K - 1]) - 1
            ways = factorial(n)
            for h in counts:
                ways //= factorial(int(h))
            total += ways * np.prod([(h / n) ** h for h in counts if h])
        assert log2_multinomial_nml(n, K) == pytest.approx(log2(total), abs=1e-10)


def test_multinomial_nml_of_two_cells_is_one_and_ramanujans_q():
    for n in range(1, 200):
        q = sum(np.exp(lgamma(n + 1) - lgamma(n - k + 1) - k * log(n)) for k in range(1, n + 1))
        assert log2_multinomial_nml(n, 2) == pytest.approx(log2(1 + q), rel=1e-11)


def test_multinomial_nml_of_one_draw_is_the_number_of_cells():
    for K in [1, 2, 17, 60, 61, 10**6]:
        assert log2_multinomial_nml(1, K) == pytest.approx(log2(K), rel=1e-12)
        assert log2_multinomial_nml(0, K) == 0


@pytest.mark.parametrize("n", [2, 5, 40, 1000, 10**5])
def test_the_expansion_for_many_cells_continues_the_recurrence(n):
    exact = [1.0, log2_multinomial_nml(n, 2)]
    ln = [0.0, exact[1] * log(2)]
    for k in range(3, 121):
        ln.append(np.logaddexp(ln[-1], log(n / (k - 2)) + ln[-2]))
    for K in [61, 80, 120]:
        assert log2_multinomial_nml(n, K) * log(2) == pytest.approx(ln[K - 1], abs=3e-3)


@pytest.mark.parametrize("n", range(1, 9))
def test_partition_codes_sum_to_one_over_all_partitions(n):
    for bits in (
        lambda p: crp_bits(map(len, p)),
        lambda p: crp_bits(map(len, p), theta=0.3),
        lambda p: stirling_bits(n, len(p)),
    ):
        assert sum(2.0 ** -bits(p) for p in partitions(list(range(n)))) == pytest.approx(1, abs=1e-12)


def test_stirling_numbers_agree_with_exact_integers_and_do_not_overflow():
    row = [1]
    for n in range(1, 301):
        row = [0] + [row[k - 1] + (k * row[k] if k < n else 0) for k in range(1, n + 1)]
    for k in (1, 2, 7, 150, 299, 300):
        assert log2_stirling2(300, k) == pytest.approx(log2(row[k]), rel=1e-13, abs=1e-12)
    assert log2_stirling2(5000, 4999) == pytest.approx(log2(comb(5000, 2)), rel=1e-12)
    assert log2_stirling2(3, 4) == -inf


def test_parent_set_code_sums_to_one():
    d = 7
    assert sum(comb(d - 1, k) * 2.0 ** -parent_set_bits(d, k) for k in range(d)) == pytest.approx(1, abs=1e-12)


def covered_reversals(rng, d):
    """A random DAG as parent sets, and the same after a random covered reversal."""
    while True:
        order = rng.permutation(d)
        parents = {int(v): {int(u) for u in order[:i] if rng.random() < 0.5} for i, v in enumerate(order)}
        covered = [(u, v) for v in parents for u in parents[v] if parents[v] - {u} == parents[u]]
        if covered:
            u, v = covered[rng.integers(len(covered))]
            reversed_ = {**parents, v: parents[v] - {u}, u: parents[u] | {v}}
            return parents, reversed_


@pytest.mark.parametrize(
    ("family", "code"),
    [("gaussian", "bge"), ("gaussian", "bic"), ("discrete", "qnml"), ("discrete", "bdeu"), ("mixed", "bge")],
)
def test_covered_reversals_keep_the_bits_of_equivalent_scores(family, code):
    rng = np.random.default_rng(3)
    X = rng.normal(size=(300, 5)) @ rng.normal(size=(5, 5))
    if family == "discrete":
        X = np.digitize(X, [-1, 0.5]) + np.arange(5) % 2 * (rng.random((300, 5)) < 0.2)
    if family == "mixed":
        X[:, :2] = np.digitize(X[:, :2], [-1, 0.5])
    env = rng.integers(4, size=300)
    scorer = Scorer.of(EnvData.read(X, env, family), family, code)
    assert scorer.score_equivalent
    for _ in range(10):
        before, after = covered_reversals(rng, 5)
        blocks = tuple(sorted(tuple(b) for b in list(partitions([0, 1, 2, 3]))[rng.integers(15)]))
        totals = [sum(scorer.local(v, tuple(sorted(S)), blocks).bits for v, S in g.items()) for g in (before, after)]
        assert totals[0] == pytest.approx(totals[1], rel=1e-9)


def test_codes_that_claim_no_equivalence_break_it():
    rng = np.random.default_rng(4)
    X = rng.integers(3, size=(100, 2))
    X[:, 1] = np.where(rng.random(100) < 0.6, X[:, 0] > 0, X[:, 1])
    for name in ("kt", "fnml"):
        assert not DiscreteCode(name).score_equivalent
        s = Scorer.of(EnvData.read(X, None, "discrete"), "discrete", name)
        assert abs(s.score(0, ()) + s.score(1, (0,)) - s.score(1, ()) - s.score(0, (1,))) > 0.1
    assert not Nig().score_equivalent


def test_a_parent_table_beyond_the_limit_costs_infinity():
    rng = np.random.default_rng(5)
    X = rng.integers(100, size=(150, 8))
    env = np.repeat([0, 1, 2], 50)
    scorer = Scorer.of(EnvData.read(X, env, "discrete"), "discrete", "fnml")
    assert scorer.score(0, tuple(range(1, 8))) == inf
    assert np.isfinite(scorer.score(0, (1, 2, 3)))


@pytest.mark.parametrize("name", CODES["discrete"])
def test_sparse_tables_cost_what_dense_tables_cost(name, monkeypatch):
    rng = np.random.default_rng(6)
    X = rng.integers(6, size=(90, 4))
    env = np.repeat([0, 1, 2], 30)
    dense = local_score(X, env, 0, (1, 2, 3), "discrete", name)
    monkeypatch.setattr("algocause.codes.discrete.DENSE_LIMIT", 1)
    sparse = local_score(X, env, 0, (1, 2, 3), "discrete", name)
    assert sparse.bits == pytest.approx(dense.bits, rel=1e-12)
    assert sparse.partition == dense.partition


def test_split_code_with_equal_partitions_is_the_joint_bic():
    rng = np.random.default_rng(7)
    X = rng.normal(size=(200, 3)) @ rng.normal(size=(3, 3)) + 3
    env = np.repeat(np.arange(4), 50)
    blocks = ((0, 2), (1,), (3,))
    joint = Scorer.of(EnvData.read(X, env), code="bic").local(2, (0, 1), blocks)
    split = Scorer.of(EnvData.read(X, env), components="split").local(2, (0, 1), blocks)
    assert split.mechanism_bits == pytest.approx(joint.mechanism_bits, rel=1e-10)
    assert split.partition_bits == pytest.approx(3 * joint.partition_bits)


def test_split_fit_is_a_maximum_of_the_likelihood():
    from scipy.optimize import minimize

    rng = np.random.default_rng(8)
    x = rng.normal(size=(4, 60)) + np.array([[0], [1], [2], [0]])
    y = 2 * x * np.array([[1], [1], [-1], [1]]) + rng.normal(size=(4, 60)) * np.array([[1], [3], [1], [3]])
    m = Moments.stack([Moments.of(np.column_stack([x[e], y[e]])) for e in range(4)])
    slots = {"intercept": ((0, 1, 2, 3),), "slope": ((0, 1, 3), (2,)), "noise": ((0, 2), (1, 3))}
    design = SplitDesign(m, np.zeros(2), np.full(2, 1e-12))
    bits = design.slot_bits(1, (0,), slots) - 0.5 * (log2(240) + log2(180) + log2(60) + 2 * log2(120))
    slope, noise = labels_of(slots["slope"]), labels_of(slots["noise"])

    def nats(p):
        scale = np.exp(p[3:5][noise])[:, None]
        return -stats.norm.logpdf(y, p[0] + p[1:3][slope][:, None] * x, scale).sum()

    assert bits == pytest.approx(minimize(nats, np.zeros(5), tol=1e-12).fun / log(2), abs=1e-5)


def test_split_code_says_which_part_of_a_mechanism_changed():
    rng = np.random.default_rng(9)
    N, n = 6, 400
    env = np.repeat(np.arange(N), n)
    x = rng.normal(size=N * n)
    mean, slope, noise = np.where(env < 2, 3, 0), np.where(env % 2, 1, -1), np.where(env == 5, 3, 1)
    y = mean + slope * x + noise * rng.normal(size=N * n)
    found = local_score(np.column_stack([x, y]), env, 1, (0,), code="bic", components="split")
    assert found.components == {
        "intercept": ((0, 1), (2, 3, 4, 5)),
        "slope": ((0, 2, 4), (1, 3, 5)),
        "noise": ((0, 1, 2, 3, 4), (5,)),
    }
    assert found.bits < local_score(np.column_stack([x, y]), env, 1, (0,), code="bic").bits
    assert SplitBic().is_code is False


def test_codes_from_outside_are_searched_like_our_own():
    class Outside:
        name, is_code, score_equivalent = "outside", True, True

        def stats(self, X):
            return Moments.of(X)

        def bits(self, stats, node, parents):
            return Bge().bits(stats, node, parents)

    rng = np.random.default_rng(10)
    env = np.repeat(np.arange(5), 40)
    X = rng.normal(size=(200, 2)) + env[:, None] % 2
    for part_code in ("crp", "stirling"):
        for exact in (True, False):
            ours = local_score(X, env, 1, (0,), standardize=False, exact=exact, part_code=part_code)
            theirs = local_score(X, env, 1, (0,), code=Outside(), exact=exact, part_code=part_code)
            assert theirs.bits == pytest.approx(ours.bits, rel=1e-10)
            assert theirs.partition == ours.partition == ((0, 2, 4), (1, 3))


def test_exact_partitions_of_many_environments_are_refused_with_the_alternative():
    env = np.repeat(np.arange(15), 6)
    X = np.random.default_rng(11).normal(size=(90, 2))
    with pytest.raises(LimitError, match="exact=False"):
        local_score(X, env, 0, (1,), exact=True)


def test_environments_too_small_to_fit_are_joined_under_bic():
    rng = np.random.default_rng(12)
    env = np.repeat([0, 1, 2], [2, 2, 50])
    with pytest.warns(UserWarning, match="fewer than 5 rows"):
        data = EnvData.read(rng.normal(size=(54, 3)), env)
    for components in ("joint", "split"):
        scorer = Scorer.of(data, "gaussian", "bic", components=components)
        assert scorer.partition(0, (1, 2)) == ((0, 1, 2),)
        assert np.isfinite(scorer.score(0, (1, 2)))
    code = PartitionCode.of("crp", 3)
    bits, labels = Scorer.of(data, "gaussian", "bic").design.partition(0, (1, 2), code, Links.of(3), False)
    assert np.isfinite(bits)
    assert len(set(labels.tolist())) == 1


@pytest.mark.parametrize(("name", "ess"), [("kt", None), ("bdeu", 1.0), ("bdeu", 3.0)])
def test_dirichlet_evidence_is_the_sum_of_sequential_predictives(name, ess):
    rng = np.random.default_rng(13)
    rows = np.column_stack([rng.integers(k, size=60) for k in (2, 3, 3)])
    code = DiscreteCode(name, ess=ess or 1.0)
    alpha = 0.5 if ess is None else ess / (2 * 3 * 3)
    counts, bits = np.zeros((2, 3, 3)), 0.0
    for a, b, x in rows:
        bits -= log2((counts[a, b, x] + alpha) / (counts[a, b].sum() + 3 * alpha))
        counts[a, b, x] += 1
    assert code.bits(code.stats(rows, (2, 3, 3)), 2, (0, 1)) == pytest.approx(bits, rel=1e-12)


def test_discrete_bic_is_the_maximum_likelihood_and_half_a_logarithm_a_parameter():
    rng = np.random.default_rng(14)
    rows = np.column_stack([rng.integers(k, size=60) for k in (2, 3)])
    table = np.histogram2d(*rows.T, bins=(2, 3))[0]
    likelihood = -(table * np.log2(table / table.sum(axis=1, keepdims=True))).sum()
    code = DiscreteCode("bic")
    assert code.bits(code.stats(rows, (2, 3)), 1, (0,)) == pytest.approx(likelihood + 2 * 2 / 2 * log2(60), rel=1e-12)


def test_codes_registered_as_entry_points_are_found_by_name(monkeypatch):
    class Point:
        name = "outside"

        def load(self):
            return Bge

    monkeypatch.setattr(
        "importlib.metadata.entry_points", lambda group: [Point()] if group == "algocause.codes" else []
    )
    X = np.random.default_rng(15).normal(size=(30, 2))
    assert local_score(X, None, 0, (1,), code="outside").bits == local_score(X, None, 0, (1,)).bits
