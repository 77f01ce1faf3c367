"""One update of training as a pure function of pytrees, and many of them in one compiled program.

A step of the student: `aux_updates` updates of the second network, which learns the ratio (or a fake score) from data
and student samples, then one update of the generator in field form. A step of anything else (teacher, refit, iCT,
MeanFlow) is one update of one network. Everything random of step t follows from fold_in(key, t), so it does not matter
how steps are grouped into calls or interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from .config import StudentConfig
from .divergences import Divergence
from .generator import Field, per_sample, surrogate_loss, unit_normalize, zero_nonfinite
from .noise import SigmaLaw
from .ratio import effective_sample_size, ratio_weight
from .shapes import Batch, PerSample, Scalar, Uniforms

Tree = Any  # a pytree of arrays
Metrics = dict[str, Array]

BINS = 5  # equally likely bins of noise levels in which metrics are told apart
HEAD_GAIN = 10.0  # learning rate of fresh layers in the head warm-up, over lr


class Knobs(NamedTuple):
    """Numbers that may differ between runs which are trained side by side in one program.

    lr, aux_lr: learning rates. row: which of the program's divergences. gain, head_gain: factors of lr, one a
    parameter array, after and during the head warm-up; zero freezes.
    """

    lr: Scalar
    aux_lr: Scalar
    row: Array
    gain: Tree
    head_gain: Tree


class State(NamedTuple):
    """All that training changes or resumes from; the arrays of a network trained alone have aux = aux_opt = ()."""

    step: Array
    key: Array
    params: Tree
    ema: Tree
    opt: Tree
    aux: Tree
    aux_opt: Tree
    knobs: Knobs


class Pool(NamedTuple):
    """Rows on the device, in data units, from which batches are drawn; x (rows, *shape) of any dtype."""

    x: Array
    labels: Array | None
    shift: Array
    scale: Array


class Draws(NamedTuple):
    """What an update draws, n of each. A loss takes what it needs; the compiler drops the rest.

    data in the network's units; student_labels have the data's law, as they are those of other rows; u is uniform.
    """

    data: Batch
    data_labels: Array | None
    student_labels: Array | None
    latent: Batch
    sigma: PerSample
    noise_data: Batch
    noise_student: Batch
    u: Uniforms


class Method(NamedTuple):
    """What tells the methods with a second network apart.

    aux_loss: (aux, frozen, draws, student) -> (scalar, arrays (n,) by name for metrics).
    field: (aux, frozen, x, draws) -> Field at student samples x, its log_r of the ratio network or None; with a log_r
        the step multiplies v by w_f of it.
    """

    aux_loss: Callable[[Tree, Tree, Draws, Batch], tuple[Scalar, dict[str, Array]]]
    field: Callable[[Tree, Tree, Batch, Draws], Field]


class Row(NamedTuple):
    """One divergence of a program: alpha goes linearly to alpha_end over the run if that is given."""

    divergence: Divergence
    alpha_end: float | None
    weight_norm: str


class Optimisation(NamedTuple):
    """How networks are updated; `halflife` and `ramp` of the average of weights in images."""

    batch_size: int
    micro_batch: int | None
    steps: int
    warmup: int
    schedule: str
    halflife: float
    ramp: float
    head_steps: int = 0
    b1: float = 0.0
    weight_decay: float = 0.0

    @property
    def adam(self) -> optax.GradientTransformation:
        """The direction of AdamW; learning rates are applied here, as they are traced."""
        adam = optax.scale_by_adam(b1=self.b1, b2=0.999, eps=1e-8)
        if self.weight_decay == 0:
            return adam
        return optax.chain(adam, optax.add_decayed_weights(self.weight_decay))

    def rate(self, step: Array) -> Scalar:
        """The factor of the learning rate."""
        rise = jnp.minimum((step + 1) / max(self.warmup, 1), 1.0)
        return rise * (0.5 + 0.5 * jnp.cos(jnp.pi * step / self.steps)) if self.schedule == "cosine" else rise

    def ema_rate(self, step: Array) -> Scalar:
        """How far the average moves towards the weights in this step."""
        images = (step + 1.0) * self.batch_size
        halflife = jnp.minimum(self.halflife, self.ramp * images) if self.ramp else self.halflife
        return 1 - 0.5 ** (self.batch_size / halflife)


def knobs_for(params: Tree, lr: float) -> Knobs:
    """Of a network that is trained alone and whole."""
    ones = jax.tree.map(lambda leaf: jnp.ones(()), params)
    return Knobs(jnp.float32(lr), jnp.float32(0), jnp.int32(0), ones, ones)


def init_state(key: Array, params: Tree, aux: Tree, how: Optimisation, knobs: Knobs) -> State:
    """The state before step 0."""
    aux_opt = how.adam.init(aux) if aux else ()
    state = State(jnp.int32(0), key, params, params, how.adam.init(params), aux, aux_opt, knobs)
    return jax.tree.map(jnp.copy, state)  # every buffer is donated, so none may occur twice


def draw(key: Array, pool: Pool, n: int, law: SigmaLaw, constrain: Callable[[Tree], Tree]) -> Draws:
    """Independent draws, rows with replacement."""
    keys = jax.random.split(key, 7)
    index, other = (jax.random.randint(k, (n,), 0, len(pool.x)) for k in keys[:2])
    data = (pool.x[constrain(index)].astype(jnp.float32) - pool.shift) / pool.scale
    latent, noise_data, noise_student = (jax.random.normal(k, data.shape) for k in keys[2:5])
    draws = Draws(
        data=data,
        data_labels=None if pool.labels is None else pool.labels[index],
        student_labels=None if pool.labels is None else pool.labels[other],
        latent=latent,
        sigma=law.sample(keys[5], (n,)),
        noise_data=noise_data,
        noise_student=noise_student,
        u=jax.random.uniform(keys[6], (n, 4)),
    )
    out: Draws = constrain(draws)
    return out


def single_update(
    loss: Callable[[Tree, Tree, Draws, Array], PerSample],
    law: SigmaLaw,
    how: Optimisation,
    constrain: Callable[[Tree], Tree] = lambda tree: tree,
) -> Callable[[State, Pool, Tree], tuple[State, Metrics]]:
    """(state, pool, frozen) -> (state, metrics): one Adam step on the mean of loss(params, frozen, draws, step)."""

    def update(state: State, pool: Pool, frozen: Tree) -> tuple[State, Metrics]:
        draws = draw(jax.random.fold_in(state.key, state.step), pool, how.batch_size, law, constrain)

        def mean_loss(params: Tree, draws: Draws) -> tuple[Scalar, Array]:
            values = loss(params, frozen, draws, state.step)
            return values.mean(), values

        grads, value, values = mean_gradient(mean_loss, state.params, (draws,), how.micro_batch)
        params, opt = _descend(how, state.params, grads, state.opt, state.knobs.lr, state.step, state.knobs)
        metrics = {"loss": value, "loss_bins": _by_bin(values, draws.sigma, law), "grad_norm": optax.tree.norm(grads)}
        return state._replace(step=state.step + 1, params=params, ema=_average(how, state, params), opt=opt), metrics

    return update


def student_update(
    cfg: StudentConfig,
    method: Method,
    student_fn: Callable[[Tree, Batch, PerSample, Array | None], Batch],
    rows: Sequence[Row],
    levels: Sequence[float],
    laws: tuple[SigmaLaw, SigmaLaw],
    how: Optimisation,
    constrain: Callable[[Tree], Tree] = lambda tree: tree,
) -> Callable[[State, Pool, Tree], tuple[State, Metrics]]:
    """(state, pool, frozen) -> (state, metrics): `aux_updates` of the second network, one of the generator.

    Args:
        student_fn: D(params, x, sigma, labels) of the student's network.
        rows: the divergences, of which `Knobs.row` takes one.
        levels: at which the generator is evaluated, descending; the first is sigma_init.
        laws: noise levels of the generator's update and of the second network's.
    """
    n, micro = how.batch_size, how.micro_batch
    law, aux_law = laws

    def start(params: Tree, draws: Draws, key: Array) -> tuple[Batch, PerSample]:
        """Inputs of the generator: latents, or own samples noised again to a random one of the levels."""
        at, x = jnp.full((n,), levels[0]), levels[0] * draws.latent
        if len(levels) == 1:
            return x, at
        which, fresh = jax.random.split(key)
        chosen = constrain(jax.random.randint(which, (n,), 0, len(levels)))
        now = x
        for place, level in enumerate(levels[1:], 1):
            sample = in_chunks(
                partial(student_fn, params), (now, jnp.full((n,), levels[place - 1]), draws.student_labels), micro
            )
            now = jax.lax.stop_gradient(sample) + level * jax.random.normal(jax.random.fold_in(fresh, place), x.shape)
            x = jnp.where(per_sample(chosen == place, x), now, x)
            at = jnp.where(chosen == place, level, at)
        return x, at

    def samples(params: Tree, draws: Draws, key: Array) -> Batch:
        x, at = start(params, draws, key)
        return jax.lax.stop_gradient(in_chunks(partial(student_fn, params), (x, at, draws.student_labels), micro))

    def update_aux(state: State, pool: Pool, frozen: Tree, key: Array, shared: Batch | None, labels: Any) -> Any:
        key, start_key = jax.random.split(key)
        draws = draw(key, pool, n, aux_law, constrain)
        if shared is None:
            student = samples(state.params, draws, start_key)
        else:
            student, draws = shared, draws._replace(student_labels=labels)

        def loss(aux: Tree, draws: Draws, student: Batch) -> tuple[Scalar, dict[str, Array]]:
            return method.aux_loss(aux, frozen, draws, student)

        grads, value, logs = mean_gradient(loss, state.aux, (draws, student), micro)
        aux, aux_opt = _descend(how, state.aux, grads, state.aux_opt, state.knobs.aux_lr, state.step)
        metrics = {"aux_loss": value}
        if "log_r_data" in logs:
            bound = jnp.log(2) - (jax.nn.softplus(-logs["log_r_data"]) + jax.nn.softplus(logs["log_r_student"])) / 2
            metrics["js_bins"] = _by_bin(bound, draws.sigma, aux_law)
        return state._replace(aux=aux, aux_opt=aux_opt), metrics

    def update(state: State, pool: Pool, frozen: Tree) -> tuple[State, Metrics]:
        keys = jax.random.split(jax.random.fold_in(state.key, state.step), 2 + cfg.aux_updates)
        key, start_key, aux_keys = keys[0], keys[1], keys[2:]
        draws = draw(key, pool, n, law, constrain)
        inputs = (*start(state.params, draws, start_key), draws.student_labels)
        pull = None
        if micro is None:
            x, pull = jax.vjp(lambda params: student_fn(params, *inputs), state.params)
        else:
            x = in_chunks(partial(student_fn, state.params), inputs, micro)
        shared = jax.lax.stop_gradient(x) if cfg.share_latents else None
        state, aux_metrics = jax.lax.scan(
            lambda state, key: update_aux(state, pool, frozen, key, shared, draws.student_labels),
            state,
            aux_keys,
            unroll=len(aux_keys) > 1 and loops_are_slow(state.params),
        )

        x = jax.lax.stop_gradient(x)
        field = in_chunks(lambda x, draws: method.field(state.aux, frozen, x, draws), (x, draws), micro)
        v, weight = field.v, field.weight
        if field.log_r is not None:
            weight = _weights(rows, field.log_r, draws.sigma, state, how.steps, cfg.logit_clip)
            v = per_sample(weight, v) * v
        if cfg.normalize == "unit":
            v = unit_normalize(v)
        v, broken = zero_nonfinite(v)

        if pull is not None:
            (grads,) = pull(v / n)
        else:
            grads, _, _ = mean_gradient(
                lambda params, v, x, at, labels: (surrogate_loss(v, student_fn(params, x, at, labels)), ()),
                state.params,
                (v, *inputs),
                micro,
            )
        params, opt = _descend(how, state.params, grads, state.opt, state.knobs.lr, state.step, state.knobs)
        axes = tuple(range(1, x.ndim))
        metrics = {
            "aux_loss": aux_metrics["aux_loss"].mean(),
            "field_bins": _by_bin(jnp.sqrt(jnp.mean(v**2, axis=axes)), draws.sigma, law),
            "ess": effective_sample_size(weight) / n,
            "grad_norm": optax.tree.norm(grads),
            "nonfinite": broken / n,
            "std": jnp.sqrt(jnp.mean(jnp.var(x, axis=0))),
        }
        if "js_bins" in aux_metrics:
            metrics["js_bins"] = aux_metrics["js_bins"].sum(0)
        return state._replace(step=state.step + 1, params=params, ema=_average(how, state, params), opt=opt), metrics

    return update


def compile_update(
    update: Callable[[State, Pool, Tree], tuple[State, Metrics]],
    *,
    many: bool = False,
    shardings: State | None = None,
) -> Callable[..., tuple[State, Metrics]]:
    """The jitted (state, pool, frozen, *, length) -> (state, metrics): `length` updates by one scan, state donated.

    Metrics are means over the updates, `*_bins` (BINS,) means per noise level (nan where none fell), `nonfinite` the
    largest. many: state has a leading axis of runs, which share pool and frozen. shardings: where the state lives.
    """

    def call(state: State, pool: Pool, frozen: Tree, length: int) -> tuple[State, Metrics]:
        if length == 1:
            state, logs = update(state, pool, frozen)
            logs = jax.tree.map(lambda value: value[None], logs)
        else:
            state, logs = jax.lax.scan(lambda state, _: update(state, pool, frozen), state, length=length)
        return state, {name: _over_updates(name, values) for name, values in logs.items()}

    def program(state: State, pool: Pool, frozen: Tree, *, length: int) -> tuple[State, Metrics]:
        one = partial(call, length=length)
        return jax.vmap(one, in_axes=(0, None, None))(state, pool, frozen) if many else one(state, pool, frozen)

    where: dict[str, Any] = {} if shardings is None else {"out_shardings": (shardings, None)}
    return jax.jit(program, static_argnames="length", donate_argnames="state", **where)


def loops_are_slow(params: Tree) -> bool:
    """Whether to make updates one by one: on a CPU, XLA's convolutions are 8 to 13 times slower inside a loop."""
    return jax.default_backend() == "cpu" and any(leaf.ndim == 4 for leaf in jax.tree.leaves(params))


