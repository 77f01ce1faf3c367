"""Sampling against exact laws: the right distribution, the right number of calls, nothing frozen ever moves."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from gidd import HybridProcess, MaskedProcess, ScalingConfig, ScalingTransformer, SNRProcess, UniformProcess, sample
from gidd.exact import loo_model
from gidd.sampling import Streams, sample_blocks, time_grid
from gidd.sampling.ancestral import _adaptive_step, ancestral_step
from gidd.sampling.predict import draw, sharpen

V0, V, MASK = 4, 5, 4


def copies(process):
    """The exact model of two equal tokens, uniform over V0: what one says of the other."""

    def model(z, t):
        t, other = t.double()[:, None], z.flip(1)
        q = torch.stack([process.noise_at(other, t) + (other == v) * process.alpha(t) for v in range(V0)], -1)
        out = torch.full((*z.shape, process.vocab_size), -torch.inf, dtype=torch.float64)
        out[..., :V0] = (q / q.sum(-1, keepdim=True)).log()
        return out

    return model


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def disagreement(process, steps, grid, n=20_000):
    tokens = sample(copies(process), process, (n, 2), steps, grid=grid, generator=seeded()).tokens
    return float((tokens[:, 0] != tokens[:, 1]).double().mean())


def test_warped_grid_leaves_a_fifth_of_the_mistakes_of_the_linear_one():
    process = HybridProcess(V, MASK, 0.2)
    assert disagreement(process, 64, "linear") >= 5 * disagreement(process, 64, "power:3")


@pytest.mark.parametrize(
    ("p_uniform", "grid", "agreement"),
    [
        (0.2, "linear", (0.80, 0.87)),
        (0.2, "auto", (0.95, 0.98)),
        (0.1, "auto", (0.97, 0.99)),
        (0.0, "auto", (0.90, 0.95)),
    ],
)
def test_copy_language_agrees_as_computed_for_the_specification(p_uniform, grid, agreement):
    for steps, expected in zip((8, 16), agreement, strict=True):
        assert 1 - disagreement(HybridProcess(V, MASK, p_uniform), steps, grid) == pytest.approx(expected, abs=0.015)


def chain(length=4, states=3, seed=0):
    """Joint of a small Markov chain, (states,) * length."""
    rng = np.random.default_rng(seed)
    p, joint = rng.dirichlet(np.ones(states)), None
    step = rng.dirichlet(0.5 * np.ones(states), size=states)
    joint = p
    for _ in range(length - 1):
        joint = joint[..., None] * step
    return torch.tensor(joint)


def codes(tokens, base):
    return (tokens * base ** torch.arange(tokens.shape[1] - 1, -1, -1)).sum(1)


def p_value(counts, expected):
    """Chi-square goodness of fit, cells with fewer than 5 expected joined."""
    rare = expected < 5
    seen = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    keep = wanted > 0
    assert seen[~keep].sum() == 0
    statistic = ((seen[keep] - wanted[keep]) ** 2 / wanted[keep]).sum()
    return chi2.sf(statistic, keep.sum() - 1) if keep.sum() > 1 else 1.0


@pytest.mark.parametrize(
    "process", [HybridProcess(4, 3, 0.2), MaskedProcess(4, 3), SNRProcess(4, 3), UniformProcess(3)], ids=repr
)
def test_samples_with_the_exact_model_match_a_markov_chain(process):
    joint = chain()
    n = 5_000
    steps = 256 if process.mask_id is not None else 512
    out = sample(loo_model(joint, process), process, (n, 4), steps, generator=seeded(1))
    assert out.num_model_calls == steps
    assert not bool((out.tokens == process.mask_id).any()) if process.mask_id is not None else True
    counts = torch.bincount(codes(out.tokens, 3), minlength=81).numpy()
    assert p_value(counts, joint.flatten().numpy() * n) > 1e-3


@pytest.mark.parametrize("process", [HybridProcess(6, 2, 0.3), MaskedProcess(6, 5), UniformProcess(6)], ids=repr)
@pytest.mark.parametrize(("s", "t"), [(0.3, 0.6), (0.0, 0.2), (0.7, 1.0)])
def test_routes_draw_from_the_dense_posterior(process, s, t):
    torch.manual_seed(0)
    n = 40_000
    s, t = (torch.tensor(value, dtype=torch.float64) for value in (s, t))
    probs = torch.rand(6).double()
    if process.mask_id is not None:
        probs[process.mask_id] = 0
    log_x = (probs / probs.sum()).log()
    for z in (0, 1, process.mask_id or 3):
        if float(process.noise_at(torch.tensor(z), t)) == 0 and float(process.alpha(t)) == 0:
            continue
        tokens = torch.full((n, 1), z)
        new = ancestral_step(process, tokens, log_x.expand(n, 1, 6), s, t, Streams.of(seeded(z), n, "cpu"), 0.0)
        expected = process.posterior(torch.tensor(z), log_x.exp(), s, t).numpy()
        assert p_value(np.bincount(new[:, 0].numpy(), minlength=6), expected * n) > 1e-4


def test_without_a_route_a_token_stays():
    """A visible token of masked diffusion whose model gives it no probability."""
    process = MaskedProcess(3, 2)
    log_x = torch.tensor([-torch.inf, 0.0, -torch.inf]).expand(1, 1, 3)
    s, t = torch.tensor(0.2).double(), torch.tensor(0.5).double()
    assert int(ancestral_step(process, torch.tensor([[0]]), log_x, s, t, Streams.of(seeded(), 1, "cpu"), 0.0)) == 0


def test_a_sequence_does_not_depend_on_its_batch():
    process = HybridProcess(V, MASK, 0.2)
    together = sample(copies(process), process, (40, 2), 16, generator=seeded(3)).tokens
    one = seeded(3)
    alone = torch.cat([sample(copies(process), process, (1, 2), 16, generator=one).tokens for _ in range(40)])
    assert torch.equal(together, alone)


def test_streams_are_uniform_and_unrelated():
    u = Streams.of(seeded(), 2_000, "cpu").uniform(64)
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    counts = torch.histc(u, 100, 0, 1).numpy()
    assert p_value(counts, np.full(100, u.numel() / 100)) > 1e-3
    correlation = torch.corrcoef(u[:200]).fill_diagonal_(0)
    assert float(correlation.abs().max()) < 6 / np.sqrt(64)


def test_rare_tokens_are_drawn_as_often_as_they_should():
    """10^6 draws; tokens of probability k 10^-6, k = 1 … 40, and none beyond the last that has any."""
    k = torch.arange(1, 41).double() * 1e-6
    p = torch.cat([k, (1 - k.sum())[None], torch.zeros(3)])
    tokens = draw(p.log().float().expand(1_000_000, -1), torch.rand(1_000_000, generator=seeded()).double())
    counts = torch.bincount(tokens, minlength=44).double()
    assert float(counts[-3:].sum()) == 0
    seen, expected = float(counts[:40].sum()), float(k.sum()) * 1e6
    assert abs(seen - expected) < 4 * expected**0.5


def test_frozen_tokens_never_change_and_prompts_begin_the_text():
    process = HybridProcess(V, MASK, 0.3)
    seen = []
    out = sample(
        copies(process), process, (50, 2), 8, prompt=torch.tensor([3, 0]), frozen=torch.tensor([False, True]),
        return_trajectory=True, callback=lambda i, t, z: seen.append((i, t)), generator=seeded(),
    )  # fmt: skip
    assert bool((out.trajectory[:, :, 1] == 0).all())
    assert out.trajectory.shape == (9, 50, 2)
    assert [i for i, _ in seen] == list(range(1, 9))
    assert seen[-1][1] == 0.0
    out = sample(copies(process), process, (50, 2), 8, prompt=torch.tensor([2]), generator=seeded())
    assert bool((out.tokens[:, 0] == 2).all())
    assert float((out.tokens[:, 1] == 2).double().mean()) > 0.8


@pytest.mark.parametrize("sampler", ["ancestral", "adaptive"])
@pytest.mark.parametrize("steps", [1, 3, 7])
def test_no_mask_is_left_after_any_number_of_steps(sampler, steps):
    process = HybridProcess(V, MASK, 0.2)
    out = sample(copies(process), process, (64, 2), steps, sampler=sampler, generator=seeded())
    assert not bool((out.tokens == MASK).any())
    assert out.num_model_calls <= steps


def test_adaptive_sampling_needs_one_position_at_a_time():
    """Two tokens in two steps: the second is decided in the light of the first."""
    process = MaskedProcess(V, MASK)
    tokens = sample(copies(process), process, (500, 2), 2, sampler="adaptive", generator=seeded()).tokens
    assert bool((tokens[:, 0] == tokens[:, 1]).all())


@pytest.mark.parametrize(
    "process", [MaskedProcess(6, 5), HybridProcess(6, 5, 0.3), SNRProcess(6, 5), UniformProcess(6)]
)
@pytest.mark.parametrize("last", [False, True])
def test_adaptive_steps_draw_where_the_model_gains_most(process, last):
    """k = 3 of 12 in 4 steps, by (max x - x(z)) pi(z), pi at the smallest log-SNR; a last step leaves no mask."""
    g, n = seeded(11), 200
    z = torch.randint(6, (n, 12), generator=g)
    kept = torch.rand(n, 12, generator=g) < 0.2
    logits = torch.randn(n, 12, 6, generator=g).double()
    if process.mask_id is not None:
        logits[..., process.mask_id] = -torch.inf
    sure = torch.full_like(logits, -torch.inf).scatter_(-1, logits.argmax(-1, keepdim=True), 0.0)
    new = _adaptive_step(process, z, logits, sure, 3 if last else 0, 4, Streams.of(g, n, "cpu"), kept)
    x = logits.softmax(-1).numpy()
    pi = process.noise_vector(torch.tensor(1 - 1e-4).double()).numpy()
    for row in range(n):
        gain = [-1.0 if kept[row, l] else (x[row, l].max() - x[row, l, z[row, l]]) * pi[z[row, l]] for l in range(12)]
        best = [l for l in np.argsort(gain)[::-1][:3] if gain[l] > 0]
        if last and process.mask_id is not None:
            best += [l for l in range(12) if z[row, l] == process.mask_id and not kept[row, l]]
        want = z[row].clone()
        want[best] = logits[row].argmax(-1)[best]
        assert torch.equal(new[row], want)


def test_greedy_adaptive_sampling_begins_where_the_model_is_surest():
    """At temperature 0 every prediction is certain; which are is said by the model's own probabilities."""
    process = MaskedProcess(4, 3)
    states = []

    def model(z, t):
        logits = torch.zeros(*z.shape, 4)
        logits[..., 1] = torch.tensor([1.0, 3.0, 2.0])
        return logits

    sample(model, process, (1, 3), 3, sampler="adaptive", temperature=0.0, callback=lambda i, t, z: states.append(z[0]))
    assert [state.tolist() for state in states] == [[3, 1, 3], [3, 1, 1], [1, 1, 1]]


