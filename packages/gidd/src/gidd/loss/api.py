"""``gidd_loss`` from logits and ``fused_linear_gidd_loss`` from hidden states: checks, reductions, autograd."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..process import SCHEMES, Process
from .closed_form import TokenTerms, Vocabulary, divergences, token_terms
from .reference import dense_divergences

IMPLEMENTATIONS = ("auto", "reference", "chunked", "triton")
REDUCTIONS = ("mean", "sum", "none")
# Logits in float32 scratch at a time: on a CPU what its caches hold, on a GPU what keeps it busy.
SCRATCH = {"cpu": 2**19, "cuda": 2**26}


class GiddLossOutput(NamedTuple):
    """The loss and its parts.

    loss : () or, without reduction, (B, L); the only one that carries a gradient.
    elbo : (B, L) integrand of the negative ELBO, elbo_weight (kl + is_div), whatever the weighting; nats.
    kl, is_div : (B, L) the two divergences;  weight : (B, L) the training weight.

    All are zero where ``loss_mask`` is False, and float64 for float64 logits or hidden states, else float32. Tokens
    without weight are skipped, whatever their divergences, which are given as zero should they be infinite.
    """

    loss: Tensor
    elbo: Tensor
    kl: Tensor
    is_div: Tensor
    weight: Tensor


def gidd_loss(
    logits: Tensor,
    x: Tensor,
    z: Tensor,
    t: Tensor,
    process: Process,
    *,
    weighting: str = "dynamic",
    w_max: float = 1.0,
    loss_mask: Tensor | None = None,
    reduction: str = "mean",
    impl: str = "auto",
    inplace_grad: bool = False,
) -> GiddLossOutput:
    """Weighted KL + IS of every token (arXiv:2503.04482, eq. 9 and section 3.4).

    Parameters
    ----------
    logits : (B, L, Vp) of any float dtype, Vp >= V; the mask column and columns from V on are ignored.
    x, z : (B, L) clean and noisy ids.
    t : (B,) or (B, L) times in [0, 1].
    weighting : see :meth:`Process.loss_weight`; it never affects ``elbo``.
    loss_mask : (B, L) bool, True where a token counts.
    reduction : "mean" (sum over tokens that count, divided by their number), "sum", "none".
    impl : "auto" (triton on CUDA where it is installed, chunked elsewhere), "chunked", "triton", or "reference" (dense,
        by autograd).
    inplace_grad : write the gradient over ``logits``, which must not be used afterwards; backward then runs once only.

    Raises
    ------
    ValueError
        Ids outside [0, V), a mask token in x, t outside [0, 1], shapes that do not fit.
    FloatingPointError
        Logits that are not finite, on CPU when GIDD_DEBUG=1.

    Examples
    --------
    >>> p = HybridProcess(vocab_size=6, mask_id=5)
    >>> x, t = torch.randint(5, (2, 4)), torch.rand(2)
    >>> gidd_loss(torch.zeros(2, 4, 128), x, p.q_sample(x, t), t, p).elbo.shape
    torch.Size([2, 4])
    """
    if logits.dim() != 3 or not logits.is_floating_point():
        raise ValueError(f"logits have to be a float tensor (B, L, Vp); got {logits.dtype} of {tuple(logits.shape)}")
    if logits.shape[2] < process.vocab_size:
        raise ValueError(f"logits have {logits.shape[2]} columns, fewer than the vocabulary of {process.vocab_size}")
    flat = _flatten(x, z, t, logits.shape[:2], process, loss_mask, weighting, reduction)
    impl = _implementation(impl, logits.device)
    if os.environ.get("GIDD_DEBUG") == "1" and logits.device.type == "cpu":
        _require_finite(logits, process)
    keep = flat.keep
    whole = bool(keep.all())
    terms = token_terms(flat.x[keep], flat.z[keep], flat.t[keep], process, weighting, w_max)
    rows = logits.reshape(-1, logits.shape[2])
    rows = rows if whole else rows[keep]
    if impl == "reference":
        made = _dense(rows, terms, flat, process)
    else:
        made = _apply(_FromLogits, rows, terms, process, impl, inplace_grad and whole)
    return _output(*made, terms, flat, reduction, logits.dtype)


def fused_linear_gidd_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    z: Tensor,
    t: Tensor,
    process: Process,
    *,
    chunk_tokens: int | None = None,
    weighting: str = "dynamic",
    w_max: float = 1.0,
    loss_mask: Tensor | None = None,
    reduction: str = "mean",
    impl: str = "auto",
    inplace_grad: bool = False,
) -> GiddLossOutput:
    """:func:`gidd_loss` of logits = hidden weight' + bias, computed a few tokens at a time: the logits never exist.

    Parameters
    ----------
    hidden : (B, L, d);  weight : (Vp, d);  bias : (Vp,) or None.
    chunk_tokens : tokens per step; default an eighth of all, fewer where that exceeds the scratch memory.
    reduction : "mean" or "sum" compute gradients in the forward pass; "none" computes the logits again in backward.
    inplace_grad : accepted for :func:`gidd_loss`'s sake; there are no logits to write over.
    """
    if hidden.dim() != 3 or weight.dim() != 2 or hidden.shape[2] != weight.shape[1]:
        raise ValueError(
            f"hidden (B, L, d) and weight (Vp, d) have to agree; got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if weight.shape[0] < process.vocab_size:
        raise ValueError(f"weight has {weight.shape[0]} rows, fewer than the vocabulary of {process.vocab_size}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias has shape {tuple(bias.shape)}; it has to be ({weight.shape[0]},)")
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ValueError(f"chunk_tokens has to be positive; got {chunk_tokens}")
    if os.environ.get("GIDD_DEBUG") == "1" and hidden.device.type == "cpu":
        for name, value in (("hidden", hidden), ("weight", weight), ("bias", bias)):
            if value is not None and not bool(torch.isfinite(value).all()):
                where = [int(k) for k in (~torch.isfinite(value)).nonzero()[0]]
                raise FloatingPointError(f"{name}{where} holds {float(value[tuple(where)])}")
    # Under autocast hidden states are bfloat16 and the head's weights float32: multiply in the former.
    weight, bias = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
    flat = _flatten(x, z, t, hidden.shape[:2], process, loss_mask, weighting, reduction)
    impl = _implementation(impl, hidden.device)
    keep = flat.keep
    terms = token_terms(flat.x[keep], flat.z[keep], flat.t[keep], process, weighting, w_max)
    rows = hidden.reshape(-1, hidden.shape[2])
    rows = rows if bool(keep.all()) else rows[keep]
    if impl == "reference":
        made = _dense(torch.nn.functional.linear(rows, weight, bias), terms, flat, process)
    else:
        # An eighth of the tokens, so that the logits of a chunk are an eighth of all, within what scratch allows.
        most = max(64, 16 * _scratch(hidden.device) // weight.shape[0])
        chunk = chunk_tokens or max(1, min(most, -(-len(rows) // 8)))
        made = _apply(_FromHidden, rows, weight, bias, terms, process, impl, chunk, reduction == "none")
    return _output(*made, terms, flat, reduction, hidden.dtype)


def _dense(logits: Tensor, terms: TokenTerms, flat: _Flat, process: Process) -> tuple[Tensor, Tensor, Tensor]:
    """What :class:`_FromLogits` gives, by automatic differentiation."""
    kl, is_div = dense_divergences(logits, terms.x, terms.z, flat.t[flat.keep], process, terms.weight > 0)
    return _weighted(terms.weight.to(kl.dtype), kl + is_div), kl, is_div


# --- automatic differentiation ----------------------------------------------------------------------------------


class _FromLogits(torch.autograd.Function):
    """Per-token losses of (N, Vp) logits; the gradient is written in the forward pass, where the softmax is at hand.

    The first backward hands it on; another one, for which the logits are kept, makes it again.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, terms: TokenTerms, process: Process, impl: str, inplace: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        vocabulary = Vocabulary.of(process, logits.device)
        ctx.gradient, ctx.inplace, ctx.rest = None, inplace, (terms, vocabulary, impl)
        if ctx.needs_input_grad[0]:
            ctx.gradient = logits.detach() if inplace else torch.empty_like(logits)
        if not inplace:
            ctx.save_for_backward(logits)
        kl, is_div = _blockwise(logits.detach(), terms, vocabulary, impl, ctx.gradient)
        ctx.mark_non_differentiable(kl, is_div)
        return _weighted(terms.weight, kl + is_div), kl, is_div

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            if ctx.inplace:
                raise RuntimeError("with inplace_grad backward runs once, since it uses the logits up: set it to False")
            (logits,), (terms, vocabulary, impl) = ctx.saved_tensors, ctx.rest
            gradient = torch.empty_like(logits)
            _blockwise(logits, terms, vocabulary, impl, gradient)
        return gradient.mul_(grad_loss.to(gradient.dtype)[:, None]), None, None, None, None