def in_chunks(fn: Callable[..., Tree], args: tuple[Tree, ...], size: int | None) -> Tree:
    """fn(*args) in pieces of `size` samples, one after the other; fn must treat samples one by one."""
    if size is None:
        return fn(*args)
    pieces = _split(args, size)
    return _join(jax.lax.map(lambda piece: fn(*piece), pieces))


def mean_gradient(
    loss: Callable[..., tuple[Scalar, Tree]], params: Tree, args: tuple[Tree, ...], size: int | None
) -> tuple[Tree, Scalar, Tree]:
    """(gradient, value, per-sample outputs) of a loss that is a mean over samples; by pieces it is the same mean."""
    gradient = jax.value_and_grad(loss, has_aux=True)
    if size is None:
        (value, out), grads = gradient(params, *args)
        return grads, value, out
    pieces = _split(args, size)
    count = len(jax.tree.leaves(pieces)[0])

    def add(total: tuple[Tree, Scalar], piece: tuple[Tree, ...]) -> tuple[tuple[Tree, Scalar], Tree]:
        (value, out), grads = gradient(params, *piece)
        return jax.tree.map(lambda a, b: a + b / count, total, (grads, value)), out

    zero = (jax.tree.map(jnp.zeros_like, params), jnp.zeros(()))
    (grads, value), out = jax.lax.scan(add, zero, pieces)
    return grads, value, _join(out)


