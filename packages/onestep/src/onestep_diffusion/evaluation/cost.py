"""What an update costs with one ratio and with two scores, what compiling it is worth; metrics beside peers."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from .. import metrics, nets
from ..config import StudentConfig
from ..costs import update_cost
from ..data import make_dataset
from ..denoiser import Denoiser
from ..train import StudentStep, make_student_step
from .assets import digits, shipped_teacher
from .pool import each
from .profiles import Profile
from .report import TARGET, Claim, Comparison, Experiment, Metric
from .timing import in_turns

CIFAR = nets.config(nets.abstract(nets.preset("cifar10", (32, 32, 3))))
# A U-Net that compiles in seconds, for what has to be compiled: 16 × 16 colour images.
SMALL = {"base": 32, "mult": (1, 2), "blocks": 1, "attention": (8,)}
UPDATES = 20
AUX = (1, 4)


def run_cost(profile: Profile, rng: np.random.Generator, out: Path, device: str = "cpu") -> Experiment:
    """Counted at the size of CIFAR-10, compiled for a small U-Net, timed for the digits."""
    experiment = Experiment()
    for aux in AUX:
        ours, theirs = (update_cost(StudentConfig(method=m, aux_updates=aux), CIFAR) for m in ("ratio", "score"))
        experiment.claims.append(
            Claim(
                id=f"lightweight-flops-{aux}", measured=ours.flops / theirs.flops, op="<", value=0.8, n=1,
                statement=f"A generator update with {aux} of the ratio needs less arithmetic than with two scores.",
                paper="less compute (v4)", unit="of the FLOPs", note="CIFAR-10 network, ratio at half width, counted",
            )
        )  # fmt: skip
    experiment.claims.append(
        Claim(
            id="lightweight-memory", measured=ours.state_bytes / theirs.state_bytes, op="<", value=0.7, n=1,
            statement="Weights, averages and moments of the ratio method take less memory than those of two scores.",
            paper="less memory (v4)", unit="of the bytes", note="CIFAR-10 network, float32, without activations",
        )
    )  # fmt: skip
    experiment.metrics += [
        Metric("CIFAR-10 generator", ours.parameters / 1e6, "M parameters", "lower"),
        Metric("its ratio network", ours.ratio_parameters / 1e6, "M parameters", "lower"),
    ]
    _whole_updates(experiment, profile)
    if profile.refit:  # for what quick has no time
        _one_evaluation(experiment, profile)
        _peers(experiment, profile)
        found = dict(zip(("ratio", "score"), each(_compiled, [("ratio",), ("score",)]), strict=True))
        experiment.claims.append(
            Claim(
                id="lightweight-peak", measured=found["ratio"][1] / found["score"][1], op="<", value=0.7, n=1,
                statement="So does the compiled update with its activations, at one update of the second network.",
                paper="less memory (v4)", unit="of the peak", note="U-Net for 16 × 16, batch 32, by XLA's analysis",
            )
        )  # fmt: skip
        experiment.metrics.append(
            Metric(
                "compiled U-Net update: FLOPs of ratio over score", found["ratio"][0] / found["score"][0], "", "lower"
            )
        )
    return experiment


def _compiled(method: str) -> tuple[float, float]:
    """(FLOPs, bytes at the peak) of one compiled update of a small U-Net."""
    images = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), dtype=np.uint8)
    data = make_dataset(images, held_out=0.0)
    net = nets.build(nets.preset("unet32", data.shape) | SMALL, rngs=nnx.Rngs(0))
    teacher = Denoiser(net=net, shift=data.shift, scale=data.scale)
    step = make_student_step(data, teacher, StudentConfig(method=method, aux_updates=1, batch_size=32, net="unet32"))
    program = step.run.lower(step.state, step.pool, step.frozen, length=1).compile()  # type: ignore[attr-defined]
    memory = program.memory_analysis()
    return float(program.cost_analysis()["flops"]), float(memory.temp_size_in_bytes + memory.argument_size_in_bytes)


def _whole_updates(experiment: Experiment, profile: Profile) -> None:
    """One program for many updates, one for each, and no program at all; the ratio beside two scores."""
    teacher, data = shipped_teacher("multi"), digits()

    def made(method: str) -> StudentStep:
        return make_student_step(data, teacher, StudentConfig(method=method, aux_updates=profile.aux))

    def run(step: StudentStep, length: int, calls: int) -> Callable[[], Any]:
        state = jax.tree.map(lambda leaf: leaf.copy(), step.state)

        def way() -> Any:
            nonlocal state
            for _ in range(calls):
                state, _ = step.run(state, step.pool, step.frozen, length=length)
            return state.params

        return way

    ratio = made("ratio")
    whole = run(ratio, UPDATES, 1)
    began = time.perf_counter()
    whole()
    compile_seconds = time.perf_counter() - began
    ways = {"whole": whole, "single": run(ratio, 1, UPDATES)}
    if profile.refit:
        ways["two scores"] = run(made("score"), UPDATES, 1)
    spent = in_turns(ways, profile.repeats)
    per_update = {name: 1e3 * float(np.median(seconds)) / UPDATES for name, seconds in spent.items()}
    overhead = 1 - per_update["whole"] / per_update["single"]
    experiment.claims += [
        Claim(
            id="compile-time", measured=compile_seconds, op="<=", value=8.0, n=1, source=TARGET,
            statement="The program of a whole update is compiled in seconds.", unit="s",
        ),
        Claim(
            id="dispatch", measured=overhead, op="<", value=0.05, n=profile.repeats, source=TARGET,
            statement="Calling the program for each update wastes little of it even for a small network.",
            unit="of an update", note=f"{per_update['single']:.2f} and {per_update['whole']:.2f} ms an update",
        ),
    ]  # fmt: skip
    if profile.refit:
        others = {"score, two networks": per_update["two scores"], "the same update, uncompiled": _eager(ratio)}
        experiment.comparisons += [
            Comparison("update, digits", per_update["whole"], ms, name, "ms", "lower") for name, ms in others.items()
        ]


def _eager(step: StudentStep) -> float:
    """ms of the same update, operation by operation; RuntimeError if the weights are not the same then."""
    compiled, _ = step.run(jax.tree.map(lambda leaf: leaf.copy(), step.state), step.pool, step.frozen, length=1)
    began = time.perf_counter()
    with jax.disable_jit():
        state, _ = step.run(step.state, step.pool, step.frozen, length=1)
        jax.block_until_ready(state)  # type: ignore[no-untyped-call]
    seconds = time.perf_counter() - began
    apart = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), state.params, compiled.params)
    if max(jax.tree.leaves(apart)) > 1e-6:
        raise RuntimeError(f"weights of the compiled update differ by {max(jax.tree.leaves(apart)):.2g}")
    return 1e3 * seconds


def _one_evaluation(experiment: Experiment, profile: Profile) -> None:
    """Samples a second of one evaluation beside the teacher's 35."""
    teacher = shipped_teacher("multi")
    student, n = teacher.one_step(), 2_000
    spent = in_turns(
        {"one": lambda: student.sample(n, seed=1), "ode": lambda: teacher.sample(n, seed=1)},
        max(2, profile.repeats // 2),
    )
    one, ode = (n / float(np.median(spent[name])) for name in ("one", "ode"))
    name = "samples of digits, one evaluation"
    experiment.comparisons.append(Comparison(name, one, ode, "the teacher's 35 evaluations", "samples/s", "higher"))


def _peers(experiment: Experiment, profile: Profile) -> None:
    """The same numbers by other packages, where they are installed: first the answers, then the time."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(1_500, 32)), rng.normal(0.3, 1.2, size=(1_500, 32))
    for name, ours, peer, title in (
        ("precision, recall, density, coverage", lambda: metrics.prdc(x, y, k=5), _prdc(x, y), "prdc"),
        ("sliced Wasserstein, 128 directions", lambda: metrics.sliced_wasserstein(x, y, n_proj=128), _pot(x, y), "POT"),
    ):
        if peer is None:
            continue
        a: Any = ours()
        b: Any = peer()
        apart = max(abs(a[k] - b[k]) for k in b) if isinstance(b, dict) else abs(a - b) / b
        if apart > (1e-9 if isinstance(b, dict) else 0.1):  # directions of the second are drawn
            raise RuntimeError(f"{name}: ours and {title}'s differ by {apart:.2g}")
        spent = in_turns({"ours": ours, "peer": peer}, profile.repeats)
        ms = {key: 1e3 * float(np.median(seconds)) for key, seconds in spent.items()}
        experiment.comparisons.append(Comparison(name, ms["ours"], ms["peer"], title, "ms", "lower"))


def _prdc(x: Any, y: Any) -> Callable[[], Any] | None:
    try:
        from prdc import compute_prdc
    except ImportError:
        return None
    import contextlib
    import io

    def run() -> Any:
        with contextlib.redirect_stdout(io.StringIO()):
            return compute_prdc(x, y, nearest_k=5)

    return run


def _pot(x: Any, y: Any) -> Callable[[], Any] | None:
    try:
        from ot import sliced_wasserstein_distance
    except ImportError:
        return None
    return lambda: float(sliced_wasserstein_distance(x, y, n_projections=128, seed=0))
