import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from common import crops, unit
from transformers import ViTMAEConfig, ViTMAEForPreTraining
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEEmbeddings

import pmae
from pmae.errors import CheckpointError, DataError, ShapeError
from pmae.models.config import PRESETS, choose_patch_size
from pmae.models.decoders import prime_factors
from pmae.models.network import Network
from pmae.models.patches import PatchSampler, mask_from_noise, patchify, unpatchify
from pmae.models.vit import positions


def config(**settings):
    """Smaller than any preset; patches of 4 pixels."""
    small = dict(patch_size=4, dim=32, depth=2, heads=2, decoder_dim=16, decoder_depth=1, decoder_heads=2)
    return pmae.PMAEConfig(**small | settings)


@pytest.fixture(scope="module")
def space():
    """A complete basis of 3×8×12 images, K = D = 288."""
    return pmae.fit_space(crops())


@pytest.fixture(scope="module")
def images():
    return unit(crops(), torch.float32)[:12]


def mask_of(space, n=None, seed=3, ratio=0.2):
    return pmae.samplers.ComponentSampler(space.shares, ratio, seed=seed).sample(n)


# --- config -----------------------------------------------------------------------------------------------------------


def test_named_settings_win_over_the_preset_and_the_preset_over_defaults():
    made = pmae.PMAEConfig("vit_t8", heads=6)
    assert (made.heads, made.dim, made.masks_per_batch, made.mlp_ratio) == (6, 192, 4, 4.0)


@pytest.mark.parametrize(
    "made",
    [*(pmae.PMAEConfig(name) for name in PRESETS), config(ratio=(0.1, 0.9)), config(masks_per_batch="sample")],
    ids=str,
)
def test_a_config_comes_back_from_yaml(made):
    assert pmae.PMAEConfig.from_dict(yaml.safe_load(yaml.safe_dump(made.to_dict()))) == made


def test_paper_preset_is_what_the_released_code_ran():
    paper, ours = pmae.PMAEConfig("vit_t8_paper"), pmae.PMAEConfig("vit_t8")
    assert (paper.heads, paper.rule, paper.reduction, paper.residual, paper.masks_per_batch) == (
        12,
        "paper",
        "count",
        "drop",
        1,
    )
    assert (ours.heads, ours.rule, ours.reduction, ours.residual, ours.masks_per_batch) == (
        3,
        "unbiased",
        "variance",
        "keep",
        4,
    )
    network = Network(paper.for_images((3, 32, 32), 0.15), (3, 32, 32))
    blocks = [sum(p.numel() for p in part.blocks.parameters()) for part in (network.encoder, network.decoder)]
    # qkv, projection and MLP with biases, and two norms, for width d and 4 d: 12 d² + 13 d
    assert blocks == [12 * (12 * 192**2 + 13 * 192), 8 * (12 * 512**2 + 13 * 512)]
    assert network.decoder.blocks[0].attn.num_heads == 16


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (dict(preset="vit_t9"), "vit_t8_paper"),
        (dict(mask_per_batch=4), "did you mean masks_per_batch"),
        (dict(decoder="mlp"), "'light'"),
        (dict(reduction="mean"), "'variance', 'count'"),
        (dict(masks_per_batch=0), '"sample"'),
        (dict(dim=30), "multiple of heads"),
        (dict(ratio=1.5), r"in \(0, 1\)"),
        (dict(ratio=(0.9, 0.1)), "low ≤ high"),
        (dict(gamma=2), r"in \[0, 1\]"),
        (dict(token_drop=1.0), r"in \[0, 1\)"),
        (dict(token_drop=0.5, decoder="light"), "has to be 0"),
        (dict(token_drop=0.5, backbone="resnet18"), "has to be 0"),
    ],
    ids=str,
)
def test_a_bad_setting_is_an_error_that_says_what_would_be_right(settings, said):
    with pytest.raises(ValueError, match=said):
        config(**settings)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("side", [28, 32, 64, 224])
