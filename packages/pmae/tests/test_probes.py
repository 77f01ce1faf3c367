from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import nn

from pmae import data, probes
from pmae.errors import DataError, NumericalError, ShapeError
from pmae.probes import finetune, knn_probe, linear_probe, mlp_probe
from pmae.probes.linear import Standardizer, principal_axes, scores_of, solve
from pmae.probes.result import validation_split


@pytest.fixture(scope="module")
def digits():
    """Training x and y, test x and y: 899 and 898 digits of 64 pixels."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = (x[order] / 16).astype(np.float32), y[order]
    return x[::2], y[::2], x[1::2], y[1::2]


def reference(x, y, strength):
    """scikit-learn's solution on standardised features."""
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(C=1 / (strength * len(x)), max_iter=20_000, tol=1e-7)
    model.fit(scaler.transform(x.astype(np.float64)), y)
    return lambda test: model.decision_function(scaler.transform(test.astype(np.float64)))


# ---------------------------------------------------------------------------------------------- linear
def solved(x, y, l2, test_x, iterations=500, dtype=torch.float64):
    """The probe's own solutions: scores (s, N, K)."""
    x, y, test_x = torch.from_numpy(x).to(dtype), torch.from_numpy(y), torch.from_numpy(test_x).to(dtype)
    standardizer = Standardizer(x)
    values, axes = principal_axes(standardizer(x))
    weights, intercepts = solve(standardizer(x) @ axes, y, int(y.max()) + 1, l2, values, iterations)
    return scores_of(standardizer(test_x) @ axes, weights, intercepts)


@pytest.mark.parametrize("strength", [1e-4, 1e-3, 1e-1])
def test_the_linear_probe_is_scikit_learns_logistic_regression(digits, strength):
    x, y, test_x, test_y = digits
    theirs = reference(x, y, strength)(test_x)
    found = linear_probe(*digits, l2=[strength])
    assert abs(found.accuracy - (theirs.argmax(1) == test_y).mean()) <= 0.003
    assert found.details["l2"] == strength
    ours = solved(x, y, [strength], test_x)[0]
    np.testing.assert_allclose(ours - ours.mean(1, keepdims=True), theirs, atol=5e-3 * np.abs(theirs).max())


def test_strengths_fitted_at_once_are_those_fitted_alone(digits):
    x, y, test_x, _ = digits
    together = solved(x, y, [1e-3, 1e-2, 1.0], test_x)
    for i, strength in enumerate([1e-3, 1e-2, 1.0]):
        alone = solved(x, y, [strength], test_x)[0]
        np.testing.assert_allclose(together[i], alone, atol=1e-2 * np.abs(alone).max())


def test_collinear_and_constant_features_do_no_harm(digits):
    x, y, test_x, test_y = digits

    def wide(part):
        return np.concatenate([part, 1e3 * part, part.sum(1, keepdims=True), np.full((len(part), 1), 7)], 1)

    theirs = (reference(wide(x), y, 1e-3)(wide(test_x)).argmax(1) == test_y).mean()
    assert abs(linear_probe(wide(x), y, wide(test_x), test_y, l2=[1e-3]).accuracy - theirs) <= 0.003


def test_the_strength_is_chosen_without_the_test_labels(digits):
    x, y, test_x, test_y = digits
    found = linear_probe(*digits)
    shuffled = linear_probe(x, y, test_x, np.random.default_rng(0).permutation(test_y))
    assert shuffled.details == found.details
    assert shuffled.val_accuracy == found.val_accuracy == max(found.details["val_accuracy_by_l2"].values())
    assert shuffled.accuracy < 0.2 < 0.9 < found.accuracy


def test_results_are_those_of_the_confusion_matrix_under_any_names_of_the_classes(digits):
    x, y, test_x, test_y = digits
    rare = np.flatnonzero((y > 1) | (np.arange(len(y)) % 4 == 0))  # classes of several sizes
    found = linear_probe(x[rare], y[rare], test_x, test_y, l2=[1e-2])
    named = linear_probe(x[rare], 10 * y[rare] - 3, test_x, 10 * test_y - 3, l2=[1e-2])
    assert list(named.per_class) == [10 * i - 3 for i in range(10)]
    assert list(named.per_class.values()) == list(found.per_class.values())
    predicted = solved(x[rare], y[rare], [1e-2], test_x)[0].argmax(1)
    assert found.accuracy == pytest.approx((predicted == test_y).mean(), abs=0.003)
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(test_y, predicted), abs=0.003)
    assert found.balanced_accuracy == pytest.approx(np.mean(list(found.per_class.values())))


def test_a_class_that_was_never_seen_is_always_wrong(digits):
    x, y, test_x, test_y = digits
    found = linear_probe(x[y < 9], y[y < 9], test_x, test_y, l2=[1e-2])
    assert found.per_class[9] == 0
    assert found.accuracy > 0.8


