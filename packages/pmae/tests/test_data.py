import gzip
import os
import pickle
import struct
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np
import pytest
from common import crops
from PIL import Image

from pmae import data
from pmae.data import cifar, decode, medmnist, photopatch
from pmae.data.imageset import ImageSet, with_channels, with_size
from pmae.data.registry import ENTRIES
from pmae.errors import DataError, MissingSourceError, ShapeError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PMAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def colours(n, side=8, seed=0):
    """uint8 (n, side, side, 3), no two alike."""
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


# ------------------------------------------------------------------------------------------------ registry
def test_unknown_names_splits_and_options_are_named_with_what_there_is():
    with pytest.raises(ValueError, match=r"unknown name 'mnist'.*photopatch.*npy"):
        data.load("mnist")
    with pytest.raises(ValueError, match=r"digits has no split 'val'.*train, test"):
        data.load("digits", split="val")
    with pytest.raises(ValueError, match="photopatch has no option 'seeds': n, seed"):
        data.load("photopatch", seeds=1)
    with pytest.raises(ValueError, match="digits takes no path"):
        data.load("digits:/somewhere")


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if entry.home != ""])
def test_a_missing_source_says_how_to_obtain_it(name, tmp_path):
    with pytest.raises(MissingSourceError) as caught:
        data.load(f"{name}:{tmp_path / 'nowhere'}")
    message = str(caught.value)
    assert "nowhere" in message
    assert "\n" not in message
    assert name in ("folder", "npz", "npy") or "http" in message


def test_every_row_of_the_listing_says_what_it_is_and_how_to_obtain_it():
    rows = data.listing()
    assert [row["name"] for row in rows] == list(ENTRIES)
    assert all(row["about"] and row["obtain"] for row in rows)
    assert {row["name"] for row in rows if row["where"] == "built in"} == {"photopatch", "digits"}


def test_digits_are_scikit_learns_in_two_parts():
    train, test = data.load("digits"), data.load("digits", "test")
    assert (train.images.shape, test.images.shape) == ((1347, 1, 8, 8), (450, 1, 8, 8))
    assert train.images.dtype == np.uint8
    assert train.images.max() == 255
    assert train.labels.dtype == np.int64
    assert set(test.labels) == set(range(10))


# ---------------------------------------------------------------------------------------------- photopatch
def positions(photo, crop):
    """Columns at which a crop lies in a photograph (3, H, W)."""
    size = crop.shape[-1]
    corners = np.argwhere((photo[:, : -size + 1, : -size + 1] == crop[:, :1, :1]).all(0))
    return [left for top, left in corners if (photo[:, top : top + size, left : left + size] == crop).all()]


@pytest.mark.parametrize("split", ["train", "test"])
def test_photopatch_crops_lie_in_the_columns_of_their_split_and_photograph(split):
    found = data.load("photopatch", split, size=32, n=20, seed=5)
    for crop, label in zip(found.images, found.labels, strict=True):
        photo = photopatch.photograph(found.classes[label])
        lefts = positions(photo, crop)
        assert lefts
        border = 0.6 * photo.shape[2]
        inside = [left + 32 <= border + 0.5 if split == "train" else left >= border - 0.5 for left in lefts]
        assert any(inside)


def test_photopatch_splits_share_no_column():
    columns = np.tile(np.arange(451), (3, 300, 1))
    train, test = photopatch.region(columns, "train"), photopatch.region(columns, "test")
    assert train.max() < test.min()
    assert train.shape[2] + test.shape[2] == 451


def test_photopatch_depends_on_n_size_and_seed_alone_and_is_balanced():
    first, again = (data.load("photopatch", size=64, n=100, seed=3) for _ in range(2))
    assert first.images.shape == (100, 3, 64, 64)
    assert np.array_equal(first.images, again.images)
    assert np.array_equal(first.labels, again.labels)
    assert set(Counter(first.labels.tolist()).values()) == {10}
    assert not np.array_equal(first.images, data.load("photopatch", size=64, n=100, seed=4).images)
    with pytest.raises(ValueError, match="8 to 128"):
        data.load("photopatch", size=500)


