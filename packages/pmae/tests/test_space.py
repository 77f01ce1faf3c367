import warnings

import numpy as np
import pytest
import scipy.fft
import torch
from common import crops, digits, unit
from sklearn.decomposition import PCA

import pmae
from pmae.bases import BASES
from pmae.samplers import ComponentSampler

LINEAR = tuple(BASES)


def fitted(basis, images=None, **options):
    if basis == "truncated":
        options = {"rank": 40, **options}
    return pmae.fit_space(crops() if images is None else images, basis=basis, dtype=torch.float64, **options)


def standardised(space, images=None, n=24):
    return space.standardize(unit(crops() if images is None else images)[:n])


def masks(space, seed=0):
    """A small and a large shared mask, and one for each of 24 images."""
    draw = ComponentSampler(space.shares, min(0.2, 0.5 * float(space.shares.sum())), seed=seed, rule="bernoulli")
    return draw.sample(), ~draw.sample(), draw.sample(24)


# --- bases ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("solver", "images"), [("cov", crops()), ("gram", crops(200)), ("cov", digits())])
def test_pca_equals_that_of_scikit_learn(solver, images):
    space = pmae.fit_space(images, solver=solver, chunk=77, dtype=torch.float64)
    x = space.standardize(unit(images)).flatten(1).numpy()
    ours = space.basis.rows.numpy()
    k = min(len(ours), 60)
    peer = PCA(svd_solver="full").fit(x)
    np.testing.assert_allclose(space.shares[:k], peer.explained_variance_ratio_[:k], rtol=1e-5)
    gaps = -np.diff(peer.explained_variance_[: k + 1])
    clear = (gaps[:-1] > 1e-3) & (gaps[1:] > 1e-3)  # vectors of equal values are not defined
    angles = abs((ours[1:k] * peer.components_[1:k]).sum(1))
    assert clear.sum() > 5
    np.testing.assert_allclose(angles[clear], 1.0, atol=1e-7)
    assert (ours[np.arange(len(ours)), abs(ours).argmax(1)] > 0).all()


def test_fewer_images_than_coordinates_leave_a_basis_that_is_not_square():
    space = pmae.fit_space(np.random.default_rng(0).integers(0, 256, (100, 3, 8, 12), dtype=np.uint8))
    assert space.n_components == 99  # the mean took one
    assert float(space.shares.sum()) == pytest.approx(1)


def test_randomized_components_are_the_leading_ones():
    full, some = fitted("pca"), fitted("truncated", rank=20, solver="randomized", chunk=150)
    np.testing.assert_allclose(some.shares, full.shares[:20], rtol=1e-5)
    assert float(torch.linalg.svdvals(some.basis.rows @ full.basis.rows[:20].T).min()) > 1 - 1e-6
    assert some.total_variance == pytest.approx(full.total_variance)  # so the shares sum to less than 1
    assert 0.5 < float(some.shares.sum()) < 1


def test_components_of_one_pass_capture_nearly_what_the_best_do():
    full, some = fitted("pca"), fitted("truncated", rank=20, solver="incremental", chunk=150)
    assert some.n_components == 20
    x = some.standardize(unit(crops())).flatten(1)
    captured = float((x @ some.basis.rows.T).square().sum() / x.square().sum())
    best = float(full.shares[:20].sum())
    assert best - 0.02 < captured <= best + 1e-12
    assert some.total_variance == pytest.approx(full.total_variance)


def test_a_rank_below_a_quarter_takes_the_same_vectors_as_the_full_solver():
    full, some = fitted("pca"), fitted("pca", rank=10)
    torch.testing.assert_close(some.basis.rows, full.basis.rows[:10], atol=1e-9, rtol=0)


def test_the_basis_is_orthonormal_to_1e_5_in_float32_at_3072_coordinates():
    images = np.random.default_rng(0).integers(0, 256, (300, 3, 32, 32), dtype=np.uint8)
    rows = pmae.fit_space(images).basis.rows
    assert rows.shape == (299, 3072)
    assert float((rows @ rows.T - torch.eye(299)).abs().max()) < 1e-5