def test_validation_data_may_be_given(digits):
    x, y, test_x, test_y = digits
    found = linear_probe(x[100:], y[100:], test_x, test_y, val=(x[:100], y[:100]))
    assert found.val_accuracy * 100 == pytest.approx(round(found.val_accuracy * 100))
    final = linear_probe(x, y, test_x, test_y, l2=[found.details["l2"]])  # both parts are fitted in the end
    assert found.accuracy == pytest.approx(final.accuracy, abs=0.003)


# -------------------------------------------------------------------------------------- several labels
@pytest.fixture(scope="module")
def several(digits):
    """Labels that digits have: even, small, prime, and 8 (rare)."""
    x, y, test_x, test_y = digits

    def labels(y):
        return np.stack([y % 2 == 0, y < 4, np.isin(y, [2, 3, 5, 7]), y == 8], 1).astype(np.int64)

    return x, labels(y), test_x, labels(test_y)


def test_each_of_several_labels_has_scikit_learns_logistic_regression(several):
    x, y, test_x, test_y = several
    theirs = np.stack([reference(x, y[:, i], 1e-3)(test_x) for i in range(4)], 1)
    found = linear_probe(*several, l2=[1e-3])
    assert found.accuracy == pytest.approx(((theirs > 0) == test_y).mean(), abs=0.003)
    balanced = [balanced_accuracy_score(test_y[:, i], theirs[:, i] > 0) for i in range(4)]
    assert list(found.per_class.values()) == pytest.approx(balanced, abs=0.01)
    auc = [roc_auc_score(test_y[:, i], theirs[:, i]) for i in range(4)]
    assert list(found.details["auc"].values()) == pytest.approx(auc, abs=0.002)
    assert found.details["mean_auc"] == pytest.approx(np.mean(auc), abs=0.002)


def test_neighbours_vote_on_each_of_several_labels(several):
    x, y, test_x, test_y = several
    found = knn_probe(*several, k=7, metric="l2")
    model = KNeighborsClassifier(7, algorithm="brute").fit(x.astype(np.float64), y)
    predicted = model.predict(test_x.astype(np.float64))
    assert found.accuracy == pytest.approx((predicted == test_y).mean())
    shares = np.stack([share[:, 1] for share in model.predict_proba(test_x.astype(np.float64))], 1)
    assert found.details["mean_auc"] == pytest.approx(roc_auc_score(test_y, shares))


def test_a_label_that_no_test_image_has_is_left_out_of_the_auc(several):
    x, y, test_x, test_y = several
    none = np.where(np.arange(4) == 3, 0, test_y)
    found = linear_probe(x, y, test_x, none, l2=[1e-3])
    assert list(found.details["auc"]) == [0, 1, 2]
    assert np.isfinite(found.details["mean_auc"])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_mlp_learns_several_labels(several, precision):
    found = mlp_probe(*several, epochs=30, precision=precision)
    assert found.details["mean_auc"] > 0.98


# ---------------------------------------------------------------------------------------------- neighbours
@pytest.mark.parametrize(("metric", "theirs"), [("cosine", "cosine"), ("l2", "euclidean")])
@pytest.mark.parametrize("k", [1, 10, 20])
def test_the_neighbour_probe_is_scikit_learns(digits, metric, theirs, k):
    x, y, test_x, test_y = digits
    x, test_x = (part + np.random.default_rng(1).normal(0, 1e-3, part.shape).astype(np.float32) for part in (x, test_x))
    model = KNeighborsClassifier(k, metric=theirs, algorithm="brute").fit(x.astype(np.float64), y)
    predicted = model.predict(test_x.astype(np.float64))
    found = knn_probe(x, y, test_x, test_y, k=k, metric=metric)
    assert found.accuracy == (predicted == test_y).mean()
    assert found.per_class == {i: (predicted[test_y == i] == i).mean() for i in range(10)}


def test_the_number_of_neighbours_is_chosen_on_the_validation_part(digits):
    x, y, test_x, test_y = digits
    found = knn_probe(*digits, k=probes.PAPER_K, metric="l2")
    shuffled = knn_probe(x, y, test_x, np.random.default_rng(0).permutation(test_y), k=probes.PAPER_K, metric="l2")
    assert found.details["k"] == shuffled.details["k"]
    each = {k: knn_probe(*digits, k=k, metric="l2") for k in probes.PAPER_K}
    assert found.val_accuracy == max(result.val_accuracy for result in each.values())
    assert found.accuracy == each[found.details["k"]].accuracy
    assert found.details["test_max_over_k"] == max(result.accuracy for result in each.values())


def test_neighbours_do_not_depend_on_an_offset_of_the_features(digits):
    x, y, test_x, test_y = digits
    assert knn_probe(x + 4096, y, test_x + 4096, test_y, metric="l2") == knn_probe(*digits, metric="l2")


