"""Correction, Gibbs steps and error probabilities against exact laws."""

import pytest
import torch

from gidd import HybridProcess, MaskedProcess, UniformProcess, gibbs, self_correct, token_error_probs
from gidd.exact import loo_model

V, MASK = 4, 3
PROCESS = HybridProcess(V, MASK, 0.3)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def toy_joint(seed=0, length=3):
    joint = torch.rand((3,) * length, generator=seeded(seed), dtype=torch.float64) ** 3
    return joint / joint.sum()


def draws(joint, n, seed=1):
    flat = torch.multinomial(joint.flatten(), n, replacement=True, generator=seeded(seed))
    return torch.stack(torch.unravel_index(flat, joint.shape), 1)


def histogram(z, V):
    index = (z * V ** torch.arange(z.shape[1])).sum(1)
    return torch.bincount(index, minlength=V ** z.shape[1]).double() / len(z)


@pytest.mark.parametrize("process", [PROCESS, MaskedProcess(V, MASK), UniformProcess(3)], ids=repr)
def test_gibbs_leaves_the_marginal_of_the_process_invariant(process):
    joint, n = toy_joint(length=2), 60_000
    t = 0.4
    z = process.q_sample(draws(joint, n), torch.tensor(t), seeded(2))
    after = gibbs(loo_model(joint, process), process, z, t, 2, generator=seeded(3))
    assert float((z != after).any(1).double().mean()) > 0.2
    # Exact marginal by enumeration.
    exact = torch.zeros(process.vocab_size**2, dtype=torch.float64)
    for x in torch.cartesian_prod(torch.arange(3), torch.arange(3)):
        q = process.marginal(x, torch.full((2,), t, dtype=torch.float64))
        exact += joint[tuple(x)] * (q[1][:, None] * q[0][None]).flatten()
    size = process.vocab_size
    spread = (exact.sqrt() / n**0.5).sum() / 2  # what sampling alone makes of the total variation, roughly
    assert float((histogram(after, size) - exact).abs().sum() / 2) < 1.5 * float(spread)


def test_error_probabilities_are_those_of_bayes():
    joint = toy_joint()
    t = 0.3
    time = torch.full((3,), t, dtype=torch.float64)
    states = torch.cartesian_prod(*[torch.arange(V)] * 3)
    given = torch.zeros(len(states), 3, 3, dtype=torch.float64)  # p(x_l = v, z)
    for x in torch.cartesian_prod(*[torch.arange(3)] * 3):
        q = PROCESS.marginal(x, time)
        weight = joint[tuple(x)] * torch.stack([q[k][states[:, k]] for k in range(3)]).prod(0)
        for k in range(3):
            given[:, k, x[k]] += weight
    posterior = given / given.sum(-1, keepdim=True)
    own = torch.where(states < 3, posterior.gather(-1, states.clamp_max(2)[..., None])[..., 0], 0.0)
    found = token_error_probs(loo_model(joint, PROCESS), PROCESS, states, t)
    assert float((found - (1 - own)).abs().max()) < 1e-6


def test_visible_tokens_of_masked_diffusion_are_beyond_doubt():
    z = torch.tensor([[0, 1, MASK]])
    assert token_error_probs(loo_model(toy_joint(), MaskedProcess(V, MASK)), MaskedProcess(V, MASK), z).tolist() == [
        [0, 0, 1]
    ]


def test_expected_error_rate_moves_the_probabilities():
    z = torch.tensor([[0, 1, 2]])
    model = loo_model(toy_joint(), PROCESS)
    low, high = (token_error_probs(model, PROCESS, z, error_rate=rate) for rate in (0.01, 0.2))
    assert bool((high > low).all())
    assert bool((token_error_probs(model, PROCESS, z, error_rate=0.0) == 0).all())


def agree(z, t):
    """A model that is sure every token is 0."""
    logits = torch.full((*z.shape, V), -20.0)
    logits[..., 0] = 20.0
    return logits


