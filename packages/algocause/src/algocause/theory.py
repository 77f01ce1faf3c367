"""What two Gaussian or discrete variables can be expected to show: how often a direction ties, and by how much it wins.

N environments, of which the first is the reference; mechanisms shift independently, each time to a fresh one.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import e, log2

from .codes.partition_codes import crp_bits
from .errors import DataError


def tie_probability(p: float, n_envs: int) -> float:
    """Probability that the edge X -> Y, of two variables alone, is undetermined: (p² + (1-p)²)^(N-1).

    p : probability that a mechanism shifts in an environment. The edge is tied if both mechanisms shift in the same
    environments; the accuracy of its orientation, ties counted one half, is 1 - tie_probability / 2.
    """
    if not 0 <= p <= 1 or n_envs < 1:
        raise DataError(f"p must be a probability and n_envs positive, not p = {p} and n_envs = {n_envs}")
    return float((p**2 + (1 - p) ** 2) ** (n_envs - 1))


def expected_margin(
    sizes_m: Sequence[int],
    sizes_x: Sequence[int],
    sizes_y: Sequence[int],
    n_per_env: int,
    dim_x: int,
    dim_y: int,
) -> float:
    """Expected bits by which Y -> X is longer than the true X -> Y under the code `bic` with CRP partitions.

    sizes_x, sizes_y : block sizes of the partitions of X and of Y given X; sizes_m : of their common refinement, which
    both mechanisms of Y -> X must follow. n_per_env : rows in each environment. dim_x, dim_y : parameters of one
    mechanism of X and of one of Y given X (Gaussian 2 and 3). Up to O(1/n).
    """
    totals = {sum(sizes_m), sum(sizes_x), sum(sizes_y)}
    if len(totals) != 1:
        raise DataError(f"the three partitions are of {sorted(totals)} environments; they must be of the same")
    dim = dim_x + dim_y

    def log_rows(sizes: Sequence[int]) -> float:
        return sum(log2(size * n_per_env) for size in sizes)

    parameters = dim * log_rows(sizes_m) - dim_x * log_rows(sizes_x) - dim_y * log_rows(sizes_y)
    # Each fitted parameter takes half a nat off the data, more of them the more mechanisms there are.
    fit = (dim * len(sizes_m) - dim_x * len(sizes_x) - dim_y * len(sizes_y)) * log2(e)
    return (parameters - fit) / 2 + 2 * crp_bits(sizes_m) - crp_bits(sizes_x) - crp_bits(sizes_y)
