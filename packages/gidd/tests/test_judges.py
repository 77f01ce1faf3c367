"""The judges agree with brute force: Latin conflicts, the n-gram model, diversity of samples."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from gidd.data import latin_squares
from gidd.errors import DataError
from gidd.eval.latin import conflicts, is_valid
from gidd.eval.ngram import NGramJudge
from gidd.eval.text_metrics import distinct_n, self_repetition, unigram_entropy

# --- Latin squares --------------------------------------------------------------------------------------------------


def test_generated_squares_are_latin_and_differ():
    squares = latin_squares(5, 500, seed=1)
    assert squares.shape == (500, 25)
    assert is_valid(squares, 5).all()
    assert len(np.unique(squares, axis=0)) > 450
    assert np.array_equal(squares, latin_squares(5, 500, seed=1))
    assert not np.array_equal(squares, latin_squares(5, 500, seed=2))


def test_conflicts_count_repeated_symbols_like_a_loop_does():
    squares = np.random.default_rng(0).integers(0, 4, (50, 16))

    def by_hand(square):
        grid = square.reshape(4, 4)
        return sum(4 - len(set(line)) for line in [*grid, *grid.T])

    assert conflicts(torch.from_numpy(squares), 4).tolist() == [by_hand(s) for s in squares]


def test_one_wrong_cell_makes_two_conflicts_and_a_mask_is_no_symbol():
    square = latin_squares(5, 1)
    wrong = square.copy()
    wrong[0, 0] = (wrong[0, 0] + 1) % 5
    masked = square.copy()
    masked[0, 0] = 5
    assert conflicts(np.concatenate([square, wrong, masked]), 5).tolist() == [0, 2, 2]
    assert conflicts(np.full((1, 25), 5), 5).tolist() == [50]
    with pytest.raises(ValueError, match=r"shape \(N, 25\)"):
        conflicts(square[:, :24], 5)


# --- n-grams --------------------------------------------------------------------------------------------------------


def brute_force(documents, vocab_size, order, sequence):
    """Interpolated absolute discounting with dictionaries, written from the formula."""
    counts = [Counter() for _ in range(order)]
    for text in documents:
        for k in range(order):
            counts[k].update(tuple(text[i : i + k + 1]) for i in range(len(text) - k))

    def discount(k):
        once, twice = (sum(c == n for c in counts[k].values()) for n in (1, 2))
        return once / (once + 2 * twice) if once and twice else 0.5

    def probability(word, context):
        lower = probability(word, context[1:]) if context else 1 / vocab_size
        k = len(context)
        followers = {g: c for g, c in counts[k].items() if g[:-1] == context}
        total = sum(followers.values())
        if total == 0:
            return lower
        d = discount(k)
        return max(followers.get((*context, word), 0) - d, 0) / total + d * len(followers) / total * lower

    logs = []
    for i, word in enumerate(sequence):
        logs.append(math.log(probability(int(word), tuple(int(w) for w in sequence[max(0, i - order + 1) : i]))))
    return logs


@pytest.mark.parametrize("order", [1, 2, 4])
def test_log_probs_equal_a_dictionary_implementation(order):
    rng = np.random.default_rng(order)
    documents = [rng.integers(0, 4, n).tolist() for n in (30, 1, 0, 17, 2)]
    tokens, offsets = np.concatenate(documents).astype(int), np.cumsum([0, *map(len, documents)])
    judge = NGramJudge(5, order).fit(tokens, offsets)
    sequences = rng.integers(0, 5, (6, 9))
    expected = [brute_force(documents, 5, order, s) for s in sequences]
    np.testing.assert_allclose(judge.log_probs(sequences), expected, rtol=1e-12)
    np.testing.assert_allclose(judge.nll(torch.from_numpy(sequences)), -np.mean(expected, axis=1), rtol=1e-12)


def test_probabilities_sum_to_one_after_any_context():
    rng = np.random.default_rng(0)
    vocab_size, order = 11, 4
    judge = NGramJudge(vocab_size, order).fit(rng.integers(0, 8, 400), [0, 150, 400])
    contexts = rng.integers(0, vocab_size, (40, order - 1))
    rows = np.concatenate([np.repeat(contexts, vocab_size, 0), np.tile(np.arange(vocab_size), 40)[:, None]], axis=1)
    p = np.exp(judge.log_probs(rows)).reshape(40, vocab_size, order)
    np.testing.assert_allclose(p[:, :, -1].sum(axis=1), 1, rtol=1e-12)
    first = np.exp(judge.log_probs(np.arange(vocab_size)[:, None]))
    np.testing.assert_allclose(first.sum(), 1, rtol=1e-12)


def test_large_vocabularies_have_no_collisions():
    """V^order is far beyond 64 bits here."""
    rng = np.random.default_rng(0)
    documents = [rng.choice([3, 70_000, 120_000], 40).tolist()]
    judge = NGramJudge(128_000, 6).fit(documents[0])
    sequence = rng.choice([3, 70_000, 120_000, 5], (1, 20))
    np.testing.assert_allclose(judge.log_probs(sequence)[0], brute_force(documents, 128_000, 6, sequence[0]))


def test_held_out_text_is_likelier_than_shuffled_text():
    text = "the quick brown fox jumps over the lazy dog and the lazy dog sleeps " * 20
    ids = np.frombuffer(text.encode(), dtype=np.uint8)
    judge = NGramJudge(256, 5).fit(ids[:-136])
    held_out = ids[None, -68:]
    shuffled = np.random.default_rng(0).permutation(held_out, axis=1)
    assert judge.nll(held_out)[0] < 0.5 < 2 < judge.nll(shuffled)[0]


def test_mask_restricts_the_mean():
    judge = NGramJudge(3, 2).fit([0, 1, 0, 1, 2])
    sequences = np.array([[0, 1, 2], [2, 2, 2]])
    mask = np.array([[True, True, False], [False, False, True]])
    logs = judge.log_probs(sequences)
    np.testing.assert_allclose(judge.nll(sequences, mask), [-logs[0, :2].mean(), -logs[1, 2]])
    with pytest.raises(ValueError, match="True in every row"):
        judge.nll(sequences, mask & False)


def test_saved_judge_gives_the_same_numbers(tmp_path):
    rng = np.random.default_rng(0)
    judge = NGramJudge(7, 3).fit(rng.integers(0, 7, 500))
    sequences = rng.integers(0, 7, (3, 12))
    assert judge.save(tmp_path) == tmp_path / "ngram.npz"
    assert np.array_equal(NGramJudge.load(tmp_path).log_probs(sequences), judge.log_probs(sequences))
    assert [p.name for p in tmp_path.iterdir()] == ["ngram.npz"]


def test_bad_files_and_bad_ids_are_refused_in_one_line(tmp_path):
    with pytest.raises(DataError, match="no n-gram model at"):
        NGramJudge.load(tmp_path)
    file = NGramJudge(3, 2).fit([0, 1, 2]).save(tmp_path)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DataError, match="is no n-gram model"):
        NGramJudge.load(file)
    np.savez(tmp_path / "pickled.npz", vocab_size=np.array([{}], dtype=object))
    with pytest.raises(DataError, match="is no n-gram model"):
        NGramJudge.load(tmp_path / "pickled.npz")
    with pytest.raises(ValueError, match=r"\[0, 3\)"):
        NGramJudge(3).fit([0, 3])
    with pytest.raises(ValueError, match="not been fitted"):
        NGramJudge(3).nll([[0]])
    with pytest.raises(ValueError, match="T >= 1"):
        NGramJudge(3).fit([])


# --- diversity --------------------------------------------------------------------------------------------------------


def test_unigram_entropy_is_that_of_each_sequence():
    tokens = np.array([[0, 0, 0, 0], [0, 1, 2, 3], [5, 5, 7, 7]])
    np.testing.assert_allclose(unigram_entropy(tokens), [0, math.log(4), math.log(2)])
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(unigram_entropy(torch.from_numpy(tokens), mask), [0, math.log(2), 0])
    p = np.array([5, 1, 1, 1, 2, 2]) / 12
    np.testing.assert_allclose(unigram_entropy(tokens.reshape(1, -1)), [-(p * np.log(p)).sum()])


@pytest.mark.parametrize("n", [1, 2, 3])
def test_distinct_and_repetition_equal_sets_of_tuples(n):
    rng = np.random.default_rng(n)
    tokens = rng.integers(0, 3, (8, 12)) * 1000
    mask = np.arange(12) < rng.integers(n, 13, 8)[:, None]
    grams = [[tuple(row[i : i + n]) for i in range(m.sum() - n + 1)] for row, m in zip(tokens, mask, strict=True)]
    flat = [g for row in grams for g in row]
    assert distinct_n(tokens, n, mask) == pytest.approx(len(set(flat)) / len(flat))
    np.testing.assert_allclose(self_repetition(tokens, n, mask), [1 - len(set(g)) / len(g) for g in grams])


def test_sequences_shorter_than_n_have_no_ngrams():
    assert math.isnan(distinct_n(np.zeros((2, 3), int), 4))
    assert np.isnan(self_repetition(np.zeros((2, 3), int), 4)).all()
    with pytest.raises(ValueError, match="integer ids"):
        distinct_n(np.zeros((2, 3)))
