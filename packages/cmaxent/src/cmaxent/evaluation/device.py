"""GPU: moments of tens of millions of rows made and reduced on an accelerator, and a very large completion."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import CMaxEntError
from .common import fit
from .performance import banded_covariance, overlapping_cliques
from .profiles import Profile
from .report import TARGET, Claim, Comparison, Experiment, Metric

Array = NDArray[np.float64]
EFFECTS = 16  # features that Y depends on


class _Device(NamedTuple):
    """What the experiment needs of an array library: rows on the device, and a sum of products in float32."""

    name: str
    rows: Callable[[int], Any]  # n -> (n, p) float32 rows, the last column a 0/1 target
    gram: Callable[[Any], tuple[Any, Any]]  # (n, p) -> column sums (p,) and XᵀX (p, p), from float32 products
    wait: Callable[[], None]
    double: Callable[[], AbstractContextManager[Any]]  # inside it, the library has float64


def run_gpu(profile: Profile, rng: np.random.Generator, out: Path, device: str = "auto") -> Experiment:
    """Float64 and float32 moments on the device, both directions from them, and a completion of 16 384 variables."""
    from .. import Accumulator

    p, n, block = profile.device_variables, profile.device_rows, profile.device_block
    seed = int(rng.integers(2**31))
    backend = _torch(p, device, seed) or _jax(p, device, seed)
    if backend is None:
        raise CMaxEntError("the gpu profile needs torch or jax: pip install torch, or pip install 'cmaxent[jax]'")
    names = [*(f"x{i + 1}" for i in range(p - 1)), "y"]
    double = Accumulator(names)  # reduces on the device; there every column is a number
    total, gram, seconds = None, None, {"fp64": 0.0, "fp32": 0.0, "generate": 0.0}
    done = 0
    while done < n:
        size = min(block, n - done)
        began = time.perf_counter()
        rows = backend.rows(size)
        backend.wait()
        generated = time.perf_counter()
        with backend.double():
            double.update(rows)
        reduced = time.perf_counter()
        sums, products = backend.gram(rows)
        total, gram = (sums, products) if total is None else (total + sums, gram + products)
        backend.wait()
        seconds["generate"] += generated - began
        seconds["fp64"] += reduced - generated
        seconds["fp32"] += time.perf_counter() - reduced
        done += size
    moments = double.finalize()
    mean32 = np.asarray(_host(total), dtype=float) / n
    cov32 = np.asarray(_host(gram), dtype=float) / n - np.outer(mean32, mean32)

    sd = np.sqrt(np.diag(moments.cov))
    correlation = moments.cov / np.outer(sd, sd)
    truth = np.full((p - 1, p - 1), _SHARED)
    np.fill_diagonal(truth, 1.0)
    sampling = float(np.abs(correlation[:-1, :-1] - truth).max() * np.sqrt(n))
    rounding = float(np.abs(cov32 / np.outer(sd, sd) - correlation).max() * np.sqrt(n))
    began = time.perf_counter()
    joint = _as_binary(moments)
    models = {g: fit(joint, g) for g in ("causal", "anticausal")}
    solve = time.perf_counter() - began

    k, size = profile.device_completion, 512
    cliques = overlapping_cliques(k, max(2, k // 256), min(size, k // 2))
    completed_time, residual = _complete(k, cliques, rng)
    setting = f"{n:g} rows × {p} columns in blocks of {block} on {backend.name}"
    result = Experiment()
    result.claims += [
        Claim(
            id="GPU-fp64",
            statement="Moments taken on the device in float64 are those of the population up to sampling error",
            source=TARGET,
            measured=sampling,
            op="<=",
            value=7.0,
            n=p * (p - 1) // 2,
            unit="/√n",
            note=f"largest correlation error × √n over all pairs; {setting}",
        ),
        Claim(
            id="GPU-fp32",
            statement="Float32 products with float64 accumulation lose nothing against the sampling error",
            source=TARGET,
            measured=rounding,
            op="<=",
            value=0.1,
            n=p * (p + 1) // 2,
            unit="/√n",
            note=f"largest difference to float64 × √n; {setting}",
        ),
        Claim(
            id="GPU-residual",
            statement="Both directions solve the moments of the device",
            source=TARGET,
            measured=max(float(m.residual_) for m in models.values()),
            op="<=",
            value=1e-9,
            n=2,
            note=f"{solve:.1f} s for both, on the host",
        ),
        Claim(
            id="GPU-completion",
            statement=f"A chordal pattern of {k} variables is completed exactly",
            source=TARGET,
            measured=residual,
            op="<=",
            value=1e-9,
            n=k,
            note=f"{completed_time:.1f} s, {len(cliques)} overlapping cliques of {len(cliques[0])}, on the host",
        ),
    ]
    result.metrics += [
        Metric("GPU rows per second, float64", n / seconds["fp64"], "rows/s", "higher"),
        Metric("GPU rows per second, float32", n / seconds["fp32"], "rows/s", "higher"),
        Metric("GPU generation", seconds["generate"], "s", "lower"),
        Metric(f"GPU completion of {k} variables", completed_time, "s", "lower"),
    ]
    result.comparisons.append(
        Comparison(
            "moments on the device: float64 against float32 products",
            seconds["fp64"],
            seconds["fp32"],
            f"float32, {backend.name}",
            "s",
            "lower",
        )
    )
    return result


_SHARED = 0.2  # correlation between any two features, from one common factor


def _host(x: Any) -> Any:
    return x.detach().cpu().numpy() if hasattr(x, "detach") else x


def _as_binary(moments: Any) -> Any:
    """The same moments with the last column declared binary: on the device every column is a number."""
    from .. import Moments

    cov = np.array(moments.cov)
    cov[-1, -1] = np.nan
    return Moments.from_arrays(
        moments.mean, cov, names=moments.names, kinds={"y": "binary"}, n=float(np.max(moments.n))
    )


def _torch(p: int, device: str, seed: int) -> _Device | None:
    try:
        import torch
    except ImportError:
        return None
    if device == "cuda" and not torch.cuda.is_available():
        raise CMaxEntError("device cuda was asked for, but torch sees none")
    where = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    generator = torch.Generator(where).manual_seed(seed)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu"

    def rows(n: int) -> Any:
        X = torch.randn(n, p, generator=generator, device=where)
        common = torch.randn(n, 1, generator=generator, device=where)
        X = (1 - _SHARED) ** 0.5 * X + _SHARED**0.5 * common
        logit = 0.3 * X[:, :EFFECTS].sum(1) - 0.5
        X[:, -1] = (torch.rand(n, generator=generator, device=where) < torch.sigmoid(logit)).float()
        return X

    def gram(X: Any) -> tuple[Any, Any]:
        return X.sum(0, dtype=torch.float64), (X.T @ X).double()

    wait = torch.cuda.synchronize if where.type == "cuda" else _nothing
    return _Device(f"{name} (torch {torch.__version__})", rows, gram, wait, nullcontext)


def _nothing() -> None:
    """A host computes at once: there is nothing to wait for."""


def _jax(p: int, device: str, seed: int) -> _Device | None:
    try:
        import jax
        import jax.numpy as jnp
    except ImportError:
        return None
    available = jax.devices()[0]
    if device == "cuda" and available.platform == "cpu":
        raise CMaxEntError("device cuda was asked for, but jax sees none")
    where = jax.devices("cpu")[0] if device == "cpu" else available
    key = [jax.random.key(seed)]
    latest: list[Any] = []

    def rows(n: int) -> Any:
        key[0], *parts = jax.random.split(key[0], 4)
        with jax.default_device(where):
            X = jax.random.normal(parts[0], (n, p), dtype=jnp.float32)
            X = (1 - _SHARED) ** 0.5 * X + _SHARED**0.5 * jax.random.normal(parts[1], (n, 1), dtype=jnp.float32)
            logit = 0.3 * X[:, :EFFECTS].sum(1) - 0.5
            y = (jax.random.uniform(parts[2], (n,)) < jax.nn.sigmoid(logit)).astype(jnp.float32)
            latest[:] = [X.at[:, -1].set(y)]
        return latest[0]

    def gram(X: Any) -> tuple[Any, Any]:
        # the block's sums stay in float32 like its products; blocks are added in float64 on the host
        return np.asarray(X.sum(0), dtype=float), np.asarray(jnp.matmul(X.T, X, precision="highest"), dtype=float)

    def wait() -> None:
        for x in latest:
            x.block_until_ready()

    def double() -> AbstractContextManager[Any]:
        # jax truncates float64 to float32 unless told otherwise
        return jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64()

    return _Device(f"{where.device_kind} (jax {jax.__version__})", rows, gram, wait, double)


def _complete(variables: int, cliques: list[NDArray[np.intp]], rng: np.random.Generator) -> tuple[float, float]:
    """Seconds to complete, and the error of K times the completed covariance against the identity on probe vectors."""
    from .. import complete_covariance

    full = banded_covariance(rng, variables)
    M = np.full_like(full, np.nan)
    for c in cliques:
        M[np.ix_(c, c)] = full[np.ix_(c, c)]
    del full
    began = time.perf_counter()
    completed = complete_covariance(M)
    seconds = time.perf_counter() - began
    probes = rng.choice([-1.0, 1.0], size=(variables, 4))
    residual = float(np.abs(completed.cov @ (completed.precision @ probes) - probes).max())
    for c in cliques:
        grid = np.ix_(c, c)
        residual = max(residual, float(np.abs(completed.cov[grid] - M[grid]).max()))
    return seconds, residual
