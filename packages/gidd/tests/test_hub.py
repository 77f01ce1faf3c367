import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from gidd import HybridProcess, MaskedProcess, MixtureProcess, SNRProcess
from gidd.data.tokenizers import latin_tokenizer
from gidd.errors import CheckpointError, ConfigError
from gidd.hub import convert, load_checkpoint, save_checkpoint
from gidd.models import DiT, DiTConfig, HFBackbone, ScalingConfig, ScalingTransformer

D, HEADS, LAYERS, COND, V, ROWS, LENGTH = 32, 4, 3, 16, 11, 128, 9


def random_state(shapes, seed=0, std=0.3):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * std for name, shape in shapes.items()}


def dit_shapes(rows):
    """The authors' names."""
    shapes = {
        "vocab_embed.embedding": (rows, D),
        "sigma_map.mlp.0.weight": (COND, 256), "sigma_map.mlp.0.bias": (COND,),
        "sigma_map.mlp.2.weight": (COND, COND), "sigma_map.mlp.2.bias": (COND,),
        "output_layer.norm_final.weight": (D,),
        "output_layer.linear.weight": (rows, D), "output_layer.linear.bias": (rows,),
        "output_layer.adaLN_modulation.weight": (2 * D, COND), "output_layer.adaLN_modulation.bias": (2 * D,),
    }  # fmt: skip
    for i in range(LAYERS):
        block = {
            "norm1.weight": (D,), "norm2.weight": (D,), "attn_qkv.weight": (3 * D, D), "attn_out.weight": (D, D),
            "mlp.0.weight": (4 * D, D), "mlp.0.bias": (4 * D,), "mlp.2.weight": (D, 4 * D), "mlp.2.bias": (D,),
            "adaLN_modulation.weight": (6 * D, COND), "adaLN_modulation.bias": (6 * D,),
        }  # fmt: skip
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    return shapes


def rotate_half_split(x):
    """Rotary positions, one pair of coordinates after the other. x (B, L, H, hd)."""
    out = x.clone()
    half = x.shape[-1] // 2
    for position in range(x.shape[1]):
        for i in range(half):
            angle = position / 10_000 ** (2 * i / x.shape[-1])
            a, b = x[:, position, :, i], x[:, position, :, i + half]
            out[:, position, :, i] = a * math.cos(angle) - b * math.sin(angle)
            out[:, position, :, i + half] = b * math.cos(angle) + a * math.sin(angle)
    return out


