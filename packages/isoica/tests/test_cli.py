"""The command line: what it prints and writes, and one line with exit code 2 for whatever cannot be done."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from scipy.io import wavfile

import isoica
from isoica.cli import making, measuring, printing
from isoica.cli.main import main
from isoica.datasets import make_images, make_near_isometric, make_perturbed_linear, make_sources
from isoica.metrics import mcc
from isoica.models import load_model
from isoica.tables import read_table


def call(*arguments):
    """Exit code of the command in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["isoica", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
    return stopped.value.code


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Mixtures `p` and a model of them, a manifold `i` and a model of it, and much that cannot be used."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert call("simulate", "perturbed", "-n", 2000, "-d", 3, "--eta", 0.05, "--out", "p.npz", "-q") == 0
        assert call("simulate", "isometric", "-n", 300, "--theta", 0.05, "--out", "i.npz", "-q") == 0
        assert call("fit", "p.npz", "--out", "linear.npz", "-q") == 0
        assert call("fit", "i.npz", "--method", "rigid", "-d", 2, "--out", "rigid.npz", "-q") == 0
    isoica.RigidAlignment(2).fit(np.load(home / "i.npz")["X"]).save(home / "bare.npz")
    rng = np.random.default_rng(0)
    x = rng.laplace(size=(50, 3))
    np.save(home / "x.npy", x)
    np.save(home / "nan.npy", np.where(np.arange(150).reshape(50, 3) == 7, np.nan, x))
    np.save(home / "flat.npy", np.ones(9))
    np.save(home / "none.npy", np.ones((0, 3)))
    np.save(home / "one.npy", np.ones((1, 3)))
    np.save(home / "constant.npy", np.column_stack([x, np.ones(50)]))
    np.save(home / "objects.npy", np.array([{}, {}]), allow_pickle=True)
    np.save(home / "complex.npy", x + 1j)
    np.savez(home / "two.npz", a=x, b=x)
    (home / "half.npy").write_bytes((home / "x.npy").read_bytes()[:200])
    (home / "half.npz").write_bytes((home / "two.npz").read_bytes()[:300])
    (home / "words.csv").write_text("u,v\n1,2\n3,red\n")
    (home / "hole.csv").write_text("1,2\n3,\n")
    (home / "front.csv").write_text("1,NA\n3,4\n")
    (home / "ragged.csv").write_text("u,v\n1,2\n3\n")
    (home / "empty.csv").write_text("")
    (home / "latin.csv").write_bytes(b"u,v\n1,\xff\n")
    (home / "notes.txt").write_text("nothing")
    (home / "folder").mkdir()
    (home / "stereo").mkdir()
    wavfile.write(home / "stereo" / "a.wav", 8000, rng.normal(size=(100, 2)))
    (home / "rates").mkdir()
    wavfile.write(home / "rates" / "a.wav", 8000, rng.normal(size=100))
    wavfile.write(home / "rates" / "b.wav", 16000, rng.normal(size=100))
    (home / "maps.py").write_text(
        "import jax.numpy as jnp\n"
        "number = 3\n"
        "def stretch(s):\n    return jnp.array([3.0, 1.0, 1.0]) * s\n"
        "def broken(s):\n    raise KeyError('lost')\n"
        "def flat(s):\n    return s[..., :1]\n"
    )
    return home


@pytest.fixture
def run(home, monkeypatch, capsys):
    monkeypatch.chdir(home)

    def run(*arguments):
        code = call(*arguments)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


# --- round trips


def test_linear_sources_are_those_of_the_estimator(run, home):
    code, _, _ = run("transform", "linear.npz", "p.npz", "--out", "S.npy")
    assert code == 0
    data = np.load(home / "p.npz")
    expected = isoica.PerturbedICA(random_state=0).fit_transform(data["X"])
    np.testing.assert_allclose(np.load(home / "S.npy"), expected, rtol=1e-12)
    assert mcc(data["S"], expected) > 0.99


def test_sources_as_text_are_those_as_an_array(run, home):
    assert run("transform", "linear.npz", "p.npz", "--out", "S.npy")[0] == 0
    assert run("transform", "linear.npz", "p.npz", "--out", "S.csv")[0] == 0
    table = read_table(home / "S.csv")
    assert table.names == ["source0", "source1", "source2"]
    np.testing.assert_array_equal(table.values, np.load(home / "S.npy"))


def test_a_manifold_is_unmixed_and_the_fit_tells_its_distance_from_isometry(run, home):
    code, out, _ = run("fit", "i.npz", "--method", "rigid", "-d", 2, "--out", "again.npz", "--json")
    assert code == 0
    told, model = json.loads(out), load_model(home / "again.npz")
    assert told["theta"] == model.theta_
    assert told["sources"] == 2
    assert told["converged"] is True
    assert run("transform", "again.npz", "i.npz", "--out", "S.npy")[0] == 0
    assert mcc(np.load(home / "i.npz")["S"], np.load(home / "S.npy")) > 0.99
    assert (home / "again.npz").read_bytes() == (home / "rigid.npz").read_bytes()


@pytest.mark.parametrize("method", ["isomap", "hlle", "ltsa"])
def test_every_embedding_gives_a_model_that_loads(run, home, method):
    code, out, _ = run("fit", "i.npz", "--method", method, "-d", 2, "--out", f"{method}.npz", "--json")
    assert code == 0
    assert json.loads(out)["method"] == method
    model = load_model(home / f"{method}.npz")
    assert mcc(np.load(home / "i.npz")["S"], model.transform(np.load(home / "i.npz")["X"])) > 0.98


def test_the_dimension_is_found_where_none_is_given(run):
    code, out, err = run("fit", "i.npz", "--method", "isomap", "--out", "auto.npz", "--json")
    assert code == 0
    assert json.loads(out)["sources"] == 2
    assert "TwoNN" in err


def test_the_contrast_reaches_the_estimator(run, home):
    assert run("fit", "p.npz", "--contrast", "cube", "-d", 3, "--out", "cube.npz")[0] == 0
    model = load_model(home / "cube.npz")
    assert (model.contrast, model.n_components) == ("cube", 3)
    expected = isoica.PerturbedICA(3, contrast="cube", random_state=0).fit(np.load(home / "p.npz")["X"])
    np.testing.assert_array_equal(model.components_, expected.components_)


def test_a_report_is_that_of_the_model_and_comes_with_a_picture(run, home):
    code, out, _ = run("report", "linear.npz", "p.npz", "--eta", 0.2, "--json", "--plot", "r.png")
    assert code == 0
    told = json.loads(out)
    model, X = load_model(home / "linear.npz"), np.load(home / "p.npz")["X"]
    expected = model.report(X, eta=0.2)
    assert told["plot"] == "r.png"
    np.testing.assert_allclose(told["total_error"], np.sqrt(model.stderr_**2 + (0.2 * model.kappa_) ** 2))
    assert told["eta_lower"] == expected.eta_lower
    assert (home / "r.png").read_bytes().startswith(b"\x89PNG")
    code, text, _ = run("report", "linear.npz", "p.npz", "--eta", 0.2)
    assert code == 0
    assert text == expected.to_text() + "\n"


def test_a_report_on_a_manifold_has_both_halves(run):
    code, out, _ = run("report", "rigid.npz", "i.npz", "--json", "--plot", "q.png")
    assert code == 0
    told = json.loads(out)
    assert told["ica"]["eta"] == pytest.approx(told["eta"])
    assert told["theta"] > 0


def test_a_picture_is_drawn_for_one_source_and_for_many(tmp_path):
    from isoica.plots import save_leakage_plot

    X = np.random.default_rng(0).laplace(size=(600, 16))
    for d in (1, 16):
        report = isoica.PerturbedICA(d, random_state=0).fit(X[:, :d]).report(n_permutations=10)
        save_leakage_plot(report, tmp_path / "many.png", eta=0.1)
        assert (tmp_path / "many.png").stat().st_size > 10_000


def test_theta_of_a_function_is_the_closed_form(run):
    code, out, _ = run("theta", "maps:stretch", "x.npy", "--json")
    assert code == 0
    assert json.loads(out)["theta"] == pytest.approx(2)
    _, out, _ = run("theta", "maps:stretch", "x.npy", "--scale", "fit", "-p", 2, "--json")
    assert json.loads(out)["scale"] == pytest.approx(5 / 3)
    assert json.loads(out)["theta"] == pytest.approx(np.linalg.norm(np.array([3, 1, 1]) - 5 / 3))
    _, out, _ = run("theta", "maps:stretch", "x.npy", "--scale", "metric", "--json")
    assert json.loads(out)["theta"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("model", ["rigid.npz", "bare.npz"])
def test_theta_of_a_model_on_its_own_data_is_what_the_fit_found(run, home, model):
    code, out, _ = run("theta", model, "i.npz", "--json")
    assert code == 0
    assert json.loads(out)["theta"] == pytest.approx(load_model(home / model).theta_, rel=1e-6)
    assert json.loads(out)["samples"] == 300


SIMULATED = {
    "perturbed": (["-n", 40, "-d", 2, "--eta", 0.3], lambda: make_perturbed_linear(40, 2, eta=0.3, random_state=5)),
    "isometric": (["-n", 40, "--theta", 0.2], lambda: make_near_isometric(40, 2, theta=0.2, random_state=5)),
    "images": (["-n", 5, "--kind", "lanes", "-d", 3], lambda: make_images(5, "lanes", d=3, random_state=5)),
    "sources": (
        ["-n", 40, "--laws", "laplace,student:6"],
        lambda: {"S": make_sources(40, ("laplace", "student:6"), 5)},
    ),
}


@pytest.mark.parametrize("kind", SIMULATED)
def test_simulated_files_hold_what_the_library_makes(run, home, kind):
    options, make = SIMULATED[kind]
    code, out, _ = run("simulate", kind, *options, "--seed", 5, "--out", "made.npz", "--json")
    assert code == 0
    assert json.loads(out)["file"] == "made.npz"
    expected = dict(make())
    with np.load(home / "made.npz") as file:
        for name in file.files:
            np.testing.assert_array_equal(file[name], expected.get(name, expected.get("images")))


def test_constants_are_those_of_the_theory(run):
    code, out, _ = run("constants", "--domain", "gaussian", "-d", 2, "--degree", 3, "--json")
    assert code == 0
    assert json.loads(out)["aff"] == pytest.approx(np.sqrt(2))
    _, out, _ = run("constants", "--domain", "uniform,uniform", "-d", 2, "--degree", 5, "--json")
    assert json.loads(out)["aff"] == pytest.approx(1.3012, abs=1e-4)
    _, out, _ = run("constants", "--domain", "ball", "--no-unit-variance", "--degree", 3, "--json")
    assert json.loads(out)["rigid"] == pytest.approx(0.6026, abs=1e-4)


def test_solvers_race_to_the_gradient_that_is_asked_for(run):
    code, out, _ = run("bench", "solvers", "-n", 1000, "-d", 3, "--tol", "1e-3", "--repeats", 1, "--json")
    assert code == 0
    races = {r["solver"]: r for r in json.loads(out)["races"]}
    assert {"ours", "FastICA"} <= set(races)
    assert races["ours"]["gradient"] <= 1e-3
    assert races["ours"]["objective"] == pytest.approx(races["FastICA"]["objective"], abs=1e-4)


def test_embeddings_race_on_one_manifold(run):
    code, out, _ = run("bench", "embeddings", "-n", 150, "--repeats", 1, "--json")
    assert code == 0
    races = {r["embedding"]: r["one_minus_mcc"] for r in json.loads(out)["races"]}
    assert set(races) == {"RigidAlignment", "Isomap", "HLLE", "LTSA"}
    assert races["RigidAlignment"] < 0.05


def test_eval_passes_its_options_on_and_prints_the_verdict(run, monkeypatch):
    given = {}

    class Runner:
        """Stands for isoica.evaluation.runner."""

        @staticmethod
        def run(profile, seed, out, **options):
            given.update(options, profile=profile, seed=seed, out=str(out))
            options["progress"]("", 0, 1, 0.0)
            options["progress"]("E1", 1, 1, 2.0)
            claim = {"id": "slope", "measured": 2.0, "n": 3, "test": {"op": ">=", "value": 3}, "holds": False}
            return {"claims": [claim]}

    monkeypatch.setitem(sys.modules, "isoica.evaluation", Runner)
    monkeypatch.setitem(sys.modules, "isoica.evaluation.runner", Runner)
    line = ["eval", "--out", "e", "--profile", "full", "--seed", 3, "--only", "E1,E6", "--resume"]
    code, out, err = run(*line)
    assert code == 0
    assert {"profile": "full", "seed": 3, "out": "e", "only": ["E1", "E6"], "resume": True}.items() <= given.items()
    assert "0 of 1 claims hold" in out
    assert "E1 2.0 s (1 of 1)" in err
    assert run(*line, "--strict")[0] == measuring.CLAIM_FAILED


# --- data of every kind


def test_the_same_numbers_come_out_of_every_kind_of_file(tmp_path):
    x = np.arange(12.0).reshape(4, 3) / 7
    np.save(tmp_path / "a.npy", x)
    np.savez(tmp_path / "b.npz", other=x + 1, X=x)
    np.savetxt(tmp_path / "c.csv", x, delimiter=",", fmt="%.17g")
    np.savetxt(tmp_path / "d.tsv", x, delimiter="\t", fmt="%.17g", header="u\tv\tw", comments="")
    (tmp_path / "e.csv").write_text('"u, first",v,w\n' + "\n".join(",".join(map(repr, r)) for r in x.tolist()) + "\n")
    for name in ("a.npy", "b.npz", "c.csv", "d.tsv", "e.csv"):
        np.testing.assert_array_equal(read_table(tmp_path / name).values, x)
    assert read_table(tmp_path / "c.csv").names == []
    assert read_table(tmp_path / "d.tsv").names == ["u", "v", "w"]
    assert read_table(tmp_path / "e.csv").names == ["u, first", "v", "w"]
    np.testing.assert_array_equal(read_table(tmp_path / "b.npz", "other").values, x + 1)


def test_recordings_are_columns_cut_to_the_shortest(tmp_path):
    one, two = np.arange(1, 9, dtype=np.int16), np.arange(11, 17, dtype=np.int16)
    wavfile.write(tmp_path / "one.wav", 8000, one)
    wavfile.write(tmp_path / "two.wav", 8000, two)
    table = read_table(tmp_path)
    np.testing.assert_array_equal(table.values, np.column_stack([one[:6], two]))
    assert table.names == ["one.wav", "two.wav"]


def test_images_are_laid_flat(tmp_path):
    images = np.random.default_rng(0).random((4, 5, 6), dtype=np.float32)
    np.save(tmp_path / "images.npy", images)
    table = read_table(tmp_path / "images.npy")
    np.testing.assert_array_equal(table.values, images.reshape(4, 30))
    assert table.values.dtype == np.float32


def test_a_recording_of_mne_is_read_without_its_event_channel(tmp_path):
    mne = pytest.importorskip("mne")
    signals = np.random.default_rng(0).normal(size=(3, 500)) * 1e-5
    info = mne.create_info(["Fz", "Cz", "STI"], 100.0, ["eeg", "eeg", "stim"])
    mne.io.RawArray(signals, info, verbose="error").save(tmp_path / "a_raw.fif", verbose="error")
    table = read_table(tmp_path / "a_raw.fif")
    assert table.names == ["Fz", "Cz"]
    np.testing.assert_allclose(table.values, signals[:2].T, rtol=1e-6)


# --- what cannot be done


BAD = {
    "no such data": (["fit", "nothing.npy"], "nothing.npy does not exist; give .npy"),
    "unknown kind": (["fit", "notes.txt"], "notes.txt is of no known kind; give .npy"),
    "NaN": (["fit", "nan.npy"], "nan.npy: sample 3, column 2 is nan; remove or fill it (1 of 50 samples)"),
    "one axis": (["fit", "flat.npy"], "flat.npy has shape (9,); (samples, columns) is needed"),
    "no samples": (["fit", "none.npy"], "none.npy is empty"),
    "one sample": (["fit", "one.npy"], "minimum of 2 is required"),
    "constant column": (["fit", "constant.npy"], "1 constant column(s): 3; remove them"),
    "objects": (["fit", "objects.npy"], "objects.npy is not a readable .npy file of numbers"),
    "complex": (["fit", "complex.npy"], "complex.npy holds complex128; real numbers are needed"),
    "half an array": (["fit", "half.npy"], "half.npy is not a readable .npy"),
    "half an archive": (["fit", "half.npz"], "half.npz is not a readable .npz"),
    "two arrays": (["fit", "two.npz"], "two.npz holds a, b; choose one with --key"),
    "no such array": (["fit", "two.npz", "--key", "c"], "two.npz holds a, b, no 'c'"),
    "key of an array": (["fit", "x.npy", "--key", "c"], "x.npy: --key chooses an array of an .npz file"),
    "word": (["fit", "words.csv"], "words.csv: line 3, column 2 is 'red', not a number"),
    "hole": (["fit", "hole.csv"], "hole.csv: line 2, column 2 is '', not a number"),
    "word in front": (["fit", "front.csv"], "front.csv: line 1, column 2 is 'NA', not a number"),
    "ragged": (["fit", "ragged.csv"], "ragged.csv: line 3 has 1 columns, the first 2"),
    "empty text": (["fit", "empty.csv"], "empty.csv is empty"),
    "not UTF-8": (["fit", "latin.csv"], "latin.csv is not UTF-8 text"),
    "no recordings": (["fit", "folder"], "folder holds no .wav file"),
    "stereo": (["fit", "stereo"], "a.wav has 2 channels; a mono recording is needed"),
    "two rates": (["fit", "rates"], "b.wav has 16000 Hz, a.wav 8000 Hz"),
    "method": (["fit", "x.npy", "--method", "umap"], "--method 'umap' is not one of linear, rigid"),
    "contrast": (["fit", "x.npy", "--contrast", "sinh"], "--contrast 'sinh' is not one of logcosh"),
    "components": (["fit", "x.npy", "-d", "two"], "-d 'two': a number of sources of at least 1, or auto"),
    "above the rank": (["fit", "x.npy", "-d", "4"], "rank"),
    "above the columns": (["fit", "x.npy", "--method", "rigid", "-d", "4"], "n_components=4 exceeds n_features = 3"),
    "tolerance": (["fit", "x.npy", "--tol", "0"], "tol=0.0; must be positive"),
    "device": (["fit", "x.npy", "--device", "tpu"], "--device 'tpu' is not one of auto, cpu, cuda"),
    "name of a model": (["fit", "x.npy", "--out", "n.pkl"], "--out n.pkl: expected a name that ends in .npz"),
    "no such folder": (["fit", "x.npy", "--out", "no/n.npz"], "the folder no does not exist"),
    "no model": (["transform", "n.npz", "x.npy", "--out", "n.npy"], "n.npz does not exist; give the path of a saved"),
    "data for a model": (["transform", "two.npz", "x.npy", "--out", "n.npy"], "two.npz is not a saved model of isoica"),
    "other columns": (["transform", "rigid.npz", "x.npy", "--out", "n.npy"], "x.npy has 3 columns, but rigid.npz was"),
    "text of sources": (["transform", "linear.npz", "x.npy", "--out", "n.txt"], "ends in .npy or .csv"),
    "report of a chart": (["report", "bare.npz", "i.npz"], "bare.npz holds an embedding alone, RigidAlignment"),
    "level": (["report", "linear.npz", "p.npz", "--level", "1"], "--level has to lie between 0 and 1"),
    "negative eta": (["report", "linear.npz", "p.npz", "--eta", "-1"], "--eta"),
    "picture": (["report", "linear.npz", "p.npz", "--plot", "n.pdf"], "--plot n.pdf: expected a name that ends"),
    "linear chart": (["theta", "linear.npz", "p.npz"], "linear.npz is linear, with no chart to measure"),
    "exponent": (["theta", "rigid.npz", "i.npz", "-p", "0.5"], "-p 0.5: at least 1 is needed"),
    "scale": (["theta", "rigid.npz", "i.npz", "--scale", "2"], "--scale '2' is not one of none, fit, metric"),
    "no module": (["theta", "nomaps:f", "x.npy"], "the module 'nomaps' cannot be imported"),
    "no function": (["theta", "maps:f", "x.npy"], "maps has no 'f'; write MODULE:FUNCTION"),
    "no callable": (["theta", "maps:number", "x.npy"], "maps:number is a int; a function of the latents is needed"),
    "map that fails": (["theta", "maps:broken", "x.npy"], "maps:broken fails on latents of shape (50, 3): KeyError"),
    "map that flattens": (["theta", "maps:flat", "x.npy"], "D >= d"),
    "law": (["simulate", "sources", "--laws", "cauchy", "--out", "n.npz"], "law 'cauchy' is unknown; known are"),
    "no law": (["simulate", "perturbed", "--laws", ",", "--out", "n.npz"], "laws is empty"),
    "perturbation": (["simulate", "perturbed", "--perturbation", "x", "--out", "n.npz"], "not one of mlp, quadratic"),
    "where": (["simulate", "isometric", "--where", "x", "--out", "n.npz"], 'use "inner" or "outer"'),
    "kind of images": (["simulate", "images", "--kind", "x", "--out", "n.npz"], 'use "sprite", "lanes" or'),
    "degree": (["constants", "--degree", "1"], "--degree"),
    "moments": (["constants", "--domain", "student:3"], "a law has no finite moment of order 8; lower"),
    "tolerances": (["bench", "solvers", "--tol", "a,b"], "--tol 'a,b': numbers between commas are needed"),
    "file for a folder": (["eval", "--out", "notes.txt"], "--out notes.txt is a file; a folder is needed"),
    "unknown option": (["fit", "x.npy", "--fast"], "No such option: --fast"),
    "unknown command": (["unmix"], "No such command 'unmix'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2_and_leaves_nothing(run, home, case):
    line, expected = BAD[case]
    before = {p: p.stat().st_mtime_ns for p in home.rglob("*") if "__pycache__" not in p.parts}
    code, out, err = run(*line)
    assert (code, out) == (2, "")
    *warned, last = err.strip().splitlines()
    assert all(w.startswith("warning: ") for w in warned)
    assert last.startswith("error: ")
    assert expected in last
    assert "Traceback" not in err
    assert before == {p: p.stat().st_mtime_ns for p in home.rglob("*") if "__pycache__" not in p.parts}


def test_a_traceback_comes_with_debug_alone(run):
    assert "Traceback" in run("fit", "nothing.npy", "--debug")[2]
    assert "Traceback" not in run("fit", "nothing.npy")[2]


def test_eeg_without_mne_names_what_to_install(run, home, monkeypatch):
    (home / "a.edf").write_bytes(b"0")
    monkeypatch.setitem(sys.modules, "mne", None)
    code, _, err = run("fit", "a.edf")
    assert code == 2
    assert err.startswith("error: this needs mne: pip install mne")


def test_what_has_not_converged_is_written_and_fails_only_if_asked_to(run, home):
    line = ["fit", "p.npz", "--max-iter", 1, "--out", "short.npz", "--json"]
    code, out, err = run(*line)
    assert code == 0
    assert json.loads(out)["converged"] is False
    assert err.startswith("warning: not converged after 1 iterations")
    assert run(*line, "--strict")[0] == 1
    assert load_model(home / "short.npz").converged_ is False


# --- files and processes


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(run, home, monkeypatch):
    (home / "kept.npz").write_bytes(b"old")
    before = set(home.iterdir())

    def full(*_, **__):
        raise OSError(28, "No space left on device", "kept.npz")

    monkeypatch.setattr(np, "savez", full)
    for line in (["fit", "p.npz"], ["fit", "i.npz", "--method", "isomap", "-d", 2], ["simulate", "sources"]):
        code, _, err = run(*line, "--out", "kept.npz")
        assert code == 2
        assert err.splitlines()[-1] == "error: kept.npz: No space left on device"
        assert (home / "kept.npz").read_bytes() == b"old"
    assert set(home.iterdir()) == before


def test_an_interrupted_fit_keeps_the_rotation_it_has(run, home, monkeypatch):
    from isoica.linear import PerturbedICA

    def stop(self, n_iter, objective, gradient):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)

    monkeypatch.setattr(PerturbedICA, "_log", stop)
    code, out, err = run("fit", "p.npz", "--out", "stopped.npz", "--json")
    assert code == 130
    assert json.loads(out)["converged"] is False
    assert "interrupted" in err
    assert load_model(home / "stopped.npz").components_.shape == (3, 3)


def test_help_imports_no_framework():
    heavy = "{'numpy', 'scipy', 'sklearn', 'jax', 'flax', 'matplotlib'}"
    script = (
        "import sys\nfrom isoica.cli import main\nsys.argv = ['isoica', '--help']\n"
        f"try:\n    main()\nfinally:\n    assert not {heavy} & set(sys.modules), sorted({heavy} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("fit", "transform", "report", "theta", "simulate", "constants", "bench", "eval"):
        assert f"\n  {name} " in done.stdout


def test_the_module_runs_as_the_console_script_does():
    done = subprocess.run([sys.executable, "-m", "isoica", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == isoica.__version__ + "\n"


@pytest.mark.parametrize("group", [making.simulate, measuring.bench])
def test_quiet_and_debug_may_stand_after_the_last_word(run, group):
    name = "simulate" if group is making.simulate else "bench"
    last = group.registered_commands[-1].callback.__name__
    code, out, _ = run(name, last, "--help")
    assert code == 0
    assert "--quiet" in out
    assert "--debug" in out


def test_work_without_an_end_in_sight_tells_the_time_in_a_log(monkeypatch, capsys):
    monkeypatch.setattr(printing, "EVERY", 0.01)
    printing.set_volume(printing.USUAL)
    with printing.working("fitting"):
        time.sleep(0.1)
    assert capsys.readouterr().err.startswith("fitting: 0:00\n")
