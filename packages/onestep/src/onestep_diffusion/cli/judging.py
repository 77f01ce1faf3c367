"""How good a generator is: `onestep-diffusion certify`, `metrics`, and `eval`, which tests the paper's claims."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ConfigError, DataError
from .options import (
    DataArgument,
    DeviceOption,
    FeaturesOption,
    JsonOption,
    RunArgument,
    SeedOption,
    check_out,
    extract_of,
    numbers,
    run_data,
    use_device,
    words,
)
from .printing import quiet, say, show, table, write_facts
from .using import ratio_of

CLAIM_FAILED = 1
METRIC_ROWS = 10_000


def certify(
    run: RunArgument,
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="File to write, .json; a picture goes beside it.")],
    sigmas: Annotated[str, typer.Option(help="Noise levels between commas.")] = "0.05,0.1,0.2,0.5,1,2",
    level: Annotated[float, typer.Option(help="Confidence.")] = 0.95,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Prove how far the generator is at least from data it has not seen, noise level by noise level."""
    check_out(out, (".json",))
    levels = numbers(sigmas, "--sigmas")
    if not 0 < level < 1:
        raise ConfigError(f"--level has to lie between 0 and 1; got {level}")
    use_device(device)
    from ..checkpoint import load_model
    from ..distance import certified_distance, save_distance_plot

    generator, ratio = load_model(run, "generator"), ratio_of(run, "certify")
    held_out = run_data(run, data)
    found = certified_distance(generator, ratio, held_out, levels, level=level, seed=seed)
    rows: list[dict[str, Any]] = [
        {"sigma": sigma, **asdict(certificate)}
        for sigma, certificate in zip(found.sigmas, found.certificates, strict=True)
    ]
    facts = {
        "run": str(run), "data": data, "held_out_rows": len(held_out.held_out), "level": level,
        "js_lower": found.js_lower, "levels": rows,
    }  # fmt: skip
    write_facts(out, facts)
    save_distance_plot(out.with_suffix(".png"), found)
    if as_json:
        show(facts, True)
        return
    table([{name: value for name, value in row.items() if name != "js_interval"} for row in rows])
    print(f"JS of data and generator > {found.js_lower:.4g} nats with confidence {level:g}; wrote {out}")


def metrics(
    a: Annotated[str, typer.Argument(metavar="A", help="Samples: .npz, folder of images, or the name of a data set.")],
    b: Annotated[str, typer.Argument(metavar="B", help="What they are compared with, in the same units.")],
    features: FeaturesOption = "raw",
    k: Annotated[int, typer.Option(help="Neighbours of precision and recall.", min=1)] = 5,
    n: Annotated[int, typer.Option(help="Rows of each at most.", min=2)] = METRIC_ROWS,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Measure how far two samples are apart; B's own held-out rows show how near one can come."""
    use_device("cpu")
    from ..data import load_data

    ours, known = load_data(a, held_out=0.0, seed=seed), load_data(b, seed=seed)
    if ours.shape != known.shape:
        raise DataError(f"{a} has rows of shape {ours.shape}, {b} of {known.shape}")
    extract = extract_of(features)
    of_ours, of_known, of_held_out = (extract(rows[:n]) for rows in (ours.x, known.x, known.held_out))
    least = k + 1
    if min(len(of_ours), len(of_known)) < least:
        raise DataError(f"at least {least} rows of each are needed for --k {k}; got {len(of_ours)} and {len(of_known)}")
    columns = {a: _measured(of_ours, of_known, k, seed)}
    if len(of_held_out) >= least:
        columns[f"{b}, held out"] = _measured(of_held_out, of_known, k, seed)
    if b.startswith("gmm:"):
        from ..metrics import mode_stats
        from ..toy import mixture

        columns[a] |= mode_stats(ours.x[:n], mixture(b))
    if as_json:
        show({"features": features, "rows": len(of_ours), **columns}, True)
        return
    table([
        {f"against {b}, features {features}": name, **{column: values.get(name) for column, values in columns.items()}}
        for name in columns[a]
    ])  # fmt: skip


def evaluate(
    out: Annotated[Path, typer.Option(help="Folder for results.json and the plots.")],
    profile: Annotated[str, typer.Option(help="quick, full, gpu or paper.")] = "quick",
    seed: SeedOption = 0,
    only: Annotated[str | None, typer.Option(help="Only these experiments, between commas.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep experiments that are finished.")] = False,
    device: DeviceOption = "auto",
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if a claim does not hold.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Test the paper's claims on this machine."""
    use_device(device)
    from ..evaluation.runner import run

    def told(identifier: str, done: int, total: int, seconds: float) -> None:
        if identifier and not quiet():
            say(identifier, f"{seconds:.1f} s ({done} of {total})")

    chosen = None if only is None else words(only)
    results = run(profile, seed, out, only=chosen, resume=resume, device=device, progress=told)
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


def _measured(x: Any, y: Any, k: int, seed: int) -> dict[str, float]:
    from ..metrics import fid, kid, mmd2, prdc, sliced_wasserstein

    size = min(1000, len(x), len(y))
    mean, deviation = kid(x, y, subsets=20, subset_size=size, seed=seed)
    return {
        "rows": len(x),
        "Frechet distance": fid(x, y),
        "KID": mean,
        "deviation of KID": deviation,
        "MMD^2": mmd2(x[:2000], y[:2000]),
        "sliced Wasserstein": sliced_wasserstein(x, y, seed=seed),
        **prdc(y, x, k),
    }