def test_adaptive_sampling_revises_visible_tokens_where_noise_is_visible():
    """A model that wants 0 everywhere finds it at every position, also where the prior put something else."""

    def model(z, t):
        return 50.0 * torch.nn.functional.one_hot(torch.zeros_like(z), 6).double()

    for process in (SNRProcess(6, 5, shift=9.0), UniformProcess(6)):
        start = process.prior_sample((64, 8), seeded())
        assert float((start == 5).double().mean()) < 0.9
        out = sample(model, process, (64, 8), 8, sampler="adaptive", generator=seeded())
        assert bool((out.tokens == 0).all())


def test_adaptive_sampling_reuses_logits_while_nothing_changes():
    times = []

    def settled(z, t):
        """Sure that all is 0."""
        times.append(float(t[0]))
        return 50.0 * torch.nn.functional.one_hot(torch.zeros_like(z), 6).double()

    out = sample(settled, MaskedProcess(6, 5), (3, 4), 20, sampler="adaptive", temperature=0.0)
    assert out.num_model_calls == len(times) == 5  # four tokens, one a step, and the look after which nothing moves
    assert bool((out.tokens == 0).all())
    times.clear()
    out = sample(settled, MaskedProcess(6, 5), (3, 4), 20)
    assert out.num_model_calls == len(times) == 20