def authors_dit(w, z, t):
    """The forward pass of the paper's code as the specification describes it, from tensors under the authors' names."""

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros(()))

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"]

    frequencies = torch.tensor([10_000 ** (-i / 128) for i in range(128)])
    angles = t[:, None] * frequencies
    c = linear(torch.cat([angles.cos(), angles.sin()], -1), "sigma_map.mlp.0")
    c = F.silu(linear(F.silu(c), "sigma_map.mlp.2"))
    h = w["vocab_embed.embedding"][z]
    batch, length = z.shape
    for i in range(LAYERS):
        name = f"blocks.{i}"
        shift1, scale1, gate1, shift2, scale2, gate2 = linear(c, f"{name}.adaLN_modulation")[:, None].chunk(6, -1)
        a = norm(h, f"{name}.norm1") * (1 + scale1) + shift1
        q, k, v = linear(a, f"{name}.attn_qkv").reshape(batch, length, 3, HEADS, D // HEADS).unbind(2)
        q, k = rotate_half_split(q), rotate_half_split(k)
        scores = torch.einsum("bqhe,bkhe->bhqk", q, k) / math.sqrt(D // HEADS)
        a = torch.einsum("bhqk,bkhe->bqhe", scores.softmax(-1), v).reshape(batch, length, D)
        h = h + gate1 * linear(a, f"{name}.attn_out")
        a = linear(norm(h, f"{name}.norm2") * (1 + scale2) + shift2, f"{name}.mlp.0")
        a = 0.5 * a * (1 + torch.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))
        h = h + gate2 * linear(a, f"{name}.mlp.2")
    shift, scale = linear(c, "output_layer.adaLN_modulation")[:, None].chunk(2, -1)
    return linear(norm(h, "output_layer.norm_final") * (1 + scale) + shift, "output_layer.linear")


def easydel_shapes(rows, mlp_bias=True):
    """The follow-up's names."""
    shapes = {"model.embed_tokens.weight": (rows, D), "model.norm.weight": (D,), "lm_head.weight": (rows, D)}
    for i in range(LAYERS):
        layer = {f"self_attn.{n}_proj.weight": (D, D) for n in "qkvo"}
        layer |= {f"self_attn.{n}_norm.weight": (D,) for n in "qk"}
        layer |= {f"self_attn.{n}_bias": (HEADS, D // HEADS) for n in "kv"}
        layer |= {"attn_layernorm.weight": (D,), "mlp_layernorm.weight": (D,)}
        layer |= {"mlp.up_proj.weight": (4 * D, D), "mlp.down_proj.weight": (D, 4 * D)}
        layer |= {"mlp.up_proj.bias": (4 * D,), "mlp.down_proj.bias": (D,)} if mlp_bias else {}
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes


def followup_forward(w, z, config, noisy=None):
    """The follow-up's forward pass as the specification describes it; noisy (B, L) marks what is no prompt."""

    def linear(x, name):
        scale = config["weight_scaling"]
        weight = w[f"{name}.weight"]
        scale = weight.shape[1] ** -0.5 if scale == "fan_in" else scale
        return x @ weight.T * scale + w.get(f"{name}.bias", torch.zeros(()))

    def norm(x, name):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + w[f"{name}.weight"])

    batch, length = z.shape
    h = w["model.embed_tokens.weight"][z]
    for i in range(LAYERS):
        name, attn = f"model.layers.{i}", f"model.layers.{i}.self_attn"
        a = norm(h, f"{name}.attn_layernorm")
        q = norm(linear(a, f"{attn}.q_proj"), f"{attn}.q_norm").reshape(batch, length, HEADS, -1)
        k = norm(linear(a, f"{attn}.k_proj"), f"{attn}.k_norm").reshape(batch, length, HEADS, -1)
        v = linear(a, f"{attn}.v_proj").reshape(batch, length, HEADS, -1)
        q, k = rotate_half_split(q), rotate_half_split(k)
        k = torch.cat([w[f"{attn}.k_bias"].expand(batch, 1, -1, -1), k], 1)
        v = torch.cat([w[f"{attn}.v_bias"].expand(batch, 1, -1, -1), v], 1)
        scores = 30 * torch.tanh(torch.einsum("bqhe,bkhe->bhqk", q, k) / math.sqrt(D // HEADS) / 30)
        if noisy is not None:
            may = torch.cat([torch.ones(batch, length, 1) > 0, noisy[:, :, None] >= noisy[:, None, :]], -1)
            scores = torch.where(may[:, None], scores, -1e30)
        a = torch.einsum("bhqk,bkhe->bqhe", scores.softmax(-1), v).reshape(batch, length, D)
        h = h + 4.0 / LAYERS * linear(a, f"{attn}.o_proj")
        a = linear(norm(h, f"{name}.mlp_layernorm"), f"{name}.mlp.up_proj").clamp_min(0) ** 2
        h = h + 4.0 / LAYERS * linear(a, f"{name}.mlp.down_proj")
    return norm(h, "model.norm") @ w["lm_head.weight"].T * config["head_scaling"]


AUTHORS = {
    "model_type": "dit", "vocab_size": V, "max_seq_len": LENGTH, "hidden_size": D, "timestep_cond_dim": COND,
    "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "attention_dropout": 0.0, "p_uniform": 0.2,
    "t_eps": 0.0002, "mask_token_id": 10,
}  # fmt: skip
TRAINING = f"""
model: {{type: diffusion, diffusion_process: gidd, p_uniform: 0.1, t_eps: 1e-4, hidden_size: {D}, n_blocks: {LAYERS},
  n_heads: {HEADS}, cond_dim: {COND}, max_seq_len: {LENGTH}, dropout: 0.0}}
training: {{dtype: bf16}}
"""
MDLM = {
    "model_type": "mdlm", "vocab_size": V, "model_length": LENGTH, "hidden_dim": D, "cond_dim": COND,
    "n_blocks": LAYERS, "n_heads": HEADS, "dropout": 0.1, "time_conditioning": False,
}  # fmt: skip
EASYDEL = {
    "model_type": "gidd", "vocab_size": V, "hidden_size": D, "intermediate_size": 4 * D, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "head_dim": D // HEADS, "max_position_embeddings": LENGTH, "attn_soft_cap": 30.0,
    "resid_scale": 4.0, "weight_scaling": 1.0, "head_scaling": 512 / D, "attention_bias": True, "mlp_bias": True,
    "use_qk_norm": True, "noise_type": 2.0,
}  # fmt: skip


def folder_with(path, config, state):
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    save_file(state, path / "model.safetensors")
    return path


def inputs():
    generator = torch.Generator().manual_seed(5)
    return torch.randint(V, (2, LENGTH), generator=generator), torch.tensor([0.01, 0.7])


def assert_same(got, expected, tolerance=1e-5):
    error = float((got.double() - expected.double()).norm() / expected.double().norm())
    assert error < tolerance, f"relative error {error:.2g}"


def tiny():
    torch.manual_seed(0)
    return DiT(DiTConfig(vocab_size=V, hidden=16, layers=1, heads=2, max_seq_len=LENGTH, cond_dim=8))


# --- the authors' models ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [V, ROWS], ids=["unpadded", "padded"])
def test_the_authors_hub_models_compute_the_same_after_conversion(rows, tmp_path):
    state = random_state(dit_shapes(rows))
    buffers = {
        "rotary_emb.cos_cached": torch.ones(3),
        "rotary_emb.inv_freq": torch.ones(2),
        "logit_bias": torch.zeros(1, 1, 1),
    }
    source = folder_with(tmp_path / "src", AUTHORS, state | buffers)
    model, process, tokenizer, meta = convert(source, tmp_path / "dst")
    z, t = inputs()
    with torch.no_grad():
        assert_same(model(z, t), authors_dit(state, z, t))
        again = load_checkpoint(tmp_path / "dst")
        assert torch.equal(again.model(z, t), model(z, t))
        assert torch.equal(DiT.from_pretrained(source)(z, t), model(z, t))
    assert process == again.process == HybridProcess(V, 10, 0.2, 1.0, 0.0002)
    assert (model.config.vocab_size, model.config.padded_vocab_size) == (V, rows)
    assert tokenizer is None
    assert (meta["layout"], again.meta["layout"], again.meta["architecture"]) == ("gidd", "native", "dit")


def test_the_authors_training_folders_are_read_from_pickles_of_tensors(tmp_path):
    state = random_state(dit_shapes(ROWS))
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "config.yaml").write_text(TRAINING)
    torch.save({f"_orig_mod.{k}": v for k, v in state.items()}, tmp_path / "src" / "model.pt")
    with pytest.raises(CheckpointError, match="convert it first"):
        load_checkpoint(tmp_path / "src")
    with pytest.raises(CheckpointError, match="give mask_id"):
        convert(tmp_path / "src", tmp_path / "dst")
    model, process, _, meta = convert(tmp_path / "src", tmp_path / "dst", mask_id=10)
    z, t = inputs()
    with torch.no_grad():
        assert_same(model(z, t), authors_dit(state, z, t))
    assert meta["layout"] == "gidd-training"
    # Without a tokenizer nothing tells the vocabulary from its padding.
    assert process == HybridProcess(ROWS, 10, 0.1)


def test_the_tokenizer_tells_the_mask_and_the_vocabulary(tmp_path):
    source = folder_with(
        tmp_path / "src", {k: v for k, v in AUTHORS.items() if k != "mask_token_id"}, random_state(dit_shapes(ROWS))
    )
    latin_tokenizer(10).save(source)
    model, process, tokenizer, _ = convert(source, tmp_path / "dst")
    assert (process.vocab_size, process.mask_id, model.config.padded_vocab_size) == (11, 10, ROWS)
    again = load_checkpoint(tmp_path / "dst").tokenizer
    assert again.mask_id == tokenizer.mask_id == 10
    assert again.encode("3 1 4") == [3, 1, 4]


def test_a_logit_bias_that_matters_is_not_dropped_silently(tmp_path):
    state = random_state(dit_shapes(V)) | {"logit_bias": torch.full((1, 1, 1), 0.5)}
    with pytest.raises(CheckpointError, match=r"logit_bias is 0\.5"):
        load_checkpoint(folder_with(tmp_path / "src", AUTHORS, state))


def test_mdlm_computes_the_same_at_every_time(tmp_path):
    state = random_state(dit_shapes(V))
    source = folder_with(tmp_path / "src", MDLM, {f"backbone.{k}": v for k, v in state.items()})
    model, process, _, meta = convert(source, tmp_path / "dst")
    z, t = inputs()
    with torch.no_grad():
        assert_same(model(z, t), authors_dit(state, z, torch.zeros(2)))
    assert process == MaskedProcess(V, V - 1)
    assert meta["layout"] == "mdlm"
    # Continued at other noise it can learn the time.
    model(z, t).sum().backward()
    assert float(model.time[0].weight.grad.abs().max()) > 0
    source = folder_with(
        tmp_path / "timed", {**MDLM, "time_conditioning": True}, {f"backbone.{k}": v for k, v in state.items()}
    )
    with pytest.raises(CheckpointError, match="time_conditioning is on"):
        load_checkpoint(source)


@pytest.mark.parametrize(
    "changes",
    [{}, {"weight_scaling": "fan_in", "head_scaling": 1.0}, {"mlp_bias": False}],
    ids=["released", "fan_in", "no bias"],
)
def test_the_followups_models_compute_the_same_after_conversion(changes, tmp_path):
    config = {**EASYDEL, **changes}
    state = random_state(easydel_shapes(V, config["mlp_bias"]), std=1.0 if changes else 0.2)
    source = folder_with(tmp_path / "src", config, state)
    model, process, _, meta = convert(source, tmp_path / "dst")
    z, t = inputs()
    noisy = (torch.arange(LENGTH) >= 4).expand(2, LENGTH)
    with torch.no_grad():
        assert_same(model(z, t), followup_forward(state, z, config))
        assert_same(model(z, t, clean=~noisy), followup_forward(state, z, config, noisy))
        assert torch.equal(ScalingTransformer.from_pretrained(tmp_path / "dst")(z, t), model(z, t))
    assert process == SNRProcess(V, 3, shift=2.0)
    assert meta["layout"] == "gidd-easydel"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_bias": False}, "attention_bias is False; only True"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling"),
        ({"weight_scaling": "fan_out"}, "weight_scaling is 'fan_out'"),
        ({"hidden_size": None}, "configuration"),
    ],
)
def test_variants_of_the_followup_we_do_not_reproduce_are_refused(changes, message, tmp_path):
    source = folder_with(tmp_path / "src", {**EASYDEL, **changes}, random_state(easydel_shapes(V)))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(source)


