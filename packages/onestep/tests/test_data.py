"""Loaders: what real formats hold comes back, and bad input is one line that names file and remedy."""

import gzip
import io
import json
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

import onestep_diffusion as osd
from onestep_diffusion import data as module
from onestep_diffusion import toy

RNG = np.random.default_rng(0)


def png(shape, mode="L"):
    file = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8), mode=mode).save(file, "PNG")
    return file.getvalue()


def idx(array):
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes())


def test_digits_are_scaled_to_one_and_split_without_overlap():
    data = osd.load_data("digits", held_out=0.2, seed=1)
    assert data.shape == (8, 8, 1)
    assert len(data.x) + len(data.held_out) == 1797
    assert len(data.held_out) == round(0.2 * 1797)
    assert (data.to_model(data.x).min(), data.to_model(data.x).max()) == (-1, 1)
    assert data.classes == 10
    everything = np.concatenate([data.x, data.held_out]).reshape(1797, -1)
    assert len(np.unique(everything, axis=0)) == 1797
    assert data.label_probs == pytest.approx(np.bincount(data.labels) / len(data.labels))
    other = osd.load_data("digits", held_out=0.2, seed=2)
    assert not np.array_equal(data.held_out, other.held_out)
    np.testing.assert_array_equal(data.flatten().x.reshape(data.x.shape), data.x)
    assert data.flatten().image_shape == (8, 8, 1)


def test_one_affine_map_gives_the_pooled_deviation_and_comes_back():
    x = RNG.normal([3, -2, 0], [1, 5, 0.1], (500, 3))
    data = osd.make_dataset(x, held_out=0.0)
    inside = data.to_model(data.x)
    assert np.sqrt(inside.var(0).mean()) == pytest.approx(0.5, rel=1e-5)
    assert inside.mean() == pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose(inside * data.scale + data.shift, x, atol=1e-4)


def test_bytes_map_to_one_whatever_their_spread():
    data = osd.make_dataset(RNG.integers(100, 110, (20, 4, 4, 3), dtype=np.uint8))
    assert data.x.dtype == np.uint8
    assert (data.shift, data.scale) == (127.5, 127.5)


