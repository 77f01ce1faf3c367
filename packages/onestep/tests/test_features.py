import numpy as np
import pytest

from onestep_diffusion.data import load_data
from onestep_diffusion.errors import ConfigError, DataError
from onestep_diffusion.features import accuracy, features, save_classifier, shipped, train_classifier
from onestep_diffusion.metrics import fid


def test_shipped_classifiers_are_as_good_as_their_headers_say():
    data = load_data("digits", held_out=0.2, seed=0)  # the split that they were trained on
    scores = np.asarray(shipped("digits").net(data.to_model(data.held_out)))
    right = float((scores.argmax(1) == data.held_out_labels).mean())
    assert right == pytest.approx(accuracy("digits"), abs=0.006)  # weights are stored in half precision
    assert right > 0.97
    assert accuracy("fashion") > 0.9


def test_features_tell_real_digits_from_noise():
    data = load_data("digits", held_out=0.5, seed=0)
    real, other = features(data.x, "digits"), features(data.held_out, "digits")
    noise = features(np.random.default_rng(0).uniform(0, 16, data.x.shape), "digits")
    assert real.shape == (len(data.x), 64)
    assert fid(real, other) < 0.02 * fid(real, noise)


def test_flattened_images_have_the_same_features_and_pieces_change_nothing():
    images = load_data("digits").x[:530]
    whole = features(images, "digits")
    assert np.array_equal(whole, features(images.reshape(530, 64), "digits"))
    assert np.allclose(whole[512:], features(images[512:], "digits"), atol=1e-5)


def test_raw_features_are_the_numbers():
    rows = np.random.default_rng(0).normal(size=(5, 2, 3))
    assert np.array_equal(features(rows), rows.reshape(5, 6))


@pytest.mark.parametrize(("shape", "name", "error", "says"), [
    ((4, 28, 28, 1), "digits", DataError, r"are for images \(8, 8, 1\)"),
    ((4, 8, 8, 1), "faces", ConfigError, "raw, digits, fashion, inception:FILE"),
    ((4, 8, 8, 1), "inception:nowhere.pth", ConfigError, "there is no file nowhere.pth"),
    ((0, 64), "digits", DataError, "finite"),
])  # fmt: skip
def test_wrong_samples_and_names_are_refused(shape, name, error, says):
    with pytest.raises(error, match=says):
        features(np.zeros(shape), name)


def test_samples_that_are_not_finite_are_refused():
    with pytest.raises(DataError, match="finite"):
        features(np.full((3, 64), np.nan), "digits")


def test_a_classifier_learns_and_goes_through_its_file(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    images = np.where((np.arange(8) < 4)[None, :, None, None] == (labels == 0)[:, None, None, None], 1.0, -1.0)
    images = images + 0.3 * rng.normal(size=(400, 8, 8, 1))
    trained = train_classifier((images[:300], labels[:300]), (images[300:], labels[300:]), steps=60, batch=32)
    assert trained.accuracy > 0.95
    save_classifier(tmp_path / "x.safetensors", trained, seed=0)
    assert (tmp_path / "x.safetensors").stat().st_size < 400_000
