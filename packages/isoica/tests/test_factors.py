import numpy as np
import pytest

from isoica.datasets import load_dsprites, load_shapes3d
from isoica.errors import IsoICAError


@pytest.fixture
def sprites(tmp_path):
    rng = np.random.default_rng(0)
    latents = np.column_stack([np.ones(30), np.repeat([1, 2, 3], 10), rng.uniform(size=(30, 4))])
    np.savez(tmp_path / "d.npz", imgs=rng.integers(0, 2, (30, 64, 64), dtype=np.uint8), latents_values=latents)
    return tmp_path / "d.npz", latents


def test_a_part_of_one_shape_is_read_with_its_factors(sprites):
    path, latents = sprites
    data = load_dsprites(path, n=4, shape=2, random_state=0)
    assert data.images.shape == (4, 64, 64)
    assert data.names == ["scale", "orientation", "x", "y"]
    assert all(any(np.array_equal(row, known) for known in latents[10:20, 2:]) for row in data.S)
    assert len(load_dsprites(path, n=None, shape=3).S) == 10


def test_shapes_are_read_from_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py")
    labels = np.random.default_rng(0).uniform(size=(12, 6))
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["images"], file["labels"] = np.full((12, 64, 64, 3), 255, np.uint8), labels
    data = load_shapes3d(tmp_path / "s.h5", n=5, random_state=0)
    assert data.images.shape == (5, 64, 64, 3)
    assert data.images.max() == 1
    assert len(data.names) == data.S.shape[1] == 6


def test_other_files_are_refused_by_name(sprites, tmp_path):
    path, _ = sprites
    np.savez(tmp_path / "x.npz", a=1)
    (tmp_path / "t.npz").write_text("no")
    for call, words in (
        (lambda: load_dsprites(tmp_path / "no.npz"), "does not exist"),
        (lambda: load_dsprites(tmp_path / "x.npz"), "it has no imgs, latents_values"),
        (lambda: load_dsprites(tmp_path / "t.npz"), "cannot be read"),
        (lambda: load_dsprites(path, shape=4), "shape=4 is not in"),
        (lambda: load_dsprites(path, n=0), "n=0"),
    ):
        with pytest.raises(IsoICAError, match=words):
            call()
