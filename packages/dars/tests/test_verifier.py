"""Functions and their mutants, the verifier that is trained on them, and the critics' experiments at toy size."""

import ast
import json
import random
import sys
from dataclasses import replace

import numpy as np
import pytest

from dars.candidates import Candidate
from dars.cli.main import main
from dars.config import ReviewSection
from dars.env.memory import MemoryEnvironment
from dars.errors import TaskError
from dars.evaluation import critic, run
from dars.evaluation.critic import shipped_functions
from dars.evaluation.functions import collect, installed_packages, split, with_mutants
from dars.evaluation.profiles import GPU, QUICK
from dars.evaluation.verifier import N, functions_of, picks
from dars.reviewer import Case, Labelled, label, make_reviewer, read_labelled, write_labelled
from dars.reviewer.functions import changed_functions, named_functions
from dars.task import Task
from dars.tree import Node, Tree

LENGTH = 256
NAMES = {"json", "heapq", "argparse", "asyncio", "email", "numpy", "statistics", "pydantic", "rich", "jinja2"}
SOURCE = '''
@decorated
def outer(a, b):
    """Größe."""
    class Inner:
        async def method(self):
            return a + b if a < b else 0
    return Inner
'''


# --- functions --------------------------------------------------------------------------------------------------------


def test_functions_are_whole_and_without_indentation():
    named = named_functions(SOURCE)
    found = list(named.values())
    assert list(named) == ["outer", "outer.Inner.method"]
    assert [ast.parse(text).body[0].name for text in found] == ["outer", "method"]
    assert found[1] == "async def method(self):\n    return a + b if a < b else 0"
    assert "decorated" not in found[0]
    assert "Größe" in found[0]


CLASS = """X = 1


class A:
    def f(self):
        def g(x):
            return x
        return g(1)

    def h(self):
        return 2
"""
MODULE = {"pkg/m.py": CLASS.encode(), "notes.txt": b"def k():\n    pass\n"}


def edited(*changes, files=MODULE):
    env = MemoryEnvironment(files)
    for path, old, new in changes:
        text = env.read_file(path) if path in env.list_files() else b""
        env.write_file(path, text.replace(old, new) if old else new)
    return env.diff()


def test_changed_functions_are_the_innermost_ones_of_both_versions():
    inner = edited(("pkg/m.py", b"return x", b"return x + 1"))
    assert changed_functions(MODULE, inner) == (("def g(x):\n    return x", "def g(x):\n    return x + 1"),)
    both = edited(("pkg/m.py", b"return 2", b"return 3"), ("pkg/m.py", b"g(1)", b"g(2)"))
    assert [after.split("\n")[0] for _, after in changed_functions(MODULE, both)] == ["def f(self):", "def h(self):"]
    elsewhere = edited(
        ("pkg/m.py", b"X = 1", b"X = 2"), ("notes.txt", b"pass", b"return"), ("new.py", b"", b"def n(): 1")
    )
    assert changed_functions(MODULE, elsewhere) == ()
    assert changed_functions({"pkg/m.py": b"X = 3\n"}, inner) is None


def test_mutants_differ_from_the_function_and_from_each_other_and_fit():
    rng = np.random.default_rng(0)
    text = named_functions(SOURCE)["outer.Inner.method"]
    every = with_mutants("p", text, 10**6, 10**6, rng).mutants
    assert len({text, *every}) == len(every) + 1
    assert all(isinstance(ast.parse(mutant), ast.Module) for mutant in every)
    few = with_mutants("p", text, 3, len(text), rng).mutants
    assert len(few) == 3
    assert set(few) <= {mutant for mutant in every if len(mutant) <= len(text)}


def test_split_is_disjoint_and_complete():
    names = [f"package{i}" for i in range(23)]
    for seed in range(5):
        learnt, held = split(names, 0.2, np.random.default_rng(seed))
        assert sorted(learnt + held) == sorted(names)
        assert len(held) == 5
    assert split(["a", "b"], 0.01, np.random.default_rng(0))[1] != []


@pytest.fixture(scope="module")
def installed():
    return installed_packages()


@pytest.fixture(scope="module")
def few(installed):
    return {name: paths[:40] for name, paths in installed.items() if name in NAMES}


def test_installed_packages_are_sources_under_their_name_without_tests(installed):
    found = installed
    assert {"json", "numpy", "argparse"} <= set(found)
    assert not {"site-packages", "dist-packages", "test", "tests"} & set(found)
    assert all(name in {*path.parts, path.stem} for name, paths in found.items() for path in paths)