# ------------------------------------------------------------------------------------------- Fashion-MNIST
def idx(array):
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()


@pytest.fixture
def fashion(tmp_path):
    images, labels = colours(6)[..., 0], np.arange(6, dtype=np.uint8)
    for stem, array in (("images-idx3", images), ("labels-idx1", labels)):
        (tmp_path / f"train-{stem}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
        (tmp_path / f"t10k-{stem}-ubyte").write_bytes(idx(array[::-1]))
    return tmp_path, images


def test_idx_files_are_read_compressed_or_not(fashion):
    home, images = fashion
    assert np.array_equal(data.load(f"fashion_mnist:{home}").images[:, 0], images)
    test = data.load(f"fashion_mnist:{home}", "test")
    assert np.array_equal(test.images[:, 0], images[::-1])
    assert test.labels.tolist() == [5, 4, 3, 2, 1, 0]


def test_a_cut_off_idx_file_is_a_data_error(fashion):
    home, _ = fashion
    path = home / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"t10k-images.*383 bytes after its head"):
        data.load(f"fashion_mnist:{home}", "test")
    path = home / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="damaged"):
        data.load(f"fashion_mnist:{home}")


@pytest.mark.skipif(not os.path.isdir("/usr/share/datasets/fashion-mnist"), reason="needs dataset-fashion-mnist")
def test_the_debian_package_holds_fashion_mnist():
    train, test = data.load("fashion_mnist"), data.load("fashion_mnist", "test")
    assert (train.images.shape, test.images.shape) == ((60000, 1, 28, 28), (10000, 1, 28, 28))
    assert set(Counter(train.labels.tolist()).values()) == {6000}
    assert abs(train.images.mean() / 255 - 0.2860) < 1e-3  # published mean of the training images


# -------------------------------------------------------------------------------------------------- CIFAR
class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, which is what the distributed files hold."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_bytes(self, held):
        self.write(pickle.BINSTRING + struct.pack("<i", len(held)) + held)

    dispatch[bytes] = save_bytes


def python2(path, held):
    with path.open("wb") as file:
        Python2Pickler(file, protocol=2).dump(held)


@pytest.fixture
def cifar10(tmp_path):
    images = colours(12, 32).transpose(0, 3, 1, 2)
    labels = [i % 10 for i in range(12)]
    home = tmp_path / "cifar-10-batches-py"
    home.mkdir()
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        part = slice(2 * i, 2 * i + 2)
        python2(home / name, {b"data": images[part].reshape(2, -1), b"labels": labels[part]})
        rows = np.concatenate([np.array(labels[part], np.uint8)[:, None], images[part].reshape(2, -1)], 1)
        (tmp_path / f"{name}.bin").write_bytes(rows.tobytes())
    python2(home / "batches.meta", {b"label_names": [b"airplane", b"automobile"]})
    return tmp_path, images, labels


def test_cifar10_is_read_from_python_pickles_and_from_the_binary_version(cifar10):
    home, images, labels = cifar10
    for path in (home / "cifar-10-batches-py", home):  # the second holds the binary files
        train, test = data.load(f"cifar10:{path}"), data.load(f"cifar10:{path}", "test")
        assert np.array_equal(np.concatenate([train.images, test.images]), images)
        assert np.concatenate([train.labels, test.labels]).tolist() == labels
    assert data.load(f"cifar10:{home / 'cifar-10-batches-py'}").classes == ["airplane", "automobile"]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_cifar100_has_fine_and_coarse_labels_in_pickles_of_any_protocol(tmp_path, protocol):
    images = colours(3, 32).transpose(0, 3, 1, 2)
    held = {"data": images.reshape(3, -1), "fine_labels": [7, 99, 0], "coarse_labels": [1, 19, 0]}
    (tmp_path / "train").write_bytes(pickle.dumps(held, protocol=protocol))
    for kind in ("fine", "coarse"):
        found = data.load(f"cifar100:{tmp_path}", kind=kind)
        assert np.array_equal(found.images, images)
        assert found.labels.tolist() == held[f"{kind}_labels"]