def test_each_preset_divides_images_of_the_usual_sizes_into_16_patches_or_more(preset, side):
    patch = pmae.PMAEConfig(preset).for_images((3, side, side), 0.15).patch_size
    assert side % patch == 0
    assert (side // patch) ** 2 >= 16
    assert patch <= (16 if "16" in preset else 8)


def test_patch_size_is_the_largest_that_fits():
    for height, width, preferred in [(28, 28, 8), (32, 32, 8), (32, 32, 16), (48, 36, 8), (8, 8, 8), (40, 24, 16)]:
        fitting = [p for p in range(1, preferred + 1) if height % p == width % p == 0 and height * width // p**2 >= 16]
        assert choose_patch_size((1, height, width), preferred) == max(fitting)


@pytest.mark.parametrize(("height", "width"), [(30, 32), (8, 13), (29, 29)])
def test_sizes_that_are_no_multiple_of_the_patch_are_an_error_that_names_the_nearest(height, width):
    chosen = config(patch_size=8).for_images((1, height, width), 0.15)
    below, above = f"{height // 8 * 8}×{width // 8 * 8}", f"{-(-height // 8) * 8}×{-(-width // 8) * 8}"
    with pytest.raises(ShapeError, match=f"images are {height}×{width}.*{below} or {above}.*pad=True"):
        Network(chosen, (1, height, width))


def test_prime_image_sizes_have_no_patch_size():
    with pytest.raises(ShapeError, match="24×24 or 32×32"):
        choose_patch_size((3, 29, 29))


# --- network ----------------------------------------------------------------------------------------------------------


def network_of(shape, **settings):
    return Network(config(**settings).for_images(shape, 0.15), shape).eval()


def test_padding_equals_a_network_on_images_with_zeros_around():
    padded, whole = network_of((3, 10, 13), pad=True), network_of((3, 12, 16))
    whole.load_state_dict(padded.state_dict())
    x = torch.randn(2, 3, 10, 13)
    larger = torch.zeros(2, 3, 12, 16)
    larger[..., :10, :13] = x
    assert torch.allclose(padded(x), whole(larger)[..., :10, :13], atol=1e-6)
    assert torch.allclose(padded.features(x, "cls+avg"), whole.features(larger, "cls+avg"), atol=1e-6)


def test_positions_are_those_of_transformers():
    theirs = ViTMAEEmbeddings(hf_config(image_size=24))
    theirs.initialize_weights()
    assert torch.allclose(positions((6, 6), 32, prefix=1), theirs.position_embeddings, atol=1e-6)


def test_positions_of_a_cell_follow_from_its_column_and_row():
    codes = positions((2, 3), 8, prefix=1)[0]
    assert not codes[0].any()
    row, column = 1, 2
    expected = [f(place / 10_000**power) for place in (column, row) for f in (math.sin, math.cos) for power in (0, 0.5)]
    assert torch.allclose(codes[1 + 3 * row + column], torch.tensor(expected), atol=1e-6)


def test_the_encoder_forgets_the_order_of_kept_patches():
    encoder = network_of((3, 8, 12)).encoder
    x, order = torch.randn(2, 3, 8, 12), torch.tensor([[3, 1, 0, 5, 2, 4], [5, 4, 3, 2, 1, 0]])
    whole, shuffled = encoder.encode(x), encoder.encode(x, order)
    assert torch.allclose(shuffled[:, 0], whole[:, 0], atol=1e-6)
    assert torch.allclose(shuffled[:, 1:], whole[:, 1:].gather(1, order[..., None].expand(-1, -1, 32)), atol=1e-6)


def test_initial_weights_come_from_the_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, same, other = network_of((3, 8, 12)), network_of((3, 8, 12)), network_of((3, 8, 12), seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), same.state_dict().values(), strict=True))
    assert not torch.equal(one.encoder.cls_token, other.encoder.cls_token)


def test_initial_weights_are_those_of_mae():
    network = network_of((3, 8, 12), dim=256, decoder_dim=128)
    qkv, patches = network.encoder.blocks[0].attn.qkv, network.encoder.patch_embed.proj
    for weight, fan_in, fan_out in [
        (qkv.weight, 256, 768),
        (patches.weight, 48, 256),
        (network.decoder.head.weight, 128, 48),
    ]:
        bound = math.sqrt(6 / (fan_in + fan_out))
        assert 0.95 * bound < weight.abs().max() <= bound
    assert not qkv.bias.any()
    assert 0.01 < network.decoder.mask_token.std() < 0.03


@pytest.mark.parametrize("decoder", ["vit", "light", "conv"])
@pytest.mark.parametrize(("shape", "patch"), [((1, 28, 28), 7), ((4, 16, 24), 8), ((13, 12, 6), 3)])
def test_every_decoder_gives_images_and_trains_every_weight(decoder, shape, patch):
    network = network_of(shape, decoder=decoder, patch_size=patch)
    prediction = network(torch.randn(2, *shape))
    assert prediction.shape == (2, *shape)
    prediction.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters() if p.requires_grad)