@pytest.mark.parametrize("basis", LINEAR)
def test_analysis_and_synthesis_are_orthonormal(basis):
    space = fitted(basis)
    z = torch.randn(5, space.n_components, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(space.analysis(space.synthesis(z)), z, atol=1e-10, rtol=0)
    assert torch.allclose(space.synthesis(z).flatten(1).norm(dim=1), z.norm(dim=1), atol=1e-10)
    v = space.matrix(force=True)
    torch.testing.assert_close(v.T @ v, torch.eye(space.n_components, dtype=torch.float64), atol=1e-10, rtol=0)


@pytest.mark.parametrize("basis", LINEAR)
def test_shares_are_those_of_the_variance_of_the_coefficients(basis):
    space = fitted(basis)
    z = space.analysis(space.standardize(unit(crops())))
    np.testing.assert_allclose(space.variances, z.square().mean(0), rtol=1e-8, atol=1e-10)
    groups = torch.zeros(space.n_groups, dtype=torch.float64)
    for component, variance in enumerate(space.variances):
        groups[component if space.basis.group_of is None else space.basis.group_of[component]] += variance
    np.testing.assert_allclose(space.shares, groups / space.total_variance, rtol=1e-12)
    assert space.total_variance == pytest.approx(float(unit_power(space)))


def unit_power(space):
    return space.standardize(unit(crops())).square().mean(0).sum()


def test_kronecker_pca_of_separable_covariance_is_pca():
    draw = np.random.default_rng(0)
    rows, columns = draw.normal(size=(5, 5)), draw.normal(size=(6, 6))
    x = rows @ draw.normal(size=(60_000, 5, 6)) @ columns.T
    x = 0.5 + x / (2.01 * abs(x).max())
    both = [pmae.fit_space(x, basis, "none", dtype=torch.float64).shares.numpy() for basis in ("pca", "kron")]
    np.testing.assert_allclose(np.sort(both[1])[::-1], both[0], atol=0.01)


def test_cosines_are_those_of_scipy():
    space = fitted("dct", color=False)
    x = standardised(space)
    z = scipy.fft.dctn(x.numpy(), axes=(2, 3), norm="ortho").reshape(len(x), -1)
    np.testing.assert_allclose(space.analysis(x), z, atol=1e-12)
    gray = fitted("dct", digits())
    x = standardised(gray, digits())
    np.testing.assert_allclose(
        gray.analysis(x), scipy.fft.dctn(x.numpy(), axes=(2, 3), norm="ortho").reshape(24, -1), atol=1e-12
    )


def test_wavelets_of_no_level_are_pca():
    one, other = fitted("haar_pca", levels=0), fitted("pca")
    np.testing.assert_allclose(one.shares, other.shares, atol=1e-12)
    two = fitted("haar_pca", levels=2)
    x = standardised(two)
    sums = torch.nn.functional.avg_pool2d(x, 4) * 4  # the coarse band, up to a rotation
    torch.testing.assert_close(two.analysis(x)[:, :18].norm(dim=1), sums.flatten(1).norm(dim=1))


def test_patches_are_groups_of_neighbouring_pixels():
    space = fitted("patch", patch_size=4)
    assert space.n_groups == 6
    mask = torch.zeros(6, dtype=torch.bool)
    mask[4] = True  # second row, second column
    hidden = space.project(torch.ones(1, 3, 8, 12, dtype=torch.float64), mask)
    assert hidden[:, :, 4:, 4:8].eq(1).all()
    assert float(hidden.sum()) == 3 * 16


def test_components_of_blocks_are_one_group_or_one_per_block():
    assert fitted("patch_pca", block_size=4).n_groups == 48
    assert fitted("patch_pca", block_size=4, per_block=True).n_groups == 288


def test_rotations_differ_by_seed_and_repeat():
    a, b, again = (fitted("rotation", seed=seed).basis.rows for seed in (0, 1, 0))
    assert torch.equal(a, again)
    assert not torch.allclose(a, b)


# --- standardisation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["pixel", "channel", "global", "none"])
def test_standardisation_by_numpy(mode):
    x = unit(crops()).numpy()
    space = pmae.fit_space(crops(), standardize=mode, chunk=100, dtype=torch.float64)
    mean = x.mean((0, 2, 3))[:, None, None] if mode == "channel" else x.mean(0)
    std = {
        "pixel": x.std(0), "channel": x.std((0, 2, 3))[:, None, None], "global": np.sqrt(x.var(0).mean()), "none": 1.0,
    }[mode]  # fmt: skip
    ours = space.standardize(unit(crops()))
    np.testing.assert_allclose(ours, (x - mean) / np.maximum(std, 0.01), atol=1e-10)
    np.testing.assert_allclose(space.destandardize(ours), x, atol=1e-12)


def test_nearly_constant_pixels_do_not_blow_up_and_constant_ones_are_zero():
    images = digits().astype(np.float64) / 255
    images[:, 0, 1] = 0.3
    images[:, 0, 2] = np.where(np.arange(len(images)) == 5, 0.01, 0.0)
    space = pmae.fit_space(images, dtype=torch.float64)
    assert float(space.std[0, 0, 2]) == 0.01
    other = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    assert float(space.standardize(other)[0, 0, 0, 1]) == 0.0
    assert float(space.destandardize(other)[0, 0, 0, 1]) == pytest.approx(0.3)


def test_channels_first_and_last_and_data_sets_are_the_same_images():
    images = crops(200)
    spaces = [
        pmae.fit_space(images),
        pmae.fit_space(images.transpose(0, 2, 3, 1), layout="NHWC"),
        pmae.fit_space(torch.from_numpy(images)),
        pmae.fit_space([(image, 0) for image in images]),
        pmae.fit_space(images / 255),
    ]
    for other in spaces[1:]:
        torch.testing.assert_close(other.shares, spaces[0].shares, rtol=1e-6, atol=1e-9)
        assert other.image_shape == (3, 8, 12)


# --- masks, splits, losses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("basis", LINEAR)
def test_identities_of_split_projection_and_loss(basis):
    space = fitted(basis)
    x = standardised(space)
    prediction = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    v = space.matrix(force=True)
    for mask in masks(space):
        chosen = space.basis.spread(mask).expand(24, -1)
        z = x.flatten(1) @ v
        hidden = ((z * chosen) @ v.T).reshape(x.shape)
        split = space.split(x, mask)
        torch.testing.assert_close(split.visible, x - hidden, atol=1e-10, rtol=0)
        torch.testing.assert_close(space.project(x, mask), hidden, atol=1e-10, rtol=0)
        want = z[:, chosen[0]] if mask.ndim == 1 else z * chosen
        torch.testing.assert_close(split.target, want, atol=1e-10, rtol=0)
        dropped = space.split(x, mask, "drop").visible
        outside = x - (z @ v.T).reshape(x.shape)
        torch.testing.assert_close(split.visible - dropped, outside, atol=1e-10, rtol=0)

        error = ((prediction - x).flatten(1) @ v * chosen).square().sum(1)
        for reduction in ("count", "variance"):
            n = chosen.sum(1) if reduction == "count" else (chosen * space.variances).sum(1)
            torch.testing.assert_close(
                space.component_loss(prediction, x, mask, reduction), (error / n).mean(), atol=1e-10, rtol=0
            )
        # ‖V_Mᵀe‖ = ‖P_M e‖, and the composite x_v + P_M x̂ is as far from x as the loss says.
        composite = split.visible + space.project(prediction, mask)
        torch.testing.assert_close((composite - x).flatten(1).square().sum(1), error, atol=1e-10, rtol=1e-10)
        # ‖x̂ − P_M x‖² is the component error and what x̂ does elsewhere.
        rest = (prediction - space.project(prediction, mask)).flatten(1).square().sum(1)
        hid = space.hidden(mask, reduction="count")
        torch.testing.assert_close(
            hid.image_loss(prediction, x), ((error + rest) / chosen.sum(1)).mean(), atol=1e-10, rtol=1e-10
        )


@pytest.mark.parametrize("basis", ["pca", "truncated", "kron", "patch_pca", "patch"])
def test_padded_rows_change_nothing_and_sizes_are_few(basis):
    space = fitted(basis)
    x = standardised(space)
    sizes = set()
    for seed in range(40):
        mask = ComponentSampler(space.shares, (0.05, 0.3), seed=seed).sample()
        exact, padded = space.hidden(mask, gamma=0.5), space.hidden(mask, pad=True, gamma=0.5)
        one, other = exact.split(x), padded.split(x)
        torch.testing.assert_close(one.visible, other.visible, atol=1e-12, rtol=0)
        assert other.target[:, exact.n :].eq(0).all()
        torch.testing.assert_close(exact.loss(x.flip(0), one.target), padded.loss(x.flip(0), other.target))
        sizes.add(padded.size)
    assert len(sizes) <= 8


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_predicting_zero_costs_exactly_one_on_the_fitting_set(gamma):
    space = fitted("pca")
    x = space.standardize(unit(crops()))
    for seed in range(5):
        mask = ComponentSampler(space.shares, 0.2, seed=seed).sample()
        loss = space.component_loss(torch.zeros_like(x), x, mask, gamma=gamma)
        assert float(loss) == pytest.approx(1.0, abs=1e-9)


def test_whitened_targets_weigh_components_by_the_inverse_of_their_share():
    space = fitted("pca")
    mask = torch.zeros(space.n_groups, dtype=torch.bool)
    mask[[0, 30]] = True
    hidden = space.hidden(mask, gamma=1.0, reduction="count")
    wanted = 1 / (space.shares[[0, 30]] + 1e-4)
    torch.testing.assert_close(hidden.weight / hidden.weight[0], wanted / wanted[0])


@pytest.mark.parametrize("basis", LINEAR)
def test_the_gradient_lies_in_the_hidden_subspace(basis):
    space = fitted(basis)
    x = standardised(space)
    for mask in masks(space):
        prediction = x.flip(0).clone().requires_grad_()
        space.component_loss(prediction, x, mask, gamma=0.5).backward()
        torch.testing.assert_close(space.project(prediction.grad, mask), prediction.grad, atol=1e-12, rtol=0)


@pytest.mark.parametrize("basis", LINEAR)
def test_what_is_hidden_does_not_leak_into_what_is_seen(basis):
    space = fitted(basis).float()
    x = standardised(space).float()
    for mask in masks(space):
        change = space.project(torch.randn(x.shape, generator=torch.Generator().manual_seed(2)), mask)
        one, other = space.split(x, mask).visible, space.split(x + 3 * change, mask).visible
        assert float((one - other).norm()) <= 1e-5 * float((x + 3 * change).norm())


def test_an_empty_mask_costs_nothing():
    space = fitted("pca")
    x = standardised(space)
    none = torch.zeros(space.n_groups, dtype=torch.bool)
    for mask in (none, none.expand(24, -1)):
        for reduction in ("count", "variance"):
            assert float(space.component_loss(x.flip(0), x, mask, reduction)) == 0.0
            assert float(space.hidden(mask, reduction=reduction).image_loss(x.flip(0), x)) == 0.0
        torch.testing.assert_close(space.split(x, mask).visible, x)


def test_an_invertible_map_that_is_no_rotation_is_masked_in_its_coefficients():
    class Cubes:
        linear = False
        shares = np.full(288, 1 / 288)

        def analysis(self, x):
            return x.flatten(1) ** 3

        def synthesis(self, z):
            return (z.sign() * z.abs() ** (1 / 3)).reshape(-1, 3, 8, 12)

    space = fitted(Cubes())
    x = standardised(space)
    mask = torch.arange(288) % 3 == 0
    split = space.split(x, mask)
    torch.testing.assert_close(split.visible.flatten(1), x.flatten(1) * ~mask)
    torch.testing.assert_close(split.target, x.flatten(1)[:, mask] ** 3)
    assert float(space.component_loss(x, x, mask)) == 0.0
    with pytest.raises(ValueError, match="custom basis"):
        space.save("x.safetensors")


def test_autocast_does_not_touch_projections():
    space = fitted("pca").float()
    x = standardised(space).float()
    mask = masks(space)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = space.split(x, mask)
    assert inside.visible.dtype == torch.float32
    assert torch.equal(inside.visible, space.split(x, mask).visible)


# --- files and bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("basis", LINEAR)
def test_a_saved_space_is_the_same_space(basis, tmp_path):
    space = fitted(basis).float()
    space.save(tmp_path / "space.safetensors")
    again = pmae.MaskSpace.load(tmp_path / "space.safetensors")
    assert again.fingerprint() == space.fingerprint()
    assert [p.name for p in tmp_path.iterdir()] == ["space.safetensors"]
    x = standardised(space).float()
    assert torch.equal(again.split(x, masks(space)[0]).visible, space.split(x, masks(space)[0]).visible)
    assert again.shares.dtype == torch.float64
    assert torch.equal(again.shares, space.shares)


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "space.safetensors"
    with pytest.raises(FileNotFoundError, match=r"space\.safetensors"):
        pmae.MaskSpace.load(path)
    fitted("kron").save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(pmae.CheckpointError, match=r"space\.safetensors"):
        pmae.MaskSpace.load(path)


def test_float64_shares_survive_a_cast():
    assert fitted("pca").to(torch.bfloat16).shares.dtype == torch.float64


@pytest.mark.parametrize(
    ("images", "error", "says"),
    [
        (np.full((5, 4, 4), np.nan), pmae.DataError, "NaN"),
        (np.full((5, 4, 4), np.inf), pmae.DataError, "infinite"),
        (np.linspace(0, 255, 80).reshape(5, 4, 4), pmae.DataError, "did you forget /255"),
        (np.zeros((1, 4, 4), np.uint8), pmae.DataError, "at least 2"),
        (np.full((5, 4, 4), 7, np.uint8), pmae.DataError, "the same"),
        (np.zeros((5, 4, 4), np.int32), pmae.DataError, "uint8"),
        (np.zeros((5, 4), np.uint8), pmae.ShapeError, "(N, C, H, W)"),
        (np.zeros((5, 0, 4, 4), np.uint8), pmae.ShapeError, "may be 0"),
        ("images.npz", pmae.DataError, "str"),
    ],
)  # fmt: skip
def test_bad_images_are_refused(images, error, says):
    with pytest.raises(error) as found:
        pmae.fit_space(images)
    assert says in str(found.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"basis": "fourier"}, "pca, kron"),
        ({"standardize": "batch"}, "pixel, channel"),
        ({"solver": "qr"}, "cov, gram"),
        ({"layout": "CHWN"}, "NCHW"),
        ({"fit_views": "both"}, "clean, augmented"),
        ({"rank": 0}, "rank=0"),
        ({"levels": 2}, "no option 'levels'"),
        ({"basis": "patch", "patch_size": 5}, "does not divide"),
        ({"basis": "haar_pca", "levels": 4}, "cannot be halved"),
    ],
)
def test_unknown_options_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        pmae.fit_space(crops(), **options)