def test_the_binary_version_of_cifar100_has_both_labels(tmp_path):
    rows = np.concatenate([np.array([[1, 7], [19, 99]], np.uint8), colours(2, 32).reshape(2, -1)], 1)
    (tmp_path / "train.bin").write_bytes(rows.tobytes())
    assert data.load(f"cifar100:{tmp_path}").labels.tolist() == [7, 99]
    assert data.load(f"cifar100:{tmp_path}", kind="coarse").labels.tolist() == [1, 19]
    (tmp_path / "train.bin").write_bytes(rows.tobytes()[:-1])
    with pytest.raises(DataError, match="cut off"):
        data.load(f"cifar100:{tmp_path}")


class Attack:
    def __init__(self, target, *arguments):
        self.call = target, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("target", [(os.mkdir,), (eval, "1"), (getattr, 1, "real"), (np.load, "x"), (open, "x", "w")])
def test_a_pickle_that_calls_anything_is_refused_and_nothing_is_called(tmp_path, monkeypatch, target):
    monkeypatch.chdir(tmp_path)
    call = target if len(target) > 1 else (*target, str(tmp_path / "made"))
    (tmp_path / "bad").write_bytes(pickle.dumps({"data": Attack(*call)}))
    with pytest.raises(DataError, match="it asks for"):
        cifar.read_pickle(tmp_path / "bad")
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


# ------------------------------------------------------------------------------------- folders of images
@pytest.fixture
def pictures(tmp_path):
    images = colours(6)
    home = tmp_path / "pictures"
    for split, part in (("train", images[:4]), ("test", images[4:])):
        for i, pixels in enumerate(part):
            save(home / split / ("cat" if i % 2 else "ape") / "deep" / f"{i}.png", pixels)
    return home, images.transpose(0, 3, 1, 2)


def test_folders_are_classes_in_the_order_of_their_names(pictures):
    home, images = pictures
    train, test = data.load(f"folder:{home}"), data.load(f"folder:{home}", "test")
    assert train.classes == ["ape", "cat"]
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert np.array_equal(train.images, images[[0, 2, 1, 3]])
    assert np.array_equal(test.images, images[4:])
    with pytest.raises(MissingSourceError, match="no folder val/"):
        data.load(f"folder:{home}", "val")


def test_images_in_one_folder_have_no_labels(pictures, tmp_path):
    images = pictures[1]
    for i in range(3):
        save(tmp_path / "flat" / f"{i}.png", images[i].transpose(1, 2, 0))
    found = data.load(f"folder:{tmp_path / 'flat'}")
    assert found.labels is None
    assert np.array_equal(found.images, images[:3])
    save(tmp_path / "flat" / "ape" / "x.png", images[3].transpose(1, 2, 0))
    with pytest.raises(DataError, match="which is it"):
        data.load(f"folder:{tmp_path / 'flat'}")


def test_files_are_decoded_once_into_a_read_only_memory_map(pictures, monkeypatch):
    home, _ = pictures
    first = data.load(f"folder:{home}")
    monkeypatch.setattr(decode, "decode", lambda *_: pytest.fail("decoded again"))
    again = data.load(f"folder:{home}")
    assert isinstance(again.images, np.memmap)
    assert not again.images.flags.writeable
    assert np.array_equal(first.images, again.images)


def test_of_several_that_ask_at_once_one_decodes(pictures, monkeypatch):
    home, images = pictures
    calls, single = [], decode.decode
    monkeypatch.setattr(decode, "decode", lambda path, *rest: calls.append(path) or single(path, *rest))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: data.load(f"folder:{home}").images, range(4)))
    assert len(calls) == 4
    assert all(np.array_equal(each, images[[0, 2, 1, 3]]) for each in found)


