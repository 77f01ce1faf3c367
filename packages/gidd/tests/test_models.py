import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from gidd import HybridProcess, fused_linear_gidd_loss, gidd_loss
from gidd.errors import CheckpointError, ConfigError
from gidd.models import DiT, DiTConfig, HFBackbone, ScalingConfig, ScalingTransformer

DIT = DiTConfig(vocab_size=11, hidden=32, layers=2, heads=2, max_seq_len=12, cond_dim=16)
SCALING = ScalingConfig(vocab_size=11, hidden=32, layers=2, head_dim=16, max_seq_len=12)


def randomised(model, seed=0, std=0.3):
    """All parameters random, zero-initialised ones too, so that every path matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * std)
    return model.eval()


def tokens(batch=3, length=7, high=11, seed=1):
    return torch.randint(high, (batch, length), generator=torch.Generator().manual_seed(seed))


def both():
    return [randomised(DiT(DIT)), randomised(ScalingTransformer(SCALING))]


# --- sizes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "published"), [("small", 169_627_218), ("base", 424_477_010)])
def test_parameter_counts_are_the_published_ones(name, published):
    with torch.device("meta"):
        model = DiT(DiTConfig.preset(name, 50_258, pad_vocab_to=1))
    assert model.num_parameters() == published


def test_presets_have_the_papers_sizes():
    sizes = {n: DiTConfig.preset(n, 100) for n in ("tiny", "small", "base", "1B")}
    assert [(c.hidden, c.layers, c.heads, c.max_seq_len) for c in sizes.values()] == [
        (512, 8, 8, 512), (768, 12, 12, 512), (1024, 24, 16, 512), (2048, 24, 32, 512)
    ]  # fmt: skip
    assert DiTConfig.preset("tiny", 100, pad_vocab_to=64, layers=2, max_seq_len=9).layers == 2


@pytest.mark.parametrize(("name", "millions"), [("25M", 25), ("49M", 49), ("85M", 85), ("201M", 201), ("567M", 567)])
def test_scaling_presets_are_named_after_their_parameters_outside_the_embedding(name, millions):
    with torch.device("meta"):
        model = ScalingTransformer(ScalingConfig.preset(name, 1000))
    # The names count matrices as 12 d^2 per layer; biases and norms add less than one per cent.
    assert model.num_parameters(embeddings=False) / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize(("vocab", "pad", "rows"), [(50_258, 128, 50_304), (50_258, 1, 50_258), (3, 8, 8)])
def test_logits_are_as_wide_as_the_padded_vocabulary(vocab, pad, rows):
    assert DiTConfig(vocab_size=vocab, hidden=8, layers=1, heads=1, pad_vocab_to=pad).padded_vocab_size == rows


# --- configuration ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [DIT, SCALING])
def test_configurations_survive_a_dictionary(config):
    assert type(config).from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hiden": 3}, "unknown 'hiden'"),
        ({"heads": 5}, "heads has to split hidden=32"),
        ({"layers": 0}, "layers has to be a positive integer; got 0"),
        ({"vocab_size": "11"}, "vocab_size has to be a positive integer"),
        ({"dropout": 1.0}, "dropout has to lie in"),
        ({"position_embedding": "rope"}, "none, learned"),
    ],
)
def test_a_wrong_configuration_says_what_is_wrong(changes, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        DiTConfig.from_dict({**DIT.to_dict(), **changes})


def test_missing_keys_presets_and_types_are_refused_by_name():
    with pytest.raises(ConfigError, match="missing 'heads'"):
        DiTConfig.from_dict({"vocab_size": 3, "hidden": 8, "layers": 1})
    with pytest.raises(ConfigError, match="'huge' is not one of tiny, small, base, 1B"):
        DiTConfig.preset("huge", 10)
    with pytest.raises(ConfigError, match="not one of 25M"):
        ScalingConfig.preset("small", 10)
    with pytest.raises(ConfigError, match="head_dim has to be even and divide"):
        ScalingConfig(vocab_size=3, hidden=32, layers=1, head_dim=20)
    with pytest.raises(ConfigError, match="soft_cap has to be positive"):
        ScalingConfig(vocab_size=3, hidden=64, layers=1, soft_cap=0.0)
    with pytest.raises(ConfigError, match="needs a DiTConfig"):
        DiT(SCALING)


# --- what the network computes ------------------------------------------------------------------------------------


def test_an_untrained_dit_predicts_all_tokens_alike_and_its_blocks_do_nothing():
    model = DiT(DIT)
    z, t = tokens(), torch.rand(3)
    assert torch.equal(model(z, t), torch.zeros(3, 7, 128))
    h = torch.randn(2, 5, 32)
    rotation = (torch.ones(5, 8), torch.zeros(5, 8))
    assert torch.equal(model.blocks[0](h, torch.randn(2, 1, 16), rotation, None), h)


@pytest.mark.parametrize("model", both(), ids=["dit", "scaling"])
def test_head_applied_to_hidden_states_gives_the_logits(model):
    z, t = tokens(), torch.rand(3)
    expected = nn.functional.linear(model.hidden(z, t), model.head.weight, model.head.bias)
    torch.testing.assert_close(model(z, t), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("model", both(), ids=["dit", "scaling"])
def test_fused_linear_loss_of_hidden_states_equals_the_loss_of_logits(model):
    process = HybridProcess(vocab_size=11, mask_id=10, p_uniform=0.2)
    x, t = tokens(high=10), torch.tensor([0.2, 0.5, 0.9])
    z = process.q_sample(x, t, torch.Generator().manual_seed(0))
    fused = fused_linear_gidd_loss(model.hidden(z, t), model.head.weight, model.head.bias, x, z, t, process)
    plain = gidd_loss(model(z, t), x, z, t, process)
    torch.testing.assert_close(fused.loss, plain.loss)
    for loss in (fused.loss, plain.loss):
        loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_dit_depends_on_the_time_and_scaling_does_not():
    z = tokens()
    dit, scaling = both()
    assert not torch.allclose(dit(z, torch.full((3,), 0.1)), dit(z, torch.full((3,), 0.9)))
    assert torch.equal(scaling(z), scaling(z, torch.rand(3)))


def test_a_time_per_token_generalises_a_time_per_sequence():
    model, z, t = both()[0], tokens(), torch.rand(3)
    torch.testing.assert_close(model(z, t[:, None].expand(3, 7)), model(z, t), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", both(), ids=["dit", "scaling"])
def test_only_distances_between_tokens_matter_without_a_position_embedding(model):
    z, t = tokens(length=6), torch.rand(3)
    if isinstance(model, ScalingTransformer):
        # Queries are rotated and the sink's key is not: it sees absolute positions, unless it is zero.
        for block in model.blocks:
            nn.init.zeros_(block.sink_key)
    padded = torch.cat([torch.zeros(3, 4, dtype=torch.long), z], dim=1)
    keep = torch.arange(10).expand(3, 10) >= 4
    torch.testing.assert_close(model(padded, t, keep)[:, 4:], model(z, t), rtol=1e-4, atol=1e-4)


def test_rotary_positions_tell_orders_apart():
    for model in both():
        z = torch.tensor([[1, 2, 3, 4]])
        swapped = model(z[:, [0, 2, 1, 3]], torch.tensor([0.5]))
        assert not torch.allclose(swapped[:, 0], model(z, torch.tensor([0.5]))[:, 0], atol=1e-4)


def test_a_learned_position_embedding_tells_cells_apart_that_only_their_position_distinguishes():
    z, t = torch.full((1, 9), 3), torch.tensor([0.5])
    plain = randomised(DiT(DIT))(z, t)
    torch.testing.assert_close(plain, plain[:, :1].expand_as(plain), rtol=1e-4, atol=1e-4)
    model = randomised(DiT(DiTConfig.from_dict({**DIT.to_dict(), "position_embedding": "learned"})))
    assert model.positions.weight.shape == (12, 32)
    assert not torch.allclose(model(z, t)[:, 0], model(z, t)[:, 4], atol=1e-2)


@pytest.mark.parametrize("model", both(), ids=["dit", "scaling"])
def test_masked_tokens_do_not_matter(model):
    z, t = tokens(), torch.rand(3)
    keep = torch.ones(3, 7, dtype=torch.bool)
    keep[:, 5:] = False
    other = torch.where(keep, z, (z + 1) % 11)
    torch.testing.assert_close(model(z, t, keep)[:, :5], model(other, t, keep)[:, :5])
    square = keep[:, None, :].expand(3, 7, 7)
    torch.testing.assert_close(model(z, t, square), model(z, t, keep))


@pytest.mark.parametrize("model", both(), ids=["dit", "scaling"])
def test_activation_checkpointing_leaves_gradients_alone(model):
    z, t = tokens(), torch.rand(3)
    gradients = []
    for flag in (False, True):
        model.activation_checkpointing = flag
        model.zero_grad()
        model(z, t).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", [0, 1], ids=["dit", "scaling"])
def test_other_precisions_agree_with_float32(kind, dtype):
    model, z, t = both()[kind], tokens(), torch.rand(3)
    with torch.no_grad():
        expected = model(z, t)
        got = model.to(dtype)(z, t.to(dtype))
    assert got.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float64 else 0.1
    assert float((got.double() - expected.double()).norm() / expected.double().norm()) < tolerance


@pytest.mark.parametrize("model", both(), ids=["dit", "scaling"])
def test_autocast_keeps_residuals_in_float32_and_gives_gradients_of_master_weights(model):
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.hidden(tokens(), torch.rand(3))
    assert hidden.dtype == torch.float32
    hidden.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.blocks.parameters())


def test_dropout_acts_in_training_only():
    model = randomised(DiT(DiTConfig.from_dict({**DIT.to_dict(), "dropout": 0.5})))
    z, t = tokens(), torch.rand(3)
    assert torch.equal(model(z, t), model(z, t))
    model.train()
    assert not torch.equal(model(z, t), model(z, t))


def test_wrong_inputs_are_refused():
    dit, scaling = both()
    with pytest.raises(ValueError, match="13 tokens; max_seq_len=12"):
        dit(torch.zeros(1, 13, dtype=torch.long), torch.rand(1))
    with pytest.raises(ValueError, match="integer ids"):
        dit(torch.zeros(1, 3), torch.rand(1))
    with pytest.raises(ValueError, match="id 128, outside"):
        dit(torch.full((1, 3), 128), torch.rand(1))
    with pytest.raises(ValueError, match=r"t has shape \(2,\)"):
        dit(tokens(), torch.rand(2))
    with pytest.raises(ValueError, match="attention_mask has shape"):
        scaling(tokens(), None, torch.ones(3, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match="clean has shape"):
        scaling(tokens(), clean=torch.ones(3, 6, dtype=torch.bool))


# --- scaling: width, prompts --------------------------------------------------------------------------------------


def test_a_wide_network_starts_as_a_narrow_one():
    torch.manual_seed(0)
    spread = []
    for hidden in (64, 512):
        model = ScalingTransformer(ScalingConfig(vocab_size=50, hidden=hidden, layers=4, head_dim=64))
        spread.append(float(model(torch.randint(50, (4, 16))).detach().std() * hidden**0.5))
    # head_scale / hidden times a sum of `hidden` terms: logits shrink as hidden^-1/2, as in the maximal-update recipe.
    assert spread[0] == pytest.approx(spread[1], rel=0.25)


def test_soft_cap_bounds_attention_and_the_sink_takes_what_is_left():
    model = randomised(ScalingTransformer(SCALING))
    block = model.blocks[0]
    q = torch.zeros(1, 2, 1, 16)
    v = torch.ones(1, 2, 3, 16)
    with torch.no_grad():
        block.sink_key.zero_(), block.sink_value.zero_()
    # Four alike scores, one of which is the sink's.
    torch.testing.assert_close(block._attention(q, torch.randn(1, 2, 3, 16), v, None), torch.full((1, 2, 1, 16), 0.75))
    huge = block._attention(torch.full((1, 2, 1, 16), 100.0), torch.full((1, 2, 3, 16), -100.0), v, None)
    torch.testing.assert_close(huge, torch.full_like(huge, 3 / (3 + math.exp(30))), rtol=1e-3, atol=0)


def test_clean_prompt_tokens_do_not_see_the_noise():
    model, z = both()[1], tokens()
    clean = (torch.arange(7) < 3).expand(3, 7)
    other = torch.where(clean, z, (z + 1) % 11)
    torch.testing.assert_close(model(z, clean=clean)[:, :3], model(other, clean=clean)[:, :3])
    assert not torch.allclose(model(z)[:, :3], model(other)[:, :3], atol=1e-3)
    torch.testing.assert_close(model(z, clean=torch.zeros(3, 7, dtype=torch.bool)), model(z))


def test_a_cached_prefix_replaces_the_prompt():
    model, z = both()[1], tokens()
    clean = (torch.arange(7) < 3).expand(3, 7)
    prefix = model.encode_prefix(z[:, :3])
    assert prefix.length == 3
    torch.testing.assert_close(model(z[:, 3:], prefix=prefix), model(z, clean=clean)[:, 3:], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="leaves room for 9"):
        model(torch.zeros(3, 10, dtype=torch.long), prefix=prefix)
    with pytest.raises(ValueError, match="leave out attention_mask and clean"):
        model(z[:, 3:], clean=clean[:, 3:], prefix=prefix)


# --- saving -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", both(), ids=["dit", "scaling"])
def test_a_saved_network_computes_the_same(model, tmp_path):
    model.save_pretrained(tmp_path / "m")
    again = type(model).from_pretrained(tmp_path / "m")
    assert again.config == model.config
    assert not again.training
    assert all(p.requires_grad and p.device.type == "cpu" for p in again.parameters())
    z, t = tokens(), torch.rand(3)
    assert torch.equal(again(z, t), model(z, t))


def test_a_network_of_another_architecture_is_refused(tmp_path):
    ScalingTransformer(SCALING).save_pretrained(tmp_path / "m")
    with pytest.raises(CheckpointError, match="holds a ScalingTransformer, no DiT"):
        DiT.from_pretrained(tmp_path / "m")


# --- Hugging Face -------------------------------------------------------------------------------------------------


class Toy(nn.Module):
    """A one-layer language model in the manner of transformers; ``obeys`` an explicit mask or stays causal."""

    def __init__(self, causal, obeys=True):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.out, self.is_causal, self.obeys = nn.Embedding(9, 8), nn.Linear(8, 9), causal, obeys

    def forward(self, input_ids, attention_mask):
        h = self.embed(input_ids)
        scores = h @ h.mT
        if attention_mask.dim() == 4:
            scores = scores + attention_mask[:, 0]
        else:
            scores = scores.masked_fill(attention_mask[:, None, :] == 0, -torch.inf)
        if self.is_causal or not self.obeys:
            scores = scores + torch.full((9, 9), -torch.inf).triu(1)[: h.shape[1], : h.shape[1]]
        return SimpleNamespace(logits=self.out(scores.softmax(-1) @ h))


def test_a_masked_language_model_is_called_with_tokens_and_ignores_the_time():
    toy = Toy(causal=False)
    model, z = HFBackbone(toy), torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert not model.causal
    expected = toy(z, torch.ones(2, 3)).logits
    assert torch.equal(model(z, torch.rand(2)), expected)
    assert torch.equal(model(z, None), expected)
    assert model.num_parameters() == 9 * 8 + 8 * 9 + 9


def test_the_causal_mask_is_switched_off():
    causal = Toy(causal=True)
    model, z = HFBackbone(causal), torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(model(z), Toy(causal=False)(z, torch.ones(1, 3)).logits)
    padded = model(torch.tensor([[1, 2, 3, 8]]), None, torch.tensor([[True, True, True, False]]))
    torch.testing.assert_close(padded[:, :3], model(z))


def test_a_model_that_stays_causal_is_refused():
    with pytest.raises(ConfigError, match="Toy stays causal"):
        HFBackbone(Toy(causal=True, obeys=False))


def test_shifted_logits_are_moved_back():
    z = torch.tensor([[1, 2, 3]])
    plain, shifted = HFBackbone(Toy(causal=False)), HFBackbone(Toy(causal=False), shift=True)
    assert torch.equal(shifted(z)[:, 1:], plain(z)[:, :-1])


@pytest.mark.parametrize("kind", ["BertForMaskedLM", "GPT2LMHeadModel", "LlamaForCausalLM"])
def test_transformers_models_see_both_directions(kind):
    transformers = pytest.importorskip("transformers")
    sizes = {
        "BertForMaskedLM": dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32),
        "GPT2LMHeadModel": dict(n_embd=16, n_layer=2, n_head=2),
        "LlamaForCausalLM": dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32),
    }[kind]
    network = getattr(transformers, kind)
    model = HFBackbone(network(network.config_class(vocab_size=20, **sizes))).eval()
    z = torch.tensor([[1, 2, 3, 4]])
    changed = torch.tensor([[1, 2, 3, 5]])
    assert not torch.allclose(model(z, None)[:, 0], model(changed, None)[:, 0])


def test_a_model_id_without_transformers_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ConfigError, match="pip install"):
        HFBackbone("bert-base-uncased")