def test_fixed_point_replaces_one_token_a_step_and_stops_when_all_agree():
    tokens = torch.tensor([[0, 1, 2, 1], [0, 0, 0, 0]])
    out = self_correct(agree, PROCESS, tokens, generator=seeded())
    assert out.tokens.tolist() == [[0, 0, 0, 0]] * 2
    assert out.stop_reason == ["converged", "converged"]
    assert out.num_steps.tolist() == [3, 0]
    assert out.num_changed.tolist() == [3, 0]
    assert out.num_model_calls == 4
    assert out.initial_accuracy.tolist() == [0.25, 1.0]
    assert out.final_accuracy.tolist() == [1.0, 1.0]


def test_max_steps_and_tokens_per_step():
    tokens = torch.tensor([[1, 1, 2, 1, 2, 1]])
    out = self_correct(agree, PROCESS, tokens, max_steps=2, tokens_per_step=2, generator=seeded())
    assert out.stop_reason == ["max_steps"]
    assert out.num_changed.tolist() == [4]
    assert float(out.final_accuracy) == pytest.approx(4 / 6)
    assert self_correct(agree, PROCESS, tokens, max_steps=0).tokens.tolist() == tokens.tolist()


def test_patience_ends_a_run_that_does_not_improve():
    def contrary(z, t):
        """Wants every token to be another than it is."""
        return 5.0 * torch.nn.functional.one_hot((z + 1) % 3, V).float()

    out = self_correct(contrary, PROCESS, torch.zeros(1, 4, dtype=torch.long), patience=5, generator=seeded())
    assert out.stop_reason == ["patience"]
    assert int(out.num_steps) == 6


def test_finished_sequences_leave_the_batch_and_results_do_not_depend_on_it():
    exact, sizes = loo_model(toy_joint(4), PROCESS), []

    def model(z, t):
        sizes.append(len(z))
        return exact(z, t)

    tokens = torch.randint(0, 3, (24, 3), generator=seeded(5))
    options = {"max_steps": 10, "temperature": 1.0, "patience": 3}
    together = self_correct(model, PROCESS, tokens, generator=seeded(6), **options)
    assert sizes[-1] < sizes[0]
    one = seeded(6)
    alone = [self_correct(model, PROCESS, row[None], generator=one, **options) for row in tokens]
    assert torch.equal(together.tokens, torch.cat([a.tokens for a in alone]))
    assert together.stop_reason == [a.stop_reason[0] for a in alone]
    assert torch.equal(together.num_steps, torch.cat([a.num_steps for a in alone]))


@pytest.mark.parametrize("strategy", ["fixed_point", "gibbs"])
def test_frozen_tokens_stay_and_no_mask_appears(strategy):
    tokens = torch.tensor([[1, 1, 2, 1]])
    frozen = torch.tensor([[True, False, False, True]])
    out = self_correct(agree, PROCESS, tokens, frozen=frozen, strategy=strategy, max_steps=20, generator=seeded())
    assert out.tokens.tolist() == [[1, 0, 0, 1]]
    assert not bool((out.tokens == MASK).any())


def test_best_state_is_returned_on_request():
    joint = toy_joint(7)
    tokens = torch.randint(0, 3, (50, 3), generator=seeded(8))
    options = {"strategy": "gibbs", "max_steps": 12, "patience": 100, "temperature": 2.0}
    model = loo_model(joint, PROCESS)
    last = self_correct(model, PROCESS, tokens, generator=seeded(), **options)
    best = self_correct(model, PROCESS, tokens, generator=seeded(), return_best=True, **options)
    assert bool((best.final_accuracy >= last.final_accuracy).all())
    assert float(best.final_accuracy.mean()) > float(last.final_accuracy.mean())


