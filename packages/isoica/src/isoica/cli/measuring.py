"""`isoica bench` and `isoica eval`: speed, and the paper's claims, on this machine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import IsoICAError
from .options import DeviceOption, JsonOption, SeedOption, numbers, use_device, words
from .printing import progress, show, table, working

CLAIM_FAILED = 1

bench = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode=None, help="Time ours beside its peers."
)
RepeatsOption = Annotated[int, typer.Option(help="Repetitions, taking turns; medians are shown.", min=1)]


@bench.command()
def solvers(
    n: Annotated[int, typer.Option("-n", help="Patches of photographs, 12 x 12.", min=1000)] = 5000,
    d: Annotated[int, typer.Option("-d", help="Principal components that are unmixed.", min=2, max=140)] = 16,
    tol: Annotated[str, typer.Option(help="Largest gradient entries to reach, between commas.")] = "1e-3,1e-5",
    repeats: RepeatsOption = 3,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Time linear ICA to equal gradients beside FastICA and Picard (if installed)."""
    tolerances = numbers(tol, "--tol")
    if min(tolerances) <= 0:
        raise IsoICAError(f"--tol {tol!r}: positive numbers are needed")
    from sklearn.decomposition import PCA

    from ..benchmark import solver_race
    from ..datasets import load_image_patches

    with working("bench solvers"):
        X = PCA(d, random_state=seed).fit_transform(load_image_patches(n, random_state=seed))
        races = solver_race(X, tolerances, repeats, seed=seed)
    _show({"patches": n, "components": d}, "races", races, as_json)


@bench.command()
def embeddings(
    n: Annotated[int, typer.Option("-n", help="Points.", min=50)] = 800,
    d: Annotated[int, typer.Option("-d", help="Latents.", min=1)] = 2,
    theta: Annotated[float, typer.Option(help="Distance of the mixing from isometry.", min=0.0)] = 0.05,
    repeats: RepeatsOption = 3,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Time embeddings of a near-isometric manifold beside scikit-learn's, and compare the sources that ICA finds."""
    from ..benchmark import embedding_race

    with working("bench embeddings"):
        races = embedding_race(n, d, theta, repeats, seed)
    _show({"points": n, "latents": d, "theta": theta}, "races", races, as_json)


def evaluate(
    out: Annotated[Path, typer.Option(help="Folder for results.json and the plots.")],
    profile: Annotated[str, typer.Option(help="quick, full, gpu or paper.")] = "quick",
    seed: SeedOption = 0,
    only: Annotated[str | None, typer.Option(help="Only these experiments, as in E1,E6.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep experiments that are finished.")] = False,
    device: DeviceOption = "auto",
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if a claim does not hold.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Test the paper's claims on this machine."""
    if out.exists() and not out.is_dir():
        raise IsoICAError(f"--out {out} is a file; a folder is needed")
    use_device(device)
    from ..evaluation.runner import run

    with progress("eval") as tell:

        def told(identifier: str, done: int, total: int, seconds: float) -> None:
            if tell is not None:
                tell(f"{identifier} {seconds:.1f} s" if identifier else "", done, total)

        chosen = None if only is None else words(only)
        results = run(profile, seed, out, only=chosen, resume=resume, progress=told)
    claims = results["claims"]
    if as_json:
        show(results, True)
    else:
        table([
            {
                "holds": "yes" if claim["holds"] else "NO", "claim": claim["id"], "measured": claim["measured"],
                "test": f"{claim['test']['op']} {claim['test']['value']:g}", "n": claim["n"],
            }
            for claim in claims
        ])  # fmt: skip
        held = sum(claim["holds"] for claim in claims)
        print(f"{held} of {len(claims)} claims hold; wrote {out / 'results.json'}")
    if strict and not all(claim["holds"] for claim in claims):
        raise typer.Exit(CLAIM_FAILED)


def _show(facts: dict[str, Any], name: str, races: list[Any], as_json: bool) -> None:
    rows = [asdict(race) for race in races]
    if as_json:
        show({**facts, name: rows}, True)
    else:
        table(rows)
