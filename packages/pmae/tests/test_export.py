import json

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from common import crops, unit
from safetensors.torch import load_file
from transformers import ViTMAEForPreTraining, ViTModel

import pmae
from pmae.export import export
from pmae.models.patches import patchify

SMALL = dict(patch_size=4, dim=32, depth=2, heads=2, decoder_dim=16, decoder_depth=1, decoder_heads=2)


def model_of(height=8, width=12, standardize="pixel", method=pmae.PMAE, **settings):
    space = pmae.fit_space(crops(100, height, width), basis="dct", standardize=standardize)
    return method(pmae.PMAEConfig(**SMALL | settings), space).eval()


def images_of(model, n=5):
    return unit(crops(100, *model.image_shape[1:]), torch.float32)[:n]


@pytest.fixture(
    params=[
        dict(),
        dict(pad=True, height=9, width=10),
        dict(backbone="resnet18", height=32, width=64),
        dict(backbone="vit_tiny_patch16_224", backbone_args={"depth": 1, "embed_dim": 24}, height=32, width=16),
    ],
    ids=["vit", "padded vit", "resnet18", "timm vit"],
)
def model(request):
    return model_of(**request.param)


def test_timm_gives_identical_features(model, tmp_path):
    export(model, "timm", tmp_path / "timm")
    x = images_of(model)
    pool = "cls" if model.network.encoder.num_prefix_tokens else "avg"
    described = json.loads((tmp_path / "timm/config.json").read_text())
    weights = str(tmp_path / "timm/model.safetensors")
    loaded = [
        timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True),
        timm.create_model(described["architecture"], checkpoint_path=weights, **described["model_args"]),
    ]
    for theirs in loaded:
        seen = model.network.padded(model.space.standardize(x))
        assert torch.equal(theirs.eval()(seen), model.features(x, pool))


@pytest.mark.parametrize("format", ["timm", "hf"])
def test_a_standardisation_per_channel_is_in_the_exported_configuration(format, tmp_path):
    model = model_of(standardize="channel")
    export(model, format, tmp_path)
    name = "config.json" if format == "timm" else "preprocessor_config.json"
    read = json.loads((tmp_path / name).read_text())
    mean, std = (
        (read["pretrained_cfg"][k] for k in ("mean", "std"))
        if format == "timm"
        else (read["image_mean"], read["image_std"])
    )
    pixels = crops(100, 8, 12) / 255
    assert np.allclose(mean, pixels.mean((0, 2, 3)), atol=1e-6)
    assert np.allclose(std, pixels.std((0, 2, 3)), atol=1e-6)


def test_any_standardisation_can_be_done_from_the_exported_file(tmp_path):
    model = model_of()
    export(model, "timm", tmp_path)
    numbers, x = load_file(tmp_path / "standardize.safetensors"), images_of(model)
    ours = torch.where(numbers["varies"], (x - numbers["mean"]) / numbers["std"], 0)
    assert torch.equal(ours, model.space.standardize(x))


@pytest.mark.parametrize(("height", "width"), [(8, 12), (12, 12)])
def test_transformers_gives_identical_features(height, width, tmp_path):
    model = model_of(height, width)
    export(model, "hf", tmp_path)
    theirs, report = ViTModel.from_pretrained(tmp_path, add_pooling_layer=False, output_loading_info=True)
    assert not any(report.values())
    x = images_of(model)
    with torch.no_grad():
        tokens = theirs.eval()(model.space.standardize(x)).last_hidden_state
        assert torch.allclose(tokens[:, 0], model.features(x, "cls"), atol=1e-5)
        assert torch.allclose(tokens[:, 1:], model.features(x, "tokens"), atol=1e-5)


@pytest.mark.parametrize(("method", "ratio"), [(pmae.PMAE, 0.15), (pmae.PixelMAE, 0.75)])
def test_transformers_goes_on_pretraining_from_encoder_and_decoder(method, ratio, tmp_path):
    model = model_of(12, 12, method=method, ratio=ratio)
    export(model, "hf", tmp_path)
    theirs, report = ViTMAEForPreTraining.from_pretrained(tmp_path / "pretraining", output_loading_info=True)
    assert not any(report.values())
    assert theirs.config.mask_ratio == (0 if method is pmae.PMAE else 0.75)
    x = model.standardizer.standardize(images_of(model))
    theirs.config.mask_ratio = 0.0
    with torch.no_grad():
        assert torch.allclose(theirs.eval()(x).logits, patchify(model.network(x), 4), atol=1e-5)


def test_onnx_gives_the_same_features_for_batches_of_any_size(tmp_path):
    model = model_of(pad=True, height=9, width=10)
    path = export(model, "onnx", tmp_path / "new" / "model.onnx", pool="cls+avg")
    session = onnxruntime.InferenceSession(path)
    for n in (1, 2, 7):
        x = images_of(model, n)
        (features,) = session.run(["features"], {"images": x.numpy()})
        assert np.allclose(features, model.features(x, "cls+avg").detach().numpy(), atol=1e-4)


def test_onnx_takes_convolutional_backbones(tmp_path):
    model = model_of(backbone="resnet18", height=32, width=32)
    path = export(model, "onnx", tmp_path / "model.onnx")
    x = images_of(model, 3)
    (features,) = onnxruntime.InferenceSession(path).run(None, {"images": x.numpy()})
    assert np.allclose(features, model.features(x).detach().numpy(), atol=1e-4)


def test_torchscript_gives_the_same_features_for_batches_of_any_size(model, tmp_path):
    path = export(model, "torchscript", tmp_path / "model.pt")
    loaded = torch.jit.load(path)
    for n in (1, 7):
        x = images_of(model, n)
        assert torch.allclose(loaded(x), model.features(x), atol=1e-5)


def test_exporting_leaves_the_model_as_it_was(tmp_path):
    model = model_of().double().train()
    export(model, "torchscript", tmp_path / "model.pt")
    assert model.training
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def test_what_cannot_be_exported_is_an_error_that_says_why(tmp_path):
    with pytest.raises(ValueError, match="timm, hf, onnx, torchscript"):
        export(model_of(), "coreml", tmp_path)
    with pytest.raises(ValueError, match="format 'timm'"):
        export(model_of(backbone="resnet18", height=32, width=32), "hf", tmp_path)
    with pytest.raises(ValueError, match="no CLS token"):
        export(model_of(backbone="resnet18", height=32, width=32), "onnx", tmp_path / "m.onnx", pool="cls")
