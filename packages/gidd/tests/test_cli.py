"""The command line: what it prints and writes, and one line with exit code 2 for whatever cannot be done."""

import json
import os
import subprocess
import sys

import pytest
import torch
from gidd import DiT, DiTConfig, HybridProcess
from gidd.cli.main import main
from gidd.data import open_corpus, prepare
from gidd.hub import save_checkpoint
from gidd.records import difference, difference_page


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A prepared corpus `squares` and an untrained checkpoint `model`."""
    folder = tmp_path_factory.mktemp("home")
    prepare("latin:3", "char", folder / "squares", num_squares=400)
    corpus = open_corpus(folder / "squares")
    torch.manual_seed(0)
    config = DiTConfig(vocab_size=4, hidden=32, layers=1, heads=2, pad_vocab_to=8, max_seq_len=9)
    save_checkpoint(folder / "model", DiT(config), HybridProcess(4, 3, 0.2), corpus.tokenizer())
    return folder


@pytest.fixture
def run(home, monkeypatch, capsys):
    monkeypatch.chdir(home)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["gidd", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        return stopped.value.code, printed.out, printed.err

    return call


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_help_and_version_answer_without_a_framework():
    code = (
        "import sys; sys.argv = ['gidd', '--help']\n"
        "from gidd.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    assert "correct" in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_the_package_imports_nothing_optional():
    code = (
        "import sys, gidd; gidd.HybridProcess, gidd.DiT, gidd.sample, gidd.elbo, gidd.gidd_loss\n"
        "print([m for m in ('transformers', 'datasets', 'triton', 'matplotlib', 'lm_eval') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_sampling_does_not_depend_on_the_batch_size(run, home):
    assert run("sample", "model", "--num", 5, "--steps", 4, "--out", "a.jsonl")[0] == 0
    code, out, _ = run("sample", "model", "--num", 5, "--steps", 4, "--batch-size", 2, "--out", "b.jsonl", "--json")
    assert code == 0
    assert records(home / "a.jsonl") == records(home / "b.jsonl")
    shown = json.loads(out)
    assert shown["sequences"] == 5
    assert "unigram entropy" in shown
    assert all(len(r["tokens"]) == 9 and 3 not in r["tokens"] and r["text"] for r in records(home / "a.jsonl"))


def test_prompt_begins_every_sequence(run, home):
    assert run("sample", "model", "--num", 3, "--steps", 4, "--prompt", "2 1", "--out", "p.jsonl")[0] == 0
    assert all(r["tokens"][:2] == [2, 1] for r in records(home / "p.jsonl"))
    (home / "prompt.txt").write_text("2 1")
    assert run("sample", "model", "--num", 3, "--steps", 4, "--prompt-file", "prompt.txt", "--out", "q.jsonl")[0] == 0
    assert records(home / "p.jsonl") == records(home / "q.jsonl")


def test_correction_says_what_it_changed(run, home):
    run("sample", "model", "--num", 4, "--steps", 2, "--out", "s.jsonl")
    code, out, _ = run(
        "correct", "model", "s.jsonl", "--max-steps", 3, "--out", "c.jsonl", "--show-diff", "--html", "c.html"
    )
    assert code == 0
    made = records(home / "c.jsonl")
    for before, after in zip(records(home / "s.jsonl"), made, strict=True):
        assert after["before"] == before["tokens"]
        assert after["changed"] == sum(a != b for a, b in zip(after["before"], after["tokens"], strict=True))
    assert "{+" in out
    page = (home / "c.html").read_text()
    assert page.count("<ins>") == out.count("{+")
    assert "http" not in page


def test_difference_joins_runs_and_escapes_text():
    runs = difference([0, 1, 1, 2], [0, 2, 2, 2], {0: "<a>", 1: "b", 2: "c"})
    assert runs == [("same", "<a>", "<a>"), ("changed", "bb", "cc"), ("same", "c", "c")]
    assert "&lt;a&gt;<del>bb</del><ins>cc</ins>c" in difference_page("t", [("one", runs)])


def test_likelihood_and_judges(run):
    code, out, _ = run("ppl", "model", "squares", "--num", 6, "--num-times", 8, "--json")
    shown = json.loads(out)
    assert code == 0
    assert shown["tokens"] == 54
    assert shown["ppl"] >= shown["ppl_path"]
    run("sample", "model", "--num", 4, "--steps", 2, "--out", "s.jsonl")
    code, out, _ = run("genppl", "s.jsonl", "--judge", "ngram:squares", "--order", 3, "--json")
    assert code == 0
    assert {"ppl", "unigram entropy", "distinct 4-grams", "self-repetition"} <= json.loads(out).keys()


def test_errors_are_marked(run, home):
    (home / "text.txt").write_text("0 1 2 1 2 0 2 0 0")
    code, out, _ = run("errors", "model", "text.txt", "--json")
    assert code == 0
    tokens = json.loads(out)["tokens"]
    assert len(tokens) == 9
    assert all(0 <= t["p_error"] <= 1 for t in tokens)
    assert "[" in run("errors", "model", "text.txt", "--threshold", 0, "--error-rate", 0.5)[1]


def test_info_and_plan(run):
    assert json.loads(run("info", "model", "--json")[1])["process"]["p_uniform"] == 0.2
    assert json.loads(run("plan", "--flops", "1e20", "--noise", "uniform", "--json")[1])["tokens"] > 1e9
    assert json.loads(run("data", "info", "squares", "--json")[1])["vocab_size"] == 4


def test_loss_benchmark_prints_both(run):
    code, out, _ = run("bench", "--rows", 32, "--vocab", 256, "--repeats", 2)
    assert code == 0
    assert "cross-entropy" in out


BAD = {
    "no checkpoint": (("sample", "nowhere", "--out", "x.jsonl"), "there is no folder nowhere"),
    "no folder": (("sample", "model", "--out", "no/x.jsonl"), "the folder no does not exist"),
    "sampler": (("sample", "model", "--out", "x.jsonl", "--sampler", "magic"), "sampler 'magic' is not one of"),
    "grid": (("sample", "model", "--out", "x.jsonl", "--grid", "power:0"), "grid 'power:0' is not"),
    "both prompts": (
        ("sample", "model", "--out", "x.jsonl", "--prompt", "0", "--prompt-file", "p"),
        "--prompt and --prompt-file exclude each other",
    ),
    "long prompt": (("sample", "model", "--out", "x.jsonl", "--prompt", "0 " * 12), "prompt has shape (12,)"),
    "no samples": (("correct", "model", "none.jsonl", "--out", "x.jsonl"), "none.jsonl: No such file"),
    "not json": (("correct", "model", "bad.jsonl", "--out", "x.jsonl"), "bad.jsonl, line 2: not JSON"),
    "foreign ids": (("correct", "model", "far.jsonl", "--out", "x.jsonl"), "holds the id 77, outside [0, 4)"),
    "too long": (("correct", "model", "long.jsonl", "--out", "x.jsonl"), "has 10 tokens; the model takes 1 to 9"),
    "judge": (("genppl", "far.jsonl", "--judge", "oracle"), "has to be ngram:DIR"),
    "corpus": (("ppl", "model", "model"), "meta.json"),
    "profile": (
        ("eval", "--profile", "huge", "--out", "e"),
        "unknown profile 'huge': use one of quick, full, gpu, paper",
    ),
    "experiment": (("eval", "--only", "magic", "--out", "e"), "unknown experiment magic"),
    "device": (("eval", "--device", "tpu", "--out", "e"), "device 'tpu' is not auto, cpu or cuda"),
    "source": (("data", "prepare", "--source", "moon", "--out", "m"), "moon"),
    "command": (("sampel",), "No such command 'sampel'"),
    "option": (("sample", "model"), "Missing option"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_line_and_leaves_nothing(run, home, case):
    (home / "bad.jsonl").write_text('{"tokens": [0]}\nnot json\n')
    (home / "far.jsonl").write_text('{"tokens": [77, 0]}\n')
    (home / "long.jsonl").write_text(json.dumps({"tokens": [0] * 10}) + "\n")
    before = set(os.listdir(home))
    arguments, message = BAD[case]
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert message in err
    assert set(os.listdir(home)) == before


def test_broken_checkpoint_is_named(run, home):
    (home / "broken").mkdir(exist_ok=True)
    (home / "broken" / "config.json").write_text("{")
    code, _, err = run("info", "broken")
    assert code == 2
    assert err.startswith("error: ")
    assert "config.json" in err
