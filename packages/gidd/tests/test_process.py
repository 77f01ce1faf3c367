"""The algebra of the forward processes, against definitions, finite differences and brute force."""

import json
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from gidd.errors import ConfigError, InvalidProcessError
from gidd.process import (
    PRESETS,
    HybridProcess,
    MaskedProcess,
    MixtureProcess,
    Process,
    SNRProcess,
    UniformProcess,
    process_from_dict,
)

times = st.floats(0.01, 0.99)
sizes = st.integers(2, 9)
shares = st.one_of(st.just(0.0), st.floats(0.01, 0.9))


@st.composite
def processes(draw: st.DrawFn) -> Process:
    V = draw(sizes)
    kind = draw(st.sampled_from(["hybrid", "snr", "uniform"]))
    if kind == "uniform":
        return UniformProcess(V)
    mask = draw(st.integers(0, V - 1))
    if kind == "snr":
        return SNRProcess(V, mask, scale=draw(st.floats(-1, 1)), shift=draw(st.floats(-3, 3)))
    return HybridProcess(V, mask, draw(shares), draw(st.floats(0.1, 2.0)))


def double(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def close(a: torch.Tensor, b: torch.Tensor, rtol: float = 1e-10, atol: float = 1e-12) -> bool:
    return torch.allclose(a.double(), b.double(), rtol=rtol, atol=atol)


def unigram_process(V: int = 5) -> MixtureProcess:
    """Masking plus noise from word frequencies."""
    frequencies = torch.arange(1.0, V + 1)
    frequencies[-1] = 0.0
    mask = torch.zeros(V)
    mask[-1] = 1.0
    masses = [lambda t: t**2, lambda t: t * (1 - t)]
    return MixtureProcess(V, lambda t: 1 - t, masses, [mask, frequencies], mask_id=V - 1)


FIXED = [
    HybridProcess(6, 5, 0.2),
    HybridProcess(6, 0, 0.3, gamma=0.5),
    HybridProcess(6, 2, 0.5, gamma=2.0),
    HybridProcess(6, 5, 0.0),
    UniformProcess(6),
    SNRProcess(6, 5),
    SNRProcess.preset("low-uniform", 6, 5),
    unigram_process(6),
]


@settings(deadline=None, max_examples=60)
@given(processes(), st.lists(times, min_size=3, max_size=3, unique=True))
def test_marginals_and_transitions_form_a_markov_chain(p: Process, three: list[float]) -> None:
    r, s, t = (double(v) for v in sorted(three))
    x = torch.arange(p.vocab_size)
    q_s, q_t = p.marginal(x, s.expand(x.shape)), p.marginal(x, t.expand(x.shape))
    assert (q_t >= 0).all()
    assert close(q_t.sum(-1), torch.ones(len(x)))
    a, n = p.transition(s, t)
    assert 0 <= a <= 1
    assert (n >= -1e-15).all()
    assert close(a + n.sum(), double(1.0))
    assert close(a * q_s + n, q_t)
    a_rs, n_rs = p.transition(r, s)
    a_rt, n_rt = p.transition(r, t)
    assert close(a_rs * a, a_rt)
    assert close(a * n_rs + n, n_rt)


@settings(deadline=None, max_examples=60)
@given(processes(), st.floats(0.02, 0.98))
def test_rates_are_the_slopes_of_transitions_and_never_negative(p: Process, time: float) -> None:
    t, h = double(time), 1e-6
    p.validate()
    rate = p.rate_vector(t)
    assert (rate >= -1e-12).all()
    a, n = p.transition(t - h, t + h)
    assert torch.allclose(n / (2 * h), rate, rtol=1e-4, atol=1e-7)
    assert torch.allclose((a - 1) / (2 * h), p.alpha_rate(t) / p.alpha(t), rtol=1e-4)
    assert close(p.rate_at(torch.arange(p.vocab_size), t), rate)
    assert close(p.noise_at(torch.arange(p.vocab_size), t), p.noise_vector(t))
    # Rates out of a token sum to zero: -alpha'/alpha leaves, r arrives.
    assert close(rate.sum(), -p.alpha_rate(t) / p.alpha(t), rtol=1e-9)


@settings(deadline=None, max_examples=60)
@given(processes(), times)
def test_weights_in_time_are_rates_over_marginals_and_agree_with_log_snr(p: Process, time: float) -> None:
    t = double(time)
    z, x = torch.meshgrid(torch.arange(p.vocab_size), torch.arange(p.vocab_size), indexing="ij")
    q = p.marginal(torch.arange(p.vocab_size), t.expand(p.vocab_size)).T[z, x]
    possible = (q > 0) & (x != p.mask_id if p.mask_id is not None else True)
    weight = p.elbo_weight(z, x, t)
    assert close(weight[possible], (p.rate_vector(t)[z] / q)[possible], rtol=1e-8, atol=1e-9)
    # d t / d lambda = alpha (1 - alpha) / alpha', and pi' by differences in lambda.
    alpha, h = p.alpha(t), 1e-5
    pi = [p.noise_vector(u) / (1 - p.alpha(u)) for u in (p.time(p.log_snr(t) + d) for d in (-h, 0.0, h))]
    w = (pi[1] - (pi[2] - pi[0]) / (2 * h))[z] / (pi[1][z] + torch.exp(p.log_snr(t)) * (z == x))
    if isinstance(p, SNRProcess) and abs(abs(float(p.log_snr(t))) - 9) < 1e-3:
        return  # the kink
    in_time = weight * alpha * (1 - alpha) / -p.alpha_rate(t)
    assert torch.allclose(in_time[possible], w[possible], rtol=1e-4, atol=1e-6)
    assert close(p.loss_weight(z, x, t, "snr")[possible], in_time[possible].clamp_max(1e3), rtol=1e-8, atol=1e-9)


@settings(deadline=None, max_examples=60)
@given(sizes, shares, st.floats(0.1, 2.0), times)
def test_hybrid_weights_have_the_paper_s_closed_form(V: int, p_u: float, gamma: float, t: float) -> None:
    p = HybridProcess(V, V - 1, p_u, gamma)
    B, N = 2**gamma * p_u / (1 - p_u), V - 1
    c = B * t ** (gamma / 2) * (1 - t) ** (gamma / 2)
    slope = gamma / 2 * (1 - 2 * t) / (t * (1 - t)) * c
    x, mask = torch.tensor(0), torch.tensor(V - 1)
    assert float(p.elbo_weight(mask, x, double(t))) == pytest.approx(1 / (t * (1 - t)), rel=1e-12)
    clean = (c + (1 - t) * slope) / N / ((1 - t) * (1 - t + c / N))
    assert float(p.elbo_weight(x, x, double(t))) == pytest.approx(clean, rel=1e-9, abs=1e-9)
    if V > 2 and p_u > 0:
        other = p.elbo_weight(torch.tensor(1), x, double(t))
        assert float(other) == pytest.approx((gamma / 2 + (1 - gamma) * t) / (t * (1 - t)), rel=1e-12, abs=1e-9)
        b = p.noise_at(x, double(t))
        if other > 0:
            assert float(p.elbo_weight(x, x, double(t)) / other) == pytest.approx(float(b / (p.alpha(double(t)) + b)))


@settings(deadline=None, max_examples=40)
@given(sizes, st.floats(0.0, 0.95), st.floats(0.1, 2.0))
def test_p_uniform_is_the_share_of_uniform_tokens_at_one_half(V: int, p_u: float, gamma: float) -> None:
    half = HybridProcess(V, 0, p_u, gamma).masses(double(0.5))
    assert float(half[1]) == pytest.approx(p_u, abs=1e-12)


@settings(deadline=None, max_examples=30)
@given(sizes, st.floats(0.05, 0.5), st.floats(2.05, 3.0))
def test_gamma_beyond_two_is_rejected_with_token_time_and_value(V: int, p_u: float, gamma: float) -> None:
    p = HybridProcess(V, V - 1, p_u, gamma)
    with pytest.raises(
        InvalidProcessError, match=rf"rate of token 0 and {V - 2} alike at t=0\.\d+ is -.*gamma"
    ) as info:
        p.validate()
    words = str(info.value).split()
    t, value = float(words[words.index("alike") + 2].removeprefix("t=")), float(words[words.index("is") + 1].strip(","))
    assert float(p.rate_vector(double(t))[0]) == pytest.approx(value, rel=1e-2)


@pytest.mark.parametrize(("V", "p_u", "gamma"), [(2, 0.875, 4.0), (6, 0.9, 5.0)])
def test_where_alpha_increases_the_tokens_time_and_rate_are_named(V: int, p_u: float, gamma: float) -> None:
    p = HybridProcess(V, V - 1, p_u, gamma)
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    assert (p.alpha_rate(t) > 0).any()
    with pytest.raises(InvalidProcessError) as info:
        p.validate()
    found = re.match(rf"rate of token 0 and {V - 2} alike at t=(\S+) is (-\S+), below zero", str(info.value))
    time, value = (float(v) for v in found.groups())
    assert float(p.rate_vector(double(time))[0]) == pytest.approx(value, rel=1e-2)


def test_alpha_that_rises_or_is_no_number_is_rejected() -> None:
    mask = torch.eye(5)[4]

    def step(t: torch.Tensor) -> torch.Tensor:  # rises by a jump that no derivative sees
        return 1 - t + 0.1 * ((t > 0.5) & (t < 0.9))

    with pytest.raises(InvalidProcessError, match=r"alpha of every token increases by 0\.09\d+ up to t=0\.5"):
        MixtureProcess(5, step, [lambda t: 1 - step(t)], [mask], mask_id=4).validate()

    def holes(t: torch.Tensor) -> torch.Tensor:
        return torch.where((t > 0.5) & (t < 0.6), torch.nan, 1 - t)

    with pytest.raises(InvalidProcessError, match=r"nan at t=0\.5"):
        MixtureProcess(5, holes, [lambda t: t], [mask], mask_id=4).validate()


def test_gamma_is_free_without_uniform_noise() -> None:
    HybridProcess(5, 4, 0.0, gamma=3.0).validate()


@pytest.mark.parametrize("scale", [1.5, -1.5, 4.0])
def test_log_snr_mixtures_steeper_than_one_are_rejected(scale: float) -> None:
    with pytest.raises(InvalidProcessError, match=r"(mask token|alike) at t=0\.\d+ is -.*scale"):
        SNRProcess(6, 5, scale=scale).validate()


@pytest.mark.parametrize("p", [*FIXED, *(SNRProcess.preset(name, 6, 5) for name in PRESETS)], ids=repr)
def test_valid_processes_pass_and_end_in_the_prior(p: Process) -> None:
    p.validate()
    assert close(p.alpha(torch.tensor([0.0, 1.0])), torch.tensor([1.0, 0.0]))
    assert close(p.noise_vector(double(0.0)), torch.zeros(p.vocab_size))
    assert close(p.time(p.log_snr(double(0.3))), double(0.3), rtol=1e-9)


def test_a_mixture_with_a_negative_rate_is_rejected() -> None:
    mask, uniform = torch.eye(5)[4], torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])
    masses = [lambda t: t - t * (1 - t) ** 2, lambda t: t * (1 - t) ** 2]
    with pytest.raises(InvalidProcessError, match=r"rate of token 0 and 3 alike at t="):
        MixtureProcess(5, lambda t: 1 - t, masses, [mask, uniform], mask_id=4).validate()
    masses = [lambda t: t + t * (1 - t), lambda t: -t * (1 - t)]
    with pytest.raises(InvalidProcessError, match=r"mass of token 0 and 3 alike"):
        MixtureProcess(5, lambda t: 1 - t, masses, [mask, uniform], mask_id=4).validate()
    with pytest.raises(InvalidProcessError, match="miss 1"):
        MixtureProcess(5, lambda t: 1 - t, [lambda t: t, lambda t: t], [mask, uniform], mask_id=4).validate()
    with pytest.raises(InvalidProcessError, match="alpha"):
        MixtureProcess(5, lambda t: 1 - t / 2, [lambda t: t / 2], [mask], mask_id=4).validate()