def test_a_basis_that_does_not_fit_is_refused_before_the_images_are_read():
    class Unread:
        def __len__(self):
            return 200_000

        def __getitem__(self, index):
            assert index == 0, "the images were read"
            return np.zeros((3, 224, 224), np.uint8)

    with pytest.raises(pmae.BasisTooLargeError, match=r"bytes.*kron.*patch_pca.*haar_pca.*truncated") as found:
        pmae.fit_space(Unread())
    assert isinstance(found.value, MemoryError)
    with pytest.raises(pmae.BasisTooLargeError, match="D = 288"):
        pmae.fit_space(crops(), max_bytes=1000)


@pytest.mark.parametrize("shape", [(20, 4, 6, 8), (20, 13, 5, 7), (20, 1, 9, 4), (20, 2, 2)])
def test_any_number_of_channels_and_any_side(shape):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    images[:10] = images[10:]  # duplicates
    images[:, :, 0] = 9  # a constant row
    images.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        space = pmae.fit_space(images)
    assert space.n_components <= 9
    assert torch.isfinite(space.standardize(unit(images, torch.float32))).all()
    strided = pmae.fit_space(np.asfortranarray(images)[:, ::1])
    torch.testing.assert_close(strided.shares, space.shares)


def test_shapes_that_do_not_fit_are_named():
    space = fitted("pca")
    mask = torch.zeros(space.n_groups, dtype=torch.bool)
    for call in (
        lambda: space.split(torch.zeros(2, 3, 12, 8), mask),
        lambda: space.split(torch.zeros(2, 3, 8, 12), mask[1:]),
        lambda: space.split(torch.zeros(2, 3, 8, 12), mask.float()),
        lambda: space.split(torch.zeros(2, 3, 8, 12), mask.expand(3, -1)),
        lambda: space.synthesis(torch.zeros(2, 5)),
        lambda: space.standardize(torch.zeros(2, 3, 8, 11)),
    ):
        with pytest.raises(pmae.ShapeError, match=r"needed|mask"):
            call()
    with pytest.raises(ValueError, match="force=True"):
        fitted("kron").matrix()
    with pytest.raises(ValueError, match="count, variance"):
        space.hidden(mask, reduction="mean")
    with pytest.raises(ValueError, match="gamma"):
        space.hidden(mask, gamma=2)


