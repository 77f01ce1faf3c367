"""The pipeline: texts in, texts out, the same whatever the batch size, and the same as the functions it stands on."""

import math

import pytest
import torch

import gidd
from gidd.data.tokenizers import char_tokenizer, latin_tokenizer, train_bpe
from gidd.errors import CheckpointError
from gidd.hub import save_checkpoint
from gidd.models import DiT, DiTConfig
from gidd.pipeline import GiddPipeline
from gidd.process import HybridProcess, MaskedProcess

CHARS = char_tokenizer()
V, MASK = CHARS.vocab_size, CHARS.mask_id
A, B = CHARS.encode("ab")
PROCESS = HybridProcess(V, MASK, p_uniform=0.2)
SUBWORDS = train_bpe(["the cat sat on the mat, the cat and the hat: été"] * 3, 280)


def network(length=16, vocab_size=V):
    torch.manual_seed(0)
    model = DiT(DiTConfig(vocab_size=vocab_size, hidden=32, layers=1, heads=2, max_seq_len=length, pad_vocab_to=8))
    for parameter in model.parameters():  # heads and gates start at zero: a model that says something
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def alternating(z, t):
    """Logits of a model that knows one language: 'a' at even places and 'b' at odd ones."""
    logits = torch.zeros(*z.shape, V)
    logits[:, 0::2, A] = 12.0
    logits[:, 1::2, B] = 12.0
    return logits


@pytest.fixture(scope="module")
def pipe():
    return GiddPipeline(network(), PROCESS, CHARS)


@pytest.fixture(scope="module")
def ab():
    return GiddPipeline(alternating, PROCESS, CHARS, max_length=12)


@pytest.fixture(scope="module")
def subwords():
    size = SUBWORDS.vocab_size
    return GiddPipeline(network(32, size), HybridProcess(size, SUBWORDS.mask_id, p_uniform=0.2), SUBWORDS)


# --- loading ----------------------------------------------------------------------------------------------------------


def test_a_stored_pipeline_says_the_same(tmp_path, pipe):
    save_checkpoint(tmp_path / "c", pipe.model, PROCESS, CHARS)
    loaded = GiddPipeline.from_pretrained(tmp_path / "c", device="cpu")
    assert loaded.max_length == 16
    assert loaded.generate(3, 4) == pipe.generate(3, 4)
    assert loaded.score(["in the"], num_times=4) == pipe.score(["in the"], num_times=4)
    half = GiddPipeline.from_pretrained(tmp_path / "c", device="cpu", dtype="bfloat16")
    assert next(half.model.parameters()).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="no floating-point type"):
        GiddPipeline.from_pretrained(tmp_path / "c", device="cpu", dtype="int8")


def test_what_does_not_belong_together_is_refused(tmp_path, pipe):
    save_checkpoint(tmp_path / "c", pipe.model, PROCESS)
    with pytest.raises(CheckpointError, match="no tokenizer"):
        GiddPipeline.from_pretrained(tmp_path / "c", device="cpu")
    with pytest.raises(CheckpointError, match="29 tokens, the process only 6"):
        GiddPipeline(alternating, HybridProcess(6, 5), CHARS, max_length=4)
    with pytest.raises(CheckpointError, match="mask is token 28, the process's 27"):
        GiddPipeline(alternating, HybridProcess(V, MASK - 1), CHARS, max_length=4)
    with pytest.raises(ValueError, match="max_length"):
        GiddPipeline(alternating, PROCESS, CHARS)


# --- writing ----------------------------------------------------------------------------------------------------------


def test_generated_texts_are_samples_and_do_not_depend_on_the_batch(pipe):
    texts = pipe.generate(5, 6, seed=3)
    assert texts == pipe.generate(5, 6, seed=3, batch_size=2) == pipe.generate(5, 6, seed=3, batch_size=1)
    assert texts[:2] == pipe.generate(2, 6, seed=3)
    drawn = gidd.sample(pipe.model, PROCESS, (5, 16), 6, generator=torch.Generator().manual_seed(3)).tokens
    assert texts == [CHARS.decode(row) for row in drawn.tolist()]
    assert texts != pipe.generate(5, 6, seed=4)
    assert len(set(texts)) == 5


def test_generating_calls_the_model_once_a_step(pipe):
    calls = []
    counted = GiddPipeline(lambda z, t: calls.append(len(z)) or pipe.model(z, t), PROCESS, CHARS, max_length=16)
    counted.generate(3, 7, temperature=0.7, top_k=5)
    assert calls == [3] * 7


