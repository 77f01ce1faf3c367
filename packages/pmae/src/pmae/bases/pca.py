"""Principal components of standardised images (arXiv:2502.06314, section 3): four ways to the same eigenvectors.

``cov``          the D×D second moments, streamed, then all eigenvectors
``gram``         the N×N inner products, where images are fewer than coordinates
``randomized``   the leading components only, from a random range finder with power iterations (Halko et al. 2011)
``incremental``  the leading components only, in one pass (Ross et al. 2008)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from ..processes import summed
from .base import Dense, positive_peaks

SOLVERS = ("cov", "gram", "randomized", "incremental")
OVERSAMPLE, ITERATIONS = 10, 4
KRYLOV = 2**30  # bytes of all iterates of the range finder, above which only the last is used
# Moments are summed in float64, so what is below this times D and the first eigenvalue is rounding.
NULL = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Stream:
    """Standardised images, (b, D) at a time: every call of ``batches`` is one pass over this process's share."""

    batches: Callable[[], Iterator[Tensor]]
    n: int  # of images, over all processes
    dim: int
    device: torch.device


def fit(
    stream: Stream, solver: str, rank: int | None, seed: int, dtype: torch.dtype, name: str = "pca"
) -> tuple[Dense, float]:
    """The basis and the total variance T, in float64.

    Components with eigenvalues ℓ ≤ D·eps·ℓ₁ are left out, with eps of float64, the precision of the moments. (With
    that of float32, 96 % of the components of small photographs and 4 % of their variance would be missing.)
    """
    values, rows, total = _SOLVERS[solver](stream, rank, seed)
    kept = int((values > stream.dim * NULL * values[0]).sum())
    kept = min(kept, rank or kept)
    rows = positive_peaks(rows[:kept])
    return Dense(name, rows.to(dtype).contiguous(), values[:kept].cpu()), total


def _cov(stream: Stream, rank: int | None, seed: int) -> tuple[Tensor, Tensor, float]:
    moments = second_moments(stream)
    total = float(moments.diagonal().sum())
    return *leading(moments, rank), total


def second_moments(stream: Stream) -> Tensor:
    """Σ = (1/N) Σ x xᵀ, float64 (D, D)."""
    if stream.device.type == "cpu":
        # A rank-k update computes one triangle, in place: half the work of a product.
        sums = np.zeros((stream.dim, stream.dim), order="F")
        for batch in stream.batches():
            sums = scipy.linalg.blas.dsyrk(1.0, batch.double().numpy().T, beta=1.0, c=sums, overwrite_c=1, lower=1)
        for start in range(0, stream.dim, 512):  # mirror the triangle without a second matrix
            block, after = slice(start, start + 512), slice(start + 512, None)
            sums[block, block] = np.tril(sums[block, block]) + np.tril(sums[block, block], -1).T
            sums[block, after] = sums[after, block].T
        moments = torch.from_numpy(sums)
    else:
        moments = torch.zeros(stream.dim, stream.dim, dtype=torch.float64, device=stream.device)
        for batch in stream.batches():
            batch = batch.double()
            moments.addmm_(batch.T, batch)
    return summed(moments).div_(stream.n)


def leading(moments: Tensor, rank: int | None = None) -> tuple[Tensor, Tensor]:
    """Eigenvalues, descending, and eigenvectors as rows; ``moments`` is overwritten."""
    n = len(moments)
    if moments.device.type != "cpu":
        values, vectors = torch.linalg.eigh(moments)
        values, rows = values.flip(0), vectors.T.flip(0)
    elif rank is not None and rank < n // 4:
        subset = (n - rank, n - 1)
        found, columns = scipy.linalg.eigh(
            moments.numpy(), subset_by_index=subset, overwrite_a=True, check_finite=False
        )
        values, rows = torch.from_numpy(found[::-1].copy()), torch.from_numpy(columns.T[::-1].copy())
    else:
        found, columns = scipy.linalg.eigh(moments.numpy(), driver="evd", overwrite_a=True, check_finite=False)
        values, rows = torch.from_numpy(found[::-1].copy()), torch.from_numpy(columns.T).flip(0)
    return values.clamp(min=0.0), rows


def _gram(stream: Stream, rank: int | None, seed: int) -> tuple[Tensor, Tensor, float]:
    images = torch.cat([batch.double() for batch in stream.batches()])
    inner = images @ images.T / stream.n
    total = float(inner.diagonal().sum())
    values, rows = leading(inner, rank)
    kept = int((values > stream.dim * NULL * values[0]).sum())
    values, rows = values[:kept], rows[:kept]
    components = rows @ images / (stream.n * values[:, None]).sqrt()
    # Vectors of small eigenvalues inherit rounding of the large ones; one QR makes them orthonormal again.
    return values, _orthonormal(components.T).T, total


def _randomized(stream: Stream, rank: int | None, seed: int) -> tuple[Tensor, Tensor, float]:
    rank = min(stream.n, stream.dim) if rank is None else rank
    width = min(rank + OVERSAMPLE, stream.dim)
    generator = torch.Generator().manual_seed(seed)
    span = torch.randn(stream.dim, width, generator=generator, dtype=torch.float64).to(stream.device)
    spans = []
    for _ in range(ITERATIONS + 1):
        span = _orthonormal(_applied(stream, _orthonormal(span))[0])
        spans.append(span)
    # All iterates together span a Krylov space, which holds far better vectors than the last one; it costs no pass.
    if 8 * stream.dim * width * len(spans) <= KRYLOV:
        together = torch.cat(spans, 1)
        span = torch.linalg.svd(together, full_matrices=False)[0]
    # Rayleigh–Ritz: the eigenvectors of the moments within the span.
    product, total = _applied(stream, span)
    values, rows = leading(span.T @ product)
    return values[:rank], (rows @ span.T)[:rank], total


def _applied(stream: Stream, span: Tensor) -> tuple[Tensor, float]:
    """Σ·span, and the trace of Σ."""
    product = torch.zeros_like(span)
    trace = torch.zeros((), dtype=torch.float64, device=stream.device)
    for batch in stream.batches():
        batch = batch.double()
        product += batch.T @ (batch @ span)
        trace += batch.square().sum()
    return summed(product) / stream.n, float(summed(trace)) / stream.n


def _incremental(stream: Stream, rank: int | None, seed: int) -> tuple[Tensor, Tensor, float]:
    rank = min(stream.n, stream.dim) if rank is None else rank
    kept = torch.zeros(0, stream.dim, dtype=torch.float64, device=stream.device)
    total = 0.0
    for batch in stream.batches():
        batch = batch.double()
        total += float(batch.square().sum())
        _, singular, rows = torch.linalg.svd(torch.cat([kept, batch]), full_matrices=False)
        kept = singular[: rank + OVERSAMPLE, None] * rows[: rank + OVERSAMPLE]
    singular = kept.norm(dim=1)
    alive = singular > 0
    return (singular[alive].square() / stream.n)[:rank], (kept[alive] / singular[alive, None])[:rank], total / stream.n


def _orthonormal(columns: Tensor) -> Tensor:
    q, r = torch.linalg.qr(columns)
    return q * torch.where(r.diagonal() < 0, -1.0, 1.0).to(q.dtype)


_SOLVERS = {"cov": _cov, "gram": _gram, "randomized": _randomized, "incremental": _incremental}
