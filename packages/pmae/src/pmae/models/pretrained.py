"""The files of a model: config.yaml, model.safetensors and, for PMAE, space.safetensors.

model.safetensors has the network's weights (encoder.*, decoder.*), for MAE the standardisation, too, and in its
metadata which space the weights were trained in.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import CheckpointError
from ..files import write_file, write_tensors
from ..space import MaskSpace
from ..standardize import Standardizer
from .config import PMAEConfig

CONFIG, MODEL, SPACE = "config.yaml", "model.safetensors", "space.safetensors"
_SCALE = ("mean", "std", "varies")


class Files(NamedTuple):
    """What :func:`read` finds in a folder; `scale` is the space of PMAE, the standardizer of MAE."""

    method: str
    config: PMAEConfig
    scale: MaskSpace | Standardizer
    weights: dict[str, Tensor]


def save(model: Any, folder: str | Path, settings: dict[str, Any], weights: dict[str, Tensor] | None = None) -> None:
    """Write a model's files into a folder, which is made; see :meth:`PMAE.save_pretrained`.

    weights : of the network, on the CPU, where it is sharded over several processes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = dict(model.network.state_dict() if weights is None else weights)
    about: dict[str, Any] = {"method": model.method}
    if model.method == "pmae":
        about["space"] = model.fingerprint
        if not (folder / SPACE).exists() or _about(folder / MODEL).get("space") != model.fingerprint:
            model.space.save(folder / SPACE)
    else:
        about |= {"image_shape": list(model.image_shape), "standardize": model.standardizer.mode}
        weights |= {f"standardizer.{name}": getattr(model.standardizer, name) for name in _SCALE}
    config = {"method": model.method, "model": model.config.to_dict(), **settings}
    write_file(folder / MODEL, lambda path: write_tensors(path, weights, {"pmae": json.dumps(about)}))
    write_file(folder / CONFIG, lambda path: path.write_text(yaml.safe_dump(config, sort_keys=False)))


def read(folder: str | Path) -> Files:
    """Read a model's files. Raises CheckpointError for files that are missing, damaged, or of different models."""
    folder = Path(folder)
    missing = [name for name in (CONFIG, MODEL) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder} has no {' and no '.join(missing)}: it is not the folder of a trained model")
    try:
        settings = yaml.safe_load((folder / CONFIG).read_text())
        method, config = settings["method"], PMAEConfig.from_dict(settings["model"])
        if lost := config.to_dict().keys() - settings["model"].keys():
            raise ValueError(f"it has no {', '.join(sorted(lost))}")
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG} is not the configuration of a model: {error}") from error
    about = _about(folder / MODEL)
    if about.get("method") != method or method not in ("pmae", "mae"):
        raise CheckpointError(f"{folder}: {CONFIG} is of method {method}, {MODEL} of {about.get('method')}")
    try:
        with safe_open(folder / MODEL, "pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{folder / MODEL} is damaged: {error}") from error
    if method == "mae":
        channels, height, width = about["image_shape"]
        mean, std, varies = (weights.pop(f"standardizer.{name}") for name in _SCALE)
        scale = Standardizer((channels, height, width), mean, std, varies, about["standardize"])
        return Files(method, config, scale, weights)
    if not (folder / SPACE).is_file():
        raise CheckpointError(f"{folder} has no {SPACE}, which a model of method pmae needs")
    space = MaskSpace.load(folder / SPACE)
    if space.fingerprint() != about["space"]:
        raise CheckpointError(
            f"{folder}: {MODEL} was trained in space {about['space']}, {SPACE} is {space.fingerprint()}: put back the "
            "space that the model was trained in"
        )
    return Files(method, config, space, weights)


def fill(network: nn.Module, weights: dict[str, Tensor], folder: str | Path) -> None:
    """Load weights into a network. Raises CheckpointError if they are those of another one."""
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise CheckpointError(f"{folder}: {MODEL} does not fit {CONFIG}: {first}") from error


def _about(path: Path) -> dict[str, Any]:
    """The description in a weights file; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {}).get("pmae", "{}"))
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
