"""`pmae search-ratio`: a hidden share of the variance, found without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import ChannelsOption, DeviceOption, JsonOption, SizeOption, SourceOption, images_of, pairs, side_of
from .printing import quiet, say, show, table
from .training import heldout_images, merged, source_options


def search_ratio(
    data: Annotated[str | None, typer.Argument(metavar="DATA", help="Name or name:PATH; see `pmae data list`.")] = None,
    ratios: Annotated[
        str, typer.Option(help="Hidden shares of the variance to try, at least 4.")
    ] = "0.05,0.1,0.2,0.3,0.5,0.7",
    space: Annotated[
        Path | None, typer.Option(help="File that fit-basis wrote; without it one is fitted to the data first.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="tiny, vit_t8 (default), vit_t8_paper, vit_s16 or vit_b16.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Of each short run.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step.", min=1)] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate; default 1.5e-4 · batch size / 256.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML, as of pretrain.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As in model.depth=6 or train.augment=flip.")
    ] = None,
    heldout: Annotated[
        str | None,
        typer.Option(metavar="DATA|test", help="Images to judge by, as of pretrain; default a tenth of DATA."),
    ] = None,
    size: SizeOption = None,
    channels: ChannelsOption = None,
    option: SourceOption = None,
    seed: Annotated[int | None, typer.Option(help="Of all random numbers; default 0.", min=0)] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Choose --ratio without labels: short runs at several ratios, and where what they leave unexplained bends."""
    line = {
        "data": data, "size": size, "channels": channels, "heldout": heldout,
        "space": None if space is None else str(space), "options": pairs(option), "model": {"preset": preset},
        "train": {"epochs": epochs, "batch_size": batch_size, "lr": lr, "seed": seed},
    }  # fmt: skip
    settings = merged(config, assignments, line)
    if settings["method"] != "pmae":
        raise ValueError("search-ratio is for method pmae: the ratio of mae is a share of the patches")
    tried = _shares(ratios)
    from ..engine.distributed import joined
    from ..models import PMAEConfig
    from ..ratio_search import search_ratio as search
    from ..space import MaskSpace, fit_space

    model = PMAEConfig(**settings["model"])
    basis: Any = settings["space"]
    world = joined(device)
    made = MaskSpace.load(basis) if isinstance(basis, str) else None
    if made is not None and settings["size"] is None:
        settings["size"] = side_of(made)
    images = images_of(
        settings["data"], "train", settings["size"], settings["channels"], source_options(settings)
    ).images
    judged = None if settings["heldout"] is None else heldout_images(settings).images
    if made is None and basis:
        made = fit_space(images, **{"device": world.device, **basis})

    def tell(ratio: float, fvu: float) -> None:
        if world.main and not quiet():
            say(f"ratio {ratio:g}", f"FVU {fvu:.4f}")

    train = {"seed": 0, **settings["train"]}
    found = search(images, made, model, tried, heldout=judged, device=world.device, tell=tell, **train)
    if not world.main:
        return
    if as_json:
        show(
            {"ratio": found.ratio, "ratios": found.ratios, "fvu": found.fvu.tolist(), "curvature": found.curvature},
            True,
        )
        return
    table(
        ("ratio", "held-out FVU", ""),
        [
            (r, f, "nearest" if r == found.nearest else "")
            for r, f in zip(found.ratios, found.fvu.tolist(), strict=True)
        ],
    )
    bent = f"where the curve bends (curvature {found.curvature:.3g})" if found.curvature > 0 else "the smallest FVU"
    print(f"\nratio {found.ratio:.3g}: {bent}")


def _shares(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"ratios {text!r}: shares such as 0.05,0.1,0.2,0.3,0.5,0.7") from None
