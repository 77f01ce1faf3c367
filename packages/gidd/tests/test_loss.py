"""The loss against path-wise KL from rates, masked diffusion, automatic differentiation, and its own promises."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gidd import exact
from gidd.loss import api, fused_linear_gidd_loss, gidd_loss
from gidd.process import HybridProcess, MaskedProcess, MixtureProcess, Process, SNRProcess, UniformProcess

V = 7
IMPLEMENTATIONS = ["reference", "chunked"]
WEIGHTINGS = ["none", "clip", "dynamic", "dynamic_exact", "snr"]


def class_noise() -> MixtureProcess:
    """Masking plus noise within two word classes, one of which leaves tokens out."""
    mask, low, high = torch.eye(V)[V - 1], torch.zeros(V), torch.zeros(V)
    low[:2], high[2:5] = 1.0, torch.tensor([1.0, 2.0, 3.0])
    masses = [lambda t: t**2, lambda t: t * (1 - t) / 4, lambda t: 3 * t * (1 - t) / 4]
    return MixtureProcess(V, lambda t: 1 - t, masses, [mask, low, high], mask_id=V - 1)


PROCESSES = [
    HybridProcess(V, V - 1, 0.2),
    HybridProcess(V, 0, 0.4, gamma=0.6),
    HybridProcess(V, 3, 0.1, gamma=2.0),
    MaskedProcess(V, V - 1),
    UniformProcess(V),
    SNRProcess(V, V - 1),
    class_noise(),
]


class Batch:
    """Random clean and noisy tokens; the first ones are x = z, the mask where there is one, and another token."""

    def __init__(self, p: Process, B: int = 3, L: int = 5, seed: int = 0, per_token: bool = True) -> None:
        g = torch.Generator().manual_seed(seed)
        tokens = torch.tensor([v for v in range(p.vocab_size) if v != p.mask_id])
        self.x = tokens[torch.randint(len(tokens), (B, L), generator=g)]
        self.t = torch.rand((B, L) if per_token else (B,), generator=g, dtype=torch.float64) * 0.98 + 0.01
        self.z = p.q_sample(self.x, self.t, g)
        self.z[0, 0] = self.x[0, 0]
        if p.mask_id is not None:
            self.z[0, 1] = p.mask_id
        self.logits = 2 * torch.randn(B, L, p.vocab_size + 5, generator=g, dtype=torch.float64)

    @property
    def args(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.x, self.z, self.t

    def probs(self, p: Process) -> Tensor:
        scores = self.logits[..., : p.vocab_size].clone()
        if p.mask_id is not None:
            scores[..., p.mask_id] = -torch.inf
        return scores.softmax(-1)


def gradient(logits: Tensor, *args, **options) -> tuple[Tensor, Tensor]:
    """Loss and its gradient."""
    logits = logits.clone().requires_grad_(True)
    loss = gidd_loss(logits, *args, **options).loss
    loss.sum().backward()
    return loss.detach(), logits.grad


# --- what it computes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("p", PROCESSES, ids=repr)
def test_the_integrand_is_the_kl_rate_between_the_two_reverse_chains(p: Process, impl: str) -> None:
    """Reverse rates z -> y are R(y -> z) q(y)/q(z); KL rate sum_y (R ln(R/S) - R + S), from forward rates."""
    b = Batch(p)
    h = 1e-7
    a, n = p.transition(b.t - h, b.t + h)
    forward = a[..., None, None] * torch.eye(V, dtype=torch.float64) + n[..., None, :]
    rates = (forward - torch.eye(V, dtype=torch.float64)) / (2 * h)  # (B, L, from, to)
    into_z = rates.gather(-1, b.z[..., None, None].expand(*b.z.shape, V, 1))[..., 0]  # R(y -> z)
    q, model = p.marginal(b.x, b.t), p.marginal(b.probs(p), b.t)
    q_z, model_z = q.gather(-1, b.z[..., None]), model.gather(-1, b.z[..., None])
    true, learned = into_z * q / q_z, into_z * model / model_z
    rate = torch.where(true > 0, true * torch.log(true / learned), 0.0) - true + learned
    want = rate.scatter(-1, b.z[..., None], 0.0).sum(-1)
    got = gidd_loss(b.logits, *b.args, p, weighting="none", reduction="none", impl=impl)
    assert torch.allclose(got.loss, want, rtol=1e-5, atol=1e-6)
    assert torch.allclose(got.elbo.double(), got.loss, rtol=1e-6)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_without_uniform_noise_it_is_the_masked_diffusion_loss(impl: str) -> None:
    for p in (HybridProcess(V, V - 1, 0.0), MaskedProcess(V, V - 1)):
        b = Batch(p, B=8, L=16)
        got = gidd_loss(b.logits, *b.args, p, weighting="none", reduction="none", impl=impl).loss
        nll = -b.probs(p).gather(-1, b.x[..., None])[..., 0].log()
        want = torch.where(b.z == V - 1, nll / b.t, 0.0)
        assert got.dtype == torch.float64
        assert (want > 0).any()
        assert torch.allclose(got, want, rtol=1e-10, atol=1e-10)
        # Its gradient is that of cross-entropy, and exactly zero on visible tokens.
        _, grad = gradient(b.logits, *b.args, p, weighting="none", reduction="sum", impl=impl)
        hot = torch.nn.functional.one_hot(b.x, V)
        assert torch.allclose(grad[..., :V], (b.probs(p) - hot) * ((b.z == V - 1) / b.t)[..., None], atol=1e-10)
        assert (grad[b.z != V - 1] == 0).all()


@pytest.mark.parametrize("p_u", [0.0, 0.2])
def test_sums_over_all_sequences_agree_with_the_enumeration(p_u: float) -> None:
    p = HybridProcess(4, 3, p_u)
    joint = torch.rand(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    joint /= joint.sum()
    table = torch.randn(16, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def model(z: Tensor, t: Tensor) -> Tensor:
        return table[z[:, 0] * 4 + z[:, 1]] + t[:, None, None]

    t = torch.tensor(0.3, dtype=torch.float64)
    x = torch.cartesian_prod(torch.arange(3), torch.arange(3)).repeat_interleave(16, 0)
    z = torch.cartesian_prod(torch.arange(4), torch.arange(4)).repeat(9, 1)
    likely = joint[tuple(x.T)] * p.marginal(x, t.expand(x.shape)).gather(-1, z[..., None])[..., 0].prod(-1)
    times = t.expand(len(z))
    loss = gidd_loss(model(z, times), x, z, times, p, weighting="none", reduction="none").loss.sum(-1)
    mean = (likely * torch.where(likely > 0, loss, 0.0)).sum()
    # A short interval around t.
    h = 1e-4
    assert float(mean) == pytest.approx(exact.path_nelbo(model, joint, p, 0.3 - h, 0.3 + h, 3) / (2 * h), rel=1e-5)


@pytest.mark.parametrize("p", PROCESSES, ids=repr)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_every_implementation_gives_the_same_values_and_gradients(p: Process, weighting: str) -> None:
    b = Batch(p)
    options = {"weighting": weighting, "reduction": "none"}
    want, want_grad = gradient(b.logits, *b.args, p, impl="reference", **options)
    for dtype, value, slope in ((torch.float64, 1e-9, 1e-8), (torch.float32, 1e-5, 1e-4)):
        loss, grad = gradient(b.logits.to(dtype), *b.args, p, impl="chunked", **options)
        scale = want.abs().max()
        assert torch.allclose(loss.double(), want, rtol=value, atol=value * scale)
        assert torch.allclose(grad.double(), want_grad, rtol=slope, atol=slope * float(want_grad.abs().max()))
    parts = gidd_loss(b.logits, *b.args, p, **options)
    assert torch.allclose(parts.weight.double(), p.loss_weight(b.z, b.x, b.t, weighting), rtol=1e-6)
    assert torch.allclose(parts.loss, (parts.weight * (parts.kl + parts.is_div)).double(), rtol=1e-5, atol=1e-6)
    assert torch.allclose(parts.elbo, gidd_loss(b.logits, *b.args, p, weighting="none").elbo)
    assert not any(v.requires_grad for v in parts[1:])


@pytest.mark.parametrize("p", PROCESSES, ids=repr)
def test_gradients_are_slopes(p: Process) -> None:
    b, h = Batch(p, B=2, L=3), 1e-5

    def loss(values: Tensor) -> Tensor:
        return gidd_loss(values, *b.args, p, weighting="none", reduction="none").loss

    _, grad = gradient(b.logits, *b.args, p, weighting="none", reduction="sum")
    for v in range(b.logits.shape[-1]):
        step = torch.zeros_like(b.logits)
        step[..., v] = h
        slope = (loss(b.logits + step) - loss(b.logits - step)) / (2 * h)
        assert torch.allclose(grad[..., v], slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck_of_the_fused_head(reduction: str) -> None:
    p = PROCESSES[0]
    b = Batch(p, B=1, L=3)

    def loss(*head: Tensor) -> Tensor:
        return fused_linear_gidd_loss(*head, *b.args, p, chunk_tokens=2, reduction=reduction).loss

    assert torch.autograd.gradcheck(loss, tuple(Head(V, (1, 3)).tensors), rtol=1e-4)


# --- extremes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [*PROCESSES, HybridProcess(2, 1, 0.3), MaskedProcess(2, 0)], ids=repr)
@pytest.mark.parametrize("time", [1e-6, 0.5, 1 - 1e-6])
def test_extreme_logits_and_times_stay_finite_and_right(p: Process, time: float) -> None:
    tokens = torch.tensor([v for v in range(p.vocab_size) if v != p.mask_id])
    first, last = tokens[0], tokens[-1]
    noisy = [first, last] + ([] if p.mask_id is None else [torch.tensor(p.mask_id)])
    t = torch.tensor([time], dtype=torch.float64)
    cases = [(x, z) for x in (first, last) for z in noisy if float(p.marginal(x, t[0])[z]) > 0]
    x, z = (torch.stack(ids).repeat(3)[None] for ids in zip(*cases, strict=True))
    logits = torch.zeros(1, len(cases) * 3, p.vocab_size + 1, dtype=torch.float64)
    logits[0, : len(cases), first] = 80.0
    logits[0, len(cases) : 2 * len(cases), first] = -80.0
    logits[0, len(cases) : 2 * len(cases), last] += 80.0
    # Divergences are sums of float32 numbers of order 1: right to 1e-5 or to two roundings, before the weight.
    for weighting in ("none", "dynamic_exact"):
        options = {"weighting": weighting, "reduction": "none"}
        rounding = 2.0**-22 * p.loss_weight(z, x, t[:, None], weighting)
        want, want_grad = gradient(logits, x, z, t, p, impl="reference", **options)
        loss, grad = gradient(logits.float(), x, z, t, p, impl="chunked", **options)
        assert torch.isfinite(loss).all()
        assert torch.isfinite(grad).all()
        assert ((loss - want).abs() <= 1e-5 * want + rounding).all()
        size = want_grad.abs().amax(-1, keepdim=True)
        assert ((grad - want_grad).abs() <= 1e-4 * size + rounding[..., None]).all()


def test_the_wrong_noise_of_a_sure_model_costs_finitely() -> None:
    """z was replaced, the model is sure of z: the price is (ln and) the ratio of the masses, not infinite."""
    p = HybridProcess(50, 49, 0.1)
    t = torch.tensor([1e-4], dtype=torch.float64)
    x, z = torch.tensor([[3]]), torch.tensor([[8]])
    logits = torch.full((1, 1, 50), -80.0)
    logits[0, 0, 8] = 80.0
    out = gidd_loss(logits, x, z, t, p, weighting="none", reduction="none")
    alpha, b = float(p.alpha(t)), float(p.noise_at(z, t))
    want = (alpha + b) * torch.log(torch.tensor((alpha + b) / b)) - b * torch.log(torch.tensor((alpha + b) / b))
    assert float(out.kl) == pytest.approx(float(want), rel=1e-5)
    ratio = b / (alpha + b)
    assert float(out.is_div) == pytest.approx(ratio - float(torch.log(torch.tensor(ratio))) - 1, rel=1e-5)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("p", PROCESSES, ids=repr)
def test_mask_and_padding_columns_do_not_matter(p: Process, impl: str) -> None:
    b = Batch(p)
    loss, _ = gradient(b.logits, *b.args, p, impl=impl)
    wild = b.logits.clone()
    wild[..., V:] = 1e4
    if p.mask_id is not None:
        wild[..., p.mask_id] = 1e4
    again, grad = gradient(wild, *b.args, p, impl=impl)
    assert float(loss) == pytest.approx(float(again), rel=1e-12)
    assert (grad[..., V:] == 0).all()
    if p.mask_id is not None:
        assert (grad[..., p.mask_id] == 0).all()
    assert torch.allclose(grad.sum(-1), torch.zeros(b.x.shape, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize("p", PROCESSES, ids=repr)
def test_bfloat16_is_summed_in_float32(p: Process) -> None:
    b = Batch(p)
    rounded = b.logits.bfloat16()
    want, want_grad = gradient(rounded.double(), *b.args, p, weighting="none", reduction="none", impl="reference")
    loss, grad = gradient(rounded, *b.args, p, weighting="none", reduction="none")
    assert grad.dtype == torch.bfloat16
    assert torch.allclose(loss.double(), want, rtol=1e-5, atol=1e-5)
    assert torch.allclose(grad.double(), want_grad, rtol=1e-2, atol=1e-2 * float(want_grad.abs().max()))


# --- promises -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_one_time_per_sequence_is_the_same_time_for_every_token(impl: str) -> None:
    p = PROCESSES[0]
    b = Batch(p, per_token=False)
    one, one_grad = gradient(b.logits, *b.args, p, impl=impl)
    all_, all_grad = gradient(b.logits, b.x, b.z, b.t[:, None].expand(b.x.shape), p, impl=impl)
    assert torch.equal(one, all_)
    assert torch.equal(one_grad, all_grad)
    # and single tokens may be computed one by one
    b = Batch(p)
    whole = gidd_loss(b.logits, *b.args, p, reduction="none", impl=impl).loss
    single = gidd_loss(b.logits[1:2, 3:4], b.x[1:2, 3:4], b.z[1:2, 3:4], b.t[1:2, 3:4], p, impl=impl).loss
    assert float(whole[1, 3]) == pytest.approx(float(single), rel=1e-12)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_loss_mask_leaves_tokens_out_whatever_they_hold(impl: str) -> None:
    p = PROCESSES[0]
    b = Batch(p)
    keep = torch.ones(3, 5, dtype=torch.bool)
    keep[1] = False
    keep[2, 3:] = False
    each = gidd_loss(b.logits, *b.args, p, reduction="none", impl=impl)
    b.logits[~keep] = 1e30
    b.x[1, 0] = p.mask_id
    loss, grad = gradient(b.logits, *b.args, p, loss_mask=keep, impl=impl)
    assert float(loss) == pytest.approx(float(each.loss[keep].mean()), rel=1e-12)
    assert (grad[~keep] == 0).all()
    parts = gidd_loss(b.logits, *b.args, p, loss_mask=keep, reduction="none", impl=impl)
    assert all((v[~keep] == 0).all() for v in parts)
    assert torch.allclose(parts.loss[keep], each.loss[keep])
    total = gidd_loss(b.logits, *b.args, p, loss_mask=keep, reduction="sum", impl=impl).loss
    assert float(total) == pytest.approx(float(each.loss[keep].sum()), rel=1e-12)
    nothing, grad = gradient(b.logits, *b.args, p, loss_mask=torch.zeros_like(keep), impl=impl)
    assert float(nothing) == 0.0
    assert (grad == 0).all()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_caller_s_logits_are_left_alone(impl: str, dtype: torch.dtype) -> None:
    p = PROCESSES[0]
    b = Batch(p)
    logits = b.logits.to(dtype).requires_grad_(True)
    before = logits.detach().clone()
    out = gidd_loss(logits, *b.args, p, impl=impl)
    out.loss.backward()
    assert torch.equal(logits.detach(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_gradient_may_take_the_place_of_the_logits(dtype: torch.dtype, reduction: str) -> None:
    p = PROCESSES[0]
    b = Batch(p)
    want, want_grad = gradient(b.logits.to(dtype), *b.args, p, reduction=reduction)
    leaf = b.logits.to(dtype).requires_grad_(True)
    logits = leaf + 0.0
    at = logits.data_ptr()
    seen = []
    logits.register_hook(lambda g: seen.append(g.data_ptr()))
    loss = gidd_loss(logits, *b.args, p, reduction=reduction, inplace_grad=True).loss
    loss.backward()
    assert torch.equal(loss.detach(), want)
    assert torch.equal(leaf.grad, want_grad)
    assert seen == [at]


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_no_weight_is_no_gradient_even_where_the_divergence_is_huge(impl: str) -> None:
    p = MaskedProcess(V, V - 1)
    x, t = torch.zeros(1, 4, dtype=torch.long), torch.tensor([0.5])
    logits = torch.zeros(1, 4, V, dtype=torch.float64)
    logits[..., 0] = -300.0
    for weighting in ("none", "dynamic", "dynamic_exact", "clip", "snr"):
        loss, grad = gradient(logits, x, x.clone(), t, p, weighting=weighting, impl=impl)
        assert float(loss) == 0.0
        assert (grad == 0).all()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("p", [PROCESSES[0], PROCESSES[3], PROCESSES[6]], ids=repr)
def test_gradcheck_of_the_logits(p: Process, reduction: str, impl: str) -> None:
    b = Batch(p, B=1, L=3)

    def loss(logits: Tensor) -> Tensor:
        return gidd_loss(logits, *b.args, p, weighting="none", reduction=reduction, impl=impl).loss

    assert torch.autograd.gradcheck(loss, (b.logits.requires_grad_(True),), rtol=1e-4)


def test_the_loss_scales_with_the_gradient_that_arrives() -> None:
    p = PROCESSES[0]
    b = Batch(p)
    g = torch.rand(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    one, two = (b.logits.clone().requires_grad_(True) for _ in range(2))
    gidd_loss(one, *b.args, p, reduction="none").loss.backward(g)
    gidd_loss(two, *b.args, p, reduction="none", impl="reference").loss.backward(g)
    assert torch.allclose(one.grad, two.grad, atol=1e-10)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("fused", [False, True])
def test_backward_may_run_again_but_has_no_derivative(reduction: str, fused: bool) -> None:
    p = PROCESSES[0]
    b = Batch(p)
    leaf, weight, bias = Head(V).tensors if fused else (b.logits.requires_grad_(True), None, None)
    options = {"reduction": reduction}
    if fused:
        cost = fused_linear_gidd_loss(leaf, weight, bias, *b.args, p, **options).loss.sum()
    else:
        cost = gidd_loss(leaf, *b.args, p, **options).loss.sum()
    (first,) = torch.autograd.grad(cost, leaf, retain_graph=True)
    (second,) = torch.autograd.grad(3 * cost, leaf, retain_graph=True)
    assert torch.allclose(second, 3 * first, rtol=1e-12)
    for _ in range(2):
        cost.backward(retain_graph=True)
    assert torch.allclose(leaf.grad, 2 * first, rtol=1e-12)
    (slope,) = torch.autograd.grad(cost, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        slope.sum().backward()


def test_in_place_a_second_backward_is_refused() -> None:
    p = PROCESSES[0]
    b = Batch(p)
    leaf = b.logits.requires_grad_(True)
    loss = gidd_loss(leaf + 0.0, *b.args, p, inplace_grad=True).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace_grad"):
        loss.backward()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_all_parts_have_the_precision_of_the_logits_but_float32_at_least(
    dtype: torch.dtype, reduction: str, impl: str
) -> None:
    p = PROCESSES[0]
    b = Batch(p)
    hidden, weight, _ = Head(V, dtype=dtype).tensors
    want = torch.float64 if dtype == torch.float64 else torch.float32
    for out in (
        gidd_loss(b.logits.to(dtype), *b.args, p, reduction=reduction, impl=impl),
        fused_linear_gidd_loss(hidden, weight, None, *b.args, p, reduction=reduction, impl=impl),
    ):
        assert {part.dtype for part in out} == {want}


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_of_a_mean_do_not_vanish_in_float16(fused: bool) -> None:
    """A loss scaled up for float16 arrives in backward: a gradient divided by the tokens before would be zero."""
    p, tokens = HybridProcess(40, 39, 0.2), 5000
    b = Batch(p, B=1, L=tokens)
    hidden, weight, _ = (v.detach() for v in Head(40, (1, tokens), dtype=torch.float16).tensors)
    results = []
    for dtype in (torch.float16, torch.float64):
        leaf = (0.1 * hidden).to(dtype).requires_grad_(True)
        head = weight.to(dtype)
        if fused:
            loss = fused_linear_gidd_loss(leaf, head, None, *b.args, p).loss
        else:
            loss = gidd_loss(torch.nn.functional.linear(leaf, head), *b.args, p).loss
        (2.0**12 * loss).backward()
        results.append(leaf.grad.double())
    assert float((results[0] - results[1]).norm() / results[1].norm()) < 5e-3


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_token_without_weight_may_be_excluded_by_the_model(impl: str) -> None:
    """Zero weight skips: the infinite divergence of a visible token that the model excludes is not multiplied."""
    p = MaskedProcess(V, V - 1)
    b = Batch(p)
    b.z[:] = b.x
    b.z[1] = V - 1
    b.logits.scatter_(-1, b.x[..., None], -torch.inf)
    b.logits[1] = 0.0
    for weighting in ("none", "dynamic", "clip", "snr"):
        out = gidd_loss(b.logits, *b.args, p, weighting=weighting, reduction="none", impl=impl)
        assert all(torch.isfinite(part).all() for part in out)
        assert all((part[[0, 2]] == 0).all() for part in (out.loss, out.elbo, out.is_div))
        _, grad = gradient(b.logits, *b.args, p, weighting=weighting, impl=impl)
        assert torch.isfinite(grad).all()
        assert (grad[[0, 2]] == 0).all()


def test_a_masked_token_that_the_model_excludes_costs_everything_and_has_the_slope_of_cross_entropy() -> None:
    p = MaskedProcess(V, V - 1)
    b = Batch(p)
    b.z[:] = V - 1
    b.logits.scatter_(-1, b.x[..., None], -torch.inf)
    loss, grad = gradient(b.logits, *b.args, p, weighting="none", reduction="none")
    assert (loss == torch.inf).all()
    hot = torch.nn.functional.one_hot(b.x, V)
    assert torch.allclose(grad[..., :V], (b.probs(p) - hot) / b.t[..., None])


@pytest.mark.parametrize("p", [*PROCESSES, HybridProcess(V, V - 1, 1e-6)], ids=repr)
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_float32_gradients_survive_gaps_of_160_nats(p: Process, impl: str) -> None:
    b = Batch(p, B=2, L=6)
    b.logits[0].scatter_(-1, b.x[0, :, None], -80.0)
    b.logits[0].scatter_(-1, (b.x[0, :, None] + 1) % V, 80.0)
    b.logits[1].scatter_(-1, b.z[1, :, None], -80.0)
    b.logits[1].scatter_(-1, (b.z[1, :, None] + 1) % V, 80.0)
    for weighting in ("none", "dynamic"):
        options = {"weighting": weighting, "reduction": "none", "impl": impl}
        want, want_grad = gradient(b.logits, *b.args, p, **options)
        loss, grad = gradient(b.logits.float(), *b.args, p, **options)
        assert torch.isfinite(want_grad).all()
        assert torch.allclose(loss.double(), want, rtol=1e-5, atol=1e-5)
        assert ((grad - want_grad).abs() <= 1e-4 * want_grad.abs().amax(-1, keepdim=True) + 1e-5).all()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("p", PROCESSES, ids=repr)
def test_at_the_very_ends_of_time_there_is_no_nan(p: Process, impl: str) -> None:
    x, _, _ = Batch(p, B=2, L=8).args
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    z = p.q_sample(x, t)
    logits = torch.randn(2, 8, V + 1, dtype=torch.float64)
    for weighting in WEIGHTINGS:
        out = gidd_loss(logits, x, z, t, p, weighting=weighting, reduction="none", impl=impl)
        assert not any(part.isnan().any() for part in out)
        assert (out.loss[1].abs() < 1e-12).all()
        _, grad = gradient(logits, x, z, t, p, weighting=weighting, impl="chunked")
        assert torch.isfinite(grad).all()


def test_without_triton_a_gpu_gets_the_chunked_loss_and_asking_for_it_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    for found, chosen in ((object(), "triton"), (None, "chunked")):
        monkeypatch.setattr(api, "find_spec", lambda name, found=found: found)
        assert api._implementation("auto", gpu) == chosen
        assert api._implementation("auto", cpu) == "chunked"
    p = PROCESSES[0]
    b = Batch(p)
    with pytest.raises(ValueError, match="needs the package triton, which is not installed"):
        gidd_loss(b.logits, *b.args, p, impl="triton")


def test_bad_arguments_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    p = PROCESSES[0]
    b = Batch(p, per_token=False)
    x, z, t = b.args

    def fails(match: str, logits=b.logits, x=x, z=z, t=t, **options) -> None:
        with pytest.raises(ValueError, match=match):
            gidd_loss(logits, x, z, t, p, **options)

    fails("columns", logits=b.logits[..., : V - 1])
    fails("float tensor", logits=b.logits.long())
    fails("x has shape", x=x[:, :2])
    fails("z has shape", z=z[:1])
    fails("t has shape", t=t[:1])
    fails(r"t has to lie in \[0, 1\]; got", t=t + 1)
    fails("t has to lie", t=t * torch.nan)
    fails(r"outside \[0, 7\)", x=x + V)
    fails("id -1", z=z * 0 - 1)
    fails("mask token 6", x=x * 0 + V - 1)
    fails("'heavy'", weighting="heavy")
    fails("'max'", reduction="max")
    fails("'fast'", impl="fast")
    fails("loss_mask", loss_mask=torch.ones(3, 5))
    monkeypatch.setenv("GIDD_DEBUG", "1")
    bad = b.logits.clone()
    bad[2, 1, 4] = torch.nan
    with pytest.raises(FloatingPointError, match=r"logits\[2, 1\]"):
        gidd_loss(bad, x, z, t, p)
    bad = b.logits.clone()
    bad[2, 1, V - 1 :] = torch.nan  # mask and padding
    assert torch.isfinite(gidd_loss(bad, x, z, t, p).loss)


def test_an_empty_batch_is_a_loss_of_zero() -> None:
    p = PROCESSES[0]
    x = torch.zeros(0, 4, dtype=torch.long)
    loss, grad = gradient(torch.zeros(0, 4, V), x, x, torch.zeros(0), p)
    assert float(loss) == 0.0
    assert grad.shape == (0, 4, V)


# --- from hidden states -------------------------------------------------------------------------------------------


class Head:
    """Hidden states and a head that makes logits of them."""

    def __init__(self, columns: int, tokens: tuple[int, int] = (3, 5), d: int = 4, dtype=torch.float64) -> None:
        g = torch.Generator().manual_seed(4)
        self.tensors = [
            torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_(True)
            for shape in ((*tokens, d), (columns, d), (columns,))
        ]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("p", [PROCESSES[0], PROCESSES[3], PROCESSES[6]], ids=repr)
def test_through_the_head_it_is_the_same_loss(p: Process, impl: str, reduction: str, bias: bool) -> None:
    b, keep = Batch(p), torch.ones(3, 5, dtype=torch.bool)
    keep[2, 2:] = False
    options = {"weighting": "none", "loss_mask": keep, "reduction": reduction}
    results = []
    for fused in (False, True):
        hidden, weight, offset = Head(V + 2).tensors
        offset = offset if bias else None
        if fused:
            out = fused_linear_gidd_loss(hidden, weight, offset, *b.args, p, chunk_tokens=4, impl=impl, **options)
        else:
            out = gidd_loss(torch.nn.functional.linear(hidden, weight, offset), *b.args, p, impl="reference", **options)
        cost = out.loss if reduction != "none" else (out.loss * torch.arange(15.0).reshape(3, 5)).sum()
        (3 * cost).backward()
        grads = [g.grad for g in (hidden, weight, offset) if g is not None]
        results.append((out, grads))
    (want, want_grads), (got, grads) = results
    for name, a, c in zip(want._fields, got, want, strict=True):
        assert torch.allclose(a.double(), c.double(), rtol=1e-6, atol=1e-7), name
    for a, c in zip(grads, want_grads, strict=True):
        assert torch.allclose(a, c, rtol=1e-8, atol=1e-8)


def test_through_the_head_in_bfloat16_and_with_frozen_weights() -> None:
    p = PROCESSES[0]
    b = Batch(p)
    hidden, weight, bias = Head(V, dtype=torch.bfloat16).tensors
    fused_linear_gidd_loss(hidden, weight, bias, *b.args, p).loss.backward()
    wide = [v.detach().double().requires_grad_(True) for v in (hidden, weight, bias)]
    gidd_loss(torch.nn.functional.linear(*wide), *b.args, p).loss.backward()
    for got, want in zip((hidden, weight, bias), wide, strict=True):
        assert got.grad.dtype == torch.bfloat16
        assert torch.allclose(got.grad.double(), want.grad, atol=4e-2 * float(want.grad.abs().max()))
    frozen = weight.detach()
    other = hidden.detach().clone().requires_grad_(True)
    fused_linear_gidd_loss(other, frozen, None, *b.args, p).loss.backward()
    assert other.grad is not None
    with torch.no_grad():
        assert torch.isfinite(fused_linear_gidd_loss(other, frozen, None, *b.args, p).loss)


class Largest(TorchDispatchMode):
    """The most elements that any tensor made while it is active has."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.untyped_storage().nbytes() // value.element_size())
        return out


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_through_the_head_the_logits_never_exist(reduction: str) -> None:
    tokens, columns, d, chunk = 512, 1024, 8, 32
    p = HybridProcess(columns, columns - 1, 0.2)
    b = Batch(p, B=1, L=tokens)
    hidden, weight, bias = Head(columns, (1, tokens), d, torch.float32).tensors
    with Largest() as fused:
        out = fused_linear_gidd_loss(hidden, weight, bias, *b.args, p, chunk_tokens=chunk, reduction=reduction)
        out.loss.sum().backward()
    assert fused.elements <= 3 * chunk * columns  # a chunk of logits and its scratch, an eighth of all logits at most
    with Largest() as dense:
        logits = torch.nn.functional.linear(hidden, weight, bias)
        gidd_loss(logits, *b.args, p).loss.backward()
    assert dense.elements >= tokens * columns