def test_a_mixture_of_functions_equals_the_hybrid_process() -> None:
    h = HybridProcess(6, 5, 0.2)

    def c(t: torch.Tensor) -> torch.Tensor:
        return h.B * (t * (1 - t)).sqrt()

    masses = [lambda t: t / (1 + c(t)), lambda t: c(t) / (1 + c(t))]
    m = MixtureProcess(6, lambda t: (1 - t) / (1 + c(t)), masses, h.measures, mask_id=5)
    t = torch.linspace(0.01, 0.99, 50)
    for name in ("alpha", "alpha_rate", "noise_vector", "rate_vector"):
        assert close(getattr(m, name)(t), getattr(h, name)(t), rtol=1e-8, atol=1e-10), name
    with pytest.raises(ConfigError):
        m.to_dict()


def test_no_uniform_noise_is_exactly_masking() -> None:
    p, m = HybridProcess(5, 4, 0.0), MaskedProcess(5, 4)
    t = torch.linspace(0.001, 0.999, 200, dtype=torch.float64)
    assert p.B == 0.0
    for q in (p, m):
        assert torch.equal(q.alpha(t), 1 - t)
        assert torch.equal(q.noise_vector(t)[:, 4], t)
        assert torch.equal(q.noise_vector(t)[:, :4], torch.zeros(200, 4, dtype=torch.float64))
        assert torch.equal(q.rate_vector(t)[:, :4], torch.zeros(200, 4, dtype=torch.float64))
    x = torch.zeros(200, dtype=torch.long)
    for scheme in ("none", "clip", "dynamic_exact", "snr"):
        assert (p.loss_weight(x, x, t, scheme) == 0).all(), scheme
    assert close(p.elbo_weight(x + 4, x, t), 1 / (t * (1 - t)))
    z = p.q_sample(torch.zeros(20_000, dtype=torch.long), double(0.3).expand(20_000))
    assert set(z.tolist()) == {0, 4}


