"""Model files: an ``.npz`` of plain arrays with a JSON header, never pickle, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ModelFileError


def write(path: str | os.PathLike[str], kind: str, header: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Write header and arrays to a temporary file beside ``path`` and rename it. ``kind`` names the format."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, header=np.array(json.dumps({"format": kind, **header})), **arrays)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and arrays of a file that :func:`write` made. Raises ModelFileError for any other file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
            header = json.loads(str(arrays.pop("header")))
            found = header.pop("format")
    except FileNotFoundError:
        raise ModelFileError(f"{path} does not exist; give the path of a saved model") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        raise ModelFileError(f"{path} is not a saved model ({kind}): {error}") from None
    if found != kind:
        raise ModelFileError(f"{path} holds {found!r}, not {kind}")
    return header, arrays
