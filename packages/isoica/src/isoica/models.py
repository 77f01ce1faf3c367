"""Any saved model, told by the header of its file."""

from __future__ import annotations

import json
import os
from importlib import import_module
from typing import Any

import numpy as np

from .errors import ModelFileError

_CLASSES = {
    "isoica/perturbed-ica/1": ("linear", "PerturbedICA"),
    "isoica/near-isometric-ica/1": ("pipeline", "NearIsometricICA"),
    "isoica/rigid-alignment/1": ("manifold", "RigidAlignment"),
    "isoica/isometric-autoencoder/1": ("autoencoder", "IsometricAutoencoder"),
}


def load_model(path: str | os.PathLike[str]) -> Any:
    """The fitted estimator in a file that ``save`` of one of this package's estimators wrote. Raises ModelFileError."""
    try:
        with np.load(path, allow_pickle=False) as file:
            kind = json.loads(str(file["header"]))["format"]
    except FileNotFoundError:
        raise ModelFileError(f"{path} does not exist; give the path of a saved model") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        raise ModelFileError(f"{path} is not a saved model of isoica; isoica fit writes one ({error})") from None
    if kind not in _CLASSES:
        raise ModelFileError(f"{path} holds {kind!r}, not one of {', '.join(_CLASSES)}")
    module, name = _CLASSES[kind]
    return getattr(import_module(f".{module}", __package__), name).load(path)
