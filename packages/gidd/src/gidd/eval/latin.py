"""An exact judge: how far generated squares are from being Latin."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def conflicts(squares: Any, order: int) -> NDArray[np.int64]:
    """Repeated symbols, summed over rows and columns: order minus the number of different symbols in each of them.

    A mask or any other id outside 0..order-1 is no symbol and so counts like a repeated one.

    Parameters
    ----------
    squares : (N, order * order) ids, row by row.

    Returns
    -------
    (N,) int64 between 0 (a Latin square) and 2 order².

    Raises
    ------
    ValueError
        The squares have another shape.

    Examples
    --------
    >>> conflicts([[0, 1, 1, 0], [0, 1, 0, 1]], order=2)
    array([0, 2])
    """
    ids = np.asarray(squares)
    if ids.ndim != 2 or ids.shape[1] != order * order:
        raise ValueError(f"squares has to have the shape (N, {order * order}); got {ids.shape}")
    grid = ids.reshape(-1, order, order)
    found = grid[..., None] == np.arange(order)
    different = found.any(axis=2).sum(axis=(1, 2)) + found.any(axis=1).sum(axis=(1, 2))
    return 2 * order * order - different


def is_valid(squares: Any, order: int) -> NDArray[np.bool_]:
    """(N,) whether each of the squares (N, order * order) is Latin: no symbol repeated in any row or column."""
    return conflicts(squares, order) == 0