def test_training_weights_follow_their_formulas() -> None:
    V, p_u = 12, 0.2
    p = HybridProcess(V, V - 1, p_u)
    t = torch.tensor([0.001, 0.1, 0.5, 0.9, 0.999], dtype=torch.float64)
    x = torch.zeros(5, dtype=torch.long)
    clean, noise, mask = x, x + 1, x + V - 1
    ratio = torch.exp(-p.log_snr(t) / 2) * p.B / V
    assert close(p.loss_weight(clean, x, t), ratio.clamp(0, 2))
    assert close(p.loss_weight(noise, x, t), torch.ones(5))
    assert close(p.loss_weight(mask, x, t, w_max=3.0), torch.full((5,), 6.0))
    b = p.noise_at(x, t)
    for q in (p, HybridProcess(V, V - 1, p_u, gamma=1.5), unigram_process(V)):
        b = q.noise_at(x, t)
        assert close(q.loss_weight(clean, x, t, "dynamic_exact"), b / (q.alpha(t) + b))
        assert close(q.loss_weight(noise, x, t, "dynamic_exact"), torch.ones(5))
        assert close(q.loss_weight(mask, x, t, "dynamic_exact"), torch.full((5,), 2.0))
    gamma = HybridProcess(V, V - 1, p_u, gamma=1.5)
    assert close(gamma.loss_weight(clean, x, t), gamma.loss_weight(clean, x, t, "dynamic_exact"))
    released = p.B / V * torch.exp(0.5 * torch.sigmoid(-t))
    assert close(p.loss_weight(clean, x, t, "dynamic_released"), released)
    assert close(p.loss_weight(mask, x, t, "dynamic_released"), torch.full((5,), 2.0))
    assert close(p.loss_weight(mask, x, t, "clip", w_max=2.0), p.elbo_weight(mask, x, t).clamp_max(2.0))
    with pytest.raises(ValueError, match="dynamic_released"):
        UniformProcess(V).loss_weight(clean, x, t, "dynamic_released")
    with pytest.raises(ValueError, match="'heavy'"):
        p.loss_weight(clean, x, t, "heavy")


