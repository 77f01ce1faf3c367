import numpy as np
import pytest
import torch
from common import crops, digits

import pmae


def test_principal_components_of_the_images_are_not_redundant_and_patches_are():
    pca = pmae.linear_redundancy(digits(), pmae.fit_space(digits()), 0.2)
    patch = pmae.linear_redundancy(digits(), pmae.fit_space(digits(), "patch", patch_size=2), 0.5)
    assert pca.fvu >= 0.999
    assert pca.fvu_heldout >= 0.98
    assert patch.fvu < 0.7
    assert patch.fvu_heldout < 0.7
    assert len(pca.per_mask) == 8


@pytest.mark.parametrize("basis", ["pca", "patch", "dct", "truncated"])
def test_in_sample_value_is_that_of_least_squares_on_visible_images(basis):
    options = {"rank": 30} if basis == "truncated" else {"patch_size": 4} if basis == "patch" else {}
    space = pmae.fit_space(crops(), basis, dtype=torch.float64, **options)
    report = pmae.linear_redundancy(crops(), space, 0.3, n_masks=2, ridge=0.0 if basis != "pca" else 1e-9, seed=5)
    rule = "count" if basis == "patch" else "unbiased"
    masks = pmae.samplers.ComponentSampler(space.shares, 0.3, rule, seed=5).sample(2)
    x = space.standardize(torch.from_numpy(np.array(crops())).double() / 255)
    for mask, value in zip(masks, report.per_mask, strict=True):
        visible, target = space.split(x, mask)
        fit = torch.linalg.lstsq(visible.flatten(1), target, driver="gelsd").solution
        left = (target - visible.flatten(1) @ fit).square().sum() / target.square().sum()
        assert value == pytest.approx(float(left), abs=1e-6)


def test_held_out_value_equals_an_explicit_ridge_regression_either_way():
    for images in (crops(600), crops(300)):  # more and fewer images than visible coordinates
        space = pmae.fit_space(images, "pixel", dtype=torch.float64)
        report = pmae.linear_redundancy(images, space, 0.3, n_masks=1, seed=2)
        mask = pmae.samplers.ComponentSampler(space.shares, 0.3, "count", seed=2).sample().numpy()
        z = space.standardize(torch.from_numpy(np.array(images)).double() / 255).flatten(1).numpy()
        z = z[np.random.default_rng(2).permutation(len(z))]
        fit, choose, score = np.split(z, [len(z) // 2, len(z) * 3 // 4])
        gram = fit[:, ~mask].T @ fit[:, ~mask]
        errors = []
        for power in range(-4, 3):
            ridge = 10.0**power * np.trace(gram) / len(gram) * np.eye(len(gram))
            weights = np.linalg.solve(gram + ridge, fit[:, ~mask].T @ fit[:, mask])
            errors.append([np.square(p[:, mask] - p[:, ~mask] @ weights).sum() for p in (choose, score)])
        best = min(errors)
        assert report.fvu_heldout == pytest.approx(best[1] / np.square(score[:, mask]).sum(), rel=1e-6)


def test_large_images_are_made_smaller_and_said_so():
    images = np.repeat(np.repeat(crops(60), 8, 2), 8, 3)  # 64 x 96
    space = pmae.fit_space(images, "patch", patch_size=16)
    with pytest.warns(UserWarning, match=r"64×96 are resized to 21×32|64×96 are resized to"):
        report = pmae.linear_redundancy(images, space, 0.5, n_masks=2)
    assert 0 <= report.fvu <= 1


def test_bad_requests_are_refused():
    space = pmae.fit_space(digits())
    with pytest.raises(pmae.ShapeError, match="the space is for"):
        pmae.linear_redundancy(crops(), space, 0.2)
    with pytest.raises(ValueError, match="n_masks"):
        pmae.linear_redundancy(digits(), space, 0.2, n_masks=0)
    with pytest.raises(ValueError, match="ratio"):
        pmae.linear_redundancy(digits(), space, 1.5)
    with pytest.raises(ValueError, match="at least 8"):
        pmae.linear_redundancy(digits()[:4], space, 0.2)
