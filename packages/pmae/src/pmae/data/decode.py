"""Image files decoded once into a uint8 memory map, which is what training reads.

The cache of a set of files lies in a folder of its own, named by a digest of what it was made from:

images.bin      uint8 (N, C, H, W), nothing else
labels.npy      int64 (N,), if there are labels
bad_files.txt   the files that could not be read, and why
index.json      N, C, H, W; written last, so that a cache without it is not one

Several processes may ask at once: one decodes, the others wait.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..errors import DataError
from .imageset import ImageSet, pair

log = logging.getLogger("pmae")

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2"}
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
BAD_SHARE = 0.01  # of the files may be damaged
BLOCK = 512  # files decoded at once
EVERY = 60.0  # seconds between two lines of the log


def decoded(
    name: str,
    files: Sequence[Path],
    labels: Sequence[int] | None,
    classes: list[str] | None,
    size: int | tuple[int, int] | None,
    channels: int | None,
    cache: str | Path | None,
) -> ImageSet:
    """The images of the files in their order, as a read-only memory map.

    size : the shorter side is resized (bicubic), then the middle is cropped; None keeps images that are all of a size
    channels : 1, 3 or 4 (with alpha); None is 1 if the first image is grey, else 3
    cache : None is $PMAE_CACHE, or the user's cache folder
    Raises DataError if 1 % of the files or more cannot be read, ValueError.
    """
    if channels not in (None, *MODES):
        raise ValueError(f"channels={channels}: image files have 1, 3 or 4")
    stats = [(str(file), (about := file.stat()).st_size, about.st_mtime_ns) for file in files]
    wanted = (stats, None if labels is None else list(labels), size and pair(size), channels)
    home = Path(cache) if cache is not None else default_cache()
    folder = home / f"{name}-{hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / "lock"):
        if not (folder / "index.json").is_file():
            _build(folder, files, labels, size, channels)
    shape = tuple(json.loads((folder / "index.json").read_text())["shape"])
    if bad := (folder / "bad_files.txt").read_text().splitlines():
        log.warning("%s: %d of %d files are left out: %s", name, len(bad), len(files), folder / "bad_files.txt")
    images = np.memmap(folder / "images.bin", dtype=np.uint8, mode="r", shape=shape)
    return ImageSet(images, None if labels is None else np.load(folder / "labels.npy"), classes, name)


def default_cache() -> Path:
    """$PMAE_CACHE, or pmae/ in the user's cache folder."""
    if os.environ.get("PMAE_CACHE"):
        return Path(os.environ["PMAE_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pmae"


def image_files(folder: Path) -> list[Path]:
    """All image files below a folder, sorted; hidden ones left out."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
    return sorted(path for path in found if not path.name.startswith("."))


def decode(path: Path, size: tuple[int, int] | None, channels: int | None) -> np.ndarray:
    """An image file as uint8 (C, H, W); 16-bit grey keeps its upper 8 bits. Raises whatever the decoder raises."""
    with Image.open(path) as file:
        image: Image.Image = ImageOps.exif_transpose(file)
        if image.mode == "F":
            raise ValueError("pixels are floats: give such images as npz")
        if image.mode.startswith("I"):
            image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
        if channels is None:
            channels = 1 if image.mode in ("L", "1", "LA") else 3
        image = image.convert(MODES[channels])
        if size is not None:
            image = ImageOps.fit(image, (size[1], size[0]), method=Image.Resampling.BICUBIC)
        pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the system lets go of it when the process dies
        yield


def _build(
    folder: Path,
    files: Sequence[Path],
    labels: Sequence[int] | None,
    size: int | tuple[int, int] | None,
    channels: int | None,
) -> None:
    bad: list[str] = []
    kept: list[int] = []
    shape: tuple[int, ...] | None = None
    box = None if size is None else pair(size)
    partial = folder / "images.bin.tmp"
    said = time.monotonic()

    def attempt(path: Path) -> np.ndarray | str:
        try:
            return decode(path, box, channels)
        except Exception as error:  # a decoder may raise anything on a damaged file
            return f"{type(error).__name__}: {error}".replace("\n", " ")

    try:
        with partial.open("wb") as out, ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(files), BLOCK):
                for index, pixels in enumerate(pool.map(attempt, files[start : start + BLOCK]), start):
                    if isinstance(pixels, str):
                        bad.append(f"{files[index]}\t{pixels}")
                        continue
                    if shape is None:
                        shape, channels = pixels.shape, len(pixels)
                    if len(pixels) != shape[0]:  # decoded before the first one told how many channels
                        pixels = decode(files[index], box, shape[0])
                    if pixels.shape != shape:
                        raise DataError(
                            f"{files[index]} has {pixels.shape[1]}×{pixels.shape[2]} pixels, {files[kept[0]].name} "
                            f"{shape[1]}×{shape[2]}: give a size that all are resized to"
                        )
                    out.write(pixels.tobytes())
                    kept.append(index)
                if time.monotonic() - said > EVERY:
                    said = time.monotonic()
                    log.info("decoded %d of %d images", start + BLOCK, len(files))
            out.flush()
            os.fsync(out.fileno())
        _write(folder / "bad_files.txt", "".join(f"{line}\n" for line in bad))
        if len(bad) >= BAD_SHARE * len(files):
            raise DataError(
                f"{len(bad)} of {len(files)} image files cannot be read, at most {BAD_SHARE:.0%} may be damaged: "
                f"{folder / 'bad_files.txt'} lists them; the first is {bad[0].replace(chr(9), ': ')}"
            )
        if labels is not None:
            with (folder / "labels.npy.tmp").open("wb") as file:
                np.save(file, np.asarray(labels, dtype=np.int64)[kept])
            os.replace(folder / "labels.npy.tmp", folder / "labels.npy")
        os.replace(partial, folder / "images.bin")
        assert shape is not None
        _write(folder / "index.json", json.dumps({"shape": [len(kept), *shape]}))
    finally:
        partial.unlink(missing_ok=True)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