def test_big_endian_images_are_read():
    images = unit(crops(60))
    swapped = images.numpy().astype(">f8")
    assert torch.allclose(pmae.fit_space(swapped).mean, pmae.fit_space(images).mean, atol=1e-6)


def test_whitened_weights_are_of_shares_of_all_of_the_variance():
    space = fitted("truncated", rank=20, solver="randomized")
    assert space.shares.sum() < 0.999
    x, mask = standardised(space), torch.zeros(20, dtype=torch.bool)
    mask[[2, 11]] = True
    z, share = space.analysis(x)[:, mask].double(), space.shares[mask]
    raw = 1 / (share + 1e-4)
    weight = raw * share.sum() / (raw * share).sum()
    wanted = (weight * z**2).sum(1).mean() / (space.total_variance * share.sum())
    found = space.component_loss(torch.zeros_like(x), x, mask, gamma=1.0)
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize(
    ("basis", "options", "bytes_needed"),
    [
        ("pca", {}, 8 * 192**2),
        ("pca", {"solver": "cov", "n": 50}, 8 * 192**2),
        ("pca", {"solver": "gram", "n": 50}, 4 * 192 * 50),
        ("patch_pca", {"block_size": 4}, 8 * 48**2),
        ("patch_pca", {"block_size": 4, "per_block": True}, 4 * 8 * 48**2),
        ("haar_pca", {"levels": 1}, 8 * 48**2),
        ("rotation", {}, 8 * 192**2),
    ],
)
def test_what_a_dense_basis_needs_is_known_beforehand(basis, options, bytes_needed):
    options = dict(options)
    images = np.random.default_rng(0).integers(0, 256, (options.pop("n", 300), 3, 8, 8), dtype=np.uint8)
    with pytest.raises(pmae.BasisTooLargeError, match=f"{bytes_needed:,} bytes"):
        pmae.fit_space(images, basis, max_bytes=bytes_needed - 1, **options)
    assert pmae.fit_space(images, basis, max_bytes=bytes_needed, **options).dim == 192


def test_an_object_that_is_no_basis_is_refused():
    with pytest.raises(ValueError, match="has no analysis, synthesis, shares"):
        pmae.fit_space(crops(60), object())


def test_files_are_readable_as_others_are_and_devices_stay(tmp_path):
    space = fitted("pca")
    space.save(tmp_path / "space.safetensors")
    (tmp_path / "other").write_text("")
    assert (tmp_path / "space.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
    with pytest.raises(OSError, match="is no file"):
        space.save("/dev/null")
