"""The planner: the fitted laws, counts of parameters and FLOPs, and refusals."""

import json
import math

import pytest
import torch

from gidd.errors import ConfigError
from gidd.models import DiT, DiTConfig, ScalingConfig, ScalingTransformer
from gidd.plan import (
    LAWS,
    flops_per_sample,
    flops_per_token,
    learning_rate,
    memory,
    num_parameters,
    optimal_batch,
    plan,
)


@pytest.mark.parametrize(
    ("noise", "loss", "tokens"),
    # A C^a at C = 10^20, by hand from the published constants.
    [("masked", 2.7726, 2.6815e10), ("balanced", 2.8236, 3.0859e10), ("uniform", 2.8248, 2.7116e10)],
)
def test_laws(noise, loss, tokens):
    p = plan(flops=1e20, noise=noise)
    assert p.loss == pytest.approx(loss, rel=1e-4)
    assert LAWS[noise].tokens(1e20) == pytest.approx(tokens, rel=1e-3)
    assert p.loss_annealed == pytest.approx(0.9755 * p.loss)
    assert p.flops == 1e20
    assert p.flops_per_token * p.tokens == pytest.approx(1e20)
    assert abs(math.log(p.off_optimum)) < math.log(1.15)  # whole layers come near the optimal size


def test_uniform_noise_wants_fewer_tokens_and_larger_models_as_compute_grows():
    masked, uniform = (plan(flops=1e22, noise=n) for n in ("masked", "uniform"))
    assert uniform.tokens < masked.tokens
    assert uniform.params > masked.params
    gap = [LAWS["uniform"].loss(c) - LAWS["masked"].loss(c) for c in (1e18, 1e20, 1e22)]
    assert gap[0] > gap[1] > gap[2]  # and catches up


def test_tokens_budget_inverts_the_law():
    p = plan(tokens=1e10, noise="low-uniform")
    assert p.tokens == 1e10
    assert LAWS["low-uniform"].tokens(LAWS["low-uniform"].flops(1e10)) == pytest.approx(1e10)
    assert p.flops == pytest.approx(LAWS["low-uniform"].flops(1e10), rel=0.2)


def test_batch_steps_and_learning_rate():
    assert optimal_batch(1e10) == pytest.approx(10 ** (-2.4 + 8.225))
    p = plan(flops=1e19, noise="masked")
    assert p.batch_tokens == p.batch_sequences * 2048
    assert p.batch_tokens == pytest.approx(optimal_batch(p.tokens), rel=0.01)
    assert p.steps == math.ceil(p.tokens / p.batch_tokens)
    assert p.learning_rate == pytest.approx(0.0104 * p.batch_tokens**0.329)
    assert learning_rate("uniform", 1e6) == pytest.approx(0.0072 * 1e6**0.355)
    low, high = sorted((learning_rate("masked", 1e5), learning_rate("uniform", 1e5)))
    assert low < learning_rate("balanced", 1e5) < high
    assert plan(flops=1e19, arch="dit").learning_rate is None


def test_given_sizes():
    p = plan(tokens=131e9, arch="small", noise="masked")
    assert (p.layers, p.hidden, p.seq_len) == (12, 768, 512)
    assert p.flops == pytest.approx(131e9 * p.flops_per_token)
    assert p.off_optimum > 2  # 131B tokens are far more than optimal for it
    assert plan(flops=1e19, arch="567M").seq_len == 2048


def test_parameters_are_those_of_the_networks():
    assert num_parameters(DiTConfig.preset("small", 50258, 1)) == 169_627_218  # published: 169.6M
    assert num_parameters(DiTConfig.preset("base", 50258, 1)) == 424_477_010  # published: 424.5M
    configs = [
        DiTConfig.preset("tiny", 300),
        DiTConfig.preset("tiny", 300, position_embedding="learned", mlp_ratio=2),
        ScalingConfig.preset("25M", 300),
        ScalingConfig.preset("49M", 300, mlp_bias=False),
    ]
    for config in configs:
        with torch.device("meta"):
            model = DiT(config) if isinstance(config, DiTConfig) else ScalingTransformer(config)
        for embeddings in (True, False):
            assert num_parameters(config, embeddings) == model.num_parameters(embeddings)


def test_flops_of_a_sample_by_hand():
    config = ScalingConfig(vocab_size=1280, hidden=128, layers=3, head_dim=64)
    length, d, heads = 256, 128, 2
    layer = 6 * length * d**2 + 4 * length**2 * d + 3 * heads * length**2 + 2 * length * d**2 + 16 * length * d**2
    assert flops_per_sample(config, length, embedding=False) == 3 * 3 * layer
    assert flops_per_sample(config, length) == 3 * (3 * layer + 4 * length * 1280 * d)
    # The DiT's modulation is worked out once a sequence, and small.
    dit = DiTConfig.preset("small", 50258)
    body = 24 * 512 * 768**2 + 4 * 512**2 * 768 + 36 * 512**2
    assert 1 < flops_per_sample(dit, embedding=False) / (3 * 12 * body) < 1.01
    assert flops_per_token(dit) * 512 == flops_per_sample(dit)


def test_hours_and_memory():
    p = plan(flops=1e19, mfu=0.5, peak_flops=1e15)
    assert p.gpu_hours > 1e19 / 0.5e15 / 3600  # the head counts
    assert plan(flops=1e19, mfu=0.25, peak_flops=1e15).gpu_hours == pytest.approx(2 * p.gpu_hours)
    config = DiTConfig.preset("small", 50258)
    full, kept = memory(config, 512, 8), memory(config, 512, 8, activation_checkpointing=True)
    assert full["state"] == 16 * num_parameters(config) / 1e9
    assert kept["activations"] < full["activations"] / 4
    assert full["total"] == pytest.approx(full["state"] + full["activations"] + full["logits"])


def test_json():
    assert json.loads(json.dumps(plan(flops=1e19).to_dict()))["noise"] == "balanced"


def test_far_from_the_fits_says_so():
    assert any("extrapolated" in note for note in plan(flops=1e23).notes)
    assert not any("extrapolated" in note for note in plan(flops=1e19).notes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one"),
        ({"flops": 1e19, "tokens": 1e9}, "exactly one"),
        ({"flops": -1.0}, "flops has to be a positive number"),
        ({"flops": math.inf}, "flops has to be"),
        ({"tokens": math.nan}, "tokens has to be"),
        ({"flops": 1e19, "noise": "pink"}, "noise 'pink' is not one of masked"),
        ({"flops": 1e19, "arch": "huge"}, "arch 'huge'"),
        ({"flops": 1e19, "mfu": 1.5}, "at most 1"),
        ({"flops": 1e19, "device": "abacus"}, "device 'abacus'"),
        ({"flops": 1e19, "seq_len": 0}, "seq_len has to be a positive integer"),
        ({"flops": 1e3}, "outside the sizes"),
        ({"flops": 1e40}, "outside the sizes"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ConfigError, match=message):
        plan(**arguments)
