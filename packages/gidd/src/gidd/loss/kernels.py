"""The closed form on a CUDA device: one Triton program per token reads its logits and writes their gradient.

The row is read three times, for the log-sum-exp, for the sums over the noise and for the gradient, but from memory only
once: the second and third reading find it in the L2 cache. Sums are float32 (float64 for float64 logits), with one
partial sum per column of a tile; what concerns the entries x and z alone is float64, as in :mod:`.closed_form`.

``TRITON_INTERPRET=1`` in the environment before the first use runs the same program on CPU tensors, for tests.
"""

# mypy: disable-error-code="no-untyped-def"
# (arguments of the kernels are Triton's own)

from __future__ import annotations

import os

import torch
from torch import Tensor
from torch.nn.functional import pad

from .closed_form import TokenTerms, Vocabulary, marginals

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("impl='triton' needs triton, which comes with torch for CUDA; use impl='chunked'") from error

TILE = 2048  # columns at a time, at most
LANES = 256  # columns per warp


def triton_divergences(
    logits: Tensor, terms: TokenTerms, vocabulary: Vocabulary, out: Tensor | None, factor: Tensor
) -> tuple[Tensor, Tensor]:
    """KL and IS of every token, float64 of shape (N,); ``out`` gets ``factor`` times the gradient of their sum.

    Parameters
    ----------
    logits : (N, Vp) of any float dtype and strides, on a CUDA device.
    terms : of these N tokens.
    out : (N, Vp) of any float dtype and strides, may be ``logits``; None for values only.
    factor : (N,) of each token's gradient; where it is 0 the gradient is exactly 0.
    """
    if logits.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"impl='triton' needs a CUDA device; the logits are on {logits.device}: use impl='chunked'")
    n, width = logits.shape
    kl, is_div = torch.empty_like(terms.alpha), torch.empty_like(terms.alpha)
    if not n:
        return kl, is_div
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    masses = terms.masses[:, vocabulary.which].to(wide).contiguous()
    # As wide as the logits, so that a row of either starts where wide loads can.
    vectors = pad(vocabulary.vectors.to(wide), (0, width - vocabulary.size)).contiguous()
    scalars = torch.stack([*marginals(terms, vocabulary), factor.double()], dim=1)
    tile = min(TILE, triton.next_power_of_2(width))
    with torch.cuda.device(logits.get_device()):  # -1, for none, on a CPU
        _divergences[(n,)](
            logits,
            logits if out is None else out,
            terms.x.contiguous(),
            terms.z.contiguous(),
            scalars,
            masses,
            vectors,
            kl,
            is_div,
            logits.stride(0),
            logits.stride(1),
            0 if out is None else out.stride(0),
            0 if out is None else out.stride(1),
            vocabulary.size,
            width,
            -1 if vocabulary.mask_id is None else vocabulary.mask_id,
            K=len(vectors),
            WRITE=out is not None,
            WIDE=tl.float64 if wide == torch.float64 else tl.float32,
            TILE=tile,
            num_warps=max(1, tile // LANES),
        )
    return kl, is_div


@triton.jit
def _divergences(
    logits,
    out,
    x,
    z,
    scalars,
    masses,
    vectors,
    kl,
    is_div,
    logits_row,
    logits_column,
    out_row,
    out_column,
    V,
    width,
    mask,
    K: tl.constexpr,
    WRITE: tl.constexpr,
    WIDE: tl.constexpr,
    TILE: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    logits += n * logits_row
    scalars += n * 9
    masses += n * K
    x_n, z_n = tl.load(x + n), tl.load(z + n)
    alpha, q_x, flat = tl.load(scalars), tl.load(scalars + 1), tl.load(scalars + 2)  # in the order of Marginals
    log_alpha, log_q_x, log_b_x = tl.load(scalars + 3), tl.load(scalars + 4), tl.load(scalars + 5)
    log_b_z, log_q_z, factor = tl.load(scalars + 6), tl.load(scalars + 7), tl.load(scalars + 8)
    # Read before any thread writes: ``out`` may be ``logits``.
    log_x = tl.load(logits + x_n * logits_column).to(tl.float64)
    log_z = tl.load(logits + z_n * logits_column).to(tl.float64)

    # Log-sum-exp, each column of the tile on its own: one exponential is 1, so that one is enough.
    tops = tl.full((TILE,), -3.4028234663852886e38, WIDE)
    totals = tl.zeros((TILE,), WIDE)
    for start in range(0, width, TILE):
        logit = _tile(logits, logits_column, start, V, width, mask, WIDE, TILE)
        smaller = tl.exp(-tl.abs(logit - tops))
        totals = tl.where(logit > tops, totals * smaller + 1.0, totals + smaller)
        tops = tl.maximum(tops, logit)
    top = tl.max(tops, 0)
    total = tl.sum(totals * tl.exp(tops - top), 0)
    log_sum = top.to(tl.float64) + tl.log(total.to(tl.float64))

    # The entries x and z.
    log_x -= log_sum
    log_z -= log_sum
    log_p_x = _logaddexp(log_alpha + log_x, log_b_x)
    log_p_z = _logaddexp(log_alpha + log_z, log_b_z)
    judged = log_q_z > float("-inf")
    log_ratio = tl.where(judged, log_q_z - log_p_z, 0.0)
    excess = tl.exp(log_ratio) - 1.0
    tl.store(is_div + n, tl.where(log_ratio == float("inf"), log_ratio, excess - log_ratio))
    kl_n = tl.where(q_x > 0, q_x * (log_q_x - log_p_x), 0.0)

    # All other entries: sum_v b ln(1 + rho s), and the shares s b / (alpha s + b). Flat noise so faint that products of
    # two rho s would not fit is left out: below 1e-11 of alpha. ln(u) + (r - (u - 1)) / u is ln(1 + r), even if u is 1.
    scale = 1.0 / total  # of the exponentials
    alpha_s = alpha.to(WIDE) * scale
    flat_n = flat.to(WIDE)
    noisy = flat_n > 1e-18 * alpha.to(WIDE)
    rho = alpha_s / tl.where(noisy, flat_n, 1.0)
    shared = alpha * 0.0
    if K > 0:
        noisy = True
    if noisy:
        if K == 0:  # two entries share a logarithm and a division
            logs = tl.zeros((TILE // 2,), WIDE)
            shares = tl.zeros((TILE // 2,), WIDE)
        else:
            logs = tl.zeros((TILE,), WIDE)
            shares = tl.zeros((TILE,), WIDE)
        for start in range(0, width, TILE):
            s = tl.exp(_tile(logits, logits_column, start, V, width, mask, WIDE, TILE) - top)
            if K == 0:
                first, second = tl.split(tl.reshape(s, (TILE // 2, 2)))
                both, cross = first + second, rho * first * second
                r = rho * (both + cross)  # (1 + rho first) (1 + rho second) - 1
                u = 1.0 + r
                inverse = 1.0 / u
                logs += tl.log(u) + (r - (u - 1.0)) * inverse
                shares += (both + 2.0 * cross) * inverse
            else:
                b = _noise(flat_n, masses, vectors, start, width, K, TILE)
                r = s * (alpha_s / tl.maximum(b, 1.1754943508222875e-38))
                u = 1.0 + r
                share = tl.where(b > 0, 1.0 / u, 0.0)
                logs += b * (tl.log(u) + (r - (u - 1.0)) * share)
                shares += s * share
        sum_logs = tl.sum(logs, 0)
        if K == 0:
            sum_logs *= flat_n
        own = tl.where(log_b_x > float("-inf"), (q_x - alpha) * (log_p_x - log_b_x), 0.0)
        kl_n -= sum_logs.to(tl.float64) - own
        shared = alpha * (tl.sum(shares, 0) * scale).to(tl.float64)
    tl.store(kl + n, kl_n)

    if WRITE:
        counts = factor != 0
        share_x = tl.where(log_b_x > float("-inf"), alpha * tl.exp(log_x - log_p_x), 1.0)
        at_x = tl.where(counts & (alpha > 0), -factor * alpha * share_x, 0.0)
        at_z = tl.where(counts & judged, -factor * alpha * tl.exp(log_z - log_p_z) * excess, 0.0)
        slope = tl.where(counts, factor * shared - at_x - at_z, 0.0).to(WIDE) * scale
        share_slope = tl.where(counts & noisy, -factor * alpha, 0.0).to(WIDE) * scale
        at_x_n, at_z_n = at_x.to(WIDE), at_z.to(WIDE)
        x_n, z_n = x_n.to(tl.int32), z_n.to(tl.int32)
        out += n * out_row
        tl.debug_barrier()
        for start in range(0, width, TILE):
            columns = start + tl.arange(0, TILE)
            s = tl.exp(_tile(logits, logits_column, start, V, width, mask, WIDE, TILE) - top)
            if K == 0:
                gradient = s * (slope + share_slope / (1.0 + rho * s))
            else:
                b = _noise(flat_n, masses, vectors, start, width, K, TILE)
                share = tl.where(b > 0, 1.0 / (1.0 + s * (alpha_s / tl.maximum(b, 1.1754943508222875e-38))), 0.0)
                gradient = s * (slope + share_slope * share)
            if ((x_n >= start) & (x_n < start + TILE)) | ((z_n >= start) & (z_n < start + TILE)):
                gradient += tl.where(columns == x_n, at_x_n, 0.0) + tl.where(columns == z_n, at_z_n, 0.0)
            place = out + columns.to(tl.int64) * out_column
            tl.store(place, gradient.to(out.dtype.element_ty), mask=columns < width)


@triton.jit
def _tile(logits, step, start, V, width, mask, WIDE: tl.constexpr, TILE: tl.constexpr):
    """Logits of a tile, -inf at the mask and beyond the vocabulary."""
    columns = start + tl.arange(0, TILE)
    logit = tl.load(logits + columns.to(tl.int64) * step, mask=columns < width, other=0.0).to(WIDE)
    if (start + TILE > V) | ((mask >= start) & (mask < start + TILE)):
        logit = tl.where((columns < V) & (columns != mask), logit, float("-inf"))
    return logit


@triton.jit
def _noise(flat, masses, vectors, start, width, K: tl.constexpr, TILE: tl.constexpr):
    """b(v) of a tile."""
    columns = start + tl.arange(0, TILE)
    b = tl.zeros((TILE,), flat.dtype) + flat
    for k in tl.static_range(K):
        b += tl.load(masses + k) * tl.load(vectors + k * width + columns, mask=columns < width, other=0.0)
    return b


@triton.jit
def _logaddexp(a, b):
    high, low = tl.maximum(a, b), tl.minimum(a, b)
    r = tl.exp(low - high)
    u = 1.0 + r
    return tl.where(low > float("-inf"), high + tl.log(u) + (r - (u - 1.0)) / u, high)
