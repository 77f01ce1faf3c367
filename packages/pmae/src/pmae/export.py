"""Trained encoders in other libraries' formats: timm, Hugging Face transformers, ONNX, TorchScript.

ONNX and TorchScript files take images on the [0, 1] scale: the standardisation is part of them. A timm or transformers
encoder takes standardised images: those libraries know a mean and a deviation per channel only. For models that are
standardised per channel these are in the exported configuration; others find theirs in ``standardize.safetensors``:
x ← (x − mean) / std, and 0 where ``varies`` is False.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .files import write_file, write_tensors
from .models import PMAE, PixelMAE
from .models.backbones import TimmEncoder
from .models.decoders import ViTDecoder
from .models.network import Network
from .models.vit import ViTEncoder
from .standardize import Standardizer


def export(model: PMAE | PixelMAE, format: str, out: str | Path, pool: str | None = None) -> Path:
    """Export by name of the format: "timm" or "hf" (a folder), "onnx" or "torchscript" (a file).

    The file gives features by `pool`, whose default is that of :meth:`pmae.PMAE.features`.

    Raises
    ------
    ValueError
        Unknown format or pool, or an encoder that the format does not have.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; it has to be one of {', '.join(FORMATS)}")
    out = Path(out)
    if format in ("timm", "hf"):
        FORMATS[format](model, out)
    else:
        FORMATS[format](model, out, pool)
    return out


def to_timm(model: PMAE | PixelMAE, folder: Path) -> None:
    """The encoder for timm: ``timm.create_model("local-dir:FOLDER", pretrained=True)`` reads the folder.

    So does ``timm.create_model(architecture, checkpoint_path="FOLDER/model.safetensors", **model_args)`` with the
    architecture and model_args of its config.json. The model's output for standardised images is what ``features``
    gives for pool="cls", or for pool="avg" if it is convolutional.
    """
    encoder = model.network.encoder
    (h, w), stride, channels = encoder.grid, encoder.stride, model.image_shape[0]
    if isinstance(encoder, TimmEncoder):
        architecture, arguments, weights = encoder.name, dict(encoder.arguments), encoder.backbone.state_dict()
    else:
        c = model.config
        architecture, weights = "vit_tiny_patch16_224", encoder.state_dict()
        arguments = dict(
            img_size=[h * stride, w * stride], patch_size=stride, in_chans=channels, num_classes=0, embed_dim=c.dim,
            depth=c.depth, num_heads=c.heads, mlp_ratio=c.mlp_ratio,
        )  # fmt: skip
    mean, std = _per_channel(model.standardizer) or ([0.0] * channels, [1.0] * channels)
    config = {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": encoder.embed_dim,
        "pretrained_cfg": {
            "input_size": [channels, h * stride, w * stride],
            "num_classes": 0,
            "mean": mean,
            "std": std,
        },
        "model_args": arguments,
    }
    _write_folder(model, folder, {"config.json": config}, weights)


def to_hf(model: PMAE | PixelMAE, folder: Path) -> None:
    """The ViT for transformers: ``ViTModel.from_pretrained(FOLDER, add_pooling_layer=False)`` reads the folder.

    With the "vit" decoder and square images, FOLDER/pretraining is encoder and decoder for ``ViTMAEForPreTraining``: of
    PMAE with mask_ratio 0, such that its logits are the patches of the predicted image.

    Raises
    ------
    ValueError
        The encoder is a timm backbone.
    """
    encoder, decoder, c = model.network.encoder, model.network.decoder, model.config
    if not isinstance(encoder, ViTEncoder):
        raise ValueError(f"backbone {c.backbone} has no counterpart in transformers here; export it with format 'timm'")
    (h, w), stride = encoder.grid, encoder.stride
    config: dict[str, Any] = {
        "architectures": ["ViTModel"], "model_type": "vit", "hidden_size": c.dim, "num_hidden_layers": c.depth,
        "num_attention_heads": c.heads, "intermediate_size": int(c.dim * c.mlp_ratio), "hidden_act": "gelu",
        "layer_norm_eps": 1e-6, "image_size": [h * stride, w * stride], "patch_size": stride,
        "num_channels": model.image_shape[0], "qkv_bias": True, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    weights = _hf_weights(encoder.state_dict())
    scale = _per_channel(model.standardizer)
    processor = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255,
        "size": {"height": model.image_shape[1], "width": model.image_shape[2]}, "do_normalize": scale is not None,
        "image_mean": scale[0] if scale else None, "image_std": scale[1] if scale else None,
    }  # fmt: skip
    _write_folder(model, folder, {"config.json": config, "preprocessor_config.json": processor}, weights)
    if isinstance(decoder, ViTDecoder) and h == w:
        config |= {
            "architectures": ["ViTMAEForPreTraining"], "model_type": "vit_mae", "image_size": h * stride,
            "decoder_hidden_size": c.decoder_dim, "decoder_num_hidden_layers": c.decoder_depth,
            "decoder_num_attention_heads": c.decoder_heads, "decoder_intermediate_size": 4 * c.decoder_dim,
            "mask_ratio": c.ratio if isinstance(model, PixelMAE) and isinstance(c.ratio, float) else 0.0,
            "norm_pix_loss": c.norm_pix,
        }  # fmt: skip
        weights = {f"vit.{name}": tensor for name, tensor in weights.items()}
        weights |= _hf_weights({f"decoder.{name}": tensor for name, tensor in decoder.state_dict().items()})
        weights["decoder.decoder_pos_embed"] = decoder.pos_embed
        texts = {"config.json": config, "preprocessor_config.json": processor}
        _write_folder(model, folder / "pretraining", texts, weights)