def test_guidance_cannot_bring_the_mask_back():
    process = HybridProcess(V, MASK, 0.2)

    def towards(logits, z, t):
        return torch.full_like(logits, 0.0).index_fill(-1, torch.tensor([MASK]), 100.0)

    for sampler in ("ancestral", "adaptive"):
        out = sample(copies(process), process, (50, 2), 4, sampler=sampler, guidance=towards, generator=seeded())
        assert not bool((out.tokens == MASK).any())


# --- block by block -------------------------------------------------------------------------------------------------


def so_far(joint, process):
    """The exact model of the beginnings of a language: what is not there yet is masked."""
    whole = loo_model(joint, process)

    def model(z, t):
        rest = torch.full((len(z), joint.dim() - z.shape[1]), process.mask_id)
        return whole(torch.cat([z, rest], 1), t)[:, : z.shape[1]]

    return model


@pytest.mark.parametrize("block", [1, 3])
def test_blocks_follow_the_law_of_the_text_before_them(block):
    """One token a step, wherever the model is surest, is the chain rule in some order: exact after a true beginning."""
    joint, process, n, steps = chain(), MaskedProcess(4, 3), 5_000, block
    options = {"sampler": "adaptive", "generator": seeded(2)}
    out = sample_blocks(so_far(joint, process), process, (n, 4), block, steps, **options)
    counts = torch.bincount(codes(out.tokens, 3), minlength=81).numpy()
    assert p_value(counts, joint.flatten().numpy() * n) > 1e-3