def test_weights_in_several_files_are_put_together(tmp_path):
    state = random_state(dit_shapes(V))
    source = folder_with(tmp_path / "src", AUTHORS, state)
    (source / "model.safetensors").unlink()
    names = {key: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, key in enumerate(state)}
    for name in set(names.values()):
        save_file({key: state[key] for key in state if names[key] == name}, source / name)
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    z, t = inputs()
    with torch.no_grad():
        assert_same(load_checkpoint(source).model(z, t), authors_dit(state, z, t))
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../model.safetensors"}}))
    with pytest.raises(CheckpointError, match="outside the folder"):
        load_checkpoint(source)


# --- what is refused ----------------------------------------------------------------------------------------------


def test_missing_unexpected_and_misshapen_keys_are_all_listed(tmp_path):
    state = random_state(dit_shapes(V))
    del state["blocks.1.attn_qkv.weight"]
    state["blocks.0.surprise"] = torch.zeros(2)
    state["output_layer.linear.bias"] = torch.zeros(5)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder_with(tmp_path / "src", AUTHORS, state))
    for what in (
        "missing blocks.1.qkv.weight",
        "unexpected blocks.0.surprise",
        "head.bias of shape (5,) instead of (11,)",
    ):
        assert what in str(caught.value)


def test_more_layers_than_configured_are_never_left_out(tmp_path):
    with pytest.raises(CheckpointError, match=r"unexpected blocks\.2"):
        load_checkpoint(folder_with(tmp_path / "src", {**AUTHORS, "num_hidden_layers": 2}, random_state(dit_shapes(V))))


