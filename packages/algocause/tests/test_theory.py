from math import log2

import numpy as np
import pytest

from algocause.errors import DataError
from algocause.theory import expected_margin, tie_probability


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("n_envs", [1, 2, 4])
def test_ties_are_where_both_mechanisms_shift_in_the_same_environments(p, n_envs):
    rng = np.random.default_rng(0)
    shifted = rng.random((20_000, 2, n_envs - 1)) < p
    tied = (shifted[:, 0] == shifted[:, 1]).all(1).mean()
    assert tie_probability(p, n_envs) == pytest.approx(tied, abs=4 * 0.5 / np.sqrt(20_000))


def test_orientation_accuracies_of_the_tie_law():
    assert [round(1 - tie_probability(0.5, n) / 2, 3) for n in (2, 3, 6, 8)] == [0.75, 0.875, 0.984, 0.996]


def test_margin_of_a_shifting_cause_is_as_known():
    assert expected_margin([1] * 4, [1] * 4, [4], 1000, 2, 3) == pytest.approx(37.94, abs=0.005)
    assert expected_margin([1] * 4, [1] * 4, [4], 20_000, 2, 3) == pytest.approx(57.39, abs=0.005)


def test_margin_is_the_mean_of_measured_margins():
    # X shifts in environment 2, Y given X in environments 1 and 2; n = 1000 rows each.
    partitions = {"x": [[0, 1], [2]], "y": [[0], [1], [2]], "m": [[0], [1], [2]]}
    crp = {(2, 1): log2(6), (1, 1, 1): log2(6)}  # -log2 of 1!/3! and of 1/3!
    n, rng = 1000, np.random.default_rng(0)

    def bits(child, parent, blocks):
        total = crp[tuple(len(b) for b in blocks)]
        for b in blocks:
            y = np.concatenate([child[e] for e in b])
            A = (
                np.ones((len(y), 1))
                if parent is None
                else np.stack([np.ones(len(y)), np.concatenate([parent[e] for e in b])], 1)
            )
            rest = y - A @ np.linalg.lstsq(A, y, rcond=None)[0]
            total += len(y) / 2 * log2(2 * np.pi * np.e * rest.var()) + (A.shape[1] + 1) / 2 * log2(len(y))
        return total

    margins = []
    for _ in range(200):
        x = [rng.normal(scale=s, size=n) for s in (1.0, 1.0, 2.0)]
        y = [b * v + rng.normal(size=n) for b, v in zip((1.0, 0.4, -0.7), x, strict=True)]
        forward = bits(x, None, partitions["x"]) + bits(y, x, partitions["y"])
        margins.append(bits(y, None, partitions["m"]) + bits(x, y, partitions["m"]) - forward)
    law = expected_margin([1, 1, 1], [2, 1], [1, 1, 1], n, 2, 3)
    assert abs(np.mean(margins) - law) <= 4 * np.std(margins) / np.sqrt(len(margins))
    assert np.std(margins) < law


def test_bad_input_is_named():
    with pytest.raises(DataError, match="probability"):
        tie_probability(1.5, 3)
    with pytest.raises(DataError, match=r"of \[3, 4\] environments"):
        expected_margin([1, 1, 1], [3], [4], 10, 2, 3)
