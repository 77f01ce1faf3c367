"""Tables on disk, read in chunks of rows: csv, csv.gz, tsv, parquet, npy; and moments of them that survive a kill.

A chunk knows where its rows stand in the file, so that every complaint names file, line and column. What is needed to
go on after a kill is the accumulator and a position; both go into one checkpoint file.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import NormalDist
from typing import IO, Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .accumulate import Accumulator, _Column, _encode_column, _State, infer_columns
from .errors import CMaxEntError
from .graph import _listed
from .moments import KINDS, Moments, _plain
from .storage import load_npz, save_npz

CHUNK = 65_536  # rows
CHUNK_CELLS = 2**23  # 64 MiB of float64: wide tables get fewer rows a chunk
MOST_LABELS = 50  # a text column with more is taken for an identifier unless declared

Progress = Callable[[float, int], None]  # (share done, rows so far)


@dataclass(frozen=True)
class Chunk:
    """Some consecutive rows of a file.

    Attributes
    ----------
    frame : the rows, text as str, missing as NaN.
    place : index of a row in ``frame`` -> where it stands, in words.
    next : position from which the rows after this chunk can be read.
    done : share of the file read so far.
    """

    frame: pd.DataFrame
    place: Callable[[int], str]
    next: int
    done: float


class Table(Protocol):
    """A file of rows under named columns."""

    path: Path
    columns: list[str]

    def chunks(self, rows: int, start: int = 0, text: Sequence[str] = ()) -> Iterator[Chunk]:
        """Chunks of up to ``rows`` rows from position ``start``; the columns ``text`` are not parsed as numbers."""


def open_table(path: str | os.PathLike[str], names: Sequence[str] | None = None) -> Table:
    """The table behind a path; its suffix tells the format.

    Parameters
    ----------
    names : column names of an ``.npy`` array, default x0, x1, …
    """
    path = Path(path)
    if not path.exists():
        raise CMaxEntError(f"{path}: no such file")
    if path.is_dir():
        raise CMaxEntError(f"{path}: is a folder, not a table")
    suffix = path.suffix if path.suffix != ".gz" else Path(path.stem).suffix
    if suffix == ".npy":
        return ArrayTable(path, names)
    if names is not None:
        raise CMaxEntError(f"{path}: names are for .npy arrays; this file names its own columns")
    if suffix == ".parquet":
        return ParquetTable(path)
    if suffix in (".csv", ".tsv", ".txt", ".sumstats", ".raw"):
        return TextTable(path)
    raise CMaxEntError(f"{path}: tables are read from .csv, .tsv, .txt (each also .gz), .parquet or .npy")


def read_table(path: str | os.PathLike[str], names: Sequence[str] | None = None) -> pd.DataFrame:
    """A whole file at once."""
    parts = [chunk.frame for chunk in open_table(path, names).chunks(CHUNK)]
    if not parts:
        raise CMaxEntError(f"{path}: holds no rows")
    return pd.concat(parts, ignore_index=True)


# --- text ----------------------------------------------------------------------------------------------------


class TextTable:
    """Delimited text with a header line; positions are byte offsets of the uncompressed text."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size
        with self._open() as (file, _):
            first = self._record(file)
            self.start = file.tell()
        text = self._decode(first, 1).rstrip("\r\n").removeprefix("\ufeff")
        if not text.strip():
            raise CMaxEntError(f"{path}: is empty: line 1 has to hold the column names")
        found = [c for c in ("\t", ",", " ") if c in text]
        self.delimiter = found[0] if found else ","
        if self.delimiter == " ":
            self.columns = text.split()
        else:
            self.columns = [name.strip() for name in next(csv.reader([text], delimiter=self.delimiter))]
        if len(self.columns) == 1 and ";" in text:
            raise CMaxEntError(f"{path}: line 1 is separated by ';': columns have to be separated by commas or tabs")
        _check_header(path, self.columns)

    @contextmanager
    def _open(self) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
        """(text, what is on disk); the latter tells how far we are."""
        with open(self.path, "rb") as raw:
            if self.path.suffix != ".gz":
                yield raw, raw
                return
            with gzip.GzipFile(fileobj=raw) as unpacked:
                yield unpacked, raw  # type: ignore[misc]

    def _record(self, file: IO[bytes]) -> bytes:
        return next(self._records(file, 1), b"")

    def _records(self, file: IO[bytes], rows: int) -> Iterator[bytes]:
        """Blocks of ``rows`` lines, longer where a quoted field spans lines."""
        try:
            while block := b"".join(islice(file, rows)):
                while block.count(b'"') % 2 and (more := file.readline()):
                    block += more
                yield block
        except (gzip.BadGzipFile, EOFError) as error:
            raise CMaxEntError(f"{self.path}: damaged or cut off gzip file ({error})") from None

    def _decode(self, block: bytes, line: int) -> str:
        try:
            return block.decode("utf-8")
        except UnicodeDecodeError as error:
            line += block.count(b"\n", 0, error.start)
            raise CMaxEntError(f"{self.path}: line {line} is not UTF-8 text: convert the file to UTF-8") from None

    def chunks(self, rows: int, start: int = 0, text: Sequence[str] = ()) -> Iterator[Chunk]:
        """See :class:`Table`."""
        with self._open() as (file, raw):
            lines = self._skip(file, max(start, self.start))  # before the block
            for block in self._records(file, rows):
                frame = self._parse(block, lines, text)
                if len(frame):
                    yield Chunk(
                        frame, _TextPlace(self, block, lines), file.tell(), min(1.0, raw.tell() / max(self.size, 1))
                    )
                lines += block.count(b"\n")

    def _skip(self, file: IO[bytes], start: int) -> int:
        lines, left = 0, start
        while left and (part := file.read(min(left, 2**22))):
            lines += part.count(b"\n")
            left -= len(part)
        return lines

    def _parse(self, block: bytes, before: int, text: Sequence[str]) -> pd.DataFrame:
        if not block.strip():
            return pd.DataFrame(columns=self.columns)
        self._check_fields(block, before)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", pd.errors.ParserWarning)
                return pd.read_csv(
                    io.BytesIO(block),
                    sep=r"\s+" if self.delimiter == " " else self.delimiter,
                    names=self.columns,
                    header=None,
                    index_col=False,
                    low_memory=False,
                    skipinitialspace=True,
                    dtype=dict.fromkeys(text, str),
                    na_values=["#NA"],
                )
        except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
            at = re.search(r"in line (\d+), saw (\d+)", str(error))
            if at:
                raise self._wrong_fields(before + int(at[1]), int(at[2])) from None
            last = before + block.count(b"\n")
            raise CMaxEntError(f"{self.path}: lines {before + 1} to {last}: {error}") from None
        except UnicodeDecodeError:
            self._decode(block, before + 1)
            raise

    def _check_fields(self, block: bytes, before: int) -> None:
        """A short line is damage, not missing values. Counting delimiters costs next to nothing."""
        if self.delimiter == " " or b'"' in block or len(self.columns) == 1:
            return
        mark, wanted = self.delimiter.encode(), len(self.columns) - 1
        if block.count(mark) == wanted * (block.count(b"\n") + (not block.endswith(b"\n"))):
            return
        for i, line in enumerate(block.splitlines()):
            if line.strip() and line.count(mark) != wanted:
                raise self._wrong_fields(before + i + 1, line.count(mark) + 1)

    def _wrong_fields(self, line: int, found: int) -> CMaxEntError:
        return CMaxEntError(
            f"{self.path}: line {line} (the header is line 1) has {found} fields, the header has {len(self.columns)}: "
            "write missing values as empty fields and quote text that holds the separator"
        )