def scaling(vocab_size=12):
    torch.manual_seed(0)
    model = ScalingTransformer(
        ScalingConfig(vocab_size=vocab_size, hidden=32, layers=2, head_dim=16, pad_vocab_to=16, max_seq_len=16)
    ).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


class Spy(torch.nn.Module):
    """A model that remembers what it was called on."""

    def __init__(self, model):
        super().__init__()
        self.model, self.seen, self.encoded = model, [], []

    def forward(self, z, t, **given):
        self.seen.append(z)
        return self.model(z, t, **given)


class CachingSpy(Spy):
    def encode_prefix(self, tokens):
        self.encoded.append(tokens)
        return self.model.encode_prefix(tokens)


@pytest.mark.parametrize("sampler", ["ancestral", "adaptive"])
@pytest.mark.parametrize("process", [HybridProcess(12, 11, 0.3), SNRProcess(12, 11), MaskedProcess(12, 0)], ids=repr)
def test_with_a_cached_prefix_blocks_are_the_same(process, sampler):
    model, prompt = scaling(), torch.tensor([[3, 4], [5, 6], [7, 8]])
    options = {"sampler": sampler, "prompt": prompt, "top_k": 6}
    outs, spies = [], []
    for cache in (True, False):
        spies.append(CachingSpy(model))
        outs.append(sample_blocks(spies[-1], process, (3, 13), 4, 5, cache=cache, generator=seeded(4), **options))
    assert torch.equal(outs[0].tokens, outs[1].tokens)
    assert torch.equal(outs[0].tokens[:, :2], prompt)
    assert not bool((outs[0].tokens == process.mask_id).any())
    # Cached, the network sees blocks of 4, 4 and 3 after encodings of 2, 6 and 10 tokens, else all of the text.
    assert {z.shape[1] for z in spies[0].seen} == {4, 3}
    assert [p.shape[1] for p in spies[0].encoded] == [2, 6, 10]
    assert {z.shape[1] for z in spies[1].seen} == {6, 10, 13}
    assert spies[1].encoded == []
    for out, spy in zip(outs, spies, strict=True):
        assert out.num_model_calls == len(spy.seen) + len(spy.encoded)
    if sampler == "ancestral":
        assert [out.num_model_calls for out in outs] == [18, 15]