@pytest.mark.parametrize("decoder", ["vit", "conv"])
def test_dropped_tokens_are_filled_in_at_their_places(decoder):
    network = network_of((3, 8, 12), decoder=decoder)
    x, keep = torch.randn(2, 3, 8, 12), torch.tensor([[0, 2, 5], [4, 1, 3]])
    prediction = network(x, keep)
    order = torch.tensor([2, 0, 1])
    assert torch.allclose(network(x, keep[:, order]), prediction, atol=1e-6)
    hidden = mask_from_noise(torch.ones(2, 6).scatter(1, keep, 0.0), 3)
    other = torch.where(unpatchify(hidden[..., None].expand(-1, -1, 48).float(), (2, 3), 3) > 0, torch.randn_like(x), x)
    assert torch.equal(network(other, keep), prediction)


def test_patches_go_back_to_the_image_and_are_cut_in_reading_order():
    x = torch.randn(2, 3, 6, 9)
    patches = patchify(x, 3)
    assert torch.equal(unpatchify(patches, (2, 3), 3), x)
    assert torch.equal(patches[1, 4].reshape(3, 3, 3), x[1, :, 3:6, 3:6].permute(1, 2, 0))


def test_prime_factors_multiply_to_the_number():
    for number in range(1, 60):
        factors = prime_factors(number)
        assert math.prod(factors) == number
        assert all(f > 1 and all(f % d for d in range(2, f)) for f in factors)


SWIN = dict(embed_dim=16, depths=[1, 1], num_heads=[1, 2], window_size=4)


@pytest.mark.parametrize(
    ("name", "options", "width"),
    [
        ("resnet18", None, 512),
        ("convnext_atto", None, 320),
        ("swin_tiny_patch4_window7_224", SWIN, 32),
        ("vit_tiny_patch16_224", dict(depth=1), 192),
    ],
)
def test_any_timm_backbone_learns_from_a_component_mask(name, options, width):
    space = pmae.fit_space(crops(300, 32, 64), basis="dct")
    model = pmae.PMAE(pmae.PMAEConfig("tiny", backbone=name, backbone_args=options), space)
    x = unit(crops(300, 32, 64), torch.float32)[:4]
    out = model(x, mask_of(space))
    out.loss.backward()
    assert out.prediction.shape == x.shape
    assert sum(p.grad.square().sum() for p in model.network.encoder.parameters() if p.grad is not None) > 0
    model.eval()
    assert model.features(x).shape == (4, width)
    h, w = model.network.encoder.grid
    assert model.features(x, "tokens").shape == (4, h * w, width)
    assert (h * model.network.encoder.stride, w * model.network.encoder.stride) == (32, 64)


def test_average_of_a_convolutional_map_is_what_the_model_gives_its_classifier():
    network = network_of((3, 64, 32), backbone="resnet18")
    x = torch.randn(3, 3, 64, 32)
    assert torch.allclose(network.features(x, "avg"), network.features(x, "tokens").mean(1), atol=1e-5)
    assert torch.equal(network.features(x, "avg"), network.encoder.backbone(x))


def test_features_of_a_pool_are_parts_of_the_tokens():
    network = network_of((3, 8, 12))
    x = torch.randn(2, 3, 8, 12)
    tokens = network.encoder.forward_features(x)
    assert torch.equal(network.features(x, "cls"), tokens[:, 0])
    assert torch.equal(network.features(x, "tokens"), tokens[:, 1:])
    assert torch.allclose(network.features(x, "cls+avg"), torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1))


def test_unknown_backbones_and_pools_are_errors_that_list_what_there_is():
    with pytest.raises(ValueError, match="resnet18"):
        network_of((3, 32, 32), backbone="resnet1")
    with pytest.raises(ValueError, match="cls, avg, cls\\+avg, tokens"):
        network_of((3, 8, 12)).features(torch.zeros(1, 3, 8, 12), "mean")
    with pytest.raises(ValueError, match="no CLS token"):
        network_of((3, 32, 32), backbone="resnet18").features(torch.zeros(1, 3, 32, 32), "cls")


