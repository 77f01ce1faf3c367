"""The command line: what it prints and writes, and one line with the right exit code for whatever cannot be done."""

import json
import os
import pty
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from common import digits, started

import pmae
from pmae.cli import training
from pmae.cli.main import main
from pmae.cli.training import merged

TINY = ("--set", "model.dim=16", "--set", "model.depth=1", "--set", "model.heads=2", "--set", "model.decoder_dim=16")
SHORT = ("--preset", "tiny", *TINY, "--batch-size", 64, "--lr", 1e-3, "--set", "train.augment=flip")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a space and a trained run of each method: `space.safetensors`, `run`, `mae`."""
    folder = tmp_path_factory.mktemp("home")
    for arguments in (
        ("fit-basis", "digits", "--out", "space.safetensors", "--set", "std_floor=0.05"),
        (
            "pretrain",
            "digits",
            "--space",
            "space.safetensors",
            "--out",
            "run",
            "--epochs",
            3,
            "--heldout",
            "test",
            *SHORT,
        ),
        ("pretrain", "digits", "--method", "mae", "--out", "mae", "--epochs", 2, *SHORT),
    ):
        process = started(folder, *arguments, stderr=folder / "stderr")
        process.join()
        assert process.exitcode == 0, (folder / "stderr").read_text()
    return folder


@pytest.fixture
def run(home, monkeypatch, capsys):
    monkeypatch.chdir(home)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["pmae", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        return stopped.value.code, printed.out, printed.err

    return call


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- what commands do -------------------------------------------------------------------------------------------------


def test_help_and_version_answer_without_a_framework():
    code = (
        "import sys; sys.argv = ['pmae', '--help']\n"
        "from pmae.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'timm', 'sklearn', 'matplotlib', 'yaml'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "fit-basis" in done.stdout


def test_version(run):
    assert run("--version") == (0, f"{pmae.__version__}\n", "")
    command = [sys.executable, "-m", "pmae", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"{pmae.__version__}\n"


def test_every_command_has_help(run):
    for command in (
        "fit-basis",
        "inspect",
        "pretrain",
        "search-ratio",
        "embed",
        "probe",
        "reconstruct",
        "export",
        "compare",
        "bench",
    ):
        assert run(command, "--help")[0] == 0
    for command in (("eval",), ("data", "list"), ("data", "check"), ("data", "make")):
        assert run(*command, "--help")[0] == 0


def test_space_of_the_command_line_is_that_of_the_library(home):
    made = pmae.MaskSpace.load(home / "space.safetensors")
    expected = pmae.fit_space(pmae.data.load("digits").images, std_floor=0.05)
    assert made.fingerprint() == expected.fingerprint()


def test_training_of_the_command_line_is_that_of_the_library(home):
    sizes = {"dim": 16, "depth": 1, "heads": 2, "decoder_dim": 16}
    model = pmae.PMAE(pmae.PMAEConfig("tiny", **sizes), pmae.MaskSpace.load(home / "space.safetensors"))
    images = pmae.data.load("digits").images
    done = pmae.fit(model, images, 3, batch_size=64, lr=1e-3, augment="flip", device="cpu")
    assert [r["loss"] for r in records(home / "run" / "metrics.jsonl")] == [r["loss"] for r in done.history]
    facts = json.loads((home / "run" / "run.json").read_text())
    assert (facts["data"], facts["method"], facts["finished"]) == ("digits", "PMAE", True)


def test_training_tells_an_epoch_a_line(run, tmp_path):
    code, out, err = run(
        "pretrain", "digits", "--space", "space.safetensors", "--out", tmp_path / "r", "--epochs", 2, *SHORT
    )
    assert code == 0
    lines = err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    for word in ("loss", "FVU", "hidden", "lr", "images/s", "ETA"):
        assert word in lines[0]
    assert "steps              42" in out
    silent = run(
        "pretrain", "digits", "--space", "space.safetensors", "--out", tmp_path / "q", "--epochs", 1, *SHORT, "-q"
    )
    assert silent[2] == ""


def test_terminal_shows_a_bar(home, tmp_path):
    ours, theirs = pty.openpty()
    arguments = ("pretrain", "digits", "--space", "space.safetensors", "--out", tmp_path / "r", "--epochs", 2, *SHORT)
    process = started(home, *arguments, stderr=os.ttyname(theirs))
    shown = os.read(ours, 4096)  # so the process has opened its side
    os.close(theirs)
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # as the other side closes
            break
        if not part:
            break
        shown += part
    process.join()
    assert process.exitcode == 0
    assert "━".encode() in shown
    assert b"FVU" in shown


def test_stopping_after_an_epoch_and_going_on_is_the_whole_run(run, home, tmp_path):
    arguments = ("pretrain", "digits", "--space", "space.safetensors", "--out", tmp_path / "r", "--epochs", 3, *SHORT)
    assert run(*arguments, "--stop-after", 1)[0] == 0
    assert len(records(tmp_path / "r" / "metrics.jsonl")) == 1
    assert run(*arguments)[0] == 0
    losses = [[r["loss"] for r in records(folder / "metrics.jsonl")] for folder in (tmp_path / "r", home / "run")]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_exits_with_130(sent, home, tmp_path):
    folder = tmp_path / "r"
    arguments = ("--space", "space.safetensors", "--out", folder, "--epochs", 10_000, *SHORT)
    process = started(home, "pretrain", "digits", *arguments, stderr=tmp_path / "stderr")
    while not (folder / "metrics.jsonl").exists():
        assert process.is_alive(), (tmp_path / "stderr").read_text()
        time.sleep(0.05)
    os.kill(process.pid, sent)
    process.join()
    assert process.exitcode == 130
    assert (tmp_path / "stderr").read_text().splitlines()[-1] == "error: interrupted"
    facts = json.loads((folder / "run.json").read_text())
    assert facts["finished"] is False
    assert facts["steps_done"] == records(folder / "metrics.jsonl")[-1]["step"]
    assert f"ckpt-{facts['steps_done']}" == (folder / "checkpoints" / "latest").read_text().strip()


def test_settings_of_the_line_win_over_set_over_the_file_over_the_preset(tmp_path):
    file = tmp_path / "cell.yaml"
    file.write_text(yaml.safe_dump({
        "data": "digits", "method": "mae", "space": {"standardize": "channel"}, "seeds": 3,
        "model": {"preset": "vit_t8_paper", "ratio": 0.1, "patch_size": 2},
        "train": {"epochs": 5, "lr": 1e-3, "betas": [0.9, 0.99]},
    }))  # fmt: skip
    line = {"model": {"ratio": 0.3, "preset": None}, "train": {"batch_size": None}, "method": "pmae", "data": None}
    found = merged(file, ["model.ratio=0.2", "model.depth=2", "train.lr=2e-3"], line)
    assert found["model"] == {"preset": "vit_t8_paper", "ratio": 0.3, "patch_size": 2, "depth": 2}
    assert found["train"] == {
        "epochs": 5, "lr": 2e-3, "betas": (0.9, 0.99), "batch_size": 512, "warmup": "exp10", "warmup_epochs": 40,
        "decay_all": True,
    }  # fmt: skip
    assert (found["data"], found["method"], found["space"]) == ("digits", "pmae", {"standardize": "channel"})


def test_configuration_of_a_run_repeats_it(run, home, tmp_path):
    given = ("--space", "space.safetensors", "--config", home / "run" / "config.yaml", "--out", tmp_path / "again")
    assert run("pretrain", "digits", *given)[0] == 0
    losses = [[r["loss"] for r in records(f / "metrics.jsonl")] for f in (tmp_path / "again", home / "run")]
    assert losses[0] == losses[1]


def test_file_for_several_values_asks_for_one_of_them(tmp_path):
    file = tmp_path / "cell.yaml"
    file.write_text("data: digits\ntrain: {epochs: 1}\nsweep: {ratio: [0.5, 0.75]}\n")
    with pytest.raises(ValueError, match=r"several values of ratio: choose one of \[0.5, 0.75\]"):
        merged(file, None, {})
    assert merged(file, ["model.ratio=0.5"], {})["model"]["ratio"] == 0.5


def test_held_out_images_are_the_test_split_or_those_of_other_data(run, home, tmp_path):
    images = pmae.data.load("digits", "test").images[:, 0]
    np.savez(tmp_path / "f.npz", train_images=images[:9], test_images=images[:100])
    np.save(tmp_path / "f.npy", images[:100])
    given = ("pretrain", "digits", "--space", "space.safetensors", "--epochs", 1, *SHORT)
    looked = []
    for name in ("test", "digits", f"npz:{tmp_path / 'f.npz'}", f"npy:{tmp_path / 'f.npy'}"):
        code, out, _ = run(*given, "--out", tmp_path / "r", "--resume", "never", "--heldout", name, "--json")
        assert code == 0
        looked.append(json.loads(out))
        (record,) = records(tmp_path / "r" / "bands.jsonl")
        assert looked[-1]["heldout fvu"] == record["fvu"]
        assert looked[-1]["heldout r2"] == {band: 1 - fvu for band, fvu in record["bands"].items()}
        assert (tmp_path / "r" / "bands.png").read_bytes()[:4] == b"\x89PNG"
    assert (
        looked[0]["heldout fvu"] == looked[1]["heldout fvu"]
    )  # as without --heldout, the test split is not trained on
    assert looked[2]["heldout fvu"] == looked[3]["heldout fvu"] != looked[0]["heldout fvu"]
    assert looked[0]["loss"] == looked[2]["loss"]
    assert json.loads((tmp_path / "r" / "run.json").read_text())["heldout"] == f"npy:{tmp_path / 'f.npy'}"


def test_records_go_to_tensorboard(run, tmp_path):
    pytest.importorskip("tensorboard")
    given = ("pretrain", "digits", "--space", "space.safetensors", "--out", tmp_path / "r", "--epochs", 1, *SHORT)
    assert run(*given, "--track", "tensorboard")[0] == 0
    assert len(list((tmp_path / "r" / "tensorboard").glob("events.*"))) == 1


def test_search_for_a_ratio_is_that_of_the_library(run, home, monkeypatch):
    given = ("--ratios", "0.1,0.2,0.4,0.6", "--epochs", 1, "--heldout", "test", *SHORT)
    code, out, err = run("search-ratio", "digits", "--space", "space.safetensors", *given, "--json")
    assert code == 0
    assert [line.split(":")[0] for line in err.splitlines()] == [f"ratio {r}" for r in (0.1, 0.2, 0.4, 0.6)]
    train, test = (pmae.data.load("digits", split).images for split in ("train", "test"))
    expected = pmae.search_ratio(
        train, pmae.MaskSpace.load(home / "space.safetensors"),
        pmae.PMAEConfig("tiny", dim=16, depth=1, heads=2, decoder_dim=16), (0.1, 0.2, 0.4, 0.6), 1, test,
        batch_size=64, lr=1e-3, augment="flip", device="cpu",
    )  # fmt: skip
    found = json.loads(out)
    assert (found["ratio"], found["fvu"]) == (expected.ratio, expected.fvu.tolist())
    monkeypatch.setattr("pmae.ratio_search.search_ratio", lambda *_, **__: expected)
    code, out, _ = run("search-ratio", "digits", "--space", "space.safetensors", *given)
    assert [line.split()[:2] for line in out.splitlines()[1:5]] == [
        [f"{r:g}", f"{f:.4g}"] for r, f in zip(expected.ratios, expected.fvu, strict=True)
    ]
    assert out.splitlines()[-1].startswith(f"ratio {expected.ratio:.3g}: ")


def test_ratio_may_be_a_pair():
    assert training._ratio("0.15") == 0.15
    assert training._ratio("0.1,0.9") == [0.1, 0.9]


def test_embedding_is_the_models_features(run, home, tmp_path):
    code, _, _ = run("embed", "run", "digits", "--split", "test", "--pool", "cls", "--out", tmp_path / "f.npz")
    assert code == 0
    found, images = np.load(tmp_path / "f.npz"), pmae.data.load("digits", "test")
    with torch.no_grad():
        expected = pmae.load(home / "run").features(torch.from_numpy(images.images / 255).float(), "cls")
    np.testing.assert_allclose(found["features"], expected.numpy(), atol=1e-5)
    assert found["features"].dtype == np.float32
    np.testing.assert_array_equal(found["labels"], images.labels)


def test_probes_are_printed_kept_and_compared(run, home):
    code, out, _ = run("probe", "run", "digits", "--kind", "knn", "--json")
    assert code == 0
    shown = json.loads(out)
    assert 0.1 < shown["accuracy"] <= 1
    assert shown == records(home / "run" / "probes.jsonl")[-1]
    code, out, _ = run("probe", "mae", "digits", "--pool", "cls")
    assert code == 0
    assert "balanced_accuracy" in out
    code, out, _ = run("compare", "run", "mae", "--json")
    assert code == 0
    first, second = json.loads(out)["runs"]
    assert (first["method"], first["epochs"], first["knn avg"]) == ("pmae", 3, shown["accuracy"])
    assert (second["method"], second["ratio"]) == ("mae", 0.75)
    assert "linear cls" in second
    shown = run("compare", "run", "mae")[1].splitlines()
    assert len(shown) == 3 + 4
    last = records(home / "run" / "bands.jsonl")[-1]
    assert shown[4] == "R² of components on held-out images"
    assert shown[5].split() == ["run", *last["bands"]]
    assert shown[6].split() == ["run", *(f"{1 - fvu:.4g}" for fvu in last["bands"].values())]
    assert first["heldout fvu"] == last["fvu"]
    assert "heldout fvu" not in second


@pytest.mark.parametrize("name", ["run", "mae"])
def test_reconstruction_is_drawn(name, run, tmp_path):
    code, out, _ = run("reconstruct", name, "digits", "--n", 3, "--out", tmp_path / "fig.png", "--json")
    assert code == 0
    assert (tmp_path / "fig.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads(out)["images"] == 3


def test_export_writes_what_timm_reads(run, home, tmp_path):
    import timm

    assert run("export", "run", "--format", "timm", "--out", tmp_path / "timm")[0] == 0
    encoder = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    model = pmae.load(home / "run")
    x = torch.from_numpy(digits()[:4, None] / 255).float()
    with torch.no_grad():
        expected = model.features(x, "cls")
        assert torch.allclose(encoder(model.standardizer.standardize(x)), expected, atol=1e-5)


def test_inspection_writes_numbers_and_pictures(run, tmp_path):
    out = tmp_path / "seen"
    code, printed, _ = run("inspect", "space.safetensors", "--data", "digits", "--out", out, "--draws", 400)
    assert code == 0
    pictures = ("scree", "components", "realised_shares", "inclusion", "redundancy", "examples")
    assert sorted(path.name for path in out.iterdir()) == sorted(["inspect.json", *(f"{p}.png" for p in pictures)])
    found = json.loads((out / "inspect.json").read_text())
    unbiased = next(row for row in found["samplers"] if row["rule"] == "unbiased" and row["ratio"] == 0.15)
    assert abs(unbiased["mean"] - 0.15) < 4 * unbiased["sd"] / 20
    redundancy = {row["basis"]: row["fvu"] for row in found["redundancy"]}
    assert redundancy["pca"] > 0.999
    assert redundancy["pca"] == max(v for name, v in redundancy.items() if name != "haar_pca")
    assert "held-out" in printed


def test_inspection_needs_no_data(run, tmp_path):
    assert run("inspect", "space.safetensors", "--out", tmp_path / "seen", "--draws", 20)[0] == 0
    assert "redundancy" not in json.loads((tmp_path / "seen" / "inspect.json").read_text())


def test_data_commands(run, tmp_path):
    code, out, _ = run("data", "list")
    assert code == 0
    assert "photopatch" in out
    assert run("data", "check", "digits")[1].endswith("nothing looks wrong\n")
    assert (
        run("data", "make", "photopatch", "--size", 24, "--n", 40, "--n-test", 20, "--out", tmp_path / "f.npz")[0] == 0
    )
    code, out, _ = run("data", "check", f"npz:{tmp_path / 'f.npz'}", "--json")
    assert code == 0
    assert json.loads(out)["splits"]["train"]["shape"] == [3, 24, 24]


def test_images_are_made_to_fit_the_model(run, tmp_path):
    """A model of 8×8 grey images embeds colour crops of 16×16."""
    assert run("embed", "run", "photopatch", "--option", "n=10", "--out", tmp_path / "f.npz")[0] == 0
    assert len(np.load(tmp_path / "f.npz")["features"]) == 10


def test_torchrun_trains_on_two_processes(home, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pmae.cli"]
    given = ("pretrain", "digits", "--out", tmp_path / "r", "--epochs", 1, *SHORT, "--set", "space.std_floor=0.05")
    done = subprocess.run(
        [*command, *map(str, given)],
        cwd=home,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("steps") == 1
    assert json.loads((tmp_path / "r" / "run.json").read_text())["processes"] == 2
    # The moments were summed over both processes: the space is the one of a single process.
    alone = pmae.MaskSpace.load(home / "space.safetensors")
    assert torch.allclose(pmae.load(tmp_path / "r").space.shares, alone.shares, rtol=1e-6)


# --- what cannot be done ----------------------------------------------------------------------------------------------

FIT = ("fit-basis", "digits", "--out", "x.safetensors")
TRAIN = ("pretrain", "digits", "--space", "space.safetensors", "--epochs", 1, "--out", "x", *SHORT)

REFUSED = [
    # 2: usage, and values that there are not
    (("nothing",), 2, "No such command 'nothing'"),
    (("pretrain", "digits", "--out", "x", "--epochs"), 2, "--epochs"),
    (("pretrain", "digits", "--epochs", 3), 2, "Missing option '--out'"),
    (("pretrain", "digits", "--out", "x"), 2, "epochs is not set"),
    (("pretrain", "--out", "x", "--epochs", 1), 2, "no data: give DATA"),
    ((*TRAIN, "--preset", "vit_huge"), 2, "vit_huge"),
    ((*TRAIN, "--method", "simclr"), 2, "method 'simclr': one of pmae, mae"),
    ((*TRAIN, "--ratio", "1.2"), 2, "ratio"),
    ((*TRAIN, "--ratio", "some"), 2, "ratio 'some': a share such as 0.15"),
    ((*TRAIN, "--set", "model.deepth=3"), 2, "did you mean depth"),
    ((*TRAIN, "--set", "train.batchsize=3"), 2, "did you mean batch_size"),
    ((*TRAIN, "--set", "trian.lr=3"), 2, "did you mean train"),
    ((*TRAIN, "--set", "train.weight_decay=lots"), 2, "train.weight_decay is 'lots', which is no float"),
    ((*TRAIN, "--set", "train"), 2, "'train': KEY=VALUE is needed"),
    ((*TRAIN, "--epochs", -1), 2, "epochs=-1.0: has to be larger than 0"),
    ((*TRAIN, "--precision", "fp8"), 2, "precision='fp8'"),
    ((*TRAIN, "--size", "8by8"), 2, "size '8by8'"),
    ((*TRAIN, "--device", "tpu"), 2, "device='tpu': auto, cpu"),
    ((*TRAIN, "--set", "model.rule=alphabetical"), 2, "alphabetical"),
    ((*TRAIN, "--set", "train.warmup=cold"), 2, "warmup='cold': one of linear, exp10"),
    ((*FIT, "--basis", "fourier"), 2, "basis='fourier': one of pca"),
    ((*FIT, "--standardize", "zca"), 2, "standardize='zca': one of pixel"),
    ((*FIT, "--solver", "qr"), 2, "solver='qr'"),
    ((*FIT, "--rank", 0), 2, "--rank"),
    (("fit-basis", "imagenet", "--out", "x.safetensors"), 2, "unknown name 'imagenet'"),
    (("fit-basis", "digits", "--option", "n=3", "--out", "x.safetensors"), 2, "digits has no option 'n'"),
    (("embed", "run", "digits", "--split", "all", "--out", "x.npz"), 2, "no split 'all'"),
    (("embed", "run", "digits", "--pool", "max", "--out", "x.npz"), 2, "max"),
    (("probe", "run", "digits", "--kind", "svm"), 2, "kind='svm': one of linear"),
    (("probe", "run", "digits", "--protocol", "slow"), 2, "protocol='slow'"),
    (("export", "run", "--format", "caffe", "--out", "x"), 2, "caffe"),
    ((*TRAIN, "--heldout", "test", "--method", "mae"), 2, "which only PMAE hides"),
    ((*TRAIN, "--track", "paper"), 2, "track='paper': one of tensorboard"),
    (("search-ratio", "digits", "--epochs", 1, "--ratios", "0.1,x"), 2, "ratios '0.1,x': shares such as"),
    (("search-ratio", "digits", "--epochs", 1, "--ratios", "0.1,0.2"), 2, "at least 4 different shares"),
    (("search-ratio", "digits", "--epochs", 1, "--set", "method=mae"), 2, "search-ratio is for method pmae"),
    (("data", "make", "cifar10", "--out", "x.npz"), 2, "one of photopatch, digits"),
    (("bench", "--peer", "lightning"), 2, "peer 'lightning'"),
    (("eval", "--profile", "huge", "--out", "x"), 2, "huge"),
    # 3: bad data, missing files
    (("fit-basis", "cifar10:nowhere", "--out", "x.safetensors"), 3, "nowhere"),
    (("fit-basis", "npz:nan.npz", "--out", "x.safetensors"), 3, "NaN"),
    (("fit-basis", "npy:bytes.npy", "--out", "x.safetensors"), 3, "/255"),
    (("fit-basis", "npy:one.npy", "--out", "x.safetensors"), 3, "at least 2"),
    (("fit-basis", "npy:grey.npy", "--out", "x.safetensors"), 3, "all images are the same"),
    (("fit-basis", "digits", "--out", "nowhere/x.safetensors"), 3, "the folder nowhere does not exist"),
    (("pretrain", "digits", "--space", "nowhere.safetensors", "--out", "x", "--epochs", 1), 3, "no such space file"),
    (("pretrain", "digits", "--config", "nowhere.yaml", "--out", "x"), 3, "nowhere.yaml: No such file"),
    ((*TRAIN, "--heldout", "npz:nowhere.npz"), 3, "npz:nowhere.npz does not exist"),
    ((*TRAIN, "--size", 16), 3, r"(1, 16, 16), the model is for (1, 8, 8)"),
    ((*TRAIN, "--set", "model.patch_size=3"), 3, "8×8"),
    (("probe", "run", "npz:unlabelled.npz"), 3, "has no labels"),
    (("inspect", "nowhere.safetensors", "--out", "x"), 3, "no such space file"),
    # 4: what does not belong
    (("inspect", "words.yaml", "--out", "x"), 4, "is no space file, or damaged"),
    (("embed", "nowhere", "digits", "--out", "x.npz"), 4, "not the folder of a trained model"),
    (("embed", "mixed", "digits", "--out", "x.npz"), 4, "put back the space"),
    (("compare", "run", "nowhere"), 4, "nowhere is not the folder of a run"),
    (("pretrain", "digits", "--space", "space.safetensors", "--epochs", 4, "--out", "run", *SHORT), 4, "epochs is 3"),
    ((*TRAIN, "--resume", "nowhere"), 4, "nowhere holds no checkpoint"),
    # 6: memory
    (("fit-basis", "photopatch", "--option", "n=60", "--set", "max_bytes=1000", "--out", "x.safetensors"), 6, "'kron'"),
]


@pytest.fixture(scope="module")
def oddities(home):
    """Files that something is wrong with."""
    np.savez(home / "nan.npz", images=np.full((9, 8, 8), np.nan, dtype=np.float32))
    np.save(home / "bytes.npy", digits()[:9].astype(np.float32))
    np.save(home / "one.npy", digits()[:1])
    np.save(home / "grey.npy", np.full((9, 8, 8), 7, dtype=np.uint8))
    np.savez(home / "unlabelled.npz", train_images=digits()[:9], test_images=digits()[:9])
    (home / "words.yaml").write_text("one: [two")
    (home / "mixed").mkdir()
    for name in ("config.yaml", "model.safetensors"):
        (home / "mixed" / name).write_bytes((home / "run" / name).read_bytes())
    pmae.fit_space(digits()).save(home / "mixed" / "space.safetensors")
    return home


@pytest.mark.parametrize(("arguments", "code", "said"), REFUSED, ids=[said for _, _, said in REFUSED])
def test_one_line_and_the_right_exit_code(arguments, code, said, run, oddities):
    before = {path: path.stat().st_mtime_ns for path in oddities.rglob("*") if path.is_file()}
    got, out, err = run(*arguments)
    lines = [line for line in err.splitlines() if not line.startswith("WARNING")]
    assert got == code, err
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert said in lines[0]
    assert out == ""
    after = {path: path.stat().st_mtime_ns for path in oddities.rglob("*") if path.is_file()}
    assert {path: after.get(path) for path in before} == before


def test_file_that_is_no_yaml(run, oddities):
    code, _, err = run("pretrain", "digits", "--config", "words.yaml", "--out", "x", "--epochs", 1)
    assert code == 2
    assert "words.yaml is no YAML" in err


def test_numbers_that_stay_infinite_exit_with_5(run, tmp_path, monkeypatch):
    monkeypatch.setattr(pmae.models.network.Network, "forward", lambda self, x, keep=None: x * torch.nan * self.scale())
    monkeypatch.setattr(pmae.models.network.Network, "scale", lambda self: next(self.parameters()).sum(), raising=False)
    code, _, err = run(
        "pretrain", "digits", "--space", "space.safetensors", "--epochs", 1, "--out", tmp_path / "r", *SHORT
    )
    assert code == 5
    assert "nonfinite.json has the images of these steps" in err.splitlines()[-1]


def test_memory_that_runs_out_exits_with_6_and_advice(run, tmp_path, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")

    monkeypatch.setattr(pmae.PMAE, "forward", full)
    code, _, err = run(
        "pretrain", "digits", "--space", "space.safetensors", "--epochs", 1, "--out", tmp_path / "r", *SHORT
    )
    assert code == 6
    assert "a smaller --batch-size" in err.splitlines()[-1]


def test_error_of_ours_asks_for_a_report_and_debug_shows_where(run, tmp_path, monkeypatch):
    monkeypatch.setattr(pmae.PMAE, "forward", lambda *_, **__: 1 / 0)
    given = ("pretrain", "digits", "--space", "space.safetensors", "--epochs", 1, "--out", tmp_path / "r", *SHORT)
    code, _, err = run(*given)
    assert code == 1
    assert "internal: ZeroDivisionError" in err
    assert "Traceback" not in err
    assert "Traceback" in run(*given, "--debug")[2]
