"""Held-out images during training: what is unexplained of each band of components, and where it is recorded."""

import json
import sys

import numpy as np
import pytest
import torch
from common import crops, digits
from engine_worker import small_model

import pmae
from pmae import bands, plots

IMAGES, UNSEEN = digits()[:192], digits()[200:300]
OPTIONS = {"epochs": 3, "batch_size": 32, "lr": 3e-3, "device": "cpu"}


def unit(images):
    return torch.from_numpy(np.array(images) / 255).float().reshape(len(images), -1, *images.shape[-2:])


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def same_numbers(one, other):
    """Histories without what depends on the clock."""
    clock = ("images_per_s", "seconds")
    return [{k: v for k, v in r.items() if k not in clock} for r in one] == [
        {k: v for k, v in r.items() if k not in clock} for r in other
    ]


# --- the measure ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("basis", ["pca", "dct", "patch", "kron"])
@pytest.mark.parametrize("masks", ["one", "slices", "each"])
def test_bands_are_ratios_of_sums_of_squares_of_hidden_coefficients(basis, masks):
    space = pmae.fit_space(crops(), basis, dtype=torch.float64, **({"patch_size": 4} if basis == "patch" else {}))
    x = space.standardize(unit(crops()[:6]).double())
    guess = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = pmae.samplers.ComponentSampler(space.shares, 0.4, "count").sample(6)
    mask = {"one": drawn[0], "slices": drawn[:3], "each": drawn}[masks]
    edges = (0, 2, 7, 100, space.n_components)
    found = bands.by_band(space, guess, x, mask, edges)

    v = space.matrix(force=True).numpy()
    true, guessed = (a.flatten(1).numpy() @ v for a in (x, guess))
    rows = {"one": [0] * 6, "slices": [0, 0, 1, 1, 2, 2], "each": range(6)}[masks]
    hidden = np.stack([space.basis.spread(drawn[row]).numpy() for row in rows])
    rank = np.argsort(np.argsort(-space.variances.numpy(), kind="stable"))
    error = square = 0.0
    for fvu, low, high in zip(found.fvu, edges, edges[1:], strict=False):
        own = hidden & (rank >= low) & (rank < high)
        error, square = error + ((guessed - true)[own] ** 2).sum(), square + (true[own] ** 2).sum()
        expected = ((guessed - true)[own] ** 2).sum() / (true[own] ** 2).sum() if own.any() else np.nan
        np.testing.assert_allclose(fvu, expected, rtol=1e-9)
    assert found.total == pytest.approx(error / square, rel=1e-9)


def test_predicting_nothing_leaves_1_of_every_band_and_the_image_itself_0():
    space = pmae.fit_space(crops())
    x = space.standardize(unit(crops()[:50]) * 0.5)  # of other variance than the images of the space
    masks = pmae.samplers.ComponentSampler(space.shares, 0.3).sample(50)
    nothing, all_of_it = (bands.by_band(space, p, x, masks) for p in (torch.zeros_like(x), x))
    assert np.allclose(nothing.fvu, 1)
    assert nothing.total == pytest.approx(1)
    assert np.allclose(all_of_it.r2, 1)


def test_a_band_that_is_never_hidden_has_no_value():
    space = pmae.fit_space(crops())
    mask = torch.zeros(space.n_groups, dtype=torch.bool)
    mask[[1, 2, 50]] = True
    x = space.standardize(unit(crops()[:5]))
    found = bands.by_band(space, torch.zeros_like(x), x, mask)
    assert dict(zip(found.names, np.isfinite(found.fvu), strict=True)) == {
        "1": False, "2-3": True, "4-10": False, "11-30": False, "31-100": True, "101-288": False,
    }  # fmt: skip
    assert np.isnan(bands.by_band(space, x, x, ~mask & mask).total)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 10, 53, 64, 3072, 12288])
def test_bands_hold_every_component_once(n):
    edges = bands.band_edges(n)
    assert (edges[0], edges[-1]) == (0, n)
    assert list(edges) == sorted(set(edges))
    assert len(bands.band_names(edges)) == len(edges) - 1
    assert bands.band_names((0, 1, 3, 10)) == ["1", "2-3", "4-10"]