def test_held_out_functions_are_of_other_packages_and_no_copies(few):
    learnt, held = functions_of(few, (60, 25), LENGTH, np.random.default_rng(3))
    assert (len(learnt), len(held)) == (60, 25)
    assert not {f.package for f in learnt} & {f.package for f in held}
    assert not {f.source for f in learnt} & {f.source for f in held}
    assert {len(f.mutants) for f in held} == {N - 1}
    assert all(len(text.encode()) <= LENGTH for f in learnt + held for text in (f.source, *f.mutants))


def test_copies_in_other_packages_are_left_out(tmp_path):
    packages = {}
    for name, body in {"a": "def f(x):\n    return x + 1\n", "b": "def f(x):\n    return x + 1\n"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "m.py").write_text(body + f"def {name}(x):\n    return x - 2\n")
        packages[name] = [tmp_path / name / "m.py"]
    rng = np.random.default_rng(0)
    first = collect({"a": packages["a"]}, 9, (1, 2), LENGTH, rng)
    second = collect({"b": packages["b"]}, 9, (1, 2), LENGTH, rng, without={f.source for f in first})
    assert [len(first), [ast.parse(f.source).body[0].name for f in second]] == [2, ["b"]]


def test_number_of_processes_does_not_change_what_is_collected(few):
    some = {name: few[name] for name in ("json", "heapq")}
    one, two = (collect(some, 12, (1, 3), 400, np.random.default_rng(5), workers) for workers in (1, 2))
    assert one == two
    assert len(one) == 12


def test_pick_is_the_highest_score_and_a_lot_among_equals():
    scores = np.array([[2.0, 1, 0], [0, 1, 2], [1, 1, 0], [5, 5, 5]])
    np.testing.assert_allclose(picks(scores), [1, 0, 1 / 2, 1 / 3])


# --- the network ------------------------------------------------------------------------------------------------------


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch.manual_seed(0)
    return torch


def texts(n, seed=0):
    source = random.Random(seed)
    return [bytes(source.choices(range(32, 127), k=source.randint(1, LENGTH))) for _ in range(n)]


def test_scores_of_a_batch_are_those_one_by_one(torch):
    from dars.reviewer.verifier import Verifier, pack, scores

    verifier, rows = Verifier(2, 32, LENGTH, 2), pack(texts(17), LENGTH)
    one_by_one = [float(scores(verifier, row[None])[0]) for row in rows]
    np.testing.assert_allclose(scores(verifier, rows, batch=5), one_by_one, rtol=1e-5, atol=1e-5)
    assert np.ptp(one_by_one) > 0.1


def test_attention_is_the_softmax_of_rotated_products(torch):
    from dars.reviewer.verifier import angles, rotate

    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    turn = torch.polar(torch.ones(50, 4), angles(50, 8))
    at = {(i, j): (rotate(q, turn[i]) * rotate(k, turn[j])).sum() for i, j in ((0, 0), (0, 3), (9, 12), (40, 43))}
    torch.testing.assert_close(at[0, 0], (q * k).sum(), rtol=1e-5, atol=1e-5)
    for pair in ((9, 12), (40, 43)):  # only the distance counts
        torch.testing.assert_close(at[pair], at[0, 3], rtol=1e-4, atol=1e-4)
    assert abs(at[0, 3] - at[0, 0]) > 1e-3


def test_training_lowers_the_loss_and_sees_only_what_it_is_given(torch):
    from dars.reviewer.verifier import Verifier, pack, scores, train

    originals = [b"return " + text[:40] for text in texts(48)]
    mutants = [text.replace(b"return", b"retorn") for text in originals]
    verifier = Verifier(2, 32, LENGTH, 2)
    rows = pack(originals, LENGTH), pack(mutants, LENGTH), np.arange(48)
    training = train(verifier, *rows, np.random.default_rng(0), pairs=16, steps=60, seconds=60, rate=5e-3)
    assert len(training.losses) == 60
    assert training.losses[:2].mean() > 0.5  # guessing is log 2
    assert training.losses[-3:].mean() < 0.2
    assert training.read == 20 * (sum(map(len, originals)) + sum(map(len, mutants)))  # three batches are a round
    held = [b"return " + text[:40] for text in texts(20, 1)]
    right, wrong = (scores(verifier, pack(some, LENGTH)) for some in (held, [b"retorn" + text[6:] for text in held]))
    assert (right > wrong).mean() > 0.9


