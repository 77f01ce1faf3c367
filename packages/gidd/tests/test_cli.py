"""The command line: what it prints and writes, and one line with exit code 2 for whatever cannot be done."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import gidd.eval.rubric
import gidd.evaluation.speed
from gidd import DiT, DiTConfig, HybridProcess, token_error_probs
from gidd.cli import printing
from gidd.cli.main import main
from gidd.data import open_corpus, prepare
from gidd.data.tokenizers import char_tokenizer
from gidd.eval.autoregressive import AutoregressiveJudge
from gidd.eval.ngram import NGramJudge
from gidd.hub import load_checkpoint, save_checkpoint
from gidd.plan import plan
from gidd.records import difference, difference_page


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A prepared corpus `squares`, a checkpoint `model` with random opinions, and one for next tokens, `reader`."""
    folder = tmp_path_factory.mktemp("home")
    prepare("latin:3", "char", folder / "squares", num_squares=400)
    corpus = open_corpus(folder / "squares")
    torch.manual_seed(0)
    config = DiTConfig(vocab_size=4, hidden=32, layers=1, heads=2, pad_vocab_to=8, max_seq_len=9)
    model = DiT(config)
    with torch.no_grad():
        for p in model.parameters():  # as it starts, head and gates are zero
            p.add_(0.1 * torch.randn_like(p))
    save_checkpoint(folder / "model", model, HybridProcess(4, 3, 0.2), corpus.tokenizer())
    save_checkpoint(folder / "reader", model, HybridProcess(4, 3, 0.2), corpus.tokenizer(), "autoregressive")
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


def test_likelihood_has_its_boundary_terms_and_error(run):
    code, out, _ = run("ppl", "model", "squares", "--num", 6, "--num-times", 8, "--json")
    shown = json.loads(out)
    assert code == 0
    assert shown["tokens"] == 54
    assert shown["ppl"] >= shown["ppl_path"]
    parts = [shown[f"{name} (nat/token)"] for name in ("nelbo_path", "reconstruction", "tail")]
    assert shown["nelbo (nat/token)"] == pytest.approx(sum(parts))
    assert shown["ppl"] == pytest.approx(np.exp(shown["nelbo (nat/token)"]))


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("name", ["ngram:squares", "ar:reader"])
def test_judges_of_ids_weigh_every_token_alike_and_stand_beside_entropy(run, home, name):
    rows = [[0, 1, 2, 1], [2, 2], [1, 0, 2, 0, 1, 2]]
    write(home / "mixed.jsonl", [{"tokens": rows[0]}, {"text": "2 2"}, {"tokens": rows[2], "text": "1 0 2 0 1 2"}])
    code, out, _ = run("genppl", "mixed.jsonl", "--judge", name, "--order", 3, "--json")
    assert code == 0
    shown = json.loads(out)
    if name == "ar:reader":
        ready = load_checkpoint(home / "reader")
        judge = AutoregressiveJudge(ready.model, ready.process)
    else:
        judge = NGramJudge.from_corpus(open_corpus(home / "squares"), 3)
    nats = [float(judge.nll([row])[0]) * len(row) for row in rows]
    assert shown["tokens"] == 12
    assert shown["nat/token"] == pytest.approx(sum(nats) / 12)
    assert shown["ppl"] == pytest.approx(np.exp(sum(nats) / 12))
    assert {"stderr", "unigram entropy", "distinct 4-grams", "self-repetition"} <= shown.keys()
    assert "nat/character" not in shown  # one of them has no text


def test_error_of_a_judge_is_that_of_a_mean_where_lengths_agree(run, home):
    rows = torch.randint(3, (20, 9), generator=torch.Generator().manual_seed(0)).tolist()
    write(home / "even.jsonl", [{"tokens": row} for row in rows])
    shown = json.loads(run("genppl", "even.jsonl", "--judge", "ngram:squares", "--json")[1])
    nll = NGramJudge.from_corpus(open_corpus(home / "squares"), 7).nll(rows)
    assert shown["stderr"] == pytest.approx(nll.std(ddof=1) / len(nll) ** 0.5)