def test_value_of_a_model_is_that_of_its_own_predictions_and_leaves_it_alone():
    model = small_model(token_drop=0.25)
    masks = bands.fixed_masks(model, 3, 7)
    before, generator = model.training, model.sampler.state_dict()
    found = bands.fvu_by_band(model, unit(UNSEEN[:20]), masks)
    assert (model.training, model.sampler.state_dict()) == (before, generator)
    assert found.total == bands.fvu_by_band(model, unit(UNSEEN[:20]), masks).total
    assert torch.equal(masks, bands.fixed_masks(model, 3, 7))
    x = model.space.standardize(unit(UNSEEN[:20]))
    with torch.no_grad():
        out = model.eval()(x, masks, standardized=True, generator=torch.Generator().manual_seed(0))
    expected = bands.by_band(model.space, out.prediction, x, masks)
    np.testing.assert_allclose(found.fvu, expected.fvu, rtol=1e-6)


def test_many_images_go_through_in_parts(monkeypatch):
    model = small_model()
    masks = bands.fixed_masks(model, 0, 32)
    whole = bands.fvu_by_band(model, unit(UNSEEN[:64]), masks)
    monkeypatch.setattr(bands, "AT_ONCE", 16)
    parts = bands.fvu_by_band(model, unit(UNSEEN[:64]), masks)
    np.testing.assert_allclose(parts.fvu, whole.fvu, rtol=1e-5)


def test_bad_requests_are_refused():
    model = small_model()
    masks = bands.fixed_masks(model, 0, 4)
    with pytest.raises(pmae.ShapeError, match="at most one an image"):
        bands.fvu_by_band(model, unit(UNSEEN[:3]), masks)
    with pytest.raises(ValueError, match="ascend from 0 to the 53 components"):
        bands.fvu_by_band(model, unit(UNSEEN[:9]), masks, edges=(0, 5, 5, 53))
    with pytest.raises(pmae.ShapeError, match="predictions have shape"):
        bands.by_band(model.space, torch.zeros(2, 1, 8, 8), torch.zeros(3, 1, 8, 8), masks[0])


# --- in training ------------------------------------------------------------------------------------------------------


def test_looking_at_held_out_images_changes_nothing_of_the_run(tmp_path):
    model, other = small_model(masks_per_batch=4), small_model(masks_per_batch=4)
    with_them = pmae.fit(model, IMAGES, out=tmp_path, heldout=UNSEEN, **OPTIONS)
    without = pmae.fit(other, IMAGES, **OPTIONS)
    assert [r["heldout_fvu"] for r in with_them.history] == [r["fvu"] for r in with_them.bands]
    plain = [{k: v for k, v in r.items() if k != "heldout_fvu"} for r in with_them.history]
    assert same_numbers(plain, without.history)
    assert lines(tmp_path / "bands.jsonl") == with_them.bands
    last = bands.fvu_by_band(model, unit(UNSEEN), bands.fixed_masks(model, 0))
    assert with_them.bands[-1] == {
        "epoch": 3, "step": 18, "fvu": pytest.approx(last.total),
        "bands": {n: pytest.approx(v) for n, v in zip(last.names, last.fvu, strict=True)},
    }  # fmt: skip


def test_looks_are_as_rare_as_asked_for_and_there_is_one_at_the_end():
    looked = pmae.fit(small_model(), IMAGES, heldout=UNSEEN, heldout_every=2, **OPTIONS)
    assert [r["epoch"] for r in looked.bands] == [2, 3]
    assert ["heldout_fvu" in r for r in looked.history] == [False, True, True]


def test_resumed_run_has_the_looks_of_the_run_that_was_not_stopped(tmp_path):
    whole = pmae.fit(small_model(), IMAGES, heldout=UNSEEN, **OPTIONS)
    for stop in (1, 1.5, None):
        last = pmae.fit(small_model(), IMAGES, out=tmp_path, heldout=UNSEEN, stop_after=stop, **OPTIONS)
    assert last.bands == whole.bands
    assert same_numbers(last.history, whole.history)
    assert lines(tmp_path / "bands.jsonl") == whole.bands


