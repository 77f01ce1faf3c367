"""The estimated bound against exact enumeration, and its promises about noise, masks and grids."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from gidd import exact
from gidd.errors import InvalidProcessError
from gidd.likelihood import ElboOutput, calibrate_grid, elbo, fractions, times_on_grid
from gidd.process import HybridProcess, MaskedProcess, Process, SNRProcess, UniformProcess

V = 4


def joint_language(seed: int = 1) -> Tensor:
    joint = torch.rand(3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return joint / joint.sum()


def texts(joint: Tensor, num: int, seed: int = 0) -> Tensor:
    """(num, L) sequences in proportion to the joint, as evenly as can be: what is left of chance is noise alone."""
    levels = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    flat = torch.searchsorted(joint.reshape(-1).cumsum(0), levels).clamp_max(joint.numel() - 1)
    powers = joint.shape[0] ** torch.arange(joint.dim() - 1, -1, -1)
    x = flat[:, None] // powers % joint.shape[0]
    return x[torch.randperm(num, generator=torch.Generator().manual_seed(seed))]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def standard_error(out: ElboOutput) -> float:
    return float(out.stderr.square().mean().sqrt()) / math.sqrt(len(out.stderr))


def some_model(z: Tensor, t: Tensor) -> Tensor:
    """A fixed function of all tokens and the time, with padding columns."""
    v = torch.arange(8.0)
    near = z + 0.5 * z.roll(1, 1) + 0.25 * z.roll(-1, 1)
    return torch.cos(near[..., None] * (v + 1)) * (2 - t[:, None, None])


@pytest.mark.parametrize(
    "p",
    [HybridProcess(V, 3, 0.1), HybridProcess(V, 3, 0.3), HybridProcess(V, 3, 0.2, 1.6), MaskedProcess(V, 3)],
    ids=repr,
)
def test_the_bound_of_the_exact_model_is_the_entropy_and_its_path_the_exact_path(p: Process) -> None:
    joint = joint_language()
    model, H = exact.loo_model(joint, p), exact.entropy(joint)
    path = exact.path_nelbo(model, joint, p, p.t_eps, 1 - p.t_eps, 96)
    out = elbo(model, texts(joint, 600), p, num_times=96, generator=generator())
    error = standard_error(out)
    assert error < 0.03
    assert float(out.nelbo_path.mean()) == pytest.approx(path, abs=4 * error)
    assert float(out.nelbo.mean()) == pytest.approx(H, abs=4 * error + 1e-3)
    tail = exact.path_nelbo(model, joint, p, 1 - p.t_eps, 1 - 1e-9, 64)
    # The reconstruction closes most of the gap that uniform noise leaves.
    left = H - path - tail
    spread = float(out.reconstruction.std()) / math.sqrt(600)
    assert float(out.reconstruction.mean()) == pytest.approx(left, abs=4 * spread + 1e-4)
    if p.p_uniform == 0:
        assert float(out.tail.mean()) == pytest.approx(tail, rel=0.1)
        assert float(out.reconstruction.mean()) < 2e-3


@pytest.mark.parametrize("p", [HybridProcess(V, 3, 0.2), SNRProcess(V, 3), UniformProcess(3)], ids=repr)
def test_all_grids_estimate_the_same_path(p: Process) -> None:
    joint = joint_language()
    model, x = exact.loo_model(joint, p), texts(joint, 200)
    want = exact.path_nelbo(model, joint, p, p.t_eps, 1 - p.t_eps, 96)
    calibrated = calibrate_grid(model, x[:50], p, num_points=24, num_times=64, generator=generator(5))
    for grid in ("auto", "linear", "power:2", calibrated):
        out = elbo(model, x, p, num_times=96, grid=grid, boundary=False, generator=generator(2))
        # The times, which all sequences share, add to the error.
        assert float(out.nelbo.mean()) == pytest.approx(want, abs=4 * standard_error(out) + 0.04 * want), grid


@pytest.mark.parametrize("grid", ["auto", "linear", "power:2", "power:0.7", torch.linspace(0, 1, 6) ** 2])
def test_every_grid_and_estimator_integrates_over_the_path_interval(grid: str | Tensor) -> None:
    """On smooth integrands, without noise: this is where weights of the grid would show."""
    p = HybridProcess(V, 3, 0.2, t_eps=0.01)
    for estimator, n, error in (("quadrature", 5000, 1e-4), ("stratified", 2000, 1e-3), ("uniform", 200_000, 0.02)):
        t, measure = times_on_grid(grid, p, fractions(n, estimator, 0))
        assert float(t.min()) >= 0.01
        assert float(t.max()) <= 0.99
        for k in (0, 1, 2):
            want = (0.99 ** (k + 1) - 0.01 ** (k + 1)) / (k + 1)
            assert float((measure * t**k).sum()) == pytest.approx(want, rel=error), (estimator, k)


def test_the_power_grid_has_the_smaller_error_where_there_is_uniform_noise() -> None:
    joint, p = joint_language(), HybridProcess(V, 3, 0.3)
    model, x = exact.loo_model(joint, p), texts(joint, 1)
    errors = {}
    for grid in ("linear", "auto"):
        out = elbo(model, x.expand(800, -1), p, num_times=32, grid=grid, boundary=False, generator=generator())
        errors[grid] = float(out.nelbo_path.std())
    assert errors["auto"] < 0.7 * errors["linear"]


def test_the_standard_error_is_that_of_repeated_runs() -> None:
    joint, p = joint_language(), HybridProcess(V, 3, 0.2)
    model, x = exact.loo_model(joint, p), torch.tensor([[0, 1, 2]])
    for boundary in (True, False):
        # One sequence in every row: rows differ by their noise only.
        out = elbo(model, x.expand(1000, -1), p, num_times=64, boundary=boundary, generator=generator())
        claimed, actual = float(out.stderr.square().mean().sqrt()), float(out.nelbo.std())
        assert 0.95 < claimed / actual < 1.5


def test_the_terms_add_up_and_are_per_sequence_sums_in_nats() -> None:
    p, x = HybridProcess(8, 7, 0.2), torch.randint(7, (5, 6), generator=generator())
    out = elbo(some_model, x, p, num_times=8, generator=generator())
    assert all(v.shape == (5,) for v in out)
    assert torch.equal(out.nelbo, out.nelbo_path + out.reconstruction + out.tail)
    assert all((v > 0).all() for v in out)
    assert out.num_tokens.tolist() == [6] * 5
    bare = elbo(some_model, x, p, num_times=8, boundary=False, generator=generator())
    assert torch.equal(bare.nelbo, bare.nelbo_path)
    assert torch.equal(bare.nelbo_path, out.nelbo_path)
    assert (bare.reconstruction == 0).all()
    assert (bare.tail == 0).all()


def test_a_model_that_knows_nothing_pays_the_logarithm_of_the_vocabulary() -> None:
    p, x = MaskedProcess(6, 5), torch.randint(5, (300, 4), generator=generator())
    out = elbo(lambda z, t: torch.zeros(*z.shape, 6), x, p, num_times=64, generator=generator())
    assert float(out.nelbo.mean()) == pytest.approx(4 * math.log(5), abs=4 * standard_error(out))


@pytest.mark.parametrize("p", [HybridProcess(8, 7, 0.2), MaskedProcess(8, 7)], ids=repr)
def test_neither_batch_size_nor_later_sequences_change_a_result(p: Process) -> None:
    x = torch.randint(7, (5, 6), generator=generator())
    whole = elbo(some_model, x, p, num_times=6, generator=generator(1))
    for size in (1, 2, 5, 100):
        again = elbo(some_model, x, p, num_times=6, generator=generator(1), batch_size=size)
        assert all(torch.allclose(a.double(), b.double(), rtol=1e-6) for a, b in zip(again, whole, strict=True))
    first = elbo(some_model, x[:3], p, num_times=6, generator=generator(1))
    assert torch.allclose(first.nelbo, whole.nelbo[:3], rtol=1e-6)


def test_results_repeat_with_the_generator_and_differ_without() -> None:
    p, x = HybridProcess(8, 7, 0.2), torch.randint(7, (2, 6), generator=generator())
    one, two, other = (elbo(some_model, x, p, num_times=4, generator=generator(s)).nelbo for s in (3, 3, 4))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    torch.manual_seed(0)
    one, two = (elbo(some_model, x, p, num_times=4).nelbo for _ in range(2))
    assert not torch.equal(one, two)


def test_masked_out_tokens_are_shown_clean_and_cost_nothing() -> None:
    joint, p = joint_language(), HybridProcess(V, 3, 0.2)
    model, x = exact.loo_model(joint, p), texts(joint, 400)
    seen = []

    def recording(z: Tensor, t: Tensor) -> Tensor:
        seen.append(z.clone())
        return model(z, t)

    keep = torch.tensor([True, True, False]).expand(400, 3)
    out = elbo(recording, x, p, num_times=16, loss_mask=keep, generator=generator())
    assert all((z[:, 2] == x[:, 2]).all() for z in seen)
    assert out.num_tokens.tolist() == [2] * 400
    none = elbo(model, x, p, num_times=4, loss_mask=torch.zeros_like(keep), generator=generator())
    assert all((v == 0).all() for v in none)
    # Padding may hold anything, the mask token too; how much of it there is does not matter.
    padded = torch.cat([x, torch.full((400, 2), 3)], dim=1)

    def shorter(z: Tensor, t: Tensor) -> Tensor:
        assert (z[:, 3:] == 3).all()
        return torch.nn.functional.pad(model(z[:, :3], t), (0, 0, 0, 2))

    whole = torch.arange(5).expand(400, 5) < 3
    padded_out = elbo(shorter, padded, p, num_times=64, loss_mask=whole, generator=generator())
    assert float(padded_out.nelbo.mean()) == pytest.approx(exact.entropy(joint), abs=4 * standard_error(padded_out))


def test_the_bound_given_clean_context_is_the_conditional_entropy() -> None:
    joint, p = joint_language(), MaskedProcess(V, 3)
    keep = torch.tensor([True, True, False]).expand(600, 3)
    # With masks only, the posterior given clean tokens is the same conditional distribution at every time.
    out = elbo(exact.loo_model(joint, p), texts(joint, 600), p, num_times=64, loss_mask=keep, generator=generator())
    conditional = exact.entropy(joint) - exact.entropy(joint.sum(dim=(0, 1)))
    assert float(out.nelbo.mean()) == pytest.approx(conditional, abs=4 * standard_error(out))


def test_the_model_sees_times_it_was_trained_on_and_is_called_as_often_as_promised() -> None:
    p, x = HybridProcess(8, 7, 0.2, t_eps=1e-2), torch.randint(7, (3, 6), generator=generator())
    times = []

    def recording(z: Tensor, t: Tensor) -> Tensor:
        assert z.dtype == torch.long
        assert z.shape == (3, 6)
        assert t.dtype == torch.float32
        times.append(t)
        return some_model(z, t)

    elbo(recording, x, p, num_times=32, generator=generator())
    seen = torch.stack(times)
    assert len(seen) == 32 + 1 + 4
    assert float(seen.min()) >= 0.01 - 1e-7
    assert float(seen.max()) <= 0.99 + 1e-7
    assert (seen == seen[:, :1]).all()
    # One time in each stratum of the cube root.
    u = seen[:32, 0].double() ** (1 / 3)
    low, high = 0.01 ** (1 / 3), 0.99 ** (1 / 3)
    assert ((u - low) / (high - low) * 32).clamp(0, 31.999).long().tolist() == list(range(32))


def test_a_calibrated_grid_splits_the_bound_into_equal_parts() -> None:
    joint, p = joint_language(), HybridProcess(V, 3, 0.2)
    model, x = exact.loo_model(joint, p), texts(joint, 400)
    times = calibrate_grid(model, x, p, num_points=8, num_times=128, generator=generator())
    assert times.shape == (9,)
    assert times[0] == 1
    assert times[-1] == 0
    assert (times.diff() < 0).all()
    either = [elbo(model, x[:5], p, grid=g, num_times=4, generator=generator()).nelbo for g in (times, times.flip(0))]
    assert torch.equal(*either)
    inner = [exact.path_nelbo(model, joint, p, float(a), float(b), 64) for b, a in pairwise(times[1:-1])]
    assert inner == pytest.approx([exact.entropy(joint) / 8] * 6, rel=0.15)


def test_invalid_processes_and_bad_arguments_are_named() -> None:
    p, x = HybridProcess(8, 7, 0.2), torch.randint(7, (2, 6), generator=generator())

    def fails(match: str, x: Tensor = x, model=some_model, **options) -> None:
        with pytest.raises(ValueError, match=match):
            elbo(model, x, p, **options)

    with pytest.raises(InvalidProcessError, match="gamma"):
        elbo(some_model, x, HybridProcess(8, 7, 0.2, gamma=3.0))
    fails("x has to be", x=x[0])
    fails("id 8", x=torch.full((2, 6), 8))
    fails("mask token 7", x=torch.full((2, 6), 7))
    fails("num_times", num_times=0)
    fails("batch_size", batch_size=0)
    fails("'exact'", estimator="exact")
    for grid in ("cosine", "power:", "power:0", "power:-1", "power:inf"):
        fails(f"grid '{grid}'", grid=grid)
    fails("increasing", grid=torch.tensor([0.1, 0.5, 1.0]))
    fails("increasing", grid=torch.tensor([0.0, 0.6, 0.5, 1.0]))
    fails("increasing", grid=torch.tensor([0.0]))
    fails("increasing", grid=torch.tensor([]))
    fails("loss_mask", loss_mask=torch.ones(2, 6))
    fails("loss_mask", loss_mask=torch.ones(2, 5, dtype=torch.bool))
    fails(r"logits of shape \(2, 6, 4\)", model=lambda z, t: torch.zeros(2, 6, 4))
    with pytest.raises(ValueError, match="num_points"):
        calibrate_grid(some_model, x, p, num_points=0)


def test_calibrating_on_the_way_gives_an_unbiased_bound() -> None:
    p, x = HybridProcess(8, 7, 0.2), torch.randint(7, (64, 6), generator=torch.Generator().manual_seed(0))
    both = [
        elbo(some_model, x, p, num_times=32, grid=grid, generator=torch.Generator().manual_seed(1)).nelbo
        for grid in ("auto", "calibrated")
    ]
    gap = both[0] - both[1]
    assert abs(float(gap.mean())) < 4 * float(gap.std()) / 8


def test_no_sequences_are_no_results() -> None:
    out = elbo(some_model, torch.zeros(0, 6, dtype=torch.long), HybridProcess(8, 7, 0.2), num_times=4)
    assert all(v.shape == (0,) for v in out)