def test_earlier_blocks_never_change_and_later_ones_are_not_seen():
    process = HybridProcess(12, 11, 0.4)
    model = Spy(scaling())
    out = sample_blocks(model, process, (2, 9), 3, 4, prompt=torch.tensor([1]), generator=seeded(5))
    assert [z.shape[1] for z in model.seen] == [4] * 4 + [7] * 4 + [9] * 4
    for call, z in enumerate(model.seen):
        done = 1 + 3 * (call // 4)
        assert torch.equal(z[:, :done], out.tokens[:, :done])


def test_one_block_is_plain_sampling_and_batches_do_not_matter():
    process, model = HybridProcess(12, 11, 0.2), scaling()
    plain = sample(model, process, (4, 8), 6, generator=seeded(6))
    one = sample_blocks(model, process, (4, 8), 8, 6, generator=seeded(6))
    assert torch.equal(plain.tokens, one.tokens)
    together = sample_blocks(model, process, (4, 8), 3, 6, generator=seeded(7)).tokens
    g = seeded(7)
    alone = [sample_blocks(model, process, (1, 8), 3, 6, generator=g).tokens for _ in range(4)]
    assert torch.equal(together, torch.cat(alone))


def test_blocks_refuse_what_does_not_fit_and_have_nothing_to_do_without_room():
    process, model = HybridProcess(12, 11, 0.2), scaling()
    for options, message in (
        ({"block": 0}, "block has to be a positive integer; got 0"),
        ({"steps": 0}, "steps has to be positive"),
        ({"steps": -1}, "steps has to be a non-negative integer"),
        ({"prompt": torch.arange(9)}, "prompt has shape"),
        ({"prompt": torch.tensor([11])}, "prompt keeps the mask token 11"),
        ({"top_k": 0}, "top_k has to be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            sample_blocks(model, process, (2, 8), **{"block": 4, "steps": 2} | options)
    with pytest.raises(ValueError, match="below zero"):
        sample_blocks(model, HybridProcess(12, 11, 0.2, gamma=2.5), (2, 8), 4, 2)
    full = sample_blocks(model, process, (2, 3), 4, 2, prompt=torch.tensor([1, 2, 3]))
    assert full.tokens.tolist() == [[1, 2, 3]] * 2
    assert full.num_model_calls == 0
    assert sample_blocks(model, process, (0, 8), 4, 2).tokens.shape == (0, 8)
    assert sample_blocks(model, process, (2, 0), 4, 2).tokens.shape == (2, 0)


@pytest.mark.parametrize(("grid", "middle"), [("linear", 0.5), ("cosine", 0.5), ("power:3", 0.125), ("power:2", 0.25)])
def test_grids_run_from_exactly_one_to_exactly_zero(grid, middle):
    times = time_grid(MaskedProcess(3, 2), 8, grid)
    assert float(times[0]) == 1.0
    assert float(times[-1]) == 0.0
    assert bool((times.diff() < 0).all())
    assert float(times[4]) == pytest.approx(middle)


def test_auto_grid_is_warped_only_where_uniform_noise_is():
    assert torch.equal(time_grid(HybridProcess(3, 2, 0.1), 4), time_grid(HybridProcess(3, 2, 0.1), 4, "power:3"))
    assert torch.equal(time_grid(HybridProcess(3, 2, 0.0), 4), time_grid(MaskedProcess(3, 2), 4, "linear"))


def test_truncation_keeps_the_best_tokens():
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    p = logits.softmax(-1)
    assert torch.allclose(sharpen(logits).exp(), p)
    assert torch.equal(sharpen(logits, 0.0).exp(), torch.tensor([[0.0, 0.0, 0.0, 1.0]]))
    assert torch.allclose(sharpen(logits, top_k=2).exp(), torch.tensor([[0, 0, p[0, 2], p[0, 3]]]) / p[0, 2:].sum())
    assert torch.allclose(sharpen(logits, top_p=0.5).exp(), torch.tensor([[0.0, 0.0, 0.0, 1.0]]))
    assert torch.allclose(sharpen(logits, 0.5), (2 * logits).log_softmax(-1))


def test_min_prob_drops_unlikely_entries_of_the_posterior():
    process, n = HybridProcess(6, 5, 0.3), 40_000
    s, t = torch.tensor(0.1).double(), torch.tensor(0.9).double()
    log_x = torch.tensor([0.5, 0.3, 0.1, 0.06, 0.04, 0.0]).double().log()
    new = ancestral_step(
        process, torch.full((n, 1), 5), log_x.expand(n, 1, 6), s, t, Streams.of(seeded(), n, "cpu"), 0.08
    )
    expected = process.posterior(torch.tensor(5), log_x.exp(), s, t)
    expected = torch.where(expected < 0.08, 0.0, expected)
    assert 0 < int((expected == 0).sum()) < 6
    assert p_value(np.bincount(new[:, 0].numpy(), minlength=6), (expected / expected.sum()).numpy() * n) > 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps has to be a non-negative integer"),
        ({"sampler": "magic"}, "sampler 'magic' is not one of ancestral, adaptive"),
        ({"grid": "power:x"}, "grid 'power:x' is not"),
        ({"grid": [1.0, 0.5]}, "falling times"),
        ({"grid": "power:nan"}, "grid 'power:nan' is not"),
        ({"grid": "power:9999"}, "take a smaller power"),
        ({"temperature": float("nan")}, "temperature has to be at least 0"),
        ({"prompt": [1, 2, 3]}, r"prompt has shape \(2, 3\)"),
        ({"temperature": -1.0}, "temperature has to be at least 0"),
        ({"top_p": 0.0}, "top_p has to lie"),
        ({"top_k": 0}, "top_k has to be positive"),
        ({"min_prob": 1.0}, "min_prob has to lie"),
        ({"prompt": torch.tensor([9])}, r"prompt holds the id 9, outside \[0, 5\)"),
        ({"prompt": torch.tensor([MASK])}, "prompt keeps the mask token"),
        ({"prompt": torch.zeros(3, dtype=torch.long)}, "prompt has shape"),
        ({"frozen": torch.tensor([True, False])}, "give prompt too"),
    ],
)
def test_bad_arguments_are_named(options, message):
    process = HybridProcess(V, MASK, 0.2)
    options = {"steps": 4} | options
    with pytest.raises(ValueError, match=message):
        sample(copies(process), process, (2, 2), **options)


def test_nothing_to_do_gives_an_empty_result():
    process = HybridProcess(V, MASK, 0.2)
    assert sample(copies(process), process, (0, 2), 4).tokens.shape == (0, 2)
    assert sample(copies(process), process, (3, 2), 0).num_model_calls == 0


def test_invalid_process_is_refused_before_any_call():
    with pytest.raises(ValueError, match="below zero"):
        sample(lambda z, t: pytest.fail("called"), HybridProcess(V, MASK, 0.2, gamma=2.5), (1, 2), 2)


@pytest.mark.parametrize("sampler", ["ancestral", "adaptive"])
@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_a_model_that_gives_no_numbers_is_named(sampler, temperature):
    def broken(z, t):
        logits = torch.zeros(*z.shape, V)
        logits[1, 0, 2] = torch.nan
        return logits

    with pytest.raises(FloatingPointError, match="logits are NaN"):
        sample(broken, MaskedProcess(V, MASK), (2, 2), 2, sampler=sampler, temperature=temperature)


def test_a_model_of_the_wrong_width_is_named():
    with pytest.raises(ValueError, match=r"the model returned \(2, 2, 3\)"):
        sample(lambda z, t: torch.zeros(*z.shape, 3), MaskedProcess(V, MASK), (2, 2), 2)


@pytest.mark.parametrize("min_prob", [0.02, 0.6, 0.99])
def test_no_threshold_leaves_masks(min_prob):
    p = HybridProcess(V, MASK, 0.1)
    out = sample(lambda z, t: torch.zeros(*z.shape, V), p, (20, 8), 6, min_prob=min_prob).tokens
    assert not bool((out == MASK).any())


def test_callback_may_change_the_state():
    """Here it makes every token 1 after each step: nothing else is left at the end, and frozen tokens are."""
    p = HybridProcess(V, MASK, 0.2)
    prompt = torch.tensor([2, 3])
    out = sample(
        lambda z, t: torch.zeros(*z.shape, V), p, (4, 6), 5, prompt=prompt, callback=lambda i, t, z: torch.ones_like(z)
    )
    assert torch.equal(out.tokens, torch.tensor([2, 3, 1, 1, 1, 1]).expand(4, -1))
    assert out.num_model_calls == 5