def test_log_snr_weight_matches_the_follow_up_s_formula() -> None:
    p, x = SNRProcess(8, 7, scale=0.7, shift=-0.4), torch.tensor(0)
    for lam in (-8.0, -1.0, 0.0, 2.0, 8.0):
        share = 1 / (1 + math.exp(-(0.7 * lam - 0.4)))
        slope = 0.7 * share * (1 - share)
        for z, pi, d in ((7, 1 - share, -slope), (1, share / 7, slope / 7), (0, share / 7, slope / 7)):
            want = (pi - d) / (pi + math.exp(lam) * (z == 0))
            assert float(p.snr_weight(torch.tensor(z), x, double(lam))) == pytest.approx(want, rel=1e-10)
    assert close(p.masses(double(1.0))[0], 1 - torch.sigmoid(double(-0.7 * 9 - 0.4)))


def follows(z: torch.Tensor, probabilities: torch.Tensor) -> bool:
    """Chi-square test of draws; what is impossible must not occur at all."""
    counts, want = torch.bincount(z.reshape(-1), minlength=len(probabilities)).double(), probabilities * z.numel()
    possible = want > 0
    if (counts[~possible] > 0).any():
        return False
    return int(possible.sum()) == 1 or chisquare(counts[possible].numpy(), want[possible].numpy()).pvalue > 1e-4


