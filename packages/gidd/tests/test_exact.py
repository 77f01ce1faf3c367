"""Exact identities on toy languages: what the ELBO measures, and what its best model is."""

import math

import pytest
import torch
from torch import Tensor

from gidd import exact
from gidd.process import HybridProcess, MaskedProcess, Process, SNRProcess, UniformProcess

EPS = 1e-4


def random_joint(V0: int = 3, L: int = 3, seed: int = 1, power: int = 3) -> Tensor:
    joint = torch.rand((V0,) * L, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) ** power
    return joint / joint.sum()


def copy_language(V0: int = 3) -> Tensor:
    return torch.eye(V0, dtype=torch.float64) / V0


def plain_model(joint: Tensor, process: Process) -> exact.Model:
    """P(x_l | z), what a network trained with cross-entropy learns: the leave-one-out posterior times q(z_l | x_l)."""
    loo = exact.loo_model(joint, process)

    def model(z: Tensor, t: Tensor) -> Tensor:
        v = torch.arange(process.vocab_size)
        times = t[:, None, None].expand(*z.shape, 1)
        own = process.alpha(times) * (v == z[..., None]) + process.noise_at(z[..., None], times)
        return loo(z, t) + torch.log(own)

    return model


def brute_force_loo(joint: Tensor, process: Process, z: Tensor, t: float) -> Tensor:
    """(L, V0) by summing over all clean sequences, one after the other."""
    V0, L = joint.shape[0], joint.dim()
    out = torch.zeros(L, V0, dtype=torch.float64)
    time = torch.tensor(t, dtype=torch.float64)
    for x in torch.cartesian_prod(*[torch.arange(V0)] * L):
        q = process.marginal(x, time.expand(L)).gather(-1, z[:, None])[:, 0]
        for l in range(L):
            out[l, x[l]] += joint[tuple(x)] * torch.cat([q[:l], q[l + 1 :]]).prod()
    return out / out.sum(-1, keepdim=True)


PROCESSES = [
    HybridProcess(4, 3, 0.2),
    HybridProcess(4, 3, 0.3, gamma=0.5),
    HybridProcess(4, 3, 0.5, gamma=2.0),
    MaskedProcess(4, 3),
    UniformProcess(3),
    UniformProcess(4),
    SNRProcess(4, 3, min_log_snr=-12.0, max_log_snr=12.0),
]


@pytest.mark.parametrize("p", PROCESSES, ids=repr)
def test_with_the_leave_one_out_model_the_path_is_mutual_information(p: Process) -> None:
    joint = random_joint()
    model = exact.loo_model(joint, p)
    for low, high in ((EPS, 1 - EPS), (0.2, 0.7)):
        gained = exact.mutual_information(joint, p, low) - exact.mutual_information(joint, p, high)
        assert exact.path_nelbo(model, joint, p, low, high, 96) == pytest.approx(gained, rel=1e-8)
    joint = copy_language()
    gained = exact.mutual_information(joint, p, EPS) - exact.mutual_information(joint, p, 1 - EPS)
    assert exact.path_nelbo(exact.loo_model(joint, p), joint, p, EPS, 1 - EPS, 96) == pytest.approx(gained, rel=1e-6)


@pytest.mark.parametrize("p", PROCESSES[:1] + PROCESSES[3:], ids=repr)
def test_the_model_is_bayes_rule_without_the_token_itself(p: Process) -> None:
    joint = random_joint()
    model = exact.loo_model(joint, p)
    z = torch.tensor([[0, 1, 2], [2, 2, 0], [1, p.vocab_size - 1, p.vocab_size - 1]])
    t = torch.tensor([0.2, 0.7, 0.2], dtype=torch.float64)
    logits = model(z, t)
    assert logits.shape == (3, 3, p.vocab_size)
    assert (logits[..., 3:] == -torch.inf).all()
    for i in range(3):
        want = brute_force_loo(joint, p, z[i], float(t[i]))
        assert torch.allclose(logits[i, :, :3].exp(), want, rtol=1e-10)
    # What the token itself says is left out.
    assert torch.equal(model(z[:1], t[:1])[:, 0], model(z[:1] * torch.tensor([0, 1, 1]) + 1 * (z[:1] < 0), t[:1])[:, 0])


def test_what_cannot_occur_is_predicted_uniformly_and_zeros_are_minus_infinity() -> None:
    joint, p = copy_language(), MaskedProcess(4, 3)
    model = exact.loo_model(joint, p)
    t = torch.tensor([0.5, 0.5], dtype=torch.float64)
    logits = model(torch.tensor([[3, 1], [3, 3]]), t)
    assert torch.equal(logits[0, 0], torch.tensor([-torch.inf, 0.0, -torch.inf, -torch.inf], dtype=torch.float64))
    assert torch.allclose(logits[1, 0, :3].exp(), torch.full((3,), 1 / 3, dtype=torch.float64))
    three = torch.zeros(3, 3, 3, dtype=torch.float64)
    three[range(3), range(3), range(3)] = 1 / 3
    logits = exact.loo_model(three, p)(torch.tensor([[3, 0, 1]]), t[:1])
    assert torch.allclose(logits[0, 0, :3].exp(), torch.full((3,), 1 / 3, dtype=torch.float64))
    assert not torch.isnan(logits).any()