def to_onnx(model: PMAE | PixelMAE, path: Path, pool: str | None = None) -> None:
    """An ONNX file: ``images`` (B, C, H, W) float32 in [0, 1] to ``features`` (B, d), for any B. Needs pmae[onnx].

    Raises
    ------
    ValueError
        An unknown pool, or one that the encoder does not have; onnxscript is not installed.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise ValueError("ONNX export needs onnx and onnxscript: pip install 'pmae[onnx]'") from None
    featurizer, images = Featurizer(model, pool).eval(), torch.zeros(2, *model.image_shape)
    program = torch.onnx.export(
        featurizer, (images,), dynamo=True, input_names=["images"], output_names=["features"],
        dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False,
    )  # fmt: skip
    assert program is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, lambda temporary: program.save(temporary))


def to_torchscript(model: PMAE | PixelMAE, path: Path, pool: str | None = None) -> None:
    """A TorchScript file for ``torch.jit.load``: images (B, C, H, W) float32 in [0, 1] to features (B, d).

    Raises
    ------
    ValueError
        An unknown pool, or one that the encoder does not have.
    """
    featurizer, images = Featurizer(model, pool).eval(), torch.zeros(2, *model.image_shape)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing notes that shapes are constants, which here they are
        traced = torch.jit.trace(featurizer, images)  # type: ignore[no-untyped-call]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, lambda temporary: traced.save(str(temporary)))


FORMATS: dict[str, Callable[..., None]] = {
    "timm": to_timm, "hf": to_hf, "onnx": to_onnx, "torchscript": to_torchscript,
}  # fmt: skip


class Featurizer(nn.Module):
    """What ONNX and TorchScript files hold: standardisation, encoder, pooling. On the CPU, in float32."""

    def __init__(self, model: PMAE | PixelMAE, pool: str | None) -> None:
        super().__init__()
        pool = model.network.usual_pool if pool is None else pool
        model.network.check_pool(pool)
        copy = Network(model.config, model.image_shape)
        copy.load_state_dict(model.network.state_dict())
        s = model.standardizer
        self.standardizer = Standardizer(s.image_shape, s.mean.cpu(), s.std.cpu(), s.varies.cpu(), s.mode).float()
        self.network, self.pool = copy.float(), pool

    def forward(self, images: Tensor) -> Tensor:
        """Features of images (B, C, H, W) on the [0, 1] scale."""
        return self.network.features(self.standardizer.standardize(images), self.pool)


def _per_channel(standardizer: Standardizer) -> tuple[list[float], list[float]] | None:
    """Mean and deviation of each channel, if that is how the model's images are standardised."""
    if standardizer.mode != "channel":
        return None
    return standardizer.mean.flatten().tolist(), standardizer.std.flatten().tolist()


def _write_folder(
    model: PMAE | PixelMAE, folder: Path, texts: dict[str, dict[str, Any]], weights: dict[str, Tensor]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    s = model.standardizer
    files = {
        "model.safetensors": weights,
        "standardize.safetensors": {"mean": s.mean, "std": s.std, "varies": s.varies},
    }
    for name, tensors in files.items():
        write_file(folder / name, partial(write_tensors, tensors=tensors, metadata={"format": "pt"}))
    for name, text in texts.items():
        write_file(folder / name, partial(Path.write_text, data=json.dumps(text, indent=2) + "\n"))


# From timm's names and those of our decoder to the names of transformers' checkpoints, in this order.
_HF_NAMES = (
    (r"^decoder\.blocks\.(\d+)", r"decoder.decoder_layers.\1"),
    (r"^decoder\.embed", "decoder.decoder_embed"),
    (r"^decoder\.norm", "decoder.decoder_norm"),
    (r"^decoder\.head", "decoder.decoder_pred"),
    (r"^blocks\.(\d+)", r"encoder.layer.\1"),
    (r"^norm\.", "layernorm."),
    (r"^cls_token", "embeddings.cls_token"),
    (r"^pos_embed", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj", "embeddings.patch_embeddings.projection"),
    (r"\.attn\.proj", ".attention.output.dense"),
    (r"\.mlp\.fc1", ".intermediate.dense"),
    (r"\.mlp\.fc2", ".output.dense"),
    (r"\.norm1", ".layernorm_before"),
    (r"\.norm2", ".layernorm_after"),
)


def _hf_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under transformers' names, timm's joint query–key–value maps as three."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for pattern, replacement in _HF_NAMES:
            name = re.sub(pattern, replacement, name)
        if ".attn.qkv." in name:
            for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                renamed[name.replace("attn.qkv", f"attention.attention.{part}")] = piece
        else:
            renamed[name] = tensor
    return renamed
