"""One thread for every BLAS; exact product measures on a grid, where sources are independent to rounding."""

import os

import pytest

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")


@pytest.fixture(scope="session")
def product_grid():
    """``(laws, m) -> (m^d, d)``: the product of standardised m-point laws; sample moments factorise exactly."""
    import numpy as np

    from isoica.laws import as_law

    def build(laws, m):
        columns = []
        for name in laws:
            x = as_law(name).parts[0][1].ppf((np.arange(m) + 0.5) / m)
            columns.append((x - x.mean()) / x.std())
        return np.stack([c.ravel() for c in np.meshgrid(*columns, indexing="ij")], axis=1)

    return build


@pytest.fixture(scope="session")
def aligned():
    """``(B, A) -> B A`` with rows permuted and signed so that the diagonal dominates, and the order of the rows."""

    def align(B, A):
        import numpy as np
        from scipy.optimize import linear_sum_assignment

        P = B @ A
        row = linear_sum_assignment(-np.abs(P).T)[1]
        P = P[row]
        return P * np.sign(np.diag(P))[:, None], row

    return align
