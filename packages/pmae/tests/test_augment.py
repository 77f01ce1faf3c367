import numpy as np
import pytest
import torch
from common import crops
from PIL import Image
from scipy import stats

from pmae.engine.augment import crop_resize, random_boxes, random_views


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def whole_boxes(n, height, width, seed=0):
    """Boxes that are anything from 4 pixels to the image."""
    draw = np.random.default_rng(seed)
    h, w = draw.integers(4, height + 1, n), draw.integers(4, width + 1, n)
    return torch.from_numpy(np.stack([draw.integers(0, height - h + 1), draw.integers(0, width - w + 1), h, w], 1))


def one_by_one(images, boxes, flips, size, resize):
    """Crop, resize and mirror each image by itself."""
    found = []
    for image, (top, left, h, w), flip in zip(images, boxes.tolist(), flips.tolist(), strict=True):
        view = resize(image[:, top : top + h, left : left + w], size)
        found.append(view.flip(-1) if flip else view)
    return torch.stack(found)


def pillow(image, size):
    """Float bicubic of each channel; Pillow knows no other way for floats."""
    planes = [
        Image.fromarray(plane.numpy().copy()).resize(size[::-1], Image.Resampling.BICUBIC) for plane in image.float()
    ]
    return torch.from_numpy(np.stack(planes)).clamp(0, 1)


SIZES = [(20, 28), (40, 14), (9, 7), (4, 50)]  # as large as the images, larger, and smaller by 2 to 5


