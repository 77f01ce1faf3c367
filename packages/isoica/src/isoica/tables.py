"""Data from files, one sample a row: arrays, delimited text, folders of recordings, EEG and MEG."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from .errors import IsoICAError
from .signals import read_wavs, wav_files

KINDS = ".npy, .npz, .csv, .tsv, a folder of mono .wav files, .fif or .edf"


@dataclass(frozen=True)
class Table:
    """values (n, p), float64 (float32 where the file has it), all finite; names of the columns, or of none."""

    values: NDArray[Any]
    names: list[str]


def read_table(path: str | os.PathLike[str], key: str | None = None) -> Table:
    """Read a file or a folder of recordings. Rows with more than one axis, as of images, are laid flat.

    ``key`` chooses an array of an .npz file; without it "X" is taken, or the only one. Raises IsoICAError, which says
    where in the file, for what is no table of finite numbers; ModuleNotFoundError for .fif and .edf without mne.
    """
    path = Path(path)
    if key is not None and path.suffix != ".npz":
        raise IsoICAError(f"{path}: --key chooses an array of an .npz file; leave it out here")
    names: list[str] = []
    if path.is_dir():
        values, _, names = read_wavs(wav_files(path))
    elif not path.exists():
        raise IsoICAError(f"{path} does not exist; give {KINDS}")
    elif path.suffix in (".npy", ".npz"):
        values = _numpy(path, key)
    elif path.suffix in (".csv", ".tsv"):
        values, names = _text(path, "\t" if path.suffix == ".tsv" else ",")
    elif path.suffix in (".fif", ".edf"):
        values, names = _recording(path)
    else:
        raise IsoICAError(f"{path} is of no known kind; give {KINDS}")
    return Table(_checked(path, values, names), names)


def _numpy(path: Path, key: str | None) -> NDArray[Any]:
    try:
        found = np.load(path, allow_pickle=False)
        if path.suffix == ".npy":
            return np.asarray(found)
        with found as file:
            key = _key(path, key, file.files)
            return np.asarray(file[key])
    except IsoICAError:
        raise
    except (ValueError, OSError, EOFError, BadZipFile, AttributeError) as error:
        raise IsoICAError(f"{path} is not a readable {path.suffix} file of numbers ({error})") from None


def _key(path: Path, key: str | None, present: list[str]) -> str:
    if key is None:
        key = "X" if "X" in present else present[0] if len(present) == 1 else None
        if key is None:
            raise IsoICAError(f"{path} holds {', '.join(present) or 'nothing'}; choose one with --key")
    if key not in present:
        raise IsoICAError(f"{path} holds {', '.join(present) or 'nothing'}, no {key!r}")
    return key


def _text(path: Path, delimiter: str) -> tuple[NDArray[np.float64], list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = next((row for row in csv.reader(file, delimiter=delimiter) if row), [])
        if not first:
            raise IsoICAError(f"{path} is empty; a row a sample is needed")
        names = [] if any(map(_is_number, first)) else [cell.strip() for cell in first]
        with path.open(newline="", encoding="utf-8-sig") as file:
            if names:
                next(row for row in csv.reader(file, delimiter=delimiter) if row)
            values = np.loadtxt(file, delimiter=delimiter, quotechar='"', comments=None, ndmin=2)
    except UnicodeDecodeError as error:
        raise IsoICAError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except ValueError as error:
        if isinstance(error, IsoICAError):
            raise
        raise IsoICAError(_fault(path, delimiter, str(error))) from None
    if names and values.size and values.shape[1] != len(names):
        raise IsoICAError(f"{path} has {len(names)} names in its header but {values.shape[1]} columns")
    return values, names


def _fault(path: Path, delimiter: str, otherwise: str) -> str:
    """The first cell of a text file that is no number, or the first row of another length."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter=delimiter)
        rows = [(reader.line_num, row) for row in reader if row]
        first = rows[0][1]
        for line, row in rows if any(map(_is_number, first)) else rows[1:]:
            if len(row) != len(first):
                return f"{path}: line {line} has {len(row)} columns, the first {len(first)}"
            for column, cell in enumerate(row, start=1):
                if not _is_number(cell):
                    return f"{path}: line {line}, column {column} is {cell!r}, not a number; remove or fill it"
    return f"{path}: {otherwise}"


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _recording(path: Path) -> tuple[NDArray[np.float64], list[str]]:
    import mne

    try:
        raw = mne.io.read_raw(path, preload=True, verbose="error")
    except Exception as error:  # many kinds, from many readers
        raise IsoICAError(f"{path} is not a recording that mne can read ({error})") from None
    return raw.get_data(picks="data").T, list(np.array(raw.ch_names)[mne.pick_types(raw.info, meg=True, eeg=True)])


def _checked(path: Path, values: NDArray[Any], names: list[str]) -> NDArray[Any]:
    if values.dtype.kind not in "fiub":
        raise IsoICAError(f"{path} holds {values.dtype}; real numbers are needed")
    if values.ndim < 2:
        raise IsoICAError(f"{path} has shape {values.shape}; (samples, columns) is needed")
    if 0 in values.shape:
        raise IsoICAError(f"{path} is empty, shape {values.shape}; at least one sample and one column are needed")
    values = values.reshape(len(values), -1).astype(np.float32 if values.dtype == np.float32 else np.float64)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad.size:
        column = int(np.flatnonzero(~np.isfinite(values[bad[0]]))[0])
        where = f"sample {bad[0] + 1}, column {names[column] if names else column + 1}"
        raise IsoICAError(
            f"{path}: {where} is {values[bad[0], column]}; remove or fill it ({bad.size} of {len(values)} samples)"
        )
    return values
