"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save
from torch import Tensor


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Another name for the file, which becomes the path when all went well: the old file or the new one, never half.

    Raises OSError, also for a path that is there and no file.
    """
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is there and is no file")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make the file under the name that :func:`written` gives it. Raises OSError."""
    with written(path) as temporary:
        write(temporary)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A .safetensors file. Not by safetensors' own writer: its files are for their owner alone, its errors no OSError.

    Raises OSError.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path.write_bytes(save(plain, metadata))