def test_a_changed_file_and_another_size_are_decoded_anew(pictures):
    home, _ = pictures
    before = np.array(data.load(f"folder:{home}").images)
    assert data.load(f"folder:{home}", size=4).images.shape == (4, 3, 4, 4)
    save(home / "train" / "ape" / "deep" / "0.png", 255 - before[0].transpose(1, 2, 0))
    os.utime(home / "train" / "ape" / "deep" / "0.png", (1, 1))
    assert np.array_equal(data.load(f"folder:{home}").images[0], 255 - before[0])


def test_a_cache_that_was_not_finished_is_built_again(pictures, cache):
    home, _ = pictures
    whole = np.array(data.load(f"folder:{home}").images)
    (folder,) = cache.iterdir()
    (folder / "index.json").unlink()
    (folder / "images.bin").write_bytes(b"half")
    assert np.array_equal(data.load(f"folder:{home}").images, whole)


def many(home, n):
    for i in range(n):
        save(home / ("ape" if i < n // 2 else "cat") / f"{i:03}.png", np.full((4, 4, 3), i % 251, np.uint8))


def test_fewer_damaged_files_than_one_in_a_hundred_are_left_out_with_their_labels(tmp_path, cache):
    many(tmp_path / "d", 202)
    (tmp_path / "d" / "ape" / "005.png").write_bytes(b"no image")
    (tmp_path / "d" / "cat" / "150.png").write_bytes((tmp_path / "d" / "cat" / "151.png").read_bytes()[:40])
    found = data.load(f"folder:{tmp_path / 'd'}")
    kept = [i for i in range(202) if i not in (5, 150)]
    assert found.images[:, 0, 0, 0].tolist() == kept
    assert found.labels.tolist() == [int(i >= 101) for i in kept]
    (listed,) = cache.glob("*/bad_files.txt")
    assert [line.split("\t")[0][-7:] for line in listed.read_text().splitlines()] == ["005.png", "150.png"]


def test_one_damaged_file_in_a_hundred_is_an_error_that_names_the_list(tmp_path, cache):
    many(tmp_path / "d", 100)
    (tmp_path / "d" / "ape" / "005.png").write_bytes(b"no image")
    for _ in range(2):  # what failed once is not taken for a cache
        with pytest.raises(DataError, match=r"1 of 100 image files.*bad_files\.txt.*005\.png") as caught:
            data.load(f"folder:{tmp_path / 'd'}")
        assert "\n" not in str(caught.value)
    assert not list(cache.glob("*/images.bin*"))


def test_images_of_several_sizes_need_a_size(tmp_path):
    save(tmp_path / "d" / "a.png", colours(1, 8)[0])
    save(tmp_path / "d" / "b.png", colours(1, 12)[0])
    with pytest.raises(DataError, match=r"b\.png has 12×12 pixels, a\.png 8×8: give a size"):
        data.load(f"folder:{tmp_path / 'd'}")
    assert data.load(f"folder:{tmp_path / 'd'}", size=(6, 8)).images.shape == (2, 3, 6, 8)


def test_grey_sixteen_bit_and_transparent_files_are_decoded(tmp_path):
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    save(tmp_path / "deep" / "a.png", deep)
    assert np.array_equal(data.load(f"folder:{tmp_path / 'deep'}").images[0, 0], deep >> 8)
    clear = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    save(tmp_path / "clear" / "a.png", clear)
    assert data.load(f"folder:{tmp_path / 'clear'}").images.shape == (1, 3, 8, 8)
    assert np.array_equal(data.load(f"folder:{tmp_path / 'clear'}", channels=4).images[0], clear.transpose(2, 0, 1))


def test_grey_and_colour_files_in_one_folder_have_the_channels_of_the_first(tmp_path):
    save(tmp_path / "d" / "a.png", colours(1)[0])
    save(tmp_path / "d" / "b.png", colours(1)[0, ..., 0])
    found = data.load(f"folder:{tmp_path / 'd'}")
    assert found.images.shape == (2, 3, 8, 8)
    assert np.array_equal(found.images[1], np.repeat(colours(1)[..., 0], 3, 0))


def test_tinyimagenet_is_read_with_annotations_or_class_folders(tmp_path):
    images = colours(6, 64)
    for layout in ("annotated", "folders"):
        home = tmp_path / layout
        for i, name in enumerate(["n02", "n01"]):
            save(home / "train" / name / "images" / f"{name}_0.png", images[i])
        if layout == "annotated":
            for i in range(4):
                save(home / "val" / "images" / f"val_{i}.png", images[2 + i])
            lines = [f"val_{i}.png\tn0{1 + i // 2}\t0\t0\t63\t63\n" for i in range(4)]
            (home / "val" / "val_annotations.txt").write_text("".join(lines))
        else:
            for i in range(4):
                save(home / "val" / f"n0{1 + i // 2}" / f"val_{i}.png", images[2 + i])
        (home / "words.txt").write_text("n01\tgoldfish\nn02\tfrog\nn03\tcat\n")
        train, test = data.load(f"tinyimagenet:{home}"), data.load(f"tinyimagenet:{home}", "test")
        assert train.classes == ["goldfish", "frog"]
        assert np.array_equal(train.images, images[[1, 0]].transpose(0, 3, 1, 2))
        assert np.array_equal(test.images, images[2:].transpose(0, 3, 1, 2))
        assert test.labels.tolist() == [0, 0, 1, 1]


# ------------------------------------------------------------------------------------------------- arrays
def test_medmnist_files_are_read_at_the_size_asked_for(tmp_path):
    kinds = {28: colours(4, 28), 64: colours(4, 64)}
    for size, images in kinds.items():
        name = "bloodmnist.npz" if size == 28 else f"bloodmnist_{size}.npz"
        arrays = {f"{split}_images": images for split in ("train", "val", "test")}
        labels = {f"{split}_labels": np.array([[3], [0], [7], [1]], np.uint8) for split in ("train", "val", "test")}
        np.savez_compressed(tmp_path / name, **arrays, **labels)
    found = data.load(f"bloodmnist:{tmp_path}")
    assert np.array_equal(found.images, kinds[28].transpose(0, 3, 1, 2))
    assert found.labels.tolist() == [3, 0, 7, 1]
    assert found.classes[3] == "immature granulocyte"
    assert np.array_equal(data.load(f"bloodmnist:{tmp_path}", "val", size=64).images, kinds[64].transpose(0, 3, 1, 2))
    assert data.load(f"bloodmnist:{tmp_path / 'bloodmnist_64.npz'}").shape == (3, 64, 64)
    assert data.load(f"bloodmnist:{tmp_path}", size=32).shape == (3, 32, 32)


def test_chestmnist_has_several_labels_per_image(tmp_path):
    labels = np.random.default_rng(0).integers(0, 2, (5, 14), dtype=np.uint8)
    np.savez(tmp_path / "chestmnist.npz", train_images=colours(5, 28)[..., 0], train_labels=labels)
    found = data.load(f"chestmnist:{tmp_path}")
    assert found.images.shape == (5, 1, 28, 28)
    assert np.array_equal(found.labels, labels)
    assert len(found.classes) == 14


def test_medmnist_has_as_many_classes_as_its_own_package_says():
    info = pytest.importorskip("medmnist.info").INFO
    assert {name: len(info[name]["label"]) for name in medmnist.CLASSES} == {
        name: len(classes) for name, classes in medmnist.CLASSES.items()
    }


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((2, 20, 30), "auto", (1, 20, 30)),
        ((2, 3, 20, 30), "auto", (3, 20, 30)),
        ((2, 20, 30, 13), "auto", (13, 20, 30)),
        ((2, 8, 9, 3), "NHWC", (3, 8, 9)),
        ((2, 8, 9, 3), "NCHW", (8, 9, 3)),
    ],
)
def test_npz_images_are_channels_first_whatever_the_file_has(tmp_path, shape, layout, expected):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images)
    np.save(tmp_path / "a.npy", images)
    for spec in (f"npz:{tmp_path / 'a.npz'}", f"npy:{tmp_path / 'a.npy'}"):
        found = data.load(spec, layout=layout)
        assert found.shape == expected
        assert found.labels is None
        assert found.images.sum() == images.sum()