def test_leaving_the_token_out_is_better_than_the_plain_posterior() -> None:
    joint = random_joint()
    for p_u in (0.1, 0.3):
        p = HybridProcess(4, 3, p_u)
        best = exact.path_nelbo(exact.loo_model(joint, p), joint, p, EPS, 1 - EPS, 96)
        plain = exact.path_nelbo(plain_model(joint, p), joint, p, EPS, 1 - EPS, 96)
        assert plain > best + 0.1
    # They are one model where all noise is the mask.
    p = MaskedProcess(4, 3)
    best = exact.path_nelbo(exact.loo_model(joint, p), joint, p, EPS, 1 - EPS, 64)
    assert exact.path_nelbo(plain_model(joint, p), joint, p, EPS, 1 - EPS, 64) == pytest.approx(best, rel=1e-9)


def test_any_change_of_the_leave_one_out_model_makes_the_path_longer() -> None:
    joint, p = random_joint(), HybridProcess(4, 3, 0.2)
    model = exact.loo_model(joint, p)
    best = exact.path_nelbo(model, joint, p, 0.01, 0.99, 48)
    for seed in range(3):
        change = torch.randn(64, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

        def other(z: Tensor, t: Tensor, change: Tensor = change) -> Tensor:
            return model(z, t) + 0.1 * change[z @ torch.tensor([16, 4, 1])]

        assert exact.path_nelbo(other, joint, p, 0.01, 0.99, 48) > best + 1e-4


@pytest.mark.parametrize("p", [HybridProcess(4, 3, 0.2), MaskedProcess(4, 3), UniformProcess(3)], ids=repr)
def test_chains_of_many_steps_converge_to_the_path_like_one_over_steps(p: Process) -> None:
    joint = random_joint()
    for model in (exact.loo_model(joint, p), plain_model(joint, p)):
        limit = exact.path_nelbo(model, joint, p, 0.02, 0.98, 96)
        coarse, fine = (exact.d3pm_nelbo(model, joint, p, T, 0.02, 0.98) - limit for T in (128, 1024))
        assert coarse / fine >= 6.0
        assert abs(fine) < 2e-3 * limit


def test_the_published_criterion_512_to_4096_steps_on_the_training_interval() -> None:
    joint, p = random_joint(), HybridProcess(4, 3, 0.2)
    model = exact.loo_model(joint, p)
    limit = exact.path_nelbo(model, joint, p, EPS, 1 - EPS, 96)
    coarse, fine = (exact.d3pm_nelbo(model, joint, p, T, EPS, 1 - EPS) - limit for T in (512, 4096))
    assert coarse / fine >= 6.0


def test_a_chain_from_noise_to_clean_text_is_a_bound_on_the_entropy() -> None:
    joint, p = random_joint(), HybridProcess(4, 3, 0.2)
    model = exact.loo_model(joint, p)
    bounds = [exact.d3pm_nelbo(model, joint, p, T, 0.0, 1.0) for T in (2, 16, 128)]
    assert bounds[0] > bounds[1] > bounds[2] > exact.entropy(joint)


def test_information_falls_from_the_entropy_to_nothing() -> None:
    joint = random_joint()
    for p in PROCESSES:
        levels = [exact.mutual_information(joint, p, t) for t in (0.0, 1e-4, 0.1, 0.5, 0.9, 1.0)]
        assert levels == sorted(levels, reverse=True)
        assert levels[0] == pytest.approx(exact.entropy(joint), rel=1e-12)
        assert levels[-1] == pytest.approx(0.0, abs=1e-12)


def test_entropy_and_information_in_closed_form() -> None:
    assert exact.entropy(copy_language(4)) == pytest.approx(math.log(4), rel=1e-12)
    # Masking shows a copied token unless both are masked.
    p = MaskedProcess(5, 4)
    assert exact.mutual_information(copy_language(4), p, 0.3) == pytest.approx((1 - 0.3**2) * math.log(4), rel=1e-10)
    # And each token of independent ones with probability 1 - t.
    joint = torch.full((2, 2, 2), 1 / 8, dtype=torch.float64)
    assert exact.mutual_information(joint, MaskedProcess(3, 2), 0.4) == pytest.approx(3 * 0.6 * math.log(2), rel=1e-10)


def test_the_bound_exceeds_the_entropy_by_little_and_the_truncated_path_falls_short() -> None:
    """Reconstruction and tail from the enumeration: H <= path + reconstruction + tail <= H + 1e-3."""
    joint = random_joint(power=1)
    H = exact.entropy(joint)
    for p_u in (0.0, 0.1, 0.2, 0.3):
        p = HybridProcess(4, 3, p_u)
        model = exact.loo_model(joint, p)
        path = exact.path_nelbo(model, joint, p, EPS, 1 - EPS, 128)
        tail = exact.path_nelbo(model, joint, p, 1 - EPS, 1 - 1e-12, 64)
        bound = path + exact_reconstruction(joint, p) + tail
        assert H - 1e-9 <= bound <= H + 1e-3
        if p_u > 0:
            assert 0.03 < H - path < 0.12


def exact_reconstruction(joint: Tensor, p: Process) -> float:
    """E[-sum_l ln P(x_l | z)] at t_eps."""
    V, L = p.vocab_size, joint.dim()
    t = torch.tensor(p.t_eps, dtype=torch.float64)
    z = torch.cartesian_prod(*[torch.arange(V)] * L)
    log_p = plain_model(joint, p)(z, t.expand(len(z))).log_softmax(-1)
    total = 0.0
    for x in torch.cartesian_prod(*[torch.arange(joint.shape[0])] * L):
        q = p.marginal(x, t.expand(L))[range(L), z].prod(-1) * joint[tuple(x)]
        nll = -log_p[:, range(L), x].sum(-1)
        total += float(torch.where(q > 0, q * nll, 0.0).sum())
    return total


def test_models_may_leave_mask_and_padding_columns_as_they_are() -> None:
    joint, p = random_joint(3, 2), HybridProcess(4, 3, 0.2)
    clean = exact.loo_model(joint, p)

    def wild(z: Tensor, t: Tensor) -> Tensor:
        logits = torch.nn.functional.pad(clean(z, t).float(), (0, 4), value=50.0)
        logits[..., 3] = 40.0
        return logits

    want = exact.path_nelbo(clean, joint, p, 0.1, 0.9, 16)
    assert exact.path_nelbo(wild, joint, p, 0.1, 0.9, 16) == pytest.approx(want, rel=1e-5)


def test_results_are_numbers_and_the_quadrature_converges() -> None:
    joint, p = random_joint(), HybridProcess(4, 3, 0.2)
    model = exact.loo_model(joint, p)
    few, more, many = (exact.path_nelbo(model, joint, p, EPS, 1 - EPS, n) for n in (12, 48, 96))
    assert abs(more - many) < 1e-8 < abs(few - many) < 0.1
    for value in (few, exact.entropy(joint), exact.mutual_information(joint, p, 0.5)):
        assert type(value) is float
    assert type(exact.d3pm_nelbo(model, joint, p, 2, 0.1, 0.9)) is float


def test_one_token_and_many_times_per_call() -> None:
    joint, p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), HybridProcess(4, 3, 0.2)
    model = exact.loo_model(joint, p)
    t = torch.linspace(0.1, 0.9, 7, dtype=torch.float64)
    assert torch.allclose(model(torch.arange(7)[:, None] % 4, t).exp()[:, 0, :3], joint.expand(7, 3))
    gained = exact.mutual_information(joint, p, 0.1) - exact.mutual_information(joint, p, 0.9)
    assert exact.path_nelbo(model, joint, p, 0.1, 0.9, 48) == pytest.approx(gained, rel=1e-10)


