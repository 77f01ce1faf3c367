"""Files: a versioned header, a checksum, an atomic replace; JSON for small moments, npz without pickle for the rest."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import CMaxEntError

VERSION = 1

# What numpy and zipfile raise on a file that is no archive of plain arrays, or a broken one.
DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error)


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write to a temporary name in the same folder, then rename: readers see the old file or the new one."""
    path = Path(path)
    if not path.parent.is_dir():
        raise CMaxEntError(f"cannot write {path}: the folder {path.parent} does not exist")
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def save_npz(
    path: str | os.PathLike[str], kind: str, meta: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> None:
    """Store arrays with a JSON header ``{"format": "cmaxent/<kind>", "version", "sha256", "meta"}``."""
    header = {"format": f"cmaxent/{kind}", "version": VERSION, "sha256": _digest(meta, arrays), "meta": meta}
    buffer = io.BytesIO()
    content: dict[str, Any] = {"__header__": np.array(json.dumps(header)), **arrays}
    np.savez(buffer, **content)
    write_atomic(path, buffer.getvalue())


def load_npz(path: str | os.PathLike[str]) -> tuple[str, dict[str, Any], dict[str, NDArray[Any]]]:
    """Read what :func:`save_npz` wrote, as (kind, meta, arrays)."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {k: file[k] for k in file.files}
        header = json.loads(str(arrays.pop("__header__")))
    except FileNotFoundError:
        raise CMaxEntError(f"{path}: no such file") from None
    except DAMAGED as error:
        raise CMaxEntError(f"{path}: not a cmaxent .npz file or damaged ({error})") from None
    kind = _check_header(header, path)
    if header.get("sha256") != _digest(header["meta"], arrays):
        raise CMaxEntError(f"{path}: the checksum does not match, the file is damaged; make it again")
    return kind, header["meta"], arrays


def save_json(path: str | os.PathLike[str], kind: str, payload: Mapping[str, Any]) -> None:
    """Store a JSON payload under the same header as :func:`save_npz`."""
    body = {"format": f"cmaxent/{kind}", "version": VERSION, "sha256": _text_digest(payload), "meta": payload}
    write_atomic(path, (json.dumps(body, indent=1, allow_nan=False) + "\n").encode())


def load_json(path: str | os.PathLike[str]) -> tuple[str, dict[str, Any]]:
    """Read what :func:`save_json` wrote, as (kind, payload)."""
    try:
        body = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CMaxEntError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CMaxEntError(f"{path}: not readable as JSON ({error})") from None
    kind = _check_header(body, path)
    if body.get("sha256") != _text_digest(body["meta"]):
        raise CMaxEntError(f"{path}: the checksum does not match, the file is damaged or was edited; make it again")
    return kind, body["meta"]


def _check_header(header: Any, path: str | os.PathLike[str]) -> str:
    form = header.get("format") if isinstance(header, dict) else None
    if not isinstance(form, str) or not form.startswith("cmaxent/") or not isinstance(header.get("meta"), dict):
        raise CMaxEntError(f"{path}: not a cmaxent file (it has no cmaxent header)")
    if header.get("version") != VERSION:
        raise CMaxEntError(
            f"{path}: written in format version {header.get('version')!r}, this cmaxent reads version {VERSION}; "
            "upgrade cmaxent"
        )
    return form.removeprefix("cmaxent/")


def _text_digest(payload: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()


def _digest(meta: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    state = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for key in sorted(arrays):
        value = np.ascontiguousarray(arrays[key])
        state.update(f"{key}{value.dtype.str}{value.shape}".encode())
        state.update(value.tobytes())
    return state.hexdigest()
