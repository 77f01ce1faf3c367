"""The search for a ratio: the rule on curves whose bend is known, and that runs are judged as it says."""

import random

import numpy as np
import pytest
import torch
from common import digits

import pmae
from pmae import ratio_search
from pmae.ratio_search import bend, search_ratio

RATIOS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
IMAGES, UNSEEN = digits()[:192], digits()[200:300]
SHORT = {"batch_size": 32, "lr": 3e-3, "device": "cpu"}
SIZES = {"dim": 16, "depth": 1, "heads": 2, "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2, "patch_size": 2}
CONFIG = pmae.PMAEConfig("tiny", **SIZES)


def unit(images):
    return torch.from_numpy(images[:, None] / 255).float()


# --- the rule ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vertex", [0.05, 0.12, 0.4, 0.7])
def test_bend_of_a_parabola_is_its_vertex_in_any_units(vertex):
    curve = np.log(np.array(RATIOS) / vertex) ** 2
    assert bend(RATIOS, 0.1 + 0.1 * curve) == pytest.approx((vertex, 0.1))
    assert bend(RATIOS[::-1], (curve * 7 - 99)[::-1]) == pytest.approx((vertex, 7))


def test_bend_outside_the_ratios_is_the_nearest_of_them():
    for vertex, expected in ((0.001, 0.05), (5.0, 0.7)):
        assert bend(RATIOS, 0.01 * np.log(np.array(RATIOS) / vertex) ** 2)[0] == pytest.approx(expected)


def test_a_run_worse_than_predicting_0_counts_as_one_that_learnt_nothing():
    assert bend(RATIOS, [1.4, 0.9, 0.8, 0.85, 0.9, 3.0]) == bend(RATIOS, [1.0, 0.9, 0.8, 0.85, 0.9, 1.0])


def test_curve_that_does_not_bend_upwards_gives_its_smallest_value():
    ratio, curvature = bend(RATIOS, [0.9, 0.85, 0.97, 0.99, 0.97, 0.9])
    assert ratio == 0.1
    assert curvature < 0
    ratio, curvature = bend(RATIOS, -(np.log(np.array(RATIOS) / 0.2) ** 2))
    assert (ratio, curvature) == (0.05, pytest.approx(-1))


def test_fit_is_that_of_the_normal_equations():
    fvu = np.random.default_rng(0).uniform(0.1, 0.2, 6) + 0.1 * (np.log(RATIOS) + 2) ** 2
    t = np.log(RATIOS)
    x = np.stack([np.ones(6), t, t**2], 1)
    a = np.linalg.solve(x.T @ x, x.T @ fvu)
    assert bend(RATIOS, fvu) == pytest.approx((np.exp(np.clip(-a[1] / (2 * a[2]), t[0], t[-1])), a[2]))


# --- the runs ---------------------------------------------------------------------------------------------------------


def test_search_is_a_run_for_each_ratio_and_the_rule():
    space = pmae.fit_space(IMAGES, std_floor=0.05)
    told = []
    ratios = (0.5, 0.1, 0.2, 0.3)
    found = search_ratio(
        IMAGES, space, CONFIG, ratios, 2, UNSEEN, seed=3, tell=lambda r, f: told.append((r, f)), **SHORT
    )
    assert found.ratios == (0.1, 0.2, 0.3, 0.5)
    assert told == list(zip(found.ratios, found.fvu, strict=True))
    assert (found.ratio, found.curvature) == bend(found.ratios, found.fvu)
    model = pmae.PMAE(pmae.PMAEConfig("tiny", ratio=0.2, seed=3, **SIZES), space)
    pmae.fit(model, IMAGES, 2, seed=3, **SHORT)
    masks = pmae.bands.fixed_masks(model, 3, 400)
    assert found.fvu[1] == pmae.bands.fvu_by_band(model, unit(UNSEEN).repeat(4, 1, 1, 1), masks).total
    assert found.nearest in found.ratios


def test_images_to_judge_by_are_taken_out_of_the_training(monkeypatch):
    seen = []
    monkeypatch.setattr(ratio_search, "fit", lambda model, images, *_, **__: seen.append(images))
    fvu_by_band = ratio_search.fvu_by_band
    monkeypatch.setattr(ratio_search, "fvu_by_band", lambda *given: seen.append(given[1]) or fvu_by_band(*given))
    search_ratio(IMAGES, config=CONFIG, ratios=(0.1, 0.2, 0.3, 0.5), device="cpu")
    trained, judged = seen[0], (seen[1][:19, 0].numpy() * 255).round().astype(np.uint8)
    assert (len(trained), len(judged)) == (173, 19)
    both = np.concatenate([trained, judged]).reshape(192, -1)
    assert np.array_equal(np.sort(both.view("S64").ravel()), np.sort(IMAGES.reshape(192, -1).view("S64").ravel()))


def test_data_sets_and_memory_maps_are_split_without_being_read(tmp_path):
    np.save(tmp_path / "x.npy", IMAGES)
    for images in (np.load(tmp_path / "x.npy", mmap_mode="r"), [(image, 0) for image in IMAGES]):
        kept, judged = ratio_search._apart(images, 192, 0)
        assert type(kept) is torch.utils.data.Subset
        whole = pmae.images.as_source(judged).take(slice(0, 19))
        assert torch.equal(whole, unit(ratio_search._apart(IMAGES, 192, 0)[1]))


def test_search_uses_no_global_random_state():
    before = random.getstate(), torch.get_rng_state().tolist()
    runs = [search_ratio(IMAGES, config=CONFIG, ratios=(0.1, 0.2, 0.3, 0.5), epochs=1, **SHORT) for _ in range(2)]
    assert (random.getstate(), torch.get_rng_state().tolist()) == before
    assert np.array_equal(runs[0].fvu, runs[1].fvu)


@pytest.mark.parametrize("ratios", [(0.1, 0.2, 0.3), (0.1, 0.1, 0.2, 0.3), (0.0, 0.1, 0.2, 0.3), (0.1, 0.2, 0.3, 1.5)])
def test_too_few_ratios_or_impossible_ones_are_refused(ratios):
    with pytest.raises(ValueError, match="at least 4 different shares between 0 and 1"):
        search_ratio(IMAGES, ratios=ratios)