@pytest.mark.parametrize("size", SIZES)
def test_views_are_pillows_crops_of_the_same_boxes(size):
    images = torch.from_numpy(crops(40, 20, 28))
    boxes, flips = whole_boxes(40, 20, 28), torch.arange(40) % 3 == 0
    found = crop_resize(images, boxes, flips, size)
    torch.testing.assert_close(found, one_by_one(images / 255, boxes, flips, size, pillow), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_views_are_torchvisions_crops_of_the_same_boxes(size):
    pytest.importorskip("pmae.models.torchvision_operators").declare_missing()
    transforms = pytest.importorskip("torchvision.transforms.v2.functional")
    images = torch.from_numpy(crops(40, 20, 28))
    boxes, flips = whole_boxes(40, 20, 28), torch.arange(40) % 3 == 0

    def resize(image, size):
        return transforms.resize(image, list(size), interpolation=3, antialias=True)  # 3: bicubic

    found = crop_resize(images, boxes, flips, size)
    exact = one_by_one(images / 255, boxes, flips, size, resize).clamp(0, 1)
    torch.testing.assert_close(found, exact, atol=1e-5, rtol=0)
    # Of bytes torchvision makes bytes, and clips and rounds between its two passes as well: equal but for that.
    bytewise = one_by_one(images, boxes, flips, size, resize) / 255
    assert (found - bytewise).abs().mean() < 1 / 255


def test_the_whole_image_at_its_own_size_is_the_image():
    images = torch.from_numpy(crops(5, 8, 12))
    boxes = torch.tensor([[0, 0, 8, 12]]).expand(5, 4)
    torch.testing.assert_close(crop_resize(images, boxes), images / 255)
    torch.testing.assert_close(crop_resize(images, boxes, torch.ones(5, dtype=torch.bool)), images.flip(-1) / 255)


def test_boxes_may_have_fractions():
    ramp = (torch.arange(32) / 32).expand(1, 1, 16, 32)  # cubic convolution reproduces what is linear
    found = crop_resize(ramp, torch.tensor([[2.3, 5.7, 9.1, 13.9]]), size=(10, 20))[0, 0]
    at = 5.7 + 13.9 / 20 * (torch.arange(20) + 0.5) - 0.5
    torch.testing.assert_close(found[:, 4:-4], (at / 32).expand(10, 20)[:, 4:-4])


def test_floats_and_bytes_give_the_same_views():
    images = torch.from_numpy(crops(6, 8, 12))
    torch.testing.assert_close(random_views(images, generator()), random_views(images / 255, generator()))


def test_views_stay_between_0_and_1_in_float32_whatever_autocast_says():
    images = (torch.rand(20, 4, 9, 9, generator=generator()) > 0.5).float()
    expected = random_views(images, generator(1))
    with torch.autocast("cpu", torch.bfloat16):
        found = random_views(images, generator(1))
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert (found.min(), found.max()) == (0, 1)


def test_all_randomness_is_the_generators():
    images = torch.from_numpy(crops(6, 8, 12))
    state = torch.get_rng_state()
    first, again, other = (random_views(images, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_each_image_has_a_crop_of_its_own():
    images = torch.from_numpy(crops(1, 8, 12)).expand(20, -1, -1, -1)
    assert len(torch.unique(random_views(images, generator()), dim=0)) == 20


# ------------------------------------------------------------------------------------ the law of the boxes
N = 20_000
ALPHA = 1e-4  # of each test below; the seed is fixed, so they pass always or never


def test_boxes_are_whole_and_lie_in_the_image():
    top, left, h, w = random_boxes(N, (24, 50), generator()).T
    for each in (top, left, h, w):
        assert torch.equal(each, each.round())
    assert min(top.min(), left.min()) == 0
    assert min(h.min(), w.min()) >= 1
    assert (top + h).max() == 24
    assert (left + w).max() == 50


def test_areas_are_uniform_and_so_are_logarithms_of_aspects():
    # Sides of 10,000 pixels: rounding does not show. An area below 0.75 always fits whatever its aspect.
    _, _, h, w = random_boxes(N, (10_000, 10_000), generator(), scale=(0.2, 0.7)).double().T
    area = (h * w / 1e8).numpy()
    assert stats.kstest(area, stats.uniform(0.2, 0.5).cdf).pvalue > ALPHA
    aspect = np.log((w / h).numpy())
    assert stats.kstest(aspect, stats.uniform(np.log(3 / 4), np.log(16 / 9)).cdf).pvalue > ALPHA
    assert abs(stats.pearsonr(area, aspect).statistic) < 4 / np.sqrt(N)


def test_positions_are_uniform_over_all_that_fit():
    top, left, h, w = random_boxes(N, (32, 32), generator(), scale=(0.25, 0.25), ratio=(1, 1)).long().T
    assert (h == 16).all()
    assert (w == 16).all()
    counts = np.bincount((17 * top + left).numpy(), minlength=17 * 17)
    assert stats.chisquare(counts).pvalue > ALPHA


def test_boxes_have_the_law_of_torchvisions():
    pytest.importorskip("pmae.models.torchvision_operators").declare_missing()
    transforms = pytest.importorskip("torchvision.transforms")
    image, scale, ratio = torch.zeros(1, 40, 64), (0.2, 1.0), (3 / 4, 4 / 3)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # torchvision draws from the global generator
        theirs = np.array([transforms.RandomResizedCrop.get_params(image, scale, ratio) for _ in range(N // 5)])
    ours = random_boxes(N // 5, (40, 64), generator(), scale, ratio).numpy()
    for column in range(4):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > ALPHA


def test_the_middle_is_taken_where_no_box_fits():
    boxes = random_boxes(50, (10, 40), generator(), scale=(1, 1), ratio=(1, 1))
    assert torch.equal(boxes, torch.tensor([[0.0, 15, 10, 10]]).expand(50, 4))


def test_half_of_the_views_are_mirrored():
    ramp = (torch.arange(8) / 8).expand(N, 1, 8, 8)
    views = random_views(ramp, generator(), scale=(1, 1), ratio=(1, 1))
    mirrored = int((views[:, 0, 0, 0] > views[:, 0, 0, -1]).sum())
    assert stats.binomtest(mirrored, N).pvalue > ALPHA
    plain = random_views(ramp[:100], generator(), scale=(1, 1), ratio=(1, 1), flip=False)
    torch.testing.assert_close(plain, ramp[:100])


def test_impossible_bounds_are_refused():
    with pytest.raises(ValueError, match=r"scale=\(0, 1\)"):
        random_boxes(1, (8, 8), generator(), scale=(0, 1))
