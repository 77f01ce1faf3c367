"""The fused pass of ``solvers.numpy_pass`` in JAX: on an accelerator, or over devices that share the samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .contrasts import BUILT_IN, Array, Contrast
from .solvers import Pass, numpy_pass
from .whitening import Chunks

OVER_SAMPLES = PartitionSpec("samples")  # type: ignore[no-untyped-call]
EVERYWHERE = PartitionSpec()  # type: ignore[no-untyped-call]

# Entries of one block: on a processor three of them stay in the cache, an accelerator wants to be filled.
_ON_CPU, _ON_ACCELERATOR = 2**15, 2**22


def accelerated() -> bool:
    """Whether JAX has an accelerator here: on a processor the numpy pass is as fast, and compiles nothing."""
    return jax.default_backend() != "cpu"


def jax_pass(chunks: Chunks, dtype: str | None = None, *, keep: bool = True) -> Pass:
    """The pass on all of JAX's devices.

    Parameters
    ----------
    chunks : white data in blocks (k, b).
    dtype : of the products, "float32" or "float64"; None: that of the blocks. Sums over blocks are always float64.
    keep : hold the data on the devices, split over the samples. False: every pass streams the blocks through them.

    Contrasts that are not built in are functions of numpy arrays, and take the numpy pass.
    """
    mesh = Mesh(np.array(jax.devices()), ("samples",))
    kept: list[tuple[Any, Any]] = []
    plain = numpy_pass(chunks, dtype)

    def blocks() -> Iterable[tuple[Any, Any]]:
        if not keep:
            return _placed(chunks(), dtype, mesh)
        if not kept:
            parts = list(chunks())
            Z = np.concatenate([Z for Z, _ in parts], axis=1)
            w = None if parts[0][1] is None else np.concatenate([np.asarray(w) for _, w in parts])
            kept.extend(_placed([(Z, w)], dtype, mesh))
        return kept

    def run(rows: Array, contrasts: Sequence[Contrast]) -> tuple[Array, Array, Array]:
        if any(BUILT_IN.get(c.name) is not c for c in contrasts):
            return plain(rows, contrasts)
        names = tuple(c.name for c in contrasts)
        M, rho, m, total = np.zeros(rows.shape), np.zeros(len(rows)), np.zeros(len(rows)), 0.0
        with jax.enable_x64(True):
            for Z, w in blocks():
                found = _sums(jnp.asarray(rows, Z.dtype), Z, w, names, mesh)
                M, rho, m, total = (
                    a + np.asarray(b) for a, b in zip((M, rho, m, total), jax.device_get(found), strict=True)
                )
        return M / total, rho / total, m / total

    return run


def _placed(parts: Iterable[tuple[Array, Array | None]], dtype: str | None, mesh: Mesh) -> Iterator[tuple[Any, Any]]:
    """Blocks as (pieces, k, b) with weights (pieces, b), pieces split over the devices, filled up with weight 0."""
    for Z, w in parts:
        k, n = Z.shape
        devices = mesh.size
        size = _ON_CPU if mesh.devices.flat[0].platform == "cpu" else _ON_ACCELERATOR
        pieces = devices * max(1, -(-n // (devices * max(1, size // k))))
        b = -(-n // pieces)
        dt = np.dtype(dtype or Z.dtype)
        weights = np.zeros(pieces * b, dt)
        weights[:n] = 1 if w is None else w
        filled = np.zeros((k, pieces * b), dt)
        filled[:, :n] = Z
        with jax.enable_x64(True):
            yield (
                jax.device_put(
                    np.ascontiguousarray(filled.reshape(k, pieces, b).swapaxes(0, 1)),
                    NamedSharding(mesh, OVER_SAMPLES),
                ),
                jax.device_put(weights.reshape(pieces, b), NamedSharding(mesh, OVER_SAMPLES)),
            )


@partial(jax.jit, static_argnames=("names", "mesh"))
def _sums(rows: Any, Z: Any, w: Any, names: tuple[str, ...], mesh: Mesh) -> tuple[Any, Any, Any, Any]:
    """Weighted sums of g(y)z' (r, k), g'(y), G(y) (r,) and 1 over all samples, float64."""

    def block(carry: tuple[Any, ...], part: tuple[Any, Any]) -> tuple[tuple[Any, ...], None]:
        Z, w = part
        Y = jnp.matmul(rows, Z, precision="highest")
        g, dg, G = _contrasts(Y, names)
        here = jnp.matmul(g * w, Z.T, precision="highest"), (dg * w).sum(1), (G * w).sum(1), w.sum()
        return tuple(c + h.astype(jnp.float64) for c, h in zip(carry, here, strict=True)), None

    def device(Z: Any, w: Any) -> tuple[Any, ...]:
        r, k = rows.shape
        zero = tuple(jnp.zeros(shape, jnp.float64) for shape in ((r, k), (r,), (r,), ()))
        zero = tuple(lax.pcast(z, "samples", to="varying") for z in zero)
        total, _ = lax.scan(block, zero, (Z, w))
        return tuple(lax.psum(t, "samples") for t in total)  # type: ignore[no-untyped-call]

    spread = jax.shard_map(device, mesh=mesh, in_specs=(OVER_SAMPLES, OVER_SAMPLES), out_specs=EVERYWHERE)
    return spread(Z, w)


def _contrasts(Y: Any, names: tuple[str, ...]) -> tuple[Any, Any, Any]:
    """g, g', G of every row of ``Y`` (r, b)."""
    if len(set(names)) == 1:
        return _FORMULAS[names[0]](Y)
    rows = [_FORMULAS[name](y) for name, y in zip(names, Y, strict=True)]
    g, dg, G = (jnp.stack(parts) for parts in zip(*rows, strict=True))
    return g, dg, G


def _logcosh(u: Any) -> tuple[Any, Any, Any]:
    a = jnp.abs(u)
    e = jnp.expm1(-2 * a)  # one exponential for all three: tanh|u| = -e/(2+e), log cosh u = |u| + log((2+e)/2)
    g = jnp.sign(u) * (-e / (2 + e))
    return g, 1 - g * g, a + jnp.log1p(e / 2)


def _gauss(u: Any) -> tuple[Any, Any, Any]:
    bell = jnp.exp(-u * u / 2)
    return u * bell, (1 - u * u) * bell, -bell


def _cube(u: Any) -> tuple[Any, Any, Any]:
    return u * u * u, 3 * u * u, (u * u) ** 2 / 4


def _skew(u: Any) -> tuple[Any, Any, Any]:
    return u * u, 2 * u, u * u * u / 3


_FORMULAS = {"logcosh": _logcosh, "gauss": _gauss, "cube": _cube, "skew": _skew}