# ------------------------------------------------------------------------------------------ the split, MLP
@given(
    labels=st.lists(st.integers(0, 5), min_size=4, max_size=80),
    share=st.sampled_from([0.2, 0.5, 0.7]),
    seed=st.integers(0, 9),
)
def test_the_validation_part_has_each_class_in_its_share(labels, share, seed):
    y = np.array(labels)
    fit, held = validation_split(y, share, seed)
    assert np.array_equal(np.sort(np.concatenate([fit, held])), np.arange(len(y)))
    assert len(held) == round(share * len(y))
    for label in np.unique(y):
        assert abs((y[held] == label).sum() - len(held) / len(y) * (y == label).sum()) <= 1


def test_an_mlp_tells_what_no_linear_classifier_can():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(1200, 2)).astype(np.float32)
    y = (np.linalg.norm(x, axis=1) > 1.18).astype(int)  # a disc that holds half of them
    parts = (x[:800], y[:800], x[800:], y[800:])
    state = torch.get_rng_state()
    found = mlp_probe(*parts, batch_size=64, epochs=40)
    assert torch.equal(torch.get_rng_state(), state)
    assert found.accuracy > 0.95 > 0.7 > linear_probe(*parts).accuracy
    assert found.details["test_max_over_epochs"] >= found.accuracy
    assert found == mlp_probe(*parts, batch_size=64, epochs=40)


# ------------------------------------------------------------------------------------- models and images
class Encoder(nn.Module):
    """What a probe needs of a model; it counts the images that it sees."""

    def __init__(self, width=16, seed=0):
        super().__init__()
        self.filters = nn.Parameter(torch.randn(width, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) / 4)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("seen", torch.zeros(()))

    def features(self, images, pool):
        assert images.dtype == torch.float32
        assert pool in ("avg", "cls")
        self.seen += len(images)
        return self.dropout(torch.conv2d(images - 0.5, self.filters, stride=2).relu()).mean((2, 3))


@pytest.fixture(scope="module")
def photos():
    return data.load("photopatch", size=16, n=400), data.load("photopatch", "test", size=16, n=200)


def test_features_are_those_of_whole_images_in_order(photos):
    train, _ = photos
    model = Encoder().train()
    found = probes.extract(model, train.images, pool="avg", batch_size=64)
    assert model.training
    assert (found.dtype, found.shape) == (np.float32, (400, 16))
    with torch.no_grad():
        expected = model.eval().features(torch.from_numpy(train.images[::-1].copy()).float() / 255, "avg")
    np.testing.assert_allclose(found[::-1], expected.numpy(), rtol=1e-5, atol=1e-6)


def test_tokens_and_features_that_are_not_finite_are_refused(photos):
    model = Encoder()
    with torch.no_grad():
        model.filters[3] = torch.nan
    with pytest.raises(NumericalError, match="diverged"):
        probes.extract(model, photos[0].images)
    model.features = lambda images, pool: images
    with pytest.raises(ShapeError, match=r"pool='tokens'.*\(B, d\)"):
        probes.extract(model, photos[0].images, pool="tokens")


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_the_papers_protocol_trains_a_head_on_augmented_images_and_nothing_else(photos, kind):
    model = Encoder().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = probes.probe(model, *photos, kind, "paper", batch_size=60, epochs=8, warmup_epochs=1)
    assert model.training
    # 8 epochs of 6 full batches out of 360, the 40 others once, and the test images once.
    assert model.seen == 8 * 360 + 40 + 200
    assert torch.equal(model.filters, before["filters"])
    assert model.filters.grad is None
    assert result.details["protocol"] == "paper"
    assert result.details["test_max_over_epochs"] >= result.accuracy > 0.2
    assert 1 <= result.details["epoch"] <= 8


def test_a_trained_probe_repeats_itself_and_touches_no_global_generator(photos):
    state = torch.get_rng_state()
    one, two = (probes.probe(Encoder(), *photos, "linear", "paper", epochs=2) for _ in range(2))
    assert one == two
    assert torch.equal(torch.get_rng_state(), state)


def test_the_linear_head_reaches_what_logistic_regression_reaches(photos):
    train, test = photos
    model = Encoder(64)
    steps = probes.probe(model, train, test, "linear", "paper", batch_size=32, epochs=60, lr=1.0, augment="none")
    exact = probes.probe(model, train, test, "linear")
    assert abs(steps.accuracy - exact.accuracy) < 0.1


