"""scikit-learn's contract, on real digits."""

import json

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError

import onestep_diffusion as osd

SETTINGS = {"hidden": 32, "blocks": 2, "teacher_steps": 300, "steps": 100, "refit_steps": 100, "random_state": 0}


@pytest.fixture(scope="module")
def digits():
    return load_digits(return_X_y=True)


@pytest.fixture(scope="module")
def model(digits):
    return osd.OneStepGenerator(**SETTINGS).fit(digits[0][:1500])


def test_parameters_are_kept_as_given_and_cloned(model):
    assert osd.OneStepGenerator(**SETTINGS).get_params() == model.get_params()
    fresh = clone(model)
    assert fresh.get_params() == model.get_params()
    with pytest.raises(NotFittedError):
        fresh.sample(1)
    assert fresh.set_params(steps=5).steps == 5


def test_samples_follow_from_the_seed(model):
    a = model.sample(20, random_state=4)
    assert a.shape == (20, 64)
    assert a.dtype == float
    np.testing.assert_array_equal(a, model.sample(20, random_state=4))
    np.testing.assert_array_equal(model.sample(3), model.sample(3, random_state=0))  # the estimator's own
    assert not np.array_equal(a, model.sample(20, random_state=5))
    chosen = model.sample(20, candidates=4, random_state=4)
    assert chosen.shape == (20, 64)
    everything = {tuple(row) for row in model.sample(80, random_state=4)}
    assert all(tuple(row) in everything for row in chosen)


def test_units_are_the_datas(digits, model):
    assert (model.n_features_in_, model.generator_.shift) == (64, model.shift_)
    inside = (digits[0][:1500] - model.shift_) / model.scale_
    assert np.sqrt(inside.var(0).mean()) == pytest.approx(0.5, rel=0.01)
    assert len(model.history_) > 1


def test_held_out_rows_score_above_samples_and_certify_bounds_the_distance(digits, model):
    held_out = digits[0][1500:]
    assert model.score_samples(held_out).mean() > model.score_samples(model.sample(300, random_state=7)).mean()
    found = model.certify(held_out)
    assert found.js_lower <= found.js <= np.log(2)
    assert found.auc > 0.5
    assert 0 <= found.p_value <= 1


def test_a_saved_model_gives_identical_samples_and_no_pickle(model, tmp_path):
    model.save(tmp_path / "model")
    again = osd.OneStepGenerator.load(tmp_path / "model")
    assert again.get_params() == model.get_params()
    np.testing.assert_array_equal(again.sample(9, candidates=2), model.sample(9, candidates=2))
    np.testing.assert_array_equal(again.teacher_.sample(3, steps=3), model.teacher_.sample(3, steps=3))
    assert again.history_ == json.loads(json.dumps(model.history_))
    assert {file.suffix for file in (tmp_path / "model").iterdir()} == {".safetensors", ".json"}
    with pytest.raises(osd.CheckpointError, match=r"holds no estimator: estimator\.json is missing"):
        osd.OneStepGenerator.load(tmp_path)
    (tmp_path / "model" / "estimator.json").write_text("{")
    with pytest.raises(osd.CheckpointError, match=r"estimator\.json is damaged"):
        osd.OneStepGenerator.load(tmp_path / "model")


@pytest.fixture(scope="module")
def conditional():
    """Two classes far apart."""
    rng = np.random.default_rng(0)
    y = np.repeat(["left", "right"], [150, 50])
    x = np.where(y == "left", -4, 4)[:, None] + rng.normal(size=(200, 2))
    settings = {"init": "random", "hidden": 8, "blocks": 1, "steps": 2, "batch_size": 16, "refit_steps": 0}
    return osd.OneStepGenerator(**settings, random_state=0).fit(x, y)


def test_classes_are_sampled_by_name_and_in_their_shares(conditional):
    assert conditional.teacher_ is None
    assert conditional.classes_.tolist() == ["left", "right"]
    assert conditional.generator_.label_probs == pytest.approx((0.75, 0.25))
    assert conditional.sample(5, labels="right").shape == (5, 2)
    assert not np.array_equal(conditional.sample(5, labels="right"), conditional.sample(5, labels="left"))
    assert conditional.score_samples(np.zeros((2, 2)), ["left", "right"]).shape == (2,)
    with pytest.raises(ValueError, match="labels have to be among left, right; got up"):
        conditional.sample(2, labels="up")
    with pytest.raises(ValueError, match="y is needed, one class a row"):
        conditional.score_samples(np.zeros((2, 2)))


def test_bad_input_is_a_value_error_that_says_why(digits, model):
    x = digits[0][:30]
    cases = [
        ({}, np.full((5, 2), np.nan), None, "NaN"),
        ({}, np.ones((5, 2)), None, "all rows are equal"),
        ({}, x[:1], None, "minimum of 2 is required"),
        ({}, x[0], None, "Expected 2D array"),
        ({}, x, np.zeros(3), r"y has to be \(30,\), one class a row"),
        ({"method": "gann"}, x, None, "method has to be one of ratio"),
        ({"steps": 0}, x, None, "steps has to be at least 1"),
        ({"refit_steps": -1}, x, None, "refit_steps has to be an integer, zero or more"),
        ({"init": "magic"}, x, None, "'magic' is not one of"),
    ]
    for settings, rows, y, words in cases:
        with pytest.raises(ValueError, match=words):
            osd.OneStepGenerator(**settings).fit(rows, y)
    with pytest.raises(ValueError, match="X has 3 features, but OneStepGenerator is expecting 64"):
        model.score_samples(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="have to be at least 1"):
        model.sample(3, candidates=0)
    with pytest.raises(ValueError, match="fitted without"):
        model.sample(3, labels=1)