@pytest.mark.parametrize("p", FIXED, ids=repr)
def test_draws_follow_the_marginal(p: Process) -> None:
    g = torch.Generator().manual_seed(0)
    for t in (0.003, 0.4, 0.97):
        z = p.q_sample(torch.full((2, 20_000), 1), torch.full((2,), t, dtype=torch.float64), g)
        assert follows(z, p.marginal(torch.tensor(1), double(t)))
    assert follows(p.prior_sample((40_000,), g), p.noise_vector(double(1.0)))


def test_times_may_differ_per_token_and_draws_repeat_with_the_generator() -> None:
    p = HybridProcess(6, 5, 0.2)
    x = torch.zeros(3, 4, dtype=torch.long)
    t = torch.zeros(3, 4, dtype=torch.float64)
    t[:, 2:] = 1.0
    z = p.q_sample(x, t, torch.Generator().manual_seed(1))
    assert (z[:, :2] == 0).all()
    assert (z[:, 2:] == 5).all()
    t = torch.full((3,), 0.5, dtype=torch.float64)
    first, second = (p.q_sample(x, t, torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("p", FIXED, ids=repr)
@pytest.mark.parametrize(("s", "t"), [(0.0, 0.2), (0.3, 0.31), (0.6, 1.0)])
def test_posterior_is_bayes_rule_on_the_whole_table(p: Process, s: float, t: float) -> None:
    V = p.vocab_size
    x_probs = torch.rand(V, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    if p.mask_id is not None:
        x_probs[p.mask_id] = 0.0
    x_probs /= x_probs.sum()
    a, n = p.transition(double(s), double(t))
    forward = a * torch.eye(V, dtype=torch.float64) + n  # row z_s, column z_t
    prior = p.marginal(torch.arange(V), double(s).expand(V)).T @ x_probs
    joint = prior[:, None] * forward
    z = (joint.sum(0) > 0).nonzero()[:, 0]
    got = p.posterior(z, x_probs.expand(len(z), V), double(s), double(t).expand(len(z)))
    assert close(got, (joint / joint.sum(0))[:, z].T, rtol=1e-9)
    # The same per sequence of a batch, from probabilities that differ.
    two = torch.stack([x_probs, torch.nn.functional.one_hot(z[0] * 0 + (p.mask_id == 0), V).double()])
    batch = p.posterior(z[:1].expand(2), two, double(s), double(t))
    assert close(batch.sum(-1), torch.ones(2))


def test_a_visible_token_that_the_model_excludes_stays() -> None:
    p = MaskedProcess(4, 3)
    z, x_probs = torch.tensor([1]), torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    assert torch.equal(p.posterior(z, x_probs, double(0.2), double(0.5))[0], torch.eye(4, dtype=torch.float64)[1])


def test_dictionaries_make_the_same_process_again() -> None:
    made = [HybridProcess(6, 5, 0.3, 1.5, 1e-3), MaskedProcess(6, 0), UniformProcess(4), SNRProcess(6, 5, 0.5, -2.0)]
    for p in made:
        again = process_from_dict(json.loads(json.dumps(p.to_dict())))
        assert again == p
        assert type(again) is type(p)
        assert hash(again) == hash(p)
        assert repr(again) == repr(p)
    assert len(set(made)) == 4
    assert HybridProcess(6, 5) != HybridProcess(6, 4)
    for bad in ({"type": "gaussian"}, {}, {"type": "masked", "vocab_size": 4}, {"type": "uniform", "vocab": 4}):
        with pytest.raises(ValueError, match="process"):
            process_from_dict(bad)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: HybridProcess(1, 0), "vocab_size"),
        (lambda: HybridProcess(6, 6), "mask_id"),
        (lambda: HybridProcess(6, -1), "mask_id"),
        (lambda: HybridProcess(6, None), "mask_id"),
        (lambda: HybridProcess(6, 5, 1.0), "p_uniform"),
        (lambda: HybridProcess(6, 5, -0.1), "p_uniform"),
        (lambda: HybridProcess(6, 5, float("nan")), "p_uniform"),
        (lambda: HybridProcess(6, 5, 0.1, 0.0), "gamma"),
        (lambda: HybridProcess(6, 5, 0.1, 1.0, 0.5), "t_eps"),
        (lambda: UniformProcess(1.5), "vocab_size"),
        (lambda: SNRProcess(6, 5, min_log_snr=9.0), "min_log_snr"),
        (lambda: SNRProcess.preset("spicy", 6, 5), "spicy"),
        (lambda: MixtureProcess(3, lambda t: 1 - t, [lambda t: t], [torch.ones(4)]), "measures"),
        (lambda: MixtureProcess(3, lambda t: 1 - t, [lambda t: t], [-torch.ones(3)]), "measure"),
        (lambda: MixtureProcess(3, lambda t: 1 - t, [], []), "measures"),
        (lambda: HybridProcess(6, 5, 0.1, float("inf")), "gamma"),
        (lambda: MixtureProcess(3, lambda t: 1 - t, [lambda t: t], [torch.ones(3)], mask_id=3), "mask"),
    ],
)
def test_bad_arguments_are_named(make, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()


def test_bad_calls_are_named() -> None:
    p, x = HybridProcess(6, 5), torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"id 6, outside \[0, 6\)"):
        p.q_sample(x + 6, torch.full((2,), 0.5))
    with pytest.raises(ValueError, match="id -1"):
        p.marginal(x - 1, torch.full((2, 3), 0.5))
    with pytest.raises(ValueError, match="integer"):
        p.q_sample(x.double(), torch.full((2,), 0.5))
    with pytest.raises(ValueError, match=r"t has to lie in \[0, 1\]; got 1.5"):
        p.q_sample(x, torch.full((2,), 1.5))
    with pytest.raises(ValueError, match="does not fit"):
        p.q_sample(x, torch.full((3,), 0.5))
    with pytest.raises(ValueError, match="w_max has to be positive"):
        p.loss_weight(x, x, torch.full((2, 1), 0.5), w_max=-1.0)
    with pytest.raises(ValueError, match=r"t has to lie in \[0, 1\]; got -0.5"):
        p.elbo_weight(x, x, torch.full((2, 1), -0.5))
    with pytest.raises(ValueError, match="s < t"):
        p.transition(double(0.5), double(0.5))