def test_texts_begin_with_their_prompts(pipe, subwords):
    texts = pipe.generate(2, 5, prompts=["in the ", "god"])
    assert [t[:7] for t in texts[:2]] == ["in the "] * 2
    assert [t[:3] for t in texts[2:]] == ["god"] * 2
    assert pipe.generate(2, 5, prompts="god", batch_size=1) == pipe.generate(2, 5, prompts=["god"])
    assert pipe.generate(1, 5, prompts=[""]) == pipe.generate(1, 5)
    (text,) = subwords.generate(1, 5, prompts="the cat, été", length=20)
    assert text.startswith("the cat, été")
    assert subwords.generate_ids([SUBWORDS.encode("the cat")], 5, length=20).shape == (1, 20)
    assert pipe.generate(0, 5) == pipe.generate(0, 5, prompts=["god"]) == pipe.generate(3, 5, prompts=[]) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": ["ab", "abcd"], "length": 4}, "prompt 1 has 4 tokens and leaves no room in a text of 4"),
        ({"prompts": ["", "a" * 17]}, "prompt 1 has 17 tokens; the model takes 16"),
        ({"prompts": ["a", None]}, r"prompts\[1\] has to be a str"),
        ({"prompts": 3}, "prompts has to be a list"),
        ({"num_samples": -1}, "num_samples"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"length": 17}, "length = 17 is more than the model's 16"),
        ({"length": 0}, "length"),
    ],
)
def test_generate_names_what_it_cannot_use(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe.generate(**{"num_samples": 1, "num_inference_steps": 2, **arguments})


def test_infilling_writes_the_language_into_the_blanks(ab):
    steps = {"num_inference_steps": 8}
    assert ab.infill("ab___b", blank_tokens=3, **steps) == "ababab"
    assert ab.infill(["___b", "ba___"], blank_tokens=1, **steps) == ["ab", "baa"]
    assert ab.infill("c?c?c", "?", blank_tokens=[1, 2], **steps) == "cbcbac"
    assert ab.infill("??", "?", **steps) == "ab"
    assert ab.infill([]) == []


def test_infilling_keeps_everything_else_to_the_letter(pipe, subwords):
    filled = pipe.infill(["In THE ___, 1611.", "___God"], num_inference_steps=4, blank_tokens=2)
    # The tokenizer reads lower-case letters only; what the user wrote comes back all the same.
    assert filled[0].startswith("In THE ")
    assert filled[0].endswith(", 1611.")
    assert filled[1].endswith("God")
    assert len(filled[1]) <= 5
    text = subwords.infill("the <> sat on été <>, the hat", "<>", blank_tokens=[1, 3], num_inference_steps=4)
    assert text.startswith("the ")
    assert " sat on été " in text
    assert text.endswith(", the hat")


def test_a_blank_has_as_many_tokens_as_its_marker():
    squares = latin_tokenizer(5)  # cannot read the marker
    asked = []

    def ones(z, t):
        asked.append(z.shape[1])
        return 20.0 * torch.nn.functional.one_hot(torch.ones_like(z), 6).float()

    pipe = GiddPipeline(ones, HybridProcess(6, 5), squares, max_length=8)
    assert pipe.infill("0 ___ 2 3", num_inference_steps=2) == "0 1 2 3"
    asked.clear()
    letters = GiddPipeline(lambda z, t: asked.append(z.shape[1]) or torch.zeros(*z.shape, V), PROCESS, CHARS, 8)
    letters.infill("a[x]c[x]", "[x]", num_inference_steps=1)
    assert asked == [2 + 2 * len(CHARS.encode("[x]"))]


def test_infilling_does_not_depend_on_the_batch(pipe):
    texts = ["a?b", "c?d", "long?er", "e?f"]
    together = pipe.infill(texts, "?", num_inference_steps=4)
    assert together == pipe.infill(texts, "?", num_inference_steps=4, batch_size=1)
    assert together[2:3] == pipe.infill(texts[2:3], "?", num_inference_steps=4)


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("ab", {}, "text 0 has no blank '___'"),
        ("a?b?", {"blank": "?", "blank_tokens": [1]}, "2 positive numbers"),
        ("a?", {"blank": "?", "blank_tokens": 0}, "1 positive numbers"),
        ("a?", {"blank": "?", "blank_tokens": 12}, "text 0 with its blanks has 13 tokens; the model takes 12"),
        ("a", {"blank": ""}, "non-empty marker"),
        (7, {}, "list of texts"),
        ("a___", {"num_inference_steps": 0}, "num_inference_steps"),
    ],
)
def test_infill_names_what_it_cannot_use(ab, text, arguments, message):
    with pytest.raises(ValueError, match=message):
        ab.infill(text, **arguments)


def test_self_correction_restores_the_language(ab):
    texts = ["abab", "abxb", "yb", "bbaabb"]
    assert ab.self_correction(texts, 16, 0.1) == ["abab", "abab", "ab", "ababab"]
    assert ab.self_correction(texts, 16, 0.1, early_stopping=False, batch_size=1) == ["abab", "abab", "ab", "ababab"]
    assert ab.self_correction(["bb"], 0) == ["bb"]
    assert ab.self_correction([], 8) == []