@pytest.mark.parametrize("name", toy.TOYS)
def test_generated_sets_follow_from_seed_and_number(name):
    first, again, other = (osd.load_data(name, rows=300, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.x, again.x)
    assert not np.array_equal(first.x, other.x)
    assert len(first.x) + len(first.held_out) == 300
    assert first.shape == (2,)


def test_mixtures_are_drawn_from_their_exact_law():
    x = toy.TOYS["gmm:25"](4000, 0)
    law = toy.mixture("gmm:25")
    found = osd.mode_stats(x, law)
    assert found["modes"] == 25
    assert found["high_quality"] == pytest.approx(1 - np.exp(-4.5), abs=0.01)  # of a plane Gaussian within 3 deviations
    radii = np.linalg.norm(toy.rings(4000, 0), axis=1)
    assert np.abs(radii - radii.round()).std() < 0.05
    column, row = np.floor(toy.checkerboard(4000, 0)).astype(int).T
    assert ((column + row) % 2 == 0).all()


def test_a_folder_of_images_is_sorted_into_classes_by_its_subfolders(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for index in range(3):
            (tmp_path / label / f"{index}.png").write_bytes(png((6, 6, 3), "RGB"))
    data = osd.load_data(str(tmp_path), held_out=0.0)
    assert data.x.shape == (6, 6, 6, 3)
    np.testing.assert_array_equal(data.labels, [0, 0, 0, 1, 1, 1])


def test_a_zip_of_edm_has_its_labels(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for index in range(3):
            file.writestr(f"00/img{index}.png", png((4, 4)))
        file.writestr("dataset.json", json.dumps({"labels": [[f"00/img{index}.png", 2 - index] for index in range(3)]}))
    data = osd.load_data(str(tmp_path / "a.zip"), held_out=0.0)
    np.testing.assert_array_equal(data.labels, [2, 1, 0])
    assert data.shape == (4, 4, 1)


def test_official_files_keep_their_test_part(tmp_path):
    records = RNG.integers(0, 256, (5, 3073), dtype=np.uint8)
    records[:, 0] %= 10
    records[:4].tofile(tmp_path / "data_batch_1.bin")
    records[4:].tofile(tmp_path / "test_batch.bin")
    with pytest.raises(osd.DataError, match="at least 2 rows"):
        osd.load_data(f"cifar10:{tmp_path}")
    records.tofile(tmp_path / "test_batch.bin")
    data = osd.load_data(f"cifar10:{tmp_path}")
    assert (len(data.x), len(data.held_out)) == (4, 5)
    np.testing.assert_array_equal(data.x[0, 1, 2], records[0, 1:].reshape(3, 32, 32)[:, 1, 2])
    np.testing.assert_array_equal(data.held_out_labels, records[:, 0])

    images, labels = RNG.integers(0, 256, (6, 28, 28), dtype=np.uint8), np.arange(6, dtype=np.uint8)
    for part in ("train", "t10k"):
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx(labels))
    data = osd.load_data(f"fashion-mnist:{tmp_path}")
    assert data.shape == (32, 32, 1)
    np.testing.assert_array_equal(data.x[:, 2:-2, 2:-2, 0], images)


def test_tables_and_arrays_are_read_with_their_labels(tmp_path):
    (tmp_path / "a.csv").write_text("u,label,v\n1,0,2\n3,1,4.5\n\n5,1,6\n")
    data = osd.load_data(str(tmp_path / "a.csv"), held_out=0.0)
    np.testing.assert_array_equal(data.x, [[1, 2], [3, 4.5], [5, 6]])
    np.testing.assert_array_equal(data.labels, [0, 1, 1])
    np.savez(tmp_path / "a.npz", x=np.eye(4), labels=[0, 1, 2, 0])
    assert osd.load_data(str(tmp_path / "a.npz"), held_out=0.0).classes == 3
    np.save(tmp_path / "a.npy", np.eye(5))
    assert osd.load_data(str(tmp_path / "a.npy"), held_out=0.0, rows=3).x.shape == (3, 5)


def test_parquet_is_read_by_pyarrow(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"u": [1.0, 2], "v": [3, 4]}), tmp_path / "a.parquet")
    np.testing.assert_array_equal(osd.load_data(str(tmp_path / "a.parquet"), held_out=0.0).x, [[1, 3], [2, 4]])


