"""The command line: what it prints and writes, and one line with exit code 2 for whatever cannot be done."""

import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from flax import nnx
from PIL import Image

import onestep_diffusion as osd
from onestep_diffusion.checkpoint import load_model, save_model
from onestep_diffusion.cli import printing
from onestep_diffusion.cli.main import main
from onestep_diffusion.data import load_data

TINY = ["--set", "net_kwargs.hidden=8", "--set", "net_kwargs.blocks=1"]
SHORT = ["--steps", 4, "--batch-size", 8, "--steps-per-call", 2, "-q"]


def call(*arguments):
    """Exit code of the command in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["onestep-diffusion", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
    return stopped.value.code


pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A teacher `t` and a student `s`, both of digits with labels, a generator of points `p`, and odd data."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert call("teacher", "digits", "--out", "t", "--conditional", *TINY, *SHORT) == 0
        assert call("train", "digits", "--teacher", "t", "--out", "s", "--aux-updates", 1, *SHORT) == 0
        points = osd.nets.build({"net": "mlp", "dim": 2, "hidden": 8}, rngs=nnx.Rngs(0))
        save_model("p", osd.Generator(net=points))
    rng = np.random.default_rng(0)
    grey, other = (Image.fromarray(rng.integers(0, 255, s, dtype=np.uint8)) for s in ((8, 8), (8, 9)))
    for name, images in {
        "sizes": {"a.png": grey, "b.png": other},
        "mixed": {"a.png": grey, "b.png": grey.convert("RGB")},
        "empty": {},
        "broken": {"a.png": grey},
    }.items():
        (home / name).mkdir()
        for file, image in images.items():
            image.save(home / name / file)
    (home / "broken" / "b.png").write_bytes(b"\x89PNG no more")
    (home / "words.csv").write_text("x,y\n1,2\n3,red\n")
    (home / "short.csv").write_text("x,y\n1,2\n3\n")
    (home / "bad.zip").write_bytes(b"PK no zip")
    np.save(home / "nan.npy", np.array([[1.0, 2.0], [np.nan, 0.0], [0.0, 1.0]]))
    np.save(home / "constant.npy", np.ones((9, 2)))
    np.save(home / "one.npy", np.ones((1, 2)))
    np.save(home / "objects.npy", np.array([{}, {}]), allow_pickle=True)
    np.savez(home / "labels.npz", x=rng.normal(size=(4, 2)), labels=np.array([0, 1, -1, 0]))
    np.save(home / "odd.npy", rng.integers(0, 255, (8, 9, 9, 1), dtype=np.uint8))
    (home / "edm.pkl").write_bytes(b"")
    (home / "noise.safetensors").write_bytes(b"noise")
    (home / "file").write_text("")
    return home


@pytest.fixture
def run(home, monkeypatch, capsys):
    monkeypatch.chdir(home)

    def run(*arguments):
        code = call(*arguments)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


BAD = {
    "no such data": (["teacher", "nonsense", "--out", "n"], "neither a file or folder nor one of digits"),
    "mixed sizes": (["teacher", "sizes", "--out", "n"], "sizes/b.png is 9 x 8 but a.png is 8 x 8"),
    "grey and colour": (["teacher", "mixed", "--out", "n"], "mixed/b.png is colour but a.png is grayscale"),
    "empty folder": (["teacher", "empty", "--out", "n"], "empty: no images"),
    "unreadable image": (["teacher", "broken", "--out", "n"], "broken/b.png: not a readable image"),
    "damaged zip": (["teacher", "bad.zip", "--out", "n"], "bad.zip: not a whole zip"),
    "word in a table": (["teacher", "words.csv", "--out", "n"], "words.csv, line 3: column 'y' has 'red'"),
    "short line": (["teacher", "short.csv", "--out", "n"], "short.csv, line 3: 1 cells where 2"),
    "nan": (["teacher", "nan.npy", "--out", "n"], "nan.npy: row 1"),
    "constant": (["teacher", "constant.npy", "--out", "n"], "constant"),
    "one row": (["teacher", "one.npy", "--out", "n"], "at least 2 rows"),
    "pickle": (["teacher", "objects.npy", "--out", "n"], "objects.npy: not a readable .npy"),
    "labels": (["teacher", "labels.npz", "--out", "n"], "labels have to be integers from 0"),
    "size of images": (["teacher", "odd.npy", "--preset", "unet8", "--out", "n"], "image_size"),
    "preset": (["teacher", "moons", "--preset", "unet9", "--out", "n"], "net has to be one of"),
    "preset for images": (["teacher", "moons", "--preset", "unet8", "--out", "n"], "square images"),
    "sigma law": (["teacher", "moons", "--sigma-law", "normal", "--out", "n"], "not one of lognormal"),
    "sigma": (["teacher", "moons", "--sigma-law", "fixed:0", "--out", "n"], "out of range"),
    "steps": (["teacher", "moons", "--steps", "0", "--out", "n"], "steps has to be at least 1; got 0"),
    "no labels": (["teacher", "moons", "--conditional", "--out", "n"], "needs labels"),
    "setting": (["teacher", "moons", "--set", "step=3", "--out", "n"], "did you mean steps"),
    "setting alone": (["teacher", "moons", "--set", "steps", "--out", "n"], "KEY=VALUE"),
    "kind of setting": (
        ["teacher", "moons", "--set", "steps=many", "--out", "n"],
        "steps has to be an integer; got 'many'",
    ),
    "network's setting": (
        ["teacher", "moons", "--set", "net_kwargs.width=3", "--out", "n"],
        "settings among dim, hidden",
    ),
    "no option": (["teacher", "moons", "--speed", "9", "--out", "n"], "No such option"),
    "no command": (["learn"], "No such command"),
    "out is a file": (["teacher", "moons", "--out", "file"], "file is a file"),
    "out is nowhere": (["teacher", "moons", "--out", "no/where"], "folder no does not exist"),
    "out holds a run": (["teacher", "digits", "--out", "t", "--conditional", *TINY, *SHORT], "already holds a run"),
    "device": (["teacher", "moons", "--device", "tpu", "--out", "n"], "not one of auto, cpu, cuda"),
    "no teacher": (["train", "moons", "--out", "n"], "--init teacher needs --teacher DIR"),
    "missing teacher": (["train", "moons", "--teacher", "no", "--out", "n"], "onestep-diffusion teacher DATA --out no"),
    "not a teacher": (["train", "digits", "--teacher", "s", "--out", "n"], "holds no denoiser; it holds generator"),
    "teacher's data": (["train", "moons", "--teacher", "t", "--out", "n"], "rows are (2,), but the teacher's"),
    "teacher's network": (["train", "digits", "--teacher", "t", "--preset", "mlp", "--out", "n"], "--preset is the"),
    "score": (["train", "moons", "--init", "random", "--method", "score", "--out", "n"], "needs a teacher"),
    "single level": (
        ["train", "digits", "--teacher", "t", "--init", "single_level", "--out", "n"],
        "run: onestep-diffusion teacher DATA --sigma-law fixed:2.5",
    ),
    "init": (["train", "digits", "--teacher", "t", "--init", "best", "--out", "n"], "not one of teacher, random"),
    "glob": (["train", "digits", "--teacher", "t", "--init", "blocks:conv9", "--out", "n"], "no parameter matches"),
    "method": (["train", "moons", "--init", "random", "--method", "gen", "--out", "n"], "method has to be one of"),
    "divergence": (["train", "moons", "--init", "random", "--divergence", "kl", "--out", "n"], "rkl"),
    "alpha": (["train", "moons", "--init", "random", "--divergence", "alpha", "--out", "n"], "alpha"),
    "sigma_init": (["train", "moons", "--init", "random", "--sigma-init", "-1", "--out", "n"], "sigma_init has to be"),
    "stopping": (["train", "moons", "--init", "random", "--stop-when", "good", "--out", "n"], "indistinguishable"),
    "features": (["train", "moons", "--init", "random", "--features", "best", "--out", "n"], "raw, digits, fashion"),
    "changed on resuming": (
        ["train", "digits", "--teacher", "t", "--out", "s", "--aux-updates", 1, "--lr", "0.5", *SHORT, "--resume"],
        "lr was 0.0002, is 0.5",
    ),
    "nothing to sample": (["sample", "no", "--out", "n.npz"], "no: no such folder"),
    "no model": (["sample", "empty", "--out", "n.npz"], "holds no generator"),
    "no ratio": (["sample", "p", "--candidates", "4", "--out", "n.npz"], "holds no ratio, which --candidates needs"),
    "teacher's candidates": (["sample", "t", "--candidates", "4", "--out", "n.npz"], "holds a teacher"),
    "select": (["sample", "s", "--candidates", "4", "--select", "top", "--out", "n.npz"], "sir, rejection, best-of"),
    "ending": (["sample", "s", "--out", "n.jpg"], ".npz or .png"),
    "full folder": (["sample", "s", "--out", "sizes"], "something in it"),
    "no images": (["sample", "p", "--out", "n"], "no images, which a folder is for"),
    "class": (["sample", "s", "--labels", "10", "--out", "n.npz"], "0 … 9"),
    "class word": (["sample", "s", "--labels", "ten", "--out", "n.npz"], "whole numbers"),
    "no classes": (["sample", "p", "--labels", "1", "--out", "n.npz"], "no classes"),
    "evaluations": (["sample", "s", "--evaluations", "2", "--out", "n.npz"], "has to divide few_steps=1"),
    "sigma_v": (["sample", "s", "--candidates", "2", "--sigma-v", "0", "--out", "n.npz"], "--sigma-v 0.0: a positive"),
    "sigma_v alone": (["sample", "s", "--sigma-v", "0.5", "--out", "n.npz"], "for --candidates or --curve"),
    "curve of rejection": (
        ["sample", "s", "--curve", "digits", "--select", "rejection", "--out", "n.npz"],
        "--curve is of --select sir or best-of",
    ),
    "features of a curve": (
        ["sample", "s", "--curve", "digits", "--refit", "digits", "--features", "best", "--out", "n.npz"],
        "'best' is not one of raw",
    ),
    "refit data": (["sample", "s", "--refit", "moons", "--out", "n.npz"], "was trained on 'digits'"),
    "certified data": (["certify", "s", "moons", "--out", "n.json"], "was trained on 'digits'"),
    "certified file": (["certify", "s", "nowhere.csv", "--out", "n.json"], "is neither a file or folder nor one of"),
    "nothing to certify": (["certify", "p", "moons", "--out", "n.json"], "holds no ratio, which certify needs"),
    "levels": (["certify", "s", "digits", "--sigmas", "1,0", "--out", "n.json"], "sigma has to be positive"),
    "level word": (["certify", "s", "digits", "--sigmas", "low", "--out", "n.json"], "numbers between commas"),
    "confidence": (["certify", "s", "digits", "--level", "95", "--out", "n.json"], "between 0 and 1"),
    "shapes": (["metrics", "moons", "digits"], "rows of shape (2,)"),
    "features of points": (["metrics", "moons", "moons", "--features", "digits"], "features"),
    "strategy": (["probe", "t", "digits", "--strategies", "teacher,best", "--out", "n"], "not one of teacher, random"),
    "strategy's teacher": (["probe", "t", "digits", "--strategies", "off_level", "--out", "n"], "lognormal:-1.8,0.6"),
    "twice": (["probe", "t", "digits", "--strategies", "random,random", "--out", "n"], "given twice"),
    "teacher steps": (["probe", "t", "digits", "--teacher-steps", "0,many", "--out", "n"], "whole numbers"),
    "probe's data": (["probe", "t", "moons", "--out", "n"], "rows are (2,)"),
    "delta": (["bias", "--delta", "0", "--out", "n"], "positive"),
    "bias sigma": (["bias", "--sigmas", "-1", "--out", "n"], "sigma has to be positive"),
    "alphas": (["frontier", "t", "digits", "--alphas", "zero", "--out", "n"], "numbers between commas"),
    "published pickle": (["convert", "edm.pkl", "--out", "n"], "pickle"),
    "noise": (["convert", "noise.safetensors", "--out", "n"], "noise.safetensors is no safetensors file"),
    "nothing to convert": (["convert", "no.safetensors", "--out", "n"], "no such file"),
    "dtype": (["convert", "t/denoiser.safetensors", "--dtype", "int8", "--out", "n"], "float32, float16"),
    "nothing to tell": (["info", "empty"], "holds no model"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2_and_leaves_nothing(case, run, home):
    arguments, words = BAD[case]
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before


def test_help_and_version_answer_without_a_framework():
    code = (
        "import sys; sys.argv = ['onestep-diffusion', '--help']\n"
        "from onestep_diffusion.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert not {'jax', 'flax', 'numpy', 'sklearn', 'matplotlib', 'torch'} & set(sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(name in shown for name in ("teacher", "train", "sample", "certify", "probe", "bias", "eval"))


def test_version_is_the_packages(run):
    assert run("--version") == (0, osd.__version__ + "\n", "")


def test_student_folder_holds_what_training_promises(home):
    there = {path.name for path in (home / "s").iterdir()}
    pictures = {"samples_000002.png", "samples_000004.png", "curve.png"}
    assert {"metrics.jsonl", "config.json", "checkpoints", *pictures} <= there
    lines = [json.loads(line) for line in (home / "s" / "metrics.jsonl").read_text().splitlines()]
    assert {"step", "aux_loss", "js_bins", "field_bins", "ess", "images_per_s"} <= set(lines[0])
    assert json.loads((home / "s" / "config.json").read_text())["data"] == "digits"


def test_resuming_a_finished_run_changes_no_weight(run, home):
    before = (home / "s" / "generator.safetensors").read_bytes()
    code, out, _ = run(
        "train", "digits", "--teacher", "t", "--out", "s", "--aux-updates", 1, *SHORT, "--resume", "--json"
    )
    assert code == 0
    assert json.loads(out)["steps"] == 4
    assert (home / "s" / "generator.safetensors").read_bytes() == before


def test_samples_are_the_same_in_every_form_and_by_the_library(run, home):
    model = load_model(home / "s", "generator")
    expected = model.sample(5, seed=3)
    assert run("sample", "s", "--n", 5, "--seed", 3, "--out", "five.npz")[0] == 0
    assert run("sample", "s", "--n", 5, "--seed", 3, "--batch-size", 2, "--out", "two.npz")[0] == 0
    with np.load(home / "five.npz") as five, np.load(home / "two.npz") as two:
        assert five["x"].shape == (5, 8, 8, 1)
        np.testing.assert_allclose(five["x"].reshape(5, 64), expected, rtol=1e-6)
        np.testing.assert_allclose(two["x"], five["x"], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(five["labels"], model.draw_labels(5, seed=3))
    assert run("sample", "s", "--n", 5, "--seed", 3, "--out", "folder")[0] == 0
    images = load_data(str(home / "folder"), held_out=0.0).x
    np.testing.assert_allclose(images.reshape(5, 64), np.clip(expected / 16 * 255, 0, 255).round(), atol=1)
    assert run("sample", "s", "--n", 5, "--out", "grid.png")[0] == 0
    assert Image.open(home / "grid.png").size == (96, 64)
    assert run("sample", "p", "--n", 5, "--out", "points.png")[0] == 0
    assert run("sample", "t", "--n", 5, "--steps", 3, "--out", "heun.npz")[0] == 0
    with np.load(home / "heun.npz") as found:
        heun = load_model(home / "t", "denoiser").sample(5, steps=3)
        np.testing.assert_allclose(found["x"].reshape(5, 64), heun, rtol=1e-6)


def test_labels_are_taken_in_turn_and_kept_among_candidates(run, home):
    code, out, err = run("sample", "s", "--n", 6, "--labels", "3,8", "--candidates", 4, "--out", "l.npz", "--json")
    assert code == 0
    assert json.loads(out)["evaluations a sample"] == 4
    assert 1 <= json.loads(out)["effective candidates"] <= 4
    assert err.startswith("warning: s has the ratio of training only")
    with np.load(home / "l.npz") as found:
        assert found["labels"].tolist() == [3, 8, 3, 8, 3, 8]


def test_raw_weights_are_the_last_ones(run, home):
    assert run("sample", "s", "--n", 3, "--raw", "--out", "raw.npz")[0] == 0
    with np.load(home / "raw.npz") as found:
        last = load_model(home / "s" / "generator_raw.safetensors").sample(3)
        np.testing.assert_allclose(found["x"].reshape(3, 64), last, rtol=1e-6)


def test_refitted_ratio_is_kept_and_measured_along_a_curve(run, home):
    command = ["sample", "s", "--n", 4, "--candidates", 2, "--refit", "digits", "--refit-steps", 4]
    code, out, _ = run(*command, "--curve", "digits", "--out", "v.npz", "--json")
    assert code == 0
    shown = json.loads(out)
    assert load_model(home / "s" / "verifier.safetensors").sigma_v == shown["sigma_v"]
    assert [row["candidates"] for row in shown["curve"]] == [1, 2]
    assert all(row["fd"] > 0 for row in shown["curve"])
    assert (home / "v_curve.png").is_file()
    _, _, err = run("sample", "s", "--n", 4, "--candidates", 2, "--out", "v.npz")
    assert "ratio of training only" not in err


def test_certificate_has_a_line_for_every_level(run, home):
    code, out, _ = run("certify", "s", "digits", "--sigmas", "0.2,1", "--out", "c.json")
    assert code == 0
    assert "nats with confidence 0.95" in out
    found = json.loads((home / "c.json").read_text())
    assert [row["sigma"] for row in found["levels"]] == [0.2, 1.0]
    assert found["held_out_rows"] == len(load_data("digits", seed=0).held_out)
    assert found["js_lower"] <= max(row["js_lower"] for row in found["levels"])
    assert (home / "c.png").is_file()


def test_metrics_of_equal_rows_are_those_of_no_distance(run):
    code, out, _ = run("metrics", "gmm:ring8", "gmm:ring8", "--n", 500, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["gmm:ring8"]["modes"] == 8
    assert found["gmm:ring8"]["precision"] > 0.9
    assert found["gmm:ring8, held out"]["Frechet distance"] < 0.05


def test_converted_model_samples_alike(run, home):
    code, out, _ = run("convert", "t/denoiser.safetensors", "--out", "half", "--dtype", "float16", "--json")
    assert code == 0
    assert json.loads(out)["file"] == "half/denoiser.safetensors"
    before, after = (load_model(home / name, "denoiser").sample(4, steps=3) for name in ("t", "half"))
    np.testing.assert_allclose(after, before, atol=0.05)


def test_info_counts_what_is_there(run, home):
    code, out, _ = run("info", "s", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["generator parameters"] == osd.count_parameters(load_model(home / "s", "generator"))
    assert found["aux_updates"] == 1
    rho = found["forward passes an update"]
    assert 4 < rho < 12  # 4 + 8 rho for one update of the ratio


def test_probe_measures_before_and_after_training(run, home):
    command = ["probe", "t", "digits", "--strategies", "teacher,features_only", "--steps", 4, "--sigmas", "0.2"]
    command += ["--seeds", 2, "--head-warmup", "--teacher-steps", "0,3", "--method", "ict"]
    command += ["--set", "batch_size=8", "--set", "steps_per_call=2", "-q"]
    code, out, _ = run(*command, "--out", "probed", "--json")
    assert code == 0
    found = json.loads(out)
    rows = {row["strategy"]: row for row in found["strategies"]}
    assert list(rows) == ["teacher", "features_only", "features_only + head warm-up"]
    assert rows["teacher"]["e_map"] == 0
    assert rows["teacher"]["cka"] == pytest.approx(1)
    assert rows["features_only"]["e_map"] > 0
    assert rows["features_only"]["cka"] < 1
    for row in rows.values():
        assert [step for step, _ in row["curve"]] == [2, 4]
        assert row["fd"] == pytest.approx(np.mean(row["fds"]))
        assert len(row["fds"]) == 2
    places = [(row["sigma"], row["block"]) for row in found["probes"]["teacher"]]
    assert places == [(sigma, block) for sigma in (0.2,) for block in ("stem", "block0")]
    budget = found["teacher_steps"]
    assert [row["teacher_passes"] for row in budget] == [0, 3 * 3 * 128]
    assert [row["student_passes"] for row in budget] == [4 * 4 * 8] * 2  # four passes of a sample in iCT
    assert {path.name for path in (home / "probed").iterdir()} == {
        "probe.json", "quality.png", "cka.png", "accuracy.png", "rank.png", "teacher_steps.png"
    }  # fmt: skip


def test_bias_writes_table_and_picture(run, home, monkeypatch):
    def measured(deltas, sigmas, seeds, **_):
        names = ("independent_scores", "scores_from_teacher", "ratio", "hybrid", "hybrid_from_samples")
        places = [{"seed": k, "delta": d, "sigma": s} for k in seeds for d in deltas for s in sigmas]
        return [place | dict.fromkeys(names, place["delta"] ** (-0.5)) for place in places]

    monkeypatch.setattr("onestep_diffusion.bias.gradient_bias", measured)
    code, out, _ = run("bias", "--delta", "1,0.1", "--sigmas", "0.3,1", "--seeds", 2, "--out", "biased")
    assert code == 0
    assert "slope of log error" in out
    found = json.loads((home / "biased" / "bias.json").read_text())
    assert [row["seed"] for row in found["errors"]] == [0] * 4 + [1] * 4
    assert [row["ratio"] for row in found["slopes"]] == pytest.approx([-0.5, -0.5])
    assert (home / "biased" / "bias.png").is_file()


def test_progress_in_a_log_has_rate_and_time_left(capsys):
    printing.set_volume(printing.USUAL)
    entry = {"step": 10, "steps": 10, "aux_loss": 1.25, "js_bins": [0.1, None], "images_per_s": 50.0, "eta_s": 61}
    with printing.training_progress("student") as report:
        report(entry)
    said = capsys.readouterr().err
    assert said == "student 10/10: loss of the second network 1.25 JS > 0.100 50 images/s ETA 1:01\n"


def test_stopped_training_says_how_to_go_on(run, home, monkeypatch):
    import onestep_diffusion.train as train

    def stop(*_, **__):
        raise osd.errors.InterruptedRun("stopped at step 2 of 4; go on with --resume --out x")

    monkeypatch.setattr(train, "train_teacher", stop)
    assert run("teacher", "moons", "--out", "x") == (
        1, "", "error: stopped at step 2 of 4; go on with --resume --out x\n"
    )  # fmt: skip


def test_model_of_another_kind_is_refused(run, home):
    (home / "kinds").mkdir()
    save_model(home / "kinds" / "generator.safetensors", load_model(home / "t", "denoiser"))
    code, _, err = run("sample", "kinds", "--out", "k.npz")
    assert (code, "holds a denoiser, not a generator" in err) == (2, True)


def test_zip_of_images_is_data(run, home):
    with zipfile.ZipFile(home / "two.zip", "w") as archive:
        for place in range(8):
            archive.write(home / "sizes" / "a.png", f"{place}.png")
    code, _, err = run("metrics", "two.zip", "two.zip", "--k", 2)
    assert (code, "constant" in err) == (2, True)
