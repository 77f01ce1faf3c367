import os
import subprocess
import sys

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from isoica import IsometricAutoencoder, NearIsometricICA, autoencoder
from isoica.datasets import make_images, make_near_isometric
from isoica.errors import IsoICAError, ModelFileError
from isoica.metrics import mcc
from isoica.models import load_model

TINY = {"hidden": (16, 16), "max_steps": 200, "batch_size": 64, "random_state": 0}


@pytest.fixture(scope="module")
def data():
    return make_near_isometric(400, 2, theta=0.05, random_state=0)


@pytest.fixture(scope="module")
def model(data):
    return IsometricAutoencoder(2, **TINY).fit(data.X)


def test_derivatives_are_those_of_the_maps(model, data):
    x, step = data.X[:5], 1e-2
    J = model.jacobian(x)
    for axis in range(x.shape[1]):
        move = step * np.eye(x.shape[1])[axis]
        by_differences = (model.transform(x + move) - model.transform(x - move)) / (2 * step)
        np.testing.assert_allclose(J[:, :, axis], by_differences, atol=5e-3)
    np.testing.assert_array_equal(model.decode(model.embedding_), model.inverse_transform(model.embedding_))
    np.testing.assert_allclose(model.embedding_, model.transform(data.X))


def test_the_penalty_holds_the_decoder_near_isometries(data, model):
    plain = IsometricAutoencoder(2, lambda_dec=0.0, lambda_enc=0.0, warm_start_embedding=None, **TINY).fit(data.X)
    assert model.theta(data.X).value < 0.3
    assert model.theta(data.X).value < plain.theta(data.X).value / 2
    assert mcc(data.S, NearIsometricICA(2, embedding=clone(model)).fit_transform(data.X)) > 0.98


def test_a_scale_is_learnt_where_it_may_be(data):
    found = IsometricAutoencoder(2, scale="fit", **TINY).fit(data.X)
    assert found.scale_ != 1.0
    assert found.theta(data.X, scale="fit").value <= found.theta(data.X).value


def test_a_saved_model_gives_the_same_codes(model, data, tmp_path):
    model.save(tmp_path / "m.npz")
    again = load_model(tmp_path / "m.npz")
    np.testing.assert_array_equal(again.transform(data.X), model.transform(data.X))
    assert again.get_params() == model.get_params()
    whole = NearIsometricICA(2, embedding=model, random_state=0).fit(data.X)
    whole.save(tmp_path / "whole.npz")
    np.testing.assert_array_equal(load_model(tmp_path / "whole.npz").transform(data.X), whole.transform(data.X))
    (tmp_path / "m.npz").write_bytes(b"not a model")
    with pytest.raises(ModelFileError, match="is not a saved model"):
        IsometricAutoencoder.load(tmp_path / "m.npz")


def test_a_stopped_training_goes_on_bit_for_bit(data, model, tmp_path, monkeypatch):
    run, calls = autoencoder._run, []

    def interrupted(*args, **settings):
        calls.append(settings["length"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(*args, **settings)

    monkeypatch.setattr(autoencoder, "_run", interrupted)
    with pytest.warns(UserWarning, match="interrupted at step 60 of 200"):
        cut = IsometricAutoencoder(2, checkpoint_dir=tmp_path, **TINY).fit(data.X)
    assert cut.n_steps_ == 60
    monkeypatch.setattr(autoencoder, "_run", run)
    on = IsometricAutoencoder(2, checkpoint_dir=tmp_path, **TINY).fit(data.X)
    np.testing.assert_array_equal(on.embedding_, model.embedding_)
    np.testing.assert_array_equal(on.loss_history_, model.loss_history_)
    with pytest.raises(IsoICAError, match="other data or parameters"):
        IsometricAutoencoder(2, checkpoint_dir=tmp_path, **TINY).fit(data.X[:300])


DEVICES = """
import jax, numpy as np
from isoica import IsometricAutoencoder
from isoica.datasets import make_near_isometric
assert len(jax.devices()) == 2
X = make_near_isometric(400, 2, theta=0.05, random_state=0).X
model = IsometricAutoencoder(2, hidden=(16, 16), max_steps=100, batch_size=64, random_state=0)
np.save("codes.npy", model.fit_transform(X))
"""


def test_two_devices_train_as_one(data, tmp_path):
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run([sys.executable, "-c", DEVICES], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one = IsometricAutoencoder(2, **(TINY | {"max_steps": 100})).fit_transform(data.X)
    np.testing.assert_allclose(np.load(tmp_path / "codes.npy"), one, atol=2e-3)


def test_convolutions_embed_images():
    data = make_images(200, kind="lanes", size=16, random_state=0)
    X = data.images.reshape(200, -1)
    found = IsometricAutoencoder(2, architecture="conv", **(TINY | {"max_steps": 4, "batch_size": 8})).fit(X)
    assert found.inverse_transform(found.embedding_).shape == X.shape
    assert found.jacobian(X[:2]).shape == (2, 2, 256)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n_components": 30}, "exceeds n_features"),
        ({"scale": "free"}, "scale='free'; use one of None, 'fit'"),
        ({"warm_start_embedding": "umap"}, "warm_start_embedding='umap'"),
        ({"architecture": "conv"}, "image_shape=None does not fit"),
        ({"max_steps": 0}, "max_steps=0; must be an integer of at least 1"),
        ({"batch_size": 2.5}, r"batch_size=2\.5"),
        ({"learning_rate": 0}, "learning_rate=0; must be positive"),
        ({"lambda_dec": -1}, "may not be negative"),
        ({"hidden": ()}, "give one or more positive widths"),
    ],
)
def test_bad_parameters_are_named(data, settings, words):
    with pytest.raises(IsoICAError, match=words):
        IsometricAutoencoder(**settings).fit(data.X)
    with pytest.raises(ValueError, match="NaN"):
        IsometricAutoencoder().fit(np.full((5, 3), np.nan))
    with pytest.raises(IsoICAError, match="all rows of X are equal"):
        IsometricAutoencoder().fit(np.ones((5, 3)))
    with pytest.raises(NotFittedError):
        IsometricAutoencoder().transform(data.X)