def test_an_embedding_that_fits_no_vocabulary_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="12 rows, which is neither 11 tokens"):
        load_checkpoint(folder_with(tmp_path / "src", AUTHORS, random_state(dit_shapes(12))))


def test_an_unknown_layout_is_refused_with_the_names_of_its_tensors(tmp_path):
    with pytest.raises(CheckpointError, match=r"knows .*transformer\.wte"):
        load_checkpoint(
            folder_with(tmp_path / "src", {"model_type": "gpt2"}, {"transformer.wte.weight": torch.ones(2)})
        )


def test_a_configuration_without_a_needed_value_names_it(tmp_path):
    config = {k: v for k, v in AUTHORS.items() if k != "p_uniform"}
    with pytest.raises(CheckpointError, match="has no 'p_uniform'"):
        load_checkpoint(folder_with(tmp_path / "src", config, random_state(dit_shapes(V))))


class Trap:
    def __reduce__(self):
        return os.mkdir, (os.environ["GIDD_TRAP"],)


def test_a_pickle_with_code_in_it_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("GIDD_TRAP", str(tmp_path / "sprung"))
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "config.json").write_text(json.dumps(AUTHORS))
    torch.save({"vocab_embed.embedding": Trap()}, tmp_path / "src" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="more than tensors"):
        convert(tmp_path / "src", tmp_path / "dst")
    assert not (tmp_path / "sprung").exists()
    assert not (tmp_path / "dst").exists()