def test_which_axis_is_the_channels(tmp_path):
    last, first = (3, 8, 9), None
    for shape, images in (
        ((40, 8, 9, 3), last), ((40, 3, 16, 16), first), ((40, 13, 5, 7), first), ((40, 17, 17, 13), (13, 17, 17)),
        ((40, 4, 9, 3), first), ((40, 1, 20, 20), first), ((40, 20, 20, 1), (1, 20, 20)),
    ):  # fmt: skip
        np.savez(tmp_path / "a.npz", images=np.zeros(shape, np.uint8))
        assert data.load(f"npz:{tmp_path / 'a.npz'}").shape == (images or shape[1:]), shape
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 20, 21, 22), np.uint8))
    with pytest.raises(ShapeError, match="layout=NCHW or NHWC"):
        data.load(f"npz:{tmp_path / 'a.npz'}")
    np.savez(tmp_path / "b.npy.npz", images=np.zeros((2, 3, 8, 8), np.uint8))
    with pytest.raises(DataError, match="holds several arrays: use npz:"):
        data.load(f"npy:{tmp_path / 'b.npy.npz'}")


def test_named_layouts_win(tmp_path):
    for named, shape in (("NHWC", (3, 8, 9)), ("NCHW", (8, 9, 3))):
        np.savez(tmp_path / "b.npz", images=np.zeros((2, 8, 9, 3), np.uint8), layout=named)
        assert data.load(f"npz:{tmp_path / 'b.npz'}").shape == shape
    assert data.load(f"npz:{tmp_path / 'b.npz'}", layout="NHWC").shape == (3, 8, 9)  # what is asked for wins
    np.savez(tmp_path / "b.npz", images=np.zeros((2, 8, 9, 3), np.uint8), layout="HWNC")
    with pytest.raises(DataError, match="layout is 'HWNC': one of auto, NCHW, NHWC"):
        data.load(f"npz:{tmp_path / 'b.npz'}")


