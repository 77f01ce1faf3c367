"""Checkpoints: the package's own format, and the formats of others it can read.

The native format is a folder with ``model.safetensors``, ``config.json`` (``{"architecture": ..., "config": {...}}``),
``process.json`` and, where there is a tokenizer, its files. Networks that :mod:`gidd.train` taught to predict the next
token have ``"objective": "autoregressive"`` in ``config.json``, too. Also read, from safetensors:

* ``gidd``: the authors' models on the Hub (arXiv:2503.04482), and the folders their training code writes;
* ``gidd-easydel``: the follow-up's (arXiv:2512.10858);
* ``mdlm``: Sahoo et al. 2024 (arXiv:2406.07524).

:func:`convert` also takes these from pickles, unpickling tensors only.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .errors import CheckpointError, ConfigError, DataError
from .models.base import Backbone, ModelConfig
from .models.dit import DiT, DiTConfig, time_embedding
from .models.scaling import ScalingConfig, ScalingTransformer
from .process import HybridProcess, MaskedProcess, Process, SNRProcess, process_from_dict

if TYPE_CHECKING:
    from .data.tokenizers import TextTokenizer

ARCHITECTURES: dict[str, type[Backbone]] = {"dit": DiT, "scaling": ScalingTransformer}
MODEL, CONFIG, PROCESS = "model.safetensors", "config.json", "process.json"
FILES = {MODEL, CONFIG, PROCESS, "tokenizer.json", "tokenizer_config.json"}
PICKLES = ("pytorch_model.bin", "model.pt", "state_dict.pt")

State = dict[str, Tensor]


class Checkpoint(NamedTuple):
    """What :func:`load_checkpoint` returns.

    meta : "layout" (native, gidd, gidd-training, gidd-easydel, mdlm), "path", "architecture", "config", "objective"
        ("diffusion", or "autoregressive": such a network neither denoises nor samples here, it judges).
    """

    model: Backbone
    process: Process
    tokenizer: TextTokenizer | None
    meta: dict[str, Any]


def load_checkpoint(source: str | Path) -> Checkpoint:
    """Model (evaluation mode, CPU, stored dtype), process, tokenizer or None, and facts about a checkpoint.

    Parameters
    ----------
    source : folder, or a Hub repository "owner/name" (downloaded once, then cached; HF_HUB_OFFLINE=1 works).

    Raises
    ------
    CheckpointError
        Missing or damaged files; keys that are missing, unexpected or of the wrong shape; no process; weights that
        exist as a pickle only.

    Examples
    --------
    >>> model, process, tokenizer, meta = load_checkpoint("runs/kjv/latest")
    """
    folder = _folder(source)
    found = _read(folder)
    if found.process is None:
        raise CheckpointError(
            f"{folder} has no {PROCESS}: load the network alone with {type(found.model).__name__}.from_pretrained "
            "and make the process yourself"
        )
    return Checkpoint(found.model, found.process, found.tokenizer, found.meta)


def load_model(source: str | Path) -> Backbone:
    """The network of a checkpoint, which need not have a process."""
    return _read(_folder(source)).model


def save_checkpoint(
    folder: str | Path,
    model: nn.Module,
    process: Process | None,
    tokenizer: TextTokenizer | None = None,
    objective: str = "diffusion",
) -> None:
    """Write a native checkpoint: complete or not at all, whenever the program is killed.

    A checkpoint that was there is replaced; while that happens it is kept beside it as ``.NAME.*.old``.

    Parameters
    ----------
    objective : "diffusion" or "autoregressive", what the model was trained for.

    Raises
    ------
    CheckpointError
        A model that has no native format (keep an HFBackbone with its module's ``save_pretrained``), or a folder that
        holds other things than a checkpoint.
    """
    target = Path(folder).absolute()
    if target.exists():
        others = sorted({p.name for p in target.iterdir()} - FILES) if target.is_dir() else []
        if others or not target.is_dir():
            raise CheckpointError(
                f"{target} exists and is no checkpoint to replace: it holds {', '.join(others) or 'a file'}"
            )
    target.parent.mkdir(parents=True, exist_ok=True)
    mark = f".{target.name}.{secrets.token_hex(4)}"
    temporary, old = target.with_name(f"{mark}.tmp"), target.with_name(f"{mark}.old")
    temporary.mkdir()
    try:
        write_checkpoint(temporary, model, process, tokenizer, objective=objective)
        if target.exists():
            target.rename(old)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_checkpoint(
    folder: str | Path,
    model: nn.Module,
    process: Process | None,
    tokenizer: TextTokenizer | None = None,
    state: Mapping[str, Tensor] | None = None,
    objective: str = "diffusion",
) -> None:
    """Write the files of a native checkpoint into a folder that exists, and sync them; the caller renames it.

    Parameters
    ----------
    state : the model's state where it is not ``model.state_dict()``, e.g. gathered from other ranks, or averaged.
    objective : "diffusion" or "autoregressive", what the model was trained for.
    """
    folder = Path(folder)
    architecture = getattr(model, "architecture", None)
    if architecture not in ARCHITECTURES or not isinstance(model, Backbone):
        raise CheckpointError(
            f"a {type(model).__name__} has no native checkpoint format (only {', '.join(ARCHITECTURES)})"
        )
    config: ModelConfig = model.config
    texts: dict[str, Any] = {CONFIG: {"architecture": architecture, "config": config.to_dict()}}
    if objective != "diffusion":
        texts[CONFIG]["objective"] = objective
    if process is not None:
        texts[PROCESS] = process.to_dict()
    tensors = {k: v.detach().cpu().contiguous() for k, v in (state or model.state_dict()).items()}
    try:
        save_file(tensors, folder / MODEL, metadata={"format": "pt"})
    except SafetensorError as error:  # it reports a full disk this way
        raise OSError(f"cannot write {folder / MODEL}: {error}") from error
    for name, value in texts.items():
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save(folder)
    for path in (*folder.iterdir(), folder):
        _sync(path)


def convert(source: str | Path, target: str | Path, mask_id: int | None = None) -> Checkpoint:
    """Write the checkpoint of another layout as a native one, and return it.

    Parameters
    ----------
    source : folder or Hub repository, see the top of this file.
    mask_id : id of the mask token, where neither the tokenizer nor the configuration tells.

    Raises
    ------
    CheckpointError
        As :func:`load_checkpoint`; also pickles that hold more than tensors.
    """
    folder = _folder(source, pickles=True)
    found = _read(folder, pickles=True, mask_id=mask_id)
    if found.process is None:
        raise CheckpointError(f"{folder} has no {PROCESS}")
    save_checkpoint(target, found.model, found.process, found.tokenizer, found.meta["objective"])
    return Checkpoint(found.model, found.process, found.tokenizer, found.meta)


# --- layouts ----------------------------------------------------------------------------------------------------------


class _Found(NamedTuple):
    model: Backbone
    process: Process | None
    tokenizer: TextTokenizer | None
    meta: dict[str, Any]


class _Source(NamedTuple):
    """All there is in a foreign checkpoint."""

    folder: Path
    config: dict[str, Any]
    state: State
    tokenizer: TextTokenizer | None
    mask_id: int | None


class _Layout(NamedTuple):
    """How a layout's keys are called here, and how its configuration reads."""

    keys: list[tuple[str, str]]
    dropped: str
    read: Callable[[_Source, State], tuple[ModelConfig, Process]]


def _read(folder: Path, pickles: bool = False, mask_id: int | None = None) -> _Found:
    training = folder / "config.yaml"
    config = _yaml(training) if training.exists() and not (folder / CONFIG).exists() else _json(folder / CONFIG)
    state = _tensors(folder, pickles)
    tokenizer = _tokenizer(folder)
    if "architecture" in config:
        return _native(folder, config, state, tokenizer)
    name = _layout_of(config, state, folder)
    layout = LAYOUTS[name]
    named: State = {}
    unexpected = []
    for key, value in state.items():
        if re.fullmatch(layout.dropped, key):
            continue
        new = next((re.sub(f"^(?:{old})$", to, key) for old, to in layout.keys if re.fullmatch(old, key)), None)
        if new is None:
            unexpected.append(key)
        else:
            named[new] = value
    try:
        model_config, process = layout.read(_Source(folder, config, state, tokenizer, mask_id), named)
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        what = f"has no {error}" if isinstance(error, KeyError) else f"cannot be read: {error}"
        raise CheckpointError(f"the configuration in {folder} {what}") from error
    architecture = "dit" if isinstance(model_config, DiTConfig) else "scaling"
    model = _build(architecture, model_config, named, folder, unexpected)
    if tokenizer is not None and process.mask_id is not None:
        # Tokens that our reader had to add, because the tokenizer has none for a role, have no embedding.
        pad, bos, eos = (
            None if i is None or i >= process.vocab_size else i
            for i in (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id)
        )
        tokenizer = replace(tokenizer, mask_id=process.mask_id, pad_id=pad, bos_id=bos, eos_id=eos)
    return _Found(model, process, tokenizer, _meta(name, folder, architecture, model_config))


def _native(folder: Path, config: dict[str, Any], state: State, tokenizer: TextTokenizer | None) -> _Found:
    architecture = config["architecture"]
    if architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{folder / CONFIG}: architecture {architecture!r} is not one of {', '.join(ARCHITECTURES)}"
        )
    try:
        model_config = ARCHITECTURES[architecture].config_type.from_dict(config.get("config", {}))
        process = process_from_dict(_json(folder / PROCESS)) if (folder / PROCESS).exists() else None
    except ValueError as error:
        raise CheckpointError(f"{folder} is damaged: {error}") from error
    if process is not None and process.vocab_size > model_config.padded_vocab_size:
        raise CheckpointError(
            f"{folder}: the process has {process.vocab_size} tokens, the model {model_config.padded_vocab_size}"
        )
    model = _build(architecture, model_config, state, folder)
    objective = config.get("objective", "diffusion")
    return _Found(model, process, tokenizer, _meta("native", folder, architecture, model_config, objective))