def test_finetuning_trains_a_copy_and_beats_the_frozen_encoder(photos):
    train, test = photos
    model = Encoder()
    filters = model.filters.clone()
    recipe = {"batch_size": 40, "epochs": 15, "warmup_epochs": 1, "lr": 0.05, "augment": "none"}
    tuned = finetune(model, train.images, train.labels, test.images, test.labels, pool="avg", **recipe)
    frozen = probes.probe(model, train, test, "linear", "paper", **recipe)
    assert torch.equal(model.filters, filters)
    assert model.filters.grad is None
    assert tuned.val_accuracy > frozen.val_accuracy
    assert tuned.details["test_max_over_epochs"] >= tuned.accuracy


def test_finetuning_sees_validation_images_that_were_given(photos):
    train, test = photos
    told = []
    result = probes.probe(
        Encoder(), train, test, "finetune", val=test, epochs=2, progress=lambda *facts: told.append(facts)
    )
    assert [facts[:2] for facts in told] == [(1, 2), (2, 2)]
    assert result.val_accuracy == result.accuracy == max(facts[2] for facts in told)


@pytest.mark.parametrize("kind", ["linear", "knn", "mlp"])
def test_a_probe_by_name_is_the_probe_of_the_features(photos, kind):
    train, test = photos
    model = Encoder()
    seen = (probes.extract(model, train.images), train.labels, probes.extract(model, test.images), test.labels)
    direct = {"linear": linear_probe, "knn": knn_probe, "mlp": mlp_probe}[kind](*seen)
    assert probes.probe(model, train, test, kind) == direct


def test_losses_that_are_not_finite_end_a_probe(photos):
    with pytest.raises(NumericalError, match=r"not finite in epoch \d: use a smaller lr than 1e\+30"):
        probes.probe(Encoder(), *photos, "finetune", epochs=2, lr=1e30, warmup_epochs=0, optimizer="sgd")


# ------------------------------------------------------------------------------------------------ bad input
def test_bad_input_is_named(digits, photos):
    x, y, test_x, test_y = digits
    with pytest.raises(ShapeError, match=r"train: features of shape \(899, 64\) and labels of shape \(898,\)"):
        linear_probe(x, y[1:], test_x, test_y)
    with pytest.raises(DataError, match="test: features hold NaN"):
        knn_probe(x, y, np.full_like(test_x, np.nan), test_y)
    with pytest.raises(DataError, match="all 809 training labels are 0: at least two classes"):
        linear_probe(x, 0 * y, test_x, test_y)
    with pytest.raises(ShapeError, match="labels are float64"):
        linear_probe(x, y / 2, test_x, test_y)
    with pytest.raises(ValueError, match=r"val=0\.0001 of 899 images"):
        linear_probe(*digits, val=0.0001)
    with pytest.raises(ValueError, match="k=900: from 1 to 809"):
        knn_probe(*digits, k=900)
    with pytest.raises(ValueError, match="metric='l1': one of cosine, l2"):
        knn_probe(*digits, metric="l1")
    with pytest.raises(ValueError, match="protocol='slow': one of fast, paper"):
        linear_probe(*digits, protocol="slow")
    with pytest.raises(ValueError, match="give model"):
        mlp_probe(*digits, protocol="paper")
    with pytest.raises(ValueError, match="no option 'momentum': epochs, batch_size"):
        mlp_probe(*digits, momentum=0.5)
    with pytest.raises(ValueError, match="precision='fp8': one of fp32, bf16"):
        mlp_probe(*digits, precision="fp8")
    with pytest.raises(ValueError, match="kind='svm': one of linear, knn, mlp, finetune"):
        probes.probe(Encoder(), *photos, "svm")
    with pytest.raises(ValueError, match="epochs: the knn probe"):
        probes.probe(Encoder(), *photos, "knn", epochs=3)
    with pytest.raises(DataError, match="photopatch/test has no labels"):
        probes.probe(Encoder(), photos[0], replace(photos[1], labels=None))
    with pytest.raises(ShapeError, match="test: 200 images and 100 labels"):
        finetune(Encoder(), photos[0].images, photos[0].labels, photos[1].images, photos[1].labels[:100], pool="avg")


def test_features_of_another_width_are_refused():
    rng = np.random.default_rng(0)
    for probe in (probes.linear_probe, probes.knn_probe):
        with pytest.raises(ShapeError, match=r"features of shape \(9, 3\), those of training are \(N, 4\)"):
            probe(rng.normal(size=(60, 4)), np.arange(60) % 2, rng.normal(size=(9, 3)), np.arange(9) % 2)


def test_labels_as_medmnist_has_them_and_whole_floats_are_the_same_labels():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(80, 4)), np.arange(80) % 3
    x[:, 0] += 3 * y
    want = probes.knn_probe(x, y, x, y, k=3).accuracy
    assert probes.knn_probe(x, y[:, None], x, y[:, None].astype(float), k=np.int64(3)).accuracy == want
    assert probes.linear_probe(x, y[:, None], x, y.astype(np.float32)).accuracy > 0.5
