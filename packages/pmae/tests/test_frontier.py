"""The comparison at equal FLOPs, on sizes that take seconds."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import pmae
from pmae.evaluation import PROFILES, cost, frontier, learning, plots, run

SMALL = replace(
    PROFILES["quick"], experiments=("frontier",), train=200, test=100, side=8, batch=40, frontier_train=160,
    budgets=(0.5, 1), shares=(0.1, 0.2, 0.3, 0.5), search_epochs=0.5, workers=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The folder of an evaluation, its results, its jobs, and the search's answers."""
    out = tmp_path_factory.mktemp("frontier")
    jobs, searches = [], []
    with pytest.MonkeyPatch.context() as patch:
        train_all, search = learning.train_all, frontier._search
        patch.setattr(frontier, "train_all", lambda given, *more: jobs.extend(given) or train_all(given, *more))
        patch.setattr(frontier, "DRAWS", 2)
        patch.setattr(learning, "FRESH", 1)
        patch.setattr(
            learning, "linear_probe", lambda *given: learning.knn_probe(*given, k=1)
        )  # it is tested elsewhere
        patch.setattr(frontier, "_search", lambda *given: searches.append(search(*given)) or searches[-1])
        results = run(SMALL, 0, out)
    return out, results, jobs, searches


def metrics(results):
    return {m["name"]: m["value"] for m in results["metrics"]}


def test_every_model_spends_the_same_flops(evaluated):
    _, results, jobs, _ = evaluated
    cost_of = {name: metrics(results)[f"{name}: training"] for name in frontier.MODELS}
    full = cost_of[frontier.ALL]
    for name, (method, settings) in frontier.MODELS.items():
        own = {job.epochs for job in jobs if (job.method, job.settings) == (method, settings)}
        assert sorted(epochs * cost_of[name] for epochs in own) == pytest.approx([0.5 * full, full])
    assert cost_of[frontier.MAE] < cost_of[frontier.HALF] < full
    assert len(jobs) == len(set(jobs)) == 2 * len(frontier.MODELS) + 3  # the usual ratio is trained once


def test_claims_and_pictures_are_there(evaluated):
    out, results, _, searches = evaluated
    claims = {c["id"]: c for c in results["claims"]}
    assert list(claims) == ["tokens-can-be-dropped", "frontier-over-mae", "ratio-without-labels"]
    assert {a["path"] for a in results["artifacts"]} == {"frontier.png", "ratio_search.png"}
    assert all((out / a["path"]).stat().st_size > 5_000 for a in results["artifacts"])
    assert metrics(results)["ratio without labels"] == searches[0].ratio
    assert json.loads((out / "results.json").read_text()) == results


def test_values_of_the_claims_are_those_of_the_runs(evaluated):
    _, results, _, searches = evaluated
    found = metrics(results)
    claims = {c["id"]: c["measured"] for c in results["claims"]}
    knn = {n: found[k] for n in frontier.MODELS for k in found if k.startswith(f"{n}, ") and k.endswith("avg knn")}
    assert claims["tokens-can-be-dropped"] == pytest.approx(knn[frontier.HALF] - knn[frontier.ALL])
    assert claims["frontier-over-mae"] == pytest.approx(knn[frontier.HALF] - knn[frontier.MAE])
    assert searches[0].ratios == SMALL.shares


def test_ratio_is_compared_with_the_mean_and_the_best_of_those_tried(tmp_path):
    experiment = frontier.Experiment()
    accuracy = {0.1: [50, 60], 0.2: [58, 62], 0.4: [54, 70], 0.5: [50, 50]}

    def ended(value):
        return learning.Run(None, [{"avg linear": value}], [], [], 0, 0)

    searches = [pmae.RatioSearch(r, tuple(accuracy), np.array([0.9, 0.8, 0.9, 0.95]), 0.1) for r in (0.11, 0.38)]
    frontier._ratio(experiment, {r: [ended(v) for v in values] for r, values in accuracy.items()}, searches, tmp_path)
    assert experiment.claims[0].measured == np.mean([50 - 53, 70 - 60.5])
    found = {m.name: m.value for m in experiment.metrics}
    assert found["ratio by labels"] == 0.4
    assert found["ratio without labels: linear accuracy below the best"] == np.mean([58 - 50, 0])
    assert found["ratios that were tried: range of linear accuracy"] == 62 - 50


def test_flops_are_those_of_products_forward_and_backward():
    space = pmae.fit_space(np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8))
    config = pmae.PMAEConfig("tiny", dim=16, depth=1, heads=2, decoder_dim=16, patch_size=2)
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    counted = cost.training_flops(pmae.PMAE(config, space), x, 3)
    again, total = pmae.PMAE(config, space), 0
    for _ in range(3):
        with FlopCounterMode(display=False) as counter:
            again(x).loss.backward()
        total += counter.get_total_flops()
    assert counted == total / 12
    dropped = cost.training_flops(pmae.PMAE(replace(config, token_drop=0.75), space), x, 3)
    assert dropped < 0.9 * counted


def test_picture_shows_of_each_photograph_the_crop_that_varies_most():
    draw = np.random.default_rng(0)
    labels = draw.permutation(np.arange(40) % 4)
    images = (128 + draw.normal(0, 1, (40, 3, 6, 6)) * draw.uniform(1, 30, 40)[:, None, None, None]).astype(np.uint8)
    images[7] = np.array([0, 128, 255], dtype=np.uint8)[:, None, None]  # of one colour: channels differ, pixels do not
    chosen = plots.most_varied(images, labels)
    assert labels[chosen].tolist() == [0, 1, 2, 3]
    for label, index in enumerate(chosen):
        others = [images[i].astype(float).var((1, 2)).mean() for i in np.flatnonzero(labels == label)]
        assert images[index].astype(float).var((1, 2)).mean() == max(others)
    assert 7 not in chosen
