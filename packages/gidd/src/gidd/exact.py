"""Exact answers for toy languages: every noisy sequence is enumerated, so that nothing depends on chance or training.

The language is a joint distribution over L tokens, small enough for a table. From it follow the ELBO of any model, the
mutual information that the best model's ELBO has to equal, and that best model itself: the leave-one-out posterior
P(x_l | z_{-l}) (arXiv:2503.04482 states the ELBO; that this posterior minimises it is derived in the documentation).
Everything is float64; results are Python floats in nats per sequence.

Examples
--------
>>> process = HybridProcess(vocab_size=3, mask_id=2, p_uniform=0.2)
>>> joint = torch.tensor([[0.5, 0.0], [0.0, 0.5]], dtype=torch.float64)  # two tokens that are always equal
>>> model = loo_model(joint, process)
>>> path = path_nelbo(model, joint, process, 1e-3, 0.999, 64)
>>> abs(path - mutual_information(joint, process, 1e-3) + mutual_information(joint, process, 0.999)) < 1e-9
True
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .process import Process

Model = Callable[[Tensor, Tensor], Tensor]

MAX_STATES = 100_000  # noisy sequences, V**L
_BATCH = 2**18  # entries of a (times, L, V**L, V) tensor in memory at a time; one time at least


def entropy(joint: Tensor) -> float:
    """Entropy of a joint distribution of any shape, in nats per sequence."""
    return float(_entropy(joint.double().reshape(1, -1)))


def mutual_information(joint: Tensor, process: Process, t: float) -> float:
    """I(x; z_t) between clean and noisy sequences, in nats; the entropy at t = 0, nothing at t = 1.

    Parameters
    ----------
    joint : (V0,) * L probabilities of sequences over the ids 0..V0-1.
    process : with V >= V0 tokens, the mask not among the first V0, and V**L <= 1e5.
    t : in [0, 1].

    Raises
    ------
    ValueError
        A joint that is no distribution, does not fit the process or is too large; t outside [0, 1].
    """
    joint = _checked(joint, process)
    q = _channel(joint, process, torch.tensor([t], dtype=torch.float64))
    z = joint[None]
    for axis in range(joint.dim()):
        z = _contract(z, q, axis)
    given_x = sum(float(p @ _entropy(q[0])) for p in _token_marginals(joint))
    return float(_entropy(z.reshape(1, -1))) - given_x


def loo_model(joint: Tensor, process: Process) -> Model:
    """The model that minimises the ELBO: P(x_l | z_{-l}, t), the posterior from all tokens but the one it is about.

    Returns ``model(z (B, L), t (B,)) -> logits (B, L, V)``, float64, normalised, -inf where the probability is 0. Where
    z_{-l} cannot occur at t, the logits of position l are uniform over 0..V0-1.

    Parameters
    ----------
    joint, process : as in :func:`mutual_information`.
    """
    joint = _checked(joint, process)
    V0, L, V = joint.shape[0], joint.dim(), process.vocab_size

    def model(z: Tensor, t: Tensor) -> Tensor:
        if z.dim() != 2 or z.shape[1] != L or t.shape != z.shape[:1]:
            raise ValueError(f"z has to be (B, {L}) and t (B,); got {tuple(z.shape)} and {tuple(t.shape)}")
        ids = process.check_ids(z, "z").cpu()
        times, which = torch.unique(t.detach().double().cpu(), return_inverse=True)
        code = ids @ (V ** torch.arange(L - 1, -1, -1))
        probs = torch.zeros(len(z), L, V, dtype=torch.float64)
        for part in _parts(len(times), joint, process):
            rows = (which >= part.start) & (which < part.stop)
            others = _without_one(joint, _channel(joint, process, times[part]))
            probs[rows, :, :V0] = others[which[rows] - part.start, :, code[rows]]
        total = probs.sum(dim=-1, keepdim=True)
        probs[..., :V0] += (total == 0).double()
        return torch.log(probs / probs.sum(dim=-1, keepdim=True)).to(z.device)

    return model


def path_nelbo(model: Model, joint: Tensor, process: Process, t_min: float, t_max: float, num_times: int) -> float:
    """The ELBO's path integral, int sum_l E[w_t(z_l, x_l) (KL + IS)] dt over [t_min, t_max], in nats per sequence.

    With :func:`loo_model` this is I(x; z_{t_min}) - I(x; z_{t_max}), up to the quadrature.

    Parameters
    ----------
    model : ``model(z (N, L), t (N,)) -> logits (N, L, >= V)``; the mask and columns from V on are ignored.
    joint, process : as in :func:`mutual_information`.
    t_min, t_max : 0 < t_min < t_max < 1.
    num_times : points of a Gauss-Legendre rule in logit(t), where the ends, of order t^(gamma/2 - 1), are smooth.

    Raises
    ------
    ValueError
        As in :func:`mutual_information`, and for times out of range or out of order, or num_times < 1.
    """
    joint = _checked(joint, process)
    _check_interval(t_min, t_max, num_times, "num_times", open_ends=True)
    nodes, weights = np.polynomial.legendre.leggauss(num_times)
    low, high = np.log(t_min / (1 - t_min)), np.log(t_max / (1 - t_max))
    t = torch.sigmoid(torch.from_numpy(low + (high - low) * (nodes + 1) / 2))
    measure = torch.from_numpy(weights) * (high - low) / 2 * t * (1 - t)
    return sum(
        float(_integrand(model, joint, process, t[part]) @ measure[part]) for part in _parts(len(t), joint, process)
    )


def d3pm_nelbo(model: Model, joint: Tensor, process: Process, num_steps: int, t_min: float, t_max: float) -> float:
    """The bound of a chain of ``num_steps`` equal steps, sum E KL(q(z_s | z_t, x) || p(z_s | z_t)), in nats.

    p(z_s | z_t) is proportional to q_{t|s}(z_t | z_s) q_s(z_s | x_theta). Tends to :func:`path_nelbo` as 1 / num_steps.

    Parameters
    ----------
    model, joint, process : as in :func:`path_nelbo`.
    num_steps : of equal length in t.
    t_min, t_max : 0 <= t_min < t_max <= 1.
    """
    joint = _checked(joint, process)
    _check_interval(t_min, t_max, num_steps, "num_steps", open_ends=False)
    grid = torch.linspace(t_min, t_max, num_steps + 1, dtype=torch.float64)
    return sum(
        float(_step_costs(model, joint, process, grid[:-1][part], grid[1:][part]).sum())
        for part in _parts(num_steps, joint, process)
    )


# --- one expectation per time -------------------------------------------------------------------------------------


class _Table(NamedTuple):
    """What there is to sum over at T times: tokens v < V0 at every position l of every noisy sequence."""

    z: Tensor  # (Z, L) all noisy sequences, Z = V**L
    probability: Tensor  # (T, L, Z, V0) P(x_l = v, z)
    channel: Tensor  # (T, V0, V) q_t(z_l | x_l)
    prediction: Tensor  # (T, L, Z, V) the model's x_theta


def _integrand(model: Model, joint: Tensor, process: Process, t: Tensor) -> Tensor:
    """(T,) sum_l E[w (KL + IS)] at each time; KL and IS from whole distributions, unlike the loss."""
    table = _table(model, joint, process, t)
    q, V0 = table.channel, joint.shape[0]
    p = process.alpha(t)[:, None, None, None] * table.prediction + process.noise_vector(t)[:, None, None]
    kl = -_entropy(q)[:, None, None, :] + _cross_entropy(q[:, None, None], p)
    p_z = p.gather(-1, _own(table, p))
    ratio = _at_own(table, q) / p_z
    weight = process.elbo_weight(
        torch.arange(process.vocab_size)[None, :, None], torch.arange(V0)[None, None], t[:, None, None]
    )
    weight = torch.stack([weight[:, z_l] for z_l in table.z.T], dim=1)
    # IS is exactly 0 on the mask, where the ratio is 1 up to rounding.
    return _expected(table.probability * weight, kl + ratio - torch.log(ratio) - 1)


def _step_costs(model: Model, joint: Tensor, process: Process, s: Tensor, t: Tensor) -> Tensor:
    """(T,) sum_l E KL(q(z_s | z_t, x_l) || p(z_s | z_t)) for steps from t to s < t."""
    table = _table(model, joint, process, t)
    V = process.vocab_size
    q_s = _channel(joint, process, s)
    p_s = process.alpha(s)[:, None, None, None] * table.prediction + process.noise_vector(s)[:, None, None]
    p_t = process.alpha(t)[:, None, None, None] * table.prediction + process.noise_vector(t)[:, None, None]
    a, n = process.transition(s, t)
    step = a[:, None, None] * torch.eye(V, dtype=torch.float64) + n[:, :, None]  # (T, z_t, z_s)
    q_t = table.channel.transpose(1, 2)  # (T, z_t, v)
    back = step[:, :, None, :] * q_s[:, None] / q_t[..., None]  # (T, z_t, v, z_s)
    back = torch.where(q_t[..., None] > 0, back, 0.0)
    # KL = sum_{z_s} back (ln q_s(z_s | v) - ln p_s(z_s)) - ln q_t(z_t | v) + ln p_t(z_t)
    own = (torch.special.xlogy(back, q_s[:, None])).sum(-1) - torch.log(q_t)
    own_z = torch.stack([own[:, z_l] for z_l in table.z.T], dim=1)
    cost = torch.stack(
        [_cross_entropy(back[:, z_l], p_s[:, l]) for l, z_l in enumerate(table.z.T)], dim=1
    )  # (T, L, Z, V0)
    return _expected(table.probability, own_z + cost + torch.log(p_t.gather(-1, _own(table, p_t))))


def _table(model: Model, joint: Tensor, process: Process, t: Tensor) -> _Table:
    V, L = process.vocab_size, joint.dim()
    z = torch.arange(V**L)[:, None] // V ** torch.arange(L - 1, -1, -1) % V
    channel = _channel(joint, process, t)
    others = _without_one(joint, channel)
    own = torch.stack([channel[:, :, z_l].transpose(1, 2) for z_l in z.T], dim=1)
    with torch.no_grad():
        logits = model(z.repeat(len(t), 1), t.repeat_interleave(len(z)))
    prediction = _predicted(logits, process).reshape(len(t), len(z), L, V).transpose(1, 2)
    return _Table(z, others * own, channel, prediction)


def _predicted(logits: Tensor, process: Process) -> Tensor:
    """(..., V) x_theta in float64: the softmax of logits (..., Vp) over the real tokens."""
    scores = logits[..., : process.vocab_size].double().clone()
    if process.mask_id is not None:
        scores[..., process.mask_id] = -torch.inf
    return scores.softmax(dim=-1)


def _own(table: _Table, like: Tensor) -> Tensor:
    """(T, L, Z, 1) the ids z_l."""
    return table.z.T[None, :, :, None].expand(len(like), -1, -1, 1)


def _at_own(table: _Table, q: Tensor) -> Tensor:
    """(T, L, Z, V0) q_t(z_l | v)."""
    return torch.stack([q[:, :, z_l].transpose(1, 2) for z_l in table.z.T], dim=1)


def _expected(weight: Tensor, value: Tensor) -> Tensor:
    """(T,) sum of weight x value over all but the first dimension; what has no weight is skipped, even if infinite."""
    return torch.where(weight > 0, weight * value, 0.0).sum(dim=(1, 2, 3))


# --- distributions ------------------------------------------------------------------------------------------------


def _channel(joint: Tensor, process: Process, t: Tensor) -> Tensor:
    """(T, V0, V) q_t(z | x) for t (T,)."""
    V0 = joint.shape[0]
    return process.marginal(torch.arange(V0).expand(len(t), V0), t[:, None])


def _contract(table: Tensor, q: Tensor, axis: int) -> Tensor:
    """Send one token of (T, ...) tables through the channel (T, V0, V)."""
    shape = table.shape
    flat = table.reshape(shape[0], -1, shape[axis + 1], shape[axis + 2 :].numel())
    out = torch.einsum("tavb,tvz->tazb", flat.expand(len(q), -1, -1, -1), q)
    return out.reshape(len(q), *shape[1 : axis + 1], q.shape[2], *shape[axis + 2 :])


def _without_one(joint: Tensor, q: Tensor) -> Tensor:
    """(T, L, V**L, V0) P(x_l = v, z_{-l}), repeated over z_l."""
    L, V = joint.dim(), q.shape[2]
    parts = []
    for l in range(L):
        table = joint[None]
        for axis in range(L):
            if axis != l:
                table = _contract(table, q, axis)
        table = table.expand(len(q), *table.shape[1:]).movedim(l + 1, -1).unsqueeze(l + 1)
        table = table.expand(*table.shape[: l + 1], V, *table.shape[l + 2 :])
        parts.append(table.reshape(len(q), V**L, joint.shape[0]))
    return torch.stack(parts, dim=1)


def _token_marginals(joint: Tensor) -> list[Tensor]:
    """L vectors (V0,): the distribution of each token."""
    return [joint.movedim(l, 0).reshape(joint.shape[0], -1).sum(dim=1) for l in range(joint.dim())]


def _entropy(p: Tensor) -> Tensor:
    """(...,) entropy of distributions (..., V)."""
    return -torch.special.xlogy(p, p).sum(dim=-1)


def _cross_entropy(q: Tensor, p: Tensor) -> Tensor:
    """(..., A) -sum_v q(v) ln p(v) of q (..., A, V) and p (..., V), with 0 ln 0 = 0."""
    log_p = torch.where(p > 0, torch.log(p), 0.0)
    missed = torch.einsum("...av,...v->...a", q, (p <= 0).double())
    return torch.where(missed > 0, torch.inf, -torch.einsum("...av,...v->...a", q, log_p))


# --- checks -------------------------------------------------------------------------------------------------------


def _checked(joint: Tensor, process: Process) -> Tensor:
    if joint.dim() < 1 or len(set(joint.shape)) != 1 or not joint.is_floating_point():
        raise ValueError(f"joint has to be float of shape (V0,) * L; got {joint.dtype} of {tuple(joint.shape)}")
    V0, L, V = joint.shape[0], joint.dim(), process.vocab_size
    if V0 > V or (process.mask_id is not None and process.mask_id < V0):
        raise ValueError(
            f"joint is over the ids 0..{V0 - 1}; they have to be ordinary tokens of the process "
            f"(vocab_size {V}, mask_id {process.mask_id}): give the mask the last id"
        )
    if V**L > MAX_STATES:
        raise ValueError(f"vocab_size**L = {V}**{L} noisy sequences cannot be enumerated; at most {MAX_STATES}")
    joint = joint.detach().double().cpu()
    if not bool((joint >= 0).all()) or abs(float(joint.sum()) - 1) > 1e-6:
        raise ValueError(f"joint has to hold probabilities; they sum to {float(joint.sum()):g}")
    return joint


def _check_interval(t_min: float, t_max: float, num: int, name: str, open_ends: bool) -> None:
    inside = 0 < t_min < t_max < 1 if open_ends else 0 <= t_min < t_max <= 1
    if not inside:
        between = "0 < t_min < t_max < 1" if open_ends else "0 <= t_min < t_max <= 1"
        raise ValueError(f"times have to be {between}; got {t_min!r} and {t_max!r}")
    if num < 1:
        raise ValueError(f"{name} has to be positive; got {num}")


def _parts(num: int, joint: Tensor, process: Process) -> Iterator[slice]:
    """Slices of ``num`` times that keep a (times, L, V**L, V) tensor small."""
    V, L = process.vocab_size, joint.dim()
    step = max(1, _BATCH // (V ** (L + 1) * L))
    return (slice(start, min(start + step, num)) for start in range(0, num, step))