FILES = {  # name -> (content or maker of it, words of the message)
    "void.csv": (b"", "void.csv: empty"),
    "word.csv": (b"a,b\n1,2\n3,x\n", "word.csv, line 3: column 'b' has 'x', which is not a number"),
    "ragged.csv": (b"1,2\n3\n", "ragged.csv, line 2: 1 cells where 2 are expected"),
    "hole.csv": (b"a,b\n1,2\n3,nan\n", "row 1 has a value that is not finite"),
    "latin.csv": (b"\xff\xfe\x00,1\n", "latin.csv: not a CSV file in UTF-8"),
    "torn.npy": (b"\x93NUMPY\x01\x00", "torn.npy: not a readable .npy"),
    "torn.npz": (b"PK\x03\x04", "torn.npz: not a readable .npz"),
    "torn.zip": (b"PK\x03\x04", "torn.zip: not a whole zip file"),
    "what.txt": (b"1 2 3", "what.txt: expected a folder, .zip, .npy, .npz, .csv, .parquet"),
    "word.npy": (lambda f: np.save(f, np.array(["a", "b"])), "rows have to be numbers; got <U1"),
    "pickle.npy": (lambda f: np.save(f, np.array([{}, 1], object), allow_pickle=True), "pickle.npy: not a readable"),
    "cube.npy": (
        lambda f: np.save(f, np.zeros((3, 4, 5))),
        r"vectors (n, d) or images (n, h, w, c); got shape (3, 4, 5)",
    ),
    "one.npy": (lambda f: np.save(f, np.ones((1, 5))), "at least 2 rows are needed; got 1"),
    "same.npy": (lambda f: np.save(f, np.ones((9, 5))), "all rows are equal"),
    "inf.npy": (lambda f: np.save(f, np.array([[1.0], [np.inf]])), "row 1 has a value that is not finite"),
    "many.npz": (lambda f: np.savez(f, a=np.eye(2), b=np.eye(2)), "expected one array called x, images or data"),
    "half.npz": (lambda f: np.savez(f, x=np.eye(2), labels=[0, 0.5]), "labels have to be integers from 0"),
    "minus.npz": (lambda f: np.savez(f, x=np.eye(2), labels=[0, -1]), "row 1 has -1"),
    "short.npz": (lambda f: np.savez(f, x=np.eye(2), labels=[0]), r"labels have to be (2,), one a row; got (1,)"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_one_line_with_its_name_and_fault(name, tmp_path):
    content, words = FILES[name]
    path = tmp_path / name
    if callable(content):
        with path.open("wb") as file:
            content(file)
    else:
        path.write_bytes(content)
    with pytest.raises(osd.DataError) as error:
        osd.load_data(str(path))
    text = str(error.value)
    assert words in text
    assert name in text
    assert "\n" not in text


FOLDERS = {
    "nothing": ({}, "no images in it"),
    "sizes": (
        {"a.png": png((4, 4)), "b.png": png((4, 5))},
        "b.png is 5 x 4 but a.png is 4 x 4; all images need one size",
    ),
    "kinds": (
        {"a.png": png((4, 4)), "b.png": png((4, 4, 3), "RGB")},
        "b.png is colour but a.png is grayscale; convert them to one kind",
    ),
    "torn": ({"a.png": png((4, 4))[:60]}, "a.png: not a readable image"),
    "labels": (
        {"a.png": png((4, 4)), "b.png": png((4, 4)), "dataset.json": b'{"labels": [["a.png", 0]]}'},
        "dataset.json has no label for b.png",
    ),
    "index": ({"a.png": png((4, 4)), "dataset.json": b"[1]"}, 'expected {"labels": [[name, integer], …]}'),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_bad_folder_is_one_line_with_the_file_and_the_fault(name, tmp_path):
    files, words = FOLDERS[name]
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    with pytest.raises(osd.DataError) as error:
        osd.load_data(str(tmp_path))
    assert words in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_not_there_is_named_with_what_would_be(tmp_path):
    cases = {
        "digit": r"'digit' is neither a file or folder nor one of digits, mnist5k",
        "cifar10:": "cifar10 needs the folder of its files: cifar10:DIR",
        "cifar10:/nowhere": "/nowhere is not a folder",
        f"cifar10:{tmp_path}": r"no data_batch_\*.bin; expected CIFAR-10's binary version",
        f"imagenet64:{tmp_path}": r"no train_data_batch_\*.npz",
        f"fashion-mnist:{tmp_path}": "train-images-idx3-ubyte.gz is missing",
    }
    for spec, words in cases.items():
        with pytest.raises(osd.DataError, match=words):
            osd.load_data(spec)
    (tmp_path / "data_batch_1.bin").write_bytes(b"abc")
    with pytest.raises(osd.DataError, match=r"data_batch_1.bin: 3 bytes are not whole records of 3073"):
        osd.load_data(f"cifar10:{tmp_path}")
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"\x00\x00\x08\x01\x00\x00\x00\x09ab"))
    with pytest.raises(osd.DataError, match="not an IDX file of unsigned bytes, or cut short"):
        osd.load_data(f"fashion-mnist:{tmp_path}")


def test_held_out_rows_never_leave_fewer_than_two_to_train_on():
    data = osd.make_dataset(np.eye(3), held_out=0.9)
    assert (len(data.x), len(data.held_out)) == (2, 1)
    with pytest.raises(osd.DataError, match="from 0 up to but not 1"):
        osd.make_dataset(np.eye(3), held_out=1.0)


def test_every_known_name_is_offered():
    assert {name.partition(":")[0].partition("[")[0] for name in module.NAMES} >= {
        "digits",
        "rings",
        "cifar10",
        "moons",
    }