def test_a_folder_that_is_not_there_is_no_repository_either(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match=r"no folder .*nowhere, and it is no Hub repository"):
        load_checkpoint(tmp_path / "nowhere")

    def refuse(name, allow_patterns):
        assert not any("bin" in p or p.endswith("pt") for p in allow_patterns)
        raise OSError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(CheckpointError, match="the Hub does not give it: offline"):
        load_checkpoint("dvruette/gidd-small-p_unif-0.2")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "process.json"])
@pytest.mark.parametrize("content", [b"", b"\x08\x00\x00\x00\x00\x00\x00\x00nonsense", b"[]", None])
def test_damaged_native_checkpoints_are_refused(name, content, tmp_path):
    save_checkpoint(tmp_path / "c", tiny(), MaskedProcess(V, 10))
    if content is None:
        (tmp_path / "c" / name).unlink()
    else:
        (tmp_path / "c" / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"damaged|holds no|has no|holds a list"):
        load_checkpoint(tmp_path / "c")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "mamba"}, "architecture 'mamba' is not one of dit, scaling"),
        ({"architecture": "scaling"}, "unknown 'cond_dim'"),
        ({"config": {"vocab_size": 3}}, "missing"),
    ],
)
def test_native_configurations_are_checked(changes, message, tmp_path):
    save_checkpoint(tmp_path / "c", tiny(), MaskedProcess(V, 10))
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    (tmp_path / "c" / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "c")


def test_a_process_with_more_tokens_than_the_model_is_refused(tmp_path):
    save_checkpoint(tmp_path / "c", tiny(), MaskedProcess(1000, 10))
    with pytest.raises(CheckpointError, match="the process has 1000 tokens, the model 128"):
        load_checkpoint(tmp_path / "c")


# --- saving -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "process",
    [HybridProcess(V, 10, 0.2), MaskedProcess(V, 10), SNRProcess.preset("balanced", V, 10)],
    ids=["hybrid", "masked", "snr"],
)
def test_model_process_and_tokenizer_come_back(process, tmp_path):
    scaling = ScalingTransformer(ScalingConfig(vocab_size=V, hidden=16, layers=1, head_dim=8, max_seq_len=9))
    for model in (tiny(), scaling.to(torch.bfloat16)):
        save_checkpoint(tmp_path / model.architecture, model, process, latin_tokenizer(10))
        again = load_checkpoint(tmp_path / model.architecture)
        assert again.process == process
        assert type(again.model) is type(model)
        assert again.meta["config"] == model.config.to_dict()
        for key, value in model.state_dict().items():
            assert torch.equal(again.model.state_dict()[key], value)
            assert again.model.state_dict()[key].dtype == value.dtype
        assert again.tokenizer.vocab_size == V
        assert sorted(p.name for p in (tmp_path / model.architecture).iterdir()) == [
            "config.json", "model.safetensors", "process.json", "tokenizer.json", "tokenizer_config.json"
        ]  # fmt: skip