class _FromHidden(torch.autograd.Function):
    """The losses from hidden states, one for ``each`` token or their sum; logits of a chunk live in scratch only.

    Gradients of the sum are made in the forward pass, where the logits are at hand; each loss may get another gradient,
    so that backward makes the logits again, as it does when it runs again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        terms: TokenTerms,
        process: Process,
        impl: str,
        chunk: int,
        each: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wanted = (False,) * 3 if each else ctx.needs_input_grad[:3]
        ctx.rest = (terms, process, impl, chunk)
        kl, is_div, made = _through_head(hidden, weight, bias, terms, process, impl, chunk, wanted, None)
        ctx.gradients = None if each else made
        ctx.save_for_backward(hidden, weight, bias)
        ctx.mark_non_differentiable(kl, is_div)
        loss = _weighted(terms.weight, kl + is_div)
        return loss if each else loss.sum(), kl, is_div

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        each = grad_loss.dim() > 0
        if gradients is None:
            hidden, weight, bias = ctx.saved_tensors
            terms, process, impl, chunk = ctx.rest
            wanted, scale = ctx.needs_input_grad[:3], grad_loss if each else None
            gradients = _through_head(hidden, weight, bias, terms, process, impl, chunk, wanted, scale)[2]
        if not each:
            gradients = [None if g is None else g.mul_(grad_loss) for g in gradients]
        return *gradients, None, None, None, None, None


def _apply(function: Any, *arguments: Any) -> Any:
    return function.apply(*arguments)


def _blockwise(
    logits: Tensor,
    terms: TokenTerms,
    vocabulary: Vocabulary,
    impl: str,
    out: Tensor | None,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """KL and IS (N,) of (N, Vp) logits; ``out`` gets weight x scale x gradient. ``out`` may be ``logits``."""
    factor = terms.weight if scale is None else terms.weight * scale
    # Weights are infinite at the ends of time. At t = 1 no prediction matters; at t = 0 it is the loss that says so.
    factor = torch.where((terms.alpha > 0) & factor.isfinite(), factor, 0.0)
    if impl == "triton":
        from .kernels import triton_divergences

        return triton_divergences(logits, terms, vocabulary, out, factor)
    rows = max(1, _scratch(logits.device) // max(logits.shape[1], 1))
    dtype = logits.dtype if logits.dtype == torch.float64 else torch.float32
    kl, is_div = torch.empty_like(terms.weight), torch.empty_like(terms.weight)
    buffer = torch.empty((2, min(rows, len(logits)), logits.shape[1]), dtype=dtype, device=logits.device)
    for part in _parts(len(logits), rows):
        scratch = buffer[:, : part.stop - part.start]
        block = divergences(
            logits[part], terms.rows(part), vocabulary, scratch, None if out is None else out[part], factor[part]
        )
        kl[part], is_div[part] = block
    return kl, is_div


def _through_head(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    terms: TokenTerms,
    process: Process,
    impl: str,
    chunk: int,
    wanted: Sequence[bool],
    scale: Tensor | None,
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """KL and IS (N,), and the wanted gradients of hidden, weight, bias, of sum weight x scale x (KL + IS)."""
    vocabulary = Vocabulary.of(process, hidden.device)
    kl, is_div = torch.empty_like(terms.weight), torch.empty_like(terms.weight)
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    grad_hidden = torch.empty_like(hidden) if wanted[0] else None
    grad_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device) if wanted[1] else None
    grad_bias = torch.zeros(weight.shape[0], dtype=wide, device=weight.device) if wanted[2] else None
    buffer = hidden.new_empty(min(chunk, len(hidden)), weight.shape[0])
    for part in _parts(len(hidden), chunk):
        logits = buffer[: part.stop - part.start]  # one buffer: two chunks never exist at a time
        if bias is None:
            torch.mm(hidden[part], weight.T, out=logits)
        else:
            torch.addmm(bias, hidden[part], weight.T, out=logits)
        own = None if scale is None else scale[part]
        out = logits if any(wanted) else None  # the gradient replaces the logits
        kl[part], is_div[part] = _blockwise(logits, terms.rows(part), vocabulary, impl, out, own)
        if grad_hidden is not None:
            torch.mm(logits, weight, out=grad_hidden[part])
        if grad_weight is not None:
            if logits.dtype == wide:
                grad_weight.addmm_(logits.T, hidden[part])
            else:
                grad_weight += logits.T @ hidden[part]
        if grad_bias is not None:
            grad_bias += logits.sum(dim=0, dtype=wide)
    made = (grad_hidden, grad_weight, grad_bias)
    return kl, is_div, [None if g is None else g.to(weight.dtype) for g in made]


# --- checks and shapes --------------------------------------------------------------------------------------------


class _Flat(NamedTuple):
    """Tokens in one row, and which of them count."""

    shape: torch.Size  # (B, L)
    x: Tensor
    z: Tensor
    t: Tensor
    keep: Tensor
    number: int  # of the tokens that count, at least 1


def _flatten(
    x: Tensor,
    z: Tensor,
    t: Tensor,
    shape: torch.Size,
    process: Process,
    loss_mask: Tensor | None,
    weighting: str,
    reduction: str,
) -> _Flat:
    if weighting not in SCHEMES:
        raise ValueError(f"weighting {weighting!r} is not one of {', '.join(SCHEMES)}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction {reduction!r} is not one of {', '.join(REDUCTIONS)}")
    for name, ids in (("x", x), ("z", z)):
        if ids.shape != shape:
            raise ValueError(f"{name} has shape {tuple(ids.shape)}; it has to be (B, L) = {tuple(shape)}")
    if loss_mask is not None and (loss_mask.shape != shape or loss_mask.dtype != torch.bool):
        raise ValueError(
            f"loss_mask has to be bool of shape {tuple(shape)}; got {loss_mask.dtype} of {tuple(loss_mask.shape)}"
        )
    t = torch.as_tensor(t, device=x.device)
    if t.shape not in (shape[:1], shape):
        raise ValueError(f"t has shape {tuple(t.shape)}; it has to be (B,) or (B, L) for B, L = {tuple(shape)}")
    t = t.double().reshape(*t.shape, *[1] * (2 - t.dim())).expand(shape)
    if t.numel() and not (float(t.min()) >= 0.0 and float(t.max()) <= 1.0):
        raise ValueError(f"t has to lie in [0, 1]; got {float(t.min()):g} to {float(t.max()):g}")
    keep = torch.ones(shape, dtype=torch.bool, device=x.device) if loss_mask is None else loss_mask
    x, z = process.check_ids(x, "x"), process.check_ids(z, "z")
    if process.mask_id is not None and bool(((x == process.mask_id) & keep).any()):
        raise ValueError(f"x holds the mask token {process.mask_id}: clean tokens are never masked")
    number = max(keep.numel() if loss_mask is None else int(keep.sum()), 1)
    return _Flat(shape, x.reshape(-1), z.reshape(-1), t.reshape(-1), keep.reshape(-1), number)


def _output(
    loss: Tensor,
    kl: Tensor,
    is_div: Tensor,
    terms: TokenTerms,
    flat: _Flat,
    reduction: str,
    given: torch.dtype,
) -> GiddLossOutput:
    dtype = torch.float64 if given == torch.float64 else torch.float32
    divisor = flat.number if reduction == "mean" else 1
    loss = _spread(loss, flat) if reduction == "none" else loss.sum() / divisor
    kl, is_div = kl.detach().double(), is_div.detach().double()
    elbo = _weighted(terms.elbo_weight, kl + is_div)
    idle = (terms.weight == 0) & (terms.elbo_weight == 0)
    kl, is_div = (torch.where(idle & (d == torch.inf), 0.0, d) for d in (kl, is_div))
    return GiddLossOutput(loss.to(dtype), *(_spread(v, flat).to(dtype) for v in (elbo, kl, is_div, terms.weight)))


def _weighted(weight: Tensor, divergence: Tensor) -> Tensor:
    """weight x divergence, 0 where either is, whatever the other: weights are infinite at t = 1."""
    counts = (weight > 0) & (divergence != 0)
    return torch.where(counts, weight, 0.0) * torch.where(counts, divergence, 0.0)


def _spread(values: Tensor, flat: _Flat) -> Tensor:
    """(N,) of the tokens that count -> (B, L), zero elsewhere."""
    if len(values) == len(flat.keep):
        return values.reshape(flat.shape)
    return values.new_zeros(len(flat.keep)).masked_scatter(flat.keep, values).reshape(flat.shape)


def _implementation(impl: str, device: torch.device) -> str:
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl {impl!r} is not one of {', '.join(IMPLEMENTATIONS)}")
    if impl == "auto":
        return "triton" if device.type == "cuda" and find_spec("triton") is not None else "chunked"
    if impl == "triton" and find_spec("triton") is None:
        raise ValueError("impl='triton' needs the package triton, which is not installed: use impl='auto' or 'chunked'")
    return impl


def _require_finite(logits: Tensor, process: Process) -> None:
    used = logits[..., : process.vocab_size]
    if process.mask_id is not None:
        used = torch.cat([used[..., : process.mask_id], used[..., process.mask_id + 1 :]], dim=-1)
    if not bool(torch.isfinite(used).all()):
        b, i, v = (int(k) for k in (~torch.isfinite(used)).nonzero()[0])
        raise FloatingPointError(f"logits[{b}, {i}] hold {float(used[b, i, v])} (batch element {b}, position {i})")


def _scratch(device: torch.device) -> int:
    return SCRATCH.get(device.type, SCRATCH["cuda"])


def _parts(n: int, rows: int) -> Iterator[slice]:
    return (slice(start, min(start + rows, n)) for start in range(0, n, rows))
