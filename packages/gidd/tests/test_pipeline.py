"""The pipeline: texts in, texts out, the same whatever the batch size."""

import math

import pytest
import torch

from gidd.data.tokenizers import char_tokenizer, latin_tokenizer, train_bpe
from gidd.errors import CheckpointError
from gidd.hub import save_checkpoint
from gidd.models import DiT, DiTConfig
from gidd.pipeline import GiddPipeline, Score
from gidd.process import HybridProcess, MaskedProcess

TOKENIZER = char_tokenizer()
V, MASK = TOKENIZER.vocab_size, TOKENIZER.mask_id
PROCESS = HybridProcess(V, MASK, p_uniform=0.2)


def network(seed=0, length=16, vocab_size=V):
    torch.manual_seed(seed)
    model = DiT(DiTConfig(vocab_size=vocab_size, hidden=32, layers=1, heads=2, max_seq_len=length, pad_vocab_to=8))
    for parameter in model.parameters():  # heads and gates start at zero: a model that says something
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def alternating(z, t):
    """Logits of a model that knows one language: 'a' at even places and 'b' at odd ones."""
    logits = torch.zeros(*z.shape, V)
    logits[:, 0::2, 0] = 8.0
    logits[:, 1::2, 1] = 8.0
    return logits


@pytest.fixture(scope="module")
def pipe():
    return GiddPipeline(network(), PROCESS, TOKENIZER)


@pytest.fixture(scope="module")
def ab():
    return GiddPipeline(alternating, PROCESS, TOKENIZER, max_length=12)


def test_from_pretrained(tmp_path, pipe):
    save_checkpoint(tmp_path / "c", pipe.model, PROCESS, TOKENIZER)
    loaded = GiddPipeline.from_pretrained(tmp_path / "c", device="cpu")
    assert loaded.generate(3, 4) == pipe.generate(3, 4)
    half = GiddPipeline.from_pretrained(tmp_path / "c", device="cpu", dtype="bfloat16")
    assert next(half.model.parameters()).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="no floating-point type"):
        GiddPipeline.from_pretrained(tmp_path / "c", device="cpu", dtype="int8")
    save_checkpoint(tmp_path / "d", pipe.model, PROCESS)
    with pytest.raises(CheckpointError, match="no tokenizer"):
        GiddPipeline.from_pretrained(tmp_path / "d", device="cpu")


def test_generate_does_not_depend_on_the_batch(pipe):
    texts = pipe.generate(5, 6, seed=3)
    assert texts == pipe.generate(5, 6, seed=3, batch_size=2) == pipe.generate(5, 6, seed=3, batch_size=1)
    assert texts[:2] == pipe.generate(2, 6, seed=3)
    assert texts != pipe.generate(5, 6, seed=4)
    assert len(set(texts)) == 5


def test_generate_makes_as_many_calls_as_steps(pipe):
    calls = []
    counted = GiddPipeline(lambda z, t: calls.append(len(z)) or pipe.model(z, t), PROCESS, TOKENIZER, max_length=16)
    counted.generate(3, 7, temperature=0.7, top_k=5)
    assert calls == [3] * 7


def test_prompts(pipe):
    texts = pipe.generate(2, 5, prompts=["in the ", "god"])
    assert [t[:7] for t in texts[:2]] == ["in the "] * 2
    assert [t[:3] for t in texts[2:]] == ["god"] * 2
    assert pipe.generate(2, 5, prompts="god", batch_size=1) == pipe.generate(2, 5, prompts=["god"])
    assert pipe.generate(1, 5, prompts=[""]) == pipe.generate(1, 5)
    assert pipe.generate(0, 5) == []
    with pytest.raises(ValueError, match="prompt 0 has 4 tokens and leaves no room in a text of 4"):
        pipe.generate(1, 5, prompts="abcd", length=4)
    with pytest.raises(ValueError, match="takes 16"):
        pipe.generate(1, 5, prompts="a" * 17)
    with pytest.raises(ValueError, match="num_samples"):
        pipe.generate(-1)
    with pytest.raises(ValueError, match="length = 17"):
        pipe.generate(1, length=17)


def test_infill(ab):
    assert ab.infill("ab___b", blank_tokens=3) == "ababab"
    assert ab.infill(["___b", "ba___"], blank_tokens=1) == ["ab", "baa"]
    assert ab.infill("c?c?c", "?", blank_tokens=[1, 2]) == "cbcbac"
    assert ab.infill("??", "?") == "ab"
    with pytest.raises(ValueError, match="no blank '___'"):
        ab.infill("ab")
    with pytest.raises(ValueError, match="2 positive numbers"):
        ab.infill("a?b?", "?", blank_tokens=[1])
    with pytest.raises(ValueError, match="takes 12"):
        ab.infill("a?", "?", blank_tokens=12)