def test_hugging_face_judge_reads_the_text_in_its_own_tokens(run, home):
    transformers = pytest.importorskip("transformers")
    tokenizer = char_tokenizer()
    own = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend, eos_token="<|endoftext|>")
    own.save_pretrained(home / "gpt2")
    sizes = {"vocab_size": tokenizer.vocab_size, "n_positions": 12, "n_embd": 16, "n_layer": 1, "n_head": 2}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, eos_token_id=tokenizer.eos_id)).save_pretrained(
        home / "gpt2"
    )
    write(home / "words.jsonl", [{"tokens": [2, 2], "text": "hello"}, {"text": "a quick brown fox"}])
    code, out, _ = run("genppl", "words.jsonl", "--judge", "gpt2", "--json", "--dtype", "float64")
    shown = json.loads(out)
    assert code == 0
    assert shown["tokens"] == len("hello") + len("a quick brown fox")
    assert shown["nat/character"] == pytest.approx(shown["nat/token"])
    assert shown["unigram entropy"] > 1
    write(home / "ids.jsonl", [{"tokens": [2, 2]}])
    code, _, err = run("genppl", "ids.jsonl", "--judge", "gpt2")
    assert code == 2
    assert 'ids.jsonl, sequence 0: needs a "text" for gpt2 to judge' in err


def test_rubric_prints_marks_and_keeps_them(run, home, monkeypatch):
    asked = []

    def ask(client, text, model):
        asked.append(text)
        return json.dumps(dict.fromkeys(gidd.eval.rubric.CRITERIA, 4 + 2 * len(asked)))

    monkeypatch.setattr(gidd.eval.rubric, "_client", object)
    monkeypatch.setattr(gidd.eval.rubric, "_ask", ask)
    write(home / "texts.jsonl", [{"text": "one"}, {"text": "two"}, {"text": "three"}])
    code, out, err = run("rubric", "texts.jsonl", "--model", "m", "--max-calls", 2, "--out", "marked.jsonl", "--json")
    assert code == 0
    assert json.loads(out)["clarity"] == {"mean": 7.0, "stderr": 1.0}
    assert "1 of 3 texts have no marks" in err
    assert [r["marks"] and r["marks"]["clarity"] for r in records(home / "marked.jsonl")] == [6, 8, None]
    code, out, err = run("rubric", "texts.jsonl", "--model", "m")
    assert (code, err) == (0, "")
    assert asked == ["one", "two", "three"]
    assert [line.split() for line in out.splitlines()][1] == ["clarity", "8", "1.1547", "3"]


TASK = """
task: counting
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/questions.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: "{{options}}"
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 1}
"""


def test_harness_answers_a_task_of_ones_own(run, home, monkeypatch):
    lm_eval = pytest.importorskip("lm_eval")
    (home / "tasks").mkdir()
    question = {"question": "0 1 2 1 2", "options": ["0 2", "1 1", "2 0"], "answer": 0}
    write(home / "questions.jsonl", [question | {"answer": i % 3} for i in range(6)])
    (home / "tasks" / "counting.yaml").write_text(TASK.replace("FOLDER", str(home)))
    options = ("--tasks", "counting", "--include-path", "tasks", "--num-times", 4, "--limit", 5)
    code, out, _ = run("harness", "model", *options, "--json")
    shown = json.loads(out)
    assert code == 0
    assert shown["mode"] == "joint"
    (row,) = shown["results"]
    assert (row["task"], row["metric"]) == ("counting", "acc")
    assert row["value"] in (1 / 5, 2 / 5)  # one option for all: answers 0, 1, 2, 0, 1
    assert row["stderr"] == pytest.approx((row["value"] * (1 - row["value"]) / 4) ** 0.5)
    table = run("harness", "model", *options)[1].splitlines()
    assert table[0].split() == ["task", "metric", "filter", "value", "stderr"]
    every = lm_eval.tasks.TaskManager  # which takes half a minute to find all tasks of its own
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda **options: every(**options | {"include_defaults": False}))
    code, _, err = run("harness", "model", "--tasks", "counting,nonsense", "--include-path", "tasks")
    assert code == 2
    assert "lm_eval knows no task nonsense;" in err
    code, _, err = run("harness", "model", "--tasks", "counting", "--include-path", "tasks", "--mode", "conditional")
    assert code == 2
    assert "p_prompt" in err