def test_through_the_head_bad_arguments_are_named() -> None:
    p = PROCESSES[0]
    b = Batch(p)
    hidden, weight, bias = (v.detach() for v in Head(V).tensors)
    for match, args, options in (
        ("agree", (hidden, weight[:, :2], bias), {}),
        ("rows", (hidden, weight[:4], bias[:4]), {}),
        ("bias", (hidden, weight, bias[:4]), {}),
        ("chunk_tokens", (hidden, weight, bias), {"chunk_tokens": 0}),
    ):
        with pytest.raises(ValueError, match=match):
            fused_linear_gidd_loss(*args, *b.args, p, **options)


@pytest.mark.parametrize(
    "process", [MaskedProcess(6, 5), HybridProcess(6, 5, 0.2), SNRProcess(6, 5), UniformProcess(6)]
)
@pytest.mark.parametrize("weighting", ["none", "dynamic"])
def test_pure_noise_costs_nothing_and_is_no_nan(process, weighting):
    """At t = 1 nothing of x is left, so that the divergences vanish while the ELBO's weight is infinite."""
    x = torch.randint(5, (2, 4))
    t = torch.ones(2, dtype=torch.float64)
    logits = torch.randn(2, 4, 8).requires_grad_()
    found = gidd_loss(logits, x, process.q_sample(x, t), t, process, weighting=weighting)
    found.loss.backward()
    assert abs(float(found.loss.detach())) < 1e-12
    assert float(found.elbo.abs().max()) == 0.0
    assert bool((logits.grad == 0).all())


@pytest.mark.parametrize("weighting", ["clip", "dynamic", "dynamic_released", "snr"])
def test_gradients_at_the_very_beginning_are_numbers(weighting):
    p = HybridProcess(6, 5, 0.2)
    x = torch.arange(5)[None]
    logits = (80 * torch.randn(1, 5, 6, generator=torch.Generator().manual_seed(0))).requires_grad_()
    loss = gidd_loss(logits, x, x, torch.zeros(1), p, weighting=weighting, reduction="sum").loss
    (slope,) = torch.autograd.grad(loss, logits)
    assert not bool(slope.isnan().any())


def test_debugging_looks_at_hidden_states_too(monkeypatch):
    monkeypatch.setenv("GIDD_DEBUG", "1")
    hidden, head = torch.zeros(1, 2, 3), torch.zeros(6, 3)
    hidden[0, 1, 2] = torch.nan
    x = torch.tensor([[0, 1]])
    with pytest.raises(FloatingPointError, match=r"hidden\[0, 1, 2\] holds nan"):
        fused_linear_gidd_loss(hidden, head, None, x, x, torch.tensor([0.5]), HybridProcess(6, 5, 0.2))