def test_at_most_512_images_are_looked_at():
    from pmae.engine.heldout import heldout_of

    found = heldout_of(small_model(), digits(), 1, 0, "NCHW")
    assert found.images.shape == (512, 1, 8, 8)
    assert len(torch.unique(found.images.flatten(1), dim=0)) > 500
    assert found.masks.shape == (32, 53)
    assert heldout_of(small_model(), digits()[:5], 1, 0, "NCHW").masks.shape == (5, 53)


def test_batch_statistics_are_not_those_of_held_out_images():
    space = pmae.fit_space(crops(200, 32, 32))
    model = pmae.PMAE(pmae.PMAEConfig(backbone="resnet18", decoder_dim=16), space)
    before = {name: b.clone() for name, b in model.network.named_buffers()}
    bands.fvu_by_band(model.train(), unit(crops(200, 32, 32)[:4]), bands.fixed_masks(model, 0, 2))
    assert model.training
    assert all(torch.equal(b, before[name]) for name, b in model.network.named_buffers())


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"heldout": UNSEEN[:, :, :6]}, pmae.ShapeError, r"held-out images have shape \(1, 8, 6\)"),
        ({"heldout": UNSEEN / 1.0}, pmae.DataError, "/255"),
        ({"heldout": UNSEEN, "heldout_every": 0}, ValueError, "heldout_every=0"),
        ({"track": "paper"}, ValueError, "track='paper': one of tensorboard"),
    ],
)
def test_what_does_not_work_is_said_before_anything_is_written(given, error, said, tmp_path):
    with pytest.raises(error, match=said):
        pmae.fit(small_model(), IMAGES, out=tmp_path / "run", **OPTIONS, **given)
    assert not (tmp_path / "run").exists()


def test_bands_are_of_components_only():
    with pytest.raises(ValueError, match="which only PMAE hides"):
        pmae.fit(small_model("mae"), IMAGES, heldout=UNSEEN, **OPTIONS)
    with pytest.raises(ValueError, match="needs out, the folder"):
        pmae.fit(small_model(), IMAGES, track="tensorboard", **OPTIONS)


def test_heat_map_has_a_row_for_each_band_and_a_column_for_each_look(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "_write", lambda figure, path: drawn.append(figure))
    records = [{"epoch": e, "bands": {"1": None, "2-3": 0.9 / e, "4-53": 2.0}} for e in (1, 2, 3, 3.5)]
    plots.band_heatmap(records, tmp_path / "x.png")
    axis = drawn[0].axes[0]
    values = np.ma.filled(axis.images[0].get_array(), np.nan)
    np.testing.assert_allclose(values, [[np.nan] * 4, [1 - 0.9 / e for e in (1, 2, 3, 3.5)], [-1] * 4])
    assert [t.get_text() for t in axis.get_yticklabels()] == ["1", "2-3", "4-53"]
    assert [t.get_text() for t in axis.get_xticklabels()] == ["1", "2", "3", "3.5"]


# --- tensorboard ------------------------------------------------------------------------------------------------------


def test_tensorboard_has_the_records_once_also_after_a_resume(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    given = {"out": tmp_path, "heldout": UNSEEN, "heldout_every": 2, "track": "tensorboard", **OPTIONS}
    pmae.fit(small_model(), IMAGES, **given, stop_after=1)
    last = pmae.fit(small_model(), IMAGES, **given)
    found = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("loss", "fvu", "masked_share", "lr", "heldout_fvu"):
        expected = [(r["step"], r[name]) for r in last.history if name in r]
        assert [e.step for e in found.Scalars(name)] == [step for step, _ in expected]
        assert [e.value for e in found.Scalars(name)] == pytest.approx([value for _, value in expected], rel=1e-6)
    r2 = [1 - r["bands"]["4-10"] for r in last.bands]
    assert [e.value for e in found.Scalars("heldout R2/4-10")] == pytest.approx(r2, abs=1e-6)


def test_missing_tensorboard_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match="tensorboard"):
        pmae.fit(small_model(), IMAGES, out=tmp_path / "run", track="tensorboard", **OPTIONS)
    assert not (tmp_path / "run").exists()