def test_bad_arguments_are_named() -> None:
    p, joint = HybridProcess(4, 3, 0.2), random_joint()
    model = exact.loo_model(joint, p)
    with pytest.raises(ValueError, match="enumerated"):
        exact.loo_model(torch.full((2,) * 9, 2.0**-9), HybridProcess(4, 3))
    with pytest.raises(ValueError, match="mask_id 1"):
        exact.loo_model(joint, HybridProcess(4, 1))
    with pytest.raises(ValueError, match="ordinary tokens"):
        exact.mutual_information(joint, UniformProcess(2), 0.5)
    with pytest.raises(ValueError, match="sum to 2"):
        exact.mutual_information(2 * joint, p, 0.5)
    with pytest.raises(ValueError, match="shape"):
        exact.mutual_information(torch.full((2, 3), 1 / 6), p, 0.5)
    with pytest.raises(ValueError, match="float"):
        exact.mutual_information(torch.ones(1, dtype=torch.long), p, 0.5)
    with pytest.raises(ValueError, match=r"t has to lie"):
        exact.mutual_information(joint, p, 1.5)
    for low, high in ((0.0, 0.5), (0.5, 0.5), (0.5, 1.0)):
        with pytest.raises(ValueError, match="t_min < t_max"):
            exact.path_nelbo(model, joint, p, low, high, 8)
    with pytest.raises(ValueError, match="num_times"):
        exact.path_nelbo(model, joint, p, 0.1, 0.9, 0)
    with pytest.raises(ValueError, match="num_steps"):
        exact.d3pm_nelbo(model, joint, p, 0, 0.1, 0.9)
    with pytest.raises(ValueError, match=r"z has to be"):
        model(torch.zeros(2, 4, dtype=torch.long), torch.full((2,), 0.5))
    with pytest.raises(ValueError, match="id 4"):
        model(torch.full((2, 3), 4), torch.full((2,), 0.5))
