import importlib.util
import math
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import onestep_diffusion as osd
from onestep_diffusion import nets
from onestep_diffusion.convert import load_edm

spec = importlib.util.spec_from_file_location("edm_reference", Path(__file__).with_name("edm_reference.py"))
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)

# Two levels of unlike width, several heads in ADM, and attention at one size only, so that nothing can be exchanged.
SETTINGS = {
    "song": (reference.SONG, dict(size=8, channels=3, base=16, mult=(1, 2), blocks=2, attention=(4,))),
    "adm": (reference.ADM, dict(size=4, channels=3, base=64, mult=(1, 2), blocks=1, attention=(2,))),
}


@pytest.fixture(scope="module", params=[("song", 3, 4), ("adm", 5, 4)], ids=str)
def pair(request, tmp_path_factory):
    kind, labels, augment = request.param
    style, settings = SETTINGS[kind]
    net = reference.randomize(reference.UNet(style, **settings, labels=labels, augment=augment), seed=0)
    state = {f"model.{name}": value.contiguous() for name, value in net.state_dict().items()}
    state["model.enc.4x4_down.conv0.resample_filter"] = torch.full((1, 1, 2, 2), 0.25)  # a buffer of EDM's
    path = tmp_path_factory.mktemp("edm") / "edm.safetensors"
    save_file(state, path)
    return net, load_edm(path), path


def inputs(net, denoiser, n=4):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, *denoiser.net.shape)).astype(np.float32)
    sigma = np.array([0.002, 0.3, 2.5, 80.0], np.float32)
    labels = np.arange(n) % net.labels
    one_hot = torch.eye(net.labels)[labels]
    return sigma[:, None, None, None] * x + 0.5 * x[::-1], sigma, labels, one_hot


def run_reference(net, x, sigma, one_hot, augment=None):
    with torch.no_grad():
        out = reference.denoise(
            net, torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(sigma), one_hot, augment
        )
    return out.numpy().transpose(0, 2, 3, 1)


def test_converted_weights_denoise_as_in_pytorch(pair):
    net, denoiser, _ = pair
    x, sigma, labels, one_hot = inputs(net, denoiser)
    ours = jax.jit(lambda augment: osd.denoise(denoiser.net, x, sigma, labels, augment=augment))
    augment = np.random.default_rng(1).normal(size=(len(x), denoiser.net.augment)).astype(np.float32)
    plain, augmented = (run_reference(net, x, sigma, one_hot, a) for a in (None, torch.from_numpy(augment)))
    assert plain.std() > 0.3  # the network matters
    assert np.abs(augmented - plain).max() > 0.01
    np.testing.assert_allclose(ours(0 * augment), plain, atol=1e-4)
    np.testing.assert_allclose(ours(augment), augmented, atol=1e-4)


def test_no_label_and_no_augmentation_are_edms_zeros(pair):
    net, denoiser, _ = pair
    noise = np.linspace(-2, 1, 5, dtype=np.float32)
    with torch.no_grad():
        theirs = net.embed(torch.from_numpy(noise), torch.zeros(5, net.labels), None)
    np.testing.assert_allclose(denoiser.net.embedding(noise), theirs, atol=1e-5)


def test_a_converted_denoiser_knows_images_and_its_architecture(pair):
    net, denoiser, _ = pair
    assert osd.count_parameters(denoiser) == sum(p.numel() for p in net.parameters())
    assert denoiser.net.labels == net.labels
    np.testing.assert_allclose(denoiser.to_data(np.array([-1.0, 0.0, 1.0])), [0, 127.5, 255])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("model.enc.8x8_block0.norm0.weight"), "lacks enc.8x8_block0.norm0.weight"),
        (lambda s: s.update({"model.extra": torch.zeros(1)}), "unknown extra"),
        (lambda s: s.update({"model.map_noise.freqs": torch.zeros(1)}), "NCSN"),
        (lambda s: s.clear() or s.update({"weight": torch.zeros(1)}), "no U-Net of EDM"),
        (lambda s: s.update({"model.enc.8x8_block0.norm0.weight": torch.zeros(3)}), "other shapes"),
    ],
)
def test_other_state_dicts_are_refused_in_one_line_that_says_why(change, words, tmp_path):
    style, settings = SETTINGS["song"]
    state = {f"model.{name}": value for name, value in reference.UNet(style, **settings).state_dict().items()}
    change(state)
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(osd.CheckpointError, match=words) as caught:
        load_edm(tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)
    assert "x.safetensors" in str(caught.value)


def sizes(params):
    return {name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(part)) for name, part in params.items()}


def test_ddpmpp_has_edms_number_of_parameters():
    params = nets.split(nets.abstract({"net": "song_unet", "labels": 10, "augment": 9}))[1]
    conditional, parts, embedding = sum(sizes(params).values()), sizes(params), sizes(params["embedding"])
    unconditional = conditional - embedding["map_label"]
    plain = unconditional - embedding["map_augment"]
    assert (conditional, unconditional, plain) == (55_735_299, 55_733_891, 55_732_739)
    for count, options in [(conditional, dict(labels=10, augment=9)), (unconditional, dict(augment=9)), (plain, {})]:
        with torch.device("meta"):
            theirs = reference.UNet(reference.SONG, 32, 3, 128, (2, 2, 2), 4, (16,), **options)
        assert sum(p.numel() for p in theirs.parameters()) == count
    assert round(parts["enc"] / 1e6, 1) == 19.3
    assert round(parts["dec"] / 1e6, 1) == 36.1


def test_the_half_width_encoder_has_nine_hundredths_of_the_parameters():
    half = sizes(nets.split(nets.abstract({"net": "song_unet_ratio", "base": 64}))[1])
    assert round(half["enc"] / 1e6, 2) == 4.83
    assert round(sum(half.values()) / 55_732_739, 2) == 0.09


def test_dit_has_the_published_number_of_parameters():
    # DiT-XL/2 has 675,129,632; of these ours leaves out the 256 fixed positions, the label for guidance, and half of
    # the last layer, which predicts variances there.
    width, published = 1152, 675_129_632
    ours = published - 256 * width - width - (width + 1) * 16
    assert osd.count_parameters(nets.abstract({"net": "dit"})) == ours