def test_training_ends_when_its_time_is_up(torch):
    from dars.reviewer.verifier import Verifier, pack, train

    rows = pack([b"a", b"b"], LENGTH)
    training = train(Verifier(1, 8, LENGTH, 1), rows, rows, np.arange(2), np.random.default_rng(0), seconds=1e-9)
    assert len(training.losses) == 0


def test_texts_that_do_not_fit_are_refused(torch):
    from dars.reviewer.verifier import pack

    assert pack([b"ab", b"\xff"], 3).tolist() == [[97, 98, 0], [255, 0, 0]]
    for text in (b"", b"abcd"):
        with pytest.raises(TaskError, match=f"{len(text)} bytes; the verifier reads 1 to 3"):
            pack([text], 3)


def test_verifier_that_was_saved_scores_the_same(torch, tmp_path):
    from dars.reviewer.verifier import Verifier, load, pack, save, scores

    verifier, rows = Verifier(2, 32, LENGTH, 2), pack(texts(5), LENGTH)
    save(verifier, tmp_path / "v.npz")
    assert scores(load(tmp_path / "v.npz"), rows).tolist() == scores(verifier, rows).tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["v.npz"]
    verifier.suspicion[1].bias.data[:] = float("nan")
    save(verifier, tmp_path / "nan.npz")
    np.savez(tmp_path / "other.npz", format="dars-verifier/2", size=[1, 8, 8, 1])
    np.savez(tmp_path / "half.npz", format="dars-verifier/1", size=[1, 8, 8, 1])
    (tmp_path / "cut.npz").write_bytes((tmp_path / "v.npz").read_bytes()[:5000])
    (tmp_path / "text.npz").write_text("{}")
    said = {"nan": "no numbers", "other": "the format dars-verifier/2", "half": "no verifier", "cut": "no verifier",
            "text": "no verifier", "none": "cannot read"}  # fmt: skip
    for name, why in said.items():
        with pytest.raises(TaskError, match=why):
            load(tmp_path / f"{name}.npz")


def test_verifier_reviews_by_how_it_scores_the_functions_after_a_patch_against_before(torch, tmp_path):
    from dars.reviewer.verifier import Verifier, pack, scores
    from dars.reviewer.verifying import VerifierReviewer

    def score(text):
        return float(scores(verifier, pack([text.encode()], LENGTH))[0])

    verifier = Verifier(1, 16, LENGTH, 1)
    long = b"return 2 # " + b"a long line " * 30
    patches = [
        edited(("pkg/m.py", b"return x", b"return x + 1"), ("pkg/m.py", b"return 2", b"return 3")),
        edited(("pkg/m.py", b"X = 1", b"X = 2")),
        edited(("pkg/m.py", b"return 2", long)),
        edited(("pkg/m.py", b"X = 9", b"X = 2"), files={"pkg/m.py": b"X = 9\n"}),
    ]
    env = MemoryEnvironment(MODULE)
    candidates = [Candidate(node, patch, patch) for node, patch in enumerate(patches)]
    tree = Tree()
    for node in range(1, 4):
        tree.add(Node(node, 0))
    task = Task(None, "it fails", image="none")
    case = Case(task, candidates, tree, env, env.snapshot())
    env.write_file("pkg/m.py", b"something else")
    reviewer = VerifierReviewer(verifier)
    review = reviewer.review(case)
    changed = [("def g(x):\n    return x", "def g(x):\n    return x + 1"), ("def h(self):\n    return 2",
               "def h(self):\n    return 3")]  # fmt: skip
    first = sum(score(after) - score(before) for before, after in changed)
    assert review.scores == pytest.approx((first, 0.0, 0.0, min(first, 0.0) - 1), abs=1e-5)
    told = [(one["functions"], one["read"], "error" in one) for one in review.evidence["candidates"]]
    assert told == [(2, 2, False), (0, 0, False), (1, 0, False), (0, 0, True)]
    write_labelled(tmp_path / "cases.jsonl", [label(case, [True, False, False, False])])
    (known,) = read_labelled(tmp_path / "cases.jsonl")
    assert reviewer.scores(known) == pytest.approx(list(review.scores), abs=1e-5)
    with pytest.raises(TaskError, match="labelled without the functions"):
        reviewer.scores(replace(known, functions=None))


