"""Data with a known answer, `isoica simulate`, and the constants of the theory, `isoica constants`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import JsonOption, LawsOption, SeedOption, check_out, one_of, words
from .printing import show, whole

OutOption = Annotated[Path, typer.Option(help="File to write, .npz.")]
SamplesOption = Annotated[int, typer.Option("-n", help="Samples.", min=1)]
MIXED = "uniform,laplace,exponential"
PERTURBATIONS = ("mlp", "quadratic", "saturation")

simulate = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode=None,
    help="Write data with a known answer: observations X, sources S, and what made one from the other.",
)  # fmt: skip


@simulate.command()
def perturbed(
    out: OutOption,
    n: SamplesOption = 5000,
    d: Annotated[int, typer.Option("-d", help="Sources.", min=1)] = 4,
    laws: LawsOption = MIXED,
    eta: Annotated[float, typer.Option(help="Size of the perturbation.", min=0.0)] = 0.1,
    perturbation: Annotated[str, typer.Option(help="mlp, quadratic or saturation.")] = "mlp",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Linear mixtures with a nonlinear perturbation of known size: X, S, A, h."""
    check_out(out, (".npz",))
    one_of(perturbation, "--perturbation", PERTURBATIONS)
    from ..datasets import make_perturbed_linear

    data = make_perturbed_linear(n, d, words(laws), eta, perturbation, random_state=seed)
    _write(out, {"X": data.X, "S": data.S, "A": data.A, "h": data.h}, {"eta": eta}, as_json)


@simulate.command()
def isometric(
    out: OutOption,
    n: SamplesOption = 1000,
    d: Annotated[int, typer.Option("-d", help="Latents.", min=1)] = 2,
    laws: LawsOption = "uniform",
    theta: Annotated[float, typer.Option(help="Distance of the mixing from isometry.", min=0.0)] = 0.1,
    where: Annotated[str, typer.Option(help="outer, or inner: a warp before the isometry, which no data show.")] = (
        "outer"
    ),
    depth: Annotated[int, typer.Option(help="Layers of the isometry, to d 3^depth columns.", min=0)] = 2,
    noise: Annotated[float, typer.Option(help="Standard deviation in every column.", min=0.0)] = 0.0,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Latents seen through a nonlinear map at a known distance from isometry: X, S, theta."""
    check_out(out, (".npz",))
    from ..datasets import make_near_isometric

    data = make_near_isometric(n, d, theta, where, noise, words(laws), depth, random_state=seed)
    _write(out, {"X": data.X, "S": data.S, "theta": data.theta}, {"theta": theta}, as_json)


@simulate.command()
def images(
    out: OutOption,
    n: SamplesOption = 1000,
    d: Annotated[int | None, typer.Option("-d", help="Latents; 2, or 4 for multi, if not given.", min=1)] = None,
    kind: Annotated[str, typer.Option(help="sprite, lanes or multi.")] = "sprite",
    size: Annotated[int, typer.Option(help="Side in pixels.", min=16)] = 32,
    gradient: Annotated[float, typer.Option(help="Rise of brightness over the frame, away from isometry.")] = 0.0,
    noise: Annotated[float, typer.Option(help="Standard deviation of a pixel.", min=0.0)] = 0.0,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Images of moving shapes: X (n, size, size), S, theta."""
    check_out(out, (".npz",))
    from ..datasets import make_images

    data = make_images(n, kind, size=size, gradient=gradient, noise=noise, d=d, random_state=seed)
    _write(out, {"X": data.images, "S": data.S, "theta": data.theta}, {"theta": data.theta}, as_json)


@simulate.command()
def sources(
    out: OutOption,
    n: SamplesOption = 5000,
    laws: LawsOption = MIXED,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Independent sources of variance 1, one for each law: S."""
    check_out(out, (".npz",))
    from ..datasets import make_sources

    _write(out, {"S": make_sources(n, words(laws), seed)}, {}, as_json)


def constants(
    domain: Annotated[
        str, typer.Option(help="ball, box, gaussian, or laws of the latents between commas as in simulate.")
    ] = "ball",
    d: Annotated[int, typer.Option("-d", help="Latents.", min=1)] = 2,
    degree: Annotated[int, typer.Option(help="Of the polynomials.", min=2)] = 4,
    unit_variance: Annotated[
        bool, typer.Option(help="Latents of variance 1, or the unit ball, the box [-1, 1]^d and laws as they are.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Rigidity constants: how far from affine a chart with a small distance from isometry can be."""
    from ..theory import rigidity_constants

    given: Any = domain if domain in ("ball", "box", "gaussian") else words(domain)
    found = asdict(rigidity_constants(given, d, degree, unit_variance))
    show({"domain": domain, "d": d, "degree": degree, **{k: found[k] for k in ("korn", "aff", "rigid")}}, as_json)


def _write(out: Path, arrays: dict[str, Any], facts: dict[str, Any], as_json: bool) -> None:
    import numpy as np

    with whole(out) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
    shapes = {name: " x ".join(map(str, np.shape(a))) for name, a in arrays.items() if np.ndim(a)}
    show({"file": str(out), **shapes, **facts}, as_json)