def test_self_correction_is_that_of_tokens_and_does_not_depend_on_the_batch(pipe):
    texts = ["inthebeg", "in", "godmadea", "be", "letthere"]
    options = {"num_inference_steps": 6, "temperature": 1.0, "seed": 5}
    together = pipe.self_correction(texts, **options)
    assert together == pipe.self_correction(texts, **options, batch_size=2)
    longest = torch.tensor([CHARS.encode(t) for t in texts[::2]])
    out = gidd.self_correct(
        pipe.model, PROCESS, longest, max_steps=6, temperature=1.0, generator=torch.Generator().manual_seed(5)
    )
    assert together[::2] == [CHARS.decode(row) for row in out.tokens.tolist()]
    assert int(out.num_changed.sum()) > 0


def test_early_stopping_gives_up_on_texts_that_do_not_improve():
    """A model that always wants the next letter agrees with nothing."""

    def restless(z, t):
        return 9.0 * torch.nn.functional.one_hot(z + 1, V).float()

    pipe = GiddPipeline(restless, PROCESS, CHARS, max_length=8)
    text = pipe.self_correction(["aa"], 20, patience=4)[0]
    assert sum(CHARS.encode(text)) - 2 * A == 5  # a replacement a step, the first and four more
    text = pipe.self_correction(["aa"], 20, early_stopping=False)[0]
    assert sum(CHARS.encode(text)) - 2 * A == 20


@pytest.mark.parametrize("method", ["self_correction", "score", "detect_errors"])
def test_texts_that_cannot_be_read_are_named(ab, method):
    run = getattr(ab, method)
    for texts, message in [
        ("abab", "a single str"),
        (None, "a single NoneType"),
        (["ab", 3], r"texts\[1\] has to be a str; got int"),
        (["ab", "a" * 13], "text 1 has 13 tokens; the model takes 12"),
        ([""], "text 0 has no tokens"),
    ]:
        with pytest.raises(ValueError, match=message):
            run(texts)
    with pytest.raises(ValueError, match="batch_size"):
        run(["ab"], batch_size=0)


# --- judging ----------------------------------------------------------------------------------------------------------


def test_a_score_is_the_bound_of_the_tokens(pipe, ab):
    texts = ["in the", "genesi", "god", "letter"]
    scores = pipe.score(texts, num_times=16, seed=7)
    six = torch.tensor([CHARS.encode(t) for t in texts if len(t) == 6])
    bound = gidd.elbo(pipe.model, six, PROCESS, num_times=16, generator=torch.Generator().manual_seed(7))
    for k, i in enumerate((0, 1, 3)):
        assert scores[i].nats == pytest.approx(float(bound.nelbo[k]), rel=1e-6)
        assert scores[i].stderr == pytest.approx(float(bound.stderr[k]), rel=1e-6)
    for score, alone in zip(scores, pipe.score(texts, num_times=16, seed=7, batch_size=1), strict=True):
        assert score == pytest.approx(alone, rel=1e-6)
    assert pipe.score([]) == []
    good, bad = ab.score(["abababab", "babababa"], num_times=32)
    assert good.nats < 1.0 < bad.nats
    assert good.num_tokens == 8
    assert good.nats_per_token == good.nats / 8
    assert good.bits_per_token == pytest.approx(good.nats / 8 / math.log(2))
    assert 0 < bad.stderr_per_token == bad.stderr / 8


def test_the_errors_of_a_text_are_those_of_its_tokens(pipe, subwords):
    texts = ["in the", "god", "letter"]
    found = pipe.detect_errors(texts, t0=0.1)
    six = torch.tensor([CHARS.encode(texts[0]), CHARS.encode(texts[2])])
    want = gidd.token_error_probs(pipe.model, PROCESS, six, 0.1)
    for i, row in zip((0, 2), want.tolist(), strict=True):
        assert [e.probability for e in found[i]] == pytest.approx(row, rel=1e-5)
    one_by_one = pipe.detect_errors((t for t in texts), t0=0.1, batch_size=1)
    for a, b in zip(found, one_by_one, strict=True):
        assert [e.probability for e in a] == pytest.approx([e.probability for e in b], rel=1e-5)
    text = "the cat on the mat"
    errors = subwords.detect_errors([text])[0]
    assert "".join(e.token for e in errors) == text
    assert [e.id for e in errors] == SUBWORDS.encode(text)
    assert all(0 < e.probability < 1 for e in errors)


def test_errors_are_found_where_they_are(ab):
    text = "Ab-babab"  # read as "ab babab", with a space in the place of an a
    found = ab.detect_errors([text])[0]
    assert [(e.start, e.end, e.token) for e in found] == [(i, i + 1, c) for i, c in enumerate(text)]
    assert [i for i, e in enumerate(found) if e.probability > 0.5] == [2]
    assert all(e.probability < 0.01 for i, e in enumerate(found) if i != 2)
    trusting = ab.detect_errors(["abab"], error_rate=1e-3)[0]
    assert all(e.probability < 1e-3 for e in trusting)


def test_masking_alone_detects_nothing():
    pipe = GiddPipeline(alternating, MaskedProcess(V, MASK), CHARS, max_length=12)
    assert all(e.probability == 0 for e in pipe.detect_errors(["axay"])[0])
