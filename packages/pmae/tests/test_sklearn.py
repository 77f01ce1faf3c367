"""The scikit-learn transformer: its contract, and that it is the same method as the package's own functions."""

import numpy as np
import pytest
import torch
from common import crops, digits
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

import pmae
from pmae.sklearn import patch_for

FAST = {"n_epochs": 1, "random_state": 0, "device": "cpu"}


@parametrize_with_checks([pmae.PMAETransformer(**FAST)])
def test_scikit_learns_contract(estimator, check):
    check(estimator)


def test_transform_gives_the_features_of_a_model_trained_by_hand():
    images = digits()[:120] / 255
    found = pmae.PMAETransformer(**FAST, ratio=0.2).fit(images)
    seed = int(np.random.RandomState(0).randint(2**31))
    model = pmae.PMAE(
        pmae.PMAEConfig("tiny", ratio=0.2, patch_size=2, seed=seed),
        pmae.fit_space(images.astype(np.float32), seed=seed),
    )
    pmae.fit(model, images, 1, batch_size=64, lr=1e-3, augment="flip", seed=seed, device="cpu")
    x = torch.from_numpy(images[:5, None]).float()
    with torch.no_grad():
        expected = model.eval().features(x, "avg")
    np.testing.assert_allclose(found.transform(images[:5]), expected.numpy(), atol=1e-5)


def test_flat_rows_grids_and_colours_are_the_same_images():
    grids = digits()[:60]
    expected = pmae.PMAETransformer(**FAST).fit_transform(grids)
    flat = pmae.PMAETransformer(**FAST, image_shape=(8, 8)).fit_transform(grids.reshape(60, 64))
    np.testing.assert_array_equal(flat, expected)
    colours = crops(60).transpose(0, 2, 3, 1)  # (N, H, W, C), not square
    found = pmae.PMAETransformer(**FAST).fit(colours)
    assert found.image_shape_ == (3, 8, 12)
    rows = pmae.PMAETransformer(**FAST, image_shape=(8, 12, 3)).fit(colours.reshape(60, -1))
    np.testing.assert_array_equal(rows.transform(colours.reshape(60, -1)), found.transform(colours))


def test_range_of_the_numbers_does_not_matter():
    images = digits()[:60].astype(np.float64)
    expected = pmae.PMAETransformer(**FAST).fit_transform(images / 255)
    np.testing.assert_allclose(pmae.PMAETransformer(**FAST).fit_transform(images - 50), expected, atol=1e-4)


def test_features_of_an_image_do_not_depend_on_its_neighbours():
    images = digits()[:70]
    found = pmae.PMAETransformer(**FAST).fit(images)
    whole = found.transform(images)
    np.testing.assert_allclose(found.transform(images[[69, 3]]), whole[[69, 3]], rtol=0, atol=1e-6)


def test_clone_and_seed_repeat_the_features():
    images = digits()[:60]
    one = pmae.PMAETransformer(**FAST, pool="cls+avg")
    np.testing.assert_array_equal(clone(one).fit_transform(images), one.fit_transform(images))
    assert one.get_feature_names_out().tolist() == [f"pmaetransformer{i}" for i in range(128)]
    other = pmae.PMAETransformer(**{**FAST, "random_state": 1}, pool="cls+avg").fit_transform(images)
    assert not np.allclose(other, one.transform(images), atol=1e-3)


def test_it_is_a_step_of_a_pipeline():
    images, labels = digits()[:200].reshape(200, 64), np.arange(200) % 2
    pipeline = make_pipeline(pmae.PMAETransformer(**FAST, image_shape=(8, 8)), LogisticRegression(max_iter=500))
    assert pipeline.fit(images, labels).predict(images).shape == (200,)


@pytest.mark.parametrize(
    ("images", "options", "said"),
    [
        (np.zeros((1, 8, 8)), {}, "minimum of 2 is required"),
        (np.full((9, 8, 8), np.nan), {}, "NaN"),
        (np.zeros((9, 8, 8)), {}, "all images are the same"),
        (np.ones((9, 1)), {}, "1 feature"),
        (digits()[:9].reshape(9, 64), {"image_shape": (8, 9)}, r"image_shape=\(8, 9\) needs 72"),
        (digits()[:9], {"basis": "fourier"}, "basis='fourier'"),
        (digits()[:9], {"preset": "huge"}, "huge"),
        (digits()[:9], {"ratio": 1.5}, "ratio"),
        (digits()[:9], {"n_epochs": 0}, "epochs=0"),
        (digits()[:9], {"pool": "max"}, "max"),
        (np.zeros((4, 2, 2, 2, 2)), {}, r"\(N, H, W\)"),
    ],
)
def test_what_cannot_be_fitted_is_named(images, options, said):
    with pytest.raises(ValueError, match=said):
        pmae.PMAETransformer(**{**FAST, **options}).fit(images)


def test_images_of_another_shape_are_refused():
    found = pmae.PMAETransformer(**FAST).fit(digits()[:20])
    with pytest.raises(ValueError, match=r"shape \(1, 8, 6\), fitted were \(1, 8, 8\)"):
        found.transform(digits()[:5, :, :6])


def test_patches_divide_both_sides():
    assert [patch_for(*size) for size in ((8, 8), (28, 28), (32, 32), (64, 64), (1, 20), (8, 12), (7, 11))] == [
        2, 7, 8, 8, 1, 2, 1,
    ]  # fmt: skip