def on_batch_axis(mesh: Mesh | None) -> Callable[[Tree], Tree]:
    """Spreads the leading axis of every array over the mesh's axis `data`; nothing without a mesh."""
    if mesh is None:
        return lambda tree: tree
    where = NamedSharding(mesh, P("data"))  # type: ignore[no-untyped-call]
    return partial(jax.lax.with_sharding_constraint, shardings=where)


def _split(args: Tree, size: int) -> Tree:
    # Strided, so that with a mesh every device has its share of each piece.
    return jax.tree.map(lambda leaf: leaf.reshape(size, -1, *leaf.shape[1:]).swapaxes(0, 1), args)


def _join(pieces: Tree) -> Tree:
    return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1).reshape(-1, *leaf.shape[2:]), pieces)


def _weights(
    rows: Sequence[Row], log_r: PerSample, sigma: PerSample, state: State, steps: int, clip: float | None
) -> PerSample:
    """w_f of the run's divergence; with several in one program all are computed, which is cheap beside a network."""
    out = []
    for row in rows:
        divergence = row.divergence
        if row.alpha_end is not None:
            share = state.step / max(steps - 1, 1)
            first: Any = divergence.alpha
            alpha: Any = (1 - share) * first + share * row.alpha_end  # traced, which `divergence` could not check
            divergence = Divergence("alpha", alpha)
        out.append(ratio_weight(log_r, sigma, divergence, weight_norm=row.weight_norm, logit_clip=clip))
    return out[0] if len(out) == 1 else jnp.stack(out)[state.knobs.row]