def test_floats_stay_floats_and_other_integers_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.linspace(0, 1, 2 * 20 * 20, dtype=np.float32).reshape(2, 20, 20))
    assert data.load(f"npz:{tmp_path / 'a.npz'}").images.dtype == np.float32
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 20, 20), np.uint16))
    with pytest.raises(DataError, match="uint16: uint8, or floats"):
        data.load(f"npz:{tmp_path / 'a.npz'}")


def test_arrays_of_objects_are_never_unpickled(tmp_path):
    held = np.empty(2, dtype=object)
    held[:] = [Attack(os.mkdir, str(tmp_path / "made")), 1]
    np.savez(tmp_path / "a.npz", images=held)
    np.save(tmp_path / "a.npy", held)
    for spec in (f"npz:{tmp_path / 'a.npz'}", f"npy:{tmp_path / 'a.npy'}"):
        with pytest.raises(DataError):
            data.load(spec)
    assert not (tmp_path / "made").exists()


def test_damaged_or_wrong_npz_files_are_data_errors(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(DataError, match=r"a\.npz"):
        data.load(f"npz:{path}")
    np.savez(path, pictures=np.zeros((2, 20, 20), np.uint8))
    with pytest.raises(MissingSourceError, match="no train_images: it holds pictures"):
        data.load(f"npz:{path}")
    np.savez(path, images=np.zeros((2, 20, 20), np.uint8), labels=np.array([0.5, 1]))
    with pytest.raises(DataError, match="2 whole numbers"):
        data.load(f"npz:{path}")


def test_npy_files_are_memory_maps(tmp_path):
    np.save(tmp_path / "a.npy", colours(3, 20))
    assert isinstance(data.load(f"npy:{tmp_path / 'a.npy'}").images.base, np.memmap)


# ---------------------------------------------------------------------------- size, channels, make, check
def test_resizing_is_pillows_bicubic():
    images = crops(5, 24, 36)
    found = with_size(ImageSet(images, None, None, "x"), (10, 48)).images
    expected = [
        Image.fromarray(image.transpose(1, 2, 0)).resize((48, 10), Image.Resampling.BICUBIC) for image in images
    ]
    assert found.dtype == np.uint8
    # Pillow rounds and clips between its two passes.
    assert np.abs(found.astype(int) - np.stack(expected).transpose(0, 3, 1, 2)).mean() < 0.3


def test_grey_is_repeated_and_colours_become_pillows_luma():
    colour = ImageSet(colours(3).transpose(0, 3, 1, 2), None, None, "x")
    grey = with_channels(colour, 1)
    expected = np.stack([Image.fromarray(image).convert("L") for image in colours(3)])
    assert np.abs(grey.images[:, 0].astype(int) - expected).max() <= 1
    assert np.array_equal(with_channels(grey, 4).images[:, 3], grey.images[:, 0])
    with pytest.raises(DataError, match="3 channels, channels=2"):
        with_channels(colour, 2)


@pytest.mark.parametrize("size", [8, 16, 24])
def test_a_made_file_is_the_data_set_it_was_made_of(size, tmp_path):
    counts = data.make("photopatch", tmp_path / "sub" / "p.npz", size=size, n=40, n_test=20, seed=2)
    assert counts == {"train": 40, "test": 20}
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["p.npz"]
    for split, n in (("train", 40), ("test", 20)):
        found = data.load(f"npz:{tmp_path / 'sub' / 'p.npz'}", split)
        wanted = data.load("photopatch", split, size=size, n=n, seed=2)
        assert np.array_equal(found.images, wanted.images)
        assert np.array_equal(found.labels, wanted.labels)
        assert found.classes == wanted.classes
    assert data.check(f"npz:{tmp_path / 'sub' / 'p.npz'}")["splits"]["train"]["shape"] == [3, size, size]


def test_a_file_that_cannot_be_made_leaves_the_old_one(tmp_path, monkeypatch):
    (tmp_path / "p.npz").write_bytes(b"old")

    def full(file, **_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="No space"):
        data.make("digits", tmp_path / "p.npz")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"p.npz": b"old"}
    with pytest.raises(ValueError, match="one of photopatch, digits"):
        data.make("cifar10", tmp_path / "p.npz")


def test_check_counts_and_finds_copies_across_splits(tmp_path):
    images = colours(6, 20)
    images[1], images[5] = images[0], 7
    np.savez(
        tmp_path / "a.npz", train_images=images[:4], train_labels=[0, 0, 1, 1], test_images=images[[0, 4, 5]],
        test_labels=[0, 1, 0], classes=["a", "b", "c"],
    )  # fmt: skip
    found = data.check(f"npz:{tmp_path / 'a.npz'}")
    assert found["splits"]["train"]["labels"] == {"a": 2, "b": 2, "c": 0}
    assert found["splits"]["train"]["mean"] == [round(float(m), 4) for m in images[:4].mean((0, 1, 2)) / 255]
    assert found["splits"]["test"]["n"] == 3
    assert "missing" not in found["splits"]["test"]
    assert found["problems"] == [
        "train: 1 images are copies of another one",
        "train: no image of c",
        "test: 1 images of one value",
        "test: no image of c",
        "1 images of test are also in train",
    ]