@dataclass(frozen=True)
class _TextPlace:
    """Line of a row, found only when there is something to complain about: blank lines and quotes shift it."""

    table: TextTable
    block: bytes
    before: int

    def __call__(self, row: int) -> str:
        delimiter = self.table.delimiter
        reader = csv.reader(io.StringIO(self.block.decode("utf-8", "replace"), newline=""), delimiter=delimiter)
        seen, line = -1, 0
        first = 1
        for record in reader:
            first, line = line + 1, reader.line_num
            seen += any(value.strip() for value in record) or len(record) > 1
            if seen == row:
                break
        return f"line {self.before + first} (the header is line 1)"


def _check_header(path: Path, columns: Sequence[str]) -> None:
    empty = [i + 1 for i, name in enumerate(columns) if not name]
    if empty:
        raise CMaxEntError(f"{path}: line 1, column {empty[0]}: the column has no name")
    repeated = (
        [name for name in dict.fromkeys(columns) if columns.count(name) > 1] if len(set(columns)) < len(columns) else []
    )
    if repeated:
        raise CMaxEntError(f"{path}: line 1: column names have to be distinct; repeated: {_listed(repeated)}")


# --- binary formats --------------------------------------------------------------------------------------------


def _row_place(first: int) -> Callable[[int], str]:
    return lambda row: f"row {first + row + 1} (counting from 1)"


