"""What a trained model is used for: `pmae embed`, `probe`, `reconstruct`, `export` and `compare`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import (
    BatchOption,
    DataArgument,
    DeviceOption,
    JsonOption,
    PoolOption,
    RunArgument,
    SeedOption,
    SourceOption,
    SplitOption,
    check_out,
    images_of,
)  # fmt: skip
from .printing import r2_of, show, table

if TYPE_CHECKING:
    from ..data import ImageSet

PROBES, BANDS = "probes.jsonl", "bands.jsonl"


def embed(
    run: RunArgument,
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="File to write, .npz: features float32 (N, d), labels if there are any.")],
    pool: PoolOption = "avg",
    split: SplitOption = "train",
    batch_size: BatchOption = 256,
    option: SourceOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Write the features of all images."""
    check_out(out)
    import numpy as np

    from ..files import written
    from ..probes import extract

    model = _load(run, device)
    images = _images(model, data, split, option)
    features = extract(model, images.images, pool, batch_size)
    arrays: dict[str, Any] = {"features": features}
    if images.labels is not None:
        arrays["labels"] = images.labels
    if images.classes is not None:
        arrays["classes"] = np.array(images.classes)
    with written(out) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
    show({"file": str(out), "images": len(features), "features": features.shape[1]}, as_json)


def probe(
    run: RunArgument,
    data: DataArgument,
    kind: Annotated[str, typer.Option(help="linear, knn, mlp or finetune.")] = "linear",
    protocol: Annotated[
        str, typer.Option(help="fast (frozen features, chosen on validation) or paper (100 augmented epochs).")
    ] = "fast",
    pool: PoolOption = "avg",
    val: Annotated[float, typer.Option(help="Share of the training images to choose by.")] = 0.1,
    batch_size: BatchOption = 256,
    option: SourceOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Tell how well labels can be told from the features; the result is also kept in the run's folder."""
    from ..probes import probe as run_probe

    model = _load(run, device)
    train, test = (_images(model, data, split, option) for split in ("train", "test"))
    began = time.monotonic()
    found = run_probe(model, train, test, kind, protocol, pool, val, seed, batch_size=batch_size)
    record = {
        "data": data, "kind": kind, "protocol": protocol, "pool": pool, "seed": seed, "train_images": len(train),
        "test_images": len(test), "seconds": time.monotonic() - began, **asdict(found),
    }  # fmt: skip
    with (run / PROBES).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, default=lambda value: value.tolist()) + "\n")
    chosen = {name: value for name, value in found.details.items() if not isinstance(value, dict | list)}
    show(
        record if as_json else {k: v for k, v in (record | chosen).items() if k not in ("per_class", "details")},
        as_json,
    )
    if not as_json:
        names = dict(enumerate(train.classes or []))
        table(("class", "accuracy"), [(names.get(i, str(i)), share) for i, share in found.per_class.items()])


def reconstruct(
    run: RunArgument,
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="Picture to write, such as fig.png.")],
    n: Annotated[int, typer.Option(help="Images.", min=1)] = 8,
    split: SplitOption = "test",
    option: SourceOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Draw images, what the model sees of them, what it predicts, and both together."""
    check_out(out)
    import numpy as np
    import torch

    from ..images import as_source
    from ..plots import image_rows

    model = _load(run, device)
    source = as_source(_images(model, data, split, option).images)
    draw = np.random.default_rng(seed)
    x = source.take(np.sort(draw.permutation(len(source))[:n])).to(model.standardizer.mean.device)
    model.sampler.generator = draw
    mask = model.sampler.sample(len(x))
    with torch.no_grad():
        shown = model(x, mask)
        whole = model.reconstruct(x, mask)
    visible = model.standardizer.destandardize(shown.visible)
    rows = [("image", x), ("visible", visible), ("reconstruction", whole)]
    if model.method == "pmae":  # parts of an image around mid-grey
        rows[2:] = [("hidden part", x - visible + 0.5), ("predicted part", whole - visible + 0.5), *rows[2:]]
    image_rows([(name, images.cpu()) for name, images in rows], out)
    error = float((whole - x).square().mean())
    facts = {"figure": str(out), "images": len(x), "fvu": float(shown.fvu), "masked share": shown.masked_share}
    show({**facts, "mean squared error": error}, as_json)


def export(
    run: RunArgument,
    out: Annotated[Path, typer.Option(help="Folder (timm, hf) or file (onnx, torchscript) to write.")],
    format: Annotated[str, typer.Option("--format", help="timm, hf, onnx or torchscript.")] = "timm",
    pool: Annotated[str | None, typer.Option(help="onnx, torchscript: cls (default), avg, cls+avg or tokens.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the encoder in another library's format."""
    from ..export import export as write

    show({"format": format, "written": str(write(_load(run, "cpu"), format, out, pool))}, as_json)


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    as_json: JsonOption = False,
) -> None:
    """Lay runs beside each other: what was trained, how long, how it ended, and the probes that were made."""
    rows = [_summary(run) for run in runs]
    if as_json:
        show({"runs": rows}, True)
        return
    explained = {row["run"]: row.pop("heldout r2") for row in rows if "heldout r2" in row}
    names = _names(rows)
    table(names, [[row.get(name) for name in names] for row in rows])
    if explained:
        bands = _names(explained.values())
        print("\nR² of components on held-out images")
        table(("run", *bands), [(run, *(row.get(band) for band in bands)) for run, row in explained.items()])


def _names(rows: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _summary(run: Path) -> dict[str, Any]:
    """A row of the table. Raises CheckpointError."""
    import yaml

    from ..errors import CheckpointError

    try:
        about = json.loads((run / "run.json").read_text(encoding="utf-8"))
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines() if about["steps_done"] else []
        last = json.loads(lines[-1]) if lines else {}
        row = {
            "run": str(run), "method": config["method"], "data": about.get("data"), "preset": config["model"]["preset"],
            "ratio": config["model"]["ratio"], "epochs": about["epochs_done"], "steps": about["steps_done"],
            "minutes": about["seconds"] / 60, "images/s": last.get("images_per_s"), "loss": last.get("loss"),
            "fvu": last.get("fvu"), "finished": about["finished"],
        }  # fmt: skip
        for looked in _records(run / BANDS)[-1:]:
            row |= {"heldout fvu": looked["fvu"], "heldout r2": r2_of(looked)}
        for probed in _records(run / PROBES):
            name = " ".join(
                [probed["kind"], *([] if probed["protocol"] == "fast" else [probed["protocol"]]), probed["pool"]]
            )
            row[name] = probed["accuracy"]  # the last one of a kind
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{run} is not the folder of a run: {error!r}") from error
    return row


def _records(path: Path) -> list[Any]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]


def _load(run: Path, device: str) -> Any:
    """The model of a run, in evaluation mode on a device."""
    from ..engine.distributed import pick_device
    from ..models import load

    return load(run, pick_device(device))


def _images(model: Any, data: str, split: str, option: list[str] | None) -> ImageSet:
    """A split as the model takes it, whatever size and channels the data have."""
    channels, height, width = model.image_shape
    return images_of(data, split, f"{height}x{width}", channels, option)