def test_infill_does_not_depend_on_the_batch(pipe):
    texts = ["a?b", "c?d", "long?er", "e?f"]
    together = pipe.infill(texts, "?", num_inference_steps=4)
    assert together == pipe.infill(texts, "?", num_inference_steps=4, batch_size=1)
    assert [t[0] for t in together] == ["a", "c", "l", "e"]
    assert together[2].endswith("er")


def test_self_correction(ab):
    texts = ["abab", "abxb", "yb", "bbaabb"]
    assert ab.self_correction(texts, 16) == ["abab", "abab", "ab", "ababab"]
    assert ab.self_correction(texts, 16, batch_size=1, early_stopping=False) == ["abab", "abab", "ab", "ababab"]
    assert ab.self_correction(["bb"], 0) == ["bb"]
    assert ab.self_correction([], 8) == []
    with pytest.raises(ValueError, match="a single str"):
        ab.self_correction("abab", 8)
    with pytest.raises(ValueError, match="text 1 has 13 tokens; the model takes 12"):
        ab.self_correction(["ab", "a" * 13], 8)
    with pytest.raises(ValueError, match="text 0 has no tokens"):
        ab.self_correction([""], 8)


def test_early_stopping_gives_up_on_texts_that_do_not_improve():
    """A model that always wants the next letter never agrees with anything."""

    def restless(z, t):
        return 9.0 * torch.nn.functional.one_hot((z + 1) % 20, V).float()

    pipe = GiddPipeline(restless, PROCESS, TOKENIZER, max_length=8)
    stopped = pipe.self_correction(["aa"], 40, patience=4)[0]
    went_on = pipe.self_correction(["aa"], 40, early_stopping=False)[0]
    moved = [sum(ord(c) - ord("a") for c in text) for text in (stopped, went_on)]
    assert moved[0] < moved[1]


def test_score(ab, pipe):
    good, bad = ab.score(["abababab", "babababa"], num_times=32)
    assert good.nats < 1.0 < bad.nats
    assert good.num_tokens == 8
    assert good.bits_per_token == pytest.approx(good.nats / 8 / math.log(2))
    assert 0 < bad.stderr_per_token == bad.stderr / 8
    texts = ["in the", "beginn", "god", "let", "be"]
    together = pipe.score(texts, num_times=16)
    assert together == pytest.approx(pipe.score(texts, num_times=16, batch_size=1))
    assert isinstance(together[0], Score)
    assert pipe.score([]) == []
    (more,) = pipe.score(["in the"], num_times=256)
    assert abs(more.nats - together[0].nats) < 6 * (more.stderr + together[0].stderr)


def test_detect_errors_finds_the_place(ab):
    found = ab.detect_errors(["Ab-abxb"])[0]
    assert [(e.start, e.end, e.token) for e in found] == [(i, i + 1, c) for i, c in enumerate("Ab-abxb")]
    assert [e.token for e in found if e.probability > 0.5] == [*["-", "a", "b", "x", "b"][:1], "a", "b", "x", "b"]
    assert all(e.probability < 0.01 for e in found[:2])
    many = ["abab", "ab", "abxb", "xb"]
    assert ab.detect_errors(many) == ab.detect_errors(many, batch_size=1)
    low = ab.detect_errors(["abab"], error_rate=1e-3)[0]
    assert all(e.probability < 1e-3 for e in low)


def test_offsets_of_subwords():
    tokenizer = train_bpe(["the cat sat on the mat, the cat"] * 3, 280)
    size = tokenizer.vocab_size
    process = HybridProcess(size, tokenizer.mask_id, p_uniform=0.1)
    pipe = GiddPipeline(lambda z, t: torch.zeros(*z.shape, size), process, tokenizer, max_length=32)
    text = "the cat on the mat"
    found = pipe.detect_errors([text])[0]
    assert "".join(e.token for e in found) == text
    assert [e.id for e in found] == tokenizer.encode(text)
    assert all(0 < e.probability < 1 for e in found)


def test_masking_alone_detects_nothing():
    pipe = GiddPipeline(alternating, MaskedProcess(V, MASK), TOKENIZER, max_length=12)
    assert all(e.probability == 0 for e in pipe.detect_errors(["axay"])[0])


def test_other_vocabularies_are_refused():
    with pytest.raises(CheckpointError, match="29 tokens"):
        GiddPipeline(alternating, HybridProcess(6, 5), TOKENIZER, max_length=4)
    squares = latin_tokenizer(5)
    with pytest.raises(ValueError, match="max_length"):
        GiddPipeline(lambda z, t: torch.zeros(*z.shape, 6), HybridProcess(6, 5), squares)