class ParquetTable:
    """A Parquet file; positions are row numbers."""

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise CMaxEntError(f"{path}: reading Parquet needs pyarrow: pip install 'cmaxent[parquet]'") from None
        self.path = path
        try:
            self._file = parquet.ParquetFile(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise CMaxEntError(f"{path}: not a Parquet file or damaged ({error})") from None
        self.columns = [str(name) for name in self._file.schema_arrow.names]
        _check_header(path, self.columns)

    def chunks(self, rows: int, start: int = 0, text: Sequence[str] = ()) -> Iterator[Chunk]:
        """See :class:`Table`. Chunks end with row groups, so that they are the same wherever reading starts."""
        total, first = self._file.metadata.num_rows, 0
        for group in range(self._file.num_row_groups):
            size = self._file.metadata.row_group(group).num_rows
            if first + size <= start:
                first += size
                continue
            for batch in self._file.iter_batches(rows, row_groups=[group]):
                if first >= start:
                    frame = batch.to_pandas()
                    frame.columns = self.columns
                    yield Chunk(frame, _row_place(first), first + len(frame), (first + len(frame)) / max(total, 1))
                first += batch.num_rows


class ArrayTable:
    """A two-dimensional ``.npy`` array; positions are row numbers."""

    def __init__(self, path: Path, names: Sequence[str] | None = None) -> None:
        self.path = path
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError):  # numpy's message would suggest pickle
            raise CMaxEntError(f"{path}: not an .npy array of numbers, or damaged") from None
        if array.ndim != 2 or array.dtype.kind not in "fiub":
            raise CMaxEntError(f"{path}: has to be a 2-D array of numbers; it is {array.dtype} of shape {array.shape}")
        self.shape, self.dtype = array.shape, array.dtype
        self.columns = [f"x{i}" for i in range(array.shape[1])] if names is None else [str(n) for n in names]
        if len(self.columns) != array.shape[1]:
            raise CMaxEntError(f"{path}: {len(self.columns)} names for {array.shape[1]} columns")
        _check_header(path, self.columns)
        # Mapped pages count as resident memory until the system drops them: read plain blocks where the layout allows.
        self._offset = array.offset if array.flags.c_contiguous else None

    def chunks(self, rows: int, start: int = 0, text: Sequence[str] = ()) -> Iterator[Chunk]:
        """See :class:`Table`."""
        n, p = self.shape
        mapped = np.load(self.path, mmap_mode="r", allow_pickle=False) if self._offset is None else None
        with open(self.path, "rb") as file:
            for first in range(start, n, rows):
                count = min(rows, n - first)
                if mapped is None:
                    assert self._offset is not None
                    file.seek(self._offset + first * p * self.dtype.itemsize)
                    block = np.fromfile(file, self.dtype, count * p)
                    if block.size < count * p:
                        raise CMaxEntError(f"{self.path}: is cut off: it should have {n} rows")
                    block = block.reshape(count, p)
                else:
                    block = np.array(mapped[first : first + count])
                yield Chunk(
                    pd.DataFrame(block, columns=self.columns), _row_place(first), first + count, (first + count) / n
                )