def test_plain_posterior_is_turned_into_leave_one_out():
    """Correcting with P(x | z) and x0_kind="plain" is correcting with the leave-one-out model."""
    joint, t0 = toy_joint(9), 0.2
    exact = loo_model(joint, PROCESS)
    time = torch.tensor(t0, dtype=torch.float64)

    def plain(z, t):
        logits = exact(z, t).clone()
        shift = torch.where(
            z != MASK, torch.log1p(PROCESS.alpha(time) / PROCESS.noise_at(z, time).clamp_min(1e-300)), 0.0
        )
        return logits.scatter_add(-1, z[..., None], shift[..., None])

    tokens = torch.randint(0, 3, (20, 3), generator=seeded(10))
    options = {"t0": t0, "temperature": 0.5, "max_steps": 8}
    a = self_correct(exact, PROCESS, tokens, generator=seeded(), **options)
    b = self_correct(plain, PROCESS, tokens, generator=seeded(), x0_kind="plain", **options)
    assert torch.equal(a.tokens, b.tokens)
    with pytest.raises(ValueError, match="does not have"):
        self_correct(exact, MaskedProcess(V, MASK), tokens, x0_kind="plain")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "hope"}, "strategy 'hope' is not one of"),
        ({"tokens_per_step": 5}, "more than the 3 tokens"),
        ({"tokens_per_step": 0}, "tokens_per_step has to be an integer of at least 1"),
        ({"max_steps": -1}, "max_steps has to be"),
        ({"t0": 0.0}, "strictly between 0 and 1"),
        ({"x0_kind": "other"}, "x0_kind 'other'"),
        ({"frozen": torch.zeros(2, 2, dtype=torch.bool)}, "frozen has to be bool"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        self_correct(agree, PROCESS, torch.zeros(1, 3, dtype=torch.long), **options)


def test_tokens_have_to_be_sequences_of_a_batch():
    flat = torch.zeros(3, dtype=torch.long)
    for call in (
        lambda: self_correct(agree, PROCESS, flat),
        lambda: gibbs(agree, PROCESS, flat, 0.5, 1),
        lambda: token_error_probs(agree, PROCESS, flat),
    ):
        with pytest.raises(ValueError, match=r"tokens have to be \(B, L\); got shape \(3,\)"):
            call()


def test_empty_batches_pass_through():
    assert self_correct(agree, PROCESS, torch.zeros(0, 3, dtype=torch.long)).tokens.shape == (0, 3)
    assert gibbs(agree, PROCESS, torch.zeros(0, 3, dtype=torch.long), 0.5, 3).shape == (0, 3)


def test_gibbs_strategy_takes_the_least_probable_token_whatever_the_temperature():
    """At the first place .3 against one rival of .7, at the second .05 among twenty equals: the second is doubted."""
    size = 22
    p = HybridProcess(size, size - 1, 0.2)
    logits = torch.full((1, 2, size), -torch.inf)
    logits[0, 0, 0], logits[0, 0, 1] = torch.tensor(0.3).log(), torch.tensor(0.7).log()
    logits[0, 1, :20] = torch.tensor(0.05).log()
    tokens = torch.zeros(1, 2, dtype=torch.long)
    changed = torch.zeros(2)
    for seed in range(40):
        out = self_correct(
            lambda z, t: logits, p, tokens, max_steps=1, strategy="gibbs", temperature=0.1,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        changed += (out.tokens != tokens)[0]
    assert changed[0] == 0
    assert changed[1] > 30


def test_no_sequences_are_no_probabilities():
    from gidd import DiT, DiTConfig

    model = DiT(DiTConfig(vocab_size=5, hidden=8, layers=1, heads=2, max_seq_len=8))
    out = token_error_probs(model, HybridProcess(5, 4, 0.2), torch.zeros(0, 8, dtype=torch.long))
    assert out.shape == (0, 8)


def test_error_rate_of_uniform_substitutions_gives_the_bayes_probability():
    """A share e of tokens is replaced by one of N others: P(wrong | z, context) by Bayes, for any prediction p."""
    from gidd.evaluation.detection import PLANTED, planted_rate

    symbols = 7
    p = HybridProcess(symbols + 1, symbols, 0.2)
    predicted = torch.rand(1, 20, symbols, generator=torch.Generator().manual_seed(0)).double().pow(3)
    predicted = predicted / predicted.sum(-1, keepdim=True)
    tokens = torch.arange(20)[None] % symbols
    logits = torch.cat([predicted.log(), torch.full((1, 20, 1), -torch.inf).double()], dim=-1)
    found = token_error_probs(lambda z, t: logits, p, tokens, error_rate=planted_rate(symbols))
    right = (1 - PLANTED) * predicted.gather(-1, tokens[..., None])[..., 0]
    wrong = PLANTED / (symbols - 1) * (1 - predicted.gather(-1, tokens[..., None])[..., 0])
    assert torch.allclose(found, wrong / (right + wrong), atol=1e-9)