def test_verifier_is_trained_named_and_measured_on_the_command_line(torch, few, tmp_path, capsys, monkeypatch):
    def told(*words):
        monkeypatch.setattr("sys.argv", ["dars", "reviewer", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    monkeypatch.setattr("dars.evaluation.verifier.installed_packages", lambda: few)
    monkeypatch.setattr("dars.evaluation.profiles.QUICK", TINY)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    file = tmp_path / "v.npz"
    code, printed, _ = told("fit-verifier", "--out", file, "--device", "cpu", "--seconds", "9")
    assert code == 0
    assert printed.startswith("4 steps on ")
    reviewer = make_reviewer(ReviewSection(reviewers=[f"verifier:{file}"]))
    patches = [edited(("pkg/m.py", b"return 2", b"return %d" % number)) for number in (3, 5)]
    candidates = tuple(Candidate(i, patch, patch) for i, patch in enumerate(patches))
    functions = tuple(changed_functions(MODULE, patch) for patch in patches)
    case = Labelled("m", "it fails", candidates, (1, 1), (True, False), None, functions)
    write_labelled(tmp_path / "cases.jsonl", [case])
    code, printed, _ = told("eval", tmp_path / "cases.jsonl", "--reviewer", f"verifier:{file}")
    first, second = reviewer.scores(case)
    assert (code, printed.splitlines()[-1]) == (0, f"verifier       {float(first > second):.3f}")
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in ("verifier", "verifying"):
        monkeypatch.delitem(sys.modules, f"dars.reviewer.{name}")
    code, _, said = told("eval", tmp_path / "cases.jsonl", "--reviewer", f"verifier:{file}")
    assert (code, "dars-agent[verifier]" in said) == (2, True)


# --- the experiments --------------------------------------------------------------------------------------------------

TINY = replace(
    QUICK, verifier_functions=(60, 20), verifier_size=(2, 32, LENGTH), verifier_pairs=16, verifier_steps=4,
    critic_functions=3, critic_candidates=3,
)  # fmt: skip


def test_verifier_reports_its_claims_and_speed(torch, few, tmp_path, monkeypatch):
    monkeypatch.setattr("dars.evaluation.verifier.installed_packages", lambda: few)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    results = run(TINY, 0, tmp_path, only=["verifier"], device="cpu")
    claims = {claim["id"]: claim for claim in results["claims"]}
    assert set(claims) == {"verifier-selects", "verifier-learnt"}
    (n,) = {claim["n"] for claim in claims.values()}
    assert 1 <= n <= 20
    assert claims["verifier-selects"]["test"] == {"op": ">=", "value": 1.5 / N}
    metrics = {metric["name"]: metric["value"] for metric in results["metrics"]}
    assert metrics["verifier: steps of training"] == 4
    assert metrics["verifier: bytes read in training"] > 0
    assert "x-skipped" not in results


def test_verifier_waits_for_a_gpu_unless_told_not_to(torch, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    results = run(GPU, 0, tmp_path, only=["verifier"])
    assert results["claims"] == results["metrics"] == []
    assert "there is no GPU" in results["x-skipped"]["verifier"]


def test_critic_without_its_model_claims_nothing_and_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(critic, "WEIGHTS", "no-such-distribution")
    results = run(TINY, 0, tmp_path, only=["critic"])
    assert results["claims"] == results["metrics"] == []
    assert "dars-agent[local]" in results["x-skipped"]["critic"]
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert not (tmp_path / "experiments" / "critic.json").exists()


def test_critic_that_knows_the_faults_picks_every_repair(tmp_path, monkeypatch):
    originals = {function.source for function in shipped_functions(10**6, 2, np.random.default_rng(0))}
    monkeypatch.setattr(critic, "weights", lambda: tmp_path)
    monkeypatch.setattr(critic, "find_spec", lambda name: True)
    monkeypatch.setattr(critic.Critic, "__init__", lambda self, path: None)
    monkeypatch.setattr(critic.Critic, "prefers_sum", lambda self: 0.0)
    for sign in (1.0, -1.0):
        monkeypatch.setattr(critic.Critic, "score", lambda self, text, sign=sign: sign * (text in originals))
        results = run(TINY, 0, tmp_path, only=["critic"])
        found = {claim["id"]: (claim["measured"], claim["holds"], claim["n"]) for claim in results["claims"]}
        right = sign > 0
        assert found == {"critic-auc": (float(right), right, 3), "critic-selects": (float(right), right, 3)}
