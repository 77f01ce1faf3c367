"""EDM's published weights as networks of this package: tensor by tensor, architecture read off names and shapes.

The published files are pickles, which are not opened here. In an environment with EDM, once:

    net = pickle.load(open("edm-cifar10-32x32-uncond-vp.pkl", "rb"))["ema"].float()
    safetensors.torch.save_file({k: v.contiguous() for k, v in net.state_dict().items()}, "edm.safetensors")
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from . import nets
from .checkpoint import dotted, fill, misfit, read_safetensors
from .denoiser import Denoiser
from .errors import CheckpointError

Tensors = Mapping[str, np.ndarray]


def load_edm(path: str | os.PathLike[str], *, precision: str = "f32") -> Denoiser:
    """The denoiser of a DDPM++ or ADM network in a safetensors file of EDM's state dict.

    precision: `f32` | `bf16`. Samples are images in 0 … 255. Weights trained under EDM's own preconditioning are
    expected (all of its release except the `baseline` folder).

    Raises CheckpointError for other files, and for networks that are neither of the two, such as NCSN++.
    """
    tensors, _ = read_safetensors(path)
    tensors = {name.removeprefix("model."): value for name, value in tensors.items() if "resample_filter" not in name}
    net = nets.abstract(edm_config(tensors, path) | {"precision": precision})
    _, params = nets.split(net)
    names = [dotted(place) for place, _ in jax.tree_util.tree_leaves_with_path(params)]
    sources = {name: edm_name(name, net) for name in names}
    unknown = sorted(tensors.keys() - set(sources.values()))
    missing = sorted(set(sources.values()) - tensors.keys())
    if missing or unknown:
        raise CheckpointError(f"{path} is no DDPM++ or ADM: it {misfit(missing, unknown)}")
    heads = {
        f"{half}.{name}": block.heads
        for half in ("enc", "dec")
        for name, block in getattr(net, half).items()
        if getattr(block, "heads", 0)
    }
    ours = {name: _ours(name, tensors[source], heads) for name, source in sources.items()}
    return Denoiser(net=fill(net, ours, path), shift=127.5, scale=127.5)


def edm_config(tensors: Tensors, path: object = "the state dict") -> dict[str, Any]:
    """What `nets.build` needs for the network with these tensors, named as EDM names them without `model.`.

    Raises CheckpointError if they are of another architecture.
    """
    if "map_noise.freqs" in tensors or any("aux_residual" in name or "aux_skip" in name for name in tensors):
        raise CheckpointError(f"{path} holds an NCSN++ network; only DDPM++ and ADM can be converted")
    kind = "adm_unet" if "out_conv.weight" in tensors else "song_unet"
    stems = [re.fullmatch(r"enc\.(\d+)x\1_conv\.weight", name) for name in tensors]
    stem = next((match for match in stems if match), None)
    if stem is None or "map_layer0.weight" not in tensors:
        raise CheckpointError(f"{path} holds no U-Net of EDM: it has no stem enc.NxN_conv.weight or no map_layer0")
    size, base = int(stem[1]), tensors["map_layer0.weight"].shape[1]
    firsts = {int(m[1]): tensors[m[0]].shape[0] for m in _matches(r"enc\.(\d+)x\1_block0\.conv1\.weight", tensors)}
    blocks = 1 + max(
        (int(m[1]) for m in _matches(rf"enc\.{size}x{size}_block(\d+)\.conv1\.weight", tensors)), default=0
    )
    attention = {int(m[1]) for m in _matches(r"enc\.(\d+)x\1_block\d+\.qkv\.weight", tensors)}
    classes = tensors["map_label.weight"].shape[1] if "map_label.weight" in tensors else 0
    augment = tensors["map_augment.weight"].shape[1] if "map_augment.weight" in tensors else 0
    return {
        "net": kind,
        "image_size": size,
        "channels": tensors[stem[0]].shape[1],
        "base": base,
        "mult": tuple(width // base for _, width in sorted(firsts.items(), reverse=True)),
        "blocks": blocks,
        "attention": tuple(sorted(attention, reverse=True)),
        "labels": classes,
        "augment": augment,
    }


def edm_name(name: str, net: Any) -> str:
    """EDM's name of our parameter: enc.8x8_block0.norm0.scale is its enc.8x8_block0.norm0.weight."""
    stem, leaf = name.rsplit(".", 1)
    stem = stem.removeprefix("embedding.")
    if isinstance(net, nets.SongUNet) and stem.startswith("out_"):
        stem = f"dec.{net.image_size}x{net.image_size}_aux_{stem.removeprefix('out_')}"
    return f"{stem}.{'bias' if leaf == 'bias' else 'weight'}"


def _ours(name: str, value: np.ndarray, heads: Mapping[str, int]) -> np.ndarray:
    """OIHW to HWIO, (out, in) to (in, out); of an attention's inputs (head, channel, qkv) to (qkv, head, channel)."""
    block, is_attention, _ = name.partition(".qkv.")
    if is_attention:
        apart = value.reshape(heads[block], -1, 3, *value.shape[1:])
        value = np.moveaxis(apart, 2, 0).reshape(value.shape)
    if value.ndim == 4:
        value = value.transpose(2, 3, 1, 0)
        return value[0, 0] if value.shape[:2] == (1, 1) else value
    return value.T


def _matches(pattern: str, tensors: Tensors) -> list[re.Match[str]]:
    return [match for name in tensors if (match := re.fullmatch(pattern, name))]