# --- PMAE -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [None, 3, 12], ids=["shared", "slices", "per image"])
def test_hidden_coefficients_do_not_reach_the_network(space, images, n):
    model = pmae.PMAE(config(), space).eval()
    x, mask = space.standardize(images), mask_of(space, n)
    full = mask if n is None else torch.cat([m.expand(12 // n, -1) for m in mask])
    noise = 3 * torch.randn(12, space.n_groups, generator=torch.Generator().manual_seed(0))
    other = x + space.synthesis(noise * full)
    first, second = model(x, mask, standardized=True), model(other, mask, standardized=True)
    assert torch.allclose(second.visible, first.visible, atol=1e-5 * float(x.flatten(1).norm(dim=1).max()))
    encoded = [model.network.encoder.encode(out.visible) for out in (first, second)]
    assert torch.allclose(*encoded, atol=1e-4)
    assert abs(second.loss - first.loss) > 0.1 * first.loss  # while the target did change


def test_loss_of_slices_is_the_mean_of_the_losses_with_each_mask(space, images):
    model = pmae.PMAE(config(), space).eval()
    masks = mask_of(space, 5)
    out = model(images, masks)
    parts = [model(part, m) for part, m in zip(images.tensor_split(5), masks, strict=True)]
    sizes = np.array([len(part) for part in images.tensor_split(5)])
    assert sizes.tolist() == [3, 3, 2, 2, 2]
    for name in ("loss", "fvu"):
        assert getattr(out, name).item() == pytest.approx(
            np.dot(sizes, [getattr(p, name).item() for p in parts]) / 12, rel=1e-5
        )
    assert torch.allclose(out.prediction, torch.cat([p.prediction for p in parts]), atol=1e-5)
    assert out.masked_share == pytest.approx(float((masks.double() @ space.shares).mean()))


def test_loss_of_a_mask_per_image_is_the_mean_over_images(space, images):
    model = pmae.PMAE(config(gamma=0.5), space).eval()
    masks = mask_of(space, 12)
    alone = [model(images[i : i + 1], masks[i]) for i in range(12)]
    out = model(images, masks)
    assert float(out.loss) == pytest.approx(np.mean([float(o.loss) for o in alone]), rel=1e-4)
    assert float(out.fvu) == pytest.approx(np.mean([float(o.fvu) for o in alone]), rel=1e-4)


def test_a_model_that_predicts_zero_leaves_all_variance_unexplained(space):
    images = unit(crops(), torch.float32)
    model = silent(pmae.PMAE(config(gamma=1.0), space))
    for mask in mask_of(space, 4):
        out = model(images, mask)
        assert float(out.loss) == pytest.approx(1, abs=1e-4)
        assert float(out.fvu) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (pmae.PMAE, dict()),
        (pmae.PMAE, dict(token_drop=0.5)),
        (pmae.PMAE, dict(decoder="conv", token_drop=0.5)),
        (pmae.PMAE, dict(decoder="light")),
        (pmae.PMAE, dict(backbone="convnext_atto", pad=True)),
        (pmae.PixelMAE, dict()),
        (pmae.PixelMAE, dict(ratio=0)),
        (pmae.PixelMAE, dict(decoder="conv")),
    ],
    ids=str,
)
def test_every_weight_that_is_to_be_trained_gets_a_gradient_as_ddp_demands(space, images, method, settings):
    model = method(config(**settings), space)
    model(images).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name
    assert next(model.network.parameters()).grad.any()


def silent(model):
    torch.nn.init.zeros_(model.network.decoder.head.weight)
    return model


@pytest.mark.parametrize(("masks", "shape"), [(1, (288,)), (4, (4, 288)), (20, (12, 288)), ("sample", (12, 288))])
def test_as_many_masks_are_drawn_as_the_config_says_but_no_more_than_images(space, images, masks, shape):
    model = pmae.PMAE(config(masks_per_batch=masks, seed=7), space)
    sequence = pmae.samplers.ComponentSampler(space.shares, 0.15, seed=7)
    for _ in range(2):
        drawn = model(images).mask
        assert tuple(drawn.shape) == shape
        assert torch.equal(drawn, sequence.sample(None if masks == 1 else len(drawn)))


def test_masks_continue_where_the_samplers_state_was_taken(space, images):
    for model in (pmae.PMAE(config(token_drop=0.5), space), pmae.PixelMAE(config(), space)):
        model(images)
        state = copy.deepcopy(model.sampler.state_dict())
        first = [model(images) for _ in range(2)]
        model.sampler.load_state_dict(state)
        second = [model(images) for _ in range(2)]
        assert all(
            torch.equal(a.mask, b.mask) and torch.equal(a.loss, b.loss) for a, b in zip(first, second, strict=True)
        )


def test_image_target_adds_what_the_prediction_has_in_the_visible_subspace(space, images):
    model = pmae.PMAE(config(), space).eval()
    as_image = pmae.PMAE(config(target="image"), space).eval()
    mask = mask_of(space)
    components, image = model(images, mask), as_image(images, mask)
    x = components.prediction.detach()
    outside = (x - space.project(x, mask)).square().flatten(1).sum(1).mean()
    norm = space.total_variance * float(space.shares[mask].sum())
    assert float(image.loss - components.loss) == pytest.approx(float(outside) / norm, rel=1e-4)
    assert torch.equal(image.fvu, components.fvu)


def test_dropping_the_residual_hides_what_lies_outside_the_span():
    few = crops(100)
    space = pmae.fit_space(few)
    x = space.standardize(unit(crops(700), torch.float32)[600:])  # unseen, so not in the span of 99 components
    keep, drop = (pmae.PMAE(config(residual=r), space)(x, mask_of(space), standardized=True) for r in ("keep", "drop"))
    residual = x - space.synthesis(space.analysis(x))
    assert residual.norm() > 0.1 * x.norm()
    assert torch.allclose(keep.visible - drop.visible, residual, atol=1e-4)


@pytest.mark.parametrize("n", [None, 5, 12])
def test_reconstruction_errs_by_the_hidden_coefficients_alone(space, images, n):
    model = pmae.PMAE(config(), space).eval()
    x, mask = space.standardize(images), mask_of(space, n)
    full = (
        mask.expand(12, -1)
        if n is None
        else mask.repeat_interleave(torch.tensor([len(p) for p in x.tensor_split(n)]), 0)
    )
    rebuilt = space.standardize(model.reconstruct(images, mask))
    error = space.analysis(model(images, mask).prediction - x) * full
    assert torch.allclose((rebuilt - x).flatten(1).norm(dim=1), error.norm(dim=1), rtol=1e-4)


def test_token_drop_shows_the_encoder_fewer_patches(space, images):
    model = pmae.PMAE(config(token_drop=0.5), space).eval()
    seen = []
    handle = model.network.encoder.blocks.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[1]))
    first, second = (model(images, mask_of(space), generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    again = model(images, mask_of(space), generator=torch.Generator().manual_seed(0))
    handle.remove()
    assert seen == [1 + 3] * 3  # CLS and half of the 6 patches
    assert torch.equal(first.loss, again.loss)
    assert not torch.equal(first.loss, second.loss)


def test_bfloat16_does_not_touch_what_is_visible(space, images):
    model = pmae.PMAE(config(), space).eval()
    exact = model(images, mask_of(space))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(images, mask_of(space))
    assert torch.equal(rounded.visible, exact.visible)
    assert rounded.loss.dtype == torch.float32
    assert 0 < abs(float(rounded.loss - exact.loss)) < 0.05 * float(exact.loss)


def test_gathering_into_buckets_changes_nothing(space, images):
    model = pmae.PMAE(config(), space).eval()
    exact = model(images, mask_of(space, 4))
    model.bucketed = True
    padded = model(images, mask_of(space, 4))
    assert torch.allclose(padded.loss, exact.loss)
    assert torch.allclose(padded.visible, exact.visible, atol=1e-5)


@pytest.mark.parametrize("method", [pmae.PMAE, pmae.PixelMAE])
def test_wrong_images_and_masks_are_errors_that_name_the_right_shape(space, images, method):
    model = method(config(), space)
    for given in (images[:, :1], images[0], images.transpose(2, 3)):
        with pytest.raises(ShapeError, match=r"\(B, 3, 8, 12\)"):
            model(given)
    with pytest.raises(DataError, match="/255"):
        model((images * 255).byte())
    length = 288 if method is pmae.PMAE else 6
    for mask in (torch.zeros(length), torch.ones(2, length + 1) > 0, torch.ones(13, length) > 0):
        with pytest.raises(ShapeError, match=rf"\({length},\)"):
            model(images, mask)


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_any_number_of_channels_works(channels):
    stack = np.random.default_rng(0).integers(0, 256, (60, channels, 8, 12), np.uint8)
    space = pmae.fit_space(stack)
    for method in (pmae.PMAE, pmae.PixelMAE):
        out = method(config(), space)(unit(stack, torch.float32)[:5])
        assert out.prediction.shape == (5, channels, 8, 12)
        assert out.loss.isfinite()


# --- MAE --------------------------------------------------------------------------------------------------------------


def hf_config(**settings):
    small = dict(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, image_size=12, patch_size=4,
        num_channels=3, decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
        decoder_intermediate_size=64, layer_norm_eps=1e-6, mask_ratio=0.6,
    )  # fmt: skip
    return ViTMAEConfig(**small | settings)


def copy_weights(theirs, network):
    """transformers' weights into ours, module by module; random ones, so that no norm or bias is trivial."""
    generator = torch.Generator().manual_seed(0)
    for p in theirs.parameters():
        p.data = 0.3 * torch.randn(p.shape, generator=generator)
    encoder, decoder = network.encoder, network.decoder
    embeddings = theirs.vit.embeddings
    encoder.cls_token.data, encoder.pos_embed.data = embeddings.cls_token.data, embeddings.position_embeddings.data
    encoder.patch_embed.proj.load_state_dict(embeddings.patch_embeddings.projection.state_dict())
    encoder.norm.load_state_dict(theirs.vit.layernorm.state_dict())
    decoder.embed.load_state_dict(theirs.decoder.decoder_embed.state_dict())
    decoder.norm.load_state_dict(theirs.decoder.decoder_norm.state_dict())
    decoder.head.load_state_dict(theirs.decoder.decoder_pred.state_dict())
    decoder.mask_token.data, decoder.pos_embed = theirs.decoder.mask_token.data, theirs.decoder.decoder_pos_embed.data
    pairs = [*zip(encoder.blocks, theirs.vit.layers, strict=True)]
    pairs += zip(decoder.blocks, theirs.decoder.decoder_layers, strict=True)
    for ours, layer in pairs:
        a = layer.attention
        for name in ("weight", "bias"):
            joint = torch.cat([getattr(part, name).data for part in (a.q_proj, a.k_proj, a.v_proj)])
            getattr(ours.attn.qkv, name).data = joint
        ours.attn.proj.load_state_dict(a.o_proj.state_dict())
        ours.norm1.load_state_dict(layer.layernorm_before.state_dict())
        ours.norm2.load_state_dict(layer.layernorm_after.state_dict())
        ours.mlp.fc1.load_state_dict(layer.mlp.fc1.state_dict())
        ours.mlp.fc2.load_state_dict(layer.mlp.fc2.state_dict())


@pytest.mark.parametrize("norm_pix", [False, True])
def test_pixel_mae_equals_that_of_transformers_on_the_same_noise(norm_pix):
    stack = crops(300, 12, 12)
    space, x = pmae.fit_space(stack, basis="patch", patch_size=4), unit(stack, torch.float32)[:10]
    model = pmae.PixelMAE(config(ratio=0.6, norm_pix=norm_pix), space).eval()
    theirs = ViTMAEForPreTraining(hf_config(norm_pix_loss=norm_pix)).eval()
    copy_weights(theirs, model.network)
    noise = torch.rand(10, 9, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(space.standardize(x), noise=noise)
        out = model(x, mask_from_noise(noise, 3))
    assert torch.equal(out.mask, expected.mask.bool())
    assert torch.allclose(patchify(out.prediction, 4), expected.logits, atol=1e-5)
    assert float(out.loss) == pytest.approx(float(expected.loss), abs=1e-5)


def test_patch_space_with_counted_masks_and_dropped_tokens_is_mae():
    stack = crops(300, 12, 12)
    space, x = pmae.fit_space(stack, basis="patch", patch_size=4), unit(stack, torch.float32)[:10]
    model = pmae.PixelMAE(config(ratio=0.6), space).eval()
    theirs = ViTMAEForPreTraining(hf_config()).eval()
    copy_weights(theirs, model.network)
    mask = pmae.samplers.ComponentSampler(space.shares, 0.6, "count", seed=2).sample(10)
    assert set(mask.sum(1).tolist()) == {5}  # round(0.6 · 9)

    hidden = space.hidden(mask, reduction="count")
    x_std = space.standardize(x)
    split = hidden.split(x_std)
    prediction = model.network(split.visible, (~mask).nonzero()[:, 1].view(10, 4))
    loss, _ = hidden.loss(prediction, split.target)

    errors = []
    for image, predicted, row in zip(x_std.numpy(), prediction.detach().numpy(), mask.numpy(), strict=True):
        for patch in np.flatnonzero(row):
            top, left = 4 * (patch // 3), 4 * (patch % 3)
            errors.append(np.square((predicted - image)[:, top : top + 4, left : left + 4]).mean())
    assert float(loss) == pytest.approx(np.mean(errors), abs=1e-5)
    assert float(model(x, mask).loss) == pytest.approx(np.mean(errors), abs=1e-5)
    theirs.config.mask_ratio = 5 / 9  # the noise below makes them hide the same patches
    assert float(theirs(x_std, noise=mask.float()).loss) == pytest.approx(np.mean(errors), abs=1e-5)


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5, 0.6, 0.75, 0.9, 0.999, 1e-6])
@pytest.mark.parametrize("patches", [4, 9, 16, 49])
def test_mae_shows_int_of_the_visible_share_but_never_none_or_all(patches, ratio):
    visible = (~PatchSampler(patches, ratio).sample(20)).sum(1)
    assert set(visible.tolist()) == {min(max(int(patches * (1 - ratio)), 1), patches - 1)}


def test_mae_hides_every_patch_equally_often():
    drawn = PatchSampler(16, 0.75, seed=0).sample(20_000).double()
    assert torch.allclose(
        drawn.mean(0), torch.tensor(0.75, dtype=torch.float64), atol=5 * math.sqrt(0.75 * 0.25 / 20_000)
    )


def test_random_ratios_are_drawn_for_each_batch():
    sampler = PatchSampler(100, (0.1, 0.9), seed=0)
    counts = [set(sampler.sample(6).sum(1).tolist()) for _ in range(300)]
    assert all(len(c) == 1 for c in counts)
    shares = np.array([c.pop() / 100 for c in counts])
    assert abs(shares.mean() - 0.5) < 5 * 0.8 / math.sqrt(12 * 300)
    assert shares.min() < 0.15
    assert shares.max() > 0.85


def test_hidden_patches_do_not_reach_maes_network(space, images):
    model = pmae.PixelMAE(config(ratio=0.5), space).eval()
    out = model(images)
    hidden = unpatchify(out.mask[..., None].expand(-1, -1, 48).float(), (2, 3), 3) > 0
    other = model(torch.where(hidden, torch.rand_like(images), images), out.mask)
    assert torch.equal(other.prediction, out.prediction)
    assert not out.visible[hidden].any()
    assert torch.equal(out.visible[~hidden], space.standardize(images)[~hidden])


def test_maes_unexplained_fraction_is_one_for_zeros_and_zero_for_the_truth(space, images):
    model = silent(pmae.PixelMAE(config(), space))
    out = model(images)
    assert float(out.fvu) == pytest.approx(1)
    hidden = unpatchify(out.mask[..., None].expand(-1, -1, 48).float(), (2, 3), 3) > 0
    assert float(out.loss) == pytest.approx(float(space.standardize(images)[hidden].square().mean()), rel=1e-5)


def test_ratio_zero_is_a_plain_autoencoder(space, images):
    model = pmae.PixelMAE(config(ratio=0), space).eval()
    out = model(images)
    x = space.standardize(images)
    assert not out.mask.any()
    assert torch.equal(out.visible, x)
    assert torch.equal(out.prediction, model.network(x))
    assert float(out.loss) == pytest.approx(float((out.prediction - x).square().mean()), rel=1e-5)
    assert torch.allclose(model.reconstruct(images), space.destandardize(out.prediction))


def test_plain_autoencoders_may_have_any_backbone(images):
    space = pmae.fit_space(crops(60, 32, 32), basis="pixel")
    model = pmae.PixelMAE(pmae.PMAEConfig("tiny", backbone="resnet18", ratio=0.0), space)
    assert model(unit(crops(60, 32, 32), torch.float32)[:4]).loss.isfinite()


@pytest.mark.parametrize("norm_pix", [False, True])
def test_maes_reconstruction_keeps_visible_patches(space, images, norm_pix):
    model = pmae.PixelMAE(config(ratio=0.5, norm_pix=norm_pix), space).eval()
    out = model(images)
    rebuilt = model.reconstruct(images, out.mask)
    for i, row in enumerate(out.mask):
        for patch, hidden in enumerate(row):
            cell = (
                i,
                slice(None),
                slice(4 * (patch // 3), 4 * (patch // 3) + 4),
                slice(4 * (patch % 3), 4 * (patch % 3) + 4),
            )
            if not hidden:
                assert torch.allclose(rebuilt[cell], images[cell], atol=1e-5)
                continue
            predicted, truth = out.prediction[cell], space.standardize(images)[cell]
            expected = predicted * (truth.var() + 1e-6).sqrt() + truth.mean() if norm_pix else predicted
            assert torch.allclose(space.standardize(rebuilt)[cell], expected, atol=1e-4)


def test_mae_refuses_what_cannot_drop_or_fill_patches(space):
    with pytest.raises(ValueError, match="basis='patch'"):
        pmae.PixelMAE(config(backbone="resnet18"), space)
    with pytest.raises(ValueError, match="'vit' or 'conv'"):
        pmae.PixelMAE(config(decoder="light"), space)


def test_methods_have_their_own_usual_ratio(space):
    assert pmae.PMAE(config(), space).config.ratio == 0.15
    assert pmae.PixelMAE(config(), space).config.ratio == 0.75
    with pytest.raises(ValueError, match="between 0 and 1"):
        pmae.PMAE(config(ratio=0), space)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def models(space):
    return [
        pmae.PMAE(config(ratio=(0.1, 0.3)), space).eval(),
        pmae.PixelMAE(config(), space).eval(),
        pmae.PMAE(config(backbone="resnet18", backbone_args={"output_stride": 8}, pad=True), space).eval(),
    ]


def test_a_model_comes_back_from_its_folder(models, images, tmp_path):
    for model in models:
        model.save_pretrained(tmp_path / "run", {"train": {"epochs": 3}})
        back = pmae.load(tmp_path / "run")
        assert type(back) is type(model)
        assert back.config == model.config
        assert not back.training
        assert torch.equal(back.features(images), model.features(images))
        mask = model(images).mask
        assert torch.equal(back(images, mask).loss, model(images, mask).loss)
        assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["train"] == {"epochs": 3}


def test_weights_of_another_space_are_refused(models, tmp_path):
    models[0].save_pretrained(tmp_path)
    pmae.fit_space(crops(seed=1)).save(tmp_path / "space.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors was trained in space"):
        pmae.load(tmp_path)


def test_saving_into_the_folder_of_another_model_replaces_its_space(models, images, tmp_path):
    other = pmae.PMAE(config(), pmae.fit_space(crops(seed=1)))
    for model in (models[0], other, models[1], models[0]):
        model.save_pretrained(tmp_path)
        assert torch.equal(pmae.load(tmp_path).features(images), model.eval().features(images))


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors", "space.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut"])
def test_missing_and_damaged_files_are_named(models, tmp_path, name, damage):
    models[0].save_pretrained(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    if damage != "missing":
        (tmp_path / name).write_bytes(b"" if damage == "empty" else content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=name):
        pmae.load(tmp_path)


def test_weights_that_do_not_fit_the_config_are_refused(models, tmp_path):
    models[0].save_pretrained(tmp_path)
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("depth: 2", "depth: 3", 1))
    with pytest.raises(CheckpointError, match=r"does not fit config\.yaml: .*blocks\.2"):
        pmae.load(tmp_path)


def test_an_interrupted_save_leaves_the_old_model(models, images, tmp_path, monkeypatch):
    models[0].save_pretrained(tmp_path)

    def stop(path, tensors, metadata):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("pmae.models.pretrained.write_tensors", stop)
    trained = copy.deepcopy(models[0])
    torch.nn.init.ones_(trained.network.encoder.cls_token)
    with pytest.raises(OSError, match="no space"):
        trained.save_pretrained(tmp_path)
    assert torch.equal(pmae.load(tmp_path).features(images), models[0].features(images))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml", "model.safetensors", "space.safetensors"]


def test_replacing_a_setting_of_a_decided_config_keeps_the_rest(space):
    decided = pmae.PMAE(config(), space).config
    assert replace(decided, ratio=0.3).to_dict() == decided.to_dict() | {"ratio": 0.3}


def test_images_off_the_scale_are_refused():
    space = pmae.fit_space(crops(80))
    images = unit(crops(8))
    for model in (pmae.PMAE(pmae.PMAEConfig("tiny"), space), pmae.PixelMAE(pmae.PMAEConfig("tiny"), space)):
        for call in (model, model.features, model.reconstruct):
            with pytest.raises(DataError, match="did you forget /255"):
                call(images * 255)
            with pytest.raises(DataError, match="NaN"):
                call(images * float("nan"))
            with pytest.raises(ShapeError, match="at least one"):
                call(images[:0])


def test_features_are_the_class_token_unless_there_is_none():
    space = pmae.fit_space(crops(80))
    x = unit(crops(4))
    model = pmae.PMAE(pmae.PMAEConfig("tiny"), space).eval()
    assert torch.equal(model.features(x), model.features(x, pool="cls"))
    model = pmae.PMAE(pmae.PMAEConfig(backbone="resnet18", pad=True), space).eval()
    assert torch.equal(model.features(x), model.features(x, pool="avg"))