# --- moments of files ------------------------------------------------------------------------------------------


@dataclass
class _Job:
    """What has been read so far and everything that decides the result."""

    accumulator: Accumulator | None = None
    file: int = 0
    position: int = 0
    rows: int = 0
    settings: dict[str, Any] = field(default_factory=dict)


def stream_moments(
    paths: Sequence[str | os.PathLike[str]],
    *,
    kinds: Mapping[str, Any] | None = None,
    columns: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    chunk: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    every: float = 10.0,
    progress: Progress | None = None,
) -> Moments:
    """Moments of one table that is stored in one or more files with the same columns, in one pass.

    Parameters
    ----------
    kinds : column -> "continuous", "binary", "categorical" or a list of labels; the rest is inferred from the first
        chunk, and a later value that contradicts is an error.
    columns : use only these columns.
    names : column names of ``.npy`` files.
    chunk : rows read at a time, default 65 536, fewer for wide tables.
    checkpoint : file that is written every ``every`` seconds. If it exists, reading goes on from there, and the result
        is bit for bit what an uninterrupted run gives.
    """
    tables = [open_table(path, names) for path in paths]
    used = _common_columns(tables, columns)
    rows = chunk if chunk is not None else max(256, min(CHUNK, CHUNK_CELLS // len(used)))
    if rows < 2:
        raise CMaxEntError(f"a chunk has to have at least 2 rows; got {rows}")
    declared = {str(k): v for k, v in (kinds or {}).items()}
    stray = [k for k in declared if k not in used]
    if stray:
        raise CMaxEntError(f"kinds names {_listed(stray)}, but the columns are {_listed(used)}")
    job = _Job(
        settings={"columns": used, "kinds": declared, "chunk": rows, "files": [_fingerprint(t.path) for t in tables]}
    )
    if checkpoint is not None and Path(checkpoint).exists():
        job = load_checkpoint(checkpoint, job.settings)
    sizes = [t.path.stat().st_size for t in tables]
    saved = time.monotonic()
    for index in range(job.file, len(tables)):
        table = tables[index]
        if index > job.file:
            job.file, job.position = index, 0
        if job.accumulator is None:
            job.accumulator = _empty_accumulator(table, used, declared, rows)
        if job.accumulator is None:
            continue
        # Labels seen as text stay text, also in chunks where all of them look like numbers.
        text = [c.name for c in job.accumulator._columns if any(isinstance(level, (str, bool)) for level in c.levels)]
        for part in table.chunks(rows, job.position, text):
            _update(job.accumulator, part.frame[used], part, table.path)
            job.position, job.rows = part.next, job.rows + len(part.frame)
            if progress is not None:
                progress((sum(sizes[:index]) + part.done * sizes[index]) / max(sum(sizes), 1), job.rows)
            if checkpoint is not None and time.monotonic() - saved >= every:
                save_checkpoint(checkpoint, job)
                saved = time.monotonic()
    where = _listed([str(t.path) for t in tables])
    if job.accumulator is None:
        raise CMaxEntError(f"{where}: holds no rows")
    try:
        return job.accumulator.finalize()
    except CMaxEntError as error:
        raise type(error)(f"{where}: {error}") from None


def _common_columns(tables: Sequence[Table], columns: Sequence[str] | None) -> list[str]:
    if not tables:
        raise CMaxEntError("no table was given")
    first = tables[0]
    used = list(first.columns) if columns is None else [str(c) for c in columns]
    if len(set(used)) < len(used):
        raise CMaxEntError(
            f"columns have to be distinct; repeated: {_listed([c for c in dict.fromkeys(used) if used.count(c) > 1])}"
        )
    for table in tables:
        absent = [c for c in used if c not in table.columns]
        if absent:
            raise CMaxEntError(f"{table.path}: lacks column {_listed(absent)}; it has {_listed(table.columns)}")
        extra = [c for c in table.columns if c not in used]
        if extra and columns is None:
            raise CMaxEntError(
                f"{table.path}: has column {_listed(extra)}, which {first.path} lacks: files of one table have the "
                "same columns; make moments of each and merge them"
            )
    return used


def _empty_accumulator(table: Table, used: Sequence[str], declared: Mapping[str, Any], rows: int) -> Accumulator | None:
    """Kinds and labels from the first chunk and from what was declared; None if the file has no rows."""
    text = [k for k, v in declared.items() if not isinstance(v, str) and any(isinstance(level, str) for level in v)]
    part = next(table.chunks(rows, 0, text), None)
    if part is None:
        return None
    frame = part.frame[list(used)]
    for name in used:
        if name not in declared:
            _check_inferable(frame[name], name, part, table.path)
    try:
        found = infer_columns(frame, declared)
    except CMaxEntError as error:
        if "one class only" in str(error):
            message = f"{table.path}: in the first {len(frame)} rows {error}, or list its labels in --kinds"
            raise CMaxEntError(message) from None
        raise CMaxEntError(f"{table.path}: {error}") from None
    return _accumulator([_Column(c.name, c.kind, tuple(_plain(level) for level in c.levels)) for c in found])


def _accumulator(columns: list[_Column]) -> Accumulator:
    made = Accumulator([c.name for c in columns])
    made._columns = columns
    return made


def _check_inferable(series: pd.Series, name: str, part: Chunk, path: Path) -> None:
    """Text columns become indicators: stop before an identifier or a mistyped number makes thousands of them."""
    if pd.api.types.is_numeric_dtype(series) or isinstance(series.dtype, pd.CategoricalDtype):
        return
    if pd.api.types.is_datetime64_any_dtype(series):
        raise CMaxEntError(
            f"{path}: column {name} holds dates: turn them into numbers, or leave the column out with --columns"
        )
    present = series.notna()
    numbers = pd.to_numeric(series.astype(object), errors="coerce")
    stray = (present & numbers.isna()).to_numpy()
    if stray.any() and 2 * stray.sum() < present.sum():
        row = int(np.flatnonzero(stray)[0])
        raise CMaxEntError(
            f"{path}: {part.place(row)}, column {name}: {series.iloc[row]!r} is not a number, but most of the column "
            "is one: correct it, leave the field empty if it is missing, or list the labels in --kinds"
        )
    labels = series.nunique()
    if labels > MOST_LABELS:
        raise CMaxEntError(
            f"{path}: column {name} holds {labels} different texts in the first {len(series)} rows (at most "
            f"{MOST_LABELS} are taken for classes): leave it out with --columns, or list its labels in --kinds"
        )


_COMPLAINT = re.compile(r"column (?P<column>.+?), row (?P<row>\d+): (?P<what>.*)", re.DOTALL)


def located(error: CMaxEntError, part: Chunk, path: Path) -> CMaxEntError:
    """The same complaint with the file and the line instead of the row within the chunk, and what to do."""
    found = _COMPLAINT.fullmatch(str(error))
    if found is None:
        return type(error)(f"{path}: {error}")
    what, column = found["what"], found["column"]
    if "not among the levels" in what:
        remedy = f'list all labels of {column} in --kinds, as in {{"{column}": ["…", "…"]}}'
    elif "binary columns hold" in what:
        remedy = f'if {column} is not binary, say so in --kinds: {{"{column}": "continuous"}}'
    else:
        remedy = "correct it, or leave the field empty if it is missing"
    return type(error)(f"{path}: {part.place(int(found['row']))}, column {column}: {what}; {remedy}")


def _update(accumulator: Accumulator, frame: pd.DataFrame, part: Chunk, path: Path) -> None:
    numeric = all(not c.levels for c in accumulator._columns) and all(dtype.kind in "fiub" for dtype in frame.dtypes)
    try:
        accumulator.update(frame.to_numpy(dtype=float) if numeric else with_truth(frame, accumulator._columns))
    except CMaxEntError as error:
        raise located(error, part, path) from None


_TRUTH = {"true": True, "false": False}


def with_truth(frame: pd.DataFrame, columns: Sequence[_Column]) -> pd.DataFrame:
    """Columns whose labels are True and False, read as text, back to truth values; other words are left to complain."""
    for c in columns:
        if any(isinstance(level, bool) for level in c.levels) and not pd.api.types.is_bool_dtype(frame[c.name]):
            words = frame[c.name].astype(object)
            frame = frame.assign(**{c.name: [_TRUTH.get(str(w).strip().lower(), w) for w in words]})
    return frame


# --- predictions for files -------------------------------------------------------------------------------------


def predict_table(
    model: Any,
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    interval: float | None = None,
    chunk: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Write one prediction per row of a table to a csv file and return their number.

    Parameters
    ----------
    model : fitted MergedClassifier (columns prediction, p_<class>, …) or MergedRegressor (prediction, sd).
    interval : level of the columns lo and hi: for the probability of the second class, or for the value of Y.
    """
    from .fitting import feature_column

    if interval is not None and not 0 < interval < 1:
        raise CMaxEntError(f"interval has to lie strictly between 0 and 1; got {interval:g}")
    features = [str(f) for f in model.feature_names_in_]
    table = open_table(data, features if Path(data).suffix == ".npy" else None)
    present = [f for f in features if f in table.columns]
    if not present:
        raise CMaxEntError(f"{data}: has none of the features {_listed(features)}; it has {_listed(table.columns)}")
    absent = [f for f in features if f not in table.columns]
    if absent:
        warnings.warn(
            f"{data}: lacks {_listed(absent)}: integrated out under the fitted law", UserWarning, stacklevel=2
        )
    columns = [
        feature_column(model.moments_, f) if f in model.moments_.kinds else _Column(f, "continuous") for f in present
    ]
    text = [c.name for c in columns if any(isinstance(level, (str, bool)) for level in c.levels)]
    # Intervals of incomplete rows take a square matrix of the rows of a chunk.
    rows = chunk or max(256, min(4096 if interval is not None else CHUNK, CHUNK_CELLS // len(features)))
    written = 0
    with atomic_text(out) as file:
        for part in table.chunks(rows, 0, text):
            frame = with_truth(part.frame[present], columns)
            try:
                checked = {c.name: _encode_column(frame[c.name], c) for c in columns}
            except CMaxEntError as error:
                raise located(error, part, table.path) from None
            frame = frame.assign(**{c.name: checked[c.name][:, 0] for c in columns if not c.levels})
            _predictions(model, frame, interval).to_csv(file, index=False, header=written == 0, lineterminator="\n")
            written += len(frame)
            if progress is not None:
                progress(part.done, written)
        if not written:
            raise CMaxEntError(f"{data}: holds no rows")
    return written


def _predictions(model: Any, frame: pd.DataFrame, interval: float | None) -> pd.DataFrame:
    if hasattr(model, "classes_"):
        P = model.predict_proba(frame)
        made = pd.DataFrame(P, columns=[f"p_{c}" for c in model.classes_])
        made.insert(0, "prediction", model.classes_[P.argmax(axis=1)])
        if interval is not None:
            made["lo"], made["hi"] = model.predict_proba_interval(frame, interval)
        return made
    mean, sd = model.predict(frame, return_std=True)
    made = pd.DataFrame({"prediction": mean, "sd": sd})
    if interval is not None:
        half = NormalDist().inv_cdf((1 + interval) / 2) * sd
        made["lo"], made["hi"] = mean - half, mean + half
    return made


# --- checkpoints -----------------------------------------------------------------------------------------------


def _fingerprint(path: Path) -> dict[str, Any]:
    """Size and a hash of the first and last MiB: enough to notice another or a rewritten file."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        digest.update(file.read(2**20))
        file.seek(max(0, size - 2**20))
        digest.update(file.read(2**20))
    return {"size": size, "sha256": digest.hexdigest()}


def save_checkpoint(path: str | os.PathLike[str], job: _Job) -> None:
    """Write accumulator and position atomically: npz without pickle."""
    accumulator = job.accumulator
    assert accumulator is not None
    assert accumulator._state is not None
    assert accumulator._origin is not None
    meta = {
        "settings": job.settings,
        "columns": [[c.name, c.kind, list(c.levels)] for c in accumulator._columns],
        "file": job.file,
        "position": job.position,
        "rows": job.rows,
    }
    state = accumulator._state
    arrays: dict[str, NDArray[Any]] = {
        "origin": accumulator._origin,
        "n": np.asarray(state.n),
        "mean": state.mean,
        "comoment": state.comoment,
    }
    save_npz(path, "checkpoint", meta, arrays)


def load_checkpoint(path: str | os.PathLike[str], settings: Mapping[str, Any]) -> _Job:
    """Read what :func:`save_checkpoint` wrote, if it belongs to the same files and settings."""
    kind, meta, arrays = load_npz(path)
    if kind != "checkpoint":
        raise CMaxEntError(f"{path}: holds a cmaxent {kind}, not a checkpoint")
    asked = json.loads(json.dumps(settings))
    differing = [key for key in asked if meta["settings"].get(key) != asked[key]]
    if differing:
        raise CMaxEntError(
            f"{path}: the checkpoint was made with other {_listed(differing)}: repeat the command that made it, "
            "or remove the file to start anew"
        )
    found = [_Column(name, column_kind, tuple(levels)) for name, column_kind, levels in meta["columns"]]
    accumulator = _accumulator(found)
    accumulator._origin = arrays["origin"]
    n = arrays["n"]
    accumulator._state = _State(float(n) if n.ndim == 0 else n, arrays["mean"], arrays["comoment"])
    return _Job(accumulator, meta["file"], meta["position"], meta["rows"], dict(settings))


# --- small files -----------------------------------------------------------------------------------------------


def read_kinds(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Column -> kind or labels from a JSON file."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CMaxEntError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CMaxEntError(f"{path}: cannot be read ({error})") from None
    except json.JSONDecodeError as error:
        raise CMaxEntError(f"{path}: line {error.lineno}, column {error.colno}: not JSON ({error.msg})") from None
    if not isinstance(data, dict):
        raise CMaxEntError(
            f'{path}: has to map columns to kinds, as in {{"age": "continuous", "arm": ["a", "b", "c"]}}'
        )
    for name, kind in data.items():
        if not (kind in KINDS if isinstance(kind, str) else isinstance(kind, list) and len(kind) > 1):
            raise CMaxEntError(
                f"{path}: kind of {name} is {kind!r}; it has to be one of {', '.join(KINDS)}, or a list of labels"
            )
    return data


@contextmanager
def atomic_text(path: str | os.PathLike[str]) -> Iterator[IO[str]]:
    """A text file written bit by bit that appears under its name only when complete."""
    path = Path(path)
    if not path.parent.is_dir():
        raise CMaxEntError(f"cannot write {path}: the folder {path.parent} does not exist")
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


__all__ = ["Chunk", "Table", "open_table", "predict_table", "read_kinds", "read_table", "stream_moments"]