# --- shapes and ends ------------------------------------------------------------------------------------------------

SOME = [
    HybridProcess(6, 5, 0.2),
    HybridProcess(6, 5, 0.3, gamma=1.7),
    MaskedProcess(6, 5),
    UniformProcess(6),
    SNRProcess(6, 5, shift=0.5),
]


@pytest.mark.parametrize("p", SOME, ids=repr)
@pytest.mark.parametrize("length", [3, 4])
def test_times_of_sequences_are_times_of_their_tokens(p, length):
    """Also where the batch is as large as the sequence is long, so that a wrong way would not be noticed."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(5, (3, length), generator=generator)
    s, t = torch.tensor([0.1, 0.2, 0.3]).double(), torch.tensor([0.3, 0.5, 0.9]).double()
    z = p.q_sample(x, t, generator)
    own = t[:, None].expand(x.shape)
    assert torch.equal(p.elbo_weight(z, x, t), p.elbo_weight(z, x, own))
    for scheme in ("none", "clip", "dynamic", "dynamic_exact", "snr"):
        assert torch.equal(p.loss_weight(z, x, t, scheme), p.loss_weight(z, x, own, scheme))
    assert torch.equal(p.marginal(x, t), p.marginal(x, own))
    guess = torch.rand(3, length, 6, generator=generator).double().softmax(-1)
    assert torch.equal(p.posterior(z, guess, s, t), p.posterior(z, guess, s[:, None].expand(x.shape), own))
    with pytest.raises(ValueError, match="does not fit"):
        p.elbo_weight(z, x, torch.tensor([0.1, 0.2]).double())


@pytest.mark.parametrize("V", [6, 1000, 50_258])
def test_negative_rates_are_found_in_vocabularies_of_any_size(V):
    HybridProcess(V, V - 1, 0.1, gamma=2.0).validate()
    for shift in (-2.0, 0.0, 2.0):
        SNRProcess(V, V - 1, 1.0, shift).validate()
        SNRProcess(V, V - 1, -1.0, shift).validate()
        with pytest.raises(InvalidProcessError, match="below zero"):
            SNRProcess(V, V - 1, 1.001, shift).validate()
    with pytest.raises(InvalidProcessError, match="below zero"):
        HybridProcess(V, V - 1, 0.1, gamma=2.001).validate()


def test_rates_at_the_ends_of_time_are_infinite_but_numbers():
    p = HybridProcess(6, 5, 0.2)
    rates = p.rate_vector(torch.tensor([0.0, 1.0]))
    assert not bool(rates.isnan().any())
    assert float(rates[0, 5]) == pytest.approx(1.0)  # of masks, which come at rate 1/(1-t)/C
    assert bool(rates[0, :5].isinf().all())
    assert not bool(p.rate_at(torch.arange(6), torch.tensor(0.0)).isnan().any())


def test_single_tokens_and_numbers_are_enough():
    p = HybridProcess(6, 5, 0.2)
    assert p.q_sample(torch.tensor(1), torch.tensor(0.5)).shape == ()
    assert torch.equal(p.noise_vector(0.5), p.noise_vector(torch.tensor(0.5)))
    assert torch.equal(p.rate_vector(0.5), p.rate_vector(torch.tensor(0.5)))


def test_measure_that_mixes_the_mask_is_the_sum_of_two():
    mask, rest = torch.tensor([0.0, 0, 0, 1]), torch.tensor([0.5, 0.5, 0, 0])
    one = MixtureProcess(4, lambda t: 1 - t, [lambda t: t], [0.25 * mask + 0.75 * rest], mask_id=3)
    two = MixtureProcess(4, lambda t: 1 - t, [lambda t: 0.25 * t, lambda t: 0.75 * t], [mask, rest], mask_id=3)
    one.validate()
    t = torch.linspace(0.1, 0.9, 5).double()
    for name in ("noise_vector", "rate_vector", "alpha"):
        assert torch.allclose(getattr(one, name)(t), getattr(two, name)(t), atol=1e-12)
    nothing = MixtureProcess(4, lambda t: 1 - t, [lambda t: t, lambda t: 0.0], [rest, mask], mask_id=3)
    nothing.validate()