def test_errors_are_marked(run, home):
    (home / "text.txt").write_text("0 1 2 1 2 0 2 0 0")
    code, out, _ = run("errors", "model", "text.txt", "--json")
    assert code == 0
    tokens = json.loads(out)["tokens"]
    assert len(tokens) == 9
    assert all(0 <= t["p_error"] <= 1 for t in tokens)
    assert "[" in run("errors", "model", "text.txt", "--threshold", 0, "--error-rate", 0.5)[1]


def test_dtype_is_that_of_the_weights(run, home):
    (home / "text.txt").write_text("0 1 2 1 2 0 2 0 0")
    ready = load_checkpoint(home / "model")
    tokens = torch.tensor([[0, 1, 2, 1, 2, 0, 2, 0, 0]])
    exact = token_error_probs(ready.model.double(), ready.process, tokens)[0].tolist()
    found = {}
    for name in ("float64", "bfloat16", "auto"):
        code, out, _ = run("errors", "model", "text.txt", "--json", "--dtype", name)
        assert code == 0
        found[name] = [t["p_error"] for t in json.loads(out)["tokens"]]
    assert found["float64"] == exact
    assert found["auto"] == pytest.approx(exact, rel=1e-4)
    assert found["auto"] != exact
    assert found["bfloat16"] != pytest.approx(exact, rel=1e-4)


def test_info_and_plan(run):
    assert json.loads(run("info", "model", "--json")[1])["process"]["p_uniform"] == 0.2
    assert json.loads(run("data", "info", "squares", "--json")[1])["vocab_size"] == 4
    shown = json.loads(run("plan", "--flops", "1e20", "--noise", "uniform", "--json")[1])
    assert shown == json.loads(json.dumps(plan(flops=1e20, noise="uniform").to_dict()))
    options = ("--tokens", "1e9", "--arch", "small", "--gpu", "a100", "--mfu", "0.5", "--seq-len", 256)
    expected = plan(tokens=1e9, arch="small", device="a100", mfu=0.5, seq_len=256)
    assert json.loads(run("plan", *options, "--json")[1]) == json.loads(json.dumps(expected.to_dict()))
    assert f"layers                {expected.layers}\n" in run("plan", *options)[1]


def test_prepare_writes_a_folder_once(run, home):
    (home / "book.txt").write_text("one fish two fish red fish blue fish " * 20)
    arguments = ("data", "prepare", "--source", "files:book.txt", "--held-out", 0.2, "--out", "book")
    code, out, _ = run(*arguments, "--json")
    assert code == 0
    assert json.loads(out) | {"verified": True} == json.loads(run("data", "info", "book", "--json")[1])
    code, _, err = run(*arguments)
    assert code == 2
    assert err == "error: book exists already: remove it, or overwrite it explicitly\n"
    assert run(*arguments, "--overwrite")[0] == 0


def test_convert_keeps_what_it_reads(run, home):
    assert run("convert", "model", "copy")[0] == 0
    facts = [json.loads(run("info", name, "--json")[1]) for name in ("model", "copy")]
    assert [fact.pop("checkpoint") for fact in facts] == ["model", "copy"]
    assert facts[0] == facts[1]