def _descend(
    how: Optimisation, params: Tree, grads: Tree, opt: Tree, lr: Scalar, step: Array, knobs: Knobs | None = None
) -> tuple[Tree, Tree]:
    direction, opt = how.adam.update(grads, opt, params)
    rate = lr * how.rate(step)
    if knobs is None:
        return jax.tree.map(lambda p, d: p - rate * d, params, direction), opt
    gains = knobs.gain
    if how.head_steps:
        gains = jax.tree.map(lambda a, b: jnp.where(step < how.head_steps, b, a), knobs.gain, knobs.head_gain)
    return jax.tree.map(lambda p, d, g: p - rate * g * d, params, direction, gains), opt


def _average(how: Optimisation, state: State, params: Tree) -> Tree:
    return optax.incremental_update(params, state.ema, how.ema_rate(state.step))


def _by_bin(values: PerSample, sigma: PerSample, law: SigmaLaw) -> Array:
    """(BINS, 2): sum and count in equally likely bins of the noise level."""
    edges = law.quantile(jnp.arange(1, BINS) / BINS)
    index = jnp.searchsorted(edges, sigma, side="right")
    return jax.ops.segment_sum(jnp.stack([values, jnp.ones_like(values)], axis=1), index, BINS)


def _over_updates(name: str, values: Array) -> Array:
    if name.endswith("_bins"):
        total = values.sum(0)
        return total[..., 0] / total[..., 1]
    return values.max(0) if name == "nonfinite" else values.mean(0)
