"""`pmae fit-basis` and `pmae inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import (
    ChannelsOption,
    DataArgument,
    DeviceOption,
    JsonOption,
    SeedOption,
    SizeOption,
    SourceOption,
    check_out,
    images_of,
    pairs,
    side_of,
)  # fmt: skip
from .printing import quiet, say, show, table, to_json

AGAINST = ("pca", "kron", "patch_pca", "haar_pca", "dct", "rotation", "patch", "pixel")
SpaceArgument = Annotated[Path, typer.Argument(metavar="SPACE", help="File that fit-basis wrote.")]


def fit_basis(
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="File to write, such as space.safetensors.")],
    basis: Annotated[
        str, typer.Option(help="pca, kron, patch_pca, haar_pca, truncated, dct, rotation, pixel or patch.")
    ] = "pca",
    standardize: Annotated[str, typer.Option(help="pixel, channel, global or none.")] = "pixel",
    rank: Annotated[int | None, typer.Option(help="Components to keep.", min=1)] = None,
    solver: Annotated[str, typer.Option(help="auto, cov, gram, randomized or incremental.")] = "auto",
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other argument of fit_space, as in levels=2."),
    ] = None,
    size: SizeOption = None,
    channels: ChannelsOption = None,
    option: SourceOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Fit a masking space to the training images of a data set; under torchrun each process reads its share."""
    check_out(out)
    from ..engine.distributed import joined
    from ..inspection import spectrum
    from ..space import fit_space

    images = images_of(data, "train", size, channels, option)
    world = joined(device)
    space = fit_space(
        images.images,
        basis,
        standardize,
        rank=rank,
        solver=solver,
        seed=seed,
        device=world.device,
        **pairs(assignments),
    )
    if world.main:
        space.save(out)
        show({"space": str(out), "images": len(images), **spectrum(space)}, as_json)


def inspect(
    space: SpaceArgument,
    out: Annotated[Path, typer.Option(help="Folder of inspect.json and the pictures.")],
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="Name or name:PATH; for redundancy and examples.")
    ] = None,
    ratio: Annotated[float, typer.Option(help="Hidden share of the variance, for redundancy and examples.")] = 0.2,
    against: Annotated[str, typer.Option(help="Bases for the redundancy table.")] = ",".join(AGAINST),
    limit: Annotated[int, typer.Option(help="Images for it, at most; few flatter all but PCA.", min=8)] = 20_000,
    masks: Annotated[int, typer.Option(help="Masks for it.", min=1)] = 2,
    draws: Annotated[int, typer.Option(help="Masks of each rule and ratio.", min=1)] = 1000,
    size: SizeOption = None,
    channels: ChannelsOption = None,
    option: SourceOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Show a space before anything is trained in it: spectrum, components, samplers, linear redundancy, examples."""
    import numpy as np

    from .. import inspection, plots
    from ..engine.checkpoint import write_atomically
    from ..images import as_source
    from ..space import MaskSpace

    fitted = MaskSpace.load(space)
    images = None
    if data is not None:
        images = images_of(data, "train", size or side_of(fitted), channels or fitted.image_shape[0], option).images
    out.mkdir(parents=True, exist_ok=True)
    shares = fitted.shares.numpy()
    plots.scree(shares, out / "scree.png")
    if fitted.basis.linear:
        plots.component_images(*inspection.components(fitted), out / "components.png")
    drawn = inspection.draws(fitted, n=draws, seed=seed)
    plots.realised_shares(drawn, out / "realised_shares.png")
    plots.inclusion(drawn, shares, out / "inclusion.png")
    found: dict[str, Any] = inspection.spectrum(fitted)
    found["samplers"] = [
        {
            "rule": d.rule, "ratio": d.ratio, "mean": d.shares.mean(), "sd": d.shares.std(), "count": d.counts.mean(),
            "largest_component_hidden": d.inclusion[int(np.argmax(shares))],
        }
        for d in drawn
    ]  # fmt: skip
    if images is not None:
        source = as_source(images)
        found["redundancy_images"] = min(limit, len(source))
        chosen = np.sort(np.random.default_rng(seed).permutation(len(source))[:limit])
        sample = source.take(chosen)

        def tell(name: str) -> None:
            if not quiet():
                say("linear redundancy", name)

        found["redundancy"] = inspection.redundancy_table(
            sample, fitted, ratio, _references(against), n_masks=masks, seed=seed, tell=tell
        )
        plots.redundancy(found["redundancy"], out / "redundancy.png")
        rows = zip(
            ("image", "visible", "hidden part"), inspection.triples(fitted, sample[:8], ratio, seed), strict=True
        )
        plots.image_rows(list(rows), out / "examples.png")
    write_atomically(out / "inspect.json", to_json(found) + "\n")
    if as_json:
        show(found, True)
        return
    show({name: value for name, value in found.items() if name not in ("samplers", "redundancy")}, False)
    print()
    table(
        ("rule", "ratio", "mean share", "sd", "components", "largest hidden in"),
        [tuple(row.values()) for row in found["samplers"]],
    )
    if "redundancy" in found:
        print("\nvariance of the hidden part that a linear model leaves unexplained (1: no redundancy)")
        table(
            ("basis", "hidden", "these images", "sd", "held-out"), [tuple(row.values()) for row in found["redundancy"]]
        )
    print(f"\nwrote {out}/inspect.json and pictures")


def _references(names: str) -> dict[str, float | None]:
    """Bases and the share of each that is to be hidden. Raises ValueError."""
    from ..inspection import REFERENCES

    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in REFERENCES]
    if unknown:
        raise ValueError(f"against: {unknown[0]!r} is not one of {', '.join(REFERENCES)}")
    return {name: REFERENCES[name] for name in wanted}