CONFIG = """
out: run
model: {hidden: 16, layers: 1, heads: 2, max_seq_len: 9}
data: {path: squares, length: 9, mode: pad, batch_size: 4}
schedule: {steps: 3, warmup: 1}
"""


def test_train_makes_a_checkpoint_that_samples(run, home):
    (home / "train.yaml").write_text(CONFIG)
    code, out, err = run("train", "train.yaml", "schedule.steps=2", "process.p_uniform=0.1", "--quiet")
    assert (code, out, err) == (0, "", "")
    assert json.loads(run("info", "run/latest", "--json")[1])["process"]["p_uniform"] == 0.1
    assert run("sample", "run/latest", "--num", 2, "--steps", 2, "--out", "t.jsonl")[0] == 0
    code, _, err = run("train", "train.yaml", "optimizer.speed=1")
    assert code == 2
    assert "optimizer.speed" in err
    code, _, err = run("train", "train.yaml", "data.path=nowhere", "out=another")
    assert code == 2
    assert "nowhere" in err


def test_benchmarks_print_ours_beside_the_peer(run, monkeypatch):
    monkeypatch.setattr(gidd.evaluation.speed, "SEQUENCES", 3)
    monkeypatch.setattr(gidd.evaluation.speed, "CORRECTIONS", 2)
    options = ("--rows", 32, "--vocab", 256, "--repeats", 2, "--device", "cpu")
    monkeypatch.setattr("gidd.evaluation.loss._memory", lambda *arguments: None)  # child processes
    for subject, peer in (((), "cross-entropy"), (("loss",), "cross-entropy"), (("sample",), "one at a time")):
        code, out, _ = run("bench", *subject, *options)
        assert code == 0
        assert out.startswith("what ")
        assert peer in out
    code, out, _ = run("bench", "train", *options, "--json")
    assert code == 0
    (found,) = json.loads(out)["comparisons"]
    assert found["unit"] == "token/s"
    assert found["ours"] > 0


@pytest.mark.parametrize("place", ["before", "behind"])
def test_quiet_and_verbose_may_stand_anywhere(run, monkeypatch, place):
    def failing(*arguments, **options):
        printing.log.warning("careful")
        raise RuntimeError("broken")

    def call(flag):
        rest = ("sample", "model", "--out", "x.jsonl")
        return run(flag, *rest) if place == "before" else run(*rest, flag)

    monkeypatch.setattr("gidd.sampling.sample", failing)
    code, _, err = run("sample", "model", "--out", "x.jsonl")
    assert code == 1
    assert err.startswith("WARNING: careful\nerror: internal: RuntimeError: broken (")
    assert call("-q")[2].startswith("error: internal")
    for flag in ("-v", "--verbose", "--debug"):
        code, _, err = call(flag)
        assert code == 1
        assert "Traceback" in err
        assert 'raise RuntimeError("broken")' in err


def test_values_that_look_like_flags_stay_values(run, home):
    code, _, err = run("sample", "model", "--out", "x.jsonl", "--prompt", "-v")
    assert code == 2
    assert "[UNK]" in err or "cannot encode" in err


