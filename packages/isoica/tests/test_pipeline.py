import json
import logging

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.utils.estimator_checks import check_estimator

from isoica import NearIsometricICA, PerturbedICA, RigidAlignment
from isoica.datasets import make_near_isometric
from isoica.errors import IsoICAError, ModelFileError
from isoica.metrics import mcc


@pytest.fixture(scope="module")
def fitted():
    data = make_near_isometric(1200, 2, theta=0.08, noise=0.01, random_state=1)
    return data, NearIsometricICA(2, random_state=0).fit(data.X)


@pytest.mark.filterwarnings("ignore")
def test_follows_the_contract_of_scikit_learn():
    failed = [r for r in check_estimator(NearIsometricICA(random_state=0), on_fail=None) if r["status"] == "failed"]
    assert not failed, failed


def test_sources_of_a_near_isometric_mixing_are_found_where_pca_fails(fitted):
    data, model = fitted
    ours = 1 - mcc(data.S, model.transform(data.X))
    linear = 1 - mcc(data.S, PerturbedICA(random_state=0).fit_transform(PCA(2).fit_transform(data.X)))
    assert ours < 0.003
    assert linear > 10 * ours
    unseen = np.random.default_rng(2).uniform(-1.5, 1.5, size=(300, 2))
    assert mcc(unseen, model.transform(data.f(unseen))) > 0.99


@pytest.mark.parametrize("embedding", ["isomap", "hlle", "ltsa", RigidAlignment(n_neighbors=20), PCA()])
def test_every_embedding_ends_in_the_same_estimator(embedding):
    data = make_near_isometric(500, 2, theta=0.05, random_state=3)
    model = NearIsometricICA(2, embedding=embedding, random_state=0).fit(data.X)
    S = model.transform(data.X)
    assert S.shape == (500, 2)
    assert (mcc(data.S, S) > 0.99) == (not isinstance(embedding, PCA))
    assert model.inverse_transform(S).shape == data.X.shape
    assert np.isnan(model.theta_floor_) == isinstance(embedding, PCA)


def test_sources_map_back_to_their_observations(fitted):
    data, model = fitted
    np.testing.assert_allclose(model.inverse_transform(model.transform(data.X)), data.X, atol=1e-8)


def test_report_joins_both_certificates(fitted):
    model = fitted[1]
    report = model.report_
    assert report.theta == model.embedding_estimator_.theta_
    assert report.residual == pytest.approx(report.k_aff * (1 + report.stretch) * report.theta)
    assert report.k_aff == pytest.approx(1.2, rel=0.15)  # two uniform latents of variance 1
    smallest = np.linalg.svd(model.ica_.mixing_, compute_uv=False)[-1]
    assert report.eta == pytest.approx(report.residual / (smallest - report.residual))
    assert report.ica.eta == report.eta
    assert report.ica.identified.all()
    np.testing.assert_allclose(report.sd, 1, atol=0.1)
    assert json.loads(json.dumps(report.to_dict()))["ica"]["n_star"]
    text = report.to_text()
    assert "one-sided" in text
    assert "component" in text


def test_a_thin_axis_amplifies_the_perturbation():
    plain, thin = (
        NearIsometricICA(2, random_state=0).fit(
            make_near_isometric(1000, 2, theta=0.0, depth=1, random_state=4).f(
                np.random.default_rng(4).uniform(-1.7, 1.7, size=(1000, 2)) * [1, width]
            )
            + 0.004 * np.random.default_rng(5).normal(size=(1000, 6))
        )
        for width in (1.0, 0.15)
    )
    assert thin.report_.amplification == pytest.approx(1 / 0.15, rel=0.15)
    assert any("thinner" in w for w in thin.report_.warnings)
    relative = [m.report_.eta / m.report_.residual for m in (plain, thin)]
    assert relative[1] > 5 * relative[0]


def test_automatic_dimension_is_found_and_told(caplog):
    data = make_near_isometric(1500, 3, theta=0.0, depth=1, random_state=6)
    with caplog.at_level(logging.WARNING, logger="isoica"):
        model = NearIsometricICA("auto", random_state=0).fit(data.X)
    assert model.n_components_ == 3
    assert "TwoNN" in caplog.text
    assert "local PCA" in caplog.text


def test_saved_model_gives_the_same_sources_and_report(fitted, tmp_path):
    data, model = fitted
    model.save(tmp_path / "model.npz")
    loaded = NearIsometricICA.load(tmp_path / "model.npz")
    np.testing.assert_array_equal(loaded.transform(data.X[:9]), model.transform(data.X[:9]))
    assert loaded.report_.to_dict() == model.report_.to_dict()
    assert [p.name for p in tmp_path.iterdir()] == ["model.npz"]
    with pytest.raises(ModelFileError, match="near-isometric"):
        NearIsometricICA.load(_damaged(tmp_path))
    with pytest.raises(IsoICAError, match="without pickle"):
        NearIsometricICA(2, embedding=PCA(), random_state=0).fit(data.X).save(tmp_path / "pca.npz")


def _damaged(folder):
    np.savez(folder / "damaged.npz", a=1)
    return folder / "damaged.npz"


def test_bad_parameters_are_named(fitted):
    with pytest.raises(IsoICAError, match="rigid"):
        NearIsometricICA(2, embedding="umap").fit(fitted[0].X)
    with pytest.raises(IsoICAError, match="auto"):
        NearIsometricICA("many").fit(fitted[0].X)