def _meta(
    layout: str, folder: Path, architecture: str, config: ModelConfig, objective: str = "diffusion"
) -> dict[str, Any]:
    facts = {"layout": layout, "path": str(folder), "architecture": architecture, "config": config.to_dict()}
    return {**facts, "objective": objective}


def _layout_of(config: dict[str, Any], state: State, folder: Path) -> str:
    if "backbone.vocab_embed.embedding" in state:
        return "mdlm"
    if "vocab_embed.embedding" in state:
        return "gidd-training" if "model" in config else "gidd"
    if "model.embed_tokens.weight" in state and config.get("model_type") == "gidd":
        return "gidd-easydel"
    raise CheckpointError(
        f"{folder} holds no checkpoint this package knows ({', '.join(LAYOUTS)} or native); "
        f"its first tensors are {', '.join(sorted(state)[:5])}"
    )


def _build(
    architecture: str, config: ModelConfig, state: State, folder: Path, unexpected: list[str] | None = None
) -> Backbone:
    with torch.device("meta"):
        model = ARCHITECTURES[architecture](config)
    expected = model.state_dict()
    problems = [f"missing {key}" for key in expected if key not in state]
    problems += [f"unexpected {key}" for key in [*(unexpected or []), *(k for k in state if k not in expected)]]
    problems += [
        f"{key} of shape {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise CheckpointError(f"{folder} does not fit a {type(model).__name__}: {'; '.join(problems[:20])}{more}")
    model.load_state_dict(state, assign=True)
    return model.eval()


# The blocks are called alike in the paper's code and in MDLM, whose code it started from.
_DIT_KEYS = [
    (r"vocab_embed\.embedding", r"embed.weight"),
    (r"sigma_map\.mlp\.([02]\.(?:weight|bias))", r"time.\1"),
    (r"(blocks\.\d+)\.attn_(qkv|out)\.weight", r"\1.\2.weight"),
    (r"(blocks\.\d+)\.adaLN_modulation\.(weight|bias)", r"\1.adaln.\2"),
    (r"(blocks\.\d+\.(?:norm[12]\.weight|mlp\.[02]\.(?:weight|bias)))", r"\1"),
    (r"output_layer\.norm_final\.weight", r"norm.weight"),
    (r"output_layer\.adaLN_modulation\.(weight|bias)", r"adaln.\1"),
    (r"output_layer\.linear\.(weight|bias)", r"head.\1"),
]
_SCALING_KEYS = [
    (r"model\.embed_tokens\.weight", r"embed.weight"),
    (r"model\.layers\.(\d+)\.self_attn\.([qkv])_proj\.weight", r"blocks.\1.\2.weight"),
    (r"model\.layers\.(\d+)\.self_attn\.o_proj\.weight", r"blocks.\1.out.weight"),
    (r"model\.layers\.(\d+)\.self_attn\.([qk]_norm)\.weight", r"blocks.\1.\2.weight"),
    (r"model\.layers\.(\d+)\.self_attn\.k_bias", r"blocks.\1.sink_key"),
    (r"model\.layers\.(\d+)\.self_attn\.v_bias", r"blocks.\1.sink_value"),
    (r"model\.layers\.(\d+)\.attn_layernorm\.weight", r"blocks.\1.norm1.weight"),
    (r"model\.layers\.(\d+)\.mlp_layernorm\.weight", r"blocks.\1.norm2.weight"),
    (r"model\.layers\.(\d+)\.mlp\.(up|down)_proj\.(weight|bias)", r"blocks.\1.\2.\3"),
    (r"model\.norm\.weight", r"norm.weight"),
    (r"lm_head\.weight", r"head.weight"),
]


def _read_gidd(source: _Source, state: State) -> tuple[ModelConfig, Process]:
    """``DITConfig`` of the authors' Hub models."""
    c = source.config
    vocab_size, pad = _vocabulary(source, state, c["vocab_size"])
    config = DiTConfig(
        vocab_size=vocab_size,
        pad_vocab_to=pad,
        hidden=c["hidden_size"],
        layers=c["num_hidden_layers"],
        heads=c["num_attention_heads"],
        max_seq_len=c["max_seq_len"],
        cond_dim=c["timestep_cond_dim"],
        dropout=c.get("attention_dropout", 0.0),
    )
    _require_no_bias(source)
    return config, _hybrid(source, vocab_size, c)


def _read_training(source: _Source, state: State) -> tuple[ModelConfig, Process]:
    """``config.yaml`` of the authors' training code."""
    c = source.config["model"]
    if c.get("type", "diffusion") != "diffusion":
        raise ValueError(f"model.type is {c['type']!r}, no diffusion model")
    rows = state["embed.weight"].shape[0] if "embed.weight" in state else 1
    vocab_size, pad = _vocabulary(source, state, rows)
    config = DiTConfig(
        vocab_size=vocab_size,
        pad_vocab_to=pad,
        hidden=c["hidden_size"],
        layers=c["n_blocks"],
        heads=c["n_heads"],
        max_seq_len=c["max_seq_len"],
        cond_dim=c["cond_dim"],
        dropout=c.get("dropout", 0.0),
    )
    _require_no_bias(source)
    masked = c.get("diffusion_process", "gidd") == "mdlm"
    return config, _hybrid(source, vocab_size, {**c, "p_uniform": 0.0} if masked else c)


def _read_mdlm(source: _Source, state: State) -> tuple[ModelConfig, Process]:
    """``MDLMConfig``; the mask is the last token, which their code adds to the vocabulary.

    The released networks were trained without time: they always see time 0. Its embedding is moved into the bias of
    the first layer that sees it, whose weight becomes zero: the same function of z at every t, free to learn the time.
    """
    c = source.config
    if c.get("time_conditioning", False):
        raise ValueError(
            "time_conditioning is on: the network sees -ln(1 - t), not t, and cannot be used with other noise"
        )
    vocab_size, pad = _vocabulary(source, state, c["vocab_size"])
    config = DiTConfig(
        vocab_size=vocab_size,
        pad_vocab_to=pad,
        hidden=c["hidden_dim"],
        layers=c["n_blocks"],
        heads=c["n_heads"],
        max_seq_len=c["model_length"],
        cond_dim=c["cond_dim"],
        dropout=c.get("dropout", 0.0),
    )
    weight, bias = state.get("time.0.weight"), state.get("time.0.bias")
    if weight is not None and bias is not None and weight.shape == (config.cond_dim, 256):
        at_zero = weight.double() @ time_embedding(torch.zeros(())).double()
        state["time.0.bias"] = (bias.double() + at_zero).to(bias.dtype)
        state["time.0.weight"] = torch.zeros_like(weight)
    return config, MaskedProcess(vocab_size, _mask_id(source, vocab_size, vocab_size - 1))


def _read_easydel(source: _Source, state: State) -> tuple[ModelConfig, Process]:
    """``GiddConfig`` of the follow-up; defaults are those of its class."""
    c = source.config
    fixed: dict[str, Any] = {
        "attention_bias": True, "use_qk_norm": True, "is_causal": False, "tie_word_embeddings": False,
        "rope_theta": 10_000.0, "rope_scaling": None,
    }  # fmt: skip
    usual = {**fixed, "attention_bias": False}
    for name, value in fixed.items():
        if c.get(name, usual[name]) != value:
            raise ValueError(f"{name} is {c.get(name, usual[name])!r}; only {value!r} is supported")
    vocab_size, pad = _vocabulary(source, state, c["vocab_size"])
    hidden, scale = c["hidden_size"], c.get("weight_scaling", "fan_in")
    if isinstance(scale, str) and scale != "fan_in":
        raise ValueError(f"weight_scaling is {scale!r}; only 'fan_in' or a number is supported")
    if c.get("intermediate_size", 4 * hidden) % hidden:
        raise ValueError(f"intermediate_size {c['intermediate_size']} is no multiple of hidden_size {hidden}")
    config = ScalingConfig(
        vocab_size=vocab_size,
        pad_vocab_to=pad,
        hidden=hidden,
        layers=c["num_hidden_layers"],
        head_dim=c.get("head_dim") or hidden // c["num_attention_heads"],
        max_seq_len=c["max_position_embeddings"],
        mlp_ratio=c.get("intermediate_size", 4 * hidden) // hidden,
        soft_cap=c.get("attn_soft_cap", 30.0),
        residual_scale=c.get("resid_scale", 4.0),
        head_scale=c.get("head_scaling", 1.0) * hidden,
        weight_scale=None if scale == "fan_in" else float(scale),
        mlp_bias=c.get("mlp_bias", False),
        norm_eps=c.get("rms_norm_eps", 1e-6),
        init=c.get("init_scale", 0.4),
        aux_init=c.get("emb_init_scale", 0.1),
    )
    process = SNRProcess(
        vocab_size,
        _mask_id(source, vocab_size, 3),
        shift=c.get("noise_type", 0.0),
        min_log_snr=c.get("min_log_snr", -9.0),
        max_log_snr=c.get("max_log_snr", 9.0),
    )
    return config, process


LAYOUTS = {
    "gidd": _Layout(_DIT_KEYS, r"rotary_emb\..*|logit_bias", _read_gidd),
    "gidd-training": _Layout(_DIT_KEYS, r"rotary_emb\..*|logit_bias", _read_training),
    "mdlm": _Layout([(rf"backbone\.{old}", new) for old, new in _DIT_KEYS], r"backbone\.rotary_emb\..*", _read_mdlm),
    "gidd-easydel": _Layout(_SCALING_KEYS, r"model\.(?:frequencies|.*rotary.*)", _read_easydel),
}


def _hybrid(source: _Source, vocab_size: int, config: dict[str, Any]) -> Process:
    mask_id = _mask_id(source, vocab_size, None)
    return HybridProcess(vocab_size, mask_id, float(config["p_uniform"]), 1.0, float(config.get("t_eps", 1e-4)))


def _vocabulary(source: _Source, state: State, configured: int) -> tuple[int, int]:
    """V, and what its rows are padded to a multiple of: the tokenizer's size if that fits, else the configured one."""
    rows = state["embed.weight"].shape[0] if "embed.weight" in state else configured
    sizes = [configured] if source.tokenizer is None else [source.tokenizer.vocab_size, configured]
    for size in sizes:
        for pad in (1, 128):
            if -(-size // pad) * pad == rows:
                return size, pad
    raise CheckpointError(
        f"{source.folder}: the embedding has {rows} rows, which is neither {' nor '.join(map(str, sizes))} tokens, "
        "nor that padded to a multiple of 128"
    )


def _mask_id(source: _Source, vocab_size: int, default: int | None) -> int:
    """From the caller, the tokenizer, the configuration, or the layout's habit, in this order."""
    found = source.mask_id
    if found is None and source.tokenizer is not None and source.tokenizer.mask_id < vocab_size:
        found = source.tokenizer.mask_id
    if found is None:
        found = source.config.get("mask_token_id", default)
    if found is None:
        raise CheckpointError(
            f"{source.folder} does not tell which token is the mask: neither its tokenizer nor its configuration does; "
            "give mask_id to convert"
        )
    if not 0 <= found < vocab_size:
        raise CheckpointError(f"mask id {found} lies outside [0, {vocab_size})")
    return int(found)


def _require_no_bias(source: _Source) -> None:
    """The authors' training code adds a constant to the logit of every input token; it has always been zero."""
    bias = source.state.get("logit_bias")
    if bias is not None and bool((bias != 0).any()):
        raise CheckpointError(f"{source.folder}: logit_bias is {float(bias.flatten()[0])}; only 0 is supported")


# --- files ------------------------------------------------------------------------------------------------------------


def _folder(source: str | Path, pickles: bool = False) -> Path:
    if Path(source).is_dir():
        return Path(source)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise CheckpointError(f"there is no folder {source}, and it is no Hub repository owner/name either")
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.yaml", "*.safetensors", *(PICKLES if pickles else ())]
    try:
        return Path(snapshot_download(str(source), allow_patterns=wanted))
    except Exception as error:  # many kinds: no network, no such repository, no permission
        raise CheckpointError(f"there is no folder {source}, and the Hub does not give it: {error}") from error


def _tensors(folder: Path, pickles: bool) -> State:
    index = folder / f"{MODEL}.index.json"
    names = sorted(set(_json(index).get("weight_map", {}).values())) if index.exists() else [MODEL]
    if any(Path(name).name != name for name in names):
        raise CheckpointError(f"{index} names files outside the folder")
    state: State = {}
    if index.exists() or (folder / MODEL).exists():
        for name in names:
            try:
                state.update(load_file(folder / name))
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{folder / name} is missing or damaged: {error}") from error
    else:
        pickled = [folder / name for name in PICKLES if (folder / name).exists()] + sorted(folder.glob("*.ckpt"))
        if not pickled:
            raise CheckpointError(f"{folder} holds no {MODEL}")
        if not pickles:
            raise CheckpointError(f"{folder} has its weights in a pickle ({pickled[0].name}): convert it first")
        state = _unpickle(pickled[0])
    # What torch.compile and DistributedDataParallel put before the names.
    return {re.sub(r"^(?:(?:_orig_mod|module)\.)+", "", key): value for key, value in state.items()}


def _unpickle(path: Path) -> State:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # UnpicklingError, EOFError, RuntimeError, ...
        raise CheckpointError(f"{path} is damaged, or holds more than tensors and is not opened: {error}") from error
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise CheckpointError(f"{path} holds no dictionary of tensors")
    return found


def _tokenizer(folder: Path) -> TextTokenizer | None:
    if not (folder / "tokenizer.json").exists():
        return None
    from .data.tokenizers import load_tokenizer

    try:
        return load_tokenizer(folder)
    except DataError as error:
        raise CheckpointError(f"{folder} is damaged: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    return _parse(path, json.loads)


def _yaml(path: Path) -> dict[str, Any]:
    return _parse(path, yaml.safe_load)


def _parse(path: Path, parser: Callable[[str], Any]) -> dict[str, Any]:
    try:
        found = parser(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path} is missing or damaged: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}, no mapping")
    return found


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