def test_an_interrupted_command_exits_with_130_and_leaves_nothing(run, home, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("gidd.sampling.sample", interrupted)
    assert run("sample", "model", "--out", "i.jsonl") == (130, "", "error: interrupted\n")
    assert not (home / "i.jsonl").exists()


def test_a_claim_that_fails_exits_with_3_when_strict(run, monkeypatch):
    test = {"op": ">", "value": 0.0}
    claims = [{"id": name, "holds": name == "a", "measured": 1.0, "test": test, "n": 3} for name in "ab"]
    monkeypatch.setattr("gidd.evaluation.run", lambda *arguments, **options: {"claims": claims})
    assert run("eval", "--out", "e")[0] == 0
    code, out, _ = run("eval", "--out", "e", "--strict")
    assert code == 3
    assert out.splitlines()[1:3] == ["yes    a      1         > 0   3", "NO     b      1         > 0   3"]
    assert "1 of 2 claims hold" in out


def test_progress_is_a_line_a_minute_in_a_log_and_silent_when_quiet(capsys, monkeypatch):
    monkeypatch.setattr(printing, "EVERY", 0.0)
    printing.set_volume(printing.USUAL)
    with printing.progress("work", 4) as advance:
        advance(1)
        advance(3)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["work: 1 of 4", "work: 4 of 4"]
    printing.set_volume(printing.QUIET)
    with printing.progress("work", 4) as advance:
        advance(4)
    assert capsys.readouterr().err == ""


BAD = {
    "no checkpoint": (("sample", "nowhere", "--out", "x.jsonl"), "there is no folder nowhere"),
    "no folder": (("sample", "model", "--out", "no/x.jsonl"), "the folder no does not exist"),
    "sampler": (("sample", "model", "--out", "x.jsonl", "--sampler", "magic"), "sampler 'magic' is not one of"),
    "grid": (("sample", "model", "--out", "x.jsonl", "--grid", "power:0"), "grid 'power:0' is not"),
    "both prompts": (
        ("sample", "model", "--out", "x.jsonl", "--prompt", "0", "--prompt-file", "p"),
        "--prompt and --prompt-file exclude each other",
    ),
    "long prompt": (("sample", "model", "--out", "x.jsonl", "--prompt", "0 " * 12), "prompt has shape (16, 12)"),
    "no samples": (("correct", "model", "none.jsonl", "--out", "x.jsonl"), "none.jsonl: No such file"),
    "not json": (("correct", "model", "bad.jsonl", "--out", "x.jsonl"), "bad.jsonl, line 2: not JSON"),
    "foreign ids": (("correct", "model", "far.jsonl", "--out", "x.jsonl"), "holds the id 77, outside [0, 4)"),
    "too long": (("correct", "model", "long.jsonl", "--out", "x.jsonl"), "has 10 tokens; the model takes 1 to 9"),
    "judge": (("genppl", "far.jsonl", "--judge", "oracle:delphi"), "judge 'oracle:delphi' is not MODEL"),
    "judge without place": (("genppl", "far.jsonl", "--judge", "ngram:"), "judge 'ngram:' is not MODEL"),
    "judge's folder": (("genppl", "far.jsonl", "--judge", "ngram:nowhere"), "nowhere"),
    "judge's checkpoint": (("genppl", "far.jsonl", "--judge", "ar:nowhere"), "there is no folder nowhere"),
    "judged ids": (
        ("genppl", "far.jsonl", "--judge", "ngram:squares"),
        "far.jsonl, sequence 0: holds the id 77, outside [0, 4)",
    ),
    "judged file": (("genppl", "none.jsonl", "--judge", "ngram:squares"), "none.jsonl: No such file"),
    "a judge that denoises": (("genppl", "far.jsonl", "--judge", "ar:model"), "needs objective=autoregressive"),
    "a sampler that reads": (("sample", "reader", "--out", "a.jsonl"), "needs objective=diffusion"),
    "judged masks": (("genppl", "masks.jsonl", "--judge", "ar:reader"), "holds the mask token 3"),
    "other tokenizer": (("genppl", "other.jsonl", "--judge", "ngram:squares"), "of another tokenizer"),
    "no sequences": (("genppl", "blank.jsonl", "--judge", "ngram:squares"), "blank.jsonl: holds no sequences"),
    "empty sequence": (("genppl", "empty.jsonl", "--judge", "ngram:squares"), "sequence 0: has no tokens"),
    "nothing to correct": (("correct", "model", "empty.jsonl", "--out", "x.jsonl"), "has 0 tokens; the model takes"),
    "ids that are none": (("correct", "model", "floats.jsonl", "--out", "x.jsonl"), "has to be a list of integers"),
    "text that is none": (("correct", "model", "number.jsonl", "--out", "x.jsonl"), '"text" has to be a string'),
    "neither": (("correct", "model", "null.jsonl", "--out", "x.jsonl"), '"tokens" is null'),
    "huge ids": (("correct", "model", "huge.jsonl", "--out", "x.jsonl"), "holds the id 10000000000000000000000"),
    "too many at once": (
        ("correct", "model", "one.jsonl", "--out", "x.jsonl", "--tokens-per-step", 4),
        "tokens_per_step = 4 is more than the 2 tokens",
    ),
    "strategy": (("correct", "model", "one.jsonl", "--out", "x.jsonl", "--strategy", "hope"), "strategy 'hope'"),
    "level": (("correct", "model", "one.jsonl", "--out", "x.jsonl", "--t0", 1.5), "between 0 and 1"),
    "no steps": (("sample", "model", "--out", "x.jsonl", "--steps", 0), "Invalid value for '--steps'"),
    "no batch": (("sample", "model", "--out", "x.jsonl", "--batch-size", 0), "Invalid value for '--batch-size'"),
    "too long to sample": (("sample", "model", "--out", "x.jsonl", "--length", 10), "10 tokens"),
    "temperature": (("sample", "model", "--out", "x.jsonl", "--temperature", -1), "temperature has to be at least 0"),
    "dtype": (("sample", "model", "--out", "x.jsonl", "--dtype", "int8"), "dtype 'int8' is not one of auto, float32"),
    "no text to read": (("errors", "model", "void.txt"), "void.txt: holds no text"),
    "no text file": (("errors", "model", "none.txt"), "none.txt: No such file"),
    "not text": (("errors", "model", "binary.txt"), "binary.txt: is not UTF-8"),
    "error rate": (("errors", "model", "one.txt", "--error-rate", 2), "error_rate has to lie in [0, 1]"),
    "no text to mark": (("rubric", "one.jsonl", "--model", "m"), 'needs a "text" to be marked'),
    "no tasks": (("harness", "model", "--tasks", ","), "--tasks names no task"),
    "no task folder": (("harness", "model", "--tasks", "a", "--include-path", "no"), "--include-path no: there is no"),
    "both budgets": (("plan", "--flops", "1e20", "--tokens", "1e9"), "give exactly one of flops and tokens"),
    "architecture": (("plan", "--flops", "1e20", "--arch", "rnn"), "arch 'rnn' is not one of scaling, dit"),
    "gpu": (("plan", "--flops", "1e20", "--gpu", "abacus"), "device 'abacus' is not one of a100"),
    "benchmark": (("bench", "hope"), "bench 'hope' is not one of loss, train, sample"),
    "nothing to convert": (("convert", "nowhere", "x"), "there is no folder nowhere"),
    "no configuration": (("train", "none.yaml"), "cannot read none.yaml"),
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
    write(home / "long.jsonl", [{"tokens": [0] * 10}])
    write(home / "one.jsonl", [{"tokens": [0, 1]}])
    write(home / "masks.jsonl", [{"tokens": [0, 3]}])
    write(home / "other.jsonl", [{"tokens": [0, 1], "text": "hello"}])
    write(home / "empty.jsonl", [{"tokens": []}])
    write(home / "floats.jsonl", [{"tokens": [0.5, True]}])
    write(home / "number.jsonl", [{"text": 3}])
    write(home / "null.jsonl", [{"tokens": None}])
    write(home / "huge.jsonl", [{"tokens": [10**22]}])
    (home / "blank.jsonl").write_text("\n\n")
    (home / "void.txt").write_text("")
    (home / "one.txt").write_text("1")
    (home / "binary.txt").write_bytes(b"\xff\xfe\x00")
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


def test_public_names_resolve_from_the_package():
    import gidd

    for name in set(gidd.__all__) - {"GiddLM", "GiddScheduler"}:  # these need optional libraries
        assert getattr(gidd, name) is not None
    assert gidd.hub.load_checkpoint
    assert gidd.likelihood.elbo is gidd.elbo