def test_a_loaded_model_can_be_trained_without_touching_the_file(tmp_path):
    save_checkpoint(tmp_path / "c", tiny(), MaskedProcess(V, 10))
    before = (tmp_path / "c" / "model.safetensors").read_bytes()
    model = load_checkpoint(tmp_path / "c").model
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    assert (tmp_path / "c" / "model.safetensors").read_bytes() == before


def test_an_existing_checkpoint_is_replaced_and_nothing_is_left_behind(tmp_path):
    save_checkpoint(tmp_path / "c", tiny(), MaskedProcess(V, 10), latin_tokenizer(10))
    save_checkpoint(tmp_path / "c", tiny(), HybridProcess(V, 10, 0.3))
    again = load_checkpoint(tmp_path / "c")
    assert again.process.p_uniform == 0.3
    assert again.tokenizer is None
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "c", tiny(), HybridProcess(V, 10, 0.1))
    mixture = MixtureProcess(V, lambda t: 1 - t, [lambda t: t], [torch.ones(V)])
    with pytest.raises(ConfigError, match="cannot be stored"):
        save_checkpoint(tmp_path / "c", tiny(), mixture)
    rename, calls = Path.rename, []

    def second_fails(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError("no more")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(OSError, match="no more"):
        save_checkpoint(tmp_path / "c", tiny(), HybridProcess(V, 10, 0.2))
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "c").process.p_uniform == 0.1
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_a_kill_while_saving_leaves_no_half_checkpoint(tmp_path):
    program = f"""
import os, signal, gidd.hub, gidd
from gidd.models import DiT, DiTConfig
gidd.hub._sync = lambda path: os.kill(os.getpid(), signal.SIGKILL)
model = DiT(DiTConfig(vocab_size={V}, hidden=16, layers=1, heads=2))
gidd.hub.save_checkpoint({str(tmp_path / "c")!r}, model, gidd.MaskedProcess({V}, 10))
"""
    save_checkpoint(tmp_path / "c", tiny(), HybridProcess(V, 10, 0.1))
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL
    assert load_checkpoint(tmp_path / "c").process.p_uniform == 0.1


def test_folders_with_other_things_in_them_are_not_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    with pytest.raises(CheckpointError, match=r"no checkpoint to replace: it holds chapter\.tex"):
        save_checkpoint(tmp_path / "thesis", tiny(), None)
    with pytest.raises(CheckpointError, match="a file"):
        save_checkpoint(tmp_path / "thesis" / "chapter.tex", tiny(), None)


def test_models_without_a_format_and_networks_without_a_process_say_so(tmp_path):
    with pytest.raises(CheckpointError, match="HFBackbone has no native checkpoint format"):
        save_checkpoint(tmp_path / "c", HFBackbone(torch.nn.Linear(2, 2)), MaskedProcess(V, 10))
    tiny().save_pretrained(tmp_path / "c")
    with pytest.raises(CheckpointError, match=r"no process\.json"):
        load_checkpoint(tmp_path / "c")
    assert DiT.from_pretrained(tmp_path / "c").config.vocab_size == V


def test_a_tokenizer_without_a_mask_gets_that_of_the_model(tmp_path):
    # As the follow-up's: every row of the embedding has a token, and token 3 is the mask by habit.
    source = folder_with(tmp_path / "src", EASYDEL, random_state(easydel_shapes(V)))
    backend = latin_tokenizer(V).backend
    plain = json.loads(backend.to_str())
    plain["added_tokens"] = []
    (source / "tokenizer.json").write_text(json.dumps(plain))
    _, process, tokenizer, _ = load_checkpoint(source)
    assert (process.vocab_size, process.mask_id, tokenizer.mask_id) == (V, 3, 3)
    assert tokenizer.encode("3 1 10") == [3, 1, 10]
