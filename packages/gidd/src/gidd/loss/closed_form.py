"""The loss of a block of tokens and its gradient, in closed form over the vocabulary.

With s = softmax(logits) over the real tokens, b(v) = beta_t pi_t(v) and rho_v = alpha / b(v), only the entry x differs
from fixed noise, so that

    KL = q_x ln(q_x / p_x) - sum_{v != x} b(v) ln(1 + rho_v s_v),      q_x = alpha + b(x),  p_x = alpha s_x + b(x),
    IS = q_z / p_z - ln(q_z / p_z) - 1,                                zero where z is the mask,

and with g_v = dD / ds_v of D = KL + IS the gradient in the logits is s_v (g_v - sum_u s_u g_u). Two passes over the
logits, the second of which writes the gradient: no one-hot, no q_t, no p_t. (Derived from arXiv:2503.04482, Theorem 3.)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..process import Process


class TokenTerms(NamedTuple):
    """The schedules at every token, float64 of shape (N,), computed before any vocabulary is touched."""

    x: Tensor
    z: Tensor
    alpha: Tensor
    noise_x: Tensor  # b(x)
    noise_z: Tensor  # b(z)
    masses: Tensor  # (N, K)
    weight: Tensor  # of the training loss
    elbo_weight: Tensor

    def rows(self, part: slice) -> TokenTerms:
        """The same of some tokens."""
        return TokenTerms(*(value[part] for value in self))


def token_terms(x: Tensor, z: Tensor, t: Tensor, process: Process, weighting: str, w_max: float) -> TokenTerms:
    """Schedules at every token; x, z, t of shape (N,)."""
    return TokenTerms(
        x,
        z,
        process.alpha(t),
        process.noise_at(x, t),
        process.noise_at(z, t),
        process.masses(t),
        process.loss_weight(z, x, t, weighting, w_max),
        process.elbo_weight(z, x, t),
    )


class Vocabulary(NamedTuple):
    """The noise measures as kernels want them: the mask apart, and those constant over all other tokens as numbers."""

    size: int
    mask_id: int | None
    flat: Tensor  # (K,) value of each constant measure, 0 for the others
    vectors: Tensor  # (J, V) the measures that are not constant, 0 at the mask
    which: Tensor  # (J,) their numbers

    @classmethod
    def of(cls, process: Process, device: torch.device) -> Vocabulary:
        """The vocabulary of a process."""
        measures = process.measures.to(device).clone()
        others = torch.ones(process.vocab_size, dtype=torch.bool, device=device)
        if process.mask_id is not None:
            others[process.mask_id] = False
            measures[:, process.mask_id] = 0.0
        inner = measures[:, others]
        constant = (inner == inner[:, :1]).all(dim=1)
        which = (~constant).nonzero()[:, 0]
        return cls(process.vocab_size, process.mask_id, inner[:, 0] * constant, measures[which], which)

    def noise(self, flat: Tensor, masses: Tensor, dtype: torch.dtype) -> Tensor | None:
        """b(v) of every token: (n, 1) where it does not depend on v, else (n, V); None where it is zero throughout.

        ``flat`` (n,) is what the constant measures give of it, ``masses`` (n, K) those of all.
        """
        if len(self.which):
            return (flat[:, None] + masses[:, self.which] @ self.vectors).to(dtype)
        return flat[:, None].to(dtype) if bool((flat > 0).any()) else None


class Marginals(NamedTuple):
    """What every pass over the vocabulary needs of a token's marginals beside its logits; float64 of shape (N,).

    Logarithms, since p_x may be as small as b(x). log_q_z is -inf where IS is not asked for: at masks, whose marginal
    no prediction changes, and where z cannot come from x.
    """

    alpha: Tensor
    q_x: Tensor
    flat: Tensor  # b(v) of the constant measures, the same for every v but the mask
    log_alpha: Tensor
    log_q_x: Tensor
    log_b_x: Tensor
    log_b_z: Tensor
    log_q_z: Tensor


def marginals(terms: TokenTerms, vocabulary: Vocabulary) -> Marginals:
    """alpha, b and q at the entries x and z of every token."""
    alpha, b_x, b_z = terms.alpha, terms.noise_x, terms.noise_z
    q_x, q_z = alpha + b_x, alpha * (terms.z == terms.x) + b_z
    if vocabulary.mask_id is not None:
        q_z = torch.where(terms.z == vocabulary.mask_id, 0.0, q_z)
    logs = (v.log() for v in (alpha, q_x, b_x, b_z, q_z))
    return Marginals(alpha, q_x, terms.masses @ vocabulary.flat, *logs)


class Block(NamedTuple):
    """Divergences of n tokens, float64 of shape (n,); infinite where the model excludes what has probability."""

    kl: Tensor
    is_div: Tensor


def divergences(
    logits: Tensor,
    terms: TokenTerms,
    vocabulary: Vocabulary,
    scratch: Tensor,
    out: Tensor | None = None,
    scale: Tensor | None = None,
) -> Block:
    """KL and IS of a block, and on request ``scale`` times the gradient of their sum, written into ``out``.

    Parameters
    ----------
    logits : (n, Vp) of any float dtype; read before anything is written.
    terms : of these n tokens.
    scratch : (2, n, Vp) float32 or float64, the precision of the sums.
    out : (n, Vp) of any dtype, may be ``logits``; None for values only.
    scale : (n,) factor of each token's gradient, e.g. its weight.
    """
    dtype = scratch.dtype
    s, r = scratch
    s, top, total = _softmax(logits, vocabulary, s)
    log_sum = top.double() + total.double().log()
    log_x = logits.gather(1, terms.x[:, None])[:, 0].double() - log_sum
    log_z = logits.gather(1, terms.z[:, None])[:, 0].double() - log_sum

    # The entries x and z, in float64.
    alpha, q_x, flat, log_alpha, log_q_x, log_b_x, log_b_z, log_q_z = marginals(terms, vocabulary)
    log_p_x = torch.logaddexp(log_alpha + log_x, log_b_x)
    log_p_z = torch.logaddexp(log_alpha + log_z, log_b_z)
    judged = log_q_z > -torch.inf
    log_ratio = torch.where(judged, log_q_z - log_p_z, 0.0)
    kl = torch.where(q_x > 0, q_x * (log_q_x - log_p_x), 0.0)  # at t = 1 nothing of x is left
    is_div = torch.where(log_ratio == torch.inf, torch.inf, torch.expm1(log_ratio) - log_ratio)

    # All other entries: sum_v b ln(1 + rho s), and the shares b / (alpha s + b).
    b_x = terms.noise_x
    noise = vocabulary.noise(flat, terms.masses, dtype)
    if noise is not None:
        noisy = noise > 0
        a_over_b = alpha.to(dtype)[:, None] / noise.clamp_min(torch.finfo(dtype).tiny)
        width = s.shape[1] if noise.shape[1] == 1 else vocabulary.size
        torch.mul(s[:, :width], torch.where(noisy, a_over_b, 0.0), out=r[:, :width])
        r[:, width:] = 0.0
        logs = torch.log1p(r[:, :width])
        total_noise = logs.sum(1) * noise[:, 0] if noise.shape[1] == 1 else torch.einsum("nv,nv->n", logs, noise)
        own = torch.where(b_x > 0, b_x * (log_p_x - log_b_x), 0.0)
        kl = kl - (total_noise.double() - own)
    if out is None:
        return Block(kl, is_div)

    # s_v g_v is -alpha s_v share_v, and more at v = x (q_x instead of b) and v = z (IS).
    factor = torch.ones_like(alpha) if scale is None else scale
    counts = judged & (factor != 0)  # without weight IS may be infinite
    share_x = torch.where(b_x > 0, alpha * torch.exp(log_x - log_p_x), 1.0)  # alpha s_x / p_x, even of s_x = 0
    at_x = torch.where(factor != 0, -alpha * share_x, 0.0)
    at_z = torch.where(counts, -alpha * torch.exp(log_z - log_p_z) * torch.expm1(log_ratio), 0.0)
    # Towards t = 0 slopes leave the range of the gradient's type: kept finite, so that no inf meets a zero.
    at_z = at_z.clamp(-torch.finfo(dtype).max / 1e6, torch.finfo(dtype).max / 1e6)
    mean = at_x + at_z
    if noise is None:
        gradient = s.mul_((-mean * factor).to(dtype)[:, None])
    else:
        shared = r.add_(1).reciprocal_().mul_(s)  # s_v b / (alpha s_v + b)
        if not bool(noisy.all()):
            shared[:, :width].masked_fill_(~noisy, 0.0)
        mean = mean - alpha * shared.sum(1).double()
        s.mul_((-mean * factor).to(dtype)[:, None])
        slope = (-alpha * factor).to(dtype)[:, None]
        direct = out.dtype == dtype
        gradient = torch.addcmul(s, shared, slope, out=out if direct else s)
    gradient.scatter_add_(1, terms.x[:, None], (at_x * factor).to(dtype)[:, None])
    gradient.scatter_add_(1, terms.z[:, None], (at_z * factor).to(dtype)[:, None])
    if gradient is not out:
        out.copy_(gradient)
    return Block(kl, is_div)


def _softmax(logits: Tensor, vocabulary: Vocabulary, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax over the real tokens written into s, the largest logits (n,) and sums of exponentials (n,)."""
    V, m = vocabulary.size, vocabulary.mask_id
    real = [logits[:, :V]] if m is None else [logits[:, :m], logits[:, m + 1 : V]]
    top = torch.stack([part.amax(1) for part in real if part.shape[1]]).amax(0)
    if logits.dtype == s.dtype:
        torch.sub(logits, top[:, None], out=s)
    else:  # a difference of bfloat16 numbers would be rounded to bfloat16
        s.copy_(logits).sub_(top[:, None])
    s.exp_()
    if m is not None:
        s[:, m] = 0.0
    s[:, V:] = 0.0
    total = s.sum(1)
    s.mul_(1 / total[:, None])
    return s, top, total
